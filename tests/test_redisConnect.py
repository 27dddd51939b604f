"""The queue against a real Valkey: each promise of its verbs, then a model that makes them in any order."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from config import Settings
from errors import EngineError, StaleToken
from model import Added, Counts, Failure, Lease, Page, Result
from parse_ import aid_to_bvid
from redisConnect import Queue, open_queue
from store.data import BUCKETS, key, shard_of_id
from tests import structure
from tests.conftest import engine_binary
from tests.farm import free_port

BV = [aid_to_bvid(aid) for aid in range(170001, 170021)]
TRANSIENT = Failure("transient", "-500", "the site stumbled")
PERMANENT = Failure("permanent", "-404", "deleted")
ENVIRONMENT = Failure("environment", "disk-full", "no room")
WAITING = Failure("waiting", "below-floor", "login?")


def pages(*cids: int) -> list[Page]:
    return [Page(number, cid, f"part {number}") for number, cid in enumerate(cids, 1)]


def result(cid: int) -> Result:
    return Result(f"other/{cid}.mp4", 1000 + cid, 12.5, f"title {cid}")


def lease_one(queue: Queue, worker: str = "w1", **more: object) -> Lease:
    (lease,) = queue.lease(worker, 1, **more)  # type: ignore[arg-type]
    return lease


def let_expire(connection: redis.Redis, *urls: str, shards: int = 1) -> None:
    """Move deadlines into the past: the tests do not wait for the clock."""
    for url in urls:
        let_fall_due(connection, "leased", url, shards)


def let_fall_due(connection: redis.Redis, name: str, url: str, shards: int = 1) -> None:
    connection.zadd(key(name, shard_of_id(url, shards)), {url: 1})


def page_lease(queue: Queue, bvid: str = BV[0], cid: int = 7, worker: str = "w1") -> Lease:
    """Add a video of one page and return the lease of that page."""
    queue.add([bvid])
    lease = lease_one(queue, worker)
    expanded = queue.expand(lease.url, lease.token, pages(cid))
    assert expanded.lease is not None
    return expanded.lease


# ------------------------------------------------------------------------------------------ add


def test_ready_is_a_list_of_bv_ids(queue: Queue, connection: redis.Redis) -> None:
    added = queue.add([BV[0], BV[1], BV[0]])
    assert (added.added, added.known) == (2, 1)
    assert connection.lrange("{bili:0}:ready", 0, -1) == [BV[0], BV[1]]


def test_a_video_that_was_closed_is_known_and_refresh_asks_it_again(queue: Queue) -> None:
    lease = page_lease(queue)
    queue.ack(lease.url, lease.token, result(7))
    assert queue.add([BV[0]]).known == 1
    assert queue.counts() == Counts(0, 0, 0, 1, 0)
    assert queue.add([BV[0]], refresh=True).known == 1
    again = lease_one(queue)
    assert again.url == BV[0]
    expanded = queue.expand(again.url, again.token, pages(7, 8))
    assert (expanded.added, expanded.known) == (1, 1)
    assert expanded.lease is not None and expanded.lease.url == f"{BV[0]}?p=2&cid=8"


def test_refresh_of_a_video_that_is_still_open_queues_nothing(queue: Queue) -> None:
    queue.add([BV[0]])
    queue.add([BV[0]], refresh=True)
    assert queue.counts().ready == 1


def test_a_refresh_of_a_video_that_is_being_read_reads_it_once_more(queue: Queue) -> None:
    """Its worker may have read the pages before the new one was there."""
    queue.add([BV[0]], "music")
    lease = lease_one(queue)
    queue.add([BV[0]], refresh=True)
    first = queue.expand(lease.url, lease.token, pages(7)).lease
    assert first is not None
    again = lease_one(queue)
    assert (again.url, again.category) == (BV[0], "music")
    assert queue.expand(again.url, again.token, pages(7, 8)).added == 1
    queue.add([BV[0]])
    assert queue.counts().ready == 0  # it is closed now


def test_single_pages_of_any_number_are_containers_of_their_own(queue: Queue) -> None:
    """A page number must not run into the next video's."""
    ids = [f"{bvid}?p={number}" for bvid in BV[:3] for number in (1, 2, 4096, 4097, 99999)]
    assert queue.add([*ids, BV[0]]).added == 16
    assert queue.add(ids).known == 15


def test_a_repeated_add_is_counted_the_same(queue: Queue) -> None:
    first = queue.add([BV[0], BV[1]], request="r1")
    assert queue.add([BV[0], BV[1]], request="r1") == first
    assert queue.counts().ready == 2


def test_a_hundred_clients_add_the_same_video_and_one_job_results(queue: Queue) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _n: queue.add([BV[3]]), range(100)))
    assert sum(answer.added for answer in answers) == 1
    assert sum(answer.known for answer in answers) == 99
    assert queue.counts().ready == 1


@pytest.mark.parametrize("bad", ["x}{y", "*", "BV1\n", "", "BV1xx411c7m", "av17", f"{BV[0]}?p=1&cid=5"])
def test_what_is_no_container_id_is_refused(queue: Queue, bad: str, connection: redis.Redis) -> None:
    with pytest.raises(ValueError, match=r"."):
        queue.add([bad])
    assert connection.dbsize() == 0


# ------------------------------------------------------------------------------------------ lease


def test_a_lease_carries_category_and_attempt(queue: Queue) -> None:
    queue.add([BV[0]], category="music")
    lease = lease_one(queue)
    assert (lease.url, lease.category, lease.attempt, lease.lease_seconds) == (BV[0], "music", 1, 60.0)
    assert queue.counts() == Counts(0, 1, 0, 0, 0)


def test_a_repeated_request_returns_the_same_leases_that_are_still_valid(queue: Queue) -> None:
    queue.add(BV[:3])
    first = queue.lease("w1", 2, request="r")
    assert queue.lease("w1", 2, request="r") == first
    queue.release(first[0].url, first[0].token)
    assert queue.lease("w1", 2, request="r") == first[1:]
    assert queue.counts() == Counts(2, 1, 0, 0, 0)


def test_an_empty_poll_writes_nothing_but_that_the_worker_lives(queue: Queue, connection: redis.Redis) -> None:
    queue.lease("w1", 4)
    before = connection.info("commandstats")
    queue.lease("w1", 4)
    after = connection.info("commandstats")
    writes = ("zadd", "set", "hset", "rpush", "lpush", "incr")
    grown = [name for name in writes if _calls(after, name) != _calls(before, name)]
    assert grown == []


def _calls(stats: dict[str, dict[str, int]], name: str) -> int:
    return stats.get(f"cmdstat_{name}", {}).get("calls", 0)


def test_concurrent_leases_never_hand_out_one_job_twice(queue: Queue) -> None:
    queue.add(BV)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: queue.lease(f"w{n}", 3), range(10)))
    urls = [lease.url for answer in answers for lease in answer]
    assert sorted(urls) == sorted(BV)


def test_an_expired_lease_goes_back_to_the_head(queue: Queue, connection: redis.Redis) -> None:
    queue.add(BV[:3])
    lease_one(queue)
    let_expire(connection, BV[0])
    assert queue.sweep() == 1
    assert connection.lrange("{bili:0}:ready", 0, -1) == BV[:3]


def test_heartbeats_keep_a_lease_and_name_lost_ones(queue: Queue, connection: redis.Redis) -> None:
    queue.add(BV[:2])
    kept, lost = queue.lease("w1", 2)
    let_expire(connection, kept.url, lost.url)
    assert queue.heartbeat("w1", [(kept.url, kept.token, False), (lost.url, "another", False)], {}) == [lost.url]
    queue.sweep()
    assert queue.counts() == Counts(1, 1, 0, 0, 0)


def test_a_job_with_chunks_waits_for_its_worker_and_have_brings_it(queue: Queue, connection: redis.Redis) -> None:
    lease = page_lease(queue)
    queue.heartbeat("w1", [(lease.url, lease.token, True)], {})
    let_expire(connection, lease.url)
    assert queue.lease("w2", 1) == ()
    assert queue.counts().ready == 1
    assert lease_one(queue, "w1", have=[lease.url]).url == lease.url


