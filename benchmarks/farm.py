"""The whole product as processes: a queue server, a worker, and the site with its media on nginx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio_ffmpeg

from benchmarks.bench import Bench
from benchmarks.contenders import clean_environ
from benchmarks.servers import Listener, Nginx, end_process, free_port, listener, wait_until_it_serves
from benchmarks.site import front

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 120.0


def wait_until(what: str, true: Callable[[], Any], seconds: float = PATIENCE_SECONDS, pause: float = 0.02) -> Any:
    """Return what ``true`` returns as soon as it is truthy; raise TimeoutError naming ``what`` when it is not."""
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return answer


def ffmpeg_folder(folder: Path) -> tuple[str, str]:
    """Return the path of ffmpeg, and of a folder with it under that name for the PATH of every contender."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    tools = folder / "tools"
    tools.mkdir(parents=True, exist_ok=True)
    (tools / "ffmpeg").unlink(missing_ok=True)
    (tools / "ffmpeg").symlink_to(ffmpeg)
    return ffmpeg, str(tools)


@dataclass(frozen=True, slots=True)
class Place:
    """A site that serves: the environment in which every contender finds it by the real names, and its process."""

    environ: Mapping[str, str]
    site_pid: int


def stand_in(
    bench: Bench, stack: ExitStack, shelf: Path, media: Sequence[Listener], hosts: Sequence[str] = ()
) -> Place:
    """Start the site with its media on nginx; ``hosts`` are those in a playinfo, else the listeners."""
    site_port, relay_port = free_port(), free_port()
    http, server = front(site_port)
    plain, tls = listener(shelf.parent, extra=server), listener(shelf.parent, tls=True, extra=server)
    named = list(hosts) or [f"{one.host}:{one.port}" for one in media]
    arguments = [str(shelf), ",".join(named), *map(str, (site_port, relay_port, tls.port))]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.site", *arguments], cwd=ROOT)
    stack.callback(end_process, process)
    wait_until_it_serves(process, [("127.0.0.1", site_port), ("127.0.0.1", relay_port)])
    names = ["api.bilibili.com", "www.bilibili.com", "passport.bilibili.com", "b23.tv"]
    nginx = stack.enter_context(
        Nginx(bench.peers.found["nginx"], [plain, tls, *media], bench.folder / "nginx", names, http)
    )
    _ffmpeg, tools = ffmpeg_folder(bench.folder)
    direct = ",".join(["localhost", *sorted({"127.0.0.1", *(host.partition(":")[0] for host in named)})])
    proxies = {"HTTP_PROXY": plain.url, "HTTPS_PROXY": f"http://127.0.0.1:{relay_port}", "NO_PROXY": direct}
    environ = clean_environ(
        **proxies,
        **{name.lower(): value for name, value in proxies.items()},
        SSL_CERT_FILE=nginx.ca_file,
        REQUESTS_CA_BUNDLE=nginx.ca_file,
        PATH=tools + os.pathsep + os.environ.get("PATH", ""),
        PYTHONPATH="",
        BILI_MEDIA_HOSTS=",".join(named),
    )
    return Place(environ, process.pid)


class Queue:
    """``with Queue(...) as queue``: a queue server with nothing in it, and what a worker needs to ask it."""

    def __init__(self, bench: Bench, folder: Path, environ: Mapping[str, str], **settings: str) -> None:
        self.folder = folder
        self.downloads = folder / "Download"
        self.port = free_port()
        self.product = bench.peers.product
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "working.json").write_text('{"stop": 1, "count": 8}', "utf-8")
        self.environ = {
            **environ,
            "BILI_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "BILI_DATA_DIR": str(folder / "data"),
            "BILI_DOWNLOAD_DIR": str(self.downloads),
            "BILI_WORKING_FILE": str(folder / "working.json"),
            "BILI_API_INTERVAL": "0",
            "BILI_RATE_PER_ADDRESS": "0",
            **settings,
        }
        self._started: list[subprocess.Popen[bytes]] = []
        self.server = self.start("web_server.py", "--port", str(self.port))
        wait_until_it_serves(self.server, [("127.0.0.1", self.port)])

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._started):
            end_process(process)

    def count(self, count: int) -> None:
        """Say how many jobs a worker has at the same time."""
        (self.folder / "working.json").write_text(json.dumps({"stop": 1, "count": count}), "utf-8")

    def command(self, script: str, *arguments: str) -> list[str]:
        """Return the command that starts one of the scripts."""
        return [sys.executable, str(self.product / script), *arguments]

    def start(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of the scripts; its output goes to a file."""
        with (self.folder / f"{script}.log").open("ab") as output:
            process = subprocess.Popen(
                self.command(script, *arguments), env=self.environ, stdout=output, stderr=output, cwd=self.folder
            )
        self._started.append(process)
        return process

    def add(self, targets: Sequence[str]) -> None:
        """Fill the queue."""
        for at in range(0, len(targets), 100):
            if status := self.start("add_url.py", *targets[at : at + 100]).wait(PATIENCE_SECONDS):
                raise OSError(f"add_url.py: status {status}: {self.said('add_url.py')}")

    def said(self, script: str) -> str:
        """Return the last line that a script printed."""
        lines = (self.folder / f"{script}.log").read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""

    def get(self, path: str) -> Any:
        """Return what the server answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)
