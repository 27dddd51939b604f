"""One seed: what is in the farm, what goes wrong, what must be true in the end."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import random
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp

import budgets
import download_scheduler
import queue_client
import retry
from config import Settings
from errors import EngineError
from parse_ import aid_to_bvid, parse_job_id
from store.data import BUCKETS, key, shard_of_id
from tests.simulation import world as outside
from tests.simulation.breaks import BREAKS
from tests.simulation.checks import Looker, Snapshot, problems
from tests.simulation.engine import Engine, Server
from tests.simulation.loop import Stuck
from tests.simulation.world import Disk, Faults, Machine, Process, SimulatedPage, SimulatedVideo, World, exchange

HEALTHY_POISON_IS_A_VIOLATION = False
"""Whether a job that kills nobody may never be called poison. Where nothing but its own workers dies, three times in a
row, nobody can tell the two apart: it is counted, and said."""

BUCKET = 4242
"""All numbers of a seed lie in one bucket of the queue's sets."""
REFRESH_IS_KEPT = True
"""Whether a refresh that crosses an expansion must not be lost."""

DRAIN_SECONDS = 900.0
EMPTY_SECONDS = 400.0
IDLE_SECONDS = 200.0
END_SECONDS = 3000.0
ENDING_VERBS = frozenset({"/ack", "/nack", "/release", "/expand"})

COPY = "for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('COPY', key, key, 'DB', 1, 'REPLACE') end"

KINDS = (
    *("lose", "reset", "duplicate", "delay", "moments", "transient", "risk"),
    *("cut", "server_gone", "engine_gone", "engine_answer", "kill", "stop", "block", "queue_clock", "worker_clock"),
    *("working", "signal", "disk", "redrive", "again", "grow", "gone", "flush", "wipe"),
)
"""The faults that a seed may have; each has some of them, so that some have a few and few have all."""
ACTS = ("cancel", "first", "forget")
"""What a user may do to single jobs; drawn apart, so that the other faults of a seed stay what they were."""


@dataclass
class Outcome:
    """What came of a seed."""

    seed: int
    violations: list[str]
    trace: list[tuple[float, str, str]]
    counts: Counter[str] = field(default_factory=Counter)
    kinds: tuple[str, ...] = ()
    drain_seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """Yield the trace for people."""
        for at, who, what in self.trace:
            yield f"{at:9.3f}  {who:6} {what}"


