"""What the boxes of an MP4 file, and the tags of an FLV file, tell about it, read without ffmpeg.

ffmpeg ends with exit status 0 on inputs that lack their end, a fragment or a piece in the middle; the boxes show it.
The files come from outside: every size is checked before it is used, reads and the number of boxes are bounded, and
whatever is wrong is a MergeError that names the offset. Only headers are read; the media between them is skipped.
Sources: ISO/IEC 14496-12 (boxes), Adobe's Video File Format Specification 10.1 (FLV).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from errors import MergeError
from i18n import _

MAX_BOXES = 500_000
"""A film of ten hours in one-second fragments has 72 000 boxes at the top and four times as many inside."""

MAX_READ_BYTES = 32 * 1024 * 1024
"""No table that is read whole may be larger."""

WINDOW_BYTES = 4096
"""How much of a box is read at once whose inside is looked at: the headers of a fragment, mostly."""

MAX_TRACKS = 64
MAX_FLV_TAGS = 4_000_000


@dataclass(frozen=True, slots=True)
class Track:
    """One track: ``kind`` is ``"video"`` or ``"audio"``, ``codec`` the fourcc of its samples (``avc1``, ``mp4a``…)."""

    kind: str
    duration_seconds: float
    codec: str
    configuration: bytes = field(default=b"", repr=False, compare=False)
    """What a decoder must know before the first sample (avcC, hvcC); empty where that is unknown."""
    samples: int = field(default=0, compare=False)
    """How many frames it has; 0 where that is unknown."""


class _Box(NamedTuple):
    kind: bytes
    start: int
    body: int
    stop: int


class _Movie(NamedTuple):
    """A track as its headers in moov describe it, before its duration is known."""

    number: int
    kind: str
    codec: str
    timescale: int
    duration: int
    samples: _Box | None
    sizes: _Box | None
    configuration: bytes


class _Reader:
    """Reads boxes and fields of one file, and counts both so that no input can keep it busy for long."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._boxes_left = MAX_BOXES
        self._window, self._window_start = b"", 0
        self.size_bytes = size_bytes

    def read(self, offset: int, length: int, ahead: int = 0) -> bytes:
        """Return exactly ``length`` bytes at ``offset``; up to ``ahead`` bytes are read for what is asked next."""
        if length > MAX_READ_BYTES:
            raise MergeError(_("the table at byte {offset} is too large").format(offset=offset))
        at = offset - self._window_start
        if at < 0 or at + length > len(self._window):
            self._file.seek(offset)
            self._window, self._window_start = self._file.read(max(length, ahead)), offset
            at = 0
        data = self._window[at : at + length]
        if len(data) != length:
            raise MergeError(_("the file ends early, at byte {offset}").format(offset=offset + len(data)))
        return data

    def field(self, box: _Box, at: int, length: int) -> bytes:
        """Return ``length`` bytes at ``at`` in the body of ``box``, which must hold them."""
        if box.body + at + length > box.stop:
            raise MergeError(
                _("the box {kind} at byte {offset} is too short").format(kind=_name(box.kind), offset=box.start)
            )
        return self.read(box.body + at, length)

    def boxes(self, start: int, stop: int, ahead: int = 0) -> Iterator[_Box]:
        """Yield the boxes that fill ``[start, stop)`` exactly."""
        while start < stop:
            box = self._box(start, stop, ahead)
            yield box
            start = box.stop

    def children(self, box: _Box, *kinds: bytes, skip: int = 0) -> Iterator[_Box]:
        """Yield the boxes of these kinds inside ``box``, after ``skip`` bytes of its own fields."""
        inside = self.boxes(box.body + skip, box.stop, WINDOW_BYTES)
        return (child for child in inside if child.kind in kinds)

    def child(self, box: _Box, kind: bytes) -> _Box:
        """Return the first box of that kind inside ``box``, which must have one."""
        found = next(self.children(box, kind), None)
        if found is None:
            raise MergeError(
                _("the box {outer} at byte {offset} has no {kind}").format(
                    outer=_name(box.kind), offset=box.start, kind=_name(kind)
                )
            )
        return found

    def _box(self, start: int, stop: int, ahead: int) -> _Box:
        self._boxes_left -= 1
        if self._boxes_left < 0:
            raise MergeError(_("too many boxes, up to byte {offset}").format(offset=start))
        if stop - start < 8:
            raise MergeError(_("cut off inside a box's header, at byte {offset}").format(offset=start))
        head = self.read(start, min(16, stop - start), min(ahead, stop - start))
        size, kind = struct.unpack_from(">I4s", head)
        header = 8
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack_from(">Q", head, 8)
            header = 16
        if size < header:  # 0 would mean "to the end of the file": what a hole of zeros looks like
            raise MergeError(
                _("the box at byte {offset} has the impossible size {size}").format(offset=start, size=size)
            )
        if not kind.isalnum() and not all(0x20 <= byte < 0x7F or byte == 0xA9 for byte in kind):
            raise MergeError(_("no box begins at byte {offset}").format(offset=start))
        if start + size > stop:
            raise MergeError(
                _("the box {kind} at byte {offset} runs past the end, by {bytes} bytes").format(
                    kind=_name(kind), offset=start, bytes=start + size - stop
                )
            )
        return _Box(kind, start, start + header, start + size)


