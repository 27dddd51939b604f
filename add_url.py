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

import requests

from config import CATEGORIES, Category, Settings, category_problem, load
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
from i18n import _
from log_setup import note, start_logging
from model import Added, Failure, Lease
from parse_ import parse_job_id, parse_ranking, parse_target, plain_video
from queue_files import move_whole
from redisConnect import Queue, open_queue
from site_walk import Site, body, new_session, persist, place, problem, shown
from source_ids import LESSON, RANKING, Source, find_source
from sources import (
    SourceWalk,
    chosen_pages,
    facts,
    first_cursor,
    parse_date,
    parse_pages,
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
        say(_("The queue is at the server {url}.").format(url=place(settings.server_url)))
        return ServerSink(settings)
    else:
        say(_("The queue is the embedded one in {folder}.").format(folder=settings.data_dir))
    # Without a default of its own the queue keeps every category that is given: the server's may be another.
    return open_queue(replace(settings, category=""), is_patient=True)


class ServerSink:
    """The queue behind the server at BILI_SERVER_URL."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.server_url
        if not settings.token:
            sentence = _("BILI_TOKEN is not set: the server {url} is on another machine and wants it")
            raise UsageError(sentence.format(url=place(self._url)))
        self._session = new_session(settings.token, trust_env=not settings.server_is_local)

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

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _call(self, method: str, path: str, content: object = None) -> dict[str, Any]:
        return persist(lambda: self._call_once(method, path, content), ServerUnreachable)

    def _call_once(self, method: str, path: str, content: object) -> dict[str, Any]:
        try:
            with self._session.request(method, self._url + path, json=content, timeout=(10, 60), stream=True) as reply:
                text = body(reply)
        except (OSError, ValueError) as error:
            raise ServerUnreachable(problem(error, self._url)) from error
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if reply.status_code == 200 and isinstance(answer, dict):
            return answer
        raise self._refusal(reply, str(answer.get("error", "")) if isinstance(answer, dict) else "")

    def _refusal(self, reply: requests.Response, reason: str) -> ServerError:
        status, retry_after = reply.status_code, reply.headers.get("Retry-After", "")
        if status == 200:
            return self._nonsense()
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
            raise self._nonsense()
        return value

    def _items(self, answer: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        items = answer.get(name, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise self._nonsense()
        return items

    def _nonsense(self) -> ServerError:
        sentence = _("{url} is no queue server of this project: BILI_SERVER_URL is wrong, or a proxy is between")
        return ServerError(sentence.format(url=place(self._url)))


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
    site = Site(settings)
    adder = Adder(sink, site, options, default, again)
    try:
        with progress(bool(options.file) and sys.stderr.isatty()) as advance:
            for entry in entries:
                adder.take(entry)
                advance()
            adder.finish()
    finally:
        adder.close()
        site.close()
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
    site = Site(settings)
    adder = Adder(sink, site, options, "")
    try:
        for target in options.unwatch:
            try:
                watched = adder.watched_id(target)
                if not sink.watch(watched, 0):
                    raise ValueError(_("it is not watched"))
                say(_("{source} is watched no more").format(source=watched))
            except (ValueError, JobError) as error:
                tally.rejected += 1
                say(_("rejected {target}: {reason}").format(target=shown(target), reason=shown(str(error))))
    finally:
        site.close()


def list_sources(sink: Sink, as_json: bool) -> None:
    """Print what is known of each source: a table for people, or one JSON text."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        items, after = sink.sources(after, BATCH)
        found += items
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
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

EXAMPLES = _("""\
examples:
  python add_url.py BV1xx411c7mD av170001 ep123456
  python add_url.py "https://www.bilibili.com/video/BV1xx411c7mD?p=3" https://b23.tv/abc123
  python add_url.py --file list.txt --category music
  grep -o "BV1[0-9A-Za-z]*" notes.md | python add_url.py --file -
  python add_url.py rank:1010 --limit 20 --watch 3600
  python add_url.py mid:137137 --since 2024-12-31 --match review
  python add_url.py "https://space.bilibili.com/137137/favlist?fid=1234567" season:4259 ss28747
  python add_url.py mid:137137 --watch 3600
  python add_url.py --unwatch mid:137137
  python add_url.py BV1xx411c7mD --pages 1-3,5,-1
  python add_url.py --sources
  python add_url.py --retry-failed --match timeout

In a list each line is one target: its first word, or, where that is none, the first address in the line, so
that a text shared by the app is fine; the rest of the line is ignored. Blank lines and lines that begin with #
are skipped. An address with ?p=3 means that page only; without it, all pages.

The last line printed is "added 3, known 2, rejected 1". Exit status: 0 all queued or known; 1 something was
rejected (named on stderr; the rest is queued); 2 wrong usage or settings, or no queue; 130 interrupted.""")


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="add_url.py",
        description=_("Put videos into the download queue."),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help=_("a BV, av or ep id, an address of a video, an episode or a list of videos, a b23.tv link, or a"
               " source: mid:, fav:, favs:, lists:, season:, series:, ss, md, cheese:, rank:, search:, popular, weekly,"
               " precious, later; with no target at all, the ranking of every configured category"),
    )  # fmt: skip
    parser.add_argument(
        "--file",
        action="append",
        metavar="F",
        help=_("a list of targets, one a line; - is standard input; may be given several times"),
    )
    parser.add_argument("--category", metavar="NAME", type=_category, help=_("the folder to download into"))
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_whole_number(1, 100_000),
        help=_("how many of each ranking (10) or source (all)"),
    )
    parser.add_argument(
        "--since", metavar="DATE", type=parse_date, default=0, help=_("of sources: what was published since 2024-12-31")
    )
    parser.add_argument("--oldest-first", action="store_true", help=_("of sources: the oldest first"))
    parser.add_argument(
        "--pages", metavar="P", type=parse_pages, default=(), help=_("of videos: these pages only, as in 1-3,5,-1")
    )
    parser.add_argument("--refresh", action="store_true", help=_("ask known videos again for new pages"))
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_whole_number(10, 31 * 86400),
        help=_("do it all again and again, and have the queue remember it; 10 or more"),
    )
    parser.add_argument("--retry-failed", action="store_true", help=_("queue again what failed for good"))
    parser.add_argument(
        "--match",
        metavar="TEXT",
        default="",
        help=_("of sources only what has TEXT in its title; of the failed, in title, reason, code or id"),
    )
    parser.add_argument("--unwatch", metavar="TARGET", action="append", help=_("watch a source or a video no more"))
    parser.add_argument(
        "--sources", action="store_true", help=_("list the sources and watched videos, and what was found")
    )
    parser.add_argument("--json", action="store_true", help=_("with --sources: as JSON"))
    parser.add_argument(
        "--export",
        metavar="F",
        help=_("write the whole queue into a file of JSON lines, packed if it ends in .gz; - is stdout"),
    )
    parser.add_argument(
        "--import", dest="import_", metavar="F", help=_("bring what --export has written into the queue; - is stdin")
    )
    parser.add_argument(
        "--adopt",
        metavar="FOLDER",
        help=_("take the files in a folder for finished pages, as far as they say which ones"),
    )
    parser.add_argument("--dry-run", action="store_true", help=_("with --adopt: say it, and change nothing"))
    parser.add_argument(
        "--offline", action="store_true", help=_("with --adopt: ask the site for nothing that the files do not say")
    )
    return parser


