"""The three scripts as real processes against the stand-in site: what a user does, and what may happen to him."""

from __future__ import annotations

import functools
import itertools
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import psutil
import pytest

from demo.catalogue import episode, video
from demo.media import Library, ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from model import MIB
from parse_ import parse_job_id
from tests.farm import Farm, Script, finished_files, wait_until

pytestmark = pytest.mark.timeout(240)  # several processes a test, on a machine that may be busy
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


GOODBYE_SECONDS = 10
"""It takes half a second, and two at most; five times that on a machine that is busy with other tests."""


@pytest.fixture(scope="module")
def library() -> Library:
    return ensure_library(DEFAULT_CACHE, FFMPEG)


@pytest.fixture(scope="module")
def module_site(library: Library) -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.fixture
def site(module_site: SiteProcess) -> SiteProcess:
    module_site.post("reset")
    module_site.post("risk", name="risk-control", on=False)
    return module_site


def bvid(name: str) -> str:
    return video(name).bvid


def cid(name: str, number: int = 1) -> int:
    return video(name).pages[number - 1].cid


@functools.cache
def stream_hashes(path: Path, form: str, kind: str = "") -> list[str]:
    """Return a digest of the packets of each stream in a file; muxing does not change them."""
    command = [FFMPEG, "-v", "error", "-nostdin", *(["-f", form] if form else []), "-i", f"file:{path}"]
    command += ["-map", f"0:{kind}" if kind else "0", "-c", "copy", "-f", "streamhash", "-hash", "md5", "-"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sorted(line.split("MD5=")[1] for line in output.splitlines())


def packets(path: Path, kind: str) -> list[str]:
    """Return a digest of each packet of a stream."""
    command = [FFMPEG, "-v", "error", "-nostdin", "-i", f"file:{path}", "-map", f"0:{kind}:0", "-c", "copy"]
    output = subprocess.run([*command, "-f", "framemd5", "-"], capture_output=True, text=True, check=True).stdout
    return [line.split(",")[5].strip() for line in output.splitlines() if line and not line.startswith("#")]


def files_of(farm: Farm) -> dict[int, Path]:
    return finished_files(farm.downloads)


def assert_no_chunk_twice(farm: Farm) -> None:
    """No byte range of any stream was sent twice."""
    for path, ranges in farm.ranges().items():
        got = sorted((start, start + sent) for start, _stop, sent in ranges if sent)
        overlapping = [(a, b) for a, b in itertools.pairwise(got) if a[1] > b[0]]
        assert not overlapping, f"{path}: {overlapping}"


def downloading(farm: Farm, mebibytes: int = 12) -> bool:
    return farm.sent_bytes() > mebibytes * MIB


# ------------------------------------------------------------------------------------------ the whole catalogue


def test_every_page_of_the_site_arrives_bit_for_bit_and_every_refusal_has_its_code(
    farm: Farm, library: Library
) -> None:
    catalogue = farm.site.get("catalogue")
    targets = [one["bvid"] for one in catalogue["videos"]] + [f"ep{one['ep_id']}" for one in catalogue["episodes"]]
    assert farm.add(*targets, "rubbish") == f"added {len(targets)}, known 0, rejected 1"
    farm.steer(stop=1, count=4)
    assert farm.drain() == 1  # some are dead, as the site means it

    failures = {item["url"]: item["code"] for item in farm.everything("/failed")}
    for name, code in {
        "deleted": "-404",
        "invisible": "62002",
        "no-permission": "-403",
        "in-review": "62004",
        "owner-only": "62012",
    }.items():
        assert failures.pop(bvid(name)) == code
    # A page that a video and an episode both lead to is known by its cid; its job is named after the one that came
    # first.
    refused = {parse_job_id(url).cid: code for url, code in failures.items()}
    assert refused == {cid(name): "-10403" for name in ("region-locked", "episode-region", "episode-members")}
    assert len(refused) == len(failures)

    files = files_of(farm)
    expected = {
        page["cid"]
        for one in catalogue["videos"]
        if one["refusal"] is None and one["name"] not in ("episode-region", "episode-members")
        for page in one["pages"]
    }
    assert set(files) == expected
    successes = farm.everything("/success")
    assert sorted(farm.downloads / item["path"] for item in successes) == sorted(files.values())
    assert all((farm.downloads / item["path"]).stat().st_size == item["bytes"] for item in successes)
    assert [item for item in successes if not re.search("^[0-9]+[PK]", item["streams"])] == []
    for page_cid, path in files.items():
        assert_streams_are_the_served_ones(path, page_cid, library, farm)
    assert_no_chunk_twice(farm)
    assert not list((farm.downloads / ".parts").iterdir())


def assert_streams_are_the_served_ones(path: Path, page_cid: int, library: Library, farm: Farm) -> None:
    served = [stream for stream in library.of_page(page_cid) if stream.url_path in farm.ranges()]
    if len(served) > 1 and served[0].kind == "durl":  # joined: their packets follow one another
        paths = [library.folder / stream.file for stream in sorted(served, key=lambda stream: stream.order)]
        for kind in "va":
            assert packets(path, kind) == [packet for segment in paths for packet in packets(segment, kind)]
        return
    wanted = sorted(one for stream in served for one in stream_hashes(library.folder / stream.file, "mov"))
    assert stream_hashes(path, "mov") == wanted


def test_names_are_legal_equal_titles_never_meet_and_pages_are_numbered(farm: Farm) -> None:
    names = ("same-title-a", "same-title-b", "long-title", "parent-title", "illegal-title", "five-pages")
    farm.add(*map(bvid, names))
    assert farm.drain() == 0
    paths = {str(path.relative_to(farm.downloads)) for path in files_of(farm).values()}
    assert {f"other/同名的视频 [{bvid('same-title-a')}].mp4", f"other/同名的视频 [{bvid('same-title-b')}].mp4"} <= paths
    assert f"other/线性代数五讲 [{bvid('five-pages')}]/P01 向量.mp4" in paths
    assert all(len(part.encode()) <= 255 for path in paths for part in path.split("/"))
    assert not any(set(path) & set('\\:*?"<>|') for path in paths)


# ------------------------------------------------------------------------------------------ identity


def test_one_page_reached_by_bv_av_address_short_link_and_episode_is_recorded_once(farm: Farm) -> None:
    record = video("episode-twin")
    web, short = farm.site.addresses["web"], farm.site.addresses["short"]
    spellings = [
        record.bvid,
        f"av{record.aid}",
        f"https://www.bilibili.com/video/{record.bvid}?t=3&spm_id_from=333",
        f"{web}/video/{record.bvid}/",
        f"{record.bvid}?p=1",
        f"ep{episode('episode').ep_id}",
        f"{short}/DemoEp1",
    ]
    assert farm.add(*spellings) == "added 3, known 4, rejected 0"
    assert farm.drain() == 0
    assert [item["url"] for item in farm.everything("/success")] == [f"{record.bvid}?p=1&cid={record.pages[0].cid}"]
    assert farm.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 0}


