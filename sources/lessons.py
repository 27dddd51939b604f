"""A lesson of a course as what it is for the downloader: a video of one page.

Answers as bilibili-API-collect documents them: docs/cheese/info.md; its streams come from the courses' own playurl
(docs/cheese/videostream_url.md), which wants the lesson's number.
"""

from __future__ import annotations

from dataclasses import dataclass

from errors import PermanentError
from i18n import _
from model import Page, Video
from parse_ import aid_to_bvid, as_object, plain_title, reads_site, whole_number
from sources.bangumi import LESSONS_PAGE_SIZE
from sources.reading import Object, answer, count, listed
from sources.records import ListRequest

_NO_COURSE = _("there is no such course: it is taken down or was never there")
_NO_LESSON = _("the course does not have this lesson any more")


@dataclass(frozen=True, slots=True)
class LessonSearch:
    """Where a lesson is looked for: ``found``, or to be had by ``next``, the lists of a long course."""

    number: int
    course: int = 0
    title: str = ""
    owner: str = ""
    page: int = 0
    found: Video | None = None

    @property
    def next(self) -> ListRequest:
        """What to ask: the course of the lesson, then its lessons page by page."""
        if not self.page:
            return ListRequest("/pugv/view/web/season", (("ep_id", str(self.number)),))
        wanted = {"season_id": self.course, "pn": self.page, "ps": LESSONS_PAGE_SIZE}
        return ListRequest("/pugv/view/web/ep/list", tuple((name, str(value)) for name, value in wanted.items()))

    def read(self, text: str) -> LessonSearch:
        """Return how the search stands after an answer; raise PermanentError where it has come to nothing."""
        return _read_lessons(self, text) if self.page else _read_course(self, text)


@reads_site
def _read_course(search: LessonSearch, text: str) -> LessonSearch:
    course = answer(text, refusals={-404: _NO_COURSE})
    lessons = listed(course.get("episodes"))
    title = plain_title(course.get("title"))
    owner = plain_title(as_object(course.get("up_info")).get("uname"))
    number = whole_number(course.get("season_id"))
    about = as_object(course.get("episode_page"))
    has_more = bool(number) and (about.get("next") is True or count(about.get("total", len(lessons))) > len(lessons))
    found = _find(search.number, lessons, title, owner)
    if found is None and not has_more:
        raise PermanentError(_NO_LESSON, -404)
    return LessonSearch(search.number, number, title, owner, 1, found)


@reads_site
def _read_lessons(search: LessonSearch, text: str) -> LessonSearch:
    data = answer(text, refusals={-404: _NO_COURSE})
    total = count(as_object(data["page"])["total"])
    found = _find(search.number, listed(data.get("items")), search.title, search.owner)
    if found is None and search.page * LESSONS_PAGE_SIZE >= total:
        raise PermanentError(_NO_LESSON, -404)
    return LessonSearch(search.number, search.course, search.title, search.owner, search.page + 1, found)


def _find(number: int, lessons: list[Object], course: str, owner: str) -> Video | None:
    for lesson in lessons:
        if whole_number(lesson.get("id")) == number:
            return _video(number, lesson, course, owner)
    return None


def _video(number: int, lesson: Object, course: str, owner: str) -> Video:
    aid, cid, seconds = whole_number(lesson["aid"]), whole_number(lesson["cid"]), whole_number(lesson.get("duration"))
    own = plain_title(lesson.get("title"))
    if not aid or not cid:
        raise ValueError
    title = " ".join(filter(None, (course, own))) or f"cheese:ep{number}"
    return Video(aid_to_bvid(aid), aid, title, (Page(1, cid, own or title, float(seconds)),), owner, lesson_id=number)
