"""A full, read-only or broken disk: the job goes back whole, the worker says so, and goes on when there is room."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest

from demo.catalogue import video
from demo.media import Library, ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from model import MIB
from tests.farm import ROOT, Farm, Script, finished_files, wait_until
from tests.test_faults_worker import (
    MAIN_THREAD,
    StartFarm,
    assert_done_once,
    assert_little_again,
    assert_whole,
    connections_used,
    die,
    farms,
    held_ranges,
    page_of,
    settle_site,
    tool,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

READY = {"ready": 1, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
PATIENT_SECONDS = 90.0

IMPATIENT = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import retry
retry.park_seconds = lambda failures: 8.0  # a heartbeat comes within five
sys.argv[:2] = []
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script whose parked worker looks again soon; how long that takes in earnest has tests of its own."""


@pytest.fixture(scope="module")
def library() -> Library:
    return ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="module")
def module_site(library: Library) -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.fixture
def site(module_site: SiteProcess) -> SiteProcess:
    module_site.post("reset")
    return module_site


class Disk:
    """A small disk of its own, mounted in a folder."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ballast = folder / "ballast"
        self._mount("-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs")

    def _mount(self, *arguments: str) -> None:
        subprocess.run([tool("mount"), *arguments, str(self.folder)], check=True)

    def become(self, option: str) -> None:
        """Mount it in another way: ``ro``, ``rw``, ``size=…``."""
        self._mount("-o", f"remount,{option}")

    def fill(self) -> None:
        """Write until the disk takes no byte more."""
        with pytest.raises(OSError, match="No space"), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(64 * 1024))
        with pytest.raises(OSError, match="No space"), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(b"1")

    def empty(self) -> None:
        """Take the ballast away."""
        self._ballast.unlink()

    def unmount(self) -> None:
        subprocess.run([tool("umount"), str(self.folder)], check=True)


MountDisk = Callable[[Path, int], Disk]


@pytest.fixture
def mount() -> Iterator[MountDisk]:
    """Mount small disks; they outlive the processes that write there."""
    disks: list[Disk] = []

    def mounted(folder: Path, mebibytes: int) -> Disk:
        disks.append(Disk(folder, mebibytes))
        return disks[-1]

    yield mounted
    for disk in reversed(disks):
        disk.unmount()


@pytest.fixture
def start_farm(mount: MountDisk, tmp_path: Path, site: SiteProcess) -> Iterator[StartFarm]:
    with farms(tmp_path, site) as start:
        yield start


def impatient_worker(farm: Farm, *launcher: str, **more: str) -> Script:
    """Start a worker that is parked for seconds only, by another program if one is named."""
    script = farm.folder / "impatient.py"
    script.write_text(IMPATIENT, "utf-8")
    command = [str(script), str(ROOT), str(ROOT / "run.py"), "--until-empty"]
    if not launcher:
        return farm.start(*command, **more)
    launch = farm.folder / "launch.py"
    launch.write_text("import os, sys\nos.execv(sys.argv[1], sys.argv[1:])\n", "utf-8")
    return farm.start(str(launch), *launcher, sys.executable, *command, **more)


def assert_parked(farm: Farm, worker: Script, *words: str) -> None:
    """The job is back without an attempt counted, the worker waits, and one line says why."""
    worker.says("This worker leases nothing for")
    lines = [line for line in worker.output().splitlines() if "This worker leases nothing for" in line]
    for word in words:
        assert word in lines[0], lines[0]
    wait_until("the status page says so", lambda: "parked" in [one.get("state") for one in workers(farm)])
    wait_until("the job is back", lambda: farm.counts() in (READY, {**READY, "ready": 0, "leased": 1}))
    assert farm.everything("/failed") == []


def workers(farm: Farm) -> list[dict[str, str]]:
    found: list[dict[str, str]] = farm.get("/status")["workers"]
    return found


# ------------------------------------------------------------------------------------------ full


def test_a_disk_that_fills_up_in_the_middle_of_a_chunk_costs_nothing_but_time(
    start_farm: StartFarm, mount: MountDisk, library: Library
) -> None:
    farm = start_farm()
    disk = mount(farm.downloads, 220)
    farm.site.post("settings", rate_bytes_per_second=2 * MIB)
    farm.add(video("large-a").bvid)
    worker = farm.worker("--until-empty")  # with its real patience of half a minute
    wait_until("some of it came", lambda: farm.sent_bytes() > 8 * MIB)
    disk.fill()
    assert_parked(farm, worker, str(farm.downloads))
    settle_site(farm)
    held, connections = held_ranges(farm, library), connections_used(farm)
    assert sum(chunk.claimed - chunk.start for chunk in held) > 2 * MIB
    farm.site.post("settings", rate_bytes_per_second=0)
    farm.site.post("reset_stats")
    disk.empty()
    assert worker.wait(PATIENT_SECONDS) == 0
    assert_little_again(farm, held, connections)
    assert_done_once(farm, library, page_of("large-a"))


@pytest.mark.parametrize("mebibytes", [70, 125], ids=["less than the page", "less than the page and its merged file"])
def test_a_disk_too_small_for_the_page_is_named_before_the_first_byte(
    start_farm: StartFarm, mount: MountDisk, library: Library, mebibytes: int
) -> None:
    farm = start_farm()
    disk = mount(farm.downloads, mebibytes)
    farm.add(video("large-a").bvid)
    worker = impatient_worker(farm)
    assert_parked(farm, worker, str(farm.downloads / ".parts"), "MiB left", "make room")
    assert farm.sent_bytes() == 0
    disk.become("size=250m")
    assert worker.wait(PATIENT_SECONDS) == 0
    assert_done_once(farm, library, page_of("large-a"))


def test_a_category_on_another_disk_that_is_full_keeps_the_chunks_until_there_is_room(
    start_farm: StartFarm, mount: MountDisk, library: Library
) -> None:
    farm = start_farm()
    disk = mount(farm.downloads / "other", 20)
    farm.add(video("large-a").bvid)
    worker = impatient_worker(farm)
    assert_parked(farm, worker, str(disk.folder), "MiB left", "free some room")
    sent = farm.sent_bytes()
    disk.become("size=100m")
    assert worker.wait(PATIENT_SECONDS) == 0
    assert farm.sent_bytes() == sent
    assert_done_once(farm, library, page_of("large-a"))


def test_a_full_disk_below_the_data_folder_loses_no_result(
    start_farm: StartFarm, mount: MountDisk, library: Library
) -> None:
    farm = start_farm()
    disk = mount(farm.folder / "worker data", 1)
    disk.fill()
    farm.add(video("plain").bvid, video("no-audio").bvid)
    worker = farm.worker("--until-empty", BILI_DATA_DIR=str(disk.folder))
    assert worker.wait() == 0
    assert_done_once(farm, library, page_of("plain"), page_of("no-audio"))


# ------------------------------------------------------------------------------------------ scratch and library


def hidden_files(*folders: Path) -> list[str]:
    """Return what is left of merges, anywhere below."""
    return [str(path) for folder in folders for path in folder.rglob(".merge-*")]


@pytest.mark.parametrize(
    "point",
    ["merge_stream_file:_copy:1", "os:posix_fadvise:1", "merge_stream_file:_copy:1:after", "os:link:1:after"],
)
def test_a_worker_that_dies_on_the_way_from_scratch_to_library_leaves_nothing_on_either_disk(
    start_farm: StartFarm, mount: MountDisk, library: Library, point: str
) -> None:
    """Before the copy, in the middle of it, behind it, and when the file has its name."""
    farm = start_farm()
    scratch = mount(farm.folder / "scratch", 250).folder
    farm.add(video("large-a").bvid)
    die(farm, point, BILI_SCRATCH_DIR=str(scratch))
    assert hidden_files(scratch) and (point.endswith("_copy:1") or hidden_files(farm.downloads))
    sent = farm.sent_bytes()
    assert farm.drain(BILI_SCRATCH_DIR=str(scratch)) == 0
    assert farm.sent_bytes() == sent, "the parts were there"
    assert hidden_files(scratch, farm.downloads) == []
    assert_copied(farm, library)


def test_a_library_that_fills_up_under_a_copy_keeps_the_chunks_until_there_is_room(
    start_farm: StartFarm, mount: MountDisk, library: Library
) -> None:
    farm = start_farm()
    scratch, disk = mount(farm.folder / "scratch", 250), mount(farm.downloads / "other", 20)
    farm.add(video("large-a").bvid)
    worker = impatient_worker(farm, BILI_SCRATCH_DIR=str(scratch.folder))
    assert_parked(farm, worker, str(disk.folder), "MiB left", "free some room")
    sent = farm.sent_bytes()
    disk.become("size=100m")
    assert worker.wait(PATIENT_SECONDS) == 0
    assert farm.sent_bytes() == sent
    assert hidden_files(scratch.folder, disk.folder) == []
    assert_copied(farm, library)


def assert_copied(farm: Farm, library: Library) -> None:
    page = page_of("large-a")
    assert farm.counts()["done"] == 1
    ((cid, path),) = finished_files(farm.downloads).items()
    assert cid == page.cid
    assert_whole(path, cid, library)


# ------------------------------------------------------------------------------------------ read-only


@pytest.mark.parametrize("setting", ["BILI_DOWNLOAD_DIR", "BILI_DATA_DIR"])
def test_a_folder_that_is_read_only_from_the_start_is_one_clear_sentence(
    start_farm: StartFarm, mount: MountDisk, setting: str
) -> None:
    farm = start_farm()
    disk = mount(farm.folder / "read-only", 4)
    disk.become("ro")
    for folder in (disk.folder, disk.folder / "missing"):
        worker = farm.worker("--until-empty", **{setting: str(folder)})
        assert worker.wait() == 2
        last = worker.output().splitlines()[-1]
        assert str(folder) in last and setting in last and "Read-only file system" in last


def test_a_disk_that_becomes_read_only_parks_the_worker_until_it_can_be_written(
    start_farm: StartFarm, mount: MountDisk, library: Library
) -> None:
    farm = start_farm()
    disk = mount(farm.downloads, 250)
    farm.add(video("plain").bvid)
    assert farm.drain() == 0
    worker = impatient_worker(farm, BILI_WORKER="other")  # ends: nothing is there
    assert worker.wait() == 0
    script = farm.folder / "impatient.py"
    worker = farm.start(str(script), str(ROOT), str(ROOT / "run.py"))
    worker.says("Running")
    wait_until("it waits", lambda: "running" in [one.get("state") for one in workers(farm)])
    disk.become("ro")
    farm.add(video("no-audio").bvid)
    worker.says("This worker leases nothing for")
    line = next(line for line in worker.output().splitlines() if "leases nothing for" in line)
    assert str(disk.folder) in line and "Read-only file system" in line
    assert farm.counts()["done"] == 1 and farm.everything("/failed") == []
    disk.become("rw")
    wait_until("it is done by itself", lambda: farm.counts()["done"] == 2, PATIENT_SECONDS)
    assert_done_once(farm, library, page_of("plain"), page_of("no-audio"))


# ------------------------------------------------------------------------------------------ broken


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("number", [1, 9])
def test_a_write_that_the_disk_refuses_costs_no_attempt_and_no_good_chunk(
    start_farm: StartFarm, library: Library, error: str, number: int
) -> None:
    farm = start_farm()
    farm.add(video("large-a").bvid)
    inject = ["-e", "trace=pwrite64", "-e", f"inject=pwrite64:error={error}:when={number}"]
    trace = farm.folder / "trace"
    worker = impatient_worker(farm, tool("strace"), *MAIN_THREAD, "-o", str(trace), *inject)
    assert_parked(farm, worker, "cannot be written")
    assert worker.wait(PATIENT_SECONDS) == 0
    assert "(INJECTED)" in trace.read_text()
    assert_done_once(farm, library, page_of("large-a"))


def test_a_file_system_without_hard_links_gets_its_files_by_a_rename(start_farm: StartFarm, library: Library) -> None:
    farm = start_farm()
    farm.add(video("same-title-a").bvid, video("same-title-b").bvid)
    inject = ["-e", "trace=link,linkat,renameat2,rename", "-e", "inject=link,linkat:error=EPERM"]
    trace = farm.folder / "trace"
    worker = impatient_worker(farm, tool("strace"), *MAIN_THREAD, "-o", str(trace), *inject)
    assert worker.wait() == 0
    assert trace.read_text().count("(INJECTED)") == 2
    assert trace.read_text().count("RENAME_NOREPLACE") == 2
    assert_done_once(farm, library, page_of("same-title-a"), page_of("same-title-b"))
