"""The queue server as a worker sees it: the verbs of the queue over HTTP, and the thread that keeps leases alive.

Every answer is checked before it is believed: a job id, a category or a duration that could not have come from a
sane server is refused. An answer that did not come is asked for again, with full jitter; every verb may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import aiohttp

import retry
from config import Settings, category_problem, tls_context
from errors import ServerError, ServerUnreachable, StaleToken, Unauthorized
from i18n import _
from model import (
    CURSOR_CHARACTERS,
    JOB_ID_CHARACTERS,
    MIB,
    Budget,
    Counts,
    Expanded,
    Failure,
    Lease,
    Leased,
    ListedPage,
    Order,
    Page,
    Result,
)
from orders import read_order
from parse_ import parse_job_id
from server_choice import ServerChoice, is_there, together, with_place
from server_trust import Pinned, problem_with
from shapes import Check, flag, line, list_of, number, record
from source_ids import LESSON, find_source
from sources import WALK, read_lease

log = logging.getLogger(__name__)

PAGES_PER_CALL = 200
TITLE_CHARACTERS = 200
"""Of a page; so a call stays far below the server's limit in any script."""
CODE_CHARACTERS = 100
"""Of a failure; the server refuses longer ones, and a site may answer with any number."""
RESULTS_PER_CALL = 100
DELAYED_CALLS = 40
"""So many parts of the list of delayed jobs are read at most: it is for people, and a server may never end it."""
ANSWER_LIMIT_BYTES = 4 * MIB
OWN_SHARE = 0.95
"""Of a lease that a worker believes in: a margin for the way of the answer, and for what follows a check."""
CUT_OFF_LIMIT = 128
OBEYED_SECONDS = 0.5
STOP_SECONDS = 2.0
TOTAL_SECONDS = 20.0
CONNECT_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 600.0
"""A server that wants to be left alone for longer is asked again all the same: it, or a proxy, may have been wrong."""
LOOP_STALL_SECONDS = 600.0
"""A worker whose loop made no turn for so long is not alive, whatever its heartbeat thread says."""


def lease_clock() -> float:
    """Return seconds on a clock that goes on while the machine is suspended, where the system has one."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def make_server_session(settings: Settings) -> aiohttp.ClientSession:
    """Return a session for the queue server; a server on this machine is never asked through a proxy."""
    headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=Pinned(settings.server_pins) if settings.server_pins else tls_context(os.environ)
        ),
        headers=headers,
        trust_env=not settings.server_is_local,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
    )


def beat_limit_seconds(settings: Settings) -> float:
    """Return how long a heartbeat may take: a third of a lease, so that two may be late."""
    return max(2.0, settings.lease_seconds / 3)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat has told: leases that are no longer ours, and some that still are though we gave them up."""

    lost: tuple[Held, ...]
    returned: tuple[Held, ...] = ()
    replay: bool = False
    """The queue does not know a page that we finished: it has lost data."""
    confirmed: tuple[str, ...] = ()
    slow_seconds: float = 0.0
    """The site asked a worker of this address or account for less, and this is how long that counts yet."""
    order: Order | None = None
    """What the server wants of this worker, checked; as long as it was not told that this was obeyed."""
    data_id: str = ""
    """Whose data the queue's are: another name after a failover, a start or a loss."""
    budget: Budget | None = None
    """How the site may be asked; None where the server knows nothing of that."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What this heartbeat has told of how the worker stands with the site, and when it was sent."""
    sent: float = 0.0


class Pulse(NamedTuple):
    """The answer to a heartbeat: ids that are lost, when to beat again, whether to tell our results again.

    And for how long to ask the site for less, what to do otherwise, and how the site may be asked.
    """

    lost: list[str]
    period_seconds: float | None
    replay: bool
    slow_seconds: float = 0.0
    order: Order | None = None
    data_id: str = ""
    budget: Budget | None = None


