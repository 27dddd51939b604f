"""Serves a WSGI application: aiohttp's loop reads requests and writes answers, a few threads make the answers.

aiohttp speaks HTTP: what is read of a head, and what is refused in it, is its parser's matter. What is here is the way
from there to WSGI, and what is kept of those who do not finish. A request comes to a thread when all of it is there, so
that slow senders, half-open connections and idle ones hold no thread. All of it is one process, in which nothing
outlives what the user has started. Bounded are time, number, and bytes together; where there are too many, the one
that has been waited for the longest goes first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from itertools import chain
from typing import Any, cast
from urllib.parse import unquote_to_bytes, urlsplit

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import LineTooLong

from i18n import _
from model import MIB
from one_processor import OneProcessor

log = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HEAD_SECONDS = 10.0
BODY_SECONDS = 60.0
"""From its head on; beside this, there must be something new of it every STALL_SECONDS."""
STALL_SECONDS = 10.0
IDLE_SECONDS = 75.0
"""Between two requests: longer than any client or proxy keeps a connection by itself, so that they close it."""
LINGER_SECONDS = 30.0
"""For so long what is still sent is thrown away after a last answer, else the sender might not get to see that."""
GRACE_SECONDS = 5.0
"""At the end, for what threads are working on."""
BUFFERED_BYTES = 64 * MIB
"""Of all requests together that are unfinished, or wait for a thread."""
UNREAD_BYTES = 64 * MIB
"""Of all answers together that are not fetched yet."""
LARGE_BYTES = 256 * 1024
PIPELINED_BYTES = 64 * 1024
FIELD_BYTES = 16 * 1024
"""The first line, and each field; there are at most FIELDS."""
FIELDS = 100
TURN_SECONDS = 1.0

Answer = tuple[str, list[tuple[str, str]], bytes]


class _Refused(Exception):
    """A request that is not handed on; ``status`` is what its sender is told beside the sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Connection(web.RequestHandler):
    """One client, and what it is waited for until when. Belongs to the loop.

    Of aiohttp's class only public methods are overridden, and one private attribute is read: ``_messages``, the
    requests that were read and not begun. Nothing else tells whether a client that has said all is owed answers.
    """

    __slots__ = (
        *("body", "deadline", "gone", "has_said_all", "held", "is_answered", "is_idle", "is_lingering"),
        *("is_begun", "last", "server", "stalled_at", "unread", "waiting"),
    )

    def __init__(self, server: RequestServer, http: web.Server) -> None:
        super().__init__(
            http,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_SECONDS,
            access_log=None,  # type: ignore[arg-type]  # which is how it is switched off
            max_line_size=FIELD_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=FIELDS,
            lingering_time=0,  # finish_response does that for all last answers, those to broken heads too
            auto_decompress=False,
        )
        self.server = server
        self.is_answered = self.is_idle = True
        self.is_lingering = self.has_said_all = self.is_begun = False
        self.deadline = self.stalled_at = 0.0
        self.held = self.last = self.unread = self.waiting = 0
        self.body: StreamReader | None = None  # of a request from its beginning on until it is answered
        self.gone = asyncio.Event()

    # what the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wait(HEAD_SECONDS, HEAD_SECONDS)
        super().connection_made(transport)
        self.server.enter(self)

    def connection_lost(self, problem: BaseException | None) -> None:
        self.gone.set()
        self.server.leave(self)
        super().connection_lost(problem)

    def data_received(self, data: bytes) -> None:
        if self.is_lingering:
            return
        if count := len(data):
            self.last = count
            self.held += count
            self.server.held_bytes += count
            if self.is_idle:  # the first bytes of a request
                self.is_idle = False
                self.wait(HEAD_SECONDS, STALL_SECONDS)
            elif not self.writing_paused:
                self.stalled_at = self.server.now + STALL_SECONDS
        super().data_received(data)
        if count:
            if not self.is_answered and self.held > PIPELINED_BYTES and self.transport is not None:
                self.transport.pause_reading()
            self.server.make_room()

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp lets go of all; asyncio asks
        self.has_said_all = True
        is_owed = bool(self._messages) or (self.body is not None and self.body.is_eof())
        # then the connection stays open; with TLS there is no such half of a connection
        return is_owed and not self.is_lingering and self.ssl_context is None

    def wait(self, seconds: float, stall_seconds: float) -> None:
        """Wait for what must come within this time, and some of it within the shorter one."""
        now = self.server.now
        self.deadline, self.stalled_at = now + seconds, now + stall_seconds

    def forget(self, count: int) -> None:
        """Count so many bytes as handed on; what is left came with the last ones at most."""
        left = max(0, min(self.held - count, self.last))
        self.server.held_bytes -= self.held - left
        self.held = left

    def count_waiting(self, count: int) -> None:
        """Count so many bytes of a whole request as not answered yet; 0 when it is, or will not be."""
        self.server.held_bytes += count - self.waiting
        self.waiting = count

    @property
    def may_go(self) -> bool:
        """Tell whether there is something of a request to be let go of that no thread has begun with."""
        return self.held > 0 if self.is_answered else self.waiting > 0 and not self.is_begun

    def count_unread(self, count: int) -> None:
        """Count so many bytes of an answer as not fetched yet; 0 when it was, or will not be."""
        self.server.unread_bytes += count - self.unread
        self.unread = count

    @property
    def is_late(self) -> bool:
        """Tell whether it has been waited for long enough: for a request, or that an answer is fetched."""
        return self.is_answered and self.server.now > min(self.deadline, self.stalled_at)

    # what aiohttp asks

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer to what is no request, or is not taken."""
        if isinstance(exc, ConnectionError):
            raise exc  # it has gone: aiohttp ends its task
        if isinstance(exc, _Refused):
            status, sentence = exc.status, str(exc)
        elif isinstance(exc, LineTooLong):
            status, sentence = 431, _("the head is too large")
        elif status == 400:
            sentence = _("this is no request of HTTP/1.0 or 1.1")
        else:
            log.error(_("the server of requests failed"), exc_info=exc)
            sentence = _("internal error")
        log.info(_("refused a request of %s: %d, %s"), request.remote, status, sentence)
        text = json.dumps({"error": sentence}, ensure_ascii=False)
        answer = web.Response(status=status, text=text, content_type="application/json")
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, and have its sender see it where it is the last one."""
        self.is_answered = True
        self.server.wait_again(self)
        self.wait(IDLE_SECONDS, IDLE_SECONDS)
        resp.headers["Server"] = "queue"  # else aiohttp names itself and Python, with their versions
        if isinstance(resp, web.Response) and isinstance(resp.body, bytes):
            self.count_unread(len(resp.body))
            self.server.make_room()
        try:
            done = await super().finish_response(request, resp, start_time)
        finally:
            self.count_unread(0)
        self.body, self.is_idle = None, True
        if self.has_said_all and not self._messages:
            self.close()
        if self.transport is not None:
            self.transport.resume_reading()
            if not resp.keep_alive:
                await self._linger(self.transport)
        return done

    async def _linger(self, transport: asyncio.Transport) -> None:
        self.is_lingering = True
        self.forget(self.held)
        if self.has_said_all or not transport.can_write_eof() or transport.is_closing():
            return
        self.wait(LINGER_SECONDS, LINGER_SECONDS)
        with suppress(OSError):  # gone, and the loop has not heard of it yet
            transport.write_eof()
        await self.gone.wait()


