"""Whose data the queue's are, and what is said when they are others."""

from __future__ import annotations

import pytest

from store.lineage import Lineage, what_changed

BEFORE = Lineage("e1", 10, "a")


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (Lineage("e1", 12, "a"), ""),
        (Lineage("e1", 12, "b"), "no lease is missing"),
        (Lineage("e1", 7, "b"), "set back: 3 leases"),
        (Lineage("e1", 7, "a"), "set back: 3 leases"),
        (Lineage("e2", 12, "a"), "gone or replaced"),
        (Lineage("", 0, "a"), "gone or replaced"),
    ],
)
def test_what_changed_is_said(now: Lineage, sentence: str) -> None:
    said = what_changed(BEFORE, now)
    assert sentence in said and bool(said) == bool(sentence)


def test_nothing_is_said_before_there_was_anything() -> None:
    assert what_changed(None, BEFORE) == ""
    assert what_changed(Lineage("", 0, "a"), BEFORE) == ""


def test_the_name_of_the_data_is_the_same_for_all_who_look_and_another_one_for_other_data() -> None:
    assert BEFORE.id == Lineage("e1", 99, "a").id
    assert len({BEFORE.id, Lineage("e2", 10, "a").id, Lineage("e1", 10, "b").id}) == 3
