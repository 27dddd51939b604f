"""A lease request to several shards: in which order they are asked, and that a repeated one is answered the same.

Each step is one script in one shard; whoever dies between two of them leaves nothing that a repeated request, or the
end of a lease, does not put in order. What a request is answered stands once for ever in the shard that it asks first
(``settled:<request>``): who comes second takes that, and gives back what it was given beyond it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from store.data import answer_key, as_json, settled_key, shard_of_id
from store.tokens import owned

Fields = list[Any]
"""Of a lease as lua/ gives it: id, token, origin, attempt, ledger."""
Run = Callable[[str, Sequence[str], Sequence[str | int], int], Any]
"""Runs a script: its name, its own keys, its arguments, and the shard."""

BEGUN, NEW = "begun", "new"
SUSPECT_WAITS = 2


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker asks for; ``haves`` are ids that it has chunks of, with how many bytes."""

    identity: str
    worker: str
    instance: str
    count: int
    haves: Mapping[str, int]
    lease_ms: int
    affinity_ms: int
    shards: int
    owner: str = ""

    def order(self) -> list[int]:
        """Return all shards in the order in which they are asked: another one first from request to request."""
        first = zlib.crc32(f"{self.worker} {self.identity}".encode()) % self.shards
        return [*range(first, self.shards), *range(first)]

    def haves_in(self, shard: int) -> dict[str, int]:
        """Return what of ``haves`` belongs to a shard."""
        return {url: size for url, size in self.haves.items() if shard_of_id(url, self.shards) == shard}


