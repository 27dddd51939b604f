"""What an uploader has put together: all videos, a collection (合集), a series (视频列表).

Answers as bilibili-API-collect documents them: docs/user/space.md (arc/search, acc/info), docs/video/collection.md
(seasons_archives_list, x/series/series); x/series/archives and the hidden collections as yt-dlp reads them
(yt_dlp/extractor/bilibili.py).
"""

from __future__ import annotations

from dataclasses import replace

from errors import PermanentError
from i18n import _
from parse_ import as_object, envelope, plain_title, reads_site, risk_control, whole_number
from sources.reading import (
    Object,
    Place,
    Step,
    answer,
    count,
    counted_page,
    items_of,
    listed,
    params,
    video_item,
)
from sources.records import ListItem, ListPage, ListRequest

PAGE_SIZE = 30
"""What the site's own pages ask for; other sizes fail now and then (yutto, src/yutto/api/space.py)."""

HIDDEN_COLLECTION = 156
"""The ``attribute`` of a collection that stands in its uploader's list in place of its videos."""

_NOT_GOOD = frozenset({-403, -404, -626})
_NO_UPLOADER = _("there is no such uploader: the account is closed or was never there")
_NO_COLLECTION = _("there is no such collection: it is deleted or was never there")
_NO_SERIES = _("there is no such series: it is deleted or was never there")


# ------------------------------------------------------------------------------------------ all videos


def _plan_videos(place: Place) -> ListRequest:
    wanted = params(mid=place.source.number, order="pubdate", order_avoided="true", tid=0, keyword="", platform="web")
    page = params(pn=place.page, ps=PAGE_SIZE)
    return ListRequest("/x/space/wbi/arc/search", (*wanted, *page), signed=True)


@reads_site
def _read_videos(place: Place, text: str) -> ListPage:
    """Return a page of an uploader's videos; of none at all, the next question is whether there is an uploader."""
    data = _space(text)
    announced = count(as_object(data["page"])["count"])
    nodes = listed(as_object(data["list"]).get("vlist"))
    page = counted_page(place, _author(nodes, place.source.number), items_of(nodes, _entry), announced, PAGE_SIZE)
    if announced == 0 and not nodes and place.page == 1:
        return replace(page, next=replace(place, step="uploader").cursor())
    return page


def _space(text: str) -> Object:
    """Return what an address of a space answers; it refuses whom it takes for a machine with a code of permissions."""
    if envelope(text, _NOT_GOOD)["code"] == -403:
        raise risk_control(-403)
    return answer(text, refusals={-404: _NO_UPLOADER, -626: _NO_UPLOADER})


def _author(nodes: list[Object], mid: int) -> str:
    """Return the uploader's name; a video that was made together with others may be under another's."""
    own = [node for node in nodes if whole_number(node.get("mid")) == mid]
    return plain_title(own[0].get("author")) if own else ""


def _entry(node: Object) -> ListItem:
    collection = as_object(node.get("meta"))
    hidden = collection.get("attribute") == HIDDEN_COLLECTION or node.get("is_avoided") == 1
    number = whole_number(collection.get("id"))
    if hidden and number:
        title = plain_title(collection.get("title")) or plain_title(node.get("title"))
        return ListItem(f"season:{number}", title, whole_number(node.get("created")))
    item = video_item(node, "created")
    course = whole_number(node.get("season_id")) if node.get("is_lesson_video") == 1 else 0
    return replace(item, id=f"cheese:ss{course}") if course else item


def _plan_uploader(place: Place) -> ListRequest:
    return ListRequest("/x/space/wbi/acc/info", params(mid=place.source.number), signed=True)


@reads_site
def _read_uploader(place: Place, text: str) -> ListPage:
    """Return the empty listing of an uploader who has no videos."""
    data = _space(text)
    return ListPage(plain_title(data["name"]), (), 0, 1, None)


# ------------------------------------------------------------------------------------------ a collection


def _plan_collection(place: Place) -> ListRequest:
    """Ask for a page of a collection; the uploader's number may be any, so none has to be known."""
    wanted = params(mid=0, season_id=place.source.number, sort_reverse="false")
    page = params(page_num=place.page, page_size=PAGE_SIZE)
    return ListRequest("/x/polymer/web-space/seasons_archives_list", (*wanted, *page), signed=True)


@reads_site
def _read_collection(place: Place, text: str) -> ListPage:
    data = answer(text, refusals={-404: _NO_COLLECTION})
    meta = as_object(data.get("meta"))
    announced = count(as_object(data["page"])["total"])
    if not announced and not whole_number(meta.get("season_id")):
        raise PermanentError(_NO_COLLECTION, -404)
    items = items_of(listed(data.get("archives")), video_item)
    return counted_page(place, plain_title(meta.get("title") or meta.get("name")), items, announced, PAGE_SIZE)


# ------------------------------------------------------------------------------------------ a series


def _plan_series(place: Place) -> ListRequest:
    return ListRequest("/x/series/series", params(series_id=place.source.number))


@reads_site
def _read_series(place: Place, text: str) -> ListPage:
    """Return what a series is called; its videos are asked for with its uploader's number, which is only here.

    How many there are, the next answer says: this one counts those that are gone as well.
    """
    meta = answer(text, refusals={-404: _NO_SERIES})["meta"]
    if not meta:
        raise PermanentError(_NO_SERIES, -404)
    following = replace(place, step="series videos", number=count(meta["mid"])).cursor()
    return ListPage(plain_title(meta.get("name")), (), None, None, following)


def _plan_series_videos(place: Place) -> ListRequest:
    wanted = params(mid=place.number, series_id=place.source.number, only_normal="true", sort="desc")
    return ListRequest("/x/series/archives", (*wanted, *params(pn=place.page, ps=PAGE_SIZE)))


@reads_site
def _read_series_videos(place: Place, text: str) -> ListPage:
    data = answer(text, refusals={-404: _NO_SERIES})
    announced = count(as_object(data["page"])["total"])
    items = items_of(listed(data.get("archives")), video_item)
    return counted_page(place, "", items, announced, PAGE_SIZE)


STEPS = {
    "mid:": Step(_plan_videos, _read_videos),
    "uploader": Step(_plan_uploader, _read_uploader),
    "season:": Step(_plan_collection, _read_collection),
    "series:": Step(_plan_series, _read_series),
    "series videos": Step(_plan_series_videos, _read_series_videos),
}
