"""What has episodes: seasons of bangumi (番剧 and all that is played like it), and courses (课堂).

Answers as bilibili-API-collect documents them: docs/bangumi/info.md, docs/cheese/info.md; ``playable``,
``episode_can_view`` and ``ep_status`` of a lesson as yt-dlp reads them (yt_dlp/extractor/bilibili.py), the sections
that only recommend other works as yutto does (src/yutto/api/bangumi.py).
"""

from __future__ import annotations

from dataclasses import replace

from errors import PermanentError
from i18n import _
from parse_ import as_object, as_objects, plain_title, reads_site, whole_number
from sources.reading import (
    Object,
    Place,
    Step,
    answer,
    count,
    items_of,
    listed,
    params,
    totalled_page,
    video_item,
    whole_list,
)
from sources.records import ListItem, ListPage, ListRequest

LESSONS_PAGE_SIZE = 50

NOT_OWNED = _("the account does not own the course of this lesson; another BILI_SESSDATA may")
NOT_YET = _("the lesson is not published yet")

_RECOMMENDATIONS = 5
"""The ``type`` of a section whose episodes belong to other works."""

_NO_SEASON = _("there is no such season: it is taken down or was never there, or it is not for this region")
_NO_COURSE = _("there is no such course: it is taken down or was never there")


# ------------------------------------------------------------------------------------------ bangumi


def _plan_media(place: Place) -> ListRequest:
    return ListRequest("/pgc/review/user", params(media_id=place.source.number))


@reads_site
def _read_media(place: Place, text: str) -> ListPage:
    """Return what a media page is called; its episodes are those of the season that it names."""
    media = as_object(answer(text, "result", {-404: _NO_SEASON})["media"])
    season = whole_number(media["season_id"])
    if not season:
        raise PermanentError(_NO_SEASON, -404)
    return ListPage(plain_title(media.get("title")), (), None, None, replace(place, step="ss", number=season).cursor())


def _plan_season(place: Place) -> ListRequest:
    return ListRequest("/pgc/view/web/season", params(season_id=place.number or place.source.number))


@reads_site
def _read_season(place: Place, text: str) -> ListPage:
    """Return all episodes of a season: the main ones, then those of its sections (trailers, extras)."""
    season = answer(text, "result", {-404: _NO_SEASON})
    nodes = listed(season["episodes"])
    for section in as_objects(season.get("section")):
        if section.get("type") != _RECOMMENDATIONS:
            nodes += listed(section.get("episodes"))
    title = plain_title(season.get("season_title") or season.get("title"))
    return whole_list(title, items_of(nodes, _episode))


def _episode(node: Object) -> ListItem:
    """Return an entry of a season; what has no episode's number there is a common video."""
    title = " ".join(filter(None, (plain_title(node.get("title")), plain_title(node.get("long_title")))))
    published = whole_number(node.get("pub_time"))
    if number := whole_number(node.get("id") or node.get("ep_id")):
        return ListItem(f"ep{number}", title, published)
    return replace(video_item(node), title=title, published_at=published)


# ------------------------------------------------------------------------------------------ courses


def _plan_course(place: Place) -> ListRequest:
    return ListRequest("/pugv/view/web/season", params(season_id=place.source.number))


@reads_site
def _read_course(place: Place, text: str) -> ListPage:
    """Return a course; a long one has its lessons in pages of their own, which are asked for next."""
    course = answer(text, refusals={-404: _NO_COURSE})
    title, lessons = plain_title(course.get("title")), listed(course["episodes"])
    about = as_object(course.get("episode_page"))
    announced = count(about["total"]) if "total" in about else len(lessons)
    pages = -(-announced // LESSONS_PAGE_SIZE)
    if about.get("next") is True or announced > len(lessons):
        return ListPage(title, (), announced, pages, replace(place, step="lessons").cursor())
    return ListPage(title, items_of(lessons, _lesson), announced, 1, None)


def _plan_lessons(place: Place) -> ListRequest:
    page = params(season_id=place.source.number, pn=place.page, ps=LESSONS_PAGE_SIZE)
    return ListRequest("/pugv/view/web/ep/list", page)


@reads_site
def _read_lessons(place: Place, text: str) -> ListPage:
    data = answer(text, refusals={-404: _NO_COURSE})
    return totalled_page(place, data, "items", _lesson, LESSONS_PAGE_SIZE)


def _plan_lesson(place: Place) -> ListRequest:
    return ListRequest("/pugv/view/web/season", params(ep_id=place.source.number))


@reads_site
def _read_lesson(place: Place, text: str) -> ListPage:
    """Return the one lesson of its course that was named."""
    course = answer(text, refusals={-404: _NO_COURSE})
    items = items_of(listed(course["episodes"]), _lesson)
    mine = tuple(item for item in items if item.id == str(place.source))
    if not mine:
        raise PermanentError(_("the course does not have this lesson any more"), -404)
    return ListPage(plain_title(course.get("title")), mine, 1, 1, None)


def _lesson(node: Object) -> ListItem:
    number = whole_number(node["id"])
    if not number:
        raise ValueError
    published = whole_number(node.get("release_date"))
    return ListItem(f"cheese:ep{number}", plain_title(node.get("title")), published, _why_not(node))


def _why_not(lesson: Object) -> str:
    """Return why this account cannot have a lesson; of the fields that have said so over the years the first counts."""
    if lesson.get("ep_status") == -1:
        return NOT_YET
    for name in ("playable", "episode_can_view"):
        if isinstance(lesson.get(name), bool):
            return "" if lesson[name] else NOT_OWNED
    return NOT_OWNED if lesson.get("status") == 2 else ""


STEPS = {
    "ss": Step(_plan_season, _read_season),
    "md": Step(_plan_media, _read_media),
    "cheese:ss": Step(_plan_course, _read_course),
    "lessons": Step(_plan_lessons, _read_lessons),
    "cheese:ep": Step(_plan_lesson, _read_lesson),
}
