"""The mirrors of a stream: who may be asked, how each one fares, and whom to ask next.

What is known of a host, and of each signed address, is shared by all streams of a worker (`Health`) and outlives the
process. A mirror counts by what a range costs there, the wait for its first byte and its speed, as far as that is
known; those that nobody knows are tried with one request at a time beside those that work.
"""

from __future__ import annotations

import ipaddress
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import xxhash

from i18n import _
from model import KIB, MIB
from retry import Draw, full_jitter_seconds
from transfer.peers import is_public
from transfer.range_reply import Meaning, Verdict

MOST_HOSTS = 1000
"""So many hosts are remembered; the peer-to-peer network has a new name for every home."""
MOST_URLS = 1000
KNOWN_SECONDS = 1800.0
"""After so long what was measured says little: routes change within the hour."""
FAILED_LATELY_SECONDS = 600.0
NEW_SHARE = 0.3
"""How much a new measurement moves the estimate."""
TYPICAL_RANGE_BYTES = 4 * MIB
ROOM_GROWS_SECONDS = 5.0
"""A host that pushed back is trusted with one more connection after each such time."""


# ------------------------------------------------------------------------------------------ who may be asked


@dataclass(frozen=True, slots=True)
class MediaHosts:
    """Tells whether media may be fetched from a URL, and from an address that its host turns out to have.

    It must be https at one of ``suffixes`` or below it, or, over http as well, at a host of ``extra``: a suffix,
    or ``host:port``. An IP address must be named in ``extra`` exactly, and a name that is not in there must lead
    to public addresses; so nobody who can write a playinfo, or answer for a name, can make this machine ask its own
    network.
    """

    suffixes: tuple[str, ...]
    extra: tuple[str, ...]

    def __call__(self, url: str) -> bool:
        """Tell whether a URL may be asked."""
        parts = _split(url)
        if parts is None:
            return False
        host, port = _host_and_port(parts)
        return self._is_named(host, port) or (parts.scheme == "https" and _is_below(host, self.suffixes))

    def may_be_at(self, host: str, port: int, address: str) -> bool:
        """Tell whether a host may be connected to at an address that its name leads to."""
        return is_public(address) or self._is_named(host.rstrip("."), port)

    def _is_named(self, host: str, port: int) -> bool:
        return _is_below(host, self.extra) or f"{host}:{port}" in self.extra or f"[{host}]:{port}" in self.extra


def media_allowed(suffixes: tuple[str, ...], extra: tuple[str, ...]) -> MediaHosts:
    """Return the test whether media may be fetched from somewhere; ``extra`` are hosts that a setting names."""
    return MediaHosts(suffixes, extra)


_UNAMBIGUOUS = re.compile(r"[!-\[\]-~]+")
"""Printable ASCII without the backslash."""


def _split(url: str) -> SplitResult | None:
    """Return the parts of a web address; None for what a parser may read in two ways, or with credentials in it."""
    if not _UNAMBIGUOUS.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.port == 0:
            return None
    except ValueError:
        return None
    return parts


def _host_and_port(parts: SplitResult) -> tuple[str, int]:
    return (parts.hostname or "").rstrip("."), parts.port or {"http": 80, "https": 443}[parts.scheme]


def _is_below(host: str, suffixes: Iterable[str]) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return any(host == suffix or host.endswith("." + suffix.lstrip(".")) for suffix in suffixes)
    return host in suffixes


_PCDN = ("szbdyd.com", "mountaintoys.cn", "ahdohpiechei.com", "nexusedgeio.com")


def is_pcdn(url: str) -> bool:
    """Tell a host of the peer-to-peer network from a real mirror: other names, or a port of its own.

    They serve from the homes of other users, and are slow or gone more often than the others.
    """
    parts = _split(url)
    if parts is None:
        return False
    host, port = _host_and_port(parts)
    return port not in (80, 443) or "mcdn" in host or "pcdn" in host or _is_below(host, _PCDN)


# ------------------------------------------------------------------------------------------ how they fare


