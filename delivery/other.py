"""What else fsspec knows as the place: FTP, SMB, WebDAV, Google's and Microsoft's stores …

Each file goes up whole, under a hidden name, is read back, and is renamed; where one breaks off it begins anew, because
not all of these can append. Packages and passwords are as fsspec wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from delivery.parts import DiskTarget, Grown
from errors import UsageError
from i18n import _
from places import Place


def opener(place: Place) -> Callable[[], DiskTarget]:
    """Return what opens a place; raise UsageError for one that fsspec does not know, or has no package for."""
    try:
        fsspec.get_filesystem_class(place.scheme)
    except ImportError as error:  # its sentence names the package
        sentence = _("BILI_DELIVER_TO: {scheme}:// needs a package that is not installed ({problem}): {command}")
        raise UsageError(sentence.format(scheme=place.scheme, problem=error, command="pip install …")) from None
    except ValueError:
        sentence = _("BILI_DELIVER_TO: {scheme}:// is no kind of place that is known; docs/deliver.md lists them")
        raise UsageError(sentence.format(scheme=place.scheme)) from None
    return lambda: DiskTarget(place, FileSystem(place))


class FileSystem:
    """The files below a path of a file system of fsspec."""

    can_append = False

    def __init__(self, place: Place) -> None:
        found: tuple[Any, str] = url_to_fs(place.text)
        self._fs, base = found
        self._base = base.rstrip("/")

    def size(self, relative: PurePosixPath) -> int | None:
        """Return the size of a file."""
        self._fs.invalidate_cache()
        try:
            return int(self._fs.info(self._at(relative)).get("size") or 0)
        except FileNotFoundError:
            return None

    def make_folders(self, relative: PurePosixPath) -> None:
        """Make the folders above a file."""
        self._fs.makedirs(self._at(relative.parent), exist_ok=True)

    @contextmanager
    def append(self, relative: PurePosixPath, start: int) -> Iterator[Grown]:
        """Open a new file; ``start`` is 0 here."""
        with self._fs.open(self._at(relative), "wb") as file:
            yield file

    def read(self, relative: PurePosixPath, piece_bytes: int) -> Iterator[bytes]:
        """Yield a file's bytes."""
        with self._fs.open(self._at(relative), "rb") as file:
            while piece := file.read(piece_bytes):
                yield piece

    def rename(self, source: PurePosixPath, target: PurePosixPath) -> None:
        """Give a file its name. Only a look before says that it is free: few of these can refuse."""
        if self.size(target) is not None:
            raise FileExistsError(str(target))
        self._fs.mv(self._at(source), self._at(target))

    def remove(self, relative: PurePosixPath) -> None:
        """Delete a file."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._at(relative))

    def interrupt(self) -> None:
        """Nothing to cut that all of them have."""

    def close(self) -> None:
        """fsspec keeps its connections for the next one."""

    def _at(self, relative: PurePosixPath) -> str:
        return f"{self._base}/{relative}"
