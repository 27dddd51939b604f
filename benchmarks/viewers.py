"""What people who look cost: leases a second of a server that knows 1,000 workers, with and without open dashboards.

Each lease is given back at once, so that the queue stays as it is. The workers keep their connections and beat every
five seconds, as they do: there are servers that open connections cost a little at every turn of their loop.

``python -m benchmarks.viewers``. Each viewer asks every two seconds for what changes of a page, as the page does.
"""

from __future__ import annotations

import argparse
import asyncio
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
BEAT_SECONDS = 5.0
"""As the server asks of a thousand workers."""
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


def status() -> dict[str, object]:
    """Return what a worker tells of itself: four downloads under way."""
    stream = {"name": "v80-7", "done_bytes": 5_000_000, "total_bytes": 90_000_000, "mirror": "upos-sz-mirrorcos.test"}
    streams = [stream | {"speed_bytes_per_second": 700_000}] * 2
    progress = [{"url": aid_to_bvid(7), "title": "标题" * 12, "stage": "downloading", "streams": streams}] * 4
    state = {"state": "running", "speed_bytes_per_second": 5_000_000, "working": {"stop": 1, "count": 4}}
    return state | {"disk_free_bytes": 10**11, "jobs": progress}


def fill(queue: Queue, jobs: int) -> None:
    """Put jobs and workers into the queue."""
    for first in range(0, jobs, 2000):
        queue.add([aid_to_bvid(10_000 + number) for number in range(first, first + 2000)])
    for number in range(WORKERS):
        queue.heartbeat(f"machine-{number:04d}", [], status())


async def beat(port: int, number: int) -> None:
    """Be a worker: keep a connection, and beat."""
    body = json.dumps({"worker": f"machine-{number:04d}", "jobs": [], "state": status()}).encode()
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head = f"POST /heartbeat HTTP/1.1\r\n{fields}"
    await asyncio.sleep(BEAT_SECONDS * number / WORKERS)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(head.encode() + b"\r\n" + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        await asyncio.sleep(BEAT_SECONDS)


async def beat_all(port: int) -> None:
    """Be all workers, until this process is ended."""
    await asyncio.gather(*(beat(port, number) for number in range(WORKERS)))


@contextlib.contextmanager
def workers(port: int) -> Iterator[None]:
    """Have all workers connected, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.viewers", "--workers", str(port)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        time.sleep(BEAT_SECONDS + 3)  # all have beaten once
        assert process.poll() is None
        try:
            yield
        finally:
            process.terminate()


def lease_rate(port: int) -> float:
    """Return how many leases the server gives in a second to clients that do nothing but ask."""
    counts = [0] * CLIENTS
    ended = time.monotonic() + SECONDS

    def lease(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.monotonic() < ended:
            connection.request("GET", f"/get_url?worker=client-{index}")
            (found,) = json.loads(connection.getresponse().read())
            body = json.dumps({"url": found["url"], "token": found["token"]})
            connection.request("POST", "/release", body, {"Content-Type": "application/json"})
            assert connection.getresponse().read()
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
    parser = argparse.ArgumentParser(description="Leases a second, with and without open dashboards.")
    parser.add_argument("--workers", type=int, metavar="PORT", help="used by itself")
    arguments = parser.parse_args()
    if arguments.workers:
        asyncio.run(beat_all(arguments.workers))
        return 0
    with tempfile.TemporaryDirectory(prefix="viewers-") as name:
        folder = Path(name)
        with served(folder) as port, contextlib.closing(open_queue(Settings(data_dir=folder))) as queue:
            fill(queue, 20_000)
            alone, looked_at, waited = [], [], []
            with workers(port):
                for _unused in range(ROUNDS):
                    alone.append(lease_rate(port))
                    with watched(port) as times:
                        looked_at.append(lease_rate(port))
                    waited += times
            assert queue.counts().ready + queue.counts().leased == 20_000
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
