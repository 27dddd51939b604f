"""working.json as a worker reads it, again and again while it runs; ``config.parse_working`` says what is in it.

It is the one truth of how a worker is steered: what the server orders is written into it, and read like an edit.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config import WORKING_SAMPLE, parse_working
from i18n import _
from model import Working
from orders import with_keys, working_fields

log = logging.getLogger(__name__)

SETTLED_SECONDS = 2.0
"""A file that was changed so lately may change again without looking different: clocks of file systems are coarse."""


class WorkingFile:
    """working.json as it was last good. A problem is said once, not at each look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problem = ""
        self._seen: tuple[int, int, int] | None = None
        self.now = Working()

    @property
    def name(self) -> str:
        """The file's name, for people."""
        return self._path.name

    def create_if_missing(self) -> None:
        """Write the file with its defaults where there is none, and say so."""
        if self._path.exists():
            return
        try:
            self._path.write_text(WORKING_SAMPLE + "\n", "utf-8")
            log.info(_("%s was missing: written with %s"), self._path, WORKING_SAMPLE)
        except OSError as error:
            log.warning(_("%s is missing and cannot be written: %s"), self._path, error.strerror)

    def read(self) -> Working:
        """Look at the file; return what it says, or the last good values where it says nothing sound."""
        problem = ""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return self.now
            self._seen = seen if time.time() - status.st_mtime > SETTLED_SECONDS else None
            self.now = parse_working(self._path.read_text("utf-8", errors="replace"))
        except OSError as error:
            self._seen = None
            problem = str(error.strerror)
        except ValueError as error:
            problem = str(error)
        if problem and problem != self._problem:
            log.warning(
                _('%s: %s. The last good values stay: "stop": %d, "count": %d'),
                *(self._path.name, problem, self.now.stop, self.now.count),
            )
        self._problem = problem
        return self.now

    def write(self, keys: Mapping[str, Any]) -> None:
        """Set keys, in one step; other keys stay, and a hand's layout. Raise OSError where the file cannot be written.

        An edit in the same moment and this: the later one wins. Where what stands there is damaged, the last good
        values are written beside the keys, and a warning says so.
        """
        path = self._path.resolve()  # a link stays one
        try:
            before, mode = path.read_bytes().decode("utf-8", "surrogateescape"), stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            before, mode = "", 0o644
        text = self._with_keys(before, keys)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
            temporary.chmod(mode)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._seen = None

    def _with_keys(self, before: str, keys: Mapping[str, Any]) -> str:
        good = {name: value for name, value in working_fields(self.now).items() if value is not None}
        problem = ""
        for wanted in (keys, {**good, **keys}):
            try:
                text = with_keys(before, wanted)
                parse_working(text)
            except (ValueError, RecursionError) as error:
                problem = problem or str(error)
            else:
                break
        else:
            text = json.dumps({**good, **keys}) + "\n"
        if problem:
            log.warning(_("%s was damaged (%s): written anew, with the last good values"), self._path.name, problem)
        return text
