"""Orders to machines, and the record of what people did."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response, jsonify
from werkzeug.exceptions import BadRequest

from i18n import _
from redisConnect import Queue
from web.actions import egress, names, note
from web.messages import LOGIN, STEER, decimal, read_body, read_query

log = logging.getLogger(__name__)

MAX_ACTIONS = 1000


class Steering:
    """What a page or a script orders; a worker hears of it with its next heartbeat, and obeys through working.json."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def steer(self) -> Response:
        """Have machines set keys of their working.json."""
        body = read_body(STEER)
        if body.get("all", False) == ("workers" in body):
            raise BadRequest(_('workers are expected, or "all": true'))
        working = body["working"]
        known = self._queue.working_of(body.get("workers"))
        steered, unknown = self._queue.steer(known, working, egress())
        if steered:
            log.info(_("ordered %s: %s"), ", ".join(steered), _shown(working))
            note(self._queue, "steer", f"{names(steered)}: {_shown(working)}")
        return jsonify(steered=steered, unknown=unknown, undo=_undo(known, steered, working))

    def login(self) -> Response | tuple[Response, int]:
        """Have a machine begin a login; its code comes with its next heartbeat, in ``/status``."""
        worker = read_body(LOGIN)["worker"]
        identity = secrets.token_hex(8)
        steered, _unknown = self._queue.steer([worker], {}, egress(), identity)
        if not steered:
            return jsonify(error=_("no worker {name} was heard of within a day").format(name=worker)), 404
        log.info(_("ordered %s: to log in"), worker)
        note(self._queue, "login", worker)
        return jsonify(id=identity)

    def actions(self) -> Response:
        """List what people did, the newest first."""
        return jsonify(items=self._queue.actions(read_query("limit", decimal(1, MAX_ACTIONS), 100)))


def _undo(
    known: Mapping[str, Mapping[str, Any]], steered: Sequence[str], working: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the orders that bring back what machines said last, of keys that will be others; equal ones as one."""
    orders: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for worker in steered:
        was = known.get(worker, {})
        changed = {name: was[name] for name, value in working.items() if name in was and was[name] != value}
        if changed:
            orders.setdefault(_shown(changed), (changed, []))[1].append(worker)
    return [{"workers": workers, "working": changed} for changed, workers in orders.values()]


def _shown(working: Mapping[str, Any]) -> str:
    return json.dumps(working, ensure_ascii=False)[1:-1]
