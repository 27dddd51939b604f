"""The scheduler with a real queue, a real server and the stand-in site: what it does when things fail."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
import redis

import download_scheduler
import merge_stream_file
import page_streams
from bili_client import BiliClient, make_session
from board import Board, JobView
from budgets import Told
from config import Settings
from create_folder import page_path, parse_output
from delivery import Deliveries, Reins, opener
from demo.catalogue import video
from demo.media import ensure_library
from demo.site import DEFAULT_CACHE, RunningSite, running_site
from download_scheduler import Scheduler
from download_stream_file import Wire
from errors import (
    DiskFull,
    MergeError,
    NameTaken,
    RiskControl,
    ServerError,
    ServerUnreachable,
    SiteError,
    TransferError,
)
from model import (
    MIB,
    STREAM_BYTES,
    Counts,
    Expanded,
    Failure,
    Lease,
    Leased,
    MergePlan,
    Page,
    StreamSource,
    Video,
)
from places import parse_place
from queue_client import OWN_SHARE, Beat, QueueClient, lease_clock, make_server_session
from redisConnect import Queue
from result_log import ResultLog
from transfer.connections import Connections
from transfer.media_client import MediaClient
from transfer.mirrors import media_allowed
from transfer.part_file import RESERVE_BYTES, Identity, PartFile

PLAIN, LARGE = video("plain"), video("large-a")
PAGE = f"{PLAIN.bvid}?p=1&cid={PLAIN.pages[0].cid}"


@pytest.fixture(scope="module", autouse=True)
def media() -> None:
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture
async def site() -> AsyncIterator[RunningSite]:
    async with running_site() as site:
        site.state.risky.clear()
        yield site


class Worker:
    """A scheduler that runs in a task of the test's loop."""

    def __init__(self, scheduler: Scheduler, settings: Settings) -> None:
        self.scheduler = scheduler
        self.settings = settings
        self.task = asyncio.create_task(scheduler.run())

    async def stop(self) -> None:
        self.scheduler.stop()
        await asyncio.wait([self.task])

    def steer(self, stop: int, count: int = 1) -> None:
        self.settings.working_file.write_text(f'{{"stop": {stop}, "count": {count}}}', "utf-8")

    def parts(self) -> list[Path]:
        return list((self.settings.download_dir / ".parts").glob("*.m4s"))


StartWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def start_worker(site: RunningSite, queue_server: str, settings: Settings) -> AsyncIterator[StartWorker]:
    async with AsyncExitStack() as stack:

        async def start(name: str = "w1", **changes: Any) -> Worker:
            own = replace(
                settings,
                web_url=site.web_url,
                api_url=site.api_url,
                media_hosts=site.media_hosts,
                server_urls=(queue_server,),
                api_interval_seconds=0.0,
                **changes,
            )
            own.data_dir.mkdir(parents=True, exist_ok=True)  # as run.py does
            running = asyncio.Event()
            server_session = await stack.enter_async_context(make_server_session(own))
            site_session = await stack.enter_async_context(make_session(own))
            media_client = await stack.enter_async_context(MediaClient(own, media_allowed((), own.media_hosts)))
            scheduler = Scheduler(
                own,
                QueueClient(own, server_session, name, f"{name}-instance"),
                BiliClient(own, site_session),
                Wire(media_client, Connections(8), running),
                running,
                imageio_ffmpeg.get_ffmpeg_exe(),
                name,
                f"{name}-instance",
            )
            worker = Worker(scheduler, own)
            stack.push_async_callback(worker.stop)
            return worker

        yield start


