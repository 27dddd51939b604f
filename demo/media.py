"""Real streams for the stand-in site: ffmpeg makes them at first start, a folder keeps them.

DASH streams are fragmented MP4 files with one global ``sidx`` (ftyp moov sidx moof mdat …), as the real
site serves them; the legacy ones are plain MP4 and FLV files. The cid of a page is the seed of its pictures
and sound, so that the same page has the same bytes at every build with the same ffmpeg.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from demo.catalogue import PageRecord, Profile, all_pages

FORMAT = 4
"""Counted up by hand when a change here makes other bytes: old folders are then left alone."""

AVC, HEVC, AV1, NO_CODEC = 7, 12, 13, 0
SIZES = {
    **{16: (640, 360), 32: (852, 480), 64: (1280, 720), 80: (1920, 1080)},
    **{74: (320, 180), 112: (336, 190), 116: (352, 198), 120: (368, 208), 125: (384, 216), 126: (400, 226)},
    127: (416, 234),
}
"""True up to 1080P; the qualities above, and 720P60, are there for their numbers: small, and each of another size."""
DOLBY_VISION = 126
FRAME_RATE = 10
SEGMENTS = 3
LARGE_BITS_PER_SECOND = 64_000_000
"""Of the noise of a large video's best stream: 4 seconds of it are more than 30 MiB."""

_QUIET = "-hide_banner -nostdin -nostats -loglevel error -y"
_BIT_EXACT = "-fflags +bitexact -map_metadata -1"
_FRAGMENTED = f"-movflags +dash+global_sidx+skip_trailer+delay_moov -frag_duration 1000000 {_BIT_EXACT} -f mp4"
_ENCODERS = {
    AVC: "-c:v libx264 -preset ultrafast -threads 1 -g 10 -pix_fmt yuv420p -flags:v +bitexact",
    HEVC: (
        "-c:v libx265 -preset ultrafast -x265-params log-level=error:pools=none:frame-threads=1:keyint=10"
        " -pix_fmt yuv420p -tag:v hev1 -flags:v +bitexact"
    ),
    AV1: "-c:v libaom-av1 -cpu-used 8 -usage realtime -row-mt 0 -threads 1 -g 10 -pix_fmt yuv420p",
}
_DOLBY_VISION_TAG = ("-tag:v hev1", "-tag:v dvh1")
"""What such a stream calls its pictures; they are plain HEVC, since no free encoder makes others."""
_AUDIO = {
    30216: "-c:a aac -flags:a +bitexact -b:a 64k",
    30232: "-c:a aac -flags:a +bitexact -b:a 128k",
    30280: "-c:a aac -flags:a +bitexact -b:a 192k",
    30250: "-c:a eac3 -flags:a +bitexact -b:a 384k",
    30251: "-c:a flac -flags:a +bitexact -strict -2",
}
_URL_IDS = {
    (AVC, 16): 30016,
    (AVC, 32): 30032,
    (AVC, 64): 30064,
    (AVC, 80): 30080,
    (HEVC, 16): 30011,
    (HEVC, 32): 30033,
    (HEVC, 64): 30066,
    (HEVC, 80): 30077,
    (AV1, 16): 100022,
    (AV1, 32): 100023,
    (AV1, 64): 100024,
    (AV1, 80): 100026,
    (AVC, 74): 30074,
    (AVC, 112): 30112,
    (AVC, 116): 30116,
    (AVC, 120): 30120,
    (HEVC, 120): 30121,
    (HEVC, 125): 30125,
    (HEVC, 126): 30126,
    (HEVC, 127): 30127,
    (AV1, 127): 100029,
}
"""The number that ends the real site's file names, by codec and quality."""


@dataclass(frozen=True, slots=True)
class Make:
    """One stream that a profile has; ``kind`` is video, audio, mp4 or flv (the last two are joined streams)."""

    kind: str
    id: int
    codecid: int = NO_CODEC


_LADDER = tuple(Make("video", qn, AVC) for qn in (80, 64, 32, 16))
_SOUND = tuple(Make("audio", id_) for id_ in (30280, 30232, 30216))
_SMALL = (Make("video", 32, AVC), Make("video", 32, HEVC), Make("video", 16, AVC))
_PLAIN = (*_LADDER, Make("video", 64, HEVC), Make("video", 32, HEVC))
_LEGACY = Make("mp4", 16)

