"""The whole state of a queue as JSON lines, to keep or to move: ``add_url.py --export`` and ``--import``.

docs/backup.md has the format. Both ways run in constant memory, a bounded piece at a time. A queue that is at rest is
told exactly. In one that is at work jobs move while they are read: each place is read again after the others, so that
one that moved is told twice rather than not at all, and the last line says that it was so. What is known already when
it comes is known, and a page that is done is done: so an import may be repeated, and goes into a queue that has its
own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import shapes
from config import category_problem
from errors import UsageError
from i18n import _
from model import JobId
from parse_ import aid_to_bvid, parse_job_id
from store.data import (
    LOOKED_AT,
    Identity,
    Success,
    as_dict,
    as_json,
    bucket,
    done_key,
    ended_key,
    folded_prefix,
    identity_of,
    key,
    record_key,
    record_mark,
    record_place,
    shard_of,
)
from store.records import path_pattern, stored_pattern

FORMAT, VERSION = "bili-queue", 1
BATCH = 200
"""So many jobs or records are written by one script."""
IDS_A_LINE = 500
_BUCKETS_AT_ONCE = 256
_WINDOW = 500
"""So many jobs may come to the head of the list between two looks, and none is passed over."""
_OVERTAKERS = 10_000
_RECORD = ("url", "title", "path", "bytes", "seconds", "worker", "streams", "errors", "category", "source", "stored")
_TOTALS = ("failures", "forgotten", "replayed", "replayed_at")
"""What no line adds up to; the number of pages that are done follows from them."""
_PLACES = ("leased", "suspect", "kept", "delayed", "dead")

Line = dict[str, Any]


class Queue(Protocol):
    """A queue, as far as it is told and brought back (``redisConnect.Queue``)."""

    @property
    def shards(self) -> int:
        """Over how many shards it is spread."""

    def look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what is put into a pipeline, whose keys are all of one shard."""

    def names(self, pattern: str) -> set[str]:
        """Return the names of the queue's keys that are like this."""

    def run(self, script: str, keys: Sequence[str], args: Iterable[str | int], shard: int = 0) -> Any:
        """Run a script of ``lua/``."""

    def records(self, after: str, limit: int) -> list[Success]:
        """Return records of finished pages, those behind a mark, in their order."""

    def archived_after(self, mark: str, limit: int) -> list[dict[str, Any]]:
        """Return records that lie in files here."""

    def archived_pages(self, cids: Sequence[int]) -> set[int]:
        """Return which of these pages have their records in files here."""


# ------------------------------------------------------------------------------------------ out


def export(queue: Queue) -> Iterator[Line]:
    """Yield the lines of a queue, the first with the format, the last with how many there are of each kind."""
    counts: dict[str, int] = {}
    at, before = _pulse(queue)
    yield {"format": FORMAT, "version": VERSION, "time": at}
    for line in _all_lines(queue):
        counts[line["kind"]] = counts.get(line["kind"], 0) + 1
        yield line
    moved = _pulse(queue)[1] != before
    for line in _open_containers(queue) if moved else ():
        counts[line["kind"]] = counts.get(line["kind"], 0) + 1
        yield line
    yield {"kind": "end", "lines": counts, "moved": moved}


def _pulse(queue: Queue) -> tuple[int, list[Any]]:
    """Return the time, and numbers of which one is another after whatever happens to a job."""
    found = [
        queue.look(
            lambda pipe, shard=shard: (  # type: ignore[misc]
                pipe.time().get(key("fence", shard)).hgetall(key("totals", shard)).llen(key("ready", shard)),
                [
                    pipe.llen(key(name, shard)) if name == "suspect" else pipe.zcard(key(name, shard))
                    for name in _PLACES
                ],
            )
        )
        for shard in range(queue.shards)
    ]
    return found[0][0][0], [numbers for _time, *numbers in found]


