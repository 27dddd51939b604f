import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import MergeError
from merging import mp4_boxes
from merging.mp4_boxes import (
    Track,
    check_fragmented,
    check_plain,
    read_comment,
    read_extras,
    read_flv_tracks,
    read_stream,
    read_tracks,
)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


FTYP = box(b"ftyp", b"iso5", numbers(1))


def trak(number: int = 1, handler: bytes = b"vide", codec: bytes = b"avc1", timescale: int = 1000, duration: int = 0,
         stts: tuple[int, ...] = (), version: int = 0) -> bytes:  # fmt: skip
    if version:
        tkhd = full(b"tkhd", bytes(16), numbers(number), bytes(68), version=1)
        mdhd = full(b"mdhd", bytes(16), numbers(timescale), struct.pack(">Q", duration), bytes(4), version=1)
    else:
        tkhd = full(b"tkhd", bytes(8), numbers(number), bytes(68))
        mdhd = full(b"mdhd", bytes(8), numbers(timescale, duration), bytes(4))
    hdlr = full(b"hdlr", bytes(4), handler, bytes(13))
    stsd = full(b"stsd", numbers(1), box(codec, bytes(70)))
    table = full(b"stts", numbers(len(stts) // 2, *stts))
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, box(b"minf", box(b"stbl", stsd, table))))


def plain(*traks: bytes, extra: bytes = b"") -> bytes:
    return FTYP + box(b"moov", full(b"mvhd", bytes(96)), *traks, extra) + box(b"mdat", b"media")


def fragment(duration: int, samples: int = 1, number: int = 1, media: bytes = b"media") -> bytes:
    tfhd = full(b"tfhd", numbers(number, duration), flags=0x8)
    trun = full(b"trun", numbers(samples))
    return box(b"moof", full(b"mfhd", numbers(1)), box(b"traf", tfhd, trun)) + box(b"mdat", media)


def sidx(
    *fragments: bytes, number: int = 1, durations: tuple[int, ...] = (), first: int = 0, version: int = 0
) -> bytes:
    head = struct.pack(">IIIIHH" if not version else ">IIQQHH", number, 1000, 0, first, 0, len(fragments))
    steps = durations or (2000,) * len(fragments)
    return full(
        b"sidx",
        head,
        *(numbers(len(data), step, 0x90000000) for data, step in zip(fragments, steps, strict=True)),
        version=version,
    )


MOOV = box(
    b"moov", full(b"mvhd", bytes(96)), trak(), box(b"mvex", full(b"trex", numbers(1, 1, 500, 0, 0)))
)  # fmt: skip
FRAGMENTS = (fragment(2000), fragment(1000, 2), fragment(500, 4, media=b"the last one"))
DASH = FTYP + MOOV + sidx(*FRAGMENTS) + b"".join(FRAGMENTS)


def check(data: bytes) -> None:
    check_fragmented(io.BytesIO(data), len(data))


def tracks(data: bytes) -> tuple[Track, ...]:
    return read_tracks(io.BytesIO(data), len(data))


def test_a_whole_stream_passes_with_and_without_an_index() -> None:
    check(DASH)
    check(FTYP + MOOV + b"".join(FRAGMENTS))
    check(FTYP + MOOV + sidx(*FRAGMENTS, version=1) + b"".join(FRAGMENTS))


def test_an_index_for_each_fragment_and_boxes_between_pass() -> None:
    each = b"".join(box(b"styp", b"msdh") + sidx(data) + data for data in FRAGMENTS)
    check(FTYP + MOOV + each)
    check(FTYP + MOOV + sidx(*FRAGMENTS, first=16) + box(b"free", bytes(8)) + b"".join(FRAGMENTS))
    check(DASH + box(b"mfra", bytes(8)))


@pytest.mark.parametrize("cut", [1, 2, 7, 8, 9, len(FRAGMENTS[2]), len(FRAGMENTS[1] + FRAGMENTS[2])])
def test_a_cut_at_any_place_is_found(cut: int) -> None:
    with pytest.raises(MergeError):
        check(DASH[:-cut])


