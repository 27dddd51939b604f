"""Whose data the queue's are: another server's since a failover, older ones from a backup, or new ones.

A worker notes what it finished. When the data are others than those it told last, it tells again.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from i18n import _


@dataclass(frozen=True, slots=True)
class Lineage:
    """A look at the data: ``epochs`` are made once for each shard, ``fences`` count its leases.

    ``servers`` is how the engine itself names the history of its data: another one after each failover and start.
    """

    epochs: tuple[str, ...]
    fences: tuple[int, ...]
    servers: str

    @property
    def id(self) -> str:
        """Return a short name for the data, the same for all who look."""
        return sha256(f"{' '.join(self.epochs)} {self.servers}".encode()).hexdigest()[:16]

    def is_known_to(self, now: Lineage) -> bool:
        """Tell whether anything of these data is in later ones."""
        return any(epoch and epoch == found for epoch, found in zip(self.epochs, now.epochs, strict=True))

    def lost(self, now: Lineage) -> int:
        """Return how many of the leases that were given here later data do not know."""
        return sum(
            max(0, given - (fence if epoch == found else 0))
            for epoch, given, found, fence in zip(self.epochs, self.fences, now.epochs, now.fences, strict=True)
        )


def what_changed(before: Lineage | None, now: Lineage) -> str:
    """Return a sentence where the data are others than at the last look, else an empty text."""
    if before is None or not any(before.fences):
        return ""
    if not before.is_known_to(now):
        return _(
            "The queue's data are gone or replaced: workers tell again what they have finished. Add the rest again"
        )
    if count := before.lost(now):
        sentence = _(
            "The queue was set back: {count} leases and what came with them are unknown to its data. Workers tell again"
            " what they have finished; add again what was added in the last moment"
        ).format(count=count)
        if len(now.epochs) > 1:  # a shard may know that a video was read, and another one nothing of its pages
            sentence += " " + _("(with several shards: with --refresh, because pages of known videos may be missing)")
        return sentence
    if now.servers != before.servers:
        return _("Another Redis or Valkey has the queue now, or it was started anew; no lease is missing in its data")
    return ""
