"""REDIS_URL, taken apart: which engine is meant, where it is, and how it is spoken to. Nothing is connected here.

Whatever is wrong is one sentence that says what to do, and never repeats the address: it may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

from i18n import _

Kind = Literal["single", "socket", "sentinel", "cluster"]

EXAMPLES = (
    "redis://user:password@host:6379/0",
    "redis+sentinel://user:password@host:26379,host:26379,host:26379/SERVICE/0",
    "redis+cluster://user:password@host:6379,host:6379",
    "unix:///path/to/socket",
)
MOST_REPLICAS = 9

_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        **{"redis": "single", "rediss": "single", "unix": "socket"},
        **{"redis+sentinel": "sentinel", "rediss+sentinel": "sentinel"},
        **{"redis+cluster": "cluster", "rediss+cluster": "cluster"},
    }
)
_PORTS = {"single": 6379, "sentinel": 26379, "cluster": 6379}


class Address(NamedTuple):
    """Where one server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class EngineUrl:
    """What REDIS_URL says. ``servers`` are the sentinels of a ``sentinel``, some nodes of a ``cluster``."""

    kind: Kind
    servers: tuple[Address, ...] = ()
    path: str = ""
    """Of a socket."""
    service: str = ""
    """What the sentinels call the primary."""
    database: int = 0
    is_tls: bool = False
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_username: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the driver is told besides: certificates, time limits."""
    wait_replicas: int = 0
    """So many replicas must have a change before it counts as made."""
    wait_fsync: bool = False
    """It must be on the disk of the primary as well."""

    @property
    def place(self) -> str:
        """Where the data are, without a password."""
        if self.kind == "socket":
            return self.path
        servers = ",".join(map(str, self.servers))
        return f"{self.service} ({servers})" if self.kind == "sentinel" else servers

    @property
    def is_open(self) -> bool:
        """Tell whether no password guards what other machines may reach."""
        return self.kind != "socket" and not self.password and not all(_is_loopback(one.host) for one in self.servers)


def read_url(text: str) -> EngineUrl:
    """Return what a REDIS_URL says; raise ValueError with a sentence for one that cannot be meant."""
    scheme, mark, rest = text.partition("://")
    scheme = re.sub("^valkey", "redis", scheme.lower())
    kind = _KINDS.get(scheme)
    if not mark or kind is None:
        raise ValueError(_("it must look like one of: {examples}").format(examples=" ".join(EXAMPLES)))
    if "#" in rest:
        raise ValueError(_("a # in a user name or password is written %23"))
    rest, _mark, query = rest.partition("?")
    options = _read_options(query)
    place, _slash, path = rest.partition("/")
    credentials, at, hosts = place.rpartition("@")
    username, _colon, password = credentials.partition(":") if at else ("", "", "")
    common: dict[str, Any] = {
        "username": unquote(username) or options.pop("username", ""),
        "password": unquote(password) or options.pop("password", ""),
        "is_tls": scheme.startswith("rediss"),
        **{name: options.pop(name) for name in _OUR_OPTIONS if name in options},
    }
    if common["username"] and not common["password"]:
        raise ValueError(_("the user has no password: write user:password@, or :password@ for the default user"))
    _check_combination(kind, common, options)
    if kind == "socket":
        if hosts:
            raise ValueError(_("a socket has a whole path: unix:///path/to/socket"))
        return EngineUrl(kind, path="/" + unquote(path), database=options.pop("db", 0), options=options, **common)
    servers = tuple(_read_server(one, _PORTS[kind]) for one in hosts.split(","))
    service, database = _read_path(kind, path)
    if kind == "single" and len(servers) > 1:
        raise ValueError(_("several hosts belong to redis+sentinel:// or redis+cluster://"))
    database = options.pop("db", database)
    if kind == "cluster" and database:
        raise ValueError(_("a cluster has database 0 only: leave the number out"))
    return EngineUrl(kind, servers, service=service, database=database, options=options, **common)


def _check_combination(kind: Kind, common: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    if not common["is_tls"] and (wrong := sorted(name for name in options if name.startswith("ssl_"))):
        raise ValueError(_("{option} belongs to an address with TLS, rediss://").format(option=wrong[0]))
    if kind != "sentinel" and (wrong := sorted(name for name in common if name.startswith("sentinel_"))):
        raise ValueError(_("{option} belongs to redis+sentinel://").format(option=wrong[0]))
    if common.get("sentinel_username") and not common.get("sentinel_password"):
        raise ValueError(_("{option} is missing").format(option="sentinel_password"))


def _read_server(text: str, port: int) -> Address:
    found = re.fullmatch(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[^\[\]:/@\s]+))(?::(?P<port>[0-9]{1,5}))?", text)
    if not found or not 0 < int(found["port"] or port) < 65536:
        raise ValueError(
            _(
                "a host is expected, with a port from 1 to 65535 behind a colon where that is not the usual one;"
                " in a user name or password, write : / ? # @ % as %3A %2F %3F %23 %40 %25"
            )
        )
    return Address(found["six"] or unquote(found["name"]), int(found["port"] or port))


def _read_path(kind: Kind, path: str) -> tuple[str, int]:
    """Return the name of the service, and the number of the database."""
    parts = [unquote(part) for part in path.split("/") if part]
    service = parts.pop(0) if kind == "sentinel" and parts else ""
    if kind == "sentinel" and not service:
        raise ValueError(
            _("the name of the service is missing, as the sentinels have it: {example}").format(example=EXAMPLES[1])
        )
    database = parts.pop(0) if parts else "0"
    if parts or not re.fullmatch("[0-9]{1,5}", database):
        raise ValueError(_("behind the host, the number of a database is expected, such as /0"))
    return service, int(database)


# ------------------------------------------------------------------------------------------ options


def _text(text: str) -> str:
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text) or not float(text):
        raise ValueError(_("a number of seconds is expected"))
    return float(text)


def _whole(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,5}", text) or int(text) > most:
            raise ValueError(_("a whole number from 0 to {most} is expected").format(most=most))
        return int(text)

    return read


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError(_("yes or no is expected"))
    return words[text.lower()]


def _required(text: str) -> str:
    if text.lower() != "required":
        raise ValueError(_("certificates are always verified: name their authority with ssl_ca_certs"))
    return "required"


_OUR_OPTIONS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "sentinel_username": _text,
        "sentinel_password": _text,
        "wait_replicas": _whole(MOST_REPLICAS),
        "wait_fsync": _flag,
    }
)
_OPTIONS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        **_OUR_OPTIONS,
        **{"username": _text, "password": _text, "db": _whole(99999), "client_name": _text},
        **{"socket_timeout": _seconds, "socket_connect_timeout": _seconds, "max_connections": _whole(65535)},
        **{"ssl_ca_certs": _text, "ssl_ca_path": _text, "ssl_certfile": _text, "ssl_keyfile": _text},
        **{"ssl_password": _text, "ssl_check_hostname": _flag, "ssl_cert_reqs": _required},
    }
)


def _read_options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            # What is no name of an option may be the end of a password.
            raise ValueError(_("behind the ? only these are known: {names}").format(names=", ".join(_OPTIONS)))
        try:
            options[name] = _OPTIONS[name](text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return options


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
