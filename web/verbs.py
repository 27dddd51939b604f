"""The verbs of redisConnect over HTTP, a method for each route."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from flask import Response, jsonify, request
from werkzeug.exceptions import (
    BadRequest,
    MethodNotAllowed,
)

from budgets import address_group
from config import Settings, category_problem
from errors import EngineError, EngineFull
from i18n import _
from model import CURSOR_CHARACTERS, KIB, Failure, Page, Result
from parse_ import SiteHosts
from redisConnect import Queue
from series import HOUR, RINGS
from shapes import flag, line, one_of, record
from sources import lease_fields, listed_page, sort_out
from store import Beat
from web.actions import egress, names, note
from web.budgets import Budgets, stated_groups
from web.kept import Kept
from web.keyring import Keyring, access
from web.messages import (
    ACK,
    ADD,
    EXPAND,
    HEARTBEAT,
    LEASE_FIELDS,
    MAX_LEASES,
    NACK,
    REDRIVE,
    REPLAY,
    REQUEST,
    WATCH,
    WORKER,
    bad_request,
    decimal,
    decimal_bytes,
    job_id,
    query_reader,
    read_body,
    read_query,
    separated,
)
from web.sight import seen_job, seen_workers, sees_all

log = logging.getLogger(__name__)

MAX_STATUS_BYTES = 16 * KIB
_COUNT, _HAVE, _HAVE_BYTES = decimal(1, MAX_LEASES), separated(job_id), separated(decimal_bytes)


class Verbs:
    """The verbs of the queue, a method for each route; what they mean is said at redisConnect.Queue."""

    def __init__(self, settings: Settings, queue: Queue, keyring: Keyring) -> None:
        self._settings = settings
        self._queue = queue
        self._keyring = keyring
        self._site = SiteHosts(settings.web_url, settings.api_url, settings.short_url)
        self._budgets = Budgets(queue, keyring)
        self.totals: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._counted: Kept[int] = Kept()

    def _worker_count(self) -> int:
        """Return how many workers there are; a moment old, because each of them asks."""
        return self._counted.get("workers", self._queue.worker_count)

    def get_url(self) -> Response:
        """Lease jobs; where nothing is ready, say in Retry-After when to ask again."""
        if request.method != "GET":  # Flask lets HEAD in with GET, and would lease for nobody
            raise MethodNotAllowed(["GET"])
        read = query_reader()
        worker = read("worker", WORKER, None) or request.remote_addr or "unknown"
        count = read("count", _COUNT, 1)
        have, sizes = read("have", _HAVE, []), read("have_bytes", _HAVE_BYTES, [])
        again, instance = read("request", REQUEST, ""), read("instance", REQUEST, "")
        self._keyring.demand_name(worker)
        leases = self._queue.lease(worker, count, have, again, instance, sizes, access().token_id)
        response = jsonify([lease_fields(lease) for lease in leases])
        if leases:
            log.info(_("leased %d to %s: %s"), len(leases), worker, ", ".join(lease.url for lease in leases))
            self._count("leased", len(leases))
        else:
            response.headers["Retry-After"] = str(max(2, math.ceil(self._worker_count() / 200)))
        return response

    def expand(self) -> Response:
        """Turn a container into its pages."""
        body = read_body(EXPAND)
        if "pages" not in body and "urls" not in body:
            raise BadRequest(_("pages or urls are expected"))
        self._keyring.demand_lease(body["url"], body["token"])
        pages = [Page(**page) for page in body.get("pages", ())]
        more = body.get("more", False)
        ledger = listed_page(body.get("ledger", {}), body.get("title", ""))
        with bad_request():
            expanded = self._queue.expand(body["url"], body["token"], pages, body.get("urls", ()), more, ledger)
        log.info(_("expanded %s: %d new, %d known"), body["url"], expanded.added, expanded.known)
        lease = lease_fields(expanded.lease) if expanded.lease else None
        self._count("leased", 1 if lease else 0)
        return jsonify(added=expanded.added, known=expanded.known, lease=lease, ended=expanded.ended)

    def heartbeat(self) -> Response:
        """Keep a worker's leases, and what it tells of itself for the status page."""
        body = read_body(HEARTBEAT)
        self._keyring.demand_name(body["worker"])
        self._budgets.demand_ways(body)
        own, others = self._keyring.parted(body["jobs"])
        jobs = [(job["url"], job["token"], _done_bytes(job)) for job in own]
        titles = {job["url"]: job["progress"]["title"] for job in own if job.get("progress", {}).get("title")}
        status, groups = worker_status(body, egress()), stated_groups(body)
        self._budgets.note_risk(body, groups)
        heard = self._queue.hear(Beat(body["worker"], jobs, status, titles, groups, self._budgets.told_in(body)))
        self._budgets.note_end(body, groups)
        if lost := [*others, *heard.lost]:
            log.info(_("%s has lost %s"), body["worker"], ", ".join(lost))
        pace = max(2.0, self._worker_count() / 200)
        answer: dict[str, Any] = {
            "lost": lost,
            "control": {"slow_seconds": heard.slow_seconds} if heard.slow_seconds else None,
            "heartbeat_seconds": min(self._settings.lease_seconds / 3, pace),
            "order": self._order(body) if heard.has_order else None,
            "budget": asdict(heard.budget) if heard.budget else None,
        }
        if self._queue.data_id:
            answer["data"] = self._queue.data_id
        if "finished" in body:
            answer["replay"] = not self._queue.knows(body["finished"])
        return jsonify(answer)

    def _order(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a worker is to do and has not done yet."""
        order = self._queue.obey(body["worker"], body.get("state", {}).get("order", ""))
        return {name: order[name] for name in ("id", "working", "login") if name in order} if order else None

    def ack(self) -> Response:
        """Record a finished page."""
        body = read_body(ACK)
        self._keyring.demand_lease(body["url"], body["token"])
        result = _result(body)
        with bad_request():
            state = self._queue.ack(body["url"], body["token"], result)
        log.info(_("done %s: %s"), body["url"], result.path)
        self._count("acked", 1)
        return jsonify(state=state)

    def replay(self) -> Response:
        """Record what a worker finished and the queue has lost."""
        body = read_body(REPLAY)
        self._keyring.demand_name(body["worker"])
        others = self._keyring.leased_to_others([one["url"] for one in body["results"]])
        results = [(one["url"], _result(one)) for one in body["results"] if one["url"] not in others]
        with bad_request():
            recorded = self._queue.replay(body["worker"], results)
        if recorded:
            sentence = _(
                "The queue had lost %d results of %s: they are recorded again. Its data were set back or replaced"
            )
            log.warning(sentence, recorded, body["worker"])
        return jsonify(recorded=recorded, known=len(body["results"]) - recorded)

    def nack(self) -> Response:
        """Record a failed attempt."""
        body = read_body(NACK)
        self._keyring.demand_lease(body["url"], body["token"])
        failure = Failure(
            body["class"], body["code"], body["reason"], body.get("title", ""), body.get("retry_after_seconds")
        )
        state = self._queue.nack(body["url"], body["token"], failure)
        log.info(_("failed %s (%s, now %s): %s: %s"), body["url"], failure.kind, state, failure.code, failure.reason)
        self._count("nacked", 1)
        return jsonify(state=state)

    def release(self) -> Response:
        """Take a job back untouched."""
        body = read_body(record(LEASE_FIELDS, kept=flag))
        self._keyring.demand_lease(body["url"], body["token"])
        state = self._queue.release(body["url"], body["token"], body.get("kept", False))
        log.info(_("released %s"), body["url"])
        self._count("released", 1)
        return jsonify(state=state)

    def add_url(self) -> Response:
        """Queue what a user submits; name each text that is no target, with the reason."""
        body = read_body(ADD)
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
        if added.added:
            note(self._queue, "add", f"{added.added}: {names(unique)}")
        return jsonify(added=added.added, known=known, rejected=rejected)

    def watch(self) -> Response:
        """Have a source or a video read again and again, or no more."""
        body = read_body(WATCH)
        ids, rejected = sort_out([body["source"]], self._site)
        if rejected:
            raise BadRequest(f"source: {rejected[0]['reason']}")
        (source,) = ids
        before = self._queue.watch(source, body["seconds"])
        log.info(_("watching %s: every %d s"), source, body["seconds"])
        note(self._queue, "watch", f"{source}: {body['seconds']} s")
        return jsonify(source=source, before=before)

    def sources(self) -> Response:
        """List what is known of each source."""
        return self._listing(self._queue.sources)

    def redrive(self) -> Response:
        """Give dead or delayed jobs all their attempts back."""
        body = read_body(REDRIVE)
        if [body.get("all", False), "urls" in body, "code" in body].count(True) != 1:
            raise BadRequest(_('urls are expected, or a code, or "all": true'))
        if "urls" in body:
            redriven = self._queue.redrive(body["urls"])
        else:
            redriven = self._queue.redrive_code(body["code"]) if "code" in body else self._queue.redrive_all()
        log.info(_("redriven %d"), redriven)
        if redriven:
            note(self._queue, "redrive", f"{redriven}: {names(body.get('urls', [body.get('code', 'all')]))}")
        return jsonify(redriven=redriven)

    def status(self) -> Response:
        """Show the number of jobs in each state, and the workers."""
        return jsonify(
            jobs=asdict(self._queue.counts()),
            workers=seen_workers(self._queue.workers()),
            next_due_seconds=self._queue.next_due_seconds(),
            lease_seconds=self._settings.lease_seconds,
            seconds_left=self._queue.time_left_seconds(),
            breakers=self._budgets.breakers() if sees_all() else [],
            role=access().role,
        )

    def history(self) -> Response:
        """Show the farm's speed and what it finished, over the last hour, day or week."""
        step_seconds, points = self._queue.history(read_query("range", one_of(*RINGS), HOUR))
        return jsonify(step_seconds=step_seconds, points=points)

    def success(self) -> Response:
        """List finished pages, archived ones too as far as their files are here; say how many lie in which files."""
        return self._listing(self._queue.success, archived=self._queue.archives())

    def failed(self) -> Response:
        """List dead and delayed jobs."""
        code = read_query("code", line(100), None)

        def seen(after: str, limit: int) -> tuple[list[Any], str | None]:
            items, following = self._queue.failed(after, limit, code)
            return list(map(seen_job, items)), following

        return self._listing(seen)

    def _listing(
        self, verb: Callable[[str, int], tuple[list[dict[str, Any]], str | None]], **more: dict[str, int]
    ) -> Response:
        after = read_query("after", line(CURSOR_CHARACTERS), "")
        limit = read_query("limit", decimal(1, 1000), 100)
        with bad_request():
            items, following = verb(after, limit)
        return jsonify(items=items, next=following, **more)

    def healthz(self) -> tuple[Response, int]:
        """Say whether server and engine work."""
        try:
            self._queue.ping(writes=True)
        except EngineFull:
            return jsonify(error=_("Redis or Valkey has no room left: its memory or its disk is full")), 503
        except EngineError:
            return jsonify(error=_("Redis or Valkey cannot be used now")), 503
        return jsonify(status="ok"), 200

    def livez(self) -> Response:
        """Say that the server answers, whatever the engine does: starting it anew would not help the engine."""
        return jsonify(status="ok")

    def _count(self, name: str, amount: int) -> None:
        with self._lock:
            self.totals[name] += amount


def worker_status(body: Mapping[str, Any], address: str = "") -> dict[str, Any]:
    """Return what is kept of a checked heartbeat for the status page, at most MAX_STATUS_BYTES of JSON.

    ``address`` is where it came from: with it, the group that shares the worker's way to the site is kept.
    """
    jobs = [{"url": job["url"], **job.get("progress", {})} for job in body["jobs"]]
    risk = body.get("risk", {"kind": "", "seconds": 0.0})
    parked = {"risk": risk["kind"]} if risk["seconds"] else {}
    state = {name: value for name, value in body.get("state", {}).items() if name != "order"}
    account = {"account": body["account"]} if "account" in body else {}
    site = {name: value for name, value in body.get("site", {}).items() if name.endswith("_per_second")}
    way = {"egress": address_group(address, body.get("egress", "")), **site} if "site" in body else {}
    status = {**state, **account, **parked, **way, "jobs": jobs}
    while jobs and len(json.dumps(status, ensure_ascii=False).encode()) > MAX_STATUS_BYTES:
        jobs.pop()
    return status


def _result(body: Mapping[str, Any]) -> Result:
    return Result(
        body["path"],
        body["bytes"],
        body["seconds"],
        body.get("title", ""),
        body.get("streams", ""),
        body.get("stored", ""),
    )


def _done_bytes(job: Mapping[str, Any]) -> int:
    """Return how much of a job is on its worker's disk; 1 where the worker says that there is something."""
    progress = job.get("progress", {})
    done_bytes = sum(int(stream.get("done_bytes", 0)) for stream in progress.get("streams", ()))
    return min(max(done_bytes, int(progress.get("chunks", False))), 2**53)
