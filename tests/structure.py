"""What must hold in the queue's data between any two commands: every job in exactly one place, and nothing beside it.

The rules are read off the keys themselves, not through the verbs, so that a verb cannot hide what it broke.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import redis

from parse_ import bvid_to_aid, parse_job_id
from store.data import Identity, folded_prefix, shard_of, shard_of_id

PLACES = ("ready", "suspect", "kept", "leased", "delayed", "dead")


class Shard(NamedTuple):
    """Where a shard's keys are."""

    redis: redis.Redis
    number: int

    def key(self, name: str) -> str:
        """Return the name of a key in it."""
        return f"{{bili:{self.number}}}:{name}"


def _names(at: Shard, pattern: str) -> set[str]:
    """Return the names of the keys of a shard that are like this, wherever it lies in a cluster."""
    return set(at.redis.scan_iter(match=at.key(pattern), count=1000))


def _sets(at: Shard) -> dict[str, list[Any]]:
    """Return the members of all buckets of ``seen:c``, ``done`` and so on; of ``record`` pairs of cid and entry."""
    kinds = ("seen", "closed", "done", "record")
    names = [name for name in _names(at, "*:*") if name.split(":")[2] in kinds]
    with at.redis.pipeline(transaction=False) as pipe:
        for name in names:
            if name.split(":")[2] == "record":
                pipe.hgetall(name)
            else:
                pipe.smembers(name)
        found: dict[str, list[str]] = {}
        for name, members in zip(names, pipe.execute(), strict=True):
            pairs = members.items() if isinstance(members, dict) else members
            found.setdefault(name.removeprefix(at.key("")).rpartition(":")[0], []).extend(pairs)
    return found


def waiting(entries: list[str], stale: dict[str, str]) -> list[str]:
    """Return the jobs that wait in the list, in its order: some entries count no more (see lua/common.lua)."""
    found, left = [], {url: int(count) for url, count in stale.items()}
    for url in entries:
        if left.get(url, 0) >= 0:
            found.append(url)
            left[url] = -left.get(url, 0) or -len(entries)  # whatever follows of it counts no more
    counts = Counter(entries)
    too_many = [url for url in set(found) if counts[url] != 1 + max(0, int(stale.get(url, 0)))]
    return found + too_many  # a job that stands there once more than is known is named twice


def places(connection: redis.Redis, shard: int = 0) -> dict[str, list[str]]:
    """Return the ids in each place of a shard, in its order."""
    at = Shard(connection, shard)
    lists = {
        "ready": waiting(at.redis.lrange(at.key("ready"), 0, -1), at.redis.hgetall(at.key("stale"))),
        "suspect": at.redis.lrange(at.key("suspect"), 0, -1),
    }
    return lists | {name: at.redis.zrange(at.key(name), 0, -1) for name in PLACES[2:]}


def container_member(url: str) -> tuple[str, str]:
    """Return namespace and member under which a container is remembered."""
    job = parse_job_id(url)
    if job.is_source:
        return "s", url
    if job.episode_id:
        return "e", str(job.episode_id)
    aid = bvid_to_aid(job.bvid)
    return ("p", f"{aid}:{job.number}") if job.number else ("v", str(aid))


def problems(connection: redis.Redis, shards: int = 1) -> list[str]:
    """Return a sentence for each rule that the data break; none where all is well."""
    wrong = [one for shard in range(shards) for one in _problems_in(Shard(connection, shard), shards)]
    return wrong + _beside_a_suspect([Shard(connection, shard) for shard in range(shards)])


def _problems_in(at: Shard, shards: int) -> list[str]:
    found = places(*at)
    jobs = [url for urls in found.values() for url in urls]
    tries = {url: json.loads(text) for url, text in at.redis.hgetall(at.key("tries")).items()}
    sets = _sets(at)
    return [
        *_jobs_in_one_place(at, found, jobs, tries),
        *_strays(at, jobs, shards),
        *_stale_entries(at),
        *_failures(at, found, tries),
        *_titles(at, tries),
        *_records(at, sets),
        *_leases(at, found["leased"], tries),
        *_containers(sets, jobs),
        *_pages(at, sets, jobs, tries),
        *_orders(at),
        *_budgets(at),
    ]


