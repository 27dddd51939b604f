"""How the queue's data lie in Redis: names of keys, what makes two jobs the same, and how jobs are read for people.

Nothing here changes anything: that is the business of ``lua/``, and of redisConnect, which has the connection. A call
looks at a bounded number of entries, however long the queue is.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, NamedTuple, Protocol

from i18n import _
from model import JobId
from parse_ import bvid_to_aid, parse_job_id
from success_records import unpacked, word_keys

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
ARCHIVED_AT_ONCE = 1000

_POISON_REASON = _("Its workers died with it again and again, the last one holding nothing else.")
_CANCELLED_REASON = _("It was cancelled.")
"""As ``lua/`` has them, in the language of their reader."""

_ARCHIVED = "ARCHIVED "
"""Begins a cursor among titles in the archive: no folded title has a capital letter."""
_WINDOW = 500
"""So many jobs may leave the head of the list between two calls, and the second one still goes on after the first."""


# ------------------------------------------------------------------------------------------ the names of keys


def key(name: str) -> str:
    """Return the name of a key; 0 is the shard, the only one so far."""
    return f"{{bili:0}}:{name}"


def answer_key(token: str) -> str:
    """Return where the answer to a call is kept."""
    return key(f"answer:{token}")


def bucket(kind: str, identity: Identity) -> str:
    """Return the set that a job's member is in: ``seen``, ``closed`` or ``paged``."""
    return key(f"{kind}:{identity.namespace}:{identity.number % BUCKETS}")


def done_key(page: JobId) -> str:
    """Return the set that the cid of a finished page is in."""
    return key(f"done:{page.cid % BUCKETS}")


def record_key(page: JobId) -> str:
    """Return the hash that says where a finished page's record is."""
    return key(f"record:{page.cid % BUCKETS}")


