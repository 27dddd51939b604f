"""What all viewers of the dashboard share for a moment, so that many of them cost hardly more than one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")

KEPT_SECONDS = 1.0
SHARE = 50
"""What took long to make is kept for so many times as long: at most this part of the time goes into making it."""
LONGEST_SECONDS = 10.0
STALE_SECONDS = 10.0
"""For so long more an old one is shown while somebody makes the new one; nobody waits, and no thread is held."""
MAX_ENTRIES = 256


@dataclass(slots=True, eq=False)
class _Entry(Generic[Value]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: Value | None = None
    good_until: float = float("-inf")


class Kept(Generic[Value]):
    """Keeps what was made for a key, each made by one thread at a time. Failures are not kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry[Value]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return what is kept for ``key``, or what ``make`` returns now."""
        entry = self._entry(key)
        if (kept := self._fresh(entry)) is not None:
            return kept
        value = entry.value
        is_shown = value is not None and self._clock() < entry.good_until + STALE_SECONDS
        if not entry.lock.acquire(blocking=not is_shown):
            assert value is not None
            return value
        try:
            return kept if (kept := self._fresh(entry)) is not None else self._renew(entry, make)
        finally:
            entry.lock.release()

    def clear(self) -> None:
        """Forget everything: somebody has changed something, and wants to see it."""
        with self._lock:
            self._entries.clear()

    def _entry(self, key: Hashable) -> _Entry[Value]:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
            return entry

    def _fresh(self, entry: _Entry[Value]) -> Value | None:
        return entry.value if self._clock() < entry.good_until else None

    def _renew(self, entry: _Entry[Value], make: Callable[[], Value]) -> Value:
        began = self._clock()
        value = make()
        ended = self._clock()
        entry.value = value
        entry.good_until = ended + min(LONGEST_SECONDS, max(KEPT_SECONDS, SHARE * (ended - began)))
        return value
