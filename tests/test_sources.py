"""The listings as pure texts: every way to name a source, golden answers, broken ones, wishes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parse_
from errors import CircumstanceError, JobError, PermanentError, RiskControl, SiteError
from parse_ import REAL_HOSTS, SiteHosts
from source_ids import LESSON, NAMED, NUMBERED, SEARCH, Source
from sources import ListItem, ListPage, ListWishes, first_cursor, narrow, parse_source, plan_request, read_page

STAND_IN = SiteHosts("http://127.0.0.1:8000/web", "http://127.0.0.1:8000/api", "http://127.0.0.1:8000/short")
SPACE = "https://space.bilibili.com"
WEB = "https://www.bilibili.com"

unhurried = settings(deadline=None)

# ------------------------------------------------------------------------------------------ how people name them

NAMES = [
    ("mid:137137", "mid:137137"),
    (" MID:137137 ", "mid:137137"),
    ("favs:137137", "favs:137137"),
    ("fav:1234567", "fav:1234567"),
    ("fav:ml1234567", "fav:1234567"),
    ("ml1234567", "fav:1234567"),
    ("season:4259", "season:4259"),
    ("series:2345", "series:2345"),
    ("ss28747", "ss28747"),
    ("SS28747", "ss28747"),
    ("md28237119", "md28237119"),
    ("cheese:ss123", "cheese:ss123"),
    ("cheese:EP456", "cheese:ep456"),
    ("later", "later"),
    ("rank:1010", "rank:1010"),
    ("rank:0", "rank:0"),
    ("rank:1010:201,2094", "rank:1010:201,2094"),
    ("RANK:1010:2094,201,2094", "rank:1010:201,2094"),
    ("popular", "popular"),
    ("Weekly", "weekly"),
    ("weekly:123", "weekly:123"),
    ("precious", "precious"),
    ("search:猫", "search:%E7%8C%AB"),
    ("search:%E7%8C%AB", "search:%E7%8C%AB"),
    ("search: 猫  与 狗 ", "search:%E7%8C%AB%20%E4%B8%8E%20%E7%8B%97"),
    ("search:C++", "search:C%2B%2B"),
    ("search:100%", "search:100%25"),
    (f"{SPACE}/137137", "mid:137137"),
    (f"{SPACE}/137137/", "mid:137137"),
    (f"{SPACE}/137137?spm_id_from=333.337.0.0", "mid:137137"),
    (f"{SPACE}/137137/video?tid=0&pn=2&keyword=&order=pubdate", "mid:137137"),
    (f"{SPACE}/137137/#/video", "mid:137137"),
    (f"{SPACE}/137137/upload/video", "mid:137137"),
    (f"{SPACE}/137137/upload", "mid:137137"),
    ("space.bilibili.com/137137", "mid:137137"),
    ("https://m.bilibili.com/space/137137", "mid:137137"),
    ("lists:137137", "lists:137137"),
    (f"{SPACE}/137137/lists", "lists:137137"),
    (f"{SPACE}/137137/lists/?spm_id_from=333.1387.0.0", "lists:137137"),
    (f"{SPACE}/137137/channel/series", "lists:137137"),
    ("https://m.bilibili.com/space/137137/lists", "lists:137137"),
    (f"{SPACE}/137137/favlist", "favs:137137"),
    (f"{SPACE}/137137/favlist?fid=1306978874&ftype=create", "fav:1306978874"),
    (f"{SPACE}/137137/favlist?fid=1306978874&ftype=collect&ctype=11", "fav:1306978874"),
    (f"{SPACE}/137137/favlist?fid=3221717&ftype=collect&ctype=21", "season:3221717"),
    (f"{SPACE}/2142762/lists/3662502?type=season", "season:3662502"),
    (f"{SPACE}/2142762/lists/3662502", "season:3662502"),
    (f"{SPACE}/1958703906/lists/547718?type=series", "series:547718"),
    (f"{SPACE}/3546619/lists?sid=3221717&spm_id_from=x&type=series", "series:3221717"),
    (f"{SPACE}/3546619/lists?sid=3221717?type=season", "season:3221717"),
    (f"{SPACE}/3546619/lists?sid=3221717?type=series", "series:3221717"),
    (f"{SPACE}/2142762/channel/collectiondetail?sid=57445&ctype=0", "season:57445"),
    (f"{SPACE}/1958703906/channel/seriesdetail?sid=547718&ctype=0", "series:547718"),
    (f"{WEB}/list/1958703906?sid=547718&oid=687146339&bvid=BV1DU4y1r7tz", "series:547718"),
    (f"{WEB}/list/1958703906?sort_field=pubtime&spm_id_from=333.999", "mid:1958703906"),
    (f"{WEB}/list/1958703906/?sid=0&desc=1", "mid:1958703906"),
    (f"{WEB}/medialist/play/1958703906?business=space_series&business_id=547718&desc=1", "series:547718"),
    (f"{WEB}/medialist/play/2142762?business=space_collection&business_id=57445", "season:57445"),
    (f"{WEB}/medialist/play/2142762?from=space&business=space", "mid:2142762"),
    (f"{WEB}/list/ml1103407912?oid=1&bvid=BV1xx411c7mD", "fav:1103407912"),
    (f"{WEB}/medialist/detail/ml1103407912", "fav:1103407912"),
    (f"{WEB}/medialist/play/ml1103407912", "fav:1103407912"),
    (f"{WEB}/watchlater/#/list", "later"),
    (f"{WEB}/watchlater/list#/list", "later"),
    (f"{WEB}/list/watchlater?oid=1&bvid=BV1xx411c7mD", "later"),
    (f"{WEB}/bangumi/play/ss26801?from_spmid=666.4.mylist.1", "ss26801"),
    ("https://m.bilibili.com/bangumi/play/ss26801/", "ss26801"),
    (f"{WEB}/bangumi/media/md28237119/?from=search", "md28237119"),
    (f"{WEB}/cheese/play/ss298?csource=common", "cheese:ss298"),
    (f"{WEB}/cheese/play/ep6902", "cheese:ep6902"),
    (f"{WEB}/v/popular/all/?spm_id_from=333.1007.0.0", "popular"),
    (f"{WEB}/v/popular/weekly?num=333", "weekly:333"),
    (f"{WEB}/v/popular/weekly", "weekly"),
    (f"{WEB}/v/popular/history?spm_id_from=333", "precious"),
    (f"{WEB}/v/popular/rank/all", "rank:0"),
    (f"{WEB}/v/popular/rank/knowledge", "rank:1010"),
    ("https://search.bilibili.com/all?keyword=%E7%8C%AB+b&from_source=webtop_search", "search:%E7%8C%AB%20b"),
    ("https://search.bilibili.com/video?vt=1&keyword=C%2B%2B&order=click", "search:C%2B%2B"),
    ("https://m.bilibili.com/search?keyword=%E7%8C%AB", "search:%E7%8C%AB"),
    ("https://b23.tv/ss28747", "ss28747"),
    ("http://127.0.0.1:8000/web/space/10001/favlist?fid=100001", "fav:100001"),
    ("http://127.0.0.1:8000/web/v/popular/weekly?num=2", "weekly:2"),
    ("http://127.0.0.1:8000/short/ss41410", "ss41410"),
]


@pytest.mark.parametrize(("text", "source"), NAMES)
def test_a_source_is_known_by_what_people_copy(text: str, source: str) -> None:
    assert parse_source(text, STAND_IN) == source
    assert parse_.parse_job_id(source).source == source


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "BV1xx411c7mD",
            "BV1xx411c7mD?p=3",
            "av170001",
            "ep123456",
            "https://b23.tv/abc123",
            "ssh",
            "mdx",
            "rank:知识",
        ),
        *(f"{WEB}/video/BV1xx411c7mD", f"{WEB}/bangumi/play/ep395211", f"{WEB}/", "https://example.com/v/popular/all"),
        *(
            "https://space.bilibili.com:8443/1",
            "http://space.bilibili.com.example.com/1",
            "https://u@space.bilibili.com/1",
        ),
        *("mid 137137", "x" * 3000, "https://example.com/space/1", "mid://1", "http://127.0.0.1:8000/other/space/1"),
    ],
)
def test_what_is_no_source_is_left_to_others(text: str) -> None:
    assert parse_source(text, STAND_IN) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mid:", "mid:137137"),
        ("mid:abc", "mid:137137"),
        ("mid:0", "mid:137137"),
        ("mid:137137/video", "mid:137137"),
        ("fav:9007199254740992", "fav:1234567"),
        ("cheese:123", "cheese:ss123"),
        ("weekly:last", "weekly:123"),
        ("rank:12345678901234567890", "rank:1010"),
        ("rank:1010:", "rank:1010"),
        ("rank:1010:0", "rank:1010"),
        ("rank:0:201", "rank:1010"),
        ("rank:1010:201:2094", "rank:1010"),
        ("later:137137", "later"),
        ("popular:all", "popular"),
        ("search:", "keyword"),
        ("search:" + "a" * 101, "100"),
        ("search:a\x00b", "keyword"),
        (f"{SPACE}/", "space.bilibili.com/137137"),
        (f"{SPACE}/abc", "space.bilibili.com/137137"),
        (f"{SPACE}/137137/dynamic", "137137/video"),
        (f"{SPACE}/137137/upload/audio", "137137/video"),
        (f"{SPACE}/137137/channel/detail", "collection or series"),
        (f"{SPACE}/137137/channel/collectiondetail", "collection or series"),
        (f"{SPACE}/137137/lists/abc", "abc"),
        (f"{SPACE}/137137/favlist?fid=abc", "abc"),
        (f"{WEB}/bangumi/play/ss", "number"),
        (f"{WEB}/bangumi/media/md0", "number"),
        (f"{WEB}/v/popular/rank/anime", "knowledge"),
        (f"{WEB}/v/popular/weekly?num=x", "number"),
        (f"{WEB}/list/ml", "number"),
        ("https://search.bilibili.com/all", "keyword"),
        ("ss00", "number"),
    ],
)
def test_half_a_source_is_refused_with_a_sentence(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_source(text, REAL_HOSTS)


addresses = st.builds(
    "{}{}{}".format,
    st.sampled_from([*(text for text, _ in NAMES), SPACE + "/", WEB + "/", "search:", "mid:", "ss"]),
    st.sampled_from(["", "/", "?", "&", "#", ":", "%"]),
    st.text(max_size=20),
)


@unhurried
@given(st.one_of(st.text(), addresses))
def test_any_text_is_a_source_or_none_or_refused(text: str) -> None:
    try:
        source = parse_source(text, REAL_HOSTS)
    except ValueError as error:
        assert str(error)
        return
    assert source is None or parse_.parse_job_id(source).is_source


# ------------------------------------------------------------------------------------------ golden answers


def read(source: str, *answers: object) -> list[ListPage]:
    """Return the pages of a listing whose answers are these; it must want just so many."""
    cursor: str | None = first_cursor(source)
    pages = []
    for answer in answers:
        assert cursor is not None, "the listing has ended before"
        pages.append(read_page(cursor, answer if isinstance(answer, str) else json.dumps(answer)))
        cursor = pages[-1].next
    return pages


def one(source: str, answer: object) -> ListPage:
    return read(source, answer)[0]


def data(content: object) -> dict[str, object]:
    return {"code": 0, "message": "0", "ttl": 1, "data": content}


def asked(source: str, *answers: object) -> dict[str, str]:
    """Return the parameters of the request after these answers."""
    cursor: str | None = first_cursor(source)
    if answers:
        cursor = read(source, *answers)[-1].next
    assert cursor is not None
    return dict(plan_request(cursor).params)


def upload(aid: int, **changes: object) -> dict[str, object]:
    """Return an entry of an uploader's list, as docs/user/space.md has it."""
    return {
        "comment": 985,
        "typeid": 201,
        "play": 224185,
        "pic": "http://i2.hdslb.com/bfs/archive/x.jpg",
        "subtitle": "",
        "description": "",
        "copyright": "1",
        "title": f"第{aid}号",
        "review": 0,
        "author": "甲",
        "mid": 137137,
        "created": 1_577_835_803 + aid,
        "length": "32:55",
        "video_review": 6,
        "aid": aid,
        "bvid": parse_.aid_to_bvid(aid),
        "hide_click": False,
        "is_pay": 0,
        "is_union_video": 0,
        "is_lesson_video": 0,
        "meta": None,
        "is_avoided": 0,
        "season_id": 0,
        "attribute": 0,
        **changes,
    }


