"""Logging in and renewing a login, against the login host of the stand-in over real HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

import account
import passport
from account import Account, Login
from config import Settings
from demo.passport import Passport as StandIn
from errors import NoWayOut, SiteError
from passport import Keeper, Passport, Refused, correspond_path, draw_code, log_in


@dataclass
class Made:
    """The stand-in's login host, and our client of it."""

    stand_in: StandIn
    settings: Settings
    passport: Passport
    cookies: list[tuple[str, str]]
    """Path and header of each request that had cookies."""

    def login(self) -> Login:
        return Login(self.settings)

    def keep(self) -> Account:
        """Keep a login of the stand-in, made two days ago."""
        session = self.stand_in.open_session()
        kept = account.new_account(self.settings, session.values, session.refresh_token, 1000.0)
        account.save(self.settings, kept)
        return kept

    def keeper(self, check: Callable[[], Awaitable[None]] | None = None) -> Keeper:
        async def nothing() -> None:
            return None

        return Keeper(self.settings, self.passport, self.login(), check or nothing)

    def loaded(self) -> Account:
        found = account.load(self.settings)
        assert found is not None
        return found


@pytest_asyncio.fixture
async def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Made]:
    monkeypatch.setattr(passport, "POLL_SECONDS", 0.01)
    stand_in, cookies = StandIn(), []

    @web.middleware
    async def record(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if "Cookie" in request.headers:
            cookies.append((request.path, request.headers["Cookie"]))
        return await handler(request)

    app = web.Application(middlewares=[record])
    stand_in.add_routes(app, "")
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    urls = {"web_url": f"{base}/web", "api_url": f"{base}/api", "passport_url": f"{base}/passport"}
    settings = Settings(data_dir=tmp_path / "data", **urls)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Made(stand_in, settings, Passport(settings, session), cookies)
    await runner.cleanup()


# ------------------------------------------------------------------------------------------ the path and the picture


def test_the_path_of_the_page_is_the_time_encrypted_for_the_site() -> None:
    private = generate_private_key(65537, 2048)
    path = correspond_path(1684466082562, private.public_key().public_numbers().n)
    assert private.decrypt(bytes.fromhex(path), OAEP(MGF1(SHA256()), SHA256(), None)) == b"refresh_1684466082562"
    first, second = correspond_path(1684466082562), correspond_path(1684466082562)
    assert first != second and len(first) == len(second) == 256 and first == first.lower()


def read_picture(picture: str) -> list[str]:
    """Return the rows of squares that a picture shows, 1 for dark ones."""
    rows = []
    for line in picture.splitlines():
        assert line.startswith("\x1b[30;107m") and line.endswith("\x1b[0m")
        body = line.removeprefix("\x1b[30;107m").removesuffix("\x1b[0m")
        rows += [
            "".join("1" if square in upper else "0" for square in body) for upper in ("\u2580\u2588", "\u2584\u2588")
        ]
    return rows


@pytest.mark.parametrize(
    "link", ["https://a.example", "https://passport.bilibili.com/h5-app/passport/login/scan?" + "k" * 90]
)
def test_the_picture_is_the_code_with_a_quiet_edge(link: str) -> None:
    import segno

    rows = read_picture(draw_code(link))
    code = segno.make(link, micro=False, error="l", boost_error=False)
    expected = ["".join(str(int(bool(square))) for square in row) for row in code.matrix_iter(border=2)]
    assert rows[: len(expected)] == expected
    assert all(set(row) == {"0"} for row in (*rows[:2], *rows[len(expected) - 2 :]))
    assert len(rows) <= 60 and len(rows[0]) <= 80, "it fits into a terminal"


# ------------------------------------------------------------------------------------------ logging in


async def test_a_code_that_is_scanned_and_confirmed_gives_the_account(made: Made) -> None:
    said, shown = [], []

    def say(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("Scanned"):
            made.stand_in.control({"confirm": True})

    def show(link: str) -> None:
        shown.append(link)
        made.stand_in.control({"scan": True})

    found = await log_in(made.passport, say, show)
    assert found is not None and found.mid == "10086" and found.refresh_token
    assert found.values == made.stand_in.sessions[0].values
    assert len(shown) == 1 and shown[0] in said[0]
    assert [sentence for sentence in said if sentence.startswith("Scanned")] == said[1:]
    assert made.cookies == []


async def test_an_expired_code_is_followed_by_another_and_the_third_by_none(made: Made) -> None:
    said: list[str] = []
    found = await log_in(made.passport, said.append, lambda _link: made.stand_in.control({"expire": True}) and None)
    assert found is None
    assert len(made.stand_in.codes) == 3
    assert said.count("This code has expired") == 3


async def test_a_code_that_nobody_looks_at_expires_by_our_clock(made: Made) -> None:
    assert await log_in(made.passport, lambda _said: None, lambda _link: None, code_seconds=0.02) is None
    assert len(made.stand_in.codes) == 3


async def test_the_network_may_fail_while_a_code_is_shown(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, poll = 0, made.passport.poll

    async def unsteady(code: passport.Code) -> tuple[int, Account | None]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise NoWayOut("no network")
        return await poll(code)

    monkeypatch.setattr(made.passport, "poll", unsteady)
    found = await log_in(
        made.passport, lambda _said: None, lambda _link: made.stand_in.control({"confirm": True}) and None
    )
    assert found is not None and asked == 3


# ------------------------------------------------------------------------------------------ renewing


async def test_a_login_is_renewed_when_the_site_wants_that(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    old = made.keep()
    made.stand_in.wants_refresh = True
    await made.keeper().renew()
    new = made.loaded()
    assert new.values["SESSDATA"] != old.values["SESSDATA"] and new.refresh_token != old.refresh_token
    assert (new.unconfirmed, new.values["DedeUserID"]) == ("", "10086")
    assert not made.stand_in.knows(old.values["SESSDATA"]) and made.stand_in.knows(new.values["SESSDATA"])
    for secret in (*old.values.values(), old.refresh_token, *new.values.values(), new.refresh_token):
        assert secret not in caplog.text
    # Of the old cookies and the new ones each call has those that it needs.
    assert [old.values["SESSDATA"] in header for _path, header in made.cookies] == [True, True, True, False]


async def test_it_is_asked_once_a_day_whether_that_is_wanted(made: Made) -> None:
    made.keep()
    for _turn in range(3):
        await made.keeper().renew()
    assert [path for path, _header in made.cookies] == ["/passport/x/passport-login/web/cookie/info"]
    account.save(made.settings, replace(made.loaded(), checked=1000.0))
    await made.keeper().renew()
    assert len(made.cookies) == 2


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("at", ["refresh", "save", "confirm", "save again"])
async def test_a_crash_at_any_moment_of_it_leaves_a_login_that_lives(
    made: Made, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = made.keep()
    made.stand_in.wants_refresh = True
    saves = 0
    save, refresh, confirm = account.save, made.passport.refresh, made.passport.confirm

    def crashing_save(settings: Settings, kept: Account) -> None:
        nonlocal saves
        saves += 1
        if (at, saves) in (("save", 1), ("save again", 2)):
            raise Crash
        save(settings, kept)

    async def crashing_refresh(kept: Account, at_ms: int) -> Account:
        if at == "refresh":
            raise Crash
        return await refresh(kept, at_ms)

    async def crashing_confirm(kept: Account) -> None:
        if at == "confirm":
            raise Crash
        await confirm(kept)

    with monkeypatch.context() as patched:
        patched.setattr(account, "save", crashing_save)
        patched.setattr(made.passport, "refresh", crashing_refresh)
        patched.setattr(made.passport, "confirm", crashing_confirm)
        with pytest.raises(Crash):
            await made.keeper().renew()
    assert made.stand_in.knows(made.loaded().values["SESSDATA"]), "what is on the disk is a login"
    await made.keeper().renew()
    new = made.loaded()
    assert new.unconfirmed == "" and made.stand_in.knows(new.values["SESSDATA"])
    assert new.values["SESSDATA"] != old.values["SESSDATA"]
    assert not made.stand_in.knows(old.values["SESSDATA"]), "the site was told to forget the old one"


async def test_of_two_workers_one_renews(made: Made) -> None:
    made.keep()
    made.stand_in.wants_refresh = True
    await asyncio.gather(*(made.keeper().renew() for _turn in range(4)))
    assert made.stand_in.listing()["renewals"] == 1


async def test_what_the_site_refuses_keeps_the_login_as_it_is(made: Made) -> None:
    old = made.keep()
    made.stand_in.wants_refresh = True
    account.save(made.settings, replace(old, refresh_token="another"))
    with pytest.raises(Refused) as caught:
        await made.keeper().renew()
    assert caught.value.code == "86095" and "another" not in str(caught.value)
    assert made.loaded().values == old.values


async def test_only_a_login_of_our_own_is_renewed(made: Made, tmp_path: Path) -> None:
    settings = replace(made.settings, sessdata="somebody")
    await Keeper(settings, made.passport, Login(settings), made.keeper()._check).renew()
    assert made.cookies == []


async def test_the_keeper_looks_at_the_start_and_when_there_is_another_login(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passport, "LOOK_SECONDS", 0.01)
    looked = asyncio.Queue[str]()
    login = made.login()

    async def check() -> None:
        found = login.account()
        assert found is not None
        looked.put_nowait(found.values["SESSDATA"])

    keeping = asyncio.create_task(Keeper(made.settings, made.passport, login, check).keep())
    try:
        for _turn in range(2):
            kept = made.keep()
            assert await asyncio.wait_for(looked.get(), 10) == kept.values["SESSDATA"]
        await asyncio.sleep(0.1)
        assert looked.empty()
    finally:
        keeping.cancel()


# ------------------------------------------------------------------------------------------ a host that misbehaves


NO_LINK = ("https://passport.bilibili.com/" + "x" * 3000, "https://passport.bilibili.com/中", "")


@pytest.mark.parametrize(
    "text",
    [
        *("", "<html>", "[]", "7", '{"code":0}', '{"code":0,"data":{"url":7}}', "[" * 99_999),
        *(json.dumps({"code": 0, "data": {"code": -1, "url": url, "qrcode_key": "k"}}) for url in NO_LINK),
    ],
    ids=lambda text: text[:60],
)
async def test_a_host_that_answers_nonsense_is_the_site_s_fault(tmp_path: Path, text: str) -> None:
    async def nonsense(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", nonsense)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = Settings(data_dir=tmp_path, passport_url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with aiohttp.ClientSession() as session:
            client = Passport(settings, session)
            with pytest.raises(SiteError):
                await client.new_code()
            with pytest.raises(SiteError):
                await client.poll(passport.Code("link", "key"))
    finally:
        await runner.cleanup()


def test_a_page_of_beginnings_does_not_hold_the_worker() -> None:
    """A search for what never ends went on for a minute: no job and no signal was looked after meanwhile."""
    began = time.process_time()
    assert passport._CSRF_OF_PAGE.search('id="1-name"' * (passport.ANSWER_LIMIT_BYTES // 11)) is None
    assert time.process_time() - began < 10


async def test_a_host_that_is_away_is_no_way_out(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NoWayOut):
            await Passport(Settings(data_dir=tmp_path, passport_url="http://127.0.0.1:1"), session).new_code()
