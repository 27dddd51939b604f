"""/openapi.json: it describes the routes that are there, and what they answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from flask import Flask
from flask.testing import FlaskClient

from config import Settings
from redisConnect import Queue
from tests.test_jobs import BV, PAGE
from web import create_app
from web.openapi import LINKS, ROUTES, describe

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BLOCK = re.compile(r"^### `(GET|POST) (/\S*)`$|^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def app(settings: Settings, queue: Queue) -> Flask:
    return create_app(settings, queue)


def closed(schema: Any) -> Any:
    """Return a schema whose objects have nothing but what is described."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {name: closed(one) for name, one in schema.items()}
    return {"additionalProperties": False, **found} if isinstance(schema.get("properties"), Mapping) else found


def operation(method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = describe()["paths"][path][method.lower()]
    return found


def problems(method: str, path: str, status: int, answer: Any) -> list[str]:
    """Return where an answer is not as it is described, a field that is not described among it."""
    response = operation(method, path)["responses"][str(status)]
    if "$ref" in response:
        response = describe()["components"]["responses"][response["$ref"].rpartition("/")[2]]
    schema = {**response["content"]["application/json"]["schema"], "components": describe()["components"]}
    validator = jsonschema_rs.Draft202012Validator(closed(schema))
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(answer)]


# ------------------------------------------------------------------------------------------ the routes


def test_every_route_but_the_pages_is_described_and_nothing_else(app: Flask) -> None:
    there = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static" and not rule.endpoint.startswith("page_")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(route.method, route.path) for route in ROUTES} == there
    assert len(ROUTES) == len(there)


def test_the_description_is_served_as_it_is_and_every_schema_is_one(app: Flask) -> None:
    answer = app.test_client().get("/openapi.json")
    assert answer.json == json.loads(json.dumps(describe()))
    assert answer.content_type == "application/json"
    for path, methods in describe()["paths"].items():
        for found in methods.values():
            schemas = [one["schema"] for one in found.get("parameters", ())]
            schemas += [one["schema"] for one in found.get("requestBody", {}).get("content", {}).values()]
            schemas += [one["schema"] for one in found["responses"]["200"]["content"].values()]
            for schema in schemas:
                jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
                text = json.dumps(schema)
                for name in re.findall(r'"#/components/schemas/(\w+)"', text):
                    assert name in describe()["components"]["schemas"], path


def test_a_token_is_asked_for_where_the_description_says_so(settings: Settings, queue: Queue) -> None:
    client = create_app(replace(settings, token="correct horse battery"), queue).test_client()
    for route in ROUTES:
        answer = client.open(route.path, method=route.method, **({"json": {}} if route.method == "POST" else {}))
        assert (answer.status_code == 401) == (not route.is_open), route.path
        if answer.status_code == 401:
            assert problems(route.method, route.path, 401, answer.json) == []
            said = operation(route.method, route.path).get("security", describe()["security"])
            offered = {value.partition(" ")[0].lower() for value in answer.headers.getlist("WWW-Authenticate")}
            assert offered == {name for one in said for name in one}, route.path


def test_the_description_says_for_which_roles_a_request_is() -> None:
    assert operation("POST", "/join")["description"] == "For everybody, without a token."
    assert operation("GET", "/jobs")["description"] == "For these roles: submit, admin."
    assert operation("POST", "/ack")["description"] == "For these roles: worker, admin."


def test_what_may_be_asked_next_is_there_and_takes_what_is_handed_on() -> None:
    routes = {route.path: route for route in ROUTES}
    for path, links in LINKS.items():
        assert operation(routes[path].method, path)["responses"]["200"]["links"].keys() == {
            operation(routes[link.path].method, link.path)["operationId"] for link in links
        }
        for link in links:
            target = routes[link.path]
            assert set(link.query) <= set(target.query), link
            assert set(link.body or {}) <= set((target.body or {}).get("properties", {})), link
            assert bool(link.body) == (target.method == "POST"), link


# ------------------------------------------------------------------------------------------ the answers


