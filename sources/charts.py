"""What the site itself recommends: region rankings, popular, weekly, must-see.

Answers as bilibili-API-collect documents them: docs/video_ranking/ranking.md, popular.md, precious_videos.md.
"""

from __future__ import annotations

from dataclasses import replace

from config import Category
from i18n import _
from parse_ import as_object, parse_ranking, plain_title, reads_site, whole_number
from sources.reading import (
    Place,
    Step,
    answer,
    items_of,
    listed,
    next_page,
    params,
    video_item,
    whole_list,
)
from sources.records import ListPage, ListRequest

PAGE_SIZE = 20

_NO_WEEK = _("the site has no such week; they are counted from 1 on")


# ------------------------------------------------------------------------------------------ rankings


def _plan_ranking(place: Place) -> ListRequest:
    return ListRequest("/x/web-interface/ranking/v2", params(rid=place.source.number, type="all"), signed=True)


@reads_site
def _read_ranking(place: Place, text: str) -> ListPage:
    """Return a region's ranking, if it is that region's: an unknown id silently gets the whole site's."""
    items = items_of(listed(answer(text)["list"]), video_item)
    wanted = set(parse_ranking(text, Category("", place.source.number, frozenset(place.source.parts))))
    return whole_list("", tuple(item for item in items if item.id in wanted))


# ------------------------------------------------------------------------------------------ popular


def _plan_popular(place: Place) -> ListRequest:
    return ListRequest("/x/web-interface/popular", params(pn=place.page, ps=PAGE_SIZE))


@reads_site
def _read_popular(place: Place, text: str) -> ListPage:
    """Return a page of what is popular now; how much that is, the site never says."""
    data = answer(text)
    items = items_of(listed(data["list"]), video_item)
    is_end = data["no_more"] is not False
    announced = 0 if is_end and not items and place.page == 1 else None
    return ListPage("", items, announced, None, next_page(place, not items, not is_end))


# ------------------------------------------------------------------------------------------ weekly


def _plan_weeks(place: Place) -> ListRequest:
    return ListRequest("/x/web-interface/popular/series/list", signed=True)


@reads_site
def _read_weeks(place: Place, text: str) -> ListPage:
    """Find out which week is the newest; its videos are asked for next."""
    newest = max((whole_number(week.get("number")) for week in listed(answer(text)["list"])), default=0)
    following = replace(place, step="weekly:", number=newest).cursor() if newest else None
    return ListPage("", (), None if newest else 0, None, following)


def _plan_week(place: Place) -> ListRequest:
    number = place.number or place.source.number
    return ListRequest("/x/web-interface/popular/series/one", params(number=number), signed=True)


@reads_site
def _read_week(place: Place, text: str) -> ListPage:
    data = answer(text, refusals={-404: _NO_WEEK})
    title = plain_title(as_object(data.get("config")).get("name"))
    return whole_list(title, items_of(listed(data["list"]), video_item))


# ------------------------------------------------------------------------------------------ must-see


def _plan_precious(place: Place) -> ListRequest:
    return ListRequest("/x/web-interface/popular/precious")


@reads_site
def _read_precious(place: Place, text: str) -> ListPage:
    data = answer(text)
    return whole_list(plain_title(data.get("title")), items_of(listed(data["list"]), video_item))


STEPS = {
    "rank:": Step(_plan_ranking, _read_ranking),
    "popular": Step(_plan_popular, _read_popular),
    "weekly": Step(_plan_weeks, _read_weeks),
    "weekly:": Step(_plan_week, _read_week),
    "precious": Step(_plan_precious, _read_precious),
}
