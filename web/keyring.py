"""Who asks, as far as tokens say: their roles, the names of their workers, and which leases are theirs."""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import g
from werkzeug.exceptions import Forbidden

from errors import StaleToken
from i18n import _
from store import Token, Tokens, digest_of, id_of, is_made, owner_of

KNOWN_SECONDS = 5.0
"""A token that was revoked is good for so long yet, at a server that has just looked."""
MOST_KNOWN = 1000
MOST_NAMES = 10_000
MOST_WAYS = 2000
"""So many lines and accounts may the workers of a token name; as many as there may be workers, and as many again."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who asks: in which role, and with which token; its id is empty for ``BILI_TOKEN``, and where none is needed."""

    role: str
    token_id: str = ""


NOBODY = Access("")
"""Without a token."""
EVERYTHING = Access("admin")
"""With ``BILI_TOKEN``, or where it is not set."""


def access() -> Access:
    """Return who asks now; nobody, before the guard has looked."""
    found: Access = g.get("access", NOBODY)
    return found


class Keyring:
    """What is known of made tokens, looked up in Redis every few seconds at most for each."""

    def __init__(self, tokens: Tokens, lease_ms: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._lease_ms = lease_ms
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, Token | None]] = OrderedDict()
        self._bound: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._ways: dict[str, set[str]] = {}

    def find(self, given: bytes) -> Access | None:
        """Return whose a token is, None where it is none that was made."""
        if not is_made(given):
            return None
        token = self._look_up(id_of(given))
        if token is None or not hmac.compare_digest(digest_of(given).encode(), token.digest.encode()):
            return None
        return Access(token.role, token.id)

    def find_id(self, identity: str) -> Access | None:
        """Return whose the token of an id is, None where it is there no more."""
        token = self._look_up(identity)
        return Access(token.role, token.id) if token and token.role else None

    def forget(self, identity: str) -> None:
        """Look a token up anew."""
        with self._lock:
            self._known.pop(identity, None)

    def _look_up(self, identity: str) -> Token | None:
        now = self._clock()
        with self._lock:  # held while Redis is asked: of many requests at once one looks
            until, token = self._known.get(identity, (float("-inf"), None))
            if now < until:
                return token
            token = self._tokens.find(identity)
            self._known[identity] = (now + KNOWN_SECONDS, token)
            self._known.move_to_end(identity)
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
            return token

    # -------------------------------------------------------------------------------- what belongs to whom

    def demand_name(self, worker: str) -> None:
        """Refuse who speaks for somebody else's worker; a name is bound to the token that used it first."""
        asking = access()
        if asking.role != "worker":
            return
        pair = (asking.token_id, worker)
        with self._lock:
            is_bound = pair in self._bound
        if not is_bound:
            self._bind(*pair)

    def _bind(self, identity: str, worker: str) -> None:
        state = self._tokens.bind(identity, worker, self._lease_ms)
        if state != "bound":
            sentences = {
                "taken": _("the name {worker} belongs to another token: choose another one, or revoke that token"),
                "alive": _(
                    "the name {worker} is at work without a token of its own: end that worker, or choose another name"
                ),
                "many": _("this token has too many names already"),
                "gone": _("this token was revoked"),
            }
            raise Forbidden(sentences[state].format(worker=worker))
        with self._lock:
            self._bound[identity, worker] = None
            while len(self._bound) > MOST_NAMES:
                self._bound.popitem(last=False)

    def demand_ways(self, *named: str) -> None:
        """Refuse who names ever other lines and accounts: what the site said of each is remembered for hours."""
        asking = access()
        if asking.role == "admin":
            return
        with self._lock:
            known = self._ways.setdefault(asking.token_id, set())
            news = set(named) - known
            if len(known) + len(news) > MOST_WAYS:
                raise Forbidden(_("this token has named too many lines and accounts already"))
            known |= news

    def owns(self, lease_token: str) -> bool:
        """Tell whether who asks may speak for a lease: a worker's token for those that were given to it."""
        return _speaks_for(access(), lease_token)

    def parted(self, jobs: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
        """Return the jobs of a heartbeat for whose leases who asks may speak, and the ids of the others."""
        asking = access()
        own: list[Mapping[str, Any]] = []
        others: list[str] = []
        for job in jobs:
            if _speaks_for(asking, job["token"]):
                own.append(job)
            else:
                others.append(job["url"])
        return own, others

    def leased_to_others(self, urls: Sequence[str]) -> set[str]:
        """Return for which of these jobs somebody else may speak now, and not who asks."""
        asking = access()
        return self._tokens.leased_to_others(asking.token_id, urls) if asking.role == "worker" else set()

    def demand_lease(self, url: str, lease_token: str) -> None:
        """Raise StaleToken for a lease that was given to somebody else."""
        if not self.owns(lease_token):
            raise StaleToken(_("The lease of {id} is not this worker's: nothing was changed").format(id=url), 409)


def _speaks_for(asking: Access, lease_token: str) -> bool:
    return asking.role != "worker" or owner_of(lease_token) == asking.token_id
