"""Several servers on one queue: what a client, a browser and a proxy meet when the next request goes to another one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from http.cookies import SimpleCookie
from typing import Any

import pytest
import redis
from aiohttp import web
from flask import Flask
from flask.testing import FlaskClient
from redis.backoff import NoBackoff
from redis.retry import Retry

import add_url
from config import Settings
from errors import ServerUnreachable, StaleToken
from model import Failure, Lease, Page, Result
from queue_client import (
    Beat,
    Heartbeat,
    Held,
    QueueClient,
    beat_limit_seconds,
    lease_clock,
    make_server_session,
)
from redisConnect import Queue
from server_choice import ServerChoice
from status_table import show_status
from tests.farm import free_port, wait_until
from tests.test_queue_client import Server, status
from web import create_app
from web.session import Changes

TOKEN = "a-token-of-the-farm"
VIDEO = "BV17x411w7KC"
PAGE = f"{VIDEO}?p=1&cid=7"


@pytest.fixture
async def servers() -> AsyncIterator[list[Server]]:
    """Two HTTP servers that answer what a test says."""
    found, runners = [], []
    for _number in range(2):
        server = Server()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        found.append(server)
        runners.append(runner)
    yield found
    for runner in runners:
        await runner.cleanup()


def preferred(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Return the servers in the order in which worker w1 asks them."""
    return tuple(ServerChoice(urls, time.monotonic, "w1").in_order())


def ok(answer: Any) -> Callable[[web.Request], web.StreamResponse]:
    return lambda _request: web.json_response(answer)


# ------------------------------------------------------------------------------------------ a worker


