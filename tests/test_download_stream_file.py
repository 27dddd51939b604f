from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import download_stream_file
from config import Settings, tls_context
from download_stream_file import Pace, StreamFile, Surroundings, Wire, download_stream, range_bytes, split_bytes
from errors import DiskFull, NoWayOut, PermanentError, TransferError, UsageError
from model import CHUNK_BYTES, KIB, MIB, StreamProgress, StreamSource
from tests import range_server as server_side
from tests.range_server import BLOCK_BYTES, Faults, RangeServer, mirrors
from transfer import part_file
from transfer.connections import Connections
from transfer.media_client import MediaClient
from transfer.mirrors import MediaHosts, Patience, media_allowed
from transfer.part_file import Identity, PartFile, discard_parts, unfinished_jobs
from transfer.speed_limit import SpeedLimit

CONTENT = random.Random(20).randbytes(2 * CHUNK_BYTES + 1)
SMALL = CONTENT[:300_001]
QUICK = Patience(
    connect_seconds=2,
    stall_seconds=10,  # where requests are counted, a busy machine must be no stall
    slow_window_seconds=0.1,
    backoff_seconds=0.005,
    backoff_cap_seconds=0.02,
    longest_wait_seconds=1,
    late_seconds=10,  # a busy machine is late, too
    watch_seconds=0.02,
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
    allowed: MediaHosts = LOOPBACK,
) -> AsyncIterator[Rig]:
    running = asyncio.Event()
    running.set()
    client = MediaClient(Settings(), allowed, {}, patience.connect_seconds, patience.stall_seconds)
    async with client:
        budget = Connections(connections)
        yield Rig(Wire(client, budget, running, patience=patience, surroundings=surroundings), folder)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with a_rig(tmp_path / "parts") as rig:
        yield rig


def source_of(*servers: RangeServer, name: str = "v80-7", size_bytes: int | None = None) -> StreamSource:
    urls = tuple(server.url for server in servers)
    return StreamSource("BV1xx411c7mD?cid=5", 5, name, urls, size_bytes)


def a_part(folder: Path, size: int) -> PartFile:
    part = PartFile.open(folder, Identity("BV1?cid=5", 5, "v80-7"), size)
    part.prepare()
    return part


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


def test_pace_tells_a_trickle_at_the_end_of_a_window() -> None:
    pace = Pace(Patience(slow_bytes_per_second=100, slow_window_seconds=10), 0)
    assert not pace.is_too_slow(1, 9.9)
    assert pace.is_too_slow(998, 10)
    assert not pace.is_too_slow(1000, 20)
    assert pace.is_too_slow(1, 39)


# ------------------------------------------------------------------------------------------ sizes


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES - 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 1]


