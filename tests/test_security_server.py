"""Attacks on the queue server: hostile texts through everything that it shows, bombs, poisoned data, faults.

docs/security.md says what each test is for. Who may call at all is tested in test_web_server.py.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import logging
import pickle
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import redis
from flask.testing import FlaskClient

import web.kept
import web_server
from config import Settings
from log_setup import LineFormatter, SayHandler
from model import MIB
from parse_ import aid_to_bvid
from redisConnect import Queue
from status_table import show_status
from store.data import key as key_of
from tests.test_pages import Tags
from tests.test_web_server import serving, wait_until
from web import create_app

VIDEO, OTHER, THIRD = (aid_to_bvid(number) for number in (1001, 1002, 1003))
HOSTILE = (
    "<img src=x onerror=alert(1)>\"'><svg/onload=alert(2)>{{7717*9973}}${7717*9973}",
    "</script><script>alert(1)</script><!--",
    "javascript:alert(1)//\"'`",
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b2J\x9d8;;http://evil.test\x9c\x90q\x9c\x08\x7f\r\nWARNING forged",
    "\u202egpj.exe\u2066\u2028\u2029\u200b\ufeff\ud800",
    "x}{y:{bili:0}:ready\n*1\r\n$8\r\nFLUSHALL\r\n",
    "]] return redis.call('FLUSHALL') --[[ \"'\\\0",
    "../../../../etc/passwd",
)
PAGES = ("/", "/ui/machines", "/ui/jobs", "/ui/failures", "/ui/sources", "/ui/add", "/ui/actions", "/ui/access")
TEXTS = (
    "/status",
    "/success",
    "/failed",
    "/sources",
    "/jobs",
    "/failures",
    "/actions",
    "/metrics",
    "/history",
)


def some_quickly(texts: tuple[str, ...], *quick: int) -> list[Any]:
    """Return the texts as parameters, all but some of them for the slow tests."""
    return [
        pytest.param(text, id=str(number), marks=() if number in quick else pytest.mark.slow)
        for number, text in enumerate(texts)
    ]


@pytest.fixture
def client(queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """For who looks again only after a while."""
    monkeypatch.setattr(web.kept, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(web.kept, "SHARE", 0)
    return create_app(settings, queue).test_client()


def bring_in(client: FlaskClient, hostile: str) -> list[str]:
    """Say a hostile text in every field of every verb, as a worker or a submitter can; return the job ids."""

    def post(path: str, /, **body: Any) -> Any:
        answer = client.post(path, json=body)
        assert answer.status_code in (200, 400, 409), (path, answer.text)
        return answer.json if answer.status_code == 200 else {}

    short, line = hostile[:64], hostile[:100]
    post("/add_url", urls=[VIDEO, OTHER, THIRD, hostile], category=hostile, source=hostile[:200], request=short)
    post("/add_url", urls=[VIDEO, OTHER, THIRD, hostile], source=hostile[:200], request=short)
    post("/watch", source=hostile, seconds=3600)
    post("/add_url", urls=["mid:137137"], wishes={"match": line}, watch=3600)
    address = f"/get_url?worker={quote(short, errors='replace')}&instance={quote(short, errors='replace')}&count=4"
    leases = client.get(address).json or []
    assert client.get(f"{address}&request={quote(short, errors='replace')}&have={quote(short, errors='replace')}")
    pages = []
    for number, lease in enumerate(leases, 1):
        page = [{"number": 1, "cid": number, "title": hostile}]
        ledger = {"page": 1, "title": hostile, "unavailable": {line: 1}, "cursor": line, "ended": "end"}
        post("/expand", url=lease["url"], token=hostile, pages=page)
        if lease.get("walk"):
            post("/expand", url=lease["url"], token=lease["token"], urls=[], ledger=ledger)
        else:
            pages.append(post("/expand", url=lease["url"], token=lease["token"], title=hostile, pages=page)["lease"])
    done, dead, held = ({"url": page["url"], "token": page["token"]} for page in pages)
    result = {"path": f"a/{hostile}", "bytes": 1, "seconds": 1, "title": hostile, "streams": line, "stored": hostile}
    post("/ack", **done, **result)
    post("/nack", **dead, **{"class": "permanent", "code": line, "reason": hostile, "title": hostile})
    post("/replay", worker=short, results=[{"url": f"{VIDEO}?p=2&cid=99", **result}])
    stream = {"name": hostile, "mirror": hostile, "done_bytes": 1, "total_bytes": 2}
    progress = {"title": hostile, "stage": hostile, "streams": [stream]}
    post("/heartbeat", worker=short, jobs=[])
    login = {"id": post("/login", worker=short).get("id", short), "state": "scan", "link": hostile, "note": hostile}
    state = {"state": hostile, "note": hostile, "order_problem": hostile, "order": short, "login": login}
    site = {"requests_per_second": 1, "refused": {"kind": hostile[:40], "seconds": 60}}
    beat = {"worker": short, "jobs": [{**held, "progress": progress}], "state": state}
    post("/heartbeat", **beat)
    for account in (short, "a"):
        post(
            "/heartbeat", **beat, account=account, egress=account, site=site, risk={"kind": hostile[:40], "seconds": 9}
        )
    post("/steer", workers=[short], working={"stop": 0, "max_speed": hostile[:32]})
    post("/steer", workers=[short], working={"stop": 0})
    post("/login", worker=short)
    for path, body in (
        ("/redrive", {"code": line}),
        ("/cancel", {"urls": [hostile]}),
        ("/forget", {"urls": [hostile]}),
    ):
        post(path, **body)
    return [done["url"], dead["url"], held["url"]]


def assert_harmless(html: str, where: str) -> None:
    found = Tags(html).found
    for tag, attributes in found:
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")}, where
        for name in ("href", "src", "action", "formaction"):
            leads = (attributes.get(name) or "").lower()
            assert re.match(r"(/(?!/)|#|\?|https://[a-z]+\.bilibili\.com/|$)", leads), (where, leads)
        assert tag != "script" or (attributes.get("src") or "").startswith("/static/"), where
        assert tag != "img" or attributes.get("src") == "/static/icon.svg", where
    assert "76961641" not in html, f"{where}: a template was made of a text"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", html), where


@pytest.mark.parametrize("hostile", some_quickly(HOSTILE, 0, 3, 5))
def test_no_text_does_anything_on_any_page_in_any_answer_or_in_the_log(
    client: FlaskClient, hostile: str, connection: redis.Redis
) -> None:
    logged = io.StringIO()
    handler = SayHandler(lambda line: print(line, file=logged))
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)  # which makes loggers forget what they may
    try:
        urls = bring_in(client, hostile)
        as_query = quote(hostile, errors="replace")
        pages = [*PAGES, *(f"/ui/job?url={quote(url)}" for url in urls), f"/ui/job?url={as_query}"]
        pages += [f"/ui/machines?find={as_query}", f"/ui/jobs?match={as_query}", f"/ui/jobs?source={as_query}"]
        pages += [
            f"/ui/failures?code={as_query[:90]}",
            "/ui/jobs?state=done",
            f"/ui/{as_query}",
            "/ui/machines?fragment",
        ]
        for page in pages:
            answer = client.get(page)
            assert answer.status_code in (200, 400, 404), (page, answer.text)
            assert_harmless(answer.text, page)
            assert "unsafe" not in answer.headers["Content-Security-Policy"]
        for path in (*TEXTS, f"/nothing/{as_query}"):
            answer = client.get(path)
            assert answer.status_code in (200, 404) and answer.content_type.split(";")[0] != "text/html", path
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", answer.text), path
        metrics = client.get("/metrics").text.splitlines()
        assert all(re.fullmatch(r"#.*|bili_[a-z_]+(\{[a-z_/<>:=\",A-Z0-9.+-]*\})? [-0-9.e+]+", one) for one in metrics)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    lines = logged.getvalue().splitlines()
    assert len(lines) > 10
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT[0-9:.+-]+ (DEBUG|INFO|WARNING) ", one) and one.isprintable() for one in lines
    )
    assert [key for key in connection.scan_iter() if not key.startswith("{bili:0}:")] == []


@pytest.mark.parametrize("hostile", some_quickly(HOSTILE, 0, 3, 5))
def test_no_text_commands_a_terminal_that_shows_the_farm(
    client: FlaskClient, hostile: str, queue_server: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    bring_in(client, hostile)
    for as_json in (False, True):
        show_status(replace(settings, server_urls=(queue_server,)), as_json=as_json)
        shown = capsys.readouterr().out
        assert "running" in shown or len(shown) > 100
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


def test_no_text_becomes_a_script_or_a_key(client: FlaskClient, connection: redis.Redis) -> None:
    """Scripts are loaded once, whatever they are called with; data are arguments."""
    for text in HOSTILE:
        bring_in(client, text)
        connection.flushdb()
    before = connection.info("memory")["number_of_cached_scripts"]
    for number in range(16):
        bring_in(client, f"{number}{HOSTILE[number % len(HOSTILE)]}")
        connection.flushdb()
    assert connection.info("memory")["number_of_cached_scripts"] == before


# ------------------------------------------------------------------------------------------ what was submitted


SUBMITTED = (
    *("http://127.0.0.1:{port}/video/BV1xx411c7mD", "http://[::1]:{port}/", "http://2130706433:{port}/video/av1"),
    *("http://0x7f.1:{port}/", "http://0177.0.0.1:{port}/", "https://www.bilibili.com@127.0.0.1:{port}/video/av1"),
    *("http://127.0.0.1:{port}#@www.bilibili.com/video/av1", "http://127.0.0.1:{port}\\@www.bilibili.com/video/av1"),
    *("https://www.bilibili.com:{port}/video/av1\r\nHost: 127.0.0.1", "http://169.254.169.254/latest/meta-data"),
    *(
        "https://b23.tv/abc",
        "http://127.0.0.1:{port}/?https://b23.tv/abc",
        "file:///etc/passwd",
        "redis://127.0.0.1:{port}",
    ),
    *(
        "https://space.bilibili.com@127.0.0.1:{port}/137137",
        "//127.0.0.1:{port}/video/av1",
        "gopher://127.0.0.1:{port}/_x",
    ),
    *("https://www.bilibili.com.evil.test/video/av1", "https://127.0.0.1:{port}/https://www.bilibili.com/video/av1"),
)


def test_the_server_asks_nobody_whatever_is_submitted(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)
        port = canary.getsockname()[1]

        def no_name(*_what: Any, **_how: Any) -> Any:
            raise AssertionError("a name was asked about")

        monkeypatch.setattr(socket, "getaddrinfo", no_name)
        urls = [text.format(port=port) for text in SUBMITTED]
        answer = client.post("/add_url", json={"urls": urls}).json or {}
        for url in urls:
            client.post("/ui/add", json={"urls": [url]})
            client.post("/watch", json={"source": url, "seconds": 3600})
            client.post("/add_url", json={"urls": ["mid:5"], "source": url[:200]})
        with pytest.raises(TimeoutError):
            canary.accept()
    assert {one["url"] for one in answer["rejected"]} >= {url for url in urls if "127.0.0.1" in url.split("\r")[0]}


# ------------------------------------------------------------------------------------------ bombs


def memory_bytes(pid: int, name: str = "VmHWM") -> int:
    """Return the most memory that a process had."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def bombs() -> Iterator[tuple[str, bytes, dict[str, str], set[int]]]:
    """Path, body, fields, and which answers are right: what must not take memory, nor be taken for a request."""
    as_json = {"Content-Type": "application/json"}
    deep, refused = b'{"urls":' + b"[" * 500_000 + b"]" * 500_000 + b"}", {400, 413, 415, 431}
    yield "/add_url", b"x" * (10 * MIB), as_json, {413}
    yield "/add_url", gzip.compress(bytes(256 * MIB), 1)[:MIB], {**as_json, "Content-Encoding": "gzip"}, {400}
    yield "/add_url", gzip.compress(b'{"urls": ["mid:1"]}'), {**as_json, "Content-Encoding": "gzip"}, {400}
    yield "/add_url", deep[:MIB], as_json, {400}
    yield "/add_url", b'{"urls":' + b"9" * 900_000 + b"}", as_json, {400}
    yield "/add_url", b'{"urls":[' + b"[],"[:3] * 340_000 + b"[]]}", as_json, {400}
    yield "/add_url", b"{" + b",".join(b'"%d":{}' % number for number in range(90_000)) + b"}", as_json, {400}
    yield (
        "/heartbeat",
        json.dumps({"worker": "w", "jobs": [], "state": {"x": ["y" * 50] * 15000}}).encode(),
        as_json,
        {200},
    )
    form = b"".join(b"--b\r\nContent-Disposition: form-data; name=f%d\r\n\r\n\r\n" % n for n in range(15_000))
    yield "/ui/sign-in", form + b"--b--", {"Content-Type": "multipart/form-data; boundary=b"}, refused
    yield "/ui/sign-in", b"a=1&" * 250_000, {"Content-Type": "application/x-www-form-urlencoded"}, refused
    yield "/status", b"", {f"X-{number}": "y" for number in range(5000)}, refused
    yield "/status", b"", {"X-Long": "y" * 300_000}, refused
    yield "/status", b"", {"Cookie": "; ".join(f"c{number}=1" for number in range(50_000))}, refused
    yield "/status?" + "a=1&" * 50_000, b"", {}, {414, *refused}
    yield "/get_url?count=64&have=" + ",".join([VIDEO] * 1000), b"", {}, {400, 414, 431}


