"""Pages and days as they are typed, ledgers as they are read."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Any

import pytest

from sources import age, chosen_pages, facts, parse_date, parse_pages


def test_a_day_begins_at_midnight_here() -> None:
    assert datetime.fromtimestamp(parse_date("2024-12-31")) == datetime(2024, 12, 31)
    assert parse_date("1969-01-01") == 0


@pytest.mark.parametrize(
    "text", ["", "2024-13-01", "2024-02-30", "24-12-31", "yesterday", "2024-12-31T00:00", "0000-01-01"]
)
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="2024-12-31"):
        parse_date(text)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("1-3,5,-1", 9, [1, 2, 3, 5, 9]),
        ("-1", 1, [1]),
        ("-3--1", 5, [3, 4, 5]),
        ("2--2", 5, [2, 3, 4]),
        ("5,1-2,2", 5, [5, 1, 2]),
        (" 1 , 2 ", 2, [1, 2]),
    ],
)
def test_pages_are_chosen(text: str, count: int, expected: list[int]) -> None:
    assert chosen_pages(parse_pages(text), count) == expected


@pytest.mark.parametrize(("text", "count"), [("6", 5), ("-6", 5), ("4-6", 5), ("3-2", 5), ("1", 0), ("5--2", 5)])
def test_a_page_that_is_not_there_is_named(text: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"no page {text}: the video has {count}"):
        chosen_pages(parse_pages(text), count)


@pytest.mark.parametrize("text", ["", "0", "1,", "1-", "a", "1-2-3", "100000", ",".join(["1"] * 101)])
def test_what_are_no_pages_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="1-3,5,-1"):
        parse_pages(text)


def item(**changed: Any) -> dict[str, Any]:
    plain = {"source": "mid:1", "title": "Her", "state": "closed", "complete": True, "announced": 5, "listed": 4}
    return {**plain, "queued": 3, "known": 1, "unavailable": {"gone": 1}, "checked": 100, "watched": 3600, **changed}


def test_a_ledger_is_a_row() -> None:
    assert facts(item(), 280.0) == ("mid:1", "Her", "complete", "4/5", "3", "1", "1", "every 1 h", "3 min ago")
    assert facts(item(announced=None, watched=0, checked=None, unavailable={}), 0.0)[3:] == ("4", "3", "1", "0", "", "")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"complete": False}, "incomplete"),
        ({"complete": False, "ended": "wished"}, "read as wished"),
        ({"state": "leased"}, "being read"),
        ({"state": "ready"}, "waiting"),
        ({"checked": None, "complete": False}, "waiting"),
        ({"state": "dead", "reason": "private"}, "failed: private"),
        ({"state": "delayed", "reason": "busy"}, "tried again later: busy"),
    ],
)
def test_how_far_it_is_read_is_said(changed: dict[str, Any], says: str) -> None:
    assert facts(item(**changed), 0.0)[2] == says


def test_durations_have_one_unit() -> None:
    assert [age(seconds) for seconds in (-5, 59, 61, 7200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