class Seed:
    """Makes a farm from a seed, runs it, and looks at it."""

    def __init__(
        self, number: int, engine: Engine, folder: Path, break_name: str = "", kinds: str = "", shards: int = 1
    ) -> None:
        chance = self.chance = random.Random(number)
        lease_seconds, affinity_seconds = chance.choice((3.0, 6.0, 9.0)), chance.choice((0.0, 4.0, 12.0))
        self.world = World(number, folder, lease_seconds, affinity_seconds)
        self.break_name, self._shards = break_name, shards
        share = chance.choice((0.15, 0.35, 0.6))
        kinds = kinds or (BREAKS[break_name].kinds if break_name else "")
        if chance.random() < 0.06:
            share = 0.0
        drawn = [kind for kind in KINDS if chance.random() < share]
        self.kinds = tuple(kinds.split(",")) if kinds else tuple(drawn)
        if not kinds and chance.random() < 0.06:
            self.kinds += ("set_back",)
        if not kinds and self.kinds:
            acts = random.Random(f"{number} acts")
            self.kinds += tuple(act for act in ACTS if acts.random() < share)
        self._was_set_back = self._has_forgotten = False
        self._healed_at: float | None = None
        self.chaos_seconds = chance.uniform(6.0, 25.0)
        self._engine = engine
        self._server: Server
        self._looker: Looker
        self._last: Snapshot | None = None
        self._unlooked = 0
        self._accepted: set[tuple[str, str, str]] = set()
        self._ended_since_look: set[tuple[str, str]] = set()
        self._added = 0
        self._asked: dict[str, tuple[SimulatedVideo, int]] = {}
        """What the user has added: the id, its video, and which page alone or 0."""
        self._refreshed: dict[str, int] = {}
        self._status_given: dict[str, Snapshot] = {}
        self._containers: dict[str, str] = {}
        self._redriven = False
        self._loses_answer = 0.0
        self._latest_clock = 0.0

    # -------------------------------------------------------------------------------- the farm

    def _make_videos(self) -> None:
        chance = self.chance
        self._next_cid = BUCKET + 20 * BUCKETS
        for index in range(1, chance.randint(2, 4) + 1):
            number = BUCKET + index * BUCKETS
            pages = [self._page() for _page in range(chance.choice((1, 1, 2, 3, 4)))]
            video = SimulatedVideo(number, aid_to_bvid(number), chance.choice(("A title", "Another")), pages, number)
            if chance.random() < 0.08:
                video.permanent = "-404"
            self.world.videos[number] = video
            self._containers[f"v{number}"] = video.bvid
            self._containers[f"e{number}"] = f"ep{number}"
            self._containers |= {f"p{number}:{page}": f"{video.bvid}?p={page}" for page in range(1, 10)}
        if chance.random() < 0.12:
            video = chance.choice(list(self.world.videos.values()))
            place = chance.choice(("download", "merge", "describe"))
            if place == "describe":
                video.poison = True
            else:
                chance.choice(video.pages).poison = place

    def _page(self) -> SimulatedPage:
        chance = self.chance
        self._next_cid += BUCKETS
        joined = chance.random() < 0.15
        names = ("d64-1", "d64-2") if joined else ("v80-7", "a30280-0")
        streams = {name: chance.choice((1, 1, 2, 3)) for name in names}
        permanent = "-10403" if chance.random() < 0.06 else ""
        return SimulatedPage(self._next_cid, "part", streams, joined, permanent)

    def _make_machines(self) -> None:
        chance, world = self.chance, self.world
        disk = Disk(world, world.folder / "d0")
        for index in range(chance.randint(2, 4)):
            if index and chance.random() < 0.8:  # else it is the machine before with one worker more
                disk = Disk(world, world.folder / f"d{index}")
            machine = Machine(world, f"m{index}", disk, chance.randint(1, 3), chance.choice((0.1, 0.5, 1.5)))
            machine.clock_offset = chance.uniform(0, 1e6)
            world.machines.append(machine)

    # -------------------------------------------------------------------------------- running

    def run(self) -> Outcome:
        """Run the seed; what went wrong is in the outcome."""
        world = self.world
        world.folder.mkdir(parents=True)
        try:
            edit = BREAKS[self.break_name].edit if self.break_name else _as_it_is
            settings = Settings(
                lease_seconds=world.lease_seconds,
                affinity_seconds=world.affinity_seconds,
                shards=self._shards,
                rate_per_address=0.0,
            )
            self._server = self._engine.server(settings, self.break_name, edit)
            self._engine.clock_ms = world.clock_ms
            with installed(self):
                self._server.redis.loses_answer = self._answer_is_lost
                self._looker = Looker(self._engine.wire, BUCKET, self._shards)
                world.handle, world.token_of = self._handle, self._token_of
                world.ended = self._worker_ended
                self._make_videos()
                try:
                    world.loop.run(self._story(), END_SECONDS)
                except Stuck as problem:
                    world.violate(str(problem))
                for complaint in world.loop.complaints:
                    world.violate(f"asyncio: {complaint.get('message')}: {complaint.get('exception')!r}")
                world.is_over = True
                world.loop.bury()
        finally:
            shutil.rmtree(world.folder, ignore_errors=True)
        return Outcome(world.seed, world.violations, world.trace, world.counts, self.kinds, world.drain_seconds)

    async def _story(self) -> None:
        world, loop = self.world, self.world.loop
        self._make_machines()
        tick = loop.create_task(self._tick())
        for machine in world.machines:
            world.later(self.chance.uniform(0.0, 3.0), machine.start)
        adding = loop.create_task(self._add_all())
        nemeses = [loop.create_task(nemesis) for nemesis in self._nemeses()]
        await asyncio.sleep(self.chaos_seconds)
        for nemesis in nemeses:
            nemesis.cancel()
        self._heal()
        await adding
        if self._was_set_back:
            await self._add(list(self._asked))
        await self._undo()
        healed = self._healed_at = loop.time()
        if await self._drained():
            world.drain_seconds = loop.time() - healed
            await self._grown_pages()
            await self._forget_nothing()
            # A call of the user was long on its way, or a worker that stood still proves that it had not died.
            await self._undo()  # a call of the user was long on its way
            while world.user_calls or self._anyone_stands_still() or not self._look().is_drained:
                await asyncio.sleep(1.0)
                await self._undo()
                await self._drained()
                await self._forget_nothing()
            await self._end_workers()
            tick.cancel()
            self._check_end()

    def _heal(self) -> None:
        world = self.world
        world.note("world", "heals")
        world.faults = Faults()
        self._loses_answer = 0.0
        world.server_is_away = self._server.redis.is_away = False
        world.queue_offset = self._latest_clock  # or what is delayed would wait for as long as the clock was set back
        for machine in world.machines:
            machine.is_cut = machine.disk.is_full = False
            machine.write_working(1, machine.count)
            if self.chance.random() < 0.3:
                machine.until_empty_seconds = EMPTY_SECONDS
            machine.start()

    async def _undo(self) -> None:
        """What a user has stopped or forgotten is wanted again."""
        if "cancel" in self.kinds:
            await self._ask("/redrive", {"code": "cancelled"})
        if self._has_forgotten:
            await self._add(list(self._asked))

    async def _drained(self) -> bool:
        world = self.world
        until = world.loop.time() + DRAIN_SECONDS
        while not self._look().is_drained:
            if world.loop.time() > until:
                world.violate(f"not drained: {self._look().places()}")
                return False
            await asyncio.sleep(1.0)
            if self.kinds and self.chance.random() < 0.03:
                self._anyone().signal()
            for machine in world.machines:  # some ended by a signal or by poison since
                machine.start()
        return True

    def _worker_ended(self, process: Process, status: int) -> None:
        """Who ends in order gives all back; who was to run until nothing is left must have had nothing left."""
        world, name = self.world, process.machine.name
        now = self._look()
        # A goodbye has a second and a half: too short with a call under way, or for one that was stopped in it.
        disturbed_until = max(world.loop.time() if self._healed_at is None else self._healed_at, process.went_on_at)
        if world.loop.time() > disturbed_until + outside.CALL_SECONDS:
            kept = [url for url in now.leased if now.tries[url].get("instance") == process.instance]
            if kept:
                world.violate(f"{name} ended in order, and has kept {kept}")
        if process.is_stopping:
            return
        now = self._status_given[name]
        soon = self.world.clock_ms() + 1000 * EMPTY_SECONDS - 60_000
        if now.ready or now.suspect or now.kept or now.leased or any(due < soon for due in now.delayed.values()):
            self.world.violate(f"{name} ended with {status} though there was work: {now.places()}")
        self.world.counts["ended when empty"] += 1

    async def _grown_pages(self) -> None:
        grown = [target for target, (video, _page) in self._asked.items() if video.has_grown]
        if not grown:
            return
        known = self._look().seen_pages
        for target in grown:
            video, number = self._asked[target]
            wanted = video.pages[: self._refreshed.get(target, 0)] if not number else []
            if target not in self._look().dead and any(str(page.cid) not in known for page in wanted):
                self.world.counts["refreshes without effect"] += 1
                self.world.note("CHECK", f"the refresh of {target} had no effect")
                if REFRESH_IS_KEPT and not (self._was_set_back or self._has_forgotten):
                    self.world.violate(f"{target} was asked for again, and not all of its pages are known")
        await self._add(grown, refresh=True)
        await self._drained()

    async def _forget_nothing(self) -> None:
        """An idle worker holds nothing and owes nothing, as soon as its last call was answered."""
        until = self.world.loop.time() + IDLE_SECONDS
        while left := [text for machine in self.world.machines for text in _left(machine)]:
            if self.world.loop.time() > until:
                self.world.violate(f"there is no work, and {'; '.join(left)}")
                return
            await asyncio.sleep(1.0)

    def _anyone_stands_still(self) -> bool:
        processes = [machine.process for machine in self.world.machines if machine.process]
        return any(thread.stops for process in processes for thread in (process.main, process.beat))

    async def _end_workers(self) -> None:
        world = self.world
        for _round in range(200):
            for machine in world.machines:
                machine.signal()
            if not any(machine.process for machine in world.machines):
                return
            await asyncio.sleep(0.25)
        world.violate("a worker did not end within 50 s")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if not self.world.server_is_away:
                try:
                    if self._server.queue.sweep() or self.world.leases_may_lie:
                        self._check_waits(self._look())
                except EngineError:
                    continue

    def _check_waits(self, now: Snapshot) -> None:
        """Whatever the clock did, nothing waits for longer than it may."""
        world = self.world
        for places, seconds in ((now.kept, world.affinity_seconds), (now.leased, world.lease_seconds)):
            for url, until in places.items():
                if until > world.clock_ms() + seconds * 1000 + 1:
                    world.violate(
                        f"{url} waits {(until - world.clock_ms()) / 1000:.0f} s more, {seconds:g} are allowed"
                    )

    # -------------------------------------------------------------------------------- the user

    async def _add_all(self) -> None:
        for video in list(self.world.videos.values()):
            await asyncio.sleep(self.chance.uniform(0.0, 3.0))
            kind = self.chance.random()
            targets = [video.bvid]
            if kind < 0.15:
                targets.append(f"{video.bvid}?p={self.chance.randint(1, len(video.pages))}")
            elif kind < 0.3:
                targets.append(f"ep{video.episode_id}")
            elif kind < 0.4:
                targets = [f"ep{video.episode_id}"]
            self.chance.shuffle(targets)
            await self._add(targets)

    async def _add(self, targets: list[str], refresh: bool = False) -> None:
        """Add as add_url.py does: with one id for all tries of a call, until there is an answer."""
        world = self.world
        jobs = {target: parse_job_id(target) for target in targets}
        pages = {target: len(world.video_of(job).pages) for target, job in jobs.items()}
        body = {"urls": targets, "category": "music", "request": world.hexadecimal(8), "refresh": refresh}
        answer = await self._ask("/add_url", body)
        self._added += answer["added"]
        if answer["added"] + answer["known"] != len(targets):
            world.violate(f"add answered {answer} to {targets}")
        for target, job in jobs.items():
            if refresh or target not in self._asked:
                self._refreshed[target] = pages[target]
            self._asked[target] = (world.video_of(job), job.number)
        world.note("user", f"has added {targets}: {answer['added']} new")

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        while True:
            try:
                status, _headers, content = await exchange(self.world, None, "POST", path, None, body)
                if status == 200:
                    return json.loads(content)
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(self.chance.uniform(0.2, 2.0))

    # -------------------------------------------------------------------------------- the server

    def _answer_is_lost(self) -> bool:
        return self._loses_answer > 0 and self.world.random.random() < self._loses_answer

    def _token_of(self, url: str) -> str | None:
        token: str | None = self._engine.wire.ask("HGET", key("token", shard_of_id(url, self._shards)), url)
        return token

    def _handle(
        self, who: str, _process: Process | None, method: str, path: str, query: Any, body: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """Let the server answer a request, and look whether it may have answered so."""
        world = self.world
        ending = path in ENDING_VERBS
        before = self._token_of(body["url"]) if ending else None
        if path == "/cancel":  # takes leases from workers that live
            ended = {(url, token) for url in body["urls"] if (token := self._token_of(url))}
            self._ended_since_look |= ended
            world.taken |= {token for _url, token in ended}
        status, headers, content = self._server.handle(method, path, query, body)
        if path != "/heartbeat":
            about = body["url"] if ending else ""
            world.note(who, f"{path} {about} -> {status} {content.decode().strip()[:300]}")
        excused = self._server.redis.is_away or self._loses_answer
        if status not in (200, 409, 503) or (status == 503 and not excused):
            world.violate(f"{who} got {status} to {path}: {content.decode()}")
        if path == "/status":
            self._status_given[who] = self._look()
        if ending:
            self._check_verb(who, path, body, before, status)
        idle = path == "/heartbeat" or (path == "/get_url" and content.strip() == b"[]")
        self._unlooked += 1
        if not idle or self._unlooked >= 6:
            self._look()
        return status, headers, content

    def _check_verb(self, who: str, path: str, body: dict[str, Any], before: str | None, status: int) -> None:
        url, token = body["url"], body["token"]
        verb = (path, url, token)
        if before == token:
            if status == 409:
                self.world.violate(f"{who}: {path} {url} was refused with the lease that is current")
            self._accepted.add(verb)
            self._ended_since_look.add((url, token))
        elif status == 200 and verb not in self._accepted:
            self.world.violate(f"{who}: {path} {url} was accepted with a stale token")
        cid = parse_job_id(url).cid
        if path == "/ack" and status == 200 and cid not in self.world.published:
            self.world.violate(f"{who}: {url} is recorded, and no file of it stands anywhere")

    def _look(self) -> Snapshot:
        now = self._looker.look()
        self._unlooked = 0
        for problem in problems(now, self._containers):
            self.world.violate(problem)
        if self._last is not None and not self.world.leases_may_lie:
            self._check_leases(self._last, now)
        self._ended_since_look.clear()
        self._last = now
        return now

    def _check_leases(self, before: Snapshot, now: Snapshot) -> None:
        """A lease ends by a verb, at its deadline, or because its worker was started anew; by nothing else."""
        at = self.world.clock_ms()
        for url, token in before.token.items():
            if now.token.get(url) == token or (url, token) in self._ended_since_look or before.leased[url] <= at:
                continue
            holder = before.tries[url]
            machine = next(one for one in self.world.machines if one.name == holder["worker"])
            if machine.process is not None and machine.process.instance == holder["instance"]:
                self.world.violate(f"the lease of {url} was taken from {machine.name}, which lives")

    # -------------------------------------------------------------------------------- what goes wrong

    def _nemeses(self) -> Iterator[Coroutine[Any, Any, None]]:
        chance, faults = self.chance, self.world.faults
        for kind in self.kinds:
            if kind in ("lose", "reset", "duplicate", "delay", "moments", "transient", "risk"):
                setattr(faults, kind, chance.choice((0.02, 0.08, 0.2)) / (4 if kind in ("moments", "risk") else 1))
            elif kind == "engine_answer":
                self._loses_answer = chance.choice((0.02, 0.1))
            else:
                yield self._repeatedly(getattr(self, f"_{kind}"), chance.choice((3.0, 8.0)))

    async def _repeatedly(self, fault: Callable[[], Coroutine[Any, Any, None]], mean_seconds: float) -> None:
        while True:
            await asyncio.sleep(self.chance.expovariate(1 / mean_seconds))
            await fault()

    def _anyone(self) -> Machine:
        return self.chance.choice(self.world.machines)

    def _span(self) -> float:
        """A duration around a lease: the interesting ones are a little shorter and a little longer."""
        return self.chance.uniform(0.1, 2.5) * self.world.lease_seconds

    async def _cut(self) -> None:
        machine, seconds = self._anyone(), self._span()
        self.world.note(machine.name, f"cut off for {seconds:.1f} s")
        machine.is_cut = True
        try:
            await asyncio.sleep(seconds)
        finally:
            machine.is_cut = False

    async def _server_away(self, what: str) -> None:
        self.world.note("world", f"{what} away")
        await asyncio.sleep(self.chance.choice((0.5, 3.0, 8.0)) * self.chance.random())
        self.world.note("world", f"{what} back")

    async def _server_gone(self) -> None:
        self.world.server_is_away = True
        try:
            await self._server_away("server")
        finally:
            self.world.server_is_away = False

    async def _engine_gone(self) -> None:
        self._server.redis.is_away = True
        try:
            await self._server_away("engine")
        finally:
            self._server.redis.is_away = False

    async def _kill(self) -> None:
        machine = self._anyone()
        machine.kill("by chance")
        self.world.later(self.chance.uniform(0.1, 8.0), machine.start)

    async def _gone(self) -> None:
        """A machine breaks for ever; one at least stays."""
        others = [machine for machine in self.world.machines if not machine.is_gone]
        if len(others) > 1:
            machine = self.chance.choice(others)
            machine.kill("for ever")
            machine.is_gone = True
        await asyncio.sleep(1000)

    async def _stop(self) -> None:
        machine = self._anyone()
        if machine.process is not None:
            self.world.stop(machine.process, self._span(), "by chance")

    async def _block(self) -> None:
        machine = self._anyone()
        if machine.process is not None:
            self.world.stop(machine.process, 2 * self._span(), "its loop", also_beats=False)

    async def _queue_clock(self) -> None:
        seconds = self.chance.choice((-1, 1)) * self.chance.choice((2.0, 10.0, 3600.0)) * self.chance.random()
        self.world.note("world", f"the queue's clock steps by {seconds:.1f} s")
        self.world.queue_offset += seconds
        self._latest_clock = max(self._latest_clock, self.world.queue_offset)
        self.world.leases_may_lie = True

    async def _worker_clock(self) -> None:
        """The machine was suspended: all of it stood still, and its clock went on."""
        machine = self._anyone()
        if machine.process is not None:
            self.world.stop(machine.process, self._span() * 2, "suspended")

    async def _working(self) -> None:
        machine = self._anyone()
        stop, count = int(self.chance.random() < 0.6), self.chance.randint(1, 3)
        self.world.note(machine.name, f"working.json: stop {stop}, count {count}")
        machine.write_working(stop, count)

    async def _signal(self) -> None:
        machine = self._anyone()
        machine.signal()
        self.world.later(self.chance.uniform(2.0, 8.0), machine.start)

    async def _disk(self) -> None:
        machine = self._anyone()
        self.world.note(machine.name, "its disk is full")
        machine.disk.is_full = True
        try:
            await asyncio.sleep(self.chance.uniform(0.5, 8.0))
        finally:
            machine.disk.is_full = False

    async def _redrive(self) -> None:
        answer = await self._ask("/redrive", {"all": True})
        self._redriven = self._redriven or answer["redriven"] > 0

    def _any_job(self) -> list[str]:
        """One of all jobs that there are or were, none where nothing was added."""
        now = self._look()
        known = {*now.places(), *now.success, *(self._containers[member] for member in now.closed)}
        return [self.chance.choice(sorted(known))] if known else []

    async def _cancel(self) -> None:
        urls = self._any_job()
        self.world.note("user", f"cancels {urls}")
        answer = await self._ask("/cancel", {"urls": urls})
        self.world.counts["cancelled"] += answer["cancelled"]
        await asyncio.sleep(self.chance.uniform(0.0, 8.0))
        if self.chance.random() < 0.7:
            await self._ask("/redrive", {"urls": urls})

    async def _first(self) -> None:
        answer = await self._ask("/first", {"urls": self._any_job()})
        self.world.counts["moved to the head"] += answer["moved"]

    async def _forget(self) -> None:
        urls = self._any_job()
        self._has_forgotten = True
        self.world.note("user", f"has {urls} forgotten")
        answer = await self._ask("/forget", {"urls": urls})
        self.world.counts["forgotten"] += answer["forgotten"]

    async def _again(self) -> None:
        if self._asked:
            await self._add([self.chance.choice(list(self._asked))], refresh=self.chance.random() < 0.3)

    async def _grow(self) -> None:
        video = self.chance.choice(list(self.world.videos.values()))
        if len(video.pages) < 6:
            video.pages.append(self._page())
            video.has_grown = True
            self.world.note("site", f"{video.bvid} has one page more")
        if grown := [target for target, (video, _page) in self._asked.items() if video.has_grown]:
            await asyncio.sleep(self.chance.random())
            await self._add([self.chance.choice(grown)], refresh=True)

    async def _flush(self) -> None:
        """The engine forgets its scripts."""
        self._engine.wire.ask("SCRIPT", "FLUSH")
        self._looker = Looker(self._engine.wire, BUCKET, self._shards)

    async def _set_back(self) -> None:
        """The engine's data are those of a while ago, as after a failover or from a backup; once in a seed."""
        wire = self._engine.wire
        wire.ask("EVAL", COPY, 0)
        await asyncio.sleep(self.chance.expovariate(1 / 4.0))
        wire.ask("FLUSHDB")
        wire.ask("SWAPDB", 0, 1)
        self.world.note("world", "the queue's data are set back")
        self.world.counts["set back"] += 1
        self.world.leases_may_lie = self._was_set_back = True
        await asyncio.sleep(1000)

    async def _wipe(self) -> None:
        """Someone clears the folder of parts while nobody works there."""
        disk = self._anyone().disk
        if not any(machine.process for machine in self.world.machines if machine.disk is disk):
            disk.parts.clear()

    # -------------------------------------------------------------------------------- the end

    def _check_end(self) -> None:
        world, end = self.world, self._look()
        if not end.is_drained:
            world.violate("it was drained, and is not any more")
        self._check_leftovers(end)
        if self._added != len(self._asked) and not (self._was_set_back or self._has_forgotten):
            world.violate(f"{self._added} videos were counted as new, {len(self._asked)} were added")
        recorded = Counter(parse_job_id(url).cid for url in end.success)
        dead = {url: str(end.tries[url].get("code", "")) for url in end.dead}
        dead_pages = {parse_job_id(url).cid: code for url, code in dead.items() if parse_job_id(url).is_page}
        for target, (video, number) in self._asked.items():
            if target in dead:
                wanted = "poison" if video.poison else video.permanent
                self._check_dead(target, dead[target], wanted, video.failures)
                continue
            if video.permanent or video.poison:
                world.violate(f"{target} cannot be read, and nobody says so")
            for page in [video.pages[number - 1]] if number else video.pages:
                self._check_page(target, page, recorded[page.cid], dead_pages.get(page.cid))
        if not self.kinds:
            self._check_quiet(end)
        for cid, machines in world.published.items():
            world.counts["second copies"] += len(machines) - 1
            if not recorded[cid] and dead_pages.get(cid) != "poison":  # its workers died after it stood
                world.violate(f"the page {cid} was published and is not recorded")

    def _check_leftovers(self, end: Snapshot) -> None:
        for name in ("tries", "origin", "holds", "alone", "token"):
            if left := getattr(end, name).keys() - end.dead.keys():
                self.world.violate(f"nothing is left to do, and {name} keeps {sorted(left)}")

    def _check_quiet(self, end: Snapshot) -> None:
        """Where nothing goes wrong, nothing is done twice, and nobody is ever suspected."""
        if not self.world.counts["poisoned"]:
            pages = [self.world.page(parse_job_id(url).cid) for url in end.success]
            needed = sum(sum(page.streams.values()) for page in pages)
            if self.world.counts["chunks"] != needed:
                self.world.violate(f"{self.world.counts['chunks']} chunks were downloaded, {needed} were needed")
            if suspects := [url for url, tries in end.tries.items() if tries.get("deaths")]:
                self.world.violate(f"{suspects} are said to have killed someone")

    def _check_page(self, target: str, page: SimulatedPage, recorded: int, code: str | None) -> None:
        if recorded + (code is not None) != 1:
            self.world.violate(f"{target} page {page.cid}: {recorded} times recorded, dead of {code}")
        if code is not None:
            self._check_dead(
                f"{target} page {page.cid}", code, page.permanent or (page.poison and "poison"), page.failures
            )
        elif page.permanent or page.poison:
            self.world.violate(f"{target} page {page.cid} cannot be had, and is recorded")

    def _check_dead(self, what: str, code: str, wanted: str, failures: int) -> None:
        if code == wanted:
            return
        if code == "poison":
            self.world.counts["healthy jobs called poison"] += 1
            if HEALTHY_POISON_IS_A_VIOLATION:
                self.world.violate(f"{what} is called poison, and kills nobody")
        elif failures < retry.MAX_ATTEMPTS:
            self.world.violate(f"{what} is dead of {code!r}, expected {wanted!r}; it failed {failures} times")


def _left(machine: Machine) -> Iterator[str]:
    scheduler = machine.process and machine.process.scheduler
    if scheduler:
        things = {name[1:]: getattr(scheduler, name) for name in ("_held", "_tasks", "_jobs", "_errands")}
        for name, left in (things | {"slots": scheduler._slots.taken, "jobs shown": scheduler.board.jobs}).items():
            if left:
                yield f"{machine.name} has {name}: {left}"


def _as_it_is(text: str) -> str:
    return text


# ------------------------------------------------------------------------------------------ the seams


@contextmanager
def installed(seed: Seed) -> Iterator[None]:
    """Put the simulated world in the place of the real one, for as long as a seed runs."""
    world = seed.world
    scheduler = download_scheduler
    real_clock = queue_client.lease_clock
    with ExitStack() as stack:

        def put(module: Any, name: str, value: Any) -> None:
            stack.enter_context(patch.object(module, name, value))  # fails where there is no such name

        for module in list(sys.modules.values()):
            if getattr(module, "lease_clock", None) is real_clock:
                put(module, "lease_clock", world.lease_clock)
        put(secrets, "token_hex", lambda size=32: world.hexadecimal(size))
        put(queue_client, "make_server_session", outside.session_of)
        put(queue_client, "PAGES_PER_CALL", seed.chance.choice((2, 200)))
        put(queue_client, "LOOP_STALL_SECONDS", 5 * world.lease_seconds)
        put(scheduler, "Heartbeat", outside.TaskHeartbeat)
        put(scheduler, "download_stream", outside.download_stream)
        put(scheduler, "merge", outside.merge)
        put(scheduler, "unfinished_jobs", outside.unfinished_jobs)
        put(scheduler, "discard_parts", outside.discard_parts)
        put(scheduler, "free_disk_bytes", outside.free_disk_bytes)
        put(scheduler, "_cid_of", outside.cid_of)
        put(scheduler, "PAUSE_LIMIT_SECONDS", 6.0)
        put(scheduler, "PREPARED_SECONDS", seed.chance.choice((0.5, 30.0)))
        put(scheduler, "MERGES_AT_MOST", seed.chance.choice((0, 3)))
        # The same curves on a smaller scale: a seed must not last for hours, not even of virtual time.
        put(retry, "redelivery_delays_seconds", lambda draw: tuple(draw() * min(20.0, 2.0**n) for n in range(7)))
        put(retry, "park_seconds", lambda failures: min(8.0, 2.0**failures / 2))
        for name, seconds in {"OPEN": 1.0, "OPEN_CAP": 8.0, "PARKED_LEAST": 1.0, "PROBE": 3.0, "FORGET": 20.0}.items():
            put(budgets, f"{name}_SECONDS", seconds)
        if seed.break_name and (install := BREAKS[seed.break_name].install):
            install(put)
        state = random.getstate()
        random.seed(world.seed)
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            contextvars.Context().run(lambda: None)
            yield
        finally:
            logging.disable(before)
            random.setstate(state)
