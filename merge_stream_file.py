"""Join the streams of a page with ffmpeg, prove the result, and only then give it its name.

ffmpeg's exit status proves little: it is 0 for inputs that lack a fragment or their end. So the boxes of each input
are walked before, and the tracks of the output are compared with the inputs and with what the site announced after.
Nothing is decoded or encoded. ffmpeg writes into a hidden temporary file in the scratch folder, locked by the worker
that owns it, so that `remove_leftovers` can tell what a dead worker left from what a living one writes. Where the
scratch folder is on another disk than the output, the proved file is copied over and read back before it gets its name.
A name is given to a file only where it is free: what stands there is finished work, and is never overwritten.

At most one ffmpeg runs for each processor, and makes several small files where they wait for it (`merging/turns.py`).
On Linux they are started by a process of their own, `merging/starter.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import errno
import io
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import xxhash

from errors import DamagedStream, DiskFull, MergeError, NameTaken, StaleToken, UsageError
from i18n import _
from merging import (
    NICENESS,
    PROGRAM,
    Inputs,
    SharedRunFailed,
    Task,
    Turns,
    check_inputs,
    check_output,
    ffmpeg_arguments,
    list_of_chapters,
    list_of_chapters_path,
    pack_request,
    segment_list,
    segment_list_path,
    without_extras,
    write_failure,
)
from model import CHUNK_BYTES, KIB, MIB, Merged, MergePlan

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

MIN_TIMEOUT_SECONDS = 60.0
MERGE_BYTES_PER_SECOND = 1 * MIB
"""The slowest merge that is waited for; a disk that reads, writes and rewrites 30 MiB/s does ten of them."""

SHARED_BYTES = CHUNK_BYTES
"""Merges of no more may share an ffmpeg: they take less time than its start."""

STDERR_BYTES = 64 * KIB
MOVE_BYTES = 1 * MIB
GOODBYE_SECONDS = 2.0
LINE_BYTES = 4 * KIB
LEFTOVER_SECONDS = 24 * 3600.0
NOTE_BYTES = 16 * KIB

_TEMPORARY = ".merge-{}.tmp"
_LIST_SUFFIXES = (".ffconcat", ".ffmetadata")
_NOTE_SUFFIX = ".moved"
_LEFTOVER = re.compile(r"\.merge-[0-9a-f]{16}\.tmp(\.ffconcat|\.ffmetadata|\.moved)?")
_SUSPICIOUS = re.compile(r"[Cc]orrupt|Invalid|Broken|[Mm]ismatch")
_HARMLESS = re.compile(r"Invalid mvhd time scale")
"""Some old joined files say no timescale for the whole; each of their tracks has its own."""
_NO_SPACE = re.compile(r"No space left|Disk quota exceeded")
_NO_SPACE_STATUS = 256 - errno.ENOSPC
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


# ------------------------------------------------------------------------------------------ ffmpeg itself


def find_ffmpeg(root: Path, environ: Mapping[str, str]) -> str:
    """Return the path of ffmpeg: of the folder ``root/ffmpeg``, else of PATH, else of the package imageio-ffmpeg.

    Raise UsageError where there is none, or where the one in the folder cannot be executed.
    """
    own = root / "ffmpeg" / ("ffmpeg.exe" if sys.platform == "win32" else "ffmpeg")
    if own.is_file():
        if not os.access(own, os.X_OK):
            raise UsageError(_("{path} cannot be executed: chmod +x it, or remove it").format(path=own))
        return str(own.absolute())
    if on_path := shutil.which("ffmpeg", path=environ.get("PATH", "")):
        return str(Path(on_path).absolute())
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise UsageError(
            _("ffmpeg is missing: put it into {folder}, install it, or run: pip install imageio-ffmpeg").format(
                folder=root / "ffmpeg"
            )
        ) from None


def probe_ffmpeg(path: str, timeout_seconds: float = 20.0) -> str:
    """Return the version of the ffmpeg at ``path``; raise UsageError naming it where it does not run."""
    try:
        done = subprocess.run(
            [path, "-hide_banner", "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_seconds,
            check=True,
        )
        line = done.stdout.decode("utf-8", "replace").partition("\n")[0]
        if line.startswith("ffmpeg version "):
            return line.split()[2]
        problem = _("it is not ffmpeg")
    except subprocess.CalledProcessError as error:
        problem = _("exit status {status}").format(status=error.returncode)
    except subprocess.TimeoutExpired:
        problem = _("no answer after {seconds:g} seconds").format(seconds=timeout_seconds)
    except OSError as error:
        problem = error.strerror or str(error)
    raise UsageError(_("{path} is broken ({problem}): replace or remove it").format(path=path, problem=problem))


# ------------------------------------------------------------------------------------------ the merge


def always() -> bool:
    """Return True: a merge that nobody else may forestall."""
    return True


async def merge(ffmpeg: str, plan: MergePlan, may_publish: Callable[[], bool] = always) -> Merged:
    """Join the streams of ``plan`` into ``plan.output``, which appears whole or not at all; inputs are kept.

    ``may_publish`` is asked immediately before the file gets its name; if it says no, StaleToken is raised. A file
    that stands under the name already, since whenever, stays as it is, and NameTaken is raised. When cancelled, ffmpeg
    is killed and the temporary files removed. Raise MergeError with ffmpeg's last line, DiskFull, or PermanentError for
    encrypted streams. Where it fails with what comes beside the streams (cover, chapters, tags, subtitles), it is tried
    once more without.
    """
    try:
        return await _merge(ffmpeg, plan, may_publish)
    except (NameTaken, DamagedStream):
        raise
    except MergeError as error:
        bare = without_extras(plan)
        if bare == plan:
            raise
        log.warning(
            _("%s: made without cover, chapters, tags and subtitles, because with them: %s"), plan.output, error
        )
    return await _merge(ffmpeg, bare, may_publish)


async def _merge(ffmpeg: str, plan: MergePlan, may_publish: Callable[[], bool]) -> Merged:
    inputs = await asyncio.to_thread(check_inputs, plan)
    shares = inputs.size_bytes <= SHARED_BYTES and len(plan.segments) < 2
    try:
        return await _make(ffmpeg, plan, inputs, may_publish, shares)
    except SharedRunFailed:
        log.debug("%s: merged once more, alone", plan.output)
    return await _make(ffmpeg, plan, inputs, may_publish, shares=False)


async def _make(ffmpeg: str, plan: MergePlan, inputs: Inputs, may_publish: Callable[[], bool], shares: bool) -> Merged:
    output = Path(plan.output)
    scratch = Path(plan.scratch) if plan.scratch else output.parent
    with contextlib.ExitStack() as files:
        async with _limits().turns.take(ffmpeg if shares else "") as turn:
            is_one_disk = _can_rename(scratch, output.parent)
            if not is_one_disk:
                _check_room(output.parent, inputs.size_bytes)  # now, not when the work is done
            temporary, lock = files.enter_context(_temporary_file(scratch, inputs.size_bytes))
            files.enter_context(_list_files(plan, temporary))
            await turn.run(_Order(ffmpeg, plan, inputs, str(temporary), scratch))
        merged = await asyncio.to_thread(check_output, temporary, plan, inputs, is_one_disk)
        if not is_one_disk:
            proved = temporary
            temporary, lock = files.enter_context(_noted_file(proved, output.parent, merged.bytes))
            await _copy(proved, temporary)
        if not may_publish():
            raise StaleToken(_("{path} was not published: the job is no longer ours").format(path=output))
        _publish(temporary, lock, output)
    await asyncio.to_thread(_sync_folder, output.parent)
    return merged


@dataclass(frozen=True, slots=True)
class _Order:
    """What an ffmpeg is to make: ``plan``, whose inputs are like that, into the file ``temporary``."""

    ffmpeg: str
    plan: MergePlan
    inputs: Inputs
    temporary: str
    scratch: Path

    @property
    def task(self) -> Task:
        """The same for the command."""
        inputs = self.inputs
        return Task(self.plan, self.temporary, inputs.video_codec, inputs.container, inputs.uniform, inputs.cover)

    @property
    def timeout_seconds(self) -> float:
        """How long it may take."""
        return max(MIN_TIMEOUT_SECONDS, self.inputs.size_bytes / MERGE_BYTES_PER_SECOND)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that ffmpeg may quote."""
        plan = self.plan
        subtitles = (subtitle.path for subtitle in plan.subtitles)
        return (str(self.scratch), *plan.segments, plan.video, plan.audio, plan.cover, *subtitles)


