"""A relay between real clients and a real server: it writes down every call, and does to them what a network does.

It stands where a network stands, so that its times embrace what the server did: a call is ``invoked`` just before it
is sent on, and ``ended`` when its answer is complete. A client is known by the port at which it asks, a door of its
own; faults meet all clients or one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

MAX_HEAD_BYTES = 256 * 1024
PATIENCE_SECONDS = 60.0

Outcome = Literal["ok", "failed", "unknown"]
T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """One request as the relay saw it; times are ``time.monotonic()``, the same for all processes of a machine.

    ``ok``: a 2xx answer was given to the client. ``failed``: nothing was changed, because the server refused (4xx) or
    never got it. ``unknown``: it was sent on, and the client got no answer or 5xx. Of an answer that was thrown away
    ``status`` and ``answer`` still tell what it was; ``status`` 0 is none at all.
    """

    serial: int
    client: str
    verb: str
    path: str
    request: Any
    """The parameters of a GET, the JSON of a POST."""
    invoked_at: float
    ended_at: float = 0.0
    outcome: Outcome = "unknown"
    status: int = 0
    answer: Any = None
    target_port: int = 0


@dataclass(slots=True)
class Fault:
    """What is to happen to the next ``count`` calls below a path; ``met`` counts those to which it has happened."""

    kind: Literal["drop", "repeat", "delay"]
    path_prefix: str
    count: float
    client: str | None
    seconds: float = 0.0
    of_answers: bool = False
    met: int = 0
    _taken: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    @property
    def is_over(self) -> bool:
        """Tell whether it has met all the calls that it should."""
        return self._taken >= self.count

    def takes(self, client: str, path: str) -> bool:
        """Tell whether a call is one of those."""
        if self.is_over or self.client not in (None, client) or not path.startswith(self.path_prefix):
            return False
        self._taken += 1
        return True

    def has_met(self) -> None:
        """Count a call to which it has happened."""
        with self._changed:
            self.met += 1
            self._changed.notify_all()

    def wait(self, count: int = 0, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until ``count`` calls (all that were asked for) have been met; return how many were."""
        wanted = count or self.count
        with self._changed:
            assert self._changed.wait_for(lambda: self.met >= wanted, seconds), f"met {self.met} of {wanted}: {self}"
        return self.met

    def end(self) -> None:
        """Meet no more calls."""
        self.count = 0


@dataclass(slots=True)
class _Message:
    """A request or an answer, as it came."""

    first: list[str]
    headers: dict[str, str]
    raw: bytes
    body: bytes
    is_last: bool

    @property
    def content(self) -> Any:
        try:
            return json.loads(self.body) if self.body else None
        except ValueError:
            return None


