"""Download one stream from its mirrors into a part file, range by range, several at a time.

Requests are equal and independent: each takes the first missing range, asks the best mirror that is ready for exactly
these bytes, writes what comes, and gives back what it did not get; so it makes no difference why it ended: the next one
goes on from the last byte, at another mirror, after a pause, or in another process next week. That makes it cheap to
leave a mirror, and a watch does it early: for one that keeps us waiting, that is far slower than another, or that holds
the last bytes of the stream while connections are idle; those it lets have the second half of such a range.

Bytes take the shortest way: the socket is read into one buffer for all connections, and from there each piece is
digested and written before the next one is read. Nothing is queued, so memory does not grow, and a slow disk slows the
sender down by itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from errors import CircumstanceError, JobError, TransferError
from i18n import _
from model import CHUNK_BYTES, KIB, MIB, StreamProgress, StreamSource
from transfer import (
    ACCEPTED,
    FAILURES,
    Asked,
    Chunk,
    Connections,
    Health,
    Identity,
    Meaning,
    MediaClient,
    Mirror,
    Mirrors,
    PartFile,
    Patience,
    Refused,
    Reply,
    SpeedLimit,
    Verdict,
    free_disk_bytes,
    judge,
    judge_failure,
)

TELL_SECONDS = 0.1
ADAPT_SECONDS = 0.25
SAMPLE_SECONDS = 0.5
LEAST_RANGE_SECONDS = 0.25
"""A shorter body says little about speed, and is not worth a request of its own."""
LEAST_SPEED_SECONDS = 0.05
LEAST_RANGE_BYTES = 256 * KIB
LEAST_SPLIT_BYTES = 64 * KIB
UNKNOWN_BYTES_PER_SECOND = 1.0 * MIB
"""Of a mirror that nobody knows, as long as another one is to be beaten."""
FRUITFUL_BYTES = 64 * KIB
"""A body that was cut after so much was worth the request: the next one follows at once."""
CROWDED_SECONDS = 0.25
"""Between looks whether a host that is crowded bears one more connection."""
LEAST_WASTE_SECONDS = 0.1
SLOW_WRITE_SECONDS = 0.05
"""A write that took so long kept all other connections waiting: for a while, writes go through threads."""
SLOW_DISK_SECONDS = 1.0
"""So long after the last slow write they do: a write through a thread costs the processor twice one in the loop."""


# ------------------------------------------------------------------------------------------ judgements of the watch


class Pace:
    """Watch a body that comes: pure, the time is given. Silence is not its business, a timeout sees to that."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._least_bytes = patience.slow_bytes_per_second * patience.slow_window_seconds
        self._window_seconds = patience.slow_window_seconds
        self._since = now
        self._bytes = 0

    def is_too_slow(self, got_bytes: int, now: float) -> bool:
        """Count bytes; tell at the end of each window whether they were too few for it."""
        self._bytes += got_bytes
        if now - self._since < self._window_seconds:
            return False
        too_slow = self._bytes < self._least_bytes
        self._since, self._bytes = now, 0
        return too_slow

    def is_good(self, got_bytes: int, now: float) -> bool:
        """Count bytes; tell as soon as they are enough for a window, which begins anew then."""
        self._bytes += got_bytes
        good = self._bytes >= self._least_bytes
        if good or now - self._since >= self._window_seconds:
            self._since, self._bytes = now, 0
        return good


def range_bytes(waiting_bytes: int, connections: int, bytes_per_second: float, first_byte_seconds: float) -> int:
    """Return how much to ask for at once: a whole chunk, but less near the end, so that all connections end together.

    Half of an even share, because none is as quick as the other; and so much that the wait for the first byte does not
    count beside it. ``bytes_per_second`` is that of one connection, 0 where nobody knows.
    """
    if not bytes_per_second:
        return CHUNK_BYTES
    even = waiting_bytes // (2 * connections)
    worthwhile = int(bytes_per_second * max(LEAST_RANGE_SECONDS, 4 * first_byte_seconds))
    return min(CHUNK_BYTES, max(even, worthwhile, LEAST_RANGE_BYTES))


