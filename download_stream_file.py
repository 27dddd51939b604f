"""Download one stream from its mirrors into a part file, chunk by chunk, several at a time.

The three parts: pure judgements (is this reply what was asked for, may this address be asked, when is a mirror
too slow), the mirrors with their cool-downs, and the download that a few equal workers carry out. A worker takes
the first missing chunk, asks the best mirror that is ready for exactly the missing bytes, writes what comes, and
gives the chunk back if it was cut short; so it makes no difference why it was: the next one goes on from the
last byte, at another mirror, after a pause, or in another process next week.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import aiohttp
import yarl

from config import USER_AGENT, Settings, tls_context
from errors import CircumstanceError, JobError, NoWayOut, TransferError
from i18n import _
from model import CHUNK_BYTES, KIB, MIB, StreamProgress, StreamSource
from parse_ import parse_content_range
from part_file import Identity, OpenChunk, PartFile, free_disk_bytes
from retry import full_jitter_seconds

MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MOST_HOSTS = 1000
"""So many hosts are remembered; the peer-to-peer network has a new name for every home."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often to try; tests are less patient than users."""

    connect_seconds: float = 10.0
    stall_seconds: float = 20.0
    """Without a byte for so long, also before the first one, a reply is dead."""
    slow_bytes_per_second: float = 8.0 * KIB
    slow_window_seconds: float = 10.0
    """Slower than this over such a window, a mirror is left."""
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
    streams_connections: int = 8
    """One stream has at most so many of the connections that all share."""


# ------------------------------------------------------------------------------------------ judging a reply


class Meaning(Enum):
    """What a reply or a failure means for the mirror it came from."""

    RANGE = "exactly the bytes that were asked for"
    WHOLE = "the stream from its first byte, in one piece"
    END = "there is nothing after the byte before"
    BROKEN = "it may work again in a moment"
    DEAD = "this signed URL will not work again"
    WRONG = "it does not have this stream"
    RANGELESS = "it cannot go on in the middle of a stream"
    CHANGED = "it has this stream in another size"


ACCEPTED = frozenset({Meaning.RANGE, Meaning.WHOLE, Meaning.END})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: ``[start, stop)`` of a stream of ``total_bytes``, None where that is not known.

    ``whole_is_fine`` where a reply with the whole stream could be used: nothing of it is on disk yet.
    """

    start: int
    stop: int
    total_bytes: int | None = None
    whole_is_fine: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply is worth. Its body goes up to ``stop``, None where only its end will tell.

    ``cause`` is for the user and holds no address; ``host_wide`` tells that other URLs of the host fare no better,
    ``slow`` that bytes came, but not enough to count for the mirror.
    """

    meaning: Meaning
    stop: int | None = None
    total_bytes: int | None = None
    cause: str = ""
    retry_after_seconds: float = 0.0
    host_wide: bool = False
    slow: bool = False


def judge(status: int, headers: Mapping[str, str], asked: Asked, now: float = 0.0) -> Verdict:
    """Return what a reply means; ``headers`` must ignore case, ``now`` is the Unix time for dates in them."""
    if status in (200, 206):
        return _judge_disguise(headers) or (_judge_range if status == 206 else _judge_whole)(headers, asked)
    if status == 416:
        return _judge_end(headers, asked)
    cause = _("status {status}").format(status=status)
    if status in (408, 425, 429) or status >= 500:
        wait = parse_retry_after(headers.get("Retry-After", ""), now)
        return Verdict(Meaning.BROKEN, cause=cause, retry_after_seconds=wait, host_wide=True)
    if 400 <= status < 500:
        return Verdict(Meaning.DEAD, cause=cause)
    return Verdict(Meaning.WRONG, cause=cause)


_DISGUISES = frozenset({"text/html", "text/xml", "application/xml", "application/json", "application/xhtml+xml"})


