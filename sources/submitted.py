"""What users submit, a text at a time: which container each one names, or why none; and where a job is on the site."""

from __future__ import annotations

from collections.abc import Iterable

from i18n import _
from parse_ import SiteHosts, parse_job_id, parse_target, plain_video
from sources.addresses import parse_source
from sources.messages import source_address


def sort_out(texts: Iterable[str], hosts: SiteHosts) -> tuple[list[str], list[dict[str, str]]]:
    """Return the containers that are named, sources among them, and what is rejected, with the reasons.

    Nothing is asked of anyone, so a short link is rejected.
    """
    ids, rejected = [], []
    for text in texts:
        if video := plain_video(text, hosts):
            ids.append(video)
            continue
        try:
            if source := parse_source(text, hosts):
                ids.append(source)
                continue
            target = parse_target(text, hosts)
        except ValueError as error:
            rejected.append({"url": text, "reason": str(error)})
            continue
        if target.short_link:
            reason = _("the server fetches nothing: give this short link to add_url.py, or what it leads to")
            rejected.append({"url": text, "reason": reason})
        else:
            ids.append(target.id)
    return ids, rejected


def job_address(url: str, web_url: str) -> str:
    """Return the address on the site of what a job id names."""
    job = parse_job_id(url)
    if job.source:
        return source_address(job.source, web_url)
    if job.episode_id:
        return f"{web_url}/bangumi/play/ep{job.episode_id}"
    page = f"?p={job.number}" if job.number else ""
    return f"{web_url}/video/{job.bvid}{page}"
