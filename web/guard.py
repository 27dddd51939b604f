"""What is looked at before a route runs: the name, the origin, the token and its role, and the kind of the body."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import math
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, g, redirect, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import (
    Forbidden,
    HTTPException,
    LengthRequired,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from werkzeug.wrappers import Response

from config import Settings
from errors import EngineError
from i18n import _
from store import Tokens, is_made
from web.keyring import EVERYTHING, NOBODY, Access, Keyring
from web.messages import this_request
from web.session import Sessions

log = logging.getLogger(__name__)

ENGINE_RETRY_SECONDS = 2
CUSTOMER_BITS = 64

_ADMIN = frozenset({"admin"})
_SUBMIT = frozenset({"submit", "admin"})
_WORKER = frozenset({"worker", "admin"})
_ANY = frozenset({"submit", "worker", "admin"})
_EVERYBODY = frozenset({"", *_ANY})
"""Also without a token."""

ROLES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("/healthz", "/livez", "/join", "/ui/sign-in", "/static/<path:filename>"), _EVERYBODY),
    **dict.fromkeys(("/get_url", "/expand", "/heartbeat", "/ack", "/nack", "/release", "/replay"), _WORKER),
    "/failed": _WORKER,
    **dict.fromkeys(("/budget", "/status", "/openapi.json", "/ui/sign-out"), _ANY),
    **dict.fromkeys(("/add_url", "/watch", "/jobs", "/job", "/ui/add", "/ui/jobs", "/ui/job"), _SUBMIT),
    **dict.fromkeys(("/sources", "/success", "/failures", "/history", "/actions", "/metrics"), _ADMIN),
    **dict.fromkeys(("/redrive", "/cancel", "/first", "/forget", "/steer", "/login"), _ADMIN),
    **dict.fromkeys(("/", "/ui/machines", "/ui/failures", "/ui/sources", "/ui/actions", "/ui/access"), _ADMIN),
    **dict.fromkeys(("/ui/tokens", "/ui/revoke", "/ui/join_code"), _ADMIN),
}
"""Which roles may use which address, whatever the method: the only place where that is said.

