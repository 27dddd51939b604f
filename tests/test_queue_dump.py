"""Export and import: all that can be asked of a queue is the same afterwards, also where it was cut and done again."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from config import ROOT, Settings
from errors import UsageError
from model import Failure, Lease, ListedPage, Page, Result
from parse_ import aid_to_bvid, parse_job_id
from redisConnect import Queue
from store.dump import Restored, export, restore
from tests import structure
from tests.conftest import running_valkey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # an export looks at every bucket


@pytest.fixture(scope="module")
def other_socket() -> Iterator[str]:
    """Another Valkey, for the queue that is imported into."""
    with running_valkey() as path:
        yield path


@pytest.fixture
def other(other_socket: str) -> Iterator[redis.Redis]:
    connection = redis.Redis(unix_socket_path=other_socket, decode_responses=True, encoding_errors="replace")
    connection.flushall()
    yield connection
    assert structure.problems(connection) == []
    connection.close()


def only(leases: Sequence[Lease]) -> Lease:
    (lease,) = leases
    return lease


def busy(queue: Queue) -> list[str]:
    """Bring a queue into all states; return the ids of its jobs."""
    videos = [aid_to_bvid(number) for number in range(1, 40)]
    queue.add(videos[:30], category="music")
    queue.add(["ep12", f"{videos[3]}?p=2", "cheese:ep5"])
    queue.add(["mid:7", "season:9"], wishes={"limit": 5, "match": "x"}, watch=3600)
    queue.watch(videos[1], 90_000)
    urls = [*videos[:30], "ep12", f"{videos[3]}?p=2", "cheese:ep5", "mid:7", "season:9"]
    for number in range(8):  # read and downloaded, in part
        lease = only(queue.lease("w1", 1))
        while parse_job_id(lease.url).is_page:
            queue.ack(lease.url, lease.token, Result("x.mp4", 1, 2.0, "Another"))
            lease = only(queue.lease("w1", 1))
        pages = [Page(n, 1000 * (number + 1) + n, f"p{n}") for n in range(1, 4)]
        expanded = queue.expand(lease.url, lease.token, pages).lease
        assert expanded is not None
        urls += [f"{lease.url}?p={page.number}&cid={page.cid}" for page in pages]
        result = Result(f"music/T [{lease.url}]/P01 p1.mp4", 10 + number, 1.5, f"T P1 p1 {number}", "720P")
        queue.ack(expanded.url, expanded.token, result)
        failing = only(queue.lease("w2", 1))
        kind = ("permanent", "transient", "waiting", "environment")[number % 4]
        queue.nack(failing.url, failing.token, Failure(kind, "-404", "reason 理由", f"A title {number}"))
    source = queue.claim("mid:8", "w1", wishes={"since": 5})
    assert isinstance(source, Lease)
    queue.expand("mid:8", source.token, [], videos[30:33], True, ListedPage(1, "An uploader", 9, 2, cursor="c2"))
    urls += ["mid:8", *videos[30:33]]
    queue.cancel([videos[20], videos[21]])
    queue.first([videos[25], videos[26]])
    queue.forget([urls[35]])
    held = queue.lease("w3", 2)
    queue.heartbeat("w3", [(one.url, one.token, 5000) for one in held], {}, {held[0].url: "A leased title"})
    return [url for url in urls if url != urls[35]]


def asked(queue: Queue, urls: Sequence[str]) -> dict[str, Any]:
    """Return what can be asked of a queue; a lease is another one's to take up again."""
    jobs = {}
    for url in urls:
        job = queue.job(url)
        if job is not None:
            job["state"] = "ready" if job["state"] == "leased" else job["state"]
            job["next_retry_seconds"] = job["next_retry_seconds"] is not None
        jobs[url] = job
    counts = queue.counts()
    sources = queue.sources("", 100)[0]
    for one in sources:
        one["state"] = "ready" if one["state"] == "leased" else one["state"]
    failed = queue.failed("", 500)[0]
    for item in failed:
        item["next_retry_seconds"] = item["next_retry_seconds"] is not None
    return {
        "jobs": jobs,
        "counts": (counts.ready + counts.leased, counts.delayed, counts.done, counts.dead),
        "sources": sources,
        "success": queue.success("", 500)[0],
        "failed": failed,
        "groups": queue.failure_groups(),
        "titles": [job["url"] for job in queue.jobs(find="a title", limit=500)[0]],
    }


def lines_of(queue: Queue) -> list[bytes]:
    return [json.dumps(line).encode() + b"\n" for line in export(queue)]


def brought(queue: Queue, lines: Sequence[bytes]) -> Restored:
    restored = Restored()
    restore(queue, lines, restored)
    return restored


def body(lines: Sequence[bytes]) -> list[bytes]:
    return list(lines)[1:]