def _name(kind: bytes) -> str:
    return kind.decode("latin-1")


# ------------------------------------------------------------------------------------------ whole files


def check_plain(file: BinaryIO, size_bytes: int) -> None:
    """Raise MergeError unless the file is boxes from its first to its last byte, with ftyp, moov and mdat."""
    _check_plain(_opened(_Reader(file, size_bytes)))


def _check_plain(boxes: list[_Box]) -> None:
    kinds = {box.kind for box in boxes}
    for kind in (b"moov", b"mdat"):
        if kind not in kinds:
            raise MergeError(_("the file has no box {kind}").format(kind=_name(kind)))


def read_stream(file: BinaryIO, size_bytes: int) -> tuple[Track, ...]:
    """Return the tracks of a whole MP4, fragmented as DASH streams are, or plain as some hosts serve.

    Raise MergeError unless it is whole: see ``check_fragmented`` and ``check_plain``. It is walked once for both.
    """
    reader = _Reader(file, size_bytes)
    boxes = _opened(reader)
    if any(box.kind in (b"moof", b"sidx") for box in boxes):
        _check_fragmented(reader, boxes)
    else:
        _check_plain(boxes)
    return _read_tracks(_Reader(file, size_bytes), boxes)


def check_fragmented(file: BinaryIO, size_bytes: int) -> None:
    """Raise MergeError unless the file is a whole fragmented MP4, as DASH streams are.

    Boxes fill the file; ftyp is the first; moov comes before the fragments; each moof is followed by its mdat; the
    fragments follow each other in time (tfdt); each sidx points at beginnings of boxes, and after the last byte that a
    sidx counts there is no more media. Damage inside one mdat does not show.
    """
    reader = _Reader(file, size_bytes)
    _check_fragmented(reader, _opened(reader))


def _check_fragmented(reader: _Reader, boxes: list[_Box]) -> None:
    _check_fragments(boxes)
    _check_order(reader, boxes)
    indexes = [box for box in boxes if box.kind == b"sidx"]
    if not indexes:
        return
    borders = {box.start for box in boxes} | {reader.size_bytes}
    last = max(_check_index(reader, box, borders) for box in indexes)
    for box in boxes:
        if box.start >= last and box.kind in (b"moof", b"mdat"):
            raise MergeError(_("the index (sidx) knows nothing of the media at byte {offset}").format(offset=box.start))


def _opened(reader: _Reader) -> list[_Box]:
    if reader.size_bytes == 0:
        raise MergeError(_("the file is empty"))
    boxes: list[_Box] = []
    for box in reader.boxes(0, reader.size_bytes):
        if not boxes and box.kind != b"ftyp":
            raise MergeError(_("the file does not begin as an MP4 file does: {kind}").format(kind=_name(box.kind)))
        boxes.append(box)
    return boxes


def _check_fragments(boxes: list[_Box]) -> None:
    seen = set()
    waiting: _Box | None = None
    for box in boxes:
        if box.kind == b"moof":
            if b"moov" not in seen:
                raise MergeError(_("the fragment at byte {offset} has no moov before it").format(offset=box.start))
            if waiting:
                break
            waiting = box
        elif box.kind == b"mdat":
            if b"moof" not in seen:
                raise MergeError(_("the mdat at byte {offset} has no moof before it").format(offset=box.start))
            waiting = None
        seen.add(box.kind)
    if waiting:
        raise MergeError(_("the moof at byte {offset} has no mdat behind it").format(offset=waiting.start))
    if not {b"moov", b"mdat"} <= seen:
        raise MergeError(_("the file has no media: it ends at byte {offset}").format(offset=boxes[-1].stop))


