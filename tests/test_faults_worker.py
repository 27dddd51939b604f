"""A worker dies, stands still or has a wrong clock at every stage of its work: each page ends up done, once, whole."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import psutil
import pytest

from demo.catalogue import PageRecord, video
from demo.media import Library, StreamFile
from demo.process import SiteProcess
from model import KIB, MIB
from tests.crash import Point, parse_point
from tests.farm import ROOT, Farm, Script, finished_files, wait_until
from transfer.part_file import read_journal

pytestmark = pytest.mark.timeout(300)  # several processes a test, on a machine that may be busy

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
LONG_LEASE_SECONDS = 90
"""What comes back sooner than that did not wait for the lease to run out."""
SHORT_LEASE_SECONDS = 3
AT_ONCE_SECONDS = 45.0
IDLE = {"ready": 0, "leased": 0, "delayed": 0, "dead": 0}
KILLED = -signal.SIGKILL

slow = pytest.mark.slow


StartFarm = Callable[..., Farm]


@contextlib.contextmanager
def farms(folder: Path, site: SiteProcess) -> Iterator[StartFarm]:
    """Start a farm whose leases last so long; in the end no process of it may have printed a traceback."""
    started: list[Farm] = []

    def start(lease_seconds: float = LONG_LEASE_SECONDS, **settings: str) -> Farm:
        started.append(Farm(folder, site, BILI_LEASE_SECONDS=str(lease_seconds), **settings))
        return started[0]

    try:
        yield start
    finally:
        for farm in started:
            farm.close()
    for path in folder.glob("*.log"):
        said = path.read_text("utf-8", errors="replace")
        assert "Traceback" not in said, said[-3000:]


@pytest.fixture
def start_farm(tmp_path: Path, site: SiteProcess) -> Iterator[StartFarm]:
    with farms(tmp_path, site) as start:
        yield start


# ------------------------------------------------------------------------------------------ what must be true


def page_of(name: str) -> PageRecord:
    return video(name).pages[0]


@functools.cache
def stream_hashes(path: Path) -> list[str]:
    """Return a digest of the packets of each stream in a file; muxing does not change them."""
    command = [FFMPEG, "-v", "error", "-nostdin", "-f", "mov", "-i", f"file:{path}", "-map", "0", "-c", "copy"]
    output = subprocess.run([*command, "-f", "streamhash", "-"], capture_output=True, text=True, check=True).stdout
    return sorted(line.split("=")[-1] for line in output.splitlines())


def assert_whole(path: Path, cid: int, library: Library) -> None:
    """The file holds the packets of one video stream and one audio stream of the page, all of them."""
    dash = [stream for stream in library.of_page(cid) if stream.kind != "durl"]
    served = {stream_hashes(library.folder / stream.file)[0]: stream.kind for stream in dash}
    found = stream_hashes(path)
    assert sorted(served.get(one, "unknown") for one in found) == sorted({stream.kind for stream in dash}), path


def assert_done_once(farm: Farm, library: Library, *pages: PageRecord, folders: tuple[Path, ...] = ()) -> None:
    """Each page has one record and one file with the right packets; no job is left anywhere, no part, no child."""
    assert farm.counts() == {**IDLE, "done": len(pages)}
    records = {int(item["url"].split("cid=")[1]): item for item in farm.everything("/success")}
    assert len(farm.everything("/success")) == len(pages)
    folders = folders or (farm.downloads,)
    files = finished_files(*folders)
    assert records.keys() == files.keys() == {page.cid for page in pages}
    for cid, path in files.items():
        assert records[cid]["bytes"] == path.stat().st_size
        assert any(path == folder / records[cid]["path"] for folder in folders)
        assert_whole(path, cid, library)
    for folder in folders:
        assert [path.name for path in (folder / ".parts").iterdir()] == []
    assert not children_of(farm)


def children_of(farm: Farm) -> list[str]:
    """Return the commands of the ffmpegs that work below the farm's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if "-progress" in command and str(farm.folder) in command:
            found.append(command)
    return found


# ------------------------------------------------------------------------------------------ what was on the disk


class Held(NamedTuple):
    """A range as a dead worker left it: what of it is in the file, and what of that its journal vouches for."""

    path: str
    start: int
    stop: int
    written: int
    claimed: int


