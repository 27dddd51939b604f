"""The connections that all jobs of a worker share: how many may be open, and whose turn it is.

As many as the user allows are used at once, because small files need them. Where all of them are busy for long, one
after the other is left out as long as the total speed stays the same: a line that is full with five connections is not
faster with sixteen, only ruder to others and heavier for the CDN. Where the CDN paces each connection, all stay.
Push-back of a host (429, 503, resets) is not looked at here: it concerns that host, not the line.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from math import sqrt
from statistics import fmean, pstdev

FEWEST = 4
"""Fewer connections are too few for two streams and a bad mirror, however fast they are."""

STEP_DOWN, STEP_UP = 1 / 8, 1 / 4
"""So much of the connections a trial takes or adds: enough to be seen. More of them cost little if they are wrong."""

KEPT_SHARE = 0.97
"""Fewer connections are right if they reach so much of the speed; of the speed before the first of several steps."""

GAIN_SHARE = 1.05
"""More connections are right if they reach so much."""

SAMPLES = 16
"""Quarter-seconds that are looked back on, and the longest measurement: 4 s average the noise of a busy line."""

SAMPLES_BEFORE = 8
"""A trial begins with so many at least."""

SAMPLES_TO_KEEP, SAMPLES_TO_LOSE = 4, 2
"""After 1 s a trial may count as good. A clear loss is ended after 0.5 s, because it costs."""

DOUBT_TO_KEEP, DOUBT_TO_LOSE = 0.5, 1.5
"""A trial is over when it is that many standard errors beyond the wish. To lose takes more: it means long to wait."""

LEAST_NOISE = 0.01
"""Samples that are equal by chance prove no more than this."""

STEADY_SECONDS = 8.0
"""The first trial comes after so much time in which all was in use; later ones after twice the time before."""

AGAIN_SECONDS = 2.0
"""After a good step the next one follows soon."""

SELDOM_SECONDS = 120.0
"""Trials that change nothing come so seldom in the end."""

RAMP_SECONDS = 20.0
"""A trial of fewer waits so long for connections to come free: none is closed for it, and a range may take minutes."""

CHANGED_SHARE = 0.15
"""A total speed so much off the one at the last trial is another network: trials begin anew."""

GAP_SECONDS = 1.0
"""If nobody looked for so long, what came in between says nothing."""

FORGET_SECONDS = 30.0
"""After so long with connections to spare the next herd finds all of them again."""

FREE_SECONDS = 4.0
"""A speed limit that did not hold the pace for so long is over; shorter, it was a breath of the line."""


@dataclass(slots=True)
class _Trial:
    """A different number of connections, on trial; ``speed`` and ``noise`` are those before it, in bytes per second."""

    begun_at: float
    limit_before: int
    speed: float
    noise: float
    samples_before: int
    is_measuring: bool = False
    samples: list[float] = field(default_factory=list)


class Adaptation:
    """How many connections may be open: hill climbing on the total speed. It has no clock; look() is told the time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._look: tuple[float, int] | None = None
        self._busy_at = 0.0
        self._limited_at: float | None = None
        self._start_over()

    def _start_over(self) -> None:
        self.limit = self._most
        self._sign = -1  # of the next trial
        self._trial: _Trial | None = None
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._wait_seconds = STEADY_SECONDS
        self._next_at = 0.0
        self._steady_at: float | None = None
        self._best = 0.0  # the speed before the first of several steps down
        self._last = 0.0  # the speed at the last trial that changed nothing

    def look(self, now: float, received_bytes: int, active: int, is_busy: bool, is_limited: bool = False) -> int:
        """Return how many connections may be open; call it about four times a second.

        ``received_bytes`` is the total since the beginning; ``is_busy`` says that all that may be open were, all the
        time since the last look, and more were wanted; ``is_limited``, that a speed limit holds the pace.
        """
        before, self._look = self._look, (now, received_bytes)
        if before is None or now - before[0] > GAP_SECONDS:
            is_busy, before = False, None
        if self._is_over(now, is_busy, is_limited):
            self._start_over()
        if not is_busy:
            self._rest()
        elif before is not None and now > before[0]:
            self._count(now, (received_bytes - before[1]) / (now - before[0]), active)
        return self.limit

    def _is_over(self, now: float, is_busy: bool, is_limited: bool) -> bool:
        """Tell whether what was found out concerns another time: before a long rest, or under a speed limit."""
        rested = now - self._busy_at > FORGET_SECONDS
        freed = self._limited_at is not None and now - self._limited_at > FREE_SECONDS and not is_limited
        if is_busy:
            self._busy_at = now
        if is_limited or freed:
            self._limited_at = now if is_limited else None
        return rested or freed

    def _rest(self) -> None:
        """Forget the samples, and a trial: with connections to spare, the speed is not theirs."""
        if self._trial:
            self.limit, self._trial = self._trial.limit_before, None
        self._samples.clear()
        self._steady_at = None

    def _count(self, now: float, speed: float, active: int) -> None:
        if self._trial:
            self._try(self._trial, now, speed, active)
            return
        self._samples.append(speed)
        if self._steady_at is None:
            self._steady_at = now
        if len(self._samples) == SAMPLES and self._last:
            self._notice_change(now)
        is_due = now >= self._next_at and now - self._steady_at >= STEADY_SECONDS
        if is_due and len(self._samples) >= SAMPLES_BEFORE:
            self._begin(now)

    def _notice_change(self, now: float) -> None:
        if abs(fmean(self._samples) / self._last - 1) > CHANGED_SHARE:
            self._last = self._best = 0.0
            self._wait_seconds = STEADY_SECONDS
            self._next_at = now

    def _begin(self, now: float) -> None:
        if self._limited_at is not None or self.limit == self._most:  # more would not be faster than the speed limit
            self._sign = -1
        elif self.limit == FEWEST:
            self._sign = 1
        limit = self._next_limit()
        speed = fmean(self._samples)
        if limit == self.limit or not speed:
            return
        self._trial = _Trial(now, self.limit, speed, pstdev(self._samples), len(self._samples))
        self.limit = limit

    def _next_limit(self) -> int:
        if self._sign < 0:
            return min(self._most, max(FEWEST, self.limit - max(1, round(self.limit * STEP_DOWN))))
        step = max(1, round(self.limit * STEP_UP))
        limit = self.limit + step
        return limit if self._most - limit > step / 2 else self._most  # a small last step would show no gain

    def _try(self, trial: _Trial, now: float, speed: float, active: int) -> None:
        if not trial.is_measuring:
            # This quarter-second still belongs to the change.
            trial.is_measuring = self._sign > 0 or active <= self.limit
            if not trial.is_measuring and now > trial.begun_at + RAMP_SECONDS:
                self._give_up(now)
            return
        trial.samples.append(speed)
        verdict = self._judge(trial)
        if verdict:
            self._keep(trial, now)
        elif verdict is False:
            self._give_up(now)

    def _judge(self, trial: _Trial) -> bool | None:
        """Tell whether the trial is good; None while that is unclear, because of noise."""
        reached = fmean(trial.samples) / max(trial.speed, self._best if self._sign < 0 else 0.0)
        number = len(trial.samples)
        noise = max(LEAST_NOISE, trial.noise / trial.speed)
        doubt = noise * sqrt(1 / trial.samples_before + 1 / number)
        wanted = KEPT_SHARE if self._sign < 0 else GAIN_SHARE
        if number >= SAMPLES:
            return reached >= wanted
        if number >= SAMPLES_TO_LOSE and reached + DOUBT_TO_LOSE * doubt < wanted:
            return False
        return True if number >= SAMPLES_TO_KEEP and reached - DOUBT_TO_KEEP * doubt >= wanted else None

    def _keep(self, trial: _Trial, now: float) -> None:
        self._best = (self._best or trial.speed) if self._sign < 0 else 0.0
        self._samples = deque(trial.samples, maxlen=SAMPLES)
        self._trial, self._last = None, 0.0
        self._wait_seconds = AGAIN_SECONDS
        self._next_at = now + AGAIN_SECONDS

    def _give_up(self, now: float) -> None:
        """Go back to what was before, and wait twice as long; the next trial goes the other way."""
        assert self._trial
        self.limit, self._last = self._trial.limit_before, self._trial.speed
        if self._last < KEPT_SHARE * self._best:  # what was then is not to be had any more, by any number
            self._best = 0.0
        self._trial = None
        self._sign = -self._sign
        self._samples.clear()
        self._wait_seconds = min(SELDOM_SECONDS, max(STEADY_SECONDS, 2 * self._wait_seconds))
        self._next_at = now + self._wait_seconds


