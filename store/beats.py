"""A heartbeat: what a worker tells, and what it hears, in one question to the shard of the farm.

Each other shard in which the worker has leases is one question more. What is asked, and what an answer means, is the
business of others: the scripts, `store/budgets.py`, `store/farm.py`. Here it is only brought together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budgets import Told
from model import Budget
from store.budgets import Asked, FarmBudgets
from store.data import as_json, folded_prefix, key, risk_key, shard_of_id

Run = Callable[[str, Sequence[str], Sequence[str | int], int], Any]
Together = Callable[[Sequence[Asked], Callable[[Any], object]], list[Any]]
"""Runs scripts in shard 0, and what else is put into the pipeline there, in one round trip; returns all answers."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker tells: ``jobs`` are its leases, each an id, a token, and how many bytes are on its disk."""

    worker: str
    jobs: Sequence[tuple[str, str, int]]
    status: Mapping[str, Any]
    """What the status page shows of the worker."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What some of the jobs turned out to be."""
    groups: Sequence[str] = ()
    """Its address and its account, as ``budgets`` names them."""
    told: Told | None = None
    """How it asks the site, where it tells that."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a worker hears."""

    lost: list[str]
    """Of its jobs, those whose leases are others' now, or nobody's."""
    has_order: bool
    slow_seconds: float
    """For how long yet the site wants less from its groups."""
    budget: Budget | None
    """How it may ask the site; None where it tells nothing of it."""


@dataclass(frozen=True, slots=True)
class Beats:
    """Answers heartbeats."""

    run: Run
    together: Together
    budgets: FarmBudgets
    lease_ms: int
    shards: int

    def hear(self, beat: Beat) -> Heard:
        """Keep a worker's leases, take note of what it tells, and return what it is to know."""
        renewed: dict[int, list[str | int]] = {0: []}
        for url, token, done_bytes in beat.jobs:
            title = beat.titles.get(url, "")
            args = renewed.setdefault(shard_of_id(url, self.shards), [])
            args += [url, token, int(done_bytes), title, folded_prefix(title)]
        asked: list[Asked] = [("heartbeat", [], [beat.worker, self.lease_ms, as_json(beat.status), *renewed.pop(0)])]
        if beat.told is not None:
            asked += self.budgets.questions(beat.worker, beat.groups, beat.told)
        answers = self.together(
            asked,
            lambda pipe: (
                pipe.hexists(key("orders"), beat.worker),
                [pipe.pttl(risk_key(group)) for group in beat.groups],
            ),
        )
        lost, budget = list(answers[0]), answers[len(asked) - 1]
        has_order, *left_ms = answers[len(asked) :]
        for shard, args in renewed.items():
            lost += self.run("renew", [], [self.lease_ms, *args], shard)
        return Heard(
            lost,
            bool(has_order),
            max((0, *left_ms)) / 1000,
            None if beat.told is None else self.budgets.answered(beat.worker, beat.groups, beat.told, budget),
        )