def _judge_disguise(headers: Mapping[str, str]) -> Verdict | None:
    """Reject what cannot be the bytes of a video, whatever the status says: error pages, compressed replies."""
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        return Verdict(Meaning.WRONG, cause=_("a reply with encoding {encoding}").format(encoding=encoding[:20]))
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in _DISGUISES or kind.startswith("multipart/"):
        return Verdict(Meaning.WRONG, cause=_("a reply of type {kind} instead of a video").format(kind=kind[:40]))
    return None


def _judge_range(headers: Mapping[str, str], asked: Asked) -> Verdict:
    got = parse_content_range(headers.get("Content-Range", ""))
    if got is None or got.start is None or got.stop is None or got.start != asked.start:
        return Verdict(Meaning.WRONG, cause=_("another range than was asked for"))
    if asked.total_bytes is not None and got.total_bytes not in (None, asked.total_bytes):
        return _changed(got.total_bytes)
    total_bytes = got.total_bytes if asked.total_bytes is None else asked.total_bytes
    # Where the end is not known, less than was asked for may be all there is.
    right_stop = min(asked.stop, got.stop if total_bytes is None else total_bytes)
    if got.stop != right_stop:
        return Verdict(Meaning.WRONG, cause=_("another range than was asked for"))
    length = _length(headers)
    if length is not None and length != got.stop - got.start:
        return Verdict(Meaning.WRONG, cause=_("a length that contradicts its range"))
    return Verdict(Meaning.RANGE, got.stop, total_bytes)


def _judge_whole(headers: Mapping[str, str], asked: Asked) -> Verdict:
    if not asked.whole_is_fine:
        return Verdict(Meaning.RANGELESS, cause=_("it ignores ranges"))
    length = _length(headers)
    if None not in (length, asked.total_bytes) and length != asked.total_bytes:
        return _changed(length)
    return Verdict(Meaning.WHOLE, length, length)


def _judge_end(headers: Mapping[str, str], asked: Asked) -> Verdict:
    got = parse_content_range(headers.get("Content-Range", ""))
    total_bytes = None if got is None else got.total_bytes
    ends_here = asked.start > 0 if total_bytes is None else asked.start == total_bytes
    if asked.total_bytes is None and ends_here:
        return Verdict(Meaning.END, asked.start, asked.start)
    if total_bytes is not None and total_bytes != asked.total_bytes:
        return _changed(total_bytes)
    return Verdict(Meaning.WRONG, cause=_("status {status}").format(status=416))


def _changed(total_bytes: int | None) -> Verdict:
    return Verdict(Meaning.CHANGED, total_bytes=total_bytes, cause=_("another size than before"))


def _length(headers: Mapping[str, str]) -> int | None:
    """Return the length of a body as its headers announce it; a chunked body's length is in its chunks."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and "Transfer-Encoding" not in headers else None


def parse_retry_after(value: str, now: float) -> float:
    """Return the seconds of a Retry-After header, which may be a date; 0 where it says nothing, a day at most."""
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), 86400.0)


def judge_failure(error: BaseException) -> Verdict:
    """Return what it means that a request or its body ended with this error.

    The words are our own: the texts of the library's errors show addresses, and signed ones are secrets.
    """
    if isinstance(error, _Refused):
        return error.verdict
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return Verdict(Meaning.WRONG, cause=_("its certificate is not valid"), host_wide=True)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return Verdict(Meaning.WRONG, cause=_("its address cannot be used"))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Verdict(Meaning.BROKEN, cause=_("its name is not known"), host_wide=True)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Verdict(Meaning.BROKEN, cause=_("no connection in time"), host_wide=True)
    if isinstance(error, TimeoutError):
        return Verdict(Meaning.BROKEN, cause=_("it went silent"))
    if isinstance(error, aiohttp.ClientOSError):
        problem = os.strerror(error.errno) if error.errno and error.errno > 0 else _("the connection broke")
        return Verdict(Meaning.BROKEN, cause=problem, host_wide=isinstance(error, aiohttp.ClientConnectorError))
    if isinstance(error, aiohttp.ClientPayloadError):
        return Verdict(Meaning.BROKEN, cause=_("the body was cut short"))
    if isinstance(error, aiohttp.ClientResponseError):
        return Verdict(Meaning.BROKEN, cause=_("a reply that is not HTTP"))
    return Verdict(Meaning.BROKEN, cause=_("the connection broke"))


def _judge_proxy(error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError) -> Verdict:
    """Return what a proxy's refusal means; raise NoWayOut where it is the proxy's, not the mirror's."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        raise NoWayOut(_("the proxy cannot be reached: see HTTPS_PROXY")) from error
    if error.status == 407:
        raise NoWayOut(_("the proxy wants a user and a password: see HTTPS_PROXY")) from error
    return Verdict(Meaning.BROKEN, cause=_("the proxy does not reach it"), host_wide=True)