async def until(what: str, true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return what ``true`` returns as soon as it is truthy."""
    async with asyncio.timeout(seconds):
        while not (answer := true()):
            await asyncio.sleep(0.02)
    assert answer, what
    return answer


def sent_bytes(site: RunningSite) -> int:
    return sum(mirror["sent_bytes"] for mirror in site.stats()["mirrors"])


def slowly(site: RunningSite, bytes_per_second: float = MIB) -> None:
    site.state.rate_bytes_per_second = bytes_per_second


# ------------------------------------------------------------------------------------------ pause


@pytest.mark.slow
async def test_a_pause_that_lasts_gives_leases_back_and_keeps_the_chunks(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler, "PAUSE_LIMIT_SECONDS", 1.0)
    slowly(site)
    queue.add([LARGE.bvid])
    worker = await start_worker()
    await until("some chunks came", lambda: sent_bytes(site) > 4 * MIB)
    worker.steer(stop=0)
    await until("paused", lambda: worker.scheduler.board.state == "paused")
    assert queue.counts().leased == 1  # it keeps the lease for a while
    await until("given back", lambda: queue.counts() == Counts(1, 0, 0, 0, 0))
    assert worker.parts() and len(worker.scheduler._unfinished) == 1
    kept = sent_bytes(site)
    slowly(site, 0)
    worker.steer(stop=1)
    await until("done", lambda: queue.counts().done == 1)
    total = sum(stream.size_bytes for stream in site.state.library.of_page(LARGE.pages[0].cid) if _served(site, stream))
    assert sent_bytes(site) - kept < total  # what was there was not fetched again
    assert not worker.parts()


def _served(site: RunningSite, stream: Any) -> bool:
    return stream.url_path in site.stats()["objects"]


# ------------------------------------------------------------------------------------------ failures


async def test_a_full_disk_parks_the_worker_and_counts_no_attempt(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(download_scheduler, "_free_bytes", lambda _folder: 1000)
    monkeypatch.setattr(download_scheduler.retry, "park_seconds", lambda failures: 0.5)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("parked", lambda: worker.scheduler.board.state == "parked")
    assert queue.counts() == Counts(1, 0, 0, 0, 0)
    assert queue.failed("", 10) == ([], None)
    assert any("make room" in record.getMessage() for record in caplog.records)
    monkeypatch.undo()
    await until("it comes back by itself", lambda: queue.counts().done == 1)


@pytest.mark.slow
async def test_risk_control_parks_the_worker_and_it_recovers_by_itself(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler.retry, "park_seconds", lambda failures: 0.5)
    monkeypatch.setattr("budgets.OPEN_SECONDS", 0.5)
    monkeypatch.setattr("pace.LEAST_SECONDS", 0.01)
    site.state.risky.add(PLAIN.bvid)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("parked", lambda: worker.scheduler.board.state == "parked")
    assert queue.counts().dead == queue.counts().delayed == 0
    site.state.risky.clear()
    await until("done", lambda: queue.counts().done == 1)


async def test_risk_control_of_one_worker_slows_the_others_for_as_long_as_it_is_parked(
    site: RunningSite,
    queue: Queue,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(download_scheduler.retry, "park_seconds", lambda failures: 600.0)
    first, second = await start_worker("w1", lease_seconds=1.5), await start_worker("w2", lease_seconds=1.5)
    first.scheduler._site.login.digest, second.scheduler._site.login.digest = "a", "b"
    second.scheduler._site.login.problem = "log in"
    await until("nothing to say", lambda: second.scheduler.board.note == "log in")
    assert "risk" not in first.scheduler._standing() and second.scheduler._site.pace.slow_seconds == 0
    first.scheduler._park(RiskControl("slow down", "-352"))
    assert first.scheduler._standing()["risk"].items() >= {"kind": "-352"}.items()
    await until("told", lambda: second.scheduler._site.pace.slow_seconds > 20)
    await until("shown", lambda: second.scheduler.board.note == f"{download_scheduler._SLOWER} · log in")
    await until("shown", lambda: first.scheduler.board.note == "slow down")
    assert "risk" not in second.scheduler._standing(), "who only heard of it does not pass it on"
    assert second.scheduler.board.state == "running"
    second.scheduler._take_beat(Beat(lost=(), slow_seconds=500.0))
    assert caplog.text.count(download_scheduler._SLOWER) == 1


async def test_a_full_disk_is_nobody_else_s_business(start_worker: StartWorker) -> None:
    worker = await start_worker()
    worker.scheduler._park(DiskFull("make room"))
    assert "risk" not in worker.scheduler._standing() and "refused" not in worker.scheduler._standing()["site"]


@pytest.mark.slow
async def test_risk_control_parks_all_of_an_address_and_one_of_them_tries_first(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgets.OPEN_SECONDS", 3.0)
    workers = [await start_worker(f"w{number}", lease_seconds=1.5) for number in range(3)]
    await until("all are heard of", lambda: len(queue.workers()) == 3)
    first, *others = all_three = [worker.scheduler for worker in workers]
    began = time.monotonic()
    first._park(RiskControl("slow down", "-412"))
    await until("they are parked", lambda: all(one.board.state == "parked" for one in others))
    assert time.monotonic() - began < 2.5, "with the next heartbeat"
    assert [one._note for one in others] == [download_scheduler._PARKED] * 2
    assert [one.group for one in queue.breakers()] == ["address:local"]
    queue.add([PLAIN.bvid])
    await until("one tries", lambda: any(one._stand.probes for one in all_three))
    assert time.monotonic() - began > 2.5
    await until("done", lambda: queue.counts().done == 1)
    await until("all go on", lambda: all(one.board.state == "running" for one in all_three))
    assert queue.breakers() == [] and first._risk == ""
    assert queue.failed("", 10) == ([], None)


async def test_a_job_that_waits_for_its_turn_goes_back_untouched_when_its_worker_is_parked(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue._budgets, "_address_rate", 0.001)
    worker = await start_worker(lease_seconds=1.5)
    await until("it has heard what it may", lambda: 0 < worker.scheduler._site.pace.allowed <= 0.001)
    queue.add([PLAIN.bvid])
    await until("its job waits for its turn", lambda: queue.counts().leased == 1)
    queue.budget("another", ("address:local",), Told(refused="-412"))
    await until("it is parked", lambda: worker.scheduler.board.state == "parked")
    await until("the job is back", lambda: queue.counts().ready == 1)
    (job,), _after = queue.jobs()
    assert (job["attempts"], job["code"], worker.scheduler.board.failed) == (0, "", 0)


async def test_a_surprise_in_one_job_ends_that_attempt_and_nothing_else(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = BiliClient.describe

    async def surprising(self: BiliClient, job: Any) -> Any:
        if job.bvid == LARGE.bvid:
            raise RuntimeError("nobody thought of this")
        return await describe(self, job)

    monkeypatch.setattr(BiliClient, "describe", surprising)
    queue.add([LARGE.bvid, PLAIN.bvid])
    await start_worker()
    await until("the other is done", lambda: queue.counts() == Counts(0, 0, 1, 1, 0))
    (failure,), _next = queue.failed("", 10)
    assert (failure["code"], "nobody thought" in failure["reason"]) == ("unexpected", True)


async def test_a_page_that_the_uploader_took_away_is_dead_with_that_reason(
    site: RunningSite, queue: Queue, start_worker: StartWorker
) -> None:
    queue.add([PLAIN.bvid])
    (lease,) = queue.lease("someone", 1)
    expanded = queue.expand(lease.url, lease.token, [download_scheduler.Page(1, 424242, "gone")])
    assert expanded.lease is not None
    queue.release(expanded.lease.url, expanded.lease.token)
    await start_worker()
    await until("dead", lambda: queue.counts().dead == 1)
    assert queue.failed("", 1)[0][0]["code"] == "page-gone"


async def test_a_merge_that_fails_costs_no_byte_and_the_job_is_named_until_it_is_done(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[MergePlan] = []

    async def failing(_ffmpeg: str, plan: MergePlan, _may_publish: Callable[[], bool]) -> Any:
        plans.append(plan)
        raise MergeError("ffmpeg failed")

    monkeypatch.setattr(download_scheduler, "merge", failing)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("failed", lambda: queue.counts() == Counts(0, 0, 1, 0, 0))
    (plan,) = plans
    assert plan.duration_seconds > 0 and plan.tag.endswith(f" cid={PLAIN.pages[0].cid}")
    assert plan.scratch == str(worker.settings.download_dir / ".parts")
    await until("its end was told", lambda: worker.scheduler.board.failed == 1)
    assert len(worker.parts()) == 2 and PAGE in worker.scheduler._unfinished
    sent = sent_bytes(site)
    monkeypatch.undo()
    queue.redrive([PAGE])
    await until("done", lambda: worker.scheduler.board.done == 1)
    assert sent_bytes(site) == sent > 0
    assert PAGE not in worker.scheduler._unfinished and not worker.parts()


async def test_what_is_no_stream_is_thrown_away_and_fetched_anew(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror may send anything of the right length; each attempt joined the same bytes until the job was dead."""

    async def spoiled(ffmpeg: str, plan: MergePlan, may_publish: Callable[[], bool]) -> Any:
        monkeypatch.undo()
        size_bytes = Path(plan.video).stat().st_size
        Path(plan.video).write_bytes(b"#EXTM3U\n".ljust(size_bytes, b"\0"))
        return await download_scheduler.merge(ffmpeg, plan, may_publish)

    monkeypatch.setattr(download_scheduler, "merge", spoiled)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("failed", lambda: queue.counts() == Counts(0, 0, 1, 0, 0))
    await until("its end was told", lambda: worker.scheduler.board.failed == 1)
    assert not worker.parts()
    queue.redrive([PAGE])
    await until("done", lambda: worker.scheduler.board.done == 1)


@pytest.mark.parametrize("other_hangs", [False, True])
async def test_a_stream_that_fails_ends_the_other_one_which_keeps_its_bytes_and_its_lock_is_free(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, other_hangs: bool
) -> None:
    download, ended = download_scheduler.download_stream, asyncio.Event()

    async def one_sided(wire: Wire, source: StreamSource, *rest: Any) -> Any:
        if source.name.startswith("v"):
            if not other_hangs:
                await ended.wait()
            raise TransferError("no mirror")
        if other_hangs:
            await asyncio.sleep(3600)
        file = await download(wire, source, *rest)
        ended.set()
        return file

    monkeypatch.setattr(download_scheduler, "download_stream", one_sided)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("failed", lambda: queue.counts() == Counts(0, 0, 1, 0, 0))
    monkeypatch.undo()
    queue.redrive([PAGE])
    await until("done", lambda: queue.counts().done == 1)
    streams = [stream for stream in site.state.library.of_page(PLAIN.pages[0].cid) if _served(site, stream)]
    assert sent_bytes(site) == sum(stream.size_bytes for stream in streams)
    assert not worker.parts()


async def test_the_heartbeat_hears_that_the_loop_turns_and_ends_with_the_worker(start_worker: StartWorker) -> None:
    worker = await start_worker()
    heartbeat = worker.scheduler._heartbeat
    before = heartbeat._last_turn
    await until("two turns", lambda: heartbeat._last_turn > before + 0.4)
    await worker.stop()
    await until("its thread has ended", lambda: not heartbeat._thread.is_alive())


@pytest.mark.parametrize("verb", ["ack", "nack"])
async def test_a_job_whose_end_could_not_be_told_comes_back_at_once_and_nothing_is_lost(
    site: RunningSite,
    queue: Queue,
    connection: redis.Redis,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    original, describe, untold = getattr(QueueClient, verb), BiliClient.describe, list[Any]()

    async def cut_off(self: QueueClient, lease: Lease, *arguments: Any) -> Any:
        if not untold:
            untold.append((lease.url, worker.scheduler._results.unsure(), worker.scheduler.board.done))
            raise ServerUnreachable("away")
        return await original(self, lease, *arguments)

    async def failing(self: BiliClient, job: Any) -> Any:
        if not untold:
            raise SiteError("not now")
        return await describe(self, job)

    monkeypatch.setattr(QueueClient, verb, cut_off)
    if verb == "nack":
        monkeypatch.setattr(BiliClient, "describe", failing)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("done long before the lease ends", lambda: worker.scheduler.board.done == 1)
    assert untold == [(PAGE if verb == "ack" else PLAIN.bvid, (), 0)]  # nothing counts as done before it is recorded
    assert queue.counts() == Counts(0, 0, 0, 1, 0)
    assert worker.scheduler.board.failed == 0
    assert worker.scheduler._results.unsure() == (PAGE,)
    assert connection.get("{bili:0}:fence") == "3"
    assert len(list(worker.settings.download_dir.rglob("*.mp4"))) == 1


async def test_a_result_that_the_server_refuses_is_a_failed_attempt(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_arguments: Any) -> None:
        raise ServerError("it makes no sense", 400)

    monkeypatch.setattr(QueueClient, "ack", refuse)
    queue.add([PLAIN.bvid])
    await start_worker()
    await until("failed", lambda: queue.counts() == Counts(0, 0, 1, 0, 0))
    assert queue.failed("", 1)[0][0]["code"] == "refused"


async def test_a_failure_is_told_to_its_end_though_the_lease_ends_meanwhile_by_our_clock(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    nack, workers = QueueClient.nack, list[Worker]()

    async def slow(self: QueueClient, lease: Lease, *arguments: Any) -> Any:
        scheduler = workers[0].scheduler
        scheduler._held[lease.url].deadline = 0.0
        await until("a look at the clocks", next_tick(scheduler))
        return await nack(self, lease, *arguments)

    async def failing(*_arguments: Any) -> Any:
        raise SiteError("not now")

    monkeypatch.setattr(QueueClient, "nack", slow)
    monkeypatch.setattr(BiliClient, "describe", failing)
    monkeypatch.setattr("queue_client.Heartbeat._beat", _no_beat)
    queue.add([PLAIN.bvid])
    workers.append(await start_worker())
    await until("failed", lambda: workers[0].scheduler.board.failed == 1)
    assert queue.counts() == Counts(0, 0, 1, 0, 0)


def next_tick(scheduler: Scheduler) -> Callable[[], bool]:
    """Return what becomes true when the scheduler has looked at everything anew; the heartbeat hears of each look."""
    before = scheduler._heartbeat._last_turn
    turns = set[float]()

    def passed() -> bool:
        turns.add(scheduler._heartbeat._last_turn)
        return len(turns - {before}) >= 2

    return passed


@pytest.mark.slow
async def test_parking_grows_from_failure_to_failure_until_something_is_done(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []
    monkeypatch.setattr(download_scheduler.retry, "park_seconds", lambda count: failures.append(count) or 0.1)
    for name in ("OPEN", "OPEN_CAP", "PARKED_LEAST"):  # the server's word is obeyed, too
        monkeypatch.setattr(f"budgets.{name}_SECONDS", 0.1)
    site.state.risky.add(PLAIN.bvid)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("parked thrice", lambda: len(failures) >= 3)
    assert failures[:3] == [1, 2, 3]
    site.state.risky.clear()
    await until("done", lambda: worker.scheduler.board.done == 1)
    failures.clear()
    monkeypatch.setattr(download_scheduler.retry, "park_seconds", lambda count: failures.append(count) or 30.0)
    before = lease_clock()
    worker.scheduler._park(RiskControl("slow down", retry_after_seconds=900.0))
    assert failures == [1]
    assert before + 900 <= worker.scheduler._parked_until <= lease_clock() + 900


# ------------------------------------------------------------------------------------------ what lies here


@pytest.mark.parametrize("stands", [False, True])
async def test_a_finished_page_leaves_no_part_of_another_quality(
    queue: Queue, start_worker: StartWorker, settings: Settings, stands: bool
) -> None:
    cid = PLAIN.pages[0].cid
    part = PartFile.open(settings.download_dir / ".parts", Identity(PAGE, cid, "v6-7"), 100)
    part.prepare()
    part.write(part.take(100), bytes(100))
    part.close()
    record = Video(PLAIN.bvid, PLAIN.aid, PLAIN.title, (Page(1, cid, ""),))
    if stands:
        path = settings.download_dir / page_path("other", record, record.pages[0])
        path.parent.mkdir(parents=True)
        path.write_bytes(finished(cid))
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    assert worker.parts()
    await until("done", lambda: worker.scheduler.board.done == 1)
    assert not worker.parts()


async def test_unfinished_jobs_are_named_the_newest_first(
    queue: Queue, start_worker: StartWorker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    lease = QueueClient.lease

    async def noted(self: QueueClient, count: int, have: Sequence[str] = (), *rest: Any) -> Any:
        asked.append(tuple(have))
        return await lease(self, count, have, *rest)

    monkeypatch.setattr(QueueClient, "lease", noted)
    for cid in (1, 2, 3):
        part = PartFile.open(settings.download_dir / ".parts", Identity(f"{PLAIN.bvid}?p=1&cid={cid}", cid, "v"), 10)
        part.prepare()
        part.write(part.take(10), bytes(10))
        part.close()
        os.utime(settings.download_dir / ".parts" / f"{cid}-v-10.journal", (cid, cid))
    worker = await start_worker()
    await until("asked", lambda: asked)
    assert asked[0] == tuple(f"{PLAIN.bvid}?p=1&cid={cid}" for cid in (3, 2, 1))
    asked.clear()
    worker.scheduler._remember_chunks(f"{PLAIN.bvid}?p=1&cid=1")
    worker.scheduler._changed.set()
    await until("asked again", lambda: asked)
    assert asked[0][0] == f"{PLAIN.bvid}?p=1&cid=1" and len(asked[0]) == 3


async def test_a_result_is_told_again_only_while_its_file_stands_as_it_was(
    queue: Queue, connection: redis.Redis, start_worker: StartWorker
) -> None:
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("done", lambda: worker.scheduler.board.done == 1)
    ((url, result),) = worker.scheduler._results.oldest_first()
    stands, path = worker.scheduler._stands, worker.settings.download_dir / result.path
    assert (url, stands(url, result)) == (PAGE, True)
    assert not stands(PLAIN.bvid, result) and not stands("nonsense", result)
    connection.flushdb()
    path.write_bytes(path.read_bytes()[:-1])
    assert not stands(url, result)
    await worker.scheduler._replay(True, "")
    path.unlink()
    assert not stands(url, result)
    assert queue.counts().done == 0
    assert worker.scheduler._results.unsure() == ()  # or it would be asked for with each heartbeat


@pytest.mark.slow
async def test_other_data_are_told_the_newest_results_once(
    queue: Queue, connection: redis.Redis, start_worker: StartWorker
) -> None:
    """A failover may have lost one of two results that came at once, and the worker is asked about the other."""
    queue.add([PLAIN.bvid])
    queue.look_at_data()
    worker = await start_worker()
    await until("done", lambda: worker.scheduler.board.done == 1)
    results = worker.scheduler._results
    await until("it is noted whose data know it", lambda: not results.owes(queue.data_id))
    connection.delete(*connection.keys("{bili:0}:done:*"), "{bili:0}:totals")
    results.ask_no_more()  # nothing is asked about: only another name of the data can tell
    connection.set("{bili:0}:epoch", "another")
    queue.look_at_data()
    await until("told again", lambda: queue.counts().done == 1)
    await until("and noted", lambda: not results.owes(queue.data_id))
    assert ResultLog(results._path).owes("others") and not ResultLog(results._path).owes(queue.data_id)


# ------------------------------------------------------------------------------------------ the pipeline


@pytest.fixture
def many_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scheduler look at everything more often, so that a test need not wait for it."""
    monkeypatch.setattr(download_scheduler, "TICK_SECONDS", 0.05)


def stages(worker: Worker) -> list[str]:
    return sorted(view.stage for view in worker.scheduler.board.jobs.values())


class Merges:
    """Holds every merge until it is told to let them go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_end = asyncio.Event()
        self._merge = download_scheduler.merge
        monkeypatch.setattr(download_scheduler, "merge", self._held)

    async def _held(self, *arguments: Any) -> Any:
        await self.may_end.wait()
        return await self._merge(*arguments)


@pytest.mark.usefixtures("many_looks")
async def test_a_job_that_merges_leaves_its_slot_to_the_next_one(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = Merges(monkeypatch)
    queue.add([PLAIN.bvid, LARGE.bvid])
    worker = await start_worker()
    assert worker.scheduler.working.now.count == 1
    await until("the second one has all its bytes, too", lambda: stages(worker) == ["merging", "merging"])
    merges.may_end.set()
    await until("done", lambda: queue.counts() == Counts(0, 0, 0, 2, 0))


@pytest.mark.usefixtures("many_looks")
async def test_no_download_begins_while_too_many_wait_for_their_merge(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler, "MERGES_AT_MOST", 0)
    merges = Merges(monkeypatch)
    queue.add([PLAIN.bvid, LARGE.bvid])
    worker = await start_worker()
    await until("the first one merges", lambda: "merging" in stages(worker))
    for _look in range(3):
        await until("a look at everything", next_tick(worker.scheduler))
        assert stages(worker) in (["merging"], ["merging", "waiting"])
    merges.may_end.set()
    await until("done", lambda: queue.counts() == Counts(0, 0, 0, 2, 0))


async def prepared(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker of one slot believe that the running download is about to end, until the next job is prepared."""
    monkeypatch.setattr(JobView, "seconds_left", 1.0)
    await until("the next one is prepared", lambda: stages(worker) == ["downloading", "waiting"])


@pytest.mark.usefixtures("many_looks")
async def test_the_next_job_is_prepared_when_the_one_before_is_about_to_end_and_not_earlier(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(site, MIB / 4)
    queue.add([LARGE.bvid, PLAIN.bvid])
    worker = await start_worker()
    await until("it comes", lambda: sent_bytes(site) > MIB // 4)
    for _look in range(3):
        await until("a look at everything", next_tick(worker.scheduler))
        assert stages(worker) == ["downloading"] and queue.counts().leased == 1
    await prepared(worker, monkeypatch)
    assert queue.counts() == Counts(0, 2, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("many_looks")
async def test_a_prepared_job_goes_back_when_no_slot_comes_free_and_none_is_prepared_until_one_does(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler, "PREPARED_SECONDS", 0.2)
    slowly(site, MIB / 4)
    queue.add([LARGE.bvid, PLAIN.bvid])
    worker = await start_worker()
    await until("it comes", lambda: sent_bytes(site) > MIB // 4)
    await prepared(worker, monkeypatch)
    await until("it went back", lambda: queue.counts() == Counts(1, 1, 0, 0, 0))
    for _look in range(3):
        await until("a look at everything", next_tick(worker.scheduler))
        assert queue.counts() == Counts(1, 1, 0, 0, 0)
    slowly(site, 0)
    await until("done", lambda: queue.counts().done == 2)
    assert worker.scheduler._prepares and worker.scheduler.board.failed == 0


@pytest.mark.usefixtures("many_looks")
async def test_a_smaller_count_gives_prepared_jobs_back_and_ends_none_that_runs(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(site, MIB / 4)
    queue.add([LARGE.bvid, video("large-b").bvid])
    worker = await start_worker()
    worker.steer(stop=1, count=2)
    await until("both come", lambda: stages(worker) == ["downloading", "downloading"])
    queue.add([PLAIN.bvid])
    monkeypatch.setattr(JobView, "seconds_left", 1.0)
    await until("the next one is prepared", lambda: "waiting" in stages(worker))
    worker.steer(stop=1, count=1)
    await until("it went back", lambda: queue.counts() == Counts(1, 2, 0, 0, 0))
    assert stages(worker) == ["downloading", "downloading"]


@pytest.mark.usefixtures("many_looks")
async def test_a_prepared_job_does_not_begin_in_a_pause_and_goes_back_with_the_others_when_that_lasts(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(site, MIB / 4)
    queue.add([LARGE.bvid, PLAIN.bvid])
    worker = await start_worker()
    await until("it comes", lambda: sent_bytes(site) > MIB // 4)
    await prepared(worker, monkeypatch)
    monkeypatch.setattr(download_scheduler, "PREPARED_SECONDS", 0.0)
    worker.steer(stop=0)
    await until("paused", lambda: worker.scheduler.board.state == "paused")
    worker.steer(stop=0, count=5)
    for _look in range(2):
        await until("a look at everything", next_tick(worker.scheduler))
        assert stages(worker) == ["downloading", "waiting"]  # though there are slots by now
    monkeypatch.setattr(download_scheduler, "PAUSE_LIMIT_SECONDS", 0.0)
    await until("both went back", lambda: queue.counts() == Counts(2, 0, 0, 0, 0))


@pytest.mark.usefixtures("many_looks")
async def test_a_worker_that_prepares_ahead_is_empty_once_for_a_job_that_must_be_alone(
    queue: Queue, connection: redis.Redis, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, lease = list[int](), QueueClient.lease

    async def noted(self: QueueClient, *arguments: Any) -> Any:
        answer = await lease(self, *arguments)
        if any(one.url.startswith(LARGE.bvid) for one in answer.leases):
            alone.append(int(connection.hget("{bili:0}:holds", "w1") or 0))
        return answer

    monkeypatch.setattr(QueueClient, "lease", noted)
    queue.add([record.bvid for record in map(video, ("plain", "large-b"))])
    connection.rpush("{bili:0}:suspect", LARGE.bvid)
    connection.hset("{bili:0}:tries", LARGE.bvid, json.dumps({"attempts": 0, "deaths": 2}))
    worker = await start_worker()
    worker.steer(stop=1, count=2)
    await until("done", lambda: not sum((queue.counts().ready, queue.counts().leased)), 60)
    assert queue.counts().delayed == queue.counts().dead == 0
    assert alone[:1] == [1]  # the suspect's own lease


# ------------------------------------------------------------------------------------------ room on the disk


def view_of(cid: int, planned_bytes: int, stage: str = "waiting") -> JobView:
    return JobView(f"{PLAIN.bvid}?p=1&cid={cid}", cid=cid, planned_bytes=planned_bytes, stage=stage)


def disks(monkeypatch: pytest.MonkeyPatch, free_bytes: Callable[[Path], int], two: bool = False) -> None:
    monkeypatch.setattr(download_scheduler, "_free_bytes", free_bytes)
    monkeypatch.setattr(download_scheduler, "_device", lambda folder: int(two and folder.name == "scratch"))


async def test_a_job_needs_room_for_its_streams_and_its_file_beside_what_others_will_still_write(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = (await start_worker()).scheduler
    disks(monkeypatch, lambda _folder: RESERVE_BYTES + 400)
    scheduler._check_room(view_of(1, 200))
    with pytest.raises(DiskFull, match="make room"):
        scheduler._check_room(view_of(1, 201))
    other = scheduler.board.jobs["other"] = view_of(2, 100, "downloading")
    scheduler._check_room(view_of(1, 100))
    with pytest.raises(DiskFull):
        scheduler._check_room(view_of(1, 101))
    for stage in ("describing", "waiting", "recording"):  # it is checked itself, or has written everything
        other.stage = stage
        scheduler._check_room(view_of(1, 200))
    other.stage = "merging"
    with pytest.raises(DiskFull):
        scheduler._check_room(view_of(1, 101))


async def test_what_the_parts_of_running_jobs_have_taken_already_is_not_counted_twice(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start_worker()
    worker.settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    disks(monkeypatch, lambda _folder: RESERVE_BYTES + 3 * MIB)
    worker.scheduler.board.jobs["other"] = view_of(2, 2 * MIB, "downloading")
    (worker.settings.scratch_dir / "3-v80-7-9.m4s").write_bytes(bytes(2 * MIB))  # nobody's who runs
    with pytest.raises(DiskFull):
        worker.scheduler._check_room(view_of(1, MIB // 2))
    (worker.settings.scratch_dir / "2-v80-7-9.m4s").write_bytes(bytes(2 * MIB))
    worker.scheduler._check_room(view_of(1, MIB // 2))
    with pytest.raises(DiskFull):
        worker.scheduler._check_room(view_of(1, MIB))


@pytest.mark.parametrize("short_of_room", ["scratch", "Download"])
async def test_a_scratch_folder_and_a_library_on_two_disks_are_both_looked_at(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short_of_room: str
) -> None:
    scheduler = (await start_worker(scratch=tmp_path / "scratch")).scheduler
    free = {"scratch": RESERVE_BYTES + 400, "Download": RESERVE_BYTES + 200}
    disks(monkeypatch, lambda folder: free[folder.name], two=True)
    scheduler._check_room(view_of(1, 200))
    free[short_of_room] -= 1
    with pytest.raises(DiskFull, match=short_of_room):
        scheduler._check_room(view_of(1, 200))


@pytest.mark.usefixtures("many_looks")
async def test_a_job_that_does_not_fit_fetches_nothing_and_waits_for_room(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler.retry, "park_seconds", lambda failures: 0.3)
    monkeypatch.setattr(page_streams, "streams_bytes", lambda *_about: STREAM_BYTES)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("parked", lambda: worker.scheduler.board.state == "parked")
    assert sent_bytes(site) == 0 and queue.counts().dead == queue.counts().delayed == 0
    monkeypatch.undo()
    await until("done", lambda: queue.counts().done == 1)


async def test_unfinished_work_lies_in_the_scratch_folder_that_was_set(
    site: RunningSite, queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    slowly(site, MIB / 4)
    queue.add([LARGE.bvid])
    worker = await start_worker(scratch=tmp_path / "scratch")
    await until("it comes", lambda: list((tmp_path / "scratch").glob("*.m4s")))
    assert not worker.parts()
    slowly(site, 0)
    await until("done", lambda: worker.scheduler.board.done == 1)
    assert not list((tmp_path / "scratch").glob("*.m4s"))


# ------------------------------------------------------------------------------------------ leases


async def test_leases_beyond_what_was_asked_for_go_back_at_once(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a repeated request may give more than this worker has room for by now."""
    lease, hang = QueueClient.lease, asyncio.Event()

    async def generous(self: QueueClient, _count: int, *rest: Any) -> Any:
        return await lease(self, 3, *rest)

    async def hanging(*_arguments: Any) -> Any:
        await hang.wait()

    monkeypatch.setattr(QueueClient, "lease", generous)
    monkeypatch.setattr(BiliClient, "describe", hanging)
    queue.add([PLAIN.bvid, LARGE.bvid, "BV1xx411c7mD"])
    worker = await start_worker()
    await until("one is in work, the others went back", lambda: queue.counts() == Counts(2, 1, 0, 0, 0))
    assert len(worker.scheduler.board.jobs) == len(worker.scheduler._jobs) == 1


async def test_a_lease_counts_from_when_it_was_asked_for_and_the_same_one_twice_is_one(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, asked = QueueClient.lease, list[float]()

    async def late(self: QueueClient, *arguments: Any) -> Any:
        asked.append(lease_clock())
        answer = await lease(self, *arguments)
        await asyncio.sleep(0.5)
        return answer

    async def hanging(*_arguments: Any) -> Any:
        await asyncio.sleep(3600)

    monkeypatch.setattr(QueueClient, "lease", late)
    monkeypatch.setattr(BiliClient, "describe", hanging)
    monkeypatch.setattr("queue_client.Heartbeat._beat", _no_beat)
    queue.add([PLAIN.bvid])
    scheduler = (await start_worker()).scheduler
    (held,) = await until("leased", lambda: list(scheduler._held.values()))
    assert held.deadline <= asked[-1] + held.lease.lease_seconds * OWN_SHARE

    scheduler._start(held.lease, lease_clock())  # a repeated answer
    assert scheduler._held == {PLAIN.bvid: held} and len(scheduler._jobs) == 1
    scheduler._start(replace(held.lease, token="another"), lease_clock())
    await until("the old task has ended", lambda: len(scheduler._jobs) == 1)
    (anew,) = scheduler._held.values()
    assert anew.lease.token == "another"
    scheduler._take_beat(Beat(lost=(held,)))  # it speaks of the old lease
    (task,) = scheduler._jobs
    assert scheduler._held == {PLAIN.bvid: anew} and task.cancelling() == 0


async def test_a_paused_worker_leases_nothing(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def noted(*arguments: Any) -> Any:
        asked.append(arguments)
        raise ServerUnreachable("away")

    worker = await start_worker()
    worker.steer(stop=0)
    await until("paused", lambda: worker.scheduler.board.state == "paused")
    monkeypatch.setattr(QueueClient, "lease", noted)
    queue.add([PLAIN.bvid])
    worker.scheduler._changed.set()
    await until("the leasing has looked", lambda: not worker.scheduler._changed.is_set())
    assert asked == []
    worker.steer(stop=1)
    await until("it asks again", lambda: asked)


async def test_a_queue_is_not_empty_while_somebody_works(queue: Queue, start_worker: StartWorker) -> None:
    worker = await start_worker()
    await until("running", lambda: worker.scheduler.board.state == "running")
    assert await worker.scheduler._status_when_empty(0.0) == 0
    worker.steer(stop=0)
    await until("paused", lambda: worker.scheduler.board.state == "paused")
    queue.add([PLAIN.bvid])
    assert await worker.scheduler._status_when_empty(0.0) is None
    (lease,) = queue.lease("w2", 1)
    assert await worker.scheduler._status_when_empty(0.0) is None
    queue.nack(lease.url, lease.token, Failure("transient", "x", "y"))
    assert await worker.scheduler._status_when_empty(0.0) == download_scheduler.EXIT_DELAYED
    assert await worker.scheduler._status_when_empty(1e6) is None


# ------------------------------------------------------------------------------------------ names that are taken


async def test_a_name_that_is_taken_again_and_again_is_given_up(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone_again(output: Path) -> None:
        raise NameTaken(str(output))

    seen = before_publishing(monkeypatch, gone_again)
    queue.add([PLAIN.bvid])
    await start_worker()
    await until("failed", lambda: queue.counts().delayed == 1)
    assert len(seen) == download_scheduler.MERGE_ATTEMPTS == 3


def finished(cid: int) -> bytes:
    """Return a finished file of another page, or of ours that another worker made."""
    return _finished_file(f"https://www.bilibili.com/video/{PLAIN.bvid}?p=1 cid={cid}")


@functools.cache
def _finished_file(tag: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=32x32:d=0.2"]
        subprocess.run([*command, "-metadata", f"comment={tag}", "-movflags", "+faststart", str(path)], check=True)
        return path.read_bytes()


def before_publishing(monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], object]) -> list[Path]:
    """Call ``do`` with the file's place after the scheduler's last look and before it gets its name."""
    publish, seen = merge_stream_file._publish, list[Path]()

    def late(temporary: Path, lock: Any, output: Path) -> None:
        seen.append(output)
        do(output)
        publish(temporary, lock, output)

    monkeypatch.setattr(merge_stream_file, "_publish", late)
    return seen


def success(queue: Queue) -> dict[str, Any]:
    (record,), _next = queue.success("", 10)
    return record


async def test_a_page_whose_name_another_page_takes_in_the_last_moment_gets_its_cid_into_the_name(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(output: Path) -> None:
        if "[" + str(PLAIN.pages[0].cid) + "]" not in output.name:
            output.write_bytes(finished(424242))

    seen = before_publishing(monkeypatch, take)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("done", lambda: queue.counts().done == 1)
    assert worker.scheduler.board.failed == 0 and len(seen) == 2
    assert seen[0].read_bytes() == finished(424242)
    assert success(queue)["path"] == str(seen[1].relative_to(worker.settings.download_dir))
    assert seen[1].name.endswith(f" [{PLAIN.pages[0].cid}].mp4")
    await until("no part is left", lambda: not worker.parts())
    assert not list(worker.settings.download_dir.rglob("*.tmp"))


async def test_a_page_that_another_worker_finished_in_the_last_moment_is_recorded_as_it_stands(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = finished(PLAIN.pages[0].cid)
    seen = before_publishing(monkeypatch, lambda output: output.write_bytes(ours))
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("done", lambda: queue.counts().done == 1)
    assert worker.scheduler.board.failed == 0
    assert len(seen) == 1 and seen[0].read_bytes() == ours
    assert success(queue)["bytes"] == len(ours)
    await until("no part is left", lambda: not worker.parts())
    assert [path.name for path in worker.settings.download_dir.rglob("*.mp4")] == [seen[0].name]


@pytest.mark.parametrize("is_video", [False, True])
async def test_strange_files_are_never_overwritten_and_the_failure_names_the_one_in_the_way(
    site: RunningSite, queue: Queue, start_worker: StartWorker, settings: Settings, is_video: bool
) -> None:
    strange = _finished_file("my own film") if is_video else b"my own film"
    record = Video(PLAIN.bvid, PLAIN.aid, PLAIN.title, (Page(1, PLAIN.pages[0].cid, ""),))
    names = [page_path("other", record, record.pages[0], with_cid) for with_cid in (False, True)]
    for name in names:
        (settings.download_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.download_dir / name).write_bytes(strange)
    queue.add([PLAIN.bvid])
    await start_worker()
    await until("failed", lambda: queue.counts().delayed == 1)
    (failure,), _next = queue.failed("", 10)
    assert failure["code"] == "name-taken" and str(names[1]) in failure["reason"]
    assert sent_bytes(site) == 0  # found before the download
    assert [(settings.download_dir / name).read_bytes() for name in names] == [strange] * 2
    (settings.download_dir / names[1]).unlink()
    queue.redrive([failure["url"]])
    await until("done", lambda: queue.counts().done == 1)
    assert success(queue)["path"] == str(names[1])


async def test_a_finished_file_that_lost_its_end_is_not_taken_for_the_page(
    queue: Queue, start_worker: StartWorker, settings: Settings
) -> None:
    record = Video(PLAIN.bvid, PLAIN.aid, PLAIN.title, (Page(1, PLAIN.pages[0].cid, ""),))
    path = settings.download_dir / page_path("other", record, record.pages[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(cut := finished(PLAIN.pages[0].cid)[:-1])
    queue.add([PLAIN.bvid])
    await start_worker()
    await until("done", lambda: queue.counts().done == 1)
    assert success(queue)["path"] == str(page_path("other", record, record.pages[0], with_cid=True))
    assert path.read_bytes() == cut


async def test_a_link_that_leads_nowhere_is_left_alone_too(
    queue: Queue, start_worker: StartWorker, settings: Settings
) -> None:
    record = Video(PLAIN.bvid, PLAIN.aid, PLAIN.title, (Page(1, PLAIN.pages[0].cid, ""),))
    link = settings.download_dir / page_path("other", record, record.pages[0])
    link.parent.mkdir(parents=True)
    link.symlink_to("nowhere")
    queue.add([PLAIN.bvid])
    await start_worker()
    await until("done", lambda: queue.counts().done == 1)
    assert link.is_symlink() and not link.exists()


# ------------------------------------------------------------------------------------------ wishes

RICH, WITHHELD = video("rich"), video("login-quality")
slow = pytest.mark.slow


def served(site: RunningSite, cid: int) -> set[tuple[int, int]]:
    """Return id and codecid of the streams of a page of which anything was sent."""
    objects = site.stats()["objects"]
    return {(stream.id, stream.codecid) for stream in site.state.library.of_page(cid) if stream.url_path in objects}


@pytest.mark.parametrize(
    ("wishes", "extension", "streams"),
    [
        ({}, "mp4", {(127, 12), (30280, 0)}),
        ({"quality": "1080p", "audio": "hires"}, "mkv", {(80, 7), (30251, 0)}),
        ({"streams": "audio", "audio": "best"}, "m4a", {(30251, 0)}),
        pytest.param({"quality": "dolby", "audio": "dolby"}, "mp4", {(126, 12), (30250, 0)}, marks=slow),
        pytest.param({"quality": "hdr", "streams": "video"}, "mp4", {(125, 12)}, marks=slow),
        pytest.param({"codecs": "av1,avc,hevc", "container": "mkv"}, "mkv", {(127, 13), (30280, 0)}, marks=slow),
        pytest.param({"quality": "4k", "codecs": "avc,av1,hevc"}, "mp4", {(120, 7), (30280, 0)}, marks=slow),
        pytest.param({"quality": "720p", "codecs": "av1,avc,hevc"}, "mp4", {(64, 13), (30280, 0)}, marks=slow),
        pytest.param({"quality": "1080p60", "audio": "none"}, "mp4", {(116, 7)}, marks=slow),
        pytest.param({"streams": "audio", "audio": "64k", "container": "mkv"}, "mka", {(30216, 0)}, marks=slow),
    ],
)
async def test_what_was_wished_is_downloaded_and_nothing_else(
    site: RunningSite,
    queue: Queue,
    start_worker: StartWorker,
    wishes: dict[str, str],
    extension: str,
    streams: set[tuple[int, int]],
) -> None:
    queue.add([RICH.bvid])
    worker = await start_worker(**wishes)
    await until("done", lambda: queue.counts().done == 1)
    assert served(site, RICH.pages[0].cid) == streams
    path = worker.settings.download_dir / success(queue)["path"]
    assert path.name.endswith(f" [{RICH.bvid}].{extension}")
    assert download_scheduler._cid_of(path) == RICH.pages[0].cid
    assert [each for each in path.parent.iterdir() if not each.name.startswith(".")] == [path]


@pytest.mark.parametrize(
    ("streams", "name", "is_ours"),
    [
        *(("both", "mkv", True), ("both", "m4a", False), ("audio", "mka", True)),
        *(pytest.param("audio", "mp4", False, marks=slow), pytest.param("video", "mkv", True, marks=slow)),
    ],
)
async def test_a_file_of_a_dead_worker_is_the_page_in_any_container_but_sound_alone_is_no_video(
    site: RunningSite,
    queue: Queue,
    start_worker: StartWorker,
    settings: Settings,
    streams: str,
    name: str,
    is_ours: bool,
) -> None:
    cid = PLAIN.pages[0].cid
    path = settings.download_dir / page_path("other", _as_video(PLAIN), _as_video(PLAIN).pages[0], False, name)
    path.parent.mkdir(parents=True)
    path.write_bytes(found := _remuxed(f"{PLAIN.bvid} cid={cid}", name))
    queue.add([PLAIN.bvid])
    worker = await start_worker(streams=streams)
    await until("done", lambda: queue.counts().done == 1)
    assert (sent_bytes(site) == 0) == is_ours
    assert path.read_bytes() == found
    done = worker.settings.download_dir / success(queue)["path"]
    assert (done == path) == is_ours and done.stem == path.stem
    assert worker.scheduler.board.failed == 0


@pytest.mark.parametrize("name", ["mkv", "m4a"])
async def test_a_name_that_another_page_has_in_any_container_gets_the_cid(
    queue: Queue, start_worker: StartWorker, settings: Settings, name: str
) -> None:
    path = settings.download_dir / page_path("other", _as_video(PLAIN), _as_video(PLAIN).pages[0], False, name)
    path.parent.mkdir(parents=True)
    path.write_bytes(_remuxed("another cid=424242", name))
    queue.add([PLAIN.bvid])
    await start_worker()
    await until("done", lambda: queue.counts().done == 1)
    assert success(queue)["path"].endswith(f"{path.stem} [{PLAIN.pages[0].cid}].mp4")


def _as_video(record: Any) -> Video:
    return Video(record.bvid, record.aid, record.title, (Page(1, record.pages[0].cid, ""),))


@functools.cache
def _remuxed(tag: str, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{name}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=d=0.2", "-metadata"]
        form = "matroska" if name.startswith("mk") else "mp4"
        subprocess.run([*command, f"comment={tag}", "-c:a", "aac", "-f", form, str(path)], check=True)
        return path.read_bytes()


@pytest.mark.slow
async def test_with_a_dead_cookie_nothing_below_the_floor_is_stored_and_a_good_one_gets_it_all(
    site: RunningSite, queue: Queue, connection: redis.Redis, start_worker: StartWorker
) -> None:
    """What the site gives everybody goes on, and no attempt is used up; tests of the queue say how long that holds."""
    queue.add([WITHHELD.bvid, LARGE.bvid, video("same-title-a").bvid])
    floor = {"sessdata": "expired", "min_quality": "1080p", "quality": "1080p"}
    worker = await start_worker(**floor)
    await until("all others are done", lambda: queue.counts() == Counts(0, 0, 1, 2, 0))
    assert served(site, WITHHELD.pages[0].cid) == set()
    url = f"{WITHHELD.bvid}?p=1&cid={WITHHELD.pages[0].cid}"
    for _look in range(2):
        (failure,), _next = queue.failed("", 10)
        assert (failure["url"], failure["code"], failure["attempts"]) == (url, "below-floor", 0)
        assert failure["reason"].startswith("login? ") and failure["next_retry_seconds"] > 200
        assert worker.scheduler.board.state == "running"
        looks = worker.scheduler.board.failed
        connection.zadd("{bili:0}:delayed", {url: 1}, xx=True)
        await until("looked at again", lambda looks=looks: worker.scheduler.board.failed == looks + 1)
        await until("delayed again", lambda: queue.counts() == Counts(0, 0, 1, 2, 0))
    await worker.stop()
    assert served(site, WITHHELD.pages[0].cid) == set()
    await start_worker("w2", **{**floor, "sessdata": "good"})
    queue.redrive([url])
    await until("done", lambda: queue.counts() == Counts(0, 0, 0, 3, 0))
    assert (80, 7) in served(site, WITHHELD.pages[0].cid)


async def test_a_cookie_that_dies_while_a_video_comes_does_not_lower_it(
    site: RunningSite, queue: Queue, start_worker: StartWorker
) -> None:
    """The addresses die as well: whoever asks anew is a guest by then."""
    site.state.lifetime_seconds = 1.0
    slowly(site, MIB / 4)
    queue.add([WITHHELD.bvid])
    worker = await start_worker(sessdata="mortal", min_quality="1080p")
    await until("some bytes came", lambda: (80, 7) in served(site, WITHHELD.pages[0].cid))
    site.state.passport.killed.add("mortal")
    await until("it waits", lambda: queue.counts() == Counts(0, 0, 1, 0, 0))
    assert queue.failed("", 1)[0][0]["code"] == "below-floor"
    assert not {(32, 7), (16, 7)} & served(site, WITHHELD.pages[0].cid)
    assert worker.parts()


# ------------------------------------------------------------------------------------------ lost leases


async def test_a_job_that_another_worker_has_now_is_stopped_and_leaves_no_file(
    site: RunningSite, queue: Queue, connection: redis.Redis, start_worker: StartWorker
) -> None:
    slowly(site)
    queue.add([LARGE.bvid])
    worker = await start_worker()
    await until("some chunks came", lambda: sent_bytes(site) > 2 * MIB)
    url = next(iter(worker.scheduler.board.jobs))
    # The lease runs out and moves while this worker believes in it.
    connection.zadd("{bili:0}:leased", {url: 1})
    queue.sweep()
    connection.zadd("{bili:0}:kept", {url: 1}, xx=True)
    (other,) = queue.lease("w2", 1)
    assert other.url == url
    await until("it lets go", lambda: not worker.scheduler.board.jobs)
    assert queue.counts() == Counts(0, 1, 0, 0, 0)
    assert not list(worker.settings.download_dir.rglob("*.mp4"))
    assert worker.parts()


@pytest.mark.parametrize("verb", ["expand", "ack"])
async def test_a_heartbeat_that_crosses_the_end_of_a_lease_ends_nothing(
    queue: Queue,
    connection: redis.Redis,
    start_worker: StartWorker,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    """The server has ended the lease by then, so it calls it lost; what came in its place must not be dropped."""
    original = getattr(QueueClient, verb)
    workers: list[Worker] = []

    async def crossed(self: QueueClient, lease: Lease, *arguments: Any) -> Any:
        scheduler = workers[0].scheduler
        held = scheduler._held.get(lease.url)
        answer = await original(self, lease, *arguments)
        assert held is not None
        scheduler._take_beat(Beat(lost=(held,)))
        await asyncio.sleep(0)  # a cancellation would arrive here
        return answer

    monkeypatch.setattr(QueueClient, verb, crossed)
    queue.add([PLAIN.bvid])
    workers.append(await start_worker())
    await until("done", lambda: workers[0].scheduler.board.done == 1)
    assert queue.counts() == Counts(0, 0, 0, 1, 0)
    assert connection.get("{bili:0}:fence") == "2"  # the container's lease and the page's, no third one


async def test_a_worker_that_cannot_renew_stops_by_its_own_clock(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(site, MIB / 4)  # it would not be over within the time that is waited for
    queue.add([LARGE.bvid])
    worker = await start_worker()
    await until("some chunks came", lambda: sent_bytes(site) > MIB)
    (held,) = worker.scheduler._held.values()
    monkeypatch.setattr("queue_client.Heartbeat._beat", _no_beat)
    held.deadline = 0.0
    await until("it lets go", lambda: not worker.scheduler.board.jobs)
    assert worker.parts()


async def test_a_worker_that_was_cut_off_apologizes_and_its_job_is_not_blamed(
    site: RunningSite, queue: Queue, connection: redis.Redis, start_worker: StartWorker
) -> None:
    slowly(site, MIB / 4)
    queue.add([LARGE.bvid])
    worker = await start_worker()
    await until("some chunks came", lambda: sent_bytes(site) > 2 * MIB)
    (held,) = worker.scheduler._held.values()
    connection.zadd("{bili:0}:leased", {held.lease.url: 1})
    held.deadline = 0.0
    queue.sweep()
    assert json.loads(connection.hget("{bili:0}:tries", held.lease.url))["deaths"] == 1
    await until("it lets go", lambda: held not in worker.scheduler._held.values())
    await until(
        "the death is taken off",
        lambda: json.loads(connection.hget("{bili:0}:tries", held.lease.url))["deaths"] == 0,
    )


async def test_a_job_that_was_given_up_while_the_server_kept_it_goes_back_at_once(
    site: RunningSite, queue: Queue, start_worker: StartWorker
) -> None:
    """Nobody would work on it until its lease ran out."""
    slowly(site, MIB / 4)
    queue.add([LARGE.bvid])
    worker = await start_worker()
    await until("some chunks came", lambda: sent_bytes(site) > MIB)
    (held,) = worker.scheduler._held.values()

    def is_dropped() -> bool:
        held.deadline = 0.0  # a heartbeat may have moved it on
        return held not in worker.scheduler._held.values()

    await until("it lets go", is_dropped)
    assert held.lease.url in worker.scheduler._unfinished
    (again,) = await until("it is leased anew", lambda: list(worker.scheduler._held.values()))
    assert (again.lease.url, again.lease.token == held.lease.token) == (held.lease.url, False)


async def test_a_file_whose_lease_ran_out_while_it_was_merged_gets_no_name(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, workers, merged = merge_stream_file.check_output, list[Worker](), asyncio.Event()

    def late(*arguments: Any) -> Any:
        answer = check(*arguments)
        for held in workers[0].scheduler._held.values():
            held.deadline = 0.0
        loop.call_soon_threadsafe(merged.set)
        return answer

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(merge_stream_file, "check_output", late)
    monkeypatch.setattr("queue_client.Heartbeat._beat", _no_beat)
    monkeypatch.setattr("pace.Pace.await_word", lambda pace: None)  # no beat will bring it
    queue.add([PLAIN.bvid])
    workers.append(await start_worker())
    async with asyncio.timeout(20):
        await merged.wait()
    await until("it lets go", lambda: not workers[0].scheduler.board.jobs)
    assert not list(workers[0].settings.download_dir.rglob("*.mp4"))
    assert queue.counts() == Counts(0, 1, 0, 0, 0)
    assert PAGE in workers[0].scheduler._unfinished and workers[0].parts()


# ------------------------------------------------------------------------------------------ stopping


async def test_a_stop_while_the_answer_to_a_lease_request_is_on_its_way_leaves_no_lease_behind(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, workers, given = QueueClient._once, list[Worker](), list[Any]()

    async def delayed(self: QueueClient, *arguments: Any) -> Any:
        answer = await once(self, *arguments)
        if "/get_url" in arguments and not given and answer[0]:
            given.extend(answer[0])
            workers[0].scheduler.stop()
            await asyncio.sleep(3600)
        return answer

    monkeypatch.setattr(QueueClient, "_once", delayed)
    queue.add([PLAIN.bvid, LARGE.bvid])
    workers.append(await start_worker())
    await workers[0].task
    assert len(given) == 1
    assert queue.counts() == Counts(2, 0, 0, 0, 0)


@pytest.mark.parametrize("verb", ["lease", "expand"])
async def test_a_stop_in_the_middle_of_a_verb_leaves_no_lease_behind(
    queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    original = getattr(QueueClient, verb)
    workers: list[Worker] = []

    async def stopping(self: QueueClient, *arguments: Any) -> Any:
        answer = original(self, *arguments)
        if queue.counts().ready + queue.counts().leased:
            workers[0].scheduler.stop()
        return await answer

    queue.add([PLAIN.bvid, LARGE.bvid])
    workers.append(await start_worker())
    monkeypatch.setattr(QueueClient, verb, stopping)
    await workers[0].task
    assert queue.counts().leased == 0
    assert queue.counts().ready == 2


@pytest.mark.slow
async def test_a_stop_does_not_wait_for_a_server_that_does_not_answer(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def silent(*_arguments: Any) -> Any:
        asked.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(QueueClient, "_once", silent)
    worker = await start_worker()
    await asked.wait()
    worker.scheduler.stop()
    async with asyncio.timeout(10):  # it gives up its goodbye after 1.5 s
        assert await worker.task == 0


async def test_a_ticker_that_dies_is_not_silent(start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "sample", lambda *_arguments: 1 / 0)
    worker = await start_worker()
    with pytest.raises(ZeroDivisionError):
        await worker.task


async def _no_beat(*_arguments: object) -> None:
    return None


# ------------------------------------------------------------------------------------------ working.json


@pytest.mark.usefixtures("many_looks")
async def test_a_speed_in_the_file_holds_at_once_and_without_one_the_setting(
    start_worker: StartWorker, settings: Settings
) -> None:
    worker = await start_worker(max_bytes_per_second=5.0 * MIB)
    limit = worker.scheduler._wire.limit
    await until("the setting holds", lambda: limit.bytes_per_second == 5 * MIB)
    for written, speed in (('"2M"', 2 * MIB), ("0", None), ("null", 5 * MIB)):
        settings.working_file.write_text(f'{{"stop": 1, "count": 1, "max_speed": {written}}}', "utf-8")
        await until("it is obeyed", lambda speed=speed: limit.bytes_per_second == speed)


# ------------------------------------------------------------------------------------------ what comes with a video


def library(worker: Worker) -> set[str]:
    base = worker.settings.download_dir
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file() and ".parts" not in path.parts}


PLAIN_STEM = f"other/{PLAIN.title} [{PLAIN.bvid}]"


async def test_what_is_wanted_lies_beside_the_video_and_nothing_else_is_left(
    queue: Queue, start_worker: StartWorker
) -> None:
    queue.add([PLAIN.bvid])
    worker = await start_worker(extras=("danmaku", "subtitles", "cover", "cover-file", "nfo"), sessdata="demo")
    await until("done", lambda: queue.counts().done == 1)
    suffixes = (".danmaku.ass", "-poster.jpg", ".nfo", ".zh-CN.srt", ".en-US.srt", ".zh.ai.srt")
    assert library(worker) == {PLAIN_STEM + suffix for suffix in (".mp4", *suffixes)}
    assert not list((worker.settings.download_dir / ".parts").iterdir())


async def test_no_extra_fails_a_video_and_risk_control_in_one_parks_the_worker(
    site: RunningSite, queue: Queue, start_worker: StartWorker
) -> None:
    site.fault("risk_control", scope="api", path="/x/player/wbi/v2")
    site.fault("cut", path="/bfs/*", bytes=10)
    queue.add([PLAIN.bvid])
    worker = await start_worker(extras=("chapters", "subtitles", "cover", "cover-file", "nfo"))
    await until("parked", lambda: worker.scheduler.board.state == "parked")
    await until("done", lambda: queue.counts().done == 1)
    assert library(worker) == {f"{PLAIN_STEM}.mp4", f"{PLAIN_STEM}.nfo"}
    assert worker.scheduler._park_failures == 1  # the video that was done does not make it forget


async def test_a_file_that_is_there_gets_the_extras_that_it_lacks(
    site: RunningSite, queue: Queue, connection: redis.Redis, start_worker: StartWorker
) -> None:
    queue.add([PLAIN.bvid])
    worker = await start_worker(extras=("json",))
    await until("done", lambda: queue.counts().done == 1)
    await worker.stop()
    sent = sent_bytes(site)
    connection.flushall()
    queue.add([PLAIN.bvid])
    second = await start_worker("w2", extras=("nfo", "json"), data_dir=worker.settings.data_dir / "second")
    await until("done again", lambda: queue.counts().done == 1)
    assert library(second) == {PLAIN_STEM + suffix for suffix in (".mp4", ".nfo", ".info.json")}
    assert sent_bytes(site) == sent and site.stats()["routes"]["/x/web-interface/view"] == 3


async def test_a_template_says_where_a_video_goes_and_where_it_is_found_again(
    site: RunningSite, queue: Queue, connection: redis.Redis, start_worker: StartWorker, tmp_path: Path
) -> None:
    wanted = {"output": parse_output("{owner}/{date}/{title}"), "extras": ("nfo",)}
    sent = []
    for turn in ("w1", "w2"):
        connection.flushall()
        queue.add([PLAIN.bvid])
        worker = await start_worker(turn, **wanted, data_dir=tmp_path / turn)
        await until("done", lambda: queue.counts().done == 1)
        await worker.stop()
        sent.append(sent_bytes(site))
    stem = f"{PLAIN.owner}/2023-11-15/{PLAIN.title} [{PLAIN.bvid}]"
    assert library(worker) == {f"{stem}.mp4", f"{stem}.nfo"}
    assert sent[0] == sent[1] > 0  # the second worker found it under that name


@pytest.mark.skipif("cover" not in MergePlan.__dataclass_fields__, reason="the merge takes nothing beside streams yet")
@pytest.mark.parametrize("changes", [{}, {"container": "mkv"}, {"streams": "audio"}], ids=["mp4", "mkv", "m4a"])
async def test_what_goes_into_the_file_is_in_it(
    queue: Queue, start_worker: StartWorker, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    queue.add([PLAIN.bvid])
    wanted = ("tags", "cover", "chapters", "embed-subtitles")
    worker = await start_worker(extras=wanted, sessdata="demo", **changes)
    await until("done", lambda: queue.counts().done == 1)
    (name,) = library(worker)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(worker.settings.download_dir / name)]
    said = (await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)).stderr
    found = said.lower()
    assert f"artist          : {PLAIN.owner.lower()}" in found and "date            : 2023-11-15" in found, said
    assert found.count("  chapter #0:") == 2 and "attached pic" in found and found.count("subtitle: ") == 3, said
    assert "duration: 00:00:03" in found, said  # no track makes it longer
    assert not [record for record in caplog.records if "without" in record.getMessage()]
    assert not list((worker.settings.download_dir / ".parts").iterdir())


# ------------------------------------------------------------------------------------------ drain


async def test_jobs_that_were_on_their_way_when_a_drain_came_go_back_at_once(
    queue: Queue, start_worker: StartWorker
) -> None:
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    lease, released = worker.scheduler._queue.lease, []

    async def lease_while_it_is_drained(*arguments: Any) -> Leased:
        answer = await lease(*arguments)
        worker.settings.working_file.write_text('{"drain": 1}', "utf-8")
        await until("it is obeyed", lambda: worker.scheduler.working.now.drain)
        released.extend(one.url for one in answer.leases)
        return answer

    worker.scheduler._queue.lease = lease_while_it_is_drained  # type: ignore[method-assign]
    await until("it is drained", lambda: worker.scheduler.board.state == "drained")
    await until("it is back", lambda: queue.counts() == Counts(1, 0, 0, 0, 0))
    (untouched,) = queue.lease("w9", 1)
    assert released == [PLAIN.bvid] == [untouched.url], "nobody has read it"
    queue.release(untouched.url, untouched.token)
    worker.scheduler._queue.lease = lease  # type: ignore[method-assign]
    worker.steer(1)
    await until("it goes on", lambda: queue.counts().done == 1)


async def test_the_page_that_comes_with_an_expansion_goes_back_when_a_drain_has_come(
    queue: Queue, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    expand = worker.scheduler._queue.expand

    async def expand_while_it_is_drained(*arguments: Any) -> Expanded:
        worker.settings.working_file.write_text('{"drain": 1}', "utf-8")
        await until("it drains", lambda: worker.scheduler.board.state == "draining")
        return await expand(*arguments)

    worker.scheduler._queue.expand = expand_while_it_is_drained  # type: ignore[method-assign]
    queue.add([PLAIN.bvid])
    await until("it is drained", lambda: worker.scheduler.board.state == "drained")
    await until("the page is ready for others", lambda: queue.counts() == Counts(1, 0, 0, 0, 0))
    assert worker.scheduler.board.failed == 0 and not worker.parts()


# ------------------------------------------------------------------------------------------ deliveries


def hold_deliveries(worker: Worker, nas: Path) -> threading.Event:
    """Have a worker deliver into a folder; nothing is sent before the event is set."""
    nas.mkdir()
    place, go = parse_place(f"file://{nas}"), threading.Event()
    own = worker.settings
    worker.scheduler._deliveries = Deliveries(
        place, opener(place), own.download_dir, own.data_dir, True, Reins(go.is_set), lease_clock
    )
    return go


@pytest.mark.slow
async def test_finished_files_that_wait_for_their_delivery_hold_back_new_downloads(
    queue: Queue, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler, "DELIVERIES_AT_MOST", 1)
    worker = await start_worker()
    go = hold_deliveries(worker, tmp_path / "nas")
    names = ("plain", "same-title-a", "same-title-b", "emoji-title")
    queue.add([video(name).bvid for name in names])
    scheduler = worker.scheduler
    await until("two wait", lambda: len(scheduler.board.in_stages(("delivering",))) > 1)
    assert not scheduler._may_begin() and scheduler._missing() == 0
    assert queue.counts().done == 0 and not list((tmp_path / "nas").rglob("*.mp4"))
    go.set()
    await until("all are done", lambda: queue.counts().done == 4)
    assert len(list((tmp_path / "nas").rglob("*.mp4"))) == 4
    assert all(item["stored"] for item in queue.success("", 9)[0])


@pytest.mark.slow
async def test_a_long_pause_gives_no_job_back_whose_file_waits_for_its_delivery(
    queue: Queue, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler, "PAUSE_LIMIT_SECONDS", 0.2)
    worker = await start_worker()
    go = hold_deliveries(worker, tmp_path / "nas")
    queue.add([PLAIN.bvid])
    await until("it waits", lambda: worker.scheduler.board.in_stages(("delivering",)))
    worker.steer(stop=0)
    await until("the pause is long", lambda: worker.scheduler._paused_since == float("inf"))
    assert queue.counts() == Counts(0, 1, 0, 0, 0)
    worker.steer(stop=1)
    go.set()
    await until("done", lambda: queue.counts().done == 1)


@pytest.mark.slow
async def test_a_worker_that_stops_has_its_undelivered_job_kept(
    queue: Queue, start_worker: StartWorker, tmp_path: Path, site: RunningSite
) -> None:
    worker = await start_worker()
    hold_deliveries(worker, tmp_path / "nas")
    queue.add([PLAIN.bvid])
    await until("it waits", lambda: worker.scheduler.board.in_stages(("delivering",)))
    sent = sent_bytes(site)
    await worker.stop()
    assert queue.counts() == Counts(1, 0, 0, 0, 0)
    assert queue.lease("another", 1) == ()
    again = await start_worker()
    hold_deliveries(again, tmp_path / "nas2").set()
    await until("done", lambda: queue.counts().done == 1)
    assert sent_bytes(site) == sent
