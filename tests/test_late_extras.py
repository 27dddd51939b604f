"""Extras that were switched on later: what stands on the disk is found, what is missing comes, and no stream."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath

import imageio_ffmpeg
import pytest

from bili_client import BiliClient, make_session
from config import Settings
from demo.catalogue import EPISODES
from demo.catalogue import video as catalogued
from demo.process import SiteProcess
from demo.site import RunningSite, running_site
from errors import RiskControl
from extras import BESIDE, Extras
from late_extras import Laid, MediaDoor, Standing, jobs_by_path, lay_late, standing_pages
from model import JobId, Result
from parse_ import parse_job_id
from result_log import ResultLog, log_path
from tests.farm import Farm
from transfer.media_client import MediaClient
from transfer.mirrors import media_allowed

PLAIN, FIVE, GONE = catalogued("plain"), catalogued("five-pages"), catalogued("deleted")
LANGUAGES = (".zh-CN.srt", ".en-US.srt", ".zh.ai.srt")


def tag(bvid: str, number: int, cid: int) -> str:
    return f"https://www.bilibili.com/video/{bvid}?p={number} cid={cid}"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], None]:
    """A short real file with a comment of its own, in whatever container its name asks for."""
    source = tmp_path_factory.mktemp("clip") / "clip.mp4"
    run = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin"]
    subprocess.run([*run, "-f", "lavfi", "-i", "anullsrc", "-t", "0.1", str(source)], check=True)

    def make(path: Path, comment: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [*run, "-i", str(source), "-c", "copy", "-metadata", f"comment={comment}", str(path)], check=True
        )

    return make


# ------------------------------------------------------------------------------------------ what stands


def test_finished_pages_are_known_by_what_they_say(tmp_path: Path, clip: Callable[[Path, str], None]) -> None:
    folder = tmp_path / "Download"
    page = parse_job_id("BV1xx411c7mD?p=1&cid=7")
    clip(folder / "c" / "b.mp4", tag("BV1xx411c7mD", 2, 8))
    clip(folder / "c" / "a.mkv", tag("BV1xx411c7mD", 1, 7))
    clip(folder / "c" / "d" / "sound.m4a", tag("BV1xx411c7mD", 3, 9))
    clip(folder / "c" / "episode.mp4", tag("", 1, 5))
    clip(folder / "c" / "other.mp4", "holiday")
    clip(folder / ".parts" / "half.mp4", tag("BV1xx411c7mD", 4, 10))
    (folder / "c" / "cut.mp4").write_bytes((folder / "c" / "b.mp4").read_bytes()[:300])
    (folder / "c" / "b.nfo").write_text("x")
    found = list(standing_pages(folder, {}))
    assert found == [
        Standing(PurePosixPath("c/a.mkv"), page),
        Standing(PurePosixPath("c/b.mp4"), JobId(bvid="BV1xx411c7mD", number=2, cid=8)),
        Standing(PurePosixPath("c/d/sound.m4a"), JobId(bvid="BV1xx411c7mD", number=3, cid=9)),
    ]


def test_what_a_worker_has_noted_of_a_file_is_its_better_id(tmp_path: Path, clip: Callable[[Path, str], None]) -> None:
    """An episode and a lesson are asked for by their own ids; a note of another page says nothing."""
    folder, data = tmp_path / "Download", tmp_path / "data"
    data.mkdir()
    for name, cid in (("episode", 5), ("lesson", 6), ("strange", 7)):
        clip(folder / f"{name}.mp4", tag("BV1xx411c7mD", 1, cid))
    noted = (("ep100?cid=5", "episode"), ("cheese:ep9?cid=6", "lesson"), ("ep100?cid=8", "strange"), ("no id", "x"))
    for number, (url, name) in enumerate(noted):  # of several workers, and servers
        ResultLog(log_path(data, "http://server", f"w{number % 2}")).add(url, Result(f"{name}.mp4", 1, 1.0, ""))
    jobs = {str(one.relative): str(one.job) for one in standing_pages(folder, jobs_by_path(data))}
    assert jobs == {
        "episode.mp4": "ep100?cid=5",
        "lesson.mp4": "cheese:ep9?cid=6",
        "strange.mp4": "BV1xx411c7mD?p=1&cid=7",
    }


# ------------------------------------------------------------------------------------------ what comes


@pytest.fixture
async def site() -> AsyncIterator[RunningSite]:
    async with running_site() as site:
        yield site


class Bench:
    """This machine: its download folder with finished pages, and the command."""

    def __init__(self, extras: Extras, settings: Settings) -> None:
        self.extras, self.folder = extras, settings.download_dir

    async def lay(self) -> str:
        laid = Laid()
        await lay_late(self.extras, self.extras.site, laid)
        return str(laid)

    def found(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
async def bench(site: RunningSite, settings: Settings, clip: Callable[[Path, str], None]) -> AsyncIterator[Bench]:
    own = replace(
        settings,
        web_url=site.web_url,
        api_url=site.api_url,
        media_hosts=site.media_hosts,
        api_interval_seconds=0.0,
        extras=BESIDE,
        sessdata="demo",
    )
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(make_session(own))
        client = await stack.enter_async_context(MediaClient(own, media_allowed((), own.media_hosts)))
        bench = Bench(Extras(own, BiliClient(own, session, draw=lambda: 0.0), MediaDoor(client)), own)
        clip(bench.folder / "moved" / "Tides.mp4", tag(PLAIN.bvid, 1, PLAIN.pages[0].cid))
        yield bench


def streams_asked(site: RunningSite) -> set[str]:
    return {path for path in site.stats()["objects"] if path.endswith((".m4s", ".flv", ".mp4"))}


@pytest.mark.asyncio
async def test_what_is_missing_comes_and_the_file_stays_as_it_is(bench: Bench, site: RunningSite) -> None:
    video = bench.folder / "moved" / "Tides.mp4"
    before = (video.read_bytes(), video.stat().st_mtime_ns)
    assert await bench.lay() == "pages 1, files 8, failed 0"
    suffixes = (".mp4", ".danmaku.ass", ".danmaku.xml", "-poster.jpg", ".nfo", ".info.json", *LANGUAGES)
    assert bench.found() == {f"moved/Tides{suffix}" for suffix in suffixes}
    assert (video.read_bytes(), video.stat().st_mtime_ns) == before
    assert not streams_asked(site) and "/x/player/wbi/playurl" not in site.stats()["routes"]


@pytest.mark.asyncio
async def test_a_second_walk_asks_only_for_what_is_missing(bench: Bench, site: RunningSite) -> None:
    await bench.lay()
    site.state.counters.reset()
    assert await bench.lay() == "pages 1, files 0, failed 0"
    assert not site.stats()["routes"], "nobody was asked"
    (bench.folder / "moved" / "Tides.nfo").write_text("mine")
    (bench.folder / "moved" / "Tides.danmaku.ass").unlink()
    assert await bench.lay() == "pages 1, files 1, failed 0"
    assert (bench.folder / "moved" / "Tides.nfo").read_text() == "mine"
    assert (bench.folder / "moved" / "Tides.danmaku.ass").exists()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_pages_of_a_video_share_a_description_and_what_belongs_to_all(
    bench: Bench, site: RunningSite, clip: Callable[[Path, str], None]
) -> None:
    for number in (1, 2, 3):
        clip(bench.folder / "c" / "Five" / f"P{number}.mp4", tag(FIVE.bvid, number, FIVE.pages[number - 1].cid))
    bench.extras.settings = replace(bench.extras.settings, extras=("nfo", "cover-file"))
    assert await bench.lay() == "pages 4, files 7, failed 0"
    own = {f"c/Five/P{number}{suffix}" for number in (1, 2, 3) for suffix in (".mp4", ".nfo")}
    assert {name for name in bench.found() if name.startswith("c/")} == own | {"c/Five/tvshow.nfo", "c/Five/poster.jpg"}
    assert site.stats()["routes"]["/x/web-interface/view"] == 2, "one for each video"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_what_cannot_be_had_any_more_is_said_and_the_others_come(
    bench: Bench, clip: Callable[[Path, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    clip(bench.folder / "a" / "gone.mp4", tag(GONE.bvid, 1, 5))
    clip(bench.folder / "a" / "replaced.mp4", tag(FIVE.bvid, 9, 99))
    assert await bench.lay() == "pages 3, files 8, failed 2"
    assert "a/gone.mp4: " in caplog.text and "a/replaced.mp4: The uploader has taken this page away" in caplog.text


@pytest.mark.asyncio
async def test_the_sites_wish_to_slow_down_ends_it_and_it_goes_on_later(
    bench: Bench, site: RunningSite, clip: Callable[[Path, str], None]
) -> None:
    clip(bench.folder / "n" / "later.mp4", tag(FIVE.bvid, 1, FIVE.pages[0].cid))
    site.fault("risk_control", scope="api", path="/x/v2/dm/*")
    laid = Laid()
    with pytest.raises(RiskControl):
        await lay_late(bench.extras, bench.extras.site, laid)
    assert laid.pages == 1, "the next page is not asked for"
    site.clear_faults()
    assert await bench.lay() == "pages 2, files 9, failed 0"
    assert not [name for name in bench.found() if ".extra-" in name]


# ------------------------------------------------------------------------------------------ real processes


@pytest.mark.slow
def test_a_library_that_is_done_gets_what_was_switched_on_later(tmp_path: Path, module_site: SiteProcess) -> None:
    """No stream is fetched again, nothing is recorded twice, and the queue is not asked."""
    module_site.post("reset")
    farm = Farm(tmp_path, module_site, BILI_EXTRAS="none", BILI_SESSDATA="demo")
    try:
        farm.add(PLAIN.bvid, FIVE.bvid, f"ep{EPISODES[0].ep_id}")
        assert farm.drain() == 0
        done, ranges = farm.everything("/success"), len(farm.ranges())
        farm.server.kill()
        late = farm.start("run.py", "--extras", BILI_EXTRAS="tags")
        assert (late.wait(), "nothing that lies beside" in late.output()) == (2, True)
        late = farm.start("run.py", "--extras", BILI_EXTRAS="tags,nfo,danmaku")
        assert (late.wait(), late.output().splitlines()[-1]) == (0, "pages 7, files 15, failed 0")
        assert len(farm.ranges()) == ranges
        again = farm.start("run.py", "--extras", BILI_EXTRAS="tags,nfo,danmaku")
        assert (again.wait(), again.output().splitlines()[-1]) == (0, "pages 7, files 0, failed 0")
        for item in done:
            path = farm.downloads / item["path"]
            assert path.stat().st_size == item["bytes"]
            assert path.with_suffix(".nfo").exists() and path.with_suffix(".danmaku.ass").exists()
        farm.server = farm.start_server()
        assert farm.everything("/success") == done
    finally:
        farm.close()
