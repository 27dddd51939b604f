"""Which pages the files of a folder are, whoever has downloaded them: what they say, and what lies beside them.

Nothing of a file's content is trusted but a mark that says which page it is. Such marks are, the best first: the
comment that this program writes; what lies beside under the same name (yt-dlp's ``.info.json``, danmaku as XML, which
name the page's cid, an ``.nfo``); ids in the name of the file or of its folder. By their defaults yt-dlp names files
``TITLE [BV…_p2].mp4`` (yt_dlp/extractor/bilibili.py), yutto ``TITLE/NAME.mp4`` (path_templates.py) and BBDown
``TITLE/[P02]NAME.mp4`` (its option --multi-file-pattern): of the last two only what lies beside tells the page, or a
template with an id in it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from errors import JobError
from i18n import _
from merging import read_tag
from model import MIB, JobId, Video
from parse_ import MAX_CID, aid_to_bvid, video_aid

ENDINGS = frozenset({".mp4", ".mkv", ".m4a", ".mka", ".flv", ".webm", ".mov", ".mp3", ".flac", ".aac"})
_TAGGED = frozenset({".mp4", ".mkv", ".m4a", ".mka", ".mov"})
_UNFINISHED = (".part", ".ytdl", ".aria2", ".vclip.tmp")
"""What downloaders leave beside a file that is not whole."""
_ONE_STREAM = re.compile(r"\.f(?:[0-9]{3,6}|hls|dash)[\w-]*$")
"""How yt-dlp names a stream that was not merged."""
_BESIDE_BYTES = 16 * MIB
_DANMAKU_BYTES = 64 * 1024

_BV = re.compile(r"(?<![0-9A-Za-z])(BV1[0-9A-Za-z]{9})(?![0-9A-Za-z])")
_AV = re.compile(r"(?<![0-9A-Za-z])av([1-9][0-9]{0,15})(?![0-9A-Za-z])", re.IGNORECASE)
_EPISODE = re.compile(r"(?<![0-9A-Za-z])ep([1-9][0-9]{3,15})(?![0-9A-Za-z])", re.IGNORECASE)
_CID = re.compile(r"(?<![0-9A-Za-z])cid[=_: -]?([1-9][0-9]{0,15})(?![0-9])", re.IGNORECASE)
_PAGE = re.compile(r"(?:_p|\[P|^P|[ _.(]P|[?&]p=)([0-9]{1,5})(?![0-9A-Za-z])")
_CHAT = re.compile(rb"<chatid>([1-9][0-9]{0,15})</chatid>")
_DANMAKU_ADDRESS = re.compile(r"comment\.bilibili\.com/([1-9][0-9]{0,15})\.xml")
_BEHIND_BV = re.compile(r"BV1[0-9A-Za-z]{9}(?:_p|\?p=)([0-9]{1,5})(?![0-9])")


@dataclass(frozen=True, slots=True)
class Marks:
    """What was found of a page, each field 0 or empty where it is not known; ``said_by`` names who said it."""

    bvid: str = ""
    episode_id: int = 0
    number: int = 0
    cid: int = 0
    title: str = ""
    said_by: tuple[str, ...] = ()

    def filled(self, other: Marks) -> Marks:
        """Return these with what the other ones know besides; they are about the same file, and less sure."""
        if self.bvid and other.bvid and self.bvid != other.bvid:
            return self
        names = ("bvid", "episode_id", "number", "cid", "title")
        news = {name: getattr(other, name) for name in names if not getattr(self, name) and getattr(other, name)}
        return replace(self, **news, said_by=(*self.said_by, *other.said_by)) if news else self


@dataclass(frozen=True, slots=True)
class Standing:
    """A file that is a page for certain; ``url`` is the id of its job, empty where only the cid is known."""

    path: Path
    url: str
    cid: int
    title: str
    bytes: int
    seconds: float
    said_by: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A file that is not adopted, and why."""

    path: Path
    reason: str


