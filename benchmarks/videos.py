"""Real videos for the whole pipeline: made by ffmpeg once, served by nginx under the paths of the real site."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.measure import digest_of
from demo.catalogue import SCIENCE, PageRecord, VideoRecord
from demo.crowd import Crowd
from demo.media import StreamFile, codecs_text, top_boxes
from parse_ import aid_to_bvid

FIRST_AID, AID_STEP, FIRST_CID = 700_000_000_000_000, 1_000_003, 40_000_000_000
LEAST_BYTES, MOST_BYTES, KINDS = 100_000, 6_000_000, 20
SECONDS = 4
AVC, VIDEO_QUALITY, AUDIO_QUALITY = 7, 80, 30280
_QUIET = "-hide_banner -nostdin -nostats -loglevel error -y"
_FRAGMENTED = "-movflags +dash+global_sidx+skip_trailer+delay_moov -frag_duration 1000000 -map_metadata -1 -f mp4"


@dataclass(frozen=True)
class Shelf(Crowd):
    """Videos that the stand-in site lists; their streams lie below a folder that nginx serves."""

    streams: Mapping[int, tuple[StreamFile, ...]] = field(default_factory=dict)

    def of_page(self, cid: int) -> tuple[StreamFile, ...]:
        """Return the streams of one page."""
        return self.streams.get(cid, ())


def sizes(kinds: int = KINDS) -> list[int]:
    """Return the sizes of the small videos in bytes: from the least to the most, equal steps of their logarithm."""
    return [round(LEAST_BYTES * (MOST_BYTES / LEAST_BYTES) ** (number / (kinds - 1))) for number in range(kinds)]


# ------------------------------------------------------------------------------------------ making


def make_streams(folder: Path, size_bytes: int, ffmpeg: str) -> tuple[Path, Path]:
    """Return a video and an audio stream of a few seconds, together of about that size, made where missing."""
    video, audio = folder / f"{size_bytes}-video.m4s", folder / f"{size_bytes}-audio.m4s"
    if video.exists() and audio.exists():
        return video, audio
    folder.mkdir(parents=True, exist_ok=True)
    rate = size_bytes * 8 * 0.93 / SECONDS - 64_000
    if rate < 200_000:
        rate = 150_000
    noise = f"color=c=gray:s=640x360:r=25:d={SECONDS},noise=alls=60:allf=t:all_seed={size_bytes}"
    codec = f"-c:v libx264 -preset ultrafast -threads 1 -g 25 -pix_fmt yuv420p -b:v {rate:.0f} -maxrate {rate:.0f}"
    codec += f" -bufsize {rate / 4:.0f}"
    _run(
        [ffmpeg, *_QUIET.split(), "-f", "lavfi", "-i", noise, *codec.split(), *_FRAGMENTED.split(), f"file:{video}.new"]
    )
    tone = f"sine=f={200 + size_bytes % 800}:r=48000:d={SECONDS}"
    sound = ["-c:a", "aac", "-b:a", "48k", *_FRAGMENTED.split()]
    _run([ffmpeg, *_QUIET.split(), "-f", "lavfi", "-i", tone, *sound, f"file:{audio}.new"])
    for path in (video, audio):
        path.with_name(f"{path.name}.new").rename(path)
    return video, audio


def padded(path: Path, folder: Path, size_bytes: int, *, sparse: bool) -> Path:
    """Return a copy of a stream that a last box, which players skip, brings to a size: random, or a hole."""
    longer = folder / f"{path.stem}-{size_bytes}{'-sparse' if sparse else ''}.m4s"
    if longer.exists() and longer.stat().st_size == size_bytes:
        return longer
    content = path.read_bytes()
    rest = size_bytes - len(content)
    with longer.with_suffix(".new").open("wb") as file:
        file.write(content)
        file.write((1).to_bytes(4) + b"free" + rest.to_bytes(8))
        if sparse:
            file.truncate(size_bytes)
        else:
            while left := size_bytes - file.tell():
                file.write(os.urandom(min(8 << 20, left)))
    longer.with_suffix(".new").rename(longer)
    return longer


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ffmpeg: {done.stderr.strip()[-300:]}")


def stream_hashes(path: Path, ffmpeg: str) -> list[str]:
    """Return a digest of the packets of each stream of a file, which muxing does not change; none for a broken one."""
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", f"file:{path}", "-map", "0", "-c", "copy"]
    done = subprocess.run([*command, "-f", "streamhash", "-hash", "md5", "-"], capture_output=True, text=True)
    return sorted(line.split("MD5=")[1] for line in done.stdout.splitlines()) if done.returncode == 0 else []


# ------------------------------------------------------------------------------------------ listing


def describe(cid: int, kind: str, path: Path) -> StreamFile:
    """Return what the site says of a stream."""
    with path.open("rb") as file:
        head = file.read(4096)
    boxes = _first_boxes(head)
    is_video = kind == "video"
    head_stop, (index_start, index_stop) = boxes["moov"][1], boxes["sidx"]
    return StreamFile(
        cid=cid,
        kind=kind,
        id=VIDEO_QUALITY if is_video else AUDIO_QUALITY,
        codecid=AVC if is_video else 0,
        order=1,
        file=f"{cid}/{cid}-1-{30080 if is_video else AUDIO_QUALITY}.m4s",
        size_bytes=path.stat().st_size,
        sha256="",
        duration_seconds=SECONDS,
        codecs=codecs_text(head[:head_stop]),
        width=640 if is_video else 0,
        height=360 if is_video else 0,
        initialization=f"0-{head_stop - 1}",
        index_range=f"{index_start}-{index_stop - 1}",
    )


def _first_boxes(head: bytes) -> dict[str, tuple[int, int]]:
    """Return the boxes that are whole in the first bytes of a file."""
    at, kept = 0, 0
    while at + 8 <= len(head):
        size_bytes = int.from_bytes(head[at : at + 4])
        if size_bytes < 8 or at + size_bytes > len(head):
            break
        at = kept = at + size_bytes
    return {kind: (start, stop) for kind, start, stop in top_boxes(head[:kept])}


def shelve(pairs: Sequence[tuple[Path, Path]], root: Path) -> Path:
    """Link the streams of videos below ``root`` under the site's paths; return the list of them for ``site.py``."""
    listed = []
    for number, (video, audio) in enumerate(pairs, 1):
        cid = FIRST_CID + number
        for kind, path in (("video", video), ("audio", audio)):
            stream = describe(cid, kind, path)
            place = root / stream.url_path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.hardlink_to(path)
            listed.append(asdict(stream))
    (root / "shelf.json").write_text(json.dumps(listed), "utf-8")
    return root / "shelf.json"


