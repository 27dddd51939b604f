"""Attacks on a worker: by addresses that the site names, by whoever answers for DNS, and by a server that lies.

A canary is a server that must never be connected to. docs/security.md says what each test is for.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import MEDIA_SUFFIXES, Settings
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
