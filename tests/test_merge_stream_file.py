import asyncio
import contextlib
import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import pytest

import merge_stream_file
from errors import DiskFull, MergeError, NameTaken, PermanentError, StaleToken, UsageError
from merge_stream_file import find_ffmpeg, merge, probe_ffmpeg, remove_leftovers
from merging import proof
from merging.command import Task, ffmpeg_arguments, segment_list
from merging.mp4_boxes import read_comment, read_tracks
from model import Chapter, Merged, MergePlan, Subtitle

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
ROOT = Path(merge_stream_file.__file__).resolve().parent
SECONDS = 8
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs scripts with a first line, signals and locks")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

DASH = ("-movflags", "+dash+global_sidx+frag_keyframe+default_base_moof+skip_trailer", "-f", "mp4")
LATE_DASH = (DASH[0], DASH[1] + "+delay_moov", *DASH[2:])
PICTURE = ("-f", "lavfi", "-i", f"testsrc2=s=160x90:r=25:d={SECONDS}")
SOUND = ("-f", "lavfi", "-i", f"sine=d={SECONDS}:r=44100")
AVC = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-bf", "2")
HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error", "-g", "25", "-tag:v", "hev1")
AAC = ("-c:a", "aac", "-b:a", "64k")


def run(*arguments: str | Path) -> str:
    command = [FFMPEG, "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small inputs of each sort that the site has."""
    folder = tmp_path_factory.mktemp("media")
    run(*PICTURE, *AVC, *DASH, folder / "avc.m4s")
    run(*PICTURE, *HEVC, *DASH, folder / "hevc.m4s")
    run(*SOUND, *AAC, "-frag_duration", "1000000", *DASH, folder / "aac.m4s")
    run(*PICTURE, "-c:v", "libsvtav1", "-preset", "12", "-g", "25", *DASH, folder / "av1.m4s")
    run(*SOUND, "-c:a", "eac3", "-frag_duration", "1000000", *LATE_DASH, folder / "eac3.m4s")
    run(*SOUND, "-c:a", "flac", "-strict", "-2", "-frag_duration", "1000000", *DASH, folder / "flac.m4s")
    run("-f", "lavfi", "-i", "sine=d=3:r=44100", *AAC, "-frag_duration", "1000000", *DASH, folder / "short.m4s")
    run(*PICTURE, *SOUND, *AVC, *AAC, folder / "whole.mp4")
    for number, start in enumerate(("0", "3", "6")):
        part = ("-ss", start, "-t", "3", "-i", folder / "whole.mp4", "-c", "copy")
        run(*part, folder / f"{number}.flv")
        run(*part, "-avoid_negative_ts", "make_zero", folder / f"{number}.mp4")
    return folder


def dash(media: Path, folder: Path, video: str = "avc.m4s", audio: str = "aac.m4s") -> MergePlan:
    return MergePlan(
        output=str(folder / "out.mp4"),
        video=str(media / video) if video else "",
        audio=str(media / audio) if audio else "",
        duration_seconds=SECONDS,
        title="标题 = 'x'; \"y\"",
        tag="BV1xx411c7mD?p=1&cid=9",
    )


def packets(path: str | Path, stream: str, codec: str = "copy") -> list[str]:
    """Return the hash of every packet (or, decoded, every frame) of a stream."""
    text = run("-i", f"file:{path}", "-map", f"0:{stream}:0", f"-c:{stream}", codec, "-f", "framemd5", "-")
    return [line.split(",")[5].strip() for line in text.splitlines() if line and not line.startswith("#")]


def codecs(path: str | Path) -> list[str]:
    with Path(path).open("rb") as file:
        return [track.codec for track in read_tracks(file, Path(path).stat().st_size)]


def comment(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return read_comment(file, Path(path).stat().st_size)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------ what is joined


async def test_streams_that_are_plain_files_are_joined_too(media: Path, tmp_path: Path) -> None:
    for name, plan in {"video": dash(media, tmp_path, audio=""), "audio": dash(media, tmp_path, video="")}.items():
        await merge(FFMPEG, plan)
        (tmp_path / "out.mp4").rename(tmp_path / f"{name}.m4s")
    plan = dash(tmp_path, tmp_path, "video.m4s", "audio.m4s")
    await merge(FFMPEG, plan)
    assert packets(plan.output, "v") == packets(media / "avc.m4s", "v")
    cut = (tmp_path / "video.m4s").read_bytes()[:-1]
    (tmp_path / "video.m4s").write_bytes(cut)
    with pytest.raises(MergeError, match=r"video\.m4s"):
        await merge(FFMPEG, plan)


@pytest.mark.parametrize(
    ("video", "audio", "found"),
    [
        ("avc.m4s", "aac.m4s", ["avc1", "mp4a"]),
        ("hevc.m4s", "aac.m4s", ["hvc1", "mp4a"]),
        ("avc.m4s", "flac.m4s", ["avc1", "fLaC"]),
        ("av1.m4s", "eac3.m4s", ["av01", "ec-3"]),
        ("avc.m4s", "", ["avc1"]),
        ("", "aac.m4s", ["mp4a"]),
    ],
)
async def test_dash_streams_are_joined_bit_for_bit(
    media: Path, tmp_path: Path, video: str, audio: str, found: list[str]
) -> None:
    plan = dash(media, tmp_path, video, audio)
    merged = await merge(FFMPEG, plan)
    assert names(tmp_path) == {"out.mp4"}
    assert merged.path == plan.output and merged.bytes == Path(plan.output).stat().st_size
    assert merged.duration_seconds == pytest.approx(SECONDS, abs=0.1)
    assert codecs(plan.output) == found
    assert comment(plan.output) == plan.tag
    for stream, path in (("v", plan.video), ("a", plan.audio)):
        if path:
            assert packets(plan.output, stream) == packets(path, stream)
    assert Path(plan.output).read_bytes().find(b"moov") < 100
    assert plan.title.encode() in Path(plan.output).read_bytes()


@pytest.mark.parametrize("segments", [("0.flv", "1.flv", "2.flv"), ("0.mp4", "1.mp4", "2.mp4"), ("0.flv",), ("1.mp4",)])
async def test_segments_are_joined(media: Path, tmp_path: Path, segments: tuple[str, ...]) -> None:
    paths = tuple(str(media / name) for name in segments)
    before = names(media)
    seconds = SECONDS if len(paths) > 1 else 3
    plan = MergePlan(str(tmp_path / "out.mp4"), segments=paths, duration_seconds=seconds, tag="ep1?cid=9")
    merged = await merge(FFMPEG, plan)
    assert names(tmp_path) == {"out.mp4"} and names(media) == before
    assert merged.duration_seconds == pytest.approx(seconds, abs=1.1)
    assert comment(plan.output) == "ep1?cid=9"
    for stream in "va":
        expected = [packet for path in paths for packet in packets(path, stream)]
        assert packets(plan.output, stream) == expected


@pytest.mark.parametrize("kind", ["mp4", "flv"])
async def test_segments_whose_sound_is_longer_than_their_picture_are_joined(tmp_path: Path, kind: str) -> None:
    for number in range(2):
        sound = ("-f", "lavfi", "-i", "sine=440:duration=1.4")
        picture = ("-f", "lavfi", "-i", "testsrc2=size=64x64:rate=10:duration=1")
        run(*picture, *sound, *AVC, *AAC, tmp_path / f"{number}.{kind}")
    paths = tuple(str(tmp_path / f"{number}.{kind}") for number in range(2))
    plan = MergePlan(str(tmp_path / "out.mp4"), segments=paths, duration_seconds=2.8, tag="cid=9")
    await merge(FFMPEG, plan)
    for stream in "va":
        expected = [packet for path in paths for packet in packets(path, stream)]
        assert packets(plan.output, stream) == expected


async def test_segments_of_different_encodings_are_joined_all_the_same(tmp_path: Path) -> None:
    for number, size in enumerate(("64x64", "64x64")):
        picture = ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate=10:duration=1")
        profile = ("-profile:v", ("baseline", "high")[number])
        run(*picture, *AVC, *profile, tmp_path / f"{number}.mp4")
    paths = tuple(str(tmp_path / f"{number}.mp4") for number in range(2))
    plan = MergePlan(str(tmp_path / "out.mp4"), segments=paths, duration_seconds=2.0, tag="cid=9")
    await merge(FFMPEG, plan)
    expected = [frame for path in paths for frame in packets(path, "v", "rawvideo")]
    assert packets(plan.output, "v", "rawvideo") == expected


@pytest.mark.parametrize(
    "name",
    [
        "-y",
        "a:b",
        "http:x",
        "concat:x|y",
        "%03d",
        'it\'s "it"',
        "$(id) `x`",
        "a\nb",
        "?x#y",
        "é👩‍💻中",
        "a" * 240,
        "\udcff",
    ],
)
async def test_any_file_name_is_only_a_name(media: Path, tmp_path: Path, name: str) -> None:
    if os.name == "nt":
        pytest.skip("not a name there")
    folder = tmp_path / name
    folder.mkdir()
    video, audio = folder / name, folder / "a.m4s"
    video.symlink_to(media / "avc.m4s")
    audio.symlink_to(media / "aac.m4s")
    plan = MergePlan(str(folder / f"{name}.mp4"), str(video), str(audio), duration_seconds=SECONDS, title=name)
    await merge(FFMPEG, plan)
    assert names(folder) == {name, "a.m4s", f"{name}.mp4"}


async def test_words_of_damage_in_a_name_are_no_damage(media: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Invalid corrupt Broken mismatch"
    folder.mkdir()
    (folder / "Invalid.m4s").write_bytes((media / "flac.m4s").read_bytes())
    plan = dash(media, folder, audio="")
    await merge(FFMPEG, dataclasses.replace(plan, audio=str(folder / "Invalid.m4s"), title="Invalid corrupt"))


@posix
async def test_words_of_damage_in_a_quoted_path_are_no_damage_either(media: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Invalid"
    folder.mkdir()
    body = f"sys.stderr.write(sys.argv[-1] + ' is slow\\n')\nsys.stderr.flush()\nos.execv({FFMPEG!r}, sys.argv)"
    await merge(stub(tmp_path, body), dash(media, folder))
    with pytest.raises(MergeError, match="found damage"):
        await merge(stub(tmp_path, body.replace("is slow", "is Invalid")), dash(media, folder))


async def test_odd_texts_are_made_one_line(media: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(dash(media, tmp_path), title="a\0b\nc\ud800" + "x" * 5000, tag="t\0\n")
    await merge(FFMPEG, plan)
    assert comment(plan.output) == "t  "


async def test_an_unknown_duration_is_compared_with_the_inputs_only(media: Path, tmp_path: Path) -> None:
    await merge(FFMPEG, dataclasses.replace(dash(media, tmp_path, audio="short.m4s"), duration_seconds=0))


# ------------------------------------------------------------------------------------------ damage


def damage(data: bytes, how: str) -> bytes:
    fragments = [match.start() - 4 for match in re.finditer(b"moof", data)]
    third = fragments[3]
    return {
        "one byte short": data[:-1],
        "half": data[: len(data) // 2],
        "cut at a fragment": data[: fragments[-1]],
        "hole of zeros": data[:third] + bytes(30000) + data[third + 30000 :],
        "a fragment missing": data[:third] + data[fragments[4] :],
        "two fragments exchanged": data[:third] + data[fragments[4] : fragments[5]] + data[third : fragments[4]]
        + data[fragments[5] :],
        "html": b"<!DOCTYPE html><title>412</title>",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
        "empty": b"",
        "more behind": data + b"\0",
    }[how]  # fmt: skip


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize(
    "how",
    ["one byte short", "half", "cut at a fragment", "hole of zeros", "a fragment missing", "two fragments exchanged",
     "html", "playlist", "empty", "more behind"],
)  # fmt: skip
async def test_a_damaged_input_is_named_before_ffmpeg_runs(media: Path, tmp_path: Path, kind: str, how: str) -> None:
    source = media / ("avc.m4s" if kind == "video" else "aac.m4s")
    bad = tmp_path / "bad.m4s"
    bad.write_bytes(damage(source.read_bytes(), how))
    plan = dash(media, tmp_path)
    bad_video, bad_audio = (str(bad), plan.audio) if kind == "video" else (plan.video, str(bad))
    plan = dataclasses.replace(plan, video=bad_video, audio=bad_audio)
    with pytest.raises(MergeError, match=r"^bad\.m4s: "):
        await merge("/nowhere/ffmpeg", plan)
    assert names(tmp_path) == {"bad.m4s"}


async def test_streams_of_the_wrong_kind_are_refused(media: Path, tmp_path: Path) -> None:
    for video, audio in (("aac.m4s", "avc.m4s"), ("avc.m4s", "avc.m4s"), ("whole.mp4", "aac.m4s")):
        with pytest.raises(MergeError, match=r"one (video|audio) track is expected"):
            await merge("/nowhere/ffmpeg", dash(media, tmp_path, video, audio))
    with pytest.raises(MergeError, match="cannot read"):
        await merge("/nowhere/ffmpeg", dash(media, tmp_path, "missing.m4s"))
    with pytest.raises(ValueError, match="plan"):
        await merge("/nowhere/ffmpeg", MergePlan("x"))


async def test_an_encrypted_stream_is_refused_for_good(media: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.m4s"
    bad.write_bytes((media / "avc.m4s").read_bytes().replace(b"avc1\0\0\0\0\0\0\0\1", b"encv\0\0\0\0\0\0\0\1"))
    with pytest.raises(PermanentError, match=r"bad\.m4s.*encrypted"):
        await merge("/nowhere/ffmpeg", dataclasses.replace(dash(media, tmp_path), video=str(bad)))


@pytest.mark.parametrize("announced", [5.9, 10.1, 600.0])
async def test_a_video_of_another_duration_than_announced_is_refused(
    media: Path, tmp_path: Path, announced: float
) -> None:
    with pytest.raises(MergeError, match="announced"):
        await merge(FFMPEG, dataclasses.replace(dash(media, tmp_path), duration_seconds=announced))
    assert names(tmp_path) == set()


async def test_sound_may_end_a_little_before_the_picture_only(media: Path, tmp_path: Path) -> None:
    await merge(FFMPEG, dash(media, tmp_path, audio="short.m4s"))
    run("-f", "lavfi", "-i", "sine=d=2:r=44100", *AAC, "-frag_duration", "1000000", *DASH, tmp_path / "two.m4s")
    with pytest.raises(MergeError, match="audio track lasts"):
        await merge(FFMPEG, dataclasses.replace(dash(media, tmp_path), audio=str(tmp_path / "two.m4s")))


@pytest.mark.parametrize("name", ["1.flv", "1.mp4"])
@pytest.mark.parametrize("cut", [1, 1000])
async def test_a_damaged_segment_is_named(media: Path, tmp_path: Path, name: str, cut: int) -> None:
    sort = name[1:]
    for number in range(3):
        data = (media / f"{number}{sort}").read_bytes()
        (tmp_path / f"{number}{sort}").write_bytes(data[: len(data) - cut] if number == 1 else data)
    before = names(tmp_path)
    paths = tuple(str(tmp_path / f"{number}{sort}") for number in range(3))
    with pytest.raises(MergeError, match=rf"^{re.escape(name)}: "):
        await merge(FFMPEG, MergePlan(str(tmp_path / "out.mp4"), segments=paths, duration_seconds=SECONDS))
    with pytest.raises(MergeError, match="formats"):
        mixed = (str(media / "0.flv"), str(media / "1.mp4"))
        await merge(FFMPEG, MergePlan(str(tmp_path / "out.mp4"), segments=mixed))
    assert names(tmp_path) == before


# ------------------------------------------------------------------------------------------ ffmpegs that misbehave

ASK_OUTPUT = "import sys, os, time, signal\nout = sys.argv[-1].removeprefix('file:')\n"


def stub(folder: Path, body: str) -> str:
    path = folder / "stub"
    path.write_text(f"#!{sys.executable} -IS\n{ASK_OUTPUT}{body}\n")
    path.chmod(0o755)
    return str(path)


@posix
@pytest.mark.parametrize(
    ("body", "expected", "sentence"),
    [
        ("sys.exit(1)", MergeError, "exit status 1: -"),
        ("sys.exit('the last line')", MergeError, "exit status 1: the last line"),
        ("sys.stderr.write('first\\nlast without an end')\nsys.exit(183)", MergeError, "183: last without an end"),
        ("sys.stderr.write('x' * 3_000_000 + '\\n' * 5)\nsys.exit(3)", MergeError, "status 3: x{4096}$"),
        ("[sys.stderr.write(f'line {n}\\n') for n in range(200_000)]\nsys.exit(3)", MergeError, "line 199999"),
        ("sys.stdout.write('y' * 3_000_000)\nsys.exit(3)", MergeError, "status 3"),
        ("", MergeError, "output is wrong: the file is empty"),
        ("os.unlink(out)", MergeError, "cannot write"),
        ("open(out, 'wb').write(b'<html>')", MergeError, "output is wrong"),
        ("os.kill(os.getpid(), signal.SIGKILL)", MergeError, "killed by signal 9"),
        ("sys.stderr.write('av_interleaved_write_frame(): No space left on device\\n')\nsys.exit(1)", DiskFull, "full"),
        ("sys.exit(228)", DiskFull, "full"),
        ("sys.stderr.write('Packet corrupt (stream = 1)\\n')", MergeError, "found damage: Packet corrupt"),
        ("sys.stderr.write('Invalid NAL unit size (0 > 4)\\nmore\\n')", MergeError, "found damage: Invalid NAL"),
    ],
)
async def test_an_ffmpeg_that_fails_is_quoted(
    media: Path, tmp_path: Path, body: str, expected: type[Exception], sentence: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(expected, match=sentence):
        await merge(stub(tmp_path, body), dash(media, folder))
    assert names(folder) == set()


@posix
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("data[:-1]", "output is wrong.*past the end"),
        ("data[: len(data) // 2]", "output is wrong"),
        ("data.replace(b'BV1xx411c7mD', b'BV1xx411c7mE')", "lacks its comment"),
        ("data.replace(b'soun', b'text')", "has the tracks"),
        ("data.replace(b'mdat', b'free')", "no box mdat"),
    ],
)
async def test_success_with_a_wrong_file_is_no_success(media: Path, tmp_path: Path, how: str, sentence: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    good = tmp_path / "good.mp4"
    await merge(FFMPEG, dataclasses.replace(dash(media, folder), output=str(good)))
    body = f"data = open({str(good)!r}, 'rb').read()\nopen(out, 'wb').write({how})"
    with pytest.raises(MergeError, match=sentence):
        await merge(stub(tmp_path, body), dash(media, folder))
    assert names(folder) == set()


@posix
async def test_a_track_shorter_than_its_input_is_found(media: Path, tmp_path: Path) -> None:
    body = f"os.execv({FFMPEG!r}, [{FFMPEG!r}, *sys.argv[1:-1], '-t', '7', sys.argv[-1]])"
    with pytest.raises(MergeError, match=r"lasts 7\.\d s, the input 8\.0 s"):
        await merge(stub(tmp_path, body), dash(media, tmp_path))


@posix
async def test_a_track_longer_than_its_input_is_found(media: Path, tmp_path: Path) -> None:
    body = f"os.execv({FFMPEG!r}, [{FFMPEG!r}, '-stream_loop', '1', *sys.argv[1:]])"
    plan = dataclasses.replace(dash(media, tmp_path), duration_seconds=0.0)
    with pytest.raises(MergeError, match=r"video track lasts 1\d\.\d s, the input 8\.0 s"):
        await merge(stub(tmp_path, body), plan)


@pytest.mark.slow
@posix
async def test_an_ffmpeg_that_hangs_is_killed_in_time(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_stream_file, "MIN_TIMEOUT_SECONDS", 3.0)
    folder = tmp_path / "out"
    folder.mkdir()
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('out_time=00:00:03.50', flush=True)\ntime.sleep(600)"
    with pytest.raises(MergeError, match=r"after 3 seconds, it had come to 00:00:03\.50"):
        await merge(stub(tmp_path, body), dash(media, folder))
    assert names(folder) == set()


async def test_a_missing_ffmpeg_is_named(media: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="/nowhere/ffmpeg"):
        await merge("/nowhere/ffmpeg", dash(media, tmp_path))
    assert names(tmp_path) == set()


# ------------------------------------------------------------------------------------------ cancel and kill


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


HANG = "open({pid!r} + '.new', 'w').write(str(os.getpid()))\nos.rename({pid!r} + '.new', {pid!r})\ntime.sleep(600)"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def starter() -> int:
    """Return the id of the process that starts our ffmpegs."""
    process = merge_stream_file._STARTER._process
    assert process is not None and process.poll() is None
    return process.pid


def pid_in(path: Path) -> int:
    return int(path.read_text())


@linux
async def test_cancelling_leaves_neither_child_nor_file(media: Path, tmp_path: Path) -> None:
    folder, pid_file = tmp_path / "out", tmp_path / "pid"
    folder.mkdir()
    task = asyncio.create_task(merge(stub(tmp_path, HANG.format(pid=str(pid_file))), dash(media, folder)))
    await until(pid_file.exists)
    pid = int(pid_file.read_text())
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert os.getsid(pid) == pid
    assert children(starter()) == [pid]
    assert len(names(folder)) == 1 and remove_leftovers(folder) == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)
    assert names(folder) == set()


@linux
async def test_cancelling_ends_what_ffmpeg_started_too(media: Path, tmp_path: Path) -> None:
    """The ffmpeg on the path may be somebody's script."""
    folder, pid_file = tmp_path / "out", tmp_path / "pid"
    folder.mkdir()
    body = "if os.fork():\n    time.sleep(600)\n" + HANG.format(pid=str(pid_file))
    task = asyncio.create_task(merge(stub(tmp_path, body), dash(media, folder)))
    await until(pid_file.exists)
    pid = int(pid_file.read_text())
    try:
        task.cancel()
        await asyncio.wait([task], timeout=10)  # it would wait for the end of its pipes
        assert task.cancelled()
        await until(lambda: not alive(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@linux
async def test_cancelling_at_any_moment_leaves_nothing(media: Path, tmp_path: Path) -> None:
    plan = dash(media, tmp_path)
    for wait_milliseconds in range(0, 200, 12):
        task = asyncio.create_task(merge(FFMPEG, plan))
        await asyncio.wait([task], timeout=wait_milliseconds / 1000)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert names(tmp_path) <= {"out.mp4"}
        Path(plan.output).unlink(missing_ok=True)
    assert children(starter()) == []
    for child in children(os.getpid()):
        with contextlib.suppress(FileNotFoundError):
            assert b"ffmpeg" not in Path(f"/proc/{child}/cmdline").read_bytes()


def open_descriptors() -> int:
    return sum(1 for _link in Path("/proc/self/fd").iterdir())


@linux
async def test_merges_leave_no_descriptor_open(media: Path, tmp_path: Path) -> None:
    plan, hanging = dash(media, tmp_path), stub(tmp_path, "time.sleep(600)")
    await merge(FFMPEG, plan)  # makes what is there to stay
    before = open_descriptors()
    for _round in range(3):
        Path(plan.output).unlink()
        await merge(FFMPEG, plan)
        with pytest.raises(MergeError):
            await merge("/nowhere/ffmpeg", plan)
        task = asyncio.create_task(merge(hanging, plan))
        await until(lambda: children(starter()))
        task.cancel()
        await asyncio.wait([task])
    assert open_descriptors() == before


WORKER = """
import asyncio, sys
sys.path.insert(0, {root!r})
import merge_stream_file
from model import Chapter, Merged, MergePlan, Subtitle
asyncio.run(merge_stream_file.merge({ffmpeg!r}, MergePlan({output!r}, {video!r})))
"""


@linux
async def test_kill_9_of_the_worker_ends_ffmpeg_and_its_file_is_cleaned(media: Path, tmp_path: Path) -> None:
    folder, pid_file = tmp_path / "out", tmp_path / "pid"
    folder.mkdir()
    (folder / ".merge-kept.tmp").touch()
    (folder / "other.tmp").touch()
    script = WORKER.format(
        root=str(ROOT),
        ffmpeg=stub(tmp_path, HANG.format(pid=str(pid_file))),
        output=str(folder / "out.mp4"),
        video=str(media / "avc.m4s"),
    )
    worker = subprocess.Popen([sys.executable, "-c", script])
    try:
        await until(pid_file.exists)
        pid = int(pid_file.read_text())
        (parent,) = children(worker.pid)
        assert children(parent) == [pid]
        assert alive(pid) and len(names(folder)) == 3
        assert remove_leftovers(folder) == 0  # its owner lives
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    try:
        await until(lambda: not alive(pid) and not alive(parent))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise
    assert len(names(folder)) == 3
    assert remove_leftovers(folder) == 1
    assert names(folder) == {".merge-kept.tmp", "other.tmp"}


@linux
async def test_kill_9_of_the_starter_ends_its_ffmpegs_and_the_next_merge_has_a_new_one(
    media: Path, tmp_path: Path
) -> None:
    folder, pid_file = tmp_path / "out", tmp_path / "pid"
    folder.mkdir()
    task = asyncio.create_task(merge(stub(tmp_path, HANG.format(pid=str(pid_file))), dash(media, folder)))
    await until(pid_file.exists)
    first = starter()
    os.kill(first, signal.SIGKILL)
    with pytest.raises(MergeError, match="killed by signal 9"):
        await task
    await until(lambda: not alive(pid_in(pid_file)))
    assert names(folder) == set()
    await merge(FFMPEG, dash(media, folder))
    await merge(FFMPEG, dataclasses.replace(dash(media, folder), output=str(folder / "second.mp4")))
    assert names(folder) == {"out.mp4", "second.mp4"}
    assert starter() != first


@linux
async def test_one_starter_serves_all_merges(media: Path, tmp_path: Path) -> None:
    used = set()
    for number in range(3):
        await merge(FFMPEG, dataclasses.replace(dash(media, tmp_path), output=str(tmp_path / f"{number}.mp4")))
        used.add(starter())
    assert len(used) == 1


@linux
def test_a_worker_that_ends_well_has_ended_its_starter_before(media: Path, tmp_path: Path) -> None:
    """And waited for it, so that whoever measures the worker has the time of its ffmpegs as well."""
    last = "print(os.path.exists(f'/proc/{{merge_stream_file._STARTER._process.pid}}'))"
    script = f"import atexit, os\natexit.register(lambda: {last})\n" + WORKER  # the first one is the last to be called
    script = script.format(
        root=str(ROOT), ffmpeg=FFMPEG, output=str(tmp_path / "out.mp4"), video=str(media / "avc.m4s")
    )
    worker = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert (worker.stdout, worker.stderr) == ("False\n", "")


@posix
async def test_without_a_starter_ffmpeg_is_started_by_ourselves(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on other systems than Linux."""
    monkeypatch.setattr(merge_stream_file, "_start", lambda command, _processor: merge_stream_file._spawn(command))
    folder, pid_file = tmp_path / "out", tmp_path / "pid"
    folder.mkdir()
    await merge(FFMPEG, dash(media, folder))
    task = asyncio.create_task(merge(stub(tmp_path, HANG.format(pid=str(pid_file))), dash(media, folder)))
    await until(pid_file.exists)
    pid = pid_in(pid_file)
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    task.cancel()
    await asyncio.wait([task])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(MergeError, match="exit status 3: why"):
        await merge(stub(tmp_path, "sys.stderr.write('why')\nsys.exit(3)"), dash(media, folder))
    assert names(folder) == {"out.mp4"}


# ------------------------------------------------------------------------------------------ processors


@linux
async def test_each_ffmpeg_is_kept_to_a_processor_of_its_own_and_others_wait_with_nothing_on_disk(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_stream_file, "SHARED_BYTES", 0)
    ours = os.sched_getaffinity(0)
    folder, pids = tmp_path / "out", tmp_path / "pids"
    folder.mkdir()
    pids.mkdir()
    body = f"open({str(pids)!r} + '/' + str(os.getpid()), 'w')\ntime.sleep(600)"
    ffmpeg = stub(tmp_path, body)
    plans = [dataclasses.replace(dash(media, folder), output=str(folder / f"{n}.mp4")) for n in range(len(ours) + 2)]
    tasks = [asyncio.create_task(merge(ffmpeg, plan)) for plan in plans]
    try:
        await until(lambda: len(names(pids)) == len(ours))
        await asyncio.to_thread(lambda: None)  # the waiting ones have had their turn in the loop as well
        running = children(starter())
        assert len(running) == len(ours) == len(names(folder))
        assert {frozenset(os.sched_getaffinity(pid)) for pid in running} == {frozenset({one}) for one in ours}
        assert {os.sched_getscheduler(pid) for pid in running} == {os.SCHED_BATCH}
        os.kill(running[0], signal.SIGKILL)
        await until(lambda: len(names(pids)) == len(ours) + 1)
        assert len(children(starter())) == len(ours) == len(names(folder))
    finally:
        for task in reversed(tasks):
            task.cancel()
        await asyncio.wait(tasks)
    assert names(folder) == set()


@linux
async def test_a_processor_that_is_gone_is_done_without(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_stream_file, "_processors", lambda: [1000])
    await merge(FFMPEG, dash(media, tmp_path))
    assert names(tmp_path) == {"out.mp4"}


# ------------------------------------------------------------------------------------------ several in one ffmpeg


class Crowd:
    """Small merges of all sorts that wait for one processor, until ``go``; the ffmpegs are told to ``log``."""

    def __init__(self, media: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, after: str = "") -> None:
        monkeypatch.setattr(merge_stream_file, "_processors", lambda: [min(os.sched_getaffinity(0))])
        self.folder = folder / "out"
        self.folder.mkdir()
        self._gate, self._log = folder / "gate", folder / "log"
        self._log.touch()
        self.ffmpeg = stub(
            folder,
            f"outputs = [word for word in sys.argv if word.endswith('.tmp')]\n"
            f"open({str(self._log)!r}, 'a').write(f'{{len(outputs)}}\\n')\n"
            f"while not os.path.exists({str(self._gate)!r}): time.sleep(0.005)\n"
            f"{after}\n"
            f"os.execv({FFMPEG!r}, [{FFMPEG!r}, *sys.argv[1:]])",
        )
        first, second = dash(media, self.folder), dash(media, self.folder, "hevc.m4s")
        cover = folder / "cover.png"
        if not cover.exists():
            run("-f", "lavfi", "-i", "testsrc2=s=64x64:d=1", "-frames:v", "1", cover)
        subtitle = folder / "words.srt"
        subtitle.write_text("1\n00:00:00,000 --> 00:00:02,000\n你好\n", "utf-8")
        chapters = (Chapter(0.0, 4.0, "one"), Chapter(4.0, 8.0, "two"))
        words = (Subtitle(str(subtitle), "zh-CN", "中文"),)
        plans = {
            "first.mp4": first,
            "second.mp4": dataclasses.replace(second, cover=str(cover), chapters=chapters),
            "third.mkv": dataclasses.replace(first, cover=str(cover), subtitles=words, tags=(("artist", "x"),)),
            "fourth.m4a": dash(media, self.folder, video=""),
        }
        self.plans = [dataclasses.replace(plan, output=str(self.folder / name)) for name, plan in plans.items()]

    async def begin(self) -> list[asyncio.Task[Merged]]:
        """Begin a merge that takes the processor, and then those that wait for it."""
        leader = dataclasses.replace(self.plans[0], output=str(self.folder / "leader.mp4"))
        tasks = [asyncio.create_task(merge(self.ffmpeg, leader))]
        await until(lambda: self.log == [1])
        for plan in self.plans:
            tasks.append(asyncio.create_task(merge(self.ffmpeg, plan)))
            await until(lambda: len(merge_stream_file._limits().turns._waiting) == len(tasks) - 1)
        return tasks

    def go(self) -> None:
        self._gate.touch()

    @property
    def log(self) -> list[int]:
        """How many files each ffmpeg was to make."""
        return [int(line) for line in self._log.read_text().split()]


@linux
async def test_small_merges_that_wait_are_made_by_one_ffmpeg_and_are_what_they_are_alone(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(media, tmp_path, monkeypatch)
    tasks = await crowd.begin()
    crowd.go()
    await asyncio.gather(*tasks)
    assert crowd.log == [1, 4]
    shared = {plan.output: Path(plan.output).read_bytes() for plan in crowd.plans}
    for plan in crowd.plans:
        Path(plan.output).unlink()
        await merge(FFMPEG, plan)
    alone = {plan.output: Path(plan.output).read_bytes() for plan in crowd.plans}
    matroska = crowd.plans[2].output  # has an id drawn by lot in each file
    assert {path: shared[path] == alone[path] for path in shared if path != matroska} == dict.fromkeys(
        set(shared) - {matroska}, True
    )
    assert len(shared[matroska]) == len(alone[matroska])
    assert names(crowd.folder) == {"leader.mp4", "first.mp4", "second.mp4", "third.mkv", "fourth.m4a"}


@linux
@pytest.mark.parametrize(
    "fault",
    [
        "if len(outputs) > 1: sys.exit('one of them is broken')",
        "if len(outputs) > 1: sys.stderr.write('Invalid data found\\n'); sys.stderr.flush()",
        "if len(outputs) > 1: os.kill(os.getpid(), 9)",
    ],
)
async def test_when_one_ffmpeg_for_several_does_not_end_well_each_is_made_and_judged_alone(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    crowd = Crowd(media, tmp_path, monkeypatch, fault)
    tasks = await crowd.begin()
    crowd.go()
    await asyncio.gather(*tasks)
    assert crowd.log == [1, 4, 1, 1, 1, 1]
    for plan in crowd.plans:
        assert Path(plan.output).stat().st_size


@linux
async def test_one_that_is_cancelled_among_several_takes_nobody_with_it(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(media, tmp_path, monkeypatch, "if len(outputs) > 1: time.sleep(600)")
    tasks = await crowd.begin()
    crowd.go()
    await until(lambda: crowd.log == [1, 4])
    tasks[2].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Merged, Merged, asyncio.CancelledError, Merged, Merged]
    assert names(crowd.folder) == {"leader.mp4", "first.mp4", "third.mkv", "fourth.m4a"}
    assert children(starter()) == []


def test_a_list_of_segments_is_left_for_a_day(tmp_path: Path) -> None:
    path = tmp_path / ".merge-0123456789abcdef.tmp.ffconcat"
    path.touch()
    assert remove_leftovers(tmp_path) == 0
    os.utime(path, (time.time() - 25 * 3600,) * 2)
    assert remove_leftovers(tmp_path) == 1
    assert remove_leftovers(tmp_path / "missing") == 0


@posix
def test_without_locks_only_age_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", no_locks)
    path = tmp_path / ".merge-0123456789abcdef.tmp"
    path.touch()
    assert remove_leftovers(tmp_path) == 0
    os.utime(path, (time.time() - 25 * 3600,) * 2)
    assert remove_leftovers(tmp_path) == 1


# ------------------------------------------------------------------------------------------ publishing


async def test_publishing_is_asked_last_and_may_be_refused(media: Path, tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def refuse() -> bool:
        seen.append(names(tmp_path))
        return False

    (tmp_path / "out.mp4").write_bytes(b"old")
    with pytest.raises(StaleToken):
        await merge(FFMPEG, dash(media, tmp_path), refuse)
    assert len(seen) == 1 and len(seen[0]) == 2
    assert names(tmp_path) == {"out.mp4"} and (tmp_path / "out.mp4").read_bytes() == b"old"


async def test_a_file_is_proved_and_on_disk_before_it_is_asked_for_its_name_and_the_name_is_on_disk_after(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut leaves a name with nothing behind it, or nothing at all of what was recorded as done."""
    done: list[object] = []
    prove, publish, fsync = proof.check_tracks, merge_stream_file._publish, os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(proof, "check_tracks", lambda *these: done.append("proved") or prove(*these))
    monkeypatch.setattr(merge_stream_file, "_publish", lambda *these: done.append("named") or publish(*these))
    plan = dash(media, tmp_path)
    await merge(FFMPEG, plan, lambda: done.append("asked") or True)
    output = Path(plan.output)
    assert done == ["proved", output.stat().st_ino, "asked", "named", output.parent.stat().st_ino]


# ------------------------------------------------------------------------------------------ two disks


class Disks(NamedTuple):
    """Two folders that files cannot be renamed between: where ffmpeg writes, and where the videos go."""

    scratch: Path
    library: Path

    def plan(self, media: Path) -> MergePlan:
        return dataclasses.replace(dash(media, self.library), scratch=str(self.scratch))

    def names(self) -> tuple[set[str], set[str]]:
        return names(self.scratch), names(self.library)


CLEAN: tuple[set[str], set[str]] = (set(), set())


@pytest.fixture(params=["real", "told"])
def disks(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disks]:
    """Two real file systems, where the machine has them; and one that acts as if it were two, everywhere."""
    library = tmp_path / "library"
    library.mkdir()
    if request.param == "told":
        rename = Path.replace

        def replace(source: Path, target: Path) -> Path:
            if source.parent != target.parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            return rename(source, target)

        monkeypatch.setattr(Path, "replace", replace)
        (tmp_path / "scratch").mkdir()
        yield Disks(tmp_path / "scratch", library)
        return
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system that can be written")
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        yield Disks(Path(scratch), library)


async def test_on_one_disk_the_file_is_written_in_the_scratch_folder_and_renamed(media: Path, tmp_path: Path) -> None:
    disks = Disks(tmp_path / "scratch", tmp_path / "library")
    disks.scratch.mkdir()
    disks.library.mkdir()
    seen: list[set[str]] = []
    await merge(FFMPEG, disks.plan(media), lambda: seen.extend(disks.names()) or True)
    assert [len(found) for found in seen] == [1, 0]
    assert disks.names() == (set(), {"out.mp4"})


async def test_on_two_disks_the_proved_file_is_copied_whole_before_it_is_asked_for_its_name(
    media: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_stream_file, "MOVE_BYTES", 1000)
    ours: dict[str, bytes] = {}

    def look() -> bool:
        ours.update((path.name, path.read_bytes()) for path in disks.library.iterdir())
        return True

    merged = await merge(FFMPEG, disks.plan(media), look)
    assert disks.names() == (set(), {"out.mp4"})
    output = disks.library / "out.mp4"
    ((name, copied),) = ours.items()
    assert name.startswith(".merge-") and copied == output.read_bytes() and len(copied) == merged.bytes
    assert comment(output) == disks.plan(media).tag and output.stat().st_nlink == 1
    assert packets(output, "v") == packets(media / "avc.m4s", "v")


async def test_a_copy_is_on_disk_before_it_is_read_back_and_that_before_it_gets_its_name(
    media: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    fsync, pieces, publish = os.fsync, merge_stream_file._pieces, merge_stream_file._publish

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("synced", os.fstat(descriptor).st_ino))

    def read(path: Path, *these: Any) -> Any:
        done.append(("read", path.stat().st_ino))
        return pieces(path, *these)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(merge_stream_file, "_pieces", read)
    monkeypatch.setattr(merge_stream_file, "_publish", lambda *these: done.append("named") or publish(*these))
    await merge(FFMPEG, disks.plan(media), lambda: done.append("asked") or True)
    output, folder = (disks.library / "out.mp4").stat().st_ino, disks.library.stat().st_ino
    assert done[0] not in (("read", output), ("synced", output))  # the proved one is read, and need not be synced
    assert done[1:] == [("synced", output), ("read", output), "asked", "named", ("synced", folder)]


async def test_a_disk_that_gives_other_bytes_back_gets_no_file_and_the_next_try_works(
    media: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = merge_stream_file._pieces

    def rotten(path: Path, *these: Any) -> Iterator[memoryview]:
        for piece in pieces(path, *these):
            if path.parent == disks.library:
                piece[len(piece) // 2] ^= 1
            yield piece

    with monkeypatch.context() as patch:
        patch.setattr(merge_stream_file, "_pieces", rotten)
        with pytest.raises(MergeError, match=rf"{re.escape(str(disks.library))} does not give back"):
            await merge(FFMPEG, disks.plan(media))
        assert disks.names() == CLEAN
    await merge(FFMPEG, disks.plan(media))
    assert disks.names() == (set(), {"out.mp4"})


async def test_a_lease_that_was_lost_during_the_copy_leaves_nothing(media: Path, disks: Disks) -> None:
    with pytest.raises(StaleToken):
        await merge(FFMPEG, disks.plan(media), lambda: False)
    assert disks.names() == CLEAN
    (disks.library / "out.mp4").write_bytes(b"another page")
    with pytest.raises(NameTaken):
        await merge(FFMPEG, disks.plan(media))
    assert disks.names() == (set(), {"out.mp4"}) and (disks.library / "out.mp4").read_bytes() == b"another page"


@pytest.mark.parametrize("full", Disks._fields)
async def test_of_two_disks_the_one_without_room_is_named_before_ffmpeg_runs(
    media: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    folder: Path = getattr(disks, full)
    monkeypatch.setattr("shutil.disk_usage", lambda path: (10**9, 0, 1000 if Path(path) == folder else 10**9))
    with pytest.raises(DiskFull, match=f"^{re.escape(str(folder))} has 0 MiB left"):
        await merge("/nowhere/ffmpeg", disks.plan(media))
    assert disks.names() == CLEAN


async def test_a_library_that_fills_up_during_the_copy_is_named_and_the_next_try_works(
    media: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = merge_stream_file._pieces

    def too_many(path: Path, *these: Any) -> Iterator[memoryview]:
        yield from pieces(path, *these)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(merge_stream_file, "_pieces", too_many)
        with pytest.raises(DiskFull, match=rf"cannot write into {re.escape(str(disks.library))}: No space"):
            await merge(FFMPEG, disks.plan(media))
    assert disks.names() == CLEAN
    await merge(FFMPEG, disks.plan(media))


class Slow:
    """Holds the copy at its second piece until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.copying = self.pieces = 0
        self._pieces = merge_stream_file._pieces
        monkeypatch.setattr(merge_stream_file, "MOVE_BYTES", 1000)
        monkeypatch.setattr(merge_stream_file, "_pieces", self._slow)

    def _slow(self, path: Path, *these: Any) -> Iterator[memoryview]:
        self.copying += 1
        for number, piece in enumerate(self._pieces(path, *these)):
            if number == 1:
                self.reached.set()
                assert self.go.wait(20)
            self.pieces += 1
            yield piece
        self.copying -= 1


async def test_cancelling_a_copy_ends_it_and_leaves_nothing(
    media: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    task = asyncio.create_task(merge(FFMPEG, disks.plan(media)))
    await until(slow.reached.is_set)
    scratch, library = disks.names()
    assert len(scratch) == 2 and len(library) == 1
    task.cancel()
    for _turn in range(10):  # it must have heard of it before the thread goes on
        await asyncio.sleep(0)
    slow.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (slow.copying, slow.pieces) == (0, 2) and disks.names() == CLEAN


async def test_one_file_is_copied_at_a_time_while_ffmpegs_run(
    media: Path, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    plans = [dataclasses.replace(disks.plan(media), output=str(disks.library / f"{n}.mp4")) for n in range(5)]
    tasks = [asyncio.create_task(merge(FFMPEG, plan)) for plan in plans]
    await until(lambda: len([name for name in names(disks.scratch) if name.endswith(".moved")]) == len(plans))
    assert slow.copying == 1
    slow.go.set()
    await asyncio.gather(*tasks)
    assert disks.names() == (set(), {f"{n}.mp4" for n in range(5)})


KILLED_COPY = """
import os, pathlib, sys
sys.path.insert(0, {root!r})
import merge_stream_file
from model import Chapter, Merged, MergePlan, Subtitle
pieces = merge_stream_file._pieces
def hang(*these):
    for piece in pieces(*these):
        yield piece
        print("reached", flush=True)
        __import__("time").sleep(600)
merge_stream_file.MOVE_BYTES, merge_stream_file._pieces = 1000, hang
merge_stream_file._can_rename = lambda *_: False
__import__("asyncio").run(merge_stream_file.merge({ffmpeg!r}, MergePlan({output!r}, {video!r}, scratch={scratch!r})))
"""


@linux
async def test_kill_9_in_the_middle_of_a_copy_is_cleaned_on_both_disks_by_the_next_start(
    media: Path, disks: Disks
) -> None:
    plan = disks.plan(media)
    script = KILLED_COPY.format(
        root=str(ROOT), ffmpeg=FFMPEG, output=plan.output, video=plan.video, scratch=plan.scratch
    )
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    with worker.stdout:
        assert worker.stdout.readline() == b"reached\n"
        before = disks.names()
        assert [len(found) for found in before] == [2, 1]
        assert remove_leftovers(disks.scratch) == 0 == remove_leftovers(disks.library)  # its owner lives
        worker.kill()
        worker.wait()
    assert disks.names() == before
    assert remove_leftovers(disks.scratch) == 2
    assert disks.names() == CLEAN
    await merge(FFMPEG, plan)
    assert disks.names() == (set(), {"out.mp4"})


def test_a_note_of_a_dead_worker_leads_to_temporary_files_only(tmp_path: Path) -> None:
    scratch, library = tmp_path / "scratch", tmp_path / "library"
    scratch.mkdir()
    library.mkdir()
    note, named = scratch / ".merge-0123456789abcdef.tmp.moved", library / ".merge-0123456789abcdef.tmp"
    precious = library / "precious.mp4"
    precious.touch()
    for text in (str(precious), "", "\0", "x" * 100_000):
        note.write_text(text)
        assert remove_leftovers(scratch) == 1
    assert names(library) == {"precious.mp4"}
    named.touch()
    note.write_text(str(named))
    library.rename(tmp_path / "unplugged")
    assert remove_leftovers(scratch) == 0  # its disk may come back
    (tmp_path / "unplugged").rename(library)
    assert remove_leftovers(scratch) == 1
    assert names(library) == {"precious.mp4"}
    note.write_text(str(named))  # and where the file is gone, or never was
    assert remove_leftovers(scratch) == 1


@posix
def test_a_file_that_another_worker_writes_is_kept_though_a_note_names_it(tmp_path: Path) -> None:
    note, named = tmp_path / ".merge-0123456789abcdef.tmp.moved", tmp_path / "x" / ".merge-0123456789abcdef.tmp"
    named.parent.mkdir()
    note.write_text(str(named))
    with named.open("xb") as file:
        assert merge_stream_file._lock(file)
        assert remove_leftovers(tmp_path) == 0 and note.exists() and named.exists()
    assert remove_leftovers(tmp_path) == 1 and not note.exists() and not named.exists()


Refusal = tuple[int, ...]
LINKS: Refusal = ()
NO_LINKS: Refusal = (errno.EPERM,)
NEITHER: Refusal = (errno.EOPNOTSUPP, errno.EINVAL)


def refuse_links(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    """Act as a file system without hard links, and with a second error without exclusive renames either."""

    def refuse(problem: int) -> None:
        raise OSError(problem, os.strerror(problem))

    if refusal:
        monkeypatch.setattr(os, "link", lambda *_: refuse(refusal[0]))
    if len(refusal) > 1:
        monkeypatch.setattr(merge_stream_file, "_rename_exclusively", lambda *_: False)


@pytest.mark.parametrize("refusal", [LINKS, NO_LINKS, (errno.EMLINK,), (errno.EXDEV,), NEITHER])
@pytest.mark.parametrize("standing", ["nothing", "file", "folder", "dead link"])
async def test_a_file_gets_its_name_only_where_nothing_stands(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standing: str, refusal: Refusal
) -> None:
    refuse_links(monkeypatch, refusal)
    plan = dash(media, tmp_path)
    output = Path(plan.output)

    def comes_in_the_last_moment() -> bool:
        {
            "nothing": lambda: None,
            "file": lambda: output.write_bytes(b"another page"),
            "folder": output.mkdir,
            "dead link": lambda: output.symlink_to("nowhere"),
        }[standing]()
        return True

    if standing == "nothing":
        merged = await merge(FFMPEG, plan, comes_in_the_last_moment)
        assert merged.bytes == output.stat().st_size and output.stat().st_nlink == 1
    else:
        with pytest.raises(NameTaken, match=re.escape(str(output))):
            await merge(FFMPEG, plan, comes_in_the_last_moment)
        assert output.is_dir() or output.is_symlink() or output.read_bytes() == b"another page"
        assert not output.exists() or standing != "dead link"
    assert names(tmp_path) == {"out.mp4"}


@pytest.mark.parametrize("refusal", [LINKS, NO_LINKS])
async def test_of_many_that_publish_one_name_at_once_one_succeeds(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    refuse_links(monkeypatch, refusal)
    output = tmp_path / "out.mp4"
    for _round in range(20):
        sources = [tmp_path / f".merge-{n:016x}.tmp" for n in range(8)]
        for source in sources:
            source.write_text(source.name)
        start = threading.Barrier(len(sources))

        def publish(source: Path, start: threading.Barrier = start) -> Path | None:
            start.wait()
            with source.open("rb") as lock, contextlib.suppress(NameTaken):
                merge_stream_file._publish(source, lock, output)
                return source
            return None

        with ThreadPoolExecutor(len(sources)) as pool:
            winners = [winner for winner in pool.map(publish, sources) if winner is not None]
        assert [winner.name for winner in winners] == [output.read_text()]
        output.unlink()


@posix
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_link_leaves_a_leftover_at_most(tmp_path: Path, when: str) -> None:
    temporary, output = tmp_path / ".merge-0123456789abcdef.tmp", tmp_path / "out.mp4"
    script = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import merge_stream_file\n"
        "path, output = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "file = path.open('xb'); merge_stream_file._lock(file); file.write(b'whole'); file.flush()\n"
        "if sys.argv[4] == 'after': merge_stream_file._publish(path, file, output)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(ROOT), str(temporary), str(output), when])
    assert ended.returncode == -signal.SIGKILL
    assert names(tmp_path) == {temporary.name, *(["out.mp4"] if when == "after" else [])}
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == ({"out.mp4"} if when == "after" else set())
    assert when == "before" or output.read_bytes() == b"whole"


async def test_what_refuses_the_link_and_the_rename_is_said(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, NO_LINKS)

    def broken(*_: object) -> bool:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(merge_stream_file, "_rename_exclusively", broken)
    with pytest.raises(DiskFull, match=r"cannot write into .*Read-only"):
        await merge(FFMPEG, dash(media, tmp_path))
    assert names(tmp_path) == set()


@linux
def test_disks_are_told_apart(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second disk")
    assert not merge_stream_file._can_rename(other, tmp_path)
    assert merge_stream_file._can_rename(tmp_path, tmp_path)
    assert merge_stream_file._can_rename(tmp_path, tmp_path / "missing")


async def test_no_room_is_said_before_ffmpeg_runs(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: (10**9, 10**9 - 1000, 1000))
    with pytest.raises(DiskFull, match="0 MiB left"):
        await merge("/nowhere/ffmpeg", dash(media, tmp_path))


async def test_a_folder_that_cannot_be_used_is_named(media: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="missing"):
        await merge(FFMPEG, dash(media, tmp_path / "missing"))
    plan = dash(media, tmp_path)
    Path(plan.output).mkdir()
    with pytest.raises(NameTaken, match=r"out\.mp4 is there already"):
        await merge(FFMPEG, plan)
    assert names(tmp_path) == {"out.mp4"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("cannot mount here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
async def test_a_disk_that_fills_up_is_said(media: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_disk / "ballast").write_bytes(bytes(800 * 1024))
    with pytest.raises(DiskFull, match="MiB left"):
        await merge(FFMPEG, dash(media, small_disk))
    monkeypatch.setattr("shutil.disk_usage", lambda _: (10**9, 0, 10**9))
    with pytest.raises(DiskFull, match="full"):
        await merge(FFMPEG, dash(media, small_disk))
    assert names(small_disk) == {"ballast"}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DiskFull, match="cannot write"):
        await merge(FFMPEG, dash(media, small_disk))


async def test_merges_run_side_by_side_and_beside_threads(media: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        plans = [dataclasses.replace(dash(media, tmp_path), output=str(tmp_path / f"{n}.mp4")) for n in range(4)]
        await asyncio.gather(*(merge(FFMPEG, plan) for plan in plans))
    finally:
        stop.set()
        thread.join()
    assert names(tmp_path) == {"0.mp4", "1.mp4", "2.mp4", "3.mp4"}


# ------------------------------------------------------------------------------------------ the command


def test_the_command_keeps_ffmpeg_to_local_files() -> None:
    command = ffmpeg_arguments(
        "ff", [Task(MergePlan("/o/x.mp4", "/i/v", "/i/a", title="t", tag="BV1"), "/o/.tmp", "hev1")]
    )
    text = " ".join(command)
    assert text.count("-protocol_whitelist file -f mov -i file:/i/") == 2
    assert "-map 0:v:0 -map 1:a:0 -c copy -map_metadata -1" in text
    assert command[-3:] == ["-f", "mp4", "file:/o/.tmp"]
    assert {"-xerror", "-nostdin", "comment=BV1", "title=t", "hvc1"} <= set(command)
    assert "-tag:v" not in ffmpeg_arguments("ff", [Task(MergePlan("/o", "/v", "/a"), "/t", "avc1")])


def test_lists_of_segments_hold_plain_names_only() -> None:
    assert segment_list(MergePlan("/o", segments=("/s/0.flv", "/s/1.flv"))) == (
        "ffconcat version 1.0\nfile 0.flv\nfile 1.flv\n"
    )
    for bad in ("/s/a b", "/s/it's", "/s/-y", "/t/1.flv", "/s/x\nfile y", "/s/..", "/s/é"):
        with pytest.raises(MergeError, match="plain names"):
            segment_list(MergePlan("/o", segments=("/s/0.flv", bad)))


@posix
def test_ffmpeg_is_sought_in_the_folder_then_on_path_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, on_path = tmp_path / "ffmpeg" / "ffmpeg", tmp_path / "bin" / "ffmpeg"
    for path in (own, on_path):
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    environ = {"PATH": str(on_path.parent)}
    assert find_ffmpeg(tmp_path, environ) == str(own)
    own.chmod(0o644)
    with pytest.raises(UsageError, match=f"{re.escape(str(own))} cannot be executed"):
        find_ffmpeg(tmp_path, environ)
    own.unlink()
    assert find_ffmpeg(tmp_path, environ) == str(on_path)
    assert find_ffmpeg(tmp_path, {}) == find_ffmpeg(tmp_path, {"PATH": ""}) == FFMPEG

    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    with pytest.raises(UsageError, match="ffmpeg is missing: put it into"):
        find_ffmpeg(tmp_path, {})
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UsageError, match="pip install imageio-ffmpeg"):
        find_ffmpeg(tmp_path, {})


@posix
@pytest.mark.parametrize(
    ("body", "sentence"),
    [("sys.exit(2)", "exit status 2"), ("print('hello')", "not ffmpeg"), ("time.sleep(60)", "no answer")],
)
def test_a_broken_ffmpeg_is_named(tmp_path: Path, body: str, sentence: str) -> None:
    path = stub(tmp_path, body)
    with pytest.raises(UsageError, match=rf"{re.escape(path)} is broken.*{sentence}"):
        probe_ffmpeg(path, timeout_seconds=0.5 if "sleep" in body else 20)


@posix
def test_a_good_ffmpeg_tells_its_version(tmp_path: Path) -> None:
    assert re.match(r"[0-9n]", probe_ffmpeg(FFMPEG))
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    for path in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(UsageError, match="is broken"):
            probe_ffmpeg(str(path))
