"""What a queue of ten million entries costs: bytes of each part, a lease, and what the dashboard asks.

``python -m benchmarks.entries``; ``--entries 100000`` for a quick look. A Valkey of its own is filled with what that
many finished pages, and as many videos that wait, leave behind. They are written with the steps of lua/common.lua that
the verbs are made of (entries.lua): first a sample of them is written by the verbs as well, into another database, and
both must be the same, key by key. The costs are then measured beside those of a small queue, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from config import Settings
from embedded_valkey import environment, find_binary
from model import Page, Result
from parse_ import aid_to_bvid, parse_job_id
from redisConnect import Queue
from store.data import (
    BUCKETS,
    COMMON_KEYS,
    as_json,
    bucket,
    folded_prefix,
    identity_of,
    key,
)
from store.records import path_pattern
from store.scripts import completed

PAGES_AT_ONCE = 2000
FIRST_MS = 1_700_000_000_000
STEP_MS = 37
"""Between two finished pages: 27 a second, a hundred workers."""
FAILED, SOURCES = 100_000, 20_000
"""Of ten million entries; smaller queues have as many as they have room for."""
WORDS = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就"
    "分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
)
"""Titles are 8 to 36 of such characters with a few of ASCII: 22 and 62 bytes on the average."""
CATEGORIES = ("other", "music", "knowledge", "game", "野生技术协会", "科学科普", "财经")
STREAMS = ("1080P AVC · 192K", "720P AVC · 132K", "480P AVC · 132K", "4K HEVC · 192K", "1080P60 AVC · 192K")
TITLES, WORKERS, LISTED = 500, 100, 500
"""So many titles, machines and sources there are."""
SMALL = 10_000
ROUNDS = 15
LEASES = 400
GOAL_RATIO, GOAL_MS, GOAL_SETS_BYTES, GOAL_RECORD_BYTES = 1.2, 50.0, 20.0, 150.0


@dataclass(frozen=True, slots=True)
class Done:
    """A finished video of one page; all of it follows from its number."""

    aid: int
    cid: int
    title: str
    category: str
    worker: str
    streams: str
    source: str
    bytes: int
    seconds: float

    @property
    def bvid(self) -> str:
        """The id of the video."""
        return aid_to_bvid(self.aid)

    @property
    def url(self) -> str:
        """The id of the page's job."""
        return f"{self.bvid}?p=1&cid={self.cid}"

    @property
    def path(self) -> str:
        """Where its file went, by the template that is usual."""
        return f"{self.category}/{self.title} [{self.bvid}].mp4"


@functools.cache
def titles() -> tuple[str, ...]:
    """Return titles to choose from."""
    draw = random.Random(7)
    return tuple(
        "".join(draw.choices(WORDS, k=draw.randint(8, 36))) + draw.choice(("", "", " EP1", " 4K", "!", " (2)"))
        for _number in range(TITLES)
    )


