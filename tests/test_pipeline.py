"""The slots of downloads, and how many jobs are prepared ahead of them, in simulated time."""

from __future__ import annotations

import asyncio

import pytest

from pipeline import LEAD_SECONDS, SPARE_JOBS, NotNow, Rhythm, Slots

NEVER = float("inf")


class Gate:
    """Slots of a number that changes, on a clock that is moved by hand; ``log`` tells who began and who had to go."""

    def __init__(self, count: int) -> None:
        self.count, self.now, self.log = count, 0.0, list[str]()
        self.slots = Slots(lambda: self.slots.taken < self.count, lambda: self.now)

    async def ask(self, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._ask(name))
        await turns()
        return task

    async def _ask(self, name: str) -> None:
        try:
            await self.slots.take()
        except NotNow:
            self.log.append(f"-{name}")
        else:
            self.log.append(name)


async def turns() -> None:
    for _turn in range(4):
        await asyncio.sleep(0)


async def test_slots_are_given_in_the_order_of_asking_and_as_many_as_there_are_now() -> None:
    gate = Gate(1)
    for name in "abcde":
        await gate.ask(name)
    assert gate.log == ["a"]
    gate.slots.give_back()
    await turns()
    assert gate.log == ["a", "b"]
    gate.count = 3
    gate.slots.look()
    await turns()
    assert gate.log == ["a", "b", "c", "d"] and gate.slots.taken == 3
    gate.count = 1
    for _ended in range(3):
        gate.slots.give_back()
    await turns()
    assert gate.log == ["a", "b", "c", "d", "e"] and gate.slots.taken == 1


async def test_who_waits_for_long_is_sent_away_and_nobody_else() -> None:
    gate = Gate(0)
    await gate.ask("a")
    gate.now = 10.0
    await gate.ask("b")
    gate.now = 30.0
    assert gate.slots.dismiss(30.0) == 1 and gate.slots.dismiss(30.0) == 0
    await turns()
    assert gate.log == ["-a"]
    assert gate.slots.dismiss() == 1
    await turns()
    assert gate.log == ["-a", "-b"] and gate.slots.taken == 0


@pytest.mark.parametrize("meanwhile", ["look", "dismiss", "nothing"])
async def test_who_is_cancelled_takes_no_slot_with_him(meanwhile: str) -> None:
    gate = Gate(0)
    first, second = await gate.ask("a"), await gate.ask("b")
    first.cancel()
    if meanwhile == "look":  # before the cancelled one has had its turn
        gate.count = 1
        gate.slots.look()
    if meanwhile == "dismiss":
        gate.slots.dismiss()
    await turns()
    gate.count = 1
    gate.slots.look()
    await turns()
    assert gate.log == (["-b"] if meanwhile == "dismiss" else ["b"])
    assert gate.slots.taken == (meanwhile != "dismiss") and first.cancelled() and second.done()


async def test_who_is_cancelled_as_he_gets_his_slot_gives_it_on() -> None:
    gate = Gate(0)
    first, second = await gate.ask("a"), await gate.ask("b")
    gate.count = 1
    gate.slots.look()
    first.cancel()
    await turns()
    assert gate.log == ["b"] and gate.slots.taken == 1 and second.done()


# ------------------------------------------------------------------------------------------ how many ahead


def rhythm(preparation_seconds: float, download_seconds: float) -> Rhythm:
    found = Rhythm()
    for _job in range(60):
        found.prepared_in(preparation_seconds)
        found.downloaded_in(download_seconds)
    return found


def test_one_job_is_prepared_for_each_slot_that_comes_free_in_a_moment() -> None:
    found = rhythm(1.0, 600.0)
    assert found.ahead([], 4) == 0
    assert found.ahead([300.0, NEVER, LEAD_SECONDS + 0.1], 3) == 0
    assert found.ahead([300.0, NEVER, LEAD_SECONDS], 3) == 1
    assert found.ahead([0.0, 1.0, LEAD_SECONDS], 3) == 3


def test_where_preparing_takes_long_it_begins_so_much_earlier() -> None:
    assert rhythm(20.0, 600.0).ahead([19.0, 21.0], 2) == 1


def test_where_downloads_are_shorter_than_preparing_several_are_prepared_for_one_slot_within_a_bound() -> None:
    assert rhythm(0.55, 0.125).ahead([0.25], 1) == 3
    assert rhythm(1.0, 0.5).ahead([0.0, 0.0], 4) == 4 + SPARE_JOBS
    assert rhythm(3.0, 0.01).ahead([], 1) == 1 + SPARE_JOBS


def test_before_anything_was_measured_one_is_prepared_for_one_that_ends() -> None:
    assert Rhythm().ahead([0.0, NEVER], 2) == 1
    fresh = Rhythm()
    fresh.downloaded_in(0.0)
    assert fresh.ahead([0.0], 1) == 1


def test_what_was_measured_lately_counts_most() -> None:
    found = rhythm(10.0, 1.0)
    for _job in range(12):
        found.prepared_in(0.1)
        found.downloaded_in(50.0)
    assert found.ahead([0.0] * 3, 3) == 3 and found.ahead([6.0], 1) == 0
