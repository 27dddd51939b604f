"""The stand-in site serves what the real one serves, and fails when it is told to."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import aiohttp
import imageio_ffmpeg
import psutil
import pytest

import model
import parse_
import stream_choice
from demo import catalogue, media
from demo import crowd as crowd_module
from demo.cdn import parse_range, raw_bytes, raw_path
from demo.crowd import Crowd, ensure_crowd
from demo.faults import API_FAULTS, CDN_FAULTS, Fault
from demo.process import SiteProcess
from demo.signing import WBI_ORDER
from demo.site import DEFAULT_CACHE, RunningSite, running_site
from tests.farm import Farm

MIB = 1024 * 1024
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)", "Referer": "https://www.bilibili.com/"}
PLAYURL = "/x/player/wbi/playurl"


@pytest.fixture
async def site() -> AsyncIterator[RunningSite]:
    async with running_site(DEFAULT_CACHE) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=BROWSER, timeout=aiohttp.ClientTimeout(total=20)) as opened:
        yield opened


@pytest.fixture(scope="session")
def library() -> media.Library:
    return media.ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())


class Client:
    """What a client of the site does: ask the API, sign, get playinfo and bytes."""

    def __init__(self, site: RunningSite, session: aiohttp.ClientSession) -> None:
        self.site, self.session = site, session

    async def api(self, path: str, sessdata: str = "", **query: object) -> Any:
        headers = {"Cookie": f"SESSDATA={sessdata}"} if sessdata else {}
        url = f"{self.site.api_url}{path}?{urlencode(query, quote_via=quote)}"
        async with self.session.get(url, headers=headers) as response:
            return json.loads(await response.text())

    async def signed(self, path: str, sessdata: str = "", **query: object) -> Any:
        nav = await self.api("/x/web-interface/nav")
        names = [Path(urlsplit(nav["data"]["wbi_img"][key]).path).stem for key in ("img_url", "sub_url")]
        return await self.api(path, sessdata, **sign(query, "".join(names), int(time.time())))

    async def playinfo(self, name: str, sessdata: str = "", page: int = 1, **query: object) -> Any:
        record = catalogue.video(name)
        query = {"fnval": 4048, "fourk": 1, "cid": record.pages[page - 1].cid, "bvid": record.bvid, **query}
        return await self.signed(PLAYURL, sessdata, **query)

    async def body(self, url: str, first: int, last: int) -> bytes:
        async with self.session.get(url, headers={"Range": f"bytes={first}-{last}"}) as response:
            assert response.status == 206
            return await response.read()

    async def post(self, name: str, content: object) -> tuple[int, Any]:
        async with self.session.post(f"{self.site.control_url}/{name}", json=content) as response:
            return response.status, json.loads(await response.text())


@pytest.fixture
def client(site: RunningSite, session: aiohttp.ClientSession) -> Client:
    return Client(site, session)


def sign(query: dict[str, Any], keys: str, wts: int) -> dict[str, Any]:
    salt = "".join(keys[index] for index in WBI_ORDER)
    text = urlencode(sorted({**query, "wts": wts}.items()), quote_via=quote)
    return {**query, "wts": wts, "w_rid": hashlib.md5((text + salt).encode()).hexdigest()}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def failure(call: Awaitable[Any]) -> type[BaseException]:
    try:
        await call
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error)
    raise AssertionError("the call did not fail")


# ------------------------------------------------------------------------------------------ catalogue


def test_every_bvid_is_that_of_its_aid() -> None:
    assert [(r.name, parse_.aid_to_bvid(r.aid)) for r in catalogue.VIDEOS] == [
        (r.name, r.bvid) for r in catalogue.VIDEOS
    ]


def test_names_ids_and_cids_are_unique_and_the_odd_titles_are_there() -> None:
    for ids in ([r.name for r in catalogue.VIDEOS], [r.aid for r in catalogue.VIDEOS]):
        assert len(set(ids)) == len(ids)
    cids = [page.cid for page in catalogue.all_pages()]
    assert len(set(cids)) == len(cids)
    titles = {r.name: r.title for r in catalogue.VIDEOS}
    assert set('\\/:*?"<>|') <= set(titles["illegal-title"])
    assert len(titles["long-title"]) == 300
    assert titles["dotted-title"].startswith(".") and titles["dotted-title"].endswith(". ")
    assert (titles["reserved-title"], titles["parent-title"]) == ("CON", "..")
    assert titles["same-title-a"] == titles["same-title-b"]
    assert not titles["control-title"].isprintable()
    assert [len(catalogue.video(name).pages) for name in ("five-pages", "many-pages")] == [5, 12]


# ------------------------------------------------------------------------------------------ media


def sidx_sizes(content: bytes, at: int) -> list[int]:
    version = content[at + 8]
    references_at = at + (32 if version == 0 else 40)
    (count,) = struct.unpack_from(">H", content, references_at - 2)
    return [struct.unpack_from(">I", content, references_at + 12 * n)[0] & 0x7FFFFFFF for n in range(count)]


def test_the_index_tells_the_truth_about_every_file(library: media.Library) -> None:
    assert library.streams
    for stream in library.streams:
        content = (library.folder / stream.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (stream.size_bytes, stream.sha256)
    assert len({stream.sha256 for stream in library.streams}) == len(library.streams)


def test_dash_streams_have_one_global_sidx_that_adds_up(library: media.Library) -> None:
    dash = [stream for stream in library.streams if stream.kind != "durl"]
    for stream in dash:
        content = (library.folder / stream.file).read_bytes()
        boxes = list(media.top_boxes(content))
        kinds = [kind for kind, _, _ in boxes]
        assert kinds[:3] == ["ftyp", "moov", "sidx"]
        assert kinds[3:] == ["moof", "mdat"] * (len(kinds[3:]) // 2)
        _, start, stop = boxes[2]
        assert stream.index_range == f"{start}-{stop - 1}"
        assert stream.initialization == f"0-{start - 1}"
        assert sum(sidx_sizes(content, start)) == len(content) - stop


def test_every_profile_has_what_it_promises(library: media.Library) -> None:
    def ids(name: str, kind: str) -> list[tuple[int, int]]:
        return [(s.id, s.codecid) for s in library.of_page(catalogue.video(name).pages[0].cid) if s.kind == kind]

    assert {(80, 7), (64, 7), (32, 7), (16, 7), (32, 12)} <= set(ids("plain", "video"))
    assert [id_ for id_, _ in ids("plain", "audio")] == [30280, 30232, 30216]
    assert ids("no-audio", "audio") == []
    assert {30250, 30251} <= {id_ for id_, _ in ids("rich", "audio")}
    assert (64, 13) in ids("rich", "video")
    assert {(127, 13), (127, 12), (126, 12), (125, 12), (120, 7), (116, 7), (112, 7), (74, 7)} <= set(
        ids("rich", "video")
    )
    assert ids("one-segment", "video") == ids("three-segments", "video") == []
    assert len(ids("one-segment", "durl")) == 2
    assert len(ids("three-segments", "durl")) == 6
    large = [s for s in library.streams if s.size_bytes > 30 * MIB]
    assert len(large) == 2 and {s.id for s in large} == {80}
    assert {s.codecs.split(".")[0] for s in library.streams} >= {"avc1", "hev1", "av01", "mp4a", "fLaC", "ec-3"}


def seconds_in(ffmpeg: str, path: Path) -> float:
    arguments = [ffmpeg, "-nostdin", "-v", "error", "-xerror", "-progress", "pipe:1", "-i", f"file:{path}"]
    done = subprocess.run([*arguments, "-f", "null", "-"], capture_output=True, check=True, encoding="utf-8")
    assert done.stderr == ""
    return int(re.findall(r"out_time_us=(\d+)", done.stdout)[-1]) / 1e6


@pytest.mark.parametrize("name", ["plain", "no-audio", "one-segment", "three-segments", "rich"])
def test_ffmpeg_decodes_every_stream_to_its_length(library: media.Library, name: str) -> None:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    for stream in library.of_page(catalogue.video(name).pages[0].cid):
        assert seconds_in(ffmpeg, library.folder / stream.file) == pytest.approx(stream.duration_seconds, abs=0.15)


SMALL_PAGE = catalogue.PageRecord(987654321, "small", "flv", 1)


@pytest.fixture
def small_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "all_pages", lambda: (SMALL_PAGE,))


@pytest.mark.usefixtures("small_plan")
def test_several_starters_at_once_build_the_same_media_once(tmp_path: Path) -> None:
    import threading

    ffmpeg, found = imageio_ffmpeg.get_ffmpeg_exe(), list[media.Library]()
    starters = [threading.Thread(target=lambda: found.append(media.ensure_library(tmp_path, ffmpeg))) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [found[0].folder.name, "media.lock"]
    assert media.ensure_library(tmp_path / "again", ffmpeg).streams == found[0].streams, "the seed decides the bytes"


def test_a_build_that_was_ended_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    first = SMALL_PAGE
    second = catalogue.PageRecord(first.cid + 1, "second", "mp4", 1)
    monkeypatch.setattr(media, "all_pages", lambda: (first, second))
    made: list[int] = []
    make_page = media._make_page

    def ended_at_the_second(page: catalogue.PageRecord, folder: Path, ffmpeg: str) -> list[media.StreamFile]:
        made.append(page.cid)
        if len(made) < 3 and page == second:
            raise media.MediaError("ended")
        return make_page(page, folder, ffmpeg)

    monkeypatch.setattr(media, "_make_page", ended_at_the_second)
    with pytest.raises(media.MediaError, match="ended"):
        media.ensure_library(tmp_path, ffmpeg)
    library = media.ensure_library(tmp_path, ffmpeg)
    assert sorted(made) == [first.cid, second.cid, second.cid]
    assert all((library.folder / stream.file).stat().st_size == stream.size_bytes for stream in library.streams)
    assert not list(library.folder.glob("making-*"))


@pytest.mark.usefixtures("small_plan")
def test_a_failing_ffmpeg_is_named_and_leaves_no_library(tmp_path: Path) -> None:
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\necho no encoder >&2\nexit 1\n")
    ffmpeg.chmod(0o755)
    with pytest.raises(media.MediaError, match="no encoder"):
        media.ensure_library(tmp_path / "cache", str(ffmpeg))
    assert not list((tmp_path / "cache").glob("media-*/index.json"))


# ------------------------------------------------------------------------------------------ API: who asks


async def test_a_client_that_is_no_browser_is_banned(site: RunningSite, client: Client) -> None:
    for url in (f"{site.api_url}/x/web-interface/nav", f"{site.web_url}/video/BV1Vc411Q7GB"):
        async with client.session.get(url, headers={"User-Agent": "python-requests/2"}) as response:
            assert response.status == 412
            assert json.loads(await response.text())["code"] == -412


async def test_nav_has_the_keys_logged_in_or_not(client: Client) -> None:
    out = await client.api("/x/web-interface/nav")
    assert (out["code"], out["data"]["isLogin"]) == (-101, False)
    assert out["data"]["wbi_img"]["img_url"].startswith("https://i0.hdslb.com/bfs/wbi/")
    logged_in = await client.api("/x/web-interface/nav", sessdata="abc%2C1")
    assert (logged_in["code"], logged_in["data"]["isLogin"]) == (0, True)
    assert (await client.api("/x/web-interface/nav", sessdata="expired"))["code"] == -101
    assert logged_in["data"]["wbi_img"] == out["data"]["wbi_img"]


async def test_spi_gives_two_buvids(client: Client) -> None:
    answer = await client.api("/x/frontend/finger/spi")
    assert answer["code"] == 0 and answer["data"]["b_3"].endswith("infoc") and answer["data"]["b_4"]


async def test_the_wbi_signature_is_verified(client: Client) -> None:
    record = catalogue.video("plain")
    query: dict[str, Any] = {"bvid": record.bvid, "cid": record.pages[0].cid, "fnval": 4048, "x": "五 一(四)"}
    good = await client.signed(PLAYURL, **{**query, "x": "五 一 四"})
    assert good["code"] == 0 and good["data"]["dash"]["video"]
    for wrong in (
        query,
        {**query, "wts": int(time.time()), "w_rid": "0" * 32},
        sign(query, "".join(client.site.state.keys), int(time.time()) - 90_000),
    ):
        answer = await client.api(PLAYURL, **wrong)
        assert answer["code"] == 0 and list(answer["data"]) == ["v_voucher"]
    assert (await client.api("/x/player/playurl", **query))["data"]["dash"], "the old address wants no signature"


async def test_changed_keys_make_old_signatures_wrong(client: Client) -> None:
    record = catalogue.video("plain")
    query: dict[str, Any] = {"bvid": record.bvid, "cid": record.pages[0].cid}
    old = sign(query, "".join(client.site.state.keys), int(time.time()))
    assert "durl" in (await client.api(PLAYURL, **old))["data"]
    await client.post("rotate_wbi", {})
    assert "v_voucher" in (await client.api(PLAYURL, **old))["data"]
    assert "durl" in (await client.signed(PLAYURL, **query))["data"]


# ------------------------------------------------------------------------------------------ API: videos


async def test_a_video_is_described_by_bvid_and_by_aid(client: Client) -> None:
    record = catalogue.video("five-pages")
    by_bvid = await client.api("/x/web-interface/view", bvid=record.bvid)
    assert by_bvid == await client.api("/x/web-interface/view", aid=record.aid)
    data = by_bvid["data"]
    assert (data["bvid"], data["aid"], data["videos"], data["title"]) == (record.bvid, record.aid, 5, record.title)
    assert [(p["page"], p["cid"], p["part"]) for p in data["pages"]] == [
        (n, page.cid, page.title) for n, page in enumerate(record.pages, 1)
    ]
    assert data["cid"] == record.pages[0].cid and data["duration"] == sum(p["duration"] for p in data["pages"])
    assert (await client.api("/x/player/pagelist", bvid=record.bvid))["data"] == data["pages"]
    detail = await client.signed("/x/web-interface/wbi/view/detail", bvid=record.bvid)
    assert detail["data"]["View"] == data


@pytest.mark.parametrize(
    ("name", "code"),
    [("deleted", -404), ("invisible", 62002), ("no-permission", -403), ("in-review", 62004), ("owner-only", 62012)],
)
async def test_refused_videos_say_why(client: Client, name: str, code: int) -> None:
    record = catalogue.video(name)
    for path in ("/x/web-interface/view", "/x/player/pagelist", "/x/player/playurl"):
        answer = await client.api(path, bvid=record.bvid, cid=1)
        assert answer["code"] == code and answer["message"] and "data" not in answer
    async with client.session.get(f"{client.site.web_url}/video/{record.bvid}") as response:
        assert f'"trueCode":{code}' in await response.text()


async def test_unknown_and_missing_ids(client: Client) -> None:
    assert (await client.api("/x/web-interface/view", bvid="BV17x411w7KC"))["code"] == -404
    assert (await client.api("/x/web-interface/view"))["code"] == -400
    assert (await client.playinfo("plain", cid=1))["code"] == -404
    assert (await client.api("/pgc/view/web/season", ep_id=1))["code"] == -404


async def test_a_region_locked_video_is_described_but_not_played(client: Client) -> None:
    assert (await client.api("/x/web-interface/view", bvid=catalogue.video("region-locked").bvid))["code"] == 0
    answer = await client.playinfo("region-locked")
    assert (answer["code"], "地区" in answer["message"]) == (-10403, True)


async def test_risk_control_lasts_until_it_is_switched_off(client: Client) -> None:
    bvid = catalogue.video("risk-control").bvid
    answer = await client.api("/x/web-interface/view", bvid=bvid)
    assert answer["code"] == -352 and answer["data"]["v_voucher"]
    async with client.session.get(f"{client.site.web_url}/video/{bvid}") as response:
        assert "window._riskdata_=" in await response.text()
    await client.post("risk", {"on": False})
    assert (await client.api("/x/web-interface/view", bvid=bvid))["code"] == 0


async def test_a_video_gains_and_loses_pages_on_demand(client: Client) -> None:
    record = catalogue.video("gains-a-page")

    async def cids() -> list[int]:
        answer = await client.api("/x/web-interface/view", bvid=record.bvid)
        return [page["cid"] for page in answer["data"]["pages"]]

    old, new = [page.cid for page in record.pages], [page.cid for page in record.later_pages]
    assert await cids() == old
    assert (await client.post("gain_page", {}))[1] == {"cid": new[0]}
    client.site.gain_page(at=1)
    assert await cids() == [new[1], *old, new[0]]
    assert (await client.post("gain_page", {}))[1] == {"cid": None}
    await client.post("lose_page", {"name": "gains-a-page", "number": 2})
    assert await cids() == [new[1], old[1], new[0]]
    assert (await client.playinfo("gains-a-page", cid=new[1]))["code"] == 0
    client.site.reset()
    assert await cids() == old


async def test_ranking_by_main_region_and_silently_of_the_whole_site(client: Client) -> None:
    async def listed(rid: object) -> list[dict[str, Any]]:
        answer = await client.api("/x/web-interface/ranking/v2", rid=rid, type="all")
        items: list[dict[str, Any]] = answer["data"]["list"]
        return items

    everything, knowledge, music = await listed(0), await listed(1010), await listed(1003)
    assert {item["pid_v2"] for item in knowledge} == {1010}
    assert {item["pid_v2"] for item in music} == {1003}
    assert len(everything) > len(knowledge) > len(music) > 0
    assert await listed(1001) == []
    assert await listed(201) == await listed(99999) == everything, "an unknown id gets the list of the whole site"
    assert all(item["tid"] and item["tidv2"] and item["tnamev2"] and item["bvid"] for item in everything)
    refused = {record.bvid for record in catalogue.VIDEOS if record.refusal or record.stream_refusal}
    assert not refused & {item["bvid"] for item in everything}


# ------------------------------------------------------------------------------------------ API: streams


async def test_dash_without_login_ends_at_480p(client: Client) -> None:
    async def qualities(sessdata: str = "", **query: Any) -> set[int]:
        answer = await client.playinfo("login-quality", sessdata, **query)
        return {stream["id"] for stream in answer["data"]["dash"]["video"]}

    assert await qualities() == await qualities(qn=127) == {32, 16}
    assert await qualities("abc") == await qualities(try_look=1) == {80, 64, 32, 16}
    data = (await client.playinfo("login-quality"))["data"]
    assert (data["accept_quality"], data["quality"]) == ([80, 64, 32, 16], 32)
    assert (await client.playinfo("large-a"))["data"]["quality"] == 80, "some videos are open to all"


async def test_a_dash_stream_has_every_field_twice_as_the_real_one(client: Client) -> None:
    answer = await client.playinfo("plain")
    data = answer["data"]
    assert data["timelength"] == 1000 * data["dash"]["duration"]
    for stream in (*data["dash"]["video"], *data["dash"]["audio"]):
        assert stream["baseUrl"] == stream["base_url"] and stream["backupUrl"] == stream["backup_url"]
        assert stream["mimeType"] == stream["mime_type"] and stream["frameRate"] == stream["frame_rate"]
        assert stream["SegmentBase"]["indexRange"] == stream["segment_base"]["index_range"]
        hosts = [urlsplit(url).netloc for url in (stream["baseUrl"], *stream["backupUrl"])]
        assert hosts == list(client.site.media_hosts)
        query = parse_qs(urlsplit(stream["baseUrl"]).query)
        assert 7000 < int(query["deadline"][0]) - time.time() <= 7200
        assert {"upsig", "uparams", "os", "trid", "mid", "platform"} <= set(query)
    assert {s["codecid"] for s in data["dash"]["video"]} == {7, 12}
    assert {s["codecid"] for s in data["dash"]["audio"]} == {0}
    assert data["dash"]["flac"] is None and data["dash"]["dolby"]["audio"] is None


async def test_hires_and_dolby_only_with_a_login_and_av1_only_when_asked(client: Client) -> None:
    rich = (await client.playinfo("rich", "abc"))["data"]["dash"]
    assert rich["flac"]["audio"]["id"] == 30251 and rich["dolby"]["audio"][0]["id"] == 30250
    assert 13 in {s["codecid"] for s in rich["video"]} and {s["id"] for s in rich["audio"]} == {30280, 30232, 30216}
    plain = (await client.playinfo("rich", "abc", fnval=16))["data"]["dash"]
    assert plain["dolby"]["audio"] is None and 13 not in {s["codecid"] for s in plain["video"]}


@pytest.mark.parametrize(("qn", "bit"), [(127, 1024), (126, 512), (125, 64), (120, 128)])
async def test_what_the_web_player_must_ask_for_is_not_given_unasked(client: Client, qn: int, bit: int) -> None:
    async def given(**query: Any) -> set[int]:
        return {stream["id"] for stream in (await client.playinfo("rich", **query))["data"]["dash"]["video"]}

    assert await given() - await given(fnval=4048 - bit) == {qn}
    assert await given() - await given(fourk=0) == {120}
    (dolby_vision,) = [s for s in (await client.playinfo("rich"))["data"]["dash"]["video"] if s["id"] == 126]
    assert dolby_vision["codecs"].startswith("dvh1") and dolby_vision["codecid"] == 12


async def test_a_silent_video_has_null_for_audio(client: Client) -> None:
    dash = (await client.playinfo("no-audio"))["data"]["dash"]
    assert dash["audio"] is None and dash["video"]


async def test_legacy_videos_have_durl_whatever_is_asked(client: Client) -> None:
    one = (await client.playinfo("one-segment"))["data"]
    assert "dash" not in one and [s["order"] for s in one["durl"]] == [1] and one["format"] == "flv480"
    three = (await client.playinfo("three-segments"))["data"]
    assert [s["order"] for s in three["durl"]] == [1, 2, 3]
    assert three["timelength"] == sum(s["length"] for s in three["durl"])
    assert all(".flv?" in s["url"] and len(s["backup_url"]) == 2 for s in three["durl"])
    assert (await client.playinfo("three-segments", "abc"))["data"]["quality"] == 64
    assert (await client.playinfo("three-segments", "abc", qn=32))["data"]["quality"] == 32
    assert "durl" in (await client.playinfo("plain", fnval=1))["data"], "fnval without DASH asks for durl"


async def test_every_stream_of_a_page_arrives_bit_for_bit(client: Client) -> None:
    hashes = {
        s["path"]: s["sha256"] for v in client.site.catalogue()["videos"] for p in v["pages"] for s in p["streams"]
    }
    data = (await client.playinfo("plain", "abc"))["data"]["dash"]
    for stream in (*data["video"], *data["audio"]):
        for url in (stream["baseUrl"], *stream["backupUrl"]):
            async with client.session.get(url) as response:
                body = await response.read()
            assert hashlib.sha256(body).hexdigest() == hashes[urlsplit(url).path]
    first, last = map(int, data["video"][0]["SegmentBase"]["indexRange"].split("-"))
    assert (await client.body(data["video"][0]["baseUrl"], first, last))[4:8] == b"sidx"


# ------------------------------------------------------------------------------------------ API: episodes


async def test_a_season_lists_its_episodes_with_the_cids_of_their_videos(client: Client) -> None:
    by_episode = await client.api("/pgc/view/web/season", ep_id=catalogue.episode("episode").ep_id)
    assert by_episode == await client.api("/pgc/view/web/season", season_id=catalogue.SEASON_ID)
    for listed, record in zip(by_episode["result"]["episodes"], catalogue.EPISODES, strict=True):
        twin = catalogue.find_video(bvid=record.bvid)
        assert twin is not None
        assert (listed["id"], listed["cid"], listed["aid"]) == (record.ep_id, twin.pages[0].cid, twin.aid)
        assert listed["duration"] == 1000 * twin.pages[0].duration_seconds


async def test_a_video_of_an_episode_redirects_there(client: Client) -> None:
    record, episode = catalogue.video("redirected"), catalogue.episode("episode-redirected")
    data = (await client.api("/x/web-interface/view", bvid=record.bvid))["data"]
    assert data["redirect_url"] == f"{client.site.web_url}/bangumi/play/ep{episode.ep_id}"
    assert "redirect_url" not in (await client.api("/x/web-interface/view", aid=catalogue.video("plain").aid))["data"]
    async with client.session.get(f"{client.site.web_url}/video/{record.bvid}") as response:
        assert str(response.url) == data["redirect_url"] and "playurlSSRData = {" in await response.text()


async def test_episode_streams_come_in_both_shapes(client: Client) -> None:
    episode = catalogue.episode("episode")
    old = await client.api("/pgc/player/web/playurl", ep_id=episode.ep_id, fnval=4048)
    new = await client.api("/pgc/player/web/v2/playurl", ep_id=episode.ep_id, fnval=4048)
    paths = [
        [urlsplit(s["baseUrl"]).path for s in info["dash"]["video"]]
        for info in (old["result"], new["result"]["video_info"])
    ]
    assert paths[0] == paths[1] and paths[0]
    twin = catalogue.video("episode-twin")
    assert f"/{twin.pages[0].cid}/" in paths[0][0], "the page is the same as that of the video"
    by_cid = await client.api("/pgc/player/web/playurl", cid=twin.pages[0].cid, fnval=1)
    assert by_cid["result"]["durl"] and by_cid["result"]["type"] == "MP4"


async def test_episodes_of_regions_and_members(client: Client) -> None:
    region, members = (catalogue.episode(f"episode-{name}").ep_id for name in ("region", "members"))
    for ep_id, words in ((region, "地区"), (members, "大会员")):
        answer = await client.api("/pgc/player/web/v2/playurl", ep_id=ep_id, fnval=4048)
        assert answer["code"] == -10403 and words in answer["message"]
    assert (await client.api("/pgc/player/web/v2/playurl", "abc", ep_id=members))["code"] == 0
    assert (await client.api("/pgc/player/web/v2/playurl", "abc", ep_id=region))["code"] == -10403
    assert (await client.playinfo("episode-region"))["code"] == -10403, "its video is no way around"
    assert (await client.playinfo("episode-members", "abc"))["code"] == 0


# ------------------------------------------------------------------------------------------ the downloader's parsers


@pytest.mark.parametrize("name", [record.name for record in catalogue.VIDEOS if record.refusal is None])
async def test_the_parsers_read_every_answer(client: Client, name: str) -> None:
    record = catalogue.video(name)
    await client.post("risk", {"on": False})
    view = parse_.parse_view(json.dumps(await client.api("/x/web-interface/view", bvid=record.bvid)))
    assert [page.cid for page in view.pages] == [page.cid for page in record.pages]
    assert view.episode_id == (record.redirect_episode_id or None)
    if record.stream_refusal or name == "episode-region":
        return
    for page in record.pages:
        answer = await client.playinfo(name, "abc", cid=page.cid)
        playinfo = parse_.parse_playurl(json.dumps(answer))
        streams = [s for s in client.site.state.library.of_page(page.cid) if s.kind != "durl"]
        assert len(playinfo.videos) + len(playinfo.audios) == len(streams)
        assert bool(playinfo.segments) == (not streams) and playinfo.deadline is not None


# ------------------------------------------------------------------------------------------ pages and short links


def script_json(page: str, name: str) -> Any:
    start = page.index(f"window.{name}=") + len(f"window.{name}=")
    return json.JSONDecoder().raw_decode(page[start:])[0]


@pytest.mark.parametrize("name", ["plain", "script-title", "control-title", "five-pages"])
async def test_the_page_of_a_video_holds_what_the_api_says(client: Client, name: str) -> None:
    record = catalogue.video(name)
    async with client.session.get(f"{client.site.web_url}/video/{record.bvid}/?p=1&spm=x") as response:
        page = await response.text()
    view = await client.api("/x/web-interface/view", bvid=record.bvid)
    assert script_json(page, "__INITIAL_STATE__")["videoData"] == view["data"]
    playinfo = script_json(page, "__playinfo__")
    assert f"/{record.pages[0].cid}/" in playinfo["data"]["dash"]["video"][0]["baseUrl"]
    assert page.count("<script>") == page.count("</script>") == 2, "a title cannot end a script"


async def test_pages_by_av_number_and_of_later_parts(client: Client) -> None:
    record = catalogue.video("five-pages")
    async with client.session.get(f"{client.site.web_url}/video/av{record.aid}?p=3") as response:
        page = await response.text()
    assert script_json(page, "__INITIAL_STATE__")["p"] == 3
    assert f"/{record.pages[2].cid}/" in page


async def test_short_links_lead_where_they_say(client: Client) -> None:
    async def location(code: str) -> tuple[int, str]:
        async with client.session.get(f"{client.site.short_url}/{code}", allow_redirects=False) as response:
            return response.status, response.headers.get("Location", "")

    web = client.site.web_url
    assert await location("Demo001") == (302, f"{web}/video/BV1Vc411Q7GB?share_source=copy_web&p=1")
    assert await location("BV1Vc411Q7GB") == (302, f"{web}/video/BV1Vc411Q7GB")
    assert await location("ep733316") == (302, f"{web}/bangumi/play/ep733316")
    assert (await location("Elsewhere"))[1].startswith("https://example.com/")
    assert await location("Loop") == (302, "Loop")
    assert (await location("nothing"))[0] == 404


# ------------------------------------------------------------------------------------------ CDN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 100)),
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-500", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=100-", None),
        ("bytes=9-0", None),
        ("bytes=0-1,4-5", None),
        ("bytes=-", None),
        ("bytes=-0", None),
        ("bits=0-1", None),
    ],
)
def test_ranges(text: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(text, 100) == expected


@pytest.mark.parametrize("size", [1, 10 * MIB - 1, 10 * MIB, 10 * MIB + 1])
async def test_raw_bytes_of_any_size(client: Client, size: int) -> None:
    url = client.site.raw_urls(size, seed=5)[1]
    async with client.session.get(url) as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(size))
        assert await response.read() == raw_bytes(5, 0, size)
    middle = size // 2
    assert await client.body(url, middle, size + 7) == raw_bytes(5, middle, size) == raw_bytes(5, 0, size)[middle:]
    chunks = {raw_bytes(5, n * 10 * MIB, n * 10 * MIB + 64) for n in range(100)}
    assert len(chunks) == 100, "no chunk can stand in for another"


async def test_headers_of_ranges_and_refusals(client: Client) -> None:
    url = client.site.raw_urls(1000)[0]

    async def headers(text: str, method: str = "GET") -> tuple[int, Mapping[str, str]]:
        async with client.session.request(method, url, headers={"Range": text} if text else {}) as response:
            return response.status, response.headers

    status, got = await headers("bytes=10-19")
    assert (status, got["Content-Range"], got["Content-Length"]) == (206, "bytes 10-19/1000", "10")
    assert got["Accept-Ranges"] == "bytes" and got["ETag"]
    assert (await headers("", "HEAD"))[1]["Content-Length"] == "1000"
    assert (await headers("bytes=0-0", "HEAD"))[1]["Content-Range"] == "bytes 0-0/1000"
    for wrong in ("bytes=1000-", "bytes=0-1,5-6"):
        status, got = await headers(wrong)
        assert (status, got["Content-Range"]) == (416, "bytes */1000")
    assert (await headers("", "POST"))[0] == 405


async def test_the_cdn_wants_a_browser_a_referer_and_a_signature(client: Client) -> None:
    url = client.site.raw_urls(10)[0]

    async def status(url: str, **headers: str) -> int:
        async with client.session.get(url, headers=headers) as response:
            return response.status

    own = f"{client.site.web_url}/video/BV1Vc411Q7GB"
    assert await status(url) == await status(url, Referer=own) == 200
    assert await status(url, Referer="") == await status(url, Referer="https://example.com/") == 403
    assert await status(url, **{"User-Agent": "Wget"}) == 403
    assert await status(url.replace("/raw/10/", "/raw/11/")) == 403
    assert await status(re.sub(r"deadline=\d+", "deadline=9999999999", url)) == 403
    assert await status(url.split("?")[0]) == 403
    assert await status(client.site.state.sign("/upgcxcode/00/00/1/1-1-30080.m4s")[0]) == 404


async def test_signed_urls_die_at_their_deadline_or_on_demand(client: Client) -> None:
    async def status(url: str) -> int:
        async with client.session.get(url) as response:
            return response.status

    await client.post("settings", {"lifetime_seconds": -1})
    assert await status(client.site.raw_urls(10)[0]) == 403
    await client.post("settings", {"lifetime_seconds": 60})
    old = client.site.raw_urls(10)
    client.site.fault("expire", mirror=1)
    assert [await status(url) for url in old] == [200, 403, 200]
    assert [await status(url) for url in client.site.raw_urls(10)] == [200, 200, 200]


async def test_counters_tell_what_was_asked_and_sent(client: Client) -> None:
    urls = client.site.raw_urls(3 * MIB)
    await asyncio.gather(*(client.body(url, MIB, 2 * MIB - 1) for url in (*urls, urls[0])))
    stats = client.site.stats()
    entry = stats["objects"][raw_path(3 * MIB)]
    assert (entry["requests"], entry["sent_bytes"]) == (4, 4 * MIB)
    assert {(r["start"], r["stop"], r["status"], r["sent_bytes"]) for r in entry["ranges"]} == {
        (MIB, 2 * MIB, 206, MIB)
    }
    assert [m["requests"] for m in stats["mirrors"]] == [2, 1, 1]
    assert all(m["active"] == 0 and m["max_concurrent"] >= 1 and m["connections"] >= 1 for m in stats["mirrors"])
    await client.api("/x/web-interface/nav")
    await client.api("/x/web-interface/nav")
    async with client.session.get(f"{client.site.control_url}/stats") as response:
        assert (await response.json())["routes"] == {"/x/web-interface/nav": 2}
    client.site.reset()
    assert client.site.stats()["objects"] == {} and client.site.stats()["mirrors"][0]["requests"] == 0


# ------------------------------------------------------------------------------------------ CDN faults

SIZE = 3 * MIB


async def get(
    client: Client, mirror: int = 0, first: int = 0, last: int = MIB - 1
) -> tuple[int, Mapping[str, str], bytes]:
    url = client.site.raw_urls(SIZE)[mirror]
    headers = {"Range": f"bytes={first}-{last}"}
    async with client.session.get(url, headers=headers, allow_redirects=False) as response:
        return response.status, response.headers, await response.read()


async def read_until_failure(client: Client, silent_seconds: float = 20, **fault: Any) -> int:
    client.site.fault(**fault)
    got = 0
    timeout = aiohttp.ClientTimeout(sock_read=silent_seconds)
    with pytest.raises((aiohttp.ClientPayloadError, TimeoutError)):
        async with client.session.get(client.site.raw_urls(SIZE)[0], timeout=timeout) as response:
            async for piece in response.content.iter_any():
                got += len(piece)
    return got


async def test_connections_are_refused_or_dropped(client: Client) -> None:
    for kind in ("refuse", "drop"):
        client.site.fault(kind, mirror=1)
        assert issubclass(await failure(get(client, mirror=1)), aiohttp.ClientConnectionError)
        assert (await get(client, mirror=0))[0] == 206
        client.site.reset()
    client.site.fault("refuse", mirror=1, count=2)  # aiohttp asks once more by itself
    with pytest.raises(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession() as other:
            await other.get(client.site.raw_urls(SIZE)[1])
    assert client.site.stats()["mirrors"][1]["refused"] == 2
    assert (await get(client, mirror=1))[0] == 206


async def test_bodies_are_cut_or_stall_after_so_many_bytes(client: Client) -> None:
    assert await read_until_failure(client, kind="cut", bytes=MIB + 5) == MIB + 5
    client.site.reset()
    assert await read_until_failure(client, 1.5, kind="stall", bytes=777) == 777
    await until(lambda: client.site.stats()["mirrors"][0]["active"] == 0)
    assert client.site.stats()["objects"][raw_path(SIZE)]["ranges"][0]["sent_bytes"] == 777
    client.site.reset()
    client.site.fault("stall", bytes=-1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(get(client), 0.2)


async def test_a_cut_can_come_once_in_each_range(client: Client) -> None:
    client.site.fault("cut", bytes=100, once_per_range=True)
    for last in (MIB - 1, 2 * MIB - 1):
        assert await failure(get(client, last=last)) is aiohttp.ClientPayloadError
        assert (await get(client, mirror=1, first=100, last=last))[0] == 206, "its rest comes, from any mirror"


async def test_slow_bodies_keep_their_pace(client: Client) -> None:
    client.site.fault("slow", bytes_per_second=200_000, path="/raw/*")
    started = time.monotonic()
    await get(client, last=99_999)
    assert time.monotonic() - started > 0.45


async def test_statuses_and_redirects(client: Client) -> None:
    client.site.fault("status", status=503, retry_after_seconds=7, count=1)
    status, headers, _ = await get(client)
    assert (status, headers["Retry-After"]) == (503, "7")
    assert (await get(client))[0] == 206, "the count is used up"
    client.site.fault("redirect", location="http://127.0.0.1:1/")
    status, headers, _ = await get(client)
    assert (status, headers["Location"]) == (302, "http://127.0.0.1:1/")


async def test_replies_that_lie(client: Client) -> None:
    right = raw_bytes(0, MIB, 2 * MIB)

    async def faulty(kind: str, **fields: Any) -> tuple[int, Mapping[str, str], bytes]:
        client.site.clear_faults()
        client.site.fault(kind, **fields)
        return await get(client, first=MIB, last=2 * MIB - 1)

    status, headers, body = await faulty("ignore_range")
    assert (status, len(body), "Content-Range" in headers) == (200, SIZE, False)
    status, headers, body = await faulty("wrong_range", bytes=10)
    assert (status, headers["Content-Range"]) == (206, f"bytes {MIB + 10}-{2 * MIB + 9}/{SIZE}")
    assert body == raw_bytes(0, MIB + 10, 2 * MIB + 10)
    status, headers, body = await faulty("html")
    assert (status, headers["Content-Type"], b"<html>" in body) == (206, "text/html", True)
    status, headers, body = await faulty("gzip")
    assert (status, headers["Content-Encoding"], body) == (206, "gzip", right)
    status, headers, body = await faulty("flip", bytes=3)
    assert (
        status == 206 and body[3:] == right[3:] and all(a ^ b == 255 for a, b in zip(body[:3], right[:3], strict=True))
    )
    status, headers, body = await faulty("total_changed")
    assert headers["Content-Range"].endswith(f"/{SIZE + 1}") and headers["ETag"] == '"changed"'
    status, headers, body = await faulty("unknown_total")
    assert (headers["Content-Range"], body) == (f"bytes {MIB}-{2 * MIB - 1}/*", right)
    for abort, transfer in ((False, "chunked"), (True, None)):
        status, headers, body = await faulty("no_length", abort=abort)
        assert "Content-Length" not in headers and headers.get("Transfer-Encoding") == transfer and body == right


async def test_faults_meet_only_their_path_and_mirror(client: Client) -> None:
    status, answer = await client.post("faults", [{"kind": "status", "status": 404, "path": "/raw/*/9", "mirror": 2}])
    assert status == 200 and answer["on"][0]["met"] == 0
    statuses = []
    for seed in (0, 9):
        for url in client.site.raw_urls(10, seed):
            async with client.session.get(url) as response:
                statuses.append(response.status)
    assert statuses == [200, 200, 200, 200, 200, 404]
    assert client.site.state.faults.listing()[0]["met"] == 1
    await client.post("clear_faults", {})
    assert client.site.state.faults.listing() == []


# ------------------------------------------------------------------------------------------ API faults


async def test_api_faults_are_counted_and_limited_to_their_route(client: Client) -> None:
    client.site.fault("risk_control", scope="api", path=PLAYURL, count=2)
    for _ in range(2):
        assert (await client.playinfo("plain"))["code"] == -352
    assert (await client.playinfo("plain"))["code"] == 0
    client.site.fault("voucher", scope="api", path="/x/web-interface/view", count=1)
    view = await client.api("/x/web-interface/view", bvid=catalogue.video("plain").bvid)
    assert view["code"] == 0 and list(view["data"]) == ["v_voucher"]
    client.site.fault("answer", scope="api", path="/x/*", code=-509, message="slow down", count=1)
    assert await client.api("/x/frontend/finger/spi") == {"code": -509, "message": "slow down", "ttl": 1}


async def test_api_faults_below_json(client: Client) -> None:
    url = f"{client.site.api_url}/x/web-interface/nav"

    async def faulty(kind: str, **fields: Any) -> tuple[int, str]:
        client.site.clear_faults()
        client.site.fault(kind, scope="api", **fields)
        async with client.session.get(url, timeout=aiohttp.ClientTimeout(total=20)) as response:
            return response.status, await response.text()

    status, text = await faulty("status", status=412)
    assert (status, json.loads(text)["code"]) == (412, -412)
    assert (await faulty("status", status=500))[0] == 500
    status, text = await faulty("invalid_json")
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    status, text = await faulty("deep_json")
    with pytest.raises(RecursionError):
        json.loads(text)
    status, text = await faulty("huge", bytes=5 * MIB + 3)
    assert len(text) == 5 * MIB + 3
    assert issubclass(await failure(faulty("drop")), aiohttp.ClientConnectionError)
    client.site.clear_faults()
    client.site.fault("timeout", scope="api")
    with pytest.raises(TimeoutError):
        async with client.session.get(url, timeout=aiohttp.ClientTimeout(total=0.2)):
            pass


@pytest.mark.parametrize(
    "content",
    [
        *({}, "cut", {"kind": "nonsense"}, {"kind": "cut", "scope": "moon"}, {"kind": "huge"}, {"kind": 7}),
        *({"kind": "cut", "byts": 1}, {"kind": "cut", "bytes": "9"}, {"kind": "cut", "mirror": "0"}),
        {"kind": "slow", "abort": 1},
    ],
)
async def test_a_wrong_fault_is_named(client: Client, content: object) -> None:
    status, answer = await client.post("faults", content)
    assert status == 400 and answer["error"]
    assert client.site.state.faults.listing() == []


def test_every_fault_of_the_tables_can_be_set() -> None:
    for scope, kinds in (("cdn", CDN_FAULTS), ("api", API_FAULTS)):
        for kind, words in kinds.items():
            assert Fault.parse({"kind": kind, "scope": scope}).kind == kind and words


async def test_the_control_api_lists_what_there_is(client: Client) -> None:
    async with client.session.get(f"{client.site.control_url}/catalogue") as response:
        listed = await response.json()
    assert {video["name"] for video in listed["videos"]} == {record.name for record in catalogue.VIDEOS}
    assert all(len(s["sha256"]) == 64 for v in listed["videos"] for p in v["pages"] for s in p["streams"])
    async with client.session.get(f"{client.site.control_url}/faults") as response:
        assert set((await response.json())["cdn"]) == set(CDN_FAULTS)
    assert (await client.post("settings", {"speed": 1}))[0] == 400
    assert (await client.post("gain_page", {"name": "no such video"}))[0] == 400


# ------------------------------------------------------------------------------------------ a crowd

CROWD = 40
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@pytest.fixture(scope="session")
def crowd() -> Crowd:
    return ensure_crowd(DEFAULT_CACHE, FFMPEG, CROWD, 1)


@pytest.fixture
async def crowded(session: aiohttp.ClientSession) -> AsyncIterator[Client]:
    async with running_site(DEFAULT_CACHE, crowd=CROWD, crowd_large=1) as running:
        yield Client(running, session)


def pages_of(crowd: Crowd) -> list[catalogue.PageRecord]:
    return [page for record in crowd.videos for page in (*record.pages, *record.later_pages)]


def packet_hashes(form: str, source: Path | bytes) -> list[str]:
    """Return kind and digest of each packet of a file, or of what comes through a pipe."""
    name, content = ("pipe:0", source) if isinstance(source, bytes) else (f"file:{source}", b"")
    command = [FFMPEG, "-v", "error", "-f", form, "-i", name, "-map", "0", "-c", "copy", "-f", "framemd5", "-"]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    assert done.stderr == b""
    lines = [line for line in done.stdout.decode().splitlines() if not line.startswith("#")]
    return [line.split(",")[5].strip() for line in lines]


def joined(crowd: Crowd, cid: int, folder: Path) -> tuple[Path, list[bytes]]:
    """Join the streams of a page as the downloader does; return the file and what went into it."""
    contents = [crowd.stamped_bytes(stream) for stream in crowd.of_page(cid)]
    command = [FFMPEG, "-v", "warning", "-nostdin"]
    for number, content in enumerate(contents):
        (folder / f"{cid}-{number}.m4s").write_bytes(content)
        command += ["-i", f"file:{folder / f'{cid}-{number}.m4s'}"]
    output = folder / f"{cid}.mp4"
    done = subprocess.run([*command, "-c", "copy", f"file:{output}"], capture_output=True, check=True)
    assert done.stderr == b""
    return output, contents


def test_a_crowd_of_thousands_has_ids_of_its_own_that_are_always_the_same() -> None:
    records = [crowd_module.small_video(number) for number in range(1, 5001)]
    records += [crowd_module.large_video(number) for number in range(1, 101)]
    everything = [*catalogue.VIDEOS, *records]
    for ids in ([r.name for r in everything], [r.aid for r in everything], [r.bvid for r in everything]):
        assert len(set(ids)) == len(ids)
    cids = [p.cid for r in records for p in (*r.pages, *r.later_pages)] + [p.cid for p in catalogue.all_pages()]
    assert len(set(cids)) == len(cids)
    assert all(parse_.bvid_to_aid(record.bvid) == record.aid for record in records)
    paged = crowd_module.paged_video(1000)
    assert paged.bvid not in {record.bvid for record in everything}
    assert len({page.cid for page in paged.pages} - set(cids)) == 1000
    assert {len(record.pages) for record in records} == {1, 2, 3, 4, 5}
    assert sum(len(record.pages) > 1 for record in records) == 500
    assert all(later.title == r.pages[1].title for r in records for later in r.later_pages)
    assert (records[16].name, records[16].aid, records[16].pages[0].cid) == (
        "crowd-17",
        900_000_017_000_051,
        20_000_000_171,
    )


def test_ffmpeg_joins_stamped_pages_without_complaint_and_no_two_share_a_packet(crowd: Crowd, tmp_path: Path) -> None:
    seen: set[str] = set()
    for name in ("crowd-1", "crowd-4", "crowd-10"):  # the first two have one template
        for page in crowd.video(name).pages:
            output, contents = joined(crowd, page.cid, tmp_path)
            hashes = packet_hashes("mov", output)
            assert sorted(hashes) == sorted(one for content in contents for one in packet_hashes("mov", content))
            assert len(hashes) == len(set(hashes)) > 50
            assert not seen & set(hashes)
            seen |= set(hashes)
            done = subprocess.run(
                [FFMPEG, "-v", "warning", "-nostdin", "-xerror", "-i", f"file:{output}", "-f", "null", "-"],
                capture_output=True,
                check=True,
            )
            assert done.stderr == b"", "they decode to the end"


def test_a_joined_page_of_a_crowd_is_told_from_any_other_without_ffmpeg(crowd: Crowd, tmp_path: Path) -> None:
    mine, other = (crowd.video(name).pages[0].cid for name in ("crowd-1", "crowd-4"))
    assert [s.size_bytes for s in crowd.of_page(mine)] == [s.size_bytes for s in crowd.of_page(other)]
    output, _ = joined(crowd, mine, tmp_path)
    content = output.read_bytes()
    assert crowd.differences(mine, content) == []
    assert len(crowd.differences(other, content)) == len(packet_hashes("mov", output))
    at = content.index(crowd_module.stamp(mine, 32, 3))
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    assert crowd.differences(mine, flipped) == ["video 3"]
    mdat_at = content.index(b"mdat") - 4
    (size,) = struct.unpack_from(">I", content, mdat_at)
    more = content[:mdat_at] + struct.pack(">I", size + 1) + content[mdat_at + 4 : mdat_at + size] + b"\0"
    assert len(crowd.differences(mine, more + content[mdat_at + size :])) == 1


def test_every_sample_of_a_template_has_one_stamp(crowd: Crowd) -> None:
    for template in (template for page in (*crowd.tiny, *crowd.heavy) for template in page):
        places = zip(template.samples, template.stamps, strict=True)
        assert all(at < stamp and stamp + 16 <= at + size for (at, size), stamp in places)
        assert len(template.samples) == len(packet_hashes("mov", template.path))
    assert crowd.heavy[0][0].stream.size_bytes > 30 * MIB
    assert all(stream.size_bytes < 64 * 1024 for page in pages_of(crowd)[:CROWD] for stream in crowd.of_page(page.cid))


async def test_any_range_of_a_stamped_stream_is_right_also_in_the_middle_of_a_stamp(
    crowded: Client, crowd: Crowd
) -> None:
    state = crowded.site.state
    for name in ("crowd-5", "crowd-large-1"):
        stream = crowd.of_page(crowd.video(name).pages[0].cid)[0]
        content = crowd.stamped_bytes(stream)
        url = state.sign_stream(stream)[0]
        at = content.index(crowd_module.stamp(stream.cid, stream.id, 2))
        for first, last in ((at, at), (at + 5, at + 9), (at - 3, at + 2), (at + 12, at + 30), (at - 5000, at + 9000)):
            assert await crowded.body(url, first, last) == content[first : last + 1]
        async with crowded.session.get(url) as response:
            assert hashlib.sha256(await response.read()).hexdigest() == crowd.sha256(stream)
    url = state.sign_stream(crowd.of_page(crowd.video("crowd-5").pages[0].cid)[1])[0]
    tags = []
    for each in (url, state.sign_stream(crowd.of_page(crowd.video("crowd-6").pages[0].cid)[1])[1], url):
        async with crowded.session.get(each) as response:
            tags.append(response.headers["ETag"])
    assert tags[0] == tags[2] != tags[1]


async def test_faults_expiry_and_counters_hold_for_a_crowd(crowded: Client, crowd: Crowd) -> None:
    stream = crowd.of_page(crowd.video("crowd-7").pages[0].cid)[0]
    state = crowded.site.state
    url = state.sign_stream(stream)[0]

    async def status(url: str, **headers: str) -> int:
        async with crowded.session.get(url, headers=headers) as response:
            return response.status

    assert await status(url) == await status(url, Range="bytes=0-99") // 206 * 200 == 200
    counted = crowded.site.stats()["objects"][stream.url_path]
    assert (counted["requests"], counted["sent_bytes"]) == (2, stream.size_bytes + 100)
    crowded.site.fault("expire", path=stream.url_path)
    assert [await status(url), await status(state.sign_stream(stream)[0])] == [403, 200]
    assert await status(state.sign_stream(dataclasses.replace(stream, cid=20_000_999_991))[0]) == 404
    assert await status(state.sign(stream.url_path + "x")[0]) == 404
    assert (await crowded.post("risk", {"name": "crowd-7", "on": True}))[0] == 200
    assert (await crowded.post("risk", {"name": "crowd-99999", "on": True}))[0] == 400


async def test_the_parsers_read_what_is_said_of_a_crowd(crowded: Client, crowd: Crowd) -> None:
    for name, sizes in (("crowd-17", (256, 144)), ("crowd-20", (256, 144)), ("crowd-large-1", (1920, 1080))):
        record = crowd.video(name)
        view = json.dumps(await crowded.api("/x/web-interface/view", aid=record.aid))
        video = parse_.parse_view(view)
        assert (video.bvid, video.title) == (record.bvid, record.title)
        assert [(page.cid, page.title) for page in video.pages] == [(page.cid, page.title) for page in record.pages]
        assert json.loads(view)["data"]["dimension"]["width"] == sizes[0]
        for page in record.pages:
            answer = await crowded.signed(PLAYURL, fnval=4048, cid=page.cid, bvid=record.bvid)
            playinfo = parse_.parse_playurl(json.dumps(answer))
            choice = stream_choice.choose_streams(playinfo, model.Wishes())
            video_stream, audio_stream = crowd.of_page(page.cid)
            assert choice.video is not None and choice.audio is not None
            assert urlsplit(choice.video.urls[0]).path == video_stream.url_path
            assert urlsplit(choice.audio.urls[0]).path == audio_stream.url_path
        async with crowded.session.get(f"{crowded.site.web_url}/video/{record.bvid}/") as response:
            page_text = await response.text()
        assert parse_.parse_initial_state(page_text).bvid == record.bvid
        assert parse_.parse_playinfo_html(page_text) is not None
    assert (await crowded.signed(PLAYURL, fnval=1, cid=record.pages[0].cid, bvid=record.bvid))["data"]["dash"]
    assert (await crowded.post("gain_page", {"name": "crowd-20", "at": 2}))[1]["cid"] == 20_000_000_205
    async with crowded.session.get(f"{crowded.site.short_url}/{record.bvid}", allow_redirects=False) as response:
        assert response.headers["Location"].endswith(f"/video/{record.bvid}")
    async with crowded.session.get(f"{crowded.site.short_url}/Crowd17", allow_redirects=False) as response:
        assert response.headers["Location"].endswith(f"/video/av{crowd.video('crowd-17').aid}?share_source=copy_web")
    ranked = (await crowded.api("/x/web-interface/ranking/v2", rid=0))["data"]["list"]
    assert crowd.video("crowd-1").bvid in [item["bvid"] for item in ranked]


def test_two_thousand_more_videos_cost_neither_time_nor_memory() -> None:
    def start(*options: str) -> tuple[float, int, int, str]:
        with SiteProcess(DEFAULT_CACHE, *options) as site:
            process = psutil.Process(site._process.pid)
            seconds = sum(process.cpu_times()[:2])  # of its own: the clock tells how busy others are
            listed = site.get("catalogue")["videos"]
            memory = process.memory_info().rss
            digest = next((v["pages"][0]["streams"][0]["sha256"] for v in listed if v["name"] == "crowd-17"), "")
            return seconds, memory, len(listed), digest

    alone, crowded = start(), start("--crowd", "2000")
    assert crowded[2] - alone[2] == 2000
    assert crowded[0] - alone[0] < 2
    assert crowded[1] - alone[1] < 32 * MIB
    known = ensure_crowd(DEFAULT_CACHE, FFMPEG, 17)
    assert crowded[3] == known.sha256(known.of_page(known.video("crowd-17").pages[0].cid)[0])


def test_templates_are_the_same_at_every_build_and_apart_from_the_catalogue(crowd: Crowd, tmp_path: Path) -> None:
    built = ensure_crowd(tmp_path, FFMPEG, CROWD)
    assert [path.name.split("-")[0] for path in tmp_path.iterdir() if path.is_dir()] == ["crowd"]
    for page in pages_of(built):
        assert [built.sha256(s) for s in built.of_page(page.cid)] == [crowd.sha256(s) for s in crowd.of_page(page.cid)]


def test_the_downloader_fetches_a_crowd(crowd: Crowd, tmp_path: Path) -> None:
    names = [f"crowd-{number}" for number in range(6, 13)]
    with SiteProcess(DEFAULT_CACHE, "--crowd", str(CROWD)) as site:
        farm = Farm(tmp_path, site)
        try:
            assert farm.add(*(crowd.video(name).bvid for name in names)) == "added 7, known 0, rejected 0"
            assert farm.drain() == 0
            done = {
                item["url"].rpartition("cid=")[2]: farm.downloads / item["path"] for item in farm.everything("/success")
            }
        finally:
            farm.close()
    assert set(done) == {str(page.cid) for name in names for page in crowd.video(name).pages}
    for cid, path in done.items():
        assert crowd.differences(int(cid), path.read_bytes()) == []


# ------------------------------------------------------------------------------------------ the command


async def test_a_prefix_and_given_rate_hold_for_everything(session: aiohttp.ClientSession) -> None:
    async with running_site(DEFAULT_CACHE, prefix="/x", mirrors=2, rate_bytes_per_second=100_000) as site:
        client = Client(site, session)
        assert urlsplit(site.api_url).path == "/x/api" and len(site.media_hosts) == 2
        assert (await client.playinfo("plain"))["code"] == 0
        client.site.fault("answer", scope="api", path=PLAYURL, code=-1, count=1)
        assert (await client.playinfo("plain"))["code"] == -1
        assert (await client.post("settings", {}))[1]["rate_bytes_per_second"] == 100_000
        started = time.monotonic()
        assert len(await client.body(site.raw_urls(40_000)[0], 0, 39_999)) == 40_000
        assert time.monotonic() - started > 0.35
        assert (await client.post("settings", {"rate_bytes_per_second": 5}))[1]["rate_bytes_per_second"] == 5
        await client.post("reset", {})
        assert site.state.rate_bytes_per_second == 100_000, "a reset goes back to what the site was started with"


def test_the_site_as_a_process_with_its_control_api() -> None:
    with SiteProcess(DEFAULT_CACHE, "--mirrors", "1") as site:
        assert site.environ()["BILI_API_URL"] == site.addresses["api"]
        assert site.environ()["BILI_MEDIA_HOSTS"].startswith("127.0.0.1:")
        assert site.post("faults", kind="cut", bytes=5)["on"][0]["kind"] == "cut"
        assert site.post("reset") == {}
        assert len(site.get("stats")["mirrors"]) == 1
        assert len(site.get("catalogue")["videos"]) == len(catalogue.VIDEOS)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_zero(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "demo.site", "--cache", str(DEFAULT_CACHE)]
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline().startswith(b"ready web=http://127.0.0.1:")
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, b"")


def test_it_ends_when_its_parent_goes() -> None:
    site = SiteProcess(DEFAULT_CACHE)
    site.close()
    with pytest.raises(OSError, match="refused"):
        site.get("stats")


def test_a_port_in_use_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with SiteProcess(DEFAULT_CACHE) as site:
        port = str(urlsplit(site.addresses["web"]).port)
        with pytest.raises(OSError, match="did not start"):
            SiteProcess(DEFAULT_CACHE, "--port", port)
    assert "cannot start" in capfd.readouterr().err
