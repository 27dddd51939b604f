"""The farm on paper: what so many URLs and workers need, computed from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

USED = 0.5
"""So much of a server or an engine is to be used at most: the rest is for herds, and for what was not thought of."""
BEAT_BYTES, LEASE_BYTES, ACK_BYTES = 2000, 900, 1100
"""Of a call and its answer together, heads included; a beat with four downloads in it."""
CONNECTIONS = 10_000
"""Of a server at most; see web_server.MAX_CONNECTIONS."""
KEPT_SECONDS = 15
"""For so long a worker keeps a connection that it does not use."""
ENTRY_BYTES, RECORD_BYTES = 40, 150
"""Of a page for ever, in ``seen`` and ``done``, and of its record: what they are allowed to be."""


@dataclass(frozen=True, slots=True)
class Farm:
    """How large a farm is, and how it is set."""

    urls: float
    workers: float
    lease_seconds: float
    page_seconds: float
    """How long a worker takes for a page."""
    at_once: float
    """How many jobs it leases at a time."""

    @property
    def pages_per_second(self) -> float:
        """How many pages are finished."""
        return self.workers / self.page_seconds

    @property
    def beats_per_second(self) -> float:
        """How many heartbeats come: each third of a lease, and never more than the server wants."""
        return self.workers / min(self.lease_seconds / 3, max(2.0, self.workers / 200))


FARMS = {
    "10^5 workers, as it is set": Farm(1e8, 1e5, 60, 60, 1),
    "`BILI_LEASE_SECONDS=180`": Farm(1e8, 1e5, 180, 60, 1),
    "the same, 8 jobs a lease": Farm(1e8, 1e5, 180, 60, 8),
    "10^4 workers, as it is set": Farm(1e7, 1e4, 60, 60, 1),
}


def busy(farm: Farm, verbs: Mapping[str, Mapping[str, Any]], how: str) -> float:
    """Return how many servers (``1``) or engines (``direct``) would be busy all the time."""
    jobs = verbs[f"lease of 8 {how}" if farm.at_once >= 8 else f"lease {how}"]["per_second"]
    beats, acks = verbs[f"heartbeat {how}"]["per_second"], verbs[f"ack {how}"]["per_second"]
    pages = farm.pages_per_second
    return float(pages / jobs + farm.beats_per_second / beats + pages / acks)


def table(verbs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the farms as a table."""
    lines = [
        "| farm | pages/s, all done in | heartbeats/s | server processes | Redis shards | traffic | open connections |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, farm in FARMS.items():
        pages, beats = farm.pages_per_second, farm.beats_per_second
        kept = farm.workers * min(1.0, KEPT_SECONDS * beats / farm.workers)
        servers = max(math.ceil(busy(farm, verbs, "1") / USED), math.ceil(kept / CONNECTIONS))
        shards = math.ceil(busy(farm, verbs, "direct") / USED)
        traffic = (beats * BEAT_BYTES + pages * (LEASE_BYTES / farm.at_once + ACK_BYTES)) * 8 / 1e6
        lines.append(
            f"| {name} | {pages:.0f}, {farm.urls / pages / 3600:.0f} h | {beats:.0f} | {servers} | {shards} "
            f"| {traffic:.0f} Mbit/s | {kept:.0f} |"
        )
    urls = FARMS["10^5 workers, as it is set"].urls
    gib = 2**30
    lines += [
        "",
        f"Memory for 10^8 pages: {urls * ENTRY_BYTES / gib:.1f} GiB for what was seen and done at {ENTRY_BYTES} bytes a"
        f" page, and {urls * RECORD_BYTES / gib:.1f} GiB for all records at {RECORD_BYTES} bytes each, if none is moved"
        " into an archive.",
    ]
    return lines
