"""Records of several shards: in the archive, in an export, and after the shards were made more or fewer."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import redis

from config import Settings
from model import ListedPage
from redisConnect import Queue
from store.data import key
from store.dump import Restored, export, restore
from store.reshard import Reshard
from tests import structure
from tests.test_success_archive import everything, finish, lines

WAYS = [(1, 3), (3, 1), (3, 2), (3, 3)]


@pytest.fixture
def limited(settings: Settings) -> Settings:
    return dataclasses.replace(settings, success_limit=5)


def queue_of(connection: redis.Redis, settings: Settings, shards: int) -> Queue:
    return Queue(connection, dataclasses.replace(settings, shards=shards))


def told(queue: Queue) -> dict[str, Any]:
    """Return what is told of finished pages and sources, without the places where records lie."""
    pages = everything(lambda after: queue.success(after, 4))
    return {
        "pages": sorted((page["url"], page["title"], page["path"], page["worker"], page["time"]) for page in pages),
        "sources": everything(lambda after: queue.sources(after, 2)),
        "done": queue.counts().done,
    }


def read_sources(queue: Queue, count: int = 5) -> None:
    queue.add([f"mid:{number}" for number in range(1, count + 1)])
    while leases := queue.lease("w2", 10):
        for lease in leases:
            queue.expand(lease.url, lease.token, (), (), False, ListedPage(1, title=f"{lease.url} is read"))


def bring(lines_of_it: list[str], queue: Queue) -> Restored:
    restored = Restored()
    restore(queue, (line.encode() for line in lines_of_it), restored)
    return restored


@pytest.mark.parametrize("shards", [1, 3])
def test_the_oldest_of_all_shards_move_and_are_told_as_before(
    shards: int, connection: redis.Redis, limited: Settings
) -> None:
    queue = queue_of(connection, limited, shards)
    urls = finish(queue, 20)
    before = told(queue)
    assert queue.archive() == 15 and queue.archive() == 0
    assert [line["url"] for line in lines(limited)] == urls[:15]
    assert sum(connection.xlen(key("success", shard)) for shard in range(shards)) == 5
    assert queue.archives() == {next(iter(queue.archives())): 15}
    assert told(queue) == before
    for limit in (1, 3, 100):
        assert [page["url"] for page in everything(lambda after, limit=limit: queue.success(after, limit))] == urls  # type: ignore[misc]
    newest_first = everything(lambda after: queue.jobs("done", after=after, limit=3))
    assert [job["url"] for job in newest_first if "?" in job["url"]] == urls[::-1]
    titled = everything(lambda after: queue.jobs(find="title", after=after, limit=3))
    assert sorted(job["url"] for job in titled) == sorted(urls)
    assert queue.forget([urls[0], urls[19]]) == 2
    assert [page["url"] for page in everything(lambda after: queue.success(after, 7))] == urls[1:19]


def test_pages_of_two_shards_with_the_same_entry_are_both_archived(connection: redis.Redis, limited: Settings) -> None:
    queue = queue_of(connection, limited, 3)
    urls = finish(queue, 12)
    for shard in range(3):  # as if they had ended in the same milliseconds
        for number, (entry, fields) in enumerate(connection.xrange(key("success", shard))):
            connection.xdel(key("success", shard), entry)
            cid = fields["url"].rpartition("cid=")[2]
            connection.hset(key(f"record:{cid}", shard), cid, 10**13 + number)
            connection.xadd(key("success", shard), fields, f"{10**13 + number}-0")
    listed = [page["url"] for page in everything(lambda after: queue.success(after, 2))]
    assert sorted(listed) == sorted(urls)
    assert queue.archive() == 7
    for limit in (1, 2, 5, 100):
        again = everything(lambda after, limit=limit: queue.success(after, limit))  # type: ignore[misc]
        assert [page["url"] for page in again] == listed
    done = everything(lambda after: queue.jobs("done", after=after, limit=1))
    assert [job["url"] for job in done if "?" in job["url"]] == listed[::-1]


@pytest.mark.parametrize(
    ("before", "after"),
    [WAYS[0], *(pytest.param(*way, marks=pytest.mark.slow) for way in WAYS[1:])],
)
def test_an_export_comes_into_any_number_of_shards(
    before: int, after: int, connection: redis.Redis, limited: Settings
) -> None:
    queue = queue_of(connection, limited, before)
    finish(queue, 12)
    read_sources(queue)
    queue.add(["ep77", "ep78", "ep79", "mid:44"], watch=3600)
    queue.archive()
    seen = told(queue)
    lines_of_it = [json.dumps(line) for line in export(queue)]
    connection.flushall()
    other = queue_of(connection, dataclasses.replace(limited, data_dir=limited.data_dir / "other"), after)
    restored = bring(lines_of_it, other)
    assert restored.is_whole and not restored.wrong_count and not restored.moved
    assert told(other) == seen
    assert structure.problems(connection, after) == []
    again = bring(lines_of_it, other)
    assert again.added == 0 and again.known == restored.added + restored.known


@pytest.mark.parametrize(("before", "after"), WAYS[:3])
def test_spreading_moves_words_ledgers_and_archives(
    before: int, after: int, connection: redis.Redis, limited: Settings
) -> None:
    queue = queue_of(connection, limited, before)
    finish(queue, 20)
    read_sources(queue)
    queue.archive()
    seen, archives = told(queue), queue.archives()
    without_files = sorted(structure.problems(connection, before))  # it knows of records in Redis only
    connection.set(key("shards"), f"{before}>{after}")
    wide = queue_of(connection, limited, max(before, after))
    Reshard(connection, wide._run, before, after).run()
    spread = queue_of(connection, limited, after)
    assert told(spread) == seen and spread.archives() == archives
    assert sorted(structure.problems(connection, after)) == without_files
    lasting = [name for name in connection.keys("*") if connection.ttl(name) == -1]
    assert [name for name in lasting if int(name.split("}")[0].removeprefix("{bili:")) >= after] == []
    words = connection.hvals(key("words", 0))
    assert not [word for word in words if word.startswith("<")]
