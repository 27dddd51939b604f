"""What a worker is doing, for those who look: the terminal, the status page, and the pipeline that plans ahead.

Written by the scheduler alone, in one thread; the time is given.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from i18n import _
from model import CHUNK_BYTES, MERGED_TOGETHER, StreamProgress

WORDS = {
    "starting": _("starting"),
    "running": _("running"),
    "paused": _("paused"),
    "parked": _("parked"),
    "draining": _("draining"),
    "drained": _("drained"),
    "stopping": _("stopping"),
    "ended": _("ended"),
    "silent": _("silent"),
    "away": _("away"),
    "describing": _("reading"),
    "listing": _("reading a list"),
    "waiting": _("waiting"),
    "downloading": _("downloading"),
    "merging": _("merging"),
    "delivering": _("delivering"),
    "recording": _("recording"),
}
"""The states of a worker and the stages of a job, for people."""

SILENT_SECONDS, AWAY_SECONDS = 30.0, 120.0
"""Beats are 20 s apart at most with the default lease. Of a worker that is away nothing is true but its name."""
GONE = ("away", "silent", "ended")
"""The states of those that do nothing now."""

SPEED_WINDOW_SECONDS = 5.0
SMALL_BYTES = CHUNK_BYTES
"""A download of no more than one request needs may be over before its speed is known."""


@dataclass(slots=True, eq=False)
class Upload:
    """How far a finished file has come on its way to where it is delivered; a thread writes it."""

    total_bytes: int = 0
    done_bytes: int = 0

    def reach(self, done_bytes: int) -> None:
        """Take note of how much is there."""
        self.done_bytes = done_bytes


@dataclass(slots=True, eq=False)
class JobView:
    """One job as people see it, on the terminal and on the status page."""

    url: str
    title: str = ""
    since: float = 0.0
    """When it was leased, or the container whose page it is."""
    stage: str = "describing"
    """Then waiting (prepared, without a slot), downloading, merging, delivering, recording; a job may end in each of
    them. A source is listing."""
    cid: int = 0
    planned_bytes: int = 0
    """How large all streams together are, by what the site says of them; 0 where it says nothing."""
    streams: dict[str, StreamProgress] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    """Bytes a second of each stream, smoothed."""
    upload: Upload = field(default_factory=Upload)
    _sampled: dict[str, int] = field(default_factory=dict)

    def sample(self, elapsed_seconds: float) -> None:
        """Take note of how far each stream came since the last call."""
        for name, stream in self.streams.items():
            gained = stream.done_bytes - self._sampled.get(name, stream.done_bytes)
            self._sampled[name] = stream.done_bytes
            now = max(0.0, gained / elapsed_seconds)
            self.speeds[name] = now if name not in self.speeds else 0.8 * self.speeds[name] + 0.2 * now

    def ordered(self) -> list[StreamProgress]:
        """Return the streams in the order in which people see them: the sound last, whichever came first."""
        streams = list(self.streams.values())  # others ask in threads of their own
        return sorted(streams, key=lambda stream: stream.name.startswith("a"))

    @property
    def streams_bytes(self) -> int:
        """How large the streams are together, as far as that is known."""
        streams = list(self.streams.values())  # the terminal asks in a thread of its own
        known_bytes = sum(stream.total_bytes or 0 for stream in streams)
        is_known = bool(streams) and all(stream.total_bytes is not None for stream in streams)
        return known_bytes if is_known else max(self.planned_bytes, known_bytes)

    @property
    def seconds_left(self) -> float:
        """How long the download still takes: 0 for a small one that was not measured yet, else infinite until it was.

        It waits for the first bytes, or hangs; nothing is known of when it ends.
        """
        if not self.speeds:
            return 0.0 if 0 < self.streams_bytes <= SMALL_BYTES else float("inf")
        speed = sum(self.speeds.values())
        left_bytes = self.streams_bytes - sum(stream.done_bytes for stream in self.streams.values())
        return left_bytes / speed if speed >= 1 else float("inf")

    def show(self) -> dict[str, Any]:
        """Return what a heartbeat carries."""
        streams = [
            {
                "name": stream.name,
                "done_bytes": stream.done_bytes,
                "total_bytes": stream.total_bytes,
                "mirror": stream.mirror,
                "speed_bytes_per_second": round(self.speeds.get(stream.name, 0.0)),
            }
            for stream in self.ordered()
        ]
        chunks = any(stream["done_bytes"] for stream in streams)
        if self.stage == "delivering":
            done, total = self.upload.done_bytes, self.upload.total_bytes
            streams = [{"name": "delivery", "done_bytes": min(done, total), "total_bytes": total}]
            chunks = True  # all of it is on this disk
        return {"title": self.title, "stage": self.stage, "streams": streams, "chunks": chunks}


class Board:
    """What this worker is doing: its jobs, its speed, its totals. The scheduler writes, others look."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobView] = {}
        self.done = self.failed = self.dead = 0
        self.failures: Counter[str] = Counter()
        """By the kind of the error."""
        self.received_bytes = 0
        self.state = "starting"
        self.note = ""
        self._samples: deque[tuple[float, int]] = deque(maxlen=64)

    def in_stages(self, stages: Iterable[str]) -> list[JobView]:
        """Return the jobs that are in one of these stages."""
        return [view for view in self.jobs.values() if view.stage in stages]

    @property
    def merges(self) -> float:
        """How many ffmpegs the jobs in the merge are worth, or will be when their turn comes: small ones share one."""
        merging = self.in_stages(("merging",))
        return sum(1 / MERGED_TOGETHER if 0 < view.streams_bytes <= SMALL_BYTES else 1 for view in merging)

    def report(self, view: JobView, progress: StreamProgress) -> None:
        """Take the progress of a stream; what a resume found on disk is not counted as received."""
        before = view.streams.get(progress.name)
        if before is not None:
            self.received_bytes += max(0, progress.done_bytes - before.done_bytes)
        view.streams[progress.name] = progress

    def sample(self, at: float) -> None:
        """Remember how much was received until ``at``; called at each tick."""
        if self._samples and at > self._samples[-1][0]:
            for view in self.jobs.values():
                view.sample(at - self._samples[-1][0])
        self._samples.append((at, self.received_bytes))
        while len(self._samples) > 2 and at - self._samples[0][0] > SPEED_WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def sampled_at(self) -> float:
        """When the scheduler last looked; long ago where it never did."""
        return self._samples[-1][0] if self._samples else float("-inf")

    @property
    def speed_bytes_per_second(self) -> float:
        """The speed over the last seconds."""
        samples = list(self._samples)
        if len(samples) < 2:
            return 0.0
        (first, before), (last, after) = samples[0], samples[-1]
        return (after - before) / (last - first) if last > first else 0.0


def state_of(told: Mapping[str, Any], seen_seconds: float, lease_seconds: float) -> str:
    """Return what a worker does, by what it told some seconds ago; an older one tells it by its working.json only."""
    if seen_seconds > max(AWAY_SECONDS, 3 * lease_seconds):
        return "away"
    is_stopped = (told.get("working") or {}).get("stop") == 0
    state = str(told.get("state") or ("paused" if is_stopped else "running"))
    return "silent" if seen_seconds > SILENT_SECONDS and state != "ended" else state
