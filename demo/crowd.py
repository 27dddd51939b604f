"""A crowd of thousands of videos that cost next to nothing, for load and for chaos.

ffmpeg makes a few template pages once. Every page of the crowd has the bytes of one of them, save for 16 in each
sample, which are made from the page's cid as they are sent. They stand where every decoder skips them, so the streams
are whole; and no two pages share a packet, so a mix-up of two pages, or of chunks of them, shows in a hash of the
packets. What a site serves can be told without asking it::

    crowd = ensure_crowd(DEFAULT_CACHE, ffmpeg, 2000)
    for stream in crowd.of_page(crowd.video("crowd-17").pages[0].cid):
        crowd.stamped_bytes(stream)
    crowd.differences(cid, path.read_bytes())  # none, when the joined file holds just that page
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from demo.catalogue import CAMPUS, CAREER, CRAFTS, HUMANITIES, MUSIC, SCIENCE, PageRecord, VideoRecord
from demo.media import PLACEHOLDER, Library, StreamFile, ensure_templates, read_range, top_boxes
from parse_ import aid_to_bvid

TINY_TEMPLATES = tuple(PageRecord(cid, "template", "tiny", 1) for cid in (1, 2, 3))
HEAVY_TEMPLATES = (PageRecord(4, "template", "heavy", 4),)

STAMP_BYTES = len(PLACEHOLDER)

FIRST_AID, AID_STEP, FIRST_CID = 900_000_000_000_000, 1_000_003, 20_000_000_000
FIRST_LARGE_AID, FIRST_LARGE_CID = 1_800_000_000_000_000, 30_000_000_000
FIRST_PAGED_CID, PAGED = 40_000_000_000, 100_000_000
CIDS_OF_A_VIDEO = 10
CROWD_MID = 20000
"""Of the uploader of all small ones."""
_REGIONS = (SCIENCE, HUMANITIES, CAMPUS, CAREER, CRAFTS, MUSIC)


# ------------------------------------------------------------------------------------------ records


def small_video(number: int) -> VideoRecord:
    """Return ``crowd-<number>``: one page; every tenth has 2 to 5, and may gain one named as its second."""
    count = 1 if number % 10 else 2 + number // 10 % 4
    aid, cid = FIRST_AID + number * AID_STEP, FIRST_CID + number * CIDS_OF_A_VIDEO
    titles = [f"人群{number:05d}"] if count == 1 else [f"第{page}节" for page in range(1, count + 1)]
    pages = tuple(PageRecord(cid + page, title, "tiny", 1) for page, title in enumerate(titles, 1))
    later = (PageRecord(cid + count + 1, titles[1], "tiny", 1),) if count > 1 else ()
    region = _REGIONS[number % len(_REGIONS)]
    name, title = f"crowd-{number}", f"人群{number:05d}"
    return VideoRecord(name, aid, aid_to_bvid(aid), title, pages, region, mid=CROWD_MID, later_pages=later)


def large_video(number: int) -> VideoRecord:
    """Return ``crowd-large-<number>``: one page of more than 30 MiB, which logged-out clients get too."""
    aid, cid = FIRST_LARGE_AID + number * AID_STEP, FIRST_LARGE_CID + number * CIDS_OF_A_VIDEO
    title = f"大块头{number:03d}"
    pages = (PageRecord(cid + 1, title, "heavy", HEAVY_TEMPLATES[0].duration_seconds),)
    return VideoRecord(f"crowd-large-{number}", aid, aid_to_bvid(aid), title, pages, SCIENCE, open_quality=True)


def paged_video(count: int) -> VideoRecord:
    """Return ``crowd-pages``: a course of so many pages."""
    aid = FIRST_LARGE_AID + PAGED * AID_STEP
    pages = tuple(PageRecord(FIRST_PAGED_CID + n, f"第{n}讲", "tiny", 1) for n in range(1, count + 1))
    return VideoRecord("crowd-pages", aid, aid_to_bvid(aid), f"{count}讲的课程", pages, SCIENCE)


# ------------------------------------------------------------------------------------------ stamps


@dataclass(frozen=True, slots=True)
class Template:
    """One stream that many pages share: where its samples are (offset and size), and where their stamps."""

    stream: StreamFile
    path: Path
    samples: tuple[tuple[int, int], ...]
    stamps: tuple[int, ...]

    @classmethod
    def of(cls, library: Library, stream: StreamFile) -> Template:
        """Find the places for stamps in a stream."""
        path = library.folder / stream.file
        content = path.read_bytes()
        stamps = tuple(found.start() for found in re.finditer(re.escape(PLACEHOLDER), content))
        return cls(stream, path, samples(content), stamps)

    def for_page(self, cid: int) -> StreamFile:
        """Return the record of the stream of a page; its digest is told by ``Crowd.sha256``."""
        name = self.stream.file.rpartition("/")[2].replace(f"{self.stream.cid}-", f"{cid}-", 1)
        return replace(self.stream, cid=cid, file=f"{cid}/{name}", sha256="")

    def read(self, cid: int, start: int, stop: int) -> bytes:
        """Return the half-open range of the bytes of a page's stream."""
        content = bytearray(read_range(self.path, start, stop))
        for number in range(bisect_left(self.stamps, start - STAMP_BYTES + 1), bisect_left(self.stamps, stop)):
            at = self.stamps[number]
            first, last = max(at, start), min(at + STAMP_BYTES, stop)
            content[first - start : last - start] = stamp(cid, self.stream.id, number)[first - at : last - at]
        return bytes(content)


