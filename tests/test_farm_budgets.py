"""The scripts that share budgets and park groups, in a real Valkey; its clock is the test's, so that time can pass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

import budgets
from budgets import Told
from config import Settings
from pace import Pace
from redisConnect import Queue
from site_standing import SiteStanding
from store import budgets as farm_budgets
from tests.simulation.engine import EPOCH_MS, VirtualRedis

HOME = ("address:203.0.113.9",)
BUSY = Told(wanted=100.0)


class Clock:
    """Seconds since the test began, for the engine and for workers."""

    now = 0.0
    set_by = 0.0
    """By how much the engine's own clock was set."""

    def __call__(self) -> float:
        return self.now

    def milliseconds(self) -> int:
        return EPOCH_MS + round((self.now + self.set_by) * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, rate_per_address=2.0, rate_per_account=1.0)


@pytest.fixture
def farm(valkey_socket: str, connection: redis.Redis, clock: Clock, settings: Settings) -> Iterator[Queue]:
    """A queue in an empty database, with the clock of the test, and with no jitter."""
    client = VirtualRedis(valkey_socket, clock.milliseconds, lambda text: text)
    queue = Queue(client, settings, draw=lambda: 0.0, place="here")
    yield queue
    queue.close()


class Member:
    """A worker as far as budgets go: what it obeys it tells with the next beat."""

    def __init__(self, farm: Queue, clock: Clock, name: str, groups: tuple[str, ...] = HOME) -> None:
        self.farm, self.clock, self.name, self.groups = farm, clock, name, groups
        self.pace = Pace(0.0, clock)
        self.pace.await_word()
        self.standing = SiteStanding(self.pace)
        self.wanted = 100.0
        self.heard = False

    @property
    def allowed(self) -> float:
        """How often it asks at most; before the first word it has been told nothing that counts."""
        return self.pace.allowed if self.heard and not self.pace.parked_seconds else 0.0

    def beat(self, is_heard: bool = True, is_lost: bool = False, may_probe: bool = True) -> Any:
        """Send a heartbeat; it may get lost, or its answer."""
        told = self.standing.told()
        if is_lost:
            return None
        refused = told["site"].get("refused", {"kind": "", "seconds": 0.0})
        answer = self.farm.budget(
            self.name,
            self.groups,
            Told(
                wanted=self.wanted,
                allowed=told["site"].get("allowed_per_second", 0.0) if self.heard else 0.0,
                answers=told["site"]["answers"],
                refused=refused["kind"],
                refused_seconds=refused["seconds"],
                may_probe=may_probe,
            ),
        )
        if is_heard:
            self.heard = True
            self.standing.heard(told, answer, 0.0)
        return answer


def settle(clock: Clock, members: list[Member], turns: int = 8) -> None:
    for _turn in range(turns):
        clock.now += 2.0
        for member in members:
            member.beat()


# ------------------------------------------------------------------------------------------ budgets


def test_one_alone_has_what_an_address_may_and_several_share_it(farm: Queue, clock: Clock) -> None:
    members = [Member(farm, clock, f"w{number}") for number in range(4)]
    settle(clock, members[:1])
    assert members[0].allowed == pytest.approx(1.9)
    settle(clock, members)
    assert [member.allowed for member in members] == [pytest.approx(0.475, rel=0.02)] * 4
    members[1].wanted = members[2].wanted = 0.2
    settle(clock, members)
    assert [members[1].allowed, members[2].allowed] == [pytest.approx(0.2)] * 2
    assert members[0].allowed == members[3].allowed == pytest.approx(0.75, rel=0.02)


def test_who_goes_leaves_what_it_had_at_once_and_who_is_silent_after_a_lease(farm: Queue, clock: Clock) -> None:
    first, second = Member(farm, clock, "w1"), Member(farm, clock, "w2")
    settle(clock, [first, second])
    farm.leave_budget("w2", HOME)
    settle(clock, [first], 2)
    assert first.allowed == pytest.approx(1.9)
    settle(clock, [first, second])
    settle(clock, [first], 20)  # 40 s of a lease of 60
    assert first.allowed == pytest.approx(0.95, rel=0.03)
    settle(clock, [first], 14)
    assert first.allowed == pytest.approx(1.9)
    assert second.allowed == 0.0, "by its own clock it asks nothing any more"


