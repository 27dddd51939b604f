"""What reads files, answers and settings, under inputs that nobody thought of.

It returns, or raises the error that its docstring names; nothing else, in bounded memory and time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import account
import create_folder
from config import VARIABLES, parse_settings, parse_speed, parse_working
from errors import JobError, MergeError, UsageError
from extras import danmaku, nfo, subtitles
from merging import matroska, mp4_boxes
from model import Result
from orders import read_order, with_keys, working_keys
from parse_ import (
    REAL_HOSTS,
    aid_to_bvid,
    bvid_to_aid,
    parse_initial_state,
    parse_job_id,
    parse_login,
    parse_playinfo_html,
    parse_playurl,
    parse_season,
    parse_spi,
    parse_target,
    parse_view,
    parse_wbi_keys,
)
from result_log import ResultLog
from shapes import flag, lenient, line, list_of, number, one_of, record
from source_ids import find_source
from sources import first_cursor, parse_date, parse_pages, parse_source, plan_request, read_page, sort_out
from store import records
from tests.fuzz.damage import (
    FACTOR,
    STRANGE_VALUES,
    as_file,
    damaged_bytes,
    damaged_json,
    damaged_texts,
    fuzzed,
    in_bounded_memory,
)
from tests.test_mp4_boxes import FTYP, box, fragment, full, numbers, plain, trak
from transfer.part_file import read_journal, seal, unseal
from transfer.range_reply import Asked, judge, parse_content_range, parse_retry_after
from web import messages
from working_file import WorkingFile

DATA = Path(__file__).resolve().parents[1] / "data"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 * FACTOR)]


# ------------------------------------------------------------------------------------------ what the site answers


def answer(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text("utf-8"))


VIEWS = [answer("view_three_pages"), answer("view_episode"), answer("view_interactive"), answer("view_deleted")]
PLAYURLS = [answer(f"playurl_{name}") for name in ("dash", "durl", "dolby_flac", "no_audio")]
PLAYURLS += [answer("pgc_playurl"), answer("pgc_playurl_v2")]
POINT = {"from": 0, "to": 5, "content": "A chapter"}
TRACK = {"lan": "ai-zh", "lan_doc": "中文", "type": 1, "subtitle_url": "//a.example/1279786" + "0" * 32 + ".json"}
PLAYER = {"code": 0, "data": {"subtitle": {"subtitles": [TRACK]}, "view_points": [POINT]}}
LINES = {"body": [{"from": 0.5, "to": 2, "content": "A line"}, {"from": 1, "to": 3, "content": "Another"}]}

SITE: dict[str, tuple[Callable[[str], object], list[Any]]] = {
    "view": (parse_view, VIEWS),
    "season": (lambda text: parse_season(text, 374717), [answer("season")]),
    "playurl": (parse_playurl, PLAYURLS),
    "keys": (parse_wbi_keys, [answer("nav_guest")]),
    "login": (parse_login, [answer("nav_guest")]),
    "spi": (parse_spi, [answer("spi")]),
    "player": (lambda text: subtitles.parse_player(text, 1, 279786), [PLAYER]),
    "lines": (subtitles.to_srt, [LINES]),
    "about": (nfo.info_json, VIEWS),
}


@pytest.mark.parametrize("name", SITE)
@given(data=st.data())
@fuzzed(60)
def test_an_answer_of_the_site_is_read_or_refused(name: str, data: st.DataObject) -> None:
    read, wholes = SITE[name]
    text = data.draw(damaged_texts(wholes))
    try:
        found = read(text)
    except JobError:
        return
    if isinstance(found, str):
        found.encode()


@given(damaged_texts(VIEWS))
@fuzzed(100)
def test_what_is_told_of_a_video_can_be_written(text: str) -> None:
    try:
        video = parse_view(text)
    except JobError:
        return
    output = create_folder.parse_output("{owner}/{title}")
    for page in video.pages:
        nfo.movie_nfo(video, page).encode()
        nfo.episode_nfo(video, page, "A show", 1).encode()
        assert all(value.encode() for _name, value in nfo.file_tags(video, page))
        path = create_folder.page_path("music", video, page, True, "mp4", output)
        assert ".." not in path.parts and not path.is_absolute()
        assert all(len(part.encode()) <= 255 for part in path.parts)
    nfo.show_nfo(video, video.title).encode()


HTML = (DATA / "video_page.html").read_bytes()


@given(damaged_bytes([HTML], len(HTML)))
@fuzzed(100)
def test_a_page_of_the_site_is_read_or_refused(page: bytes) -> None:
    text = page.decode("utf-8", "replace")
    for read in (parse_initial_state, parse_playinfo_html, partial(parse_playinfo_html, cid=279786)):
        try:
            read(text)
        except JobError:
            continue


LISTS = ["mid:137137", "fav:1234567", "ss28747", "md28747", "rank:1010", "rank:0", "weekly:1", "popular", "later"]
LISTS += ["season:5", "series:5", "lists:5", "favs:5", "cheese:ss5", "cheese:ep5", "weekly", "precious", "search:a"]
ITEM = {"bvid": "BV1xx411c7mD", "aid": 1, "id": 1, "title": "A title", "pubdate": 1, "created": 1, "duration": "1:02"}
LISTING = {"list": [ITEM], "vlist": [ITEM], "medias": [ITEM], "archives": [ITEM], "episodes": [ITEM], "items": [ITEM]}
PAGING = {"page": {"count": 2, "pn": 1, "ps": 30, "total": 2}, "has_more": True, "count": 2, "numPages": 2, "total": 2}
ANSWERS = [
    {"code": 0, "message": "0", "data": {**LISTING, **PAGING, "result": [ITEM]}, "result": {**LISTING, **PAGING}},
    {"code": 0, "data": {"list": {"vlist": [ITEM]}, **PAGING, "info": {"title": "A", "media_count": 2}}},
    {"code": 0, "data": {"items_lists": {**PAGING, "seasons_list": [{"meta": {"season_id": 5, "name": "A"}}]}}},
    {"code": 0, "result": {"main_section": {"episodes": [ITEM]}, "section": [{"episodes": [ITEM]}], "media": ITEM}},
    answer("ranking_1010"),
    answer("season"),
]


@given(st.sampled_from(LISTS), damaged_texts(ANSWERS), st.integers(0, 2))
@fuzzed(400)
def test_a_listing_is_read_or_refused_and_goes_on_somewhere(source: str, text: str, steps: int) -> None:
    cursor = first_cursor(source)
    try:
        for _step in range(steps + 1):
            plan_request(cursor)
            page = read_page(cursor, text)
            if page.next is None:
                return
            assert page.next != cursor
            cursor = page.next
    except JobError:
        return


# ------------------------------------------------------------------------------------------ danmaku


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


ELEMENT = b"".join(
    field(*one)
    for one in (
        (1, 7),
        (2, 1500),
        (3, 1),
        (4, 25),
        (5, 0xFFFFFF),
        (6, b"abcd"),
        (7, "弹幕".encode()),
        (8, 1),
        (12, b"7"),
    )
)
SEGMENT = b"".join(field(1, ELEMENT) for _time in range(3))
ELEMENTS = st.lists(
    st.tuples(st.sampled_from(range(1, 14)), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=20))), max_size=12
).map(lambda fields: field(1, b"".join(field(*one) for one in fields)))


@given(st.one_of(damaged_bytes([SEGMENT]), st.lists(ELEMENTS, max_size=4).map(b"".join), st.binary(max_size=60)))
@fuzzed(500)
def test_danmaku_are_written_or_refused(data: bytes) -> None:
    try:
        found = danmaku.parse_segment(data)
    except JobError:
        return
    listed = danmaku.complete([found])
    danmaku.to_xml(listed, 1).encode()
    danmaku.to_ass(listed).encode()


# ------------------------------------------------------------------------------------------ what users write

HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["BV1xx411c7mD", "av170001", "ep1", "https://www.bilibili.com/video/BV1xx411c7mD?p=3", "mid:1"]),
    st.sampled_from(
        ["http://[", "https://b23.tv/", "https://b23.tv/a%00", "//", "https://www.bilibili.com:99999/video/av1"]
    ),
    st.from_regex(
        r"(https?://)?([a-z0-9.@:\[\]-]{0,20}|(www|space|m)\.bilibili\.com)(/[a-zA-Z0-9%/]{0,30})?(\?[a-z0-9=&%]*)?",
        fullmatch=True,
    ),
    st.from_regex(r"(BV|av|ep|ss|md|mid:|fav:|rank:|search:|season:|cheese:ep)[0-9A-Za-z:,%?=&]{0,20}", fullmatch=True),
)


@given(HOSTILE)
@example("search:\ud800")
@fuzzed(500)
def test_a_text_of_a_user_is_a_target_or_refused(text: str) -> None:
    for read in (partial(parse_target, hosts=REAL_HOSTS), partial(parse_source, hosts=REAL_HOSTS), parse_job_id):
        try:
            read(text)
        except ValueError:
            continue
    ids, rejected = sort_out([text], REAL_HOSTS)
    assert len(ids) + len(rejected) == 1
    for identity in ids:
        assert str(parse_job_id(identity)) == identity
        assert sort_out([identity], REAL_HOSTS) == ([identity], [])
    found = find_source(text)
    assert found is None or str(found) == text


@given(st.integers(1, 2**51 - 1))
@fuzzed(100)
def test_a_video_has_one_id(aid: int) -> None:
    assert bvid_to_aid(aid_to_bvid(aid)) == aid


@given(st.text(st.sampled_from("0123456789-,.: \n٣²"), max_size=20))
@fuzzed(200)
def test_days_and_pages_are_read_or_refused(text: str) -> None:
    for read in (parse_date, parse_pages):
        try:
            read(text)
        except argparse.ArgumentTypeError:
            continue


@given(st.one_of(st.text(max_size=30), st.text(st.sampled_from("{}/owner:title<>.\\cidbv0>12 "), max_size=40)))
@fuzzed(300)
def test_a_template_of_names_is_read_or_refused(text: str) -> None:
    try:
        create_folder.parse_output(text)
    except ValueError:
        return


VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "0", "1", "-1", "9" * 5000, "1e400", "nan", "inf", "²", "٣", "\0", "\ud800", "http://[", "~", "/"]
    ),
    st.sampled_from(
        ["redis://[", "redis://a:b", "unix://", "sftp://[::1", "s3://", "https://a:99999", "::1", "10.0.0.0/99"]
    ),
    st.from_regex(r"[a-z]{0,6}:?/{0,3}[a-z0-9@:\[\]%.-]{0,16}(/[a-z?=&%]{0,8})?", fullmatch=True),
)


@given(st.dictionaries(st.sampled_from(sorted(VARIABLES)), VALUES, min_size=1, max_size=2))
@fuzzed(600)
def test_settings_are_read_or_refused(values: Mapping[str, str]) -> None:
    try:
        repr(parse_settings(values))
    except UsageError as error:
        assert any(name in str(error) for name in values)


@given(STRANGE_VALUES)
@fuzzed(150)
def test_a_speed_is_read_or_refused(value: Any) -> None:
    try:
        assert parse_speed(value) >= 0
    except ValueError:
        return


@given(st.text(st.sampled_from("\t\n#.bilcomSESDATA_TRUEFALSE0129=;\ufeff²"), max_size=200))
@fuzzed(100)
def test_a_file_of_cookies_is_read(text: str) -> None:
    found = account.parse_cookies_txt(f".bilibili.com\tTRUE\t/\tTRUE\t1\tSESSDATA\tabc\n{text}", 0.0)
    assert all(account.is_cookie_value(value) for value in found.values())


# ------------------------------------------------------------------------------------------ working.json and orders

WORKINGS = [{"stop": 1, "count": 4}, {"stop": 0, "count": 64, "max_speed": "2M", "drain": 1, "mine": {"a": [1, 2]}}]
WRITTEN = st.one_of(
    damaged_texts(WORKINGS),
    damaged_json(WORKINGS).map(lambda value: json.dumps(value, indent=2).replace("\n}", ",\n}")),
    st.text(st.sampled_from('{}[]",:\\ stopcunt0123456789\n\ufeff'), max_size=60),
)


@given(WRITTEN)
@example('{"stop": 1, "count": ' + "9" * 5000 + "}")
@fuzzed(400)
def test_what_working_json_says_is_good_or_refused(text: str) -> None:
    try:
        found = parse_working(text)
    except ValueError:
        return
    assert found.stop in (0, 1) and 1 <= found.count <= 64 and found.drain in (0, 1)


@given(WRITTEN, st.sampled_from([{"stop": 0}, {"count": 3, "max_speed": "1M"}, {"max_speed": None, "drain": 1}]))
@fuzzed(300)
def test_an_order_stands_in_working_json_and_all_else_stays(text: str, keys: Mapping[str, Any]) -> None:
    try:
        parse_working(text)
        before = json.loads(text.removeprefix("\ufeff"))
        written = with_keys(text, keys)
    except (ValueError, RecursionError):
        return
    assert parse_working(written)
    assert json.loads(written.removeprefix("\ufeff")) == {**before, **keys} or written != written.replace("NaN", "")


@given(st.one_of(WRITTEN.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=80)))
@fuzzed(100)
def test_a_worker_survives_any_working_json(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-working.json"
    path.write_bytes(content)
    file = WorkingFile(path)
    assert file.read().count >= 1
    file.write({"stop": 0})
    assert file.read().stop == 0


@given(damaged_json([{"id": "5d2f", "working": {"stop": 0, "count": 3, "max_speed": "2M"}, "login": "ab"}]))
@fuzzed(300)
def test_an_order_is_read_or_refused(value: Any) -> None:
    order = read_order(value)
    assert order is None or order.id
    try:
        working_keys(value)
    except ValueError:
        return


# ------------------------------------------------------------------------------------------ what the server is sent

LEASE = {"url": "BV1xx411c7mD?p=1&cid=279786", "token": "4e14a5ec.2.9831dddb0df24cb0"}
FILE = {"path": "music/A.mp4", "bytes": 5, "seconds": 1.5, "title": "A", "streams": "1080P", "stored": "sftp://nas/A"}
SITE_TOLD = {"wanted_per_second": 1, "answers": 3, "refused": {"kind": "-412", "seconds": 5}}
STREAM = {"name": "v", "done_bytes": 5, "total_bytes": 10}
BEAT = {"worker": "w", "jobs": [{**LEASE, "progress": {"title": "A", "chunks": True, "streams": [STREAM]}}]}
BODIES: dict[str, tuple[Any, Any]] = {
    "heartbeat": (
        messages.HEARTBEAT,
        {**BEAT, "state": {"state": "running", "working": {"stop": 1}}, "site": SITE_TOLD},
    ),
    "expand": (
        messages.EXPAND,
        {**LEASE, "pages": [{"number": 1, "cid": 5, "title": "A"}], "ledger": {"page": 1, "unavailable": {"a": 1}}},
    ),
    "ack": (messages.ACK, {**LEASE, **FILE}),
    "replay": (messages.REPLAY, {"worker": "w", "results": [{"url": LEASE["url"], **FILE}]}),
    "nack": (messages.NACK, {**LEASE, "class": "transient", "code": -404, "reason": "gone"}),
    "add": (messages.ADD, {"urls": ["av1"], "category": "music", "wishes": {"since": 1}, "watch": 10}),
    "steer": (messages.STEER, {"working": {"stop": 1}, "workers": ["w"]}),
}


@pytest.mark.parametrize("name", BODIES)
@given(data=st.data())
@fuzzed(60)
def test_a_body_is_taken_or_refused_and_what_is_taken_is_clean(name: str, data: st.DataObject) -> None:
    check, whole = BODIES[name]
    try:
        found = check(data.draw(damaged_json([whole])))
    except ValueError as error:
        str(error).encode("utf-8", "replace")
        return
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    assert check(found) == found


SHAPE = record(
    {"a": line(5, 1), "b": number(0, 9, whole=True)},
    c=list_of(lenient(d=flag, e=one_of("x", "y")), 3),
    f=line(3, cut=True),
)


@given(damaged_json([{"a": "text", "b": 5, "c": [{"d": True, "e": "x"}], "f": "long"}]))
@fuzzed(300)
def test_a_shape_gives_what_it_would_take_again(value: Any) -> None:
    try:
        found = SHAPE(value)
    except ValueError:
        return
    assert SHAPE(found) == found


# ------------------------------------------------------------------------------------------ journals and logs

JOURNAL = b"\n".join(
    seal(one)
    for one in (
        {"format": 1, "job": LEASE["url"], "cid": 5, "name": "v80-7", "size": None},
        {"size": 1000},
        {"held": [0, 100], "digest": "ab"},
        {"held": [100, 300], "digest": "cd"},
    )
)


@given(damaged_bytes([JOURNAL]))
@fuzzed(400)
def test_a_journal_is_read_as_far_as_it_is_whole(content: bytes) -> None:
    found = read_journal(content)
    assert found is None or found.claimed_bytes <= 300 * 2


@given(
    st.lists(
        damaged_json([{"format": 1, "job": "a", "cid": 5, "name": "v", "size": 9, "held": [0, 5], "digest": "a"}]),
        max_size=3,
    )
)
@fuzzed(300)
def test_a_journal_whose_lines_are_whole_and_say_nonsense_is_read(lines: list[Any]) -> None:
    read_journal(b"\n".join(map(seal, lines)))
    assert all(isinstance(unseal(seal(one)), dict) for one in lines)


RESULTS = b'\n["BV1xx411c7mD?p=1&cid=5", "music/A.mp4", 5, 1.5, "A", "1080P", ""]\n{"told": "ab"}'


@given(
    st.one_of(
        damaged_bytes([RESULTS]),
        damaged_json([json.loads(RESULTS.splitlines()[1])]).map(lambda one: json.dumps(one).encode()),
    )
)
@fuzzed(150)
def test_a_log_of_results_is_read_as_far_as_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "results-fuzzed.jsonl"
    path.write_bytes(content)
    log = ResultLog(path)
    assert all(isinstance(result, Result) for _url, result in log.oldest_first())
    log.owed()


# ------------------------------------------------------------------------------------------ replies of mirrors

NUMBER = st.one_of(
    st.integers(-2, 2**64).map(str), st.sampled_from(["", "*", "²", "٣", "9" * 5000, "1e5", "0x5", "-0"])
)
RANGES = st.one_of(st.tuples(NUMBER, NUMBER, NUMBER).map(lambda n: f"bytes {n[0]}-{n[1]}/{n[2]}"), st.text(max_size=20))
DATES = st.sampled_from(
    ["Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 99 Jan 99999 99:99:99 +9999", "Mon, 01 Jan 0001 00:00:00 +1400"]
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Content-Range": RANGES,
        "Content-Length": NUMBER,
        "Retry-After": st.one_of(NUMBER, DATES, st.text(max_size=30)),
        "Content-Type": st.text(max_size=20),
        "Content-Encoding": st.text(max_size=10),
    },
)
ASKED = st.builds(
    Asked, st.integers(0, 100), st.integers(101, 2**40), st.one_of(st.none(), st.integers(200, 2**40)), st.booleans()
)


@given(st.sampled_from([200, 206, 301, 403, 404, 416, 429, 500, 503, 999]), HEADERS, ASKED)
@example(200, {"Content-Length": "9" * 5000}, Asked(0, 5, None, True))
@example(503, {"Retry-After": "²"}, Asked(0, 5))
@fuzzed(600)
def test_a_reply_is_judged(status: int, headers: Mapping[str, str], asked: Asked) -> None:
    verdict = judge(status, headers, asked)
    assert 0 <= verdict.retry_after_seconds <= 86400
    if verdict.meaning.name == "RANGE":
        assert verdict.stop is not None and asked.start < verdict.stop <= asked.stop
    assert 0 <= parse_retry_after(headers.get("Retry-After", ""), 0.0) <= 86400
    found = parse_content_range(headers.get("Content-Range", ""))
    assert found is None or found.start is None or (found.stop or 0) > found.start


# ------------------------------------------------------------------------------------------ records of finished pages

NAMES = st.text(st.sampled_from("ab高 P12345[]/\\:\x01\x02\x06=<>?.&\ud800"), max_size=24)
URLS = st.sampled_from([LEASE["url"], "BV1xx411c7mD?p=12&cid=1234", "ep123?cid=99", "cheese:ep456?cid=14"])


@given(
    NAMES, URLS, NAMES, NAMES, st.sampled_from(["{title} [{id}]", "P{number} {title}", "{title}/{cid}", "{path}", ""])
)
@fuzzed(500)
def test_what_is_packed_is_unpacked_as_it_was(path: str, url: str, title: str, stored: str, form: str) -> None:
    path = path or form.format(title=title, id="BV1xx411c7mD", number="01", cid=1234, path=path)
    patterns = {
        "path": records.path_pattern(path, url, title),
        "stored": records.stored_pattern(stored, path, url, title),
    }
    words = {f"<{place}": text for place, text in enumerate(patterns.values()) if not text.startswith(records.LITERAL)}
    as_words = {
        name: str(place) if f"<{place}" in words else text for place, (name, text) in enumerate(patterns.items())
    }
    long = {name: text if text.startswith(records.LITERAL) else f"={text}" for name, text in patterns.items()}
    packed = {
        "url": url,
        "title": title,
        "bytes": "5",
        "tenths": "45",
        "worker": "=w",
        "streams": "=",
        "category": "=m",
    }
    for kept in (as_words, long):  # as lua/common.lua keeps them
        found = records.unpacked({**packed, **kept}, words)
        assert (found["path"], found["stored"], found["seconds"]) == (path, stored, "4.5")


# ------------------------------------------------------------------------------------------ files of media


def moov(*traks: bytes) -> bytes:
    return box(b"moov", full(b"mvhd", bytes(96)), *traks)


TRAK = trak(stts=(5, 40, 1, 10), duration=210)
COMMENT = box(
    b"udta",
    full(b"meta", full(b"hdlr", bytes(21)), box(b"ilst", box(b"\xa9cmt", box(b"data", numbers(1, 0), b"cid=5")))),
)
MP4 = [
    plain(TRAK, trak(2, b"soun", b"mp4a", stts=(9, 24), duration=216), extra=COMMENT),
    FTYP + moov(trak()) + fragment(10) + fragment(10, 3) + fragment(20),
]
MP4_READERS = (
    *(mp4_boxes.check_plain, mp4_boxes.check_fragmented, mp4_boxes.read_stream),
    *(mp4_boxes.read_tracks, mp4_boxes.read_comment, mp4_boxes.read_extras),
)


@given(damaged_bytes(MP4))
@fuzzed(300)
def test_a_damaged_mp4_is_read_or_refused(data: bytes) -> None:
    with in_bounded_memory():
        for read in MP4_READERS:
            try:
                read(*as_file(data))
            except MergeError:
                continue


FLV = b"FLV\x01\x05\x00\x00\x00\x09\x00\x00\x00\x00" + b"".join(
    bytes([kind]) + (3).to_bytes(3, "big") + at.to_bytes(3, "big") + bytes(4) + body + (14).to_bytes(4, "big")
    for kind, at, body in ((9, 0, b"\x17\x01\x00"), (8, 0, b"\xaf\x01\x00"), (9, 40, b"\x27\x01\x00"))
)


@given(damaged_bytes([FLV]))
@fuzzed(200)
def test_a_damaged_flv_is_read_or_refused(data: bytes) -> None:
    with in_bounded_memory():
        try:
            mp4_boxes.read_flv_tracks(*as_file(data))
        except MergeError:
            return


def element(identity: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes.fromhex(identity) + (0x0100000000000000 | len(body)).to_bytes(8, "big") + body


TRACKS = element("1654ae6b", element("ae", element("d7", b"\1"), element("83", b"\1"), element("86", b"V_AV1")))
INFO = element("1549a966", element("2ad7b1", b"\x0f\x42\x40"), element("4489", bytes.fromhex("408f400000000000")))
CLUSTER = element(
    "1f43b675", element("e7", b"\0"), element("a3", b"\x81\0\0\x80frame"), element("a3", b"\x81\0\x28\0frame")
)
TAGS = element("1254c367", element("7373", element("67c8", element("45a3", b"COMMENT"), element("4487", b"cid=5"))))
MKV = element("1a45dfa3", element("4282", b"matroska")) + element("18538067", INFO, TRACKS, TAGS, CLUSTER, CLUSTER)


def test_the_whole_ones_are_whole() -> None:
    assert matroska.read_matroska(*as_file(MKV)).comment == "cid=5"
    assert len(mp4_boxes.read_stream(*as_file(MP4[0]))) == 2
    assert mp4_boxes.read_comment(*as_file(MP4[0])) == "cid=5"
    assert mp4_boxes.read_stream(*as_file(MP4[1]))
    assert mp4_boxes.read_flv_tracks(*as_file(FLV))
    assert danmaku.parse_segment(SEGMENT)[0].text == "弹幕"
    assert read_journal(JOURNAL) is not None


@given(damaged_bytes([MKV]))
@fuzzed(300)
def test_a_damaged_matroska_is_read_or_refused(data: bytes) -> None:
    with in_bounded_memory():
        for read in (matroska.read_matroska, matroska.read_comment):
            try:
                read(*as_file(data))
            except MergeError:
                continue
