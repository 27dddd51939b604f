"""What must hold in the queue's data between any two commands: every job in exactly one place, and nothing beside it.

The rules are read off the keys themselves, not through the verbs, so that a verb cannot hide what it broke.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import redis

from parse_ import bvid_to_aid, parse_job_id

PLACES = ("ready", "suspect", "kept", "leased", "delayed", "dead")


def _key(name: str) -> str:
    return f"{{bili:0}}:{name}"


def _sets(connection: redis.Redis) -> dict[str, list[str]]:
    """Return the members of all buckets of ``seen:c``, ``done`` and so on."""
    names = [name for name in connection.keys(_key("*:*")) if name.split(":")[2] in ("seen", "closed", "done")]
    with connection.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.smembers(name)
        found: dict[str, list[str]] = {}
        for name, members in zip(names, pipe.execute(), strict=True):
            found.setdefault(name.removeprefix(_key("")).rpartition(":")[0], []).extend(members)
    return found


def places(connection: redis.Redis) -> dict[str, list[str]]:
    """Return the ids in each place, in its order."""
    lists = {name: connection.lrange(_key(name), 0, -1) for name in ("ready", "suspect")}
    return lists | {name: connection.zrange(_key(name), 0, -1) for name in PLACES[2:]}


def container_member(url: str) -> tuple[str, str]:
    """Return namespace and member under which a container is remembered."""
    job = parse_job_id(url)
    if job.is_source:
        return "s", url
    if job.episode_id:
        return "e", str(job.episode_id)
    aid = bvid_to_aid(job.bvid)
    return ("p", f"{aid}:{job.number}") if job.number else ("v", str(aid))


def problems(connection: redis.Redis) -> list[str]:
    """Return a sentence for each rule that the data break; none where all is well."""
    found = places(connection)
    jobs = [url for urls in found.values() for url in urls]
    tries = {url: json.loads(text) for url, text in connection.hgetall(_key("tries")).items()}
    sets = _sets(connection)
    return [
        *_jobs_in_one_place(connection, found, jobs, tries),
        *_leases(connection, found["leased"], tries),
        *_containers(sets, jobs),
        *_pages(connection, sets, jobs, tries),
        *_orders(connection),
    ]


def _jobs_in_one_place(
    connection: redis.Redis, found: dict[str, list[str]], jobs: list[str], tries: dict[str, Any]
) -> list[str]:
    wrong = [f"{url} is in {count} places" for url, count in Counter(jobs).items() if count > 1]
    for name in ("tries", "origin"):
        wrong += [f"{name} of {url}, which is in no place" for url in set(connection.hkeys(_key(name))) - set(jobs)]
    failed = set(connection.zrange(_key("failed"), 0, -1))
    wrong += [f"{url} is shown as failed or is not" for url in failed ^ {*found["delayed"], *found["dead"]}]
    wrong += [
        f"{url} is suspect after {tries[url]['deaths']} deaths" for url in found["suspect"] if tries[url]["deaths"] < 2
    ]
    return wrong


def _leases(connection: redis.Redis, leased: list[str], tries: dict[str, Any]) -> list[str]:
    tokens = connection.hgetall(_key("token"))
    wrong = [f"{url} has a token or a deadline alone" for url in set(tokens) ^ set(leased)]
    wrong += [f"the token {token} twice" for token, count in Counter(tokens.values()).items() if count > 1]
    holders = Counter(tries[url].get("worker", "") for url in leased)
    holds = {worker: int(count) for worker, count in connection.hgetall(_key("holds")).items()}
    if holds != dict(holders):
        wrong.append(f"holds says {holds}, the leases {dict(holders)}")
    for worker, url in connection.hgetall(_key("alone")).items():
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


def _pages(connection: redis.Redis, sets: dict[str, list[str]], jobs: list[str], tries: dict[str, Any]) -> list[str]:
    queued = Counter(str(parse_job_id(url).cid) for url in jobs if parse_job_id(url).is_page)
    told_again = {str(parse_job_id(url).cid) for url, one in tries.items() if one.get("recorded")}
    seen, done = set(sets.get("seen:c", ())), set(sets.get("done", ()))
    successes = Counter(
        str(parse_job_id(fields["url"]).cid) for _id, fields in connection.xrange(_key("success"), "-", "+")
    )
    wrong = [f"page {cid} was seen and is nowhere" for cid in seen - done - set(queued)]
    wrong += [f"page {cid} was never seen" for cid in (done | set(queued)) - seen]
    wrong += [f"page {cid} is queued {count} times" for cid, count in queued.items() if count > 1]
    wrong += [f"page {cid} is done and queued" for cid in (done & set(queued)) - told_again]
    wrong += [f"page {cid} is done and has {successes[cid]} records" for cid in done if successes[cid] != 1]
    wrong += [f"page {cid} has a record and is not done" for cid in set(successes) - done]
    if int(connection.hget(_key("totals"), "done") or 0) != len(done):
        wrong.append("the total of done pages is wrong")
    return wrong


def _orders(connection: redis.Redis) -> list[str]:
    wrong = []
    for worker, text in connection.hgetall(_key("orders")).items():
        order = json.loads(text)
        if connection.zscore(_key("workers"), worker) is None:
            wrong.append(f"an order to {worker}, of whom nobody heard")
        if not {"id", "working", "who", "at"} <= set(order) or not (order["working"] or order.get("login")):
            wrong.append(f"the order to {worker} says nothing: {text}")
    return wrong