class Pace:
    """Watch a body that comes: pure, the time is given. Silence is not its business, a timeout sees to that."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._least_bytes = patience.slow_bytes_per_second * patience.slow_window_seconds
        self._window_seconds = patience.slow_window_seconds
        self._since = now
        self._bytes = 0

    def is_too_slow(self, got_bytes: int, now: float) -> bool:
        """Count bytes; tell at the end of each window whether they were too few for it."""
        self._bytes += got_bytes
        if now - self._since < self._window_seconds:
            return False
        too_slow = self._bytes < self._least_bytes
        self._since, self._bytes = now, 0
        return too_slow

    def is_good(self, got_bytes: int, now: float) -> bool:
        """Count bytes; tell as soon as they are enough for a window, which begins anew then."""
        self._bytes += got_bytes
        good = self._bytes >= self._least_bytes
        if good or now - self._since >= self._window_seconds:
            self._since, self._bytes = now, 0
        return good


# ------------------------------------------------------------------------------------------ who may be asked


def media_allowed(suffixes: tuple[str, ...], extra: tuple[str, ...]) -> Callable[[str], bool]:
    """Return the test whether media may be fetched from a URL.

    It must be https at one of ``suffixes`` or below it, or, over http as well, at a host of ``extra``: a suffix,
    or ``host:port``. An IP address must be named in ``extra`` exactly; so nobody who can write a playinfo can make
    this machine ask its own network. A name that points there fails at its certificate.
    """

    def allowed(url: str) -> bool:
        parts = _split(url)
        if parts is None:
            return False
        host, port = _host_and_port(parts)
        if _is_below(host, extra) or f"{host}:{port}" in extra or f"[{host}]:{port}" in extra:
            return True
        return parts.scheme == "https" and _is_below(host, suffixes)

    return allowed


def _split(url: str) -> SplitResult | None:
    """Return the parts of a web address; None for what a parser may read in two ways, or with credentials in it."""
    if not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
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


# ------------------------------------------------------------------------------------------ what streams share


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a test replaces: clocks, chance, and the disk's size."""

    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    draw: Callable[[], float] = random.random
    free_bytes: Callable[[Path], int] = free_disk_bytes


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

    def forgive(self) -> None:
        """It works: ask again at once, and wait shortly after the next failure."""
        self.failures, self.until = 0, float("-inf")


