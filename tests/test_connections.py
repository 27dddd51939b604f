"""The budget of connections: nobody loses a slot, nobody is left out, and the limit finds what the line can use."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.simulation.loop import VirtualLoop
from transfer.connections import Adaptation, Connections

MB = 1e6

# ------------------------------------------------------------------------------------------ slots


async def turns(number: int = 5) -> None:
    for _unused in range(number):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that take a slot each and hold it until they are told to give it back."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.connections = Connections(most, clock=lambda: self.now)
        self.holders: list[tuple[str, asyncio.Event, asyncio.Task[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def want(self, owner: str, number: int = 1) -> list[asyncio.Task[None]]:
        new = [asyncio.create_task(self._hold(owner)) for _n in range(number)]
        self._tasks += new
        return new

    async def _hold(self, owner: str) -> None:
        async with self.connections.slot(owner):
            free = asyncio.Event()
            task = asyncio.current_task()
            assert task
            entry = (owner, free, task)
            self.holders.append(entry)
            try:
                await free.wait()
            finally:
                self.holders.remove(entry)

    def held(self) -> dict[str, int]:
        return dict(Counter(owner for owner, _free, _task in self.holders))

    async def give_back(self, owner: str) -> None:
        next(free for name, free, _task in self.holders if name == owner).set()
        await turns()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert (self.connections.active, self.connections.has_free()) == (0, True)
        assert self.connections.share("nobody") == self.connections.limit, "an owner was not forgotten"


async def test_no_more_than_the_limit_are_open_and_all_of_it_is_used() -> None:
    crowd = Crowd(3)
    crowd.want("a", 5)
    await turns()
    assert (crowd.held(), crowd.connections.active, crowd.connections.has_free()) == ({"a": 3}, 3, False)
    await crowd.end()


async def test_a_freed_slot_goes_to_the_owner_that_has_the_fewest() -> None:
    crowd = Crowd(6)
    crowd.want("big", 40)
    await turns()
    crowd.want("small", 3)
    crowd.want("late", 3)
    for _n in range(4):
        await crowd.give_back("big")
    assert crowd.held() == {"big": 2, "small": 2, "late": 2}
    await crowd.end()


async def test_among_equals_the_one_that_waited_longest_comes_first() -> None:
    crowd = Crowd(3)
    for owner in ("known", "other", "holder"):
        crowd.want(owner)
    await turns()
    for owner in ("other", "known"):
        crowd.want(owner)
        await turns()
    await crowd.give_back("holder")
    assert crowd.held() == {"known": 1, "other": 2}
    await crowd.end()


async def test_has_free_is_false_while_somebody_waits() -> None:
    crowd = Crowd(2)
    assert crowd.connections.has_free()
    crowd.want("a", 1)
    await turns()
    assert crowd.connections.has_free()
    crowd.want("a", 2)
    await turns()
    assert not crowd.connections.has_free()
    await crowd.end()


async def test_the_share_counts_all_who_hold_or_wait_and_is_never_nothing() -> None:
    crowd = Crowd(8)
    assert crowd.connections.share("a") == 8
    crowd.want("a", 8)
    await turns()
    assert (crowd.connections.share("a"), crowd.connections.share("b")) == (8, 4)
    for owner in "bcdefghijk":
        crowd.want(owner)
    await turns()
    assert crowd.connections.share("a") == 1
    await crowd.end()


async def test_who_no_longer_waits_is_no_longer_counted() -> None:
    crowd = Crowd(2)
    crowd.want("a", 2)
    await turns()
    [gone] = crowd.want("b")
    await turns()
    assert crowd.connections.share("a") == 1
    gone.cancel()
    await turns()
    assert crowd.connections.share("a") == 2
    await crowd.end()


async def test_a_lower_limit_closes_nothing_and_a_higher_one_is_used_at_once() -> None:
    crowd = Crowd(4)
    crowd.want("a", 6)
    await turns()
    crowd.connections._adaptation.limit = 2
    crowd.connections.tick()
    await turns()
    assert crowd.held() == {"a": 4}
    for _n in range(2):
        await crowd.give_back("a")
    assert crowd.held() == {"a": 2}
    crowd.connections._adaptation.limit = 4
    crowd.connections.tick()
    await turns()
    assert crowd.held() == {"a": 4}
    await crowd.end()


async def test_who_is_cancelled_just_as_its_slot_comes_passes_it_on() -> None:
    crowd = Crowd(1)
    crowd.want("holder")
    await turns()
    [unlucky] = crowd.want("unlucky")
    crowd.want("next")
    await turns()
    crowd.holders[0][1].set()
    while not crowd.connections._owners["unlucky"].held:
        await asyncio.sleep(0)
    unlucky.cancel()  # the slot is its own, but it has not run since
    await turns()
    assert crowd.held() == {"next": 1}
    await crowd.end()


async def test_who_is_cancelled_just_before_a_slot_comes_free_does_not_get_it() -> None:
    crowd = Crowd(1)
    crowd.want("holder")
    await turns()
    [unlucky] = crowd.want("unlucky")
    crowd.want("next")
    await turns()
    crowd.holders[0][1].set()
    unlucky.cancel()  # it learns of it after the holder has given back
    await turns()
    assert crowd.held() == {"next": 1}
    await crowd.end()


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["want", "want", "free", "cancel", "tick"]), st.integers(0, 99)), max_size=80
)


@settings(max_examples=150, deadline=None)
@given(most=st.integers(1, 6), actions=ACTIONS, pauses=st.integers(0, 3))
def test_whatever_happens_no_slot_is_lost_or_given_twice(most: int, actions: Any, pauses: int) -> None:
    async def story() -> None:
        crowd = Crowd(most)
        everybody: list[asyncio.Task[None]] = []
        for action, number in actions:
            if action == "want":
                everybody += crowd.want("abc"[number % 3])
            elif action == "free" and crowd.holders:
                crowd.holders[number % len(crowd.holders)][1].set()
            elif action == "cancel" and everybody:
                everybody[number % len(everybody)].cancel()
            elif action == "tick":
                crowd.connections.tick()
            await turns(number % (pauses + 1))
            assert len(crowd.holders) <= crowd.connections.active <= most
        await turns(10)
        wanted = sum(not task.done() for task in everybody)
        assert len(crowd.holders) == crowd.connections.active == min(most, wanted)
        held = crowd.held()
        waiting = {task for task in everybody if not task.done()} - {task for _o, _f, task in crowd.holders}
        assert not waiting or sum(held.values()) == most
        await crowd.end()

    in_virtual_time(story(), 10)


def in_virtual_time(story: Coroutine[Any, Any, Any], until_seconds: float) -> Any:
    loop = VirtualLoop()
    try:
        return loop.run(story, until_seconds)
    finally:
        loop.bury()


# ------------------------------------------------------------------------------------------ the limit


class Line:
    """A line and those who download over it, in simulated time; each range, or small file, holds one connection."""

    STEP_SECONDS = 0.05

    def __init__(
        self,
        speed: Callable[[int], float],
        most: int = 16,
        range_bytes: float = 10 * MB,
        first_byte_seconds: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.speed = speed
        """How fast so many connections are together, in bytes per second."""
        self.most, self.range_bytes, self.first_byte_seconds, self.noise = most, range_bytes, first_byte_seconds, noise
        self.max_speed: float | None = None
        self.wanted = 10_000
        self.adaptation = Adaptation(most)
        self.now = 1000.0
        self.received = 0.0
        self.limits: list[int] = []
        self._random = random.Random(seed)
        self._open: list[list[float]] = []  # seconds until the first byte, bytes left
        self._was_free = True
        self._factor = 1.0
        self._steps = 0

    def run(self, seconds: float) -> float:
        """Return the mean speed over so many seconds, in bytes per second."""
        before = self.received
        for _n in range(round(seconds / self.STEP_SECONDS)):
            if self._steps % 5 == 0:
                self._look()
            self._steps += 1
            self._step()
        return (self.received - before) / seconds

    def _look(self) -> None:
        busy = not self._was_free and self.wanted > len(self._open)
        limited = self.max_speed is not None and self.speed(len(self._open)) >= self.max_speed
        self.adaptation.look(self.now, int(self.received), len(self._open), busy, limited)
        self.limits.append(self.adaptation.limit)
        self._factor = self._random.uniform(1 - self.noise, 1 + self.noise)
        self._was_free = False

    def _step(self) -> None:
        while len(self._open) < min(self.adaptation.limit, self.wanted):
            size = self.range_bytes * self._random.uniform(0.5, 1.5)
            self._open.append([self.first_byte_seconds, size])
        self._was_free |= len(self._open) < self.adaptation.limit
        flowing = [one for one in self._open if one[0] <= 0]
        speed = self.speed(len(flowing)) * self._factor
        share = min(speed, self.max_speed or speed) * self.STEP_SECONDS / max(1, len(flowing))
        for one in self._open:
            if one[0] > 0:
                one[0] -= self.STEP_SECONDS
            else:
                self.received += share  # what is more than the range is of the next one: time has steps here
                one[1] -= share
        self._open = [one for one in self._open if one[1] > 0]
        self.now += self.STEP_SECONDS

    @property
    def limit(self) -> int:
        return self.adaptation.limit


def paced(each: float = 4 * MB) -> Callable[[int], float]:
    """Each connection has its own speed."""
    return lambda number: each * number


def full(total: float = 20 * MB, each: float = 5 * MB) -> Callable[[int], float]:
    """The line is full with a few connections."""
    return lambda number: min(total, each * number)


def crowded(number: int) -> float:
    """Full with five, and from the ninth on each one makes it worse."""
    return min(20 * MB, 4 * MB * number) * (1 if number <= 8 else max(0.4, 1 - 0.05 * (number - 8)))


SEEDS = range(5)


@pytest.mark.parametrize("most", [1, 4, 16, 64, 256])
def test_the_limit_begins_at_what_the_user_allows(most: int) -> None:
    line = Line(paced(), most)
    line.run(8)
    assert set(line.limits) == {most}


@pytest.mark.parametrize("most", [8, 16, 64])
def test_where_each_connection_is_paced_all_stay_and_trials_cost_next_to_nothing(most: int) -> None:
    for seed in SEEDS:
        line = Line(paced(), most, seed=seed)
        alone = Line(paced(), most, seed=seed)
        alone.adaptation.look = lambda *_args: most  # type: ignore[method-assign]
        assert line.run(20) >= 0.99 * alone.run(20)
        assert line.run(280) >= 0.997 * alone.run(280)
        assert line.limit == most
        assert min(line.limits) < most, "nothing was tried"


@pytest.mark.parametrize("speed", [full(), full(10 * MB, 10 * MB), full(200 * MB, 40 * MB)])
def test_a_line_that_is_full_with_a_few_comes_down_to_them_within_a_minute(speed: Callable[[int], float]) -> None:
    for seed in SEEDS:
        line = Line(speed, seed=seed)
        assert line.run(60) >= 0.99 * speed(16)
        assert 4 <= line.limit <= 6
        assert line.run(240) >= 0.98 * speed(16)
        assert 4 <= line.limit <= 6


def test_where_too_many_are_slower_the_limit_goes_where_it_is_fastest() -> None:
    for seed in SEEDS:
        line = Line(crowded, seed=seed)
        line.run(60)
        assert 4 <= line.limit <= 8
        assert line.run(240) >= 0.98 * 20 * MB


def test_with_noise_a_paced_line_keeps_all_and_a_full_one_comes_down_later() -> None:
    ends = []
    for seed in SEEDS:
        line = Line(paced(), noise=0.15, seed=seed)
        line.run(300)
        assert line.limit == 16
        assert sum(line.limits) >= 0.985 * 16 * len(line.limits)
        narrow = Line(full(), noise=0.15, seed=seed)
        narrow.run(300)
        ends.append(narrow.limit)
        assert narrow.received >= 0.97 * 20 * MB * 300
    assert sorted(ends)[len(ends) // 2] <= 6


@pytest.mark.parametrize("each", [0.1 * MB, 0.02 * MB])
def test_where_ranges_take_minutes_a_trial_does_not_wait_for_ever_with_connections_unused(each: float) -> None:
    for seed in SEEDS:
        line = Line(paced(each), most=64, seed=seed)
        assert line.run(600) >= 0.99 * 64 * each
        assert sum(limit == 64 for limit in line.limits) >= 0.7 * len(line.limits)


@pytest.mark.parametrize("start", range(4, 61, 3))
def test_no_step_upward_is_too_small_to_show_its_gain(start: int) -> None:
    adaptation = Adaptation(64)
    adaptation.limit, adaptation._sign = start, 1
    line = Line(paced(), 64)
    line.adaptation = adaptation
    line.now = 1.0  # not so late that it would take it for the time after a rest
    line.run(75)
    assert line.limits.count(64) > 40, "it was tried only"


def test_small_files_that_wait_for_their_first_byte_keep_all_connections() -> None:
    for seed in SEEDS:
        line = Line(full(1000 * MB, 100 * MB), most=64, range_bytes=2 * MB, first_byte_seconds=0.3, seed=seed)
        line.run(120)
        assert line.limit >= 56
        assert sum(line.limits) >= 0.98 * 64 * len(line.limits)


def test_without_anybody_waiting_nothing_is_tried() -> None:
    line = Line(full())
    line.wanted = 16
    line.run(120)
    assert set(line.limits) == {16}


async def test_those_who_hold_their_slots_for_long_while_nobody_waits_prove_nothing() -> None:
    crowd = Crowd(8)
    crowd.want("a", 8)
    await turns()
    for _n in range(80):
        crowd.now += 0.25
        crowd.connections.received(1000)
        crowd.connections.tick()
        assert crowd.connections.limit == 8
    await crowd.end()


def test_short_stretches_prove_nothing() -> None:
    line = Line(full())
    for _n in range(20):
        line.wanted = 10_000
        line.run(7)
        line.wanted = 3
        line.run(5)
    assert set(line.limits) == {16}


def test_after_a_rest_all_connections_are_there_again() -> None:
    line = Line(full())
    line.run(60)
    assert line.limit < 8
    line.wanted = 0
    line.run(20)
    assert line.limit < 8
    line.run(20)
    assert line.limit == 16


def test_after_a_gap_in_which_nobody_looked_nothing_is_concluded_from_it() -> None:
    adaptation = Adaptation(16)
    for n in range(60):
        adaptation.look(n / 4, n * 1000, 16, True)
    before = adaptation.limit
    adaptation.look(25.0, 10**12, 14, True)
    assert (before, adaptation.limit) == (14, 16)


def test_small_losses_do_not_add_up() -> None:
    """Each connection brings a little less than the one before, and none of them nothing."""
    for seed in SEEDS:
        line = Line(lambda number: 20 * MB * number / (number + 1), seed=seed)
        line.run(300)
        assert 10 <= line.limit < 16
        assert line.run(300) >= 0.96 * line.speed(16)


@pytest.mark.parametrize(("noise", "each"), [(0.0, 5 * MB), (0.05, 5 * MB), (0.0, 2.5 * MB)])
def test_a_line_that_becomes_wider_or_narrower_is_followed(noise: float, each: float) -> None:
    for seed in SEEDS:
        line = Line(full(20 * MB, each), noise=noise, seed=seed)
        line.run(200)
        assert line.limit <= 20 * MB / each + 2
        line.speed = paced(6 * MB)
        line.run(120)
        assert line.limit >= 14
        assert line.run(120) >= 0.9 * 16 * 6 * MB
        line.speed = full(8 * MB, 2 * MB)
        line.run(120)
        assert line.limit <= 6


def test_under_a_speed_limit_the_connections_become_as_few_as_reach_it_and_come_back_when_it_is_gone() -> None:
    for seed in SEEDS:
        line = Line(paced(), seed=seed)
        line.max_speed = 25 * MB
        line.run(120)
        assert 6 <= line.limit <= 8
        assert line.run(120) >= 0.985 * 25 * MB
        assert 6 <= line.limit <= 8
        assert max(line.limits[240:]) <= 8, "more were tried, for nothing"
        line.max_speed = None
        line.run(5)
        assert line.limit == 16


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(1, 256),
    looks=st.lists(
        st.tuples(st.floats(0, 40), st.integers(0, 10**10), st.integers(0, 256), st.booleans(), st.booleans()),
        max_size=200,
    ),
)
def test_whatever_it_is_fed_the_limit_stays_within_its_bounds(most: int, looks: Any) -> None:
    adaptation = Adaptation(most)
    now, received = 0.0, 0
    for seconds, size, active, busy, limited in looks:
        now, received = now + min(seconds, 1.0), received + size
        limit = adaptation.look(now, received, active, busy, limited)
        assert min(4, most) <= limit <= most


@pytest.mark.parametrize(
    ("speed", "workers", "low", "high"),
    [(paced(), 24, 16, 16), (full(), 24, 4, 7), (full(), 16, 16, 16)],
    ids=["paced", "full", "nobody waits"],
)
def test_a_worker_of_real_slots_finds_the_same(
    speed: Callable[[int], float], workers: int, low: int, high: int
) -> None:
    async def story() -> int:
        loop = asyncio.get_running_loop()
        connections = Connections(16, loop.time)

        async def worker(owner: int) -> None:
            while True:
                async with connections.slot(owner):
                    for _n in range(20):
                        piece = 0.25 * MB
                        await asyncio.sleep(piece * connections.active / speed(connections.active))
                        connections.received(int(piece))

        async with AsyncExitStack() as stack:
            for number in range(workers):
                task = asyncio.create_task(worker(number % 3))
                stack.callback(task.cancel)
            for _n in range(4 * 70):
                await asyncio.sleep(0.25)
                connections.tick()
            return connections.limit

    assert low <= in_virtual_time(story(), 100) <= high
