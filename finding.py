"""``add_url.py --find``: where files are: which machine has each of them, and which place it was delivered to.

A job's id and a cid are looked up, a title is found by its beginning. The id of a video or an episode means all its
pages: for these the list of what is finished is gone through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from rich.table import Table

from i18n import _
from model import JobId
from parse_ import SiteHosts, parse_job_id
from plain_text import harmless, size_text
from sources import sort_out

PAGE = 1000


class Lists(Protocol):
    """What is asked: the queue itself, or a server that has it. Each call returns a piece, and where to go on."""

    def jobs(
        self, state: str = "", category: str = "", source: str = "", find: str = "", after: str = "", limit: int = 100
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return jobs, with ``find`` those whose id or cid it is, or whose titles begin so."""

    def success(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Return finished pages."""


def meant(text: str, hosts: SiteHosts) -> str:
    """Return the id that a text of a user names, in whatever form; the text itself where it names none."""
    with suppress(ValueError):
        return str(parse_job_id(text))
    ids, _rejected = sort_out([text], hosts)
    return ids[0] if ids else text


def find_jobs(lists: Lists, text: str) -> Iterator[dict[str, Any]]:
    """Yield what is known of the jobs that a text means, each once, as it comes.

    Of a video that is finished its pages are meant, not the job that has found them.
    """
    video = _container(text)
    seen: set[str] = set()
    for job in _each(lists, text, video):
        if job["url"] not in seen and not (video is not None and job["url"] == text and job["state"] == "done"):
            seen.add(job["url"])
            yield job


def _each(lists: Lists, text: str, video: JobId | None) -> Iterator[dict[str, Any]]:
    after: str | None = ""
    while after is not None:
        items, after = lists.jobs(find=text, after=after, limit=PAGE)
        yield from items
    after = None if video is None else ""
    while video is not None and after is not None:
        items, after = lists.success(after, PAGE)
        yield from ({**item, "state": "done"} for item in items if _is_of(video, str(item["url"])))


def _container(text: str) -> JobId | None:
    try:
        job = parse_job_id(text)
    except ValueError:
        return None
    return None if job.is_page else job


def _is_of(video: JobId, url: str) -> bool:
    try:
        page = parse_job_id(url)
    except ValueError:  # of another version
        return False
    same = (page.bvid, page.episode_id, page.source) == (video.bvid, video.episode_id, video.source)
    return same and video.number in (0, page.number)


def job_table(jobs: Sequence[dict[str, Any]]) -> Table:
    """Return jobs as a table: what they are, and where their files are."""
    words = {
        "leased": _("in work"),
        "ready": _("ready"),
        "delayed": _("delayed"),
        "dead": _("failed"),
        "done": _("done"),
    }
    table = Table(box=None, pad_edge=False)
    for name in (_("id"), _("state"), _("title"), _("machine"), _("file"), _("size"), _("delivered to")):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for job in jobs:
        state = words.get(str(job.get("state")), str(job.get("state")))
        size = size_text(job["bytes"]) if job.get("bytes") else ""
        cells = (job["url"], state, job.get("title"), job.get("worker"), job.get("path"), size, job.get("stored"))
        table.add_row(*(harmless(str(cell or "")) for cell in cells))
    return table
