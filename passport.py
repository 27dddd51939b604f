"""Logging in with a QR code, and renewing a login as the site's own page does: the door to the site's login host.

Sources: docs/login/login_action/QR.md and docs/login/cookie_refresh.md of bilibili-API-collect. Nothing here logs,
shows or raises a cookie, a token or the key of a code; the link of the QR code is for the user alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from filelock import FileLock, Timeout

import account
from account import BY_LOGIN, Account, Login
from config import USER_AGENT, Settings
from errors import JobError, NoWayOut, SiteError
from i18n import _
from model import MIB
from shapes import Check, line, number, record
from visitor import page_origin, page_referer

log = logging.getLogger(__name__)

POLL_SECONDS = 1.5
CODE_SECONDS = 180.0
CODES = 3
"""So many codes are shown, one after the other, before nobody is expected any more."""
CHECK_SECONDS = 3600.0
"""Between two questions whether the site still knows the account: few answers say by themselves that it does not."""
RENEWAL_SECONDS = 86400.0
"""Between two questions whether the cookies want to be renewed, as the site's page asks at its first use of a day."""
RETRY_SECONDS = 600.0
LOOK_SECONDS = 5.0
"""Between two looks whether the account has become another one."""
ANSWER_LIMIT_BYTES = MIB

WAITING, SCANNED, EXPIRED, DONE = 86101, 86090, 86038, 0

_LOGIN = "/x/passport-login/web"
LINK_CHARACTERS = 1000
"""More of them make no QR code that can be scanned from a screen."""


def _link(value: Any) -> str:
    text: str = line(LINK_CHARACTERS, 1)(value)
    if not text.isascii():
        raise ValueError(_("a link is expected"))
    return text


_CODE = record({"url": _link, "qrcode_key": line(200, 1)})
_POLL = record({"code": number(0, 10**6, whole=True)}, refresh_token=line(2048))
_INFO = record({"timestamp": number(1, 2**53, whole=True)})
_REFRESHED = record({"refresh_token": line(2048, 1)})

_CSRF_OF_PAGE = re.compile(r'id="1-name"[^>]{0,200}>([0-9A-Za-z]{1,128})<')
"""Bounded: else a page of nothing but beginnings is searched for a minute, and the worker stands still."""

_SITE_EXPONENT, _SITE_MODULUS = (
    65537,
    int(
        "cb81dd8e02470656da04dd38544446e2a3412051cfe9adc6a330a5ef90228509684960970b91c3360ca29c49e1690ff8fa068cb9dfc6179d"
        "1e9585cb9424e847db1ef59f33e37dd4dca8ccfb7631ee9b4a92640d00c8204300152a0ab7cd802889d3445aec69918fe6022b534912e7b0"
        "95be3424dad1ba81145e969b533181f1",
        16,
    ),
)
"""The site's public key for the path of its page that renews logins; its own script has it, for everybody."""


class Refused(SiteError):
    """The login host said no; ``code`` is its number."""


@dataclass(frozen=True, slots=True)
class Code:
    """A QR code: the link that it shows, and the key by which its fate is asked for."""

    link: str = field(repr=False)
    key: str = field(repr=False)