def test_a_video_that_gains_a_page_in_the_middle_gives_just_that_page(farm: Farm) -> None:
    name = "gains-a-page"
    farm.add(bvid(name))
    assert farm.drain() == 0
    assert farm.counts()["done"] == 2
    farm.site.post("gain_page", name=name, at=2)
    before = farm.sent_bytes()
    assert farm.add(bvid(name)) == "added 0, known 1, rejected 0"
    assert farm.drain() == 0
    assert farm.sent_bytes() == before
    script = farm.start("add_url.py", bvid(name), "--refresh")
    script.wait()
    assert farm.drain() == 0
    assert farm.counts()["done"] == 3
    folder = farm.downloads / "other" / f"还在更新的系列 [{bvid(name)}]"
    assert sorted(path.name for path in folder.iterdir()) == [
        "P01 第一回.mp4",
        "P02 第三回.mp4",
        "P02 第二回.mp4",
    ]
    assert_no_chunk_twice(farm)


def test_one_page_of_many_is_all_that_comes_when_only_it_was_asked_for(farm: Farm) -> None:
    farm.add(f"{bvid('many-pages')}?p=7", f"{bvid('five-pages')}?p=9")
    assert farm.drain() == 1
    assert set(files_of(farm)) == {cid("many-pages", 7)}
    (failure,) = farm.everything("/failed")
    assert (failure["url"], failure["code"]) == (f"{bvid('five-pages')}?p=9", "no-such-page")
    assert "5" in failure["reason"]