def uploads(nodes: list[Any] | None, count: object, page: int = 1) -> dict[str, object]:
    return data({"list": {"tlist": {}, "vlist": nodes}, "page": {"pn": page, "ps": 30, "count": count}})


HIDDEN = {"id": 3958082, "title": "合集·直播回放", "attribute": 156, "ep_count": 40, "mid": 137137}


def test_an_uploader_is_read_page_by_page() -> None:
    first, second = read(
        "mid:137137",
        uploads([upload(n) for n in range(1, 31)], 31),
        uploads([upload(31, title="&quot;引号&quot;", author="乙", mid=2)], 31, 2),
    )
    assert (first.title, first.announced, first.pages, len(first.items)) == ("甲", 31, 2, 30)
    assert first.items[0] == ListItem(parse_.aid_to_bvid(1), "第1号", 1_577_835_804)
    assert second.items[0].title == '"引号"'
    assert (second.title, second.next) == ("", None), "the name is not that of who helped"


def test_what_is_asked_of_an_uploader_is_signed() -> None:
    request = plan_request(first_cursor("mid:137137"))
    assert (request.path, request.signed, request.login, request.host) == (
        "/x/space/wbi/arc/search",
        True,
        False,
        "api",
    )
    assert {"mid": "137137", "pn": "1", "ps": "30", "order": "pubdate"}.items() <= dict(request.params).items()
    assert asked("mid:137137", uploads([upload(1)], 31))["pn"] == "2"


