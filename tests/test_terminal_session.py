"""A real worker in a real pseudo-terminal, with a real farm around it: what a person sees, and what is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from demo.catalogue import video
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from tests.farm import ROOT, Farm, wait_until
from tests.screens import Glass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals of this kind"),
    pytest.mark.timeout(150),
]

COLOURED = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
ON_THIS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
)
SLOWLY = "4000"
"""Bytes a second of each response: the streams of the crowd take about ten seconds."""


@pytest.fixture(scope="module")
def site() -> Iterator[SiteProcess]:
    with SiteProcess(DEFAULT_CACHE, "--rate", SLOWLY, "--crowd", "90") as site:
        yield site


class Session:
    """A worker on a terminal of so many columns and rows."""

    def __init__(self, farm: Farm, columns: int, rows: int, **environ: str) -> None:
        self.glass = Glass(columns, rows)
        self.written = ""
        self._lock = threading.Lock()
        self._master, slave = os.openpty()
        self._set_size(columns, rows)
        kept = {"TERM": "linux", "LANG": "C.UTF-8", "NO_COLOR": "", "FORCE_COLOR": "", "COLUMNS": "", "LINES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_THIS_TERMINAL, sys.executable, str(ROOT / "run.py")],
            **dict.fromkeys(("stdin", "stdout", "stderr"), slave),  # type: ignore[call-overload]
            env={name: value for name, value in farm.environ(**{**kept, **environ}).items() if value},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        left = b""
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the worker has ended
                data = b""
            if not data:
                return
            text = (left + data).decode("utf-8", "ignore" if len(left) > 3 else "surrogateescape")
            cut = len(text)
            while cut and "\udc80" <= text[cut - 1] <= "\udcff":
                cut -= 1
            left = text[cut:].encode("utf-8", "surrogateescape")
            with self._lock:
                self.written += text[:cut]
                self.glass.feed(text[:cut])

    def shown(self) -> list[str]:
        with self._lock:
            return self.glass.shown()

    def everything(self) -> list[str]:
        with self._lock:
            return self.glass.everything()

    def shows(self, what: str, seconds: float = 40.0) -> str:
        """Return the first line that has a text (a pattern), as soon as there is one."""

        def line() -> str:
            return next((line for line in self.shown() if re.search(what, line)), "")

        try:
            return str(wait_until(f"{what!r} on the screen", line, seconds))
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.everything()[-60:]])) from None

    def resize(self, columns: int, rows: int) -> None:
        with self._lock:
            self.glass.resize(rows, columns)
        self._set_size(columns, rows)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self.type(b"\x03")
        status = self.process.wait(30)
        self._reader.join(60)  # what was written last is drawn here long after, on a busy machine
        assert not self._reader.is_alive()
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        os.close(self._master)


@pytest.fixture
def on_terminal(farm: Farm) -> Iterator[Callable[..., Session]]:
    """Start workers on terminals; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(columns: int, rows: int, **environ: str) -> Session:
            session = Session(farm, columns, rows, **environ)
            stack.callback(session.close)
            return session

        yield start


OnTerminal = Callable[..., Session]


def one_of_the_crowd(farm: Farm) -> str:
    """Return the address of a video that takes some ten seconds."""
    return f"{farm.site.addresses['short']}/Crowd17"


def is_clean(session: Session) -> bool:
    """Tell whether the terminal is as it was: no other screen, a cursor that is seen, lines that wrap, no bars."""
    kept = not re.search(r"\x1b\[\?(?:1049|47|1047|25|1000)[hl]|\x1b\[2J|\x1b\[3J|\x1bc", session.written)
    wraps = session.written.count("\x1b[?7l") == session.written.count("\x1b[?7h")
    return kept and wraps and not session.glass.cursor.hidden and not any("━" in line for line in session.shown())


