"""Settings, read once from the environment and an optional ``.env``; and working.json, read again and again.

Every setting is documented in README.md; a wrong one is a UsageError that names it and says what would be
right. Relative paths are relative to the folder of the scripts, wherever they are started.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dotenv import dotenv_values

from create_folder import USUAL, Output, parse_output
from engine_url import read_url
from errors import UsageError
from i18n import _
from model import BEST, CODECS, KIB, NO_SOUND, QUALITIES, SOUNDS, Wishes, Working
from places import Place, parse_place

ROOT = Path(__file__).resolve().parent

PARTS_FOLDER = ".parts"
"""Where unfinished work lies, in the download folder, unless a setting names another place."""

USER_AGENT = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
)
"""The site answers 412 to clients that do not look like a browser."""

MEDIA_SUFFIXES = (
    "bilivideo.com",
    "bilivideo.cn",
    "akamaized.net",
    "hdslb.com",
    "biliapi.net",
    "szbdyd.com",
    "mountaintoys.cn",
    "ahdohpiechei.com",
)
"""Hosts from which the site serves media (with everything below them); others in a playinfo are not asked."""


class Category(NamedTuple):
    """A folder that is filled from a region ranking.

    ``rid`` is the id of a main region as ranking/v2 knows it since 2025 (1001 and up; 0 is the whole site);
    ``tids`` picks sub-regions out of that ranking, by the ids in use before 2025 or since. Empty picks all.
    """

    name: str
    rid: int
    tids: frozenset[int] = frozenset()


CATEGORIES = (
    Category("野生技术协会", 1010, frozenset({122, 2091, 2095})),
    Category("社科人文", 1010, frozenset({124, 228, 2088, 2089, 2090, 2092})),
    Category("科学科普", 1010, frozenset({201, 2094})),
    Category("财经", 1010, frozenset({207, 2087})),
    Category("校园学习", 1010, frozenset({208, 2084, 2085, 2086})),
    Category("职业职场", 1010, frozenset({209, 2093})),
    Category("首页", 0),
)
"""The reference's categories; edit, or name targets to add_url.py. Ids: bilibili-API-collect, video_zone*.md."""


EXTRAS = (
    "tags",
    "chapters",
    "cover",
    "cover-file",
    "danmaku",
    "danmaku-xml",
    "subtitles",
    "embed-subtitles",
    "nfo",
    "json",
)
"""What may come with a video; docs/extras.md says what each is, and what it costs in requests."""

_REAL_URLS = frozenset(
    f"https://{host}" for host in ("www.bilibili.com", "api.bilibili.com", "passport.bilibili.com", "b23.tv")
)


