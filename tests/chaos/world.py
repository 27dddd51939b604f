"""The processes of a chaos run: the site, the engine, the servers, the machines with their workers, the relay."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psutil

from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from model import MIB
from tests.conftest import engine_binary
from tests.farm import ROOT, free_port, wait_until
from tests.relay import Relay

LEASE_SECONDS = 6.0
AFFINITY_SECONDS = 5.0
RESTART_SECONDS = 1.0
NEW_SECONDS = 20.0
USER = "user"
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

Engine = Literal["embedded", "own"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is to be."""

    seed: int
    folder: Path
    workers: int = 20
    servers: int = 2
    videos: int = 2000
    large: int = 6
    seconds: float = 180.0
    drain_seconds: float = 300.0
    engine: Engine = "own"
    """``own`` is a Valkey that the nemesis keeps away for a while; the embedded one is back with the next request."""
    rate_bytes_per_second: float = 4.0 * MIB
    """Of each connection to the CDN, so that a large video takes long enough to be broken in the middle."""
    pace_seconds: float = 0.8
    """Between two deeds of the nemesis, on average."""
    shards: int = 1
    lease_seconds: float = LEASE_SECONDS
    fails_over: bool = False
    """Whether each worker knows all servers, and goes from one to another by itself."""


def _die_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Program:
    """Something that is started, killed, stopped and started again; all its output goes into one file."""

    def __init__(self, name: str, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self._command, self._environ = command, environ
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self.is_stopped = False
        self.is_down = False
        """Killed, and not to be started before its time."""

    def start(self) -> None:
        with self.log.open("ab") as output:
            # It must not outlive this run, whatever ends that: see prctl(2).
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                preexec_fn=_die_with_parent,
            )
        self.starts += 1
        self._started_at = now()
        self.is_stopped = self.is_down = False

    @property
    def is_new(self) -> bool:
        """Tell whether it was started so lately that it may not yet mind signals."""
        return now() - self._started_at < NEW_SECONDS

    def start_where_ended(self) -> None:
        """Start it where it has ended by itself, as a service manager does."""
        if not self.runs and not self.is_down and now() - self._started_at > RESTART_SECONDS:
            self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; tell whether there was anybody to get it."""
        if not self.runs:
            return False
        assert self._process is not None
        self._process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.is_stopped = number == signal.SIGSTOP
        return True

    def kill(self) -> bool:
        """Kill it, and wait until it is gone."""
        if not self.signal(signal.SIGKILL):
            return False
        assert self._process is not None
        self._process.wait()
        return True

    def wait(self, seconds: float) -> int | None:
        """Return its exit status, None where it has not ended in time."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


@dataclass(slots=True)
class Machine:
    """A machine with one worker: folders of its own, and a door of the relay through which it reaches a server."""

    name: str
    folder: Path
    program: Program
    home: int
    """The number of its server."""
    switches: bool
    """Whether it goes to another server while its own is away."""
    is_gone: bool = False
    is_busy: bool = False
    """Something is being done to it, and will be undone."""
    steering: dict[str, int] = field(default_factory=dict)

    @property
    def downloads(self) -> Path:
        return self.folder / "Download"

    def steer(self, stop: int, count: int) -> None:
        """Write working.json as an editor does that replaces the file."""
        self.steering = {"stop": stop, "count": count}
        draft = self.folder / "working.json.new"
        draft.write_text(json.dumps(self.steering), "utf-8")
        draft.replace(self.folder / "working.json")