def test_all_that_can_be_asked_is_the_same(queue: Queue, other: redis.Redis, settings: Settings) -> None:
    urls = busy(queue)
    lines = lines_of(queue)
    target = Queue(other, settings)
    restored = brought(target, lines)
    assert (restored.known, restored.wrong, restored.is_whole, restored.moved) == (0, [], True, False)
    assert asked(target, urls) == asked(queue, urls)
    again = brought(target, lines)
    assert again.added == 0 and asked(target, urls) == asked(queue, urls)
    assert body(lines_of(target))[-1] == body(lines)[-1]
    assert sorted(body(lines_of(target))) != [] and target.lease("w9", 64), "what was imported is leased"


def test_what_lies_in_more_buckets_than_are_read_at_once_is_all_told(queue: Queue) -> None:
    """Videos that were read, and pages that are done without a record: more of them than go into one question."""
    numbers = range(10**9, 10**9 + 1000 * 9973, 9973)
    urls, cids = [aid_to_bvid(number) for number in numbers], [number + 5 for number in numbers]
    told = [{"kind": "closed", "urls": urls[:500]}, {"kind": "closed", "urls": urls[500:], "paged": urls[900:]}]
    told += [{"kind": "done", "cids": cids[:500]}, {"kind": "done", "cids": cids[500:]}]
    head = {"format": "bili-queue", "version": 1, "time": 0}
    brought(queue, [json.dumps(line).encode() + b"\n" for line in (head, *told)])
    lines = list(export(queue))
    for kind, field, wanted in (("closed", "urls", urls), ("closed", "paged", urls[900:]), ("done", "cids", cids)):
        found = [one for line in lines if line.get("kind") == kind for one in line.get(field, ())]
        assert sorted(found) == sorted(wanted), (kind, field)


def test_jobs_that_wait_keep_their_order(queue: Queue, other: redis.Redis, settings: Settings) -> None:
    videos = [aid_to_bvid(number) for number in range(1, 1400)]
    for start in range(0, len(videos), 500):
        queue.add(videos[start : start + 500])
    queue.first([videos[1200], videos[700]])
    queue.cancel([videos[5], videos[1300]])
    target = Queue(other, settings)
    brought(target, lines_of(queue))
    orders = [[lease.url for _turn in range(22) for lease in one.lease("w", 64)] for one in (queue, target)]
    assert orders[0] == orders[1] and len(orders[0]) == 1397