def test_with_64_jobs_in_a_small_window_bars_move_and_failures_stay_above(farm: Farm, on_terminal: OnTerminal) -> None:
    farm.steer(stop=1, count=64)
    farm.add(video("deleted").bvid, "mid:20000")
    session = on_terminal(80, 16)
    session.shows(r"━.* \d+%.*KiB/s.*\d\d:\d\d.*127\.0\.0\.1")
    assert re.fullmatch(r"… and \d+ more", session.shows("… and"))
    total = session.shows("jobs: ")
    assert int(re.findall(r"jobs: (\d+)", total)[0]) >= 64
    assert re.match(r"running · jobs: \d+ · .*/s · left: ", total)
    farther = session.shows(r"━.* [3-9]\d%")
    assert cell_len(farther) <= 79
    for outcome in ("done, other/", "failed, now dead"):
        wait_until(outcome, lambda outcome=outcome: any(outcome in line for line in session.everything()), 90)
    assert session.interrupt() == 0 and is_clean(session)
    log = "\n".join(session.everything())
    assert re.search(r"WARNING \S+: failed, now dead", log) and "Stopping" in log
    assert "━" not in log, "a bar has scrolled off the screen"
    bars = re.findall(r"\x1b\[\?2026h(.*?)\x1b\[\?2026l", session.written, re.DOTALL)
    assert len(bars) > 5 and "━" not in re.sub(r"\x1b\[\?2026h.*?\x1b\[\?2026l", "", session.written, flags=re.DOTALL)


def test_a_narrow_window_and_one_that_is_resized_are_filled_and_no_more(farm: Farm, on_terminal: OnTerminal) -> None:
    farm.steer(stop=1, count=8)
    farm.add("mid:20000")
    session = on_terminal(40, 30)
    assert cell_len(session.shows(r"^  video ━.*%.*/s +\d\d:\d\d$")) == 39
    session.resize(120, 30)
    wide = session.shows(r"^人群\S+ .*video ━.*KiB.*KiB/s.*\d\d:\d\d 127\.0\.0\.1")
    assert 80 < cell_len(wide) < 120
    assert not any(line.startswith("  video") for line in session.shown()), "what was drawn before is still there"
    session.resize(40, 30)
    session.shows(r"^  video ━.*%")
    assert sum("jobs: " in line for line in session.shown()) == 1
    assert session.interrupt() == 0 and is_clean(session)


@pytest.mark.parametrize(("environ", "coloured"), [({"NO_COLOR": "1"}, False), ({}, True)])
def test_colours_are_off_when_nobody_wants_them(
    farm: Farm, on_terminal: OnTerminal, environ: dict[str, str], coloured: bool
) -> None:
    farm.add(one_of_the_crowd(farm))
    session = on_terminal(100, 24, **environ)
    session.shows(r"━.* \d+%")
    assert session.interrupt() == 0
    assert bool(COLOURED.search(session.written)) is coloured


def test_into_a_pipe_go_log_lines_only_with_colours_only_if_they_are_forced(farm: Farm, tmp_path: Path) -> None:
    farm.add(video("deleted").bvid)
    plain = farm.worker("--until-empty", NO_COLOR="", FORCE_COLOR="")
    assert plain.wait() == 1
    lines = plain.output().splitlines()
    assert "\x1b" not in plain.output()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d (INFO|WARNING) ", line) for line in lines)
    farm.add("--retry-failed")
    forced = farm.worker(
        "--until-empty", FORCE_COLOR="1", NO_COLOR="", TERM="xterm", BILI_LOG_FILE=str(tmp_path / "log")
    )
    assert forced.wait() == 1
    assert COLOURED.search(forced.output()) and "\x1b[?" not in forced.output() and "\x1b[K" not in forced.output()
    assert len((tmp_path / "log").read_text("utf-8").splitlines()) == len(forced.output().splitlines())


def test_a_terminal_that_stands_still_holds_up_no_download(farm: Farm, on_terminal: OnTerminal) -> None:
    farm.steer(stop=1, count=8)
    farm.add(one_of_the_crowd(farm))
    session = on_terminal(100, 24)
    session.shows("jobs: ")
    session.type(b"\x13")  # Ctrl-S
    wait_until("it is done", lambda: farm.counts()["done"] == 1, 60)
    session.type(b"\x11")
    wait_until("it is told", lambda: any("done, other/" in line for line in session.everything()), 30)
    assert session.interrupt() == 0 and is_clean(session)