async def _run_orders(orders: Sequence[_Order], processor: int) -> None:
    command = ffmpeg_arguments(orders[0].ffmpeg, [order.task for order in orders])
    timeout_seconds = max(order.timeout_seconds for order in orders)
    await _run(command, timeout_seconds, tuple(name for order in orders for name in order.names), processor)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What the merges of one event loop share: their turns, and one copy to another disk at a time."""

    turns: Turns[_Order]
    copying: asyncio.Lock


_LIMITS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Limits] = weakref.WeakKeyDictionary()


def _limits() -> _Limits:
    loop = asyncio.get_running_loop()
    if loop not in _LIMITS:
        _LIMITS[loop] = _Limits(Turns(_processors(), _run_orders), asyncio.Lock())
    return _LIMITS[loop]


def _processors() -> list[int]:
    """Return the numbers of the processors that are ours; -1 for each where a process cannot be kept to one."""
    if sys.platform != "linux":
        return [-1] * (os.cpu_count() or 1)
    numbers = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(numbers)  # several workers of one machine begin at different ones
    return numbers[first:] + numbers[:first]


def _can_rename(source: Path, target: Path) -> bool:
    """Tell whether files of one folder can be renamed into the other: not so if they are of two disks, or mounts."""
    missing = _TEMPORARY.format(secrets.token_hex(8))
    try:
        if source.stat().st_dev != target.stat().st_dev:
            return False
        # Two mounts of one disk look alike; Linux tells them apart before it finds that there is no such file.
        (source / missing).replace(target / missing)
    except OSError as error:
        return error.errno != errno.EXDEV
    return True


def remove_leftovers(folder: Path) -> int:
    """Delete the temporary files that dead workers left in ``folder``; return how many.

    The lock tells: the system frees it with its owner, however that ended. Where a file system has no locks, and for
    lists of segments, only files that nobody touched for a day are deleted.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in [path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name)]:
            with contextlib.suppress(OSError):  # in use on Windows, or another worker was quicker
                if _remove_leftover(path):
                    removed += 1
                    log.info(_("removed what a dead worker left: %s"), path)
    return removed


