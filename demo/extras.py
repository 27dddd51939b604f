"""What comes with the videos of the stand-in site: danmaku, subtitles, chapters, covers, descriptions.

Fields and codes as bilibili-API-collect documents them (docs/danmaku, docs/video/player.md), odd cases included:
hostile texts, a subtitle of another video, a list of subtitles that is empty without a login.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from demo.catalogue import PageRecord, VideoRecord
from demo.state import SiteState

Json = dict[str, Any]

OPEN_FOLDER = "/bfs/"
"""Below it the CDN serves without a signature."""

COVER = base64.b64decode(
    "/9j/4AAQSkZJRgABAgAAAQABAAD/2wBDAAgoKC8oLzc3Nzc3N0E8QUNDQ0FBQUFDQ0NISEhVVVVISEhDQ0hIUFBVVVxfXFdXVVdf"
    "X2RkZHh4c3OMjJGsrM//xABNAAEBAAAAAAAAAAAAAAAAAAAABAEBAQEAAAAAAAAAAAAAAAAAAAYHEAEAAAAAAAAAAAAAAAAAAAAA"
    "EQEAAAAAAAAAAAAAAAAAAAAA/8AAEQgAPABgAwEiAAIRAAMRAP/aAAwDAQACEQMRAD8AmAWrKgAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAH/9k="
)
"""A real JPEG of 96 × 60."""

DESCRIPTION = (
    '第一行 & <b>不是标签</b> ]]> "引号" \'\r\n第二行\x07\u202e\n[Events]\n{\\an8}= ;#\\\n'
    "</plot></movie><!-- ?> %s {0} $(id) `id` 👨‍👩‍👧‍👦"
)
"""What an uploader could write to break out of whatever it is put into."""

_LANGUAGES = (("zh-CN", "中文（中国）", 0), ("en-US", "English (US)", 0), ("ai-zh", "中文（自动生成）", 1))
_SUBTITLED = frozenset({"plain", "large-a"})
_LINES = (
    (0.0, 0.5, "第一句 <i>不是斜体</i>"),
    (0.5, 0.9, "two\nlines --> \x00& more"),
    (0.9, 0.95, "  "),
    (0.95, 3661.5, "last"),
)


def description(record: VideoRecord) -> str:
    """Return the description of a video; that of ``plain`` is as hostile as can be."""
    return DESCRIPTION if record.name == "plain" else f"stand-in for the odd case {record.name}"


def host_of(state: SiteState) -> str:
    """Return the host of small files: the real one's name where the site goes by real names."""
    return "i0.hdslb.com" if state.media_scheme == "https" else state.media_hosts[0]


def cover_url(state: SiteState, record: VideoRecord) -> str:
    """Return the address of a cover, over plain http as the real site still gives it out."""
    return f"http://{host_of(state)}{OPEN_FOLDER}archive/{record.aid}.jpg" if state.media_hosts else ""


# ------------------------------------------------------------------------------------------ the player


def player(state: SiteState, record: VideoRecord, page: PageRecord, logged_in: bool) -> Json:
    """Return the ``data`` of x/player/wbi/v2."""
    subtitles = _subtitles(state, record, page) if record.name in _SUBTITLED else []
    return {
        "aid": record.aid,
        "bvid": record.bvid,
        "cid": page.cid,
        "login_mid": 10086 if logged_in else 0,
        "ip_info": {"ip": "127.0.0.1"},
        "need_login_subtitle": bool(subtitles) and not logged_in,
        "subtitle": {
            "allow_submit": False,
            "lan": "",
            "lan_doc": "",
            "subtitles": subtitles if logged_in else [],
        },
        "view_points": _view_points(page) if record.name in _SUBTITLED else [],
    }


