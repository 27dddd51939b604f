"""Merged files of every container, with what comes beside the streams: what must be in them, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest

from errors import MergeError, PermanentError
from merge_stream_file import merge, remove_leftovers
from merging import mp4_boxes
from merging.command import Task, ffmpeg_arguments, language_code, list_of_chapters
from merging.matroska import read_matroska
from merging.proof import check_inputs, read_tag
from model import Chapter, MergePlan, Subtitle

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SECONDS = 4
DASH = ("-movflags", "+dash+global_sidx+frag_keyframe+default_base_moof+skip_trailer", "-f", "mp4")
PICTURE = ("-f", "lavfi", "-i", f"testsrc2=s=160x90:r=25:d={SECONDS}")
SOUND = ("-f", "lavfi", "-i", f"sine=d={SECONDS}:r=44100")
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs scripts with a first line")


def run(*arguments: str | Path) -> str:
    command = [FFMPEG, "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def shown(path: str | Path) -> str:
    """Return what ffmpeg says of a file."""
    command = [FFMPEG, "-hide_banner", "-nostdin", "-i", f"file:{path}"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr


def packets(path: str | Path, stream: str) -> list[str]:
    text = run("-i", f"file:{path}", "-map", f"0:{stream}:0", "-c", "copy", "-f", "framemd5", "-")
    return [line.split(",")[5].strip() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge-proof")
    avc = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-bf", "2")
    hevc = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error", "-g", "25", "-tag:v")
    fragments = ("-frag_duration", "1000000")
    run(*PICTURE, *avc, *DASH, folder / "avc.m4s")
    run(*PICTURE, *hevc, "hev1", *DASH, folder / "hevc.m4s")
    run(*PICTURE, *hevc, "dvh1", *DASH, folder / "dvh1.m4s")
    run(*PICTURE, "-c:v", "libsvtav1", "-preset", "12", "-g", "25", *DASH, folder / "av1.m4s")
    run(*SOUND, "-c:a", "aac", *fragments, *DASH, folder / "aac.m4s")
    run(*SOUND, "-c:a", "flac", "-strict", "-2", *fragments, *DASH, folder / "flac.m4s")
    late = (DASH[0], DASH[1] + "+delay_moov", *DASH[2:])
    run(*SOUND, "-c:a", "eac3", *fragments, *late, folder / "eac3.m4s")
    run(*PICTURE, *SOUND, *avc, "-c:a", "aac", "-f", "flv", folder / "old.flv")
    for name in ("cover.jpg", "cover.png", "cover.webp"):
        run("-f", "lavfi", "-i", "testsrc2=s=64x64", "-frames:v", "1", folder / name)
    (folder / "zh.srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,500\n你好 = hi\n\n2\n00:00:02,000 --> 00:00:03,000\nb\n"
    )
    (folder / "en.srt").write_text("1\n00:00:00,500 --> 00:00:01,500\nhello\n")
    return folder


def plan_of(media: Path, output: Path, video: str = "avc", audio: str = "aac", **more: object) -> MergePlan:
    return dataclasses.replace(
        MergePlan(
            output=str(output),
            video=str(media / f"{video}.m4s") if video else "",
            audio=str(media / f"{audio}.m4s") if audio else "",
            duration_seconds=SECONDS,
            title="标题",
            tag="https://www.bilibili.com/video/BV1xx411c7mD?p=1 cid=9",
        ),
        **more,  # type: ignore[arg-type]
    )


# ------------------------------------------------------------------------------------------ containers


@pytest.mark.parametrize(
    ("video", "audio", "found"),
    [
        ("avc", "aac", ["V_MPEG4/ISO/AVC", "A_AAC"]),
        ("hevc", "flac", ["V_MPEGH/ISO/HEVC", "A_FLAC"]),
        ("dvh1", "eac3", ["V_MPEGH/ISO/HEVC", "A_EAC3"]),
        ("av1", "flac", ["V_AV1", "A_FLAC"]),
        ("avc", "", ["V_MPEG4/ISO/AVC"]),
    ],
)
async def test_streams_are_joined_into_matroska_bit_for_bit(
    media: Path, tmp_path: Path, video: str, audio: str, found: list[str]
) -> None:
    plan = plan_of(media, tmp_path / "out.mkv", video, audio)
    merged = await merge(FFMPEG, plan)
    output = Path(plan.output)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]
    assert merged.bytes == output.stat().st_size
    assert merged.duration_seconds == pytest.approx(SECONDS, abs=0.1)
    with output.open("rb") as file:
        content = read_matroska(file, merged.bytes)
    assert [track.codec for track in content.tracks] == found
    assert read_tag(output) == plan.tag
    for stream, path in (("v", plan.video), ("a", plan.audio)):
        if path and video != "av1":  # which is taken apart and put together anew, and decodes alike
            assert len(packets(output, stream)) == len(packets(path, stream))
    if found[-1] == "A_AAC":
        assert packets(output, "v") == packets(plan.video, "v") and packets(output, "a") == packets(plan.audio, "a")


@pytest.mark.parametrize(
    ("audio", "name"), [("aac", "out.m4a"), ("flac", "out.m4a"), ("eac3", "out.m4a"), ("flac", "out.mka")]
)
async def test_sound_alone_is_a_file_with_a_cover(media: Path, tmp_path: Path, audio: str, name: str) -> None:
    plan = plan_of(media, tmp_path / name, "", audio, cover=str(media / "cover.jpg"), tags=(("artist", "某人"),))
    await merge(FFMPEG, plan)
    text = shown(plan.output)
    assert "attached pic" in text and "某人" in text and text.count("Audio:") == 1
    assert packets(plan.output, "a") == packets(plan.audio, "a")
    assert read_tag(Path(plan.output)) == plan.tag
    if name == "out.m4a":
        assert Path(plan.output).read_bytes()[8:12] == b"M4A "


@pytest.mark.parametrize(("video", "name"), [("hevc", "hvc1"), ("dvh1", "dvh1"), ("av1", "av01"), ("avc", "avc1")])
async def test_the_picture_is_called_what_players_expect(media: Path, tmp_path: Path, video: str, name: str) -> None:
    plan = plan_of(media, tmp_path / "out.mp4", video, "flac", cover=str(media / "cover.png"))
    await merge(FFMPEG, plan)
    with Path(plan.output).open("rb") as file:
        tracks = mp4_boxes.read_tracks(file, Path(plan.output).stat().st_size)
    assert [track.codec for track in tracks] == [name, "fLaC"]
    assert tracks[0].samples == SECONDS * 25


def with_dolby_vision(data: bytes) -> bytes:
    """Return a stream whose sample entry has the record of Dolby Vision, profile 8.4, as the site's have."""
    record = struct.pack(">I4s", 32, b"dvvC") + bytes((1, 0, 8 << 1, 6 << 3 | 5, 4 << 4)) + bytes(19)
    at = data.index(b"hvcC") - 4
    at += int.from_bytes(data[at : at + 4], "big")
    grown = bytearray(data[:at] + record + data[at:])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hev1"):
        place = data.index(kind) - 4
        grown[place : place + 4] = struct.pack(">I", int.from_bytes(data[place : place + 4], "big") + len(record))
    return bytes(grown)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
