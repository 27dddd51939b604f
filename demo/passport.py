"""The login host of the stand-in site: QR codes, sessions that end or want to be renewed, tickets.

As the real one does (bilibili-API-collect, docs/login/login_action/QR.md, docs/login/cookie_refresh.md,
docs/misc/sign/bili_ticket.md). The path of the page that renews logins is encrypted for the real site's key, so that
nobody here can read it: what is checked is its form, and that it was not used before.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Form = Mapping[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WAITING, SCANNED, EXPIRED, DONE = 86101, 86090, 86038, 0
MID = "10086"
LOGIN = "/x/passport-login/web"
TICKET = "/bapis/bilibili.api.ticket.v1.Ticket/GenWebTicket"
TICKET_SECONDS = 259260
SWITCHES = ("wants_refresh", "wants_marks", "gives_tickets")


@dataclass
class Session:
    """One login: what its cookies are, and the tokens that renew it."""

    values: dict[str, str]
    refresh_token: str
    is_alive: bool = True
    succeeds: str = ""
    """The refresh token of the session that ends when this one is confirmed."""


@dataclass
class Passport:
    """All logins of a site. A SESSDATA that was never given out counts as one, unless it was killed."""

    codes: dict[str, int] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    killed: set[str] = field(default_factory=lambda: {"expired"})
    all_killed: bool = False
    paths: set[str] = field(default_factory=set)
    csrfs: set[str] = field(default_factory=set)
    wants_refresh: bool = False
    wants_marks: bool = False
    """Signed calls without the ``dm_img`` fields get a puzzle."""
    gives_tickets: bool = True
    cookies_at: Counter[str] = field(default_factory=Counter)
    """How many requests with a SESSDATA came to each host: web, api, passport, short, and media."""
    tickets: int = 0
    serial: int = 0

    def knows(self, sessdata: str) -> bool:
        """Tell whether a SESSDATA is a login now."""
        if not sessdata or sessdata in self.killed or self.all_killed:
            return False
        session = self._session(sessdata)
        return session is None or session.is_alive

    def _session(self, sessdata: str) -> Session | None:
        return next((one for one in self.sessions if one.values["SESSDATA"] == sessdata), None)

    def _unique(self, what: str) -> str:
        self.serial += 1
        return hashlib.md5(f"{what} {self.serial} {time.time_ns()}".encode()).hexdigest()

    def open_session(self, succeeds: str = "") -> Session:
        """Begin a login; as on the real site the value has characters that travel percent-encoded."""
        sessdata = f"{self._unique('session')[:8]}%2C{int(time.time()) + 15552000}%2C{self._unique('tail')[:5]}%2Ab1"
        values = {"SESSDATA": sessdata, "bili_jct": self._unique("csrf"), "DedeUserID": MID}
        values |= {"DedeUserID__ckMd5": self._unique("md5")[:16], "sid": self._unique("sid")[:8]}
        session = Session(values, self._unique("refresh"), succeeds=succeeds)
        self.sessions.append(session)
        return session

    # -------------------------------------------------------------------------------------- control

    def control(self, body: Json) -> Json:
        """Do what a test says: scan, confirm or expire the newest code, kill cookies, turn a switch."""
        newest = next(reversed(self.codes), "")
        moves = {"scan": SCANNED, "confirm": DONE, "expire": EXPIRED}
        if unknown := sorted(set(body) - {*moves, "kill", *SWITCHES}):
            raise ValueError(f"unknown: {', '.join(unknown)}")
        for name, state in moves.items():
            if body.get(name):
                self.codes[newest] = state
        if (sessdata := body.get("kill")) is not None:
            self.killed.add(str(sessdata))
            self.all_killed = sessdata == "*"
        for name in SWITCHES:
            setattr(self, name, bool(body.get(name, getattr(self, name))))
        return self.listing()

    def listing(self) -> Json:
        """Return what a test may want to know."""
        return {
            "codes": list(self.codes.values()),
            "sessions": [{"cookies": one.values, "alive": one.is_alive} for one in self.sessions],
            "cookies_at": dict(self.cookies_at),
            "tickets": self.tickets,
            "renewals": len(self.paths),
        }

    # -------------------------------------------------------------------------------------- routes

    def add_routes(self, app: web.Application, prefix: str) -> None:
        """Add the routes of the login host, the page that renews logins, and the ticket."""
        get: Mapping[str, Handler] = {
            "qrcode/generate": self._generate,
            "qrcode/poll": self._poll,
            "cookie/info": self._cookie_info,
        }
        post = {"cookie/refresh": self._for_logins(self._refresh), "confirm/refresh": self._for_logins(self._confirm)}
        for name, handler in get.items():
            app.router.add_get(f"{prefix}/passport{LOGIN}/{name}", handler)
        for name, handler in post.items():
            app.router.add_post(f"{prefix}/passport{LOGIN}/{name}", handler)
        app.router.add_get(f"{prefix}/web/correspond/1/{{path}}", self._correspond)
        app.router.add_post(f"{prefix}/api{TICKET}", self._ticket)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        key = self._unique("code")
        self.codes[key] = WAITING
        page = request.url.origin() / "passport/h5-app/passport/login/scan"
        return _json(_ok({"url": f"{page}?navhide=1&qrcode_key={key}&from=", "qrcode_key": key}))

    async def _poll(self, request: web.Request) -> web.StreamResponse:
        key = request.query.get("qrcode_key", "")
        state = self.codes.get(key, EXPIRED)
        data = {"url": "", "refresh_token": "", "timestamp": 0, "code": state, "message": ""}
        if state != DONE:
            return _json(_ok(data))
        self.codes[key] = EXPIRED  # it is good for one login
        session = self.open_session()
        data |= {"refresh_token": session.refresh_token, "timestamp": int(time.time() * 1000)}
        return _with_cookies(_json(_ok(data)), session)

    async def _cookie_info(self, request: web.Request) -> web.StreamResponse:
        if not self.knows(request.cookies.get("SESSDATA", "")):
            return _json(_no(-101, "账号未登录"))
        return _json(_ok({"refresh": self.wants_refresh, "timestamp": int(time.time() * 1000)}))

    async def _correspond(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        known = self.knows(request.cookies.get("SESSDATA", ""))
        if not known or path in self.paths or not re.fullmatch("[0-9a-f]{256}", path):
            return web.Response(status=404, text="<title>404</title>", content_type="text/html")
        self.paths.add(path)
        csrf = self._unique("refresh_csrf")
        self.csrfs.add(csrf)
        page = f'<!DOCTYPE html><title>Correspond</title><body><div id="1-name">{csrf}</div></body>'
        return web.Response(text=page, content_type="text/html")

    def _for_logins(self, answer: Callable[[Session, Form], web.StreamResponse]) -> Handler:
        """Return the handler of a form that is taken from a login only, with the token of that login."""

        async def handle(request: web.Request) -> web.StreamResponse:
            form = await request.post()
            session = self._session(request.cookies.get("SESSDATA", ""))
            if session is None or not self.knows(session.values["SESSDATA"]):
                return _json(_no(-101, "账号未登录"))
            if form.get("csrf") != session.values["bili_jct"]:
                return _json(_no(-111, "csrf 校验失败"))
            return answer(session, form)

        return handle

    def _refresh(self, session: Session, form: Form) -> web.StreamResponse:
        if form.get("refresh_csrf") not in self.csrfs or form.get("refresh_token") != session.refresh_token:
            return _json(_no(86095, "refresh_csrf 错误或 refresh_token 与 cookie 不匹配"))
        self.csrfs.discard(str(form["refresh_csrf"]))
        fresh = self.open_session(succeeds=session.refresh_token)
        answer = _ok({"status": 0, "message": "", "refresh_token": fresh.refresh_token})
        return _with_cookies(_json(answer), fresh)

    def _confirm(self, session: Session, form: Form) -> web.StreamResponse:
        old = next((one for one in self.sessions if one.refresh_token == form.get("refresh_token")), None)
        if old is None or not old.is_alive or old.refresh_token != session.succeeds:
            return _json(_no(-400, "请求错误"))
        old.is_alive = False
        self.wants_refresh = False
        return _json(_ok(None))

    async def _ticket(self, request: web.Request) -> web.StreamResponse:
        at = request.query.get("context[ts]", "")
        signed = hmac.new(b"XgwSnGZ1p", f"ts{at}".encode(), hashlib.sha256).hexdigest()
        sound = request.query.get("key_id") == "ec02" and request.query.get("hexsign") == signed
        if not self.gives_tickets or not sound:
            return _json(_no(400, "invalid request"))
        self.tickets += 1
        ticket = f"eyJhbGciOiJIUzI1NiJ9.{self._unique('ticket')}.{self._unique('signature')}"
        return _json(_ok({"ticket": ticket, "created_at": int(time.time()), "ttl": TICKET_SECONDS}))

    # -------------------------------------------------------------------------------------- for the other hosts

    def note_cookies(self, host: str, request: web.Request) -> None:
        """Count a request that carries a login."""
        if "SESSDATA" in request.headers.get("Cookie", ""):
            self.cookies_at[host] += 1

    def misses_marks(self, query: Mapping[str, str]) -> bool:
        """Tell whether a signed call lacks what a browser's calls have, where that is wanted."""
        return self.wants_marks and not {"dm_img_list", "dm_img_str", "dm_cover_img_str", "dm_img_inter"} <= set(query)


def _json(content: Json) -> web.Response:
    return web.Response(text=json.dumps(content, ensure_ascii=False), content_type="application/json")


def _ok(data: Json | None) -> Json:
    return {"code": 0, "message": "0", "ttl": 1, **({} if data is None else {"data": data})}


def _no(code: int, message: str) -> Json:
    return {"code": code, "message": message, "ttl": 1}


def _with_cookies(response: web.Response, session: Session) -> web.Response:
    for name, value in session.values.items():
        response.headers.add("Set-Cookie", f"{name}={value}; Path=/; Expires=Sat, 04 Mar 2034 07:30:09 GMT")
    return response
