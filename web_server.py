"""The queue server and its dashboard: the verbs of redisConnect over HTTP, for workers, scripts and people.

``python web_server.py --host 127.0.0.1 --port 8080``. Requests and answers are JSON, an error is
``{"error": "…"}`` with a fitting status. Before any route runs, the guard has looked at the name by which the
server was called, at where a browser's request comes from, at the token, and at the kind of the body. Nothing that
a client submits is ever fetched.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import select
import signal
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlsplit

import waitress
from flask import Flask, Response, jsonify, render_template, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    HTTPException,
    LengthRequired,
    MethodNotAllowed,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)

from config import Settings, category_problem, is_loopback, load
from errors import EngineError, EngineFull, StaleToken, UsageError
from i18n import _, catalogue
from model import JOB_ID_CHARACTERS, KIB, MIB, Counts, Failure, Page, Result
from parse_ import MAX_CID, SiteHosts, parse_job_id
from redisConnect import Queue, open_queue
from shapes import Check, at, flag, lenient, line, list_of, number, one_of, record
from sources import (
    WISHES,
    job_address,
    lease_fields,
    ledger_shape,
    listed_page,
    sort_out,
    watch_seconds,
)

log = logging.getLogger(__name__)

MAX_BODY_BYTES = MIB
MAX_BUFFERED_BYTES = 16 * MIB
"""Up to here a body that is too large is read to its end, so that the client gets to see the 413."""
MAX_STATUS_BYTES = 16 * KIB
MAX_URLS = 1000
MAX_RESULTS = 200
MAX_RISK_SECONDS = 6 * 3600
NEWS_SECONDS = 7 * 86400
"""The dashboard tells for so long that the queue had lost results."""
MAX_PAGES = 500
MAX_LEASES = 64
MIN_TOKEN_CHARACTERS = 16
"""Beyond loopback. The right token always opens, so that its length is what keeps it from being guessed."""
MAX_CONNECTIONS = 2000
SPARE_FILES = 100
"""What the process needs beside its clients: the engine, bodies on disk, the log."""
ENGINE_RETRY_SECONDS = 2
SWEEP_LIMIT = 100
"""A sweep that moves this many has left some behind."""
SHOWN_FAILURES = 50
SHOWN_SUCCESSES = 12
SHOWN_SOURCES = 50

# ------------------------------------------------------------------------------------------ what requests look like


def job_id(value: Any) -> str:
    """Check a job id, exactly as it stands in the queue."""
    text: str = line(JOB_ID_CHARACTERS)(value)
    parse_job_id(text)
    return text


def _code(value: Any) -> str:
    return str(value) if type(value) is int and abs(value) < 10**9 else str(line(100)(value))


def _decimal_bytes(text: str) -> int:
    """Check how many bytes of a job are on a disk; a double can hold them exactly."""
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ValueError(_("a number of bytes is expected"))
    return int(text)


_SIZE = number(0, 2**63 - 1, whole=True)
_TOKEN = line(200, 1)
_WORKER = line(64, 1)
_TITLE = line(1000)
_REQUEST = line(64, 1)
_LEASE_FIELDS = {"url": job_id, "token": _TOKEN}
_PAGE = record(
    {"number": number(1, 99999, whole=True), "cid": number(1, MAX_CID, whole=True), "title": _TITLE},
    duration_seconds=number(0, 1e9),
)
_EXPAND = record(
    _LEASE_FIELDS,
    title=_TITLE,
    pages=list_of(_PAGE, MAX_PAGES),
    urls=list_of(job_id, MAX_PAGES),
    more=flag,
    ledger=ledger_shape(job_id),
)
_STREAM = lenient(
    name=line(40, cut=True),
    done_bytes=_SIZE,
    total_bytes=_SIZE,
    mirror=line(80, cut=True),
    speed_bytes_per_second=number(0, 1e15),
)
_PROGRESS = lenient(title=line(120, cut=True), stage=line(40, cut=True), streams=list_of(_STREAM, 64), chunks=flag)
_WORKER_STATE = lenient(
    state=line(40, cut=True),
    speed_bytes_per_second=number(0, 1e15),
    working=lenient(stop=number(0, 1, whole=True), count=number(1, MAX_LEASES, whole=True)),
    disk_free_bytes=_SIZE,
    note=line(400, cut=True),
)
_HEARTBEAT = record(
    {"worker": _WORKER, "jobs": list_of(record(_LEASE_FIELDS, progress=_PROGRESS), 256)},
    state=_WORKER_STATE,
    finished=list_of(job_id, 64),
    account=line(64, 1),
    risk=record({"kind": line(40, 1), "seconds": number(0, MAX_RISK_SECONDS)}),
)
_ACK = record(
    {**_LEASE_FIELDS, "path": line(4096, 1), "bytes": _SIZE, "seconds": number(0, 1e9)}, title=line(1000, cut=True)
)
_RESULT = record(
    {"url": job_id, "path": line(4096, 1), "bytes": _SIZE, "seconds": number(0, 1e9)}, title=line(1000, cut=True)
)
_REPLAY = record({"worker": _WORKER, "results": list_of(_RESULT, MAX_RESULTS)})
_NACK = record(
    {
        **_LEASE_FIELDS,
        "class": one_of("transient", "waiting", "permanent", "environment"),
        "code": _code,
        "reason": line(1000, cut=True),
    },
    title=line(1000, cut=True),
    retry_after_seconds=number(0, 7 * 86400),
)
_ADD = record(
    {"urls": list_of(line(MAX_BODY_BYTES), MAX_URLS)},
    category=line(120),
    source=line(200),
    refresh=flag,
    request=_REQUEST,
    wishes=WISHES,
    again=flag,
    watch=watch_seconds,
)
_WATCH = record({"source": line(JOB_ID_CHARACTERS), "seconds": watch_seconds})
_REDRIVE = record({}, urls=list_of(job_id, MAX_URLS), all=flag)


def read_body(check: Check) -> Any:
    """Return the checked body of this request, or answer 400 with what is wrong with it."""
    try:
        value = json.loads(request.get_data().decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRequest(_("the body is no JSON that can be read")) from None
    return _checked(check, value, "body")


def read_query(name: str, check: Check, default: Any) -> Any:
    """Return one checked parameter of the address, or answer 400 with what is wrong with it."""
    value = request.args.get(name)
    return _checked(check, value, name) if value else default


def _checked(check: Check, value: Any, name: str) -> Any:
    with bad_request():
        return at(name, check, value)


@contextmanager
def bad_request() -> Iterator[None]:
    """Answer 400 where a value is refused inside."""
    try:
        yield
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _decimal(low: int, high: int) -> Check:
    def check(text: str) -> int:
        digits = re.fullmatch("[0-9]{1,9}", text)
        return int(number(low, high, whole=True)(int(text) if digits else None))

    return check


# ------------------------------------------------------------------------------------------ the guard


class MisdirectedRequest(HTTPException):
    """421: the server was called by a name that it does not go by."""

    code = 421


class WrongTokens:
    """Counts the wrong tokens that an address sent within a minute, to answer those who guess or repeat with 429.

    The right token is never held up: behind a reverse proxy every worker and every guesser has the same address.
    One wrong setting that repeats itself uses up its own tries only, so that the next one is still told 401; all
    wrong tokens of an address get 429 once it has tried ten different ones.
    """

    LIMIT = 10
    WINDOW_SECONDS = 60.0
    MAX_ADDRESSES = 1000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, list[tuple[float, bytes]]] = OrderedDict()

    def retry_after_seconds(self, address: str, token: bytes) -> int:
        """Return 0 where this wrong token may be called wrong, else how long the address has to wait."""
        with self._lock:
            recent = self._recent(address)
            digest = self._digest(token)
            same = sum(1 for _at, seen in recent if seen == digest)
            if max(same, len({seen for _at, seen in recent})) < self.LIMIT:
                return 0
            return math.ceil(max(1.0, recent[0][0] + self.WINDOW_SECONDS - self._clock()))

    def add(self, address: str, token: bytes) -> None:
        """Note a wrong token."""
        with self._lock:
            self._seen[address] = [*self._recent(address), (self._clock(), self._digest(token))]
            self._seen.move_to_end(address)
            while len(self._seen) > self.MAX_ADDRESSES:
                self._seen.popitem(last=False)

    def _recent(self, address: str) -> list[tuple[float, bytes]]:
        horizon = self._clock() - self.WINDOW_SECONDS
        return [entry for entry in self._seen.get(address, ()) if entry[0] > horizon]

    def _digest(self, token: bytes) -> bytes:
        return hashlib.blake2b(token, key=self._key, digest_size=16).digest()


class Guard:
    """Looks at every request before its route does."""

    OPEN_PATHS = frozenset({"/healthz"})
    """Without a token: it says nothing but whether the server works."""
    BEARER_PATHS = frozenset({"/get_url"})
    """Not with a password that a browser remembers: any page can make it send a GET with that."""

    def __init__(self, settings: Settings) -> None:
        self._token = settings.token.encode()
        self._hosts = frozenset({"localhost", *settings.hosts})
        self._wrong_tokens = WrongTokens()

    def check(self) -> None:
        """Raise the HTTP error of a request that may not go on."""
        self._check_host()
        if request.path in self.OPEN_PATHS:
            return
        self._check_site()
        self._check_token()
        if request.method == "POST":
            self._check_body()

    def _check_host(self) -> None:
        """Hold off DNS rebinding: a foreign name that points here makes a browser believe it is the same site."""
        match = re.fullmatch(
            r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/@]+))(?::[0-9]*)?", request.environ.get("HTTP_HOST", "")
        )
        name = (match[1] or match[2]).lower().removesuffix(".") if match else ""
        if name not in self._hosts and not _is_address(name):
            raise MisdirectedRequest(_("the server does not go by this name: add it to BILI_HOSTS on the server"))

    def _check_site(self) -> None:
        """Refuse what another site makes a browser send; a link to the dashboard itself may be followed."""
        site = request.headers.get("Sec-Fetch-Site")
        origin = request.headers.get("Origin")
        if site is None and origin is not None:
            foreign = urlsplit(origin).netloc.lower() != request.environ.get("HTTP_HOST", "").lower()
        else:
            foreign = site not in (None, "same-origin", "none") and request.path != "/"
        if foreign:
            raise Forbidden(_("requests from other sites are refused"))

    def _check_token(self) -> None:
        if not self._token:
            return
        given = _given_token(bearer_only=request.path in self.BEARER_PATHS)
        if given is None:
            raise self._unauthorized(_("a token is needed: Authorization: Bearer, with the value of BILI_TOKEN"))
        if hmac.compare_digest(given, self._token):
            return
        address = request.remote_addr or ""
        if wait := self._wrong_tokens.retry_after_seconds(address, given):
            raise TooManyRequests(_("too many wrong tokens from this address: wait a minute"), retry_after=wait)
        self._wrong_tokens.add(address, given)
        raise self._unauthorized(_("the token is wrong: it must be the BILI_TOKEN of the server"))

    def _unauthorized(self, sentence: str) -> Unauthorized:
        # Basic is for browsers, which ask the user; any name, the token is the password.
        names = ("bearer",) if request.path in self.BEARER_PATHS else ("basic", "bearer")
        return Unauthorized(sentence, www_authenticate=[WWWAuthenticate(name, {"realm": "bili"}) for name in names])

    def _check_body(self) -> None:
        """Only JSON, which no form of another site can send; only of a known length, so that nothing is cut."""
        if request.mimetype != "application/json":
            raise UnsupportedMediaType(_("send JSON, with Content-Type: application/json"))
        if request.headers.get("Transfer-Encoding") or request.content_length is None:
            raise LengthRequired(_("send the body with a Content-Length"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _given_token(bearer_only: bool) -> bytes | None:
    given = request.authorization
    if given is None:
        return None
    if given.type == "basic" and not bearer_only:
        return (given.password or "").encode("utf-8", "replace")
    return (given.token or "").encode("utf-8", "replace") if given.type == "bearer" else None


# ------------------------------------------------------------------------------------------ the verbs


class Verbs:
    """The verbs of the queue, a method for each route; what they mean is said at redisConnect.Queue."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self._settings = settings
        self._queue = queue
        self._site = SiteHosts(settings.web_url, settings.api_url, settings.short_url)
        self.totals: Counter[str] = Counter()
        self._lock = threading.Lock()

    def get_url(self) -> Response:
        """Lease jobs; where nothing is ready, say in Retry-After when to ask again."""
        if request.method != "GET":  # Flask lets HEAD in with GET, and would lease for nobody
            raise MethodNotAllowed(["GET"])
        worker = read_query("worker", _WORKER, request.remote_addr or "unknown")
        count = read_query("count", _decimal(1, MAX_LEASES), 1)
        have = read_query("have", lambda text: list_of(job_id, 500)(text.split(",")), [])
        sizes = read_query("have_bytes", lambda text: list_of(_decimal_bytes, 500)(text.split(",")), [])
        again = read_query("request", _REQUEST, "")
        instance = read_query("instance", _REQUEST, "")
        leases = self._queue.lease(worker, count, have, again, instance, sizes)
        response = jsonify([lease_fields(lease) for lease in leases])
        if leases:
            log.info(_("leased %d to %s: %s"), len(leases), worker, ", ".join(lease.url for lease in leases))
            self._count("leased", len(leases))
        else:
            response.headers["Retry-After"] = str(max(2, math.ceil(self._queue.worker_count() / 200)))
        return response

    def expand(self) -> Response:
        """Turn a container into its pages."""
        body = read_body(_EXPAND)
        if "pages" not in body and "urls" not in body:
            raise BadRequest(_("pages or urls are expected"))
        pages = [Page(**page) for page in body.get("pages", ())]
        more = body.get("more", False)
        ledger = listed_page(body.get("ledger", {}), body.get("title", ""))
        with bad_request():
            expanded = self._queue.expand(body["url"], body["token"], pages, body.get("urls", ()), more, ledger)
        log.info(_("expanded %s: %d new, %d known"), body["url"], expanded.added, expanded.known)
        lease = lease_fields(expanded.lease) if expanded.lease else None
        return jsonify(added=expanded.added, known=expanded.known, lease=lease, ended=expanded.ended)

    def heartbeat(self) -> Response:
        """Keep a worker's leases, and what it tells of itself for the status page."""
        body = read_body(_HEARTBEAT)
        jobs = [(job["url"], job["token"], _done_bytes(job)) for job in body["jobs"]]
        lost = self._queue.heartbeat(body["worker"], jobs, worker_status(body))
        if lost:
            log.info(_("%s has lost %s"), body["worker"], ", ".join(lost))
        pace = max(2.0, self._queue.worker_count() / 200)
        answer = {
            "lost": lost,
            "control": self._control(body),
            "heartbeat_seconds": min(self._settings.lease_seconds / 3, pace),
        }
        if "finished" in body:
            answer["replay"] = not self._queue.knows(body["finished"])
        return jsonify(answer)

    def _control(self, body: Mapping[str, Any]) -> dict[str, float] | None:
        """Return what a worker should do because the site asked one of its address or account for less."""
        marks = [f"address:{_egress()}", *(f"account:{body[name]}" for name in ("account",) if name in body)]
        risk = body.get("risk", {"kind": "", "seconds": 0.0})
        if risk["seconds"]:
            with suppress(EngineFull):  # leases are kept all the same
                self._queue.tell_risk(marks, risk["kind"], risk["seconds"])
        seconds = self._queue.risk_seconds(marks)
        return {"slow_seconds": seconds} if seconds else None

    def ack(self) -> Response:
        """Record a finished page."""
        body = read_body(_ACK)
        result = Result(body["path"], body["bytes"], body["seconds"], body.get("title", ""))
        with bad_request():
            state = self._queue.ack(body["url"], body["token"], result)
        log.info(_("done %s: %s"), body["url"], result.path)
        return jsonify(state=state)

    def replay(self) -> Response:
        """Record what a worker finished and the queue has lost."""
        body = read_body(_REPLAY)
        results = [
            (one["url"], Result(one["path"], one["bytes"], one["seconds"], one.get("title", "")))
            for one in body["results"]
        ]
        with bad_request():
            recorded = self._queue.replay(body["worker"], results)
        if recorded:
            sentence = _(
                "The queue had lost %d results of %s: they are recorded again. Its data were set back or replaced"
            )
            log.warning(sentence, recorded, body["worker"])
        return jsonify(recorded=recorded, known=len(results) - recorded)

    def nack(self) -> Response:
        """Record a failed attempt."""
        body = read_body(_NACK)
        failure = Failure(
            body["class"], body["code"], body["reason"], body.get("title", ""), body.get("retry_after_seconds")
        )
        state = self._queue.nack(body["url"], body["token"], failure)
        log.info(_("failed %s (%s, now %s): %s: %s"), body["url"], failure.kind, state, failure.code, failure.reason)
        return jsonify(state=state)

    def release(self) -> Response:
        """Take a job back untouched."""
        body = read_body(record(_LEASE_FIELDS))
        state = self._queue.release(body["url"], body["token"])
        log.info(_("released %s"), body["url"])
        return jsonify(state=state)

    def add_url(self) -> Response:
        """Queue what a user submits; name each text that is no target, with the reason."""
        body = read_body(_ADD)
        category = body.get("category") or self._settings.category
        if problem := category_problem(category):
            raise BadRequest(f"category: {problem}")
        ids, rejected = sort_out(body["urls"], self._site)
        unique = list(dict.fromkeys(ids))
        added = self._queue.add(
            unique,
            category,
            body.get("source", ""),
            body.get("refresh", False),
            body.get("request", ""),
            body.get("wishes"),
            body.get("again", False),
            body.get("watch", 0),
        )
        known = added.known + len(ids) - len(unique)
        log.info(_("added %d to %s, known %d, rejected %d"), added.added, category, known, len(rejected))
        self._count("added", added.added)
        return jsonify(added=added.added, known=known, rejected=rejected)

    def watch(self) -> Response:
        """Have a source or a video read again and again, or no more."""
        body = read_body(_WATCH)
        ids, rejected = sort_out([body["source"]], self._site)
        if rejected:
            raise BadRequest(f"source: {rejected[0]['reason']}")
        (source,) = ids
        before = self._queue.watch(source, body["seconds"])
        log.info(_("watching %s: every %d s"), source, body["seconds"])
        return jsonify(source=source, before=before)

    def sources(self) -> Response:
        """List what is known of each source."""
        return self._listing(self._queue.sources)

    def redrive(self) -> Response:
        """Give dead or delayed jobs all their attempts back."""
        body = read_body(_REDRIVE)
        if body.get("all", False) == ("urls" in body):
            raise BadRequest(_('urls are expected, or "all": true'))
        redriven = self._queue.redrive(body["urls"]) if "urls" in body else self._queue.redrive_all()
        log.info(_("redriven %d"), redriven)
        return jsonify(redriven=redriven)

    def status(self) -> Response:
        """Show the number of jobs in each state, and the workers."""
        return jsonify(
            jobs=asdict(self._queue.counts()),
            workers=self._queue.workers(),
            next_due_seconds=self._queue.next_due_seconds(),
            lease_seconds=self._settings.lease_seconds,
        )

    def success(self) -> Response:
        """List finished pages."""
        return self._listing(self._queue.success)

    def failed(self) -> Response:
        """List dead and delayed jobs."""
        return self._listing(self._queue.failed)

    def _listing(self, verb: Callable[[str, int], tuple[list[dict[str, Any]], str | None]]) -> Response:
        after = read_query("after", line(JOB_ID_CHARACTERS), "")
        limit = read_query("limit", _decimal(1, 1000), 100)
        with bad_request():
            items, following = verb(after, limit)
        return jsonify(items=items, next=following)

    def healthz(self) -> tuple[Response, int]:
        """Say whether server and engine work."""
        try:
            self._queue.ping()
        except EngineFull:
            return jsonify(error=_("Redis or Valkey has no room left: its memory or its disk is full")), 503
        except EngineError:
            return jsonify(error=_("Redis or Valkey cannot be used now")), 503
        return jsonify(status="ok"), 200

    def _count(self, name: str, amount: int) -> None:
        with self._lock:
            self.totals[name] += amount


