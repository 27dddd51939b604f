"""What media servers read: NFO files of Kodi, Emby and Jellyfin, the tags of the file, and the kept JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

from extras.answers import clean_text
from model import Page, Video
from parse_ import as_object, envelope, reads_site

_BEIJING = timezone(timedelta(hours=8))
_PERSONAL = frozenset(
    {"user_garb", "user_status", "req_user", "is_view_self", "login_mid", "login_mid_hash", "history", "ip_info"}
)
"""What an answer says of whoever asked."""
_SIGNED = re.compile(r"[?&](?:auth_key|deadline|upsig|w_rid|access_key|sign)=")


def movie_nfo(video: Video, page: Page) -> str:
    """Return the NFO of a page that stands alone."""
    return _nfo("movie", [("title", _title(video, page)), *_common(video, page), *_collection(video)])


def episode_nfo(video: Video, page: Page, show: str, number: int) -> str:
    """Return the NFO of a page that is one of several, of a video or of a season."""
    title = page.title if len(video.pages) > 1 else video.title
    fields = [("title", title), ("showtitle", show), ("season", "1"), ("episode", str(number))]
    return _nfo("episodedetails", [*fields, *_common(video, page), ("aired", published_date(video))])


def show_nfo(video: Video, title: str) -> str:
    """Return the NFO of what the episodes in a folder belong to."""
    fields = [("title", title), ("plot", video.about.description if title == video.title else "")]
    return _nfo("tvshow", [*fields, *_people(video), ("uniqueid", "" if title != video.title else video.bvid)])


def published_date(video: Video) -> str:
    """Return the day of publication in the site's own time zone, an empty text where it is not known."""
    seconds = video.about.published_at
    return datetime.fromtimestamp(seconds, UTC).astimezone(_BEIJING).date().isoformat() if seconds else ""


def _title(video: Video, page: Page) -> str:
    return video.title if len(video.pages) == 1 else f"{video.title} P{page.number} {page.title}"


def _common(video: Video, page: Page) -> list[tuple[str, str]]:
    day = published_date(video)
    minutes = round(page.duration_seconds / 60)
    return [
        ("plot", video.about.description),
        ("premiered", day),
        ("year", day[:4]),
        ("runtime", str(minutes) if minutes else ""),
        ("uniqueid", video.bvid),
        *_people(video),
    ]


def _people(video: Video) -> list[tuple[str, str]]:
    return [("studio", "Bilibili"), ("genre", video.about.region), ("director", video.owner), ("credits", video.owner)]


def _collection(video: Video) -> list[tuple[str, str]]:
    return [("set", video.about.season)]


def _nfo(kind: str, fields: Iterable[tuple[str, str]]) -> str:
    """Return an NFO file; empty fields are left out, and no text of the site can become markup."""
    root = ElementTree.Element(kind)
    for name, text in fields:
        if not (text := clean_text(text)):
            continue
        node = ElementTree.SubElement(root, name)
        if name == "uniqueid":
            node.attrib.update({"type": "bilibili", "default": "true"})
        if name == "set":
            node = ElementTree.SubElement(node, "name")
        node.text = text
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n{body}\n'


# ------------------------------------------------------------------------------------------ tags of the file


def file_tags(video: Video, page: Page) -> tuple[tuple[str, str], ...]:
    """Return the tags that go into the file, by the names that ffmpeg knows; empty ones are left out.

    Title and comment are not among them: each file has these, whatever is wanted.
    """
    about = video.about
    is_one_of_many = len(video.pages) > 1
    found = {
        "artist": video.owner,
        "date": published_date(video),
        "description": about.description,
        "genre": about.region,
        "album": video.title if is_one_of_many else about.season,
        "track": str(page.number) if is_one_of_many else str(about.episode_number or ""),
    }
    if found["album"]:
        found["album_artist"] = video.owner
    return tuple((name, clean_text(text)) for name, text in found.items() if text)


# ------------------------------------------------------------------------------------------ JSON


@reads_site
def info_json(view: str) -> str:
    """Return the site's description of a video without what it says of the account, and without signed addresses."""
    return json.dumps(_kept(as_object(envelope(view).get("data"))), ensure_ascii=False, indent=1) + "\n"


def _kept(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _kept(value) for name, value in node.items() if name not in _PERSONAL}
    if isinstance(node, list):
        return [_kept(item) for item in node]
    if isinstance(node, str):
        node = re.sub("[\ud800-\udfff]", "\ufffd", node)
        return node.partition("?")[0] if _SIGNED.search(node) and "//" in node else node
    return node
