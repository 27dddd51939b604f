"""What sources look like in the messages between server, workers and scripts: shapes, and records of what came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from i18n import _
from model import Lease, ListedPage, Walk
from shapes import Check, flag, line, list_of, number, one_of, record
from source_ids import SEARCH, find_source

IDS_AT_MOST = 500
CURSOR_CHARACTERS = 2000
REASONS_AT_MOST = 50

_PAGE = number(0, 10**6, whole=True)
_ITEMS = number(0, 10**9, whole=True)

LEAST_WATCH_SECONDS, MOST_WATCH_SECONDS = 10, 31 * 86400

_WISHES: dict[str, Check] = {
    "since": number(0, 2**40, whole=True),
    "match": line(200),
    "limit": _ITEMS,
    "oldest_first": flag,
}
WISHES = record({}, **_WISHES)
"""What a user wishes of a source: which of its videos, and in which order."""

WALK = record({}, cursor=line(CURSOR_CHARACTERS), page=_PAGE, taken=_ITEMS, quick=flag, **_WISHES)
"""How a source is to be read: it comes with its lease."""


def watch_seconds(value: Any) -> int:
    """Check how often something is to be read again; 0 is not at all."""
    seconds: int = number(0, MOST_WATCH_SECONDS, whole=True)(value)
    if 0 < seconds < LEAST_WATCH_SECONDS:
        raise ValueError(_("0 is expected, or at least {count}").format(count=LEAST_WATCH_SECONDS))
    return seconds


def _reasons(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > REASONS_AT_MOST:
        raise ValueError(_("at most {count} reasons are expected").format(count=REASONS_AT_MOST))
    return {line(200, 1)(reason): _ITEMS(count) for reason, count in value.items()}


def ledger_shape(job_id: Check) -> Check:
    """Return the check for what the ledger of a source is told of a page."""
    return record(
        {"page": number(1, 10**6, whole=True)},
        title=line(1000),
        announced=_ITEMS,
        pages=_PAGE,
        unavailable=_reasons,
        skipped=list_of(job_id, IDS_AT_MOST),
        taken=_ITEMS,
        cursor=line(CURSOR_CHARACTERS),
        ended=one_of("end", "wished"),
    )


def listed_page(found: Mapping[str, Any], title: str = "") -> ListedPage:
    """Return the record of a checked ``ledger``; ``title`` is what stands beside it, of a video too."""
    return ListedPage(**{"page": 0, "title": title, **found, "skipped": tuple(found.get("skipped", ()))})


def read_lease(fields: Mapping[str, Any]) -> Lease:
    """Return the record of a checked lease."""
    walk = fields.get("walk")
    return Lease(**{**fields, "walk": None if walk is None else Walk(**walk)})


def lease_fields(lease: Lease) -> dict[str, Any]:
    """Return what is sent of a lease: how to read it comes with a source only."""
    fields = {
        "url": lease.url,
        "token": lease.token,
        "category": lease.category,
        "attempt": lease.attempt,
        "lease_seconds": lease.lease_seconds,
    }
    return fields if lease.walk is None else fields | {"walk": asdict(lease.walk)}


_ADDRESSES = {
    "fav:": "/list/ml{number}",
    "ss": "/bangumi/play/ss{number}",
    "md": "/bangumi/media/md{number}",
    "cheese:ss": "/cheese/play/ss{number}",
    "cheese:ep": "/cheese/play/ep{number}",
    "weekly:": "/v/popular/weekly?num={number}",
    "rank:": "/v/popular/rank/all",
    "later": "/watchlater",
    "popular": "/v/popular/all",
    "weekly": "/v/popular/weekly",
    "precious": "/v/popular/history",
}


_SPACES = {"mid:": "", "favs:": "/favlist", "lists:": "/lists"}
"""Pages of a user's space."""


def source_address(source: str, web_url: str) -> str:
    """Return where a source can be looked at in a browser; of a collection or a series its id alone does not tell."""
    found = find_source(source)
    if found is None:
        return web_url
    if found.kind == SEARCH:
        return f"https://search.bilibili.com/video?keyword={source.removeprefix(SEARCH)}"
    if found.kind in _SPACES:
        return f"https://space.bilibili.com/{found.number}{_SPACES[found.kind]}"
    return web_url + _ADDRESSES.get(found.kind, "").format(number=found.number)
