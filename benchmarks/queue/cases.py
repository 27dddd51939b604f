"""The cases: what is measured, side by side in one run, and what it comes to."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.queue import stage
from benchmarks.queue.stage import Engine, Served, clients, served

BODIES, HEADS, IDLE = 500, 1000, 2000
"""Half-sent bodies, half-open connections and idle ones that are held against a server."""
VIDEOS = 40_000
WORKERS = 10_000
OUTAGE_SECONDS = 20.0

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the benchmark."""

    engine: Engine
    folder: Path
    rounds: int
    first_round: int
    seconds: int
    quick: bool
    say: Callable[[str], None]

    def rotated(self, names: list[str]) -> Iterator[str]:
        """Return the names as often as there are rounds, each round beginning with another one."""
        for number in range(self.first_round, self.first_round + self.rounds):
            start = number * max(1, len(names) // 3) % len(names)
            yield from names[start:] + names[:start]


def leases(run: Run, place: Served, seconds: int, count: int = 1) -> Figures:
    """Measure leases through a server."""
    before, _memory = place.used()
    told = stage.result(stage.wrk(place.port, "lease", seconds, count))
    after, memory = place.used()
    return {
        "per_second": told["requests"] / told["seconds"],
        "jobs_per_second": told["jobs"] / told["seconds"],
        "p50_ms": told["p50"],
        "p99_ms": told["p99"],
        "refused": told["others"] + told["broken"],
        "cpu_us": (after - before) / max(1.0, told["requests"]) * 1e6,
        "memory_mb": memory,
    }


def choose(run: Run) -> Figures:
    """Compare servers at 64 connections: alone, and with thousands of others who do not finish."""
    kinds = stage.installed()
    alone: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    against: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    for kind in run.rotated(kinds):
        run.engine.fill(VIDEOS).close()
        with served(kind, run.engine.url, run.folder) as place:
            alone[kind].append(leases(run, place, run.seconds))
            with stage.held(place.port, BODIES, HEADS, IDLE):
                if place.is_alive(5.0):
                    against[kind].append(leases(run, place, run.seconds))
                else:
                    nothing = {"jobs_per_second": 0.0, "p50_ms": 0.0, "p99_ms": 0.0, "refused": 0.0, "cpu_us": 0.0}
                    against[kind].append({"per_second": 0.0, "memory_mb": place.used()[1]} | nothing)
        run.say(f"  {kind}: {alone[kind][-1]['per_second']:.0f}/s, held {against[kind][-1]['per_second']:.0f}/s")
    return {kind: {"alone": alone[kind], "held": against[kind]} for kind in kinds}


def verbs(run: Run) -> Figures:
    """Compare the verbs through one server and two with the same Lua called directly by as many clients."""
    found: dict[str, list[Figures]] = {}
    names = [f"{verb} {how}" for verb in ("lease", "lease of 8", "heartbeat", "ack") for how in ("1", "2", "direct")]
    for name in run.rotated(names):
        verb, how = name.rsplit(" ", 1)
        found.setdefault(name, []).append(_verb(run, verb, how))
        run.say(f"  {name}: {found[name][-1]['per_second']:.0f}/s")
    return found


def _verb(run: Run, verb: str, how: str) -> Figures:
    count, verb = (8, "lease") if verb == "lease of 8" else (1, verb)
    videos = {"lease": VIDEOS * (8 if count > 1 else 3), "heartbeat": 2000, "ack": 0}[verb]
    queue = run.engine.fill(videos, 0 if videos else 20_000)
    if how == "direct":
        told = stage.direct(run.engine, stage.commands(run.engine, verb, count), run.seconds, run.folder)
        queue.close()
        items = told["items"] if verb == "lease" else told["calls"]
        if verb == "lease" and items < told["calls"] * count:
            raise OSError(f"all {videos} jobs were leased before the end: calls that lease nothing say nothing")
        return {"per_second": items / told["seconds"], "client_cpu": told["cpu_seconds"] / told["seconds"]}
    bodies = run.folder / "heartbeats"
    if verb == "heartbeat":
        stage.heartbeats(queue, bodies)
    queue.close()
    with ExitStack() as stack:
        places = [stack.enter_context(served("product", run.engine.url, run.folder)) for _unused in range(int(how))]
        asked = 8 if verb == "ack" else count
        loads = [stage.wrk(one.port, verb, run.seconds, asked, bodies, len(places)) for one in places]
        told = [stage.result(load) for load in loads]
    name = {"lease": "jobs", "heartbeat": "requests", "ack": "acks"}[verb]
    return {"per_second": sum(one[name] / one["seconds"] for one in told), "client_cpu": 0.0}


def workers(run: Run) -> Figures:
    """Be thousands of workers that behave; in the middle the server is killed, and comes back after a while."""
    count = WORKERS // 10 if run.quick else WORKERS
    quiet, after = (35.0, 20.0) if run.quick else (50.0, 40.0)
    run.engine.fill(pages=count * 3 // 2).close()
    with served("product", run.engine.url, run.folder, lease_seconds=60.0) as place:
        command = clients("work", place.port, quiet + OUTAGE_SECONDS + after, count)
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=stage.ROOT) as client:
            began = time.monotonic()
            time.sleep(quiet)
            cpu, memory = place.used()
            stage.end_all(place.process)
            down = time.monotonic() - began
            time.sleep(OUTAGE_SECONDS)
            with served("product", run.engine.url, run.folder, place.port, 60.0):
                up = time.monotonic() - began
                output, _errors = client.communicate()
                elapsed = time.monotonic() - began
    told = json.loads(output)
    late = told["began"] - began  # by the same clock: a process takes a while to be ten thousand workers
    phases = {
        "steady": (22.0, down - late - 0.5),
        "back": (up - late, elapsed),
    }  # until 22 s all come for the first time
    return {
        "workers": count,
        "client_cpu": told["cpu_seconds"] / elapsed,
        "server_cpu": cpu / down,
        "memory_mb": memory,
        "troubles": told["troubles"],
        **{name: _phase(told["calls"], *span) for name, span in phases.items()},
        "each_second": _each_second(told["calls"], elapsed),
    }


def _phase(calls: list[tuple[str, float, float]], begin: float, end: float) -> Figures:
    found: Figures = {}
    for verb in ("get_url", "heartbeat", "ack"):
        times = sorted(took for name, at, took in calls if name == verb and begin <= at < end)
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100, method="inclusive")
            figures = {"p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000, "worst_ms": times[-1] * 1000}
            found[verb] = figures | {"per_second": len(times) / (end - begin)}
    return found


def _each_second(calls: list[tuple[str, float, float]], elapsed: float) -> list[int]:
    """Return how many calls were answered in each second."""
    counts = [0] * (int(elapsed) + 1)
    for _verb, at, took in calls:
        counts[min(int(at + took), len(counts) - 1)] += 1
    return counts


CASES: dict[str, Callable[[Run], Figures]] = {"choose": choose, "verbs": verbs, "workers": workers}


@contextmanager
def running(folder: Path, rounds: int, first_round: int, quick: bool, say: Callable[[str], None]) -> Iterator[Run]:
    """Start what a run stands on."""
    with stage.engine(folder) as engine:
        yield Run(engine, folder, rounds, first_round, 2 if quick else 4, quick, say)
