"""A farm on a network of its own: server, site and workers are machines with a router between them, which is cut.

The machines are network namespaces; each has its own loopback, and only what the router forwards comes across.
"""

from __future__ import annotations

import ctypes
import http.client
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import imageio_ffmpeg
import pytest

import embedded_valkey
from demo.catalogue import video
from demo.media import ensure_library
from demo.site import DEFAULT_CACHE
from model import MIB
from tests.conftest import engine_binary
from tests.farm import ROOT, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
LEASE_SECONDS = 12
"""So that what a worker gives up earlier than the server, a twentieth of it, is longer than its tick."""
SERVER_PORT, ENGINE_PORT = 8080, 6379
PASSWORD = "0" * 48


def ip(*arguments: str) -> None:
    program = shutil.which("ip")
    assert program, "ip is missing: tests/install_debian_packages.sh installs iproute2"
    ended = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, f"ip {' '.join(arguments)} (this needs root): {ended.stderr}"


class Machine:
    """A network namespace with one cable, to the router."""

    _numbers = itertools.count(1)

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name = f"{network.name}-{name}"
        self.address = f"10.77.{number}.2"
        self.cable = f"to-{name}"
        """The router's end of it."""
        self._network = network
        ip("netns", "add", self.name)

    def plug_in(self, router: str, number: int) -> None:
        ip("-n", router, "link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        ip("-n", router, "address", "add", f"10.77.{number}.1/24", "dev", self.cable)
        ip("-n", router, "link", "set", self.cable, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "cable")
        for link in ("lo", "cable"):
            ip("-n", self.name, "link", "set", link, "up")
        ip("-n", self.name, "route", "add", "default", "via", f"10.77.{number}.1")

    def start(self, *command: str, environ: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start a program there; it ends with the network."""
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("BILI_", "REDIS_")) and "proxy" not in k.lower()
        }
        words = ["ip", "netns", "exec", self.name, *command]  # which becomes the command itself
        process = subprocess.Popen(words, cwd=ROOT, env={**kept, "LANGUAGE": "en", **(environ or {})}, **options)
        self._network.processes.append(process)
        return process

    def here(self, do: Callable[[], T]) -> T:
        """Do something with the network that this machine has."""
        answers: list[T] = []
        problems: list[BaseException] = []

        def move_and_do() -> None:
            try:
                with Path(f"/run/netns/{self.name}").open() as namespace:
                    moved = ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET)
                    assert moved == 0, os.strerror(ctypes.get_errno())
                answers.append(do())
            except BaseException as error:  # it is raised in the test's own thread
                problems.append(error)

        thread = threading.Thread(target=move_and_do)  # a namespace is a thread's
        thread.start()
        thread.join()
        if problems:
            raise problems[0]
        return answers[0]

    def can_connect(self, address: str, port: int) -> bool:
        import socket

        def connect() -> bool:
            with suppress(OSError), socket.create_connection((address, port), timeout=2):
                return True
            return False

        return self.here(connect)


@dataclass
class Network:
    """Four machines around a router."""

    name: str = field(default_factory=lambda: f"bili-{os.getpid()}-{secrets.token_hex(2)}")
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)
    machines: dict[str, Machine] = field(default_factory=dict)

    @property
    def router(self) -> str:
        return f"{self.name}-router"

    def build(self, *names: str) -> None:
        ip("netns", "add", self.router)
        ip("-n", self.router, "link", "set", "lo", "up")
        for number, name in enumerate(names, 1):
            self.machines[name] = Machine(self, name, number)
            self.machines[name].plug_in(self.router, number)
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        subprocess.run(["ip", "netns", "exec", self.router, "sh", "-c", forward], check=True)

    def cut(self, one: str, other: str) -> None:
        """Let the router swallow what goes from one machine to the other, and back."""
        for source, target in ((one, other), (other, one)):
            ip("-n", self.router, "rule", "add", *self._between(source, target), "blackhole")

    def heal(self, one: str, other: str) -> None:
        for source, target in ((one, other), (other, one)):
            ip("-n", self.router, "rule", "del", *self._between(source, target), "blackhole")

    def _between(self, source: str, target: str) -> list[str]:
        return ["from", self.machines[source].address, "to", self.machines[target].address, "priority", "10"]

    def pull_the_plug(self, name: str) -> None:
        ip("-n", self.router, "link", "set", self.machines[name].cable, "down")

    def plug_in_again(self, name: str) -> None:
        ip("-n", self.router, "link", "set", self.machines[name].cable, "up")

    def remove(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for namespace in (*(machine.name for machine in self.machines.values()), self.router):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


@dataclass
class Worker:
    """run.py on a machine of its own, with a disk of its own."""

    name: str
    log: Path
    downloads: Path
    process: subprocess.Popen[Any]

    def output(self) -> str:
        return self.log.read_text("utf-8", errors="replace")

    def says(self, text: str, seconds: float = 90) -> float:
        """Wait until it has said something; return when."""
        wait_until(f"{self.name} says {text!r}", lambda: text in self.output(), seconds)
        return time.monotonic()

    def videos(self) -> list[Path]:
        return [path for path in self.downloads.rglob("*.mp4") if ".parts" not in path.parts]


class NetworkFarm:
    """Engine and server on one machine, the site on another, each worker on its own."""

    def __init__(self, network: Network, folder: Path, bytes_per_second: int) -> None:
        self.network = network
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.server = network.machines["server"]
        self._start_site(bytes_per_second)
        self._start_engine()
        self.log = folder / "server.log"
        with self.log.open("ab") as output:
            self.server.start(
                *(sys.executable, "web_server.py", "--host", self.server.address, "--port", str(SERVER_PORT)),
                environ={
                    "REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{ENGINE_PORT}/0",
                    "BILI_TOKEN": self.token,
                    "BILI_LEASE_SECONDS": str(LEASE_SECONDS),
                    "BILI_AFFINITY_SECONDS": "0",
                    "BILI_RATE_PER_ADDRESS": "0",
                    "BILI_DATA_DIR": str(folder / "server"),
                    **self.site_environ,
                },
                stdout=output,
                stderr=output,
            )
        wait_until("the server serves", self._serves, 30)

    def _start_site(self, bytes_per_second: int) -> None:
        machine = self.network.machines["site"]
        command = [sys.executable, "-m", "demo.site", "--cache", str(DEFAULT_CACHE), "--host", machine.address]
        site = machine.start(
            *(*command, "--rate", str(bytes_per_second), "--end-with-stdin"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        words = site.stdout.readline().split()
        assert words[:1] == ["ready"], words
        addresses = dict(word.split("=", 1) for word in words[1:])
        self.site_environ = {
            f"BILI_{name.upper()}_URL": addresses[name] for name in ("web", "api", "passport", "short")
        }
        self.site_environ["BILI_MEDIA_HOSTS"] = addresses["media"]

    def _start_engine(self) -> None:
        lines = dict(line.split(" ", 1) for line in embedded_valkey.CONFIG.format(password=PASSWORD).splitlines())
        for name in ("unixsocket", "unixsocketperm"):
            del lines[name]
        lines |= {"port": str(ENGINE_PORT), "bind": "127.0.0.1", "dir": str(self.folder)}
        config = self.folder / "engine.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        self.server.start(engine_binary(), str(config), stdout=subprocess.DEVNULL)
        wait_until("the engine listens", lambda: self.server.can_connect("127.0.0.1", ENGINE_PORT), 20)

    def _serves(self) -> bool:
        with suppress(OSError):
            return self.ask("/healthz") is not None
        return False

    def ask(self, path: str, body: Any = None) -> Any:
        """Ask the server from its own machine."""

        def call() -> Any:
            with closing(http.client.HTTPConnection(self.server.address, SERVER_PORT, timeout=10)) as connection:
                headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
                content = None if body is None else json.dumps(body)
                connection.request("GET" if body is None else "POST", path, content, headers)
                answer = connection.getresponse()
                assert answer.status == 200, (answer.status, answer.read())
                return json.loads(answer.read())

        return self.server.here(call)

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = self.ask("/status")["jobs"]
        return counts

    def worker(self, name: str, **more: str) -> Worker:
        own = self.folder / name
        own.mkdir()
        (own / "working.json").write_text('{"stop": 1, "count": 1}')
        log = own / "log"
        with log.open("ab") as output:
            process = self.network.machines[name].start(
                *(sys.executable, "run.py"),
                environ={
                    "BILI_SERVER_URL": f"http://{self.server.address}:{SERVER_PORT}",
                    "BILI_TOKEN": self.token,
                    "BILI_WORKER": name,
                    "BILI_DATA_DIR": str(own / "data"),
                    "BILI_DOWNLOAD_DIR": str(own / "Download"),
                    "BILI_WORKING_FILE": str(own / "working.json"),
                    **more,
                    "BILI_API_INTERVAL": "0",
                    **self.site_environ,
                },
                stdout=output,
                stderr=output,
            )
        return Worker(name, log, own / "Download", process)

    def server_says(self, text: str, seconds: float = 90) -> float:
        wait_until(f"the server says {text!r}", lambda: text in self.log.read_text(), seconds)
        return time.monotonic()

    def assert_each_once(self, pages: int) -> list[dict[str, Any]]:
        """Assert that so many pages are recorded, each once, and that nothing else is anywhere."""
        wanted = {"ready": 0, "leased": 0, "delayed": 0, "done": pages, "dead": 0}
        wait_until("everything is done", lambda: self.counts() == wanted, 120)
        records: list[dict[str, Any]] = self.ask("/success?limit=100")["items"]
        assert len({record["url"] for record in records}) == len(records) == pages
        return records


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.build("server", "site", "a", "b")
        yield network
    finally:
        network.remove()
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
        assert network.name not in left


@pytest.fixture
def farm(network: Network, tmp_path: Path) -> NetworkFarm:
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())
    return NetworkFarm(network, tmp_path, MIB)


def no_traceback(farm: NetworkFarm, *workers: Worker) -> None:
    for text in (farm.log.read_text(), *(worker.output() for worker in workers)):
        assert "Traceback" not in text, text


def test_workers_reach_the_server_and_the_site_and_nothing_else(farm: NetworkFarm) -> None:
    for name in ("a", "b"):
        machine = farm.network.machines[name]
        assert machine.can_connect(farm.server.address, SERVER_PORT)
        assert not machine.can_connect(farm.server.address, ENGINE_PORT)
        assert not machine.can_connect("127.0.0.1", ENGINE_PORT)
        assert not machine.can_connect("127.0.0.1", SERVER_PORT)
    assert farm.server.can_connect("127.0.0.1", ENGINE_PORT), "it is there, for its own machine"
    farm.ask("/add_url", {"urls": [video("five-pages").bvid]})
    workers = [farm.worker(name) for name in ("a", "b")]
    farm.assert_each_once(5)
    no_traceback(farm, *workers)


def test_a_worker_that_is_cut_off_stops_by_itself_and_another_one_finishes_its_job(farm: NetworkFarm) -> None:
    farm.ask("/add_url", {"urls": [video("large-a").bvid]})
    a = farm.worker("a", BILI_MAX_SPEED="1M")
    wait_until("a downloads", lambda: any(job.get("chunks") for job in jobs_of(farm, "a")), 60)
    b = farm.worker("b")
    b.says("Running")
    farm.network.cut("a", "server")
    assert not farm.network.machines["a"].can_connect(farm.server.address, SERVER_PORT), "it is cut off"
    stopped = a.says("its lease ran out before it could be renewed", LEASE_SECONDS + 10)
    assert f"leased 1 to b: {video('large-a').bvid}" not in farm.log.read_text(), "b began before a had stopped"
    taken = farm.server_says(f"leased 1 to b: {video('large-a').bvid}")
    assert stopped < taken
    (record,) = farm.assert_each_once(1)
    assert record["worker"] == "b"
    assert len(b.videos()) == 1 and a.videos() == []
    said = len(a.output())
    farm.network.heal("a", "server")
    wait_until("a is back", lambda: "answers again" in a.output()[said:] or is_seen(farm, "a"), 40)
    assert farm.assert_each_once(1) == [record]
    assert a.process.poll() is None and a.videos() == []
    farm.ask("/add_url", {"urls": [video("plain").bvid]})
    farm.assert_each_once(2)
    no_traceback(farm, a, b)


def test_a_worker_that_finishes_while_it_is_cut_off_gets_no_second_record_in(farm: NetworkFarm) -> None:
    """It has the file and cannot tell; when it can, another one has done the job."""
    farm.ask("/add_url", {"urls": [video("plain").bvid]})
    a = farm.worker("a")
    farm.server_says("expanded")
    farm.network.cut("a", "server")
    a.says("cannot be reached")
    wait_until("a has the file", a.videos, 60)
    b = farm.worker("b")
    (record,) = farm.assert_each_once(1)
    assert record["worker"] == "b"
    farm.network.heal("a", "server")
    a.says("its lease has moved on", 90)
    assert farm.assert_each_once(1) == [record], "the late one changes nothing"
    no_traceback(farm, a, b)


@pytest.mark.parametrize("how", ["router", "cable"])
def test_a_server_that_nobody_reaches_for_longer_than_a_lease_loses_nothing(farm: NetworkFarm, how: str) -> None:
    names = ("large-a", "large-b", "five-pages", "plain")
    farm.ask("/add_url", {"urls": [video(name).bvid for name in names]})
    workers = [farm.worker(name) for name in ("a", "b")]
    wait_until("both work", lambda: jobs_of(farm, "a") and jobs_of(farm, "b"), 60)
    if how == "cable":
        farm.network.pull_the_plug("server")
    else:
        farm.network.cut("a", "server")
        farm.network.cut("b", "server")
    wait_until("its leases run out", lambda: farm.counts()["leased"] == 0, LEASE_SECONDS * 3)
    for worker in workers:
        worker.says("cannot be reached")
    if how == "cable":
        farm.network.plug_in_again("server")
    else:
        farm.network.heal("a", "server")
        farm.network.heal("b", "server")
    farm.assert_each_once(8)
    assert sum(len(worker.videos()) for worker in workers) >= 8
    no_traceback(farm, *workers)


def jobs_of(farm: NetworkFarm, name: str) -> list[dict[str, Any]]:
    """Return what a worker said last of its jobs."""
    found = [worker for worker in farm.ask("/status")["workers"] if worker["worker"] == name]
    return list(found[0].get("jobs", ())) if found else []


def is_seen(farm: NetworkFarm, name: str) -> bool:
    return any(worker["worker"] == name and worker["seen_seconds"] < 2 for worker in farm.ask("/status")["workers"])
