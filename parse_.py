"""What the site's texts mean: ids, addresses, API answers, pages and rankings become records.

Nothing here asks anyone anything: text comes in, records go out. A text of a person is wrong with a
ValueError; a text of the site, however broken, with an error of errors.py and never with another.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import SplitResult, parse_qs, quote, urlencode, urlsplit

from errors import CircumstanceError, JobError, PermanentError, RiskControl, SiteError, TransientError
from i18n import _
from model import (
    MIB,
    About,
    JobId,
    Page,
    Playinfo,
    Segment,
    Stream,
    Target,
    Video,
)
from source_ids import LESSON, find_source

# ------------------------------------------------------------------------------------------ ids

MAX_AID = 2**51 - 1
"""Video ids have 51 bits since the numbering of 2023 (bilibili-API-collect, docs/misc/bvid_desc.md)."""

MAX_NUMBER = 99_999
MAX_CID = 2**53 - 1

_BV_ALPHABET = "FcwAPNKTMug3GV5Lj7EJnHpWsx4tb8haYeviqBz6rkCy12mUSDQX9RdoZf"
_BV_DIGITS = {character: value for value, character in enumerate(_BV_ALPHABET)}
_BV_XOR = 23442827791579
_BV_PLACES = (8, 7, 0, 5, 1, 3, 2, 4, 6)
"""Where each base-58 digit stands behind "BV1", the lowest digit first."""

_BV = rf"BV1[{_BV_ALPHABET}]{{9}}"
_JOB_ID = re.compile(
    rf"(?P<bvid>{_BV})(?:\?p=(?P<number>[1-9][0-9]{{0,4}})(?:&cid=(?P<cid>[1-9][0-9]{{0,15}}))?)?"
    r"|ep(?P<episode>[1-9][0-9]{0,15})(?:\?cid=(?P<episode_cid>[1-9][0-9]{0,15}))?"
    rf"|(?P<lesson>{LESSON}[1-9][0-9]{{0,15}})\?cid=(?P<lesson_cid>[1-9][0-9]{{0,15}})"
)


def aid_to_bvid(aid: int) -> str:
    """Return the BV form of an av number; ValueError for a number that no video can have."""
    if not 1 <= aid <= MAX_AID:
        raise ValueError(_("av numbers go from 1 to {highest}").format(highest=MAX_AID))
    rest = (aid | (MAX_AID + 1)) ^ _BV_XOR
    characters = [""] * len(_BV_PLACES)
    for place in _BV_PLACES:
        rest, digit = divmod(rest, len(_BV_ALPHABET))
        characters[place] = _BV_ALPHABET[digit]
    return "BV1" + "".join(characters)


_BV_VALUES = tuple(
    {character: digit * len(_BV_ALPHABET) ** _BV_PLACES.index(place) for character, digit in _BV_DIGITS.items()}
    for place in range(len(_BV_PLACES))
)
"""What each character is worth at each place behind "BV1"."""


def video_aid(text: str) -> int:
    """Return the av number where a text is a BV id and nothing else, exactly as it is written; else 0.

    It is asked for each of millions of lines: so there is no pattern in it.
    """
    if len(text) != 12 or not text.startswith("BV1"):
        return 0
    value = 0
    for worth, character in zip(_BV_VALUES, text[3:], strict=True):
        if character not in worth:
            return 0
        value += worth[character]
    aid = (value ^ _BV_XOR) - (MAX_AID + 1)
    return aid if 1 <= aid <= MAX_AID else 0


def bvid_to_aid(bvid: str) -> int:
    """Return the av number of a BV id; ValueError for a text that is the BV form of no number.

    The ids given out before 2023 are the same function of their smaller numbers.
    """
    if aid := video_aid(bvid):
        return aid
    raise ValueError(_("{text} is no BV id: a character is missing or mistyped").format(text=repr(bvid[:40])))


def plain_video(text: str, hosts: SiteHosts) -> str:
    """Return the id of a video that is submitted in one of the forms of which long lists are made, else nothing.

    These are its BV id, and its address with nothing behind it. All other texts are read with more care.
    """
    if text.startswith("http"):
        prefix = f"{hosts.web_url}/video/"
        text = text.removeprefix(prefix).removesuffix("/") if text.startswith(prefix) else ""
    return text if video_aid(text) else ""


def parse_job_id(text: str) -> JobId:
    """Return the parts of a job id exactly as ``str`` writes it; ValueError for any other text."""
    if find_source(text) is not None:
        return JobId(source=text)
    match = _JOB_ID.fullmatch(text)
    if match is None:
        raise ValueError(_("{text} is no job id").format(text=repr(text[:80])))
    if match["bvid"]:
        bvid_to_aid(match["bvid"])
    job = JobId(
        bvid=match["bvid"] or "",
        episode_id=int(match["episode"] or 0),
        number=int(match["number"] or 0),
        cid=int(match["cid"] or match["episode_cid"] or match["lesson_cid"] or 0),
        source=match["lesson"] or "",
    )
    if job.cid > MAX_CID or job.episode_id > MAX_CID or (job.source and find_source(job.source) is None):
        raise ValueError(_("{text} is no job id").format(text=repr(text[:80])))
    return job


# ------------------------------------------------------------------------------------------ what a user submits


@dataclass(frozen=True, slots=True)
class SiteHosts:
    """Where the site is: URL prefixes without a trailing slash, as the settings have them."""

    web_url: str = "https://www.bilibili.com"
    api_url: str = "https://api.bilibili.com"
    short_url: str = "https://b23.tv"


REAL_HOSTS = SiteHosts()

MAX_TARGET_CHARACTERS = 2048

_WEB_HOSTS = frozenset({"bilibili.com", "www.bilibili.com", "m.bilibili.com"})
_SHORT_HOSTS = frozenset({"b23.tv", "www.b23.tv"})
_BARE_ID = re.compile(r"(?P<kind>bv|av|ep)(?P<rest>[0-9a-z]*)", re.IGNORECASE | re.ASCII)
_VIDEO_PATH = re.compile(r"/(?:s/)?video/(?P<id>(?:av|bv)[0-9a-z]*)/?", re.IGNORECASE | re.ASCII)
_EPISODE_PATH = re.compile(r"/bangumi/play/(?P<id>ep[0-9]*)/?", re.IGNORECASE | re.ASCII)
_SHORT_CODE = re.compile(r"/(?P<code>[0-9A-Za-z]{1,32})/?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_target(text: str, hosts: SiteHosts = REAL_HOSTS) -> Target:
    """Return what a submitted text means; ValueError with a sentence for the user when it means nothing.

    Only an id is ever taken out of an address: what was submitted is not fetched, save a short link, and of that
    only the code behind the known host.
    """
    text = text.strip()
    if not text:
        raise ValueError(_("it is empty"))
    if len(text) > MAX_TARGET_CHARACTERS:
        raise ValueError(_("it is longer than {limit} characters").format(limit=MAX_TARGET_CHARACTERS))
    if not text.isprintable() or " " in text:
        raise ValueError(_("it has spaces or control characters inside"))
    bare, _mark, query = text.partition("?")
    if _BARE_ID.fullmatch(bare):
        return Target(id=_container(bare, query.partition("#")[0]))
    return _parse_address(text, hosts)


def _container(text: str, query: str) -> str:
    """Return the canonical id of the container that a BV, av or ep id names, of one page if the query has one."""
    kind, rest = text[:2].lower(), text[2:]
    if kind == "bv":
        bvid = "BV" + rest
        bvid_to_aid(bvid)
        return str(JobId(bvid=bvid, number=_page_number(query)))
    if not rest.isdecimal() or len(rest) > 16 or not 1 <= int(rest) <= MAX_AID:
        raise ValueError(_("{text} is no id: a number is expected behind {kind}").format(text=repr(text), kind=kind))
    if kind == "av":
        return str(JobId(bvid=aid_to_bvid(int(rest)), number=_page_number(query)))
    return str(JobId(episode_id=int(rest)))


def _page_number(query: str) -> int:
    """Return the page that a query asks for, 0 for all; the site takes the first of several."""
    numbers = parse_qs(query, max_num_fields=None).get("p", [])
    if not numbers:
        return 0
    number = numbers[0]
    if not re.fullmatch(r"[0-9]{1,5}", number) or int(number) == 0:
        raise ValueError(_("p={number} is no page number").format(number=number[:20]))
    return int(number)


def _parse_address(text: str, hosts: SiteHosts) -> Target:
    parts = _split_address(text)
    short = _path_below(parts, hosts.short_url)
    if short is None and parts.hostname in _SHORT_HOSTS and _has_default_port(parts):
        return _parse_short(parts.path, parts.query, REAL_HOSTS.short_url)
    if short is not None and _SHORT_CODE.fullmatch(short):
        return _parse_short(short, parts.query, hosts.short_url)
    path = _path_below(parts, hosts.web_url)
    if path is None and parts.hostname in _WEB_HOSTS and _has_default_port(parts):
        path = parts.path
    if path is None:
        raise ValueError(_("{host} is not Bilibili").format(host=repr(parts.hostname or text[:80])))
    match = _VIDEO_PATH.fullmatch(path) or _EPISODE_PATH.fullmatch(path)
    if match is None:
        raise ValueError(_("it is no address of a video (/video/BV…) or an episode (/bangumi/play/ep…)"))
    return Target(id=_container(match["id"], parts.query))


def _split_address(text: str) -> SplitResult:
    """Take an address apart, one without a scheme as well; ValueError for what could mislead a reader."""
    expected = _("expected is a BV, av or ep id, or an address of Bilibili")
    if "://" not in text and "." not in text.partition("/")[0]:
        raise ValueError(expected)
    try:
        parts = urlsplit(text if "://" in text else "https://" + text)
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in _DEFAULT_PORTS or port == 0:
        raise ValueError(expected)
    if "@" in parts.netloc or "\\" in text:
        raise ValueError(_("an address with a user name or a backslash is not taken"))
    return parts


def _has_default_port(parts: SplitResult) -> bool:
    return parts.port in (None, _DEFAULT_PORTS[parts.scheme])


def _path_below(parts: SplitResult, prefix: str) -> str | None:
    """Return the path of an address behind the prefix, None where the address is elsewhere."""
    base = urlsplit(prefix)
    mine = (parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme])
    if mine != (base.scheme, base.hostname, base.port or _DEFAULT_PORTS.get(base.scheme)):
        return None
    folder = base.path.rstrip("/") + "/"
    return parts.path[len(folder) - 1 :] if parts.path.startswith(folder) else None


def _parse_short(path: str, query: str, short_url: str) -> Target:
    match = _SHORT_CODE.fullmatch(path)
    if match is None:
        raise ValueError(_("it is no short link of the form {example}").format(example=short_url + "/abc123"))
    code = match["code"]
    if re.fullmatch(r"(?:bv[0-9a-z]{10}|av[0-9]+|ep[0-9]+)", code, re.IGNORECASE | re.ASCII):
        return Target(id=_container(code, query))
    return Target(short_link=f"{short_url}/{code}")


# ------------------------------------------------------------------------------------------ JSON, with bounds

MAX_TEXT_CHARACTERS = 8 * MIB
"""More than that is no answer of this site: the largest ones are a tenth of it."""

MAX_TITLE_CHARACTERS = 1000
MAX_DESCRIPTION_CHARACTERS = 8000
MAX_URL_CHARACTERS = 8192
MAX_MIRRORS = 16
MAX_SEGMENTS = 256
"""Of a joined stream: each is a file that is open while it is downloaded, and six minutes of a video at least."""

_Parameters = ParamSpec("_Parameters")
_Record = TypeVar("_Record")
_Object = dict[str, Any]


BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a text that is not what it should be makes Python raise."""