What a role sees there is in ``sight.py``.
"""


def demand_roles(app: Flask) -> None:
    """Raise LookupError for an address of the application about which ROLES says nothing."""
    if missing := sorted({rule.rule for rule in app.url_map.iter_rules()} - ROLES.keys()):
        raise LookupError(f"web/guard.py says of no role whether it may use {', '.join(missing)}")


def may(role: str, address: str) -> bool:
    """Tell whether a role may use an address."""
    return role in ROLES[address]


class MisdirectedRequest(HTTPException):
    """421: the server was called by a name that it does not go by."""

    code = 421


class SignInNeeded(Unauthorized):
    """401 for a page of the dashboard: a person is asked for the token by a page, not by a window of the browser."""


class WrongTokens:
    """Counts the wrong tokens that an address sent within a minute, to answer those who guess or repeat with 429.

    The right token is never held up: behind a reverse proxy every worker and every guesser has the same address.
    One wrong setting that repeats itself uses up its own tries only, so that the next one is still told 401; all
    wrong tokens of an address get 429 once it has tried ten different ones.
    """

    LIMIT = 10
    WINDOW_SECONDS = 60.0
    MAX_ADDRESSES = 1000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, list[tuple[float, bytes]]] = OrderedDict()

    def retry_after_seconds(self, address: str, token: bytes) -> int:
        """Return 0 where this wrong token may be called wrong, else how long the address has to wait."""
        with self._lock:
            recent = self._recent(address)
            digest = self._digest(token)
            same = sum(1 for _at, seen in recent if seen == digest)
            if max(same, len({seen for _at, seen in recent})) < self.LIMIT:
                return 0
            return math.ceil(max(1.0, recent[0][0] + self.WINDOW_SECONDS - self._clock()))

    def add(self, address: str, token: bytes) -> None:
        """Note a wrong token."""
        with self._lock:
            self._seen[address] = [*self._recent(address), (self._clock(), self._digest(token))]
            self._seen.move_to_end(address)
            while len(self._seen) > self.MAX_ADDRESSES:
                self._seen.popitem(last=False)

    def _recent(self, address: str) -> list[tuple[float, bytes]]:
        horizon = self._clock() - self.WINDOW_SECONDS
        return [entry for entry in self._seen.get(address, ()) if entry[0] > horizon]

    def _digest(self, token: bytes) -> bytes:
        return hashlib.blake2b(token, key=self._key, digest_size=16).digest()


class Lockout:
    """WrongTokens for all servers together: each counts for itself, and in Redis where that can be had."""

    def __init__(self, tokens: Tokens, sessions: Sessions, kind: str) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._kind = kind
        self._own = WrongTokens()

    def note(self, address: str, said: bytes) -> int:
        """Note something wrong; return 0 where it may be called so, else how long the address has to wait."""
        line = _line_of(address)
        if wait := self._own.retry_after_seconds(line, said):
            return wait
        self._own.add(line, said)  # also what only all together refuse: the next is refused here, without Redis
        return self._ask_all(self._tokens.note_wrong, line, said)

    def wait_seconds(self, address: str, said: bytes) -> int:
        """Return for how long an address has to wait before it says that again, right or wrong."""
        line = _line_of(address)
        return self._own.retry_after_seconds(line, said) or self._ask_all(self._tokens.wait_seconds, line, said)

    def _ask_all(self, ask: Callable[[str, str, int, float], float], line: str, said: bytes) -> int:
        whose, mark = f"{self._kind}:{line}", self._sessions.mark(said)
        try:
            return math.ceil(ask(whose, mark, WrongTokens.LIMIT, WrongTokens.WINDOW_SECONDS))
        except EngineError:  # then each server counts alone
            return 0


class Questions:
    """How often somebody may ask for what is made of many jobs, by the id of a token that was made.

    What workers do all the time is not counted, nor what an admin asks: that costs little, and he has the farm anyway.
    """

    PER_SECOND = 10.0
    AT_ONCE = 60.0
    MAX_KNOWN = 1000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, token_id: str) -> int:
        """Count a question; return 0 where it may be asked, else how long to wait until the next one may be."""
        now = self._clock()
        with self._lock:
            left, at = self._left.pop(token_id, (self.AT_ONCE, now))
            left = min(self.AT_ONCE, left + (now - at) * self.PER_SECOND)
            self._left[token_id] = (left - 1 if left >= 1 else left, now)
            while len(self._left) > self.MAX_KNOWN:
                self._left.popitem(last=False)
        return 0 if left >= 1 else math.ceil((1 - left) / self.PER_SECOND)


class Guard:
    """Looks at every request before its route does."""

    OPEN_PATHS = frozenset({"/healthz", "/livez"})
    """They say nothing but whether the server works: no other site learns anything of them."""
    SIGN_IN_PATH = "/ui/sign-in"
    FIRST_PAGE = "/ui/add"
    """Of who may not see what the farm does."""
    BEARER_PATHS = frozenset({"/get_url"})
    """Not with what a browser remembers, a password or a session: any page can make it send a GET with that."""
    PACED = frozenset({"submit", "worker"})
    """Who may ask no more questions than Questions says."""
    UNCOUNTED = frozenset({"/get_url", "/status"})
    """What workers ask all the time, and many of them with one token."""

    def __init__(self, settings: Settings, sessions: Sessions, tokens: Tokens, keyring: Keyring) -> None:
        self._is_open = not settings.token
        self._digest = hashlib.sha256(settings.token.encode()).digest()
        self._sessions = sessions
        self._keyring = keyring
        self._hosts = frozenset({"localhost", *settings.hosts})
        self._lockout = Lockout(tokens, sessions, "token")
        self._questions = Questions()

    def check(self) -> Response | None:
        """Raise the HTTP error of a request that may not go on; note who asks."""
        asked = this_request()
        path, environ = asked.path, asked.environ
        self._check_host(environ)
        if path in self.OPEN_PATHS:
            return None
        self._check_site(environ)
        address = asked.url_rule.rule if asked.url_rule else ""
        g.access = who = NOBODY if may("", address or "/") else self._who_asks(path)
        if address and not may(who.role, address):
            if address == "/" and may(who.role, self.FIRST_PAGE):
                return redirect(self.FIRST_PAGE, 303)
            raise Forbidden(_("the role of this token ({role}) may not do that").format(role=who.role))
        if environ["REQUEST_METHOD"] == "POST" and asked.routing_exception is None:  # 404 or 405, whatever is sent
            self._check_body()
        elif who.role in self.PACED and path not in self.UNCOUNTED:
            self._check_pace(who.token_id)
        return None

    def _check_pace(self, token_id: str) -> None:
        if wait := self._questions.wait_seconds(token_id):
            raise TooManyRequests(_("this token asks too often: wait a moment"), retry_after=wait)

    def _check_host(self, environ: Mapping[str, Any]) -> None:
        """Hold off DNS rebinding: a foreign name that points here makes a browser believe it is the same site."""
        name = _host_name(environ.get("HTTP_HOST", ""))
        if name not in self._hosts and not is_address(name):
            raise MisdirectedRequest(_("the server does not go by this name: add it to BILI_HOSTS on the server"))

    def _check_site(self, environ: Mapping[str, Any]) -> None:
        """Refuse what another site makes a browser send; a link to a page of the dashboard may be followed."""
        site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
        if site is None and origin is not None:
            foreign = urlsplit(origin).netloc.lower() != environ.get("HTTP_HOST", "").lower()
        else:
            foreign = site not in (None, "same-origin", "none") and not _is_page()
        if foreign:
            raise Forbidden(_("requests from other sites are refused"))

    def _who_asks(self, path: str) -> Access:
        is_bearer_only = path in self.BEARER_PATHS
        given = _given_token(is_bearer_only)
        if self._is_open and (given is None or not is_made(given)):
            return EVERYTHING
        if given is not None:
            return self.check_given(given)
        holder = None if is_bearer_only else self._sessions.holder(request.cookies.get(self._sessions.cookie, ""))
        found = EVERYTHING if not holder else self._with_engine(lambda: self._keyring.find_id(holder))
        if holder is None or found is None:
            raise self._unauthorized(_("a token is needed: Authorization: Bearer, with the value of BILI_TOKEN"))
        return found

    def check_given(self, given: bytes) -> Access:
        """Return who has a token; raise the HTTP error of one that is wrong, and of too many of them."""
        if not self._is_open and hmac.compare_digest(hashlib.sha256(given).digest(), self._digest):
            return EVERYTHING
        if found := self._with_engine(lambda: self._keyring.find(given)):
            return found
        if wait := self._lockout.note(request.remote_addr or "", given):
            raise TooManyRequests(_("too many wrong tokens from this address: wait a minute"), retry_after=wait)
        raise self._unauthorized(
            _("the token is wrong: it must be the BILI_TOKEN of the server, or one that was made there and not revoked")
        )

    def _with_engine(self, look: Callable[[], Access | None]) -> Access | None:
        """Return what is looked up, or raise the HTTP error of an engine that cannot be asked now."""
        try:
            return look()
        except EngineError as error:
            raise ServiceUnavailable(str(error), retry_after=ENGINE_RETRY_SECONDS) from None

    def _unauthorized(self, sentence: str) -> Unauthorized:
        # Basic is for browsers where there is no page to ask with; any name, the token is the password.
        is_asked = _is_page() or request.path == self.SIGN_IN_PATH
        names = ("bearer",) if is_asked or request.path in self.BEARER_PATHS else ("basic", "bearer")
        kind = SignInNeeded if _is_page() else Unauthorized
        return kind(sentence, www_authenticate=[WWWAuthenticate(name, {"realm": "bili"}) for name in names])

    def _check_body(self) -> None:
        """Only JSON, which no form of another site can send; only of a known length, so that nothing is cut."""
        if request.mimetype != "application/json":
            raise UnsupportedMediaType(_("send JSON, with Content-Type: application/json"))
        if request.environ.get("HTTP_TRANSFER_ENCODING") or request.content_length is None:
            raise LengthRequired(_("send the body with a Content-Length"))


def _is_page() -> bool:
    """Tell whether a page of the dashboard is asked for; showing one changes nothing."""
    return request.method in ("GET", "HEAD") and (request.path == "/" or request.path.startswith("/ui/"))


@lru_cache(1024)
def _host_name(host: str) -> str:
    """Return the name of a Host field without its port; an empty text for what is none."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/@]+))(?::[0-9]*)?", host)
    return (match[1] or match[2]).lower().removesuffix(".") if match else ""


@lru_cache(1024)
def is_address(name: str) -> bool:
    """Tell whether a host is named by its IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _line_of(address: str) -> str:
    """Return what an address is counted by: of IPv6 the network that one customer has, or he had 2^64 tries."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped or ipaddress.ip_network((found, CUSTOMER_BITS), strict=False).network_address)
    return str(found)


def _given_token(bearer_only: bool) -> bytes | None:
    given = request.authorization
    if given is None:
        return None
    if given.type == "basic" and not bearer_only:
        return (given.password or "").encode("utf-8", "replace")
    return (given.token or "").encode("utf-8", "replace") if given.type == "bearer" else None
