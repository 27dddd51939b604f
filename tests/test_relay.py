"""The relay between workers and server: what it passes on, what it breaks, and what it writes down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.farm import free_port
from tests.relay import Call, Relay, read_history


class Server:
    """Answers with what it was asked; ``seen`` are the bodies that have arrived."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        self.seen.append(body or request.path_qs)
        if request.path == "/chunked":
            answer = web.StreamResponse()
            answer.enable_chunked_encoding()
            await answer.prepare(request)
            for piece in ('["1', '2"]'):
                await answer.write(piece.encode())
            return answer
        status = int(request.query.get("status", "200"))
        return web.json_response({"turn": len(self.seen), "body": body}, status=status)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


@pytest.fixture
def relay(server: Server, tmp_path: Path) -> Iterator[Relay]:
    with Relay(server.port, "w1", tmp_path / "history.jsonl") as relay:
        yield relay


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def ask(session: aiohttp.ClientSession, relay: Relay, path: str, client: str = "w1", **content: object) -> int:
    async with session.post(relay.url(client) + path, json=content) as reply:
        await reply.read()
        return reply.status


async def test_bodies_pass_both_ways_in_one_connection_and_each_call_is_written_down(
    server: Server, relay: Relay, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"sent":'
        yield b'"in pieces"}'

    async with session.get(relay.url() + "/get_url?count=2&worker=w%201") as reply:
        assert (await reply.json())["turn"] == 1
    async with session.post(relay.url() + "/ack", data=pieces()) as reply:
        assert (await reply.json())["body"] == '{"sent":"in pieces"}'
    async with session.get(relay.url() + "/chunked") as reply:
        assert await reply.json(content_type=None) == ["12"]
    async with session.get(relay.url() + "/no?status=409") as reply:
        assert reply.status == 409
    async with session.get(relay.url() + "/no?status=503") as reply:
        assert reply.status == 503
    first, second, third, refused, failed = relay.calls
    assert (first.client, first.verb, first.path, first.request) == (
        "w1",
        "GET",
        "/get_url",
        {"count": "2", "worker": "w 1"},
    )
    assert (second.request, second.outcome, second.status) == ({"sent": "in pieces"}, "ok", 200)
    assert third.answer == ["12"]
    assert [refused.outcome, failed.outcome] == ["failed", "unknown"]
    times = [time for call in relay.calls for time in (call.invoked_at, call.ended_at)]
    assert times == sorted(times)
    assert read_history(tmp_path / "history.jsonl") == relay.calls


async def test_a_dropped_answer_was_given_by_the_server_and_never_reaches_the_client(
    server: Server, relay: Relay, session: aiohttp.ClientSession
) -> None:
    dropped = relay.drop_replies("/ack", 1)
    assert await ask(session, relay, "/heartbeat") == 200
    with pytest.raises(aiohttp.ClientError):
        await ask(session, relay, "/ack", page=1)
    assert dropped.wait() == 1
    assert await ask(session, relay, "/ack", page=2) == 200
    assert [json.loads(body) for body in server.seen] == [{}, {"page": 1}, {"page": 2}]
    assert [(call.outcome, call.status) for call in relay.calls[1:]] == [("unknown", 200), ("ok", 200)]


async def test_a_repeated_call_reaches_the_server_twice_and_the_second_answer_comes_back(
    server: Server, relay: Relay, session: aiohttp.ClientSession
) -> None:
    fault = relay.repeat("/ack", 1)
    async with session.post(relay.url() + "/ack", json={"page": 1}) as reply:
        assert (await reply.json())["turn"] == 2
    assert fault.wait() == 1
    assert server.seen == ['{"page": 1}'] * 2
    assert [(call.outcome, call.answer["turn"]) for call in relay.calls] == [("unknown", 1), ("ok", 2)]


async def test_one_client_is_cut_off_and_the_other_is_not(
    server: Server, relay: Relay, session: aiohttp.ClientSession
) -> None:
    relay.door("w2")
    assert await ask(session, relay, "/ack", "w2") == 200
    relay.cut("w2")
    with pytest.raises(aiohttp.ClientError):
        await ask(session, relay, "/ack", "w2")
    assert await ask(session, relay, "/ack") == 200
    relay.heal("w2")
    assert await ask(session, relay, "/ack", "w2") == 200
    assert [call.client for call in relay.calls] == ["w2", "w1", "w2"]


async def test_a_silent_network_swallows_what_is_asked_until_it_is_healed(
    server: Server, relay: Relay, session: aiohttp.ClientSession
) -> None:
    assert await ask(session, relay, "/ack") == 200
    relay.cut(silent=True)
    asking = asyncio.create_task(ask(session, relay, "/ack"))
    done, _pending = await asyncio.wait({asking}, timeout=0.3)
    assert not done
    relay.heal()
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert len(server.seen) == 1
    assert await ask(session, relay, "/ack") == 200
    assert [call.outcome for call in relay.calls] == ["ok", "failed", "ok"]


async def test_a_late_request_is_delivered_though_its_client_has_given_up(
    server: Server, relay: Relay, session: aiohttp.ClientSession
) -> None:
    fault = relay.delay(1.5, "/ack", count=1)
    with pytest.raises(TimeoutError):
        async with session.post(relay.url() + "/ack", json={}, timeout=aiohttp.ClientTimeout(total=0.1)):
            pass
    assert server.seen == []
    assert await asyncio.to_thread(fault.wait) == 1
    async with asyncio.timeout(10):
        while not server.seen:
            await asyncio.sleep(0.01)


async def test_a_server_that_is_away_is_known_not_to_have_got_the_call_and_another_one_may_take_its_place(
    server: Server, relay: Relay, session: aiohttp.ClientSession
) -> None:
    assert await ask(session, relay, "/ack") == 200
    relay.retarget(free_port())
    with pytest.raises(aiohttp.ClientError):
        await ask(session, relay, "/ack")
    relay.retarget(server.port)
    assert await ask(session, relay, "/ack") == 200
    assert [(call.outcome, call.status) for call in relay.calls] == [("ok", 200), ("failed", 0), ("ok", 200)]


async def test_a_call_whose_server_hangs_up_is_unknown(relay: Relay, session: aiohttp.ClientSession) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listening:
        relay.retarget(listening.sockets[0].getsockname()[1])
        with pytest.raises(aiohttp.ClientError):
            await ask(session, relay, "/ack")
    (call,) = relay.calls
    assert (call.outcome, call.status) == ("unknown", 0)
    assert isinstance(call, Call)
