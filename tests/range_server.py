"""A mirror on 127.0.0.1 that serves one stream by ranges, counts what it was asked, and lies on demand."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

BLOCK_BYTES = 64 * 1024
REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 416: "Range Not Satisfiable"}


@dataclass
class Faults:
    """What is wrong with a mirror; ``first`` limits it to so many requests, ``paths`` to some of its URLs."""

    first: int | None = None
    paths: tuple[str, ...] = ()
    silent: bool = False
    """Takes the request, and never answers."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    replaces: tuple[str, ...] = ()
    """Headers that are left out, in favour of ``headers``."""
    body: bytes | None = None
    cut_after: int | None = None
    reset_after: int | None = None
    stall_after: int | None = None
    bytes_per_tick: int | None = None
    tick_seconds: float = 0.01
    shift: int = 0
    total: int | None = None
    unknown_total: bool = False
    ignores_ranges: bool = False
    framing: str = "length"
    """``length``, ``chunked``, or ``close``: a body that ends with the connection."""


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    start: int = 0
    stop: int = 0
    sent_bytes: int = 0


class RangeServer:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.open_replies = 0
        self.most_open_replies = 0
        self.port = 0
        self.gate = asyncio.Event()
        """Cleared, replies stop after their first block until it is set."""
        self.gate.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return self.at("/upgcxcode/1.m4s?deadline=9999999999&upsig=a%2Fb")

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return [(asked.start, asked.stop) for asked in self.asked]

    @property
    def sent_bytes(self) -> int:
        return sum(asked.sent_bytes for asked in self.asked)

    def at(self, path: str) -> str:
        return f"http://{self.host}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # cancelled by close() only; a stream's callback would log it as an error
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        path = line.split(" ")[1]
        asked = Asked(path, {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)})
        faults = self._faults_for(path)
        self.asked.append(asked)
        self.open_replies += 1
        self.most_open_replies = max(self.most_open_replies, self.open_replies)
        try:
            return await self._reply(asked, faults, writer)
        finally:
            self.open_replies -= 1

    def _faults_for(self, path: str) -> Faults:
        faults = self.faults
        if faults.first is not None:
            if faults.first <= 0:
                return Faults()
            faults.first -= 1
        return faults if not faults.paths or path in faults.paths else Faults()

    async def _reply(self, asked: Asked, faults: Faults, writer: asyncio.StreamWriter) -> bool:
        status, headers, body = self._answer(asked, faults)
        if faults.silent:
            await asyncio.Event().wait()
        if faults.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif faults.framing == "length":
            headers.setdefault("Content-Length", str(len(body)))
        for name in faults.replaces:
            headers.pop(name, None)
        headers.update(faults.headers)
        head = [f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*head, "", ""]).encode())
        await self._send(asked, faults, body, writer)
        ended_early = faults.cut_after is not None and faults.cut_after < len(body)
        return not ended_early and faults.framing != "close"

    def _answer(self, asked: Asked, faults: Faults) -> tuple[int, dict[str, str], bytes | memoryview]:
        size = len(self.content)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers.get("range", ""))
        asked.start, asked.stop = (int(match[1]), int(match[2]) + 1) if match else (0, size)
        if faults.status is not None and faults.status not in (200, 206):
            return faults.status, {}, faults.body or b""
        total = "*" if faults.unknown_total else str(size if faults.total is None else faults.total)
        kind = {"Content-Type": "video/mp4", "Set-Cookie": "canary=1; Path=/"}
        if faults.ignores_ranges:
            return 200, kind, self.content
        if asked.start >= size:
            return 416, {"Content-Range": f"bytes */{total}"} if total != "*" else {}, b""
        stop = min(asked.stop, size)
        body = memoryview(self.content)[asked.start : stop] if faults.body is None else faults.body
        kind["Content-Range"] = f"bytes {asked.start + faults.shift}-{stop - 1 + faults.shift}/{total}"
        return 206, kind, body

    async def _send(self, asked: Asked, faults: Faults, body: bytes | memoryview, writer: asyncio.StreamWriter) -> None:
        limits = [n for n in (faults.cut_after, faults.reset_after, faults.stall_after) if n is not None]
        end = min([len(body), *limits])
        step = faults.bytes_per_tick or BLOCK_BYTES
        for at in range(0, end, step):
            piece = bytes(body[at : min(at + step, end)])
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if faults.framing == "chunked" else piece)
            asked.sent_bytes += len(piece)
            await writer.drain()
            await self.gate.wait()
            if faults.bytes_per_tick:
                await asyncio.sleep(faults.tick_seconds)
        if faults.reset_after is not None and end < len(body):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError
        if faults.stall_after is not None and end < len(body):
            await asyncio.Event().wait()
        if faults.framing == "chunked" and end == len(body):
            writer.write(b"0\r\n\r\n")
        await writer.drain()


@asynccontextmanager
async def mirrors(content: bytes, count: int = 1) -> AsyncIterator[list[RangeServer]]:
    """Run ``count`` mirrors of the same bytes, each on its own port."""
    servers = [RangeServer(content) for _ in range(count)]
    listeners = []
    for server in servers:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        listeners.append(listener)
    try:
        yield servers
    finally:
        for listener, server in zip(listeners, servers, strict=True):
            listener.close()
            await server.close()
        for listener in listeners:
            with suppress(asyncio.CancelledError):
                await listener.wait_closed()
