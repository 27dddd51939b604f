"""What is worth a message, what is said of it, and how often: decisions, then a real queue, then real machines."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

import web_server
from config import Settings
from demo.process import DEFAULT_CACHE, SiteProcess
from errors import EngineError, UsageError
from model import ListedPage
from notices import AGAIN_SECONDS, GIB, EndedSource, Seen, SeenWorker, listing, notices, plain
from notify import Notifier, without_secrets
from redisConnect import Queue
from store.farm import NOTICES_AN_HOUR, WITHHELD_LIMIT
from tests.farm import Farm, free_port, wait_until
from tests.test_redisConnect import BV, TRANSIENT, lease_one, page_lease, result
from tests.test_series import STEP, Clock, clock, timed  # noqa: F401
from web import create_app

AT = 1_700_000_000
W1 = SeenWorker("w1", 1.0, disk_free_bytes=100 * GIB)
CALM = Seen(AT, [W1])


class Memory:
    """What is remembered, as one server alone would change it."""

    def __init__(self) -> None:
        self.said = {"begun": "1", "ended": "1-0", "replayed": "0"}

    def look(self, seen: Seen) -> list[str]:
        """Return what is said."""
        texts = []
        for notice in notices(seen, self.said):
            for change in notice.changes:
                assert self.said.get(change.subject, "") == change.before
                self.said[change.subject] = change.after
            self.said = {subject: mark for subject, mark in self.said.items() if mark}
            if notice.say is not None:
                texts.append(notice.say([change.subject.partition(" ")[2] for change in notice.changes]))
        return texts


def later(seen: Seen, seconds: int, **more: Any) -> Seen:
    return replace(seen, at_seconds=seen.at_seconds + seconds, **more)


def with_worker(seen: Seen, **more: Any) -> Seen:
    return replace(seen, workers=[replace(seen.workers[0], **more)])


# ------------------------------------------------------------------------------------------ what is said


def test_a_calm_farm_is_worth_no_word() -> None:
    assert Memory().look(CALM) == []


def test_a_machine_is_lost_and_back_once() -> None:
    memory, lost = Memory(), with_worker(CALM, silent_seconds=181.0)
    (said,) = memory.look(lost)
    assert "w1" in said and "Lost" in said and "3 min" in said
    assert memory.look(later(lost, 10)) == []
    assert memory.look(later(CALM, 20)) == ["Back again: w1."]
    assert memory.look(later(CALM, 30)) == []


def test_a_machine_that_said_goodbye_is_not_lost() -> None:
    assert Memory().look(with_worker(CALM, silent_seconds=9999.0, has_ended=True)) == []


def test_a_machine_that_comes_and_goes_is_said_once_an_hour() -> None:
    memory, lost = Memory(), with_worker(CALM, silent_seconds=181.0)
    said = []
    for minute in range(0, 119, 2):
        said += memory.look(later(lost, 60 * minute)) + memory.look(later(CALM, 60 * minute + 60))
    assert len(said) == 4
    assert memory.look(later(CALM, 3 * AGAIN_SECONDS)) == []


def test_many_lost_machines_are_one_notice() -> None:
    workers = [SeenWorker(f"w{number}", 500.0) for number in range(100)]
    (said,) = Memory().look(replace(CALM, workers=workers))
    assert "w4 and 95 more" in said


def test_what_was_lost_before_anybody_was_told_is_not_said() -> None:
    memory, lost = Memory(), with_worker(CALM, silent_seconds=9999.0)
    memory.said = {}
    assert memory.look(replace(lost, replayed=7, ended_until="5-0")) == []
    assert memory.look(later(lost, 10, replayed=7, ended_until="5-0", replayed_seconds=999.0)) == []
    assert memory.look(later(CALM, 20, replayed=7, ended_until="5-0")) == ["Back again: w1."]


def test_a_forgotten_machine_is_remembered_no_more() -> None:
    memory = Memory()
    memory.look(with_worker(CALM, silent_seconds=181.0, disk_free_bytes=1))
    assert {"lost w1", "disk w1"} <= set(memory.said)
    assert memory.look(replace(CALM, workers=[])) == []
    assert not {"lost w1", "disk w1"} & set(memory.said)


def test_a_full_disk_is_said_and_not_again_while_it_stays_near() -> None:
    memory = Memory()
    (said,) = memory.look(with_worker(CALM, disk_free_bytes=int(4.2 * GIB)))
    assert "w1 (4.2 GiB)" in said
    for free in (5.5 * GIB, 4.9 * GIB, 7 * GIB, 4 * GIB):
        assert memory.look(with_worker(later(CALM, 60), disk_free_bytes=int(free))) == []
    assert len(memory.look(with_worker(later(CALM, AGAIN_SECONDS), disk_free_bytes=GIB))) == 1


def test_risk_control_is_said_once_for_all_machines() -> None:
    memory = Memory()
    parked = replace(CALM, workers=[SeenWorker(name, 1.0, risk="-352") for name in ("w1", "w2")])
    (said,) = memory.look(parked)
    assert "w1, w2" in said and "-352" in said
    assert memory.look(later(parked, 600)) == []
    assert memory.look(later(CALM, 700)) == []


def test_risk_control_is_said_once_for_each_address_or_account() -> None:
    memory = Memory()
    here = [SeenWorker(name, 1.0, risk="-412", way="address:203.0.113.9") for name in ("w1", "w2")]
    there = SeenWorker("w3", 1.0, risk="-352", way="account:a")
    (said,) = memory.look(replace(CALM, workers=here))
    assert "w1, w2 (code -412)" in said
    (said,) = memory.look(later(replace(CALM, workers=[*here, there]), 60))
    assert "w3 (code -352)" in said and "w1" not in said
    assert memory.look(later(replace(CALM, workers=[there]), 120)) == []
    assert memory.look(later(replace(CALM, workers=[*here, there]), 180)) == [], "within the hour"
    assert memory.look(later(CALM, 200)) == []
    assert memory.look(later(CALM, 200 + AGAIN_SECONDS)) == []
    assert not any(subject.startswith("risk") for subject in memory.said), "nothing of it is kept for ever"


@pytest.mark.parametrize(("failures", "finished", "said"), [(20, 3, 1), (19, 0, 0), (20, 20, 0), (300, 299, 1)])
def test_failures_are_said_where_they_pile_up(failures: int, finished: int, said: int) -> None:
    memory, seen = Memory(), replace(CALM, failures=failures, finished=finished)
    assert len(memory.look(seen)) == said
    assert memory.look(later(seen, 60)) == []


def test_lost_data_are_summed_up_when_no_more_comes() -> None:
    memory, lost = Memory(), replace(CALM, replayed=5, replayed_seconds=3.0)
    assert memory.look(lost) == []
    assert memory.look(later(lost, 30, replayed=12, replayed_seconds=2.0)) == []
    (said,) = memory.look(later(lost, 99, replayed=12, replayed_seconds=70.0))
    assert "12 results" in said
    assert memory.look(later(lost, 200, replayed=12, replayed_seconds=170.0)) == []


def test_a_source_that_was_read_is_said_with_its_counts() -> None:
    memory = Memory()
    ended = [
        EndedSource("mid:1", "An uploader\n@all", True, 42, 40, 1),
        EndedSource("fav:2", "", False, 7, 7, 0),
    ]
    (said,) = memory.look(replace(CALM, ended=ended, ended_until="9-0"))
    whole, partly = said.splitlines()
    assert "An uploader ＠all (mid:1)" in whole and "42 listed, 40 of them new; 1 cannot" in whole
    assert "incomplete: fav:2" in partly
    assert memory.look(later(CALM, 10, ended_until="9-0")) == []


def test_all_done_is_said_where_something_was_done_and_once_an_hour() -> None:
    memory, works = Memory(), replace(CALM, open_jobs=3, done=10, dead=1)
    assert memory.look(CALM) == memory.look(works) == []
    (said,) = memory.look(later(works, 60, open_jobs=0, done=12, waiting_jobs=1))
    assert said == "All done: 2 pages were downloaded, 0 jobs failed for good. 1 wait for another try."
    assert memory.look(later(works, 70, open_jobs=0, done=12)) == []
    assert memory.look(later(works, 80, open_jobs=1, done=12)) == []
    assert memory.look(later(works, 90, open_jobs=0, done=13)) == []
    (said,) = memory.look(later(works, 60 + AGAIN_SECONDS, open_jobs=0, done=15))
    assert said.startswith("All done: 3 pages")


def test_work_that_had_nothing_to_do_is_not_said_to_be_done() -> None:
    memory = Memory()
    assert memory.look(replace(CALM, open_jobs=1, done=10)) == memory.look(later(CALM, 60, done=10)) == []


def test_what_others_have_written_is_one_short_line_that_calls_nobody() -> None:
    assert plain("a\n\x00b\u202e @everyone") == "a b ＠everyone"
    assert len(plain("x" * 500)) == 80
    assert listing(["a", "b"]) == "a, b"


# ------------------------------------------------------------------------------------------ how it is sent


class Receiver:
    """A service that takes notices, on loopback."""

    def __init__(self, port: int = 0) -> None:
        self.texts: list[str] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if receiver.status == 200:
                    receiver.texts.append(body["message"])
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/s3cret-path"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(10)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notify.RETRY_SECONDS", 0.01)


def test_a_notice_arrives_word_for_word(receiver: Receiver) -> None:
    text = "All done: 《{{ app_id }}》 <b>&amp; :smile: \\n"
    assert Notifier([receiver.url, receiver.url]).send(text, is_good=True) == []
    assert receiver.texts == [text, text]


def test_an_address_that_fails_is_named_without_its_secrets(receiver: Receiver) -> None:
    receiver.status = 403
    (problem,) = Notifier([receiver.url]).send("x")
    assert "address 1" in problem and "json" in problem
    assert "s3cret" not in problem and str(receiver.server.server_port) not in problem


def test_secrets_are_taken_out_whole_and_in_parts() -> None:
    url = "tgram://12345:AAbb-cc_dd%40x/99887766"
    text = without_secrets(f"sent to {url} with AAbb-cc_dd@x and 99887766 failed: 404", url)
    assert not any(secret in text for secret in ("12345", "AAbb", "cc_dd", "99887766"))
    assert "failed: 404" in text


@pytest.mark.parametrize("url", ["nothing://at-s3cret", "json://", "tgram://s3cret"])
def test_an_address_of_no_service_is_named_and_not_shown(url: str) -> None:
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)  # pytest's own listens also to what does not go on to the root
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(UsageError, match="address 2") as raised:
            Notifier(["json://127.0.0.1", url])
    finally:
        logging.getLogger().removeHandler(handler)
    assert "s3cret" not in f"{raised.value}{logged.getvalue()}"


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (500, 1)])
def test_a_test_notification_says_whether_it_arrived(
    receiver: Receiver,
    status: int,
    exit_status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    receiver.status = status
    monkeypatch.setenv("BILI_NOTIFY", receiver.url)
    assert web_server.main(["--test-notification"]) == exit_status
    said = capsys.readouterr()
    assert bool(said.out) == (status == 200) and bool(said.err) == (status != 200)
    assert "s3cret" not in said.out + said.err
    assert len(receiver.texts) == (status == 200)


def test_without_an_address_there_is_nothing_to_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BILI_NOTIFY", raising=False)
    assert web_server.main(["--test-notification"]) == 2


# ------------------------------------------------------------------------------------------ what a real queue has seen


class Posts:
    """Takes what a watch sends."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.problems: list[str] = []

    def __call__(self, text: str, is_good: bool) -> list[str]:
        self.texts.append(text)
        return self.problems


