"""The fast path against peers that say exactly what a test tells them to, byte by byte."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trustme

from tests.range_server import Faults, mirrors
from transfer.range_client import (
    BUFFER_BYTES,
    HEAD_BYTES,
    BadReply,
    BadRequest,
    ConnectTimeout,
    CutShort,
    Disconnected,
    NotAPeer,
    NotPlain,
    Origin,
    RangeClient,
    RangeClientError,
    RangeReply,
    Taker,
    make_request,
)

BODY = random.Random(1).randbytes(3 * 1024 * 1024)
PATH = "/v/1.m4s?upsig=s3cret%2Fx"
SECONDS = 10.0

Script = Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Peer:
    """A server that follows a script on each connection."""

    script: Script
    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 0
    connections: int = 0
    asked: list[tuple[int, bytes]] = field(default_factory=list)
    """The number of the connection and the request, in the order of arrival."""
    gone: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """The connections that a script saw the client close."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{PATH}"

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        request = await reader.readuntil(b"\r\n\r\n")
        self.asked.append((self.connections, request))
        return request

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            await self.script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.put_nowait(number)
        except asyncio.CancelledError:
            pass  # by the end of the test only; a stream's callback would log it as an error
        finally:
            self.tasks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def trust(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@pytest.fixture(autouse=True)
async def nothing_is_reported_to_the_loop() -> AsyncIterator[None]:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
    yield
    assert reported == []


@pytest.fixture
async def client(trust: ssl.SSLContext) -> AsyncIterator[RangeClient]:
    client = RangeClient(trust, {"User-Agent": "test"})
    yield client
    await client.close()
    assert client.connections == set() and client._idle == {}


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serving(ca: trustme.CA) -> Callable[..., Any]:
    """``async with serving(script, scheme="http", host="127.0.0.1") as peer``."""

    @asynccontextmanager
    async def serving(script: Script, scheme: str = "http", host: str = "127.0.0.1") -> AsyncIterator[Peer]:
        context = None
        if scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ca.issue_cert("127.0.0.1").configure_cert(context)
        peer = Peer(script, scheme, host)
        listener = await asyncio.start_server(peer.serve, host, 0, ssl=context, limit=2**20)
        peer.port = listener.sockets[0].getsockname()[1]
        peer.host = f"[{host}]" if ":" in host else host
        try:
            yield peer
        finally:
            listener.close()
            for task in list(peer.tasks):
                task.cancel()
            await asyncio.gather(*list(peer.tasks), return_exceptions=True)

    return serving


def head(length: int | None, *lines: str, status: str = "206 Partial Content", version: str = "1.1") -> bytes:
    lengths = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"HTTP/{version} {status}", *lengths, *lines, "", ""]).encode()


def saying(*answers: bytes) -> Script:
    """Answer the requests of each connection by these bytes, one after the other, and close when there are no more."""

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await peer.request(reader)
            writer.write(answer)
            await writer.drain()

    return script


def always(answer: bytes) -> Script:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await peer.request(reader)
            writer.write(answer)
            await writer.drain()

    return script


