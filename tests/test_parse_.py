"""The pure parsers: ids, targets, API answers and pages, whole and broken."""

from __future__ import annotations

import copy
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import parse_
from config import Category
from errors import CircumstanceError, DownloaderError, JobError, PermanentError, RiskControl, SiteError, TransientError
from model import JobId, Target
from parse_ import (
    MAX_AID,
    MAX_CID,
    SiteHosts,
    aid_to_bvid,
    bvid_to_aid,
    parse_initial_state,
    parse_job_id,
    parse_playinfo_html,
    parse_playurl,
    parse_ranking,
    parse_season,
    parse_spi,
    parse_target,
    parse_view,
    parse_wbi_keys,
    sign_wbi,
)
from source_ids import MAX_KEYWORD_CHARACTERS, NAMED, NUMBERED, SEARCH, Source

DATA = Path(__file__).parent / "data"
STAND_IN = SiteHosts("http://127.0.0.1:8000/site", "http://127.0.0.1:8000/api", "http://127.0.0.1:8000/b23")
KNOWLEDGE = Category("知识", 1010)

unhurried = settings(deadline=None)
"""A loaded machine is no failure: pytest's own timeout holds."""

aids = st.integers(1, MAX_AID)


def golden(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


def golden_json(name: str) -> Any:
    return json.loads(golden(name))


def changed(name: str, change: Callable[[Any], object]) -> str:
    answer = golden_json(name)
    change(answer)
    return json.dumps(answer)


# ------------------------------------------------------------------------------------------ ids


@pytest.mark.parametrize(
    ("aid", "bvid"),
    [
        (2, "BV1xx411c7mD"),
        (170001, "BV17x411w7KC"),
        (99999999, "BV1y7411Q7Eq"),
        (517751921, "BV1Eg411v7a1"),
        (111298867365120, "BV1L9Uoa9EUx"),
    ],
)
def test_known_pairs_of_both_numberings(aid: int, bvid: str) -> None:
    assert aid_to_bvid(aid) == bvid
    assert bvid_to_aid(bvid) == aid


@unhurried
@given(aids)
@example(1)
@example(MAX_AID)
def test_every_aid_comes_back(aid: int) -> None:
    assert bvid_to_aid(aid_to_bvid(aid)) == aid


@unhurried
@given(st.text(parse_._BV_ALPHABET, min_size=9, max_size=9).map("BV1".__add__))
def test_a_bvid_is_refused_or_canonical(bvid: str) -> None:
    try:
        aid = bvid_to_aid(bvid)
    except ValueError:
        return
    assert aid_to_bvid(aid) == bvid


@pytest.mark.parametrize(
    "bvid", ["", "BV", "bv1xx411c7mD", "BV2xx411c7mD", "BV1xx411c7m0", "BV1xx411c7mD\n", "BV1ZZZZZZZZZ"]
)
def test_wrong_bvids_are_refused(bvid: str) -> None:
    with pytest.raises(ValueError, match="BV id"):
        bvid_to_aid(bvid)


@pytest.mark.parametrize("aid", [0, -1, MAX_AID + 1])
def test_aids_out_of_range_are_refused(aid: int) -> None:
    with pytest.raises(ValueError, match="av numbers"):
        aid_to_bvid(aid)


keywords = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=MAX_KEYWORD_CHARACTERS)
sources = st.one_of(
    st.builds(Source, st.sampled_from(NUMBERED), st.integers(1, MAX_CID)),
    st.builds(Source, st.sampled_from(NAMED)),
    st.builds(Source, st.just(SEARCH), keyword=keywords),
    st.just(Source("rank:", 0)),
)
job_ids = st.one_of(
    st.builds(JobId, bvid=aids.map(aid_to_bvid)),
    st.builds(JobId, bvid=aids.map(aid_to_bvid), number=st.integers(1, 99_999), cid=st.integers(0, MAX_CID)),
    st.builds(JobId, episode_id=st.integers(1, MAX_CID), cid=st.integers(0, MAX_CID)),
    st.builds(JobId, source=sources.map(str)),
)