def held_ranges(farm: Farm, library: Library) -> list[Held]:
    """Compare what lies in the farm's folder with what the site has, by the ranges that the worker asked for."""
    asked = farm.ranges()
    found: list[Held] = []
    for journal_path in (farm.downloads / ".parts").glob("*.journal"):
        journal = read_journal(journal_path.read_bytes())
        assert journal is not None, journal_path
        stream = stream_named(library, journal.identity.cid, journal.identity.name)
        data = journal_path.with_suffix(".m4s").read_bytes()
        source = (library.folder / stream.file).read_bytes()
        starts = sorted({start for start, _stop, _sent in asked.get(stream.url_path, [])} | journal.claims.keys())
        for start, stop in zip(starts, [*starts[1:], len(source)], strict=True):
            claimed = max((journal.claims.get(start) or {start: ""}).keys())
            written = start + common_prefix(data[start:stop], source[start:stop])
            found.append(Held(stream.url_path, start, stop, written, claimed))
    return found


def stream_named(library: Library, cid: int, name: str) -> StreamFile:
    return next(stream for stream in library.of_page(cid) if f"{stream.kind[0]}{stream.id}-{stream.codecid}" == name)


def common_prefix(one: bytes, other: bytes) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def assert_little_again(farm: Farm, held: list[Held], connections: int) -> None:
    """Of what lay on the disk no finished chunk is fetched again, and of each open one a mebibyte at most."""
    ranges = farm.ranges()
    again = {
        chunk: sum(
            max(0, min(start + sent, chunk.written) - max(start, chunk.start))
            for start, _stop, sent in ranges.get(chunk.path, [])
        )
        for chunk in held
    }
    for chunk, count in again.items():
        unproved = chunk.written - chunk.claimed
        assert unproved <= MIB + 512 * KIB, f"{chunk} has a journal that lags"  # one more piece of a body
        assert count <= unproved, f"{chunk}: {count} bytes of it were fetched again"
        assert chunk.claimed < chunk.stop or count == 0, f"finished, and fetched again: {chunk}"
    assert sum(1 for count in again.values() if count) <= connections


# ------------------------------------------------------------------------------------------ deaths at every stage


def dying_worker(farm: Farm, point: Point, *arguments: str, **more: str) -> Script:
    """Start a worker that ends at a point."""
    return farm.start("tests/crash.py", str(point), "--", "run.py", "--until-empty", *arguments, **more)


def die(farm: Farm, point: str, **more: str) -> Script:
    """Let a worker die at a point; fail if it comes past it."""
    worker = dying_worker(farm, parse_point(point), **more)
    assert worker.wait() == KILLED, f"it never came to {point}:\n{worker.output()[-3000:]}"
    return worker


def connections_used(farm: Farm) -> int:
    return sum(int(mirror["max_concurrent"]) for mirror in farm.site.get("stats")["mirrors"])


def settle_site(farm: Farm) -> None:
    """Wait until the site has noticed that nobody reads any more, so that what it counts is final."""
    wait_until("no request is open", lambda: not any(one["active"] for one in farm.site.get("stats")["mirrors"]), 20)


BEFORE_ANY_BYTE = {
    "after the lease's answer": "queue_client:QueueClient.lease:1:after",
    "before the description": "bili_client:BiliClient.describe:1",
    "after the description": "bili_client:BiliClient.describe:1:after",
    "before the expansion": "queue_client:QueueClient.expand:1",
    "after the expansion": "queue_client:QueueClient.expand:1:after",
    "after playinfo": "bili_client:BiliClient.playinfo:1:after",
    "before the first request": "download_stream_file:_Download._attempt:1",
}
"""Nothing lies on the disk yet: the job comes back when its lease has run out."""

