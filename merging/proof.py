"""The proofs of a merge: what the inputs hold before ffmpeg runs, and whether its output holds the same.

ffmpeg's exit status proves little: it is 0 for inputs that lack a fragment or their end. So the boxes of each input are
walked before, and after it the tracks of the output, their lengths and their frames are compared with the inputs and
with what the site announced: by its boxes where it is MP4, by its elements where it is Matroska.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from errors import DamagedStream, DiskFull, JobError, MergeError, PermanentError
from i18n import _
from merging import matroska, mp4_boxes
from merging.command import COVERS, MAX_CHAPTERS, is_matroska, one_line, without_extras
from model import Merged, MergePlan

log = logging.getLogger(__name__)

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_KINDS = {"video": _("video"), "audio": _("audio")}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the inputs hold, read before ffmpeg: seconds and frames by kind of track (no frames where not known)."""

    seconds: Mapping[str, float]
    size_bytes: int
    video_codec: str = ""
    container: str = "mov"
    uniform: bool = False
    samples: Mapping[str, int] = field(default_factory=dict)
    cover: str = ""
    """``jpeg`` or ``png``, if there is one that can be used."""


def check_inputs(plan: MergePlan) -> Inputs:
    """Return what the streams of a plan hold; raise MergeError, naming the file, unless each is whole.

    PermanentError is raised for what is encrypted, and for segments that lack the only kind that is wanted.
    """
    if bool(plan.segments) == bool(plan.video or plan.audio):
        raise ValueError("a plan has either DASH streams or segments")
    if plan.segments:
        return replace(_wanted(_check_segments(plan.segments), plan.streams), cover=_cover_kind(plan))
    seconds: dict[str, float] = {}
    samples: dict[str, int] = {}
    codec = ""
    size_bytes = 0
    for kind, text in (("video", plan.video), ("audio", plan.audio)):
        if text:
            with _named_input(text) as (file, bytes_):
                track = _only(mp4_boxes.read_stream(file, bytes_), kind)
            seconds[kind], samples[kind] = track.duration_seconds, track.samples
            codec = track.codec if kind == "video" else codec
            size_bytes += bytes_
    return Inputs(seconds, size_bytes, codec, samples=samples, cover=_cover_kind(plan))


def _wanted(inputs: Inputs, streams: str) -> Inputs:
    """Return the inputs with the kinds that are wanted of them only."""
    if streams == "both":
        return inputs
    if streams not in inputs.seconds:
        raise PermanentError(
            _("only its {kind} is wanted, and it has none").format(kind=_KINDS[streams]), f"no-{streams}"
        )
    codec = inputs.video_codec if streams == "video" else ""
    return replace(inputs, seconds={streams: inputs.seconds[streams]}, video_codec=codec)


def _cover_kind(plan: MergePlan) -> str:
    """Return what picture the cover is, an empty text where there is none that can be used."""
    if not plan.cover:
        return ""
    try:
        with Path(plan.cover).open("rb") as file:
            start = file.read(4)
    except OSError as error:
        log.warning(_("the cover is left out: %s: %s"), plan.cover, error.strerror)
        return ""
    kind = next((kind for magic, kind in COVERS.items() if start.startswith(magic)), "")
    if not kind:
        log.warning(_("the cover is left out: %s is neither JPEG nor PNG"), plan.cover)
    return kind


def _check_segments(paths: tuple[str, ...]) -> Inputs:
    seconds: dict[str, float] = {}
    codec = ""
    containers = set()
    configurations = set()
    size_bytes = 0
    for path in paths:
        with _named_input(path) as (file, bytes_):
            container, tracks = _segment_tracks(file, bytes_)
        containers.add(container)
        size_bytes += bytes_
        for track in tracks:
            seconds[track.kind] = seconds.get(track.kind, 0.0) + track.duration_seconds
            if track.kind == "video":
                codec = track.codec
                configurations.add(track.configuration)
    if len(containers) > 1:
        raise MergeError(_("the segments are of different formats: {formats}").format(formats=sorted(containers)))
    if not seconds:
        raise MergeError(_("{path} has neither video nor audio").format(path=paths[0]))
    uniform = len(configurations) == 1 and b"" not in configurations
    return Inputs(seconds, size_bytes, codec, containers.pop(), uniform)