def _all_lines(queue: Queue) -> Iterator[Line]:
    before = _pulse(queue)[1]
    for name in ("delayed", "dead", "suspect"):
        yield from _each(queue, _jobs_of_set, name)
    yield from _each(queue, _ready)
    for name in ("kept", "leased"):  # an import puts what comes later before what waits
        yield from _each(queue, _jobs_of_set, name)
    if _pulse(queue)[1] != before:  # what was on its way between two places is in one of them now
        yield from _each(queue, _ready, _OVERTAKERS)
        for name in _PLACES:
            yield from _each(queue, _jobs_of_set, name)
    yield from _each(queue, _ledgers)
    yield from _closed(queue)
    yield from _records(queue)
    yield from _bare_pages(queue)
    yield from _each(queue, _forgotten)
    yield from _totals(queue)


def _each(queue: Queue, read: Callable[..., Iterator[Line]], *wanted: Any) -> Iterator[Line]:
    """Yield what each shard has, one after the other."""
    for shard in range(queue.shards):
        yield from read(queue, shard, *wanted)


def _totals(queue: Queue) -> Iterator[Line]:
    told: Line = {}
    for shard in range(queue.shards):
        (totals,) = queue.look(lambda pipe, shard=shard: pipe.hmget(key("totals", shard), _TOTALS))  # type: ignore[misc]
        for name, value in zip(_TOTALS, totals, strict=True):
            if value:
                before = told.get(name, 0)
                told[name] = max(before, int(value)) if name == "replayed_at" else before + int(value)
    if told:
        yield {"kind": "totals", **told}


def _jobs_of_set(queue: Queue, shard: int, name: str) -> Iterator[Line]:
    """Yield the jobs of a place other than the list of those that are ready, in their order."""
    start = 0
    while True:
        if name == "suspect":
            (urls,) = queue.look(lambda pipe, start=start: pipe.lrange(key(name, shard), start, start + BATCH - 1))  # type: ignore[misc]
            found = [(url, None) for url in urls]
        else:
            (found,) = queue.look(
                lambda pipe, start=start: pipe.zrange(key(name, shard), start, start + BATCH - 1, withscores=True)  # type: ignore[misc]
            )
        # A lease is the engine's own; another one gives it anew.
        state = {"leased": "ready", "kept": "ready", "suspect": "ready"}.get(name, name)
        yield from _job_lines(queue, shard, [url for url, _at in found], state, [at for _url, at in found])
        if len(found) < BATCH:
            return
        start += BATCH


def _ready(queue: Queue, shard: int, limit: int | None = None) -> Iterator[Line]:
    """Yield the jobs that wait, the last one first: what leaves the head meanwhile hides none of the others."""
    (length,) = queue.look(lambda pipe: pipe.llen(key("ready", shard)))
    stop = length if limit is None else min(limit, length)
    last: frozenset[str] = frozenset()
    while stop > 0:
        start = max(0, stop - BATCH)
        # Beyond the end of this piece stand those that were shifted by what came to the head since.
        (urls,) = queue.look(lambda pipe, a=start, b=stop: pipe.lrange(key("ready", shard), a, b + _WINDOW - 1))  # type: ignore[misc]
        fresh = [(start + place, url) for place, url in enumerate(urls) if url not in last]
        counting = _counting(queue, shard, fresh)[::-1]
        yield from _job_lines(queue, shard, counting, "ready", [None] * len(counting))
        last = frozenset(counting) | last.intersection(urls)
        stop = start


def _counting(queue: Queue, shard: int, entries: Sequence[tuple[int, str]]) -> list[str]:
    """Return the jobs whose entries in the list count: not those of jobs that were cancelled, or moved to the head."""
    if not entries:
        return []
    (stale,) = queue.look(lambda pipe: pipe.hmget(key("stale", shard), [url for _place, url in entries]))
    moved = [url for (_place, url), count in zip(entries, stale, strict=True) if count and int(count) > 0]
    heads = (
        queue.look(lambda pipe: [pipe.lpos(key("ready", shard), url, maxlen=LOOKED_AT) for url in moved])
        if moved
        else []
    )
    head_of = dict(zip(moved, heads, strict=True))
    return [
        url
        for (place, url), count in zip(entries, stale, strict=True)
        if not count or (int(count) > 0 and head_of.get(url) in (None, place))
    ]