@dataclass(slots=True)
class Cooldown:
    """How long a URL or a host is left alone: longer from failure to failure, until it works."""

    failures: int = 0
    since: float = float("-inf")
    until: float = float("-inf")

    def fail(self, began: float, now: float, wait_seconds: Callable[[int], float]) -> bool:
        """Cool down after a request that began then; of requests that ran side by side only one failure counts."""
        if began < self.since:
            return False
        self.failures += 1
        self.since, self.until = now, max(self.until, now + wait_seconds(self.failures))
        return True

    def recent_failures(self, now: float) -> int:
        """Return the failures in a row, if the last wait was not over long ago."""
        return self.failures if now - self.until <= FAILED_LATELY_SECONDS else 0

    def forgive(self) -> None:
        """It works: ask again at once, and wait shortly after the next failure."""
        self.failures, self.until = 0, float("-inf")


@dataclass(slots=True)
class Estimate:
    """What was measured, smoothed: 0 where nothing was. ``at`` is when, on the clock of the caller."""

    bytes_per_second: float = 0.0
    """Of one connection."""
    first_byte_seconds: float = 0.0
    at: float = float("-inf")

    def saw_speed(self, bytes_per_second: float, now: float) -> None:
        """Take in how fast a body came."""
        self.bytes_per_second = self._moved(self.bytes_per_second, max(1.0, bytes_per_second), now)

    def saw_first_byte(self, seconds: float, now: float) -> None:
        """Take in how long a reply kept us waiting; also one that had not come after so long."""
        self.first_byte_seconds = self._moved(self.first_byte_seconds, max(1e-4, seconds), now)

    def _moved(self, before: float, seen: float, now: float) -> float:
        is_old = now - self.at > KNOWN_SECONDS
        self.at = now
        return seen if is_old or not before else before + NEW_SHARE * (seen - before)

    def is_known(self, now: float) -> bool:
        """Tell whether there is a speed to count on."""
        return self.bytes_per_second > 0 and now - self.at <= KNOWN_SECONDS


@dataclass(slots=True)
class Host:
    """How a host fares: shared by all addresses on it. ``active`` counts the open requests."""

    cooldown: Cooldown = field(default_factory=Cooldown)
    estimate: Estimate = field(default_factory=Estimate)
    active: int = 0
    is_late: bool = False
    """The last request was given up before its first byte came."""
    _room: float = math.inf
    _crowded_at: float = float("-inf")

    def has_room(self, now: float) -> bool:
        """Tell whether the host, if it ever pushed back, is to be trusted with one more connection."""
        return self.active < self.room(now)

    def room(self, now: float) -> float:
        """Return how many connections the host bears."""
        return self._room + (now - self._crowded_at) / ROOM_GROWS_SECONDS if self._room < math.inf else math.inf

    def push_back(self, began: float, now: float) -> None:
        """Note that it refused a request, which began then, beside others: half of them at most, then slowly more."""
        if began >= self._crowded_at:  # those that ran side by side are refused side by side: one push, not several
            self._room, self._crowded_at = max(1.0, self.active / 2), now


@dataclass(slots=True)
class Address:
    """How one signed address fares: its host may be well while its signature is refused everywhere."""

    cooldown: Cooldown = field(default_factory=Cooldown)
    estimate: Estimate = field(default_factory=Estimate)