@unhurried
@given(job_ids)
def test_a_job_id_comes_back(job: JobId) -> None:
    assert parse_job_id(str(job)) == job


@unhurried
@given(
    st.one_of(
        st.text(),
        st.from_regex(r"(BV1xx411c7mD|ep\d+)[?p=&cid\d]*", fullmatch=True),
        st.from_regex(
            r"(mid|favs?|season|rank|cheese):(ss|ep)?\d+|weekly(:\d+)?|search:(%[0-9A-Fa-f]{2}|.)+", fullmatch=True
        ),
    )
)
def test_no_other_text_is_a_job_id(text: str) -> None:
    try:
        job = parse_job_id(text)
    except ValueError:
        return
    assert str(job) == text


@pytest.mark.parametrize(
    "text",
    [
        *("BV1xx411c7mD?cid=9", "BV1xx411c7mD?p=0", "BV1xx411c7mD?p=03", "BV1xx411c7mD?p=3&cid=0", "ep1?p=1&cid=9"),
        *("av2", "ep0", "ep١", "BV1xx411c7mD?p=3&cid=9\n", "BV1ZZZZZZZZZ?p=1", "ep9999999999999999", ""),
        *(
            "mid:0",
            "mid:01",
            "mid:٣",
            "MID:1",
            "mid:1 ",
            "mid:9007199254740992",
            "ss0",
            "ss1\n",
            "cheese:1",
            "weekly:0",
        ),
        *("rank:", "rank:00", "later:1", "search:", "search:%20", "search:a b", "search:%e7%8c%ab", "search:%FF"),
        *("search:%61", "search:a%20%20b", "search:%0A", "search:" + "a" * 101),
    ],
)
def test_texts_that_are_no_job_id(text: str) -> None:
    with pytest.raises(ValueError, match="id"):
        parse_job_id(text)


# ------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("BV1xx411c7mD", "BV1xx411c7mD"),
        ("  bv1xx411c7mD\n", "BV1xx411c7mD"),
        ("BV1xx411c7mD?p=1", "BV1xx411c7mD?p=1"),
        ("BV1xx411c7mD?vd_source=1#reply", "BV1xx411c7mD"),
        ("av2", "BV1xx411c7mD"),
        ("AV170001?p=3", "BV17x411w7KC?p=3"),
        ("ep330798", "ep330798"),
        ("EP330798?p=4", "ep330798"),
        ("https://www.bilibili.com/video/BV1xx411c7mD", "BV1xx411c7mD"),
        ("https://www.bilibili.com/video/BV1xx411c7mD/?spm_id_from=333.1007&p=2&vd_source=f", "BV1xx411c7mD?p=2"),
        ("https://www.bilibili.com/s/video/av2", "BV1xx411c7mD"),
        ("http://m.bilibili.com/video/av170001.html".removesuffix(".html"), "BV17x411w7KC"),
        ("HTTPS://WWW.BILIBILI.COM/video/BV1xx411c7mD?t=30#a", "BV1xx411c7mD"),
        ("bilibili.com/video/BV1xx411c7mD", "BV1xx411c7mD"),
        ("https://www.bilibili.com:443/bangumi/play/ep330798?from_spmid=1", "ep330798"),
        ("https://b23.tv/BV1xx411c7mD", "BV1xx411c7mD"),
        ("https://b23.tv/ep330798", "ep330798"),
        ("http://127.0.0.1:8000/site/video/BV1xx411c7mD?p=9", "BV1xx411c7mD?p=9"),
        ("http://127.0.0.1:8000/site/bangumi/play/ep1/", "ep1"),
        ("http://127.0.0.1:8000/b23/av2", "BV1xx411c7mD"),
    ],
)
def test_targets(text: str, job: str) -> None:
    assert parse_target(text, STAND_IN) == Target(id=job)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("https://b23.tv/aBc123?share_medium=android", "https://b23.tv/aBc123"),
        ("b23.tv/aBc123/", "https://b23.tv/aBc123"),
        ("http://127.0.0.1:8000/b23/aBc123", "http://127.0.0.1:8000/b23/aBc123"),
    ],
)
def test_short_links_are_left_to_a_resolver_without_their_query(text: str, link: str) -> None:
    assert parse_target(text, STAND_IN) == Target(short_link=link)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "1",
            "BV",
            "BV1xx411c7m",
            "av",
            "av0",
            "av2251799813685248",
            "av99999999999999999999999",
            "ep0",
            "foo",
        ),
        *("http://127.0.0.1/video/BV1xx411c7mD", "http://169.254.169.254/latest", "http://[::1]/video/av2"),
        *("http://2130706433/video/av2", "file:///etc/passwd", "ftp://www.bilibili.com/video/av2", "javascript:1.2"),
        *("https://www.bilibili.com@127.0.0.1/video/av2", "https://u:p@www.bilibili.com/video/av2"),
        *("https://www.bilibili.com\\@127.0.0.1/video/av2", "https://www.bilibili.com/video/av2\r\nHost: x"),
        *("https://www.bilibili.com.evil.example/video/av2", "https://evilbilibili.com/video/av2"),
        *("https://www.bilibili.com:6379/video/av2", "https://www.bilibili.com:0/video/av2", "https://b23.tv:1/abc"),
        *(
            "https://www.bilibili.com/video/",
            "https://www.bilibili.com/",
            "https://space.bilibili.com/1",
            "https://b23.tv/",
        ),
        *("https://b23.tv/a/b", "https://b23.tv/../x", "BV1xx411c7mD?p=0", "BV1xx411c7mD?p=-1", "BV1xx411c7mD?p=x"),
        *(
            "http://127.0.0.1:8001/site/video/av2",
            "http://127.0.0.1:8000/sitevideo/av2",
            "http://[",
            pytest.param("x" * 3000, id="long"),
        ),
        *("av１２", "https://www.bilibili.com/video/BV1xx411c7mD extra"),
    ],
)
def test_targets_that_are_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_target(text, STAND_IN)
    assert str(refused.value)
    assert len(str(refused.value)) < 300


