"""The pictures of the dashboard in the READMEs: ``python -m tests.screenshots``, or ``make screenshots``.

A farm of three real workers downloads from the stand-in site; its history of an hour is written into the queue
beforehand, because nobody waits for it. The pictures go to docs/screenshots/, in few colours, so that they are small.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

import series
from config import Settings
from demo.media import ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from model import MIB
from redisConnect import open_queue
from tests.farm import ROOT, Farm, wait_until
from tests.test_browser import PHONE, Browser, bvids, post, started, streams

FOLDER = ROOT / "docs" / "screenshots"
DESKTOP = (1180, 900)
MAX_BYTES = 200_000


@dataclass(frozen=True)
class Picture:
    """One page in one way of looking at it."""

    name: str
    path: str
    phone: bool = False
    dark: bool = False
    language: str = "en"


PICTURES = (
    Picture("now", "/"),
    Picture("phone", "/", phone=True),
    Picture("machines-dark", "/ui/machines", dark=True),
    Picture("now-chinese", "/", language="zh-CN"),
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
            site.post("settings", rate_bytes_per_second=MIB / 6)
            farm.add("mid:10001")
            farm.add(*bvids("large-a", "large-b"))
            post(farm, "/first", urls=bvids("large-a", "large-b"))
            for name in ("attic", "cellar", "study"):
                farm.worker(BILI_WORKER=name, BILI_WORKING_FILE=str(folder / f"{name}.json"))
            wait_until("all are at work", lambda: sum(map(started, streams(farm))) >= 8)
            post(farm, "/steer", workers=["study"], working={"stop": 0})
            wait_until("one is paused", lambda: "paused" in str(farm.get("/status")["workers"]))
            yield farm
        finally:
            farm.close()


def write_history(data_dir: Path) -> None:
    """Write an hour as it may have been."""
    queue = open_queue(Settings(data_dir=data_dir))
    with contextlib.closing(queue):
        newest = int(time.time()) // series.RINGS[series.HOUR].step_seconds
        for back in range(1, series.RINGS[series.HOUR].steps):
            wave = 1 + 0.25 * math.sin(back / 23) + 0.12 * math.sin(back / 5) + 0.05 * math.sin(back * 1.7)
            speed = 0 if 150 < back < 165 else round(0.45 * MIB * wave)
            step = (newest - back, 1, speed, int(speed > 0 and back % 23 == 0) * (1 + back % 2), 0, int(speed > 0))
            place = (newest - back) % series.RINGS[series.HOUR].steps
            queue._redis.hset("{bili:0}:history:hour", str(place), " ".join(map(str, step)))


def take(picture: Picture, farm: Farm, folder: Path) -> None:
    """Take one picture, and make it small."""
    browser = Browser(folder, picture.language, picture.phone, picture.dark)
    try:
        if not picture.phone:
            size = {"width": DESKTOP[0], "height": DESKTOP[1], "deviceScaleFactor": 1, "mobile": False}
            browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.open(farm, picture.path)
        browser.refreshes(1)
        raw = folder / "raw.png"
        browser.picture(raw)
    finally:
        browser.close()
    target = FOLDER / f"{picture.name}.png"
    scale = f"scale={PHONE[0]}:-1:flags=lanczos," if picture.phone else ""
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
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
