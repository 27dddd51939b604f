"""Files that others have downloaded become finished pages: by what they say, and what lies beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest
import redis

from adopt_files import Asked, Marks, Standing, Unknown, marks_in, standing_files
from config import ROOT, Settings
from errors import SiteError
from model import Page, Video
from parse_ import aid_to_bvid, bvid_to_aid
from redisConnect import Queue
from tests import structure

BV, OTHER = aid_to_bvid(170001), aid_to_bvid(170002)
EPISODE = 123456
SIZE = 7


def video(bvid: str) -> Video:
    """What the site would say: the one has a single page, the other one three."""
    if bvid == OTHER:
        return Video(OTHER, 170002, "Three", tuple(Page(n, 900 + n, f"part {n}", 10.0 * n) for n in (1, 2, 3)))
    if bvid == BV:
        return Video(BV, 170001, "One", (Page(1, 901, "part", 33.0),))
    raise SiteError("it is gone", "-404")


def episode(number: int) -> Video:
    return Video(BV, 170001, "Episode", (Page(1, 955, "e", 5.0),), episode_id=number)


ASKED = Asked(video, episode)
CHAT = '<?xml version="1.0"?><i><chatserver>chat.bilibili.com</chatserver><chatid>{}</chatid><d p="1">x</d></i>'


def lay(folder: Path, *names: str, **texts: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * SIZE)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")


def found(folder: Path, asked: Asked | None = ASKED) -> dict[str, tuple[str, int] | str]:
    """Return id and cid of each file, or why it is none."""
    return {
        one.path.relative_to(folder).as_posix(): (one.url, one.cid) if isinstance(one, Standing) else one.reason
        for one in standing_files(folder, asked)
    }


def info(**more: object) -> str:
    return json.dumps({"extractor_key": "BiliBili", "title": "标题", **more})


WEB = "https://www.bilibili.com"
DANMAKU = {"danmaku": [{"url": "https://comment.bilibili.com/77.xml"}]}
OF_THREE = {"t.info.json": info(id=f"{OTHER}_p3", webpage_url=f"{WEB}/video/{OTHER}?p=3")}
WITH_CID = {"t.info.json": info(id=BV, webpage_url=f"{WEB}/video/{BV}", subtitles=DANMAKU)}
OF_BANGUMI = {
    "e [12].info.json": json.dumps(
        {"extractor_key": "BiliBiliBangumi", "id": "12", "webpage_url": f"{WEB}/bangumi/play/ep{EPISODE}"}
    )
}
OF_YUTTO = {
    "title/name.nfo": f"<movie><title>T</title><uniqueid>{BV}</uniqueid></movie>",
    "title/name.xml": CHAT.format(901),
}


# The names are those that each program makes by itself; .flv and .webm, so that no video must be made for them.
@pytest.mark.parametrize(
    ("name", "beside", "expected"),
    [
        (f"标题 [{BV}].flv", {}, (f"{BV}?p=1&cid=901", 901)),  # yt-dlp
        (f"标题 p02 part [{OTHER}_p2].webm", {}, (f"{OTHER}?p=2&cid=902", 902)),
        ("t.flv", OF_THREE, (f"{OTHER}?p=3&cid=903", 903)),
        ("t.flv", WITH_CID, (f"{BV}?p=1&cid=77", 77)),
        ("e [12].flv", OF_BANGUMI, (f"ep{EPISODE}?cid=955", 955)),
        ("标题/[P02]part 2.flv", {"标题/[P02]part 2.xml": CHAT.format(902)}, ("", 902)),  # BBDown
        (f"{OTHER}/[P02]part 2.flv", {}, (f"{OTHER}?p=2&cid=902", 902)),
        (f"[P3]x cid=903 {OTHER}.flv", {}, (f"{OTHER}?p=3&cid=903", 903)),
        (f"{BV}/name.flv", {}, (f"{BV}?p=1&cid=901", 901)),  # yutto, with {bvid} in its template
        ("title/name.flv", OF_YUTTO, (f"{BV}?p=1&cid=901", 901)),
        (f"av{bvid_to_aid(BV)} x.flv", {}, (f"{BV}?p=1&cid=901", 901)),
        (f"x ep{EPISODE}.flv", {}, (f"ep{EPISODE}?cid=955", 955)),
    ],
)
def test_what_says_its_page_is_that_page(
    tmp_path: Path, name: str, beside: dict[str, str], expected: tuple[str, int]
) -> None:
    lay(tmp_path, name, **beside)
    assert found(tmp_path) == {name: expected}


@pytest.mark.parametrize(
    ("names", "part_of_reason"),
    [
        (["bilix title.flv"], "nothing in it"),
        ([f"{OTHER}.flv"], "3 pages"),
        ([f"{OTHER}_p9.flv"], "no page 9"),
        ([f"{aid_to_bvid(99)}.flv"], "it is gone"),
        ([f"{BV} {OTHER}.flv"], "nothing in it"),
        ([f"{BV}.f30080.flv"], "one stream"),
        ([f"{BV}.mp4"], "damaged"),
        ([f"{BV}.flv", f"{BV}.flv.part"], "has not ended"),
    ],
)
def test_what_does_not_say_it_is_left_with_the_reason(tmp_path: Path, names: list[str], part_of_reason: str) -> None:
    lay(tmp_path, *names)
    told = found(tmp_path)[names[0]]
    assert isinstance(told, str) and part_of_reason in told


def test_without_the_site_only_a_cid_will_do(tmp_path: Path) -> None:
    lay(tmp_path, f"{BV}.flv", "b.flv", **{"b.xml": CHAT.format(5)})
    told = found(tmp_path, None)
    assert told["b.flv"] == ("", 5) and "not to be asked" in told[f"{BV}.flv"]


def test_each_video_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[str] = []
    lay(
        tmp_path, *(f"{OTHER}/[P{n}]x.flv" for n in (1, 2, 3)), f"{aid_to_bvid(99)}_p1.flv", f"{aid_to_bvid(99)}_p2.flv"
    )
    list(standing_files(tmp_path, Asked(lambda bvid: (asked.append(bvid), video(bvid))[1], episode)))
    assert sorted(asked) == sorted({OTHER, aid_to_bvid(99)})


def test_names_of_others_are_no_marks() -> None:
    assert marks_in("BV1xx411c7mDD and MyBV1xx411c7mD, step12, deep1234", "name") == Marks()
    assert marks_in("BV1000000000", "name").bvid == ""


def tagged(path: Path, comment: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=d=0.2", "-metadata"]
    subprocess.run([*command, f"comment={comment}", str(path)], check=True)


def test_adopted_pages_are_done_with_what_is_known_of_them(
    queue: Queue, connection: redis.Redis, settings: Settings, valkey_socket: str
) -> None:
    folder = settings.download_dir / "music"
    folder.mkdir(parents=True)
    lay(folder, "b.flv", "nothing.flv", **{"b.xml": CHAT.format(7)})
    tagged(folder / "A title [x].m4a", f"https://www.bilibili.com/video/{BV}?p=2 cid=31")
    os.utime(folder / "A title [x].m4a", (1.7e9, 1.7e9))
    queue.add([BV])
    (lease,) = queue.lease("w1", 1)
    queue.expand(lease.url, lease.token, [Page(1, 30, "a"), Page(2, 31, "b")])
    environ = {**os.environ, "REDIS_URL": f"unix://{valkey_socket}", "BILI_DATA_DIR": str(settings.data_dir)}
    environ |= {"BILI_DOWNLOAD_DIR": str(settings.download_dir), "LANGUAGE": "en"}

    def adopt(*more: str) -> tuple[int, list[str], str]:
        command = [sys.executable, str(ROOT / "add_url.py"), "--adopt", str(settings.download_dir), "--offline", *more]
        told = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)
        return told.returncode, told.stdout.splitlines(), told.stderr

    before = queue.counts()
    status, lines, errors = adopt("--dry-run")
    assert (status, lines[-1]) == (1, "adopted 2, known 0, rejected 1") and queue.counts() == before
    assert lines[0].split("\t") == ["music/A title [x].m4a", f"{BV}?p=2&cid=31", "comment"]
    assert "rejected music/nothing.flv: nothing in it" in errors
    assert adopt()[1][-1] == "adopted 2, known 0, rejected 1"
    assert adopt()[1][-1] == "adopted 0, known 2, rejected 1"
    job = queue.job(f"{BV}?p=2&cid=31") or {}
    assert (job["state"], job["path"], job["title"], job["time"]) == (
        "done",
        "music/A title [x].m4a",
        "A title [x]",
        1.7e9,
    )
    assert [one.url for one in queue.lease("w2", 9)] == [], "what was ready is not downloaded again"
    assert queue.counts().done == 2
    structure_problems = [one for one in structure.problems(connection) if one != "page 7 is done and has 0 records"]
    assert structure_problems == []


def test_what_is_known_of_a_file_that_vanishes_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone.flv").symlink_to(tmp_path / "nowhere")
    (told,) = standing_files(tmp_path, None)
    assert isinstance(told, Unknown)