def test_a_newcomer_waits_until_others_have_heard_of_less(farm: Queue, clock: Clock) -> None:
    first, second = Member(farm, clock, "w1"), Member(farm, clock, "w2")
    settle(clock, [first])
    second.beat()
    assert 0.0 < second.allowed <= 0.05 + 1e-6
    clock.now += 2.0
    first.beat(is_heard=False)  # the answer is lost: it goes on as it did
    second.beat()
    assert first.allowed + second.allowed <= 2.0
    settle(clock, [first, second], 3)
    assert first.allowed == second.allowed == pytest.approx(0.95, rel=0.05)


def test_an_account_is_shared_over_addresses_and_what_it_does_not_allow_is_there_for_others(
    farm: Queue, clock: Clock
) -> None:
    account = "account:0123456789abcdef"
    here, there = Member(farm, clock, "w1", (*HOME, account)), Member(farm, clock, "w2", ("line:other", account))
    guest = Member(farm, clock, "w3")
    settle(clock, [here, there, guest], 12)
    assert here.allowed + there.allowed <= 1.0
    assert here.allowed == there.allowed == pytest.approx(0.475, rel=0.03)
    assert guest.allowed == pytest.approx(2.0 * 0.95 - here.allowed, rel=0.05)


def test_without_a_budget_nothing_is_counted_and_nothing_kept(
    valkey_socket: str, connection: redis.Redis, clock: Clock, settings: Settings
) -> None:
    client = VirtualRedis(valkey_socket, clock.milliseconds, lambda text: text)
    farm = Queue(client, replace(settings, rate_per_address=0.0, rate_per_account=0.0), place="here")
    answer = farm.budget("w1", (*HOME, "account:a"), BUSY)
    assert (answer.requests_per_second, answer.parked_seconds) == (None, 0.0)
    assert connection.keys("*budget:*") == connection.keys("*members:*") == []
    farm.close()


def test_what_is_kept_of_a_group_has_an_end(farm: Queue, connection: redis.Redis, clock: Clock) -> None:
    member = Member(farm, clock, "w1")
    member.standing._refused = {"kind": "-412", "seconds": 0.0}
    member.beat()
    kept = [
        name for name in connection.keys("*") if any(f":{kind}:" in name for kind in ("budget", "members", "breaker"))
    ]
    assert len(kept) == 3 and all(0 < connection.ttl(name) < 3600 for name in kept)


def test_a_large_group_is_levelled_by_some_of_its_members(
    farm: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm_budgets, "MEMBERS_LOOKED_AT", 8)
    members = [Member(farm, clock, f"w{number}") for number in range(40)]
    settle(clock, members, 12)
    total = sum(member.allowed for member in members)
    assert 1.0 < total <= 2.0
    assert min(member.allowed for member in members) > 0.02


def test_a_clock_that_is_set_back_counts_nobody_for_longer_than_a_lease(farm: Queue, clock: Clock) -> None:
    first, second = Member(farm, clock, "w1"), Member(farm, clock, "w2")
    settle(clock, [first, second])
    clock.set_by = -86_400.0
    settle(clock, [first], 40)
    assert first.allowed == pytest.approx(1.9)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_all_together_never_ask_more_often_than_they_may(farm: Queue, clock: Clock, seed: int) -> None:
    """Workers come, die, are cut off, lose answers and change their minds; none of it is known to the others."""
    chance = random.Random(seed)
    groups = [HOME, (*HOME, "account:a"), ("line:x", "account:a")]
    members: list[Member] = []
    most = 0.0
    for turn in range(400):
        if len(members) < 2 or chance.random() < 0.05:
            members.append(Member(farm, clock, f"w{turn}", chance.choice(groups)))
        if chance.random() < 0.03:
            gone = members.pop(chance.randrange(len(members)))
            if chance.random() < 0.5:
                farm.leave_budget(gone.name, gone.groups)
        for member in members:
            if chance.random() < 0.3:
                member.wanted = chance.choice((0.0, 0.1, 1.0, 100.0))
            if chance.random() < 0.7:
                member.beat(is_heard=chance.random() < 0.8, is_lost=chance.random() < 0.1)
            for group, budget in ((HOME[0], 2.0), ("line:x", 2.0), ("account:a", 1.0)):
                together = sum(one.allowed for one in members if group in one.groups)
                assert together <= budget + 1e-5, (turn, group, together)
                most = max(most, together / budget)
        clock.now += chance.choice((0.1, 2.0, 2.0, 5.0, 20.0))
    assert most > 0.9, "they had what there was to have"


# ------------------------------------------------------------------------------------------ breakers


def refuse(member: Member, kind: str = "-412", seconds: float = 0.0) -> None:
    member.standing._refused = {"kind": kind, "seconds": seconds}
    member.beat()


