"""The queue when its engine, its server or the way between them fails: each fault is really made.

Whatever happens, every accepted job is in exactly one state, what was acknowledged is there, and nothing counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import redis
from flask.testing import FlaskClient

import embedded_valkey
from config import Settings
from demo.catalogue import video
from demo.process import SiteProcess
from download_scheduler import Scheduler
from errors import EngineError, EngineFull, ServerUnreachable, StaleToken
from model import MIB, Counts, Expanded, Failure, Lease, Leased, Page, Result
from pace import Pace
from parse_ import aid_to_bvid, bvid_to_aid
from queue_client import QueueClient
from redisConnect import Queue, open_queue
from store.data import BUCKETS
from tests import structure
from tests.conftest import engine_binary
from tests.farm import Farm, free_port, wait_until
from tests.relay import Relay
from web import create_app
from web_server import tick

TRANSIENT = Failure("transient", "-500", "the site stumbled")
PERMANENT = Failure("permanent", "-404", "deleted")
ENVIRONMENT = Failure("environment", "disk-full", "no room")
PASSWORD = "0" * 48


def videos(start: int, count: int) -> list[str]:
    return [aid_to_bvid(aid) for aid in range(start, start + count)]


def pages(*cids: int) -> list[Page]:
    return [Page(number, cid, f"part {number}") for number, cid in enumerate(cids, 1)]


def result(cid: int) -> Result:
    return Result(f"other/{cid}.mp4", 1000 + cid, 12.5, f"title {cid}")


def cid_of(lease: Lease) -> int:
    return int(lease.url.split("cid=")[1])


def key(name: str) -> str:
    return f"{{bili:0}}:{name}"


def dump(connection: redis.Redis, *without: str) -> dict[bytes, bytes]:
    """Return everything that the database holds, but for some keys."""
    left_out = {key(name).encode() for name in without}
    options = {**connection.connection_pool.connection_kwargs, "decode_responses": False}
    pool = redis.ConnectionPool(connection_class=connection.connection_pool.connection_class, **options)
    with contextlib.closing(redis.Redis(connection_pool=pool)) as raw:
        return {name: raw.dump(name) for name in raw.scan_iter(count=1000) if name not in left_out}


def places(connection: redis.Redis) -> Counter[str]:
    """Return how often each unfinished job stands somewhere."""
    return Counter(url for urls in structure.places(connection).values() for url in urls)


def failed(connection: redis.Redis, count: int = 0) -> list[str]:
    """Return the ids of so many jobs that failed, all with 0."""
    return [member.rpartition("\0")[2] for member in connection.zrange(key("failures"), 0, count - 1)]


def assert_sound(connection: redis.Redis) -> None:
    """Assert what is true of the queue at every moment."""
    standing = places(connection)
    assert not [url for url, count in standing.items() if count > 1], "a job in two places"
    leased = set(connection.zrange(key("leased"), 0, -1))
    assert set(connection.hgetall(key("token"))) == leased, "a token for each lease"
    assert sum(map(int, connection.hvals(key("holds")))) == len(leased)
    assert sorted(failed(connection)) == sorted(
        [*connection.zrange(key("delayed"), 0, -1), *connection.zrange(key("dead"), 0, -1)]
    )
    done = [fields["url"] for _entry, fields in connection.xrange(key("success"))]
    assert len(done) == len(set(done)) == int(connection.hget(key("totals"), "done") or 0), "a record for each page"
    for url in set(done) & set(standing):
        tries = json.loads(connection.hget(key("tries"), url) or "{}")
        assert tries.get("recorded"), "a page that is recorded is wanted no more: at most it waits to be left out"


def page_leases(queue: Queue, aids: range, worker: str = "w1") -> list[Lease]:
    """Add videos of one page each, whose cids are their aids; return the leases of the pages."""
    queue.add([aid_to_bvid(aid) for aid in aids])
    given = []
    while leases := queue.lease(worker, 64):
        for lease in leases:
            page = queue.expand(lease.url, lease.token, pages(bvid_to_aid(lease.url))).lease
            assert page is not None
            given.append(page)
    assert len(given) == len(aids)
    return given


# ------------------------------------------------------------------------------------------ an engine to be hurt


def redis_7(folder: Path) -> str:
    """Return Debian's Redis 7: its tools have the server's program under another name."""
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    assert program, "Redis 7 is missing: tests/install_debian_packages.sh installs redis-tools"
    server = folder / "redis-server"
    server.symlink_to(program)
    return str(server)


def tool(name: str) -> str:
    program = shutil.which(name)
    assert program, f"{name} is missing: tests/install_debian_packages.sh installs it"
    return program


@dataclass
class Engine:
    """A Valkey of the test's own, with the product's own configuration but for ``changes``, to be killed at will."""

    folder: Path
    binary: str = field(default_factory=engine_binary)
    prefix: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    data: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.socket = str(self.folder / "valkey.sock")
        self.url = f"unix://:{PASSWORD}@{self.socket}"
        self.connection = redis.Redis(
            unix_socket_path=self.socket, password=PASSWORD, decode_responses=True, encoding_errors="replace"
        )

    def start(self) -> Engine:
        lines = dict(line.split(" ", 1) for line in embedded_valkey.CONFIG.format(password=PASSWORD).splitlines())
        lines |= {"unixsocket": self.socket, "dir": str(self.data or self.folder), **self.changes}
        config = self.folder / "engine.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        with (self.folder / "stderr").open("ab") as output:
            self.process = subprocess.Popen(
                [*self.prefix, self.binary, str(config)],
                cwd=self.folder,
                env={**os.environ, **self.environ},
                stdout=subprocess.DEVNULL,
                stderr=output,
            )
        wait_until("the engine answers", self.answers, 30)
        return self

    def answers(self) -> bool:
        assert self.process and self.process.poll() is None, "the engine ended"
        with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError):
            return bool(self.connection.ping())
        return False

    def pid(self) -> int:
        """Return the process id of the server itself, not of what it runs under."""
        return int(self.connection.info("server")["process_id"])

    def queue(self, settings: Settings | None = None, **changes: Any) -> Queue:
        return open_queue(replace(settings or Settings(), redis_url=self.url, **changes))

    def kill(self, pid: int = 0) -> None:
        """Kill the server, by ``pid`` where it runs under a program that ends with it."""
        if self.process and self.process.poll() is None:
            os.kill(pid or self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        self.process = None
        self.connection.connection_pool.disconnect()


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Start engines in folders whose names are short enough for a socket; whatever they run under ends, too."""
    made: list[Engine] = []
    with tempfile.TemporaryDirectory(prefix="bili-") as folder:

        def make(**options: Any) -> Engine:
            own = Path(folder) / str(len(made))
            own.mkdir()
            made.append(Engine(own, **options))
            return made[-1].start()

        yield make
        for engine in made:
            if engine.process and engine.process.poll() is None:
                pid = engine.process.pid
                with contextlib.suppress(redis.RedisError):
                    pid = engine.pid()
                engine.kill(pid)
            engine.connection.close()


# ------------------------------------------------------------------------------------------ killed while it syncs