def test_a_hidden_collection_in_an_uploaders_list_is_a_source_of_its_own() -> None:
    page = one(
        "mid:137137",
        uploads(
            [
                upload(1, meta=HIDDEN),
                upload(2, meta={**HIDDEN, "attribute": 140}),
                upload(3, meta={**HIDDEN, "attribute": 140}, is_avoided=1),
            ],
            3,
        ),
    )
    assert [item.id for item in page.items] == ["season:3958082", parse_.aid_to_bvid(2), "season:3958082"]
    assert page.items[0].title == "合集·直播回放"


def test_a_course_in_an_uploaders_list_is_a_source_of_its_own() -> None:
    page = one("mid:137137", uploads([upload(1, is_lesson_video=1, season_id=298)], 1))
    assert page.items[0].id == "cheese:ss298"


def test_an_uploader_without_videos_is_told_from_one_who_is_not_there() -> None:
    nothing = uploads([], 0)
    assert plan_request(read("mid:5", nothing)[-1].next or "").path == "/x/space/wbi/acc/info"
    empty = read("mid:5", nothing, data({"mid": 5, "name": "还没投稿"}))[-1]
    assert empty == ListPage("还没投稿", (), 0, 1, None)
    with pytest.raises(PermanentError, match="no such uploader"):
        read("mid:5", nothing, {"code": -404, "message": "啥都木有", "ttl": 1})


def test_a_space_that_takes_us_for_a_machine_is_no_uploader_who_is_gone() -> None:
    for answers in ([{"code": -403, "message": "访问权限不足"}], [uploads([], 0), {"code": -403}]):
        with pytest.raises(RiskControl):
            read("mid:5", *answers)


@pytest.mark.parametrize("count", [None, "1", 1.5, True, -1, 2**60, []])
def test_a_count_that_is_none_makes_no_listing(count: object) -> None:
    with pytest.raises(SiteError):
        one("mid:137137", uploads([upload(1)], count))


def test_a_page_that_lost_items_shows_in_the_counts() -> None:
    pages = read(
        "mid:1", uploads([upload(n) for n in range(1, 30)], 61), uploads([], 61, 2), uploads([upload(61)], 61, 3)
    )
    assert sum(len(page.items) for page in pages) == 30
    assert {page.announced for page in pages} == {61}