def _egress() -> str:
    """Return the address from which a worker comes: behind a proxy on this machine, the one that the proxy names.

    Whoever forges it can only make others ask the site more slowly.
    """
    address = request.remote_addr or ""
    named = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    return named if named and _is_address(named) and ipaddress.ip_address(address or "::").is_loopback else address


def worker_status(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a checked heartbeat for the status page, at most MAX_STATUS_BYTES of JSON."""
    jobs = [{"url": job["url"], **job.get("progress", {})} for job in body["jobs"]]
    status = {**body.get("state", {}), "jobs": jobs}
    while jobs and len(json.dumps(status, ensure_ascii=False).encode()) > MAX_STATUS_BYTES:
        jobs.pop()
    return status


def _done_bytes(job: Mapping[str, Any]) -> int:
    """Return how much of a job is on its worker's disk; 1 where the worker says that there is something."""
    progress = job.get("progress", {})
    done_bytes = sum(int(stream.get("done_bytes", 0)) for stream in progress.get("streams", ()))
    return min(max(done_bytes, int(progress.get("chunks", False))), 2**53)


# ------------------------------------------------------------------------------------------ the dashboard


class Dashboard:
    """The status page and the metrics: what people and Prometheus look at."""

    def __init__(self, settings: Settings, queue: Queue, totals: Mapping[str, int]) -> None:
        self._settings = settings
        self._queue = queue
        self._totals = totals
        self._requests: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def page(self) -> tuple[str, int, dict[str, str]]:
        """Render the status page, or with ``?fragment`` what changes of it."""
        language = _language()
        speak = catalogue([language]).gettext
        content, status = self._content()
        html = render_template(
            "fragment.html" if "fragment" in request.args else "status.html",
            _=speak,
            language=language.replace("_", "-"),
            size=size_text,
            span=lambda seconds: span_text(seconds, speak),
            now=time.time(),
            link=lambda url: job_address(url, self._settings.web_url),
            **content,
        )
        headers = {"Vary": "Accept-Language"}
        return html, status, headers if status == 200 else headers | {"Retry-After": str(ENGINE_RETRY_SECONDS)}

    def _content(self) -> tuple[dict[str, Any], int]:
        try:
            failures, more_failures = self._queue.failed("", SHOWN_FAILURES)
            workers = self._workers()
            return {
                "counts": asdict(self._queue.counts()),
                "workers": workers,
                "speed_bytes_per_second": sum(worker.get("speed_bytes_per_second", 0) for worker in workers),
                "successes": self._queue.latest_success(SHOWN_SUCCESSES),
                "replayed": self._replayed(),
                "unsafe": self._queue.unsafe(),
                "sources": self._queue.sources("", SHOWN_SOURCES),
                "failures": failures,
                "more_failures": more_failures is not None,
                "full": self._full(),
            }, 200
        except EngineError as error:
            return {"problem": str(error)}, 503

    def _replayed(self) -> tuple[int, float] | None:
        """Return how many results the queue had lost, and how long ago; None where that is no news."""
        replayed = self._queue.replayed()
        return replayed if replayed and replayed[1] < NEWS_SECONDS else None

    def _full(self) -> str:
        """Return why the engine takes nothing more, or an empty text."""
        try:
            self._queue.ping()
        except EngineFull as error:
            return str(error)
        return ""

    def _workers(self) -> list[dict[str, Any]]:
        """Return the workers in an order that stays; of one that is away nothing but its name is true."""
        away_seconds = max(120.0, 3 * self._settings.lease_seconds)
        workers = [
            {"worker": worker["worker"], "seen_seconds": worker["seen_seconds"], "away": True}
            if worker["seen_seconds"] > away_seconds
            else {**worker, "away": False}
            for worker in self._queue.workers()
        ]
        return sorted(workers, key=lambda worker: (worker["away"], worker["worker"]))

    def count_request(self, response: Response) -> None:
        """Note a request for the metrics, by its route, so that no client makes up names."""
        rule = request.url_rule.rule if request.url_rule else "other"
        with self._lock:
            self._requests[rule, response.status_code] += 1

    def metrics(self) -> Response:
        """Show the same for Prometheus, in its text format."""
        lines = _metric("requests_total", "counter", "Requests answered since the start.")
        with self._lock:
            answered = sorted(self._requests.items())
        lines += [
            f'bili_requests_total{{route="{route}",status="{status}"}} {count}' for (route, status), count in answered
        ]
        for name in ("added", "leased"):
            lines += _metric(f"{name}_total", "counter", f"Jobs {name} since the start.", self._totals.get(name, 0))
        try:
            counts, workers = self._queue.counts(), self._queue.worker_count()
        except EngineError:
            lines += _metric("engine_up", "gauge", "Whether Redis or Valkey can be used.", 0)
        else:
            lines += _metric("engine_up", "gauge", "Whether Redis or Valkey can be used.", 1)
            lines += _metric("workers", "gauge", "Workers heard of lately.", workers)
            lines += _job_metrics(counts)
        return Response("\n".join(lines) + "\n", content_type="text/plain; version=0.0.4; charset=utf-8")


def _metric(name: str, kind: str, about: str, value: int | None = None) -> list[str]:
    head = [f"# HELP bili_{name} {about}", f"# TYPE bili_{name} {kind}"]
    return head if value is None else [*head, f"bili_{name} {value}"]


def _job_metrics(counts: Counts) -> list[str]:
    states = [f'bili_jobs{{state="{state}"}} {count}' for state, count in asdict(counts).items()]
    return [*_metric("jobs", "gauge", "Jobs in each state."), *states]


def _language() -> str:
    for tag, _quality in request.accept_languages:
        for prefix, language in (("zh", "zh_CN"), ("en", "en")):
            if tag.lower().startswith(prefix):
                return language
    return "en"


def size_text(size_bytes: float) -> str:
    """Return a size for people: three digits and a unit."""
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 99.95 or units[0] == "B" else f"{value:.1f} {units[0]}"


def span_text(seconds: float, _: Callable[[str], str] = _) -> str:
    """Return a duration for people, in one unit."""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return _("{count} s").format(count=round(seconds))
    if seconds < 59.5 * 60:
        return _("{count} min").format(count=round(seconds / 60))
    if seconds < 23.5 * 3600:
        return _("{count} h").format(count=round(seconds / 3600))
    return _("{count} d").format(count=round(seconds / 86400))


# ------------------------------------------------------------------------------------------ the application

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def create_app(settings: Settings, queue: Queue) -> Flask:
    """Return the application; whoever made the queue closes it."""
    app = Flask(__name__)
    app.debug = False  # whatever FLASK_DEBUG says: its error pages show code and environment
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.before_request(Guard(settings).check)

    verbs = Verbs(settings, queue)
    dashboard = Dashboard(settings, queue, verbs.totals)
    for view in (
        *(verbs.get_url, verbs.status, verbs.sources, verbs.success, verbs.failed, verbs.healthz),
        dashboard.metrics,
    ):
        app.add_url_rule(f"/{view.__name__}", view_func=view)
    for change in (
        *(verbs.expand, verbs.heartbeat, verbs.ack, verbs.nack, verbs.release, verbs.replay),
        *(verbs.add_url, verbs.watch, verbs.redrive),
    ):
        app.add_url_rule(f"/{change.__name__}", view_func=change, methods=["POST"])
    app.add_url_rule("/", "dashboard", dashboard.page)

    app.register_error_handler(HTTPException, _answer_error)
    app.register_error_handler(StaleToken, _answer_stale_token)
    app.register_error_handler(EngineError, _answer_engine_error)

    @app.after_request
    def finish(response: Response) -> Response:
        dashboard.count_request(response)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return app


def _answer_error(error: HTTPException) -> Response:
    """Answer any HTTP error as JSON, with its own headers (Allow, WWW-Authenticate, Retry-After)."""
    sentences = {
        404: _("there is nothing at this address; / is the dashboard"),
        405: _("this address takes another method"),
        413: _("the body is larger than {limit} bytes").format(limit=MAX_BODY_BYTES),
        500: _("the server failed; its log says how"),
    }
    sentence = sentences.get(error.code or 500, error.description or "")
    response = jsonify(error=sentence)
    response.status_code = error.code or 500
    for name, value in error.get_headers():
        if name != "Content-Type":
            response.headers.add(name, value)
    path = line(200, cut=True)(request.path)
    log.info(_("refused %s %s of %s: %d, %s"), request.method, path, request.remote_addr, error.code, sentence)
    return response


def _answer_stale_token(error: StaleToken) -> tuple[Response, int]:
    log.info("%s", error)
    return jsonify(error=str(error)), 409


def _answer_engine_error(error: EngineError) -> tuple[Response, int, dict[str, str]]:
    return jsonify(error=str(error)), 503, {"Retry-After": str(ENGINE_RETRY_SECONDS)}


# ------------------------------------------------------------------------------------------ the process


def tick(queue: Queue, ended: threading.Event, period_seconds: float = 1.0) -> None:
    """Sweep expired leases and due delays each second until ``ended``; an engine that is away or full is said once."""
    away = False
    looked_ms: float | None = None
    while not ended.wait(period_seconds):
        try:
            while queue.sweep() >= SWEEP_LIMIT and not ended.is_set():
                pass
            queue.revisit()
            poisoned, looked_ms = queue.poisoned(looked_ms)
            for url in poisoned:
                log.warning(_("%s has failed for good: its workers died with it again and again"), url)
            queue.ping()  # sweeping goes on where memory is full
        except EngineError as error:
            if not away:
                log.warning("%s", error)
            away = True
        else:
            if away:
                log.warning(_("Redis or Valkey is back"))
            away = False


def listen(app: Flask, host: str, port: int) -> Any:
    """Return a waitress server that listens already; raise UsageError where the address cannot be had.

    The limits keep slow and half-open connections (dropped after 10 seconds) from standing in the way of others;
    bodies are read to their end before a thread sees them.
    """
    try:
        return waitress.create_server(
            app,
            host=host,
            port=port,
            threads=8,
            connection_limit=_connection_limit(),
            channel_timeout=10,
            cleanup_interval=3,
            asyncore_use_poll=hasattr(select, "poll"),
            ident=None,
            max_request_body_size=MAX_BUFFERED_BYTES,
        )
    except (OSError, ValueError) as error:
        raise UsageError(_address_problem(host, port, error)) from None


def _connection_limit() -> int:
    """Return how many connections may be open, fewer than the files that this process may have open."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft - SPARE_FILES))


def _address_problem(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return _(
            "Port {port} of {host} is in use: end the program that has it (another web_server.py?), "
            "or choose another one with --port"
        ).format(port=port, host=host)
    return _("Cannot listen on {host}, port {port}: {problem}").format(host=host, port=port, problem=error)


def listening_urls(server: Any) -> list[str]:
    """Return the addresses at which a waitress server listens; localhost may have two."""
    places = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
    return [f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/" for host, port in places]


def _demand_token(host: str, settings: Settings) -> None:
    """Raise UsageError beyond loopback without a token, or with a short one; on loopback only warn of that."""
    short = len(settings.token) < MIN_TOKEN_CHARACTERS
    if is_loopback(host):
        if settings.token and short:
            log.warning(_("BILI_TOKEN has fewer than %d characters: it may be guessed"), MIN_TOKEN_CHARACTERS)
        return
    if not settings.token:
        sentence = _(
            "Beyond this machine ({host}) the server needs a token: set BILI_TOKEN here and on every worker. "
            "One is made by: {command}"
        )
    elif short:
        sentence = _(
            "Beyond this machine ({host}) BILI_TOKEN needs at least {count} characters, or it may be guessed: set "
            "another one here and on every worker. One is made by: {command}"
        )
    else:
        return
    count = MIN_TOKEN_CHARACTERS
    raise UsageError(
        sentence.format(host=host, count=count, command='python -c "import secrets; print(secrets.token_urlsafe(32))"')
    )


def _end_on_signals() -> None:
    """Let the first SIGTERM or SIGINT end the server with its requests finished, and a second one at once."""

    def end(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, _end_now)
        raise KeyboardInterrupt

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end)


def _end_now(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=_("The queue server and its dashboard."))
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help=_("address to listen on; 0.0.0.0 is every one and needs BILI_TOKEN (default: %(default)s)"),
    )
    parser.add_argument(
        "--port", type=_port, default=8080, help=_("port; 0 is any that is free (default: %(default)s)")
    )
    return parser.parse_args(argv)


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(_("a port is a number from 0 to 65535"))
    return int(text)


def _serve(settings: Settings, queue: Queue, host: str, port: int) -> None:
    server = listen(create_app(settings, queue), host, port)
    _end_on_signals()
    ended = threading.Event()
    ticking = threading.Thread(target=tick, args=(queue, ended), name="tick", daemon=True)
    ticking.start()
    print(_("Queue server and dashboard: {urls}").format(urls=" ".join(listening_urls(server))))
    print(_("The queue is kept in {place}").format(place=queue.place if settings.redis_url else settings.data_dir))
    if settings.token:
        print(_("Every request needs the token of BILI_TOKEN; a browser asks for it as a password, with any name."))
    else:
        print(_("No token is demanded, because BILI_TOKEN is not set: every user of this machine may use the queue."))
    sys.stdout.flush()
    server.run()
    ended.set()
    ticking.join(5)
    print(_("Queue server ended."), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal ends it; return the exit status, 2 where it could not start."""
    arguments = _parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a burst of workers is no news
    try:
        settings = load(os.environ)
        _demand_token(arguments.host, settings)
        with closing(open_queue(settings)) as queue:
            _serve(settings, queue, arguments.host, arguments.port)
    except (UsageError, EngineError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