class _Early(asyncio.Protocol):
    """What a client says between its handshake and the moment at which the loop gives it a connection."""

    def __init__(self) -> None:
        self.said = b""
        self.has_said_all = self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.said += data

    def eof_received(self) -> None:
        self.has_said_all = True

    def connection_lost(self, problem: BaseException | None) -> None:
        self.is_lost = True


class _Knock(asyncio.Protocol):
    """A client that has not shaken hands yet. asyncio would do that by itself, but tell nobody how many there are."""

    def __init__(self, server: RequestServer, http: web.Server, context: ssl.SSLContext) -> None:
        self._server, self._http, self._context = server, http, context
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._task = asyncio.get_running_loop().create_task(self._shake_hands(self.transport))
        self._server.hear_knock(self)

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        early = _Early()
        try:
            sealed = await asyncio.get_running_loop().start_tls(
                transport, early, self._context, server_side=True, ssl_handshake_timeout=HEAD_SECONDS
            )
        except OSError as error:  # no TLS, no common version, no end of it
            log.debug("no handshake with %s: %s", transport.get_extra_info("peername"), error)
            return
        finally:
            self._server.forget_knock(self)
        if sealed is None or early.is_lost:
            return
        connection = _Connection(self._server, self._http)
        sealed.set_protocol(connection)
        connection.connection_made(sealed)
        if early.said:
            connection.data_received(early.said)
        if early.has_said_all:
            connection.eof_received()


