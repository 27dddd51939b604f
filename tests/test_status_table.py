"""The dashboard as tables: what a real server tells, and what is said where none does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

import status_table
from budgets import Told
from config import Settings
from errors import ServerError, ServerUnreachable, Unauthorized
from model import Failure
from redisConnect import Queue
from status_table import grouped, show_status
from store import Tokens
from tests.farm import free_port

ROOT = Path(__file__).resolve().parent.parent
VIDEOS = ("BV1xx411c7mD", "BV17x411w7KC", "BV1GJ411x7h7")


@pytest.fixture
def busy(queue: Queue) -> Queue:
    """One that has all kinds of things in it."""
    queue.add([*VIDEOS, "BV1Q541167Qg"])
    first, second, third = queue.lease("w1", 3)
    queue.nack(first.url, first.token, Failure("permanent", "-404", "deleted", "标题\x1b[2J\n一"))
    queue.nack(second.url, second.token, Failure("transient", "site", "no answer"))
    state = {"state": "running", "speed_bytes_per_second": 3 * 1024**2, "working": {"stop": 1, "count": 4}}
    state |= {"disk_free_bytes": 5 * 1024**3, "note": "the login \x1b[31mhas expired"}
    queue.heartbeat("阁楼", [], state | {"jobs": [{"url": third.url}]})
    queue.heartbeat("cellar", [], {"state": "paused"})
    claimed = queue.claim("mid:137137", "music")
    assert claimed is not None
    return queue


def table(settings: Settings, server: str, capsys: pytest.CaptureFixture[str], **more: Any) -> str:
    show_status(replace(settings, server_urls=(server,), **more), as_json=False)
    return capsys.readouterr().out


def facts(settings: Settings, server: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    show_status(replace(settings, server_urls=(server,)), as_json=True)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.usefixtures("busy")
def test_the_tables_say_what_the_dashboard_says(
    settings: Settings, queue_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = table(settings, queue_server, capsys)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines[0].startswith("ready: 1 · in work: 2 · delayed: 1 · done: 0 · failed: 1 · 3.0 MiB/s · next try in")
    assert lines[2].split() == ["worker", "state", "jobs", "at", "most", "speed", "disk", "free", "heard", "of"]
    attic = next(line for line in lines if line.startswith("阁楼"))
    assert attic.split()[1:4] == ["running", "1", "4"] and "3.0 MiB/s" in attic and "5.0 GiB" in attic
    assert any(line.startswith("cellar  paused") for line in lines)
    assert "阁楼: the login [31mhas expired" in lines
    assert any(line.startswith("mid:137137") and "being read" in line for line in lines)
    assert any(line.split() == ["1", "0", "-404", "deleted"] for line in lines)
    assert any(line.split() == ["0", "1", "site", "no", "answer"] for line in lines)
    assert "\x1b" not in shown


@pytest.mark.usefixtures("busy")
def test_columns_stand_below_each_other_also_with_chinese(
    settings: Settings, queue_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(settings, queue_server, capsys).splitlines()
    head = next(line for line in lines if line.startswith("worker"))
    state = head.index("state")
    for name, word in (("阁楼", "running"), ("cellar", "paused")):
        line = next(line for line in lines if line.startswith(name))
        assert cell_len(line.split(word)[0]) == state


def test_on_a_narrow_terminal_long_texts_take_several_lines_and_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"state": "running", "count": 64, "jobs": 64, "speed_bytes_per_second": 3 * 1024**2, "note": ""}
    workers = [told | {"worker": "a-machine-with-a-long-name-7", "disk_free_bytes": 5 * 1024**3, "seen_seconds": 3.0}]
    ledger = {"state": "closed", "ended": "end", "complete": True, "checked": 0.5, "unavailable": {}, "known": 0}
    ledger |= {
        "source": "mid:137137",
        "title": "一个名字很长的UP主和他的合集",
        "announced": 2048,
        "listed": 2048,
        "queued": 2048,
    }
    status = {"jobs": dict.fromkeys(status_table.STATES, 12345), "speed_bytes_per_second": 7, "next_due_seconds": None}
    breaker = {"group": "account:1234567", "state": "parked", "seconds": 1800.0, "failures": 7, "kind": "-352"}
    status |= {"workers": workers, "sources": [ledger], "breakers": [breaker], "is_complete": True, "hidden": []}
    status["failures"] = [{"dead": 1, "delayed": 2, "code": "-404", "reason": "the video is deleted", "reasons": 1}]
    for width in (62, 80):
        console = Console(width=width, file=io.StringIO())
        for piece in status_table.tables(status, 1.0):
            console.print(piece)
        assert isinstance(console.file, io.StringIO)
        shown = console.file.getvalue()
        assert "…" not in shown and "gone" not in shown and "2048/2048" in shown
        assert "account 123456: all its workers are parked, 1800 s yet" in " ".join(shown.split())
        assert all(cell_len(line) <= width for line in shown.splitlines())


@pytest.mark.usefixtures("busy")
def test_scripts_get_the_same_facts(settings: Settings, queue_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(settings, queue_server, capsys)
    assert found["jobs"] == {"ready": 1, "leased": 2, "delayed": 1, "done": 0, "dead": 1}
    assert found["speed_bytes_per_second"] == 3 * 1024**2 and found["is_complete"]
    workers = {worker["worker"]: worker for worker in found["workers"]}
    assert list(workers) == ["cellar", "w1", "阁楼"]
    assert workers["阁楼"]["jobs"] == 1 and workers["阁楼"]["count"] == 4
    assert workers["cellar"]["disk_free_bytes"] is None
    assert [source["source"] for source in found["sources"]] == ["mid:137137"]
    assert {failure["code"]: failure["dead"] for failure in found["failures"]} == {"-404": 1, "site": 0}


@pytest.mark.parametrize(
    ("role", "shown", "hidden"),
    [("worker", "阁楼", ["sources"]), ("submit", "ready: 1", ["workers", "sources", "failures"])],
)
def test_a_token_of_a_role_shows_what_is_for_it_and_says_what_is_not(
    settings: Settings,
    busy: Queue,
    queue_server: str,
    capsys: pytest.CaptureFixture[str],
    role: str,
    shown: str,
    hidden: list[str],
) -> None:
    told = replace(settings, server_urls=(queue_server,), token=Tokens(busy).make(role, "", 0)[0])
    show_status(told, as_json=False)
    text = capsys.readouterr().out
    assert shown in text and "mid:137137" not in text and "No worker is here" not in text
    assert ("deleted" in text) == ("failures" not in hidden) and ("阁楼" in text) == ("workers" not in hidden)
    assert "Not for the role of this token:" in text.splitlines()[-1]
    show_status(told, as_json=True)
    assert json.loads(capsys.readouterr().out)["hidden"] == hidden


def test_long_lists_are_read_piece_by_piece_and_not_without_end(
    settings: Settings,
    queue: Queue,
    queue_server: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_table, "PAGE", 1)
    queue.add(VIDEOS)
    for lease in queue.lease("w1", 3):
        queue.nack(lease.url, lease.token, Failure("permanent", "-404", "deleted"))
    assert facts(settings, queue_server, capsys)["failures"][0]["dead"] == 3
    monkeypatch.setattr(status_table, "MOST_PAGES", 2)
    found = facts(settings, queue_server, capsys)
    assert found["failures"][0]["dead"] == 2 and not found["is_complete"]
    assert "There are more: /sources, /failed" in table(settings, queue_server, capsys)


def test_what_is_parked_for_the_site_is_said_above_the_workers(
    settings: Settings, queue: Queue, queue_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert facts(settings, queue_server, capsys)["breakers"] == []
    queue.budget("w1", ("line:fibre", "account:0123456789"), Told(refused="-352"))
    (found,) = facts(settings, queue_server, capsys)["breakers"]
    assert (found["group"], found["state"], found["kind"]) == ("account:0123456789", "open", "-352")
    queue.budget("w1", ("line:fibre",), Told(refused="-412"))
    said = [line.partition(",")[0] for line in table(settings, queue_server, capsys).splitlines()[1:3]]
    assert sorted(said) == [f"{group}: all its workers are parked" for group in ("account 012345", "line fibre")]


def test_an_empty_farm_says_what_to_do_next(
    settings: Settings, queue_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table(settings, queue_server, capsys).rstrip().endswith("python run.py")


def test_failures_are_grouped_by_code_the_most_frequent_first() -> None:
    items = [{"code": "site", "state": "delayed", "reason": f"mirror {n % 2}"} for n in range(3)]
    items += [{"code": "-404", "state": "dead", "reason": "deleted"}] * 5
    assert grouped(items) == [
        {"code": "-404", "dead": 5, "delayed": 0, "reason": "deleted", "reasons": 1},
        {"code": "site", "dead": 0, "delayed": 3, "reason": "mirror 0", "reasons": 2},
    ]


def test_of_a_worker_that_is_away_nothing_is_believed_but_its_name() -> None:
    told = {"worker": "w", "seen_seconds": 500.0, "state": "running", "speed_bytes_per_second": 9, "jobs": [{}]}
    worker = status_table._worker(told, 60.0)
    assert worker["state"] == "away" and not worker["jobs"] and worker["speed_bytes_per_second"] is None
    silent = status_table._worker({**told, "seen_seconds": 31}, 60.0)
    assert (silent["state"], silent["jobs"], silent["speed_bytes_per_second"]) == ("silent", 1, None)
    here = status_table._worker({**told, "seen_seconds": 1}, 60.0)
    assert (here["state"], here["jobs"], here["speed_bytes_per_second"]) == ("running", 1, 9)


# ------------------------------------------------------------------------------------------ no server


@contextmanager
def answering(status: int, text: str, **headers: str) -> Iterator[tuple[str, list[str]]]:
    """Something else at the server's address; yields it, and what it is asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_arguments: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "text", "error", "sentence"),
    [
        (200, "<html>", ServerError, "no queue server of this project"),
        (200, '{"jobs": 3}', ServerError, "no queue server of this project"),
        (302, "", ServerError, "no queue server of this project"),
        (401, '{"error": "a token is needed"}', Unauthorized, "refuses BILI_TOKEN"),
        (503, '{"error": "Redis \\u001b[2Jis away"}', ServerError, "HTTP 503 Redis [2Jis away"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(
    settings: Settings, status: int, text: str, error: type[ServerError], sentence: str
) -> None:
    with answering(status, text, Location="http://127.0.0.2:1/") as (url, _asked), pytest.raises(error) as caught:
        show_status(replace(settings, server_urls=(url,)), as_json=False)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_the_token_is_sent_and_a_server_that_is_away_is_named(settings: Settings) -> None:
    with answering(200, "{}") as (url, asked), pytest.raises(ServerError):
        show_status(replace(settings, server_urls=(url,), token="secret"), as_json=False)
    assert asked[0] == "/status Bearer secret"
    away = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerUnreachable, match=r"cannot be reached: is web_server.py running there\? BILI_SERVER_URL"):
        show_status(replace(settings, server_urls=(away,)), as_json=False)


def script(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BILI_", "REDIS_"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "web_server.py"), *arguments],
        capture_output=True,
        text=True,
        env={**kept, "LANGUAGE": "en", **environ},
        timeout=50,
    )


@pytest.mark.slow
def test_the_script_ends_with_two_where_no_server_is_and_starts_none() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    for arguments in (("--status",), ("--status", "--json")):
        ended = script(*arguments, BILI_SERVER_URL=away)
        assert (ended.returncode, ended.stdout) == (2, "") and len(ended.stderr.splitlines()) == 1
        assert away in ended.stderr
    assert script("--json").returncode == 2


@pytest.mark.slow
def test_the_script_prints_json_that_a_script_can_read(queue_server: str) -> None:
    ended = script("--status", "--json", BILI_SERVER_URL=queue_server)
    assert ended.returncode == 0 and json.loads(ended.stdout)["jobs"]["done"] == 0