def split_bytes(missing_bytes: int, speed: float, other_speed: float, wait_seconds: float, gain_seconds: float) -> int:
    """Return how much of a chunk's end another connection should fetch, so that both are done at the same moment.

    The speeds are those of the two in bytes a second, ``wait_seconds`` is how long the other takes to its first byte.
    0 where it would not save ``gain_seconds``.
    """
    if speed <= 0:
        return missing_bytes
    others = int((missing_bytes - wait_seconds * speed) * other_speed / (speed + other_speed))
    gain = (missing_bytes / speed) - (wait_seconds + others / other_speed)
    return others if others > 0 and gain >= gain_seconds else 0


# ------------------------------------------------------------------------------------------ what streams share


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a test replaces: clocks, chance, and the disk's size."""

    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    draw: Callable[[], float] = random.random
    free_bytes: Callable[[Path], int] = free_disk_bytes


class Wire:
    """What all streams of a worker share: connections, the speed limit, the pause switch, what is known of mirrors."""

    def __init__(
        self,
        client: MediaClient,
        connections: Connections,
        running: asyncio.Event,
        limit: SpeedLimit | None = None,
        health: Health | None = None,
        patience: Patience | None = None,
        surroundings: Surroundings = Surroundings(),
    ) -> None:
        self.client = client
        self.connections = connections
        self.running = running
        self.limit = limit or SpeedLimit()
        self.health = health or Health(surroundings.clock)
        self.patience = patience or Patience()
        self.surroundings = surroundings
        self.disk_is_slow_until = float("-inf")
        self._piece_bytes = client.piece_bytes
        self._ticked_at = float("-inf")

    def tick(self) -> None:
        """Let the shared things adapt; called by every stream that is under way, as often as it likes."""
        now = self.surroundings.clock()
        if now - self._ticked_at < ADAPT_SECONDS:
            return
        self._ticked_at = now
        self.connections.limited = self.limit.holds
        self.connections.tick()
        self.client.piece_bytes = self.limit.piece_bytes(self.connections.active, self._piece_bytes)

    def saw_write(self, began: float, ended: float) -> None:
        """Learn from a write, in the loop or in a thread, whether the disk is slow."""
        if ended - began > SLOW_WRITE_SECONDS:
            self.disk_is_slow_until = max(self.disk_is_slow_until, ended + SLOW_DISK_SECONDS)


# ------------------------------------------------------------------------------------------ the download


class _Enough(Exception):
    """The rest of a body is not wanted: its range was split, or the worker pauses."""


class _StartOver(Exception):
    """What is on disk does not fit what the mirrors have.

    Go on in another file: of the size that they have now, or of whatever size, because the source is another; or,
    with ``forget``, in the same file from its first byte.
    """

    def __init__(self, size_bytes: int | None = None, forget: bool = False) -> None:
        self.size_bytes = size_bytes
        self.forget = forget