odd_texts = st.one_of(
    st.text(),
    st.text(string.printable),
    st.builds(
        "".join,
        st.lists(
            st.sampled_from(
                [
                    "https://",
                    "www.bilibili.com",
                    "/video/",
                    "BV1xx411c7mD",
                    "?p=",
                    "1",
                    "@",
                    ":",
                    "[",
                    "av",
                    "#",
                    "%",
                    "/b23",
                ]
            )
        ),
    ),
)


@unhurried
@given(odd_texts)
def test_a_target_is_refused_or_canonical(text: str) -> None:
    try:
        target = parse_target(text, STAND_IN)
    except ValueError:
        return
    if target.id:
        assert str(parse_job_id(target.id)) == target.id
        assert not parse_job_id(target.id).is_page
    else:
        assert target.short_link.startswith(("https://b23.tv/", STAND_IN.short_url + "/"))


# ------------------------------------------------------------------------------------------ videos


def test_a_video_of_three_pages() -> None:
    video = parse_view(golden("view_three_pages.json"))
    assert (video.bvid, video.aid, video.owner, video.episode_id) == (
        aid_to_bvid(113764301),
        113764301,
        "某位老师",
        None,
    )
    assert video.title == "光 & 影：三讲"
    assert [(page.number, page.cid) for page in video.pages] == [(1, 27651390101), (2, 27651390102), (3, 27651390103)]
    assert [page.title for page in video.pages] == ["光是什么", "光速怎么量 & 谁量的", video.title]
    assert video.pages[1].duration_seconds == 845
    assert video.notes == ()


def test_a_video_that_redirects_to_an_episode() -> None:
    assert parse_view(golden("view_episode.json")).episode_id == 330798


def test_an_interactive_video_has_its_first_branch_and_a_note() -> None:
    video = parse_view(golden("view_interactive.json"))
    assert len(video.pages) == 1
    assert "interactive" in video.notes[0]


def test_pages_that_the_site_announces_but_does_not_list_are_noted() -> None:
    video = parse_view(changed("view_three_pages.json", lambda a: a["data"].update(videos=5)))
    assert "5" in video.notes[0]


