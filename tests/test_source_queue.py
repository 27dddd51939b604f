"""Sources in the queue: passes through a listing, what the ledger counts of them, and when they are read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from config import Settings
from errors import StaleToken
from model import Expanded, Failure, Lease, ListedPage
from parse_ import aid_to_bvid
from redisConnect import Queue
from tests import structure
from tests.test_redisConnect import let_expire, let_fall_due, pages

UPLOADER, FOLDERS, FOLDER = "mid:137137", "favs:137137", "fav:7"
VIDEOS = [aid_to_bvid(1000 + number) for number in range(12)]


def lease_source(queue: Queue, source: str = UPLOADER, worker: str = "w1") -> Lease:
    """Lease the next job, which is to be this source."""
    (lease,) = queue.lease(worker, 1)
    assert lease.url == source
    return lease


def tell(queue: Queue, lease: Lease, page: int, urls: list[str], more: bool = False, **facts: Any) -> Expanded:
    """Tell one page of a listing, the last one unless more follows."""
    facts = {"announced": 6, "cursor": f"c{page}" if more else "", **facts}
    return queue.expand(lease.url, lease.token, (), urls, more, ListedPage(page, **facts))


def ledger(queue: Queue, source: str = UPLOADER) -> dict[str, Any]:
    """Return what is shown of a source."""
    (found,) = [item for item in queue.sources("", 100)[0] if item["source"] == source]
    return found


def read_all(queue: Queue, *listed: str, **facts: Any) -> Expanded:
    """Read the source that is ready in one page."""
    return tell(queue, lease_source(queue), 1, list(listed), announced=len(listed), **facts)


def let_a_day_pass(connection: redis.Redis, source: str = UPLOADER) -> None:
    """Make the last full pass a day older: the tests do not wait for the clock."""
    found = json.loads(connection.hget("{bili:0}:ledger", source) or "")
    found["full_pass"] -= 86400
    connection.hset("{bili:0}:ledger", source, json.dumps(found))


def let_it_be_time(connection: redis.Redis, source: str = UPLOADER) -> None:
    """Make a watched source due."""
    connection.zadd("{bili:0}:watch", {source: 1})


@pytest.fixture(autouse=True)
def sound(connection: redis.Redis) -> Any:
    """After each test every job is in one place."""
    yield
    assert structure.problems(connection) == []


# ------------------------------------------------------------------------------------------ one pass


def test_a_walk_counts_what_it_finds_and_its_jobs_know_where_they_come_from(
    queue: Queue, connection: redis.Redis
) -> None:
    queue.add([VIDEOS[0]])
    queue.lease("w9", 1)
    assert queue.add([UPLOADER], "music", wishes={"since": 5, "match": "x", "limit": 0}).added == 1
    lease = lease_source(queue)
    assert lease.walk is not None and (lease.walk.since, lease.walk.match, lease.walk.page) == (5, "x", 0)
    assert tell(queue, lease, 1, VIDEOS[:2], more=True, title="Her", pages=2).added == 1
    assert ledger(queue)["state"] == "leased"
    assert not ledger(queue)["complete"]
    last = tell(queue, lease, 2, [VIDEOS[2]], skipped=(VIDEOS[3],), unavailable={"deleted": 2}, ended="end")
    assert last.ended and last.lease is None
    found = ledger(queue)
    assert {name: found[name] for name in ("title", "category", "announced", "pages_expected", "pages_read")} == {
        **{"title": "Her", "category": "music", "announced": 6, "pages_expected": 2, "pages_read": 2},
    }
    assert (found["listed"], found["queued"], found["known"], found["unavailable"]) == (4, 2, 1, {"deleted": 2})
    assert found["complete"] and found["state"] == "closed" and found["cursor"] == "" and found["finished"]
    assert queue.counts().ready == 2
    origins = connection.hgetall("{bili:0}:origin")
    assert {url: json.loads(text) for url, text in origins.items()} == {
        url: {"category": "music", "source": UPLOADER} for url in VIDEOS[1:3]
    }


def test_a_page_that_is_told_twice_counts_once(queue: Queue) -> None:
    queue.add([UPLOADER])
    lease = lease_source(queue)
    first = tell(queue, lease, 1, VIDEOS[:3], more=True)
    assert tell(queue, lease, 1, VIDEOS[:3], more=True) == first
    last = tell(queue, lease, 2, VIDEOS[3:6])
    assert tell(queue, lease, 2, VIDEOS[3:6]) == last
    found = ledger(queue)
    assert (found["pages_read"], found["listed"], found["queued"], found["known"]) == (2, 6, 6, 0)
    assert found["complete"]


def test_another_worker_goes_on_where_the_first_one_died(queue: Queue, connection: redis.Redis) -> None:
    queue.add([UPLOADER], wishes={"limit": 9})
    dead = lease_source(queue)
    tell(queue, dead, 1, VIDEOS[:3], more=True, taken=3)
    let_expire(connection, UPLOADER)
    lease = lease_source(queue, worker="w2")
    assert lease.walk is not None
    assert (lease.walk.cursor, lease.walk.page, lease.walk.taken, lease.walk.limit) == ("c1", 1, 3, 9)
    with pytest.raises(StaleToken):
        tell(queue, dead, 2, VIDEOS[3:6])
    tell(queue, lease, 2, VIDEOS[3:6])
    assert ledger(queue)["complete"] and ledger(queue)["listed"] == 6


def test_a_page_read_makes_up_for_earlier_deaths_and_failures(queue: Queue, connection: redis.Redis) -> None:
    """A long listing must not fail for good because each of its workers was killed further on."""
    queue.add([UPLOADER])
    for page in range(1, 13):
        lease = lease_source(queue, worker=f"w{page}")
        tell(queue, lease, page, [], more=True)
        if page % 2:
            let_expire(connection, UPLOADER)
        else:
            queue.nack(UPLOADER, lease.token, Failure("transient", "site", "hiccup"))
            let_fall_due(connection, "delayed", UPLOADER)
    assert lease_source(queue).attempt == 2


def test_a_listing_that_loses_a_page_is_incomplete(queue: Queue) -> None:
    queue.add([UPLOADER])
    lease = lease_source(queue)
    tell(queue, lease, 1, VIDEOS[:3], more=True)
    tell(queue, lease, 2, [])
    assert (ledger(queue)["complete"], ledger(queue)["listed"], ledger(queue)["ended"]) == (False, 3, "end")


def test_a_listing_that_moves_while_it_is_read_counts_each_one_once(queue: Queue) -> None:
    """A new video pushes the last one of the first page to the second: then the new one was not read."""
    queue.add([UPLOADER])
    lease = lease_source(queue)
    tell(queue, lease, 1, VIDEOS[1:4], more=True)
    tell(queue, lease, 2, VIDEOS[3:7], announced=7)
    assert (ledger(queue)["listed"], ledger(queue)["complete"]) == (6, False)


def test_a_pass_that_begins_anew_counts_anew(queue: Queue, connection: redis.Redis) -> None:
    """As one that lists the oldest first does when it broke off."""
    queue.add([UPLOADER])
    tell(queue, lease_source(queue), 1, VIDEOS[:3], more=True)
    let_expire(connection, UPLOADER)
    lease = lease_source(queue, worker="w2")
    tell(queue, lease, 1, VIDEOS[:3], more=True)
    tell(queue, lease, 2, VIDEOS[3:6])
    found = ledger(queue)
    assert (found["listed"], found["queued"], found["known"], found["complete"]) == (6, 3, 3, True)


def test_what_was_not_read_to_its_end_by_wish_is_not_complete(queue: Queue) -> None:
    queue.add([UPLOADER])
    read_all(queue, *VIDEOS[:3], ended="wished")
    assert (ledger(queue)["complete"], ledger(queue)["ended"]) == (False, "wished")


def test_a_site_that_announces_nothing_is_believed(queue: Queue) -> None:
    queue.add([UPLOADER])
    tell(queue, lease_source(queue), 1, VIDEOS[:3], announced=None)
    assert ledger(queue)["complete"] and ledger(queue)["announced"] is None


def test_an_empty_source_is_complete(queue: Queue) -> None:
    queue.add([UPLOADER])
    read_all(queue)
    assert (ledger(queue)["complete"], ledger(queue)["announced"]) == (True, 0)


def test_a_source_without_a_ledger_is_expanded_all_the_same(queue: Queue) -> None:
    """A script that speaks to the server may tell ids and nothing else."""
    queue.add([UPLOADER])
    lease = lease_source(queue)
    assert queue.expand(lease.url, lease.token, (), VIDEOS[:2], more=True).added == 2
    assert queue.expand(lease.url, lease.token, (), VIDEOS[2:4], more=True).added == 2
    assert queue.expand(lease.url, lease.token, (), ()).ended
    assert (ledger(queue)["pages_read"], ledger(queue)["listed"]) == (3, 4)


def test_a_failed_source_says_why(queue: Queue) -> None:
    queue.add([UPLOADER])
    lease = lease_source(queue)
    queue.nack(UPLOADER, lease.token, Failure("permanent", "-404", "gone"))
    assert {name: ledger(queue)[name] for name in ("state", "code", "reason")} == {
        **{"state": "dead", "code": "-404", "reason": "gone"},
    }


# ------------------------------------------------------------------------------------------ again


def test_a_known_source_is_known_and_refresh_reads_it_again(queue: Queue) -> None:
    queue.add([UPLOADER])
    read_all(queue, *VIDEOS[:2])
    assert queue.add([UPLOADER]).known == 1
    assert [lease.url for lease in queue.lease("w1", 9)] == VIDEOS[:2]
    queue.add([UPLOADER], refresh=True)
    assert read_all(queue, *VIDEOS[:3]).added == 1
    found = ledger(queue)
    assert (found["listed"], found["queued"], found["known"], found["complete"]) == (3, 1, 2, True)


def test_a_refresh_of_a_source_that_is_being_read_reads_it_once_more(queue: Queue) -> None:
    queue.add([UPLOADER], "music")
    lease = lease_source(queue)
    queue.add([UPLOADER], refresh=True)
    tell(queue, lease, 1, [], announced=0)
    again = lease_source(queue)
    assert (again.category, again.walk.page if again.walk else None) == ("music", 0)
    tell(queue, again, 1, [], announced=0)
    assert queue.counts().ready == 0


def test_a_refreshed_source_asks_its_known_videos_for_new_pages(queue: Queue) -> None:
    queue.add([UPLOADER])
    read_all(queue, *VIDEOS[:2])
    video = queue.lease("w1", 1)[0]
    queue.expand(video.url, video.token, ())
    queue.add([UPLOADER], refresh=True)
    lease = next(lease for lease in queue.lease("w1", 9) if lease.url == UPLOADER)
    answer = tell(queue, lease, 1, VIDEOS[:2], announced=2)
    assert (answer.added, answer.known, queue.counts().ready) == (0, 2, 1)


def test_sources_in_a_source_are_read_whenever_it_is(queue: Queue) -> None:
    queue.add([FOLDERS], "music", wishes={"match": "x"})
    tell(queue, lease_source(queue, FOLDERS), 1, [FOLDER], announced=1)
    lease = lease_source(queue, FOLDER)
    assert lease.category == "music" and lease.walk is not None and lease.walk.match == "x"
    tell(queue, lease, 1, [], announced=0)
    queue.add([FOLDERS], again=True)
    tell(queue, lease_source(queue, FOLDERS), 1, [FOLDER], announced=1)
    assert lease_source(queue, FOLDER)


# ------------------------------------------------------------------------------------------ claims


def test_a_claim_reads_a_known_source_at_once(queue: Queue) -> None:
    queue.add([UPLOADER])
    read_all(queue, *VIDEOS[:2])
    lease = queue.claim(UPLOADER, "add_url", "music", {"limit": 3}, request="r")
    assert isinstance(lease, Lease) and lease.walk is not None
    assert (lease.category, lease.walk.limit, lease.walk.page) == ("music", 3, 0)
    assert queue.claim(UPLOADER, "add_url", "music", {"limit": 3}, request="r") == lease
    assert queue.claim(UPLOADER, "add_url") == "open"
    tell(queue, lease, 1, VIDEOS[:2], announced=2)
    assert queue.lease("w1", 9)[-1].url == UPLOADER, "it was claimed while it was read"


def test_a_claim_takes_what_waits_or_has_failed_and_begins_anew(queue: Queue) -> None:
    for failure in (None, Failure("transient", "site", "hiccup"), Failure("permanent", "-404", "gone")):
        queue.add([UPLOADER], again=True)
        if failure is not None:
            lease = lease_source(queue)
            tell(queue, lease, 1, VIDEOS[:3], more=True)
            queue.nack(UPLOADER, lease.token, failure)
            queue.lease("w9", 9)
        claimed = queue.claim(UPLOADER, "add_url")
        assert isinstance(claimed, Lease) and claimed.walk is not None
        assert (claimed.walk.page, claimed.walk.cursor, claimed.attempt) == (0, "", 1)
        tell(queue, claimed, 1, [], announced=0)
        assert (queue.counts().ready, queue.counts().dead, queue.counts().delayed) == (0, 0, 0)


def test_a_claim_of_what_is_watched_does_not_wait_for_its_time(queue: Queue) -> None:
    queue.watch(UPLOADER, 60)
    assert isinstance(queue.claim(UPLOADER, "add_url"), Lease)


def test_a_claim_that_ends_in_the_middle_is_gone_on_with_by_a_worker(queue: Queue, connection: redis.Redis) -> None:
    lease = queue.claim(UPLOADER, "add_url")
    assert isinstance(lease, Lease)
    tell(queue, lease, 1, VIDEOS[:3], more=True)
    let_expire(connection, UPLOADER)
    walk = lease_source(queue).walk
    assert walk is not None and walk.cursor == "c1"


# ------------------------------------------------------------------------------------------ watching


def watch_it(queue: Queue, connection: redis.Redis, *listed: str) -> None:
    """Read a source, then watch it, and let it be time."""
    queue.add([UPLOADER], "music")
    read_all(queue, *listed)
    queue.watch(UPLOADER, 60)
    let_it_be_time(connection)


def test_a_watch_queues_what_is_due_once(queue: Queue, connection: redis.Redis) -> None:
    assert queue.watch(UPLOADER, 60) == 0
    queue.add([UPLOADER], "music")
    read_all(queue)
    assert queue.revisit() == 0
    let_it_be_time(connection)
    assert (queue.revisit(), queue.revisit(), queue.counts().ready) == (1, 0, 1)
    let_it_be_time(connection)
    assert queue.revisit() == 0, "it is queued already"
    assert ledger(queue)["watched"] == 60
    assert lease_source(queue).category == "music"


def test_a_source_is_watched_no_more(queue: Queue, connection: redis.Redis) -> None:
    watch_it(queue, connection)
    assert queue.watch(UPLOADER, 0) == 60
    assert queue.revisit() == 0
    assert queue.watch("mid:5", 0) == 0
    assert [item["source"] for item in queue.sources("", 9)[0]] == [UPLOADER]


def test_a_quick_pass_ends_at_the_first_page_without_news(queue: Queue, connection: redis.Redis) -> None:
    watch_it(queue, connection, *VIDEOS[:6])
    queue.lease("w9", 99)
    queue.revisit()
    lease = lease_source(queue)
    assert lease.walk is not None and lease.walk.quick
    assert not tell(queue, lease, 1, [VIDEOS[6], *VIDEOS[:2]], more=True, announced=7).ended
    assert tell(queue, lease, 2, VIDEOS[2:4], more=True, announced=7).ended
    found = ledger(queue)
    assert (found["listed"], found["queued"], found["pages_read"]) == (7, 7, 1)
    assert found["complete"] and found["state"] == "closed"


def test_a_quick_pass_goes_on_where_news_stand_at_the_end(queue: Queue, connection: redis.Redis) -> None:
    """A collection has its newest episode last; that it has one more is announced on the first page."""
    watch_it(queue, connection, *VIDEOS[:6])
    queue.lease("w9", 99)
    queue.revisit()
    lease = lease_source(queue)
    assert not tell(queue, lease, 1, VIDEOS[:3], more=True, announced=7).ended
    assert tell(queue, lease, 2, VIDEOS[3:7], announced=7).added == 1
    assert ledger(queue)["complete"]


def test_once_a_day_all_is_read_and_videos_with_pages_are_asked_for_more(queue: Queue, connection: redis.Redis) -> None:
    watch_it(queue, connection, *VIDEOS[:2])
    single, several = queue.lease("w9", 2)
    queue.expand(single.url, single.token, pages(1))
    queue.expand(several.url, several.token, pages(2, 3))
    queue.lease("w9", 9)
    queue.revisit()
    tell(queue, lease_source(queue), 1, VIDEOS[:2], more=True, announced=2)
    assert queue.counts().ready == 0
    let_it_be_time(connection)
    let_a_day_pass(connection)
    queue.revisit()
    tell(queue, lease_source(queue), 1, VIDEOS[:2], announced=2)
    assert [lease.url for lease in queue.lease("w1", 9)] == [several.url]


def test_a_claim_of_a_watched_source_comes_when_it_is_due(queue: Queue, connection: redis.Redis) -> None:
    watch_it(queue, connection)
    lease = queue.claim(UPLOADER, "add_url", if_due=True)
    assert isinstance(lease, Lease) and lease.category == "music"
    tell(queue, lease, 1, [], announced=0)
    assert queue.claim(UPLOADER, "add_url", if_due=True) == "early"


def test_a_watched_source_that_failed_is_tried_again_after_a_day(queue: Queue, connection: redis.Redis) -> None:
    queue.add([UPLOADER])
    queue.watch(UPLOADER, 60)
    queue.nack(UPLOADER, lease_source(queue).token, Failure("permanent", "-404", "gone"))
    let_it_be_time(connection)
    assert queue.revisit() == 0
    let_it_be_time(connection)
    connection.zadd("{bili:0}:dead", {UPLOADER: 1})
    assert queue.revisit() == 1


def test_what_is_due_and_waits_already_is_not_in_the_way_of_others(queue: Queue, connection: redis.Redis) -> None:
    waiting = [f"mid:{number}" for number in range(1, 121)]
    queue.add(["season:1"])
    tell(queue, lease_source(queue, "season:1"), 1, [], announced=0)
    queue.add(waiting)
    for source in (*waiting, "season:1"):
        queue.watch(source, 60)
        let_it_be_time(connection, source)
    assert (queue.revisit(), queue.revisit()) == (0, 1)


# ------------------------------------------------------------------------------------------ watched videos

VIDEO = VIDEOS[0]


def see_video(queue: Queue, *cids: int, title: str = "A video") -> Expanded:
    """Expand the video that is ready, and finish none of its pages."""
    (lease,) = [lease for lease in queue.lease("w1", 9) if lease.url == VIDEO]
    return queue.expand(lease.url, lease.token, pages(*cids), ledger=ListedPage(0, title))


def test_a_watched_video_is_asked_for_new_pages_once_a_day(queue: Queue, connection: redis.Redis) -> None:
    assert queue.add([VIDEO], "music", watch=60).added == 1
    assert see_video(queue, 1, 2).added == 2
    found = ledger(queue, VIDEO)
    assert {name: found[name] for name in ("title", "state", "watched", "announced", "listed", "queued", "known")} == {
        **{"title": "A video", "state": "closed", "watched": 86400, "announced": 2, "listed": 2},
        **{"queued": 2, "known": 0},
    }
    assert found["complete"] and found["checked"] and found["category"] == "music"
    in_a_day = connection.zscore("{bili:0}:watch", VIDEO) / 1000 - float(connection.time()[0])
    assert 86300 < in_a_day <= 86401
    assert queue.revisit() == 0
    let_it_be_time(connection, VIDEO)
    queue.lease("w1", 9)
    assert (queue.revisit(), queue.revisit()) == (1, 0)
    answer = see_video(queue, 1, 2, 3)
    assert (answer.added, answer.known) == (1, 2)
    assert answer.lease is not None and answer.lease.category == "music", "a new page goes where the others went"
    found = ledger(queue, VIDEO)
    assert (found["announced"], found["queued"], found["known"]) == (3, 3, 2)


def test_a_period_longer_than_a_day_is_kept(queue: Queue) -> None:
    queue.watch(VIDEO, 7 * 86400)
    assert ledger(queue, VIDEO)["watched"] == 7 * 86400
    assert queue.watch(VIDEO, 0) == 7 * 86400


def test_a_video_is_watched_no_more_and_leaves_no_trace(queue: Queue, connection: redis.Redis) -> None:
    queue.add([VIDEO], watch=60)
    see_video(queue, 1)
    let_it_be_time(connection, VIDEO)
    assert queue.watch(VIDEO, 0) == 86400
    assert queue.watch(VIDEO, 0) == 0
    assert (queue.revisit(), queue.sources("", 9)) == (0, ([], None))
    assert connection.zcard("{bili:0}:watch") == 0


def test_a_watch_of_a_video_that_waits_or_has_failed_queues_it_once(queue: Queue, connection: redis.Redis) -> None:
    queue.add([VIDEO], watch=60)
    let_it_be_time(connection, VIDEO)
    assert queue.revisit() == 0, "it waits already"
    (lease,) = queue.lease("w1", 9)
    queue.nack(VIDEO, lease.token, Failure("permanent", "-404", "gone"))
    assert {name: ledger(queue, VIDEO)[name] for name in ("state", "code", "reason")} == {
        **{"state": "dead", "code": "-404", "reason": "gone"},
    }
    let_it_be_time(connection, VIDEO)
    assert queue.revisit() == 0
    let_it_be_time(connection, VIDEO)
    connection.zadd("{bili:0}:dead", {VIDEO: 1})
    assert (queue.revisit(), queue.counts().ready) == (1, 1), "tried again after a day"


def test_what_is_watched_already_is_not_put_off_by_being_named_again(queue: Queue, connection: redis.Redis) -> None:
    """Else a script that names it every hour would keep its visit away for ever."""
    for url, far in ((UPLOADER, 30 * 86400), (VIDEO, 30 * 86400)):
        queue.add([url], watch=86400)
        due = connection.zscore("{bili:0}:watch", url)
        queue.add([url], watch=far)
        queue.watch(url, far)
        assert (connection.zscore("{bili:0}:watch", url), ledger(queue, url)["watched"]) == (due, far)
        connection.zadd("{bili:0}:watch", {url: 2**52})
        queue.watch(url, 86400)
        assert connection.zscore("{bili:0}:watch", url) < 2**52, "sooner it may be"


def test_a_long_video_that_is_told_in_parts_counts_as_one(queue: Queue) -> None:
    queue.add([VIDEO], watch=86400)
    (lease,) = queue.lease("w1", 1)
    for _unused in range(2):  # the answer was lost
        queue.expand(VIDEO, lease.token, pages(3, 4), more=True)
    queue.expand(VIDEO, lease.token, pages(1, 2), ledger=ListedPage(1, "A course", announced=4))
    found = ledger(queue, VIDEO)
    assert (found["title"], found["listed"], found["queued"], found["complete"]) == ("A course", 4, 4, True)


def test_an_episode_and_a_page_are_watched_by_their_ids(queue: Queue, connection: redis.Redis) -> None:
    watched = ["ep7", f"{VIDEOS[1]}?p=2", "cheese:ep9"]
    queue.add(watched, watch=60)
    for lease in queue.lease("w1", 9):
        queue.expand(lease.url, lease.token, ())
    assert [item["state"] for item in queue.sources("", 9)[0]] == ["closed"] * 3
    for url in watched:
        let_it_be_time(connection, url)
    assert queue.revisit() == 3
    assert sorted(lease.url for lease in queue.lease("w1", 9)) == sorted(watched)


def test_what_is_due_is_queued_a_hundred_at_a_time(queue: Queue, connection: redis.Redis) -> None:
    watched = [f"ep{number}" for number in range(1, 251)]
    queue.add(watched, watch=60)
    while leases := queue.lease("w1", 64):
        for lease in leases:
            queue.expand(lease.url, lease.token, ())
    connection.zadd("{bili:0}:watch", dict.fromkeys(watched, 1))
    assert [queue.revisit() for _unused in range(4)] == [100, 100, 50, 0]


def test_ledgers_come_in_pages(queue: Queue) -> None:
    queue.add(["fav:3", "fav:1", "fav:2"])
    first, following = queue.sources("", 2)
    rest, end = queue.sources(following or "", 2)
    assert [item["source"] for item in [*first, *rest]] == ["fav:1", "fav:2", "fav:3"]
    assert end is None
    assert {item["category"] for item in first} == {Settings().category}
