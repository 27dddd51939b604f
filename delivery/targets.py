"""The places that files are delivered to, each behind the same few verbs; which one an address means.

What leads out is imported when it is needed: who delivers nothing needs none of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Protocol

from delivery.reins import Rein
from delivery.sources import Source
from errors import UsageError
from i18n import _
from places import FOLDER, S3, SFTP, Place

INSTALL = "pip install -r requirements-deliver.txt"


class Target(Protocol):
    """One connection to a place; for one thread at a time, except ``interrupt``.

    All raise JobError as errors.py says: a CircumstanceError where the place is away, full or not to be written.
    """

    def find(self, relative: PurePosixPath) -> int | None:
        """Return the size of what stands under a name; None where nothing does."""

    def holds(self, relative: PurePosixPath, source: Source, rein: Rein) -> bool:
        """Tell whether these very bytes stand under a name."""

    def put(self, relative: PurePosixPath, source: Source, rein: Rein) -> None:
        """Bring a file there, from where an earlier try ended; it gets its name when all of it is there, and proved.

        Raise FileExistsError where the name is taken; what has it is left as it is.
        """

    def interrupt(self) -> None:
        """Let a call that is under way end soon; the connection is not used again."""

    def close(self) -> None:
        """Let go of the connection."""


def opener(place: Place) -> Callable[[], Target]:
    """Return what opens a connection to a place; raise UsageError where a package for that is missing."""
    name = next((name for name, schemes in _MODULES.items() if place.scheme in schemes), "delivery.other")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        sentence = _("BILI_DELIVER_TO: {scheme}:// needs a package that is not installed ({problem}): {command}")
        raise UsageError(sentence.format(scheme=place.scheme, problem=error, command=INSTALL)) from None
    opened: Callable[[], Target] = module.opener(place)
    return opened


_MODULES = {"delivery.folder": FOLDER, "delivery.sftp": SFTP, "delivery.s3": S3}
