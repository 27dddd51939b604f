"""Whole farms whose files are collected: nothing recorded twice, nothing missed, nothing downloaded again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.catalogue import video
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from tests.farm import Farm, Script, finished_files, wait_until
from tests.places import PASSWORD, USER, make_home, make_keys, serving
from tests.test_delivery import s3_environ
from tests.test_faults_lost_data import engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLAIN, FIVE = video("plain"), video("five-pages")
KILLED = -signal.SIGKILL
SLOW = 65536


@pytest.fixture(scope="module")
def module_site() -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.fixture
def site(module_site: SiteProcess) -> SiteProcess:
    module_site.post("reset")
    return module_site


@pytest.fixture
def nas(tmp_path: Path) -> Path:
    folder = tmp_path / "nas"
    folder.mkdir()
    return folder


def media(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.mp4") if ".parts" not in path.parts)


def stored(farm: Farm) -> dict[str, str]:
    return {item["url"]: item["stored"] for item in farm.everything("/success")}


def crash(farm: Farm, point: str, **more: str) -> None:
    worker = farm.start("tests/crash.py", point, "--", "run.py", "--until-empty", **more)
    assert worker.wait() == KILLED, worker.output()[-3000:]


def test_files_come_to_one_place_with_what_lies_beside_them(farm: Farm, nas: Path) -> None:
    farm.add(PLAIN.bvid, FIVE.bvid)
    more = {"BILI_DELIVER_TO": f"file://{nas}", "BILI_DELIVER_KEEP": "no", "BILI_EXTRAS": "danmaku,cover-file,nfo"}
    assert farm.drain(**more) == 0
    assert set(media(nas)) and len(media(nas)) == 6
    assert media(farm.downloads) == []
    assert len(list(nas.rglob("*.nfo"))) >= 6 and len(list(nas.rglob("*.danmaku.ass"))) == 6
    assert not list(nas.rglob(".*")), "nothing half is left"
    assert not list((farm.folder / "data" / "deliveries").iterdir())
    for item in farm.everything("/success"):
        assert item["stored"].startswith(f"file://{nas}/"), item
        assert (nas / item["path"]).stat().st_size == item["bytes"]
    found = farm.start("add_url.py", "--find", FIVE.bvid, "--json", BILI_TOKEN="")
    assert found.wait() == 0
    text = found.output()
    jobs = json.loads(text[text.index("\n[") if not text.startswith("[") else 0 :])
    assert len(jobs) == 5 and all(job["stored"] and job["worker"] for job in jobs)
    nothing = farm.start("add_url.py", "--find", "no such title")
    assert nothing.wait() == 1 and "Nothing is known" in nothing.output()
    by_cid = farm.start("add_url.py", "--find", str(PLAIN.pages[0].cid))
    assert by_cid.wait() == 0 and str(nas) in by_cid.output()


@pytest.mark.parametrize(
    "point",
    [
        "delivery.notes:Notes.write:1:after",
        "delivery.folder:Folder.append:1",
        "delivery.folder:Folder.rename:1",
        "delivery.folder:Folder.rename:1:after",
        "delivery.notes:Notes.write:2:after",
        "queue_client:QueueClient.ack:1",
        "queue_client:QueueClient.ack:1:after",
        "delivery.notes:Notes.delete:1",
    ],
)
@pytest.mark.parametrize("keep", ["yes", "no"])
def test_a_worker_that_is_killed_anywhere_delivers_once_and_downloads_once(
    farm: Farm, nas: Path, point: str, keep: str
) -> None:
    farm.add(PLAIN.bvid)
    more = {"BILI_DELIVER_TO": f"file://{nas}", "BILI_DELIVER_KEEP": keep}
    crash(farm, point, **more)
    before = farm.sent_bytes()
    assert farm.drain(**more) == 0
    assert farm.sent_bytes() == before, "no byte was downloaded again"
    (item,) = farm.everything("/success")
    assert len(finished_files(nas)) == 1 and not list(nas.rglob(".*"))
    assert item["stored"] == f"file://{nas}/{item['path']}".replace(" ", "%20")
    assert len(media(farm.downloads)) == (1 if keep == "yes" else 0)


def test_a_place_that_is_away_parks_the_worker_and_nothing_is_downloaded_again(farm: Farm, nas: Path) -> None:
    nas.rmdir()
    farm.add(PLAIN.bvid)
    more = {"BILI_DELIVER_TO": f"file://{nas}", "BILI_DELIVER_KEEP": "no"}
    worker = farm.worker("--until-empty", **more)
    worker.says("leases nothing")
    assert "mounted" in worker.output()
    (seen,) = wait_until("it is parked", lambda: [one for one in farm.get("/status")["workers"] if one["note"]])
    assert str(nas) in seen["note"] and seen["jobs"][0]["stage"] == "delivering"
    sent = farm.sent_bytes()
    worker.interrupt()
    worker.wait()
    nas.mkdir()
    assert farm.drain(**more) == 0
    assert farm.sent_bytes() == sent and len(stored(farm)) == 1
    assert farm.get("/failed")["items"] == []


def begun_upload(farm: Farm, nas: Path) -> Script:
    """A worker in the middle of a slow upload."""
    farm.add(PLAIN.bvid)
    farm.steer(stop=1, count=2, max_speed=SLOW)
    worker = farm.worker(BILI_DELIVER_TO=f"file://{nas}")
    wait_until("an upload has begun", lambda: part_bytes(nas))
    return worker


def part_bytes(nas: Path) -> int:
    return sum(path.stat().st_size for path in nas.rglob(".*.part"))


def test_a_pause_holds_an_upload_and_the_end_of_it_lets_it_go_on(farm: Farm, nas: Path) -> None:
    worker = begun_upload(farm, nas)
    farm.steer(stop=0, count=2, max_speed=SLOW)
    worker.says("Paused")
    seen: list[int] = []

    def stands_still() -> bool:
        seen.append(part_bytes(nas))
        return len(seen) > 20 and len(set(seen[-20:])) == 1  # a second; a piece takes a quarter of one

    wait_until("nothing more comes", stands_still)
    assert stored(farm) == {} and seen[-1] > 0
    farm.steer(stop=1, count=2)
    wait_until("it is delivered", lambda: stored(farm))
    worker.interrupt()
    assert worker.wait() == 0


def test_a_signal_in_the_middle_of_an_upload_ends_the_worker_and_the_next_one_goes_on(farm: Farm, nas: Path) -> None:
    worker = begun_upload(farm, nas)
    worker.interrupt()
    assert worker.wait(15) == 0
    there, sent = part_bytes(nas), farm.sent_bytes()
    assert there and farm.counts()["ready"] == 1
    farm.steer(stop=1, count=2)
    assert farm.drain(BILI_DELIVER_TO=f"file://{nas}") == 0
    assert farm.sent_bytes() == sent and len(finished_files(nas)) == 1 == len(stored(farm))


def test_a_queue_that_lost_its_data_hears_of_delivered_pages_though_the_copies_are_gone(farm: Farm, nas: Path) -> None:
    farm.add(PLAIN.bvid)
    more = {"BILI_DELIVER_TO": f"file://{nas}", "BILI_DELIVER_KEEP": "no"}
    assert farm.drain(**more) == 0
    before = stored(farm)
    sent = farm.sent_bytes()
    engine(farm).flushall()
    worker = farm.worker(**more)
    wait_until("the queue knows it again", lambda: stored(farm) == before)
    worker.interrupt()
    worker.wait()
    assert farm.sent_bytes() == sent


def test_files_come_to_an_sftp_server_by_a_password_that_nobody_sees(farm: Farm, tmp_path: Path) -> None:
    keys, served = tmp_path / "keys", tmp_path / "served"
    make_keys(keys)
    (served / "v").mkdir(parents=True)
    with serving(["sftp", str(served), str(keys)]) as (port, _process):
        make_home(tmp_path / "home", keys, port, with_key=False)
        secret = PASSWORD.replace(" ", "%20")
        more = {
            "BILI_DELIVER_TO": f"sftp://{USER}:{secret}@127.0.0.1:{port}/v",
            "HOME": str(tmp_path / "home"),
            "BILI_LOG_LEVEL": "debug",
            "SSH_AUTH_SOCK": "",
        }
        farm.add(PLAIN.bvid, FIVE.bvid)
        worker = farm.worker("--until-empty", **more)
        assert worker.wait() == 0
        assert len(finished_files(served)) == 6
        assert all(url.startswith(f"sftp://127.0.0.1:{port}/v/") for url in stored(farm).values())
        for text in (worker.output(), json.dumps(farm.everything("/success")), farm.server.output()):
            assert "geheim" not in text
    for path in (farm.folder / "data").rglob("*"):
        if path.is_file():
            assert b"geheim" not in path.read_bytes(), path


def test_files_come_to_s3(farm: Farm, tmp_path: Path) -> None:
    import boto3

    with serving(["s3"]) as (port, _process):
        environ = s3_environ(port, tmp_path)
        client = boto3.client(
            "s3",
            endpoint_url=environ["AWS_ENDPOINT_URL"],
            aws_access_key_id="key",
            aws_secret_access_key="geheim",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="videos")
        farm.add(PLAIN.bvid, FIVE.bvid)
        more = {"BILI_DELIVER_TO": "s3://videos/farm", "BILI_DELIVER_KEEP": "no", "BILI_LOG_LEVEL": "debug"}
        worker = farm.worker("--until-empty", **more, **environ)
        assert worker.wait() == 0, worker.output()[-3000:]
        keys = {one["Key"]: one["Size"] for one in client.list_objects_v2(Bucket="videos")["Contents"]}
        assert {f"farm/{item['path']}": item["bytes"] for item in farm.everything("/success")} == keys
        assert all(url.startswith("s3://videos/farm/") for url in stored(farm).values()) and len(keys) == 6
        assert media(farm.downloads) == [] and "geheim" not in worker.output()
        client.close()


def test_a_worker_without_the_package_says_so_and_ends(farm: Farm, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "boto3.py").write_text("raise ImportError('no boto3 here')\n", "utf-8")
    worker = farm.worker(BILI_DELIVER_TO="s3://bucket", PYTHONPATH=str(blocked))
    assert worker.wait() == 2
    assert "pip install -r requirements-deliver.txt" in worker.output()
    inside = farm.worker(BILI_DELIVER_TO=f"file://{farm.downloads}/out")
    assert inside.wait() == 2 and "download folder" in inside.output()


def test_what_is_laid_later_is_brought_too(farm: Farm, nas: Path) -> None:
    farm.add(PLAIN.bvid)
    more = {"BILI_DELIVER_TO": f"file://{nas}"}
    assert farm.drain(**more) == 0
    late = farm.worker("--extras", BILI_EXTRAS="nfo,danmaku", **more)
    assert late.wait() == 0, late.output()
    assert len(list(nas.rglob("*.nfo"))) == 1 and len(list(nas.rglob("*.danmaku.ass"))) == 1
