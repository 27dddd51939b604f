"""The benchmark of the queue server: what it makes of its figures, and that it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.queue import model, told
from benchmarks.queue.cases import Run
from config import ROOT


def sample(per_second: float) -> dict[str, float]:
    rest = {"jobs_per_second": per_second, "p50_ms": 20.0, "p99_ms": 50.0, "refused": 0.0, "cpu_us": 300.0}
    return {"per_second": per_second, "memory_mb": 60.0, **rest}


def figures(direct: float = 20_000.0) -> dict[str, Any]:
    rates = {"1": 10_000.0, "2": 15_000.0, "direct": direct}
    kinds = {"product": 3000.0, "waitress": 1000.0, "bare-waitress": 2000.0}
    phase = {
        verb: {"p50_ms": 5.0, "p99_ms": 80.0, "worst_ms": 300.0, "per_second": 99.0} for verb in ("get_url", "ack")
    }
    steady = {"workers": 10_000, "steady": phase, "back": phase, "troubles": {"ConnectionRefusedError": 7}}
    return {
        "choose": {kind: {how: [sample(rate)] * 3 for how in ("alone", "held")} for kind, rate in kinds.items()},
        "verbs": {
            f"{verb} {how}": [{"per_second": rate, "client_cpu": 0.1}]
            for verb in ("lease", "lease of 8", "heartbeat", "ack")
            for how, rate in rates.items()
        },
        "workers": steady | {"server_cpu": 0.4, "client_cpu": 0.5, "memory_mb": 70.0, "each_second": [1, 2, 3]},
    }


def test_each_figure_is_the_median_of_its_rounds() -> None:
    found = told.medians([sample(3.0), sample(1.0), sample(2.0)])
    assert (found["per_second"], found["rounds"]) == (2.0, [3.0, 1.0, 2.0])


def test_rounds_are_added_to_those_before() -> None:
    first = {"a": {"alone": [1], "held": [2]}, "b": {"alone": [3], "held": [4]}}
    both = told.together(first, {"a": {"alone": [5], "held": [6]}, "c": {"alone": [7], "held": [8]}})
    assert both == {"a": {"alone": [1, 5], "held": [2, 6]}, "b": first["b"], "c": {"alone": [7], "held": [8]}}
    assert (told.rounds_of(both), told.rounds_of(None), told.rounds_of({})) == (2, 0, 0)
    assert told.together(None, first) == first


def test_rounds_begin_with_others_each_time() -> None:
    run = Run(None, Path(), 3, 0, 1, True, print)  # type: ignore[arg-type]
    order = list(run.rotated(["a", "b", "c"]))
    assert [order[start : start + 3] for start in (0, 3, 6)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_goals_that_are_missed_are_said_to_be() -> None:
    summed = told.summed_up(figures())
    goals = {goal.text: goal for goal in told.goals(summed)}
    assert goals["leases a second of this server while held against, to waitress held"].is_met
    assert goals["jobs a second, leased 8 at a time, to the Lua called directly"].value == 0.5
    table = told.markdown(summed, {"machine": "2 cores"})
    assert "missed" not in table
    assert "**missed**" in told.markdown(told.summed_up(figures(direct=21_000)), {})
    assert "| this server, aiohttp | **3000** | 3000, 3000, 3000 |" in table
    assert "ConnectionRefusedError 7" in table


def test_a_farm_on_paper_is_computed_from_what_was_measured() -> None:
    farm = model.Farm(urls=1e6, workers=1000, lease_seconds=60, page_seconds=10, at_once=1)
    assert (farm.pages_per_second, farm.beats_per_second) == (100, 200)  # each worker is told to beat every 5 s
    verbs = {f"{verb} 1": {"per_second": 1000.0} for verb in ("lease", "heartbeat", "ack")}
    assert model.busy(farm, verbs, "1") == pytest.approx(0.4)
    assert "GiB" in model.table(told.summed_up(figures())["verbs"])[-1]


def test_a_server_that_answers_nobody_is_no_division_by_nothing() -> None:
    silent = figures()
    silent["choose"]["waitress"]["held"] = [sample(0.0)]
    assert "answered nobody" in told.markdown(told.summed_up(silent), {})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk sends the requests: apt-get install wrk")
def test_the_verbs_are_measured(tmp_path: Path) -> None:
    result = tmp_path / "queue.json"
    options = ["--quick", "--only", "verbs", "--no-document", "--result", str(result)]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.queue", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(result.read_text())["figures"]["verbs"]
    assert len(found) == 12
    assert all(samples[0]["per_second"] > 1 for samples in found.values())
