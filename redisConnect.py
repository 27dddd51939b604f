"""The queue in Redis: the one module that speaks to it.

Ready work is a LIST of job ids. A lease is a token and a deadline in Redis' own clock; every transition is one Lua
script (``lua/``), so that a job is in exactly one state whatever dies. Verbs are the same here, in Lua, over HTTP
(web_server) and in the worker's client (queue_client): add, lease, expand, heartbeat, ack, nack, release, redrive, and
of users besides cancel, first, forget. What people look at is read by queue_data.

An answer means that the change is on disk: the engine runs with ``appendfsync always``.
"""

from __future__ import annotations

import json
import logging
import random
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import NoScriptError

import retry
import series
from config import Settings
from errors import EngineError, EngineFull, StaleToken
from i18n import _
from model import HAVE_LIMIT, Added, Counts, Expanded, Failure, JobId, Lease, ListedPage, Page, Result, Walk
from notices import Change, EndedSource, Seen, SeenWorker
from parse_ import parse_job_id, video_aid
from queue_data import (
    ARCHIVED_AT_ONCE,
    CANCELLED,
    COMMON_KEYS,
    STATES,
    Identity,
    JobViews,
    Wanted,
    answer_key,
    as_dict,
    as_json,
    bucket,
    containers_of,
    done_key,
    ended_key,
    failure_cursor,
    failure_range,
    folded_prefix,
    identity_of,
    key,
    ledger_item,
    move_oldest,
    record_item,
    record_key,
    risk_key,
    success_item,
)
from redis_engine import connect_embedded, connect_url, engine_errors, memory_is_full, nothing
from success_archive import Archive
from success_records import path_pattern

log = logging.getLogger(__name__)

NOTICES_AN_HOUR = 20
WITHHELD_LIMIT = 50
RECENT_STEPS = 60
"""Ten minutes."""
SOON_MS = 600_000
"""A delayed job that is due within this will be work."""
HEARD_SECONDS = 30.0
"""A worker that is silent for longer counts for no speed; with the default lease, beats are 20 s apart at most."""
ORDER_SECONDS, LOGIN_SECONDS = 86400, 600
"""As ``lua/common.lua`` has it: what is older is not meant any more."""
STEERED_AT_ONCE = 100
"""So that each script's work is bounded."""
ACTIONS = 1000
ACTION_CHARACTERS = 300

_LUA = Path(__file__).resolve().parent / "lua"


def open_queue(settings: Settings) -> Queue:
    """Return the queue in ``REDIS_URL``, or in the embedded Valkey of the data folder where that is empty.

    Raises EngineError with one sentence when the engine cannot be reached or started.
    """
    if settings.redis_url:
        queue = Queue(connect_url(settings.redis_url), settings)
    else:
        connection, close = connect_embedded(settings.data_dir)
        queue = Queue(connection, settings, close, place=str(settings.data_dir))
    try:
        try:
            queue.ping()
            queue.adopt()
        except EngineFull as error:  # what workers have to tell is taken all the same
            log.warning("%s", error)
        for warning in queue.unsafe():
            log.warning("%s", warning)
    except EngineError:
        queue.close()
        raise
    return queue


