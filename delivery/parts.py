"""Files that grow under a hidden name and get their own when they are proved: for all places that are like a disk.

The hidden name is made of the name and the digest of what is to come into it. So whoever brings the same file goes on
where another try ended, and two who do it at once write the same bytes at the same places.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import Protocol

import xxhash

from delivery.reins import Rein
from delivery.sources import Source
from delivery.troubles import troubles
from errors import CircumstanceError
from i18n import _
from places import Place

log = logging.getLogger(__name__)


class Grown(Protocol):
    """A file that is being written."""

    def write(self, data: bytes, /) -> object:
        """Append."""


class Store(Protocol):
    """What is like a disk. All raise OSError, or what ``troubles`` knows."""

    can_append: bool

    def size(self, relative: PurePosixPath) -> int | None:
        """Return the size of a file, None where there is none."""

    def make_folders(self, relative: PurePosixPath) -> None:
        """Make the folders above a file, below the place itself, which must be there."""

    def append(self, relative: PurePosixPath, start: int) -> AbstractContextManager[Grown]:
        """Open a file to write from a place on; at its end all is on disk, as far as the peer can tell."""

    def read(self, relative: PurePosixPath, piece_bytes: int) -> Iterator[bytes]:
        """Yield a file's bytes, from the disk rather than from memory."""

    def rename(self, source: PurePosixPath, target: PurePosixPath) -> None:
        """Give a file its name; raise FileExistsError where the name is taken."""

    def remove(self, relative: PurePosixPath) -> None:
        """Delete a file."""

    def interrupt(self) -> None:
        """Cut off what is under way."""

    def close(self) -> None:
        """Let go."""


def part_name(relative: PurePosixPath, source: Source) -> PurePosixPath:
    """Return the hidden name under which a file grows, in its own folder."""
    return relative.with_name(f".{xxhash.xxh3_128_hexdigest(f'{relative.name} {source.digest}'.encode())}.part")


class DiskTarget:
    """A place that is like a disk."""

    def __init__(self, place: Place, store: Store) -> None:
        self._place, self._store = place, store

    def find(self, relative: PurePosixPath) -> int | None:
        """Return the size of what stands under a name."""
        with troubles(self._place):
            return self._store.size(relative)

    def holds(self, relative: PurePosixPath, source: Source, rein: Rein) -> bool:
        """Read it back, where the size is the same."""
        with troubles(self._place):
            return self._store.size(relative) == source.size_bytes and self._digest(relative, rein) == source.digest

    def put(self, relative: PurePosixPath, source: Source, rein: Rein) -> None:
        """Append what is missing, read all of it back, and rename it. What comes back wrong is sent once more."""
        part = part_name(relative, source)
        with troubles(self._place):
            self._store.make_folders(relative)
            if self._store.size(relative) is not None:
                raise FileExistsError(str(relative))
            try:
                is_proved = self._send_and_prove(part, source, rein) or self._send_and_prove(part, source, rein)
                if is_proved:
                    self._store.rename(part, relative)
                    return
            except FileExistsError:
                self._store.remove(part)
                raise
            except FileNotFoundError:  # perhaps another one has just given it its name
                if self._store.size(relative) is None:
                    raise
                raise FileExistsError(str(relative)) from None
        sentence = _("{place} does not give back what was written there: its disk may be failing")
        raise CircumstanceError(sentence.format(place=self._place), "target-bytes")

    def _send_and_prove(self, part: PurePosixPath, source: Source, rein: Rein) -> bool:
        self._send(part, source, rein)
        if self._store.size(part) == source.size_bytes and self._digest(part, rein) == source.digest:
            return True
        log.warning(_("%s does not hold what was written there: %s"), self._place, part)
        self._store.remove(part)
        return False

    def interrupt(self) -> None:
        """Cut off what is under way."""
        self._store.interrupt()

    def close(self) -> None:
        """Let go."""
        self._store.close()

    def _send(self, part: PurePosixPath, source: Source, rein: Rein) -> None:
        start = (self._store.size(part) or 0) if self._store.can_append else 0
        if start > source.size_bytes:
            self._store.remove(part)
            start = 0
        rein.reached(start)
        if start == source.size_bytes and start:
            return
        done = start
        with self._store.append(part, start) as file:
            for piece in source.pieces(start, rein.piece_bytes):
                rein.spend(len(piece))
                file.write(piece)
                done += len(piece)
                rein.reached(done)

    def _digest(self, relative: PurePosixPath, rein: Rein) -> str:
        digest = xxhash.xxh3_128()
        for piece in self._store.read(relative, rein.piece_bytes):
            rein.received(len(piece))
            digest.update(piece)
        return digest.hexdigest()
