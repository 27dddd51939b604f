"""How people name a source: addresses as they are copied from a browser, and short forms.

Forms of addresses as yt-dlp (yt_dlp/extractor/bilibili.py) and yutto (docs/guide/supported-links.md) know them; the
names of rankings are those of docs/video/video_zone_v2.md of bilibili-API-collect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, parse_qs, unquote

from i18n import _
from parse_ import (
    MAX_TARGET_CHARACTERS,
    SHORT_HOSTS,
    WEB_HOSTS,
    SiteHosts,
    has_default_port,
    path_below,
    split_address,
)
from source_ids import MAX_KEYWORD_CHARACTERS, NAMED, find_source, ranking_of, search_for

SPACE_HOST = "space.bilibili.com"
SEARCH_HOST = "search.bilibili.com"

RANKINGS: Mapping[str, int] = {
    **{"all": 0, "cinephile": 1001, "ent": 1002, "music": 1003, "dance": 1004, "douga": 1005, "painting": 1006},
    **{"kichiku": 1007, "game": 1008, "information": 1009, "knowledge": 1010, "ai": 1011, "tech": 1012, "car": 1013},
    **{"fashion": 1014, "home": 1015, "outdoors": 1016, "gym": 1017, "sports": 1018, "handmake": 1019, "food": 1020},
    **{"shortplay": 1021, "travel": 1022, "rural": 1023, "animal": 1024, "parenting": 1025, "health": 1026},
    **{"emotion": 1027, "vlog": 1029, "life_joy": 1030, "life_experience": 1031},
}
"""How a region is called in the address of its ranking."""

_EXAMPLES: Mapping[str, str] = {
    "mid": "mid:137137",
    "favs": "favs:137137",
    "fav": "fav:1234567",
    "lists": "lists:137137",
    "season": "season:4259",
    "series": "series:2345",
    "cheese": "cheese:ss123",
    "rank": "rank:1010",
    "weekly": "weekly:123",
    "search": "search:KEYWORD",
}
_NUMBERED_WORD = re.compile(r"(?P<kind>ss|md|ml)(?P<number>[0-9]+)", re.IGNORECASE | re.ASCII)

_Query = Mapping[str, str]


# ------------------------------------------------------------------------------------------ all of it


def parse_source(text: str, hosts: SiteHosts) -> str | None:
    """Return the canonical id of the source that a text names, None where it names none.

    Raise ValueError with a sentence for the user where it is the beginning of one, but no more.
    """
    text = text.strip()
    if len(text) > MAX_TARGET_CHARACTERS:
        return None
    if (short := _short_form(text)) is not None:
        return short
    if not text.isprintable() or " " in text:
        return None
    try:
        parts = split_address(text)
    except ValueError:
        return None
    return _address(parts, hosts)


def _canonical(kind: str, number: str) -> str:
    """Return the id of a numbered source; ValueError where the number is none."""
    digits = number.lstrip("0") or "0" if number.isascii() and number.isdecimal() else number
    if find_source(kind + digits) is None:
        raise ValueError(_("{number} is no number that the site gives").format(number=repr(number[:40])))
    return kind + digits


# ------------------------------------------------------------------------------------------ short forms


def _short_form(text: str) -> str | None:
    if match := _NUMBERED_WORD.fullmatch(text):
        kind = match["kind"].lower()
        return _canonical("fav:" if kind == "ml" else kind, match["number"])
    word, colon, rest = text.partition(":")
    word, rest = word.lower(), rest.strip()
    if not colon:
        return word if word in NAMED else None
    if word in NAMED and word not in _EXAMPLES:
        raise ValueError(_("nothing is expected behind {word}").format(word=word))
    if word not in _EXAMPLES or rest.startswith("//"):
        return None
    if word == "search":
        return _search(unquote(rest))
    return _with_number(word, rest.lower())


def _with_number(word: str, rest: str) -> str | None:
    if word == "rank" and not rest[:1].isdecimal():
        return None  # the name of a category, which the settings know
    if word == "fav":
        rest = rest.removeprefix("ml")
    if word == "rank" and (parts := ranking_of(*f"rank:{rest}".rpartition(":")[::2])) is not None:
        return str(parts)
    if find_source(f"{word}:{rest}") is not None:
        return f"{word}:{rest}"
    raise ValueError(
        _("{text} is no source; expected is {example}").format(
            text=repr(f"{word}:{rest}"[:80]), example=_EXAMPLES[word]
        )
    )


def _search(keyword: str) -> str:
    source = search_for(keyword)
    if source is None:
        raise ValueError(_("a search needs a keyword of 1 to {limit} characters").format(limit=MAX_KEYWORD_CHARACTERS))
    return str(source)


# ------------------------------------------------------------------------------------------ addresses


def _address(parts: SplitResult, hosts: SiteHosts) -> str | None:
    query = {name: values[0] for name, values in parse_qs(parts.query, max_num_fields=None).items()}
    ours = has_default_port(parts)
    if parts.hostname == SPACE_HOST and ours:
        return _space(parts.path, query)
    if parts.hostname == SEARCH_HOST and ours:
        return _search(query.get("keyword", ""))
    path = path_below(parts, hosts.web_url)
    if path is None and parts.hostname in WEB_HOSTS and ours:
        path = parts.path
    if path is not None:
        return _page(path, query)
    short = path_below(parts, hosts.short_url)
    if short is None and parts.hostname in SHORT_HOSTS and ours:
        short = parts.path
    return None if short is None else _short_link(short)


def _short_link(path: str) -> str | None:
    match = _NUMBERED_WORD.fullmatch(path.strip("/"))
    return _canonical(match["kind"].lower(), match["number"]) if match and match["kind"].lower() != "ml" else None


def _page(path: str, query: _Query) -> str | None:
    """Return what a page of the site is a list of; pages of single videos are none of ours."""
    for pattern, meaning in _PAGES:
        if match := pattern.fullmatch(path):
            return meaning(match, query)
    return None


def _space(path: str, query: _Query) -> str:
    """Return what a page of an uploader's space lists; ValueError for those that list no videos."""
    match = re.fullmatch(r"/(?P<mid>[0-9]+)(?P<part>(?:/[\w-]*)*)", path, re.ASCII)
    if match is None:
        raise ValueError(
            _("it is no address of an uploader's space: expected is {example}").format(
                example=f"https://{SPACE_HOST}/137137"
            )
        )
    words = match["part"].strip("/").split("/")
    if words[0] in ("", "video") or words[:2] in (["upload"], ["upload", "video"]):
        return _canonical("mid:", match["mid"])
    if words[0] == "favlist":
        return _favlist(match["mid"], query)
    if words[0] in ("lists", "channel"):
        return _collection(match["mid"], words, query)
    raise ValueError(
        _("this page of the space lists no videos; all of the uploader's are {address}").format(
            address=f"https://{SPACE_HOST}/{match['mid']}/video"
        )
    )