def test_an_end_is_seen_where_nothing_comes_any_more() -> None:
    pages = read("mid:1", uploads([upload(1)], 5000), *(uploads(None, 5000, page) for page in (2, 3, 4)))
    assert pages[-1].next is None
    again = read("mid:1", uploads([], 5000), uploads([], 5000), uploads([upload(1)], 5000), uploads([], 5000))
    assert again[-1].next is not None, "the blanks were not in a row"


def archive(aid: int, **changes: object) -> dict[str, object]:
    """Return an entry of a collection, as docs/video/collection.md has it."""
    return {
        "aid": aid,
        "bvid": parse_.aid_to_bvid(aid),
        "ctime": 1_679_651_747,
        "duration": 261,
        "interactive_video": False,
        "pic": "http://i2.hdslb.com/x.jpg",
        "pubdate": 1_679_651_747,
        "stat": {"view": 12145},
        "state": 0,
        "title": f"第{aid}号",
        "ugc_pay": 0,
        **changes,
    }


def collection(total: int, archives: list[Any], number: int = 1227671) -> dict[str, object]:
    meta = {"category": 0, "mid": 37737161, "name": "合集·吐槽", "season_id": number, "total": total}
    page = {"page_num": 1, "page_size": 30, "total": total}
    return data({"aids": [], "archives": archives, "meta": meta, "page": page})


def test_a_collection_needs_no_uploader() -> None:
    page = one("season:1227671", collection(2, [archive(311606079), archive(400546145)]))
    assert [item.id for item in page.items] == ["BV1XN411K7g9", "BV1qo4y1L73P"]
    assert (page.title, page.announced, page.pages, page.next) == ("合集·吐槽", 2, 1, None)
    assert asked("season:1227671")["season_id"] == "1227671"


def test_an_empty_collection_is_none_that_is_not_there() -> None:
    assert one("season:7", collection(0, [], 7)) == ListPage("合集·吐槽", (), 0, 0, None)
    for answer in (collection(0, [], 0), {"code": -404, "message": "啥都木有"}):
        with pytest.raises(PermanentError, match="no such collection"):
            one("season:7", answer)


def test_a_series_tells_its_uploader_first() -> None:
    about = data(
        {"meta": {"series_id": 2158988, "mid": 37737161, "name": "JavaSE基础路线", "total": 6}, "recent_aids": []}
    )
    videos = data(
        {"aids": [], "page": {"num": 1, "size": 30, "total": 2}, "archives": [archive(900707014), archive(604837097)]}
    )
    assert {"mid": "37737161", "series_id": "2158988", "pn": "1"}.items() <= asked("series:2158988", about).items()
    first, second = read("series:2158988", about, videos)
    assert (first.title, first.items, first.announced) == ("JavaSE基础路线", (), None)
    assert [item.id for item in second.items] == ["BV1YP4y1o75f", "BV1G84y1v7Vj"]
    assert (second.announced, second.next) == (2, None)


def test_a_series_without_a_description_is_none() -> None:
    with pytest.raises(PermanentError, match="no such series"):
        one("series:1", data({"meta": None, "recent_aids": None}))


def favourite(aid: int, **changes: object) -> dict[str, object]:
    """Return an entry of a folder, as docs/fav/list.md has it."""
    return {
        "id": aid,
        "type": 2,
        "title": f"第{aid}号",
        "intro": "",
        "page": 1,
        "duration": 546,
        "upper": {"mid": 686127, "name": "籽岷", "face": ""},
        "attr": 0,
        "link": f"bilibili://video/{aid}",
        "ctime": 1_595_690_513,
        "pubtime": 1_595_690_513,
        "fav_time": 1_598_884_777,
        "bv_id": parse_.aid_to_bvid(aid),
        "bvid": parse_.aid_to_bvid(aid),
        "season": None,
        **changes,
    }


def folder(medias: list[Any] | None, count: int, has_more: object = False) -> dict[str, object]:
    info = {"id": 1052622027, "fid": 10526220, "mid": 686127, "attr": 54, "title": "猛 男 生 存", "media_count": count}
    return data({"info": info, "medias": medias, "has_more": has_more, "ttl": 1})


def test_dead_favourites_are_there_with_the_reason() -> None:
    page = one(
        "fav:1052622027",
        folder(
            [
                favourite(371494037),
                favourite(2, title="已失效视频", attr=9),
                favourite(3, title="已失效视频", attr=1),
                favourite(4, title="已失效视频"),
            ],
            4,
        ),
    )
    good, by_uploader, otherwise, by_title = page.items
    assert good == ListItem("BV1CZ4y1T7gC", "第371494037号", 1_595_690_513)
    assert "uploader" in by_uploader.unavailable
    assert by_uploader.id == parse_.aid_to_bvid(2)
    assert otherwise.unavailable
    assert otherwise.unavailable != by_uploader.unavailable
    assert by_title.unavailable
    assert (page.title, page.announced, page.next) == ("猛 男 生 存", 4, None)


def test_favourites_that_are_no_videos_are_what_they_are() -> None:
    other = [
        {**favourite(1), "type": 12, "id": 13598, "bvid": "", "bv_id": ""},
        {**favourite(1), "type": 21, "id": 4259, "bvid": ""},
        {**favourite(1), "type": 24, "link": "bilibili://bangumi/season/ep/733316"},
        {**favourite(1), "type": 24, "link": "https://www.bilibili.com/bangumi/play/ep733317"},
        {**favourite(9), "type": 24, "link": ""},
        {**favourite(1), "type": 99},
    ]
    page = one("fav:1", folder(other, 6))
    assert [item.id for item in page.items] == ["", "season:4259", "ep733316", "ep733317", parse_.aid_to_bvid(9), ""]
    assert "audio" in page.items[0].unavailable
    assert page.items[5].unavailable
    assert not any(item.unavailable for item in page.items[1:5])


