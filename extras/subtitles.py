"""Subtitles: from the site's JSON to SRT, and what the player is told of them and of chapters.

bilibili-API-collect, docs/video/player.md. Without a login the list is empty, and AI subtitles need one as well.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from extras.answers import Object, clean_text
from model import Chapter
from parse_ import as_object, as_objects, envelope, reads_site

MAX_BYTES = 8 * 1024 * 1024
MAX_SUBTITLES = 64
MAX_CHAPTERS = 1000
_LONGEST_MILLISECONDS = 359_999_999
"""99:59:59,999, the last time that SRT can write."""


@dataclass(frozen=True, slots=True)
class Subtitle:
    """A subtitle on offer: ``language`` is the site's code for it, such as zh-CN; ``is_ai``: a machine wrote it."""

    language: str
    name: str
    is_ai: bool
    url: str = field(repr=False)

    @property
    def suffix(self) -> str:
        """What the name of its file ends with; players read the language from there."""
        return f".{self.language}{'.ai' if self.is_ai else ''}.srt"


@dataclass(frozen=True, slots=True)
class Player:
    """What the player is told of a page. ``strange`` counts subtitles that belong to another video."""

    subtitles: tuple[Subtitle, ...] = ()
    chapters: tuple[Chapter, ...] = ()
    needs_login: bool = False
    strange: int = 0


@reads_site
def parse_player(text: str, aid: int, cid: int) -> Player:
    """Return what an answer of /x/player/wbi/v2 says of a page.

    The site is known to answer with AI subtitles of other videos (SocialSisterYi's and BBDown's users saw it often);
    their addresses tell: the name is aid and cid, then 32 digits of a hash. Such are left out, and counted. Those that
    people wrote come first: players show the first track by themselves.
    """
    data = as_object(envelope(text).get("data"))
    listed = data.get("subtitle")  # a list, not an object, on some answers
    items = as_objects(listed.get("subtitles")) if isinstance(listed, dict) else []
    offered = [_subtitle(item) for item in items[:MAX_SUBTITLES]]
    sound = [subtitle for subtitle in offered if subtitle.url and subtitle.language]
    ours = [subtitle for subtitle in sound if _is_of(subtitle.url, aid, cid)]
    return Player(
        subtitles=tuple(sorted(_each_once(ours), key=lambda subtitle: subtitle.is_ai)),
        chapters=_chapters(as_objects(data.get("view_points"))),
        needs_login=bool(data.get("need_login_subtitle")) and not offered,
        strange=len(sound) - len(ours),
    )


def _subtitle(item: Object) -> Subtitle:
    code = str(item.get("lan", ""))
    is_ai = code.startswith("ai-") or item.get("type") == 1 or "/ai_subtitle/" in str(item.get("subtitle_url"))
    language = re.sub(r"[^0-9A-Za-z-]", "", code.removeprefix("ai-"))[:20].strip("-")
    return Subtitle(
        language, clean_text(str(item.get("lan_doc", "")))[:100], is_ai, str(item.get("subtitle_url") or "")
    )


def _is_of(url: str, aid: int, cid: int) -> bool:
    name = urlsplit(url).path.rpartition("/")[2].partition(".")[0]
    match = re.fullmatch(r"([0-9]+)[0-9a-f]{32}", name)
    return match is None or match[1] == f"{aid}{cid}"


def _each_once(subtitles: Iterable[Subtitle]) -> list[Subtitle]:
    """Return the subtitles with the first of each file name; a language that is there twice cannot be told apart."""
    return list({subtitle.suffix.lower(): subtitle for subtitle in reversed([*subtitles])}.values())[::-1]


def _chapters(points: list[Object]) -> tuple[Chapter, ...]:
    """Return the chapters in order, without those that are empty or overlap the one before."""
    found: list[Chapter] = []
    for point in points[:MAX_CHAPTERS]:
        start, stop = float(point.get("from", 0)), float(point.get("to", 0))
        title = " ".join(clean_text(str(point.get("content", ""))).split())[:200]
        if title and 0 <= start < stop < 1e6 and (not found or start >= found[-1].stop_seconds):
            found.append(Chapter(start, stop, title))
    return tuple(found)


# ------------------------------------------------------------------------------------------ SRT


@reads_site
def to_srt(text: str, most_seconds: float = math.inf) -> str:
    """Return the lines of a subtitle in the site's JSON as SRT, in the order of their time.

    With ``most_seconds`` no line goes on longer: a track in a video would make the video itself longer.
    """
    lines = []
    for item in as_objects(json.loads(text)["body"]):
        start, stop = (_milliseconds(min(item[name], most_seconds)) for name in ("from", "to"))
        words = re.sub(r"\n{2,}", "\n", clean_text(str(item.get("content", "")))).strip("\n")
        if words.strip() and stop > start:
            lines.append((start, stop, words.replace("-->", "→")))
    lines.sort(key=lambda line: line[:2])
    return "\n".join(
        f"{place}\n{_time(start)} --> {_time(stop)}\n{words}\n" for place, (start, stop, words) in enumerate(lines, 1)
    )


def _milliseconds(seconds: float) -> int:
    return min(max(round(seconds * 1000), 0), _LONGEST_MILLISECONDS)


def _time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{rest:03d}"
