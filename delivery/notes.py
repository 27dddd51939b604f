"""What a worker must still know of a delivery after it was killed: a small file for each page, in the data folder.

It is written before the first byte is sent and deleted when the page is recorded, and the local copy gone where it is
not kept. Without it the file on disk says by itself which page it is; with it, a page that is delivered, and not here
any more, need not be downloaded again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from i18n import _
from model import Result

log = logging.getLogger(__name__)

OLD_SECONDS = 30 * 86400.0
"""Another machine has finished such a page since, or nobody will."""


@dataclass(frozen=True, slots=True)
class Note:
    """A page on its way: its job, what is to be recorded of it, and what lies beside it that is its own."""

    url: str
    cid: int
    result: Result
    beside: tuple[str, ...] = ()


class Notes:
    """The notes of all workers of a data folder. One that cannot be written is said once, and nothing depends on it."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "deliveries"
        self._is_broken = False

    def write(self, note: Note) -> None:
        """Write a note, in place of an earlier one of that page, in one step."""
        path = self._path(note.cid)
        temporary = path.with_suffix(f".{os.getpid()}.new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8", errors="replace") as file:
                file.write(json.dumps(asdict(note), ensure_ascii=False))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            if not self._is_broken:
                log.warning(_("%s cannot be used: %s"), self._folder, error.strerror)
            self._is_broken = True

    def read(self, cid: int) -> Note | None:
        """Return the note of a page; None where there is none that can be read."""
        try:
            return _note(self._path(cid).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def delete(self, cid: int) -> None:
        """Delete the note of a page."""
        with suppress(OSError):
            self._path(cid).unlink(missing_ok=True)

    def all(self) -> Iterator[Note]:
        """Yield all notes; those that nobody touched for long are deleted."""
        with suppress(OSError):
            for path in sorted(self._folder.glob("*.json")):
                with suppress(OSError, ValueError):
                    if time.time() - path.stat().st_mtime > OLD_SECONDS:
                        path.unlink()
                    else:
                        yield _note(path.read_text("utf-8"))

    def _path(self, cid: int) -> Path:
        return self._folder / f"{cid}.json"


def _note(text: str) -> Note:
    """Return the note in a text; raise ValueError where there is none."""
    try:
        fields: Any = json.loads(text)
        result = Result(**fields["result"])
        texts = (fields["url"], result.path, result.title, result.streams, result.stored, *fields["beside"])
        numbers = type(fields["cid"]) is int and type(result.bytes) is int and type(result.seconds) in (int, float)
        if not (numbers and all(isinstance(one, str) for one in texts)):
            raise ValueError("not the types of a note")
        return Note(fields["url"], fields["cid"], result, tuple(fields["beside"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a note") from error
