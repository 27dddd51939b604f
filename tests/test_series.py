"""The farm's history: what is read off the rings, and what the queue writes into them, by a clock of the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis
from flask.testing import FlaskClient

import web_server
from config import Settings
from model import Result
from redisConnect import Queue
from series import DAY, HOUR, RINGS, WEEK, Step, points, read_steps, seconds_left
from store.farm import HEARD_SECONDS
from tests.farm import wait_until
from tests.simulation.engine import EPOCH_MS, VirtualRedis
from tests.test_redisConnect import BV, PERMANENT, TRANSIENT, WAITING, lease_one, page_lease, result
from web import create_app

STEP = RINGS[HOUR].step_seconds
AT = EPOCH_MS // 1000
BEGUN = AT // STEP


def step(number: int, finished: int = 0, busy: int = 1, speed: int = 0) -> Step:
    return Step(number, 1, speed, finished, 0, busy)


# ------------------------------------------------------------------------------------------ what is read off them


def test_a_step_that_nobody_sampled_is_a_gap_and_no_zero() -> None:
    shown = points(RINGS[DAY], [Step(7, 2, 300, 4, 0, 2), Step(9, 1, 0, 0, 0, 0)])
    assert shown == [(2100, 150, 4), (2400, None, None), (2700, 0, 0)]
    assert points(RINGS[DAY], []) == []


def test_what_was_left_in_its_place_a_turn_ago_is_not_read() -> None:
    ring = RINGS[HOUR]
    texts = [f"{BEGUN - age} 1 5 1 0 1" for age in (0, 359, 360, 361, -1)]
    assert [read.number for read in read_steps(ring, texts, AT)] == [BEGUN - 359, BEGUN]


def test_the_time_left_is_that_of_the_hours_pace() -> None:
    steps = [step(BEGUN - age, finished=1) for age in range(60)]
    assert seconds_left(30, steps, AT) == 300
    assert seconds_left(0, [], AT) == 0


def test_the_time_in_which_there_was_nothing_to_do_does_not_slow_the_pace() -> None:
    idle = [step(BEGUN - age, busy=0) for age in range(60, 300)]
    assert seconds_left(30, [*idle, *(step(BEGUN - age, finished=1) for age in range(60))], AT) == 300


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [step(BEGUN - age) for age in range(60)],
        [step(BEGUN - age, finished=age < 2) for age in range(60)],
        [step(BEGUN - age, finished=9) for age in range(5)],
        [step(BEGUN - age, finished=1) for age in range(10, 60)],
    ],
    ids=["nothing known", "nothing finished", "too little", "too early", "nobody works"],
)
def test_where_nothing_can_be_said_nothing_is(steps: list[Step]) -> None:
    assert seconds_left(30, steps, AT) is None


# ------------------------------------------------------------------------------------------ what is written into them


class Clock:
    """The clock of Redis, in the hands of the test."""

    def __init__(self) -> None:
        self.ms = EPOCH_MS + 300

    def go_on(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(connection: redis.Redis, valkey_socket: str, clock: Clock, settings: Settings) -> Iterator[Queue]:
    """A queue under that clock."""
    queue = Queue(VirtualRedis(valkey_socket, lambda: clock.ms, str), settings)
    yield queue
    queue.close()


def beat(queue: Queue, worker: str, speed: int) -> None:
    queue.heartbeat(worker, [], {"state": "running", "speed_bytes_per_second": speed})


def finish(queue: Queue, *cids: int) -> None:
    for cid in cids:
        lease = page_lease(queue, BV[cid], cid)
        queue.ack(lease.url, lease.token, result(cid))


def shown(queue: Queue, name: str = HOUR) -> list[tuple[int, int | None, int | None]]:
    return queue.history(name)[1]


def test_a_step_has_the_speed_and_what_was_finished_since(timed: Queue, clock: Clock) -> None:
    assert shown(timed) == []
    assert timed.sample()
    assert not timed.sample()
    beat(timed, "w1", 100)
    beat(timed, "w2", 50)
    finish(timed, 1, 2)
    clock.go_on(STEP)
    assert timed.sample()
    assert shown(timed) == [(AT, 150, 2)]
    beat(timed, "w1", 0)
    clock.go_on(STEP)
    timed.sample()
    assert shown(timed) == [(AT, 150, 2), (AT + STEP, 50, 0)]
    assert [shown(timed, name)[0][1:] for name in (DAY, WEEK)] == [(100, 2), (100, 2)]
    assert [timed.history(name)[0] for name in RINGS] == [10, 300, 3600]


def test_what_was_finished_before_anybody_looked_is_no_news(timed: Queue, clock: Clock) -> None:
    finish(timed, *range(1, 9))
    for _unused in range(2):
        timed.sample()
        clock.go_on(STEP)
    assert shown(timed) == [(AT, 0, 0)]


def test_a_worker_that_is_away_counts_for_no_speed(timed: Queue, clock: Clock) -> None:
    timed.sample()
    beat(timed, "dead", 1000)
    clock.go_on(HEARD_SECONDS - 1)
    beat(timed, "alive", 10)
    timed.sample()
    clock.go_on(STEP)
    timed.sample()
    assert [speed for _at, speed, _finished in shown(timed)] == [1010, 10]


def test_servers_that_sample_at_once_count_once(
    valkey_socket: str, connection: redis.Redis, settings: Settings, clock: Clock
) -> None:
    queues = [Queue(VirtualRedis(valkey_socket, lambda: clock.ms, str), settings) for _unused in range(4)]
    queues[0].sample()
    for _round in range(5):
        clock.go_on(STEP)
        finish(queues[0], _round + 1)
        beat(queues[0], "w1", 70)
        together = threading.Barrier(len(queues))
        took: list[bool] = []

        def sample(queue: Queue, together: threading.Barrier = together, took: list[bool] = took) -> None:
            together.wait(10)
            took.append(queue.sample())

        threads = [threading.Thread(target=sample, args=(queue,)) for queue in queues]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(took) == [False, False, False, True]
    assert [point[1:] for point in shown(queues[0])] == [(70, 1)] * 5
    for queue in queues:
        queue.close()


@pytest.mark.parametrize("away_seconds", [60, 1800, 7200])
def test_a_server_that_was_away_leaves_a_gap_and_no_spike(timed: Queue, clock: Clock, away_seconds: int) -> None:
    for _unused in range(3):
        timed.sample()
        clock.go_on(STEP)
    finish(timed, *range(1, 10))
    clock.go_on(away_seconds)
    timed.sample()
    clock.go_on(STEP)
    timed.sample()
    by_time = dict((at, point) for at, *point in shown(timed))
    last = AT + 3 * STEP + away_seconds
    assert by_time[last] == [0, 0]
    assert by_time.get(last - STEP, [None, None]) == [None, None]
    assert sum(finished or 0 for _at, _speed, finished in shown(timed, WEEK)) == 0


def test_a_clock_that_is_set_back_does_no_harm(timed: Queue, clock: Clock, connection: redis.Redis) -> None:
    for number in range(1, 10):
        timed.sample()
        finish(timed, number)
        clock.go_on(STEP)
    timed.sample()
    assert len(shown(timed)) == 9
    clock.go_on(-7000)
    beat(timed, "w1", 10)
    for _unused in range(3):
        timed.sample()
        clock.go_on(STEP)
    assert [point[1:] for point in shown(timed)] == [(10, 0), (10, 0)]
    clock.go_on(7000)
    assert shown(timed) == [], "what was written before may not be taken for true when its time comes again"
    assert sum(map(len, (connection.hgetall(f"{{bili:0}}:history:{name}") for name in RINGS))) == 2 + 1 + 1


def test_a_worker_that_was_heard_before_the_clock_was_set_back_is_not_alive_for_ever(
    timed: Queue, clock: Clock
) -> None:
    beat(timed, "dead", 1000)
    clock.go_on(-3600)
    for _unused in range(2):
        timed.sample()
        clock.go_on(STEP)
    assert shown(timed) == [((clock.ms // 1000) // STEP * STEP - 2 * STEP, 0, 0)]


def test_what_is_recorded_again_after_a_loss_is_no_spike(timed: Queue, clock: Clock) -> None:
    timed.sample()
    lost = [(f"{BV[0]}?p={number}&cid={number}", Result(f"{number}.mp4", 1, 1.0)) for number in range(101, 151)]
    assert timed.replay("w1", lost) == 50
    finish(timed, 1)
    clock.go_on(STEP)
    timed.sample()
    assert [finished for _at, _speed, finished in shown(timed)] == [1]


def test_data_that_were_set_back_give_no_negative_count(timed: Queue, clock: Clock, connection: redis.Redis) -> None:
    finish(timed, 1, 2, 3)
    timed.sample()
    connection.hset("{bili:0}:totals", "done", 1)
    clock.go_on(STEP)
    timed.sample()
    clock.go_on(STEP)
    finish(timed, 4)
    timed.sample()
    assert [finished for _at, _speed, finished in shown(timed)] == [0, 1]


def test_the_rings_never_grow(timed: Queue, clock: Clock, connection: redis.Redis) -> None:
    for _unused in range(400):
        timed.sample()
        clock.go_on(STEP)
    assert connection.hlen("{bili:0}:history:hour") == 360
    assert len(shown(timed)) == 358
    for _unused in range(200):  # a week, three steps of a sample at a time
        clock.go_on(3 * STEP)
        timed.sample()
    sizes = {name: connection.hlen(f"{{bili:0}}:history:{name}") for name in RINGS}
    assert all(sizes[name] <= RINGS[name].steps for name in RINGS)


def test_samples_are_taken_where_memory_is_full(timed: Queue, clock: Clock, connection: redis.Redis) -> None:
    timed.sample()
    lease = page_lease(timed)
    connection.config_set("maxmemory", 1)
    try:
        timed.ack(lease.url, lease.token, result(7))
        clock.go_on(STEP)
        timed.sample()
        assert [finished for _at, _speed, finished in shown(timed)] == [1]
    finally:
        connection.config_set("maxmemory", 0)


def test_failures_are_counted_and_waiting_is_none(timed: Queue, clock: Clock, connection: redis.Redis) -> None:
    timed.sample()
    for number, failure in enumerate((TRANSIENT, PERMANENT, WAITING)):
        timed.add([BV[number]])
        lease = lease_one(timed)
        timed.nack(lease.url, lease.token, failure)
    clock.go_on(STEP)
    timed.sample()
    (text,) = connection.hvals("{bili:0}:history:hour")
    (read,) = read_steps(RINGS[HOUR], [text], clock.ms / 1000)
    assert read.failures == 2


def test_the_queue_says_when_all_will_be_done(timed: Queue, clock: Clock) -> None:
    timed.add([BV[0]])
    held = lease_one(timed)
    assert timed.time_left_seconds() is None
    for cid in range(1, 8):
        timed.sample()
        timed.heartbeat("w1", [(held.url, held.token, 0)], {})
        finish(timed, cid)
        clock.go_on(STEP)
    timed.sample()
    timed.add(BV[10:15])
    assert timed.time_left_seconds() == (5 + 1) * STEP


def test_the_route_shows_each_range(queue: Queue, settings: Settings) -> None:
    client: FlaskClient = create_app(settings, queue).test_client()
    assert client.get("/history").json == {"step_seconds": 10, "points": []}
    for name, ring in RINGS.items():
        assert client.get(f"/history?range={name}").json == {"step_seconds": ring.step_seconds, "points": []}
    answer = client.get("/history?range=year")
    assert answer.status_code == 400 and "range" in (answer.json or {})["error"]
    assert (client.get("/status").json or {})["seconds_left"] == 0
    queue.add([BV[0]])
    assert (client.get("/status").json or {})["seconds_left"] is None


@pytest.mark.slow
def test_the_tick_takes_the_samples(queue: Queue) -> None:
    ended = threading.Event()
    ticking = threading.Thread(target=web_server.tick, args=(queue, ended, 0.2))
    ticking.start()
    try:
        beat(queue, "w1", 33)
        found = wait_until("a point of the history", lambda: shown(queue), 40)
        assert found[-1][1:] == (33, 0)
        assert abs(found[-1][0] - time.time()) < 30
    finally:
        ended.set()
        ticking.join(10)
