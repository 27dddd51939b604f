"""The oldest records of finished pages, in files of JSON lines below the data folder of the server that moved them.

A file has the records that ended in one month, and is followed by another when it is large. A line is synced before
its record leaves Redis, and each one has the id that its record had there: one that was written twice, because whoever
moved it died in between, is read once. Beside the files lies an index (SQLite), made from them and made again where it
is missing or does not fit them; whoever wants the records without it reads the lines.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from i18n import _
from model import MIB
from parse_ import parse_job_id

log = logging.getLogger(__name__)

FILE_BYTES = 256 * MIB
"""A file that has grown so large is followed by another one of its month."""
_LAYOUT = 1
_LAST = 2**62
"""Greater than any number in the index."""
_TABLES = """
CREATE TABLE IF NOT EXISTS file (name TEXT PRIMARY KEY, read_bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS page (
  ms INTEGER, seq INTEGER, cid INTEGER NOT NULL, folded TEXT NOT NULL, file TEXT NOT NULL, start INTEGER NOT NULL,
  PRIMARY KEY (ms, seq, cid)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS of_page ON page (cid, ms, seq);
CREATE INDEX IF NOT EXISTS of_title ON page (folded, ms, seq) WHERE folded != '';
"""
# Two shards may give the same id, to two pages.
# A page that was forgotten and finished again has more than one record: the newest one counts.
_NEWEST = "NOT EXISTS (SELECT 1 FROM page q WHERE q.cid = p.cid AND (q.ms, q.seq) > (p.ms, p.seq))"

Record = dict[str, Any]
"""What a line says: ``entry``, the id in Redis, and the fields of ``/jobs``."""


def split_entry(entry: str) -> tuple[int, int]:
    """Return an id of Redis as numbers, which sort as the records do."""
    ms, _dash, seq = entry.partition("-")
    return int(ms), int(seq or 0)


class Archive:
    """The files in one folder. Safe from many threads and processes; one of them writes at a time.

    ``fold`` gives the beginning of a title that titles are sorted by.
    """

    def __init__(self, folder: Path, fold: Callable[[str], str]) -> None:
        self._folder = folder
        self._fold = fold
        self._index = folder / "index.sqlite"
        self._mutex = threading.Lock()
        self.place = f"{socket.gethostname()}:{folder}"
        """By which people find it."""

    @property
    def exists(self) -> bool:
        """Tell whether anything was ever moved here."""
        return self._folder.is_dir()

    # -------------------------------------------------------------------------------- writing

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the archive for writing; yield whether it could be had, or another process writes now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "archive.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def append(self, records: Sequence[Mapping[str, Any]]) -> bool:
        """Write records and sync them, those that are not here yet; return whether all of them are safe.

        To be called while it is held.
        """
        try:
            with self._opened() as index:
                places = [_file_with(index, record) for record in records]
                for name in {name for name in places if name}:  # whoever wrote it may have died before it was safe
                    _sync(self._folder / name)
                self._append(index, [record for record, name in zip(records, places, strict=True) if not name])
        except (OSError, sqlite3.Error) as error:
            log.warning(_("%s cannot be written: %s"), self.place, error)
            return False
        return True

    def _append(self, index: sqlite3.Connection, records: Sequence[Mapping[str, Any]]) -> None:
        months: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            at = datetime.fromtimestamp(split_entry(record["entry"])[0] / 1000, UTC)
            months.setdefault(f"{at:%Y-%m}", []).append(record)
        for month, of_month in months.items():
            self._write(self._file_of(month), of_month)
        self._catch_up(index)

    def _file_of(self, month: str) -> Path:
        number = 1
        while True:
            path = self._folder / (f"done-{month}.jsonl" if number == 1 else f"done-{month}.{number}.jsonl")
            if not path.exists() or path.stat().st_size < FILE_BYTES:
                return path
            number += 1

    def _write(self, path: Path, records: Sequence[Mapping[str, Any]]) -> None:
        is_new, torn = not path.exists(), _is_torn(path)
        lines = "".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n" for record in records)
        with path.open("ab") as file:
            start = file.tell()
            try:
                # A line that was torn ends here: its record is still in Redis, and comes again as a whole.
                file.write((b"\n" if torn else b"") + lines.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # what may be safe and may be not must not be taken for safe the next time
                    file.truncate(start)
                raise
        if is_new:
            _sync_folder(self._folder)

    # -------------------------------------------------------------------------------- reading

    def find(self, cids: Sequence[int]) -> dict[int, Record]:
        """Return the record of each of these pages that has one here."""
        question = f"SELECT file, start FROM page p WHERE cid = ? AND {_NEWEST}"
        answers = self._ask([(question, (cid,)) for cid in cids])
        found = {cid: list(self._read(rows)) for cid, rows in zip(cids, answers, strict=True)}
        return {cid: records[0] for cid, records in found.items() if records}

    def after(self, mark: str, limit: int) -> list[Record]:
        """Return records in the order in which pages were finished, those behind a mark; "" is the beginning.

        A mark is an entry, or one with the cid of its page: ``ENTRY@CID``.
        """
        where = "(p.ms, p.seq, p.cid) > (?, ?, ?)"
        at = _split_mark(mark or "0-0", _LAST)
        return self._listed(f"{where} AND {_NEWEST} ORDER BY p.ms, p.seq, p.cid", at, limit)

    def before(self, mark: str, limit: int) -> list[Record]:
        """Return records with the newest first, those before a mark; "" is the end."""
        where = "(p.ms, p.seq, p.cid) < (?, ?, ?)"
        at = _split_mark(mark, 0) if mark else (_LAST, 0, 0)
        return self._listed(f"{where} AND {_NEWEST} ORDER BY p.ms DESC, p.seq DESC, p.cid DESC", at, limit)

    def titled(self, prefix: str, after: tuple[str, str], limit: int) -> list[tuple[str, Record]]:
        """Return records whose folded titles begin so, behind a folded title and a mark, in the order of titles."""
        folded, mark = after
        where = "p.folded >= ? AND p.folded < ? AND (p.folded, p.ms, p.seq, p.cid) > (?, ?, ?, ?)"
        bounds = (prefix, f"{prefix}\U0010ffff", folded, *_split_mark(mark or "0-0", _LAST))
        order = "p.folded, p.ms, p.seq, p.cid"
        records = self._listed(f"{where} AND p.folded != '' AND {_NEWEST} ORDER BY {order}", bounds, limit)
        return [(self._fold(record["title"]), record) for record in records]

    def _listed(self, wanted: str, values: tuple[Any, ...], limit: int) -> list[Record]:
        (rows,) = self._ask([(f"SELECT file, start FROM page p WHERE {wanted} LIMIT ?", (*values, limit))])
        return list(self._read(rows))

    def _ask(self, questions: Sequence[tuple[str, tuple[Any, ...]]]) -> list[list[tuple[str, int]]]:
        """Return the places that answer each question; none where nothing was moved here, or it cannot be read."""
        if questions and self.exists:
            try:
                with self._opened() as index:
                    return [index.execute(*question).fetchall() for question in questions]
            except (OSError, sqlite3.Error) as error:
                log.warning(_("%s cannot be read: %s"), self.place, error)
        return [[] for _question in questions]

    def _read(self, rows: Sequence[tuple[str, int]]) -> Iterator[Record]:
        """Yield the records at these places; what is gone or damaged by now is left out."""
        files: dict[str, BinaryIO] = {}
        try:
            for name, start in rows:
                with suppress(OSError):
                    if name not in files:
                        files[name] = (self._folder / name).open("rb")
                    files[name].seek(start)
                    if (record := _record(files[name].readline())) is not None:
                        yield record
        finally:
            for file in files.values():
                file.close()

    # -------------------------------------------------------------------------------- the index

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Open the index, as far as it goes; one that is damaged is made again."""
        with self._mutex:
            try:
                index = self._connect()
            except sqlite3.OperationalError:  # it is in use, or must not be written: nothing is wrong with it
                raise
            except sqlite3.DatabaseError as error:
                log.warning(_("%s is damaged and made again: %s"), self._index, error)
                for ending in ("", "-wal", "-shm"):
                    self._index.with_name(self._index.name + ending).unlink(missing_ok=True)
                index = self._connect()
        with closing(index):
            yield index

    def _connect(self) -> sqlite3.Connection:
        index = sqlite3.connect(self._index, timeout=30)
        try:
            index.execute("PRAGMA journal_mode = WAL")
            index.execute("PRAGMA synchronous = NORMAL")
            if index.execute("PRAGMA user_version").fetchone()[0] != _LAYOUT:
                index.executescript(f"{_TABLES} PRAGMA user_version = {_LAYOUT};")
            self._catch_up(index)
        except BaseException:
            index.close()
            raise
        return index

    def _catch_up(self, index: sqlite3.Connection) -> None:
        """Take into the index what was written since, also by a process that died before it did this."""
        read = dict(index.execute("SELECT name, read_bytes FROM file"))
        sizes = {path.name: path.stat().st_size for path in sorted(self._folder.glob("done-*.jsonl"))}
        if all(read.get(name) == size for name, size in sizes.items()) and read.keys() == sizes.keys():
            return
        with index:
            index.execute("BEGIN IMMEDIATE")
            read = dict(index.execute("SELECT name, read_bytes FROM file"))
            for name in read.keys() - sizes.keys():  # somebody has moved the file away
                index.execute("DELETE FROM page WHERE file = ?", (name,))
                index.execute("DELETE FROM file WHERE name = ?", (name,))
            for name in sizes:
                if sizes[name] < read.get(name, 0):  # it is another file
                    index.execute("DELETE FROM page WHERE file = ?", (name,))
                    read[name] = 0
                self._index_file(index, name, read.get(name, 0))

    def _index_file(self, index: sqlite3.Connection, name: str, start: int) -> None:
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            while (line := file.readline()).endswith(b"\n"):
                if (record := _record(line)) is not None:
                    ms, seq = split_entry(record["entry"])
                    values = (ms, seq, parse_job_id(record["url"]).cid, self._fold(record["title"]), name, start)
                    index.execute("INSERT OR IGNORE INTO page VALUES (?, ?, ?, ?, ?, ?)", values)
                start += len(line)
        index.execute("INSERT OR REPLACE INTO file VALUES (?, ?)", (name, start))


def _split_mark(mark: str, cid: int) -> tuple[int, int, int]:
    entry, _at, told = mark.partition("@")
    return *split_entry(entry), int(told or cid)


def _file_with(index: sqlite3.Connection, record: Mapping[str, Any]) -> str:
    """Return the name of the file that a record is in, nothing where it is in none."""
    where = (*split_entry(record["entry"]), parse_job_id(record["url"]).cid)
    found = index.execute("SELECT file FROM page WHERE ms = ? AND seq = ? AND cid = ?", where).fetchone()
    return str(found[0]) if found else ""


def _record(line: bytes) -> Record | None:
    """Return what a line says, None where it is torn or says something else."""
    try:
        record = json.loads(line)
        if isinstance(record, dict) and split_entry(record["entry"]) and parse_job_id(record["url"]).is_page:
            return record
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def _is_torn(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _sync(path: Path) -> None:
    with path.open("ab") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
