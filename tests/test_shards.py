"""Several shards: where things belong, requests that cross them and are broken off, and moving to another number."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import given

from config import Settings
from errors import EngineError
from model import Failure, Lease, ListedPage, Page
from parse_ import aid_to_bvid, parse_job_id
from redisConnect import Queue
from store.data import BUCKETS, Identity, identity_of, key, shard_of, shard_of_id
from store.reshard import Reshard
from tests import structure
from tests.farm import wait_until
from tests.test_atomic_verbs import Died, Mortal, expire_all
from tests.test_redisConnect import BV, ENVIRONMENT, PERMANENT, TRANSIENT, lease_one, let_expire, pages, result

ROOT = Path(__file__).resolve().parent.parent
SHARDS = 4
MANY = [aid_to_bvid(aid) for aid in range(7_000_001, 7_000_201)]
FEW = MANY[:50]


@pytest.fixture
def queue(connection: redis.Redis) -> Iterator[Queue]:
    """A queue of several shards; no delay is over while a test runs."""
    queue = Queue(connection, Settings(shards=SHARDS), draw=lambda: random.uniform(0.7, 1))
    yield queue
    queue.close()


@pytest.fixture
def mortal(valkey_socket: str, connection: redis.Redis) -> Mortal:
    return Mortal(unix_socket_path=valkey_socket, decode_responses=True)


def leased(connection: redis.Redis, shards: int = SHARDS) -> dict[str, str]:
    """Return the tokens of all leases by their jobs."""
    return {url: token for shard in range(shards) for url, token in connection.hgetall(key("token", shard)).items()}


def everything(queue: Queue, state: str = "", limit: int = 7) -> list[dict[str, Any]]:
    """Return all jobs of a state, as they are listed page by page."""
    items: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        found, after = queue.jobs(state, after=after, limit=limit)
        items += found
    return items


def all_of(read: Callable[[str, int], tuple[list[dict[str, Any]], str | None]]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        found, after = read(after, 7)
        items += found
    return items


# ------------------------------------------------------------------------------------------ where things belong


def test_a_job_belongs_to_the_shard_that_it_has_always_belonged_to() -> None:
    """Data lie where this says: it must never change."""
    ids = ["BV1xx411c7mD", "BV1xx411c7mD?p=3", "BV1xx411c7mD?p=3&cid=279786", "ep123456", "mid:1", "cheese:ep12"]
    assert [shard_of_id(url, 8) for url in ids] == [1, 3, 6, 3, 0, 2]
    assert [shard_of_id(url, 64) for url in ids] == [9, 59, 54, 27, 40, 2]
    assert [shard_of_id(url, 1) for url in ids] == [0] * 6


@given(
    cid=st.integers(1, 2**53 - 1),
    aid=st.integers(1, 2**51 - 1),
    number=st.integers(1, 9999),
    episode=st.integers(1, 2**40),
    shards=st.integers(1, 64),
)
def test_two_ids_of_one_identity_are_never_in_two_shards(
    cid: int, aid: int, number: int, episode: int, shards: int
) -> None:
    bvid = aid_to_bvid(aid)
    ways = [f"{bvid}?p={number}&cid={cid}", f"ep{episode}?cid={cid}", f"{aid_to_bvid(1)}?p=1&cid={cid}"]
    assert len({identity_of(parse_job_id(url)) for url in ways}) == 1
    assert len({shard_of_id(url, shards) for url in ways}) == 1
    # Two identities that share a bucket share its shard: no bucket is in two.
    assert shard_of_id(ways[0], shards) == shard_of(Identity("c", cid % BUCKETS, ""), shards)
    assert 0 <= shard_of_id(bvid, shards) < shards


@pytest.mark.parametrize("shards", [2, 3, 8, 64])
@pytest.mark.parametrize("step", [1, 2, 16, 1000])
def test_the_load_is_spread_whatever_the_distance_of_ids(shards: int, step: int) -> None:
    buckets = (Identity("c", cid, "") for cid in range(1, 4000 * step, step))
    counts = Counter(shard_of(bucket, shards) for bucket in buckets)
    assert len(counts) == shards
    assert max(counts.values()) < 2 * 4000 / shards


# ------------------------------------------------------------------------------------------ verbs


def test_a_farm_of_several_shards_finishes_everything_once(queue: Queue, connection: redis.Redis) -> None:
    assert queue.add(FEW, request="r1").added == len(FEW)
    assert queue.add(FEW, request="r1").added == len(FEW)
    assert queue.add(FEW).known == len(FEW)
    assert len({shard_of_id(url, SHARDS) for url in FEW}) == SHARDS
    work, finished = True, []
    while work:
        work = False
        for worker in ("w1", "w2", "w3"):
            for lease in list(queue.lease(worker, 5)):
                work = True
                if "cid=" not in lease.url:
                    aid = FEW.index(lease.url)
                    expanded = queue.expand(lease.url, lease.token, pages(*range(3 * aid + 1, 3 * aid + 4)))
                    assert (expanded.added, expanded.known) == (3, 0)
                    if expanded.lease is None:
                        continue
                    lease = expanded.lease
                assert not queue.heartbeat(worker, [(lease.url, lease.token, 5)], {"state": "works"})
                assert queue.ack(lease.url, lease.token, result(parse_job_id(lease.url).cid)) == "done"
                finished.append(lease.url)
    assert len(finished) == len(set(finished)) == 3 * len(FEW) == queue.counts().done
    assert sorted(item["url"] for item in all_of(queue.success)) == sorted(finished)
    assert structure.problems(connection, SHARDS) == []
    assert queue.knows(finished) and not queue.knows([*finished, f"{BV[0]}?p=1&cid=99999"])


def test_listings_over_shards_have_everything_once_and_in_order(queue: Queue, connection: redis.Redis) -> None:
    queue.add(MANY)
    for number, lease in enumerate(queue.lease("w1", 60)):
        failure = (PERMANENT, TRANSIENT, Failure("permanent", "-403", "no"))[number % 3]
        queue.nack(lease.url, lease.token, failure)
    for number in range(30):
        lease = lease_one(queue)
        expanded = queue.expand(lease.url, lease.token, [Page(1, 50_000 + number, "")])
        if expanded.lease:
            queue.ack(expanded.lease.url, expanded.lease.token, result(50_000 + number))
    counts = queue.counts()
    for state in ("ready", "delayed", "dead", "done"):
        items = everything(queue, state)
        assert len(items) == len({item["url"] for item in items}) == getattr(counts, state), state
    assert [item["time"] for item in everything(queue, "dead")] == sorted(
        (item["time"] for item in everything(queue, "dead")), reverse=True
    )
    delayed = [item["url"] for item in everything(queue, "delayed")]
    due = [connection.zscore(key("delayed", shard_of_id(url, SHARDS)), url) for url in delayed]
    assert due == sorted(due)
    failed = all_of(queue.failed)
    assert [(one["code"], one["url"]) for one in failed] == sorted((one["code"], one["url"]) for one in failed)
    assert len(failed) == counts.dead + counts.delayed
    times = [item["time"] for item in all_of(queue.success)]
    assert times == sorted(times) and len(times) == counts.done
    assert [item["time"] for item in queue.latest_success(5)] == times[::-1][:5]
    titles = queue.jobs(find="title 5000", limit=500)[0]
    assert [one["title"] for one in titles] == sorted(one["title"] for one in titles)
    assert len(titles) == min(10, counts.done)
    groups = {group["code"]: group["dead"] + group["delayed"] for group in queue.failure_groups()}
    assert groups == {"-404": 20, "-500": 20, "-403": 20}
    assert queue.redrive_all() == 40
    assert structure.problems(connection, SHARDS) == []


def test_equal_entries_of_two_shards_are_both_listed(queue: Queue, connection: redis.Redis) -> None:
    fields = {name: "1" for name in ("title", "path", "bytes", "seconds", "worker")}
    for shard in range(SHARDS):
        for number in range(5):
            connection.xadd(
                key("success", shard), {"url": f"ep1?cid={shard + 1}{number}", **fields}, id=f"{1000 + number}-0"
            )
    for limit in (1, 2, 3, 7):
        items: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            found, after = queue.success(after, limit)
            items += found
        assert [item["url"] for item in items] == [
            f"ep1?cid={shard + 1}{number}" for number in range(5) for shard in range(SHARDS)
        ]


def test_a_source_counts_what_it_lists_in_other_shards(queue: Queue, connection: redis.Redis) -> None:
    queue.add(["mid:1"])
    lease = lease_one(queue)
    first = queue.expand(lease.url, lease.token, (), MANY[:40], True, ListedPage(1, announced=60, cursor="c"))
    again = queue.expand(lease.url, lease.token, (), MANY[:40], True, ListedPage(1, announced=60, cursor="c"))
    assert first == again and (first.added, first.known) == (40, 0)
    ended = queue.expand(lease.url, lease.token, (), MANY[30:60], False, ListedPage(2, ended="end"))
    assert (ended.added, ended.known, ended.ended) == (20, 10, True)
    (ledger,), _next = queue.sources("", 10)
    assert (ledger["listed"], ledger["queued"], ledger["known"], ledger["complete"]) == (60, 60, 10, True)
    assert structure.problems(connection, SHARDS) == []


@pytest.mark.parametrize("by_the_same", [True, False])
def test_a_page_of_a_listing_whose_reader_dies_is_counted_once(
    by_the_same: bool, queue: Queue, connection: redis.Redis, mortal: Mortal
) -> None:
    """Whatever it had added counts as new for who reads that page again."""
    for commands in range(100):
        connection.flushall()
        queue.add(["mid:1"])
        queue.add(MANY[:3])
        lease = lease_one(queue, have=["mid:1"])
        assert lease.url == "mid:1"
        mortal.left = commands
        told = ((), MANY[:20], False, ListedPage(1, announced=20, ended="end"))
        try:
            Queue(mortal, Settings(shards=SHARDS)).expand(lease.url, lease.token, *told)
        except Died:
            assert structure.problems(connection, SHARDS) == []
        else:
            assert commands > 2
            return
        if not by_the_same and leased(connection).get("mid:1"):
            let_expire(connection, "mid:1", shards=SHARDS)
            queue.sweep()
            lease = lease_one(queue, "w2", have=["mid:1"])
            assert lease.url == "mid:1"
        expanded = queue.expand(lease.url, lease.token, *told)
        assert (expanded.added, expanded.known) == (17, 3), commands
        (ledger,), _next = queue.sources("", 10)
        assert (ledger["listed"], ledger["queued"], ledger["known"]) == (20, 17, 3), commands
        assert queue.counts().ready == 20
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("is_at_home", [True, False])
def test_an_expansion_that_is_broken_off_anywhere_is_completed(
    is_at_home: bool, queue: Queue, connection: redis.Redis, mortal: Mortal
) -> None:
    """Also where the first page belongs to the shard of its video."""
    home = shard_of_id(BV[0], SHARDS)
    first = next(n for n in range(1, 99) if (shard_of_id(f"{BV[0]}?p=1&cid={n}", SHARDS) == home) == is_at_home)
    cids = range(first, first + 8)
    for commands in range(100):
        connection.flushall()
        queue.add([BV[0]])
        lease = lease_one(queue)
        mortal.left = commands
        try:
            Queue(mortal, Settings(shards=SHARDS)).expand(lease.url, lease.token, pages(*cids))
        except Died:
            expanded = queue.expand(lease.url, lease.token, pages(*cids))
            assert (expanded.added, expanded.known) == (8, 0)
            assert expanded.lease is not None and expanded.lease.url == f"{BV[0]}?p=1&cid={first}"
            assert queue.expand(lease.url, lease.token, pages(*cids)) == expanded
            assert leased(connection) == {expanded.lease.url: expanded.lease.token}
            assert queue.counts().ready == 7
            assert structure.problems(connection, SHARDS) == []
            continue
        assert commands > 2
        return
    raise AssertionError("it never came to its end")


def test_a_request_that_is_broken_off_anywhere_is_answered_with_all_that_it_leased(
    queue: Queue, connection: redis.Redis, mortal: Mortal
) -> None:
    for commands in range(100):
        connection.flushall()
        queue.add(BV[:6])
        kept = queue.lease("w1", 1)[0]
        queue.heartbeat("w1", [(kept.url, kept.token, 5)], {})
        expire_all(connection, SHARDS)
        queue.sweep()
        mortal.left = commands
        try:
            leases = Queue(mortal, Settings(shards=SHARDS)).lease("w1", 5, [kept.url], "r1", "i1", [5])
        except Died:
            leases = queue.lease("w1", 5, [kept.url], "r1", "i1", [5])
            assert {lease.url: lease.token for lease in leases} == leased(connection), commands
            assert len(leases) == 5 and kept.url in {lease.url for lease in leases}
            assert queue.lease("w1", 5, [kept.url], "r1", "i1", [5]) == leases
            assert structure.problems(connection, SHARDS) == []
            continue
        assert commands > 2 and {lease.url: lease.token for lease in leases} == leased(connection)
        return
    raise AssertionError("it never came to its end")


def test_a_poll_of_an_empty_queue_writes_nothing_but_that_the_worker_lives(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.lease("w1", 3)
    for number in range(2 * SHARDS):
        queue.lease("w1", 3, request=f"r{number}")
    before = connection.info("stats")["total_commands_processed"], connection.dbsize()
    keys = set(connection.keys())
    queue.lease("w1", 3, request="r0")
    assert set(connection.keys()) == keys and connection.dbsize() == before[1]


def test_two_servers_that_get_one_request_give_one_answer(queue: Queue, connection: redis.Redis) -> None:
    """The second one gets in between any two steps of the first."""
    for steps in range(40):
        connection.flushall()
        queue.add(BV[:3])
        answers: list[tuple[Lease, ...]] = []
        first = Queue(connection, Settings(shards=SHARDS))
        run, left = first._run, [steps]

        def interrupted(script: str, *args: Any, run: Any = run, left: list[int] = left, answers: Any = answers) -> Any:
            if left[0] == 0:
                queue.add(BV[3:9])
                answers.append(queue.lease("w1", 5, request="r1"))
            left[0] -= 1
            return run(script, *args)

        first._run = interrupted  # type: ignore[method-assign]
        answers.append(first.lease("w1", 5, request="r1"))
        if len(answers) == 1:
            assert steps > 3
            return
        second, late = answers
        assert {lease.token for lease in second} == {lease.token for lease in late}, steps
        assert leased(connection) == {lease.url: lease.token for lease in late}
        assert structure.problems(connection, SHARDS) == []
    raise AssertionError("it never came to its end")


def test_a_page_that_its_shard_has_lost_is_had_again_when_its_video_is_read_again(
    queue: Queue, connection: redis.Redis
) -> None:
    """As after a failover: the shard of the video knows that it was read, that of the page knows nothing."""
    home = shard_of_id(BV[0], SHARDS)
    cid = next(n for n in range(1, 99) if shard_of_id(f"{BV[0]}?p=1&cid={n}", SHARDS) not in (0, home))
    shard = shard_of_id(f"{BV[0]}?p=1&cid={cid}", SHARDS)
    queue.add([BV[0]])
    lease = lease_one(queue)
    assert queue.expand(lease.url, lease.token, pages(cid)).added == 1
    queue.look_at_data()
    connection.delete(*connection.keys(key("*", shard)))
    assert "set back: 1 leases" in queue.look_at_data()
    assert queue.add([BV[0]]).known == 1 and queue.lease("w2", 1) == ()
    assert queue.add([BV[0]], refresh=True).known == 1
    lease = lease_one(queue, "w2")
    expanded = queue.expand(lease.url, lease.token, pages(cid))
    assert expanded.added == 1 and expanded.lease is not None
    assert structure.problems(connection, SHARDS) == []


# ------------------------------------------------------------------------------------------ suspects


def make_suspect(queue: Queue, connection: redis.Redis, url: str) -> None:
    for worker in ("d1", "d2"):
        lease = lease_one(queue, worker, have=[url])
        assert lease.url == url
        let_expire(connection, url, shards=SHARDS)
        queue.sweep()


def test_a_suspect_is_leased_to_a_worker_that_holds_nothing_in_any_shard(queue: Queue, connection: redis.Redis) -> None:
    queue.add(MANY)
    busy = queue.lease("w1", 6)
    assert len({shard_of_id(lease.url, SHARDS) for lease in queue.lease("w2", 60)}) > 1
    queue.add([BV[0]])
    make_suspect(queue, connection, BV[0])
    given = [lease for number in range(40) for lease in queue.lease("w1", 1, request=f"b{number}")]
    assert BV[0] not in {lease.url for lease in given}
    assert queue.lease("w1", 1, request="late") == ()  # it drains by now: the suspect needs it
    for lease in [*busy, *given]:
        queue.release(lease.url, lease.token)
    suspect: list[Lease] = []
    for number in range(40):
        suspect += queue.lease("w1", 3, request=f"s{number}")
        if any(lease.url == BV[0] for lease in suspect):
            break
    assert [lease.url for lease in suspect] == [BV[0]]
    assert all(queue.lease("w1", 3, request=f"t{number}") == () for number in range(20))
    assert structure.problems(connection, SHARDS) == []
    # What was alone once may be so again at once, though the bars of the first time stand in other shards yet.
    let_expire(connection, BV[0], shards=SHARDS)
    queue.sweep()
    queue.cancel([BV[0]])
    again = next(url for url in BV if shard_of_id(url, SHARDS) == shard_of_id(BV[0], SHARDS) and url != BV[0])
    queue.add([again])
    make_suspect(queue, connection, again)
    home = shard_of_id(again, SHARDS)
    request = next(
        f"v{n}" for n in range(99) if zlib.crc32(f"w1 v{n}".encode()) % SHARDS == home
    )  # it asks there first
    assert [lease.url for lease in queue.lease("w1", 1, request=request)] == [again]
    assert structure.problems(connection, SHARDS) == []
    queue.cancel([again])
    assert queue.lease("w1", 3, request="after")
    assert structure.problems(connection, SHARDS) == []


def test_who_dies_while_it_takes_a_suspect_bars_its_worker_for_a_moment_only(
    queue: Queue, connection: redis.Redis, mortal: Mortal
) -> None:
    for commands in range(100):
        connection.flushall()
        queue.add([BV[0]])
        make_suspect(queue, connection, BV[0])
        mortal.left = commands
        try:
            leases = Queue(mortal, Settings(shards=SHARDS)).lease("w1", 1, request="r1")
        except Died:
            assert structure.problems(connection, SHARDS) == []
            for shard in range(SHARDS):  # fifteen seconds pass
                alone = connection.hgetall(key("alone", shard))
                old = {
                    worker: mark.replace(f"~{mark.split('~')[2]}~", "~1~")
                    for worker, mark in alone.items()
                    if "~" in mark
                }
                if old:
                    connection.hset(key("alone", shard), mapping=old)
            queue.add(BV[1:9])
            leases = queue.lease("w1", 1, request="r1")
            assert {lease.url: lease.token for lease in leases} == leased(connection), commands
            assert len(leases) == 1
            assert structure.problems(connection, SHARDS) == []
            continue
        assert commands > 2 and leases[0].url == BV[0]
        return
    raise AssertionError("it never came to its end")


def test_deaths_in_other_shards_speak_for_a_job(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    make_suspect(queue, connection, BV[0])
    other = next(url for url in MANY if shard_of_id(url, SHARDS) != shard_of_id(BV[0], SHARDS))
    queue.add([other])
    assert lease_one(queue, "w9", have=[other]).url in (other, BV[0])
    expire_all(connection, SHARDS)
    queue.sweep()
    queue.sweep()
    for shard in range(SHARDS):
        assert set(connection.zrange(key("deaths", shard), 0, -1)) >= {"d1 ", "d2 "}


# ------------------------------------------------------------------------------------------ another number


def fill(queue: Queue, shards: int, connection: redis.Redis) -> None:
    """Bring jobs into every place."""
    chance = random.Random(shards)
    queue.add(MANY)
    queue.add(["mid:1", "season:5"], watch=60)
    lease = lease_one(queue, "reader", have=["mid:1"])
    queue.expand(lease.url, lease.token, (), BV[:9], True, ListedPage(1, cursor="c"))
    for number in range(60):
        for one in queue.lease(f"w{number % 7}", 2):
            if parse_job_id(one.url).is_source:
                continue
            if "cid=" not in one.url:
                cids = [1000 * number + chance.randrange(900) for _page in range(3)]
                expanded = queue.expand(one.url, one.token, pages(*dict.fromkeys(cids)))
                if expanded.lease is None:
                    continue
                one = expanded.lease
            how = chance.randrange(7)
            if how < 3:
                queue.ack(one.url, one.token, result(parse_job_id(one.url).cid))
            elif how < 6:
                queue.nack(one.url, one.token, (TRANSIENT, PERMANENT, ENVIRONMENT)[how - 3])
    waiting = [item["url"] for item in everything(queue, "ready")]
    queue.cancel(waiting[10:13])
    queue.first(waiting[20:23])
    done = everything(queue, "done")
    queue.forget([done[0]["url"]])


def picture(queue: Queue) -> dict[str, Any]:
    """Return what is to be seen of a queue, however many shards it has."""
    jobs = {item["url"]: {**item, "next_retry_seconds": None} for item in everything(queue, limit=200)}
    groups = sorted((one["code"], one["dead"], one["delayed"]) for one in queue.failure_groups())
    records = sorted(json.dumps({**one, "time": 0}) for one in all_of(queue.success))
    ledgers = all_of(queue.sources)
    return {"jobs": jobs, "counts": queue.counts(), "groups": groups, "success": records, "ledgers": ledgers}


WAYS = [(1, 4), (4, 3), (2, 5), (3, 1)]


@pytest.mark.parametrize(
    ("before", "after"), [(1, 4), *(pytest.param(*way, marks=pytest.mark.slow) for way in WAYS[1:])]
)
def test_a_queue_is_spread_over_another_number_of_shards(before: int, after: int, connection: redis.Redis) -> None:
    queue = Queue(connection, Settings(shards=before))
    fill(queue, before, connection)
    assert structure.problems(connection, before) == []
    seen = picture(queue)
    spread(connection, connection, before, after)
    assert structure.problems(connection, after) == []
    spread_queue = Queue(connection, Settings(shards=after))
    spread_queue.hold_shards()
    assert picture(spread_queue) == seen
    assert not [name for name in connection.keys("*") if "next:" in name or "resharded" in name]
    left = {int(name.split("}")[0].removeprefix("{bili:")) for name in connection.keys("{bili:*}:ready")}
    assert max(left) < after


def spread(connection: redis.Redis, through: redis.Redis, before: int, after: int) -> None:
    connection.set(key("shards"), f"{before}>{after}")
    wide = Queue(through, Settings(shards=max(before, after)))
    Reshard(through, wide._run, before, after).run()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("before", "after"), WAYS)
def test_spreading_that_dies_again_and_again_loses_nothing(
    before: int, after: int, connection: redis.Redis, mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.reshard.PART", 7)
    monkeypatch.setattr("store.reshard.BUCKETS_AT_ONCE", 3)
    queue = Queue(connection, Settings(shards=before))
    fill(queue, before, connection)
    seen = picture(queue)
    chance, deaths = random.Random(after), 0
    while True:
        mortal.left = chance.randrange(1, 60) + 20 * deaths
        try:
            spread(connection, mortal, before, after)
            break
        except Died:
            deaths += 1
    assert deaths > 10
    assert structure.problems(connection, after) == []
    assert picture(Queue(connection, Settings(shards=after))) == seen


def test_another_number_than_is_written_is_refused_with_the_command(connection: redis.Redis) -> None:
    Queue(connection, Settings(shards=2)).hold_shards()
    Queue(connection, Settings(shards=2)).hold_shards()
    with pytest.raises(EngineError, match="--reshard 3"):
        Queue(connection, Settings(shards=3)).hold_shards()
    connection.set(key("shards"), "2>5")
    for shards in (2, 5):
        with pytest.raises(EngineError, match="--reshard 5"):
            Queue(connection, Settings(shards=shards)).hold_shards()


def test_data_of_an_earlier_version_are_one_shard(connection: redis.Redis) -> None:
    Queue(connection, Settings()).add([BV[0]])
    with pytest.raises(EngineError, match="lies in 1 shards"):
        Queue(connection, Settings(shards=2)).hold_shards()
    assert not connection.exists(key("shards"))
    Queue(connection, Settings()).hold_shards()
    assert connection.get(key("shards")) == "1"


def test_data_that_were_lost_are_of_the_same_number_again(queue: Queue, connection: redis.Redis) -> None:
    queue.hold_shards()
    connection.flushall()
    queue.sweep()
    assert connection.get(key("shards")) == str(SHARDS)


def test_a_server_that_goes_on_after_the_data_were_moved_changes_nothing(queue: Queue, connection: redis.Redis) -> None:
    queue.hold_shards()
    connection.set(key("shards"), f"{SHARDS}>2")
    with pytest.raises(EngineError, match="start again"):
        queue.sweep()
    with pytest.raises(EngineError, match="start again"):
        queue.add([BV[0]])
    assert queue.counts().ready == 0


# ------------------------------------------------------------------------------------------ the command


class Scripts:
    """The scripts as a user starts them, on the Valkey of the tests."""

    def __init__(self, folder: Path, socket: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BILI_", "REDIS_"))}
        self.environ = {**kept, "REDIS_URL": f"unix://{socket}", "BILI_DATA_DIR": str(folder), "LANGUAGE": "en"}

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, env={**self.environ, **more}, **pipes)  # type: ignore[call-overload, no-any-return]

    def run(self, *command: str, **more: str) -> tuple[int, str]:
        process = self.start(*command, **more)
        output, _errors = process.communicate(timeout=60)
        return process.returncode, output


@pytest.fixture
def scripts(tmp_path: Path, valkey_socket: str, connection: redis.Redis) -> Scripts:
    return Scripts(tmp_path, valkey_socket)


@pytest.mark.slow
def test_programs_that_are_set_otherwise_end_with_status_2(scripts: Scripts) -> None:
    assert scripts.run("add_url.py", BV[0], BILI_SHARDS="2")[0] == 0
    for command in (("add_url.py", BV[1]), ("web_server.py", "--port", "0")):
        status, output = scripts.run(*command, BILI_SHARDS="3")
        assert status == 2 and "python web_server.py --reshard 3" in output
    status, output = scripts.run("web_server.py", "--reshard", "3")
    assert status == 0 and "BILI_SHARDS=3" in output
    assert scripts.run("add_url.py", BV[1], BILI_SHARDS="3")[0] == 0
    assert scripts.run("web_server.py", "--reshard", "65")[0] == 2


@pytest.mark.slow
def test_nothing_is_moved_while_a_server_or_a_worker_lives(scripts: Scripts, connection: redis.Redis) -> None:
    queue = Queue(connection, Settings())
    queue.hold_shards()
    queue.heartbeat("some-worker", [], {"state": "works"})
    status, output = scripts.run("web_server.py", "--reshard", "2")
    assert status == 2 and "some-worker" in output
    queue.heartbeat("some-worker", [], {"state": "ended"})
    server = scripts.start("web_server.py", "--port", "0")
    try:
        wait_until("the server sweeps", lambda: connection.exists(key("swept")))
        status, output = scripts.run("web_server.py", "--reshard", "2")
        assert status == 2 and "Alive: web_server.py" in output
    finally:
        server.kill()
        server.communicate()
    assert connection.get(key("shards")) == "1"
    assert scripts.run("web_server.py", "--reshard", "2")[0] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_is_killed_again_and_again_and_ends(scripts: Scripts, connection: redis.Redis) -> None:
    queue = Queue(connection, Settings())
    fill(queue, 1, connection)
    queue.hold_shards()
    seen, chance, kills = picture(queue), random.Random(7), 0
    while True:
        process = scripts.start("web_server.py", "--reshard", "5")
        began = count_of_writes(connection)
        wanted = began + chance.randrange(10, 100) + 50 * kills
        while process.poll() is None and count_of_writes(connection) < wanted:
            time.sleep(0.001)  # how far it is can only be asked
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    output, _errors = process.communicate()
    assert process.returncode == 0, output
    assert kills > 2
    assert structure.problems(connection, 5) == []
    assert picture(Queue(connection, Settings(shards=5))) == seen


def count_of_writes(connection: redis.Redis) -> int:
    stats = connection.info("commandstats")
    return sum(
        stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("del", "sadd", "hset", "hdel", "zrem", "evalsha")
    )