def test_every_single_cut_is_found() -> None:
    for stop in range(len(DASH)):
        with pytest.raises(MergeError):
            check(DASH[:stop])


@pytest.mark.parametrize("form", [(">I", 0), (">Q", 1)])
def test_fragments_out_of_order_are_found_though_their_sizes_fit(form: tuple[str, int]) -> None:
    def timed(time: int, number: int = 1) -> bytes:
        tfdt = full(b"tfdt", struct.pack(form[0], time), version=form[1])
        traf = box(b"traf", full(b"tfhd", numbers(number)), tfdt, full(b"trun", numbers(1)))
        return box(b"moof", full(b"mfhd", numbers(1)), traf) + box(b"mdat", b"media")

    good = (timed(0), timed(0, 2), timed(500), timed(500, 2), timed(500))
    check(FTYP + MOOV + sidx(*good) + b"".join(good))
    bad = (timed(0), timed(1000), timed(500))
    with pytest.raises(MergeError, match="out of order"):
        check(FTYP + MOOV + sidx(*bad) + b"".join(bad))


def test_what_is_wrong_is_named_with_its_offset() -> None:
    start = len(FTYP + MOOV + sidx(*FRAGMENTS))
    hole = DASH[:start] + bytes(200) + DASH[start + 200 :]
    with pytest.raises(MergeError, match=f"byte {start} has the impossible size 0"):
        check(hole)
    with pytest.raises(MergeError, match="runs past the end, by 1 bytes"):
        check(DASH[:-1])
    with pytest.raises(MergeError, match=f"{len(FRAGMENTS[2])} bytes are missing"):
        check(DASH[: -len(FRAGMENTS[2])])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html>412</html>",
        b'{"code":-412,"message":"request was banned"}',
        b"#EXTM3U\nfile:///etc/passwd\n",
        MOOV + b"".join(FRAGMENTS),
        FTYP,
        FTYP + MOOV,
        FTYP + FRAGMENTS[0] + MOOV,
        FTYP + MOOV + box(b"mdat", b"x"),
        FTYP + MOOV + FRAGMENTS[0][: FRAGMENTS[0].index(b"mdat") - 4],
        FTYP + MOOV + FRAGMENTS[0][: FRAGMENTS[0].index(b"mdat") - 4] + FRAGMENTS[1],
        FTYP + MOOV + FRAGMENTS[0] + FRAGMENTS[1][: FRAGMENTS[1].index(b"mdat") - 4],
        FTYP + MOOV + FRAGMENTS[0] + FRAGMENTS[1][: FRAGMENTS[1].index(b"mdat") - 4] + FRAGMENTS[2],
        DASH + FRAGMENTS[0],
        FTYP + MOOV + sidx(*FRAGMENTS) + FRAGMENTS[1] + FRAGMENTS[0] + FRAGMENTS[2] + b"\0\0\0\0mdat",
        FTYP + MOOV + sidx(FRAGMENTS[0][1:], FRAGMENTS[1] + b".") + FRAGMENTS[0] + FRAGMENTS[1],
        FTYP + MOOV + sidx(FRAGMENTS[0], FRAGMENTS[1] + b".") + FRAGMENTS[0] + FRAGMENTS[1],
        FTYP + struct.pack(">I4sQ", 1, b"moov", 2**63) + MOOV,
        FTYP + struct.pack(">I4sQ", 1, b"moov", 8) + MOOV,
    ],
)
def test_what_is_no_whole_stream_is_refused(data: bytes) -> None:
    with pytest.raises(MergeError):
        check(data)


def test_long_sizes_are_read() -> None:
    media = struct.pack(">I4sQ", 1, b"mdat", 21) + b"media"
    data = FTYP + box(b"moov", trak(duration=5000)) + media
    check_plain(io.BytesIO(data), len(data))
    assert tracks(data)[0].duration_seconds == 5


