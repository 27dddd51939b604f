"""What an account has put aside: folders of favourites (收藏夹), and watch later (稍后再看).

Answers as bilibili-API-collect documents them: docs/fav/info.md, docs/fav/list.md, docs/historytoview/toview.md.
"""

from __future__ import annotations

from dataclasses import replace

from errors import PermanentError
from i18n import _
from parse_ import as_object, envelope, plain_title, reads_site, whole_number
from sources.reading import (
    DELETED,
    Object,
    Place,
    Step,
    answer,
    count,
    items_of,
    linked_number,
    listed,
    next_page,
    params,
    video_item,
)
from sources.records import ListItem, ListPage, ListRequest

PAGE_SIZE = 20
"""The site gives no more of a folder at a time."""

GONE_TITLE = "已失效视频"
"""What the site calls an entry whose video is gone, in place of its title."""

DELETED_BY_UPLOADER = _("its uploader has deleted it")
AUDIO = _("it is an audio, not a video")
OTHER_KIND = _("it is no video, but of a kind that cannot be downloaded")
PRIVATE_FOLDER = _("the folder is private: name it by itself, as fav:NUMBER, with the BILI_SESSDATA of its owner")

_VIDEO, _AUDIO, _COLLECTION, _EPISODE = 2, 12, 21, 24
_GONE_BY_UPLOADER = 9

_PRIVATE = _("the folder is private: only its owner sees it, with BILI_SESSDATA")
_NO_FOLDER = _("there is no such folder of favourites: it is deleted or was never there")
_HIDDEN = _("this user does not show the folders of favourites, or there is no such user")
_LOGIN = _("watch later belongs to an account: set BILI_SESSDATA")


# ------------------------------------------------------------------------------------------ all folders of a user


def _plan_folders(place: Place) -> ListRequest:
    return ListRequest("/x/v3/fav/folder/created/list-all", params(up_mid=place.source.number))


@reads_site
def _read_folders(place: Place, text: str) -> ListPage:
    """Return the folders that a user has made; the site answers null for one who does not show them."""
    data = envelope(text)["data"]
    if data is None:
        raise PermanentError(_HIDDEN, "private")
    items = items_of(listed(data.get("list")), _folder)
    return ListPage("", items, count(data["count"]), 1, None)


def _folder(node: Object) -> ListItem:
    is_private = whole_number(node.get("attr")) % 2 == 1
    return ListItem(f"fav:{_number(node)}", plain_title(node.get("title")), 0, PRIVATE_FOLDER if is_private else "")


def _number(node: Object) -> int:
    number = whole_number(node["id"])
    if not number:
        raise ValueError
    return number


# ------------------------------------------------------------------------------------------ one folder


def _plan_folder(place: Place) -> ListRequest:
    wanted = params(media_id=place.source.number, pn=place.page, ps=PAGE_SIZE, keyword="", order="mtime")
    return ListRequest("/x/v3/fav/resource/list", (*wanted, *params(type=0, tid=0, platform="web")))


@reads_site
def _read_folder(place: Place, text: str) -> ListPage:
    """Return a page of a folder; dead entries stay in it, and count."""
    data = answer(text, refusals={-403: _PRIVATE, 11010: _NO_FOLDER, -404: _NO_FOLDER})
    info = as_object(data["info"])
    announced = count(info["media_count"])
    items = items_of(listed(data.get("medias")), _favourite)
    more = data.get("has_more")
    has_more = more if isinstance(more, bool) else place.page * PAGE_SIZE < announced
    following = next_page(place, not items, has_more)
    return ListPage(plain_title(info.get("title")), items, announced, -(-announced // PAGE_SIZE), following)


def _favourite(node: Object) -> ListItem:
    title, published = plain_title(node.get("title")), whole_number(node.get("pubtime"))
    kind = whole_number(node.get("type"))
    if kind == _COLLECTION:
        return ListItem(f"season:{_number(node)}", title, published)
    if kind == _EPISODE:
        number = linked_number(node.get("link"), "/ep")
        return (
            ListItem(f"ep{number}", title, published) if number else replace(video_item(node), published_at=published)
        )
    if kind != _VIDEO:
        return ListItem("", title, published, AUDIO if kind == _AUDIO else OTHER_KIND)
    return ListItem(video_item({**node, "aid": node.get("id")}).id, title, published, _why_gone(node))


def _why_gone(node: Object) -> str:
    attributes = whole_number(node.get("attr"))
    if attributes == _GONE_BY_UPLOADER:
        return DELETED_BY_UPLOADER
    return DELETED if attributes or node.get("title") == GONE_TITLE else ""


# ------------------------------------------------------------------------------------------ watch later


def _plan_later(place: Place) -> ListRequest:
    return ListRequest("/x/v2/history/toview", login=True)


@reads_site
def _read_later(place: Place, text: str) -> ListPage:
    data = answer(text, refusals={-101: _LOGIN, -400: _LOGIN})
    items = items_of(listed(data.get("list")), video_item)
    return ListPage(_("watch later"), items, count(data["count"]), 1, None)


STEPS = {
    "favs:": Step(_plan_folders, _read_folders),
    "fav:": Step(_plan_folder, _read_folder),
    "later": Step(_plan_later, _read_later),
}
