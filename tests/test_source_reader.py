"""A worker's reading of sources: the real client, a real queue, and the stand-in site, whose catalogue decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
import redis

from bili_client import BiliClient, make_session
from config import Settings
from demo import shelves
from demo.site import DEFAULT_CACHE, RunningSite, running_site
from errors import JobError, PermanentError, RiskControl, SiteError
from model import Expanded, Failure, Lease, Result
from parse_ import parse_job_id
from redisConnect import Queue
from source_reader import read_source
from sources import Told
from tests import structure
from tests.test_source_queue import let_a_day_pass, let_it_be_time

CROWD = 200
UPLOADER, SERIES = f"mid:{shelves.CROWD_MID}", "series:5002"

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Cut(Exception):
    """The reader ends in the middle."""


@dataclass
class Reader:
    """Leases sources and reads them, as a worker does."""

    queue: Queue
    site: RunningSite
    client: BiliClient
    worker: str = "w1"

    async def read(self, source: str, stop_after: int = 10**6, twice: bool = False) -> int:
        """Read the source that is ready; return how many calls to the queue there were.

        It ends like a killed worker after so many calls; ``twice`` makes each call again, as after a lost answer.
        """
        (lease,) = self.queue.lease(self.worker, 1, [])
        assert lease.url == source
        calls = 0

        async def tell(told: Told) -> Expanded:
            nonlocal calls
            calls += 1
            answer = self._tell(lease, told)
            if twice:
                assert self._tell(lease, told) == answer
            if calls == stop_after:
                raise Cut
            return answer

        try:
            await read_source(self.client, lease, tell, lambda title: None)
        except JobError as error:
            self.queue.nack(lease.url, lease.token, Failure(error.kind, error.code, str(error)))
            raise
        return calls

    def _tell(self, lease: Lease, told: Told) -> Expanded:
        return self.queue.expand(lease.url, lease.token, (), told.urls, told.more, told.ledger)

    def ledger(self, source: str) -> dict[str, Any]:
        (found,) = [item for item in self.queue.sources("", 1000)[0] if item["source"] == source]
        return found

    def queued(self) -> list[str]:
        """Take what is ready, in its order."""
        found: list[str] = []
        while leases := self.queue.lease("other", 64):
            found += [lease.url for lease in leases]
        return found

    def expected(self, source: str) -> list[str]:
        return shelves.found_in(self.site.state.videos)[source]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowded() -> AsyncIterator[RunningSite]:
    async with running_site(DEFAULT_CACHE, crowd=CROWD) as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(crowded: RunningSite) -> AsyncIterator[BiliClient]:
    settings = replace(
        Settings(),
        web_url=crowded.web_url,
        api_url=crowded.api_url,
        passport_url=crowded.api_url,
        sessdata="an account",
        api_interval_seconds=0.0,
    )
    async with make_session(settings, {}) as session:
        yield BiliClient(settings, session, sleep=lambda seconds: asyncio.sleep(0))


@pytest.fixture
def reader(crowded: RunningSite, client: BiliClient, queue: Queue, connection: redis.Redis) -> Any:
    crowded.reset()
    yield Reader(queue, crowded, client)
    assert structure.problems(connection) == []


@pytest.mark.parametrize("source", list(shelves.found_in(())))
async def test_what_is_queued_is_what_the_catalogue_has(source: str, reader: Reader) -> None:
    reader.queue.add([source], "music")
    await reader.read(source)
    expected = reader.expected(source)
    found = reader.ledger(source)
    assert (found["listed"], found["queued"], found["known"]) == (len(set(expected)), len(set(expected)), 0)
    assert found["complete"], found
    assert sorted(reader.queued()) == sorted(set(expected))


async def test_each_page_that_is_told_twice_counts_once(reader: Reader) -> None:
    reader.queue.add([UPLOADER])
    await reader.read(UPLOADER, twice=True)
    found = reader.ledger(UPLOADER)
    assert found["complete"] and found["queued"] == found["listed"] == len(reader.expected(UPLOADER))
    assert found["pages_read"] == found["pages_expected"]


async def test_readers_that_die_after_each_page_read_all_of_it(reader: Reader, connection: redis.Redis) -> None:
    """Also by another worker each time, and nothing is asked for twice."""
    reader.queue.add([UPLOADER])
    for number in range(100):
        try:
            await replace(reader, worker=f"w{number}").read(UPLOADER, stop_after=1)
        except Cut:
            if reader.ledger(UPLOADER)["state"] != "leased":
                break
            connection.zadd("{bili:0}:leased", {UPLOADER: 1}, xx=True)
    found = reader.ledger(UPLOADER)
    assert found["complete"] and found["queued"] == len(reader.expected(UPLOADER))
    assert (
        reader.site.state.counters.routes["/x/space/wbi/arc/search"] == found["pages_read"] == found["pages_expected"]
    )


@pytest.mark.parametrize(("kind", "error"), [("voucher", RiskControl), ("invalid_json", SiteError)])
async def test_a_listing_that_breaks_off_goes_on_where_it_stopped(
    kind: str, error: type[JobError], reader: Reader, connection: redis.Redis
) -> None:
    reader.queue.add([SERIES])
    reader.site.fault(kind, scope="api", path="/x/series/archives", skip=3, count=1)
    with pytest.raises(error):
        await reader.read(SERIES)
    assert not reader.ledger(SERIES)["complete"]
    asked = reader.site.state.counters.routes["/x/series/archives"]
    connection.zadd("{bili:0}:delayed", {SERIES: 1}, xx=True)
    await reader.read(SERIES)
    assert reader.ledger(SERIES)["complete"]
    assert sorted(reader.queued()) == sorted(reader.expected(SERIES))
    assert reader.site.state.counters.routes["/x/series/archives"] - asked == -(-CROWD // 30) - 3


async def test_a_page_that_is_lost_makes_it_incomplete_until_the_next_pass(reader: Reader) -> None:
    reader.queue.add([SERIES])
    reader.site.fault("lose_items", scope="api", path="/x/series/archives", skip=2, count=1)
    await reader.read(SERIES)
    found = reader.ledger(SERIES)
    assert (found["complete"], found["announced"], found["listed"]) == (False, CROWD, CROWD - 30)
    reader.queued()
    reader.queue.add([SERIES], again=True)
    await reader.read(SERIES)
    found = reader.ledger(SERIES)
    assert (found["complete"], found["queued"], found["known"]) == (True, 30, CROWD - 30)


async def test_dead_favourites_are_counted_with_their_reasons(reader: Reader) -> None:
    reader.queue.add(["fav:200000"])
    await reader.read("fav:200000")
    found = reader.ledger("fav:200000")
    assert sum(found["unavailable"].values()) == CROWD // 10
    assert found["listed"] == CROWD - CROWD // 10 and found["complete"]


@pytest.mark.parametrize("source", ["mid:404404", "fav:100201", "favs:30001"])
async def test_what_cannot_be_had_fails_for_good_with_a_sentence(source: str, reader: Reader) -> None:
    reader.queue.add([source])
    with pytest.raises(PermanentError):
        await reader.read(source)
    found = reader.ledger(source)
    assert found["state"] == "dead" and found["reason"]


# ------------------------------------------------------------------------------------------ wishes


async def test_the_first_ones_and_no_more_are_asked_for(reader: Reader) -> None:
    reader.queue.add([SERIES], wishes={"limit": 40})
    await reader.read(SERIES)
    assert reader.queued() == reader.expected(SERIES)[:40]
    assert reader.site.state.counters.routes["/x/series/archives"] == 2
    assert (reader.ledger(SERIES)["ended"], reader.ledger(SERIES)["complete"]) == ("wished", False)


async def test_a_limit_holds_over_a_break(reader: Reader, connection: redis.Redis) -> None:
    reader.queue.add([SERIES], wishes={"limit": 40})
    with pytest.raises(Cut):
        await reader.read(SERIES, stop_after=2)
    connection.zadd("{bili:0}:leased", {SERIES: 1}, xx=True)
    await reader.read(SERIES)
    assert reader.queued() == reader.expected(SERIES)[:40]


async def test_the_oldest_come_first_where_that_is_wished(reader: Reader) -> None:
    reader.queue.add([SERIES], wishes={"oldest_first": True, "limit": 5})
    await reader.read(SERIES)
    by_age = sorted(shelves.of_crowd(reader.site.state.videos), key=shelves.published_at)
    assert reader.queued() == [record.bvid for record in by_age[:5]]


async def test_an_uploaders_list_is_left_where_the_date_has_passed(reader: Reader) -> None:
    videos = shelves.of_crowd(reader.site.state.videos)
    since = shelves.published_at(videos[-20])
    reader.queue.add([UPLOADER], wishes={"since": since})
    await reader.read(UPLOADER)
    new = [record.bvid for record in videos if shelves.published_at(record) >= since]
    assert set(reader.queued()) - {"season:4003"} == set(new) & set(reader.expected(UPLOADER))
    assert reader.site.state.counters.routes["/x/space/wbi/arc/search"] < reader.ledger(UPLOADER)["pages_expected"]


async def test_only_titles_that_match(reader: Reader) -> None:
    reader.queue.add([SERIES], wishes={"match": "人群0001"})
    await reader.read(SERIES)
    wanted = [record.bvid for record in shelves.of_crowd(reader.site.state.videos) if "人群0001" in record.title]
    assert sorted(reader.queued()) == sorted(wanted)
    found = reader.ledger(SERIES)
    assert (found["listed"], found["queued"], found["complete"]) == (CROWD, len(wanted), True)


# ------------------------------------------------------------------------------------------ the watch


async def test_a_watch_finds_a_new_video_with_two_requests(reader: Reader, connection: redis.Redis) -> None:
    """The newest one is not there at first; then the first page has it, and the second one has no news."""
    reader.site.fault("lose_item", scope="api", path="/x/space/wbi/arc/search", count=1)
    reader.queue.add([UPLOADER])
    await reader.read(UPLOADER)
    assert not reader.ledger(UPLOADER)["complete"]
    newest = set(reader.expected(UPLOADER)) - set(reader.queued())
    asked = reader.site.state.counters.routes["/x/space/wbi/arc/search"]
    reader.queue.watch(UPLOADER, 60)
    let_it_be_time(connection, UPLOADER)
    assert reader.queue.revisit() == 1
    await reader.read(UPLOADER)
    assert reader.ledger(UPLOADER)["complete"]
    assert set(reader.queued()) - {"season:4003"} == newest
    assert reader.site.state.counters.routes["/x/space/wbi/arc/search"] - asked == 2


async def test_a_visit_without_news_is_one_request_and_once_a_day_all_of_them(
    reader: Reader, connection: redis.Redis
) -> None:
    reader.queue.add([SERIES])
    pages = await reader.read(SERIES)
    reader.queue.watch(SERIES, 60)
    for is_new_day in (False, True):
        let_it_be_time(connection, SERIES)
        if is_new_day:
            let_a_day_pass(connection, SERIES)
        reader.queued()
        reader.queue.revisit()
        assert await reader.read(SERIES) == (pages if is_new_day else 2), "a series is asked what it is called first"
        assert reader.ledger(SERIES)["complete"]


# ------------------------------------------------------------------------------------------ lessons


@pytest.mark.parametrize(("course", "index"), [(shelves.COURSES[0], 1), (shelves.COURSES[2], 119)])
async def test_a_lesson_is_a_video_of_one_page(
    course: shelves.Course, index: int, reader: Reader, queue: Queue
) -> None:
    """Also one that stands on a later page of its course's list; its page keeps the lesson's number."""
    lesson = shelves.lessons(course, reader.site.state.videos)[index]
    (page,) = reader.site.state.pages[lesson.record.bvid][:1]
    queue.add([f"cheese:ep{lesson.ep_id}"])
    (lease,) = queue.lease("w1", 1)
    assert lease.walk is None
    video = await reader.client.describe(parse_job_id(lease.url))
    assert (video.bvid, [one.cid for one in video.pages]) == (lesson.record.bvid, [page.cid])
    assert course.title in video.title
    first = queue.expand(lease.url, lease.token, video.pages).lease
    assert first is not None and first.url == f"cheese:ep{lesson.ep_id}?cid={page.cid}"
    again = await reader.client.describe(parse_job_id(first.url))
    assert (await reader.client.playinfo(again, again.pages[0])).videos
    assert queue.ack(first.url, first.token, Result("a.mp4", 1, 1.0)) == "done"


async def test_a_lesson_that_is_not_there_is_said(reader: Reader) -> None:
    for lesson in ("cheese:ep404", "cheese:ep700999"):
        with pytest.raises(PermanentError):
            await reader.client.describe(parse_job_id(lesson))
