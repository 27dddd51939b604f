"""A finished file on this machine, as it is to arrive elsewhere: its size, and a digest of all its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from delivery.reins import Rein
from errors import TransientError
from i18n import _
from model import MIB


@dataclass(frozen=True, slots=True)
class Source:
    """A local file; ``digest`` is xxh3 of 128 bits. It guards against damage, not against malice."""

    path: Path
    size_bytes: int
    digest: str

    def pieces(self, start: int, piece_bytes: int) -> Iterator[bytes]:
        """Yield what follows from a place on."""
        return _read(self.path, start, piece_bytes)

    def part(self, start: int, size_bytes: int) -> bytes:
        """Return a part of the file, at most so many bytes."""
        return b"".join(_read(self.path, start, MIB, start + size_bytes))


def measure(path: Path, rein: Rein) -> Source:
    """Read a file through; return what it is."""
    digest, size_bytes = xxhash.xxh3_128(), 0
    for piece in _read(path, 0, MIB):
        rein.look()
        digest.update(piece)
        size_bytes += len(piece)
    return Source(path, size_bytes, digest.hexdigest())


def _read(path: Path, start: int, piece_bytes: int, stop: int | None = None) -> Iterator[bytes]:
    at = start
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while piece := file.read(piece_bytes if stop is None else min(piece_bytes, stop - at)):
                at += len(piece)
                yield piece
    except OSError as error:
        sentence = _("cannot read {path}: {problem}")
        raise TransientError(sentence.format(path=path, problem=error.strerror), "local-file") from error