def test_a_folder_goes_on_while_the_site_says_so() -> None:
    assert asked("fav:1", folder([favourite(n) for n in range(1, 21)], 40, True)) | {"pn": "2"} == asked(
        "fav:1", folder([favourite(1)], 40, True)
    )
    assert one("fav:1", folder([favourite(1)], 40, False)).next is None
    assert one("fav:1", folder([favourite(1)], 40, None)).next is not None, "an answer that does not say"


def test_an_empty_folder_is_no_error() -> None:
    assert one("fav:1", folder(None, 0)) == ListPage("猛 男 生 存", (), 0, 0, None)


@pytest.mark.parametrize(("code", "says"), [(-403, "BILI_SESSDATA"), (11010, "no such folder")])
def test_a_folder_that_is_private_or_gone_is_said_to_be(code: int, says: str) -> None:
    with pytest.raises(PermanentError, match=says) as caught:
        one("fav:1", {"code": code, "message": "", "ttl": 1, "data": None})
    assert caught.value.code == str(code)


def lists(total: int, seasons: list[Any], series: list[Any] | None, size: int = 20) -> dict[str, object]:
    """Return a page of all lists of a user, as the site's pages of a space read it."""
    about = {"page_num": 1, "page_size": size, "total": total}
    return data({"items_lists": {"page": about, "seasons_list": seasons, "series_list": series}})


def test_all_lists_of_a_user_are_sources_whatever_the_site_gives_at_a_time() -> None:
    season = {"meta": {"season_id": 1227671, "name": "合集·吐槽", "mid": 1, "total": 2}, "archives": []}
    series = {"meta": {"series_id": 2158988, "name": "JavaSE", "mid": 1, "total": 6}, "archives": None}
    pages = read("lists:1", lists(3, [season], [series], 2), lists(3, [], [{"meta": {"name": "无名"}}, series], 2))
    assert [(item.id, item.title) for page in pages for item in page.items] == [
        *(("season:1227671", "合集·吐槽"), ("series:2158988", "JavaSE")),
        *(("", ""), ("series:2158988", "JavaSE")),
    ]
    assert [(page.announced, page.pages) for page in pages] == [(3, 2), (3, 2)]
    assert asked("lists:1") == {"mid": "1", "page_num": "1", "page_size": "20"}
    with pytest.raises(RiskControl):
        one("lists:1", {"code": -403, "message": "访问权限不足", "ttl": 1})
    with pytest.raises(PermanentError, match="does not show"):
        one("lists:1", {"code": 53013, "message": "用户隐私设置未公开", "ttl": 1})
    nobody, somebody = read("lists:1", lists(0, [], None), data({"mid": 1, "name": "没有合集"}))
    assert (nobody.items, somebody) == ((), ListPage("没有合集", (), 0, 1, None))


def test_all_folders_of_a_user_are_sources() -> None:
    folders = [
        {"id": 44233921, "fid": 442339, "mid": 7792521, "attr": 0, "title": "默认收藏夹", "media_count": 85},
        {"id": 936347621, "fid": 9363476, "mid": 7792521, "attr": 22, "title": "鬼畜", "media_count": 2},
        {"id": 936347721, "fid": 9363477, "mid": 7792521, "attr": 23, "title": "私密", "media_count": 2},
    ]
    page = one("favs:7792521", data({"count": 3, "list": folders, "season": None}))
    assert [item.id for item in page.items] == ["fav:44233921", "fav:936347621", "fav:936347721"]
    assert [bool(item.unavailable) for item in page.items] == [False, False, True]
    assert (page.announced, page.next) == (3, None)
    assert one("favs:1", data({"count": 0, "list": None})).items == ()


def test_a_user_who_shows_no_folders_is_told_from_one_who_has_none() -> None:
    with pytest.raises(PermanentError, match="does not show") as caught:
        one("favs:1", data(None))
    assert caught.value.code == "private"


def test_watch_later_needs_an_account() -> None:
    assert plan_request(first_cursor("later")).login
    with pytest.raises(PermanentError, match="BILI_SESSDATA"):
        one("later", {"code": -101, "message": "账号未登录", "ttl": 1})
    page = one("later", data({"count": 2, "list": [archive(200333024), archive(5, state=-100)]}))
    assert [item.id for item in page.items] == ["BV1Yz411B7n3", parse_.aid_to_bvid(5)]
    assert [bool(item.unavailable) for item in page.items] == [False, True]
    assert (page.announced, page.next) == (2, None)


def episode(number: int, **changes: object) -> dict[str, object]:
    """Return an episode, as docs/bangumi/info.md has it."""
    return {
        "aid": number + 1000,
        "bvid": parse_.aid_to_bvid(number + 1000),
        "cid": number,
        "badge": "",
        "id": number,
        "long_title": "潮起",
        "pub_time": 1_500_000_000 + number,
        "status": 2,
        "title": "1",
        **changes,
    }


def season(**parts: object) -> dict[str, object]:
    return {"code": 0, "message": "success", "result": {"season_id": 28747, "season_title": "示例番剧", **parts}}


