"""The door to the site's API and pages: asked slowly, once for all who wait, and with cookies only where they belong.

What an answer means is decided in parse_.py. Nothing here logs, shows or raises an address with a query, a cookie
or a key: errors name the host at most.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import os
import random
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar
from urllib.parse import quote, urlencode, urljoin
from urllib.request import getproxies

import aiohttp
from yarl import URL

from account import Login, Scope
from account import origin as _origin
from config import USER_AGENT, Settings, tls_context
from errors import JobError, NoWayOut, Parked, PermanentError, SiteError, TransientError
from i18n import _
from model import MIB, JobId, Page, Playinfo, Video
from pace import Pace
from parse_ import (
    answer_code,
    is_refusal,
    parse_initial_state,
    parse_login,
    parse_playinfo_html,
    parse_playurl,
    parse_season,
    parse_spi,
    parse_view,
    parse_wbi_keys,
    risk_control,
    sign_wbi,
)
from retry import full_jitter_seconds
from source_ids import LESSON, find_source
from sources import LessonSearch, ListRequest
from visitor import TICKET_PATH, browser_marks, page_origin, page_referer, parse_ticket, ticket_request

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 * MIB
TRIES = 3
MAX_HOPS = 3
MAX_VIDEOS = 256
MAX_VIEWS = 4
VIDEO_SECONDS = 120.0
KEYS_TRUSTED_SECONDS = 60.0
"""Keys that are younger than this are not the reason of a refusal."""
BUVID_RETRY_SECONDS = TICKET_RETRY_SECONDS = 600.0
UNREACHED_SECONDS = 15.0
MAX_RETRY_AFTER_SECONDS = 6 * 3600.0
LOOK_SECONDS = 0.5
"""Whoever waits for its turn looks again so often: the pace may have changed."""
CLOCK_TOLERANCE_SECONDS = 300.0

_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10, sock_read=20)
LOGIN_TRUSTED_SECONDS = 10.0
"""What the site said of the login is believed for so long, where it may be the reason of a refusal."""
_FOR_AN_ACCOUNT = frozenset({"-101", "-106", "-650", "-403", "-10403", "87007", "87008", "preview"})
"""Refusals that may only mean that the login is over."""
_KEY_SYMPTOMS = frozenset({"-403", "-352", "v_voucher"})
_HIGHEST_QN = 127
_EVERYTHING = 16 | 64 | 128 | 256 | 512 | 1024 | 2048
"""The bits of fnval: DASH, HDR, 4K, Dolby Audio, Dolby Vision, 8K, AV1 (docs/video/videostream_url.md of
bilibili-API-collect). All at once, whatever is wished: so the choice has all that there is to fall back on."""
_BEIJING_SECONDS = 8 * 3600

_Value = TypeVar("_Value")


# ------------------------------------------------------------------------------------------ the session


def make_session(settings: Settings, environ: Mapping[str, str] = os.environ) -> aiohttp.ClientSession:
    """Return a session that looks like a browser, honours proxies and CA files, and never keeps a cookie.

    It has no jar on purpose: a cookie goes out only with a request that names it.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls_context(environ)),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT, "Referer": page_referer(settings.web_url)},
        timeout=_TIMEOUT,
        trust_env=bool(getproxies()),  # where there is none, each request would look for one, in a thread of its own
    )


# ------------------------------------------------------------------------------------------ sharing among tasks


@dataclass(slots=True)
class _Flight(Generic[_Value]):
    task: asyncio.Task[tuple[_Value, float]]
    waiters: int = 0


