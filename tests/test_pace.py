"""How quickly the site is asked, in simulated time."""

from __future__ import annotations

import pytest

from pace import CAP_SECONDS, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_places_are_one_interval_apart(clock: Clock) -> None:
    pace = Pace(0.5, clock)
    assert [pace.take() for _turn in range(4)] == [0.0, 0.5, 1.0, 1.5]
    clock.now = 100.0
    assert [pace.take(), pace.take()] == [0.0, 0.5]


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
    assert [pace.take(), pace.take()] == [0.0, slower]
    clock.now = 30.0
    assert (pace.interval_seconds, pace.slow_seconds) == (wished, 0.0)


def test_an_hour_of_a_strict_site_is_asked_less_and_less_and_then_normally_again(clock: Clock) -> None:
    """A site that takes one request in two seconds: the rate settles near that, and recovers when it is lifted."""
    pace, last, refused, good = Pace(0.5, clock), -10.0, 0, 0
    while clock.now < 3600:
        clock.now += max(pace.take(), 0.01)
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