MAX_SHARDS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default; the secrets among them have no repr: ``redis_url``, ``token``, ``notify`` …"""

    redis_url: str = field(default="", repr=False)
    server_urls: tuple[str, ...] = ("http://127.0.0.1:8080",)
    token: str = field(default="", repr=False)
    worker: str = ""
    web_url: str = "https://www.bilibili.com"
    api_url: str = "https://api.bilibili.com"
    passport_url: str = "https://passport.bilibili.com"
    short_url: str = "https://b23.tv"
    media_hosts: tuple[str, ...] = ()
    download_dir: Path = ROOT / "Download"
    data_dir: Path = ROOT / ".data"
    working_file: Path = ROOT / "working.json"
    hosts: tuple[str, ...] = ()
    category: str = "other"
    sessdata: str = field(default="", repr=False)
    cookies: Path | None = None
    lease_seconds: float = 60.0
    affinity_seconds: float = 120.0
    shards: int = 1
    connections: int = 16
    max_bytes_per_second: float = 0.0
    """0 is no limit; working.json may say otherwise while a worker runs."""
    scratch: Path | None = None
    api_interval_seconds: float = 0.5
    quality: str = "best"
    codecs: str = "avc,hevc,av1"
    audio: str = "192k"
    streams: str = "both"
    container: str = "auto"
    min_quality: str = ""

    @property
    def wishes(self) -> Wishes:
        """What the settings say of the streams to take."""
        return Wishes(
            qn=_quality_number(self.quality),
            codecids=tuple(CODECS[name] for name in self.codecs.split(",")),
            sound=BEST if self.audio == "best" else SOUNDS.get(self.audio, NO_SOUND),
            streams="video" if self.audio == "none" else self.streams,
            container=self.container,
            min_qn=_quality_number(self.min_quality) if self.min_quality else 0,
        )

    extras: tuple[str, ...] = ("tags",)
    """Tags by default: they come with what is asked for anyway; every other one costs a request or a file."""
    output: Output = USUAL
    notify: tuple[str, ...] = field(default=(), repr=False)
    """Addresses of services that reach a person; they have keys and passwords in them."""
    log_level: str = "info"
    log_file: Path | None = None
    rate_per_address: float = 2.0
    """Requests a second to the site that all workers of one address may make together; 0 is no limit."""
    rate_per_account: float = 2.0
    egress: str = ""
    deliver_to: Place | None = None
    deliver_keep: str = "yes"
    success_limit: int = 5_000_000
    """So many records of finished pages stay in Redis, the newest; 0 is all of them."""

    @property
    def scratch_dir(self) -> Path:
        """The folder of unfinished work: the one that was set, or one in the download folder, on the same disk."""
        return self.scratch or self.download_dir / PARTS_FOLDER

    @property
    def stand_in_hosts(self) -> tuple[str, ...]:
        """Hosts that serve media because a setting names them: plain http and loopback are allowed there."""
        named = (self.web_url, self.api_url, self.passport_url, self.short_url)
        return (*self.media_hosts, *(urlsplit(url).netloc.lower() for url in named if url not in _REAL_URLS))

    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    """Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto the server believes."""
    metrics_address: str = ""
    """Where a worker shows its figures to Prometheus, ``host:port``; empty is nowhere."""
    server_pins: tuple[str, ...] = ()
    """The SHA-256 of each certificate that a queue server may show; empty leaves that to the authorities."""

    @property
    def server_url(self) -> str:
        """The first queue server, which names the farm where one name is needed."""
        return self.server_urls[0]

    @property
    def server_is_local(self) -> bool:
        """Tell whether all queue servers are on this machine's loopback."""
        return all(is_loopback(urlsplit(url).hostname or "") for url in self.server_urls)


_VARIABLES = {
    "redis_url": "REDIS_URL",
    "server_urls": "BILI_SERVER_URL",
    "token": "BILI_TOKEN",
    "worker": "BILI_WORKER",
    "web_url": "BILI_WEB_URL",
    "api_url": "BILI_API_URL",
    "passport_url": "BILI_PASSPORT_URL",
    "short_url": "BILI_SHORT_URL",
    "media_hosts": "BILI_MEDIA_HOSTS",
    "download_dir": "BILI_DOWNLOAD_DIR",
    "data_dir": "BILI_DATA_DIR",
    "working_file": "BILI_WORKING_FILE",
    "hosts": "BILI_HOSTS",
    "category": "BILI_CATEGORY",
    "sessdata": "BILI_SESSDATA",
    "cookies": "BILI_COOKIES",
    "lease_seconds": "BILI_LEASE_SECONDS",
    "affinity_seconds": "BILI_AFFINITY_SECONDS",
    "shards": "BILI_SHARDS",
    "connections": "BILI_CONNECTIONS",
    "max_bytes_per_second": "BILI_MAX_SPEED",
    "scratch": "BILI_SCRATCH_DIR",
    "api_interval_seconds": "BILI_API_INTERVAL",
    "quality": "BILI_QUALITY",
    "codecs": "BILI_CODECS",
    "audio": "BILI_AUDIO",
    "streams": "BILI_STREAMS",
    "container": "BILI_CONTAINER",
    "min_quality": "BILI_MIN_QUALITY",
    "extras": "BILI_EXTRAS",
    "output": "BILI_OUTPUT",
    "notify": "BILI_NOTIFY",
    "log_level": "BILI_LOG_LEVEL",
    "log_file": "BILI_LOG_FILE",
    "trusted_proxies": "BILI_TRUSTED_PROXIES",
    "metrics_address": "BILI_METRICS_ADDRESS",
    "rate_per_address": "BILI_RATE_PER_ADDRESS",
    "rate_per_account": "BILI_RATE_PER_ACCOUNT",
    "egress": "BILI_EGRESS",
    "deliver_to": "BILI_DELIVER_TO",
    "deliver_keep": "BILI_DELIVER_KEEP",
    "success_limit": "BILI_SUCCESS_LIMIT",
    "server_pins": "BILI_SERVER_PIN",
}
VARIABLES = tuple(_VARIABLES.values())
"""The names of all settings, for the documentation's test."""


