"""The queue in Redis: the one module that speaks to it.

Ready work is a LIST of job ids. A lease is a token and a deadline in Redis' own clock; every transition is one Lua
script (``lua/``), so that a job is in exactly one state whatever dies. Verbs are the same here, in Lua, over HTTP
(web_server) and in the worker's client (queue_client): add, lease, expand, heartbeat, ack, nack, release, redrive, and
of users besides cancel, first, forget. What people look at is read by `store/data.py`.

An answer means that the change is on disk: the engine runs with ``appendfsync always``.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import Any

import redis

import retry
from config import Settings
from engine_url import EngineUrl
from errors import EngineError, EngineFull, StaleToken
from i18n import _
from model import HAVE_LIMIT, Added, Expanded, Failure, JobId, Lease, ListedPage, Page, Result, Walk
from parse_ import parse_job_id, video_aid
from source_ids import LESSON
from store import (
    ARCHIVED_AT_ONCE,
    CANCELLED,
    COMMON_KEYS,
    STATES,
    Archive,
    Asked,
    Beat,
    Beats,
    Client,
    FarmBudgets,
    FarmQueue,
    Heard,
    Identity,
    JobViews,
    Lineage,
    Request,
    Reshard,
    ShardLeases,
    Success,
    Wanted,
    answer_key,
    as_dict,
    as_json,
    bucket,
    connect_embedded,
    connect_url,
    containers_of,
    dangers,
    done_key,
    each_node,
    ended_key,
    engine_errors,
    failure_cursor,
    failure_range,
    folded_prefix,
    history_id,
    identity_of,
    key,
    ledger_item,
    look_at,
    move_oldest,
    nothing,
    owned,
    owner_of,
    path_pattern,
    ping,
    place_of,
    record_item,
    record_key,
    run_script,
    run_together,
    script_texts,
    shard_of,
    shard_of_id,
    stored_pattern,
    what_changed,
)

log = logging.getLogger(__name__)

ANSWER_MS, DAY_MS = 3600 * 1000, 24 * 3600 * 1000
DEATHS_AT_ONCE = 100
CLOCKS_APART_MS = 2000
"""The clocks of two shards' machines agree better than that; a death that is told again is the same."""
KEPT_BY_REPLICAS = frozenset(
    {
        "add",
        "ack",
        "admit",
        "archive",
        "cancel",
        "claim",
        "dismiss",
        "enlist",
        "expand",
        "expansion",
        "forget",
        "moved_in",
        "moved_out",
        "moved_records",
    }
    | {"nack", "redrive", "replay", "restore", "revisit", "watch"}
)
"""What is waited for where REDIS_URL says so; a lease, a heartbeat or an order that is lost is soon had again."""


def open_queue(settings: Settings, is_patient: bool = False) -> Queue:
    """Return the queue in ``REDIS_URL``, or in the embedded Valkey of the data folder where that is empty.

    Raises EngineError with one sentence when the engine cannot be reached or started, or its data lie in another number
    of shards. Who is patient waits in each verb for a failover to end.
    """
    queue = _connect(settings, is_patient)
    try:
        queue.hold_shards()
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


def _connect(settings: Settings, is_patient: bool = False) -> Queue:
    if settings.redis_url:
        client, url = connect_url(settings.redis_url, is_patient)
        return Queue(client, settings, url=url)
    connection, close = connect_embedded(settings.data_dir)
    return Queue(connection, settings, close, place=str(settings.data_dir))


def spread_anew(settings: Settings, shards: int) -> int:
    """Spread the data over so many shards; return how many there were before.

    Raises EngineError, and changes nothing, while somebody works with them. One that was broken off is finished.
    """
    with closing(_connect(settings, True)) as queue:
        before, wanted = queue.begin_to_spread(shards)
        if before != wanted:
            with closing(_connect(replace(settings, shards=max(before, wanted)), True)) as wide:
                wide.spread(before, wanted)
        return before