def whole_chunks(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out what a stall on a busy machine may add: the second half of a range, fetched over an idle connection."""
    return [one for one in ranges if one[0] % CHUNK_BYTES == 0]


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
        asked = [one for one in whole_chunks(a.ranges) if one[0] < size]
        once_more = faults.framing != "length"  # the quick way does not know such bodies, and learns it at the first
        assert len(asked) == (1 if faults.ignores_ranges else -(-size // CHUNK_BYTES)) + once_more or size == 0


async def test_the_first_request_is_for_the_first_chunk_and_there_is_none_for_the_size(rig: Rig) -> None:
    async with mirrors(CONTENT) as [a]:
        assert await rig.content(source_of(a)) == CONTENT
        assert a.ranges[0] == (0, CHUNK_BYTES)
        starts = [start for start, _stop in whole_chunks(a.ranges)]
        assert sorted(starts) == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
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
        Faults(headers={"Junk": "x" * 20_000}),
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
    async with asyncio.timeout(20), mirrors(SMALL) as [a]:
        a.faults = Faults(cut_after=30_000)
        assert await rig.content(source_of(a)) == SMALL
        assert [start for start, _stop in a.ranges] == list(range(0, len(SMALL), 30_000))
        assert a.sent_bytes == len(SMALL)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_body_that_says_no_length_fills_no_disk(rig: Rig, framing: str) -> None:
    """It ends where the stream can have no more; a liar is then left, and another mirror has the stream."""
    async with asyncio.timeout(20), mirrors(CONTENT, 2) as [liar, good]:
        source = replace(source_of(liar), most_bytes=CHUNK_BYTES)
        liar.faults = Faults(ignores_ranges=True, framing=framing)
        assert "more bytes than this stream can have" in str(await rig.failure(source))
        assert sum(path.stat().st_blocks * 512 for path in rig.folder.iterdir()) <= CHUNK_BYTES + MIB
        good.content = SMALL
        assert (await rig.start(replace(source, urls=(liar.url, good.url)))).path.stat().st_size == len(SMALL)


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
    """The clock runs as if the line had 50 KB/s, too little for each of sixteen connections."""
    for module in (download_stream_file, part_file):
        monkeypatch.setattr(module, "CHUNK_BYTES", MIB // 2)
    content = CONTENT[: 4 * MIB]
    slow = {"slow_window_seconds": Patience().slow_window_seconds, "stall_seconds": 1e6, "late_seconds": 1e6}
    async with mirrors(content, 2) as servers, a_rig(tmp_path, patience=replace(QUICK, **slow)) as rig:
        rig.wire.surroundings = Surroundings(
            clock=lambda: time.monotonic() + sum(server.sent_bytes for server in servers) / 50_000
        )
        for server in servers:
            server.faults = Faults(bytes_per_tick=4 * KIB, tick_seconds=0.001)
        assert await rig.content(source_of(*servers)) == content
        assert sum(len(server.asked) for server in servers) > 8, "no connection was found too slow"


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

    patience = QUICK
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


# ------------------------------------------------------------------------------------------ leaving early


@given(
    waiting=st.integers(1, 10**10),
    connections=st.integers(1, 256),
    speed=st.floats(0, 1e9),
    first_byte=st.floats(0, 10),
)
def test_what_is_asked_for_at_once_is_a_chunk_and_less_only_near_the_end(
    waiting: int, connections: int, speed: float, first_byte: float
) -> None:
    size = range_bytes(waiting, connections, speed, first_byte)
    assert 256 * KIB <= size <= CHUNK_BYTES
    if waiting >= 2 * connections * CHUNK_BYTES or speed >= 4 * CHUNK_BYTES:
        assert size == CHUNK_BYTES
    if size < CHUNK_BYTES:
        assert size + 1 >= speed * 4 * first_byte, "the wait for the first byte would count"


@given(
    missing=st.integers(1, CHUNK_BYTES),
    speed=st.floats(1, 1e8),
    other_speed=st.floats(1, 1e8),
    wait=st.floats(0, 5),
    gain=st.floats(0, 5),
)
def test_a_split_range_is_done_by_both_at_the_same_moment_and_sooner(
    missing: int, speed: float, other_speed: float, wait: float, gain: float
) -> None:
    size = split_bytes(missing, speed, other_speed, wait, gain)
    assert 0 <= size <= missing
    if size:
        mine, others = (missing - size) / speed, wait + size / other_speed
        # Bytes are whole: where one is cut off, the two differ by two, and floats by a little more.
        assert mine == pytest.approx(others, abs=2.1 / min(speed, other_speed), rel=1e-6)
        assert others <= missing / speed - gain + 1e-6
    assert split_bytes(missing, 0, other_speed, wait, gain) == missing


async def test_a_mirror_that_does_not_answer_is_left_for_one_that_may(tmp_path: Path) -> None:
    patience = replace(QUICK, late_seconds=0.1, stall_seconds=60)
    async with mirrors(CONTENT, 2) as [a, b], a_rig(tmp_path, patience=patience) as rig:
        a.faults = Faults(silent=True)
        assert await rig.content(source_of(a, b)) == CONTENT
        assert len(a.asked) == 1, "what was late once is asked last"
        assert rig.wire.health.host(a.host).is_late


async def test_where_every_mirror_answers_late_all_are_waited_for(tmp_path: Path) -> None:
    class Late(RangeServer):
        async def _reply(self, asked: server_side.Asked, faults: Faults, writer: asyncio.StreamWriter) -> bool:
            await asyncio.sleep(0.4)
            return await super()._reply(asked, faults, writer)

    patience = replace(QUICK, late_seconds=0.1, stall_seconds=60)
    async with mirrors(SMALL, 2) as servers, a_rig(tmp_path, patience=patience) as rig:
        for server in servers:
            server.__class__ = Late
        assert await rig.content(source_of(*servers)) == SMALL
        assert sum(len(server.asked) for server in servers) <= 4, "each was left once, not again and again"


async def test_a_mirror_that_is_slow_but_alive_is_left_for_a_quicker_one(tmp_path: Path) -> None:
    content = CONTENT * 3
    async with mirrors(content, 2) as [slow, good], a_rig(tmp_path, connections=4) as rig:
        slow.faults = Faults(bytes_per_tick=KIB, tick_seconds=0.02)  # 50 KB/s, six times what is called a trickle
        good.faults = Faults(bytes_per_tick=BLOCK_BYTES, tick_seconds=0.005)
        assert await rig.content(source_of(slow, good)) == content
        assert slow.sent_bytes < len(content) / 100
        assert len(slow.asked) <= 4


async def test_the_end_of_a_slow_range_is_fetched_over_idle_connections(tmp_path: Path) -> None:
    content = CONTENT[: 8 * MIB]  # a single chunk
    async with mirrors(content, 2) as [slow, good], a_rig(tmp_path) as rig:
        slow.faults = Faults(bytes_per_tick=8 * KIB, tick_seconds=0.02)
        assert await rig.content(source_of(slow, good)) == content
        assert slow.ranges[0] == (0, CHUNK_BYTES)
        assert 0 < good.ranges[0][0] < len(content), "nobody helped"
        assert all(start >= slow.asked[0].sent_bytes - MIB for start, _stop in good.ranges)
        assert slow.sent_bytes + good.sent_bytes <= len(content) * 1.02


async def test_what_splitting_wastes_is_bounded(tmp_path: Path) -> None:
    """With a share of nothing nothing is split, however slow the last range is."""
    content = CONTENT[: 4 * MIB]
    patience = replace(QUICK, waste_share=0)
    async with mirrors(content, 2) as [slow, good], a_rig(tmp_path, patience=patience) as rig:
        slow.faults = Faults(bytes_per_tick=32 * KIB, tick_seconds=0.01)
        assert await rig.content(source_of(slow, good)) == content
        assert not good.asked
        assert slow.sent_bytes == len(content)


async def test_a_cut_costs_no_pause_where_bytes_came_before(tmp_path: Path) -> None:
    waits: list[float] = []

    def draw() -> float:
        waits.append(1.0)
        return 1.0

    async with mirrors(CONTENT) as [a], a_rig(tmp_path, surroundings=Surroundings(draw=draw)) as rig:
        a.faults = Faults(cut_after=2 * MIB)
        assert await rig.content(source_of(a)) == CONTENT
        assert len(a.asked) > 10
        assert waits == []


async def test_a_host_that_refuses_a_crowd_gets_fewer_connections(tmp_path: Path) -> None:
    class Narrow(RangeServer):
        refusals = 0

        def _faults_for(self, path: str) -> Faults:
            if self.open_replies < 3:
                return Faults(bytes_per_tick=BLOCK_BYTES, tick_seconds=0.004)
            self.refusals += 1
            return Faults(status=429)

    async with mirrors(CONTENT * 2) as [a], a_rig(tmp_path) as rig:
        a.__class__ = Narrow
        rig.wire.health.host(a.host).estimate.saw_speed(1.0, time.monotonic())  # small ranges: many requests
        assert await rig.content(source_of(a)) == CONTENT * 2
        assert 0 < a.refusals < 30  # type: ignore[attr-defined]
        assert rig.wire.health.host(a.host).room(time.monotonic()) < 16


async def test_writes_of_a_slow_disk_go_through_a_thread(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    store = PartFile.store

    def slowly(part: PartFile, at: int, data: bytes | memoryview) -> None:
        if not threads:
            time.sleep(download_stream_file.SLOW_WRITE_SECONDS)
        threads.append(threading.current_thread() is not threading.main_thread())
        store(part, at, data)

    monkeypatch.setattr(PartFile, "store", slowly)
    monkeypatch.setattr(download_stream_file, "SLOW_DISK_SECONDS", 60.0)
    async with mirrors(CONTENT) as [a]:
        assert await rig.content(source_of(a)) == CONTENT
    assert not threads[0]
    assert all(threads[16:]), "at most each connection had a piece in its hands"


async def test_writes_go_through_threads_for_a_second_after_the_last_slow_one(rig: Rig) -> None:
    slow = download_stream_file.SLOW_WRITE_SECONDS
    rig.wire.saw_write(10.0, 10.0 + slow / 2)
    assert rig.wire.disk_is_slow_until < 10.0
    rig.wire.saw_write(10.0, 10.0 + 2 * slow)
    assert rig.wire.disk_is_slow_until == pytest.approx(11.0 + 2 * slow)
    rig.wire.saw_write(10.9, 10.9 + slow / 2)
    assert rig.wire.disk_is_slow_until == pytest.approx(11.0 + 2 * slow), "a quick one does not prolong it"
    rig.wire.saw_write(10.9, 10.9 + 2 * slow)
    assert rig.wire.disk_is_slow_until == pytest.approx(11.9 + 2 * slow)


async def test_a_slow_write_in_a_thread_tells_that_the_disk_is_still_slow(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[float] = []
    store = PartFile.store

    def slowly(part: PartFile, at: int, data: bytes | memoryview) -> None:
        if at == 0:
            time.sleep(2 * download_stream_file.SLOW_WRITE_SECONDS)
        store(part, at, data)

    monkeypatch.setattr(PartFile, "store", slowly)
    monkeypatch.setattr(Wire, "saw_write", lambda wire, began, ended: took.append(ended - began))
    rig.wire.disk_is_slow_until = float("inf")  # all of it goes through threads
    async with mirrors(SMALL) as [a]:
        assert await rig.content(source_of(a)) == SMALL
    assert max(took) >= 2 * download_stream_file.SLOW_WRITE_SECONDS


async def test_cancelled_while_a_thread_writes_the_file_is_closed_after_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    closed: list[bool] = []
    store, end = PartFile.store, PartFile._end

    def slowly(part: PartFile, at: int, data: bytes | memoryview) -> None:
        begun.set()
        may_end.wait(20)
        store(part, at, data)

    def noting(part: PartFile, *unwanted: Path) -> None:
        closed.append(may_end.is_set())
        end(part, *unwanted)

    monkeypatch.setattr(PartFile, "store", slowly)
    monkeypatch.setattr(PartFile, "_end", noting)
    rig.wire.disk_is_slow_until = float("inf")
    async with mirrors(CONTENT) as [a]:
        download = asyncio.ensure_future(rig.start(source_of(a)))
        await until(begun.is_set)
        download.cancel()
        await asyncio.sleep(0.05)  # nothing should happen, so there is nothing to wait for
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await download
    assert closed == [True]


async def test_every_byte_is_paid_for_under_a_speed_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    paid: list[int] = []
    spend = SpeedLimit.spend
    monkeypatch.setattr(SpeedLimit, "spend", lambda limit, size: (paid.append(size), spend(limit, size))[1])
    rig.wire.limit.set(64 * MIB)
    async with mirrors(CONTENT) as [a]:
        assert await rig.content(source_of(a)) == CONTENT
    assert sum(paid) == len(CONTENT)


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
        a_rig(tmp_path, connections=1, patience=replace(QUICK, refreshes=1)) as rig,
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
        rig.wire.client.allowed = media_allowed((), ("localhost",))
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
        rig.wire.client.allowed = media_allowed((), (a.host,))
        a.faults = Faults(status=302, headers={"Location": b.url})
        assert "BILI_MEDIA_HOSTS" in str(await rig.failure(source_of(a)))
        assert b.asked == []


async def test_a_host_that_is_not_allowed_is_not_asked(tmp_path: Path) -> None:
    async with mirrors(SMALL, 2) as [a, b], a_rig(tmp_path) as rig:
        rig.wire.client.allowed = media_allowed((), (b.host,))
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

    class Counting(MediaHosts):
        def __call__(self, url: str) -> bool:
            if url.startswith("https:"):
                seen.append(next(connections))
            return True

    try:
        async with mirrors(CONTENT) as [a], a_rig(tmp_path, allowed=Counting((), ("127.0.0.1",))) as rig:
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
    async with MediaClient(Settings(), LOOPBACK, {"REQUESTS_CA_BUNDLE": str(bundle)}) as client:
        running = asyncio.Event()
        running.set()
        rig = Rig(Wire(client, Connections(1), running, patience=QUICK), tmp_path / "parts")
        source = StreamSource("BV1", 5, "v80-7", (f"https://127.0.0.1:{port}/1",))
        assert await rig.content(source) == SMALL
    listener.close()
    await server.close()
    with pytest.raises(UsageError, match="REQUESTS_CA_BUNDLE"):
        tls_context({"REQUESTS_CA_BUNDLE": str(tmp_path / "none.pem")})


async def test_a_proxy_that_is_down_is_no_fault_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with a_rig(tmp_path, allowed=media_allowed((), ("media.test",))) as rig:
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


KILLED = """
import asyncio, sys
from pathlib import Path
from config import Settings, tls_context
from transfer.connections import Connections
from download_stream_file import Wire, download_stream
from transfer.media_client import MediaClient
from transfer.mirrors import media_allowed
from model import StreamSource

async def main(url, folder):
    running = asyncio.Event()
    running.set()
    async with MediaClient(Settings(), media_allowed((), ("127.0.0.1",)), {}) as client:
        wire = Wire(client, Connections(16), running)
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
        finished = len(CONTENT) - 1
        assert max(stop for _start, stop in a.ranges) <= finished, "the finished chunk is not asked for"
        for begin, held in ((0, first), (CHUNK_BYTES, second)):  # the end of either may be split: that is another range
            start = min(start for start, _stop in a.ranges if begin <= start < begin + CHUNK_BYTES)
            assert 0 <= begin + held - start <= MIB


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
        part.write(part.take(CHUNK_BYTES), CONTENT[:MIB])
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