@dataclass(slots=True)
class Asked:
    """The site, asked for each video once; ``video`` and ``episode`` are those of site_walk.Site."""

    video: Callable[[str], Video]
    episode: Callable[[int], Video]
    _known: dict[str, Video | str] = field(default_factory=dict)

    def about(self, marks: Marks) -> Video | str:
        """Return the video of these marks, or why it cannot be had."""
        name = marks.bvid or f"ep{marks.episode_id}"
        if name not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            try:
                found = self.video(marks.bvid) if marks.bvid else self.episode(marks.episode_id)
            except JobError as error:
                self._known[name] = _("only {id} is known, and the site does not tell its pages: {reason}").format(
                    id=name, reason=error
                )
            else:
                self._known[name] = found
        return self._known[name]


def standing_files(folder: Path, asked: Asked | None) -> Iterator[Standing | Unknown]:
    """Yield what each media file below a folder is; where the cid is not said anywhere, the site is asked for it."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        beside = frozenset(names)
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in ENDINGS and not name.startswith("."):
                try:
                    yield _judged(path, beside, asked)
                except OSError as error:
                    yield Unknown(path, _("it cannot be read: {problem}").format(problem=error.strerror))


def _judged(path: Path, beside: frozenset[str], asked: Asked | None) -> Standing | Unknown:
    if any(path.name + ending in beside for ending in _UNFINISHED):
        return Unknown(path, _("its download has not ended: what belongs to that lies beside it"))
    if _ONE_STREAM.search(path.stem):
        return Unknown(path, _("it is one stream of a video that was not merged"))
    size_bytes = path.stat().st_size
    if not size_bytes:
        return Unknown(path, _("it is empty"))
    comment = ""
    if path.suffix.lower() in _TAGGED:
        try:
            comment = read_tag(path)
        except JobError:
            return Unknown(path, _("it is damaged, or its download has not ended"))
    marks = _marks_of(path, comment, beside)
    if not (marks.cid or marks.bvid or marks.episode_id):
        return Unknown(path, _("nothing in it, beside it or in its name says which video it is"))
    found = _completed(marks, asked)
    if isinstance(found, str):
        return Unknown(path, found)
    marks, seconds = found
    url = ""
    if marks.bvid or marks.episode_id:
        job = JobId(bvid=marks.bvid, episode_id=0 if marks.bvid else marks.episode_id, cid=marks.cid)
        url = str(replace(job, number=marks.number or 1) if marks.bvid else job)
    title = marks.title or path.stem
    return Standing(path, url, marks.cid, title, size_bytes, seconds, ", ".join(dict.fromkeys(marks.said_by)))


def _completed(marks: Marks, asked: Asked | None) -> tuple[Marks, float] | str:
    """Return the marks with a cid, and how long the page is where that was asked; or why there is none.

    A BV id alone is enough for a video of one page. Of one of several nobody knows which of them the file is.
    """
    if marks.cid:
        return marks, 0.0
    name = marks.bvid or f"ep{marks.episode_id}"
    if asked is None:
        return _("only {id} is known, and the site is not to be asked which page it is").format(id=name)
    video = asked.about(marks)
    if isinstance(video, str):
        return video
    pages = [page for page in video.pages if marks.number in (0, page.number)]
    if not pages:
        return _("{id} has no page {number}").format(id=name, number=marks.number)
    if len(pages) > 1:
        return _("{id} has {count} pages, and nothing says which one it is").format(id=name, count=len(pages))
    (page,) = pages
    said_by = (*marks.said_by, "site")
    title = video.title if len(video.pages) == 1 else f"{video.title} P{page.number} {page.title}"
    return replace(
        marks, cid=page.cid, number=page.number, title=marks.title or title, said_by=said_by
    ), page.duration_seconds


# ------------------------------------------------------------------------------------------ marks


def _marks_of(path: Path, comment: str, beside: frozenset[str]) -> Marks:
    marks = marks_in(comment, "comment") if "bilibili.com/" in comment else Marks()
    for ending, read in _READERS.items():
        if path.stem + ending in beside and not (marks.cid and (marks.bvid or marks.episode_id)):
            with suppress(OSError):
                marks = marks.filled(read(path.with_name(path.stem + ending)))
    marks = marks.filled(marks_in(path.stem, "name"))
    if not (marks.bvid or marks.episode_id):
        marks = marks.filled(replace(marks_in(path.parent.name, "folder"), title="", cid=0, number=0))
    return marks


def marks_in(text: str, said_by: str) -> Marks:
    """Return the marks in a name, a comment or an address; none where it names two videos."""
    named = {name for name in _BV.findall(text) if video_aid(name)}
    for aid in _AV.findall(text):
        with suppress(ValueError):
            named.add(aid_to_bvid(int(aid)))
    episodes = {int(number) for number in _EPISODE.findall(text)}
    cids = {int(cid) for cid in _CID.findall(text) if int(cid) <= MAX_CID}
    if len(named) > 1 or len(episodes) > 1 or len(cids) > 1:
        return Marks()
    bvid, episode_id, cid = "".join(named), sum(episodes), sum(cids)
    numbers = _BEHIND_BV.findall(text) or _PAGE.findall(text)
    number = int(numbers[0]) if numbers else 0
    known = bvid or episode_id or cid or number
    return Marks(bvid, episode_id, number, cid, said_by=(said_by,)) if known else Marks()


def _read_info(path: Path) -> Marks:
    """Return what yt-dlp's .info.json says; its id of an episode is a bare number."""
    said = _json(path)
    if "bilibili" not in str(said.get("extractor_key", "")).lower():
        return Marks()
    found = marks_in(f"{said.get('webpage_url', '')} {said.get('id', '')}", "info.json")
    subtitles = said.get("subtitles")
    cid = _DANMAKU_ADDRESS.search(json.dumps(subtitles)) if isinstance(subtitles, dict) else None
    title = said.get("title")
    return replace(found, cid=found.cid or (int(cid[1]) if cid else 0), title=title if isinstance(title, str) else "")


