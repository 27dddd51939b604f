"""Lines at the bottom of a terminal that change, below a log that scrolls on above them.

What is there already is not written again: a picture is compared with the one before, line by line, and written in one
piece. Nothing has to be put back when the process dies, however it dies: there is no other screen, the cursor is not
hidden, and lines are not wrapped only while a picture is on its way.

A terminal may stand still (Ctrl-S, text being marked, a network that hangs). So all is written by a thread of its own,
and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from i18n import _
from plain_text import one_line

FRAME_SECONDS, IDLE_SECONDS = 0.25, 0.5
"""Between two pictures, and between two looks where nothing has changed: a worker without work costs nearly nothing."""
BURST_SECONDS = 0.05
"""Between two pictures, however many lines are said: many of them come with one."""
WAITING_LINES = 10_000
"""So many lines wait for a terminal that stands still; of more, the oldest are lost."""
STOP_SECONDS = 1.0

_BEGIN, _END = "\x1b[?2026h\x1b[?7l", "\x1b[?7h\x1b[?2026l"
"""Show it when it is complete, where the terminal can do that; cut what is too wide, do not wrap it."""


class Line(NamedTuple):
    """A line of a picture: what to write, and how many cells it covers."""

    text: str
    cells: int


class Picture(NamedTuple):
    """What stands on the terminal, and how wide that was then. The cursor is behind the last line."""

    lines: tuple[Line, ...] = ()
    columns: int = 80


def change(before: Picture, after: Picture, said: Sequence[str], rows: int, reflows: bool) -> str:
    """Return what turns a picture into the next one, with what is said meanwhile above it.

    A terminal that ``reflows`` has wrapped lines that it became too narrow for.
    """
    if not said and before.lines == after.lines and (before.columns == after.columns or not after.lines):
        return ""
    if not said and before.columns == after.columns and before.lines and after.lines:
        return _changed_lines(before.lines, after.lines)
    top = _begin_again(before, after.columns, rows, reflows)
    log = "".join(f"{line}\r\n" for line in said)
    if not after.lines:
        return top + log
    drawn = "\r\n".join(f"{line.text}\x1b[K" for line in after.lines)
    return f"{top}{log}{_BEGIN}{drawn}{_rest(after.lines)}{_END}"


def _begin_again(before: Picture, columns: int, rows: int, reflows: bool) -> str:
    """Return what clears a picture, line by line, up to its first one.

    Where all is cleared at once, some terminals take the whole screen into their history before.
    """
    height = len(before.lines)
    if reflows and columns < before.columns:
        height = sum(max(1, -(-line.cells // columns)) for line in before.lines)
    return "\r\x1b[2K" + "\x1b[A\x1b[2K" * (min(height, rows) - 1) if before.lines else ""


def _changed_lines(before: Sequence[Line], after: Sequence[Line]) -> str:
    found = [_BEGIN]
    row = len(before) - 1
    for number, line in enumerate(after):
        if number >= len(before):
            found.append(f"{_move(row, number - 1)}\r\n{line.text}\x1b[K")
        elif before[number] == line:
            continue
        else:
            found.append(f"{_move(row, number)}\r{line.text}\x1b[K")
        row = number
    if len(after) < len(before):
        found.append(f"{_move(row, len(after))}\r\x1b[J")
        row = len(after)
    last = max(len(after) - 1, 0)
    return f"{''.join(found)}{_move(row, last)}{_rest(after)}{_END}"


def _move(row: int, to: int) -> str:
    return "" if row == to else f"\x1b[{abs(to - row)}{'B' if to > row else 'A'}"


def _rest(lines: Sequence[Line]) -> str:
    return f"\x1b[{lines[-1].cells + 1}G" if lines else "\r"


def reflows(environ: Mapping[str, str]) -> bool:
    """Tell whether the terminal wraps anew what was written when it was wider, as nearly all do by now."""
    term = environ.get("TERM", "")
    is_old = term in ("linux", "vt100", "vt220") or term.startswith("st") or "XTERM_VERSION" in environ
    return not is_old and not (term.startswith("screen") and "TMUX" not in environ)


class LiveLines:
    """A terminal, or a file: lines are said to it, and while it is live a picture is kept below them."""

    def __init__(self, file: IO[str], reflows: bool = True) -> None:
        self._file, self._reflows = file, reflows
        self._encoding = getattr(file, "encoding", None) or "utf-8"
        self._said: deque[str] = deque()
        self._lost = 0
        self._lock = threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._drawn = Picture()
        self._wanted: tuple[Line, ...] = ()
        self._is_gone = False

    def can_show(self, text: str) -> bool:
        """Tell whether these characters can be written here."""
        try:
            return bool(text.encode(self._encoding))
        except UnicodeEncodeError:
            return False

    def size(self) -> tuple[int, int]:
        """Return columns and rows as they are now."""
        try:
            columns, rows = os.get_terminal_size(self._file.fileno())
        except (OSError, ValueError):
            columns, rows = 0, 0
        return columns or 80, rows or 24

    def say(self, line: str) -> None:
        """Write a line that stays. It may come from any thread."""
        if self._thread is None:
            with self._lock:
                self._write(f"{line}\n")
            return
        with self._lock:
            if len(self._said) == WAITING_LINES:
                self._said.popleft()
                self._lost += 1
            self._said.append(line)
        self._wake.set()

    @contextlib.contextmanager
    def live(self, picture: Callable[[int, int], Sequence[Line] | None]) -> Iterator[None]:
        """Keep below what is said what ``picture`` returns for so many columns and rows, None where it is as before.

        What others print meanwhile comes above it too.
        """
        self._ended.clear()
        thread = self._thread = threading.Thread(target=self._draw, args=(picture,), name="screen", daemon=True)
        thread.start()
        above = Above(self.say, self._file)
        try:
            with contextlib.redirect_stdout(above), contextlib.redirect_stderr(above):
                yield
        finally:
            above.flush()
            self._ended.set()
            self._wake.set()
            thread.join(STOP_SECONDS)
            if thread.is_alive():
                self._is_gone = True  # it stands still; the process need not
            self._thread = None
            self._turn(())

    def begin_anew(self) -> None:
        """Draw below whatever stands there: something else has written to the terminal."""
        self._drawn = Picture()
        self._wake.set()

    def _draw(self, picture: Callable[[int, int], Sequence[Line] | None]) -> None:
        while not self._ended.is_set():
            lines = picture(*self.size())
            self._wanted = self._wanted if lines is None else tuple(lines)
            if self._is_in_front():
                self._turn(self._wanted)
            else:
                self._drawn = Picture()  # the terminal is somebody else's now
                self._turn(())
            self._wake.wait(IDLE_SECONDS if lines is None else FRAME_SECONDS)
            self._wake.clear()
            self._ended.wait(BURST_SECONDS if self._said else 0)

    def _is_in_front(self) -> bool:
        """Tell whether the shell has not sent this process to the background."""
        if not hasattr(os, "tcgetpgrp"):
            return True
        try:
            return os.tcgetpgrp(self._file.fileno()) == os.getpgrp()
        except (OSError, ValueError):
            return True

    def _turn(self, lines: tuple[Line, ...]) -> None:
        """Write what was said, and the next picture."""
        with self._lock:
            said = list(self._said)
            self._said.clear()
            if self._lost:
                said.insert(0, _("{count} lines are lost: the terminal stood still").format(count=self._lost))
                self._lost = 0
        columns, rows = self.size()
        before, self._drawn = self._drawn, Picture(lines, columns)
        if text := change(before, self._drawn, said, rows, self._reflows):
            self._write(text)

    def _write(self, text: str) -> None:
        if self._is_gone:
            return
        try:
            self._file.write(text.encode(self._encoding, "replace").decode(self._encoding))
            self._file.flush()
        except (OSError, ValueError):
            self._is_gone = True  # the terminal was closed


class Above(io.TextIOBase):
    """What stands in for stdout and stderr beside a picture: whole lines go above it."""

    def __init__(self, say: Callable[[str], None], file: IO[str]) -> None:
        self._say, self._file = say, file
        self._begun = ""

    def write(self, text: str) -> int:
        """Take text; its whole lines are said."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._say(one_line(line))
        return len(text)

    def flush(self) -> None:
        """Say what has no end of a line yet."""
        if self._begun:
            self._say(one_line(self._begun))
            self._begun = ""

    def fileno(self) -> int:
        """Return the terminal's own descriptor."""
        return self._file.fileno()

    def isatty(self) -> bool:
        """Tell that there is a terminal behind it."""
        return True