def _strays(at: Shard, jobs: list[str], shards: int) -> list[str]:
    """Each job, and each bucket, is in the shard that its identity belongs to."""
    wrong = [f"{url} is in shard {at.number}" for url in jobs if shard_of_id(url, shards) != at.number]
    for name in _names(at, "*:*"):
        kind, *namespace, number = name.removeprefix(at.key("")).split(":")[:3]
        if kind in ("seen", "closed", "paged", "done", "record"):
            identity = Identity(namespace[0] if namespace else "c", int(number), "")
            if shard_of(identity, shards) != at.number:
                wrong.append(f"the bucket {name} is in the wrong shard")
    return wrong


def _beside_a_suspect(shards: list[Shard]) -> list[str]:
    """Who is alone with a suspect holds nothing in any other shard."""
    wrong = []
    for at in shards:
        for worker, url in at.redis.hgetall(at.key("alone")).items():
            if not url.startswith("~"):
                others = [one for one in shards if one is not at and one.redis.hexists(one.key("holds"), worker)]
                wrong += [f"{worker} is not alone with {url}: it holds more in shard {one.number}" for one in others]
    return wrong


def _jobs_in_one_place(at: Shard, found: dict[str, list[str]], jobs: list[str], tries: dict[str, Any]) -> list[str]:
    wrong = [f"{url} is in {count} places" for url, count in Counter(jobs).items() if count > 1]
    for name in ("tries", "origin"):
        wrong += [f"{name} of {url}, which is in no place" for url in set(at.redis.hkeys(at.key(name))) - set(jobs)]
    wrong += [
        f"{url} is suspect after {tries[url]['deaths']} deaths" for url in found["suspect"] if tries[url]["deaths"] < 2
    ]
    return wrong


def _stale_entries(at: Shard) -> list[str]:
    entries = Counter(at.redis.lrange(at.key("ready"), 0, -1))
    stale = {url: int(count) for url, count in at.redis.hgetall(at.key("stale")).items()}
    wrong = [
        f"{url} has {entries[url]} entries in ready, {count} of them stale"
        for url, count in stale.items()
        if count == 0 or entries[url] != (count + 1 if count > 0 else -count)
    ]
    if int(at.redis.hget(at.key("totals"), "stale") or 0) != sum(map(abs, stale.values())):
        wrong.append("the total of stale entries is wrong")
    return wrong


def _failures(at: Shard, found: dict[str, list[str]], tries: dict[str, Any]) -> list[str]:
    codes = {url: tries.get(url, {}).get("code", "") for url in (*found["delayed"], *found["dead"])}
    listed = set(at.redis.zrange(at.key("failures"), 0, -1))
    wrong = [
        f"{one!r} is shown as failed or is not" for one in listed ^ {f"{code}\0{url}" for url, code in codes.items()}
    ]
    kinds = Counter(f"{state}:{codes[url]}" for state in ("delayed", "dead") for url in found[state])
    if {kind: int(count) for kind, count in at.redis.hgetall(at.key("kinds")).items()} != dict(kinds):
        wrong.append(f"kinds counts {at.redis.hgetall(at.key('kinds'))}, there are {dict(kinds)}")
    return wrong


def _titles(at: Shard, tries: dict[str, Any]) -> list[str]:
    known = {f"{one['folded']}\0{url}" for url, one in tries.items() if one.get("folded") is not None}
    done = {
        f"{folded_prefix(fields['title'])}\0{fields['url']}"
        for _id, fields in at.redis.xrange(at.key("success"), "-", "+")
        if fields.get("title")
    }
    titles = set(at.redis.zrange(at.key("titles"), 0, -1))
    return [f"the title {one!r} leads nowhere or is missing" for one in (titles - known - done) | (known - titles)]


def _records(at: Shard, sets: dict[str, list[str]]) -> list[str]:
    recorded = {cid: entry if "-" in entry else f"{entry}-0" for cid, entry in sets.get("record", ())}
    entries = {
        entry: str(parse_job_id(fields["url"]).cid) for entry, fields in at.redis.xrange(at.key("success"), "-", "+")
    }
    wrong = [
        f"the record of page {cid} is not where it should be" for cid, e in recorded.items() if entries.get(e) != cid
    ]
    return wrong + [f"nobody knows where the record of page {cid} is" for cid in set(entries.values()) - set(recorded)]