class Wire:
    """What all streams of a worker share: connections, the pause switch, and what is known of the hosts."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        connections: int,
        allowed: Callable[[str], bool],
        running: asyncio.Event,
        patience: Patience = Patience(),
        surroundings: Surroundings = Surroundings(),
    ) -> None:
        self.session = session
        self.allowed = allowed
        self.running = running
        self.patience = patience
        self.surroundings = surroundings
        self.budget = asyncio.Semaphore(connections)  # it wakes waiters in their order, so streams share fairly
        self.hosts: dict[str, Cooldown] = {}

    def cooldown(self, host: str) -> Cooldown:
        """Return what is known of a host, which all streams share; of too many hosts the longest unused are forgotten.

        Those that have to cool down stay known, as long as they have to.
        """
        found = self.hosts.pop(host, None) or Cooldown()
        self.hosts[host] = found
        if (surplus := len(self.hosts) - MOST_HOSTS) > 0:
            now = self.surroundings.clock()
            for idle in [host for host, cooldown in self.hosts.items() if cooldown.until <= now][:surplus]:
                del self.hosts[idle]
        return found

    def secured(self, url: str) -> str:
        """Return the https address of a plain one that is allowed over https only; the site still gives out such."""
        if not url.startswith("http://") or self.allowed(url):
            return url
        https = "https" + url.removeprefix("http")
        return https if self.allowed(https) else url

    @asynccontextmanager
    async def request(self, url: str, asked: Asked) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for a range; redirects are followed by hand, because each new address must be allowed, too."""
        headers = {"Range": f"bytes={asked.start}-{asked.stop - 1}"}
        for _hop in range(MAX_REDIRECTS + 1):
            if not self.allowed(url):
                raise _Refused(Verdict(Meaning.WRONG, cause=_("not a host for media (see BILI_MEDIA_HOSTS)")))
            # encoded=True: the signature covers the query as it was written, it must not be written anew.
            target = yarl.URL(url, encoded=True)
            async with self.session.get(target, headers=headers, allow_redirects=False) as response:
                if response.status not in REDIRECTS:
                    yield response
                    return
                url = urljoin(url, response.headers.get("Location", ""))
        raise _Refused(Verdict(Meaning.WRONG, cause=_("it redirects again and again")))