def test_a_refusal_parks_all_of_an_address_and_one_that_is_answered_lets_all_go_on(farm: Queue, clock: Clock) -> None:
    first, second, third = (Member(farm, clock, f"w{number}") for number in (1, 2, 3))
    elsewhere = Member(farm, clock, "w4", ("address:203.0.113.10",))
    settle(clock, [first, second, third, elsewhere])
    refuse(first)
    for member in (second, third, elsewhere):
        member.beat()
    assert [round(one.pace.parked_seconds) for one in (first, second, third, elsewhere)] == [30, 30, 30, 0]
    assert [one.group for one in farm.breakers()] == list(HOME)
    clock.now += 29.0
    assert second.beat().parked_seconds == budgets.PARKED_LEAST_SECONDS
    clock.now += 1.1
    assert second.beat(may_probe=False).parked_seconds > 0, "whoever is paused tries nothing"
    assert third.beat().probes and third.allowed == budgets.PROBE_RATE
    assert first.beat().parked_seconds > 0 and second.beat().parked_seconds > 0
    (breaker,) = farm.breakers()
    assert (breaker.is_probed, breaker.prober) == (True, "w3")
    third.pace.answered()
    assert not third.beat().probes
    assert [one.beat().parked_seconds for one in (first, second, third)] == [0.0] * 3
    assert farm.breakers() == []


def test_each_refusal_of_the_one_that_tries_parks_for_twice_as_long(farm: Queue, clock: Clock) -> None:
    member, other = Member(farm, clock, "w1"), Member(farm, clock, "w2")
    seen = []
    refuse(member)
    for _turn in range(8):
        (breaker,) = farm.breakers()
        seen.append(round(breaker.seconds))
        clock.now += breaker.seconds + 0.1
        assert member.beat().probes and not other.beat().probes
        member.pace.answered()  # beside an answer, a refusal counts
        refuse(member)
    assert seen == [30, 60, 120, 240, 480, 960, 1800, 1800]


def test_what_opens_again_soon_is_parked_for_longer_and_later_it_is_forgotten(
    farm: Queue, connection: redis.Redis, clock: Clock
) -> None:
    member = Member(farm, clock, "w1")
    refuse(member)
    clock.now += 31.0
    member.beat()
    member.pace.answered()
    member.beat()
    refuse(member)
    assert round(farm.breakers()[0].seconds) == 60
    (name,) = connection.keys("*breaker:*")
    assert 600 < connection.ttl(name) <= 660
    connection.delete(name)
    assert farm.breakers() == [] and member.beat().parked_seconds == 0.0


def test_refusals_of_what_was_asked_before_count_once_and_the_site_s_own_word_is_obeyed(
    farm: Queue, clock: Clock
) -> None:
    members = [Member(farm, clock, f"w{number}") for number in range(5)]
    for member in members:
        refuse(member)
    (breaker,) = farm.breakers()
    assert (breaker.failures, round(breaker.seconds)) == (1, 30)
    refuse(Member(farm, clock, "w9"), seconds=300.0)
    (breaker,) = farm.breakers()
    assert (breaker.failures, round(breaker.seconds)) == (1, 300)


def test_one_that_tries_and_falls_silent_is_followed_by_another(farm: Queue, clock: Clock) -> None:
    first, second = Member(farm, clock, "w1"), Member(farm, clock, "w2")
    refuse(first)
    clock.now += 31.0
    assert first.beat().probes and not second.beat().probes
    clock.now += budgets.PROBE_SECONDS - 1
    assert not second.beat().probes
    clock.now += 2.0
    assert second.beat().probes and first.beat().parked_seconds > 0
    first.pace.answered()
    assert first.beat().parked_seconds > 0, "its answer comes too late"


def test_a_refused_account_parks_its_workers_at_any_address_and_no_guest(farm: Queue, clock: Clock) -> None:
    account = "account:0123456789abcdef"
    first, far = Member(farm, clock, "w1", (*HOME, account)), Member(farm, clock, "w2", ("line:other", account))
    guest = Member(farm, clock, "w3")
    refuse(first, "-352")
    assert far.beat().parked_seconds > 0 and guest.beat().parked_seconds == 0.0
    refuse(guest, "-352")
    assert {one.group for one in farm.breakers()} == {HOME[0], account}


def test_a_clock_that_is_set_back_parks_nobody_for_days(farm: Queue, clock: Clock) -> None:
    member = Member(farm, clock, "w1")
    refuse(member)
    clock.set_by = -86_400.0
    assert member.beat().probes