def _subtitles(state: SiteState, record: VideoRecord, page: PageRecord) -> list[Json]:
    """Return subtitles in several languages, one of a machine, and one that belongs to another video."""
    listed = []
    for number, (code, name, kind) in enumerate((*_LANGUAGES, ("ai-ja", "日语（自动翻译）", 1)), 1):
        digest = hashlib.md5(f"{page.cid} {code}".encode()).hexdigest()
        whose = f"{record.aid}{page.cid}" if code != "ai-ja" else "1700000123"
        path = f"ai_subtitle/prod/{whose}{digest}" if kind else f"subtitle/{digest}.json"
        listed.append(
            {
                "id": 10_000 + number,
                "id_str": str(10_000 + number),
                "lan": code,
                "lan_doc": name,
                "is_lock": False,
                "type": kind,
                "ai_type": 0,
                "ai_status": 2 * kind,
                "subtitle_url": f"//{host_of(state)}{OPEN_FOLDER}{path}?auth_key=1700000000-demo-0-demo",
            }
        )
    return listed


def _view_points(page: PageRecord) -> list[Json]:
    middle = page.duration_seconds / 2
    parts = ((0, middle, "开头 [1]; #=\\"), (middle, page.duration_seconds, "结尾"))
    return [
        {"type": 2, "from": start, "to": stop, "content": title, "imgUrl": "", "logoUrl": ""}
        for start, stop, title in parts
    ]


# ------------------------------------------------------------------------------------------ small files


def open_file(path: str) -> bytes | None:
    """Return what the CDN has below ``/bfs/``, None where there is nothing."""
    if path.startswith(f"{OPEN_FOLDER}archive/"):
        return COVER
    if path.startswith((f"{OPEN_FOLDER}subtitle/", f"{OPEN_FOLDER}ai_subtitle/prod/")):
        body = [{"from": start, "to": stop, "sid": 1, "location": 2, "content": text} for start, stop, text in _LINES]
        return json.dumps({"font_size": 0.4, "type": "AIsubtitle", "lang": "zh", "body": body}).encode()
    return None


# ------------------------------------------------------------------------------------------ danmaku

SEGMENTS = 2
"""Each page has so many segments of six minutes, however short it is."""

_POSITIONED = '[0.2,0.3,"1-0.5",2,"定位\\\\N{\\\\b1}",30,0,0.6,0.7,500,0,true,"黑体",1]'
_DANMAKU: tuple[tuple[int, int, int, int, str], ...] = (
    (0, 1, 25, 0xFFFFFF, "前排"),
    (500, 1, 18, 0xFE0302, "<script>&\x01]]> {\\an8}"),
    (500, 4, 25, 0x00CD00, "底部/n两行"),
    (700, 5, 36, 0xFFFF00, "顶部"),
    (800, 6, 25, 0, "逆向"),
    (900, 7, 25, 0xFFFFFF, _POSITIONED),
    (950, 7, 25, 0xFFFFFF, "[]"),
    (990, 8, 25, 0xFFFFFF, "$.root.x = 1"),
)
"""Milliseconds, mode, size, colour and text; the empty list of mode 7 is one that a hurried parser dies of."""


def danmaku(cid: int, segment: int) -> bytes | None:
    """Return a segment of a page's danmaku as a DmSegMobileReply, None beyond the end."""
    if not 1 <= segment <= SEGMENTS:
        return None
    moved = 360_000 * (segment - 1)
    first = cid * 100 + segment * 20
    return b"".join(
        _field(1, _element(first + place, (progress + moved, *rest)))
        for place, (progress, *rest) in enumerate(_DANMAKU)
    )


def _element(number: int, values: Iterable[Any]) -> bytes:
    progress, mode, size, color, text = values
    numbers = {1: number, 2: progress, 3: mode, 4: size, 5: color, 8: 1_700_000_000 + number % 60, 9: 8}
    written = b"".join(_varint(field << 3) + _varint(value) for field, value in numbers.items() if value)
    return written + _field(6, b"a16fe0dd") + _field(7, text.encode()) + _field(12, str(number).encode())


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


async def danmaku_segment(request: web.Request) -> web.StreamResponse:
    """Answer x/v2/dm/web/seg.so: 304 beyond the end, as the real one does."""
    oid, segment = request.query.get("oid", ""), request.query.get("segment_index", "")
    if not (oid.isdecimal() and segment.isdecimal()):
        return web.json_response({"code": -400, "message": "请求错误", "ttl": 1})
    data = danmaku(int(oid), int(segment))
    if data is None:
        return web.Response(status=304)
    return web.Response(body=data, content_type="application/octet-stream")