def _remove_leftover(path: Path) -> bool:
    old = time.time() - path.stat().st_mtime > LEFTOVER_SECONDS
    if path.suffix in _LIST_SUFFIXES and not old:
        return False
    with path.open("r+b") as file:
        locked = _lock(file)
        if locked is False or (locked is None and not old):
            return False
        if path.suffix == _NOTE_SUFFIX and not _remove_noted(Path(os.fsdecode(file.read(NOTE_BYTES)))):
            return False
        if sys.platform != "win32":
            path.unlink()
            return True
    path.unlink()
    return True


def _remove_noted(path: Path) -> bool:
    """Remove the file that a note names; return whether the note is of no use any more."""
    if not _LEFTOVER.fullmatch(path.name):
        return True  # its writer died before it had written it
    if not path.parent.is_dir():
        return False  # the disk is not there at the moment
    try:
        return _remove_leftover(path)
    except FileNotFoundError:
        return True


def _lock(file: IO[bytes]) -> bool | None:
    """Lock a file until it is closed; return False if another has it, None where there are no such locks.

    Windows needs none: an open file cannot be deleted there.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
    return True


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Raise DiskFull where a file of that size does not fit."""
    try:
        total_bytes, _used, free_bytes = shutil.disk_usage(folder)
    except OSError as error:
        raise write_failure(error, folder) from error
    if total_bytes and free_bytes < needed_bytes:  # some network drives say 0 of everything
        raise DiskFull(
            _("{folder} has {free} MiB left, the merged file needs {needed}: free some room").format(
                folder=folder, free=free_bytes // MIB, needed=needed_bytes // MIB + 1
            )
        )


@contextlib.contextmanager
def _temporary_file(folder: Path, needed_bytes: int, name: str = "") -> Iterator[tuple[Path, BinaryIO]]:
    """Make and lock a temporary file in ``folder``; remove it in the end: a published one has another name by then."""
    _check_room(folder, needed_bytes)
    try:
        path, file = _create_locked(folder, name)
    except OSError as error:
        raise write_failure(error, folder) from error
    try:
        with file:
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _create_locked(folder: Path, name: str) -> tuple[Path, BinaryIO]:
    for _attempt in range(8):
        path = folder / (name or _TEMPORARY.format(secrets.token_hex(8)))
        file = path.open("xb")
        locked = _lock(file)
        with contextlib.suppress(FileNotFoundError):
            if locked is not False and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return path, file
        file.close()  # someone cleaned up between the two calls
    raise BlockingIOError(errno.EAGAIN, _("its files vanish"))