def _check_order(reader: _Reader, boxes: list[_Box]) -> None:
    times: dict[int, int] = {}
    for moof in boxes:
        if moof.kind == b"moof":
            for traf in reader.children(moof, b"traf"):
                headers = list(reader.children(traf, b"tfhd", b"tfdt"))
                tfhd = next((box for box in headers if box.kind == b"tfhd"), None) or reader.child(traf, b"tfhd")
                (number,) = struct.unpack(">I", reader.field(tfhd, 4, 4))
                for tfdt in (box for box in headers if box.kind == b"tfdt"):
                    form = ">Q" if reader.field(tfdt, 0, 1)[0] else ">I"
                    (decode_time,) = struct.unpack(form, reader.field(tfdt, 4, struct.calcsize(form)))
                    if decode_time < times.get(number, 0):
                        raise MergeError(
                            _("the fragment at byte {offset} is out of order in time").format(offset=moof.start)
                        )
                    times[number] = decode_time


class _Index(NamedTuple):
    number: int
    timescale: int
    first: int
    entries: tuple[tuple[int, int, int], ...]
    """Each is: the bytes it covers with the type in the top bit, its duration, and where it can be entered."""


def _read_index(reader: _Reader, box: _Box) -> _Index:
    version = reader.field(box, 0, 1)[0]
    form = ">IIIIHH" if version == 0 else ">IIQQHH"
    number, timescale, _earliest, first, _reserved, count = struct.unpack(
        form, reader.field(box, 4, struct.calcsize(form))
    )
    if timescale == 0:
        raise MergeError(_("the timescale at byte {offset} is 0").format(offset=box.start))
    data = reader.field(box, 4 + struct.calcsize(form), 12 * count)
    return _Index(number, timescale, first, tuple(struct.iter_unpack(">III", data)))


def _check_index(reader: _Reader, box: _Box, borders: set[int]) -> int:
    index = _read_index(reader, box)
    offset = box.stop + index.first
    for size, _duration, _access in index.entries:
        if offset not in borders:
            raise MergeError(_("by the index (sidx) a box should begin at byte {offset}").format(offset=offset))
        offset += size & 0x7FFFFFFF
    if offset > reader.size_bytes:
        raise MergeError(
            _("{bytes} bytes are missing at the end, by the index (sidx)").format(bytes=offset - reader.size_bytes)
        )
    if offset not in borders:
        raise MergeError(_("by the index (sidx) a box should begin at byte {offset}").format(offset=offset))
    return offset


# ------------------------------------------------------------------------------------------ tracks


def read_tracks(file: BinaryIO, size_bytes: int) -> tuple[Track, ...]:
    """Return the video and audio tracks of a plain or fragmented MP4, in the order of the file.

    The duration is that of the track's own samples (edit lists do not count). A fragmented track's comes from its
    sidx, or without one from the samples of each fragment.
    """
    reader = _Reader(file, size_bytes)
    return _read_tracks(reader, _opened(reader))


def _read_tracks(reader: _Reader, boxes: list[_Box]) -> tuple[Track, ...]:
    moov = next((box for box in boxes if box.kind == b"moov"), None)
    if moov is None:
        raise MergeError(_("the file has no box {kind}").format(kind="moov"))
    movies = [movie for trak in _traks(reader, moov) if (movie := _read_trak(reader, trak))]
    extends = next(reader.children(moov, b"mvex"), None)
    if extends is None:
        durations = [_plain_duration(reader, movie) for movie in movies]
    else:
        durations = _fragmented_durations(reader, boxes, extends, movies)
    counts = _fragmented_counts(reader, boxes)
    return tuple(
        Track(
            *(movie.kind, duration / movie.timescale, movie.codec, movie.configuration),
            samples=_plain_count(reader, movie) + counts.get(movie.number, 0),
        )
        for movie, duration in zip(movies, durations, strict=True)
    )


def _plain_count(reader: _Reader, movie: _Movie) -> int:
    return int.from_bytes(reader.field(movie.sizes, 8, 4), "big") if movie.sizes else 0


