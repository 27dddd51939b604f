"""What must be true of the queue at any moment, read from its keys alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parse_ import parse_job_id
from store.data import COMMON_KEYS, key
from tests.simulation.engine import Wire
from tests.structure import waiting

DUMP = """
local names, out = {}, {}
for i = 2, #ARGV do names[ARGV[i]] = KEYS[i - 1] end
for _, name in ipairs({'ready', 'suspect'}) do out[name] = redis.call('LRANGE', names[name], 0, -1) end
for _, name in ipairs({'kept', 'leased', 'delayed', 'dead', 'failures'}) do
  out[name] = redis.call('ZRANGE', names[name], 0, -1, 'WITHSCORES')
end
for _, name in ipairs({'token', 'tries', 'origin', 'holds', 'alone', 'totals', 'stale', 'kinds'}) do
  out[name] = redis.call('HGETALL', names[name])
end
out.success = {}
for i, entry in ipairs(redis.call('XRANGE', names.success, '-', '+')) do out.success[i] = entry[2][2] end
local base = #ARGV - 1
for i, name in ipairs({'seen', 'closed', 'seen_pages', 'done_pages'}) do out[name] = {} end
for _, kind in ipairs({'seen', 'closed'}) do
  for _, namespace in ipairs({'v', 'p', 'e'}) do
    base = base + 1
    for _, member in ipairs(redis.call('SMEMBERS', KEYS[base])) do
      table.insert(out[kind], namespace .. member)
    end
  end