class QueueClient:
    """The verbs of the queue server. One client belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        worker: str,
        instance: str,
        draw: retry.Draw = random.random,
    ) -> None:
        self._servers = ServerChoice(settings.server_urls, lease_clock, worker)
        # A server that takes requests and answers none must leave time to ask the others.
        several = len(settings.server_urls) > 1
        self._limit_seconds = TOTAL_SECONDS / 2 if several else None
        self._beat_limit_seconds = beat_limit_seconds(settings) / len(settings.server_urls) if several else None
        self._session = session
        self._worker = worker
        self._instance = instance
        self._draw = draw
        self._unanswered: tuple[str, int] | None = None
        self._is_away = False

    @property
    def has_unanswered_request(self) -> bool:
        """Tell whether the server may have given leases of which we have not heard."""
        return self._unanswered is not None

    async def lease(self, count: int, have: Sequence[str] = (), have_bytes: Sequence[int] = ()) -> Leased:
        """Ask for up to ``count`` jobs, first those of ``have``; raise ServerError where none can be had.

        ``have_bytes`` tells how much of each of ``have`` is on this disk, where that is known.

        A request whose answer did not come is repeated word for word by the next call: what the server gave then is
        still ours. So there may be more leases than ``count``.
        """
        request, count = self._unanswered or (secrets.token_hex(8), count)
        self._unanswered = (request, count)
        query = {"count": str(count), "worker": self._worker, "instance": self._instance, "request": request}
        if have:
            query["have"] = ",".join(have)
            if any(have_bytes):
                query["have_bytes"] = ",".join(map(str, have_bytes))
        answer, headers = await self._call("GET", "/get_url", query=query, patience_seconds=2.0)
        leases = tuple(map(read_lease, _understood(_LEASES, answer)))
        if len(leases) > count:
            raise ServerError(_("The server gave more leases than were asked for"))
        self._unanswered = None
        return Leased(leases, _header_seconds(headers.get("Retry-After")) or 2.0)

    async def expand(self, lease: Lease, title: str, pages: Sequence[Page]) -> Expanded:
        """Report the pages of a container, in as many calls as they need."""
        added = known = 0
        # The first pages come last: each call puts its pages before those that are there.
        starts = range(0, max(len(pages), 1), PAGES_PER_CALL)[::-1]
        lease_fields: dict[str, Any] | None = None
        for start in starts:
            part = pages[start : start + PAGES_PER_CALL]
            body: dict[str, Any] = {
                "url": lease.url,
                "token": lease.token,
                "title": title[:TITLE_CHARACTERS],
                "pages": [
                    {"number": page.number, "cid": page.cid, "title": page.title[:TITLE_CHARACTERS]} for page in part
                ],
            }
            if start != starts[-1]:
                body["more"] = True
            elif len(starts) > 1:  # how many there are altogether, for who watches it
                body["ledger"] = {"page": 1, "announced": len(pages)}
            answer = _understood(_EXPANDED, await self._post("/expand", body, lease.lease_seconds))
            added += answer["added"]
            known += answer["known"]
            lease_fields = answer.get("lease")
        return Expanded(added, known, read_lease(lease_fields) if lease_fields else None)

    async def expand_source(self, lease: Lease, urls: Sequence[str], ledger: ListedPage, more: bool) -> Expanded:
        """Report what a page of a source's listing names; the answer may say that no more is wanted."""
        told = {name: value for name, value in asdict(ledger).items() if value not in (None, "", (), {})}
        body = {"url": lease.url, "token": lease.token, "urls": list(urls), "more": more, "ledger": told}
        answer = _understood(_EXPANDED, await self._post("/expand", body, lease.lease_seconds))
        return Expanded(answer["added"], answer["known"], None, answer.get("ended", False))

    async def heartbeat(
        self,
        jobs: Sequence[Mapping[str, Any]],
        state: Mapping[str, Any],
        finished: Sequence[str] = (),
        standing: Mapping[str, Any] | None = None,
    ) -> Pulse:
        """Renew leases once, the next beat comes anyway; ask whether pages that this worker finished are known.

        ``standing`` is how this worker stands with the site: ``account``, ``egress``, ``risk`` and ``site`` of the API.
        """
        body = {"worker": self._worker, "jobs": list(jobs), "state": dict(state), **(standing or {})}
        if finished:
            body["finished"] = list(finished)
        answer = _understood(
            _BEAT, (await self._ask_each("POST", "/heartbeat", None, body, self._beat_limit_seconds))[0]
        )
        slow_seconds = answer.get("control", {}).get("slow_seconds", 0.0)
        return Pulse(
            answer["lost"],
            answer.get("heartbeat_seconds"),
            answer.get("replay", False),
            slow_seconds,
            answer.get("order"),
            answer.get("data", ""),
            Budget(**answer["budget"]) if "budget" in answer else None,
        )

    async def replay(self, results: Iterable[tuple[str, Result]]) -> int:
        """Tell again what this worker has finished; return how many of these pages the queue had lost."""
        told, left = 0, iter(results)
        while part := [_told_again(*one) for one in islice(left, RESULTS_PER_CALL)]:
            body = {"worker": self._worker, "results": part}
            told += _understood(_REPLAYED, await self._post("/replay", body, 60.0))["recorded"]
        return told

    async def ack(self, lease: Lease, result: Result, patience_seconds: float = 1800.0) -> None:
        """Record a finished page. The file stands, so this waits long for a server that is away."""
        body = {
            "url": lease.url,
            "token": lease.token,
            "path": result.path,
            "bytes": result.bytes,
            "seconds": result.seconds,
            "title": result.title,
            "streams": result.streams,
        }
        if result.stored:
            body["stored"] = result.stored
        await self._post("/ack", body, patience_seconds)

    async def nack(self, lease: Lease, failure: Failure) -> str:
        """Record a failed attempt; return the state of the job: delayed, dead or ready."""
        body: dict[str, Any] = {
            "url": lease.url,
            "token": lease.token,
            "class": failure.kind,
            "code": failure.code[:CODE_CHARACTERS],
            "reason": failure.reason,
            "title": failure.title,
        }
        if failure.retry_after_seconds is not None:
            body["retry_after_seconds"] = failure.retry_after_seconds
        return str(_understood(_STATE, await self._post("/nack", body, lease.lease_seconds))["state"])

    async def release(self, lease: Lease, kept: bool = False) -> None:
        """Give a job back at once; ``kept``, because its file is here, and this worker will soon be back."""
        body = {"url": lease.url, "token": lease.token, **({"kept": True} if kept else {})}
        await self._post("/release", body, 1.0)

    async def counts(self) -> tuple[Counts, float | None]:
        """Return the jobs by state, and in how many seconds the first delayed one is due."""
        answer = _understood(_STATUS, (await self._call("GET", "/status", patience_seconds=10.0))[0])
        return Counts(**answer["jobs"]), answer.get("next_due_seconds")

    async def delayed(self) -> list[tuple[str, float, str]]:
        """Return id, seconds until the next attempt and reason of each delayed job."""
        found: list[tuple[str, float, str]] = []
        after = ""
        for _call in range(DELAYED_CALLS):
            query = {"limit": "500", "after": after}
            answer = _understood(_FAILED, (await self._call("GET", "/failed", query=query, patience_seconds=10.0))[0])
            found += [
                (item["url"], item.get("next_retry_seconds", 0.0), item.get("reason", ""))
                for item in answer["items"]
                if item["state"] == "delayed"
            ]
            if not (after := answer.get("next", "")):
                break
        return found

    async def _post(self, path: str, body: Mapping[str, Any], patience_seconds: float) -> Any:
        return (await self._call("POST", path, body=body, patience_seconds=patience_seconds))[0]

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        patience_seconds: float,
    ) -> tuple[Any, Mapping[str, str]]:
        """Ask until there is an answer or the patience ends; raise ServerUnreachable then."""
        until = lease_clock() + patience_seconds
        attempt = 0
        while True:
            try:
                answer = await self._ask_each(method, path, query, body, self._limit_seconds)
                self._note_presence(None)
                return answer
            except ServerUnreachable as error:
                self._note_presence(error)
                attempt += 1
                # On top of what the server asks for, or all that heard the same would come at the same time.
                wait = retry.full_jitter_seconds(attempt, 0.5, 30.0, self._draw) + (error.retry_after_seconds or 0.0)
                if lease_clock() + wait > until:
                    raise
                await asyncio.sleep(wait)

    def _note_presence(self, error: ServerUnreachable | None) -> None:
        """Say once that the server is away, and once that it is back."""
        if error is not None and not self._is_away:
            log.warning(_("%s; asking again until it answers"), error)
        if error is None and self._is_away:
            log.info(_("The server answers again"))
        self._is_away = error is not None

    async def _ask_each(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        limit_seconds: float | None,
    ) -> tuple[Any, Mapping[str, str]]:
        """Ask one server after the other, word for word the same; raise ServerUnreachable where none answers."""
        problems: dict[str, ServerUnreachable] = {}
        for server in self._servers.in_order():
            try:
                answer = await self._once(server, method, path, query, body, limit_seconds)
            except ServerUnreachable as error:
                problems[server] = error
                if is_there(error):
                    break
                if self._servers.failed(server) and not self._servers.is_single():
                    log.warning(_("%s; another server is asked"), with_place(server, error))
                continue
            if self._servers.answered(server) and not self._servers.is_single():
                log.info(_("The server %s answers again"), server)
            return answer
        raise together(problems)

    async def _once(
        self,
        server: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        limit_seconds: float | None,
    ) -> tuple[Any, Mapping[str, str]]:
        options: dict[str, Any] = {"params": query, "json": body, "allow_redirects": False}
        if limit_seconds is not None:
            connect_seconds = min(CONNECT_SECONDS, limit_seconds)
            options["timeout"] = aiohttp.ClientTimeout(total=limit_seconds, sock_connect=connect_seconds)
        try:
            async with self._session.request(method, server + path, **options) as reply:
                content = await _read(reply)
                if reply.status == 200:
                    return json.loads(content), reply.headers
                raise _refusal(reply.status, content, _header_seconds(reply.headers.get("Retry-After")))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServerUnreachable(
                _("The server {place} cannot be reached: {problem}").format(place=server, problem=problem_with(error))
            ) from None
        except (ValueError, RecursionError):
            raise ServerError(_("{place} answers, but not like a queue server").format(place=server)) from None


