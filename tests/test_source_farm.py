"""Sources from end to end: real scripts, a real server and engine, and the stand-in site with its catalogue."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from config import Settings
from demo import shelves
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from redisConnect import open_queue
from tests.farm import Farm, wait_until

CROWD = 200
UPLOADER, SERIES = f"mid:{shelves.CROWD_MID}", "series:5002"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def module_site() -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE, "--crowd", str(CROWD)) as site:
        yield site


@pytest.fixture
def site(module_site: SiteProcess) -> SiteProcess:
    module_site.post("reset")
    return module_site


@pytest.fixture
def make_farm(tmp_path: Path, site: SiteProcess) -> Iterator[Callable[..., Farm]]:
    farms: list[Farm] = []

    def make(**settings: str) -> Farm:
        farms.append(Farm(tmp_path, site, **settings))
        return farms[-1]

    yield make
    for farm in farms:
        farm.close()


def ledgers(farm: Farm) -> dict[str, dict[str, Any]]:
    """Return what the server says of each source."""
    return {item["source"]: item for item in farm.everything("/sources")}


def agrees(farm: Farm, source: str) -> bool:
    """Tell whether a source's ledger is that of the catalogue."""
    found, expected = ledgers(farm).get(source, {}), farm.site.get("sources")[source]
    counts = (found.get("listed"), found.get("queued", 0) + found.get("known", 0))
    return bool(found.get("complete")) and counts == (len(expected), len(expected))


def output_of(farm: Farm, *arguments: str, **more: str) -> tuple[int, str]:
    script = farm.start("add_url.py", *arguments, **more)
    return script.wait(), script.output()


def test_a_mixed_list_is_read_at_once_and_bad_lines_are_named(farm: Farm, tmp_path: Path) -> None:
    """Sources, videos, nonsense, what is not there, and what is empty; the rest goes on."""
    listed = tmp_path / "list.txt"
    lines = [
        "# mixed",
        f"https://space.bilibili.com/{shelves.CROWD_MID}/upload/video  an uploader",
        "fav:200000",
        "search:人群0001 ",
        "mid:404404",
        "mid:",
        "fav:100201",
        "rubbish",
        "mid:30000",
        "BV1xx411c7mD",
    ]
    listed.write_text("\n".join(lines), "utf-8")
    status, output = output_of(farm, "--file", str(listed), "ss404")
    assert status == 1
    rejected = [line for line in output.splitlines() if "rejected " in line and not line.startswith("added ")]
    for place, wrong in (("list.txt:5", "mid:404404"), ("list.txt:6", "mid:"), ("list.txt:7", "fav:100201")):
        assert [line for line in rejected if place in line and wrong in line], output
    assert len(rejected) == 5, output
    added = CROWD + 1 + 1  # the hidden collection is a source in its uploader's list
    assert f"added {added}, known " in output.splitlines()[-1]
    assert output.splitlines()[-1].endswith("rejected 5")
    for source in (UPLOADER, "season:4003", "fav:200000", "mid:30000"):
        assert agrees(farm, source), ledgers(farm)[source]
    assert farm.counts()["ready"] == CROWD + 1
    assert {item["url"]: item["state"] for item in farm.everything("/failed")} == dict.fromkeys(
        ("mid:404404", "fav:100201", "ss404"), "dead"
    )
    status, output = output_of(farm, "--sources", "--json")
    assert status == 0
    said = {item["source"]: item for item in json.loads(output[output.index("\n[") :])}
    default = {"category": ""}  # which it is, the server decides
    assert said == {source: item | default for source, item in ledgers(farm).items()}
    table = output_of(farm, "--sources")[1]
    (row,) = [line for line in table.splitlines() if line.startswith("fav:200000")]
    assert "complete" in row and f"{CROWD - CROWD // 10}/{CROWD}" in row