# ------------------------------------------------------------------------------------------ many machines


def test_two_workers_share_the_queue_and_no_page_is_fetched_by_both(farm: Farm) -> None:
    farm.add(*(bvid(name) for name in ("many-pages", "five-pages", "plain", "no-audio", "three-segments")))
    workers = [
        farm.worker("--until-empty", BILI_WORKER=f"machine-{n}", BILI_DOWNLOAD_DIR=str(farm.folder / f"disk-{n}"))
        for n in (1, 2)
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    successes = farm.everything("/success")
    assert len(successes) == len({item["url"] for item in successes}) == 20
    assert {item["worker"] for item in successes} == {"machine-1", "machine-2"}
    for item in successes:
        there = [(farm.folder / f"disk-{n}" / item["path"]).exists() for n in (1, 2)]
        assert there == [item["worker"] == "machine-1", item["worker"] == "machine-2"]
    assert_no_chunk_twice(farm)


# ------------------------------------------------------------------------------------------ deaths


def test_a_worker_killed_in_the_middle_goes_on_without_any_finished_chunk_again(farm: Farm) -> None:
    farm.site.post("settings", rate_bytes_per_second=4 * MIB)
    farm.add(bvid("large-a"))
    worker = farm.worker()
    wait_until("half of it came", lambda: downloading(farm, 15))
    worker.kill()
    first = farm.ranges()
    farm.site.post("settings", rate_bytes_per_second=0)
    farm.site.post("reset_stats")
    assert farm.drain() == 0
    second = farm.ranges()
    again = overlap_bytes(first, second)
    open_connections = sum(1 for ranges in first.values() for start, stop, sent in ranges if start + sent != stop)
    assert again <= open_connections * MIB
    for path, ranges in first.items():
        finished = finished_ranges(ranges)
        refetched = [one for one in second.get(path, []) if any(start <= one[0] < stop for start, stop in finished)]
        assert refetched == [], f"{path}: finished before, asked for again: {refetched}"
    assert set(files_of(farm)) == {cid("large-a")}


def overlap_bytes(
    first: dict[str, list[tuple[int, int | None, int]]], second: dict[str, list[tuple[int, int | None, int]]]
) -> int:
    """Return how many bytes of the second run were sent in the first one already."""
    total = 0
    for path, ranges in second.items():
        for start, _stop, sent in ranges:
            for begun, _end, before in first.get(path, []):
                total += max(0, min(start + sent, begun + before) - max(start, begun))
    return total


def finished_ranges(ranges: list[tuple[int, int | None, int]]) -> list[tuple[int, int]]:
    """Return the ranges that were sent to the last byte."""
    return [(start, stop) for start, stop, sent in ranges if stop is not None and start + sent == stop]


def test_a_job_whose_file_stands_already_is_recorded_without_a_byte(farm: Farm) -> None:
    """As after a kill between the rename and the ack: here the queue forgets, the file is there."""
    farm.add(bvid("plain"))
    assert farm.drain() == 0
    other = farm.folder / "other-data"
    farm.server.interrupt()
    farm.server.wait()
    farm.settings["BILI_DATA_DIR"] = str(other)
    farm.server = farm.start_server()
    farm.site.post("reset_stats")
    farm.add(bvid("plain"))
    assert farm.drain() == 0
    assert farm.sent_bytes() == 0
    assert farm.counts()["done"] == 1


def test_valkey_killed_in_the_middle_loses_nothing(farm: Farm) -> None:
    farm.add(bvid("many-pages"), bvid("five-pages"))
    worker = farm.worker("--until-empty")
    wait_until("some are done", lambda: farm.counts()["done"] >= 2)
    killed = 0
    for process in psutil.process_iter(["name", "cwd"]):
        if process.info["name"] == "valkey-server" and str(farm.folder) in (process.info["cwd"] or ""):
            process.kill()
            killed += 1
    assert killed == 1
    assert worker.wait() == 0
    assert farm.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 17, "dead": 0}
    assert len(files_of(farm)) == 17