def test_a_job_that_waits_for_its_worker_comes_also_when_that_has_no_chunks_any_more(
    queue: Queue, connection: redis.Redis
) -> None:
    lease = page_lease(queue)
    queue.heartbeat("w1", [(lease.url, lease.token, True)], {})
    let_expire(connection, lease.url)
    assert queue.lease("w2", 1) == ()
    assert lease_one(queue, "w1").url == lease.url
    assert connection.zcard("{bili:0}:kept") == 0


def test_a_job_with_chunks_goes_to_anyone_after_the_affinity(queue: Queue, connection: redis.Redis) -> None:
    lease = page_lease(queue)
    queue.heartbeat("w1", [(lease.url, lease.token, True)], {})
    let_expire(connection, lease.url)
    queue.sweep()
    let_fall_due(connection, "kept", lease.url)
    assert lease_one(queue, "w2").url == lease.url


def test_a_job_of_which_nothing_is_on_disk_waits_for_nobody(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue)
    queue.heartbeat("w1", [(lease.url, lease.token, 0)], {})
    let_expire(connection, lease.url)
    assert queue.sweep() == 1
    assert connection.lrange("{bili:0}:ready", 0, -1) == [BV[0]]


def test_chunks_on_a_machine_that_lost_the_job_do_not_make_it_wait_for_the_next_one(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    first = lease_one(queue, "w1")
    queue.heartbeat("w1", [(first.url, first.token, 5)], {})
    let_expire(connection, first.url)
    queue.sweep()
    let_fall_due(connection, "kept", first.url)
    assert queue.sweep() == 1
    lease_one(queue, "w2")  # and it dies before it has a byte
    let_expire(connection, first.url)
    queue.sweep()
    assert not connection.exists("{bili:0}:kept")


def test_a_released_job_is_there_at_once_for_anyone(queue: Queue) -> None:
    lease = page_lease(queue)
    queue.heartbeat("w1", [(lease.url, lease.token, True)], {})
    assert queue.release(lease.url, lease.token) == "ready"
    assert lease_one(queue, "w2").attempt == 1


def test_have_brings_a_job_from_the_middle_of_the_list(queue: Queue) -> None:
    queue.add(BV[:5])
    assert lease_one(queue, have=[BV[3]]).url == BV[3]


def test_a_worker_started_anew_gets_its_jobs_back_before_the_deadline(queue: Queue) -> None:
    lease = page_lease(queue)
    (old,) = [lease]
    queue.release(old.url, old.token)
    first = lease_one(queue, "w1", instance="1")
    queue.heartbeat("w1", [(first.url, first.token, True)], {})
    again = lease_one(queue, "w1", instance="2", have=[first.url])
    assert again.url == first.url and again.token != first.token
    with pytest.raises(StaleToken):
        queue.ack(first.url, first.token, result(7))


def test_a_request_of_a_dead_process_that_comes_late_takes_nothing_from_its_successor(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue, "w1", instance="2")
    assert queue.lease("w1", 1, have=[BV[0]], instance="1") == ()
    assert queue.heartbeat("w1", [(BV[0], lease.token, 0)], {}) == []
    assert deaths_of(connection, BV[0]) == 0


def test_two_machines_of_one_name_take_nothing_from_each_other(queue: Queue, connection: redis.Redis) -> None:
    """A cloned machine has its twin's name: what the twin has renewed since is not left behind by a dead process."""
    queue.add(BV[:2])
    one = lease_one(queue, "w1", instance="one")
    two = lease_one(queue, "w1", instance="two")
    for _turn in range(4):
        connection.zincrby("{bili:0}:started", -5, "w1 one")  # as if time had gone on
        connection.zincrby("{bili:0}:started", -5, "w1 two")
        queue.heartbeat("w1", [(one.url, one.token, 9)], {})
        queue.heartbeat("w1", [(two.url, two.token, 9)], {})
        assert queue.lease("w1", 1, have=[two.url], instance="one") == ()
        assert queue.lease("w1", 1, have=[one.url], instance="two") == ()
    assert queue.counts() == Counts(0, 2, 0, 0, 0)
    (taken,) = queue.lease("w1", 1, have=[one.url], instance="three")  # a new process: the old one may be dead
    assert taken.url == one.url


def test_the_same_process_or_another_worker_takes_nothing_by_have(queue: Queue) -> None:
    queue.add([BV[0]])
    lease_one(queue, "w1", instance="one")
    assert queue.lease("w1", 1, have=[BV[0]], instance="one") == ()
    assert queue.lease("w2", 1, have=[BV[0]], instance="two") == ()


# ------------------------------------------------------------------------------------------ poison


def deaths_of(connection: redis.Redis, url: str) -> int:
    return int(json.loads(connection.hget("{bili:0}:tries", url) or '{"deaths":0}')["deaths"])


def die(queue: Queue, connection: redis.Redis, worker: str) -> None:
    let_expire(connection, lease_one(queue, worker).url)
    queue.sweep()


def test_a_job_whose_worker_died_twice_is_leased_alone_and_dead_after_the_third(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add(BV[:3])
    assert lease_one(queue, "w3", have=[BV[1]]).url == BV[1]
    die(queue, connection, "w1")
    die(queue, connection, "w2")
    assert queue.lease("w3", 1) == ()  # it holds something: it does not get the suspect
    assert [lease.url for lease in queue.lease("w4", 5)] == [BV[0]]
    assert queue.lease("w4", 5) == ()  # and nothing beside it
    assert lease_one(queue, "w3").url == BV[2]
    let_expire(connection, BV[0])
    queue.sweep()
    (failure,), _next = queue.failed("", 10)
    assert (failure["url"], failure["state"], failure["code"]) == (BV[0], "dead", "poison")
    assert "again and again" in failure["reason"]


def kill_three_times(queue: Queue, connection: redis.Redis) -> None:
    """Let the first job die with three workers, the last of which held nothing else."""
    for worker in ("w1", "w2", "w3"):
        die(queue, connection, worker)


def test_where_other_workers_die_too_three_deaths_prove_nothing_and_eight_do(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add(BV[:2])
    assert lease_one(queue, "other", have=[BV[1]]).url == BV[1]
    let_expire(connection, BV[1])
    queue.sweep()
    assert lease_one(queue, "other", have=[BV[1]]).url == BV[1]
    kill_three_times(queue, connection)
    for death in range(4, 9):
        assert queue.counts().dead == 0, death
        die(queue, connection, "w3")
    assert queue.failed("", 10)[0][0]["code"] == "poison"


def test_jobs_that_died_of_poison_are_told_once(queue: Queue, connection: redis.Redis) -> None:
    found, after_ms = queue.poisoned()
    assert found == []
    queue.add(BV[:2])
    refused = lease_one(queue, have=[BV[1]])
    queue.nack(refused.url, refused.token, PERMANENT)
    kill_three_times(queue, connection)
    found, next_ms = queue.poisoned(tuple(at_ms - 1000 for at_ms in after_ms))
    assert found == [BV[0]]
    assert queue.poisoned(next_ms) == ([], next_ms)


def test_a_death_long_before_the_first_one_excuses_nothing(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    ago = (connection.time()[0] - 61) * 1000
    connection.zadd("{bili:0}:deaths", {"other 1": ago})
    kill_three_times(queue, connection)
    assert queue.counts().dead == 1


@pytest.mark.parametrize("seconds", [0, 50])
def test_a_death_shortly_before_the_first_one_is_an_excuse(queue: Queue, connection: redis.Redis, seconds: int) -> None:
    queue.add([BV[0]])
    ago = (connection.time()[0] - seconds) * 1000
    connection.zadd("{bili:0}:deaths", {"other 1": ago})
    kill_three_times(queue, connection)
    assert queue.counts().dead == 0


def test_jobs_that_died_with_the_same_worker_do_not_excuse_each_other(queue: Queue, connection: redis.Redis) -> None:
    queue.add(BV[:2])
    for worker in ("w1", "w2"):
        let_expire(connection, *(lease.url for lease in queue.lease(worker, 2)))
        queue.sweep()
    die(queue, connection, "w3")
    die(queue, connection, "w4")  # each of the two alone; and the death of the first alone excuses not the second
    assert queue.counts().dead == 2


def test_a_worker_that_dies_again_and_again_is_one_worker_for_each_of_its_processes(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    for instance in ("one", "two", "three"):
        let_expire(connection, lease_one(queue, "w1", instance=instance).url)
        queue.sweep()
    assert queue.counts().dead == 1
    assert connection.zrange("{bili:0}:deaths", 0, -1) == ["w1 one", "w1 two"]


def test_a_worker_of_no_instance_that_dies_twice_with_a_job_is_no_excuse_for_it_but_another_is(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add(BV[:2])
    lease_one(queue, "other", have=[BV[1]])
    let_expire(connection, BV[1])
    queue.sweep()
    lease_one(queue, "w4", have=[BV[1]])
    for worker in ("w1", "w1", "w2"):
        die(queue, connection, worker)
    assert queue.counts().dead == 0


@pytest.mark.parametrize("excuse", [0, 1])
def test_own_deaths_that_are_forgotten_are_not_counted_against_those_of_others(
    queue: Queue, connection: redis.Redis, excuse: int
) -> None:
    queue.add([BV[0]])
    for worker in ("w1", "w2"):
        die(queue, connection, worker)
    connection.zrem("{bili:0}:deaths", "w1 ", "w2 ")
    if excuse:
        connection.zadd("{bili:0}:deaths", {"other ": connection.time()[0] * 1000})
    die(queue, connection, "w3")
    assert queue.counts().dead == 1 - excuse


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_only_a_job_that_is_no_suspect_is_kept_for_its_worker(
    queue: Queue, connection: redis.Redis, deaths: int
) -> None:
    queue.add([BV[0]])
    for number in range(deaths):
        die(queue, connection, f"w{number}")
    lease = lease_one(queue, "w9")
    connection.hset("{bili:0}:tries", BV[0], json.dumps({"attempts": 0, "deaths": deaths, "worker": "w9"}))
    queue.heartbeat("w9", [(BV[0], lease.token, 5)], {})
    assert queue.nack(BV[0], lease.token, TRANSIENT) == "delayed"
    let_fall_due(connection, "delayed", BV[0])
    assert queue.sweep() == 1
    assert connection.zcard("{bili:0}:kept") == (deaths < 2)
    assert connection.llen("{bili:0}:suspect") == (deaths >= 2)
    assert structure.problems(connection) == []


def test_without_affinity_no_job_waits_for_its_worker(connection: redis.Redis, settings: Settings) -> None:
    queue = Queue(connection, replace(settings, affinity_seconds=0))
    queue.add([BV[0]])
    lease = lease_one(queue)
    queue.heartbeat("w1", [(BV[0], lease.token, 5)], {})
    let_expire(connection, BV[0])
    assert queue.sweep() == 1
    assert connection.lrange("{bili:0}:ready", 0, -1) == [BV[0]]


def test_deaths_are_forgotten_after_a_day(queue: Queue, connection: redis.Redis) -> None:
    day_ago = (connection.time()[0] - 86_401) * 1000
    connection.zadd("{bili:0}:deaths", {"old 1": day_ago, "new 1": day_ago + 3_600_000})
    queue.sweep()
    assert connection.zrange("{bili:0}:deaths", 0, -1) == ["new 1"]


def test_a_suspect_makes_one_busy_worker_finish_what_it_holds_and_take_no_more(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add(BV[:6])
    first, second = (lease_one(queue, worker, have=[bv]) for worker, bv in (("w3", BV[1]), ("w4", BV[2])))
    die(queue, connection, "w1")
    die(queue, connection, "w2")
    assert queue.lease("w3", 1) == ()
    assert [lease.url for lease in queue.lease("w4", 1)] == [BV[3]]  # one at a time; the others go on
    assert queue.lease("w3", 1) == ()
    queue.release(first.url, first.token)
    assert lease_one(queue, "w3").url == BV[0]
    assert [lease.url for lease in queue.lease("w4", 1)] == [BV[1]]
    assert second.url == BV[2]


def test_a_worker_that_finishes_for_a_suspect_and_is_gone_is_followed_by_another(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add(BV[:6])
    for worker, bv in (("w3", BV[1]), ("w4", BV[2])):
        lease_one(queue, worker, have=[bv])
    die(queue, connection, "w1")
    die(queue, connection, "w2")
    assert queue.lease("w3", 1) == ()
    connection.zadd("{bili:0}:draining", {"w3": 1}, xx=True)  # its time is over
    assert queue.lease("w4", 1) == ()
    assert connection.zrange("{bili:0}:draining", 0, -1) == ["w4"]


def test_a_worker_that_was_cut_off_and_comes_back_has_not_been_killed_by_its_jobs(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    for turn in range(5):
        lease = lease_one(queue, f"w{turn}")
        let_expire(connection, lease.url)
        queue.sweep()
        assert queue.heartbeat(f"w{turn}", [(lease.url, lease.token, False)], {}) == [lease.url]
        queue.heartbeat(f"w{turn}", [(lease.url, lease.token, False)], {})  # said twice, it counts once
        assert deaths_of(connection, BV[0]) == 0
    assert queue.counts() == Counts(1, 0, 0, 0, 0)
    assert connection.llen("{bili:0}:ready") == 1  # it is no suspect


def test_only_the_lease_that_was_lost_last_is_taken_off_again(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    leases = []
    for worker in ("w1", "w2"):
        leases.append(lease_one(queue, worker))
        let_expire(connection, BV[0])
        queue.sweep()
    for token in (leases[0].token, "another", leases[1].token + "0"):
        assert queue.heartbeat("w1", [(BV[0], token, 0)], {}) == [BV[0]]
        assert deaths_of(connection, BV[0]) == 2
    queue.heartbeat("w2", [(BV[0], leases[1].token, 0)], {})
    assert deaths_of(connection, BV[0]) == 1
    kept = queue.lease("w3", 1)
    assert [lease.url for lease in kept] == [BV[0]]
    queue.heartbeat("w2", [(BV[0], leases[1].token, 0)], {})  # again, while another has it
    assert deaths_of(connection, BV[0]) == 1
    assert queue.heartbeat("w3", [(BV[0], kept[0].token, 0)], {}) == []


def test_a_job_that_was_called_poison_lives_again_when_its_worker_comes_back(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    die(queue, connection, "w1")
    die(queue, connection, "w2")
    lease = lease_one(queue, "w3")
    let_expire(connection, lease.url)
    queue.sweep()
    assert queue.counts().dead == 1
    queue.heartbeat("w3", [(lease.url, lease.token, False)], {})
    assert queue.counts() == Counts(1, 0, 0, 0, 0)
    assert queue.failed("", 10) == ([], None)


def test_after_an_outage_of_the_queue_leases_get_a_term_to_be_renewed_in(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue)
    let_expire(connection, lease.url)
    connection.decrby("{bili:0}:swept", 60_000)
    assert queue.sweep() == 0
    assert queue.sweep() == 0
    assert queue.heartbeat("w1", [(lease.url, lease.token, False)], {}) == []
    let_expire(connection, lease.url)
    connection.set("{bili:0}:grace", 1)  # the term is over
    assert queue.sweep() == 1


def test_a_clock_that_jumps_back_stops_nothing(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue)
    day = 86_400_000
    connection.incrby("{bili:0}:swept", day)
    connection.set("{bili:0}:grace", int(connection.zscore("{bili:0}:leased", lease.url) + day))
    connection.zincrby("{bili:0}:leased", day, lease.url)  # written before the clock was set back
    assert queue.sweep() == 0
    assert connection.zscore("{bili:0}:leased", lease.url) <= (connection.time()[0] + 61) * 1000
    let_expire(connection, lease.url)
    assert queue.sweep() == 1


def test_a_job_that_gets_further_from_death_to_death_is_innocent(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    for turn in range(6):
        lease = lease_one(queue, "w1", have=[BV[0]])
        queue.heartbeat("w1", [(lease.url, lease.token, (turn + 1) * 5_000_000)], {})
        assert deaths_of(connection, lease.url) == 0
        let_expire(connection, lease.url)
        queue.sweep()
        connection.zadd("{bili:0}:kept", {lease.url: 1}, xx=True)
    assert queue.counts() == Counts(1, 0, 0, 0, 0)


def test_deaths_before_a_job_got_further_are_its_own_and_no_excuse_for_those_after(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    die(queue, connection, "w1")
    die(queue, connection, "w2")
    lease = lease_one(queue, "w3")
    queue.heartbeat("w3", [(lease.url, lease.token, 5_000_000)], {})
    assert deaths_of(connection, lease.url) == 0
    let_expire(connection, lease.url)
    queue.sweep()
    for worker in ("w4", "w5"):
        connection.zadd("{bili:0}:kept", {lease.url: 1}, xx=True)
        queue.sweep()
        die(queue, connection, worker)
    assert queue.counts() == Counts(0, 0, 0, 0, 1)


MIB = 2**20


@pytest.mark.parametrize("taken_over", [True, False])
def test_what_a_process_could_not_tell_before_it_died_is_told_by_its_successor(
    queue: Queue, connection: redis.Redis, taken_over: bool
) -> None:
    """Killed every few seconds, before any heartbeat, a worker gets further all the same: its page does not kill."""
    queue.add([BV[0]])
    queue.lease("w1", 1, instance="0")
    for turn in range(1, 7):
        if not taken_over:
            let_expire(connection, BV[0])
            queue.sweep()
        (lease,) = queue.lease("w1", 1, have=[BV[0]], instance=str(turn), have_bytes=[turn * 8 * MIB])
        assert lease.url == BV[0]
        assert deaths_of(connection, BV[0]) == 1
        assert structure.problems(connection) == []
    (lease,) = queue.lease("w1", 1, have=[BV[0]], instance="7", have_bytes=[48 * MIB])  # no further any more
    assert deaths_of(connection, BV[0]) == 2
    assert queue.lease("w1", 1, have=[BV[0]], instance="8", have_bytes=[48 * MIB]) == ()
    assert queue.counts().dead == 1


def test_a_suspect_whose_worker_had_come_further_is_none(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    die(queue, connection, "w1")
    (lease,) = queue.lease("w1", 1, instance="one")
    let_expire(connection, lease.url)
    queue.sweep()
    assert connection.llen("{bili:0}:suspect") == 1
    connection.hset("{bili:0}:holds", "w1", 1)  # it has other work, and room for none
    assert queue.lease("w1", 0, have=[BV[0]], instance="two", have_bytes=[MIB]) == ()  # no more than a mark
    assert connection.llen("{bili:0}:suspect") == 1
    assert queue.lease("w1", 0, have=[BV[0]], instance="three", have_bytes=[MIB + 1]) == ()
    connection.hdel("{bili:0}:holds", "w1")
    assert connection.lrange("{bili:0}:ready", 0, -1) == [BV[0]]
    assert deaths_of(connection, BV[0]) == 1
    assert structure.problems(connection) == []


def test_a_dead_job_whose_worker_had_come_further_lives(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    for instance in ("one", "two", "three"):
        (lease,) = queue.lease("w1", 1, instance=instance)
        let_expire(connection, lease.url)
        queue.sweep()
    assert queue.counts().dead == 1
    assert queue.lease("w2", 0, have=[BV[0]], instance="x", have_bytes=[9 * MIB]) == ()  # it was not this worker's
    assert queue.counts().dead == 1
    (lease,) = queue.lease("w1", 1, have=[BV[0]], instance="four", have_bytes=[9 * MIB])
    assert lease.url == BV[0]
    assert queue.counts() == Counts(0, 1, 0, 0, 0)
    assert structure.problems(connection) == []


def test_only_the_first_request_of_a_process_tells_what_its_predecessor_had(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    queue.lease("w1", 1, instance="one")
    let_expire(connection, BV[0])
    queue.sweep()
    die(queue, connection, "w1")
    connection.hset("{bili:0}:holds", "w1", 1)  # it has other work, and room for none
    assert queue.lease("w1", 0, instance="two") == ()
    queue.lease("w1", 0, have=[BV[0]], instance="two", have_bytes=[9 * MIB])
    assert deaths_of(connection, BV[0]) == 2


def test_a_job_that_dies_at_the_same_point_each_time_is_poison(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    for turn in range(4):
        lease = lease_one(queue, f"w{turn}")
        queue.heartbeat(f"w{turn}", [(lease.url, lease.token, 5_000_000)], {})
        let_expire(connection, lease.url)
        queue.sweep()
        connection.zadd("{bili:0}:kept", {lease.url: 1}, xx=True)
        if queue.counts().dead:
            break
    assert queue.counts() == Counts(0, 0, 0, 0, 1)


def test_an_environment_failure_that_comes_again_lets_others_go_first(queue: Queue) -> None:
    queue.add(BV[:2])
    for _turn in range(2):
        lease = lease_one(queue)
        assert lease.url == BV[0]
        queue.nack(lease.url, lease.token, ENVIRONMENT)
    assert [lease.url for lease in queue.lease("w1", 2)] == [BV[1], BV[0]]


def test_an_absurd_size_is_recorded_and_nothing_is_half_done(queue: Queue) -> None:
    for cid in (7, 8):
        lease = page_lease(queue, BV[cid], cid)
        assert queue.ack(lease.url, lease.token, Result("a/b.mp4", 2**63 - 1, 1.0)) == "done"
    assert queue.counts() == Counts(0, 0, 0, 2, 0)
    assert len(queue.success("", 5)[0]) == 2


def test_a_suspect_that_ends_well_frees_its_worker(queue: Queue, connection: redis.Redis) -> None:
    queue.add(BV[:2])
    die(queue, connection, "w1")
    die(queue, connection, "w1")
    alone = lease_one(queue, "w2")
    expanded = queue.expand(alone.url, alone.token, pages(5))
    assert expanded.lease is not None
    queue.ack(expanded.lease.url, expanded.lease.token, result(5))
    assert lease_one(queue, "w2").url == BV[1]


# ------------------------------------------------------------------------------------------ expand


def test_expanding_queues_each_unseen_page_in_order_and_leases_the_first(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0], BV[1]], category="course")
    lease = lease_one(queue)
    expanded = queue.expand(lease.url, lease.token, pages(11, 12, 13))
    assert (expanded.added, expanded.known) == (3, 0)
    assert expanded.lease is not None
    assert (expanded.lease.url, expanded.lease.category) == (f"{BV[0]}?p=1&cid=11", "course")
    rest = [f"{BV[0]}?p=2&cid=12", f"{BV[0]}?p=3&cid=13", BV[1]]
    assert connection.lrange("{bili:0}:ready", 0, -1) == rest
    assert queue.counts() == Counts(3, 1, 0, 0, 0)


def test_a_repeated_expand_answers_the_same(queue: Queue) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue)
    first = queue.expand(lease.url, lease.token, pages(11, 12))
    assert queue.expand(lease.url, lease.token, pages(11, 12)) == first
    assert queue.counts() == Counts(1, 1, 0, 0, 0)


def test_a_page_reached_by_two_containers_is_one_job(queue: Queue) -> None:
    first = page_lease(queue, cid=99)
    queue.add(["ep4711"])
    episode = lease_one(queue)
    expanded = queue.expand(episode.url, episode.token, pages(99))
    assert (expanded.added, expanded.known, expanded.lease) == (0, 1, None)
    queue.ack(first.url, first.token, result(99))
    assert queue.counts() == Counts(0, 0, 0, 1, 0)


def test_many_pages_come_in_several_calls(queue: Queue) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue)
    many = pages(*range(1000, 2000))
    first = queue.expand(lease.url, lease.token, many[:500], more=True)
    assert (first.added, first.lease) == (500, None)
    assert queue.expand(lease.url, lease.token, many[:500], more=True).known == 500
    last = queue.expand(lease.url, lease.token, many[500:])
    assert (last.added, last.lease is not None) == (500, True)
    assert queue.counts() == Counts(999, 1, 0, 0, 0)


def test_each_of_several_calls_keeps_the_lease(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    container = lease_one(queue)
    let_expire(connection, BV[0])
    queue.expand(BV[0], container.token, pages(1), more=True)
    assert connection.zscore("{bili:0}:leased", BV[0]) > connection.time()[0] * 1000
    assert queue.sweep() == 0


def test_a_source_lists_containers_at_the_tail(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0], BV[1]])
    lease = lease_one(queue)
    expanded = queue.expand(lease.url, lease.token, [], urls=[BV[1], BV[2]])
    assert (expanded.added, expanded.known, expanded.lease) == (1, 1, None)
    assert connection.lrange("{bili:0}:ready", 0, -1) == [BV[1], BV[2]]


def test_an_interrupted_expansion_is_completed_by_the_next_worker(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue)
    queue.expand(lease.url, lease.token, pages(1, 2, 3), more=True)
    let_expire(connection, lease.url)
    again = lease_one(queue, "w2")
    assert again.url == BV[0]
    assert queue.expand(again.url, again.token, pages(1, 2, 3, 4)).known == 3
    assert queue.counts().ready + queue.counts().leased == 4


# ------------------------------------------------------------------------------------------ ack, nack, release


def test_ack_twice_is_recorded_once(queue: Queue, connection: redis.Redis) -> None:
    lease = page_lease(queue, cid=7)
    with ThreadPoolExecutor(3) as pool:
        states = list(pool.map(lambda _n: queue.ack(lease.url, lease.token, result(7)), range(3)))
    assert states == ["done"] * 3
    assert queue.counts() == Counts(0, 0, 0, 1, 0)
    assert connection.sismember(f"{{bili:0}}:done:{7 % BUCKETS}", "7")
    (success,), following = queue.success("", 10)
    assert following is None
    assert (success["url"], success["path"], success["bytes"]) == (lease.url, "other/7.mp4", 1007)
    assert (success["title"], success["worker"]) == ("title 7", "w1")


def test_nothing_of_a_finished_job_is_left_but_its_record(queue: Queue, connection: redis.Redis) -> None:
    lease = page_lease(queue)
    queue.ack(lease.url, lease.token, result(7))
    for name in ("token", "tries", "origin", "holds", "leased", "failed"):
        assert not connection.exists(f"{{bili:0}}:{name}"), name


def test_only_the_current_token_counts(queue: Queue, connection: redis.Redis) -> None:
    old = page_lease(queue)
    let_expire(connection, old.url)
    new = lease_one(queue, "w2")
    for verb in (
        lambda: queue.ack(old.url, old.token, result(7)),
        lambda: queue.nack(old.url, old.token, TRANSIENT),
        lambda: queue.release(old.url, old.token),
        lambda: queue.ack(old.url, new.token + "0", result(7)),
    ):
        with pytest.raises(StaleToken):
            verb()
    assert queue.counts() == Counts(0, 1, 0, 0, 0)
    assert queue.ack(new.url, new.token, result(7)) == "done"


def test_a_token_of_one_job_does_nothing_to_another(queue: Queue) -> None:
    queue.add(BV[:2])
    one, two = queue.lease("w1", 2)
    with pytest.raises(StaleToken):
        queue.release(two.url, one.token)
    assert queue.counts().leased == 2


def test_an_answer_is_repeated_to_its_own_call_only(queue: Queue) -> None:
    queue.add(BV[:2])
    one, two = queue.lease("w1", 2, request="r")
    queue.release(one.url, one.token)
    assert queue.release(one.url, one.token) == "ready"
    for verb in (
        lambda: queue.release(two.url, one.token),
        lambda: queue.nack(one.url, one.token, PERMANENT),
        lambda: queue.expand(one.url, one.token, pages(1)),
    ):
        with pytest.raises(StaleToken):
            verb()
    assert queue.counts() == Counts(1, 1, 0, 0, 0)
    assert [lease.url for lease in queue.lease("w2", 2, request="r")] == [one.url]  # not what w1 was given


def test_a_container_cannot_be_acknowledged(queue: Queue) -> None:
    queue.add([BV[0]])
    lease = lease_one(queue)
    with pytest.raises(ValueError, match="container"):
        queue.ack(lease.url, lease.token, result(1))


def test_transient_failures_are_delayed_eight_times_at_most(queue: Queue, connection: redis.Redis) -> None:
    page_lease(queue)
    url = f"{BV[0]}?p=1&cid=7"
    let_expire(connection, url)
    queue.sweep()
    for attempt in range(1, 9):
        lease = lease_one(queue)
        assert lease.attempt == attempt
        state = queue.nack(lease.url, lease.token, TRANSIENT)
        assert state == ("delayed" if attempt < 8 else "dead")
        if state == "delayed":
            assert queue.lease("w1", 1) == () or attempt < 0
            let_fall_due(connection, "delayed", url)
    assert queue.counts() == Counts(0, 0, 0, 0, 1)


def test_the_delay_is_drawn_or_what_the_site_asks_for(connection: redis.Redis, settings: Settings) -> None:
    queue = Queue(connection, settings, draw=lambda: 0.5)
    lease = page_lease(queue)
    queue.nack(lease.url, lease.token, TRANSIENT)
    (failure,), _next = queue.failed("", 10)
    assert 14 < failure["next_retry_seconds"] <= 15
    let_fall_due(connection, "delayed", lease.url)
    again = lease_one(queue)
    queue.nack(again.url, again.token, replace(TRANSIENT, retry_after_seconds=100.0))
    (failure,), _next = queue.failed("", 10)
    assert 99 < failure["next_retry_seconds"] <= 100
    assert 99 < (queue.next_due_seconds() or 0) <= 100


def test_an_environment_failure_counts_no_attempt_and_goes_to_the_head(queue: Queue, connection: redis.Redis) -> None:
    queue.add(BV[:2])
    lease = lease_one(queue)
    assert queue.nack(lease.url, lease.token, ENVIRONMENT) == "ready"
    again = lease_one(queue, "w2")
    assert (again.url, again.attempt) == (BV[0], 1)
    assert queue.failed("", 10) == ([], None)


def test_what_waits_is_delayed_longer_and_longer_as_often_as_it_takes_and_counts_no_attempt(
    queue: Queue, connection: redis.Redis
) -> None:
    lease = page_lease(queue)
    shortest = [300, 600, 1200, 2400, 4800, 9600, 10800, 10800, 10800, 10800]
    for seconds in shortest:
        assert queue.nack(lease.url, lease.token, WAITING) == "delayed"
        (failure,), _next = queue.failed("", 10)
        assert seconds - 1 < failure["next_retry_seconds"] <= 2 * seconds
        assert (failure["code"], failure["reason"], failure["attempts"]) == ("below-floor", "login?", 0)
        let_fall_due(connection, "delayed", lease.url)
        lease = lease_one(queue)
        assert lease.attempt == 1
    assert queue.nack(lease.url, lease.token, TRANSIENT) == "delayed"
    assert queue.failed("", 10)[0][0]["attempts"] == 1
    queue.redrive([lease.url])
    lease = lease_one(queue)
    queue.nack(lease.url, lease.token, WAITING)
    assert queue.failed("", 10)[0][0]["next_retry_seconds"] <= 600


def test_a_permanent_failure_is_dead_and_redriven(queue: Queue) -> None:
    lease = page_lease(queue)
    assert queue.nack(lease.url, lease.token, replace(PERMANENT, title="gone")) == "dead"
    assert queue.nack(lease.url, lease.token, PERMANENT) == "dead"
    (failure,), _next = queue.failed("", 10)
    assert (failure["code"], failure["reason"], failure["title"]) == ("-404", "deleted", "gone")
    assert (failure["attempts"], failure["next_retry_seconds"]) == (1, None)
    assert queue.redrive([lease.url, BV[5]]) == 1
    assert queue.failed("", 10) == ([], None)
    assert lease_one(queue).attempt == 1


def test_redrive_all_moves_every_dead_job(queue: Queue) -> None:
    queue.add(BV)
    for lease in queue.lease("w1", 20):
        queue.nack(lease.url, lease.token, PERMANENT)
    assert queue.counts().dead == 20
    assert queue.redrive_all() == 20
    assert queue.counts() == Counts(20, 0, 0, 0, 0)


# ------------------------------------------------------------------------------------------ looking


def test_success_and_failed_are_read_page_by_page(queue: Queue) -> None:
    queue.add(BV)
    for cid, lease in enumerate(queue.lease("w1", 10), 1):
        expanded = queue.expand(lease.url, lease.token, pages(cid))
        assert expanded.lease is not None
        queue.ack(expanded.lease.url, expanded.lease.token, result(cid))
    for lease in queue.lease("w1", 10):
        queue.nack(lease.url, lease.token, PERMANENT)
    for read in (queue.success, queue.failed):
        urls, after = [], ""
        for _turn in range(4):
            items, following = read(after, 3)
            urls += [item["url"] for item in items]
            after = following or ""
            if following is None:
                break
        assert len(urls) == len(set(urls)) == 10
    assert [item["path"] for item in queue.latest_success(2)] == ["other/10.mp4", "other/9.mp4"]


@pytest.mark.parametrize("after", ["x y", "٣", "9" * 19, "1-", "-1", "1-2-3"])
def test_a_cursor_that_is_none_is_refused(queue: Queue, after: str) -> None:
    with pytest.raises(ValueError, match="next"):
        queue.success(after, 3)


def test_workers_are_listed_with_what_they_said(queue: Queue) -> None:
    queue.lease("idle", 1)
    queue.heartbeat("busy", [], {"state": "running", "title": "二次元 \ud800"})
    found = {worker["worker"]: worker for worker in queue.workers()}
    assert found["busy"]["state"] == "running"
    assert found["idle"]["seen_seconds"] < 10
    assert queue.worker_count() == 2


def test_suspects_have_their_turn_in_the_order_in_which_they_became_suspect(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([BV[0]])
    for worker in ("w1", "w2"):
        die(queue, connection, worker)
    assert connection.lrange("{bili:0}:suspect", 0, -1) == [BV[0]]
    connection.rpush("{bili:0}:suspect", "marker")
    lease = lease_one(queue, "w9")
    assert lease.url == BV[0]
    queue.release(lease.url, lease.token)
    assert connection.lrange("{bili:0}:suspect", 0, -1) == ["marker", BV[0]]


def test_what_is_the_default_takes_no_room(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0]])
    assert not connection.exists("{bili:0}:origin")


def test_many_jobs_due_at_one_instant_are_all_promoted_in_bounded_steps(queue: Queue, connection: redis.Redis) -> None:
    ids = [aid_to_bvid(aid) for aid in range(1, 1001)]
    connection.zadd("{bili:0}:delayed", dict.fromkeys(ids, 5))
    moved = [queue.sweep() for _turn in range(11)]
    assert moved == [100] * 10 + [0]
    assert queue.counts().ready == 1000


def test_thousands_in_one_call_wait_once_each_where_some_had_been_cancelled_and_forgotten(
    queue: Queue, connection: redis.Redis
) -> None:
    ids = [aid_to_bvid(aid) for aid in range(1, 2502)]
    gone = [ids[0], ids[1200], ids[2500]]
    queue.add(gone)
    queue.cancel(gone)
    queue.forget(gone)  # their entries stay in the list, and count again when they are added
    assert queue.add(ids) == Added(2501, 0)
    assert queue.counts().ready == 2501
    assert [lease.url for lease in queue.lease("machine", 2600)] == [*gone, *(one for one in ids if one not in gone)]
    assert not connection.hgetall(key("stale")) and connection.llen(key("ready")) == 0


def test_as_many_pages_come_next_in_their_order(queue: Queue) -> None:
    queue.add(BV[:2])
    (lease,) = queue.lease("machine", 1)
    pages = [Page(number, 5000 + number, "part") for number in range(1, 2502)]
    assert queue.expand(lease.url, lease.token, pages).lease.url == f"{BV[0]}?p=1&cid=5001"
    following = [lease.url for lease in queue.lease("machine", 2600)]
    assert following == [*(f"{BV[0]}?p={number}&cid={5000 + number}" for number in range(2, 2502)), BV[1]]


# ------------------------------------------------------------------------------------------ the engine


def test_flushed_scripts_are_loaded_again(queue: Queue, connection: redis.Redis) -> None:
    for aid in range(1, 20):
        connection.script_flush()
        queue.add([aid_to_bvid(aid)])
    assert queue.counts().ready == 19


@pytest.mark.slow
def test_a_script_ending_badly_or_an_absent_engine_is_one_sentence(settings: Settings) -> None:
    away = redis.Redis(unix_socket_path="/nonexistent/socket", decode_responses=True)
    with pytest.raises(EngineError, match="cannot be used now"):
        Queue(away, settings).counts()


def test_an_unsafe_engine_is_named(queue: Queue) -> None:
    assert any("appendonly yes" in sentence for sentence in queue.unsafe())


@pytest.fixture
def locked_engine(tmp_path: Path) -> Iterator[int]:
    """The port of an engine that wants a password."""
    port = free_port()
    command = [engine_binary(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "right", "--save", ""]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    with redis.Redis(port=port, password="right") as door:
        while time.monotonic() < deadline:
            try:
                door.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.02)  # it is starting
        yield port
    process.terminate()
    process.wait(10)


def test_a_url_with_the_right_password_works_and_a_wrong_one_is_one_sentence_without_it(
    locked_engine: int, settings: Settings
) -> None:
    queue = open_queue(replace(settings, redis_url=f"redis://:right@127.0.0.1:{locked_engine}/0"))
    assert queue.add([BV[0]]).added == 1
    assert queue.place == f"127.0.0.1:{locked_engine}"
    queue.close()
    for url in (f"redis://:wrongpass@127.0.0.1:{locked_engine}", f"redis://127.0.0.1:{locked_engine}"):
        with pytest.raises(EngineError) as caught:
            open_queue(replace(settings, redis_url=url))
        assert "REDIS_URL" in str(caught.value) and "wrongpass" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis://no-such-host.invalid", "unix:///nowhere/socket"])
def test_an_engine_that_is_not_there_is_one_sentence(settings: Settings, url: str) -> None:
    with pytest.raises(EngineError, match="cannot be used now"):
        open_queue(replace(settings, redis_url=url))


def test_leases_racing_with_acks_at_the_deadline_have_one_winner(queue: Queue, connection: redis.Redis) -> None:
    """An ack and the sweep that takes the lease away run at once; whichever comes first, the other changes nothing."""
    outcomes = {"done": 0, "stale": 0}
    for cid in range(1, 201):
        lease = page_lease(queue, aid_to_bvid(1000 + cid), cid)
        let_expire(connection, lease.url)
        start = threading.Barrier(2)

        def sweep(start: threading.Barrier = start) -> None:
            start.wait()
            queue.sweep()

        thread = threading.Thread(target=sweep)
        thread.start()
        start.wait()
        try:
            outcomes[queue.ack(lease.url, lease.token, result(cid))] += 1
        except StaleToken:
            outcomes["stale"] += 1
        thread.join()
        for left in queue.lease("w1", 1):
            assert left.url == lease.url
            queue.ack(left.url, left.token, result(cid))
    assert sum(outcomes.values()) == 200
    assert queue.counts() == Counts(0, 0, 0, 200, 0)
    assert len(queue.success("", 300)[0]) == 200


# ------------------------------------------------------------------------------------------ data that were lost


def results(*cids: int) -> list[tuple[str, Result]]:
    return [(f"{BV[0]}?p={number}&cid={cid}", result(cid)) for number, cid in enumerate(cids, 1)]


def test_a_queue_knows_what_is_recorded_in_it(queue: Queue) -> None:
    lease = page_lease(queue, cid=7)
    assert not queue.knows([lease.url])
    queue.ack(lease.url, lease.token, result(7))
    assert queue.knows([lease.url])
    assert not queue.knows([lease.url, f"{BV[0]}?p=2&cid=8"])
    assert queue.knows([])


def test_results_that_an_empty_queue_has_lost_are_recorded_once(queue: Queue) -> None:
    assert queue.replayed() is None
    assert queue.replay("w1", results(7, 8)) == 2
    assert queue.replay("w2", results(7, 8, 9)) == 1
    assert [(item["url"], item["worker"]) for item in queue.success("", 9)[0]] == [
        (url, "w1" if number < 2 else "w2") for number, (url, _result) in enumerate(results(7, 8, 9))
    ]
    assert queue.counts() == Counts(0, 0, 0, 3, 0)
    assert queue.knows([results(7)[0][0]])
    count, seconds_ago = queue.replayed() or (0, 99.0)
    assert (count, seconds_ago < 5) == (3, True)
    queue.add([BV[0]])
    lease = lease_one(queue)
    assert queue.expand(lease.url, lease.token, pages(7, 8, 9)).added == 0


def test_a_result_that_is_known_changes_nothing(queue: Queue, connection: redis.Redis) -> None:
    lease = page_lease(queue, cid=7)
    queue.ack(lease.url, lease.token, result(7))
    before = connection.hgetall("{bili:0}:totals")
    assert queue.replay("w1", [(lease.url, result(7))]) == 0
    assert connection.hgetall("{bili:0}:totals") == before
    assert len(queue.success("", 9)[0]) == 1


def test_a_job_whose_result_is_told_again_is_downloaded_no_more(queue: Queue, connection: redis.Redis) -> None:
    """Whatever state its job has in the older data: ready, leased, kept, delayed, dead or suspect."""
    queue.add([BV[0]])
    container = lease_one(queue)
    queue.expand(container.url, container.token, pages(*range(1, 8)))
    urls = [f"{BV[0]}?p={number}&cid={number}" for number in range(1, 8)]
    leases = {lease.url: lease for lease in queue.lease("w1", 5)}
    held = {url: leases[url] for url in urls[1:6]}
    queue.nack(urls[1], held[urls[1]].token, TRANSIENT)
    queue.nack(urls[2], held[urls[2]].token, PERMANENT)
    queue.heartbeat("w1", [(urls[3], held[urls[3]].token, 9)], {})
    let_expire(connection, urls[3], urls[4])
    connection.hset("{bili:0}:tries", urls[4], '{"attempts":0,"deaths":1,"worker":"w1"}')
    queue.sweep()
    assert queue.counts() == Counts(3, 2, 1, 0, 1)  # ready: kept, suspect, in the list; leased: the first, the sixth
    assert connection.zcard("{bili:0}:kept") == connection.llen("{bili:0}:suspect") == 1
    assert queue.replay("w9", [(url, result(n)) for n, url in enumerate(urls, 1)]) == 7
    assert queue.lease("w2", 64) == ()
    assert queue.ack(urls[5], held[urls[5]].token, result(6)) == "done"  # who has it may still say so
    let_expire(connection, urls[0])
    queue.sweep()
    assert queue.lease("w2", 64) == ()
    assert queue.counts() == Counts(0, 0, 0, 7, 0)
    assert queue.failed("", 9) == ([], None)
    assert len(queue.success("", 99)[0]) == 7
    assert not connection.hlen("{bili:0}:tries")
    assert not connection.hlen("{bili:0}:origin")


def test_a_recorded_job_that_fails_for_good_is_not_dead(queue: Queue, connection: redis.Redis) -> None:
    lease = page_lease(queue, cid=7)
    queue.replay("w9", [(lease.url, result(7))])
    queue.nack(lease.url, lease.token, PERMANENT)
    assert queue.counts() == Counts(0, 0, 0, 1, 0)
    assert structure.problems(connection) == []


def test_many_recorded_jobs_are_left_out_in_bounded_steps(queue: Queue) -> None:
    queue.add([BV[0], BV[1]])
    container = lease_one(queue, have=[BV[0]])
    queue.expand(container.url, container.token, pages(*range(1, 301)))
    urls = [f"{BV[0]}?p={number}&cid={number}" for number in range(1, 301)]
    queue.replay("w9", [(url, result(n)) for n, url in enumerate(urls, 1)])
    turns = [queue.lease("w2", 1) for _turn in range(4)]
    assert [lease.url for leases in turns for lease in leases] == [BV[1]]
    assert queue.counts().ready == 0


def test_only_pages_have_results(queue: Queue) -> None:
    with pytest.raises(ValueError, match="is a container"):
        queue.replay("w1", [(BV[0], result(1))])


# ------------------------------------------------------------------------------------------ model


class QueueModel(RuleBasedStateMachine):
    """Any order of verbs, deaths and clock steps keeps every job in exactly one state, as a dict says it."""

    connection: redis.Redis
    shards = 1
    leases = Bundle("leases")

    @initialize()
    def empty(self) -> None:
        self.connection.flushall()
        self.queue = Queue(self.connection, Settings(shards=self.shards), draw=lambda: 0.5)
        self.requests = 0
        self.state: dict[str, str] = {}
        self.valid: dict[str, str] = {}  # id -> its one valid token
        self.done: set[int] = set()
        self.closed: set[str] = set()
        self.again: set[str] = set()  # containers that were asked for again while they were leased
        self.holder: dict[str, str] = {}  # id -> the worker that leased it last
        self.cancelled: set[str] = set()
        self.died: set[str] = set()  # workers that died, save those that were alone with a suspect
        self.died_with: dict[str, list[str]] = {}  # id -> the workers that died with it, "" for one that was alone

    @rule(
        numbers=st.lists(st.integers(0, 5), min_size=1, max_size=4),
        category=st.sampled_from(["", "music"]),
        refresh=st.booleans(),
    )
    def add(self, numbers: list[int], category: str, refresh: bool) -> None:
        added = self.queue.add([BV[n] for n in numbers], category, refresh=refresh)
        new = {BV[n] for n in numbers} - set(self.state) - self.closed
        assert added.added == len(new)
        assert added.known == len(numbers) - len(new)
        reopened = {BV[n] for n in numbers} & self.closed if refresh else set()
        self.closed -= reopened
        self.again |= {BV[n] for n in numbers} & self.valid.keys() if refresh else set()
        self.state |= dict.fromkeys(new | reopened, "ready")

    @rule(target=leases, worker=st.sampled_from(["w1", "w2", "w3"]), count=st.integers(1, 4))
    def lease(self, worker: str, count: int):  # type: ignore[no-untyped-def]
        self.requests += 1  # by its name a request asks one shard first: it must be the same whenever a run is repeated
        given = self.queue.lease(worker, count, request=f"r{self.requests}")
        suspects = {url for url, state in self.state.items() if state == "ready" and len(self._deaths(url)) >= 2}
        busy = worker in (self.holder[url] for url in self.valid)
        for lease in given:
            assert self.state[lease.url] == "ready"
            assert (lease.url in suspects) <= (len(given) == 1 and not busy)
            self._hold(lease, worker)
        if suspects and not busy and self.shards == 1:  # of several, the first one that is asked may have others
            assert {lease.url for lease in given} <= suspects
        return multiple(*given)

    def _hold(self, lease: Lease, worker: str) -> None:
        self.state[lease.url] = "leased"
        self.again.discard(lease.url)
        self.valid[lease.url] = lease.token
        self.holder[lease.url] = worker

    def _deaths(self, url: str) -> list[str]:
        return self.died_with.get(url, [])

    def _try(self, lease: Lease, verb, after: str | None) -> bool:  # type: ignore[no-untyped-def]
        """Run a verb; a lease that is not the valid one must change nothing."""
        if self.valid.get(lease.url) != lease.token:
            before = self.queue.counts()
            with pytest.raises(StaleToken):
                verb()
            assert self.queue.counts() == before
            return False
        verb()
        del self.valid[lease.url]
        if after is None:
            del self.state[lease.url]
            self.died_with.pop(lease.url, None)
        else:
            self.state[lease.url] = after
        return True

    @rule(lease=consumes(leases), how=st.sampled_from(["nack", "bury", "environment", "waiting", "release"]))
    def give_back(self, lease: Lease, how: str) -> None:
        verb, after = {
            "nack": (lambda: self.queue.nack(lease.url, lease.token, TRANSIENT), "delayed"),
            "bury": (lambda: self.queue.nack(lease.url, lease.token, PERMANENT), "dead"),
            "environment": (lambda: self.queue.nack(lease.url, lease.token, ENVIRONMENT), "ready"),
            "waiting": (lambda: self.queue.nack(lease.url, lease.token, WAITING), "delayed"),
            "release": (lambda: self.queue.release(lease.url, lease.token), "ready"),
        }[how]
        if self._try(lease, verb, after) and how == "nack" and lease.attempt == 8:
            self.state[lease.url] = "dead"

    @rule(target=leases, lease=consumes(leases), cids=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True))
    def settle(self, lease: Lease, cids: list[int]):  # type: ignore[no-untyped-def]
        """Expand a container or acknowledge a page."""
        if "cid=" in lease.url:
            cid = int(lease.url.split("cid=")[1])
            if self._try(lease, lambda: self.queue.ack(lease.url, lease.token, result(cid)), None):
                assert cid not in self.done
                self.done.add(cid)
            return multiple()
        known = {int(url.split("cid=")[1]) for url in self.state if "cid=" in url} | self.done
        answers = []
        if not self._try(lease, lambda: answers.append(self.queue.expand(lease.url, lease.token, pages(*cids))), None):
            return multiple()
        if lease.url in self.again:
            self.state[lease.url] = "ready"
        else:
            self.closed.add(lease.url)
        for page in pages(*cids):
            if page.cid not in known:
                self.state[f"{lease.url}?p={page.number}&cid={page.cid}"] = "ready"
        first = answers[0].lease
        assert answers[0].added == len(set(cids) - known)
        if self.shards == 1:  # a worker that was alone with a suspect is barred from other shards until it asks there
            assert (first is None) == (set(cids) <= known)
        if first is None:
            return multiple()
        assert self.state[first.url] == "ready"
        self._hold(first, self.holder[lease.url])
        return multiple(first)

    @rule()
    def every_worker_dies(self) -> None:
        let_expire(self.connection, *self.valid, shards=self.shards)
        self.queue.sweep()
        for url in sorted(self.valid, key=lambda url: (shard_of_id(url, self.shards), url)):
            alone = len(self._deaths(url)) >= 2
            self.died_with.setdefault(url, []).append("" if alone else self.holder[url])
            self.died |= set() if alone else {self.holder[url]}
            deaths, others = len(self._deaths(url)), self.died - set(self._deaths(url))
            self.state[url] = "dead" if deaths == 8 or (deaths >= 3 and not others) else "ready"
            if self.shards > 1 and 3 <= deaths < 8:  # it hears of deaths in other shards a sweep later
                self.state[url] = self.queue.job(url)["state"]  # type: ignore[index]
        self.valid.clear()

    @rule()
    def every_delay_passes(self) -> None:
        for url in [url for url, state in self.state.items() if state == "delayed"]:
            let_fall_due(self.connection, "delayed", url, self.shards)
            self.state[url] = "ready"
        self.queue.sweep()

    @rule(code=st.sampled_from(["", "-404", "-500", "cancelled", "poison"]))
    def redrive(self, code: str) -> None:
        dead = [url for url, state in self.state.items() if state == "dead"]
        dead = [url for url in dead if self._code(url) == code or (not code and url not in self.cancelled)]
        assert (self.queue.redrive_code(code) if code else self.queue.redrive_all()) == len(dead)
        for url in dead:
            self.died_with.pop(url, None)
        self.state |= dict.fromkeys(dead, "ready")
        self.cancelled -= set(dead)

    def _code(self, url: str) -> str:
        return str(json.loads(self.connection.hget(key("tries", shard_of_id(url, self.shards)), url))["code"])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        url = self._anyone(data)
        is_one = url in self.state and url not in self.cancelled
        assert self.queue.cancel([url]) == is_one
        if is_one:
            self.valid.pop(url, None)
            self.state[url] = "dead"
            self.cancelled.add(url)

    @rule(data=st.data())
    def first(self, data: st.DataObject) -> None:
        url = self._anyone(data)
        waits = self.state.get(url) in ("ready", "delayed")
        assert self.queue.first([url]) == waits
        if waits:
            self.state[url] = "ready"
            is_suspect = len(self._deaths(url)) >= 2
            places = structure.places(self.connection, shard_of_id(url, self.shards))
            assert places["suspect" if is_suspect else "ready"][0] == url

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        url = self._anyone(data)
        cid = int(url.partition("cid=")[2] or 0)
        is_one = self.state.get(url) == "dead" or (url not in self.state and (url in self.closed or cid in self.done))
        assert self.queue.forget([url]) == is_one
        if is_one:
            self.state.pop(url, None)
            self.died_with.pop(url, None)
            self.cancelled.discard(url)
            self.done.discard(cid)
            self.closed -= {url, url.partition("?")[0]}

    def _anyone(self, data: st.DataObject) -> str:
        """Any job that there is or may have been, in a page's words of any video."""
        urls = [*self.state, *self.closed, *(f"{BV[0]}?p=1&cid={cid}" for cid in self.done), BV[9]]
        return data.draw(st.sampled_from(urls))

    @invariant()
    def all_are_listed(self) -> None:
        """Every job is listed once, in its state."""
        if not hasattr(self, "queue"):
            return
        items, following = self.queue.jobs(limit=500)
        listed = {item["url"]: item["state"] for item in items if item["state"] != "done"}
        assert following is None and listed == self.state
        assert len(items) == len(self.state) + len(self.done)
        assert {item["url"] for item in items if item["cancelled"]} == self.cancelled
        groups = self.queue.failure_groups()
        counts = self.queue.counts()
        assert (sum(one["dead"] for one in groups), sum(one["delayed"] for one in groups)) == (
            counts.dead,
            counts.delayed,
        )

    @rule()
    def lose_the_scripts(self) -> None:
        self.connection.script_flush()

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        states = list(self.state.values())
        wanted = {name: states.count(name) for name in ("ready", "leased", "delayed", "dead")}
        assert self.queue.counts() == Counts(done=len(self.done), **wanted)

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        if not hasattr(self, "queue"):
            return
        r = self.connection
        found = [structure.places(r, shard) for shard in range(self.shards)]
        assert sorted(url for places in found for urls in places.values() for url in urls) == sorted(self.state)
        tokens = [r.hgetall(key("token", shard)) for shard in range(self.shards)]
        assert {url: token for one in tokens for url, token in one.items()} == self.valid
        assert structure.problems(r, self.shards) == []


@pytest.mark.timeout(240)  # some thousand steps
@pytest.mark.parametrize(
    ("runs", "shards"),
    [(20, 1), *(pytest.param(*numbers, marks=pytest.mark.slow) for numbers in ((50, 1), (25, 2), (25, 5)))],
)
def test_model(connection: redis.Redis, runs: int, shards: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    class Model(QueueModel):
        pass

    Model.connection, Model.shards = connection, shards
    run_state_machine_as_test(
        Model,
        settings=hypothesis_settings(
            max_examples=runs,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
