"""``python -m benchmarks.queue.clients …``: processes that call, hold or work, apart from what is measured.

    hold PORT BODIES HEADS IDLE     keep so many half-sent bodies, half-open connections and idle ones open
    direct SOCKET SECONDS CLIENTS FILE    call the same command of Redis again and again, and say how often
    work PORT SECONDS WORKERS       be so many workers that behave, and say how long each call took

Raw sockets in one loop, so that they cost little; what they do cost is told with the figures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hiredis

HALF_BODY = (
    b'POST /ack HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"url": '
)
HALF_HEAD = b"POST /ack HTTP/1.1\r\nHost: local"
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
JOB_SECONDS = 60.0
"""For so long a simulated worker has a job, half as long to half as long again."""
BEAT_SECONDS = 20.0
PATIENCE_SECONDS = 20.0
"""A worker waits so long for an answer."""


# ------------------------------------------------------------------------------------------ those who hold


async def held(port: int, text: bytes) -> None:
    """Hold one connection, and take another one where the server lets it go."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text)
            while await reader.read(65536):
                pass
            writer.close()
        except OSError:
            pass
        await asyncio.sleep(0.2)


async def hold(port: int, bodies: int, heads: int, idle: int) -> None:
    """Hold them all, until this process is ended."""
    texts = [HALF_BODY] * bodies + [HALF_HEAD] * heads + [REQUEST] * idle
    random.shuffle(texts)
    tasks = []
    for text in texts:
        tasks.append(asyncio.create_task(held(port, text)))
        if len(tasks) % 50 == 0:
            await asyncio.sleep(0.01)
    await asyncio.sleep(1)
    print("held", flush=True)
    await asyncio.gather(*tasks)


# ------------------------------------------------------------------------------------------ those who call Redis


async def direct(path: str, seconds: float, clients: int, commands: list[list[str]]) -> None:
    """Send commands as quickly as they are answered; print how many were.

    One command alone is sent again and again, each client with a name of its own; of several each one is sent once.
    """
    began = time.monotonic()
    salt = random.randrange(10**9)
    counts: Counter[str] = Counter()
    following = itertools.repeat(commands[0]) if len(commands) == 1 else iter(commands)

    async def call(number: int) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        parser = hiredis.Reader(encoding="utf-8")
        for turn, command in enumerate(following):
            names = {"WORKER": f"machine-{number}", "REQUEST": f"{salt}-{number}-{turn}"}
            named = [
                text.replace("WORKER", names["WORKER"]).replace("REQUEST", names["REQUEST"]) if text.isascii() else text
                for text in command
            ]
            writer.write(hiredis.pack_command(tuple(named)))
            while (answer := parser.gets()) is False:
                parser.feed(await reader.read(65536))
            if isinstance(answer, Exception):
                raise answer
            counts["calls"] += 1
            counts["items"] += len(answer) if isinstance(answer, list) else 1
            if time.monotonic() > began + seconds:
                break
        writer.close()

    await asyncio.gather(*map(call, range(clients)))
    elapsed = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**counts, "seconds": elapsed, "cpu_seconds": used.ru_utime + used.ru_stime}))


# ------------------------------------------------------------------------------------------ those who work


class Worker:
    """A worker that behaves: it beats as often as it is told, asks when it has nothing, and backs off with jitter."""

    def __init__(self, port: int, number: int, calls: list[tuple[str, float, float]], troubles: Counter[str]) -> None:
        self._port, self._name = port, f"machine-{number:05d}"
        self._calls, self._troubles = calls, troubles
        self._job: dict[str, str] | None = None

    async def work(self, began: float, seconds: float) -> None:
        """Work until that moment; the first calls come spread over BEAT_SECONDS."""
        self._began, self._until = began, began + seconds
        next_beat = began + random.uniform(0, BEAT_SECONDS)
        next_job = began + random.uniform(0, BEAT_SECONDS)
        while (at := min(next_beat, next_job)) < self._until:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            if next_beat <= next_job:
                answer, _fields = await self._call("heartbeat", self._beat())
                next_beat = time.monotonic() + (answer or {}).get("heartbeat_seconds", BEAT_SECONDS)
            else:
                next_job = time.monotonic() + await self._turn() * random.uniform(0.5, 1.5)

    async def _turn(self) -> float:
        """Tell of a job that is done, get the next one; return after how many seconds to come again."""
        if self._job is not None:
            body = self._job | {"path": "other/title of a video [BV].mp4", "bytes": 123456789, "seconds": 12.5}
            await self._call("ack", json.dumps(body).encode())
            self._job = None
        answer, fields = await self._call("get_url", b"")
        if answer:
            self._job = {name: answer[0][name] for name in ("url", "token")}
            return JOB_SECONDS
        return float(fields.get("retry-after", BEAT_SECONDS))

    def _beat(self) -> bytes:
        stream = {"name": "v80-7", "done_bytes": 5_000_000, "total_bytes": 90_000_000}
        progress = {"title": "标题" * 12, "stage": "downloading", "streams": [stream, stream]}
        jobs = [self._job | {"progress": progress}] if self._job else []
        state = {"state": "running", "speed_bytes_per_second": 5e6, "working": {"stop": 1, "count": 4}}
        return json.dumps({"worker": self._name, "jobs": jobs, "state": state}).encode()

    async def _call(self, verb: str, body: bytes) -> tuple[Any, dict[str, str]]:
        """Call until there is an answer, as queue_client does: full jitter up to 30 s, and what the server asks for."""
        attempt = 0
        query = f"?worker={self._name}&count=1&request={random.randrange(10**12)}" if verb == "get_url" else ""
        while time.monotonic() < self._until:
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    status, fields, content = await self._once(verb + query, body)
            except (OSError, EOFError, TimeoutError) as error:
                status, fields, content = 0, {}, b""
                self._troubles[type(error).__name__] += 1
            if status == 200:
                self._calls.append((verb, began - self._began, time.monotonic() - began))
                return json.loads(content), fields
            if status == 409:  # its lease has moved on
                return None, {}
            if status:
                self._troubles[str(status)] += 1
            attempt += 1
            wait = random.uniform(0, min(30.0, 0.5 * 2.0**attempt)) + float(fields.get("retry-after", 0))
            await asyncio.sleep(min(wait, max(0.0, self._until - time.monotonic())))
        return None, {}

    async def _once(self, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = f"{'POST' if body else 'GET'} /{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            if body:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"\r\n" + body)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _colon, value in (line.partition(":") for line in lines)}
            return int(first.split()[1]), fields, await reader.readexactly(int(fields["content-length"]))
        finally:
            writer.close()


async def work(port: int, seconds: float, workers: int) -> None:
    """Be workers for some time; print each call (verb, when it began, how long it took), and what went wrong."""
    calls: list[tuple[str, float, float]] = []
    troubles: Counter[str] = Counter()
    began = time.monotonic()
    await asyncio.gather(*(Worker(port, number, calls, troubles).work(began, seconds) for number in range(workers)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps({"began": began, "calls": calls, "troubles": troubles, "cpu_seconds": used.ru_utime + used.ru_stime})
    )


def main(verb: str, *rest: str) -> None:
    """Be what the first argument says."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if verb == "hold":
        port, bodies, heads, idle = map(int, rest)
        asyncio.run(hold(port, bodies, heads, idle))
    elif verb == "direct":
        asyncio.run(direct(rest[0], float(rest[1]), int(rest[2]), json.loads(Path(rest[3]).read_text())))
    else:
        asyncio.run(work(int(rest[0]), float(rest[1]), int(rest[2])))


if __name__ == "__main__":
    main(*sys.argv[1:])