@pytest.mark.parametrize("fault", [status(503), status(500), status(502)])
async def test_a_server_that_fails_is_left_for_the_next_one_with_the_same_words(
    servers: list[Server], settings: Settings, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    urls = preferred((servers[0].url, servers[1].url))
    by_url = {server.url: server for server in servers}
    first, second = by_url[urls[0]], by_url[urls[1]]
    first.answers["/get_url"], second.answers["/get_url"] = fault, ok([])
    settings = replace(settings, server_urls=(servers[0].url, servers[1].url))
    async with make_server_session(settings) as session:
        client = QueueClient(settings, session, "w1", "i1", draw=lambda: 1e6)  # whoever waits has no patience left
        await client.lease(2, [PAGE])
        assert first.asked == second.asked and len(first.asked) == 1
        await client.lease(1)
        assert (len(first.asked), len(second.asked)) == (1, 2)  # it is remembered as bad
    assert caplog.text.count(f"{first.url}: no; another server is asked") == 1


async def test_a_server_that_is_gone_or_answers_nothing_is_left_too(servers: list[Server], settings: Settings) -> None:
    async def nothing(_reader: Any, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(nothing, "127.0.0.1", 0)
    urls = (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", servers[0].url)
    servers[0].answers["/heartbeat"] = {"lost": []}
    settings = replace(settings, server_urls=urls, lease_seconds=9.0)
    async with make_server_session(settings) as session:
        client = QueueClient(settings, session, "w1", "i1")
        async with asyncio.timeout(beat_limit_seconds(settings)):
            assert (await client.heartbeat([], {})).lost == []
    silent.close()
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_server_that_asks_for_patience_is_not_gone_round(servers: list[Server], settings: Settings) -> None:
    for server in servers:
        server.answers["/ack"] = [status(429, **{"Retry-After": "0"}), ok({"state": "done"})]
    settings = replace(settings, server_urls=tuple(server.url for server in servers))
    async with make_server_session(settings) as session:
        client = QueueClient(settings, session, "w1", "i1", draw=lambda: 0.01)
        await client.ack(Lease(PAGE, "e.1.n", "other", 1, 60.0), Result("a.mp4", 5, 1.5, "t"))
    assert sorted(len(server.asked) for server in servers) == [0, 2]


async def test_where_all_are_away_the_patience_holds_and_all_are_named(
    servers: list[Server], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dead = f"http://127.0.0.1:{free_port()}"
    fault = status(503, "Redis is away")
    servers[0].answers["/ack"] = [*[fault] * 3, ok({"state": "done"})]
    settings = replace(settings, server_urls=(dead, servers[0].url))
    held = Lease(PAGE, "e.1.n", "other", 1, 60.0)
    async with make_server_session(settings) as session:
        client = QueueClient(settings, session, "w1", "i1", draw=lambda: 0.01)
        await client.ack(held, Result("a.mp4", 5, 1.5, "t"), patience_seconds=30.0)
        assert len(servers[0].asked) == 4
        servers[0].answers["/release"] = fault
        with pytest.raises(ServerUnreachable) as caught:
            await QueueClient(settings, session, "w1", "i1", draw=lambda: 1.0).release(held)
    for text in ("No server answers: ", f"{dead} cannot be reached", f"{servers[0].url}: "):
        assert text in str(caught.value)
    assert caplog.text.count("asking again until it answers") == 2  # once for each outage, not once for each attempt
    assert caplog.text.count("The server answers again") == 1


async def test_one_refusal_is_final_wherever_it_comes_from(servers: list[Server], settings: Settings) -> None:
    for server in servers:
        server.answers["/nack"] = status(409, "moved on")
    settings = replace(settings, server_urls=tuple(server.url for server in servers))
    async with make_server_session(settings) as session:
        with pytest.raises(StaleToken):
            await QueueClient(settings, session, "w1", "i1").nack(
                Lease(PAGE, "e.1.n", "other", 1, 60.0), Failure("transient", "x", "y")
            )
    assert sorted(len(server.asked) for server in servers) == [0, 1]


def test_heartbeats_go_on_at_another_server(settings: Settings, queue_server: str, queue: Queue) -> None:
    queue.add([VIDEO], "other")
    (lease,) = queue.lease("w1", 1)
    held = Held(lease, lease_clock() + 60, dict)
    beats: list[Beat] = []
    dead = f"http://127.0.0.1:{free_port()}"
    settings = replace(settings, server_urls=(dead, queue_server))
    heartbeat = Heartbeat(settings, "w1", "i1", {lease.url: held}, dict, beats.append)
    heartbeat.start()
    wait_until("a beat", lambda: beats, 20)
    heartbeat.stop()
    assert beats[0].lost == ()


# ------------------------------------------------------------------------------------------ scripts


def test_add_url_and_the_status_go_to_the_next_server(
    settings: Settings,
    queue_server: str,
    queue: Queue,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("site_walk.TRIES", 1)  # at once, without a wait between
    dead = f"http://127.0.0.1:{free_port()}"
    settings = replace(settings, server_urls=(dead, queue_server), token=TOKEN)
    sink = add_url.ServerSink(settings)
    assert sink.add([VIDEO], "other", "", False, "request-1").added == 1
    assert sink.add([VIDEO], "other", "", False, "request-1").added == 1  # the same request again: the same answer
    sink.close()
    show_status(settings, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["jobs"]["ready"] == 1 and shown["server"] == queue_server
    with pytest.raises(ServerUnreachable) as caught:
        show_status(replace(settings, server_urls=(dead, f"{dead}/b")), as_json=True)
    assert str(caught.value).count(dead) == 2


# ------------------------------------------------------------------------------------------ what a server remembers


@pytest.fixture
def two(settings: Settings, connection: redis.Redis) -> Iterator[tuple[Flask, Flask]]:
    """Two servers of one farm: each with a queue object of its own, as two processes have."""
    guarded = replace(settings, token=TOKEN)
    queues = [Queue(connection, guarded), Queue(connection, guarded)]
    yield create_app(guarded, queues[0]), create_app(guarded, queues[1])


def bearer(app: Flask) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    return client


def test_each_verb_repeated_at_another_server_gets_the_same_answer(two: tuple[Flask, Flask]) -> None:
    """What a worker does when the answer of a server that died did not come."""
    a, b = map(bearer, two)
    adding = {"urls": [VIDEO], "request": "add-1"}
    assert a.post("/add_url", json=adding).json == b.post("/add_url", json=adding).json
    asked = "/get_url?worker=w1&instance=i1&request=r1&count=1"
    (lease,) = a.get(asked).json
    assert b.get(asked).json == [lease]
    pages = [{"number": 1, "cid": 7, "title": "one"}, {"number": 2, "cid": 8, "title": "two"}]
    expansion = {"url": VIDEO, "token": lease["token"], "title": "t", "pages": pages}
    expanded = a.post("/expand", json=expansion)
    assert expanded.status_code == 200 and b.post("/expand", json=expansion).json == expanded.json
    first = expanded.json["lease"]
    done = {"url": first["url"], "token": first["token"], "path": "a.mp4", "bytes": 5, "seconds": 1.0}
    assert a.post("/ack", json=done).json == b.post("/ack", json=done).json == {"state": "done"}
    (second,) = b.get("/get_url?worker=w1&instance=i1&request=r2&count=1").json
    failure = {"url": second["url"], "token": second["token"], "class": "transient", "code": "x", "reason": "y"}
    assert b.post("/nack", json=failure).json == a.post("/nack", json=failure).json == {"state": "delayed"}
    jobs = a.get("/status").json["jobs"]
    assert jobs == b.get("/status").json["jobs"] and (jobs["done"], jobs["delayed"]) == (1, 1)
    assert len(b.get("/success").json["items"]) == 1


def test_who_signed_in_at_one_server_is_known_at_each_and_after_a_restart(
    two: tuple[Flask, Flask], settings: Settings, connection: redis.Redis
) -> None:
    a, b = (app.test_client() for app in two)
    assert a.get("/").status_code == b.get("/").status_code == 401
    answer = a.post("/ui/sign-in", json={"password": TOKEN})
    cookies = SimpleCookie(answer.headers["Set-Cookie"])
    (name,) = cookies
    guarded = replace(settings, token=TOKEN)
    started_anew = create_app(guarded, Queue(connection, guarded)).test_client()
    changed = replace(settings, token="another-token-of-the-farm")
    with_another_token = create_app(changed, Queue(connection, changed)).test_client()
    for client in (b, started_anew, with_another_token):
        client.set_cookie(name, cookies[name].value)
    assert b.get("/").status_code == started_anew.get("/").status_code == 200
    assert with_another_token.get("/").status_code == 401


def test_who_changed_something_at_one_server_sees_it_at_the_other_at_once(
    two: tuple[Flask, Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEPT_SECONDS", "LONGEST_SECONDS"):
        monkeypatch.setattr(f"web.kept.{name}", 60.0)
    a, b = map(bearer, two)
    page = "/ui/jobs?fragment=1"
    assert VIDEO not in b.get(page).text  # kept by b, for a minute here
    answer = a.post("/add_url", json={"urls": [VIDEO]})
    cookies = SimpleCookie(answer.headers["Set-Cookie"])
    assert VIDEO not in b.get(page).text  # another browser sees it when that is over
    b.set_cookie(Changes.COOKIE, cookies[Changes.COOKIE].value)
    assert VIDEO in b.get(page).text


def test_a_change_is_heard_of_once_and_nonsense_never() -> None:
    here, there = Changes(), Changes()
    change = here.note()
    assert not here.is_news(change)
    assert there.is_news(change) and not there.is_news(change)
    assert not there.is_news("") and not there.is_news("../../etc/passwd")


def test_a_server_lives_while_its_engine_is_away(settings: Settings) -> None:
    away = redis.Redis(host="127.0.0.1", port=free_port(), retry=Retry(NoBackoff(), 0))
    client = create_app(replace(settings, token=TOKEN), Queue(away, settings)).test_client()
    assert client.get("/livez").status_code == 200  # without a token, as a supervisor asks
    assert client.get("/healthz").status_code == 503


# ------------------------------------------------------------------------------------------ behind a proxy

FROM_PROXY = {"REMOTE_ADDR": "10.0.0.5"}


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ((), "10.0.0.5", "203.0.113.7", "10.0.0.5"),
        (("10.0.0.0/8",), "10.0.0.5", "203.0.113.7", "203.0.113.7"),
        (("10.0.0.0/8",), "10.0.0.5", "198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first one was made up
        (("10.0.0.0/8",), "10.0.0.5", "198.51.100.1, 203.0.113.7, 10.1.1.1", "203.0.113.7"),  # two proxies
        (("10.0.0.0/8",), "10.0.0.5", "10.2.2.2, 10.1.1.1", "10.2.2.2"),  # a client inside
        (("10.0.0.0/8",), "10.0.0.5", "203.0.113.7, unknown", "10.0.0.5"),  # nobody knows whom the proxy saw
        (("10.0.0.0/8",), "10.0.0.5", "", "10.0.0.5"),
        (("10.0.0.5",), "::ffff:10.0.0.5", "2001:db8::7", "2001:db8::7"),
        (("10.0.0.5",), "10.0.0.6", "203.0.113.7", "10.0.0.6"),
        (("::1", "127.0.0.1"), "::1", "203.0.113.7", "203.0.113.7"),
    ],
)
def test_the_client_is_the_last_one_that_no_trusted_proxy_is(
    settings: Settings, connection: redis.Redis, trusted: tuple[str, ...], peer: str, forwarded: str, client: str
) -> None:
    settings = replace(settings, trusted_proxies=trusted)
    app = create_app(settings, Queue(connection, settings)).test_client()
    headers = {"X-Forwarded-For": forwarded}
    app.post("/add_url", json={"urls": [VIDEO]}, headers=headers, environ_base={"REMOTE_ADDR": peer})
    (action,) = app.get("/actions").json["items"]
    assert action["who"] == client


def test_wrong_tokens_are_counted_for_the_client_and_not_for_the_proxy(
    settings: Settings, connection: redis.Redis
) -> None:
    settings = replace(settings, token=TOKEN, trusted_proxies=("10.0.0.0/8",))
    app = create_app(settings, Queue(connection, settings)).test_client()

    def answer(number: int, client: str) -> int:
        headers = {"Authorization": f"Bearer wrong-{number}", "X-Forwarded-For": client}
        return app.get("/status", headers=headers, environ_base=FROM_PROXY).status_code

    assert [answer(number, "203.0.113.7") for number in range(11)] == [401] * 10 + [429]
    assert answer(99, "203.0.113.8") == 401


@pytest.mark.parametrize(("peer", "is_secure"), [("10.0.0.5", True), ("10.9.9.9", False)])
def test_only_a_trusted_proxy_can_say_that_the_browser_came_by_https(
    settings: Settings, connection: redis.Redis, peer: str, is_secure: bool
) -> None:
    settings = replace(settings, token=TOKEN, trusted_proxies=("10.0.0.5",))
    app = create_app(settings, Queue(connection, settings)).test_client()
    answer = app.post(
        "/ui/sign-in",
        json={"password": TOKEN},
        headers={"X-Forwarded-Proto": "https"},
        environ_base={"REMOTE_ADDR": peer},
    )
    assert ("Secure" in answer.headers["Set-Cookie"]) is is_secure


async def test_a_container_is_expanded_at_another_server_in_the_middle(
    two: tuple[Flask, Flask], queue_server: str, settings: Settings, queue: Queue
) -> None:
    """Of an expansion in several calls each may go to another server: the pages come out once, in their order."""
    queue.add([VIDEO], "other")
    dead = f"http://127.0.0.1:{free_port()}"
    settings = replace(settings, server_urls=(dead, queue_server))
    async with make_server_session(settings) as session:
        client = QueueClient(settings, session, "w1", "i1")
        (lease,) = (await client.lease(1)).leases
        expanded = await client.expand(lease, "t", [Page(number, number, "t") for number in range(1, 402)])
        assert expanded.added + expanded.known == 401 and expanded.lease is not None
    assert queue.counts().ready + queue.counts().leased == 401