def test_a_server_killed_in_the_middle_comes_back_and_nothing_is_lost(farm: Farm) -> None:
    farm.site.post("settings", rate_bytes_per_second=MIB // 4)
    farm.add(bvid("many-pages"))
    worker = farm.worker("--until-empty")
    wait_until("some are done", lambda: farm.counts()["done"] >= 2)
    farm.server.kill()
    worker.says("cannot be reached")
    farm.site.post("settings", rate_bytes_per_second=0)
    farm.server = farm.start_server()
    assert worker.wait() == 0
    assert farm.counts()["done"] == 12
    assert_no_chunk_twice(farm)


# ------------------------------------------------------------------------------------------ steering


@pytest.fixture
def slow_farm(farm: Farm) -> Farm:
    farm.site.post("settings", rate_bytes_per_second=2 * MIB)
    farm.add(bvid("large-a"), bvid("large-b"), bvid("plain"))
    return farm


def test_stop_0_pauses_in_the_middle_and_stop_1_goes_on_where_it_was(slow_farm: Farm) -> None:
    farm = slow_farm
    worker = farm.worker("--until-empty")
    wait_until("both come", lambda: downloading(farm, 6))
    farm.steer(stop=0, count=2)
    worker.says("Paused", 10)
    wait_until("the status says so", lambda: farm.get("/status")["workers"][0].get("state") == "paused")
    quiet = wait_until("no byte moves", lambda: still(farm))
    assert farm.counts()["leased"] == 2
    assert farm.sent_bytes() == quiet
    farm.site.post("settings", rate_bytes_per_second=0)
    farm.steer(stop=1, count=2)
    assert worker.wait() == 0
    assert farm.counts()["done"] == 3
    repeated = sum(overlap_within(ranges) for ranges in farm.ranges().values())
    assert repeated <= 16 * MIB  # what was in flight to a connection that the pause closed


def still(farm: Farm) -> int:
    """Return the bytes sent so far when no request is open any more, else 0."""
    stats = farm.site.get("stats")
    return 0 if any(mirror["active"] for mirror in stats["mirrors"]) else farm.sent_bytes()


def overlap_within(ranges: list[tuple[int, int | None, int]]) -> int:
    spans = sorted((start, start + sent) for start, _stop, sent in ranges)
    return sum(max(0, before[1] - after[0]) for before, after in itertools.pairwise(spans))


def test_count_scales_in_the_middle_of_work(slow_farm: Farm) -> None:
    farm = slow_farm
    farm.steer(stop=1, count=1)
    worker = farm.worker("--until-empty")
    wait_until("one comes", lambda: downloading(farm, 2))
    assert farm.counts()["leased"] == 1
    farm.steer(stop=1, count=3)
    wait_until("three come", lambda: farm.counts()["leased"] + farm.counts()["done"] == 3, 10)
    farm.steer(stop=1, count=1)
    farm.site.post("settings", rate_bytes_per_second=0)
    assert worker.wait() == 0
    assert farm.counts()["done"] == 3


@pytest.mark.slow
def test_a_damaged_working_json_changes_nothing_and_is_named_once(slow_farm: Farm) -> None:
    farm = slow_farm
    worker = farm.worker("--until-empty")
    wait_until("both come", lambda: downloading(farm, 2))
    farm.working.write_text('{\n  "stop": 1\n  "count": 3\n}', "utf-8")
    worker.says("line 3, column 3", 10)
    farm.working.unlink()
    worker.says("No such file", 10)
    farm.working.write_text('{"stop": 1, "count": 3,}', "utf-8")
    wait_until("the trailing comma is accepted", lambda: farm.counts()["leased"] == 3 or farm.counts()["done"], 10)
    farm.site.post("settings", rate_bytes_per_second=0)
    assert worker.wait() == 0
    assert worker.output().count("line 3, column 3") == 1
    assert farm.counts()["done"] == 3


def test_a_missing_working_json_is_written_at_start_and_said(farm: Farm) -> None:
    farm.working.unlink()
    worker = farm.worker("--until-empty")
    assert worker.wait() == 0
    assert farm.working.read_text("utf-8") == '{"stop": 1, "count": 1}\n'
    assert "was missing" in worker.output()


# ------------------------------------------------------------------------------------------ goodbye


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_leases_back_within_two_seconds_and_keeps_the_chunks(slow_farm: Farm, number: int) -> None:
    farm = slow_farm
    worker = farm.worker()
    wait_until("both come", lambda: downloading(farm, 12))
    children = psutil.Process(worker.process.pid).children(recursive=True)
    worker.interrupt(number)
    assert worker.wait(GOODBYE_SECONDS) == 0
    assert farm.counts() == {"ready": 3, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    assert not [child for child in children if child.is_running()]
    farm.site.post("settings", rate_bytes_per_second=0)
    before = farm.ranges()
    farm.site.post("reset_stats")
    assert farm.drain() == 0
    open_connections = sum(1 for ranges in before.values() for start, stop, sent in ranges if start + sent != stop)
    assert overlap_bytes(before, farm.ranges()) <= open_connections * MIB


def test_a_second_signal_ends_at_once(slow_farm: Farm) -> None:
    worker = slow_farm.worker()
    wait_until("both come", lambda: downloading(slow_farm, 2))
    slow_farm.server.process.send_signal(signal.SIGSTOP)  # so that a goodbye has nobody to say it to
    try:
        worker.interrupt()
        worker.says("Stopping", 20)  # two signals at once may be delivered as one
        worker.interrupt()
        assert worker.wait(10) == 128 + signal.SIGTERM
    finally:
        slow_farm.server.process.send_signal(signal.SIGCONT)


def test_a_worker_without_a_server_waits_says_so_once_and_ends_on_a_signal(farm: Farm) -> None:
    farm.server.interrupt()
    farm.server.wait()
    worker = farm.worker()
    worker.says("cannot be reached")
    worker.interrupt()
    assert worker.wait(GOODBYE_SECONDS) == 0
    assert worker.output().count("cannot be reached") == 1


# ------------------------------------------------------------------------------------------ endings


def test_until_empty_tells_dead_delayed_and_done_apart(farm: Farm) -> None:
    assert farm.drain() == 0
    farm.site.post("faults", scope="api", kind="invalid_json", path="*")
    farm.add(bvid("plain"))
    worker = farm.worker("--until-empty", "--wait", "0")
    assert worker.wait() == 3
    assert bvid("plain") in worker.output() and "tried again in" in worker.output()
    farm.site.post("clear_faults")
    farm.add(bvid("deleted"))
    assert farm.worker("--until-empty", "--wait", "0").wait() == 1


def test_failed_ones_are_retried_on_demand(farm: Farm) -> None:
    farm.add(bvid("deleted"))
    assert farm.drain() == 1
    script = farm.start("add_url.py", "--retry-failed")
    assert script.wait() == 0
    assert "retried 1" in script.output()
    assert farm.counts()["ready"] == 1


@pytest.mark.parametrize(
    ("script", "setting", "value"),
    [
        ("run.py", "BILI_LEASE_SECONDS", "soon"),
        ("web_server.py", "BILI_TOKEN", "naïve"),
        ("add_url.py", "REDIS_URL", "redis://127.0.0.1:1"),
        ("web_server.py", "REDIS_URL", "redis://127.0.0.1:1"),
        ("run.py", "BILI_DOWNLOAD_DIR", "/dev/null/x"),
        ("run.py", "BILI_DATA_DIR", "/dev/null/x"),
        ("web_server.py", "BILI_DATA_DIR", "/dev/null/x"),
        ("add_url.py", "BILI_DATA_DIR", "/dev/null/x"),
    ],
)
def test_what_is_set_wrong_is_one_clear_sentence(farm: Farm, script: str, setting: str, value: str) -> None:
    arguments = [bvid("plain")] if script == "add_url.py" else []
    ended: Script = farm.start(script, *arguments, **{setting: value})
    assert ended.wait() == 2
    assert "Traceback" not in ended.output()
    assert setting in ended.output() or value.removeprefix("redis://") in ended.output()
