"""What an uploader has put together: all videos, a collection (合集), a series (视频列表), all of these two.

Answers as bilibili-API-collect documents them: docs/user/space.md (arc/search, acc/info, code 53013),
docs/video/collection.md (seasons_archives_list, x/series/series; home/seasons_series, whose form seasons_series_list
has; that its total counts lists is what other clients of it take it for); x/series/archives and the hidden collections
as yt-dlp reads them (yt_dlp/extractor/bilibili.py).
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
    totalled_page,
    video_item,
)
from sources.records import ListItem, ListPage, ListRequest

PAGE_SIZE = 30
"""What the site's own pages ask for; other sizes fail now and then (yutto, src/yutto/api/space.py)."""

HIDDEN_COLLECTION = 156
"""The ``attribute`` of a collection that stands in its uploader's list in place of its videos."""

LISTS_PAGE_SIZE = 20
"""How many collections and series the site gives at a time, unless its answer says that it was fewer."""

_HIDES = 53013
_NOT_GOOD = frozenset({-403, -404, -626, _HIDES})
_HIDDEN = _("this user does not show this part of the space")
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
    """Return a page of an uploader's videos."""
    data = _space(text)
    announced = count(as_object(data["page"])["count"])
    nodes = listed(as_object(data["list"]).get("vlist"))
    title = _author(nodes, place.source.number)
    return _or_nobody(place, counted_page(place, title, items_of(nodes, _entry), announced, PAGE_SIZE))


def _or_nobody(place: Place, page: ListPage) -> ListPage:
    """Return a page of an uploader's list; of one that is empty the next question is whether there is an uploader."""
    if page.announced == 0 and not page.items and place.page == 1:
        return replace(page, next=replace(place, step="uploader").cursor())
    return page


def _space(text: str) -> Object:
    """Return what an address of a space answers; it refuses whom it takes for a machine with a code of permissions."""
    if envelope(text, _NOT_GOOD)["code"] == -403:
        raise risk_control(-403)
    return answer(text, refusals={-404: _NO_UPLOADER, -626: _NO_UPLOADER, _HIDES: _HIDDEN})


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
    """Return the empty listing of an uploader who has nothing in it."""
    data = _space(text)
    return ListPage(plain_title(data["name"]), (), 0, 1, None)


# ------------------------------------------------------------------------------------------ all lists


def _plan_lists(place: Place) -> ListRequest:
    wanted = params(mid=place.source.number, page_num=place.page, page_size=LISTS_PAGE_SIZE)
    return ListRequest("/x/polymer/web-space/seasons_series_list", wanted, signed=True)


@reads_site
def _read_lists(place: Place, text: str) -> ListPage:
    """Return a page of an uploader's collections and series; each is a source, and the site counts them together."""
    lists = as_object(_space(text)["items_lists"])
    about = as_object(lists["page"])
    items = items_of([*listed(lists.get("seasons_list")), *listed(lists.get("series_list"))], _list)
    size = whole_number(about.get("page_size")) or LISTS_PAGE_SIZE
    return _or_nobody(place, counted_page(place, "", items, count(about["total"]), size))


def _list(node: Object) -> ListItem:
    meta = as_object(node["meta"])
    title = plain_title(meta.get("name") or meta.get("title"))
    for kind, name in (("season:", "season_id"), ("series:", "series_id")):
        if number := whole_number(meta.get(name)):
            return ListItem(f"{kind}{number}", title)
    raise ValueError


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
    title = plain_title(meta.get("title") or meta.get("name"))
    page = totalled_page(place, data, "archives", video_item, PAGE_SIZE, title)
    if not page.announced and not whole_number(meta.get("season_id")):
        raise PermanentError(_NO_COLLECTION, -404)
    return page


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
    return totalled_page(place, answer(text, refusals={-404: _NO_SERIES}), "archives", video_item, PAGE_SIZE)


STEPS = {
    "mid:": Step(_plan_videos, _read_videos),
    "uploader": Step(_plan_uploader, _read_uploader),
    "lists:": Step(_plan_lists, _read_lists),
    "season:": Step(_plan_collection, _read_collection),
    "series:": Step(_plan_series, _read_series),
    "series videos": Step(_plan_series_videos, _read_series_videos),
}
