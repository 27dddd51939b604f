"""The fast path for plain ranged bodies: HTTP/1.1 on sockets of asyncio, with one buffer for all connections.

The kernel writes into the buffer, the taker gets a view of it, and only then the next connection is read: nothing is
queued, so memory grows neither with connections and sizes nor with slow disks. Whoever cannot take more makes the
connection wait, and through it the peer.

    RangeClientError          nothing that a disk or a taker raises is one
    ├── BadRequest            the URL or a header cannot be sent as it is written
    ├── ConnectTimeout        name, TCP and TLS together took too long; other failures are the OSError they are
    ├── Disconnected          closed before the first byte of a reply
    ├── CutShort              closed within a reply
    ├── BadReply              not HTTP/1.x, or a head that two readers could understand in two ways
    ├── NotPlain              HTTP, but no Content-Length: ask through a complete client
    └── NotAPeer              the name leads to addresses only that may not be asked

No sentence of theirs has a path or a query, because the queries of media addresses are signed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, cast
from urllib.parse import urlsplit

from aiohappyeyeballs import AddrInfoType, start_connection
from multidict import CIMultiDict, CIMultiDictProxy

from transfer.peers import is_address

Taker = Callable[[memoryview], Awaitable[None] | None]
MayBeAt = Callable[[str, int, str], bool]
"""Tells of a host, a port and an address whether the host may be connected to there."""

PIECE_BYTES = 512 * 1024
BUFFER_BYTES = 1024 * 1024
"""More than asyncio's TLS can ever have deciphered and not delivered (two reads of 256 KiB and one record): it forgets
what does not fit into the buffer when the peer has closed."""
HEAD_BYTES = 16 * 1024
INTERIM_REPLIES = 8
"""So many replies of 1xx may come before the real one; nothing was asked that needs any."""

URL = re.compile(r"[!-\[\]-~]+")  # printable ASCII without the backslash, which some readers take for a slash
HOST = re.compile(r"([0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]{1,63}\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
LENGTH = re.compile(r"[0-9]{1,18}")


class RangeClientError(Exception):
    """The root of what this client raises on purpose."""


class BadRequest(RangeClientError):
    """The URL or a header cannot be sent as it is written."""


class ConnectTimeout(RangeClientError, TimeoutError):
    """No connection within the time for name, TCP and TLS together."""


class Disconnected(RangeClientError):
    """The connection ended before the first byte of a reply."""


class CutShort(RangeClientError):
    """The connection ended within the reply."""


class BadReply(RangeClientError):
    """What came is not HTTP/1.x, or ambiguous."""


class NotPlain(RangeClientError):
    """The body is not framed by a Content-Length."""


class NotAPeer(RangeClientError):
    """The host's name leads to no address that may be asked."""


class Origin(NamedTuple):
    """Whom a connection leads to, and what may be asked through it."""

    is_tls: bool
    host: str
    port: int


class Head(NamedTuple):
    """The head of a reply; ``body_bytes`` is None for a body that is not framed by a length."""

    status: int
    headers: CIMultiDictProxy[str]
    body_bytes: int | None
    stays_open: bool


# -------------------------------------------------------------------------------------------- what is written and read


