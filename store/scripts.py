"""The scripts of the queue as the engine gets them: each behind what it uses of what they share.

Lua makes all functions of a script anew in each call and clears them away afterwards, so those that a script has and
does not use cost time in each of its calls (docs/scale.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent.parent / "lua"
_COMMON = _FOLDER / "common.lua"
_PART = re.compile(r"(?m)^-- with (\w+)$")
_STATEMENT = re.compile(r"(?m)^(?=local )")
_DEFINED = re.compile(r"local (?:function )?(\w+(?:, \w+)*)")
_WORD = re.compile(r"'(?:[^'\\\n]|\\.)*'|--[^\n]*|([A-Za-z_]\w*)")
"""Texts and comments match as well, so that nothing in them is taken for a word."""


def script_texts() -> dict[str, str]:
    """Return the scripts of ``lua/`` by their names."""
    return {
        path.stem: completed(path.read_text("utf-8")) for path in _FOLDER.glob("*.lua") if path.name != _COMMON.name
    }


def completed(own: str) -> str:
    """Return a script behind what it uses of ``common.lua`` and of each part of ``parts`` that a ``-- with`` names."""
    parts = [_FOLDER / "parts" / f"{name}.lua" for name in _PART.findall(own)]
    return behind("".join(path.read_text("utf-8") for path in [_COMMON, *parts]), own)


def behind(shared: str, own: str) -> str:
    """Return a script behind the statements of a shared text that it uses, directly or through others of them.

    A shared text is a row of ``local`` statements, each from the start of a line.
    """
    needed, kept = set(_words(own)), []
    for statement in reversed(_STATEMENT.split(shared)):  # what one of them uses stands before it
        defined = _DEFINED.match(statement)
        if defined and needed.intersection(defined[1].split(", ")):
            needed.update(_words(statement))
            kept.append(statement)
    return "".join([*reversed(kept), own])


def _words(text: str) -> Iterator[str]:
    return (found[1] for found in _WORD.finditer(text) if found[1])
