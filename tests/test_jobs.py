"""Searching jobs and acting on them: each promise of the verbs, and that they cost the same in a long queue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from config import Settings
from errors import StaleToken
from model import Counts, Failure, Lease, Page, Result
from parse_ import aid_to_bvid, parse_job_id
from redisConnect import Queue, open_queue
from store.data import BUCKETS, FOLDED_BYTES, folded_prefix, identity_of
from tests import structure

BV = [aid_to_bvid(aid) for aid in range(170001, 170031)]
PAGE = f"{BV[0]}?p=1&cid=7"


def key(name: str) -> str:
    return f"{{bili:0}}:{name}"


def transient(title: str = "", code: str = "-500", reason: str = "the site stumbled") -> Failure:
    return Failure("transient", code, reason, title)


def permanent(title: str = "", code: str = "-404") -> Failure:
    return Failure("permanent", code, "deleted", title)


def lease(queue: Queue, worker: str = "w1") -> Lease:
    (one,) = queue.lease(worker, 1)
    return one


def page(queue: Queue, bvid: str = BV[0], cid: int = 7, **about: str) -> Lease:
    """Add a video of one page and return the lease of that page."""
    queue.add([bvid], **about)
    container = lease(queue)
    given = queue.expand(container.url, container.token, [Page(1, cid, "part")]).lease
    assert given is not None
    return given


def finish(queue: Queue, one: Lease, title: str = "A title", streams: str = "") -> None:
    cid = parse_job_id(one.url).cid
    assert queue.ack(one.url, one.token, Result(f"other/{cid}.mp4", 1000, 12.5, title, streams)) == "done"


def fail(queue: Queue, failure: Failure) -> str:
    one = lease(queue)
    queue.nack(one.url, one.token, failure)
    return one.url


def all_of(read: Callable[[str], tuple[list[dict[str, Any]], str | None]]) -> list[str]:
    """Return the ids that a listing has, read to its end."""
    urls, after = [], ""
    for _turn in range(100):
        items, following = read(after)
        urls += [item["url"] for item in items]
        if following is None:
            return urls
        after = following
    raise AssertionError("it never ends")


@pytest.fixture
def queue(connection: redis.Redis, settings: Settings) -> Queue:
    """One whose delays are never over at once."""
    return Queue(connection, settings, draw=lambda: 0.5)


@pytest.fixture(autouse=True)
def _the_data_are_sound(connection: redis.Redis) -> Iterator[None]:
    yield
    assert structure.problems(connection) == []


# ------------------------------------------------------------------------------------------ the life of a job


def test_a_job_tells_its_last_eight_failures_and_takes_them_into_its_record(
    queue: Queue, connection: redis.Redis
) -> None:
    one = page(queue, category="music")
    for number in range(1, 11):
        queue.nack(
            one.url, one.token, transient("A title", str(-number)) if number % 2 else Failure("environment", "9", "r")
        )
        queue.redrive([one.url])
        one = lease(queue, f"w{number}")
    job = queue.job(PAGE)
    assert job is not None and (job["state"], job["worker"], job["category"]) == ("leased", "w10", "music")
    assert [error["code"] for error in job["errors"]] == ["-3", "9", "-5", "9", "-7", "9", "-9", "9"]
    assert {**job["errors"][-2], "time": 0} == {
        "time": 0,
        "worker": "w8",
        "attempt": 1,
        "code": "-9",
        "reason": "the site stumbled",
    }
    finish(queue, one, streams="1080P AVC · 192K")
    done = queue.job(PAGE)
    assert done is not None and done["errors"] == job["errors"]
    assert (done["state"], done["worker"], done["streams"]) == ("done", "w10", "1080P AVC · 192K")
    assert (done["path"], done["bytes"], done["category"], done["attempts"]) == ("other/7.mp4", 1000, "music", 1)
    assert queue.success("", 9)[0][0]["streams"] == "1080P AVC · 192K"


def test_a_long_reason_is_cut_between_characters(queue: Queue, connection: redis.Redis) -> None:
    one = page(queue)
    queue.nack(one.url, one.token, transient(reason="二" * 500))
    job = queue.job(PAGE)
    assert job is not None and job["errors"][0]["reason"] == "二" * 66
    assert job["reason"] == "二" * 500
    assert len(connection.hget(key("tries"), PAGE)) < 1500


def test_a_job_that_was_never_added_is_none(queue: Queue) -> None:
    assert queue.job(PAGE) is None
    assert queue.job("mid:1") is None
    with pytest.raises(ValueError, match="id"):
        queue.job("rubbish")


def test_a_video_that_was_read_is_done_and_has_no_path(queue: Queue) -> None:
    page(queue)
    job = queue.job(BV[0])
    assert job is not None and job["state"] == "done" and "path" not in job


def test_a_record_in_the_words_of_another_id_is_found_by_its_page(queue: Queue) -> None:
    finish(queue, page(queue))
    job = queue.job("ep5?cid=7")
    assert job is not None and (job["url"], job["state"]) == (PAGE, "done")


def test_two_records_of_one_millisecond_are_told_apart(queue: Queue, connection: redis.Redis) -> None:
    results = [(f"{BV[0]}?p={n}&cid={n}", Result(f"{n}.mp4", n, 1.0)) for n in range(1, 101)]
    queue.replay("w1", results)
    assert any("-" in connection.hget(key(f"record:{n}"), str(n)) for n in range(1, 101))
    for url, result in results:
        job = queue.job(url)
        assert job is not None and (job["url"], job["path"]) == (url, result.path)


def test_what_a_worker_tells_of_a_title_is_known_while_it_works(queue: Queue, connection: redis.Redis) -> None:
    one = page(queue)
    for title in ("First", "First", "Second"):
        queue.heartbeat("w1", [(one.url, one.token, 0)], {}, {one.url: title})
    assert [item["title"] for item in queue.jobs(find="second")[0]] == ["Second"]
    assert queue.jobs(find="first") == ([], None)
    assert connection.zcard(key("titles")) == 1


# ------------------------------------------------------------------------------------------ lists


def test_jobs_are_listed_by_state_in_the_order_of_their_places(queue: Queue, connection: redis.Redis) -> None:
    finish(queue, page(queue, BV[0], 1))
    finish(queue, page(queue, BV[1], 2))
    queue.add(BV[2:12])
    dead = [fail(queue, permanent()) for _n in range(2)]
    delayed = [fail(queue, transient()) for _n in range(2)]
    for place, url in enumerate(delayed):
        connection.zadd(key("delayed"), {url: 4e12 - place})
    for place, url in enumerate(dead):
        connection.zadd(key("dead"), {url: 1e12 + place})
    leased = sorted(one.url for one in queue.lease("w1", 2))
    queue.first([BV[11]])
    done = [f"{BV[1]}?p=1&cid=2", f"{BV[0]}?p=1&cid=1"]
    ready = [BV[11], *BV[8:11]]
    wanted = {"leased": leased, "ready": ready, "delayed": delayed[::-1], "dead": dead[::-1], "done": done}
    for limit in (1, 2, 100):
        for state, urls in wanted.items():
            assert all_of(lambda after, s=state, n=limit: queue.jobs(s, after=after, limit=n)) == urls, (state, limit)
        everything = [url for urls in wanted.values() for url in urls]
        assert all_of(lambda after, n=limit: queue.jobs(after=after, limit=n)) == everything
    (first,), _next = queue.jobs("delayed", limit=1)
    assert first["next_retry_seconds"] > 20_000 and first["attempts"] == 1 and "errors" not in first


def test_a_list_goes_on_where_it_was_although_jobs_left_its_head(queue: Queue) -> None:
    queue.add(BV)
    items, following = queue.jobs("ready", limit=10)
    assert [item["url"] for item in items] == BV[:10]
    queue.lease("w1", 7)
    queue.first([BV[29]])
    items, following = queue.jobs("ready", after=following or "", limit=10)
    assert [item["url"] for item in items] == BV[10:20]
    queue.lease("w1", 16)  # those that were listed last, too
    assert [item["url"] for item in queue.jobs("ready", after=following or "", limit=9)[0]] == BV[22:29]


@pytest.mark.parametrize("ties", [False, True])
def test_a_sorted_list_goes_on_where_it_was_although_the_last_one_has_left(
    queue: Queue, connection: redis.Redis, ties: bool
) -> None:
    queue.add(BV[:6])
    urls = [fail(queue, transient()) for _n in range(6)]
    now_ms = connection.time()[0] * 1000
    connection.zadd(key("delayed"), {url: now_ms + 10_000 + (0 if ties else place) for place, url in enumerate(urls)})
    listed = all_of(lambda after: queue.jobs("delayed", after=after, limit=2))
    assert sorted(listed) == sorted(urls)
    _items, following = queue.jobs("delayed", limit=3)
    queue.redrive([listed[2], listed[0]])
    assert all_of(lambda after: queue.jobs("delayed", after=after or following or "", limit=2)) == listed[3:]


def test_jobs_are_chosen_by_category_and_source_also_when_they_are_done(queue: Queue) -> None:
    queue.add(BV[:3], "music")
    queue.add(BV[3:6], source="mid:5")
    assert all_of(lambda after: queue.jobs(category="music", after=after, limit=2)) == BV[:3]
    assert all_of(lambda after: queue.jobs(source="mid:5", after=after, limit=2)) == BV[3:6]
    assert queue.jobs(category="music", source="mid:5") == ([], None)
    assert [item["category"] for item in queue.jobs(source="mid:5")[0]] == ["other"] * 3
    for cid in range(1, 7):
        container = lease(queue)
        given = queue.expand(container.url, container.token, [Page(1, cid, "part")]).lease
        assert given is not None
        finish(queue, given)
    assert [item["url"] for item in queue.jobs("done", "music")[0]] == [f"{BV[n]}?p=1&cid={n + 1}" for n in (2, 1, 0)]
    assert len(queue.jobs("done", source="mid:5")[0]) == 3


def test_a_job_is_found_by_its_id_in_whatever_state(queue: Queue) -> None:
    finish(queue, page(queue))
    queue.add([BV[1]])
    for url, state in ((PAGE, "done"), (BV[1], "ready")):
        ((job,), following) = queue.jobs(find=f" {url} ")
        assert (job["url"], job["state"], following) == (url, state, None)
        assert queue.jobs("dead", find=url) == ([], None)


def test_jobs_are_found_by_the_beginning_of_their_titles(queue: Queue) -> None:
    titles = ["Ｔｈｅ  Cat", "the CAT returns", "The dog", "猫の恩返し", "ß"]
    for cid, title in enumerate(titles, 1):
        finish(queue, page(queue, BV[cid], cid), title)
    queue.add([BV[0]])
    fail(queue, transient("THE CAT IS DELAYED"))

    def found(text: str, state: str = "", limit: int = 1) -> list[str]:
        read = all_of(lambda after: queue.jobs(state, find=text, after=after, limit=limit))
        return [str((queue.job(url) or {})["title"]) for url in read]

    assert found("the cat") == ["Ｔｈｅ  Cat", "THE CAT IS DELAYED", "the CAT returns"]
    assert found("THE") == [*found("the cat"), "The dog"]
    assert found("the cat", "delayed") == ["THE CAT IS DELAYED"]
    assert found("猫") == ["猫の恩返し"]
    assert found("SS") == ["ß"]
    assert found("cat") == found("the catx") == []


def test_a_search_longer_than_what_is_sorted_looks_at_whole_titles(queue: Queue) -> None:
    common = "二" * FOLDED_BYTES
    for cid, end in enumerate("abc", 1):
        finish(queue, page(queue, BV[cid], cid), common + end)
    assert [item["title"] for item in queue.jobs(find=common + "B")[0]] == [common + "b"]
    assert len(queue.jobs(find=common)[0]) == 3


def test_of_those_that_are_done_only_the_last_ones_are_found_by_title(
    connection: redis.Redis, settings: Settings
) -> None:
    queue = Queue(connection, settings)
    limit = "TITLES_LIMIT = 100000"
    having = [script for script in queue._scripts.values() if limit in script.script]
    assert having
    for script in having:
        script.script = script.script.replace(limit, "TITLES_LIMIT = 3")
        script.sha = connection.script_load(script.script)
    for cid in range(1, 6):
        finish(queue, page(queue, BV[cid], cid), f"title {cid}")
    assert [item["title"] for item in queue.jobs(find="title")[0]] == ["title 3", "title 4", "title 5"]
    assert connection.llen(key("titled")) == connection.zcard(key("titles")) == 3
    assert queue.job(f"{BV[1]}?p=1&cid=1") is not None


@pytest.mark.parametrize(
    "after", ["ready", "nowhere 1 x", "ready x y", "done 5", "done x-1", "dead 1e9 x", "delayed ٣ x"]
)
def test_a_cursor_that_is_none_is_refused(queue: Queue, after: str) -> None:
    with pytest.raises(ValueError, match="next"):
        queue.jobs(after=after)


def test_a_state_that_is_none_is_refused(queue: Queue) -> None:
    with pytest.raises(ValueError, match="leased, ready"):
        queue.jobs("suspect")


def test_a_call_looks_at_a_bounded_number_of_jobs_and_goes_on(queue: Queue) -> None:
    queue.add([aid_to_bvid(aid) for aid in range(1, 2501)])
    queue.add([BV[0]], "music")
    turns, after, found = 0, "", []
    while turns < 10:
        items, following = queue.jobs(category="music", after=after)
        found, turns, after = found + items, turns + 1, following or ""
        if following is None:
            break
    assert ([item["url"] for item in found], turns) == ([BV[0]], 3)


# ------------------------------------------------------------------------------------------ failures


def test_failures_are_grouped_by_code_with_the_most_first(queue: Queue) -> None:
    queue.add(BV[:7])
    for failure in (
        permanent(),
        permanent(),
        permanent(),
        transient(),
        permanent(code="62002"),
        transient(code="-404"),
    ):
        fail(queue, failure)
    groups = queue.failure_groups()
    assert [(group["code"], group["dead"], group["delayed"]) for group in groups] == [
        ("-404", 3, 1),
        ("-500", 0, 1),
        ("62002", 1, 0),
    ]
    assert groups[1]["reason"] == "the site stumbled"
    assert len(queue.failed("", 10, "-404")[0]) == 4
    assert all_of(lambda after: queue.failed(after, 1, "-404")) == [item["url"] for item in queue.failed("", 4)[0]]
    assert queue.failed("", 10, "-40") == ([], None)
    assert queue.redrive_code("-404") == 3
    assert queue.counts() == Counts(4, 0, 2, 0, 1)
    assert queue.failure_groups()[0] == {"code": "-404", "reason": "the site stumbled", "dead": 0, "delayed": 1}


def test_hundreds_of_a_kind_are_redriven_past_those_that_are_delayed(queue: Queue) -> None:
    ids = [aid_to_bvid(aid) for aid in range(1, 351)]
    queue.add(ids)
    for number, one in enumerate(one for _turn in range(6) for one in queue.lease("w1", 64)):
        queue.nack(one.url, one.token, transient(code="x y") if number % 3 == 0 else permanent(code="x y"))
    assert queue.redrive_code("x y") == 233
    assert queue.counts() == Counts(233, 0, 117, 0, 0)
    assert len(all_of(lambda after: queue.failed(after, 50))) == 117


def test_all_that_failed_is_redriven_but_what_was_cancelled(queue: Queue) -> None:
    queue.add(BV[:3])
    fail(queue, permanent())
    queue.cancel([BV[1]])
    assert queue.redrive_all() == 1
    assert queue.counts() == Counts(2, 0, 0, 0, 1)
    assert queue.redrive_code("cancelled") == 1
    assert queue.counts() == Counts(3, 0, 0, 0, 0)


def test_a_job_that_was_redriven_still_tells_what_happened(queue: Queue) -> None:
    queue.add([BV[0]])
    fail(queue, permanent("Its title"))
    queue.redrive([BV[0]])
    job = queue.job(BV[0])
    assert job is not None and (job["state"], job["title"], job["attempts"], job["code"]) == (
        "ready",
        "Its title",
        0,
        "",
    )
    assert [error["code"] for error in job["errors"]] == ["-404"]
    assert [item["url"] for item in queue.jobs(find="its")[0]] == [BV[0]]
    finish(queue, page_of(queue, BV[0]))
    assert queue.jobs(find="its") == ([], None)


def page_of(queue: Queue, bvid: str) -> Lease:
    container = lease(queue)
    assert container.url == bvid
    given = queue.expand(container.url, container.token, [Page(1, 7, "part")]).lease
    assert given is not None
    return given


# ------------------------------------------------------------------------------------------ cancel


def test_jobs_are_cancelled_in_all_places_and_redriven_again(queue: Queue, connection: redis.Redis) -> None:
    queue.add([BV[0], "mid:5"])
    container = lease(queue)
    queue.expand(container.url, container.token, [Page(n, n, "part") for n in range(1, 8)])
    urls = [f"{BV[0]}?p={n}&cid={n}" for n in range(1, 8)]
    tokens = {one.url: one.token for one in queue.lease("w1", 5)}
    queue.nack(urls[1], tokens[urls[1]], transient())
    queue.nack(urls[2], tokens[urls[2]], permanent())
    queue.heartbeat("w1", [(urls[3], tokens[urls[3]], 9)], {})
    for url in urls[3:5]:
        connection.zadd(key("leased"), {url: 1})
    connection.hset(key("tries"), urls[4], '{"attempts":0,"deaths":1,"worker":"w1"}')
    queue.sweep()
    assert connection.zcard(key("kept")) == connection.llen(key("suspect")) == 1
    assert queue.counts() == Counts(4, 2, 1, 0, 1)  # ready: kept, suspect, the last page, the source
    everything = [*urls, "mid:5"]
    assert queue.cancel([*everything, BV[0], BV[9]]) == 8
    assert queue.cancel(everything) == 0
    assert queue.counts() == Counts(0, 0, 0, 0, 8)
    assert queue.lease("w2", 9) == ()
    assert {item["code"] for item in queue.failed("", 99)[0]} == {"cancelled"}
    job = queue.job(urls[6])
    assert job is not None and (job["state"], job["cancelled"], job["reason"]) == ("dead", True, "It was cancelled.")
    assert structure.problems(connection) == []
    assert queue.redrive(everything) == 8
    assert [one.url for one in queue.lease("w2", 9)] == everything


def test_who_has_a_cancelled_job_hears_it_with_the_next_heartbeat(queue: Queue) -> None:
    one = page(queue)
    queue.cancel([one.url])
    assert queue.heartbeat("w1", [(one.url, one.token, 5)], {}) == [one.url]
    with pytest.raises(StaleToken):
        queue.ack(one.url, one.token, Result("a.mp4", 1, 1.0))
    assert queue.counts() == Counts(0, 0, 0, 0, 1)


def test_a_cancelled_suspect_does_not_live_again_when_its_worker_comes_back(
    queue: Queue, connection: redis.Redis
) -> None:
    one = page(queue)
    connection.zadd(key("leased"), {one.url: 1})
    queue.sweep()
    queue.cancel([one.url])
    queue.heartbeat("w1", [(one.url, one.token, 5)], {})
    assert queue.counts() == Counts(0, 0, 0, 0, 1)


def test_thousands_of_cancelled_jobs_do_not_keep_the_next_one_waiting(queue: Queue, connection: redis.Redis) -> None:
    ids = [aid_to_bvid(aid) for aid in range(1, 2501)]
    queue.add([*ids, BV[0]])
    assert queue.cancel(ids) == 2500
    assert queue.counts().ready == 1
    queue.sweep()  # the server does each second
    assert connection.llen(key("ready")) == 1501
    turns = [[one.url for one in queue.lease("w1", 1)] for _turn in range(2)]
    assert turns == [[], [BV[0]]]
    assert not connection.exists(key("ready"), key("stale"))


def test_a_cancelled_source_is_not_read_by_its_watch_and_by_a_user_it_is(queue: Queue, connection: redis.Redis) -> None:
    queue.add(["mid:5"])
    queue.watch("mid:5", 60)
    queue.cancel(["mid:5"])
    for name in ("watch", "dead"):
        connection.zadd(key(name), {"mid:5": 1})
    assert queue.revisit() == 0
    claimed = queue.claim("mid:5", "w1")
    assert isinstance(claimed, Lease)


# ------------------------------------------------------------------------------------------ first


def test_jobs_come_first_in_the_order_in_which_they_are_named(queue: Queue, connection: redis.Redis) -> None:
    queue.add(BV[:20])
    delayed = [fail(queue, transient()) for _n in range(2)]
    assert queue.first([BV[10], delayed[1], BV[15], BV[25]]) == 3
    assert queue.first([BV[10]]) == 1
    assert queue.counts() == Counts(19, 0, 1, 0, 0)
    order = [BV[10], delayed[1], BV[15], *(url for url in BV[2:20] if url not in (BV[10], BV[15]))]
    assert all_of(lambda after: queue.jobs("ready", after=after, limit=3)) == order
    assert [one.url for _n in range(19) for one in queue.lease("w1", 1)] == order
    assert queue.lease("w1", 9) == ()
    assert queue.counts() == Counts(0, 19, 1, 0, 0)
    assert not connection.exists(key("ready"), key("stale"))


def test_hundreds_come_first_in_their_order(queue: Queue) -> None:
    ids = [aid_to_bvid(aid) for aid in range(1, 501)]
    queue.add(ids)
    assert queue.first(ids[200:450]) == 250
    assert [one.url for _n in range(4) for one in queue.lease("w1", 64)][:250] == ids[200:450]


def test_a_job_that_was_moved_comes_back_and_is_leased_once(queue: Queue) -> None:
    """Its entry further on is skipped, or counts where it was given back; never both."""
    queue.add(BV[:4])
    queue.first([BV[2]])
    one = lease(queue)
    queue.release(one.url, one.token)
    assert [one.url for one in queue.lease("w1", 9)] == [BV[2], BV[0], BV[1], BV[3]]


def test_a_job_moved_to_the_head_is_named_by_a_worker_that_has_chunks_of_it(queue: Queue) -> None:
    queue.add(BV[:4])
    queue.first([BV[2], BV[3]])
    assert [one.url for one in queue.lease("w1", 1, have=[BV[3]])] == [BV[3]]
    assert queue.lease("w1", 1, have=[BV[3]])[0].url == BV[2]
    assert [one.url for one in queue.lease("w1", 9)] == BV[:2]


def test_a_kept_job_waits_no_longer_and_a_suspect_stays_alone(queue: Queue, connection: redis.Redis) -> None:
    queue.add(BV[:3])
    one, two, three = queue.lease("w1", 3)
    queue.heartbeat("w1", [(one.url, one.token, 9)], {})
    connection.hset(key("tries"), two.url, '{"attempts":0,"deaths":1,"worker":"w1"}')
    for lost in (one, two):
        connection.zadd(key("leased"), {lost.url: 1})
    queue.sweep()
    assert queue.first([two.url, one.url, three.url]) == 2
    assert connection.lrange(key("suspect"), 0, -1) == [two.url]
    assert lease(queue, "w2").url == two.url
    assert lease(queue, "w3").url == one.url


# ------------------------------------------------------------------------------------------ forget


def test_a_page_that_was_forgotten_is_downloaded_again(queue: Queue, connection: redis.Redis) -> None:
    one = page(queue)
    assert queue.forget([one.url]) == 0  # never while it is leased
    finish(queue, one)
    assert queue.forget([one.url, BV[9]]) == 1
    assert queue.forget([one.url]) == 0
    assert (queue.counts(), queue.success("", 9)) == (Counts(0, 0, 0, 0, 0), ([], None))
    assert queue.job(one.url) is None and queue.jobs(find="a title") == ([], None)
    assert structure.problems(connection) == []
    assert queue.add([BV[0]]).added == 1
    finish(queue, page_of(queue, BV[0]), "Another")
    assert [item["title"] for item in queue.success("", 9)[0]] == ["Another"]


def test_workers_do_not_tell_again_what_was_forgotten(queue: Queue) -> None:
    one = page(queue)
    finish(queue, one)
    queue.forget([one.url])
    told = [(one.url, Result("other/7.mp4", 1000, 12.5)), (f"{BV[0]}?p=2&cid=8", Result("other/8.mp4", 1, 1.0))]
    assert queue.knows([one.url])
    assert queue.replay("w1", told) == 1
    assert queue.counts().done == 1
    queue.add([BV[0]])
    again = page_of(queue, BV[0])
    assert queue.replay("w1", told) == 0
    finish(queue, again)
    assert queue.forget([again.url]) == 1


def test_dead_jobs_and_read_videos_are_forgotten(queue: Queue) -> None:
    queue.add([BV[0], "mid:5", "ep9"])
    queue.watch("mid:5", 60)
    for _n in range(3):
        fail(queue, permanent("Gone"))
    assert queue.forget([BV[0], "mid:5", "ep9"]) == 3
    assert queue.counts() == Counts(0, 0, 0, 0, 0)
    assert queue.sources("", 9) == ([], None) and queue.revisit() == 0
    assert queue.jobs(find="gone") == ([], None)
    assert queue.add([BV[0], "mid:5", "ep9"]).added == 3
    queue.cancel(["mid:5", "ep9"])
    page_of(queue, BV[0])
    assert queue.forget([BV[0]]) == 1
    assert queue.add([BV[0]]).added == 1


def test_a_page_of_an_episode_and_one_that_was_asked_for_alone_may_be_added_again(queue: Queue) -> None:
    for asked, cid in (("ep9", 1), (f"{BV[0]}?p=2", 2), ("cheese:ep4", 3)):
        queue.add([asked])
        container = lease(queue)
        given = queue.expand(container.url, container.token, [Page(2, cid, "part")]).lease
        assert given is not None
        finish(queue, given)
        assert queue.forget([given.url]) == 1
        assert queue.add([asked]).added == 1
        queue.cancel([asked])


def test_a_page_that_was_told_again_while_its_job_waited_is_forgotten_with_its_entry(queue: Queue) -> None:
    one = page(queue)
    queue.release(one.url, one.token)
    queue.replay("w9", [(one.url, Result("other/7.mp4", 1, 1.0))])
    assert queue.forget([one.url]) == 1
    assert queue.lease("w1", 9) == ()
    queue.add([BV[0]])
    finish(queue, page_of(queue, BV[0]))
    assert queue.counts() == Counts(0, 0, 0, 1, 0)


# ------------------------------------------------------------------------------------------ an earlier version


def test_what_an_earlier_version_has_written_is_taken_over(
    connection: redis.Redis, settings: Settings, valkey_socket: str
) -> None:
    queue = Queue(connection, settings)
    queue.add(BV[:2])
    for failure in (permanent("Gone"), transient()):
        fail(queue, failure)
    for cid in range(1, 1202):
        connection.sadd(key(f"seen:c:{cid % BUCKETS}"), cid)
    with connection.pipeline() as pipe:
        for name in ("failures", "kinds", "titles"):
            pipe.delete(key(name))
        pipe.zadd(key("failed"), {BV[0]: 0, BV[1]: 0, BV[5]: 0})
        tries = json.loads(connection.hget(key("tries"), BV[0]))
        del tries["folded"], tries["errors"]
        pipe.hset(key("tries"), BV[0], json.dumps(tries))
        for cid in range(1, 1202):
            about = {"url": f"ep1?cid={cid}", "title": f"Old {cid}", "path": "a.mp4", "bytes": 1, "seconds": 1.0}
            pipe.xadd(key("success"), {**about, "worker": "w"}, id=f"{1000 + cid // 2}-{cid % 2}")
            pipe.sadd(key(f"done:{cid % BUCKETS}"), cid)
        pipe.hset(key("totals"), "done", 1201)
        pipe.execute()
    for _turn in range(2):
        open_queue(Settings(**{**_fields(settings), "redis_url": f"unix://{valkey_socket}"})).close()
    assert [(one["code"], one["dead"], one["delayed"]) for one in queue.failure_groups()] == [
        ("-404", 1, 0),
        ("-500", 0, 1),
    ]
    assert not connection.exists(key("failed"))
    assert connection.llen(key("titled")) == 1201
    job = queue.job("ep1?cid=1200")
    assert job is not None and (job["title"], job["streams"], job["errors"]) == ("Old 1200", "", [])
    assert [item["title"] for item in queue.jobs(find="OLD 1201")[0]] == ["Old 1201"]
    assert [item["url"] for item in queue.jobs(find="gone")[0]] == [BV[0]]
    assert queue.redrive_all() == 1
    assert queue.forget(["ep1?cid=1"]) == 1


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("data_dir", "download_dir", "working_file")}


# ------------------------------------------------------------------------------------------ what it costs

GROWING = {"lrem", "hgetall", "hkeys", "smembers", "keys", "scan", "linsert", "xlen"}
"""Commands that look at all of something; groups of failures are few, and are read whole."""


def commands(connection: redis.Redis, act: Callable[[], object]) -> Counter[str]:
    """Return how often each command was called, in scripts too."""
    connection.config_resetstat()
    act()
    stats = connection.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): value["calls"] for name, value in stats.items()}) - Counter(
        {"config|resetstat": 1, "info": 1}
    )


def fill(connection: redis.Redis, count: int) -> None:
    """Let so many jobs wait, so many be dead, and so many pages be done."""
    for start in range(0, count, 10_000):
        with connection.pipeline(transaction=False) as pipe:
            for number in range(start, min(start + 10_000, count)):
                waits, failed, aid = aid_to_bvid(10**7 + number), aid_to_bvid(2 * 10**7 + number), 10**7 + number
                pipe.rpush(key("ready"), waits).sadd(key(f"seen:v:{aid % BUCKETS}"), aid)
                pipe.zadd(key("dead"), {failed: number}).zadd(key("failures"), {f"-404\0{failed}": 0})
                pipe.sadd(key(f"seen:v:{(aid + 10**7) % BUCKETS}"), aid + 10**7)
                pipe.hset(key("tries"), failed, '{"attempts":1,"deaths":0,"code":"-404"}')
                pipe.xadd(
                    key("success"), {"url": f"ep1?cid={number + 1}"}, id=f"{number + 1}-0"
                ) if number % 100 == 0 else None
            pipe.hincrby(key("kinds"), "dead:-404", min(start + 10_000, count) - start)
            pipe.execute()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_a_user_does_costs_the_same_in_a_long_queue(connection: redis.Redis, settings: Settings) -> None:
    costs: list[dict[str, Counter[str]]] = []
    for count in (1_000, 100_000):
        connection.flushall()
        fill(connection, count)
        queue = Queue(connection, settings)
        for script in queue._scripts.values():
            connection.script_load(script.script)
        queue.sweep()  # a lease notes when the last one was
        middle = aid_to_bvid(10**7 + count // 2)
        failed = aid_to_bvid(2 * 10**7 + count // 2)
        acts: dict[str, Callable[[], object]] = {
            "first": lambda one=middle, queue=queue: queue.first([one]),
            "lease": lambda queue=queue: queue.lease("w1", 1, request="r"),
            "cancel": lambda queue=queue: queue.cancel([aid_to_bvid(10**7 + 5)]),
            "cancel the dead": lambda one=failed, queue=queue: queue.cancel([one]),
            "redrive": lambda one=failed, queue=queue: queue.redrive([one]),
            "forget": lambda queue=queue: queue.forget([aid_to_bvid(2 * 10**7 + 7)]),
            "jobs": lambda queue=queue: [queue.jobs(state, limit=50) for state in ("ready", "dead", "delayed")],
            "further on": lambda queue=queue: queue.jobs("ready", after="ready 500 x", limit=50),
            "find": lambda queue=queue: queue.jobs(find="nothing"),
            "job": lambda one=middle, queue=queue: queue.job(one),
            "failed": lambda queue=queue: queue.failed("", 50, "-404"),
            "counts": queue.counts,
        }
        costs.append({name: commands(connection, act) for name, act in acts.items()})
        connection.flushall()
    small, large = costs
    assert small == large
    assert {name: set(cost) & GROWING for name, cost in large.items() if set(cost) & GROWING} == {}


def test_a_page_is_found_by_its_cid_in_few_bytes(connection: redis.Redis) -> None:
    """As docs/architecture.md says; the buckets stay lists of integers."""
    empty = connection.info("memory")["used_memory"]
    count = 256 * 256
    for number in range(256):
        where = {10**10 + 65536 * place + number: 1795363949169 + 65536 * place for place in range(256)}
        connection.hset(f"record:{number}", mapping=where)
    assert connection.object("encoding", "record:7") == "listpack"
    assert (connection.info("memory")["used_memory"] - empty) / count < 25


def test_titles_are_folded_and_cut_between_characters() -> None:
    assert folded_prefix(" Ａ\u3000 b\tC ") == "a b c"
    assert folded_prefix("二" * 99) == "二" * (FOLDED_BYTES // 3)
    assert folded_prefix("\ud800x") == "?x"
    assert identity_of(parse_job_id("cheese:ep5?cid=7")).member == "7"
