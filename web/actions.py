"""The record of actions: who did what, by the address that a request comes from."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flask import request

from errors import EngineError
from i18n import _
from redisConnect import Queue

log = logging.getLogger(__name__)

SHOWN_NAMES = 5


def egress() -> str:
    """Return the address from which a request comes; behind a trusted proxy, the one that the proxy has seen."""
    return request.remote_addr or ""


def note(queue: Queue, what: str, about: str) -> None:
    """Write down an action that was just done; it is not undone where that cannot be written."""
    try:
        queue.note_action(egress(), what, about)
    except EngineError as error:
        log.warning(_("not in the record of actions: %s: %s (%s)"), what, about, error)


def names(found: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" +{len(found) - SHOWN_NAMES}" if len(found) > SHOWN_NAMES else ""
    return ", ".join(found[:SHOWN_NAMES]) + more


def in_words(action: Mapping[str, Any]) -> dict[str, Any]:
    """Return an action with the keys of working.json that were ordered taken out of what it was about."""
    ordered = re.fullmatch(r'(.+?): ("(?:stop|count|max_speed|drain)": .*)', action["about"])
    if action["what"] != "steer" or not ordered:
        return {**action, "working": {}}
    try:
        return {**action, "about": ordered[1], "working": json.loads(f"{{{ordered[2]}}}")}
    except ValueError:
        return {**action, "working": {}}
