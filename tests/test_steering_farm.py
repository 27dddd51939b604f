"""Machines steered from the server, with real processes: real files change, real workers obey, no cookie travels."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from account import digest_of
from demo.catalogue import video
from model import MIB
from tests.farm import Farm, Script, wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

TWO_BEATS_SECONDS = 10.0 + 8.0
"""Heartbeats of a worker that has nothing to do come every five seconds; and a margin for a busy machine."""


def ask(farm: Farm, path: str, **body: Any) -> Any:
    """Return the answer to a POST."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{farm.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        return json.load(answer)


def shown(farm: Farm, name: str = "w1") -> dict[str, Any]:
    """Return what the status page knows of a worker, nothing if it was not heard of."""
    return next((one for one in farm.get("/status")["workers"] if one["worker"] == name), {})


def working_file(farm: Farm, name: str, text: str = '{"stop": 1, "count": 1}') -> Path:
    path = farm.folder / f"{name}.json"
    path.write_text(text, "utf-8")
    return path


def start(farm: Farm, name: str, path: Path, *arguments: str, **more: str) -> Script:
    """Start a worker with a file of its own; return when it was heard of."""
    worker = farm.worker(*arguments, BILI_WORKER=name, BILI_WORKING_FILE=str(path), **more)
    wait_until(f"{name} was heard of", lambda: "working" in shown(farm, name), 30)
    return worker


def is_obeyed(farm: Farm, name: str = "w1", **working: Any) -> bool:
    found = shown(farm, name)
    return "order" not in found and found["working"].items() >= working.items()


# ------------------------------------------------------------------------------------------ orders and edits


def test_an_order_changes_the_file_in_two_heartbeats_and_an_edit_by_hand_is_shown(farm: Farm) -> None:
    farm.site.post("settings", rate_bytes_per_second=MIB)
    farm.add(video("large-a").bvid)
    path = working_file(farm, "w1", '{\n  "stop": 1,\n  "count": 1,\n  "mine": [1, 2],\n}\n')
    worker = start(farm, "w1", path)
    wait_until("it downloads", lambda: shown(farm).get("speed_bytes_per_second"), 30)
    began = time.monotonic()
    assert ask(farm, "/steer", workers=["w1", "w7"], working={"stop": 0, "max_speed": "2M"}) == {
        "steered": ["w1"],
        "unknown": ["w7"],
        "undo": [{"workers": ["w1"], "working": {"stop": 1, "max_speed": None}}],
    }
    wait_until("it is paused", lambda: is_obeyed(farm, stop=0) and shown(farm)["state"] == "paused", TWO_BEATS_SECONDS)
    assert time.monotonic() - began < TWO_BEATS_SECONDS
    assert path.read_text("utf-8") == '{\n  "stop": 0,\n  "count": 1,\n  "mine": [1, 2],\n  "max_speed": "2M",\n}\n'
    assert shown(farm)["working"] == {"stop": 0, "count": 1, "max_speed": 2 * MIB, "drain": 0}
    worker.says('Ordered by the server, and written into w1.json: "stop": 0, "max_speed": "2M"')

    path.write_text('{"stop": 0, "count": 7, "drain": 1}', "utf-8")
    edited = {"stop": 0, "count": 7, "max_speed": None, "drain": 1}
    wait_until("the edit is shown", lambda: shown(farm)["working"] == edited, TWO_BEATS_SECONDS)
    ask(farm, "/steer", workers=["w1"], working={"stop": 1, "drain": 0})
    wait_until("it goes on", lambda: farm.counts()["done"] == 1, 60)
    assert json.loads(path.read_text("utf-8")) == {"stop": 1, "count": 7, "drain": 0}
    assert [one["what"] for one in farm.get("/actions")["items"]].count("steer") == 2


def test_all_machines_are_steered_and_the_unknown_are_named(farm: Farm) -> None:
    paths = [working_file(farm, name) for name in ("w1", "w2")]
    for name, path in zip(("w1", "w2"), paths, strict=True):
        start(farm, name, path)
    assert sorted(ask(farm, "/steer", all=True, working={"count": 9})["steered"]) == ["w1", "w2"]
    for name in ("w1", "w2"):
        wait_until("it is obeyed", lambda name=name: is_obeyed(farm, name, count=9), TWO_BEATS_SECONDS)
    assert [json.loads(path.read_text("utf-8")) for path in paths] == [{"stop": 1, "count": 9}] * 2
    assert ask(farm, "/steer", workers=["w8"], working={"count": 9}) == {"steered": [], "unknown": ["w8"], "undo": []}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(farm, "/login", worker="w8")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(farm, "/steer", all=True, working={"count": 65})


