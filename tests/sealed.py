"""A server over TLS that speaks what joining needs, and writes down what reached it; another one is in the middle."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certificates import Certificate
from request_server import RequestServer

TOKEN = "bili_worker_canary-token-of-this-machine"
CODE = "ABCD-EF01"
JOBS = {"ready": 3, "leased": 0, "delayed": 0, "done": 0, "dead": 0}


@dataclass
class Application:
    """Answers /status and POST /join, whose code is good once."""

    codes: set[str] = field(default_factory=lambda: {CODE})
    workers: list[str] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    answer: tuple[str, bytes] | None = None
    """In place of every other one, where a test sets it: status and content."""

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.seen.append(environ)
        status, content = self.answer or self._answer(environ)
        start(status, [("Content-Type", "application/json")])
        return [content]

    def _answer(self, environ: dict[str, Any]) -> tuple[str, bytes]:
        if environ["PATH_INFO"] == "/join":
            told = json.loads(environ["wsgi.input"].read())
            if told["code"] not in self.codes:
                return "403 Forbidden", b'{"error": "wrong code"}'
            self.codes.remove(told["code"])
            self.workers.append(told["worker"])
            return "200 OK", json.dumps({"token": TOKEN, "role": "worker", "id": "0123456789abcdef"}).encode()
        return "200 OK", json.dumps({"jobs": JOBS, "items": [], "next_due_seconds": None, "redriven": 2}).encode()

    @property
    def tokens(self) -> set[str]:
        """All that came as a token."""
        return {environ["HTTP_AUTHORIZATION"] for environ in self.seen if "HTTP_AUTHORIZATION" in environ}


@dataclass(frozen=True)
class Sealed:
    """A server that runs, its address and its certificate."""

    url: str
    application: Application
    certificate: Certificate | None

    @property
    def pin(self) -> str:
        """The pin of its certificate."""
        assert self.certificate is not None
        return self.certificate.pin


@contextlib.contextmanager
def serving(certificate: Path | None, key: Path | None = None) -> Iterator[Sealed]:
    """Run a server with the certificate and key in a file or two; without one, it has no TLS."""
    application, shown = Application(), Certificate(certificate, key or certificate) if certificate else None
    door = socket.create_server(("127.0.0.1", 0))
    server = RequestServer(application, [door], ssl_context=shown.context if shown else None)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        scheme = "https" if shown else "http"
        yield Sealed(f"{scheme}://127.0.0.1:{server.places[0][1]}", application, shown)
    finally:
        server.end()
        thread.join(20)
        assert not thread.is_alive()
