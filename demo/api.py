"""The API, the pages and the short links of the stand-in site, and the control API of tests.

The routes are those of the real hosts, below one path prefix for each host: ``/web``, ``/api``,
``/passport``, ``/short`` and ``/space``. The control API is below ``/_control``.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from demo import answers, extras, other_clients
from demo.catalogue import (
    EPISODES,
    SEASON_ID,
    SHORT_LINKS,
    EpisodeRecord,
    PageRecord,
    VideoRecord,
    find_episode,
)
from demo.cdn import STALL_SECONDS, close_connection, status_response
from demo.faults import API_FAULTS, CDN_FAULTS, LISTING_FAULTS, Fault
from demo.listings import Listings, spoil
from demo.shelves import found_in
from demo.signing import wbi_is_valid
from demo.state import SiteState

Answer = Callable[[web.Request], answers.Json]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOGGED_IN = web.RequestKey("logged_in", bool)
HUGE_BYTES = 64 * 1024 * 1024
DEEP = 200_000


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(status=status, text=json.dumps(content, ensure_ascii=False), content_type="application/json")


def _number(request: web.Request, name: str, default: int = 0) -> int:
    text = request.query.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else default


class Site:
    """The handlers of one running site."""

    def __init__(self, state: SiteState, prefix: str) -> None:
        self._state = state
        self._prefix = prefix

    def application(self) -> web.Application:
        """Return the application with every route."""
        app = web.Application(middlewares=[self._guard])
        for path, answer in self._api_routes().items():
            app.router.add_get(f"{self._prefix}/api{path}", self._api_handler(answer))
        self._state.passport.add_routes(app, self._prefix)
        app.router.add_get(f"{self._prefix}/api/x/v2/dm/web/seg.so", extras.danmaku_segment)
        app.router.add_get(f"{self._prefix}/web/", self._home)
        app.router.add_get(f"{self._prefix}/web/video/{{id}}", self._video_page)
        app.router.add_get(f"{self._prefix}/web/video/{{id}}/", self._video_page)
        app.router.add_get(f"{self._prefix}/web/bangumi/play/ep{{id:\\d+}}", self._episode_page)
        app.router.add_get(f"{self._prefix}/short/{{code}}", self._short_link)
        app.router.add_get(f"{self._prefix}/space/{{mid:\\d{{1,18}}}}{{rest:(/.*)?}}", other_clients.space_page)
        Control(self._state).add_routes(app, f"{self._prefix}/_control")
        return app

    def _api_routes(self) -> Mapping[str, Answer]:
        return {
            "/x/web-interface/nav": lambda request: answers.nav(self._state, is_logged_in(request)),
            "/x/frontend/finger/spi": lambda request: answers.spi(),
            "/x/web-interface/view": self._view,
            "/x/web-interface/wbi/view": self._signed(self._view),
            "/x/web-interface/wbi/view/detail": self._signed(self._view_detail),
            "/x/web-interface/ranking/v2": lambda request: answers.ranking(self._state, _number(request, "rid")),
            "/x/player/pagelist": self._pagelist,
            "/x/player/v2": self._player,
            "/x/player/wbi/v2": self._player,
            "/x/tag/archive/tags": self._tags,
            "/x/player/playurl": self._playurl,
            "/x/player/wbi/playurl": self._signed(self._playurl),
            "/pgc/view/web/season": self._season,
            "/pgc/player/web/playurl": lambda request: self._episode_playurl(request, 1),
            "/pgc/player/web/v2/playurl": lambda request: self._episode_playurl(request, 2),
            **Listings(self._state, self._signed, is_logged_in).routes(),
        }

    # -------------------------------------------------------------------------------------- around every request

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path.removeprefix(self._prefix)
        if path.startswith("/_control"):
            return await handler(request)
        route = "/" + path.split("/", 2)[-1]
        request[_LOGGED_IN] = self._state.passport.knows(request.cookies.get("SESSDATA", ""))
        self._state.passport.note_cookies(path.split("/", 2)[1], request)
        self._state.counters.routes[path if path.startswith(("/web/", "/short/")) else route] += 1
        if not self._state.bans.admits(request.remote or ""):
            return _json(answers.BANNED, status=412)
        for fault in self._state.faults.take("api", route).values():
            if fault.kind in LISTING_FAULTS:
                return spoil(await handler(request), fault.kind)
            return await _api_fault(request, fault)
        if "Mozilla/" not in request.headers.get("User-Agent", ""):
            return _json(answers.BANNED, status=412)
        return await handler(request)

    def _api_handler(self, answer: Answer) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return _json(answer(request))

        return handle

    def _signed(self, answer: Answer) -> Answer:
        def check(request: web.Request) -> answers.Json:
            is_valid = wbi_is_valid(request.rel_url.raw_query_string, self._state.keys, time.time())
            if not is_valid or self._state.passport.misses_marks(request.query):
                return answers.voucher()
            return answer(request)

        return check

    # -------------------------------------------------------------------------------------- videos

    def _wanted(self, request: web.Request) -> VideoRecord | None:
        return self._state.find_video(
            request.query.get("bvid", ""), _number(request, "aid") or _number(request, "avid")
        )

    def _view(self, request: web.Request) -> answers.Json:
        if not {"bvid", "aid"} & set(request.query):
            return answers.BAD_REQUEST
        return answers.view(self._state, self._wanted(request))

    def _view_detail(self, request: web.Request) -> answers.Json:
        answer = self._view(request)
        return answers.ok({"View": answer["data"]}) if answer["code"] == 0 else answer

    def _pagelist(self, request: web.Request) -> answers.Json:
        record = self._wanted(request)
        no = answers.refusal(self._state, record)
        if no is not None or record is None:
            return no or answers.NOT_FOUND
        return answers.ok(answers.pages(self._state, record))

    def _tags(self, request: web.Request) -> answers.Json:
        record = self._wanted(request)
        no = answers.refusal(self._state, record)
        if no is not None or record is None:
            return no or answers.NOT_FOUND
        return answers.ok(other_clients.tags(record))

    def _player(self, request: web.Request) -> answers.Json:
        record = self._wanted(request)
        page = self._page(record, _number(request, "cid")) if record is not None else None
        if record is None or page is None:
            return answers.NOT_FOUND
        return answers.ok(extras.player(self._state, record, page, is_logged_in(request)))

    def _page(self, record: VideoRecord, cid: int) -> PageRecord | None:
        return next((page for page in self._state.pages[record.bvid] if page.cid == cid), None)

    def _playurl(self, request: web.Request) -> answers.Json:
        record = self._wanted(request)
        no = answers.refusal(self._state, record)
        if no is not None or record is None:
            return no or answers.NOT_FOUND
        if (no := self._stream_refusal(request, record)) is not None:
            return no
        page = self._page(record, _number(request, "cid"))
        return answers.NOT_FOUND if page is None else answers.ok(self._streams(request, record, page))

    def _stream_refusal(self, request: web.Request, record: VideoRecord) -> answers.Json | None:
        """Return why no streams are given, by the episode's own rule where the video is one."""
        if record.stream_refusal is not None:
            return answers.refused(*record.stream_refusal)
        episode = next((episode for episode in EPISODES if episode.bvid == record.bvid), None)
        return None if episode is None else answers.episode_refusal(episode, is_logged_in(request))

    def _streams(self, request: web.Request, record: VideoRecord, page: PageRecord) -> answers.Json:
        limit = answers.quality_limit(record, is_logged_in(request), request.query.get("try_look") == "1")
        qn, fnval = _number(request, "qn"), _number(request, "fnval", 1)
        if request.query.get("fourk") != "1":
            fnval &= ~answers.FOUR_K
        return answers.playinfo_data(self._state, page, limit=limit, qn=qn, fnval=fnval)

    # -------------------------------------------------------------------------------------- episodes

    def _season(self, request: web.Request) -> answers.Json:
        is_ours = _number(request, "season_id") == SEASON_ID or find_episode(_number(request, "ep_id")) is not None
        return answers.season(self._state) if is_ours else answers.NOT_FOUND

    def _episode_playurl(self, request: web.Request, version: int) -> answers.Json:
        record = find_episode(_number(request, "ep_id")) or self._episode_with_cid(_number(request, "cid"))
        return answers.NOT_FOUND if record is None else self._episode_streams(request, record, version)

    def _episode_with_cid(self, cid: int) -> EpisodeRecord | None:
        return next((record for record in EPISODES if self._state.pages[record.bvid][0].cid == cid), None)

    def _episode_streams(self, request: web.Request, record: EpisodeRecord, version: int) -> answers.Json:
        logged_in = is_logged_in(request)
        if (no := answers.episode_refusal(record, logged_in)) is not None:
            return no
        limit = answers.LOGGED_IN_QN if logged_in else answers.LOGGED_OUT_QN
        qn, fnval = _number(request, "qn"), _number(request, "fnval")
        page = self._state.pages[record.bvid][0]
        return answers.episode_playurl(self._state, page, limit=limit, qn=qn, fnval=fnval, version=version)

    # -------------------------------------------------------------------------------------- pages of HTML

    async def _home(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="<!DOCTYPE html><title>stand-in</title>", content_type="text/html")

    async def _video_page(self, request: web.Request) -> web.StreamResponse:
        text = request.match_info["id"]
        aid = int(text[2:]) if text[:2].lower() == "av" and text[2:].isdecimal() else 0
        record = self._state.find_video(text, aid)
        if record is not None and record.redirect_episode_id:
            return _found(f"{self._state.web_url}/bangumi/play/ep{record.redirect_episode_id}")
        if record is not None and record.bvid in self._state.risky:
            return web.Response(text=answers.risk_html(), content_type="text/html")
        number = _number(request, "p", 1)
        playurl = self._page_playurl(request, record, number) if record is not None else None
        page = answers.video_html(self._state, record, number, playurl)
        return web.Response(text=page, content_type="text/html")

    def _page_playurl(self, request: web.Request, record: VideoRecord, number: int) -> answers.Json:
        """Return what ``window.__playinfo__`` holds: DASH, whatever the query of the page says."""
        if record.stream_refusal or record.refusal:
            return answers.refused(*(record.stream_refusal or record.refusal or (0, "")))
        pages = self._state.pages[record.bvid]
        page = pages[min(max(number, 1), len(pages)) - 1]
        limit = answers.quality_limit(record, is_logged_in(request), try_look=False)
        return answers.ok(answers.playinfo_data(self._state, page, limit=limit, qn=0, fnval=4048))

    async def _episode_page(self, request: web.Request) -> web.StreamResponse:
        record = find_episode(int(request.match_info["id"]))
        if record is None:
            return web.Response(status=404, text="<title>出错啦!</title>", content_type="text/html")
        no = answers.episode_refusal(record, is_logged_in(request))
        page = self._state.pages[record.bvid][0]
        limit = answers.LOGGED_IN_QN if is_logged_in(request) else answers.LOGGED_OUT_QN
        playurl = no or answers.episode_playurl(self._state, page, limit=limit, qn=0, fnval=4048, version=2)
        return web.Response(text=answers.episode_html(record, playurl), content_type="text/html")

    async def _short_link(self, request: web.Request) -> web.StreamResponse:
        code = request.match_info["code"]
        if code[:2] in ("BV", "av"):
            return _found(f"{self._state.web_url}/video/{code}")
        if code.startswith("ep"):
            return _found(f"{self._state.web_url}/bangumi/play/{code}")
        if (target := SHORT_LINKS.get(code) or self._state.crowd.short_target(code)) is None:
            return _json(answers.NOT_FOUND, status=404)
        return _found(self._state.web_url + target if target.startswith("/") else target)


