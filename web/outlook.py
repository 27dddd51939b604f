"""What a person wants to know first: is it running, how fast, and when will it be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model import Counts


@dataclass(frozen=True, slots=True)
class Outlook:
    """The farm in one word, with its speed, its machines by state, and the time that is left, where that is known.

    ``state`` is ``empty`` (nothing was ever asked for), ``done``, ``nobody`` (no machine is there), ``working``,
    ``paused``, ``parked``, ``drained``, ``waiting`` (for what is tried again later) or ``starting``.
    """

    state: str
    speed_bytes_per_second: float
    machines: Mapping[str, int]
    seconds_left: float | None
    least_room: tuple[str, int] | None
    """The machine with the least room on its disk, and how much it is."""


def look_ahead(counts: Counts, workers: Sequence[Mapping[str, Any]], seconds_left: float | None) -> Outlook:
    """Return the outlook of a farm of these jobs and workers."""
    present = [worker for worker in workers if not worker["away"]]
    machines: dict[str, int] = {}
    for worker in workers:
        state = state_of(worker)
        machines[state] = machines.get(state, 0) + 1
    left = counts.ready + counts.leased + counts.delayed
    rooms = [(worker["worker"], worker["disk_free_bytes"]) for worker in present if "disk_free_bytes" in worker]
    return Outlook(
        _state(counts, left, set(machines) - {"away"}),
        sum(worker.get("speed_bytes_per_second", 0) for worker in present),
        machines,
        seconds_left,
        min(rooms, key=lambda room: room[1], default=None),
    )


def state_of(worker: Mapping[str, Any]) -> str:
    """Return what a machine says it does; an older one says it by its working.json only."""
    if worker["away"]:
        return "away"
    is_stopped = worker.get("working", {}).get("stop") == 0
    return str(worker.get("state") or ("paused" if is_stopped else "running"))


def _state(counts: Counts, left: int, states: set[str]) -> str:
    if not left:
        return "done" if counts.done or counts.dead else "empty"
    if not states:
        return "nobody"
    for state in ("paused", "parked", "drained"):
        if states == {state}:
            return state
    if counts.leased:
        return "working"
    return "starting" if counts.ready else "waiting"
