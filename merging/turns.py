"""Whose turn it is to merge: a processor for each ffmpeg, first come, first served; small merges may share one.

The start of an ffmpeg costs more than a small merge. So where several small ones wait for a processor, one ffmpeg makes
all of their files. It proves nothing of each: when it fails, or one of them is given up, every other one is made
again alone, and judged by that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from model import MERGED_TOGETHER

_Order = TypeVar("_Order")
_Wanted = TypeVar("_Wanted", contravariant=True)
_Run = Callable[[Sequence[_Order], int], Awaitable[None]]


class SharedRunFailed(Exception):
    """An ffmpeg that made several files did not end well: this one is to be made alone."""


class Turn(Protocol[_Wanted]):
    """A turn that was given: what is ordered with it is carried out, once."""

    async def run(self, order: _Wanted) -> None:
        """Carry out the order; raise what it raises, or SharedRunFailed."""

    def leave(self) -> None:
        """End the turn."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[_Order]):
    kind: str
    """Those of one kind may share; an empty text: nobody."""
    given: asyncio.Future[Turn[_Order]]


class Turns(Generic[_Order]):
    """The turns of one event loop; ``run`` carries orders out on the processor of that number."""

    def __init__(self, processors: Sequence[int], run: _Run[_Order]) -> None:
        self._free = deque(processors)
        self._run = run
        self._waiting: deque[_Waiting[_Order]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, kind: str = "") -> AsyncIterator[Turn[_Order]]:
        """Wait for a turn; others with the same ``kind`` may have it as well."""
        waiting = _Waiting[_Order](kind, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._hand_out()
        try:
            turn = await waiting.given
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.given.done() and not waiting.given.cancelled():
                waiting.given.result().leave()
            raise
        try:
            yield turn
        finally:
            turn.leave()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            first = self._waiting.popleft()
            if first.given.cancelled():
                continue
            crew = [first]
            for other in [other for other in self._waiting if first.kind and other.kind == first.kind]:
                if len(crew) < MERGED_TOGETHER and not other.given.cancelled():
                    self._waiting.remove(other)
                    crew.append(other)
            processor = self._free.popleft()
            if len(crew) == 1:
                first.given.set_result(_Alone(self, processor))
                continue
            shared = _Shared(self, processor, len(crew))
            for waiting in crew:
                waiting.given.set_result(_Seat(shared))

    async def carry_out(self, orders: Sequence[_Order], processor: int) -> None:
        """Carry out orders; for the turns."""
        await self._run(orders, processor)

    def give_back(self, processor: int) -> None:
        """Take a processor back from a turn that is over; for the turns."""
        self._free.append(processor)
        self._hand_out()


class _Alone(Generic[_Order]):
    """A turn of one."""

    def __init__(self, turns: Turns[_Order], processor: int) -> None:
        self._turns, self._processor = turns, processor

    async def run(self, order: _Order) -> None:
        """See Turn."""
        await self._turns.carry_out([order], self._processor)

    def leave(self) -> None:
        """See Turn."""
        self._turns.give_back(self._processor)


class _Seat(Generic[_Order]):
    """One member's part in a run that several share."""

    def __init__(self, shared: _Shared[_Order]) -> None:
        self._shared = shared
        self._has_ordered = False

    async def run(self, order: _Order) -> None:
        """See Turn."""
        self._has_ordered = True
        await self._shared.run(order)

    def leave(self) -> None:
        """See Turn."""
        self._shared.leave(self._has_ordered)


class _Shared(Generic[_Order]):
    """A run that begins when each of its members has ordered, or left without."""

    def __init__(self, turns: Turns[_Order], processor: int, members: int) -> None:
        self._turns, self._processor = turns, processor
        self._staying = self._missing = members
        self._orders: list[_Order] = []
        self._has_begun = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    async def run(self, order: _Order) -> None:
        """Carry out an order together with those of the others."""
        self._orders.append(order)
        self._arrive()
        try:
            await self._has_begun.wait()
            assert self._work is not None
            await asyncio.wait([self._work])
        except asyncio.CancelledError:
            await self._give_up(order)
            raise
        if self._work.cancelled() or self._work.exception() is not None:
            raise SharedRunFailed

    def leave(self, has_ordered: bool) -> None:
        """Wait for this member no more."""
        if not has_ordered:
            self._arrive()
        self._staying -= 1
        if not self._staying:
            self._turns.give_back(self._processor)

    def _arrive(self) -> None:
        self._missing -= 1
        if not self._missing and self._orders:
            self._work = asyncio.create_task(self._carry_out())
            self._has_begun.set()

    async def _carry_out(self) -> None:
        await self._turns.carry_out(self._orders, self._processor)

    async def _give_up(self, order: _Order) -> None:
        """Take an order back; what has begun is ended, because it writes into a file that will be gone."""
        if self._work is None:
            self._orders.remove(order)
            return
        self._work.cancel()
        await asyncio.wait([self._work])
