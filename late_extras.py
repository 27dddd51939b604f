"""Fetches what was switched on later: lays the companions that are missing beside the pages that stand on this machine.

The queue knows a finished page as done and nothing more, and only the machine that has the file can lay something
beside it. So this walks the files, each of which says in its comment which page it holds; no lease is taken, nothing
is recorded, and no stream is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bili_client import BiliClient
from errors import CircumstanceError, JobError, PermanentError
from extras import Extras
from i18n import _
from merging import read_tag
from model import Beside, JobId, Result
from parse_ import parse_job_id
from result_log import all_results
from stream_choice import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS
from transfer import MediaClient

log = logging.getLogger(__name__)

_ENDINGS = frozenset(f".{kind}" for kind in (*VIDEO_EXTENSIONS, *AUDIO_EXTENSIONS))
_TAG = re.compile(r"/video/(?P<bvid>BV[0-9A-Za-z]{10})?\?p=(?P<number>[0-9]{1,5}) cid=(?P<cid>[0-9]{1,16})$")


@dataclass(frozen=True, slots=True)
class Standing:
    """A finished page on this machine: where its file is below the download folder, and the job that made it."""

    relative: PurePosixPath
    job: JobId


@dataclass(frozen=True, slots=True)
class MediaDoor:
    """The door to media hosts, for who needs nothing else of the downloads' wire."""

    client: MediaClient


@dataclass(slots=True)
class Laid:
    """What became of a walk; ``str`` is the line that scripts read, English in any language."""

    pages: int = 0
    files: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"pages {self.pages}, files {self.files}, failed {self.failed}"


Bring = Callable[[Result, Sequence[Beside]], Awaitable[object]]
"""Brings what was laid beside a page to where the page was delivered."""


async def lay_late(extras: Extras, site: BiliClient, laid: Laid, bring: Bring | None = None) -> None:
    """Lay what is wanted and missing beside every finished page, one page after the other.

    A page that cannot be had any more is said, and the others go on; raise the CircumstanceError by which the site asks
    to be left alone. What was laid until then is not asked for again.
    """
    walk = standing_pages(extras.settings.download_dir, jobs_by_path(extras.settings.data_dir))
    delivered = {} if bring is None else delivered_by_path(extras.settings.data_dir)
    while (page := await asyncio.to_thread(next, walk, None)) is not None:
        laid.pages += 1
        if not extras.may_miss(page.relative):
            continue
        try:
            written, beside = await _lay(extras, site, page)
            laid.files += written
            if bring is not None and written and (result := delivered.get(str(page.relative))) is not None:
                await bring(result, beside)
        except CircumstanceError:
            raise
        except JobError as error:
            laid.failed += 1
            log.warning(_("%s: %s (%s)"), page.relative, error, error.code)


async def _lay(extras: Extras, site: BiliClient, standing: Standing) -> tuple[int, tuple[Beside, ...]]:
    """Return how many files were laid beside a page, and all that lie there now."""
    video = await site.describe(standing.job)
    page = video.page_with_cid(standing.job.cid)
    if page is None:
        raise PermanentError(_("The uploader has taken this page away"), "page-gone")
    async with extras.of(str(standing.job), video, page, standing.relative) as companions:
        written = await companions.lay_beside(standing.relative)
        beside = companions.standing(standing.relative)
    if written:
        log.info(_("%s: %d files laid beside it"), standing.relative, written)
    if companions.trouble is not None:
        raise companions.trouble
    return written, beside


def jobs_by_path(data_dir: Path) -> dict[str, JobId]:
    """Return the jobs of the pages that the workers of this data folder have noted, by where their files went."""
    found = {}
    for url, result in all_results(data_dir):
        try:
            found[result.path] = parse_job_id(url)
        except ValueError:
            continue  # of another version
    return found


def delivered_by_path(data_dir: Path) -> dict[str, Result]:
    """Return what the workers of this data folder have delivered, by where the files are here."""
    return {result.path: result for _url, result in all_results(data_dir) if result.stored}


def standing_pages(folder: Path, noted: Mapping[str, JobId]) -> Iterator[Standing]:
    """Yield the finished pages below a folder in the order of their names; other files are passed over.

    What a file says of itself counts. What was ``noted`` of it is the better id of the same page: an episode and a
    lesson are asked for by their own.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix in _ENDINGS and not name.startswith(".") and (said := _job_of(path)) is not None:
                relative = PurePosixPath(path.relative_to(folder).as_posix())
                job = noted.get(str(relative))
                if job is None or job.cid != said.cid:
                    job = said
                if job.bvid or job.episode_id or job.source:
                    yield Standing(relative, job)


def _job_of(path: Path) -> JobId | None:
    """Return the page that a file says it holds; None for one that says nothing of the kind, or is cut."""
    try:
        found = _TAG.search(read_tag(path))
    except (OSError, JobError):
        return None
    if found is None:
        return None
    return JobId(bvid=found["bvid"] or "", number=int(found["number"]), cid=int(found["cid"]))
