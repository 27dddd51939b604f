"""How the requests of an address or an account are shared, and who belongs together."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import budgets
from budgets import (
    OPEN_CAP_SECONDS,
    Breaker,
    address_group,
    blamed,
    fair_level,
    groups_of,
    open_delays_seconds,
    parked,
    shares,
    spoken,
    trickle,
)

RATES = st.floats(0.0, 1000.0, allow_nan=False)
BUDGETS = st.floats(0.01, 1000.0)
WANTED = st.dictionaries(st.text(min_size=1, max_size=3), RATES, min_size=1, max_size=60)

# ------------------------------------------------------------------------------------------ shares


@settings(max_examples=50)
@given(BUDGETS, WANTED)
def test_shares_are_never_more_than_the_budget_and_leave_a_trickle_for_one_more(
    budget: float, wanted: dict[str, float]
) -> None:
    given = shares(budget, wanted)
    assert sum(given.values()) <= budget - trickle(budget, len(wanted) + 1) + 1e-9 * budget


@settings(max_examples=50)
@given(BUDGETS, WANTED)
def test_nobody_gets_less_than_a_trickle_or_more_than_it_wants(budget: float, wanted: dict[str, float]) -> None:
    least = trickle(budget, len(wanted))
    for name, share in shares(budget, wanted).items():
        assert least * (1 - 1e-9) <= share <= max(wanted[name], least) * (1 + 1e-9)
    assert least * len(wanted) <= budget / 4 * (1 + 1e-9), "who needs nothing leaves the most to others"


@settings(max_examples=50)
@given(BUDGETS, WANTED)
def test_whoever_has_less_than_it_wants_has_as_much_as_anybody(budget: float, wanted: dict[str, float]) -> None:
    given = shares(budget, wanted)
    most = max(given.values())
    for name, share in given.items():
        assert share >= min(wanted[name], most) * (1 - 1e-9)


@settings(max_examples=50)
@given(BUDGETS, WANTED)
def test_nothing_is_left_over_while_somebody_wants_more(budget: float, wanted: dict[str, float]) -> None:
    given = shares(budget, wanted)
    if any(share < wanted[name] * (1 - 1e-9) for name, share in given.items()):
        spent = budget - trickle(budget, len(wanted) + 1)
        assert sum(given.values()) >= spent * (1 - 1e-9)


@settings(max_examples=50)
@given(BUDGETS, st.lists(RATES, min_size=1, max_size=50), st.integers(1, 40))
def test_a_sample_gives_a_level_at_which_all_stay_below_the_budget(
    budget: float, sample: list[float], times: int
) -> None:
    """So many members as there are of each in the sample."""
    members = len(sample) * times
    level, least = fair_level(budget, sample, members), trickle(budget, members)
    assert times * sum(min(max(one, least), level) for one in sample) <= budget * (1 + 1e-9)


def test_one_alone_has_nearly_all_and_ten_have_a_tenth_each() -> None:
    assert shares(2.0, {"a": 5.0}) == {"a": pytest.approx(1.9)}
    ten = shares(2.0, {str(number): 5.0 for number in range(10)})
    assert all(share == pytest.approx(0.2, rel=0.05) for share in ten.values())
    assert shares(2.0, {"idle": 0.0, "busy": 5.0}) == {"idle": pytest.approx(0.1), "busy": pytest.approx(1.8)}


def test_without_members_there_is_nothing_to_level() -> None:
    assert fair_level(2.0, [], 0) == 2.0


# ------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("203.0.113.9", "address:203.0.113.9"),
        ("::ffff:203.0.113.9", "address:203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "address:2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "address:2001:db8:1:3::/64"),
        *((one, "address:local") for one in ("127.0.0.1", "::1", "192.168.1.7", "10.1.2.3", "172.31.0.1")),
        *((one, "address:local") for one in ("100.64.3.2", "fe80::1%eth0", "fd00::7", "::ffff:10.0.0.1", "", "what")),
        ("172.32.0.1", "address:172.32.0.1"),
    ],
)
def test_an_address_stands_for_a_line_to_the_site(address: str, group: str) -> None:
    assert address_group(address) == group


def test_a_worker_may_name_its_line_and_no_address_is_taken_for_that() -> None:
    assert groups_of("192.168.1.7", "fibre", "digest") == ("line:fibre", "account:digest")
    assert address_group("192.168.1.8", "203.0.113.9") != address_group("203.0.113.9")


@pytest.mark.parametrize(
    ("kind", "who"),
    [*((kind, "address") for kind in ("-412", "412", "429")), *((kind, "account") for kind in ("-352", "v_voucher"))],
)
def test_what_the_site_said_tells_whom_it_refused(kind: str, who: str) -> None:
    assert blamed(kind, groups_of("203.0.113.9", "", "digest")).startswith(f"{who}:")
    assert blamed(kind, groups_of("203.0.113.9")) == "address:203.0.113.9", "a guest has an address only"


# ------------------------------------------------------------------------------------------ breakers


@settings(max_examples=50)
@given(st.floats(0, 1, exclude_max=True))
def test_a_group_is_parked_for_longer_with_each_refusal_in_a_row(draw: float) -> None:
    delays = open_delays_seconds(draw)
    assert 30 <= delays[0] <= 37.5 and delays[-1] == OPEN_CAP_SECONDS
    assert all(later == pytest.approx(min(2 * one, OPEN_CAP_SECONDS)) for one, later in pairwise(delays))


def test_all_of_a_parked_group_are_parked_but_the_one_that_tries() -> None:
    breaker = Breaker("address:203.0.113.9", True, 27.0, 1, "-412", "w1")
    tries, waits = parked(breaker, "w1", 60.0), parked(breaker, "w2", 60.0)
    assert tries is not None and (tries.probes, tries.parked_seconds) == (True, 0.0)
    assert waits is not None and (waits.probes, waits.parked_seconds, waits.kind) == (False, 27.0, "-412")
    assert spoken(breaker) == (
        "address 203.0.113.9: w1 tries whether the site answers again (it said -412); the others wait"
    )
    assert spoken(Breaker("account:0123456789", False, 61.7, 2, "-352", "")) == (
        "account 012345: all its workers are parked, 62 s yet, because the site wants fewer requests (-352)"
    )
    assert budgets.spoken_group("address:local") == "this network" and budgets.spoken_group("line:a:b") == "line a:b"
