"""What may befall a whole farm: its server, its queue, its workers and its ffmpeg die or misbehave under load.

In the end each page is recorded once, stands once on a disk, and is that page bit for bit; and nobody printed a
traceback. Every test looks that its fault really came.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import psutil
import pytest

from demo.catalogue import PageRecord, VideoRecord
from demo.crowd import Crowd, ensure_crowd
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from model import KIB
from tests.farm import Farm, Script, copies_of_pages, finished_files, wait_until

pytestmark = pytest.mark.timeout(300)  # several processes a test, on a machine that may be busy

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
CROWD = 80
GOODBYE_SECONDS = 6
"""It takes half a second, and two at most; three times that on a machine that is busy with other tests."""
KILLED = -signal.SIGKILL
KILLS = 6
SLOW_BYTES_PER_SECOND = 40 * KIB
"""Of each response: a page then takes a second, and there is always one under way."""


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    return ensure_crowd(DEFAULT_CACHE, FFMPEG, CROWD, large=1)


@pytest.fixture(scope="module")
def module_site(crowd: Crowd) -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE, "--crowd", str(CROWD), "--crowd-large", "1") as site:
        yield site


StartFarm = Callable[..., Farm]


@pytest.fixture
def start_farm(tmp_path: Path, site: SiteProcess) -> Iterator[StartFarm]:
    """Start a farm with some settings; in the end no process of it may have printed a traceback."""
    farms: list[Farm] = []

    def start(**settings: str) -> Farm:
        farms.append(Farm(tmp_path, site, **settings))
        return farms[0]

    yield start
    for farm in farms:
        farm.close()
        for path in farm.folder.glob("*.log"):
            said = path.read_text("utf-8", errors="replace")
            assert "Traceback" not in said, f"{path.name}: {said[-3000:]}"


# ------------------------------------------------------------------------------------------ what must be true


def named(crowd: Crowd, numbers: Iterable[int]) -> list[VideoRecord]:
    return [crowd.video(f"crowd-{number}") for number in numbers]


def bvids(videos: Iterable[VideoRecord]) -> list[str]:
    return [video.bvid for video in videos]


def pages_of(videos: Iterable[VideoRecord]) -> list[PageRecord]:
    return [page for video in videos for page in video.pages]


def assert_done_once(
    farm: Farm, crowd: Crowd, pages: Iterable[PageRecord], *folders: Path, dead: int = 0
) -> dict[int, Path]:
    """Each page has one record and one file that is bit for bit that page; nothing else is anywhere."""
    files = finished_files(*(folders or (farm.downloads,)))
    assert_recorded_once(farm, crowd, pages, {cid: [path] for cid, path in files.items()}, *folders, dead=dead)
    return files


def assert_recorded_once(
    farm: Farm,
    crowd: Crowd,
    pages: Iterable[PageRecord],
    files: Mapping[int, Sequence[Path]],
    *folders: Path,
    dead: int = 0,
) -> None:
    """Each page has one record of one of its files, and each of its files is bit for bit that page."""
    cids = sorted(page.cid for page in pages)
    assert farm.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": len(cids), "dead": dead}
    records = farm.everything("/success")
    assert sorted(int(item["url"].partition("cid=")[2]) for item in records) == sorted(files) == cids
    for item in records:
        own = files[int(item["url"].partition("cid=")[2])]
        named = {folder / item["path"] for folder in folders or (farm.downloads,)} & set(own)
        assert {path.stat().st_size for path in named} == {item["bytes"]}
    wrong = {path: crowd.differences(cid, path.read_bytes()) for cid, own in files.items() for path in own}
    assert not any(wrong.values()), wrong


def assert_no_parts(*folders: Path) -> None:
    """Among the parts of finished pages nothing is left, no chunk and no temporary file."""
    left = [path for folder in folders for path in (folder / ".parts").iterdir()]
    assert left == []


def assert_no_byte_twice(farm: Farm) -> None:
    for path, ranges in farm.ranges().items():
        spans = sorted((start, start + sent) for start, _stop, sent in ranges if sent)
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), f"{path}: {spans}"


def requests_open(farm: Farm) -> int:
    """Return how many requests for media the site is answering now."""
    return sum(int(mirror["active"]) for mirror in farm.site.get("stats")["mirrors"])


def done(farm: Farm) -> int:
    return farm.counts()["done"]


def machine(farm: Farm, number: int, *arguments: str, **more: str) -> Script:
    """Start a worker as on a machine of its own: its own name, data and disk."""
    own = {"BILI_WORKER": f"machine-{number}", "BILI_DATA_DIR": str(farm.folder / f"data-{number}")}
    return farm.worker(*arguments, **{**own, "BILI_DOWNLOAD_DIR": str(farm.folder / f"disk-{number}"), **more})


def disks(farm: Farm) -> list[Path]:
    return sorted(farm.folder.glob("disk-*"))


# ------------------------------------------------------------------------------------------ ffmpeg in disguise

STUB = f"""#!/bin/sh
case "$*" in *-version*) exec "{FFMPEG}" "$@";; esac
for output; do :; done
output="${{output#file:}}"
real() {{ "{FFMPEG}" "$@"; }}
"""
"""Starts every stub: it says the version of the real one, and knows the file that it is to make."""


class Stub:
    """A script that stands on PATH in ffmpeg's place; ``mend`` makes the real one of it."""

    def __init__(self, folder: Path, body: str) -> None:
        self.folder = folder
        self.path = folder / "ffmpeg"
        folder.mkdir()
        self.write(body)

    def write(self, body: str) -> None:
        new = self.folder / "new"
        new.write_text(f"{STUB}\n{body}\n", "utf-8")
        new.chmod(0o755)
        new.replace(self.path)  # in one step: a worker may be about to start it

    def mend(self) -> None:
        self.write(f'exec "{FFMPEG}" "$@"')

    def environ(self) -> dict[str, str]:
        return {"PATH": f"{self.folder}:/usr/local/bin:/usr/bin:/bin"}