def is_loopback(host: str) -> bool:
    """Tell whether a host name or IP literal means this machine only."""
    return host == "localhost" or host == "::1" or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def load(environ: Mapping[str, str], root: Path = ROOT) -> Settings:
    """Return the settings of ``environ``, completed by ``root/.env``; all wrong ones are in one UsageError."""
    return parse_settings(values_of(environ, root), root)


def values_of(environ: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """Return the values of ``environ``, completed by ``root/.env``, as they are written."""
    path = root / ".env"
    try:
        written = dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else _("it is not UTF-8")
        raise UsageError(
            _("The settings in {path} cannot be read: {problem}").format(path=path, problem=problem)
        ) from None
    return {**{name: value or "" for name, value in written.items()}, **environ}


def parse_settings(values: Mapping[str, str], root: Path = ROOT) -> Settings:
    """Return the settings in ``values``; an empty value means the default. Raise UsageError naming each wrong one."""
    found: dict[str, object] = {}
    wrong: list[str] = []
    for name, variable in _VARIABLES.items():
        text = values.get(variable, "").strip()
        if not text:
            continue
        try:
            found[name] = _PARSERS[name](text, root)
        except ValueError as error:
            shown = "" if name in ("redis_url", "token", "sessdata", "notify", "deliver_to") else f"={text!r}"
            wrong.append(f"{variable}{shown}: {error}")
    if not wrong:
        wrong = _contradictions(found)
    if wrong:
        raise UsageError("\n".join([_("These settings are wrong:"), *wrong]))
    for name, path in (("download_dir", "Download"), ("data_dir", ".data"), ("working_file", "working.json")):
        found.setdefault(name, root / path)
    return Settings(**found)  # type: ignore[arg-type]


def _text(text: str, root: Path) -> str:
    if any(ord(character) < 32 for character in text):
        raise ValueError(_("it has control characters"))
    return text


def _header(text: str, root: Path) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError(_("it must be printable ASCII, because it travels in an HTTP header"))
    return text


def _worker(text: str, root: Path) -> str:
    if len(text) > 64 or not text.isprintable():
        raise ValueError(_("a worker's name has 1 to 64 printable characters"))
    return text


def _line_name(text: str, root: Path) -> str:
    if len(text) > 64 or not text.isprintable():
        raise ValueError(_("the name of a line has 1 to 64 printable characters"))
    return text


def _path(text: str, root: Path) -> Path:
    return root / Path(text).expanduser()


def _url(text: str, root: Path) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(_("it must be an http:// or https:// address, such as http://192.0.2.1:8080"))
    if parts.port == 0:  # reading the port raises ValueError where it is no number
        raise ValueError(_("port 0 is nobody's"))
    return text.rstrip("/")


def _urls(text: str, root: Path) -> tuple[str, ...]:
    """Return addresses of servers, each once, in the order in which they are named."""
    found = dict.fromkeys(_url(part.strip(), root) for part in text.split(",") if part.strip())
    if not found:
        raise ValueError(_("it must be an http:// or https:// address, such as http://192.0.2.1:8080"))
    return tuple(found)


def read_pin(text: str) -> str:
    """Return a pin as it is compared, 64 hexadecimal digits; raise ValueError for what is none."""
    pin = text.strip().replace(":", "").lower()
    if not re.fullmatch("[0-9a-f]{64}", pin):
        raise ValueError(_("a pin is the SHA-256 of a certificate, 64 hexadecimal digits"))
    return pin


def _networks(text: str, root: Path) -> tuple[str, ...]:
    """Return addresses and networks as they are written, or none for the word ``none``."""
    named = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if named == ("none",):
        return ()
    for part in named:
        try:
            ipaddress.ip_network(part)
        except ValueError:
            raise ValueError(_("{name} is no address and no network such as 10.0.0.0/8").format(name=part)) from None
    return named


def _listening_address(text: str, root: Path) -> str:
    """Return ``host:port``; without a host it is this machine only."""
    parts = urlsplit(f"//127.0.0.1:{text}" if text.isdecimal() else f"//{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port or parts.path or "@" in parts.netloc:
        raise ValueError(_("it must be a port, or an address and a port, such as 127.0.0.1:9100"))
    return parts.netloc


def _redis_url(text: str, root: Path) -> str:
    read_url(text)
    return re.sub(r"^valkey", "redis", text)


def _names(text: str, root: Path) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _number(low: float, high: float) -> Callable[[str, Path], float]:
    def parse(text: str, root: Path) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ValueError(_("it must be a number from {low:g} to {high:g}").format(low=low, high=high))
        return value

    return parse


def _category(text: str, root: Path) -> str:
    if problem := category_problem(text):
        raise ValueError(problem)
    return text


def category_problem(name: str) -> str:
    """Return what is wrong with a category as the name of one folder, or an empty text."""
    if not name.strip() or name != name.strip() or not name.isprintable() or len(name.encode()) > 120:
        return _("a category is a folder's name: 1 to 120 bytes, printable, no spaces around it")
    if name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        return _('a category is one folder: no leading dot, none of / \\ : * ? " < > |')
    return ""


def _extras(text: str, root: Path) -> tuple[str, ...]:
    named = [name.strip().lower() for name in text.split(",") if name.strip()]
    if unknown := [name for name in named if name not in (*EXTRAS, "all", "none")]:
        sentence = _("{name} is no extra; there are {names}, and all and none")
        raise ValueError(sentence.format(name=repr(unknown[0]), names=", ".join(EXTRAS)))
    if "none" in named and len(named) > 1:
        raise ValueError(_("none stands alone"))
    return tuple(name for name in EXTRAS if name in named or "all" in named)


def _addresses(text: str, root: Path) -> tuple[str, ...]:
    """Return addresses of any scheme, with spaces or commas between; some have commas of their own in them."""
    scheme = "[A-Za-z][A-Za-z0-9+.-]*://"
    found = re.split(rf"[\s,]+(?={scheme})", text.strip(", "))
    if not all(re.fullmatch(rf"{scheme}\S+", address) for address in found):
        raise ValueError(_("it must be addresses such as json://host/path, with spaces between"))
    return tuple(found)


def _shards(text: str, root: Path) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SHARDS:
        raise ValueError(_("it must be a whole number from 1 to 64"))
    return int(text)


def _connections(text: str, root: Path) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise ValueError(_("it must be a whole number from 1 to 256"))
    return int(text)


def _whole(text: str, high: int) -> int:
    if not re.fullmatch("[0-9]{1,12}", text) or int(text) > high:
        raise ValueError(_("it must be a whole number from {low} to {high}").format(low=0, high=high))
    return int(text)


_QUALITY_ALIASES = {"dv": "dolby", "hdr10": "hdr", "1080phigh": "1080p+"}
_SMART_REPAIR = 100


def _quality_number(text: str) -> int:
    """Return the qn of a quality's name, or of one that is a number itself."""
    return BEST if text == "best" else QUALITIES.get(text) or int(text)


def _quality(text: str, root: Path) -> str:
    name = text.lower().replace(" ", "")
    name = _QUALITY_ALIASES.get(name, name)
    if name == "best" or name in QUALITIES:
        return name
    if name.isdecimal() and int(name) in (*QUALITIES.values(), _SMART_REPAIR):
        return next((known for known, qn in QUALITIES.items() if qn == int(name)), name)
    raise ValueError(
        _("it must be best, one of {names}, or the qn of one, such as 80").format(names=", ".join(QUALITIES))
    )


def _least_quality(text: str, root: Path) -> str:
    name = _quality(text, root)
    if name == "best":
        raise ValueError(_("name a quality, such as 1080p"))
    return name


def _codecs(text: str, root: Path) -> str:
    """Return the codecs in the order that is wished; those that are not named come last."""
    named = [name.strip().lower() for name in text.split(",")]
    if len(set(named)) != len(named) or not set(named) <= set(CODECS):
        raise ValueError(
            _("it must be some of {names}, each once, with commas between").format(names=", ".join(CODECS))
        )
    return ",".join([*named, *(name for name in CODECS if name not in named)])


def _audio(text: str, root: Path) -> str:
    name = text.lower().replace("-", "")
    by_id = {str(id_): known for known, id_ in SOUNDS.items()}
    return _one_of("best", *SOUNDS, "none")(by_id.get(name, name), root)


def _one_of(*words: str) -> Callable[[str, Path], str]:
    def parse(text: str, root: Path) -> str:
        if text.lower() not in words:
            raise ValueError(_("it must be one of {words}").format(words=", ".join(words)))
        return text.lower()

    return parse


def pins_problem(server_urls: Iterable[str]) -> str:
    """Return what is wrong with addresses of servers whose certificates are to be compared with pins; else nothing."""
    if all(url.startswith("https:") for url in server_urls):
        return ""
    return _("BILI_SERVER_PIN is the pin of a certificate: every address in BILI_SERVER_URL must be https://")


def _contradictions(found: Mapping[str, object]) -> list[str]:
    """Return what is wrong with settings that are good one by one."""
    if found.get("audio") == "none" and found.get("streams") == "audio":
        return [_("BILI_STREAMS=audio wants sound, BILI_AUDIO=none wants none")]
    server_urls = found.get("server_urls")  # where none is set, the one that was joined may have a certificate
    if found.get("server_pins") and isinstance(server_urls, tuple) and (problem := pins_problem(server_urls)):
        return [problem]
    wishes = Settings(**{name: found[name] for name in ("quality", "min_quality") if name in found}).wishes  # type: ignore[arg-type]
    if wishes.min_qn > wishes.qn:
        return [_("BILI_MIN_QUALITY is above BILI_QUALITY: no video could be both")]
    return []


_SPEED = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+) ?([KMG]?)(?:I?B)?(?:/S)?", re.IGNORECASE)
_LEAST_SPEED = 16 * KIB
"""With less, connections would wait so long for their share that the other side takes them for dead."""


def parse_speed(value: object) -> float:
    """Return a speed in bytes per second; 0 (or an empty text) is no limit. Raise ValueError for anything else.

    A text may have a unit, K, M or G (powers of 1024), and B or B/s behind it; a number is in bytes per second.
    """
    speed = value
    if isinstance(value, str):
        match = _SPEED.fullmatch(value.strip())
        speed = float(match[1]) * KIB ** " KMG".index(match[2].upper() or " ") if match else None
        if not value.strip():
            speed = 0
    if isinstance(speed, bool) or not isinstance(speed, int | float) or (speed and not _LEAST_SPEED <= speed <= KIB**4):
        raise ValueError(_("it must be a speed from 16K to 1024G, such as 2.5M, 800K or 10MB/s; 0 is no limit"))
    return float(speed)


_PARSERS: dict[str, Callable[[str, Path], object]] = {
    "redis_url": _redis_url,
    "server_urls": _urls,
    "token": _header,
    "worker": _worker,
    "web_url": _url,
    "api_url": _url,
    "passport_url": _url,
    "short_url": _url,
    "media_hosts": _names,
    "download_dir": _path,
    "data_dir": _path,
    "working_file": _path,
    "hosts": _names,
    "category": _category,
    "sessdata": _header,
    "cookies": _path,
    "lease_seconds": _number(1, 3600),
    "affinity_seconds": _number(0, 86400),
    "shards": _shards,
    "connections": _connections,
    "max_bytes_per_second": lambda text, root: parse_speed(text),
    "scratch": _path,
    "api_interval_seconds": _number(0, 60),
    "quality": _quality,
    "codecs": _codecs,
    "audio": _audio,
    "streams": _one_of("both", "video", "audio"),
    "container": _one_of("auto", "mp4", "mkv"),
    "min_quality": _least_quality,
    "extras": _extras,
    "output": lambda text, root: parse_output(text),
    "notify": _addresses,
    "log_level": _one_of("debug", "info", "warning", "error"),
    "log_file": _path,
    "trusted_proxies": _networks,
    "metrics_address": _listening_address,
    "rate_per_address": _number(0, 1000),
    "rate_per_account": _number(0, 1000),
    "egress": _line_name,
    "deliver_to": lambda text, root: parse_place(text),
    "deliver_keep": _one_of("yes", "no"),
    "success_limit": lambda text, root: _whole(text, 10**9),
    "server_pins": lambda text, root: tuple(dict.fromkeys(map(read_pin, text.split(",")))),
}


def tls_context(environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """Return the context for all TLS connections; the CA file that is meant for requests or curl counts as well."""
    context = ssl.create_default_context()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = environ.get(name, "")
        if not path:
            continue
        try:
            is_folder = Path(path).is_dir()
            context.load_verify_locations(cafile=None if is_folder else path, capath=path if is_folder else None)
        except OSError as error:
            raise UsageError(
                _("{name}: the certificates in {path} cannot be read: {problem}").format(
                    name=name, path=path, problem=error.strerror or _("no certificate is in it")
                )
            ) from None
        break
    return context


# ------------------------------------------------------------------------------------------ working.json

WORKING_SAMPLE = '{"stop": 1, "count": 1}'

_STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])')


