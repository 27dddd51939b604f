"""The file that a stream is written into, and the journal that lets any later process go on with it.

A part is three files of one stem: the data (``.m4s``), written in place; the journal, append-only lines that
each carry a checksum of their own; and the lock that says who works here. The journal claims "the bytes
[start, stop) have this digest": once for every finished chunk, and about once a mebibyte for one that is under
way. Claims are believed only after the file has been read, so neither a torn journal nor lost pages of a power
cut can put a wrong byte into a video. Nothing is synced to the disk: the kernel keeps written pages through the
death of the process, and the digests find out about the rest.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import BinaryIO

import xxhash
from filelock import BaseFileLock, FileLock, Timeout

from errors import DiskFull
from i18n import _
from model import CHUNK_BYTES, MIB, STREAM_BYTES

log = logging.getLogger(__name__)

FORMAT = 1
MARK_BYTES = MIB
"""An open chunk is claimed before it has grown by more than this, which a killed process would fetch again."""

RESERVE_BYTES = 64 * MIB
"""Room that is left on the disk: a disk filled to the last byte takes other programs down with us."""


@dataclass(slots=True, eq=False)
class Chunk:
    """A range ``[start, stop)`` under way: everything before ``at`` is in the file, ``digest`` is of just that."""

    start: int
    stop: int
    at: int
    marked: int
    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128, repr=False)

    @property
    def missing_bytes(self) -> int:
        """How much is still to be written."""
        return self.stop - self.at


# ------------------------------------------------------------------------------------------ the journal


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose bytes a part holds; cid and name identify the stream, ``job`` is who wants it."""

    job: str
    cid: int
    name: str

    def is_stream(self, other: Identity) -> bool:
        """Tell whether both mean the same stream."""
        return (self.cid, self.name) == (other.cid, other.name)


@dataclass(frozen=True, slots=True)
class Journal:
    """What a journal says: ``claims[start][stop]`` is the digest of these bytes, as hexadecimal text."""

    identity: Identity
    size_bytes: int | None
    claims: Mapping[int, Mapping[int, str]]

    @property
    def claimed_bytes(self) -> int:
        """How much the claims cover; they may overlap, where a range was fetched anew after a wound."""
        covered = at = 0
        for start in sorted(self.claims):
            stop = max(self.claims[start])
            covered += max(0, stop - max(at, start))
            at = max(at, stop)
        return covered


def seal(record: Mapping[str, object]) -> bytes:
    """Return a journal line: a checksum and the record."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text


def unseal(line: bytes) -> dict[str, object]:
    """Return the record of a journal line, an empty one if the line is torn or is no such line."""
    checksum, _space, text = line.partition(b" ")
    if not text or checksum != xxhash.xxh3_64_hexdigest(text).encode():
        return {}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # sealed by whoever else writes in the folder
        return {}
    return record if isinstance(record, dict) else {}


def read_journal(content: bytes) -> Journal | None:
    """Return what a journal says, without the lines that are broken; None if the first one is: then it says nothing."""
    first, *lines = content.split(b"\n")
    match unseal(first):
        case {"format": found, "job": str(job), "cid": int(cid), "name": str(name), "size": size_bytes} if (
            found == FORMAT
        ):
            pass
        case _:
            return None
    claims: dict[int, dict[int, str]] = {}
    for record in map(unseal, lines):
        match record:
            case {"held": [int(start), int(stop)], "digest": str(digest)} if 0 <= start < stop <= STREAM_BYTES:
                claims.setdefault(start, {})[stop] = digest
            case {"size": int(told)}:
                size_bytes = told
    if not isinstance(size_bytes, int) or not 0 <= size_bytes <= STREAM_BYTES:
        size_bytes = None
    return Journal(Identity(job, cid, name), size_bytes, claims)


def _journal_at(path: Path) -> Journal | None:
    """Return what the journal there says; None if it cannot be read, whatever the reason: then it is no use."""
    try:
        return read_journal(path.read_bytes())
    except OSError:
        return None


def _names(folder: Path, prefix: str, suffix: str) -> list[str]:
    """Return the names in a folder that begin and end so; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.name.endswith(suffix) and entry.name.startswith(prefix)]
    except OSError:
        return []


