"""What Prometheus looks at."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import accumulate

from flask import Request, Response, g

from errors import EngineError
from model import Counts
from redisConnect import Queue

BUCKETS_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0)
"""From a lease that is quick to an engine that waits for its disk."""


class Metrics:
    """What is counted since the start, and how many jobs and workers there are: in the text format of Prometheus."""

    def __init__(self, queue: Queue, totals: Mapping[str, int]) -> None:
        self._queue = queue
        self._totals = totals
        self._requests: Counter[tuple[str, int]] = Counter()
        self._took: dict[str, list[int]] = {}
        self._took_seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def count_request(self, asked: Request, response: Response) -> None:
        """Note a request, by its route, so that no client makes up names."""
        rule = asked.url_rule.rule if asked.url_rule else "other"
        seconds = time.perf_counter() - g.get("began", time.perf_counter())
        with self._lock:
            self._requests[rule, response.status_code] += 1
            self._took.setdefault(rule, [0] * (len(BUCKETS_SECONDS) + 1))[bisect_left(BUCKETS_SECONDS, seconds)] += 1
            self._took_seconds[rule] = self._took_seconds.get(rule, 0.0) + seconds

    def begin_request(self) -> None:
        """Note when a request began."""
        g.began = time.perf_counter()

    def metrics(self) -> Response:
        """Show them."""
        lines = _metric("requests_total", "counter", "Requests answered since the start.")
        with self._lock:
            answered = sorted(self._requests.items())
        lines += [
            f'bili_requests_total{{route="{route}",status="{status}"}} {count}' for (route, status), count in answered
        ]
        lines += self._durations()
        for name in ("added", "leased", "acked", "nacked", "released"):
            lines += _metric(f"{name}_total", "counter", f"Jobs {name} since the start.", self._totals.get(name, 0))
        began = time.perf_counter()
        try:
            self._queue.ping()
            latency = time.perf_counter() - began
            counts, workers = self._queue.counts(), self._queue.worker_count()
        except EngineError:
            lines += _metric("engine_up", "gauge", "Whether Redis or Valkey can be used.", 0)
        else:
            lines += _metric("engine_up", "gauge", "Whether Redis or Valkey can be used.", 1)
            lines += _metric("engine_seconds", "gauge", "What one look at Redis or Valkey took just now.", latency)
            lines += _metric("workers", "gauge", "Workers heard of lately.", workers)
            lines += _job_metrics(counts)
        return Response("\n".join(lines) + "\n", content_type="text/plain; version=0.0.4; charset=utf-8")

    def _durations(self) -> list[str]:
        """Return a histogram of the seconds from the head of a request to its answer, by route."""
        lines = _metric("request_seconds", "histogram", "What requests took, by route.")
        with self._lock:
            took = {route: (list(counts), self._took_seconds[route]) for route, counts in sorted(self._took.items())}
        for route, (counts, seconds) in took.items():
            below = list(accumulate(counts))
            for bound, count in zip((*map(str, BUCKETS_SECONDS), "+Inf"), below, strict=True):
                lines.append(f'bili_request_seconds_bucket{{route="{route}",le="{bound}"}} {count}')
            lines.append(f'bili_request_seconds_sum{{route="{route}"}} {seconds:.6f}')
            lines.append(f'bili_request_seconds_count{{route="{route}"}} {below[-1]}')
        return lines


def _metric(name: str, kind: str, about: str, value: float | None = None) -> list[str]:
    head = [f"# HELP bili_{name} {about}", f"# TYPE bili_{name} {kind}"]
    return head if value is None else [*head, f"bili_{name} {value:.15g}"]


def _job_metrics(counts: Counts) -> list[str]:
    states = [f'bili_jobs{{state="{state}"}} {count}' for state, count in asdict(counts).items()]
    return [*_metric("jobs", "gauge", "Jobs in each state."), *states]