def beat(queue: Queue, worker: str, **more: Any) -> None:
    queue.heartbeat(worker, [], {"state": "running", "disk_free_bytes": 100 * GIB, **more})


def watches(queue: Queue, count: int = 1) -> tuple[list[web_server.Watch], Posts]:
    """Return watches that have begun, and what they send."""
    posts = Posts()
    made = [web_server.Watch(queue, posts) for _unused in range(count)]
    for watch in made:
        for _look in range(2):
            watch.look()
    return made, posts


def long_since(*made: web_server.Watch, seconds: float = 10_000.0) -> None:
    """Let watches have listened for long."""
    for watch in made:
        assert watch._since is not None
        watch._since -= seconds


def silence(connection: redis.Redis, worker: str, seconds: float) -> None:
    connection.zincrby("{bili:0}:workers", -1000 * seconds, worker)


def test_several_servers_say_each_thing_once(queue: Queue, connection: redis.Redis) -> None:
    beat(queue, "w1")
    beat(queue, "w2", disk_free_bytes=GIB)
    made, posts = watches(queue, 3)
    long_since(*made)
    silence(connection, "w1", 200)
    for watch in made * 2:
        watch.look()
    assert len(posts.texts) == 2
    beat(queue, "w1")
    for watch in made:
        watch.look()
    assert posts.texts[2:] == ["Back again: w1."]


