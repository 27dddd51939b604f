"""What is broken on purpose is noticed by the tests that say they notice it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, Mutation, broken, copy_of_the_tree, is_red

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    with copy_of_the_tree() as tree:
        yield tree


def test_unbroken_they_are_green(tree: Path) -> None:
    """The copy is not red by itself; that all of these tests are green, this run shows anyway."""
    assert not is_red(tree, MUTATIONS[0].tests)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_broken_they_are_red(tree: Path, mutation: Mutation) -> None:
    with broken(tree, mutation):
        assert is_red(tree, mutation.tests)