class Caller:
    """Asks the application, and compares each answer with the description."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client
        self.asked: set[str] = set()

    def get(self, path: str, status: int = 200, /, **query: Any) -> Any:
        return self._compared(path, status, self._client.get(path, query_string=query))

    def post(self, path: str, status: int = 200, /, **body: Any) -> Any:
        return self._compared(path, status, self._client.post(path, json=body))

    def _compared(self, path: str, status: int, answer: Any) -> Any:
        method = answer.request.method
        assert answer.status_code == status, answer.text
        if operation(method, path)["responses"]["200"]["content"].keys() == {"application/json"}:
            assert problems(method, path, status, answer.json) == [], (path, answer.json)
        self.asked.add(path)
        return answer.json


def of(lease: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"url": lease["url"], "token": lease["token"], **more}


SITE = {"wanted_per_second": 2, "allowed_per_second": 1, "requests_per_second": 0.5, "answers": 3}
BUSY = {
    "state": "running",
    "speed_bytes_per_second": 1000,
    "done": 1,
    "failed": 0,
    "working": {"stop": 1, "count": 4, "max_speed": None, "drain": 0},
    "disk_free_bytes": 10**9,
    "note": "all is well",
    "order_problem": "a sentence",
    "login": {"id": "5d2f", "state": "scan", "link": "https://example.org/", "note": ""},
}
STREAM = {"name": "v80-7", "done_bytes": 5, "total_bytes": 10, "mirror": "m", "speed_bytes_per_second": 1.5}
PROGRESS = {"title": "A title", "stage": "downloading", "chunks": True, "streams": [STREAM]}


def work(caller: Caller) -> None:
    """Let a page be finished, one fail, one be given back, and a source be read."""
    caller.post("/add_url", urls=[*BV[:4], "mid:137137", "rubbish"], category="music", wishes={"limit": 5})
    caller.post("/ui/add", urls=[BV[4], "rubbish"])
    first, second, third, fourth, source = caller.get("/get_url", worker="w1", count=5)
    pages = [{"number": 1, "cid": 11, "title": "A page", "duration_seconds": 1.5}]
    page = caller.post("/expand", **of(first, title="A title", pages=pages))["lease"]
    beat = {
        "jobs": [of(page, progress=PROGRESS)],
        "state": BUSY,
        "account": "ab",
        "finished": ["BV1xx411c7mD?p=1&cid=2"],
    }
    caller.post("/steer", working={"count": 2}, workers=["w1", "w9"])
    caller.post("/heartbeat", worker="w1", **beat, site=SITE)
    caller.post("/steer", working={"count": 2}, workers=["w1", "w9"])
    caller.post("/login", worker="w1")
    caller.post("/login", 404, worker="w9")
    risk = {"kind": "-412", "seconds": 30}
    told = {**SITE, "refused": risk}
    caller.post("/heartbeat", worker="w1", **beat, site=told, risk=risk)
    caller.post("/budget", worker="w2", site=SITE)
    file = {"path": "music/A title.mp4", "bytes": 123, "seconds": 4.5, "title": "A title", "streams": "1080P"}
    caller.post("/ack", **of(page, **file, stored="sftp://nas.example/A"))
    caller.post("/ack", 409, **of({**page, "token": "another"}, **file))
    caller.post("/replay", worker="w1", results=[{"url": "BV1xx411c7mD?p=1&cid=2", **file}])
    caller.post("/nack", **of(second, code=-404, reason="deleted", title="A title", **{"class": "permanent"}))
    caller.post("/nack", **of(third, code="-500", reason="stumbled", **{"class": "transient"}))
    caller.post("/release", **of(fourth))
    ledger = {"page": 1, "title": "An uploader", "announced": 2, "pages": 1, "unavailable": {"deleted": 1}}
    caller.post("/expand", **of(source, urls=[BV[5]], ledger={**ledger, "ended": "end", "cursor": "2"}))


def look(caller: Caller) -> None:
    """Ask for everything that can be looked at."""
    for path in ("/status", "/history", "/healthz", "/livez", "/metrics", "/failures", "/actions", "/openapi.json"):
        caller.get(path)
    for path in ("/jobs", "/success", "/failed", "/sources"):
        answer = caller.get(path, limit=1)
        assert answer["items"], path
        caller.get(path, after=answer["next"] or "")
    caller.get("/history", range="week")
    for url in (BV[0], BV[1], BV[2], f"{BV[0]}?p=1&cid=11"):
        caller.get("/job", url=url)
    caller.get("/job", 404, url=PAGE)


def change(caller: Caller) -> None:
    """Do what people do with jobs and sources."""
    caller.post("/watch", source="mid:137137", seconds=3600)
    caller.post("/first", urls=[BV[3]])
    caller.post("/cancel", urls=[BV[3]])
    caller.post("/redrive", urls=[BV[1]])
    caller.post("/redrive", 400)
    caller.post("/forget", urls=[BV[3]])
    made = caller.post("/ui/tokens", role="worker", name="w3")
    caller.post("/ui/revoke", id=made["id"])
    code = caller.post("/ui/join_code")["code"]
    caller.post("/join", code=code, worker="w3")
    caller.post("/join", 403, code=code, worker="w3")
    caller.post("/ui/sign-in", password="x")
    caller.post("/ui/sign-out")
    caller.get("/jobs", 400, limit="many")


def test_what_the_application_answers_is_as_it_is_described(app: Flask, queue: Queue) -> None:
    queue.sample()
    caller = Caller(app.test_client())
    work(caller)
    queue.sample()
    look(caller)
    change(caller)
    look(caller)
    assert caller.asked == {route.path for route in ROUTES}


def documented() -> Iterator[tuple[str, str, Any]]:
    """Yield the answers in docs/api.md with the request that each is of."""
    method = path = ""
    for match in BLOCK.finditer(API.read_text("utf-8")):
        if match[1]:
            method, path = match[1], match[2]
        elif match[3]:
            yield method, path, json.loads(match[3])


@pytest.mark.parametrize(("method", "path", "answer"), list(documented()))
def test_the_answers_in_the_documentation_are_as_they_are_described(method: str, path: str, answer: Any) -> None:
    assert problems(method, path, 200, answer) == []


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/status", {"jobs": {}}), ("/failures", {"items": [], "more": 1}), ("/history", {"step_seconds": 0})],
)
def test_an_answer_that_is_not_as_described_is_found(path: str, answer: Any) -> None:
    assert problems("GET", path, 200, answer)
