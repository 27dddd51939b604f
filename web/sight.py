"""What of an answer is for whom: who may only add, or work, sees jobs and counts, and nothing of the machines.

Which address a role may use at all is in ``guard.ROLES``; here is what it sees there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from werkzeug.exceptions import Forbidden

from i18n import _
from web.keyring import access

LEAST_NAMED = 4
"""So much of a title, or an id, has to be said by who may not look through all jobs."""
OF_WORKERS = ("worker", "state", "speed_bytes_per_second", "seen_seconds")
"""What workers hear of each other."""
OF_THE_FARM = ("worker", "source", "stored")
"""Which machine has a job, which list brought it, where its file was delivered to."""

Told = Mapping[str, Any]


def sees_all() -> bool:
    """Tell whether who asks may see everything."""
    return access().role == "admin"


def must_name() -> bool:
    """Tell whether who asks has to name the jobs that he wants to see."""
    return access().role == "submit"


def demand_named(find: str) -> None:
    """Refuse all jobs to who may see only those that he can name."""
    if must_name() and len(find.strip()) < LEAST_NAMED:
        sentence = _(
            "a token of the role submit finds jobs by their id or the beginning of their title: find is missing"
        )
        raise Forbidden(sentence)


def seen_workers(workers: Sequence[Told]) -> list[Told]:
    """Return the machines: all of them for an admin, to workers no more than that they are there."""
    if sees_all():
        return list(workers)
    if access().role != "worker":
        return []
    return [{name: worker[name] for name in OF_WORKERS if name in worker} for worker in workers]


def seen_job(job: Told) -> Told:
    """Return a job, or a failure, without what it tells of the farm where that is not for who asks."""
    if sees_all():
        return job
    shown = {name: "" if name in OF_THE_FARM else value for name, value in job.items() if name != "archived"}
    if "errors" in job:
        shown["errors"] = [{**error, "worker": ""} for error in job["errors"]]
    return shown
