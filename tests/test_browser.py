"""The status page in a real browser, on a real farm: what a person sees, and that nobody else's script runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import imageio_ffmpeg
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from demo.catalogue import LONG_TITLE, video
from demo.media import ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from model import MIB
from tests.farm import Farm, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

INSTALL = "install the Debian packages chromium and chromium-driver (as root: sh tests/install_debian_packages.sh)"
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1280,1000",
)
PHONE = (390, 844)


class Browser:
    """A Chromium of the test's own, with an empty profile, that reaches nothing but this machine."""

    def __init__(self, folder: Path, language: str = "en", phone: bool = False, dark: bool = False) -> None:
        binary, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
        if not binary or not driver:
            pytest.fail(f"there is no {'chromedriver' if binary else 'chromium'} in PATH: {INSTALL}")
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in FLAGS:
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={folder / 'profile'}")
        options.add_experimental_option("prefs", {"intl.accept_languages": language})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.set_capability("unhandledPromptBehavior", "ignore")
        environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver, env=environ))
        self.log: list[dict[str, Any]] = []
        if phone:
            size = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 2, "mobile": True}
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, farm: Farm, credentials: str = "") -> None:
        """Show the status page, and mark the document, so that a reload would be seen."""
        self.driver.get(f"http://{credentials}127.0.0.1:{farm.port}/")
        self.run("window.openedOnce = true")

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str = "body") -> str:
        """Return the visible text of the first element, an empty one where there is none."""
        found = self.run("return document.querySelector(arguments[0])?.innerText", selector)
        return str(found or "")

    def texts(self, selector: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector))

    def shows(self, what: str, selector: str = "body", seconds: float = 30.0) -> None:
        """Wait until a text is there, without a reload."""
        wait_until(f"the page shows {what!r}", lambda: what in self.text(selector), seconds)

    def counts(self) -> dict[str, int]:
        script = "return [...document.querySelectorAll('.counts li')].map(e => [e.className, e.firstChild.innerText])"
        return {name: int(number) for name, number in self.run(script)}

    def bars(self) -> list[tuple[float, float]]:
        """Return how far each bar of a stream is, and how far it goes."""
        script = "return [...document.querySelectorAll('.stream progress')].map(e => [e.value, e.max])"
        return [(value, most) for value, most in self.run(script)]

    def press(self, name: str) -> None:
        """Press the first button of that name, as a person does: it must be visible and in nobody's way."""

        def pressed() -> bool:
            try:
                buttons: Sequence[WebElement] = self.driver.find_elements(By.TAG_NAME, "button")
                button = next((one for one in buttons if one.text == name), None)
                if button is not None:
                    button.click()
                return button is not None
            except StaleElementReferenceException:  # the page was brought up to date in between
                return False

        wait_until(f"there is a button {name!r}", pressed, 10)

    def picture(self, path: Path) -> None:
        """Take a picture of the whole page."""
        self.driver.save_screenshot(str(path))

    def asked(self) -> list[str]:
        """Return the addresses of all requests so far, without those of the browser to its own insides."""
        self.log += [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        requests = [one["params"] for one in self.log if one["method"] == "Network.requestWillBeSent"]
        urls = [str(one["request"]["url"]) for one in requests]
        return [url for url in urls if not url.startswith(("chrome:", "chrome-untrusted:", "data:"))]

    def complaints(self) -> list[str]:
        """Return what the browser's console says is wrong; a page that is fine says nothing at all."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def assert_was_well(self, farm: Farm) -> None:
        """Nobody but the server was asked, nothing was wrong, nothing was reloaded."""
        asked = {urlsplit(url).netloc.rpartition("@")[2] for url in self.asked()}
        assert asked == {f"127.0.0.1:{farm.port}"}
        assert self.complaints() == []
        assert self.run("return window.openedOnce") is True

    def close(self) -> None:
        self.driver.quit()


Open = Callable[..., Browser]


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Open]:
    opened: list[Browser] = []

    def browse(**wishes: Any) -> Browser:
        folder = tmp_path / f"browser-{len(opened)}"
        folder.mkdir()
        opened.append(Browser(folder, **wishes))
        return opened[-1]

    yield browse
    for browser in opened:
        browser.close()


@pytest.fixture(scope="module")
def module_site() -> Iterator[SiteProcess]:
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.fixture
def site(module_site: SiteProcess) -> SiteProcess:
    module_site.post("reset")
    return module_site


def bvids(*names: str) -> list[str]:
    return [video(name).bvid for name in names]


@pytest.fixture
def busy_farm(farm: Farm) -> Farm:
    """A farm with something of everything: finished ones with odd titles, failed ones, downloads under way."""
    farm.add(*bvids("script-title", "long-title", "plain", "three-segments", "emoji-title", "deleted", "no-permission"))
    assert farm.drain() == 1
    farm.site.post("settings", rate_bytes_per_second=MIB / 8)
    farm.add(*bvids("large-a", "large-b"))
    farm.worker()
    wait_until("both are under way", lambda: len(streams(farm)) == 4 and all(map(started, streams(farm))))
    return farm


def streams(farm: Farm) -> list[dict[str, Any]]:
    """Return the streams that workers report."""
    jobs = [job for worker in farm.get("/status")["workers"] for job in worker.get("jobs") or ()]
    return [stream for job in jobs for stream in job.get("streams") or ()]


def started(stream: dict[str, Any]) -> bool:
    return bool(stream["total_bytes"] and stream["done_bytes"])


# ------------------------------------------------------------------------------------------ a first visit


def test_an_empty_queue_says_how_to_begin(farm: Farm, browse: Open) -> None:
    browser = browse()
    browser.open(farm)
    assert "python add_url.py BV…" in browser.text() and "python run.py" in browser.text()
    assert browser.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    assert browser.texts("button") == []
    wait_until("it refreshes itself", lambda: sum("?fragment" in url for url in browser.asked()) >= 2)
    browser.assert_was_well(farm)


# ------------------------------------------------------------------------------------------ live


def test_a_download_moves_and_ends_without_a_reload(farm: Farm, browse: Open) -> None:
    title = video("large-a").title
    browser = browse()
    browser.open(farm)
    farm.site.post("settings", rate_bytes_per_second=MIB * 0.6)
    farm.add(*bvids("large-a"))
    wait_until("it is counted", lambda: browser.counts()["ready"] == 1)
    farm.worker()
    browser.shows(title, ".worker")
    first = wait_until("its bar moves", lambda: part_way(browser))
    second = wait_until("it moves on", lambda: part_way(browser) > first and part_way(browser))
    wait_until("and on", lambda: part_way(browser) > second)
    assert len(browser.bars()) == 2  # video and audio
    assert re.search(r"\d MiB / \d", browser.text(".streams"))
    assert browser.counts()["leased"] == 1
    farm.site.post("settings", rate_bytes_per_second=0)
    wait_until("it is finished", lambda: browser.counts()["done"] == 1)
    browser.shows("Finished last")
    assert title in "".join(browser.texts(".rows .title"))
    browser.shows("waiting for work", ".worker")
    assert browser.bars() == []
    browser.assert_was_well(farm)


def part_way(browser: Browser) -> float:
    """Return how much of the larger stream came, 0 as long as nothing did, or when it is over."""
    value, most = max(browser.bars(), key=lambda bar: bar[1], default=(0.0, 0.0))
    return value if value < most else 0.0


def test_a_server_that_goes_and_comes_back_is_said_and_unsaid(farm: Farm, browse: Open) -> None:
    browser = browse()
    browser.open(farm)
    farm.server.interrupt()
    farm.server.wait()
    browser.shows("does not answer", "#message")
    farm.server = farm.start_server()
    wait_until("it is unsaid", lambda: browser.text("#message") == "")
    assert browser.run("return window.openedOnce") is True


# ------------------------------------------------------------------------------------------ failures


def test_what_failed_is_shown_with_its_reason_and_retried_by_a_button(farm: Farm, browse: Open) -> None:
    farm.add(*bvids("deleted", "invisible"))
    assert farm.drain() == 1
    browser = browse()
    browser.open(farm)
    assert browser.counts()["dead"] == 2
    reasons = dict(zip(browser.texts(".rows .facts a"), browser.texts(".rows .reason"), strict=True))
    assert set(reasons) == set(bvids("deleted", "invisible"))
    assert all(reason.strip() for reason in reasons.values())
    assert "(-404)" in reasons[video("deleted").bvid] and "(62002)" in reasons[video("invisible").bvid]
    links = browser.run("return [...document.querySelectorAll('.rows .facts a')].map(e => e.href)")
    assert all(link.startswith(farm.site.addresses["web"] + "/video/BV") for link in links)

    browser.press("Retry")
    browser.shows("Queued again: 1", "#message")
    assert farm.counts() == {"ready": 1, "leased": 0, "delayed": 0, "done": 0, "dead": 1}
    wait_until("one is gone from the list", lambda: len(browser.texts(".rows .reason")) == 1)
    assert farm.drain() == 1
    wait_until("it is back", lambda: browser.counts()["dead"] == 2)
    browser.press("Retry all that failed")
    browser.shows("Queued again: 2", "#message")
    assert farm.counts()["ready"] == 2
    wait_until("no failure is left", lambda: "Failures" not in browser.text())
    browser.assert_was_well(farm)


def test_a_button_can_be_reached_and_pressed_with_the_keyboard_while_the_page_refreshes(
    farm: Farm, browse: Open
) -> None:
    farm.add(*bvids("deleted"))
    assert farm.drain() == 1
    browser = browse()
    browser.open(farm)
    browser.run("document.querySelector('[data-redrive]').focus()")
    before = sum("?fragment" in url for url in browser.asked())
    wait_until("it was refreshed twice", lambda: sum("?fragment" in url for url in browser.asked()) >= before + 2)
    assert browser.run("return document.activeElement.dataset.redrive") == video("deleted").bvid
    browser.driver.switch_to.active_element.send_keys("\n")
    browser.shows("Queued again: 1", "#message")


# ------------------------------------------------------------------------------------------ languages, sizes, colours


def test_a_chinese_browser_gets_a_chinese_page(busy_farm: Farm, browse: Open, tmp_path: Path) -> None:
    browser = browse(language="zh-CN,zh")
    browser.open(busy_farm)
    assert browser.run("return document.documentElement.lang") == "zh-CN"
    headings = browser.texts("h1, h2, .counts li, .badge, button")
    assert len(headings) > 8
    for heading in headings:
        assert re.search(r"[\u4e00-\u9fff]", heading), heading
        assert not re.search(r"[A-Za-z]{3}", heading.replace("Bilibili", "").replace("MiB", "")), heading
    browser.picture(tmp_path / "chinese.png")
    browser.press(browser.texts("h2 button")[0])
    wait_until("it is said in Chinese", lambda: re.search(r"[\u4e00-\u9fff].*2", browser.text("#message")))
    browser.assert_was_well(busy_farm)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_everything_is_readable_and_fits(
    busy_farm: Farm, browse: Open, tmp_path: Path, phone: bool, dark: bool
) -> None:
    browser = browse(phone=phone, dark=dark)
    browser.open(busy_farm)
    browser.shows(video("large-b").title)
    browser.shows(LONG_TITLE[:20])
    width = browser.run("return document.documentElement.clientWidth")
    assert width == (PHONE[0] if phone else width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run(BEYOND_THE_EDGE) == []
    assert browser.run(CLIPPED) == []
    ground = luminance(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) if dark else (ground > 0.8)
    for text, front, back in browser.run(COLOURS):
        assert contrast(front, back) >= 4.5, f"{text!r}: {front} on {back}"
    if phone:
        small = browser.run("return [...document.querySelectorAll('button')].filter(e => e.offsetHeight < 32).length")
        assert small == 0, "too small for a thumb"
    browser.picture(tmp_path / "page.png")
    height = browser.run("return document.documentElement.scrollHeight")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.picture(tmp_path / "whole.png")
    browser.assert_was_well(busy_farm)


BEYOND_THE_EDGE = """
return [...document.querySelectorAll("body *")].filter(e => e.getClientRects().length).filter(e => {
  const box = e.getBoundingClientRect();
  return box.left < -1 || box.right > document.documentElement.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 200))
"""
CLIPPED = """
return [...document.querySelectorAll(".kind, .amount, .badge, button, .counts li, .facts span")]
  .filter(e => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
  .map(e => e.outerHTML.slice(0, 200))
"""
COLOURS = """
function ground(element) {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/^rgba\\(.*, 0\\)$/.test(colour)) return colour;
  }
}
return [...document.querySelectorAll("body *")]
  .filter(e => e.getClientRects().length && !e.disabled)
  .filter(e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.textContent.trim()))
  .map(e => [e.innerText.slice(0, 40), getComputedStyle(e).color, ground(e)]);
