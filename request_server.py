"""Serves a WSGI application: one loop reads requests and writes answers, a few threads make the answers.

A request comes to a thread when all of it is there, so that slow senders, half-open connections and idle ones hold no
thread, and cost a loop nothing while nothing comes from them. All of it is one process, in which nothing outlives what
the user has started. What is kept of those who do not finish is bounded: in time, in number, and in bytes together;
where there are too many, the one that has been waited for the longest goes first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from io import BytesIO
from typing import Any, cast

from i18n import _
from model import MIB
from request_head import MAX_HEAD_BYTES, Head, HeadRefused, read_head

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
"""Of all unfinished bodies together."""
PIPELINED_BYTES = MAX_HEAD_BYTES
TURN_SECONDS = 1.0


class _Connection(asyncio.Protocol):
    """One client: what came from it, and what it is waited for until when. Belongs to the loop."""

    def __init__(self, server: RequestServer, port: int) -> None:
        self._server = server
        self.port = port
        self.transport = cast(asyncio.Transport, None)
        self.buffer = bytearray()
        self.head: Head | None = None
        self.is_answered = True
        self.is_lingering = False
        self.has_ended = self.has_said_all = False
        self.is_choked = False
        self.deadline = self.stalled_at = 0.0
        self.peer = ""
        self._searched_bytes = 0

    # what the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self._wait(HEAD_SECONDS, HEAD_SECONDS)
        self._server.enter(self)

    def connection_lost(self, problem: Exception | None) -> None:
        self.has_ended = True
        self._server.leave(self)

    def data_received(self, data: bytes) -> None:
        if self.is_lingering:
            return
        if self.is_answered and self.head is None and not self.buffer:
            self._wait(HEAD_SECONDS, STALL_SECONDS)  # the first bytes of a request
        self.buffer += data
        self._server.buffered_bytes += len(data)
        self.stalled_at = self._server.now + STALL_SECONDS
        if not self.is_answered or self.is_choked:
            if len(self.buffer) > PIPELINED_BYTES:
                self.transport.pause_reading()
            return
        self._read()
        self._server.make_room()

    def eof_received(self) -> bool:
        self.has_said_all = True
        is_asking = not self.is_answered or (self.is_choked and bool(self.buffer))
        return is_asking and not self.is_lingering  # then the answers are still wanted

    def pause_writing(self) -> None:
        self.is_choked = True  # it asks without fetching the answers

    def resume_writing(self) -> None:
        self.is_choked = False
        if self.is_answered and not self.is_lingering:
            self._go_on()

    def _wait(self, seconds: float, stall_seconds: float) -> None:
        """Wait for what must come within this time, and some of it within the shorter one."""
        now = self._server.now
        self.deadline, self.stalled_at = now + seconds, now + stall_seconds

    # from bytes to a request

    def _read(self) -> None:
        """Hand on the request that is whole by now, if one is."""
        try:
            if self.head is None and not self._read_head():
                return
        except HeadRefused as error:
            self._refuse(error.status, str(error))
            return
        assert self.head is not None
        if self.head.body_bytes > self._server.body_limit:
            self._hand_on(b"")  # the application says that it is too large
        elif len(self.buffer) >= self.head.body_bytes:
            self._hand_on(self._taken(self.head.body_bytes))

    def _read_head(self) -> bool:
        while self.buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: some clients end a body with it
            self._taken(2)
        end = self.buffer.find(b"\r\n\r\n", self._searched_bytes, MAX_HEAD_BYTES)
        if end < 0:
            if len(self.buffer) >= MAX_HEAD_BYTES:
                raise HeadRefused(431, _("the head is larger than {limit} bytes").format(limit=MAX_HEAD_BYTES))
            self._searched_bytes = max(0, len(self.buffer) - 3)
            return False
        self._searched_bytes = 0
        self.head = read_head(self._taken(end + 4)[:-4])
        self._wait(BODY_SECONDS, STALL_SECONDS)
        if self.head.awaits_continue and len(self.buffer) < self.head.body_bytes <= self._server.body_limit:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _taken(self, count: int) -> bytes:
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        self._server.buffered_bytes -= len(taken)
        return taken

    def _hand_on(self, body: bytes) -> None:
        self.is_answered = False
        self._server.requests.put((self, body))

    def _refuse(self, status: int, sentence: str) -> None:
        log.info(_("refused a request of %s: %d, %s"), self.peer, status, sentence)
        body = json.dumps({"error": sentence}, ensure_ascii=False).encode()
        fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        self.answer(_head_text(f"{status} {HTTPStatus(status).phrase}", fields, True) + body, True)

    # from an answer to bytes

    def answer(self, text: bytes, is_last: bool) -> None:
        """Send an answer, and go on to the next request, or end."""
        if self.has_ended:
            return
        self.is_answered, self.head = True, None
        self._server.wait_again(self)
        self._wait(IDLE_SECONDS, IDLE_SECONDS)
        self.transport.write(text)
        if is_last:
            self._linger()
        elif not self.is_choked:
            self._go_on()

    def _go_on(self) -> None:
        """Look whether the next request is there already."""
        self.transport.resume_reading()
        if self.buffer:
            self._wait(HEAD_SECONDS, STALL_SECONDS)
            self._read()
        if self.has_said_all and self.is_answered:
            self.transport.close()

    def _linger(self) -> None:
        self.is_lingering = True
        self._taken(len(self.buffer))
        self._wait(LINGER_SECONDS, LINGER_SECONDS)
        if self.has_said_all or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self.transport.resume_reading()

    @property
    def is_late(self) -> bool:
        """Tell whether it has been waited for long enough: for a request, or that an answer is fetched."""
        return self.is_answered and self._server.now > min(self.deadline, self.stalled_at)


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
    ) -> None:
        self._application = application
        self._sockets = list(sockets)
        self._threads = threads
        self._connection_limit = connection_limit
        self.body_limit = body_limit
        self.requests: queue.SimpleQueue[tuple[_Connection, bytes] | None] = queue.SimpleQueue()
        self.now = time.monotonic()
        self.buffered_bytes = 0
        self.is_ending = False
        self._connections: dict[_Connection, None] = {}
        self._answers: deque[tuple[_Connection, bytes, bool]] = deque()
        self._is_woken = False
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def places(self) -> list[tuple[str, int]]:
        """The addresses and ports at which it listens."""
        return [one.getsockname()[:2] for one in self._sockets]

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
        for _unused in range(self._threads):
            threading.Thread(target=self._work, name="request", daemon=True).start()
        doors = [
            await self._loop.create_server(
                partial(_Connection, self, one.getsockname()[1]),
                sock=one,
                backlog=2048,
            )
            for one in self._sockets
        ]
        try:
            while not self._ended.is_set():
                await self._next_turn()
                self._drop_late()
            for door in doors:
                door.close()
            await self._drain()
        finally:
            for _unused in range(self._threads):
                self.requests.put(None)
            for connection in list(self._connections):
                connection.transport.abort()

    async def _next_turn(self) -> None:
        self._turned.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._turned.wait(), TURN_SECONDS)
        self.now = time.monotonic()

    def _turn(self) -> None:
        self._turned.set()

    async def _drain(self) -> None:
        """Let what is being worked on be answered, and hear of no more."""
        self.is_ending = True
        deadline = time.monotonic() + GRACE_SECONDS
        for connection in list(self._connections):
            if connection.is_answered and not connection.is_lingering:
                connection.transport.close()
        while any(not one.is_answered or one.transport.get_write_buffer_size() for one in self._connections):
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

    def leave(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._connections.pop(connection, None)
        self.buffered_bytes -= len(connection.buffer)
        connection.buffer.clear()

    def wait_again(self, connection: _Connection) -> None:
        """Note that a connection was answered: all others have been waited for longer."""
        if self._connections.pop(connection, connection) is None:
            self._connections[connection] = None

    def make_room(self) -> None:
        """Where unfinished requests are too many bytes together, the one that was waited for longest goes."""
        while self.buffered_bytes > BUFFERED_BYTES:
            unfinished = next((one for one in self._connections if one.is_answered and one.buffer), None)
            if unfinished is None:
                return
            self._drop(unfinished)

    def _drop(self, connection: _Connection) -> None:
        self.leave(connection)
        connection.has_ended = True
        connection.transport.abort()

    def _drop_late(self) -> None:
        for connection in [one for one in self._connections if one.is_late]:
            self._drop(connection)

    # ------------------------------------------------------------------------------------ the threads

    def _work(self) -> None:
        while (request := self.requests.get()) is not None:
            connection, body = request
            if connection.has_ended:  # whoever asked has gone: nothing is changed for nobody
                continue
            head = connection.head
            assert head is not None
            answer = _answer_of(self._application, self._environ(connection, head, body))
            is_last = head.is_last or self.is_ending or head.body_bytes > self.body_limit
            text = _answer_text(head, *answer, is_last)
            self._answers.append((connection, text, is_last))
            if not self._is_woken:
                self._is_woken = True
                self._tell(self._send_answers)

    def _send_answers(self) -> None:
        self._is_woken = False  # before the first look: what is appended from now on wakes the loop again
        while self._answers:
            connection, text, is_last = self._answers.popleft()
            connection.answer(text, is_last)

    def _environ(self, connection: _Connection, head: Head, body: bytes) -> dict[str, Any]:
        return head.environ | {
            "SCRIPT_NAME": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": str(connection.port),
            "REMOTE_ADDR": connection.peer,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }


def _answer_of(application: Application, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
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


@lru_cache(1)
def _date(_second: int) -> str:
    return formatdate(usegmt=True)


def _answer_text(head: Head, status: str, fields: Sequence[tuple[str, str]], content: bytes, is_last: bool) -> bytes:
    """Return an answer as it is sent, which has no body where the request or the status forbids it."""
    if head.environ["REQUEST_METHOD"] == "HEAD" or status[:3] in ("204", "304"):
        return _head_text(status, fields, is_last)
    if not any(name.lower() == "content-length" for name, _value in fields):
        fields = [*fields, ("Content-Length", str(len(content)))]
    return _head_text(status, fields, is_last) + content


def _head_text(status: str, fields: Iterable[tuple[str, str]], is_last: bool) -> bytes:
    """Return the head of an answer; the fields are the application's, which lets no line end into them."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields), f"Date: {_date(int(time.time()))}"]
    if is_last:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
