"""Scheduler, client, server and queue under drawn faults, in virtual time; and proof that breaks are found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.simulation.breaks import BREAKS
from tests.simulation.command import main, simulate
from tests.simulation.engine import Engine
from tests.simulation.loop import Stuck, Thread, VirtualLoop

SEEDS_UNTIL_FOUND = 400
REGRESSIONS = [
    (208, "loses-refresh"),  # a video was asked for again between the reading of its pages and their expansion
    (182, "waits-for-the-clock"),  # the queue's clock was set back while a job was kept for its last worker
]


@pytest.fixture
def engine(valkey_socket: str) -> Iterator[Engine]:
    engine = Engine(valkey_socket)
    yield engine
    engine.close()


# ------------------------------------------------------------------------------------------ seeds


@pytest.mark.parametrize("first", [1])
def test_nothing_is_lost_and_nothing_is_done_twice(engine: Engine, first: int) -> None:
    outcomes = list(simulate(range(first, first + 25), engine))
    assert {one.seed: one.violations for one in outcomes if one.violations} == {}
    counts = {name: sum(one.counts[name] for one in outcomes) for name in ("chunks", "kills", "stops")}
    assert min(counts.values()) > 10, counts  # the faults did happen


@pytest.mark.parametrize("shards", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_several_shards_change_nothing_of_that(engine: Engine, shards: int) -> None:
    outcomes = list(simulate(range(1, 6 if shards == 3 else 60), engine, shards=shards))
    assert {one.seed: one.violations for one in outcomes if one.violations} == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_holds_for_hundreds_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--first", "1000", "--seeds", "400", "--jobs", "2"])
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize(("seed", "break_name"), REGRESSIONS)
def test_what_once_failed_does_not_any_more(engine: Engine, seed: int, break_name: str) -> None:
    """These seeds found a fault in the product; with the fault put back they find it again."""
    kinds = BREAKS[break_name].kinds
    (mended,) = simulate([seed], engine, kinds=kinds)
    assert mended.violations == []
    (broken,) = simulate([seed], engine, break_name)
    assert broken.violations


@pytest.mark.parametrize("seed", [7, 101, 124])
def test_a_seed_is_replayed_event_for_event(engine: Engine, seed: int) -> None:
    """Other seeds before it change nothing."""
    first, _other, second = simulate([seed, seed + 1, seed], engine)
    assert len(first.trace) > 30
    assert first.trace == second.trace


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_on_purpose_is_found(engine: Engine, name: str) -> None:
    outcomes = list(simulate(range(1, SEEDS_UNTIL_FOUND), engine, name, until_found=True))
    assert outcomes[-1].violations, f"{len(outcomes)} seeds have not found it"


def test_a_seed_that_fails_is_printed_with_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--break", "ack-first", "-v"]) == 1
    output = capsys.readouterr().out
    assert "seed 1: " in output
    assert "starts as" in output


# ------------------------------------------------------------------------------------------ the loop


def test_time_passes_without_waiting() -> None:
    loop = VirtualLoop()

    async def sleep() -> float:
        await asyncio.sleep(86400)
        return loop.time()

    assert loop.run(sleep(), 10**6) == 86400


def test_a_killed_thread_does_not_even_clean_up() -> None:
    loop, victim, said = VirtualLoop(), Thread("victim"), list[str]()

    async def work() -> None:
        try:
            said.append("begins")
            await asyncio.sleep(2)
            said.append("goes on")
        finally:
            said.append("cleans up")

    async def world() -> None:
        task = loop.create_task(work(), context=victim.context)
        await asyncio.sleep(1)
        loop.kill(victim)
        task.cancel()
        await asyncio.sleep(5)

    loop.run(world(), 100)
    assert said == ["begins"]
    loop.bury()


def test_a_stopped_thread_goes_on_late_and_in_order() -> None:
    loop, victim, said = VirtualLoop(), Thread("victim"), list[tuple[int, float]]()

    async def work(number: int) -> None:
        await asyncio.sleep(number)
        said.append((number, loop.time()))

    async def world() -> None:
        for number in (3, 2):
            loop.create_task(work(number), context=victim.context)
        await asyncio.sleep(1)
        loop.stop_thread(victim)
        await asyncio.sleep(9)
        loop.go_on(victim)
        await asyncio.sleep(0.5)

    loop.run(world(), 100)
    assert said == [(2, 10), (3, 10)]


def test_waiting_for_what_never_comes_is_found() -> None:
    loop = VirtualLoop()

    async def wait() -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        loop.run(wait(), 100)
    loop.bury()
