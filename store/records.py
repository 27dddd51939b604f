"""How the record of a finished page is packed in Redis, and read again: there are millions of them.

What many records say alike (who, which streams, the way a path is made) is a word: it is kept once, and a record has
its number. A path mostly repeats the title and the id, so that it is kept as its pattern. Whatever a pattern cannot
give back exactly is kept as it is.

What is here says what old records mean: none of it may change for records that are there already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

LITERAL, RAW = "=", "=="
"""Stand before a text that is no word, and before a path that is no pattern, whatever is in it."""
WORD_FIELDS = ("path", "worker", "streams", "category", "source", "stored")
"""The fields of a record that may be the number of a word."""

_TITLE, _VIDEO_TITLE, _PAGE_TITLE, _ID, _CID, _PATH = "\x01\x02\x03\x04\x05\x06"
_NUMBERS = {"\x0e": 2, "\x0f": 3, "\x10": 4, "\x11": 5}
"""The number of a page, padded to so many digits."""
_SHORTEST = 3
"""A text of fewer characters is no shorter as a mark, and may stand anywhere."""
_IN_NAMES = str.maketrans('/\\:*?"<>|', "／＼：＊？＂＜＞｜")
_ID_PARTS = re.compile(r"(?P<id>[^?]+)(?:\?(?:p=(?P<number>[0-9]+)&)?cid=(?P<cid>[0-9]+))?")


def path_pattern(path: str, url: str, title: str) -> str:
    """Return the path of a page's file as it is recorded: a pattern that other pages share, or the path itself."""
    return _pattern(path, _marks(url, title))


def stored_pattern(stored: str, path: str, url: str, title: str) -> str:
    """Return the address where a delivered file lies, as it is recorded; the path of the file is a part of most."""
    return _pattern(stored, [(_PATH, path), *_marks(url, title)]) if stored else ""


def word_keys(records: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the fields of the hash of words that these records need."""
    texts = (record.get(name, "") for record in records if is_packed(record) for name in WORD_FIELDS)
    return list(dict.fromkeys(f"<{text}" for text in texts if text.isdecimal()))


def is_packed(record: Mapping[str, str]) -> bool:
    """Tell a packed record from one that an earlier version has written."""
    return "tenths" in record


def unpacked(record: Mapping[str, str], words: Mapping[str, str]) -> dict[str, str]:
    """Return a record with its fields in plain text; ``words`` has what ``word_keys`` has asked for."""
    if not is_packed(record):
        return dict(record)
    plain = {name: _text(record.get(name, ""), words) for name in WORD_FIELDS}
    url, title = record["url"], record["title"]
    path = _path(record["path"], plain["path"], _marks(url, title))
    plain |= {"url": url, "title": title, "path": path, "bytes": record["bytes"], "errors": record.get("errors", "")}
    marks = [(_PATH, path), *_marks(url, title)]
    plain["stored"] = _path(record.get("stored", ""), plain["stored"], marks)
    plain["seconds"] = str(int(record["tenths"] or 0) / 10)
    return {**plain, "at": record["at"]} if "at" in record else plain


def with_words(record: Mapping[str, str], words: Mapping[str, str | None]) -> dict[str, str]:
    """Return a packed record with ``<`` and the word in place of each number, so that it can leave its dictionary."""
    if not is_packed(record):
        return dict(record)
    plain = {name: record[name] for name in WORD_FIELDS if record.get(name, "").isdecimal()}
    return {**record, **{name: f"<{words.get(f'<{value}') or ''}" for name, value in plain.items()}}


def _text(value: str, words: Mapping[str, str]) -> str:
    return words.get(f"<{value}", "") if value.isdecimal() else value.removeprefix(LITERAL)


def _path(value: str, text: str, marks: Sequence[tuple[str, str]]) -> str:
    return value.removeprefix(RAW) if value.startswith(RAW) else _filled(text, marks)


def _marks(url: str, title: str) -> Sequence[tuple[str, str]]:
    """Return what may stand in a path or an address, and the mark of each: the longest come first."""
    found = _ID_PARTS.fullmatch(url)
    if found is None:
        return []
    identity, number, cid = found.groups(default="")
    marks = [(_TITLE, title.translate(_IN_NAMES))]
    if number:
        video, mark, page = title.partition(f" P{number} ")
        if mark:  # as a page of several is called: VIDEO P3 PAGE
            marks += [(_VIDEO_TITLE, video.translate(_IN_NAMES)), (_PAGE_TITLE, page.translate(_IN_NAMES))]
    marks += [(_ID, identity), (_CID, cid)]
    if number:
        marks += [(sign, number.zfill(width)) for sign, width in _NUMBERS.items() if len(number) <= width]
    return [(sign, text) for sign, text in marks if len(text) >= (2 if sign in _NUMBERS else _SHORTEST)]


def _pattern(text: str, marks: Sequence[tuple[str, str]]) -> str:
    if (not text.isprintable() and any(character < " " for character in text)) or text.startswith(LITERAL):
        return RAW + text
    pattern = text
    for sign, meaning in marks:
        if sign in _NUMBERS:  # behind the P only: these digits may stand anywhere
            pattern = re.sub(rf"(?<=P){meaning}(?![0-9])", sign, pattern, count=1)
        else:
            pattern = pattern.replace(meaning, sign, 1)
    if pattern == text or _filled(pattern, marks) != text or pattern.isdecimal() or pattern.startswith(LITERAL):
        return LITERAL + text
    return pattern


def _filled(pattern: str, marks: Sequence[tuple[str, str]]) -> str:
    """Return a pattern with the texts in place of their marks; a text has no marks, or it made no pattern."""
    for sign, meaning in marks:
        if sign in pattern:
            pattern = pattern.replace(sign, meaning)
    return pattern
