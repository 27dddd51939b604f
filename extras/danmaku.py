"""Danmaku: from the site's protobuf segments to XML as the site itself wrote it, and to ASS subtitles.

The segments are the most that the site gives: up to 6,000 for each six minutes, where the older XML is a pool of 500 to
8,000 for the whole page (bilibili-API-collect, docs/danmaku/danmaku_proto.md and danmaku_xml.md). What they do not have
is BAS scripts (mode 9) and the uploader's interactive cards, which no player outside the site can show.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import biliass

from extras.answers import clean_text
from parse_ import envelope, reads_site

SEGMENT_SECONDS = 360.0
MAX_BYTES = 64 * 1024 * 1024
MAX_TEXT_CHARACTERS = 5000
"""Of one danmaku; those of people have at most 100, drawings of the special pool more."""

STAGE = (1920, 1080)
FONT_SIZE = 50
MARQUEE_SECONDS, STILL_SECONDS = 12.0, 5.0

_SCROLLING_OR_STILL = frozenset({1, 4, 5, 6})
_POSITIONED = 7
_LONGEST_SECONDS = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Danmaku:
    """One danmaku as the site describes it; ``mode`` and ``pool`` are its numbers for them."""

    id: str
    seconds: float
    mode: int
    font_size: int
    color: int
    sent_at: int
    pool: int
    sender: str
    weight: int
    text: str


def segments_of(duration_seconds: float) -> int:
    """Return how many segments a page of that length has."""
    return max(1, math.ceil(min(duration_seconds, _LONGEST_SECONDS) / SEGMENT_SECONDS))


# ------------------------------------------------------------------------------------------ protobuf


@reads_site
def parse_segment(data: bytes) -> tuple[Danmaku, ...]:
    """Return the danmaku of one segment, a DmSegMobileReply; SiteError for bytes that are none."""
    if data[:1] == b"{":  # refusals come as JSON
        envelope(data.decode("utf-8", "replace"))
        raise ValueError
    return tuple(_element(value) for number, value in _fields(data) if number == 1 and isinstance(value, bytes))


def _element(data: bytes) -> Danmaku:
    found: dict[int, int | bytes] = dict(_fields(data))

    def number(field: int) -> int:
        value = found.get(field, 0)
        return value if isinstance(value, int) else 0

    def text(field: int) -> str:
        value = found.get(field, b"")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""

    return Danmaku(
        id=text(12) or str(number(1)),
        seconds=number(2) / 1000,
        mode=number(3),
        font_size=number(4),
        color=number(5),
        sent_at=number(8),
        pool=number(11),
        sender=text(6),
        weight=number(9),
        text=clean_text(text(7)[:MAX_TEXT_CHARACTERS]),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message: a number for a varint, bytes for what has a length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(kind)
        if at + length > len(data):
            raise ValueError(length)
        if kind == 2:
            yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if data[at] < 0x80:  # nearly always
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(at)


def complete(segments: Iterable[tuple[Danmaku, ...]]) -> tuple[Danmaku, ...]:
    """Return all danmaku of the segments of a page, each once, in the order of their time."""
    every = {danmaku.id: danmaku for segment in segments for danmaku in segment}
    return tuple(sorted(every.values(), key=lambda danmaku: (danmaku.seconds, danmaku.sent_at, danmaku.id)))


# ------------------------------------------------------------------------------------------ XML


def to_xml(listed: Iterable[Danmaku], cid: int) -> str:
    """Return the danmaku as the site's own XML has them, which players and converters know."""
    lines = [_xml_line(danmaku, danmaku.text) for danmaku in listed]
    head = f"<chatserver>chat.bilibili.com</chatserver><chatid>{cid}</chatid><mission>0</mission>"
    state = f"<maxlimit>{len(lines)}</maxlimit><state>0</state><real_name>0</real_name><source>k-v</source>"
    body = "".join(f"\n{line}" for line in lines)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<i>{head}{state}{body}\n</i>\n'