def test_a_video_without_a_page_list_is_its_only_page() -> None:
    video = parse_view(changed("view_episode.json", lambda a: a["data"].update(pages=None)))
    assert [(page.number, page.cid) for page in video.pages] == [(1, 27651390201)]


@pytest.mark.parametrize(
    "change",
    [
        lambda pages: pages.append(dict(pages[0])),
        lambda pages: pages[2].update(page=1),
        lambda pages: pages[1].pop("cid"),
        lambda pages: pages[1].update(cid="x"),
        lambda pages: pages[1].update(page=True),
        lambda pages: pages.append(None),
    ],
)
def test_one_page_that_cannot_be_read_makes_the_answer_wrong(change: Callable[[Any], object]) -> None:
    with pytest.raises(SiteError):
        parse_view(changed("view_three_pages.json", lambda a: change(a["data"]["pages"])))


def test_titles_have_no_control_characters_and_can_be_encoded() -> None:
    title = parse_view(
        changed("view_three_pages.json", lambda a: a["data"].update(title="a\x00\r\n\ud800b\u2028" + "长" * 5000))
    ).title
    title.encode()
    assert title.startswith("a \ufffdb ")
    assert len(title) == parse_.MAX_TITLE_CHARACTERS


@pytest.mark.parametrize(
    ("code", "error"),
    [
        *((code, PermanentError) for code in (-404, 62002, 62004, 62012, -403, -10403, -688, -689, 87007, 87008, -101)),
        *((code, RiskControl) for code in (-352, -412, -509, -799, -401)),
        *((code, SiteError) for code in (-400, -500, -503, 12345)),
        (62003, TransientError),
        (-102, CircumstanceError),
    ],
)
def test_codes(code: int, error: type[JobError]) -> None:
    with pytest.raises(error) as raised:
        parse_view(json.dumps({"code": code, "message": "啥都木有", "ttl": 1}))
    assert raised.value.code == str(code)
    assert len(str(raised.value)) > 10  # the sentence; the code is shown beside it


def test_a_golden_deleted_video() -> None:
    with pytest.raises(PermanentError, match="deleted"):
        parse_view(golden("view_deleted.json"))


@pytest.mark.parametrize("place", ["data", "result"])
def test_a_puzzle_instead_of_an_answer_is_risk_control(place: str) -> None:
    text = json.dumps({"code": 0, "message": "0", place: {"v_voucher": "voucher_x"}})
    for parse in (parse_view, parse_playurl):
        with pytest.raises(RiskControl) as raised:
            parse(text)
        assert raised.value.code == "v_voucher"
        assert "voucher_x" not in str(raised.value)
    with pytest.raises(RiskControl) as raised:
        parse_view(json.dumps({"code": -352, place: {"v_voucher": "voucher_x"}}))
    assert raised.value.code == "-352"


def test_an_episode_out_of_its_season() -> None:
    video = parse_season(golden("season.json"), 330799)
    assert (video.episode_id, video.aid, video.title) == (330799, 113764304, "《远行记》第2话 渡口")
    assert [(page.number, page.cid, page.duration_seconds) for page in video.pages] == [(1, 27651390202, 1426.048)]


def test_an_episode_of_a_side_section() -> None:
    assert parse_season(golden("season.json"), 330900).title == "远行记 PV1 先导片"


def test_an_episode_that_is_not_in_its_season() -> None:
    with pytest.raises(SiteError, match="5"):
        parse_season(golden("season.json"), 5)


def test_the_page_says_the_same_as_the_api() -> None:
    assert parse_initial_state(golden("video_page.html")) == parse_view(golden("view_three_pages.json"))


def test_an_old_page_of_an_episode() -> None:
    episode = {"id": 9, "aid": 170001, "cid": 7, "title": "1", "long_title": "启程", "share_copy": ""}
    state = json.dumps({"epInfo": episode, "mediaInfo": {"title": "远行记"}})
    video = parse_initial_state(f"<script>window.__INITIAL_STATE__ = {state};(function(){{}})</script>")
    assert (video.episode_id, video.bvid, video.title, video.pages[0].cid) == (9, "BV17x411w7KC", "远行记 1 启程", 7)


