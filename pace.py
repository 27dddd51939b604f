"""How quickly the site is asked: places in time, further apart when it asks for less. The clock is given.

The interval doubles with each refusal up to a cap, and comes back by a twentieth with each good answer: it takes 14
good ones to undo a refusal. Another worker's refusal slows this one for as long as the server says.
"""

from __future__ import annotations

from collections.abc import Callable

LEAST_SECONDS = 0.5
"""The first refusal doubles at least this, also where no interval was wished."""
CAP_SECONDS = 30.0
EASING = 0.95
SETTLED_SECONDS = 0.05
"""An interval that has come down to here comes down to the one that was wished."""
SHARED_FACTOR, SHARED_LEAST_SECONDS = 4.0, 2.0
SAME_REFUSAL_SECONDS = 1.0
"""Refusals that come so soon after one belong to requests that were sent before it."""


class Pace:
    """Places in time, one each interval, given out in the order of asking."""

    def __init__(self, wished_seconds: float, monotonic: Callable[[], float]) -> None:
        self._wished = wished_seconds
        self._monotonic = monotonic
        self._interval = wished_seconds
        self._next = self._refused_at = self._slow_until = float("-inf")

    @property
    def interval_seconds(self) -> float:
        """How far apart requests are now."""
        if self.slow_seconds <= 0:
            return self._interval
        return max(self._interval, SHARED_LEAST_SECONDS, self._wished * SHARED_FACTOR)

    @property
    def slow_seconds(self) -> float:
        """How long another worker's refusal slows this one yet."""
        return max(0.0, self._slow_until - self._monotonic())

    def take(self) -> float:
        """Take the next place; return in how many seconds it is."""
        now = self._monotonic()
        place = max(self._next, now)
        self._next = place + self.interval_seconds
        return place - now

    def refused(self) -> None:
        """Be told that the site asks for less."""
        now = self._monotonic()
        if now - self._refused_at < max(self._interval, SAME_REFUSAL_SECONDS):
            return
        self._refused_at = now
        self._interval = max(min(max(self._interval, LEAST_SECONDS) * 2, CAP_SECONDS), self._wished)

    def answered(self) -> None:
        """Be told of a good answer."""
        eased = self._interval * EASING
        self._interval = eased if eased > max(self._wished, SETTLED_SECONDS) else self._wished

    def slow_for(self, seconds: float) -> None:
        """Be told that another worker of this address or account was refused, and for how long that counts yet."""
        self._slow_until = self._monotonic() + seconds