@pytest.mark.slow
def test_bombs_are_refused_and_take_no_memory(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.ask("/status")[0] == 200
        before = memory_bytes(server.process.pid)
        for path, body, fields, right in bombs():
            for _again in range(3):
                with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as peer:
                    try:
                        peer.request("POST" if body else "GET", path, body or None, fields)
                        answer = peer.getresponse()
                        status, said = answer.status, answer.read()
                    except ConnectionError:  # it did not want to see the end of it
                        continue
                assert status in right, (path[:40], {name: value[:40] for name, value in fields.items()}, status)
                assert len(said) < 2000 and b"Traceback" not in said
        assert memory_bytes(server.process.pid) - before < 48 * MIB
        assert server.ask("/status")[1]["jobs"]["ready"] == 0


# ------------------------------------------------------------------------------------------ faults and poison


class Owned:
    """What pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/owned-by-a-pickle"),)


POISON = (
    pickle.dumps(Owned(), 0).decode("latin-1"),
    "__import__('pathlib').Path('/tmp/owned-by-a-pickle').touch()",
    "[" * 20_000,
    '{"py/object": "subprocess.Popen", "url": {"$ref": 1}}',
    "9" * 5000,
    "",
)


@pytest.mark.parametrize("poison", some_quickly(POISON, 0, 2))
def test_poisoned_values_in_redis_are_an_error_and_nothing_is_run(
    client: FlaskClient, connection: redis.Redis, poison: str, caplog: pytest.LogCaptureFixture
) -> None:
    bring_in(client, "a title")
    for key in list(connection.scan_iter()):
        kind = connection.type(key)
        if kind == "hash":
            connection.hset(key, mapping=dict.fromkeys(connection.hkeys(key), poison))
        elif kind == "string":
            connection.set(key, poison)
    for path in (*PAGES, *TEXTS, f"/ui/job?url={VIDEO}%3Fp%3D1%26cid%3D1", f"/job?url={VIDEO}", "/get_url?worker=w9"):
        answer = client.get(path)
        assert answer.status_code in (200, 400, 404, 500, 503), path
        for told in ("Traceback", "File ", "RecursionError", "ValueError", str(Path(__file__).parent.parent)):
            assert told not in answer.text, path
        if answer.status_code == 200 and answer.content_type.startswith("text/html"):
            assert_harmless(answer.text, path)
    assert not Path("/tmp/owned-by-a-pickle").exists()


DAMAGED = "some of its data may be damaged"


def test_damaged_data_end_nothing_that_looks_after_the_queue(
    queue: Queue, client: FlaskClient, connection: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bring_in(client, "a title")
    connection.hset(key_of("status"), mapping=dict.fromkeys(connection.hkeys(key_of("status")), "{"))
    connection.set(key_of("revoked"), "of another type")  # which is an error of the engine
    ended = threading.Event()
    looks = [threading.Thread(target=web_server.tick, args=(queue, ended, 0.01))]
    looks.append(threading.Thread(target=web_server.Watch(queue, lambda *_what: []).run, args=(ended, 0.01)))
    for look in looks:
        look.start()
    try:
        wait_until(lambda: caplog.text.count(DAMAGED) == 2, "both stumble")
        connection.delete(key_of("status"), key_of("revoked"), key_of("swept"))
        wait_until(lambda: connection.exists(key_of("swept")), "it sweeps again")
        assert all(look.is_alive() for look in looks)
    finally:
        ended.set()
        for look in looks:
            look.join()
    assert caplog.text.count(DAMAGED) == 2, "each of them has said it once"


def test_what_a_reader_says_of_a_source_does_not_grow_without_end(client: FlaskClient) -> None:
    client.post("/add_url", json={"urls": ["mid:137137"]})
    (lease,) = client.get("/get_url?worker=w1").json or []
    for page in range(1, 9):
        ledger = {"page": page, "unavailable": {f"{page} {number}": 1 for number in range(50)}}
        body = {"url": lease["url"], "token": lease["token"], "urls": [], "more": True, "ledger": ledger}
        assert client.post("/expand", json=body).status_code == 200
    (source,) = (client.get("/sources").json or {})["items"]
    assert len(source["unavailable"]) <= 51
    assert sum(source["unavailable"].values()) == 8 * 50, "all are counted"


@pytest.mark.slow
def test_processes_under_ever_other_names_are_forgotten(client: FlaskClient, connection: redis.Redis) -> None:
    fill = "for i = 1, ARGV[1] do redis.call('ZADD', KEYS[1], i, 'w ' .. i) end"
    connection.eval(fill, 1, key_of("started"), 200_000)
    for number in range(5):
        assert client.get(f"/get_url?worker=w1&instance={number}").status_code == 200
    assert connection.zcard(key_of("started")) == 200_000
    assert connection.zscore(key_of("started"), "w1 4") and connection.zscore(key_of("started"), "w 1") is None


def test_no_path_breaks_the_choice_of_a_language(queue: Queue, settings: Settings) -> None:
    client = create_app(replace(settings, token="canary-s3cret-token"), queue).test_client()
    for path in ("/ui/%0d%0aLocation:%20x", "/ui/%0aSet-Cookie:%20a=b", "/ui/%c3%a9%20%22", "/ui//evil.test"):
        answer = client.get(f"{path}?language=en&a=b")
        assert answer.status_code == 303, path
        assert answer.headers["Location"].isprintable()
        assert unquote(answer.headers["Location"]) == f"{unquote(path)}?a=b"


def test_who_has_no_token_makes_no_page_anew(queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEPT_SECONDS", "LONGEST_SECONDS"):
        monkeypatch.setattr(web.kept, name, 600.0)
    made: list[str] = []
    look = queue.counts
    monkeypatch.setattr(queue, "counts", lambda: made.append("") or look())
    client = create_app(replace(settings, token="canary-s3cret-token"), queue).test_client()
    auth = {"Authorization": "Bearer canary-s3cret-token"}
    for number in range(5):
        for path in ("/healthz", "/static/dashboard.js", "/join"):
            client.set_cookie("bili_changed", f"{len(made):08x}{number:08x}")
            client.get(path, buffered=True)
        client.delete_cookie("bili_changed")
        assert client.get("/", headers=auth).status_code == 200
    assert len(made) == 2, "once for the counts, and once for the time that is left"


def test_a_fault_shows_nothing_of_the_program_whatever_flask_is_told(
    queue: Queue, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("FLASK_DEBUG", "1"), ("FLASK_ENV", "development"), ("WERKZEUG_DEBUG_PIN", "off")):
        monkeypatch.setenv(name, value)
    app = create_app(replace(settings, token="canary-s3cret-token"), queue)

    def broken(*_what: Any) -> Any:
        raise KeyError("canary-in-a-fault", settings)

    for name in ("counts", "workers", "add", "lease", "success"):
        monkeypatch.setattr(queue, name, broken)
    auth = {"Authorization": "Bearer canary-s3cret-token"}
    client = app.test_client()
    answers = [
        client.get(path, headers=auth) for path in ("/status", "/get_url", "/success", "/", "/ui/jobs", "/console")
    ]
    answers.append(client.post("/add_url", json={"urls": [VIDEO]}, headers=auth))
    answers.append(client.get("/status?__debugger__=yes&cmd=resource&f=debugger.js", headers=auth))
    assert [answer.status_code for answer in answers[:3]] == [500] * 3 and answers[6].status_code == 500
    for answer in answers:
        for told in ("canary", "Traceback", "KeyError", ".py", "Werkzeug", "debugger", "SECRET"):
            assert told not in answer.text + str(answer.headers), answer.request.path
    assert "canary-in-a-fault" in caplog.text, "the log says it"
    assert "canary-s3cret-token" not in caplog.text
