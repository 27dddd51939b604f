"""What the stand-in site answers to other downloaders only: tags of a video, ids of a folder, an uploader's page.

yt-dlp and yutto download from here as they are (tests/test_peers.py); our own worker asks for none of this. Fields as
bilibili-API-collect documents them (docs/video/tags.md, docs/fav/list.md); the title of an uploader's page as yt-dlp
meets it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from aiohttp import web

from demo.answers import Json
from demo.catalogue import VideoRecord
from demo.shelves import PUBLISHED, UPLOADERS, Favourite

FAVOURITE_TYPES = {"video": 2, "audio": 12, "collection": 21, "episode": 24}


def tags(record: VideoRecord) -> list[Json]:
    """Return the ``data`` of x/tag/archive/tags: the one tag that the page of a video shows too."""
    return [
        {
            "tag_id": record.region.tid,
            "tag_name": record.region.name,
            "cover": "",
            "head_cover": "",
            "content": "",
            "short_content": "",
            "type": 3,
            "state": 0,
            "ctime": PUBLISHED,
            "count": {"view": 0, "use": 12, "atten": 3},
            "is_atten": 0,
            "likes": 0,
            "hates": 0,
            "attribute": 0,
            "liked": 0,
            "hated": 0,
            "extra_attr": 0,
        }
    ]


def folder_ids(entries: Iterable[Favourite]) -> list[Json]:
    """Return the ``data`` of x/v3/fav/resource/ids: all of a folder at once, dead entries included."""
    return [{"id": one.id, "type": FAVOURITE_TYPES[one.kind], "bv_id": one.bvid, "bvid": one.bvid} for one in entries]


async def space_page(request: web.Request) -> web.StreamResponse:
    """Answer a page of space.bilibili.com: the name of its owner is in the title, the rest is for scripts."""
    name = UPLOADERS.get(int(request.match_info["mid"]))
    if name is None:
        return web.Response(status=404, text="<title>出错啦!</title>", content_type="text/html")
    title = html.escape(f"{name}的个人空间-{name}个人主页-哔哩哔哩视频")
    return web.Response(text=f"<!DOCTYPE html><title>{title}</title>", content_type="text/html")
