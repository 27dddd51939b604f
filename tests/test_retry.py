"""When to try again."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

import retry


@given(attempt=st.integers(-5, 10**6), base=st.floats(0.01, 100), cap=st.floats(0.01, 1e6), draw=st.floats(0, 0.999))
def test_full_jitter_stays_between_zero_and_the_cap(attempt: int, base: float, cap: float, draw: float) -> None:
    assert 0 <= retry.full_jitter_seconds(attempt, base, cap, lambda: draw) <= cap


def test_the_wait_doubles_up_to_the_cap() -> None:
    waits = [retry.full_jitter_seconds(n, 30, 100, lambda: 1.0) for n in (1, 2, 3, 4)]
    assert waits == [30, 60, 100, 100]


def test_there_is_a_delay_after_each_failure_but_the_last() -> None:
    delays = retry.redelivery_delays_seconds(lambda: 1.0)
    assert delays == (30, 60, 120, 240, 480, 960, 1920)
    assert len(delays) == retry.MAX_ATTEMPTS - 1


def test_a_worker_parks_from_half_a_minute_to_half_an_hour() -> None:
    assert [retry.park_seconds(n) for n in (0, 1, 2, 6, 7, 100)] == [30, 30, 60, 960, 1800, 1800]


def test_what_waits_is_looked_at_after_minutes_then_after_hours() -> None:
    assert retry.waiting_delays_seconds(lambda: 1.0) == (600, 1200, 2400, 4800, 9600, 19200, 21600)
    assert retry.waiting_delays_seconds(lambda: 0.0)[0] == 300
