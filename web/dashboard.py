"""The dashboard: pages for people, rendered by templates/. What people do there goes to the verbs that scripts use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from flask import jsonify, request
from werkzeug.exceptions import BadRequest, Forbidden
from werkzeug.wrappers import Response

from config import Settings
from errors import EngineFull
from i18n import _
from model import CURSOR_CHARACTERS, JOB_ID_CHARACTERS
from redisConnect import Queue
from shapes import line, one_of, record
from store import ROLES, STATES, Tokens
from web.actions import in_words
from web.frame import Content, Frame, Missing
from web.guard import Guard, may
from web.kept import Kept
from web.messages import SIGN_IN, decimal, job_id, read_body, read_query
from web.outlook import in_detail, look_ahead, seen_worker
from web.qr_code import qr_svg
from web.session import SESSION_SECONDS, Sessions
from web.sight import demand_named, must_name, seen_job

NEWS_SECONDS = 7 * 86400
"""The dashboard tells for so long that the queue had lost results."""
MACHINES_ON_A_PAGE = 30
MACHINES_AT_A_GLANCE = 8
MOST_MACHINES = 5000
REASONS_AT_A_GLANCE = 4
SUCCESSES_AT_A_GLANCE = 8
ITEMS_ON_A_PAGE = 50
ACTIONS_ON_A_PAGE = 200


class Dashboard:
    """The pages for people, a method for each."""

    def __init__(self, settings: Settings, queue: Queue, guard: Guard, sessions: Sessions, tokens: Tokens) -> None:
        self._settings = settings
        self._queue = queue
        self._guard = guard
        self._sessions = sessions
        self._tokens = tokens
        self.frame = Frame(settings, sessions)
        self._machines: Kept[list[dict[str, Any]]] = Kept()

    def routes(self) -> dict[str, Callable[[], Response]]:
        """Return the pages by their addresses."""
        return {
            "/": self.now,
            "/ui/machines": self.machines,
            "/ui/jobs": self.jobs,
            "/ui/job": self.job,
            "/ui/failures": self.failures,
            "/ui/sources": self.sources,
            "/ui/add": self.add,
            "/ui/actions": self.actions,
            "/ui/access": self.access,
        }

    def clear(self) -> None:
        """Show at once what somebody has changed."""
        self.frame.clear()
        self._machines.clear()

    # -------------------------------------------------------------------------------- pages

    def now(self) -> Response:
        """Show what the farm does now."""
        return self.frame.page("now", self._now)

    def _now(self) -> Content:
        counts, workers, now = self._queue.counts(), self._workers(), time.time()
        return {
            "counts": asdict(counts),
            "outlook": look_ahead(counts, workers, self._queue.time_left_seconds()),
            "workers": list(map(in_detail, workers[:MACHINES_AT_A_GLANCE])),
            "more_workers": len(workers) > MACHINES_AT_A_GLANCE,
            "successes": self._queue.latest_success(SUCCESSES_AT_A_GLANCE),
            "failures": self._queue.failure_groups()[:REASONS_AT_A_GLANCE],
            "next_due": self._next_due(now),
            "replayed": self._replayed(),
            "unsafe": self._queue.unsafe(),
            "full": self._full(),
        }

    def machines(self) -> Response:
        """Show the machines."""
        find = read_query("find", line(64), "").strip().lower()
        number = read_query("page", decimal(1, MOST_MACHINES), 1)
        return self.frame.page("machines", lambda: self._machines_page(find, number), find=find)

    def _machines_page(self, find: str, number: int) -> Content:
        workers = [worker for worker in self._workers() if find in worker["worker"].lower()]
        first = (number - 1) * MACHINES_ON_A_PAGE
        return {
            "workers": list(map(in_detail, workers[first : first + MACHINES_ON_A_PAGE])),
            "count": len(workers),
            "number": number,
            "more": len(workers) > first + MACHINES_ON_A_PAGE,
            "find": find,
            "breakers": self._queue.breakers(),
            "drawing": lambda address: qr_svg(address, self._settings.passport_url),
        }

    def jobs(self) -> Response:
        """Show jobs, by what is searched for."""
        text = line(JOB_ID_CHARACTERS)
        wished = {name: read_query(name, text, "").strip() for name in ("category", "source", "find")}
        wished["state"] = read_query("state", one_of(*STATES), "")
        after = read_query("after", line(CURSOR_CHARACTERS), "")
        if wished["find"]:
            demand_named(wished["find"])
        return self.frame.page("jobs", lambda: self._jobs(wished, after), wished=wished, states=STATES)

    def _jobs(self, wished: dict[str, str], after: str) -> Content:
        if must_name() and not wished["find"]:
            return {"items": [], "following": None, "wished": {}, "after": "", "under_way": {}, "must_name": True}
        try:
            items, following = self._queue.jobs(**wished, after=after, limit=ITEMS_ON_A_PAGE)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        given = {name: value for name, value in wished.items() if value}
        under_way = self._under_way(items)
        seen = list(map(seen_job, items))
        return {"items": seen, "following": following, "wished": given, "after": after, "under_way": under_way}

    def job(self) -> Response:
        """Show the whole life of one job."""
        url = read_query("url", job_id, "")
        return self.frame.page("job", lambda: self._job(url))

    def _job(self, url: str) -> Content | Missing:
        found = self._queue.job(url) if url else None
        if not found:
            return Missing({"job": None, "url": url})
        return {"job": seen_job(found), "under_way": self._under_way([found]), "must_name": must_name()}

    def _under_way(self, jobs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return those of some jobs that are in work, by their ids, as the machines that have them see them."""
        held = {job["url"]: job["worker"] for job in jobs if job["state"] == "leased"}
        holders = [in_detail(worker) for worker in self._workers() if worker["worker"] in held.values()]
        seen = [(job, worker["worker"]) for worker in holders for job in worker["jobs"]]
        return {job["url"]: job for job, name in seen if held.get(job["url"]) == name}

    def failures(self) -> Response:
        """Show what failed, by its reasons."""
        code = read_query("code", line(100), "")
        after = read_query("after", line(CURSOR_CHARACTERS), "")
        return self.frame.page("failures", lambda: self._failures(code, after))

    def _failures(self, code: str, after: str) -> Content:
        groups = self._queue.failure_groups()
        items, following = self._queue.failed(after, ITEMS_ON_A_PAGE, code) if code else ([], None)
        return {"groups": groups, "code": code, "items": items, "following": following, "after": after}

    def sources(self) -> Response:
        """Show what was found in each source."""
        after = read_query("after", line(JOB_ID_CHARACTERS), "")
        return self.frame.page("sources", lambda: self._sources(after))

    def _sources(self, after: str) -> Content:
        items, following = self._queue.sources(after, ITEMS_ON_A_PAGE)
        return {"items": items, "following": following, "after": after}

    def add(self) -> Response:
        """Show where to say what to download."""
        return self.frame.page("add", dict, category=self._settings.category)

    def actions(self) -> Response:
        """Show who did what, and when."""
        return self.frame.page(
            "actions", lambda: {"items": list(map(in_words, self._queue.actions(ACTIONS_ON_A_PAGE)))}
        )

    def access(self) -> Response:
        """Show which tokens there are; none of them can be shown again."""
        return self.frame.page("access", self._access, roles=ROLES)

    def _access(self) -> Content:
        return {"tokens": self._tokens.all(), "is_open": not self._settings.token}

    # -------------------------------------------------------------------------------- signing in

    def sign_in(self) -> Response:
        """Begin a session for who knows the token."""
        body = read_body(SIGN_IN)
        answer = jsonify(signed_in=True)
        if self._settings.token:
            asking = self._guard.check_given(body["password"].encode("utf-8", "replace"))
            if not may(asking.role, self._guard.FIRST_PAGE):
                raise Forbidden(_("a worker's token opens no page"))
            answer.set_cookie(
                self._sessions.cookie,
                self._sessions.issue(asking.token_id),
                max_age=SESSION_SECONDS,
                httponly=True,
                samesite="Strict",
                secure=request.is_secure,
            )
        return answer

    def sign_out(self) -> Response:
        """End the session of this browser."""
        read_body(record({}))
        answer = jsonify(signed_in=False)
        if self._settings.token:
            answer.delete_cookie(self._sessions.cookie, httponly=True, samesite="Strict")
        return answer

    # -------------------------------------------------------------------------------- inside

    def _next_due(self, now: float) -> float | None:
        due_seconds = self._queue.next_due_seconds()
        return None if due_seconds is None else now + due_seconds

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
        return self._machines.get("all", self._look_at_workers)

    def _look_at_workers(self) -> list[dict[str, Any]]:
        now, told = time.time(), self._queue.workers(MOST_MACHINES)
        workers = [seen_worker(worker, now, self._settings.lease_seconds) for worker in told]
        return sorted(workers, key=lambda worker: (worker["state"] == "away", worker["worker"]))
