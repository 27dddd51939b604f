"""Searching jobs and acting on them over HTTP, and what the worker's client tells of its streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis
from flask.testing import FlaskClient

from config import Settings
from errors import StaleToken
from model import Result
from queue_client import QueueClient, make_server_session
from redisConnect import Queue
from tests.test_jobs import BV, PAGE, fail, finish, page, permanent, transient
from web import create_app


@pytest.fixture
def queue(connection: redis.Redis, settings: Settings) -> Queue:
    """One whose delays are never over at once."""
    return Queue(connection, settings, draw=lambda: 0.5)


@pytest.fixture
def client(queue: Queue, settings: Settings) -> FlaskClient:
    return create_app(settings, queue).test_client()


def ask(client: FlaskClient, path: str, status: int = 200, **query: Any) -> dict[str, Any]:
    answer = client.get(path, query_string=query)
    assert answer.status_code == status, answer.text
    return answer.json or {}


def post(client: FlaskClient, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json or {}


def test_jobs_are_listed_page_by_page_and_found(client: FlaskClient, queue: Queue) -> None:
    queue.add(BV[:6], "music")
    fail(queue, transient("Ｔhe title"))
    urls, after = [], ""
    for _turn in range(4):
        answer = ask(client, "/jobs", category="music", limit=2, after=after)
        urls += [item["url"] for item in answer["items"]]
        after = answer["next"]
        if after is None:
            break
    assert urls == [*BV[1:6], BV[0]]
    (found,) = ask(client, "/jobs", find="THE T")["items"]
    assert (found["url"], found["state"], found["category"], found["code"]) == (BV[0], "delayed", "music", "-500")
    assert [item["url"] for item in ask(client, "/jobs", find=BV[3])["items"]] == [BV[3]]
    assert ask(client, "/jobs", state="done") == {"items": [], "next": None}


@pytest.mark.parametrize("query", [{"state": "lost"}, {"after": "x"}, {"limit": 0}, {"find": "x" * 2000}])
def test_what_cannot_be_listed_is_said(client: FlaskClient, query: dict[str, Any]) -> None:
    assert next(iter(query)) in ask(client, "/jobs", 400, **query)["error"]


def test_one_job_is_shown_with_its_life(client: FlaskClient, queue: Queue) -> None:
    one = page(queue)
    queue.nack(one.url, one.token, transient())
    job = ask(client, "/job", url=PAGE)
    assert (job["state"], job["attempts"], [error["code"] for error in job["errors"]]) == ("delayed", 1, ["-500"])
    assert "no such job" in ask(client, "/job", 404, url="BV1xx411c7mD")["error"]
    assert "no such job" in ask(client, "/job", 404)["error"]
    assert "url" in ask(client, "/job", 400, url="rubbish")["error"]


def test_failures_are_grouped_chosen_and_redriven_by_code(client: FlaskClient, queue: Queue) -> None:
    queue.add(BV[:3])
    for failure in (permanent(), permanent(), permanent(code="62002")):
        fail(queue, failure)
    assert ask(client, "/failures")["items"][0] == {"code": "-404", "reason": "deleted", "dead": 2, "delayed": 0}
    assert len(ask(client, "/failed")["items"]) == 3
    answer = ask(client, "/failed", code="-404", limit=1)
    assert len(ask(client, "/failed", code="-404", limit=1, after=answer["next"])["items"]) == 1
    assert [item["code"] for item in ask(client, "/failed", code="62002")["items"]] == ["62002"]
    assert post(client, "/redrive", code="-404") == {"redriven": 2}
    for body in ({}, {"all": True, "code": "x"}, {"urls": [], "code": "x"}):
        assert "code" in post(client, "/redrive", 400, **body)["error"]


def test_jobs_are_cancelled_moved_and_forgotten(client: FlaskClient, queue: Queue) -> None:
    queue.add(BV[:4])
    assert post(client, "/first", urls=[BV[2], BV[2], BV[9]]) == {"moved": 1}
    assert post(client, "/cancel", urls=[BV[0], BV[9]]) == {"cancelled": 1}
    assert ask(client, "/job", url=BV[0])["cancelled"] is True
    assert post(client, "/forget", urls=[BV[0], BV[1]]) == {"forgotten": 1}
    assert [lease.url for lease in queue.lease("w1", 9)] == [BV[2], BV[1], BV[3]]
    for path in ("/first", "/cancel", "/forget"):
        assert "urls" in post(client, path, 400)["error"]
        assert "urls[0]" in post(client, path, 400, urls=["rubbish"])["error"]
        assert client.get(path).status_code == 405


def test_the_status_page_tells_titles_of_jobs_in_work(client: FlaskClient, queue: Queue) -> None:
    one = page(queue)
    job = {"url": one.url, "token": one.token, "progress": {"title": "While it runs", "chunks": False}}
    post(client, "/heartbeat", worker="w1", jobs=[job])
    (found,) = ask(client, "/jobs", find="while")["items"]
    assert (found["title"], found["state"], found["worker"]) == ("While it runs", "leased", "w1")


async def test_a_worker_says_which_streams_it_took_and_hears_of_a_cancelled_job(
    queue_server: str, queue: Queue, settings: Settings
) -> None:
    one = page(queue)
    settings = replace(settings, server_urls=(queue_server,))
    async with make_server_session(settings) as session:
        client = QueueClient(settings, session, "w1", "i1")
        queue.cancel([one.url])
        beat = await client.heartbeat([{"url": one.url, "token": one.token}], {})
        assert list(beat.lost) == [one.url]
        with pytest.raises(StaleToken):
            await client.ack(one, Result("a.mp4", 1, 1.0), patience_seconds=0.0)
        queue.redrive([one.url])
        (again,) = queue.lease("w1", 1)
        await client.ack(again, Result("a.mp4", 1, 1.0, "T", "1080P AVC · 192K"))
    job = queue.job(one.url)
    assert job is not None and (job["state"], job["streams"]) == ("done", "1080P AVC · 192K")


def test_a_result_that_is_told_again_keeps_its_streams(client: FlaskClient, queue: Queue) -> None:
    told = {"url": PAGE, "path": "a.mp4", "bytes": 1, "seconds": 1.0, "streams": "720P AVC"}
    assert post(client, "/replay", worker="w1", results=[told])["recorded"] == 1
    assert ask(client, "/success")["items"][0]["streams"] == "720P AVC"
    finish(queue, page(queue, BV[1], 8))
    assert [item["streams"] for item in ask(client, "/success")["items"]] == ["720P AVC", ""]
