"""The record of actions: who did what, by the address that a request comes from."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flask import request

from errors import EngineError
from i18n import _
from redisConnect import Queue
from web.guard import is_address

log = logging.getLogger(__name__)

SHOWN_NAMES = 5


def egress() -> str:
    """Return the address from which a request comes: behind a proxy on this machine, the one that the proxy names.

    Whoever forges it can only make others ask the site more slowly, and stand in the record under a wrong address.
    """
    address = request.remote_addr or ""
    named = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    return named if named and is_address(named) and ipaddress.ip_address(address or "::").is_loopback else address


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