end
out.seen_pages, out.done_pages = redis.call('SMEMBERS', KEYS[base + 1]), redis.call('SMEMBERS', KEYS[base + 2])
return cjson.encode(out)
"""


@dataclass(slots=True)
class Snapshot:
    """All of the queue at one moment."""

    ready: list[str]
    suspect: list[str]
    kept: dict[str, float]
    leased: dict[str, float]
    delayed: dict[str, float]
    dead: dict[str, float]
    failures: dict[str, float]
    token: dict[str, str]
    tries: dict[str, dict[str, Any]]
    origin: dict[str, str]
    holds: dict[str, str]
    alone: dict[str, str]
    totals: dict[str, str]
    stale: dict[str, str]
    kinds: dict[str, str]
    success: list[str]
    seen: list[str]
    closed: list[str]
    seen_pages: list[str]
    done_pages: list[str]

    def places(self) -> Counter[str]:
        """Count in how many places each job is."""
        return Counter([*self.ready, *self.suspect, *self.kept, *self.leased, *self.delayed, *self.dead])

    @property
    def is_drained(self) -> bool:
        """Tell whether nothing is left to do."""
        return not (self.ready or self.suspect or self.kept or self.leased or self.delayed)


class Looker:
    """Takes snapshots; all numbers of the simulation share one bucket, so that one look finds them."""

    def __init__(self, wire: Wire, bucket: int, shards: int = 1) -> None:
        self._wire = wire
        self._sha = wire.ask("SCRIPT", "LOAD", DUMP)
        sets = [f"{kind}:{namespace}:{bucket}" for kind in ("seen", "closed") for namespace in "vpe"]
        sets += [f"seen:c:{bucket}", f"done:{bucket}"]
        self._commands = []
        for shard in range(shards):
            keys = [key(name, shard) for name in (*COMMON_KEYS, *sets)]
            self._commands.append(["EVALSHA", self._sha, len(keys), *keys, "", *COMMON_KEYS])

    def look(self) -> Snapshot:
        """Return what is in the queue now, in all shards together."""
        return merged([self._look(command) for command in self._commands])

    def _look(self, command: list[Any]) -> Snapshot:
        raw = {name: value or [] for name, value in json.loads(self._wire.ask(*command)).items()}
        for name in ("kept", "leased", "delayed", "dead", "failures"):
            raw[name] = {id_: float(score) for id_, score in _pairs(raw[name])}
        for name in ("token", "tries", "origin", "holds", "alone", "totals", "stale", "kinds"):
            raw[name] = dict(_pairs(raw[name]))
        raw["tries"] = {id_: json.loads(text) for id_, text in raw["tries"].items()}
        entries = len(raw["ready"])
        raw["ready"] = waiting(raw["ready"], raw["stale"])
        now = Snapshot(**raw)
        assert entries - len(now.ready) == int(now.totals.get("stale", 0)), f"{entries} entries, {now.stale}"
        return now


def merged(shards: Sequence[Snapshot]) -> Snapshot:
    """Return the snapshots of all shards as one; marks that bar a worker from other shards are left out."""
    first, *others = shards
    first.alone = {worker: id_ for worker, id_ in first.alone.items() if not id_.startswith("~")}
    for other in others:
        for name in ("ready", "suspect", "success", "seen", "closed", "seen_pages", "done_pages"):
            getattr(first, name).extend(getattr(other, name))
        for name in ("kept", "leased", "delayed", "dead", "failures", "token", "tries", "origin", "stale"):
            getattr(first, name).update(getattr(other, name))
        for name in ("holds", "totals", "kinds"):
            counts = getattr(first, name)
            for key_, count in getattr(other, name).items():
                counts[key_] = str(int(counts.get(key_, 0)) + int(count))
        first.alone.update({worker: id_ for worker, id_ in other.alone.items() if not id_.startswith("~")})
    return first


def _pairs(flat: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def problems(now: Snapshot, containers: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a snapshot; ``containers`` has the ids of containers by their members."""
    places = now.places()
    found = [f"{id_} is in {count} places" for id_, count in places.items() if count > 1]
    if now.leased.keys() != now.token.keys():
        found.append(f"leased {sorted(now.leased)} but tokens of {sorted(now.token)}")
    holders = Counter(now.tries.get(id_, {}).get("worker", "nobody") for id_ in now.leased)
    if {worker: str(count) for worker, count in holders.items()} != now.holds:
        found.append(f"holds says {now.holds}, the leases say {dict(holders)}")
    for worker, id_ in now.alone.items():
        if id_ not in now.leased or now.tries[id_].get("worker") != worker:
            found.append(f"{worker} is said to be alone with {id_}, which it has not")
        elif holders[worker] != 1:
            found.append(f"{worker} is alone with {id_}, and holds {holders[worker]}")
    codes = {id_: now.tries.get(id_, {}).get("code", "") for id_ in (*now.delayed, *now.dead)}
    if now.failures.keys() != {f"{code}\0{id_}" for id_, code in codes.items()}:
        found.append(f"failures lists {sorted(now.failures)}, not {codes}")
    kinds = Counter([*(f"delayed:{codes[id_]}" for id_ in now.delayed), *(f"dead:{codes[id_]}" for id_ in now.dead)])
    if {kind: str(count) for kind, count in kinds.items()} != now.kinds:
        found.append(f"kinds counts {now.kinds}, there are {dict(kinds)}")
    if not len(now.success) == len(now.done_pages) == int(now.totals.get("done", 0)):
        found.append(f"{len(now.success)} successes, {len(now.done_pages)} done, total {now.totals.get('done', 0)}")
    return found + _lost_or_strange(now, places, containers)


def _lost_or_strange(now: Snapshot, places: Counter[str], containers: Mapping[str, str]) -> list[str]:
    found, known = [], set()
    closed = set(now.closed)
    for member in now.seen:
        known.add(containers[member])
        if (places[containers[member]] > 0) == (member in closed):
            found.append(f"{containers[member]} is {'open and closed' if member in closed else 'lost'}")
    pages = {str(parse_job_id(id_).cid): id_ for id_ in places if parse_job_id(id_).is_page}
    done = set(now.done_pages)
    for cid in now.seen_pages:
        if (cid in pages) == (cid in done) and not now.tries.get(pages.get(cid, ""), {}).get("recorded"):
            found.append(f"the page {cid} is {'done and still in work' if cid in done else 'lost'}")
    recorded = [parse_job_id(id_).cid for id_ in now.success]
    if len(set(recorded)) != len(recorded):
        found.append(f"a page is recorded twice: {sorted(now.success)}")
    strange = places.keys() - known - {pages[cid] for cid in now.seen_pages if cid in pages}
    return found + [f"{id_} was never accepted" for id_ in sorted(strange)]
