"""The queue's side: the real scripts in a real Valkey, under a virtual clock, and the real server without a socket."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import redis
from redis.client import Pipeline
from redis.exceptions import NoScriptError

from config import Settings
from redisConnect import Queue
from web import create_app

CLOCK = re.compile(r"local function now\(\)\n.*?\nend\n", re.DOTALL)
GIVEN_CLOCK = "local NOW = tonumber(table.remove(ARGV))\n"
VIRTUAL_CLOCK = "local function now()\n  return NOW\nend\n"
"""The last argument of each call is the time; it is taken away before a script counts its arguments."""

EPOCH_MS = 1_700_000_000_000


class Wire:
    """A connection that speaks the protocol itself: a third of the time that the driver takes."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: Any) -> Any:
        """Send a command; return its answer as texts, numbers and lists."""
        pieces = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode("utf-8", "replace")
            pieces.append(b"$%d\r\n%b\r\n" % (len(data), data))
        self._socket.sendall(b"".join(pieces))
        return self._read()

    def _read(self) -> Any:
        line = self._file.readline()
        kind, text = line[:1], line[1:-2]
        if kind == b"$":
            size = int(text)
            return None if size < 0 else self._file.read(size + 2)[:-2].decode("utf-8", "replace")
        if kind == b":":
            return int(text)
        if kind == b"*":
            return None if text == b"-1" else [self._read() for _unused in range(int(text))]
        if kind == b"+":
            return text.decode()
        error = NoScriptError if text.startswith(b"NOSCRIPT") else redis.ResponseError
        raise error(text.decode("utf-8", "replace"))


class VirtualRedis(redis.Redis):
    """The driver with the clock of the simulation, and with faults: away, or an answer lost after the deed."""

    def __init__(self, path: str, clock_ms: Callable[[], int], edit: Callable[[str], str]) -> None:
        self.wire = Wire(path)
        self._clock_ms = clock_ms
        self._edit = edit
        self.is_away = False
        self.loses_answer: Callable[[], bool] = lambda: False
        super().__init__(unix_socket_path=path, decode_responses=True, protocol=2)

    def register_script(self, script: Any) -> Any:
        text = CLOCK.sub(VIRTUAL_CLOCK, script)
        assert "'TIME'" not in text, "a script asks for the time beside now()"
        return super().register_script(self._edit(GIVEN_CLOCK + text))

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.is_away:
            raise redis.ConnectionError("the engine is away")
        name = args[0]
        options.pop("keys", None)  # for the driver's own cache
        if name == "TIME":
            return self._clock_ms() // 1000, self._clock_ms() % 1000 * 1000
        if name != "EVALSHA":
            answer = self.wire.ask(*str(name).split(), *args[1:])
            callback = self.response_callbacks.get(name)
            return callback(answer, **options) if callback else answer
        answer = self.wire.ask(*args, self._clock_ms())
        if self.loses_answer():
            raise redis.ConnectionError("the connection was lost before the answer came")
        return answer

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        pipeline = OneByOne(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.client = self
        return pipeline

    def close(self) -> None:
        self.wire.close()
        super().close()


class OneByOne(Pipeline):
    """A transaction where nobody else is: its commands one after the other."""

    client: VirtualRedis

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack, self.command_stack = self.command_stack, []
        return [self.client.execute_command(*entry[0], **entry[1]) for entry in stack]


class Server:
    """The real application, called as a WSGI server calls it."""

    def __init__(self, redis_client: VirtualRedis, settings: Settings) -> None:
        self.redis = redis_client
        self.queue = Queue(redis_client, settings, place="here")
        self._app = create_app(settings, self.queue)
        self._environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "127.0.0.1:8080",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def handle(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content of the answer to a request."""
        content = b"" if body is None else json.dumps(body).encode()
        environ = {
            **self._environ,
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": urlencode(query or {}),
            "wsgi.input": io.BytesIO(content),
        }
        if body is not None:
            environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(content))}
        started: list[Any] = []
        pieces = self._app.wsgi_app(environ, lambda status, headers, error=None: started.extend((status, headers)))
        answer = b"".join(pieces)
        pieces.close()  # type: ignore[attr-defined]
        return int(started[0][:3]), dict(started[1]), answer


class Engine:
    """A Valkey, and a server for each kind of settings that seeds have had so far."""

    def __init__(self, path: str) -> None:
        self.clock_ms: Callable[[], int] = lambda: EPOCH_MS
        self.edit: Callable[[str], str] = lambda text: text
        self._path = path
        self._servers: dict[Any, Server] = {}
        self.wire = Wire(path)
        self._folder = Path(tempfile.gettempdir())

    def server(self, settings: Settings, break_name: str, edit: Callable[[str], str]) -> Server:
        """Return a server with an empty queue."""
        kind = (settings.lease_seconds, settings.affinity_seconds, settings.shards, break_name)
        if kind not in self._servers:
            self._servers[kind] = Server(VirtualRedis(self._path, lambda: self.clock_ms(), edit), settings)
        server = self._servers[kind]
        server.redis.is_away, server.redis.loses_answer = False, lambda: False
        self.wire.ask("FLUSHALL")
        return server

    def close(self) -> None:
        self.wire.close()
        for server in self._servers.values():
            server.queue.close()