def test_a_season_has_its_sections_but_no_other_works() -> None:
    sections = [
        {"id": 1, "title": "PV", "type": 1, "episodes": [episode(3)]},
        {"id": 2, "title": "编辑推荐", "type": 5, "episodes": [episode(999)]},
        {"id": 3, "title": "花絮", "type": 2, "episodes": [episode(0)]},
    ]
    page = one("ss28747", season(episodes=[episode(1), episode(2, title="2")], section=sections))
    assert [item.id for item in page.items] == ["ep1", "ep2", "ep3", parse_.aid_to_bvid(1000)]
    assert page.items[1] == ListItem("ep2", "2 潮起", 1_500_000_002)
    assert (page.title, page.announced, page.next) == ("示例番剧", None, None)
    assert asked("ss28747") == {"season_id": "28747"}


def test_a_season_without_episodes_is_empty_and_one_that_is_not_there_is_none() -> None:
    assert one("ss1", season(episodes=[])).announced == 0
    with pytest.raises(PermanentError, match="no such season"):
        one("ss1", {"code": -404, "message": "啥都木有"})


def test_a_media_page_leads_to_its_season() -> None:
    media = {
        "code": 0,
        "message": "success",
        "result": {"media": {"media_id": 28220978, "season_id": 1172, "title": "轻音少女"}},
    }
    assert asked("md28220978") == {"media_id": "28220978"}
    assert asked("md28220978", media) == {"season_id": "1172"}
    pages = read("md28220978", media, season(episodes=[episode(1)]))
    assert [item.id for page in pages for item in page.items] == ["ep1"]


def test_a_list_that_is_not_shown_is_spoken_of_as_a_list() -> None:
    for source in ("popular", "precious", "rank:1010", "season:1", "ss1", "cheese:ss1", "search:a"):
        with pytest.raises(PermanentError, match="list to this account"):
            one(source, {"code": -403, "message": "访问权限不足"})
    for source in ("popular", "precious", "rank:1010", "search:a", "later"):
        with pytest.raises(PermanentError, match="no such list"):
            one(source, {"code": -404, "message": "啥都木有"})


def lesson(number: int, **changes: object) -> dict[str, object]:
    """Return a lesson, as docs/cheese/info.md has it."""
    return {
        "aid": 76973173,
        "cid": 132105993,
        "duration": 2223,
        "from": "pugv",
        "id": number,
        "index": 1,
        "page": 1,
        "play": 1,
        "release_date": 1_574_762_407,
        "status": 1,
        "title": f"第{number}课",
        **changes,
    }


def course(lessons: list[Any], **about: object) -> dict[str, object]:
    return {"code": 0, "message": "success", "data": {"season_id": 61, "title": "日语", "episodes": lessons, **about}}


def test_lessons_that_the_account_does_not_own_say_so() -> None:
    lessons = [lesson(1), lesson(2, status=2), lesson(3, playable=False), lesson(4, status=2, playable=True)]
    lessons += [lesson(5, episode_can_view=False), lesson(6, ep_status=-1, playable=False)]
    page = one("cheese:ss61", course(lessons, episode_page={"next": False, "num": 1, "size": 6, "total": 6}))
    assert [item.id for item in page.items] == [f"cheese:ep{number}" for number in range(1, 7)]
    assert [item.id for item in page.items if not item.unavailable] == ["cheese:ep1", "cheese:ep4"]
    assert "own" in page.items[1].unavailable
    assert "not published" in page.items[5].unavailable
    assert (page.title, page.announced, page.next) == ("日语", 6, None)


def test_a_long_course_is_read_in_pages_from_its_first_lesson() -> None:
    head = course([lesson(n) for n in range(1, 51)], episode_page={"next": True, "num": 1, "size": 50, "total": 51})
    first = {"items": [lesson(n) for n in range(1, 51)], "page": {"next": True, "num": 1, "size": 50, "total": 51}}
    second = {"items": [lesson(51)], "page": {"next": False, "num": 2, "size": 50, "total": 51}}
    pages = read("cheese:ss61", head, data(first), data(second))
    assert [item.id for page in pages for item in page.items] == [f"cheese:ep{number}" for number in range(1, 52)]
    assert pages[-1].next is None


def test_a_course_that_counts_more_than_it_lists_is_read_in_pages() -> None:
    page = one("cheese:ss61", course([lesson(1)], episode_page={"next": False, "num": 1, "size": 50, "total": 2}))
    assert (page.items, page.announced) == ((), 2)
    assert page.next is not None
    assert plan_request(page.next).path == "/pugv/view/web/ep/list"


def test_one_lesson_is_found_in_its_course() -> None:
    assert asked("cheese:ep2") == {"ep_id": "2"}
    page = one("cheese:ep2", course([lesson(1), lesson(2)]))
    assert [item.id for item in page.items] == ["cheese:ep2"]
    with pytest.raises(PermanentError, match="this lesson"):
        one("cheese:ep2", course([lesson(1)]))


def chart(aids: list[int], **about: object) -> dict[str, object]:
    nodes = [archive(aid, pid_v2=1010, tid=201, owner={"mid": 1, "name": "甲"}) for aid in aids]
    return data({"list": nodes, **about})


def test_a_ranking_is_read_if_it_is_the_regions() -> None:
    page = one("rank:1010", chart([48918074, 706]))
    assert [(item.id, item.title) for item in page.items] == [
        ("BV1Nb411M7r8", "第48918074号"),
        ("BV1xx411c79H", "第706号"),
    ]
    assert (page.announced, page.next) == (None, None)
    with pytest.raises(SiteError, match="another region"):
        one("rank:1003", chart([48918074, 706]))
    assert len(one("rank:0", chart([48918074, 706])).items) == 2
    stray = [archive(2, pid_v2=1003), *(archive(aid, pid_v2=1010) for aid in (48918074, 706))]
    assert [item.title for item in one("rank:1010", data({"list": stray})).items] == ["第48918074号", "第706号"]
    assert asked("rank:1010") == {"rid": "1010", "type": "all"}


