"""Delivers the finished pages of a worker, beside its downloads: a few at a time, in threads, in the order of asking.

A page is delivered before it is recorded, while its lease is kept. So a delivery that fails undoes nothing: the file
stands on this machine, and whoever has the lease next delivers it. A place that is away or full is asked again and
again, with growing pauses; meanwhile the worker parks, no attempt is counted, and nothing is downloaded twice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar, cast

import retry
from board import Upload
from delivery.notes import Note, Notes
from delivery.reins import Rein, Reins
from delivery.targets import Target
from delivery.troubles import away
from delivery.upload import Cargo, upload, upload_beside
from errors import CircumstanceError, DownloaderError
from i18n import _
from model import Beside, Result
from places import Place

log = logging.getLogger(__name__)

AT_ONCE = 2
"""More would share the same line, and each holds a part of a file in memory."""

Answer = TypeVar("Answer")
Work = Callable[[Target, Rein], Answer]
Park = Callable[[CircumstanceError], None]


class Deliveries:
    """The uploads of a worker. ``clock`` is that of the leases; ``pause_seconds`` says how long after which failure."""

    def __init__(
        self,
        place: Place,
        connect: Callable[[], Target],
        folder: Path,
        data_dir: Path,
        keeps: bool,
        reins: Reins,
        clock: Callable[[], float],
        pause_seconds: Callable[[int], float] = retry.park_seconds,
    ) -> None:
        self._place, self._connect, self._folder, self._keeps = place, connect, folder, keeps
        self._notes, self._reins = Notes(data_dir), reins
        self._clock, self._pause_seconds = clock, pause_seconds
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._idle: list[Target] = []
        self._failures = 0
        self._away_until = 0.0

    # -------------------------------------------------------------------------------- one page

    async def deliver(
        self, url: str, cid: int, result: Result, beside: Sequence[Beside], park: Park, progress: Upload
    ) -> Result:
        """Bring a finished page to its place, however long that takes; return the result with where it is stored."""
        before = await asyncio.to_thread(self._notes.read, cid)
        if before is not None and before.result.path == result.path and before.result.bytes == result.bytes:
            result = replace(result, streams=result.streams or before.result.streams)
        own = tuple(one.path for one in beside if one.suffix)
        note = Note(url, cid, replace(result, stored=""), own)
        await asyncio.to_thread(self._notes.write, note)
        cargo = Cargo(self._folder, PurePosixPath(result.path), cid, beside)
        progress.total_bytes = result.bytes
        at = await self._patiently(lambda target, rein: upload(target, self._place, cargo, rein), park, progress)
        stored = replace(result, stored=self._place.url(at))
        await asyncio.to_thread(self._notes.write, replace(note, result=stored))
        log.info(_("%s: delivered, %s"), url, stored.stored)
        return stored

    async def delivered(self, cid: int, park: Park) -> Result | None:
        """Return what is to be recorded of a page that was delivered and not recorded; None for all others.

        Whether its file is still here does not matter: it was proved there, and only its size is looked at again.
        """
        note = await asyncio.to_thread(self._notes.read, cid)
        at = None if note is None else self._place.below(note.result.stored)
        if note is None or at is None:  # or this place has nothing to do with it
            return None
        size = await self._patiently(lambda target, rein: target.find(at), park, Upload())
        return note.result if size == note.result.bytes else None

    async def bring_beside(self, result: Result, beside: Sequence[Beside]) -> int:
        """Bring what was laid beside a page after it was delivered, in one try; return how many files were sent."""
        at = self._place.below(result.stored)
        if at is None or not beside:
            return 0
        cargo = Cargo(self._folder, PurePosixPath(result.path), 0, beside)
        return await self._once(lambda target, rein: upload_beside(target, self._place, cargo, at, rein), Upload())

    async def settle(self, cid: int) -> None:
        """After a page was recorded: delete the copy here if it is not to be kept, and forget the delivery."""
        note = await asyncio.to_thread(self._notes.read, cid)
        if note is not None and note.result.stored and (self._keeps or await self._removed(note)):
            await asyncio.to_thread(self._notes.delete, cid)

    # -------------------------------------------------------------------------------- after a kill

    async def waiting(self) -> list[tuple[str, int]]:
        """Return the jobs whose files wait here, or were delivered and perhaps not recorded, and their sizes."""
        found = []
        for note in await asyncio.to_thread(lambda: list(self._notes.all())):
            if note.result.stored or self._stands(note):
                found.append((note.url, note.result.bytes))
            else:  # somebody has moved it away
                self._notes.delete(note.cid)
        return found

    async def sweep(self) -> None:
        """Delete the copies of pages that were delivered before a worker was killed, if they are not to be kept.

        Whether they were recorded does not matter: where they were not, the note is enough to record them.
        """
        for note in await asyncio.to_thread(lambda: list(self._notes.all())):
            if note.result.stored and not self._keeps:
                await self._removed(note)

    def close(self) -> None:
        """Let go of the connections."""
        _in_background([target.close for target in self._idle])
        self._idle.clear()

    # -------------------------------------------------------------------------------- the copy here

    def _stands(self, note: Note) -> bool:
        path = self._folder / note.result.path
        return path.exists() or _hidden(path, note).exists()

    async def _removed(self, note: Note) -> bool:
        """Delete the copy here; tell whether it is gone.

        It stays where it is the very file that was delivered, because the place leads back into this folder by
        whatever way: so it is taken aside first, and the place must show it all the same.
        """
        path, at = self._folder / note.result.path, self._place.below(note.result.stored)
        hidden = _hidden(path, note)
        if at is None:
            return False
        try:
            if not hidden.exists():
                path.rename(hidden)
            if not await self._shows_without(path, hidden, at, note.result.bytes):
                log.warning(_("%s stays here: %s does not show it"), path, self._place)
                return False
            hidden.unlink()
            for name in note.beside:
                (self._folder / name).unlink(missing_ok=True)
        except FileNotFoundError:
            return True
        except OSError as error:
            log.warning(_("%s stays here: %s"), path, error.strerror)
            return False
        return True

    async def _shows_without(self, path: Path, hidden: Path, at: PurePosixPath, size_bytes: int) -> bool:
        """Tell whether the place shows a file while the one here is taken aside; if not, that comes back."""
        shows = False
        try:
            with suppress(DownloaderError):
                shows = await self._once(lambda target, rein: target.find(at), Upload()) == size_bytes
        finally:
            if not shows:
                _put_back(hidden, path)
        return shows

    # -------------------------------------------------------------------------------- threads

    async def _patiently(self, work: Work[Answer], park: Park, progress: Upload) -> Answer:
        """Return what the work returns, as soon as the place lets it end."""
        while True:
            if (left := self._away_until - self._clock()) > 0:
                await asyncio.sleep(left)
                continue
            async with self._turns:
                if self._away_until > self._clock():
                    continue  # another one has just failed
                try:
                    answer = await self._once(work, progress)
                except CircumstanceError as error:
                    self._failures += 1
                    self._away_until = self._clock() + self._pause_seconds(self._failures)
                    park(error)
                else:
                    self._failures = 0
                    return answer

    async def _once(self, work: Work[Answer], progress: Upload) -> Answer:
        """Do the work with a connection; one that has grown old is replaced by a new one, once."""
        if self._idle:
            with suppress(CircumstanceError):
                return await self._with([self._idle.pop()], work, progress)
        return await self._with([], work, progress)

    async def _with(self, held: list[Target], work: Work[Answer], progress: Upload) -> Answer:
        rein = Rein(self._reins, progress.reach)

        def perform() -> Answer:
            if not held:
                held.append(self._connect())
            return work(held[0], rein)

        try:
            answer, failure = await _in_thread(perform)
        except asyncio.CancelledError:
            rein.end()
            _in_background([target.interrupt for target in held])
            raise
        if failure is None:
            self._idle += held
            return cast(Answer, answer)
        _in_background([target.close for target in held])
        if not isinstance(failure, DownloaderError):  # whatever a package does not foresee: the file stands here
            log.debug("%s", self._place, exc_info=failure)
            failure = away(self._place, f"{type(failure).__name__}: {failure}")
        raise failure


def _hidden(path: Path, note: Note) -> Path:
    return path.with_name(f".{note.cid}.delivered")


def _put_back(hidden: Path, path: Path) -> None:
    if not path.exists():  # else another page has come under that name
        hidden.rename(path)


async def _in_thread(work: Callable[[], Answer]) -> tuple[Answer | None, BaseException | None]:
    """Do blocking work in a thread that the process does not wait for at its end; return its answer, or its failure."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[Answer | None, BaseException | None]] = loop.create_future()

    def tell(answer: Answer | None, failure: BaseException | None) -> None:
        if not outcome.done():  # else whoever waited was cancelled
            outcome.set_result((answer, failure))

    def run() -> None:
        answer: Answer | None = None
        failure: BaseException | None = None
        try:
            answer = work()
        except BaseException as error:  # it is raised again in the loop
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, answer, failure)

    threading.Thread(target=run, name="delivery", daemon=True).start()
    return await outcome


def _in_background(calls: Sequence[Callable[[], None]]) -> None:
    """Let go of connections: that may take a while, and nobody needs to know."""
    for call in calls:
        threading.Thread(target=call, daemon=True).start()
