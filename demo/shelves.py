"""What the stand-in site lists: uploaders, collections, series, favourites, courses, weeks.

All of it is made of the videos that there are, so that whatever is listed can be downloaded. ``--crowd 400`` gives the
uploader of mid 20000 four hundred videos, most lists more than a page, and a hidden collection of eighty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

from demo.catalogue import EPISODES, EXTRA_EPISODES, MEDIA_ID, RISKY, SEASON_ID, VideoRecord, video
from demo.crowd import AID_STEP, CROWD_MID, FIRST_AID, FIRST_LARGE_AID

SMALL_MID, EMPTY_MID, SECRETIVE_MID, ACCOUNT_MID = 10001, 30000, 30001, 10086
"""An uploader of the catalogue's videos, one without any, one who hides favourites and lists, and whoever logs in."""

UPLOADERS = {
    SMALL_MID: "示例UP主",
    CROWD_MID: "人群UP主",
    EMPTY_MID: "还没投稿",
    SECRETIVE_MID: "不公开",
    ACCOUNT_MID: "demo",
}

PUBLISHED = 1_700_000_000
HOUR = 3600


def published_at(record: VideoRecord) -> int:
    """Return when a video was published: those of the crowd an hour apart, all others at the same moment."""
    number = (record.aid - FIRST_AID) // AID_STEP if FIRST_AID < record.aid < FIRST_LARGE_AID else 0
    return PUBLISHED + number * HOUR


def is_listed(record: VideoRecord) -> bool:
    """Tell whether a video stands in its uploader's list: it does where anybody may at least hear of it."""
    return record.refusal is None and not record.redirect_episode_id


def of_crowd(videos: Sequence[VideoRecord]) -> list[VideoRecord]:
    """Return the small videos of the crowd."""
    return [record for record in videos if record.mid == CROWD_MID]


def good(videos: Sequence[VideoRecord]) -> list[VideoRecord]:
    """Return the videos that the site would recommend: those that anybody can watch."""
    return [record for record in videos if is_listed(record) and record.stream_refusal is None and record.name != RISKY]


# ------------------------------------------------------------------------------------------ collections and series


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection (合集), or a series: named videos of the catalogue, or each so-manieth of the crowd.

    A hidden one stands in its uploader's list in place of its videos.
    """

    number: int
    mid: int
    title: str
    names: tuple[str, ...] = ()
    each: int = 0
    hidden: bool = False

    def videos(self, videos: Sequence[VideoRecord]) -> list[VideoRecord]:
        """Return what is in it, out of all that there is."""
        if self.each:
            return of_crowd(videos)[:: self.each]
        return [video(name) for name in self.names]


COLLECTIONS = (
    Collection(4001, SMALL_MID, "示例合集", ("plain", "five-pages", "same-title-a")),
    Collection(4002, SMALL_MID, "隐藏的合集", ("same-title-b", "illegal-title", "emoji-title"), hidden=True),
    Collection(4003, CROWD_MID, "人群的隐藏合集", each=5, hidden=True),
    Collection(4004, CROWD_MID, "人群的合集", each=3),
    Collection(4005, SMALL_MID, "空的合集"),
)
SERIES = (
    Collection(5001, SMALL_MID, "示例系列", ("rich", "many-pages", "no-audio")),
    Collection(5002, CROWD_MID, "人群的系列", each=1),
    *(Collection(number, CROWD_MID, f"系列{number}", ("plain",)) for number in range(5101, 5121)),
)


def uploads(mid: int, videos: Sequence[VideoRecord]) -> list[VideoRecord | Collection]:
    """Return an uploader's list, the newest first; a hidden collection stands where its newest video would."""
    hidden = {
        record.bvid: collection
        for collection in COLLECTIONS
        if collection.hidden and collection.mid == mid
        for record in collection.videos(videos)
    }
    own = sorted((v for v in videos if v.mid == mid and is_listed(v)), key=published_at, reverse=True)
    return list(dict.fromkeys(hidden.get(record.bvid, record) for record in own))


# ------------------------------------------------------------------------------------------ favourites