async def _without_credentials(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    # trust_env means .netrc, too; a "default" entry there would go to every mirror.
    request.headers.pop("Authorization", None)
    return await send(request)


def make_media_session(
    settings: Settings, environ: Mapping[str, str] = os.environ, patience: Patience = Patience()
) -> aiohttp.ClientSession:
    """Return a session for media hosts: it has no cookies and no credentials, and takes the proxy of ``environ``."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls_context(environ)),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT, "Referer": settings.web_url + "/", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect_seconds, sock_read=patience.stall_seconds
        ),
        auto_decompress=False,
        trust_env=True,
        middlewares=(_without_credentials,),
        read_bufsize=MIB,  # large reads cost a third less processor time than the default's
    )


# ------------------------------------------------------------------------------------------ the mirrors of a stream


@dataclass(slots=True, eq=False)
class Mirror:
    """One URL of the stream. ``lost`` says why it is asked no more, None as long as it is.

    ``fruitless`` counts its failures since the stream last made progress, ``active`` its open requests.
    """

    url: str = field(repr=False)
    host: str
    pcdn: bool
    own: Cooldown
    of_host: Cooldown
    lost: Meaning | None = None
    cause: str = ""
    fruitless: int = 0
    active: int = 0
    has_served: bool = False

    @property
    def ready_at(self) -> float:
        """When it may be asked again. What it served counts for more than how its host fared with other files."""
        return self.own.until if self.has_served else max(self.own.until, self.of_host.until)

    @property
    def preference(self) -> tuple[bool, int, int]:
        """What makes another mirror the better choice: being PCDN, failures, open requests."""
        return (self.pcdn, self.own.failures, self.active)


class Mirrors:
    """The mirrors of one stream: which one to ask, and when to give up."""

    def __init__(self, wire: Wire, urls: Iterable[str], untrusted: frozenset[str] = frozenset()) -> None:
        self._patience = wire.patience
        self._draw = wire.surroundings.draw
        self.all = [self._mirror(wire, url) for url in dict.fromkeys(map(wire.secured, urls))]
        self.untrusted = untrusted
        self.changed_bytes: int | None = None
        for mirror in self.all:
            if mirror.host in untrusted:
                mirror.lost, mirror.cause = Meaning.WRONG, _("its certificate is not valid")

    @staticmethod
    def _mirror(wire: Wire, url: str) -> Mirror:
        host = urlsplit(url).netloc.rpartition("@")[2]
        return Mirror(url, host, is_pcdn(url), Cooldown(), wire.cooldown(host))

    @property
    def usable(self) -> list[Mirror]:
        """The mirrors that are still asked."""
        return [mirror for mirror in self.all if mirror.lost is None]

    @property
    def losses(self) -> set[Meaning]:
        """Why mirrors are asked no more."""
        return {mirror.lost for mirror in self.all if mirror.lost is not None}

    def pick(self, now: float) -> Mirror | None:
        """Return the best mirror that is ready, None if all have to cool down."""
        ready = [mirror for mirror in self.usable if mirror.ready_at <= now]
        return min(ready, key=lambda mirror: mirror.preference, default=None)

    def wait_seconds(self, now: float) -> float:
        """Return how long until a mirror is ready."""
        return max(0.0, min(mirror.ready_at for mirror in self.usable) - now)

    def gained(self) -> None:
        """Note that enough bytes are coming: whatever fails beside them, it is worth while to go on."""
        for mirror in self.all:
            mirror.fruitless = 0

    def worked(self, mirror: Mirror) -> None:
        """Note that a request was worth it: the mirror and its host need not cool down."""
        mirror.has_served = True
        mirror.own.forgive()
        mirror.of_host.forgive()

    def failed(self, mirror: Mirror, verdict: Verdict, began: float, now: float) -> None:
        """Note that a request failed which began then."""
        mirror.cause = verdict.cause
        if verdict.meaning is not Meaning.BROKEN:
            self._lose(mirror, verdict)
            return

        def wait_seconds(failures: int) -> float:
            patience = self._patience
            # It took a whole window to find a mirror slow: that is wait enough, and it may be the user's line.
            failures = 1 if verdict.slow else failures
            jitter = full_jitter_seconds(failures, patience.backoff_seconds, patience.backoff_cap_seconds, self._draw)
            return max(jitter, verdict.retry_after_seconds)

        if mirror.own.fail(began, now, wait_seconds):
            mirror.fruitless += 1
        if verdict.host_wide:
            mirror.of_host.fail(began, now, wait_seconds)

    def _lose(self, mirror: Mirror, verdict: Verdict) -> None:
        mirror.lost = verdict.meaning
        if verdict.meaning is Meaning.CHANGED:
            self.changed_bytes = verdict.total_bytes
        if verdict.host_wide:
            self.untrusted |= {mirror.host}
            for other in self.all:
                if other.host == mirror.host and other.lost is None:
                    other.lost, other.cause = verdict.meaning, verdict.cause

    def are_hopeless(self) -> bool:
        """Tell whether every mirror that is left was tried again and again without progress from any."""
        return all(mirror.fruitless >= self._patience.fruitless_rounds for mirror in self.usable)

    def causes(self) -> str:
        """Return what is wrong with the mirrors, for the user: hosts and causes, never an address."""
        causes = dict.fromkeys(f"{mirror.host}: {mirror.cause}" for mirror in self.all if mirror.cause)
        return "; ".join(list(causes)[:4]) or _("it has no mirror")


# ------------------------------------------------------------------------------------------ the download


class _Refused(Exception):
    """A reply that is not used."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class _StartOver(Exception):
    """What is on disk does not fit what the mirrors have.

    Go on in another file: of the size that they have now, or of whatever size, because the source is another; or,
    with ``forget``, in the same file from its first byte.
    """

    def __init__(self, size_bytes: int | None = None, forget: bool = False) -> None:
        self.size_bytes = size_bytes
        self.forget = forget


@dataclass(frozen=True, slots=True)
class StreamFile:
    """A finished stream on disk, still locked: end it with ``close`` or ``discard``."""

    path: Path
    size_bytes: int
    _part: PartFile = field(repr=False)

    def close(self) -> None:
        """Free the lock and keep everything, for another try at the merge."""
        self._part.close()

    def discard(self) -> None:
        """Delete the stream: what was merged from it is recorded."""
        self._part.discard()


async def download_stream(
    wire: Wire,
    source: StreamSource,
    folder: Path,
    refresh: Callable[[], Awaitable[StreamSource]],
    report: Callable[[StreamProgress], None],
) -> StreamFile:
    """Download what is missing of a stream and return its file.

    Raise a JobError if that cannot be done now. Whatever ends it, the bytes that came stay in ``folder``, and the
    next call goes on from there.
    """
    download = _Download(wire, source, folder, refresh, report)
    try:
        part = await download.run()
    except BaseException:
        download.close()
        raise
    return StreamFile(part.path, part.held_bytes, part)


class _Download:
    """One stream on its way to the disk."""

    def __init__(
        self,
        wire: Wire,
        source: StreamSource,
        folder: Path,
        refresh: Callable[[], Awaitable[StreamSource]],
        report: Callable[[StreamProgress], None],
    ) -> None:
        self._wire = wire
        self._source = source
        self._folder = folder
        self._refresh = refresh
        self._report = report
        self._mirrors = Mirrors(wire, source.urls)
        self._part: PartFile | None = None
        self._deadline = source.deadline
        self._renewing = asyncio.Lock()
        self._refreshes = 0
        self._pace = Pace(wire.patience, wire.surroundings.clock())
        """Of all connections together: of a slow line each has too little, but the stream moves."""
        self._proved = asyncio.Event()
        """Set when a reply proved the size of the stream: from then on it is worth while to ask for several chunks."""

    # ---------------------------------------------------------------------------- from begin to end

    async def run(self) -> PartFile:
        """Return the complete part."""
        if part := PartFile.find(self._folder, self._identity):
            await self._adopt(part)
        for _attempt in range(self._wire.patience.restarts + 1):
            try:
                return await self._complete()
            except _StartOver as order:
                await self._start_over(order)
        raise TransferError(
            _("the mirrors of {name} of cid {cid} changed its size again and again").format(
                name=self._source.name, cid=self._source.cid
            )
        )

    def close(self) -> None:
        """Keep what is on disk and free its lock."""
        if self._part is not None:
            self._part.close()

    @property
    def _identity(self) -> Identity:
        return Identity(self._source.job, self._source.cid, self._source.name)

    async def _adopt(self, part: PartFile) -> PartFile:
        """Make a part ours, so that it is closed whatever happens, then read through it."""
        self._part = part
        if part.is_new:
            # Quick, and the first reply is waiting: the library drops what it holds of it if the connection breaks.
            part.prepare(self._wire.surroundings.free_bytes)
        else:
            await asyncio.to_thread(part.prepare, self._wire.surroundings.free_bytes)
        self._tell("")
        return part

    async def _start_over(self, order: _StartOver) -> None:
        self._mirrors = Mirrors(self._wire, self._source.urls, self._mirrors.untrusted)
        self._proved.clear()
        if order.forget and self._part is not None:
            self._part.forget()
            return
        self.close()
        self._part = None
        if part := self._reopen(order):
            await self._adopt(part)

    def _reopen(self, order: _StartOver) -> PartFile | None:
        if order.size_bytes is None:
            return PartFile.find(self._folder, self._identity)
        return PartFile.open(self._folder, self._identity, order.size_bytes)

    async def _complete(self) -> PartFile:
        """Run the workers until nothing is missing; the first error of one ends all."""
        if self._part is None or not self._part.is_complete:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._work())
                    for _n in range(self._wire.patience.streams_connections - 1):
                        group.create_task(self._follow())
            except BaseExceptionGroup as errors:
                raise _gravest(errors) from None
        assert self._part is not None and self._part.is_complete
        return self._part

    async def _follow(self) -> None:
        """Work, but only after the first worker's reply."""
        await self._proved.wait()
        await self._work()

    async def _work(self) -> None:
        while self._part is None or self._part.has_waiting:
            await self._ready()
            async with self._wire.budget:
                # While this one waited, others may have taken the chunks, the mirrors, or the right to go on.
                mirror = self._mirrors.pick(self._wire.surroundings.clock())
                has_chunk = self._part is None or self._part.has_waiting
                if mirror is not None and has_chunk and self._wire.running.is_set():
                    await self._attempt(mirror)
        self._proved.set()

    # ---------------------------------------------------------------------------- before a request

    async def _ready(self) -> None:
        """Wait for everything that must be there before a request: no pause, URLs that live, a mirror that is cool."""
        await self._wire.running.wait()
        patience = self._wire.patience
        if self._has_expired() and self._refreshes < patience.refreshes:
            await self._renew()
        while not self._mirrors.usable:
            await self._replace_mirrors()
        if self._mirrors.are_hopeless():
            raise self._failure()
        wait_seconds = self._mirrors.wait_seconds(self._wire.surroundings.clock())
        if wait_seconds > patience.longest_wait_seconds:
            raise self._failure(wait_seconds)
        await asyncio.sleep(wait_seconds)

    def _has_expired(self) -> bool:
        return self._deadline is not None and self._wire.surroundings.wall_clock() >= self._deadline

    async def _replace_mirrors(self) -> None:
        """Find a way to go on when no mirror is left: another size that they agree on, new URLs, another beginning."""
        losses = self._mirrors.losses
        may_refresh = self._refreshes < self._wire.patience.refreshes
        if Meaning.CHANGED in losses and not (Meaning.DEAD in losses and may_refresh):
            raise _StartOver(self._mirrors.changed_bytes)
        if not may_refresh and Meaning.RANGELESS in losses:
            raise _StartOver(forget=True)
        if not may_refresh:
            raise self._failure()
        await self._renew()

    async def _renew(self) -> None:
        """Ask for new URLs; of several workers that want them, one asks."""
        before = self._source
        async with self._renewing:
            if self._source is not before:
                return
            self._refreshes += 1
            fresh = await self._refresh()
            self._source = fresh
            self._deadline = fresh.deadline
            if self._has_expired():
                self._deadline = None  # our clock is wrong, not the URLs; they say themselves when they are dead
            self._mirrors = Mirrors(self._wire, fresh.urls, self._mirrors.untrusted)
            if (fresh.cid, fresh.name) != (before.cid, before.name):
                raise _StartOver

    # ---------------------------------------------------------------------------- a request

    async def _attempt(self, mirror: Mirror) -> None:
        """Take a chunk, fetch of it what this mirror gives, and give it back if that was not all."""
        clock = self._wire.surroundings.clock
        mirrors, began = self._mirrors, clock()
        taken = [] if self._part is None else [self._part.take()]
        asked = self._asked(taken)
        verdict: Verdict | None = None
        mirror.active += 1
        try:
            async with self._wire.request(mirror.url, asked) as response:
                await self._receive(response, asked, taken, mirror.host)
        except (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError) as error:
            verdict = _judge_proxy(error)
        except (aiohttp.ClientError, TimeoutError, _Refused) as error:
            verdict = judge_failure(error)
        finally:
            mirror.active -= 1
            self._give_back(taken)
        if verdict is None or self._was_worth_it(verdict, asked, taken, clock() - began):
            mirrors.worked(mirror)
            mirrors.gained()
        if verdict is not None:
            mirrors.failed(mirror, verdict, began, clock())

    def _was_worth_it(self, verdict: Verdict, asked: Asked, taken: list[OpenChunk], seconds: float) -> bool:
        """Tell whether a request that failed brought bytes at a fair speed before."""
        got_bytes = taken[-1].at - asked.start if taken else 0
        least_bytes = self._wire.patience.slow_bytes_per_second * seconds
        return got_bytes > 0 and got_bytes >= least_bytes and not verdict.slow

    def _asked(self, taken: list[OpenChunk]) -> Asked:
        if self._part is None:
            return Asked(0, CHUNK_BYTES, self._source.size_bytes, whole_is_fine=True)
        chunk = taken[0]
        nothing_yet = self._part.held_bytes == 0 and not self._proved.is_set()
        return Asked(chunk.at, chunk.chunk.stop, self._part.size_bytes, whole_is_fine=nothing_yet)

    async def _receive(self, response: aiohttp.ClientResponse, asked: Asked, taken: list[OpenChunk], host: str) -> None:
        """Judge a reply and write its body; return when it is all there, or at a pause."""
        surroundings = self._wire.surroundings
        verdict = judge(response.status, response.headers, asked, surroundings.wall_clock())
        part = await self._accept(verdict, taken)
        if not taken or taken[0].at != asked.start or verdict.meaning is Meaning.END:
            return
        pace = Pace(self._wire.patience, surroundings.clock())
        async for data in response.content.iter_any():
            self._write(part, verdict, taken, data)
            self._tell(host)
            if self._pace.is_good(len(data), surroundings.clock()):
                self._mirrors.gained()
            if part.is_complete or taken[-1].at == verdict.stop or not self._wire.running.is_set():
                return
            if pace.is_too_slow(len(data), surroundings.clock()):
                raise _Refused(Verdict(Meaning.BROKEN, cause=_("it is too slow"), slow=True))
        self._at_end_of_body(part, verdict, taken[-1].at)

    async def _accept(self, verdict: Verdict, taken: list[OpenChunk]) -> PartFile:
        """Learn the size from a good reply, and let the other workers begin; the first reply of all opens the part."""
        if verdict.meaning not in ACCEPTED:
            raise _Refused(verdict)
        part = self._part
        if part is None:
            part = await self._adopt(PartFile.open(self._folder, self._identity, verdict.total_bytes))
            if part.has_waiting:
                taken.append(part.take())
        elif part.size_bytes is None and verdict.total_bytes is not None:
            part.set_size(verdict.total_bytes)
        if verdict.meaning is not Meaning.WHOLE:  # that one brings all chunks, there is nothing for the others
            self._proved.set()
        return part

    def _write(self, part: PartFile, verdict: Verdict, taken: list[OpenChunk], data: bytes) -> None:
        """Write a piece of a body; the whole stream in one body goes on from chunk to chunk."""
        rest = memoryview(data)
        if verdict.stop is not None and len(rest) > verdict.stop - taken[-1].at:
            raise _Refused(Verdict(Meaning.WRONG, cause=_("more bytes than it announced")))
        while rest:
            if not taken[-1].missing_bytes:
                if not part.has_waiting:
                    raise _Refused(Verdict(Meaning.WRONG, cause=_("more bytes than it announced")))
                taken.append(part.take())
            size_bytes = min(len(rest), taken[-1].missing_bytes)
            part.write(taken[-1], rest[:size_bytes])
            rest = rest[size_bytes:]
            if not taken[-1].missing_bytes:
                self._refreshes = 0

    def _at_end_of_body(self, part: PartFile, verdict: Verdict, at: int) -> None:
        """A body ended before its range did: that is the end of the stream only where nobody knows a better one."""
        if verdict.stop is not None or part.size_bytes is not None or self._source.size_bytes not in (None, at):
            raise _Refused(Verdict(Meaning.BROKEN, cause=_("the body was cut short")))
        part.set_size(at)

    # ---------------------------------------------------------------------------- small things

    def _give_back(self, taken: list[OpenChunk]) -> None:
        if self._part is not None:
            for chunk in taken:
                self._part.give_back(chunk)

    def _tell(self, host: str) -> None:
        if self._part is not None:
            self._report(StreamProgress(self._source.name, self._part.held_bytes, self._part.size_bytes, host))

    def _failure(self, retry_after_seconds: float | None = None) -> TransferError:
        return TransferError(
            _("{name} of cid {cid} cannot be had from any mirror: {causes}").format(
                name=self._source.name, cid=self._source.cid, causes=self._mirrors.causes()
            ),
            retry_after_seconds=retry_after_seconds,
        )


def _gravest(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error to go on with: a fault of ours before the machine's, the job's, and a new beginning."""
    order = (_StartOver, JobError, CircumstanceError)
    leaves: list[BaseException] = []
    pending: list[BaseException] = [errors]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return max(leaves, key=lambda error: max((n for n, kind in enumerate(order) if isinstance(error, kind)), default=9))