def _segment_tracks(file: BinaryIO, size_bytes: int) -> tuple[str, tuple[mp4_boxes.Track, ...]]:
    if file.read(3) == b"FLV":
        return "flv", mp4_boxes.read_flv_tracks(file, size_bytes)
    mp4_boxes.check_plain(file, size_bytes)
    tracks = mp4_boxes.read_tracks(file, size_bytes)
    return "mov", tuple(next(track for track in tracks if track.kind == kind) for kind in {t.kind for t in tracks})


def _only(tracks: tuple[mp4_boxes.Track, ...], kind: str) -> mp4_boxes.Track:
    if len(tracks) != 1 or tracks[0].kind != kind:
        raise MergeError(
            _("one {kind} track is expected, it has: {found}").format(
                kind=_KINDS[kind], found=_kinds(track.kind for track in tracks)
            )
        )
    if tracks[0].codec in ("encv", "enca"):
        raise PermanentError(_("the stream is encrypted (DRM)"), code="drm")
    return tracks[0]


def _kinds(kinds: Iterable[str]) -> str:
    return ", ".join(_KINDS[kind] for kind in sorted(kinds)) or "-"


@contextlib.contextmanager
def _named_input(path: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open an input; whatever is wrong with it is said with its name."""
    try:
        with Path(path).open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except MergeError as error:
        raise DamagedStream(f"{Path(path).name}: {error}", error.code) from error
    except JobError as error:
        raise type(error)(f"{Path(path).name}: {error}", error.code) from error
    except OSError as error:
        raise MergeError(_("cannot read {path}: {problem}").format(path=path, problem=error.strerror)) from error


@dataclass(frozen=True, slots=True)
class _Output:
    """What a merged file says of itself, whatever its container."""

    tracks: tuple[mp4_boxes.Track, ...]
    comment: str
    subtitles: int
    chapters: int
    has_cover: bool


def check_output(temporary: Path, plan: MergePlan, inputs: Inputs, stays: bool) -> Merged:
    """Prove the merged file, and bring one that stays on this disk to it; return it as it is to be called."""
    with _named_output(temporary) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        output = (_read_matroska if is_matroska(plan.output) else _read_mp4)(file, size_bytes, plan)
        check_tracks(output.tracks, plan, inputs)
        if output.comment != one_line(plan.tag):
            raise MergeError(_("the merged file lacks its comment"))
        _check_extras(output, plan, inputs)
        if stays:
            os.fsync(file.fileno())
    return Merged(plan.output, size_bytes, max(track.duration_seconds for track in output.tracks))


def _read_mp4(file: BinaryIO, size_bytes: int, plan: MergePlan) -> _Output:
    mp4_boxes.check_plain(file, size_bytes)
    tracks = mp4_boxes.read_tracks(file, size_bytes)
    comment = mp4_boxes.read_comment(file, size_bytes)
    if plan == without_extras(plan):
        return _Output(tracks, comment, 0, 0, False)
    extras = mp4_boxes.read_extras(file, size_bytes)
    return _Output(tracks, comment, extras.subtitles, extras.chapters, extras.has_cover)


def _read_matroska(file: BinaryIO, size_bytes: int, plan: MergePlan) -> _Output:
    content = matroska.read_matroska(file, size_bytes)
    tracks = tuple(
        mp4_boxes.Track(track.kind, track.duration_seconds, track.codec, samples=track.samples)
        for track in content.tracks
        if track.kind in _KINDS
    )
    subtitles = sum(track.kind == "subtitle" for track in content.tracks)
    return _Output(tracks, content.comment, subtitles, content.chapters, content.attachments > 0)


def _check_extras(output: _Output, plan: MergePlan, inputs: Inputs) -> None:
    """Raise MergeError where something that should come beside the streams is missing."""
    missing = {
        _("the cover"): bool(inputs.cover) and not output.has_cover,
        _("chapters"): output.chapters < min(len(plan.chapters), MAX_CHAPTERS),
        _("subtitles"): output.subtitles < len(plan.subtitles),
    }
    if names := [name for name, is_missing in missing.items() if is_missing]:
        raise MergeError(_("the merged file lacks {names}").format(names=", ".join(names)))


def read_tag(path: Path) -> str:
    """Return what a finished file says in its comment; raise MergeError for one that is damaged or of another kind."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        is_mkv = file.read(len(matroska.MAGIC)) == matroska.MAGIC
        read_comment = matroska.read_comment if is_mkv else mp4_boxes.read_comment
        return read_comment(file, size_bytes)


def write_failure(error: OSError, folder: Path) -> JobError:
    """Return the error for something that could not be written into a folder."""
    sentence = _("cannot write into {folder}: {problem}").format(folder=folder, problem=error.strerror or error)
    return DiskFull(sentence) if error.errno in _NOT_WRITABLE else MergeError(sentence)


@contextlib.contextmanager
def _named_output(temporary: Path) -> Iterator[BinaryIO]:
    try:
        with temporary.open("r+b") as file:
            yield file
    except MergeError as error:
        raise MergeError(_("ffmpeg's output is wrong: {problem}").format(problem=error)) from error
    except OSError as error:
        raise write_failure(error, temporary.parent) from error


def check_tracks(tracks: tuple[mp4_boxes.Track, ...], plan: MergePlan, inputs: Inputs) -> None:
    """Compare the tracks of a merged file with those of its inputs, and with what the site announced."""
    kinds = sorted(track.kind for track in tracks)
    if kinds != sorted(inputs.seconds):
        raise MergeError(
            _("it has the tracks {found}, not {expected}").format(found=_kinds(kinds), expected=_kinds(inputs.seconds))
        )
    joints = max(len(plan.segments), 1)
    for track in tracks:
        seconds, expected = track.duration_seconds, inputs.seconds[track.kind]
        if abs(seconds - expected) > 0.5 * joints:
            raise MergeError(
                _("its {kind} track lasts {seconds:.1f} s, the input {expected:.1f} s").format(
                    kind=_KINDS[track.kind], seconds=seconds, expected=expected
                )
            )
        _check_samples(track, inputs.samples.get(track.kind, 0), expected)
        _check_announced(track, plan.duration_seconds)


def _check_samples(track: mp4_boxes.Track, expected: int, seconds: float) -> None:
    """Raise MergeError where frames are missing, save half a second of them, which an edit list may leave out.

    More of them are no harm: a frame of E-AC-3 that consists of several may be taken apart.
    """
    if not expected or not track.samples:
        return
    tolerance = 1 + expected * min(0.5 / seconds, 1.0) if seconds > 0 else expected
    if expected - track.samples > tolerance:
        raise MergeError(
            _("its {kind} track has {found} frames, the input {expected}").format(
                kind=_KINDS[track.kind], found=track.samples, expected=expected
            )
        )


def _check_announced(track: mp4_boxes.Track, announced_seconds: float) -> None:
    """Compare a track with what the site announced, which is rounded; sound may end long before the picture does."""
    if announced_seconds <= 0:
        return
    surplus = track.duration_seconds - announced_seconds
    longer = max(2.0, 0.02 * announced_seconds)
    shorter = longer if track.kind == "video" else max(5.0, 0.5 * announced_seconds)
    if not -shorter <= surplus <= longer:
        raise MergeError(
            _("its {kind} track lasts {seconds:.1f} s, the site announced {announced:.1f} s").format(
                kind=_KINDS[track.kind], seconds=track.duration_seconds, announced=announced_seconds
            )
        )
