"""Asks a real server everything that its description allows, and what it does not, with schemathesis.

No answer may be a 500, none other than described, and nothing that the description forbids may be taken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.conftest import running_valkey
from tests.farm import ROOT, free_port, wait_until
from tests.fuzz.queue_content import TOKEN, fill
from web.openapi import ROUTES

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


class Asked(NamedTuple):
    """What became of a run: whether all was well, the report of schemathesis, and the answers of each route."""

    is_well: bool
    report: str
    statuses: dict[str, Counter[int]]
    log: str
    seen: dict[str, Any]
    """What can be looked at afterwards, by its address; None for a page."""


PAGES = ("/", *(f"/ui/{name}" for name in ("machines", "jobs", "failures", "sources", "add", "actions")))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server with an engine of its own, which has no disk, and jobs in its queue; yields its address."""
    with running_valkey() as socket:
        yield from _serving(folder, f"unix://{socket}")


def _serving(folder: Path, engine: str) -> Iterator[str]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BILI_", "REDIS_"))}
    environ = {
        **kept,
        "BILI_DATA_DIR": str(folder / "data"),
        "BILI_TOKEN": TOKEN,
        "REDIS_URL": engine,
        "BILI_LEASE_SECONDS": "600",
        "LANGUAGE": "en",
    }
    command = [sys.executable, str(ROOT / "web_server.py"), "--port", str(port)]
    with (folder / "server.log").open("wb") as output:
        server = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until("the server serves", lambda: server.poll() is None and _serves(address))
        fill(address)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _serves(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/healthz", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


def ask(folder: Path, seed: int, *options: str) -> Asked:
    """Run schemathesis against a server of its own; the same seed asks the same."""
    with serving(folder) as address:
        archive = folder / "asked.har"
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "run"]
        command += [f"{address}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}", "--seed", str(seed)]
        command += ["--report", "har", "--report-har-path", str(archive), *options]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        begun = time.monotonic()
        run = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
        report = f"{run.stdout}{run.stderr}\n{time.monotonic() - begun:.0f} s"
        seen = _look(address)
    log = (folder / "server.log").read_text("utf-8", "replace")
    return Asked(run.returncode == 0, report, _statuses(archive), log, seen)


def _look(address: str) -> dict[str, Any]:
    """Return what the server answers to everything that needs no more than its address; all of it must be 200."""
    plain = [route for route in ROUTES if route.method == "GET" and not route.needs and route.path != "/get_url"]
    seen: dict[str, Any] = {}
    for path in (*PAGES, *(route.path for route in plain)):
        request = urllib.request.Request(f"{address}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                seen[path] = json.load(answer) if answer.headers.get_content_type() == "application/json" else None
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read()[:2000]!r}") from None
    return seen


def _statuses(archive: Path) -> dict[str, Counter[int]]:
    found: dict[str, Counter[int]] = {}
    for entry in json.loads(archive.read_text("utf-8"))["log"]["entries"]:
        request = entry["request"]
        route = f"{request['method']} {urlsplit(request['url']).path}"
        found.setdefault(route, Counter())[entry["response"]["status"]] += 1
    return found