async def test_the_record_of_dolby_vision_is_kept(media: Path, tmp_path: Path, name: str) -> None:
    stream = tmp_path / "dolby.m4s"
    stream.write_bytes(with_dolby_vision((media / "hevc.m4s").read_bytes()))
    plan = dataclasses.replace(plan_of(media, tmp_path / name, audio="eac3"), video=str(stream))
    await merge(FFMPEG, plan)
    assert "DOVI configuration record: version: 1.0, profile: 8, level: 6" in shown(plan.output)


@pytest.mark.parametrize(
    ("streams", "kinds"), [("both", {"video", "audio"}), ("video", {"video"}), ("audio", {"audio"})]
)
async def test_of_a_joined_stream_one_kind_can_be_taken(
    media: Path, tmp_path: Path, streams: str, kinds: set[str]
) -> None:
    output = tmp_path / ("out.m4a" if streams == "audio" else "out.mkv" if streams == "video" else "out.mp4")
    plan = MergePlan(str(output), segments=(str(media / "old.flv"),), tag="t cid=1", streams=streams)
    await merge(FFMPEG, plan)
    assert set(check_inputs(plan).seconds) == kinds
    assert {kind for kind in ("video", "audio") if f"{kind.title()}:" in shown(output)} == kinds
    assert read_tag(output) == "t cid=1"


