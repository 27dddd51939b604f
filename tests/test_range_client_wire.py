"""The fast path on a wire without a network, where a test decides what each read brings."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_range_client import head
from transfer.range_client import HEAD_BYTES, BadReply, Origin, RangeClient, _Connection


class Wire(asyncio.Transport):
    """A transport whose reads a test decides; ``is_polite`` to a pause, or goes on as that of Windows may."""

    def __init__(self, is_polite: bool) -> None:
        super().__init__()
        self.is_polite = is_polite
        self.is_paused = False
        self.aborted = False
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    async def deliver(self, connection: _Connection, data: bytes, sizes: list[int]) -> None:
        at = turn = 0
        while at < len(data):
            while self.is_paused and self.is_polite:
                await asyncio.sleep(0)
            view = connection.get_buffer(-1)
            size = min(sizes[turn % len(sizes)], len(view), len(data) - at)
            view[:size] = data[at : at + size]
            connection.buffer_updated(size)
            at, turn = at + size, turn + 1
            if turn % 3 == 0:
                await asyncio.sleep(0)


@given(
    body=st.binary(max_size=300),
    interim=st.integers(0, 2),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    piece_bytes=st.integers(1, 100),
    waits=st.lists(st.booleans(), min_size=1, max_size=4),
    is_polite=st.booleans(),
    is_tls=st.booleans(),
)
def test_every_byte_is_given_once_in_order_however_it_comes(
    body: bytes,
    interim: int,
    sizes: list[int],
    piece_bytes: int,
    waits: list[bool],
    is_polite: bool,
    is_tls: bool,
) -> None:
    async def exchange() -> None:
        client = RangeClient(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), {})
        client.piece_bytes = piece_bytes
        connection = _Connection(client, Origin(is_tls, "a", 1))
        wire = Wire(is_polite)
        connection.connection_made(wire)
        got = bytearray()
        pieces: list[int] = []
        is_waited_for = False

        async def wait() -> None:
            nonlocal is_waited_for
            await asyncio.sleep(0)
            assert wire.is_paused
            is_waited_for = False

        def take(piece: memoryview) -> Awaitable[None] | None:
            nonlocal is_waited_for
            assert not is_waited_for
            got.extend(piece)
            pieces.append(len(piece))
            client.piece_bytes = 1 + len(pieces) * 7 % piece_bytes
            is_waited_for = waits[len(pieces) % len(waits)]
            return wait() if is_waited_for else None

        before = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * interim
        delivery = asyncio.create_task(wire.deliver(connection, before + head(len(body)) + body, sizes))
        reply = await connection.ask(b"GET")
        assert (wire.written, reply.status, reply.body_bytes) == (b"GET", 206, len(body))
        assert wire.is_paused
        await connection.receive(take)
        await delivery
        assert (bytes(got), max(pieces, default=0) <= piece_bytes) == (body, True)
        assert connection.is_reusable()
        connection.rest()
        assert not wire.is_paused and not wire.aborted

    asyncio.run(exchange())


def wired(is_polite: bool) -> tuple[_Connection, Wire]:
    connection = _Connection(RangeClient(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), {}), Origin(False, "a", 1))
    wire = Wire(is_polite)
    connection.connection_made(wire)
    return connection, wire


async def test_a_taker_that_failed_is_not_called_again() -> None:
    connection, wire = wired(is_polite=False)
    calls = 0

    def take(piece: memoryview) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOSPC, "full")

    asking = asyncio.create_task(connection.ask(b"GET"))
    await asyncio.sleep(0)
    await wire.deliver(connection, head(9), [100])
    await asking
    receiving = asyncio.create_task(connection.receive(take))
    await asyncio.sleep(0)
    await wire.deliver(connection, b"hello", [2])
    with pytest.raises(OSError, match="full"):
        await receiving
    assert calls == 1 and wire.aborted


async def test_a_long_head_is_refused_even_when_its_end_comes_along() -> None:
    connection, wire = wired(is_polite=True)
    asking = asyncio.create_task(connection.ask(b"GET"))
    await asyncio.sleep(0)
    delivery = asyncio.create_task(wire.deliver(connection, head(0, "X: " + "x" * HEAD_BYTES), [10_000]))
    with pytest.raises(BadReply):
        await asking
    delivery.cancel()
    assert wire.aborted
