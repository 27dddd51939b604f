"""The worker's conductor: leases jobs, downloads their streams, merges them, and reports how each one ended.

One job is one task. Whatever happens inside a task ends in exactly one verb to the server: ack, nack or release;
a job whose lease moved on ends in none. working.json is read twice a second and obeyed in the middle of work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import create_folder
import retry
from bili_client import BiliClient
from board import Board, JobView
from config import Settings
from delivery import Deliveries
from download_stream_file import StreamFile, Wire, download_stream
from errors import (
    CircumstanceError,
    DamagedStream,
    DiskFull,
    JobError,
    NameTaken,
    Parked,
    PermanentError,
    RiskControl,
    ServerError,
    ServerUnreachable,
    StaleToken,
    TransientError,
    Unauthorized,
)
from extras import Companions, Extras
from i18n import _
from merge_stream_file import merge
from merging import read_tag
from model import (
    HAVE_LIMIT,
    MIB,
    Beside,
    Expanded,
    Failure,
    JobId,
    Lease,
    MergePlan,
    Page,
    Result,
    Video,
    Working,
)
from orders import working_fields
from page_streams import PageStreams
from parse_ import parse_job_id
from pipeline import NotNow, Rhythm, Slots
from queue_client import OWN_SHARE, RESULTS_PER_CALL, Beat, Heartbeat, Held, QueueClient, lease_clock
from result_log import NEWEST, ResultLog, log_path
from site_standing import SiteStanding
from source_reader import read_source
from sources import Told
from steering import QrLogin, Steering
from stream_choice import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS, spoken
from transfer import RESERVE_BYTES, discard_parts, free_disk_bytes, unfinished_jobs
from working_file import WorkingFile

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
PAUSE_LIMIT_SECONDS = 600.0
"""A paused worker keeps its leases for so long; then they go back, the chunks stay."""
GOODBYE_SECONDS = 1.5
PREPARED_SECONDS = 30.0
"""A prepared job that got no slot for so long goes back: the slot was expected earlier, and others may have one."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MERGES_AT_MOST = CORES + 2
"""With more to merge, running or waiting, no download begins: the streams would fill the disk."""
DELIVERIES_AT_MOST = 8
"""With more finished files that are delivered, or wait for that, no download begins: they would fill the disk."""
LEASES_AT_ONCE, LEASES_AT_MOST = 64, 200
"""The server's own limits, with a margin, for one request and for one heartbeat."""
UNFINISHED_LIMIT = 4096
RETURN_BASE_SECONDS, RETURN_CAP_SECONDS = 1.0, 15.0
"""Between lease requests to a server that is away: so all its workers come back within the cap, and not all at once."""
MERGE_ATTEMPTS = 3

EXIT_DEAD, EXIT_DELAYED = 1, 3

_WORDS = {"ready": _("ready"), "delayed": _("delayed"), "dead": _("dead")}
"""What becomes of a failed job, for people."""

_PARKED = _("parked with all of this address or account, because the site wants fewer requests")
_SLOWER = _("asking the site more slowly, because it wants fewer requests from this address or account")

_BEFORE_MERGE = frozenset({"describing", "waiting", "downloading"})
_ASKING = frozenset({"describing", "listing"})
_WRITING = frozenset({"downloading", "merging"})


