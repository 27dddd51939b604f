"""The world around the product: machines with disks, a network, the site, and the functions that stand for both."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

import download_scheduler
import queue_client
from config import Settings
from errors import (
    DiskFull,
    MergeError,
    NameTaken,
    Parked,
    PermanentError,
    RiskControl,
    SiteError,
    StaleToken,
    TransferError,
)
from model import (
    CHUNK_BYTES,
    JobId,
    Merged,
    MergePlan,
    Page,
    Playinfo,
    Segment,
    Stream,
    StreamProgress,
    StreamSource,
    Video,
)
from pace import Pace
from parse_ import parse_job_id
from tests.simulation.loop import THREAD, Thread, VirtualLoop
from transfer.speed_limit import SpeedLimit

CALL_SECONDS = 20.0
"""What the real session waits for an answer."""


class ProcessThread(Thread):
    """A thread of a worker: its main loop or its heartbeat."""

    __slots__ = ("process",)

    def __init__(self, process: Process, name: str) -> None:
        super().__init__(name)
        self.process = process


class Process:
    """One life of a worker."""

    def __init__(self, machine: Machine, instance: str) -> None:
        self.machine, self.instance = machine, instance
        self.main = ProcessThread(self, f"{machine.name}.{instance}")
        self.beat = ProcessThread(self, f"{machine.name}.{instance}.beat")
        self.scheduler: download_scheduler.Scheduler | None = None
        self.is_stopping = False
        self.went_on_at = 0.0

    @property
    def is_alive(self) -> bool:
        return not self.main.is_dead


@dataclass(eq=False)
class Part:
    """A stream on a disk: which of its chunks are there, and who works on it."""

    job: str
    cid: int
    name: str
    chunks: int
    path: Path
    born: int
    done: set[int] = field(default_factory=set)
    owner: Process | None = None
    is_second: bool = False
    """Whether it was begun beside one that someone else had: then both are downloaded."""

    @property
    def is_free(self) -> bool:
        return self.owner is None or not self.owner.is_alive  # the kernel frees the lock of a process that died

    @property
    def held_bytes(self) -> int:
        return len(self.done) * CHUNK_BYTES


class Disk:
    """What a machine keeps when its processes die; two workers of one machine share it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.parts: list[Part] = []
        self.published: dict[int, str] = {}
        self.is_full = False
        self._born = 0
        for name in ("Download", "data"):
            (folder / name).mkdir(parents=True)

    def open_part(self, source: StreamSource, chunks: int, process: Process) -> Part:
        """Take the part of a stream that has most of it, or begin a fresh one beside a part that is in use."""
        same = [part for part in self.parts if (part.cid, part.name) == (source.cid, source.name)]
        free = [part for part in same if part.is_free]
        if free:
            part = max(free, key=lambda part: len(part.done))
        else:
            self._born += 1
            path = self.folder / "Download" / ".parts" / f"{source.cid}-{source.name}-{self._born}"
            part = Part(source.job, source.cid, source.name, chunks, path, self._born)
            self.parts.append(part)
            if same:
                part.is_second = True
                self.world.note(process.machine.name, f"begins {source.name} of {source.job} beside a locked part")
                self.world.counts["parts beside a locked one"] += 1
        part.owner = process
        return part


