"""What a person wants to know first: is it running, how fast, and when will it be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from board import GONE, state_of
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
    here: int
    """How many machines do something, or would."""
    seconds_left: float | None
    least_room: tuple[str, int] | None
    """The machine with the least room on its disk, and how much it is."""


def look_ahead(counts: Counts, workers: Sequence[Mapping[str, Any]], seconds_left: float | None) -> Outlook:
    """Return the outlook of a farm of these jobs and workers."""
    present = [worker for worker in workers if worker["state"] not in GONE]
    machines = Counter(worker["state"] for worker in workers)
    left = counts.ready + counts.leased + counts.delayed
    rooms = [(worker["worker"], worker["disk_free_bytes"]) for worker in present if "disk_free_bytes" in worker]
    return Outlook(
        _state(counts, left, set(machines).difference(GONE)),
        sum(worker.get("speed_bytes_per_second", 0) for worker in present),
        machines,
        len(present),
        seconds_left,
        min(rooms, key=lambda room: room[1], default=None),
    )


def seen_worker(told: Mapping[str, Any], now: float, lease_seconds: float) -> dict[str, Any]:
    """Return a machine as it told of itself, with what is true of that now: of one that is gone it has no speed."""
    state = state_of(told, told["seen_seconds"], lease_seconds)
    seen = {"worker": told["worker"], "seen": now - told["seen_seconds"], "state": state}
    if state == "away":
        return seen
    return {**told, **seen, "speed_bytes_per_second": told.get("speed_bytes_per_second", 0) if state not in GONE else 0}


def in_detail(worker: Mapping[str, Any]) -> dict[str, Any]:
    """Return a machine with its jobs as they move, or stand: with speeds where there are any, and the time left."""
    moves = worker["state"] not in (*GONE, "paused")
    return {**worker, "jobs": [_job(job, moves) | {"machine": worker["state"]} for job in worker.get("jobs") or ()]}


def _job(job: Mapping[str, Any], moves: bool) -> dict[str, Any]:
    streams = [_stream(stream, moves) for stream in job.get("streams") or ()]
    speed = sum(stream["speed_bytes_per_second"] for stream in streams)
    is_known = job.get("stage") == "downloading" and all(stream.get("total_bytes") for stream in streams)
    left_seconds = sum(map(_left_bytes, streams)) / speed if is_known and speed >= 1 else 0.0
    return {**job, "streams": streams, "seconds_left": left_seconds if left_seconds >= 1 else None}


def _stream(stream: Mapping[str, Any], moves: bool) -> dict[str, Any]:
    speed = stream.get("speed_bytes_per_second", 0) if moves else 0
    is_whole = bool(stream.get("total_bytes")) and not _left_bytes(stream)
    return {**stream, "speed_bytes_per_second": 0 if is_whole else speed}


def _left_bytes(stream: Mapping[str, Any]) -> int:
    return max(0, int(stream.get("total_bytes") or 0) - int(stream.get("done_bytes") or 0))


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