def test_a_page_of_risk_control() -> None:
    with pytest.raises(RiskControl):
        parse_initial_state(golden("risk_page.html"))


@pytest.mark.parametrize("error", [{"code": 404, "trueCode": -404, "message": "啥都木有"}, {"code": 62002}])
def test_a_page_of_a_video_that_is_gone(error: object) -> None:
    with pytest.raises(PermanentError):
        parse_initial_state(f"<script>window.__INITIAL_STATE__={json.dumps({'error': error})};</script>")


def test_a_page_without_anything() -> None:
    for parse in (parse_initial_state, parse_playinfo_html):
        with pytest.raises(SiteError):
            parse("<html></html>")


# ------------------------------------------------------------------------------------------ streams


def test_dash() -> None:
    playinfo = parse_playurl(golden("playurl_dash.json"))
    assert playinfo.duration_seconds == 611.904
    assert [(s.id, s.codecid) for s in playinfo.videos[:4]] == [(80, 7), (80, 12), (80, 13), (64, 7)]
    assert [s.id for s in playinfo.audios] == [30280, 30232, 30216]
    assert (playinfo.videos[0].width, playinfo.videos[0].bandwidth, playinfo.videos[0].codecs) == (
        1920,
        2104046,
        "avc1.640032",
    )
    assert [url.split("/")[2] for url in playinfo.videos[0].urls] == [
        *("xy1x2x3x4xy.mcdn.bilivideo.cn:4483", "upos-sz-mirrorcos.bilivideo.com", "upos-hz-mirrorakam.akamaized.net")
    ]
    assert playinfo.deadline == 1763999000
    assert playinfo.segments == ()


def test_signed_addresses_are_in_no_repr() -> None:
    for name in ("playurl_dash.json", "playurl_durl.json"):
        assert "upsig" not in repr(parse_playurl(golden(name)))


def test_dolby_and_flac_are_offered() -> None:
    playinfo = parse_playurl(golden("playurl_dolby_flac.json"))
    assert {s.id for s in playinfo.audios} == {30280, 30232, 30216, 30250, 30251}


def test_what_the_video_has_is_announced_in_two_lists_that_may_differ_or_be_broken() -> None:
    def announced(**lists: object) -> tuple[int, ...]:
        durl = [{"order": 1, "size": 1, "length": 1, "url": "https://a/"}]
        return parse_playurl(json.dumps({"code": 0, "data": {"durl": durl, "quality": 32, **lists}})).announced

    assert announced() == announced(accept_quality=None, support_formats="no") == ()
    assert announced(accept_quality=[80, 64, 32], support_formats=[{"quality": 112}, {"quality": 80}, 7]) == (
        *(112, 80, 64, 32),
    )
    assert announced(accept_quality=[80, "64", None, -1, True], support_formats=[{}]) == (80, 64)


def test_a_video_without_sound() -> None:
    playinfo = parse_playurl(golden("playurl_no_audio.json"))
    assert playinfo.videos and not playinfo.audios


def test_durl_in_three_segments() -> None:
    playinfo = parse_playurl(golden("playurl_durl.json"))
    assert [(s.order, s.size_bytes) for s in playinfo.segments] == [(1, 23018310), (2, 22817000), (3, 40111222)]
    assert (playinfo.segments_qn, playinfo.duration_seconds, playinfo.deadline) == (64, 1437.918, 1764000000)
    assert len(playinfo.segments[0].urls) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda durl: durl.pop(1),
        lambda durl: durl[1].update(order=1),
        lambda durl: durl[1].update(url="", backup_url=None),
        lambda durl: durl.__setitem__(1, None),
        lambda durl: durl.extend({**durl[0], "order": order} for order in range(4, 258)),
    ],
)
def test_a_durl_with_a_hole_or_without_an_end_is_refused(change: Callable[[Any], object]) -> None:
    with pytest.raises(SiteError):
        parse_playurl(changed("playurl_durl.json", lambda a: change(a["data"]["durl"])))


