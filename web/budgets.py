"""How workers may ask the site, as far as requests say: what they tell of it, and what they are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from flask import Response, jsonify

from budgets import Breaker, Told, address_group, blamed, groups_of, read_told
from errors import EngineFull
from redisConnect import Queue
from web.actions import egress
from web.keyring import Keyring, access
from web.messages import BUDGET, read_body

_LEASING = frozenset({"running", "parked"})


class Budgets:
    """The part of the site in a heartbeat, and the verb of those who have no heartbeat."""

    def __init__(self, queue: Queue, keyring: Keyring) -> None:
        self._queue = queue
        self._keyring = keyring

    def budget(self) -> Response:
        """Take note of how somebody asks the site who leases nothing; say how it may."""
        body = read_body(BUDGET)
        self._keyring.demand_name(body["worker"])
        self.demand_ways(body)
        if access().role == "submit":
            _speak_for_oneself(body)
        told = read_told(body["site"], may_probe=True)
        return jsonify(asdict(self._queue.budget(body["worker"], stated_groups(body), told)))

    def demand_ways(self, body: Mapping[str, Any]) -> None:
        """Refuse a token that has named too many lines and accounts."""
        self._keyring.demand_ways(*(f"{name}:{body[name]}" for name in ("egress", "account") if name in body))

    def told_in(self, body: Mapping[str, Any]) -> Told | None:
        """Return how a worker asks the site, as its heartbeat tells; None for one that tells nothing of it, or ends."""
        state = body.get("state", {})
        if "site" not in body or state.get("state") == "ended":
            return None
        is_draining = state.get("working", {}).get("drain") == 1
        return read_told(body["site"], state.get("state") in _LEASING and not is_draining)

    def note_risk(self, body: Mapping[str, Any], groups: Sequence[str]) -> None:
        """Remember that the site asked one of these groups for less."""
        risk = body.get("risk", {"kind": "", "seconds": 0.0})
        if risk["seconds"]:
            with suppress(EngineFull):  # leases are kept all the same
                self._queue.tell_risk(groups, risk["kind"], risk["seconds"])

    def note_end(self, body: Mapping[str, Any], groups: Sequence[str]) -> None:
        """Let a worker go that says goodbye."""
        if "site" in body and body.get("state", {}).get("state") == "ended":
            self._queue.leave_budget(body["worker"], groups)

    def breakers(self) -> list[dict[str, Any]]:
        """Return the groups that are parked, as the status has them."""
        return [told_breaker(one) for one in self._queue.breakers()]


def _speak_for_oneself(body: dict[str, Any]) -> None:
    """Leave of what somebody tells who only adds what is his to say: he has no worker's name, and parks no workers.

    But for those at his own address: that the site refuses it is true of them too. Of a line or an account there is
    but his word.
    """
    body["worker"] = f"{body['worker']} ({access().token_id})"
    refused = body["site"].get("refused")
    if refused and blamed(refused["kind"], stated_groups(body)) != address_group(egress()):
        del body["site"]["refused"]


def stated_groups(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the groups of who has sent this: its address, or the line that it names, and its account."""
    return groups_of(egress(), body.get("egress", ""), body.get("account", ""))


def told_breaker(breaker: Breaker) -> dict[str, Any]:
    """Return what the status says of a breaker."""
    return {
        "group": breaker.group,
        "state": "probed" if breaker.is_probed else "open",
        "seconds": round(breaker.seconds, 1),
        "failures": breaker.failures,
        "kind": breaker.kind,
        "prober": breaker.prober,
    }
