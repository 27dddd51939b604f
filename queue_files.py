"""The queue and files: a whole queue written into one and read from it, and finished pages found in a folder."""

from __future__ import annotations

import argparse
import gzip
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from adopt_files import Asked, Standing, Unknown, standing_files
from config import Settings
from errors import UsageError
from i18n import _
from model import MIB, JobId
from parse_ import parse_job_id
from plain_text import one_line
from redisConnect import Queue
from site_walk import Site
from store import (
    BATCH,
    Restored,
    as_json,
    bucket,
    done_key,
    export,
    folded_prefix,
    identity_of,
    path_pattern,
    record_key,
    restore,
    shard_of,
)

Say = Callable[[str], None]

LONGEST_LINE_BYTES = 64 * MIB
"""Of an import: a ledger with a million entries has less. A file that unfolds to one endless line is read in parts."""


def move_whole(queue: Queue, settings: Settings, options: argparse.Namespace, tell: Say, say: Say) -> int:
    """Export the queue, import one, or adopt a folder, as add_url's options say; return how many things were rejected.

    ``tell`` gets the lines that scripts read, the last one in any case; ``say`` is for people.
    """
    if options.export:
        (say if options.export == "-" else tell)(export_queue(queue, options.export, say))
        return 0
    if options.import_:
        restored = Restored()
        try:
            import_queue(queue, options.import_, say, restored)
        finally:
            tell(str(restored))
        return restored.wrong_count
    adopted, site, folder = Adopted(), Site(settings), Path(options.adopt)
    asked = None if options.offline else Asked(site.video, site.episode)
    try:
        adopt_folder(queue, folder, settings.download_dir, asked, options.dry_run, adopted, tell=tell, say=say)
    finally:
        site.close()
        tell(str(adopted))
    return adopted.rejected


@contextmanager
def _written(name: str) -> Iterator[IO[bytes]]:
    """Open a file to be written, - being standard output; it has its name once all of it is on the disk."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path, unfinished = Path(name), Path(name + ".unfinished")
    with unfinished.open("wb") as file:
        if name.endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=4) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


@contextmanager
def _read(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with gzip.open(name) if name.endswith(".gz") else Path(name).open("rb") as file:
        yield cast(IO[bytes], file)


def export_queue(queue: Queue, name: str, say: Say) -> str:
    """Write the whole queue into a file; return the line that scripts read."""
    jobs = lines = 0
    moved = False
    try:
        with _written(name) as file:
            for line in export(queue):
                file.write(as_json(line).encode("utf-8", "replace") + b"\n")
                lines += 1
                jobs += line.get("kind") == "job"
                moved = bool(line.get("moved"))
    except OSError as error:
        raise UsageError(_("{file} cannot be written: {problem}").format(file=name, problem=error.strerror)) from error
    if moved:
        say(
            _(
                "The queue was at work meanwhile: what moved may be in it twice, or as it was before. An import puts"
                " that in order. For an exact one, stop the workers first."
            )
        )
    return f"exported {lines} lines, {jobs} jobs"


def import_queue(queue: Queue, name: str, say: Say, restored: Restored) -> None:
    """Bring what an export has written into the queue, and say what was wrong with it."""
    try:
        with _read(name) as file:
            restore(queue, iter(partial(file.readline, LONGEST_LINE_BYTES), b""), restored)
    except (OSError, EOFError) as error:  # gzip says so of a file that is cut
        sentence = _("{file} cannot be read to its end: {problem}")
        raise UsageError(sentence.format(file=name, problem=getattr(error, "strerror", "") or error)) from error
    finally:
        for problem in restored.wrong:
            say(problem)
    if not restored.is_whole:
        restored.wrong_count += 1
        say(_("The last line of the export is missing: it was cut. What it has is in the queue."))


@dataclass(slots=True)
class Adopted:
    """What became of the files of a folder; ``str`` is the line that scripts read, English in any language."""

    adopted: int = 0
    known: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        return f"adopted {self.adopted}, known {self.known}, rejected {self.rejected}"


def adopt_folder(
    queue: Queue,
    folder: Path,
    downloads: Path,
    asked: Asked | None,
    dry_run: bool,
    adopted: Adopted,
    *,
    tell: Say,
    say: Say,
) -> None:
    """Record the pages that stand in a folder as done; ``tell`` what each file is, ``say`` why one is not adopted."""
    if not folder.is_dir():
        raise UsageError(_("{folder} is no folder").format(folder=folder))
    batch: list[Standing] = []
    for found in standing_files(folder, asked):
        shown = one_line(str(found.path.relative_to(folder)))
        if isinstance(found, Unknown):
            adopted.rejected += 1
            say(_("rejected {target}: {reason}").format(target=shown, reason=one_line(found.reason)))
            continue
        tell(f"{shown}\t{found.url or f'cid={found.cid}'}\t{found.said_by}")
        batch.append(found)
        if len(batch) == BATCH:
            _record(queue, batch, downloads, dry_run, adopted)
            batch = []
    _record(queue, batch, downloads, dry_run, adopted)


def _record(queue: Queue, batch: list[Standing], downloads: Path, dry_run: bool, adopted: Adopted) -> None:
    parts: dict[int, list[Standing]] = {}
    for one in batch:
        parts.setdefault(shard_of(identity_of(_page_of(one)), queue.shards), []).append(one)
    for shard, part in parts.items():
        _record_in(queue, shard, part, downloads, dry_run, adopted)


def _record_in(
    queue: Queue, shard: int, batch: list[Standing], downloads: Path, dry_run: bool, adopted: Adopted
) -> None:
    if dry_run:
        places = [(done_key(_page_of(one), queue.shards), str(one.cid)) for one in batch]
        done = queue.look(lambda pipe: [pipe.sismember(place, cid) for place, cid in places])
        news = {one.cid for one, known in zip(batch, done, strict=True) if not known}
        adopted.adopted += len(news)
        adopted.known += len(batch) - len(news)
        return
    keys: list[str] = []
    args: list[str | int] = ["adopted"]
    bare = [one for one in batch if not one.url]
    for one in batch:
        if one.url:
            page = parse_job_id(one.url)
            path = one.path.resolve()
            inside = path.is_relative_to(downloads.resolve())
            place = path.relative_to(downloads.resolve()).as_posix() if inside else str(path)
            keys += [*_page_keys(page, queue.shards), record_key(page, queue.shards)]
            args += [one.url, one.cid, "", round(path.stat().st_mtime * 1000), one.title, folded_prefix(one.title)]
            args += [path_pattern(place, one.url, one.title), one.bytes, f"{one.seconds:.1f}", "", "", "", "", "", ""]
    for its_keys, its_args in ((keys, args), _bare(bare, queue.shards)):
        if its_keys:
            new, known = queue.run("restore", its_keys, its_args, shard)
            adopted.adopted += int(new)
            adopted.known += int(known)


def _bare(batch: list[Standing], shards: int) -> tuple[list[str], list[str | int]]:
    """Return keys and arguments for pages of which only the cid is known."""
    keys: list[str] = []
    args: list[str | int] = ["done"]
    for one in batch:
        keys += _page_keys(_page_of(one), shards)
        args.append(one.cid)
    return keys, args


def _page_keys(page: JobId, shards: int) -> list[str]:
    return [bucket("seen", identity_of(page), shards), done_key(page, shards)]


def _page_of(one: Standing) -> JobId:
    return JobId(episode_id=1, cid=one.cid)  # a page is its cid, whatever video it is of
