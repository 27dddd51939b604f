"""Whose data the queue's are, and what is said when they are others."""

from __future__ import annotations

import pytest

from store.lineage import Lineage, what_changed

BEFORE = Lineage(("e1", "f1", ""), (10, 20, 0), "a")


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (Lineage(("e1", "f1", ""), (12, 20, 0), "a"), ""),
        (Lineage(("e1", "f1", "g1"), (10, 20, 1), "a"), ""),  # the first lease in a shard
        (Lineage(("e1", "f1", ""), (12, 20, 0), "b"), "no lease is missing"),
        (Lineage(("e1", "f1", ""), (7, 20, 0), "b"), "set back: 3 leases"),
        (Lineage(("e1", "f1", ""), (7, 20, 0), "a"), "set back: 3 leases"),
        (Lineage(("e1", "f1", ""), (99, 15, 0), "b"), "set back: 5 leases"),  # in another shard than the first
        (Lineage(("e2", "f2", ""), (12, 20, 0), "a"), "gone or replaced"),
        (Lineage(("e1", "", ""), (12, 0, 0), "b"), "set back: 20 leases"),  # the first one there was lost too
        (Lineage(("e1", "f2", ""), (12, 99, 0), "b"), "set back: 20 leases"),
        (Lineage(("", "", ""), (0, 0, 0), "a"), "gone or replaced"),
    ],
)
def test_what_changed_is_said(now: Lineage, sentence: str) -> None:
    said = what_changed(BEFORE, now)
    assert sentence in said and bool(said) == bool(sentence)
    assert ("--refresh" in said) == ("set back" in sentence)


def test_of_one_shard_everything_is_set_back_together() -> None:
    assert "--refresh" not in what_changed(Lineage(("e1",), (10,), "a"), Lineage(("e1",), (7,), "b"))


def test_nothing_is_said_before_there_was_anything() -> None:
    assert what_changed(None, BEFORE) == ""
    assert what_changed(Lineage(("", "", ""), (0, 0, 0), "a"), BEFORE) == ""


def test_the_name_of_the_data_is_the_same_for_all_who_look_and_another_one_for_other_data() -> None:
    assert BEFORE.id == Lineage(BEFORE.epochs, (99, 99, 99), "a").id
    others = (Lineage(("e2", "f1", ""), BEFORE.fences, "a"), Lineage(BEFORE.epochs, BEFORE.fences, "b"))
    assert len({BEFORE.id, *(one.id for one in others)}) == 3
