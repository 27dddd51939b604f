"""A folder as the place: another disk, or a mounted share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.request import url2pathname

from delivery.parts import DiskTarget
from i18n import _
from places import Place


def opener(place: Place) -> Callable[[], DiskTarget]:
    """Return what opens a folder."""
    return lambda: DiskTarget(place, Folder(folder_of(place)))


def folder_of(place: Place) -> Path:
    """Return the folder that an address names."""
    return Path(url2pathname(place.path) if os.name == "nt" else place.path)


class Folder:
    """The files below a folder, which must be there: a share that is not mounted must not be made a folder of."""

    can_append = True

    def __init__(self, base: Path) -> None:
        self._base = base

    def size(self, relative: PurePosixPath) -> int | None:
        """Return the size of a file; a link that leads nowhere has its name all the same."""
        path = self._at(relative)
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return -1 if path.is_symlink() else None

    def make_folders(self, relative: PurePosixPath) -> None:
        """Make the folders above a file."""
        if not self._base.is_dir():
            raise FileNotFoundError(errno.ENOENT, _("the folder is not there; is it mounted?"), str(self._base))
        self._at(relative).parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def append(self, relative: PurePosixPath, start: int) -> Iterator[BinaryIO]:
        """Open a file to write from a place on."""
        with self._at(relative).open("r+b" if start else "wb", buffering=0) as file:
            file.seek(start)
            yield file
            os.fsync(file.fileno())

    def read(self, relative: PurePosixPath, piece_bytes: int) -> Iterator[bytes]:
        """Yield a file's bytes; what was just written is not taken from the memory that it was written from."""
        with self._at(relative).open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                with suppress(OSError):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := file.read(piece_bytes):
                yield piece

    def rename(self, source: PurePosixPath, target: PurePosixPath) -> None:
        """Link a file to its name, or rename it where there are no links."""
        hidden, path = self._at(source), self._at(target)
        if os.name == "nt":
            hidden.rename(path)  # refuses by itself
            return
        try:
            os.link(hidden, path)
        except FileExistsError:
            raise
        except OSError:  # FAT, some network disks; what else is wrong, the rename meets again
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            hidden.rename(path)
        else:
            hidden.unlink(missing_ok=True)
        self._sync(path.parent)

    def remove(self, relative: PurePosixPath) -> None:
        """Delete a file."""
        self._at(relative).unlink(missing_ok=True)

    def interrupt(self) -> None:
        """Nothing here waits for long: the next piece sees that the upload is over."""

    def close(self) -> None:
        """Nothing is held."""

    def _at(self, relative: PurePosixPath) -> Path:
        return self._base / relative

    def _sync(self, folder: Path) -> None:
        if os.name == "nt":
            return
        with suppress(OSError):  # some network file systems refuse; the file itself is on disk
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
