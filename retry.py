"""When to try again: pure functions, the randomness comes in as a number."""

from __future__ import annotations

from collections.abc import Callable

MAX_ATTEMPTS = 8
"""A transient failure is tried this often before the job is dead."""

Draw = Callable[[], float]
"""Returns a number in ``[0, 1)``, like ``random.random``."""


def full_jitter_seconds(attempt: int, base_seconds: float, cap_seconds: float, draw: Draw) -> float:
    """Return a wait for the ``attempt``-th failure (from 1), uniform in ``[0, min(cap, base·2^(attempt-1)))``.

    Full jitter keeps clients that failed together from coming back together (AWS Architecture Blog,
    "Exponential Backoff And Jitter").
    """
    exponent = min(max(attempt, 1) - 1, 62)
    return draw() * min(cap_seconds, base_seconds * 2.0**exponent)


def redelivery_delays_seconds(draw: Draw) -> tuple[float, ...]:
    """Return the delay after each failure but the last: 30 s doubling to 6 h, full jitter."""
    return tuple(full_jitter_seconds(n, 30.0, 6 * 3600.0, draw) for n in range(1, MAX_ATTEMPTS))


def waiting_delays_seconds(draw: Draw) -> tuple[float, ...]:
    """Return the delay after each look at what is not there yet: 10 min doubling to 6 h, the last one again and again.

    Half of each is at random, so that what began to wait together is not asked for together.
    """
    return tuple(min(6 * 3600.0, 600.0 * 2.0**n) * (0.5 + draw() / 2) for n in range(7))


def park_seconds(failures: int) -> float:
    """Return how long a worker parks after its ``failures``-th environment failure in a row: 30 s to 30 min."""
    return float(min(1800.0, 30.0 * 2.0 ** min(max(failures, 1) - 1, 10)))
