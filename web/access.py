"""What admins do with tokens, and how a machine joins: a method for each route."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Response, current_app, jsonify, request
from werkzeug.exceptions import Forbidden, TooManyRequests

from i18n import _
from redisConnect import Queue
from store import JOIN_SECONDS, Tokens
from web.actions import note
from web.guard import Lockout
from web.keyring import Keyring
from web.messages import JOIN, NEW_TOKEN, NOTHING, REVOKE, read_body
from web.session import Sessions

log = logging.getLogger(__name__)

PIN = "CERTIFICATE_PIN"
"""In the application's configuration: the SHA-256 of a certificate that is not signed by others, as 64 hex digits."""

WRONG_CODE = b"a code"
"""All wrong codes count as the same: ten tries in a minute, whatever was tried."""


class AccessVerbs:
    """Tokens are told once, in the answer that makes them; no log and no record of actions has them."""

    def __init__(self, queue: Queue, tokens: Tokens, keyring: Keyring, sessions: Sessions) -> None:
        self._queue = queue
        self._tokens = tokens
        self._keyring = keyring
        self._lockout = Lockout(tokens, sessions, "join")

    def routes(self) -> dict[str, Callable[[], Response]]:
        """Return the verbs by their addresses; all of them change something."""
        return {
            "/join": self.join,
            "/ui/tokens": self.make_token,
            "/ui/revoke": self.revoke,
            "/ui/join_code": self.join_code,
        }

    def make_token(self) -> Response:
        """Make a token for somebody, or some machine."""
        body = read_body(NEW_TOKEN)
        token, record = self._tokens.make(body["role"], body.get("name", ""), time.time())
        self._note("token", f"{record.role} {record.name} ({record.id})")
        return jsonify(token=token, id=record.id, role=record.role, name=record.name)

    def revoke(self) -> Response:
        """Let a token be none any more, and give back what its workers have in work."""
        identity = read_body(REVOKE)["id"]
        record, returned = self._tokens.revoke(identity)
        self._keyring.forget(identity)
        if record is not None:
            self._note("revoke", f"{record.role} {record.name} ({record.id})")
        return jsonify(revoked=int(record is not None), returned=returned)

    def join_code(self) -> Response:
        """Make a code with which one machine may join, and the line that says where."""
        read_body(NOTHING)
        code = self._tokens.offer_join()
        self._note("code", "")
        line = join_line(code, request.scheme, request.host, current_app.config.get(PIN, ""))
        return jsonify(code=code, line=line, seconds=JOIN_SECONDS)

    def join(self) -> Response:
        """Give a machine a token of its own for a code, once."""
        body = read_body(JOIN)
        address = request.remote_addr or ""
        if wait := self._lockout.wait_seconds(address, WRONG_CODE):  # a code is short: the right one waits, too
            raise _too_many(wait)
        joined = self._tokens.join(body["code"], body["worker"], time.time())
        if joined == "taken":
            raise Forbidden(
                _("the name {worker} belongs to another token: choose another one, or revoke that token").format(
                    worker=body["worker"]
                )
            )
        if isinstance(joined, str):
            if wait := self._lockout.note(address, WRONG_CODE):
                raise _too_many(wait)
            raise Forbidden(_("the code is wrong, was used, or is older than ten minutes: have another one shown"))
        token, record = joined
        self._note("join", f"{record.name} ({record.id})")
        return jsonify(token=token, role=record.role, id=record.id)

    def _note(self, what: str, about: str) -> None:
        log.info("%s: %s", what, about)
        note(self._queue, what, about)


def join_line(code: str, scheme: str, host: str, pin: str = "") -> str:
    """Return what is told to a machine that joins: the code, where the server is, and which certificate it has."""
    if scheme != "https":  # without a port run.py takes 8080, and not that of http
        return f"{code}@{host}" if urlsplit(f"//{host}").port else f"{code}@http://{host}"
    return f"{code}@https://{host}" + (f"#{pin}" if pin else "")


def _too_many(wait: int) -> TooManyRequests:
    return TooManyRequests(_("too many wrong codes from this address: wait a minute"), retry_after=wait)
