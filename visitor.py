"""What a browser's visit leaves with the site beside its cookies: a ticket, and marks of the browser. Pure.

Both are optional, and make the site's risk control milder.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from string import ascii_letters, digits
from urllib.parse import urlsplit

from errors import SiteError
from i18n import _

TICKET_PATH = "/bapis/bilibili.api.ticket.v1.Ticket/GenWebTicket"
TICKET_MARGIN_SECONDS = 600.0
TICKET_LIMIT_SECONDS = 7 * 86400.0
_TICKET_KEY = b"XgwSnGZ1p"
"""The site's own script has it, for everybody (docs/misc/sign/bili_ticket.md of bilibili-API-collect)."""


def page_origin(web_url: str) -> str:
    """Return the header Origin of calls that the site's pages make to its other hosts."""
    parts = urlsplit(web_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def page_referer(web_url: str) -> str:
    """Return the header Referer of all calls; mirrors get it too, so a password in a setting is not part of it."""
    return f"{page_origin(web_url)}{urlsplit(web_url).path.rstrip('/')}/"


def ticket_request(unix_seconds: int) -> dict[str, str]:
    """Return the parameters with which a ticket is asked for; ``csrf`` may be empty, and addresses end up in logs."""
    signed = hmac.new(_TICKET_KEY, f"ts{unix_seconds}".encode(), hashlib.sha256).hexdigest()
    return {"key_id": "ec02", "hexsign": signed, "context[ts]": str(unix_seconds), "csrf": ""}


def parse_ticket(text: str) -> tuple[str, float]:
    """Return a ticket and for how many seconds it is good."""
    try:
        data = json.loads(text)["data"]
        ticket, seconds = data["ticket"], float(data["ttl"])
        sound = re.fullmatch(r"[A-Za-z0-9_.-]{1,2048}", ticket) is not None and seconds > TICKET_MARGIN_SECONDS
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise SiteError(_("the site gave no ticket"))
    return ticket, min(seconds - TICKET_MARGIN_SECONDS, TICKET_LIMIT_SECONDS)


def browser_marks(draw: Callable[[], float]) -> dict[str, str]:
    """Return the ``dm_img`` fields that signed calls of a browser carry; keep them, a browser does not change.

    As yt-dlp sends them (yt_dlp/extractor/bilibili.py): base64 of something, without its last two characters, where
    a browser names its graphics; no movement of the mouse.
    """

    def drawn(low: int, high: int) -> str:
        letters = ascii_letters + digits
        text = "".join(letters[int(draw() * len(letters))] for _index in range(low + int(draw() * (high - low))))
        return base64.b64encode(text.encode()).decode()[:-2]

    return {
        "dm_img_list": "[]",
        "dm_img_str": drawn(16, 64),
        "dm_cover_img_str": drawn(32, 128),
        "dm_img_inter": '{"ds":[],"wh":[6093,6631,31],"of":[430,760,380]}',
    }