class RequestServer:
    """Serves an application on sockets that listen; ``run`` returns when ``end`` was called and all is answered."""

    def __init__(
        self,
        application: Application,
        sockets: Sequence[socket.socket],
        *,
        threads: int = 8,
        connection_limit: int = 1000,
        body_limit: int = MIB,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._application = application
        self._sockets = list(sockets)
        self._threads = threads
        self._connection_limit = connection_limit
        self._body_limit = body_limit
        self._ssl_context = ssl_context
        self.now = time.monotonic()
        self.held_bytes = self.unread_bytes = 0
        self._is_ending = False
        self._requests: queue.SimpleQueue[tuple[_Connection, dict[str, Any], asyncio.Future[Answer]] | None]
        self._requests = queue.SimpleQueue()
        self._connections: dict[_Connection, None] = {}
        self._knocks: dict[_Knock, None] = {}
        self._answers: deque[tuple[asyncio.Future[Answer], Answer | None, threading.Event | None]] = deque()
        self._is_woken = False
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._processor = OneProcessor()

    @property
    def places(self) -> list[tuple[str, int]]:
        """The addresses and ports at which it listens."""
        return [one.getsockname()[:2] for one in self._sockets]

    @property
    def has_tls(self) -> bool:
        """Tell whether clients are to speak TLS."""
        return self._ssl_context is not None

    @property
    def waiting(self) -> int:
        """How many requests wait for a thread."""
        return self._requests.qsize()

    def run(self) -> None:
        """Serve until ``end`` is called, and then until those who are being answered are."""
        asyncio.run(self._run())

    def end(self) -> None:
        """Ask it to end; to be called from any thread, and from a signal's handler."""
        self._ended.set()
        self._tell(self._turn)

    def _tell(self, what: Callable[[], object]) -> None:
        """Have the loop do something; nothing where it has not begun, or has ended already."""
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(what)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._turned = asyncio.Event()
        self._processor.join()
        http = web.Server(self._answer, request_factory=self._request)
        context = self._ssl_context
        for _unused in range(self._threads):
            threading.Thread(target=self._work, name="request", daemon=True).start()
        doors = [
            await self._loop.create_server(
                lambda: _Connection(self, http) if context is None else _Knock(self, http, context),
                sock=one,
                backlog=2048,
            )
            for one in self._sockets
        ]
        try:
            while not self._ended.is_set():
                await self._next_turn()
                self._processor.turn()
                for late in [one for one in self._connections if one.is_late]:
                    self._drop(late)
            for door in doors:
                door.close()
            await self._drain()
        finally:
            self._processor.part()
            for _unused in range(self._threads):
                self._requests.put(None)
            for connection in list(self._connections):
                self._drop(connection)
            for knock in list(self._knocks):
                self._turn_away(knock)

    async def _next_turn(self) -> None:
        self._turned.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._turned.wait(), TURN_SECONDS)
        self.now = time.monotonic()

    def _turn(self) -> None:
        self._turned.set()

    async def _drain(self) -> None:
        """Let what is being worked on be answered, and hear of no more."""
        self._is_ending = True
        deadline = time.monotonic() + GRACE_SECONDS
        for connection in list(self._connections):
            if connection.is_answered and not connection.is_lingering and connection.transport is not None:
                connection.transport.close()
        while any(not one.is_answered or _unsent(one) for one in self._connections):
            if time.monotonic() > deadline:
                log.warning(_("ending with requests that are not answered"))
                return
            await asyncio.sleep(0.02)

    # ------------------------------------------------------------------------------------ who is connected

    def enter(self, connection: _Connection) -> None:
        """Take a connection in; where there are too many, another one goes."""
        self._connections[connection] = None
        if len(self._connections) > self._connection_limit:
            self._drop(next((one for one in self._connections if one.is_answered), connection))

    def hear_knock(self, knock: _Knock) -> None:
        """Let a client shake hands; where there are too many, those that knocked before it and did not go first."""
        self._knocks[knock] = None
        if len(self._connections) + len(self._knocks) > self._connection_limit:
            first = next(iter(self._knocks))
            idle = next((one for one in self._connections if one.is_answered), None)
            if first is knock and idle is not None:
                self._drop(idle)
            else:
                self._turn_away(first)

    def forget_knock(self, knock: _Knock) -> None:
        """Forget a client that has shaken hands, or will not."""
        self._knocks.pop(knock, None)

    def _turn_away(self, knock: _Knock) -> None:
        self.forget_knock(knock)
        if knock.transport is not None:
            knock.transport.abort()

    def leave(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._connections.pop(connection, None)
        connection.forget(connection.held)
        connection.count_waiting(0)
        connection.count_unread(0)

    def wait_again(self, connection: _Connection) -> None:
        """Note that a connection was answered: all others have been waited for longer."""
        if self._connections.pop(connection, connection) is None:
            self._connections[connection] = None

    def make_room(self) -> None:
        """Where unfinished requests, or unread answers, are too many bytes, the one waited for longest goes."""
        while self.held_bytes > BUFFERED_BYTES:
            unfinished = next((one for one in self._connections if one.may_go), None)
            if unfinished is None:
                return
            self._drop(unfinished)
        unread = [one for one in self._connections if one.unread] if self.unread_bytes > UNREAD_BYTES else []
        for one in unread[:-1]:  # whoever was answered last has had no time yet
            if self.unread_bytes > UNREAD_BYTES:
                self._drop(one)

    def _drop(self, connection: _Connection) -> None:
        self.leave(connection)
        connection.gone.set()
        if connection.transport is not None:
            with suppress(AttributeError):  # with TLS, Python 3.11.2 has let go of all when a transport was closed
                connection.transport.abort()

    # ------------------------------------------------------------------------------------ from a request to an answer

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        protocol.body = payload
        limit = self._body_limit + 1  # the first that is too many
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Have all of a request, then a thread's answer to it."""
        connection = cast(_Connection, request.protocol)
        connection.wait(BODY_SECONDS, STALL_SECONDS)
        try:
            environ = _environ(request)
        except _Refused as refused:
            return connection.handle_error(request, exc=refused)
        size = int(environ.get("CONTENT_LENGTH") or 0)
        is_large = size > self._body_limit
        body = b""  # of one that is too large: the application says so
        if size and not is_large:
            if environ.get("HTTP_EXPECT", "").lower() == "100-continue" and request.version >= (1, 1):
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await request.read()
        environ["wsgi.input"] = BytesIO(body)
        environ["wsgi.url_scheme"] = "https" if self._ssl_context else "http"
        connection.forget(_head_bytes(request) + len(body))
        connection.is_answered = connection.is_begun = False
        connection.count_waiting(len(body))
        promise: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._requests.put((connection, environ, promise))
        self.make_room()
        status, fields, content = await promise
        connection.count_waiting(0)
        answer = web.Response(status=int(status[:3]), reason=status[4:], headers=fields, body=content)
        if is_large or self._is_ending:
            answer.force_close()
        return answer

    def _work(self) -> None:
        self._processor.join()
        while (request := self._requests.get()) is not None:
            connection, environ, promise = request
            connection.is_begun = True
            # whoever has gone asks no more: nothing is changed for nobody
            answer = None if connection.gone.is_set() else _answer_of(self._application, environ)
            is_large = answer is not None and len(answer[2]) > LARGE_BYTES
            is_taken = threading.Event() if is_large else None
            self._answers.append((promise, answer, is_taken))
            if not self._is_woken:
                self._is_woken = True
                self._tell(self._send_answers)
            if is_taken is not None:
                is_taken.wait(GRACE_SECONDS)  # else answers were made quicker than they are sent, and none was counted

    def _send_answers(self) -> None:
        self._is_woken = False  # before the first look: what is appended from now on wakes the loop again
        while self._answers:
            promise, answer, is_taken = self._answers.popleft()
            if is_taken is not None:
                is_taken.set()
            if promise.done():
                continue
            if answer is None:
                promise.set_exception(ConnectionResetError())
            else:
                promise.set_result(answer)


def _unsent(connection: _Connection) -> bool:
    try:
        return connection.transport is not None and connection.transport.get_write_buffer_size() > 0
    except AttributeError:  # with TLS, asyncio has let go of all when a transport was closed for the second time
        return False


def _head_bytes(request: web.BaseRequest) -> int:
    """Return how long the head was, as heads are written: one space after a colon."""
    fields = request.raw_headers
    length = sum(map(len, chain.from_iterable(fields))) + len(": \r\n") * len(fields)
    return length + len(request.method) + len(request.raw_path) + len("  HTTP/1.1\r\n\r\n")


@lru_cache(1000)
def _cgi_name(name: bytes) -> str:
    """Return a field's name as WSGI has it; nothing for one that would come out as another one, with a hyphen."""
    if b"_" in name:
        return ""
    upper = name.decode("latin-1").upper().replace("-", "_")
    return upper if upper in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{upper}"


def _environ(request: web.BaseRequest) -> dict[str, Any]:
    """Return what WSGI says of a request, without its body; raise _Refused where there is none to be had."""
    found: dict[str, Any] = {}
    for field, value in request.raw_headers:
        name = _cgi_name(field)
        if name in found:
            found[name] += ("; " if name == "HTTP_COOKIE" else ",") + value.decode("latin-1")
        elif name:
            found[name] = value.decode("latin-1")
    if "HTTP_TRANSFER_ENCODING" in found:
        raise _Refused(411, _("send the body with a Content-Length"))
    path, query = _target(request, found)
    found |= {
        "REQUEST_METHOD": request.method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": f"HTTP/{request.version.major}.{request.version.minor}",
        "SCRIPT_NAME": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": str(_port(request.transport)),
        "REMOTE_ADDR": request.remote or "",
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    return found


def _port(transport: asyncio.Transport | None) -> int:
    place = transport.get_extra_info("sockname") if transport is not None else None
    return int(place[1]) if isinstance(place, tuple) else 0


def _target(request: web.BaseRequest, fields: dict[str, Any]) -> tuple[str, str]:
    """Return the path and the query, as WSGI has them; a name in an absolute address counts instead of Host."""
    address = request.raw_path
    if not address.startswith("/"):
        whole = urlsplit(address)
        if whole.scheme not in ("http", "https") or "@" in whole.netloc or request.method == "CONNECT":
            raise _Refused(400, _("this is no request of HTTP/1.0 or 1.1"))
        fields["HTTP_HOST"] = whole.netloc
        address = f"{whole.path or '/'}?{whole.query}"
    path, _mark, query = address.encode("utf-8", "surrogateescape").partition(b"?")
    return (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1"), query.decode("latin-1")


def _answer_of(application: Application, environ: dict[str, Any]) -> Answer:
    """Return status, fields and content of an answer; a fault of the application is logged, and not told."""
    status, fields = "", []

    def start(began_with: str, has_fields: list[tuple[str, str]], problem: object = None) -> None:
        nonlocal status, fields
        status, fields = began_with, has_fields

    try:
        parts = application(environ, start)
        try:
            content = b"".join(parts)
        finally:
            if close := getattr(parts, "close", None):
                close()
    except Exception:
        log.exception(_("the application failed"))
        return "500 Internal Server Error", [], b""
    return status, fields, content
