"""The worker's side of the queue, against real HTTP servers: a good one, a mad one, and none."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, web

from config import Settings
from errors import ServerError, ServerUnreachable, StaleToken, Unauthorized
from model import Budget, Failure, Lease, Page, Result
from queue_client import OWN_SHARE, Beat, Heartbeat, Held, QueueClient, lease_clock, make_server_session
from redisConnect import Queue

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
        answer = answer(request) if callable(answer) else web.json_response(answer)
        return await answer if inspect.isawaitable(answer) else answer


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
    settings = replace(settings, server_urls=(server.url,), token="secret-token")
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


@pytest.mark.parametrize(
    ("said", "seconds"), [("31536000", 600.0), ("1e12", 2.0), ("-5", 2.0), ("NaN", 2.0), ("inf", 2.0), ("soon", 2.0)]
)
async def test_no_server_sends_a_worker_to_sleep_for_days(
    said: str, seconds: float, server: Server, client: QueueClient
) -> None:
    server.answers["/get_url"] = [lambda _r: web.json_response([], headers={"Retry-After": said})]
    assert (await client.lease(1)).retry_after_seconds == seconds


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
        "streams": "",
    }
    said = [record.levelname for record in caplog.records if record.name == "queue_client"]
    assert said == ["WARNING", "INFO"]  # away once, back once


async def test_a_finished_page_waits_long_for_a_server_that_is_away_and_other_verbs_do_not(
    server: Server, client: QueueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def noted(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("queue_client.asyncio.sleep", noted)
    away = status(503, **{"Retry-After": "300"})
    server.answers["/ack"] = [away, away, lambda _r: web.json_response({"state": "done"})]
    await client.ack(HELD, Result("a/b.mp4", 5, 1.5, "t"))
    assert len(waited) == 2 and min(waited) >= 300  # what the server asked for, and more
    server.answers["/release"] = away
    with pytest.raises(ServerUnreachable):
        await client.release(HELD)
    assert len(waited) == 2


@pytest.mark.parametrize(
    "answer",
    [None, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", b"nonsense\r\n\r\n"],
    ids=["silence", "the end", "half an answer", "no HTTP"],
)
async def test_what_is_no_whole_answer_is_never_taken_for_one(settings: Settings, answer: bytes | None) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            writer.write(answer)
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    settings = replace(settings, server_urls=(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}",))
    timeout = ClientTimeout(total=0.3 if answer is None else 20)
    async with ClientSession(timeout=timeout) as session:
        client = QueueClient(settings, session, "w1", "i1")
        with pytest.raises(ServerUnreachable):
            await client.ack(HELD, Result("a/b.mp4", 5, 1.5, "t"), patience_seconds=0.0)
        with pytest.raises(ServerUnreachable):
            await client.heartbeat([], {})
    listener.close()
    assert len(writers) == 2
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_failure_is_told_with_its_class_and_the_wait_that_it_needs(server: Server, client: QueueClient) -> None:
    server.answers["/nack"] = {"state": "delayed"}
    assert await client.nack(HELD, Failure("environment", "disk-full", "make room", "t", 90.0)) == "delayed"
    await client.nack(HELD, Failure("transient", "x", "y"))
    told = {"url": HELD.url, "token": HELD.token, "class": "environment", "code": "disk-full", "reason": "make room"}
    assert server.asked[0][1] == {**told, "title": "t", "retry_after_seconds": 90.0}
    assert "retry_after_seconds" not in server.asked[1][1] and server.asked[1][1]["class"] == "transient"
    await client.nack(HELD, Failure("transient", str(-(10**4000)), "a code that the server would refuse"))
    assert len(server.asked[2][1]["code"]) == 100


async def test_no_server_at_all_is_one_sentence(settings: Settings) -> None:
    settings = replace(settings, server_urls=("http://127.0.0.1:9",))
    async with make_server_session(settings) as session:
        with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:9 cannot be reached"):
            await QueueClient(settings, session, "w", "i").release(HELD)


@pytest.mark.parametrize(
    ("code", "error"),
    [(401, Unauthorized), (409, StaleToken), (400, ServerError), (413, ServerError), (202, ServerError)],
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
    settings = replace(settings, server_urls=(queue_server,), lease_seconds=1.0)
    lease = replace(HELD, lease_seconds=1.0)
    held = {HELD.url: Held(lease, lease_clock() + 1.0, lambda: {"chunks": True})}
    heartbeat, beats, beaten = beating(settings, held)
    heartbeat.start()
    try:
        assert beaten.wait(5)
        time.sleep(1.5)  # this blocks the loop: that is the point
        end = time.monotonic() + 20  # another process may have the processor
        while len(beats) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(beats) >= 3
        assert held[HELD.url].is_ours() is False  # the server knows no such lease
        assert [one.lease.url for one in beats[0].lost] == [HELD.url]
    finally:
        heartbeat.stop()


async def test_a_heartbeat_moves_the_deadline_and_says_what_is_done(server: Server, settings: Settings) -> None:
    server.answers["/heartbeat"] = {"lost": [], "control": None, "heartbeat_seconds": 0.2}
    settings = replace(settings, server_urls=(server.url,))
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


async def test_a_heartbeat_tells_how_the_worker_stands_with_the_site_and_hears_of_others(
    server: Server, settings: Settings
) -> None:
    server.answers["/heartbeat"] = {"lost": [], "control": {"slow_seconds": 12.5, "later": 1}, "heartbeat_seconds": 0.2}
    standing = {"account": "digest", "risk": {"kind": "-352", "seconds": 30.0}}
    beats: list[Beat] = []
    beaten = threading.Event()

    def on_beat(beat: Beat) -> None:
        beats.append(beat)
        beaten.set()

    settings = replace(settings, server_urls=(server.url,))
    heartbeat = Heartbeat(settings, "w1", "i1", {}, dict, on_beat, standing=lambda: standing)
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 5)
        assert beats[0].slow_seconds == 12.5
        assert {name: server.asked[0][1][name] for name in standing} == standing
    finally:
        heartbeat.stop()


async def test_a_heartbeat_hears_how_the_site_may_be_asked_and_what_it_had_told_comes_with_that(
    server: Server, settings: Settings
) -> None:
    budget = {"requests_per_second": 0.5, "parked_seconds": 0, "holds_seconds": 60.0, "kind": "", "later": 1}
    server.answers["/heartbeat"] = {"lost": [], "budget": budget, "heartbeat_seconds": 5}
    beats: list[Beat] = []
    settings = replace(settings, server_urls=(server.url,))
    heartbeat = Heartbeat(settings, "w1", "i1", {}, dict, beats.append, standing=lambda: {"site": {"answers": 3}})
    began = lease_clock()
    heartbeat.start()
    try:
        await until(lambda: len(beats) == 1)
        assert beats[0].budget == Budget(0.5, 0, 60.0)
        assert beats[0].told == {"site": {"answers": 3}} and began <= beats[0].sent <= lease_clock()
        server.answers["/heartbeat"] = {"lost": [], "budget": {**budget, "requests_per_second": None, "probes": True}}
        heartbeat.hurry()
        await until(lambda: len(beats) == 2)
        assert lease_clock() - began < 4, "it did not wait for its time"
        assert beats[1].budget == Budget(None, 0, 60.0, probes=True)
    finally:
        heartbeat.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_deadline_counts_from_when_it_was_asked_for_and_a_failed_beat_moves_none(
    server: Server, settings: Settings
) -> None:
    """A late answer must not make a lease longer than the server keeps it; the next beat comes all the same."""
    deadlines: list[float] = []
    asked_at = 0.0

    def answer(_request: web.Request) -> web.StreamResponse:
        nonlocal asked_at
        deadlines.append(held[HELD.url].deadline)
        if len(deadlines) <= 3:
            return web.json_response({"error": "no"}, status=(500, 409, 401)[len(deadlines) - 1])
        asked_at = lease_clock()
        time.sleep(0.5)  # the answer comes late
        return web.json_response({"lost": []})

    server.answers["/heartbeat"] = answer
    held = {HELD.url: Held(HELD, 1.0, dict)}
    heartbeat, beats, beaten = beating(replace(settings, server_urls=(server.url,), lease_seconds=1.0), held)
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 20)
        assert len(beats) == 1 and deadlines[:4] == [1.0] * 4
        assert asked_at + 50 < held[HELD.url].deadline <= asked_at + HELD.lease_seconds * OWN_SHARE
        assert 0.5 < OWN_SHARE < 1
    finally:
        heartbeat.stop()


async def test_a_heartbeat_that_is_not_answered_is_not_waited_for_until_the_lease_is_over(
    server: Server, settings: Settings
) -> None:
    silence = asyncio.Event()

    async def silent(_request: web.Request) -> web.StreamResponse:
        await silence.wait()
        return web.Response()

    server.answers["/heartbeat"] = [silent, lambda _r: web.json_response({"lost": []})]
    heartbeat, _beats, beaten = beating(replace(settings, server_urls=(server.url,), lease_seconds=1.0), {})
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 12)  # the session alone would wait for 20 s
    finally:
        heartbeat.stop()
        silence.set()


@pytest.mark.parametrize(("told", "period"), [(0.01, 0.2), (0.5, 0.5), (1000, 1.0)])
async def test_the_server_sets_the_pace_of_heartbeats_but_three_always_fit_into_a_lease(
    server: Server, settings: Settings, told: float, period: float
) -> None:
    server.answers["/heartbeat"] = {"lost": [], "heartbeat_seconds": told}
    held = {HELD.url: Held(replace(HELD, lease_seconds=3.0), 1.0, dict)}
    heartbeat, _beats, beaten = beating(replace(settings, server_urls=(server.url,)), held)
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 20)
        assert heartbeat._period == period
    finally:
        heartbeat.stop()


async def test_a_lease_that_ran_out_is_named_once_and_given_back_where_it_had_not(
    server: Server, settings: Settings
) -> None:
    """The server forgives a death that was none, and must not keep what nobody works on."""
    other = replace(HELD, url="BV17x411w7KC?p=2&cid=8", token="e.2.n")
    server.answers["/heartbeat"] = {"lost": [HELD.url], "control": None, "heartbeat_seconds": 0.2}
    heartbeat, beats, beaten = beating(replace(settings, server_urls=(server.url,), lease_seconds=1.0), {})
    for lease in (HELD, other):
        heartbeat.apologize(Held(lease, 0.0, dict))
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 5)
        named = [(job["url"], job["token"]) for job in server.asked[1][1]["jobs"]]
        assert named == [(HELD.url, HELD.token), (other.url, other.token)]
        assert ([one.lease for one in beats[0].lost], [one.lease for one in beats[0].returned]) == ([], [other])
        async with asyncio.timeout(10):
            while len(server.asked) < 4:
                await asyncio.sleep(0.02)
        assert [body["jobs"] for _path, body in (server.asked[0], *server.asked[2:])] == [[]] * (len(server.asked) - 1)
    finally:
        heartbeat.stop()


async def test_a_heartbeat_that_stops_ends_its_thread_also_in_the_middle_of_a_beat(
    server: Server, settings: Settings
) -> None:
    asked, silence = asyncio.Event(), asyncio.Event()

    async def silent(_request: web.Request) -> web.StreamResponse:
        asked.set()
        await silence.wait()
        return web.Response()

    server.answers["/heartbeat"] = silent
    heartbeat = Heartbeat(replace(settings, server_urls=(server.url,)), "w1", "i", {}, dict, lambda _beat: None)
    heartbeat.start()
    await asyncio.wait_for(asked.wait(), 20)
    heartbeat.stop()
    heartbeat._thread.join(20)  # on a busy machine it may take longer than stop() waits
    assert not heartbeat._thread.is_alive()
    silence.set()
    Heartbeat(settings, "w1", "i", {}, dict, lambda _beat: None).stop()  # one that never began


async def test_a_worker_whose_loop_is_dead_lets_its_leases_run_out(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("queue_client.LOOP_STALL_SECONDS", 0.0)
    server.answers["/heartbeat"] = {"lost": []}
    heartbeat, _beats, beaten = beating(replace(settings, server_urls=(server.url,), lease_seconds=1.0), {})
    heartbeat.start()
    try:
        assert not await asyncio.to_thread(beaten.wait, 1)
        assert server.asked == []
    finally:
        heartbeat.stop()


async def test_an_order_is_heard_and_soon_told_to_be_obeyed(
    queue_server: str, queue: Queue, settings: Settings
) -> None:
    queue.heartbeat("w1", [], {})
    queue.steer(["w1"], {"stop": 0}, "somebody")
    beats: list[tuple[Beat, float]] = []
    obeyed: dict[str, str] = {}

    def on_beat(beat: Beat) -> None:
        beats.append((beat, time.monotonic()))
        if beat.order is not None:
            obeyed["order"] = beat.order.id

    heartbeat = Heartbeat(replace(settings, server_urls=(queue_server,)), "w1", "i1", {}, lambda: dict(obeyed), on_beat)
    heartbeat.start()
    try:
        async with asyncio.timeout(20):
            while len(beats) < 2:
                await asyncio.sleep(0.01)
    finally:
        heartbeat.stop()
    (first, at), (second, later) = beats
    assert first.order is not None and first.order.working == {"stop": 0} and second.order is None
    assert later - at < heartbeat._period - 1, "not a whole period later"
    assert "order" not in queue.workers()[0]


@pytest.mark.parametrize("order", [7, "x", {}, {"id": 1}, {"id": "i", "working": {"path": "/"}}])
async def test_an_order_that_makes_no_sense_costs_no_lease(server: Server, settings: Settings, order: Any) -> None:
    server.answers["/heartbeat"] = {"lost": [], "heartbeat_seconds": 0.2, "order": order}
    held = {HELD.url: Held(HELD, 0.0, dict)}
    heartbeat, beats, beaten = beating(replace(settings, server_urls=(server.url,)), held)
    heartbeat.start()
    try:
        assert await asyncio.to_thread(beaten.wait, 5)
    finally:
        heartbeat.stop()
    assert held[HELD.url].is_ours()
    told = beats[0].order
    assert told is None or (told.problem and not told.working)
