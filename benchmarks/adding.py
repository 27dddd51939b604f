"""How fast long lists go into a queue, and a whole queue out of it and in again, with how much memory.

``python -m benchmarks.adding``; ``--urls 100000`` for a quick look. Each run is the program as users start it, on an
embedded Valkey of its own that syncs each write; half of the lines are ids, half addresses. Beside it the same list is
counted by the same Lua called directly, with the ids parsed beforehand: what is left of the time is Python's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.servers import free_port
from config import ROOT, Settings
from parse_ import aid_to_bvid
from redisConnect import open_queue

GOAL_PER_SECOND = 80_000
BATCH = 1000


def url_of(number: int) -> str:
    """Return the id of one of the videos."""
    return aid_to_bvid(10**14 + number * 977)


def write_list(path: Path, count: int) -> None:
    """Write a list of targets."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prefix = "" if number % 2 else "https://www.bilibili.com/video/"
            file.write(f"{prefix}{url_of(number)}\n")


def run(environ: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Run add_url.py; return how long it took, its peak of memory and its last line."""
    before = time.perf_counter()
    command = [sys.executable, str(ROOT / "add_url.py"), *arguments]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": round(time.perf_counter() - before, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "last_line": lines[-1] if lines else "",
    }


def directly(folder: Path, count: int) -> dict[str, Any]:
    """Return how long the same Lua takes with ids that are parsed already, called one batch after the other."""
    queue = open_queue(Settings(data_dir=folder))
    try:
        ids = [url_of(number) for number in range(count)]
        before = time.perf_counter()
        for start in range(0, count, BATCH):
            queue.add(ids[start : start + BATCH])
        return {"seconds": round(time.perf_counter() - before, 2)}
    finally:
        queue.close()


def through_server(folder: Path, listed: Path) -> dict[str, Any]:
    """Return what the same costs through a server."""
    port = free_port()
    environ = {**os.environ, "BILI_DATA_DIR": str(folder), "LANGUAGE": "en", "BILI_TOKEN": "a-token-of-the-benchmark"}
    environ |= {"BILI_HOSTS": "0.0.0.0", "REDIS_URL": ""}
    command = [sys.executable, str(ROOT / "web_server.py"), "--port", str(port)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline()
            # By a name that is none of loopback's: else add_url.py goes to the embedded queue itself.
            return run({**environ, "BILI_SERVER_URL": f"http://0.0.0.0:{port}"}, "--file", str(listed))
        finally:
            server.terminate()


def measure(folder: Path, count: int, small: int) -> dict[str, Any]:
    """Return all figures."""
    listed, short = folder / "urls.txt", folder / "few.txt"
    write_list(listed, count)
    write_list(short, small)
    served = through_server(folder / "served", short)
    environ = {**os.environ, "LANGUAGE": "en", "BILI_DATA_DIR": str(folder / "queue"), "REDIS_URL": ""}
    few = run({**environ, "BILI_DATA_DIR": str(folder / "few")}, "--file", str(short))
    keeper = open_queue(Settings(data_dir=folder / "queue"))  # else each run would start the engine and load the queue
    try:
        added = run(environ, "--file", str(listed))
        again = run(environ, "--file", str(listed))
        exported = run(environ, "--export", str(folder / "queue.jsonl"))
    finally:
        keeper.close()
    keeper = open_queue(Settings(data_dir=folder / "other"))
    try:
        imported = run({**environ, "BILI_DATA_DIR": str(folder / "other")}, "--import", str(folder / "queue.jsonl"))
    finally:
        keeper.close()
    return {
        "urls": count,
        "few": {"urls": small, **few},
        "added": {**added, "per_second": round(count / added["seconds"])},
        "again": {**again, "per_second": round(count / again["seconds"])},
        "lua_directly": directly(folder / "directly", count),
        "through_server": {**served, "per_second": round(small / served["seconds"])},
        "exported": exported,
        "imported": imported,
    }


def goals(found: dict[str, Any]) -> dict[str, bool]:
    """Return which goals are met."""
    count, added = found["urls"], found["added"]
    return {
        f"≥ {GOAL_PER_SECOND} URLs a second": added["per_second"] >= GOAL_PER_SECOND,
        "the counts are exact": added["last_line"] == f"added {count}, known 0, rejected 0"
        and found["again"]["last_line"] == f"added 0, known {count}, rejected 0",
        "constant memory": added["peak_mib"] <= found["few"]["peak_mib"] + 8,
        "an export has every job": found["exported"]["last_line"].endswith(f", {count} jobs"),
        "an import brings every job": found["imported"]["last_line"] == f"imported {count}, known 0, rejected 0",
    }


def main() -> int:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adding", description=__doc__)
    parser.add_argument("--urls", type=int, default=10**6, metavar="N", help="how many lines the list has")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adding") as name:
        found = measure(Path(name), options.urls, min(10_000, options.urls // 10))
    found["goals"] = goals(found)
    print(json.dumps(found, indent=1))
    return 0 if all(found["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
