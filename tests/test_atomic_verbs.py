"""A client may die between any two of its commands to the engine: the queue's data are whole all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from budgets import Told
from config import Settings
from model import Failure, ListedPage, Page, Result
from redisConnect import Queue
from store.data import key
from tests import structure
from tests.test_redisConnect import BV, ENVIRONMENT, PERMANENT, TRANSIENT, lease_one, let_expire, pages, result


class Died(BaseException):
    """The client is gone: nothing of it runs any more, so nothing may catch this."""


class Mortal(redis.Redis):
    """A connection whose client dies instead of sending its n-th command."""

    left = 10**9

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.left <= 0:
            raise Died
        self.left -= 1
        return super().execute_command(*args, **options)

    def pipeline(self, *args: Any, **options: Any) -> Any:
        if self.left <= 0:
            raise Died
        self.left -= 1
        return super().pipeline(*args, **options)


@pytest.fixture
def mortal(valkey_socket: str, connection: redis.Redis) -> Mortal:
    return Mortal(unix_socket_path=valkey_socket, decode_responses=True)


def held(queue: Queue, number: int, count: int = 1) -> list[Any]:
    """Return leases of ``count`` pages of a video, the expansion's own among them."""
    queue.add([BV[number]])
    container = lease_one(queue, have=[BV[number]])
    expanded = queue.expand(container.url, container.token, pages(*range(10 * number + 1, 10 * number + 1 + count)))
    assert expanded.lease is not None
    return [expanded.lease, *queue.lease("w1", count - 1, have=[])] if count > 1 else [expanded.lease]


def prepare_container(queue: Queue) -> Any:
    queue.add([BV[1]])
    return lease_one(queue)


def expire_all(connection: redis.Redis, shards: int = 1) -> None:
    for shard in range(shards):
        let_expire(connection, *connection.zrange(key("leased", shard), 0, -1), shards=shards)


def in_all_places(queue: Queue) -> list[str]:
    """Return jobs that wait, are leased, delayed and dead."""
    one, two, three = held(queue, 1, 3)
    queue.nack(one.url, one.token, TRANSIENT)
    queue.nack(two.url, two.token, PERMANENT)
    queue.add(BV[4:6])
    return [BV[5], one.url, two.url, three.url, BV[4], BV[9]]


WAYS = ("address:203.0.113.9", "account:a")

