"""What holds an upload back: the end of its job, a pause, the speed that is allowed. For threads, which cannot wait
for an event loop.

Asked before each piece, so that an upload obeys in the middle of a file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from model import KIB, MIB

LOOK_SECONDS = 0.1
"""Between two looks at whether the pause is over."""
PIECE_SECONDS = 0.25
"""At a limited speed a piece is so small that its wait stays short."""
LEAST_PIECE_BYTES, MOST_PIECE_BYTES = 16 * KIB, MIB


class Stopped(BaseException):
    """The job is no longer ours, or the worker ends: the upload is over, what was sent stays.

    It is no Exception, or a package would take it for a failure of the line and try again.
    """


class Reins:
    """The pause and the speed limit of a worker, shared by all its uploads."""

    def __init__(
        self,
        runs: Callable[[], bool] = lambda: True,
        bytes_per_second: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs, self._rate, self._clock = runs, bytes_per_second, clock
        self._lock = threading.Lock()
        self._paid_at = clock()

    @property
    def piece_bytes(self) -> int:
        """How much to read and send at once."""
        rate = self._rate()
        return (
            MOST_PIECE_BYTES if not rate else min(MOST_PIECE_BYTES, max(LEAST_PIECE_BYTES, int(rate * PIECE_SECONDS)))
        )

    def due(self, size_bytes: int) -> float:
        """Account for a piece; return when it is paid for."""
        rate = self._rate()
        with self._lock:
            now = self._clock()
            self._paid_at = max(self._paid_at, now) + (size_bytes / rate if rate else 0.0)
            return self._paid_at if rate else now

    def wait(self, due: float, ended: threading.Event) -> None:
        """Wait until a piece is paid for and the worker is not paused; raise Stopped as soon as the upload is over."""
        while True:
            if ended.is_set():
                raise Stopped
            left = due - self._clock() if self._runs() else LOOK_SECONDS
            if left <= 0:
                return
            ended.wait(min(left, LOOK_SECONDS))


class Rein:
    """The reins of one upload, which may be ended from any thread."""

    def __init__(self, reins: Reins, tell: Callable[[int], None] = lambda done_bytes: None) -> None:
        self._reins, self._tell = reins, tell
        self._ended = threading.Event()
        self.sent_bytes = 0

    @property
    def piece_bytes(self) -> int:
        """How much to read and send at once."""
        return self._reins.piece_bytes

    def end(self) -> None:
        """Let the upload stop before its next piece."""
        self._ended.set()

    def look(self) -> None:
        """Wait out a pause; for work that sends nothing."""
        self._reins.wait(0.0, self._ended)

    def spend(self, size_bytes: int) -> None:
        """Wait until so many bytes may be sent."""
        self._reins.wait(self._reins.due(size_bytes), self._ended)
        self.sent_bytes += size_bytes

    def received(self, size_bytes: int) -> None:
        """Wait as long as so many bytes cost that were read back."""
        self._reins.wait(self._reins.due(size_bytes), self._ended)

    def reached(self, done_bytes: int) -> None:
        """Tell how far a file is at its target, for people."""
        self._tell(done_bytes)
