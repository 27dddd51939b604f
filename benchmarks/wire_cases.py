"""Cases of the download alone: one file or many, over good and bad connections and mirrors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import GIB, MIB, Bench, missing
from benchmarks.contenders import Source, Task
from benchmarks.measure import Sample
from benchmarks.report import (
    Figure,
    Goal,
    Outcome,
    compared,
    cpu,
    download_cpu,
    download_wall,
    median,
    memory,
    ratio,
    wall,
)
from benchmarks.servers import FaultServer, Listener, Nginx, listener

CONNECTIONS = 16
PACE = 4_000_000
"""Bytes per second of each paced connection."""
SLOW_PACE = 50_000
LATE_SECONDS, LATE_STREAMS, LATE_BYTES = 0.3, 64, 3 * MIB
LIMIT_BYTES_PER_SECOND, LIMIT_SECONDS = 5_000_000, 20

Samples = Mapping[str, Sequence[Sample]]


def serving(bench: Bench, stack: ExitStack, *listeners: Listener) -> Nginx:
    """Start nginx with some listeners."""
    return stack.enter_context(Nginx(bench.peers.found["nginx"], listeners, bench.folder / "nginx"))


def sized(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / GIB:g} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:g} MiB"


# ------------------------------------------------------------------------------------------ clean wires


def plain(bench: Bench, full_bytes: int, tls: bool) -> Outcome:
    """One file over 16 connections, as fast as it goes."""
    size_bytes = bench.sized(full_bytes)
    case = f"{'tls' if tls else 'plain'}-{full_bytes // GIB}g"
    title = f"{'TLS' if tls else 'plain HTTP'}, {sized(size_bytes)}, {CONNECTIONS} connections"
    file = bench.file(size_bytes)
    bench.need_room(size_bytes)
    with ExitStack() as stack:
        door = listener(bench.served, tls=tls)
        nginx = serving(bench, stack, door)
        limit = 60 + 60 * size_bytes / GIB
        task = Task((file.at(door.url),), CONNECTIONS, limit, nginx.ca_file if tls else "")
        names = ["ours", "floor", "aria2c", "curl", "reference", "yt-dlp"]
        samples = bench.compare({name: (name, task) for name in names})
    wall_goal, cpu_goal = (0.8, 1.0) if tls else (0.45, 0.55)
    goals = [
        compared("wall / aria2c", samples, ("ours", download_wall), ("aria2c", wall), high=wall_goal),
        compared("CPU / aria2c", samples, ("ours", download_cpu), ("aria2c", cpu), high=cpu_goal),
        compared("wall / aria2c, with the start of Python", samples, ("ours", wall), ("aria2c", wall)),
        compared("CPU / aria2c, with the start of Python", samples, ("ours", cpu), ("aria2c", cpu)),
        compared("CPU / floor", samples, ("ours", download_cpu), ("floor", download_cpu), high=None if tls else 1.2),
        compared("wall / the reference's way", samples, ("ours", download_wall), ("reference", download_wall)),
        compared("memory / the reference's way", samples, ("ours", memory), ("reference", memory)),
    ]
    notes = [*missing(bench.peers, ["aria2c", "curl", "yt-dlp"])]
    notes.append("curl and yt-dlp use one connection; yutto takes addresses of the site only")
    return Outcome(case, title, samples, goals, notes)


def paced(bench: Bench) -> Outcome:
    """Each connection carries 4 MB/s at most: a downloader can only keep all of them busy."""
    size_bytes = bench.sized(GIB)
    file = bench.file(size_bytes)
    with ExitStack() as stack:
        door = listener(bench.served, bytes_per_second=PACE)
        serving(bench, stack, door)
        task = Task((file.at(door.url),), CONNECTIONS, 8 * size_bytes / (CONNECTIONS * PACE) + 30)
        names = ["ours", "floor", "aria2c"]
        single = replace(task, sources=(bench.file(16 * MIB).at(door.url),))
        tasks = {**{name: (name, task) for name in names}, "curl, 16 MiB over one": ("curl", single)}
        samples = bench.compare(tasks, warm_up=False)
    whole = CONNECTIONS * PACE
    alone = median(samples["ours"], download_wall)
    speed = ratio(size_bytes, alone)
    goals = [
        Goal(
            f"speed / ({CONNECTIONS} × {PACE / 1e6:g} MB/s)",
            ratio(speed, whole),
            0.97,
            1.0,
            "×",
        )
    ]
    for name, figure in (("floor", download_wall), ("aria2c", wall)):
        reached = ratio(size_bytes, median(samples.get(name, ()), figure))
        goals.append(Goal(f"the same of {name}", ratio(reached, whole), unit="×"))
    one = ratio(16 * MIB, median(samples.get("curl, 16 MiB over one", ()), wall))
    goals.append(Goal("pace of one connection as curl sees it, MB/s", one and one / 1e6))
    title = f"{sized(size_bytes)}, each connection paced to {PACE / 1e6:g} MB/s, {CONNECTIONS} connections"
    return Outcome("paced", title, samples, goals, missing(bench.peers, ["aria2c", "curl"]))


# ------------------------------------------------------------------------------------------ bad mirrors


def mirrors(bench: Bench, pace: int) -> Outcome:
    """Three mirrors: the primary at 50 KB/s, a good one, and one that cuts every body at random."""
    size_bytes = bench.sized(GIB // 2 if pace else GIB)
    file = bench.file(size_bytes)
    clean_seconds = size_bytes / (CONNECTIONS * pace) if pace else 2.0
    with ExitStack() as stack:
        slow = listener(bench.served, "127.0.0.2", bytes_per_second=SLOW_PACE)
        fine = listener(bench.served, "127.0.0.3", bytes_per_second=pace)
        serving(bench, stack, slow, fine)
        cutting = stack.enter_context(FaultServer(bench.served, "127.0.0.4", cut="always", bytes_per_second=pace))
        alone = Task((file.at(fine.url),), CONNECTIONS, 20 * clean_seconds + 20)
        three = replace(alone, sources=(file.at(slow.url, fine.url, cutting.url),))
        tasks: dict[str, tuple[str, Task]] = {}
        for name in ("ours", "aria2c"):
            tasks |= {f"{name}, good mirror alone": (name, alone), f"{name}, three mirrors": (name, three)}
        samples = bench.compare(tasks)
    goals = [_slowed("ours", samples, "three mirrors", "good mirror alone", 1.15, download_wall)]
    goals.append(_slowed("aria2c", samples, "three mirrors", "good mirror alone", None, wall))
    words = f"good ones at {pace / 1e6:g} MB/s a connection" if pace else "good ones unpaced"
    title = f"{sized(size_bytes)}, three mirrors: {SLOW_PACE // 1000} KB/s (primary), good, cutting; {words}"
    return Outcome("mirrors-paced" if pace else "mirrors", title, samples, goals, missing(bench.peers, ["aria2c"]))


def _slowed(name: str, samples: Samples, bad: str, clean: str, high: float | None, figure: Figure) -> Goal:
    text = ("time / clean time" if clean == "clean" else f"time / time with the {clean}") + (
        "" if name == "ours" else f", {name}"
    )
    return compared(text, samples, (f"{name}, {bad}", figure), (f"{name}, {clean}", figure), high=high)


def cut_once(bench: Bench, pace: int) -> Outcome:
    """Every range is cut once at a random place."""
    size_bytes = bench.sized(GIB // 2 if pace else GIB)
    file = bench.file(size_bytes)
    clean_seconds = size_bytes / (CONNECTIONS * pace) if pace else 2.0
    tasks: dict[str, tuple[str, Task]] = {}
    with ExitStack() as stack:
        clean = stack.enter_context(FaultServer(bench.served, bytes_per_second=pace))
        cutting = stack.enter_context(FaultServer(bench.served, cut="once", bytes_per_second=pace))
        for name in ("ours", "aria2c"):
            for words, server in (("clean", clean), ("cut once", cutting)):
                task = Task((file.at(server.url),), CONNECTIONS, 20 * clean_seconds + 20)
                tasks[f"{name}, {words}"] = (name, task)
        samples = bench.compare(tasks)
    goals = [
        _slowed("ours", samples, "cut once", "clean", 1.15, download_wall),
        _slowed("aria2c", samples, "cut once", "clean", None, wall),
    ]
    words = f"{pace / 1e6:g} MB/s a connection" if pace else "unpaced"
    title = f"{sized(size_bytes)}, every range cut once, {words}"
    return Outcome("cut-paced" if pace else "cut", title, samples, goals, missing(bench.peers, ["aria2c"]))


# ------------------------------------------------------------------------------------------ latency


def ideal_seconds(streams: int, connections: int, late_seconds: float) -> float:
    """Return what a latency-bound plan takes on paper: each stream one request, bodies for nothing."""
    return math.ceil(streams / connections) * late_seconds


def late(bench: Bench) -> Outcome:
    """The first byte of every reply comes 300 ms late."""
    files = [bench.file(LATE_BYTES, number) for number in range(LATE_STREAMS)]
    with ExitStack() as stack:
        server = stack.enter_context(FaultServer(bench.served, late_seconds=LATE_SECONDS))
        sources: Sequence[Source] = [file.at(server.url) for file in files]
        task = Task(tuple(sources), CONNECTIONS, 60)
        samples = bench.compare({name: (name, task) for name in ("ours", "aria2c")})
    ideal = ideal_seconds(LATE_STREAMS, CONNECTIONS, LATE_SECONDS)
    goals = [
        Goal("time / ideal", ratio(median(samples["ours"], download_wall), ideal), high=1.2, unit="×"),
        Goal("time / ideal, aria2c", ratio(median(samples.get("aria2c", ()), wall), ideal), unit="×"),
    ]
    title = f"{LATE_STREAMS} streams of {sized(LATE_BYTES)}, first byte {LATE_SECONDS * 1000:g} ms late"
    title += f", {CONNECTIONS} connections"
    return Outcome("late", title, samples, goals, [f"ideal: {ideal:g} s", *missing(bench.peers, ["aria2c"])])


# ------------------------------------------------------------------------------------------ the limit


def limit(bench: Bench) -> Outcome:
    """The bandwidth limit holds: not above, and not far below."""
    title = f"limit of {LIMIT_BYTES_PER_SECOND / 1e6:g} MB/s"
    if "BILI_MAX_SPEED" not in (Path(bench.peers.product) / "config.py").read_text("utf-8"):
        return Outcome("limit", title, {}, [Goal("speed / limit", None, 0.97, 1.03, "×", "no such setting")])
    size_bytes = LIMIT_BYTES_PER_SECOND * (LIMIT_SECONDS // 4 if bench.quick else LIMIT_SECONDS)
    file = bench.file(size_bytes)
    with ExitStack() as stack:
        door = listener(bench.served)
        serving(bench, stack, door)
        settings = {"BILI_MAX_SPEED": str(LIMIT_BYTES_PER_SECOND)}
        task = Task((file.at(door.url),), CONNECTIONS, 120, settings=settings)
        samples = bench.compare({"ours": ("ours", task)}, warm_up=False, repeats=min(bench.repeats, 3))
    speed = ratio(size_bytes, median(samples["ours"], download_wall))
    goals = [Goal("speed / limit", ratio(speed, LIMIT_BYTES_PER_SECOND), 0.97, 1.03, "×")]
    return Outcome("limit", title, samples, goals)