async def test_a_joined_stream_without_the_kind_that_is_wanted_has_failed_for_good(media: Path, tmp_path: Path) -> None:
    run("-i", media / "old.flv", "-c", "copy", "-an", tmp_path / "silent.flv")
    plan = MergePlan(str(tmp_path / "out.m4a"), segments=(str(tmp_path / "silent.flv"),), streams="audio")
    with pytest.raises(PermanentError) as caught:
        await merge(FFMPEG, plan)
    assert caught.value.code == "no-audio"


# ------------------------------------------------------------------------------------------ what comes beside


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
async def test_cover_chapters_tags_and_subtitles_come_into_the_file(media: Path, tmp_path: Path, name: str) -> None:
    plan = plan_of(
        media,
        tmp_path / name,
        cover=str(media / "cover.jpg"),
        chapters=(Chapter(0, 1.5, "开始 = a;#\\"), Chapter(1.5, SECONDS, "Ende")),
        tags=(
            ("artist", "某人"),
            ("description", "one\ntwo"),
            ("comment", "not ours"),
            ("-y", "x"),
            ("date", "2024-01-02"),
        ),
        subtitles=(Subtitle(str(media / "zh.srt"), "zh-Hans", "中文"), Subtitle(str(media / "en.srt"), "ai-en")),
    )
    await merge(FFMPEG, plan)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    text = shown(plan.output)
    assert "开始 = a;#\\" in text and "Ende" in text
    assert "(zho): Subtitle" in text and "(eng): Subtitle" in text and "中文" in text
    assert "attached pic" in text
    assert all(word in text for word in ("某人", "one", "two", "2024-01-02")) and "not ours" not in text
    assert read_tag(Path(plan.output)) == plan.tag
    subtitles = run("-i", f"file:{plan.output}", "-map", "0:s:0", "-f", "srt", "-")
    assert "你好 = hi" in subtitles
    assert packets(plan.output, "v") == packets(plan.video, "v")


