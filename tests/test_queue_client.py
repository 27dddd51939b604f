"""The worker's side of the queue, against real HTTP servers: a good one, a mad one, and none."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from config import Settings
from errors import ServerError, ServerUnreachable, StaleToken, Unauthorized
from model import Failure, Lease, Page, Result
from queue_client import Beat, Heartbeat, Held, QueueClient, lease_clock, make_server_session

LEASE = {"url": "BV17x411w7KC", "token": "e.1.n", "category": "other", "attempt": 1, "lease_seconds": 60.0}
HELD = Lease("BV17x411w7KC?p=1&cid=7", "e.1.n", "other", 1, 60.0)


class Server:
    """Answers what a test puts into ``answers``, by path; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[web.Request], web.StreamResponse] | Any] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        self.asked.append((request.path, json.loads(body) if body else dict(request.query)))
        self.headers.append(dict(request.headers))
        answer = self.answers[request.path]
        answer = answer.pop(0) if isinstance(answer, list) and answer and callable(answer[0]) else answer
        return answer(request) if callable(answer) else web.json_response(answer)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def client(server: Server, settings: Settings) -> AsyncIterator[QueueClient]:
    settings = replace(settings, server_url=server.url, token="secret-token")
    async with make_server_session(settings) as session:
        yield QueueClient(settings, session, "w1", "i1", draw=lambda: 0.01)


def status(code: int, error: str = "no", **headers: str) -> Callable[[web.Request], web.StreamResponse]:
    return lambda _request: web.json_response({"error": error}, status=code, headers=headers)


# ------------------------------------------------------------------------------------------ asking


async def test_a_lease_request_says_who_asks_and_what_lies_here(server: Server, client: QueueClient) -> None:
    server.answers["/get_url"] = [lambda _r: web.json_response([LEASE])]
    leased = await client.lease(3, ["BV1?x", "BV2"])
    assert leased.leases == (Lease(**LEASE),)
    _path, query = server.asked[0]
    assert (query["count"], query["worker"], query["instance"], query["have"]) == ("3", "w1", "i1", "BV1?x,BV2")
    assert server.headers[0]["Authorization"] == "Bearer secret-token"


async def test_an_empty_answer_says_when_to_ask_again(server: Server, client: QueueClient) -> None:
    server.answers["/get_url"] = [lambda _r: web.json_response([], headers={"Retry-After": "4"})]
    leased = await client.lease(1)
    assert (leased.leases, leased.retry_after_seconds) == ((), 4.0)


async def test_a_request_without_an_answer_is_repeated_word_for_word(server: Server, client: QueueClient) -> None:
    server.answers["/get_url"] = status(503, **{"Retry-After": "30"})
    with pytest.raises(ServerUnreachable):
        await client.lease(2)
    server.answers["/get_url"] = [lambda _r: web.json_response([LEASE, LEASE])]
    assert len((await client.lease(1)).leases) == 2
    requests = [(query["request"], query["count"]) for _path, query in server.asked]
    assert requests == [requests[0]] * 2
    server.answers["/get_url"] = [lambda _r: web.json_response([])]
    await client.lease(1)
    assert server.asked[-1][1]["request"] != requests[0][0]


async def test_many_pages_go_in_several_calls(server: Server, client: QueueClient) -> None:
    server.answers["/expand"] = {"added": 150, "known": 10, "lease": None}
    pages = [Page(number, number, "长" * 1000) for number in range(1, 452)]
    expanded = await client.expand(HELD, "title", pages)
    assert (expanded.added, expanded.known, expanded.lease) == (450, 30, None)
    bodies = [body for _path, body in server.asked]
    assert [body["pages"][0]["number"] for body in bodies] == [401, 201, 1]  # each is put before those that are there
    assert [len(body["pages"]) for body in bodies] == [51, 200, 200]
    assert [body.get("more", False) for body in bodies] == [True, True, False]
    assert max(len(json.dumps(body)) for body in bodies) < 512 * 1024