WITH_CHUNKS = {
    "when the part was made": "transfer.part_file:PartFile.open:1:after",
    "before the second request": "download_stream_file:_Download._attempt:3",
    "at the first piece": "transfer.part_file:PartFile.store:1",
    "after the first piece": "transfer.part_file:PartFile.store:1:after",
    "in the middle of a chunk": "transfer.part_file:PartFile.store:60",
    "later in the middle of a chunk": "transfer.part_file:PartFile.store:150",
    "before a chunk is finished": "transfer.part_file:PartFile._finish:2",
    "between chunks": "transfer.part_file:PartFile._finish:3:after",
    "when all streams are there": "download_scheduler:Scheduler._download:1:after",
    "before ffmpeg": "merge_stream_file:_start:1",
    "while ffmpeg runs": "merge_stream_file:_start:1:after",
    "when ffmpeg has ended": "merge_stream_file:_run:1:after",
    "before the file is synced": "os:fsync:1",
    "before the name": "os:link:1",
    "after the name": "os:link:1:after",
    "before the parts go": "transfer.part_file:PartFile.discard:1",
    "between the parts": "transfer.part_file:PartFile.discard:1:after",
}
"""Parts lie on the disk: the restarted worker names the job, and gets it at once."""

WITHOUT_CHUNKS = {
    "when the parts are gone": "transfer.part_file:PartFile.discard:2:after",
    "before the report": "queue_client:QueueClient.ack:1",
    "after the report": "queue_client:QueueClient.ack:1:after",
}
"""The file stands, nothing else does: the job comes back when its lease has run out, unless it was reported."""

QUICK = {"in the middle of a chunk", "after the name", "before the report"}


def stages(of: dict[str, str]) -> list[Any]:
    return [pytest.param(point, id=name, marks=() if name in QUICK else slow) for name, point in of.items()]


@pytest.mark.parametrize("point", stages(WITH_CHUNKS))
def test_a_worker_that_dies_with_chunks_on_its_disk_goes_on_at_once_where_it_was(
    start_farm: StartFarm, library: Library, point: str
) -> None:
    farm = start_farm()
    farm.site.post("settings", rate_bytes_per_second=16 * MIB)
    farm.add(video("large-a").bvid)
    die(farm, point)
    settle_site(farm)
    held, connections = held_ranges(farm, library), connections_used(farm)
    farm.site.post("settings", rate_bytes_per_second=0)
    farm.site.post("reset_stats")
    began = time.monotonic()
    assert farm.drain() == 0
    assert time.monotonic() - began < AT_ONCE_SECONDS
    assert_little_again(farm, held, connections)
    assert_done_once(farm, library, page_of("large-a"))


@pytest.mark.slow
@pytest.mark.parametrize("point", stages(BEFORE_ANY_BYTE | WITHOUT_CHUNKS))
def test_a_worker_that_dies_with_nothing_but_a_lease_gets_it_back_when_that_has_run_out(
    start_farm: StartFarm, library: Library, point: str
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS)
    farm.add(video("plain").bvid)
    die(farm, point)
    is_finished = bool(finished_files(farm.downloads))
    farm.site.post("reset_stats")
    assert farm.drain() == 0
    assert is_finished == (point in WITHOUT_CHUNKS.values())
    assert (farm.sent_bytes() == 0) == is_finished
    assert_done_once(farm, library, page_of("plain"))


@slow
@pytest.mark.parametrize("streams", ["both", "audio"])
@pytest.mark.parametrize(
    "point", ["merge_stream_file:_start:1:after", "os:link:1:after", "transfer.part_file:PartFile.discard:1:after"]
)
def test_a_matroska_file_is_known_again_after_a_death_at_any_stage_of_its_merge(
    start_farm: StartFarm, point: str, streams: str
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS, BILI_CONTAINER="mkv", BILI_STREAMS=streams, BILI_AUDIO="hires")
    farm.add(video("rich").bvid)
    die(farm, point)
    stands = {path: path.stat().st_mtime_ns for path in finished_files(farm.downloads).values()}
    assert bool(stands) == (point != "merge_stream_file:_start:1:after")
    settle_site(farm)
    farm.site.post("reset_stats")
    assert farm.drain() == 0
    assert farm.sent_bytes() == 0
    (path,) = finished_files(farm.downloads).values()
    assert path.suffix == (".mka" if streams == "audio" else ".mkv")
    assert not stands or stands == {path: path.stat().st_mtime_ns}
    assert not [each for each in (farm.downloads / ".parts").iterdir() if each.suffix in (".m4s", ".tmp")]
    assert [done["path"] for done in farm.everything("/success")] == [str(path.relative_to(farm.downloads))]


