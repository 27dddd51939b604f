"""How the jobs of a worker follow each other: the slots of its downloads, and how many jobs to prepare ahead of them.

A job is prepared (described, its streams asked for) while others download, takes a slot for as long as its bytes
come, and leaves it to merge. So no slot waits for the site's API or for ffmpeg.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

LEAD_SECONDS = 5.0
"""A slot that comes free within this time, or within that of a preparation, is prepared for."""
SPARE_JOBS = 3
"""So many more than there are slots are prepared at most."""
LEAST_DOWNLOAD_SECONDS = 0.01


class NotNow(Exception):
    """A prepared job got no slot in time: somebody else may be quicker."""


class Slots:
    """Places for downloads, given out in the order of asking, each as soon as ``may_begin`` says that one may begin.

    How many there are is told by ``may_begin`` alone; ``look`` is to be called when its answer may have changed.
    """

    def __init__(self, may_begin: Callable[[], bool], clock: Callable[[], float]) -> None:
        self._may_begin, self._clock = may_begin, clock
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self.taken = 0

    async def take(self) -> None:
        """Wait for a slot and take it, until ``give_back``; raise NotNow where ``dismiss`` ends the wait."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._clock(), place))
        self.look()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.exception() is None:  # it was given in the same moment
                self.give_back()
            raise

    def give_back(self) -> None:
        """End the use of a slot: the next one may begin."""
        self.taken -= 1
        self.look()

    def look(self) -> None:
        """Let those begin that may."""
        while self._waiting and self._may_begin():
            _since, place = self._waiting.popleft()
            if not place.done():  # else who waited was cancelled
                self.taken += 1
                place.set_result(None)

    def dismiss(self, waiting_seconds: float = 0.0) -> int:
        """Send away those who have waited for so long; return how many."""
        since = self._clock() - waiting_seconds
        sent = 0
        while self._waiting and self._waiting[0][0] <= since:
            _since, place = self._waiting.popleft()
            if not place.done():
                place.set_exception(NotNow())
                sent += 1
        return sent


class Rhythm:
    """How long preparing and downloading have lately taken, and how many jobs must be ahead because of that."""

    def __init__(self) -> None:
        self._preparation_seconds = 0.0
        self._download_seconds = float("inf")

    def prepared_in(self, seconds: float) -> None:
        """Take note of the time from a lease to where its job could have begun to download."""
        self._preparation_seconds += 0.3 * (seconds - self._preparation_seconds)

    def downloaded_in(self, seconds: float) -> None:
        """Take note of the time that a job had its slot."""
        before = min(self._download_seconds, 4 * seconds)  # the first one counts for itself alone
        self._download_seconds = max(LEAST_DOWNLOAD_SECONDS, before + 0.3 * (seconds - before))

    def ahead(self, seconds_left: Iterable[float], slots: int) -> int:
        """Return how many jobs should be prepared or under preparation, beside one for each of the ``slots``.

        ``seconds_left`` are those of the running downloads. As many slots come free as end until a job that is
        leased now is prepared; where downloads are short, the same slot more than once.
        """
        preparation, turn = self._preparation_seconds, self._download_seconds
        lefts = list(seconds_left)
        near = [left for left in lefts if left <= max(LEAD_SECONDS, preparation)]
        again = sum(max(0.0, preparation - left) for left in near) + max(0, slots - len(lefts)) * preparation
        return min(len(near) + int(again / turn), slots + SPARE_JOBS)