def parse_working(text: str) -> Working:
    """Return what working.json says; raise ValueError with line and column, or naming the key that is wrong.

    A trailing comma is accepted, because the reference's own sample has one; it is blanked, not cut out, so
    that the positions in an error stay true. Unknown keys are left to later versions. ``max_speed`` is written as
    BILI_MAX_SPEED is, or as a number; missing or null, that setting holds; 0 is no limit, whatever was set.
    """
    try:
        content = json.loads(tolerant(text))
    except json.JSONDecodeError as error:
        raise ValueError(
            _("line {line}, column {column}: {problem}").format(
                line=error.lineno, column=error.colno, problem=error.msg
            )
        ) from None
    except RecursionError:
        raise ValueError(_("line 1, column 1: nested too deep")) from None
    if not isinstance(content, dict):
        raise ValueError(_("line 1, column 1: an object such as {sample} is expected").format(sample=WORKING_SAMPLE))
    values: dict[str, object] = {}
    for key, check in WORKING_KEYS.items():
        if key in content:
            try:
                values[key] = check(content[key])
            except ValueError as error:
                raise ValueError(f"{_position(text, key)}{error}") from None
    if "max_speed" in values:
        values["max_bytes_per_second"] = values.pop("max_speed")
    return Working(**values)  # type: ignore[arg-type]