PROFILES: dict[Profile, tuple[Make, ...]] = {
    "plain": (*_PLAIN, *_SOUND, _LEGACY),
    "page": (*_SMALL, *_SOUND, _LEGACY),
    "large": (*_LADDER, Make("video", 32, HEVC), *_SOUND, _LEGACY),
    "silent": (*_PLAIN, _LEGACY),
    "mp4": (Make("mp4", 32), Make("mp4", 16)),
    "flv": tuple(Make("flv", qn) for qn in (64, 32)),
    "rich": (
        *(Make("video", 127, AV1), Make("video", 127, HEVC), Make("video", DOLBY_VISION, HEVC)),
        *(Make("video", 125, HEVC), Make("video", 120, HEVC)),
        *(Make("video", qn, AVC) for qn in (120, 116, 112, 74)),
        *(*_PLAIN, Make("video", 64, AV1), *_SOUND, Make("audio", 30250), Make("audio", 30251), _LEGACY),
    ),
}
TEMPLATES: dict[Profile, tuple[Make, Make]] = {
    "tiny": (Make("video", 32, AVC), Make("audio", 30232)),
    "heavy": (Make("video", 80, AVC), Make("audio", 30280)),
}
"""What a page of a crowd has; kept apart from the others, so that neither's folder depends on the other."""
TINY_SIZE = (256, 144)

PLACEHOLDER = b"stamp-of-a-page."
"""Stands in every sample of a template, where decoders expect nothing: in a video's SEI, in a data element of AAC."""
_USER_DATA = f"{hashlib.md5(PLACEHOLDER).hexdigest()}+{PLACEHOLDER.decode()}"
_WITH_USER_DATA = f"-bsf:v dump_extra=freq=all,h264_metadata=sei_user_data={_USER_DATA}"  # it goes with each SPS
_DATA_ELEMENT = bytes((0x81, len(PLACEHOLDER))) + PLACEHOLDER
"""ID_DSE (3 bits), instance tag 0 (4), aligned (1), the count of bytes (8), the bytes: whole bytes, so that what
follows in the frame stays as it is."""
_ADTS_HEADER_BYTES = 7


@dataclass(frozen=True, slots=True)
class StreamFile:
    """One made file. ``kind`` is video, audio or durl; ``order`` counts the segments of a durl from 1.

    ``file`` is relative to the library's folder: that of the page, then the name on the CDN.
    ``initialization`` and ``index_range`` are inclusive byte ranges as the real site writes them.
    """

    cid: int
    kind: str
    id: int
    codecid: int
    order: int
    file: str
    size_bytes: int
    sha256: str
    duration_seconds: float
    codecs: str = ""
    width: int = 0
    height: int = 0
    initialization: str = ""
    index_range: str = ""

    @property
    def bandwidth(self) -> int:
        """Bits per second, on average."""
        return round(self.size_bytes * 8 / self.duration_seconds)

    @property
    def url_path(self) -> str:
        """The path under which a CDN host serves the file."""
        return f"/upgcxcode/{self.cid // 10 % 100:02d}/{self.cid % 100:02d}/{self.file}"


@dataclass(frozen=True, slots=True)
class Library:
    """All streams of the site, in the order of the catalogue, and the folder that holds them."""

    folder: Path
    streams: tuple[StreamFile, ...]

    def of_page(self, cid: int) -> tuple[StreamFile, ...]:
        """Return the streams of one page."""
        return tuple(stream for stream in self.streams if stream.cid == cid)

    def by_url_path(self) -> dict[str, StreamFile]:
        """Return every stream by the path under which it is served."""
        return {stream.url_path: stream for stream in self.streams}


class MediaError(Exception):
    """ffmpeg did not make the streams; the sentence holds what it said."""


# ------------------------------------------------------------------------------------------ the folder


def ensure_library(cache: Path, ffmpeg: str) -> Library:
    """Return the library in ``cache``, made now where it is missing; safe for several starters at once.

    It is built in a folder beside, page by page, and renamed when it is complete: what is there is whole,
    and a start that was ended in the middle is gone on with.
    """
    pages = all_pages()
    key = _key(FORMAT, pages, PROFILES, _ENCODERS, _AUDIO, _FRAGMENTED)
    return _ensure(cache, f"media-{key}", pages, lambda page, folder: _make_page(page, folder, ffmpeg))


def ensure_templates(cache: Path, pages: tuple[PageRecord, ...], ffmpeg: str) -> Library:
    """Return the streams of these tiny or heavy pages out of a folder of their own, made where it is missing."""
    plan = (pages, TEMPLATES, TINY_SIZE, LARGE_BITS_PER_SECOND, _WITH_USER_DATA, _DATA_ELEMENT)
    key = _key(FORMAT, *plan, _ENCODERS[AVC], _AUDIO, _FRAGMENTED)
    return _ensure(cache, f"crowd-{key}", pages, lambda page, folder: _make_template(page, folder, ffmpeg))


def _key(*plan: object) -> str:
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:12]


