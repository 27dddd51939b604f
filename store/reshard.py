"""Spreads a queue over another number of shards, while nobody works with it.

Everything is moved in small parts, first put where it belongs and then taken away, each so that it may be repeated:
whoever is killed in the middle begins again, and goes on. What is in order (lists, records) is collected beside the old
(``next:…``) and takes its place when all of it is there. Nothing is read as a whole but what is small for certain.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from parse_ import parse_job_id
from store.data import (
    BUCKETS,
    COMMON_KEYS,
    Identity,
    answer_key,
    as_dict,
    as_json,
    key,
    record_key,
    shard_of,
    shard_of_id,
)
from store.records import with_words, word_keys

PART = 500
BUCKETS_AT_ONCE = 100
COUNTED_AT_ONCE = 1000
HASHES = ("tries", "origin", "token", "stale", "ledger")
SETS = ("kept", "leased", "delayed", "dead", "watch", "failures", "titles", "forgotten", "ledgers")
LISTS = ("ready", "suspect", "titled")
BUCKET_KINDS = ("seen", "closed", "paged", "done", "record")
SUMMED = ("failures", "replayed", "forgotten")

Run = Callable[[str, Sequence[str], Sequence[str | int], int], Any]


class Reshard:
    """Moves what lies in ``old`` shards into ``new`` ones."""

    def __init__(self, connection: Any, run: Run, old: int, new: int) -> None:
        self._redis = connection
        self._run = run
        self._old, self._new = old, new

    def run(self) -> None:
        """Move everything; what an earlier call has moved is left where it is."""
        self._remember_sums()
        self._move_keys()
        self._move_expansions()
        for shard in range(self._old):
            self._move_listed(shard)
            self._spread_deaths(shard)
            for name in HASHES:
                self._move_hash(name, shard)
            for name in SETS:
                self._move_sorted(name, shard)
        for name in LISTS:
            self._in_place(name, lambda name=name: self._move_lists(name))  # type: ignore[misc]
        self._in_place("success", self._move_records)
        for shard in range(self._new):
            self._count(shard)
        self._mark_the_alone()
        self._clear()

    # -------------------------------------------------------------------------------- where things belong

    def _target(self, entry: str) -> int:
        """Return the shard of what names a job at its end, or is a cid."""
        if entry.isdecimal():
            return shard_of(Identity("c", int(entry), entry), self._new)
        return shard_of_id(entry.rpartition("\0")[2], self._new)

    def _grouped(self, entries: Iterable[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for entry in entries:
            found.setdefault(self._target(entry), []).append(entry)
        return found

    def _parts(self, pairs: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
        part: dict[str, Any] = {}
        for name, value in pairs:
            part[name] = value
            if len(part) == PART:
                yield part
                part = {}
        if part:
            yield part

    # -------------------------------------------------------------------------------- what has no order

    def _move_keys(self) -> None:
        """Move whole buckets, and answers, all of which are found by their names."""
        moving: dict[tuple[int, int, bool], list[str]] = {}
        for where in self._redis.scan_iter(match="{bili:*}:*", count=PART):
            tag, _mark, name = where.partition("}:")
            source, (kind, *place) = int(tag.removeprefix("{bili:")), name.split(":")
            if kind == "answer":
                self._move_answer(where, source)
            elif kind in BUCKET_KINDS:
                target = shard_of(Identity(place[0] if len(place) > 1 else "c", int(place[-1]), ""), self._new)
                if target != source:
                    way = source, target, kind == "record"
                    names = moving.setdefault(way, [])
                    names.append(name)
                    if len(names) == BUCKETS_AT_ONCE:
                        self._move_some(moving.pop(way), *way)
        for way, names in moving.items():
            self._move_some(names, *way)

    def _move_some(self, names: Sequence[str], source: int, target: int, are_hashes: bool) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                where = key(name, source)
                pipe.hgetall(where) if are_hashes else pipe.smembers(where)
            found = {name: value for name, value in zip(names, pipe.execute(), strict=True) if value}
        if not found:
            return
        with self._redis.pipeline(transaction=False) as pipe:
            for name, value in found.items():
                where = key(name, target)
                pipe.hset(where, mapping=value) if are_hashes else pipe.sadd(where, *value)
            pipe.execute()
        with self._redis.pipeline(transaction=False) as pipe:
            for name in found:
                pipe.delete(key(name, source))
            pipe.execute()

    def _move_hash(self, name: str, source: int) -> None:
        where = key(name, source)
        for part in self._parts(self._redis.hscan_iter(where, count=PART)):
            for target, ids in self._grouped(part).items():
                if target != source:
                    self._redis.hset(key(name, target), mapping={url: part[url] for url in ids})
                    self._redis.hdel(where, *ids)

    def _move_sorted(self, name: str, source: int) -> None:
        where = key(name, source)
        for part in self._parts(self._redis.zscan_iter(where, count=PART)):
            for target, members in self._grouped(part).items():
                if target != source:
                    self._redis.zadd(key(name, target), {member: part[member] for member in members})
                    self._redis.zrem(where, *members)

    def _move_listed(self, source: int) -> None:
        """Move what a pass through a source has met so far; before the ledger, which names the source."""
        for url, _text in self._redis.hscan_iter(key("ledger", source), count=PART):
            target = self._target(url)
            where = key(f"listed:{url}", source)
            if target != source and (left_ms := self._redis.pttl(where)) > 0:
                for part in self._parts((member, "") for member in self._redis.sscan_iter(where, count=PART)):
                    self._redis.sadd(key(f"listed:{url}", target), *part)
                self._redis.pexpire(key(f"listed:{url}", target), left_ms)
                self._redis.delete(where)

    def _move_expansions(self) -> None:
        """Move what an expansion that was broken off has added, so that it is counted when it is repeated."""
        for home in range(max(self._old, self._new)):
            for _url, text in self._redis.hscan_iter(key("tries", home), count=PART):
                if name := as_dict(text).get("expansion"):
                    for source in range(self._old):
                        self._move_marks(f"expansion:{name}", source)

    def _move_marks(self, name: str, source: int) -> None:
        for target, jobs in self._grouped(self._redis.smembers(key(name, source))).items():
            if target != source:
                self._redis.sadd(key(name, target), *jobs)
                self._redis.pexpire(key(name, target), max(1, self._redis.pttl(key(name, source))))
                self._redis.srem(key(name, source), *jobs)

    def _move_answer(self, where: str, source: int) -> None:
        """Move the answer to a call about one job, for a worker that asks again when it is back."""
        answer = str(self._redis.get(where) or "")
        verb, _mark, url = answer.partition("\n")[0].partition(" ")
        if verb in ("ack", "nack", "release", "expand", "take", "claim"):
            target, left_ms = self._target(url), self._redis.pttl(where)
            if target != source and left_ms > 0:
                self._redis.set(answer_key(where.partition(":answer:")[2], target), answer, px=left_ms)
                self._redis.delete(where)

    def _spread_deaths(self, source: int) -> None:
        for part in self._parts(self._redis.zscan_iter(key("deaths", source), count=PART)):
            for target in range(self._new):
                self._redis.zadd(key("deaths", target), part, gt=True)

    # -------------------------------------------------------------------------------- what is in order

    def _in_place(self, name: str, move: Callable[[], None]) -> None:
        """Collect something in order beside the old, and when all is there, put it in its place."""
        progress = key("resharded")
        if not self._redis.hexists(progress, f"{name} is collected"):
            move()
            self._redis.hset(progress, f"{name} is collected", 1)
        for shard in range(self._new):
            if self._redis.exists(key(f"next:{name}", shard)):
                self._redis.rename(key(f"next:{name}", shard), key(name, shard))

    def _move_lists(self, name: str) -> None:
        for source in range(self._old):
            while entries := self._redis.lrange(key(name, source), 0, PART - 1):
                progress = key("resharded", source)
                number = int(self._redis.hget(progress, name) or 0) + 1
                for target, part in self._grouped(entries).items():
                    keys = [key(f"next:{name}", target), key("resharded", target)]
                    self._run("moved_in", keys, [f"{name} of {source}", number, *part], target)
                self._run("moved_out", [key(name, source), progress], [name, number, len(entries)], source)

    def _move_records(self) -> None:
        """Merge the streams of all shards by their entries; of equal ones the second gets the next number."""
        marks = [str(self._redis.hget(key("resharded", shard), "success") or "") for shard in range(self._new)]
        taken = [_mark(mark) for mark in marks]
        last = [_number(mark.split()[2]) if mark else (0, 0) for mark in marks]
        entries = heapq.merge(*(self._records_of(source) for source in range(self._old)))
        while part := list(itertools.islice(entries, PART)):
            for target in range(self._new):
                self._take_records(part, target, taken, last)
            for source in range(self._old):
                beyond = [number for number, place, _url, _fields in part if place == source]
                if beyond:
                    at_ms, number = beyond[-1]
                    self._redis.xtrim(key("success", source), minid=f"{at_ms}-{number + 1}", approximate=False)
        for source in range(self._old):
            self._redis.delete(key("success", source))

    def _records_of(self, source: int) -> Iterator[tuple[tuple[int, int], int, str, dict[str, str]]]:
        start = "-"
        while found := self._redis.xrange(key("success", source), start, "+", count=PART):
            for entry, fields in self._with_words(source, found):
                yield _number(entry), source, fields["url"], fields
            start = f"({found[-1][0]}"

    def _with_words(
        self, source: int, records: Sequence[tuple[str, dict[str, str]]]
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield records with their words in place of the numbers, for the words of another shard."""
        names = word_keys(fields for _entry, fields in records)
        texts = self._redis.hmget(key("words", source), names) if names else []
        words = dict(zip(names, texts, strict=True))
        for entry, fields in records:
            yield entry, with_words(fields, words)

    def _take_records(
        self,
        part: Sequence[tuple[tuple[int, int], int, str, dict[str, str]]],
        target: int,
        taken: list[tuple[tuple[int, int], int]],
        last: list[tuple[int, int]],
    ) -> None:
        keys = [key("next:success", target), key("resharded", target)]
        args: list[str | int] = []
        for number, source, url, fields in part:
            page = parse_job_id(url)
            where = record_key(page, self._new)
            if (number, source) <= taken[target] or where != key(f"record:{page.cid % BUCKETS}", target):
                continue
            taken[target] = number, source
            last[target] = number if number > last[target] else (last[target][0], last[target][1] + 1)
            keys.append(where)
            flat = [word for pair in fields.items() for word in pair]
            args += ["{}-{}".format(*last[target]), page.cid, len(flat), *flat]
        if args:
            (at_ms, count), source = taken[target]
            mark = "{}-{} {} {}-{}".format(at_ms, count, source, *last[target])
            self._run("moved_records", keys, [mark, *args], target)

    # -------------------------------------------------------------------------------- what is counted

    def _remember_sums(self) -> None:
        """Write down, once, what cannot be counted again: sums, and who is alone with a suspect."""
        sums: Counter[str] = Counter()
        archives: Counter[str] = Counter()
        latest = 0
        alone: dict[str, str] = {}
        for shard in range(self._old):
            totals = self._redis.hgetall(key("totals", shard))
            sums.update({name: int(totals.get(name, 0)) for name in SUMMED})
            latest = max(latest, int(totals.get("replayed_at", 0)))
            found = self._redis.hgetall(key("alone", shard))
            archives.update({place: int(count) for place, count in self._redis.hgetall(key("archives", shard)).items()})
            alone |= {worker: url for worker, url in found.items() if not url.startswith("~")}
        kept = {"totals": {**sums, "replayed_at": latest}, "alone": alone, "archives": archives}
        self._redis.hsetnx(key("resharded"), "sums", as_json(kept))

    def _sums(self) -> dict[str, Any]:
        return as_dict(self._redis.hget(key("resharded"), "sums"))

    def _count(self, shard: int) -> None:
        totals = {"done": self._count_done(shard), "stale": 0}
        for _url, count in self._redis.hscan_iter(key("stale", shard), count=PART):
            totals["stale"] += abs(int(count))
        archives = self._sums().get("archives", {}) if shard == 0 else {}
        if shard == 0:
            totals |= {name: int(value) for name, value in self._sums()["totals"].items()} | {"adopted": 1}
        kinds: Counter[str] = Counter()
        for part in self._parts(self._redis.zscan_iter(key("failures", shard), count=PART)):
            ids = [member.rpartition("\0")[2] for member in part]
            died_at = self._redis.zmscore(key("dead", shard), ids)
            for member, score in zip(part, died_at, strict=True):
                kinds[f"{'delayed' if score is None else 'dead'}:{member.rpartition(chr(0))[0]}"] += 1
        holds: Counter[str] = Counter()
        for part in self._parts(self._redis.zscan_iter(key("leased", shard), count=PART)):
            for text in self._redis.hmget(key("tries", shard), list(part)):
                holds[as_dict(text).get("worker", "")] += 1
        for name, counts in (("totals", totals), ("kinds", kinds), ("holds", holds), ("archives", archives)):
            self._replace(key(name, shard), {one: count for one, count in counts.items() if count})

    def _count_done(self, shard: int) -> int:
        numbers = [n for n in range(BUCKETS) if shard_of(Identity("c", n, ""), self._new) == shard]
        done = 0
        for first in range(0, len(numbers), COUNTED_AT_ONCE):
            with self._redis.pipeline(transaction=False) as pipe:
                for number in numbers[first : first + COUNTED_AT_ONCE]:
                    pipe.scard(key(f"done:{number}", shard))
                done += sum(pipe.execute())
        return done

    def _replace(self, where: str, values: dict[str, Any]) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(where)
            if values:
                pipe.hset(where, mapping=values)
            pipe.execute()

    def _mark_the_alone(self) -> None:
        """Bar who holds a suspect from all other shards, as bar.lua does."""
        marks: list[dict[str, str]] = [{} for _shard in range(self._new)]
        for worker, url in self._sums()["alone"].items():
            target = self._target(url)
            for shard, mark in enumerate(marks):
                mark[worker] = url if shard == target else f"~{target}~0~"
        for shard, mark in enumerate(marks):
            self._replace(key("alone", shard), mark)

    def _clear(self) -> None:
        """Remove what no shard has any more, and say that it is done."""
        for shard in range(max(self._old, self._new)):
            self._redis.delete(key("draining", shard))
            if shard >= self._new:
                self._redis.delete(*(key(name, shard) for name in (*COMMON_KEYS, "ended", "orders", "archives")))
            if shard:
                self._redis.delete(key("resharded", shard))
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(key("resharded")).set(key("shards"), self._new).execute()


def _number(entry: str) -> tuple[int, int]:
    at_ms, _mark, number = entry.partition("-")
    return int(at_ms), int(number)


def _mark(text: str) -> tuple[tuple[int, int], int]:
    """Return up to which entry of which shard records have come; from the beginning where there is none."""
    if not text:
        return (-1, 0), 0
    entry, source, _last = text.split()
    return _number(entry), int(source)