@contextlib.contextmanager
def _noted_file(proved: Path, folder: Path, needed_bytes: int) -> Iterator[tuple[Path, BinaryIO]]:
    """Make a temporary file on another disk, after a note beside ``proved`` that says where.

    A library has any number of folders, of any number of disks: only the scratch folder is looked through for what
    dead workers left.
    """
    with _temporary_file(proved.parent, 0, proved.name + _NOTE_SUFFIX) as (_path, note):
        try:
            note.write(os.fsencode(folder / proved.name))
            note.flush()
        except OSError as error:
            raise write_failure(error, proved.parent) from error
        with _temporary_file(folder, needed_bytes, proved.name) as made:
            yield made


@contextlib.contextmanager
def _list_files(plan: MergePlan, temporary: Path) -> Iterator[None]:
    """Write the lists of segments and of chapters that ffmpeg reads, and remove them in the end."""
    texts: dict[Path, str] = {}
    if len(plan.segments) > 1:
        texts[Path(segment_list_path(plan, str(temporary)))] = segment_list(plan)
    if plan.chapters:
        texts[Path(list_of_chapters_path(str(temporary)))] = list_of_chapters(plan)
    with contextlib.ExitStack() as files:
        for path, text in texts.items():
            files.callback(_unlink, path)
            try:
                path.write_text(text, encoding="utf-8", newline="\n")
            except OSError as error:
                raise write_failure(error, path.parent) from error
        yield


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


# ------------------------------------------------------------------------------------------ to another disk


async def _copy(source: Path, target: Path) -> None:
    """Copy a file to another disk and read it back from there; when cancelled, stop at the next piece."""
    stop = threading.Event()
    async with _limits().copying:
        work = asyncio.create_task(asyncio.to_thread(_copy_and_compare, source, target, stop))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])
            raise


def _copy_and_compare(source: Path, target: Path, stop: threading.Event) -> None:
    written, found = xxhash.xxh3_128(), xxhash.xxh3_128()
    try:
        with source.open("rb", buffering=0) as reader, target.open("r+b") as writer:
            for piece in _pieces(source, reader, stop):
                written.update(piece)
                writer.write(piece)
            writer.flush()
            os.fsync(writer.fileno())
            if hasattr(os, "posix_fadvise"):
                # What is read then comes from the disk, not from the memory that it was written from.
                os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with target.open("rb", buffering=0) as reader_back:
                for piece in _pieces(target, reader_back, stop):
                    found.update(piece)
    except OSError as error:
        raise write_failure(error, target.parent) from error
    if written.digest() != found.digest() and not stop.is_set():
        raise MergeError(
            _("{folder} does not give back what was written there: its disk may be failing").format(
                folder=target.parent
            )
        )


def _pieces(path: Path, file: io.FileIO, stop: threading.Event) -> Iterator[memoryview]:
    """Yield a file's bytes, each piece valid until the next one is asked for, until its end or ``stop``."""
    buffer = memoryview(bytearray(MOVE_BYTES))
    while not stop.is_set():
        try:
            count = file.readinto(buffer)
        except OSError as error:
            raise MergeError(_("cannot read {path}: {problem}").format(path=path, problem=error.strerror)) from error
        if not count:
            return
        yield buffer[:count]


# ------------------------------------------------------------------------------------------ the name


def _publish(temporary: Path, lock: BinaryIO, output: Path) -> None:
    """Give the file its name, in one step that fails if the name is taken."""
    try:
        if sys.platform == "win32":
            lock.close()  # an open file cannot be renamed there
            temporary.rename(output)  # refuses by itself
        else:
            _link_or_rename(temporary, output)
    except FileExistsError as error:
        raise NameTaken(
            _("{path} is there already: it stays as it is, move it away if it is not wanted").format(path=output)
        ) from error
    except OSError as error:
        raise write_failure(error, output.parent) from error