def is_logged_in(request: web.Request) -> bool:
    """Tell whether the request has a session, as the guard has found."""
    return bool(request.get(_LOGGED_IN))


def _found(location: str) -> web.Response:
    return web.Response(status=302, headers={"Location": location})


async def _api_fault(request: web.Request, fault: Fault) -> web.StreamResponse:
    if fault.kind == "timeout":
        await asyncio.sleep(STALL_SECONDS)
    if fault.kind in ("drop", "timeout"):
        return close_connection(request, fault.abort)
    if fault.kind == "status":
        return _json(answers.BANNED, status=412) if fault.status == 412 else status_response(fault)
    if fault.kind == "huge":
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        return web.Response(body=_blanks(fault.bytes or HUGE_BYTES), headers=headers)
    bodies: dict[str, Callable[[], str]] = {
        "risk_control": lambda: json.dumps(answers.voucher(-352)),
        "voucher": lambda: json.dumps(answers.voucher()),
        "answer": lambda: json.dumps(answers.refused(fault.code, fault.message)),
        "invalid_json": lambda: '{"code":0,"message":"0","ttl":1,"data":{"bvid":',
        "deep_json": lambda: "[" * DEEP + "]" * DEEP,
    }
    return web.Response(text=bodies[fault.kind](), content_type="application/json")


