"""The dashboard: pages for people, rendered by templates/."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

from flask import render_template, request

from config import Settings
from errors import EngineError, EngineFull
from i18n import catalogue
from redisConnect import Queue
from sources import (
    job_address,
)
from web.units import size_text, span_text

log = logging.getLogger(__name__)

ENGINE_RETRY_SECONDS = 2
NEWS_SECONDS = 7 * 86400
"""The dashboard tells for so long that the queue had lost results."""
SHOWN_FAILURES = 50
SHOWN_SUCCESSES = 12
SHOWN_SOURCES = 50


class Dashboard:
    """The pages for people."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self._settings = settings
        self._queue = queue

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


def _language() -> str:
    for tag, _quality in request.accept_languages:
        for prefix, language in (("zh", "zh_CN"), ("en", "en")):
            if tag.lower().startswith(prefix):
                return language
    return "en"
