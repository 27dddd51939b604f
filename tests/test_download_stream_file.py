from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

import download_stream_file
import part_file
from config import Settings
from download_stream_file import (
    Asked,
    Cooldown,
    Meaning,
    Mirrors,
    Pace,
    Patience,
    StreamFile,
    Surroundings,
    Verdict,
    Wire,
    download_stream,
    is_pcdn,
    judge,
    judge_failure,
    make_media_session,
    media_allowed,
    parse_retry_after,
)
from errors import DiskFull, NoWayOut, PermanentError, TransferError, UsageError
from model import CHUNK_BYTES, KIB, MIB, StreamProgress, StreamSource
from part_file import Identity, PartFile, discard_old_parts, discard_parts, plan_chunks, unfinished_jobs
from tests import range_server as server_side
from tests.range_server import BLOCK_BYTES, Faults, RangeServer, mirrors

CONTENT = random.Random(20).randbytes(2 * CHUNK_BYTES + 1)
SMALL = CONTENT[:300_001]
QUICK = Patience(
    connect_seconds=2,
    stall_seconds=0.3,
    slow_window_seconds=0.1,
    backoff_seconds=0.005,
    backoff_cap_seconds=0.02,
    longest_wait_seconds=1,
)
REAL_SURROUNDINGS = Surroundings()
LOOPBACK = media_allowed((), ("127.0.0.1",))
TESTS = Path(__file__).parent


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


@dataclass
class Rig:
    """A worker's end: its wire, and a folder; ``told`` is its progress, ``refreshed`` counts requests for URLs."""

    wire: Wire
    folder: Path
    told: list[StreamProgress] = field(default_factory=list)
    refreshed: int = 0
    fresh: Callable[[], StreamSource] | None = None
    report: Callable[[StreamProgress], None] | None = None

    async def refresh(self) -> StreamSource:
        self.refreshed += 1
        assert self.fresh is not None, "nobody should have asked for new URLs"
        await asyncio.sleep(0.01)  # the site takes its time, too
        return self.fresh()

    def start(self, source: StreamSource) -> Awaitable[StreamFile]:
        return download_stream(self.wire, source, self.folder, self.refresh, self.report or self.told.append)

    async def content(self, source: StreamSource) -> bytes:
        """Download, delete, and return what it was."""
        file = await self.start(source)
        content = file.path.read_bytes()
        assert file.size_bytes == len(content)
        file.discard()
        assert list(self.folder.iterdir()) == []
        return content

    async def failure(self, source: StreamSource) -> TransferError:
        """Fail to download, with nothing new to be had by asking for URLs, and return the error."""
        self.fresh = self.fresh or (lambda: source)
        with pytest.raises(TransferError) as caught:
            await self.start(source)
        assert "upsig" not in str(caught.value)
        return caught.value


@asynccontextmanager
async def a_rig(
    folder: Path,
    *,
    patience: Patience = QUICK,
    surroundings: Surroundings = REAL_SURROUNDINGS,
    connections: int = 16,
    allowed: Callable[[str], bool] = LOOPBACK,
) -> AsyncIterator[Rig]:
    running = asyncio.Event()
    running.set()
    async with make_media_session(Settings(), {}, patience) as session:
        yield Rig(Wire(session, connections, allowed, running, patience, surroundings), folder)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path / "parts") as rig:
        yield rig


def source_of(*servers: RangeServer, name: str = "v80-7", size_bytes: int | None = None) -> StreamSource:
    urls = tuple(server.url for server in servers)
    return StreamSource("BV1xx411c7mD?cid=5", 5, name, urls, size_bytes)


def asked_bytes(server: RangeServer) -> int:
    return sum(stop - start for start, stop in server.ranges)


def equal_bytes(left: bytes, right: bytes) -> int:
    """Return how long the common beginning is, by halving: the rest of a file is zeros."""
    low, high = 0, len(left)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low


# ------------------------------------------------------------------------------------------ pure


@given(st.integers(0, 5 * CHUNK_BYTES))
def test_chunks_cover_a_stream_without_gap_or_overlap(size: int) -> None:
    plan = plan_chunks(size)
    assert [chunk.index for chunk in plan] == list(range(len(plan)))
    assert [chunk.start for chunk in plan] == [0, *(chunk.stop for chunk in plan)][: len(plan)]
    assert (plan[-1].stop if plan else 0) == size
    assert all(0 < chunk.size_bytes <= CHUNK_BYTES for chunk in plan)


