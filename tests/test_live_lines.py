"""Lines that change below a log: what a terminal shows after each step, and that nothing else is touched."""

from __future__ import annotations

import io
import os
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import live_lines
from live_lines import Line, LiveLines, Picture, change, reflows
from tests.farm import wait_until
from tests.screens import Glass

LINES = st.lists(st.text("ab", max_size=8), max_size=7)
STEPS = st.lists(
    st.tuples(LINES, st.lists(st.text("xyz", min_size=1, max_size=30), max_size=2)), min_size=1, max_size=8
)


def picture(*lines: str, columns: int = 20) -> Picture:
    return Picture(tuple(Line(line, len(line)) for line in lines), columns)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_after_any_steps_the_screen_has_the_last_picture_below_all_that_was_said(
    steps: list[tuple[list[str], list[str]]],
) -> None:
    glass = Glass(20, 12).feed("$ run\r\n")
    before, log = picture(), ["$ run"]
    for lines, said in steps:
        after = picture(*lines)
        glass.feed(change(before, after, said, 12, True))
        for line in said:
            log += [line[start : start + 20] for start in range(0, len(line), 20)]
        before = after
        expected = [*log, *lines]
        while expected and not expected[-1]:
            expected.pop()
        assert glass.everything() == expected
        row = len(glass.scrolled()) + glass.cursor.y
        assert (row, glass.cursor.x) == (len(log) + max(len(lines) - 1, 0), len(lines[-1]) if lines else 0)


def test_what_has_not_changed_is_not_written_again() -> None:
    before, after = picture("title", "bar ==--", "total 1"), picture("title", "bar ===-", "total 1")
    written = change(before, after, (), 24, True)
    assert "bar ===-" in written and "title" not in written and "total" not in written
    assert change(after, after, (), 24, True) == ""
    assert change(picture(), picture(), (), 24, True) == ""


def test_a_picture_is_written_in_one_piece_that_wraps_nothing_and_hides_no_cursor() -> None:
    written = change(picture("one"), picture("two"), (), 24, True)
    assert written.startswith("\x1b[?2026h\x1b[?7l") and written.endswith("\x1b[?7h\x1b[?2026l")
    glass = Glass(10, 5).feed(change(picture(), picture("x" * 30, "below", columns=10), (), 5, True))
    assert [line[:9] for line in glass.shown()] == ["x" * 9, "below"]
    assert not glass.cursor.hidden


def test_a_terminal_that_became_narrow_has_wrapped_what_was_there() -> None:
    """As tmux and nearly all others do: what stood in one line stands in two."""
    wide = picture("a" * 15, "b" * 9, columns=20)
    reflowed = Glass(10, 8).feed("log\r\naaaaaaaaaa\r\naaaaa\r\nbbbbbbbbb")
    assert reflowed.feed(change(wide, picture("new", columns=10), (), 8, True)).shown() == ["log", "new"]
    cut = Glass(10, 8).feed("log\r\naaaaaaaaaa\r\nbbbbbbbbb")
    assert cut.feed(change(wide, picture("new", columns=10), (), 8, False)).shown() == ["log", "new"]


def test_no_terminal_is_told_to_clear_more_than_a_line_when_the_picture_begins_at_its_top() -> None:
    """tmux, for one, takes the screen into its history then."""
    for after in (picture("new", columns=10), picture("new", columns=30), picture()):
        assert "\x1b[J" not in change(picture("a", "b"), after, (), 2, True)


@pytest.mark.parametrize(
    ("environ", "does"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm", "XTERM_VERSION": "XTerm(390)"}, False),
        ({"TERM": "linux"}, False),
        ({"TERM": "screen-256color"}, False),
        ({"TERM": "screen-256color", "TMUX": "/tmp/x"}, True),
        ({}, True),
    ],
)
def test_terminals_that_wrap_anew_are_told_from_those_that_do_not(environ: dict[str, str], does: bool) -> None:
    assert reflows(environ) is does


# ------------------------------------------------------------------------------------------ the thread


class Slow(io.StringIO):
    """A terminal that stands still until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def write(self, text: str) -> int:
        self.goes_on.wait(10)
        return super().write(text)


def test_lines_are_written_at_once_and_in_order_whoever_says_them() -> None:
    file = io.StringIO()
    lines = LiveLines(file)
    lines.say("before")
    with lines.live(lambda _columns, _rows: [Line("bar", 3)]):
        threads = [threading.Thread(target=lambda n=n: [lines.say(f"{n}-{k}") for k in range(50)]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.stdout.write("printed by somebody\n")
        sys.stderr.write("and a line without an end")
    lines.say("after")
    shown = Glass(80, 40).feed(file.getvalue().replace("\r\n", "\n").replace("\n", "\r\n")).everything()
    assert shown[0] == "before" and shown[-1] == "after" and "bar" not in shown
    assert {"printed by somebody", "and a line without an end"} <= set(shown)
    for number in range(4):
        assert [line for line in shown if line.startswith(f"{number}-")] == [f"{number}-{k}" for k in range(50)]


def test_a_terminal_that_stands_still_holds_nobody_up_and_what_is_lost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_lines, "WAITING_LINES", 10)
    file = Slow()
    lines = LiveLines(file)
    with lines.live(lambda _columns, _rows: [Line("bar", 3)]):
        for number in range(100):
            lines.say(f"line {number}")  # would wait for ten seconds each
        file.goes_on.set()
        wait_until("the last line is there", lambda: "line 99" in file.getvalue(), 10)
    assert "lines are lost: the terminal stood still" in file.getvalue()


def test_a_terminal_that_stands_still_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_lines, "STOP_SECONDS", 0.1)
    file = Slow()
    lines = LiveLines(file)
    with lines.live(lambda _columns, _rows: [Line("bar", 3)]):
        lines.say("x")
    lines.say("nobody reads this")
    file.goes_on.set()


def test_a_terminal_that_was_closed_ends_nothing() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        lines = LiveLines(file)
        os.close(reading)
        lines.say("x" * 100_000)
        with lines.live(lambda _columns, _rows: [Line("bar", 3)]):
            lines.say("y")
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, writing)  # what is left in the buffer goes nowhere at the end
        os.close(devnull)


def test_characters_that_the_terminal_has_not_are_replaced() -> None:
    raw = io.BytesIO()
    lines = LiveLines(io.TextIOWrapper(raw, encoding="ascii"))
    assert not lines.can_show("━") and lines.can_show("#")
    lines.say("标题 x")
    assert raw.getvalue() == b"?? x\n"


def test_a_picture_is_drawn_anew_below_what_others_have_written() -> None:
    file = io.StringIO()
    lines = LiveLines(file)
    with lines.live(lambda _columns, _rows: [Line("bar", 3)]):
        wait_until("it is drawn", lambda: "bar" in file.getvalue(), 10)
        size = len(file.getvalue())
        lines.begin_anew()
        wait_until("it is drawn again", lambda: "bar" in file.getvalue()[size:], 10)
        assert "\x1b[A" not in file.getvalue()[size:]