@pytest.mark.parametrize("seed", range(6))
def test_an_import_that_is_cut_anywhere_is_done_again(
    queue: Queue, other: redis.Redis, settings: Settings, seed: int
) -> None:
    urls = busy(queue)
    lines = lines_of(queue)
    target = Queue(other, settings)
    part = lines[: random.Random(seed).randrange(1, len(lines))]
    first = brought(target, [*part[:-1], part[-1][: len(part[-1]) // 2]]) if len(part) > 1 else Restored()
    assert not first.is_whole
    assert brought(target, lines).is_whole
    assert asked(target, urls) == asked(queue, urls)


def test_what_is_there_stays_and_what_is_done_is_done(queue: Queue, other: redis.Redis, settings: Settings) -> None:
    urls = busy(queue)
    target = Queue(other, settings)
    done = queue.success("", 500)[0][-1]["url"]
    video = done.partition("?")[0]
    new = aid_to_bvid(999)
    target.add([video, new], category="other place")
    lease = only(target.lease("x", 1))
    target.expand(lease.url, lease.token, [Page(parse_job_id(done).number, parse_job_id(done).cid, "p")])
    assert (target.job(done) or {})["state"] == "leased"
    (one,) = [line for line in lines_of(queue) if json.loads(line).get("url") == done]
    restored = brought(target, lines_of(queue))
    assert restored.known > 0 and one
    assert (target.job(done) or {})["state"] in ("done", "leased")
    assert target.counts().done == queue.counts().done
    assert (target.job(new) or {})["state"] == "ready"
    assert [target.job(url) is None for url in urls] == [queue.job(url) is None for url in urls]


def test_archived_records_go_with_it(
    connection: redis.Redis, other: redis.Redis, settings: Settings, tmp_path: Path
) -> None:
    queue = Queue(connection, dataclasses.replace(settings, success_limit=3))
    urls = busy(queue)
    assert queue.archive() > 0
    target = Queue(other, dataclasses.replace(settings, data_dir=tmp_path / "another"))
    brought(target, lines_of(queue))
    assert [item["url"] for item in target.success("", 500)[0]] == [item["url"] for item in queue.success("", 500)[0]]
    assert target.counts().done == queue.counts().done
    without = Queue(connection, dataclasses.replace(settings, data_dir=tmp_path / "a third"))
    other.flushall()
    brought(target, lines_of(without))
    assert target.counts().done == queue.counts().done
    assert [target.job(url) is None for url in urls] == [queue.job(url) is None for url in urls]
    other.flushall()  # pages without records are no sound data elsewhere


@pytest.mark.parametrize(
    "line",
    [
        *(b"[]", b"{", b'"x"', b'{"kind":"job"}', b'{"kind":"job","url":"rubbish","state":"ready"}', b'{"kind":"odd"}'),
        *(b'{"kind":"record","entry":"x"}', b'{"kind":"done","cids":["x"]}'),
        b'{"kind":"closed","urls":["BV1xx411c7mD?p=1&cid=3"]}',
        *(
            b'{"kind":"job","url":"BV17x411w7KC","state":"ready",' + fields + b"}"
            for fields in (
                *(b'"origin":{"category":"../../x"}', b'"origin":{"category":5}', b'"origin":{"wishes":7}'),
                *(
                    b'"tries":{"attempts":"x","deaths":0}',
                    b'"tries":{"attempts":-5,"deaths":0}',
                    b'"tries":{"deaths":1}',
                ),
                *(b'"tries":{"attempts":0,"deaths":{}}', b'"tries":{"attempts":0,"deaths":0,"errors":{"x":1}}'),
            )
        ),
    ],
)
def test_a_line_that_is_none_is_named_and_the_others_come(queue: Queue, line: bytes) -> None:
    head = b'{"format":"bili-queue","version":1,"time":1}'
    job = b'{"kind":"job","url":"BV1xx411c7mD","state":"ready"}'
    restored = brought(queue, [head, line, b"\n", job, b'{"kind":"end","lines":{},"moved":false}'])
    assert (restored.wrong_count, restored.added, restored.is_whole) == (1, 1, True)
    assert restored.wrong[0].startswith("line 2")


@pytest.mark.parametrize(
    "head", [b"BV1xx411c7mD", b"{}", b'{"format":"other"}', b'{"format":"bili-queue","version":2}']
)
def test_what_is_no_export_is_refused_at_its_first_line(queue: Queue, head: bytes) -> None:
    with pytest.raises(UsageError):
        brought(queue, [head, b'{"kind":"job","url":"BV1xx411c7mD","state":"ready"}'])
    assert queue.counts().ready == 0


def run(settings: Settings, socket: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "REDIS_URL": f"unix://{socket}", "BILI_DATA_DIR": str(settings.data_dir), "LANGUAGE": "en"}
    command = [sys.executable, str(ROOT / "add_url.py"), *arguments]
    return subprocess.run(command, env=environ, input=stdin, capture_output=True, timeout=50, check=False)


@pytest.mark.slow
def test_the_command_line_writes_and_reads_files_and_pipes(
    queue: Queue, other: redis.Redis, other_socket: str, valkey_socket: str, settings: Settings, tmp_path: Path
) -> None:
    urls, target = busy(queue), Queue(other, settings)
    for name in ("q.jsonl", "q.jsonl.gz"):
        file = tmp_path / name
        told = run(settings, valkey_socket, "--export", str(file))
        assert told.returncode == 0 and told.stdout.startswith(b"exported "), told.stderr
        content = gzip.decompress(file.read_bytes()) if name.endswith("gz") else file.read_bytes()
        assert content.startswith(b'{"format":"bili-queue"')
        other.flushall()
        told = run(settings, other_socket, "--import", str(file))
        assert told.returncode == 0 and b", known 0, rejected 0" in told.stdout, told.stderr
        assert asked(target, urls) == asked(queue, urls)
    piped = run(settings, valkey_socket, "--export", "-").stdout
    other.flushall()
    assert run(settings, other_socket, "--import", "-", stdin=piped).returncode == 0
    assert asked(target, urls) == asked(queue, urls)
    cut = run(settings, other_socket, "--import", "-", stdin=piped[: len(piped) // 2])
    assert cut.returncode == 1 and b"it was cut" in cut.stderr
    assert run(settings, other_socket, "--import", "-", "BV1xx411c7mD").returncode == 2
    assert run(settings, other_socket, "--import", str(tmp_path / "none")).returncode == 2


@pytest.mark.slow
def test_an_import_that_is_killed_is_done_again(
    queue: Queue, other: redis.Redis, other_socket: str, settings: Settings, tmp_path: Path
) -> None:
    for start in range(0, 30_000, 1000):
        queue.add([aid_to_bvid(number + 1) for number in range(start, start + 1000)])
    file = tmp_path / "q.jsonl"
    file.write_bytes(b"".join(lines_of(queue)))
    environ = {**os.environ, "REDIS_URL": f"unix://{other_socket}", "BILI_DATA_DIR": str(settings.data_dir)}
    with subprocess.Popen([sys.executable, str(ROOT / "add_url.py"), "--import", str(file)], env=environ) as process:
        deadline = time.monotonic() + 20
        while not other.llen("{bili:0}:ready") and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    part = Queue(other, settings).counts().ready
    assert 0 < part < 30_000
    told = run(settings, other_socket, "--import", str(file))
    assert told.stdout.splitlines()[-1] == b"imported %d, known %d, rejected 0" % (30_000 - part, part)
    assert other.lrange("{bili:0}:ready", 0, -1) == [aid_to_bvid(number + 1) for number in range(30_000)]