class Health:
    """What a worker knows of hosts and signed addresses; the least used are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.hosts: dict[str, Host] = {}
        self.urls: dict[str, Address] = {}

    def host(self, name: str) -> Host:
        """Return what is known of a host. Those that have to cool down, or serve, stay known."""
        found = self.hosts.pop(name, None) or Host()
        self.hosts[name] = found
        if (surplus := len(self.hosts) - MOST_HOSTS) > 0:
            now = self._clock()
            idle = [name for name, host in self.hosts.items() if host.cooldown.until <= now and not host.active]
            for name in idle[:surplus]:
                del self.hosts[name]
        return found

    def url(self, url: str) -> Address:
        """Return what is known of an address. It is kept by a digest: signatures are secrets."""
        key = xxhash.xxh3_64_hexdigest(url.encode())
        found = self.urls.pop(key, None) or Address()
        self.urls[key] = found
        while len(self.urls) > MOST_URLS:
            del self.urls[next(iter(self.urls))]
        return found

    # ---------------------------------------------------------------------------- over restarts

    def save(self, path: Path) -> None:
        """Write down what is known; raise OSError."""
        now = self._clock()
        content = {
            "format": 1,
            "at": time.time(),
            "hosts": {name: _as_record(host, now) for name, host in self.hosts.items() if _is_worth_it(host, now)},
            "urls": {key: _as_record(url, now) for key, url in self.urls.items() if _is_worth_it(url, now)},
        }
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(content), "utf-8")
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Take over what an earlier process knew. Whatever is wrong with the file, it is no reason not to start."""
        try:
            content = json.loads(path.read_text("utf-8"))
            age_seconds = max(0.0, time.time() - float(content["at"]))
            now = self._clock()
            hosts = {
                str(name): _from_record(Host(), record, age_seconds, now) for name, record in content["hosts"].items()
            }
            urls = {
                str(key): _from_record(Address(), record, age_seconds, now) for key, record in content["urls"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        self.hosts, self.urls = hosts, urls


def _is_worth_it(known: Host | Address, now: float) -> bool:
    return known.estimate.is_known(now) or known.estimate.first_byte_seconds > 0 or known.cooldown.failures > 0


def _as_record(known: Host | Address, now: float) -> dict[str, float]:
    estimate, cooldown = known.estimate, known.cooldown
    return {
        "bytes_per_second": round(estimate.bytes_per_second),
        "first_byte_seconds": round(estimate.first_byte_seconds, 4),
        "age_seconds": round(min(now - estimate.at, 1e9)),
        "failures": cooldown.failures,
        "wait_seconds": round(max(0.0, cooldown.until - now), 1),
    }


def _from_record(known: Any, record: Mapping[str, float], age_seconds: float, now: float) -> Any:
    known.estimate = Estimate(
        float(record["bytes_per_second"]),
        float(record["first_byte_seconds"]),
        now - age_seconds - float(record["age_seconds"]),
    )
    if (wait_seconds := float(record["wait_seconds"]) - age_seconds) > 0:
        known.cooldown = Cooldown(int(record["failures"]), now, now + wait_seconds)
    return known


# ------------------------------------------------------------------------------------------ the mirrors of a stream


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often to try; tests are less patient than users."""

    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    """Without a byte for so long, also before the first one, a reply is dead."""
    late_seconds: float = 1.0
    """So long the first byte is waited for where another mirror may be quicker; longer where it is known to be late."""
    slow_bytes_per_second: float = 8.0 * KIB
    slow_window_seconds: float = 10.0
    """Slower than this over such a window, a mirror is left, even the only one."""
    behind_factor: float = 4.0
    behind_seconds: float = 1.0
    """A mirror is left that is so many times slower than another, over so long a time."""
    watch_seconds: float = 0.1
    """Between two looks at the requests under way."""
    split_seconds: float = 0.5
    """The rest of a chunk is worth a second request where that saves so much time."""
    waste_share: float = 0.02
    """Of a stream, what may be received in vain because chunks were split."""
    backoff_seconds: float = 0.5
    backoff_cap_seconds: float = 30.0
    longest_wait_seconds: float = 120.0
    """When every mirror wants a longer wait than this, the job goes back to the queue for it."""
    fruitless_rounds: int = 5
    """So often every mirror is tried without bytes, or with too few of them to be worth the time."""
    refreshes: int = 2
    """So often new URLs are asked for without a finished chunk in between."""
    restarts: int = 2
    """So often a download is begun anew because the mirrors changed their minds about the stream."""


@dataclass(slots=True, eq=False)
class Mirror:
    """One URL of the stream. ``lost`` says why it is asked no more, None as long as it is.

    ``fruitless`` counts its failures since the stream last made progress, ``active`` its open requests.
    """

    url: str = field(repr=False)
    name: str
    """Of its host, with the port if there is one, for people."""
    pcdn: bool
    own: Address
    host: Host
    lost: Meaning | None = None
    cause: str = ""
    fruitless: int = 0
    active: int = 0
    has_served: bool = False

    @property
    def ready_at(self) -> float:
        """When it may be asked again. What it served counts for more than how its host fared with other files."""
        own = self.own.cooldown.until
        return own if self.has_served else max(own, self.host.cooldown.until)

    def begin(self) -> None:
        """Count a request that is sent."""
        self.active += 1
        self.host.active += 1

    def end(self) -> None:
        """Count a request that ended, however it did."""
        self.active -= 1
        self.host.active -= 1

    def saw_first_byte(self, seconds: float, now: float) -> None:
        """Take in how long the head of a reply took."""
        self.host.is_late = False
        for estimate in (self.own.estimate, self.host.estimate):
            estimate.saw_first_byte(seconds, now)

    def saw_speed(self, bytes_per_second: float, now: float) -> None:
        """Take in how fast one of its bodies came."""
        for estimate in (self.own.estimate, self.host.estimate):
            estimate.saw_speed(bytes_per_second, now)

    def was_late(self, seconds: float, now: float) -> None:
        """Note that it was left before its first byte; only a reply takes that back."""
        self.host.is_late = True
        for estimate in (self.own.estimate, self.host.estimate):
            estimate.saw_first_byte(max(seconds, estimate.first_byte_seconds), now)

    def speed(self, now: float) -> float:
        """Return the bytes a second of one connection to it, 0 where nobody knows."""
        return next((known.bytes_per_second for known in self._estimates if known.is_known(now)), 0.0)

    @property
    def first_byte_seconds(self) -> float:
        """How long it takes to answer, 0 where nobody knows."""
        return next((known.first_byte_seconds for known in self._estimates if known.first_byte_seconds), 0.0)

    @property
    def _estimates(self) -> tuple[Estimate, Estimate]:
        return self.own.estimate, self.host.estimate

    def cost_seconds(self, now: float) -> float:
        """Return what a range of a usual size costs there, infinite where nobody knows."""
        speed = self.speed(now)
        return self.first_byte_seconds + TYPICAL_RANGE_BYTES / speed if speed else math.inf

    def preference(self, now: float, best_seconds: float) -> tuple[bool, bool, int, int, int]:
        """Return what makes another mirror the better choice.

        Being far behind the best, PCDN, failures lately, the cost, open requests, in this order. Those whose costs are
        within a factor of two share the work. One that nobody knows gets a single request to be known by, where others
        are known.
        """
        cost = self.cost_seconds(now)
        if cost < math.inf:
            rank = int(math.log2(max(1.0, cost / best_seconds)))
        else:
            rank = 0 if best_seconds == math.inf or not self.active else 1
        return (rank > 1, self.pcdn, self.own.cooldown.recent_failures(now), rank, self.active)


class Mirrors:
    """The mirrors of one stream: which one to ask, and when to give up."""

    def __init__(
        self,
        health: Health,
        urls: Iterable[str],
        patience: Patience = Patience(),
        draw: Draw = random.random,
        untrusted: frozenset[str] = frozenset(),
    ) -> None:
        self._patience = patience
        self._draw = draw
        self.all = [self._mirror(health, url) for url in dict.fromkeys(urls)]
        self.untrusted = untrusted
        self.changed_bytes: int | None = None
        for mirror in self.all:
            if mirror.name in untrusted:
                mirror.lost, mirror.cause = Meaning.WRONG, _("its certificate is not valid")

    @staticmethod
    def _mirror(health: Health, url: str) -> Mirror:
        name = urlsplit(url).netloc.rpartition("@")[2]
        return Mirror(url, name, is_pcdn(url), health.url(url), health.host(name))

    @property
    def usable(self) -> list[Mirror]:
        """The mirrors that are still asked."""
        return [mirror for mirror in self.all if mirror.lost is None]

    @property
    def losses(self) -> set[Meaning]:
        """Why mirrors are asked no more."""
        return {mirror.lost for mirror in self.all if mirror.lost is not None}

    def ready(self, now: float) -> list[Mirror]:
        """Return the mirrors that may be asked at once."""
        return [mirror for mirror in self.usable if mirror.ready_at <= now and mirror.host.has_room(now)]

    def pick(self, now: float) -> Mirror | None:
        """Return the best mirror that is ready, None if all have to cool down."""
        ready = self.ready(now)
        best_seconds = min((mirror.cost_seconds(now) for mirror in ready), default=math.inf)
        return min(ready, key=lambda mirror: mirror.preference(now, best_seconds), default=None)

    def wait_seconds(self, now: float) -> float:
        """Return how long until a mirror is ready."""
        return max(0.0, min(mirror.ready_at for mirror in self.usable) - now)

    def late_after_seconds(self, mirror: Mirror, now: float) -> float:
        """Return how long to wait for a mirror's first byte before another one is asked instead: it may be for ever."""
        others = (other for other in self.ready(now) if other is not mirror)
        if any(not other.host.is_late and other.pcdn <= mirror.pcdn for other in others):
            return max(self._patience.late_seconds, 3 * mirror.first_byte_seconds)
        return math.inf

    def is_behind(self, mirror: Mirror, bytes_per_second: float, now: float) -> bool:
        """Tell whether another mirror that is ready is so much quicker that this one is not worth its connection."""
        enough = max(self._patience.behind_factor * bytes_per_second, self._patience.slow_bytes_per_second)
        return any(other is not mirror and other.speed(now) >= enough for other in self.ready(now))

    def gained(self) -> None:
        """Note that enough bytes are coming: whatever fails beside them, it is worth while to go on."""
        for mirror in self.all:
            mirror.fruitless = 0

    def worked(self, mirror: Mirror) -> None:
        """Note that a request was worth it: the mirror and its host need not cool down."""
        mirror.has_served = True
        mirror.own.cooldown.forgive()
        mirror.host.cooldown.forgive()

    def stumbled(self, mirror: Mirror, verdict: Verdict, began: float, now: float) -> None:
        """Note that a body broke off after a good piece: others come first now, but nobody need wait."""
        mirror.cause = verdict.cause
        mirror.own.cooldown.fail(began, now, lambda failures: 0.0)

    def failed(self, mirror: Mirror, verdict: Verdict, began: float, now: float) -> None:
        """Note that a request failed which began then."""
        mirror.cause = verdict.cause
        if verdict.meaning is not Meaning.BROKEN:
            self._lose(mirror, verdict)
            return
        if verdict.pushback:
            mirror.host.push_back(began, now)
            if mirror.host.active and not verdict.retry_after_seconds:
                return  # it serves others: fewer at once is what it wants, not silence

        def wait_seconds(failures: int) -> float:
            patience = self._patience
            # It took a whole window to find a mirror slow: that is wait enough, and it may be the user's line.
            failures = 1 if verdict.slow else failures
            jitter = full_jitter_seconds(failures, patience.backoff_seconds, patience.backoff_cap_seconds, self._draw)
            return max(jitter, verdict.retry_after_seconds)

        if mirror.own.cooldown.fail(began, now, wait_seconds):
            mirror.fruitless += 1
        if verdict.host_wide:
            mirror.host.cooldown.fail(began, now, wait_seconds)

    def _lose(self, mirror: Mirror, verdict: Verdict) -> None:
        mirror.lost = verdict.meaning
        if verdict.meaning is Meaning.CHANGED:
            self.changed_bytes = verdict.total_bytes
        if verdict.host_wide:
            self.untrusted |= {mirror.name}
            for other in self.all:
                if other.name == mirror.name and other.lost is None:
                    other.lost, other.cause = verdict.meaning, verdict.cause

    def are_hopeless(self) -> bool:
        """Tell whether every mirror that is left was tried again and again without progress from any."""
        return all(mirror.fruitless >= self._patience.fruitless_rounds for mirror in self.usable)

    def causes(self) -> str:
        """Return what is wrong with the mirrors, for the user: hosts and causes, never an address."""
        causes = dict.fromkeys(f"{mirror.name}: {mirror.cause}" for mirror in self.all if mirror.cause)
        return "; ".join(list(causes)[:4]) or _("it has no mirror")