def _leases(at: Shard, leased: list[str], tries: dict[str, Any]) -> list[str]:
    tokens = at.redis.hgetall(at.key("token"))
    wrong = [f"{url} has a token or a deadline alone" for url in set(tokens) ^ set(leased)]
    wrong += [f"the token {token} twice" for token, count in Counter(tokens.values()).items() if count > 1]
    holders = Counter(tries[url].get("worker", "") for url in leased)
    holds = {worker: int(count) for worker, count in at.redis.hgetall(at.key("holds")).items()}
    if holds != dict(holders):
        wrong.append(f"holds says {holds}, the leases {dict(holders)}")
    for worker, url in at.redis.hgetall(at.key("alone")).items():
        if url.startswith("~"):
            continue  # a mark of another shard, which is looked at there
        if holders[worker] != 1 or url not in leased or tries[url].get("worker") != worker:
            wrong.append(f"{worker} is not alone with {url}")
    return wrong


def _containers(sets: dict[str, list[str]], jobs: list[str]) -> list[str]:
    open_ones = {container_member(url) for url in jobs if not parse_job_id(url).is_page}
    seen = {(kind, member) for kind in "vpes" for member in sets.get(f"seen:{kind}", ())}
    closed = {(kind, member) for kind in "vpes" for member in sets.get(f"closed:{kind}", ())}
    wrong = [f"container {one} was seen and is nowhere" for one in seen - closed - open_ones]
    wrong += [f"container {one} is closed and queued" for one in closed & open_ones]
    return wrong + [f"container {one} was never seen" for one in (closed | open_ones) - seen]


def _pages(at: Shard, sets: dict[str, list[str]], jobs: list[str], tries: dict[str, Any]) -> list[str]:
    queued = Counter(str(parse_job_id(url).cid) for url in jobs if parse_job_id(url).is_page)
    told_again = {str(parse_job_id(url).cid) for url, one in tries.items() if one.get("recorded")}
    seen, done = set(sets.get("seen:c", ())), set(sets.get("done", ()))
    successes = Counter(
        str(parse_job_id(fields["url"]).cid) for _id, fields in at.redis.xrange(at.key("success"), "-", "+")
    )
    wrong = [f"page {cid} was seen and is nowhere" for cid in seen - done - set(queued)]
    wrong += [f"page {cid} was never seen" for cid in (done | set(queued)) - seen]
    wrong += [f"page {cid} is queued {count} times" for cid, count in queued.items() if count > 1]
    wrong += [f"page {cid} is done and queued" for cid in (done & set(queued)) - told_again]
    wrong += [f"page {cid} is done and has {successes[cid]} records" for cid in done if successes[cid] != 1]
    wrong += [f"page {cid} has a record and is not done" for cid in set(successes) - done]
    if int(at.redis.hget(at.key("totals"), "done") or 0) != len(done):
        wrong.append("the total of done pages is wrong")
    return wrong


def _orders(at: Shard) -> list[str]:
    wrong = []
    for worker, text in at.redis.hgetall(at.key("orders")).items():
        order = json.loads(text)
        if at.redis.zscore(at.key("workers"), worker) is None:
            wrong.append(f"an order to {worker}, of whom nobody heard")
        if not {"id", "working", "who", "at"} <= set(order) or not (order["working"] or order.get("login")):
            wrong.append(f"the order to {worker} says nothing: {text}")
    return wrong


def _budgets(at: Shard) -> list[str]:
    """What the members of a group may use together is summed up, and each is to be let go at a time."""
    wrong = []
    for name in _names(at, "budget:*"):
        fields, group = at.redis.hgetall(name), name.removeprefix(at.key("budget:"))
        counted = {field[2:]: int(text.split()[0]) for field, text in fields.items() if field.startswith("w ")}
        if int(fields.get("sum", 0)) != sum(counted.values()):
            wrong.append(f"budget:{group} has the sum {fields.get('sum')}, its members count {sum(counted.values())}")
        if set(at.redis.zrange(at.key(f"members:{group}"), 0, -1)) != set(counted):
            wrong.append(f"members:{group} are not those of its budget")
        wrong += [
            f"{key}:{group} has no end" for key in ("budget", "members") if at.redis.ttl(at.key(f"{key}:{group}")) < 0
        ]
    return wrong