def _job_lines(
    queue: Queue, shard: int, urls: Sequence[str], state: str, scores: Sequence[float | None]
) -> Iterator[Line]:
    if not urls:
        return
    tries, origins = queue.look(lambda pipe: pipe.hmget(key("tries", shard), urls).hmget(key("origin", shard), urls))
    for url, score, text, origin in zip(urls, scores, tries, origins, strict=True):
        line: Line = {"kind": "job", "url": url, "state": state}
        if state in ("delayed", "dead") and score is not None:
            line["at"] = round(score)
        line |= {name: as_dict(value) for name, value in (("tries", text), ("origin", origin)) if value}
        yield line


def _ask_for_ledgers(shard: int, ids: Sequence[str], pipe: Any) -> None:
    pipe.hmget(key("ledger", shard), ids).zmscore(key("watch", shard), ids)


def _ledgers(queue: Queue, shard: int) -> Iterator[Line]:
    after = "-"
    while True:
        (ids,) = queue.look(lambda pipe, after=after: pipe.zrangebylex(key("ledgers", shard), after, "+", 0, BATCH))  # type: ignore[misc]
        if not ids:
            return
        texts, due = queue.look(partial(_ask_for_ledgers, shard, ids))
        for url, text, at in zip(ids, texts, due, strict=True):
            if text:
                line: Line = {"kind": "ledger", "url": url, "ledger": as_dict(text)}
                if at is not None:
                    line["due"] = round(at)
                if listed := sorted(queue.look(lambda pipe, url=url: pipe.smembers(key(f"listed:{url}", shard)))[0]):  # type: ignore[misc]
                    line["listed"] = listed
                yield line
        after = f"({ids[-1]}"


def _in_buckets(queue: Queue, name: str, namespace: str, ask: Callable[[Any, int, int], object]) -> Iterator[list[Any]]:
    """Yield the answers to what is asked of each bucket of that name and its shard, a bounded number of them at a time.

    Only of those that exist: a small queue has a few of the half a million that there may be.
    """
    numbers = sorted({int(where.rpartition(":")[2]) for where in queue.names(f"{name}:*")})
    for start in range(0, len(numbers), _BUCKETS_AT_ONCE):
        parts: dict[int, list[int]] = {}
        for number in numbers[start : start + _BUCKETS_AT_ONCE]:
            parts.setdefault(shard_of(Identity(namespace, number, ""), queue.shards), []).append(number)
        for shard, here in parts.items():
            yield queue.look(partial(_ask_each, ask, shard, here))


def _ask_each(ask: Callable[[Any, int, int], object], shard: int, numbers: Sequence[int], pipe: Any) -> None:
    for number in numbers:
        ask(pipe, number, shard)


def _ask_for_closed(namespace: str, pipe: Any, number: int, shard: int) -> None:
    for kind in ("closed", "paged"):
        pipe.smembers(key(f"{kind}:{namespace}:{number}", shard))


def _ask_for_open(namespace: str, pipe: Any, number: int, shard: int) -> None:
    pipe.sdiff(*(key(f"{kind}:{namespace}:{number}", shard) for kind in ("seen", "closed")))


def container_url(namespace: str, member: str) -> str:
    """Return the id of the container that is remembered so."""
    if namespace == "s":
        return member
    if namespace == "e":
        return f"ep{member}"
    aid, _colon, number = member.partition(":")
    return str(JobId(bvid=aid_to_bvid(int(aid)), number=int(number or 0)))