@pytest.mark.parametrize("name", ["pgc_playurl.json", "pgc_playurl_v2.json"])
def test_the_bangumi_player(name: str) -> None:
    playinfo = parse_playurl(golden(name))
    assert playinfo.duration_seconds == 1426.048
    assert len(playinfo.videos) == 2


def test_the_bangumi_player_wrapped_twice() -> None:
    inner = golden_json("pgc_playurl_v2.json")
    assert parse_playurl(json.dumps({"code": 0, "data": inner})).videos


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("pgc_playurl.json", lambda a: a["result"].update(is_preview=1), "preview"),
        ("pgc_playurl_v2.json", lambda a: a["result"]["play_check"].update(play_detail="PLAY_PREVIEW"), "preview"),
        ("playurl_durl.json", lambda a: a["data"].update(accept_description=["试看"]), "preview"),
        ("pgc_playurl.json", lambda a: a["result"].update(is_drm=True), "drm"),
        ("pgc_playurl.json", lambda a: a["result"]["dash"]["video"][0].update(drm_type=2), "drm"),
        (
            "pgc_playurl_v2.json",
            lambda a: a["result"].update(video_info={}, play_check={"play_detail": "PLAY_NONE"}),
            "-10403",
        ),
        (
            "pgc_playurl_v2.json",
            lambda a: a["result"].update(
                video_info=None, plugins=[{"name": "AreaLimitPanel", "config": {"is_block": True}}]
            ),
            "-10403",
        ),
    ],
)
def test_what_is_not_the_whole_video_is_permanent(name: str, change: Callable[[Any], object], code: str) -> None:
    with pytest.raises(PermanentError) as raised:
        parse_playurl(changed(name, change))
    assert raised.value.code == code


def test_streams_without_a_usable_address_are_not_offered() -> None:
    def change(answer: Any) -> None:
        answer["data"]["dash"] = {
            "video": [{"id": 80, "codecid": 7, "baseUrl": "ftp://x/", "backupUrl": ["https://a b", 5]}]
        }

    with pytest.raises(SiteError, match="no streams"):
        parse_playurl(changed("playurl_dash.json", change))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_video_whose_picture_or_sound_cannot_be_had_is_not_offered_without_it(kind: str) -> None:
    """It would be recorded as done, for good."""

    def change(answer: Any) -> None:
        for stream in answer["data"]["dash"][kind]:
            stream |= dict.fromkeys(("baseUrl", "base_url"), "file:///etc/passwd") | {"backupUrl": 7, "backup_url": []}
        answer["data"]["dash"] |= {"flac": None, "dolby": None}

    with pytest.raises(SiteError, match="no streams"):
        parse_playurl(changed("playurl_dash.json", change))


def test_the_streams_of_a_page_are_taken_only_for_the_part_that_it_plays() -> None:
    page = golden("video_page.html")
    assert parse_playinfo_html(page, 27651390102).duration_seconds == 845.12
    assert parse_playinfo_html(page).videos
    with pytest.raises(SiteError, match="another part"):
        parse_playinfo_html(page, 27651390101)
    with pytest.raises(SiteError, match="another part"):
        parse_playinfo_html(page.replace('"p":2,', ""), 27651390102)


def test_wrong_texts_are_bounded() -> None:
    for text in (
        "[" * 200_000,
        '{"code":' + "9" * 5000 + "}",
        '{"code":1e400}',
        '{"code":NaN}',
        " " * (9 * 1024 * 1024),
        "",
    ):
        with pytest.raises(SiteError):
            parse_view(text)


@pytest.mark.parametrize("number", ["1e400", "-1e999", "NaN", "Infinity", pytest.param("9" * 5000, id="long")])
def test_no_number_is_infinite(number: str) -> None:
    text = golden("view_three_pages.json").replace('"duration": 612', f'"duration": {number}')
    with pytest.raises(SiteError):
        parse_view(text)


def test_errors_do_not_carry_the_answer() -> None:
    with pytest.raises(SiteError) as raised:
        parse_playurl('{"code": 0, "data": {"dash": "https://x/?upsig=secret" ')
    assert raised.value.__cause__ is None
    assert "upsig" not in str(raised.value)