def made(number: int) -> Done:
    """Return the finished page of that number, as entries.lua makes it; ids as the site gives them now."""
    chance = (number * 48271 + 11) % 2147483647
    return Done(
        aid=10**14 + number * 977 + chance % 977,
        cid=28 * 10**9 + number * 211 + chance % 211,
        title=titles()[chance % TITLES],
        category=CATEGORIES[chance // 3 % len(CATEGORIES)],
        worker=f"machine-{chance // 5 % WORKERS}",
        streams=STREAMS[chance // 7 % len(STREAMS)],
        source=f"mid:{chance // 11 % LISTED + 1}" if chance % 2 else "",
        bytes=10**6 + chance,
        seconds=20 + chance // 17 % 40_000 / 10,
    )


def _named(category: str) -> str:
    """Return a category as it is recorded: not where it is the default of the settings."""
    return "" if category == Settings().category else category


# ------------------------------------------------------------------------------------------ a queue of that size


@contextlib.contextmanager
def running(folder: Path, engine: str = "") -> Iterator[str]:
    """A Valkey without a disk: it is its work that is measured, and a disk would hide it; yields its socket."""
    folder.mkdir(parents=True, exist_ok=True)
    socket = folder / "valkey.sock"
    socket.unlink(missing_ok=True)
    command = [engine or find_binary(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    command += ["--dir", str(folder), "--set-max-intset-entries", "512"]
    environ = None if engine else environment()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environ) as process:
        try:
            deadline = time.monotonic() + 20
            while not socket.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield str(socket)
        finally:
            process.terminate()


def connected(socket: str, db: int = 0) -> redis.Redis:
    """Return a connection as the product's own are."""
    return redis.Redis(unix_socket_path=socket, db=db, decode_responses=True, encoding_errors="replace")


class Loader:
    """Writes entries with the functions of lua/common.lua."""

    def __init__(self, connection: redis.Redis) -> None:
        own = Path(__file__).resolve().with_suffix(".lua").read_text("utf-8")
        self._script = connection.register_script(completed(own))
        self._common = [key(name) for name in COMMON_KEYS]
        self._titles: list[str] = []
        for title in titles():
            self._titles += [title, folded_prefix(title)]
            sample = Done(1, 1, title, "", "", "", "", 1, 1.0)
            for category in CATEGORIES:
                self._titles.append(path_pattern(replace(sample, category=category).path, sample.url, title))

    def done(self, first: int, count: int) -> None:
        """Write finished pages: those numbers of them."""
        args: list[str | int] = ["done", first, count, FIRST_MS, STEP_MS, BUCKETS]
        args += [len(CATEGORIES), WORKERS, LISTED, len(STREAMS), *map(_named, CATEGORIES), *STREAMS]
        self._script(keys=self._common, args=[*args, *self._titles])

    def failed(self, kind: str, numbers: Sequence[int]) -> None:
        """Write videos that failed: for good, or until later."""
        keys, args = [], [kind]
        for number in numbers:
            aid = (5 * 10**14 if kind == "dead" else 6 * 10**14) + number * 977
            video, title = identity_of(parse_job_id(aid_to_bvid(aid))), made(number).title
            keys.append(bucket("seen", video))
            code, at_ms = str(-404 - number % 7), FIRST_MS + number if kind == "dead" else 4 * 10**12 + number
            args += [aid_to_bvid(aid), video.member, code, "it is gone", title, folded_prefix(title), str(at_ms)]
        self._script(keys=[*self._common, *keys], args=args)

    def sources(self, numbers: Sequence[int]) -> None:
        """Write ledgers."""
        keys, args = [], ["source"]
        for number in numbers:
            source = f"mid:{10**6 + number}"
            identity = identity_of(parse_job_id(source))
            keys += [bucket("seen", identity), bucket("closed", identity)]
            args += [source, str(number)]
        self._script(keys=[*self._common, *keys], args=args)


def waiting(number: int) -> str:
    """Return the id of a video that waits."""
    return aid_to_bvid(3 * 10**14 + number * 977)


def load_done(socket: str, count: int, until: float = float("inf")) -> bool:
    """Write that many finished pages, those that are not there yet; return whether all are, at a time at the latest."""
    loader, there = Loader(connected(socket)), int(connected(socket).xlen(key("success")))
    for start in range(there, count, PAGES_AT_ONCE):
        if time.monotonic() > until:
            return False
        loader.done(start, min(PAGES_AT_ONCE, count - start))
    return True


def load_waiting(queue: Queue, count: int, until: float = float("inf")) -> bool:
    """Let that many videos wait, those that do not yet; return whether all do, at a time at the latest."""
    for start in range(queue.counts().ready, count, 1000):
        if time.monotonic() > until:
            return False
        queue.add([waiting(number) for number in range(start, min(start + 1000, count))])
    return True


def load_rest(socket: str, entries: int) -> None:
    """Write failures and sources, fewer in a small queue."""
    loader, failed = Loader(connected(socket)), min(FAILED, entries // 10)
    for kind in ("dead", "delayed"):
        for start in range(0, failed, PAGES_AT_ONCE):
            loader.failed(kind, range(start, min(start + PAGES_AT_ONCE, failed)))
    for start in range(0, min(SOURCES, entries // 10), PAGES_AT_ONCE):
        loader.sources(range(start, min(start + PAGES_AT_ONCE, SOURCES, entries // 10)))


# ------------------------------------------------------------------------------------------ is it the same?


def differences(socket: str, settings: Settings, count: int = 300) -> list[str]:
    """Return where what the loader writes is not what the verbs write of the same pages."""
    by_verbs, by_loader = connected(socket, 1), connected(socket, 2)
    for connection in (by_verbs, by_loader):
        connection.flushdb()
    queue = Queue(by_verbs, settings)
    for number in range(count):
        page = made(number)
        queue.add([page.bvid], category=_named(page.category), source=page.source)
        (lease,) = queue.lease(page.worker, 1)
        given = queue.expand(lease.url, lease.token, [Page(1, page.cid, "part")]).lease
        assert given is not None
        queue.ack(given.url, given.token, Result(page.path, page.bytes, page.seconds, page.title, page.streams))
    Loader(by_loader).done(0, count)
    found = [_content(one) for one in (by_verbs, by_loader)]
    for connection in (by_verbs, by_loader):
        connection.flushdb()
    return [name for name in sorted(found[0].keys() | found[1].keys()) if found[0].get(name) != found[1].get(name)]


_OF_THE_RUN = ("answer:", "epoch", "fence", "swept", "grace", "workers", "started", "draining")
"""What says when and by whom it was, and not what there is."""


def _content(connection: redis.Redis) -> dict[str, object]:
    """Return all keys with their content: of records how they are, not when they were made."""
    found: dict[str, object] = {}
    for name in connection.scan_iter(count=1000):
        short = name.partition(":0}:")[2]
        if short.startswith(_OF_THE_RUN):
            continue
        kind = connection.type(name)
        if kind == "stream":
            found[short] = [fields for _entry, fields in connection.xrange(name) or ()]
        elif kind == "hash" and short.startswith("record:"):
            found[short] = sorted(connection.hkeys(name))
        elif kind in ("hash", "string"):
            found[short] = connection.hgetall(name) if kind == "hash" else connection.get(name)
        elif kind == "list":
            found[short] = connection.lrange(name, 0, -1)
        else:
            found[short] = sorted(connection.smembers(name) if kind == "set" else connection.zrange(name, 0, -1))
    return found


# ------------------------------------------------------------------------------------------ bytes


def bytes_of(connection: redis.Redis) -> dict[str, int]:
    """Return how many bytes the keys of each kind take, the place of the key in the dictionary with them."""
    found: dict[str, int] = {}
    for kind in ("seen:c", "done", "record", "seen:v", "closed:v"):
        total = 0
        for start in range(0, BUCKETS, 1024):
            with connection.pipeline(transaction=False) as pipe:
                for number in range(start, start + 1024):
                    pipe.memory_usage(key(f"{kind}:{number}"), samples=0)
                total += sum(size or 0 for size in pipe.execute())
        found[kind] = total
    for name in ("success", "titles", "titled", "words"):
        found[name] = connection.memory_usage(key(name), samples=0) or 0
    return found


# ------------------------------------------------------------------------------------------ time


def lease_microseconds(connection: redis.Redis, queue: Queue) -> float:
    """Return what a lease costs the engine, of many in a row; they are given back then, and the queue is as it was.

    Nothing else is asked between them: the answer to INFO alone makes the allocator begin anew.
    """
    connection.config_resetstat()
    leases = [lease for _lease in range(LEASES) for lease in queue.lease("bench", 1)]
    stats: dict[str, Any] = connection.info("commandstats")
    for lease in leases:
        queue.release(lease.url, lease.token)
    return float(stats["cmdstat_evalsha"]["usec"]) / len(leases)


def lease_ratio(large: str, small: str, settings: Settings) -> dict[str, float]:
    """Return what a lease costs in a large and in a small queue, in turns, as the engine and the client see it."""
    sides = {
        name: (connected(socket), Queue(connected(socket), settings))
        for name, socket in (("large", large), ("small", small))
    }
    engine: dict[str, list[float]] = {name: [] for name in sides}
    client: dict[str, list[float]] = {name: [] for name in sides}
    for connection, queue in sides.values():
        lease_microseconds(connection, queue)  # not counted: what filled the queue has left its holes behind
    for turn in range(ROUNDS):
        for name in sorted(sides, reverse=bool(turn % 2)):
            connection, queue = sides[name]
            engine[name].append(lease_microseconds(connection, queue))
            began = time.perf_counter()
            for _lease in range(LEASES):
                (lease,) = queue.lease("bench", 1)
                queue.release(lease.url, lease.token)
            client[name].append((time.perf_counter() - began) / LEASES * 1e6)
    found = {f"{name}_engine_us": statistics.median(engine[name]) for name in sides}
    found |= {f"{name}_client_us": statistics.median(client[name]) for name in sides}
    pairs = {"engine": engine, "client": client}
    return found | {
        f"{what}_ratio": statistics.median(a / b for a, b in zip(times["large"], times["small"], strict=True))
        for what, times in pairs.items()
    }


def queries(queue: Queue, entries: int) -> dict[str, Callable[[], object]]:
    """Return what the dashboard and its routes ask, by what it is called in the table."""
    middle = made(entries // 2)
    last = made(entries - 1)
    return {
        "counts": queue.counts,
        "one id, finished": lambda: queue.job(middle.url),
        "one id, waiting": lambda: queue.job(waiting(entries // 2)),
        "one id, unknown": lambda: queue.job(aid_to_bvid(7)),
        **{
            f"a page of {state}": functools.partial(queue.jobs, state, limit=100)
            for state in ("ready", "delayed", "dead", "done")
        },
        "a page of done of one category": lambda: queue.jobs("done", category="music", limit=100),
        "the same of one that nobody has": lambda: queue.jobs("done", category="nobody", limit=100),
        "deep in ready": lambda: queue.jobs("ready", after=f"ready {entries // 2} {waiting(entries // 2)}", limit=100),
        "failures by code": queue.failure_groups,
        "failed, a page": lambda: queue.failed("", 100, "-404"),
        "a title's beginning": lambda: queue.jobs(find=last.title[:4], limit=100),
        "a title's first character": lambda: queue.jobs(find=last.title[:1], limit=100),
        "sources, the first": lambda: queue.sources("", 100),
        "sources, further on": lambda: queue.sources("mid:1005000", 100),
        "finished last": lambda: queue.latest_success(8),
        "finished, from the first": lambda: queue.success("", 100),
        "time left": queue.time_left_seconds,
    }


def query_milliseconds(queue: Queue, entries: int, times: int = 15) -> dict[str, dict[str, float]]:
    """Return median and worst time of each question."""
    found = {}
    for name, ask in queries(queue, entries).items():
        took = []
        for _turn in range(times):
            began = time.perf_counter()
            ask()
            took.append((time.perf_counter() - began) * 1000)
        found[name] = {"median_ms": round(statistics.median(took), 2), "worst_ms": round(max(took), 2)}
    return found


# ------------------------------------------------------------------------------------------ all of it


def sockets(folder: Path) -> tuple[str, str]:
    """Return where the large and the small queue are reached."""
    return str(folder / "large" / "valkey.sock"), str(folder / "small" / "valkey.sock")


def serve(folder: Path, engine: str) -> None:
    """Keep both engines running until a signal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    large, small = (running(folder / name, engine) for name in ("large", "small"))
    with contextlib.suppress(KeyboardInterrupt), large, small:
        print("ready", flush=True)
        while True:
            time.sleep(3600)


def fill(folder: Path, entries: int, seconds: float = float("inf")) -> bool:
    """Fill both queues, and note what each part of the large one took; return whether that is done.

    With a limit of seconds it goes on the next time where it stopped.
    """
    settings, (large, small), until = Settings(data_dir=folder / "data"), sockets(folder), time.monotonic() + seconds
    noted, engine = folder / "sizes.json", connected(large)
    sizes: dict[str, Any] = json.loads(noted.read_text()) if noted.exists() else {}
    if not sizes:
        if wrong := differences(small, settings):
            sys.exit(f"the loader does not write what the verbs write: {', '.join(wrong[:10])}")
        sizes["empty"] = engine.info("memory")["used_memory"]
        noted.write_text(json.dumps(sizes))
    if "done" not in sizes:
        if not load_done(large, entries, until):
            return False
        sizes |= {"done": engine.info("memory")["used_memory"], "parts": bytes_of(engine)}
        noted.write_text(json.dumps(sizes))
    if not load_waiting(Queue(connected(large), settings), entries, until):
        return False
    sizes["ready"] = engine.info("memory")["used_memory"]
    load_rest(large, entries)
    load_done(small, SMALL)
    load_waiting(Queue(connected(small), settings), SMALL)
    load_rest(small, SMALL)
    noted.write_text(json.dumps(sizes))
    return True


def measure(folder: Path, entries: int) -> dict[str, Any]:
    """Return all figures of the queues that ``prepare`` has filled."""
    settings = Settings(data_dir=folder / "data")
    large, small = sockets(folder)
    sizes = json.loads((folder / "sizes.json").read_text())
    parts = {name: round(size / entries, 2) for name, size in sizes["parts"].items()}
    page, waits = ((sizes[a] - sizes[b]) / entries for a, b in (("done", "empty"), ("ready", "done")))
    return {
        "entries": entries,
        "bytes": {**parts, "all of a finished page": round(page, 1), "a waiting video": round(waits, 1)},
        "seen_and_done_bytes": round(parts["seen:c"] + parts["done"], 1),
        "record_bytes": round(parts["success"], 1),
        "lease": {name: round(value, 3) for name, value in lease_ratio(large, small, settings).items()},
        "queries": query_milliseconds(Queue(connected(large), settings), entries),
    }


def goals(found: dict[str, Any]) -> dict[str, bool]:
    """Return which goals are met."""
    return {
        f"seen and done ≤ {GOAL_SETS_BYTES:g} bytes": found["seen_and_done_bytes"] <= GOAL_SETS_BYTES,
        f"a record ≤ {GOAL_RECORD_BYTES:g} bytes": found["record_bytes"] <= GOAL_RECORD_BYTES,
        f"a lease ≤ {GOAL_RATIO:g} times": found["lease"]["engine_ratio"] <= GOAL_RATIO,
        f"each question ≤ {GOAL_MS:g} ms": all(one["worst_ms"] <= GOAL_MS for one in found["queries"].values()),
    }


def main() -> int:
    """Fill, measure and print as JSON; or only one of both, where a lock of the machine is held for measuring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.entries", description=__doc__)
    parser.add_argument("--entries", type=int, default=10**7, metavar="N", help="finished pages, and as many that wait")
    parser.add_argument("--folder", type=Path, help="where the queues are; a folder of its own, if not given")
    parser.add_argument(
        "--engine", default="", metavar="PATH", help="a redis-server or valkey-server; the embedded one"
    )
    parser.add_argument("--serve", action="store_true", help="run the engines in --folder, and nothing else")
    parser.add_argument("--fill", action="store_true", help="fill what another process serves in --folder")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="fill for so long, and go on the next time")
    parser.add_argument("--measure", action="store_true", help="measure what another process serves in --folder")
    options = parser.parse_args()
    if options.serve or options.fill:
        if options.serve:
            serve(options.folder, options.engine)
            return 0
        return 0 if fill(options.folder, options.entries, options.seconds) else 3
    if options.measure:
        found = measure(options.folder, options.entries)
    else:
        with tempfile.TemporaryDirectory(prefix="entries") as name:
            command = [sys.executable, "-m", "benchmarks.entries", "--serve", "--folder", name]
            command += ["--engine", options.engine]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                try:
                    assert process.stdout is not None and process.stdout.readline() == "ready\n"
                    fill(Path(name), options.entries)
                    found = measure(Path(name), options.entries)
                finally:
                    process.terminate()
    found["goals"] = goals(found)
    print(as_json(found))
    return 0 if all(found["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
