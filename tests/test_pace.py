"""How quickly the site is asked, in simulated time."""

from __future__ import annotations

import pytest

from pace import CAP_SECONDS, FIRST_WORD_SECONDS, HELD_UP_SECONDS, MOST_WANTED, Pace
from site_standing import SiteStanding


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def turn(pace: Pace, clock: Clock) -> float:
    """Wait for the next request as whoever asks the site does; return for how long."""
    began = clock.now
    while (wait := pace.wait_seconds()) > 0:
        clock.now += min(wait, 0.5)
    pace.take()
    return clock.now - began


def test_requests_are_one_interval_apart(clock: Clock) -> None:
    pace = Pace(0.5, clock)
    assert [turn(pace, clock) for _turn in range(4)] == [0.0, 0.5, 0.5, 0.5]
    clock.now = 100.0
    assert [turn(pace, clock), turn(pace, clock)] == [0.0, 0.5]


def test_each_refusal_doubles_the_interval_up_to_a_cap(clock: Clock) -> None:
    pace, seen = Pace(0.5, clock), []
    for _turn in range(8):
        clock.now += 100
        pace.refused()
        seen.append(pace.interval_seconds)
    assert seen == [1.0, 2.0, 4.0, 8.0, 16.0, CAP_SECONDS, CAP_SECONDS, CAP_SECONDS]


def test_refusals_of_requests_that_were_sent_together_count_once(clock: Clock) -> None:
    pace = Pace(0.5, clock)
    for _turn in range(10):
        clock.now += 0.05
        pace.refused()
    assert pace.interval_seconds == 1.0


@pytest.mark.parametrize("wished", [0.0, 0.5, 5.0])
def test_good_answers_bring_it_back_slowly_and_no_further_than_was_wished(clock: Clock, wished: float) -> None:
    pace = Pace(wished, clock)
    for _turn in range(3):
        clock.now += 100
        pace.refused()
    slowest = pace.interval_seconds
    assert slowest == max(wished, 0.5) * 8 or slowest == CAP_SECONDS
    answers = 0
    while pace.interval_seconds > wished:
        before = pace.interval_seconds
        pace.answered()
        answers += 1
        assert pace.interval_seconds == wished or pace.interval_seconds == pytest.approx(before * 0.95)
    assert 30 <= answers <= 100
    pace.answered()
    assert pace.interval_seconds == wished


def test_a_wish_beyond_the_cap_stays(clock: Clock) -> None:
    pace = Pace(60.0, clock)
    clock.now += 100
    pace.refused()
    assert pace.interval_seconds == 60.0


@pytest.mark.parametrize(("wished", "slower"), [(0.0, 2.0), (0.5, 2.0), (3.0, 12.0)])
def test_another_worker_s_refusal_slows_for_as_long_as_it_counts(clock: Clock, wished: float, slower: float) -> None:
    pace = Pace(wished, clock)
    pace.slow_for(30.0)
    assert (pace.interval_seconds, pace.slow_seconds) == (slower, 30.0)
    clock.now = 20.0
    pace.take()
    assert pace.wait_seconds() == slower
    clock.now = 30.0
    assert (pace.interval_seconds, pace.slow_seconds) == (wished, 0.0)


def test_an_hour_of_a_strict_site_is_asked_less_and_less_and_then_normally_again(clock: Clock) -> None:
    """A site that takes one request in two seconds: the rate settles near that, and recovers when it is lifted."""
    pace, last, refused, good = Pace(0.5, clock), -10.0, 0, 0
    while clock.now < 3600:
        clock.now += max(pace.wait_seconds(), 0.01)
        pace.take()
        if clock.now - last < 2.0:
            refused += 1
            pace.refused()
        else:
            good += 1
            pace.answered()
        last = clock.now
    assert refused < 0.2 * good and good > 600
    for _turn in range(100):
        pace.answered()
    assert pace.interval_seconds == 0.5


# ------------------------------------------------------------------------------------------ what the server says


