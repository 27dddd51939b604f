"""Keep the threads of a server on one processor at a time. On Linux; elsewhere the system does as it likes.

Python runs one thread at a time. Where the next one to run sits on another processor, that one is woken up for it,
which costs more than to go on where the last one ran (docs/scale.md has the figures). Which processor it is, the system
knows best: while there is little to do, and now and then for a moment, the threads may go where they like, and they
stay where that has led.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

TURNS = 16
"""In one of so many turns the threads may go where they like: it finds out whether others have crowded their place."""
BUSY, IDLE = 0.3, 0.03
"""Of a processor, what they must have used; of all processors, what must be left over, or nobody could make way. A
server that leases many at a time keeps the engine so busy that 5 percent are left (docs/scale.md)."""


ALLOWED = frozenset(os.sched_getaffinity(0) if sys.platform == "linux" else ())
"""The processors that whoever started us has left us; none where that cannot be told, or not be changed."""


class Load(NamedTuple):
    """What was used so far, in seconds: by this process, and of all processors together."""

    own: float
    idle: float
    all: float


def load_so_far() -> Load:
    """Return what was used so far; nothing where that is not told (proc(5))."""
    idle = total = 0.0
    if sys.platform == "linux":
        with suppress(OSError, ValueError):
            first_line = Path("/proc/stat").read_text("ascii").partition("\n")[0]
            told = [int(text) / os.sysconf("SC_CLK_TCK") for text in first_line.split()[1:9]]
            idle, total = sum(told[3:5]), sum(told)
    return Load(time.process_time(), idle, total)


class OneProcessor:
    """The threads that are kept together."""

    def __init__(self, load: Callable[[], Load] = load_so_far) -> None:
        self._load = load
        self._threads: list[int] = []
        self._turn = 0
        self._is_kept = False
        self._before = self._load()

    def join(self) -> None:
        """Keep the calling thread with the others from the next turn on."""
        self._threads.append(threading.get_native_id())

    def turn(self) -> None:
        """Keep all where the calling thread is now, or let them go; to be called about once a second."""
        if len(ALLOWED) > 1:
            self._turn = (self._turn + 1) % TURNS if self._is_worth_it() else 0
            if self._turn == 0:
                self.part()
            elif self._turn == 1:
                self._is_kept = True
                self._move(frozenset({_present()}))

    def _is_worth_it(self) -> bool:
        """Tell whether there was much to do since the last turn, and others need not share the processor with us."""
        now, before = self._load(), self._before
        self._before = now
        own, idle, of_all = (new - old for new, old in zip(now, before, strict=True))
        return own >= BUSY * of_all / (os.cpu_count() or 1) and idle >= IDLE * of_all > 0

    def part(self) -> None:
        """Let all go where they like."""
        if self._is_kept:  # else somebody else may have kept us somewhere: taskset, an administrator
            self._is_kept = False
            self._move(ALLOWED)

    def _move(self, processors: frozenset[int]) -> None:
        for thread in self._threads:
            with suppress(OSError):  # it has ended, or a sandbox does not allow it
                if sys.platform == "linux":
                    os.sched_setaffinity(thread, processors)


@contextmanager
def everywhere() -> Iterator[None]:
    """Let a process that the calling thread starts use what we may use, wherever the thread itself is kept."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, ALLOWED)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def _present() -> int:
    """Return the number of the processor on which the calling thread runs: the 39th field (proc(5))."""
    fields = Path("/proc/thread-self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return int(fields[36])