@dataclass(slots=True)
class _Owner:
    """Of one job: the slots that it holds, and who waits for more, each with a number that grows with the time."""

    held: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)


class Connections:
    """A budget of connections, at most ``most`` of them at a time, fair among their owners. For one event loop."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limited = False
        """Set while a speed limit holds the pace: more connections are no gain then, and fewer are enough."""
        self.active = 0
        self._clock = clock
        self._adaptation = Adaptation(most)
        self._owners: dict[Hashable, _Owner] = {}
        self._numbers = count()
        self._waiting = 0
        self._received_bytes = 0
        self._was_free = True

    @property
    def limit(self) -> int:
        """How many may be open now. If it has just become less, more are, until they are given back."""
        return self._adaptation.limit

    @asynccontextmanager
    async def slot(self, owner: Hashable) -> AsyncIterator[None]:
        """Wait for a connection that may be open, and hold it; of those who wait, who has the fewest comes first."""
        await self._take(owner)
        try:
            yield
        finally:
            self._give_back(owner)

    def has_free(self) -> bool:
        """Tell whether a slot could be had at once; while somebody waits, none is left over."""
        return self.active < self.limit

    def share(self, owner: Hashable) -> int:
        """Return how many an owner could have if all that have or want one had equally many, at least 1."""
        return max(1, self.limit // len(self._owners.keys() | {owner}))

    def received(self, size_bytes: int) -> None:
        """Count what came over any of the connections."""
        self._received_bytes += size_bytes

    def tick(self) -> None:
        """Let the limit adapt; to be called about four times a second while anything is open."""
        is_busy = not self._was_free and self._waiting > 0
        self._adaptation.look(self._clock(), self._received_bytes, self.active, is_busy, self.limited)
        self._hand_out()
        self._was_free = self.has_free()

    async def _take(self, owner: Hashable) -> None:
        place = self._owners.setdefault(owner, _Owner())
        if self.has_free():
            place.held += 1
            self.active += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        ticket = (next(self._numbers), waiter)
        place.waiting.append(ticket)
        self._waiting += 1
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():  # it was handed out just before
                self._give_back(owner)
            elif ticket in place.waiting:
                place.waiting.remove(ticket)
                self._waiting -= 1
            self._forget(owner)
            raise

    def _give_back(self, owner: Hashable) -> None:
        self._owners[owner].held -= 1
        self.active -= 1
        self._forget(owner)
        self._hand_out()
        self._was_free |= self.has_free()

    def _hand_out(self) -> None:
        while self._waiting and self.active < self.limit:
            place = min(
                (place for place in self._owners.values() if place.waiting),
                key=lambda place: (place.held, place.waiting[0][0]),
            )
            waiter = place.waiting.popleft()[1]
            self._waiting -= 1
            if not waiter.cancelled():
                waiter.set_result(None)
                place.held += 1
                self.active += 1

    def _forget(self, owner: Hashable) -> None:
        place = self._owners.get(owner)
        if place and not place.held and not place.waiting:
            del self._owners[owner]