# ------------------------------------------------------------------------------------------ the server dies


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_loses_nothing_and_workers_go_on_meanwhile(
    start_farm: StartFarm, crowd: Crowd
) -> None:
    farm = start_farm()
    videos = named(crowd, range(1, 61))
    assert farm.add(*bvids(videos)) == "added 60, known 0, rejected 0"
    farm.steer(stop=1, count=3)
    farm.site.post("settings", rate_bytes_per_second=SLOW_BYTES_PER_SECOND)
    workers = [machine(farm, number, "--until-empty") for number in (1, 2)]
    grown = []
    for _ in range(KILLS):
        finished = done(farm)
        wait_until("one more is done", lambda finished=finished: done(farm) > finished)
        wait_until("bytes come to both", lambda: requests_open(farm) >= 2)
        farm.server.kill()
        assert farm.server.process.returncode == KILLED
        before = farm.sent_bytes()
        wait_until("all that was leased is downloaded", lambda: not requests_open(farm))
        grown.append(farm.sent_bytes() - before)
        farm.server = farm.start_server()
    assert done(farm) < len(pages_of(videos)), "the kills did not come under load"
    farm.site.post("settings", rate_bytes_per_second=0)
    assert [worker.wait() for worker in workers] == [0, 0]
    assert sum(bytes_ > 0 for bytes_ in grown) >= KILLS - 1, "no byte came while the server was away"
    assert all("cannot be reached" in worker.output() for worker in workers)
    assert_done_once(farm, crowd, pages_of(videos), *disks(farm))
    assert_no_byte_twice(farm)
    assert_no_parts(*disks(farm))


# ------------------------------------------------------------------------------------------ the queue dies


def engine_of(farm: Farm) -> psutil.Process | None:
    """Return the embedded Valkey of a farm."""
    for process in psutil.process_iter(["name", "cwd"]):
        if process.info["name"] == "valkey-server" and str(farm.folder) in (process.info["cwd"] or ""):
            return process
    return None