"""


def luminance(colour: str) -> float:
    """Return the relative luminance of ``rgb(…)`` (WCAG 2.2)."""
    channels = [int(text) / 255 for text in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(front: str, back: str) -> float:
    low, high = sorted((luminance(front), luminance(back)))
    return (high + 0.05) / (low + 0.05)


# ------------------------------------------------------------------------------------------ hostile and secret


def test_a_title_that_is_a_script_is_nothing_but_text(farm: Farm, browse: Open) -> None:
    title = video("script-title").title
    farm.site.post("settings", rate_bytes_per_second=MIB / 16)
    farm.add(*bvids("script-title"))
    farm.worker()
    browser = browse()
    browser.open(farm)
    browser.shows(title, ".worker")
    farm.site.post("settings", rate_bytes_per_second=0)
    wait_until("it is finished", lambda: browser.counts()["done"] == 1)
    browser.shows(title, ".rows .title")
    assert browser.run("return document.scripts.length") == 1
    browser.open(farm)
    browser.shows(title, ".rows .title")
    assert browser.run("return document.scripts.length") == 1
    browser.assert_was_well(farm)  # an alert would have ended the script with an error


@pytest.fixture
def guarded_farm(tmp_path: Path, site: SiteProcess) -> Iterator[Farm]:
    farm = Farm(tmp_path, site, BILI_TOKEN="a-long-token-of-a-test")
    yield farm
    farm.close()


def test_with_a_token_the_page_lives_on_basic_credentials_of_its_address(guarded_farm: Farm, browse: Open) -> None:
    farm = guarded_farm
    farm.add(*bvids("deleted"))
    assert farm.drain() == 1
    stranger = browse()
    stranger.driver.get(f"http://127.0.0.1:{farm.port}/")
    assert "-404" not in stranger.driver.page_source
    browser = browse()
    browser.open(farm, "anyone:a-long-token-of-a-test@")
    assert browser.counts()["dead"] == 1
    wait_until("it refreshes itself", lambda: sum("?fragment" in url for url in browser.asked()) >= 2)
    assert browser.text("#message") == ""
    browser.press("Retry")
    browser.shows("Queued again: 1", "#message")
    wait_until("the page knows", lambda: browser.counts()["ready"] == 1)
    browser.assert_was_well(farm)