def _link_or_rename(temporary: Path, output: Path) -> None:
    """Link the file to its name; its temporary one goes later. Rename it where the file system has no hard links."""
    try:
        os.link(temporary, output)
    except FileExistsError:
        raise
    except OSError as error:  # FAT, some network disks, some sandboxes; what else is wrong, the rename meets again
        log.debug("%s: %s", output, error)
        if not _rename_exclusively(temporary, output):
            # Nothing better is left; between this look and the rename there is no wait.
            if os.path.lexists(output):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output)) from error
            temporary.rename(output)


def _rename_exclusively(source: Path, target: Path) -> bool:
    """Rename a file unless the name is taken (FileExistsError); return False where the system cannot do that."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    problem = ctypes.get_errno()
    if problem in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):  # EPERM is a sandbox that filters calls
        return False
    raise OSError(problem, os.strerror(problem), str(target))


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse; the file itself is on disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ------------------------------------------------------------------------------------------ running ffmpeg


class _Output:
    """What ffmpeg wrote on stderr: its last line, and the lines that tell of damage; bounded, whatever it writes."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = sorted((name for name in names if name), key=len, reverse=True)
        self._rest = b""
        self.last_line = ""
        self.suspicious = ""
        self.no_space = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes; a line that never ends is cut."""
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._take(line[:LINE_BYTES].decode("utf-8", "replace").strip())
        self._rest = rest[:LINE_BYTES]

    def close(self) -> None:
        """Take what stands behind the last line's end."""
        self.feed(b"\n")

    def _take(self, line: str) -> None:
        if not line:
            return
        self.last_line = line
        self.no_space = self.no_space or _NO_SPACE.search(line) is not None
        for name in self._names:
            line = line.replace(name, "…")  # a title may have any of these words
        if not self.suspicious and _SUSPICIOUS.search(line) and not _HARMLESS.search(line):
            self.suspicious = line


async def _run(arguments: list[str], timeout_seconds: float, names: tuple[str, ...], processor: int) -> None:
    """Run ffmpeg to its end; raise MergeError or DiskFull unless it succeeded and complained of nothing."""
    output = _Output(names)
    progress = _Progress()
    log.debug("%s", arguments)
    child = _start(arguments, processor)
    try:
        async with asyncio.timeout(timeout_seconds):
            status = await child.result(progress.feed, output.feed)
    except TimeoutError:
        raise MergeError(
            _("ffmpeg was stopped after {seconds:.0f} seconds, it had come to {position}").format(
                seconds=timeout_seconds, position=progress.position or "0"
            )
        ) from None
    finally:
        await asyncio.shield(child.end())
    output.close()
    _judge(status, output)


def _judge(status: int, output: _Output) -> None:
    if status == _NO_SPACE_STATUS or (status != 0 and output.no_space):
        raise DiskFull(_("the disk is full: {line}").format(line=output.last_line or "ffmpeg"))
    if status < 0:
        raise MergeError(_("ffmpeg was killed by signal {number}").format(number=-status))
    if status != 0:
        raise MergeError(
            _("ffmpeg failed with exit status {status}: {line}").format(status=status, line=output.last_line or "-")
        )
    if output.suspicious:
        raise MergeError(_("ffmpeg found damage: {line}").format(line=output.suspicious))


class _Progress:
    """How far ffmpeg says it is."""

    def __init__(self) -> None:
        self._rest = b""
        self.position = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of key=value lines."""
        text = self._rest + data
        found = re.findall(rb"out_time=([0-9:.]{1,20})\n", text)
        if found:
            self.position = found[-1].decode()
        self._rest = text[-64:]


Feed = Callable[[bytes], None]


class _Spawned:
    """An ffmpeg that is our own child, where there is no starter; it may outlive us if we are killed.

    Threads of its own wait for it. asyncio's own children are of no use here: until Python 3.11.4 whoever is cancelled
    while one is started may wait for ever.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._threads = ThreadPoolExecutor(3, "ffmpeg")
        self._is_over = False

    async def result(self, stdout: Feed, stderr: Feed) -> int:
        """Hand on what it writes, and return its exit status, as a negative number that of the signal it died of."""
        loop = asyncio.get_running_loop()
        assert self._process.stdout is not None and self._process.stderr is not None
        _out, _err, status = await asyncio.gather(
            loop.run_in_executor(self._threads, _feed, self._process.stdout, stdout),
            loop.run_in_executor(self._threads, _feed, self._process.stderr, stderr),
            loop.run_in_executor(self._threads, self._process.wait),
        )
        self._is_over = True
        return status

    async def end(self) -> None:
        """Kill what still runs of its process group, and wait until it is gone."""
        if not self._is_over:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._process.wait()
        self._threads.shutdown()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


