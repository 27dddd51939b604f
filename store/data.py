"""How the queue's data lie in Redis: names of keys, what makes two jobs the same, and how jobs are read for people.

Nothing here changes anything: that is the business of ``lua/``, and of redisConnect, which has the connection. A call
looks at a bounded number of entries, however long the queue is.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
import unicodedata
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

from i18n import _
from model import JobId
from parse_ import bvid_to_aid, parse_job_id
from store.records import unpacked, word_keys

BUCKETS = 65536
"""Sets of integers stay compact (about 9 bytes an entry) while no bucket has more than 512: 3·10^7 entries."""
SOURCE_BUCKETS = 256
"""Sets of texts stay compact (about 15 bytes an entry) while no bucket has more than 128: 3·10^4 sources."""

COMMON_KEYS = (
    *("ready", "kept", "suspect", "leased", "delayed", "dead", "token", "tries", "origin", "failures", "success"),
    *("totals", "holds", "alone", "workers", "status", "epoch", "fence", "swept", "grace"),
    *("deaths", "draining", "started", "ledger", "watch"),
    *("stale", "kinds", "titles", "titled", "forgotten"),
    *("ledgers", "words"),
)
"""In the order in which ``lua/common.lua`` names them."""

STATES = ("leased", "ready", "delayed", "dead", "done")
CANCELLED = "cancelled"
FOLDED_BYTES = 48
"""So much of a title is sorted; a longer search looks at the whole of each title that begins so."""
LOOKED_AT = 1000
"""A call looks at so many entries at most, save leases: there are no more of them than machines can hold."""
LEASES_AT_MOST = 20_000
GROUPS_AT_MOST = 200
PART = 100
"""So many entries of a place are read at a time."""
ARCHIVED_AT_ONCE = 1000

_POISON_REASON = _("Its workers died with it again and again, the last one holding nothing else.")
_CANCELLED_REASON = _("It was cancelled.")
"""As ``lua/`` has them, in the language of their reader."""

_ARCHIVED = "ARCHIVED "
"""Begins a cursor among titles in the archive: no folded title has a capital letter."""
_WINDOW = 500
"""So many jobs may leave the head of the list between two calls, and the second one still goes on after the first."""


# ------------------------------------------------------------------------------------------ the names of keys


def key(name: str, shard: int = 0) -> str:
    """Return the name of a key in a shard; what concerns the farm as a whole is in shard 0."""
    return f"{{bili:{shard}}}:{name}"


def answer_key(token: str, shard: int = 0) -> str:
    """Return where the answer to a call is kept."""
    return key(f"answer:{token}", shard)


def settled_key(request: str, shard: int) -> str:
    """Return where the answer to a lease request is kept that several shards were asked for."""
    return key(f"settled:{request}", shard)


def bucket(kind: str, identity: Identity, shards: int = 1) -> str:
    """Return the set that a job's member is in: ``seen``, ``closed`` or ``paged``."""
    return key(f"{kind}:{identity.namespace}:{identity.number % BUCKETS}", shard_of(identity, shards))


def done_key(page: JobId, shards: int = 1) -> str:
    """Return the set that the cid of a finished page is in."""
    return key(f"done:{page.cid % BUCKETS}", shard_of(identity_of(page), shards))


def record_key(page: JobId, shards: int = 1) -> str:
    """Return the hash that says where a finished page's record is."""
    return key(f"record:{page.cid % BUCKETS}", shard_of(identity_of(page), shards))


def ended_key(job: JobId, shards: int = 1) -> str:
    """Return the set that a job is in once it is done or, a container, closed."""
    return done_key(job, shards) if job.is_page else bucket("closed", identity_of(job), shards)


def risk_key(mark: str) -> str:
    """Return where the site's wish for less is remembered."""
    return key(f"risk:{mark}")


# ------------------------------------------------------------------------------------------ identity


class Identity(NamedTuple):
    """What makes two jobs the same: ``member`` in the sets of ``namespace``, spread over buckets by ``number``.

    Members are decimal integers wherever the number can be large, because sets of those stay compact.
    """

    namespace: str
    number: int
    member: str


def identity_of(job: JobId) -> Identity:
    """Return what makes another job the same as this one."""
    if job.is_page:
        return Identity("c", job.cid, str(job.cid))
    if job.is_source:
        return Identity("s", zlib.crc32(job.source.encode()) % SOURCE_BUCKETS, job.source)
    if job.episode_id:
        return Identity("e", job.episode_id, str(job.episode_id))
    aid = bvid_to_aid(job.bvid)
    return Identity("p", aid, f"{aid}:{job.number}") if job.number else Identity("v", aid, str(aid))


def shard_of(identity: Identity, shards: int) -> int:
    """Return the one shard that an identity belongs to, and with it all of its bucket.

    It must never change: data lie where it says. Whole buckets belong together, so that they stay as full, and as
    compact, as with one shard.
    """
    if shards == 1:
        return 0
    return zlib.crc32(f"{identity.namespace}:{identity.number % BUCKETS}".encode()) % shards