class Scheduler:
    """Keeps up to ``count`` jobs of the queue in work until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        queue: QueueClient,
        site: BiliClient,
        wire: Wire,
        running: asyncio.Event,
        ffmpeg: str,
        worker: str,
        instance: str,
        draw: retry.Draw = random.random,
        qr_login: QrLogin | None = None,
        deliveries: Deliveries | None = None,
    ) -> None:
        self._settings, self._queue, self._site, self._wire = settings, queue, site, wire
        self._ffmpeg, self._draw = ffmpeg, draw
        self._running = running
        self._parts = settings.scratch_dir
        self._jobs: set[asyncio.Task[None]] = set()
        self._slots = Slots(self._may_begin, lease_clock)
        self._rhythm = Rhythm()
        self._prepares = True
        self._wanted = 0
        self._errands: set[asyncio.Task[None]] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._held: dict[str, Held] = {}
        self._unfinished: dict[str, int] = {}  # id -> bytes on disk when this process began
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._park_failures = 0
        self._lease_failures = 0
        self._parked_until = 0.0
        self._paused_since: float | None = None
        self._refusal = ""
        self._ends_when_empty = False
        self._obeyed: Working | None = None
        self._wishes = settings.wishes
        self._extras = Extras(settings, site, wire)
        self._deliveries = deliveries
        self._note = ""
        self._risk = ""
        self._is_parked_for_site = False
        self._stand = SiteStanding(site.pace, settings.egress)
        self._results = ResultLog(log_path(settings.data_dir, settings.server_url, worker))
        self._is_replaying = False
        self.working = WorkingFile(settings.working_file)
        self._steering = Steering(self.working, qr_login)
        self.board = Board()
        loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(
            settings,
            worker,
            instance,
            self._held,
            self._state,
            lambda beat: _call_soon(loop, self._take_beat, beat),
            self._results.unsure,
            self._standing,
        )

    # -------------------------------------------------------------------------------- life

    async def run(self, until_empty_seconds: float | None = None) -> int:
        """Work until stop() or, with ``until_empty_seconds``, until nothing is left; return the exit status."""
        self.working.create_if_missing()
        self._obey(self.working.read())
        for folder in (self._settings.download_dir, self._parts):
            folder.mkdir(parents=True, exist_ok=True)
        for url, held_bytes in reversed(unfinished_jobs(self._parts).items()):
            self._remember_chunks(url, held_bytes)
        if self._deliveries is not None:
            for url, held_bytes in await self._deliveries.waiting():
                self._remember_chunks(url, held_bytes)
            self._later(self._deliveries.sweep())
        self._ends_when_empty = until_empty_seconds is not None
        self._site.pace.await_word()
        self._heartbeat.start()
        leasing = asyncio.create_task(self._lease_until_empty(until_empty_seconds))
        ends = [leasing, asyncio.create_task(self._ticks()), asyncio.create_task(self._stopping.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            self.board.state = "stopping"
            for task in ends:
                task.cancel()
            outcomes = await asyncio.gather(*ends, return_exceptions=True)
            await self._say_goodbye()
            if self._deliveries is not None:
                self._deliveries.close()
            self._heartbeat.stop()
            with contextlib.suppress(ServerError, TimeoutError):  # whoever says this is not taken for lost
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._queue.heartbeat((), {**self._state(), "state": "ended"}, standing=self._standing())
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return leasing.result() if not leasing.cancelled() else 0

    def stop(self) -> None:
        """Lease no more; keep what is on disk; give all leases back. run() returns soon after."""
        log.info(_("Stopping: jobs go back at once, chunks stay; once more to end without"))
        self._stopping.set()

    async def _say_goodbye(self) -> None:
        """End all jobs and release every lease at once, in a bounded time."""
        self._steering.end()
        for task in self._jobs:
            task.cancel()
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await asyncio.gather(*self._jobs, *self._errands, self._give_back_unheard(), return_exceptions=True)
                # What is left belongs to tasks that were ended before they began.
                left = [self._quietly(self._queue.release(held.lease)) for held in self._held.values()]
                await asyncio.gather(*left)
        except TimeoutError:
            log.warning(_("Some leases could not be given back; they run out by themselves"))

    async def _give_back_unheard(self) -> None:
        """Ask once more for the answer to a lease request that was cut off, and give back what it gave."""
        if not self._queue.has_unanswered_request:
            return
        with contextlib.suppress(ServerError):
            for lease in (await self._queue.lease(1)).leases:
                await self._quietly(self._queue.release(lease))

    # -------------------------------------------------------------------------------- steering

    async def _ticks(self) -> None:
        """Twice a second: working.json, leases that ran out, the speed."""
        while True:
            self._heartbeat.worker_turns()
            self._obey(self.working.read())
            for held in list(self._held.values()):
                if not held.is_ours() and self._drop(held, _("its lease ran out before it could be renewed")):
                    self._heartbeat.apologize(held)
            if self._paused_since is not None and lease_clock() - self._paused_since > PAUSE_LIMIT_SECONDS:
                self._give_back_paused()
            self.board.sample(lease_clock())
            self.board.state = self._state_word()
            self.board.note = self._notes()
            self._slots.look()  # the time of a parked worker may be over
            if self._stand.has_news:
                self._heartbeat.hurry()
            if self._running.is_set():
                self._send_back(PREPARED_SECONDS)
            self._look_ahead()
            await asyncio.sleep(TICK_SECONDS)

    def _obey(self, working: Working) -> None:
        if working == self._obeyed:
            return
        speed = working.max_bytes_per_second
        self._wire.limit.set(self._settings.max_bytes_per_second if speed is None else speed)
        if working.running:
            self._running.set()
            self._paused_since = None
            count = working.count
            log.info(_('Running, %d at a time (working.json: "stop": 1 runs, 0 stops; "count": %d)'), count, count)
        elif self._running.is_set() or self._obeyed is None:
            self._running.clear()
            self._paused_since = lease_clock()
            log.info(_('Paused (working.json: "stop": 0); set "stop" to 1 to go on'))
        if working.drain and not (self._obeyed and self._obeyed.drain):
            log.info(
                _('Draining (working.json: "drain": 1): what is held is finished, nothing more is leased; 0 to go on')
            )
        if self._obeyed is not None and working.count < self._obeyed.count:
            self._send_back()
        self._obeyed = working
        self._slots.look()
        self._changed.set()

    def _send_back(self, waiting_seconds: float = 0.0) -> None:
        """Give prepared jobs back that have waited for so long, and prepare none until a slot has really come free."""
        if self._slots.dismiss(waiting_seconds):
            self._prepares = False

    def _give_back_paused(self) -> None:
        self._paused_since = float("inf")  # once: a second cancellation would cut the goodbye short
        for url, task in list(self._tasks.items()):
            view = self.board.jobs.get(url)
            if view is not None and view.stage == "delivering":  # another machine would download it again
                continue
            log.info(_("%s: given back, because this worker is paused for long; its chunks stay"), url)
            task.cancel()

    def _drop(self, held: Held, why: str) -> bool:
        """End a job whose lease is not ours any more, nothing is said to the server; tell whether it was in work."""
        url = held.lease.url
        if self._held.get(url) is not held or held.settling:
            return False
        log.warning(_("%s: stopped, %s; its chunks stay"), url, why)
        self._let_go(held)
        self._remember_chunks(url)
        if url in self._tasks:  # else it has not begun
            self._tasks[url].cancel()
        return True

    def _take_beat(self, beat: Beat) -> None:
        for held in beat.lost:
            self._drop(held, _("another worker has it now"))
        for held in beat.returned:  # given up by our own clock, while the server still kept it for us
            self._later(self._quietly(self._queue.release(held.lease)))
        self._results.confirm(beat.confirmed)
        if beat.slow_seconds:
            self._slow_down(beat.slow_seconds)
        if beat.told:
            self._take_budget(beat)
        if beat.order is not None:
            self._steering.obey(beat.order)
            self._obey(self.working.read())
            self.board.state = self._state_word()
        if (beat.replay or self._results.owes(beat.data_id)) and not self._is_replaying:
            self._is_replaying = True
            self._later(self._replay(beat.replay, beat.data_id))

    async def _replay(self, everything: bool, data_id: str) -> None:
        """Tell a queue that has lost results, or whose data are others, of the pages whose files still stand here."""
        try:
            if everything:
                # The oldest first: as long as the newest is not known there, an end in the middle is begun again.
                told = await self._queue.replay(one for one in self._results.oldest_first() if self._stands(*one))
                self._results.ask_no_more()  # a page whose file is gone stays unknown
            else:
                owed = await asyncio.to_thread(lambda: [one for one in self._results.owed() if self._stands(*one)])
                told = await self._queue.replay(owed[:RESULTS_PER_CALL])
                if told and len(owed) >= NEWEST:  # older ones may be missing as well
                    data_id = ""
                told += await self._queue.replay(owed[RESULTS_PER_CALL:])
            if data_id or not everything:
                self._results.note_told(data_id)
            if told:
                log.warning(_("The queue had lost %d results of this worker: told again"), told)
        except ServerError as error:
            log.debug("replay: %s", error)
        finally:
            self._is_replaying = False

    def _stands(self, url: str, result: Result) -> bool:
        try:
            is_page = parse_job_id(url).is_page
            if is_page and result.stored:
                return True  # wherever it stands, here it may be gone
            return is_page and (self._settings.download_dir / result.path).stat().st_size == result.bytes
        except (OSError, ValueError):
            return False

    def _later(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _park(self, error: CircumstanceError) -> None:
        """Lease nothing for a while: what went wrong is this machine's or its address's, not the job's."""
        if isinstance(error, RiskControl):
            self._stand.refused(error)
        if isinstance(error, Parked) or lease_clock() < self._parked_until:
            return
        self._park_failures += 1
        seconds = max(retry.park_seconds(self._park_failures), error.retry_after_seconds or 0.0)
        self._parked_until = lease_clock() + seconds
        self._note = str(error)
        self._risk = error.code if isinstance(error, RiskControl) else ""
        self._is_parked_for_site = bool(self._risk)
        log.warning(_("This worker leases nothing for %.0f s: %s"), seconds, error)

    def _take_budget(self, beat: Beat) -> None:
        """Obey what the server says of the site: how often to ask it, and whether to ask at all.

        Where it was told of a refusal, its word takes the place of our own: it knows what all others have met.
        """
        self._stand.heard(beat.told, beat.budget, lease_clock() - beat.sent)
        if beat.budget is None or self._stand.was_refused:
            return
        if seconds := beat.budget.parked_seconds:
            if not self._is_parked_for_site:
                self._note, self._risk = _PARKED, ""
                log.warning(_("%s (%s), for %.0f s"), _PARKED, beat.budget.kind, seconds)
            self._parked_until, self._is_parked_for_site = lease_clock() + seconds, True
        elif self._is_parked_for_site:
            self._parked_until, self._is_parked_for_site, self._risk = 0.0, False, ""
            self._changed.set()
            self._slots.look()

    def _slow_down(self, seconds: float) -> None:
        """Ask the site for less for a while: it has asked another worker of our address or account for that."""
        if not self._site.pace.slow_seconds and self._state_word() != "parked":
            log.warning(_("%s, for %.0f s"), _SLOWER, seconds)
        self._site.pace.slow_for(seconds)

    def _state_word(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        if not self._running.is_set():
            return "paused"
        if self.working.now.drain:
            return "draining" if self._jobs else "drained"
        return "parked" if lease_clock() < self._parked_until else "running"

    def _state(self) -> Mapping[str, Any]:
        """Return what a heartbeat says of this worker; called in the heartbeat's thread."""
        return {
            "state": self.board.state,
            "speed_bytes_per_second": round(self.board.speed_bytes_per_second),
            "done": self.board.done,
            "failed": self.board.failed,
            "working": working_fields(self.working.now),
            "disk_free_bytes": _free_bytes(self._settings.download_dir),
            "note": self.board.note,
            **self._steering.state(),
        }

    def _notes(self) -> str:
        """Return what a person should know of this worker now, an empty text for nothing."""
        slower = _SLOWER if self._site.pace.slow_seconds else ""
        notes = (self._note if self.board.state == "parked" else slower, self._site.login.problem)
        return " · ".join(filter(None, notes))

    def _standing(self) -> Mapping[str, Any]:
        """Return how this worker stands with the site, for the others; called in the heartbeat's thread."""
        standing = self._stand.told()
        if self._site.login.digest:
            standing["account"] = self._site.login.digest
        parked_seconds = self._parked_until - lease_clock()
        if self._risk and parked_seconds > 0:
            standing["risk"] = {"kind": self._risk, "seconds": round(parked_seconds, 1)}
        return standing

    # -------------------------------------------------------------------------------- leasing

    async def _lease_until_empty(self, until_empty_seconds: float | None) -> int:
        while True:
            self._changed.clear()
            free = self._missing()
            parked_seconds = self._parked_until - lease_clock()
            pause_seconds: float | None = None  # until something changes
            if self._running.is_set() and free > 0:
                pause_seconds = parked_seconds if parked_seconds > 0 else await self._lease(free)
            if until_empty_seconds is not None and not self._jobs:
                if self.working.now.drain:
                    return EXIT_DEAD if self.board.dead else 0
                status = await self._status_when_empty(until_empty_seconds) if pause_seconds else None
                if status is not None:
                    return status
            self._wanted = self._missing()
            try:
                async with asyncio.timeout(pause_seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _missing(self) -> int:
        """Return how many jobs to lease now: for the slots that are free, and for those that will be in a moment."""
        count, board = self.working.now.count, self.board
        if self.working.now.drain or self._is_piled_up():
            return 0
        running = board.in_stages(("downloading",))
        ahead = self._rhythm.ahead((view.seconds_left for view in running), count) if self._prepares else 0
        # One listing is read beside the downloads; more of them take the places of some.
        held = len(board.in_stages(_BEFORE_MERGE)) + max(0, len(board.in_stages(("listing",))) - 1)
        if self._stand.probes:  # whoever tries for all the others begins with one
            return max(0, 1 - len(board.in_stages(_ASKING)))
        missing = min(count + ahead - held, LEASES_AT_ONCE, LEASES_AT_MOST - len(self._jobs))
        if held >= count and missing < (ahead + 1) // 2:
            return 0  # nothing waits for it: several in one request are cheaper
        return missing

    def _look_ahead(self) -> None:
        """Ask for jobs if more are missing than when they were asked for last."""
        if self._missing() > self._wanted:
            self._changed.set()

    def _may_begin(self) -> bool:
        """Tell whether one more download may begin."""
        return (
            self._running.is_set()
            and self._slots.taken < self.working.now.count
            and lease_clock() >= self._parked_until
            and not self._is_piled_up()
        )

    def _is_piled_up(self) -> bool:
        """Tell whether so much is downloaded and not gone from the disk that no more should come."""
        board = self.board
        return board.merges > MERGES_AT_MOST or len(board.in_stages(("delivering",))) > DELIVERIES_AT_MOST

    async def _status_when_empty(self, wait_seconds: float) -> int | None:
        """Return the exit status when nothing is left to wait for, else None."""
        try:
            counts, due_seconds = await self._queue.counts()
            if counts.ready or counts.leased or (due_seconds is not None and due_seconds <= wait_seconds):
                return None
            delayed = await self._queue.delayed() if counts.delayed else []
        except ServerError as error:
            log.debug("status: %s", error)
            return None
        for url, seconds, reason in delayed:
            log.warning(_("%s: tried again in %.0f s (%s)"), url, seconds, reason)
        if self.board.dead:
            return EXIT_DEAD
        return EXIT_DELAYED if counts.delayed else 0

    async def _lease(self, free: int) -> float:
        """Lease up to ``free`` jobs and start them; return how long to wait before asking again, 0 for not at all."""
        have = [url for url in reversed(self._unfinished) if url not in self._held][:HAVE_LIMIT]
        asked = lease_clock()
        try:
            answer = await self._queue.lease(free, have, [self._unfinished[url] for url in have])
        except ServerUnreachable as error:
            self._lease_failures += 1
            return (error.retry_after_seconds or 0.0) + retry.full_jitter_seconds(
                self._lease_failures, RETURN_BASE_SECONDS, RETURN_CAP_SECONDS, self._draw
            )
        except ServerError as error:
            if isinstance(error, Unauthorized) and self._ends_when_empty:
                raise  # nobody is there to correct BILI_TOKEN
            if str(error) != self._refusal:
                self._refusal = str(error)
                log.error("%s", error)
            return 5.0 * (0.5 + self._draw())
        self._refusal = ""
        self._lease_failures = 0
        wanted = 0 if self.working.now.drain else free  # it may have come while the server was asked
        for lease in answer.leases[:wanted]:
            self._start(lease, asked)
        for lease in answer.leases[wanted:]:
            await self._quietly(self._queue.release(lease))
        return 0.0 if len(answer.leases) >= free else answer.retry_after_seconds * (0.5 + self._draw() / 2)

    def _start(self, lease: Lease, asked: float) -> None:
        known = self._held.get(lease.url)
        if known is not None and known.lease.token == lease.token:
            return  # a repeated answer
        if known is not None:
            self._drop(known, _("it was leased anew"))
        task = asyncio.create_task(self._work(self._hold(lease, asked)), name=lease.url)
        self._jobs.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._jobs.discard(task)
            self._slots.look()
            self._changed.set()

        task.add_done_callback(ended)

    # -------------------------------------------------------------------------------- one job

    def _hold(self, lease: Lease, asked: float, since: float | None = None) -> Held:
        view = JobView(lease.url, since=lease_clock() if since is None else since)
        held = Held(lease, asked + lease.lease_seconds * OWN_SHARE, view.show)
        self.board.jobs[lease.url], self._held[lease.url] = view, held
        return held

    def _let_go(self, held: Held) -> None:
        if self._held.get(held.lease.url) is held:
            del self._held[held.lease.url]
            self.board.jobs.pop(held.lease.url, None)

    async def _work(self, held: Held) -> None:
        """Work on a leased job, then on the page that a container's expansion leases in its place."""
        following: Held | None = held
        while following is not None and self._held.get(following.lease.url) is following:
            following = await self._settle(following)

    async def _settle(self, held: Held) -> Held | None:
        """Perform a job and report how it ended: the task boundary, whatever happens inside ends in one verb."""
        lease, view = held.lease, self.board.jobs[held.lease.url]
        self._tasks[lease.url] = task = _this_task()
        try:
            return await self._perform(held, view)
        except StaleToken:
            log.warning(_("%s: dropped, its lease has moved on"), lease.url)
            self._remember_chunks(lease.url)
        except (NotNow, Parked) as error:
            self._later(self._give_back(held, isinstance(error, Parked)))
        except JobError as error:
            await self._fail(held, view, error)
        except (ServerUnreachable, Unauthorized) as error:
            log.warning(_("%s: its outcome could not be told: %s"), lease.url, error)
            self._heartbeat.apologize(held)  # it comes back at once, and nobody has died with it
        except ServerError as error:  # it will refuse the same again, now and on every machine
            await self._fail(held, view, TransientError(str(error), "refused"))
        except asyncio.CancelledError:
            if self._held.get(lease.url) is held:  # still ours: this worker stops, or was paused for long
                self._remember_chunks(lease.url)
                await self._quietly(self._queue.release(lease, kept=view.stage == "delivering"))
            raise
        except Exception as error:  # the one place for surprises: a bug met in one job must not end the others
            log.exception(_("%s: unexpected error"), lease.url)
            await self._fail(held, view, TransientError(f"{type(error).__name__}: {error}", "unexpected"))
        finally:
            self._let_go(held)
            if self._tasks.get(lease.url) is task:
                del self._tasks[lease.url]
        return None

    def _remember_chunks(self, url: str, held_bytes: int = 0) -> None:
        """Name a job in ``have`` from now on, before those that were remembered earlier."""
        with contextlib.suppress(ValueError):  # a journal of another version may have another kind of id
            if parse_job_id(url).is_page:
                self._unfinished.pop(url, None)
                self._unfinished[url] = held_bytes
        while len(self._unfinished) > UNFINISHED_LIMIT:
            del self._unfinished[next(iter(self._unfinished))]

    async def _fail(self, held: Held, view: JobView, error: JobError) -> None:
        lease = held.lease
        held.settling = True
        if isinstance(error, CircumstanceError):
            # Not in ``have``: others must have their turn first on a machine that this job may not suit.
            self._unfinished.pop(lease.url, None)
            self._park(error)
        elif any(stream.done_bytes for stream in view.streams.values()):
            self._remember_chunks(lease.url)
        self._enter(view, "recording")  # after it was parked, or another one would begin here
        failure = Failure(error.kind, error.code, str(error), view.title, error.retry_after_seconds)
        try:
            state = await self._queue.nack(lease, failure)
        except ServerError as problem:
            log.warning(_("%s: its failure could not be told: %s"), lease.url, problem)
            if isinstance(problem, ServerUnreachable | Unauthorized):
                self._heartbeat.apologize(held)
            return
        self.board.failed += 1
        self.board.failures[error.kind] += 1
        if state == "dead":
            self.board.dead += 1
            self._unfinished.pop(lease.url, None)
        log.warning(_("%s: failed, now %s (%s: %s)"), lease.url, _WORDS.get(state, state), error.code, error)

    async def _give_back(self, held: Held, is_parked: bool) -> None:
        if is_parked:
            log.info(_("%s: given back, because the site is not asked now"), held.lease.url)
        else:
            log.info(_("%s: given back, because its turn has not come"), held.lease.url)
        try:
            await self._queue.release(held.lease)
        except ServerError as error:
            log.debug("release: %s", error)
            self._heartbeat.apologize(held)

    async def _quietly(self, call: Coroutine[Any, Any, Any]) -> None:
        try:
            await call
        except ServerError as error:
            log.debug("release: %s", error)

    async def _perform(self, held: Held, view: JobView) -> Held | None:
        lease = held.lease
        job = parse_job_id(lease.url)
        if lease.walk is not None:
            await self._read_source(held, view)
            return None
        video = await self._site.describe(job)
        if not job.is_page:
            return await self._expand(held, view, job, video)
        page = video.page_with_cid(job.cid)
        if page is None:
            raise PermanentError(_("The uploader has taken this page away"), "page-gone")
        view.title = video.title if len(video.pages) == 1 else f"{video.title} P{page.number} {page.title}"
        result = await self._result(held, view, video, page)
        held.settling = True
        self._enter(view, "recording")
        await self._queue.ack(lease, result)
        self._results.add(lease.url, result)
        if self._deliveries is not None:
            self._later(self._deliveries.settle(page.cid))
        self._unfinished.pop(lease.url, None)
        if lease_clock() >= self._parked_until:  # an extra of this page may just have parked the worker
            self._park_failures = 0
        self.board.done += 1
        log.info(_("%s: done, %s (%.1f MiB)"), lease.url, result.path, result.bytes / MIB)
        return None

    async def _expand(self, held: Held, view: JobView, job: JobId, video: Video) -> Held | None:
        lease = held.lease
        for note in video.notes:
            log.warning("%s: %s", lease.url, note)
        pages = [page for page in video.pages if not job.number or page.number == job.number]
        if not pages:
            sentence = _("There is no page {number}: the video has {count}")
            raise PermanentError(sentence.format(number=job.number, count=len(video.pages)), "no-such-page")
        held.settling = True
        asked = lease_clock()
        call = asyncio.create_task(self._queue.expand(lease, video.title, pages))
        try:
            expanded = await asyncio.shield(call)
        except asyncio.CancelledError:
            # The page that comes in the container's place must not lie idle until its deadline.
            with contextlib.suppress(ServerError):
                if (given := (await call).lease) is not None:
                    await self._quietly(self._queue.release(given))
            raise
        log.info(_("%s: %s: %d new pages, %d known"), lease.url, video.title, expanded.added, expanded.known)
        if expanded.lease is not None and self.working.now.drain:
            self._later(self._quietly(self._queue.release(expanded.lease)))
            return None
        return None if expanded.lease is None else self._hold(expanded.lease, asked, view.since)

    async def _read_source(self, held: Held, view: JobView) -> None:
        """Read the listing of a source, from where it was read before; each page is told on its own."""
        view.stage = "listing"

        async def tell(told: Told) -> Expanded:
            held.settling = True  # the queue may end the lease with any page
            answer = await self._queue.expand_source(held.lease, told.urls, told.ledger, told.more)
            held.settling = answer.ended or not told.more
            return answer

        def name(title: str) -> None:
            view.title = title

        await read_source(self._site, held.lease, tell, name)
        self._park_failures = 0

    # -------------------------------------------------------------------------------- one page

    async def _result(self, held: Held, view: JobView, video: Video, page: Page) -> Result:
        """Return what is to be recorded of a page: its file, delivered if that is wanted."""
        if self._deliveries is None:
            return (await self._file(held, view, video, page))[0]
        if (known := await self._deliveries.delivered(page.cid, self._park)) is not None:
            log.info(_("%s: was delivered before"), held.lease.url)
            return known
        result, beside = await self._file(held, view, video, page)
        self._enter(view, "delivering")
        return await self._deliveries.deliver(held.lease.url, page.cid, result, beside, self._park, view.upload)

    async def _file(self, held: Held, view: JobView, video: Video, page: Page) -> tuple[Result, tuple[Beside, ...]]:
        """Return the finished file of a page, one that is already there or a new one, and what lies beside it."""
        kind = "m4a" if self._wishes.streams == "audio" else "mp4"
        relative, present = self._place(held.lease.category, video, page, kind)
        async with self._extras.of(held.lease.url, video, page, relative) as extras:
            if present:
                result = self._result_there(held, view, relative, page)
                discard_parts(self._parts, page.cid)
            else:
                result = await self._new_file(held, view, video, page, extras)
            await extras.lay_beside(PurePosixPath(result.path))
        if extras.trouble is not None:
            self._park(extras.trouble)
        return result, extras.standing(PurePosixPath(result.path)) if self._deliveries is not None else ()

    async def _new_file(self, held: Held, view: JobView, video: Video, page: Page, extras: Companions) -> Result:
        """Return the file of a page that is downloaded and merged."""
        streams = PageStreams(self._site, video, page, held.lease.url, self._wishes)
        await streams.ask()
        view.cid, view.planned_bytes = page.cid, streams.planned_bytes
        files = await self._fetch(view, streams)
        try:
            embedded = await extras.embedding()
            plan = MergePlan(
                output="",  # looked for anew just before: it may be another one after a long download
                video=_path(files.get("video")),
                audio=_path(files.get("audio")),
                segments=tuple(str(file.path) for part, file in files.items() if part.startswith("segment")),
                duration_seconds=streams.playinfo.duration_seconds,
                title=view.title,
                tag=_tag(video, page),
                scratch=str(self._parts),
                streams=self._wishes.streams,
                cover=embedded.cover,
                chapters=embedded.chapters,
                tags=embedded.tags,
                subtitles=embedded.subtitles,
            )
            result = await self._merge(held, view, video, page, plan, streams.extension)
            result = replace(result, streams=spoken(streams.choice))
            for file in files.values():
                file.discard()
            discard_parts(self._parts, page.cid)
        except DamagedStream:
            for file in files.values():  # else each later attempt here would join the same bytes
                file.discard()
            raise
        finally:
            for file in files.values():
                file.close()
        return result

    async def _merge(
        self, held: Held, view: JobView, video: Video, page: Page, plan: MergePlan, extension: str
    ) -> Result:
        """Merge a page under a name that is free at that moment, unless the page itself has come there meanwhile.

        A name may be taken between the look and the end of the merge: by another page of the same title, or by
        another worker on the same disk that took this one for dead.
        """
        attempt = 0
        while True:
            attempt += 1
            relative, present = self._place(held.lease.category, video, page, extension)
            if present:
                return self._result_there(held, view, relative, page)
            output = str(create_folder.create_folder(self._settings.download_dir, relative))
            try:
                merged = await merge(self._ffmpeg, replace(plan, output=output), held.is_ours)
            except NameTaken:
                if attempt == MERGE_ATTEMPTS:
                    raise
                log.info(_("%s: %s was taken in the meantime"), held.lease.url, relative)
            else:
                return Result(str(relative), merged.bytes, merged.duration_seconds, view.title)

    def _result_there(self, held: Held, view: JobView, relative: PurePosixPath, page: Page) -> Result:
        log.info(_("%s: %s is already there"), held.lease.url, relative)
        size_bytes = (self._settings.download_dir / relative).stat().st_size
        return Result(str(relative), size_bytes, page.duration_seconds, view.title)

    def _place(self, category: str, video: Video, page: Page, extension: str) -> tuple[PurePosixPath, bool]:
        """Return where a page's file belongs, and whether it is there already, in whatever container.

        A file says in its comment which page it holds: one with our cid is the finished work of a worker that died
        before it could tell, unless it is sound only and the picture is wanted too, or the other way round; one with
        another cid keeps its name, and ours gets its cid into the name. Raise NameTaken where a strange file has that
        one too.
        """
        kin = AUDIO_EXTENSIONS if extension in AUDIO_EXTENSIONS else VIDEO_EXTENSIONS
        output = self._settings.output
        strange: list[PurePosixPath] = []
        for with_cid in (False, True):
            wanted = create_folder.page_path(category, video, page, with_cid, extension, output)
            # All endings are as long, so the names are cut at the same place.
            names = [wanted.with_suffix(f".{each}") for each in (*VIDEO_EXTENSIONS, *AUDIO_EXTENSIONS)]
            holders = {relative: _cid_of(self._settings.download_dir / relative) for relative in names}
            for relative, holder in holders.items():
                if holder == page.cid and relative.suffix[1:] in kin:
                    return relative, True
            strange = [relative for relative, holder in holders.items() if holder not in (None, page.cid)]
            if not strange:
                return wanted, False
        raise NameTaken(
            _("{path} is there, but it is not this page: move it away, then try again").format(
                path=self._settings.download_dir / strange[0]
            )
        )

    def _enter(self, view: JobView, stage: str) -> None:
        """Let a job come to its next stage, and others, perhaps, to its place."""
        view.stage = stage
        self._slots.look()
        self._look_ahead()

    async def _fetch(self, view: JobView, streams: PageStreams) -> dict[str, StreamFile]:
        """Wait for a slot, and keep it until all bytes of a page are there."""
        view.stage = "waiting"
        self._rhythm.prepared_in(lease_clock() - view.since)
        await self._slots.take()
        try:
            self._check_room(view)
            began = lease_clock()
            self._enter(view, "downloading")
            files = await self._download(view, streams)
            self._rhythm.downloaded_in(lease_clock() - began)
            self._prepares = True
            self._enter(view, "merging")
            return files
        finally:
            self._slots.give_back()

    def _check_room(self, view: JobView) -> None:
        """Raise DiskFull unless the streams and the file of a job fit beside what the jobs before it will write.

        A job needs its streams twice, for the parts and for what they are merged into; the file is made among the
        parts and comes to the library in the end.
        """
        jobs = [view, *self.board.in_stages(_WRITING)]
        files_bytes = sum(job.streams_bytes for job in jobs)
        library, scratch = self._settings.download_dir, self._parts
        if _device(library) != _device(scratch):
            self._check_free(library, files_bytes)
        needed = 2 * files_bytes
        if _free_bytes(scratch) < needed + RESERVE_BYTES:
            needed -= _parts_bytes(scratch, {job.cid for job in jobs})
        self._check_free(scratch, needed)

    def _check_free(self, folder: Path, needed_bytes: int) -> None:
        free, needed = _free_bytes(folder), needed_bytes + RESERVE_BYTES
        if free < needed:
            sentence = _("{folder} has {free} MiB left, this video and those beside it need {needed}: make room")
            raise DiskFull(sentence.format(folder=folder, free=free // MIB, needed=-(-needed // MIB)))

    async def _download(self, view: JobView, streams: PageStreams) -> dict[str, StreamFile]:
        """Download all parts of a page at the same time; on any error keep what is on disk and free its locks."""
        tasks = {
            part: asyncio.create_task(
                download_stream(
                    self._wire,
                    source,
                    self._parts,
                    streams.refresher(part),
                    lambda progress: self.board.report(view, progress),
                )
            )
            for part, source in streams.sources().items()
        }
        try:
            await asyncio.gather(*tasks.values())
        except BaseException:
            for task in tasks.values():
                task.cancel()
            for ended in await asyncio.gather(*tasks.values(), return_exceptions=True):
                if isinstance(ended, StreamFile):
                    ended.close()
            raise
        return {part: task.result() for part, task in tasks.items()}


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[Beat], None], beat: Beat) -> None:
    try:
        loop.call_soon_threadsafe(function, beat)
    except RuntimeError:
        return  # the worker's loop has ended; its last beat says nothing to anyone


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # only coroutines of a task come here
    return task


def _tag(video: Video, page: Page) -> str:
    """Return what is written into a page's file: where it comes from, and the identity of the page."""
    return f"https://www.bilibili.com/video/{video.bvid}?p={page.number} cid={page.cid}"


def _cid_of(path: Path) -> int | None:
    """Return the cid that the file under a name says it holds, 0 if it says none or is cut, None without a file."""
    try:
        found = re.search(r" cid=(\d{1,19})$", read_tag(path))
        return int(found[1]) if found else 0
    except FileNotFoundError:
        return 0 if path.is_symlink() else None  # a link that leads nowhere has the name all the same
    except (OSError, JobError):
        return 0


def _path(file: StreamFile | None) -> str:
    return "" if file is None else str(file.path)


def _free_bytes(folder: Path) -> int:
    try:
        return free_disk_bytes(folder)
    except OSError:
        return 0


def _device(folder: Path) -> int:
    try:
        return folder.stat().st_dev
    except OSError:
        return 0


def _parts_bytes(folder: Path, cids: Collection[int]) -> int:
    """Return how much of the disk the parts of some pages have taken: a part gets its room when it is opened."""
    taken = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            cid = entry.name.partition("-")[0]
            if entry.name.endswith(".m4s") and cid.isdecimal() and int(cid) in cids:
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    taken += min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
    return taken
