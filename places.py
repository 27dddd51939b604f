"""Where files are delivered to, as an address: pure functions, nothing is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from i18n import _

FOLDER, SFTP, S3 = ("file", "local"), ("sftp", "ssh"), ("s3", "s3a")

_ENCODED = '%#?"<>\\^`{|} '
"""What would end a path in an address, or break it where a person copies it; all other letters stay readable."""


@dataclass(frozen=True, slots=True)
class Place:
    """An address in its parts. The secrets among them have no repr; ``path`` is decoded, without a ``/`` at its end."""

    scheme: str
    host: str = ""
    port: int | None = None
    path: str = ""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    text: str = field(default="", repr=False)
    """As it was set."""

    def __str__(self) -> str:
        return self.url()

    def url(self, relative: PurePosixPath | None = None) -> str:
        """Return the address of the place, or of a file below it, without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        path = self.path if relative is None else f"{self.path}/{relative}"
        return f"{self.scheme}://{host}{port}{encoded(path)}"

    def below(self, url: str) -> PurePosixPath | None:
        """Return where the file of an address lies below this place; None for one that does not."""
        start = f"{self.url()}/"
        return PurePosixPath(unquote(url[len(start) :])) if url.startswith(start) and url != start else None

    def without_secrets(self, text: str) -> str:
        """Return a text, for instance what a package says of an error, without the password."""
        for secret in (self.password, quote(self.password, safe="")):
            text = text.replace(secret, "***") if secret else text
        return text


def encoded(path: str) -> str:
    """Return a path as it stands in an address that people read."""
    return "".join(quote(letter) if letter in _ENCODED or not letter.isprintable() else letter for letter in path)


def parse_place(text: str) -> Place:
    """Return the place that an address names; raise ValueError where it names none. No sentence has the address."""
    parts = urlsplit(text)
    scheme = parts.scheme.lower()
    if "://" not in text or not scheme:
        raise ValueError(
            _("it must be an address, such as file:///mnt/nas/videos, sftp://user@host/videos, s3://bucket")
        )
    if (parts.query or parts.fragment) and scheme in (*FOLDER, *SFTP, *S3):
        raise ValueError(_("? and # in a path are written %3F and %23"))
    path = unquote(parts.path).rstrip("/")
    if any(name in (".", "..") for name in path.split("/")) or not path.isprintable():
        raise ValueError(_("its path must be plain: no . and no .. in it"))
    place = Place(
        scheme,
        parts.hostname or "",
        parts.port,
        path,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        text,
    )
    if scheme in FOLDER and (place.host not in ("", "localhost") or not path):
        raise ValueError(_("a folder is written with three strokes, as in file:///mnt/nas/videos"))
    if scheme in (*SFTP, *S3) and not place.host:
        raise ValueError(_("it names no host, or no bucket"))
    if scheme in S3 and (place.user or place.password):
        raise ValueError(_("keys do not belong into the address: see docs/deliver.md for where they are looked for"))
    return place