def _told_again(url: str, result: Result) -> dict[str, Any]:
    fields = {"url": url, **asdict(result)}
    if not result.stored:
        del fields["stored"]  # an older server knows no such field
    return fields


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in reply.content.iter_any():
        content += piece
        if len(content) > ANSWER_LIMIT_BYTES:
            raise ServerError(_("The server's answer is too large"), reply.status)
    return bytes(content)


def _refusal(status: int, content: bytes, retry_after_seconds: float | None) -> ServerError:
    try:
        sentence = str(json.loads(content)["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        sentence = f"HTTP {status}"
    if status == 401:
        refused = _("The server refuses the token, BILI_TOKEN or that of run.py --join: {problem}")
        return Unauthorized(refused.format(problem=sentence), status)
    if status == 409:
        return StaleToken(sentence, status)
    if status == 429 or status >= 500:
        return ServerUnreachable(sentence, status, retry_after_seconds)
    return ServerError(sentence, status)


def _understood(shape: Check, answer: Any) -> Any:
    """Return an answer that has a shape; raise ServerError for one that no sane server gives."""
    try:
        return shape(answer)
    except ValueError as error:
        raise ServerError(_("The server's answer makes no sense: {problem}").format(problem=error)) from None


def _job_id(value: Any) -> str:
    text: str = line(JOB_ID_CHARACTERS)(value)
    parse_job_id(text)
    return text


def _category(value: Any) -> str:
    text: str = line(120)(value)
    if problem := category_problem(text):
        raise ValueError(problem)
    return text


_COUNT = number(0, 2**63 - 1, whole=True)
_SECONDS = number(0, 365 * 86400)
_LEASE_FIELDS = record(
    {
        "url": _job_id,
        "token": line(200, 1),
        "category": _category,
        "attempt": number(1, 1000, whole=True),
        "lease_seconds": number(1, 86400),
    },
    walk=WALK,
)


def _lease(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _LEASE_FIELDS(value)
    source = find_source(found["url"])
    if "walk" in found and (source is None or source.kind == LESSON):
        raise ValueError(_("how far {id} is read is told, but it is no source").format(id=found["url"]))
    return found


_LEASES = list_of(_lease, 64)
_EXPANDED = record({"added": _COUNT, "known": _COUNT}, lease=_lease, ended=flag)
_CONTROL = record({}, slow_seconds=_SECONDS)
_BUDGET = record(
    {"parked_seconds": _SECONDS, "holds_seconds": _SECONDS},
    requests_per_second=number(0, 1e6),
    probes=flag,
    kind=line(40),
)
_BEAT = record(
    {"lost": list_of(line(JOB_ID_CHARACTERS), 256)},
    heartbeat_seconds=_SECONDS,
    replay=flag,
    control=_CONTROL,
    order=read_order,
    data=line(64),
    budget=_BUDGET,
)
_REPLAYED = record({"recorded": _COUNT})
_STATE = record({"state": line(40)})
_STATUS = record(
    {"jobs": record(dict.fromkeys(("ready", "leased", "delayed", "done", "dead"), _COUNT))}, next_due_seconds=_SECONDS
)
_FAILURE = record({"url": line(JOB_ID_CHARACTERS), "state": line(40)}, next_retry_seconds=_SECONDS, reason=line(1000))
_FAILED = record({"items": list_of(_FAILURE, 1000)}, next=line(CURSOR_CHARACTERS))


def _header_seconds(text: str | None) -> float | None:
    try:
        return min(float(_SECONDS(float(text or ""))), LONGEST_WAIT_SECONDS)
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------ heartbeat


@dataclass(slots=True)
class Held:
    """A lease that this worker holds. ``deadline`` is on the lease clock, moved on by each heartbeat."""

    lease: Lease
    deadline: float
    progress: Callable[[], Mapping[str, Any]] = field(repr=False)
    """Called from the heartbeat's thread: what to say of the job; ``chunks`` in it tells of bytes on disk."""
    settling: bool = False
    """A verb that ends the lease is under way: its answer decides, not our clock, and not a heartbeat beside it."""

    def is_ours(self) -> bool:
        """Tell whether the lease still stands by our own clock, with a margin for what follows."""
        return lease_clock() < self.deadline


class Heartbeat:
    """Renews all leases of a worker from a thread with a loop of its own, so that a busy worker is not taken for dead.

    ``held`` is owned by the worker's loop and only read here. ``on_beat`` is called in this thread, and ``finished``,
    which returns pages that this worker finished and the queue is to be asked about, and ``standing``, which returns
    how it stands with the site.
    """

    def __init__(
        self,
        settings: Settings,
        worker: str,
        instance: str,
        held: Mapping[str, Held],
        state: Callable[[], Mapping[str, Any]],
        on_beat: Callable[[Beat], None],
        finished: Callable[[], Sequence[str]] = tuple,
        standing: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._settings = settings
        self._finished, self._standing = finished, standing
        self._names = (worker, instance)
        self._held = held
        self._state = state
        self._on_beat = on_beat
        self._stop, self._wake = threading.Event(), threading.Event()
        self._cut: Callable[[], None] | None = None
        self._cut_off: dict[str, Held] = {}
        self._last_turn = lease_clock()
        self._period = min(5.0, settings.lease_seconds / 3)
        self._ordered = ""
        self._thread = threading.Thread(target=self._main, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; a beat that is under way is cut off. Python may crash if it ends under a running thread."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            if self._cut is not None:
                self._cut()
            self._thread.join(STOP_SECONDS)

    def hurry(self) -> None:
        """Beat now: there is something to tell that others wait for."""
        self._wake.set()

    def apologize(self, held: Held) -> None:
        """Name a lease that ran out by our own clock in the next beat: its job has not killed us."""
        self._cut_off[held.lease.token] = held
        while len(self._cut_off) > CUT_OFF_LIMIT:
            self._cut_off.pop(next(iter(self._cut_off)))

    def worker_turns(self) -> None:
        """Be told by the worker's loop that it still turns."""
        self._last_turn = lease_clock()

    def _main(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._until_cut())

    async def _until_cut(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # asyncio.run makes one

        def cut() -> None:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)

        self._cut = cut
        await self._beats()

    async def _beats(self) -> None:
        async with make_server_session(self._settings) as session:
            client = QueueClient(self._settings, session, *self._names)
            while not self._stop.is_set():
                started = lease_clock()
                is_ordered = started - self._last_turn < LOOP_STALL_SECONDS and await self._beat(client)
                # Whoever ordered something looks at a page: it is soon told that it was obeyed.
                period = min(self._period, OBEYED_SECONDS) if is_ordered else self._period
                await self._rest(max(0.1, period - (lease_clock() - started)))

    async def _rest(self, seconds: float) -> None:
        # A thread's own event, so that stop() ends the wait; nothing else runs in this loop meanwhile.
        await asyncio.to_thread(self._wake.wait, seconds)
        self._wake.clear()

    async def _beat(self, client: QueueClient) -> bool:
        """Beat once; tell whether there was an order that had not come before."""
        held, cut_off = list(self._held.values()), list(self._cut_off.values())
        sent = lease_clock()
        try:
            async with asyncio.timeout(beat_limit_seconds(self._settings)):
                finished, standing = self._finished(), self._standing()
                lost, period_seconds, replay, slow_seconds, order, data_id, budget = await client.heartbeat(
                    _renewals(held), self._state(), finished, standing
                )
                # The answer names ids, and one of these may be held anew: they are asked about apart.
                gone = (await client.heartbeat(_renewals(cut_off), self._state())).lost if cut_off else []
        except (ServerError, TimeoutError) as error:
            log.debug("heartbeat: %s", error)
            return False
        for one in held:
            if one.lease.url not in lost:
                one.deadline = sent + one.lease.lease_seconds * OWN_SHARE
        for one in cut_off:
            self._cut_off.pop(one.lease.token, None)
        if period_seconds is not None and held:
            self._period = max(0.2, min(period_seconds, held[0].lease.lease_seconds / 3))
        self._on_beat(
            Beat(
                lost=tuple(one for one in held if one.lease.url in lost),
                returned=tuple(one for one in cut_off if one.lease.url not in gone),
                replay=replay,
                confirmed=() if replay else tuple(finished),
                slow_seconds=slow_seconds,
                order=order,
                data_id=data_id,
                budget=budget,
                told=standing,
                sent=sent,
            )
        )
        is_new = order is not None and order.id != self._ordered
        self._ordered = order.id if order is not None else ""
        return is_new


def _renewals(leases: Sequence[Held]) -> list[Mapping[str, Any]]:
    return [{"url": one.lease.url, "token": one.lease.token, "progress": dict(one.progress())} for one in leases]