def _read_json(path: Path) -> Marks:
    """Return what the kept JSON of this program says (BILI_EXTRAS json): the site's answer about the video."""
    said = _json(path)
    data = said.get("data")
    said = data if isinstance(data, dict) else said
    bvid, title = str(said.get("bvid", "")), said.get("title")
    if not video_aid(bvid):
        return Marks()
    return Marks(bvid=bvid, title=title if isinstance(title, str) else "", said_by=("json",))


def _json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, suppress(ValueError, RecursionError):
        said = json.loads(file.read(_BESIDE_BYTES))
        if isinstance(said, dict):
            return said
    return {}


def _read_danmaku(path: Path) -> Marks:
    """Return the cid at the head of danmaku as XML, as the site gives them out and everybody keeps them."""
    with path.open("rb") as file:
        found = _CHAT.search(file.read(_DANMAKU_BYTES))
    return Marks(cid=int(found[1]), said_by=("danmaku",)) if found else Marks()


def _read_nfo(path: Path) -> Marks:
    with path.open("rb") as file:
        text = file.read(_DANMAKU_BYTES).decode("utf-8", "replace")
    unique = re.findall(r"<(?:uniqueid|website|source)[^>]*>([^<]{1,300})<", text)
    title = re.search(r"<title>([^<]{1,500})</title>", text)
    return replace(marks_in(" ".join(unique) or text, "nfo"), title=title[1] if title else "")


_READERS: dict[str, Callable[[Path], Marks]] = {
    ".info.json": _read_info,
    ".danmaku.xml": _read_danmaku,
    ".xml": _read_danmaku,
    ".nfo": _read_nfo,
    ".json": _read_json,
}
"""What may lie beside a file, under the same name with these endings."""