@pytest.mark.slow
def test_an_engine_that_is_killed_again_and_again_keeps_all_that_was_called_added(
    start_farm: StartFarm, crowd: Crowd
) -> None:
    farm = start_farm()
    first = named(crowd, range(1, 9))
    assert farm.add(*bvids(first)) == "added 8, known 0, rejected 0"
    farm.steer(stop=1, count=3)
    farm.site.post("settings", rate_bytes_per_second=SLOW_BYTES_PER_SECOND / 8)  # nothing is done before the last kill
    workers = [machine(farm, number, "--until-empty") for number in (1, 2)]
    rounds = [named(crowd, range(9 + 6 * number, 15 + 6 * number)) for number in range(KILLS)]
    killed = set()
    for videos in rounds:
        wait_until("bytes come", lambda: requests_open(farm) >= 1)
        adder = farm.start("add_url.py", *bvids(videos))  # what it is told, it is told around the kill
        engine = wait_until("an engine runs", lambda: engine_of(farm))
        engine.kill()
        engine.wait(10)
        killed.add(engine.pid)
        assert adder.wait() == 0, adder.output()
        assert adder.output().splitlines()[-1] == "added 6, known 0, rejected 0"
    assert len(killed) == KILLS
    everything = [*first, *(video for videos in rounds for video in videos)]
    assert farm.add(*bvids(everything)) == f"added 0, known {len(everything)}, rejected 0"
    assert done(farm) < len(pages_of(everything)), "the kills did not come under load"
    farm.site.post("settings", rate_bytes_per_second=0)
    assert [worker.wait() for worker in workers] == [0, 0]
    assert_done_once(farm, crowd, pages_of(everything), *disks(farm))
    assert_no_byte_twice(farm)
    assert_no_parts(*disks(farm))


# ------------------------------------------------------------------------------------------ goodbye


def waiting_stub(tmp_path: Path) -> Stub:
    """An ffmpeg that writes something and its process id, and then hangs, as one that waits for a disk."""
    return Stub(tmp_path / "bin", 'echo half > "$output"; echo $$ > "${0%/*}/$$.pid"; exec sleep 600')


def merging(stub: Stub, count: int) -> list[psutil.Process]:
    """Wait until so many stubs hang; return them."""
    paths: list[Path] = []

    def all_hang() -> bool:
        paths[:] = [path for path in stub.folder.glob("*.pid") if path.read_text().strip()]
        return len(paths) >= count

    wait_until(f"{count} merges have begun", all_hang)
    return [psutil.Process(int(path.read_text())) for path in paths]


