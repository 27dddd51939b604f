"""A whole farm of real processes for end-to-end tests: the stand-in site, a server, workers, a queue of their own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from demo.process import SiteProcess
from merging.proof import read_tag

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 120.0


def wait_until(what: str, true: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Return what ``true`` returns as soon as it is truthy; fail naming ``what`` when it does not become so."""
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return answer


PORTS_OF_A_PROCESS = 2000
_ports = itertools.count(os.getpid())


def free_port() -> int:
    """Return a port that nobody listens on now, and that no test beside this one is given before it is listened on.

    Each process that runs tests has ports of its own, below those that the system gives to connections. A port that the
    system chose is chosen again as soon as it was let go: two farms then had one server.
    """
    runner = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    first = 11_000 + PORTS_OF_A_PROCESS * (int(runner[1]) % 5 if runner else 5 + os.getpid() % 5)
    for number in itertools.islice(_ports, PORTS_OF_A_PROCESS):
        port = first + number % PORTS_OF_A_PROCESS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port is free from {first} on")


def copies_of_pages(*folders: Path) -> dict[int, list[Path]]:
    """Return all finished files below some folders by the cid that they say they hold; there must be no other file."""
    found: dict[int, list[Path]] = {}
    for path in [path for folder in folders for path in folder.rglob("*")]:
        if path.is_file() and ".parts" not in path.parts:
            said = re.search(r"cid=(\d+)", read_tag(path))
            assert said, f"of whom is this: {path}"
            found.setdefault(int(said[1]), []).append(path)
    return found


def finished_files(*folders: Path) -> dict[int, Path]:
    """Return the finished file of each page below some folders; there must be no other file, and none twice."""
    found = copies_of_pages(*folders)
    twice = [paths for paths in found.values() if len(paths) > 1]
    assert not twice, f"twice: {twice}"
    return {cid: path for cid, (path,) in found.items()}


class Script:
    """One of the three scripts, running; its output is kept in a file, so that no pipe can fill up."""

    def __init__(self, farm: Farm, arguments: list[str], environ: dict[str, str], log: Path) -> None:
        self.log = log
        self._farm = farm
        with log.open("ab") as output:
            command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
            self.process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)

    def output(self) -> str:
        """Return everything it has printed so far."""
        return self.log.read_text("utf-8", errors="replace")

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Return its exit status; fail with its output when it does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.output()[-4000:]}") from None

    def kill(self) -> None:
        """Kill it as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()

    def interrupt(self, number: int = signal.SIGTERM) -> None:
        """Send a signal that asks it to end."""
        self.process.send_signal(number)

    def says(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until it has printed a text."""
        wait_until(f"{text!r} in {self.log.name}", lambda: text in self.output(), seconds)


class Farm:
    """A queue server on a queue of its own, and what a test starts beside it; everything ends with ``close``."""

    def __init__(self, folder: Path, site: SiteProcess, **settings: str) -> None:
        self.folder = folder
        self.site = site
        self.downloads = folder / "Download"
        self.port = free_port()
        self.settings = settings
        self._scripts: list[Script] = []
        self.working = folder / "working.json"
        self.steer(stop=1, count=2)
        self.server = self.start_server()

    def environ(self, **more: str) -> dict[str, str]:
        """Return the settings of this farm, and nothing of the user's own."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BILI_", "REDIS_")) and not name.lower().endswith("_proxy")
        }
        return {
            **kept,
            **self.site.environ(),
            "LANGUAGE": "en",
            "BILI_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "BILI_DATA_DIR": str(self.folder / "data"),
            "BILI_DOWNLOAD_DIR": str(self.downloads),
            "BILI_WORKING_FILE": str(self.working),
            "BILI_API_INTERVAL": "0",
            "BILI_RATE_PER_ADDRESS": "0",
            "BILI_RATE_PER_ACCOUNT": "0",
            **self.settings,
            **more,
        }

    def start(self, *arguments: str, **more: str) -> Script:
        """Start one of the scripts."""
        script = Script(self, list(arguments), self.environ(**more), self.folder / f"{len(self._scripts)}.log")
        self._scripts.append(script)
        return script

    def start_server(self) -> Script:
        """Start the server and wait until it serves."""
        server = self.start("web_server.py", "--port", str(self.port))

        def serves() -> bool:
            assert server.process.poll() is None, server.output()
            try:
                return bool(self.get("/healthz"))
            except OSError:
                return False

        wait_until("the server serves", serves)
        return server

    def add(self, *targets: str) -> str:
        """Run add_url.py; return the last line of its output."""
        script = self.start("add_url.py", *targets)
        script.wait()
        return script.output().splitlines()[-1]

    def worker(self, *arguments: str, **more: str) -> Script:
        """Start a worker."""
        return self.start("run.py", *arguments, **more)

    def drain(self, **more: str) -> int:
        """Run a worker until nothing is left; return its exit status."""
        worker = self.worker("--until-empty", "--wait", "30", **more)
        return worker.wait()

    def steer(self, **content: int) -> None:
        """Write working.json."""
        self.working.write_text(json.dumps(content), "utf-8")

    def get(self, path: str) -> Any:
        """Return what the server answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)

    def counts(self) -> dict[str, int]:
        """Return the jobs by state."""
        counts: dict[str, int] = self.get("/status")["jobs"]
        return counts

    def everything(self, path: str) -> list[dict[str, Any]]:
        """Return all items of /success or /failed."""
        items: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            answer = self.get(f"{path}?limit=100&after={quote(after)}")
            items += answer["items"]
            after = answer["next"]
        return items

    def close(self) -> None:
        """End everything that was started."""
        for script in self._scripts:
            if script.process.poll() is None:
                script.interrupt()
        for script in self._scripts:
            try:
                script.process.wait(10)
            except subprocess.TimeoutExpired:
                script.kill()

    # -------------------------------------------------------------------------------- what the site served

    def ranges(self) -> dict[str, list[tuple[int, int | None, int]]]:
        """Return (start, stop, bytes sent) of each request for media, by the path of the stream."""
        objects = self.site.get("stats")["objects"]
        return {
            path: [(one["start"], one["stop"], one["sent_bytes"]) for one in counter["ranges"]]
            for path, counter in objects.items()
        }

    def sent_bytes(self) -> int:
        """Return how many bytes of media the site has sent."""
        return sum(int(mirror["sent_bytes"]) for mirror in self.site.get("stats")["mirrors"])
