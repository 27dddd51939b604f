"""What fuzzing has found: quick, so that it is never found again."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers

from config import Settings
from redisConnect import Queue
from transfer.part_file import read_journal, seal
from transfer.range_reply import Asked, Meaning, judge
from web import create_app

DIGITS = "9" * 5000
"""Python refuses to read so many as a number."""


@pytest.fixture
def client(settings: Settings, queue: Queue) -> FlaskClient:
    return create_app(settings, queue).test_client()


@pytest.mark.parametrize("path", ["/ui/sign-in", "/ui/sign-out"])
def test_a_page_that_says_that_a_method_is_wrong_names_the_right_one(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype) == (405, "text/html")
    assert "POST" in answer.headers["Allow"]


def test_a_post_to_what_takes_none_is_405_whatever_its_body(client: FlaskClient) -> None:
    answer = client.post("/status", data="a=b")
    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]
    assert client.post("/nowhere", data="a=b").status_code == 404
    assert client.post("/ack", data="a=b").status_code == 415


def test_a_sign_out_that_is_no_json_is_refused(client: FlaskClient) -> None:
    assert client.post("/ui/sign-out", data=b"\0", content_type="application/json").status_code == 400


@pytest.mark.parametrize("missing", ["job", "cid", "name", "size"])
def test_a_journal_that_lacks_something_says_nothing(missing: str) -> None:
    whole = {"format": 1, "size": None, "job": "BV1xx411c7mD?p=1&cid=5", "cid": 5, "name": "v80-7"}
    assert read_journal(seal(whole)) is not None
    assert read_journal(seal({name: value for name, value in whole.items() if name != missing})) is None


@pytest.mark.parametrize("text", [DIGITS, "²", "٣"])
def test_a_length_that_is_no_number_is_none(text: str) -> None:
    verdict = judge(200, Headers({"Content-Length": text}), Asked(0, 5, None, whole_is_fine=True))
    assert (verdict.meaning, verdict.stop) == (Meaning.WHOLE, None)


def test_a_park_that_is_as_good_as_over_is_none(client: FlaskClient) -> None:
    """Redis takes no key that ends at once, and the heartbeat was answered as if Redis were away."""
    for seconds, slow in ((1e-9, None), (0.0004, None), (5, {"slow_seconds": 5.0}), (1e-9, {"slow_seconds": 5.0})):
        beat = {"worker": "w1", "jobs": [], "risk": {"kind": "-412", "seconds": seconds}}
        answer = client.post("/heartbeat", json=beat)
        assert answer.status_code == 200, answer.text
        control = (answer.json or {})["control"]
        assert control == slow or 4 < control["slow_seconds"] <= 5


def test_a_source_cannot_be_given_pages(client: FlaskClient) -> None:
    """One that could made a job whose id is none, and no list with it in could be looked at any more."""
    client.post("/add_url", json={"urls": ["rank:1010", "https://www.bilibili.com/cheese/play/ep456"]})
    leases = client.get("/get_url?count=2").json or []
    pages = [{"number": 1, "cid": 5, "title": "A page"}]
    statuses = {
        lease["url"]: client.post(
            "/expand", json={"url": lease["url"], "token": lease["token"], "pages": pages}
        ).status_code
        for lease in leases
    }
    assert statuses == {"rank:1010": 400, "cheese:ep456": 200}
    assert client.get("/jobs").status_code == client.get("/ui/jobs").status_code == 200