def _closed(queue: Queue) -> Iterator[Line]:
    """Yield the containers that were read; ``paged`` are those of them that have several pages."""
    for namespace in "vpes":
        for answers in _in_buckets(queue, f"closed:{namespace}", namespace, partial(_ask_for_closed, namespace)):
            paged = {member for members in answers[1::2] for member in members}
            closed = [member for members in answers[::2] for member in sorted(members)]
            for start in range(0, len(closed), IDS_A_LINE):
                part = closed[start : start + IDS_A_LINE]
                line: Line = {"kind": "closed", "urls": [container_url(namespace, member) for member in part]}
                if those := [container_url(namespace, member) for member in part if member in paged]:
                    line["paged"] = those
                yield line


def _open_containers(queue: Queue) -> Iterator[Line]:
    """Yield the containers that are not closed: whatever is among them was added, wherever it was meanwhile."""
    for namespace in "vpes":
        for answers in _in_buckets(queue, f"seen:{namespace}", namespace, partial(_ask_for_open, namespace)):
            members = [member for part in answers for member in sorted(part)]
            for start in range(0, len(members), IDS_A_LINE):
                urls = [container_url(namespace, member) for member in members[start : start + IDS_A_LINE]]
                yield {"kind": "open", "urls": urls}


def _records(queue: Queue) -> Iterator[Line]:
    """Yield the records of finished pages in their order, first those that lie in files here."""
    after = ""
    while archived := queue.archived_after(after, BATCH):
        for record in archived:
            errors = [
                [round(one["time"] * 1000), one["worker"], one["attempt"], one["code"], one["reason"]]
                for one in record.get("errors", ())
            ]
            fields = {**record, "errors": as_json(errors) if errors else ""}
            yield _record_line(record["entry"], fields)
        after = record_mark(archived[-1]["entry"], archived[-1]["url"])
    after, last = "", (0, 0)
    while entries := queue.records(after, BATCH):
        for entry, _shard, fields in entries:
            here = record_place(entry, fields["url"])[:2]
            last = here if here > last else (last[0], last[1] + 1)  # two shards may have the same one
            yield _record_line("{}-{}".format(*last), fields)
        after = record_mark(entries[-1][0], entries[-1][2]["url"])


def _record_line(entry: str, fields: Mapping[str, Any]) -> Line:
    told = {name: fields[name] for name in _RECORD if fields.get(name)}
    told |= {"bytes": int(told.get("bytes", 0)), "seconds": float(told.get("seconds", 0))}
    if "at" in fields:
        told["at"] = int(fields["at"])
    return {"kind": "record", "entry": entry, **told}


def _bare_pages(queue: Queue) -> Iterator[Line]:
    """Yield the pages that are done and have no record that could be had here."""
    cids: list[int] = []
    for answers in _in_buckets(
        queue,
        "done",
        "c",
        lambda pipe, number, shard: pipe.smembers(key(f"done:{number}", shard)).hkeys(key(f"record:{number}", shard)),
    ):
        bare = [
            int(cid)
            for members, recorded in zip(answers[::2], answers[1::2], strict=True)
            for cid in sorted(members - set(recorded))
        ]
        elsewhere = queue.archived_pages(bare)
        cids += [cid for cid in bare if cid not in elsewhere]
        while len(cids) >= IDS_A_LINE:
            yield {"kind": "done", "cids": cids[:IDS_A_LINE]}
            del cids[:IDS_A_LINE]
    if cids:
        yield {"kind": "done", "cids": cids}


def _forgotten(queue: Queue, shard: int) -> Iterator[Line]:
    start = 0
    while True:
        (found,) = queue.look(
            lambda pipe, start=start: pipe.zrange(
                key("forgotten", shard), start, start + IDS_A_LINE - 1, withscores=True
            )  # type: ignore[misc]
        )
        if not found:
            return
        yield {"kind": "forgotten", "pages": [[int(cid), round(at)] for cid, at in found]}
        start += IDS_A_LINE


# ------------------------------------------------------------------------------------------ in