class World:
    """``with World(options) as world``: everything runs; whatever happens inside, nothing is left of it afterwards."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = options.folder
        self.machines: list[Machine] = []
        self.servers: list[Program] = []
        self.ports: list[int] = []
        self.engine: Program | None = None
        self.site: SiteProcess
        self.relay: Relay
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> World:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        options = self.options
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        crowd = ("--crowd", str(options.videos), "--crowd-large", str(options.large))
        self.site = SiteProcess(DEFAULT_CACHE, *crowd, "--rate", str(options.rate_bytes_per_second))
        self._undo.append(self.site.close)
        if options.engine == "own":
            self._start_engine()
        for number in range(options.servers):
            port = free_port()
            self.ports.append(port)
            command = [sys.executable, str(ROOT / "web_server.py"), "--port", str(port)]
            log = self.folder / f"server-{number}.log"
            server = Program(f"server-{number}", command, self._environ(BILI_DATA_DIR=str(self.folder / "queue")), log)
            self.servers.append(server)
            self._undo.append(lambda server=server: _end(server))  # type: ignore[misc]
            server.start()
            wait_until(f"{server.name} serves", lambda port=port: self.serves(port))  # type: ignore[misc]
        self.relay = Relay(self.ports[0], USER, self.folder / "history.jsonl")
        self.relay.__enter__()
        self._undo.append(lambda: self.relay.__exit__(None, None, None))

    def _start_engine(self) -> None:
        port = free_port()
        folder = self.folder / "valkey"
        folder.mkdir()
        command = [engine_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]
        self.engine = Program("valkey", command, dict(os.environ), self.folder / "valkey.log")
        self._undo.append(lambda: _end(self.engine))
        self.engine.start()
        self.redis_url = f"redis://127.0.0.1:{port}/0"

    def _environ(self, **more: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BILI_", "REDIS_")) and not name.lower().endswith("_proxy")
        }
        own = {"REDIS_URL": self.redis_url} if self.engine is not None else {}
        return {
            **kept,
            **self.site.environ(),
            **own,
            "LANGUAGE": "en",
            "BILI_API_INTERVAL": "0",
            "BILI_RATE_PER_ADDRESS": "0",
            "BILI_LEASE_SECONDS": str(self.options.lease_seconds),
            "BILI_AFFINITY_SECONDS": str(AFFINITY_SECONDS),
            "BILI_SHARDS": str(self.options.shards),
            **more,
        }

    def add_machine(self, name: str, home: int, switches: bool, count: int) -> Machine:
        """Make a machine with folders of its own, and start its worker."""
        folder = self.folder / "machines" / name
        folder.mkdir(parents=True)
        doors = [self.relay.door(name, self.ports[home])]
        if self.options.fails_over:
            others = [port for number, port in enumerate(self.ports) if number != home]
            doors += [self.relay.door(f"{name}@{port}", port) for port in others]
        environ = self._environ(
            BILI_WORKER=name,
            BILI_SERVER_URL=",".join(f"http://127.0.0.1:{port}" for port in doors),
            BILI_DATA_DIR=str(folder / "data"),
            BILI_DOWNLOAD_DIR=str(folder / "Download"),
            BILI_WORKING_FILE=str(folder / "working.json"),
        )
        environ.pop("REDIS_URL", None)  # workers never speak to the engine
        program = Program(name, [sys.executable, str(ROOT / "run.py")], environ, folder / "log")
        machine = Machine(name, folder, program, home, switches)
        machine.steer(1, count)
        self.machines.append(machine)
        self._undo.append(lambda: _end(program))
        program.start()
        return machine

    # -------------------------------------------------------------------------------- looking

    @staticmethod
    def serves(port: int) -> bool:
        """Tell whether a server answers that it and its engine work."""
        try:
            return ask(port, "/healthz", 2.0) is not None
        except OSError:
            return False

    def ask(self, path: str) -> Any:
        """Return what one of the servers that run answers, past the relay."""
        for server, port in zip(self.servers, self.ports, strict=True):
            if server.runs and not server.is_stopped:
                try:
                    return ask(port, path, 15.0)
                except OSError:
                    continue
        raise OSError("no server answers")

    def counts(self) -> dict[str, int] | None:
        """Return the jobs by state, None while nobody tells."""
        try:
            counts: dict[str, int] = self.ask("/status")["jobs"]
            return counts
        except OSError:
            return None

    def everything(self, path: str) -> list[dict[str, Any]]:
        """Return all items of /success or /failed."""
        items: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            answer = self.ask(f"{path}?limit=500&after={quote(after)}")
            items += answer["items"]
            after = answer["next"]
        return items

    def valkey_pid(self) -> int:
        """Return the pid of the engine, 0 where none runs now."""
        if self.engine is not None:
            return self.engine.pid if self.engine.runs else 0
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "valkey-server":
                try:
                    if str(self.folder) in process.cwd():
                        return int(process.pid)
                except psutil.Error:
                    continue
        return 0

    def supervise(self) -> None:
        """Start servers that refused to start because the engine was away."""
        for server in self.servers:
            server.start_where_ended()

    def steer_doors(self) -> None:
        """Send each machine to its own server or, where it switches, to one that runs."""
        running = [number for number, server in enumerate(self.servers) if server.runs and not server.is_stopped]
        for machine in self.machines:
            home = machine.home
            if machine.switches and home not in running and running:
                home = running[0]
            self.relay.retarget(self.ports[home], machine.name)
        if running:
            self.relay.retarget(self.ports[running[0]], USER)

    def left_behind(self) -> list[str]:
        """Return the command lines of processes that work in this run's folder, or name it."""
        return [
            f"{pid}: {words[:200]}"
            for pid, folder, words in processes()
            if str(self.folder) in folder + words and pid != os.getpid() and "tests.chaos" not in words
        ]

    def close(self) -> None:
        """End everything that was started."""
        for undo in reversed(self._undo):
            try:
                undo()
            except Exception as error:
                sys.stderr.write(f"while ending: {error!r}\n")
        self._undo.clear()


def _end(program: Program | None) -> None:
    if program is not None:
        program.kill()


def ask(port: int, path: str, seconds: float) -> Any:
    """Return what a server on this machine answers to a GET; raise OSError where it does not, or refuses."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=seconds) as answer:
            return json.load(answer)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(str(error)) from None


def merging_children(pid: int) -> list[int]:
    """Return the ffmpegs that merge for a worker now; much cheaper than to look at all processes.

    The one that a worker asks for its version when it starts is none: to kill that is to take ffmpeg away.
    """
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in path.read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if b"ffmpeg" in words[0] and b"-i" in words:
                    found.append(int(child))
        except OSError:
            continue
    return found


def processes() -> Iterator[tuple[int, str, str]]:
    """Yield pid, working directory and command line of every process."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            yield int(path.name), str((path / "cwd").readlink()), words
        except OSError:
            continue


def now() -> float:
    """Return the time as the history has it."""
    return time.monotonic()