def shard_of_id(url: str, shards: int) -> int:
    """Return the shard that a job belongs to by its id, in whatever form that is written."""
    return shard_of(identity_of(parse_job_id(url)), shards) if shards > 1 else 0


def containers_of(page: JobId) -> list[JobId]:
    """Return the containers that a page's id says it may have come from, at most two."""
    if page.source:
        return [JobId(source=page.source)]
    if page.episode_id:
        return [JobId(episode_id=page.episode_id)]
    return [JobId(bvid=page.bvid), *([JobId(bvid=page.bvid, number=page.number)] if page.number else [])]


def fold(title: str) -> str:
    """Return a title as it is compared: in whatever case, width and spacing it is written."""
    return " ".join(unicodedata.normalize("NFKC", title).casefold().replace("\0", " ").split())


def folded_prefix(title: str) -> str:
    """Return the beginning of a folded title, which titles are sorted by."""
    return fold(title).encode("utf-8", "replace")[:FOLDED_BYTES].decode("utf-8", "ignore")


# ------------------------------------------------------------------------------------------ values


def as_json(value: object) -> str:
    """Return a value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_dict(text: str | None) -> dict[str, Any]:
    """Return the object in a text of JSON, an empty one where there is none."""
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


def success_item(entry: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return what a finished page's record says; earlier versions have written no ``streams`` and no ``stored``.

    ``at`` is in a record that came from another queue: when that was, in ms.
    """
    return {
        "url": fields["url"],
        "title": fields["title"],
        "path": fields["path"],
        "bytes": int(fields["bytes"]),
        "seconds": float(fields["seconds"]),
        "worker": fields["worker"],
        "streams": fields.get("streams", ""),
        "stored": fields.get("stored", ""),
        "time": int(fields.get("at") or entry.split("-")[0]) / 1000,
    }


def record_item(entry: str, fields: Mapping[str, str], category: str) -> dict[str, Any]:
    """Return a finished page as a job, with the failures that it had."""
    told = json.loads(fields.get("errors") or "[]")
    return {
        **success_item(entry, fields),
        "state": "done",
        "category": fields.get("category") or category,
        "source": fields.get("source", ""),
        "attempts": int(told[-1][2]) if told else 0,
        "code": "",
        "reason": "",
        "next_retry_seconds": None,
        "cancelled": False,
        "errors": _errors(told),
    }


def failed_item(url: str, tries: Mapping[str, Any], due_ms: float | None, at: float) -> dict[str, Any]:
    """Return what is told of a dead job, or of a delayed one, which falls due at ``due_ms``."""
    return {
        "url": url,
        "state": "dead" if due_ms is None else "delayed",
        "title": tries.get("title", ""),
        "code": tries.get("code", ""),
        "reason": reason_of(tries),
        "attempts": tries.get("attempts", 0),
        "worker": tries.get("worker", ""),
        "time": tries.get("time", 0) / 1000,
        "next_retry_seconds": _seconds_until(due_ms, at),
    }


def reason_of(tries: Mapping[str, Any]) -> str:
    """Return why a job failed, in the language of its reader where the queue itself has said so."""
    own = {"poison": _POISON_REASON, CANCELLED: _CANCELLED_REASON}
    return own.get(str(tries.get("code")), str(tries.get("reason", "")))


