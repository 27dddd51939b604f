"""What is read of Matroska files: whole ones that ffmpeg made, and damaged ones."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import imageio_ffmpeg
import pytest
from hypothesis import given, settings

from errors import MergeError
from merging import matroska
from merging.matroska import read_comment, read_matroska

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SECONDS = 8


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A film of eight seconds with sound, a chapter, an attachment and a comment."""
    folder = tmp_path_factory.mktemp("matroska")
    (folder / "chapters").write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=4\ntitle=one\n")
    (folder / "note.txt").write_text("attached")
    command = [FFMPEG, "-hide_banner", "-nostdin", "-loglevel", "error", "-y"]
    command += ["-f", "lavfi", "-i", f"testsrc2=s=160x90:r=25:d={SECONDS}", "-f", "lavfi", "-i", f"sine=d={SECONDS}"]
    command += ["-f", "ffmetadata", "-i", str(folder / "chapters"), "-map_chapters", "2", "-map", "0:v", "-map", "1:a"]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "25", "-c:a", "aac"]
    command += ["-attach", str(folder / "note.txt"), "-metadata:s:t", "mimetype=text/plain"]
    command += ["-metadata", "comment=https://a/ cid=7", str(folder / "whole.mkv")]
    subprocess.run(command, check=True)
    return (folder / "whole.mkv").read_bytes()


def read(data: bytes, how: Callable[..., object] = read_matroska) -> object:
    return how(io.BytesIO(data), len(data))


def test_a_whole_file_says_what_it_holds(whole: bytes) -> None:
    found = read_matroska(io.BytesIO(whole), len(whole))
    assert found.duration_seconds == pytest.approx(SECONDS, abs=0.1)
    assert [(track.kind, track.codec) for track in found.tracks] == [("video", "V_MPEG4/ISO/AVC"), ("audio", "A_AAC")]
    assert found.tracks[0].samples == SECONDS * 25
    assert abs(found.tracks[1].samples - SECONDS * 44100 / 1024) < 3
    assert all(track.duration_seconds == pytest.approx(SECONDS, abs=0.1) for track in found.tracks)
    assert (found.comment, found.chapters, found.attachments) == ("https://a/ cid=7", 1, 1)
    assert read(whole, read_comment) == found.comment


def test_a_window_that_is_smaller_than_an_element_changes_nothing(
    whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(whole)
    monkeypatch.setattr(matroska, "WINDOW_BYTES", 16)
    assert read(whole) == expected


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:-1], "past the end, by 1 bytes"),
        (lambda data: data[: len(data) // 2], "past the end"),
        (lambda data: data + b"\0", "no element begins"),
        (lambda data: data + data, "not one Matroska segment"),
        (lambda data: b"", "does not begin as"),
        (lambda data: b"\x00\x00\x00\x1cftypisom" + data, "does not begin as"),
        (lambda data: _zeros(data, len(data) // 2, 4000), "element|block"),
        (lambda data: _size_unknown(data), "never finished"),
        (lambda data: data.replace(b"\x16\x54\xae\x6b", b"\x16\x54\xae\x6c"), "no tracks, or no length"),
        (lambda data: data.replace(b"\x1f\x43\xb6\x75", b"\x1f\x43\xb6\x76"), "no frames"),
    ],
    ids=["cut", "half", "longer", "twice", "empty", "mp4", "hole", "unfinished", "no tracks", "no frames"],
)
def test_a_damaged_file_is_refused(whole: bytes, damage: Callable[[bytes], bytes], sentence: str) -> None:
    with pytest.raises(MergeError, match=sentence):
        read(damage(whole))


def _zeros(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + bytes(count) + data[start + count :]


def _size_unknown(data: bytes) -> bytes:
    at = data.index(b"\x18\x53\x80\x67") + 4
    return data[:at] + b"\x01" + b"\xff" * 7 + data[at + 8 :]


def test_a_lost_frame_shows_in_the_count(whole: bytes) -> None:
    """A block that becomes padding of the same size leaves every other proof as it was."""
    before = read_matroska(io.BytesIO(whole), len(whole)).tracks
    at = whole.index(b"\x1f\x43\xb6\x75", len(whole) // 2)
    at = whole.index(b"\xa3", at)
    after = read_matroska(io.BytesIO(whole[:at] + b"\xec" + whole[at + 1 :]), len(whole)).tracks
    assert sum(track.samples for track in before) - sum(track.samples for track in after) == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_file_ends_in_a_record_or_one_kind_of_error(whole: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=64))
    mixed = whole[:start] + junk + whole[start + data.draw(st.integers(0, 64)) :]
    for how in (read_matroska, read_comment):
        try:
            read(mixed, how)
        except MergeError:
            continue


def test_a_comment_may_stand_anywhere(tmp_path: Path, whole: bytes) -> None:
    assert read(whole.replace(b"COMMENT", b"COMMENX"), read_comment) == ""
