"""The head of an HTTP request, read in one way only; what could be read in two is refused. Pure.

The grammar is that of RFC 9112 without what it allows for old clients' sake: no folded lines, no bare line feeds, no
space before a colon. A body is framed by one Content-Length or by nothing; other framings are refused, because a proxy
that read them otherwise could be made to smuggle requests past itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from i18n import _

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 100

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) (?:http://([^/?#@\s]+))?(/[\x21-\x7e\x80-\xff]*) HTTP/1\.([01])")
_NAME = re.compile(_TOKEN)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile("[0-9]{1,18}")
_ONCE = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_HOST", "HTTP_AUTHORIZATION", "HTTP_EXPECT"})
_OF_CGI = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE"})


class HeadRefused(ValueError):
    """A head that is not read; ``status`` is what its sender is told beside the sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """What a request is, before its body."""

    environ: dict[str, str]
    """As WSGI has it: the method, the address, and each field of the head."""
    body_bytes: int
    is_last: bool
    """No other request comes over this connection."""
    awaits_continue: bool


def read_head(text: bytes) -> Head:
    """Return the head that stands before the empty line; raise HeadRefused, with a status, for all that is no such."""
    first, *lines = text.decode("latin-1").split("\r\n")
    if len(lines) > MAX_FIELDS:
        raise HeadRefused(431, _("the head has more than {count} fields").format(count=MAX_FIELDS))
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise HeadRefused(400, _("the first line is no request of HTTP/1.0 or 1.1"))
    method, authority, target, minor = line.groups()
    environ = _fields(lines)
    if authority is not None:
        environ["HTTP_HOST"] = authority
    path, _mark, query = target.partition("?")
    environ["REQUEST_METHOD"] = method
    environ["PATH_INFO"] = unquote_to_bytes(path.encode("latin-1")).decode("latin-1") if "%" in path else path
    environ["QUERY_STRING"] = query
    environ["SERVER_PROTOCOL"] = f"HTTP/1.{minor}"
    connection = environ.get("HTTP_CONNECTION", "").lower()
    return Head(
        environ,
        _body_bytes(environ),
        minor == "0" or "close" in connection,
        minor == "1" and environ.get("HTTP_EXPECT", "").lower() == "100-continue",
    )


def _fields(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        field, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(field) or _CONTROL.search(value):
            raise HeadRefused(400, _("a line of the head is no field"))
        if "_" in field:
            continue  # it would come out as another field: the one that has a hyphen there
        name = field.upper().replace("-", "_")
        name = name if name in _OF_CGI else f"HTTP_{name}"
        value = value.strip(" \t")
        if name not in found:
            found[name] = value
        elif name in _ONCE:
            raise HeadRefused(400, _("{name} is there twice").format(name=field))
        else:
            found[name] += ("; " if name == "HTTP_COOKIE" else ",") + value
    return found


def _body_bytes(environ: dict[str, str]) -> int:
    if "HTTP_TRANSFER_ENCODING" in environ:
        raise HeadRefused(411, _("send the body with a Content-Length"))
    length = environ.get("CONTENT_LENGTH")
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise HeadRefused(400, _("Content-Length is no number"))
    return int(length)