async def test_a_failing_server_is_asked_again_until_the_patience_ends(
    server: Server, client: QueueClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.answers["/ack"] = [status(500), status(503), status(429), lambda _r: web.json_response({"state": "done"})]
    await client.ack(HELD, Result("a/b.mp4", 5, 1.5, "t"))
    assert len(server.asked) == 4
    assert server.asked[0][1] == {
        "url": HELD.url,
        "token": "e.1.n",
        "path": "a/b.mp4",
        "bytes": 5,
        "seconds": 1.5,
        "title": "t",
    }
    said = [record.levelname for record in caplog.records if record.name == "queue_client"]
    assert said == ["WARNING", "INFO"]  # away once, back once


async def test_no_server_at_all_is_one_sentence(settings: Settings) -> None:
    settings = replace(settings, server_url="http://127.0.0.1:9")
    async with make_server_session(settings) as session:
        with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:9 cannot be reached"):
            await QueueClient(settings, session, "w", "i").release(HELD)


@pytest.mark.parametrize(
    ("code", "error"), [(401, Unauthorized), (409, StaleToken), (400, ServerError), (413, ServerError)]
)
async def test_a_refusal_is_final(server: Server, client: QueueClient, code: int, error: type[Exception]) -> None:
    server.answers["/nack"] = status(code, "because")
    with pytest.raises(error, match="because"):
        await client.nack(HELD, Failure("transient", "x", "y"))
    assert len(server.asked) == 1


async def test_counts_and_delayed_jobs_are_read(server: Server, client: QueueClient) -> None:
    jobs = {"ready": 1, "leased": 2, "delayed": 3, "done": 4, "dead": 5}
    server.answers["/status"] = {"jobs": jobs, "next_due_seconds": 9.5}
    counts, due = await client.counts()
    assert (counts.ready, counts.dead, due) == (1, 5, 9.5)
    dead = {"items": [{"url": "d", "state": "dead"}], "next": "d"}
    delayed = {"items": [{"url": "x", "state": "delayed", "next_retry_seconds": 3, "reason": "r"}], "next": None}
    server.answers["/failed"] = [lambda _r: web.json_response(dead), lambda _r: web.json_response(delayed)]
    assert await client.delayed() == [("x", 3.0, "r")]
    assert server.asked[-1][1]["after"] == "d"


# ------------------------------------------------------------------------------------------ a mad server


@pytest.mark.parametrize(
    "answer",
    [
        {"not": "a list"},
        [LEASE] * 2,
        [{**LEASE, "url": "../../etc"}],
        [{**LEASE, "url": 7}],
        [{**LEASE, "category": "../up"}],
        [{**LEASE, "token": "x" * 201}],
        [{**LEASE, "lease_seconds": 1e400}],
        [{**LEASE, "lease_seconds": -1}],
        [{**LEASE, "attempt": "first"}],
        ["lease"],
        [[[]]],
        "text",
        None,
    ],
)
async def test_a_lease_that_no_sane_server_gives_is_refused(server: Server, client: QueueClient, answer: Any) -> None:
    server.answers["/get_url"] = lambda _request: web.json_response(answer)
    with pytest.raises(ServerError):
        await client.lease(1)


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000, b"\xff", b'{"a":' + b"9" * 5000 + b"}", b""])
async def test_what_is_no_json_is_refused(server: Server, client: QueueClient, body: bytes) -> None:
    server.answers["/status"] = lambda _request: web.Response(body=body)
    with pytest.raises(ServerError):
        await client.counts()


async def test_an_endless_answer_is_cut(server: Server, client: QueueClient) -> None:
    server.answers["/status"] = lambda _request: web.Response(body=b" " * 5_000_000)
    with pytest.raises(ServerError, match="too large"):
        await client.counts()


async def test_a_redirect_is_not_followed(server: Server, client: QueueClient) -> None:
    server.answers["/release"] = lambda _request: web.Response(status=302, headers={"Location": server.url + "/x"})
    with pytest.raises(ServerError):
        await client.release(HELD)
    assert [path for path, _body in server.asked] == ["/release"]


