"""The canonical ids of sources, the texts by which the queue knows them: grammar, parse and format.

A source is what lists videos: an uploader, a folder of favourites, a season … It is a leaf, apart from ``sources/``,
because ``parse_`` has to know a source's id from a video's, and ``sources/`` reads the site's answers with ``parse_``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

MAX_ID = 2**53 - 1
MAX_KEYWORD_CHARACTERS = 100

NUMBERED = (
    *("mid:", "favs:", "fav:", "lists:", "season:", "series:"),
    *("ss", "md", "cheese:ss", "cheese:ep", "rank:", "weekly:"),
)
"""What stands before the number of a source that has one."""

NAMED = ("later", "popular", "weekly", "precious")
"""Sources of which there is one."""

SEARCH = "search:"
LESSON = "cheese:ep"
"""One lesson of a course: a source in form only, because it is no episode of bangumi and lists nothing but itself."""

RANKING = "rank:"

_PARTS = re.compile(r"[1-9][0-9]{0,8}(?:,[1-9][0-9]{0,8}){0,31}")
_NUMBERED = re.compile(rf"(?P<kind>{'|'.join(NUMBERED)})(?P<number>0|[1-9][0-9]{{0,15}})")
_MAY_BE_ZERO = frozenset({RANKING})
"""Ranking 0 is that of the whole site."""


@dataclass(frozen=True, slots=True)
class Source:
    """A canonical id taken apart: ``kind`` is one of NUMBERED, NAMED or SEARCH; ``str`` is the id.

    ``parts`` are the sub-regions of which a ranking is wished, in their order; empty is all of it.
    """

    kind: str
    number: int = 0
    keyword: str = ""
    parts: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind in NAMED:
            return self.kind
        if self.parts:
            return f"{self.kind}{self.number}:{','.join(map(str, self.parts))}"
        return self.kind + (quote(self.keyword, safe="") if self.kind == SEARCH else str(self.number))


def find_source(text: str) -> Source | None:
    """Return what a canonical id says, exactly as ``str`` writes it; None for any other text."""
    if text in NAMED:
        return Source(text)
    if text.startswith(SEARCH):
        return _find_search(text)
    if text.startswith(RANKING) and text.count(":") == 2:
        whole, _colon, parts = text.rpartition(":")
        found = ranking_of(whole, parts)
        return found if str(found) == text else None
    match = _NUMBERED.fullmatch(text)
    if match is None or int(match["number"]) > MAX_ID or (match["number"] == "0" and match["kind"] not in _MAY_BE_ZERO):
        return None
    return Source(match["kind"], int(match["number"]))


def ranking_of(whole: str, parts: str) -> Source | None:
    """Return the ranking of sub-regions of a region, in order and each once; None where it is none."""
    region = find_source(whole)
    if region is None or region.kind != RANKING or region.parts or not region.number or not _PARTS.fullmatch(parts):
        return None
    return replace(region, parts=tuple(sorted(set(map(int, parts.split(","))))))


def search_for(keyword: str) -> Source | None:
    """Return the search for a keyword, blanks put in order; None where nothing, or too much, is left to search for."""
    keyword = " ".join(keyword.split())
    if not keyword.isprintable() or not 1 <= len(keyword) <= MAX_KEYWORD_CHARACTERS:
        return None
    return Source(SEARCH, keyword=keyword)


def _find_search(text: str) -> Source | None:
    try:
        source = search_for(unquote(text.removeprefix(SEARCH), errors="strict"))
    except UnicodeDecodeError:
        return None
    return source if source is not None and str(source) == text else None