@pytest.mark.parametrize("missing", [b"moov", b"mdat"])
def test_a_plain_file_needs_headers_and_media(missing: bytes) -> None:
    data = plain(trak()).replace(missing, b"free")
    with pytest.raises(MergeError, match="no box"):
        check_plain(io.BytesIO(data), len(data))


def test_tracks_of_a_plain_file() -> None:
    data = plain(
        trak(1, duration=60000),
        trak(2, b"soun", b"mp4a", 44100, 44100 * 59, version=1),
        trak(3, b"text", b"tx3g"),
        trak(4, b"soun", b"fLaC", 48000, 0xFFFFFFFF, (10, 4096, 1, 7040)),
    )
    assert tracks(data) == (Track("video", 60, "avc1"), Track("audio", 59, "mp4a"), Track("audio", 1, "fLaC"))


def test_tracks_of_a_fragmented_file_come_from_the_index_or_the_samples() -> None:
    assert tracks(DASH) == (Track("video", 6, "avc1"),)
    assert tracks(FTYP + MOOV + b"".join(FRAGMENTS)) == (Track("video", 6, "avc1"),)
    trun = full(b"trun", numbers(3, 0, 100, 1, 1, 200, 1, 1, 300, 1, 1), flags=0xB01)
    each = box(b"moof", box(b"traf", full(b"tfhd", numbers(1)), trun)) + box(b"mdat")
    by_default = box(b"moof", box(b"traf", full(b"tfhd", numbers(1)), full(b"trun", numbers(7)))) + box(b"mdat")
    assert tracks(FTYP + MOOV + each + by_default) == (Track("video", 0.6 + 3.5, "avc1"),)
    tfhd = full(b"tfhd", numbers(1, 0, 77, 88, 250), flags=0x1 | 0x2 | 0x8)
    placed = box(b"moof", box(b"traf", tfhd, full(b"trun", numbers(4)))) + box(b"mdat")
    assert tracks(FTYP + MOOV + placed) == (Track("video", 1, "avc1"),)


def test_the_comment_is_read_in_both_dialects() -> None:
    item = box(
        b"ilst", box(b"\xa9nam", box(b"data", bytes(8), b"x")), box(b"\xa9cmt", box(b"data", bytes(8), "页".encode()))
    )
    hdlr = full(b"hdlr", bytes(20))
    for meta in (full(b"meta", hdlr, item), box(b"meta", hdlr, item)):
        data = plain(trak(), extra=box(b"udta", meta))
        assert read_comment(io.BytesIO(data), len(data)) == "页"
    for extra in (b"", box(b"udta"), box(b"udta", full(b"meta", hdlr, box(b"ilst")))):
        data = plain(trak(), extra=extra)
        assert read_comment(io.BytesIO(data), len(data)) == ""


def mutations() -> st.SearchStrategy[bytes]:
    comment = box(
        b"udta", full(b"meta", full(b"hdlr", bytes(20)), box(b"ilst", box(b"\xa9cmt", box(b"data", bytes(8)))))
    )
    bases = st.sampled_from([DASH, plain(trak(1), trak(2, b"soun", stts=(5, 9)), extra=comment), flv()])
    patches = st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), max_size=6)
    return st.builds(patched, bases, patches)