def stamp(cid: int, stream_id: int, number: int) -> bytes:
    """Return the bytes of the stamp in a stream's sample: hex digits, so that no start code comes about."""
    text = f"{cid}/{stream_id}/{number}"
    return hashlib.blake2b(text.encode(), digest_size=STAMP_BYTES // 2).hexdigest().encode()


def samples(content: bytes) -> tuple[tuple[int, int], ...]:
    """Return offset and size of each sample of a fragmented file of one track, as ``media.py`` makes them."""
    moofs = [(start, stop) for kind, start, stop in top_boxes(content) if kind == "moof"]
    return tuple(sample for start, stop in moofs for sample in _samples_of_fragment(content, start, stop))


def _samples_of_fragment(content: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    default_size = 0
    for kind, at in _boxes_within(content, start, stop):
        flags = int.from_bytes(content[at + 1 : at + 4])
        if kind == b"tfhd" and flags & 0x10:  # after the track, base and description, the duration
            skipped = sum(width for bit, width in ((0x1, 8), (0x2, 4), (0x8, 4)) if flags & bit)
            (default_size,) = struct.unpack_from(">I", content, at + 8 + skipped)
        if kind == b"trun":
            count, sample_at = struct.unpack_from(">Ii", content, at + 4)
            entry_at, sample_at = at + 12 + (flags & 0x4), sample_at + start
            fields = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
            for number in range(count):
                size = default_size
                if 0x200 in fields:
                    place = 4 * (number * len(fields) + fields.index(0x200))
                    (size,) = struct.unpack_from(">I", content, entry_at + place)
                yield sample_at, size
                sample_at += size


def _boxes_within(content: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
    """Yield kind and offset of the content of each box in a ``moof``, of those in its ``traf`` too."""
    at = start + 8
    while at < stop:
        size, kind = struct.unpack_from(">I4s", content, at)
        if kind == b"traf":
            yield from _boxes_within(content, at, at + size)
        else:
            yield kind, at + 8
        at += size


# ------------------------------------------------------------------------------------------ the crowd


@dataclass(frozen=True)
class Crowd:
    """The videos of a crowd, their streams and the bytes of these."""

    videos: tuple[VideoRecord, ...] = ()
    tiny: tuple[tuple[Template, ...], ...] = ()
    heavy: tuple[tuple[Template, ...], ...] = ()
    _digests: dict[tuple[int, int], str] = field(default_factory=dict)

    @functools.cached_property
    def _by_name(self) -> dict[str, VideoRecord]:
        return {record.name: record for record in self.videos}

    @functools.cached_property
    def _by_id(self) -> dict[str | int, VideoRecord]:
        return {key: record for record in self.videos for key in (record.bvid, record.aid)}

    @functools.cached_property
    def _pages(self) -> dict[int, PageRecord]:
        return {page.cid: page for record in self.videos for page in (*record.pages, *record.later_pages)}

    def video(self, name: str) -> VideoRecord:
        """Return ``crowd-17`` or ``crowd-large-1``."""
        return self._by_name[name]

    def find_video(self, bvid: str = "", aid: int = 0) -> VideoRecord | None:
        """Return the video with that id, None where there is none."""
        return self._by_id.get(bvid) or self._by_id.get(aid)

    def short_target(self, code: str) -> str | None:
        """Return the path to which the short link ``Crowd17`` leads, None for other codes."""
        record = self._by_name.get(f"crowd-{code.removeprefix('Crowd')}") if code.startswith("Crowd") else None
        return None if record is None else f"/video/av{record.aid}?share_source=copy_web"

    def of_page(self, cid: int) -> tuple[StreamFile, ...]:
        """Return the streams of one page."""
        return tuple(template.for_page(cid) for template in self._templates(cid))

    def find_stream(self, url_path: str) -> StreamFile | None:
        """Return the stream that is served under a path, None where there is none."""
        folder, _, _name = url_path.rpartition("/")
        cid = folder.rpartition("/")[2]
        if not (cid.isascii() and cid.isdecimal() and len(cid) < 17):
            return None
        return next((stream for stream in self.of_page(int(cid)) if stream.url_path == url_path), None)

    def read(self, stream: StreamFile, start: int, stop: int) -> bytes:
        """Return the half-open range of a stream, as it is served."""
        return self._template(stream).read(stream.cid, start, stop)

    def stamped_bytes(self, stream: StreamFile) -> bytes:
        """Return all bytes of a stream, as they are served."""
        return self.read(stream, 0, stream.size_bytes)

    def sha256(self, stream: StreamFile) -> str:
        """Return the digest of a stream; it is made when it is first asked for."""
        key = (stream.cid, stream.id)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(self.stamped_bytes(stream)).hexdigest()
        return self._digests[key]

    def differences(self, cid: int, content: bytes) -> list[str]:
        """Return in which samples a joined file is not just that page; none where it is, bit for bit."""
        wrong, payload_bytes = [], 0
        for template in self._templates(cid):
            stream, found_at = template.read(cid, 0, template.stream.size_bytes), 0
            for number, (at, size) in enumerate(template.samples):
                place = content.find(stream[at : at + size], found_at)
                if place < 0:
                    wrong.append(f"{template.stream.kind} {number}")
                else:
                    found_at = place + size
                payload_bytes += size
        held = sum(stop - start - 8 for kind, start, stop in top_boxes(content) if kind == "mdat")
        return wrong if held == payload_bytes else [*wrong, f"{held} bytes of media in place of {payload_bytes}"]

    def _templates(self, cid: int) -> tuple[Template, ...]:
        page = self._pages.get(cid)
        if page is None:
            return ()
        templates = self.heavy if page.profile == "heavy" else self.tiny
        return templates[cid // CIDS_OF_A_VIDEO % len(templates)]

    def _template(self, stream: StreamFile) -> Template:
        return next(template for template in self._templates(stream.cid) if template.stream.id == stream.id)


def ensure_crowd(cache: Path, ffmpeg: str, count: int, large: int = 0, pages: int = 0) -> Crowd:
    """Return a crowd of ``count`` small videos, ``large`` large ones, and one of ``pages`` pages.

    Its templates are made where they are missing.
    """

    def templates(pages: tuple[PageRecord, ...]) -> Iterator[tuple[Template, ...]]:
        library = ensure_templates(cache, pages, ffmpeg)
        for page in pages:
            yield tuple(Template.of(library, stream) for stream in library.of_page(page.cid))

    videos = [small_video(number) for number in range(1, count + 1)]
    videos += [large_video(number) for number in range(1, large + 1)]
    videos += [paged_video(pages)] if pages else []
    return Crowd(
        tuple(videos),
        tiny=tuple(templates(TINY_TEMPLATES)) if count or pages else (),
        heavy=tuple(templates(HEAVY_TEMPLATES)) if large else (),
    )
