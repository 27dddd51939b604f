"""The client of the site against a small site of its own: where cookies go, how slowly it asks, what it survives."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import logging
import os
import re
import socket
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

import bili_client
from bili_client import BiliClient, make_session
from config import USER_AGENT, Settings
from errors import JobError, NoWayOut, Parked, PermanentError, RiskControl, SiteError
from model import MIB, JobId, Video
from parse_ import aid_to_bvid, parse_job_id, parse_playurl, parse_view, sign_wbi

DATA = Path(__file__).parent / "data"
BVID = aid_to_bvid(113764301)
EPISODE_BVID = aid_to_bvid(113764302)
SECRET = "f1e2d3c4%2C1780000000%2Cabcde*b1"
OLD_KEYS = ("7cd084941338484aae1ad9425b84077c", "4932caff0ff746eab6f01bf08b70ac45")
NEW_KEYS = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")

VIEW = "/api/x/web-interface/view"
PLAYURL = "/api/x/player/wbi/playurl"
NAV = "/api/x/web-interface/nav"
SPI = "/api/x/frontend/finger/spi"
TICKET = "/api/bapis/bilibili.api.ticket.v1.Ticket/GenWebTicket"
SEASON = "/api/pgc/view/web/season"
PAGE = f"/site/video/{BVID}/"


def golden(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


VIDEO = parse_view(golden("view_three_pages.json"))
EPISODE = parse_view(golden("view_episode.json"))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Site:
    """A site with path prefixes that answers golden texts, and records what it was asked."""

    texts: dict[str, str | Handler]
    url: str = ""
    requests: list[web.Request] = field(default_factory=list)
    clock: Callable[[], float] = time.time

    async def date(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Date"] = email.utils.formatdate(self.clock(), usegmt=True)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        found = self.texts.get(request.path)
        if found is None:
            return web.Response(status=404, text="<html>not here</html>", content_type="text/html")
        if isinstance(found, str):
            return web.Response(text=found, content_type="text/plain")
        return await found(request)

    @property
    def paths(self) -> Counter[str]:
        return Counter(request.path for request in self.requests)

    def cookies(self) -> list[str]:
        return [request.headers["Cookie"] for request in self.requests if "Cookie" in request.headers]


def real_texts() -> dict[str, str | Handler]:
    return {
        VIEW: golden("view_three_pages.json"),
        PLAYURL: golden("playurl_dash.json"),
        NAV: golden("nav_guest.json"),
        SPI: golden("spi.json"),
        SEASON: golden("season.json"),
        "/api/pgc/player/web/playurl": golden("pgc_playurl.json"),
        PAGE: golden("video_page.html"),
    }


def logged_in_nav() -> str:
    guest = json.loads(golden("nav_guest.json"))
    return json.dumps({**guest, "code": 0, "data": {**guest["data"], "isLogin": True, "mid": 4711}})


async def serve(site: Site) -> web.AppRunner:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    app.on_response_prepare.append(site.date)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    site = Site(real_texts())
    runner = await serve(site)
    yield site
    await runner.cleanup()


@pytest_asyncio.fixture
async def canary() -> AsyncIterator[Site]:
    canary = Site({})
    runner = await serve(canary)
    yield canary
    await runner.cleanup()


class Time:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        wake = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, wake)


def settings_of(site: Site, **more: Any) -> Settings:
    urls = {"web_url": site.url + "/site", "api_url": site.url + "/api", "passport_url": site.url + "/passport"}
    return Settings(**{**urls, "sessdata": SECRET, "api_interval_seconds": 0.0, **more})


@dataclass
class Made:
    client: BiliClient
    time: Time
    session: aiohttp.ClientSession


@pytest_asyncio.fixture
async def made(site: Site) -> AsyncIterator[Made]:
    settings = settings_of(site)
    async with make_session(settings, {}) as session:
        site.clock = time = Time()
        yield Made(client_of(settings, session, time), time, session)


def client_of(settings: Settings, session: aiohttp.ClientSession, time: Time) -> BiliClient:
    return BiliClient(settings, session, unix_time=time, monotonic=time, sleep=time.sleep, draw=lambda: 0.5)


def job(text: str = BVID) -> JobId:
    return parse_job_id(text)


# ------------------------------------------------------------------------------------------ the plain way


async def test_describe(site: Site, made: Made) -> None:
    assert await made.client.describe(job()) == VIDEO
    asked = site.requests[-1]
    assert (asked.path, dict(asked.query)) == (VIEW, {"bvid": BVID})
    assert asked.headers["User-Agent"] == USER_AGENT
    assert asked.headers["Referer"] == site.url + "/site/"
    assert asked.headers["Origin"] == site.url


async def test_an_episode_is_asked_from_its_season(site: Site, made: Made) -> None:
    video = await made.client.describe(job("ep330799?cid=27651390202"))
    assert (video.episode_id, video.pages[0].cid) == (330799, 27651390202)
    assert dict(site.requests[-1].query) == {"ep_id": "330799"}


async def test_the_playurl_call_is_signed(site: Site, made: Made) -> None:
    assert await made.client.playinfo(VIDEO, VIDEO.pages[1]) == parse_playurl(golden("playurl_dash.json"))
    query = dict(site.requests[-1].query)
    assert {"bvid": BVID, "cid": "27651390102", "qn": "127", "fnval": "4048", "fourk": "1"}.items() <= query.items()
    plain: dict[str, str | int] = {name: value for name, value in query.items() if name not in ("wts", "w_rid")}
    assert sign_wbi(plain, OLD_KEYS, int(query["wts"])) == query


@pytest.mark.parametrize(("quality", "qn"), [("best", "127"), ("480p", "32"), ("dolby", "126")])
async def test_everything_is_asked_for_and_a_joined_stream_in_the_quality_that_is_wished(
    site: Site, quality: str, qn: str
) -> None:
    settings = replace(settings_of(site), quality=quality)
    async with make_session(settings, {}) as session:
        site.clock = time = Time()
        await client_of(settings, session, time).playinfo(VIDEO, VIDEO.pages[1])
    assert {"qn": qn, "fnval": "4048", "fourk": "1"}.items() <= dict(site.requests[-1].query).items()


async def test_an_episode_is_played_by_the_bangumi_player(site: Site, made: Made) -> None:
    assert EPISODE.episode_id == 330798
    assert (await made.client.playinfo(EPISODE, EPISODE.pages[0])).videos
    assert site.requests[-1].path == "/api/pgc/player/web/playurl"
    assert {"ep_id": "330798", "cid": "27651390201"}.items() <= dict(site.requests[-1].query).items()


async def test_definite_answers_do_not_go_to_the_page(site: Site, made: Made) -> None:
    site.texts[VIEW] = golden("view_deleted.json")
    with pytest.raises(PermanentError):
        await made.client.describe(job())
    assert PAGE not in site.paths


async def test_pages_are_asked_for_as_by_a_click_and_without_an_origin(site: Site, made: Made) -> None:
    site.texts[VIEW] = "<html>"
    assert await made.client.describe(job()) == VIDEO
    assert site.requests[-1].path == PAGE and "Origin" not in site.requests[-1].headers


async def test_another_video_than_the_one_asked_for_is_refused(made: Made) -> None:
    with pytest.raises(SiteError, match="another video"):
        await made.client.describe(job(EPISODE_BVID))


async def test_another_episode_than_the_one_asked_for_is_refused(site: Site, made: Made) -> None:
    state = json.dumps({"epInfo": {"id": 9, "aid": 170001, "cid": 7, "title": "1"}})
    site.texts[SEASON] = "<html>"
    site.texts["/site/bangumi/play/ep8"] = f"<script>window.__INITIAL_STATE__={state};</script>"
    with pytest.raises(SiteError, match="another video"):
        await made.client.describe(job("ep8"))


# ------------------------------------------------------------------------------------------ cookies


async def test_cookies_go_to_the_site_and_only_there(site: Site, canary: Site, made: Made) -> None:
    await made.client.describe(job())
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    sent = {request.path: request.headers.get("Cookie", "") for request in site.requests}
    assert sent[SPI] == f"SESSDATA={SECRET}"
    for path in (VIEW, NAV, PLAYURL):
        assert re.fullmatch(rf"SESSDATA={re.escape(SECRET)}; buvid3=[0-9A-F-]+infoc; buvid4=[%\w.-]+", sent[path])
    # The session that did all this has nothing that it could give to a media host.
    async with made.session.get(canary.url + "/upgcxcode/1.m4s") as reply:
        assert reply.status == 404
    assert canary.cookies() == []


async def test_a_visitor_has_no_sessdata(site: Site) -> None:
    settings = settings_of(site, sessdata="")
    async with make_session(settings, {}) as session:
        await client_of(settings, session, Time()).describe(job())
    assert not any("SESSDATA" in cookie for cookie in site.cookies())
    assert len(site.cookies()) == 1


async def test_sessdata_cannot_smuggle_in_another_header(site: Site) -> None:
    settings = settings_of(site, sessdata="a,b; c=d")
    async with make_session(settings, {}) as session:
        await client_of(settings, session, Time()).describe(job())
    assert site.cookies()[0] == "SESSDATA=a%2Cb%3B%20c%3Dd"


def to(location: str) -> Handler:
    async def redirect(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": location, "Set-Cookie": "evil=1; Path=/"})

    return redirect


@pytest.mark.parametrize("path", [VIEW, PLAYURL])
async def test_no_redirect_of_the_api_is_followed(site: Site, canary: Site, made: Made, path: str) -> None:
    site.texts[path] = to(canary.url + "/api")
    site.texts[PAGE] = to(canary.url + "/page")
    with pytest.raises(SiteError, match="302"):
        await (made.client.describe(job()) if path == VIEW else made.client.playinfo(VIDEO, VIDEO.pages[1]))
    assert canary.requests == []


@pytest.mark.parametrize("scheme", ["//", "https://", "ftp://", "http://[", "http://x:y@"])
async def test_no_redirect_of_a_page_leaves_its_host(site: Site, canary: Site, made: Made, scheme: str) -> None:
    site.texts[VIEW] = "<html>"
    site.texts[PAGE] = to(scheme + canary.url.removeprefix("http://") + "/page")
    with pytest.raises(SiteError):
        await made.client.describe(job())
    assert canary.requests == []


async def test_a_page_is_followed_on_its_host_three_times(site: Site, made: Made) -> None:
    site.texts[VIEW] = "<html>"
    site.texts.update(
        {
            PAGE: to("/site/1"),
            "/site/1": to(site.url + "/site/2"),
            "/site/2": to("3"),
            "/site/3": golden("video_page.html"),
        }
    )
    assert await made.client.describe(job()) == VIDEO
    assert not any("evil" in cookie for cookie in site.cookies())


async def test_a_page_is_not_followed_for_ever(site: Site, made: Made) -> None:
    site.texts[VIEW] = "<html>"
    site.texts[PAGE] = to(PAGE)
    with pytest.raises(SiteError):
        await made.client.describe(job())
    assert site.paths[PAGE] == 4


# ------------------------------------------------------------------------------------------ fallbacks


async def status_500(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="oops")


async def cut_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    "broken", ["<html>404</html>", "", '{"code":-500}', '{"code":0,"data":{}}', status_500, cut_body]
)
async def test_the_page_is_read_where_the_api_fails(site: Site, made: Made, broken: str | Handler) -> None:
    site.texts[VIEW] = broken
    site.texts[PLAYURL] = broken
    assert await made.client.describe(job()) == VIDEO
    playinfo = await made.client.playinfo(VIDEO, VIDEO.pages[1])
    assert playinfo.duration_seconds == 845.12
    assert dict(site.requests[-1].query) == {"p": "2"}
    assert site.paths[VIEW] == (1 if isinstance(broken, str) else 3)


@pytest.mark.parametrize("out_of_order", [NAV, PLAYURL])
async def test_without_keys_or_signed_api_the_older_one_is_asked(site: Site, made: Made, out_of_order: str) -> None:
    site.texts["/api/x/player/playurl"] = site.texts[PLAYURL]
    site.texts[out_of_order] = "<html>404</html>"
    playinfo = await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert playinfo.videos
    assert site.requests[-1].path == "/api/x/player/playurl"
    assert "w_rid" not in site.requests[-1].query


async def test_the_streams_of_another_part_are_not_taken(site: Site, made: Made) -> None:
    site.texts[PLAYURL] = '{"code":-400,"message":"请求错误"}'
    with pytest.raises(SiteError) as raised:
        await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert raised.value.code == "-400"


async def test_quick_tries_have_jitter_and_an_end(site: Site, made: Made) -> None:
    site.texts[VIEW] = status_500
    site.texts.pop(PAGE)
    with pytest.raises(SiteError) as raised:
        await made.client.describe(job())
    assert raised.value.code == "500"
    assert made.time.slept == [0.5, 1.0]


async def test_a_second_try_is_enough(site: Site, made: Made) -> None:
    async def once(request: web.Request) -> web.StreamResponse:
        site.texts[VIEW] = golden("view_three_pages.json")
        return await cut_body(request)

    site.texts[VIEW] = once
    assert await made.client.describe(job()) == VIDEO
    assert PAGE not in site.paths


async def test_no_way_out_when_nothing_can_be_reached(site: Site) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        settings = settings_of(site, web_url=url, api_url=url)
        async with make_session(settings, {}) as session:
            client = client_of(settings, session, Time())
            for ask in (client.describe(job()), client.playinfo(VIDEO, VIDEO.pages[0])):
                with pytest.raises(NoWayOut, match=r"127\.0\.0\.1"):
                    await ask
        settings = settings_of(site, api_url=url)
        async with make_session(settings, {}) as session:
            client = client_of(settings, session, Time())
            assert await client.describe(job()) == VIDEO
            site.texts[PAGE] = "<html>"
            with pytest.raises(SiteError):
                await client.playinfo(VIDEO, VIDEO.pages[1])


async def test_a_proxy_that_is_away_or_malformed_is_no_way_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(site, web_url="http://bili.test", api_url="http://bili.test")
    for proxy in ("http://127.0.0.1:1", "127.0.0.1:1"):
        monkeypatch.setenv("http_proxy", proxy)
        async with make_session(settings, {}) as session:
            with pytest.raises(NoWayOut):
                await client_of(settings, session, Time()).describe(job())


# ------------------------------------------------------------------------------------------ risk control, keys


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [(412, None, None), (429, "90", 90.0), (412, "Thu, 01 Jan 1970 00:20:00 GMT", 200.0)],
)
async def test_risk_control_by_status(
    site: Site, made: Made, status: int, header: str | None, seconds: float | None
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": header} if header else None)

    site.texts[VIEW] = refuse
    with pytest.raises(RiskControl) as raised:
        await made.client.describe(job())
    assert (raised.value.code, raised.value.retry_after_seconds) == (str(status), seconds)
    assert (site.paths[VIEW], site.paths[PAGE]) == (1, 0)


@pytest.mark.parametrize(
    "answer", ['{"code":-352}', '{"code":-412}', '{"code":0,"data":{"v_voucher":"v"}}', '{"code":-403}']
)
async def test_fresh_keys_are_not_blamed(site: Site, made: Made, answer: str) -> None:
    site.texts[NAV] = logged_in_nav()
    site.texts[PLAYURL] = answer
    with pytest.raises(JobError) as raised:
        await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert isinstance(raised.value, RiskControl | PermanentError)
    assert (site.paths[NAV], site.paths[PLAYURL]) == (1, 1)


def nav(keys: tuple[str, str]) -> str:
    images = {
        name: f"https://i0.hdslb.com/bfs/wbi/{key}.png" for name, key in zip(("img_url", "sub_url"), keys, strict=True)
    }
    return json.dumps({"code": -101, "message": "账号未登录", "data": {"isLogin": False, "wbi_img": images}})


async def test_old_keys_are_renewed_and_the_call_made_once_more(site: Site, made: Made) -> None:
    async def check(request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        plain: dict[str, str | int] = {name: value for name, value in query.items() if name not in ("wts", "w_rid")}
        good = sign_wbi(plain, NEW_KEYS, int(query["wts"])) == query
        return web.Response(text=golden("playurl_dash.json") if good else '{"code":-403,"message":"访问权限不足"}')

    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    site.texts.update({NAV: nav(NEW_KEYS), PLAYURL: check})
    made.time.now += 61
    assert (await made.client.playinfo(VIDEO, VIDEO.pages[0])).videos
    assert site.paths[NAV] == 2


async def test_the_same_keys_again_are_not_tried_again(site: Site, made: Made) -> None:
    site.texts[NAV] = logged_in_nav()
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    site.texts[PLAYURL] = '{"code":-403}'
    made.time.now += 61
    with pytest.raises(PermanentError):
        await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert (site.paths[NAV], site.paths[PLAYURL]) == (2, 2)


async def test_keys_are_of_the_day(site: Site, made: Made) -> None:
    made.time.now = 16 * 3600.0 - 10
    for _turn in range(3):
        await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert site.paths[NAV] == 1
    made.time.now += 20
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert site.paths[NAV] == 2


@pytest.mark.parametrize("behind_seconds", [-400 * 86400, -3600, 3600, 4000 * 86400])
async def test_what_a_machine_with_a_wrong_clock_signs_has_the_time_of_the_site(
    site: Site, made: Made, behind_seconds: int, caplog: pytest.LogCaptureFixture
) -> None:
    site.clock = lambda: 5e8 + behind_seconds
    made.time.now = 5e8
    for _turn in range(2):
        await made.client.playinfo(VIDEO, VIDEO.pages[0])
        assert int(site.requests[-1].query["wts"]) == 5e8 + behind_seconds
    assert [record.getMessage() for record in caplog.records if "login" not in record.getMessage()] == [
        f"This machine's clock differs from the site's by {abs(behind_seconds) / 60:.0f} minutes"
    ]
    site.clock = made.time  # somebody sets it right
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert int(site.requests[-1].query["wts"]) == made.time.now


async def test_a_visitor_without_buvid_is_served(site: Site, made: Made) -> None:
    site.texts.pop(SPI)
    assert await made.client.describe(job()) == VIDEO
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert site.paths[SPI] == 1
    made.time.now += bili_client.BUVID_RETRY_SECONDS
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert site.paths[SPI] == 2


# ------------------------------------------------------------------------------------------ once for all, slowly


async def test_pages_of_one_video_ask_once(site: Site, made: Made) -> None:
    described = await asyncio.gather(*(made.client.describe(JobId(BVID, number=n, cid=n)) for n in range(1, 301)))
    assert set(described) == {VIDEO}
    assert site.paths == {SPI: 1, TICKET: 1, VIEW: 1}
    made.time.now += bili_client.VIDEO_SECONDS - 1
    await made.client.describe(job(f"{BVID}?p=1&cid=1"))
    assert site.paths[VIEW] == 1
    made.time.now += 2
    await made.client.describe(job(f"{BVID}?p=1&cid=1"))
    assert site.paths[VIEW] == 2


async def test_a_container_is_asked_for_anew(site: Site, made: Made) -> None:
    assert len((await made.client.describe(job())).pages) == 3
    longer = json.loads(golden("view_three_pages.json"))
    longer["data"]["pages"].append({"cid": 5, "page": 4, "part": "新", "duration": 1})
    site.texts[VIEW] = json.dumps(longer)
    for wanted in (BVID, f"{BVID}?p=4&cid=5"):
        assert len((await made.client.describe(job(wanted))).pages) == 4
    assert site.paths[VIEW] == 2


async def test_keys_and_buvids_are_asked_once_by_many(site: Site, made: Made) -> None:
    await asyncio.gather(*(made.client.playinfo(VIDEO, page) for page in VIDEO.pages * 5))
    assert (site.paths[NAV], site.paths[SPI], site.paths[PLAYURL]) == (1, 1, 15)


async def test_a_failure_is_told_to_all_who_wait_and_not_kept(site: Site, made: Made) -> None:
    site.texts[VIEW] = golden("view_deleted.json")
    failures = await asyncio.gather(*(made.client.describe(job()) for _turn in range(5)), return_exceptions=True)
    assert all(isinstance(failure, PermanentError) for failure in failures)
    assert site.paths[VIEW] == 1
    site.texts[VIEW] = golden("view_three_pages.json")
    assert await made.client.describe(job()) == VIDEO


async def test_one_who_leaves_does_not_take_the_answer_from_the_others(site: Site, made: Made) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        asked.set()
        await go.wait()
        return web.Response(text=golden("view_three_pages.json"))

    site.texts[VIEW] = wait
    first, second = (asyncio.create_task(made.client.describe(job())) for _turn in range(2))
    await asked.wait()
    first.cancel()
    await asyncio.wait([first])
    go.set()
    assert await second == VIDEO
    assert first.cancelled()
    assert site.paths[VIEW] == 1


async def test_when_all_leave_the_next_one_asks_anew(site: Site, made: Made) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        asked.set()
        await go.wait()
        return web.Response(text="{}")

    site.texts[VIEW] = wait
    task = asyncio.create_task(made.client.describe(job()))
    await asked.wait()
    site.texts[VIEW] = golden("view_three_pages.json")
    task.cancel()
    # The next one comes in the same turn of the loop in which the first one leaves.
    assert await asyncio.create_task(made.client.describe(job())) == VIDEO
    assert task.cancelled()
    go.set()


async def test_kept_videos_are_bounded(made: Made, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: bili_client._Shared[int] = bili_client._Shared(made.time, 3)

    async def value(number: int) -> tuple[int, float]:
        return number, 10.0

    for number in range(10):
        assert await shared.get(str(number), lambda number=number: value(number)) == number
    assert list(shared._kept) == ["7", "8", "9"]


async def test_calls_keep_their_distance(site: Site) -> None:
    settings = settings_of(site, api_interval_seconds=0.5)
    async with make_session(settings, {}) as session:
        time = Time()
        client = client_of(settings, session, time)
        await asyncio.gather(*(client.playinfo(VIDEO, page) for page in VIDEO.pages * 4))
    calls = len(site.requests)
    assert calls == 15
    assert time.now == pytest.approx(1_000.0 + (calls - 1) * 0.5, abs=0.5)


@pytest.mark.parametrize("answer", ['{"code":-352,"message":"","data":{"v_voucher":"x"}}', "412"])
async def test_the_site_s_wish_for_less_doubles_the_interval_and_good_answers_bring_it_back(
    site: Site, made: Made, answer: str
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=412) if answer == "412" else web.Response(text=answer)

    assert made.client.pace.interval_seconds == 0.0
    site.texts[VIEW] = refuse
    for expected in (1.0, 2.0, 4.0):
        made.time.now += 60
        with pytest.raises(RiskControl):
            await made.client.describe(job())
        assert made.client.pace.interval_seconds == pytest.approx(expected)
    site.texts[VIEW] = golden("view_three_pages.json")
    for _turn in range(3):
        await made.client.describe(job())
    assert made.client.pace.interval_seconds == pytest.approx(4 * 0.95**3)


async def test_whoever_waits_for_its_turn_obeys_at_once_what_the_server_says(site: Site, made: Made) -> None:
    await made.client.describe(job())
    began = made.time.now
    made.client.pace.obey(0.01, 1e6)
    waiting = asyncio.create_task(made.client.describe(job()))
    while made.time.now < began + 20:
        await asyncio.sleep(0)
    asked = len(site.requests)
    made.client.pace.obey(1.0, 1e6)
    await waiting
    assert len(site.requests) > asked and made.time.now < began + 25


async def test_a_parked_worker_asks_nothing_and_lets_go_of_who_waits(site: Site, made: Made) -> None:
    made.client.pace.obey(0.001, 1e6)
    made.client.pace.take()
    waiting = asyncio.create_task(made.client.describe(job()))
    await asyncio.sleep(0)
    made.client.pace.park_for(30.0)
    with pytest.raises(Parked):
        await waiting
    with pytest.raises(Parked):
        await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert site.requests == []
    made.client.pace.park_for(0.0)
    made.client.pace.obey(None, 1.0)
    assert (await made.client.describe(job())).bvid == BVID
    assert made.client.pace.answers >= 1


# ------------------------------------------------------------------------------------------ what a browser leaves


async def test_a_ticket_is_asked_for_once_and_sent(site: Site, made: Made) -> None:
    site.texts[TICKET] = json.dumps({"code": 0, "data": {"ticket": "e.f.g", "created_at": 1, "ttl": 259260}})
    await made.client.describe(job())
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    asked = next(request for request in site.requests if request.path == TICKET)
    assert (asked.method, asked.query["key_id"], asked.query["context[ts]"]) == ("POST", "ec02", "1000")
    assert asked.query["hexsign"] == "4fb62d8b08f2f66d019644ab0d10f9d1e903f0a251a2989615403ea410194748"
    assert site.requests[-1].headers["Cookie"].endswith("; bili_ticket=e.f.g")
    assert site.paths[TICKET] == 1
    made.time.now += 259260
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert site.paths[TICKET] == 2


@pytest.mark.parametrize("answer", ["", "<html>", '{"code":0,"data":{"ticket":"a b","ttl":999999}}', '{"data":[]}'])
async def test_without_a_ticket_all_goes_on(site: Site, made: Made, answer: str) -> None:
    site.texts[TICKET] = answer
    assert await made.client.describe(job()) == VIDEO
    assert "bili_ticket" not in site.requests[-1].headers["Cookie"]
    await made.client.playinfo(VIDEO, VIDEO.pages[0])
    assert site.paths[TICKET] == 1


async def test_signed_calls_carry_the_marks_of_one_browser(site: Site, made: Made) -> None:
    for page in VIDEO.pages[:2]:
        await made.client.playinfo(VIDEO, page)
    marks = [
        {name: value for name, value in request.query.items() if name.startswith("dm_")}
        for request in site.requests
        if request.path == PLAYURL
    ]
    assert marks[0] == marks[1]
    assert set(marks[0]) == {"dm_img_list", "dm_img_str", "dm_cover_img_str", "dm_img_inter"}


# ------------------------------------------------------------------------------------------ the account


async def test_a_login_that_is_over_is_said_once_with_what_to_do(
    site: Site, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    await made.client.check_login()
    await made.client.check_login()
    said = [record.getMessage() for record in caplog.records if "login" in record.getMessage()]
    assert len(said) == 1 and "set BILI_SESSDATA anew" in said[0] and "run.py --login" in said[0]
    assert made.client.login.problem == said[0]
    site.texts[NAV] = logged_in_nav()
    await made.client.check_login()
    assert made.client.login.problem == ""
    assert re.fullmatch("[0-9a-f]{16}", made.client.login.digest)


REFUSED = [
    (VIEW, '{"code":-101,"message":"账号未登录"}', "-101"),
    (VIEW, '{"code":-403,"message":"访问权限不足"}', "-403"),
    (PLAYURL, '{"code":87008,"message":"当前视频为充电专属"}', "87008"),
]


@pytest.mark.parametrize(("path", "text", "code"), REFUSED)
async def test_a_refusal_for_the_account_is_final_only_as_long_as_the_login_stands(
    site: Site, made: Made, path: str, text: str, code: str
) -> None:
    site.texts[NAV] = logged_in_nav()
    site.texts[path] = text

    async def refused() -> JobError:
        with pytest.raises(JobError) as caught:
            await made.client.playinfo(await made.client.describe(job()), VIDEO.pages[0])
        return caught.value

    assert ((await refused()).kind, (await refused()).code) == ("permanent", code)
    site.texts[NAV] = golden("nav_guest.json")  # it is over, and nobody has noticed
    made.time.now += bili_client.LOGIN_TRUSTED_SECONDS + bili_client.VIDEO_SECONDS + 1
    error = await refused()
    assert (error.kind, error.code, str(error)) == ("transient", "login", made.client.login.problem)
    assert "run.py --login" in str(error)


async def test_a_refusal_stays_one_where_the_login_cannot_be_asked_about(site: Site, made: Made) -> None:
    site.texts[VIEW] = '{"code":-403,"message":"访问权限不足"}'
    site.texts[NAV] = "<html>"
    with pytest.raises(PermanentError):
        await made.client.describe(job())


async def test_a_guest_is_not_asked_about(site: Site) -> None:
    settings = settings_of(site, sessdata="")
    async with make_session(settings, {}) as session:
        client = client_of(settings, session, Time())
        await client.check_login()
        assert site.requests == []
        await client.playinfo(VIDEO, VIDEO.pages[0])
        assert (client.login.problem, client.login.digest) == ("", "")


# ------------------------------------------------------------------------------------------ bodies


def compressed(body: bytes, encoding: str = "gzip") -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    return answer


@pytest.mark.parametrize(
    ("pack", "encoding"), [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (bytes, "identity")]
)
async def test_compressed_answers(site: Site, made: Made, pack: Callable[[bytes], bytes], encoding: str) -> None:
    site.texts[VIEW] = compressed(pack(golden("view_three_pages.json").encode()), encoding)
    assert await made.client.describe(job()) == VIDEO
    assert site.requests[-1].headers["Accept-Encoding"] == "gzip"


def bomb() -> bytes:
    """Return 64 MiB of spaces in 64 KiB, made piece by piece."""
    packer = zlib.compressobj(9, wbits=31)
    piece = b" " * MIB
    return b"".join([*(packer.compress(piece) for _turn in range(64)), packer.flush()])


@pytest.mark.parametrize(
    "cut", [cut_body, compressed(gzip.compress(golden("view_three_pages.json").encode())[:-9])], ids=["body", "gzip"]
)
async def test_an_answer_that_never_comes_whole_is_asked_for_again_and_is_the_site_s_fault(
    site: Site, made: Made, cut: Handler
) -> None:
    """Not the network's: then the attempt would never count, and the worker would stop for everything else."""
    site.texts[VIEW] = site.texts[PAGE] = cut
    with pytest.raises(SiteError, match="whole answer"):
        await made.client.describe(job())
    assert site.paths[VIEW] == site.paths[PAGE] == bili_client.TRIES


