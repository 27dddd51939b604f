"""Text for people: harmless on a screen, one line in a log, sizes and times that can be read."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from plain_text import clock_text, harmless, one_line, size_text, sizes_text, span_text, speed_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 标题", "plain 标题"),
        ("a\nb\r\n\tc\u3000d", "a b   c d"),
        ("\x1b[31mred\x1b]0;title\x07\x9b2J", "[31mred]0;title2J"),
        ("left\u202eright\u2066x\u200f", "leftrightx"),
        ("family \U0001f468\u200d\U0001f469\u200d\U0001f467 heart \u2764\ufe0f", "family 👨👩👧 heart ❤"),
        ("wave \U0001f44b\U0001f3fd", "wave 👋"),
        ("z" + "\u0301" * 50, "z" + "\u0301" * 4),
        ("half \ud800 \ue000 \ufffe", "half"),
    ],
)
def test_nothing_in_a_title_commands_the_terminal_or_is_wider_than_it_looks(text: str, shown: str) -> None:
    assert harmless(text) == shown
    assert cell_len(harmless(text)) == sum(cell_len(character) for character in harmless(text))


def test_of_a_title_without_end_a_part_is_enough() -> None:
    assert len(harmless("x" * 100_000)) == 300


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain 标题 😀", "plain 标题 😀"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[31m\x85\u2028\u202e", "\\x1b[31m\\x85\\u2028\\u202e"),
        ("\ud800", "\\ud800"),
    ],
)
def test_a_log_line_is_one_line_and_shows_what_was_in_it(text: str, written: str) -> None:
    assert one_line(text) == written
    assert len(one_line(text).splitlines()) == 1


def test_sizes_have_three_digits_and_a_unit() -> None:
    sizes = (0, 999, 1000, 1536, 102400, 10**9, 10**12, 10**15)
    assert [size_text(size) for size in sizes] == [
        *("0 B", "999 B", "1.0 KiB", "1.5 KiB", "100 KiB", "954 MiB", "931 GiB", "909 TiB")
    ]
    assert sizes_text(512 * 1024, 10 * 1024**2) == "0.5/10.0 MiB"
    assert sizes_text(50, 200) == "50/200 B"
    assert speed_text(1024**2) == "1.0 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "00:00"), (61.9, "01:01"), (3723, "1:02:03"), (359999, "99:59:59"), (360000, "--:--"), (-1, "--:--")],
)
def test_a_clock_has_no_more_digits_than_it_needs(seconds: float, shown: str) -> None:
    assert clock_text(seconds) == shown
    assert clock_text(float("inf")) == clock_text(float("nan")) == "--:--"


def test_a_span_has_one_unit() -> None:
    assert [span_text(seconds) for seconds in (-1, 59, 60, 7200, 259200)] == ["0 s", "59 s", "1 min", "2 h", "3 d"]
