"""Engines that fail over or restart under load: nothing accepted is lost, nothing is recorded twice, clients follow."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import redis
import requests

from config import Settings
from demo.catalogue import video
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from errors import EngineError, StaleToken
from model import Lease, Page, Result
from parse_ import aid_to_bvid, bvid_to_aid
from redisConnect import Queue, open_queue
from store.data import key, shard_of_id
from tests import structure
from tests.engines import Cluster, Node, Sentinels, closing_all
from tests.farm import ROOT, Farm, finished_files, wait_until
from tests.history import Evidence, check
from tests.relay import Relay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
R = TypeVar("R")
THREADS = 8
PATIENCE_SECONDS = 60.0


@pytest.fixture
def site() -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


class Clients:
    """Threads that add, lease, expand and acknowledge through one queue, and repeat what the engine did not answer."""

    def __init__(self, queue: Queue) -> None:
        self.added: set[int] = set()
        self.acknowledged: set[int] = set()
        self.failures: list[BaseException] = []
        self.repeats = 0
        self._queue = queue
        self._aids = itertools.count(1)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f"w{number}",)) for number in range(THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        assert self.failures == []

    def done(self, count: int) -> Callable[[], bool]:
        """Return what tells whether so many more are done than now."""
        wanted = len(self.acknowledged) + count
        return lambda: len(self.acknowledged) >= wanted or bool(self.failures)

    def _run(self, worker: str) -> None:
        try:
            while not self._ended.is_set():
                self._add_one(worker)
                self._do_one(worker)
        except BaseException as error:
            self.failures.append(error)

    def _add_one(self, worker: str) -> None:
        aid = next(self._aids)
        self.again(lambda: self._queue.add([aid_to_bvid(aid)], request=f"{worker}-{aid}"))
        self.added.add(aid)

    def _do_one(self, worker: str) -> None:
        request = os.urandom(8).hex()
        for lease in self.again(lambda: self._queue.lease(worker, 1, request=request)):
            # The lease, or what came of it, may be lost with a primary: then it is somebody else's.
            with contextlib.suppress(StaleToken):
                self._finish(lease)

    def _finish(self, lease: Lease) -> None:
        page: Lease | None = lease
        if "cid=" not in lease.url:
            pages = [Page(1, bvid_to_aid(lease.url), "")]
            page = self.again(lambda: self._queue.expand(lease.url, lease.token, pages)).lease
        if page is not None:
            url, token, cid = page.url, page.token, int(page.url.split("cid=")[1])
            self.again(lambda: self._queue.ack(url, token, Result(f"other/{cid}.mp4", 1000, 1.5, "")))
            self.acknowledged.add(cid)

    def again(self, verb: Callable[[], R]) -> R:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return verb()
            except EngineError:
                if time.monotonic() > until:
                    raise
                self.repeats += 1


def drain(clients: Clients, queue: Queue) -> None:
    """Work until nothing is left; leases that were lost with their answers run out."""

    def is_empty() -> bool:
        queue.sweep()
        clients._do_one("last")
        counts = queue.counts()
        return counts.ready + counts.leased + counts.delayed == 0

    wait_until("all is done", is_empty, PATIENCE_SECONDS)


def account(clients: Clients, queue: Queue, connection: redis.Redis) -> None:
    """Assert that all that was accepted is recorded, once."""
    success, _next = queue.success("", 100_000)
    cids = [int(item["url"].split("cid=")[1]) for item in success]
    assert len(cids) == len(set(cids))
    assert clients.added <= set(cids)
    assert clients.acknowledged <= set(cids)
    assert structure.problems(connection) == []


def test_a_primary_that_is_killed_loses_nothing_that_its_replica_had(tmp_path: Path) -> None:
    with closing_all(Sentinels(tmp_path, "topsecret", "othersecret")) as (engine,):
        settings = Settings(redis_url=f"{engine.url}&wait_replicas=1", lease_seconds=5.0, affinity_seconds=0)
        with contextlib.closing(open_queue(settings)) as queue:
            clients = Clients(queue)
            clients.start()
            wait_until("work is under way", clients.done(100))
            assert queue.look_at_data() == ""
            before = queue.data_id
            dead = engine.primary()
            dead.kill()
            now = engine.fail_over(dead)
            assert queue.look_at_data() and queue.data_id != before
            dead.start()  # the sentinels make it the replica; until then nothing counts
            wait_until("work goes on", clients.done(100))
            clients.end()
            assert clients.repeats
            drain(clients, queue)
            account(clients, queue, now.client)


def test_a_node_of_a_cluster_that_is_killed_and_started_again_loses_nothing(tmp_path: Path) -> None:
    with closing_all(Cluster(tmp_path)) as (engine,):
        settings = Settings(redis_url=engine.url, lease_seconds=5.0, affinity_seconds=0)
        with contextlib.closing(open_queue(settings)) as queue:
            clients = Clients(queue)
            clients.start()
            wait_until("work is under way", clients.done(100))
            node = engine.node_of("{bili:0}:ready")
            node.kill()
            wait_until("nobody has an answer", lambda: clients.repeats >= THREADS)
            node.start()
            wait_until("the cluster is whole", engine.is_whole, 30)
            wait_until("work goes on", clients.done(100))
            clients.end()
            drain(clients, queue)
            account(clients, queue, node.client)


def test_slots_that_move_to_another_node_are_followed(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        (engine,) = stack.enter_context(closing_all(Cluster(tmp_path)))
        with contextlib.closing(open_queue(Settings(redis_url=engine.url))) as queue:
            queue.add([aid_to_bvid(1)])
            source = engine.node_of("{bili:0}:ready")
            target = next(node for node in engine.nodes if node is not source)
            slot = source.client.execute_command("CLUSTER KEYSLOT", "{bili:0}:ready")
            ids = {node.port: node.client.execute_command("CLUSTER MYID") for node in (source, target)}
            target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source.port])
            source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target.port])
            keys = source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
            source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for node in (target, source):
                node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target.port])
            assert [lease.url for lease in queue.lease("w", 1)] == [aid_to_bvid(1)]
            assert queue.counts().leased == 1 and queue.worker_count() == 1
            assert target.client.exists("{bili:0}:token") and not source.client.dbsize()
            assert "{bili:0}:token" in set(queue._redis.scan_iter(match="{bili:*}:*"))  # of all nodes


NAMES = ("plain", "same-title-a", "same-title-b", "emoji-title", "five-pages")


def pages_of(*names: str) -> dict[str, frozenset[int]]:
    return {video(name).bvid: frozenset(page.cid for page in video(name).pages) for name in names}


def is_accepted(server: str, urls: list[str], refresh: bool = False) -> bool:
    """Tell whether a server takes some videos now."""
    with contextlib.suppress(requests.RequestException):
        asked = {"urls": urls, "refresh": refresh}
        return requests.post(f"{server}/add_url", json=asked, timeout=20).status_code == 200
    return False


def test_a_farm_works_on_when_its_primary_is_killed(tmp_path: Path, site: SiteProcess) -> None:
    with closing_all(Sentinels(tmp_path / "engine")) as (engine,), contextlib.ExitStack() as stack:
        farm = Farm(tmp_path, site, REDIS_URL=engine.url, BILI_LEASE_SECONDS="6", BILI_AFFINITY_SECONDS="1")
        stack.callback(farm.close)
        relay = stack.enter_context(Relay(farm.port))
        farm.settings["BILI_SERVER_URL"] = relay.url()
        bvids = [video(name).bvid for name in NAMES]

        def ask_for(urls: list[str]) -> None:
            wait_until("it is accepted", lambda: is_accepted(relay.url(), urls))

        workers = [farm.worker(BILI_WORKER=f"w{number}") for number in (1, 2)]
        ask_for(bvids[:4])
        wait_until("some are done", lambda: farm.counts()["done"] >= 1)
        dead = engine.primary()
        dead.kill()
        ask_for(bvids[4:])
        now = engine.fail_over(dead)
        dead.start()
        expected = frozenset().union(*pages_of(*NAMES).values())
        # What was added in the last moment before the failover may be gone, and is asked for again.
        ask_for(bvids)

        def is_done() -> bool:
            counts = farm.counts()
            return counts["done"] == len(expected) and not counts["ready"] + counts["leased"]

        wait_until("all are done", is_done)
        success, failed, counts = farm.everything("/success"), farm.everything("/failed"), farm.counts()
        for worker in workers:
            worker.interrupt()
            assert worker.wait() == 0, worker.output()
        report = check(Evidence(relay.calls, pages_of(*NAMES), success, failed, counts, may_forget=True))
        # A lease that was lost with the primary is given again while its holder still believes in it.
        assert [*report.lost, *report.twice, *report.unexpected, *report.died, *report.counters] == []
        assert set(finished_files(farm.downloads)) == expected
        assert structure.problems(now.client) == []
        text = farm.server.output() + "".join(worker.output() for worker in workers)
        assert "Traceback" not in text


def test_what_a_failover_loses_is_told_again_by_the_worker_that_has_it(tmp_path: Path, site: SiteProcess) -> None:
    """The replica is cut off before the last page is recorded: its data know neither the result nor the job."""
    with closing_all(Sentinels(tmp_path / "engine")) as (engine,), contextlib.ExitStack() as stack:
        farm = Farm(tmp_path, site, REDIS_URL=engine.url, BILI_LEASE_SECONDS="6", BILI_AFFINITY_SECONDS="1")
        stack.callback(farm.close)
        worker = farm.worker()
        farm.add(*(video(name).bvid for name in NAMES[:2]))
        wait_until("two are done", lambda: farm.counts()["done"] == 2)
        dead = engine.primary()
        replica = next(node for node in engine.nodes if node is not dead)
        replica.client.replicaof("127.0.0.1", "1")
        farm.add(video(NAMES[2]).bvid)
        wait_until("the third is done", lambda: farm.counts()["done"] == 3)
        sent = farm.sent_bytes()
        dead.kill()
        engine.fail_over(dead)
        farm.server.says("The queue was set back")
        worker.says("The queue had lost 1 results of this worker")
        wait_until("it is known again", lambda: farm.counts()["done"] == 3)
        assert len(farm.everything("/success")) == 3
        assert farm.add(video(NAMES[2]).bvid) == "added 1, known 0, rejected 0"
        wait_until("nothing is left", lambda: farm.counts() == {**farm.counts(), "ready": 0, "leased": 0})
        assert farm.sent_bytes() == sent
        assert structure.problems(replica.client) == []


SHARDS = 6


def scripts_run(node: Node) -> int:
    """Return how many scripts a server has run."""
    stats = node.client.info("commandstats")
    return sum(int(stats[name]["calls"]) for name in ("cmdstat_eval", "cmdstat_evalsha") if name in stats)


def test_a_farm_of_shards_works_on_when_a_node_of_its_cluster_is_killed(tmp_path: Path, site: SiteProcess) -> None:
    """It is the node of shard 0, the only one that the address names, and its replica was cut off before."""
    with closing_all(Cluster(tmp_path / "engine", has_replicas=True)) as (engine,), contextlib.ExitStack() as stack:
        dead = engine.node_of(key("ready"))
        url = f"redis+cluster://127.0.0.1:{dead.port}"
        farm = Farm(
            tmp_path, site, REDIS_URL=url, BILI_SHARDS=str(SHARDS), BILI_LEASE_SECONDS="6", BILI_AFFINITY_SECONDS="1"
        )
        stack.callback(farm.close)
        relay = stack.enter_context(Relay(farm.port))
        farm.settings["BILI_SERVER_URL"] = relay.url()
        pages, told_again = pages_of(*NAMES), video("plain")
        (lost,) = (f"{told_again.bvid}?p=1&cid={page.cid}" for page in told_again.pages)
        assert engine.node_of(key("ready", shard_of_id(lost, SHARDS))) is dead
        assert engine.node_of(key("ready", shard_of_id(told_again.bvid, SHARDS))) is not dead

        def ask_for(*urls: str, refresh: bool = False) -> None:
            wait_until("it is accepted", lambda: is_accepted(relay.url(), list(urls), refresh))

        workers = [farm.worker(BILI_WORKER=f"w{number}") for number in (1, 2)]
        ask_for(*(video(name).bvid for name in ("same-title-a", "same-title-b", "emoji-title")))
        wait_until("some are done", lambda: farm.counts()["done"] >= 2)
        assert all(scripts_run(node) > 10 for node in engine.nodes)
        engine.cut_off(dead)
        ask_for(told_again.bvid, video("five-pages").bvid)
        wait_until("one is done", lambda: lost in {one["url"] for one in farm.everything("/success")})
        dead.kill()
        engine.fail_over(dead)
        farm.server.says("The queue was set back")
        dead.start()

        def is_known_again() -> bool:
            with contextlib.suppress(OSError):  # the cluster may be down for a moment yet
                return lost in {one["url"] for one in farm.everything("/success")}
            return False

        # Nobody has asked for it again, so only the worker that finished it can have told it.
        wait_until("what was lost is told again", is_known_again)
        assert any("The queue had lost" in worker.output() for worker in workers)
        # What the dead node alone knew of is asked for again; containers that others know are to be read again.
        ask_for(*pages, refresh=True)
        expected = frozenset().union(*pages.values())

        def is_done() -> bool:
            with contextlib.suppress(OSError):
                counts = farm.counts()
                return counts["done"] == len(expected) and not counts["ready"] + counts["leased"]
            return False

        wait_until("all are done", is_done)
        wait_until("the cluster is whole", engine.is_whole, 30)
        success, failed, counts = farm.everything("/success"), farm.everything("/failed"), farm.counts()
        for worker in workers:
            worker.interrupt()
            assert worker.wait() == 0, worker.output()
        report = check(Evidence(relay.calls, pages, success, failed, counts, may_forget=True))
        assert [*report.lost, *report.twice, *report.unexpected, *report.died, *report.counters] == []
        assert set(finished_files(farm.downloads)) == expected
        farm.server.interrupt()
        assert farm.server.wait() == 0
        spread, dump = farm.start("web_server.py", "--reshard", "4"), tmp_path / "queue.jsonl"
        assert spread.wait() == 0, spread.output()
        with contextlib.closing(open_queue(Settings(redis_url=url, shards=4))) as queue:
            assert structure.problems(queue._redis, 4) == []
            assert queue.counts().done == len(expected)
        assert farm.start("add_url.py", "--export", str(dump), BILI_SHARDS="4").wait() == 0
        assert all(f"cid={cid}" in dump.read_text("utf-8") for cid in expected)
        text = farm.server.output() + "".join(worker.output() for worker in workers)
        assert "Traceback" not in text


@pytest.mark.parametrize("form", ["cluster", "acl"])
@pytest.mark.timeout(600)
def test_the_verbs_work_in_a_cluster_and_with_the_documented_acl_user(form: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    command += [f"tests/test_{name}.py" for name in ("redisConnect", "jobs", "source_queue", "steering", "access")]
    # These speak to an engine of their own, or to keys that lie elsewhere.
    command += ["-k", "not earlier_version and not in_few_bytes"]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "ENGINE_FORM": form}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert " passed" in ended.stdout


def test_a_script_waits_for_the_failover_that_a_server_reports(tmp_path: Path) -> None:
    with closing_all(Sentinels(tmp_path)) as (engine,):
        settings = Settings(redis_url=engine.url)
        with (
            contextlib.closing(open_queue(settings)) as hasty,
            contextlib.closing(open_queue(replace(settings, category=""), is_patient=True)) as patient,
        ):
            dead = engine.primary()
            for sentinel in engine.sentinels[:2]:
                sentinel.kill()  # so that nobody can agree on another primary
            dead.kill()
            began = time.monotonic()
            with pytest.raises(EngineError, match="is down, and the sentinels have not agreed"):
                hasty.counts()
                hasty.counts()  # the first may end before the last sentinel has noticed
            assert time.monotonic() - began < 15
            for sentinel in engine.sentinels[:2]:
                sentinel.start()
            assert patient.add([aid_to_bvid(1)]).added == 1