def test_servers_that_look_at_the_same_moment_say_it_once(queue: Queue, connection: redis.Redis) -> None:
    for number in range(20):
        beat(queue, f"w{number}")
    made, posts = watches(queue, 4)
    long_since(*made)
    for number in range(20):
        silence(connection, f"w{number}", 200)
    together = threading.Barrier(len(made))

    def look(watch: web_server.Watch) -> None:
        together.wait(10)
        watch.look()

    threads = [threading.Thread(target=look, args=(watch,)) for watch in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(posts.texts) == 1 and "and 15 more" in posts.texts[0]


def test_a_server_that_was_away_takes_nobody_for_lost(queue: Queue, connection: redis.Redis) -> None:
    beat(queue, "w1")
    (watch,), posts = watches(queue)
    silence(connection, "w1", 5000)
    watch.look()
    assert posts.texts == []


def test_a_clock_that_jumps_takes_nobody_for_lost(
    timed: Queue,  # noqa: F811
    clock: Clock,  # noqa: F811
) -> None:
    beat(timed, "w1")
    (watch,), posts = watches(timed)
    long_since(watch)
    clock.go_on(7200)
    watch.look()
    watch.look()
    assert posts.texts == []


def test_a_goodbye_and_who_only_asks_for_jobs_are_no_losses(queue: Queue, connection: redis.Redis) -> None:
    queue.lease("curl", 1)
    beat(queue, "w1", state="ended")
    (watch,), posts = watches(queue)
    long_since(watch)
    for name in ("curl", "w1"):
        silence(connection, name, 5000)
    watch.look()
    assert posts.texts == []


def test_failures_and_the_end_of_the_work_are_seen(
    timed: Queue,  # noqa: F811
    clock: Clock,  # noqa: F811
) -> None:
    (watch,), posts = watches(timed)
    timed.sample()
    timed.add(BV)
    watch.look()
    for _unused in range(20):
        lease = lease_one(timed)
        timed.nack(lease.url, lease.token, TRANSIENT)
    clock.go_on(STEP)
    timed.sample()
    watch.look()
    (said,) = posts.texts
    assert "20 attempts" in said


def test_a_page_that_is_the_last_one_is_said(queue: Queue) -> None:
    (watch,), posts = watches(queue)
    lease = page_lease(queue)
    watch.look()
    queue.ack(lease.url, lease.token, result(7))
    watch.look()
    assert posts.texts == ["All done: 1 pages were downloaded, 0 jobs failed for good."]


def test_a_source_is_said_when_it_is_read_and_not_when_it_has_nothing_new(queue: Queue) -> None:
    (watch,), posts = watches(queue)

    def read(more: tuple[str, ...]) -> None:
        lease = queue.claim("mid:137137", "reader", refresh=True)
        assert not isinstance(lease, str)
        queue.expand(lease.url, lease.token, [], more, ledger=ListedPage(1, announced=3, title="An uploader"))
        watch.look()

    read((BV[0], BV[1]))
    assert len(posts.texts) == 1 and "incomplete: An uploader (mid:137137). 2 listed, 2 of them new" in posts.texts[0]
    read((BV[0], BV[1]))
    assert len(posts.texts) == 1
    read((BV[0], BV[1], BV[2]))
    assert len(posts.texts) == 2 and "3 listed, 1 of them new" in posts.texts[1]


def test_more_than_so_many_an_hour_are_summed_up_in_one(
    timed: Queue,  # noqa: F811
    clock: Clock,  # noqa: F811
) -> None:
    (watch,), posts = watches(timed)
    sent = NOTICES_AN_HOUR + WITHHELD_LIMIT + 10
    for number in range(sent):
        watch._say(f"notice {number}", True)
    assert len(posts.texts) == NOTICES_AN_HOUR
    watch.look()
    assert len(posts.texts) == NOTICES_AN_HOUR
    clock.go_on(3600)
    for _unused in range(3):
        watch.look()
    assert len(posts.texts) == NOTICES_AN_HOUR + 1
    assert posts.texts[-1].splitlines()[1:] == [f"notice {number}" for number in range(sent)][-WITHHELD_LIMIT:]


def test_a_full_memory_keeps_no_notice_back(queue: Queue, connection: redis.Redis) -> None:
    beat(queue, "w1")
    (watch,), posts = watches(queue)
    long_since(watch)
    silence(connection, "w1", 200)
    connection.config_set("maxmemory", 1)
    try:
        for _look in range(2):
            watch.look()
    finally:
        connection.config_set("maxmemory", 0)
    assert len(posts.texts) == 1


def test_a_service_that_fails_is_said_once(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    (watch,), posts = watches(queue)
    posts.problems = ["it is away"]
    for _unused in range(3):
        watch._say("x", True)
    assert caplog.text.count("it is away") == 1
    posts.problems = []
    watch._say("x", True)
    assert caplog.text.count("arrive again") == 1


def test_an_engine_that_is_away_ends_no_watch(queue: Queue) -> None:
    ended = threading.Event()

    class Away:
        looks = 0

        def seen(self, watched_seconds: float) -> None:
            assert watched_seconds < 1
            self.looks += 1
            if self.looks == 3:
                ended.set()
            raise EngineError("away")

    away = Away()
    web_server.Watch(away, Posts()).run(ended, 0.01)  # type: ignore[arg-type]
    assert away.looks == 3


def test_a_worker_that_is_parked_by_risk_control_shows_it(queue: Queue, settings: Settings) -> None:
    client = create_app(settings, queue).test_client()
    body = {"worker": "w1", "jobs": [], "state": {"state": "parked"}, "risk": {"kind": "-352", "seconds": 30}}
    (watch,), posts = watches(queue)
    assert client.post("/heartbeat", json=body).status_code == 200
    watch.look()
    assert len(posts.texts) == 1 and "w1 (code -352)" in posts.texts[0]


# ------------------------------------------------------------------------------------------ real machines


@pytest.fixture(scope="module")
def site() -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_machine_that_is_killed_is_said_to_be_lost_and_one_that_ends_is_not(
    tmp_path: Path, site: SiteProcess, receiver: Receiver
) -> None:
    farm = Farm(tmp_path, site, BILI_NOTIFY=receiver.url, BILI_LEASE_SECONDS="5")
    try:

        def states() -> dict[str, str]:
            return {one["worker"]: one.get("state", "") for one in farm.get("/status")["workers"]}

        killed = farm.worker(BILI_WORKER="killed")
        polite = farm.worker(BILI_WORKER="polite")
        wait_until("both are heard", lambda: all(states().get(name) for name in ("killed", "polite")))
        wait_until("the watch has begun", lambda: _has_begun(farm), 60)
        killed.kill()
        polite.interrupt()
        assert polite.wait() == 0
        assert states()["polite"] == "ended"
        wait_until("it is said to be lost", lambda: [text for text in receiver.texts if "Lost" in text])
        farm.worker(BILI_WORKER="killed")
        wait_until("it is said to be back", lambda: [text for text in receiver.texts if "Back" in text])
        assert not any("polite" in text for text in receiver.texts)
        assert "s3cret" not in farm.server.output()
    finally:
        farm.close()


def _has_begun(farm: Farm) -> bool:
    """Tell whether the server has looked at least once since it began to look."""
    return bool(farm.get("/history")["points"])


@pytest.mark.slow
def test_a_service_that_is_away_stops_neither_the_tick_nor_the_server(tmp_path: Path, site: SiteProcess) -> None:
    farm = Farm(tmp_path, site, BILI_NOTIFY=f"json://127.0.0.1:{free_port()}/s3cret")
    try:
        farm.server.interrupt()
        assert farm.server.wait(15) == 0
        assert "s3cret" not in farm.server.output()
    finally:
        farm.close()
