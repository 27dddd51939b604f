"""Whose data the queue's are: another server's since a failover, older ones from a backup, or new ones.

A worker notes what it finished. When the data are others than those it told last, it tells again.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from i18n import _


@dataclass(frozen=True, slots=True)
class Lineage:
    """A look at the data: ``epoch`` is made once for each database, ``fence`` counts its leases.

    ``servers`` is how the engine itself names the history of its data: another one after each failover and start.
    """

    epoch: str
    fence: int
    servers: str

    @property
    def id(self) -> str:
        """Return a short name for the data, the same for all who look."""
        return sha256(f"{self.epoch} {self.servers}".encode()).hexdigest()[:16]


def what_changed(before: Lineage | None, now: Lineage) -> str:
    """Return a sentence where the data are others than at the last look, else an empty text."""
    if before is None or before.fence == 0:
        return ""
    if now.epoch != before.epoch:
        return _(
            "The queue's data are gone or replaced: workers tell again what they have finished. Add the rest again"
        )
    if now.fence < before.fence:
        return _(
            "The queue was set back: {count} leases and what came with them are unknown to its data. Workers tell again"
            " what they have finished; add again what was added in the last moment"
        ).format(count=before.fence - now.fence)
    if now.servers != before.servers:
        return _("Another Redis or Valkey has the queue now, or it was started anew; no lease is missing in its data")
    return ""
