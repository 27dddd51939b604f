"""Listings read over real HTTP from the stand-in site: what is found must be what its catalogue has."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

import aiohttp
import pytest
import pytest_asyncio

import parse_
from config import USER_AGENT
from demo import catalogue, shelves
from demo.site import DEFAULT_CACHE, RunningSite, running_site
from errors import PermanentError, RiskControl, SiteError
from source_ids import find_source
from sources import Cursor, ListItem, ListPage, ListRequest, first_cursor, plan_request, read_page

CROWD, PAGES = 400, 300

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Walker:
    """Asks what the planners plan and reads what comes, as a worker does; ``at`` is where a broken walk goes on."""

    site: RunningSite
    session: aiohttp.ClientSession
    sessdata: str = ""
    at: Cursor | None = None
    pages: list[ListPage] = field(default_factory=list)

    @property
    def items(self) -> list[ListItem]:
        return [item for page in self.pages for item in page.items]

    @property
    def ids(self) -> list[str]:
        """What can be had."""
        return [item.id for item in self.items if not item.unavailable]

    @property
    def announced(self) -> int | None:
        return next((page.announced for page in reversed(self.pages) if page.announced is not None), None)

    @property
    def title(self) -> str:
        return next((page.title for page in self.pages if page.title), "")

    async def walk(self, source: str = "") -> Walker:
        """Read a listing to its end, from the beginning or, without a source, from where it broke off."""
        if source:
            self.at, self.pages = first_cursor(source), []
        while self.at is not None:
            page = read_page(self.at, await self.ask(plan_request(self.at)))
            self.pages.append(page)
            self.at = page.next
        return self

    async def ask(self, request: ListRequest) -> str:
        params = dict(request.params)
        if request.signed:
            keys = parse_.parse_wbi_keys(await self._get("/x/web-interface/nav", {}))
            params = parse_.sign_wbi(params, keys, int(time.time()))
        return await self._get(request.path, params)

    async def _get(self, path: str, params: dict[str, str]) -> str:
        url = f"{self.site.api_url}{path}?{urlencode(params, quote_via=quote, safe='')}"
        headers = {"Cookie": f"SESSDATA={self.sessdata}"} if self.sessdata else {}
        async with self.session.get(url, headers=headers) as response:
            return await response.text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowded() -> AsyncIterator[RunningSite]:
    async with running_site(DEFAULT_CACHE, crowd=CROWD, crowd_pages=PAGES) as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"User-Agent": USER_AGENT}) as opened:
        yield opened


@pytest.fixture
def walker(crowded: RunningSite, session: aiohttp.ClientSession) -> Walker:
    crowded.reset()
    return Walker(crowded, session, sessdata="an account")


@pytest.fixture
def guest(crowded: RunningSite, session: aiohttp.ClientSession) -> Walker:
    crowded.reset()
    return Walker(crowded, session)


SOURCES = list(shelves.found_in(()))


@pytest.mark.parametrize("source", SOURCES)
async def test_a_walk_finds_what_the_catalogue_has(source: str, walker: Walker) -> None:
    walked = await walker.walk(source)
    expected = shelves.found_in(walker.site.state.videos)[source]
    assert walked.ids == expected
    assert walked.announced in (None, len(walked.items)), "the ledger agrees with itself"
    assert walked.announced == 0 or walked.items
    for id_ in walked.ids:
        job = parse_.parse_job_id(id_)
        assert job.is_source or walker.site.state.find_video(job.bvid) or catalogue.find_episode(job.episode_id)


async def test_an_uploader_of_several_hundred_is_all_found_through_the_hidden_collection(walker: Walker) -> None:
    own = await walker.walk("mid:20000")
    assert own.title == "人群UP主"
    assert len(own.pages) == 11
    direct = [id_ for id_ in own.ids if find_source(id_) is None]
    (hidden,) = [id_ for id_ in own.ids if find_source(id_) is not None]
    through = (await walker.walk(hidden)).ids
    assert sorted([*direct, *through]) == sorted(record.bvid for record in shelves.of_crowd(walker.site.state.videos))
    assert Counter([*direct, *through]).most_common(1)[0][1] == 1


async def test_a_course_of_many_pages_is_listed_described_and_served(walker: Walker) -> None:
    record = walker.site.state.crowd.video("crowd-pages")
    assert record.bvid in (await walker.walk(f"mid:{record.mid}")).ids
    video = parse_.parse_view(await walker._get("/x/web-interface/view", {"bvid": record.bvid}))
    assert [page.number for page in video.pages] == list(range(1, PAGES + 1))
    assert len({page.cid for page in video.pages}) == PAGES
    assert all(walker.site.state.streams_of(page.cid) for page in video.pages)


async def test_all_favourites_of_a_user_are_found_folder_by_folder(walker: Walker) -> None:
    folders = (await walker.walk("favs:20000")).ids
    assert folders == ["fav:200000"]
    dead = Counter(item.unavailable for item in (await walker.walk(folders[0])).items)
    assert sum(count for reason, count in dead.items() if reason) == CROWD // 10
    assert dead[""] == CROWD - CROWD // 10


async def test_all_lists_of_a_user_are_found_page_by_page_and_lead_to_their_videos(walker: Walker) -> None:
    walked = await walker.walk("lists:20000")
    assert (walked.announced, len(walked.ids), [len(page.items) for page in walked.pages]) == (23, 23, [20, 3])
    assert walked.ids[:3] == ["season:4003", "season:4004", "series:5002"]
    assert walked.items[0].title == "合集·人群的隐藏合集"
    small = (await walker.walk("lists:10001")).ids
    assert small == ["season:4001", "season:4002", "season:4005", "series:5001"], "the hidden one and the empty one too"


async def test_a_page_of_lists_that_loses_one_shows(walker: Walker) -> None:
    walker.site.fault("lose_item", scope="api", path="/x/polymer/web-space/seasons_series_list", count=1)
    walked = await walker.walk("lists:20000")
    assert (walked.announced, len(walked.items)) == (23, 22)


async def test_a_search_finds_each_video_once(walker: Walker) -> None:
    walked = await walker.walk("search:" + quote("人群"))
    assert sorted(walked.ids) == sorted(record.bvid for record in shelves.of_crowd(walker.site.state.videos))
    assert all("<" not in item.title for item in walked.items)
    assert (await walker.walk("search:nothing%20of%20this")).announced == 0


async def test_a_course_is_found_in_a_search(walker: Walker) -> None:
    assert "cheese:ep700101" in (await walker.walk("search:" + quote("课"))).ids


async def test_a_ranking_is_the_regions(walker: Walker) -> None:
    walked = await walker.walk("rank:1010")
    state = walker.site.state
    assert walked.ids
    assert all((record := state.find_video(id_)) and record.region.pid_v2 == 1010 for id_ in walked.ids)
    with pytest.raises(SiteError):
        await walker.walk("rank:4")


# ------------------------------------------------------------------------------------------ outcomes


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("mid:404404", "no such uploader"),
        ("season:404", "no such collection"),
        ("series:404", "no such series"),
        ("fav:404", "no such folder"),
        ("fav:100201", "private"),
        ("favs:30001", "does not show"),
        ("lists:30001", "does not show"),
        ("lists:404404", "no such uploader"),
        ("ss404", "no such season"),
        ("md404", "no such season"),
        ("cheese:ss404", "no such course"),
        ("cheese:ep404", "no such course"),
        ("weekly:404", "no such week"),
    ],
)
async def test_what_cannot_be_had_is_said_in_a_sentence(source: str, says: str, walker: Walker) -> None:
    with pytest.raises(PermanentError, match=says):
        await walker.walk(source)


@pytest.mark.parametrize("source", ["mid:30000", "season:4005", "fav:100101", "favs:30000", "lists:30000"])
async def test_what_is_empty_is_no_error(source: str, walker: Walker) -> None:
    walked = await walker.walk(source)
    assert (walked.items, walked.announced) == ([], 0)


async def test_a_guest_gets_what_is_public(guest: Walker) -> None:
    for source in ("later", "fav:1008686"):
        with pytest.raises(PermanentError, match="BILI_SESSDATA"):
            await guest.walk(source)
    assert (await guest.walk("cheese:ss6001")).ids == []
    assert (await guest.walk("cheese:ss6002")).ids == ["cheese:ep700201"]
    assert (await guest.walk("mid:10001")).ids


async def test_one_lesson_is_found_by_its_own_id(walker: Walker) -> None:
    assert (await walker.walk("cheese:ep700102")).ids == ["cheese:ep700102"]
    assert (await walker.walk("cheese:ep700420")).ids == ["cheese:ep700420"], "also the last of a long course"
    (other,) = (await walker.walk("cheese:ep700203")).items
    assert "own" in other.unavailable


# ------------------------------------------------------------------------------------------ faults


async def test_a_page_that_loses_an_item_shows(walker: Walker) -> None:
    walker.site.fault("lose_item", scope="api", path="/x/space/wbi/arc/search", skip=2, count=1)
    walked = await walker.walk("mid:20000")
    assert walked.announced == len(walked.items) + 1
    missing = set(shelves.found_in(walker.site.state.videos)["mid:20000"]) - set(walked.ids)
    assert len(missing) == 1


async def test_a_page_that_is_lost_does_not_end_the_listing(walker: Walker) -> None:
    walker.site.fault("lose_items", scope="api", path="/x/v3/fav/resource/list", skip=3, count=1)
    walked = await walker.walk("fav:200000")
    assert (walked.announced, len(walked.items)) == (CROWD, CROWD - 20)
    assert len(walked.pages) == CROWD // 20


@pytest.mark.parametrize("kind", ["risk_control", "invalid_json", "answer", "voucher"])
async def test_a_listing_that_breaks_off_goes_on_where_it_stopped(kind: str, walker: Walker) -> None:
    walker.site.fault(kind, scope="api", path="/x/series/archives", skip=5, count=1)
    with pytest.raises(RiskControl if kind != "invalid_json" else SiteError):
        await walker.walk("series:5002")
    assert 0 < len(walker.items) < CROWD
    asked = walker.site.state.counters.routes["/x/series/archives"]
    walked = await walker.walk()
    assert walked.ids == shelves.found_in(walker.site.state.videos)["series:5002"]
    assert walker.site.state.counters.routes["/x/series/archives"] - asked == CROWD // 30 + 1 - 5


async def test_what_needs_a_signature_is_refused_without_one(walker: Walker) -> None:
    for path in ("/x/space/wbi/arc/search", "/x/space/wbi/acc/info", "/x/web-interface/wbi/search/type"):
        answer = await walker._get(path, {"mid": "20000", "keyword": "a", "search_type": "video"})
        with pytest.raises(RiskControl):
            parse_.envelope(answer)
    for path in ("/x/polymer/web-space/seasons_archives_list", "/x/web-interface/popular/series/one"):
        query = {"season_id": "4001", "number": "1"}
        assert parse_.envelope(await walker._get(path, query))["code"] == 0
        with pytest.raises(RiskControl):
            parse_.envelope(await walker._get(path, {**query, "w_rid": "0" * 32, "wts": str(int(time.time()))}))


async def test_a_lesson_has_streams_for_who_owns_its_course(walker: Walker, guest: Walker) -> None:
    course = shelves.COURSES[0]
    lesson = shelves.lessons(course, walker.site.state.videos)[1]
    cid = str(walker.site.state.pages[lesson.record.bvid][0].cid)
    query = {"avid": str(lesson.record.aid), "cid": cid, "ep_id": str(lesson.ep_id), "qn": "80", "fnval": "16"}
    playinfo = parse_.parse_playurl(await walker._get("/pugv/player/web/playurl", query))
    assert playinfo.videos
    with pytest.raises(PermanentError):
        parse_.parse_playurl(await guest._get("/pugv/player/web/playurl", query))
