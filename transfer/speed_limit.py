"""One limit of speed for all connections of a worker: what was received is paid for before more is read.

The account is one moment: when all that was received will be paid for, at the speed allowed. Each piece moves it on by
its size divided by the limit, whoever received it and however late a timer fires, so the average is exact. Only time
in which nothing was owed is lost, but for a little credit.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from model import KIB

CREDIT_SECONDS = 0.1
"""So much unused time counts later: a busy moment of this process, or a slow one of the line, is made up for."""

PIECE_SECONDS = 0.05
"""All connections together read so much at once: a wait stays short, and so does the rush at the beginning."""

LEAST_PIECE_BYTES = 4 * KIB
"""Smaller reads would cost more than they are worth."""

SLACK_SECONDS = 0.0005
"""Timers are no finer; what is due within it is due."""


HOLDS_SECONDS = 1.0
"""Between two pieces that had to wait nobody may be waiting; for so long the limit is thought to hold all the same."""


class SpeedLimit:
    """What all connections together may receive, in bytes per second; None or 0 is no limit. For one event loop."""

    def __init__(self, bytes_per_second: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = bytes_per_second or None
        self._paid_at = clock()
        """When all that was received is paid for."""
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._held_at = float("-inf")

    @property
    def holds(self) -> bool:
        """Tell whether it is the limit that sets the pace: then the speed says nothing about the line or a mirror."""
        if self._rate is None:
            return False
        return bool(self._waiting) or self._clock() - self._held_at <= HOLDS_SECONDS

    @property
    def bytes_per_second(self) -> float | None:
        """The limit, None without one."""
        return self._rate

    def set(self, bytes_per_second: float | None) -> None:
        """Change or remove (None, 0) the limit, at once, also for those who wait.

        Under a higher one they wait less, in proportion. Under a lower one they do not wait longer: what they owe was
        received when more was allowed.
        """
        before, self._rate = self._rate, bytes_per_second or None
        now = self._clock()
        factor = min(1.0, before / self._rate) if before and self._rate else 0.0
        self._paid_at = min(self._paid_at, now + (self._paid_at - now) * factor)
        self._waiting = deque((now + (due - now) * factor, waiter) for due, waiter in self._waiting)
        self._wake()

    def spend(self, size_bytes: int) -> Awaitable[None] | None:
        """Account for what was received; return None to go on at once, or what ends when it is paid for.

        Those who wait are woken in the order of their calls. One that is cancelled has spent all the same.
        """
        if self._rate is None:
            return None
        now = self._clock()
        self._paid_at = max(self._paid_at, now - CREDIT_SECONDS) + size_bytes / self._rate
        if self._paid_at <= now + SLACK_SECONDS:
            return None
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((self._paid_at, waiter))
        self._held_at = now
        if self._timer is None:
            self._wake()
        return waiter

    def piece_bytes(self, connections: int, most: int) -> int:
        """Return how much one of so many connections should read at once, ``most`` bytes or fewer."""
        if self._rate is None:
            return most
        return min(most, max(LEAST_PIECE_BYTES, int(self._rate * PIECE_SECONDS / max(1, connections))))

    def _wake(self) -> None:
        """Let go those whose time has come, and see to it that the next one's will."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now + SLACK_SECONDS:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._waiting[0][0] - now, self._wake)