def _reads_site(parse: Callable[_Parameters, _Record]) -> Callable[_Parameters, _Record]:
    """Turn whatever a broken text of the site makes Python raise into a SiteError.

    The cause is cut off, because it carries the text, with its signed URLs, into tracebacks.
    """

    @wraps(parse)
    def guarded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Record:
        try:
            return parse(*args, **kwargs)
        except BROKEN:
            raise _nonsense() from None

    return guarded


def _nonsense() -> SiteError:
    return SiteError(_("the site answered something that is not its usual form; it may work later"))


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise SiteError(_("the site answered more than {limit} MiB").format(limit=MAX_TEXT_CHARACTERS // MIB))
    return text


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _no_constant(text: str) -> float:
    raise ValueError(text)


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


def _object(node: object) -> _Object:
    """Return the node if it is an object, else an empty one: a missing part has missing parts."""
    return node if isinstance(node, dict) else {}


def _objects(node: object) -> list[_Object]:
    return [item for item in node if isinstance(item, dict)] if isinstance(node, list) else []


def _integer(node: object, highest: int = MAX_CID) -> int:
    """Return a whole number from 0, written as a number or as digits; 0 for everything else."""
    if isinstance(node, str) and re.fullmatch(r"[0-9]{1,16}", node):
        node = int(node)
    if isinstance(node, bool) or not isinstance(node, int) or not 0 <= node <= highest:
        return 0
    return node


_LONGEST_SECONDS = 1e9


def _seconds(node: object, per_second: int = 1) -> float:
    """Return a duration as seconds, 0 where there is none or no sane one."""
    if isinstance(node, bool) or not isinstance(node, int | float) or not 0 <= node <= _LONGEST_SECONDS * per_second:
        return 0.0
    return node / per_second


def _title(node: object) -> str:
    """Return a title for people: entities resolved, no control characters, no halves of surrogate pairs."""
    text = html.unescape(node[: 4 * MAX_TITLE_CHARACTERS]) if isinstance(node, str) else ""
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return re.sub(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+", " ", text).strip()[:MAX_TITLE_CHARACTERS]


def _lines(node: object) -> str:
    """Return a text of several lines, cleaned as a title is."""
    text = node[:MAX_DESCRIPTION_CHARACTERS] if isinstance(node, str) else ""
    return "\n".join(_title(line) for line in text.splitlines()).strip()


# ------------------------------------------------------------------------------------------ what its codes mean

_GONE = _("the video is deleted or never existed")
_HIDDEN = _("the video is not public: its uploader or the site has hidden it")
_LOGIN = _("the site shows this only to a logged-in account: run.py --login, or set BILI_SESSDATA")
_SUPPORTERS = _("the video is only for supporters of its uploader, and this account is none")
_BUSY = _("the site has trouble of its own; it may work later")

_CODES: dict[int, tuple[type[JobError], str]] = {
    -404: (PermanentError, _GONE),
    62002: (PermanentError, _HIDDEN),
    62004: (PermanentError, _("the video is still in review; add it again when it is public")),
    62003: (TransientError, _("the video has passed its review and waits for its publication")),
    62012: (PermanentError, _("only its uploader can see the video")),
    -403: (PermanentError, _("this account may not watch the video; another may, with its BILI_SESSDATA")),
    -10403: (
        PermanentError,
        _("the site does not show the video here: it is for another region, or for premium members only"),
    ),
    -688: (PermanentError, _("the video is not for this region")),
    -689: (PermanentError, _("the holder of its rights does not let the site show the video")),
    87007: (PermanentError, _SUPPORTERS),
    87008: (PermanentError, _SUPPORTERS),
    -101: (PermanentError, _LOGIN),
    -106: (PermanentError, _LOGIN),
    -650: (PermanentError, _LOGIN),
    -102: (CircumstanceError, _("the account of BILI_SESSDATA is banned; set another, or none")),
    -112: (SiteError, _("the site is being maintained; it may work later")),
    -500: (SiteError, _BUSY),
    -503: (SiteError, _BUSY),
    -504: (SiteError, _BUSY),
    -8888: (SiteError, _BUSY),
}
"""What a code means for the job and for the user (bilibili-API-collect, docs/misc/errcode.md, docs/video/info.md)."""

_RISK_CODES = frozenset({-352, -401, -412, -509, -799, 412, 429})


def risk_control(code: object, retry_after_seconds: float | None = None) -> RiskControl:
    """Return the error for the site's wish that we slow down; ``code`` is its number or word for it."""
    sentence = _("the site's risk control wants fewer requests from this address or account")
    return RiskControl(sentence, str(code), retry_after_seconds)


_FIRST_CODE = re.compile(r'\s*\{\s*"code"\s*:\s*(-?\d{1,9})\b')


def answer_code(text: str) -> str:
    """Return the code that an answer of the API begins with, "v_voucher" for a puzzle, an empty text for neither."""
    code = _FIRST_CODE.match(text)
    return "v_voucher" if '"v_voucher"' in text[:400] else code[1] if code else ""


def is_refusal(code: str) -> bool:
    """Tell whether a code is the site's wish that we slow down."""
    return code == "v_voucher" or (code.lstrip("-").isdecimal() and int(code) in _RISK_CODES)


def _code_error(code: int, message: object) -> JobError:
    if code in _RISK_CODES:
        return risk_control(code)
    if code in _CODES:
        kind, sentence = _CODES[code]
        return kind(sentence, code)
    said = _title(message)[:100]
    return SiteError(_("the site refused: {message}").format(message=said), code)


def _envelope(text: str, also_good: frozenset[int] = frozenset()) -> _Object:
    """Return an API answer whose code is good; raise the error that its code means."""
    answer = _JSON.decode(_bounded(text))
    _check_code(answer, also_good)
    return cast(_Object, answer)


def _check_code(answer: _Object, also_good: frozenset[int] = frozenset()) -> None:
    code = answer["code"]
    if isinstance(code, bool) or not isinstance(code, int):
        raise _nonsense()
    if _has_voucher(answer):
        raise risk_control(code or "v_voucher")
    if code != 0 and code not in also_good:
        raise _code_error(code, answer.get("message"))


def _has_voucher(answer: _Object) -> bool:
    """Tell whether a puzzle for a person comes instead of what was asked for, which looks like a success."""
    return any(_object(answer.get(name)).get("v_voucher") for name in ("data", "result"))


# ------------------------------------------------------------------------------------------ videos


@_reads_site
def parse_view(text: str) -> Video:
    """Return the video that an answer of /x/web-interface/view describes."""
    return _video(_object(_envelope(text).get("data")))


@_reads_site
def parse_season(text: str, episode_id: int) -> Video:
    """Return the one episode out of an answer of /pgc/view/web/season, as a video of one page."""
    season = _object(_envelope(text).get("result"))
    lists = [season, *_objects(season.get("section"))]
    for episode in (episode for part in lists for episode in _objects(part.get("episodes"))):
        if _integer(episode.get("id") or episode.get("ep_id")) == episode_id:
            return _episode(episode, episode_id, _title(season.get("season_title") or season.get("title")))
    raise SiteError(_("the site's list of the season does not have episode {id}").format(id=episode_id))


@_reads_site
def parse_initial_state(html: str) -> Video:
    """Return the video of a page; the page holds the view answer, or the episode on older pages of a season."""
    state = _initial_state(html)
    if video := _object(state.get("videoData")):
        return _video(video)
    episode = _object(state.get("epInfo"))
    episode_id = _integer(episode.get("id") or episode.get("ep_id"))
    if not episode_id:
        raise _nonsense()
    return _episode(episode, episode_id, _title(_object(state.get("mediaInfo")).get("title")))


def _video(view: _Object) -> Video:
    bvid, aid = _ids(view)
    title = _title(view.get("title")) or bvid
    notes: list[str] = []
    pages = _pages(view, title)
    announced = _integer(view.get("videos"))
    if _object(view.get("rights")).get("is_stein_gate"):
        notes.append(_("an interactive video: only its first branch is downloaded"))
        pages = pages[:1]
    elif announced > len(pages):
        notes.append(
            _("the site announces {announced} pages but lists {listed}").format(announced=announced, listed=len(pages))
        )
    if view.get("is_upower_exclusive") and not view.get("is_upower_play"):
        notes.append(_SUPPORTERS)
    redirect = view.get("redirect_url")
    match = re.search(r"/bangumi/play/ep([1-9][0-9]{0,15})\b", redirect) if isinstance(redirect, str) else None
    return Video(
        bvid=bvid,
        aid=aid,
        title=title,
        pages=pages,
        owner=_title(_object(view.get("owner")).get("name")),
        episode_id=int(match[1]) if match else None,
        notes=tuple(notes),
        about=_about(view, aid),
    )


_LATEST = 2**33
"""Seconds: after 2200, which is no date of a video."""


def _about(view: _Object, aid: int) -> About:
    """Return what a view answer says of the video beside its title; nothing of it has to be there."""
    season = _object(view.get("ugc_season"))
    listed = [item for part in _objects(season.get("sections")) for item in _objects(part.get("episodes"))]
    places = [place for place, item in enumerate(listed, 1) if _integer(item.get("aid")) == aid]
    return About(
        owner_id=_integer(_object(view.get("owner")).get("mid")),
        description=_lines(view.get("desc")),
        published_at=_integer(view.get("pubdate"), _LATEST),
        region=_title(view.get("tname_v2") or view.get("tname")),
        season=_title(season.get("title")),
        episode_number=places[0] if places else 0,
        cover_url=_address(view.get("pic")),
    )


def _address(node: object) -> str:
    return node if isinstance(node, str) and len(node) <= MAX_URL_CHARACTERS else ""


def _ids(node: _Object) -> tuple[str, int]:
    bvid = node.get("bvid") or aid_to_bvid(_integer(node.get("aid")))
    return bvid, bvid_to_aid(bvid)


def _pages(view: _Object, title: str) -> tuple[Page, ...]:
    """Return the pages by number; a page that cannot be read, or is there twice, makes all of the answer wrong."""
    listed = view.get("pages") or [{"cid": view["cid"], "page": 1, "part": title, "duration": view.get("duration")}]
    pages = [
        Page(
            number=_integer(item["page"], MAX_NUMBER),
            cid=_integer(item["cid"]),
            title=_title(item.get("part")) or title,
            duration_seconds=_seconds(item.get("duration")),
        )
        for item in listed
    ]
    numbers, cids = {page.number for page in pages}, {page.cid for page in pages}
    if 0 in numbers | cids or not len(numbers) == len(cids) == len(pages):
        raise _nonsense()
    return tuple(sorted(pages, key=lambda page: page.number))


def _episode(episode: _Object, episode_id: int, season: str) -> Video:
    bvid, aid = _ids(episode)
    cid = _integer(episode["cid"])
    if not cid:
        raise _nonsense()
    own = " ".join(filter(None, (_title(episode.get("title")), _title(episode.get("long_title")))))
    title = _title(episode.get("share_copy")) or " ".join(filter(None, (season, own))) or bvid
    page = Page(number=1, cid=cid, title=own or title, duration_seconds=_seconds(episode.get("duration"), 1000))
    about = About(
        published_at=_integer(episode.get("pub_time"), _LATEST),
        season=season,
        episode_number=_integer(episode.get("title"), MAX_NUMBER),
        cover_url=_address(episode.get("cover")),
    )
    return Video(bvid=bvid, aid=aid, title=title, pages=(page,), episode_id=episode_id, about=about)


def _initial_state(page: str) -> _Object:
    state = _script_value(page, "window.__INITIAL_STATE__=")
    if state is None:
        if _object(_script_value(page, "window._riskdata_=")).get("v_voucher"):
            raise risk_control("v_voucher")
        raise SiteError(_("the page has no description of its video in it"))
    state = _object(state)
    error = _object(state.get("error"))
    code = error.get("trueCode") or error.get("code")
    if isinstance(code, int) and code:
        raise _code_error(-code if code in (403, 404) else code, error.get("message"))
    return state


def _script_value(page: str, assignment: str) -> object:
    """Return the JSON that a script of the page assigns to a name, None where no script does."""
    pattern = re.escape(assignment).replace("=", r"\s*=\s*")
    match = re.search(pattern, _bounded(page))
    if match is None:
        return None
    value: object = _JSON.raw_decode(page, match.end())[0]
    return value


# ------------------------------------------------------------------------------------------ streams

_DEADLINE = re.compile(r"[?&]deadline=([0-9]{9,11})(?:&|$)")
_CODECIDS = {"avc1": 7, "avc3": 7, "hev1": 12, "hvc1": 12, "dvh1": 12, "dvhe": 12, "av01": 13}


@_reads_site
def parse_playurl(text: str) -> Playinfo:
    """Return the streams in an answer of a playurl API, of the ordinary player or of the bangumi one."""
    return _playinfo(_envelope(text))


@_reads_site
def parse_playinfo_html(html: str, cid: int | None = None) -> Playinfo:
    """Return the streams that a page has in it; with ``cid``, only if the page can prove that they are of that page.

    A SiteError says that there are none: then the API has to be asked.
    """
    answer = _script_value(html, "window.__playinfo__=") or _script_value(html, "playurlSSRData=")
    if not isinstance(answer, dict):
        raise SiteError(_("the page has no streams in it"))
    if cid is not None and _shown_cid(_initial_state(html)) != cid:
        raise SiteError(_("the page plays another part than the one asked for"))
    if "code" in answer:
        _check_code(answer)
    return _playinfo(answer)


def _shown_cid(state: _Object) -> int:
    """Return the cid of what a page plays: its page ``p``, or else the only one."""
    pages = _objects(_object(state.get("videoData")).get("pages"))
    number = _integer(state.get("p")) or (1 if len(pages) == 1 else 0)
    for page in pages:
        if number and _integer(page.get("page")) == number:
            return _integer(page.get("cid"))
    return _integer(_object(state.get("epInfo")).get("cid"))


def _playinfo(answer: _Object) -> Playinfo:
    layers = _layers(answer)
    _refuse_partial(layers)
    info = next((layer for layer in layers if layer.get("dash") or layer.get("durl")), None)
    if info is None:
        if any(_is_withheld(layer) for layer in layers):
            raise _code_error(-10403, "")
        raise SiteError(_("the site offers no streams of this page"))
    dash = _object(info.get("dash"))
    listed = _objects(dash.get("video")), _audio_nodes(dash)
    videos, audios = _streams("video", listed[0]), _streams("audio", listed[1])
    segments = () if videos or audios else _segments(info.get("durl"))
    # Of one kind all are unusable: else a video would be recorded without its picture, or without its sound.
    is_half = bool(videos) != bool(audios) and all(listed)
    if is_half or not (videos or audios or segments):
        raise SiteError(_("the site offers no streams of this page"))
    duration = _seconds(info.get("timelength"), 1000) or _seconds(dash.get("duration"))
    mirrors = [*(stream.urls for stream in (*videos, *audios)), *(segment.urls for segment in segments)]
    return Playinfo(
        duration_seconds=duration or sum(segment.duration_seconds for segment in segments),
        videos=videos,
        audios=audios,
        segments=segments,
        segments_qn=_integer(info.get("quality")) if segments else 0,
        deadline=_deadline(url for urls in mirrors for url in urls),
        announced=_announced(info),
    )


def _announced(info: _Object) -> tuple[int, ...]:
    """Return the qn that the video has, whoever asks: two lists say so, and one of them may be missing."""
    accepted = info.get("accept_quality")
    found = [_integer(qn) for qn in accepted] if isinstance(accepted, list) else []
    found += [_integer(node.get("quality")) for node in _objects(info.get("support_formats"))]
    return tuple(sorted({qn for qn in found if qn}, reverse=True))


def _deadline(urls: Iterable[str]) -> int | None:
    """Return the Unix time at which the first of the signed URLs dies."""
    return min((int(match[1]) for url in urls if (match := _DEADLINE.search(url))), default=None)


def _layers(answer: _Object) -> list[_Object]:
    """Return the nested objects in which the players of the site have put the streams over the years."""
    layers = [answer]
    for name in ("raw", "data", "result", "video_info"):
        inner = layers[-1].get(name)
        if isinstance(inner, dict):
            layers.append(inner)
            if "code" in inner and name != "video_info":
                _check_code(inner)
    return layers


def _refuse_partial(layers: list[_Object]) -> None:
    """Raise PermanentError where what is offered is encrypted, or only a taste of the whole."""
    for layer in layers:
        if layer.get("is_drm") or any(map(_is_encrypted, _objects(_object(layer.get("dash")).get("video")))):
            raise PermanentError(_("the video is encrypted (DRM); it cannot be downloaded"), "drm")
        descriptions = layer.get("accept_description")
        trial = isinstance(descriptions, list) and any(isinstance(d, str) and "试看" in d for d in descriptions)
        detail = _object(layer.get("play_check")).get("play_detail")
        preview = detail == "PLAY_PREVIEW" or layer.get("play_video_type") == "preview"
        if trial or preview or layer.get("is_preview") in (1, True):
            raise PermanentError(
                _("the site offers this account only a preview; another BILI_SESSDATA may see the whole"), "preview"
            )


def _is_encrypted(stream: _Object) -> bool:
    return any(stream.get(name) for name in ("drm_type", "widevine_pssh", "bilidrm_uri"))


def _is_withheld(layer: _Object) -> bool:
    """Tell whether the bangumi player refuses: by a panel about the region, or for what the account may not see."""
    return _object(layer.get("play_check")).get("play_detail") == "PLAY_NONE" or any(
        plugin.get("name") == "AreaLimitPanel" and _object(plugin.get("config")).get("is_block")
        for plugin in _objects(layer.get("plugins"))
    )


def _audio_nodes(dash: _Object) -> list[_Object]:
    """Return all audio streams; each of the three places where they stand may be null."""
    flac = _object(dash.get("flac")).get("audio")
    return [*_objects(dash.get("audio")), *_objects(_object(dash.get("dolby")).get("audio")), *_objects([flac])]


def _streams(kind: str, nodes: list[_Object]) -> tuple[Stream, ...]:
    streams = []
    for node in nodes:
        codecs = node.get("codecs")
        codecs = codecs[:64] if isinstance(codecs, str) else ""
        stream = Stream(
            kind=kind,
            id=_integer(node.get("id")),
            codecid=_integer(node.get("codecid")) or _CODECIDS.get(codecs.lower()[:4], 0),
            codecs=codecs,
            bandwidth=_integer(node.get("bandwidth")),
            urls=_urls(node),
            width=_integer(node.get("width")),
            height=_integer(node.get("height")),
        )
        if stream.urls and stream.id:
            streams.append(stream)
    return tuple(streams)


def _urls(node: _Object) -> tuple[str, ...]:
    """Return the mirrors in the site's order, each once; the names are of two generations of the API."""
    found: list[object] = [node.get(name) for name in ("baseUrl", "base_url", "url")]
    for name in ("backupUrl", "backup_url"):
        backups = node.get(name)
        found += backups if isinstance(backups, list) else []
    good = [url for url in found if isinstance(url, str) and _is_web_address(url)]
    return tuple(dict.fromkeys(good))[:MAX_MIRRORS]


def _is_web_address(url: str) -> bool:
    return (
        url.startswith(("https://", "http://")) and len(url) <= MAX_URL_CHARACTERS and url.isascii() and _is_plain(url)
    )


def _is_plain(text: str) -> bool:
    return text.isprintable() and " " not in text


def _segments(nodes: object) -> tuple[Segment, ...]:
    """Return the pieces of a durl stream in order; one that is missing or unreadable makes all of it useless."""
    if not isinstance(nodes, list):
        return ()
    if len(nodes) > MAX_SEGMENTS:
        raise _nonsense()
    segments = [
        Segment(
            order=_integer(node.get("order")) or place,
            size_bytes=_integer(node.get("size")),
            duration_seconds=_seconds(node.get("length"), 1000),
            urls=_urls(node),
        )
        for place, node in enumerate(nodes, 1)
    ]
    segments.sort(key=lambda segment: segment.order)
    if [segment.order for segment in segments] != list(range(1, len(segments) + 1)):
        raise _nonsense()
    if not all(segment.urls for segment in segments):
        raise _nonsense()
    return tuple(segments)


# ------------------------------------------------------------------------------------------ signatures and cookies

_MIXIN_ORDER = (
    *(46, 47, 18, 2, 53, 8, 23, 32, 15, 50, 10, 31, 58, 3, 45, 35),
    *(27, 43, 5, 49, 33, 9, 42, 19, 29, 28, 14, 39, 12, 38, 41, 13),
)
"""Which characters of the two keys make the secret of a signature (bilibili-API-collect, docs/misc/sign/wbi.md)."""

_UNSIGNED_CHARACTERS = str.maketrans("", "", "!'()*")


@_reads_site
def parse_wbi_keys(text: str) -> tuple[str, str]:
    """Return the two keys of the day from an answer of /x/web-interface/nav, logged in or not (-101)."""
    images = _object(_object(_envelope(text, frozenset({-101})).get("data")).get("wbi_img"))
    keys = [images[name].rpartition("/")[2].partition(".")[0] for name in ("img_url", "sub_url")]
    if not all(re.fullmatch(r"[0-9A-Za-z]{32}", key) for key in keys):
        raise _nonsense()
    return keys[0], keys[1]


@_reads_site
def parse_login(text: str) -> tuple[bool, str]:
    """Return whether an answer of /x/web-interface/nav is for an account, and the number of that account."""
    data = _object(_envelope(text, frozenset({-101})).get("data"))
    return data.get("isLogin") is True, str(_integer(data.get("mid"), 2**63 - 1) or "")


def sign_wbi(params: Mapping[str, str | int], keys: tuple[str, str], unix_seconds: int) -> dict[str, str]:
    """Return the parameters with the signature ``w_rid`` and its time ``wts``.

    They must travel percent-encoded as they were signed: UTF-8, capital hexadecimal digits, a space as %20.
    """
    material = "".join(keys)
    secret = "".join(material[place] for place in _MIXIN_ORDER)
    signed = {name: str(value).translate(_UNSIGNED_CHARACTERS) for name, value in params.items()}
    signed["wts"] = str(unix_seconds)
    query = urlencode(sorted(signed.items()), quote_via=quote, safe="")
    signed["w_rid"] = hashlib.md5((query + secret).encode(), usedforsecurity=False).hexdigest()
    return signed


@_reads_site
def parse_spi(text: str) -> tuple[str, str]:
    """Return buvid3 and buvid4, the cookies of a visitor, from an answer of /x/frontend/finger/spi."""
    data = _object(_envelope(text).get("data"))
    values = data["b_3"], data["b_4"]
    if not all(re.fullmatch(r"[!-~]{1,256}", value) for value in values):
        raise _nonsense()
    return values


# ------------------------------------------------------------------------------------------ rankings


class Region(Protocol):
    """What of a category says which ranking it is: a main region, and the sub-regions wanted of it."""

    @property
    def rid(self) -> int:
        """The id of the main region, 0 for the whole site."""

    @property
    def tids(self) -> frozenset[int]:
        """The sub-regions wanted, by ids old or new; none means all."""


_FIRST_SUB_REGIONS = (
    *(2001, 2009, 2016, 2028, 2037, 2055, 2059, 2064, 2080, 2084, 2096, 2099, 2106, 2111, 2120, 2124),
    *(2128, 2133, 2143, 2149, 2154, 2158, 2162, 2167, 2172, 2179, 2185, 2189, 2194, 2198, 2203),
)
"""The first sub-region of each main region from 1001 on (bilibili-API-collect, docs/video/video_zone_v2.md)."""

_LAST_SUB_REGION = 2205


@_reads_site
def parse_ranking(text: str, category: Region) -> list[str]:
    """Return the BV ids of an answer of ranking/v2 in order, each once, those of the category's sub-regions only.

    The site answers an id that it does not know with the list of the whole site, without an error: a list whose
    items mostly belong elsewhere, or that does not say where they belong, is a SiteError.
    """
    listed = _objects(_object(_envelope(text)["data"])["list"])
    if category.rid:
        belong = [_belongs(item, category) for item in listed]
        _check_region(belong, category.rid)
        listed = [item for item, here in zip(listed, belong, strict=True) if here]
    if category.tids:
        listed = [item for item in listed if _sub_regions(item) & category.tids]
    return list(dict.fromkeys(_ids(item)[0] for item in listed))


def _check_region(belong: list[bool | None], rid: int) -> None:
    known = [here for here in belong if here is not None]
    if belong and not known:
        raise SiteError(_("the ranking of region {rid} does not say where its videos belong").format(rid=rid), "region")
    if known and 2 * sum(known) <= len(known):
        raise SiteError(
            _("the ranking of region {rid} is of another region: its id is wrong or no longer in use").format(rid=rid),
            "region",
        )


def _belongs(item: _Object, category: Region) -> bool | None:
    """Tell whether an item is of the category's main region, None where it does not say."""
    if main := _integer(item.get("pid_v2")):
        return main == category.rid
    for name in ("tidv2", "tid_v2"):
        sub = _integer(item.get(name))
        if _FIRST_SUB_REGIONS[0] <= sub <= _LAST_SUB_REGION:
            return 1000 + bisect_right(_FIRST_SUB_REGIONS, sub) == category.rid
    return True if _sub_regions(item) & category.tids else None


def _sub_regions(item: _Object) -> set[int]:
    return {_integer(item.get(name)) for name in ("tid", "tidv2", "tid_v2")} - {0}


# ------------------------------------------------------------------------------------------ for sources/ and extras/

# The site's other answers are read with the same care as its videos, by the same tools.
reads_site, envelope, nonsense = _reads_site, _envelope, _nonsense
as_object, as_objects, whole_number, plain_title, video_ids = _object, _objects, _integer, _title, _ids
split_address, path_below, has_default_port = _split_address, _path_below, _has_default_port
WEB_HOSTS, SHORT_HOSTS = _WEB_HOSTS, _SHORT_HOSTS