def tolerant(text: str) -> str:
    """Return a text of working.json without its mark of byte order, and with blanks for trailing commas."""
    return _STRING_OR_TRAILING_COMMA.sub(lambda m: " " if m[0] == "," else m[0], text.removeprefix("\ufeff"))


def _stop(value: object) -> int:
    if type(value) is not int or value not in (0, 1):
        raise ValueError(_('"stop" must be 1 (run) or 0 (stop)'))
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 64:
        raise ValueError(_('"count" must be a whole number from 1 to 64'))
    return value


def _max_speed(value: object) -> float | None:
    try:
        return None if value is None else parse_speed(value)
    except ValueError as error:
        raise ValueError(f'"max_speed": {error}') from None


def _drain(value: object) -> int:
    if type(value) is not int or value not in (0, 1):
        raise ValueError(_('"drain" must be 1 (finish what is held, lease nothing more) or 0'))
    return value


WORKING_KEYS: Mapping[str, Callable[[object], object]] = {
    "stop": _stop,
    "count": _count,
    "max_speed": _max_speed,
    "drain": _drain,
}
"""The keys of working.json, each with what checks its value: it raises a ValueError that names the key."""


def _position(text: str, key: str) -> str:
    before = text[: max(text.find(f'"{key}"'), 0)]
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return _("line {line}, column {column}: ").format(line=line, column=column)
