"""An account with real processes: the QR code on a terminal, where cookies go, what is never shown, who slows down."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import segno

from demo.catalogue import video
from demo.process import SiteProcess
from tests.farm import ROOT, Farm, Script, finished_files, wait_until
from tests.test_passport import read_picture

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


def environ(site: SiteProcess, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BILI_", "REDIS_"))}
    return {**kept, **site.environ(), "LANGUAGE": "en", "BILI_DATA_DIR": str(folder), "PYTHONIOENCODING": "utf-8"}


class Terminal:
    """A script on a terminal of its own."""

    def __init__(self, arguments: list[str], environ: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
        os.close(theirs)
        self._shown = b""

    def shown(self) -> str:
        """Return what is on it by now."""
        with contextlib.suppress(OSError):  # the other side is closed
            while select.select([self._ours], [], [], 0)[0] and (piece := os.read(self._ours, 65536)):
                self._shown += piece
        return self._shown.decode("utf-8", "replace").replace("\r\n", "\n")

    def says(self, pattern: str) -> str:
        """Wait for a text; return its first group."""
        found: re.Match[str] = wait_until(pattern, lambda: re.search(pattern, self.shown()), 30)
        return found[1] if found.groups() else found[0]

    def wait(self) -> int:
        """Return the exit status."""
        wait_until("it ends", lambda: self.shown() is not None and self.process.poll() is not None, 30)
        return self.process.returncode

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    open_ones: list[Terminal] = []

    def make(arguments: list[str], environ: dict[str, str]) -> Terminal:
        open_ones.append(Terminal(arguments, environ))
        return open_ones[-1]

    yield make
    for one in open_ones:
        one.close()


def sessions(site: SiteProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.get("passport")["sessions"]
    return found


def secrets_of(site: SiteProcess) -> set[str]:
    """Return every value that nobody may see, in both ways of writing it."""
    hidden = {value for one in sessions(site) for name, value in one["cookies"].items() if name != "DedeUserID"}
    return hidden | {value.replace("%2C", ",") for value in hidden}


LINK = r"(http://\S+/passport/h5-app/passport/login/scan\?\S+)"


# ------------------------------------------------------------------------------------------ on a terminal


def test_a_code_on_a_terminal_is_scanned_confirmed_and_kept(
    site: SiteProcess, tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    path = tmp_path / "account.json"
    screen = terminal(["run.py", "--login"], environ(site, tmp_path))
    link = screen.says(LINK)
    picture = [line for line in screen.shown().splitlines() if line.startswith("\x1b[30;107m")]
    code = segno.make(link, micro=False, error="l", boost_error=False)
    expected = ["".join(str(int(bool(square))) for square in row) for row in code.matrix_iter(border=2)]
    assert read_picture("\n".join(picture))[: len(expected)] == expected
    site.post("passport", scan=True)
    screen.says("Scanned: now confirm it on the phone")
    assert not path.exists()
    site.post("passport", confirm=True)
    assert screen.wait() == 0
    assert "Logged in, account 10086" in screen.shown()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text("utf-8"))["cookies"] == sessions(site)[0]["cookies"]
    assert not [secret for secret in secrets_of(site) if secret in screen.shown()]

    out = terminal(["run.py", "--logout"], environ(site, tmp_path))
    assert out.wait() == 0 and "deleted from this machine" in out.shown()
    assert not path.exists()


def test_an_expired_code_is_followed_by_another(
    site: SiteProcess, tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal(["run.py", "--login"], environ(site, tmp_path))
    first = screen.says(LINK)
    site.post("passport", expire=True)
    screen.says(r"This code has expired[\s\S]*" + LINK)
    assert screen.shown().rindex("http://") > screen.shown().index(first) + len(first)
    site.post("passport", confirm=True)
    assert screen.wait() == 0


def test_ctrl_c_ends_it_and_leaves_nothing(
    site: SiteProcess, tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal(["run.py", "--login"], environ(site, tmp_path))
    screen.says(LINK)
    screen.process.send_signal(2)
    assert screen.wait() == 130
    assert "Traceback" not in screen.shown() and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ with workers


def log_in(farm: Farm) -> Script:
    """Log in as a person without a terminal does, by the link."""
    script = farm.start("run.py", "--login")
    wait_until("a link", lambda: re.search(LINK, script.output()), 30)
    assert "\x1b" not in script.output()
    farm.site.post("passport", confirm=True)
    assert script.wait(30) == 0, script.output()
    return script


def cookies_at(site: SiteProcess) -> dict[str, int]:
    found: dict[str, int] = site.get("passport")["cookies_at"]
    return found


def test_a_login_gets_what_only_an_account_may_see_and_is_shown_and_sent_to_nobody_else(farm: Farm) -> None:
    farm.steer(stop=1, count=1)
    log_in(farm)
    short_link = farm.site.addresses["short"]
    assert (
        farm.add(video("login-quality").bvid, f"{short_link}/{video('plain').bvid}") == "added 2, known 0, rejected 0"
    )
    worker = farm.worker("--until-empty", "--wait", "30")
    command_lines = set()

    def has_ended() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            command_lines.add(" ".join(process.info["cmdline"] or ()))
        return worker.process.poll() is not None

    wait_until("the worker ends", has_ended)
    assert worker.wait() == 0, worker.output()
    best = next(page for page in farm.site.get("catalogue")["videos"] if page["name"] == "login-quality")
    best_size = max(stream["size_bytes"] for stream in best["pages"][0]["streams"] if stream["codecid"] == 7)
    path = finished_files(farm.downloads)[video("login-quality").pages[0].cid]
    assert path.stat().st_size > best_size, "the best video stream that there is, and audio"
    assert set(cookies_at(farm.site)) == {"api"}, "not to media hosts, and not to short links"
    media = farm.site.addresses["media"].split(",")[0]
    request = urllib.request.Request(f"http://{media}/raw/1/1", headers={"Cookie": "SESSDATA=1"})
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
    assert "media" in cookies_at(farm.site), "one that goes there would have been seen"
    output = "".join(log.read_text("utf-8", errors="replace") for log in farm.folder.glob("*.log"))
    told = output + json.dumps(farm.get("/status")) + json.dumps(farm.everything("/success"))
    told += "\n".join(command_lines)
    assert not [secret for secret in secrets_of(farm.site) if secret in told]
    holders = [path for path in farm.folder.rglob("*") if path.is_file() and path.name != "account.json"]
    held = {path: path.read_bytes() for path in holders if path.stat().st_size < 50_000_000}
    assert not [path for path, body in held.items() for secret in secrets_of(farm.site) if secret.encode() in body]


def note(farm: Farm, name: str) -> str:
    workers = {one["worker"]: one.get("note", "") for one in farm.get("/status")["workers"]}
    return str(workers.get(name, ""))


def test_a_login_that_is_over_is_shown_until_there_is_another(farm: Farm) -> None:
    log_in(farm)
    farm.site.post("passport", kill=sessions(farm.site)[0]["cookies"]["SESSDATA"])
    worker = farm.worker(BILI_WORKER="w1")
    wait_until("it is on the dashboard", lambda: "run: python run.py --login" in note(farm, "w1"), 30)
    worker.says("the site does not know this account any more")
    log_in(farm)
    wait_until("it is there no more", lambda: note(farm, "w1") == "", 30)
    worker.says("The site knows the account of --login")
    assert worker.output().count("does not know this account") == 1


@pytest.mark.parametrize("point", ["account:save:1", "account:save:1:after", "passport:Passport.confirm:1:after"])
def test_a_worker_that_is_killed_while_it_renews_leaves_a_login_that_lives(farm: Farm, point: str) -> None:
    log_in(farm)
    path = farm.folder / "data" / "account.json"
    kept = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**kept, "checked": 0}), "utf-8")
    farm.site.post("passport", wants_refresh=True)
    killed = farm.start("tests/crash.py", point, "--", "run.py")
    assert killed.wait(60) == -9, killed.output()
    alive = {one["cookies"]["SESSDATA"] for one in sessions(farm.site) if one["alive"]}
    assert json.loads(path.read_text("utf-8"))["cookies"]["SESSDATA"] in alive

    worker = farm.worker()
    wait_until("the old login is forgotten", lambda: not sessions(farm.site)[0]["alive"], 30)

    def is_settled() -> bool:
        now = json.loads(path.read_text("utf-8"))
        living = [one["cookies"] for one in sessions(farm.site) if one["alive"]]
        return now["unconfirmed"] == "" and now["cookies"] in living and now["cookies"] != kept["cookies"]

    wait_until("the new one is kept", is_settled, 30)
    assert "does not know" not in worker.output()
    assert [one.name for one in path.parent.glob("account.json*")] == ["account.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_two_workers_behind_one_address_one_meets_risk_control_and_the_other_is_parked_with_it(farm: Farm) -> None:
    farm.site.post("faults", kind="risk_control", scope="api", path="/x/*", count=1)
    farm.add(video("plain").bvid)
    first = farm.worker(BILI_WORKER="first")
    first.says("This worker leases nothing for")
    wait_until("it is shown", lambda: "risk control" in note(farm, "first"), 30)
    second = farm.worker(BILI_WORKER="second")
    second.says("parked with all of this address or account")
    wait_until("it is shown too", lambda: "parked with all" in note(farm, "second"), 30)
    farm.add(video("no-audio").bvid, video("one-segment").bvid)
    wait_until("they are done", lambda: farm.counts()["done"] >= 3, 90)
    assert "leases nothing" not in second.output()
    first.interrupt()
