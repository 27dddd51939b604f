"""Threads that are kept on one processor, and processes that they start."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from embedded_valkey import EmbeddedValkey
from one_processor import ALLOWED, TURNS, Load, OneProcessor, everywhere, load_so_far

pytestmark = pytest.mark.skipif(sys.platform != "linux" or len(ALLOWED) < 2, reason="there is no choice of processors")


class Members:
    """Threads of which one at a time does something."""

    def __init__(self, together: OneProcessor) -> None:
        self.ids: list[int] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(together,)) for _unused in range(3)]
        self._all_are_here = threading.Barrier(len(self._threads) + 1)
        for thread in self._threads:
            thread.start()
        self._all_are_here.wait()

    def _run(self, together: OneProcessor) -> None:
        together.join()
        self.ids.append(threading.get_native_id())
        self._all_are_here.wait()
        self._end.wait()

    def places(self) -> set[frozenset[int]]:
        return {frozenset(os.sched_getaffinity(one)) for one in self.ids}

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def kept() -> Iterator[None]:
    """The calling thread is kept on one processor."""
    os.sched_setaffinity(0, {min(ALLOWED)})
    yield
    os.sched_setaffinity(0, ALLOWED)


CPUS = os.cpu_count() or 1


class Told:
    """Seconds that pass, as they are told to OneProcessor."""

    def __init__(self) -> None:
        self.used, self.idle = 0.9, 0.5 * CPUS
        self._now = Load(0, 0, 0)

    def __call__(self) -> Load:
        own, idle, of_all = self._now
        self._now = Load(own + self.used, idle + self.idle, of_all + CPUS)
        return self._now


def test_threads_are_kept_on_one_processor_and_may_choose_another_one_now_and_then() -> None:
    together = OneProcessor(Told())
    with closing(Members(together)) as members:
        assert members.places() == {ALLOWED}
        seen = []
        for _unused in range(2 * TURNS):
            together.turn()
            (place,) = members.places()
            seen.append(len(place))
        free = len(ALLOWED)
        assert seen == [1] * (TURNS - 1) + [free] + [1] * (TURNS - 1) + [free]
        together.turn()
        together.part()
        assert members.places() == {ALLOWED}
    together.turn()
    together.turn()  # of threads that have ended nothing is wanted any more
    assert os.sched_getaffinity(0) == ALLOWED


@pytest.mark.parametrize(("used", "idle", "kept"), [(0.9, 0.05, True), (0.2, 0.5, False), (0.9, 0.02, False)])
def test_they_are_kept_while_there_is_much_to_do_and_others_have_room(used: float, idle: float, kept: bool) -> None:
    told = Told()
    together = OneProcessor(told)
    with closing(Members(together)) as members:
        together.turn()
        told.used, told.idle = used, idle * CPUS
        together.turn()
        (place,) = members.places()
        assert len(place) == (1 if kept else len(ALLOWED))


def test_the_seconds_are_those_of_this_process_and_of_all_processors() -> None:
    began, before = time.monotonic(), load_so_far()
    while time.process_time() - before.own < 0.2:
        pass
    after, seconds = load_so_far(), time.monotonic() - began
    assert 0.2 <= after.own - before.own < 0.5
    assert 0 <= after.idle - before.idle <= after.all - before.all
    assert after.all - before.all == pytest.approx(seconds * CPUS, abs=0.1 * CPUS, rel=0.3)


def test_who_is_not_kept_by_us_is_left_where_others_keep_him() -> None:
    told = Told()
    told.used = 0.0
    together = OneProcessor(told)
    with closing(Members(together)) as members:
        for one in members.ids:
            os.sched_setaffinity(one, {min(ALLOWED)})
        together.turn()
        together.part()
        assert members.places() == {frozenset({min(ALLOWED)})}


def test_they_stay_where_whoever_takes_the_turn_runs(kept: None) -> None:
    together = OneProcessor(Told())
    with closing(Members(together)) as members:
        together.turn()
        assert members.places() == {frozenset({min(ALLOWED)})}


def test_the_engine_that_a_kept_thread_starts_may_use_all(kept: None, tmp_path: Path) -> None:
    with closing(EmbeddedValkey(tmp_path)) as engine:
        address = engine.ensure()
        with redis.Redis(unix_socket_path=address.path, password=address.password) as connection:
            valkey = connection.info("server")["process_id"]
        assert os.sched_getaffinity(valkey) == ALLOWED
    assert os.sched_getaffinity(0) == {min(ALLOWED)}


def test_what_was_chosen_is_kept_whatever_happens_meanwhile(kept: None) -> None:
    with pytest.raises(ValueError, match="late"), everywhere():
        assert os.sched_getaffinity(0) == ALLOWED
        raise ValueError("late")
    assert os.sched_getaffinity(0) == {min(ALLOWED)}
