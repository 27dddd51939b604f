"""The door to the mirrors: asks for a range, and hands the body on piece by piece as it comes.

There are two ways. The quick one (`range_client`) is for a direct connection and a body of announced length, which is
what a mirror nearly always gives. Everything else goes through aiohttp: proxies, and bodies framed in other ways. No
cookie and no credential ever goes to a mirror.
"""

from __future__ import annotations

import os
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from types import TracebackType
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
import aiohttp.abc
import yarl

from config import USER_AGENT, Settings, tls_context
from errors import NoWayOut
from i18n import _
from model import MIB
from transfer.mirrors import MediaHosts
from transfer.range_client import (
    BadReply,
    BadRequest,
    ConnectTimeout,
    CutShort,
    Disconnected,
    MayBeAt,
    NotAPeer,
    NotPlain,
    RangeClient,
    Taker,
)
from transfer.range_reply import Meaning, Verdict
from visitor import page_referer

MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Refused(Exception):
    """A reply that is not used, and why."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class Reply(Protocol):
    """A reply whose head is there and whose body is still to come."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The fields of the head; they ignore case."""

    async def receive(self, take: Taker) -> None:
        """Give each piece of the body to ``take``, as a view that is good during the call; return at its end.

        Where ``take`` returns an awaitable, nothing more is read until that is done. What it raises is raised here.
        """


class _LibraryReply:
    """A reply of aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def receive(self, take: Taker) -> None:
        async for data in self._response.content.iter_any():
            if (pause := take(memoryview(data))) is not None:
                await pause


class MediaClient:
    """Asks mirrors; one for all streams of a worker."""

    def __init__(
        self,
        settings: Settings,
        allowed: MediaHosts,
        environ: Mapping[str, str] = os.environ,
        connect_seconds: float = 10.0,
        stall_seconds: float = 20.0,
    ) -> None:
        """``allowed`` tells whether media may be fetched from somewhere; each redirect is looked at, too.

        And so is each address that a name leads to, save behind a proxy, which finds them by itself.
        """
        self.allowed = allowed
        headers = {"User-Agent": USER_AGENT, "Referer": page_referer(settings.web_url), "Accept-Encoding": "identity"}
        tls = cache(partial(tls_context, environ))  # reading the certificates takes longer than a small video
        self._direct = RangeClient(
            tls, {**headers, "Accept": "*/*"}, connect_seconds, may_be_at=lambda *place: self.allowed.may_be_at(*place)
        )
        self._open_session = partial(_library_session, tls, headers, connect_seconds, stall_seconds)
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._proxied: dict[tuple[str, str], bool] = {}
        self._odd_hosts: set[str] = set()

    @property
    def piece_bytes(self) -> int:
        """How much of a body is handed on at once at most."""
        return self._direct.piece_bytes

    @piece_bytes.setter
    def piece_bytes(self, size_bytes: int) -> None:
        self._direct.piece_bytes = size_bytes

    async def __aenter__(self) -> MediaClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._direct.close()
        for session in self._sessions.values():
            await session.close()

    def secured(self, url: str) -> str:
        """Return the https address of a plain one that is allowed over https only; the site still gives out such."""
        if not url.startswith("http://") or self.allowed(url):
            return url
        https = "https" + url.removeprefix("http")
        return https if self.allowed(https) else url

    @asynccontextmanager
    async def get(self, url: str, start: int, stop: int) -> AsyncIterator[Reply]:
        """Ask for ``[start, stop)``; redirects are followed by hand, because each new address must be allowed, too.

        `judge_failure` knows what the errors mean.
        """
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        for _hop in range(MAX_REDIRECTS + 1):
            if not self.allowed(url):
                raise Refused(Verdict(Meaning.WRONG, cause=_("not a host for media (see BILI_MEDIA_HOSTS)")))
            async with self._one(url, headers) as reply:
                if reply.status not in REDIRECTS:
                    yield reply
                    return
                url = _followed(url, reply.headers.get("Location", ""))
        raise Refused(Verdict(Meaning.WRONG, cause=_("it redirects again and again")))

    @asynccontextmanager
    async def _one(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Reply]:
        parts = urlsplit(url)
        has_proxy = self._has_proxy(parts.scheme, parts.hostname or "")
        if parts.netloc not in self._odd_hosts and not has_proxy:
            try:
                async with self._direct.get(url, headers) as reply:
                    yield reply
                    return
            except NotPlain:
                self._odd_hosts.add(parts.netloc)
        # encoded=True: the signature covers the query as it was written, it must not be written anew.
        target = yarl.URL(url, encoded=True)
        async with self._library(has_proxy).get(target, headers=headers, allow_redirects=False) as response:
            yield _LibraryReply(response)

    def _library(self, has_proxy: bool) -> aiohttp.ClientSession:
        if has_proxy not in self._sessions:
            resolver = None if has_proxy else _Resolver(lambda *place: self.allowed.may_be_at(*place))
            self._sessions[has_proxy] = self._open_session(has_proxy, resolver)
        return self._sessions[has_proxy]

    def _has_proxy(self, scheme: str, host: str) -> bool:
        """Tell whether aiohttp would go through a proxy; it asks the same two functions."""
        key = scheme, host
        if key not in self._proxied:
            self._proxied[key] = scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
        return self._proxied[key]


def _followed(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:  # such as http://[::1
        raise Refused(Verdict(Meaning.WRONG, cause=_("it redirects to what is no address"))) from None


class _Resolver(aiohttp.ThreadedResolver):
    """Finds the addresses of a host that may be asked; the connection goes to one of them, whatever is said later."""

    def __init__(self, may_be_at: MayBeAt) -> None:
        super().__init__()
        self._may_be_at = may_be_at

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await super().resolve(host, port, family)
        if kept := [one for one in found if self._may_be_at(host, port, one["host"])]:
            return kept
        raise NotAPeer(f"{host} leads to no address that may be asked")


def _library_session(
    tls: Callable[[], ssl.SSLContext],
    headers: Mapping[str, str],
    connect_seconds: float,
    stall_seconds: float,
    has_proxy: bool,
    resolver: _Resolver | None,
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls(), resolver=resolver),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=stall_seconds),
        auto_decompress=False,
        trust_env=has_proxy,
        middlewares=(_without_credentials,),
        read_bufsize=MIB,  # large reads cost a third less processor time than the default's
    )


async def _without_credentials(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    # trust_env means .netrc, too; a "default" entry there would go to every mirror.
    request.headers.pop("Authorization", None)
    return await send(request)


# ------------------------------------------------------------------------------------------ what failures mean

FAILURES = (aiohttp.ClientError, TimeoutError, OSError, BadReply, BadRequest, CutShort, Disconnected, NotAPeer, Refused)
"""What `MediaClient.get` and `Reply.receive` raise on their own account; what a taker raises is the caller's."""


