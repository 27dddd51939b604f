"""Sources over HTTP: what the server takes and shows of them, and the worker's client against it."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from flask.testing import FlaskClient

from config import Settings
from model import ListedPage, Walk
from queue_client import QueueClient
from redisConnect import Queue
from tests.test_source_queue import UPLOADER, VIDEOS, lease_source, ledger, let_it_be_time
from web import create_app


@pytest.fixture
def client(queue: Queue, settings: Settings) -> FlaskClient:
    return create_app(settings, queue).test_client()


def post(client: FlaskClient, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json or {}


def lease(client: FlaskClient) -> dict[str, Any]:
    (found,) = client.get("/get_url?worker=w&count=1").json or []
    return dict(found)


def test_an_address_of_a_source_becomes_a_container(client: FlaskClient) -> None:
    urls = ["https://space.bilibili.com/137137", "search:猫 咪", "mid:", "BV1xx411c7mD"]
    answer = post(client, "/add_url", urls=urls, category="music", wishes={"since": 7, "limit": 3, "match": ""})
    assert (answer["added"], [one["url"] for one in answer["rejected"]]) == (3, ["mid:"])
    found = lease(client)
    assert (found["url"], found["category"]) == (UPLOADER, "music")
    assert (found["walk"]["since"], found["walk"]["limit"], found["walk"]["cursor"]) == (7, 3, "")
    assert lease(client)["url"] == "search:%E7%8C%AB%20%E5%92%AA"
    assert "walk" not in lease(client)


def test_a_page_is_told_and_shown(client: FlaskClient) -> None:
    post(client, "/add_url", urls=[UPLOADER])
    found = lease(client)
    told = {"page": 1, "title": "<b>Her", "announced": 3, "cursor": "2", "unavailable": {"gone": 1}}
    body = {"url": UPLOADER, "token": found["token"], "urls": VIDEOS[:1], "more": True}
    assert post(client, "/expand", **body, ledger=told) == {"added": 1, "known": 0, "lease": None, "ended": False}
    body |= {"urls": VIDEOS[1:2], "more": False}
    assert post(client, "/expand", **body, ledger={"page": 2, "ended": "end"})["ended"]
    (shown,) = (client.get("/sources").json or {})["items"]
    assert (shown["title"], shown["listed"], shown["unavailable"], shown["complete"]) == (
        "<b>Her",
        2,
        {"gone": 1},
        True,
    )
    page = client.get("/ui/sources?fragment").text
    assert "&lt;b&gt;Her" in page and "complete" in page and "listed: 2 of 3" in page
    assert "https://space.bilibili.com/137137" in page


@pytest.mark.parametrize(
    "told",
    [
        *({}, {"page": 0}, {"page": 1, "announced": -1}, {"page": 1, "unavailable": {"gone": "2"}}, {"page": "1"}),
        *({"page": 1, "unavailable": [1]}, {"page": 1, "skipped": ["rubbish"]}, {"page": 1, "ended": "never"}, []),
        {"page": 1, "unavailable": {f"r{number}": 1 for number in range(51)}},
    ],
)
def test_what_a_ledger_is_not_told(told: Any, client: FlaskClient) -> None:
    body = {"url": UPLOADER, "token": "t", "urls": [], "ledger": told}
    answer = client.post("/expand", json=body)
    assert answer.status_code == 400 and "body.ledger" in answer.text


def test_a_source_is_watched_and_watched_no_more(client: FlaskClient, queue: Queue) -> None:
    address = "https://space.bilibili.com/137137"
    assert post(client, "/watch", source=address, seconds=60) == {"source": UPLOADER, "before": 0}
    assert post(client, "/watch", source=UPLOADER, seconds=0) == {"source": UPLOADER, "before": 60}
    for wrong in ({"source": "rubbish", "seconds": 60}, {"source": UPLOADER, "seconds": 5}, {"source": UPLOADER}):
        assert client.post("/watch", json=wrong).status_code == 400, wrong
    assert client.post("/watch", json={"source": "mid:", "seconds": 60}).status_code == 400


def test_a_video_is_watched_too_by_its_id_or_its_address(client: FlaskClient, queue: Queue) -> None:
    address = "https://www.bilibili.com/video/BV1xx411c7mD"
    assert post(client, "/watch", source=address, seconds=60) == {"source": "BV1xx411c7mD", "before": 0}
    assert post(client, "/add_url", urls=["av170001", "mid:7"], watch=60, category="music")["added"] == 2
    found = {item["source"]: item for item in (client.get("/sources").json or {})["items"]}
    assert {source: (item["watched"], item["category"]) for source, item in found.items()} == {
        "BV17x411w7KC": (86400, "music"),
        "BV1xx411c7mD": (86400, "other"),
        "mid:7": (60, "music"),
    }
    told = lease(client)
    body = {
        "url": told["url"],
        "token": told["token"],
        "title": "<i>One",
        "pages": [{"number": 1, "cid": 5, "title": ""}],
    }
    assert post(client, "/expand", **body)["added"] == 1
    page = client.get("/ui/sources?fragment").text
    assert "&lt;i&gt;One" in page and address.replace("1xx411c7mD", "17x411w7KC") in page
    for wrong in ("https://b23.tv/abc", "nothing"):
        assert client.post("/watch", json={"source": wrong, "seconds": 60}).status_code == 400
    for seconds in (5, -1, 1.5, 31 * 86400 + 1):
        assert client.post("/add_url", json={"urls": ["ep1"], "watch": seconds}).status_code == 400


def test_what_was_never_added_is_read_when_its_watch_says_so(queue: Queue, connection: Any) -> None:
    queue.watch(UPLOADER, 60)
    let_it_be_time(connection)
    assert queue.revisit() == 1
    assert lease_source(queue).walk == Walk()


@pytest.mark.asyncio
async def test_the_workers_client_tells_pages(queue: Queue, queue_server: str) -> None:
    queue.add([UPLOADER], wishes={"limit": 5, "oldest_first": True})
    settings = Settings(server_urls=(queue_server,))
    async with aiohttp.ClientSession() as session:
        worker = QueueClient(settings, session, "w", "i")
        (found,) = (await worker.lease(1)).leases
        assert found.walk == Walk(limit=5, oldest_first=True)
        page = ListedPage(1, "Her", 2, 1, {"gone": 1}, (VIDEOS[1],), 1, "c", "")
        first = await worker.expand_source(found, VIDEOS[:1], page, more=True)
        assert (first.added, first.ended) == (1, False)
        assert await worker.expand_source(found, VIDEOS[:1], page, more=True) == first
        assert ledger(queue)["cursor"] == "c"
        last = await worker.expand_source(found, (), ListedPage(2, ended="end"), more=False)
        assert last.ended and ledger(queue)["listed"] == 2
