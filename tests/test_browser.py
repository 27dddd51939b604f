"""The status page in a real browser, on a real farm: what a person sees, and that nobody else's script runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from demo.catalogue import video
from demo.process import SiteProcess
from model import MIB
from parse_ import aid_to_bvid
from tests.farm import Farm, wait_until
from web.session import Changes

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
MOVED = (StaleElementReferenceException, ElementNotInteractableException, ElementClickInterceptedException)
"""What comes of the page being brought up to date between a look at it and a click."""
AXE = Path(__file__).resolve().parent / "data" / "axe" / "axe.min.js"
PAGES = ("/", "/ui/machines", "/ui/jobs", "/ui/failures", "/ui/sources", "/ui/add", "/ui/actions", "/ui/access")
TOKEN = "a-long-token-of-a-test"


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

    def open(self, farm: Farm, path: str = "/") -> None:
        """Show a page, and mark the document, so that a reload would be seen."""
        self.driver.get(f"http://127.0.0.1:{farm.port}{path}")
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
        script = "return [...document.querySelectorAll('.counts li')].map(e => [e.classList[0], e.innerText])"
        return {name: int(text.split()[0]) for name, text in self.run(script)}

    def bars(self) -> list[tuple[float, float]]:
        """Return how far each bar of a stream is, and how far it goes."""
        script = "return [...document.querySelectorAll('.stream progress')].map(e => [e.value, e.max])"
        return [(value, most) for value, most in self.run(script)]

    def press(self, name: str, within: str = "body") -> None:
        """Press the first button of that name, as a person does: it must be visible and in nobody's way."""

        def pressed() -> bool:
            try:
                found: Sequence[WebElement] = self.driver.find_elements(
                    By.CSS_SELECTOR, f"{within} button, {within} summary"
                )
                button = next((one for one in found if one.text.strip(" ▾▴") == name and one.is_displayed()), None)
                if button is not None:
                    self.run("arguments[0].scrollIntoView({block: 'center'})", button)
                    button.click()
                return button is not None
            except MOVED:
                return False

        wait_until(f"there is a button {name!r}", pressed, 30)

    def write(self, selector: str, text: str) -> None:
        """Write into a field, in place of what is there."""
        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def says(self, text: str) -> None:
        """Wait until the page says what came of an action."""
        self.shows(text, "#message")

    def refreshes(self, times: int = 2) -> None:
        """Wait until the page has brought itself up to date."""
        before = sum("fragment" in url for url in self.asked())
        wait_until("it refreshes", lambda: sum("fragment" in url for url in self.asked()) >= before + times, 30)

    def assert_is_usable(self) -> None:
        """Say what axe-core finds that keeps people from using the page."""
        if not self.run("return 'axe' in window"):
            self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text("utf-8")})
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        serious = [
            (one["id"], one["help"], [node["html"][:150] for node in one["nodes"]])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], self.driver.current_url

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


def bvids(*names: str) -> list[str]:
    return [video(name).bvid for name in names]


@pytest.fixture
def busy_farm(farm: Farm) -> Farm:
    """A farm with something of everything: finished ones with odd titles, failed ones, downloads under way."""
    farm.add(*bvids("script-title", "long-title", "plain", "three-segments", "emoji-title", "deleted", "no-permission"))
    assert farm.drain() == 1
    farm.add("mid:10001", "--limit", "1")
    farm.site.post("settings", rate_bytes_per_second=MIB / 128)  # they stay for minutes
    farm.add(*bvids("large-a", "large-b"))
    assert post(farm, "/first", urls=bvids("large-a", "large-b"))["moved"] == 2
    farm.worker(BILI_WORKER="w1")
    wait_until("both are under way", lambda: sum(map(started, streams(farm))) >= 4)
    return farm


def post(farm: Farm, path: str, **body: object) -> Any:
    """Ask the server as a script does."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{farm.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return json.load(answer)


def streams(farm: Farm) -> list[dict[str, Any]]:
    """Return the streams that workers report."""
    jobs = [job for worker in farm.get("/status")["workers"] for job in worker.get("jobs") or ()]
    return [stream for job in jobs for stream in job.get("streams") or ()]


def started(stream: dict[str, Any]) -> bool:
    return bool(stream["total_bytes"] and stream["done_bytes"])


def working(farm: Farm) -> dict[str, Any]:
    """Return what the machine's working.json says now."""
    found: dict[str, Any] = json.loads(farm.working.read_text("utf-8"))
    return found


