"""yt-dlp and yutto, as they are, download from the stand-in: it is the real site to others too, not only to us."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import pytest

from demo.catalogue import episode, video
from demo.media import Library, StreamFile, ensure_library
from demo.site import DEFAULT_CACHE
from merging import mp4_boxes
from merging.proof import check_inputs, check_tracks
from model import MergePlan
from tests.proxy import Proxy
from tests.test_end_to_end import bvid, cid, stream_hashes
from tests.test_through_proxy import CERTIFICATES, RealSite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

UNWANTED = ("BILI_", "YTDLP", "YUTTO", "PYTHON", "XDG_")
PATIENCE_SECONDS = 90


@pytest.fixture(scope="module")
def library() -> Library:
    return ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="module")
def proxy(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The way to the stand-in under the real names, for yutto's http addresses too."""
    with RealSite(DEFAULT_CACHE, "--real-names") as site, Proxy(site, tmp_path_factory.mktemp("ca"), plain=True) as it:
        yield it


@pytest.fixture(autouse=True)
def nobody_else_was_asked(proxy: Proxy) -> Iterator[None]:
    yield
    assert proxy.targets
    for host in [*(target.removesuffix(":443") for target in proxy.targets), *(seen.host for seen in proxy.seen)]:
        assert re.fullmatch(r"([a-z0-9-]+\.)+(bilibili|bilivideo)\.com", host), host


def environ(proxy: Proxy, folder: Path) -> dict[str, str]:
    """Return the environment of a machine behind the proxy: a home of its own, and one ffmpeg."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(UNWANTED) and name not in CERTIFICATES and not name.lower().endswith("_proxy")
    }
    proxies = {name: proxy.url() for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, **proxies, "HOME": str(folder), "PATH": path, "SSL_CERT_FILE": str(proxy.ca_file)}


def run(proxy: Proxy, folder: Path, *arguments: str) -> dict[str, Path]:
    """Run a program that must succeed; return what it has stored, by name without extension."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environ(proxy, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return {path.stem: path for path in (folder / "Download").rglob("*") if path.is_file()}


def yt_dlp(proxy: Proxy, folder: Path, *arguments: str) -> dict[str, Path]:
    """Let yt-dlp download as it likes best; beside the CAs that it brings along it must look at those it is given."""
    options = ["--ignore-config", "--no-progress", "--compat-options", "no-certifi"]
    return run(proxy, folder, "yt_dlp", *options, "-P", "Download", "-o", "%(id)s.%(ext)s", *arguments)


def yutto(proxy: Proxy, folder: Path, *arguments: str) -> dict[str, Path]:
    """Let yutto download video, sound and chapters; its danmaku are on a host that the stand-in has not."""
    options = ["--no-danmaku", "--no-cover", "--no-color", "--no-progress", "-d", "Download", "-tp", "{bvid}_p{id}"]
    return run(proxy, folder, "yutto", *options, *arguments)


def assert_whole(library: Library, path: Path, page: int) -> None:
    """A file holds every packet of one of the page's pictures and one of its sounds, and passes our own proof."""
    streams = [_sent(library, path, page, kind) for kind in ("video", "audio")]
    files = [str(library.folder / stream.file) for stream in streams]
    plan = MergePlan(str(path), *files, duration_seconds=streams[0].duration_seconds)
    with path.open("rb") as file:
        mp4_boxes.check_plain(file, path.stat().st_size)
        check_tracks(mp4_boxes.read_tracks(file, path.stat().st_size), plan, check_inputs(plan))


def _sent(library: Library, path: Path, page: int, kind: str) -> StreamFile:
    """Return the stream of a page whose packets are those of the file."""
    found = stream_hashes(path, "mov", kind[0])
    streams = [stream for stream in library.of_page(page) if stream.kind == kind]
    [sent] = [stream for stream in streams if stream_hashes(library.folder / stream.file, "mov", kind[0]) == found]
    return sent


def assert_pages(library: Library, files: dict[str, Path], wanted: dict[str, int]) -> None:
    """There are the files of these pages, each whole, and no others."""
    assert set(files) == set(wanted)
    for name, page in wanted.items():
        assert_whole(library, files[name], page)


def pages_of(name: str, numbers: Sequence[int]) -> dict[str, int]:
    """Return the cids of some pages by what both programs are told to call their files."""
    return {f"{bvid(name)}_p{number}": cid(name, number) for number in numbers}


# ------------------------------------------------------------------------------------------ yt-dlp


def test_yt_dlp_downloads_a_video(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    files = yt_dlp(proxy, tmp_path, f"https://www.bilibili.com/video/{bvid('plain')}")
    assert_pages(library, files, {bvid("plain"): cid("plain")})


def test_yt_dlp_downloads_all_pages(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    files = yt_dlp(proxy, tmp_path, f"https://www.bilibili.com/video/{bvid('five-pages')}")
    assert_pages(library, files, pages_of("five-pages", range(1, 6)))


def test_yt_dlp_downloads_episodes(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    """The second by the address of a video, from which the site sends on."""
    first, second = episode("episode"), episode("episode-redirected")
    addresses = (f"bangumi/play/ep{first.ep_id}", f"video/{second.bvid}")
    files = yt_dlp(proxy, tmp_path, *(f"https://www.bilibili.com/{address}" for address in addresses))
    assert_pages(library, files, {str(first.ep_id): cid("episode-twin"), str(second.ep_id): cid("redirected")})


def test_yt_dlp_downloads_from_an_uploaders_list(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    """Its first entry, and the first video of the hidden collection at its tenth place."""
    mid = video("plain").mid
    files = yt_dlp(proxy, tmp_path, f"https://space.bilibili.com/{mid}/video", "--playlist-items", "1,10")
    assert_pages(library, files, {bvid(name): cid(name) for name in ("plain", "same-title-b")})


def test_yt_dlp_downloads_from_a_folder_of_favourites(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    """Those at the places 1 and 7, and of the pages of the latter those at the same places, of which there is one."""
    files = yt_dlp(proxy, tmp_path, "https://space.bilibili.com/10001/favlist?fid=100001", "--playlist-items", "1,7")
    assert_pages(library, files, {bvid("plain"): cid("plain"), **pages_of("five-pages", [1])})


# ------------------------------------------------------------------------------------------ yutto


def test_yutto_downloads_a_video(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    files = yutto(proxy, tmp_path, f"https://www.bilibili.com/video/{bvid('plain')}")
    assert_pages(library, files, pages_of("plain", [1]))


def test_yutto_downloads_a_batch_of_pages(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    files = yutto(proxy, tmp_path, "--batch", "-p", "2~4", f"https://www.bilibili.com/video/{bvid('five-pages')}")
    assert_pages(library, files, pages_of("five-pages", range(2, 5)))


def test_yutto_downloads_an_episode(library: Library, proxy: Proxy, tmp_path: Path) -> None:
    wanted = episode("episode")
    files = yutto(proxy, tmp_path, f"https://www.bilibili.com/bangumi/play/ep{wanted.ep_id}")
    assert_pages(library, files, {f"{wanted.bvid}_p1": cid("episode-twin")})
