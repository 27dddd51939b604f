"""The archive of the oldest records: nothing is lost and nothing is read twice, wherever it is cut."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from config import Settings
from model import Page, Result
from parse_ import aid_to_bvid
from redisConnect import Queue
from store import archive


def key(name: str) -> str:
    return f"{{bili:0}}:{name}"


@pytest.fixture
def limited(settings: Settings) -> Settings:
    return dataclasses.replace(settings, success_limit=5)


@pytest.fixture
def queue(connection: redis.Redis, limited: Settings) -> Queue:
    return Queue(connection, limited)


def finish(queue: Queue, count: int, first: int = 1) -> list[str]:
    """Let pages be finished, one after the other; return their ids."""
    urls = []
    for number in range(first, first + count):
        queue.add([aid_to_bvid(number)], category="music")
        (lease,) = queue.lease("w1", 1)
        page = queue.expand(lease.url, lease.token, [Page(1, number + 1000, "p")]).lease
        assert page is not None
        queue.ack(page.url, page.token, Result(f"music/Title {number}.mp4", number, 1.5, f"Title {number}", "720P"))
        urls.append(page.url)
    return urls


def everything(read: Callable[[str], tuple[list[dict[str, Any]], str | None]]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        part, after = read(after)
        items += part
    return items


def lines(settings: Settings) -> list[dict[str, Any]]:
    files = sorted((settings.data_dir / "archive").glob("done-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines() if line]


def facts(job: dict[str, Any] | None) -> dict[str, Any]:
    assert job is not None
    return {name: value for name, value in job.items() if name != "archived"}


def test_the_oldest_move_and_are_told_as_before(queue: Queue, connection: redis.Redis, limited: Settings) -> None:
    urls = finish(queue, 12)
    before, listed = [queue.job(url) for url in urls], everything(lambda after: queue.success(after, 4))
    assert queue.archive() == 7
    assert connection.xlen(key("success")) == 5 and queue.archive() == 0
    assert [line["url"] for line in lines(limited)] == urls[:7]
    assert [facts(queue.job(url)) for url in urls] == [facts(job) for job in before]
    (place,) = queue.archives()
    assert [(queue.job(url) or {}).get("archived") for url in (urls[0], urls[11])] == [[place], None]
    assert queue.archives() == {place: 7} and place.endswith(str(limited.data_dir / "archive"))
    for limit in (1, 3, 4, 100):
        again = everything(lambda after, limit=limit: queue.success(after, limit))  # type: ignore[misc]
        assert [item["url"] for item in again] == urls
    assert [item["time"] for item in again] == [item["time"] for item in listed]
    newest_first = everything(lambda after: queue.jobs("done", after=after, limit=5))
    assert [job["url"] for job in newest_first if "?" in job["url"]] == urls[::-1]
    titled = everything(lambda after: queue.jobs(find="title", after=after, limit=5))
    assert sorted(job["url"] for job in titled) == sorted(urls)
    assert queue.counts().done == 12


def test_who_has_no_files_says_where_they_are(
    queue: Queue, connection: redis.Redis, limited: Settings, tmp_path: Path
) -> None:
    urls = finish(queue, 7)
    queue.archive()
    other = Queue(connection, dataclasses.replace(limited, data_dir=tmp_path / "other"))
    job = other.job(urls[0]) or {}
    assert job["state"] == "done" and job["archived"] == list(queue.archives()) and "path" not in job
    assert [item["url"] for item in other.success("", 100)[0]] == urls[2:]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("stage", ["before the write", "in the middle of a line", "before the index", "before Redis"])
def test_a_kill_at_any_point_loses_and_doubles_nothing(
    queue: Queue, connection: redis.Redis, limited: Settings, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    urls = finish(queue, 12)

    def die(*_args: Any, **_more: Any) -> Any:
        raise Killed

    def tear(archive: archive.Archive, path: Path, records: Any) -> None:
        path.write_bytes(json.dumps(records[0]).encode()[:40])
        raise Killed

    with monkeypatch.context() as patch:
        if stage == "before the write":
            patch.setattr(archive.Archive, "_write", die)
        elif stage == "in the middle of a line":
            patch.setattr(archive.Archive, "_write", tear)
        elif stage == "before the index":
            whole = archive.Archive._write
            patch.setattr(archive.Archive, "_write", lambda *a: (whole(*a), die()))
        else:
            patch.setattr(queue, "run", die)
        with pytest.raises(Killed):
            queue.archive()
    assert connection.xlen(key("success")) == 12
    assert [item["url"] for item in everything(lambda after: queue.success(after, 5))] == urls
    again = Queue(connection, limited)  # another process
    assert again.archive() == 7
    assert [item["url"] for item in everything(lambda after: again.success(after, 5))] == urls
    assert all(facts(again.job(url)) for url in urls)
    told = [
        entry for line in (limited.data_dir / "archive").glob("done-*.jsonl") for entry in line.read_text().split("\n")
    ]
    whole_lines = [json.loads(line)["entry"] for line in told if line.endswith("}")]
    assert len(whole_lines) == len(set(whole_lines)) == 7


def test_an_index_that_is_lost_or_damaged_is_made_again(queue: Queue, limited: Settings) -> None:
    urls = finish(queue, 12)
    queue.archive()
    index = limited.data_dir / "archive" / "index.sqlite"
    for content in (None, b"no database" * 1000):
        for path in index.parent.glob("index.sqlite*"):
            path.unlink()
        if content is not None:
            index.write_bytes(content)
        assert [item["url"] for item in queue.success("", 100)[0]] == urls


def test_what_is_forgotten_is_told_no_more_and_told_anew_when_it_is_done_again(queue: Queue) -> None:
    urls = finish(queue, 12)
    queue.archive()
    assert queue.forget(urls[:2]) == 2
    assert queue.job(urls[0]) is None
    assert [item["url"] for item in queue.success("", 100)[0]] == urls[2:]
    assert queue.counts().done == 10
    finish(queue, 1)
    assert [item["url"] for item in queue.success("", 100)[0]] == [*urls[2:], urls[0]]
    finish(queue, 12, first=50)
    queue.archive()
    assert sum(item["url"] == urls[0] for item in queue.success("", 100)[0]) == 1


def test_a_second_process_leaves_the_archive_alone(queue: Queue, connection: redis.Redis, limited: Settings) -> None:
    finish(queue, 12)
    with archive.Archive(limited.data_dir / "archive", str).held() as is_ours:
        assert is_ours and queue.archive() == 0
    assert queue.archive() == 7


def test_a_disk_that_refuses_keeps_the_records_in_redis(
    queue: Queue, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = finish(queue, 12)

    def refuse(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for _turn in range(2):
            assert queue.archive() == 0 and connection.xlen(key("success")) == 12
    assert queue.archive() == 7
    assert [item["url"] for item in queue.success("", 100)[0]] == urls


def test_files_go_on_when_they_are_large(queue: Queue, limited: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FILE_BYTES", 100)
    urls = finish(queue, 8)
    queue.archive()
    urls += finish(queue, 4, first=50)
    queue.archive()
    assert len(list((limited.data_dir / "archive").glob("done-*.jsonl"))) == 2
    assert [item["url"] for item in queue.success("", 100)[0]] == urls
