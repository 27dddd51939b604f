"""What the stand-in site answers to who asks for lists of videos, with the fields and codes of the real one.

Fields as bilibili-API-collect documents them: docs/user/space.md, docs/video/collection.md, docs/fav/info.md,
docs/fav/list.md, docs/historytoview/toview.md, docs/bangumi/info.md, docs/cheese/info.md,
docs/cheese/videostream_url.md, docs/video_ranking/popular.md, docs/video_ranking/precious_videos.md,
docs/search/search_request.md; the codes of lists that are not there as yt-dlp meets them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from demo import answers, shelves
from demo.answers import BAD_REQUEST, NOT_FOUND, Json, ok, refused
from demo.catalogue import MEDIA_ID, SEASON_ID, SEASON_TITLE, VideoRecord
from demo.other_clients import FAVOURITE_TYPES, folder_ids
from demo.shelves import Collection, Course, Favourite, Folder, Lesson
from demo.signing import wbi_is_valid
from demo.state import SiteState

Answer = Callable[[web.Request], Json]

NO_PERMISSION = refused(-403, "访问权限不足")
NO_FOLDER = refused(11010, "内容不存在")
NOT_LOGGED_IN = refused(-101, "账号未登录")
SEARCH_PAGES, SEARCH_PAGE_SIZE = 50, 20
COVER = "http://i0.hdslb.com/bfs/archive/demo.jpg"


def _number(request: web.Request, name: str, default: int = 0) -> int:
    text = request.query.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 17 else default


def _cut(entries: Sequence[Any], page: int, size: int) -> list[Any]:
    return list(entries[(page - 1) * size : page * size]) if page > 0 and size > 0 else []


@dataclass(frozen=True)
class Listings:
    """The answers of one running site; ``signed`` guards those that want a WBI signature."""

    state: SiteState
    signed: Callable[[Answer], Answer]
    is_logged_in: Callable[[web.Request], bool]

    def routes(self) -> Mapping[str, Answer]:
        """Return the answer for each path of the API."""
        return {
            "/x/space/wbi/arc/search": self.signed(self._uploads),
            "/x/space/wbi/acc/info": self.signed(self._account),
            "/x/polymer/web-space/seasons_series_list": self._signed_or_not(self._lists),
            "/x/polymer/web-space/seasons_archives_list": self._signed_or_not(self._collection),
            "/x/series/series": self._series,
            "/x/series/archives": self._series_videos,
            "/x/v3/fav/folder/created/list-all": self._folders,
            "/x/v3/fav/resource/list": self._folder,
            "/x/v3/fav/resource/ids": self._folder_ids,
            "/x/v2/history/toview": self._later,
            "/pgc/review/user": self._media,
            "/pugv/view/web/season": self._course,
            "/pugv/view/web/ep/list": self._lessons,
            "/pugv/player/web/playurl": self._lesson_streams,
            "/x/web-interface/popular": self._popular,
            "/x/web-interface/popular/series/list": self._signed_or_not(self._weeks),
            "/x/web-interface/popular/series/one": self._signed_or_not(self._week),
            "/x/web-interface/popular/precious": self._precious,
            "/x/web-interface/wbi/search/type": self.signed(self._search),
        }

    def _signed_or_not(self, answer: Answer) -> Answer:
        """Guard what is answered without a signature too: one that is there must be right."""

        def check(request: web.Request) -> Json:
            query = request.rel_url.raw_query_string
            if "w_rid" in request.query and not wbi_is_valid(query, self.state.keys, time.time()):
                return answers.voucher(-352)
            return answer(request)

        return check

    @property
    def _videos(self) -> tuple[VideoRecord, ...]:
        return self.state.videos

    # ---------------------------------------------------------------------------------- uploaders

    def _uploads(self, request: web.Request) -> Json:
        """Answer for an uploader who was never there as for one without videos, as the real site does."""
        size, page = _number(request, "ps", 30), _number(request, "pn", 1)
        if not _number(request, "mid") or not 1 <= size <= 50 or not page:
            return BAD_REQUEST
        entries = shelves.uploads(_number(request, "mid"), self._videos)
        return ok(
            {
                "list": {"slist": [], "tlist": {}, "vlist": [self._upload(e) for e in _cut(entries, page, size)]},
                "page": {"pn": page, "ps": size, "count": len(entries)},
                "episodic_button": {"text": "播放全部", "uri": f"//www.bilibili.com/list/{request.query['mid']}"},
                "is_risk": False,
                "gaia_res_type": 0,
                "gaia_data": None,
            }
        )

    def _upload(self, entry: VideoRecord | Collection) -> Json:
        collection = entry if isinstance(entry, Collection) else self._collection_of(entry)
        record = collection.videos(self._videos)[-1] if collection is entry and collection else entry
        assert isinstance(record, VideoRecord)
        hidden = collection is entry
        return {
            "comment": 1,
            "typeid": record.region.tid,
            "play": 12345,
            "pic": COVER,
            "subtitle": "",
            "description": "",
            "copyright": "1",
            "title": record.title,
            "review": 0,
            "author": shelves.UPLOADERS.get(record.mid, record.owner),
            "mid": record.mid,
            "created": shelves.published_at(record),
            "length": "00:02",
            "video_review": 7,
            "aid": record.aid,
            "bvid": record.bvid,
            "hide_click": False,
            "is_pay": 0,
            "is_union_video": 0,
            "is_steins_gate": 0,
            "is_live_playback": 0,
            "is_lesson_video": 0,
            "is_lesson_finished": 0,
            "lesson_update_info": "",
            "jump_url": "",
            "meta": None if collection is None else self._meta(collection, hidden),
            "is_avoided": 1 if hidden else 0,
            "season_id": 0 if collection is None else collection.number,
            "attribute": 0,
            "is_charging_arc": False,
        }

    def _collection_of(self, record: VideoRecord) -> Collection | None:
        return next((one for one in shelves.COLLECTIONS if record in one.videos(self._videos)), None)

    def _meta(self, collection: Collection, hidden: bool) -> Json:
        videos = collection.videos(self._videos)
        return {
            "id": collection.number,
            "title": f"合集·{collection.title}",
            "cover": COVER,
            "mid": collection.mid,
            "intro": "",
            "sign_state": 0,
            "attribute": 156 if hidden else 140,
            "ep_count": len(videos),
            "ep_num": len(videos),
            "first_aid": videos[0].aid,
            "ptime": shelves.published_at(videos[-1]),
        }

    def _account(self, request: web.Request) -> Json:
        mid = _number(request, "mid")
        if mid not in shelves.UPLOADERS:
            return refused(-404, "啥都木有")
        return ok({"mid": mid, "name": shelves.UPLOADERS[mid], "sex": "保密", "face": COVER, "sign": "", "level": 6})

    # ---------------------------------------------------------------------------------- collections, series

    def _archive(self, record: VideoRecord) -> Json:
        published = shelves.published_at(record)
        return {
            "aid": record.aid,
            "bvid": record.bvid,
            "ctime": published,
            "duration": 2,
            "enable_vt": False,
            "interactive_video": False,
            "pic": COVER,
            "playback_position": 0,
            "pubdate": published,
            "stat": {"view": 12345, "vt": 0},
            "state": 0,
            "title": record.title,
            "ugc_pay": 0,
            "vt_display": "",
        }

    def _collection(self, request: web.Request) -> Json:
        collection = _find(shelves.COLLECTIONS, _number(request, "season_id"))
        if collection is None:
            return NOT_FOUND
        page, size = _number(request, "page_num", 1), _number(request, "page_size", 30)
        videos = collection.videos(self._videos)
        shown = _cut(videos, page, size)
        meta = {**self._about_list(collection, "season_id"), "title": collection.title}
        about = {"page_num": page, "page_size": size, "total": len(videos)}
        archives = [self._archive(record) for record in shown]
        return ok({"aids": [record.aid for record in shown], "archives": archives, "meta": meta, "page": about})

    def _about_list(self, one: Collection, id_name: str) -> Json:
        """Return what is said of a collection or a series wherever it is named."""
        about = {"mid": one.mid, "cover": COVER, "description": "", "total": len(one.videos(self._videos))}
        if id_name == "season_id":
            own = {"category": 0, "name": f"合集·{one.title}", "ptime": shelves.PUBLISHED}
        else:
            times = dict.fromkeys(("ctime", "mtime", "last_update_ts"), shelves.PUBLISHED)
            texts = {"name": one.title, "creator": "", "keywords": [""], "raw_keywords": ""}
            own = {"category": 1, "state": 2, **times, **texts}
        return {id_name: one.number, **about, **own}

    def _lists(self, request: web.Request) -> Json:
        """Answer with collections before series; who was never there has none, as on the real site."""
        mid, page, size = _number(request, "mid"), _number(request, "page_num", 1), _number(request, "page_size", 20)
        if not mid or not page or not 1 <= size <= 20:
            return BAD_REQUEST
        if mid == shelves.SECRETIVE_MID:
            return refused(53013, "用户隐私设置未公开")
        shelf = [("season_id", one) for one in shelves.COLLECTIONS] + [("series_id", one) for one in shelves.SERIES]
        own = [(id_name, one) for id_name, one in shelf if one.mid == mid]
        shown: dict[str, list[Json]] = {"season_id": [], "series_id": []}
        for id_name, one in _cut(own, page, size):
            first = one.videos(self._videos)[:5]
            shown[id_name].append(
                {
                    "archives": [self._archive(record) for record in first],
                    "meta": self._about_list(one, id_name),
                    "recent_aids": [record.aid for record in first],
                }
            )
        about = {"page_num": page, "page_size": size, "total": len(own)}
        lists = {"page": about, "seasons_list": shown["season_id"], "series_list": shown["series_id"]}
        return ok({"items_lists": lists})

    def _series(self, request: web.Request) -> Json:
        series = _find(shelves.SERIES, _number(request, "series_id"))
        if series is None:
            return NOT_FOUND
        videos = series.videos(self._videos)
        meta = self._about_list(series, "series_id")
        return ok({"meta": meta, "recent_aids": [record.aid for record in videos[:6]]})

    def _series_videos(self, request: web.Request) -> Json:
        series = _find(shelves.SERIES, _number(request, "series_id"))
        if series is None or series.mid != _number(request, "mid"):
            return NOT_FOUND
        page, size = _number(request, "pn", 1), _number(request, "ps", 30)
        videos = series.videos(self._videos)
        shown = _cut(videos, page, size)
        about = {"num": page, "size": size, "total": len(videos)}
        return ok({"aids": [r.aid for r in shown], "page": about, "archives": [self._archive(r) for r in shown]})

    # ---------------------------------------------------------------------------------- favourites, watch later

    def _may_see(self, folder: Folder, request: web.Request) -> bool:
        return not folder.private or (folder.mid == shelves.ACCOUNT_MID and self.is_logged_in(request))

    def _folders(self, request: web.Request) -> Json:
        mid = _number(request, "up_mid")
        if mid == shelves.SECRETIVE_MID or mid not in shelves.UPLOADERS:
            return ok(None)
        folders = [one for one in shelves.FOLDERS if one.mid == mid and self._may_see(one, request)]
        listed = [
            {
                "id": folder.number,
                "fid": folder.number // 100,
                "mid": mid,
                "attr": 22 + folder.private,
                "title": folder.title,
                "fav_state": 0,
                "media_count": len(shelves.favourites(folder, self._videos)),
            }
            for folder in folders
        ]
        return ok({"count": len(folders), "list": listed or None, "season": None})

    def _folder(self, request: web.Request) -> Json:
        folder = _find(shelves.FOLDERS, _number(request, "media_id"))
        size, page = _number(request, "ps"), _number(request, "pn", 1)
        if not 1 <= size <= 20:
            return BAD_REQUEST
        if folder is None:
            return NO_FOLDER
        if not self._may_see(folder, request):
            return NO_PERMISSION
        entries = shelves.favourites(folder, self._videos)
        shown = [_media(entry) for entry in _cut(entries, page, size)]
        info = {
            "id": folder.number,
            "fid": folder.number // 100,
            "mid": folder.mid,
            "attr": 22 + folder.private,
            "title": folder.title,
            "cover": COVER,
            "upper": {"mid": folder.mid, "name": shelves.UPLOADERS[folder.mid], "face": COVER},
            "cnt_info": {"collect": 1, "play": 2, "thumb_up": 3, "share": 4},
            "type": 11,
            "intro": "",
            "ctime": shelves.PUBLISHED,
            "mtime": shelves.PUBLISHED,
            "state": 0,
            "media_count": len(entries),
        }
        has_more = page * size < len(entries)
        return ok({"info": info, "medias": shown or None, "has_more": has_more, "ttl": shelves.PUBLISHED})

    def _folder_ids(self, request: web.Request) -> Json:
        folder = _find(shelves.FOLDERS, _number(request, "media_id"))
        if folder is None:
            return NO_FOLDER
        if not self._may_see(folder, request):
            return NO_PERMISSION
        return ok(folder_ids(shelves.favourites(folder, self._videos)))

    def _later(self, request: web.Request) -> Json:
        if not self.is_logged_in(request):
            return NOT_LOGGED_IN
        records = shelves.later(self._videos)
        listed = [
            {
                **answers.summary(self.state, record),
                "state": -100 if record.refusal else 0,
                "title": "已失效视频" if record.refusal else record.title,
                "count": len(self.state.pages[record.bvid]),
                "progress": 0,
                "add_at": shelves.PUBLISHED,
            }
            for record in records
        ]
        return ok({"count": len(records), "list": listed})

    # ---------------------------------------------------------------------------------- bangumi, courses

    def _media(self, request: web.Request) -> Json:
        if _number(request, "media_id") != MEDIA_ID:
            return NOT_FOUND
        media = {
            "areas": [{"id": 1, "name": "中国大陆"}],
            "cover": COVER,
            "media_id": MEDIA_ID,
            "season_id": SEASON_ID,
            "share_url": f"{self.state.web_url}/bangumi/media/md{MEDIA_ID}",
            "title": SEASON_TITLE,
            "type": 1,
            "type_name": "番剧",
        }
        return {"code": 0, "message": "success", "result": {"media": media}}

    def _course(self, request: web.Request) -> Json:
        """Answer with all lessons to who names one, else with at most fifty: the rest is in pages of its own."""
        wanted = _number(request, "ep_id")
        course = _find(shelves.COURSES, _number(request, "season_id")) or next(
            (one for one in shelves.COURSES if one.first_lesson <= wanted < one.first_lesson + one.lessons), None
        )
        if course is None:
            return NOT_FOUND
        lessons = shelves.lessons(course, self._videos)
        shown = lessons if wanted else lessons[:50]
        data = {
            "cover": COVER,
            "ep_count": len(lessons),
            "episode_page": {"next": len(shown) < len(lessons), "num": 1, "size": 50, "total": len(lessons)},
            "episode_sort": 1,
            "episodes": [self._lesson(lesson, request) for lesson in shown],
            "season_id": course.number,
            "status": 10,
            "subtitle": "",
            "title": course.title,
            "up_info": {"mid": shelves.SMALL_MID, "uname": shelves.UPLOADERS[shelves.SMALL_MID]},
            "user_status": {"favored": 0, "payed": int(course.owned and self.is_logged_in(request))},
        }
        return _success(data)

    def _lesson(self, lesson: Lesson, request: web.Request) -> Json:
        playable = lesson.is_playable(self.is_logged_in(request))
        return {
            "aid": lesson.record.aid,
            "cid": self.state.pages[lesson.record.bvid][0].cid,
            "cover": COVER,
            "duration": 2,
            "ep_status": -1 if lesson.is_coming else 1,
            "episode_can_view": playable,
            "from": "pugv",
            "id": lesson.ep_id,
            "index": lesson.index + 1,
            "label": "试看" if lesson.index < lesson.course.trial else "",
            "page": 1,
            "play": 100,
            "playable": playable,
            "release_date": shelves.PUBLISHED + lesson.index * shelves.HOUR,
            "status": 1 if playable else 2,
            "title": f"第{lesson.index + 1}课",
            "watched": False,
        }

    def _lessons(self, request: web.Request) -> Json:
        course = _find(shelves.COURSES, _number(request, "season_id"))
        if course is None:
            return NOT_FOUND
        page, size = _number(request, "pn", 1), _number(request, "ps", 50)
        lessons = shelves.lessons(course, self._videos)
        about = {"next": page * size < len(lessons), "num": page, "size": size, "total": len(lessons)}
        return _success({"items": [self._lesson(one, request) for one in _cut(lessons, page, size)], "page": about})

    def _lesson_streams(self, request: web.Request) -> Json:
        lesson = self._find_lesson(_number(request, "ep_id"))
        if lesson is None or _number(request, "avid") != lesson.record.aid:
            return NOT_FOUND
        if not lesson.is_playable(self.is_logged_in(request)):
            return refused(-403, "抱歉，您没有购买该课程")
        limit = answers.LOGGED_IN_QN if self.is_logged_in(request) else answers.LOGGED_OUT_QN
        qn, fnval = _number(request, "qn"), _number(request, "fnval")
        page = self.state.pages[lesson.record.bvid][0]
        return _success(answers.playinfo_data(self.state, page, limit=limit, qn=qn, fnval=fnval))

    def _find_lesson(self, ep_id: int) -> Lesson | None:
        found = (one for course in shelves.COURSES for one in shelves.lessons(course, self._videos))
        return next((lesson for lesson in found if lesson.ep_id == ep_id), None)

    # ---------------------------------------------------------------------------------- charts, search

    def _recommended(self, records: Sequence[VideoRecord]) -> list[Json]:
        return [
            {**answers.summary(self.state, r), "season_type": 0, "is_ogv": False, "ogv_info": None} for r in records
        ]

    def _popular(self, request: web.Request) -> Json:
        page, size = _number(request, "pn", 1), _number(request, "ps", 20)
        records = shelves.good(self._videos)[: shelves.POPULAR_LIMIT]
        listed = self._recommended(_cut(records, page, size))
        return ok({"list": listed, "no_more": page * size >= len(records)})

    def _weeks(self, request: web.Request) -> Json:
        weeks = [{"number": n, "subject": "", "status": 2, "name": _week_name(n)} for n in range(shelves.WEEKS, 0, -1)]
        return ok({"list": weeks})

    def _week(self, request: web.Request) -> Json:
        number = _number(request, "number")
        if not 1 <= number <= shelves.WEEKS:
            return NOT_FOUND
        config = {"id": number, "type": "weekly_selected", "number": number, "name": _week_name(number), "status": 2}
        listed = self._recommended(shelves.week(number, self._videos))
        return ok({"config": config, "reminder": "每周五晚18:00更新", "list": listed})

    def _precious(self, request: web.Request) -> Json:
        listed = self._recommended(shelves.good(self._videos)[:5])
        return ok({"title": "入站必刷", "media_id": 100001, "explain": "5个宝藏视频", "list": listed})

    def _search(self, request: web.Request) -> Json:
        keyword, page = request.query.get("keyword", ""), _number(request, "page", 1)
        if not keyword or request.query.get("search_type") != "video" or not 1 <= page <= SEARCH_PAGES:
            return BAD_REQUEST
        found: list[Json] = [self._found_course(c, keyword) for c in shelves.COURSES if keyword in c.title]
        found += [self._found(record, keyword) for record in self._videos if _is_found(record, keyword)]
        return ok(
            {
                "seid": "1",
                "page": page,
                "pagesize": SEARCH_PAGE_SIZE,
                "numResults": min(len(found), SEARCH_PAGES * SEARCH_PAGE_SIZE),
                "numPages": min(-(-len(found) // SEARCH_PAGE_SIZE), SEARCH_PAGES),
                "suggest_keyword": "",
                "rqt_type": "search",
                "egg_hit": 0,
                "result": _cut(found, page, SEARCH_PAGE_SIZE),
                "show_column": 0,
            }
        )

    def _found(self, record: VideoRecord, keyword: str) -> Json:
        published = shelves.published_at(record)
        return {
            "type": "video",
            "id": record.aid,
            "author": shelves.UPLOADERS.get(record.mid, record.owner),
            "mid": record.mid,
            "arcurl": f"http://www.bilibili.com/video/av{record.aid}",
            "aid": record.aid,
            "bvid": record.bvid,
            "title": _marked(record.title, keyword),
            "description": "",
            "pic": COVER,
            "pubdate": published,
            "senddate": published,
            "duration": "0:2",
        }

    def _found_course(self, course: Course, keyword: str) -> Json:
        address = f"https://www.bilibili.com/cheese/play/ep{course.first_lesson}"
        return {"type": "ketang", "id": course.number, "title": _marked(course.title, keyword), "arcurl": address}


def _find(shelf: Sequence[Any], number: int) -> Any:
    return next((one for one in shelf if one.number == number), None)


def _is_found(record: VideoRecord, keyword: str) -> bool:
    return keyword in record.title and shelves.is_listed(record)


def _success(data: Json) -> Json:
    return {"code": 0, "message": "success", "data": data}


def _week_name(number: int) -> str:
    return f"2023第{number}期 11.{number * 7:02d} - 11.{number * 7 + 6:02d}"


def _marked(title: str, keyword: str) -> str:
    return title.replace(keyword, f'<em class="keyword">{keyword}</em>')


def _media(entry: Favourite) -> Json:
    links = {"episode": f"bilibili://bangumi/season/ep/{entry.id}", "video": f"bilibili://video/{entry.id}"}
    return {
        "id": entry.id,
        "type": FAVOURITE_TYPES[entry.kind],
        "title": entry.title,
        "cover": COVER,
        "intro": "",
        "page": 1,
        "duration": 2,
        "upper": {"mid": shelves.SMALL_MID, "name": shelves.UPLOADERS[shelves.SMALL_MID], "face": COVER},
        "attr": entry.attr,
        "cnt_info": {"collect": 1, "play": 2, "danmaku": 3},
        "link": links.get(entry.kind, ""),
        "ctime": entry.published,
        "pubtime": entry.published,
        "fav_time": entry.published,
        "bv_id": entry.bvid,
        "bvid": entry.bvid,
        "season": None,
    }


# ------------------------------------------------------------------------------------------ faults

_LISTS = ("vlist", "series_list", "archives", "medias", "items", "episodes", "list", "result")


def spoil(response: web.StreamResponse, kind: str) -> web.StreamResponse:
    """Return an answer that has lost the first entry of its list, or all of them, and says nothing of it."""
    assert isinstance(response, web.Response)
    answer = json.loads(response.text or "{}")
    holder = _holder(answer)
    if holder is not None:
        node, name = holder
        node[name] = node[name][1:] if kind == "lose_item" else []
    return web.Response(text=json.dumps(answer, ensure_ascii=False), content_type="application/json")


def _holder(node: object) -> tuple[Json, str] | None:
    """Return the object in an answer that has the list, and the list's name."""
    if not isinstance(node, dict):
        return None
    for name in _LISTS:
        if isinstance(node.get(name), list):
            return node, name
    return next((found for inner in node.values() if (found := _holder(inner)) is not None), None)
