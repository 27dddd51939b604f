"""Small files that appear whole or not at all, beside a video; and what dead workers left of such."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path, PurePosixPath

from create_folder import companion_path

LEFTOVER_SECONDS = 24 * 3600.0

_IMAGES = ("jpg", "png", "webp", "gif", "avif")
_ENDINGS = re.compile(
    r"(\.danmaku\.(ass|xml)|\.nfo|\.info\.json|-(poster|thumb)\.({images})|\.[0-9A-Za-z-]{{1,20}}(\.ai)?\.srt)$".format(
        images="|".join(_IMAGES)
    )
)
SHARED = frozenset({"tvshow.nfo", "video.info.json", *(f"poster.{kind}" for kind in _IMAGES)})
"""What the pages of a show have in common."""

_TEMPORARY = ".extra-{}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that has its name only when it is complete and on disk; one that stands there is replaced."""
    temporary = path.with_name(_TEMPORARY.format(secrets.token_hex(8)))
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def hidden_path(folder: Path, ending: str) -> Path:
    """Return a name for a file that only ffmpeg is to read; whoever asked for it deletes it."""
    return folder / _TEMPORARY.format(f"{secrets.token_hex(8)}{ending}")


def ending(relative: PurePosixPath, name: str) -> str:
    """Return how the name of a file that lies beside a page's ends, an empty text where it does not belong to it."""
    found = _ENDINGS.search(name)
    return found[0] if found and companion_path(relative, found[0]).name == name else ""


def remove_old_leftovers(folder: Path) -> None:
    """Delete temporary files that nobody touched for a day: a worker that was killed left them."""
    with contextlib.suppress(OSError):
        for path in folder.glob(_TEMPORARY.format("*")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()


def image_kind(data: bytes) -> str:
    """Return the ending that an image's first bytes ask for, an empty text where they are no image's."""
    for start, kind in ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif")):
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "avif" if data[4:12] in (b"ftypavif", b"ftypavis") else ""