def gone(processes: Iterable[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_merges_gives_the_leases_back_and_leaves_no_child(
    start_farm: StartFarm, crowd: Crowd, tmp_path: Path, number: signal.Signals
) -> None:
    farm = start_farm()
    stub = waiting_stub(tmp_path)
    videos = named(crowd, (1, 2))
    farm.add(*bvids(videos))
    worker = farm.worker(**stub.environ())
    ffmpegs = merging(stub, 2)
    children = psutil.Process(worker.process.pid).children(recursive=True)
    assert set(ffmpegs) <= set(children)
    asked = time.monotonic()
    worker.interrupt(number)
    wait_until("the leases are back", lambda: farm.counts()["ready"] == 2, GOODBYE_SECONDS)
    assert worker.wait(GOODBYE_SECONDS) == 0
    assert time.monotonic() - asked < GOODBYE_SECONDS
    assert farm.counts() == {"ready": 2, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    assert gone([*ffmpegs, *children])
    assert "could not be given back" not in worker.output()
    assert not list(farm.downloads.rglob(".merge-*"))
    before = farm.sent_bytes()
    assert farm.drain() == 0
    assert farm.sent_bytes() == before, "bytes that were there came again"
    assert_done_once(farm, crowd, pages_of(videos))
    assert_no_parts(farm.downloads)


def test_a_second_signal_in_the_middle_of_merges_ends_all_at_once(
    start_farm: StartFarm, crowd: Crowd, tmp_path: Path
) -> None:
    farm = start_farm(BILI_LEASE_SECONDS="3")
    stub = waiting_stub(tmp_path)
    videos = named(crowd, (1, 2))
    farm.add(*bvids(videos))
    worker = farm.worker(**stub.environ())
    ffmpegs = merging(stub, 2)
    farm.server.process.send_signal(signal.SIGSTOP)  # so that a goodbye has nobody to say it to
    try:
        worker.interrupt()
        worker.says("Stopping", 10)  # two signals at once may be delivered as one
        worker.interrupt()
        assert worker.wait(5) == 128 + signal.SIGTERM
    finally:
        farm.server.process.send_signal(signal.SIGCONT)
    wait_until("no ffmpeg is left", lambda: gone(ffmpegs), 5)
    before = farm.sent_bytes()
    assert farm.drain() == 0
    assert farm.sent_bytes() == before, "bytes that were there came again"
    assert_done_once(farm, crowd, pages_of(videos))
    assert_no_parts(farm.downloads)


@pytest.mark.slow
def test_a_signal_between_any_two_steps_of_a_busy_worker_loses_nothing(start_farm: StartFarm, crowd: Crowd) -> None:
    farm = start_farm()
    videos = named(crowd, range(1, 21))
    farm.add(*bvids(videos))
    farm.steer(stop=1, count=3)
    farm.site.post("settings", rate_bytes_per_second=4 * SLOW_BYTES_PER_SECOND)
    for after_done in (0, 3, 7):
        worker = farm.worker()
        wait_until(f"{after_done} are done", lambda least=after_done: done(farm) >= least)
        wait_until("bytes come", lambda: requests_open(farm) > 0)
        children = psutil.Process(worker.process.pid).children(recursive=True)
        worker.interrupt()
        assert worker.wait(GOODBYE_SECONDS) == 0
        assert farm.counts()["leased"] == 0
        assert gone(children)
    assert done(farm) < len(pages_of(videos))
    farm.site.post("settings", rate_bytes_per_second=0)
    assert farm.drain() == 0
    assert_done_once(farm, crowd, pages_of(videos))
    assert_no_parts(farm.downloads)


# ------------------------------------------------------------------------------------------ one disk for two


@pytest.mark.slow
def test_two_machines_on_one_disk_both_work_and_every_page_is_one_file(start_farm: StartFarm, crowd: Crowd) -> None:
    farm = start_farm()
    videos = named(crowd, range(1, 17))
    farm.add(*bvids(videos))
    farm.steer(stop=1, count=3)
    farm.site.post("settings", rate_bytes_per_second=4 * SLOW_BYTES_PER_SECOND)
    shared = {"BILI_DOWNLOAD_DIR": str(farm.downloads)}
    workers = [machine(farm, number, "--until-empty", **shared) for number in (1, 2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert {item["worker"] for item in farm.everything("/success")} == {"machine-1", "machine-2"}
    assert_done_once(farm, crowd, pages_of(videos))
    assert_no_byte_twice(farm)
    assert_no_parts(farm.downloads)


@pytest.mark.slow
def test_two_pages_of_one_name_that_are_merged_at_once_on_one_disk_are_two_files(
    start_farm: StartFarm, crowd: Crowd, tmp_path: Path
) -> None:
    """An uploader puts a page before one of the same title while that one is at work: for a moment both are P02.

    They are merged by two machines, or by the first one alone if it was there earlier.
    """
    farm = start_farm()
    # Each merge waits for the other one, so both have found the name free.
    body = ': > "${0%/*}/$$.merge"; until [ "$(ls "${0%/*}" | grep -c merge)" -ge 2 ]; do sleep 0.05; done'
    stub = Stub(tmp_path / "bin", f'{body}; exec "{FFMPEG}" "$@"')
    video = crowd.video("crowd-40")
    farm.steer(stop=1, count=1)
    shared = {"BILI_DOWNLOAD_DIR": str(farm.downloads), **stub.environ()}
    farm.add(f"{video.bvid}?p=2")
    workers = [machine(farm, 1, "--until-empty", **shared)]
    wait_until("the first one is merged", lambda: len(list(stub.folder.glob("*.merge"))) == 1)
    gained = farm.site.post("gain_page", name="crowd-40", at=2)["cid"]
    script = farm.start("add_url.py", f"{video.bvid}?p=2", "--refresh")
    assert script.wait() == 0
    workers.append(machine(farm, 2, "--until-empty", **shared))
    assert [worker.wait() for worker in workers] == [0, 0]
    files = assert_done_once(farm, crowd, (video.pages[1], video.later_pages[0]))
    assert video.pages[1].title == video.later_pages[0].title and gained == video.later_pages[0].cid
    names = {cid: path.name for cid, path in files.items()}
    (plain,) = (cid for cid, name in names.items() if name == "P02 第2节.mp4")
    (other,) = set(names) - {plain}
    assert names[other] == f"P02 第2节 [{other}].mp4"
    assert sum("was taken in the meantime" in worker.output() for worker in workers) == 1
    assert_no_byte_twice(farm)
    assert_no_parts(farm.downloads)


# ------------------------------------------------------------------------------------------ a job that kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bytes_per_second", "limit"),
    [
        ("crowd-12", 4 * SLOW_BYTES_PER_SECOND, 3),
        # What was downloaded just before a death is heard of from the next worker only, and taken for progress of
        # its own: the count may begin anew once.
        ("crowd-large-1", 0, 5),
    ],
)
def test_a_job_that_kills_its_workers_is_found_and_every_other_one_is_done(
    start_farm: StartFarm, crowd: Crowd, tmp_path: Path, name: str, bytes_per_second: int, limit: int
) -> None:
    farm = start_farm(BILI_LEASE_SECONDS="3")
    deadly = crowd.video(name)
    videos = [video for video in named(crowd, range(1, 31)) if video != deadly]
    videos.insert(11, deadly)
    poison = deadly.pages[0]
    worker = 'sed -n "s/^PPid:[[:space:]]*//p" "/proc/$PPID/status"'  # our parent only starts ffmpegs for it
    stub = Stub(
        tmp_path / "bin",
        f'case "$*" in *cid={poison.cid}*) echo "$$" >> "${{0%/*}}/killed"; kill -9 "$({worker})";; esac\nreal "$@"',
    )
    farm.add(*bvids(videos))
    farm.steer(stop=1, count=2)
    farm.site.post("settings", rate_bytes_per_second=bytes_per_second)
    workers = {number: machine(farm, number, **stub.environ()) for number in (1, 2, 3)}
    others = [page for page in pages_of(videos) if page != poison]
    deaths = 0

    def all_ended() -> bool:
        nonlocal deaths
        for number, worker in workers.items():
            if (status := worker.process.poll()) is not None:
                assert status == KILLED, worker.output()
                deaths += 1
                workers[number] = machine(farm, number, **stub.environ())
        counts = farm.counts()
        return counts["done"] + counts["dead"] == len(others) + 1

    wait_until("every job has ended", all_ended)
    assert 3 <= deaths <= limit, "two beside other jobs, and one alone"
    assert len((stub.folder / "killed").read_text().split()) == deaths
    (failure,) = farm.everything("/failed")
    assert failure["url"] == f"{deadly.bvid}?p=1&cid={poison.cid}"
    assert (failure["state"], failure["code"]) == ("dead", "poison")
    assert "died" in failure["reason"]
    farm.server.says(f"{failure['url']} has failed for good")
    # A worker may have died between another page's name and its record: then that page is made once more elsewhere.
    files = copies_of_pages(*disks(farm))
    assert sum(len(own) - 1 for own in files.values()) <= deaths
    assert_recorded_once(farm, crowd, others, files, *disks(farm), dead=1)
    assert all(worker.process.poll() is None for worker in workers.values())


# ------------------------------------------------------------------------------------------ ffmpeg

FFMPEG_FAULTS = {
    "missing": ("", "No such file"),
    "fails": ("echo 'moov atom is on holiday' >&2; exit 1", "exit status 1: moov atom is on holiday"),
    "killed": ("kill -9 $$", "killed by signal 9"),
    "truncated": (
        'real "$@" || exit; for output in "$@"; do case "$output" in file:*.tmp) output="${output#file:}"; '
        'size=$(wc -c < "$output"); head -c $((size - 3000)) "$output" > "$output.cut"; '
        'cat "$output.cut" > "$output"; rm "$output.cut";; esac; done; exit 0',
        "",
    ),
}
"""What it does, and what the reason of the failure says."""


@pytest.mark.parametrize("fault", FFMPEG_FAULTS)
def test_after_any_fault_of_ffmpeg_the_chunks_are_there_and_the_job_ends_well_later(
    start_farm: StartFarm, crowd: Crowd, tmp_path: Path, fault: str
) -> None:
    farm = start_farm()
    body, reason = FFMPEG_FAULTS[fault]
    stub = Stub(tmp_path / "bin", f'echo x >> "${{0%/*}}/merges"\n{body}')
    videos = named(crowd, (1, 2, 20))
    pages = pages_of(videos)
    farm.add(*bvids(videos))
    farm.steer(stop=0, count=2)
    worker = farm.worker(**stub.environ())
    worker.says("Paused")  # it has found its ffmpeg
    if fault == "missing":
        stub.path.unlink()
    farm.steer(stop=1, count=2)
    # One may be due and fail again at once: what matters is that each has failed, and that none is dead.
    wait_until("each has failed", lambda: len(failed_urls(worker)) == len(pages))
    worker.interrupt()
    assert worker.wait(GOODBYE_SECONDS) == 0
    assert fault == "missing" or len((stub.folder / "merges").read_text().split()) >= len(pages)
    counts = farm.counts()
    assert (counts["done"], counts["dead"], counts["leased"]) == (0, 0, 0)
    assert counts["ready"] + counts["delayed"] == len(pages)
    failures = farm.everything("/failed")
    assert {item["state"] for item in failures} == {"delayed"}
    for item in failures:
        assert item["code"] == "merge" and reason in item["reason"], item
        assert item["reason"] in worker.output()
    assert not finished_files(farm.downloads), "a file with a name that did not pass"
    assert not list(farm.downloads.rglob(".merge-*"))
    assert kept_bytes(farm) == sum(stream.size_bytes for page in pages for stream in crowd.of_page(page.cid))

    stub.mend()
    before = farm.sent_bytes()
    redrive(farm, [item["url"] for item in failures])
    assert farm.drain(**stub.environ()) == 0
    assert farm.sent_bytes() == before, "a byte was fetched again"
    assert_done_once(farm, crowd, pages)
    assert_no_parts(farm.downloads)


def failed_urls(worker: Script) -> set[str]:
    """Return the jobs whose failure a worker has told."""
    return set(re.findall(r"(\S+\?p=\d+&cid=\d+): failed, now delayed", worker.output()))


def kept_bytes(farm: Farm) -> int:
    """Return the bytes of the streams that wait on disk."""
    return sum(path.stat().st_size for path in (farm.downloads / ".parts").glob("*.m4s"))


def redrive(farm: Farm, urls: list[str]) -> None:
    """Let delayed jobs be due now, as the button on the status page does."""
    if urls:
        assert post(farm, "/redrive", {"urls": urls})["redriven"] <= len(urls)


def post(farm: Farm, path: str, content: object) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(
        f"http://127.0.0.1:{farm.port}{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)


# ------------------------------------------------------------------------------------------ many who add


@pytest.mark.slow
def test_a_hundred_clients_that_add_one_video_in_all_spellings_at_once_make_one_job(
    start_farm: StartFarm, crowd: Crowd
) -> None:
    farm = start_farm()
    video = crowd.video("crowd-11")
    web, short = farm.site.addresses["web"], farm.site.addresses["short"]
    spellings = [
        video.bvid,
        f"av{video.aid}",
        f"AV{video.aid}",
        f"https://www.bilibili.com/video/{video.bvid}/?spm_id_from=333.788&vd_source=0123456789abcdef#reply1",
        f"https://m.bilibili.com/video/av{video.aid}?t=3",
        f"{web}/video/{video.bvid}?p=",
        f"{short}/{video.bvid}",
    ]
    links = [f"{short}/Crowd11", "https://b23.tv/Crowd11"]
    clients, scripts = 100, 4
    gate = threading.Barrier(clients + 1)
    answers: list[dict[str, Any]] = []

    def client(number: int) -> None:
        turned = [*spellings[number % len(spellings) :], *spellings[: number % len(spellings)]]
        gate.wait()
        answers.append(post(farm, "/add_url", {"urls": [*turned, links[0]], "request": f"client-{number}"}))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    running = [farm.start("add_url.py", *links, *spellings) for _ in range(scripts)]  # these go to Valkey themselves
    gate.wait()
    for thread in threads:
        thread.join()
    assert [script.wait() for script in running] == [0] * scripts
    assert len(answers) == clients
    said = [re.search(r"added (\d+), known (\d+), rejected (\d+)", script.output()) for script in running]
    told = [tuple(map(int, match.groups())) for match in said if match]
    assert sum(answer["added"] for answer in answers) + sum(added for added, _known, _rejected in told) == 1
    assert all(answer["added"] + answer["known"] == len(spellings) for answer in answers)
    assert all(added + known == len(spellings) + len(links) for added, known, _rejected in told)
    assert [rejected for _added, _known, rejected in told] == [0] * scripts
    assert all([one["url"] for one in answer["rejected"]] == [links[0]] for answer in answers), "it fetches nothing"
    assert farm.counts() == {"ready": 1, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    assert farm.drain() == 0
    assert_done_once(farm, crowd, video.pages)
    assert post(farm, "/add_url", {"urls": spellings, "request": "later"}) == {
        "added": 0,
        "known": len(spellings),
        "rejected": [],
    }
