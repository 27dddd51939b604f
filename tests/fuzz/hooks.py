"""What schemathesis is told of the queue that it asks: ids that are there, and tokens of leases that hold.

Without them nearly every request would end at "there is no such job", and what is behind it would not be met.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.fuzz.queue_content import IDS, TARGETS, call

_turns = itertools.count()
_leases: list[dict[str, str]] = []
ATTEMPTS = 4
"""Pages come before the containers behind them."""
LEASE = re.compile(r"[0-9a-f]+\.[0-9]+\.[0-9a-f]{16}")

schemathesis.openapi.format("job-id", st.sampled_from(IDS))
schemathesis.openapi.format("container-id", st.sampled_from(TARGETS))
schemathesis.openapi.format("category", st.sampled_from(["music", "科普", "other"]))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Give every second call of a verb the url and the token of a lease, where it has both in their places.

    What follows from an answer has a lease already.
    """
    body = case.body
    if not (isinstance(body, dict) and isinstance(body.get("token"), str) and body["token"] and body.get("url") in IDS):
        return
    if not LEASE.fullmatch(body["token"]) and next(_turns) % 2 == 0:
        case.body = {**body, **_lease(case.operation.base_url.rstrip("/"), case.operation.path)}


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Forget a lease that was used up, or that holds no more; one whose call was refused is given again."""
    if response.status_code in (200, 409) and isinstance(case.body, dict):
        _leases[:] = [lease for lease in _leases if lease["token"] != case.body.get("token")]


def _lease(address: str, verb: str) -> dict[str, str]:
    """Return a lease that fits a verb, a page for /ack and a container for /expand; nothing where there is none."""
    wants_page = {"/ack": True, "/expand": False}.get(verb)
    for _attempt in range(ATTEMPTS):
        for lease in _leases:
            if wants_page in (None, "cid=" in lease["url"]):
                return lease
        given = call(f"{address}/get_url?worker=w2&count=20")
        _leases.extend({"url": lease["url"], "token": lease["token"]} for lease in given)
    return {}