@slow
@pytest.mark.parametrize("point", ["transfer.part_file:PartFile.store:3", "merge_stream_file:_start:1:after"])
def test_another_machine_takes_over_when_the_lease_has_run_out(
    start_farm: StartFarm, library: Library, point: str
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS, BILI_AFFINITY_SECONDS="1")
    farm.add(video("plain").bvid)
    die(farm, point, BILI_WORKER="first")
    disk = farm.folder / "second disk"
    assert farm.drain(BILI_WORKER="second", BILI_DOWNLOAD_DIR=str(disk)) == 0
    assert farm.everything("/success")[0]["worker"] == "second"
    assert_done_once(farm, library, page_of("plain"), folders=(disk,))
    assert finished_files(farm.downloads) == {}
    assert farm.drain(BILI_WORKER="first") == 0  # it is back: nothing is left to do for it, and it does nothing
    assert len(farm.everything("/success")) == 1
    assert finished_files(farm.downloads) == {}


@slow
def test_a_file_that_stands_on_a_dead_machine_is_made_once_more_elsewhere_and_recorded_once(
    start_farm: StartFarm, library: Library
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS, BILI_AFFINITY_SECONDS="1")
    farm.add(video("plain").bvid)
    die(farm, "os:link:1:after", BILI_WORKER="first")
    disk = farm.folder / "second disk"
    assert farm.drain(BILI_WORKER="second", BILI_DOWNLOAD_DIR=str(disk)) == 0
    assert_done_once(farm, library, page_of("plain"), folders=(disk,))
    assert farm.drain(BILI_WORKER="first") == 0
    assert [item["worker"] for item in farm.everything("/success")] == ["second"]


@slow
def test_four_deaths_of_one_page_do_not_make_it_dead_when_it_comes_further_each_time(
    start_farm: StartFarm, library: Library
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS)
    farm.add(video("large-a").bvid)
    for _death in range(4):
        # The queue has heard how far it is.
        die(farm, "queue_client:Heartbeat._beat:4:after", BILI_MAX_SPEED="2M")
    assert farm.drain() == 0
    assert_done_once(farm, library, page_of("large-a"))


# ------------------------------------------------------------------------------------------ death at any system call

MAIN_THREAD = ("-qq",)
ALL_THREADS = ("-f", *MAIN_THREAD)
SMALL = [f"{video('many-pages').bvid}?p={number}" for number in range(1, 13)] + [
    f"{video('five-pages').bvid}?p={number}" for number in range(1, 6)
]


def page_asked_for(target: str) -> PageRecord:
    bvid, number = target.split("?p=")
    return next(one for name in ("many-pages", "five-pages") if (one := video(name)).bvid == bvid).pages[
        int(number) - 1
    ]


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"this test needs {name}: apt-get install {name} (tests/install_debian_packages.sh does it)"
    return path


def traced(farm: Farm, threads: tuple[str, ...], *injections: str, **more: str) -> Script:
    """Start a worker below strace, which makes its system calls fail or end it."""
    return launched(farm, tool("strace"), *threads, "-o", str(farm.folder / "trace"), *injections, **more)


def launched(farm: Farm, *launcher: str, **more: str) -> Script:
    """Start a worker by another program, which then is the process that the test has."""
    script = farm.folder / "launch.py"
    script.write_text("import os, sys\nos.execv(sys.argv[1], sys.argv[1:])\n", "utf-8")
    return farm.start(str(script), *launcher, sys.executable, str(ROOT / "run.py"), "--until-empty", **more)


@slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("calls", "threads", "numbers"),
    [
        pytest.param("pwrite64", MAIN_THREAD, (1, 2, 4, 8, 16, 32, 64), id="a piece of a stream"),
        pytest.param("fsync", ALL_THREADS, (1, 2, 3), id="a sync"),
        pytest.param("link,linkat", MAIN_THREAD, (1, 2), id="the name"),
        pytest.param(
            "unlink,unlinkat", MAIN_THREAD, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20), id="a deletion"
        ),
    ],
)
def test_a_worker_that_dies_before_its_nth_system_call_leaves_nothing_that_the_next_one_cannot_finish(
    start_farm: StartFarm, library: Library, calls: str, threads: tuple[str, ...], numbers: tuple[int, ...]
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS)
    done: list[PageRecord] = []
    ends: list[int] = []
    for number, target in zip(numbers, SMALL, strict=False):
        farm.add(target)
        inject = [f"inject={call}:signal=KILL:when={number}" for call in calls.split(",")]
        worker = traced(farm, threads, "-e", f"trace={calls}", *[word for one in inject for word in ("-e", one)])
        ends.append(worker.wait())
        assert ends[-1] in (0, KILLED), worker.output()
        assert farm.drain() == 0
        done.append(page_asked_for(target))
        assert_done_once(farm, library, *done)
        if ends[-1] == 0:
            break  # there is no such call any more
    assert ends[0] == KILLED and ends[-1] == 0, f"the numbers do not reach the end: {ends}"