@dataclass(frozen=True, slots=True)
class Favourite:
    """An entry of a folder: a video, alive or dead, or what else can be put there."""

    kind: Literal["video", "audio", "collection", "episode"]
    id: int
    title: str
    bvid: str = ""
    attr: int = 0
    published: int = PUBLISHED


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of favourites: ``number`` is its full media id."""

    number: int
    mid: int
    title: str
    private: bool = False


FOLDERS = (
    Folder(100001, SMALL_MID, "默认收藏夹"),
    Folder(100101, SMALL_MID, "空的收藏夹"),
    Folder(100201, SMALL_MID, "别人看不到的收藏夹", private=True),
    Folder(200000, CROWD_MID, "人群的收藏夹"),
    Folder(1008686, ACCOUNT_MID, "我自己的私密收藏夹", private=True),
)
GONE, GONE_BY_UPLOADER = 1, 9


def _favourite(record: VideoRecord, attr: int = 0) -> Favourite:
    title = "已失效视频" if attr else record.title
    return Favourite("video", record.aid, title, record.bvid, attr, published_at(record))


def favourites(folder: Folder, videos: Sequence[VideoRecord]) -> list[Favourite]:
    """Return what is in a folder, dead entries included."""
    if folder.number == 200000:
        return [_favourite(record, GONE if n % 10 == 9 else 0) for n, record in enumerate(of_crowd(videos))]
    if folder.number == 100101:
        return []
    if folder.private:
        return [_favourite(video("plain")), _favourite(video("rich"))]
    return [
        _favourite(video("plain")),
        _favourite(video("deleted"), GONE_BY_UPLOADER),
        _favourite(video("invisible"), GONE),
        Favourite("audio", 13598, "一首歌"),
        Favourite("collection", 4001, "示例合集"),
        Favourite("episode", EPISODES[0].ep_id, "示例番剧 第1话", EPISODES[0].bvid),
        _favourite(video("five-pages")),
    ]


# ------------------------------------------------------------------------------------------ courses


@dataclass(frozen=True, slots=True)
class Course:
    """A course (课堂): ``trial`` lessons are for everybody, ``coming`` ones for nobody yet, the rest for its owner."""

    number: int
    title: str
    lessons: int
    first_lesson: int
    owned: bool = False
    trial: int = 0
    coming: int = 0


COURSES = (
    Course(6001, "买了的课", 4, 700_101, owned=True, coming=1),
    Course(6002, "没买的课", 3, 700_201, trial=1),
    Course(6003, "买了的长课", 120, 700_301, owned=True),
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One lesson: its streams are those of a video of the catalogue or the crowd."""

    course: Course
    index: int
    record: VideoRecord

    @property
    def ep_id(self) -> int:
        """The lesson's id, in a numbering of its own beside that of bangumi."""
        return self.course.first_lesson + self.index

    @property
    def is_coming(self) -> bool:
        """Tell a lesson that is announced, but not published yet."""
        return self.index >= self.course.lessons - self.course.coming

    def is_playable(self, logged_in: bool) -> bool:
        """Tell whether this client may watch it."""
        return not self.is_coming and (self.index < self.course.trial or (self.course.owned and logged_in))


def lessons(course: Course, videos: Sequence[VideoRecord]) -> list[Lesson]:
    """Return the lessons of a course."""
    pool = of_crowd(videos) or [video(name) for name in ("plain", "five-pages", "rich", "many-pages")]
    return [Lesson(course, index, record) for index, record in enumerate(islice(cycle(pool), course.lessons))]


# ------------------------------------------------------------------------------------------ charts, watch later

WEEKS = 3
POPULAR_LIMIT = 500


def week(number: int, videos: Sequence[VideoRecord]) -> list[VideoRecord]:
    """Return the selection of a week."""
    return good(videos)[number - 1 :: WEEKS][:30]


def later(videos: Sequence[VideoRecord]) -> list[VideoRecord]:
    """Return what the account that logs in has put aside; one of them is gone by now."""
    return [video("plain"), video("deleted"), video("five-pages"), *of_crowd(videos)[:20]]


# ------------------------------------------------------------------------------------------ what a walk must find


def found_in(videos: Sequence[VideoRecord]) -> dict[str, list[str]]:
    """Return, for each source, the ids that its listing leads to for whoever is logged in; dead entries have none."""
    listings = {f"mid:{mid}": [_entry_id(entry) for entry in uploads(mid, videos)] for mid in UPLOADERS}
    for prefix, collections in (("season", COLLECTIONS), ("series", SERIES)):
        listings |= {f"{prefix}:{one.number}": [r.bvid for r in one.videos(videos)] for one in collections}
    shown = [folder for folder in FOLDERS if not folder.private or folder.mid == ACCOUNT_MID]
    listings |= {f"fav:{f.number}": [i for e in favourites(f, videos) if (i := _favourite_id(e))] for f in shown}
    listings |= {
        f"favs:{mid}": [f"fav:{folder.number}" for folder in FOLDERS if folder.mid == mid and not folder.private]
        for mid in UPLOADERS
        if mid != SECRETIVE_MID
    }
    for mid in UPLOADERS:
        if mid != SECRETIVE_MID:
            seasons, series = ([one.number for one in shelf if one.mid == mid] for shelf in (COLLECTIONS, SERIES))
            listings[f"lists:{mid}"] = [*(f"season:{n}" for n in seasons), *(f"series:{n}" for n in series)]
    episodes = [f"ep{record.ep_id}" for record in (*EPISODES, *EXTRA_EPISODES)]
    listings |= {f"ss{SEASON_ID}": episodes, f"md{MEDIA_ID}": episodes}
    for course in COURSES:
        playable = [lesson.ep_id for lesson in lessons(course, videos) if lesson.is_playable(True)]
        listings[f"cheese:ss{course.number}"] = [f"cheese:ep{number}" for number in playable]
    weeks = {f"weekly:{number}": [r.bvid for r in week(number, videos)] for number in range(1, WEEKS + 1)}
    charts = {"popular": good(videos)[:POPULAR_LIMIT], "precious": good(videos)[:5]}
    listings |= {**weeks, "weekly": weeks[f"weekly:{WEEKS}"]}
    listings |= {name: [record.bvid for record in records] for name, records in charts.items()}
    return {**listings, "later": [record.bvid for record in later(videos) if record.refusal is None]}


def _entry_id(entry: VideoRecord | Collection) -> str:
    return f"season:{entry.number}" if isinstance(entry, Collection) else entry.bvid


def _favourite_id(entry: Favourite) -> str:
    ids = {"video": "" if entry.attr else entry.bvid, "collection": f"season:{entry.id}", "episode": f"ep{entry.id}"}
    return ids.get(entry.kind, "")
