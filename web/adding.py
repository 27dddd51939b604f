"""Adding many lines at once from the dashboard, with an answer for each of them."""

from __future__ import annotations

import logging

from flask import Response, jsonify
from werkzeug.exceptions import BadRequest

from config import Settings, category_problem
from i18n import _
from parse_ import SiteHosts
from redisConnect import Queue
from sources import sort_out
from web.actions import names, note
from web.messages import ADD, read_body

log = logging.getLogger(__name__)


class Adding:
    """The verb behind the page for adding: /add_url counts, this names what became of each line."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self._settings = settings
        self._queue = queue
        self._site = SiteHosts(settings.web_url, settings.api_url, settings.short_url)

    def add_lines(self) -> Response:
        """Queue each line on its own; say of each whether it is new, known or rejected, and why."""
        body = read_body(ADD)
        category = body.get("category") or self._settings.category
        if problem := category_problem(category):
            raise BadRequest(f"category: {problem}")
        items = [self._add_line(text, category, body, number) for number, text in enumerate(body["urls"])]
        added, known, rejected = (
            sum(item["state"] == state for item in items) for state in ("added", "known", "rejected")
        )
        log.info(_("added %d to %s, known %d, rejected %d"), added, category, known, rejected)
        if added:
            note(self._queue, "add", names([item["id"] for item in items if item["state"] == "added"]))
        return jsonify(added=added, known=known, rejected=rejected, items=items)

    def _add_line(self, text: str, category: str, body: dict[str, object], number: int) -> dict[str, str]:
        ids, rejected = sort_out([text.strip()], self._site)
        if rejected:
            return {"url": text, "state": "rejected", "id": "", "reason": rejected[0]["reason"]}
        request = body.get("request")
        added = self._queue.add(
            ids,
            category,
            str(body.get("source", "")),
            bool(body.get("refresh")),
            f"{request}.{number}" if request else "",
            body.get("wishes"),  # type: ignore[arg-type]
            bool(body.get("again")),
            int(str(body.get("watch", 0))),
        )
        return {"url": text, "state": "added" if added.added else "known", "id": ids[0], "reason": ""}
