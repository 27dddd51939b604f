"""Roles, tokens that were made, and machines that join: who may do what, and what ends when a token is taken back."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import g
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import web.guard
import web.keyring
import web_server
from certificates import pin_of, self_made
from config import Settings
from errors import EngineError
from parse_ import aid_to_bvid
from redisConnect import Queue
from store import ROLES as ROLE_NAMES
from store import Tokens, owner_of
from store.data import key, shard_of_id
from store.engine import connect_url
from store.tokens import NAMES_AT_MOST, new_join_code, plain_join_code
from web import create_app, join_line
from web.access import PIN
from web.guard import ROLES
from web.keyring import KNOWN_SECONDS, Access, Keyring
from web.sight import seen_job

ROOT = Path(web_server.__file__).parent
TOKEN = "correct horse battery staple"
VIDEO = aid_to_bvid(1001)

Make = Callable[..., tuple[str, str]]


@pytest.fixture
def guarded(queue: Queue, settings: Settings) -> FlaskClient:
    return create_app(replace(settings, token=TOKEN), queue).test_client()


@pytest.fixture
def other_server(queue: Queue, settings: Settings) -> FlaskClient:
    return create_app(replace(settings, token=TOKEN), queue).test_client()


@pytest.fixture
def make(queue: Queue) -> Make:
    def made(role: str, name: str = "") -> tuple[str, str]:
        token, record = Tokens(queue).make(role, name, time.time())
        return token, record.id

    return made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def post(client: FlaskClient, path: str, body: object, token: str, expected: int = 200) -> Any:
    answer = client.post(path, json=body, headers=bearer(token))
    assert answer.status_code == expected, answer.text
    return answer.json


def lease(client: FlaskClient, token: str, worker: str, expected: int = 200, **query: Any) -> Any:
    answer = client.get("/get_url", query_string={"worker": worker, **query}, headers=bearer(token))
    assert answer.status_code == expected, answer.text
    return answer.json


def of(leased: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"url": leased["url"], "token": leased["token"], **more}


def page_of(client: FlaskClient, token: str, worker: str, video: str = VIDEO, cid: int = 11) -> dict[str, Any]:
    """Add a video, and return the lease of its page."""
    post(client, "/add_url", {"urls": [video]}, TOKEN)
    (container,) = lease(client, token, worker)
    pages = [{"number": 1, "cid": cid, "title": ""}]
    return dict(post(client, "/expand", of(container, title="", pages=pages), token)["lease"])


# ------------------------------------------------------------------------------------------ every route, every role


def open_as(client: FlaskClient, rule: str, method: str, token: str) -> TestResponse:
    address = rule.replace("<path:filename>", "dashboard.css")
    headers = bearer(token) if token else {}
    body = {"json": {}} if method == "POST" else {}
    return client.open(address, method=method, headers=headers, buffered=True, **body)


NAMED = ("/jobs", "submit")
"""All of them are not for who may see only those that he can name."""


@pytest.mark.parametrize("role", ["", *ROLE_NAMES, "BILI_TOKEN"])
def test_every_route_lets_in_whom_the_table_names_and_nobody_else(guarded: FlaskClient, make: Make, role: str) -> None:
    token = {"": "", "BILI_TOKEN": TOKEN}.get(role) if role in ("", "BILI_TOKEN") else make(role)[0]
    assert token is not None
    asking = "admin" if role == "BILI_TOKEN" else role
    for rule in guarded.application.url_map.iter_rules():
        for method in {"GET", "POST"} & (rule.methods or set()):
            answer = open_as(guarded, rule.rule, method, token)
            missing = (404,) if rule.rule in ("/job", "/ui/job") else (403,) if (rule.rule, role) == NAMED else ()
            if asking in ROLES[rule.rule]:  # what is wrong with the empty body is said behind the guard
                assert answer.status_code in (200, 400, *missing), (rule.rule, method, answer.text)
            elif not role:
                assert answer.status_code == 401, (rule.rule, method)
            elif (rule.rule, role) == ("/", "submit"):
                assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/add")
            else:
                assert answer.status_code == 403, (rule.rule, method)
                assert f"({role})" in answer.text
    assert guarded.get("/nothing", headers=bearer(token)).status_code == (404 if role else 401)


def test_the_table_of_roles_is_about_the_routes_that_there_are(guarded: FlaskClient) -> None:
    assert {rule.rule for rule in guarded.application.url_map.iter_rules()} == set(ROLES)
    everybody = {"/healthz", "/livez", "/join", "/ui/sign-in", "/static/<path:filename>"}
    of_all = {"/budget", "/status", "/openapi.json", "/ui/sign-out"}
    worker = {"/get_url", "/expand", "/heartbeat", "/ack", "/nack", "/release", "/replay", "/failed"}
    submit = {"/add_url", "/watch", "/jobs", "/job", "/ui/add", "/ui/jobs", "/ui/job"}
    for role, addresses in (
        ("", everybody),
        ("worker", everybody | of_all | worker),
        ("submit", everybody | of_all | submit),
        ("admin", set(ROLES)),
    ):
        assert {address for address, roles in ROLES.items() if role in roles} == addresses, role


def test_a_route_of_which_no_role_is_told_is_refused_at_the_start(
    queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {address: roles for address, roles in ROLES.items() if address != "/steer"}
    monkeypatch.setattr(web.guard, "ROLES", known)
    with pytest.raises(LookupError, match="/steer"):
        create_app(settings, queue)


# ------------------------------------------------------------------------------------------ tokens


def test_a_token_is_told_once_and_kept_as_a_digest(
    guarded: FlaskClient, connection: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    made = post(guarded, "/ui/tokens", {"role": "submit", "name": "cellar"}, TOKEN)
    assert re.fullmatch("bili_submit_[A-Za-z0-9_-]{43}", made["token"])
    assert post(guarded, "/add_url", {"urls": [VIDEO]}, made["token"])["added"] == 1
    kept = {name: connection.dump(name) for name in connection.keys("*")}
    assert connection.hgetall(key("tokens"))[made["id"]].startswith('{"role":"submit","name":"cellar","made_at":')
    secret = made["token"][-43:]  # which may have a _ of its own
    assert not [name for name, content in kept.items() if secret in str(content) or secret in name]
    page = guarded.get("/ui/access", headers=bearer(TOKEN)).text
    assert made["id"] in page and "cellar" in page and secret not in page and secret not in caplog.text
    shown = json.dumps(guarded.get("/actions", headers=bearer(TOKEN)).json)
    assert "cellar" in shown and secret not in shown
    assert post(guarded, "/ui/tokens", {"role": "root"}, TOKEN, 400)


def test_what_is_nearly_a_token_is_none(guarded: FlaskClient, make: Make) -> None:
    token, identity = make("admin")
    other = make("worker")[0]
    swapped = token.replace("admin", "worker")
    for wrong in (
        token[:-1],
        token + "A",
        swapped,
        other.replace("worker", "admin"),
        identity,
        f"bili_admin_{'A' * 43}",
    ):
        assert guarded.get("/status", headers=bearer(wrong)).status_code == 401, wrong
    assert guarded.get("/status", headers=bearer(token)).status_code == 200
    assert guarded.get("/status", auth=("any", token)).status_code == 200


def test_all_of_a_digest_is_compared(guarded: FlaskClient, connection: redis.Redis, make: Make) -> None:
    right = hashlib.sha256(TOKEN.encode()).digest()
    alike = next(guess for guess in map(str, range(10**6)) if hashlib.sha256(guess.encode()).digest()[:2] == right[:2])
    assert guarded.get("/status", headers=bearer(alike)).status_code == 401
    token, identity = make("admin")
    kept = connection.hget(key("tokens"), identity)
    digest = hashlib.sha256(token.encode()).hexdigest()
    assert digest in kept
    connection.hset(key("tokens"), identity, kept.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1")))
    assert guarded.get("/status", headers=bearer(token)).status_code == 401, "its id is no more than its beginning"


def test_a_token_is_looked_up_once_in_five_seconds_and_dies_within_them(queue: Queue, make: Make) -> None:
    now, looks = 0.0, 0
    tokens = Tokens(queue)
    find = tokens.find

    def counted(identity: str) -> Any:
        nonlocal looks
        looks += 1
        return find(identity)

    tokens.find = counted  # type: ignore[method-assign]
    keyring = Keyring(tokens, 60_000, lambda: now)
    token, identity = make("worker")
    for _unused in range(50):
        found = keyring.find(token.encode())
        assert found is not None and found.token_id == identity
        assert keyring.find(b"bili_worker_" + b"A" * 43) is None
        assert keyring.find(b"anything") is None
    assert looks == 2, "what there is not is known, too"
    Tokens(queue).revoke(identity)
    now = KNOWN_SECONDS - 0.01
    assert keyring.find(token.encode()) is not None
    now = KNOWN_SECONDS
    assert keyring.find(token.encode()) is None
    for number in range(3000):
        keyring.find_id(f"{number:016x}")
    assert len(keyring._known) == 1000


def test_a_lease_with_a_made_token_asks_redis_as_often_as_one_with_bili_token(
    guarded: FlaskClient, connection: redis.Redis, make: Make
) -> None:
    token = make("worker")[0]

    def commands(asking: str, worker: str) -> int:
        lease(guarded, asking, worker)  # what is looked up once is known from here on
        before = connection.info("stats")["total_commands_processed"]
        lease(guarded, asking, worker)
        return int(connection.info("stats")["total_commands_processed"]) - before

    assert commands(token, "w1") == commands(TOKEN, "w2")


def test_an_engine_that_is_away_makes_no_token_wrong(
    guarded: FlaskClient, queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make("admin")[0]

    def away(ask: object) -> Any:
        raise EngineError("away")

    monkeypatch.setattr(queue, "look", away)
    answer = guarded.get("/jobs", headers=bearer(token))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert guarded.get("/livez", headers=bearer(token)).status_code == 200


# ------------------------------------------------------------------------------------------ what belongs to whom


def test_a_name_belongs_to_the_token_that_used_it_first(guarded: FlaskClient, make: Make) -> None:
    (one, _id), (other, _other_id) = make("worker"), make("worker")
    lease(guarded, one, "w1")
    assert "another token" in lease(guarded, other, "w1", 403)["error"]
    for path, more in (("/heartbeat", {"jobs": []}), ("/replay", {"results": []}), ("/budget", {"site": {}})):
        post(guarded, path, {"worker": "w1", **more}, other, 403)
        post(guarded, path, {"worker": "w1", **more}, one)
        post(guarded, path, {"worker": "w1", **more}, TOKEN)
    lease(guarded, other, "w2")
    lease(guarded, TOKEN, "w1")


@pytest.mark.parametrize("shards", [1, 6])
def test_nobody_takes_the_name_of_a_worker_that_is_at_work(
    connection: redis.Redis, settings: Settings, engine_options: dict[str, Any], shards: int
) -> None:
    assert shard_of_id(VIDEO, 6) != 0  # while workers are known in shard 0
    settings = replace(settings, token=TOKEN, shards=shards)
    queue = Queue(connect_url(engine_options["url"])[0] if engine_options["url"] else connection, settings)
    guarded = create_app(settings, queue).test_client()
    token, _record = Tokens(queue).make("worker", "", time.time())
    post(guarded, "/add_url", {"urls": [VIDEO]}, TOKEN)
    (held,) = lease(guarded, TOKEN, "old", instance="1")
    assert "at work" in lease(guarded, token, "old", 403, instance="2", have=VIDEO)["error"]
    post(guarded, "/heartbeat", {"worker": "old", "jobs": [of(held)], "state": {"state": "ended"}}, TOKEN)
    lease(guarded, token, "old", 403)
    post(guarded, "/release", of(held), TOKEN)
    assert [one["url"] for one in lease(guarded, token, "old")] == [VIDEO], "its machine has a token of its own now"


def test_a_token_has_no_more_names_than_machines(queue: Queue, connection: redis.Redis, make: Make) -> None:
    tokens, identity = Tokens(queue), make("worker")[1]
    connection.hset(key("bound"), mapping={f"m{number}": identity for number in range(NAMES_AT_MOST - 1)})
    assert [tokens.bind(identity, name, 1000) for name in ("last", "more", "last")] == ["bound", "many", "bound"]
    assert tokens.bind("0" * 16, "new", 1000) == "gone"


def test_a_worker_can_end_no_lease_but_its_own(guarded: FlaskClient, make: Make) -> None:
    (one, identity), (thief, _id) = make("worker"), make("worker")
    page = page_of(guarded, one, "w1")
    assert owner_of(page["token"]) == identity
    lease(guarded, thief, "thief")
    before = guarded.get("/status", headers=bearer(TOKEN)).json
    result = {"path": "other/a.mp4", "bytes": 1, "seconds": 1}
    failure = {"class": "permanent", "code": "x", "reason": "x"}
    forged = page["token"].replace(identity, _id)
    for token in (page["token"], forged):
        stolen = {"url": page["url"], "token": token}
        post(guarded, "/ack", {**stolen, **result}, thief, 409)
        post(guarded, "/nack", {**stolen, **failure}, thief, 409)
        post(guarded, "/release", stolen, thief, 409)
        post(guarded, "/expand", {"url": VIDEO, "token": token, "pages": []}, thief, 409)
        beat = post(guarded, "/heartbeat", {"worker": "thief", "jobs": [{**stolen, "progress": {"title": "T"}}]}, thief)
        assert beat["lost"] == [page["url"]]
    after = guarded.get("/status", headers=bearer(TOKEN)).json
    assert (before or {})["jobs"] == (after or {})["jobs"]
    job = guarded.get("/job", query_string={"url": page["url"]}, headers=bearer(TOKEN)).json or {}
    assert (job["worker"], job["title"]) == ("w1", ""), "nor does it say what it is"
    told = {"worker": "thief", "results": [{"url": page["url"], **result}]}
    assert post(guarded, "/replay", told, thief) == {"recorded": 0, "known": 1}
    assert (guarded.get("/success", headers=bearer(TOKEN)).json or {})["items"] == []
    assert post(guarded, "/heartbeat", {"worker": "w1", "jobs": [of(page)]}, one)["lost"] == []
    assert post(guarded, "/ack", of(page, **result), one) == {"state": "done"}
    post(guarded, "/ack", of(page, **result), thief, 409)


def test_who_has_bili_token_may_speak_for_every_lease(guarded: FlaskClient, make: Make) -> None:
    page = page_of(guarded, make("worker")[0], "w1")
    assert post(guarded, "/release", of(page), TOKEN) == {"state": "ready"}
    (page,) = lease(guarded, TOKEN, "w2")
    assert owner_of(page["token"]) == ""
    post(guarded, "/release", of(page), make("worker")[0], 409)
    told = {"worker": "w3", "results": [{"url": page["url"], "path": "a/b.mp4", "bytes": 1, "seconds": 1}]}
    assert post(guarded, "/replay", told, make("worker")[0]) == {"recorded": 0, "known": 1}


def test_what_machines_tell_of_themselves_is_for_admins(guarded: FlaskClient, make: Make) -> None:
    post(guarded, "/heartbeat", {"worker": "w1", "jobs": []}, TOKEN)
    ordered = post(guarded, "/login", {"worker": "w1"}, TOKEN)["id"]
    login = {"id": ordered, "state": "scan", "link": "https://passport.bilibili.com/h5?key=1", "note": ""}
    beat = {"worker": "w1", "jobs": [], "state": {"state": "running", "login": login}, "site": {"wanted_per_second": 1}}
    post(guarded, "/heartbeat", beat, TOKEN)
    for role, shown in (("submit", []), ("worker", [{"worker", "state", "seen_seconds"}])):
        status = guarded.get("/status", headers=bearer(make(role)[0])).json or {}
        assert [set(worker) for worker in status["workers"]] == shown
        assert status["jobs"] and status["breakers"] == [] and status["role"] == role
    assert "passport" in guarded.get("/status", headers=bearer(make("admin")[0])).text


def seen_as(client: FlaskClient, token: str) -> str:
    """Return all that a token can be shown, where it names every job that there is."""
    told = []
    for rule in client.application.url_map.iter_rules():
        if "GET" not in (rule.methods or ()) or rule.rule in ("/get_url", "/static/<path:filename>"):
            continue
        for query in ({"url": FINISHED, "find": FINISHED}, {"url": FAILED, "find": "Told of"}):
            told.append(client.get(rule.rule, query_string=query, headers=bearer(token)).text)
    return "\n".join(told)


FINISHED, FAILED = f"{VIDEO}?p=1&cid=11", aid_to_bvid(1002)


def test_who_may_only_add_sees_the_jobs_that_he_can_name_and_nothing_of_the_farm(
    guarded: FlaskClient, queue: Queue, make: Make
) -> None:
    post(guarded, "/add_url", {"urls": ["mid:4711137"]}, TOKEN)
    (source,) = lease(guarded, TOKEN, "attic-worker")
    ledger = {"page": 1, "title": "A secret uploader", "ended": "end"}
    post(guarded, "/expand", of(source, urls=[VIDEO, FAILED], ledger=ledger), TOKEN)
    video, failing = lease(guarded, TOKEN, "attic-worker", count=2)
    pages = [{"number": 1, "cid": 11, "title": ""}]
    page = post(guarded, "/expand", of(video, title="", pages=pages), TOKEN)["lease"]
    stored = "sftp://nas.attic.example/a"
    file = {"path": "music/Told of.mp4", "bytes": 1, "seconds": 1, "title": "Told of", "stored": stored}
    post(guarded, "/ack", of(page, **file), TOKEN)
    why = {"class": "permanent", "code": "-404", "reason": "it is deleted", "title": "Told of, too"}
    post(guarded, "/nack", of(failing, **why), TOKEN)
    secrets = ("attic-worker", "nas.attic.example", "mid:4711137", "A secret uploader")
    submit = make("submit")[0]
    shown = seen_as(guarded, submit)
    assert [secret for secret in secrets if secret in shown] == []
    assert [secret for secret in secrets if secret not in seen_as(guarded, TOKEN)] == [], "or nothing was hidden"
    job = guarded.get("/job", query_string={"url": FAILED}, headers=bearer(submit)).json or {}
    assert (job["state"], job["reason"], job["worker"], job["errors"][0]["worker"]) == ("dead", "it is deleted", "", "")
    for find, found in ((FINISHED, [FINISHED]), ("11", 403), (FAILED, [FAILED]), ("told of", [FINISHED, FAILED])):
        answer = guarded.get("/jobs", query_string={"find": find}, headers=bearer(submit))
        assert found == (answer.status_code if found == 403 else [one["url"] for one in (answer.json or {})["items"]])
    for query in (
        {},
        {"find": "   "},
        {"state": "done"},
        {"category": "music"},
        {"source": "mid:4711137", "find": "Tol"},
    ):
        assert guarded.get("/jobs", query_string=query, headers=bearer(submit)).status_code == 403, query
    page_of_all = guarded.get("/ui/jobs", query_string={"state": "done"}, headers=bearer(submit))
    assert "Say which job you look for" in page_of_all.text and "Told of" not in page_of_all.text
    assert guarded.get("/ui/jobs", query_string={"find": "Tol"}, headers=bearer(submit)).status_code == 403
    failed = (guarded.get("/failed", headers=bearer(make("worker")[0])).json or {})["items"]
    assert [(one["url"], one["worker"]) for one in failed] == [(FAILED, "")]


def test_a_token_asks_no_end_of_questions_and_disturbs_nobody(guarded: FlaskClient, make: Make) -> None:
    submit, worker = make("submit")[0], make("worker")[0]
    statuses = [guarded.get("/jobs?find=none", headers=bearer(submit)).status_code for _turn in range(100)]
    assert statuses[:60] == [200] * 60 and statuses[-1] == 429
    refused = guarded.get("/jobs?find=none", headers=bearer(submit))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert post(guarded, "/add_url", {"urls": [VIDEO]}, submit)["added"] == 1
    assert guarded.get("/jobs?find=none", headers=bearer(TOKEN)).status_code == 200
    for address in ("/get_url?worker=w1", "/status"):
        statuses = [guarded.get(address, headers=bearer(worker)).status_code for _turn in range(100)]
        assert statuses == [200] * 100


def test_questions_come_back_with_time() -> None:
    now = [0.0]
    questions = web.guard.Questions(lambda: now[0])
    assert [questions.wait_seconds("a") for _turn in range(61)] == [0] * 60 + [1]
    assert questions.wait_seconds("b") == 0
    now[0] += 0.2
    assert [questions.wait_seconds("a") for _turn in range(3)] == [0, 0, 1]
    now[0] += 3600
    assert [questions.wait_seconds("a") for _turn in range(61)] == [0] * 60 + [1]


# ------------------------------------------------------------------------------------------ taking back


@pytest.mark.parametrize("shards", [1, 3])
def test_what_a_revoked_token_has_in_work_comes_back_at_once(
    connection: redis.Redis, settings: Settings, engine_options: dict[str, Any], shards: int
) -> None:
    settings = replace(settings, token=TOKEN, shards=shards)
    queue = Queue(connect_url(engine_options["url"])[0] if engine_options["url"] else connection, settings)
    client = create_app(settings, queue).test_client()
    tokens = Tokens(queue)
    (token, mine), (kept, _theirs) = (tokens.make("worker", "", 1.0) for _unused in range(2))
    videos = [aid_to_bvid(number) for number in range(2001, 2021)]
    post(client, "/add_url", {"urls": videos}, TOKEN)
    held = lease(client, token, "w1", count=12)
    others = lease(client, kept, "w2", count=4)
    assert (len(held), len(others)) == (12, 4)
    assert post(client, "/ui/revoke", {"id": mine.id}, TOKEN) == {"revoked": 1, "returned": 12}
    jobs = (client.get("/status", headers=bearer(TOKEN)).json or {})["jobs"]
    assert (jobs["ready"], jobs["leased"]) == (16, 4)
    assert client.get("/get_url?worker=w1", headers=bearer(token)).status_code == 401
    again = lease(client, kept, "w2", count=16)
    assert {one["url"] for one in held} <= {one["url"] for one in again}
    assert all(one["attempt"] == 1 for one in again), "nobody has failed"
    assert post(client, "/ui/revoke", {"id": mine.id}, TOKEN) == {"revoked": 0, "returned": 0}
    lease(client, kept, "w1")


def test_what_another_server_gives_to_a_revoked_token_comes_back_too(
    guarded: FlaskClient, other_server: FlaskClient, queue: Queue, connection: redis.Redis, make: Make
) -> None:
    token, identity = make("worker")
    lease(other_server, token, "w1")
    post(guarded, "/add_url", {"urls": [VIDEO]}, TOKEN)
    post(guarded, "/ui/revoke", {"id": identity}, TOKEN)
    assert len(lease(other_server, token, "w1")) == 1, "it has not heard of it yet"
    assert queue.finish_revoked() == 1
    assert queue.counts().ready == 1 and queue.finish_revoked() == 0
    connection.zadd(key("revoked"), {identity: 1.0})
    queue.finish_revoked()
    assert connection.zcard(key("revoked")) == 0, "by now all servers have heard of it"


def test_a_session_ends_with_its_token(guarded: FlaskClient, make: Make) -> None:
    token, identity = make("admin", "me")
    answer = guarded.post("/ui/sign-in", json={"password": token})
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and token not in cookie
    assert guarded.get("/ui/machines").status_code == 200
    assert guarded.get("/get_url").status_code == 401
    assert guarded.post("/ui/revoke", json={"id": identity}).json == {"revoked": 1, "returned": 0}
    for path in ("/", "/ui/machines", "/status"):
        assert guarded.get(path).status_code == 401
    assert guarded.post("/ui/sign-in", json={"password": token}).status_code == 401


def test_a_session_has_the_role_of_its_token(guarded: FlaskClient, make: Make) -> None:
    assert guarded.post("/ui/sign-in", json={"password": make("worker")[0]}).status_code == 403
    assert guarded.get("/ui/add").status_code == 401
    guarded.post("/ui/sign-in", json={"password": make("submit")[0]})
    assert guarded.get("/").headers["Location"] == "/ui/add"
    guarded.post("/add_url", json={"urls": [VIDEO]})
    page = f"/ui/jobs?find={VIDEO}"
    html = guarded.get(page).text
    assert "/ui/add" in html and not [name for name in ("sources", "machines", "access") if f"/ui/{name}" in html]
    assert VIDEO in html and 'data-post="/cancel"' not in html
    assert 'data-post="/cancel"' in guarded.get(page, headers=bearer(TOKEN)).text, "what is kept is kept by role"
    answer = guarded.get("/ui/machines")
    assert answer.status_code == 403 and answer.content_type.startswith("text/html")
    assert guarded.post("/cancel", json={"urls": [VIDEO]}).status_code == 403


def test_a_damaged_record_opens_nothing_and_can_be_taken_back(
    guarded: FlaskClient, connection: redis.Redis, make: Make
) -> None:
    (token, identity), (good, _id) = make("admin", "me"), make("submit", "Ann")
    guarded.post("/ui/sign-in", json={"password": token})
    whole = json.loads(connection.hget(key("tokens"), identity) or "")
    damaged: tuple[Any, ...] = ("{", "[" * 5000, [], {}, {**whole, "role": "root"}, {**whole, "digest": 5})
    for record in damaged:
        connection.hset(key("tokens"), identity, record if isinstance(record, str) else json.dumps(record))
        server = create_app(replace(Settings(), token=TOKEN), Queue(connection, Settings())).test_client()
        assert server.get("/status", headers=bearer(token)).status_code in (401, 429), record
        assert server.get("/status", headers=bearer(good)).status_code == 200, record
        html = server.get("/ui/access", headers=bearer(TOKEN)).text
        assert identity in html and "Ann" in html, record
    assert post(guarded, "/ui/revoke", {"id": identity}, TOKEN)["revoked"] == 1


def test_who_only_adds_parks_no_workers(guarded: FlaskClient, make: Make) -> None:
    def beat(peer: str) -> float:
        body = {"worker": "w1", "jobs": [], "egress": "home", "account": "a1", "site": {"wanted_per_second": 1}}
        answer = guarded.post("/heartbeat", json=body, headers=bearer(TOKEN), environ_base={"REMOTE_ADDR": peer})
        return float((answer.json or {})["budget"]["parked_seconds"])

    def refuse(kind: str, **named: str) -> Any:
        body = {"worker": "s", "site": {"refused": {"kind": kind, "seconds": 21600}}, **named}
        peer = {"REMOTE_ADDR": "203.0.113.9"}
        return guarded.post("/budget", json=body, headers=bearer(make("submit")[0]), environ_base=peer).json

    for kind in ("-412", "-352"):
        assert refuse(kind, egress="home", account="a1")["parked_seconds"] == 0
        assert beat("192.0.2.1") == 0, "of a line or an account there is but a word"
    assert refuse("-352")["parked_seconds"] > 0
    assert refuse("-412", account="a1")["parked_seconds"] > 0, "at its own address it is true"
    assert beat("192.0.2.1") == 0


@pytest.mark.parametrize("role", ["submit", "worker"])
def test_a_token_names_no_end_of_lines_and_accounts(
    guarded: FlaskClient, connection: redis.Redis, make: Make, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr(web.keyring, "MOST_WAYS", 6)
    token, other = make(role)[0], make(role)[0]
    path, more = ("/heartbeat", {"jobs": []}) if role == "worker" else ("/budget", {})

    def name(number: int, given: str, worker: str = "w1") -> int:
        told = {"egress": f"e{number}", "account": f"a{number}", "site": {"refused": {"kind": "-352", "seconds": 9}}}
        body = {"worker": worker, "risk": {"kind": "-352", "seconds": 9}, **told, **more}
        return guarded.post(path, json=body, headers=bearer(given)).status_code

    assert [name(number, token) for number in range(6)] == [200] * 3 + [403] * 3
    assert [name(number, token) for number in range(3)] == [200] * 3, "those it named it may name again"
    assert name(9, other, "w2") == 200
    groups = {
        kept.rpartition(":")[2] for kind in ("risk", "breaker", "budget") for kept in connection.keys(key(f"{kind}:*"))
    }
    assert groups <= {f"{letter}{number}" for letter in "ea" for number in (0, 1, 2, 9)}
    assert name(9, TOKEN) == 200, "whoever has BILI_TOKEN may"


# ------------------------------------------------------------------------------------------ guessing


def test_servers_count_wrong_tokens_together(guarded: FlaskClient, other_server: FlaskClient) -> None:
    def ask(client: FlaskClient, token: str, address: str = "192.0.2.1") -> int:
        return client.get("/status", headers=bearer(token), environ_base={"REMOTE_ADDR": address}).status_code

    servers = (guarded, other_server)
    assert [ask(servers[number % 2], f"guess {number}") for number in range(10)] == [401] * 10
    assert [ask(server, "another") for server in servers] == [429] * 2
    assert [ask(server, TOKEN) for server in servers] == [200] * 2
    assert ask(guarded, "another", "192.0.2.2") == 401
    repeated = [ask(servers[number % 2], "an old setting", "192.0.2.3") for number in range(12)]
    assert repeated == [401] * 10 + [429] * 2 and ask(guarded, "a new one", "192.0.2.3") == 401


def test_fifty_bad_sign_ins_are_answered_with_429(guarded: FlaskClient) -> None:
    statuses = [guarded.post("/ui/sign-in", json={"password": f"p{n}"}).status_code for n in range(50)]
    assert statuses == [401] * 10 + [429] * 40


def test_addresses_of_one_customer_count_as_one(guarded: FlaskClient) -> None:
    def ask(number: int, address: str) -> int:
        peer = {"REMOTE_ADDR": address}
        return guarded.get("/status", headers=bearer(f"guess {number}"), environ_base=peer).status_code

    assert [ask(number, f"2001:db8:1:1::{number:x}") for number in range(1, 13)] == [401] * 10 + [429] * 2
    assert ask(1, "2001:db8:1:2::1") == 401
    assert [ask(number, "::ffff:192.0.2.5") for number in range(11)] == [401] * 10 + [429]
    assert ask(99, "192.0.2.5") == 429 and ask(1, "::ffff:192.0.2.6") == 401, "these are addresses of IPv4"


def test_without_redis_each_server_counts_alone(
    guarded: FlaskClient, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_arguments: object) -> Any:
        raise EngineError("away")

    monkeypatch.setattr(queue, "run", away)
    statuses = [guarded.get("/livez?x", headers=bearer(f"p{n}")).status_code for n in range(2)]
    assert statuses == [200, 200]
    statuses = [guarded.get("/status", headers=bearer(f"p{n}")).status_code for n in range(12)]
    assert statuses == [401] * 10 + [429] * 2


# ------------------------------------------------------------------------------------------ joining


def join(client: FlaskClient, code: str, worker: str = "w1", address: str = "192.0.2.1") -> TestResponse:
    return client.post("/join", json={"code": code, "worker": worker}, environ_base={"REMOTE_ADDR": address})


def test_a_machine_joins_once_with_a_code(guarded: FlaskClient, connection: redis.Redis) -> None:
    offered = post(guarded, "/ui/join_code", {}, TOKEN)
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}", offered["code"])
    assert (offered["line"], offered["seconds"]) == (f"{offered['code']}@http://localhost", 600)
    (kept,) = connection.keys(key("join:*"))
    assert 590 < connection.ttl(kept) <= 600
    assert offered["code"] not in kept and offered["code"].replace("-", "") not in kept
    joined = join(guarded, offered["code"].lower().replace("-", " "))
    assert joined.status_code == 200, joined.text
    told = joined.json or {}
    assert (told["role"], set(told)) == ("worker", {"token", "role", "id"})
    lease(guarded, told["token"], "w1")
    assert guarded.get("/jobs", headers=bearer(told["token"])).status_code == 403
    assert join(guarded, offered["code"], "w2").status_code == 403
    assert connection.keys(key("join:*")) == []
    assert [names for _token, names in Tokens(Queue(connection, Settings())).all()] == [["w1"]]


def test_a_name_that_has_a_token_is_not_taken_by_who_joins(guarded: FlaskClient, make: Make) -> None:
    lease(guarded, make("worker")[0], "w1")
    code = post(guarded, "/ui/join_code", {}, TOKEN)["code"]
    assert "another token" in (join(guarded, code, "w1").json or {})["error"]
    assert join(guarded, code, "w2").status_code == 200, "the code is good for another name"


def test_guessing_codes_is_slow_and_the_right_one_waits_too(guarded: FlaskClient, other_server: FlaskClient) -> None:
    code = post(guarded, "/ui/join_code", {}, TOKEN)["code"]
    servers = (guarded, other_server)
    assert [join(servers[n % 2], new_join_code()).status_code for n in range(10)] == [403] * 10
    for server in servers:
        answer = join(server, code)
        assert answer.status_code == 429 and 0 < int(answer.headers["Retry-After"]) <= 60
    assert join(guarded, code, address="192.0.2.2").status_code == 200


def test_a_code_is_read_as_people_write_it() -> None:
    assert plain_join_code("oil0-abcd") == plain_join_code("0110 ABCD") == "0110ABCD"
    assert len({new_join_code() for _unused in range(200)}) == 200


def test_the_line_says_where_and_which_certificate(guarded: FlaskClient) -> None:
    assert join_line("C", "http", "192.0.2.1:8080") == "C@192.0.2.1:8080"
    assert join_line("C", "http", "[2001:db8::1]:8080") == "C@[2001:db8::1]:8080"
    assert join_line("C", "http", "farm.example") == "C@http://farm.example"
    assert join_line("C", "https", "farm.example") == "C@https://farm.example"
    guarded.application.config[PIN] = "ab" * 32
    headers = {**bearer(TOKEN), "X-Forwarded-Proto": "https"}
    answer = guarded.post("/ui/join_code", json={}, headers=headers)
    assert (answer.json or {})["line"].endswith(f"@https://localhost#{'ab' * 32}")


# ------------------------------------------------------------------------------------------ without BILI_TOKEN


def test_a_token_keeps_its_role_where_none_is_demanded(queue: Queue, settings: Settings, make: Make) -> None:
    client = create_app(settings, queue).test_client()
    token, identity = make("worker")
    assert client.get("/jobs", headers=bearer(token)).status_code == 403
    assert client.get("/jobs", headers=bearer("anything")).status_code == 200
    assert "No token is demanded" in client.get("/ui/access").text
    assert client.post("/ui/revoke", json={"id": identity}).status_code == 200
    assert client.get("/get_url?worker=w1", headers=bearer(token)).status_code == 401


# ------------------------------------------------------------------------------------------ the command line


def test_tokens_are_made_listed_and_taken_back_on_the_command_line(
    queue: Queue,
    settings: Settings,
    engine_options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", engine_options["url"] or f"unix://{engine_options['unix_socket_path']}")
    monkeypatch.setenv("BILI_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("BILI_SERVER_URL", "http://192.0.2.1:8080")

    def run(*arguments: str, status: int = 0) -> str:
        assert web_server.main(arguments) == status
        return capsys.readouterr().out.strip()

    token = run("--new-token", "worker", "--token-name", "cellar")
    client = create_app(replace(settings, token=TOKEN), queue).test_client()
    lease(client, token, "w1")
    identity, role, day, name, workers = run("--tokens").split("\t")
    assert (role, name, workers) == ("worker", "cellar", "w1") and re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert re.fullmatch(r"\S{9}@192\.0\.2\.1:8080", line := run("--join-code"))
    assert join(client, line.partition("@")[0], "\u202ew2").status_code == 200
    assert "\tw2" in run("--tokens"), "what turns a line round is not shown"
    pin = pin_of(self_made(settings.data_dir, "0.0.0.0"))
    monkeypatch.delenv("BILI_SERVER_URL")  # a server that speaks TLS by itself, and at an address that nobody has set
    assert run("--join-code").endswith(f"@https://127.0.0.1:8080#{pin}")
    page_of(client, token, "w1")
    assert run("--revoke", identity).endswith("1")
    assert queue.counts().leased == 0
    assert run("--revoke", identity, status=1) == ""
    done = [one["what"] for one in queue.actions(9) if one["who"] == "web_server.py"]
    assert done == ["revoke", "code", "code", "token"]
    with pytest.raises(SystemExit):
        web_server.main(["--token-name", "x"])


# ------------------------------------------------------------------------------------------ how secrets are compared

SECRET = re.compile(
    r"(^|_)(token|digest|hexdigest|password|secret|signature|given|said|nonce|code|cookie|digest_of)s?$"
)


def name_of(node: ast.AST) -> str:
    """Return what a compared value is called by itself."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return node.id if isinstance(node, ast.Name) else ""


