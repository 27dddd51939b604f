"""Tokens that were made for machines and people: who may ask the server for what, as it is kept in Redis.

A token is told once, when it is made; what is kept is its SHA-256, which is no way back to 256 random bits. A lease
carries the id of the token that it was given to behind its own random part (``owned``), so that whose it is needs no
look at Redis, and cannot be forged: another text is no lease. Like data.py this does not know redis.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shapes import line, number, one_of, record
from store.data import answer_key, as_dict, as_json, key, shard_of_id

ROLES = ("submit", "worker", "admin")
TOKEN_BYTES = 32
ID_CHARACTERS = 16
JOIN_SECONDS = 600
JOIN_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no letter in it is taken for another one."""
JOIN_CHARACTERS = 8
NAMES_AT_MOST = 1000
"""So many workers may share a token; one that was stolen fills no memory with names."""
REVOKED_MS = 15_000
"""For longer than a server may believe what it knows of a token; leases that were given meanwhile come back too."""
SCANNED = 500

_KEPT = record(
    {"role": one_of(*ROLES), "name": line(64), "made_at": number(0, 2**40), "digest": line(64, 64)},
)
_MADE = re.compile(rf"bili_(?:{'|'.join(ROLES)})_[A-Za-z0-9_-]{{43}}".encode())


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; ``digest`` is its SHA-256, and ``id`` the beginning of that."""

    id: str
    role: str
    name: str
    made_at: float
    digest: str


class Queue(Protocol):
    """A queue, as far as tokens are kept beside it (``redisConnect.Queue``)."""

    @property
    def shards(self) -> int:
        """Over how many shards it is spread."""

    def look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what is put into a pipeline, whose keys are all of one shard."""

    def run(self, script: str, keys: Sequence[str], args: Iterable[str | int], shard: int = 0) -> Any:
        """Run a script of ``lua/``."""


# ------------------------------------------------------------------------------------------ texts


def new_token(role: str) -> str:
    """Return a token that nobody has had."""
    return f"bili_{role}_{secrets.token_urlsafe(TOKEN_BYTES)}"


def is_made(given: bytes) -> bool:
    """Tell whether a text has the form of a token that was made here, and need not be ``BILI_TOKEN``."""
    return _MADE.fullmatch(given) is not None


def digest_of(given: bytes) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(given).hexdigest()


def id_of(given: bytes) -> str:
    """Return the id of a token."""
    return digest_of(given)[:ID_CHARACTERS]


def owned(nonce: str, owner: str) -> str:
    """Return the random part of a lease's token, with the id of the token that asks for it."""
    return f"{nonce}-{owner}" if owner else nonce


def owner_of(lease_token: str) -> str:
    """Return the id of the token that a lease was given to; an empty text for that of ``BILI_TOKEN``."""
    return lease_token.partition("-")[2]


def new_join_code() -> str:
    """Return a code with which one machine may join, as it is shown: ABCD-EFGH."""
    code = "".join(secrets.choice(JOIN_LETTERS) for _unused in range(JOIN_CHARACTERS))
    return f"{code[:4]}-{code[4:]}"


def plain_join_code(text: str) -> str:
    """Return a code as it was meant, however it was typed."""
    return text.upper().translate(str.maketrans("OIL", "011", "- \t"))


# ------------------------------------------------------------------------------------------ what is kept


