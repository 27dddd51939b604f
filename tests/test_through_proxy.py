"""The real addresses through a proxy that opens TLS, and a stand-in for the site below a path prefix."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import certifi
import imageio_ffmpeg
import pytest

from demo.media import ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE, REAL_MEDIA_HOSTS
from tests.farm import Farm, free_port
from tests.proxy import PASSWORD, Proxy
from tests.test_end_to_end import assert_no_chunk_twice, bvid, cid, files_of, stream_hashes

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
SESSDATA = "f00dfeed%2C1893456000%2Cabcde*c1"


class RealSite(SiteProcess):
    """The stand-in under the real site's names; no setting leads to it."""

    def environ(self) -> dict[str, str]:
        return {}


@pytest.fixture(scope="module")
def module_site() -> Iterator[RealSite]:
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())
    with RealSite(DEFAULT_CACHE, "--real-names") as site:
        yield site


@pytest.fixture
def site(module_site: RealSite) -> RealSite:
    module_site.post("reset")
    return module_site


@pytest.fixture
def proxy(site: RealSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    with Proxy(site, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def farm(tmp_path: Path, site: RealSite, proxy: Proxy) -> Iterator[Farm]:
    farm = Farm(tmp_path, site, **behind(proxy.url()))
    yield farm
    farm.close()


def behind(url: str) -> dict[str, str]:
    return {"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": "", "BILI_SESSDATA": SESSDATA}


def trusting(proxy: Proxy, *names: str) -> dict[str, str]:
    return dict.fromkeys(names or ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(proxy.ca_file))


def assert_only_the_site_was_asked(proxy: Proxy) -> None:
    """Nobody but the site's hosts, each with what belongs to it."""
    assert proxy.targets
    for target in proxy.targets:
        assert re.fullmatch(r"(([a-z0-9-]+\.)+(bilibili|bilivideo)\.com|b23\.tv):443", target), target
    for seen in proxy.seen:
        assert seen.host and "proxy-authorization" not in seen.headers and "authorization" not in seen.headers, seen
        if not seen.host.endswith(".bilibili.com"):
            assert "cookie" not in seen.headers, seen


def assert_nothing_was_said_of_secrets(farm: Farm) -> None:
    for log in farm.folder.glob("*.log"):
        for secret in (PASSWORD, SESSDATA, "upsig=", "w_rid="):
            assert secret not in log.read_text("utf-8"), log


# ------------------------------------------------------------------------------------------ the real addresses


def test_everything_arrives_from_the_real_addresses_through_a_proxy(farm: Farm, proxy: Proxy) -> None:
    farm.settings |= trusting(proxy)
    assert farm.add(bvid("large-a"), "https://b23.tv/Demo005") == "added 2, known 0, rejected 0"
    ranking = farm.start("add_url.py", "--limit", "2")
    assert ranking.wait() == 0, ranking.output()
    assert re.fullmatch(r"added [1-9]\d*, known \d+, rejected 0", ranking.output().splitlines()[-1])
    farm.steer(stop=1, count=4)
    assert farm.drain() == 0
    files = files_of(farm)
    assert {cid("large-a"), cid("five-pages", 3)} <= set(files)
    assert len(files) == farm.counts()["done"] == len(farm.everything("/success")) >= 8
    assert {"科学科普", "校园学习", "other"} <= {path.relative_to(farm.downloads).parts[0] for path in files.values()}
    library = ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())
    served = [stream for stream in library.of_page(cid("large-a")) if stream.url_path in farm.ranges()]
    wanted = sorted(one for stream in served for one in stream_hashes(library.folder / stream.file, "mov"))
    assert wanted and stream_hashes(files[cid("large-a")], "mov") == wanted
    assert_no_chunk_twice(farm)
    assert_only_the_site_was_asked(proxy)
    assert_nothing_was_said_of_secrets(farm)
    hosts = {seen.host for seen in proxy.seen}
    assert {"api.bilibili.com", "b23.tv"} <= hosts and any(host.endswith(".bilivideo.com") for host in hosts)
    assert any(SESSDATA in seen.headers.get("cookie", "") for seen in proxy.seen)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_either_of_the_two_names_of_a_ca_file_is_enough(farm: Farm, proxy: Proxy, name: str) -> None:
    farm.settings |= trusting(proxy, name)
    assert farm.add("https://b23.tv/Demo001") == "added 1, known 0, rejected 0"
    assert farm.drain() == 0
    assert set(files_of(farm)) == {cid("plain")}
    assert_only_the_site_was_asked(proxy)


def test_the_ca_file_meant_for_us_counts_beside_that_of_the_system(farm: Farm, proxy: Proxy) -> None:
    """Many systems name their own CAs in SSL_CERT_FILE for every program."""
    farm.settings |= {"SSL_CERT_FILE": certifi.where()} | trusting(proxy, "REQUESTS_CA_BUNDLE")
    assert farm.add("https://b23.tv/Demo001") == "added 1, known 0, rejected 0"
    assert farm.drain() == 0


@pytest.mark.slow
def test_without_the_ca_it_is_a_clear_sentence_and_nothing_is_sent_or_counted(farm: Farm, proxy: Proxy) -> None:
    adding = farm.start("add_url.py", bvid("plain"), "https://b23.tv/Demo005")
    assert adding.wait() == 1
    assert "https://b23.tv/Demo005 has a certificate that is not trusted" in adding.output()
    assert adding.output().endswith("added 1, known 0, rejected 1\n")
    worker = farm.worker("--until-empty", "--wait", "0")
    worker.says("now ready (no-network")
    assert "leases nothing for 30 s" in worker.output() and "certificate" in worker.output()
    assert_parked(farm)
    worker.interrupt()
    assert worker.wait(10) == 0
    assert proxy.seen == []  # no request, with or without a cookie, left in a tunnel that is not trusted
    assert "Traceback" not in worker.output() + adding.output()


def assert_parked(farm: Farm) -> None:
    """The job is back, with no attempt counted, and nothing is on disk."""
    assert farm.counts() == {"ready": 1, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    assert farm.everything("/failed") == []
    assert [path for path in farm.downloads.rglob("*") if path.is_file()] == []
    assert farm.sent_bytes() == 0


# ------------------------------------------------------------------------------------------ a proxy that refuses


@pytest.mark.slow
@pytest.mark.parametrize("how", ["no password", "a wrong password", "closed", "media only"])
def test_a_proxy_that_refuses_is_no_fault_of_the_job(farm: Farm, proxy: Proxy, how: str) -> None:
    farm.settings |= trusting(proxy)
    farm.add(bvid("plain"))
    if how == "media only":
        proxy.refused = set(REAL_MEDIA_HOSTS)
    url = {
        "no password": proxy.url(user=""),
        "a wrong password": proxy.url(password="wrong"),
        "closed": f"http://127.0.0.1:{free_port()}",
    }.get(how, proxy.url())
    worker = farm.worker("--until-empty", **behind(url))
    worker.says("now ready (no-network")
    assert "leases nothing for 30 s" in worker.output() and "proxy" in worker.output()
    assert_parked(farm)
    worker.interrupt()
    assert worker.wait(10) == 0
    proxy.refused = set()
    assert attempt_of_the_next_lease(farm) == 1  # the one that failed was not counted
    assert farm.drain() == 0
    assert set(files_of(farm)) == {cid("plain")}


def attempt_of_the_next_lease(farm: Farm) -> int:
    """Lease the job, look, and give it back."""
    [lease] = farm.get("/get_url?count=1&worker=looks")
    body = json.dumps({"url": lease["url"], "token": lease["token"]}).encode()
    request = Request(f"http://127.0.0.1:{farm.port}/release", body, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=10) as reply:
        assert json.load(reply) == {"state": "ready"}
    return int(lease["attempt"])


# ------------------------------------------------------------------------------------------ a path prefix


def test_a_stand_in_below_a_path_prefix_serves_all_the_same(tmp_path: Path) -> None:
    with SiteProcess(DEFAULT_CACHE, "--prefix", "/a/prefix") as site:
        assert site.environ()["BILI_WEB_URL"].endswith("/a/prefix/web")
        farm = Farm(tmp_path, site)
        try:
            targets = (
                bvid("plain"),
                f"{site.addresses['web']}/video/{bvid('no-audio')}?p=1",
                f"{site.addresses['short']}/DemoEp1",
                bvid("redirected"),
                "https://b23.tv/Demo005",
            )
            assert farm.add(*targets) == "added 5, known 0, rejected 0"
            ranking = farm.start("add_url.py", "rank:1010", "--limit", "1")
            assert ranking.wait() == 0, ranking.output()
            assert farm.drain() == 0
            expected = {cid(name) for name in ("plain", "no-audio", "episode-twin", "redirected")}
            assert expected | {cid("five-pages", 3)} <= set(files_of(farm))
            for name in ("view", "wbi/view"):  # so that the pages below the prefix have to do
                site.post("faults", scope="api", kind="invalid_json", path=f"/x/web-interface/{name}")
            site.post("faults", scope="api", kind="invalid_json", path="/x/player/*")
            farm.add(bvid("rich"))
            assert farm.drain() == 0
            assert cid("rich") in files_of(farm)
        finally:
            farm.close()