class Machine:
    """A worker's place: its name, its disk and its working.json outlive its processes."""

    def __init__(self, world: World, name: str, disk: Disk, count: int, chunk_seconds: float) -> None:
        self.world, self.name, self.disk = world, name, disk
        self.chunk_seconds = chunk_seconds
        self.clock_offset = 0.0
        self.is_cut = self.is_gone = False
        self.until_empty_seconds: float | None = None
        self.process: Process | None = None
        self.working_file = disk.folder / f"working-{name}.json"
        self.settings = Settings(
            server_urls=("http://127.0.0.1:8080",),
            worker=name,
            download_dir=disk.folder / "Download",
            data_dir=disk.folder / "data",
            working_file=self.working_file,
            lease_seconds=world.lease_seconds,
            affinity_seconds=world.affinity_seconds,
            api_interval_seconds=0.0,
        )
        self.write_working(1, count)
        self.count = count

    def write_working(self, stop: int, count: int) -> None:
        self.working_file.write_text(json.dumps({"stop": stop, "count": count}), "utf-8")

    def start(self) -> None:
        """Start the worker, unless it runs or never comes back."""
        if self.process is not None or self.is_gone:
            return
        process = self.process = Process(self, f"{round(self.world.loop.time() * 1000):06x}{self.world.hexadecimal(1)}")
        process.main.posts_to = process.beat.posts_to = process.main
        self.world.note(self.name, f"starts as {process.instance}")
        self.world.loop.create_task(self._life(process), context=process.main.context)

    async def _life(self, process: Process) -> None:
        world = self.world
        running = asyncio.Event()
        client = queue_client.QueueClient(
            self.settings,
            Session(world),  # type: ignore[arg-type]
            self.name,
            process.instance,
            world.random.random,
        )
        scheduler = process.scheduler = world.scheduler_class(
            self.settings,
            client,
            Site(world, process),  # type: ignore[arg-type]
            SimpleNamespace(running=running, limit=SpeedLimit()),  # type: ignore[arg-type]
            running,
            "ffmpeg",
            self.name,
            process.instance,
            world.random.random,
        )
        try:
            status = await scheduler.run(self.until_empty_seconds)
        except Exception as error:
            world.violate(f"the worker {self.name} ended with {type(error).__name__}: {error}")
        else:
            world.note(self.name, f"ended in order: {status}")
            world.ended(process, status)
        self._end(process)

    def kill(self, why: str) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.world.note(self.name, f"KILLED {why}")
            self.world.counts["kills"] += 1
            self._end(self.process)

    def _end(self, process: Process) -> None:
        self.world.loop.kill(process.main)
        self.world.loop.kill(process.beat)
        if self.process is process:
            self.process = None

    def signal(self) -> None:
        """SIGTERM."""
        process = self.process
        if process is not None and process.scheduler is not None and not process.is_stopping:
            self.world.note(self.name, "SIGTERM")
            process.is_stopping = True
            self.world.loop.call_soon(process.scheduler.stop, context=process.main.context)


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, folder: Path, lease_seconds: float, affinity_seconds: float) -> None:
        self.seed, self.folder = seed, folder
        self.random = random.Random(seed)
        self.loop = VirtualLoop()
        self.lease_seconds, self.affinity_seconds = lease_seconds, affinity_seconds
        self.scheduler_class = download_scheduler.Scheduler
        self.trace: list[tuple[float, str, str]] = []
        self.counts: Counter[str] = Counter()
        self.drain_seconds = 0.0
        self.user_calls = 0
        """How many calls of the user are still on their way."""
        self.violations: list[str] = []
        self.queue_offset = 0.0
        self.leases_may_lie = False
        """Whether the queue's clock or its data were set: then a worker may believe in a lease that is no more."""
        self.taken: set[str] = set()
        """The tokens of leases that a user has ended; who had them hears of it with its next heartbeat."""
        self.server_is_away = self.is_over = False
        self.machines: list[Machine] = []
        self.faults = Faults()
        self.videos: dict[int, SimulatedVideo] = {}
        self.handle: Callable[..., tuple[int, dict[str, str], bytes]]
        self.token_of: Callable[[str], str | None]
        self.ended: Callable[[Process, int], None]
        self.published: dict[int, list[str]] = {}

    def note(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        if self.is_over:
            return
        self.trace.append((self.loop.time(), who, what))

    def violate(self, what: str) -> None:
        """Say that something happened that must never happen; the seed ends."""
        if self.is_over:
            return  # what the dead do when their remains are cleared away
        self.note("CHECK", what)
        self.violations.append(what)
        self.loop.is_halted = True

    def hexadecimal(self, size_bytes: int) -> str:
        return f"{self.random.getrandbits(8 * size_bytes):0{2 * size_bytes}x}"

    def clock_ms(self) -> int:
        """The clock of the queue."""
        return 1_700_000_000_000 + round((self.loop.time() + self.queue_offset) * 1000)

    def lease_clock(self) -> float:
        """The clock of the machine that asks."""
        thread = THREAD.get()
        offset = thread.process.machine.clock_offset if isinstance(thread, ProcessThread) else 0.0
        return self.loop.time() + offset

    def video_of(self, job: JobId) -> SimulatedVideo:
        """Find what a job id means; an episode is another name of a video."""
        wanted = job.bvid or job.episode_id
        return next(video for video in self.videos.values() if wanted in (video.bvid, video.episode_id))

    def page(self, cid: int) -> SimulatedPage:
        return next(page for video in self.videos.values() for page in video.pages if page.cid == cid)

    # -------------------------------------------------------------------------------- moments

    def moment(self, name: str, process: Process | None) -> None:
        """Let a worker die or stand still at a moment of its work, where the seed wants that."""
        if process is None or not process.is_alive or self.random.random() >= self.faults.moments:
            return
        machine = process.machine
        if self.random.random() < 0.6:
            machine.kill(f"at {name}")
            self.later(self.random.uniform(0.2, 8.0), machine.start)
        else:
            self.stop(process, self.random.uniform(0.5, 2.5 * self.lease_seconds), name)

    def stop(self, process: Process, seconds: float, why: str, also_beats: bool = True) -> None:
        """SIGSTOP, and SIGCONT later; without ``also_beats`` it is the main loop alone that stands still."""
        threads = [process.main, process.beat] if also_beats else [process.main]
        self.note(process.machine.name, f"{'STOPPED' if also_beats else 'BLOCKED'} for {seconds:.1f} s: {why}")
        self.counts["stops"] += 1
        for thread in threads:
            self.loop.stop_thread(thread)

        def go_on() -> None:
            if process.is_alive:
                self.note(process.machine.name, "goes on")
                process.went_on_at = self.loop.time()
                for thread in threads:
                    self.loop.go_on(thread)

        self.later(seconds, go_on)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        self.loop.call_later(seconds, function, context=NOBODY.context)

    async def gate(self, name: str, process: Process) -> None:
        """Pass a moment as the process itself: the dead do not get any further."""
        self.moment(name, process)
        if not process.is_alive:
            await self.loop.create_future()
        if process.main.stops:
            await asyncio.sleep(0)


NOBODY = Thread("nobody")
NOBODY.context.run(THREAD.set, None)


@dataclass
class Faults:
    """What goes wrong now, as probabilities and switches."""

    lose: float = 0.0
    reset: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    moments: float = 0.0
    transient: float = 0.0
    risk: float = 0.0


def current() -> tuple[World, Process]:
    """Return the world and the process whose thread runs now."""
    thread = THREAD.get()
    assert isinstance(thread, ProcessThread)
    return thread.process.machine.world, thread.process


# ------------------------------------------------------------------------------------------ the network


class Session:
    """Stands for aiohttp's session with the queue server."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    def request(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        allow_redirects: bool = True,
    ) -> Exchange:
        return Exchange(self._world, method, url.removeprefix("http://127.0.0.1:8080"), params, json)


class Exchange:
    """A request that is on its way while it is entered."""

    def __init__(self, world: World, method: str, path: str, query: Mapping[str, str] | None, body: Any) -> None:
        self._world = world
        self._call = (method, path, query, body)

    async def __aenter__(self) -> Reply:
        thread = THREAD.get()
        process = thread.process if isinstance(thread, ProcessThread) else None
        if process is not None:
            await self._world.gate(f"sending {self._call[1]}", process)
        return Reply(*await exchange(self._world, process, *self._call))

    async def __aexit__(self, *_error: object) -> None:
        return None


class Reply:
    """Stands for aiohttp's answer."""

    def __init__(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.status, self.headers, self.content = status, headers, self
        self._content = content

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._content


async def exchange(
    world: World, process: Process | None, method: str, path: str, query: Mapping[str, str] | None, body: Any
) -> tuple[int, dict[str, str], bytes]:
    """Carry a request to the server and its answer back, through whatever is wrong with the network now."""
    call = Call(world, process, (method, path, query, body))
    call.send()
    async with asyncio.timeout(CALL_SECONDS):
        return await call.answer  # type: ignore[no-any-return]


class Call:
    """A request on its way. What happens to it goes on when the one who sent it is dead."""

    def __init__(self, world: World, process: Process | None, request: tuple[str, str, Any, Any]) -> None:
        self._world, self._process, self._request = world, process, request
        self._who = process.machine.name if process else "user"
        self.answer: asyncio.Future[Any] = world.loop.create_future()

    @property
    def _path(self) -> str:
        return self._request[1]

    def send(self) -> None:
        """Put it on its way, or lose it."""
        faults, draw = self._world.faults, self._world.random.random
        if draw() < faults.lose / 2:
            self._world.note(self._who, f"{self._path} is lost")
        elif draw() < faults.reset / 2:
            self._fail("reset by peer", self._latency())
        else:
            self._deliver_after(self._latency())
            if draw() < faults.duplicate:
                self._world.note(self._who, f"{self._path} comes twice")
                self._deliver_after(self._latency() + self._latency() * 20)

    def _latency(self) -> float:
        draw = self._world.random.random
        if draw() < self._world.faults.delay:
            return self._world.random.choice((0.3, 1.0, 3.0, 8.0)) * draw()
        return 0.001 + 0.01 * draw()

    def _is_cut(self) -> bool:
        return self._process is not None and self._process.machine.is_cut

    def _deliver_after(self, seconds: float) -> None:
        self._world.user_calls += self._process is None
        self._world.later(seconds, self._deliver)

    def _deliver(self) -> None:
        world = self._world
        world.user_calls -= self._process is None
        if self._is_cut():
            world.note(self._who, f"{self._path} lost in the cut")
        elif world.server_is_away:
            self._fail("refused", 0.001)
        else:
            self._reply(world.handle(self._who, self._process, *self._request))

    def _reply(self, reply: tuple[int, dict[str, str], bytes]) -> None:
        world = self._world
        world.moment(f"{self._path} was handled", self._process)
        if world.random.random() < world.faults.lose / 2:
            world.note(self._who, f"{self._path} the answer is lost")
        elif world.random.random() < world.faults.reset / 2:
            self._fail("reset by peer", self._latency())
        else:
            world.later(self._latency(), lambda: self._arrive(reply))

    def _arrive(self, reply: tuple[int, dict[str, str], bytes]) -> None:
        if not self.answer.done() and not self._is_cut():
            self.answer.set_result(reply)

    def _fail(self, why: str, after_seconds: float) -> None:
        def raise_it() -> None:
            if not self.answer.done():
                self.answer.set_exception(aiohttp.ClientConnectionError(why))

        self._world.later(after_seconds, raise_it)


# ------------------------------------------------------------------------------------------ the site


@dataclass
class SimulatedPage:
    """A page, its streams with their number of chunks, and what is wrong with it."""

    cid: int
    title: str
    streams: dict[str, int]
    is_joined: bool = False
    permanent: str = ""
    poison: str = ""
    """Where it kills its worker: at ``download`` or at ``merge``."""
    failures: int = 0
    """How many transient faults it met."""


@dataclass
class SimulatedVideo:
    """A video that a user may ask for."""

    aid: int
    bvid: str
    title: str
    pages: list[SimulatedPage]
    episode_id: int
    permanent: str = ""
    poison: bool = False
    """Whether it kills the worker that reads it."""
    has_grown: bool = False
    failures: int = 0


class NoLogin:
    """Stands for the account of a guest."""

    problem = digest = ""


class Site:
    """Stands for BiliClient."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process
        self.pace = Pace(0.0, world.loop.time)
        self.login = NoLogin()

    async def _turn(self) -> None:
        """Wait as BiliClient does."""
        while True:
            if self.pace.parked_seconds > 0:
                raise Parked("not now")
            if (wait_seconds := self.pace.wait_seconds()) <= 0:
                self.pace.take()
                return
            await asyncio.sleep(min(wait_seconds, 0.5))

    async def describe(self, job: JobId) -> Video:
        await self._turn()
        world = self._world
        await asyncio.sleep(0.02 + 0.2 * world.random.random())
        await world.gate("describe", self._process)
        video = world.video_of(job)
        if video.poison and not job.cid:
            _die_of_poison(world, self._process, str(job))
            await world.loop.create_future()
        self._fail(video if not job.cid else world.page(job.cid))
        if video.permanent:
            raise PermanentError("it is gone", video.permanent)
        pages = tuple(Page(number, page.cid, page.title, 10.0) for number, page in enumerate(video.pages, 1))
        return Video(video.bvid, video.aid, video.title, pages, episode_id=job.episode_id or None)

    async def playinfo(self, _video: Video, wanted: Page) -> Playinfo:
        await self._turn()
        world = self._world
        await asyncio.sleep(0.02 + 0.1 * world.random.random())
        await world.gate("playinfo", self._process)
        page = world.page(wanted.cid)
        self._fail(page)
        if page.permanent:
            raise PermanentError("it is for others", page.permanent)
        url = ("https://media.example/",)
        if page.is_joined:
            segments = tuple(
                Segment(order, chunks * CHUNK_BYTES, 5.0, url) for order, chunks in enumerate(page.streams.values(), 1)
            )
            return Playinfo(10.0, segments=segments, segments_qn=64)
        return Playinfo(10.0, (Stream("video", 80, 7, "avc", 1, url),), (Stream("audio", 30280, 0, "mp4a", 1, url),))

    def _fail(self, what: SimulatedPage | SimulatedVideo) -> None:
        draw = self._world.random.random
        if draw() < self._world.faults.risk:
            raise RiskControl("slow down", "-352")
        self.pace.answered()
        if draw() < self._world.faults.transient:
            what.failures += 1
            raise SiteError("nonsense")


# ------------------------------------------------------------------------------------------ a worker's own work


class StreamOnDisk:
    """Stands for StreamFile."""

    def __init__(self, disk: Disk, part: Part) -> None:
        self._disk, self._part = disk, part
        self.path = part.path
        self.size_bytes = part.held_bytes

    def close(self) -> None:
        self._part.owner = None

    def discard(self) -> None:
        self._part.owner = None
        if self._part in self._disk.parts:
            self._disk.parts.remove(self._part)


async def download_stream(
    wire: Any, source: StreamSource, _folder: Path, _refresh: Any, report: Callable[[StreamProgress], None]
) -> StreamOnDisk:
    """Stand for the download of a stream: chunk by chunk, each of which is on disk from then on."""
    world, process = current()
    machine, page = process.machine, world.page(source.cid)
    if file := machine.disk.published.get(source.cid):
        world.counts["downloads of what stands"] += 1
        # One that stood still while another worker on its disk did the job does not know yet; it is told in a moment.
        is_current = process.scheduler and world.token_of(source.job) == _believed_token(process, source.job)
        if is_current and not _has_grown(world, source.cid):
            world.violate(f"{machine.name} downloads {source.job} again, its file is {file}")
    chunks = page.streams[source.name]
    part = machine.disk.open_part(source, chunks, process)
    try:
        report(StreamProgress(source.name, part.held_bytes, chunks * CHUNK_BYTES, "mirror"))
        for chunk in range(chunks):
            if page.poison == "download":
                _die_of_poison(world, process, source.job)
                await world.loop.create_future()
            await wire.running.wait()
            if chunk in part.done:
                continue
            await asyncio.sleep(machine.chunk_seconds * (0.5 + world.random.random()))
            await world.gate("chunk", process)
            _take_chunk(world, machine, page, part, chunk)
            report(StreamProgress(source.name, part.held_bytes, chunks * CHUNK_BYTES, "mirror"))
        return StreamOnDisk(machine.disk, part)
    except BaseException:
        part.owner = None
        raise


def _take_chunk(world: World, machine: Machine, page: SimulatedPage, part: Part, chunk: int) -> None:
    if world.random.random() < world.faults.transient / 3:
        page.failures += 1
        raise TransferError("no mirror")
    disk = machine.disk
    if disk.is_full:
        raise DiskFull("no room")
    had = [
        other
        for other in disk.parts
        if (other.cid, other.name) == (part.cid, part.name)
        and chunk in other.done
        and not (part.is_second or other.is_second)
    ]
    if had:
        world.violate(f"{machine.name} downloads chunk {chunk} of {part.name} of {part.cid} again")
    if part not in disk.parts:
        world.violate(f"{machine.name} writes into a part of {part.job} that was discarded")
    part.done.add(chunk)
    world.counts["chunks"] += 1


def _die_of_poison(world: World, process: Process, job: str) -> None:
    process.machine.kill(f"by poison in {job}")
    world.counts["poisoned"] += 1
    world.later(world.random.uniform(0.1, 1.0), process.machine.start)


def _believed_token(process: Process, url: str) -> str:
    assert process.scheduler is not None
    held = process.scheduler._held.get(url)
    return held.lease.token if held else ""


def _has_grown(world: World, cid: int) -> bool:
    return any(video.has_grown for video in world.videos.values() if any(page.cid == cid for page in video.pages))


async def merge(_ffmpeg: str, plan: MergePlan, may_publish: Callable[[], bool]) -> Merged:
    """Stand for ffmpeg and the publishing of its file."""
    world, process = current()
    cid = int(plan.tag.rpartition("cid=")[2])
    page = world.page(cid)
    if page.poison == "merge":
        _die_of_poison(world, process, f"the page {cid}")
        await world.loop.create_future()
    await world.gate("merge", process)
    await asyncio.sleep(0.05 + 0.8 * world.random.random())
    if world.random.random() < world.faults.transient / 3:
        page.failures += 1
        raise MergeError("ffmpeg failed")
    await world.gate("merged", process)
    if not may_publish():
        raise StaleToken("not published")
    publish(world, process, cid, plan.output, getattr(may_publish, "__self__", None))
    await world.gate("published", process)
    await asyncio.sleep(0.001)
    return Merged(plan.output, 1000, 10.0)


def publish(world: World, process: Process, cid: int, output: str, held: Any) -> None:
    """Give a file its name; it must be the one that holds the lease who does."""
    machine = process.machine
    path = Path(output)
    try:
        with path.open("x") as file:
            file.write(str(cid))
    except FileExistsError:
        raise NameTaken("there is a file") from None
    token, url = held.lease.token, held.lease.url
    world.note(machine.name, f"publishes {url}")
    if world.token_of(url) != token:
        world.counts["published without a lease"] += 1
        if not world.leases_may_lie and token not in world.taken:
            world.violate(f"{machine.name} publishes {url} with a lease that the queue has ended")
    machine.disk.published[cid] = output
    world.published.setdefault(cid, []).append(machine.name)


def unfinished_jobs(_folder: Path) -> dict[str, int]:
    _world, process = current()
    found: dict[str, int] = {}
    for part in sorted(process.machine.disk.parts, key=lambda part: -part.born):
        found[part.job] = found.get(part.job, 0) + part.held_bytes
    return found


def discard_parts(_folder: Path, cid: int) -> None:
    disk = current()[1].machine.disk
    disk.parts[:] = [part for part in disk.parts if part.cid != cid or not part.is_free]


def cid_of(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None


def free_disk_bytes(_folder: Path) -> int:
    return 10**6 if current()[1].machine.disk.is_full else 10**12


class TaskHeartbeat(queue_client.Heartbeat):
    """Beats in a task of the virtual loop instead of a thread; the task is a thread of its own to be stopped."""

    def start(self) -> None:
        _world, process = current()
        self._ended = asyncio.Event()
        asyncio.get_running_loop().create_task(self._beats(), context=process.beat.context)

    def stop(self) -> None:
        super().stop()
        self._ended.set()

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            return


def session_of(_settings: Settings) -> Session:
    return Session(current()[0])


def job_cid(url: str) -> int:
    return parse_job_id(url).cid