def judge_failure(error: BaseException) -> Verdict:
    """Return what it means that a request or its body ended with this error; raise NoWayOut where a proxy is to blame.

    The words are our own: the texts of the library's errors show addresses, and signed ones are secrets.
    """
    if isinstance(error, Refused):
        return error.verdict
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return _judge_proxy(error)
    if isinstance(error, ssl.SSLError | aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return Verdict(Meaning.WRONG, cause=_("its certificate is not valid"), host_wide=True)
    if isinstance(error, BadRequest | aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return Verdict(Meaning.WRONG, cause=_("its address cannot be used"))
    if isinstance(error, OSError | aiohttp.ClientConnectorError):
        return _judge_connection(error)
    if isinstance(error, NotAPeer):
        return Verdict(Meaning.WRONG, cause=_("its name leads into a private network"), host_wide=True)
    if isinstance(error, CutShort | aiohttp.ClientPayloadError):
        return Verdict(Meaning.BROKEN, cause=_("the body was cut short"), is_cut=True)
    if isinstance(error, BadReply | aiohttp.ClientResponseError):
        return Verdict(Meaning.BROKEN, cause=_("a reply that is not HTTP"))
    return Verdict(Meaning.BROKEN, cause=_("the connection broke"), pushback=True)


def _judge_connection(error: OSError) -> Verdict:
    if isinstance(error, aiohttp.ClientConnectorDNSError | socket.gaierror):
        return Verdict(Meaning.BROKEN, cause=_("its name is not known"), host_wide=True)
    if isinstance(error, ConnectTimeout | aiohttp.ConnectionTimeoutError):
        return Verdict(Meaning.BROKEN, cause=_("no connection in time"), host_wide=True)
    if isinstance(error, TimeoutError) and not error.errno:
        return Verdict(Meaning.BROKEN, cause=_("it went silent"))
    problem = os.strerror(error.errno) if error.errno and error.errno > 0 else _("the connection broke")
    was_reset = _was_reset(error)
    return Verdict(Meaning.BROKEN, cause=problem, host_wide=not was_reset, pushback=was_reset, is_cut=was_reset)


def _was_reset(error: OSError) -> bool:
    """Tell a connection that was there from one that never was."""
    return isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError) or (
        isinstance(error, aiohttp.ClientOSError) and not isinstance(error, aiohttp.ClientConnectorError)
    )


def _judge_proxy(error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError) -> Verdict:
    """Return what a proxy's refusal means; raise NoWayOut where it is the proxy's, not the mirror's."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        raise NoWayOut(_("the proxy cannot be reached: see HTTPS_PROXY")) from error
    if error.status == 407:
        raise NoWayOut(_("the proxy wants a user and a password: see HTTPS_PROXY")) from error
    return Verdict(Meaning.BROKEN, cause=_("the proxy does not reach it"), host_wide=True)
