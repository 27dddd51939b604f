"""Attacks on a worker: by addresses that the site names, by whoever answers for DNS, and by a server that lies.

A canary is a server that must never be connected to. docs/security.md says what each test is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import socket
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import add_url
import queue_client
import site_walk
from config import MEDIA_SUFFIXES, Settings
from errors import ServerError
from log_setup import LineFormatter
from model import MIB, Failure, Lease, ListedPage, Page, Result
from queue_client import QueueClient, make_server_session
from status_table import show_status
from transfer import FAILURES, MediaClient, judge_failure, media_allowed
from transfer.peers import is_public
from transfer.range_client import NotAPeer, RangeClient

REAL = media_allowed(MEDIA_SUFFIXES, ())


class Canary:
    """Counts connections, and answers as it is told."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answer:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def canary(host: str = "127.0.0.1", port: int = 0, answer: bytes = b"") -> AsyncIterator[Canary]:
    one = Canary(answer)
    server = await asyncio.start_server(one.serve, host, port)
    one.port = server.sockets[0].getsockname()[1]
    async with server:
        yield one


def answer(status: str, *fields: str, body: bytes = b"") -> bytes:
    head = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


BODY = b"0123456789"
GOOD = answer("206 Partial Content", "Content-Range: bytes 0-9/10", body=BODY)
UNFRAMED = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/10\r\nConnection: close\r\n\r\n" + BODY


class Resolver:
    """Answers for all names, each time with the next addresses, the last ones again and again."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self._left = list(answers)
        self.asked = 0

    def answers(self, port: int) -> list[Any]:
        self.asked += 1
        addresses = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answer for DNS: ``resolve(("127.0.0.1",), ...)``."""

    def begin(*answers: tuple[str, ...]) -> Resolver:
        resolver = Resolver(*answers)

        async def getaddrinfo(host: str, port: int, **_how: Any) -> Any:
            return resolver.answers(port)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        return resolver

    return begin


async def fetched(client: MediaClient, url: str) -> bytes:
    content = bytearray()
    async with client.get(url, 0, 10) as reply:
        await reply.receive(lambda piece: content.extend(piece))
    return bytes(content)


async def refusal(client: MediaClient, url: str) -> str:
    """Return in words why a URL was not fetched."""
    with pytest.raises(FAILURES) as caught:
        await fetched(client, url)
    return judge_failure(caught.value).cause


@pytest.fixture
async def client() -> AsyncIterator[MediaClient]:
    async with MediaClient(Settings(), REAL, {}, connect_seconds=2.0) as client:
        yield client


# ------------------------------------------------------------------------------------------ whom a worker connects to


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "224.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("fc00:4000::1", "fc12::1", "fcff::1", "fdff::1", "::ffff:0:127.0.0.1", "::ffff:0:c0a8:101"),
        *("::ffff:127.0.0.1", "::ffff:a00:1", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::7f00:1"),
        *("2002:7f00:1::", "2002:c0a8:101::1", "2001:0:0:0:0:0:80ff:fffe"),
        *("", "localhost", "127.1", "2130706433", "0x7f000001", "a.bilivideo.com"),
    ],
)
def test_addresses_of_own_networks_are_told_in_every_spelling(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "116.63.10.1", "172.32.0.1", "172.15.0.1", "192.167.1.1", "100.128.0.1", "169.253.1.1"),
        *("240e:e1::1", "2408:8000::1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
        *("198.18.0.5", "198.19.255.1", "fc00::12"),  # by which a proxy of the whole machine answers
    ],
)
def test_addresses_of_mirrors_are_let_through(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_ipv4_in_ipv6_counts_as_what_is_inside(inner: Any) -> None:
    assert is_public(f"::ffff:{inner}") == is_public(f"64:ff9b::{inner}") == is_public(str(inner))


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("::1",), ("::ffff:127.0.0.1",), ("127.0.0.1", "10.1.2.3")])
async def test_a_name_of_the_site_that_leads_home_is_not_connected_to(
    addresses: tuple[str, ...], client: MediaClient, resolve: Any
) -> None:
    async with canary() as here, canary("::1", here.port) as here_too:
        resolve(addresses)
        assert "private" in await refusal(client, f"https://upos.bilivideo.com:{here.port}/1.m4s")
    assert here.connections == here_too.connections == 0


