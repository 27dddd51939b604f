"""What the stand-in site was asked and what it sent, for tests and benchmarks to compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_RANGES = 4000
"""Ranges remembered of one object; the counters go on beyond."""


@dataclass(slots=True)
class RangeRecord:
    """One request to a CDN object: the half-open range it asked for, and how much of it was sent.

    ``stop`` is None for a range to the end. ``sent_bytes`` counts what was handed to the socket.
    """

    mirror: int
    start: int
    stop: int | None
    status: int = 0
    sent_bytes: int = 0


@dataclass(slots=True)
class ObjectCounter:
    """All requests to one CDN object."""

    requests: int = 0
    sent_bytes: int = 0
    ranges: list[RangeRecord] = field(default_factory=list)


@dataclass(slots=True)
class MirrorCounter:
    """One CDN host: connections accepted and refused, requests, bytes, and the most requests at one time."""

    connections: int = 0
    refused: int = 0
    requests: int = 0
    sent_bytes: int = 0
    active: int = 0
    max_concurrent: int = 0


class Counters:
    """Everything that is counted; ``reset`` starts again from zero, open requests stay counted as active."""

    def __init__(self, mirrors: int) -> None:
        self.mirrors = [MirrorCounter() for _ in range(mirrors)]
        self.objects: dict[str, ObjectCounter] = {}
        self.routes: Counter[str] = Counter()

    def reset(self) -> None:
        """Start again from zero."""
        self.mirrors = [MirrorCounter(active=mirror.active) for mirror in self.mirrors]
        self.objects = {}
        self.routes = Counter()

    def opened(self, path: str, record: RangeRecord) -> None:
        """Count a request to a CDN object when it comes."""
        mirror = self.mirrors[record.mirror]
        mirror.requests += 1
        mirror.active += 1
        mirror.max_concurrent = max(mirror.max_concurrent, mirror.active)
        counter = self.objects.setdefault(path, ObjectCounter())
        counter.requests += 1
        if len(counter.ranges) < MAX_RANGES:
            counter.ranges.append(record)

    def sent(self, path: str, record: RangeRecord, size_bytes: int) -> None:
        """Count bytes of a body as they go out."""
        record.sent_bytes += size_bytes
        self.mirrors[record.mirror].sent_bytes += size_bytes
        self.objects.setdefault(path, ObjectCounter()).sent_bytes += size_bytes

    def closed(self, record: RangeRecord) -> None:
        """Count a request as over."""
        self.mirrors[record.mirror].active -= 1

    def listing(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "mirrors": [asdict(mirror) for mirror in self.mirrors],
            "objects": {path: asdict(counter) for path, counter in self.objects.items()},
            "routes": dict(self.routes),
        }
