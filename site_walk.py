"""The site as add_url.py asks it, with requests: short links, rankings, pages of listings; and how it asks anyone.

Without a login and at a modest pace. What only an account may see is left to the workers, which have its cookie.
"""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from hashlib import sha256
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import requests

import account
from config import USER_AGENT, Settings, tls_context
from errors import JobError, Parked, RiskControl, SiteError
from i18n import _
from model import MIB, Budget, Video
from pace import Pace
from parse_ import (
    REAL_HOSTS,
    SiteHosts,
    answer_code,
    is_refusal,
    parse_job_id,
    parse_season,
    parse_spi,
    parse_target,
    parse_view,
    parse_wbi_keys,
    risk_control,
    sign_wbi,
)
from retry import full_jitter_seconds
from server_trust import Unproven, pinned_certificate, trusting_only
from site_standing import SiteStanding
from sources import ListRequest, parse_source
from visitor import browser_marks, page_referer

MAX_HOPS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_BODY_BYTES = 8 * MIB
ANSWER_SECONDS = 120.0
"""For so long an answer may come, however it comes."""
TRIES = 3
BUDGET_SECONDS = 2.0
"""So often the queue is asked how the site may be asked, as long as it is."""

T = TypeVar("T")
AskBudget = Callable[[Mapping[str, Any]], Budget | None]
"""Tells the queue how the site was asked, and returns how it may be; None where there are no budgets."""


def persist(call: Callable[[], T], transient: type[Exception]) -> T:
    """Return what ``call`` returns; after a ``transient`` error try again, TRIES times in all, with full jitter."""
    for attempt in range(1, TRIES):
        try:
            return call()
        except transient as error:
            wanted = getattr(error, "retry_after_seconds", None) or 0.0
            time.sleep(min(wanted, 10.0) + full_jitter_seconds(attempt, 0.5, 8.0, random.random))
    return call()


def shown(text: str, characters: int = 200) -> str:
    """Return ``text`` as it may be written to a terminal: printable, and not long."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:characters])


class _Token(requests.auth.AuthBase):
    """Sends the token, if any; being there, it keeps requests from sending what ~/.netrc has for the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Trusting(requests.adapters.HTTPAdapter):
    """Trusts whom a context trusts. With a fingerprint, that one certificate: its names do not count then."""

    def __init__(self, context: ssl.SSLContext, fingerprint: str | None = None) -> None:
        self._trust: dict[str, Any] = {"ssl_context": context, "assert_fingerprint": fingerprint}
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        """Make what connects directly."""
        super().init_poolmanager(connections, maxsize, block, **options, **self._trust)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make what connects through a proxy."""
        return super().proxy_manager_for(proxy, **options, **self._trust)


class _Pinned(requests.adapters.BaseAdapter):
    """Asks servers whose certificates are pinned: of each, that one alone is trusted, and compared besides."""

    def __init__(self, pins: Sequence[str], trust_env: bool) -> None:
        super().__init__()
        self._pins, self._trust_env = pins, trust_env
        self._adapters: dict[str, _Trusting] = {}

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request, after a look at the certificate where the server was not asked before."""
        parts = urlsplit(request.url or "")
        server = f"{parts.scheme}://{parts.netloc}"
        if server not in self._adapters:
            certificate = pinned_certificate(server, self._pins, self._trust_env)
            self._adapters[server] = _Trusting(trusting_only(certificate), sha256(certificate).hexdigest())
        try:
            return self._adapters[server].send(request, *arguments, **options)
        except requests.exceptions.SSLError:
            self._adapters.pop(server).close()  # it may have another one by now that is pinned as well
            raise

    def close(self) -> None:
        """Close the connections."""
        for adapter in self._adapters.values():
            adapter.close()


class _Session(requests.Session):
    """Follows no redirect, and leaves its Location and body alone."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def new_session(token: str = "", trust_env: bool = True, pins: Sequence[str] = ()) -> requests.Session:
    """Return a session that keeps no cookies, with the proxies and certificates that the environment names.

    With ``pins`` it asks only servers whose certificates have one of them.
    """
    session = _Session()
    if pins:
        session.mount("https://", servers := _Pinned(pins, trust_env))
        session.mount("http://", servers)  # there is no certificate, so it is refused
    else:
        session.mount("https://", _Trusting(tls_context(os.environ)))
    session.trust_env = trust_env
    session.auth = _Token(token)
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    return session


def place(url: str) -> str:
    """Return an address without the user name and password that it may hold."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Answer(NamedTuple):
    """What somebody has answered: all of it is here, and its connection is free."""

    status: int
    headers: Mapping[str, str]
    text: str


