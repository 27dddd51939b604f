"""A proxy as companies have them: it asks for a password, opens TLS with a CA of its own, and writes down who asks.

Behind it the hosts of the real site are those of the stand-in; there is nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import trustme

from demo.process import SiteProcess
from demo.site import REAL_MEDIA_HOSTS

USER, PASSWORD = "clerk", "proxy-secret"
MAX_HEAD_BYTES = 64 * 1024
ENDS_HERE = ("proxy-authorization", "proxy-connection", "connection")
"""Headers that are meant for the proxy, not for the site."""


@dataclass(frozen=True)
class Seen:
    """One request as the proxy saw it, inside a tunnel to ``host`` or, without one, with ``host`` empty."""

    host: str
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where a host of the real site is in truth: an address, and what stands before each path."""

    host: str
    port: int
    prefix: str

    @classmethod
    def of(cls, url: str) -> Place:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        return cls(parts.hostname, parts.port, parts.path)


def places_of(site: SiteProcess) -> dict[str, Place]:
    """Return where the hosts of the real site are in a stand-in that was started with ``--real-names``."""
    names = {
        "web": "www.bilibili.com",
        "api": "api.bilibili.com",
        "passport": "passport.bilibili.com",
        "short": "b23.tv",
    }
    places = {host: Place.of(site.addresses[name]) for name, host in names.items()}
    places["space.bilibili.com"] = Place.of(site.addresses["web"].removesuffix("web") + "space")
    media = [Place.of(f"http://{address}") for address in site.addresses["media"].split(",")]
    return places | dict(zip(REAL_MEDIA_HOSTS, media, strict=False))


class Proxy:
    """``with Proxy(site, folder) as proxy``: a thread with a loop of its own.

    ``refused`` are hosts whose tunnels are refused with 407, whatever the password. ``targets`` are the hosts and
    ports of all CONNECTs, ``seen`` the requests that came through. With ``plain`` it passes on http without TLS too.
    """

    def __init__(self, site: SiteProcess, folder: Path, *, plain: bool = False) -> None:
        self._plain = plain
        self.refused: set[str] = set()
        self.targets: list[str] = []
        self.seen: list[Seen] = []
        self.ca_file = folder / "ca.pem"
        self.port = 0
        self._ca = trustme.CA(organization_name="proxy of a test")
        self._ca.cert_pem.write_to_path(str(self.ca_file))
        self._places = places_of(site)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._tunnels: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy")

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    def url(self, user: str = USER, password: str = PASSWORD) -> str:
        """Return what belongs into HTTPS_PROXY."""
        return f"http://{user}:{password}@127.0.0.1:{self.port}" if user else f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()
        for tunnel in self._tunnels:
            tunnel.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tunnels.add(task)
        try:
            await self._tunnel(reader, writer)
        except (OSError, EOFError):
            pass  # somebody hung up, or does not trust us
        finally:
            self._tunnels.discard(task)
            writer.transport.abort()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, headers = parse_head(await reader.readuntil(b"\r\n\r\n"))
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        may_pass = headers.get("proxy-authorization") == wanted
        if method != "CONNECT":
            if self._plain and may_pass:
                await self._pass_on(method, target, headers, writer)
                return
            self.seen.append(Seen("", method, target, headers))
            await answer(writer, "403 Forbidden")
            return
        host, _colon, port = target.rpartition(":")
        self.targets.append(target)
        if host in self.refused or not may_pass:
            await answer(writer, "407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="p"')
            return
        place = self._places.get(host)
        if place is None or port != "443":
            await answer(writer, "502 Bad Gateway")
            return
        await answer(writer, "200 Connection established")
        await writer.start_tls(self._context(host))
        await self._forward(host, place, reader, writer)

    async def _pass_on(self, method: str, url: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        """Pass on one request over http without TLS, and hang up after its answer."""
        parts = urlsplit(url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        kept = {name: value for name, value in headers.items() if name not in ENDS_HERE}
        self.seen.append(Seen(parts.hostname or "", method, path, kept))
        place = self._places.get(parts.hostname or "")
        if place is None or parts.port not in (None, 80):
            await answer(writer, "502 Bad Gateway")
            return
        inner_reader, inner_writer = await asyncio.open_connection(place.host, place.port)
        lines = [f"{name}: {value}\r\n" for name, value in (kept | {"connection": "close"}).items()]
        inner_writer.write("".join([f"{method} {place.prefix}{path} HTTP/1.1\r\n", *lines, "\r\n"]).encode("latin-1"))
        try:
            await pump(inner_reader, writer)
        finally:
            inner_writer.transport.abort()
        writer.close()
        await writer.wait_closed()

    def _context(self, host: str) -> ssl.SSLContext:
        if host not in self._contexts:
            self._contexts[host] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._ca.issue_cert(host).configure_cert(self._contexts[host])
        return self._contexts[host]

    async def _forward(
        self, host: str, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(place.host, place.port)
        answers = asyncio.create_task(pump(inner_reader, writer))
        asking = asyncio.create_task(self._ask(host, place, reader, inner_writer))
        try:
            await asyncio.wait({answers, asking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            inner_writer.transport.abort()
            for task in (answers, asking):
                task.cancel()
            await asyncio.gather(answers, asking, return_exceptions=True)
            with contextlib.suppress(OSError):
                await writer.drain()

    async def _ask(self, host: str, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on one request after the other; a downloader sends no bodies to the site."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, headers = parse_head(head)
            self.seen.append(Seen(host, method, path, headers))
            rest = head.split(b"\r\n", 1)[1]
            writer.write(f"{method} {place.prefix}{path} HTTP/1.1\r\n".encode("latin-1") + rest)
            await writer.drain()


def parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Return method, target and headers, their names in small letters."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _version = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    return method, target, {name.strip().lower(): value.strip() for name, _colon, value in pairs}


async def answer(writer: asyncio.StreamWriter, status: str, *headers: str) -> None:
    """Answer as the proxy itself; a refusal ends the connection."""
    refused = not status.startswith("200")
    lines = [f"HTTP/1.1 {status}", *headers, *(["Content-Length: 0", "Connection: close"] if refused else [])]
    writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    await writer.drain()
    if refused:
        writer.close()
        await writer.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until the end."""
    while piece := await reader.read(256 * 1024):
        writer.write(piece)
        await writer.drain()