def test_a_ranking_of_sub_regions_has_what_is_of_them() -> None:
    nodes = [archive(48918074, pid_v2=1010, tid=201), archive(706, pid_v2=1010, tidv2=2094), archive(2, pid_v2=1010)]
    assert asked("rank:1010:201,2094") == {"rid": "1010", "type": "all"}
    page = one("rank:1010:201,2094", data({"list": nodes}))
    assert [item.title for item in page.items] == ["第48918074号", "第706号"]
    assert one("rank:1010:5", data({"list": nodes})) == ListPage("", (), 0, 1, None)
    assert parse_source("rank:1010:" + ",".join(map(str, range(1, 33))), REAL_HOSTS)
    with pytest.raises(ValueError, match="no source"):
        first_cursor("rank:1010:2094,201")


def test_popular_goes_on_until_the_site_has_no_more() -> None:
    first, second = read("popular", chart([1356452135], no_more=False), chart([1906472398], no_more=True))
    assert [first.items[0].id, second.items[0].id] == ["BV1tz421i7zb", "BV1MU411S7Cc"]
    assert (first.announced, second.announced, second.next) == (None, None, None)
    assert asked("popular", chart([1], no_more=False))["pn"] == "2"
    assert one("popular", chart([], no_more=True)).announced == 0


def test_the_newest_week_is_found_when_it_is_read() -> None:
    weeks = data({"list": [{"number": 278, "status": 2}, {"number": 279, "status": 2}, {"number": 1, "status": 2}]})
    assert asked("weekly", weeks) == {"number": "279"}
    pages = read("weekly", weeks, chart([48918074], config={"number": 279, "name": "2024第279期"}))
    assert (pages[1].title, pages[1].items[0].id, pages[1].next) == ("2024第279期", "BV1Nb411M7r8", None)
    assert asked("weekly:3") == {"number": "3"}
    assert one("weekly", data({"list": []})) == ListPage("", (), 0, None, None)
    with pytest.raises(PermanentError, match="no such week"):
        one("weekly:999", {"code": -404, "message": "啥都木有"})


def test_must_see_is_one_answer() -> None:
    page = one("precious", chart([706], title="入站必刷", explain=""))
    assert (page.title, [item.id for item in page.items], page.next) == ("入站必刷", ["BV1xx411c79H"], None)


def found(aid: int, **changes: object) -> dict[str, object]:
    title = '梦然-《<em class="keyword">少年</em>》&amp;官方版'
    return {
        "type": "video",
        "id": aid,
        "aid": aid,
        "bvid": parse_.aid_to_bvid(aid),
        "title": title,
        "pubdate": 1_588_407_050,
        **changes,
    }


def results(nodes: object, pages: int, total: int = 1000) -> dict[str, object]:
    return data({"page": 1, "pagesize": 20, "numResults": total, "numPages": pages, "result": nodes})


def test_a_search_finds_videos_and_names_what_else_is_there() -> None:
    other = {"type": "ketang", "id": 1, "title": "课", "arcurl": "https://www.bilibili.com/cheese/play/ep790"}
    page = one("search:%E5%B0%91%E5%B9%B4", results([found(243082173), other, {"type": "ad", "title": "广告"}], 1))
    assert page.items[0] == ListItem("BV1De411p77r", "梦然-《少年》&官方版", 1_588_407_050)
    assert page.items[1].id == "cheese:ep790"
    assert page.items[2].unavailable
    assert (page.title, page.announced, page.next) == ("少年", None, None)
    request = plan_request(first_cursor("search:%E5%B0%91%E5%B9%B4"))
    assert request.signed
    assert {"keyword": "少年", "search_type": "video", "page": "1"}.items() <= dict(request.params).items()


def test_a_search_ends_at_fifty_pages() -> None:
    pages = read("search:a", *(results([found(n)], 900) for n in range(1, 51)))
    assert (pages[0].pages, pages[-1].next) == (50, None)
    assert one("search:a", results(None, 0, 0)) == ListPage("a", (), 0, 0, None)


# ------------------------------------------------------------------------------------------ what is broken

EVERY_SOURCE = [str(Source(kind, 3)) for kind in NUMBERED] + [*NAMED, SEARCH + "a", "rank:3:4,5"]


def cursors() -> list[str]:
    """Return a place in every kind of listing, and in each of its steps."""
    numbered = [
        json.dumps([source, step, 2, 3, 0])
        for source, step in (
            ("mid:3", "uploader"),
            ("series:3", "series videos"),
            ("cheese:ss3", "lessons"),
            ("md3", "ss"),
            ("weekly", "weekly:"),
        )
    ]
    return [*map(first_cursor, EVERY_SOURCE), *numbered]


BROKEN = [
    *("", "{", "[]", "null", '"x"', "12", "<html>", "[" * 100_000, '{"code": NaN}', '{"code": true, "data": {}}'),
    *('{"code": 0}', '{"code": 0, "data": {}}', '{"code": 0, "result": {}}', '{"code": 0, "data": []}'),
    *('{"code": 0, "data": {"page": {}, "list": {}}}', '{"code": 0, "data": {"list": 3, "count": 3}}'),
]