# ------------------------------------------------------------------------------------------ standing still


def stop_at(farm: Farm, point: str, **more: str) -> Script:
    """Start a worker that stands still at a point, and wait until it does."""
    worker = dying_worker(farm, parse_point(point), **more)
    wait_until(f"it stands still at {point}", lambda: status_of(worker) == psutil.STATUS_STOPPED)
    return worker


def status_of(worker: Script) -> str:
    assert worker.process.poll() is None, f"it ended: {worker.output()[-3000:]}"
    return psutil.Process(worker.process.pid).status()


def go_on(worker: Script) -> None:
    worker.process.send_signal(signal.SIGCONT)


def only_line(worker: Script, pattern: str) -> str:
    """Return the one line of a worker's output that has a pattern."""
    lines = [line for line in worker.output().splitlines() if re.search(pattern, line)]
    assert len(lines) == 1, worker.output()
    return lines[0]


LETS_GO = r"another worker has it now|its lease has moved on|its lease ran out before"
SECOND = {"BILI_WORKER": "second"}
IN_MIDDLE = "transfer.part_file:PartFile._mark:1:after:stop"
BEFORE_NAME = "os:link:1:stop"
BEFORE_REPORT = "queue_client:QueueClient.ack:1:stop"


@slow
@pytest.mark.parametrize("point", [IN_MIDDLE, BEFORE_NAME, BEFORE_REPORT])
@pytest.mark.parametrize("shared", [pytest.param(True, id="one disk"), pytest.param(False, id="own disks")])
def test_a_worker_that_wakes_up_after_another_has_done_its_job_lets_it_go(
    start_farm: StartFarm, library: Library, point: str, shared: bool
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS, BILI_AFFINITY_SECONDS="0")
    farm.site.post("settings", rate_bytes_per_second=32 * MIB)
    farm.add(video("large-a").bvid)
    first = stop_at(farm, point, BILI_WORKER="first", BILI_DATA_DIR=str(farm.folder / "first data"))
    disk = farm.downloads if shared else farm.folder / "second disk"
    assert farm.drain(BILI_DOWNLOAD_DIR=str(disk), **SECOND) == 0
    (record,) = farm.everything("/success")
    published = (disk / record["path"]).stat()
    go_on(first)
    assert first.wait() == 0
    assert only_line(first, LETS_GO)
    assert farm.everything("/success") == [record] and record["worker"] == "second"
    after = (disk / record["path"]).stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        published.st_ino,
        published.st_mtime_ns,
        published.st_size,
    )
    assert_whole(disk / record["path"], page_of("large-a").cid, library)
    assert len(finished_files(disk)) == 1
    if not shared:  # a copy that got its name there is one too many, but it may be somebody's: it is not deleted
        assert len(finished_files(farm.downloads)) == (0 if point == IN_MIDDLE else 1)
    assert not list(farm.downloads.rglob("*.tmp"))


@slow
@pytest.mark.parametrize("shared", [pytest.param(True, id="one disk"), pytest.param(False, id="own disks")])
def test_a_worker_that_wakes_up_while_another_does_its_job_does_not_disturb_it(
    start_farm: StartFarm, library: Library, shared: bool
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS, BILI_AFFINITY_SECONDS="0")
    farm.site.post("settings", rate_bytes_per_second=2 * MIB)
    farm.add(video("large-a").bvid)
    first = stop_at(farm, IN_MIDDLE, BILI_WORKER="first", BILI_DATA_DIR=str(farm.folder / "first data"))
    disk = farm.downloads if shared else farm.folder / "second disk"
    second = farm.worker("--until-empty", BILI_DOWNLOAD_DIR=str(disk), **SECOND)
    farm.server.says("leased 1 to second")
    before = farm.sent_bytes()
    wait_until("the second one downloads", lambda: farm.sent_bytes() > before + MIB)
    go_on(first)
    first.says("its chunks stay")
    farm.site.post("settings", rate_bytes_per_second=0)
    assert [first.wait(), second.wait()] == [0, 0]
    assert only_line(first, LETS_GO)
    (record,) = farm.everything("/success")
    assert record["worker"] == "second"
    assert farm.counts() == {**IDLE, "done": 1}
    folders = {farm.downloads, disk}
    (file,) = finished_files(*folders).values()
    assert file == disk / record["path"]
    assert_whole(file, page_of("large-a").cid, library)


