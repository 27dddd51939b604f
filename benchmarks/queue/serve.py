"""``python -m benchmarks.queue.serve KIND PORT REDIS_URL``: the queue's application behind one of several servers.

``product`` is web_server.py's own. ``bare-waitress`` is the least that Flask can do: one route, one call of the Lua.
The adapters for RSGI and ASGI let the loop have all of a body before a thread of the application gets it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import flask

import web_server
from config import Settings
from log_setup import start_logging
from redisConnect import Queue, open_queue
from sources import lease_fields
from web import create_app

THREADS = 8
LEASE_SECONDS = 3600.0
"""So that no lease runs out while something is measured."""

Application = Callable[..., Iterable[bytes]]


def settings(url: str) -> Settings:
    """Return the settings of all that is measured."""
    lease_seconds = float(os.environ.get("QUEUE_LEASE_SECONDS", LEASE_SECONDS))
    return Settings(data_dir=Path(".data"), redis_url=url, lease_seconds=lease_seconds)


def product(url: str) -> Application:
    """Return the application as it is."""
    chosen = settings(url)
    start_logging(chosen)
    return create_app(chosen, open_queue(chosen))


def bare(url: str) -> Application:
    """Return the least of a queue server: no checks, no token, no log."""
    queue: Queue = open_queue(settings(url))
    app = flask.Flask("bare")

    @app.get("/get_url")
    def get_url() -> Any:
        asked = flask.request.args
        leases = queue.lease(asked["worker"], int(asked["count"]), (), asked["request"])
        return flask.jsonify([lease_fields(lease) for lease in leases])

    return app


def called(application: Application, environ: dict[str, str], body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """Call a WSGI application as the adapters do."""
    started: list[Any] = []
    environ |= {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "SCRIPT_NAME": ""}
    plain = {"wsgi.input": BytesIO(body), "wsgi.errors": sys.stderr, "wsgi.url_scheme": "http", "wsgi.version": (1, 0)}
    told = {"wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False, "REMOTE_ADDR": "127.0.0.1"}
    parts = application(environ | plain | told, lambda *what: started.extend(what))
    content = b"".join(parts)
    return int(started[0][:3]), started[1], content


def cgi_name(name: str) -> str:
    """Return a field's name as WSGI has it."""
    upper = name.upper().replace("-", "_")
    return upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{upper}"


def as_asgi(application: Application) -> Callable[..., Any]:
    """Return a WSGI application as an ASGI one."""
    pool = ThreadPoolExecutor(THREADS)

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        environ = {cgi_name(name.decode("latin-1")): value.decode("latin-1") for name, value in scope["headers"]}
        environ |= {"REQUEST_METHOD": scope["method"], "PATH_INFO": scope["path"]}
        environ["QUERY_STRING"] = scope["query_string"].decode()
        loop = asyncio.get_running_loop()
        status, fields, content = await loop.run_in_executor(pool, called, application, environ, body)
        pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": content})

    return asgi


def as_rsgi(application: Application) -> Callable[..., Any]:
    """Return a WSGI application as an RSGI one."""
    pool = ThreadPoolExecutor(THREADS)

    async def rsgi(scope: Any, protocol: Any) -> None:
        body = await protocol()
        environ = {cgi_name(name): value for name, value in scope.headers.items()}
        environ |= {"REQUEST_METHOD": scope.method, "PATH_INFO": scope.path, "QUERY_STRING": scope.query_string}
        loop = asyncio.get_running_loop()
        protocol.response_bytes(*await loop.run_in_executor(pool, called, application, environ, body))

    return rsgi


def serve_product(make: Callable[[], Application], port: int) -> None:
    """Serve as web_server.py does."""
    web_server.listen(make(), "127.0.0.1", port).run()


def serve_waitress(make: Callable[[], Application], port: int) -> None:
    """Serve with waitress, tuned so that slow connections do not deny everybody."""
    importlib.import_module("waitress").serve(
        make(), host="127.0.0.1", port=port, threads=THREADS, connection_limit=5000, channel_timeout=10,
        cleanup_interval=3, asyncore_use_poll=True, ident=None,
    )  # fmt: skip


def serve_granian(make: Callable[[], Application], port: int, interface: str = "WSGI") -> None:
    """Serve with granian: a process in Rust around one of Python."""
    module = importlib.import_module("granian")
    constants = importlib.import_module("granian.constants")
    options = {"blocking_threads": 4} if interface == "WSGI" else {}
    module.Granian(
        "app", address="127.0.0.1", port=port, interface=constants.Interfaces[interface], workers=1, websockets=False,
        workers_kill_timeout=3, log_enabled=False, **options,
    ).serve(
        target_loader=lambda *_unused: make() if interface == "WSGI" else as_rsgi(make()), wrap_loader=False
    )  # fmt: skip


def serve_uvicorn(make: Callable[[], Application], port: int) -> None:
    """Serve with uvicorn, httptools and uvloop where they are installed."""
    importlib.import_module("uvicorn").run(
        as_asgi(make()),
        host="127.0.0.1",
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        backlog=2048,
    )


def serve_hypercorn(make: Callable[[], Application], port: int) -> None:
    """Serve with hypercorn."""
    config = importlib.import_module("hypercorn.config").Config()
    config.bind = [f"127.0.0.1:{port}"]
    asyncio.run(importlib.import_module("hypercorn.asyncio").serve(as_asgi(make()), config))


def serve_gunicorn(make: Callable[[], Application], port: int) -> None:
    """Serve with gunicorn's threads: one process of them beside its parent."""
    base = importlib.import_module("gunicorn.app.base").BaseApplication

    class Served(base):  # type: ignore[misc, valid-type]
        def load_config(self) -> None:
            chosen = {"bind": f"127.0.0.1:{port}", "threads": THREADS, "worker_class": "gthread"}
            for name, value in (chosen | {"worker_connections": 4000}).items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return make()

    Served().run()


def serve_cheroot(make: Callable[[], Application], port: int) -> None:
    """Serve with cheroot."""
    module = importlib.import_module("cheroot.wsgi")
    module.Server(("127.0.0.1", port), make(), numthreads=THREADS, request_queue_size=2000).start()


def serve_rsgi(make: Callable[[], Application], port: int) -> None:
    """Serve with granian, whose loop has all of a body first."""
    serve_granian(make, port, "RSGI")


KINDS: dict[str, tuple[Callable[[Callable[[], Application], int], None], Callable[[str], Application], str]] = {
    "product": (serve_product, product, ""),
    "waitress": (serve_waitress, product, "waitress"),
    "bare-waitress": (serve_waitress, bare, "waitress"),
    "granian": (serve_granian, product, "granian"),
    "granian-rsgi": (serve_rsgi, product, "granian"),
    "uvicorn": (serve_uvicorn, product, "uvicorn"),
    "hypercorn": (serve_hypercorn, product, "hypercorn"),
    "gunicorn": (serve_gunicorn, product, "gunicorn"),
    "cheroot": (serve_cheroot, product, "cheroot"),
}
"""How it is served, what, and which package that needs."""


if __name__ == "__main__":
    kind, at_port, at_url = sys.argv[1:]
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    start, make_application, _package = KINDS[kind]
    start(lambda: make_application(at_url), int(at_port))