def _xml_line(danmaku: Danmaku, text: str) -> str:
    values = (
        f"{danmaku.seconds:.5f}",
        *(danmaku.mode, danmaku.font_size, danmaku.color, danmaku.sent_at, danmaku.pool),
        *(_word(danmaku.sender), _word(danmaku.id), danmaku.weight),
    )
    return f"<d p={quoteattr(','.join(map(str, values)))}>{escape(text)}</d>"


def _word(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z_-]", "", text)[:64]


# ------------------------------------------------------------------------------------------ ASS


def to_ass(listed: Iterable[Danmaku], stage: tuple[int, int] = STAGE) -> str:
    """Return the danmaku as ASS subtitles that fly as on the site.

    biliass ends the whole process where a value surprises it, so it only ever gets values of the kind and size that it
    expects; a danmaku that has others is left out, or has them put right.
    """
    shown = (tamed for danmaku in listed if (tamed := _tamed(danmaku)) is not None)
    lines = "".join(_xml_line(danmaku, danmaku.text) for danmaku in shown)
    return biliass.convert_to_ass(
        f'<?xml version="1.0" encoding="UTF-8"?><i>{lines}</i>',
        *stage,
        "xml",
        font_size=FONT_SIZE,
        text_opacity=0.8,
        duration_marquee=MARQUEE_SECONDS,
        duration_still=STILL_SECONDS,
    )


def _tamed(danmaku: Danmaku) -> Danmaku | None:
    """Return a danmaku whose every value is in its range, None for one that is not to be shown."""
    text = clean_text(danmaku.text).strip()
    text = _placed(text) if danmaku.mode == _POSITIONED else text
    if not text or danmaku.mode not in _SCROLLING_OR_STILL | {_POSITIONED}:
        return None
    return Danmaku(
        id="1",
        seconds=min(max(danmaku.seconds, 0.0), _LONGEST_SECONDS),
        mode=danmaku.mode,
        font_size=min(max(danmaku.font_size, 1), 127),
        color=danmaku.color & 0xFFFFFF,
        sent_at=min(danmaku.sent_at, 2**33),
        pool=0,
        sender="0",
        weight=0,
        text=text,
    )


def _placed(text: str) -> str:
    """Return the description of a positioned danmaku with all its values, each of the kind that belongs there.

    They are: where from, opacity from and to, seconds, text, rotation about z and y, where to, milliseconds of the
    move and before it, outline, font (docs/danmaku of bilibili-API-collect; biliass reads the same places).
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(given, list) or len(given) < 5 or not isinstance(given[4], str) or not given[4].strip():
        return ""
    values = [*given, *[None] * 13]
    x, y = (_number(value, 0, -10_000, 10_000) for value in values[:2])
    seconds = _number(values[3], 4.5, 0, 3600)
    return json.dumps(
        [
            *(x, y, _opacity(values[2]), seconds, clean_text(given[4])),
            *(round(_number(value, 0, -3600, 3600)) for value in values[5:7]),
            *(_number(value, default, -10_000, 10_000) for value, default in zip(values[7:9], (x, y), strict=True)),
            round(_number(values[9], seconds * 1000, 0, 3_600_000)),
            round(_number(values[10], 0, 0, 3_600_000)),
            "false" if values[11] in (False, "false", 0) else "true",
            re.sub(r"[^\w -]", "", values[12])[:64] if isinstance(values[12], str) else "",
        ],
        ensure_ascii=False,
    )


def _number(value: object, default: float, low: float, high: float) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    number = number if math.isfinite(number) else default
    number = min(max(number, low), high)
    return int(number) if number == int(number) else round(number, 4)


def _opacity(value: object) -> str:
    first, _mark, second = str(value if isinstance(value, int | float | str) else 1).partition("-")
    start = _number(first, 1, 0, 1)
    return f"{start:g}-{_number(second, start, 0, 1):g}"
