"""What is unsafe about an engine is named, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from store.engine_checks import Facts, dangers

SAFE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "min-replicas-to-write": "1",
}
INFO = {"redis_version": "7.2.4", "role": "master", "connected_slaves": 2}


def facts(changes: dict[str, str] | None = None, info: dict[str, Any] | None = None, **more: Any) -> Facts:
    return Facts({**SAFE, **(changes or {})}, {**INFO, **(info or {})}, **more)


def test_nothing_is_said_of_a_safe_engine() -> None:
    assert dangers(facts(fails_over=True, waits=True, cluster={"cluster_slots_ok": "16384"})) == []
    assert dangers(facts({"min-replicas-to-write": "0"}, {"connected_slaves": 0})) == []
    assert dangers(Facts()) == []  # one that hides everything


@pytest.mark.parametrize(
    ("unsafe", "sentence"),
    [
        (facts({"appendonly": "no"}), "appendonly yes"),
        (Facts(info={"aof_enabled": 0}), "appendonly yes"),
        (facts({"appendfsync": "everysec"}), "appendfsync always"),
        (facts({"maxmemory-policy": "allkeys-lru"}), "maxmemory-policy noeviction"),
        (Facts(info={"maxmemory_policy": "volatile-lru"}), "maxmemory-policy noeviction"),
        (facts({"min-replicas-to-write": "0"}), "min-replicas-to-write 1"),
        (facts({"min-replicas-to-write": "0"}, {"connected_slaves": 1}, fails_over=True, waits=True), "second replica"),
        (facts({}, {"connected_slaves": 1}, fails_over=True, waits=True), "Add a replica"),
        (facts({}, {"connected_slaves": 0}, fails_over=True, waits=True), "has no replica"),
        (facts(fails_over=True), "wait_replicas=1"),
        (facts(cluster={"cluster_slots_ok": "10923"}), "only 10923"),
        (facts(is_open=True), "wants no password"),
        (facts(checks_host=False), "ssl_check_hostname"),
        (facts({}, {"redis_version": "6.0.16"}), "6.0.16 is too old"),
    ],
)
def test_each_danger_is_one_sentence(unsafe: Facts, sentence: str) -> None:
    (said,) = dangers(unsafe)
    assert sentence in said


def test_waiting_for_the_disk_makes_up_for_a_sync_once_a_second() -> None:
    assert dangers(facts({"appendfsync": "everysec"}, waits_fsync=True)) == []


def test_the_version_of_valkey_counts_and_not_the_one_that_it_pretends() -> None:
    assert dangers(facts({}, {"valkey_version": "9.1.2", "redis_version": "6.0.0"})) == []
