"""working.json as a worker reads it, again and again while it runs; ``config.parse_working`` says what is in it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from config import WORKING_SAMPLE, parse_working
from i18n import _
from model import Working

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
