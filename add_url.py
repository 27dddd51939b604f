"""Entry: put videos into the queue: ids, addresses, lists of them, and what lists videos on the site.

It writes to REDIS_URL if set; else, if BILI_SERVER_URL names another machine, through the server there; else to
the embedded queue. Whatever was submitted is reduced to an id before it goes anywhere. A source (an uploader, a
season …) is read at once where the queue itself can be reached; behind a server, or where an account is needed, a
worker reads it.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast
from urllib.parse import urlencode
from uuid import uuid4

from add_options import check_options, make_parser, ranked_categories
from budgets import groups_of, read_told
from config import CATEGORIES, Category, Settings, load
from engine_url import read_url
from errors import (
    DownloaderError,
    EngineError,
    JobError,
    PermanentError,
    ServerError,
    ServerUnreachable,
    StaleToken,
    Unauthorized,
    UsageError,
)
from finding import find_jobs, job_table, meant
from i18n import _
from log_setup import note, start_logging
from model import Added, Budget, Failure, Lease
from parse_ import BROKEN, SiteHosts, parse_job_id, parse_ranking, parse_target, plain_video
from plain_text import json_text
from queue_files import move_whole
from redisConnect import Queue, open_queue
from server_choice import ServerChoice, is_there, together
from server_trust import clear_text_note
from site_walk import Answer, Site, answer_of, new_session, persist, place, problem, shown
from source_ids import LESSON, RANKING, Source, find_source
from sources import (
    SourceWalk,
    chosen_pages,
    facts,
    first_cursor,
    parse_source,
    plan_request,
)

BATCH = 1000
_REFUSED = frozenset({"-101", "-403"})
"""Codes of what a guest may not see, and an account perhaps."""
RANKED = 10
"""So many of a ranking, unless --limit says otherwise."""
NAMED_AT_MOST = 1000
"""So many rejected entries are named one by one; the others are counted."""
MAX_LINE_CHARACTERS = 4096
PATIENCE_SECONDS = 1.0
"""A line that trickles in waits at most this long for others (until the next line comes)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One submitted text, and the file and line where it stands; ``where`` is empty on the command line."""

    text: str
    where: str = ""


@dataclass(slots=True)
class Tally:
    """What became of the entries so far; ``str`` is the line that scripts read, English in any language."""

    added: int = 0
    known: int = 0
    rejected: int = 0

    def add(self, other: Tally) -> None:
        """Count what another tally counted."""
        self.added += other.added
        self.known += other.known
        self.rejected += other.rejected

    def __str__(self) -> str:
        return f"added {self.added}, known {self.known}, rejected {self.rejected}"


@contextmanager
def undivided() -> Iterator[None]:
    """Hold a signal back until what is inside is counted, or has failed; a second one is let through at once."""
    held: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((number, frame))
        if len(held) > 1:
            before[signal.Signals(number)](number, frame)

    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number_held, frame in held:
            before[signal.Signals(number_held)](number_held, frame)


def say(text: str) -> None:
    """Write a line for a person, to stderr: stdout belongs to the line that scripts read."""
    print(text, file=sys.stderr, flush=True)
    note(text)


# ------------------------------------------------------------------------------------------ where it writes


class Sink(Protocol):
    """Where ids go: the queue itself (``redisConnect.Queue``), or a server that has it (``ServerSink``)."""

    def add(
        self,
        ids: Sequence[str],
        category: str,
        source: str,
        refresh: bool,
        request: str,
        wishes: Mapping[str, Any] | None = None,
        again: bool = False,
        watch: int = 0,
    ) -> Added:
        """Queue ids, at most BATCH; an empty category means the queue's own, a repeated request counts once."""

    def watch(self, url: str, seconds: int) -> int:
        """Have a source or a video read again and again, or with 0 no more; return what was set before."""

    def sources(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of ledgers, and where the next one starts, None at the end."""

    def failed(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of failed jobs, and where the next one starts, None at the end."""

    def jobs(
        self, state: str = "", category: str = "", source: str = "", find: str = "", after: str = "", limit: int = 100
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of jobs, and where the next one starts, None at the end."""

    def success(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of finished pages, and where the next one starts, None at the end."""

    def redrive(self, urls: Sequence[str]) -> int:
        """Make these dead or delayed jobs ready again; return how many were either."""

    def redrive_all(self) -> int:
        """Make all dead jobs ready again; return how many there were."""

    def close(self) -> None:
        """Let go of the connection."""


def open_sink(settings: Settings) -> Sink:
    """Return where the settings say that ids go, and say it."""
    if settings.redis_url:
        say(_("The queue is in Redis at {url}.").format(url=read_url(settings.redis_url).place))
    elif not settings.server_is_local:
        say(_("The queue is at the server {url}.").format(url=", ".join(map(place, settings.server_urls))))
        if note := clear_text_note(settings):
            say(note)
        return ServerSink(settings)
    else:
        say(_("The queue is the embedded one in {folder}.").format(folder=settings.data_dir))
    # Without a default of its own the queue keeps every category that is given: the server's may be another.
    return open_queue(replace(settings, category=""), is_patient=True)


class ServerSink:
    """The queue behind the servers at BILI_SERVER_URL."""

    def __init__(self, settings: Settings) -> None:
        self._servers = ServerChoice(settings.server_urls, time.monotonic)
        self._url = settings.server_url
        if not settings.token:
            sentence = _("BILI_TOKEN is not set: the server {url} is on another machine and wants it")
            raise UsageError(sentence.format(url=place(self._url)))
        self._session = new_session(settings.token, not settings.server_is_local, settings.server_pins)

    def add(
        self,
        ids: Sequence[str],
        category: str,
        source: str,
        refresh: bool,
        request: str,
        wishes: Mapping[str, Any] | None = None,
        again: bool = False,
        watch: int = 0,
    ) -> Added:
        """Queue ids, at most BATCH."""
        more = {"category": category, "source": source, "refresh": refresh, "request": request}
        more |= {"wishes": wishes, "again": again, "watch": watch}
        answer = self._call("POST", "/add_url", {"urls": list(ids), **{k: v for k, v in more.items() if v}})
        rejected = tuple((str(item.get("url")), str(item.get("reason"))) for item in self._items(answer, "rejected"))
        return Added(self._integer(answer, "added"), self._integer(answer, "known"), rejected)

    def failed(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of failed jobs."""
        answer = self._call("GET", f"/failed?{urlencode({'after': after, 'limit': limit})}")
        return self._items(answer, "items"), answer.get("next") or None

    def jobs(
        self, state: str = "", category: str = "", source: str = "", find: str = "", after: str = "", limit: int = 100
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of jobs."""
        query = {"state": state, "category": category, "source": source, "find": find, "after": after, "limit": limit}
        answer = self._call("GET", f"/jobs?{urlencode({name: value for name, value in query.items() if value})}")
        return self._items(answer, "items"), answer.get("next") or None

    def success(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of finished pages."""
        answer = self._call("GET", f"/success?{urlencode({'after': after, 'limit': limit})}")
        return self._items(answer, "items"), answer.get("next") or None

    def watch(self, url: str, seconds: int) -> int:
        """Have a source or a video read again and again, or no more."""
        return self._integer(self._call("POST", "/watch", {"source": url, "seconds": seconds}), "before")

    def sources(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return a piece of the list of ledgers."""
        answer = self._call("GET", f"/sources?{urlencode({'after': after, 'limit': limit})}")
        return self._items(answer, "items"), answer.get("next") or None

    def redrive(self, urls: Sequence[str]) -> int:
        """Make these dead or delayed jobs ready again."""
        return self._integer(self._call("POST", "/redrive", {"urls": list(urls)}), "redriven")

    def redrive_all(self) -> int:
        """Make all dead jobs ready again."""
        return self._integer(self._call("POST", "/redrive", {"all": True}), "redriven")

    def budget(self, worker: str, standing: Mapping[str, Any]) -> Budget | None:
        """Tell how the site was asked; return how it may be, None where the server knows nothing of that."""
        try:
            answer = self._call("POST", "/budget", {"worker": worker, **standing})
            rate, parked_seconds = answer["requests_per_second"], float(answer["parked_seconds"])
            holds_seconds, probes = float(answer["holds_seconds"]), bool(answer.get("probes"))
            return Budget(None if rate is None else float(rate), parked_seconds, holds_seconds, probes)
        except ServerError as error:
            if error.status != 404:
                raise
            return None
        except BROKEN:
            raise self.nonsense() from None

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _call(self, method: str, path: str, content: object = None) -> dict[str, Any]:
        return persist(lambda: self._call_each(method, path, content), ServerUnreachable)

    def _call_each(self, method: str, path: str, content: object) -> dict[str, Any]:
        """Ask one server after the other until one answers."""
        problems: dict[str, ServerUnreachable] = {}
        for url in self._servers.in_order():
            self._url = url
            try:
                answer = self._call_once(method, path, content)
            except ServerUnreachable as error:
                problems[place(url)] = error
                if is_there(error):
                    break
                self._servers.failed(url)
                continue
            self._servers.answered(url)
            return answer
        raise together(problems)

    def _call_once(self, method: str, path: str, content: object) -> dict[str, Any]:
        try:
            reply = answer_of(self._session, method, self._url + path, json=content, timeout=(10, 60))
        except (OSError, ValueError) as error:
            raise ServerUnreachable(problem(error, self._url)) from error
        try:
            answer = json.loads(reply.text)
        except (ValueError, RecursionError):
            answer = None
        if reply.status == 200 and isinstance(answer, dict):
            return answer
        raise self._refusal(reply, str(answer.get("error", "")) if isinstance(answer, dict) else "")

    def _refusal(self, reply: Answer, reason: str) -> ServerError:
        status, retry_after = reply.status, reply.headers.get("Retry-After", "")
        if status == 200:
            return self.nonsense()
        if status == 401:
            sentence = _("the server {url} refuses BILI_TOKEN: it must be the same as there")
            return Unauthorized(sentence.format(url=place(self._url)), status)
        sentence = _("the server {url} answers HTTP {status} {reason}")
        sentence = sentence.format(url=place(self._url), status=status, reason=shown(reason)).strip()
        if status == 429 or status >= 500:
            return ServerUnreachable(sentence, status, float(retry_after) if retry_after.isdecimal() else None)
        return ServerError(sentence, status)

    def _integer(self, answer: Mapping[str, Any], name: str) -> int:
        if type(value := answer.get(name)) is not int:
            raise self.nonsense()
        return value

    def _items(self, answer: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        items = answer.get(name, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise self.nonsense()
        return items

    def nonsense(self) -> ServerError:
        """Return what is to be said of a server that answers what none of ours does."""
        sentence = _("{url} is no queue server of this project: BILI_SERVER_URL is wrong, or a proxy is between")
        return ServerError(sentence.format(url=place(self._url)))


@contextmanager
def believed(sink: Sink) -> Iterator[None]:
    """Say in one sentence that a server lists what cannot be; what the queue itself lists is believed."""
    try:
        yield
    except BROKEN as error:
        if isinstance(sink, ServerSink):
            raise sink.nonsense() from error
        raise


@contextmanager
def open_site(settings: Settings, sink: Sink) -> Iterator[Site]:
    """Give the site, asked as often as the workers on our line leave room for."""
    name = f"add_url {socket.gethostname()[:40]} {os.getpid()}"

    def ask_budget(standing: Mapping[str, Any]) -> Budget | None:
        if isinstance(sink, Queue):
            return sink.budget(name, groups_of("", settings.egress), read_told(standing["site"], may_probe=True))
        return sink.budget(name, standing) if isinstance(sink, ServerSink) else None

    site = Site(settings, ask_budget)
    try:
        yield site
    finally:
        site.close()
        if isinstance(sink, Queue):
            with suppress(EngineError):
                sink.leave_budget(name, groups_of("", settings.egress))


# ------------------------------------------------------------------------------------------ what was named


def is_listing(id_: str) -> bool:
    """Tell a source from a video, an episode or a lesson."""
    return parse_job_id(id_).is_source and not id_.startswith(LESSON)


def needs_account(source: str) -> bool:
    """Tell whether what is listed depends on the account: which lessons of a course it owns, what it put aside."""
    return source.startswith("cheese:") or plan_request(first_cursor(source)).login


def source_wishes(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is wished of sources."""
    wishes = {"since": options.since, "match": options.match, "limit": options.limit}
    return {name: value for name, value in {**wishes, "oldest_first": options.oldest_first}.items() if value}


def read_entries(stream: io.BufferedReader, name: str) -> Iterator[Entry]:
    """Yield the entries of a list, in constant memory: blank lines and comments are skipped, long lines cut."""
    # Windows PowerShell's ">" writes UTF-16.
    utf16 = stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = io.TextIOWrapper(stream, encoding="utf-16" if utf16 else "utf-8-sig", errors="replace")
    try:
        number = 0
        while line := text.readline(MAX_LINE_CHARACTERS):
            number += 1
            rest = line
            while rest and not rest.endswith("\n"):
                rest = text.readline(MAX_LINE_CHARACTERS)
            line = line.strip().lstrip("\ufeff")
            if line and not line.startswith("#"):
                yield Entry(line, f"{name}:{number}")
    finally:
        text.detach()  # the stream is closed by whoever opened it


def file_entries(names: Iterable[str]) -> Iterator[Entry]:
    """Yield the entries of files, ``-`` being standard input; UsageError names a file that cannot be read."""
    for name in names:
        try:
            if name == "-":
                yield from read_entries(cast(io.BufferedReader, sys.stdin.buffer), "stdin")
            else:
                with Path(name).open("rb") as stream:
                    yield from read_entries(stream, name)
        except OSError as error:
            raise UsageError(_("{file} cannot be read: {problem}").format(file=name, problem=error.strerror)) from error


def find_category(text: str) -> Category:
    """Return the category whose ranking ``rank:NAME`` means; ValueError if there is none."""
    name = text.partition(":")[2].strip()
    for category in CATEGORIES:
        if category.name == name:
            return category
    names = ", ".join(category.name for category in CATEGORIES)
    raise ValueError(_("no ranking has this name; these are configured: {names}").format(names=names))


def ranking_source(ranked: Category) -> str:
    """Return the source that a category's ranking is."""
    return str(Source(RANKING, ranked.rid, parts=tuple(sorted(ranked.tids))))


_Batch = Sequence[tuple[str, Entry]]
"""Ids, each with the entry that named it."""


class Adder:
    """Brings entries to a sink, in batches; the tally has what is certainly queued."""

    def __init__(
        self, sink: Sink, site: Site, options: argparse.Namespace, default_category: str, again: bool = False
    ) -> None:
        self.tally = Tally()
        self._sink = sink
        self._site = site
        self._category: str = options.category or default_category
        self._named_category: str = options.category
        self._options = options
        self._wishes = source_wishes(options)
        self._again = again
        self._watch: int = options.watch or 0
        # Later rounds of a watch leave known videos to the watch in the queue, which asks them once a day.
        self._refresh = bool(options.refresh or (options.watch and not again))
        self._batch: list[tuple[str, Entry]] = []
        self._waiting_since = 0.0
        self._sender = ThreadPoolExecutor(1, "add")
        self._on_the_way: deque[tuple[_Batch, Future[Added]]] = deque()

    def take(self, entry: Entry) -> None:
        """Queue one entry with the next batch, or what it lists at once, or name it as rejected."""
        if not self._options.pages and (video := plain_video(entry.text, self._site.hosts)):
            self._take_ids(entry, (video,))
            return
        try:
            named = self._named(entry.text)
            if isinstance(named, str):
                self._take_named(entry, named)
            elif self._is_source_of_its_own():
                self._take_source(entry, ranking_source(named), self._folder(named))
            else:
                self._take_ranking(entry, named)
        except (ValueError, JobError) as error:
            code = f" ({error.code})" if isinstance(error, JobError) else ""
            self._reject(entry, f"{error}{code}{_hint(entry)}")

    def watched_id(self, text: str) -> str:
        """Return the id by which the watch knows what a text names."""
        named = self._named(text)
        return named if isinstance(named, str) else ranking_source(named)

    def _named(self, text: str) -> str | Category:
        """Return the id that a text names, or what is known of a ranking of a whole region or of a category."""
        if text.lower().startswith("rank:") and not re.fullmatch(r"[0-9]+(:[0-9,]*)?", text[5:].strip()):
            return find_category(text)
        source = self._source(text)
        ranked = find_source(source) if source else None
        if ranked is not None and ranked.kind == RANKING and not ranked.parts:
            return Category("", ranked.number)
        return source or self._id(text)

    def _take_named(self, entry: Entry, id_: str) -> None:
        if is_listing(id_):
            self._take_source(entry, id_, self._category)
        else:
            self._take_ids(entry, self._pages(id_))

    def _take_ids(self, entry: Entry, ids: Iterable[str]) -> None:
        self._waiting_since = self._waiting_since or time.monotonic()
        self._batch += [(id_, entry) for id_ in ids]
        if len(self._batch) >= BATCH or time.monotonic() - self._waiting_since > PATIENCE_SECONDS:
            self.flush()

    def _take_ranking(self, entry: Entry, ranked: Category) -> None:
        ids = parse_ranking(self._site.ranking(ranked.rid), ranked)[: self._options.limit or RANKED]
        if not ids:
            say(_("{target}: no video of it is in the ranking now").format(target=shown(entry.text)))
        self._send([(id_, entry) for id_ in ids], self._folder(ranked), f"rank:{ranked.rid}")

    def _folder(self, ranked: Category) -> str:
        return self._named_category or ranked.name or self._category

    def _is_source_of_its_own(self) -> bool:
        """Tell whether a ranking is read as other sources are: it is watched, or more is wished than its first ones."""
        options = self._options
        return bool(options.watch or options.since or options.match or options.oldest_first)

    def _source(self, text: str) -> str | None:
        """Return the source that a text names: all of it, its first word, or the first address in it."""
        words = text.split(maxsplit=1)
        named = [text] if text.lower().startswith("search:") else words[:1]
        if address := re.search(r"https?://[!-~]+", text):
            named.append(address[0])
        for name in named:
            if source := parse_source(name, self._site.hosts):
                return source
        return None

    def _pages(self, id_: str) -> list[str]:
        """Return the containers of the pages that are wished of a video, or the video itself."""
        job = parse_job_id(id_)
        if not self._options.pages or job.number:
            return [id_]
        if not job.bvid:
            raise ValueError(_("--pages is for videos, and this is none"))
        count = self._site.page_count(job.bvid)
        return [str(replace(job, number=number)) for number in chosen_pages(self._options.pages, count)]

    def _take_source(self, entry: Entry, source: str, category: str) -> None:
        if self._options.pages:
            raise ValueError(_("--pages is for videos, and this is none"))
        sink, wishes = self._sink, self._wishes
        if source.startswith(RANKING):
            wishes = {"limit": RANKED, **wishes}
        if not isinstance(sink, Queue) or needs_account(source):
            self._send([(source, entry)], category, "", wishes)
            return
        if_due = self._again
        if self._watch and not sink.watch(source, self._watch):
            if_due = False  # it has come into the list since the last round
        waiting = [source]
        while waiting:
            source = waiting.pop(0)
            found = sink.claim(
                source,
                f"add_url {socket.gethostname()}"[:64],
                category,
                wishes,
                bool(self._options.refresh),
                if_due=if_due,
            )
            if isinstance(found, Lease):
                waiting += self._walk(sink, found)
            elif found == "open":
                say(_("{source} is being read by a worker now").format(source=source))

    def _walk(self, queue: Queue, lease: Lease) -> list[str]:
        """Read a source to its end; return the sources in it. What is not read stays in the queue, for a worker."""
        assert lease.walk is not None  # a claim gives sources only
        nested: list[str] = []
        walk = SourceWalk(lease.url, lease.walk)
        try:
            while True:
                page = self._site.listing(walk.request, walk.read)
                for told in walk.take(page):
                    with undivided():
                        answer = queue.expand(lease.url, lease.token, (), told.urls, told.more, told.ledger)
                        self.tally.added += answer.added
                        self.tally.known += answer.known
                    nested += [url for url in told.urls if is_listing(url)]
                    if answer.ended or not told.more:
                        return nested
        except JobError as error:
            if error.code in _REFUSED and self._site.has_account:
                queue.release(lease.url, lease.token)
                say(_("{source}: {reason}; a worker asks with its account").format(source=lease.url, reason=error))
                return nested
            queue.nack(lease.url, lease.token, Failure(error.kind, error.code, str(error), walk.title))
            if isinstance(error, PermanentError):
                raise
            sentence = _("{source}: {reason} ({code}); a worker goes on with it later")
            say(sentence.format(source=lease.url, reason=error, code=error.code))
        except StaleToken:
            say(_("{source}: a worker goes on with it").format(source=lease.url))
        except (KeyboardInterrupt, Terminated):
            with suppress(StaleToken, EngineError):
                queue.release(lease.url, lease.token)
            raise
        return nested

    def flush(self) -> None:
        """Send what waits for its batch to fill, and go on meanwhile; what was sent before is counted first."""
        batch, self._batch, self._waiting_since = self._batch, [], 0.0
        if batch:
            self._on_the_way.append((batch, self._sender.submit(self._add, batch, self._category, "")))
        while len(self._on_the_way) > 1:
            self._count_next()

    def finish(self) -> None:
        """Queue and count all that was taken; where it was interrupted, what is on its way is still counted."""
        self.flush()
        self.settle()

    def settle(self) -> None:
        """Wait for what is on its way, and count it."""
        while self._on_the_way:
            self._count_next()

    def close(self) -> None:
        """Count what is on its way, unless the queue is away, and end."""
        try:
            with suppress(EngineError, ServerError), undivided():
                self.settle()
        finally:
            self._sender.shutdown()
            if (more := self.tally.rejected - NAMED_AT_MOST) > 0:
                say(_("{count} more were rejected").format(count=more))

    def _count_next(self) -> None:
        with undivided():
            batch, answer = self._on_the_way.popleft()
            self._count(batch, answer.result())

    def _id(self, text: str) -> str:
        """Return the id that a text names: its first word, else the first address in it, as in a shared text."""
        word = (text.split(maxsplit=1) or [""])[0]
        try:
            target = parse_target(word, self._site.hosts)
        except ValueError:
            address = re.search(r"https?://[!-~]+", text)
            if address is None or address[0] == word:
                raise
            target = parse_target(address[0], self._site.hosts)
        return target.id or self._site.resolve(target.short_link)

    def _send(
        self,
        batch: _Batch,
        category: str,
        source: str,
        wishes: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue ids; with ``wishes`` they are sources, and read again where this is not a later round of a watch."""
        if batch:
            with undivided():
                self._count(batch, self._add(batch, category, source, wishes))

    def _add(self, batch: _Batch, category: str, source: str, wishes: Mapping[str, Any] | None = None) -> Added:
        more: dict[str, Any] = {} if wishes is None else {"wishes": wishes, "again": not self._again}
        if self._watch and not source:
            more["watch"] = self._watch
        refresh = self._refresh and (wishes is None or bool(self._options.refresh))
        ids = [id_ for id_, _entry in batch]
        return self._sink.add(ids, category, source, refresh, uuid4().hex, **more)

    def _count(self, batch: _Batch, answer: Added) -> None:
        self.tally.added += answer.added
        self.tally.known += answer.known
        if answer.rejected:
            entries = dict(reversed(batch))
            for id_, reason in answer.rejected:
                self._reject(entries.get(id_, Entry(id_)), reason)

    def _reject(self, entry: Entry, reason: str) -> None:
        self.tally.rejected += 1
        if self.tally.rejected <= NAMED_AT_MOST:
            where = f"{entry.where}: " if entry.where else ""
            say(where + _("rejected {target}: {reason}").format(target=shown(entry.text), reason=shown(reason)))


def _hint(entry: Entry) -> str:
    with suppress(OSError, ValueError):
        if not entry.where and Path(entry.text).is_file():
            return _(" (a list of targets is given with --file {file})").format(file=entry.text)
    return ""


# ------------------------------------------------------------------------------------------ what is done


def add_all(sink: Sink, settings: Settings, options: argparse.Namespace, tally: Tally, again: bool = False) -> None:
    """Queue everything that the options name, once; ``tally`` has what was done also when this is interrupted."""
    entries: Iterable[Entry] = map(Entry, options.targets)
    if options.file:
        entries = chain(entries, file_entries(options.file))
    elif not options.targets:
        entries = [Entry(f"rank:{category.name}") for category in ranked_categories(options.category)]
    # The built-in default is left to the queue, which may have one of its own.
    default = "" if settings.category == Settings().category else settings.category
    with open_site(settings, sink) as site:
        adder = Adder(sink, site, options, default, again)
        try:
            with progress(bool(options.file) and sys.stderr.isatty()) as advance:
                for entry in entries:
                    adder.take(entry)
                    advance()
                adder.finish()
        finally:
            adder.close()
            tally.add(adder.tally)


@contextmanager
def progress(wanted: bool) -> Iterator[Callable[[], None]]:
    """Show how many entries were read, on a terminal; yield the function to call for each."""
    if not wanted:
        yield lambda: None
        return
    from rich.console import Console  # only a terminal needs it, and it is slow to import
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(_("targets read:"), total=None)
        read = count()

        def advance() -> None:
            if (number := next(read)) % 100 == 0:  # the bar costs more than the entry
                bar.update(task, completed=number)

        yield advance


def watch(sink: Sink, settings: Settings, options: argparse.Namespace, total: Tally) -> None:
    """Queue everything again and again, until a signal ends it; what fails in one round may work in the next."""
    again = False
    while True:
        this_round = Tally()
        try:
            add_all(sink, settings, options, this_round, again)
            again = True
        except DownloaderError as error:
            if total == this_round == Tally():  # nothing ever worked: more likely a mistake than a hiccup
                raise
            say(_("{time} this round failed, the next is in {seconds} s: {reason}").format(
                time=time.strftime("%Y-%m-%d %H:%M:%S"), seconds=options.watch, reason=error
            ))  # fmt: skip
        finally:
            total.add(this_round)
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {this_round}", flush=True)
        time.sleep(options.watch)


def unwatch(sink: Sink, settings: Settings, options: argparse.Namespace, tally: Tally) -> None:
    """Watch sources and videos no more; one that was not watched is named, as what is rejected is."""
    with open_site(settings, sink) as site:
        adder = Adder(sink, site, options, "")
        for target in options.unwatch:
            try:
                watched = adder.watched_id(target)
                if not sink.watch(watched, 0):
                    raise ValueError(_("it is not watched"))
                say(_("{source} is watched no more").format(source=watched))
            except (ValueError, JobError) as error:
                tally.rejected += 1
                say(_("rejected {target}: {reason}").format(target=shown(target), reason=shown(str(error))))


def list_sources(sink: Sink, as_json: bool) -> None:
    """Print what is known of each source: a table for people, or one JSON text."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        items, after = sink.sources(after, BATCH)
        found += items
    if as_json:
        print(json_text(found))
        return
    from rich.console import Console  # as for the bar: slow to import
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in (
        _("source"),
        _("title"),
        _("state"),
        _("listed"),
        _("new"),
        _("known"),
        _("gone"),
        _("watched"),
        _("read"),
    ):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for item in found:
        table.add_row(*map(shown, facts(item, time.time())))
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def find(sink: Sink, settings: Settings, text: str, as_json: bool) -> bool:
    """Print where files are: a table for people, or one JSON text; tell whether there was anything."""
    found: list[dict[str, Any]] = []
    is_whole = True
    try:
        for job in find_jobs(sink, meant(text, SiteHosts(settings.web_url, settings.api_url, settings.short_url))):
            found.append(job)
    except ServerError as error:
        if error.status != 403:
            raise
        is_whole = False
        say(str(error))
        say(_("A token that may only add finds single jobs: by their id, or by the beginning of their title"))
    if as_json:
        print(json_text(found))
        return bool(found)
    from rich.console import Console  # as for the bar: slow to import

    if found:
        console = Console(width=None if sys.stdout.isatty() else 1000, markup=False, highlight=False, emoji=False)
        console.print(job_table(found))
    elif is_whole:
        say(_("Nothing is known of {text}").format(text=shown(text)))
    return bool(found)


def retry_failed(sink: Sink, match: str) -> int:
    """Make dead jobs ready again and return how many: all, or those with ``match`` in id, title, code or reason.

    What a user has cancelled comes back only where that very word is asked for.
    """
    if not match:
        return sink.redrive_all()
    urls: list[str] = []
    after: str | None = ""
    while after is not None:  # the whole list first: redriving moves what is behind the cursor
        items, after = sink.failed(after, BATCH)
        for item in items:
            texts = (str(item.get(name, "")) for name in ("url", "title", "code", "reason"))
            is_wanted = item.get("state") == "dead" and (item.get("code") != "cancelled" or match == "cancelled")
            if is_wanted and match.casefold() in "\n".join(texts).casefold():
                urls.append(str(item.get("url")))
    return sum(sink.redrive(urls[start : start + BATCH]) for start in range(0, len(urls), BATCH))


# ------------------------------------------------------------------------------------------ the command line


def perform(settings: Settings, options: argparse.Namespace, tally: Tally) -> None:
    """Do what the options say."""
    sink = open_sink(settings)
    try:
        if options.export or options.import_ or options.adopt:
            if not isinstance(sink, Queue):
                raise UsageError(
                    _("this is done where the queue itself can be reached: set REDIS_URL, or do it on its machine")
                )
            tally.rejected = move_whole(sink, settings, options, tell=print, say=say)
            return
        if options.retry_failed:
            with believed(sink):
                print(f"retried {retry_failed(sink, options.match)}")
            return
        if options.find:
            with believed(sink):
                options.missing = not find(sink, settings, options.find, options.json)
            return
        if options.unwatch or options.sources:
            if options.unwatch:
                unwatch(sink, settings, options, tally)
            if options.sources:
                with believed(sink):
                    list_sources(sink, options.json)
            return
        if not (options.targets or options.file):
            names = ", ".join(category.name for category in ranked_categories(options.category))
            sentence = _("Nothing was named: adding the first {count} of {names}")
            print(sentence.format(count=options.limit or RANKED, names=names), flush=True)
        (watch if options.watch else add_all)(sink, settings, options, tally)
    finally:
        sink.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status, 1 where whoever read its output has gone."""
    try:
        try:
            return run(arguments)
        finally:
            print(end="", flush=True)  # else the interpreter does, and complains
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # what could not be written is still in there, and goes nowhere at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1


def run(arguments: Sequence[str] | None) -> int:
    """Do what the command line says, and print the last line; return the exit status."""
    options = make_parser().parse_intermixed_args(arguments)
    options.missing = False
    options.category = options.category or ""  # an empty default would go through the check
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show Chinese
    tally = Tally()
    status = 0
    try:
        check_options(options)
        settings = load(os.environ)
        start_logging(settings)
        perform(settings, options, tally)
        status = 1 if tally.rejected or options.missing else 0
    except KeyboardInterrupt:
        say(_("Interrupted; what was added stays in the queue."))
        status = 130
    except Terminated:
        status = 0 if options.watch else 143
    except (UsageError, EngineError, ServerError) as error:
        say(str(error))
        status = 2
    no_tally = options.retry_failed or options.sources or options.unwatch or options.find
    no_tally = no_tally or options.export or options.import_ or options.adopt
    if not no_tally and (status != 2 or tally != Tally()):
        print(tally, flush=True)
    return status


class Terminated(BaseException):
    """SIGTERM came."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
