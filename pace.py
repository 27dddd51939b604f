"""How quickly the site is asked: one request each interval, further apart when it asks for less. The clock is given.

The interval doubles with each refusal up to a cap, and comes back by a twentieth with each good answer: it takes 14
good ones to undo a refusal. Another worker's refusal slows this one for as long as the server says. And the server
says how often this worker may ask at all, because others share its address or its account: while nothing is heard of
it, that holds for half of its time, then a quarter of it, and in the end nothing is asked.
"""

from __future__ import annotations

import math
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
FIRST_WORD_SECONDS = 10.0
"""A worker that has just started asks its first question when it has heard what it may, or after so long."""
SAFE_SHARE = 0.25
LOAD_SECONDS = 10.0
"""What is wanted is what was asked within about so long, and more."""
HELD_UP_SECONDS = 5.0
ROOM_FACTOR = 1.5
MOST_WANTED = 1000.0


class Pace:
    """The requests of a worker, one after the other: when the next one may go, and that it goes."""

    def __init__(self, wished_seconds: float, monotonic: Callable[[], float]) -> None:
        self._wished = wished_seconds
        self._monotonic = monotonic
        self._interval = wished_seconds
        self._last = self._refused_at = self._slow_until = self._parked_until = self._held_up_at = float("-inf")
        self._limit = math.inf
        self._limited_since, self._limit_seconds = 0.0, math.inf
        self._load, self._load_at = 0.0, monotonic()
        self.answers = 0
        """How many requests were answered as usual, since this process began."""

    # -------------------------------------------------------------------------------- when

    @property
    def interval_seconds(self) -> float:
        """How far apart requests are now; without end where none may be asked."""
        own = self._interval
        if self.slow_seconds > 0:
            own = max(own, SHARED_LEAST_SECONDS, self._wished * SHARED_FACTOR)
        return max(own, 1 / self.allowed if self.allowed > 0 else math.inf)

    @property
    def slow_seconds(self) -> float:
        """How long another worker's refusal slows this one yet."""
        return max(0.0, self._slow_until - self._monotonic())

    @property
    def parked_seconds(self) -> float:
        """For how long yet nothing is to be asked."""
        return max(0.0, self._parked_until - self._monotonic())

    @property
    def allowed(self) -> float:
        """How many requests a second the server lets this worker make; without end where it says nothing of it."""
        age = (self._monotonic() - self._limited_since) / self._limit_seconds
        if age < 0.5:
            return self._limit
        return self._limit * SAFE_SHARE if age < 1 else 0.0

    def wait_seconds(self) -> float:
        """Return in how many seconds the next request may go; ask again after a while, for that may change."""
        interval = self.interval_seconds
        wait = interval if math.isinf(interval) else max(0.0, self._last + interval - self._monotonic())
        if wait > self._interval:
            self._held_up_at = self._monotonic()
        return wait

    def take(self) -> None:
        """Be told that a request goes now."""
        self._last = self._monotonic()
        self._load = self._recent_load() + 1
        self._load_at = self._last

    # -------------------------------------------------------------------------------- what the site says

    def refused(self) -> None:
        """Be told that the site asks for less."""
        now = self._monotonic()
        if now - self._refused_at < max(self._interval, SAME_REFUSAL_SECONDS):
            return
        self._refused_at = now
        self._interval = max(min(max(self._interval, LEAST_SECONDS) * 2, CAP_SECONDS), self._wished)

    def answered(self, is_good: bool = True) -> None:
        """Be told of an answer; a good one lets the interval come back."""
        self.answers += 1
        if not is_good:
            return
        eased = self._interval * EASING
        self._interval = eased if eased > max(self._wished, SETTLED_SECONDS) else self._wished

    # -------------------------------------------------------------------------------- what the server says

    def await_word(self) -> None:
        """Be told that the server is going to say how often to ask: until then hardly anything is asked."""
        self._last = self._monotonic()
        self.obey(1 / FIRST_WORD_SECONDS, math.inf)

    def obey(self, requests_per_second: float | None, holds_seconds: float) -> None:
        """Be told how often to ask, and for how long that holds; None is no limit."""
        self._limit = math.inf if requests_per_second is None else requests_per_second
        self._limited_since = self._monotonic()
        self._limit_seconds = math.inf if requests_per_second is None else holds_seconds

    def slow_for(self, seconds: float) -> None:
        """Be told that another worker of this address or account was refused, and for how long that counts yet."""
        self._slow_until = self._monotonic() + seconds

    def park_for(self, seconds: float) -> None:
        """Be told that nothing is to be asked for so long; 0 ends it."""
        self._parked_until = self._monotonic() + seconds

    # -------------------------------------------------------------------------------- what the server is told

    @property
    def asked_per_second(self) -> float:
        """How often the site was asked lately."""
        return self._recent_load() / LOAD_SECONDS

    @property
    def wanted_per_second(self) -> float:
        """How often the site would be asked if the server had no limit: more than now where requests had to wait."""
        most = min(MOST_WANTED, 1 / self._interval) if self._interval > 0 else MOST_WANTED
        if self._monotonic() - self._held_up_at < HELD_UP_SECONDS:
            return most
        return min(most, self.asked_per_second * ROOM_FACTOR)

    def _recent_load(self) -> float:
        return self._load * math.exp((self._load_at - self._monotonic()) / LOAD_SECONDS)