def _errors(told: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [
        {
            "time": at / 1000,
            "worker": worker,
            "attempt": int(attempt),
            "code": code,
            "reason": reason_of({"code": code, "reason": reason}),
        }
        for at, worker, attempt, code, reason in told
    ]


def _seconds_until(due_ms: float | None, at: float) -> float | None:
    return None if due_ms is None else round(max(0.0, due_ms / 1000 - at), 1)


_LEDGER: dict[str, Any] = {
    "title": "",
    "announced": None,
    "pages_expected": None,
    "pages_read": 0,
    "listed": 0,
    "queued": 0,
    "known": 0,
    "unavailable": {},
    "complete": False,
    "ended": "",
    "cursor": "",
    "started": None,
    "finished": None,
    "checked": None,
    "full_pass": None,
    "watched": 0,
}
"""What is shown of a source's ledger, and what stands for what is not known yet."""


def ledger_item(
    source: str, ledger: Mapping[str, Any], state: str, tries: Mapping[str, Any], category: str
) -> dict[str, Any]:
    """Return what is told of a source; ``category`` is where its videos go that has none of its own."""
    failed = state in ("delayed", "dead")
    return {
        "source": source,
        "state": state,
        "code": tries.get("code", "") if failed else "",
        "reason": reason_of(tries) if failed else "",
        "category": ledger.get("category") or category,
        "wishes": ledger.get("wishes") or {},
        **{name: ledger.get(name, default) for name, default in _LEDGER.items()},
    }


# ------------------------------------------------------------------------------------------ failures


def failure_member(cursor: str) -> str:
    """Return the entry of ``failures`` that a cursor names: no id has a space in it, and no code a zero."""
    code, mark, url = cursor.rpartition(" ")
    return f"{code}\0{url}" if mark else url


def failure_cursor(member: str) -> str:
    """Return a text that can be sent, for an entry of ``failures``."""
    return member.replace("\0", " ")


def failure_range(code: str | None, after: str) -> tuple[str, str]:
    """Return the limits of what is to be listed of ``failures``: all, or those of one code, after a cursor."""
    first = f"({failure_member(after)}" if after else "-" if code is None else f"[{code}\0"
    return first, "+" if code is None else f"({code}\x01"


# ------------------------------------------------------------------------------------------ jobs


class Wanted(NamedTuple):
    """Which jobs are asked for; an empty field asks for all."""

    state: str = ""
    category: str = ""
    source: str = ""

    def has(self, job: Mapping[str, Any]) -> bool:
        """Tell whether a job is one of them."""
        return all(value in ("", job[name]) for name, value in self._asdict().items())


class Section(NamedTuple):
    """One of the places that jobs are listed from: its name in a cursor, and the state of those in it."""

    name: str
    state: str


SECTIONS = (
    Section("leased", "leased"),
    Section("suspect", "ready"),
    Section("ready", "ready"),
    Section("kept", "ready"),
    Section("delayed", "delayed"),
    Section("dead", "dead"),
    Section("done", "done"),
    Section("archived", "done"),
)
"""In the order in which all are listed."""

Look = Callable[[Callable[[Any], object]], list[Any]]
"""Returns the answers to what is put into a pipeline, all from one instant."""
_E = TypeVar("_E")
Success = tuple[str, int, dict[str, str]]
"""A record: its entry in the stream, its shard, its fields."""
_Found = tuple[str, dict[str, Any] | None]
"""Where to go on after an entry, and its job; None where the entry is no job of its section any more."""

Records = list[tuple[str, dict[str, str]]]
"""Entries of the stream of finished pages, with their fields in plain text."""


class Archived(Protocol):
    """The records that were moved into files (``store.Archive``), as far as they lie on this machine."""

    place: str

    def held(self) -> AbstractContextManager[bool]:
        """Hold the archive for writing; yield whether it could be had."""

    def append(self, records: Sequence[Mapping[str, Any]]) -> bool:
        """Write records and sync them; return whether they are safe."""

    def find(self, cids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the record of each of these pages that has one here."""

    def after(self, mark: str, limit: int) -> list[dict[str, Any]]:
        """Return records in the order in which pages were finished, those behind an entry or a ``record_mark``."""

    def before(self, mark: str, limit: int) -> list[dict[str, Any]]:
        """Return records with the newest first, those before an entry or a ``record_mark``; "" is the end."""

    def titled(self, prefix: str, after: tuple[str, str], limit: int) -> list[tuple[str, dict[str, Any]]]:
        """Return records whose folded titles begin so, behind a folded title and an entry, in the order of titles."""


class Recorded(Protocol):
    """A queue, as far as records are moved out of it (``redisConnect.Queue``)."""

    @property
    def shards(self) -> int:
        """Over how many shards it is spread."""

    def look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what is put into a pipeline."""

    def run(self, script: str, keys: Sequence[str], args: Iterable[str | int], shard: int = 0) -> Any:
        """Run a script of ``lua/``."""

    def record_items(self, limit: int) -> list[tuple[str, int, dict[str, Any]]]:
        """Return the oldest records as jobs, with their entries and shards."""


def move_oldest(queue: Recorded, archive: Archived, limit: int, at_once: int, batches: int) -> int:
    """Move the oldest records of a queue beyond a limit (0: there is none) into an archive; return how many.

    The limit is for all shards together, and the oldest of all of them go. A record leaves Redis when it is safe on
    disk: whoever dies in between leaves it in both, and it is read once.
    """
    moved = 0
    for _turn in range(batches if limit else 0):
        over = sum(_records_in(queue, shard) for shard in range(queue.shards)) - limit
        if over < max(1, min(at_once, limit // 100)):  # a sync for each record would be dear
            break
        with archive.held() as is_ours:
            if not is_ours:
                break
            gone = _move(queue, archive, min(over, at_once))
        moved += gone
        if not gone:
            break
    return moved


def _records_in(queue: Recorded, shard: int) -> int:
    (length,) = queue.look(lambda pipe: pipe.xlen(key("success", shard)))
    return int(length)


def _move(queue: Recorded, archive: Archived, count: int) -> int:
    items = queue.record_items(count)
    if not archive.append([{"entry": entry, **item} for entry, _shard, item in items]):
        return 0
    told: dict[int, tuple[list[str], list[str]]] = {}
    for entry, shard, item in items:
        page = parse_job_id(item["url"])
        keys, args = told.setdefault(shard, ([key("archives", shard)], [archive.place]))
        keys.append(record_key(page, queue.shards))
        args += [entry, str(page.cid)]
    return sum(int(queue.run("archive", keys, args, shard)) for shard, (keys, args) in told.items())


class JobViews:
    """Jobs as people look at them, one by one or page by page."""

    def __init__(self, look: Look, category: str, archive: Archived, shards: int = 1) -> None:
        self._look = look
        self._category = category
        self._archive = archive
        self._shards = shards

    def _each(
        self, read: Callable[[int], Iterator[_E]], order: Callable[[_E], Any], newest_first: bool = False
    ) -> Iterator[_E]:
        """Yield what all shards have in one order; each shard gives it in that order."""
        if self._shards == 1:
            return read(0)
        return heapq.merge(*map(read, range(self._shards)), key=order, reverse=newest_first)

    def _batch(self, count: int) -> int:
        """Return how many entries to read of a shard at a time where so many of all are wanted."""
        return count if self._shards == 1 else max(10, 2 * count // self._shards)

    # -------------------------------------------------------------------------------- one

    def life(self, url: str) -> dict[str, Any] | None:
        """Return a job with the failures that it had, None for one that was never added."""
        (job,) = self.jobs([url])
        return job

    def page(self, cid: int) -> dict[str, Any] | None:
        """Return the finished page that has a cid, None where there is none."""
        page = JobId(cid=cid)
        (entry,) = self._look(lambda pipe: pipe.hget(record_key(page, self._shards), str(cid)))
        records = self._records(shard_of(identity_of(page), self._shards), [str(cid)], [entry])
        return records.get(str(cid))

    def jobs(self, urls: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return what is known of each of these jobs, ``errors`` too; None for those that were never added."""
        parts: dict[int, list[str]] = {}
        for url in urls:
            parts.setdefault(shard_of_id(url, self._shards), []).append(url)
        if len(parts) == 1:
            ((shard, part),) = parts.items()
            return self._jobs_in(shard, part)
        found = {
            url: job for shard, part in parts.items() for url, job in zip(part, self._jobs_in(shard, part), strict=True)
        }
        return [found[url] for url in urls]

    def _jobs_in(self, shard: int, urls: Sequence[str]) -> list[dict[str, Any] | None]:
        jobs = [parse_job_id(url) for url in urls]
        tries, origins, leased, kept, delayed, dead, (seconds, micros), *more = self._look(
            lambda pipe: (
                pipe.hmget(key("tries", shard), urls).hmget(key("origin", shard), urls),
                pipe.zmscore(key("leased", shard), urls).zmscore(key("kept", shard), urls),
                pipe.zmscore(key("delayed", shard), urls).zmscore(key("dead", shard), urls).time(),
                [_ask_for_end(pipe, job, self._shards) for job in jobs],
            )
        )
        at = seconds + micros / 1e6
        records = self._records(shard, urls, more[2::3])
        found: list[dict[str, Any] | None] = []
        for i, url in enumerate(urls):
            seen, ended = more[3 * i], more[3 * i + 1]
            places = {"leased": leased[i], "ready": kept[i], "delayed": delayed[i], "dead": dead[i]}
            places |= {"done": ended or None, "waits": seen or None}
            state = next((place for place, where in places.items() if where is not None), "")
            if state == "done" and url in records:
                found.append(records[url])
            elif state:
                state = "ready" if state == "waits" else state
                found.append(self._job(url, state, as_dict(tries[i]), as_dict(origins[i]), delayed[i], at))
            else:
                found.append(None)
        return self._with_archived(jobs, found)

    def _with_archived(self, jobs: Sequence[JobId], found: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
        """Return the jobs with what the archive knows of finished pages that have no record in Redis any more."""
        moved = [
            i
            for i, (job, item) in enumerate(zip(jobs, found, strict=True))
            if job.is_page and item is not None and item["state"] == "done" and "path" not in item
        ]
        if not moved:
            return found
        records = self._archive.find([jobs[i].cid for i in moved])
        places = self.archives() if len(records) < len(moved) else {}
        for i in moved:
            if (record := records.get(jobs[i].cid)) is not None:
                found[i] = self._archived(record)
            elif places:
                found[i] = {**(found[i] or {}), "archived": list(places)}
        return found

    def _archived(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {**{name: value for name, value in record.items() if name != "entry"}, "archived": [self._archive.place]}

    def archives(self) -> dict[str, int]:
        """Return how many records were moved into files, by the places of these."""
        counts: dict[str, int] = {}
        for shard in range(self._shards):
            (places,) = self._look(lambda pipe, shard=shard: pipe.hgetall(key("archives", shard)))  # type: ignore[misc]
            for place, count in places.items():
                counts[place] = counts.get(place, 0) + int(count)
        return counts

    def plain(self, shard: int, entries: Records) -> Records:
        """Return entries of a shard's stream of finished pages with their fields in plain text."""
        keys = word_keys(fields for _entry, fields in entries)
        (texts,) = self._look(lambda pipe: pipe.hmget(key("words", shard), keys)) if keys else ([],)
        words = {name: text or "" for name, text in zip(keys, texts, strict=True)}
        return [(entry, unpacked(fields, words)) for entry, fields in entries]

    def still_done(self, after: str, limit: int, newest_first: bool = False) -> list[dict[str, Any]]:
        """Return archived records that count: of pages that were not forgotten since, or finished again."""
        records: list[dict[str, Any]] = []
        while len(records) < limit:
            read = self._archive.before if newest_first else self._archive.after
            part = read(after, limit)
            records += self._counting(part)
            if len(part) < limit:
                break
            after = record_mark(part[-1]["entry"], part[-1]["url"])
        return records[:limit]

    def _counting(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        pages = [parse_job_id(record["url"]) for record in records]
        shards = [shard_of(identity_of(page), self._shards) for page in pages]
        counting: set[int] = set()
        for shard in set(shards):
            here = [place for place, its_shard in enumerate(shards) if its_shard == shard]
            answers = self._look(lambda pipe, here=here: [self._ask_for_record(pipe, pages[i]) for i in here])  # type: ignore[misc]
            places = zip(here, answers[::2], answers[1::2], strict=True)
            counting |= {place for place, is_done, is_in_redis in places if is_done and not is_in_redis}
        return [records[place] for place in sorted(counting)]

    def _ask_for_record(self, pipe: Any, page: JobId) -> Any:
        member = str(page.cid)
        return pipe.sismember(done_key(page, self._shards), member).hexists(record_key(page, self._shards), member)

    def _records(self, shard: int, urls: Sequence[str], entries: Sequence[str | None]) -> dict[str, dict[str, Any]]:
        """Return what is recorded of pages, by the ids that were asked for."""
        named = [(url, _entry_id(entry)) for url, entry in zip(urls, entries, strict=True) if entry]
        if not named:
            return {}
        answers = self._look(lambda pipe: [pipe.xrange(key("success", shard), entry, entry) for _url, entry in named])
        there = [(url, answer[0]) for (url, _entry), answer in zip(named, answers, strict=True) if answer]
        plain = self.plain(shard, [record for _url, record in there])
        return {url: self._done(*record) for (url, _record), record in zip(there, plain, strict=True)}

    def _job(
        self, url: str, state: str, tries: Mapping[str, Any], origin: Mapping[str, Any], due_ms: float | None, at: float
    ) -> dict[str, Any]:
        return {
            **failed_item(url, tries, due_ms, at),
            "state": state,
            "category": origin.get("category") or self._category,
            "source": origin.get("source", ""),
            "time": tries["time"] / 1000 if tries.get("time") else None,
            "cancelled": state == "dead" and tries.get("code") == CANCELLED,
            "errors": _errors(tries.get("errors") or ()),
        }

    def _done(self, entry: str, fields: Mapping[str, str]) -> dict[str, Any]:
        return record_item(entry, fields, self._category)

    # -------------------------------------------------------------------------------- those that failed

    def failed(self, after: str, limit: int, code: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """Return dead and delayed jobs in the order of their codes and ids, and where to go on (None at the end)."""
        found = list(itertools.islice(self._failures(code, after, limit + 1), limit + 1))
        following = failure_cursor(found[limit - 1][0]) if len(found) > limit else None
        ids = [(member.rpartition("\0")[2], shard) for member, shard in found[:limit]]
        items: dict[str, dict[str, Any]] = {}
        for shard in {shard for _url, shard in ids}:
            items |= self._failed_in(shard, [url for url, its_shard in ids if its_shard == shard])
        return [items[url] for url, _shard in ids], following

    def _failures(self, code: str | None, after: str, count: int) -> Iterator[tuple[str, int]]:
        """Yield the members of ``failures`` after a cursor, in their order, each with its shard."""

        def read(shard: int) -> Iterator[tuple[str, int]]:
            batch, (start, stop) = self._batch(count), failure_range(code, after)
            while True:
                members = self._members("failures", shard, start, stop, batch)
                yield from ((member, shard) for member in members)
                if len(members) < batch:
                    return
                start = f"({members[-1]}"

        return self._each(read, lambda found: _in_bytes(found[0]))

    def _failed_in(self, shard: int, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        texts, due, (seconds, micros) = self._look(
            lambda pipe: pipe.hmget(key("tries", shard), ids).zmscore(key("delayed", shard), ids).time()
        )
        at = seconds + micros / 1e6
        return {
            url: failed_item(url, as_dict(text), score, at) for url, text, score in zip(ids, texts, due, strict=True)
        }

    def failure_groups(self) -> list[dict[str, Any]]:
        """Return how many jobs are dead and delayed of each code, with the reason of one of them, most first."""
        groups: dict[str, dict[str, Any]] = {}
        for shard in range(self._shards):
            (kinds,) = self._look(lambda pipe, shard=shard: pipe.hgetall(key("kinds", shard)))  # type: ignore[misc]
            for name, count in kinds.items():
                state, _mark, code = name.partition(":")
                group = groups.setdefault(code, {"code": code, "reason": "", "dead": 0, "delayed": 0, "shard": shard})
                group[state] += int(count)
        found = sorted(groups.values(), key=lambda group: (-group["dead"] - group["delayed"], group["code"]))
        found = found[:GROUPS_AT_MOST]
        for shard in {group["shard"] for group in found}:
            self._give_reasons(shard, [group for group in found if group["shard"] == shard])
        return [{name: value for name, value in group.items() if name != "shard"} for group in found]

    def _give_reasons(self, shard: int, groups: Sequence[dict[str, Any]]) -> None:
        samples = self._look(
            lambda pipe: [
                pipe.zrangebylex(key("failures", shard), *failure_range(group["code"], ""), 0, 1) for group in groups
            ]
        )
        ids = [members[0].rpartition("\0")[2] if members else "" for members in samples]
        (texts,) = self._look(lambda pipe: pipe.hmget(key("tries", shard), ids))
        for group, text in zip(groups, texts, strict=True):
            group["reason"] = reason_of(as_dict(text))

    # -------------------------------------------------------------------------------- those that are done

    def success(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return finished pages in the order in which they were, archived ones too, and where to go on."""
        if after and not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18}(@[0-9]{1,18})?)?", after):
            raise ValueError(_('after: use the value of "next" of the answer before'))
        entries = list(itertools.islice(self.successes(after, limit + 1), limit + 1))
        # The archive comes second: what moves there in between is seen twice rather than not at all.
        found = {
            record_place(record["entry"], record["url"]): (record["entry"], self._archived(record))
            for record in self.still_done(after, limit + 1)
        }
        for entry, _shard, fields in entries:
            found[record_place(entry, fields["url"])] = entry, success_item(entry, fields)
        places = sorted(found)
        items = [
            {name: value for name, value in found[place][1].items() if name != "errors"} for place in places[:limit]
        ]
        if len(places) <= limit:
            return items, None
        entry, last = found[places[limit - 1]]
        is_shared = places[limit][:2] == places[limit - 1][:2]
        return items, record_mark(entry, last["url"]) if is_shared else self._success_cursor(entry, last["url"])

    def latest_success(self, limit: int) -> list[dict[str, Any]]:
        """Return the pages finished last, the newest first."""
        found = itertools.islice(self.successes("", limit, newest_first=True), limit)
        return [success_item(entry, fields) for entry, _shard, fields in found]

    def successes(self, after: str, count: int, newest_first: bool = False) -> Iterator[Success]:
        """Yield records after a cursor in the order of their entries, and of pages where these are equal."""
        mark, _at, cid_of_mark = after.partition("@")
        place = record_place(mark, f"cid={cid_of_mark}") if cid_of_mark else ()

        def read(shard: int) -> Iterator[Success]:
            batch, start = self._batch(count) + bool(place), mark if place else mark and f"({mark}"
            while True:
                entries = self._entries_of(shard, start, batch, newest_first)
                for entry, fields in entries:
                    here = record_place(entry, fields["url"]) if place else ()
                    if not place or (here < place if newest_first else here > place):
                        yield entry, shard, fields
                if len(entries) < batch:
                    return
                start = f"({entries[-1][0]}"

        return self._each(read, lambda found: record_place(found[0], found[2]["url"]), newest_first)

    def _success_cursor(self, entry: str, url: str) -> str:
        """Return where to go on after a record; with one shard no other one has its entry."""
        return entry if self._shards == 1 else record_mark(entry, url)

    def _entries_of(self, shard: int, start: str, count: int, newest_first: bool) -> Records:
        where = key("success", shard)
        (entries,) = self._look(
            lambda pipe: (
                pipe.xrevrange(where, start or "+", "-", count=count)
                if newest_first
                else pipe.xrange(where, start or "-", "+", count=count)
            )
        )
        return self.plain(shard, entries)

    # -------------------------------------------------------------------------------- many

    def listed(self, wanted: Wanted, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return jobs in the order of their places, and where to go on; None at the end.

        Where many are left out there may be few of them, or none, and more further on.
        """
        name, _mark, mark = after.partition(" ")
        sections = [section for section in SECTIONS if wanted.state in ("", section.state)]
        if after:
            names = [section.name for section in sections]
            if name not in names or not mark:
                raise ValueError(_('after: use the value of "next" of the answer before'))
            sections = sections[names.index(name) :]
        return _gather(self._entries(sections, mark), wanted, limit)

    def _entries(self, sections: Sequence[Section], mark: str) -> Iterator[_Found]:
        """Yield all entries from a place on, read as they are wanted."""
        for section in sections:
            read: Callable[[str], Iterator[_Found]] = getattr(self, f"_read_{section.name}")
            yield from (
                (f"{section.name} {where}", job if job and job["state"] == section.state else None)
                for where, job in read(mark)
            )
            mark = ""

    def entitled(self, wanted: Wanted, title: str, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return jobs whose titles begin so, in the order of their titles, and where to go on."""
        return _gather(chain(self._with_title(title, after), self._archived_title(title, after)), wanted, limit)

    def _archived_title(self, title: str, after: str) -> Iterator[_Found]:
        """Yield archived pages whose titles begin so; they come behind those whose titles Redis has."""
        folded, prefix = fold(title), folded_prefix(title)
        mark, _space, last = after.removeprefix(_ARCHIVED).partition(" ") if after.startswith(_ARCHIVED) else ("",) * 3
        while found := self._archive.titled(prefix, (last, mark), PART):
            counting = {record["url"] for record in self._counting([record for _title, record in found])}
            for last, record in found:
                mark = record_mark(record["entry"], record["url"])
                is_wanted = record["url"] in counting and fold(record["title"]).startswith(folded)
                yield f"{_ARCHIVED}{mark} {last}", self._archived(record) if is_wanted else None

    def _with_title(self, title: str, after: str) -> Iterator[_Found]:
        folded, prefix = fold(title), folded_prefix(title)
        if after.startswith(_ARCHIVED):
            return

        def read(shard: int) -> Iterator[str]:
            start, count = f"({failure_member(after)}" if after else f"[{prefix}", self._batch(PART)
            while True:
                members = self._members("titles", shard, start, f"[{prefix}\U0010ffff", count)
                yield from members
                if len(members) < count:
                    return
                start = f"({members[-1]}"

        members = self._each(read, _in_bytes)
        for where, job in self._resolved((failure_cursor(one), one.rpartition("\0")[2]) for one in members):
            # What is in the archive comes with the rest of it.
            matches = job is not None and "archived" not in job and fold(job["title"]).startswith(folded)
            yield where, job if matches else None

    def _resolved(self, entries: Iterator[tuple[str, str]]) -> Iterator[_Found]:
        """Yield the jobs of ids, each with its place; they are looked up in parts."""
        while part := list(itertools.islice(entries, PART)):
            yield from zip((where for where, _url in part), self.jobs([url for _where, url in part]), strict=True)

    def _members(self, name: str, shard: int, start: str, stop: str, count: int) -> list[str]:
        (members,) = self._look(lambda pipe: pipe.zrangebylex(key(name, shard), start, stop, 0, count))
        return list(members)

    # -------------------------------------------------------------------------------- the places

    def _read_leased(self, mark: str) -> Iterator[_Found]:
        urls: list[str] = []
        for shard in range(self._shards):
            (found,) = self._look(
                lambda pipe, shard=shard: pipe.zrange(key("leased", shard), 0, LEASES_AT_MOST - 1)  # type: ignore[misc]
            )
            urls += found
        urls.sort()
        for first in range(bisect_right(urls, mark), len(urls), PART):
            part = urls[first : first + PART]
            yield from zip(part, self.jobs(part), strict=True)

    def _read_suspect(self, mark: str) -> Iterator[_Found]:
        return self._of_list("suspect", mark)

    def _read_ready(self, mark: str) -> Iterator[_Found]:
        return self._of_list("ready", mark)

    def _of_list(self, name: str, mark: str) -> Iterator[_Found]:
        """Yield what follows in the list of one shard, and then the lists of the others."""
        first, place = _place_in_shards(mark)
        for shard in range(first, self._shards):
            while batch := self._in_list(name, shard, place):
                yield from ((f"{shard}@{where}" if shard else where, job) for where, job in batch)
                if len(batch) < PART:
                    break
                place = batch[-1][0]
            place = ""

    def _in_list(self, name: str, shard: int, mark: str) -> list[_Found]:
        """Return what follows in a list. Jobs leave its head meanwhile, so the last one is looked for further ahead.

        Where it has left, too, so have those before it: then rather some come twice than one never.
        """
        index, last = _place_in_list(mark)
        first = max(0, index - _WINDOW)
        (urls,) = self._look(lambda pipe: pipe.lrange(key(name, shard), first, index + PART - 1))
        start = next((place for place in range(min(index - first, len(urls)), 0, -1) if urls[place - 1] == last), 0)
        urls = urls[start : start + PART]
        begin = first + start
        jobs = self._without_repeats(name, shard, urls, begin)
        return [(f"{begin + offset + 1} {url}", job) for offset, (url, job) in enumerate(zip(urls, jobs, strict=True))]

    def _without_repeats(self, name: str, shard: int, urls: Sequence[str], begin: int) -> list[dict[str, Any] | None]:
        """Return the jobs of a part of a list, None for an entry that does not count because its job was moved."""
        jobs = self._jobs_in(shard, urls) if urls else []
        if name != "ready" or not urls:
            return jobs
        stale, *_none = self._look(lambda pipe: pipe.hmget(key("stale", shard), urls))
        moved = [i for i, count in enumerate(stale) if count]
        if not moved:
            return jobs
        places = self._look(lambda pipe: [pipe.lpos(key("ready", shard), urls[i], maxlen=LOOKED_AT) for i in moved])
        for i, place in zip(moved, places, strict=True):
            if int(stale[i]) < 0 or (place is not None and place != begin + i):
                jobs[i] = None
        return jobs

    def _read_kept(self, mark: str) -> Iterator[_Found]:
        return self._of_set("kept", mark)

    def _read_delayed(self, mark: str) -> Iterator[_Found]:
        return self._of_set("delayed", mark)

    def _read_dead(self, mark: str) -> Iterator[_Found]:
        return self._of_set("dead", mark, newest_first=True)

    def _of_set(self, name: str, mark: str, newest_first: bool = False) -> Iterator[_Found]:
        """Yield what follows in the sorted sets of all shards, in the order of scores and ids."""

        def read(shard: int) -> Iterator[tuple[str, float]]:
            count, where = self._batch(PART), mark
            while batch := self._in_set(name, shard, where, count, newest_first):
                yield from batch
                if len(batch) < count:
                    return
                where = _place_in_set(*batch[-1])

        entries = self._each(read, lambda found: (found[1], _in_bytes(found[0])), newest_first)
        return self._resolved((_place_in_set(url, score), url) for url, score in entries)

    def _in_set(self, name: str, shard: int, mark: str, count: int, newest_first: bool) -> list[tuple[str, float]]:
        """Return what follows in a sorted set: after the last one, or where that would be if it has left."""
        start, where = 0, key(name, shard)
        if mark:
            score, _mark, last = mark.partition(" ")
            _checked_number(score)
            beyond = (f"({score}", "+inf") if newest_first else ("-inf", f"({score}")
            rank, before, now_score, same = self._look(
                lambda pipe: (
                    pipe.zrevrank(where, last) if newest_first else pipe.zrank(where, last),
                    pipe.zcount(where, *beyond).zscore(where, last),
                    pipe.zrangebyscore(where, score, score, 0, LOOKED_AT),
                )
            )
            if rank is not None and now_score == float(score):
                start = rank + 1
            else:
                start = before + sum((url > last) == newest_first for url in same)
        (found,) = self._look(
            lambda pipe: pipe.zrange(where, start, start + count - 1, desc=newest_first, withscores=True)
        )
        return [(url, score) for url, score in found]

    def _read_done(self, mark: str) -> Iterator[_Found]:
        if mark and not re.fullmatch(r"[0-9]{1,18}-[0-9]{1,18}(@[0-9]{1,18})?", mark):
            raise ValueError(_('after: use the value of "next" of the answer before'))
        for entry, _shard, fields in self.successes(mark, PART, newest_first=True):
            yield self._success_cursor(entry, fields["url"]), self._done(entry, fields)

    def _read_archived(self, mark: str) -> Iterator[_Found]:
        if mark and not re.fullmatch(r"[0-9]{1,18}-[0-9]{1,18}(@[0-9]{1,18})?", mark):
            raise ValueError(_('after: use the value of "next" of the answer before'))
        while records := self.still_done(mark, PART, newest_first=True):
            for record in records:
                mark = record_mark(record["entry"], record["url"])
                yield mark, self._archived(record)
            if len(records) < PART:
                return


def _gather(entries: Iterator[_Found], wanted: Wanted, limit: int) -> tuple[list[dict[str, Any]], str | None]:
    """Return the jobs among the next entries that are wanted, and where to go on; None where nothing is left."""
    items: list[dict[str, Any]] = []
    where = ""
    for looked_at, (here, job) in enumerate(entries):
        if len(items) == limit or looked_at == LOOKED_AT:
            return items, where
        if job is not None and wanted.has(job):
            items.append({name: value for name, value in job.items() if name != "errors"})
        where = here
    return items, None


def _ask_for_end(pipe: Any, job: JobId, shards: int) -> Any:
    """Ask whether a job was ever added, whether it has ended, and where its record is: three answers."""
    identity = identity_of(job)
    pipe.sismember(bucket("seen", identity, shards), identity.member)
    pipe.sismember(ended_key(job, shards), identity.member)
    if job.is_page:
        return pipe.hget(record_key(job, shards), str(job.cid))
    return pipe.hget(key("tries", shard_of(identity, shards)), "")  # nothing: a container has no record


def record_place(entry: str, url: str) -> tuple[int, int, int]:
    """Return what records are sorted by: two shards may give the same entry, and none gives it to the same page."""
    at_ms, _dash, number = entry.partition("-")
    return int(at_ms), int(number or 0), int(url.rpartition("cid=")[2])


def record_mark(entry: str, url: str) -> str:
    """Return a cursor behind a record, whatever has the same entry in other shards."""
    return f"{entry}@{url.rpartition('cid=')[2]}"


def _entry_id(recorded: str) -> str:
    return recorded if "-" in recorded else f"{recorded}-0"


def _in_bytes(text: str) -> bytes:
    """Return what Redis compares where it sorts texts."""
    return text.encode("utf-8", "surrogatepass")


def _place_in_shards(mark: str) -> tuple[int, str]:
    """Return the shard of a place in the lists of all, and the place in its own."""
    shard, at, place = mark.partition("@")
    if at and shard.isascii() and shard.isdecimal():
        return int(shard), place
    return 0, mark


def _place_in_set(url: str, score: float) -> str:
    return f"{score:.0f} {url}"


def _place_in_list(mark: str) -> tuple[int, str]:
    if not mark:
        return 0, ""
    index, _mark, last = mark.partition(" ")
    return _checked_number(index), last


def _checked_number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ValueError(_('after: use the value of "next" of the answer before'))
    return int(text)