class Tokens:
    """The tokens of all servers on one queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def make(self, role: str, name: str, at: float) -> tuple[str, Token]:
        """Return a new token, and what is known of it."""
        token, record = _new(role, name, at)
        self._admit(record)
        return token, record

    def find(self, identity: str) -> Token | None:
        """Return what is known of a token, None where there is none of that id."""
        (text,) = self._queue.look(lambda pipe: pipe.hget(key("tokens"), identity))
        return _read(identity, text) if text else None

    def all(self) -> list[tuple[Token, list[str]]]:
        """Return all tokens, the oldest first, with the names of the workers that they are bound to."""
        found, bound = self._queue.look(lambda pipe: pipe.hgetall(key("tokens")).hgetall(key("bound")))
        names: dict[str, list[str]] = {}
        for name, identity in sorted(bound.items()):
            names.setdefault(identity, []).append(name)
        tokens = [_read(identity, text) for identity, text in found.items()]
        return [(one, names.get(one.id, [])) for one in sorted(tokens, key=lambda one: (one.made_at, one.id))]

    def bind(self, identity: str, worker: str, lease_ms: int) -> str:
        """Let a token's workers go by a name, if it is free; return ``bound``, or what it is instead.

        ``taken`` by another token, ``alive`` without one, ``many`` names already, ``gone`` is the token itself.
        """
        keys = [key("bound"), key("tokens")]
        has_more = "1" if any(self._holds(worker, shard) for shard in range(1, self._queue.shards)) else ""
        return str(self._queue.run("bind", keys, [identity, worker, lease_ms, NAMES_AT_MOST, has_more]))

    def _holds(self, worker: str, shard: int) -> bool:
        return bool(self._queue.look(lambda pipe: pipe.hexists(key("holds", shard), worker))[0])

    def revoke(self, identity: str) -> tuple[Token | None, int]:
        """Let a token be none any more; return what it was, and how many leases came back.

        A server that has not heard of it yet may give leases to it for some seconds: ``finish_revoked`` has those.
        """
        record = self.find(identity)
        if record is None:
            return None, 0
        self._queue.run("dismiss", [key("tokens"), key("bound"), key("revoked")], [identity])
        return record, self._return_leases(identity)

    def finish_revoked(self) -> int:
        """Give back what tokens that were revoked just now hold all the same; return how many jobs.

        To be called each second: it ends what a server that died on the way has begun, too.
        """
        revoked, (seconds, micros) = self._queue.look(
            lambda pipe: pipe.zrange(key("revoked"), 0, -1, withscores=True).time()
        )
        at_ms, returned = seconds * 1000 + micros // 1000, 0
        for identity, since_ms in revoked:
            returned += self._return_leases(identity)
            if abs(at_ms - since_ms) > REVOKED_MS:
                self._queue.look(lambda pipe, identity=identity: pipe.zrem(key("revoked"), identity))  # type: ignore[misc]
        return returned

    def leased_to_others(self, identity: str, urls: Sequence[str]) -> set[str]:
        """Return which of these jobs are leased now, and not to this token."""
        parts: dict[int, list[str]] = {}
        for url in urls:
            parts.setdefault(shard_of_id(url, self._queue.shards), []).append(url)
        found: set[str] = set()
        for shard, part in parts.items():
            (tokens,) = self._queue.look(lambda pipe, shard=shard, part=part: pipe.hmget(key("token", shard), part))  # type: ignore[misc]
            found |= {url for url, token in zip(part, tokens, strict=True) if token and owner_of(token) != identity}
        return found

    def _return_leases(self, identity: str) -> int:
        """Give all jobs back that are leased to a token, as its workers would do themselves."""
        return sum(self._return_leases_in(shard, identity) for shard in range(self._queue.shards))

    def _return_leases_in(self, shard: int, identity: str) -> int:
        returned, cursor = 0, 0
        while True:
            ((cursor, found),) = self._queue.look(
                lambda pipe, cursor=cursor: pipe.hscan(key("token", shard), cursor, count=SCANNED)  # type: ignore[misc]
            )
            for url, token in found.items():
                if owner_of(token) == identity:
                    released = self._queue.run("release", [answer_key(token, shard)], [url, token, 0], shard)
                    returned += released is not None
            if not int(cursor):
                return returned

    # -------------------------------------------------------------------------------- joining

    def offer_join(self) -> str:
        """Return a new code, with which one machine may join within ten minutes."""
        code = new_join_code()
        place = _join_key(code)
        self._queue.look(lambda pipe: pipe.set(place, "1", ex=JOIN_SECONDS))
        return code

    def join(self, code: str, worker: str, at: float) -> tuple[str, Token] | str:
        """Return a worker's own token for a code, once; ``wrong`` for a code that is none, ``taken`` for a name."""
        token, record = _new("worker", worker, at)
        state = self._admit(record, _join_key(code))
        return (token, record) if state == "made" else state

    def _admit(self, record: Token, join_key: str = "") -> str:
        told = {"role": record.role, "name": record.name, "made_at": record.made_at, "digest": record.digest}
        keys = [key("tokens"), key("bound"), *([join_key] if join_key else [])]
        return str(self._queue.run("admit", keys, [record.id, as_json(told), record.name if join_key else ""]))

    # -------------------------------------------------------------------------------- guessing

    def note_wrong(self, whose: str, mark: str, limit: int, window_seconds: float) -> float:
        """Note something wrong that an address said; return for how long it has to wait where it was too much.

        The servers count together: ``whose`` names the address, ``mark`` what it said.
        """
        return self._ask_wrong(whose, mark, limit, window_seconds, "note")

    def wait_seconds(self, whose: str, mark: str, limit: int, window_seconds: float) -> float:
        """Return for how long an address has to wait before it says that again; nothing is noted."""
        return self._ask_wrong(whose, mark, limit, window_seconds, "look")

    def _ask_wrong(self, whose: str, mark: str, limit: int, window_seconds: float, what: str) -> float:
        args: list[str | int] = [mark, limit, round(window_seconds * 1000), what]
        return int(self._queue.run("wrong", [key(f"wrong:{whose}")], args)) / 1000


def _new(role: str, name: str, at: float) -> tuple[str, Token]:
    token = new_token(role)
    return token, Token(id_of(token.encode()), role, name, round(at, 3), digest_of(token.encode()))


def _read(identity: str, text: str) -> Token:
    """Return what is kept of a token; a damaged record opens nothing, and is listed, so that it can be revoked."""
    try:
        return Token(identity, **_KEPT(as_dict(text)))
    except (ValueError, RecursionError):
        return Token(identity, "", "", 0.0, "")


def _join_key(code: str) -> str:
    return key(f"join:{digest_of(plain_join_code(code).encode('utf-8', 'replace'))}")
