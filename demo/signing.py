"""Signatures of the stand-in site: of stream URLs (``deadline``, ``upsig``) and of API queries (WBI).

The WBI scheme is the real one (bilibili-API-collect, docs/misc/sign/wbi.md): a client that signs for the
real site signs for this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, quote_plus, urlencode

WBI_ORDER = (
    *(46, 47, 18, 2, 53, 8, 23, 32, 15, 50, 10, 31, 58, 3, 45, 35),
    *(27, 43, 5, 49, 33, 9, 42, 19, 29, 28, 14, 39, 12, 38, 41, 13),
)
WBI_TOLERANCE_SECONDS = 3600

_SIGNED = ("e", "uipk", "nbs", "deadline", "gen", "os", "oi", "trid", "mid", "platform")
_OPERATORS = ("cosbv", "alibv", "hwbv", "akam")
_SECRET = "not a secret: this is a stand-in"


def _upsig(path: str, values: Mapping[str, str]) -> str:
    signed = "&".join(values.get(name, "") for name in _SIGNED)
    return hashlib.md5(f"{path}&{signed}&{_SECRET}".encode()).hexdigest()


def sign_url(
    host: str, path: str, *, mirror: int, deadline: int, serial: int, bandwidth: int = 0, scheme: str = "http"
) -> str:
    """Return the URL of a stream at one CDN host, with the query that the real site writes."""
    values = {
        "e": "ig8euxZM2rNcNbdlhoNvNC8BqJIzNbfqXBvEqxTEto8BTrNvN0GvT90W5JZMkX",
        "uipk": "5",
        "nbs": "1",
        "deadline": str(deadline),
        "gen": "playurlv2",
        "os": _OPERATORS[mirror % len(_OPERATORS)],
        "oi": "2130706433",
        "trid": f"{serial:08x}{hashlib.md5(path.encode()).hexdigest()[:24]}u",
        "mid": "0",
        "platform": "pc",
    }
    query = {
        **values,
        "upsig": _upsig(path, values),
        "uparams": ",".join(_SIGNED),
        "bvc": "vod",
        "nettype": "0",
        "orderid": f"{mirror},3",
        "agrr": "1",
        "bw": str(bandwidth // 8),
        "logo": "80000000" if mirror == 0 else "40000000",
    }
    return f"{scheme}://{host}{path}?{urlencode(query, safe=',')}"


def url_serial(path: str, query: Mapping[str, str], unix_seconds: float) -> int | None:
    """Return the serial of a signed request, None when its signature is wrong or its deadline has passed."""
    if query.get("upsig") != _upsig(path, query) or float(query["deadline"]) <= unix_seconds:
        return None
    return int(query["trid"][:8], 16)


# ------------------------------------------------------------------------------------------ WBI


def wbi_keys(generation: int) -> tuple[str, str]:
    """Return the two keys of the day; the real site changes them daily, this one when it is told to."""
    return tuple(hashlib.md5(f"wbi {name} {generation}".encode()).hexdigest() for name in ("img", "sub"))  # type: ignore[return-value]


def wbi_is_valid(raw_query: str, keys: tuple[str, str], unix_seconds: float) -> bool:
    """Tell whether ``w_rid`` and ``wts`` of a query are right; blanks may be ``%20`` or ``+``."""
    values = {name: texts[0] for name, texts in parse_qs(raw_query, keep_blank_values=True).items()}
    w_rid, wts = values.pop("w_rid", ""), values.get("wts", "")
    if not wts.isdecimal() or abs(int(wts) - unix_seconds) > WBI_TOLERANCE_SECONDS:
        return False
    mixed = "".join(keys)
    salt = "".join(mixed[index] for index in WBI_ORDER)
    kept = sorted((name, "".join(c for c in value if c not in "!'()*")) for name, value in values.items())
    encodings = (urlencode(kept, quote_via=quote), urlencode(kept, quote_via=quote_plus))
    return any(hashlib.md5((text + salt).encode()).hexdigest() == w_rid for text in encodings)


def wbi_image_urls(keys: tuple[str, str]) -> dict[str, str]:
    """Return the keys as the site hides them: as names of pictures that are not there."""
    base = "https://i0.hdslb.com/bfs/wbi"
    return {"img_url": f"{base}/{keys[0]}.png", "sub_url": f"{base}/{keys[1]}.png"}
