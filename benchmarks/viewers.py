"""What people who look cost: leases a second of a server that knows 1,000 workers, with and without open dashboards.

``python -m benchmarks.viewers``. Each viewer asks every two seconds for what changes of a page, as the page does.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.servers import free_port
from config import ROOT, Settings
from parse_ import aid_to_bvid
from redisConnect import Queue, open_queue

WORKERS = 1000
VIEWERS = 50
CLIENTS = 8
SECONDS = 6.0
ROUNDS = 3
PAGES = ("/?fragment", "/ui/machines?fragment", "/ui/jobs?fragment", "/ui/failures?fragment")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """A real server on a queue of its own."""
    port = free_port()
    environ = {"BILI_DATA_DIR": str(folder), "LANGUAGE": "en", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(ROOT / "web_server.py"), "--port", str(port)]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=environ, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 20
            while not answers(port):
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()


def answers(port: int) -> bool:
    """Tell whether the server is there."""
    try:
        return ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "/healthz")[0] == 200
    except OSError:
        return False


def ask(connection: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, str]:
    """Send a request over a connection that stays open; return the status and the ETag."""
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers.get("ETag", "")


def fill(queue: Queue, jobs: int) -> None:
    """Put jobs and workers into the queue, each worker with four downloads under way."""
    for first in range(0, jobs, 2000):
        queue.add([aid_to_bvid(10_000 + number) for number in range(first, first + 2000)])
    stream = {"name": "v80-7", "done_bytes": 5_000_000, "total_bytes": 90_000_000, "mirror": "upos-sz-mirrorcos.test"}
    streams = [stream | {"speed_bytes_per_second": 700_000}] * 2
    progress = [{"url": aid_to_bvid(7), "title": "标题" * 12, "stage": "downloading", "streams": streams}] * 4
    state = {"state": "running", "speed_bytes_per_second": 5_000_000, "working": {"stop": 1, "count": 4}}
    for number in range(WORKERS):
        queue.heartbeat(f"machine-{number:04d}", [], state | {"disk_free_bytes": 10**11, "jobs": progress})


def lease_rate(port: int) -> float:
    """Return how many leases the server gives in a second to clients that do nothing but ask."""
    counts = [0] * CLIENTS
    ended = time.monotonic() + SECONDS

    def lease(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.monotonic() < ended:
            assert ask(connection, f"/get_url?worker=client-{index}")[0] == 200
            counts[index] += 1

    threads = [threading.Thread(target=lease, args=(index,)) for index in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


@contextlib.contextmanager
def watched(port: int) -> Iterator[list[float]]:
    """Open dashboards; yields how long their requests took."""
    ended = threading.Event()
    times: list[float] = []

    def watch(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        tag = ""
        ended.wait(2.0 * index / VIEWERS)
        while not ended.is_set():
            began = time.monotonic()
            _status, tag = ask(connection, PAGES[index % len(PAGES)], **({"If-None-Match": tag} if tag else {}))
            times.append(time.monotonic() - began)
            ended.wait(max(0.0, 2.0 - (time.monotonic() - began)))

    threads = [threading.Thread(target=watch, args=(index,)) for index in range(VIEWERS)]
    for thread in threads:
        thread.start()
    yield times
    ended.set()
    for thread in threads:
        thread.join()


def main() -> int:
    """Measure by turns, and print the medians as JSON."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="viewers-") as name:
        folder = Path(name)
        with served(folder) as port, contextlib.closing(open_queue(Settings(data_dir=folder))) as queue:
            fill(queue, 80_000)
            alone, looked_at, waited = [], [], []
            for _unused in range(ROUNDS):
                alone.append(lease_rate(port))
                with watched(port) as times:
                    looked_at.append(lease_rate(port))
                waited += times
            assert queue.counts().ready > 0, "there was always something to lease"
    print(
        json.dumps(
            {
                "leases_per_second": round(statistics.median(alone)),
                "leases_per_second_with_viewers": round(statistics.median(looked_at)),
                "rounds": [[round(one) for one in rounds] for rounds in (alone, looked_at)],
                "viewer_requests": len(waited),
                "viewer_milliseconds": round(1000 * statistics.median(waited)),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