class _Shared(Generic[_Value]):
    """Answers that many tasks want at once: asked for by one, given to all, kept for the seconds told with them."""

    def __init__(self, monotonic: Callable[[], float], entries: int) -> None:
        self._monotonic = monotonic
        self._entries = entries
        self._kept: dict[str, tuple[_Value, float]] = {}
        self._flights: dict[str, _Flight[_Value]] = {}

    async def get(self, key: str, ask: Callable[[], Coroutine[object, object, tuple[_Value, float]]]) -> _Value:
        """Return the answer of ``ask`` (a value, and how long it is good), or the one that is kept."""
        kept = self._kept.get(key)
        if kept is not None and self._monotonic() < kept[1]:
            return kept[0]
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(ask()))
            flight.task.add_done_callback(partial(self._land, key, flight))
        flight.waiters += 1
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                # Nobody wants it any more; who comes next must not join a task that is being cancelled.
                self._drop(key, flight)
                flight.task.cancel()
        return flight.task.result()[0]

    def forget(self, key: str) -> None:
        """Drop a kept answer."""
        self._kept.pop(key, None)

    def _drop(self, key: str, flight: _Flight[_Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _land(self, key: str, flight: _Flight[_Value], task: asyncio.Task[tuple[_Value, float]]) -> None:
        self._drop(key, flight)
        if task.cancelled() or task.exception() is not None:
            return
        value, good_seconds = task.result()
        self._kept.pop(key, None)
        while len(self._kept) >= self._entries:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (value, self._monotonic() + good_seconds)


# ------------------------------------------------------------------------------------------ the client


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes = field(repr=False)
    location: str = field(repr=False)
    retry_after_seconds: float | None

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class _Unreachable(Exception):
    """Nobody answered at all: no name, no connection, or a proxy that refuses."""


class _Cut(Exception):
    """Somebody was there, but no whole answer came."""


class BiliClient:
    """Describes videos and asks for their streams; one for all jobs of a process, on one event loop."""

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        *,
        unix_time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._session = session
        self._own_time = unix_time
        self._behind_seconds = 0.0
        self._monotonic = monotonic
        self._sleep = sleep
        self._draw = draw
        self.pace = Pace(settings.api_interval_seconds, monotonic)
        self._line = asyncio.Lock()
        self.login = Login(settings)
        self._videos: _Shared[Video] = _Shared(monotonic, MAX_VIDEOS)
        self._views: _Shared[str] = _Shared(monotonic, MAX_VIEWS)
        self._keys: _Shared[tuple[tuple[str, str], float]] = _Shared(monotonic, 1)
        self._buvids: _Shared[tuple[str, str]] = _Shared(monotonic, 1)
        self._tickets: _Shared[str] = _Shared(monotonic, 1)
        self._marks = browser_marks(draw)
        self._scope = Scope(settings)
        # DASH has all qualities whatever qn says; a joined stream comes in the one that is asked for.
        qn = min(settings.wishes.qn, _HIGHEST_QN)
        self._wanted: dict[str, str | int] = {"qn": qn, "fnval": _EVERYTHING, "fnver": 0, "fourk": 1}

    async def describe(self, job: JobId) -> Video:
        """Return the video or the episode of a job with all its pages; the page is read where the API is of no use.

        For a page job the answer may be two minutes old, so that a long series does not ask for each of its pages; a
        container is asked for anew, because a page that came since must not be missed. Errors are those of JobError.
        """
        key = job.bvid or job.source or f"ep{job.episode_id}"
        if not job.is_page:
            self._videos.forget(key)
        try:
            return await self._videos.get(key, partial(self._describe, job))
        except PermanentError as error:
            refused = error
        raise await self.judged(refused)

    async def playinfo(self, video: Video, page: Page) -> Playinfo:
        """Return the streams of a page as the site offers them now; ask just before they are downloaded."""
        if video.lesson_id:
            lesson = {"avid": video.aid, "cid": page.cid, "ep_id": video.lesson_id, **self._wanted}
            return parse_playurl(await self._ask_api("/pugv/player/web/playurl", lesson))
        try:
            if video.episode_id:
                params = {"ep_id": video.episode_id, "cid": page.cid, **self._wanted}
                return parse_playurl(await self._ask_api("/pgc/player/web/playurl", params))
            return await self._any_playinfo({"bvid": video.bvid, "cid": page.cid, **self._wanted})
        except PermanentError as error:
            raise await self.judged(error) from None
        except (SiteError, NoWayOut) as error:
            refused = error
        path = f"/bangumi/play/ep{video.episode_id}" if video.episode_id else f"/video/{video.bvid}/?p={page.number}"
        return await self._read_page(path, partial(parse_playinfo_html, cid=page.cid), refused)

    async def listing(self, wanted: ListRequest, read: Callable[[str], _Value]) -> _Value:
        """Ask for a page of a listing and return what ``read`` makes of the answer."""
        try:
            return await self._listing(wanted, read)
        except PermanentError as error:
            refused = error
        raise await self.judged(refused)

    async def _listing(self, wanted: ListRequest, read: Callable[[str], _Value]) -> _Value:
        params = dict(wanted.params)
        if wanted.signed:
            return await self._signed(wanted.path, params, read)
        if wanted.host == "web":
            query = urlencode(params, quote_via=quote, safe="")
            return read(await self._fetch_page(self._settings.web_url + wanted.path + ("?" + query if query else "")))
        return read(await self._ask_api(wanted.path, params))

    async def _find_lesson(self, job: JobId) -> Video:
        lesson = find_source(job.source)
        if lesson is None or lesson.kind != LESSON:
            raise PermanentError(_("{id} is a list, not a video").format(id=job.source))
        search = LessonSearch(lesson.number)
        while search.found is None:
            search = await self.listing(search.next, search.read)
        return search.found

    async def judged(self, refused: PermanentError) -> JobError:
        """Return a refusal as it is, or as one that passes: where only the login is over, no job fails for good."""
        if refused.code not in _FOR_AN_ACCOUNT or self.login.account() is None:
            return refused
        try:
            _keys, asked_at = await self._wbi_keys()
            if self._monotonic() - asked_at > LOGIN_TRUSTED_SECONDS:
                await self.check_login()
        except JobError as error:
            log.debug("check_login: %s", error)
        return TransientError(self.login.problem, "login") if self.login.problem else refused

    async def check_login(self) -> None:
        """Ask the site whether it knows the account, if there is one; ``login`` has the answer. Raise JobError."""
        if self.login.account() is not None:
            self._keys.forget(self._today())
            await self._wbi_keys()

    async def player(self, video: Video, page: Page) -> str:
        """Return what the player is told of a page: its subtitles and chapters; it need not be signed."""
        return await self._ask_api("/x/player/wbi/v2", {"aid": video.aid, "bvid": video.bvid, "cid": page.cid})

    async def view(self, video: Video) -> str:
        """Return the site's own description of a video, for those who want to keep it."""

        async def ask() -> tuple[str, float]:
            return await self._ask_api("/x/web-interface/view", {"bvid": video.bvid}), VIDEO_SECONDS

        return await self._views.get(video.bvid, ask)

    async def danmaku(self, video: Video, page: Page, segment: int) -> bytes:
        """Return the danmaku of six minutes of a page, counted from 1, as a protobuf message; empty beyond the end."""
        params = {"type": 1, "oid": page.cid, "pid": video.aid, "segment_index": segment}
        reply = await self._fetch(self._settings.api_url + "/x/v2/dm/web/seg.so?" + urlencode(params))
        if reply.status == 304:  # what it says of a segment that does not exist
            return b""
        if reply.status != 200:
            raise SiteError(_("the site has no danmaku there (HTTP {status})").format(status=reply.status))
        return reply.body

    async def _describe(self, job: JobId) -> tuple[Video, float]:
        if job.source:
            return await self._find_lesson(job), VIDEO_SECONDS
        try:
            if job.episode_id:
                answer = await self._ask_api("/pgc/view/web/season", {"ep_id": job.episode_id})
                video = parse_season(answer, job.episode_id)
            else:
                video = parse_view(await self._ask_api("/x/web-interface/view", {"bvid": job.bvid}))
        except (SiteError, NoWayOut) as error:
            path = f"/bangumi/play/ep{job.episode_id}" if job.episode_id else f"/video/{job.bvid}/"
            video = await self._read_page(path, parse_initial_state, error)
        if (job.bvid and video.bvid != job.bvid) or (job.episode_id and video.episode_id != job.episode_id):
            raise SiteError(_("the site described another video than the one asked for"))
        return video, VIDEO_SECONDS

    async def _read_page(self, path: str, parse: Callable[[str], _Value], refused: JobError) -> _Value:
        """Return what the page says where the API failed; where both fail, raise what a person can use most."""
        log.info(_("the API of the site gave nothing usable (%s); reading %s instead"), refused, path)
        try:
            return parse(await self._fetch_page(self._settings.web_url + path))
        except (SiteError, NoWayOut) as error:
            # NoWayOut is only true if neither door could be reached.
            failure = error if isinstance(refused, NoWayOut) else refused
        raise failure

    # -------------------------------------------------------------------------------------- signed calls

    async def _any_playinfo(self, params: Mapping[str, str | int]) -> Playinfo:
        """Ask the signed API, or, where that or its keys are out of order, the older one that wants no signature."""
        try:
            return await self._signed_playinfo(params)
        except SiteError as error:
            refused = error
        try:
            return parse_playurl(await self._ask_api("/x/player/playurl", params))
        except SiteError:
            raise refused from None

    async def _signed_playinfo(self, params: Mapping[str, str | int]) -> Playinfo:
        return await self._signed("/x/player/wbi/playurl", params, parse_playurl)

    async def _signed(self, path: str, params: Mapping[str, str | int], read: Callable[[str], _Value]) -> _Value:
        """Ask with a signature; where the answer looks as if the keys were no longer good, once more with new ones."""
        keys, asked_at = await self._wbi_keys()
        try:
            return await self._ask_signed(path, params, keys, read)
        except JobError as error:
            if error.code not in _KEY_SYMPTOMS or self._monotonic() - asked_at < KEYS_TRUSTED_SECONDS:
                raise
            refused = error
        self._keys.forget(self._today())
        renewed, _asked_at = await self._wbi_keys()
        if renewed == keys:
            raise refused
        return await self._ask_signed(path, params, renewed, read)

    async def _ask_signed(
        self, path: str, params: Mapping[str, str | int], keys: tuple[str, str], read: Callable[[str], _Value]
    ) -> _Value:
        signed = sign_wbi({**params, **self._marks}, keys, int(self._unix_time()))
        return read(await self._ask_api(path, signed))

    async def _wbi_keys(self) -> tuple[tuple[str, str], float]:
        """Return the keys of the day and when they were asked for; the site changes them at midnight in Beijing."""
        return await self._keys.get(self._today(), self._ask_keys)

    def _today(self) -> str:
        return str(int(self._unix_time() + _BEIJING_SECONDS) // 86400)

    async def _ask_keys(self) -> tuple[tuple[tuple[str, str], float], float]:
        text = await self._ask_api("/x/web-interface/nav", {})
        keys = parse_wbi_keys(text)
        self.login.heard(*parse_login(text))
        return (keys, self._monotonic()), 86400.0

    # -------------------------------------------------------------------------------------- the time

    def _unix_time(self) -> float:
        """Return the site's time: it refuses what a machine with a wrong clock signs, as if it were too much."""
        return self._own_time() + self._behind_seconds

    def _note_clock(self, date: str) -> None:
        try:
            behind_seconds = email.utils.parsedate_to_datetime(date).timestamp() - self._own_time()
        except (ValueError, OverflowError, IndexError, TypeError):
            return
        if abs(behind_seconds) <= CLOCK_TOLERANCE_SECONDS:
            behind_seconds = 0.0
        if abs(behind_seconds - self._behind_seconds) > CLOCK_TOLERANCE_SECONDS:
            log.warning(_("This machine's clock differs from the site's by %.0f minutes"), abs(behind_seconds) / 60)
            self._behind_seconds = behind_seconds

    # -------------------------------------------------------------------------------------- requests

    async def _ask_api(self, path: str, params: Mapping[str, str | int]) -> str:
        query = urlencode(params, quote_via=quote, safe="")
        reply = await self._fetch(self._settings.api_url + path + ("?" + query if query else ""))
        if reply.status // 100 == 3:
            raise SiteError(_("the API of the site sent us elsewhere (HTTP {status})").format(status=reply.status))
        self._note_answer(answer_code(reply.text))
        return reply.text

    async def _turn(self) -> None:
        """Wait until the next request may go, in the order of asking; raise Parked where none may go."""
        async with self._line:
            while (wait_seconds := self._wait_seconds()) > 0:
                await self._sleep(min(wait_seconds, LOOK_SECONDS))
            self.pace.take()

    def _wait_seconds(self) -> float:
        if self.pace.parked_seconds > 0:
            raise Parked(_("the site is not asked now: it wants fewer requests from this address or account"))
        return self.pace.wait_seconds()

    def _note_answer(self, code: str) -> None:
        """Slow down or come back, by what every answer begins with."""
        if is_refusal(code):
            self.pace.refused()
        elif code:
            self.pace.answered(is_good=code == "0")

    async def _fetch_page(self, url: str) -> str:
        """Return the text of a page, following redirects on its own host only."""
        origin = _origin(url)
        for _hop in range(MAX_HOPS + 1):
            reply = await self._fetch(url)
            if reply.status // 100 != 3:
                return reply.text
            url = _followed(url, reply.location)
            if _origin(url) != origin:
                raise SiteError(_("a page of the site sent us to another host"))
        raise SiteError(_("a page of the site sent us on more than {hops} times").format(hops=MAX_HOPS))

    async def _fetch(self, url: str, as_visitor: bool = True, method: str = "GET", tries: int = TRIES) -> _Reply:
        """Return a whole reply below 500; quick second and third tries for what passes quickly."""
        host = _origin(url)[1]
        headers = await self._headers(url, as_visitor)
        cut = False
        reply: _Reply | None = None
        for attempt in range(1, tries + 1):
            if attempt > 1:
                await self._sleep(full_jitter_seconds(attempt - 1, 1.0, 4.0, self._draw))
            await self._turn()
            try:
                reply = await self._try(method, url, headers)
            except _Unreachable:
                continue
            except _Cut:
                cut = True
                continue
            if reply.status in (412, 429):
                self.pace.refused()
                raise risk_control(reply.status, reply.retry_after_seconds)
            if reply.status < 500:
                return reply
        raise _failure(host, reply, cut)

    async def _try(self, method: str, url: str, headers: Mapping[str, str]) -> _Reply:
        # What aiohttp raises holds the request with its cookie: it must end here, not in a traceback.
        try:
            async with self._session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                allow_redirects=False,
                auto_decompress=False,
                timeout=_TIMEOUT,
            ) as response:
                if url in self._scope:
                    self._note_clock(response.headers.get("Date", ""))
                return _Reply(
                    status=response.status,
                    body=await _read_body(response),
                    location=response.headers.get("Location", ""),
                    retry_after_seconds=_retry_after(response.headers.get("Retry-After", ""), self._unix_time()),
                )
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ClientHttpProxyError,
            aiohttp.InvalidURL,
            aiohttp.ConnectionTimeoutError,
        ):
            failure: Exception = _Unreachable()
        except (aiohttp.ClientError, TimeoutError, OSError):
            failure = _Cut()
        raise failure

    async def _headers(self, url: str, as_visitor: bool) -> dict[str, str]:
        headers = {
            "User-Agent": USER_AGENT,
            "Referer": page_referer(self._settings.web_url),
            "Accept": "*/*",
            "Accept-Encoding": "gzip",
        }
        if not url.startswith(self._settings.web_url):
            headers["Origin"] = page_origin(self._settings.web_url)
        if url not in self._scope:
            return headers
        account = self.login.account()
        cookies = [account.cookie_header(url)] if account is not None else []
        if as_visitor:
            visitor = (*await self._buvids.get("", self._ask_buvids), await self._tickets.get("", self._ask_ticket))
            cookies += [
                f"{name}={quote(value, safe='')}" for name, value in zip(_VISITOR, visitor, strict=True) if value
            ]
        if cookies:
            headers["Cookie"] = "; ".join(cookies)
        return headers

    async def _ask_ticket(self) -> tuple[str, float]:
        """Return a ticket, with which the site's risk control is milder; one quick try, it is no condition."""
        query = urlencode(ticket_request(int(self._unix_time())), quote_via=quote, safe="")
        try:
            url = f"{self._settings.api_url}{TICKET_PATH}?{query}"
            return parse_ticket((await self._fetch(url, as_visitor=False, method="POST", tries=1)).text)
        except Parked:
            raise
        except JobError:
            return "", TICKET_RETRY_SECONDS

    async def _ask_buvids(self) -> tuple[tuple[str, str], float]:
        """Return a visitor's cookies; without them the site is stricter, but not shut."""
        try:
            reply = await self._fetch(self._settings.api_url + "/x/frontend/finger/spi", as_visitor=False)
            return parse_spi(reply.text), float("inf")
        except SiteError:
            return ("", ""), BUVID_RETRY_SECONDS
        except NoWayOut:
            return ("", ""), UNREACHED_SECONDS


_VISITOR = ("buvid3", "buvid4", "bili_ticket")


def _followed(url: str, location: str) -> str:
    """Return the absolute address of a redirect; SiteError for one that is none."""
    if not location or not location.isascii() or not location.isprintable() or " " in location:
        raise SiteError(_("a page of the site sent us to a malformed address"))
    try:
        followed = urljoin(url, location)
        _origin(followed)
    except ValueError:
        followed = ""
    if not followed.startswith(("https://", "http://")):
        raise SiteError(_("a page of the site sent us to a malformed address"))
    return followed.partition("#")[0]


def _failure(host: str, reply: _Reply | None, cut: bool) -> JobError:
    """Return the error for tries that all failed; NoWayOut only where none met anybody."""
    if reply is not None:
        return SiteError(
            _("{host} has trouble of its own (HTTP {status}); it may work later").format(
                host=host, status=reply.status
            ),
            reply.status,
            reply.retry_after_seconds,
        )
    if cut:
        return SiteError(_("{host} did not send a whole answer, {tries} times").format(host=host, tries=TRIES))
    return NoWayOut(_("{host} cannot be reached: check the network, the proxy and its certificate").format(host=host))


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the decoded body; it is decompressed here, a bounded piece at a time, against bombs."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise SiteError(_("the site answered in an encoding that was not asked for"))
    inflater = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)
    body = bytearray()
    async for piece in response.content.iter_chunked(64 * 1024):
        room = MAX_BODY_BYTES + 1 - len(body)
        try:
            body += piece[:room] if inflater is None else inflater.decompress(piece, room)
        except zlib.error:
            raise SiteError(_("the site answered with a broken compressed body")) from None
        if len(body) > MAX_BODY_BYTES:
            raise SiteError(_("the site answered more than {limit} MiB").format(limit=MAX_BODY_BYTES // MIB))
    if inflater is not None and body and not inflater.eof:
        raise _Cut
    return bytes(body)


def _retry_after(value: str, unix_seconds: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date."""
    value = value.strip()
    if value.isascii() and value.isdecimal() and len(value) <= 9:
        seconds = float(value)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - unix_seconds
        except (ValueError, OverflowError, IndexError, TypeError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