class Ledger:
    """Clients that use the queue without a pause, and write down what it acknowledged."""

    def __init__(self, queue: Queue, first_aid: int = 1) -> None:
        self.added: set[str] = set()
        self.done: set[int] = set()
        self._queue = queue
        self._next = first_aid
        self._lock = threading.Lock()

    def number(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def work(self, name: str) -> None:
        """Add, lease, expand and acknowledge until the engine is gone."""
        with contextlib.suppress(EngineError):
            while True:
                bvid = aid_to_bvid(self.number())
                self._queue.add([bvid])
                self.added.add(bvid)
                for lease in self._queue.lease(name, 1):
                    page = self._queue.expand(lease.url, lease.token, pages(bvid_to_aid(lease.url))).lease
                    assert page is not None
                    self._queue.ack(page.url, page.token, result(cid_of(page)))
                    self.done.add(cid_of(page))

    def lost(self, connection: redis.Redis) -> tuple[list[str], list[int]]:
        """Return what was acknowledged, but is not there."""
        aids = {bvid: bvid_to_aid(bvid) for bvid in self.added}
        with connection.pipeline(transaction=False) as pipe:
            for aid in aids.values():
                pipe.sismember(key(f"seen:v:{aid % BUCKETS}"), str(aid))
            for cid in self.done:
                pipe.sismember(key(f"done:{cid % BUCKETS}"), str(cid))
            known = pipe.execute()
        missing = [what for what, there in zip([*aids, *self.done], known, strict=True) if not there]
        return [w for w in missing if isinstance(w, str)], [w for w in missing if isinstance(w, int)]


def slow_sync(trace: Path, delay_ms: int) -> tuple[str, ...]:
    """Return the command under which each fdatasync takes so much longer."""
    return (
        *(tool("strace"), "-f", "-qq", "--seccomp-bpf", "-A", "-o", str(trace), "-e", "trace=fdatasync,fsync"),
        *("-e", f"inject=fdatasync,fsync:delay_enter={delay_ms * 1000}"),
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_engine_killed_while_it_syncs_slowly_has_everything_that_was_acknowledged(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    engine = make_engine(prefix=slow_sync(trace, 1500))
    ledgers: list[Ledger] = []
    for turn in range(2):
        queue = engine.queue()
        ledger = Ledger(queue, 100_000 * (turn + 1))
        ledgers.append(ledger)
        pid = engine.pid()
        threads = [threading.Thread(target=ledger.work, args=(f"w{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        wait_until("some work is acknowledged", lambda ledger=ledger: len(ledger.done) >= 8)
        # In the middle of a sync, when its answers are still to be given: none may come before it has ended.
        wait_until("a sync is under way", lambda pid=pid: in_sync(pid))
        acknowledge_more(ledger, 50, 1.0)
        engine.kill(pid)
        for thread in threads:
            thread.join()
        queue.close()
        engine.start()
        for earlier in ledgers:
            assert earlier.lost(engine.connection) == ([], [])
        assert_sound(engine.connection)
    assert "fdatasync" in trace.read_text()
    unfinished = [ledger for ledger in ledgers if len(ledger.added) < ledger._next]
    assert unfinished, "nothing was in flight"


def in_sync(pid: int) -> bool:
    """Tell whether a thread of a process is held by its tracer, which delays nothing but syncs."""
    return any("\nState:\tt" in path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))


def acknowledge_more(ledger: Ledger, count: int, seconds: float) -> None:
    """Wait until an engine that answers during a sync has acknowledged so much more; one that does not never will."""
    enough, deadline = len(ledger.added) + count, time.monotonic() + seconds
    while len(ledger.added) < enough and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_kill_does_lose_something_where_each_second_is_synced(make_engine: MakeEngine, tmp_path: Path) -> None:
    """What the test above would see: with everysec the engine answers for what it has not even written."""
    engine = make_engine(prefix=slow_sync(tmp_path / "trace", 1800), changes={"appendfsync": "everysec"})
    queue = engine.queue()
    assert any("appendfsync always" in sentence for sentence in queue.unsafe())
    ledger = Ledger(queue)
    pid = engine.pid()
    threads = [threading.Thread(target=ledger.work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()

    def has_unwritten() -> bool:
        return int(engine.connection.info("persistence")["aof_buffer_length"]) > 10_000

    wait_until("what was acknowledged waits to be written", has_unwritten)
    engine.kill(pid)
    for thread in threads:
        thread.join()
    queue.close()
    engine.prefix = ()
    engine.start()
    added, done = ledger.lost(engine.connection)
    assert added and done, f"{len(ledger.added)} were added, {len(ledger.done)} recorded, and none was lost"
    assert_sound(engine.connection)


# ------------------------------------------------------------------------------------------ memory is full


@pytest.fixture(params=["valkey", pytest.param("redis 7", marks=pytest.mark.slow)])
def small_engine(request: pytest.FixtureRequest, make_engine: MakeEngine, tmp_path: Path) -> Engine:
    """An engine without a disk whose memory can be made too small: what a user brings, and ours."""
    binary = redis_7(tmp_path) if request.param == "redis 7" else engine_binary()
    return make_engine(binary=binary, changes={"appendonly": "no"})


def fill_memory(connection: redis.Redis) -> None:
    connection.config_set("maxmemory", 1)


def free_memory(connection: redis.Redis) -> None:
    connection.config_set("maxmemory", 0)


def of(lease: Lease, **more: Any) -> dict[str, Any]:
    return {"url": lease.url, "token": lease.token, **more}


def calls_of_a_farm(queue: Queue) -> dict[str, tuple[str, Any]]:
    """Bring a queue into a state in which each verb has something to do; return such calls: path, body."""
    queue.add(videos(1, 12))
    containers = queue.lease("w1", 9, request="first")
    held = [queue.expand(one.url, one.token, pages(100 + n, 200 + n)).lease for n, one in enumerate(containers[:7])]
    acked, nacked, buried, released, beaten, dead, replayed = [lease for lease in held if lease is not None]
    queue.nack(dead.url, dead.token, PERMANENT)
    failure = {"code": "-500", "reason": "the site stumbled"}
    new_pages = [{"number": n, "cid": 300 + n, "title": "t"} for n in (1, 2, 3)]
    return {
        "add": ("/add_url", {"urls": videos(50, 3)}),
        "add, known and new": ("/add_url", {"urls": [*videos(1, 1), *videos(60, 1)], "category": "music"}),
        "add, refresh": ("/add_url", {"urls": [containers[0].url], "refresh": True}),
        "lease": ("/get_url?worker=w1&count=2", None),
        "lease by a new worker": ("/get_url?worker=w2&count=2", None),
        "lease, repeated": ("/get_url?worker=w1&count=9&request=first", None),
        "heartbeat": (
            "/heartbeat",
            {"worker": "w1", "jobs": [of(beaten, progress={"chunks": True}), {"url": beaten.url, "token": "none"}]},
        ),
        "expand": ("/expand", of(containers[7], title="t", pages=new_pages)),
        "expand, more follows": ("/expand", of(containers[8], title="t", pages=new_pages, more=True)),
        "ack": ("/ack", of(acked, path="other/a.mp4", bytes=5, seconds=1.5)),
        "nack": ("/nack", of(nacked, **failure) | {"class": "transient"}),
        "nack, permanent": ("/nack", of(buried, **failure) | {"class": "permanent"}),
        "release": ("/release", of(released)),
        "redrive": ("/redrive", {"urls": [dead.url]}),
        "redrive, all": ("/redrive", {"all": True}),
        "replay": (
            "/replay",
            {"worker": "w3", "results": [told(replayed.url), told(f"{videos(90, 1)[0]}?p=1&cid=90")]},
        ),
    }


def told(url: str) -> dict[str, Any]:
    return {"url": url, "path": "other/b.mp4", "bytes": 5, "seconds": 1.5}


CALLS = (
    *("add", "add, known and new", "add, refresh", "lease", "lease by a new worker", "lease, repeated", "heartbeat"),
    *("expand", "expand, more follows", "ack", "nack", "nack, permanent", "release", "redrive", "redrive, all"),
    "replay",
)
TAKE_NOTHING_NEW = {"heartbeat", "ack", "nack", "nack, permanent", "release", "redrive", "redrive, all"}
"""What lets running work end and frees memory goes on where it is full."""


def ask(client: FlaskClient, path: str, body: Any) -> Any:
    return client.get(path) if body is None else client.post(path, json=body)


def assert_whole_or_nothing(engine: Engine, client: FlaskClient, name: str, path: str, body: Any) -> int:
    """Ask with the memory as it is; a call that is refused changes nothing, one that is not is done."""
    before = dump(engine.connection)
    answer = ask(client, path, body)
    assert_sound(engine.connection)
    if answer.status_code == 503:
        assert "memory" in answer.json["error"] and "full" in answer.json["error"], answer.text
        assert "script" not in answer.json["error"] and PASSWORD not in answer.text
        assert int(answer.headers["Retry-After"]) > 0
        assert dump(engine.connection) == before, f"{name} was refused, but did something"
    else:
        assert answer.status_code == 200, answer.text
    return int(answer.status_code)


@pytest.mark.parametrize("name", CALLS)
def test_with_full_memory_no_verb_is_half_done(small_engine: Engine, name: str) -> None:
    with contextlib.closing(small_engine.queue(lease_seconds=60.0)) as queue:
        client = create_app(Settings(), queue).test_client()
        path, body = calls_of_a_farm(queue)[name]
        fill_memory(small_engine.connection)
        status = assert_whole_or_nothing(small_engine, client, name, path, body)
        if name in TAKE_NOTHING_NEW:
            assert status == 200, "what ends work must not wait for room"
        elif name != "lease":
            assert status == 503
        free_memory(small_engine.connection)
        assert ask(client, path, body).status_code == 200
        assert_sound(small_engine.connection)


def test_at_the_very_limit_of_memory_no_verb_is_half_done(small_engine: Engine) -> None:
    """The limit is set so closely that it is met in the middle of a script."""
    met = Counter[int]()
    with contextlib.closing(small_engine.queue(lease_seconds=60.0)) as queue:
        client = create_app(Settings(), queue).test_client()
        for spare_bytes in range(-4000, 8000, 1000):
            for name in CALLS:
                small_engine.connection.flushall()
                path, body = calls_of_a_farm(queue)[name]
                used_bytes = int(small_engine.connection.info("memory")["used_memory"])
                small_engine.connection.config_set("maxmemory", used_bytes + spare_bytes)
                met[assert_whole_or_nothing(small_engine, client, name, path, body)] += 1
                free_memory(small_engine.connection)
    assert met[503] > 10 and met[200] > 10


@pytest.mark.slow
def test_with_full_memory_leases_are_kept_and_no_death_is_counted(
    small_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Sweeps go on as the server makes them, so that each term would end with a death if a beat were refused."""
    settings = Settings(lease_seconds=1.0, affinity_seconds=0.0)
    with contextlib.closing(small_engine.queue(settings)) as queue:
        (held,) = page_leases(queue, range(7, 8))
        fill_memory(small_engine.connection)
        with ticking(queue, 0.05), beating(queue, held) as beats:
            wait_until("beats of four terms", lambda: len(beats) > 40, 30)
            assert not any(beats)
            with pytest.raises(EngineFull, match="memory"):
                queue.add(videos(50, 1))
            client = create_app(settings, queue).test_client()
            health = client.get("/healthz")
            assert (health.status_code, "full" in (health.json or {})["error"]) == (503, True)
            page = client.get("/?fragment")
            assert page.status_code == 200, "it can be read all the same"
            assert "takes no new jobs" in page.text and "maxmemory" in page.text
            assert queue.ack(held.url, held.token, result(7)) == "done"
            free_memory(small_engine.connection)
            assert queue.add(videos(50, 1)).added == 1
            wait_until("the tick's good news", lambda: "is back" in caplog.text, 10)
            assert client.get("/healthz").status_code == 200
            wait_until("it is unsaid", lambda: "takes no new jobs" not in client.get("/?fragment").text, 10)
        assert queue.counts() == Counts(1, 0, 0, 1, 0)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([sentence for sentence in said if "memory" in sentence and "full" in sentence]) == 1, (
        "once, not each second"
    )


def test_a_server_starts_with_full_memory_and_takes_what_workers_have_to_tell(
    small_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(small_engine.queue()) as queue:
        (held,) = page_leases(queue, range(7, 8))
    fill_memory(small_engine.connection)
    with contextlib.closing(small_engine.queue()) as queue:
        assert "maxmemory" in caplog.text
        assert queue.ack(held.url, held.token, result(7)) == "done"


# ------------------------------------------------------------------------------------------ the disk is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [tool("mount"), "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    assert subprocess.run(mount, check=False).returncode == 0, "mounting needs root"
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path) -> None:
    with (folder / "ballast").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
            file.flush()
    assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize < 65536


def free_disk(folder: Path) -> None:
    (folder / "ballast").unlink()


def long_text(n: int) -> str:
    return f"{n:06} " + "x" * 150


@pytest.mark.slow
def test_the_embedded_engine_ends_on_a_full_disk_says_so_and_has_everything_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    from tests.test_web_server import serving

    added: set[str] = set()

    def add(aid: int) -> tuple[int, Any]:
        status, answer = server.ask("/add_url", {"urls": videos(aid, 1), "source": long_text(aid)})
        if status == 200:
            assert answer["added"] == 1
            added.add(aid_to_bvid(aid))
        return status, answer

    with serving(tmp_path, BILI_DATA_DIR=str(small_disk / "data")) as server:
        for aid in range(1, 200):
            assert add(aid)[0] == 200
        engine = small_disk / "data" / "valkey"
        before = engine_pids(engine)
        assert len(before) == 1
        fill_disk(small_disk)
        refused = next(answer for aid in range(200, 5000) if (answer := add(aid))[0] != 200)
        assert refused[0] == 503
        wait_until("the engine has ended", lambda: not set(before) & set(engine_pids(engine)), 10)
        status, answer = add(5001)
        assert (status, "is full" in answer["error"], "make room" in answer["error"]) == (503, True, True), answer
        assert (
            server.ask("/ack", {"url": "BV1xx411c7mD?p=1&cid=1", "token": "t", "path": "p", "bytes": 1, "seconds": 1})[
                0
            ]
            == 503
        )
        status, answer = server.ask("/healthz")
        assert (status, "full" in answer["error"]) == (503, True), answer
        log = tmp_path / "server.log"
        wait_until("the tick says so", lambda: "WARNING The disk" in log.read_text(), 10)
        assert fragment(server) == (503, True)
        free_disk(small_disk)
        wait_until("it works again", lambda: server.ask("/healthz")[0] == 200, 30)
        wait_until("the good news", lambda: "is back" in log.read_text(), 30)
        assert add(5002)[0] == 200
        found = set(ready_of(Settings(data_dir=small_disk / "data")))
        assert added <= found, f"{len(added - found)} of {len(added)} are lost"
        assert server.ask("/status")[1]["jobs"]["ready"] == len(found), "each of them once"
        assert "Traceback" not in log.read_text()
        server.process.terminate()
        assert server.process.wait(20) == 0
    wait_until("nothing is left behind", lambda: not engine_pids(engine), 20)


def engine_pids(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (entry / "cwd").readlink() == folder and (entry / "comm").read_text().strip() == "valkey-server":
                found.append(int(entry.name))
    return found


def fragment(server: Any) -> tuple[int, bool]:
    import http.client

    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as peer:
        peer.request("GET", "/?fragment")
        answer = peer.getresponse()
        return answer.status, "is full" in answer.read().decode()


def ready_of(settings: Settings) -> list[str]:
    with contextlib.closing(open_queue(settings)) as queue:
        found: list[str] = queue._redis.lrange(key("ready"), 0, -1)
        return found


@pytest.mark.slow
@pytest.mark.parametrize("brand", ["valkey", "redis 7"])
def test_an_engine_that_goes_on_with_a_full_disk_refuses_and_the_server_says_so(
    brand: str, make_engine: MakeEngine, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A user's own Redis with everysec does not end, it refuses to write (MISCONF)."""
    binary = redis_7(tmp_path) if brand == "redis 7" else engine_binary()
    engine = make_engine(binary=binary, data=small_disk, changes={"appendfsync": "everysec"})
    with contextlib.closing(engine.queue()) as queue:
        client = create_app(Settings(), queue).test_client()
        (held,) = page_leases(queue, range(7, 8))
        fill_disk(small_disk)

        def refused(aid: int) -> bool:
            answer = client.post("/add_url", json={"urls": videos(aid, 1), "source": long_text(aid)})
            time.sleep(0.001)
            return answer.status_code != 200

        last = next(aid for aid in range(100, 20_000) if refused(aid))
        before = dump(engine.connection)
        calls = calls_of_no_use(held, videos(30_000, 1)[0])
        for path, body in calls.items():
            answer = ask(client, path, body)
            assert answer.status_code == 503, (path, answer.text)
            assert "cannot write to its disk" in answer.json["error"] and answer.headers["Retry-After"], answer.text
        with pytest.raises(EngineFull, match="disk"):
            queue.sweep()
        assert dump(engine.connection) == before
        health = client.get("/healthz")
        assert (health.status_code, "disk is full" in (health.json or {})["error"]) == (503, True)
        page = client.get("/?fragment")
        assert (page.status_code, "cannot write to its disk" in page.text) == (200, True)
        free_disk(small_disk)
        wait_until("it writes again", lambda: client.get("/healthz").status_code == 200, 30)
        assert client.post("/ack", json=calls["/ack"]).status_code == 200
        assert queue.counts() == Counts(last - 100, 0, 0, 1, 0)
        buffered = lambda: int(engine.connection.info("persistence")["aof_buffer_length"])  # noqa: E731
        wait_until("all is written", lambda: buffered() == 0, 10)
    engine.kill(engine.pid())
    engine.start()
    with contextlib.closing(engine.queue()) as queue:
        assert queue.counts() == Counts(last - 100, 0, 0, 1, 0)
    assert_sound(engine.connection)


def calls_of_no_use(held: Lease, container: str) -> dict[str, Any]:
    """Return a call of each verb, of which none but add and ack has something to do."""
    return {
        "/add_url": {"urls": [container]},
        "/get_url?worker=w9": None,
        "/heartbeat": {"worker": "w1", "jobs": [of(held)]},
        "/ack": of(held, path="other/a.mp4", bytes=5, seconds=1.5),
        "/nack": of(held, code="x", reason="y") | {"class": "transient"},
        "/release": of(held),
        "/redrive": {"urls": [container]},
    }


# ------------------------------------------------------------------------------------------ late and repeated calls


@pytest.fixture
def client(queue: Queue, settings: Settings) -> FlaskClient:
    return create_app(settings, queue).test_client()


def let_run_out(queue: Queue, connection: redis.Redis, *urls: str) -> None:
    for url in urls:
        connection.zadd(key("leased"), {url: 1})
    queue.sweep()


@pytest.mark.parametrize("now", ["ready", "leased", "delayed", "dead", "done"])
def test_whoever_lost_a_lease_changes_nothing_wherever_the_job_is_now(
    queue: Queue, connection: redis.Redis, client: FlaskClient, now: str
) -> None:
    (old,) = page_leases(queue, range(7, 8))
    (other,) = page_leases(queue, range(8, 9), "w2")
    let_run_out(queue, connection, old.url)
    if now != "ready":
        (new,) = queue.lease("w2", 1)
        assert new.url == old.url
        verbs: dict[str, Callable[[], object]] = {
            "leased": lambda: None,
            "delayed": lambda: queue.nack(new.url, new.token, TRANSIENT),
            "dead": lambda: queue.nack(new.url, new.token, PERMANENT),
            "done": lambda: queue.ack(new.url, new.token, result(7)),
        }
        verbs[now]()
    before = dump(connection)
    for token in (old.token, other.token, old.token + "0", "x"):
        late = {"url": old.url, "token": token}
        for path, body in (
            ("/ack", late | {"path": "other/late.mp4", "bytes": 1, "seconds": 1.0}),
            ("/nack", late | {"class": "permanent", "code": "late", "reason": "late"}),
            ("/nack", late | {"class": "transient", "code": "late", "reason": "late"}),
            ("/nack", late | {"class": "environment", "code": "late", "reason": "late"}),
            ("/release", late),
        ):
            answer = client.post(path, json=body)
            assert (answer.status_code, "has moved on" in answer.json["error"]) == (409, True), answer.text
    assert dump(connection) == before
    assert_sound(connection)


@pytest.mark.parametrize("now", ["ready", "leased", "closed"])
def test_whoever_lost_the_lease_of_a_container_adds_no_page(
    queue: Queue, connection: redis.Redis, client: FlaskClient, now: str
) -> None:
    queue.add(videos(1, 1))
    (old,) = queue.lease("w1", 1)
    let_run_out(queue, connection, old.url)
    if now != "ready":
        (new,) = queue.lease("w2", 1)
        if now == "closed":
            queue.expand(new.url, new.token, pages(1, 2))
    before = dump(connection)
    for more in (False, True):
        body = of(old, title="t", pages=[{"number": 9, "cid": 99, "title": "t"}], more=more)
        assert client.post("/expand", json=body).status_code == 409
    assert dump(connection) == before


def test_the_heartbeat_of_a_lost_lease_is_told_so_and_keeps_nothing(
    queue: Queue, connection: redis.Redis, client: FlaskClient
) -> None:
    (old,) = page_leases(queue, range(7, 8))
    let_run_out(queue, connection, old.url)
    (new,) = queue.lease("w2", 1)
    first = {"worker": "w1", "jobs": [of(old, progress={"chunks": True, "streams": [{"done_bytes": 5}]})]}
    assert client.post("/heartbeat", json=first).json["lost"] == [old.url]  # that death is taken off again
    before = dump(connection, "workers", "status")
    for _turn in range(3):
        assert client.post("/heartbeat", json=first).json["lost"] == [old.url]
    assert dump(connection, "workers", "status") == before
    assert queue.ack(new.url, new.token, result(7)) == "done"


@dataclass(frozen=True)
class Repeated:
    """A call that is delivered several times at once, and what there must be afterwards, as if it came once."""

    call: Callable[[Queue], Callable[[], object]]
    after: Counts
    attempts: int = 0


def held_page(queue: Queue) -> Lease:
    (lease,) = page_leases(queue, range(7, 8))
    return lease


def leasing(queue: Queue) -> Callable[[], object]:
    queue.add(videos(1, 5))
    return lambda: queue.lease("w1", 2, request="r")


def expanding(queue: Queue) -> Callable[[], object]:
    queue.add(videos(1, 1))
    (lease,) = queue.lease("w1", 1)
    return lambda: queue.expand(lease.url, lease.token, pages(11, 12, 13))


def ending(verb: Callable[[Queue, Lease], object]) -> Callable[[Queue], Callable[[], object]]:
    def prepare(queue: Queue) -> Callable[[], object]:
        lease = held_page(queue)
        return lambda: verb(queue, lease)

    return prepare


REPEATED = {
    "add": Repeated(lambda queue: lambda: queue.add(videos(1, 3), request="r"), Counts(3, 0, 0, 0, 0)),
    "lease": Repeated(leasing, Counts(3, 2, 0, 0, 0)),
    "expand": Repeated(expanding, Counts(2, 1, 0, 0, 0)),
    "ack": Repeated(ending(lambda q, one: q.ack(one.url, one.token, result(7))), Counts(0, 0, 0, 1, 0)),
    "release": Repeated(ending(lambda q, one: q.release(one.url, one.token)), Counts(1, 0, 0, 0, 0)),
    "nack": Repeated(ending(lambda q, one: q.nack(one.url, one.token, TRANSIENT)), Counts(0, 0, 1, 0, 0), 1),
    "bury": Repeated(ending(lambda q, one: q.nack(one.url, one.token, PERMANENT)), Counts(0, 0, 0, 0, 1), 1),
    "nack environment": Repeated(ending(lambda q, one: q.nack(one.url, one.token, ENVIRONMENT)), Counts(1, 0, 0, 0, 0)),
    "heartbeat": Repeated(
        ending(lambda q, one: q.heartbeat("w1", [(one.url, one.token, 5)], {})), Counts(0, 1, 0, 0, 0)
    ),
}


@pytest.mark.parametrize("times", [2, 3, 8])
@pytest.mark.parametrize("name", REPEATED)
def test_a_call_that_arrives_several_times_at_once_counts_once(
    queue: Queue, connection: redis.Redis, name: str, times: int
) -> None:
    wanted = REPEATED[name]
    for _turn in range(10):
        connection.flushall()
        call = wanted.call(queue)
        fence = int(connection.get(key("fence")) or 0)
        start = threading.Barrier(times)

        def one(_n: int, start: threading.Barrier = start, call: Callable[[], object] = call) -> object:
            start.wait()
            return call()

        with ThreadPoolExecutor(times) as pool:
            answers = list(pool.map(one, range(times)))
        assert all(answer == answers[0] for answer in answers), "the same answer to each"
        assert call() == answers[0], "and to one that comes later"
        assert queue.counts() == wanted.after
        assert_sound(connection)
        tries = [json.loads(text) for text in connection.hvals(key("tries"))]
        assert sum(one["attempts"] for one in tries) == wanted.attempts
        assert sum(one["deaths"] for one in tries) == 0
        given = answers[0] if isinstance(answers[0], tuple) else ()
        granted = len(given) or int(isinstance(answers[0], Expanded))
        assert int(connection.get(key("fence")) or 0) - fence == granted, "no lease that nobody was told of"


# ------------------------------------------------------------------------------------------ races


class Racer:
    """A worker whose verbs come close to the deadlines of its leases, some before and some after."""

    def __init__(self, queue: Queue, number: int) -> None:
        self._queue = queue
        self._draw = random.Random(number)
        self._name = f"w{number}"
        self.tally: Counter[str] = Counter()
        self.won: list[str] = []
        self.recorded: list[int] = []

    def turn(self, lease_seconds: float) -> None:
        """Lease a few jobs, wait until their leases are about to run out, and do something to each."""
        leases = self._queue.lease(self._name, 8)
        time.sleep(lease_seconds * self._draw.choice((0.3, 0.8, 0.9, 0.95, 1.0, 1.05, 1.2)))
        for lease in leases:
            if self._draw.random() < 0.4:
                self.beat(lease)
            name = self._draw.choices(("ack", "nack", "environment", "release", "forget"), (4, 4, 4, 4, 1))[0]
            if name != "forget":
                self.end(lease, name)

    def beat(self, lease: Lease) -> bool:
        self.tally["heartbeat"] += 1
        lost = self._queue.heartbeat(self._name, [(lease.url, lease.token, 0)], {})
        self.tally["lost"] += len(lost)
        return bool(lost)

    def end(self, lease: Lease, name: str) -> None:
        self.tally[name] += 1
        try:
            if name == "ack":
                self._queue.ack(lease.url, lease.token, result(cid_of(lease)))
                self.recorded.append(cid_of(lease))
            elif name == "release":
                self._queue.release(lease.url, lease.token)
            else:
                self._queue.nack(lease.url, lease.token, TRANSIENT if name == "nack" else ENVIRONMENT)
            self.won.append(lease.token)
        except StaleToken:
            self.tally["stale"] += 1
            assert self.beat(lease), "a lease that was called stale is never called kept"


@pytest.mark.slow
def test_ten_thousand_verbs_close_to_the_deadline_have_one_winner_each(queue: Queue, connection: redis.Redis) -> None:
    """Eight workers with leases of 60 ms that they keep, end or forget, while two sweepers take what runs out."""
    jobs, wanted_verbs = 4000, 10_000
    racing = Queue(connection, Settings(lease_seconds=0.06, affinity_seconds=0.0), draw=lambda: 0.0)
    for lease in page_leases(queue, range(1, jobs + 1)):
        queue.release(lease.url, lease.token)
    racers = [Racer(racing, number) for number in range(8)]
    over = threading.Event()
    until = time.monotonic() + 40

    def work(racer: Racer) -> None:
        while sum(one.tally.total() for one in racers) < wanted_verbs and time.monotonic() < until:
            racer.turn(0.06)

    def take_back() -> None:
        while not over.wait(0.002):
            racing.sweep()
            racing.redrive(failed(connection, 100))  # wanted all the same

    with ThreadPoolExecutor(10) as pool:
        sweepers = [pool.submit(take_back) for _n in range(2)]
        try:
            for one in [pool.submit(work, racer) for racer in racers]:
                one.result()
        finally:
            over.set()
        for one in sweepers:
            one.result()
    total = sum((racer.tally for racer in racers), Counter[str]())
    assert total.total() >= wanted_verbs, f"too slow: {total}"
    assert total["stale"] > 100 and len([t for racer in racers for t in racer.won]) > 100, f"no race: {total}"
    won = [token for racer in racers for token in racer.won]
    assert len(won) == len(set(won)), "two verbs ended the same lease"
    recorded = [cid for racer in racers for cid in racer.recorded]
    assert len(recorded) == len(set(recorded)) == queue.counts().done, "no page twice"
    assert_sound(connection)
    assert sum(places(connection).values()) + len(recorded) == jobs, "none is lost"
    drain(queue, connection)
    assert queue.counts() == Counts(0, 0, 0, jobs, 0)


def drain(queue: Queue, connection: redis.Redis) -> None:
    """Let a good worker do everything that is left."""
    let_run_out(queue, connection, *connection.zrange(key("leased"), 0, -1))
    for _turn in range(10_000):
        queue.redrive(failed(connection))
        let_run_out(queue, connection)
        for lease in (leases := queue.lease("the last one", 64)):
            if "cid=" in lease.url:
                queue.ack(lease.url, lease.token, result(cid_of(lease)))
            else:
                page = queue.expand(lease.url, lease.token, pages(bvid_to_aid(lease.url))).lease
                if page is not None:
                    queue.ack(page.url, page.token, result(cid_of(page)))
        if not leases and not places(connection):
            return
    raise AssertionError("it never ends")


@pytest.mark.slow
def test_a_hundred_thousand_jobs_due_at_one_instant_all_come_in_bounded_steps(
    queue: Queue, connection: redis.Redis
) -> None:
    """Three sweep at once, as servers and leases do; each call's work is bounded, and none is lost or doubled."""
    count = 100_000
    ids = videos(1, count)
    for start in range(0, count, 10_000):
        some = ids[start : start + 10_000]
        connection.zadd(key("delayed"), dict.fromkeys(some, 5))
        connection.zadd(key("failures"), dict.fromkeys((f"\0{url}" for url in some), 0))
        connection.hset(key("tries"), mapping=dict.fromkeys(some, '{"attempts":3,"deaths":0,"worker":"w"}'))
    longest_seconds = 0.0
    moved = [0, 0, 0]

    def promote(number: int) -> None:
        nonlocal longest_seconds
        while True:
            began = time.monotonic()
            step = queue.sweep()
            longest_seconds = max(longest_seconds, time.monotonic() - began)
            assert step <= 100
            moved[number] += step
            if step == 0:
                return

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(promote, range(3)))
    assert sum(moved) == count
    assert longest_seconds < 2
    assert set(connection.lrange(key("ready"), 0, -1)) == set(ids)
    assert queue.counts() == Counts(count, 0, 0, 0, 0)
    assert queue.failed("", 10) == ([], None)
    assert queue.lease("w1", 1)[0].attempt == 4, "what was known of each is still known"


@pytest.mark.slow
def test_flushing_the_scripts_all_the_time_changes_nothing(queue: Queue, connection: redis.Redis) -> None:
    over = threading.Event()
    flushes = 0

    def flush() -> None:
        nonlocal flushes
        while not over.is_set():
            connection.script_flush()
            flushes += 1

    def work(number: int) -> None:
        first = 1 + 1000 * number
        for turn in range(60):
            queue.add(videos(first + turn, 1), request=f"{number} {turn}")
            for lease in queue.lease(f"w{number}", 2, request=f"{number} {turn}"):
                queue.heartbeat(f"w{number}", [(lease.url, lease.token, 1)], {})
                if "cid=" not in lease.url:
                    expanded = queue.expand(lease.url, lease.token, pages(bvid_to_aid(lease.url)))
                    if expanded.lease is None:
                        continue
                    lease = expanded.lease
                if turn % 3 == 0:
                    queue.nack(lease.url, lease.token, PERMANENT)
                    queue.redrive([lease.url])
                else:
                    queue.ack(lease.url, lease.token, result(cid_of(lease)))
                    assert queue.ack(lease.url, lease.token, result(cid_of(lease))) == "done"
            queue.sweep()

    before = connection.info("commandstats").get("cmdstat_evalsha", {}).get("failed_calls", 0)
    with ThreadPoolExecutor(5) as pool:
        flusher = pool.submit(flush)
        try:
            list(pool.map(work, range(4)))
        finally:
            over.set()
        flusher.result()
    missed = connection.info("commandstats")["cmdstat_evalsha"]["failed_calls"] - before
    assert flushes > 20 and missed > 20, "the scripts were there each time"
    assert_sound(connection)
    drain(queue, connection)
    assert queue.counts() == Counts(0, 0, 0, 240, 0)


# ------------------------------------------------------------------------------------------ a clock that jumps


@contextlib.contextmanager
def beating(queue: Queue, held: Lease) -> Iterator[list[list[str]]]:
    """Keep a lease all the time, as its worker does; what each beat has lost is in the list."""
    ended, beats = threading.Event(), list[list[str]]()

    def beat() -> None:
        while not ended.wait(0.1):
            beats.append(queue.heartbeat("w1", [(held.url, held.token, 0)], {}))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield beats
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def ticking(queue: Queue, period_seconds: float) -> Iterator[None]:
    """Sweep all the time, as the server does."""
    ended = threading.Event()
    thread = threading.Thread(target=tick, args=(queue, ended, period_seconds))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Clock:
    """The clock of an engine's machine, which can be set while the engine runs; its monotonic clock goes on."""

    def __init__(self, folder: Path) -> None:
        libraries = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
        assert libraries, "faketime is missing: tests/install_debian_packages.sh installs it"
        self._file = folder / "clock"
        self.set(0)
        self.environ = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset_seconds: int) -> None:
        """Set the clock so far before or behind the real time."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_seconds:+d}\n")
        fresh.replace(self._file)


HOUR, DAY = 3600, 86_400


@pytest.mark.slow
@pytest.mark.parametrize(
    "offsets",
    [(HOUR,), (-HOUR,), (DAY,), (-DAY,), (HOUR, 0, -HOUR, DAY, 0)],
    ids=lambda offsets: " ".join(map(str, offsets)),
)
def test_a_clock_that_is_set_loses_no_job_and_no_lease(
    make_engine: MakeEngine, tmp_path: Path, offsets: tuple[int, ...]
) -> None:
    clock = Clock(tmp_path)
    engine = make_engine(environ=clock.environ)
    settings = Settings(lease_seconds=1.5, affinity_seconds=1.0)
    jobs = 12
    with contextlib.closing(engine.queue(settings)) as queue, ticking(queue, 0.1):
        held = page_leases(queue, range(1, jobs + 1))
        over = threading.Event()
        lost: list[str] = []

        def beat() -> None:
            while not over.wait(0.2):
                lost.extend(queue.heartbeat("w1", [(one.url, one.token, 5) for one in held], {}))

        beating = threading.Thread(target=beat)
        beating.start()
        try:
            for offset in offsets:
                before = engine.connection.time()[0]
                clock.set(offset)
                wait_until("the clock is set", lambda b=before: abs(engine.connection.time()[0] - b) > HOUR - 60, 10)
                until = time.monotonic() + 3.5  # more than two terms
                while time.monotonic() < until:
                    assert queue.counts() == Counts(0, jobs, 0, 0, 0)
                    time.sleep(0.05)
        finally:
            over.set()
            beating.join()
        assert lost == []
        assert [queue.ack(one.url, one.token, result(cid_of(one))) for one in held[2:]] == ["done"] * (jobs - 2)
        assert queue.nack(held[0].url, held[0].token, replace(TRANSIENT, retry_after_seconds=2.0)) == "delayed"
        # A worker that is silent now is noticed in its time, and its job goes to another.
        left = wait_until("the other one is free", lambda: queue.lease("w2", 1), 20)
        assert [one.url for one in left] == [held[1].url]
        queue.ack(left[0].url, left[0].token, result(2))
        left = wait_until("what was delayed is due", lambda: queue.lease("w2", 1), 20)
        queue.ack(left[0].url, left[0].token, result(1))
        assert queue.counts() == Counts(0, 0, 0, jobs, 0)
    assert_sound(engine.connection)


@pytest.mark.slow
def test_what_was_put_off_before_the_clock_was_set_back_still_comes(make_engine: MakeEngine, tmp_path: Path) -> None:
    """Its time lies a day ahead now; nothing is ever put off for so long."""
    clock = Clock(tmp_path)
    clock.set(DAY)
    engine = make_engine(environ=clock.environ)
    with contextlib.closing(engine.queue(Settings(lease_seconds=1.0, affinity_seconds=1.0))) as queue:
        kept, delayed = page_leases(queue, range(1, 3))
        queue.heartbeat("w1", [(kept.url, kept.token, 5)], {})
        queue.nack(delayed.url, delayed.token, replace(TRANSIENT, retry_after_seconds=HOUR))

        def is_kept() -> bool:
            queue.sweep()
            return bool(engine.connection.zcard(key("kept")))

        wait_until("a job waits for its worker", is_kept, 20)
        clock.set(0)
        (again,) = wait_until(
            "it waits no day for a worker that is gone", lambda: (queue.sweep(), queue.lease("w2", 1))[1], 20
        )
        assert again.url == kept.url
        queue.release(again.url, again.token)
        assert queue.next_due_seconds() <= 6 * HOUR + 1  # type: ignore[operator]
        clock.set(6 * HOUR + 1)
        queue.sweep()
        found = wait_until("the delayed one as well", lambda: (queue.sweep(), queue.lease("w2", 2))[1], 20)
        assert {one.url for one in found} <= {kept.url, delayed.url}
        wait_until("both are there", lambda: queue.counts().delayed == 0, 20)
    assert_sound(engine.connection)


# ------------------------------------------------------------------------------------------ answers that get lost


def bvid(name: str) -> str:
    return video(name).bvid


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_answers_that_get_lost_are_asked_for_again_and_nothing_counts_twice(farm: Farm) -> None:
    """A real worker and a real server; of each verb the first answers do not arrive, though the server acted."""
    farm.site.post("settings", rate_bytes_per_second=MIB / 4)  # long enough for two heartbeats
    farm.add(bvid("five-pages"), bvid("plain"), bvid("large-a"), bvid("deleted"))
    with Relay(farm.port, "w1") as relay:
        lost = {
            path: relay.drop_replies(path, count)
            for path, count in (("/get_url", 8), ("/expand", 3), ("/ack", 3), ("/nack", 1), ("/heartbeat", 2))
        }
        began = time.monotonic()
        worker = farm.worker("--until-empty", BILI_SERVER_URL=relay.url())
        worker.says("Running")
        for path, fault in lost.items():
            assert fault.wait() == fault.met, path
        farm.site.post("settings", rate_bytes_per_second=0)
        assert worker.wait() == 1, "one video is deleted"
        assert time.monotonic() - began < 55, "a job has waited until its lease of a minute ran out"
        calls = list(relay.calls)
    assert farm.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 7, "dead": 1}
    records = farm.everything("/success")
    assert len({record["url"] for record in records}) == len(records) == 7
    (failure,) = farm.everything("/failed")
    assert (failure["attempts"], failure["code"]) == (1, "-404")
    given: dict[str, list[Any]] = {}
    for call in calls:
        if call.path == "/get_url" and call.answer:
            given.setdefault(call.request["request"], []).append(call.answer)
    repeated = [answers for answers in given.values() if len(answers) > 1]
    assert repeated and all(answers == answers[:1] * len(answers) for answers in repeated), "the same leases again"
    leases = [lease for answers in given.values() for lease in answers[0]]
    assert len({lease["url"] for lease in leases}) == len(leases), "nothing was leased anew"
    assert {lease["attempt"] for lease in leases} == {1}
    for script in (worker, farm.server):
        assert "Traceback" not in script.output()
    assert worker.output().count("asking again until it answers") >= 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_goodbye_whose_answer_gets_lost_gives_the_job_back_once(farm: Farm) -> None:
    farm.site.post("settings", rate_bytes_per_second=MIB)
    farm.add(bvid("large-a"))
    with Relay(farm.port, "w1") as relay:
        worker = farm.worker(BILI_SERVER_URL=relay.url())
        wait_until("it downloads", lambda: farm.sent_bytes() > MIB)
        lost = relay.drop_replies("/release", 1)
        worker.interrupt()
        assert worker.wait(20) == 0
        assert lost.met == 1
    assert farm.counts() == {"ready": 1, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    farm.site.post("settings", rate_bytes_per_second=0)
    assert farm.drain() == 0
    assert farm.counts()["done"] == 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_call_of_a_worker_delivered_twice_is_as_if_it_came_once(farm: Farm) -> None:
    farm.add(bvid("five-pages"), bvid("many-pages"), bvid("deleted"))
    with Relay(farm.port, "w1") as relay:
        fault = relay.repeat(count=10**9)
        assert farm.worker("--until-empty", BILI_SERVER_URL=relay.url()).wait() == 1
        assert fault.met > 30
    assert farm.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 17, "dead": 1}
    assert len({record["url"] for record in farm.everything("/success")}) == 17


def test_an_add_whose_answer_gets_lost_counts_once(queue_server: str, queue: Queue, settings: Settings) -> None:
    from add_url import ServerSink

    with Relay(int(queue_server.rsplit(":", 1)[1])) as relay:
        sink = ServerSink(replace(settings, server_urls=(relay.url(),), token="any"))
        lost = relay.drop_replies("/add_url", 2)
        added = sink.add(videos(1, 5), "", "", False, "r1")
        sink.close()
        assert lost.met == 2
    assert (added.added, added.known) == (5, 0)
    assert queue.counts().ready == 5


# ------------------------------------------------------------------------------------------ a crowd


@dataclass
class Crowd:
    """Workers that lease, expand and acknowledge as fast as the server lets them, with the workers' own client."""

    url: str
    size: int
    names: int = 1
    """Under so many names each of them asks in turn."""
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    pauses: set[float] = field(default_factory=set)
    done: list[int] = field(default_factory=list)

    async def run(self, jobs: int) -> None:
        """Work until so many pages are done."""
        finished = asyncio.Event()
        tracing = aiohttp.TraceConfig()

        async def start(_session: Any, context: Any, _given: Any) -> None:
            context.began = time.monotonic()

        async def end(_session: Any, context: Any, given: Any) -> None:
            self.seconds.append(time.monotonic() - context.began)
            self.statuses[given.response.status] += 1
            if given.response.status in (429, 503):
                assert int(given.response.headers["Retry-After"]) > 0

        async def fail(_session: Any, _context: Any, given: Any) -> None:
            self.broken[type(given.exception).__name__] += 1

        tracing.on_request_start.append(start)
        tracing.on_request_end.append(end)
        tracing.on_request_exception.append(fail)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing], timeout=timeout) as session:
            settings = Settings(server_urls=(self.url,))

            async def one(number: int) -> None:
                clients = [
                    QueueClient(settings, session, f"crowd-{number}-{name}", f"i{number}") for name in range(self.names)
                ]
                for client in itertools.cycle(clients):
                    if finished.is_set():
                        return
                    pause = await self._turn(client)
                    if len(self.done) >= jobs:
                        finished.set()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(finished.wait(), pause)

            await asyncio.gather(*(one(number) for number in range(self.size)))

    async def _turn(self, client: QueueClient) -> float:
        try:
            answer = await client.lease(2)
        except ServerUnreachable as error:
            return (error.retry_after_seconds or 0.5) * (1 + random.random())
        for lease in answer.leases:
            page: Lease | None = lease
            if "cid=" not in lease.url:
                page = (await client.expand(lease, "t", pages(bvid_to_aid(lease.url)))).lease
            assert page is not None
            await client.ack(page, result(cid_of(page)))
            self.done.append(cid_of(page))
        if answer.leases:
            return 0.001
        self.pauses.add(answer.retry_after_seconds)
        return answer.retry_after_seconds * (0.5 + random.random() / 2)


def run_crowd(tmp_path: Path, size: int, names: int, jobs: int) -> Crowd:
    from tests.test_web_server import serving

    with serving(tmp_path) as server:
        first = Crowd(f"http://127.0.0.1:{server.port}", 1)
        asyncio.run(first.run(0))
        assert first.pauses == {2.0}, "a single worker asks often"
        for start in range(1, jobs + 1, 1000):
            body = {"urls": videos(start, min(1000, jobs + 1 - start))}
            assert server.ask("/add_url", body)[0] == 200
        crowd = Crowd(first.url, size, names)
        asyncio.run(crowd.run(jobs))
        assert server.ask("/status")[1]["jobs"] == {"ready": 0, "leased": 0, "delayed": 0, "done": jobs, "dead": 0}
        assert crowd.statuses[200] > 2 * jobs
        last = Crowd(first.url, 1)
        asyncio.run(last.run(0))
        assert last.pauses == {float(math.ceil(size * names / 200))}, "one of a crowd asks rarely"
    assert sorted(crowd.done) == list(range(1, jobs + 1)), "each page once"
    assert set(crowd.statuses) <= {200, 429, 503}, crowd.statuses
    log = (tmp_path / "server.log").read_text()
    assert "Traceback" not in log
    ordered = sorted(crowd.seconds)
    sys.stderr.write(
        f"{size} workers: {len(ordered)} calls, p50 {ordered[len(ordered) // 2] * 1000:.0f} ms, "
        f"p99 {ordered[len(ordered) * 99 // 100] * 1000:.0f} ms, {dict(crowd.statuses)} {dict(crowd.broken)}\n"
    )
    return crowd


@pytest.mark.slow
def test_a_hundred_workers_at_once_lose_nothing(tmp_path: Path) -> None:
    run_crowd(tmp_path, size=100, names=3, jobs=400)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_thousand_workers_at_once_lose_nothing(tmp_path: Path) -> None:
    """As many as the server takes connections, and more than it could have open files without asking for them."""
    run_crowd(tmp_path, size=2000, names=1, jobs=5000)


# ------------------------------------------------------------------------------------------ coming back


class AwayServer:
    """A queue's client whose server is away, or asks to wait."""

    has_unanswered_request = False

    def __init__(self) -> None:
        self.retry_after_seconds: float | None = None
        self.is_back = False

    async def lease(self, _count: int, _have: list[str], _have_bytes: list[int]) -> Leased:
        if self.is_back:
            return Leased((), 2.0)
        raise ServerUnreachable("away", 503, self.retry_after_seconds)


def idle_scheduler(queue: Any, settings: Settings, draw: Callable[[], float]) -> Scheduler:
    """Return a worker's scheduler of which nothing is used but its leasing."""
    unused: Any = None
    site: Any = SimpleNamespace(pace=Pace(0.0, lambda: 0.0))
    running = asyncio.Event()
    running.set()
    return Scheduler(settings, queue, site, unused, running, "ffmpeg", "w", "i", draw)


async def test_a_worker_asks_an_absent_server_ever_less_often_up_to_a_bound(settings: Settings) -> None:
    away = AwayServer()
    scheduler = idle_scheduler(away, settings, lambda: 1.0)
    assert [await scheduler._lease(1) for _turn in range(7)] == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    away.retry_after_seconds = 4.0
    assert await scheduler._lease(1) == 19.0, "on top of what the server asks for"
    away.is_back = True
    assert await scheduler._lease(1) == 2.0
    away.is_back, away.retry_after_seconds = False, None
    assert await scheduler._lease(1) == 1.0, "a new absence begins anew"
    scheduler = idle_scheduler(away, settings, lambda: 0.0)
    assert [await scheduler._lease(1) for _turn in range(3)] == [0.0, 0.0, 0.0], "full jitter"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("outage_seconds", "share"), [(2.0, 0.35), (25.0, 0.15)])
async def test_after_an_outage_workers_come_back_spread_out(
    tmp_path: Path, outage_seconds: float, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """200 workers' leasing, a real server that is killed and started again."""
    caplog.set_level(logging.ERROR)  # each of them says that the server is away
    from tests.test_web_server import serving

    count = 200
    port = str(free_port())
    calls: list[tuple[float, int]] = []
    failures = 0
    tracing = aiohttp.TraceConfig()

    async def end(_session: Any, _context: Any, given: Any) -> None:
        calls.append((time.monotonic(), int(given.url.query["worker"])))

    async def fail(_session: Any, _context: Any, _given: Any) -> None:
        nonlocal failures
        failures += 1

    tracing.on_request_end.append(end)
    tracing.on_request_exception.append(fail)
    settings = Settings(server_urls=(f"http://127.0.0.1:{port}",), working_file=tmp_path / "working.json")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing]) as session:
        with contextlib.ExitStack() as first:
            server = first.enter_context(serving(tmp_path, "--port", port))
            schedulers = [
                idle_scheduler(QueueClient(settings, session, str(number), "i"), settings, random.random)
                for number in range(count)
            ]
            tasks = [asyncio.create_task(one._lease_until_empty(None)) for one in schedulers]
            async with asyncio.timeout(60):
                while len({number for _at, number in calls}) < count:
                    await asyncio.sleep(0.05)
            server.process.kill()
        await asyncio.sleep(outage_seconds)
        assert failures > count / 2, "the outage was met"
        calls.clear()
        with contextlib.ExitStack() as second:
            await asyncio.to_thread(second.enter_context, serving(tmp_path, "--port", port))
            back = time.monotonic()
            async with asyncio.timeout(60):
                while len({number for _at, number in calls}) < count:
                    await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    first_returns: dict[int, float] = {}
    for at, number in calls:
        first_returns.setdefault(number, at - back)
    buckets = Counter(math.floor(after * 10) for after in first_returns.values())
    latest = max(first_returns.values())
    most = max(buckets.values())
    sys.stderr.write(f"away {outage_seconds} s: all back after {latest:.1f} s, at most {most} of {count} in 100 ms\n")
    assert most <= count * share, sorted(buckets.items())
    assert latest < 25


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_whose_calls_are_refused_for_long_is_not_taken_for_dead(
    make_engine: MakeEngine, tmp_path: Path, site: SiteProcess
) -> None:
    """Memory is full for several terms: a container cannot be expanded, and that is nobody's death."""
    engine = make_engine()
    farm = Farm(tmp_path, site, REDIS_URL=engine.url, BILI_LEASE_SECONDS="3", BILI_AFFINITY_SECONDS="1")
    try:
        with Relay(farm.port) as relay:
            held_back = relay.delay(2.0, "/expand", count=2)
            farm.add(bvid("five-pages"), bvid("plain"))
            worker = farm.worker("--until-empty", BILI_SERVER_URL=relay.url())
            farm.server.says("leased 2")
            fill_memory(engine.connection)
            held_back.wait()
            worker.says("its outcome could not be told", 60)
            wait_until("both are given back", lambda: farm.counts()["leased"] == 0, 30)
            until = time.monotonic() + 7  # two terms
            while time.monotonic() < until:
                tries = [json.loads(text) for text in engine.connection.hvals(key("tries"))]
                assert all(one["deaths"] == 0 and one["attempts"] == 0 for one in tries), tries
                assert farm.counts()["dead"] == 0
                time.sleep(0.1)
            assert "is full" in farm.server.output() and "is full" in worker.output()
            free_memory(engine.connection)
            assert worker.wait() == 0
        assert farm.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 6, "dead": 0}
        assert "Traceback" not in worker.output() + farm.server.output()
    finally:
        farm.close()
    assert_sound(engine.connection)