VERBS: dict[str, tuple[Callable[[Queue], Any], Callable[[Queue, Any], Any]]] = {
    "add": (lambda queue: None, lambda queue, _: queue.add(BV[:5])),
    "add again": (lambda queue: queue.add(BV[:3]), lambda queue, _: queue.add(BV[:5], category="music")),
    "refresh": (
        lambda queue: [held(queue, number) for number in (0, 1)],
        lambda queue, _: queue.add(BV[:3], refresh=True),
    ),
    "lease": (lambda queue: queue.add(BV[:5]), lambda queue, _: queue.lease("w1", 3, have=[BV[4]], instance="i")),
    "expand": (
        prepare_container,
        lambda queue, one: queue.expand(one.url, one.token, pages(1, 2, 3), urls=[BV[4]]),
    ),
    "expand in parts": (
        prepare_container,
        lambda queue, one: [
            queue.expand(one.url, one.token, [Page(3, 3, "c")], more=True),
            queue.expand(one.url, one.token, pages(1, 2)),
        ],
    ),
    "expand a source in parts": (
        lambda queue: [queue.add(["mid:1"]), lease_one(queue)][1],
        lambda queue, one: [
            queue.expand(one.url, one.token, (), [BV[3], "season:2"], True, ListedPage(1, cursor="c")),
            queue.expand(one.url, one.token, (), [BV[4]], False, ListedPage(2, ended="end")),
        ],
    ),
    "claim": (lambda queue: queue.add(["mid:1"]), lambda queue, _: queue.claim("mid:1", "w1")),
    "watch and revisit": (
        lambda queue: None,
        lambda queue, _: [queue.watch("mid:1", 0), queue.watch("mid:1", 1), queue.revisit()],
    ),
    "heartbeat": (
        lambda queue: held(queue, 1)[0],
        lambda queue, one: queue.heartbeat("w1", [(one.url, one.token, 5)], {}),
    ),
    "steer and obey": (
        lambda queue: [queue.heartbeat(worker, [], {}) for worker in ("w1", "w2")],
        lambda queue, _: [queue.steer(("w1", "w2"), {"stop": 0}, "somebody"), queue.obey("w1", "")],
    ),
    "budget and trip": (
        lambda queue: [queue.budget(worker, WAYS, Told(wanted=9.0)) for worker in ("w1", "w2", "w3")],
        lambda queue, _: [
            queue.budget("w4", WAYS, Told(wanted=1.0)),
            queue.budget("w1", WAYS, Told(1.0, 0.1, refused="-412")),
            queue.leave_budget("w2", WAYS),
        ],
    ),
    "ack": (lambda queue: held(queue, 1)[0], lambda queue, one: queue.ack(one.url, one.token, result(11))),
    **{
        f"nack {failure.kind}": (
            lambda queue: held(queue, 1)[0],
            lambda queue, one, failure=failure: queue.nack(one.url, one.token, failure),
        )
        for failure in (TRANSIENT, PERMANENT, ENVIRONMENT)
    },
    "release": (lambda queue: held(queue, 1)[0], lambda queue, one: queue.release(one.url, one.token)),
    "redrive": (
        lambda queue: [
            queue.nack(one.url, one.token, failure)
            for one, failure in zip(held(queue, 1, 2), (PERMANENT, TRANSIENT), strict=True)
        ],
        lambda queue, _: [queue.redrive([f"{BV[1]}?p=2&cid=12"]), queue.redrive_all()],
    ),
    "redrive a code": (
        lambda queue: [queue.nack(one.url, one.token, PERMANENT) for one in held(queue, 1, 2)],
        lambda queue, _: queue.redrive_code("-404"),
    ),
    "cancel": (in_all_places, lambda queue, urls: [queue.cancel(urls), queue.redrive_code("cancelled")]),
    "first": (in_all_places, lambda queue, urls: queue.first(urls)),
    "forget": (
        lambda queue: [queue.ack(one.url, one.token, result(11)) for one in held(queue, 1)[:1]],
        lambda queue, _: [queue.forget([f"{BV[1]}?p=1&cid=11", BV[1]]), queue.add([BV[1]])],
    ),
    "replay": (
        lambda queue: held(queue, 1, 2),
        lambda queue, _: queue.replay("w9", [(f"{BV[1]}?p={n}&cid={10 + n}", result(10 + n)) for n in (1, 2, 3)]),
    ),
}