def test_a_worker_that_is_killed_in_a_listing_is_followed_by_another(make_farm: Callable[..., Farm]) -> None:
    farm = make_farm(BILI_LEASE_SECONDS="2", BILI_AFFINITY_SECONDS="0", BILI_API_INTERVAL="0.4")
    post(farm, "/add_url", urls=[SERIES])
    worker = farm.worker(BILI_WORKER="first")
    wait_until("it has read some", lambda: ledgers(farm)[SERIES]["pages_read"] >= 3)
    worker.kill()
    before = ledgers(farm)[SERIES]
    assert not before["complete"] and before["cursor"]
    asked = farm.site.get("stats")["routes"]["/x/series/archives"]
    farm.worker(BILI_WORKER="second", BILI_API_INTERVAL="0")
    wait_until("the other one has read the rest", lambda: agrees(farm, SERIES))
    pages = -(-CROWD // 30)
    assert farm.site.get("stats")["routes"]["/x/series/archives"] <= max(asked, pages) + 1, "no page twice but one"
    assert ledgers(farm)[SERIES]["pages_read"] == pages + 1


@pytest.mark.parametrize(
    ("script", "lease_seconds"), [(("add_url.py", SERIES), "600"), (("run.py",), "600"), (("add_url.py", SERIES), "2")]
)
def test_what_is_not_read_to_its_end_goes_on_elsewhere(
    script: tuple[str, ...], lease_seconds: str, make_farm: Callable[..., Farm]
) -> None:
    """Ctrl-C gives the source back at once, with its place; after a kill the lease runs out first."""
    farm = make_farm(BILI_LEASE_SECONDS=lease_seconds)
    if script == ("run.py",):
        post(farm, "/add_url", urls=[SERIES])
    reader = farm.start(*script, BILI_API_INTERVAL="0.4")
    wait_until("it has read some", lambda: ledgers(farm).get(SERIES, {}).get("pages_read", 0) >= 2)
    if lease_seconds == "2":
        reader.kill()
    else:
        reader.interrupt(signal.SIGINT)
        reader.wait()
        found = ledgers(farm)[SERIES]
        assert found["state"] == "ready" and found["cursor"]
    farm.worker()
    wait_until("a worker has read the rest", lambda: agrees(farm, SERIES))


def test_what_the_site_refuses_in_the_middle_stays_in_the_queue_and_naming_it_again_reads_it(farm: Farm) -> None:
    farm.site.post("faults", kind="voucher", scope="api", path="/x/series/archives", skip=3, count=1)
    status, output = output_of(farm, SERIES)
    assert (status, output.splitlines()[-1]) == (0, "added 90, known 0, rejected 0")
    assert f"{SERIES}: " in output and "a worker goes on with it later" in output
    found = ledgers(farm)[SERIES]
    assert (found["state"], found["complete"], found["listed"]) == ("ready", False, 90)
    assert farm.add(SERIES) == "added 0, known 0, rejected 0", "nothing is asked of the site for a while"
    wait_until("it may be tried again", lambda: farm.get("/status")["breakers"][0]["seconds"] == 0, 60)
    assert farm.add(SERIES) == f"added {CROWD - 90}, known 90, rejected 0"
    assert agrees(farm, SERIES)


def test_what_only_an_account_sees_is_left_to_the_workers(make_farm: Callable[..., Farm]) -> None:
    """The lessons first: elsewhere in the stand-in their pages are those of common videos, and known from then on."""
    farm = make_farm(BILI_SESSDATA="an-account")
    assert farm.add("cheese:ss6001") == "added 1, known 0, rejected 0"
    farm.worker()
    lessons = set(farm.site.get("sources")["cheese:ss6001"])
    wait_until("the lessons", lambda: done_lessons(farm) >= lessons, 40)
    for source in ("later", "fav:1008686"):
        status, output = output_of(farm, source)
        assert status == 0, output
        wait_until("a worker has read it", lambda source=source: agrees(farm, source), 20)
    assert farm.everything("/failed") == []


def done_lessons(farm: Farm) -> set[str]:
    return {item["url"].partition("?")[0] for item in farm.everything("/success")}


def test_a_watch_goes_on_after_its_terminal_and_finds_a_new_video(farm: Farm) -> None:
    """The first pass meets a list without its newest entry, the server's own visit one with it."""
    farm.site.post("faults", kind="lose_item", scope="api", path="/x/space/wbi/arc/search", count=1)
    watching = farm.start("add_url.py", UPLOADER, "--watch", "3600")
    wait_until("the first round", lambda: "added " in watching.output())
    watching.kill()
    assert ledgers(farm)[UPLOADER]["watched"] == 3600
    assert not ledgers(farm)[UPLOADER]["complete"]
    before = farm.counts()["ready"]
    with closing(open_queue(Settings(data_dir=farm.folder / "data"))) as queue:
        queue._redis.zadd("{bili:0}:watch", {UPLOADER: 1})  # an hour later
        wait_until("the tick has queued it", lambda: farm.counts()["ready"] > before)
    farm.worker()
    wait_until("the visit", lambda: agrees_after_news(farm))
    assert output_of(farm, "--unwatch", UPLOADER)[0] == 0
    assert ledgers(farm)[UPLOADER]["watched"] == 0
    assert output_of(farm, "--unwatch", UPLOADER)[0] == 1


@pytest.mark.parametrize("reader", ["add_url.py", "run.py"])
def test_all_lists_of_a_user_are_read_list_by_list(reader: str, farm: Farm) -> None:
    source = f"lists:{shelves.CROWD_MID}"
    if reader == "add_url.py":
        farm.start(reader, f"https://space.bilibili.com/{shelves.CROWD_MID}/lists", "--watch", "3600")
    else:
        post(farm, "/add_url", urls=[source], watch=3600)
        farm.worker()
    inner = farm.site.get("sources")[source]
    assert len(inner) == 23
    wait_until("all lists are read", lambda: all(agrees(farm, one) for one in (source, *inner)))
    assert {one: found["watched"] for one, found in ledgers(farm).items() if found["watched"]} == {source: 3600}
    listed = {url for one in inner for url in farm.site.get("sources")[one]}
    assert sum(found["queued"] for one, found in ledgers(farm).items() if one != source) == len(listed), "each once"


def test_a_watched_video_is_asked_for_new_pages_after_everything_was_started_anew(farm: Farm) -> None:
    video = next(video for video in farm.site.get("catalogue")["videos"] if video["name"] == "gains-a-page")
    watching = farm.start("add_url.py", video["bvid"], "--watch", "3600", "--category", "music")
    wait_until("the first round", lambda: "added " in watching.output())
    watching.kill()
    farm.worker()
    wait_until("both pages", lambda: farm.counts()["done"] == 2)
    farm.site.post("gain_page", name="gains-a-page", at=2)
    farm.server.kill()
    farm.server = farm.start_server()
    assert (ledgers(farm)[video["bvid"]]["watched"], ledgers(farm)[video["bvid"]]["listed"]) == (86400, 2)
    sent = farm.sent_bytes()
    with closing(open_queue(Settings(data_dir=farm.folder / "data"))) as queue:
        queue._redis.zadd("{bili:0}:watch", {video["bvid"]: 1})  # a day later
        wait_until("the new page", lambda: farm.counts()["done"] == 3)
    assert farm.sent_bytes() > sent
    assert {item["path"].split("/")[0] for item in farm.everything("/success")} == {"music"}
    found = ledgers(farm)[video["bvid"]]
    assert (found["listed"], found["queued"], found["known"], found["complete"]) == (3, 3, 2, True)
    assert output_of(farm, "--unwatch", video["bvid"])[0] == 0
    assert ledgers(farm) == {}


def test_a_ranking_that_the_settings_name_is_watched_after_its_terminal(farm: Farm) -> None:
    """In the stand-in all of it is of one region, and a part of that of the sub-regions."""
    status, output = output_of(farm, "rank:社科人文", "--limit", "3")
    assert status == 0, output
    watching = farm.start("add_url.py", "rank:社科人文", "--watch", "3600", "--limit", "3")
    wait_until("the first round", lambda: "added " in watching.output())
    watching.kill()
    ((source, found),) = ledgers(farm).items()
    assert (source, found["watched"], found["category"], found["wishes"]) == (
        *("rank:1010:124,228,2088,2089,2090,2092", 3600, "社科人文", {"limit": 3}),
    )
    assert (found["queued"], found["known"]) == (0, 3), "the same videos as without a watch"
    with closing(open_queue(Settings(data_dir=farm.folder / "data"))) as queue:
        before = farm.counts()["ready"]
        queue._redis.zadd("{bili:0}:watch", {source: 1})  # an hour later
        wait_until("the tick has queued it", lambda: farm.counts()["ready"] > before)
    assert output_of(farm, "--unwatch", "rank:社科人文")[0] == 0


def agrees_after_news(farm: Farm) -> bool:
    found = ledgers(farm)[UPLOADER]
    return found["complete"] and found["listed"] == len(farm.site.get("sources")[UPLOADER])


def test_pages_of_a_video_are_chosen(farm: Farm) -> None:
    five = next(video for video in farm.site.get("catalogue")["videos"] if video["name"] == "five-pages")
    assert farm.add(five["bvid"], "--pages", "1-2,-1") == "added 3, known 0, rejected 0"
    assert farm.add(five["bvid"], "--pages", "6") == "added 0, known 0, rejected 1"
    assert farm.drain() == 0
    done = {item["url"].partition("&")[0] for item in farm.everything("/success")}
    assert done == {f"{five['bvid']}?p={number}" for number in (1, 2, 5)}


def post(farm: Farm, path: str, **body: Any) -> Any:
    """Return what the server answers to a POST."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{farm.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return json.load(answer)
