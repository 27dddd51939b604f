"""Orders to machines, from the page to working.json: the queue, the routes, the worker's side, and the record."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import redis
import segno
from flask.testing import FlaskClient

import account
from account import Login
from config import Settings
from errors import EngineError, NoWayOut
from model import Order
from queue_client import QueueClient
from redisConnect import Queue
from steering import SHOWN_SECONDS, QrLogin, Steering
from store import farm as farm_queue
from tests import structure, test_passport
from tests.test_passport import Made
from web import create_app
from web.qr_code import qr_svg
from working_file import WorkingFile

made = test_passport.made
"""The login host of the stand-in, as a fixture."""
LINK = "https://passport.bilibili.com/h5-app/passport/login/scan?navhide=1&qrcode_key=8587cf8106a0b863c46d&from="


@pytest.fixture
def client(queue: Queue, settings: Settings) -> FlaskClient:
    return create_app(settings, queue).test_client()


def post(client: FlaskClient, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json or {}


def beat(client: FlaskClient, worker: str = "w1", **state: Any) -> Any:
    return post(client, "/heartbeat", worker=worker, jobs=[], state=state)["order"]


def pending(client: FlaskClient) -> dict[str, Any]:
    """Return the orders that the page shows, by worker."""
    workers = (client.get("/status").json or {})["workers"]
    return {one["worker"]: one["order"] for one in workers if "order" in one}


def actions(client: FlaskClient, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (client.get("/actions", query_string=query).json or {})["items"]
    return found


# ------------------------------------------------------------------------------------------ up to the heartbeat


def test_an_order_comes_with_each_heartbeat_until_it_is_obeyed(client: FlaskClient, connection: redis.Redis) -> None:
    assert beat(client) is None
    assert post(client, "/steer", workers=["w1", "nobody", "w1"], working={"stop": 0, "max_speed": "2M"}) == {
        "steered": ["w1"],
        "unknown": ["nobody"],
        "undo": [],
    }
    order = beat(client, state="running")
    assert order == {"id": order["id"], "working": {"stop": 0, "max_speed": "2M"}}
    assert beat(client, order="another") == order
    shown = pending(client)["w1"]
    assert shown.items() >= {**order, "who": "127.0.0.1"}.items() and abs(shown["at"] - connection.time()[0]) < 60
    assert structure.problems(connection) == []
    assert beat(client, order=order["id"]) is None
    assert pending(client) == {} and not connection.exists("{bili:0}:orders")
    assert beat(client) is None


def test_a_second_order_is_merged_into_the_first_under_another_id(client: FlaskClient) -> None:
    beat(client)
    post(client, "/steer", workers=["w1"], working={"stop": 0, "count": 3, "max_speed": "2M"})
    first = beat(client)
    login = post(client, "/login", worker="w1")["id"]
    post(client, "/steer", workers=["w1"], working={"stop": 1, "max_speed": None})
    second = beat(client, order=first["id"])
    assert second == {"id": second["id"], "working": {"stop": 1, "count": 3, "max_speed": None}, "login": login}
    assert beat(client, order=second["id"]) is None


def test_an_answer_tells_how_to_bring_back_what_was_and_leaves_what_was_so_already(client: FlaskClient) -> None:
    running = {"stop": 1, "count": 2, "max_speed": 2 * 2**20, "drain": 0}
    for worker, working in {"w1": running, "w2": {**running, "stop": 0}, "w3": running, "w4": None}.items():
        beat(client, worker, working=working)
    answer = post(client, "/steer", all=True, working={"stop": 0, "max_speed": None})
    first, second = sorted(answer["undo"], key=lambda order: "stop" not in order["working"])
    assert (sorted(first["workers"]), first["working"]) == (["w1", "w3"], {"stop": 1, "max_speed": 2 * 2**20})
    assert second == {"workers": ["w2"], "working": {"max_speed": 2 * 2**20}}
    for order in answer["undo"]:
        post(client, "/steer", **order)
    assert [beat(client, worker)["working"] for worker in ("w1", "w2", "w4")] == [
        {"stop": 1, "max_speed": 2 * 2**20},
        {"stop": 0, "max_speed": 2 * 2**20},
        {"stop": 0, "max_speed": None},
    ]


def test_all_are_all_that_were_heard_of(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm_queue, "STEERED_AT_ONCE", 2)
    names = [f"w{number}" for number in range(5)]
    for name in names:
        beat(client, name)
    answer = post(client, "/steer", all=True, working={"drain": 1})
    assert (sorted(answer["steered"]), answer["unknown"]) == (names, [])
    assert [beat(client, name)["working"] for name in names] == [{"drain": 1}] * 5
    assert beat(client, "new") is None


def test_an_order_is_meant_for_a_day(client: FlaskClient, queue: Queue, connection: redis.Redis) -> None:
    beat(client)
    post(client, "/steer", workers=["w1"], working={"stop": 0})
    text = json.loads(connection.hget("{bili:0}:orders", "w1") or "")
    connection.hset("{bili:0}:orders", "w1", json.dumps({**text, "at": text["at"] - 86_400_000}))
    assert pending(client) == {}
    assert beat(client) is None
    assert not connection.exists("{bili:0}:orders")

    post(client, "/steer", workers=["w1"], working={"stop": 0})
    connection.zadd("{bili:0}:workers", {"w1": 1})
    queue.sweep()
    assert not connection.exists("{bili:0}:orders"), "a worker that is forgotten is steered no more"
    assert post(client, "/steer", workers=["w1"], working={"stop": 0})["unknown"] == ["w1"]


def test_a_login_is_meant_for_those_who_wait_for_it(client: FlaskClient, connection: redis.Redis) -> None:
    def let_minutes_pass() -> None:
        text = json.loads(connection.hget("{bili:0}:orders", "w1") or "")
        connection.hset("{bili:0}:orders", "w1", json.dumps({**text, "login_at": text["login_at"] - 601_000}))

    beat(client)
    post(client, "/login", worker="w1")
    assert set(pending(client)["w1"]) == {"id", "working", "login", "who", "at"}
    let_minutes_pass()
    assert pending(client) == {} and beat(client) is None
    assert not connection.exists("{bili:0}:orders")

    post(client, "/login", worker="w1")
    post(client, "/steer", workers=["w1"], working={"count": 2})
    let_minutes_pass()
    assert "login" not in pending(client)["w1"]
    order = beat(client)
    assert order == {"id": order["id"], "working": {"count": 2}}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"workers": ["w1"]}, "working is missing"),
        ({"workers": ["w1"], "working": {}}, "body.working: an object with some of stop, count, max_speed, drain"),
        ({"workers": ["w1"], "working": {"stop": 2}}, 'body.working: "stop" must be 1 (run) or 0 (stop)'),
        ({"workers": ["w1"], "working": {"count": 65}}, '"count" must be a whole number from 1 to 64'),
        ({"workers": ["w1"], "working": {"max_speed": "1K"}}, '"max_speed": it must be a speed from 16K to 1024G'),
        ({"workers": ["w1"], "working": {"drain": "1"}}, '"drain" must be'),
        ({"workers": ["w1"], "working": {"cuont": 4}}, "cuont is no key that can be ordered"),
        ({"workers": [""], "working": {"stop": 0}}, "body.workers[0]"),
        ({"working": {"stop": 0}}, "workers are expected"),
        ({"all": True, "workers": ["w1"], "working": {"stop": 0}}, "workers are expected"),
        ({"all": "yes", "working": {"stop": 0}}, "body.all"),
    ],
)
def test_a_wrong_order_is_refused_with_key_and_range(
    client: FlaskClient, connection: redis.Redis, body: dict[str, Any], problem: str
) -> None:
    beat(client)
    assert problem in post(client, "/steer", 400, **body)["error"]
    assert not connection.exists("{bili:0}:orders") and actions(client) == []


def test_a_login_is_ordered_of_a_worker_that_is_known(client: FlaskClient) -> None:
    assert "no worker w9 was heard of" in post(client, "/login", 404, worker="w9")["error"]
    assert "body.worker" in post(client, "/login", 400, worker="")["error"]
    beat(client, "w9")
    login = post(client, "/login", worker="w9")["id"]
    assert login and beat(client, "w9") == {"id": beat(client, "w9")["id"], "working": {}, "login": login}


def test_what_a_worker_tells_of_itself_is_shown_within_bounds(client: FlaskClient) -> None:
    working = {"stop": 1, "count": 2, "max_speed": None, "drain": 0}
    beat(client)
    login = {"id": post(client, "/login", worker="w1")["id"], "state": "scan", "link": LINK, "note": "n" * 500}
    login["cookie"] = "SESSDATA"
    beat(client, working=working, order="done", order_problem="p" * 500, login=login)
    (shown,) = (client.get("/status").json or {})["workers"]
    assert shown["working"] == working and shown["order_problem"] == "p" * 400
    assert shown["login"] == {"id": login["id"], "state": "scan", "link": LINK, "note": "n" * 400}
    beat(client, working={"max_speed": "x", "drain": 7}, login={"state": "owned", "link": "x" * 5000}, order=7)
    (shown,) = (client.get("/status").json or {})["workers"]
    assert shown["working"] == {} and "login" not in shown


def test_a_code_is_shown_of_a_login_that_was_ordered_and_of_no_other(client: FlaskClient) -> None:
    beat(client, "w1")
    beat(client, "w2")
    ordered = post(client, "/login", worker="w1")["id"]
    for worker, identity in (("w1", "l"), ("w2", "l"), ("w2", ordered), ("w2", "")):
        beat(client, worker, login={"id": identity, "state": "scan", "link": LINK})
        shown = {one["worker"]: one for one in (client.get("/status").json or {})["workers"]}
        assert "login" not in shown[worker]
        assert LINK not in client.get("/ui/machines").text
    beat(client, "w1", login={"id": ordered, "state": "scan", "link": LINK})
    assert LINK in client.get("/status").text


# ------------------------------------------------------------------------------------------ the record


def test_every_action_is_noted_with_its_time_and_address(client: FlaskClient, connection: redis.Redis) -> None:
    for number in range(7):
        beat(client, f"w{number}")
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    client.post("/add_url", json={"urls": ["BV1xx411c7mD", "rubbish"]}, headers=forwarded)
    client.post("/add_url", json={"urls": ["BV1xx411c7mD"]})
    post(client, "/watch", source="mid:137137", seconds=60)
    connection.zadd("{bili:0}:dead", {"BV1xx411c7mD": 1})
    post(client, "/redrive", urls=["BV1xx411c7mD"])
    post(client, "/redrive", all=True)
    post(client, "/steer", all=True, working={"stop": 0})
    post(client, "/steer", workers=["nobody"], working={"stop": 0})
    post(client, "/login", worker="w3")
    found = actions(client)
    assert [(one["what"], one["who"]) for one in found] == [
        *(("login", "127.0.0.1"), ("steer", "127.0.0.1"), ("redrive", "127.0.0.1"), ("watch", "127.0.0.1")),
        ("add", "203.0.113.7"),
    ]
    assert [one["about"] for one in found] == [
        *("w3", 'w0, w1, w2, w3, w4 +2: "stop": 0', "1: BV1xx411c7mD", "mid:137137: 60 s", "1: BV1xx411c7mD"),
    ]
    assert all(abs(one["time"] - connection.time()[0]) < 60 for one in found)
    assert actions(client, limit=2) == found[:2]
    assert client.get("/actions?limit=0").status_code == 400


def test_the_record_is_bounded(queue: Queue, connection: redis.Redis) -> None:
    for number in range(1400):
        queue.note_action("somebody" * 100, "steer", f"{number} " + "x" * 1000)
    assert 1000 <= connection.xlen("{bili:0}:actions") < 1200
    newest = queue.actions(1)[0]
    assert newest["about"].startswith("1399 ") and len(newest["about"]) == len(newest["who"]) == 300


def test_what_was_done_stays_done_where_it_cannot_be_noted(
    client: FlaskClient, queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_arguments: str) -> None:
        raise EngineError("away")

    monkeypatch.setattr(queue, "note_action", fails)
    beat(client)
    assert post(client, "/steer", workers=["w1"], working={"stop": 0})["steered"] == ["w1"]
    assert "not in the record of actions" in caplog.text


# ------------------------------------------------------------------------------------------ the picture


def test_the_picture_is_the_code_of_the_link_and_nothing_runs_in_it() -> None:
    picture = str(qr_svg(LINK))
    expected = segno.make(LINK, micro=False).svg_inline(
        scale=4, border=4, dark="#000", light="#fff", svgclass="qr", lineclass=None
    )
    assert (
        picture == expected and picture.startswith("<svg ") and "style" not in picture and "qrcode_key" not in picture
    )


@pytest.mark.parametrize(
    "link",
    [
        *("", "javascript:alert(1)", "http://passport.bilibili.com/x", "https://evil.example/bilibili.com"),
        *("https://bilibili.com.evil.example/", "https://evilbilibili.com/", "https://passport.bilibili.com:8443/"),
        *("https://user@passport.bilibili.com/", "https://[", "https://passport.bilibili.com/" + "x" * 1000),
        *("https://passport.bilibili.com/猫", "http://127.0.0.1:9/passport/scan"),
    ],
)
def test_there_is_no_picture_of_any_other_link(link: str) -> None:
    assert qr_svg(link, "http://127.0.0.1:8/passport") == ""


def test_a_stand_in_that_the_settings_name_may_log_in_too() -> None:
    link = "http://127.0.0.1:8/passport/h5-app/scan?qrcode_key=1"
    assert qr_svg(link, "http://127.0.0.1:8/passport").startswith("<svg ")
    assert qr_svg(link) == ""


# ------------------------------------------------------------------------------------------ the worker's side


async def test_the_workers_client_hears_orders_and_answers_them(queue: Queue, queue_server: str) -> None:
    async with aiohttp.ClientSession() as session:
        worker = QueueClient(Settings(server_urls=(queue_server,)), session, "w1", "i")
        assert (await worker.heartbeat([], {})).order is None
        queue.steer(["w1"], {"count": 3, "max_speed": None}, "somebody", "l")
        order = (await worker.heartbeat([], {})).order
        assert order == Order(order.id if order else "", {"count": 3, "max_speed": None}, "l")
        assert order is not None and (await worker.heartbeat([], {"order": order.id})).order is None


def test_an_order_is_obeyed_once_and_an_edit_by_hand_stays_after_it(tmp_path: Path) -> None:
    path = tmp_path / "working.json"
    working = WorkingFile(path)
    working.create_if_missing()
    steering = Steering(working, None)
    assert steering.state() == {}
    steering.obey(Order("a", {"stop": 0}))
    assert json.loads(path.read_text("utf-8")) == {"stop": 0, "count": 1}
    assert steering.state() == {"order": "a"}
    path.write_text('{"stop": 1}', "utf-8")
    steering.obey(Order("a", {"stop": 0}))  # it is told with each answer until ours was heard
    assert path.read_text("utf-8") == '{"stop": 1}'
    steering.obey(Order("b", problem="no sense"))
    assert steering.state() == {"order": "b", "order_problem": "no sense"} and path.read_text("utf-8") == '{"stop": 1}'
    steering.obey(Order("c", {"count": 2}))
    assert steering.state() == {"order": "c"}


def test_an_order_that_cannot_be_written_is_answered_with_the_reason(tmp_path: Path) -> None:
    steering = Steering(WorkingFile(tmp_path / "nowhere" / "working.json"), None)
    steering.obey(Order("a", {"stop": 0}))
    state = steering.state()
    assert state["order"] == "a"
    assert state["order_problem"] == (
        "working.json cannot be written (No such file or directory): make it writable, or edit it by hand"
    )
    steering.obey(Order("b", {}, "login"))
    assert steering.state() == {"order": "b", "order_problem": "this worker cannot log in"}


Begin = Callable[..., QrLogin]


@pytest_asyncio.fixture
async def begin(made: Made) -> AsyncIterator[Begin]:
    begun: list[QrLogin] = []

    def begin(identity: str = "l1", **more: Any) -> QrLogin:
        begun.append(QrLogin(made.settings, made.passport, made.login(), **more))
        begun[-1].begin(identity)
        return begun[-1]

    yield begin
    for one in begun:
        one.cancel()


async def until(login: QrLogin, **wanted: str) -> dict[str, str]:
    """Wait until a login shows some fields; return all of them."""
    async with asyncio.timeout(15):
        while not wanted.items() <= login.shown.items():
            await asyncio.sleep(0.01)
    return dict(login.shown)


async def has_code(login: QrLogin) -> str:
    async with asyncio.timeout(15):
        while not login.shown["link"]:
            await asyncio.sleep(0.01)
    return login.shown["link"]


async def test_a_login_shows_its_code_and_keeps_the_account_for_this_machine_alone(
    made: Made,
    begin: Begin,
) -> None:
    login = begin()
    assert login.shown == {"id": "l1", "state": "scan", "link": "", "note": ""}
    link = await has_code(login)
    made.stand_in.control({"scan": True})
    assert (await until(login, state="scanned"))["link"] == link
    made.stand_in.control({"confirm": True})
    assert await until(login, state="done") == {"id": "l1", "state": "done", "link": "", "note": ""}
    assert made.loaded().values == made.stand_in.sessions[0].values
    assert stat.S_IMODE(account.account_path(made.settings).stat().st_mode) == 0o600


async def test_the_account_is_used_at_once(made: Made) -> None:
    used = Login(made.settings)
    assert used.account() is None and used.digest == ""
    login = QrLogin(made.settings, made.passport, used)
    login.begin("l1")
    await has_code(login)
    made.stand_in.control({"confirm": True})
    await until(login, state="done")
    assert used.digest and used.account() == made.loaded()


async def test_a_new_login_replaces_the_one_that_runs_and_the_same_one_does_not(
    made: Made,
    begin: Begin,
) -> None:
    login = begin()
    first = await has_code(login)
    login.begin("l1")
    assert login.shown["link"] == first
    login.begin("l2")
    assert login.shown["id"] == "l2" and await has_code(login) != first
    assert len(made.stand_in.codes) == 2
    made.stand_in.control({"confirm": True})
    await until(login, id="l2", state="done")
    login.begin("l2")
    assert login.shown["state"] == "done" and len(made.stand_in.codes) == 2


async def test_a_code_expires_and_how_a_login_ended_is_told_for_some_minutes(
    made: Made,
    begin: Begin,
) -> None:
    now = 100.0
    login = begin(code_seconds=0.02, monotonic=lambda: now)
    assert await until(login, state="expired") == {"id": "l1", "state": "expired", "link": "", "note": ""}
    now += SHOWN_SECONDS - 1
    assert login.shown["state"] == "expired"
    now += 1
    assert login.shown == {}
    assert Steering(WorkingFile(Path("nowhere")), login).state() == {}
    assert account.load(made.settings) is None


async def test_a_login_that_fails_says_why(
    made: Made,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unreachable() -> None:
        raise NoWayOut("no network")

    with monkeypatch.context() as patched:
        patched.setattr(made.passport, "new_code", unreachable)
        assert (await until(begin(), state="failed"))["note"] == "no network"

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(account, "save", full)
    login = begin()
    await has_code(login)
    made.stand_in.control({"confirm": True})
    assert "account.json cannot be written: No space left" in (await until(login, state="failed"))["note"]


async def test_a_setting_that_comes_first_is_said(made: Made) -> None:
    settings = replace(made.settings, sessdata="x")
    login = QrLogin(settings, made.passport, Login(settings))
    login.begin("l1")
    await has_code(login)
    made.stand_in.control({"confirm": True})
    assert "BILI_SESSDATA and BILI_COOKIES come first" in (await until(login, state="done"))["note"]


async def test_a_worker_that_ends_ends_its_login(made: Made, begin: Begin, tmp_path: Path) -> None:
    login = begin()
    await has_code(login)
    Steering(WorkingFile(tmp_path / "working.json"), login).end()
    assert login._task is not None
    await asyncio.wait([login._task])
    assert login._task.cancelled()