class Passport:
    """The calls of the login host."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session

    async def new_code(self) -> Code:
        """Ask for a QR code."""
        data = _understood(_CODE, (await self._ask("GET", f"{_LOGIN}/qrcode/generate"))[0])
        return Code(data["url"], data["qrcode_key"])

    async def poll(self, code: Code) -> tuple[int, Account | None]:
        """Ask what became of a code; with DONE comes the account."""
        answer, cookies = await self._ask("GET", f"{_LOGIN}/qrcode/poll", query={"qrcode_key": code.key})
        data = _understood(_POLL, answer)
        if data["code"] != DONE:
            return int(data["code"]), None
        values = account.login_cookies(cookies.items())
        if "SESSDATA" not in values:
            raise SiteError(_("the site says that the login is done, but gave no cookie"))
        return DONE, account.new_account(self._settings, values, data.get("refresh_token", ""), time.time())

    async def wants_refresh(self, kept: Account) -> int:
        """Return the site's time in milliseconds if it wants these cookies to be renewed, else 0."""
        answer, _cookies = await self._ask("GET", f"{_LOGIN}/cookie/info", kept)
        data = _understood(_INFO, answer)
        return int(data["timestamp"]) if answer.get("refresh") is True else 0

    async def refresh(self, kept: Account, at_ms: int) -> Account:
        """Ask for other cookies in the place of these, which stay good until ``confirm``."""
        path = f"{self._settings.web_url}/correspond/1/{correspond_path(at_ms)}"
        status, page, _cookies = await self._fetch("GET", path, kept)
        if status != 200 or (found := _CSRF_OF_PAGE.search(page)) is None:
            raise SiteError(_("the site did not say how to renew the login"))
        form = {"csrf": _csrf(kept), "refresh_csrf": found[1], "source": "main_web"}
        form["refresh_token"] = kept.refresh_token
        answer, cookies = await self._ask("POST", f"{_LOGIN}/cookie/refresh", kept, form=form)
        values = account.login_cookies(cookies.items())
        if "SESSDATA" not in values:
            raise SiteError(_("the site renewed the login, but gave no cookie"))
        return kept.renewed(values, _understood(_REFRESHED, answer)["refresh_token"])

    async def confirm(self, kept: Account) -> None:
        """Tell the site that the new cookies are kept, so that it forgets those before."""
        form = {"csrf": _csrf(kept), "refresh_token": kept.unconfirmed}
        await self._ask("POST", f"{_LOGIN}/confirm/refresh", kept, form=form)

    # -------------------------------------------------------------------------------------- requests

    async def _ask(
        self,
        method: str,
        path: str,
        kept: Account | None = None,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> tuple[Any, Mapping[str, str]]:
        """Return the data of an answer, and the cookies that it sets; raise Refused with the site's code."""
        url = self._settings.passport_url + path
        status, text, cookies = await self._fetch(method, url, kept, query, form)
        try:
            answer = json.loads(text)
            code, data = answer["code"], answer.get("data")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise SiteError(
                _("the site's login host answered nothing usable (HTTP {status})").format(status=status)
            ) from None
        if code != 0:
            raise Refused(_("the site's login host refused (code {code})").format(code=str(code)[:20]), str(code)[:20])
        return data or {}, cookies

    async def _fetch(
        self,
        method: str,
        url: str,
        kept: Account | None,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, str, Mapping[str, str]]:
        web_url = self._settings.web_url
        headers = {"User-Agent": USER_AGENT, "Referer": page_referer(web_url), "Origin": page_origin(web_url)}
        if kept is not None and (cookie := kept.cookie_header(url)):
            headers["Cookie"] = cookie
        # What aiohttp raises holds the request with its cookie: it must end here, not in a traceback.
        try:
            async with self._session.request(
                method, url, params=query, data=form, headers=headers, allow_redirects=False
            ) as reply:
                body = await reply.content.read(ANSWER_LIMIT_BYTES)
                while (piece := await reply.content.read(ANSWER_LIMIT_BYTES)) and len(body) < ANSWER_LIMIT_BYTES:
                    body += piece
                return reply.status, body.decode("utf-8", "replace"), _set_cookies(reply)
        except (aiohttp.ClientError, TimeoutError, OSError):
            failure = NoWayOut(_("the site's login host cannot be reached: check the network and the proxy"))
        raise failure


# ------------------------------------------------------------------------------------------ the path of the page


def correspond_path(at_ms: int, modulus: int = _SITE_MODULUS) -> str:
    """Return the time encrypted for the site (RSA-OAEP with SHA-256), as its page for renewing wants it."""
    # Once a day at most: a worker that starts need not load it.
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
    from cryptography.hazmat.primitives.hashes import SHA256

    key = RSAPublicNumbers(_SITE_EXPONENT, modulus).public_key()
    return key.encrypt(f"refresh_{at_ms}".encode(), OAEP(MGF1(SHA256()), SHA256(), None)).hex()


def _set_cookies(reply: aiohttp.ClientResponse) -> Mapping[str, str]:
    return {name: morsel.value for name, morsel in reply.cookies.items()}


def _csrf(kept: Account) -> str:
    return kept.values.get("bili_jct", "")


def _understood(shape: Check, data: Any) -> Any:
    try:
        return shape(data)
    except ValueError:
        raise SiteError(_("the site's login host answered nothing usable")) from None


# ------------------------------------------------------------------------------------------ logging in


def draw_code(link: str) -> str:
    """Return a QR code for a terminal: black on white whatever its colours are, two rows of squares in a line."""
    import segno  # as above

    rows = [list(row) for row in segno.make(link, micro=False, error="l", boost_error=False).matrix_iter(border=2)]
    rows += [[0] * len(rows[0])] * (len(rows) % 2)
    squares = {(0, 0): " ", (1, 0): "\u2580", (0, 1): "\u2584", (1, 1): "\u2588"}
    lines = (
        "".join(squares[int(bool(upper)), int(bool(lower))] for upper, lower in zip(*pair, strict=True))
        for pair in zip(rows[::2], rows[1::2], strict=True)
    )
    return "\n".join(f"\x1b[30;107m{line}\x1b[0m" for line in lines)


async def log_in(
    passport: Passport, say: Callable[[str], None], show: Callable[[str], None], code_seconds: float = CODE_SECONDS
) -> Account | None:
    """Show QR codes until one is scanned and confirmed; return the account, None where nobody came."""
    for _turn in range(CODES):
        code = await passport.new_code()
        show(code.link)
        say(
            _("Scan it with the Bilibili app of the account that is to be used. The same as a link: {link}").format(
                link=code.link
            )
        )
        kept = await until_decided(passport, code, lambda: say(_("Scanned: now confirm it on the phone")), code_seconds)
        if kept is not None:
            return kept
        say(_("This code has expired"))
    return None


async def until_decided(
    passport: Passport, code: Code, scanned: Callable[[], None], code_seconds: float = CODE_SECONDS
) -> Account | None:
    """Ask until a code is confirmed or has expired; ``scanned`` is called once when it is in between."""
    until, was = time.monotonic() + code_seconds, WAITING
    while time.monotonic() < until:
        await asyncio.sleep(POLL_SECONDS)
        try:
            state, kept = await passport.poll(code)
        except NoWayOut as error:
            log.debug("poll: %s", error)
            continue
        if state in (DONE, EXPIRED):
            return kept
        if state == SCANNED and was != SCANNED:
            scanned()
        was = state
    return None


# ------------------------------------------------------------------------------------------ keeping a login


class Keeper:
    """Asks now and then whether the login still stands, and renews it when the site wants that, at most daily."""

    def __init__(
        self, settings: Settings, passport: Passport, login: Login, check: Callable[[], Awaitable[None]]
    ) -> None:
        self._settings, self._passport = settings, passport
        self._login, self._check = login, check
        self._lock = FileLock(settings.data_dir / "account.lock", timeout=0)

    async def keep(self) -> None:
        """Look at the account now, every hour, and when it has become another one; until cancelled."""
        looked_at: Account | None = None
        next_look = 0.0
        while True:
            kept, now = self._login.account(), time.monotonic()
            is_another = looked_at is None or (kept is not None and kept.values != looked_at.values)
            if kept is not None and (is_another or now >= next_look):
                next_look = now + (CHECK_SECONDS if await self._look() else RETRY_SECONDS)
                looked_at = kept
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> bool:
        """Ask the site about the account; tell whether there was an answer."""
        try:
            await self._check()
            if not self._login.problem:
                await self.renew()
        except (JobError, OSError) as error:
            log.info(_("The login could not be looked after: %s"), error)
            return False
        return True

    async def renew(self) -> None:
        """Renew the kept login if it is due and the site wants it; one of the workers of a data folder does.

        Nothing is lost by a crash: until ``confirm`` the site takes the old cookies too, and it is told only when
        the new ones are on the disk; what was not told before a crash is told after it.
        """
        try:
            with self._lock:
                kept = account.load(self._settings)  # another worker may have renewed it a moment ago
                if kept is None or kept.origin != BY_LOGIN or not kept.refresh_token:
                    return
                if kept.unconfirmed:
                    kept = await self._confirm(kept)
                if 0 <= time.time() - kept.checked < RENEWAL_SECONDS:
                    return
                await self._renew(kept)
        except Timeout:
            return

    async def _renew(self, kept: Account) -> None:
        at_ms = await self._passport.wants_refresh(kept)
        if not at_ms:
            self._replace(kept, replace(kept, checked=time.time()))
            return
        fresh = replace(await self._passport.refresh(kept, at_ms), checked=time.time())
        if self._replace(kept, fresh):
            log.info(_("The login was renewed, as the site wished"))
            await self._confirm(fresh)

    async def _confirm(self, kept: Account) -> Account:
        try:
            await self._passport.confirm(kept)
        except Refused as error:  # told already, by a process that died before it could write that down
            log.debug("confirm: %s", error)
        confirmed = replace(kept, unconfirmed="")
        self._replace(kept, confirmed)
        return confirmed

    def _replace(self, kept: Account, fresh: Account) -> bool:
        """Keep an account in the place of another, unless somebody has logged in or out meanwhile."""
        if account.load(self._settings) != kept:
            return False
        account.save(self._settings, fresh)
        return True