def _blanks(size_bytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    piece = b" " * 1024 * 1024
    packed = b"".join(packer.compress(piece[: size_bytes - at]) for at in range(0, size_bytes, len(piece)))
    return packed + packer.flush()


# ------------------------------------------------------------------------------------------ control


class Control:
    """The control API: JSON in, JSON out; a wrong request is 400 with the reason."""

    def __init__(self, state: SiteState) -> None:
        self._state = state

    def add_routes(self, app: web.Application, base: str) -> None:
        """Add the routes below ``base``."""
        reading: dict[str, Callable[[], Any]] = {
            "stats": self._state.counters.listing,
            "passport": self._state.passport.listing,
            "clients": self._state.bans.listing,
            "catalogue": lambda: catalogue_listing(self._state),
            "sources": lambda: found_in(self._state.videos),
            "faults": lambda: {"on": self._state.faults.listing(), "cdn": dict(CDN_FAULTS), "api": dict(API_FAULTS)},
        }
        writing: dict[str, Callable[[dict[str, Any]], Any]] = {
            "faults": self._add_faults,
            "clear_faults": lambda body: self._state.faults.clear(),
            "reset": lambda body: self._state.reset(),
            "reset_stats": lambda body: self._state.counters.reset(),
            "gain_page": self._gain_page,
            "lose_page": lambda body: self._state.lose_page(self._state.video(body["name"]), int(body["number"])),
            "risk": self._risk,
            "rotate_wbi": self._rotate_wbi,
            "passport": self._state.passport.control,
            "settings": self._settings,
            "bans": self._state.bans.control,
        }
        for name, read in reading.items():
            app.router.add_get(f"{base}/{name}", self._reader(read))
        for name, write in writing.items():
            app.router.add_post(f"{base}/{name}", self._writer(write))

    def _reader(self, read: Callable[[], Any]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return _json(read())

        return handle

    def _writer(self, write: Callable[[dict[str, Any]], Any]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                body = json.loads(await request.text() or "{}")
                return _json(write(body) or {})
            except (ValueError, KeyError, TypeError) as error:
                return _json({"error": f"{type(error).__name__}: {error}"}, status=400)

        return handle

    def _add_faults(self, body: object) -> answers.Json:
        faults = [Fault.parse(content) for content in (body if isinstance(body, list) else [body])]
        for fault in faults:
            self._state.faults.add(fault, self._state.serial)
        return {"on": self._state.faults.listing()}

    def _gain_page(self, body: dict[str, Any]) -> answers.Json:
        page = self._state.gain_page(self._state.video(body.get("name", "gains-a-page")), body.get("at"))
        return {"cid": page.cid if page else None}

    def _risk(self, body: dict[str, Any]) -> None:
        bvid = self._state.video(body.get("name", "risk-control")).bvid
        (self._state.risky.add if body.get("on", False) else self._state.risky.discard)(bvid)

    def _rotate_wbi(self, body: dict[str, Any]) -> None:
        self._state.wbi_generation += 1

    def _settings(self, body: dict[str, Any]) -> answers.Json:
        if unknown := sorted(set(body) - {"lifetime_seconds", "rate_bytes_per_second"}):
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        for name, value in body.items():
            setattr(self._state, name, float(value))
        return {
            "lifetime_seconds": self._state.lifetime_seconds,
            "rate_bytes_per_second": self._state.rate_bytes_per_second,
        }


def catalogue_listing(state: SiteState) -> answers.Json:
    """Return what there is, with the SHA-256 of every stream, for tests that compare bit for bit."""

    def listed(page: PageRecord) -> answers.Json:
        streams = [
            {
                "kind": stream.kind,
                "id": stream.id,
                "codecid": stream.codecid,
                "order": stream.order,
                "size_bytes": stream.size_bytes,
                "duration_seconds": stream.duration_seconds,
                "sha256": state.sha256(stream),
                "path": stream.url_path,
            }
            for stream in state.streams_of(page.cid)
        ]
        return {"cid": page.cid, "title": page.title, "streams": streams}

    videos = [
        {
            "name": record.name,
            "bvid": record.bvid,
            "aid": record.aid,
            "title": record.title,
            "refusal": record.refusal or record.stream_refusal,
            "pages": [listed(page) for page in state.pages[record.bvid]] if record.refusal is None else [],
        }
        for record in state.videos
    ]
    episodes = [{"name": record.name, "ep_id": record.ep_id, "bvid": record.bvid} for record in EPISODES]
    return {"videos": videos, "episodes": episodes, "short_links": SHORT_LINKS}
