"""What comes with a video: the converters with what the site answers, then the real thing against the stand-in."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import biliass
import imageio_ffmpeg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bili_client import BiliClient, make_session
from config import EXTRAS, Settings
from create_folder import page_path, parse_output
from demo import extras as served
from demo.catalogue import video as catalogued
from demo.media import ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE, RunningSite, running_site
from errors import RiskControl, SiteError
from extras import Embedding, Extras, files
from extras.answers import clean_text
from extras.danmaku import Danmaku, complete, parse_segment, segments_of, to_ass, to_xml
from extras.nfo import episode_nfo, file_tags, info_json, movie_nfo, published_date, show_nfo
from extras.subtitles import parse_player, to_srt
from model import MIB, About, Chapter, JobId, Page, Video
from parse_ import parse_view
from tests.farm import Farm, wait_until
from transfer.media_client import MediaClient
from transfer.mirrors import media_allowed

PLAIN = catalogued("plain")
CID = PLAIN.pages[0].cid
anything = st.text(st.characters(), max_size=60) | st.text(
    st.sampled_from("<>&\"'[]!-/\\{}N\n\r\t\0\x0b\ud800\ufffe\u202e;#=,中👩🏽‍💻 "), max_size=80
)

# ------------------------------------------------------------------------------------------ danmaku


def danmaku(text: str = "你好", **changes: Any) -> Danmaku:
    usual = Danmaku("7", 1.5, 1, 25, 0xFE0302, 1_700_000_000, 0, "a16fe0dd", 8, text)
    return replace(usual, **changes)


DOCUMENTED = bytes.fromhex(
    "0a6908c7b1bcd3021088f602180120122880fee704320835393431376539353a1ee4b896e7958ce7acace4b880e794b5e587"
    "bbe585ace4b8bbe6aebfe4b88b40d2d5c4a405480662093731313932333931316801a50161626364a9013132333435363738"
    "b20104616e696d1000"
)
"""The danmaku that bilibili-API-collect shows (docs/danmaku/danmaku_proto.md), and fields that nobody knows."""


def test_a_segment_is_read_field_by_field_as_biliass_reads_it() -> None:
    (one,) = parse_segment(DOCUMENTED)
    text = "世界第一电击公主殿下"
    assert one == Danmaku("711923911", 47.88, 1, 18, 10092288, 1418799826, 0, "59417e95", 6, text)
    theirs = biliass.convert_to_ass(DOCUMENTED, 1920, 1080, "protobuf").splitlines()[-1]
    assert theirs.startswith("Dialogue: 2,0:00:47.88,") and theirs.endswith(text)


def test_what_is_served_is_read_and_cleaned() -> None:
    listed = parse_segment(served.danmaku(CID, 1) or b"")
    assert [one.mode for one in listed] == [1, 1, 4, 5, 6, 7, 7, 8]
    assert listed[1].text == "<script>&]]> {\\an8}"  # without the control character, which XML cannot have


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"\x0a\xff",
        b"\x0a\x05ab",
        b"\x0b",
        b"\xff" * 12,
        b"{}",
        b"{",
        b'{"code":-400}',
        b'{"code":0,"data":{}}',
    ],
)
def test_bytes_that_are_no_segment_are_an_error_of_the_site(data: bytes) -> None:
    with pytest.raises(SiteError):
        parse_segment(data)


def test_risk_control_in_place_of_a_segment_is_told_as_such() -> None:
    with pytest.raises(RiskControl):
        parse_segment(b'{"code":-412,"message":"request was banned","ttl":1}')


def test_no_danmaku_is_there_twice_and_their_order_is_that_of_time() -> None:
    late, early = danmaku(id="1", seconds=400.0), danmaku(id="2", seconds=0.5)
    assert complete([(late,), (early, replace(late))]) == (early, late)
    assert [segments_of(seconds) for seconds in (0, 1, 360, 360.5, 7200, float("inf"))] == [1, 1, 1, 2, 20, 2778]


def test_the_xml_is_that_of_the_site() -> None:
    text = to_xml([danmaku('a < b & "c"')], 144541892)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<i><chatserver>chat.bilibili.com</chatserver>')
    root = ElementTree.fromstring(text)
    (node,) = root.findall("d")
    assert node.attrib["p"] == "1.50000,1,25,16646914,1700000000,0,a16fe0dd,7,8"
    assert node.text == 'a < b & "c"'
    assert root.findtext("chatid") == "144541892"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Danmaku,
            id=anything,
            seconds=st.floats(-10, 1e7),
            mode=st.sampled_from([0, 1, 4, 5, 6, 7, 8, 9, 2**63]),
            font_size=st.integers(0, 2**64),
            color=st.integers(0, 2**64),
            sent_at=st.integers(0, 2**64),
            pool=st.integers(0, 3),
            sender=anything,
            weight=st.integers(0, 2**64),
            text=anything
            | st.lists(st.none() | st.booleans() | st.floats() | st.integers() | anything, max_size=16).map(json.dumps),
        ),
        max_size=6,
    )
)
@example([danmaku("[]", mode=7)])
@example([danmaku(served._POSITIONED, mode=7)])
def test_no_danmaku_breaks_the_xml_or_the_conversion(listed: list[Danmaku]) -> None:
    clean = [replace(one, text=clean_text(one.text)) for one in listed]
    assert len(ElementTree.fromstring(to_xml(clean, 1)).findall("d")) == len(listed)
    shown = to_ass(listed)
    assert shown.startswith("[Script Info]") and shown.count("[Events]") == 1
    events = shown.partition("[Events]\n")[2].splitlines()[1:]
    assert all(line.startswith("Dialogue: ") for line in events)
    assert len(events) <= len(listed)


def test_the_ass_has_each_kind_in_its_place() -> None:
    lines = to_ass(parse_segment(served.danmaku(CID, 1) or b"")).splitlines()
    events = [line for line in lines if line.startswith("Dialogue:")]
    assert len(events) == 6  # not the empty one of mode 7, nor the script
    assert "PlayResX: 1920" in lines
    assert any("前排" in line and "\\move(1920" in line for line in events)
    assert any("底部\\N两行" in line and "\\an2" in line for line in events)
    assert any("定位" in line and "\\t(" in line for line in events)
    assert not any("{\\an8}" in line for line in events)


# ------------------------------------------------------------------------------------------ subtitles and chapters


def test_an_srt_has_its_lines_in_order_and_none_that_is_empty() -> None:
    text = to_srt((served.open_file("/bfs/subtitle/x.json") or b"").decode())
    assert text == (
        "1\n00:00:00,000 --> 00:00:00,500\n第一句 <i>不是斜体</i>\n\n"
        "2\n00:00:00,500 --> 00:00:00,900\ntwo\nlines → & more\n\n"
        "3\n00:00:00,950 --> 01:01:01,500\nlast\n"
    )


def test_a_track_is_no_longer_than_its_page() -> None:
    body = [
        {"from": 0.5, "to": 2, "content": "a"},
        {"from": 1.5, "to": 99, "content": "b"},
        {"from": 3, "to": 4, "content": "c"},
    ]
    text = to_srt(json.dumps({"body": body}), 3.0)
    assert text == "1\n00:00:00,500 --> 00:00:02,000\na\n\n2\n00:00:01,500 --> 00:00:03,000\nb\n"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), anything), max_size=8))
def test_no_line_of_a_subtitle_can_look_like_two(lines: list[tuple[float, float, str]]) -> None:
    body = [{"from": start, "to": stop, "content": text} for start, stop, text in lines]
    blocks = [block for block in to_srt(json.dumps({"body": body})).split("\n\n") if block]
    for place, block in enumerate(blocks, 1):
        number, times, *words = block.strip("\n").split("\n")
        assert number == str(place) and words
        assert times.count(" --> ") == 1 and len(times) == 29
        assert not any("-->" in line for line in words)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"body": [{"from": "x", "to": 1}]}', '{"body": [{"from": NaN, "to": 1}]}']
)
def test_what_is_no_subtitle_is_an_error_of_the_site(text: str) -> None:
    with pytest.raises(SiteError):
        to_srt(text)


def player_answer(*listed: dict[str, Any], points: Any = ()) -> str:
    return json.dumps({"code": 0, "data": {"subtitle": {"subtitles": listed}, "view_points": list(points)}})


AI = "//aisubtitle.hdslb.com/bfs/ai_subtitle/prod/{whose}0c1e305894e48e959979b163636461fb?auth_key=x"


def test_the_player_tells_languages_and_which_a_machine_wrote() -> None:
    answer = player_answer(
        {"lan": "zh-Hans", "lan_doc": "中文（简体）", "subtitle_url": "//i0.hdslb.com/bfs/subtitle/a.json", "type": 0},
        {"lan": "ai-zh", "lan_doc": "中文（自动生成）", "subtitle_url": AI.format(whose="1234"), "type": 1},
        {"lan": "ai-en", "lan_doc": "English", "subtitle_url": AI.format(whose="9934"), "type": 1},
        {"lan": "ai-ja", "lan_doc": "日本語", "subtitle_url": AI.format(whose=""), "type": 1},
        {"lan": "ko", "lan_doc": "no address", "subtitle_url": ""},
        {"lan": "../../x", "lan_doc": "", "subtitle_url": "//i0.hdslb.com/bfs/subtitle/b.json"},
    )
    player = parse_player(answer, 12, 34)
    assert [one.suffix for one in player.subtitles] == [".zh-Hans.srt", ".x.srt", ".zh.ai.srt", ".ja.ai.srt"]
    assert player.strange == 1 and not player.needs_login


def test_a_list_that_needs_a_login_says_so_and_oddities_are_none() -> None:
    hidden = {"code": 0, "data": {"need_login_subtitle": True, "subtitle": {"subtitles": []}}}
    assert parse_player(json.dumps(hidden), 1, 2).needs_login
    assert parse_player('{"code": 0, "data": {"subtitle": [], "view_points": null}}', 1, 2).subtitles == ()
    for text in ("", "[]", '{"code": 0, "data": {"view_points": [{"from": "x"}]}}', '{"code": -400, "message": "no"}'):
        with pytest.raises(SiteError):
            parse_player(text, 1, 2)
    with pytest.raises(RiskControl):
        parse_player('{"code": 0, "data": {"v_voucher": "voucher_x"}}', 1, 2)


def test_chapters_are_in_order_and_none_overlaps() -> None:
    points = [
        {"from": 0, "to": 27, "content": "狗啃的"},
        {"from": 27, "to": 27, "content": "empty"},
        {"from": 20, "to": 40, "content": "overlaps"},
        {"from": 27, "to": 63, "content": " 椒牌\n泡菜 "},
        {"from": 63, "to": 70, "content": ""},
    ]
    player = parse_player(player_answer(points=points), 1, 2)
    assert player.chapters == (Chapter(0, 27, "狗啃的"), Chapter(27, 63, "椒牌 泡菜"))


# ------------------------------------------------------------------------------------------ NFO, tags, JSON


def described(title: str = "标题", pages: int = 1, **about: Any) -> Video:
    usual = {"owner_id": 42, "published_at": 1_700_000_000, "description": "简介", "region": "科学科普"}
    listed = tuple(Page(number, 100 + number, f"第{number}页", 90.0) for number in range(1, pages + 1))
    return Video(PLAIN.bvid, PLAIN.aid, title, listed, "UP主", about=About(**{**usual, **about}))


def test_a_single_page_is_a_movie() -> None:
    root = ElementTree.fromstring(movie_nfo(described(season="合集"), described().pages[0]).partition("\n")[2])
    assert root.tag == "movie"
    said = {node.tag: node.text for node in root if node.text and node.text.strip()}
    assert said == {
        "title": "标题",
        "plot": "简介",
        "premiered": "2023-11-15",  # in Beijing; in Greenwich it was still the 14th
        "year": "2023",
        "runtime": "2",
        "uniqueid": PLAIN.bvid,
        "studio": "Bilibili",
        "genre": "科学科普",
        "director": "UP主",
        "credits": "UP主",
    }
    assert root.findtext("set/name") == "合集"


def test_a_page_of_several_is_an_episode_of_its_video() -> None:
    video = described(pages=3)
    root = ElementTree.fromstring(episode_nfo(video, video.pages[1], video.title, 2).partition("\n")[2])
    said = [root.findtext(name) for name in ("title", "showtitle", "season", "episode", "aired")]
    assert (root.tag, said) == ("episodedetails", ["第2页", "标题", "1", "2", "2023-11-15"])
    show = ElementTree.fromstring(show_nfo(video, video.title).partition("\n")[2])
    assert (show.tag, show.findtext("title"), show.findtext("plot")) == ("tvshow", "标题", "简介")


@settings(max_examples=200, deadline=None)
@given(anything, anything, anything, anything)
@example(served.DESCRIPTION, "</movie>", "<!--", "]]>")
def test_no_text_of_the_site_becomes_markup(title: str, part: str, description: str, owner: str) -> None:
    video = replace(described(title, description=description, season=title, region=part), owner=owner)
    video = replace(video, pages=(Page(1, 7, part), Page(2, 8, title)))
    for text in (movie_nfo(video, video.pages[0]), episode_nfo(video, video.pages[1], title, 1), show_nfo(video, part)):
        root = ElementTree.fromstring(text.encode())
        assert {node.tag for node in root.iter()} <= {
            *("movie", "episodedetails", "tvshow", "title", "plot", "premiered", "year", "uniqueid", "studio"),
            *("genre", "director", "credits", "set", "name", "showtitle", "season", "episode", "aired", "runtime"),
        }


def test_tags_name_what_is_known_and_never_the_comment() -> None:
    tags = dict(file_tags(described(season="合集", episode_number=3), described().pages[0]))
    assert tags == {
        "artist": "UP主",
        "date": "2023-11-15",
        "description": "简介",
        "genre": "科学科普",
        "album": "合集",
        "album_artist": "UP主",
        "track": "3",
    }
    many = dict(file_tags(described(pages=2), described(pages=2).pages[1]))
    assert (many["album"], many["track"]) == ("标题", "2")
    bare = Video("BV1xx411c7mD", 1, "t", (Page(1, 2, "t"),))
    assert file_tags(bare, bare.pages[0]) == ()
    assert published_date(bare) == ""


def test_the_kept_json_has_nothing_of_the_account_and_no_signed_address() -> None:
    view = {
        "code": 0,
        "data": {
            "bvid": "BV1xx411c7mD",
            "user_garb": {"url_image_ani_cut": "x"},
            "pages": [{"cid": 1, "part": "\ud800?"}],
            "subtitle": {"list": [{"subtitle_url": "https://a.hdslb.com/x.json?auth_key=170-secret"}]},
            "req_user": {"attention": 1},
            "desc": "see https://example.com/?q=1",
        },
    }
    kept = json.loads(info_json(json.dumps(view)))
    assert kept == {
        "bvid": "BV1xx411c7mD",
        "pages": [{"cid": 1, "part": "\ufffd?"}],
        "subtitle": {"list": [{"subtitle_url": "https://a.hdslb.com/x.json"}]},
        "desc": "see https://example.com/?q=1",
    }
    with pytest.raises(SiteError):
        info_json("<html>")


def test_a_view_answer_says_more_than_the_title() -> None:
    view = {
        "bvid": PLAIN.bvid,
        "aid": PLAIN.aid,
        "cid": 7,
        "title": "t",
        "pic": "http://i0.hdslb.com/x.jpg",
        "desc": "a\r\n\x07b &amp; c\n",
        "pubdate": 1_700_000_000,
        "tname": "old",
        "tname_v2": "new",
        "owner": {"mid": 42, "name": "UP"},
        "ugc_season": {"title": "合集", "sections": [{"episodes": [{"aid": 1}]}, {"episodes": [{"aid": PLAIN.aid}]}]},
    }
    about = parse_view(json.dumps({"code": 0, "data": view})).about
    assert about == About(42, "a\nb & c", 1_700_000_000, "new", "合集", 2, "http://i0.hdslb.com/x.jpg")
    odd = {**view, "desc": 7, "pubdate": 10**15, "owner": [], "ugc_season": "x", "pic": {}, "tname_v2": None}
    assert parse_view(json.dumps({"code": 0, "data": odd})).about == About(region="old")


# ------------------------------------------------------------------------------------------ files


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_whole(tmp_path / "x.nfo", b"one")
    files.write_whole(tmp_path / "x.nfo", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.nfo", b"two")]

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("extras.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(tmp_path / "y.nfo", b"three")
    assert [path.name for path in tmp_path.iterdir()] == ["x.nfo"]


def test_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    old, new = (files.hidden_path(tmp_path, ".jpg") for _turn in range(2))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1_000_000_000, 1_000_000_000))
    (tmp_path / "extra-mine").touch()
    files.remove_old_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "extra-mine"}
    files.remove_old_leftovers(tmp_path / "missing")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (served.COVER, "jpg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"\0\0\0\x1cftypavif", "avif"),
        (b"GIF89a", "gif"),
        (b"<html>", ""),
        (b"", ""),
    ],
)
def test_an_image_is_known_by_its_first_bytes(data: bytes, kind: str) -> None:
    assert files.image_kind(data) == kind


# ------------------------------------------------------------------------------------------ against the stand-in


@pytest.fixture(scope="module", autouse=True)
def media() -> None:
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture
async def site() -> AsyncIterator[RunningSite]:
    async with running_site() as site:
        yield site


class Bench:
    """The extras of a worker, and the video that a test asks for."""

    def __init__(self, extras: Extras, settings: Settings) -> None:
        self.extras, self.settings = extras, settings

    async def lay(self, name: str = "plain", number: int = 1) -> tuple[Embedding, set[str], Any]:
        record = catalogued(name)
        video = await self.extras.site.describe(JobId(bvid=record.bvid))
        page = video.pages[number - 1]
        relative = page_path("c", video, page, output=self.settings.output)
        (self.settings.download_dir / relative.parent).mkdir(parents=True, exist_ok=True)
        self.settings.scratch_dir.mkdir(parents=True, exist_ok=True)
        async with self.extras.of("job", video, page, relative) as companions:
            embedding = await companions.embedding()
            self.read = {path: Path(path).read_bytes() for path in hidden(embedding)}
            await companions.lay_beside(relative)
        assert not list(self.settings.scratch_dir.iterdir())
        base = self.settings.download_dir / "c"
        found = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
        return embedding, found, companions

    def text(self, name: str) -> str:
        return (self.settings.download_dir / "c" / name).read_text("utf-8")


def hidden(embedding: Embedding) -> list[str]:
    return [*filter(None, [embedding.cover]), *(one.path for one in embedding.subtitles)]


@pytest.fixture
async def make_bench(site: RunningSite, settings: Settings) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def make(*extras: str, **changes: Any) -> Bench:
            own = replace(
                settings,
                web_url=site.web_url,
                api_url=site.api_url,
                media_hosts=site.media_hosts,
                api_interval_seconds=0.0,
                extras=extras,
                **{"sessdata": "demo", **changes},
            )
            session = await stack.enter_async_context(make_session(own))
            client = await stack.enter_async_context(MediaClient(own, media_allowed((), own.media_hosts)))
            return Bench(Extras(own, BiliClient(own, session, draw=lambda: 0.0), SimpleNamespace(client=client)), own)

        yield make


STEM = f"潮汐为什么一天来两次 [{PLAIN.bvid}]"


async def test_everything_comes_and_lies_beside_the_video(make_bench: Any, site: RunningSite) -> None:
    bench = await make_bench(*EXTRAS)
    embedding, found, companions = await bench.lay()
    languages = (".zh-CN.srt", ".en-US.srt", ".zh.ai.srt")
    suffixes = (".danmaku.ass", ".danmaku.xml", "-poster.jpg", ".nfo", ".info.json", *languages)
    assert found == {STEM + suffix for suffix in suffixes}
    assert (bench.settings.download_dir / "c" / f"{STEM}-poster.jpg").read_bytes() == served.COVER
    assert bench.read[embedding.cover] == served.COVER
    assert [one.title for one in embedding.chapters] == ["开头 [1]; #=\\", "结尾"]
    assert (embedding.subtitles[0].language, embedding.subtitles[0].title) == ("zh-CN", "中文（中国）")
    assert "第一句" in bench.read[embedding.subtitles[0].path].decode()
    assert dict(embedding.tags)["artist"] == PLAIN.owner
    assert len(ElementTree.fromstring(bench.text(f"{STEM}.danmaku.xml")).findall("d")) == 8
    assert json.loads(bench.text(f"{STEM}.info.json"))["bvid"] == PLAIN.bvid
    assert ElementTree.fromstring(bench.text(f"{STEM}.nfo").encode()).findtext("title") == PLAIN.title
    assert companions.trouble is None


async def test_nothing_is_asked_where_nothing_is_wanted(make_bench: Any, site: RunningSite) -> None:
    bench = await make_bench("tags")
    embedding, found, _companions = await bench.lay()
    assert found == set() and hidden(embedding) == [] and embedding.chapters == ()
    assert {route.rpartition("/")[2] for route in site.stats()["routes"]} == {"view", "spi", "GenWebTicket"}
    assert not site.stats()["objects"]


async def test_what_stands_is_left_and_not_asked_for_again(make_bench: Any, site: RunningSite) -> None:
    bench = await make_bench("danmaku", "cover-file", "nfo")
    await bench.lay()
    (bench.settings.download_dir / "c" / f"{STEM}.nfo").write_text("mine", "utf-8")
    site.state.counters.reset()
    await bench.lay()
    assert bench.text(f"{STEM}.nfo") == "mine"
    assert set(site.stats()["routes"]) == {"/x/web-interface/view"} and not site.stats()["objects"]


async def test_the_pages_of_a_video_share_its_folder_and_what_belongs_to_all(make_bench: Any) -> None:
    bench = await make_bench("nfo", "cover-file", "json", "danmaku-xml")
    for number in (1, 2):
        _embedding, found, _companions = await bench.lay("five-pages", number)
    folder = f"线性代数五讲 [{catalogued('five-pages').bvid}]"
    pages = ("P01 向量", "P02 矩阵／行列式")
    own = [f"{page}{suffix}" for page in pages for suffix in (".nfo", ".danmaku.xml")]
    assert found == {f"{folder}/{name}" for name in ("tvshow.nfo", "poster.jpg", "video.info.json", *own)}


async def test_a_failing_extra_is_said_once_and_the_others_come(
    make_bench: Any, site: RunningSite, caplog: pytest.LogCaptureFixture
) -> None:
    site.fault("status", path=f"{served.OPEN_FOLDER}*", status=404)
    site.fault("status", scope="api", path="/x/v2/dm/web/seg.so", status=500)
    bench = await make_bench("cover-file", "danmaku", "danmaku-xml", "nfo", "subtitles")
    with caplog.at_level(logging.WARNING):
        _embedding, found, companions = await bench.lay()
    assert found == {f"{STEM}.nfo"} and companions.trouble is None
    said = [record.getMessage() for record in caplog.records if ": without " in record.getMessage()]
    assert len(said) == len(set(said)) and {line.split()[2].rstrip(":") for line in said} == {
        *("cover-file", "danmaku", "danmaku-xml", "subtitles.zh-CN.srt", "subtitles.en-US.srt", "subtitles.zh.ai.srt")
    }


async def test_risk_control_is_told_to_the_worker(make_bench: Any, site: RunningSite) -> None:
    site.fault("risk_control", scope="api", path="/x/player/wbi/v2")
    bench = await make_bench("chapters", "json")
    _embedding, found, companions = await bench.lay()
    assert isinstance(companions.trouble, RiskControl) and found == set()


async def test_a_login_is_needed_for_subtitles_and_that_is_said(
    make_bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await make_bench("subtitles", sessdata="")
    with caplog.at_level(logging.INFO):
        _embedding, found, _companions = await bench.lay()
    assert found == set() and any("logged-in" in record.getMessage() for record in caplog.records)


async def test_no_cookie_and_no_more_than_agreed_comes_with_a_cover(
    make_bench: Any, site: RunningSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await make_bench("cover-file")
    url = served.cover_url(site.state, PLAIN)
    assert await bench.extras.fetch(url, len(served.COVER)) == served.COVER
    with pytest.raises(SiteError, match="larger"):
        await bench.extras.fetch(url, len(served.COVER) - 1)
    for address in ("http://127.0.0.1:9/bfs/x.jpg", "file:///etc/passwd", "http://i0.hdslb.com.example/x.jpg"):
        with pytest.raises(SiteError, match="not a host"):
            await bench.extras.fetch(address, MIB)


async def test_a_long_page_has_all_its_segments(make_bench: Any, site: RunningSite) -> None:
    bench = await make_bench("danmaku-xml")
    video = await bench.extras.site.describe(JobId(bvid=PLAIN.bvid))
    page = replace(video.pages[0], duration_seconds=1000.0)
    relative = PurePosixPath("c/long.mp4")
    (bench.settings.download_dir / "c").mkdir(parents=True)
    async with bench.extras.of("job", video, page, relative) as companions:
        await companions.lay_beside(relative)
    nodes = ElementTree.fromstring(bench.text("long.danmaku.xml")).findall("d")
    assert len(nodes) == 16  # of two segments; the third one does not exist
    assert site.stats()["routes"]["/x/v2/dm/web/seg.so"] == 3


async def test_a_season_folder_makes_episodes_of_its_videos(make_bench: Any, site: RunningSite) -> None:
    bench = await make_bench("nfo", output=parse_output("{category}/{season}/{title} [{bvid}]"))
    video = await bench.extras.site.describe(JobId(bvid=PLAIN.bvid))
    video = replace(video, about=replace(video.about, season="合集", episode_number=4))
    relative = page_path("c", video, video.pages[0], output=bench.settings.output)
    (bench.settings.download_dir / relative.parent).mkdir(parents=True)
    async with bench.extras.of("job", video, video.pages[0], relative) as companions:
        await companions.lay_beside(relative)
    assert ElementTree.fromstring(bench.text("合集/tvshow.nfo").encode()).findtext("title") == "合集"
    root = ElementTree.fromstring(bench.text(f"合集/{STEM}.nfo").encode())
    assert (root.tag, root.findtext("episode")) == ("episodedetails", "4")


async def test_what_is_no_image_is_no_cover(
    make_bench: Any, site: RunningSite, caplog: pytest.LogCaptureFixture
) -> None:
    site.fault("html", path=f"{served.OPEN_FOLDER}*")
    bench = await make_bench("cover", "cover-file")
    embedding, found, _companions = await bench.lay()
    assert embedding.cover == "" and found == set()
    assert [record.getMessage() for record in caplog.records if "it is no image" in record.getMessage()]


async def test_what_a_killed_worker_left_in_the_folder_goes_with_the_next_one(make_bench: Any) -> None:
    bench = await make_bench("nfo")
    folder = bench.settings.download_dir / "c"
    folder.mkdir(parents=True)
    left = files.hidden_path(folder, "")
    left.write_bytes(b"half")
    os.utime(left, (1_000_000_000, 1_000_000_000))
    _embedding, found, _companions = await bench.lay()
    assert found == {f"{STEM}.nfo"}


async def test_a_folder_that_takes_nothing_is_said_once_for_each_extra(
    make_bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_whole", full)
    bench = await make_bench("nfo", "json")
    _embedding, found, companions = await bench.lay("five-pages")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"job: without {extra}: No space left on device" for extra in ("nfo", "json")]
    assert found == set() and companions.trouble is None


async def test_a_job_that_fails_does_not_wait_for_its_extras(make_bench: Any, site: RunningSite) -> None:
    site.fault("stall", path=f"{served.OPEN_FOLDER}*", bytes=10)
    bench = await make_bench("cover")
    video = await bench.extras.site.describe(JobId(bvid=PLAIN.bvid))
    async with asyncio.timeout(10):
        with pytest.raises(ZeroDivisionError):
            async with bench.extras.of("job", video, video.pages[0], PurePosixPath("c/x.mp4")):
                while not site.stats()["objects"]:
                    await asyncio.sleep(0.01)
                raise ZeroDivisionError


async def test_a_cancelled_job_leaves_nothing_behind(make_bench: Any, site: RunningSite) -> None:
    site.fault("stall", path=f"{served.OPEN_FOLDER}*", bytes=10)
    bench = await make_bench("cover", "cover-file")
    task = asyncio.create_task(bench.lay())
    while not site.stats()["objects"]:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [path for path in bench.settings.download_dir.rglob("*") if path.is_file()]
    assert len(asyncio.all_tasks()) < 10


# ------------------------------------------------------------------------------------------ real processes


@pytest.fixture
def farm(tmp_path: Path, module_site: SiteProcess) -> Iterator[Farm]:
    module_site.post("reset")
    wishes = {"BILI_EXTRAS": "all", "BILI_SESSDATA": "demo", "BILI_OUTPUT": "{owner}/{title} [{bvid}]"}
    farm = Farm(tmp_path, module_site, BILI_LEASE_SECONDS="5", **wishes)
    yield farm
    farm.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_that_is_killed_over_its_extras_leaves_nothing_half_written(farm: Farm) -> None:
    many = catalogued("five-pages")
    farm.site.post("faults", kind="stall", path=f"{served.OPEN_FOLDER}*", bytes=10)
    farm.add(PLAIN.bvid, many.bvid)
    worker = farm.worker()
    wait_until("a cover is on its way", lambda: any(path.startswith("/bfs/") for path in farm.ranges()))
    worker.kill()
    farm.site.post("clear_faults")
    assert farm.drain() == 0
    assert len(farm.everything("/success")) == 6
    found = {str(path.relative_to(farm.downloads)) for path in farm.downloads.rglob("*") if path.is_file()}
    stem, folder = f"{PLAIN.owner}/{STEM}", f"{many.owner}/线性代数五讲 [{many.bvid}]"
    languages = (".zh-CN.srt", ".en-US.srt", ".zh.ai.srt")
    own = (".mp4", ".danmaku.ass", ".danmaku.xml", ".nfo")
    pages = ("P01 向量", "P02 矩阵／行列式", "P03 重复", "P04 重复", "P05 ／..／etc／passwd")
    assert {name for name in found if ".parts" not in name} == {
        *(stem + suffix for suffix in (*own, "-poster.jpg", ".info.json", *languages)),
        *(f"{folder}/{page}{suffix}" for page in pages for suffix in own),
        *(f"{folder}/{name}" for name in ("tvshow.nfo", "poster.jpg", "video.info.json")),
    }
    for name in found:
        path = farm.downloads / name
        if path.suffix in (".xml", ".nfo"):
            ElementTree.fromstring(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif path.suffix == ".jpg":
            assert path.read_bytes() == served.COVER
    assert all(part.startswith(".parts/.extra-") for part in found if ".parts" in part)  # of the killed one, for a day