async def test_a_bomb_is_not_unpacked(site: Site, made: Made) -> None:
    site.texts[VIEW] = site.texts[PAGE] = compressed(bomb())
    tracemalloc.start()
    try:
        with pytest.raises(SiteError, match="8 MiB"):
            await made.client.describe(job())
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        pytest.param(b"\x1f\x8b rubbish", "gzip", id="rubbish"),
        pytest.param(gzip.compress(b" " * 99)[:-9], "gzip", id="cut"),
        pytest.param(b"{}", "br", id="br"),
        pytest.param(b" " * (2**23 + 1), "identity", id="large"),
    ],
)
async def test_bodies_that_cannot_be_read(site: Site, made: Made, body: bytes, encoding: str) -> None:
    site.texts[VIEW] = compressed(body, encoding)
    site.texts.pop(PAGE)
    with pytest.raises(SiteError):
        await made.client.describe(job())


# ------------------------------------------------------------------------------------------ secrets, certificates


async def test_no_secret_is_shown(site: Site, made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown = [repr(made.client)]
    playinfo = await made.client.playinfo(VIDEO, VIDEO.pages[0])
    shown.append(repr(playinfo))
    for broken in (status_500, cut_body, "<html>", '{"code":-352}', to("http://192.0.2.1/?w_rid=1")):
        site.texts[VIEW] = site.texts[PLAYURL] = site.texts[PAGE] = broken
        for ask in (made.client.describe(job()), made.client.playinfo(VIDEO, VIDEO.pages[0])):
            with pytest.raises(JobError) as raised:
                await ask
            error: BaseException | None = raised.value
            while error is not None:
                shown.append(repr(error))
                error = error.__cause__ or error.__context__
    # aiohttp.access is the log of the test's own server.
    shown += [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]
    text = "\n".join(shown)
    for secret in ("f1e2d3c4", "buvid", "infoc", "w_rid", "upsig", *OLD_KEYS):
        assert secret not in text


async def test_a_video_that_redirects_is_played_as_an_episode(site: Site, made: Made) -> None:
    site.texts[VIEW] = golden("view_episode.json")
    video: Video = await made.client.describe(job(EPISODE_BVID))
    await made.client.playinfo(video, video.pages[0])
    assert site.requests[-1].path == "/api/pgc/player/web/playurl"
    plain = replace(video, episode_id=None)
    await made.client.playinfo(plain, video.pages[0])
    assert site.requests[-1].path == PLAYURL


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
async def test_a_proxy_is_looked_for_with_each_request_only_where_there_is_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    async with make_session(settings, {}) as session:
        assert session.trust_env == bool(proxy)