class Queue:
    """The verbs of the queue. Safe from many threads; every call may be repeated.

    Malformed ids raise ValueError, a lease that moved on StaleToken, an engine that is away EngineError.
    """

    def __init__(
        self,
        connection: redis.Redis,
        settings: Settings,
        close: Callable[[], None] = nothing,
        draw: retry.Draw = random.random,
        place: str = "",
    ) -> None:
        options = connection.connection_pool.connection_kwargs
        self.place = place or str(options.get("path") or f"{options.get('host')}:{options.get('port')}")
        """Where the data is, without a password."""
        self._redis: Any = connection  # its stubs type each answer for every decoding and mode at once
        self._close = close
        self._draw = draw
        self._category = settings.category
        self._lease_seconds = settings.lease_seconds
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._affinity_ms = round(settings.affinity_seconds * 1000)
        common = (_LUA / "common.lua").read_text("utf-8")
        self._scripts = {
            path.stem: connection.register_script(common + path.read_text("utf-8"))
            for path in _LUA.glob("*.lua")
            if path.stem != "common"
        }
        self._common = [key(name) for name in COMMON_KEYS]
        self._archive = Archive(settings.data_dir / "archive", folded_prefix)
        self._success_limit = settings.success_limit
        self._views = JobViews(self._look, self._category, self._archive)

    def close(self) -> None:
        """Leave the engine; an embedded one ends when nobody else uses it."""
        self._redis.close()
        self._close()

    # -------------------------------------------------------------------------------- what users ask for

    @engine_errors
    def add(
        self,
        ids: Sequence[str],
        category: str = "",
        source: str = "",
        refresh: bool = False,
        request: str = "",
        wishes: Mapping[str, Any] | None = None,
        again: bool = False,
        watch: int = 0,
    ) -> Added:
        """Queue containers, each once; with ``refresh`` known ones are asked again for new pages.

        ``request`` is a random id that makes a repeated call count the same. ``wishes`` (since, match, limit and
        oldest_first of model.Walk) are for the sources among the ids; with ``again`` known sources are read again.
        With ``watch`` all of them are, from now on, every so many seconds. At most a few thousand ids.
        """
        keys = [answer_key(request or secrets.token_hex(8))]
        renewed = "all" if refresh else "sources" if again else ""
        args = [renewed, self._origin(category, source), self._origin(category, source, refresh, wishes), str(watch)]
        for text in ids:
            aid = video_aid(text)
            identity = Identity("v", aid, str(aid)) if aid else identity_of(_container(text))
            keys.append(bucket("seen", identity))
            if renewed:
                keys.append(bucket("closed", identity))
            args += [text, identity.member]
        added, known = self._run("add", keys, args)
        return Added(int(added), int(known))

    @engine_errors
    def redrive(self, urls: Sequence[str]) -> int:
        """Give the named dead or delayed jobs all their attempts back, now; return how many there were."""
        for url in urls:
            parse_job_id(url)
        return sum(int(self._run("redrive", [], urls[i : i + 100])) for i in range(0, len(urls), 100))

    @engine_errors
    def redrive_all(self) -> int:
        """Give every dead job that was not cancelled all its attempts back, now; return how many there were."""
        codes = [name.removeprefix("dead:") for name in self._redis.hkeys(key("kinds")) if name.startswith("dead:")]
        return sum(self._redrive_kind(code) for code in codes if code != CANCELLED)

    @engine_errors
    def redrive_code(self, code: str) -> int:
        """Give every dead job of that code all its attempts back, now; return how many there were."""
        return self._redrive_kind(code)

    def _redrive_kind(self, code: str) -> int:
        moved, last = 0, ""
        while members := self._redis.zrangebylex(key("failures"), *failure_range(code, last), 0, 100):
            last = failure_cursor(members[-1])
            ids = [member.rpartition("\0")[2] for member in members]
            died_at = self._redis.zmscore(key("dead"), ids)
            dead = [url for url, score in zip(ids, died_at, strict=True) if score is not None]
            moved += int(self._run("redrive", [], dead))
        return moved

    @engine_errors
    def cancel(self, urls: Sequence[str]) -> int:
        """Bury jobs with the code ``cancelled``, wherever they are; return how many were there.

        A lease ends with it: its worker hears of that with the next heartbeat. To redrive a job undoes it.
        """
        return self._run_places("cancel", urls)

    @engine_errors
    def first(self, urls: Sequence[str]) -> int:
        """Let jobs that wait come next, in this order, the delayed ones too; return how many there were."""
        backwards = [urls[start : start + 100] for start in range(0, len(urls), 100)][::-1]
        return sum(self._run_places("first", part) for part in backwards)

    def _run_places(self, script: str, urls: Sequence[str]) -> int:
        """Run a script that has to know where jobs are, a hundred of them at a time."""
        jobs = [parse_job_id(url) for url in urls]
        changed = 0
        for start in range(0, len(jobs), 100):
            keys, args = [], []
            for url, job in zip(urls[start : start + 100], jobs[start : start + 100], strict=True):
                keys += [bucket("seen", identity_of(job)), ended_key(job)]
                args += [url, identity_of(job).member]
            changed += int(self._run(script, keys, args))
        return changed

    @engine_errors
    def forget(self, urls: Sequence[str]) -> int:
        """Let dead and done jobs leave the queue's memory, so that they may be added again; return how many there were.

        With a page goes that its containers were read, with a source its ledger and its watch.
        """
        jobs = [parse_job_id(url) for url in urls]
        forgotten = 0
        for start in range(0, len(urls), 100):
            part = jobs[start : start + 100]
            known = self._views.jobs(urls[start : start + 100])
            keys: list[str] = []
            args: list[str | int] = []
            for url, job, item in zip(urls[start : start + 100], part, known, strict=True):
                title = f"{folded_prefix(item['title'])}\0{item['url']}" if item and item["title"] else ""
                containers = [identity_of(one) for one in containers_of(job)] if job.is_page else []
                keys += [bucket("seen", identity_of(job)), ended_key(job), record_key(job)]
                keys += [bucket(kind, one) for one in containers for kind in ("closed", "seen")]
                keys += [bucket("seen", identity_of(job))] * 2 * (2 - len(containers))  # so that each has as many
                args += [url, identity_of(job).member, job.cid or "", title]
                args += [*(one.member for one in containers), *[""] * (2 - len(containers))]
            forgotten += int(self._run("forget", keys, args))
        return forgotten

    # -------------------------------------------------------------------------------- sources

    @engine_errors
    def claim(
        self,
        source: str,
        worker: str,
        category: str = "",
        wishes: Mapping[str, Any] | None = None,
        refresh: bool = False,
        if_due: bool = False,
        request: str = "",
    ) -> Lease | str:
        """Queue a source and lease it in one step, for who reads it at once; known or not, it is read anew.

        Return ``"open"`` instead where somebody reads it now. With ``if_due`` a watched source is read as its
        watch would, or not at all: ``"early"``.
        """
        job = _container(source)
        keys = [
            answer_key(request or secrets.token_hex(8)),
            bucket("seen", identity_of(job)),
            bucket("closed", identity_of(job)),
        ]
        args: list[str | int] = [source, identity_of(job).member, worker, self._lease_ms, secrets.token_hex(8)]
        args += [secrets.token_hex(4), self._origin(category, "", refresh, wishes), "1" if if_due else ""]
        answer = json.loads(self._run("claim", keys, args))
        return answer if isinstance(answer, str) else self._lease(*answer)

    @engine_errors
    def watch(self, url: str, seconds: int) -> int:
        """Have a source or a video read again that often by itself, or with 0 no more; return what was set before.

        A video is asked for new pages once a day at most.
        """
        return int(self._run("watch", [], [str(_container(url)), seconds]))

    @engine_errors
    def revisit(self) -> int:
        """Queue watched sources and videos whose time has come, a bounded number of them; return how many."""
        seconds, micros = self._redis.time()
        due = self._redis.zrangebyscore(key("watch"), "-inf", seconds * 1000 + micros // 1000, 0, 100)
        if not due:
            return 0
        keys, args = [], []
        for url in due:
            identity = identity_of(_container(url))
            keys += [bucket("seen", identity), bucket("closed", identity)]
            args += [url, identity.member]
        return int(self._run("revisit", keys, args))

    @engine_errors
    def sources(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return the ledgers of sources and watched videos in the order of ids, and where to go on."""
        start = f"({after}" if after else "-"
        ids = self._redis.zrangebylex(key("ledgers"), start, "+", 0, limit + 1)
        following = ids[limit - 1] if len(ids) > limit else None
        ids = ids[:limit]
        if not ids:
            return [], None
        closed_at = [(bucket("closed", one), one.member) for one in map(identity_of, map(_container, ids))]
        texts, tries, leased, delayed, dead, *closed = self._look(
            lambda pipe: (
                pipe.hmget(key("ledger"), ids).hmget(key("tries"), ids),
                pipe.zmscore(key("leased"), ids).zmscore(key("delayed"), ids).zmscore(key("dead"), ids),
                [pipe.sismember(place, member) for place, member in closed_at],
            )
        )
        places = {"leased": leased, "delayed": delayed, "dead": dead, "closed": [one or None for one in closed]}
        states = [
            next((state for state, found in places.items() if found[index] is not None), "ready")
            for index in range(len(ids))
        ]
        return [
            ledger_item(source, as_dict(text), state, as_dict(failure), self._category)
            for source, text, state, failure in zip(ids, texts, states, tries, strict=True)
        ], following

    # -------------------------------------------------------------------------------- what workers do

    @engine_errors
    def lease(
        self,
        worker: str,
        count: int,
        have: Sequence[str] = (),
        request: str = "",
        instance: str = "",
        have_bytes: Sequence[int] = (),
    ) -> tuple[Lease, ...]:
        """Lease up to ``count`` jobs to a worker, first those of ``have``, whose chunks lie on its disk.

        ``request`` makes a repeated call return the same leases. ``instance`` is an id of the worker's
        process: what an earlier process of that worker held is given back at once where ``have`` names it.
        ``have_bytes`` is how much of each of them lies there: a process may have died before it told.
        """
        nonces = [secrets.token_hex(8) for _unused in range(count)]
        arguments: list[str | int] = [count, worker, instance, self._lease_ms, self._affinity_ms, secrets.token_hex(4)]
        keys = [answer_key(request or secrets.token_hex(8))]
        named = have[:HAVE_LIMIT]
        sizes = [*have_bytes, *([0] * len(named))][: len(named)]
        found = self._run("lease", keys, [*arguments, *nonces, *named, *sizes])
        return tuple(self._lease(*fields) for fields in found)

    @engine_errors
    def expand(
        self,
        url: str,
        token: str,
        pages: Sequence[Page],
        urls: Sequence[str] = (),
        more: bool = False,
        ledger: ListedPage | None = None,
    ) -> Expanded:
        """Turn a leased container into a job for each page never seen, close it, and lease the first new one.

        A source gives ``urls``, containers in their turn, and what its ledger is told. With ``more`` the container
        stays open for another call, unless nothing new is left in a source that is read for its news only.
        """
        container = _container(url)
        identity = identity_of(container)
        own = key(f"listed:{url}") if container.is_source else bucket("paged", identity)
        keys = [answer_key(token), bucket("closed", identity), own, key("ended")]
        args: list[str | int] = [url, token, identity.member, "1" if more else "", self._lease_ms, secrets.token_hex(8)]
        told = ledger or ListedPage(0)
        args += [
            len(pages),
            as_json({name: value for name, value in asdict(told).items() if value not in (None, "", ())}),
        ]
        for page in pages:
            job = _page_job(container, page)
            keys.append(bucket("seen", identity_of(job)))
            args += [str(job), identity_of(job).member]
        for job in map(_container, urls):
            keys += [bucket(kind, identity_of(job)) for kind in ("seen", "closed", "paged")]
            args += [str(job), identity_of(job).member]
        added, known, *rest = json.loads(self._current(self._run("expand", keys, args), url))
        ended = rest == [True]
        return Expanded(added, known, self._lease(*rest[0]) if rest and not ended else None, ended)

    @engine_errors
    def heartbeat(
        self,
        worker: str,
        jobs: Sequence[tuple[str, str, int]],
        status: dict[str, Any],
        titles: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Renew the leases in ``jobs`` (id, token, bytes on the worker's disk); return the ids that are lost.

        ``status`` is what the status page shows of the worker, ``titles`` what some of the jobs turned out to be.
        """
        args: list[str | int] = [worker, self._lease_ms, as_json(status)]
        for url, token, done_bytes in jobs:
            title = (titles or {}).get(url, "")
            args += [url, token, int(done_bytes), title, folded_prefix(title)]
        return list(self._run("heartbeat", [], args))

    @engine_errors
    def tell_risk(self, marks: Sequence[str], kind: str, seconds: float) -> None:
        """Remember for a while that the site asked a worker for less; ``marks`` are its address and its account."""
        told_ms = round(seconds * 1000)
        with self._redis.pipeline(transaction=False) as pipe:
            for mark in marks:
                pipe.pttl(risk_key(mark))
            left = pipe.execute()
            for mark, left_ms in zip(marks, left, strict=True):
                if told_ms > left_ms:  # a shorter time must not shorten what another worker told
                    pipe.set(risk_key(mark), kind, px=told_ms)
            pipe.execute()

    @engine_errors
    def risk_seconds(self, marks: Sequence[str]) -> float:
        """Return for how long yet the site wants less from one of these; 0 where nothing is known."""
        with self._redis.pipeline(transaction=False) as pipe:
            for mark in marks:
                pipe.pttl(risk_key(mark))
            return float(max(0, *pipe.execute())) / 1000

    @engine_errors
    def knows(self, urls: Sequence[str]) -> bool:
        """Tell whether all these pages are recorded as done, or were forgotten on purpose; else data were lost."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job in map(parse_job_id, urls):
                pipe.sismember(done_key(job), str(job.cid)).zscore(key("forgotten"), str(job.cid))
            found = pipe.execute()
        return all(done or since is not None for done, since in zip(found[::2], found[1::2], strict=True))

    @engine_errors
    def replay(self, worker: str, results: Sequence[tuple[str, Result]]) -> int:
        """Record what a worker finished and this queue has lost; return how many pages were not recorded.

        At most a few hundred. A job that is still somewhere in the queue for such a page ends without a download.
        """
        keys, args = [], [worker]
        for url, result in results:
            job = parse_job_id(url)
            if not job.is_page:
                raise ValueError(_("{id} is a container: it is expanded, not acknowledged").format(id=url))
            keys += [done_key(job), record_key(job), bucket("seen", identity_of(job))]
            args += [url, str(job.cid), *_told(url, result)]
        return int(self._run("replay", keys, args))

    @engine_errors
    def ack(self, url: str, token: str, result: Result) -> str:
        """Record a page as done; return its state."""
        job = parse_job_id(url)
        if not job.is_page:
            raise ValueError(_("{id} is a container: it is expanded, not acknowledged").format(id=url))
        keys = [answer_key(token), done_key(job), record_key(job)]
        return self._current(self._run("ack", keys, [url, token, job.cid, *_told(url, result)]), url)

    @engine_errors
    def nack(self, url: str, token: str, failure: Failure) -> str:
        """Record a failed attempt; return the state that follows from its class: delayed, dead or ready."""
        waits = failure.kind == "waiting"
        delays = retry.waiting_delays_seconds(self._draw) if waits else retry.redelivery_delays_seconds(self._draw)
        if failure.retry_after_seconds is not None:
            delays = (max(1.0, min(failure.retry_after_seconds, 6 * 3600.0)),) * len(delays)
        code = failure.code.replace("\0", " ")  # it is sorted by its end
        args: list[str | int] = [url, token, failure.kind, code, failure.reason, failure.title]
        args.append(folded_prefix(failure.title))
        args += [round(delay * 1000) for delay in delays]
        return self._current(self._run("nack", [answer_key(token)], args), url)

    @engine_errors
    def release(self, url: str, token: str) -> str:
        """Give a job back untouched, at the head of the list, without counting an attempt; return its state."""
        return self._current(self._run("release", [answer_key(token)], [url, token]), url)

    @engine_errors
    def sweep(self) -> int:
        """Return expired leases and due delays to ``ready``, a bounded number of them; return how many moved."""
        return int(self._run("sweep", [key("orders")], [self._lease_ms, self._affinity_ms]))

    @engine_errors
    def poisoned(self, after_ms: float | None = None) -> tuple[list[str], float]:
        """Return jobs that died of the deaths of their workers since ``after_ms``, and from when to ask next.

        Without it none: that is where to begin. A sweep makes them dead in passing, so nobody else hears of them.
        """
        if after_ms is None:
            seconds, _micros = self._redis.time()
            return [], seconds * 1000.0
        dead = self._redis.zrangebyscore(key("dead"), f"({after_ms:.0f}", "+inf", 0, 100, withscores=True)
        if not dead:
            return [], after_ms
        texts = self._redis.hmget(key("tries"), [url for url, _score in dead])
        codes = [as_dict(text).get("code") for text in texts]
        return [url for (url, _score), code in zip(dead, codes, strict=True) if code == "poison"], dead[-1][1]

    @engine_errors
    def sample(self) -> bool:
        """Note how fast the farm is and what it finished since the last step; return whether that was due.

        To be called each second: of several servers the first one in each step does it, the others only look.
        """
        (seconds, micros), step = self._look(lambda pipe: pipe.time().hget(key("sampled"), "step"))
        if step == str(seconds // series.RINGS[series.HOUR].step_seconds - 1):  # the one that has ended
            return False
        numbers = [number for ring in series.RINGS.values() for number in ring]
        keys = [key("sampled"), *map(_ring, series.RINGS)]
        return bool(self._run("sample", keys, [self._speed(seconds * 1000 + micros // 1000), *numbers]))

    def _speed(self, at_ms: int) -> int:
        """Return the speed of all workers together in bytes a second, of those that were heard of just now."""
        # Beyond now are those that were last heard of before the clock was set back.
        heard = self._redis.zrangebyscore(key("workers"), at_ms - round(HEARD_SECONDS * 1000), at_ms + 1000)
        speed = 0.0
        for i in range(0, len(heard), 100):  # a large answer would hold up the engine
            texts = self._redis.hmget(key("status"), heard[i : i + 100])
            speed += sum(as_dict(text).get("speed_bytes_per_second", 0) for text in texts)
        return round(speed)

    # -------------------------------------------------------------------------------- what people are told

    @engine_errors
    def seen(self, watched_seconds: float) -> tuple[Seen, dict[str, str]]:
        """Return what notices are made of, and what is remembered of those before.

        ``watched_seconds`` is for how long workers could be heard without a break: no silence is longer.
        """
        said, beats, holds, totals, texts, soon, time = self._look(
            lambda pipe: (
                pipe.hgetall(key("noticed")).zrange(key("workers"), 0, -1, withscores=True).hgetall(key("holds")),
                pipe.hmget(key("totals"), "done", "replayed", "replayed_at"),
                pipe.hvals(_ring(series.HOUR)).zrange(key("delayed"), 0, 0, withscores=True).time(),
            )
        )
        at_ms, counts = time[0] * 1000 + time[1] // 1000, self.counts()
        recent = [
            step
            for step in series.read_steps(series.RINGS[series.HOUR], texts, time[0])
            if step.number >= time[0] // series.RINGS[series.HOUR].step_seconds - RECENT_STEPS
        ]
        ended, until = self._ended(said.get("ended", ""))
        is_soon = bool(soon) and soon[0][1] < at_ms + SOON_MS
        done, replayed, replayed_at = (int(total or 0) for total in totals)
        return Seen(
            at_seconds=time[0],
            workers=self._seen_workers(beats, holds, at_ms, watched_seconds),
            lost_after_seconds=max(15.0, 3 * self._lease_seconds),
            failures=sum(step.failures for step in recent),
            finished=sum(step.finished for step in recent),
            open_jobs=counts.ready + counts.leased + (counts.delayed if is_soon else 0),
            waiting_jobs=counts.delayed,
            done=done,
            dead=counts.dead,
            replayed=replayed,
            replayed_seconds=max(0.0, (at_ms - replayed_at) / 1000),
            ended=ended,
            ended_until=until,
        ), said

    def _seen_workers(
        self, beats: list[tuple[str, float]], holds: Mapping[str, str], at_ms: int, watched_seconds: float
    ) -> list[SeenWorker]:
        workers = []
        for i in range(0, len(beats), 100):  # a large answer would hold up the engine
            part = beats[i : i + 100]
            texts = self._redis.hmget(key("status"), [name for name, _score in part])
            for (name, score), text in zip(part, texts, strict=True):
                status = as_dict(text)
                silent_seconds = min(watched_seconds, max(0.0, (at_ms - score) / 1000))
                if "state" in status:  # who only ever asked for jobs is no machine that could be lost
                    has_ended = status["state"] == "ended" and name not in holds
                    free, risk = status.get("disk_free_bytes"), status.get("risk", "")
                    workers.append(SeenWorker(name, silent_seconds, has_ended, free, risk))
        return workers

    def _ended(self, after: str) -> tuple[list[EndedSource], str]:
        """Return the sources that ended after a place in their stream, and the place after them."""
        if not after:
            newest = self._redis.xrevrange(key("ended"), count=1)
            return [], newest[0][0] if newest else "0-0"
        entries = self._redis.xrange(key("ended"), f"({after}", "+")
        sources = [
            EndedSource(
                entry["source"],
                entry["title"],
                entry["complete"] == "1",
                *(int(entry[name]) for name in ("listed", "queued", "unavailable")),
            )
            for _id, entry in entries
        ]
        return sources, entries[-1][0] if entries else after

    @engine_errors
    def change_noticed(self, changes: Sequence[Change]) -> list[str]:
        """Remember changes; return the subjects of those that no other server was quicker with."""
        args = [text for change in changes for text in (change.subject, change.before, change.after)]
        return list(self._run("notice", [key("noticed")], args))

    @engine_errors
    def may_notify(self, text: str) -> bool:
        """Tell whether a notice may go out in this hour; else it is withheld, until ``withheld`` gives it out."""
        seconds, _micros = self._redis.time()
        sent = key(f"notified:{seconds // 3600}")
        with self._redis.pipeline(transaction=False) as pipe:
            count, _set = pipe.incr(sent).expire(sent, 7200).execute()
        if count <= NOTICES_AN_HOUR:
            return True
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key("withheld"), text).ltrim(key("withheld"), -WITHHELD_LIMIT, -1).execute()
        return False

    @engine_errors
    def withheld(self) -> list[str]:
        """Return what was withheld, once, when a new hour has begun; the last notices where there were too many."""
        (seconds, _micros), length = self._look(lambda pipe: pipe.time().llen(key("withheld")))
        if not length or int(self._redis.get(key(f"notified:{seconds // 3600}")) or 0) >= NOTICES_AN_HOUR:
            return []
        with self._redis.pipeline(transaction=True) as pipe:
            return list(pipe.lrange(key("withheld"), 0, -1).delete(key("withheld")).execute()[0])

    # -------------------------------------------------------------------------------- what people order

    @engine_errors
    def steer(
        self, workers: Sequence[str] | None, working: Mapping[str, Any], who: str, login: str = ""
    ) -> tuple[list[str], list[str]]:
        """Have workers set keys of their working.json, or begin the login of that id; None are all that are known.

        Return those that will hear of it with their next heartbeat, and those that nobody heard of within a day.
        """
        named = self._redis.zrange(key("workers"), 0, -1) if workers is None else list(dict.fromkeys(workers))
        order = [secrets.token_hex(8), as_json(working), login, who]
        unknown: dict[str, None] = {}
        for start in range(0, len(named), STEERED_AT_ONCE):
            unknown |= dict.fromkeys(
                self._run("steer", [key("orders")], [*order, *named[start : start + STEERED_AT_ONCE]])
            )
        return [worker for worker in named if worker not in unknown], list(unknown)

    @engine_errors
    def obey(self, worker: str, obeyed: str) -> dict[str, Any] | None:
        """Take note of the order that a worker has obeyed last; return the one that waits for it, None for none."""
        if not self._redis.hexists(key("orders"), worker):  # nearly always
            return None
        return _order(self._run("obey", [key("orders")], [worker, obeyed]))

    @engine_errors
    def note_action(self, who: str, what: str, about: str) -> None:
        """Write down what somebody did. The last thousand actions are kept; a repeated call may be there twice."""
        fields = {"who": who[:ACTION_CHARACTERS], "what": what, "about": about[:ACTION_CHARACTERS]}
        self._redis.xadd(key("actions"), fields, maxlen=ACTIONS, approximate=True)

    @engine_errors
    def actions(self, limit: int) -> list[dict[str, Any]]:
        """Return what people did, the newest first."""
        entries = self._redis.xrevrange(key("actions"), count=limit)
        return [{"time": int(entry.split("-")[0]) / 1000, **fields} for entry, fields in entries]

    # -------------------------------------------------------------------------------- what people look at

    @engine_errors
    def history(self, name: str) -> tuple[int, list[series.Point]]:
        """Return the seconds of a step and the points of a range, one of ``series.RINGS``."""
        ring = series.RINGS[name]
        texts, (seconds, _micros) = self._look(lambda pipe: pipe.hvals(_ring(name)).time())
        return ring.step_seconds, series.points(ring, series.read_steps(ring, texts, seconds))

    @engine_errors
    def time_left_seconds(self) -> int | None:
        """Return when all ready and leased jobs will be done at the pace of the last hour; None where nobody knows."""
        ready, kept, suspect, leased, stale, texts, (seconds, _micros) = self._look(
            lambda pipe: (
                pipe.llen(key("ready")).zcard(key("kept")).llen(key("suspect")).zcard(key("leased")),
                pipe.hget(key("totals"), "stale").hvals(_ring(series.HOUR)).time(),
            )
        )
        steps = series.read_steps(series.RINGS[series.HOUR], texts, seconds)
        return series.seconds_left(ready - int(stale or 0) + kept + suspect + leased, steps, seconds)

    @engine_errors
    def counts(self) -> Counts:
        """Return how many jobs are in each state, in one consistent look."""
        ready, kept, suspect, leased, delayed, dead, totals = self._look(
            lambda pipe: (
                pipe.llen(key("ready")).zcard(key("kept")).llen(key("suspect")),
                pipe.zcard(key("leased")).zcard(key("delayed")).zcard(key("dead")),
                pipe.hmget(key("totals"), "done", "stale"),
            )
        )
        done, stale = (int(total or 0) for total in totals)
        return Counts(ready - stale + kept + suspect, leased, delayed, done, dead)

    @engine_errors
    def replayed(self) -> tuple[int, float] | None:
        """Return how many results were recorded by ``replay``, and how many seconds ago the last; None if none was."""
        (count, at), (seconds, _micros) = self._look(
            lambda pipe: pipe.hmget(key("totals"), "replayed", "replayed_at").time()
        )
        return (int(count), max(0.0, seconds - int(at) / 1000)) if count else None

    @engine_errors
    def next_due_seconds(self) -> float | None:
        """Return how long until the first delayed job is due, None where none is delayed."""
        first, (seconds, micros) = self._look(lambda pipe: pipe.zrange(key("delayed"), 0, 0, withscores=True).time())
        return max(0.0, first[0][1] / 1000 - seconds - micros / 1e6) if first else None

    @engine_errors
    def worker_count(self) -> int:
        """Return how many workers were heard of within three lease times, at least two minutes."""
        seconds, _micros = self._redis.time()
        horizon = max(120.0, 3 * self._lease_seconds)
        return int(self._redis.zcount(key("workers"), (seconds - horizon) * 1000, "+inf"))

    @engine_errors
    def workers(self, limit: int = 200) -> list[dict[str, Any]]:
        """Return the workers seen last: name, seconds since then, and the status they sent themselves."""
        seen, (seconds, micros) = self._look(
            lambda pipe: pipe.zrange(key("workers"), 0, limit - 1, desc=True, withscores=True).time()
        )
        names = [name for name, _score in seen]
        if not names:
            return []
        texts, orders = self._look(lambda pipe: pipe.hmget(key("status"), names).hmget(key("orders"), names))
        at = seconds + micros / 1e6
        return [
            {
                **as_dict(text),
                **_pending(order, at),
                "worker": name,
                "seen_seconds": round(max(0.0, at - score / 1000), 1),
            }
            for (name, score), text, order in zip(seen, texts, orders, strict=True)
        ]

    @engine_errors
    def success(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return finished pages in the order in which they were, and where to go on (None at the end)."""
        if after and not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", after):
            raise ValueError(_('after: use the value of "next" of the answer before'))
        return self._views.success(after, limit)

    @engine_errors
    def archives(self) -> dict[str, int]:
        """Return how many records were moved into files, by the places where these lie."""
        return self._views.archives()

    @engine_errors
    def archive(self, at_once: int = ARCHIVED_AT_ONCE, batches: int = 5) -> int:
        """Move the oldest records beyond the limit into files of this machine, a bounded number; return how many.

        A record leaves Redis when it is safe on disk: whoever dies in between leaves it in both, and it is read once.
        """
        return move_oldest(self, self._archive, self._success_limit, at_once, batches)

    @engine_errors
    def latest_success(self, limit: int) -> list[dict[str, Any]]:
        """Return the pages finished last, the newest first."""
        return [success_item(*entry) for entry in self._views.plain(self._redis.xrevrange(key("success"), count=limit))]

    @engine_errors
    def failed(self, after: str, limit: int, code: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
        """Return dead and delayed jobs in the order of their codes and ids, and where to go on (None at the end).

        With ``code`` only those that failed with it.
        """
        return self._views.failed(after, limit, code)

    @engine_errors
    def failure_groups(self) -> list[dict[str, Any]]:
        """Return how many jobs are dead and delayed of each code, with the reason of one of them, most first."""
        return self._views.failure_groups()

    @engine_errors
    def jobs(
        self, state: str = "", category: str = "", source: str = "", find: str = "", after: str = "", limit: int = 100
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return jobs in the order of their places, or of their titles, and where to go on (None at the end).

        ``find`` is the id of a job, or the beginning of a title. A call looks at a bounded number of jobs: where most
        of them are left out it may return few or none, and still where to go on.
        """
        if state not in ("", *STATES):
            raise ValueError(_("state: one of {words} is expected").format(words=", ".join(STATES)))
        wanted = Wanted(state, category, source)
        if not find.strip():
            return self._views.listed(wanted, after, limit)
        if (job := self._exactly(find.strip())) is not None:
            del job["errors"]
            return [job] if wanted.has(job) else [], None
        return self._views.entitled(wanted, find, after, limit)

    def _exactly(self, find: str) -> dict[str, Any] | None:
        try:
            return self._views.life(find)
        except ValueError:
            return None  # it is no id

    @engine_errors
    def job(self, url: str) -> dict[str, Any] | None:
        """Return one job and the last failures that it had, None where it was never added."""
        return self._views.life(url)

    @engine_errors
    def ping(self) -> None:
        """Raise EngineError where the engine is away, EngineFull where it takes nothing more."""
        self._redis.ping()  # is refused already by an engine that cannot write to its disk
        memory = self._redis.info("memory")
        used_bytes = memory.get("used_memory", 0) - memory.get("mem_not_counted_for_evict", 0)
        if memory.get("maxmemory_policy", "noeviction") == "noeviction" and 0 < memory.get("maxmemory", 0) < used_bytes:
            raise memory_is_full(self.place)

    @engine_errors
    def unsafe(self) -> list[str]:
        """Return a sentence for each way in which this engine may lose what was accepted."""
        found = []
        try:
            options = {**self._redis.config_get("append*"), **self._redis.config_get("maxmemory-policy")}
        except redis.ResponseError:
            return []  # a managed server hides its configuration; nothing can be said
        if options.get("appendonly") == "no":
            found.append(_("Redis keeps no append-only file: what was accepted may be lost. Set: appendonly yes"))
        elif options.get("appendfsync") != "always":
            found.append(_("Redis does not sync each write: a power cut may lose a second. Set: appendfsync always"))
        if options.get("maxmemory-policy", "noeviction") != "noeviction":
            found.append(_("Redis may evict jobs when memory is short. Set: maxmemory-policy noeviction"))
        return found

    @engine_errors
    def adopt(self) -> None:
        """Put what an earlier version has written where this one looks for it: once, and in bounded steps."""
        while ids := self._redis.zrange(key("failed"), 0, 499):
            args: list[str | int] = [len(ids)]
            for url, text in zip(ids, self._redis.hmget(key("tries"), ids), strict=True):
                args += [url, folded_prefix(as_dict(text).get("title", ""))]
            self._run("adopt", [key("failed")], args)
        last = "" if self._redis.hget(key("totals"), "adopted") else "-"
        while last and (entries := self._redis.xrange(key("success"), last, "+", count=500)):
            keys, args = [key("failed")], [0]
            for entry, fields in entries:
                page = parse_job_id(fields["url"])
                keys.append(record_key(page))
                args += [page.cid, entry, fields["url"], folded_prefix(fields["title"])]
            self._run("adopt", keys, args)
            last = f"({entries[-1][0]}"
        if last:
            self._redis.hset(key("totals"), "adopted", 1)
        if self._redis.hlen(key("ledger")) > self._redis.zcard(key("ledgers")):
            for url, _text in self._redis.hscan_iter(key("ledger"), count=500):
                self._redis.zadd(key("ledgers"), {url: 0})

    # -------------------------------------------------------------------------------- for queue_dump

    @engine_errors
    def look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what ``ask`` puts into a pipeline."""
        return self._look(ask)

    @engine_errors
    def run(self, script: str, keys: Sequence[str], args: Iterable[str | int]) -> Any:
        """Run a script of ``lua/`` with the common keys."""
        return self._run(script, keys, args)

    @engine_errors
    def records(self, start: str, limit: int) -> list[tuple[str, dict[str, str]]]:
        """Return records of finished pages in plain text, from an entry of their stream on."""
        return self._views.plain(self._redis.xrange(key("success"), start, "+", count=limit))

    def record_items(self, start: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        """Return the same as jobs, as they are shown."""
        return [(entry, record_item(entry, fields, self._category)) for entry, fields in self.records(start, limit)]

    @engine_errors
    def archived_after(self, entry: str, limit: int) -> list[dict[str, Any]]:
        """Return records that lie in files here and still count, those behind an entry; none at the end."""
        return self._views.still_done(entry, limit)

    def archived_pages(self, cids: Sequence[int]) -> set[int]:
        """Return which of these pages have their records in files here."""
        return set(self._archive.find(cids))

    # -------------------------------------------------------------------------------- inside

    def _run(self, script: str, keys: Sequence[str], args: Iterable[str | int]) -> Any:
        all_keys, all_args = [*self._common, *keys], list(args)
        try:
            return self._scripts[script](keys=all_keys, args=all_args)
        except NoScriptError:  # flushed again between the driver's loading and calling; its text cannot be missing
            return self._redis.eval(self._scripts[script].script, len(all_keys), *all_keys, *all_args)

    def _look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what ``ask`` puts into a pipeline, all from one instant where that can be had."""
        for transaction in (True, False):
            with self._redis.pipeline(transaction=transaction) as pipe:
                ask(pipe)
                try:
                    return list(pipe.execute())
                except redis.OutOfMemoryError:
                    if not transaction:
                        raise
                    # Redis 7 begins no transaction where memory is full, not even one that only reads.
        raise AssertionError

    def _origin(
        self, category: str, source: str, refresh: bool = False, wishes: Mapping[str, Any] | None = None
    ) -> str:
        """Return where jobs come from and how they are read as JSON, an empty text where all is as usual."""
        origin: dict[str, Any] = {"category": category} if category and category != self._category else {}
        wished = {name: value for name, value in (wishes or {}).items() if value}
        origin |= {name: value for name, value in (("source", source), ("wishes", wished)) if value}
        if refresh:
            origin["refresh"] = "all"
        return as_json(origin) if origin else ""

    def _lease(self, url: str, token: str, origin: str, attempt: int, ledger: str = "") -> Lease:
        found = as_dict(origin)
        walk = None
        if ledger:
            stand = {name: value for name, value in as_dict(ledger).items() if name in ("cursor", "page", "taken")}
            walk = Walk(**stand, **found.get("wishes", {}), quick=found.get("quick", False))
        return Lease(url, token, found.get("category", self._category), int(attempt), self._lease_seconds, walk)

    def _current(self, answer: str | None, url: str) -> str:
        if answer is None:
            raise StaleToken(_("The lease of {id} has moved on: nothing was changed").format(id=url), 409)
        return answer


def _told(url: str, result: Result) -> list[str]:
    size, seconds, path = str(result.bytes), f"{result.seconds:.1f}", path_pattern(result.path, url, result.title)
    return [result.title, folded_prefix(result.title), path, size, seconds, result.streams, ""]


def _ring(name: str) -> str:
    return key(f"history:{name}")


def _container(text: str) -> JobId:
    job = parse_job_id(text)
    if job.is_page:
        raise ValueError(_("{id} is a page, not a video or an episode").format(id=text))
    return job


def _page_job(container: JobId, page: Page) -> JobId:
    if container.is_source:
        return JobId(source=container.source, cid=page.cid)
    if container.episode_id:
        return JobId(episode_id=container.episode_id, cid=page.cid)
    return JobId(bvid=container.bvid, number=page.number, cid=page.cid)


def _order(text: str | None) -> dict[str, Any] | None:
    order = as_dict(text)
    order.pop("login_at", None)
    return {**order, "at": order["at"] / 1000} if order else None


def _pending(text: str | None, at: float) -> dict[str, Any]:
    """Return what to show of an order that its worker has not obeyed yet."""
    found = as_dict(text)
    if "login" in found and abs(at - found["login_at"] / 1000) > LOGIN_SECONDS:
        del found["login"]
    order = _order(as_json(found)) if found.get("working") or found.get("login") else None
    return {"order": order} if order and abs(at - order["at"]) < ORDER_SECONDS else {}
