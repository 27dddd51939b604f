"""What the site finds for a keyword, videos only.

Answers as bilibili-API-collect documents them: docs/search/search_request.md and search_response.md.
"""

from __future__ import annotations

import re

from i18n import _
from parse_ import plain_title, reads_site, whole_number
from sources.reading import Object, Place, Step, answer, items_of, linked_number, listed, next_page, params, video_item
from sources.records import ListItem, ListPage, ListRequest

MAX_PAGES = 50
"""The site shows no more, 20 on each, however much it finds."""

NO_VIDEO = _("it is no video, but an advertisement or another kind of entry")

_MARKS = re.compile(r"</?em[^>]{0,100}>")
"""What the site puts around the words that it found in a title."""


def _plan(place: Place) -> ListRequest:
    wanted = params(search_type="video", keyword=place.source.keyword, order="totalrank", duration=0, tids=0)
    return ListRequest("/x/web-interface/wbi/search/type", (*wanted, *params(page=place.page)), signed=True)


@reads_site
def _read(place: Place, text: str) -> ListPage:
    """Return a page of what was found; the site's numbers are estimates, so nothing counts as announced."""
    data = answer(text)
    items = items_of(listed(data.get("result")), _result)
    pages = min(whole_number(data["numPages"]), MAX_PAGES)
    announced = None if pages or items else 0
    return ListPage(place.source.keyword, items, announced, pages, next_page(place, not items, place.page < pages))


def _result(node: Object) -> ListItem:
    if node.get("type") == "video":
        clean = {**node, "title": _MARKS.sub("", str(node.get("title", ""))[:4000])}
        return video_item(clean)
    lesson = linked_number(node.get("arcurl"), "/cheese/play/ep")
    title = plain_title(_MARKS.sub("", str(node.get("title", ""))[:4000]))
    return ListItem(f"cheese:ep{lesson}", title) if lesson else ListItem("", title, 0, NO_VIDEO)


STEPS = {"search:": Step(_plan, _read)}