@dataclass(slots=True)
class Restored:
    """What became of an import; ``str`` is the line that scripts read, English in any language."""

    added: int = 0
    known: int = 0
    is_whole: bool = False
    """The last line was there."""
    moved: bool = False
    """The queue was at work while it was exported."""
    wrong: list[str] = field(default_factory=list)
    """Lines that could not be read, with their numbers; the first hundred."""
    wrong_count: int = 0

    def __str__(self) -> str:
        return f"imported {self.added}, known {self.known}, rejected {self.wrong_count}"


def restore(queue: Queue, lines: Iterable[bytes], restored: Restored) -> None:
    """Bring the lines of an export into a queue; ``restored`` has what was done also when this is interrupted."""
    pending = _Pending(queue, restored)
    is_first = True
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if is_first:
                _check_first(line)
            else:
                pending.take(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if is_first:
                raise UsageError(_("this is no export of a queue: its first line says nothing of the kind")) from None
            restored.wrong_count += 1
            if len(restored.wrong) < 100:
                restored.wrong.append(_("line {number}: {problem}").format(number=number, problem=str(error)[:200]))
        is_first = False
    pending.flush()


def _check_first(line: Any) -> None:
    if line["format"] != FORMAT:
        raise ValueError(line["format"])
    if type(line["version"]) is not int or line["version"] > VERSION:
        sentence = _("this export has version {version}, and this program knows versions up to {known}")
        raise UsageError(sentence.format(version=line["version"], known=VERSION))


def _category(value: Any) -> str:
    text: str = _TEXT(value)
    if text and (problem := category_problem(text)):
        raise ValueError(problem)
    return text


_TIMES, _TEXT = shapes.number(0, 2**53), shapes.line(4096)
_TRIES = shapes.record(
    {"attempts": _TIMES, "deaths": _TIMES},
    **dict.fromkeys(("environment", "waits", "bytes", "first_death", "time"), _TIMES),
    **dict.fromkeys(("title", "code", "reason", "worker", "instance", "expansion"), _TEXT),
    died=shapes.list_of(_TEXT, 1000),
    errors=shapes.list_of(shapes.list_of(lambda value: value, 10), 1000),
)
_ORIGIN = shapes.record({}, category=_category, source=_TEXT, wishes=shapes.record({}))
"""What scripts and workers make something of: one job that has it otherwise would stop all that are leased with it."""


class _Pending:
    """Lines of one kind that wait for their batch to fill; the kinds keep their order."""

    def __init__(self, queue: Queue, restored: Restored) -> None:
        self._queue = queue
        self._restored = restored
        self._kind = ""
        self._shards = queue.shards
        self._parts: dict[int, tuple[list[str], list[str | int]]] = {}
        """Keys and arguments for each shard."""
        self._counts: dict[int, int] = {}
        self._takes: dict[str, Callable[[Line], None]] = {
            "job": self._job,
            "ledger": self._ledger,
            "closed": self._closed,
            "open": self._open,
            "record": self._record,
            "done": self._done,
            "forgotten": self._forgotten,
            "totals": self._totals,
            "end": self._end,
        }

    def take(self, line: Line) -> None:
        """Take a line; ValueError and the like for one that is none."""
        take = self._takes.get(line["kind"])
        if take is None:
            raise ValueError(_("{kind} is no kind of line").format(kind=repr(line["kind"])))
        take(line)

    def flush(self) -> None:
        """Write what waits."""
        for shard in list(self._parts):
            self._write(shard)

    def _write(self, shard: int) -> None:
        keys, args = self._parts.pop(shard)
        del self._counts[shard]
        added, known = self._queue.run("restore", keys, [self._kind, *args], shard)
        self._restored.added += int(added)
        self._restored.known += int(known)

    def _put(self, kind: str, identity: Identity, keys: Sequence[str], args: Sequence[str | int]) -> None:
        if kind != self._kind:
            self.flush()
            self._kind = kind
        shard = shard_of(identity, self._shards)
        its_keys, its_args = self._parts.setdefault(shard, ([], []))
        its_keys += keys
        its_args += args
        self._counts[shard] = self._counts.get(shard, 0) + 1
        if self._counts[shard] == BATCH:
            self._write(shard)

    def _bucket(self, kind: str, identity: Identity) -> str:
        return bucket(kind, identity, self._shards)

    def _job(self, line: Line) -> None:
        job = parse_job_id(line["url"])
        state, tries, origin = line["state"], dict(line.get("tries", {})), dict(line.get("origin", {}))
        if tries:
            _TRIES(tries)
        _ORIGIN(origin)
        if state not in ("ready", "delayed", "dead"):
            raise ValueError(_("{state} is no state of a job").format(state=repr(state)))
        if title := tries.get("title"):
            tries["folded"] = folded_prefix(str(title))
        args: list[str | int] = [line["url"], identity_of(job).member, state, int(line.get("at", 0))]
        args += [as_json(value) if value else "" for value in (tries, origin)]
        keys = [self._bucket("seen", identity_of(job)), ended_key(job, self._shards)]
        self._put("job", identity_of(job), keys, args)

    def _ledger(self, line: Line) -> None:
        source = parse_job_id(line["url"])
        url, identity = str(source), identity_of(source)
        listed = [str(parse_job_id(one)) for one in line.get("listed", ())]
        args: list[str | int] = [url, as_json(dict(line["ledger"])), int(line.get("due", 0)), len(listed), *listed]
        self.flush()  # it may be long
        self._put("ledger", identity, [key(f"listed:{url}", shard_of(identity, self._shards))], args)
        self.flush()

    def _closed(self, line: Line) -> None:
        paged = set(line.get("paged", ()))
        for url in line["urls"]:
            identity = identity_of(_container(url))
            keys = [self._bucket(kind, identity) for kind in ("seen", "closed", "paged")]
            self._put("closed", identity, keys, [identity.member, 1 if url in paged else ""])

    def _open(self, line: Line) -> None:
        for url in line["urls"]:
            self._job({"url": str(_container(url)), "state": "ready"})

    def _record(self, line: Line) -> None:
        url = line["url"]
        page = parse_job_id(url)
        if not page.is_page:
            raise ValueError(_("{id} is a video, not a page of one").format(id=url))
        title, path = str(line.get("title", "")), str(line.get("path", ""))
        stored = stored_pattern(str(line.get("stored", "")), path, url, title)
        args: list[str | int] = [url, str(page.cid), line["entry"], int(line.get("at") or line["entry"].split("-")[0])]
        args += [title, folded_prefix(title), path_pattern(path, url, title), int(line["bytes"])]
        args += [f"{float(line['seconds']):.1f}"]
        args += [str(line.get(name, "")) for name in ("streams", "worker", "errors", "category", "source")]
        keys = [*self._page_keys(page), record_key(page, self._shards)]
        self._put("record", identity_of(page), keys, [*args, stored])

    def _page_keys(self, page: JobId) -> list[str]:
        return [self._bucket("seen", identity_of(page)), done_key(page, self._shards)]

    def _done(self, line: Line) -> None:
        for cid in line["cids"]:
            page = JobId(episode_id=1, cid=int(cid))  # a page is its cid, whatever video it is of
            self._put("done", identity_of(page), self._page_keys(page), [page.cid])

    def _forgotten(self, line: Line) -> None:
        for cid, at in line["pages"]:
            self._put("forgotten", Identity("c", int(cid), ""), [], [int(cid), int(at)])

    def _totals(self, line: Line) -> None:
        for name in _TOTALS:
            if name in line:
                self._write_total(name, int(line[name]))

    def _write_total(self, name: str, number: int) -> None:
        """Keep a sum in the first shard: it is summed over all of them."""
        self.flush()
        added, known = self._queue.run("restore", [], ["totals", name, number])
        self._restored.added += int(added)
        self._restored.known += int(known)

    def _end(self, line: Line) -> None:
        self._restored.is_whole = True
        self._restored.moved = bool(line.get("moved"))


def _container(url: str) -> JobId:
    job = parse_job_id(url)
    if job.is_page:
        raise ValueError(_("{id} is a page, not a video or an episode").format(id=url))
    return job
