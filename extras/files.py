"""Small files that appear whole or not at all, beside a video; and what dead workers left of such."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

LEFTOVER_SECONDS = 24 * 3600.0

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
