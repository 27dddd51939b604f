"""What Prometheus sees of a worker, and whether it lives; only where BILI_METRICS_ADDRESS says so.

The figures are those of the board and of what is known of the mirrors; a thread of its own answers, so that a worker
whose loop hangs is seen to hang.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from board import Board
from errors import UsageError
from i18n import _
from transfer import Health

TEXT = "text/plain; version=0.0.4; charset=utf-8"
STALL_SECONDS = 60.0
"""A worker whose loop has made no turn for so long does not live; it makes two a second."""
MOST_MIRRORS = 50

Label = tuple[str, str] | None


@contextmanager
def serving_metrics(
    address: str, board: Board, health: Health, free_bytes: Callable[[], int], clock: Callable[[], float]
) -> Iterator[None]:
    """Answer at ``address`` while inside; an empty one is nowhere. ``clock`` is that of the board's samples."""
    if not address:
        yield
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # of a client that asks nothing

        def do_GET(self) -> None:
            """Answer /metrics and /livez."""
            if self.path == "/metrics":
                self._answer(200, "\n".join(metrics(board, health, free_bytes)) + "\n")
            elif self.path == "/livez":
                lives = clock() - board.sampled_at < STALL_SECONDS
                self._answer(200 if lives else 503, "ok\n" if lives else "the worker hangs\n")
            else:
                self._answer(404, "/metrics and /livez\n")

        def _answer(self, status: int, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", TEXT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing: a look each few seconds is no news."""

    server = _listen(address, Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _listen(address: str, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    place = urlsplit(f"//{address}")
    try:
        server = ThreadingHTTPServer((place.hostname or "", place.port or 0), handler)
    except OSError as error:
        sentence = _("Cannot listen at {address}, which BILI_METRICS_ADDRESS names: {problem}")
        raise UsageError(sentence.format(address=address, problem=error.strerror or error)) from None
    server.daemon_threads = True
    return server


def metrics(board: Board, health: Health, free_bytes: Callable[[], int]) -> list[str]:
    """Return the lines, in the text format of Prometheus."""
    stages = Counter(view.stage for view in list(board.jobs.values()))
    lines = _lines("jobs", "gauge", "Jobs by stage.", {("stage", stage): n for stage, n in stages.items()})
    lines += _lines("state", "gauge", "What the worker does: one is 1.", {("state", board.state): 1})
    lines += _lines("done_total", "counter", "Pages finished since the start.", {None: board.done})
    failures: dict[Label, float] = {("kind", kind): count for kind, count in list(board.failures.items())}
    lines += _lines("failures_total", "counter", "Attempts failed since the start, by the kind of error.", failures)
    lines += _lines("dead_total", "counter", "Jobs that failed for good since the start.", {None: board.dead})
    lines += _lines(
        "received_bytes_total", "counter", "Bytes of streams since the start.", {None: board.received_bytes}
    )
    speed = round(board.speed_bytes_per_second)
    lines += _lines("speed_bytes_per_second", "gauge", "Over the last seconds.", {None: speed})
    with suppress(OSError):  # the disk is away
        lines += _lines("disk_free_bytes", "gauge", "Room in the download folder.", {None: free_bytes()})
    return lines + _mirror_lines(health, time.monotonic())


def _mirror_lines(health: Health, now: float) -> list[str]:
    hosts = list(health.hosts.items())[-MOST_MIRRORS:]
    known = [
        (("host", name), host)
        for name, host in hosts
        if host.active or host.estimate.is_known(now) or host.cooldown.until > now
    ]
    return [
        *_lines("mirror_connections", "gauge", "Open requests.", {label: host.active for label, host in known}),
        *_lines(
            "mirror_speed_bytes_per_second",
            "gauge",
            "Of one connection, as measured lately.",
            {label: round(host.estimate.bytes_per_second) for label, host in known if host.estimate.is_known(now)},
        ),
        *_lines(
            "mirror_first_byte_seconds",
            "gauge",
            "The wait for the first byte, as measured lately.",
            {label: host.estimate.first_byte_seconds for label, host in known if host.estimate.is_known(now)},
        ),
        *_lines(
            "mirror_failures",
            "gauge",
            "Failures in a row.",
            {label: host.cooldown.recent_failures(now) for label, host in known},
        ),
        *_lines(
            "mirror_cooldown_seconds",
            "gauge",
            "For so long it is left alone yet.",
            {label: max(0.0, host.cooldown.until - now) for label, host in known},
        ),
    ]


def _lines(name: str, kind: str, about: str, values: Mapping[Label, float]) -> list[str]:
    lines = [f"# HELP bili_worker_{name} {about}", f"# TYPE bili_worker_{name} {kind}"]
    for label, value in values.items():
        where = f'{{{label[0]}="{_escaped(label[1])}"}}' if label else ""
        lines.append(f"bili_worker_{name}{where} {value:.15g}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
