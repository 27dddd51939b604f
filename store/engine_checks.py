"""What is unsafe about an engine, as sentences: how it may lose what was accepted, or let in who has no business."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from i18n import _

OLDEST = (6, 2)
SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an engine; where it does not tell, the mappings have no entry."""

    configured: Mapping[str, str] = field(default_factory=dict)
    """CONFIG GET of a few names; managed services hide it."""
    info: Mapping[str, Any] = field(default_factory=dict)
    cluster: Mapping[str, str] = field(default_factory=dict)
    """CLUSTER INFO."""
    fails_over: bool = False
    """Sentinel or a cluster is in charge of it."""
    is_open: bool = False
    """Other machines may reach it, and need no password."""
    waits: bool = False
    """Changes count when replicas have them."""
    waits_fsync: bool = False
    checks_host: bool = True


def dangers(facts: Facts) -> list[str]:
    """Return a sentence for each thing that is unsafe about an engine."""
    return [*_of_its_disk(facts), *_of_its_memory(facts), *_of_a_failover(facts), *_of_its_doors(facts)]


def _of_its_disk(facts: Facts) -> Iterator[str]:
    appends = facts.configured.get("appendonly", {0: "no", 1: "yes"}.get(facts.info.get("aof_enabled", -1), ""))
    fsync = facts.configured.get("appendfsync", "")
    if appends == "no":
        yield _("Redis keeps no append-only file: what was accepted may be lost. Set: appendonly yes")
    elif fsync and fsync != "always" and not facts.waits_fsync:
        yield _("Redis does not sync each write: a power cut may lose a second. Set: appendfsync always")


def _of_its_memory(facts: Facts) -> Iterator[str]:
    policy = facts.configured.get("maxmemory-policy") or facts.info.get("maxmemory_policy") or "noeviction"
    if policy != "noeviction":
        yield _("Redis may evict jobs when memory is short. Set: maxmemory-policy noeviction")


def _of_a_failover(facts: Facts) -> Iterator[str]:
    replicas = int(facts.info.get("connected_slaves", 0))
    least = facts.configured.get("min-replicas-to-write", facts.configured.get("min-slaves-to-write", ""))
    if facts.fails_over and not replicas and facts.info.get("role") == "master":
        yield _("Redis has no replica: nothing can take its place, and what is on its disk is all there is. Add one")
    if facts.fails_over and replicas == 1 and least == "0":
        yield _(
            "A primary that is cut off from its only replica goes on accepting what will be lost."
            " Add a second replica, then set: min-replicas-to-write 1"
        )
    elif (facts.fails_over or replicas) and least == "0":
        yield _(
            "A primary that is cut off from its replicas goes on accepting what will be lost."
            " Set: min-replicas-to-write 1"
        )
    elif facts.fails_over and replicas and least.isdigit() and int(least) >= replicas:
        yield _(
            "After a failover nothing can be written until the old primary is back: one replica less is fewer than"
            " min-replicas-to-write asks for. Add a replica"
        )
    if facts.fails_over and replicas and not facts.waits:
        yield _(
            "A failover may lose the changes of the last moment. Set wait_replicas=1 in REDIS_URL, see docs/engines.md"
        )
    covered = int(facts.cluster.get("cluster_slots_ok", SLOTS))
    if covered != SLOTS:
        yield _("Of the cluster's 16384 slots only {count} are served: add or repair nodes").format(count=covered)


def _of_its_doors(facts: Facts) -> Iterator[str]:
    if facts.is_open:
        yield _(
            "Redis is reached over a network and wants no password: whoever reaches it has the queue."
            " Set a password or an ACL user"
        )
    if not facts.checks_host:
        yield _(
            "The name in Redis' certificate is not looked at (ssl_check_hostname=no): any server with a certificate of"
            " that authority may take its place"
        )
    version = str(facts.info.get("valkey_version") or facts.info.get("redis_version") or "")
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        yield _("Redis {version} is too old: 6.2 or later is needed, or Valkey").format(version=version)
