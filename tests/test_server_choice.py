"""Which of several servers is asked: in simulated time."""

from __future__ import annotations

from collections import Counter

from errors import ServerUnreachable
from server_choice import FIRST_BAD_SECONDS, LONGEST_BAD_SECONDS, ServerChoice, is_there, together

A, B, C = "http://a:1", "http://b:2", "http://c:3"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def order(choice: ServerChoice) -> list[str]:
    return list(choice.in_order())


def test_without_a_name_the_first_one_comes_first() -> None:
    assert order(ServerChoice((A, B, C), Clock())) == [A, B, C]


def test_workers_spread_over_the_servers_and_each_stays_with_its_own() -> None:
    firsts = Counter(order(ServerChoice((A, B, C), Clock(), f"worker-{number}"))[0] for number in range(300))
    assert min(firsts[A], firsts[B], firsts[C]) > 60
    assert order(ServerChoice((A, B, C), Clock(), "w1")) == order(ServerChoice((A, B, C), Clock(), "w1"))


def test_one_that_failed_is_asked_last_until_its_time_is_over() -> None:
    clock = Clock()
    choice = ServerChoice((A, B, C), clock)
    assert choice.failed(A)
    assert order(choice) == [B, C, A]
    clock.now += FIRST_BAD_SECONDS
    assert order(choice) == [A, B, C]
    assert not choice.failed(A)  # it is away still: no news, and it stays bad for twice as long
    clock.now += FIRST_BAD_SECONDS
    assert order(choice) == [B, C, A]
    clock.now += FIRST_BAD_SECONDS
    assert order(choice) == [A, B, C]
    assert choice.answered(A) and not choice.answered(A)
    assert choice.failed(A)


def test_where_all_are_bad_the_one_that_was_bad_first_is_asked_first() -> None:
    clock = Clock()
    choice = ServerChoice((A, B), clock)
    choice.failed(B)
    clock.now += 1
    choice.failed(A)
    assert order(choice) == [B, A]
    choice.failed(B)  # asked because there was no other one: not bad for longer by that
    assert order(choice) == [B, A]


def test_no_server_is_left_alone_for_more_than_a_minute() -> None:
    clock = Clock()
    choice = ServerChoice((A, B), clock)
    for _ in range(2000):
        choice.failed(A)
        clock.now += LONGEST_BAD_SECONDS
        assert order(choice) == [A, B]


def test_one_error_names_all_and_asks_for_the_shortest_wait() -> None:
    alone = ServerUnreachable("The server http://a:1 cannot be reached: refused")
    assert together({A: alone}) is alone
    engine = ServerUnreachable("Redis cannot be used now", 503, 2.0)
    later = ServerUnreachable("busy", 503, 7.0)
    both = together({A: alone, B: engine, C: later})
    text = "The server http://a:1 cannot be reached: refused; http://b:2: Redis cannot be used now; http://c:3: busy"
    assert str(both) == f"No server answers: {text}"
    assert both.retry_after_seconds == 2.0 and both.status == 0
    assert is_there(ServerUnreachable("slower", 429, 1.0)) and not is_there(engine) and not is_there(alone)
