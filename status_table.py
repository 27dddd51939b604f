"""``python web_server.py --status``: what the dashboard shows, as tables on a terminal or as one JSON text.

It asks the running server like any other client, at BILI_SERVER_URL with BILI_TOKEN; so it works on every machine, and
needs no Redis. The HTTP client is the one that add_url.py has (``site_walk.new_session``): it follows no redirect with
the token, and honours the proxies and certificates that the environment names.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from board import GONE, WORDS, state_of
from budgets import read_breaker, spoken
from config import Settings
from errors import ServerError, ServerUnreachable, Unauthorized
from i18n import _, translated
from parse_ import BROKEN
from plain_text import harmless, json_text, size_text, span_text, speed_text
from server_choice import ServerChoice, together
from site_walk import answer_of, new_session, place, problem
from sources import facts

STATES = ("ready", "leased", "delayed", "done", "dead")
PAGE = 1000
MOST_PAGES = 50
"""Of a list; what is behind them is said to be there."""
MOST_ROWS = 50
TIMEOUT = (5, 30)
FORBIDDEN = 403
ALWAYS = 5
"""So many columns of the sources are always shown; the others, where something stands in them."""
WITHOUT_END = 1000
"""As wide as a table may become where nobody looks on: nothing is cut then."""


def show_status(settings: Settings, as_json: bool) -> None:
    """Print what the server tells of the farm; raise ServerError where it tells nothing."""
    with closing(_Server(settings)) as server:
        try:
            status = gathered(server)
            pieces = [] if as_json else [*tables(status, time.time())]
        except BROKEN as error:
            raise ServerError(_("{url} is no queue server of this project").format(url=place(server.url))) from error
    console = Console(width=None if sys.stdout.isatty() else WITHOUT_END, markup=False, highlight=False, emoji=False)
    if as_json:
        console.print(json_text(status), soft_wrap=True)
        return
    for piece in pieces:
        console.print(piece)


class _Server:
    """What is asked of the server; whatever is between may answer in its place, so each answer is looked at."""

    def __init__(self, settings: Settings) -> None:
        self._servers = ServerChoice(settings.server_urls, time.monotonic)
        self.url = settings.server_url
        """The one that was asked last."""
        self._session = new_session(settings.token, not settings.server_is_local, settings.server_pins)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, path: str) -> dict[str, Any]:
        """Return an answer of the first server that gives one."""
        problems: dict[str, ServerUnreachable] = {}
        for url in self._servers.in_order():
            self.url = url
            try:
                return self._get(path)
            except ServerUnreachable as error:
                problems[place(url)] = error
                self._servers.failed(url)
        raise together(problems)

    def _get(self, path: str) -> dict[str, Any]:
        url = place(self.url)
        try:
            reply = answer_of(self._session, "GET", self.url + path, timeout=TIMEOUT)
        except (OSError, ValueError) as error:
            sentence = _("{problem}: is web_server.py running there? BILI_SERVER_URL says where it is looked for")
            raise ServerUnreachable(sentence.format(problem=problem(error, self.url))) from None
        try:
            answer = json.loads(reply.text)
        except (ValueError, RecursionError):
            answer = None
        if reply.status == 401:
            raise Unauthorized(_("the server {url} refuses BILI_TOKEN: it must be the same as there").format(url=url))
        reason = answer.get("error") if isinstance(answer, dict) else None
        if reply.status != 200 and isinstance(reason, str):
            sentence = _("the server {url} answers HTTP {status} {reason}")
            kind = ServerUnreachable if reply.status >= 500 else ServerError
            raise kind(sentence.format(url=url, status=reply.status, reason=harmless(reason)), reply.status)
        if reply.status != 200 or not isinstance(answer, dict):
            sentence = _("{url} is no queue server of this project: BILI_SERVER_URL is wrong, or a proxy is between")
            raise ServerError(sentence.format(url=url))
        return answer

    def seen(self, path: str) -> tuple[list[dict[str, Any]], bool] | None:
        """Return ``everything``; None where that is not for the role of the token."""
        try:
            return self.everything(path)
        except ServerError as error:
            if error.status != FORBIDDEN:
                raise
            return None

    def everything(self, path: str) -> tuple[list[dict[str, Any]], bool]:
        """Return the items of a list, and whether there are more than were read."""
        items: list[dict[str, Any]] = []
        after: Any = ""
        for _page in range(MOST_PAGES):
            answer = self.get(f"{path}?limit={PAGE}&after={quote(str(after), safe='')}")
            items += [item for item in answer.get("items", ()) if isinstance(item, dict)]
            after = answer.get("next")
            if after is None:
                return items, False
        return items, True


# ------------------------------------------------------------------------------------------ what there is to say


def gathered(server: _Server) -> dict[str, Any]:
    """Return all facts, as ``--json`` prints them."""
    status = server.get("/status")
    if not isinstance(status.get("jobs"), dict):
        server.get("/healthz")
        raise ServerError(_("{url} is no queue server of this project").format(url=place(server.url)))
    lists = {"sources": server.seen("/sources"), "failures": server.seen("/failed")}
    (sources, more_sources), (failed, more_failed) = (found or ([], False) for found in lists.values())
    hidden = ["workers"] if status.get("role") == "submit" else []
    lease_seconds = float(status.get("lease_seconds") or 0)
    workers = [_worker(worker, lease_seconds) for worker in status.get("workers", ()) if isinstance(worker, dict)]
    workers.sort(key=lambda worker: (worker["state"] == "away", worker["worker"]))
    return {
        "server": place(server.url),
        "jobs": {state: int(status["jobs"].get(state, 0)) for state in STATES},
        "speed_bytes_per_second": sum(worker["speed_bytes_per_second"] or 0 for worker in workers),
        "next_due_seconds": status.get("next_due_seconds"),
        "breakers": [breaker for breaker in status.get("breakers", ()) if isinstance(breaker, dict)],
        "workers": workers,
        "sources": sources,
        "failures": grouped(failed),
        "is_complete": not (more_sources or more_failed),
        "hidden": hidden + [name for name, found in lists.items() if found is None],
    }


def _worker(worker: Mapping[str, Any], lease_seconds: float) -> dict[str, Any]:
    """Return what is true of a worker: of one that was not heard of for long, its name."""
    seen_seconds = float(worker.get("seen_seconds") or 0)
    state = state_of(worker, seen_seconds, lease_seconds)
    told = worker if state != "away" else {}
    working = told.get("working") or {}
    return {
        "worker": str(worker.get("worker", "")),
        "state": state,
        "count": working.get("count"),
        "jobs": len(told.get("jobs") or ()),
        "speed_bytes_per_second": told.get("speed_bytes_per_second") if state not in GONE else None,
        "disk_free_bytes": told.get("disk_free_bytes"),
        "seen_seconds": seen_seconds,
        "note": str(told.get("note") or ""),
    }


def grouped(failed: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the failures by their code, the most frequent first, with the reason that is most frequent of each."""
    states: dict[str, Counter[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    for item in failed:
        code = str(item.get("code", ""))
        states.setdefault(code, Counter())[str(item.get("state"))] += 1
        reasons.setdefault(code, Counter())[str(item.get("reason", ""))] += 1
    codes = sorted(states, key=lambda code: (-states[code].total(), code))
    return [
        {
            "code": code,
            "dead": states[code]["dead"],
            "delayed": states[code]["delayed"],
            "reason": reasons[code].most_common(1)[0][0],
            "reasons": len(reasons[code]),
        }
        for code in codes
    ]


# ------------------------------------------------------------------------------------------ as tables


def tables(status: Mapping[str, Any], now: float) -> Iterator[Table | str]:
    """Yield what a person sees, piece by piece."""
    names = (_("ready"), _("in work"), _("delayed"), _("done"), _("failed"))
    yield _totals([f"{name}: {status['jobs'][state]}" for state, name in zip(STATES, names, strict=True)], status)
    for breaker in status["breakers"]:
        yield harmless(spoken(read_breaker(breaker)))
    yield ""
    if "workers" not in status["hidden"]:
        yield from _workers(status["workers"])
    yield from _sources(status["sources"], now)
    yield from _failures(status["failures"])
    if not status["is_complete"]:
        yield _("There are more: {address} lists all of them.").format(address="/sources, /failed")
    if status["hidden"]:
        words = {"workers": _("machines"), "sources": _("sources"), "failures": _("failures")}
        yield _(
            "Not for the role of this token: {things}. BILI_TOKEN of the server, or an admin's token, shows all."
        ).format(things=", ".join(words[name] for name in status["hidden"]))


def _totals(jobs: Sequence[str], status: Mapping[str, Any]) -> str:
    due_seconds = status["next_due_seconds"]
    due = "" if due_seconds is None else _("next try in {span}").format(span=span_text(float(due_seconds)))
    return " · ".join(filter(None, [*jobs, speed_text(status["speed_bytes_per_second"]), due]))


def _workers(workers: Sequence[Mapping[str, Any]]) -> Iterator[Table | str]:
    if not workers:
        yield _("No worker is here yet. Start one, on this machine or on any other:") + " python run.py"
        return
    table = _table(
        *(_("worker"), _("state"), _("jobs"), _("at most"), _("speed"), _("disk free"), _("heard of")),
        right=(2, 3, 4, 5),
        wraps=0,
    )
    for worker in workers[:MOST_ROWS]:
        speed, free = worker["speed_bytes_per_second"], worker["disk_free_bytes"]
        is_away = worker["state"] == "away"
        _add(
            table,
            worker["worker"],
            WORDS.get(worker["state"], worker["state"]),
            "" if is_away else str(worker["jobs"]),
            str(worker["count"] or ""),
            "" if speed is None else speed_text(speed),
            "" if free is None else size_text(free),
            _("{span} ago").format(span=span_text(worker["seen_seconds"])),
        )
    yield table
    yield from _others(workers)
    for worker in workers[:MOST_ROWS]:
        if worker["note"]:
            yield harmless(f"{worker['worker']}: {worker['note']}")


def _sources(sources: Sequence[Mapping[str, Any]], now: float) -> Iterator[Table | str]:
    if not sources:
        return
    yield ""
    names = (_("source"), _("title"), _("state"), _("listed"), _("new"), _("known"), _("gone"), _("watched"), _("read"))
    rows = [facts(source, now) for source in sources[:MOST_ROWS]]
    shown = [place for place in range(len(names)) if place < ALWAYS or {row[place] for row in rows} - {"", "0"}]
    numbers = [shown.index(place) for place in (3, 4, 5, 6) if place in shown]
    table = _table(*(names[place] for place in shown), right=numbers, wraps=1)
    for row in rows:
        _add(table, *(row[place] for place in shown))
    yield table
    yield from _others(sources)


def _failures(failures: Sequence[Mapping[str, Any]]) -> Iterator[Table | str]:
    if not failures:
        return
    yield ""
    table = _table(_("failed"), _("delayed"), _("code"), _("reason"), right=(0, 1), wraps=3)
    for failure in failures[:MOST_ROWS]:
        others = failure["reasons"] - 1
        reason = translated(failure["reason"]) + (
            " " + _("(and {count} others)").format(count=others) if others else ""
        )
        _add(table, str(failure["dead"]), str(failure["delayed"]), failure["code"], reason)
    yield table
    yield from _others(failures)


def _others(items: Sequence[object]) -> Iterator[str]:
    if len(items) > MOST_ROWS:
        yield _("{more} and {count} more").format(more="…", count=len(items) - MOST_ROWS)


def _table(*names: str, right: Sequence[int] = (), wraps: int) -> Table:
    """Return an empty table, of which one column takes several lines where the terminal is narrow."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(names):
        kept = number != wraps
        justify: Literal["left", "right"] = "right" if number in right else "left"
        table.add_column(name, justify=justify, no_wrap=kept, overflow="ellipsis" if kept else "fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(harmless, cells))
