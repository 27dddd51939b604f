"""Orders from the server to a worker: what they may say, and how they are written into working.json.

Both sides check an order with the same table. It sets keys of working.json, or begins a login; no file, no command
and no address is ever named in one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from config import WORKING_KEYS, tolerant
from i18n import _
from model import Order, Working
from shapes import line

SPEED_CHARACTERS = 32
_ID = line(64, 1)


def working_keys(value: Any) -> dict[str, Any]:
    """Check the keys of working.json that an order sets, at least one; the values stay as they were written."""
    names = ", ".join(WORKING_KEYS)
    if not isinstance(value, dict) or not value:
        raise ValueError(_("an object with some of {names} is expected").format(names=names))
    if unknown := [key for key in value if key not in WORKING_KEYS]:
        sentence = _("{name} is no key that can be ordered; there are {names}")
        raise ValueError(sentence.format(name=unknown[0][:40], names=names))
    for key, one in value.items():
        if isinstance(one, str) and len(one) > SPEED_CHARACTERS:
            raise ValueError(_('"{name}" is too long').format(name=key))
        WORKING_KEYS[key](one)
    return {key: value[key] for key in WORKING_KEYS if key in value}


def read_order(value: Any) -> Order | None:
    """Return the order that an answer of the server has; None where there is none that could be answered by its id."""
    try:
        identity = _ID(value["id"])
    except (TypeError, KeyError, ValueError):
        return None
    try:
        working = working_keys(value["working"]) if value.get("working") else {}
        login = _ID(value["login"]) if value.get("login") is not None else ""
    except ValueError as error:
        return Order(identity, problem=str(error))
    return Order(identity, working, login)


def working_fields(working: Working) -> dict[str, Any]:
    """Return what working.json says, all of its keys, as an order would write it."""
    return {
        "stop": working.stop,
        "count": working.count,
        "max_speed": working.max_bytes_per_second,
        "drain": working.drain,
    }


def with_keys(text: str, keys: Mapping[str, Any]) -> str:
    """Return a text of working.json with other values for some keys; all the rest stays as it was written.

    Raise ValueError where the text is no object.
    """
    plain = tolerant(text)
    found = _places(plain)
    body = text.removeprefix("\ufeff")
    values = {key: json.dumps(value, ensure_ascii=False) for key, value in keys.items()}
    changes = [(start, stop, values[key]) for key, start, stop in found.members if key in values]
    known = {key for key, _start, _stop in found.members}
    added = [f"{json.dumps(key)}: {value}" for key, value in values.items() if key not in known]
    if added:
        lead = "," + (found.lead if "\n" in found.lead else " ")
        changes.append((found.end, found.end, lead.join(["", *added] if known else added)))
    for start, stop, value in sorted(changes, reverse=True):
        body = body[:start] + value + body[stop:]
    return text[: len(text) - len(text.removeprefix("\ufeff"))] + body


class _Places(NamedTuple):
    """Where the values of an object stand, what stands before its first key, and where one more key would come."""

    members: list[tuple[str, int, int]]
    lead: str
    end: int


def _places(text: str) -> _Places:
    json.loads(text)  # whatever it accepts has the form that is walked through here
    decode = json.JSONDecoder().raw_decode
    brace = _skip(text, 0)
    if text[brace] != "{":
        raise ValueError(_("an object is expected"))
    members: list[tuple[str, int, int]] = []
    first = place = _skip(text, brace + 1)
    end = brace + 1
    while text[place] != "}":
        key, place = decode(text, place)
        start = _skip(text, _skip(text, place) + 1)
        _value, end = decode(text, start)
        members.append((key, start, end))
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return _Places(members, text[brace + 1 : first], end)


def _skip(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place
