"""Tokens and joining with real processes: machines that join, work and are taken back, one server or two."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.catalogue import video
from demo.process import SiteProcess
from model import MIB
from tests.farm import Farm, free_port, wait_until

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

TOKEN = "the-canary-token-of-the-farm"


@pytest.fixture
def farm(tmp_path: Path, site: SiteProcess) -> Iterator[Farm]:
    """A farm whose server demands a token."""
    farm = Farm(tmp_path, site, BILI_TOKEN=TOKEN)
    yield farm
    farm.close()


def ask(farm: Farm, path: str, token: str = "", port: int = 0, **body: Any) -> tuple[int, Any]:
    """Return the status and the answer to a GET, or to a POST of a body."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    content = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{port or farm.port}{path}", content, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def told(farm: Farm, *arguments: str) -> str:
    """Return the first line that web_server.py prints for a person, as its own process."""
    script = farm.start("web_server.py", *arguments)
    assert script.wait() == 0, script.output()
    return next(line for line in script.output().splitlines() if not line.startswith(("It is", "For another", "20")))


def joined(farm: Farm, worker: str) -> str:
    code, _at, place = told(farm, "--join-code").partition("@")
    assert place == f"127.0.0.1:{farm.port}"
    status, answer = ask(farm, "/join", code=code, worker=worker)
    assert status == 200
    return str(answer["token"])


def counts(farm: Farm) -> dict[str, int]:
    return dict(ask(farm, "/status", TOKEN)[1]["jobs"])


def is_at_work(farm: Farm, worker: str) -> bool:
    workers = ask(farm, "/status", TOKEN)[1]["workers"]
    return any(one["worker"] == worker and one.get("speed_bytes_per_second") for one in workers)


def secrets_on_command_lines(*secrets: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text("utf-8", errors="replace")
        except OSError:
            continue
        found += [line for secret in secrets if secret in line]
    return found


def test_machines_join_and_what_one_has_in_work_goes_to_another_when_it_is_taken_back(farm: Farm) -> None:
    farm.site.post("settings", rate_bytes_per_second=MIB)
    submit = told(farm, "--new-token", "submit", "--token-name", "Ann")
    adding = farm.start("add_url.py", video("large-a").bvid, BILI_TOKEN=submit)
    assert adding.wait() == 0 and adding.output().splitlines()[-1] == "added 1, known 0, rejected 0"
    first, second = joined(farm, "w1"), joined(farm, "w2")
    worker = farm.worker(BILI_TOKEN=first, BILI_WORKER="w1", BILI_MAX_SPEED="64K")
    wait_until("it downloads", lambda: is_at_work(farm, "w1"), 60)
    assert secrets_on_command_lines(TOKEN, first, second, submit) == []
    (identity,) = re.findall(r"(?m)^([0-9a-f]{16})\tworker\t.*\tw1$", farm_tokens(farm))
    began = time.monotonic()
    assert told(farm, "--revoke", identity) == "Revoked; jobs that came back: 1"
    wait_until("the job waits", lambda: counts(farm)["ready"] == 1 and counts(farm)["leased"] == 0, 10)
    wait_until("the server refuses it", lambda: ask(farm, "/status", first)[0] == 401, 10)
    assert time.monotonic() - began < 15, "long before its lease would have ended"
    worker.says("refuses the token", 60)
    farm.site.post("settings", rate_bytes_per_second=0)
    assert farm.drain(BILI_TOKEN=second, BILI_WORKER="w2", BILI_DOWNLOAD_DIR=str(farm.folder / "other")) == 0
    done = ask(farm, "/success", TOKEN)[1]["items"]
    assert [one["worker"] for one in done] == ["w2"] and counts(farm)["done"] == 1
    logs = "".join(path.read_text("utf-8", errors="replace") for path in farm.folder.glob("*.log"))
    shown = [secret for secret in (TOKEN, first, second) if secret in logs]
    assert shown == [] and logs.count(submit) == 1, "where it was made, and nowhere else"


def farm_tokens(farm: Farm) -> str:
    script = farm.start("web_server.py", "--tokens")
    assert script.wait() == 0
    return script.output()


def test_another_server_hears_of_it_and_gives_nothing_out_for_good(farm: Farm) -> None:
    port = free_port()
    other = farm.start("web_server.py", "--port", str(port))
    wait_until("it serves", lambda: other.process.poll() is None and "dashboard" in other.output())
    wait_until("it answers", lambda: ask(farm, "/healthz", port=port)[0] == 200)
    token = joined(farm, "w1")
    assert ask(farm, "/add_url", TOKEN, urls=[video("large-a").bvid])[1]["added"] == 1
    assert ask(farm, "/get_url?worker=w1", token, port)[0] == 200, "the other server knows it now"
    (identity,) = re.findall(r"(?m)^([0-9a-f]{16})\tworker\t.*\tw1$", farm_tokens(farm))
    assert counts(farm)["leased"] == 1
    assert ask(farm, "/ui/revoke", TOKEN, id=identity)[1] == {"revoked": 1, "returned": 1}
    began = time.monotonic()
    leased = 0
    while (answer := ask(farm, "/get_url?worker=w1", token, port))[0] == 200:  # it asks as quickly as it can
        leased += len(answer[1])
        assert time.monotonic() - began < 10
    assert answer[0] == 401 and ask(farm, "/get_url?worker=w1", token)[0] == 401
    wait_until("nothing is left with it", lambda: counts(farm)["leased"] == 0, 20)
    assert counts(farm)["ready"] == 1
    assert leased >= 1, "or this has tried nothing"