def _feed(stream: IO[bytes], feed: Feed) -> None:
    """Hand on what comes, in a thread of its own, until its end."""
    while data := os.read(stream.fileno(), STDERR_BYTES):
        feed(data)


class _Started:
    """An ffmpeg that the starter takes care of."""

    def __init__(self, line: socket.socket, stdout: int, stderr: int) -> None:
        self._line, self._stdout, self._stderr = line, stdout, stderr
        self._status = b""
        self._is_over = False

    async def result(self, stdout: Feed, stderr: Feed) -> int:
        """See _Spawned."""
        await asyncio.gather(_drain(self._stdout, stdout), _drain(self._stderr, stderr), self._wait())
        return int(self._status or -signal.SIGKILL)  # without a number the starter was killed, and ffmpeg with it

    async def _wait(self) -> None:
        await _drain(self._line.fileno(), self._hear)
        self._is_over = True

    def _hear(self, data: bytes) -> None:
        self._status += data

    async def end(self) -> None:
        """See _Spawned."""
        try:
            if not self._is_over:
                self._line.shutdown(socket.SHUT_WR)
                await self._wait()
        finally:
            self._line.close()
            os.close(self._stdout)
            os.close(self._stderr)


async def _drain(descriptor: int, feed: Feed) -> None:
    """Hand on what comes through a descriptor until its end; it stays open."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(descriptor, STDERR_BYTES)
            if data:
                feed(data)
            elif not ended.done():
                ended.set_result(None)

    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, read)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)


_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(64 * MIB),
    "MALLOC_TRIM_THRESHOLD_": str(128 * MIB),
}
"""For an ffmpeg with glibc: what it frees it needs again in a moment, and would get from the kernel page by page."""


class _Starter:
    """The door to the process that starts our ffmpegs: made when it is first needed, and anew if it was killed."""

    def __init__(self) -> None:
        self._door: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, request: bytes, descriptors: list[int]) -> None:
        """Have a process started; raise OSError where that cannot be asked for."""
        if self._door is not None:
            try:
                socket.send_fds(self._door, [request], descriptors)
                return
            except (BrokenPipeError, ConnectionResetError):
                self.close()
        self._open()
        assert self._door is not None
        socket.send_fds(self._door, [request], descriptors)

    def _open(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as stack:
            stack.enter_context(ours)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**_ALLOCATOR, **os.environ},
                start_new_session=True,  # a ^C is for us: we end it when we are done
            )
            stack.pop_all()
        self._door = ours

    def close(self) -> None:
        """Shut the door, which ends the starter and all that it started, and wait for it: its time counts as ours."""
        if self._door is None or self._process is None:
            return
        self._door.close()
        self._door = None
        try:
            self._process.wait(GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_STARTER = _Starter()


def _start(arguments: list[str], processor: int) -> _Started | _Spawned:
    try:
        return _start_by_starter(arguments, processor) if sys.platform == "linux" else _spawn(arguments)
    except OSError as error:
        raise MergeError(_("cannot start {path}: {problem}").format(path=arguments[0], problem=error)) from error


def _start_by_starter(arguments: list[str], processor: int) -> _Started:
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        line, line_end = socket.socketpair()
        ours.enter_context(line)
        theirs.enter_context(line_end)
        pipes = []
        for _pipe in range(2):
            reading, writing = os.pipe()
            ours.callback(os.close, reading)
            theirs.callback(os.close, writing)
            pipes.append((reading, writing))
        (stdout, stdout_end), (stderr, stderr_end) = pipes
        request = pack_request(processor, arguments)
        _STARTER.ask(request, [stdout_end, stderr_end, line_end.fileno()])
        ours.pop_all()
    return _Started(line, stdout, stderr)


def _spawn(arguments: list[str]) -> _Spawned:
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    if sys.platform == "win32":
        flags = subprocess.BELOW_NORMAL_PRIORITY_CLASS | subprocess.CREATE_NEW_PROCESS_GROUP
        return _Spawned(
            subprocess.Popen(
                arguments, stdin=null, stdout=pipe, stderr=pipe, creationflags=flags | subprocess.CREATE_NO_WINDOW
            )
        )
    process = subprocess.Popen(arguments, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True)
    with contextlib.suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    return _Spawned(process)