def patched(data: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    for at, patch in patches:
        at %= len(data)
        data = data[:at] + patch + data[at + len(patch) :]
    return data


def flv(*, trailer: bool = True) -> bytes:
    data = b"FLV\x01\x05" + numbers(9, 0)
    for milliseconds in range(0, 2001, 40):
        for kind, first in ((9, 0x17), (8, 0xAF)):
            data += (
                struct.pack(">I", kind << 24 | 5)
                + milliseconds.to_bytes(3, "big")
                + bytes(4)
                + bytes([first])
                + b"abcd"
            )
            data += numbers(16)
    return data if trailer else data[:-4]


@settings(max_examples=400, deadline=None)
@given(st.one_of(mutations(), st.binary(max_size=400), st.binary(max_size=60).map(lambda rest: FTYP + MOOV + rest)))
def test_hostile_bytes_raise_nothing_but_merge_errors(data: bytes) -> None:
    for read in (check_fragmented, check_plain, read_tracks, read_stream, read_comment, read_extras, read_flv_tracks):
        try:
            read(io.BytesIO(data), len(data))
        except MergeError as error:
            assert str(error)


class Zeros(io.RawIOBase):
    """A huge sparse file: a start, then one pattern for ever."""

    def __init__(self, start: bytes, pattern: bytes) -> None:
        self.start, self.pattern, self.at, self.reads = start, pattern, 0, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset
        return offset

    def read(self, length: int = -1) -> bytes:
        self.reads += 1
        assert 0 <= length <= mp4_boxes.MAX_READ_BYTES
        at = max(self.at - len(self.start), 0)
        turns = self.pattern * (length // len(self.pattern) + 2)
        tail = turns[at % len(self.pattern) :]
        return (self.start[self.at :] + tail)[:length]


@pytest.mark.parametrize("start", [FTYP + MOOV, struct.pack(">I4sI", 0x7FFFFFFF, b"moov", 0)])
def test_endless_small_boxes_end_in_an_error(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mp4_boxes.MAX_BOXES <= 500_000  # some seconds
    monkeypatch.setattr(mp4_boxes, "MAX_BOXES", 5000)
    file = Zeros(start, struct.pack(">I4s", 8, b"free"))
    for read in (check_fragmented, read_tracks, read_comment):
        with pytest.raises(MergeError):
            read(file, 1 << 40)  # type: ignore[arg-type]
    assert file.reads <= 3 * (mp4_boxes.MAX_BOXES + 10)


def test_huge_counts_are_not_believed() -> None:
    trun = full(b"trun", numbers(0xFFFFFFFF), flags=0x100)
    data = FTYP + MOOV + box(b"moof", box(b"traf", full(b"tfhd", numbers(1)), trun)) + box(b"mdat")
    with pytest.raises(MergeError):
        tracks(data)
    with pytest.raises(MergeError):
        tracks(plain(trak(duration=0).replace(full(b"stts", numbers(0)), full(b"stts", numbers(0xFFFFFFFF)))))
    with pytest.raises(MergeError):
        tracks(plain(*[trak()] * 65))
    with pytest.raises(MergeError):
        tracks(plain(trak(timescale=0)))


def test_flv_tracks() -> None:
    expected = (Track("video", 2, "avc1"), Track("audio", 2, "mp4a"))
    for data in (flv(), flv(trailer=False)):
        assert read_flv_tracks(io.BytesIO(data), len(data)) == expected


@pytest.mark.parametrize("cut", [cut for cut in range(1, 44) if cut not in (4, 20, 24, 40)])  # those are between tags
def test_a_cut_flv_is_found(cut: int) -> None:
    data = flv()[:-cut]
    with pytest.raises(MergeError):
        read_flv_tracks(io.BytesIO(data), len(data))


@pytest.mark.parametrize("data", [b"", b"FLV", b"<html>", FTYP, flv()[:9] + bytes(300)])
def test_what_is_no_flv_is_refused(data: bytes) -> None:
    with pytest.raises(MergeError):
        read_flv_tracks(io.BytesIO(data), len(data))


def test_timestamps_of_flv_over_four_hours() -> None:
    late = struct.pack(">I", 9 << 24 | 1) + b"\x00\x00\x00\x01" + bytes(3) + b"\x17" + numbers(12)
    data = flv() + late
    assert read_flv_tracks(io.BytesIO(data), len(data))[0].duration_seconds == pytest.approx(0x1000000 / 1000)


def test_the_walk_reads_headers_only() -> None:
    class Counting(io.BytesIO):
        bytes_read = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.bytes_read += len(data)
            return data

    fragments = tuple(fragment(2000, media=bytes(500_000)) for _ in range(40))
    data = FTYP + MOOV + sidx(*fragments) + b"".join(fragments)
    file = Counting(data)
    check_fragmented(file, len(data))
    read_tracks(file, len(data))
    assert file.bytes_read < 20_000