def _journals(folder: Path, prefix: str = "") -> list[Path]:
    """Return the journals in a folder, the newest first; another process may take one away meanwhile."""
    aged: list[tuple[float, Path]] = []
    for name in _names(folder, prefix, ".journal"):
        with suppress(OSError):
            aged.append(((path := folder / name).stat().st_mtime, path))
    return [path for _age, path in sorted(aged, reverse=True)]


def unfinished_jobs(folder: Path) -> dict[str, int]:
    """Return the ids of the jobs that have parts in a folder, the newest first, and how much their journals claim."""
    found: dict[str, int] = {}
    for journal in map(_journal_at, _journals(folder)):
        if journal is not None:
            found[journal.identity.job] = found.get(journal.identity.job, 0) + journal.claimed_bytes
    return found


def discard_parts(folder: Path, cid: int) -> None:
    """Delete all parts of a page that nobody works on: it is finished, whatever streams it was begun in."""
    # A process that died in the middle of this may have left a lock alone, which goes last.
    locks = [(folder / name).with_suffix(".journal") for name in _names(folder, f"{cid}-", ".lock")]
    for journal in dict.fromkeys((*_journals(folder, f"{cid}-"), *locks)):
        _discard_unlocked(journal)


def discard_old_parts(folder: Path, older_than_seconds: float) -> int:
    """Delete the parts that nobody works on, nor did for so long: their jobs do not come back. Return how many."""
    return sum(_discard_unlocked(journal, older_than_seconds) for journal in _journals(folder))


def _discard_unlocked(journal: Path, older_than_seconds: float | None = None) -> bool:
    """Delete a part unless someone works on it or, where an age is given, did so lately; tell whether it is gone.

    What cannot be deleted stays, and is no error: nobody's work depends on it.
    """
    try:
        # The age is asked for twice: before, not to litter with locks; and after, because someone may just have ended.
        if _is_young(journal, older_than_seconds) or not (lock := _lock(journal.with_suffix(".lock"))):
            return False
    except OSError as error:
        log.debug("%s is left: %s", journal, error)
        return False
    try:
        if not _is_young(journal, older_than_seconds):
            return _release(lock, journal.with_suffix(".m4s"), journal)
    except OSError as error:
        log.debug("%s is left: %s", journal, error)
    _release(lock)
    return False


def _is_young(journal: Path, older_than_seconds: float | None) -> bool:
    return older_than_seconds is not None and time.time() - journal.stat().st_mtime <= older_than_seconds


# ------------------------------------------------------------------------------------------ the disk


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into DiskFull; nothing in this module talks to a network, so no error is mistaken."""
    try:
        yield
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> DiskFull:
    problem = os.strerror(error.errno) if error.errno else str(error)
    return DiskFull(_("{path} cannot be written: {problem}").format(path=path, problem=problem))


def free_disk_bytes(folder: Path) -> int:
    """Return how much this user may still write to the disk of ``folder``."""
    return shutil.disk_usage(folder).free


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data``; a nearly full disk takes a part of it first and refuses the next call."""
    rest = memoryview(data)
    while rest:
        if sys.platform == "win32":
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, rest)
        else:
            written = os.pwrite(descriptor, rest, offset)
        offset += written
        rest = rest[written:]


def _allocate(file: BinaryIO, size_bytes: int) -> None:
    """Give a file its size and, where the file system can do it at once, its blocks.

    Linux's own fallocate, because posix_fallocate of glibc writes into every block where the file system has no
    such call. One that is refused may leave the disk full of the blocks it got, until ``close`` deletes the part.
    """
    if not (sys.platform == "linux" and _linux_fallocate(file.fileno(), size_bytes)):
        os.ftruncate(file.fileno(), size_bytes)


