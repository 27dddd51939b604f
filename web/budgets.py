"""How workers may ask the site, as far as requests say: what they tell of it, and what they are answered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from flask import Response, jsonify

from budgets import Breaker, address_group, blamed, groups_of, read_told
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
        return jsonify(self._budget(body, may_probe=True))

    def demand_ways(self, body: Mapping[str, Any]) -> None:
        """Refuse a token that has named too many lines and accounts."""
        self._keyring.demand_ways(*(f"{name}:{body[name]}" for name in ("egress", "account") if name in body))

    def of_beat(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return how a worker may ask the site until its next heartbeat; None for one that tells nothing of it."""
        if "site" not in body:
            return None
        state = body.get("state", {})
        if state.get("state") == "ended":
            self._queue.leave_budget(body["worker"], _groups(body))
            return None
        is_draining = state.get("working", {}).get("drain") == 1
        return self._budget(body, may_probe=state.get("state") in _LEASING and not is_draining)

    def control(self, body: Mapping[str, Any]) -> dict[str, float] | None:
        """Return what a worker should do because the site asked one of its address or account for less."""
        groups, risk = _groups(body), body.get("risk", {"kind": "", "seconds": 0.0})
        if risk["seconds"]:
            with suppress(EngineFull):  # leases are kept all the same
                self._queue.tell_risk(groups, risk["kind"], risk["seconds"])
        seconds = self._queue.risk_seconds(groups)
        return {"slow_seconds": seconds} if seconds else None

    def breakers(self) -> list[dict[str, Any]]:
        """Return the groups that are parked, as the status has them."""
        return [told_breaker(one) for one in self._queue.breakers()]

    def _budget(self, body: Mapping[str, Any], may_probe: bool) -> dict[str, Any]:
        told = read_told(body["site"], may_probe)
        return asdict(self._queue.budget(body["worker"], _groups(body), told))


def _speak_for_oneself(body: dict[str, Any]) -> None:
    """Leave of what somebody tells who only adds what is his to say: he has no worker's name, and parks no workers.

    But for those at his own address: that the site refuses it is true of them too. Of a line or an account there is
    but his word.
    """
    body["worker"] = f"{body['worker']} ({access().token_id})"
    refused = body["site"].get("refused")
    if refused and blamed(refused["kind"], _groups(body)) != address_group(egress()):
        del body["site"]["refused"]


def _groups(body: Mapping[str, Any]) -> tuple[str, ...]:
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
