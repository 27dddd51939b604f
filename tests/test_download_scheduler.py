"""The scheduler with a real queue, a real server and the stand-in site: what it does when things fail."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
import redis

import download_scheduler
from bili_client import BiliClient, make_session
from config import Settings
from demo.catalogue import video
from demo.media import ensure_library
from demo.site import DEFAULT_CACHE, RunningSite, running_site
from download_scheduler import Board, JobView, Scheduler, WorkingFile
from download_stream_file import Wire, make_media_session, media_allowed
from model import MIB, Counts, Lease, StreamProgress, Working
from queue_client import Beat, QueueClient, make_server_session
from redisConnect import Queue

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
                server_url=queue_server,
                api_interval_seconds=0.0,
                **changes,
            )
            running = asyncio.Event()
            server_session = await stack.enter_async_context(make_server_session(own))
            site_session = await stack.enter_async_context(make_session(own))
            media_session = await stack.enter_async_context(make_media_session(own))
            scheduler = Scheduler(
                own,
                QueueClient(own, server_session, name, f"{name}-instance"),
                BiliClient(own, site_session),
                Wire(media_session, 8, media_allowed((), own.media_hosts), running),
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
    assert worker.parts()
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


async def test_risk_control_parks_the_worker_and_it_recovers_by_itself(
    site: RunningSite, queue: Queue, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_scheduler.retry, "park_seconds", lambda failures: 0.5)
    site.state.risky.add(PLAIN.bvid)
    queue.add([PLAIN.bvid])
    worker = await start_worker()
    await until("parked", lambda: worker.scheduler.board.state == "parked")
    assert queue.counts().dead == queue.counts().delayed == 0
    site.state.risky.clear()
    await until("done", lambda: queue.counts().done == 1)


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


# ------------------------------------------------------------------------------------------ names that are taken


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


async def test_strange_files_are_never_overwritten_and_the_failure_names_the_one_in_the_way(
    site: RunningSite, queue: Queue, start_worker: StartWorker, settings: Settings
) -> None:
    record = Video(PLAIN.bvid, PLAIN.aid, PLAIN.title, (Page(1, PLAIN.pages[0].cid, ""),))
    names = [page_path("other", record, record.pages[0], with_cid) for with_cid in (False, True)]
    for name in names:
        (settings.download_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.download_dir / name).write_bytes(b"my own film")
    queue.add([PLAIN.bvid])
    await start_worker()
    await until("failed", lambda: queue.counts().delayed == 1)
    (failure,), _next = queue.failed("", 10)
    assert failure["code"] == "name-taken" and str(names[1]) in failure["reason"]
    assert sent_bytes(site) == 0  # found before the download
    assert [(settings.download_dir / name).read_bytes() for name in names] == [b"my own film"] * 2
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
    slowly(site)
    queue.add([LARGE.bvid])
    worker = await start_worker()
    await until("some chunks came", lambda: sent_bytes(site) > 2 * MIB)
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


# ------------------------------------------------------------------------------------------ stopping


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


def test_the_last_good_values_stay_and_each_problem_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "working.json"
    path.write_text('{"stop": 1, "count": 5}', "utf-8")
    working = WorkingFile(path)
    assert working.read() == Working(1, 5)
    for damaged in ("", "{", '{"count": 99}', "\x00", "{", "{"):
        path.write_text(damaged, "utf-8")
        assert working.read() == Working(1, 5)
    path.unlink()
    assert working.read() == working.read() == Working(1, 5)
    assert len(caplog.records) == 6
    path.write_bytes(b'\xff\xfe{"stop": 0')
    assert working.read() == Working(1, 5)
    path.write_text('{"stop": 0}', "utf-8")
    assert working.read() == Working(0, 1)


def test_a_missing_file_is_written_with_one_and_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "working.json"
    WorkingFile(path).create_if_missing()
    assert path.read_text("utf-8") == '{"stop": 1, "count": 1}\n'
    assert "was missing" in caplog.text
    WorkingFile(tmp_path / "nowhere" / "working.json").create_if_missing()
    assert "cannot be written" in caplog.text


# ------------------------------------------------------------------------------------------ board


def test_the_speed_counts_what_came_and_not_what_a_resume_found() -> None:
    board, view = Board(), JobView("BV1")
    board.jobs["BV1"] = view
    assert board.speed_bytes_per_second == 0.0
    board.report(view, StreamProgress("v80-7", 30 * MIB, 40 * MIB))
    board.sample(1.0)
    board.report(view, StreamProgress("v80-7", 32 * MIB, 40 * MIB, "cdn.example"))
    board.sample(2.0)
    assert board.received_bytes == 2 * MIB
    assert board.speed_bytes_per_second == 2 * MIB
    shown = view.show()
    assert (shown["chunks"], shown["streams"][0]["mirror"]) == (True, "cdn.example")
    for second in range(3, 20):
        board.sample(second)
    assert board.speed_bytes_per_second == 0.0