# ------------------------------------------------------------------------------------------ heartbeat


def beating(settings: Settings, held: dict[str, Held]) -> tuple[Heartbeat, list[Beat], threading.Event]:
    beats: list[Beat] = []
    beaten = threading.Event()

    def on_beat(beat: Beat) -> None:
        beats.append(beat)
        beaten.set()

    heartbeat = Heartbeat(settings, "w1", "i1", held, lambda: {"state": "running"}, on_beat)
    return heartbeat, beats, beaten


async def test_a_blocked_loop_does_not_stop_the_heartbeat(queue_server: str, settings: Settings) -> None:
    """The worker's loop stands still; its leases are renewed all the same, by a thread and a loop of their own."""
    settings = replace(settings, server_url=queue_server, lease_seconds=1.0)
    lease = replace(HELD, lease_seconds=1.0)
    held = {HELD.url: Held(lease, lease_clock() + 1.0, lambda: {"chunks": True})}
    heartbeat, beats, beaten = beating(settings, held)
    heartbeat.start()
    try:
        assert beaten.wait(5)
        time.sleep(1.5)  # this blocks the loop: that is the point
        assert len(beats) >= 3
        assert held[HELD.url].is_ours() is False  # the server knows no such lease
        assert [one.lease.url for one in beats[0].lost] == [HELD.url]
    finally:
        heartbeat.stop()


async def test_a_heartbeat_moves_the_deadline_and_says_what_is_done(server: Server, settings: Settings) -> None:
    server.answers["/heartbeat"] = {"lost": [], "control": None, "heartbeat_seconds": 0.2}
    settings = replace(settings, server_url=server.url)
    before = lease_clock() + 1.0
    held = {HELD.url: Held(HELD, before, lambda: {"title": "t", "chunks": False})}
    heartbeat, _beats, beaten = beating(settings, held)
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 5)
        assert held[HELD.url].deadline > before + 50
        _path, body = server.asked[0]
        assert body["jobs"] == [{"url": HELD.url, "token": HELD.token, "progress": {"title": "t", "chunks": False}}]
        assert (body["worker"], body["state"]) == ("w1", {"state": "running"})
    finally:
        heartbeat.stop()


async def test_a_lease_that_ran_out_is_named_once_and_given_back_where_it_had_not(
    server: Server, settings: Settings
) -> None:
    """The server forgives a death that was none, and must not keep what nobody works on."""
    other = replace(HELD, url="BV17x411w7KC?p=2&cid=8", token="e.2.n")
    server.answers["/heartbeat"] = {"lost": [HELD.url], "control": None, "heartbeat_seconds": 0.2}
    heartbeat, beats, beaten = beating(replace(settings, server_url=server.url), {})
    for lease in (HELD, other):
        heartbeat.apologize(Held(lease, 0.0, dict))
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 5)
        named = [(job["url"], job["token"]) for job in server.asked[1][1]["jobs"]]
        assert named == [(HELD.url, HELD.token), (other.url, other.token)]
        assert ([one.lease for one in beats[0].lost], [one.lease for one in beats[0].returned]) == ([], [other])
        async with asyncio.timeout(10):
            while len(server.asked) < 3:
                await asyncio.sleep(0.02)
        assert server.asked[0][1]["jobs"] == server.asked[2][1]["jobs"] == []
    finally:
        heartbeat.stop()


async def test_a_worker_whose_loop_is_dead_lets_its_leases_run_out(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queue_client.LOOP_STALL_SECONDS", 0.0)
    server.answers["/heartbeat"] = {"lost": []}
    heartbeat, _beats, beaten = beating(replace(settings, server_url=server.url, lease_seconds=1.0), {})
    heartbeat.start()
    try:
        assert not await asyncio.to_thread(beaten.wait, 1)
        assert server.asked == []
    finally:
        heartbeat.stop()