def ended_key(job: JobId) -> str:
    """Return the set that a job is in once it is done or, a container, closed."""
    return done_key(job) if job.is_page else bucket("closed", identity_of(job))


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
    """Return what a finished page's record says; ``streams`` is empty where an earlier version has written it.

    ``stored`` is there where the file was delivered: the address where it lies. ``at`` is in a record that came from
    another queue: when that was, in ms.
    """
    stored = {"stored": fields["stored"]} if fields.get("stored") else {}
    return {
        "url": fields["url"],
        "title": fields["title"],
        "path": fields["path"],
        "bytes": int(fields["bytes"]),
        "seconds": float(fields["seconds"]),
        "worker": fields["worker"],
        "streams": fields.get("streams", ""),
        "time": int(fields.get("at") or entry.split("-")[0]) / 1000,
        **stored,
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
_Found = tuple[str, dict[str, Any] | None]
"""Where to go on after an entry, and its job; None where the entry is no job of its section any more."""


_Records = list[tuple[str, dict[str, str]]]
"""Entries of the stream of finished pages, with their fields in plain text."""


class Archived(Protocol):
    """The records that were moved into files (``success_archive.Archive``), as far as they lie on this machine."""

    place: str

    def held(self) -> AbstractContextManager[bool]:
        """Hold the archive for writing; yield whether it could be had."""

    def append(self, records: Sequence[Mapping[str, Any]]) -> bool:
        """Write records and sync them; return whether they are safe."""

    def find(self, cids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the record of each of these pages that has one here."""

    def after(self, entry: str, limit: int) -> list[dict[str, Any]]:
        """Return records in the order in which pages were finished, those behind an entry."""

    def before(self, entry: str, limit: int) -> list[dict[str, Any]]:
        """Return records with the newest first, those before an entry; "" is the end."""

    def titled(self, prefix: str, after: tuple[str, str], limit: int) -> list[tuple[str, dict[str, Any]]]:
        """Return records whose folded titles begin so, behind a folded title and an entry, in the order of titles."""


class Recorded(Protocol):
    """A queue, as far as records are moved out of it (``redisConnect.Queue``)."""

    def look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what is put into a pipeline."""

    def run(self, script: str, keys: Sequence[str], args: Iterable[str | int]) -> Any:
        """Run a script of ``lua/``."""

    def record_items(self, start: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        """Return records as jobs, with their entries, the oldest first."""


def move_oldest(queue: Recorded, archive: Archived, limit: int, at_once: int, batches: int) -> int:
    """Move the oldest records of a queue beyond a limit (0: there is none) into an archive; return how many.

    A record leaves Redis when it is safe on disk: whoever dies in between leaves it in both, and it is read once.
    """
    moved = 0
    for _turn in range(batches if limit else 0):
        (length,) = queue.look(lambda pipe: pipe.xlen(key("success")))
        over = length - limit
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


def _move(queue: Recorded, archive: Archived, count: int) -> int:
    items = queue.record_items("-", count)
    if not archive.append([{"entry": entry, **item} for entry, item in items]):
        return 0
    keys, args = [key("archives")], [archive.place]
    for entry, item in items:
        page = parse_job_id(item["url"])
        keys.append(record_key(page))
        args += [entry, str(page.cid)]
    return int(queue.run("archive", keys, args))


class JobViews:
    """Jobs as people look at them, one by one or page by page."""

    def __init__(self, look: Look, category: str, archive: Archived) -> None:
        self._look = look
        self._category = category
        self._archive = archive

    # -------------------------------------------------------------------------------- one

    def life(self, url: str) -> dict[str, Any] | None:
        """Return a job with the failures that it had, None for one that was never added."""
        (job,) = self.jobs([url])
        return job

    def jobs(self, urls: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return what is known of each of these jobs, ``errors`` too; None for those that were never added."""
        if not urls:
            return []
        jobs = [parse_job_id(url) for url in urls]
        tries, origins, leased, kept, delayed, dead, (seconds, micros), *more = self._look(
            lambda pipe: (
                pipe.hmget(key("tries"), urls).hmget(key("origin"), urls).zmscore(key("leased"), urls),
                pipe.zmscore(key("kept"), urls).zmscore(key("delayed"), urls).zmscore(key("dead"), urls).time(),
                [_ask_for_end(pipe, job) for job in jobs],
            )
        )
        at = seconds + micros / 1e6
        records = self._records(urls, more[2::3])
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
        (places,) = self._look(lambda pipe: pipe.hgetall(key("archives")))
        return {place: int(count) for place, count in places.items()}

    def plain(self, entries: _Records) -> _Records:
        """Return entries of the stream of finished pages with their fields in plain text."""
        keys = word_keys(fields for _entry, fields in entries)
        (texts,) = self._look(lambda pipe: pipe.hmget(key("words"), keys)) if keys else ([],)
        words = {name: text or "" for name, text in zip(keys, texts, strict=True)}
        return [(entry, unpacked(fields, words)) for entry, fields in entries]

    def success(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return finished pages in the order in which they were, archived ones too, and where to go on."""
        (entries,) = self._look(
            lambda pipe: pipe.xrange(key("success"), f"({after}" if after else "-", "+", count=limit + 1)
        )
        # The archive comes second: what moves there in between is seen twice rather than not at all.
        found = {record["entry"]: self._archived(record) for record in self.still_done(after, limit + 1)}
        found |= {entry: success_item(entry, fields) for entry, fields in self.plain(entries)}
        ids = sorted(found, key=_entry_numbers)
        items = [{name: value for name, value in found[entry].items() if name != "errors"} for entry in ids[:limit]]
        return items, ids[limit - 1] if len(ids) > limit else None

    def still_done(self, after: str, limit: int, newest_first: bool = False) -> list[dict[str, Any]]:
        """Return archived records that count: of pages that were not forgotten since, or finished again."""
        records: list[dict[str, Any]] = []
        while len(records) < limit:
            read = self._archive.before if newest_first else self._archive.after
            part = read(after, limit)
            records += self._counting(part)
            if len(part) < limit:
                break
            after = part[-1]["entry"]
        return records[:limit]

    def _counting(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if not records:
            return []
        pages = [parse_job_id(record["url"]) for record in records]
        answers = self._look(
            lambda pipe: [
                pipe.sismember(done_key(page), str(page.cid)).hexists(record_key(page), str(page.cid)) for page in pages
            ]
        )
        places = zip(records, answers[::2], answers[1::2], strict=True)
        return [record for record, is_done, is_in_redis in places if is_done and not is_in_redis]

    def _records(self, urls: Sequence[str], entries: Sequence[str | None]) -> dict[str, dict[str, Any]]:
        """Return what is recorded of pages, by the ids that were asked for."""
        named = [(url, _entry_id(entry)) for url, entry in zip(urls, entries, strict=True) if entry]
        if not named:
            return {}
        answers = self._look(lambda pipe: [pipe.xrange(key("success"), entry, entry) for _url, entry in named])
        there = [(url, answer[0]) for (url, _entry), answer in zip(named, answers, strict=True) if answer]
        plain = self.plain([record for _url, record in there])
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
        (members,) = self._look(
            lambda pipe: pipe.zrangebylex(key("failures"), *failure_range(code, after), 0, limit + 1)
        )
        following = failure_cursor(members[limit - 1]) if len(members) > limit else None
        ids = [member.rpartition("\0")[2] for member in members[:limit]]
        if not ids:
            return [], None
        texts, due, (seconds, micros) = self._look(
            lambda pipe: pipe.hmget(key("tries"), ids).zmscore(key("delayed"), ids).time()
        )
        at = seconds + micros / 1e6
        return [
            failed_item(url, as_dict(text), score, at) for url, text, score in zip(ids, texts, due, strict=True)
        ], following

    def failure_groups(self) -> list[dict[str, Any]]:
        """Return how many jobs are dead and delayed of each code, with the reason of one of them, most first."""
        groups: dict[str, dict[str, Any]] = {}
        (kinds,) = self._look(lambda pipe: pipe.hgetall(key("kinds")))
        for name, count in kinds.items():
            state, _mark, code = name.partition(":")
            groups.setdefault(code, {"code": code, "reason": "", "dead": 0, "delayed": 0})[state] = int(count)
        found = sorted(groups.values(), key=lambda group: (-group["dead"] - group["delayed"], group["code"]))
        found = found[:GROUPS_AT_MOST]
        samples = self._look(
            lambda pipe: [pipe.zrangebylex(key("failures"), *failure_range(group["code"], ""), 0, 1) for group in found]
        )
        ids = [members[0].rpartition("\0")[2] if members else "" for members in samples]
        (texts,) = self._look(lambda pipe: pipe.hmget(key("tries"), ids)) if ids else ([],)
        return [{**group, "reason": reason_of(as_dict(text))} for group, text in zip(found, texts, strict=True)]

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
            read: Callable[[str, int], list[_Found]] = getattr(self, f"_read_{section.name}")
            count = 100
            while batch := read(mark, count):
                yield from (
                    (f"{section.name} {where}", job if job and job["state"] == section.state else None)
                    for where, job in batch
                )
                if len(batch) < count:
                    break
                mark = batch[-1][0]
            mark = ""

    def entitled(self, wanted: Wanted, title: str, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return jobs whose titles begin so, in the order of their titles, and where to go on."""
        return _gather(chain(self._with_title(title, after), self._archived_title(title, after)), wanted, limit)

    def _archived_title(self, title: str, after: str) -> Iterator[_Found]:
        """Yield archived pages whose titles begin so; they come behind those whose titles Redis has."""
        folded, prefix, count = fold(title), folded_prefix(title), 100
        entry, _mark, last = after.removeprefix(_ARCHIVED).partition(" ") if after.startswith(_ARCHIVED) else ("",) * 3
        while found := self._archive.titled(prefix, (last, entry), count):
            counting = {record["entry"] for record in self._counting([record for _title, record in found])}
            for last_title, record in found:
                is_wanted = record["entry"] in counting and fold(record["title"]).startswith(folded)
                yield f"{_ARCHIVED}{record['entry']} {last_title}", self._archived(record) if is_wanted else None
            last, entry = found[-1][0], found[-1][1]["entry"]

    def _with_title(self, title: str, after: str) -> Iterator[_Found]:
        folded, prefix, count = fold(title), folded_prefix(title), 100
        if after.startswith(_ARCHIVED):
            return
        start = f"({failure_member(after)}" if after else f"[{prefix}"
        while True:
            members = self._members(start, f"[{prefix}\U0010ffff", count)
            urls = [member.rpartition("\0")[2] for member in members]
            for member, job in zip(members, self.jobs(urls), strict=True):
                # What is in the archive comes with the rest of it.
                matches = job is not None and "archived" not in job and fold(job["title"]).startswith(folded)
                yield failure_cursor(member), job if matches else None
            if len(members) < count:
                return
            start = f"({members[-1]}"

    def _members(self, start: str, stop: str, count: int) -> list[str]:
        (members,) = self._look(lambda pipe: pipe.zrangebylex(key("titles"), start, stop, 0, count))
        return list(members)

    # -------------------------------------------------------------------------------- the places

    def _read_leased(self, mark: str, count: int) -> list[_Found]:
        (urls,) = self._look(lambda pipe: pipe.zrange(key("leased"), 0, LEASES_AT_MOST - 1))
        urls = sorted(urls)
        urls = urls[bisect_right(urls, mark) :][:count]
        return list(zip(urls, self.jobs(urls), strict=True))

    def _read_suspect(self, mark: str, count: int) -> list[_Found]:
        return self._of_list("suspect", mark, count)

    def _read_ready(self, mark: str, count: int) -> list[_Found]:
        return self._of_list("ready", mark, count)

    def _of_list(self, name: str, mark: str, count: int) -> list[_Found]:
        """Return what follows in a list. Jobs leave its head meanwhile, so the last one is looked for further ahead.

        Where it has left, too, so have those before it: then rather some come twice than one never.
        """
        index, last = _place_in_list(mark)
        first = max(0, index - _WINDOW)
        (urls,) = self._look(lambda pipe: pipe.lrange(key(name), first, index + count - 1))
        start = next((place for place in range(min(index - first, len(urls)), 0, -1) if urls[place - 1] == last), 0)
        urls = urls[start : start + count]
        begin = first + start
        jobs = self._without_repeats(name, urls, begin)
        return [(f"{begin + offset + 1} {url}", job) for offset, (url, job) in enumerate(zip(urls, jobs, strict=True))]

    def _without_repeats(self, name: str, urls: Sequence[str], begin: int) -> list[dict[str, Any] | None]:
        """Return the jobs of a part of a list, None for an entry that does not count because its job was moved."""
        jobs = self.jobs(urls)
        if name != "ready" or not urls:
            return jobs
        stale, *_none = self._look(lambda pipe: pipe.hmget(key("stale"), urls))
        moved = [i for i, count in enumerate(stale) if count]
        if not moved:
            return jobs
        places = self._look(lambda pipe: [pipe.lpos(key("ready"), urls[i], maxlen=LOOKED_AT) for i in moved])
        for i, place in zip(moved, places, strict=True):
            if int(stale[i]) < 0 or (place is not None and place != begin + i):
                jobs[i] = None
        return jobs

    def _read_kept(self, mark: str, count: int) -> list[_Found]:
        return self._of_set("kept", mark, count)

    def _read_delayed(self, mark: str, count: int) -> list[_Found]:
        return self._of_set("delayed", mark, count)

    def _read_dead(self, mark: str, count: int) -> list[_Found]:
        return self._of_set("dead", mark, count, newest_first=True)

    def _of_set(self, name: str, mark: str, count: int, newest_first: bool = False) -> list[_Found]:
        """Return what follows in a sorted set: after the last one, or where that would be if it has left."""
        start = 0
        if mark:
            score, _mark, last = mark.partition(" ")
            _checked_number(score)
            beyond = (f"({score}", "+inf") if newest_first else ("-inf", f"({score}")
            rank, before, now_score, same = self._look(
                lambda pipe: (
                    pipe.zrevrank(key(name), last) if newest_first else pipe.zrank(key(name), last),
                    pipe.zcount(key(name), *beyond).zscore(key(name), last),
                    pipe.zrangebyscore(key(name), score, score, 0, LOOKED_AT),
                )
            )
            if rank is not None and now_score == float(score):
                start = rank + 1
            else:
                start = before + sum((url > last) == newest_first for url in same)
        (found,) = self._look(
            lambda pipe: pipe.zrange(key(name), start, start + count - 1, desc=newest_first, withscores=True)
        )
        jobs = self.jobs([url for url, _score in found])
        return [(f"{score:.0f} {url}", job) for (url, score), job in zip(found, jobs, strict=True)]

    def _read_done(self, mark: str, count: int) -> list[_Found]:
        if mark and not re.fullmatch(r"[0-9]{1,18}-[0-9]{1,18}", mark):
            raise ValueError(_('after: use the value of "next" of the answer before'))
        (found,) = self._look(
            lambda pipe: pipe.xrevrange(key("success"), f"({mark}" if mark else "+", "-", count=count)
        )
        return [(entry, self._done(entry, fields)) for entry, fields in self.plain(found)]

    def _read_archived(self, mark: str, count: int) -> list[_Found]:
        if mark and not re.fullmatch(r"[0-9]{1,18}-[0-9]{1,18}", mark):
            raise ValueError(_('after: use the value of "next" of the answer before'))
        records = self.still_done(mark, count, newest_first=True)
        return [(record["entry"], self._archived(record)) for record in records]


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


def _ask_for_end(pipe: Any, job: JobId) -> Any:
    """Ask whether a job was ever added, whether it has ended, and where its record is: three answers."""
    identity = identity_of(job)
    pipe.sismember(bucket("seen", identity), identity.member)
    pipe.sismember(ended_key(job), identity.member)
    return pipe.hget(record_key(job), str(job.cid))  # nothing where it is a container


def _entry_numbers(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


def _entry_id(recorded: str) -> str:
    return recorded if "-" in recorded else f"{recorded}-0"


def _place_in_list(mark: str) -> tuple[int, str]:
    if not mark:
        return 0, ""
    index, _mark, last = mark.partition(" ")
    return _checked_number(index), last


def _checked_number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ValueError(_('after: use the value of "next" of the answer before'))
    return int(text)