def _category(text: str) -> str:
    if wrong := category_problem(text):
        raise argparse.ArgumentTypeError(wrong)
    return text


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            sentence = _("it must be a whole number from {low} to {high}")
            raise argparse.ArgumentTypeError(sentence.format(low=low, high=high))
        return int(text)

    return parse


def check_options(options: argparse.Namespace) -> None:
    """Raise UsageError for options that make no sense together, and for files that cannot be read."""
    named = bool(options.targets or options.file)
    if _of_the_whole(options, named):
        return
    if options.retry_failed and (named or options.watch):
        raise UsageError(_("--retry-failed takes no targets, no --file and no --watch"))
    if (options.sources or options.unwatch) and (named or options.watch or options.retry_failed):
        raise UsageError(_("--sources and --unwatch take no targets, no --file, no --watch and no --retry-failed"))
    if options.json and not options.sources:
        raise UsageError(_("--json goes with --sources only"))
    if (options.match or options.since or options.oldest_first) and not (named or options.retry_failed):
        raise UsageError(_("--match, --since and --oldest-first want a source to choose from"))
    for name in options.file or ():
        _check_file(name, options.watch)
    if not (named or options.retry_failed or options.sources or options.unwatch):
        ranked_categories(options.category)


def _of_the_whole(options: argparse.Namespace, named: bool) -> bool:
    """Tell whether the whole queue is exported or imported, or a folder adopted; UsageError for more than that."""
    wanted = sum(map(bool, (options.export, options.import_, options.adopt)))
    others = named or options.watch or options.retry_failed or options.sources or options.unwatch
    if wanted and (others or wanted > 1):
        raise UsageError(_("--export, --import and --adopt stand alone"))
    if (options.dry_run or options.offline) and not options.adopt:
        raise UsageError(_("--dry-run and --offline go with --adopt only"))
    return bool(wanted)


def _check_file(name: str, watched: int | None) -> None:
    try:
        if is_regular := name != "-" and not Path(name).is_fifo():  # opening a pipe would take from it
            Path(name).open("rb").close()
    except OSError as error:
        raise UsageError(_("{file} cannot be read: {problem}").format(file=name, problem=error.strerror)) from error
    if watched and not is_regular:
        raise UsageError(_("a pipe or standard input can be read only once: give --watch a file"))


def ranked_categories(name: str) -> Sequence[Category]:
    """Return the configured categories, or only that of this name; UsageError if none has it."""
    chosen = [category for category in CATEGORIES if name in ("", category.name)]
    if not chosen:
        names = ", ".join(category.name for category in CATEGORIES)
        raise UsageError(
            _("nothing was named, and {name} has no ranking; these have one: {names}").format(name=name, names=names)
        )
    return chosen


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
            print(f"retried {retry_failed(sink, options.match)}")
            return
        if options.unwatch or options.sources:
            if options.unwatch:
                unwatch(sink, settings, options, tally)
            if options.sources:
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
        status = 1 if tally.rejected else 0
    except KeyboardInterrupt:
        say(_("Interrupted; what was added stays in the queue."))
        status = 130
    except Terminated:
        status = 0 if options.watch else 143
    except (UsageError, EngineError, ServerError) as error:
        say(str(error))
        status = 2
    no_tally = options.retry_failed or options.sources or options.unwatch
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
