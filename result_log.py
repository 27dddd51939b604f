"""What a worker has finished, on its own disk: to be told again to a queue whose data were set back, or are new.

One JSON line for each page that the server has recorded, the newest last. A line that was torn, or is missing because
the worker died before it wrote it, costs nothing: the file of that page says by itself which page it is.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from i18n import _
from model import MIB, Result

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 64
NEWEST = 1000
"""So many results are told again where the queue's data are another server's: a failover loses what came last."""
LIMIT_BYTES = 32 * MIB
"""A longer log loses its older half at the next start: about 10^5 pages."""


def log_path(data_dir: Path, server_url: str, worker: str) -> Path:
    """Return where a worker keeps its log: one for each server, because each has a queue of its own."""
    return data_dir / f"results-{sha256(f'{server_url} {worker}'.encode()).hexdigest()[:16]}.jsonl"


def all_results(data_dir: Path) -> Iterator[tuple[str, Result]]:
    """Yield id and result of each page that a worker of this data folder has noted, of all workers and servers."""
    for path in sorted(data_dir.glob("results-*.jsonl")):
        yield from ResultLog(path).oldest_first()


class ResultLog:
    """The pages that one worker has finished, and which of them the queue is to be asked about.

    A queue that was set back may know the newest result all the same, because it came after that. So each one is asked
    about once, and the last one that was known then, again and again. That finds data that were set back, but not
    each hole that a failover leaves: so the newest results are told again whenever the queue's data are others. Whose
    data were told is noted among the results; where it is not known, all are owed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_broken = False
        self._unsure: list[str] = []
        self._told_to = ""
        try:
            self._shorten()
            self._told_to = self._last_told_to()
            for url, _result in self.oldest_first():
                self._unsure = [url]
        except OSError as error:
            self._complain(error)

    def add(self, url: str, result: Result) -> None:
        """Note a page that the server has recorded; a disk that refuses the note does not undo that."""
        record = [url, result.path, result.bytes, result.seconds, result.title, result.streams, result.stored]
        try:
            # The newline comes first: a line that was torn here ends with it, and cannot swallow this one.
            with self._path.open("ab") as file:
                file.write(b"\n" + json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"))
            self._unsure.append(url)
        except OSError as error:
            self._complain(error)

    def unsure(self) -> tuple[str, ...]:
        """Return the ids to ask about, the oldest first; safe from any thread."""
        return tuple(self._unsure[:ASKED_AT_ONCE])

    def confirm(self, urls: Sequence[str]) -> None:
        """Take note that the queue knows these, which ``unsure`` returned."""
        if urls and urls[-1] in self._unsure:
            del self._unsure[: self._unsure.index(urls[-1])]

    def ask_no_more(self) -> None:
        """Ask about none of those that are there now: they were told again, as far as their files stand."""
        self._unsure.clear()

    def owes(self, data_id: str) -> bool:
        """Tell whether results are to be told again to these data; an empty name says nothing."""
        return bool(data_id) and data_id != self._told_to

    def owed(self) -> list[tuple[str, Result]]:
        """Return what is to be told to other data, the oldest first: the newest, or all where nobody knows of them."""
        return list(deque(self.oldest_first(), NEWEST if self._told_to else None))

    def note_told(self, data_id: str) -> None:
        """Note that these data know all that is here; with an empty name, that all is owed to whatever comes."""
        self._told_to = data_id
        try:
            if self._path.exists():  # without results there is nothing to note
                with self._path.open("ab") as file:
                    file.write(b"\n" + json.dumps({"told": data_id}).encode())
        except OSError as error:
            self._complain(error)

    def _last_told_to(self) -> str:
        told = ""
        try:
            with self._path.open("rb") as file:
                for line in file:
                    if line.startswith(b'{"told"'):
                        told = _told(line)
        except FileNotFoundError:
            pass
        return told

    def oldest_first(self) -> Iterator[tuple[str, Result]]:
        """Yield id and result of each page; what is no such line is skipped."""
        try:
            with self._path.open("rb") as file:
                for line in file:
                    if (entry := _entry(line)) is not None:
                        yield entry
        except FileNotFoundError:
            return

    def _shorten(self) -> None:
        try:
            size_bytes = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size_bytes <= LIMIT_BYTES:
            return
        shorter = self._path.with_suffix(".new")
        shorter.write_bytes(self._path.read_bytes()[size_bytes // 2 :])
        shorter.replace(self._path)

    def _complain(self, error: OSError) -> None:
        if not self._is_broken:
            log.warning(_("%s cannot be used: %s"), self._path, error.strerror)
        self._is_broken = True


def _told(line: bytes) -> str:
    try:
        told = json.loads(line)["told"]
    except (ValueError, KeyError):
        return ""
    return told if isinstance(told, str) else ""


def _entry(line: bytes) -> tuple[str, Result] | None:
    try:
        fields: Any = json.loads(line)
        url, path, size_bytes, seconds, title, *later = fields
        streams, stored = (*later, "", "")[: max(2, len(later))]  # earlier versions wrote fewer
    except (ValueError, TypeError, RecursionError):
        return None
    texts = all(isinstance(text, str) for text in (url, path, title, streams, stored))
    numbers = type(size_bytes) is int and type(seconds) in (int, float)
    return (url, Result(path, size_bytes, float(seconds), title, streams, stored)) if texts and numbers else None