@pytest.mark.parametrize(
    ("status", "headers", "asked", "meaning"),
    [
        (206, {"Content-Range": "bytes 10-19/100"}, Asked(10, 20), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "10"}, Asked(10, 20, 100), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "9"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 90-99/100"}, Asked(90, 120), Meaning.RANGE),
        (206, {"Content-Range": "bytes 90-98/100"}, Asked(90, 120), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-18/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-20/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 11-20/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 9-19/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-19/101"}, Asked(10, 20, 100), Meaning.CHANGED),
        (206, {"Content-Range": "bytes 10-19/*"}, Asked(10, 20, 100), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-15/*"}, Asked(10, 20), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-25/*"}, Asked(10, 20), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-15/*"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes */100"}, Asked(10, 20), Meaning.WRONG),
        (206, {}, Asked(10, 20), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/10", "Content-Type": "text/html"}, Asked(0, 10), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/10", "Content-Encoding": "gzip"}, Asked(0, 10), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/10", "Content-Encoding": "identity"}, Asked(0, 10), Meaning.RANGE),
        (206, {"Content-Type": "multipart/byteranges; boundary=x"}, Asked(0, 10), Meaning.WRONG),
        (200, {"Content-Length": "100"}, Asked(0, 10, whole_is_fine=True), Meaning.WHOLE),
        (200, {"Content-Length": "100"}, Asked(0, 10, 99, whole_is_fine=True), Meaning.CHANGED),
        (200, {"Transfer-Encoding": "chunked"}, Asked(0, 10, 99, whole_is_fine=True), Meaning.WHOLE),
        (200, {"Content-Length": "100"}, Asked(0, 10), Meaning.RANGELESS),
        (200, {"Content-Type": "application/json"}, Asked(0, 10, whole_is_fine=True), Meaning.WRONG),
        (416, {"Content-Range": "bytes */0"}, Asked(0, 10), Meaning.END),
        (416, {"Content-Range": "bytes */10"}, Asked(10, 20), Meaning.END),
        (416, {}, Asked(10, 20), Meaning.END),
        (416, {}, Asked(0, 20), Meaning.WRONG),
        (416, {}, Asked(10, 20, 30), Meaning.WRONG),
        (416, {"Content-Range": "bytes */30"}, Asked(10, 20, 30), Meaning.WRONG),
        (416, {"Content-Range": "bytes */9"}, Asked(10, 20, 30), Meaning.CHANGED),
        (416, {"Content-Range": "bytes */9"}, Asked(10, 20), Meaning.CHANGED),
        (403, {}, Asked(0, 10), Meaning.DEAD),
        (404, {}, Asked(0, 10), Meaning.DEAD),
        (410, {}, Asked(0, 10), Meaning.DEAD),
        (429, {"Retry-After": "7"}, Asked(0, 10), Meaning.BROKEN),
        (502, {}, Asked(0, 10), Meaning.BROKEN),
        (204, {}, Asked(0, 10), Meaning.WRONG),
    ],
)
def test_a_reply_counts_only_if_it_is_what_was_asked_for(
    status: int, headers: dict[str, str], asked: Asked, meaning: Meaning
) -> None:
    assert judge(status, CIMultiDict(headers), asked).meaning is meaning


@given(
    st.sampled_from([200, 206, 403, 416, 503]),
    st.text("bytes 0123456789-*/", max_size=30),
    st.one_of(st.none(), st.integers(0, 10**12)),
)
def test_no_header_breaks_the_judge(status: int, content_range: str, total: int | None) -> None:
    verdict = judge(status, CIMultiDict({"Content-Range": content_range}), Asked(5, 10, total))
    if verdict.meaning is Meaning.RANGE:
        assert verdict.stop is not None
        assert 5 < verdict.stop <= 10


def test_retry_after_is_seconds_or_a_date() -> None:
    assert parse_retry_after("120", 0) == 120
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT", 946684798) == 1
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT", 1946684798) == 0
    assert parse_retry_after("soon", 0) == parse_retry_after("", 0) == 0
    assert parse_retry_after("9" * 400, 0) == 86400
    assert judge(503, CIMultiDict({"Retry-After": "7"}), Asked(0, 1)).retry_after_seconds == 7


REAL = media_allowed(("bilivideo.com", "szbdyd.com"), ("127.0.0.1:8000", "media.test", "[::1]:9"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://upos-sz-mirrorcos.bilivideo.com/a.m4s?x=1", True),
        ("https://bilivideo.com/a", True),
        ("https://BILIVIDEO.com./a", True),
        ("https://x.szbdyd.com:4480/a", True),
        ("http://upos.bilivideo.com/a", False),
        ("https://evilbilivideo.com/a", False),
        ("https://bilivideo.com.evil.test/a", False),
        ("https://bilivideo.com@evil.test/a", False),
        ("https://user:pass@bilivideo.com/a", False),
        ("https://evil.test\\@bilivideo.com/a", False),
        ("https://evil.test /bilivideo.com", False),
        ("http://127.0.0.1:8000/a", True),
        ("http://127.0.0.1:6379/a", False),
        ("https://127.0.0.1/a", False),
        ("https://10.0.0.1/a", False),
        ("https://[::1]/a", False),
        ("http://[::1]:9/a", True),
        ("https://169.254.169.254/latest", False),
        ("https://2130706433/a", False),
        ("http://media.test/a", True),
        ("http://a.media.test:81/a", True),
        ("ftp://media.test/a", False),
        ("file:///etc/passwd", False),
        ("https://[bilivideo.com/a", False),
        ("https://bilivideo.com:99999/a", False),
        ("", False),
    ],
)
def test_media_come_only_from_known_hosts(url: str, expected: bool) -> None:
    assert REAL(url) is expected


def test_an_extra_suffix_never_means_an_ip_address() -> None:
    allowed = media_allowed(("0.0.1",), ("0.0.1",))
    assert not allowed("https://127.0.0.1/a")
    assert media_allowed((), ("127.0.0.1",))("http://127.0.0.1:1234/a")


def test_pcdn_hosts_are_told_from_mirrors() -> None:
    assert is_pcdn("https://xy1x2x3x4xy.mcdn.bilivideo.cn:4483/upgcxcode/1")
    assert is_pcdn("https://a.szbdyd.com/1")
    assert is_pcdn("https://b.mountaintoys.cn/1")
    assert is_pcdn("https://upos.bilivideo.com:8082/1")
    assert not is_pcdn("https://upos-sz-mirrorcos.bilivideo.com/1")
    assert not is_pcdn("https://upos-hz-mirrorakam.akamaized.net:443/1")


def test_pace_tells_a_trickle_at_the_end_of_a_window() -> None:
    pace = Pace(Patience(slow_bytes_per_second=100, slow_window_seconds=10), 0)
    assert not pace.is_too_slow(1, 9.9)
    assert pace.is_too_slow(998, 10)
    assert not pace.is_too_slow(1000, 20)
    assert pace.is_too_slow(1, 39)


def test_failures_side_by_side_count_once_and_the_wait_grows() -> None:
    cooldown = Cooldown()
    assert cooldown.fail(began=0, now=1, wait_seconds=float)
    assert not cooldown.fail(began=0.5, now=1.5, wait_seconds=float)
    assert (cooldown.failures, cooldown.until) == (1, 2)
    assert cooldown.fail(began=2, now=3, wait_seconds=float)
    assert (cooldown.failures, cooldown.until) == (2, 5)


async def test_the_order_of_mirrors() -> None:
    surroundings = Surroundings(draw=lambda: 1.0)
    wire = Wire(None, 1, bool, asyncio.Event(), Patience(), surroundings)  # type: ignore[arg-type]
    urls = ["https://x.mcdn.bilivideo.cn:4483/", "https://a.bilivideo.com/", "https://b.bilivideo.com/"]
    group = Mirrors(wire, [*urls, urls[1]])
    pcdn, a, b = group.all
    assert group.pick(0) is a
    a.active = 1
    assert group.pick(0) is b
    group.failed(b, judge(502, CIMultiDict(), Asked(0, 1)), began=0, now=0)
    assert group.pick(0.1) is a
    assert group.pick(0.6) is a  # b is cool again, but has failed
    group.failed(a, judge(403, CIMultiDict(), Asked(0, 1)), began=0, now=0)
    assert group.pick(0.1) is pcdn  # only while no mirror is ready
    assert group.pick(0.6) is b
    other = Mirrors(wire, ["https://b.bilivideo.com/other-stream"])
    assert other.pick(0.1) is None, "a host that fails is left alone by all streams"
    assert other.wait_seconds(0.1) == pytest.approx(0.4)
    other.worked(other.all[0])
    group.failed(b, judge(503, CIMultiDict(), Asked(0, 1)), began=1, now=1)
    assert other.pick(1.1) is not None, "but what has served a stream is not left for another file's failures"


def test_the_causes_of_failures_hold_no_address() -> None:
    secret = "http://h.test/?upsig=secret"
    request = aiohttp.RequestInfo(aiohttp.client.URL(secret), "GET", CIMultiDict(), aiohttp.client.URL(secret))  # type: ignore[arg-type, attr-defined]
    errors: list[BaseException] = [
        aiohttp.ClientResponseError(request, (), status=400, message=secret),
        aiohttp.InvalidURL(secret),
        aiohttp.ServerDisconnectedError(secret),
        aiohttp.ClientOSError(104, secret),
        aiohttp.ClientPayloadError(secret),
        TimeoutError(secret),
    ]
    for error in errors:
        assert "secret" not in judge_failure(error).cause


# ------------------------------------------------------------------------------------------ sizes


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES - 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(unknown_total=True),
        Faults(ignores_ranges=True),
        Faults(ignores_ranges=True, framing="chunked"),
        Faults(ignores_ranges=True, framing="close"),
        Faults(framing="close"),
    ],
    ids=["206", "206 of *", "200", "200 chunked", "200 close", "206 close"],
)
async def test_every_size_arrives_bit_for_bit(rig: Rig, size: int, faults: Faults) -> None:
    async with mirrors(CONTENT[:size]) as [a]:
        a.faults = faults
        if size == 0 and faults.unknown_total:
            assert "416" in str(await rig.failure(source_of(a)))  # nobody said that it is empty
            return
        assert await rig.content(source_of(a)) == a.content
        asked = [one for one in a.ranges if one[0] < size]
        assert len(asked) == (1 if faults.ignores_ranges else -(-size // CHUNK_BYTES) or 0) or size == 0


async def test_the_first_request_is_for_the_first_chunk_and_there_is_none_for_the_size(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        assert await rig.content(source_of(a)) == CONTENT
        assert a.ranges[0] == (0, CHUNK_BYTES)
        assert sorted(a.ranges) == [(0, CHUNK_BYTES), (CHUNK_BYTES, 2 * CHUNK_BYTES), (2 * CHUNK_BYTES, len(CONTENT))]
        assert rig.told[-1] == StreamProgress("v80-7", len(CONTENT), len(CONTENT), a.host)
        assert [one.done_bytes for one in rig.told] == sorted(one.done_bytes for one in rig.told)


async def test_mirrors_share_the_work_within_the_budget(tmp_path: Path) -> None:
    async with mirrors(CONTENT, 2) as [a, b], a_rig(tmp_path, connections=2) as rig:
        for server in (a, b):
            server.gate.clear()
        download = asyncio.ensure_future(rig.content(source_of(a, b)))
        await until(lambda: a.open_replies + b.open_replies == 2)
        for server in (a, b):
            server.gate.set()
        assert await download == CONTENT
        assert a.asked
        assert b.asked
        assert a.most_open_replies + b.most_open_replies == 2


async def test_a_size_announced_wrongly_is_only_a_wish(rig: Rig) -> None:
    async with mirrors(SMALL, 2) as [a, b]:
        a.content = SMALL[:-1]  # this mirror has something else
        assert await rig.content(source_of(a, b, size_bytes=len(SMALL))) == SMALL
        b.content = a.content
        assert await rig.content(source_of(a, b, size_bytes=len(SMALL))) == SMALL[:-1]


async def test_a_mirror_that_changes_its_size_again_and_again_is_given_up(rig: Rig) -> None:
    class Fickle(RangeServer):
        def _faults_for(self, path: str) -> Faults:
            return Faults(total=len(self.content) + len(self.asked))

    async with mirrors(CONTENT) as [a]:
        a.__class__ = Fickle
        with pytest.raises(TransferError, match="again and again"):
            await rig.start(source_of(a))
        assert len(a.asked) < 50


async def test_a_body_that_ends_with_its_connection_is_no_stream_where_a_longer_one_was_announced(rig: Rig) -> None:
    async with mirrors(SMALL, 2) as [cut, good]:
        cut.faults = Faults(ignores_ranges=True, framing="close", cut_after=100_000)
        assert await rig.content(source_of(cut, good, size_bytes=len(SMALL))) == SMALL
        assert cut.asked and good.asked


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    "faults",
    [
        Faults(cut_after=100_000),
        Faults(reset_after=100_000),
        Faults(stall_after=100_000),
        Faults(stall_after=0),
        Faults(cut_after=100_000, framing="close"),
        Faults(cut_after=100_000, framing="chunked"),
        Faults(bytes_per_tick=10),
        Faults(shift=1),
        Faults(total=len(SMALL) + 1),
        Faults(body=b"<html>" + bytes(94), headers={"Content-Type": "text/html"}, replaces=("Content-Type",)),
        Faults(body=b"<html>not what was asked</html>"),
        Faults(headers={"Content-Encoding": "gzip"}),
        Faults(headers={"Content-Range": "nonsense"}, replaces=("Content-Range",)),
        Faults(framing="close", body=SMALL + b"more"),
        Faults(status=403),
        Faults(status=404),
        Faults(status=500),
        Faults(status=503, headers={"Retry-After": "3600"}),
        Faults(status=302, headers={"Location": "/again"}),
        Faults(status=302),
        Faults(headers={"Junk": "x" * 10_000}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("first_is_bad", [True, False])
async def test_a_bad_mirror_does_no_harm(rig: Rig, faults: Faults, first_is_bad: bool) -> None:
    async with mirrors(SMALL, 2) as [bad, good]:
        bad.faults = faults
        # A total that disagrees is proved wrong by another mirror only where one was asked before.
        size = len(SMALL) if faults.total else None
        order = (bad, good) if first_is_bad else (good, bad)
        assert await rig.content(source_of(*order, size_bytes=size)) == SMALL
        if first_is_bad:
            assert bad.asked
            assert good.asked
            last_byte = faults.cut_after or faults.stall_after
            assert last_byte is None or good.ranges[0][0] == last_byte


async def test_a_refused_connection_and_an_unknown_name_are_left(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        urls = ("http://127.0.0.1:9/x?upsig=1", a.url)
        assert await rig.content(replace(source_of(a), urls=urls)) == SMALL
        error = await rig.failure(replace(source_of(a), urls=urls[:1]))
        assert "127.0.0.1:9: " in str(error)


async def test_cut_again_and_again_it_goes_on_from_the_last_byte(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        a.faults = Faults(cut_after=30_000)
        assert await rig.content(source_of(a)) == SMALL
        assert [start for start, _stop in a.ranges] == list(range(0, len(SMALL), 30_000))
        assert a.sent_bytes == len(SMALL)


@pytest.mark.parametrize("faults", [Faults(cut_after=0), Faults(stall_after=0), Faults(status=500)], ids=repr)
async def test_without_any_byte_it_gives_up(tmp_path: Path, faults: Faults) -> None:
    patience = replace(QUICK, stall_seconds=0.05, fruitless_rounds=3)
    async with mirrors(SMALL, 2) as [a, b], a_rig(tmp_path, patience=patience) as rig:
        a.faults = b.faults = faults
        error = await rig.failure(source_of(a, b))
        assert a.host in str(error)
        assert error.kind == "transient"
        # aiohttp repeats a request once by itself if a kept connection was closed
        assert 3 <= len(a.asked) <= 6
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [{}, {"stall_after": 3}, {"cut_after": 1}], ids=repr)
async def test_mirrors_that_only_trickle_are_given_up(tmp_path: Path, stop: dict[str, int]) -> None:
    # Each byte takes a while, also the one before a cut.
    trickle = Faults(bytes_per_tick=1, tick_seconds=0.02, **stop)  # type: ignore[arg-type]
    patience = replace(QUICK, slow_bytes_per_second=64 * KIB)
    async with asyncio.timeout(30), mirrors(CONTENT, 3) as servers, a_rig(tmp_path, patience=patience) as rig:
        for server in servers:
            server.faults = trickle
        error = await rig.failure(source_of(*servers))
        assert "too slow" in str(error) or stop
        assert all(len(server.asked) >= patience.fruitless_rounds for server in servers)


async def test_beside_mirrors_that_trickle_a_good_one_finishes(tmp_path: Path) -> None:
    async with mirrors(CONTENT, 3) as [a, b, good], a_rig(tmp_path) as rig:
        a.faults = b.faults = Faults(bytes_per_tick=1)
        assert await rig.content(source_of(a, b, good)) == CONTENT
        assert a.asked
        assert len(a.asked) + len(b.asked) < 12


async def test_a_slow_line_is_no_reason_to_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock runs as if the line had 50 KB/s, too little for each of eight connections."""
    for module in (download_stream_file, part_file):
        monkeypatch.setattr(module, "CHUNK_BYTES", MIB // 2)
    content = CONTENT[: 4 * MIB]

    told: list[StreamProgress] = []

    def clock() -> float:
        return time.monotonic() + (told[-1].done_bytes / 50_000 if told else 0)

    patience = replace(QUICK, slow_window_seconds=Patience().slow_window_seconds)
    async with mirrors(content, 2) as servers, a_rig(tmp_path, patience=patience) as rig:
        rig.wire.surroundings, rig.report = Surroundings(clock=clock), told.append
        for server in servers:
            server.faults = Faults(bytes_per_tick=4 * KIB, tick_seconds=0.001)
        assert await rig.content(source_of(*servers)) == content
        assert sum(len(server.asked) for server in servers) > 8, "no connection was found too slow"


def test_a_slow_mirror_need_not_cool_down_for_long() -> None:
    surroundings = Surroundings(draw=lambda: 1.0)
    wire = Wire(None, 1, bool, asyncio.Event(), Patience(), surroundings)  # type: ignore[arg-type]
    [mirror] = (group := Mirrors(wire, ["https://a.bilivideo.com/"])).all
    for now in range(Patience().fruitless_rounds):
        assert not group.are_hopeless()
        group.failed(mirror, Verdict(Meaning.BROKEN, slow=True), began=now, now=now)
        assert mirror.ready_at == now + Patience().backoff_seconds
    assert group.are_hopeless()
    group.gained()
    assert not group.are_hopeless()


def test_the_longest_unused_hosts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_stream_file, "MOST_HOSTS", 3)
    wire = Wire(None, 1, bool, asyncio.Event(), Patience(), Surroundings(clock=lambda: 5))  # type: ignore[arg-type]
    wire.cooldown("cools").until = 6
    kept = wire.cooldown("again")
    for host in ("b", "again", "c"):
        wire.cooldown(host)
    assert list(wire.hosts) == ["cools", "again", "c"]
    assert wire.cooldown("again") is kept


async def test_a_mirror_that_allows_few_connections_is_no_reason_to_give_up(tmp_path: Path) -> None:
    class Narrow(RangeServer):
        def _faults_for(self, path: str) -> Faults:
            slowly = Faults(bytes_per_tick=BLOCK_BYTES, tick_seconds=0.002)
            return slowly if self.open_replies < 1 else Faults(status=503)

    patience = replace(QUICK, fruitless_rounds=8, stall_seconds=5)  # a busy machine may be refused more than once
    async with mirrors(CONTENT) as [a], a_rig(tmp_path, patience=patience) as rig:
        a.__class__ = Narrow
        assert await rig.content(source_of(a)) == CONTENT
        assert len(a.asked) > 5


async def test_a_broken_mirror_is_asked_less_and_less_while_another_works(tmp_path: Path) -> None:
    patience = replace(QUICK, backoff_seconds=0.02, backoff_cap_seconds=60)
    async with mirrors(CONTENT, 2) as [a, b], a_rig(tmp_path, patience=patience) as rig:
        rig.wire.surroundings = Surroundings(draw=lambda: 1.0)
        a.faults = Faults(status=500)
        b.faults = Faults(cut_after=100_000)  # gives rise to many requests
        assert await rig.content(source_of(a, b)) == CONTENT
        assert len(b.asked) > 200
        assert len(a.asked) < 15


async def test_a_long_retry_after_goes_back_to_the_queue(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        a.faults = Faults(status=429, headers={"Retry-After": "3600"})
        error = await rig.failure(source_of(a))
        assert error.retry_after_seconds == pytest.approx(3600, abs=5)
        assert len(a.asked) == 1


async def test_a_short_retry_after_is_waited_for(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        a.faults = Faults(status=503, headers={"Retry-After": "1"}, first=1)
        began = time.monotonic()
        assert await rig.content(source_of(a)) == SMALL
        assert time.monotonic() - began >= 1


async def test_a_range_in_the_middle_is_never_taken_from_a_whole_reply(rig: Rig) -> None:
    async with mirrors(CONTENT, 2) as [good, rangeless]:
        rangeless.faults = Faults(ignores_ranges=True)
        assert await rig.content(source_of(good, rangeless)) == CONTENT


async def test_where_no_mirror_has_ranges_a_cut_means_a_new_beginning(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        a.faults = Faults(ignores_ranges=True, cut_after=CHUNK_BYTES + 5)
        rig.fresh = lambda: source_of(a)
        download = asyncio.ensure_future(rig.content(source_of(a)))
        await until(lambda: rig.refreshed == 2)
        a.faults = Faults(ignores_ranges=True)
        assert await download == CONTENT


async def test_a_whole_reply_is_not_mixed_with_chunks_under_way(tmp_path: Path) -> None:
    class TwoMinded(RangeServer):
        async def _reply(self, asked: server_side.Asked, faults: Faults, writer: asyncio.StreamWriter) -> bool:
            if len(self.asked) == 1:
                faults = Faults(cut_after=0)  # proves the size, so that others begin
            elif asked.headers["range"].startswith("bytes=0-"):
                faults = Faults(ignores_ranges=True)
            elif len(self.asked) <= 3:
                faults = Faults(stall_after=0)  # so the other chunk is taken, but nothing of it is there
            return await super()._reply(asked, faults, writer)

    patience = replace(QUICK, streams_connections=2)
    async with mirrors(CONTENT) as [a], a_rig(tmp_path, patience=patience) as rig:
        a.__class__ = TwoMinded
        rig.fresh = lambda: source_of(a)
        assert await rig.content(source_of(a)) == CONTENT


async def test_random_faults_of_all_kinds(tmp_path: Path) -> None:
    size = 3 * KIB * 100
    faults = [
        Faults(),
        Faults(cut_after=50_000),
        Faults(reset_after=1000),
        Faults(status=502),
        Faults(unknown_total=True),
        Faults(framing="close"),
        Faults(framing="chunked", cut_after=70_000),
        Faults(cut_after=0),
    ]

    class Moody(RangeServer):
        def _faults_for(self, path: str) -> Faults:
            return self.chance.choice(faults)  # type: ignore[attr-defined, no-any-return]

    async with mirrors(SMALL[:size], 3) as servers:
        for seed in range(30):
            for n, server in enumerate(servers):
                server.__class__ = Moody
                server.chance = random.Random(seed * 3 + n)  # type: ignore[attr-defined]
            async with a_rig(tmp_path / str(seed)) as rig:
                assert await rig.content(source_of(*servers)) == SMALL[:size], f"seed {seed}"


# ------------------------------------------------------------------------------------------ URLs that die


async def test_one_dead_url_needs_no_new_ones(rig: Rig) -> None:
    async with mirrors(CONTENT, 2) as [a, b]:
        a.faults = Faults(status=403)
        assert await rig.content(source_of(a, b)) == CONTENT
        assert len(a.asked) == 1
        assert rig.refreshed == 0


async def test_when_all_urls_are_dead_new_ones_are_asked_for_once(rig: Rig) -> None:
    async with mirrors(CONTENT, 2) as [a, b]:
        a.faults, b.faults = (Faults(status=403, paths=("/old",)) for _ in "ab")
        old = replace(source_of(a), urls=(a.at("/old"), b.at("/old")))
        rig.fresh = lambda: replace(old, urls=(a.at("/new"), b.at("/new")))
        assert await rig.content(old) == CONTENT
        assert rig.refreshed == 1


async def test_urls_that_die_in_the_middle_cost_no_byte(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        a.faults = Faults(cut_after=3 * MIB)
        old = replace(source_of(a), urls=(a.at("/old"),))
        rig.fresh = lambda: replace(old, urls=(a.at("/new"),))
        download = asyncio.ensure_future(rig.content(old))
        await until(lambda: len(a.asked) >= 1)
        a.faults = Faults(status=403, paths=("/old",))
        assert await download == CONTENT
        assert a.sent_bytes == len(CONTENT)
        assert rig.refreshed == 1


async def test_workers_that_lose_their_urls_together_ask_once(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        a.faults = Faults(cut_after=5 * MIB)
        old = replace(source_of(a), urls=(a.at("/old"),))
        rig.fresh = lambda: replace(old, urls=(a.at("/new"),))

        def report(progress: StreamProgress) -> None:
            if progress.done_bytes > 2 * MIB:
                a.faults = Faults(status=403, paths=("/old",))

        rig.report = report
        assert await rig.content(old) == CONTENT
        assert rig.refreshed == 1


async def test_new_urls_are_asked_for_twice_without_progress_then_the_job_goes_back(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        a.faults = Faults(status=403)
        rig.fresh = lambda: source_of(a)
        error = await rig.failure(source_of(a))
        assert rig.refreshed == 2
        assert "403" in str(error)


async def test_a_finished_chunk_allows_new_urls_again(tmp_path: Path) -> None:
    async with (
        mirrors(CONTENT) as [a],
        a_rig(tmp_path, patience=replace(QUICK, streams_connections=1, refreshes=1)) as rig,
    ):
        rig.fresh = lambda: replace(source_of(a), urls=(a.at(f"/{rig.refreshed}"),))

        class Dying(RangeServer):
            def _faults_for(self, path: str) -> Faults:
                return Faults(status=403) if any(asked.path == path for asked in self.asked) else Faults()

        a.__class__ = Dying
        assert await rig.content(replace(source_of(a), urls=(a.at("/0"),))) == CONTENT
        assert rig.refreshed == 2


async def test_an_expired_deadline_asks_for_new_urls_before_the_request(tmp_path: Path) -> None:
    surroundings = Surroundings(wall_clock=lambda: 1000.0)
    async with mirrors(SMALL) as [a], a_rig(tmp_path, surroundings=surroundings) as rig:
        old = replace(source_of(a), urls=(a.at("/old"),), deadline=1000)
        rig.fresh = lambda: replace(old, urls=(a.at("/new"),), deadline=8200)
        assert await rig.content(old) == SMALL
        assert rig.refreshed == 1
        assert {asked.path for asked in a.asked} == {"/new"}


async def test_a_wrong_clock_does_not_ask_for_new_urls_again_and_again(tmp_path: Path) -> None:
    surroundings = Surroundings(wall_clock=lambda: 9e9)
    async with mirrors(CONTENT) as [a], a_rig(tmp_path, surroundings=surroundings) as rig:
        old = replace(source_of(a), deadline=1000)
        rig.fresh = lambda: replace(source_of(a), deadline=8200)
        assert await rig.content(old) == CONTENT
        assert rig.refreshed == 1


async def test_a_refused_refresh_ends_the_download_with_its_own_error(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        a.faults = Faults(status=403)

        def fresh() -> StreamSource:
            raise PermanentError("deleted", -404)

        rig.fresh = fresh
        with pytest.raises(PermanentError, match="deleted"):
            await rig.start(source_of(a))


async def test_a_new_stream_after_a_refresh_gets_a_new_file_and_the_old_one_is_kept(rig: Rig) -> None:
    async with mirrors(CONTENT, 2) as [a, b]:
        a.faults = Faults(cut_after=5 * MIB)
        b.content = SMALL

        def report(progress: StreamProgress) -> None:
            a.faults = Faults(status=403)  # for all requests after the first

        rig.report = report
        rig.fresh = lambda: source_of(b, name="v64-7")
        file = await rig.start(source_of(a, name="v80-7"))
        assert file.path.name == f"5-v64-7-{len(SMALL)}.m4s"
        assert file.path.read_bytes() == SMALL
        assert (rig.folder / f"5-v80-7-{len(CONTENT)}.m4s").exists()
        file.discard()
        a.faults = Faults()
        a.asked.clear()
        rig.report = None
        assert await rig.content(source_of(a, name="v80-7")) == CONTENT
        assert len(CONTENT) - 5 * MIB <= asked_bytes(a) < len(CONTENT)


async def test_a_new_stream_of_the_same_size_is_not_mixed_with_the_old_one(rig: Rig) -> None:
    async with mirrors(CONTENT, 2) as [a, b]:
        a.faults = Faults(cut_after=5 * MIB)
        b.content = CONTENT[::-1]

        def report(progress: StreamProgress) -> None:
            a.faults = Faults(status=403)

        rig.report = report
        rig.fresh = lambda: source_of(b, name="v64-7")
        with contextlib.closing(await rig.start(source_of(a, name="v80-7"))) as file:
            assert file.path.read_bytes() == b.content


async def test_another_size_on_all_mirrors_is_a_new_file(rig: Rig) -> None:
    async with mirrors(CONTENT, 2) as [a, b]:
        (await rig.start(source_of(a, b))).close()
        old = rig.folder / f"5-v80-7-{len(CONTENT)}.m4s"
        part = rig.folder / f"5-v80-7-{len(CONTENT)}.journal"
        part.write_bytes(b"\n".join(part.read_bytes().split(b"\n")[:-3]))
        a.content = b.content = CONTENT[::-1][:-1]
        file = await rig.start(source_of(a, b))
        assert file.path.read_bytes() == a.content
        assert old.exists()
        discard_parts(rig.folder, 5)
        assert not old.exists(), "kept until success"
        assert file.path.exists(), "a file in use is left alone"
        file.discard()
        assert list(rig.folder.iterdir()) == []


# ------------------------------------------------------------------------------------------ redirects, credentials


async def test_redirects_are_followed_and_nothing_secret_travels(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login canary password canary\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with mirrors(CONTENT, 2) as [a, b]:
        # By name: the library's own jar would keep no cookie of an IP address.
        rig.wire.allowed = media_allowed((), ("localhost",))
        first, second = (server.url.replace("127.0.0.1", "localhost") for server in (a, b))
        a.faults = Faults(status=302, headers={"Location": second, "Set-Cookie": "canary=1"})
        assert await rig.content(replace(source_of(a), urls=(first,))) == CONTENT
        for asked in (*a.asked, *b.asked):
            assert not {"cookie", "authorization"} & set(asked.headers)
            assert asked.headers["referer"] == "https://www.bilibili.com/"
            assert asked.headers["user-agent"].startswith("Mozilla/")
            assert asked.headers["accept-encoding"] == "identity"
            assert asked.path.endswith("upsig=a%2Fb"), "the signature covers the address as it was written"


async def test_a_redirect_to_a_host_that_is_not_allowed_is_not_followed(tmp_path: Path) -> None:
    async with mirrors(SMALL, 2) as [a, b], a_rig(tmp_path) as rig:
        rig.wire.allowed = media_allowed((), (a.host,))
        a.faults = Faults(status=302, headers={"Location": b.url})
        assert "BILI_MEDIA_HOSTS" in str(await rig.failure(source_of(a)))
        assert b.asked == []


async def test_a_host_that_is_not_allowed_is_not_asked(tmp_path: Path) -> None:
    async with mirrors(SMALL, 2) as [a, b], a_rig(tmp_path) as rig:
        rig.wire.allowed = media_allowed((), (b.host,))
        assert await rig.content(source_of(a, b)) == SMALL
        assert a.asked == []


async def test_a_host_with_a_bad_certificate_is_asked_once(rig: Rig, tmp_path: Path) -> None:
    import ssl

    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    connections = count()
    seen: list[int] = []
    bad = RangeServer(SMALL)
    listener = await asyncio.start_server(bad.serve, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]

    def allowed(url: str) -> bool:
        if url.startswith("https:"):
            seen.append(next(connections))
        return True

    try:
        async with mirrors(CONTENT) as [a], a_rig(tmp_path, allowed=allowed) as rig:
            source = replace(source_of(a), urls=(f"https://127.0.0.1:{port}/1", f"https://127.0.0.1:{port}/2", a.url))
            assert await rig.content(source) == CONTENT
            assert len(seen) == 1
            rig.fresh = lambda: replace(source, urls=source.urls[:2])
            assert "certificate" in str(await rig.failure(rig.fresh()))
    finally:
        listener.close()
        await bad.close()


async def test_a_ca_bundle_of_requests_is_honoured(tmp_path: Path) -> None:
    import ssl

    import trustme

    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    server = RangeServer(SMALL)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    async with make_media_session(Settings(), {"REQUESTS_CA_BUNDLE": str(bundle)}) as session:
        running = asyncio.Event()
        running.set()
        rig = Rig(Wire(session, 1, lambda url: True, running, QUICK), tmp_path / "parts")
        source = StreamSource("BV1", 5, "v80-7", (f"https://127.0.0.1:{port}/1",))
        assert await rig.content(source) == SMALL
    listener.close()
    await server.close()
    with pytest.raises(UsageError, match="REQUESTS_CA_BUNDLE"):
        make_media_session(Settings(), {"REQUESTS_CA_BUNDLE": str(tmp_path / "none.pem")})


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://a.bilivideo.com/1?x=http://y", "https://a.bilivideo.com/1?x=http://y"),
        ("https://a.bilivideo.com/1", "https://a.bilivideo.com/1"),
        ("http://127.0.0.1:9/1", "http://127.0.0.1:9/1"),
        ("http://elsewhere.example/1", "http://elsewhere.example/1"),
    ],
)
async def test_a_plain_address_of_the_site_is_asked_over_https(given: str, asked: str) -> None:
    allowed = media_allowed(("bilivideo.com",), ("127.0.0.1:9",))
    async with make_media_session(Settings(), {}) as session:
        assert Wire(session, 1, allowed, asyncio.Event()).secured(given) == asked


async def test_a_proxy_that_is_down_is_no_fault_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with a_rig(tmp_path, allowed=lambda url: True) as rig:
        with pytest.raises(NoWayOut, match="proxy"):
            await rig.start(StreamSource("BV1", 5, "v80-7", ("http://media.test/1",)))


# ------------------------------------------------------------------------------------------ going on later


async def test_complete_on_disk_there_is_no_request_at_all(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        (await rig.start(source_of(a))).close()
        assert unfinished_jobs(rig.folder) == {"BV1xx411c7mD?cid=5": len(CONTENT)}
        a.asked.clear()
        assert await rig.content(source_of(a)) == CONTENT
        assert a.asked == []
        assert unfinished_jobs(rig.folder) == {}


@pytest.mark.parametrize(
    "faults", [Faults(unknown_total=True), Faults(ignores_ranges=True, framing="chunked")], ids=repr
)
async def test_a_stream_whose_end_was_found_is_complete_later_too(rig: Rig, faults: Faults) -> None:
    async with mirrors(CONTENT) as [a]:
        a.faults = faults
        (await rig.start(source_of(a))).close()
        a.asked.clear()
        assert await rig.content(source_of(a)) == CONTENT
        assert a.asked == []


async def test_bytes_that_changed_on_disk_are_found_and_fetched_again(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        file = await rig.start(source_of(a))
        file.close()
        with file.path.open("r+b") as data:
            data.seek(CHUNK_BYTES + 5 * MIB)
            data.write(bytes([CONTENT[CHUNK_BYTES + 5 * MIB] ^ 1]))
        a.asked.clear()
        assert await rig.content(source_of(a)) == CONTENT
        [(start, stop)] = a.ranges
        assert CHUNK_BYTES + 4 * MIB - BLOCK_BYTES <= start <= CHUNK_BYTES + 5 * MIB
        assert stop == 2 * CHUNK_BYTES


@pytest.mark.parametrize(
    "wound", ["no data", "short data", "no journal", "other journal", "other size", "half a header"]
)
async def test_what_is_missing_on_disk_is_fetched(rig: Rig, wound: str) -> None:
    async with mirrors(SMALL) as [a]:
        file = await rig.start(source_of(a))
        file.close()
        journal = file.path.with_suffix(".journal")
        if wound == "no data":
            file.path.unlink()
        elif wound == "short data":
            os.truncate(file.path, 1000)
        elif wound == "no journal":
            journal.unlink()
        elif wound == "other size":
            header = {"format": 1, "size": 1, "job": "BV1", "cid": 5, "name": "v80-7"}
            journal.write_bytes(b"\n".join([part_file.seal(header), *journal.read_bytes().split(b"\n")[1:]]))
            part = a_part(rig.folder, len(SMALL))
            assert part.size_bytes == len(SMALL)
            assert part.held_bytes == 0
            part.close()
        elif wound == "other journal":
            journal.write_bytes(journal.read_bytes().replace(b"v80-7", b"v80-8"))
        else:
            os.truncate(journal, 30)
        assert await rig.content(source_of(a)) == SMALL


def a_part(folder: Path, size: int | None) -> PartFile:
    part = PartFile.open(folder, Identity("BV1?cid=5", 5, "v80-7"), size)
    part.prepare()
    return part


def a_half_written_part(folder: Path, size: int, step: int) -> bytes:
    """Write two thirds of a part in small steps and return its journal."""
    part = a_part(folder, size)
    chunk = part.take()
    while chunk.at < size * 2 // 3:
        part.write(chunk, CONTENT[chunk.at : chunk.at + step])
    part.give_back(chunk)
    part.close()
    return (folder / f"5-v80-7-{size}.journal").read_bytes()


def test_a_journal_cut_at_any_byte_is_believed_only_as_far_as_the_file_proves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_file, "MARK_BYTES", 10_000)
    size = 90_000
    journal = a_half_written_part(tmp_path, size, 1000)
    path = tmp_path / f"5-v80-7-{size}.journal"
    seen = []
    for cut in range(len(journal) + 1):
        path.write_bytes(journal[:cut])
        part = a_part(tmp_path, size)
        seen.append(part.held_bytes)
        chunk = part.take()
        assert chunk.at == part.held_bytes
        part.write(chunk, CONTENT[chunk.at : size])
        part.close()
        part = a_part(tmp_path, size)
        assert part.is_complete
        assert part.path.read_bytes() == CONTENT[:size]
        part.close()
    assert seen == sorted(seen)
    assert sorted(set(seen)) == [0, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000]


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("other", [Identity("BV1?cid=5", 5, "v80-12"), Identity("BV1?cid=5", 50, "v80-7")], ids=repr)
def test_the_part_of_another_stream_is_never_gone_on_with(tmp_path: Path, other: Identity, renamed: bool) -> None:
    size = 90_000
    a_half_written_part(tmp_path, size, 1000)
    if renamed:  # whatever a file is called, its journal says what it is
        for path in list(tmp_path.iterdir()):
            path.rename(tmp_path / f"{other.cid}-{other.name}-{size}{path.suffix}")
    assert PartFile.find(tmp_path, other) is None
    part = PartFile.open(tmp_path, other, size)
    part.prepare()
    assert part.held_bytes == 0
    part.close()


def test_a_part_that_lacks_one_byte_is_not_complete(tmp_path: Path) -> None:
    part = a_part(tmp_path, 1000)
    chunk = part.take()
    part.write(chunk, CONTENT[:999])
    assert not part.is_complete
    part.close()  # without giving the chunk back
    part = a_part(tmp_path, 1000)
    assert (part.held_bytes, part.is_complete, part.take().at) == (999, False, 999)
    part.close()


def test_after_a_wound_a_chunk_that_is_finished_anew_is_believed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_file, "MARK_BYTES", 10_000)
    size = 90_000
    a_half_written_part(tmp_path, size, 1000)
    with (tmp_path / f"5-v80-7-{size}.m4s").open("r+b") as data:
        data.seek(35_000)
        data.write(bytes([CONTENT[35_000] ^ 1]))
    part = a_part(tmp_path, size)
    chunk = part.take()
    assert chunk.at == 30_000
    part.write(chunk, CONTENT[chunk.at : size])
    part.close()
    part = a_part(tmp_path, size)
    assert part.is_complete and part.path.read_bytes() == CONTENT[:size]
    part.close()


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="Windows writes otherwise")
def test_a_write_of_which_the_system_takes_a_part_only_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:300], at))
    part = a_part(tmp_path, 1000)
    part.write(part.take(), CONTENT[:1000])
    assert part.is_complete and part.path.read_bytes() == CONTENT[:1000]
    part.close()


def test_the_size_that_is_learned_cuts_what_an_earlier_process_wrote_beyond(tmp_path: Path) -> None:
    part = a_part(tmp_path, None)
    chunk = part.take()
    part.write(chunk, CONTENT[:300])
    with part.path.open("ab") as data:
        data.write(b"more")
    part.set_size(300)
    assert part.is_complete and part.path.read_bytes() == CONTENT[:300]
    part.close()


def at_the_lock(monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], object]) -> None:
    """Call ``do`` with a lock's path just before it is taken: its last owner has ended in this moment."""
    lock = part_file._lock
    monkeypatch.setattr(part_file, "_lock", lambda path: (do(path), lock(path))[1])


def test_what_the_last_owner_wrote_before_the_lock_was_free_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = a_part(tmp_path, None)
    part.write(part.take(), CONTENT[:300])
    part.close()
    journal = tmp_path / "5-v80-7.journal"
    long_ago = time.time() - 100
    with monkeypatch.context() as patched:
        os.utime(journal, (long_ago, long_ago))
        at_the_lock(patched, lambda path: os.utime(journal))
        assert discard_old_parts(tmp_path, 50) == 0 and journal.exists()
    line = b"\n" + part_file.seal({"size": 300})
    at_the_lock(monkeypatch, lambda path: journal.write_bytes(journal.read_bytes() + line))
    found = PartFile.find(tmp_path, Identity("BV1?cid=5", 5, "v80-7"))
    assert found is not None and found.size_bytes == 300
    found.prepare()
    assert found.is_complete
    found.close()


def test_the_parts_of_other_pages_are_left(tmp_path: Path) -> None:
    for cid in (5, 55, 6):
        a_finished_part(tmp_path, cid).close()
    discard_parts(tmp_path, 5)
    assert {path.stem for path in tmp_path.iterdir()} == {"55-v-10", "6-v-10"}


@pytest.mark.parametrize("size", [None, 2 * CHUNK_BYTES])
def test_what_was_forgotten_is_not_believed_later(tmp_path: Path, size: int | None) -> None:
    part = a_part(tmp_path, size)
    part.write(part.take(), CONTENT[:CHUNK_BYTES])
    part.forget()
    assert part.held_bytes == 0
    part.close()
    part = a_part(tmp_path, size)
    assert (part.held_bytes, part.take().at) == (0, 0)
    part.close()


@given(st.data())
def test_a_journal_with_any_garbage_never_claims_what_is_not_there(data: st.DataObject) -> None:
    header = part_file.seal({"format": 1, "size": 9, "job": "BV1", "cid": 5, "name": "v"})
    lines = [part_file.seal({"held": [0, n], "digest": f"{n:032x}"}) for n in (3, 6, 9)]
    content = bytearray(b"\n".join([header, *lines]))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    journal = part_file.read_journal(bytes(content) + data.draw(st.binary(max_size=40)))
    if journal is not None:
        assert journal.identity == Identity("BV1", 5, "v")
        for stop, digest in journal.claims.get(0, {}).items():
            assert stop in (3, 6, 9)
            assert digest == f"{stop:032x}"


def test_unfinished_jobs_are_listed_newest_first_and_broken_journals_skipped(tmp_path: Path) -> None:
    for n, job in enumerate(["BV1?cid=1", "BV2?cid=2", "BV2?cid=2"]):
        part = PartFile.open(tmp_path, Identity(job, n, "v"), 10)
        part.prepare()
        part.write(part.take(), b"0123456789")
        part.close()
        os.utime(tmp_path / f"{n}-v-10.journal", (n, n))
    (tmp_path / "9-v-1.journal").write_bytes(b"\xff\x00 nonsense")
    (tmp_path / "8-v-1.journal").write_bytes(b"")
    (tmp_path / "7-v-1.journal").mkdir()
    assert list(unfinished_jobs(tmp_path).items()) == [("BV2?cid=2", 20), ("BV1?cid=1", 10)]
    assert unfinished_jobs(tmp_path / "nowhere") == {}


def a_finished_part(folder: Path, cid: int) -> PartFile:
    part = PartFile.open(folder, Identity("BV1", cid, "v"), 10)
    part.prepare()
    part.write(part.take(), b"0123456789")
    return part


@pytest.mark.parametrize("how", ["discard", "discard_parts"])
@pytest.mark.parametrize("kind", [".m4s", ".journal", ".lock"])
def test_what_cannot_be_deleted_is_left_and_its_lock_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: str
) -> None:
    unlink = Path.unlink

    def stubborn(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == kind:
            raise PermissionError(errno.EACCES, "a virus scanner", str(path))
        unlink(path, missing_ok)

    part = a_finished_part(tmp_path, 5)
    if how != "discard":
        part.close()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stubborn)
        part.discard() if how == "discard" else discard_parts(tmp_path, 5)
        assert any(path.suffix == kind for path in tmp_path.iterdir())
    if kind == ".m4s":
        assert len(list(tmp_path.iterdir())) == 3, "nothing would lead to the data"
    lock = part_file._lock(tmp_path / "5-v-10.lock")
    assert lock is not None
    lock.release()


def test_a_lock_that_cannot_be_had_is_no_error_when_parts_are_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "another user's", str(path))

    a_finished_part(tmp_path, 5).close()
    monkeypatch.setattr(part_file, "_lock", refuse)
    discard_parts(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 3


def test_old_parts_are_discarded_unless_someone_works_on_them(tmp_path: Path) -> None:
    parts = [a_finished_part(tmp_path, cid) for cid in range(4)]
    for part in parts[1:]:
        part.close()
    long_ago = time.time() - 100
    for cid in (0, 1, 2):
        os.utime(tmp_path / f"{cid}-v-10.journal", (long_ago, long_ago))
    (tmp_path / "2-v-10.journal").write_bytes(b"nonsense")
    os.utime(tmp_path / "2-v-10.journal", (long_ago, long_ago))
    assert discard_old_parts(tmp_path, 200) == 0
    assert discard_old_parts(tmp_path, 50) == 2
    assert {path.stem for path in tmp_path.iterdir()} == {"0-v-10", "3-v-10"}
    parts[0].close()
    assert discard_old_parts(tmp_path, 50) == 1
    assert {path.stem for path in tmp_path.iterdir()} == {"3-v-10"}
    assert discard_old_parts(tmp_path / "nowhere", 50) == 0


KILLED = """
import asyncio, sys
from pathlib import Path
from config import Settings
from download_stream_file import Wire, download_stream, make_media_session, media_allowed
from model import StreamSource

async def main(url, folder):
    running = asyncio.Event()
    running.set()
    async with make_media_session(Settings(), {}) as session:
        wire = Wire(session, 16, media_allowed((), ("127.0.0.1",)), running)
        await download_stream(wire, StreamSource("BV1?cid=5", 5, "v80-7", (url,)), Path(folder), None, id)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_after_kill_9_no_finished_chunk_and_hardly_a_byte_is_fetched_again(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        # The last chunk of one byte finishes at once, the others are slow.
        a.faults = Faults(bytes_per_tick=256 * KIB, tick_seconds=0.02)
        process = subprocess.Popen([sys.executable, "-c", KILLED, a.url, str(rig.folder)], cwd=TESTS.parent)
        try:
            await until(lambda: sum(asked.sent_bytes > 5.6 * MIB for asked in a.asked) >= 2)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        written = (rig.folder / f"5-v80-7-{len(CONTENT)}.m4s").read_bytes()
        first = equal_bytes(written[:CHUNK_BYTES], CONTENT[:CHUNK_BYTES])
        second = equal_bytes(written[CHUNK_BYTES:-1], CONTENT[CHUNK_BYTES:-1])
        assert first > 4 * MIB
        assert second > 4 * MIB
        a.asked.clear()
        a.faults = Faults()
        assert await rig.content(source_of(a)) == CONTENT
        assert len(a.asked) == 2, "the finished chunk is not asked for"
        for (start, _stop), on_disk in zip(sorted(a.ranges), (first, CHUNK_BYTES + second), strict=True):
            assert 0 <= on_disk - start <= MIB


LOCKER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


async def test_a_file_that_another_process_works_on_is_left_alone(rig: Rig) -> None:
    rig.folder.mkdir()
    async with mirrors(SMALL) as [a]:
        file = await rig.start(source_of(a))
        file.close()
        lock = file.path.with_suffix(".lock")
        with subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            fresh = await rig.start(source_of(a))
            assert fresh.path.name == f"5-v80-7-{len(SMALL)}.1.m4s"
            assert fresh.path.read_bytes() == SMALL
            third = await rig.start(source_of(a))
            assert third.path.name == f"5-v80-7-{len(SMALL)}.2.m4s"
            fresh.discard()
            third.discard()
            other.communicate()
        assert await rig.content(source_of(a)) == SMALL


# ------------------------------------------------------------------------------------------ pause, cancel


async def test_a_pause_closes_the_connections_and_goes_on_from_the_same_byte(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        a.faults = Faults(bytes_per_tick=BLOCK_BYTES, tick_seconds=0.005)
        download = asyncio.ensure_future(rig.content(source_of(a)))
        await until(lambda: bool(rig.told) and rig.told[-1].done_bytes > 2 * MIB)
        rig.wire.running.clear()
        await until(lambda: a.open_replies == 0)
        held = rig.told[-1].done_bytes
        a.asked.clear()
        a.faults = Faults()
        assert unfinished_jobs(rig.folder)
        await asyncio.sleep(0)
        assert a.asked == []
        rig.wire.running.set()
        assert await download == CONTENT
        assert asked_bytes(a) == len(CONTENT) - held


async def test_paused_before_the_start_nothing_is_asked(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        rig.wire.running.clear()
        download = asyncio.ensure_future(rig.content(source_of(a)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert a.asked == []
        rig.wire.running.set()
        assert await download == SMALL


async def test_a_cancelled_download_keeps_its_bytes_and_leaves_nothing_behind(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        a.faults = Faults(bytes_per_tick=BLOCK_BYTES, tick_seconds=0.005)
        download = asyncio.ensure_future(rig.start(source_of(a)))
        await until(lambda: bool(rig.told) and rig.told[-1].done_bytes > 2 * MIB + 1)
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        await until(lambda: a.open_replies == 0)
        held = rig.told[-1].done_bytes
        a.asked.clear()
        a.faults = Faults()
        others = {task for task in asyncio.all_tasks() if "_work" in repr(task) or "_follow" in repr(task)}
        assert others == set()
        assert await rig.content(source_of(a)) == CONTENT
        assert asked_bytes(a) == len(CONTENT) - held


async def test_cancelled_before_the_first_byte_nothing_stays(rig: Rig) -> None:
    async with mirrors(SMALL) as [a]:
        a.faults = Faults(stall_after=0)
        download = asyncio.ensure_future(rig.start(source_of(a)))
        await until(lambda: (rig.folder / f"5-v80-7-{len(SMALL)}.m4s").exists())
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        assert list(rig.folder.iterdir()) == []


def test_of_several_errors_the_one_that_says_most_about_the_machine_ends_the_download() -> None:
    again, transfer, full, bug = download_stream_file._StartOver(), TransferError("t"), DiskFull("d"), ValueError("v")
    for graver, lighter in ((transfer, again), (full, transfer), (bug, full)):
        inner = BaseExceptionGroup("", [graver])
        assert download_stream_file._gravest(BaseExceptionGroup("", [lighter, again, inner])) is graver
        assert download_stream_file._gravest(BaseExceptionGroup("", [inner, lighter])) is graver


async def test_the_first_grave_error_ends_all_workers(tmp_path: Path) -> None:
    async with mirrors(CONTENT) as [a], a_rig(tmp_path) as rig:
        a.faults = Faults(bytes_per_tick=BLOCK_BYTES)

        def report(progress: StreamProgress) -> None:
            if progress.done_bytes > MIB:
                raise ZeroDivisionError

        rig.report = report
        with pytest.raises(ZeroDivisionError):
            await rig.start(source_of(a))
        assert a.most_open_replies > 1
        await until(lambda: a.open_replies == 0)


# ------------------------------------------------------------------------------------------ the disk


async def test_too_little_room_is_found_before_the_first_byte(tmp_path: Path) -> None:
    surroundings = Surroundings(free_bytes=lambda folder: len(SMALL) + part_file.RESERVE_BYTES - 1)
    async with mirrors(SMALL) as [a], a_rig(tmp_path, surroundings=surroundings) as rig:
        with pytest.raises(DiskFull, match="make room") as caught:
            await rig.start(source_of(a))
        assert caught.value.kind == "environment"
        assert list(tmp_path.iterdir()) == []


async def test_room_that_is_taken_already_is_not_asked_for_again(tmp_path: Path) -> None:
    async with mirrors(CONTENT) as [a], a_rig(tmp_path) as rig:
        part = a_part(tmp_path, len(CONTENT))
        part.write(part.take(), CONTENT[:MIB])
        part.close()
        rig.wire.surroundings = Surroundings(free_bytes=lambda folder: 0)
        assert await rig.content(source_of(a)) == CONTENT


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """A limit on the size of files makes the kernel refuse for real; Python ignores its signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_room_that_is_refused_leaves_nothing(rig: Rig, largest_file: Callable[[int], None]) -> None:
    async with mirrors(CONTENT) as [a]:
        largest_file(4 * MIB)
        with pytest.raises(DiskFull):
            await rig.start(source_of(a))
        assert list(rig.folder.iterdir()) == []


async def test_a_write_that_is_refused_keeps_what_came_before(rig: Rig, largest_file: Callable[[int], None]) -> None:
    async with mirrors(CONTENT) as [a]:
        a.faults = Faults(unknown_total=True)
        largest_file(4 * MIB)
        with pytest.raises(DiskFull):
            await rig.start(source_of(a))
        largest_file(resource.RLIM_INFINITY)
        a.asked.clear()
        assert await rig.content(source_of(a)) == CONTENT
        assert 2 * MIB <= a.ranges[0][0] <= 4 * MIB


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a small file system")
async def test_a_disk_that_fills_up_is_not_left_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("may not mount")
    try:
        async with (
            mirrors(CONTENT) as [a],
            a_rig(disk, surroundings=Surroundings(free_bytes=lambda folder: 10**12)) as rig,
        ):
            with pytest.raises(DiskFull):
                await rig.start(source_of(a))
            assert list(disk.iterdir()) == []
            assert shutil.disk_usage(disk).free == 8 * MIB
    finally:
        subprocess.run([shutil.which("umount") or "umount", str(disk)], check=True)


async def test_no_chunk_is_held_in_memory(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        tracemalloc.start()
        with contextlib.closing(await rig.start(source_of(a))):
            peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < CHUNK_BYTES
