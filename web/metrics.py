"""What Prometheus looks at."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from flask import Response, request

from errors import EngineError
from model import Counts
from redisConnect import Queue


class Metrics:
    """What is counted since the start, and how many jobs and workers there are: in the text format of Prometheus."""

    def __init__(self, queue: Queue, totals: Mapping[str, int]) -> None:
        self._queue = queue
        self._totals = totals
        self._requests: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def count_request(self, response: Response) -> None:
        """Note a request, by its route, so that no client makes up names."""
        rule = request.url_rule.rule if request.url_rule else "other"
        with self._lock:
            self._requests[rule, response.status_code] += 1

    def metrics(self) -> Response:
        """Show them."""
        lines = _metric("requests_total", "counter", "Requests answered since the start.")
        with self._lock:
            answered = sorted(self._requests.items())
        lines += [
            f'bili_requests_total{{route="{route}",status="{status}"}} {count}' for (route, status), count in answered
        ]
        for name in ("added", "leased"):
            lines += _metric(f"{name}_total", "counter", f"Jobs {name} since the start.", self._totals.get(name, 0))
        try:
            counts, workers = self._queue.counts(), self._queue.worker_count()
        except EngineError:
            lines += _metric("engine_up", "gauge", "Whether Redis or Valkey can be used.", 0)
        else:
            lines += _metric("engine_up", "gauge", "Whether Redis or Valkey can be used.", 1)
            lines += _metric("workers", "gauge", "Workers heard of lately.", workers)
            lines += _job_metrics(counts)
        return Response("\n".join(lines) + "\n", content_type="text/plain; version=0.0.4; charset=utf-8")


def _metric(name: str, kind: str, about: str, value: int | None = None) -> list[str]:
    head = [f"# HELP bili_{name} {about}", f"# TYPE bili_{name} {kind}"]
    return head if value is None else [*head, f"bili_{name} {value}"]


def _job_metrics(counts: Counts) -> list[str]:
    states = [f'bili_jobs{{state="{state}"}} {count}' for state, count in asdict(counts).items()]
    return [*_metric("jobs", "gauge", "Jobs in each state."), *states]
