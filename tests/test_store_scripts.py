"""The texts of the scripts: what they share is there where it is used, and nowhere else."""

from __future__ import annotations

import re

import pytest

from store import script_texts
from store.scripts import behind

SHARED = """-- about all of it

local ONE, TWO = KEYS[1], KEYS[2] -- LIST, HASH
local LIMIT = 100 -- for apart

local function base()
  return LIMIT
end

-- This one needs base.
local function upper(id)
  return base() + 1
end

local function apart()
  return TWO
end
"""


def defined(text: str) -> list[str]:
    return re.findall(r"(?m)^local (?:function )?(\w+)", text)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("return 1\n", []),
        ("return base()\n", ["LIMIT", "base"]),
        ("return upper(1)\n", ["LIMIT", "base", "upper"]),
        ("return TWO\n", ["ONE"]),
        ("return apart()\n", ["ONE", "apart"]),
        ("return 'base' -- upper, apart\n", []),
        ("return 'it\\'s base'\n", []),
        ("return database, base_of\n", []),
    ],
)
def test_a_script_has_what_it_uses_and_what_that_uses_in_its_order(own: str, expected: list[str]) -> None:
    found = behind(SHARED, own)
    assert defined(found) == expected
    assert found.endswith(own)


def test_all_of_a_statement_comes_along() -> None:
    assert "local function base()\n  return LIMIT\nend\n" in behind(SHARED, "return base()\n")


@pytest.mark.parametrize("name", sorted(script_texts()))
def test_no_script_has_a_function_that_it_does_not_use(name: str) -> None:
    code = re.sub(r"--.*", "", script_texts()[name])
    functions = re.findall(r"(?m)^local function (\w+)", code)
    assert [one for one in functions if len(re.findall(rf"\b{one}\b", code)) < 2] == []


def test_the_whole_folder_is_there_but_what_is_shared() -> None:
    texts = script_texts()
    assert {"add", "lease", "heartbeat", "ack", "nack"} <= set(texts)
    assert not {"common", "listing", "turns", "renewal"} & set(texts)
    assert "local function drains(" in texts["lease"], "which names the part it is in"
