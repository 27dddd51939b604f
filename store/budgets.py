"""What is kept in Redis of how the farm asks the site: budgets of addresses and accounts, and who is parked.

The rules are in budgets.py, the transitions in ``lua/``: budget, level, trip, probe, close. Like data.py this
does not know redis: it gets functions that run a script, and that look.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import budgets
import retry
from budgets import Breaker, Told
from config import Settings
from model import Budget

MILLIONTHS = 1_000_000
"""Rates are kept in whole millionths of a request a second."""
MEMBERS_LOOKED_AT = 1000
"""For a level; of a larger group so many at random stand for all."""
COUNTED_LEAST_SECONDS = 15.0
BREAKERS_AT_MOST = 50

Asked = tuple[str, Sequence[str], Sequence[str | int]]
"""A script to be run: its name, its own keys, its arguments."""
Run = Callable[[str, Sequence[str], Sequence[str | int]], Any]
Look = Callable[[Callable[[Any], object]], list[Any]]


class FarmBudgets:
    """The budgets of all groups; any number of servers may share them."""

    def __init__(self, run: Run, look: Look, key: Callable[[str], str], settings: Settings, draw: retry.Draw) -> None:
        self._run, self._look, self._key, self._draw = run, look, key, draw
        self._rates = {budgets.ACCOUNT: settings.rate_per_account}
        self._address_rate = settings.rate_per_address
        self._counted_seconds = max(COUNTED_LEAST_SECONDS, settings.lease_seconds)

    def ask(self, worker: str, groups: Sequence[str], told: Told) -> Budget:
        """Take note of what a worker tells of itself; return how it may ask the site until it is heard again."""
        *_noted, answer = [self._run(*one) for one in self.questions(worker, groups, told)]
        return self.answered(worker, groups, told, answer)

    def questions(self, worker: str, groups: Sequence[str], told: Told) -> list[Asked]:
        """Return the scripts to be run for that: a refusal is noted, and the last one answers."""
        noted = [self._trip(budgets.blamed(told.refused, groups), told)] if told.refused else []
        return [*noted, self._budget(worker, groups, told)]

    def answered(self, worker: str, groups: Sequence[str], told: Told, answer: str) -> Budget:
        """Return what the answer means for the worker."""
        granted, *states = json.loads(answer)
        budget = Budget(None if granted < 0 else granted / MILLIONTHS, holds_seconds=self._counted_seconds)
        for group, (members, *open_) in zip(groups, states, strict=True):
            if members:
                self._new_level(group, members)
            breaker = _breaker(group, *open_)
            if breaker is not None:
                budget = _both(budget, self._obeyed(breaker, worker, told))
        return budget

    def leave(self, worker: str, groups: Sequence[str]) -> None:
        """Let a worker go that asks nothing more: what it had is there for others at once."""
        self._run(*self._budget(worker, groups, Told(), is_going=True))

    def breakers(self) -> list[Breaker]:
        """Return the groups that are parked now, or of which one worker tries."""
        groups, (seconds, micros) = self._look(
            lambda pipe: pipe.zrevrange(self._key("breakers"), 0, BREAKERS_AT_MOST - 1).time()
        )
        if not groups:
            return []
        at_ms = seconds * 1000 + micros // 1000
        found = self._look(lambda pipe: [pipe.hgetall(self._key(f"breaker:{group}")) for group in groups])
        made = [
            _breaker(
                group,
                fields.get("state", "").replace("closed", ""),
                max(0, int(fields.get("until", at_ms)) - at_ms),
                int(fields.get("failures", 0)),
                fields.get("kind", ""),
                fields.get("prober", ""),
            )
            for group, fields in zip(groups, found, strict=True)
        ]
        return [one for one in made if one is not None]

    # -------------------------------------------------------------------------------- inside

    def _budget(self, worker: str, groups: Sequence[str], told: Told, is_going: bool = False) -> Asked:
        keys = [self._key(f"{what}:{group}") for group in groups for what in ("budget", "members", "breaker")]
        args: list[str | int] = [worker, round(self._counted_seconds * 1000)]
        args += [round(told.allowed * MILLIONTHS), round(told.wanted * MILLIONTHS), "1" if is_going else ""]
        args += [round(self._rate_of(group) * MILLIONTHS) for group in groups]
        return "budget", keys, args

    def _rate_of(self, group: str) -> float:
        return self._rates.get(group.partition(":")[0], self._address_rate)

    def _new_level(self, group: str, members: int) -> None:
        """Look at what the members of a group want, and say up to where each of them gets that."""
        if members <= MEMBERS_LOOKED_AT:
            (fields,) = self._look(lambda pipe: pipe.hgetall(self._key(f"budget:{group}")))
            texts = [text for name, text in fields.items() if name.startswith("w ")]
        else:
            # In a hash of which all but three fields are members, a few at random are as good as members at random.
            (pairs,) = self._look(
                lambda pipe: pipe.hrandfield(self._key(f"budget:{group}"), MEMBERS_LOOKED_AT, withvalues=True)
            )
            texts = [text for text in pairs[1::2] if " " in text]
        wanted = [int(text.split()[1]) / MILLIONTHS for text in texts]
        level = budgets.fair_level(self._rate_of(group), wanted, members)
        self._run("level", [self._key(f"budget:{group}")], [int(level * MILLIONTHS)])

    def _trip(self, group: str, told: Told) -> Asked:
        delays = [round(1000 * seconds) for seconds in budgets.open_delays_seconds(self._draw())]
        args: list[str | int] = [group, told.refused, round(1000 * told.refused_seconds)]
        args += [round(1000 * budgets.FORGET_SECONDS), *delays]
        return "trip", [self._key(f"breaker:{group}"), self._key("breakers")], args

    def _obeyed(self, breaker: Breaker, worker: str, told: Told) -> Budget | None:
        """Return what a breaker means for a worker: it may be the one that tries, and it may have been answered."""
        key = self._key(f"breaker:{breaker.group}")
        if breaker.is_probed and breaker.prober == worker and told.answers and not told.refused:
            if self._run("close", [key, self._key("breakers")], [breaker.group, worker]):
                return None
        elif not breaker.seconds and told.may_probe:
            if self._run("probe", [key], [worker, round(1000 * budgets.PROBE_SECONDS)]):
                breaker = replace(breaker, is_probed=True, prober=worker, seconds=budgets.PROBE_SECONDS)
            else:
                breaker = replace(breaker, prober="")  # another one was quicker
        return budgets.parked(breaker, worker, self._counted_seconds)


def _breaker(group: str, state: str, left_ms: int, failures: int, kind: str, prober: str) -> Breaker | None:
    return Breaker(group, state == "probed", left_ms / 1000, failures, kind, prober) if state else None


def _both(one: Budget, other: Budget | None) -> Budget:
    """Return what obeys two budgets: a worker is parked if one of its groups is, and tries if one of them says so."""
    if other is None:
        return one
    rates = [rate for rate in (one.requests_per_second, other.requests_per_second) if rate is not None]
    parked_seconds = max(one.parked_seconds, other.parked_seconds)
    probes = not parked_seconds and (one.probes or other.probes)
    return Budget(min(rates), parked_seconds, one.holds_seconds, probes, other.kind or one.kind)