def _favlist(mid: str, query: _Query) -> str:
    if "fid" not in query:
        return _canonical("favs:", mid)
    is_collection = query.get("ftype") == "collect" and query.get("ctype") == "21"
    return _canonical("season:" if is_collection else "fav:", query["fid"])


def _collection(mid: str, words: list[str], query: _Query) -> str:
    number = words[1] if words[0] == "lists" and len(words) > 1 else query.get("sid", "")
    if not number and words in (["lists"], ["channel", "series"]):
        return _canonical("lists:", mid)
    if not number:
        raise ValueError(_("open the collection or series that you want, and take its address"))
    # The type has been seen behind a second question mark as well.
    is_series = "seriesdetail" in words or query.get("type") == "series" or number.endswith("?type=series")
    return _canonical("series:" if is_series else "season:", number.partition("?")[0])


def _play_list(match: re.Match[str], query: _Query) -> str:
    """Return what is played one after the other: an uploader's videos, or a list of the uploader."""
    number = query.get("sid") or query.get("business_id") or "0"
    if number == "0" or query.get("business") == "space":
        return _canonical("mid:", match["number"])
    is_collection = query.get("business") == "space_collection" or query.get("type") == "season"
    return _canonical("season:" if is_collection else "series:", number)


def _ranking(match: re.Match[str], query: _Query) -> str:
    name = match["name"] or "all"
    if name not in RANKINGS:
        raise ValueError(
            _("the ranking {name} cannot be read; there are: {names}").format(name=name, names=", ".join(RANKINGS))
        )
    return f"rank:{RANKINGS[name]}"


def _week(match: re.Match[str], query: _Query) -> str:
    number = query.get("num") or query.get("number")
    return _canonical("weekly:", number) if number else "weekly"


def _numbered(kind: str) -> Callable[[re.Match[str], _Query], str]:
    return lambda match, query: _canonical(kind, match["number"])


def _named(name: str) -> Callable[[re.Match[str], _Query], str]:
    return lambda match, query: name


_PAGES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], _Query], str]], ...] = tuple(
    (re.compile(pattern + "/?", re.ASCII), meaning)
    for pattern, meaning in (
        (r"/bangumi/play/ss(?P<number>[0-9]*)", _numbered("ss")),
        (r"/bangumi/media/md(?P<number>[0-9]*)", _numbered("md")),
        (r"/cheese/play/ss(?P<number>[0-9]*)", _numbered("cheese:ss")),
        (r"/cheese/play/ep(?P<number>[0-9]*)", _numbered("cheese:ep")),
        (r"/watchlater(?:/list|/)?", _named("later")),
        (r"/(?:list|medialist/play)/watchlater", _named("later")),
        (r"/(?:list|medialist/play|medialist/detail)/ml(?P<number>[0-9]*)", _numbered("fav:")),
        (r"/(?:list|medialist/play)/(?P<number>[0-9]+)", _play_list),
        (r"/v/popular(?:/all)?", _named("popular")),
        (r"/v/popular/weekly", _week),
        (r"/v/popular/history", _named("precious")),
        (r"/v/popular/rank(?:/(?P<name>\w+))?", _ranking),
        (r"/space(?P<rest>/.*)", lambda match, query: _space(match["rest"], query)),
        (r"/(?:search|all)", lambda match, query: _search(query.get("keyword", ""))),
    )
)
