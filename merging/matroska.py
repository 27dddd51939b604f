"""What the elements of a Matroska file tell about it, read without ffmpeg.

The counterpart of mp4_boxes.py: what ffmpeg wrote is walked from its first to its last byte, and each frame is counted.
Every size is checked before it is used, what is read at once is bounded, and whatever is wrong is a MergeError that
names the offset. Only headers are read; frames are skipped. Source: RFC 9559 (Matroska), RFC 8794 (EBML).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from errors import MergeError
from i18n import _

MAGIC = b"\x1a\x45\xdf\xa3"
"""How every file of this kind begins."""

WINDOW_BYTES = 64 * 1024
MAX_VALUE_BYTES = 1024 * 1024
MAX_ELEMENTS = 50_000_000
"""A film of a day at 120 frames a second, with its sound, has 15 million frames."""

_EBML, _SEGMENT, _INFO, _TRACKS, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B, 0x1F43B675
_CHAPTERS, _ATTACHMENTS, _TAGS = 0x1043A770, 0x1941A469, 0x1254C367
_SCALE, _DURATION = 0x2AD7B1, 0x4489
_TRACK, _NUMBER, _TYPE, _CODEC = 0xAE, 0xD7, 0x83, 0x86
_TIME, _SIMPLE_BLOCK, _GROUP, _BLOCK = 0xE7, 0xA3, 0xA0, 0xA1
_EDITION, _CHAPTER, _ATTACHED = 0x45B9, 0xB6, 0x61A7
_TAG, _SIMPLE_TAG, _NAME, _STRING = 0x7373, 0x67C8, 0x45A3, 0x4487
_KINDS = {1: "video", 2: "audio", 17: "subtitle"}
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class MatroskaTrack:
    """One track: ``kind`` is video, audio, subtitle or other; ``samples`` are the frames that are really there."""

    kind: str
    codec: str
    samples: int
    duration_seconds: float
    """From the first frame to the end of the last one, which is taken to be as long as the others."""


@dataclass(frozen=True, slots=True)
class Matroska:
    """What a whole file holds."""

    duration_seconds: float
    tracks: tuple[MatroskaTrack, ...]
    comment: str = ""
    chapters: int = 0
    attachments: int = 0


class _Element(NamedTuple):
    id: int
    start: int
    body: int
    stop: int


@dataclass(slots=True)
class _Span:
    """What was seen of a track's frames: how many, and between which times in units of the file's scale."""

    count: int = 0
    first: int = 2**63
    last: int = -(2**63)


@dataclass(slots=True)
class _Found:
    scale: int = 1_000_000
    duration: float = 0.0
    kinds: dict[int, tuple[str, str]] = field(default_factory=dict)
    spans: dict[int, _Span] = field(default_factory=dict)
    comment: str = ""
    chapters: int = 0
    attachments: int = 0


class _Reader:
    """Reads elements of one file through a window, and counts them so that no input can keep it busy for ever."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._window, self._window_start = b"", 0
        self._left = MAX_ELEMENTS
        self.size_bytes = size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes at ``offset``; fewer only where the file ends."""
        at = offset - self._window_start
        if at < 0 or at + length > len(self._window):
            self._file.seek(offset)
            self._window, self._window_start = self._file.read(max(length, WINDOW_BYTES)), offset
            at = 0
        return self._window[at : at + length]

    def value(self, element: _Element) -> bytes:
        """Return the content of a small element."""
        length = element.stop - element.body
        if length > MAX_VALUE_BYTES:
            raise MergeError(_("the element at byte {offset} is too large").format(offset=element.start))
        return self.read(element.body, length)

    def number(self, element: _Element) -> int:
        """Return an unsigned number."""
        return int.from_bytes(self.value(element), "big")

    def elements(self, start: int, stop: int) -> Iterator[_Element]:
        """Yield the elements that fill ``[start, stop)`` exactly."""
        while start < stop:
            element = self._element(start, stop)
            yield element
            start = element.stop

    def children(self, parent: _Element, *ids: int) -> Iterator[_Element]:
        """Yield the elements of these ids inside another one."""
        return (element for element in self.elements(parent.body, parent.stop) if element.id in ids)

    def _element(self, start: int, stop: int) -> _Element:
        self._left -= 1
        if self._left < 0:
            raise MergeError(_("too many elements, up to byte {offset}").format(offset=start))
        head = self.read(start, 12)
        width = 9 - head[0].bit_length() if head and head[0] else 9
        if width > 4 or len(head) <= width or not head[width]:
            raise MergeError(_("no element begins at byte {offset}").format(offset=start))
        size_width = 9 - head[width].bit_length()
        body = start + width + size_width
        size = int.from_bytes(head[width : width + size_width], "big") & ((1 << 7 * size_width) - 1)
        if len(head) < width + size_width or size == (1 << 7 * size_width) - 1:  # written as "until the end"
            raise MergeError(_("the element at byte {offset} was never finished").format(offset=start))
        if body + size > stop:
            raise MergeError(
                _("the element at byte {offset} runs past the end, by {bytes} bytes").format(
                    offset=start, bytes=body + size - stop
                )
            )
        return _Element(int.from_bytes(head[:width], "big"), start, body, body + size)


# ------------------------------------------------------------------------------------------ whole files


def read_matroska(file: BinaryIO, size_bytes: int) -> Matroska:
    """Return what the file holds; raise MergeError unless its elements fill it and it has tracks, a length and frames.

    ffmpeg writes the sizes and the length when it ends, so that a file that it did not finish shows.
    """
    reader = _Reader(file, size_bytes)
    found = _Found()
    for element in reader.elements(*_segment(reader)):
        _READERS.get(element.id, _skip)(reader, element, found)
    if not found.kinds or not found.duration > 0:
        raise MergeError(_("the file has no tracks, or no length"))
    tracks = tuple(
        MatroskaTrack(kind, codec, span.count, _seconds(span, found.scale))
        for number, (kind, codec) in sorted(found.kinds.items())
        for span in (found.spans.get(number, _Span()),)
    )
    if not any(track.samples for track in tracks):
        raise MergeError(_("the file has no frames"))
    return Matroska(
        duration_seconds=found.duration * found.scale / _NANOSECONDS,
        tracks=tracks,
        comment=found.comment,
        chapters=found.chapters,
        attachments=found.attachments,
    )


def read_comment(file: BinaryIO, size_bytes: int) -> str:
    """Return the comment tag, or an empty text where there is none; clusters are passed over."""
    reader = _Reader(file, size_bytes)
    found = _Found()
    for element in reader.elements(*_segment(reader)):
        if element.id == _TAGS:
            _read_tags(reader, element, found)
    return found.comment


def _segment(reader: _Reader) -> tuple[int, int]:
    """Return where the one segment begins and stops, which is the end of the file."""
    if reader.read(0, 4) != MAGIC:
        raise MergeError(_("the file does not begin as a Matroska file does"))
    elements = list(reader.elements(0, reader.size_bytes))
    if [element.id for element in elements] != [_EBML, _SEGMENT]:
        raise MergeError(_("the file is not one Matroska segment"))
    return elements[1].body, elements[1].stop


def _seconds(span: _Span, scale: int) -> float:
    if not span.count:
        return 0.0
    between = span.last - span.first
    last = between / (span.count - 1) if span.count > 1 else 0
    return (between + last) * scale / _NANOSECONDS


# ------------------------------------------------------------------------------------------ one element each


def _skip(reader: _Reader, element: _Element, found: _Found) -> None:
    """What nobody asks for: indexes, padding, checksums."""


def _read_info(reader: _Reader, info: _Element, found: _Found) -> None:
    for element in reader.children(info, _SCALE, _DURATION):
        if element.id == _SCALE:
            found.scale = reader.number(element)
        else:
            found.duration = _float(reader.value(element))


def _float(data: bytes) -> float:
    forms = {4: ">f", 8: ">d"}
    return float(struct.unpack(forms[len(data)], data)[0]) if len(data) in forms else 0.0


def _read_tracks(reader: _Reader, tracks: _Element, found: _Found) -> None:
    for track in reader.children(tracks, _TRACK):
        number, kind, codec = 0, 0, ""
        for element in reader.children(track, _NUMBER, _TYPE, _CODEC):
            if element.id == _NUMBER:
                number = reader.number(element)
            elif element.id == _TYPE:
                kind = reader.number(element)
            else:
                codec = reader.value(element).decode("ascii", "replace")
        found.kinds[number] = _KINDS.get(kind, "other"), codec


def _read_cluster(reader: _Reader, cluster: _Element, found: _Found) -> None:
    base = 0
    for element in reader.children(cluster, _TIME, _SIMPLE_BLOCK, _GROUP):
        if element.id == _TIME:
            base = reader.number(element)
        elif element.id == _SIMPLE_BLOCK:
            _count(reader, element, base, found)
        else:
            for block in reader.children(element, _BLOCK):
                _count(reader, block, base, found)


def _count(reader: _Reader, block: _Element, base: int, found: _Found) -> None:
    """Take one frame into account; ffmpeg puts a single one into each block."""
    head = reader.read(block.body, 5)
    if block.stop - block.body < 4 or not head[0] & 0x80:  # more than 127 tracks are nothing of ours
        raise MergeError(_("the block at byte {offset} is damaged").format(offset=block.start))
    span = found.spans.setdefault(head[0] & 0x7F, _Span())
    time = base + int.from_bytes(head[1:3], "big", signed=True)
    span.count += 1
    span.first = min(span.first, time)
    span.last = max(span.last, time)


def _read_chapters(reader: _Reader, chapters: _Element, found: _Found) -> None:
    for edition in reader.children(chapters, _EDITION):
        found.chapters += sum(1 for _chapter in reader.children(edition, _CHAPTER))


def _read_attachments(reader: _Reader, attachments: _Element, found: _Found) -> None:
    found.attachments += sum(1 for _attached in reader.children(attachments, _ATTACHED))


def _read_tags(reader: _Reader, tags: _Element, found: _Found) -> None:
    for tag in reader.children(tags, _TAG):
        for simple in reader.children(tag, _SIMPLE_TAG):
            texts = {
                element.id: reader.value(element).decode("utf-8", "replace").rstrip("\0")
                for element in reader.children(simple, _NAME, _STRING)
            }
            if texts.get(_NAME, "").upper() == "COMMENT" and not found.comment:
                found.comment = texts.get(_STRING, "")


_READERS = {
    _INFO: _read_info,
    _TRACKS: _read_tracks,
    _CLUSTER: _read_cluster,
    _CHAPTERS: _read_chapters,
    _ATTACHMENTS: _read_attachments,
    _TAGS: _read_tags,
}