def make_request(url: str, *headers: Mapping[str, str]) -> tuple[Origin, bytes]:
    """Return whom to ask and the bytes of a GET, with the URL as it is written; later headers replace earlier ones.

    Raises BadRequest for what would not arrive as it is meant.
    """
    if not URL.fullmatch(url):
        raise BadRequest("the URL has a space, a control character, a backslash or a letter beyond ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise BadRequest("the URL has no readable host or port") from None
    if parts.scheme not in ("http", "https") or not HOST.fullmatch(host):
        raise BadRequest("the URL is not one of http or https with a host")
    is_tls = parts.scheme == "https"
    usual_port = 443 if is_tls else 80
    written_host = f"[{host}]" if ":" in host else host
    _, _, after_scheme = url.partition("#")[0].partition("://")
    target = after_scheme[len(parts.netloc) :]
    fields = CIMultiDict({"Host": written_host if port in (None, usual_port) else f"{written_host}:{port}"})
    for name, value in (field for each in headers for field in each.items()):
        if not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            raise BadRequest("a header cannot be sent: its name or its value has a character that is not allowed")
        if name.lower() != "host":
            fields[name] = value
    head = [f"GET {target if target.startswith('/') else '/' + target} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in fields.items()]
    return Origin(is_tls, host, usual_port if port is None else port), "\r\n".join([*head, "", ""]).encode()


def parse_head(head: bytes) -> Head:
    """Read the head of a reply, from its status line to the last field, without the empty line.

    Raises BadReply for everything but the one way to write it: a proxy may read the other ways differently.
    """
    status_line, *lines = head.decode("utf-8", "surrogateescape").split("\r\n")
    match = STATUS_LINE.fullmatch(status_line)
    if not match:
        raise BadReply("the reply does not begin with a status line of HTTP/1.x")
    headers = CIMultiDict[str]()
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            raise BadReply("the head of the reply has a line that is not a field")
        headers.add(name, value.strip(" \t"))
    status = int(match[2])
    options = {option.strip().lower() for value in headers.getall("Connection", ()) for option in value.split(",")}
    stays_open = match[1] == "1" and "close" not in options
    return Head(status, CIMultiDictProxy(headers), _body_bytes(status, headers), stays_open)


def _body_bytes(status: int, headers: CIMultiDict[str]) -> int | None:
    lengths = {length.strip(" \t") for value in headers.getall("Content-Length", ()) for length in value.split(",")}
    if len(lengths) > 1 or not all(map(LENGTH.fullmatch, lengths)):
        raise BadReply("the reply says more than one length, or one that is no number")
    if lengths and "Transfer-Encoding" in headers:
        raise BadReply("the reply has both Content-Length and Transfer-Encoding")
    if status in (204, 304) or status < 200:
        return 0
    return int(lengths.pop()) if lengths else None


# -------------------------------------------------------------------------------------------------- one connection


class _Connection(asyncio.BufferedProtocol):
    """A connection to one origin. It is read while it is idle, while it waits for a head, and while someone takes."""

    def __init__(self, client: RangeClient, origin: Origin) -> None:
        self.origin = origin
        self.idle_timer: asyncio.TimerHandle | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self._client = client
        self._transport: asyncio.Transport
        self._cause: Exception | None = None
        self._asking = False
        self._answered = False
        self._stays_open = True
        self._paused = False
        self._held = bytearray()  # the head; the bytes that came with it; what came although reading was paused
        self._left = 0  # bytes of the body that were not given to a taker yet
        self._take: Taker | None = None
        self._pending: Awaitable[None] | None = None
        self._problem: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._take is None:
            return self._client.head_view
        return self._client.whole_view if self.origin.is_tls else self._client.piece_view

    def buffer_updated(self, nbytes: int) -> None:
        data = self._client.whole_view[:nbytes]
        if self._take is not None:
            try:
                self._give(data, self._take)
            except BaseException as problem:  # the taker's: it belongs to whoever called receive
                self._problem = problem
            if self._left and self._pending is None and self._problem is None:
                return
            self._take = None
        elif self._asking:
            self._answered = True
            self._held += data
        else:
            self.abort()  # nothing was asked
            return
        self._pause()
        self._wake()

    def eof_received(self) -> None:
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cause = exc
        self._client.forget(self)
        self.lost.set_result(None)
        self._wake()

    # what the client calls

    def abort(self) -> None:
        """Close at once, without a word to the peer; ``lost`` is done when the socket is closed."""
        self._client.forget_idle(self)
        self._transport.abort()

    async def ask(self, request: bytes) -> Head:
        """Send a request and return the head of its reply; reading is paused then."""
        self._asking, self._answered = True, False
        self._transport.write(request)
        try:
            head = await self._head()
        except BaseException:
            self.abort()
            raise
        assert head.body_bytes is not None
        self._stays_open = head.stays_open
        self._left = head.body_bytes
        return head

    async def receive(self, take: Taker) -> None:
        """Give the body to ``take``; see RangeReply."""
        try:
            while self._left:
                if self._held:
                    held, self._held = self._held, bytearray()
                    self._give(memoryview(held), take)
                elif self.lost.done():
                    raise CutShort("the peer closed the connection within a body") from self._cause
                else:
                    await self._read(take)
                if self._pending is not None:
                    pending, self._pending = self._pending, None
                    await pending
        except BaseException:
            if asyncio.iscoroutine(self._pending):
                self._pending.close()  # nobody waits for it any more
            self.abort()
            raise

    def is_reusable(self) -> bool:
        """Whether a next request may be sent: all of the reply is here, and nothing else, or it was received."""
        return self._stays_open and len(self._held) == self._left and not self._transport.is_closing()

    def rest(self) -> None:
        """Forget the reply; from now on the peer has nothing to say but that it closes."""
        self._asking = False
        self._held.clear()
        self._left = 0
        self._resume()

    # how it works

    async def _head(self) -> Head:
        interim = 0
        while True:
            end = self._held.find(b"\r\n\r\n")
            if end + 4 > HEAD_BYTES or (end < 0 and len(self._held) >= HEAD_BYTES):
                raise BadReply("the head of the reply is longer than 16 KiB")
            if not self._held.startswith(b"HTTP/1."[: len(self._held)]):
                raise BadReply("the reply is not one of HTTP/1.x")
            if end >= 0:
                head = parse_head(bytes(self._held[:end]))
                del self._held[: end + 4]
                if head.status < 200:
                    interim += 1
                    if interim > INTERIM_REPLIES:
                        raise BadReply("the peer says again and again that a reply will come")
                    continue
                if head.body_bytes is None:
                    raise NotPlain("the reply does not say its length")
                return head
            if self.lost.done():
                if self._answered:
                    raise CutShort("the peer closed the connection within the head of a reply") from self._cause
                raise Disconnected("the peer closed the connection without a reply") from self._cause
            await self._news()

    async def _read(self, take: Taker) -> None:
        """Let the bytes that come go to ``take``, until it wants to wait, fails, or has all."""
        self._take = take
        try:
            await self._news()
        finally:
            self._take = None
        if self._problem is not None:
            problem, self._problem = self._problem, None
            try:
                raise problem
            finally:
                del problem  # its traceback leads to this frame

    def _give(self, data: memoryview, take: Taker) -> None:
        """Give data piece by piece until the taker wants to wait; what is then left is held."""
        if len(data) > self._left:
            self._stays_open = False  # more than a body: what else is it going to say?
            data = data[: self._left]
        at = 0
        while at < len(data) and self._pending is None:
            with data[at : at + self._client.piece_bytes] as piece:  # a piece that is kept raises when it is read
                at += len(piece)
                self._left -= len(piece)
                self._pending = take(piece)
        self._held += data[at:]

    async def _news(self) -> None:
        """Read on, until there is something to look at or the connection is lost."""
        self._resume()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()


# -------------------------------------------------------------------------------------------------- the client


class RangeReply:
    """The head of a reply, and the way to its body."""

    def __init__(self, head: Head, connection: _Connection) -> None:
        self.status = head.status
        self.headers: Mapping[str, str] = head.headers
        self._connection = connection

    async def receive(self, take: Taker) -> None:
        """Give every piece of the body to ``take``, in order, as a view that is valid only during the call.

        ``take`` returns None to go on, or something to wait for: nothing is read until that is done. What either
        raises ends the reply, is raised here as it is, and the connection is closed. Raises CutShort if the peer
        closed before the end. There is no time limit: the caller cancels.
        """
        await self._connection.receive(take)


class RangeClient:
    """Connections to any number of origins, kept open for the next request; nothing but GET without a body."""

    def __init__(
        self,
        tls: ssl.SSLContext | Callable[[], ssl.SSLContext],
        headers: Mapping[str, str],
        connect_seconds: float = 10.0,
        idle_seconds: float = 15.0,
        may_be_at: MayBeAt = lambda host, port, address: True,
    ) -> None:
        """``tls`` may be what makes the context: it is called for the first https address."""
        self.connections: set[_Connection] = set()
        self.whole_view = memoryview(bytearray(BUFFER_BYTES))
        self.head_view = self.whole_view[:HEAD_BYTES]
        self.piece_bytes = PIECE_BYTES
        self._tls = tls
        self._headers = dict(headers)
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._may_be_at = may_be_at
        self._idle: dict[Origin, list[_Connection]] = {}
        self._is_closed = False

    @property
    def piece_bytes(self) -> int:
        """How much a taker gets at most at once, 1 byte to 1 MiB; it may be changed at any time."""
        return len(self.piece_view)

    @piece_bytes.setter
    def piece_bytes(self, size: int) -> None:
        self.piece_view = self.whole_view[: max(1, size)]

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[RangeReply]:
        """Send a GET and yield as soon as the head of its reply is there.

        Raises what this module's docstring lists, and OSError for what failed in connecting (ssl.SSLError is one).
        A connection whose body was not received to its end is closed when the block is left.
        """
        origin, request = make_request(url, self._headers, headers)
        head, connection = await self._ask(origin, request)
        try:
            yield RangeReply(head, connection)
        except BaseException:
            connection.abort()
            raise
        self._keep(connection)

    async def close(self) -> None:
        """End all connections, those in use as well; who waits for a reply gets Disconnected or CutShort."""
        self._is_closed = True
        lost = [connection.lost for connection in self.connections]
        for connection in list(self.connections):
            connection.abort()
        if lost:
            await asyncio.wait(lost)

    def forget(self, connection: _Connection) -> None:
        """Drop a connection that has ended."""
        self.connections.discard(connection)
        self.forget_idle(connection)

    def forget_idle(self, connection: _Connection) -> None:
        """Take a connection out of those that wait for a request, if it is one of them."""
        if connection.idle_timer is None:
            return
        connection.idle_timer.cancel()
        connection.idle_timer = None
        idle = self._idle[connection.origin]
        idle.remove(connection)
        if not idle:
            del self._idle[connection.origin]

    async def _ask(self, origin: Origin, request: bytes) -> tuple[Head, _Connection]:
        if origin in self._idle:
            connection = self._idle[origin][-1]
            self.forget_idle(connection)
            with suppress(Disconnected):  # the peer may have closed it a moment ago
                return await connection.ask(request), connection
        connection = await self._connect(origin)
        return await connection.ask(request), connection

    async def _connect(self, origin: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                one = await self._socket(origin)
                try:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self, origin),
                        sock=one,
                        ssl=self._context() if origin.is_tls else None,
                        server_hostname=origin.host if origin.is_tls else None,
                    )
                except BaseException:
                    one.close()
                    raise
        except TimeoutError:
            raise ConnectTimeout(f"no connection to {origin.host} within {self._connect_seconds:g} s") from None
        if self._is_closed:
            connection.abort()
        return connection

    async def _socket(self, origin: Origin) -> socket.socket:
        """Return a socket that is connected to an address which may be asked; the quickest, where there are several."""
        places = await _places(origin)
        # What is looked at is what is connected to: the name is not asked about again.
        allowed = [place for place in places if self._may_be_at(origin.host, origin.port, str(place[4][0]))]
        if not allowed:
            raise NotAPeer(f"{origin.host} leads to no address that may be asked")
        return await start_connection(allowed, happy_eyeballs_delay=0.25, interleave=1)

    def _context(self) -> ssl.SSLContext:
        if not isinstance(self._tls, ssl.SSLContext):
            self._tls = self._tls()
        return self._tls

    def _keep(self, connection: _Connection) -> None:
        """Keep a connection for the next request if it may be used again, else close it."""
        if not connection.is_reusable():
            connection.abort()
            return
        connection.rest()
        loop = asyncio.get_running_loop()
        connection.idle_timer = loop.call_later(self._idle_seconds, connection.abort)
        self._idle.setdefault(connection.origin, []).append(connection)


async def _places(origin: Origin) -> Sequence[AddrInfoType]:
    """Return where a host may be; nobody is asked, and no thread is woken, where it is an address already."""
    family = socket.AF_INET6 if ":" in origin.host else socket.AF_INET
    if is_address(origin.host):
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (origin.host, origin.port))]
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