@pytest.mark.parametrize("shards", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", VERBS)
def test_a_client_that_dies_before_any_of_its_commands_breaks_nothing(
    verb: str, shards: int, connection: redis.Redis, mortal: Mortal
) -> None:
    prepare, act = VERBS[verb]
    settings = Settings(shards=shards)
    for commands in range(20 if shards == 1 else 100):
        connection.flushall()
        prepared = prepare(Queue(connection, settings))
        assert structure.problems(connection, shards) == [], "before"
        mortal.left = commands
        try:
            act(Queue(mortal, settings), prepared)
        except Died:
            assert structure.problems(connection, shards) == [], f"after {commands} commands"
            continue
        assert structure.problems(connection, shards) == []
        assert commands > 0, "the client never died"
        return
    raise AssertionError("the verb has no end")


def test_sweeping_breaks_nothing_however_often_it_dies(connection: redis.Redis, mortal: Mortal) -> None:
    queue = Queue(connection, Settings())
    queue.add(BV[:9])
    for turn in range(6):
        for worker in ("w1", "w2", "w3"):
            queue.lease(worker, 2)
        expire_all(connection)
        mortal.left = turn % 2
        try:
            Queue(mortal, Settings()).sweep()
        except Died:
            assert structure.problems(connection) == []
            queue.sweep()
        assert structure.problems(connection) == []


# ------------------------------------------------------------------------------------------ the rules

BREAKS: dict[str, Callable[[redis.Redis], Any]] = {
    "is in 2 places": lambda r: r.lpush("{bili:0}:ready", BV[4]),
    "tries of BV": lambda r: r.hset("{bili:0}:tries", "BV1xx411c7mD", "{}"),
    "origin of BV": lambda r: r.hset("{bili:0}:origin", "BV1xx411c7mD", "{}"),
    "shown as failed": lambda r: r.zadd("{bili:0}:failures", {BV[4]: 0}),
    "token or a deadline alone": lambda r: r.hdel("{bili:0}:token", f"{BV[1]}?p=1&cid=11"),
    "holds says": lambda r: r.hincrby("{bili:0}:holds", "w1", 1),
    "is not alone": lambda r: r.hset("{bili:0}:alone", "w2", BV[4]),
    "container ('v', '5') was seen": lambda r: r.sadd("{bili:0}:seen:v:5", "5"),
    "is closed and queued": lambda r: r.sadd("{bili:0}:closed:v:1", structure.container_member(BV[4])[1]),
    "container ('e', '5') was never seen": lambda r: r.sadd("{bili:0}:closed:e:5", "5"),
    "page 99 was seen": lambda r: r.sadd("{bili:0}:seen:c:99", "99"),
    "page 99 was never seen": lambda r: r.sadd("{bili:0}:done:99", "99"),
    "is queued 2 times": lambda r: r.lpush("{bili:0}:ready", f"{BV[3]}?p=1&cid=11"),
    "is done and queued": lambda r: r.sadd("{bili:0}:done:11", "11"),
    "page 21 is done and has 0 records": lambda r: r.delete("{bili:0}:success"),
    "page 11 has a record": lambda r: r.xadd("{bili:0}:success", {"url": f"{BV[1]}?p=1&cid=11"}),
    "an order to w9": lambda r: r.hset("{bili:0}:orders", "w9", '{"id": "i", "working": {}, "who": "", "at": 1}'),
    "total of done": lambda r: r.hset("{bili:0}:totals", "done", 7),
    "budget:address:203.0.113.9 has the sum": lambda r: r.hincrby("{bili:0}:budget:address:203.0.113.9", "sum", 1),
    "members:address:203.0.113.9 are not": lambda r: r.zadd("{bili:0}:members:address:203.0.113.9", {"w9": 1}),
    "entries in ready, 1 of them stale": lambda r: r.hset("{bili:0}:stale", BV[4], 1),
    "total of stale": lambda r: r.hset("{bili:0}:totals", "stale", 1),
    "kinds counts": lambda r: r.hincrby("{bili:0}:kinds", "dead:-404", 1),
    "leads nowhere": lambda r: r.zadd("{bili:0}:titles", {f"a title\0{BV[4]}": 0}),
    "is not where it should be": lambda r: r.hset("{bili:0}:record:21", "21", "5"),
    "where the record of page 21 is": lambda r: r.delete("{bili:0}:record:21"),
}


@pytest.mark.parametrize("sentence", BREAKS)
def test_the_rules_find_what_breaks_them(sentence: str, connection: redis.Redis) -> None:
    queue = Queue(connection, Settings())
    done = held(queue, 2)[0]
    queue.ack(done.url, done.token, Result("a.mp4", 1, 1.0))
    held(queue, 1)
    queue.add([BV[3]])
    refused = lease_one(queue)
    queue.nack(refused.url, refused.token, Failure("permanent", "-404", "gone"))
    queue.add([BV[4]])
    queue.budget("w1", WAYS, Told(wanted=9.0))
    assert structure.problems(connection) == []
    BREAKS[sentence](connection)
    assert any(sentence in problem for problem in structure.problems(connection))
