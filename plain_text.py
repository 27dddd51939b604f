"""Text, sizes and durations as people read them, on a terminal and in a log; whatever is in a title, it is harmless."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from i18n import _

SHOWN_CHARACTERS = 300
"""No screen shows more of a title."""
MARKS_TOGETHER = 4
"""So many combining marks on one character are a language; more of them climb over the lines above."""
_LONGEST_SECONDS = 99 * 3600 + 59 * 60 + 59
_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400))))
"""Whether the emoji before it is wide, and its skin: terminals do not agree on how many cells that makes."""


@lru_cache(maxsize=4096)
def harmless(text: str) -> str:
    """Return text for one line of a terminal: nothing in it commands the terminal, or is wider than it looks.

    Blanks of all kinds become spaces; control characters, marks of direction, joiners and what has no character are
    left out.
    """
    found: list[str] = []
    marks = 0
    for character in text[:SHOWN_CHARACTERS]:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if character.isspace():
            found.append(" ")
        elif character.isprintable() and character not in _SELECTORS and marks <= MARKS_TOGETHER:
            found.append(character)
    return "".join(found).strip()


def one_line(text: str) -> str:
    """Return text for one line of a log: what would end the line, command a terminal or turn it round is escaped."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def json_text(value: object) -> str:
    """Return JSON for scripts; they may show it on a terminal, so what would command that is escaped."""
    return "".join(map(_json_character, json.dumps(value, ensure_ascii=False, indent=1)))


def _json_character(character: str) -> str:
    return character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]


def size_text(size_bytes: float) -> str:
    """Return a size with three digits and a unit."""
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 99.95 or units[0] == "B" else f"{value:.1f} {units[0]}"


def sizes_text(part_bytes: float, whole_bytes: float) -> str:
    """Return how much there is of a whole, both in the unit of the whole."""
    whole, unit = size_text(whole_bytes).split(" ")
    value = part_bytes / 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    return f"{value:.{1 if '.' in whole else 0}f}/{whole} {unit}"


def speed_text(bytes_per_second: float) -> str:
    """Return a speed with three digits and a unit."""
    return f"{size_text(bytes_per_second)}/s"


def clock_text(seconds: float) -> str:
    """Return a duration as a clock shows it, a stroke for each digit where it is not known."""
    if not 0 <= seconds <= _LONGEST_SECONDS:
        return "--:--"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


def span_text(seconds: float, _: Callable[[str], str] = _) -> str:
    """Return a duration in one unit, in the language of ``_``."""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return _("{count} s").format(count=round(seconds))
    if seconds < 59.5 * 60:
        return _("{count} min").format(count=round(seconds / 60))
    if seconds < 23.5 * 3600:
        return _("{count} h").format(count=round(seconds / 3600))
    return _("{count} d").format(count=round(seconds / 86400))
