"""What an order may say, and how it is written into a text that a hand wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import parse_working
from model import Order, Working
from orders import read_order, with_keys, working_fields, working_keys


@pytest.mark.parametrize(
    "keys",
    [
        {"stop": 0},
        {"stop": 1, "count": 64, "max_speed": "2.5M", "drain": 1},
        *({"max_speed": value} for value in (None, 0, "", 20000, "10MB/s")),
    ],
)
def test_an_order_says_what_working_json_may_say(keys: dict[str, Any]) -> None:
    assert working_keys(keys) == keys
    assert read_order({"id": "i", "working": keys}) == Order("i", keys)


WRONG: list[tuple[Any, str]] = [
    (None, "an object with some of stop, count, max_speed, drain is expected"),
    ({}, "an object with some of"),
    ([], "an object with some of"),
    ({"stop": 2}, '"stop" must be 1 .run. or 0'),
    ({"stop": True}, '"stop" must be'),
    ({"stop": None}, '"stop" must be'),
    ({"count": 65}, '"count" must be a whole number from 1 to 64'),
    ({"count": "4"}, '"count" must be'),
    ({"drain": 2}, '"drain" must be'),
    ({"max_speed": "fast"}, '"max_speed": it must be a speed from 16K to 1024G'),
    ({"max_speed": 5}, '"max_speed": it must be'),
    ({"max_speed": float("nan")}, '"max_speed": it must be'),
    ({"max_speed": "0" * 40}, '"max_speed" is too long'),
    ({"stop": 0, "download_dir": "/"}, "download_dir is no key that can be ordered"),
]


@pytest.mark.parametrize(("keys", "problem"), WRONG, ids=lambda one: str(one)[:30])
def test_what_is_wrong_is_named_and_a_worker_does_nothing_of_it(keys: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        working_keys(keys)
    if keys:
        order = read_order({"id": "i", "working": keys, "login": "l"})
        assert order is not None and (order.working, order.login) == ({}, "") and order.problem


@pytest.mark.parametrize("answer", [None, 1, [], "x", {}, {"id": ""}, {"id": 5}, {"working": {"stop": 0}}])
def test_what_cannot_be_answered_is_no_order(answer: Any) -> None:
    assert read_order(answer) is None


def test_an_order_may_begin_a_login_and_nothing_else() -> None:
    assert read_order({"id": "i", "working": {}, "login": "l", "path": "/etc"}) == Order("i", {}, "l")
    assert read_order({"id": "i", "working": None, "login": None}) == Order("i")
    for wrong in ("", "x" * 65, 7):
        order = read_order({"id": "i", "login": wrong})
        assert order is not None and order.problem and not order.login


# ------------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"stop": 1, "count": 4}\n', '{"stop": 0, "count": 4, "max_speed": "2M"}\n'),
        ('{\n  "stop":1,\n  "note": "a,}\\"stop\\": 1"\n}\n',) * 2,
        ("{}", '{"stop": 0, "max_speed": "2M"}'),
        (" { } ", ' {"stop": 0, "max_speed": "2M" } '),
        ('\ufeff{"a": {"stop": 3}, "stop" :1 }', '\ufeff{"a": {"stop": 3}, "stop" :0, "max_speed": "2M" }'),
        ('{\r\n\t"max_speed": null,\r\n\t"stop": 1,\r\n}', '{\r\n\t"max_speed": "2M",\r\n\t"stop": 0,\r\n}'),
        ('{"stop": 1, "stop": 1}', '{"stop": 0, "stop": 0, "max_speed": "2M"}'),
    ],
)
def test_the_rest_of_the_text_stays_as_a_hand_wrote_it(before: str, after: str) -> None:
    if after == before:
        after = '{\n  "stop":0,\n  "note": "a,}\\"stop\\": 1",\n  "max_speed": "2M"\n}\n'
    found = with_keys(before, {"stop": 0, "max_speed": "2M"})
    assert found == after
    assert parse_working(found) == Working(0, parse_working(before).count, 2 * 1024**2)


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '"{}"', '{"stop": 1} x', '{"stop": }', "\x00"])
def test_a_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        with_keys(text, {"stop": 0})


KEYS = st.fixed_dictionaries(
    {},
    optional={
        "stop": st.sampled_from([0, 1]),
        "count": st.integers(1, 64),
        "max_speed": st.sampled_from([None, "2M", 20000, 0]),
        "drain": st.sampled_from([0, 1]),
    },
)
ANYTHING = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda one: st.lists(one, max_size=3))


@given(KEYS, KEYS, st.dictionaries(st.text(max_size=5), ANYTHING, max_size=4), st.sampled_from([None, 0, 2]))
def test_any_keys_are_set_and_no_other_is_touched(
    old: dict[str, Any], new: dict[str, Any], others: dict[str, Any], indent: int | None
) -> None:
    text = with_keys(json.dumps({**others, **old}, indent=indent), new)
    assert json.loads(text) == {**others, **old, **new}
    for key, value in working_fields(parse_working(text)).items():
        if key in new and key != "max_speed":
            assert value == new[key]