def _linux_fallocate(descriptor: int, size_bytes: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if fallocate is None:
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(descriptor, 0, 0, size_bytes) == 0:
        return True
    problem = ctypes.get_errno()
    if problem in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
        return False
    raise OSError(problem, os.strerror(problem))


def _remove_links(*paths: Path) -> None:
    """Remove what is a link in the place of a part: never ours, and what we write would come to where it leads."""
    for path in paths:
        if path.is_symlink():
            path.unlink(missing_ok=True)


def _lock(path: Path) -> BaseFileLock | None:
    """Return the lock, held, or None if someone has it; the kernel frees it even at kill -9."""
    _remove_links(path)
    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _release(lock: BaseFileLock, *unwanted: Path) -> bool:
    """Delete these files, if any, with the lock's own, and free the lock; tell whether all are gone.

    The first that cannot be deleted ends it, quietly: the journal, which comes last, leads to the data another time.
    """
    try:
        for path in unwanted:
            path.unlink(missing_ok=True)
        if unwanted and sys.platform != "win32":  # Windows deletes no open file; there the release does it
            Path(lock.lock_file).unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s cannot be deleted: %s", error.filename, error)
        return False
    finally:
        lock.release()
    return True


# ------------------------------------------------------------------------------------------ the part

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


class PartFile:
    """A stream's file, locked. Call ``prepare`` before anything but ``close``: in a thread, unless it is new.

    Chunks are had with ``take`` and end either in ``write``, which finishes them, or in ``give_back``. Where the
    size is unknown they come one after the other, until ``set_size`` tells the end.
    """

    def __init__(self, folder: Path, stem: str, lock: BaseFileLock, identity: Identity, size_bytes: int | None) -> None:
        self.path = folder / f"{stem}.m4s"
        self.size_bytes = size_bytes
        self.held_bytes = 0
        self._journal_path = folder / f"{stem}.journal"
        self._lock = lock
        self._gaps: list[tuple[int, int]] = []
        """What is missing and nobody has taken, in order."""
        self._taken: list[Chunk] = []
        self._closed = False
        self._free_bytes: Callable[[Path], int] = free_disk_bytes
        _remove_links(self._journal_path, self.path)
        journal = _journal_at(self._journal_path)
        # The journal is there before the data: data that no journal knows of would never be deleted.
        self._journal = os.open(self._journal_path, _FLAGS | os.O_APPEND, 0o644)
        if journal is None or not journal.identity.is_stream(identity) or journal.size_bytes != size_bytes:
            journal = Journal(identity, size_bytes, {})
            os.ftruncate(self._journal, 0)
            os.write(self._journal, seal({"format": FORMAT, "size": size_bytes, **_as_record(identity)}))
        self._claims = journal.claims
        self.is_new = self._is_worthless = not journal.claims
        self._data = os.open(self.path, _FLAGS, 0o644)

    # ---------------------------------------------------------------------------- opening and closing

    @classmethod
    def open(cls, folder: Path, identity: Identity, size_bytes: int | None) -> PartFile:
        """Return the part of a stream of this size, new or begun earlier; one in use elsewhere is left alone."""
        stem = f"{identity.cid}-{identity.name}" + ("" if size_bytes is None else f"-{size_bytes}")
        with _disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number in count():
                numbered = f"{stem}.{number}" if number else stem
                if lock := _lock(folder / f"{numbered}.lock"):
                    return cls._locked(folder, numbered, lock, identity, size_bytes)
        raise AssertionError("counting has no end")

    @classmethod
    def find(cls, folder: Path, identity: Identity) -> PartFile | None:
        """Return the newest part of a stream that nobody works on, whatever its size; None if there is none."""
        with _disk(folder):
            for path in _journals(folder, f"{identity.cid}-"):
                journal = _journal_at(path)
                if journal is None or not journal.identity.is_stream(identity):
                    continue
                if lock := _lock(path.with_suffix(".lock")):
                    journal = _journal_at(path) or journal  # its last owner may just have learned the size
                    return cls._locked(folder, path.stem, lock, identity, journal.size_bytes)
        return None

    @classmethod
    def _locked(
        cls, folder: Path, stem: str, lock: BaseFileLock, identity: Identity, size_bytes: int | None
    ) -> PartFile:
        try:
            return cls(folder, stem, lock, identity, size_bytes)
        except BaseException:
            lock.release()
            raise

    def prepare(self, free_bytes: Callable[[Path], int] = free_disk_bytes) -> None:
        """Verify what the journal claims by reading the file, and take the room for the rest.

        It has a file handle of its own: it may be left behind in its thread when its caller is cancelled.
        """
        self._free_bytes = free_bytes
        with _disk(self.path), open(self.path, "r+b", opener=lambda path, _mode: os.open(path, _FLAGS)) as file:
            self._gaps.extend(self._verified(file))
            if not (self._closed or self.is_complete):
                self._take_room(file)

    def _verified(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        """Yield the gaps between the ranges that the file proves, and count what is held."""
        at = 0
        for start in sorted(self._claims):
            if self.size_bytes is None and start > at:
                break  # nobody knows how far the gap goes, and what comes after it
            proved = self._prove(file, start)
            if proved <= max(at, start):
                continue
            if start > at:
                yield at, start
            self.held_bytes += proved - max(at, start)
            at = proved
        stop = at + CHUNK_BYTES if self.size_bytes is None else self.size_bytes
        if at < stop:
            yield at, stop

    def _prove(self, file: BinaryIO, start: int) -> int:
        """Return how far the bytes from ``start`` are what the journal claims: the last stop whose digest they have."""
        proved = at = start
        digest = xxhash.xxh3_128()
        file.seek(at)
        claims = self._claims[start]
        for stop in sorted(stop for stop in claims if self.size_bytes is None or stop <= self.size_bytes):
            while at < stop and not self._closed and (data := file.read(min(stop - at, MIB))):
                digest.update(data)
                at += len(data)
            if at == stop and digest.hexdigest() == claims[stop]:
                proved = stop
        return proved

    def _take_room(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        wanted_bytes = self.size_bytes if self.size_bytes is not None else self.held_bytes + CHUNK_BYTES
        has_bytes = min(status.st_size, getattr(status, "st_blocks", sys.maxsize) * 512)
        if wanted_bytes > has_bytes:
            self._check_free(wanted_bytes - has_bytes)
        if self.size_bytes is not None and (wanted_bytes > has_bytes or status.st_size != self.size_bytes):
            _allocate(file, self.size_bytes)
            os.ftruncate(file.fileno(), self.size_bytes)

    def _check_free(self, size_bytes: int) -> None:
        needed, free = size_bytes + RESERVE_BYTES, self._free_bytes(self.path.parent)
        if free < needed:
            raise DiskFull(
                _("{folder} has {free} MiB free, but {needed} MiB are needed: make room there").format(
                    folder=self.path.parent, free=free // MIB, needed=-(-needed // MIB)
                )
            )

    def close(self) -> None:
        """Write down how far each chunk is and free the lock; a part without any byte is deleted."""
        if self._closed:
            return
        with suppress(DiskFull):
            for chunk in self._taken:
                self._mark(chunk)
        if self._is_worthless and not self.is_complete:
            self.discard()
        else:
            self._end()

    def discard(self) -> None:
        """Delete the part: its bytes are needed no more."""
        # Data first: as long as there is data there is a journal that leads to it.
        if not self._closed:
            self._end(self.path, self._journal_path)

    def _end(self, *unwanted: Path) -> None:
        self._closed = True
        for descriptor in (self._data, self._journal):
            with suppress(OSError):  # a network disk tells of lost writes here; the digests find out about them
                os.close(descriptor)
        _release(self._lock, *unwanted)

    # ---------------------------------------------------------------------------- chunks

    @property
    def has_waiting(self) -> bool:
        """Tell whether there is a chunk to take."""
        return bool(self._gaps)

    @property
    def waiting_bytes(self) -> int:
        """How much is missing that nobody has taken; where the size is unknown, as far as it is asked for."""
        return sum(stop - start for start, stop in self._gaps)

    @property
    def is_complete(self) -> bool:
        """Tell whether every byte is in the file, proved."""
        return self.size_bytes is not None and self.held_bytes == self.size_bytes

    def take(self, most_bytes: int) -> Chunk:
        """Return the first range that nobody has, or so much of it, for the caller alone to write."""
        start, end = self._gaps[0]
        stop = min(end, start + most_bytes)
        self._gaps[0:1] = [(stop, end)] if stop < end else []
        chunk = Chunk(start, stop, start, start)
        self._taken.append(chunk)
        return chunk

    def split(self, chunk: Chunk, at: int) -> None:
        """Let a chunk under way end at ``at``, ahead of where it is, and put the rest into the line."""
        assert chunk.at < at < chunk.stop
        self._add_gap(at, chunk.stop)
        chunk.stop = at

    def give_back(self, chunk: Chunk) -> None:
        """Put what a chunk misses back into the line, with a mark of how far it came."""
        if chunk in self._taken:
            self._taken.remove(chunk)
            self._add_gap(chunk.at, chunk.stop)
            with suppress(DiskFull):  # whatever ends the chunk must not be hidden by this; the next write fails anyway
                self._mark(chunk)

    def _add_gap(self, start: int, stop: int) -> None:
        """Add a gap, as one with its neighbours: a chunk that was given back is asked for in one piece again."""
        place = bisect.bisect(self._gaps, (start, stop))
        if place < len(self._gaps) and self._gaps[place][0] == stop:
            stop = self._gaps.pop(place)[1]
        if place and self._gaps[place - 1][1] == start:
            place -= 1
            start = self._gaps.pop(place)[0]
        self._gaps.insert(place, (start, stop))

    def write(self, chunk: Chunk, data: bytes | memoryview) -> None:
        """Write the next bytes of a chunk, no more than it misses; its last one finishes it."""
        self.store(chunk.at, data)
        self.grow(chunk, data)

    def store(self, at: int, data: bytes | memoryview) -> None:
        """Write bytes to the disk; may be called in a thread, if nobody closes the part meanwhile."""
        try:  # not _disk: this is called for each piece of each body
            _write_at(self._data, data, at)
        except OSError as error:
            raise _refusal(self.path, error) from error

    def grow(self, chunk: Chunk, data: bytes | memoryview) -> None:
        """Count what is stored as the next bytes of a chunk."""
        self._is_worthless = False
        chunk.digest.update(data)
        chunk.at += len(data)
        self.held_bytes += len(data)
        if not chunk.missing_bytes:
            self._finish(chunk)
        elif chunk.at - chunk.marked + len(data) > MARK_BYTES:
            # Another piece of this size would be in the file, and unclaimed, before it is counted here.
            self._mark(chunk)

    def set_size(self, size_bytes: int) -> None:
        """Give a stream of unknown size its end: nothing may be held beyond it."""
        with _disk(self.path):
            os.ftruncate(self._data, size_bytes)  # an earlier process may have written more
        self.size_bytes = size_bytes
        self._append({"size": size_bytes})
        planned = max((chunk.stop for chunk in self._taken), default=self.held_bytes)
        for chunk in list(self._taken):
            chunk.stop = min(chunk.stop, size_bytes)
            if not chunk.missing_bytes:
                self._finish(chunk)
        if not self._taken:
            planned = self.held_bytes
        self._gaps = [(planned, size_bytes)] if planned < size_bytes else []

    def forget(self) -> None:
        """Begin anew in the same file: for a source that can only be read from its first byte."""
        with _disk(self._journal_path):
            os.ftruncate(self._journal, len(self._journal_path.read_bytes().split(b"\n")[0]))
        self.held_bytes = 0
        self._taken.clear()
        size_bytes = CHUNK_BYTES if self.size_bytes is None else self.size_bytes
        self._gaps = [(0, size_bytes)] if size_bytes else []

    def _finish(self, chunk: Chunk) -> None:
        self._mark(chunk)
        self._taken.remove(chunk)
        if self.size_bytes is None:
            self._check_free(CHUNK_BYTES)  # nobody knows how much will come
            self._gaps.append((chunk.stop, chunk.stop + CHUNK_BYTES))

    def _mark(self, chunk: Chunk) -> None:
        if chunk.at > chunk.marked:
            self._append({"held": [chunk.start, chunk.at], "digest": chunk.digest.hexdigest()})
            chunk.marked = chunk.at

    def _append(self, record: Mapping[str, object]) -> None:
        # The newline comes first: a line that was torn here ends with it, and cannot swallow this one.
        line = b"\n" + seal(record)
        with _disk(self._journal_path):
            if os.write(self._journal, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _as_record(identity: Identity) -> dict[str, object]:
    return {"job": identity.job, "cid": identity.cid, "name": identity.name}