def compares_secrets(tree: ast.AST) -> list[str]:
    """Return what is named like a secret and compared in a time that tells how much of it is right."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(one, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)) for one in node.ops)
        and any(SECRET.search(name_of(side)) for side in (node.left, *node.comparators))
    ]


SERVER_SIDE = ["store/tokens.py", "web_server.py", *sorted(f"web/{path.name}" for path in (ROOT / "web").glob("*.py"))]


@pytest.mark.parametrize("name", SERVER_SIDE)
def test_no_secret_is_compared_by_its_text(name: str) -> None:
    found = compares_secrets(ast.parse((ROOT / name).read_text("utf-8")))
    assert set(found) <= {"seen == digest"}, "that is what somebody said wrongly, under a key that nobody has"


@pytest.mark.parametrize(
    "text", ["given == self._token", "digest != x", "password in known", "hash.hexdigest() == b", "b == digest_of(x)"]
)
def test_a_careless_comparison_is_found(text: str) -> None:
    assert compares_secrets(ast.parse(text))


@pytest.mark.parametrize("role", ["admin", "worker", "submit"])
def test_what_a_job_tells_of_the_farm_is_for_admins(guarded: FlaskClient, role: str) -> None:
    job = {
        "url": VIDEO,
        "title": "a title",
        "worker": "machine-1",
        "source": "fav:7",
        "stored": "sftp://nas/videos",
        "archived": ["success-0001.jsonl"],
        "errors": [{"worker": "machine-2", "code": "http-404"}],
    }
    with guarded.application.test_request_context():
        g.access = Access(role)
        shown = seen_job(job)
    if role == "admin":
        assert shown == job
    else:
        hidden = {"worker": "", "source": "", "stored": "", "errors": [{"worker": "", "code": "http-404"}]}
        assert shown == {"url": VIDEO, "title": "a title", **hidden}
