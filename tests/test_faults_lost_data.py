"""The queue's own data are lost, or set back to an older state: what was downloaded is known again by itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from demo.catalogue import video
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from tests.farm import Farm, wait_until

pytestmark = pytest.mark.timeout(240)
NAMES = ("plain", "same-title-a", "same-title-b", "emoji-title")


@pytest.fixture
def site() -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


def bvids(*names: str) -> list[str]:
    return [video(name).bvid for name in names]


def pages(*names: str) -> list[str]:
    return sorted(f"{video(name).bvid}?p=1&cid={video(name).pages[0].cid}" for name in names)


def recorded(farm: Farm) -> list[str]:
    return sorted(item["url"] for item in farm.everything("/success"))


def engine(farm: Farm) -> redis.Redis:
    folder = farm.folder / "data" / "valkey"
    return redis.Redis(unix_socket_path=str(folder / "valkey.sock"), password=(folder / "password").read_text().strip())


@pytest.mark.slow
def test_an_emptied_queue_hears_of_every_finished_page_and_none_is_fetched_again(farm: Farm) -> None:
    worker = farm.worker()
    farm.add(*bvids(*NAMES[:3]))
    wait_until("three are done", lambda: farm.counts()["done"] == 3)
    sent = farm.sent_bytes()
    engine(farm).flushall()
    assert farm.counts()["done"] == 0
    wait_until("they are known again", lambda: farm.counts()["done"] == 3)
    worker.says("The queue had lost 3 results of this worker")
    farm.server.says("The queue had lost 3 results of")
    assert recorded(farm) == pages(*NAMES[:3])
    assert farm.add(*bvids(*NAMES)) == "added 4, known 0, rejected 0"
    wait_until("the new one is done", lambda: farm.counts()["done"] == 4)
    wait_until("the others are closed", lambda: farm.counts() == {**farm.counts(), "ready": 0, "leased": 0})
    assert recorded(farm) == pages(*NAMES)
    new = sum(
        sent_bytes
        for path, ranges in farm.ranges().items()
        for _start, _stop, sent_bytes in ranges
        if str(video(NAMES[3]).pages[0].cid) in path
    )
    assert farm.sent_bytes() - sent == new > 0


@pytest.mark.slow
def test_a_queue_set_back_to_a_backup_hears_of_what_was_finished_since(farm: Farm, tmp_path: Path) -> None:
    worker = farm.worker()
    farm.add(*bvids(NAMES[0]))
    wait_until("the first is done", lambda: farm.counts()["done"] == 1)
    farm.add(*bvids(NAMES[1]))  # known to the backup, but not finished there
    farm.steer(stop=0, count=2)
    worker.says("Paused")
    folder, backup = farm.folder / "data" / "valkey", tmp_path / "backup"
    shutil.copytree(folder / "appendonlydir", backup)
    farm.steer(stop=1, count=2)
    farm.add(*bvids(NAMES[2]))
    wait_until("all are done", lambda: farm.counts()["done"] == 3)
    sent = farm.sent_bytes()

    farm.server.kill()  # the last user is gone: Valkey ends
    wait_until("Valkey has ended", lambda: not has_valkey(folder))
    shutil.rmtree(folder / "appendonlydir")
    shutil.copytree(backup, folder / "appendonlydir")
    farm.server = farm.start_server()

    wait_until("all are known again", lambda: farm.counts()["done"] == 3)
    wait_until("nothing is left of their jobs", lambda: farm.counts() == {**farm.counts(), "ready": 0, "leased": 0})
    assert recorded(farm) == pages(*NAMES[:3])
    assert farm.counts()["dead"] == farm.counts()["delayed"] == 0
    assert farm.sent_bytes() == sent
    assert "Traceback" not in worker.output() + farm.server.output()


def has_valkey(folder: Path) -> bool:
    """Tell whether a Valkey server works in a folder."""
    for process in psutil.process_iter(["name"]):
        try:
            if "valkey" in (process.info["name"] or "") and Path(process.cwd()) == folder:
                return True
        except psutil.Error:
            continue
    return False


@pytest.mark.slow
def test_a_result_that_comes_after_the_loss_does_not_hide_what_was_lost_before(farm: Farm, tmp_path: Path) -> None:
    """The worker is not asked about its newest result alone: that one may be known again, and those before it not."""
    worker = farm.worker()
    farm.add(*bvids(*NAMES[:3]))
    wait_until("three are done", lambda: farm.counts()["done"] == 3)
    connection = engine(farm)
    first, *others = (video(name).pages[0].cid for name in NAMES[:3])
    with connection.pipeline(transaction=True) as pipe:  # as a backup has it: one page is still to be done
        pipe.flushall()
        pipe.sadd(f"{{bili:0}}:seen:c:{first % 65536}", first)
        pipe.rpush("{bili:0}:ready", pages(NAMES[0])[0])
        pipe.execute()
    wait_until("all are known again", lambda: farm.counts()["done"] == 3)
    assert recorded(farm) == pages(*NAMES[:3])
    assert len(others) == 2
    assert "Traceback" not in worker.output()
