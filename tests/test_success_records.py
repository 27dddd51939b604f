"""How a record is packed: whatever comes in comes out, and what many share is kept once."""

from __future__ import annotations

import redis
from hypothesis import given
from hypothesis import strategies as st

from config import Settings
from model import Page, Result
from parse_ import aid_to_bvid
from redisConnect import Queue
from store.records import LITERAL, path_pattern, stored_pattern, unpacked, word_keys

BV = aid_to_bvid(170001)
URL = f"{BV}?p=3&cid=279786"


def key(name: str) -> str:
    return f"{{bili:0}}:{name}"


def there_and_back(path: str, url: str, title: str, stored: str = "") -> tuple[str, str]:
    """Return path and address as they are read again; the patterns are words, as they mostly are."""
    words = {"<1": path_pattern(path, url, title), "<2": stored_pattern(stored, path, url, title)}
    fields = {"url": url, "title": title, "bytes": "1", "tenths": "15", "worker": "=w"}
    is_word = {name: not words[number].startswith(LITERAL) for name, number in (("path", "<1"), ("stored", "<2"))}
    fields["path"] = "1" if is_word["path"] else words["<1"]
    fields["stored"] = "2" if is_word["stored"] else words["<2"]
    plain = unpacked(fields, {name: words[name] for name in word_keys([fields])})
    return plain["path"], plain["stored"]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["", "=", "==", "\x01", "\x0e", "P3", "279786", BV]
)


@given(TEXTS, TEXTS, TEXTS, st.sampled_from([URL, f"ep12?cid={2**53 - 1}", "cheese:ep7?cid=5", f"{BV}?p=12345&cid=1"]))
def test_every_path_comes_back(title: str, before: str, behind: str, url: str) -> None:
    for path in (
        before,
        f"{before}{title}{behind}",
        f"{before}{url}{title}{behind}{title}",
        f"{BV}{before}P03{behind}",
    ):
        stored = f"sftp://{before}/{path}"
        assert there_and_back(path, url, title, stored) == (path, stored)


def test_paths_of_one_template_share_a_pattern() -> None:
    patterns = {
        path_pattern(f"music/{title} [{aid_to_bvid(aid)}].mp4", f"{aid_to_bvid(aid)}?p=1&cid={aid + 7}", title)
        for aid, title in ((5, "一个标题"), (6, "another one"), (7, "x/y?z"))
        for title in (title.replace("/", "／").replace("?", "？"),)
    }
    assert len(patterns) == 1
    pages = {
        path_pattern(
            f"a/Video [{BV}]/P{number:02} Part{number}.mp4",
            f"{BV}?p={number}&cid=9{number}",
            f"Video P{number} Part{number}",
        )
        for number in (1, 2, 10, 99)
    }
    assert len(pages) == 1


def test_a_name_that_the_file_system_refuses_is_found_in_the_path() -> None:
    pattern = path_pattern(f"other/a：b？ [{BV}].mp4", URL, "a:b?")
    assert pattern == path_pattern(f"other/其他的 [{BV}].mp4", URL, "其他的")
    assert there_and_back(f"other/a：b？ [{BV}].mp4", URL, "a:b?")[0] == f"other/a：b？ [{BV}].mp4"


def finish(queue: Queue, number: int, worker: str, result: Result, **about: str) -> str:
    """Let one page be finished; return its id."""
    queue.add([aid_to_bvid(number)], **about)  # type: ignore[arg-type]
    (lease,) = queue.lease(worker, 1)
    page = queue.expand(lease.url, lease.token, [Page(1, number + 1000, "p")]).lease
    assert page is not None
    queue.ack(page.url, page.token, result)
    return page.url


def test_records_are_told_as_they_came(queue: Queue, connection: redis.Redis) -> None:
    workers = ["w1", "12", "=x", "==", "<1", "机器"]
    urls = [
        finish(
            queue,
            number + 1,
            name,
            Result(f"c/T{number}ile.mp4", 10**12 + number, 12.34, f"T{number}ile", "1080P"),
            category="c",
            source="mid:1",
        )
        for number, name in enumerate(workers)
    ]
    items, following = queue.success("", 10)
    assert [(item["url"], item["worker"], item["path"], item["bytes"]) for item in items] == [
        (url, name, f"c/T{n}ile.mp4", 10**12 + n) for n, (url, name) in enumerate(zip(urls, workers, strict=True))
    ]
    assert {(item["seconds"], item["streams"]) for item in items} == {(12.3, "1080P")} and following is None
    assert {(job["category"], job["source"]) for job in (queue.job(url) for url in urls) if job} == {("c", "mid:1")}
    (fields,) = [fields for _entry, fields in connection.xrange(key("success"), count=1)]
    assert "c/" not in fields["path"] and fields["streams"].isdecimal(), "what is shared is a number"


def test_words_are_bounded_and_what_comes_later_is_told_all_the_same(
    queue: Queue, connection: redis.Redis, settings: Settings
) -> None:
    connection.hset(key("words"), "#worker", 4000)
    url = finish(queue, 1, "one more", Result("a.mp4", 1, 1.0, "T"))
    assert connection.hget(key("words"), ">one more") is None
    assert (queue.job(url) or {})["worker"] == "one more"


def test_records_of_earlier_versions_are_told(queue: Queue, connection: redis.Redis) -> None:
    old = {"url": URL, "title": "T", "path": "3", "bytes": "5", "seconds": "2.5", "worker": "7", "streams": "="}
    connection.xadd(key("success"), old)
    (item,), _none = queue.success("", 5)
    assert (item["path"], item["worker"], item["streams"], item["seconds"]) == ("3", "7", "=", 2.5)