class Queue(FarmQueue):
    """The verbs of the queue. Safe from many threads; every call may be repeated.

    Malformed ids raise ValueError, a lease that moved on StaleToken, an engine that is away EngineError.
    """

    def __init__(
        self,
        connection: Client,
        settings: Settings,
        close: Callable[[], None] = nothing,
        draw: retry.Draw = random.random,
        place: str = "",
        url: EngineUrl | None = None,
    ) -> None:
        self.place = place or (url.place if url else place_of(connection))
        """Where the data is, without a password."""
        self.data_id = ""
        """Whose data these are, as ``look_at_data`` saw it last; nothing before that."""
        self._lineage: Lineage | None = None
        self._granted: dict[str, int] = {}
        """The number of the newest lease that was given here, by the epoch of its data."""
        self._url = url
        self._redis: Any = connection  # its stubs type each answer for every decoding and mode at once
        self._close = close
        self._draw = draw
        self._category = settings.category
        self._lease_seconds = settings.lease_seconds
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._affinity_ms = round(settings.affinity_seconds * 1000)
        self._scripts = {name: connection.register_script(text) for name, text in script_texts().items()}
        self._shards = settings.shards
        self._tags = [f"{{bili:{shard}}}" for shard in range(self._shards)]
        self._is_moved = False
        self._common = [[key(name, shard) for name in COMMON_KEYS] for shard in range(self._shards)]
        self._archive = Archive(settings.data_dir / "archive", folded_prefix)
        self._success_limit = settings.success_limit
        self._views = JobViews(self._look, self._category, self._archive, self._shards)
        self._budgets = FarmBudgets(self._run, self._look, key, settings, draw)
        self._beats = Beats(self._run, self._run_together, self._budgets, self._lease_ms, self._shards)

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
        request = request or secrets.token_hex(8)
        renewed = "all" if refresh else "sources" if again else ""
        told = [renewed, self._origin(category, source), self._origin(category, source, refresh, wishes), str(watch)]
        parts: dict[int, list[tuple[str, Identity]]] = {}
        for text in ids:
            identity = _container_identity(text)
            parts.setdefault(shard_of(identity, self._shards), []).append((text, identity))
        added = known = 0
        for shard, part in sorted(parts.items()):
            keys, args = [answer_key(request, shard)], list(told)
            for text, identity in part:
                keys.append(self._bucket("seen", identity))
                if renewed:
                    keys.append(self._bucket("closed", identity))
                args += [text, identity.member]
            new, old = self._run("add", keys, args, shard)
            added, known = added + int(new), known + int(old)
        return Added(added, known)

    @engine_errors
    def redrive(self, urls: Sequence[str]) -> int:
        """Give the named dead or delayed jobs all their attempts back, now; return how many there were."""
        for url in urls:
            parse_job_id(url)
        return sum(
            int(self._run("redrive", [], part[i : i + 100], shard))
            for shard, part in self._by_shard(urls)
            for i in range(0, len(part), 100)
        )

    @engine_errors
    def redrive_all(self) -> int:
        """Give every dead job that was not cancelled all its attempts back, now; return how many there were."""
        names = [self._redis.hkeys(key("kinds", shard)) for shard in range(self._shards)]
        codes = {name.removeprefix("dead:") for found in names for name in found if name.startswith("dead:")}
        return sum(self._redrive_kind(code) for code in sorted(codes - {CANCELLED}))

    @engine_errors
    def redrive_code(self, code: str) -> int:
        """Give every dead job of that code all its attempts back, now; return how many there were."""
        return self._redrive_kind(code)

    def _redrive_kind(self, code: str) -> int:
        return sum(self._redrive_kind_in(shard, code) for shard in range(self._shards))

    def _redrive_kind_in(self, shard: int, code: str) -> int:
        moved, last = 0, ""
        while members := self._redis.zrangebylex(key("failures", shard), *failure_range(code, last), 0, 100):
            last = failure_cursor(members[-1])
            ids = [member.rpartition("\0")[2] for member in members]
            died_at = self._redis.zmscore(key("dead", shard), ids)
            dead = [url for url, score in zip(ids, died_at, strict=True) if score is not None]
            moved += int(self._run("redrive", [], dead, shard))
        return moved

    @engine_errors
    def cancel(self, urls: Sequence[str]) -> int:
        """Bury jobs with the code ``cancelled``, wherever they are; return how many were there.

        A lease ends with it: its worker hears of that with the next heartbeat. To redrive a job undoes it.
        """
        return sum(self._run_places("cancel", part, shard) for shard, part in self._by_shard(urls))

    @engine_errors
    def first(self, urls: Sequence[str]) -> int:
        """Let jobs that wait come next, in this order, the delayed ones too; return how many there were."""
        moved = 0
        for shard, part in self._by_shard(urls):
            backwards = [part[start : start + 100] for start in range(0, len(part), 100)][::-1]
            moved += sum(self._run_places("first", one, shard) for one in backwards)
        return moved

    def _run_places(self, script: str, urls: Sequence[str], shard: int) -> int:
        """Run a script that has to know where jobs are, a hundred of them at a time."""
        jobs = [parse_job_id(url) for url in urls]
        changed = 0
        for start in range(0, len(jobs), 100):
            keys, args = [], []
            for url, job in zip(urls[start : start + 100], jobs[start : start + 100], strict=True):
                keys += [self._bucket("seen", identity_of(job)), ended_key(job, self._shards)]
                args += [url, identity_of(job).member]
            changed += int(self._run(script, keys, args, shard))
        return changed

    @engine_errors
    def forget(self, urls: Sequence[str]) -> int:
        """Let dead and done jobs leave the queue's memory, so that they may be added again; return how many there were.

        With a page goes that its containers were read, with a source its ledger and its watch.
        """
        for url in urls:
            parse_job_id(url)
        forgotten = 0
        for shard, part in self._by_shard(urls):
            for start in range(0, len(part), 100):
                forgotten += self._forget(part[start : start + 100], shard)
        return forgotten

    def _forget(self, urls: Sequence[str], shard: int) -> int:
        jobs = [parse_job_id(url) for url in urls]
        keys: list[str] = []
        args: list[str | int] = []
        for url, job, item in zip(urls, jobs, self._views.jobs(urls), strict=True):
            title = f"{folded_prefix(item['title'])}\0{item['url']}" if item and item["title"] else ""
            containers = [identity_of(one) for one in containers_of(job)] if job.is_page else []
            here = [one for one in containers if shard_of(one, self._shards) == shard]
            if item and item["state"] in ("dead", "done"):
                self._reopen([one for one in containers if one not in here])
            keys += [self._bucket("seen", identity_of(job)), ended_key(job, self._shards)]
            keys.append(record_key(job, self._shards) if job.is_page else keys[-1])
            keys += [self._bucket(kind, one) for one in here for kind in ("closed", "seen")]
            keys += [self._bucket("seen", identity_of(job))] * 2 * (2 - len(here))  # so that each has as many
            args += [url, identity_of(job).member, job.cid or "", title]
            args += [*(one.member for one in here), *[""] * (2 - len(here))]
        return int(self._run("forget", keys, args, shard))

    def _reopen(self, containers: Sequence[Identity]) -> None:
        """Forget that containers in other shards were read, before a page of theirs is forgotten.

        Whoever dies after it has lost nothing: they may be added again, and the page is known.
        """
        for one in containers:
            keys = [self._bucket("closed", one), self._bucket("seen", one)]
            self._run("reopen", keys, [one.member], shard_of(one, self._shards))

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
        shard = shard_of(identity_of(job), self._shards)
        keys = [
            answer_key(request or secrets.token_hex(8), shard),
            self._bucket("seen", identity_of(job)),
            self._bucket("closed", identity_of(job)),
        ]
        args: list[str | int] = [source, identity_of(job).member, worker, self._lease_ms, secrets.token_hex(8)]
        args += [secrets.token_hex(4), self._origin(category, "", refresh, wishes), "1" if if_due else ""]
        answer = json.loads(self._run("claim", keys, args, shard))
        return answer if isinstance(answer, str) else self._leases([answer])[0]

    @engine_errors
    def watch(self, url: str, seconds: int) -> int:
        """Have a source or a video read again that often by itself, or with 0 no more; return what was set before.

        A video is asked for new pages once a day at most.
        """
        job = _container(url)
        return int(self._run("watch", [], [str(job), seconds], shard_of(identity_of(job), self._shards)))

    @engine_errors
    def revisit(self) -> int:
        """Queue watched sources and videos whose time has come, a bounded number of them; return how many."""
        seconds, micros = self._redis.time()
        return sum(self._revisit(shard, seconds * 1000 + micros // 1000) for shard in range(self._shards))

    def _revisit(self, shard: int, at_ms: int) -> int:
        due = self._redis.zrangebyscore(key("watch", shard), "-inf", at_ms, 0, 100)
        if not due:
            return 0
        keys, args = [], []
        for url in due:
            identity = identity_of(_container(url))
            keys += [self._bucket("seen", identity), self._bucket("closed", identity)]
            args += [url, identity.member]
        return int(self._run("revisit", keys, args, shard))

    @engine_errors
    def sources(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return the ledgers of sources and watched videos in the order of ids, and where to go on."""
        start = f"({after}" if after else "-"
        found = self._looks(lambda pipe, shard: pipe.zrangebylex(key("ledgers", shard), start, "+", 0, limit + 1))
        ids = sorted((url for (urls,) in found for url in urls), key=str.encode)  # as Redis sorts them
        following = ids[limit - 1] if len(ids) > limit else None
        items = {
            url: item for shard, part in self._by_shard(ids[:limit]) for url, item in self._sources_in(shard, part)
        }
        return [items[url] for url in ids[:limit]], following

    def _sources_in(self, shard: int, ids: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        closed_at = [(self._bucket("closed", one), one.member) for one in map(identity_of, map(_container, ids))]
        texts, tries, leased, delayed, dead, *closed = self._look(
            lambda pipe: (
                pipe.hmget(key("ledger", shard), ids).hmget(key("tries", shard), ids),
                pipe.zmscore(key("leased", shard), ids).zmscore(key("delayed", shard), ids),
                pipe.zmscore(key("dead", shard), ids),
                [pipe.sismember(place, member) for place, member in closed_at],
            )
        )
        places = {"leased": leased, "delayed": delayed, "dead": dead, "closed": [one or None for one in closed]}
        states = [
            next((state for state, found in places.items() if found[index] is not None), "ready")
            for index in range(len(ids))
        ]
        return [
            (source, ledger_item(source, as_dict(text), state, as_dict(failure), self._category))
            for source, text, state, failure in zip(ids, texts, states, tries, strict=True)
        ]

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
        owner: str = "",
    ) -> tuple[Lease, ...]:
        """Lease up to ``count`` jobs to a worker, first those of ``have``, whose chunks lie on its disk.

        ``request`` makes a repeated call return the same leases. ``instance`` is an id of the worker's
        process: what an earlier process of that worker held is given back at once where ``have`` names it.
        ``have_bytes`` is how much of each of them lies there: a process may have died before it told.
        ``owner`` is the id of the server's token that asks, which then stands in the lease's own (store/tokens.py).
        """
        named = have[:HAVE_LIMIT]
        sizes = [*have_bytes, *([0] * len(named))][: len(named)]
        request = request or secrets.token_hex(8)
        if self._shards > 1:
            haves = dict(zip(named, sizes, strict=True))
            asked = Request(
                request, worker, instance, count, haves, self._lease_ms, self._affinity_ms, self._shards, owner
            )
            found = ShardLeases(self._run, secrets.token_hex, asked).lease()
            return self._leases(found)
        drawn = secrets.token_hex(8 * count)
        nonces = [owned(drawn[start : start + 16], owner) for start in range(0, len(drawn), 16)]
        arguments: list[str | int] = [
            count,
            worker,
            instance,
            self._lease_ms,
            self._affinity_ms,
            secrets.token_hex(4),
            "",
            *nonces,
        ]
        found = self._run("lease", [answer_key(request)], [*arguments, *named, *sizes])
        return self._leases(found)

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
        listed = [_page_job(container, page) for page in pages] + [_container(one) for one in urls]
        told = {name: value for name, value in asdict(ledger or ListedPage(0)).items() if value not in (None, "", ())}
        home = shard_of(identity_of(container), self._shards)
        is_one_step = self._shards == 1 or (  # of a source, something may have been added by steps that were broken off
            not container.is_source and all(shard_of(identity_of(job), self._shards) == home for job in listed)
        )
        if is_one_step:
            answer = self._run_expand(url, token, listed[: len(pages)], listed[len(pages) :], more, told)
        else:
            answer = self._expand_over_shards(url, token, listed, len(pages), more, told)
        added, known, *rest = json.loads(answer)
        ended = rest == [True]
        if rest and not ended and len(rest[0]) == 3:
            first, worker, instance = rest[0]
            return Expanded(added, known, self._take(token, first, worker, instance), ended)
        return Expanded(added, known, self._leases(rest)[0] if rest and not ended else None, ended)

    def _run_expand(
        self,
        url: str,
        token: str,
        pages: Sequence[JobId],
        containers: Sequence[JobId],
        more: bool,
        told: Mapping[str, Any],
    ) -> str:
        """Expand a container in its own shard, with the jobs that belong there too."""
        container = _container(url)
        identity = identity_of(container)
        shard = shard_of(identity, self._shards)
        own = key(f"listed:{url}", shard) if container.is_source else self._bucket("paged", identity)
        keys = [answer_key(token, shard), self._bucket("closed", identity), own, key("ended", shard)]
        args: list[str | int] = [url, token, identity.member, "1" if more else "", self._lease_ms]
        args.append(owned(secrets.token_hex(8), owner_of(token)))
        args += [len(pages), as_json(told)]
        self._name_jobs(pages, containers, keys, args)
        return str(self._current(self._run("expand", keys, args, shard), url))

    def _name_jobs(
        self, pages: Sequence[JobId], containers: Sequence[JobId], keys: list[str], args: list[str | int]
    ) -> None:
        """Put jobs that a container lists behind the keys and the arguments of a script."""
        for job in pages:
            keys.append(self._bucket("seen", identity_of(job)))
            args += [str(job), identity_of(job).member]
        for job in containers:
            keys += [self._bucket(kind, identity_of(job)) for kind in ("seen", "closed", "paged")]
            args += [str(job), identity_of(job).member]

    def _expand_over_shards(
        self, url: str, token: str, listed: Sequence[JobId], page_count: int, more: bool, told: Mapping[str, Any]
    ) -> str:
        """Queue what a container lists shard by shard, and then close it.

        Whoever dies in between leaves it open: it is expanded again, and what is there already is known. It counts as
        new all the same until it was counted, so that a ledger is right (``enlist`` of lua/parts).
        """
        home = shard_of_id(url, self._shards)
        opened = self._run("expansion", [answer_key(token, home)], [url, token, secrets.token_hex(8)], home)
        given, origin, expansion = self._current(opened, url)
        if given:
            return str(given)
        new: list[int] = []
        for shard in sorted({shard_of(identity_of(job), self._shards) for job in listed}):
            here = [i for i, job in enumerate(listed) if shard_of(identity_of(job), self._shards) == shard]
            pages = [listed[i] for i in here if i < page_count]
            keys = [key(f"expansion:{expansion}", shard)]
            args: list[str | int] = [url, origin, ANSWER_MS if expansion == token else DAY_MS, len(pages)]
            self._name_jobs(pages, [listed[i] for i in here if i >= page_count], keys, args)
            found = self._run("enlist", keys, args, shard)
            new += [i for i, is_new in zip(here, found, strict=True) if int(is_new)]
        first = min((i for i in new if i < page_count), default=None)
        elsewhere = {
            "added": len(new),
            "known": len(listed) - len(new),
            "pages": page_count,
            "listed": [str(job) for job in listed[page_count:]],
            "first": None if more or first is None else str(listed[first]),
        }
        elsewhere = {name: value for name, value in elsewhere.items() if value not in (None, [])}
        return self._run_expand(url, token, (), (), more, {**told, "elsewhere": elsewhere})

    def _take(self, token: str, url: str, worker: str, instance: str) -> Lease | None:
        """Lease the first new page to who expanded its container, unless somebody else was quicker."""
        shard = shard_of_id(url, self._shards)
        nonce = owned(secrets.token_hex(8), owner_of(token))
        args: list[str | int] = [url, worker, instance, self._lease_ms, nonce, secrets.token_hex(4)]
        # Under a name of its own: the answer to the expansion may be in the same shard.
        fields = json.loads(self._run("take", [answer_key(f"{token}:take", shard)], args, shard))
        return self._leases([fields])[0] if fields else None

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
        return self._beats.hear(Beat(worker, jobs, status, titles or {})).lost

    @engine_errors
    def hear(self, beat: Beat) -> Heard:
        """The same for a worker that tells more and wants to know more."""
        return self._beats.hear(beat)

    @engine_errors
    def knows(self, urls: Sequence[str]) -> bool:
        """Tell whether all these pages are recorded as done, or were forgotten on purpose; else data were lost."""
        return all(self._knows(shard, part) for shard, part in self._by_shard(urls))

    def _knows(self, shard: int, urls: Sequence[str]) -> bool:
        with self._redis.pipeline(transaction=False) as pipe:
            for job in map(parse_job_id, urls):
                pipe.sismember(done_key(job, self._shards), str(job.cid))
                pipe.zscore(key("forgotten", shard), str(job.cid))
            found = pipe.execute()
        return all(done or since is not None for done, since in zip(found[::2], found[1::2], strict=True))

    @engine_errors
    def replay(self, worker: str, results: Sequence[tuple[str, Result]]) -> int:
        """Record what a worker finished and this queue has lost; return how many pages were not recorded.

        At most a few hundred. A job that is still somewhere in the queue for such a page ends without a download.
        """
        told: dict[int, tuple[list[str], list[str]]] = {}
        for url, result in results:
            job = parse_job_id(url)
            if not job.is_page:
                raise ValueError(_("{id} is a container: it is expanded, not acknowledged").format(id=url))
            keys, args = told.setdefault(shard_of(identity_of(job), self._shards), ([], [worker]))
            keys += [done_key(job, self._shards), record_key(job, self._shards), self._bucket("seen", identity_of(job))]
            args += [url, str(job.cid), *_told(url, result)]
        return sum(int(self._run("replay", keys, args, shard)) for shard, (keys, args) in told.items())

    @engine_errors
    def ack(self, url: str, token: str, result: Result) -> str:
        """Record a page as done; return its state."""
        job = parse_job_id(url)
        if not job.is_page:
            raise ValueError(_("{id} is a container: it is expanded, not acknowledged").format(id=url))
        shard = shard_of(identity_of(job), self._shards)
        keys = [answer_key(token, shard), done_key(job, self._shards), record_key(job, self._shards)]
        return str(self._current(self._run("ack", keys, [url, token, job.cid, *_told(url, result)], shard), url))

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
        shard = shard_of_id(url, self._shards)
        return str(self._current(self._run("nack", [answer_key(token, shard)], args, shard), url))

    @engine_errors
    def release(self, url: str, token: str, kept: bool = False) -> str:
        """Give a job back untouched, at the head of the list, without counting an attempt; return its state.

        One that is ``kept`` waits a while for the worker that had it, as one with chunks on a dead worker does.
        """
        shard = shard_of_id(url, self._shards)
        args: list[str | int] = [url, token, self._affinity_ms if kept else 0]
        return str(self._current(self._run("release", [answer_key(token, shard)], args, shard), url))

    @engine_errors
    def sweep(self) -> int:
        """Return expired leases and due delays to ``ready``, a bounded number of them; return how many moved."""
        self._look_whether_moved()
        if self._shards > 1:
            self._tell_deaths()
        args = [self._lease_ms, self._affinity_ms]
        return sum(
            int(self._run("sweep", [key("orders", shard), key("logins", shard)], args, shard))
            for shard in range(self._shards)
        )

    def _tell_deaths(self) -> None:
        """Tell each shard of the workers that died with jobs of others: they speak for its own jobs."""
        found = self._looks(
            lambda pipe, shard: pipe.zrevrange(key("deaths", shard), 0, DEATHS_AT_ONCE - 1, withscores=True).time()
        )
        ages = [
            {name: seconds * 1000 + micros // 1000 - round(died_at) for name, died_at in deaths}
            for deaths, (seconds, micros) in found
        ]
        for shard, known in enumerate(ages):
            news: dict[str, int] = {}
            for name, age_ms in (one for other in ages for one in other.items()):
                if age_ms < known.get(name, DAY_MS) - CLOCKS_APART_MS:
                    news[name] = min(age_ms, news.get(name, age_ms))
            if news:
                self._run("died", [], [word for one in news.items() for word in one], shard)

    @engine_errors
    def poisoned(self, after_ms: tuple[float, ...] | None = None) -> tuple[list[str], tuple[float, ...]]:
        """Return jobs that died of the deaths of their workers since ``after_ms``, and from when to ask next.

        Without it none: that is where to begin. A sweep makes them dead in passing, so nobody else hears of them.
        """
        if after_ms is None:
            seconds, _micros = self._redis.time()
            return [], (seconds * 1000.0,) * self._shards
        found = [self._poisoned(shard, after) for shard, after in enumerate(after_ms)]
        return [url for urls, _after in found for url in urls], tuple(after for _urls, after in found)

    def _poisoned(self, shard: int, after_ms: float) -> tuple[list[str], float]:
        dead = self._redis.zrangebyscore(key("dead", shard), f"({after_ms:.0f}", "+inf", 0, 100, withscores=True)
        if not dead:
            return [], after_ms
        texts = self._redis.hmget(key("tries", shard), [url for url, _score in dead])
        codes = [as_dict(text).get("code") for text in texts]
        return [url for (url, _score), code in zip(dead, codes, strict=True) if code == "poison"], dead[-1][1]

    # -------------------------------------------------------------------------------- what people look at

    @engine_errors
    def success(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return finished pages in the order in which they were, and where to go on (None at the end)."""
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
        return self._views.latest_success(limit)

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

        ``find`` is the id of a job, the cid of a finished page, or the beginning of a title.
        A call looks at a bounded number of jobs: where most of them are left out it may return few or none, and still
        where to go on.
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
        except ValueError:  # it is no id of a job; perhaps that of a page
            return self._views.page(int(find)) if re.fullmatch("[0-9]{1,16}", find) else None

    @engine_errors
    def job(self, url: str) -> dict[str, Any] | None:
        """Return one job and the last failures that it had, None where it was never added."""
        return self._views.life(url)

    @engine_errors
    def ping(self, writes: bool = False) -> None:
        """Raise EngineError where the engine is away, or takes no ``writes``, EngineFull where it has no room left."""
        ping(self._redis, self._tags, self.place, writes)

    @engine_errors
    def spread(self, before: int, shards: int) -> None:
        """Move everything to its new shard; this queue has as many as the larger of both numbers."""
        if before == 1:
            self.adopt()
        Reshard(self._redis, self._run, before, shards).run()

    @engine_errors
    def unsafe(self) -> list[str]:
        """Return a sentence for each way in which this engine may lose what was accepted."""
        found = each_node(self._redis, self._tags, lambda node: dangers(look_at(node, self._url)))
        return list(dict.fromkeys(itertools.chain(*found)))

    @engine_errors
    def look_at_data(self) -> str:
        """Look whose data these are; return a sentence where they are others than the last time, else an empty one."""
        granted = dict(self._granted)  # before the numbers are read: leases are given meanwhile
        stand = self._looks(lambda pipe, shard: pipe.mget(key("epoch", shard), key("fence", shard)))
        epochs, fences = zip(*((epoch or "", int(fence or 0)) for ((epoch, fence),) in stand), strict=True)
        found = Lineage(epochs, fences, history_id(self._redis, self._tags))
        before, self._lineage = self._lineage, found
        self.data_id = found.id
        if before is not None:
            told = (granted.get(epoch, 0) for epoch in before.epochs)
            before = replace(before, fences=tuple(map(max, before.fences, told)))
        if change := what_changed(before, found):
            for epoch in before.epochs if before else ():
                self._granted.pop(epoch, None)
        return change

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
                keys.append(record_key(page, self._shards))
                args += [page.cid, entry, fields["url"], folded_prefix(fields["title"])]
            self._run("adopt", keys, args)
            last = f"({entries[-1][0]}"
        if last:
            self._redis.hset(key("totals"), "adopted", 1)
        counts = self._looks(lambda pipe, shard: pipe.hlen(key("ledger", shard)).zcard(key("ledgers", shard)))
        for shard, (ledgers, in_order) in enumerate(counts):
            for url, _text in self._redis.hscan_iter(key("ledger", shard), count=500) if ledgers > in_order else ():
                self._redis.zadd(key("ledgers", shard), {url: 0})

    # -------------------------------------------------------------------------------- for store/dump.py

    @engine_errors
    def records(self, after: str, limit: int) -> list[Success]:
        """Return records of finished pages in plain text, those behind a ``record_mark``, in their order."""
        return list(itertools.islice(self._views.successes(after, limit), limit))

    def record_items(self, limit: int) -> list[tuple[str, int, dict[str, Any]]]:
        """Return the oldest records as jobs, as they are shown, with their entries and shards."""
        records = self.records("", limit)
        return [(entry, shard, record_item(entry, fields, self._category)) for entry, shard, fields in records]

    @engine_errors
    def archived_after(self, mark: str, limit: int) -> list[dict[str, Any]]:
        """Return records that lie in files here and still count, those behind a ``record_mark``; none at the end."""
        return self._views.still_done(mark, limit)

    def archived_pages(self, cids: Sequence[int]) -> set[int]:
        """Return which of these pages have their records in files here."""
        return set(self._archive.find(cids))

    # -------------------------------------------------------------------------------- inside

    def _run(self, script: str, keys: Sequence[str], args: Iterable[str | int], shard: int = 0) -> Any:
        if self._is_moved:
            raise self._moved()
        url = self._url if script in KEPT_BY_REPLICAS else None
        return run_script(self._redis, self._scripts[script], [*self._common[shard], *keys], list(args), url)

    def _run_together(self, asked: Sequence[Asked], look: Callable[[Any], object]) -> list[Any]:
        if self._is_moved:
            raise self._moved()
        runs = [(self._scripts[name], [*self._common[0], *keys], args) for name, keys, args in asked]
        return run_together(self._redis, runs, look)

    def _look_whether_moved(self) -> None:
        """See to it that nothing is written any more where nobody would look for it."""
        stands = self._shards_there()
        if not stands:  # the data were lost; whoever comes next must not take what is there now for one shard
            with suppress(EngineFull):
                self._note_shards(str(self._shards))
        elif stands != str(self._shards):
            self._is_moved = True
            raise self._moved()

    def _moved(self) -> EngineError:
        return EngineError(_("The queue in {place} was spread anew: start again").format(place=self.place))

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

    def _by_shard(self, urls: Sequence[str]) -> list[tuple[int, Sequence[str]]]:
        """Return the shards of jobs, each with its own in their order."""
        if self._shards == 1:
            return [(0, urls)] if urls else []
        found: dict[int, list[str]] = {}
        for url in urls:
            found.setdefault(shard_of_id(url, self._shards), []).append(url)
        return sorted(found.items())

    def _bucket(self, kind: str, identity: Identity) -> str:
        return bucket(kind, identity, self._shards)

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

    def _leases(self, found: Sequence[Sequence[Any]]) -> tuple[Lease, ...]:
        """Return what scripts grant in one call, and note how far the numbers in its tokens go: they rise."""
        for epoch, token in {fields[1].partition(".")[0]: fields[1] for fields in found}.items():
            self._granted[epoch] = max(self._granted.get(epoch, 0), int(token.split(".")[1]))
        return tuple(self._lease(*fields) for fields in found)

    def _lease(self, url: str, token: str, origin: str, attempt: int, ledger: str = "") -> Lease:
        found = as_dict(origin) if origin else {}
        walk = None
        if ledger:
            stand = {name: value for name, value in as_dict(ledger).items() if name in ("cursor", "page", "taken")}
            walk = Walk(**stand, **found.get("wishes", {}), quick=found.get("quick", False))
        return Lease(url, token, found.get("category", self._category), int(attempt), self._lease_seconds, walk)

    def _current(self, answer: Any, url: str) -> Any:
        if answer is None:
            raise StaleToken(_("The lease of {id} has moved on: nothing was changed").format(id=url), 409)
        return answer


def _told(url: str, result: Result) -> list[str]:
    size, seconds, path = str(result.bytes), f"{result.seconds:.1f}", path_pattern(result.path, url, result.title)
    stored = stored_pattern(result.stored, result.path, url, result.title)
    return [result.title, folded_prefix(result.title), path, size, seconds, result.streams, stored]


def _container_identity(text: str) -> Identity:
    aid = video_aid(text)  # quick: a list may have a million of them
    return Identity("v", aid, str(aid)) if aid else identity_of(_container(text))


def _container(text: str) -> JobId:
    job = parse_job_id(text)
    if job.is_page:
        raise ValueError(_("{id} is a page, not a video or an episode").format(id=text))
    return job


def _page_job(container: JobId, page: Page) -> JobId:
    if container.is_source:
        if not container.source.startswith(LESSON):  # it would be an id that nobody can read, in a list that all read
            raise ValueError(_("{id} lists videos and has no pages").format(id=container))
        return JobId(source=container.source, cid=page.cid)
    if container.episode_id:
        return JobId(episode_id=container.episode_id, cid=page.cid)
    return JobId(bvid=container.bvid, number=page.number, cid=page.cid)
