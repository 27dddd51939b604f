"""What the farm did, in rings of so many steps: what a step holds, and what can be read off them. No clock is asked.

``lua/sample.lua`` writes them. A ring has a place for each of its steps, and a step takes the place of the one that
was there a whole turn before: so it never grows, and a step that nobody wrote shows by the number in its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Ring(NamedTuple):
    """How long a step is, and how many there are."""

    step_seconds: int
    steps: int


HOUR, DAY, WEEK = "hour", "day", "week"
RINGS = {HOUR: Ring(10, 360), DAY: Ring(300, 288), WEEK: Ring(3600, 168)}
"""The shortest steps first: each of them is one sample."""

LEAST_FINISHED, LEAST_BUSY_STEPS = 3, 6
"""From fewer pages, or in less than a minute, no pace can be told."""
RESTING_STEPS = 6
"""Where nobody held a job for so many steps, nothing is being done now."""


class Step(NamedTuple):
    """One step of a ring: ``number`` is the time in steps."""

    number: int
    samples: int
    speed_sum: int
    finished: int
    failures: int
    busy: int
    """In how many of the samples somebody held a job."""


Point = tuple[int, int | None, int | None]
"""When the step began, the mean speed, and how many pages were finished; None where nobody looked."""


def read_steps(ring: Ring, texts: Iterable[str], at_seconds: float) -> list[Step]:
    """Return what a ring holds of its last turn, the oldest step first; ``texts`` come in any order."""
    newest = int(at_seconds // ring.step_seconds)
    steps = (Step(*map(int, text.split())) for text in texts)
    return sorted(step for step in steps if newest - ring.steps < step.number <= newest)


def points(ring: Ring, steps: list[Step]) -> list[Point]:
    """Return a point for each step from the first to the last one that was sampled."""
    if not steps:
        return []
    known = {step.number: step for step in steps}
    return [
        _point(number * ring.step_seconds, known.get(number)) for number in range(steps[0].number, steps[-1].number + 1)
    ]


def _point(began_seconds: int, step: Step | None) -> Point:
    if step is None:
        return began_seconds, None, None
    return began_seconds, round(step.speed_sum / step.samples), step.finished


def seconds_left(jobs: int, steps: list[Step], at_seconds: float) -> int | None:
    """Return how long so many jobs will take at the pace of the last hour; None where nothing can be said.

    Only the time counts in which somebody held a job: a farm that had nothing to do for half an hour is not slower.
    """
    if not jobs:
        return 0
    ring = RINGS[HOUR]
    rested_since = at_seconds // ring.step_seconds - RESTING_STEPS
    finished, busy = sum(step.finished for step in steps), sum(step.busy for step in steps)
    is_resting = not any(step.busy for step in steps if step.number >= rested_since)
    if is_resting or finished < LEAST_FINISHED or busy < LEAST_BUSY_STEPS:
        return None
    return round(jobs * busy * ring.step_seconds / finished)