@dataclass(slots=True, eq=False)
class _Request:
    """A request under way."""

    mirror: Mirror
    asked: Asked
    chunk: Chunk | None
    """What it fills, None before the first reply of all has opened the part."""
    began: float
    pace: Pace
    at: int
    """How far in the stream its body has come."""
    last_at: float
    """When the last byte came or, before the first, it was sent; later, when we were ready to go on."""
    answered_at: float | None = None
    reply: Verdict | None = None
    is_waiting: bool = False
    """It is we who keep it waiting: the disk, or the speed limit."""
    is_left: bool = False
    why_left: Verdict | None = None
    sampled_at: float = 0.0
    sampled_bytes: int = 0
    counted_bytes: int = 0
    samples_behind: int = 0
    time_limit: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Around the whole request: by this it is ended from outside."""

    @property
    def got_bytes(self) -> int:
        """How much came."""
        return self.at - self.asked.start

    def leave(self, verdict: Verdict | None) -> None:
        """End it: for what its mirror did or, with None, because it is not needed any more."""
        if not self.is_left:
            self.is_left, self.why_left = True, verdict
            self.time_limit.reschedule(asyncio.get_running_loop().time())

    def speed(self, now: float) -> float | None:
        """Return its bytes a second since the first one, None where it is too early to tell."""
        if self.answered_at is None:
            return None
        # A connection takes some round trips to come up to its speed.
        enough = min(LEAST_RANGE_SECONDS, max(LEAST_SPEED_SECONDS, 4 * self.mirror.first_byte_seconds))
        seconds = now - self.answered_at
        return self.got_bytes / seconds if seconds >= enough else None

    def sample(self, now: float) -> float | None:
        """Return its bytes a second since the last sample, None before that is long enough."""
        if (seconds := now - self.sampled_at) < SAMPLE_SECONDS:
            return None
        gained = self.got_bytes - self.sampled_bytes
        self.sampled_at, self.sampled_bytes = now, self.got_bytes
        return gained / seconds


@dataclass(frozen=True, slots=True)
class StreamFile:
    """A finished stream on disk, still locked: end it with ``close`` or ``discard``."""

    path: Path
    size_bytes: int
    _part: PartFile = field(repr=False)

    def close(self) -> None:
        """Free the lock and keep everything, for another try at the merge."""
        self._part.close()

    def discard(self) -> None:
        """Delete the stream: what was merged from it is recorded."""
        self._part.discard()


async def download_stream(
    wire: Wire,
    source: StreamSource,
    folder: Path,
    refresh: Callable[[], Awaitable[StreamSource]],
    report: Callable[[StreamProgress], None],
) -> StreamFile:
    """Download what is missing of a stream and return its file.

    Raise a JobError if that cannot be done now. Whatever ends it, the bytes that came stay in ``folder``, and the
    next call goes on from there.
    """
    download = _Download(wire, source, folder, refresh, report)
    try:
        part = await download.run()
    except BaseException:
        download.close()
        raise
    return StreamFile(part.path, part.held_bytes, part)


class _Download:
    """One stream on its way to the disk."""

    def __init__(
        self,
        wire: Wire,
        source: StreamSource,
        folder: Path,
        refresh: Callable[[], Awaitable[StreamSource]],
        report: Callable[[StreamProgress], None],
    ) -> None:
        self._wire = wire
        self._clock = wire.surroundings.clock
        self._source = source
        self._folder = folder
        self._refresh = refresh
        self._report = report
        self._mirrors = self._meet(source.urls)
        self._part: PartFile | None = None
        self._deadline = source.deadline
        self._refreshes = 0
        self._requests: set[_Request] = set()
        self._changed = asyncio.Event()
        self._told_at = float("-inf")
        self._wasted_bytes = 0.0
        self._pace = Pace(wire.patience, self._clock())
        """Of all connections together: of a slow line each has too little, but the stream moves."""
        self._is_proved = False
        """A reply proved the size of the stream: from then on it is worth while to ask for several ranges."""

    def _meet(self, urls: tuple[str, ...], untrusted: frozenset[str] = frozenset()) -> Mirrors:
        secured = map(self._wire.client.secured, urls)
        return Mirrors(self._wire.health, secured, self._wire.patience, self._wire.surroundings.draw, untrusted)

    # ---------------------------------------------------------------------------- from begin to end

    async def run(self) -> PartFile:
        """Return the complete part."""
        if part := PartFile.find(self._folder, self._identity):
            await self._adopt(part)
        for _attempt in range(self._wire.patience.restarts + 1):
            try:
                return await self._complete()
            except _StartOver as order:
                await self._start_over(order)
        raise TransferError(
            _("the mirrors of {name} of cid {cid} changed its size again and again").format(
                name=self._source.name, cid=self._source.cid
            )
        )

    def close(self) -> None:
        """Keep what is on disk and free its lock."""
        if self._part is not None:
            self._part.close()

    @property
    def _identity(self) -> Identity:
        return Identity(self._source.job, self._source.cid, self._source.name)

    async def _adopt(self, part: PartFile) -> PartFile:
        """Make a part ours, so that it is closed whatever happens, then read through it."""
        self._part = part
        if part.is_new:
            # Quick, and the first reply is waiting: the library drops what it holds of it if the connection breaks.
            part.prepare(self._wire.surroundings.free_bytes)
        else:
            await asyncio.to_thread(part.prepare, self._wire.surroundings.free_bytes)
        self._tell("")
        return part

    async def _start_over(self, order: _StartOver) -> None:
        self._mirrors = self._meet(self._source.urls, self._mirrors.untrusted)
        self._is_proved = False
        if order.forget and self._part is not None:
            self._part.forget()
            return
        self.close()
        self._part = None
        if part := self._reopen(order):
            await self._adopt(part)

    def _reopen(self, order: _StartOver) -> PartFile | None:
        if order.size_bytes is None:
            return PartFile.find(self._folder, self._identity)
        return PartFile.open(self._folder, self._identity, order.size_bytes)

    async def _complete(self) -> PartFile:
        """Send requests until nothing is missing; the first error of one ends all."""
        if not self._is_complete:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._watch())
                    await self._send_requests(group)
                    watch.cancel()
                    for request in self._requests:
                        request.leave(None)
            except BaseExceptionGroup as errors:
                raise _gravest(errors) from None
        assert self._part is not None and self._part.is_complete
        return self._part

    @property
    def _is_complete(self) -> bool:
        return self._part is not None and self._part.is_complete

    # ---------------------------------------------------------------------------- before a request

    async def _send_requests(self, group: asyncio.TaskGroup) -> None:
        """Begin a request whenever something is missing that nobody fetches, and a mirror and a connection are free."""
        while not self._is_complete:
            await self._wire.running.wait()
            self._changed.clear()
            wait_seconds = await self._obstacle_seconds()
            if not wait_seconds and (self._has_work or self._split_slowest()):
                has_begun = asyncio.get_running_loop().create_future()
                group.create_task(self._request(has_begun))
                await has_begun
            else:
                await self._wait_for_change(wait_seconds or None)

    @property
    def _has_work(self) -> bool:
        if self._is_proved and self._part is not None:
            return self._part.has_waiting
        return not self._requests and (self._part is None or self._part.has_waiting)

    async def _wait_for_change(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _obstacle_seconds(self) -> float:
        """Return how long no mirror can be asked, 0 if one can; ask for new URLs first if that is what it takes."""
        patience = self._wire.patience
        if self._has_expired() and self._refreshes < patience.refreshes:
            await self._renew()
        while not self._mirrors.usable:
            await self._replace_mirrors()
        if self._mirrors.are_hopeless():
            raise self._failure()
        now = self._clock()
        wait_seconds = self._mirrors.wait_seconds(now)
        if wait_seconds > patience.longest_wait_seconds and not self._requests:
            raise self._failure(wait_seconds)
        if not wait_seconds and self._mirrors.pick(now) is None:
            return CROWDED_SECONDS  # or until one of ours ends; others of the host may be other streams'
        return wait_seconds

    def _has_expired(self) -> bool:
        return self._deadline is not None and self._wire.surroundings.wall_clock() >= self._deadline

    async def _replace_mirrors(self) -> None:
        """Find a way to go on when no mirror is left: another size that they agree on, new URLs, another beginning."""
        losses = self._mirrors.losses
        may_refresh = self._refreshes < self._wire.patience.refreshes
        if Meaning.CHANGED in losses and not (Meaning.DEAD in losses and may_refresh):
            raise _StartOver(self._mirrors.changed_bytes)
        if not may_refresh and Meaning.RANGELESS in losses:
            raise _StartOver(forget=True)
        if not may_refresh:
            raise self._failure()
        await self._renew()

    async def _renew(self) -> None:
        """Ask for new URLs."""
        before = self._source
        self._refreshes += 1
        fresh = await self._refresh()
        self._source = fresh
        self._deadline = fresh.deadline
        if self._has_expired():
            self._deadline = None  # our clock is wrong, not the URLs; they say themselves when they are dead
        self._mirrors = self._meet(fresh.urls, self._mirrors.untrusted)
        if (fresh.cid, fresh.name) != (before.cid, before.name):
            raise _StartOver

    # ---------------------------------------------------------------------------- a request

    async def _request(self, has_begun: asyncio.Future[None]) -> None:
        """Wait for a connection, then fetch what is missing at that moment."""
        try:
            async with self._wire.connections.slot(self._source.job):
                # While this one waited, the mirrors may have changed, or the right to go on.
                mirror = self._mirrors.pick(self._clock()) if self._wire.running.is_set() else None
                if mirror is not None and self._has_work:
                    request = self._begin(mirror)
                    has_begun.set_result(None)
                    await self._attempt(request)
        finally:
            if not has_begun.done():
                has_begun.set_result(None)
            self._changed.set()

    def _begin(self, mirror: Mirror) -> _Request:
        """Take what is missing, as much as one connection should fetch."""
        now, most_bytes = self._clock(), self._source.most_bytes
        if (part := self._part) is None:
            chunk = None
            asked = Asked(0, CHUNK_BYTES, self._source.size_bytes, whole_is_fine=True, most_bytes=most_bytes)
        else:
            connections = self._wire.connections.share(self._source.job)
            size = range_bytes(part.waiting_bytes, connections, mirror.speed(now), mirror.first_byte_seconds)
            chunk = part.take(size)
            nothing_yet = part.held_bytes == 0 and not self._is_proved
            asked = Asked(chunk.at, chunk.stop, part.size_bytes, whole_is_fine=nothing_yet, most_bytes=most_bytes)
        request = _Request(mirror, asked, chunk, now, Pace(self._wire.patience, now), at=asked.start, last_at=now)
        self._requests.add(request)
        mirror.begin()
        return request

    async def _attempt(self, request: _Request) -> None:
        """Fetch what the mirror gives, and put the rest back into the line."""
        mirrors = self._mirrors
        verdict: Verdict | None = None
        try:
            async with (
                request.time_limit,
                self._wire.client.get(request.mirror.url, request.asked.start, request.asked.stop) as reply,
            ):
                await self._receive(request, reply)
        except _Enough:
            pass
        except FAILURES as error:
            verdict = request.why_left if request.is_left else judge_failure(error)
        finally:
            self._end(request)
        now = self._clock()
        self._count(request, now)
        if request.answered_at is not None and request.got_bytes >= LEAST_RANGE_BYTES and not self._wire.limit.holds:
            request.mirror.saw_speed(request.got_bytes / max(1e-3, now - request.answered_at), now)
        was_worth_it = verdict is None or self._was_worth_it(request, verdict, now)
        if was_worth_it and not (request.is_left and not request.got_bytes):
            mirrors.worked(request.mirror)
            mirrors.gained()
        if verdict is None:
            return
        if was_worth_it and verdict.is_cut and request.got_bytes >= FRUITFUL_BYTES:
            mirrors.stumbled(request.mirror, verdict, request.began, now)
        else:
            mirrors.failed(request.mirror, verdict, request.began, now)

    def _end(self, request: _Request) -> None:
        self._requests.discard(request)
        request.mirror.end()
        if self._part is not None and request.chunk is not None:
            self._part.give_back(request.chunk)
            self._tell(request.mirror.name)

    def _was_worth_it(self, request: _Request, verdict: Verdict, now: float) -> bool:
        """Tell whether a request that failed brought bytes at a fair speed before."""
        least_bytes = self._wire.patience.slow_bytes_per_second * (now - request.began)
        return request.got_bytes > 0 and request.got_bytes >= least_bytes and not verdict.slow

    async def _receive(self, request: _Request, reply: Reply) -> None:
        """Judge a reply and write its body; return when it is all there, or at a pause."""
        now = self._clock()
        verdict = judge(reply.status, reply.headers, request.asked, self._wire.surroundings.wall_clock())
        if verdict.meaning not in ACCEPTED:
            raise Refused(verdict)
        request.reply = verdict
        request.mirror.saw_first_byte(now - request.began, now)
        part = await self._accept(request, verdict)
        request.answered_at = request.sampled_at = request.last_at = self._clock()
        if request.chunk is None or request.chunk.at != request.asked.start or verdict.meaning is Meaning.END:
            return
        await reply.receive(lambda data: self._take(part, request, data))
        if not (part.is_complete or request.at == verdict.stop):
            self._at_end_of_body(part, verdict, request.at)

    async def _accept(self, request: _Request, verdict: Verdict) -> PartFile:
        """Learn the size from a good reply, and let other requests begin; the first reply of all opens the part."""
        part = self._part
        if part is None:
            part = await self._adopt(PartFile.open(self._folder, self._identity, verdict.total_bytes))
            if part.has_waiting:
                request.chunk = part.take(CHUNK_BYTES)
        elif part.size_bytes is None and verdict.total_bytes is not None:
            part.set_size(verdict.total_bytes)
        if verdict.meaning is not Meaning.WHOLE:  # that one brings everything, there is nothing for others
            self._is_proved = True
            self._changed.set()
        return part

    # ---------------------------------------------------------------------------- the bytes

    def _take(self, part: PartFile, request: _Request, data: memoryview) -> Awaitable[None] | None:
        """Take the next piece of a body, which is only lent: write it, or copy it for a thread to write."""
        began = self._clock()
        self._wire.connections.received(len(data))
        to_pay = self._wire.limit.spend(len(data))
        if began < self._wire.disk_is_slow_until:
            return self._take_slowly(part, request, bytes(data), to_pay)
        for chunk, piece in self._pieces(part, request, data):
            part.store(chunk.at, piece)
        now = request.last_at = self._clock()
        self._wire.saw_write(began, now)
        if now - self._told_at >= TELL_SECONDS or part.is_complete:
            self._tell(request.mirror.name)
        return None if to_pay is None else self._wait(request, to_pay)

    async def _take_slowly(
        self, part: PartFile, request: _Request, data: bytes, to_pay: Awaitable[None] | None
    ) -> None:
        """Write a piece in a thread; nothing more is read from this connection until that is done."""
        request.is_waiting = True
        for chunk, piece in self._pieces(part, request, memoryview(data)):
            self._wire.saw_write(*await _in_thread(self._clock, part.store, chunk.at, piece))
        self._tell(request.mirror.name)
        await self._wait(request, to_pay)

    async def _wait(self, request: _Request, to_pay: Awaitable[None] | None) -> None:
        """Wait until what was received is paid for."""
        request.is_waiting = True
        if to_pay is not None:
            await to_pay
        request.is_waiting = False
        request.last_at = self._clock()

    def _pieces(self, part: PartFile, request: _Request, data: memoryview) -> Iterator[tuple[Chunk, memoryview]]:
        """Yield what of a piece is to be stored where; it is counted when the caller comes back for more.

        Raise _Enough where the range ends before the body does, because it was split, or where the worker pauses. The
        whole stream in one body goes on from chunk to chunk.
        """
        verdict, rest = request.reply, data
        assert verdict is not None and request.chunk is not None
        if verdict.stop is not None and len(rest) > verdict.stop - request.at:
            raise Refused(Verdict(Meaning.WRONG, cause=_("more bytes than it announced")))
        if part.size_bytes is None and request.at + len(rest) > request.asked.most_bytes:
            raise Refused(Verdict(Meaning.WRONG, cause=_("more bytes than this stream can have")))
        while rest:
            chunk = request.chunk
            if not chunk.missing_bytes:
                chunk = self._next_chunk(part, request)
            piece = rest[: chunk.missing_bytes]
            yield chunk, piece
            piece = piece[: chunk.missing_bytes]  # it may have been split while a thread was writing
            part.grow(chunk, piece)
            request.at += len(piece)
            rest = rest[len(piece) :]
            if not chunk.missing_bytes:
                self._refreshes = 0
        if not self._wire.running.is_set() or (request.at != verdict.stop and self._is_over(part, request)):
            raise _Enough

    def _next_chunk(self, part: PartFile, request: _Request) -> Chunk:
        if request.reply is not None and request.reply.meaning is not Meaning.WHOLE:
            raise _Enough
        if not part.has_waiting:
            raise Refused(Verdict(Meaning.WRONG, cause=_("more bytes than it announced")))
        request.chunk = part.take(CHUNK_BYTES)
        return request.chunk

    def _is_over(self, part: PartFile, request: _Request) -> bool:
        """Tell whether a body brings nothing that is missing."""
        assert request.chunk is not None and request.reply is not None
        return part.is_complete or (request.reply.meaning is not Meaning.WHOLE and not request.chunk.missing_bytes)

    def _at_end_of_body(self, part: PartFile, verdict: Verdict, at: int) -> None:
        """A body ended before its range did: that is the end of the stream only where nobody knows a better one."""
        if verdict.stop is not None or part.size_bytes is not None or self._source.size_bytes not in (None, at):
            raise Refused(Verdict(Meaning.BROKEN, cause=_("the body was cut short"), is_cut=True))
        part.set_size(at)

    # ---------------------------------------------------------------------------- the watch

    async def _watch(self) -> None:
        """Look after the requests under way, several times a second."""
        while True:
            await asyncio.sleep(self._wire.patience.watch_seconds)
            self._wire.tick()
            now = self._clock()
            for request in list(self._requests):
                gained_bytes = self._count(request, now)
                if not self._wire.running.is_set():
                    request.leave(None)
                elif not request.is_waiting and (verdict := self._judge(request, gained_bytes, now)) is not None:
                    request.leave(verdict)
            if self._wire.connections.has_free():
                self._changed.set()  # there may be something to split

    def _count(self, request: _Request, now: float) -> int:
        """Return how many bytes a request brought since the last look; they are a reason to go on."""
        gained_bytes = request.got_bytes - request.counted_bytes
        request.counted_bytes = request.got_bytes
        if self._pace.is_good(gained_bytes, now):
            self._mirrors.gained()
        return gained_bytes

    def _judge(self, request: _Request, gained_bytes: int, now: float) -> Verdict | None:
        """Return why a request should be left, None while it may go on."""
        mirror = request.mirror
        if now - request.last_at >= self._wire.patience.stall_seconds:
            return Verdict(Meaning.BROKEN, cause=_("it went silent"))
        if request.answered_at is None:
            if now - request.began < self._mirrors.late_after_seconds(mirror, now):
                return None
            mirror.was_late(now - request.began, now)
            return Verdict(Meaning.BROKEN, cause=_("it answers late"), slow=True)
        if request.pace.is_too_slow(gained_bytes, now):
            return Verdict(Meaning.BROKEN, cause=_("it is too slow"), slow=True)
        speed = request.sample(now)
        return None if speed is None or self._wire.limit.holds else self._compare(request, speed, now)

    def _compare(self, request: _Request, speed: float, now: float) -> Verdict | None:
        """Return why a mirror should be left for a quicker one."""
        request.mirror.saw_speed(speed, now)
        is_behind = self._mirrors.is_behind(request.mirror, speed, now)
        request.samples_behind = request.samples_behind + 1 if is_behind else 0
        if request.samples_behind * SAMPLE_SECONDS < self._wire.patience.behind_seconds:
            return None
        return Verdict(Meaning.BROKEN, cause=_("another mirror is much quicker"), slow=True)

    def _split_slowest(self) -> bool:
        """Put a part of the range that would be done last back into the line, if that is done sooner then."""
        part = self._part
        if part is None or not self._is_proved or self._wire.limit.holds or not self._wire.connections.has_free():
            return False
        now = self._clock()
        slowest = max(self._requests, key=lambda request: _left_seconds(request, now), default=None)
        other = self._mirrors.pick(now)
        if slowest is None or slowest.chunk is None or other is None or slowest.is_left or slowest.is_waiting:
            return False
        speed = slowest.speed(now)
        if speed is None:
            return False
        others_speed = other.speed(now) or max(speed, UNKNOWN_BYTES_PER_SECOND)
        size = split_bytes(
            slowest.chunk.missing_bytes,
            speed,
            others_speed,
            other.first_byte_seconds,
            self._wire.patience.split_seconds,
        )
        # What the slow one has on its way when its connection is closed comes in vain.
        waste = speed * max(LEAST_WASTE_SECONDS, slowest.mirror.first_byte_seconds)
        may_waste = self._wire.patience.waste_share * (part.size_bytes or part.held_bytes)
        if size < LEAST_SPLIT_BYTES or self._wasted_bytes + waste > may_waste:
            return False
        self._wasted_bytes += waste
        if slowest.chunk.missing_bytes - size < LEAST_SPLIT_BYTES:
            slowest.leave(Verdict(Meaning.BROKEN, cause=_("it is too slow"), slow=True))
            return False  # it gives back its range in a moment
        part.split(slowest.chunk, slowest.chunk.stop - size)
        return True

    # ---------------------------------------------------------------------------- small things

    def _tell(self, host: str) -> None:
        if self._part is not None:
            self._told_at = self._clock()
            self._report(StreamProgress(self._source.name, self._part.held_bytes, self._part.size_bytes, host))

    def _failure(self, retry_after_seconds: float | None = None) -> TransferError:
        return TransferError(
            _("{name} of cid {cid} cannot be had from any mirror: {causes}").format(
                name=self._source.name, cid=self._source.cid, causes=self._mirrors.causes()
            ),
            retry_after_seconds=retry_after_seconds,
        )


def _left_seconds(request: _Request, now: float) -> float:
    """Return how long a request will still take, as far as one can tell; -1 where one cannot."""
    speed = request.speed(now)
    if speed is None or request.chunk is None:
        return -1.0
    return request.chunk.missing_bytes / speed if speed else float("inf")


async def _in_thread(
    clock: Callable[[], float], store: Callable[[int, memoryview], None], at: int, data: memoryview
) -> tuple[float, float]:
    """Write in a thread, and return when that began and ended; it may have waited for a thread before.

    When cancelled, only after it is done: the file must not be closed meanwhile.
    """

    def timed() -> tuple[float, float]:
        began = clock()
        store(at, data)
        return began, clock()

    writing = asyncio.get_running_loop().run_in_executor(None, timed)
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing])
        raise


def _gravest(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error to go on with: a fault of ours before the machine's, the job's, and a new beginning."""
    order = (_StartOver, JobError, CircumstanceError)
    leaves: list[BaseException] = []
    pending: list[BaseException] = [errors]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return max(leaves, key=lambda error: max((n for n, kind in enumerate(order) if isinstance(error, kind)), default=9))