def test_a_worker_that_is_killed_before_it_obeyed_obeys_when_it_is_back(farm: Farm) -> None:
    path = working_file(farm, "w1")
    worker = start(farm, "w1", path)
    os.kill(worker.process.pid, signal.SIGSTOP)
    ask(farm, "/steer", workers=["w1"], working={"count": 5})
    worker.kill()
    ask(farm, "/steer", workers=["w1"], working={"drain": 1})
    assert shown(farm)["order"]["working"] == {"count": 5, "drain": 1}
    assert json.loads(path.read_text("utf-8")) == {"stop": 1, "count": 1}
    start(farm, "w1", path)
    wait_until("it is obeyed", lambda: is_obeyed(farm, count=5, drain=1), 30)
    assert json.loads(path.read_text("utf-8")) == {"stop": 1, "count": 5, "drain": 1}
    wait_until("it is drained", lambda: shown(farm)["state"] == "drained", TWO_BEATS_SECONDS)


def test_an_order_outlives_the_server(farm: Farm) -> None:
    path = working_file(farm, "w1")
    worker = start(farm, "w1", path)
    os.kill(worker.process.pid, signal.SIGSTOP)
    ask(farm, "/steer", workers=["w1"], working={"count": 5})
    farm.server.kill()
    os.kill(worker.process.pid, signal.SIGCONT)
    farm.start_server()
    wait_until("it is obeyed", lambda: is_obeyed(farm, count=5), 60)


def test_a_file_that_cannot_be_written_is_said_and_the_order_is_not_repeated(farm: Farm) -> None:
    path = farm.folder / "nowhere" / "w1.json"
    worker = start(farm, "w1", path)
    ask(farm, "/steer", workers=["w1"], working={"stop": 0})
    wait_until("it is answered", lambda: "order_problem" in shown(farm), TWO_BEATS_SECONDS)
    found = shown(farm)
    assert found["order_problem"].startswith("w1.json cannot be written (No such file or directory)")
    assert "order" not in found and found["working"]["stop"] == 1
    seen = wait_until("another beat", lambda: (beat := shown(farm))["seen_seconds"] < 0.5 and beat, 30)
    assert "order_problem" in seen
    assert worker.output().count("was not obeyed") == 1
    path.parent.mkdir()
    ask(farm, "/steer", workers=["w1"], working={"stop": 0})
    wait_until("now it can", lambda: is_obeyed(farm, stop=0) and "order_problem" not in shown(farm), TWO_BEATS_SECONDS)


# ------------------------------------------------------------------------------------------ drain


def test_a_worker_that_is_drained_finishes_what_it_holds_and_waits(farm: Farm) -> None:
    farm.site.post("settings", rate_bytes_per_second=MIB / 16)
    path = working_file(farm, "w1")
    farm.add(video("large-a").bvid)
    worker = start(farm, "w1", path)
    wait_until("it downloads", lambda: shown(farm).get("speed_bytes_per_second"), 30)
    ask(farm, "/steer", workers=["w1"], working={"drain": 1})
    wait_until("it drains", lambda: is_obeyed(farm, drain=1), TWO_BEATS_SECONDS)
    assert shown(farm)["state"] == "draining"
    farm.add(video("five-pages").bvid, video("plain").bvid)
    farm.site.post("settings", rate_bytes_per_second=0)
    wait_until("it is drained", lambda: shown(farm)["state"] == "drained", 60)
    assert farm.counts() == {"ready": 2, "leased": 0, "delayed": 0, "done": 1, "dead": 0}
    leased = farm.server.output().count("leased ")
    wait_until("it lives", lambda: shown(farm)["seen_seconds"] < 0.5, 30)
    assert worker.process.poll() is None and farm.server.output().count("leased ") == leased
    assert farm.worker("--until-empty", BILI_WORKER="w2", BILI_WORKING_FILE=str(path)).wait(30) == 0
    assert farm.counts()["ready"] == 2, "drained at once"
    ask(farm, "/steer", workers=["w1"], working={"drain": 0})
    wait_until("it goes on", lambda: farm.counts()["done"] == 7, 60)
    wait_until("it says so", lambda: shown(farm)["state"] == "running", 30)