def read_shelf(path: Path) -> Shelf:
    """Return the videos of a list that ``shelve`` wrote."""
    streams: dict[int, tuple[StreamFile, ...]] = {}
    for record in json.loads(path.read_text("utf-8")):
        stream = StreamFile(**record)
        streams[stream.cid] = (*streams.get(stream.cid, ()), stream)
    return Shelf(tuple(_videos(len(streams))), streams=streams)


def _videos(count: int) -> Iterator[VideoRecord]:
    for number in range(1, count + 1):
        aid = FIRST_AID + number * AID_STEP
        pages = (PageRecord(FIRST_CID + number, f"样片{number:04d}", "plain", SECONDS),)
        yield VideoRecord(
            f"bench-{number}", aid, aid_to_bvid(aid), f"样片{number:04d}", pages, SCIENCE, open_quality=True
        )


def bvids(count: int) -> list[str]:
    """Return the ids of the first videos."""
    return [record.bvid for record in _videos(count)]


def small_videos(folder: Path, count: int, ffmpeg: str) -> list[tuple[Path, Path]]:
    """Return the streams of ``count`` small videos of KINDS sizes; the same size comes again and again."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        made = list(pool.map(lambda size: make_streams(folder, size, ffmpeg), sizes()))
    for path in (path for pair in made for path in pair):
        digest_of(path)  # into the page cache
    return [made[number % len(made)] for number in range(count)]
