"""The pictures in the READMEs: ``python -m tests.screenshots``, or ``make screenshots``.

A farm of three real workers downloads from the stand-in site; its history of an hour is written into the queue
beforehand, because nobody waits for it. As soon as all machines are at work the mirrors become slow, so that all
pictures are of the same busy farm, however long they take. They go to docs/screenshots/, in few colours, so that they
are small.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import imageio_ffmpeg
from rich.cells import cell_len

import series
from config import Settings
from demo.media import ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from model import KIB, MIB
from redisConnect import open_queue
from tests.farm import ROOT, Farm, wait_until
from tests.screens import Glass
from tests.test_browser import PHONE, Browser, bvids, post, started
from tests.test_terminal_session import Session

FOLDER = ROOT / "docs" / "screenshots"
DESKTOP = (1180, 900)
MAX_BYTES = 200_000
MACHINES = {"attic": 2, "cellar": 1, "study": 1}
"""How many videos each downloads at once; the last one is paused."""
QUICK, SLOW = MIB // 6, 16 * KIB
"""Bytes a second of each response."""
TERMINAL = (100, 22)
COLOURS = {
    "default": "#d8dee6",
    "green": "#63cb9a",
    "cyan": "#5cbfe0",
    "blue": "#7aa2f7",
    "red": "#f28b8f",
    "brown": "#e3b455",
}


@dataclass(frozen=True)
class Picture:
    """One page in one way of looking at it; the path may ask for a job that is in work, or for one that is done."""

    name: str
    path: str
    phone: bool = False
    dark: bool = False
    language: str = "en"
    height: int = DESKTOP[1]


PICTURES = (
    Picture("now", "/"),
    Picture("phone", "/", phone=True),
    Picture("phone-machines", "/ui/machines", phone=True, dark=True),
    Picture("machines-dark", "/ui/machines", dark=True),
    Picture("job", "/ui/job?url={job}", height=440),
    Picture("now-chinese", "/", language="zh-CN"),
    Picture("machines-chinese", "/ui/machines", dark=True, language="zh-CN"),
    Picture("phone-chinese", "/", phone=True, language="zh-CN"),
)


@contextlib.contextmanager
def busy_farm(folder: Path) -> Iterator[Farm]:
    """A farm that has finished some, failed at some, and is at work on three machines, one of them paused."""
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())
    with SiteProcess(DEFAULT_CACHE) as site:
        farm = Farm(folder, site)
        try:
            farm.add(*bvids("long-title", "plain", "three-segments", "emoji-title", "deleted", "no-permission"))
            farm.drain(BILI_WORKER="attic")
            write_history(folder / "data")
            site.post("settings", rate_bytes_per_second=QUICK)
            farm.add("mid:10001")
            farm.add(*bvids("large-a", "large-b", "five-pages", "rich"))
            post(farm, "/first", urls=bvids("large-a", "large-b"))
            for name, count in MACHINES.items():
                working = folder / f"{name}.json"
                working.write_text(json.dumps({"stop": 1, "count": count}), "utf-8")
                farm.worker(BILI_WORKER=name, BILI_WORKING_FILE=str(working))
            wait_until("all are at work", lambda: set(at_work(farm)) == set(MACHINES))
            site.post("settings", rate_bytes_per_second=SLOW)
            post(farm, "/steer", workers=[list(MACHINES)[-1]], working={"stop": 0})
            wait_until("one is paused", lambda: "paused" in str(farm.get("/status")["workers"]))
            yield farm
        finally:
            farm.close()


def at_work(farm: Farm) -> dict[str, str]:
    """Return of each machine the job, under way with both streams, of which most is to come."""
    return {
        worker["worker"]: job["url"]
        for worker in farm.get("/status")["workers"]
        for job in sorted(worker.get("jobs") or (), key=_left_bytes)
        if sum(map(started, job.get("streams") or ())) >= 2
    }


def _left_bytes(job: dict[str, Any]) -> int:
    return sum((stream["total_bytes"] or 0) - stream["done_bytes"] for stream in job.get("streams") or ())


def write_history(data_dir: Path) -> None:
    """Write an hour as it may have been."""
    queue = open_queue(Settings(data_dir=data_dir))
    with contextlib.closing(queue):
        newest = int(time.time()) // series.RINGS[series.HOUR].step_seconds
        for back in range(1, series.RINGS[series.HOUR].steps):
            wave = 1 + 0.25 * math.sin(back / 23) + 0.12 * math.sin(back / 5) + 0.05 * math.sin(back * 1.7)
            speed = 0 if 150 < back < 165 else round(1.4 * MIB * wave)
            step = (newest - back, 1, speed, int(speed > 0 and back % 23 == 0) * (1 + back % 2), 0, int(speed > 0))
            place = (newest - back) % series.RINGS[series.HOUR].steps
            queue._redis.hset("{bili:0}:history:hour", str(place), " ".join(map(str, step)))


def take(picture: Picture, farm: Farm, folder: Path) -> None:
    """Take one picture, and make it small."""
    browser = Browser(folder, picture.language, picture.phone, picture.dark)
    try:
        browser.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        if not picture.phone:
            size = {"width": DESKTOP[0], "height": picture.height, "deviceScaleFactor": 1, "mobile": False}
            browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.open(farm, picture.path.format(job=quote(at_work(farm)["attic"], safe="")))
        browser.refreshes(1)
        raw = folder / "raw.png"
        browser.picture(raw)
    finally:
        browser.close()
    keep(raw, picture.name, PHONE[0] if picture.phone else 0)


def take_terminal(farm: Farm, folder: Path) -> None:
    """Take a picture of a worker on a terminal, drawn by the browser."""
    working = folder / "terminal.json"
    working.write_text('{"stop": 1, "count": 4}', "utf-8")
    session = Session(farm, *TERMINAL, BILI_WORKER="terminal", BILI_WORKING_FILE=str(working))
    try:
        session.shows("done, ", 100)
        session.shows(r"━.* \d+%.*KiB/s.*\d\d:\d\d")
        page = as_page(session.glass)
    finally:
        session.close()
    browser = Browser(folder)
    try:
        browser.driver.get("data:text/html;base64," + base64.b64encode(page.encode()).decode())
        raw = folder / "raw.png"
        raw.write_bytes(browser.driver.find_element("tag name", "pre").screenshot_as_png)
    finally:
        browser.close()
    keep(raw, "terminal")


def as_page(glass: Glass) -> str:
    """Return what a terminal shows from where the work begins, as a page with cells of one width."""
    lines, shown = [], glass.shown()
    for y in range(next((y for y, line in enumerate(shown) if "Running" in line), 0), len(shown)):
        cells = [glass.buffer[y][x] for x in range(glass.columns)]
        lines.append("".join(_cell(cell) for cell in cells if cell.data))
    style = "pre{display:inline-block;margin:0;padding:16px 20px;background:#12161c;"
    style += "font:15px/1.35 'DejaVu Sans Mono',monospace}span{display:inline-block;width:1ch}.wide{width:2ch}"
    return f"<meta charset=utf-8><style>{style}</style><pre>" + "\n".join(lines) + "</pre>"


def _cell(cell: Any) -> str:
    wide = " class=wide" if cell_len(cell.data) == 2 else ""
    colour = COLOURS.get(cell.fg, COLOURS["default"])
    look = f"color:{colour}" + (";font-weight:bold" if cell.bold else "")
    return f'<span{wide} style="{look}">{html.escape(cell.data)}</span>'


def keep(raw: Path, name: str, width: int = 0) -> None:
    """Write a picture among the others, in few colours."""
    target = FOLDER / f"{name}.png"
    scale = f"scale={width}:-1:flags=lanczos," if width else ""
    palette = f"[0:v]{scale}split[a][b];[a]palettegen=max_colors=64[p];[b][p]paletteuse=dither=none"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", raw, "-filter_complex", palette]
    subprocess.run([*map(str, command), "-compression_level", "9", str(target)], check=True)
    size_bytes = target.stat().st_size
    print(f"{target.relative_to(ROOT)}: {size_bytes // 1000} kB")  # noqa: T201
    assert size_bytes <= MAX_BYTES


def main(names: list[str]) -> int:
    """Take all pictures, or those that are named."""
    FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="screenshots-"))
    try:
        with busy_farm(folder) as farm:
            for number, picture in enumerate(PICTURES):
                if not names or picture.name in names:
                    (folder / str(number)).mkdir()
                    take(picture, farm, folder / str(number))
            if not names or "terminal" in names:
                (folder / "terminal").mkdir()
                take_terminal(farm, folder / "terminal")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