def _fragmented_counts(reader: _Reader, boxes: list[_Box]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for moof in (box for box in boxes if box.kind == b"moof"):
        for traf in reader.children(moof, b"traf"):
            number = 0
            for box in reader.children(traf, b"tfhd", b"trun"):
                value = int.from_bytes(reader.field(box, 4, 4), "big")
                if box.kind == b"tfhd":  # it is the first one inside
                    number = value
                else:
                    counts[number] = counts.get(number, 0) + value
    return counts


def _traks(reader: _Reader, moov: _Box) -> list[_Box]:
    traks = list(reader.children(moov, b"trak"))
    if len(traks) > MAX_TRACKS:
        raise MergeError(_("the file has {count} tracks").format(count=len(traks)))
    return traks


def _read_trak(reader: _Reader, trak: _Box) -> _Movie | None:
    mdia = reader.child(trak, b"mdia")
    handler = reader.field(reader.child(mdia, b"hdlr"), 8, 4)
    kind = {b"vide": "video", b"soun": "audio"}.get(handler)
    if kind is None:
        return None
    tkhd = reader.child(trak, b"tkhd")
    (number,) = struct.unpack(">I", reader.field(tkhd, 20 if reader.field(tkhd, 0, 1)[0] else 12, 4))
    mdhd = reader.child(mdia, b"mdhd")
    form, at = (">IQ", 20) if reader.field(mdhd, 0, 1)[0] else (">II", 12)
    timescale, duration = struct.unpack(form, reader.field(mdhd, at, struct.calcsize(form)))
    if timescale == 0:
        raise MergeError(_("the timescale at byte {offset} is 0").format(offset=mdhd.start))
    table = reader.child(reader.child(mdia, b"minf"), b"stbl")
    stsd = reader.child(table, b"stsd")
    codec = reader.field(stsd, 12, 4)
    unknown = duration in (0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
    samples = next(reader.children(table, b"stts"), None)
    sizes = next(reader.children(table, b"stsz", b"stz2"), None)
    return _Movie(
        number, kind, _name(codec), timescale, 0 if unknown else duration, samples, sizes, _configuration(reader, stsd)
    )


def _configuration(reader: _Reader, stsd: _Box) -> bytes:
    entry = reader.field(stsd, 0, stsd.stop - stsd.body)
    for kind in (b"avcC", b"hvcC"):
        at = entry.find(kind)
        if at >= 4:
            return entry[at : at - 4 + int.from_bytes(entry[at - 4 : at], "big")]
    return b""


def _plain_duration(reader: _Reader, movie: _Movie) -> float:
    if movie.duration or movie.samples is None:
        return movie.duration
    (count,) = struct.unpack(">I", reader.field(movie.samples, 4, 4))
    numbers = _numbers(reader.field(movie.samples, 8, 8 * count))
    return sum(samples * delta for samples, delta in zip(numbers[0::2], numbers[1::2], strict=True))


def _numbers(data: bytes) -> array[int]:
    """Return big-endian 32-bit numbers; an array is a hundred times quicker to sum than single fields."""
    numbers = array("I", data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _fragmented_durations(reader: _Reader, boxes: list[_Box], extends: _Box, movies: list[_Movie]) -> list[float]:
    scales = {movie.number: movie.timescale for movie in movies}
    indexed: dict[int, float] = {}
    for box in boxes:
        if box.kind == b"sidx":
            index = _read_index(reader, box)
            if index.number in scales and not any(size >> 31 for size, _duration, _access in index.entries):
                seconds = sum(duration for _size, duration, _access in index.entries) / index.timescale
                indexed[index.number] = indexed.get(index.number, 0.0) + seconds * scales[index.number]
    if indexed.keys() == scales.keys():
        return [indexed[movie.number] for movie in movies]
    counted = _counted_durations(reader, boxes, extends)
    return [float(counted.get(movie.number, 0)) for movie in movies]


def _counted_durations(reader: _Reader, boxes: list[_Box], extends: _Box) -> dict[int, int]:
    defaults = {}
    for trex in reader.children(extends, b"trex"):
        number, _description, default = struct.unpack(">III", reader.field(trex, 4, 12))
        defaults[number] = default
    durations: dict[int, int] = {}
    for moof in boxes:
        if moof.kind == b"moof":
            for traf in reader.children(moof, b"traf"):
                number, duration = _fragment_duration(reader, traf, defaults)
                durations[number] = durations.get(number, 0) + duration
    return durations


def _fragment_duration(reader: _Reader, traf: _Box, defaults: dict[int, int]) -> tuple[int, int]:
    tfhd = reader.child(traf, b"tfhd")
    flags, number = struct.unpack(">II", reader.field(tfhd, 0, 8))
    default = defaults.get(number, 0)
    if flags & 0x8:
        at = 8 + (8 if flags & 0x1 else 0) + (4 if flags & 0x2 else 0)
        (default,) = struct.unpack(">I", reader.field(tfhd, at, 4))
    return number, sum(_run_duration(reader, trun, default) for trun in reader.children(traf, b"trun"))


def _run_duration(reader: _Reader, trun: _Box, default: int) -> int:
    flags, count = struct.unpack(">II", reader.field(trun, 0, 8))
    if not flags & 0x100:
        return int(count * default)
    fields = (flags >> 8 & 0xF).bit_count()  # each sample has its duration, then size, flags and time offset if said
    at = 8 + (4 if flags & 0x1 else 0) + (4 if flags & 0x4 else 0)
    return sum(_numbers(reader.field(trun, at, 4 * fields * count))[::fields])


# ------------------------------------------------------------------------------------------ the comment


def read_comment(file: BinaryIO, size_bytes: int) -> str:
    """Return the comment tag (``©cmt`` in moov/udta/meta/ilst), or an empty text where there is none."""
    reader = _Reader(file, size_bytes)
    box = _inside(reader, _moov(reader), b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")
    if box is None:
        return ""
    return reader.field(box, 8, min(max(box.stop - box.body - 8, 0), 65536)).decode("utf-8", "replace")


def _moov(reader: _Reader) -> _Box | None:
    return next((box for box in _opened(reader) if box.kind == b"moov"), None)


def _inside(reader: _Reader, box: _Box | None, *kinds: bytes) -> _Box | None:
    """Return the first box on a path of kinds inside ``box``, None where there is none."""
    for kind in kinds:
        if box is None:
            return None
        box = next(reader.children(box, kind, skip=_own_fields(reader, box)), None)
    return box


@dataclass(frozen=True, slots=True)
class Extras:
    """What a file has beside its picture and its sound."""

    subtitles: int
    chapters: int
    has_cover: bool


def read_extras(file: BinaryIO, size_bytes: int) -> Extras:
    """Return what stands beside the streams of a plain MP4: subtitle tracks, chapters (chpl), a cover (covr)."""
    reader = _Reader(file, size_bytes)
    moov = _moov(reader)
    if moov is None:
        return Extras(0, 0, False)
    handlers = [reader.field(reader.child(reader.child(trak, b"mdia"), b"hdlr"), 8, 4) for trak in _traks(reader, moov)]
    chapters = _inside(reader, moov, b"udta", b"chpl")
    return Extras(
        subtitles=handlers.count(b"sbtl"),
        chapters=reader.field(chapters, 8, 1)[0] if chapters else 0,
        has_cover=_inside(reader, moov, b"udta", b"meta", b"ilst", b"covr") is not None,
    )


def _own_fields(reader: _Reader, box: _Box) -> int:
    """Return the bytes before the children: in MP4 a meta box has a version and flags, in QuickTime it has none."""
    if box.kind != b"meta" or reader.field(box, 4, 4) == b"hdlr":
        return 0
    return 4


# ------------------------------------------------------------------------------------------ FLV


_FLV_VIDEO = {7: "avc1", 12: "hvc1"}
_FLV_AUDIO = {2: "mp3 ", 10: "mp4a"}


def read_flv_tracks(file: BinaryIO, size_bytes: int) -> tuple[Track, ...]:
    """Return the tracks of an FLV file; raise MergeError unless its tags lead exactly to its end.

    The last tag's own duration is not known, so that a track may be one frame longer than is said here.
    """
    head = file.read(9) if file.seek(0) == 0 else b""
    if len(head) < 9 or head[:3] != b"FLV":
        raise MergeError(_("the file does not begin as an FLV file does"))
    (offset,) = struct.unpack(">I", head[5:9])
    spans: dict[int, tuple[int, int, int]] = {}
    configuration = b""
    tags = 0
    offset += 4
    while offset < size_bytes:
        file.seek(offset)
        tag = file.read(12)
        kind = tag[0] & 0x1F if len(tag) == 12 else 0
        stop = offset + 11 + int.from_bytes(tag[1:4], "big")
        tags += 1
        if kind not in (8, 9, 18) or stop > size_bytes or tags > MAX_FLV_TAGS:
            raise MergeError(_("the tag at byte {offset} is cut off or none").format(offset=offset))
        if kind == 9 and 9 not in spans:  # the first tag of a picture track is its sequence header
            file.seek(offset + 11)
            configuration = file.read(min(stop - offset - 11, 4096))
        milliseconds = int.from_bytes(tag[4:7], "big") | tag[7] << 24
        first, _last, codec = spans.get(kind, (milliseconds, 0, tag[11]))
        spans[kind] = first, milliseconds, codec
        offset = stop + 4
    if offset not in (size_bytes, size_bytes + 4):  # some writers leave the size behind the last tag out
        raise MergeError(_("the file ends early, at byte {offset}").format(offset=size_bytes))
    return tuple(
        Track(
            kind,
            (last - first) / 1000,
            names.get(codec & 0xF if number == 9 else codec >> 4, ""),
            configuration if number == 9 else b"",
        )
        for number, kind, names in ((9, "video", _FLV_VIDEO), (8, "audio", _FLV_AUDIO))
        if number in spans
        for first, last, codec in (spans[number],)
    )
