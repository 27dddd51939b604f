"""Checks of JSON from outside: what they let in, what they clean, and where they say that something is wrong."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shapes import flag, lenient, line, list_of, number, one_of, record

JOB = record({"url": line(20, 1), "tries": number(0, 9, whole=True)}, urgent=flag, kind=one_of("a", "b"))
BATCH = record({"jobs": list_of(JOB, 2)})


def test_a_message_of_the_right_shape_comes_out_cleaned_and_without_what_nobody_knows() -> None:
    jobs = [{"url": "x\ny\u2028\ud800", "tries": 1, "urgent": None, "new": 5}, {"url": "z", "tries": 0, "kind": "b"}]
    assert BATCH({"jobs": jobs}) == {"jobs": [{"url": "x y ?", "tries": 1}, {"url": "z", "tries": 0, "kind": "b"}]}


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ([], "object"),
        ({}, "jobs is missing"),
        ({"jobs": {}}, r"\.jobs: a list"),
        ({"jobs": [1]}, r"\.jobs\[0\]: an object"),
        ({"jobs": [{"url": "x", "tries": 0}] * 3}, r"\.jobs: a list of at most 2"),
        ({"jobs": [{"url": "x", "tries": 0}, {"url": "", "tries": 0}]}, r"\.jobs\[1\]\.url: 1 to 20"),
        ({"jobs": [{"url": "x", "tries": True}]}, r"\.jobs\[0\]\.tries: a whole number"),
        ({"jobs": [{"url": "x", "tries": 0, "urgent": 1}]}, r"\.urgent: true or false"),
        ({"jobs": [{"url": "x", "tries": 0, "kind": "c"}]}, r"\.kind: one of a, b"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(message: Any, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        BATCH(message)


def test_what_is_only_shown_is_left_out_where_it_does_not_fit() -> None:
    shape = lenient(title=line(3, cut=True), speed=number(0, 10))
    assert shape({"title": "abcdef", "speed": -1}) == {"title": "abc"}
    assert shape("nonsense") == {}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(ANY)
def test_anything_is_of_the_shape_or_a_value_error(message: Any) -> None:
    for shape in (BATCH, JOB, line(5), number(0, 1), list_of(flag, 2)):
        try:
            shape(message)
        except ValueError as error:
            assert str(error)