@dataclass(slots=True)
class _Door:
    """A port at which one client asks, and how it is with that client now."""

    client: str
    target_port: int
    port: int = 0
    state: Literal["open", "closed", "silent"] = "open"
    healed: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Relay:
    """``with Relay(target_port) as relay``: a thread with a loop of its own; nothing is listened to but loopback.

    ``port`` is where the first client asks; ``door`` opens another one. ``calls`` are all calls that have ended,
    also written to ``history``, a line of JSON each.
    """

    def __init__(self, target_port: int, client: str = "", history: Path | None = None) -> None:
        self.calls: list[Call] = []
        self.port = 0
        self._first = (client, target_port)
        self._doors: dict[str, _Door] = {}
        self._servers: list[asyncio.Server] = []
        self._faults: list[Fault] = []
        self._serial = 0
        self._history_path = history
        self._history: IO[str] | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="relay", daemon=True)

    def __enter__(self) -> Relay:
        if self._history_path is not None:
            self._history = self._history_path.open("a", buffering=1, encoding="utf-8")
        self._thread.start()
        assert self._started.wait(10)
        self.port = self.door(*self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        if self._history is not None:
            self._history.close()

    # -------------------------------------------------------------------------------- what a test does

    def url(self, client: str | None = None) -> str:
        """Return what a client takes for the server's address."""
        return f"http://127.0.0.1:{self.port if client is None else self._doors[client].port}"

    def door(self, client: str, target_port: int = 0) -> int:
        """Listen at a port for one more client, and return the port."""
        return self._soon(self._open(_Door(client, target_port or self._first[1])))

    def retarget(self, target_port: int, client: str | None = None) -> None:
        """Send what is asked from now on to another port."""

        async def turn() -> None:
            for door in self._some(client):
                door.target_port = target_port

        self._soon(turn())

    def drop_replies(self, path_prefix: str = "", count: int = 1, client: str | None = None) -> Fault:
        """Let the next calls pass to the server, throw their answers away, and close the connection."""
        return self._add(Fault("drop", path_prefix, count, client))

    def repeat(self, path_prefix: str = "", count: int = 1, client: str | None = None) -> Fault:
        """Deliver each of the next calls twice; the client gets the second answer."""
        return self._add(Fault("repeat", path_prefix, count, client))

    def delay(
        self,
        seconds: float,
        path_prefix: str = "",
        client: str | None = None,
        count: float = float("inf"),
        of_answers: bool = False,
    ) -> Fault:
        """Hold requests, or answers, back for so long, until the fault is ended.

        A request whose client has given up meanwhile is delivered all the same, as a slow network does.
        """
        return self._add(Fault("delay", path_prefix, count, client, seconds, of_answers))

    def cut(self, client: str | None = None, silent: bool = False) -> None:
        """Close all connections and refuse new ones; ``silent``: accept, and neither answer nor pass on any more."""

        async def close() -> None:
            for door in self._some(client):
                door.state = "silent" if silent else "closed"
                door.healed.clear()
                if not silent:
                    await self._hang_up(door)

        self._soon(close())

    def heal(self, client: str | None = None) -> None:
        """Let everything pass again; what a silent network has swallowed stays lost. Other faults are not touched."""

        async def open_again() -> None:
            for door in self._some(client):
                door.state = "open"
                door.healed.set()

        self._soon(open_again())

    def clear(self) -> None:
        """End all faults, and heal all cuts."""
        for fault in self._faults:
            fault.end()
        self._faults.clear()
        self.heal()

    # -------------------------------------------------------------------------------- inside

    def _soon(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _some(self, client: str | None) -> list[_Door]:
        return list(self._doors.values()) if client is None else [self._doors[client]]

    def _add(self, fault: Fault) -> Fault:
        self._faults = [*(one for one in self._faults if not one.is_over), fault]
        return fault

    def _fault(self, kind: str, client: str, path: str, of_answers: bool = False) -> Fault | None:
        for fault in self._faults:
            if fault.kind == kind and fault.of_answers == of_answers and fault.takes(client, path):
                return fault
        return None

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._ended.wait()
        for server in self._servers:
            server.close()
        for door in self._doors.values():
            await self._hang_up(door)

    async def _open(self, door: _Door) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accept(door, reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=MAX_HEAD_BYTES, backlog=256)
        self._servers.append(server)
        door.port = server.sockets[0].getsockname()[1]
        self._doors[door.client] = door
        return door.port

    @staticmethod
    async def _hang_up(door: _Door) -> None:
        tasks = list(door.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, door: _Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        door.tasks.add(task)
        upstream = _Upstream()
        try:
            while door.state != "closed" and await self._pass_on(door, reader, writer, upstream):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError):
            pass  # one of both has hung up
        except asyncio.CancelledError:
            pass  # a cut, or the end
        finally:
            door.tasks.discard(task)
            upstream.close()
            writer.transport.abort() if door.state == "closed" else writer.close()

    async def _pass_on(
        self, door: _Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: _Upstream
    ) -> bool:
        """Take one request to its end; tell whether the connection may go on."""
        request = await _read_message(reader)
        if request is None:
            return False
        call = self._call(door, request)
        try:
            answer = await self._delivered(door, request, call, upstream)
            if answer is None:
                return False
            await self._hold_back(door, call, of_answers=True)
            if fault := self._fault("drop", door.client, call.path):
                self._write_down(call)
                fault.has_met()
                return False
            if door.state == "silent":
                await door.healed.wait()
                return False
            # Set before the write: whoever has the answer in hand finds the call among the ended ones.
            call.outcome = "ok" if 200 <= answer.status < 300 else "failed" if answer.status < 500 else "unknown"
        finally:
            self._write_down(call)
        writer.write(answer.message.raw)
        await writer.drain()
        return not (request.is_last or answer.message.is_last)

    def _call(self, door: _Door, request: _Message) -> Call:
        verb, target, _version = request.first
        parts = urlsplit(target)
        content = request.content if verb == "POST" else dict(parse_qsl(parts.query))
        self._serial += 1
        return Call(self._serial, door.client, verb, parts.path, content, time.monotonic())

    def _write_down(self, call: Call) -> None:
        if self.calls and self.calls[-1] is call:
            return
        call.ended_at = call.ended_at or time.monotonic()
        self.calls.append(call)
        if self._history is not None:
            self._history.write(json.dumps(asdict(call), separators=(",", ":")) + "\n")

    async def _hold_back(self, door: _Door, call: Call, of_answers: bool) -> None:
        if fault := self._fault("delay", door.client, call.path, of_answers):
            await asyncio.sleep(fault.seconds)
            fault.has_met()

    async def _delivered(self, door: _Door, request: _Message, call: Call, upstream: _Upstream) -> _Answer | None:
        """Send a request on, twice if a fault says so; return the last answer, None where there is none."""
        await self._hold_back(door, call, of_answers=False)
        if door.state == "silent":
            call.outcome = "failed"  # it was swallowed
            await door.healed.wait()
            return None
        fault = self._fault("repeat", door.client, call.path)
        if fault is not None:
            first = self._call(door, request)
            try:
                await _exchange(first, request, door.target_port, upstream)
            finally:
                self._write_down(first)
        answer = await _exchange(call, request, door.target_port, upstream)
        if fault is not None:
            fault.has_met()
        return answer


@dataclass(slots=True)
class _Answer:
    status: int
    message: _Message


class _Upstream:
    """The connection to the server that belongs to one connection of a client; it is opened when it is needed."""

    def __init__(self) -> None:
        self.port = 0
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def connected(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.reader is None or self.reader.at_eof() or self.port != port:
            self.close()
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_HEAD_BYTES)
            self.port = port
        assert self.writer is not None
        return self.reader, self.writer

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


async def _exchange(call: Call, request: _Message, target_port: int, upstream: _Upstream) -> _Answer | None:
    """Send a request to the server and fill in what came of it; return the answer, None where there is none."""
    call.target_port = target_port
    try:
        reader, writer = await upstream.connected(target_port)
    except OSError:
        call.outcome = "failed"  # nobody listens: it was never sent
        return None
    call.invoked_at = time.monotonic()
    try:
        writer.write(request.raw)
        message = await _read_message(reader, has_body=request.first[0] != "HEAD", until_end=True)
    except (OSError, EOFError):
        message = None
    call.ended_at = time.monotonic()
    if message is None:
        upstream.close()
        return None
    call.status, call.answer = int(message.first[1]), message.content
    if message.is_last:
        upstream.close()
    return _Answer(call.status, message)


async def _read_message(
    reader: asyncio.StreamReader, has_body: bool = True, until_end: bool = False
) -> _Message | None:
    """Read one request or answer; None where the peer has hung up between two."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _colon, value in pairs}
    is_last = headers.get("connection", "").lower() == "close"
    raw, body = b"", b""
    if not has_body or first.split(" ")[1] in ("204", "304"):
        pass
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        raw, body = await _read_chunks(reader)
    elif "content-length" in headers:
        raw = body = await reader.readexactly(int(headers["content-length"]))
    elif until_end:
        raw = body = await reader.read()
        is_last = True
    return _Message(first.split(" ", 2), headers, head + raw, body, is_last)


async def _read_chunks(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    raw, body = bytearray(), bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        raw += line
        if size == 0:
            break
        chunk = await reader.readexactly(size + 2)
        raw += chunk
        body += chunk[:-2]
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        raw += line  # a trailer
    raw += line
    return bytes(raw), bytes(body)


def read_history(path: Path) -> list[Call]:
    """Return the calls that a relay has written down; a last line that was cut short is left out."""
    calls = []
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            calls.append(Call(**json.loads(line)))
    return calls