def answer_of(
    session: requests.Session,
    method: str,
    url: str,
    is_wanted: Callable[[int], bool] = lambda _status: True,
    **options: Any,
) -> Answer:
    """Return an answer, with its text where ``is_wanted`` says so of its status.

    Raise ValueError for a text that is too long, counted after decompression; OSError for what requests raises, and for
    an answer that comes so slowly that the limits of requests, for each piece of it, are never met.
    """
    found: Future[Answer] = Future()

    def ask() -> None:
        try:
            with session.request(method, url, stream=True, **options) as reply:
                text = _text(reply) if is_wanted(reply.status_code) else ""
                found.set_result(Answer(reply.status_code, reply.headers, text))
        except BaseException as error:
            found.set_exception(error)

    # It may wait for as long as the other side likes: nobody waits for it then, also not at the end of the program.
    threading.Thread(target=ask, name="ask", daemon=True).start()
    try:
        return found.result(ANSWER_SECONDS)
    except TimeoutError as error:
        if found.done():
            raise
        raise requests.exceptions.Timeout(url) from error


def _text(reply: requests.Response) -> str:
    content = bytearray()
    for piece in reply.iter_content(64 * 1024):
        content += piece
        if len(content) > MAX_BODY_BYTES:
            raise ValueError(_("the answer is too long"))
    return content.decode("utf-8", "replace")


def problem(error: Exception, url: str) -> str:
    """Return in words why ``url`` gave no answer; the library's own texts are for programmers."""
    if isinstance(error, Unproven):
        return shown(str(error), 400)
    reasons = (
        (requests.exceptions.ProxyError, _("{url} cannot be reached: the proxy refuses or is away")),
        (requests.exceptions.SSLError, _("{url} has a certificate that is not trusted")),
        (requests.exceptions.Timeout, _("{url} does not answer in time")),
        (requests.exceptions.ConnectionError, _("{url} cannot be reached")),
    )
    sentence = next((text for kind, text in reasons if isinstance(error, kind)), _("{url} fails: {error}"))
    return sentence.format(url=place(url), error=shown(str(error)))


