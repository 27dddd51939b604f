"""Searching jobs and acting on them, over HTTP: a method for each route."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from flask import Response, jsonify

from i18n import _
from model import CURSOR_CHARACTERS, JOB_ID_CHARACTERS
from redisConnect import Queue
from shapes import line, one_of
from store import STATES
from web.actions import names, note
from web.messages import JOBS, bad_request, decimal, job_id, read_body, read_query
from web.sight import demand_named, seen_job

log = logging.getLogger(__name__)


class Jobs:
    """What people ask of single jobs; what the verbs mean is said at redisConnect.Queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def jobs(self) -> Response:
        """List jobs by their places, or find some by an id or the beginning of a title."""
        state = read_query("state", one_of(*STATES), "")
        category = read_query("category", line(120), "")
        source = read_query("source", line(JOB_ID_CHARACTERS), "")
        find = read_query("find", line(JOB_ID_CHARACTERS), "")
        after = read_query("after", line(CURSOR_CHARACTERS), "")
        limit = read_query("limit", decimal(1, 1000), 100)
        demand_named(find)
        with bad_request():
            items, following = self._queue.jobs(state, category, source, find, after, limit)
        return jsonify(items=list(map(seen_job, items)), next=following)

    def job(self) -> Response | tuple[Response, int]:
        """Show one job and what happened to it."""
        url = read_query("url", job_id, "")
        job = self._queue.job(url) if url else None
        if job is None:
            return jsonify(error=_("url: there is no such job")), 404
        return jsonify(seen_job(job))

    def failures(self) -> Response:
        """Group dead and delayed jobs by what they failed of."""
        return jsonify(items=self._queue.failure_groups())

    def cancel(self) -> Response:
        """Let jobs be done no more."""
        return self._change("cancel", self._queue.cancel, "cancelled", _("cancelled %d of %d"))

    def first(self) -> Response:
        """Let jobs come next."""
        return self._change("first", self._queue.first, "moved", _("moved %d of %d to the head"))

    def forget(self) -> Response:
        """Let dead and done jobs leave the queue's memory."""
        return self._change("forget", self._queue.forget, "forgotten", _("forgot %d of %d"))

    def _change(self, name: str, verb: Callable[[Sequence[str]], int], what: str, sentence: str) -> Response:
        urls = list(dict.fromkeys(read_body(JOBS)["urls"]))
        changed = verb(urls)
        log.info(sentence, changed, len(urls))
        if changed:
            note(self._queue, name, names(urls))
        return jsonify({what: changed})