def test_what_the_server_says_holds_at_once_and_ends_where_the_own_wish_is_slower(clock: Clock) -> None:
    pace = Pace(0.5, clock)
    pace.take()
    pace.obey(0.25, 60.0)
    assert pace.wait_seconds() == 4.0
    pace.obey(1.0, 60.0)
    assert pace.wait_seconds() == 1.0, "also for who waits already"
    pace.obey(10.0, 60.0)
    assert pace.interval_seconds == 0.5
    pace.obey(None, 60.0)
    assert (pace.interval_seconds, pace.allowed) == (0.5, float("inf"))


def test_without_another_word_it_holds_for_half_of_its_time_then_a_quarter_of_it_and_then_nothing_is_asked(
    clock: Clock,
) -> None:
    pace = Pace(0.0, clock)
    pace.obey(2.0, 60.0)
    seen = []
    for clock.now in (0.0, 29.0, 31.0, 59.0, 61.0, 10_000.0):
        seen.append(pace.allowed)
    assert seen == [2.0, 2.0, 0.5, 0.5, 0.0, 0.0]
    assert pace.wait_seconds() == float("inf")
    pace.obey(2.0, 60.0)
    assert pace.wait_seconds() == 0.0


def test_who_starts_waits_for_a_word_and_not_for_ever(clock: Clock) -> None:
    pace = Pace(0.0, clock)
    pace.await_word()
    assert turn(pace, clock) == FIRST_WORD_SECONDS
    pace.await_word()
    pace.obey(None, 60.0)
    assert turn(pace, clock) == 0.0


def test_parked_it_counts_down_and_a_word_ends_it(clock: Clock) -> None:
    pace = Pace(0.0, clock)
    pace.park_for(30.0)
    clock.now = 10.0
    assert pace.parked_seconds == 20.0
    pace.park_for(0.0)
    assert pace.parked_seconds == 0.0


def test_what_is_wanted_is_what_was_asked_and_more_and_all_of_it_where_requests_wait(clock: Clock) -> None:
    pace = Pace(0.0, clock)
    assert pace.wanted_per_second == 0.0
    for _turn in range(200):
        clock.now += 0.5
        pace.take()
    assert pace.asked_per_second == pytest.approx(2.0, rel=0.05)
    assert pace.wanted_per_second == pytest.approx(3.0, rel=0.05)
    clock.now += 60.0
    assert pace.wanted_per_second < 0.02, "nothing was asked lately"
    pace.obey(1.0, 60.0)
    pace.take()
    assert pace.wait_seconds() > 0 and pace.wanted_per_second == MOST_WANTED
    clock.now += HELD_UP_SECONDS
    assert pace.wanted_per_second < 1.0


def test_nobody_wants_more_than_its_own_wish_and_what_the_site_lets_it_have(clock: Clock) -> None:
    pace = Pace(0.5, clock)
    pace.obey(0.1, 60.0)
    pace.take()
    assert pace.wait_seconds() == 10.0 and pace.wanted_per_second == 2.0
    clock.now = 5.0
    pace.refused()
    pace.wait_seconds()
    assert pace.wanted_per_second == 1.0


def test_all_answers_are_counted_and_only_good_ones_bring_the_pace_back(clock: Clock) -> None:
    pace = Pace(0.5, clock)
    clock.now = 100.0
    pace.refused()
    pace.answered(is_good=False)
    assert (pace.answers, pace.interval_seconds) == (1, 1.0)
    pace.answered()
    assert (pace.answers, pace.interval_seconds) == (2, 0.95)


def test_answers_that_two_heartbeats_told_before_one_was_heard_count_once(clock: Clock) -> None:
    pace = Pace(0.0, clock)
    standing = SiteStanding(pace)
    pace.answered()
    first, second = standing.told(), standing.told()
    standing.heard(first, None, 0.0)
    standing.heard(second, None, 0.0)
    assert standing.told()["site"]["answers"] == 0
    pace.answered()
    assert standing.told()["site"]["answers"] == 1