class Site:
    """Rankings and short links, asked without a login, at a modest pace; each ranking once.

    The workers of this machine's line may be asking as well: ``ask_budget`` says how much of that is for us.
    """

    def __init__(self, settings: Settings, ask_budget: AskBudget | None = None) -> None:
        self.hosts = SiteHosts(settings.web_url, settings.api_url, settings.short_url)
        self._pace = Pace(settings.api_interval_seconds, time.monotonic)
        self._standing = SiteStanding(self._pace, settings.egress)
        self._ask_budget = ask_budget
        self._heard_at = float("-inf")
        self.has_account = account.load(settings) is not None
        """It is never used here, but workers have it."""
        self._session = new_session()
        self._session.headers.update({"User-Agent": USER_AGENT, "Referer": page_referer(settings.web_url)})
        self._marks = browser_marks(random.random)
        self._rankings: dict[int, str] = {}
        self._identity: tuple[tuple[str, str] | None, dict[str, str]] | None = None

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def ranking(self, rid: int) -> str:
        """Return the site's answer for the ranking of a region."""
        if rid not in self._rankings:
            keys, cookie = self._identity = self._identity or self._ask_identity()
            query = {"rid": str(rid), "type": "all"}
            signed = sign_wbi(query, keys, int(time.time())) if keys else query
            self._rankings[rid] = self._text(f"/x/web-interface/ranking/v2?{urlencode(signed)}", cookie)
        return self._rankings[rid]

    def listing(self, wanted: ListRequest, read: Callable[[str], T]) -> T:
        """Ask for a page of a listing and return what ``read`` makes of the answer."""
        query, cookie = dict(wanted.params), dict[str, str]()
        if wanted.signed or wanted.host == "api":
            keys, cookie = self._identity = self._identity or self._ask_identity()
            if keys and wanted.signed:
                query = sign_wbi({**query, **self._marks}, keys, int(time.time()))
        base = self.hosts.api_url if wanted.host == "api" else self.hosts.web_url
        text = self._text(f"{wanted.path}?{urlencode(query, quote_via=quote, safe='')}", cookie, base)
        try:
            return read(text)
        except RiskControl as error:
            raise self._told(error) from None

    def page_count(self, bvid: str) -> int:
        """Return how many pages a video has."""
        return len(self.video(bvid).pages)

    def video(self, bvid: str) -> Video:
        """Return a video with its pages."""
        return parse_view(self._text(f"/x/web-interface/view?bvid={bvid}"))

    def episode(self, episode_id: int) -> Video:
        """Return an episode as a video of one page."""
        return parse_season(self._text(f"/pgc/view/web/season?ep_id={episode_id}"), episode_id)

    def _ask_identity(self) -> tuple[tuple[str, str] | None, dict[str, str]]:
        """Return WBI keys and a visitor's cookie where they can be had; the site may answer without them."""
        keys, cookie = None, {}
        with suppress(JobError):
            keys = parse_wbi_keys(self._text("/x/web-interface/nav"))
        with suppress(JobError):
            # As a header of one request, which follows no redirect, it goes nowhere else.
            cookie = {"Cookie": f"buvid3={quote(parse_spi(self._text('/x/frontend/finger/spi'))[0])}"}
        return keys, cookie

    def _text(self, path: str, headers: Mapping[str, str] | None = None, base: str = "") -> str:
        url = (base or self.hosts.api_url) + path
        status, _headers, text = self._ask("GET", url, headers)
        if status in (403, 412, 429):
            sentence = _("the site asks to slow down (HTTP {status})").format(status=status)
            raise self._told(RiskControl(sentence, status))
        if status != 200:
            raise SiteError(_("the site answers HTTP {status}").format(status=status))
        self._note_answer(answer_code(text))
        return text

    def _note_answer(self, code: str) -> None:
        """Have all who share our line hear of a refusal, which whoever reads the answer raises, and of its end."""
        if is_refusal(code):
            self._told(risk_control(code))
        elif code:
            self._pace.answered(is_good=code == "0")
            if self._standing.has_news:
                self._hear()

    def resolve(self, link: str) -> str:
        """Return the id that a short link leads to; ValueError or SiteError with the reason where there is none.

        Only the site's own hosts are asked, and of an answer only the Location is read. The page at which a link
        was shared is kept, save the first: the app names it in every link.
        """
        link = self._short(link)
        for _hop in range(MAX_HOPS):
            # Parsed and put together again, so that no other parser can read another host in it.
            link = urlsplit(urljoin(link, self._location(link))).geturl()
            if source := self._source(link):
                return source
            try:
                target = parse_target(link, self.hosts)
            except ValueError as error:
                if not self._is_own(link):
                    leads = _("the short link leads to {link}: {reason}")
                    raise ValueError(leads.format(link=shown(link), reason=error)) from None
                continue
            if target.id:
                job = parse_job_id(target.id)
                return job.bvid if job.number == 1 else target.id
            link = self._short(target.short_link)
        raise ValueError(_("the short link leads to no video within {hops} redirects").format(hops=MAX_HOPS))

    def _source(self, link: str) -> str | None:
        with suppress(ValueError):
            return parse_source(link, self.hosts)
        return None

    def _short(self, link: str) -> str:
        """Return a short link at the stand-in for the real host, where the settings name one."""
        code = link.removeprefix(REAL_HOSTS.short_url + "/")
        return link if code == link else f"{self.hosts.short_url}/{code}"

    def _is_own(self, link: str) -> bool:
        ours = [urlsplit(base) for base in (self.hosts.short_url, self.hosts.web_url)]
        return urlsplit(link)[:2] in [base[:2] for base in ours]

    def _location(self, link: str) -> str:
        for method in ("HEAD", "GET"):  # some answer HEAD with 404 or 405
            status, headers, _text = self._ask(method, link)
            if status in REDIRECTS and "Location" in headers:
                return headers["Location"]
        raise ValueError(_("the short link leads nowhere (HTTP {status})").format(status=status))

    def _told(self, error: RiskControl) -> RiskControl:
        """Return a refusal of which all who share our line have been told."""
        self._standing.refused(error)
        self._hear()
        return error

    def _hear(self) -> None:
        if self._ask_budget is None:
            return
        told = self._standing.told()
        self._standing.heard(told, self._ask_budget(told), 0.0)
        self._heard_at = time.monotonic()

    def _turn(self) -> None:
        """Wait until the next request may go; raise Parked where none may go."""
        while True:
            if time.monotonic() - self._heard_at > BUDGET_SECONDS:
                self._hear()
            if self._pace.parked_seconds > 0:
                raise Parked(_("the site is not asked now: it wants fewer requests from this address or account"))
            if (wait_seconds := self._pace.wait_seconds()) <= 0:
                self._pace.take()
                return
            time.sleep(min(wait_seconds, BUDGET_SECONDS))

    def _ask(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        return persist(lambda: self._ask_once(method, url, headers), SiteError)

    def _ask_once(self, method: str, url: str, headers: Mapping[str, str] | None) -> Answer:
        self._turn()
        try:
            answer = answer_of(self._session, method, url, lambda status: status == 200, headers=headers, timeout=10)
        except (OSError, ValueError) as error:
            raise SiteError(problem(error, url)) from error
        if answer.status >= 500:
            raise SiteError(_("the site answers HTTP {status}").format(status=answer.status))
        return answer
