"""Faults that can be switched on: one table of what there is, one of what is on now."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

CDN_FAULTS: Mapping[str, str] = {
    "refuse": "the connection is reset as soon as it is accepted",
    "drop": "the connection is closed before any header",
    "cut": "the connection is closed after `bytes` of the body (reset with `abort`)",
    "slow": "the body comes at `bytes_per_second`",
    "stall": "after `bytes` of the body nothing more comes; before the headers with `bytes` -1",
    "status": "answers `status`, with Retry-After where `retry_after_seconds` is set",
    "redirect": "answers 302 to `location`",
    "ignore_range": "answers 200 with the whole file",
    "wrong_range": "206 with the range that starts `bytes` (or 1) later",
    "html": "206 with the range asked for in the header and an HTML page in the body",
    "gzip": "206 with the body gzip-encoded",
    "flip": "206 in which the first `bytes` (or all) of the body have every bit flipped",
    "total_changed": "206 with another complete length and another ETag",
    "expire": "403 for every URL that was signed before this fault was set",
    "no_length": "the body has no Content-Length: chunked, or ended by the end of the connection with `abort`",
    "unknown_total": "206 with `bytes a-b/*`",
}
CONNECTION_FAULTS = frozenset({"refuse"})
"""CDN faults that meet new connections; all others meet requests."""
API_FAULTS: Mapping[str, str] = {
    "drop": "the connection is closed before any header",
    "status": "answers HTTP `status` (412 with the site's own page), with Retry-After where set",
    "risk_control": "answers code -352",
    "voucher": "answers code 0 with nothing but a v_voucher",
    "answer": "answers `code` with `message`",
    "invalid_json": "answers JSON that breaks off",
    "deep_json": "answers 200,000 nested arrays",
    "huge": "answers a gzip body that unpacks to `bytes` (or 64 MiB) of blanks",
    "timeout": "never answers",
    "lose_item": "the list in the answer lacks its first entry",
    "lose_items": "the list in the answer is empty",
}
LISTING_FAULTS = frozenset({"lose_item", "lose_items"})
"""API faults that spoil an answer; all others come in place of one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that is on. ``path`` is a pattern (``*`` and ``?``) of the request's path: that of a stream, or
    of a route below ``/api``, ``/web`` or ``/short``.

    ``mirror`` counts CDN hosts from 0, None is all of them. ``count`` is how many requests it meets, None all, after
    those that ``skip`` lets pass. With ``once_per_range`` each range (by its end, so that a resumed one is the same) is
    met only once.
    """

    kind: str
    scope: str = "cdn"
    mirror: int | None = None
    path: str = "*"
    count: int | None = None
    skip: int = 0
    once_per_range: bool = False
    bytes: int = 0
    bytes_per_second: float = 0.0
    status: int = 503
    retry_after_seconds: int | None = None
    location: str = ""
    abort: bool = False
    code: int = -509
    message: str = "超出限制"
    serial: int = 0
    """Filled in for ``expire``: URLs with a serial up to this one are dead."""

    @classmethod
    def parse(cls, content: object) -> Fault:
        """Return the fault that a JSON object describes; raise ValueError naming what is wrong."""
        if not isinstance(content, dict):
            raise ValueError("a fault is a JSON object")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ValueError(f"unknown keys of a fault: {', '.join(unknown)}")
        for item in fields(cls):
            if item.name in content and not _fits(content[item.name], item.default):
                raise ValueError(f"a fault has no {item.name} {content[item.name]!r}")
        fault = cls(**{"kind": "", **content})
        kinds = {"cdn": CDN_FAULTS, "api": API_FAULTS}.get(fault.scope)
        if kinds is None:
            raise ValueError("the scope of a fault is cdn or api")
        if fault.kind not in kinds:
            raise ValueError(f"no {fault.scope} fault {fault.kind!r}; there are: {', '.join(kinds)}")
        return fault


def _fits(value: object, default: object) -> bool:
    """Tell whether a value has the type of a field: that of its default, a number where that is None."""
    if isinstance(default, float) or default is None:
        return type(value) in (int, float) or (default is None and value is None)
    return type(value) is (type(default) if isinstance(default, int | str) else str)


class FaultTable:
    """The faults that are on, in the order in which they were set, each with the requests it has met."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._met: list[int] = []
        self._passed: list[int] = []
        self._ranges: list[set[tuple[str, int]]] = []

    def add(self, fault: Fault, serial: int) -> None:
        """Switch a fault on; ``serial`` is that of the newest signed URL."""
        self._faults.append(replace(fault, serial=serial) if fault.kind == "expire" else fault)
        self._met.append(0)
        self._passed.append(0)
        self._ranges.append(set())

    def clear(self) -> None:
        """Switch every fault off."""
        self.__init__()  # type: ignore[misc]

    def listing(self) -> list[dict[str, Any]]:
        """Return what is on, with the number of requests each fault has met."""
        pairs = zip(self._faults, self._met, strict=True)
        return [{"kind": fault.kind, "scope": fault.scope, "path": fault.path, "met": met} for fault, met in pairs]

    def take(
        self, scope: str, path: str, mirror: int = 0, range_stop: int = 0, kinds: frozenset[str] | None = None
    ) -> dict[str, Fault]:
        """Return the faults that this request meets, by kind, and count them as met.

        With ``kinds`` only those are looked at: a connection can be refused before there is a request.
        """
        found: dict[str, Fault] = {}
        for index, fault in enumerate(self._faults):
            if fault.scope != scope or fault.kind in found or (kinds is not None and fault.kind not in kinds):
                continue
            if self._meets(index, path, mirror, range_stop):
                found[fault.kind] = fault
                self._met[index] += 1
                self._ranges[index].add((path, range_stop))
        return found

    def _meets(self, index: int, path: str, mirror: int, range_stop: int) -> bool:
        fault = self._faults[index]
        if fault.mirror not in (None, mirror) or not fnmatch.fnmatchcase(path, fault.path):
            return False
        if fault.count is not None and self._met[index] >= fault.count:
            return False
        if self._passed[index] < fault.skip:
            self._passed[index] += 1
            return False
        return not (fault.once_per_range and (path, range_stop) in self._ranges[index])