# ------------------------------------------------------------------------------------------ signatures, cookies


def test_the_documented_signature() -> None:
    keys = parse_wbi_keys(golden("nav_guest.json"))
    assert keys == ("7cd084941338484aae1ad9425b84077c", "4932caff0ff746eab6f01bf08b70ac45")
    assert sign_wbi({"foo": "114", "bar": "514", "zab": 1919810}, keys, 1702204169) == {
        **{"foo": "114", "bar": "514", "zab": "1919810", "wts": "1702204169"},
        "w_rid": "8f6f2b5b3d485fe1886cec6a0be8c5d4",
    }


def test_a_signature_leaves_out_what_the_site_leaves_out() -> None:
    keys = parse_wbi_keys(golden("nav_guest.json"))
    odd = sign_wbi({"q": "五 一!'()*四"}, keys, 1)
    assert odd["q"] == "五 一四"
    assert odd["w_rid"] == sign_wbi({"q": "五 一四"}, keys, 1)["w_rid"]


@pytest.mark.parametrize("url", [None, 5, "", "https://x/short.png", "https://x/" + "我" * 32 + ".png"])
def test_keys_of_another_form_are_refused(url: object) -> None:
    with pytest.raises(SiteError):
        parse_wbi_keys(changed("nav_guest.json", lambda a: a["data"]["wbi_img"].update(img_url=url)))


def test_buvids() -> None:
    assert parse_spi(golden("spi.json"))[0].endswith("infoc")
    with pytest.raises(SiteError):
        parse_spi(changed("spi.json", lambda a: a["data"].update(b_3="x\r\nCookie: y")))


# ------------------------------------------------------------------------------------------ rankings


def test_a_ranking_of_its_region() -> None:
    text = golden("ranking_1010.json")
    assert parse_ranking(text, KNOWLEDGE) == [aid_to_bvid(aid) for aid in (501, 502, 503, 504)]
    assert parse_ranking(text, Category("科学科普", 1010, frozenset({201, 2094}))) == [
        aid_to_bvid(501),
        aid_to_bvid(504),
    ]
    assert parse_ranking(text, Category("财经", 1010, frozenset({2087}))) == [aid_to_bvid(502)]
    assert parse_ranking(text, Category("无", 1010, frozenset({1}))) == []


def test_the_list_of_the_whole_site_is_only_right_for_the_whole_site() -> None:
    text = golden("ranking_all.json")
    assert len(parse_ranking(text, Category("首页", 0))) == 4
    for category in (KNOWLEDGE, Category("旧", 36), Category("科学科普", 1010, frozenset({201}))):
        with pytest.raises(SiteError, match=str(category.rid)):
            parse_ranking(text, category)


def test_a_stray_item_is_left_out() -> None:
    def change(answer: Any) -> None:
        answer["data"]["list"].append(golden_json("ranking_all.json")["data"]["list"][0])

    assert len(parse_ranking(changed("ranking_1010.json", change), KNOWLEDGE)) == 4


def without(*names: str) -> Callable[[Any], None]:
    def change(answer: Any) -> None:
        for item in answer["data"]["list"]:
            for name in names:
                item.pop(name)

    return change


def test_sub_regions_tell_the_main_region_where_it_is_not_named() -> None:
    assert len(parse_ranking(changed("ranking_1010.json", without("pid_v2")), KNOWLEDGE)) == 4
    with pytest.raises(SiteError, match="1010"):
        parse_ranking(changed("ranking_all.json", without("pid_v2")), KNOWLEDGE)


def test_a_ranking_that_cannot_be_checked_is_refused() -> None:
    text = changed("ranking_1010.json", without("pid_v2", "tidv2", "tid"))
    assert len(parse_ranking(text, Category("首页", 0))) == 4
    with pytest.raises(SiteError, match="does not say"):
        parse_ranking(text, KNOWLEDGE)