@pytest.mark.parametrize("cursor", cursors())
@pytest.mark.parametrize("answer", BROKEN)
def test_a_broken_answer_is_no_empty_listing(cursor: str, answer: str) -> None:
    with pytest.raises(JobError) as caught:
        read_page(cursor, answer)
    assert type(caught.value) in (SiteError, PermanentError)


@pytest.mark.parametrize("source", [source for source in EVERY_SOURCE if source != "later"])
def test_a_request_that_the_site_calls_wrong_ends_no_source(source: str) -> None:
    with pytest.raises(SiteError):
        one(source, {"code": -400, "message": "请求错误", "ttl": 1})


@pytest.mark.parametrize("cursor", cursors())
def test_the_sites_wish_to_slow_down_is_obeyed_everywhere(cursor: str) -> None:
    for answer in ({"code": -352, "data": {"v_voucher": "x"}}, {"code": 0, "data": {"v_voucher": "x"}}, {"code": -412}):
        with pytest.raises(RiskControl):
            read_page(cursor, json.dumps(answer))
    with pytest.raises(CircumstanceError, match="banned"):
        read_page(cursor, '{"code": -102}')
    with pytest.raises(SiteError):
        read_page(cursor, '{"code": -503}')


FIELDS = [
    *(
        "page",
        "list",
        "vlist",
        "count",
        "total",
        "meta",
        "info",
        "medias",
        "media_count",
        "archives",
        "items",
        "episodes",
    ),
    *("section", "media", "season_id", "numPages", "result", "no_more", "name", "number", "title", "bvid", "aid", "id"),
    *("type", "attr", "link", "mid", "episode_page", "state", "pubdate", "created", "status"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@unhurried
@given(st.sampled_from(cursors()), json_values, st.sampled_from([0, 0, 0, -404, 11010, -1]))
def test_whatever_comes_is_a_page_or_an_error_of_ours(cursor: str, content: object, code: int) -> None:
    try:
        page = read_page(cursor, json.dumps({"code": code, "message": content, "data": content, "result": content}))
    except JobError:
        return
    for item in page.items:
        assert item.id or item.unavailable
        assert not item.id or str(parse_.parse_job_id(item.id)) == item.id
        assert len(item.title) <= parse_.MAX_TITLE_CHARACTERS
    if page.next is not None:
        assert plan_request(page.next).path.startswith("/")


def test_an_entry_that_cannot_be_read_hides_no_other() -> None:
    page = one("mid:1", uploads([upload(1), {"title": "坏的", "aid": "x"}, upload(2, bvid="BV1"), None], 4))
    assert [bool(item.unavailable) for item in page.items] == [False, True, True, True]
    with pytest.raises(SiteError):
        one("mid:1", uploads([{"title": "坏的"}, {"title": "也坏"}], 2))


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "[]", "{}", '["mid:1"]', '["mid:1","mid:",1,0]', '["mid:1","mid:",-1,0,0]', '["mid:1","x",1,0,0]'),
        *(
            '["mid:x","mid:",1,0,0]',
            '["mid:1","mid:",true,0,0]',
            '["mid:1","mid:",1e3,0,0]',
            '[["mid:1"],"mid:",1,0,0]',
        ),
        "[" * 9000,
    ],
)
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match="no place"):
        plan_request(cursor)


@pytest.mark.parametrize("source", ["", "BV1xx411c7mD", "ep1", "mid:01", "rank:知识"])
def test_what_is_no_source_has_no_listing(source: str) -> None:
    with pytest.raises(ValueError, match="no source"):
        first_cursor(source)


@pytest.mark.parametrize("source", EVERY_SOURCE)
def test_every_source_can_be_asked_for(source: str) -> None:
    cursor = first_cursor(source)
    assert json.loads(cursor)
    assert len(cursor) < 100
    assert plan_request(cursor).path.startswith("/")


# ------------------------------------------------------------------------------------------ wishes

LIST = (
    ListItem("BV1xx411c7mD", "新的猫", 300),
    ListItem("", "死的", 250, "it is deleted"),
    ListItem("BV17x411w7KC", "旧的CAT", 200),
    ListItem("season:4259", "合集", 100),
    ListItem("BV1y7411Q7Eq", "没有日期的猫", 0),
    ListItem("cheese:ep1", "第1课", 50),
)


def kept(**wishes: Any) -> list[str]:
    return [item.title for item in narrow(LIST, ListWishes(**wishes))]


def test_without_wishes_all_of_it_is_wanted() -> None:
    assert narrow(LIST, ListWishes()) == LIST


def test_since_keeps_what_may_be_new() -> None:
    assert kept(since=200) == ["新的猫", "死的", "旧的CAT", "合集", "没有日期的猫"]


def test_match_is_for_videos_and_lessons_but_not_for_sources_among_them() -> None:
    assert kept(match="cat") == ["旧的CAT", "合集"]
    assert kept(match="课") == ["合集", "第1课"]


def test_a_limit_counts_what_can_be_had() -> None:
    assert kept(limit=2) == ["新的猫", "死的", "旧的CAT"]
    assert kept(limit=100) == [item.title for item in LIST]


def test_oldest_first_begins_with_the_oldest() -> None:
    assert kept(oldest_first=True, limit=2) == ["第1课", "合集"]
    assert kept(oldest_first=True)[-1] == "没有日期的猫"


def test_a_lesson_is_a_source_in_form_only() -> None:
    assert LESSON in NUMBERED
