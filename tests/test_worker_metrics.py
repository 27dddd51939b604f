"""What a worker shows to Prometheus: the text, the listener, and whether a worker that hangs is seen to hang."""

from __future__ import annotations

import re
import socket
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from board import Board, JobView
from errors import UsageError
from model import MIB, StreamProgress
from tests.farm import free_port
from transfer.mirrors import Health
from worker_metrics import STALL_SECONDS, metrics, serving_metrics


def a_board() -> Board:
    board, view = Board(), JobView("BV1", stage="downloading")
    board.jobs |= {"BV1": view, "BV2": JobView("BV2")}
    board.report(view, StreamProgress("v80-7", 0, 40 * MIB))
    board.sample(1.0)
    board.report(view, StreamProgress("v80-7", 2 * MIB, 40 * MIB, "cdn.example"))
    board.sample(2.0)
    board.state, board.done, board.failed, board.dead = "running", 3, 2, 1
    board.failures.update({"transient": 1, "permanent": 1})
    return board


def no_disk() -> int:
    raise OSError("away")


def test_the_figures_are_those_of_the_board_and_of_the_mirrors() -> None:
    health, now = Health(), time.monotonic()
    good = health.host('cdn"\\.example')
    good.active = 2
    good.estimate.saw_speed(3 * MIB, now)
    good.estimate.saw_first_byte(0.25, now)
    health.host("bad.example").cooldown.fail(now, now, lambda _failures: 1000.0)
    health.host("never-asked.example")
    lines = metrics(a_board(), health, lambda: 7 * MIB)
    for line in (
        'bili_worker_jobs{stage="downloading"} 1',
        'bili_worker_jobs{stage="describing"} 1',
        'bili_worker_state{state="running"} 1',
        "bili_worker_done_total 3",
        'bili_worker_failures_total{kind="transient"} 1',
        "bili_worker_dead_total 1",
        f"bili_worker_received_bytes_total {2 * MIB}",
        f"bili_worker_speed_bytes_per_second {2 * MIB}",
        f"bili_worker_disk_free_bytes {7 * MIB}",
        r'bili_worker_mirror_connections{host="cdn\"\\.example"} 2',
        rf'bili_worker_mirror_speed_bytes_per_second{{host="cdn\"\\.example"}} {3 * MIB}',
        r'bili_worker_mirror_first_byte_seconds{host="cdn\"\\.example"} 0.25',
        'bili_worker_mirror_failures{host="bad.example"} 1',
    ):
        assert line in lines
    assert "never-asked" not in "".join(lines)
    kinds = dict(re.findall(r"# TYPE (\S+) (\S+)", "\n".join(lines)))
    names = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    assert names <= set(kinds) and all(kinds[name] == "counter" for name in names if name.endswith("_total"))
    assert not any("disk_free" in line for line in metrics(a_board(), health, no_disk))


def ask(address: str, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_worker_answers_where_it_was_told_to_and_nowhere_else() -> None:
    board, now = a_board(), [2.0]
    address = f"127.0.0.1:{free_port()}"
    options: Any = (board, Health(), lambda: 1, lambda: now[0])
    with serving_metrics(address, *options):
        status, text = ask(address, "/metrics")
        assert status == 200 and "bili_worker_done_total 3\n" in text
        assert ask(address, "/livez") == (200, "ok\n")
        now[0] += STALL_SECONDS
        assert ask(address, "/livez")[0] == 503
        assert ask(address, "/../etc/passwd")[0] == 404
        with pytest.raises(UsageError, match="BILI_METRICS_ADDRESS"), serving_metrics(address, *options):
            pass
        with socket.create_connection(
            ("127.0.0.1", int(address.rpartition(":")[2]))
        ):  # who asks nothing holds up nobody
            assert ask(address, "/metrics")[0] == 200
    with pytest.raises(OSError):
        ask(address, "/metrics")
    with serving_metrics("", *options):
        pass
