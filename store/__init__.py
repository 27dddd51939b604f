"""The queue in Redis or Valkey: its data, their scripts' callers, its shards, its records, and the engine itself.

redisConnect.py is the queue that others use, and is made of what is here.
"""

from store.archive import Archive
from store.budgets import FarmBudgets
from store.data import (
    ARCHIVED_AT_ONCE,
    CANCELLED,
    COMMON_KEYS,
    STATES,
    Identity,
    JobViews,
    Success,
    Wanted,
    answer_key,
    as_dict,
    as_json,
    bucket,
    containers_of,
    done_key,
    ended_key,
    failure_cursor,
    failure_range,
    folded_prefix,
    identity_of,
    key,
    ledger_item,
    move_oldest,
    record_item,
    record_key,
    shard_of,
    shard_of_id,
)
from store.dump import BATCH, Restored, export, restore
from store.engine import (
    Client,
    connect_embedded,
    connect_url,
    engine_errors,
    history_id,
    look_at,
    memory_is_full,
    nothing,
    place_of,
    run_script,
)
from store.engine_checks import dangers
from store.farm import FarmQueue
from store.lineage import Lineage, what_changed
from store.records import path_pattern, stored_pattern
from store.reshard import Reshard
from store.shards import Request, ShardLeases

__all__ = [
    "ARCHIVED_AT_ONCE",
    "BATCH",
    "CANCELLED",
    "COMMON_KEYS",
    "STATES",
    "Archive",
    "Client",
    "FarmBudgets",
    "FarmQueue",
    "Identity",
    "JobViews",
    "Lineage",
    "Request",
    "Reshard",
    "Restored",
    "ShardLeases",
    "Success",
    "Wanted",
    "answer_key",
    "as_dict",
    "as_json",
    "bucket",
    "connect_embedded",
    "connect_url",
    "containers_of",
    "dangers",
    "done_key",
    "ended_key",
    "engine_errors",
    "export",
    "failure_cursor",
    "failure_range",
    "folded_prefix",
    "history_id",
    "identity_of",
    "key",
    "ledger_item",
    "look_at",
    "memory_is_full",
    "move_oldest",
    "nothing",
    "path_pattern",
    "place_of",
    "record_item",
    "record_key",
    "restore",
    "run_script",
    "shard_of",
    "shard_of_id",
    "stored_pattern",
    "what_changed",
]
