"""What JSON from outside must look like: small checks that are put together to the shape of a whole message.

The server checks what is sent to it with them, the workers' client what the server answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from i18n import _

Check = Callable[[Any], Any]
"""Returns the value, cleaned; raises ValueError with a sentence that goes behind the field's name."""

_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
"""The characters of the categories Cc, Zl and Zp."""


def line(maximum: int, minimum: int = 0, cut: bool = False) -> Check:
    """Return a check for one line of text; what would control a terminal, or is no UTF-8, is replaced.

    Joiners and marks stay: they are part of emoji and of names of files.
    """

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(_("a text is expected"))
        if not minimum <= len(value) <= maximum and not (cut and len(value) > maximum):
            raise ValueError(_("{low} to {high} characters are expected").format(low=minimum, high=maximum))
        if value.isascii() and value.isprintable():  # nearly always
            return value[:maximum]
        return _CONTROL.sub(" ", value[:maximum].encode("utf-8", "replace").decode())

    return check


def number(low: float, high: float, whole: bool = False) -> Check:
    """Return a check for a number from ``low`` to ``high``; true and false are none, NaN is in no range."""

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
            kind = _("a whole number") if whole else _("a number")
            raise ValueError(_("{kind} from {low} to {high} is expected").format(kind=kind, low=low, high=high))
        return value

    return check


def flag(value: Any) -> bool:
    """Check true or false."""
    if not isinstance(value, bool):
        raise ValueError(_("true or false is expected"))
    return value


def one_of(*words: str) -> Check:
    """Return a check for one of some words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(_("one of {words} is expected").format(words=", ".join(words)))
        return value

    return check


def list_of(item: Check, maximum: int) -> Check:
    """Return a check for a list of at most ``maximum`` items."""

    def check(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > maximum:
            raise ValueError(_("a list of at most {count} is expected").format(count=maximum))
        found: list[Any] = []
        try:
            for entry in value:
                found.append(item(entry))
        except ValueError as error:
            raise _placed(f"[{len(found)}]", error) from None
        return found

    return check


def record(required: Mapping[str, Check], **optional: Check) -> Check:
    """Return a check for an object; unknown fields are left out, so that later clients may send more.

    An optional field that is null counts as missing.
    """
    fields = (*required.items(), *optional.items())

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(_("an object is expected"))
        if missing := [name for name in required if name not in value]:
            raise ValueError(_("{names} is missing").format(names=", ".join(missing)))
        found = {}
        for name, item in fields:
            given = value.get(name)
            if given is None and name not in required:
                continue
            try:
                found[name] = item(given)
            except ValueError as error:
                raise _placed(f".{name}", error) from None
        return found

    return check


def lenient(**fields: Check) -> Check:
    """Return a check for an object that is only shown to people: what does not fit is left out."""

    def check(value: Any) -> dict[str, Any]:
        found = {}
        for name, item in fields.items() if isinstance(value, dict) else ():
            try:
                found[name] = item(value[name])
            except (KeyError, ValueError):
                continue
        return found

    return check


def at(place: str, check: Check, value: Any) -> Any:
    """Return the checked value; the error of a wrong one begins with its place."""
    try:
        return check(value)
    except ValueError as error:
        raise _placed(place, error) from None


def _placed(place: str, error: ValueError) -> ValueError:
    inner = str(error)
    return ValueError(f"{place}{inner}" if inner[:1] in ".[" else f"{place}: {inner}")