async def test_of_a_name_with_several_addresses_only_the_public_ones_are_tried(
    client: MediaClient, resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt is seen where it is made: nothing may leave this machine in a test."""
    tried: list[str] = []

    async def start(places: Any, **_how: Any) -> socket.socket:
        tried.extend(place[4][0] for place in places)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr("transfer.range_client.start_connection", start)
    resolve(("10.0.0.1", "8.8.8.8", "::1", "2001:4860:4860::8888"))
    await refusal(client, "https://upos.bilivideo.com/1.m4s")
    assert tried == ["8.8.8.8", "2001:4860:4860::8888"]


async def test_what_was_looked_at_is_what_is_connected_to_whatever_dns_says_next(resolve: Any) -> None:
    """127.0.0.1 plays what is public here: the canary, at 127.0.0.2, is what the name leads to a moment later."""
    resolver = resolve(("127.0.0.1",), ("127.0.0.2",))
    client = RangeClient(None, {}, may_be_at=lambda host, port, address: address == "127.0.0.1")  # type: ignore[arg-type]
    async with canary(answer=GOOD) as mirror, canary("127.0.0.2", mirror.port) as private:
        url = f"http://name.test:{mirror.port}/1"
        async with client.get(url, {}) as reply:
            assert reply.status == 206
        assert (resolver.asked, mirror.connections) == (1, 1)
        await client.close()
        client = RangeClient(None, {}, may_be_at=lambda host, port, address: address == "127.0.0.1")  # type: ignore[arg-type]
        with pytest.raises(NotAPeer):
            async with client.get(url, {}):
                pass
        await client.close()
    assert private.connections == 0


async def test_the_other_way_to_the_bytes_looks_as_well(monkeypatch: pytest.MonkeyPatch, resolve: Any) -> None:
    """A body without a length goes through aiohttp, which asks for the name again: now it leads to the canary."""
    looked: list[str] = []

    def may_be_at(self: Any, host: str, port: int, address: str) -> bool:
        looked.append(address)
        return address == "127.0.0.1"

    monkeypatch.setattr("transfer.mirrors.MediaHosts.may_be_at", may_be_at)
    async with (
        canary(answer=UNFRAMED) as mirror,
        canary("127.0.0.2", mirror.port) as private,
        MediaClient(Settings(), media_allowed((), ("name.test",)), {}) as client,
    ):
        resolve(("127.0.0.1",), ("127.0.0.2",))
        assert "private" in await refusal(client, f"http://name.test:{mirror.port}/1")
    assert looked == ["127.0.0.1", "127.0.0.2"]
    assert private.connections == 0


async def test_a_host_that_a_setting_names_may_be_at_home(resolve: Any) -> None:
    async with canary(answer=GOOD) as mirror:
        resolve(("127.0.0.1",))
        named = media_allowed(MEDIA_SUFFIXES, (f"cache.lan:{mirror.port}",))
        async with MediaClient(Settings(), named, {}) as client:
            assert await fetched(client, f"http://cache.lan:{mirror.port}/1") == BODY


@pytest.mark.parametrize(
    "location",
    [
        *(
            "http://127.0.0.1:{canary}/",
            "//127.0.0.1:{canary}/x",
            "http://[::1]:{canary}/",
            "http://localhost:{canary}/",
        ),
        *("http://2130706433:{canary}/", "http://0x7f000001:{canary}/", "http://127.1:{canary}/", "http://[::1"),
        *("http://named.test:{mirror}@127.0.0.1:{canary}/", "http://127.0.0.1:{canary}\\@named.test:{mirror}/"),
        *("https://upos.bilivideo.com:{canary}/", "https://a..bilivideo.com:{canary}/", "https://-.bilivideo.com\t/"),
        *("http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "redis://127.0.0.1:{canary}/", "gopher://x"),
        *("http://named.test:{mirror}:{canary}/", "http://named.test:99999/", "http://127.0.0.1%3A{canary}/", "/\x01"),
    ],
)
async def test_no_mirror_redirects_a_worker_into_its_own_network(location: str, resolve: Any) -> None:
    async with canary() as private, canary("::1", private.port) as private_too, canary() as mirror:
        resolve(("127.0.0.1",))
        mirror.answer = answer("302 Found", "Location: " + location.format(canary=private.port, mirror=mirror.port))
        named = media_allowed(MEDIA_SUFFIXES, (f"named.test:{mirror.port}",))
        async with MediaClient(Settings(), named, {}) as client:
            assert await refusal(client, f"http://named.test:{mirror.port}/1")
        assert len(mirror.asked) == 1
    assert private.connections == private_too.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:{canary}/1.m4s", "https://127.0.0.1:{canary}/", "https://[::1]:{canary}/"),
        *("https://bilivideo.com@127.0.0.1:{canary}/", "https://127.0.0.1:{canary}#.bilivideo.com/"),
        *("https://127.0.0.1:{canary}\\.bilivideo.com/", "https://127.0.0.1:{canary}/\r\nHost: bilivideo.com"),
        *(
            "https://evilbilivideo.com:{canary}/",
            "https://bilivideo.com.evil.test:{canary}/",
            "https://a..bilivideo.com/",
        ),
    ],
)
async def test_no_playinfo_makes_a_worker_ask_its_own_network(url: str, client: MediaClient, resolve: Any) -> None:
    async with canary() as private, canary("::1", private.port) as private_too:
        resolve(("127.0.0.1",))
        assert await refusal(client, url.format(canary=private.port))
    assert private.connections == private_too.connections == 0


async def test_a_mirror_cannot_promise_a_reply_for_ever() -> None:
    named = media_allowed((), ("127.0.0.1",))
    async with (
        canary(answer=b"HTTP/1.1 102 Processing\r\n\r\n" * 100_000) as mirror,
        MediaClient(Settings(), named, {}) as client,
        asyncio.timeout(20),
    ):
        assert "not HTTP" in await refusal(client, f"http://127.0.0.1:{mirror.port}/1")


async def test_a_password_in_a_setting_is_in_no_header_for_a_mirror() -> None:
    named = media_allowed((), ("127.0.0.1",))
    own = Settings(web_url="http://me:canary-password@127.0.0.1:1/site")
    async with canary(answer=GOOD) as mirror, MediaClient(own, named, {}) as client:
        assert await fetched(client, f"http://127.0.0.1:{mirror.port}/1") == BODY
    assert b"Referer: http://127.0.0.1:1/site/" in mirror.asked[0] and b"canary" not in mirror.asked[0]


# ------------------------------------------------------------------------------------------ a server that lies


LEASE = Lease("BV17x411w7KC?p=1&cid=7", "e.1.n", "other", 1, 60.0)
FIELDS = {"url": "BV17x411w7KC", "token": "e.1.n", "category": "other", "attempt": 1, "lease_seconds": 60.0}

VERBS: dict[str, Callable[[QueueClient], Awaitable[Any]]] = {
    "lease": lambda client: client.lease(4),
    "expand": lambda client: client.expand(LEASE, "t", [Page(1, 7, "t")]),
    "expand_source": lambda client: client.expand_source(LEASE, [], ListedPage(1), False),
    "heartbeat": lambda client: client.heartbeat([], {}),
    "replay": lambda client: client.replay([(LEASE.url, Result("a/b.mp4", 5, 1.5))]),
    "nack": lambda client: client.nack(LEASE, Failure("transient", "x", "y")),
    "counts": lambda client: client.counts(),
    "delayed": lambda client: client.delayed(),
}


class Liar:
    """A queue server that answers every request with the same bytes."""

    def __init__(self) -> None:
        self.content = b"null"
        self.fields: dict[str, str] = {}
        self.status = 200
        self.asked: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.asked.append({"path": request.path, **request.headers})
        return web.Response(body=self.content, headers=self.fields, status=self.status)


@pytest.fixture
async def liar() -> AsyncIterator[tuple[Liar, QueueClient]]:
    one = Liar()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = Settings(server_urls=(f"http://127.0.0.1:{runner.addresses[0][1]}",), token="canary-token")
    async with make_server_session(settings) as session:
        yield one, QueueClient(settings, session, "w1", "i1", draw=lambda: 0.0)
    await runner.cleanup()


NONSENSE: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, 10**400, "x", "", [], [[]], {}, [None], [{}], {"lost": "*"}, {"lost": ["../x"] * 300}),
    *({"items": "x"}, {"items": [{"url": ["x"], "state": {}}]}, {"jobs": dict.fromkeys("abc", 1)}, {"state": ["dead"]}),
    *({"added": -1, "known": 0}, {"added": "1", "known": 0}, {"added": 10**9, "known": 2**63}, {"recorded": 1.5}),
    {"added": 1, "known": 0, "lease": {**FIELDS, "url": "../../etc/passwd"}},
    {"added": 1, "known": 0, "lease": {**FIELDS, "category": "/etc"}},
    *({"lost": [], "heartbeat_seconds": value} for value in ("x", -1, 1e300, [], {})),
    *({"lost": [], "budget": value} for value in (1, [], {"parked_seconds": "x"}, {"parked_seconds": 1e99})),
    *({"lost": [], "control": value} for value in (1, [], {"slow_seconds": 1e99}, {"slow_seconds": "9"})),
    *([{**FIELDS, "walk": value}] for value in (1, "x", {"cursor": 5}, {"page": 10**9}, {"limit": -1}, {"since": "x"})),
    *(
        [{**FIELDS, "category": value}]
        for value in ("..", ".", "a/b", "a\\b", "C:", "x\0", "\x1b[2J", "", "a" * 200, 7)
    ),
    *(
        [{**FIELDS, "url": value}]
        for value in ("BV17x411w7KC?p=1&cid=-1", "BV17x411w7KC\n", "ep0", "$(id)", "-y", "x}{y")
    ),
    *([{**FIELDS, "url": url, "walk": {}}] for url in ("BV17x411w7KC", "ep5?cid=7", "cheese:ep5", "cheese:ep5?cid=7")),
    *([{**FIELDS, "lease_seconds": value}] for value in (0, 1e9, True, "60", None, [60])),
    [FIELDS] * 65,
    [FIELDS] * 5,
)


@pytest.mark.parametrize("verb", VERBS)
async def test_what_no_sane_server_says_is_refused_by_every_verb(verb: str, liar: tuple[Liar, QueueClient]) -> None:
    server, client = liar
    for content in NONSENSE:
        server.content = json.dumps(content).encode()
        try:
            answer = await VERBS[verb](client)
        except ServerError as error:
            assert len(str(error)) < 1000
        else:  # an answer of another verb, or of nothing at all
            assert verb == "lease" and content == [] and answer.leases == (), content


SHAPES = {
    name: getattr(queue_client, name)
    for name in ("_LEASES", "_EXPANDED", "_BEAT", "_REPLAYED", "_STATE", "_STATUS", "_FAILED")
}
WORDS = (
    "lost",
    "order",
    "id",
    "working",
    "budget",
    "control",
    "items",
    "next",
    "jobs",
    "added",
    "known",
    "lease",
    "walk",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted({*FIELDS, *WORDS})), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(verb=st.sampled_from(sorted(SHAPES)), content=JSON)
def test_whatever_is_answered_is_of_its_shape_or_refused(verb: str, content: Any) -> None:
    try:
        found = SHAPES[verb](content)
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(found, dict | list)


def bomb(size_bytes: int) -> bytes:
    """Return zeros in gzip, a thousandth of their size."""
    packer = zlib.compressobj(wbits=31)
    return b"".join([*(packer.compress(bytes(MIB)) for _part in range(size_bytes // MIB)), packer.flush()])


BOMB_BYTES = 64 * MIB


@pytest.mark.parametrize("times", [1, 2])
async def test_an_answer_that_unfolds_is_not_held(times: int, liar: tuple[Liar, QueueClient]) -> None:
    server, client = liar
    server.content, server.fields = bomb(BOMB_BYTES), {"Content-Encoding": "gzip"}
    for _again in range(1, times):
        server.content = gzip.compress(server.content)
        server.fields = {"Content-Encoding": ", ".join(["gzip"] * times)}
    tracemalloc.start()
    try:
        for verb in ("lease", "heartbeat", "counts"):
            with pytest.raises(ServerError):
                await VERBS[verb](client)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


async def test_an_answer_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a body, nor a head, nor a row of heads that say to wait, goes on for ever."""
    endless = {
        "body": (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
        "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
        "head": (b"HTTP/1.1 200 OK\r\n", b"X-More: y\r\n" * 1000),
        "line": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"y" * 65536),
    }
    for name, (first, more) in endless.items():
        sent = 0

        async def serve(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = first, more: bytes = more
        ) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
            with contextlib.suppress(ConnectionError):
                while True:
                    sent += len(more)
                    writer.write(more)
                    await writer.drain()
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        settings = Settings(server_urls=(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}",))
        async with make_server_session(settings) as session:
            with pytest.raises(ServerError):
                await QueueClient(settings, session, "w", "i", draw=lambda: 0.0).heartbeat([], {})
        listener.close()
        assert sent < 32 * MIB, name


@pytest.mark.parametrize("name", ["head", "body", "chunks"])
async def test_an_answer_that_comes_drop_by_drop_is_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drop comes long before the limit of requests, which is for one of them."""
    monkeypatch.setattr(site_walk, "ANSWER_SECONDS", 0.5)
    first, drop = {
        "head": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"y"),
        "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
        "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    }[name]

    ended, closed = asyncio.Event(), asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while not ended.is_set():
            writer.write(drop)
            await asyncio.sleep(0.05)
        writer.close()
        closed.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    with contextlib.closing(site_walk.new_session()) as session:
        with pytest.raises(requests.exceptions.Timeout) as told:
            await asyncio.wait_for(asyncio.to_thread(site_walk.answer_of, session, "GET", url, timeout=5), 5)
        assert "does not answer in time" in site_walk.problem(told.value, url)
    ended.set()
    await closed.wait()
    listener.close()


async def test_a_list_without_an_end_is_left(liar: tuple[Liar, QueueClient]) -> None:
    server, client = liar
    item = {"url": LEASE.url, "state": "delayed"}
    server.content = json.dumps({"items": [item], "next": "more"}).encode()
    assert len(await client.delayed()) == len(server.asked) == queue_client.DELAYED_CALLS


async def test_orders_name_nothing_but_keys_of_working_json(liar: tuple[Liar, QueueClient]) -> None:
    server, client = liar
    orders: tuple[Any, ...] = (
        *({"working": {name: "/etc"}} for name in ("download_dir", "BILI_DOWNLOAD_DIR", "exec", "__class__", "stop\n")),
        *({"working": {"count": value}} for value in (10**9, 0, -1, True, "1", 1.5, [1], {"x": 1})),
        *({"working": {"stop": value}} for value in (2, -1, "1", None)),
        *({"working": {"max_speed": value}} for value in ("rm -rf", "9" * 400, -1, [], float("inf"))),
        *({"working": value} for value in ([1], "stop", 7)),
        *({"login": value} for value in ("", "x" * 65, 7, {"url": "http://evil.test"})),
    )
    for order in orders:
        server.content = json.dumps({"lost": [], "order": {"id": "o1", **order}}).encode()
        found = (await client.heartbeat([], {})).order
        assert found is not None and found.problem and not found.working and not found.login, order
    for nameless in ({"id": ""}, {"id": 7, "working": {"stop": 0}}, {"working": {"stop": 0}}, [], "stop"):
        server.content = json.dumps({"lost": [], "order": nameless}).encode()
        assert (await client.heartbeat([], {})).order is None, nameless


async def test_what_a_server_says_of_itself_is_one_harmless_line(
    liar: tuple[Liar, QueueClient], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = liar
    hostile = "\x1b]0;owned\x07\x9b2J\nWARNING forged\u202e" + "x" * 100_000
    server.content = json.dumps({"error": hostile}, ensure_ascii=False).encode()
    for status in (400, 401, 409, 500):
        server.status = status
        with pytest.raises(ServerError) as told:
            await client.heartbeat([], {})
        assert len(str(told.value)) < 1000
        record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", (told.value,), None)
        assert LineFormatter().format(record).isprintable()


async def test_the_token_goes_to_the_server_alone(liar: tuple[Liar, QueueClient]) -> None:
    """Not where it redirects to, nor does a cookie of its come back."""
    server, client = liar
    async with canary(answer=answer("200 OK", body=b"{}")) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            server.status = status
            server.fields = {"Location": f"http://127.0.0.1:{elsewhere.port}/", "Set-Cookie": "track=1; Path=/"}
            for verb in VERBS.values():
                with pytest.raises(ServerError):
                    await verb(client)
    assert elsewhere.connections == 0
    assert {one["Authorization"] for one in server.asked} == {"Bearer canary-token"}
    assert not any("Cookie" in one for one in server.asked)


@pytest.mark.parametrize(
    "answer",
    [
        *({"items": [{}]}, {"items": [{"url": 7, "bytes": "y", "state": ["a"]}]}, {"items": [], "next": "\ud800"}),
        *({"items": [{"source": "x", "listed": 1}]}, {"jobs": {"ready": "x"}}, {"jobs": {"ready": 1}, "workers": 7}),
        {"items": [{"url": "BV17x411w7KC", "state": "done", "bytes": 10**400}]},
    ],
    ids=json.dumps,
)
def test_what_no_sane_server_lists_is_one_sentence_of_the_scripts(answer: Any, settings: Settings) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    own = replace(settings, server_urls=(f"http://127.0.0.1:{server.server_port}",), token="canary-token")
    try:
        sink = add_url.ServerSink(own)
        with contextlib.suppress(ServerError), add_url.believed(sink):
            add_url.find(sink, own, "BV17x411w7KC", False)
        with contextlib.suppress(ServerError), add_url.believed(sink):
            add_url.list_sources(sink, False)
        with contextlib.suppress(ServerError):
            show_status(own, as_json=False)
        sink.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_neither_do_the_scripts_take_it_elsewhere(settings: Settings) -> None:
    """add_url.py and the status table ask with requests."""
    seen: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        own = replace(settings, server_urls=(f"http://127.0.0.1:{server.server_port}",), token="canary-token")
        with pytest.raises(ServerError):
            show_status(own, as_json=False)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen == ["/status"]
