"""What people write of sources and pages on the command line, and what they read of a ledger."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from i18n import _

PageRange = tuple[int, int]
"""The first and the last page; a negative one counts from the end."""

MAX_RANGES = 100


def parse_date(text: str) -> int:
    """Return the Unix time at which a day begins here."""
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError
        return max(0, int(datetime.strptime(text, "%Y-%m-%d").timestamp()))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(_("it must be a day such as 2024-12-31")) from None


def parse_pages(text: str) -> tuple[PageRange, ...]:
    """Return the ranges of pages that a text such as ``1-3,5,-1`` names."""
    number = r"-?[1-9][0-9]{0,4}"
    parts = [part.strip() for part in text.split(",")]
    found = [re.fullmatch(rf"({number})(?:-({number}))?", part) for part in parts]
    if len(parts) > MAX_RANGES or None in found:
        raise argparse.ArgumentTypeError(_("it must be pages such as 1-3,5,-1; -1 is the last one"))
    return tuple((int(match[1]), int(match[2] or match[1])) for match in found if match)


def chosen_pages(ranges: tuple[PageRange, ...], count: int) -> list[int]:
    """Return the numbers of the pages that are wished of ``count``; ValueError for one that is not there."""
    chosen: dict[int, None] = {}
    for named in ranges:
        first, last = (place + count + 1 if place < 0 else place for place in named)
        if not 1 <= first <= last <= count:
            shown = str(named[0]) if named[0] == named[1] else f"{named[0]}-{named[1]}"
            raise ValueError(_("there is no page {pages}: the video has {count}").format(pages=shown, count=count))
        chosen |= dict.fromkeys(range(first, last + 1))
    return list(chosen)


def facts(item: Mapping[str, Any], now: float) -> tuple[str, ...]:
    """Return what a table says of a source: one text for each column."""
    announced = item.get("announced")
    listed = f"{item['listed']}/{announced}" if announced is not None else str(item["listed"])
    gone = sum(item.get("unavailable", {}).values())
    watched = _("every {span}").format(span=age(item["watched"])) if item.get("watched") else ""
    checked = _("{span} ago").format(span=age(now - item["checked"])) if item.get("checked") else ""
    return (
        str(item["source"]),
        str(item.get("title", "")),
        state(item),
        listed,
        str(item["queued"]),
        str(item["known"]),
        str(gone),
        watched,
        checked,
    )


def state(item: Mapping[str, Any]) -> str:
    """Return in words how far a source is read."""
    if item["state"] == "dead":
        return _("failed: {reason}").format(reason=item.get("reason", ""))
    if item["state"] == "delayed":
        return _("tried again later: {reason}").format(reason=item.get("reason", ""))
    if item["state"] == "leased":
        return _("being read")
    if item["state"] == "ready" or not item.get("checked"):
        return _("waiting")  # for a reader, or for the first visit of a watch
    if item.get("complete"):
        return _("complete")
    return _("read as wished") if item.get("ended") == "wished" else _("incomplete")


def age(seconds: float) -> str:
    """Return a duration for people, in one unit."""
    for unit, size in ((_("{count} d"), 86400), (_("{count} h"), 3600), (_("{count} min"), 60)):
        if seconds >= size:
            return unit.format(count=round(seconds / size))
    return _("{count} s").format(count=round(max(0.0, seconds)))