# ------------------------------------------------------------------------------------------ a first visit


def test_an_empty_farm_says_how_to_begin_on_every_page(farm: Farm, browse: Open) -> None:
    browser = browse()
    browser.open(farm)
    assert "python add_url.py BV…" in browser.text() and "python run.py" in browser.text()
    assert browser.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    browser.refreshes()
    for path in PAGES:
        browser.open(farm, path)
        assert browser.text("main").strip()
        browser.assert_is_usable()
        browser.assert_was_well(farm)


# ------------------------------------------------------------------------------------------ live


def test_a_download_moves_and_ends_without_a_reload(farm: Farm, browse: Open) -> None:
    title = video("large-a").title
    browser = browse()
    browser.open(farm, "/ui/machines")
    farm.site.post("settings", rate_bytes_per_second=MIB // 32)  # it moves for a minute, on a busy machine too
    farm.add(*bvids("large-a"))
    farm.worker()
    browser.shows(title, ".worker")
    first = wait_until("its bar moves", lambda: part_way(browser))
    second = wait_until("it moves on", lambda: part_way(browser) > first and part_way(browser))
    wait_until("and on", lambda: part_way(browser) > second)
    assert len(browser.bars()) == 2  # video and audio
    assert re.search(r"\d MiB / \d", browser.text(".streams"))
    assert re.search(r"iB/s", browser.text(".mirror")) and "127.0.0.1" in browser.text(".mirror")
    here = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open(farm)
    browser.shows("Downloading", ".outlook")
    assert browser.counts()["leased"] == 1 and title in browser.text(".machine")
    assert browser.driver.title.startswith(browser.text(".outlook dd"))
    farm.site.post("settings", rate_bytes_per_second=0)
    wait_until("it is finished", lambda: browser.counts()["done"] == 1)
    browser.shows("All done", ".outlook")
    assert title in browser.text(".finished .title")
    browser.shows("highest speed", "#chart-summary")
    assert browser.run("return document.querySelector('#chart canvas').width") > 300
    browser.press("day", "#chart")
    assert browser.run("return document.querySelector('[data-range=day]').ariaPressed") == "true"
    assert browser.run("return window.openedOnce") is True
    browser.driver.switch_to.window(here)
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
    browser.says("does not answer")
    farm.server = farm.start_server()
    wait_until("it is unsaid", lambda: browser.text("#message p") == "")
    assert browser.run("return window.openedOnce") is True


# ------------------------------------------------------------------------------------------ machines


def test_a_machine_is_paused_steered_and_drained_through_its_working_file(farm: Farm, browse: Open) -> None:
    farm.worker(BILI_WORKER="w1")
    browser = browse()
    browser.open(farm, "/ui/machines")
    browser.shows("at most 2 at once", ".worker")
    browser.press("Pause", ".worker")
    browser.says("Told to machines: 1")
    wait_until("it is written", lambda: working(farm)["stop"] == 0)
    browser.shows("paused", ".worker")
    browser.press("Undo", "#message")
    browser.says("Undone.")
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_until("it is unsaid", lambda: not browser.text("#message p"), 8)
    wait_until("it is written", lambda: working(farm)["stop"] == 1)

    browser.press("More", ".worker")
    browser.write(".worker input[type=number]", "5")
    browser.refreshes()
    assert browser.run("return document.querySelector('.worker input[type=number]').value") == "5", "half a form stays"
    browser.write(".worker input[type=text]", "2.5M")
    browser.press("Set", ".worker")
    wait_until("it is written", lambda: (working(farm)["count"], working(farm).get("max_speed")) == (5, "2.5M"))
    browser.shows("at most 5 at once · at most 2.5 MiB/s", ".worker")

    farm.steer(stop=1, count=3)  # by hand, which is the one truth
    browser.shows("at most 3 at once", ".worker")
    wait_until("no limit is shown", lambda: "MiB/s" not in browser.text(".worker header"))

    browser.press("All machines", "main")
    browser.press("Drain all", ".tools")
    browser.shows("take nothing new?", "#ask")
    browser.press("Yes", "#ask")
    browser.shows("drained", ".worker")
    assert working(farm)["drain"] == 1
    browser.press("Take jobs again", ".worker")
    browser.shows("running", ".worker")
    browser.assert_was_well(farm)
    browser.open(farm, "/ui/actions")
    assert len(browser.texts(".rows .row")) >= 5 and "127.0.0.1" in browser.text(".rows")


def test_a_machine_logs_in_by_a_code_on_the_page(farm: Farm, browse: Open) -> None:
    farm.worker(BILI_WORKER="w1")
    browser = browse()
    browser.open(farm, "/ui/machines")
    browser.shows("as a guest", ".worker")
    browser.press("Log in", ".worker")
    wait_until("there is a code", lambda: browser.run("return !!document.querySelector('.login svg')"), 30)
    farm.site.post("passport", scan=True)
    browser.shows("It was scanned", ".login")
    farm.site.post("passport", confirm=True)
    browser.shows("Logged in.", ".login")
    browser.shows("with an account", ".worker")
    browser.assert_was_well(farm)


# ------------------------------------------------------------------------------------------ jobs and failures


def test_what_failed_is_shown_with_its_reason_and_retried(farm: Farm, browse: Open) -> None:
    farm.add(*bvids("deleted", "invisible"))
    assert farm.drain() == 1
    browser = browse()
    browser.open(farm)
    assert browser.counts()["dead"] == 2
    assert "-404" in browser.text() and "62002" in browser.text()
    browser.driver.find_element(By.LINK_TEXT, "Failures").click()
    wait_until("both are on the page of failures", lambda: len(browser.texts(".groups .row")) == 2)
    browser.driver.find_element(By.CSS_SELECTOR, ".groups .reason a").click()
    wait_until("those of one reason", lambda: "code=" in browser.driver.current_url)
    browser.run("window.openedOnce = true")
    browser.press("Retry", "section .rows")
    browser.says("Queued again: 1")
    assert farm.counts() == {"ready": 1, "leased": 0, "delayed": 0, "done": 0, "dead": 1}
    assert farm.drain() == 1
    wait_until("it is back", lambda: len(browser.texts(".groups .row")) == 2)
    browser.press("Retry all of this kind")
    browser.says("Queued again: 1")
    wait_until("a kind is left", lambda: len(browser.texts(".groups .row")) == 1)
    assert farm.drain() == 1
    wait_until("it is back", lambda: len(browser.texts(".groups .row")) == 2)
    browser.press("Retry all that failed")
    browser.says("Queued again: 2")
    browser.shows("Nothing has failed")
    browser.assert_was_well(farm)


def test_a_button_can_be_reached_and_pressed_with_the_keyboard_while_the_page_refreshes(
    farm: Farm, browse: Open
) -> None:
    farm.add(*bvids("deleted"))
    assert farm.drain() == 1
    browser = browse()
    browser.open(farm, "/ui/jobs?state=dead")
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.run("return document.activeElement.className") == "skip"
    browser.run("document.querySelector('.row [data-post]').focus()")
    browser.refreshes()
    assert browser.run("return document.activeElement.dataset.post") == "/redrive"
    browser.driver.switch_to.active_element.send_keys("\n")
    browser.says("Queued again: 1")


def test_a_job_is_found_moved_cancelled_restored_and_forgotten(farm: Farm, browse: Open) -> None:
    farm.add(*bvids("plain", "large-a", "deleted"), "--category", "music")
    browser = browse()
    browser.open(farm, "/ui/jobs")
    assert len(browser.texts(".rows .row")) == 3
    browser.write("#find", video("deleted").bvid)
    browser.press("Find")
    wait_until("one job is left", lambda: len(browser.texts(".rows .row")) == 1)
    assert video("deleted").bvid in browser.text(".rows")
    browser.run("window.openedOnce = true")
    browser.press("Put first")
    browser.says("Put first: 1")
    assert farm.get("/jobs?state=ready")["items"][0]["url"] == video("deleted").bvid
    browser.press("Cancel")
    browser.says("Cancelled: 1")
    browser.shows("cancelled", ".rows")
    browser.press("Undo", "#message")
    browser.shows("ready", ".rows")
    browser.press("Cancel")
    browser.shows("cancelled", ".rows")
    browser.press("Forget")
    browser.press("No, leave it", "#ask")
    browser.refreshes()
    browser.shows("cancelled", ".rows")
    browser.press("Forget")
    browser.press("Yes", "#ask")
    browser.says("Forgotten: 1")
    browser.shows("No job is like that")
    browser.assert_was_well(farm)
    assert farm.drain() == 0
    browser.open(farm, "/ui/jobs?category=music&state=done")
    assert len(browser.texts(".rows .row")) == 2
    browser.driver.find_element(By.LINK_TEXT, video("plain").title).click()
    browser.shows("music/", ".pairs")
    browser.assert_is_usable()
    assert browser.complaints() == []


def test_two_hundred_lines_are_pasted_and_each_has_its_answer(farm: Farm, browse: Open) -> None:
    lines = [aid_to_bvid(900_000 + number) for number in range(195)]
    bad = ["rubbish", "https://example.org/video", "BV1", "https://b23.tv/abc", "<b>bold</b>"]
    mixed = [
        line for number, line in enumerate(lines) for line in ([bad[number // 40]] if number % 40 == 0 else []) + [line]
    ]
    assert len(mixed) == 200
    browser = browse()
    browser.open(farm, "/ui/add")
    browser.run("document.getElementById('lines').value = arguments[0]", "\n".join(["# a list", "", *mixed]))
    browser.write("#category", "course")
    browser.press("Add", "#add")
    browser.shows("added 195, known 0, rejected 5", "#answers")
    assert len(browser.texts("#answers .row")) == 200
    assert browser.run("return document.getElementById('lines').value.split('\\n')") == bad, "to be corrected"
    assert all("rejected" in text and len(text) > 30 for text in browser.texts("#answers .row:has(.bad)"))
    assert farm.counts()["ready"] == 195
    browser.run("document.getElementById('lines').value = arguments[0]", "\n".join(lines[:3]))
    browser.press("Add", "#add")
    browser.shows("added 0, known 3, rejected 0", "#answers")
    browser.assert_is_usable()
    browser.assert_was_well(farm)


def test_a_source_is_added_read_and_watched(farm: Farm, browse: Open) -> None:
    browser = browse()
    browser.open(farm, "/ui/add")
    browser.run("document.getElementById('lines').value = 'mid:10001'")
    browser.press("Wishes for sources, and known ones")
    browser.write("#limit", "2")
    browser.press("Add", "#add")
    browser.shows("added 1", "#answers")
    browser.open(farm, "/ui/sources")
    browser.shows("waiting", ".rows")
    assert farm.drain() == 0
    browser.shows("complete", ".rows")
    browser.press("Watch", ".rows")
    browser.press("every 6 h", ".rows")
    browser.says("It is watched from now on.")
    wait_until("it is", lambda: farm.get("/sources")["items"][0]["watched"] == 21600)
    browser.shows("Watch no more", ".rows")
    browser.press("Watch no more", ".rows")
    wait_until("it is not", lambda: farm.get("/sources")["items"][0]["watched"] == 0)
    browser.press("Undo", "#message")
    wait_until("it is again", lambda: farm.get("/sources")["items"][0]["watched"] == 21600)
    browser.press("Read now", ".rows")
    browser.says("It will be read.")
    browser.assert_was_well(farm)


# ------------------------------------------------------------------------------------------ languages, sizes, colours


def test_language_and_colours_are_switched_and_stay(farm: Farm, browse: Open) -> None:
    browser = browse()
    browser.open(farm)
    browser.driver.find_element(By.LINK_TEXT, "中文").click()
    assert browser.run("return document.documentElement.lang") == "zh-CN"
    browser.open(farm, "/ui/add")
    assert browser.run("return document.documentElement.lang") == "zh-CN"
    browser.driver.find_element(By.LINK_TEXT, "English").click()
    assert browser.text("h1") == "Add"
    browser.driver.find_element(By.LINK_TEXT, "dark").click()
    assert luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) < 0.1
    browser.open(farm)
    assert luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) < 0.1
    assert browser.complaints() == []


def test_a_chinese_browser_gets_chinese_pages(busy_farm: Farm, browse: Open) -> None:
    browser = browse(language="zh-CN,zh")
    for path in PAGES:
        browser.open(busy_farm, path)
        assert browser.run("return document.documentElement.lang") == "zh-CN"
        words = browser.texts("h1, .pages a, .counts li, .badge, button, summary, label, dt, option")
        words = [word for word in words if word.strip() and not re.search("MiB|KiB|English", word)]
        assert len(words) > 8
        for word in words:
            assert re.search(r"[\u4e00-\u9fff]", word), (path, word)
    browser.assert_was_well(busy_farm)


def test_everything_is_readable_and_fits_on_every_screen(busy_farm: Farm, browse: Open) -> None:
    jobs = [job for worker in busy_farm.get("/status")["workers"] for job in worker.get("jobs") or ()]
    job = "/ui/job?url=" + quote(next(job["url"] for job in jobs if job["streams"]), safe="")
    for phone, dark in ((False, False), (True, True), (True, False), (False, True)):
        browser = browse(phone=phone, dark=dark)
        for path in (*PAGES, job, "/ui/jobs?state=done", "/ui/jobs?find=nothing", "/ui/failures?code=-404"):
            browser.open(busy_farm, path)
            assert len(browser.bars()) == 2 or path != job
            browser.refreshes(1) if path == "/" else None
            assert_fits(browser, path, phone, dark)
            if not dark:
                browser.assert_is_usable()
        browser.assert_was_well(busy_farm)
        browser.close()


def assert_fits(browser: Browser, path: str, phone: bool, dark: bool) -> None:
    width = browser.run("return document.documentElement.clientWidth")
    assert width == (PHONE[0] if phone else width)
    assert browser.run("return document.documentElement.scrollWidth") <= width, path
    assert browser.run(BEYOND_THE_EDGE) == [], path
    assert browser.run(CLIPPED) == [], path
    ground = luminance(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) if dark else (ground > 0.8)
    for text, front, back in browser.run(COLOURS):
        assert contrast(front, back) >= 4.5, f"{path} {text!r}: {front} on {back}"
    if phone:
        assert browser.run(SMALL) == [], f"too small for a thumb: {path}"


BEYOND_THE_EDGE = """
return [...document.querySelectorAll("body *:not(.skip, .unseen)")].filter(e => e.getClientRects().length).filter(e => {
  const box = e.getBoundingClientRect();
  return box.left < -1 || box.right > document.documentElement.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 200))
"""
CLIPPED = """
const parts = ".kind, .amount, .badge, button, summary, .counts li, .pages span, .facts span:not(.unseen)";
return [...document.querySelectorAll(parts)]
  .filter(e => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
  .map(e => e.outerHTML.slice(0, 200))
"""
SMALL = """
return [...document.querySelectorAll("main button, summary, .pages a")]
  .filter(e => e.offsetHeight && e.offsetHeight < 32)
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
  .filter(e => e.getClientRects().length && !e.disabled && !e.closest(".skip, .unseen, option"))
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
    farm.site.post("settings", rate_bytes_per_second=MIB / 128)
    browser = browse()
    browser.open(farm, "/ui/machines")
    farm.add(*bvids("script-title"))
    farm.worker()
    browser.shows(title, ".worker")
    farm.site.post("settings", rate_bytes_per_second=0)
    wait_until("it is finished", lambda: farm.counts()["done"] == 1)
    for path, place in (("/", ".rows.finished"), ("/ui/jobs", ".rows"), ("/ui/jobs?state=done", ".rows")):
        browser.open(farm, path)
        browser.shows(title, place)
        browser.refreshes(1)
        assert browser.run("return [...document.scripts].every(e => e.src && !e.textContent)")
    browser.driver.find_element(By.LINK_TEXT, title).click()
    browser.shows(title, ".name")
    assert browser.complaints() == []  # an alert would have ended a script with an error


@pytest.fixture
def guarded_farm(tmp_path: Path, site: SiteProcess) -> Iterator[Farm]:
    farm = Farm(tmp_path, site, BILI_TOKEN=TOKEN)
    yield farm
    farm.close()


def test_a_person_signs_in_with_the_token_and_out_again(guarded_farm: Farm, browse: Open) -> None:
    farm = guarded_farm
    farm.add(*bvids("deleted"))
    assert farm.drain() == 1
    browser = browse()
    browser.open(farm, "/ui/failures")
    browser.shows("Token of this server", "main")
    assert "-404" not in browser.driver.page_source
    browser.assert_is_usable()
    browser.write("#password", "not the token")
    browser.press("Sign in")
    browser.says("The server refused: the token is wrong")
    browser.write("#password", TOKEN)
    browser.press("Sign in")
    browser.shows("-404", ".groups")
    browser.refreshes()
    browser.press("Retry all that failed")
    browser.says("Queued again: 1")
    (cookie,) = [one for one in browser.driver.get_cookies() if one["name"] != Changes.COOKIE]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict") and TOKEN not in cookie["value"]
    refused = [message for message in browser.complaints() if "401" not in message]
    assert refused == [], "but for what the browser itself says of a refused token"

    # A link on another page: the cookie does not come with it, and is asked for once more from here.
    browser.driver.get(f"data:text/html,<a href='http://127.0.0.1:{farm.port}/ui/jobs'>jobs</a>")
    browser.driver.find_element(By.TAG_NAME, "a").click()
    browser.shows("Jobs", "h1")
    browser.press("Sign out", ".look")
    browser.shows("Token of this server", "main")
    browser.open(farm, "/ui/jobs")
    browser.shows("Token of this server", "main")


def test_tokens_are_shown_once_and_taken_back_and_a_machine_may_join(guarded_farm: Farm, browse: Open) -> None:
    browser = browse()
    browser.open(guarded_farm, "/ui/access")
    browser.write("#password", TOKEN)
    browser.press("Sign in")
    browser.shows("No token was made yet")
    browser.write("[data-once='/ui/tokens'] [name=name]", "Ann & <b>Bob</b>")
    browser.press("Make it")
    browser.shows("bili_submit_", "[data-once='/ui/tokens'] .once")
    token = browser.text("[data-once='/ui/tokens'] code")
    browser.shows("Ann & <b>Bob</b>", ".rows")
    browser.refreshes()
    assert browser.text("[data-once='/ui/tokens'] code") == token, "it stays until the page is left"
    browser.press("Show a join code")
    browser.shows(f"@127.0.0.1:{guarded_farm.port}", "[data-once='/ui/join_code'] code")
    assert re.fullmatch(r"python run\.py --join \S{9}@\S+", browser.text("[data-once='/ui/join_code'] code"))
    browser.press("Copy", "[data-once='/ui/tokens']")
    assert [one for one in browser.complaints() if "401" not in one] == [], (
        "but for what was refused before the sign-in"
    )
    browser.open(guarded_farm, "/ui/access")
    assert token not in browser.run("return document.documentElement.outerHTML")
    browser.press("Revoke", ".rows")
    browser.shows("is locked out within seconds", "#ask")
    browser.press("No, leave it", "#ask")
    assert "Ann" in browser.text(".rows")
    browser.press("Revoke", ".rows")
    browser.press("Yes", "#ask")
    browser.says("Revoked; jobs that came back: 0")
    browser.shows("No token was made yet")
    browser.open(guarded_farm, "/ui/actions")
    browser.shows("made a token", ".rows")
    assert token not in browser.text()


def test_who_only_adds_sees_the_pages_of_that(guarded_farm: Farm, browse: Open) -> None:
    made = guarded_farm.start("web_server.py", "--new-token", "submit")
    assert made.wait() == 0
    browser = browse(phone=True)
    browser.open(guarded_farm)
    browser.write("#password", next(line for line in made.output().splitlines() if line.startswith("bili_submit_")))
    browser.press("Sign in")
    browser.shows("What to download")
    assert browser.texts(".pages a") == ["Jobs", "Add"]
    (added,) = bvids("large-a")
    browser.write("#lines", added)
    browser.press("Add", "#add")
    browser.shows("added 1", "#answers")
    browser.open(guarded_farm, "/ui/jobs")
    browser.shows("Say which job you look for")
    browser.open(guarded_farm, f"/ui/jobs?find={added}")
    browser.shows("ready", ".rows")
    assert not browser.texts(".rows button"), "nothing is shown that would be refused"
    browser.open(guarded_farm, "/ui/machines")
    browser.shows("may not do that")