@dataclass(slots=True)
class ShardLeases:
    """Answers one request; ``draw`` makes random ids of so many bytes."""

    run: Run
    draw: Callable[[int], str]
    request: Request
    found: list[Fields] = field(default_factory=list)
    order: list[int] = field(init=False)
    _is_over: bool = False
    """Whether the worker gets nothing more: it is alone with a suspect, or drains for one."""
    _is_answered: bool = False
    """Whether the first shard alone had enough, and keeps that as the answer."""

    def __post_init__(self) -> None:
        self.order = self.request.order()

    @property
    def _first(self) -> int:
        return self.order[0]

    @property
    def _is_full(self) -> bool:
        return self._is_over or len(self.found) >= self.request.count

    def lease(self) -> list[Fields]:
        """Return the fields of each lease that is given."""
        state = ""
        leases: list[Fields] = []
        if not self._useful_haves_elsewhere():
            state, leases = self._ask(self._first, "first")
        if state == "settled":
            return self._that_stand(leases)
        if state in ("", BEGUN, "drained") or (not self._is_full and any(map(self._peek, self.order[1:]))):
            return self._go_on()
        return self._settled() if self.found and not self._is_answered else self.found

    def _useful_haves_elsewhere(self) -> bool:
        shards = {shard_of_id(url, self.request.shards) for url in self.request.haves} - {self._first}
        return any(map(self._peek, sorted(shards)))

    def _go_on(self) -> list[Fields]:
        begun = self._settle(BEGUN)
        if begun not in (BEGUN, NEW):
            return self._give_back(json.loads(begun))
        if begun == BEGUN:  # somebody was here before, and may have died on the way
            for shard in self.order:
                self._ask(shard, "recall")
        with_haves = [shard for shard in self.order if self.request.haves_in(shard)]
        for shard in dict.fromkeys([*with_haves, *self.order]):
            if self._is_full:
                break
            self._ask(shard, "other")
        return self._settled() if self.found else []

    def _settled(self) -> list[Fields]:
        """Return the one answer of this request; what it was given beyond that goes back."""
        return self._give_back(json.loads(self._settle(as_json(self.found))))

    def _settle(self, answer: str) -> str:
        keys = [settled_key(self.request.identity, self._first)]
        return str(self.run("settle", keys, [self.request.worker, answer], self._first))

    def _give_back(self, settled: list[Fields]) -> list[Fields]:
        tokens = {lease[1] for lease in settled}
        for url, token, *_rest in self.found:
            if token not in tokens:
                shard = shard_of_id(url, self.request.shards)
                self.run("release", [answer_key(token, shard)], [url, token, 0], shard)
        if tokens <= {lease[1] for lease in self.found}:
            return settled
        return self._that_stand(settled)

    def _that_stand(self, settled: list[Fields]) -> list[Fields]:
        """Return those of the leases given before that are still valid, renewed."""
        valid: set[str] = set()
        self.found = []
        for shard in {shard_of_id(lease[0], self.request.shards) for lease in settled}:
            self._ask(shard, "recall")
        valid = {lease[1] for lease in self.found}
        return [lease for lease in settled if lease[1] in valid]

    # -------------------------------------------------------------------------------- one shard

    def _peek(self, shard: int) -> int:
        request = self.request
        haves = request.haves_in(shard)
        return int(self.run("peek", [], [request.worker, request.instance, request.lease_ms, *haves], shard))

    def _ask(self, shard: int, part: str) -> tuple[str, list[Fields]]:
        """Take what a shard gives; return its state, and the leases that were settled before."""
        state, leases = self._run_lease(shard, part)
        if state == "alone" and self._is_barred(shard, leases):
            self._is_over = True
        elif state == "alone":
            return self._ask(shard, part)
        elif state == "suspect":
            return self._ask_for_suspect(shard)
        elif state == "drains" and leases == "here":
            self._drain("drain", shard)
        elif state == "drains" and part == "first":
            return "drained", []
        elif state == "drains":
            return self._ask_who_drains(shard, part)
        elif state == "settled":
            return state, json.loads(leases)
        else:
            self._take(leases)
            self._is_answered = part == "first" and state == "given" and len(leases) == self.request.count
        return state, []

    def _run_lease(self, shard: int, part: str) -> tuple[str, Any]:
        request = self.request
        count = max(0, request.count - len(self.found))
        haves = request.haves_in(shard)
        keys = [answer_key(request.identity, shard)]
        if part == "first":
            keys.append(settled_key(request.identity, shard))
        arguments: list[str | int] = [count, request.worker, request.instance, request.lease_ms, request.affinity_ms]
        arguments += [self.draw(4), part, *(self._nonce() for _unused in range(count)), *haves, *haves.values()]
        state, leases, is_heard = self.run("lease", keys, arguments, shard)
        if is_heard and shard:
            self.run("hear", [], [request.worker], 0)
        return state, leases

    def _nonce(self) -> str:
        return owned(self.draw(8), self.request.owner)

    def _take(self, leases: list[Fields]) -> None:
        known = {lease[1] for lease in self.found}
        self.found += [lease for lease in leases if lease[1] not in known]

    # -------------------------------------------------------------------------------- suspects

    def _ask_for_suspect(self, shard: int) -> tuple[str, list[Fields]]:
        """Take the suspect that waits in a shard, if the worker holds nothing anywhere; else it may have to drain."""
        if mark := self._bar_everywhere(shard):
            state, leases = self._run_lease(shard, mark)
            if state == "given" and leases:
                self._take(leases)
                self._is_over = True
                return state, []
            self._unbar(self.order, mark)
        if self.run("drain", [], [self.request.worker, self.request.lease_ms, "choose"], shard):
            self._drain("drain", shard)
            return "drains", []
        return self._ask(shard, "ordinary")

    def _bar_everywhere(self, shard: int) -> str:
        """Return the mark under which the worker gets nothing in any shard; '' where it holds something."""
        name = self.draw(8)
        mark = str(self.run("bar", [], [self.request.worker, "", shard, name], shard))
        if not mark.endswith(f"~{name}"):
            return ""
        barred = [shard]
        for other in self._all_but(shard):
            standing = self._bar(other, mark)
            if standing != mark:
                self._unbar(barred, mark)
                return ""
            barred.append(other)
        return mark

    def _bar(self, shard: int, mark: str) -> str:
        standing = str(self.run("bar", [], [self.request.worker, mark], shard))
        if standing not in ("", mark) and not self._is_barred(shard, standing):
            standing = str(self.run("bar", [], [self.request.worker, mark], shard))
        return standing

    def _is_barred(self, shard: int, mark: str) -> bool:
        """Tell whether what bars the worker stands in the shard that it names; where not, it is taken away."""
        if not mark.startswith("~"):
            return True
        owner = int(mark.split("~")[1])
        standing = self.run("barred", [], [self.request.worker], owner)
        # A job: the worker has it. Another mark: an earlier one has ended, and the worker asks for a suspect again.
        if standing and (standing == mark or not standing.startswith("~")):
            return True
        self._unbar([shard], mark)
        return False

    def _unbar(self, shards: Sequence[int], mark: str) -> None:
        for shard in shards:
            self.run("unbar", [], [self.request.worker, mark], shard)

    def _drain(self, what: str, chosen_in: int) -> None:
        """Let the other shards give the worker nothing new either, for a while."""
        self._is_over = True
        for shard in self._all_but(chosen_in):
            self.run("drain", [], [self.request.worker, self.request.lease_ms, what], shard)

    def _ask_who_drains(self, shard: int, part: str) -> tuple[str, list[Fields]]:
        """Of a worker that another shard has made drain: look whether the suspect still waits there."""
        for other in self._all_but(shard):
            if self._peek(other) == SUSPECT_WAITS:
                return self._ask_for_suspect(other)
        self._drain("stop", -1)
        self._is_over = False
        return self._ask(shard, part)

    def _all_but(self, shard: int) -> Iterator[int]:
        return (other for other in self.order if other != shard)
