"""The command by which ffmpeg joins the streams of a page, and the small files that it reads beside them.

Pure: a plan comes in, arguments and texts go out. Nothing is decoded or encoded, save subtitles for MP4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from errors import MergeError
from i18n import _
from model import MergePlan

TITLE_CHARACTERS = 500
TAG_CHARACTERS = 2000
MAX_TAGS = 16
MAX_CHAPTERS = 255
"""The list of chapters in an MP4 file has no room for more."""

MATROSKA = frozenset({".mkv", ".mka"})
COVERS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png"}
"""How pictures begin that both containers take for a cover."""

_LIST_SUFFIX = ".ffconcat"
_CHAPTERS_SUFFIX = ".ffmetadata"
_PLAIN_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*", re.ASCII)
_TAG_NAME = re.compile(r"[a-z_]{1,32}", re.ASCII)
_OWN_TAGS = frozenset({"title", "comment"})
_DOLBY_VISION = frozenset({"dvh1", "dvhe"})
_LANGUAGES = {
    **{"zh": "zho", "en": "eng", "ja": "jpn", "ko": "kor", "es": "spa", "ar": "ara", "pt": "por", "de": "deu"},
    **{"fr": "fra", "ru": "rus", "th": "tha", "vi": "vie", "id": "ind", "it": "ita", "ms": "msa", "tr": "tur"},
}


def is_matroska(path: str) -> bool:
    """Tell by its extension whether a file is to be Matroska, else it is MP4."""
    return Path(path).suffix.lower() in MATROSKA


def without_extras(plan: MergePlan) -> MergePlan:
    """Return the plan without what is not needed for the streams alone."""
    return replace(plan, cover="", chapters=(), tags=(), subtitles=())


@dataclass(frozen=True, slots=True)
class Task:
    """A file to make: what ``plan`` says, into ``temporary``.

    ``video_codec`` is the fourcc of the input, ``container`` what a durl segment is: ``mov`` or ``flv``, ``cover`` what
    picture the cover is: ``jpeg`` or ``png``. ``uniform`` segments have one decoder configuration: their packets are
    then taken as they are, else ffmpeg writes the configuration before each key frame.
    """

    plan: MergePlan
    temporary: str
    video_codec: str = ""
    container: str = "mov"
    uniform: bool = False
    cover: str = ""


def ffmpeg_arguments(ffmpeg: str, tasks: Sequence[Task]) -> list[str]:
    """Return the command that makes the files of ``tasks``, each as if it were the only one.

    The format is forced, because ffmpeg would follow a playlist that calls itself .m4s; every path has ``file:`` before
    it, because ffmpeg takes ``a:b`` for a protocol and has no ``--``.
    """
    start = [ffmpeg, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning"]
    if all(len(task.plan.segments) < 2 for task in tasks):
        # Not for joined ones: the sound of a segment may end after its picture, and that is an error for -xerror.
        start.append("-xerror")
    start += ["-progress", "pipe:1", "-y"]
    inputs: list[str] = []
    outputs: list[str] = []
    first = 0
    for task in tasks:
        its_inputs, its_output = _words(task, first)
        inputs += [word for each in its_inputs for word in each]
        outputs += its_output
        first += len(its_inputs)
    return [*start, *inputs, *outputs]


def _words(task: Task, first: int) -> tuple[list[list[str]], list[str]]:
    """Return the words for each input of a file, the first of which has the number ``first``, and for the output."""
    plan = task.plan
    streams = list(_stream_inputs(task))
    maps = _stream_maps(plan, first)
    extras = _Extras(plan, task.temporary, first + len(streams), task.cover, [each.split(":")[1] for each in maps])
    return [*streams, *extras.inputs], [
        *(word for each in (*maps, *extras.maps) for word in ("-map", each)),
        *extras.codecs,
        *extras.metadata,
        *("-map_chapters", str(extras.chapters_input), "-movflags", "+faststart", "-strict", "-2"),
        *_video_tag(task.video_codec, is_matroska(plan.output)),
        *(("-metadata", f"title={one_line(plan.title)}") if plan.title else ()),
        *(("-metadata", f"comment={one_line(plan.tag)}") if plan.tag else ()),
        *extras.options,
        *(("-f", "matroska") if is_matroska(plan.output) else ("-f", "mp4")),
        f"file:{task.temporary}",
    ]


def _stream_inputs(task: Task) -> Iterator[list[str]]:
    plan = task.plan
    if len(plan.segments) > 1:
        convert = ["-auto_convert", "0"] if task.uniform else []
        yield _input("concat", segment_list_path(plan, task.temporary), "-safe", "1", *convert)
        return
    for path in (*plan.segments, plan.video, plan.audio):
        if path:
            yield _input(task.container, path)


def _input(form: str, path: str, *options: str) -> list[str]:
    return ["-protocol_whitelist", "file", "-f", form, *options, "-i", f"file:{path}"]


def _stream_maps(plan: MergePlan, first: int) -> list[str]:
    if plan.segments:
        wanted = {"video": ["v:0"], "audio": ["a:0"], "both": ["v:0?", "a:0?"]}
        return [f"{first}:{stream}" for stream in wanted[plan.streams]]
    if plan.video:
        return [f"{first}:v:0", *([f"{first + 1}:a:0"] if plan.audio else [])]
    return [f"{first}:a:0"]


def _video_tag(codec: str, matroska: bool) -> tuple[str, ...]:
    """Return how the pictures are named in the output: as Apple's players want it, who refuse hev1.

    Dolby Vision that is called so in the input cannot be played as plain HEVC, and keeps its name. Matroska has no such
    names, but ffmpeg wants one that it knows.
    """
    if codec in _DOLBY_VISION:
        return ("-tag:v:0", "hvc1" if matroska else "dvh1")
    return ("-tag:v:0", "hvc1") if codec in ("hev1", "hvc1") and not matroska else ()


class _Extras:
    """The words for what comes beside the streams.

    ``first`` is the number of the first input that is free, ``kinds`` are the letters of the streams: v, a.
    """

    def __init__(self, plan: MergePlan, temporary: str, first: int, cover: str, kinds: list[str]) -> None:
        self._plan, self._matroska = plan, is_matroska(plan.output)
        self.inputs: list[list[str]] = []
        self.maps: list[str] = []
        self.codecs = ["-c", "copy"]
        self.options: list[str] = []
        self.chapters_input = -1
        self._first = first
        self._kinds = kinds
        for subtitle in plan.subtitles:
            form = "ass" if subtitle.path.lower().endswith(".ass") else "srt"
            self.maps.append(f"{self._add(form, subtitle.path)}:s:0")
        if plan.subtitles:
            self.codecs = ["-c:v", "copy", "-c:a", "copy", "-c:s", "copy" if self._matroska else "mov_text"]
        if plan.cover and cover:
            self._add_cover(cover)
        if plan.chapters:
            self.chapters_input = self._add("ffmetadata", list_of_chapters_path(temporary))
        self.options += self._texts()

    def _add(self, form: str, path: str) -> int:
        self.inputs.append(_input(form, path))
        return self._first + len(self.inputs) - 1

    def _add_cover(self, cover: str) -> None:
        if self._matroska:
            name = {"jpeg": "jpg", "png": "png"}[cover]
            self.options += ["-attach", f"file:{self._plan.cover}"]
            self.options += ["-metadata:s:t:0", f"mimetype=image/{cover}", "-metadata:s:t:0", f"filename=cover.{name}"]
        else:
            self.maps.append(f"{self._add(f'{cover}_pipe', self._plan.cover)}:v:0")
            self.options += [f"-disposition:v:{self._kinds.count('v')}", "attached_pic"]

    def _texts(self) -> Iterator[str]:
        for place, subtitle in enumerate(self._plan.subtitles):
            yield from (f"-metadata:s:s:{place}", f"language={language_code(subtitle.language)}")
            if subtitle.title:
                yield from (f"-metadata:s:s:{place}", f"title={one_line(subtitle.title)}")
        named = [(name, text) for name, text in self._plan.tags if _TAG_NAME.fullmatch(name) and text.strip()]
        for name, text in [tag for tag in named if tag[0] not in _OWN_TAGS][:MAX_TAGS]:
            yield from ("-metadata", f"{name}={_printable(text, TAG_CHARACTERS, keep=chr(10))}")
        if not self._matroska and self._kinds == ["a"]:
            yield from ("-brand", "M4A ")

    @property
    def metadata(self) -> list[str]:
        """Return what keeps texts of the inputs out; beside chapters, whose titles stay, that is said of each place."""
        if self.chapters_input < 0:
            return ["-map_metadata", "-1"]
        words = ["-map_metadata:g", "-1"]
        for kind in self._kinds:
            words += [f"-map_metadata:s:{kind}:0", "-1"]
        return words


def language_code(language: str) -> str:
    """Return the three letters of ISO 639-2 for a language as the site writes it, ``und`` where it is unknown."""
    first = language.lower().removeprefix("ai-").partition("-")[0]
    return _LANGUAGES.get(first, first if re.fullmatch("[a-z]{3}", first) else "und")


# ------------------------------------------------------------------------------------------ files for ffmpeg to read


def segment_list_path(plan: MergePlan, temporary: str) -> str:
    """Return where the list of several segments is written: beside them, so that it needs their bare names only."""
    return str(Path(plan.segments[0]).parent / (Path(temporary).name + _LIST_SUFFIX))


def segment_list(plan: MergePlan) -> str:
    """Return the list of segments as ffmpeg's concat demuxer reads it; raise MergeError for names it could misread."""
    paths = [Path(segment) for segment in plan.segments]
    for path in paths:
        if path.parent != paths[0].parent or not _PLAIN_NAME.fullmatch(path.name):
            raise MergeError(_("{path}: segments need plain names in one folder").format(path=repr(str(path))))
    return "ffconcat version 1.0\n" + "".join(f"file {path.name}\n" for path in paths)


def list_of_chapters_path(temporary: str) -> str:
    """Return where the chapters are written: beside the file that is made."""
    return temporary + _CHAPTERS_SUFFIX


def list_of_chapters(plan: MergePlan) -> str:
    """Return the chapters as ffmpeg's own format for metadata has them."""
    lines = [";FFMETADATA1"]
    for chapter in plan.chapters[:MAX_CHAPTERS]:
        start = max(round(chapter.start_seconds * 1000), 0)
        stop = max(round(chapter.stop_seconds * 1000), start + 1)
        title = re.sub(r"([=;#\\])", r"\\\1", one_line(chapter.title))
        title += " " if title.endswith("\\") else ""  # else the line's end counts as escaped, and the next one is lost
        lines += ["[CHAPTER]", "TIMEBASE=1/1000", f"START={start}", f"END={stop}", f"title={title}"]
    return "\n".join(lines) + "\n"


def one_line(text: str) -> str:
    """Return a text for one line of the file's metadata."""
    return _printable(text, TITLE_CHARACTERS)


def _printable(text: str, limit: int, keep: str = "") -> str:
    printable = "".join(
        character if character.isprintable() or character in keep else " " for character in text[:limit]
    )
    return printable.encode("utf-8", "replace").decode()