# ------------------------------------------------------------------------------------------ a login


class Tap:
    """What stands between a worker and the server, and keeps every byte that the worker sends."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.sent = bytearray()
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = int(self._sockets[0].getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, what: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=what, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                ours = self._sockets[0].accept()[0]
                theirs = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [ours, theirs]
                self._run(self._pass, ours, theirs, True)
                self._run(self._pass, theirs, ours, False)

    def _pass(self, source: socket.socket, target: socket.socket, keeps: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if keeps:
                    self.sent += piece
                target.sendall(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in self._sockets:
            one.close()


@pytest.fixture
def tap(farm: Farm) -> Iterator[Tap]:
    tap = Tap(farm.port)
    yield tap
    tap.close()


def test_a_machine_logs_in_from_the_page_and_its_cookie_goes_nowhere_else(farm: Farm, tap: Tap) -> None:
    worker = start(farm, "w1", working_file(farm, "w1"), BILI_SERVER_URL=f"http://127.0.0.1:{tap.port}")
    assert "login" not in shown(farm)
    replaced = ask(farm, "/login", worker="w1")["id"]
    link = wait_until("its code is shown", lambda: shown(farm).get("login", {}).get("link"), TWO_BEATS_SECONDS)
    identity = ask(farm, "/login", worker="w1")["id"]
    assert identity != replaced

    def login(state: str) -> Any:
        found = shown(farm).get("login", {})
        return found if found.get("id") == identity and found["state"] == state and "order" not in shown(farm) else None

    other = wait_until("another code is shown", lambda: (login("scan") or {}).get("link"), TWO_BEATS_SECONDS)
    assert other != link and other.startswith(farm.site.environ()["BILI_PASSPORT_URL"])
    farm.site.post("passport", scan=True)
    wait_until("it is scanned", lambda: login("scanned"), TWO_BEATS_SECONDS)
    farm.site.post("passport", confirm=True)
    done = wait_until("it is done", lambda: login("done"), TWO_BEATS_SECONDS)
    assert done == {"id": identity, "state": "done", "link": "", "note": ""}
    kept = farm.folder / "data" / "account.json"
    (session,) = farm.site.get("passport")["sessions"]
    assert json.loads(kept.read_text("utf-8"))["cookies"] == session["cookies"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    # Used at once, and told to the others by its digest alone.
    digest = digest_of(session["cookies"]["DedeUserID"]).encode()
    wait_until("the digest is told", lambda: digest in tap.sent, TWO_BEATS_SECONDS)
    farm.add(video("login-quality").bvid)
    wait_until("it downloads as that account", lambda: farm.counts()["done"] == 1, 60)
    assert farm.site.get("passport")["cookies_at"]["api"] > 0
    hidden = {value for name, value in session["cookies"].items() if name != "DedeUserID"}
    hidden |= {value.replace("%2C", ",").replace("%2A", "*") for value in hidden}
    assert b"POST /heartbeat" in tap.sent and b'"scanned"' in tap.sent, "what the worker sends was seen"
    assert [value for value in hidden if value.encode() in tap.sent] == []
    told = worker.output() + farm.server.output() + json.dumps(farm.get("/status")) + json.dumps(farm.get("/actions"))
    assert [value for value in hidden if value in told] == []
    assert other not in worker.output() and other not in farm.server.output()
    assert [one["what"] for one in farm.get("/actions")["items"]] == ["login", "login"]


def test_a_code_that_expires_is_said_and_the_downloads_do_not_mind(farm: Farm) -> None:
    start(farm, "w1", working_file(farm, "w1"))
    ask(farm, "/login", worker="w1")
    wait_until("its code is shown", lambda: shown(farm).get("login", {}).get("link"), TWO_BEATS_SECONDS)
    farm.add(video("plain").bvid)
    wait_until("a download beside it", lambda: farm.counts()["done"] == 1, 60)
    farm.site.post("passport", expire=True)
    wait_until("it has expired", lambda: shown(farm)["login"]["state"] == "expired", TWO_BEATS_SECONDS)
    assert not (farm.folder / "data" / "account.json").exists()
