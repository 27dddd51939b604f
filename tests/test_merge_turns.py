"""Turns at the processors: first come, first served, small ones together, and nobody waits for one that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from merging.turns import SharedRunFailed, Turns
from model import MERGED_TOGETHER


class Kitchen:
    """Carries orders out when it is told to, and writes down which ones together."""

    def __init__(self, processors: int = 1) -> None:
        self.runs: list[tuple[list[str], int]] = []
        self.ended: list[list[str]] = []
        self.gate = asyncio.Event()
        self.failing: set[int] = set()
        """How many orders a run has that fails."""
        self.turns = Turns[str](range(processors), self._run)

    async def _run(self, orders: Sequence[str], processor: int) -> None:
        self.runs.append((list(orders), processor))
        try:
            await self.gate.wait()
            if len(orders) in self.failing:
                raise ValueError("burnt")
        finally:
            self.ended.append(list(orders))

    def order(self, name: str, kind: str = "") -> asyncio.Task[None]:
        async def eat() -> None:
            async with self.turns.take(kind) as turn:
                await turn.run(name)

        return asyncio.create_task(eat())


async def settle() -> None:
    for _turn in range(20):
        await asyncio.sleep(0)


async def test_turns_are_given_in_order_and_those_who_do_not_share_are_alone() -> None:
    kitchen = Kitchen()
    orders = [kitchen.order(name) for name in "abc"]
    await settle()
    assert kitchen.runs == [(["a"], 0)]
    kitchen.gate.set()
    await asyncio.gather(*orders)
    assert kitchen.runs == [(["a"], 0), (["b"], 0), (["c"], 0)]


async def test_small_ones_that_wait_share_a_turn_and_large_ones_and_other_kinds_keep_their_own() -> None:
    kitchen = Kitchen(processors=2)
    kinds = {"a": "", "b": "x", "c": "x", "d": "", "e": "x", "f": "y", "g": "x", "h": "x", "i": "x", "j": "y"}
    orders = [kitchen.order(name, kind) for name, kind in kinds.items()]
    await settle()
    assert kitchen.runs == [(["a"], 0), (["b"], 1)], "nobody else waited when a processor was free for these"
    kitchen.gate.set()
    await asyncio.gather(*orders)
    together = [run for run, _processor in kitchen.runs[2:]]
    assert MERGED_TOGETHER == 4
    assert sorted(together) == [["c", "e", "g", "h"], ["d"], ["f", "j"], ["i"]]


async def test_a_shared_turn_that_fails_tells_everybody_and_one_alone_has_its_own_error() -> None:
    kitchen = Kitchen()
    kitchen.failing = {1, 3}
    orders = [kitchen.order(name, "x") for name in "abcd"]
    await settle()
    kitchen.gate.set()
    outcomes = await asyncio.gather(*orders, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError, *[SharedRunFailed] * 3]
    kitchen.failing = set()
    await kitchen.order("again", "x")


async def test_who_leaves_without_an_order_is_not_waited_for() -> None:
    kitchen = Kitchen()

    async def go() -> None:
        async with kitchen.turns.take("x"):
            raise OSError("no room")

    first, going = kitchen.order("a", "x"), asyncio.create_task(go())
    others = [kitchen.order(name, "x") for name in "bc"]
    await settle()
    kitchen.gate.set()
    outcomes = await asyncio.gather(first, going, *others, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), OSError, type(None), type(None)]
    assert [run for run, _processor in kitchen.runs] == [["a"], ["b", "c"]]
    alone = [asyncio.create_task(go()) for _one in range(3)]
    await asyncio.wait(alone)
    await kitchen.order("d", "x")  # the processor came back


@pytest.mark.parametrize("when", ["waiting", "given", "in the run"])
async def test_one_that_is_given_up_ends_what_it_shares_and_the_processor_comes_back(when: str) -> None:
    kitchen = Kitchen()
    first = kitchen.order("a")
    await settle()
    b, c = kitchen.order("b", "x"), kitchen.order("c", "x")
    await settle()
    if when == "waiting":
        b.cancel()
        kitchen.gate.set()
        await asyncio.gather(first, c)
        assert [run for run, _processor in kitchen.runs] == [["a"], ["c"]]
    elif when == "given":
        first.cancel()
        while not first.done():
            await asyncio.sleep(0)
        b.cancel()
        await settle()
        kitchen.gate.set()
        await c
        assert [run for run, _processor in kitchen.runs] == [["a"], ["c"]]
    else:
        first.cancel()
        await settle()
        assert kitchen.runs[-1][0] == ["b", "c"]
        b.cancel()
        await settle()
        assert kitchen.ended[-1] == ["b", "c"], "it would write into a file that is gone"
        with pytest.raises(SharedRunFailed):
            await c
        kitchen.gate.set()
    assert b.cancelled() or b.cancelling()
    await asyncio.wait([b])
    await kitchen.order("after")
    assert kitchen.runs[-1] == (["after"], 0)


async def test_all_that_share_may_be_given_up_at_once() -> None:
    kitchen = Kitchen()
    first = kitchen.order("a")
    await settle()
    others = [kitchen.order(name, "x") for name in "bcd"]
    await settle()
    first.cancel()
    await settle()
    for one in others:
        one.cancel()
    await asyncio.wait([first, *others])
    assert kitchen.ended == [["a"], ["b", "c", "d"]]
    kitchen.gate.set()
    await kitchen.order("after")
