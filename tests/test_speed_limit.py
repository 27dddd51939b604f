"""The speed limit in simulated time: what was received is never much more than was allowed, nor much less."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.simulation.loop import VirtualLoop
from transfer.speed_limit import CREDIT_SECONDS, PIECE_SECONDS, SpeedLimit

KIB = 1024
PIECE_BYTES = 512 * KIB


class Rig:
    """Connections under one limit that always have something to read, unless they are told to rest."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.limit = SpeedLimit(bytes_per_second, self.loop.time)
        self.pieces: list[tuple[float, int]] = []  # when, how many bytes
        self.longest_wait = 0.0
        self.tasks: list[asyncio.Task[None]] = []

    def connect(self, number: int, each: float = 0.0, seed: int = 0) -> None:
        """Begin to read over so many connections; ``each`` is the speed of the line for one, 0 without a bound."""
        rng = random.Random(seed)
        self.tasks += [asyncio.create_task(self._read(number, each, rng)) for _n in range(number)]

    async def _read(self, number: int, each: float, rng: random.Random) -> None:
        while True:
            size = max(1, round(self.limit.piece_bytes(number, PIECE_BYTES) * rng.uniform(0.2, 1)))
            if each:
                await asyncio.sleep(size / each)
            self.pieces.append((self.loop.time(), size))
            before = self.loop.time()
            if waiting := self.limit.spend(size):
                await waiting
            self.longest_wait = max(self.longest_wait, self.loop.time() - before)

    def disconnect(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.tasks.clear()

    def received(self, start: float, stop: float) -> int:
        return sum(size for when, size in self.pieces if start < when <= stop)


def simulated(story: Callable[[], Any], until_seconds: float = 1000.0) -> Any:
    loop = VirtualLoop()
    try:
        return loop.run(story(), until_seconds)
    finally:
        loop.bury()


RATES = st.floats(4, 9).map(lambda exponent: 10.0**exponent)


@settings(max_examples=25, deadline=None)
@given(rate=RATES, number=st.integers(1, 64), seed=st.integers(0, 99))
def test_any_stretch_of_some_seconds_is_within_three_percent(rate: float, number: int, seed: int) -> None:
    async def story() -> None:
        rig = Rig(rate)
        rig.connect(number, seed=seed)
        seconds = max(5.0, 50 * number * 4 * KIB / rate)  # not less than some of the smallest pieces
        await asyncio.sleep(2 * seconds)
        rig.disconnect()
        for n in range(9):
            received = rig.received(n * seconds / 8 - 1e-9, n * seconds / 8 + seconds)
            assert received == pytest.approx(rate * seconds, rel=0.03)

    simulated(story, 100_000)


@settings(max_examples=8, deadline=None)
@given(rate=st.floats(5, 7).map(lambda exponent: 10.0**exponent), number=st.integers(1, 64))
def test_in_the_long_run_it_is_exact_and_what_is_owed_at_the_end_is_one_piece_each(rate: float, number: int) -> None:
    async def story() -> None:
        rig = Rig(rate)
        rig.connect(number)
        await asyncio.sleep(60)
        owed = rig.received(-1, 60) - rate * 60
        assert -rate * CREDIT_SECONDS <= owed <= number * rig.limit.piece_bytes(number, PIECE_BYTES)
        rig.disconnect()

    simulated(story)


@pytest.mark.parametrize("number", [1, 4, 16, 64])
@pytest.mark.parametrize("rate", [1e6, 3e7, 1e9])
def test_no_connection_waits_longer_than_half_a_second(rate: float, number: int) -> None:
    async def story() -> None:
        rig = Rig(rate)
        rig.connect(number)
        await asyncio.sleep(3)
        assert 0 < rig.longest_wait <= 0.5
        rig.disconnect()

    simulated(story)


@pytest.mark.parametrize("each", [1.1, 2.0, 20.0])
def test_a_line_that_is_hardly_faster_than_the_limit_still_reaches_it(each: float) -> None:
    """While a piece comes in nothing is owed; that time must not be lost."""

    async def story() -> None:
        rig = Rig(2e6)
        rig.connect(1, each * 2e6)
        await asyncio.sleep(20)
        assert rig.received(0, 20) == pytest.approx(2e6 * 20, rel=0.01)
        rig.disconnect()

    simulated(story)


def test_who_is_slower_than_the_limit_never_waits() -> None:
    async def story() -> None:
        rig = Rig(1e6)
        rig.connect(4, 0.2e6)
        await asyncio.sleep(10)
        assert rig.longest_wait <= 0.05
        assert rig.received(0, 10) == pytest.approx(0.8e6 * 10, rel=0.02)
        rig.disconnect()

    simulated(story)


def test_after_a_rest_no_more_than_a_tenth_of_a_second_is_made_up_for() -> None:
    async def story() -> None:
        rig = Rig(1e6)
        await asyncio.sleep(600)
        rig.connect(1)
        await asyncio.sleep(2)
        assert rig.received(599, 602) <= 1e6 * (2 + 0.1 + PIECE_SECONDS) + 1
        rig.disconnect()

    simulated(story, 700)


def test_without_a_limit_nobody_waits_and_no_piece_is_small() -> None:
    limit = SpeedLimit()  # no loop runs: there is nothing to wait with
    assert [limit.spend(10**9) for _n in range(3)] == [None] * 3
    assert (limit.bytes_per_second, limit.piece_bytes(64, PIECE_BYTES)) == (None, PIECE_BYTES)
    limit.set(0)
    assert limit.spend(10**9) is None
    assert SpeedLimit(0).bytes_per_second is None


def test_without_a_limit_the_clock_is_not_even_asked() -> None:
    asked: list[float] = []

    def clock() -> float:
        asked.append(0.0)
        return 0.0

    limit = SpeedLimit(None, clock)
    asked.clear()
    for _n in range(100):
        limit.spend(1)
    assert not asked


def test_those_who_wait_are_woken_in_the_order_in_which_they_spent() -> None:
    async def story() -> None:
        limit = SpeedLimit(1000.0, asyncio.get_running_loop().time)
        order: list[int] = []

        async def wait(number: int, waiting: Awaitable[None]) -> None:
            await waiting
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(wait(number, cast(Awaitable[None], limit.spend(1 + 100 * (number % 3)))))
        assert order == list(range(20))

    simulated(story)


async def ends_after(waiting: Awaitable[None] | None) -> float:
    loop = asyncio.get_running_loop()
    before = loop.time()
    if waiting:
        await waiting
    return loop.time() - before


def changed(before: float | None, after: float | None) -> float:
    """Return how long 10,000 bytes are waited for that were spent at one limit when another follows after 1 s."""

    async def story() -> float:
        limit = SpeedLimit(before, asyncio.get_running_loop().time)
        waiting = asyncio.ensure_future(ends_after(limit.spend(10_000)))
        await asyncio.sleep(1)
        limit.set(after)
        return await waiting

    return cast(float, simulated(story))


def test_a_changed_limit_takes_effect_for_those_who_wait() -> None:
    assert changed(1000.0, 1000.0) == pytest.approx(10.0, abs=0.001)
    assert changed(1000.0, 9000.0) == pytest.approx(2.0, abs=0.001)
    assert changed(1000.0, None) == changed(1000.0, 0.0) == pytest.approx(1.0, abs=0.001)
    assert changed(None, 1000.0) == 0.0


def test_a_lower_limit_holds_at_once_and_nobody_waits_longer_for_what_came_before() -> None:
    assert changed(1000.0, 10.0) == pytest.approx(10.0, abs=0.001)

    async def story() -> float:
        limit = SpeedLimit(1e8, asyncio.get_running_loop().time)
        limit.spend(10_000_000)
        limit.set(20_000.0)
        return await ends_after(limit.spend(20_000))

    assert simulated(story) == pytest.approx(1.1, abs=0.001)


def test_what_was_received_without_a_limit_is_not_owed_later() -> None:
    async def story() -> float:
        limit = SpeedLimit(1000.0, asyncio.get_running_loop().time)
        limit.spend(1_000_000)
        limit.set(None)
        limit.spend(10**12)
        limit.set(1000.0)
        return await ends_after(limit.spend(1000))

    assert simulated(story) == pytest.approx(1.0, abs=0.001)


def test_one_that_is_cancelled_stands_in_nobodys_way() -> None:
    async def story() -> float:
        limit = SpeedLimit(1000.0, asyncio.get_running_loop().time)
        first, second = (asyncio.ensure_future(ends_after(limit.spend(1000))) for _n in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    assert simulated(story) == pytest.approx(2.0, abs=0.001)


CHANGES = st.lists(st.tuples(st.floats(1, 4), st.none() | st.floats(5, 7).map(lambda e: 10.0**e)), max_size=5)


@settings(max_examples=20, deadline=None)
@given(first=st.floats(5, 7).map(lambda e: 10.0**e), number=st.integers(1, 64), changes=CHANGES)
def test_limits_that_change_while_it_runs_are_all_kept(first: float, number: int, changes: Any) -> None:
    async def story() -> None:
        rig = Rig(first)
        rig.connect(number, each=2e6)  # so that there is an end to it where nothing is limited
        moments: list[tuple[float, float | None]] = [(0.0, first)]
        for seconds, rate in changes:
            await asyncio.sleep(seconds)
            rig.limit.set(rate)
            moments.append((rig.loop.time(), rate))
        await asyncio.sleep(3)
        moments.append((rig.loop.time(), None))
        rig.disconnect()
        for (start, rate), (stop, _next) in pairwise(moments):
            if rate is None:
                continue
            slack = CREDIT_SECONDS + PIECE_SECONDS + 0.05
            rush = number * 4 * KIB + number * PIECE_BYTES * (start > 0)  # pieces that were begun before the change
            assert rig.received(start, stop) <= rate * (stop - start + slack) + rush
            reached = min(rate, number * 2e6)
            longest = max(slack, number * 4 * KIB / rate) + PIECE_BYTES / 2e6
            assert rig.received(start, stop) >= 0.97 * reached * (stop - start - longest) - rush

    simulated(story)


@given(rate=RATES, number=st.integers(0, 1000), most=st.integers(1, 10**7))
def test_a_piece_is_neither_tiny_nor_more_than_asked_for(rate: float, number: int, most: int) -> None:
    piece = SpeedLimit(rate).piece_bytes(number, most)
    assert min(4 * KIB, most) <= piece <= most
    assert piece <= max(4 * KIB, 0.5 * rate / max(1, number))


async def test_in_real_time_and_with_late_timers_it_ends() -> None:
    limit = SpeedLimit(1e7)
    async with asyncio.timeout(20):
        for _n in range(20):
            if waiting := limit.spend(20_000):
                await waiting


async def test_a_limit_that_nobody_reaches_does_not_hold_the_pace() -> None:
    now = 0.0
    limit = SpeedLimit(1000, lambda: now)
    now = 10.0
    assert limit.spend(10) is None, "a tenth of a second to spare"
    assert not limit.holds
    waiting = limit.spend(1000)
    assert limit.holds
    limit.set(None)
    assert not limit.holds
    assert waiting is not None
    await waiting
    limit.set(1000)
    now = 10.9
    assert limit.holds
    now = 11.1
    assert not limit.holds