async def test_sound_alone_has_room_for_chapters_too_and_words_of_damage_in_a_path_are_no_damage(
    media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    covers = tmp_path / "Invalid, Broken"
    covers.mkdir()
    shutil.copy(media / "cover.png", covers / "Corrupt.png")
    chapters = (Chapter(0, 1, "a"), Chapter(1, SECONDS, "b"))
    plan = plan_of(media, tmp_path / "out.m4a", "", "aac", cover=str(covers / "Corrupt.png"), chapters=chapters)
    await merge(FFMPEG, plan)
    assert "made without" not in caplog.text
    text = shown(plan.output)
    assert text.count("Chapter #") == 2 and "Video: png" in text and "attached pic" in text


@pytest.mark.parametrize("cover", ["cover.webp", "missing.jpg"])
async def test_a_cover_that_cannot_be_used_is_left_out_and_said(
    media: Path, tmp_path: Path, cover: str, caplog: pytest.LogCaptureFixture
) -> None:
    await merge(FFMPEG, plan_of(media, tmp_path / "out.mp4", cover=str(media / cover)))
    assert "the cover is left out" in caplog.text and cover in caplog.text
    assert "attached pic" not in shown(tmp_path / "out.mp4")


async def test_what_comes_beside_never_costs_the_video(
    media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(media, tmp_path / "out.mkv", subtitles=(Subtitle(str(tmp_path / "missing.srt")),))
    with caplog.at_level(logging.WARNING):
        await merge(FFMPEG, plan)
    assert read_tag(tmp_path / "out.mkv") == plan.tag
    assert "made without cover, chapters, tags and subtitles" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]


@posix
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
async def test_a_file_that_lacks_what_should_come_beside_is_no_success(
    media: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first time ffmpeg is told to leave it out; then it is wanted no more."""
    bare = tmp_path / name.replace("out", "bare")
    await merge(FFMPEG, plan_of(media, bare))
    stub = tmp_path / "stub"
    stub.write_text(
        f"#!{sys.executable} -IS\nimport os, shutil, sys\n"
        f"shutil.copyfile({str(bare)!r}, sys.argv[-1].removeprefix('file:'))\n"
    )
    stub.chmod(0o755)
    plan = plan_of(media, tmp_path / name, cover=str(media / "cover.jpg"), chapters=(Chapter(0, 1, "a"),))
    await merge(str(stub), plan)
    assert "lacks the cover, chapters" in caplog.text


def test_a_list_of_chapters_of_a_dead_worker_goes_after_a_day_only(tmp_path: Path) -> None:
    left = tmp_path / ".merge-0123456789abcdef.tmp.ffmetadata"
    left.write_text(";FFMETADATA1\n")
    assert remove_leftovers(tmp_path) == 0 and left.exists()
    os.utime(left, (0, 0))
    assert remove_leftovers(tmp_path) == 1 and not left.exists()


# ------------------------------------------------------------------------------------------ proofs of Matroska


@posix
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("data[:-1]", "past the end"),
        ("data[: len(data) // 2]", "past the end"),
        ("data.replace(b'BV1xx411c7mD', b'BV1xx411c7mE')", "lacks its comment"),
        ("data.replace(b'\\x83\\x81\\x02', b'\\x83\\x81\\x11')", "has the tracks"),
        ("data.replace(b'\\x1f\\x43\\xb6\\x75', bytes(4))", "no element begins"),
        ("b''", "does not begin as a Matroska file"),
    ],
)
async def test_success_with_a_wrong_matroska_file_is_no_success(
    media: Path, tmp_path: Path, how: str, sentence: str
) -> None:
    good, folder = tmp_path / "good.mkv", tmp_path / "out"
    folder.mkdir()
    await merge(FFMPEG, plan_of(media, good))
    stub = tmp_path / "stub"
    body = f"data = open({str(good)!r}, 'rb').read()\nopen(sys.argv[-1].removeprefix('file:'), 'wb').write({how})"
    stub.write_text(f"#!{sys.executable} -IS\nimport sys\n{body}\n")
    stub.chmod(0o755)
    with pytest.raises(MergeError, match=sentence):
        await merge(str(stub), plan_of(media, folder / "out.mkv"))
    assert list(folder.iterdir()) == []


@posix
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
async def test_frames_that_are_missing_in_the_middle_are_found_though_the_length_is_right(
    media: Path, tmp_path: Path, name: str
) -> None:
    stub = tmp_path / "stub"
    drop = "'-bsf:v', \"noise=drop='between(n,30,50)'\""
    stub.write_text(
        f"#!{sys.executable} -IS\nimport os, sys\n"
        f"os.execv({FFMPEG!r}, [{FFMPEG!r}, *sys.argv[1:-3], {drop}, *sys.argv[-3:]])\n"
    )
    stub.chmod(0o755)
    with pytest.raises(MergeError, match=r"its video track has 79 frames, the input 100"):
        await merge(str(stub), plan_of(media, tmp_path / name))


# ------------------------------------------------------------------------------------------ the command


def test_the_command_keeps_ffmpeg_to_local_files_beside_the_streams_too() -> None:
    plan = MergePlan(
        *("/o/x.mp4", "/i/v", "/i/a"),
        cover="/i/c.jpg",
        chapters=(Chapter(0, 1, "a"),),
        subtitles=(Subtitle("/i/s.srt", "zh"), Subtitle("/i/s.ass", "ja")),
    )
    for output in ("/o/x.mp4", "/o/x.mkv"):
        command = ffmpeg_arguments(
            "ff", [Task(dataclasses.replace(plan, output=output), "/o/.t", "avc1", cover="jpeg")]
        )
        inputs = [place for place, word in enumerate(command) if word == "-i"]
        assert all(command[place - 4 : place - 2] == ["-protocol_whitelist", "file"] for place in inputs)
        assert all(command[place + 1].startswith("file:/") for place in inputs)
        assert len(inputs) == (6 if output.endswith("mp4") else 5)
        assert ("-attach" in command) == output.endswith("mkv")


def test_chapters_are_written_so_that_ffmpeg_cannot_misread_them() -> None:
    text = list_of_chapters(MergePlan("/o", chapters=(Chapter(-1, 0.0005, "a\n[CHAPTER]\\;=#"), Chapter(2, 1, ""))))
    assert text.splitlines() == [
        ";FFMETADATA1",
        *("[CHAPTER]", "TIMEBASE=1/1000", "START=0", "END=1", "title=a [CHAPTER]\\\\\\;\\=\\#"),
        *("[CHAPTER]", "TIMEBASE=1/1000", "START=2000", "END=2001", "title="),
    ]


@pytest.mark.parametrize(
    ("language", "code"),
    [("zh-Hans", "zho"), ("zh", "zho"), ("ai-en", "eng"), ("ja", "jpn"), ("fra", "fra"), ("", "und"), ("x y", "und")],
)
def test_languages_get_three_letters(language: str, code: str) -> None:
    assert language_code(language) == code
