"""``--find`` says where files are: on which machine, and where they were delivered to; of pages, videos and titles."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import redis

import add_url
from add_url import ServerSink
from config import Settings
from finding import Lists, find_jobs, job_table, meant
from model import Page, Result
from parse_ import REAL_HOSTS, aid_to_bvid
from redisConnect import Queue

ONE, TWO, THREE = (aid_to_bvid(aid) for aid in (170001, 170002, 170003))
STORED = "sftp://nas/v/Ein%20Titel.mp4"


@pytest.fixture(params=["queue", "server"])
def lists(request: pytest.FixtureRequest, queue: Queue, settings: Settings) -> Lists:
    """A queue with a video of two pages that are done, one whose page waits, and one that nobody has looked at."""
    queue.add([ONE, TWO, THREE], "c")
    (lease,) = queue.lease("w1", 1)
    lease = queue.expand(lease.url, lease.token, [Page(1, 11, "a"), Page(2, 12, "b")]).lease
    assert lease is not None
    queue.ack(lease.url, lease.token, Result("c/one.mp4", 10, 1.0, "Ein Titel", stored=STORED))
    (lease,) = queue.lease("w2", 1)
    queue.ack(lease.url, lease.token, Result("c/two.mp4", 20, 1.0, "Ein Titel P2"))
    (lease,) = queue.lease("w1", 1)
    queue.expand(lease.url, lease.token, [Page(1, 21, "c")])
    if request.param == "queue":
        return queue
    server = request.getfixturevalue("queue_server")
    return ServerSink(replace(settings, server_urls=(server,), token="word"))


def places(lists: Lists, text: str) -> list[tuple[str, str, str, str]]:
    found = find_jobs(lists, meant(text, REAL_HOSTS))
    return [(job["state"], job.get("worker", ""), job.get("path", ""), job.get("stored", "")) for job in found]


FIRST = ("done", "w1", "c/one.mp4", STORED)
SECOND = ("done", "w2", "c/two.mp4", "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ONE, [FIRST, SECOND]),
        ("av170001", [FIRST, SECOND]),
        (f"https://www.bilibili.com/video/{ONE}", [FIRST, SECOND]),
        (f"https://www.bilibili.com/video/{ONE}?p=2", [SECOND]),
        (f"{ONE}?p=1&cid=11", [FIRST]),
        ("12", [SECOND]),
        ("ein titel p", [SECOND]),
        ("Ein", [FIRST, SECOND]),
        ("13", []),
        ("nothing", []),
        (aid_to_bvid(170009), []),
    ],
)
def test_files_are_found_by_what_a_person_knows_of_them(
    lists: Lists, text: str, found: list[tuple[str, str, str, str]]
) -> None:
    assert sorted(places(lists, text)) == found


def test_what_is_not_done_is_found_too(lists: Lists) -> None:
    assert [state for state, *_rest in places(lists, THREE)] == ["ready"]


def test_a_table_shows_what_is_asked_for(lists: Lists) -> None:
    table = job_table(list(find_jobs(lists, ONE)))
    cells = [list(column.cells) for column in table.columns]
    assert STORED in cells[-1] and {"w1", "w2"} == set(cells[3]) and "c/two.mp4" in cells[4]


def test_the_script_prints_json_and_its_status_says_whether_there_was_something(
    queue: Queue, valkey_socket: str, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("REDIS_URL", f"unix://{valkey_socket}")
    queue.add([ONE], "c")
    assert add_url.main(["--find", ONE, "--json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)
    assert (job["url"], job["state"]) == (ONE, "ready")
    assert add_url.main(["--find", ONE]) == 0
    assert ONE in capsys.readouterr().out
    assert add_url.main(["--find", "no such title"]) == 1
    assert "Nothing is known of no such title" in capsys.readouterr().err
    assert add_url.main(["--find", ONE, TWO]) == 2


def test_where_a_file_was_delivered_to_is_recorded_and_told(queue: Queue) -> None:
    queue.add([ONE])
    (lease,) = queue.lease("w1", 1)
    lease = queue.expand(lease.url, lease.token, [Page(1, 11, "a")]).lease
    assert lease is not None
    queue.ack(lease.url, lease.token, Result("c/one.mp4", 10, 1.0, "t", "1080P", STORED))
    assert queue.success("", 9)[0][0]["stored"] == STORED
    job = queue.job(lease.url)
    assert job is not None and job["stored"] == STORED
    again = f"{TWO}?p=1&cid=21"
    assert queue.replay("w2", [(again, Result("c/two.mp4", 10, 1.0, "t", "", STORED))]) == 1
    assert queue.jobs(find="21")[0][0]["stored"] == STORED


def test_a_job_whose_file_is_here_waits_for_its_worker(queue: Queue) -> None:
    queue.add([ONE])
    (lease,) = queue.lease("w1", 1)
    assert queue.release(lease.url, lease.token, kept=True) == "ready"
    assert queue.lease("w2", 1) == ()
    (again,) = queue.lease("w1", 1, [lease.url])
    assert again.url == lease.url
