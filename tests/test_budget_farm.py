"""Three real workers behind one address, before a site that bans who asks too often."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from tests.farm import Farm, wait_until

CROWD = 120
BUDGET, BAN = 3.0, 4.0
"""Requests a second: what the server shares, and beyond what the site bans, on average over five seconds."""
ENOUGH = 60
NAMES = ("w1", "w2", "w3")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site() -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE, "--crowd", str(CROWD)) as site:
        yield site


@pytest.fixture
def make_farm(tmp_path: Path, site: SiteProcess) -> Iterator[Callable[..., Farm]]:
    site.post("reset")
    farms: list[Farm] = []

    def make(**settings: str) -> Farm:
        farms.append(Farm(tmp_path, site, **settings))
        return farms[-1]

    yield make
    for farm in farms:
        farm.close()


def crowd(site: SiteProcess, count: int = CROWD) -> list[str]:
    return [one["bvid"] for one in site.get("catalogue")["videos"] if one["name"].startswith("crowd-")][:count]


def asked(site: SiteProcess) -> dict[str, Any]:
    """Return what the site says of the one address from which it is asked."""
    nothing = {"answered": 0, "refused": 0, "bans": 0, "most_per_second": 0.0}
    return next(iter(site.get("clients").values()), nothing)


def start_three(farm: Farm, **more: str) -> None:
    for name in NAMES:
        farm.worker(BILI_WORKER=name, **more)
    wait_until("all are heard of", lambda: len(states(farm)) == len(NAMES), 30)


def states(farm: Farm) -> dict[str, str]:
    return {one["worker"]: one["state"] for one in farm.get("/status")["workers"] if "state" in one}


# The pace of one worker by default, two a second, is below what the site takes; that of three is not.


def test_three_workers_that_nobody_steers_add_up_to_a_ban(make_farm: Callable[..., Farm], site: SiteProcess) -> None:
    farm = make_farm(BILI_API_INTERVAL="0.5")
    farm.add(*crowd(site))
    site.post("bans", requests_per_second=BAN)
    start_three(farm)
    wait_until("the address is banned", lambda: asked(site)["bans"] > 0, 30)


def test_three_workers_with_a_budget_stay_below_it_together_and_all_of_them_work(
    make_farm: Callable[..., Farm], site: SiteProcess
) -> None:
    farm = make_farm(BILI_API_INTERVAL="0.5", BILI_RATE_PER_ADDRESS=str(BUDGET))
    farm.add(*crowd(site))
    site.post("bans", requests_per_second=BAN)
    start_three(farm)
    began, before = time.monotonic(), asked(site)["answered"]
    wait_until("enough is asked", lambda: asked(site)["answered"] >= before + ENOUGH, 90)
    found, seconds = asked(site), time.monotonic() - began
    assert (found["bans"], found["refused"]) == (0, 0)
    assert found["most_per_second"] <= BUDGET + len(NAMES) / 5, "each may be in the middle of one"
    assert ENOUGH / seconds > BUDGET / 4, "and what there is to have is used"
    assert {one["worker"] for one in farm.everything("/success")} == set(NAMES)
    told = [one["allowed_per_second"] for one in farm.get("/status")["workers"]]
    assert len(told) == 3 and 0 < sum(told) <= BUDGET


def test_add_url_asks_no_more_often_than_its_share(make_farm: Callable[..., Farm], site: SiteProcess) -> None:
    farm = make_farm(BILI_RATE_PER_ADDRESS="2")
    site.post("bans", requests_per_second=0.0, window_seconds=1.0)
    assert farm.add("mid:20000").startswith("added ")
    found = asked(site)
    assert found["answered"] >= 4 and found["most_per_second"] <= 3


def test_one_that_is_refused_stops_all_three_within_a_heartbeat_and_one_that_is_answered_lets_them_go_on(
    make_farm: Callable[..., Farm], site: SiteProcess
) -> None:
    farm = make_farm(BILI_API_INTERVAL="0.5")  # so that there is work left when they are parked
    start_three(farm)
    site.post("bans", requests_per_second=0.0)
    site.post("faults", kind="status", status=412, scope="api", path="/x/web-interface/view", count=1)
    farm.add(*crowd(site))
    wait_until("one is refused", lambda: farm.get("/status")["breakers"], 30)
    # They hear of it with their next heartbeat, which is two seconds away at most, and say so with the one after.
    wait_until("all are parked", lambda: set(states(farm).values()) == {"parked"}, 12)
    parked = asked(site)["answered"]
    (breaker,) = farm.get("/status")["breakers"]
    assert (breaker["group"], breaker["state"], breaker["kind"]) == ("address:local", "open", "412")
    sentence = "this network: all its workers are parked"
    assert sentence in shown(farm, "/ui/machines?fragment")
    status = farm.start("web_server.py", "--status")
    assert status.wait(30) == 0 and sentence in status.output()

    def is_tried() -> bool:
        answered, found = asked(site)["answered"], farm.get("/status")["breakers"]
        if found and found[0]["state"] == "open":
            assert answered == parked, "nothing is asked while it is open"
        return not found or bool(found[0]["prober"])

    wait_until("one tries", is_tried, 60)
    wait_until("all go on", lambda: not farm.get("/status")["breakers"], 30)
    done = farm.counts()["done"]
    wait_until("they work again", lambda: farm.counts()["done"] >= done + 5, 90)
    assert set(states(farm).values()) == {"running"}
    assert farm.everything("/failed") == []


def shown(farm: Farm, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{farm.port}{path}", headers={"Accept-Language": "en"})
    with opener.open(request, timeout=10) as answer:
        return str(answer.read().decode())
