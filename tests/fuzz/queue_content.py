"""What is in the queue before it is asked anything, and how it comes there."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from parse_ import aid_to_bvid

TOKEN = "a token of the tests of the API"
READ_VIDEOS = 12

VIDEOS = ["BV1xx411c7mD", *(aid_to_bvid(number) for number in range(1001, 1041))]
SOURCES = ["mid:137137", "fav:1234567", "ss28747", "rank:1010", "search:%E7%8C%AB", "popular"]
TARGETS = [*VIDEOS, *(f"{video}?p=2" for video in VIDEOS[:5]), "ep123456", *SOURCES]
IDS = [*TARGETS, f"{VIDEOS[0]}?p=1&cid=111", f"{VIDEOS[1]}?p=2&cid=212", "ep123456?cid=13", "cheese:ep456?cid=14"]


def fill(address: str) -> None:
    """Let some videos be read already, so that there are pages to be leased, and one be done and one dead."""
    call(f"{address}/add_url", {"urls": TARGETS, "category": "music"})
    for cid, container in enumerate(call(f"{address}/get_url?worker=w1&count={READ_VIDEOS}"), 11):
        pages = [{"number": number, "cid": cid + 100 * number, "title": f"Page {number}"} for number in (1, 2, 3)]
        page = call(f"{address}/expand", {**_of(container), "title": f"Video {cid}", "pages": pages})["lease"]
        if cid == 11:
            call(f"{address}/ack", {**_of(page), "path": "music/A title.mp4", "bytes": 5, "seconds": 1})
        elif cid == 12:
            call(f"{address}/nack", {**_of(page), "class": "permanent", "code": "-404", "reason": "deleted"})
        else:
            call(f"{address}/release", _of(page))


def call(address: str, body: Mapping[str, Any] | None = None) -> Any:
    """Return what the server answers."""
    fields = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(address, None if body is None else json.dumps(body).encode(), fields)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _of(lease: Mapping[str, Any]) -> dict[str, Any]:
    return {"url": lease["url"], "token": lease["token"]}
