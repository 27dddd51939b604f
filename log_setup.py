"""Where log lines go, which of them, and what they look like: one event is one line, whatever is in it.

    2026-11-28T16:31:20.123+08:00 WARNING BV1xx411c7mD: failed, now delayed (…)

To stderr or, with a worker, above its bars; and to a file, if one is wished.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from logging.handlers import RotatingFileHandler
from pathlib import Path

from filelock import FileLock, Timeout

from config import Settings
from errors import UsageError
from i18n import _
from model import MIB
from plain_text import one_line

FILE_BYTES = 10 * MIB
FILES = 5
PROCESSES = 100
"""So many processes of one machine can log into files of one name."""

_TALKATIVE = ("aiohttp", "asyncio", "charset_normalizer", "filelock", "redis", "urllib3", "waitress", "werkzeug")
"""What these have to say below INFO is of interest to their authors."""

Paint = Callable[[str, str], str]
"""Takes the name of a level and a text."""


class LineFormatter(logging.Formatter):
    """Makes one line of an event, with a traceback too: its ends of lines are written as ``\\n``.

    For a person who looks on, colours may be put on it, and the time of day is enough.
    """

    def __init__(self, paint: Paint = lambda _name, text: text, with_date: bool = True) -> None:
        super().__init__()
        self._paint, self._with_date = paint, with_date

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level and text."""
        second, milliseconds = divmod(int(record.created * 1000), 1000)
        day, of_day, zone = _moment(second)
        time = f"{day}T{of_day}.{milliseconds:03d}{zone}" if self._with_date else of_day
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        level = record.levelname
        painted = self._paint(level if record.levelno > logging.INFO else "text", one_line(text))
        return f"{self._paint('time', time)} {self._paint(level, level)} {painted}"


@lru_cache(1)
def _moment(second: int) -> tuple[str, str, str]:
    """Return day, time of day and distance from UTC; kept, because a server logs thousands of lines in a second."""
    at = datetime.fromtimestamp(second).astimezone()
    return at.strftime("%Y-%m-%d"), at.strftime("%H:%M:%S"), at.isoformat()[19:]


class SayHandler(logging.Handler):
    """Hands lines to whoever writes them; the stderr of the moment, if nobody else does."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless a person has read it already."""
        if getattr(record, "said", False):
            return
        line = self.format(record)
        if self._say is not None:
            self._say(line)
            return
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # nobody reads it any more


class BoundedFile(RotatingFileHandler):
    """A log file that is renamed when it is full, FILES of them in all; it is this process's own."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=FILES - 1, encoding="utf-8", errors="backslashreplace")
        self._own = lock
        self._problem = ""

    def close(self) -> None:
        """Close the file, and leave its name to others."""
        super().close()
        self._own.release()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say once on stderr that nothing can be written: a full disk must not end the work."""
        problem = str(sys.exc_info()[1])
        if problem != self._problem:
            self._problem = problem
            line = _("BILI_LOG_FILE cannot be written: {problem}").format(problem=one_line(problem))
            SayHandler().emit(logging.LogRecord(__name__, logging.ERROR, "", 0, line, None, None))


def start_logging(settings: Settings, terminal: logging.Handler | None = None) -> None:
    """Let all log lines of this process go where the settings say; raise UsageError where the file cannot be had.

    Whoever has set up logging in this process before keeps it.
    """
    if logging.getLogger().handlers:
        return
    if terminal is None:
        terminal = SayHandler()
    if terminal.formatter is None:
        terminal.setFormatter(LineFormatter())
    handlers = [terminal]
    if settings.log_file is not None:
        handlers.append(_open_file(settings.log_file))
        handlers[-1].setFormatter(LineFormatter())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line shows them
    logging.basicConfig(level=settings.log_level.upper(), handlers=handlers)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))


def note(sentence: str) -> None:
    """Write into the log file, if there is one, what the script has said to a person itself."""
    logging.getLogger("log_setup").info("%s", sentence, extra={"said": True})


def _open_file(path: Path) -> BoundedFile:
    """Open the log file, or one beside it (``bili-2.log``) where another process has that: two would lose lines."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, PROCESSES + 1):
            own = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
            lock = FileLock(own.with_name(f".{own.name}.lock"), timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            return BoundedFile(own, lock)
    except OSError as error:
        sentence = _("BILI_LOG_FILE: {path} cannot be written ({problem}): name another file, or none")
        raise UsageError(sentence.format(path=path, problem=error.strerror or error)) from None
    raise UsageError(_("BILI_LOG_FILE: {path} and all names beside it are in use").format(path=path))