def test_a_ranking_has_each_video_once_and_may_be_empty() -> None:
    def twice(answer: Any) -> None:
        answer["data"]["list"] *= 2

    assert len(parse_ranking(changed("ranking_1010.json", twice), KNOWLEDGE)) == 4
    assert parse_ranking(changed("ranking_1010.json", lambda a: a["data"].update(list=[])), KNOWLEDGE) == []


@pytest.mark.parametrize(
    ("sub", "main"), [(2001, 1001), (2008, 1001), (2009, 1002), (2084, 1010), (2095, 1010), (2205, 1031)]
)
def test_main_regions_of_sub_regions(sub: int, main: int) -> None:
    assert parse_._belongs({"tidv2": sub}, Category("x", main)) is True
    assert parse_._belongs({"tidv2": sub}, Category("x", main + 1)) is False


# ------------------------------------------------------------------------------------------ broken texts

PARSERS: dict[str, Callable[[str], object]] = {
    "view_three_pages.json": parse_view,
    "view_episode.json": parse_view,
    "view_interactive.json": parse_view,
    "season.json": lambda text: parse_season(text, 330900),
    "playurl_no_audio.json": parse_playurl,
    "playurl_durl.json": parse_playurl,
    "playurl_dolby_flac.json": parse_playurl,
    "pgc_playurl_v2.json": parse_playurl,
    "nav_guest.json": parse_wbi_keys,
    "spi.json": parse_spi,
    "ranking_1010.json": lambda text: parse_ranking(text, Category("科学科普", 1010, frozenset({201}))),
}
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**63, 10**400, -0.5, 1e308, "", "x", "9", "\ud800", [], {}, [[]], [None], {"": 0}),
    *(["x"], [{}], {"v_voucher": []}, {"code": "0"}, "https://", 27651390101),
)


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        found += nodes(child, (*path, key))
    return found


def mutated(answer: Any, draw: random.Random) -> str:
    answer = copy.deepcopy(answer)
    for _turn in range(draw.randint(1, 3)):
        paths = nodes(answer)
        if not paths:
            break
        path = draw.choice(paths)
        parent = answer
        for key in path[:-1]:
            parent = parent[key]
        if draw.random() < 0.4:
            del parent[path[-1]]
        else:
            parent[path[-1]] = copy.deepcopy(draw.choice(ODD_VALUES))
    return json.dumps(answer)


@pytest.mark.parametrize("name", PARSERS)
@settings(unhurried, max_examples=60)
@given(draw=st.randoms(use_true_random=False))
def test_a_mutated_answer_is_a_record_or_an_error_of_ours(name: str, draw: random.Random) -> None:
    try:
        record = PARSERS[name](mutated(golden_json(name), draw))
    except DownloaderError:
        return
    assert record is not None
    repr(record).encode("utf-8", "strict")


@settings(unhurried, max_examples=20)
@given(draw=st.randoms(use_true_random=False))
def test_every_node_of_a_view_may_be_anything(draw: random.Random) -> None:
    # Each single node once would be 2,000 cases: the walk is random, the values are all of the odd ones.
    answer = golden_json("view_three_pages.json")
    for path in draw.sample(nodes(answer), 5):
        for value in ODD_VALUES:
            broken = copy.deepcopy(answer)
            parent = broken
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = copy.deepcopy(value)
            try:
                parse_view(json.dumps(broken))
            except DownloaderError:
                continue


@unhurried
@given(st.data())
def test_a_cut_page_is_a_record_or_an_error_of_ours(data: st.DataObject) -> None:
    page = golden("video_page.html")
    start = data.draw(st.integers(0, len(page)))
    stop = data.draw(st.integers(start, len(page)))
    for text in (page[:stop], page[start:], page[:start] + page[stop:]):
        for parse in (parse_initial_state, parse_playinfo_html, lambda text: parse_playinfo_html(text, 27651390102)):
            try:
                parse(text)
            except DownloaderError:
                continue


@unhurried
@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("utf-8", "replace"))))
def test_any_text_is_a_record_or_an_error_of_ours(text: str) -> None:
    for parse in (*PARSERS.values(), parse_initial_state, parse_playinfo_html):
        with pytest.raises(DownloaderError):
            parse(text)