_MakePage = Callable[[PageRecord, Path], list["StreamFile"]]


def _ensure(cache: Path, name: str, pages: tuple[PageRecord, ...], make: _MakePage) -> Library:
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / name
    if not (folder / "index.json").exists():
        with FileLock(cache / "media.lock"):
            if not (folder / "index.json").exists():
                _build(cache / f"building-{name}", folder, pages, make)
    return Library(folder, _read_index(folder))


def _build(building: Path, folder: Path, pages: tuple[PageRecord, ...], make: _MakePage) -> None:
    """Make every page that an earlier start, ended in the middle, has not made; then rename the whole."""
    building.mkdir(exist_ok=True)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        made = list(pool.map(lambda page: _page_streams(page, building, make), pages))
    for left_behind in building.glob("making-*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    _write_index(building, [stream for streams in made for stream in streams])
    building.rename(folder)


def _write_index(folder: Path, streams: list[StreamFile]) -> None:
    (folder / "index.json").write_text(json.dumps([asdict(stream) for stream in streams], indent=1), "utf-8")


def _read_index(folder: Path) -> tuple[StreamFile, ...]:
    return tuple(StreamFile(**entry) for entry in json.loads((folder / "index.json").read_text("utf-8")))


# ------------------------------------------------------------------------------------------ one page


def _page_streams(page: PageRecord, building: Path, make: _MakePage) -> tuple[StreamFile, ...]:
    """Return the streams of a page, made in a folder of this process that is renamed when it is complete."""
    home = building / str(page.cid)
    if not home.exists():
        making = building / f"making-{page.cid}-{os.getpid()}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        _write_index(making, make(page, making))
        making.rename(home)
    return _read_index(home)


def _make_page(page: PageRecord, folder: Path, ffmpeg: str) -> list[StreamFile]:
    outputs = [(make, order, _file_name(page.cid, make, order)) for make, order in _orders(page.profile)]
    arguments = [ffmpeg, *_QUIET.split(), *_inputs(page)]
    for make, order, name in outputs:
        arguments += [*_output(page, make, order), f"file:{folder / name}"]
    _run(arguments)
    return [_describe(page, make, order, folder / name) for make, order, name in outputs]


def _make_template(page: PageRecord, folder: Path, ffmpeg: str) -> list[StreamFile]:
    video, audio = TEMPLATES[page.profile]
    paths = [folder / _file_name(page.cid, make, 1) for make in (video, audio)]
    start = [ffmpeg, *_QUIET.split()]
    seconds = page.duration_seconds
    width, height = _size(page, video)
    picture = f"testsrc2=s={width}x{height}:r={FRAME_RATE}:d={seconds},hue=h={page.cid * 90}"
    rate = ""
    if page.profile == "heavy":
        picture = f"color=c=gray:s={width}x{height}:r=25:d={seconds},noise=alls=60:allf=t:all_seed={page.cid}"
        rate = f"-b:v {LARGE_BITS_PER_SECOND}"
    options = f"{_ENCODERS[AVC]} {rate} {_WITH_USER_DATA} {_FRAGMENTED}".split()
    _run([*start, "-f", "lavfi", "-i", picture, *options, f"file:{paths[0]}"])
    sound = f"sine=f={200 + page.cid * 100}:r=48000:d={seconds},volume=0.5"
    frames = _run([*start, "-f", "lavfi", "-i", sound, *_AUDIO[audio.id].split(), "-f", "adts", "pipe:1"])
    copied = f"-f aac -i pipe:0 -c copy -bsf:a aac_adtstoasc {_FRAGMENTED}".split()
    _run([*start, *copied, f"file:{paths[1]}"], _with_data_elements(frames))
    return [_describe(page, make, 1, path) for make, path in zip((video, audio), paths, strict=True)]


def _with_data_elements(adts: bytes) -> bytes:
    """Return the AAC frames with a data element in front of each one's first element."""
    frames, at = [], 0
    while at < len(adts):
        header = int.from_bytes(adts[at : at + _ADTS_HEADER_BYTES])
        size_bytes = header >> 13 & 0x1FFF
        grown = (header + (len(_DATA_ELEMENT) << 13)).to_bytes(_ADTS_HEADER_BYTES)
        frames += [grown, _DATA_ELEMENT, adts[at + _ADTS_HEADER_BYTES : at + size_bytes]]
        at += size_bytes
    return b"".join(frames)


def _run(command: list[str], content: bytes = b"") -> bytes:
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    if done.returncode != 0:
        raise MediaError(done.stderr.decode("utf-8", "replace").strip())
    return done.stdout


def _size(page: PageRecord, make: Make) -> tuple[int, int]:
    return TINY_SIZE if page.profile == "tiny" else SIZES[make.id]


def _orders(profile: Profile) -> Iterator[tuple[Make, int]]:
    for make in PROFILES[profile]:
        for order in range(1, SEGMENTS + 1 if make.kind == "flv" else 2):
            yield make, order


def _inputs(page: PageRecord) -> list[str]:
    seconds, seed = page.duration_seconds, page.cid % 1_000_003
    if page.profile == "flv":
        seconds *= SEGMENTS
    width, height = max(_size(page, make) for make in PROFILES[page.profile] if make.kind != "audio")
    picture = f"testsrc2=s={width}x{height}:r={FRAME_RATE}:d={seconds},hue=h={seed % 360}"
    sound = f"sine=f={200 + seed % 1800}:r=48000:d={seconds},volume=0.5"
    noise = f"color=c=gray:s=1920x1080:r=25:d={seconds},noise=alls=60:allf=t:all_seed={seed}"
    sources = [picture, sound, *([noise] if page.profile == "large" else [])]
    return [word for source in sources for word in ("-f", "lavfi", "-i", source)]


def _output(page: PageRecord, make: Make, order: int) -> list[str]:
    if make.kind == "audio":
        return f"-map 1:a {_AUDIO[make.id]} {_FRAGMENTED}".split()
    width, height = _size(page, make)
    picture = f"-map 0:v -vf scale={width}:{height}"
    if make.kind == "video":
        if page.profile == "large" and make.id == 80:
            return f"-map 2:v {_ENCODERS[AVC]} -b:v {LARGE_BITS_PER_SECOND} {_FRAGMENTED}".split()
        encoder = _ENCODERS[make.codecid]
        if make.id == DOLBY_VISION:
            encoder = encoder.replace(*_DOLBY_VISION_TAG)
        return f"{picture} {encoder} {_FRAGMENTED}".split()
    joined = f"{picture} -map 1:a {_ENCODERS[AVC]} {_AUDIO[30232]} {_BIT_EXACT}"
    if make.kind == "mp4":
        return f"{joined} -movflags +faststart -f mp4".split()
    start = (order - 1) * page.duration_seconds
    return f"{joined} -ss {start} -t {page.duration_seconds} -f flv".split()


def _file_name(cid: int, make: Make, order: int) -> str:
    if make.kind == "video":
        return f"{cid}-1-{_URL_IDS[make.codecid, make.id]}.m4s"
    if make.kind == "audio":
        return f"{cid}-1-{make.id}.m4s"
    return f"{cid}-{order}-{make.id}.{make.kind}"


def _describe(page: PageRecord, make: Make, order: int, path: Path) -> StreamFile:
    content = path.read_bytes()
    is_joined = make.kind in ("mp4", "flv")
    width, height = (0, 0) if make.kind == "audio" else _size(page, make)
    stream = StreamFile(
        cid=page.cid,
        kind="durl" if is_joined else make.kind,
        id=make.id,
        codecid=AVC if is_joined else make.codecid,
        order=order,
        file=f"{page.cid}/{path.name}",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        duration_seconds=page.duration_seconds,
        width=width,
        height=height,
    )
    if is_joined:
        return stream
    boxes = {kind: (start, stop) for kind, start, stop in top_boxes(content)}
    head_stop, (index_start, index_stop) = boxes["moov"][1], boxes["sidx"]
    return StreamFile(
        **{
            **asdict(stream),
            "codecs": codecs_text(content[:head_stop]),
            "initialization": f"0-{head_stop - 1}",
            "index_range": f"{index_start}-{index_stop - 1}",
        }
    )


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Return the half-open range of a file."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, stop - start)
    finally:
        os.close(descriptor)


def top_boxes(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield kind, start and stop of every top-level box of an MP4 file made here (32-bit sizes)."""
    at = 0
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        if size < 8 or at + size > len(content):
            raise MediaError(f"no box at offset {at}")
        yield kind.decode("ascii"), at, at + size
        at += size


def codecs_text(head: bytes) -> str:
    """Return the RFC 6381 text of the one track that ``moov`` describes, e.g. ``avc1.640032``."""
    if (at := head.find(b"avcC")) > 0:
        return f"avc1.{head[at + 5 : at + 8].hex()}"
    if (at := head.find(b"hvcC")) > 0:
        return "dvh1.08.06" if b"dvh1" in head else f"hev1.1.6.L{head[at + 16]}.90"
    if (at := head.find(b"av1C")) > 0:
        return f"av01.0.{head[at + 5] & 31:02d}M.08"
    return "fLaC" if b"fLaC" in head else "ec-3" if b"ec-3" in head else "mp4a.40.2"
