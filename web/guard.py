"""What is looked at before a route runs: the name, the origin, the token, and the kind of the body."""

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

from flask import request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import (
    Forbidden,
    HTTPException,
    LengthRequired,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)

from config import Settings
from i18n import _
from web.session import Sessions

log = logging.getLogger(__name__)


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


class Guard:
    """Looks at every request before its route does."""

    OPEN_PATHS = frozenset({"/healthz", "/livez"})
    """Without a token: they say nothing but whether the server works."""
    SIGN_IN_PATH = "/ui/sign-in"
    BEARER_PATHS = frozenset({"/get_url"})
    """Not with what a browser remembers, a password or a session: any page can make it send a GET with that."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._token = settings.token.encode()
        self._sessions = sessions
        self._hosts = frozenset({"localhost", *settings.hosts})
        self._wrong_tokens = WrongTokens()

    def check(self) -> None:
        """Raise the HTTP error of a request that may not go on."""
        path, environ = request.path, request.environ
        self._check_host(environ)
        if path in self.OPEN_PATHS:
            return
        self._check_site(environ)
        if path != self.SIGN_IN_PATH and not path.startswith("/static/"):  # which is no secret
            self._check_token()
        if environ["REQUEST_METHOD"] == "POST" and request.routing_exception is None:  # 404 or 405, whatever is sent
            self._check_body()

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

    def _check_token(self) -> None:
        if not self._token:
            return
        is_bearer_only = request.path in self.BEARER_PATHS
        given = _given_token(is_bearer_only)
        if given is not None:
            self.check_given(given)
        elif is_bearer_only or not self._sessions.holds(request.cookies.get(self._sessions.cookie, "")):
            raise self._unauthorized(_("a token is needed: Authorization: Bearer, with the value of BILI_TOKEN"))

    def check_given(self, given: bytes) -> None:
        """Raise the HTTP error of a token that is wrong, and of too many of them."""
        if hmac.compare_digest(given, self._token):
            return
        address = request.remote_addr or ""
        if wait := self._wrong_tokens.retry_after_seconds(address, given):
            raise TooManyRequests(_("too many wrong tokens from this address: wait a minute"), retry_after=wait)
        self._wrong_tokens.add(address, given)
        raise self._unauthorized(_("the token is wrong: it must be the BILI_TOKEN of the server"))

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


def _given_token(bearer_only: bool) -> bytes | None:
    given = request.authorization
    if given is None:
        return None
    if given.type == "basic" and not bearer_only:
        return (given.password or "").encode("utf-8", "replace")
    return (given.token or "").encode("utf-8", "replace") if given.type == "bearer" else None