async def never(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a request, do not answer it, and wait for the client to go."""
    await peer.request(reader)
    await reader.readexactly(1)


def then_silent(answer: bytes) -> Script:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(answer)
        await writer.drain()
        await reader.readexactly(1)

    return script


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, SECONDS)


async def until(what: str, true: Callable[[], Any]) -> None:
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not true():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.005)


async def fetch(client: RangeClient, url: str, take: Taker | None = None) -> bytes:
    got = bytearray()

    def keep(piece: memoryview) -> None:
        got.extend(piece)

    async with client.get(url, {}) as reply:
        await soon(reply.receive(take or keep))
    return bytes(got)


# -------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n folded: x",
    ],
)
async def test_after_a_bad_head_the_connection_is_closed(
    client: RangeClient, serving: Callable[..., Any], text: bytes
) -> None:
    async with serving(then_silent(text + b"\r\n\r\n" + b"12345")) as peer:
        with pytest.raises(BadReply):
            await soon(fetch(client, peer.url))
        await soon(peer.gone.get())


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"H\r", b"<html>", b"\0" * HEAD_BYTES, b"HTTP/2"])
async def test_garbage_is_refused_as_soon_as_it_is_seen(
    client: RangeClient, serving: Callable[..., Any], garbage: bytes
) -> None:
    async with serving(then_silent(garbage)) as peer:
        with pytest.raises(BadReply):
            await soon(fetch(client, peer.url))


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
async def test_a_head_has_at_most_16_kib(client: RangeClient, serving: Callable[..., Any], end: bytes) -> None:
    fits = head(0, "X: " + "x" * (HEAD_BYTES - len(head(0, "X: "))))
    assert len(fits) == HEAD_BYTES
    async with serving(always(fits)) as peer:
        assert await fetch(client, peer.url) == b""
    async with serving(then_silent(fits[:-4] + b"xxxx" + end)) as peer:
        with pytest.raises(BadReply):
            await soon(fetch(client, peer.url))


@pytest.mark.parametrize("lines", [(), ("Transfer-Encoding: chunked",)])
async def test_a_body_without_a_length_is_left_to_others(
    client: RangeClient, serving: Callable[..., Any], lines: tuple[str, ...]
) -> None:
    async with serving(then_silent(head(None, *lines) + b"5\r\nhello\r\n0\r\n\r\n")) as peer:
        with pytest.raises(NotPlain):
            await soon(fetch(client, peer.url))
        await soon(peer.gone.get())


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_mirror_without_a_length_is_left_to_others(client: RangeClient, framing: str) -> None:
    async with mirrors(BODY) as (mirror,):
        mirror.faults = Faults(framing=framing)
        with pytest.raises(NotPlain):
            await fetch(client, mirror.url)


# ---------------------------------------------------------------------------- bodies


async def test_a_body_arrives_as_it_was_sent(client: RangeClient, serving: Callable[..., Any], scheme: str) -> None:
    async with serving(always(head(len(BODY)) + BODY), scheme) as peer:
        for _ in range(3):
            assert await fetch(client, peer.url) == BODY
        assert peer.connections == 1


async def test_a_body_arrives_byte_by_byte_with_its_head(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        for byte in head(None, status="100 Continue") + head(50) + BODY[:50]:
            writer.write(bytes([byte]))
            await writer.drain()

    async with serving(script, scheme) as peer:
        assert await fetch(client, peer.url) == BODY[:50]


async def test_many_bodies_share_one_buffer(client: RangeClient, serving: Callable[..., Any], scheme: str) -> None:
    bodies = [random.Random(seed).randbytes(400_000 + seed) for seed in range(8)]

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = bodies[peer.connections - 1]
        await peer.request(reader)
        writer.write(head(len(body)) + body)
        await writer.drain()
        await reader.readexactly(1)

    async with serving(script, scheme) as peer:
        got = await asyncio.gather(*(fetch(client, peer.url) for _ in bodies))
        assert sorted(got) == sorted(bodies)


async def test_a_mirror_gives_its_ranges(client: RangeClient) -> None:
    async with mirrors(BODY) as (mirror,):
        async with client.get(mirror.url, {"Range": "bytes=100-599999"}) as reply:
            got = bytearray()
            await reply.receive(got.extend)
        assert (reply.status, reply.headers["content-range"]) == (206, f"bytes 100-599999/{len(BODY)}")
        assert got == BODY[100:600_000] and mirror.ranges == [(100, 600_000)]


async def test_ipv6_addresses_are_asked(client: RangeClient, serving: Callable[..., Any]) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        async with serving(always(head(5) + b"hello"), host="::1") as peer:
            assert await fetch(client, peer.url) == b"hello"
            assert f"Host: [::1]:{peer.port}\r\n".encode() in peer.asked[0][1]
    except OSError as problem:
        if problem.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("no IPv6 here")
        raise


async def test_a_piece_is_as_large_as_is_wished_at_any_time(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    wishes = [1000, 70_000, 3, 65_536, 5_000_000, 200_000]
    sizes: list[tuple[int, int]] = []

    def take(piece: memoryview) -> None:
        sizes.append((len(piece), client.piece_bytes))
        client.piece_bytes = wishes[len(sizes) % len(wishes)]

    async with serving(always(head(len(BODY)) + BODY), scheme) as peer:
        await fetch(client, peer.url, take)
    assert all(size <= wish for size, wish in sizes) and sum(size for size, _ in sizes) == len(BODY)


def test_a_piece_has_at_least_one_byte_and_at_most_the_buffer() -> None:
    client = RangeClient(ssl.create_default_context(), {})
    for wish, size in ((0, 1), (-5, 1), (10**9, BUFFER_BYTES)):
        client.piece_bytes = wish
        assert client.piece_bytes == size


async def test_a_piece_is_gone_after_the_call(client: RangeClient, serving: Callable[..., Any]) -> None:
    kept: list[memoryview] = []
    async with serving(always(head(5) + b"hello")) as peer:
        await fetch(client, peer.url, kept.append)
        with pytest.raises(ValueError, match="released"):
            bytes(kept[0])


async def test_a_taker_that_reads_its_piece_too_late_fails_instead_of_reading_another(
    client: RangeClient, serving: Callable[..., Any]
) -> None:
    async def late(piece: memoryview) -> None:
        bytes(piece)

    async with serving(always(head(5) + b"hello")) as peer:
        with pytest.raises(ValueError, match="released"):
            await fetch(client, peer.url, late)


# ---------------------------------------------------------------------------- waiting


async def test_nothing_is_read_and_nothing_is_lost_while_a_taker_waits(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    got = [bytearray() for _ in range(4)]
    most_held = 0

    def taker(mine: bytearray) -> Taker:
        busy = False

        async def wait() -> None:
            nonlocal busy, most_held
            for _ in range(5):
                await asyncio.sleep(0)
                most_held = max(most_held, *(len(each._held) for each in client.connections))
            busy = False

        def take(piece: memoryview) -> Awaitable[None]:
            nonlocal busy
            assert not busy
            busy = True
            mine.extend(piece)
            return wait()

        return take

    client.piece_bytes = 100_000
    async with serving(always(head(len(BODY)) + BODY), scheme) as peer:
        await asyncio.gather(*(fetch(client, peer.url, taker(mine)) for mine in got))
    assert all(mine == BODY for mine in got)
    assert most_held <= (0 if scheme == "http" else BUFFER_BYTES)


async def test_a_slow_taker_holds_the_peer_back(client: RangeClient, serving: Callable[..., Any], scheme: str) -> None:
    sent = 0
    go_on = asyncio.Event()
    started = asyncio.Event()
    total = 64 * 1024 * 1024

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await peer.request(reader)
        writer.write(head(total))
        while sent < total:
            writer.write(BODY[: 1024 * 1024])
            await writer.drain()
            sent += 1024 * 1024

    def take(piece: memoryview) -> Awaitable[Any] | None:
        if started.is_set():
            return None
        started.set()
        return go_on.wait()

    async with serving(script, scheme) as peer:
        task = asyncio.create_task(fetch(client, peer.url, take))
        await soon(started.wait())
        before = -1
        while before != sent:  # until the kernel's buffers are full, too
            before = sent
            await asyncio.sleep(0.1)
        assert sent < total
        (connection,) = client.connections
        assert len(connection._held) <= BUFFER_BYTES
        go_on.set()
        await soon(task)


async def test_what_tls_has_deciphered_is_not_lost_when_the_peer_closes(
    client: RangeClient, serving: Callable[..., Any]
) -> None:
    body = BODY[:60_000]
    closed = asyncio.Event()
    got = bytearray()

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(head(len(body), "Connection: close") + body)
        await writer.drain()
        writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        closed.set()

    async def late() -> None:
        await closed.wait()
        await asyncio.sleep(0.02)  # so that the end of the connection has been seen as well

    def take(piece: memoryview) -> Awaitable[None] | None:
        got.extend(piece)
        return late() if len(got) == 2000 else None

    client.piece_bytes = 2000
    async with serving(script, "https") as peer:
        await fetch(client, peer.url, take)
    assert got == body


async def test_a_late_receiver_gets_all(client: RangeClient, serving: Callable[..., Any], scheme: str) -> None:
    got = bytearray()
    async with serving(saying(head(len(BODY)) + BODY), scheme) as peer, client.get(peer.url, {}) as reply:
        (connection,) = client.connections
        for _ in range(50):
            await asyncio.sleep(0.001)
            assert len(connection._held) <= HEAD_BYTES
        await soon(reply.receive(got.extend))
    assert got == BODY


# ---------------------------------------------------------------------------- connections that are kept


async def test_a_connection_is_used_again_the_last_one_first(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async with serving(always(head(5) + b"hello"), scheme) as peer:
        async with client.get(peer.url, {}) as first, client.get(peer.url, {}) as second:
            await first.receive(lambda _: None)
            await second.receive(lambda _: None)
        assert peer.connections == 2 and len(client.connections) == 2
        (last,) = {connection for connection in client.connections} - {client._idle[_origin(peer)][0]}
        async with client.get(peer.url, {}) as third:
            assert third._connection is last
            await third.receive(lambda _: None)
        assert peer.connections == 2


def _origin(peer: Peer) -> Origin:
    return make_request(peer.url)[0]


async def test_a_connection_serves_one_origin(client: RangeClient, serving: Callable[..., Any]) -> None:
    script = always(head(0))
    async with serving(script) as one, serving(script) as other, serving(script, "https") as third:
        for peer in (one, other, third, one, other, third):
            await fetch(client, peer.url)
        assert (one.connections, other.connections, third.connections) == (1, 1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        head(5, "Connection: close") + b"hello",
        head(5, version="1.0") + b"hello",
        head(5) + b"hello, and more than was said",
        head(0) + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        head(None, status="204 No Content") + b"hello",
    ],
)
async def test_a_connection_that_may_not_be_in_step_is_closed(
    client: RangeClient, serving: Callable[..., Any], answer: bytes
) -> None:
    async with serving(then_silent(answer)) as peer:
        assert await fetch(client, peer.url) in (b"hello", b"")
        await soon(peer.gone.get())
        assert await fetch(client, peer.url) in (b"hello", b"")
        assert peer.connections == 2


async def test_a_body_that_was_not_received_ends_its_connection(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async with serving(then_silent(head(len(BODY)) + BODY[:100_000]), scheme) as peer:
        async with client.get(peer.url, {}):
            pass
        await soon(peer.gone.get())


async def test_what_is_raised_before_a_body_is_received_ends_its_connection(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async with serving(then_silent(head(len(BODY)) + BODY[:100_000]), scheme) as peer:
        with pytest.raises(KeyError):
            async with client.get(peer.url, {}):
                raise KeyError
        await soon(peer.gone.get())


async def test_a_failed_body_ends_its_connection_even_when_the_failure_is_caught(
    client: RangeClient, serving: Callable[..., Any]
) -> None:
    def fail(piece: memoryview) -> None:
        raise KeyError

    async with serving(then_silent(head(len(BODY)) + BODY[:100_000])) as peer, client.get(peer.url, {}) as reply:
        with pytest.raises(KeyError):
            await reply.receive(fail)
        await soon(peer.gone.get())


async def test_a_small_body_that_came_with_its_head_need_not_be_received(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async with serving(always(head(1000, status="403 Forbidden") + BODY[:1000]), scheme) as peer:
        for _ in range(3):
            async with client.get(peer.url, {}) as reply:
                assert reply.status == 403
        assert peer.connections == 1


async def test_an_idle_connection_ends_with_its_peer(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async with serving(saying(head(5) + b"hello"), scheme) as peer:
        assert await fetch(client, peer.url) == b"hello"
        await until("the connection is gone", lambda: not client.connections and not client._idle)
        assert await fetch(client, peer.url) == b"hello"
        assert peer.connections == 2


async def test_an_idle_connection_is_closed_when_its_peer_speaks(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    idle = asyncio.Event()

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(head(0))
        await idle.wait()
        writer.write(head(4) + b"evil")
        await reader.readexactly(1)

    async with serving(script, scheme) as peer:
        await fetch(client, peer.url)
        idle.set()
        await soon(peer.gone.get())
        assert not client._idle


async def test_an_idle_connection_is_closed_after_a_while(
    trust: ssl.SSLContext, serving: Callable[..., Any], scheme: str
) -> None:
    client = RangeClient(trust, {}, idle_seconds=0.05)
    async with serving(always(head(0)), scheme) as peer:
        await fetch(client, peer.url)
        await soon(peer.gone.get())
        assert not client._idle
        await client.close()


async def test_a_connection_in_use_again_is_not_taken_for_an_idle_one(
    trust: ssl.SSLContext, serving: Callable[..., Any]
) -> None:
    client = RangeClient(trust, {}, idle_seconds=0.05)

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(head(0))
        await peer.request(reader)
        await asyncio.sleep(0.1)
        writer.write(head(5) + b"hello")
        await reader.readexactly(1)

    async with serving(script) as peer:
        await fetch(client, peer.url)
        assert await fetch(client, peer.url) == b"hello"
        assert peer.connections == 1
        await client.close()


async def test_a_request_on_a_kept_connection_that_has_just_died_is_repeated_once(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        if peer.connections > 2:
            return
        writer.write(head(5) + b"hello")
        await peer.request(reader)  # and not a word about it

    async with serving(script, scheme) as peer:
        assert await fetch(client, peer.url) == b"hello"
        assert await fetch(client, peer.url) == b"hello"
        assert [number for number, _ in peer.asked] == [1, 1, 2]
        with pytest.raises(Disconnected):
            await fetch(client, peer.url)
        assert [number for number, _ in peer.asked] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 206 Partial Content\r\nContent-", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_is_not_repeated_once_a_reply_has_begun(
    client: RangeClient, serving: Callable[..., Any], said: bytes
) -> None:
    async with serving(saying(head(0), said)) as peer:
        await fetch(client, peer.url)
        with pytest.raises(CutShort):
            await fetch(client, peer.url)
        assert len(peer.asked) == 2


# ---------------------------------------------------------------------------- endings


@pytest.mark.parametrize("how", ["closed", "reset", "closed without a farewell"])
async def test_a_body_that_ends_early_is_cut_short(
    client: RangeClient, serving: Callable[..., Any], scheme: str, how: str
) -> None:
    got = bytearray()

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(head(1_000_000) + BODY[:300_000])
        await writer.drain()
        if how != "closed":
            await until("the client has it", lambda: len(got) == 300_000)
            if how == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async with serving(script, scheme) as peer:
        with pytest.raises(CutShort) as cut:
            await fetch(client, peer.url, got.extend)
    assert got == BODY[:300_000]
    assert "s3cret" not in str(cut.value)


async def test_a_mirror_that_cuts_and_resets_is_cut_short(client: RangeClient) -> None:
    async with mirrors(BODY) as (mirror,):
        for faults in (Faults(cut_after=1000), Faults(reset_after=100_000)):
            mirror.faults = faults
            with pytest.raises(CutShort):
                await fetch(client, mirror.url)


async def test_a_peer_that_closes_without_a_word_disconnected(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async with serving(saying(b""), scheme) as peer:
        with pytest.raises(Disconnected):
            await soon(fetch(client, peer.url))
        assert peer.connections == 1


@pytest.mark.parametrize("is_later", [False, True])
@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "full"), ConnectionResetError("of a file system"), KeyError("x"), CutShort("no")]
)
async def test_what_a_taker_raises_is_raised_as_it_is_and_ends_the_connection(
    client: RangeClient, serving: Callable[..., Any], scheme: str, problem: Exception, is_later: bool
) -> None:
    calls = 0

    async def later() -> None:
        await asyncio.sleep(0)
        raise problem

    def take(piece: memoryview) -> Awaitable[None] | None:
        nonlocal calls
        calls += 1
        if calls < 3:
            return None
        if is_later:
            return later()
        raise problem

    client.piece_bytes = 50_000
    async with serving(then_silent(head(len(BODY)) + BODY), scheme) as peer:
        with pytest.raises(type(problem)) as raised:
            await fetch(client, peer.url, take)
        assert raised.value is problem and calls == 3
        await soon(peer.gone.get())
        assert not client._idle


async def test_cancelling_closes_the_connection_wherever_it_waits(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    forever = asyncio.Event()
    reached = asyncio.Event()

    def wait(piece: memoryview) -> Awaitable[Any]:
        reached.set()
        return forever.wait()

    def go_on(piece: memoryview) -> None:
        reached.set()

    def waits(peer: Peer, take: Taker | None) -> bool:
        return reached.is_set() if take else bool(peer.asked)

    for script, take in ((never, None), (then_silent(head(9) + b"h"), go_on), (then_silent(head(9) + b"h"), wait)):
        reached.clear()
        async with serving(script, scheme) as peer:
            task = asyncio.create_task(fetch(client, peer.url, take))
            await until("it waits", partial(waits, peer, take))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await soon(peer.gone.get())


async def test_a_coroutine_that_nobody_waits_for_any_more_is_closed(
    client: RangeClient, serving: Callable[..., Any]
) -> None:
    tasks: list[asyncio.Task[bytes]] = []

    def take(piece: memoryview) -> Awaitable[None] | None:
        if len(piece) == 1:
            return None
        tasks[0].cancel()  # before its task can come to wait for what is returned now
        return asyncio.sleep(0)

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(head(9) + b"h")
        await until("the client reads the body itself", lambda: any(each._take for each in client.connections))
        writer.write(b"ello")
        await reader.readexactly(1)

    async with serving(script) as peer:
        tasks.append(asyncio.create_task(fetch(client, peer.url, take)))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        await soon(peer.gone.get())


async def test_a_mirror_that_stalls_is_left_by_cancelling(client: RangeClient) -> None:
    async with mirrors(BODY) as (mirror,):
        mirror.faults = Faults(stall_after=10_000)
        got = bytearray()
        task = asyncio.create_task(fetch(client, mirror.url, got.extend))
        await until("it stalls", lambda: len(got) == 10_000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until("the connection is gone", lambda: not client.connections)


async def test_closing_ends_connections_in_use(client: RangeClient, serving: Callable[..., Any], scheme: str) -> None:
    half = then_silent(head(9) + b"h")
    async with (
        serving(never, scheme) as silent,
        serving(half, scheme) as slow,
        serving(always(head(0)), scheme) as quick,
    ):
        await fetch(client, quick.url)
        got = bytearray()
        waiting = asyncio.create_task(fetch(client, silent.url))
        reading = asyncio.create_task(fetch(client, slow.url, got.extend))
        await until("both wait", lambda: silent.asked and got)
        await client.close()
        assert client.connections == set()
        with pytest.raises(Disconnected):
            await soon(waiting)
        with pytest.raises(CutShort):
            await soon(reading)
        for peer in (silent, slow, quick):
            await soon(peer.gone.get())
        with pytest.raises(Disconnected):
            await fetch(client, quick.url)
        await client.close()


async def test_a_connection_made_while_the_client_closes_is_closed(
    client: RangeClient, serving: Callable[..., Any], scheme: str
) -> None:
    async with serving(always(head(0)), scheme) as peer:
        task = asyncio.create_task(fetch(client, peer.url))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(Disconnected):
            await soon(task)
        assert client.connections == set()


# ---------------------------------------------------------------------------- connecting


async def test_a_certificate_of_a_stranger_is_refused(serving: Callable[..., Any]) -> None:
    client = RangeClient(ssl.create_default_context(), {})
    async with serving(always(head(0)), "https") as peer:
        with pytest.raises(ssl.SSLCertVerificationError):
            await fetch(client, peer.url)
        assert peer.asked == []
    await client.close()


async def test_a_certificate_for_another_host_is_refused(client: RangeClient, serving: Callable[..., Any]) -> None:
    async with serving(always(head(0)), "https") as peer:
        with pytest.raises(ssl.SSLCertVerificationError):
            await fetch(client, peer.url.replace("127.0.0.1", "localhost"))
        assert peer.asked == []


async def test_tls_to_a_peer_that_speaks_none_fails(client: RangeClient, serving: Callable[..., Any]) -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(script) as peer:
        with pytest.raises(ssl.SSLError):
            await fetch(client, peer.url.replace("http:", "https:"))


async def test_a_refused_connection_is_the_oserror_that_it_is(client: RangeClient) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await fetch(client, f"http://127.0.0.1:{bound.getsockname()[1]}{PATH}")


async def test_a_name_that_is_not_known_is_the_oserror_that_it_is(
    client: RangeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror):
        await fetch(client, f"http://nobody.example{PATH}")


async def test_a_connection_that_takes_too_long_is_given_up(trust: ssl.SSLContext, serving: Callable[..., Any]) -> None:
    async def silent(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        raise ConnectionError

    client = RangeClient(trust, {}, connect_seconds=0.1)
    async with serving(silent) as peer:
        with pytest.raises(ConnectTimeout) as late:
            await soon(fetch(client, peer.url.replace("http:", "https:")))
        assert isinstance(late.value, TimeoutError) and "s3cret" not in str(late.value)
        await soon(peer.gone.get())
    await client.close()


def test_all_own_errors_have_one_root_and_are_no_disk_errors_but_the_timeout() -> None:
    own = (BadRequest, ConnectTimeout, Disconnected, CutShort, BadReply, NotPlain, NotAPeer)
    assert all(issubclass(each, RangeClientError) for each in own)
    assert [each for each in own if issubclass(each, OSError)] == [ConnectTimeout]


async def test_a_reply_shows_its_status_and_headers(client: RangeClient, serving: Callable[..., Any]) -> None:
    async with serving(always(head(0, "ETag: x", "Location: /y", status="302 Found"))) as peer:
        async with client.get(peer.url, {"Range": "bytes=0-"}) as reply:
            assert isinstance(reply, RangeReply) and reply.status == 302
            assert (reply.headers["etag"], reply.headers.get("LOCATION"), "x" in reply.headers) == ("x", "/y", False)
        assert b"\r\nUser-Agent: test\r\nRange: bytes=0-\r\n" in peer.asked[0][1]