# ------------------------------------------------------------------------------------------ wrong clocks


WRONG_CLOCK = """
import runpy, sys, time
from pathlib import Path
offset, right, right_ns = Path(sys.argv[1]), time.time, time.time_ns
time.time = lambda: right() + float(offset.read_text())
time.time_ns = lambda: right_ns() + int(float(offset.read_text()) * 1e9)
sys.argv[:2] = []
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HOUR, DAY = 3600, 86400


def set_clock(farm: Farm, offset_seconds: float) -> Path:
    """Set the wall clock of a worker that reads this file; durations stay true, as when a machine's date is set."""
    path = farm.folder / "offset"
    path.with_suffix(".new").write_text(str(offset_seconds))
    return path.with_suffix(".new").replace(path)


def clocked_worker(farm: Farm, offset_seconds: float) -> Script:
    script = farm.folder / "wrong_clock.py"
    script.write_text(WRONG_CLOCK, "utf-8")
    return farm.start(str(script), str(set_clock(farm, offset_seconds)), str(ROOT / "run.py"), "--until-empty")


def said_at(worker: Script) -> float:
    """Return when, by its own clock, a worker said its first line."""
    return time.mktime(time.strptime(worker.output()[:19], "%Y-%m-%dT%H:%M:%S"))


@slow
@pytest.mark.parametrize("offset_seconds", [HOUR, -HOUR, 3 * HOUR, -400 * DAY, 4000 * DAY])
def test_a_worker_with_a_wrong_date_works_like_any_other(
    start_farm: StartFarm, library: Library, offset_seconds: int
) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS)
    farm.add(video("plain").bvid, video("large-a").bvid)
    worker = clocked_worker(farm, offset_seconds)
    assert worker.wait() == 0
    assert abs(said_at(worker) - time.time() - offset_seconds) < HOUR / 2, "its clock was right"
    assert_done_once(farm, library, page_of("plain"), page_of("large-a"))


@slow
def test_a_worker_whose_every_clock_is_ahead_works_like_any_other(start_farm: StartFarm, library: Library) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS)
    farm.add(video("plain").bvid, video("large-a").bvid)
    worker = launched(farm, tool("faketime"), "-f", "+1h")
    assert worker.wait() == 0
    assert abs(said_at(worker) - time.time() - HOUR) < HOUR / 2, "its clock was right"
    assert_done_once(farm, library, page_of("plain"), page_of("large-a"))


@slow
def test_a_date_that_jumps_in_the_middle_changes_nothing(start_farm: StartFarm, library: Library) -> None:
    farm = start_farm(SHORT_LEASE_SECONDS)
    farm.site.post("settings", rate_bytes_per_second=2 * MIB)
    farm.add(video("large-a").bvid)
    worker = clocked_worker(farm, 0)
    for jump in (2 * HOUR, -2 * HOUR, 100 * DAY, 0):
        before = farm.sent_bytes()
        wait_until("it goes on", lambda before=before: farm.sent_bytes() > before + 4 * MIB)
        set_clock(farm, jump)
    farm.site.post("settings", rate_bytes_per_second=0)
    assert worker.wait() == 0
    assert_done_once(farm, library, page_of("large-a"))
    assert not re.search(LETS_GO, worker.output())


# ------------------------------------------------------------------------------------------ the tool itself


def test_a_point_that_is_none_is_refused() -> None:
    for text in ("", "os", "os:link", "os:link:0", "os:link:x", "os:link:1:before", ":link:1"):
        with pytest.raises(ValueError, match="MODULE:FUNCTION"):
            parse_point(text)
    assert str(parse_point("os:link:2:after:stop")) == "os:link:2:after:stop"
