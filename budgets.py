"""Who may ask the site how often: the requests that an address or an account has are shared among its workers. Pure.

An address, and an account, is a group with a budget: requests a second that all its workers together may make. Each
gets what it wants up to a level that is the same for all, so that what some do not need is there for those who do. A
little is held back for whoever comes next. What a worker was told counts until it is known to have heard of less, or
until it cannot be using it any more: so the sum is never above the budget, whoever comes, goes or is cut off meanwhile.

Where the site refuses one of a group, all of it are parked. The codes are those of bilibili-API-collect
(docs/misc/errcode.md): -412 is said of an address, the others of whoever asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from i18n import _
from model import Budget

ADDRESS, LINE, ACCOUNT = "address", "line", "account"
LOCAL = "local"
"""The one address of all machines that reach the server from a private one: they may well share a line to the site."""

_LOCAL_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
_SITE_BITS = 64
"""Of an IPv6 address, what a line has: a machine may have another address in it for each connection."""
_OF_THE_ADDRESS = frozenset({"-412", "412", "429"})

LEAST_MEMBERS = 20
"""A trickle is a twentieth of a budget, and less where many share it: who needs nothing holds a quarter at most."""
TRICKLE_SHARE = 4

OPEN_SECONDS, OPEN_CAP_SECONDS = 30.0, 1800.0
OPENINGS = 7
"""So many doublings of the first lead beyond the second."""
JITTER = 0.25
PROBE_SECONDS = 30.0
"""A probe that has told nothing for so long is another worker's turn."""
PROBE_RATE = 0.5
FORGET_SECONDS = 600.0
"""A group that opens again so soon after it was closed is parked for twice as long as before."""
PARKED_LEAST_SECONDS = 10.0
"""A worker is told to be parked for at least so long: it hears with the next heartbeat that it is over."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker tells of how it asks the site, since the last time that it was heard. Rates are a second."""

    wanted: float = 0.0
    allowed: float = 0.0
    """What it obeys now."""
    answers: int = 0
    """How many requests the site has answered as usual."""
    refused: str = ""
    """What the site said when it wanted less, once."""
    refused_seconds: float = 0.0
    """For how long the site said that it wants less, where it did."""
    may_probe: bool = False
    """It would lease a job if it could."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """A group that is parked: until when, after how many refusals in a row, what the site said, who tries."""

    group: str
    is_probed: bool
    seconds: float
    failures: int
    kind: str
    prober: str


def read_told(site: Mapping[str, Any], may_probe: bool = False) -> Told:
    """Return what the part ``site`` of a heartbeat tells."""
    refused = site.get("refused", {"kind": "", "seconds": 0.0})
    return Told(
        wanted=site.get("wanted_per_second", 0.0),
        allowed=site.get("allowed_per_second", 0.0),
        answers=site.get("answers", 0),
        refused=refused["kind"],
        refused_seconds=refused.get("seconds", 0.0),
        may_probe=may_probe,
    )


# ------------------------------------------------------------------------------------------ groups


def address_group(address: str, line: str = "") -> str:
    """Return the group of those who share a worker's way to the site; it may name its line itself.

    Whoever comes from a private address is taken to share one line with all who do, unless it says which one it has:
    the server sees where a machine of a LAN or a VPN comes from, not by which way it reaches the site.
    """
    if line:
        return f"{LINE}:{line}"
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"{ADDRESS}:{LOCAL}"
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if any(found in network for network in _LOCAL_NETWORKS):
        return f"{ADDRESS}:{LOCAL}"
    if found.version == 6:
        return f"{ADDRESS}:{ipaddress.ip_network((found, _SITE_BITS), strict=False)}"
    return f"{ADDRESS}:{found}"


def groups_of(address: str, line: str = "", account: str = "") -> tuple[str, ...]:
    """Return the groups of a worker: its way to the site, and its account, a digest, if it has one."""
    return address_group(address, line), *([f"{ACCOUNT}:{account}"] if account else [])


def blamed(kind: str, groups: Sequence[str]) -> str:
    """Return which of a worker's groups the site has refused."""
    return groups[0] if kind in _OF_THE_ADDRESS else groups[-1]


# ------------------------------------------------------------------------------------------ shares


def trickle(budget: float, members: int) -> float:
    """Return what each member of a group has at least."""
    return budget / max(LEAST_MEMBERS, TRICKLE_SHARE * members)


def fair_level(budget: float, wanted: Iterable[float], members: int) -> float:
    """Return up to where each member of a group gets what it wants, so that all of them stay below the budget.

    ``wanted`` may be a sample of the members. What is held back is a trickle for one more.
    """
    sample = sorted(wanted)
    left = (budget - trickle(budget, members + 1)) * len(sample) / max(1, members, len(sample))
    least = trickle(budget, max(members, len(sample)))
    for number, one in enumerate(sample):
        share = left / (len(sample) - number)
        if max(one, least) >= share:
            return share
        left -= max(one, least)
    return budget


def shares(budget: float, wanted: Mapping[str, float]) -> dict[str, float]:
    """Return what each member of a group may ask in a second: what it wants, a trickle at least, the level at most."""
    level, least = fair_level(budget, wanted.values(), len(wanted)), trickle(budget, len(wanted))
    return {name: min(max(one, least), level) for name, one in wanted.items()}


# ------------------------------------------------------------------------------------------ breakers


def open_delays_seconds(draw: float) -> tuple[float, ...]:
    """Return for how long a group is parked after each refusal in a row: 30 s doubling to 30 min, up to 1.25 times."""
    jitter = 1 + JITTER * draw
    return tuple(min(OPEN_CAP_SECONDS, OPEN_SECONDS * 2.0**number * jitter) for number in range(OPENINGS))


def parked(breaker: Breaker, worker: str, holds_seconds: float) -> Budget | None:
    """Return what a breaker means for one worker of its group: parked, or the one that tries; None for nothing."""
    if breaker.is_probed and breaker.prober == worker:
        return Budget(PROBE_RATE, 0.0, holds_seconds, True, breaker.kind)
    return Budget(0.0, max(breaker.seconds, PARKED_LEAST_SECONDS), holds_seconds, False, breaker.kind)


def spoken_group(group: str) -> str:
    """Return what a group is called for people."""
    kind, _colon, name = group.partition(":")
    if name == LOCAL and kind == ADDRESS:
        return _("this network")
    sentence = {LINE: _("line {name}"), ACCOUNT: _("account {name}")}.get(kind, _("address {name}"))
    return sentence.format(name=name[:6] if kind == ACCOUNT else name)


def read_breaker(fields: Mapping[str, Any]) -> Breaker:
    """Return a breaker as the status has it."""
    return Breaker(
        str(fields.get("group", "")),
        fields.get("state") == "probed",
        float(fields.get("seconds") or 0),
        int(fields.get("failures") or 0),
        str(fields.get("kind", "")),
        str(fields.get("prober", "")),
    )


def spoken(breaker: Breaker) -> str:
    """Return one sentence on a breaker, for people."""
    group = spoken_group(breaker.group)
    if breaker.is_probed:
        sentence = _("{group}: {worker} tries whether the site answers again (it said {kind}); the others wait")
        return sentence.format(group=group, worker=breaker.prober, kind=breaker.kind)
    sentence = _("{group}: all its workers are parked, {seconds} s yet, because the site wants fewer requests ({kind})")
    return sentence.format(group=group, seconds=round(breaker.seconds), kind=breaker.kind)
