"""What an error of a place means for the job: who is to blame, and what a person can do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from errors import CircumstanceError, DiskFull, JobError, PermanentError
from i18n import _
from places import Place

FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
NAMES = (errno.ENAMETOOLONG, errno.EILSEQ)


@contextmanager
def troubles(place: Place) -> Iterator[None]:
    """Raise what an OSError means; a name that is taken is nobody's fault, and passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise trouble(place, error) from error


def trouble(place: Place, error: OSError) -> JobError:
    """Return what an OSError of a place means."""
    problem = place.without_secrets(error.strerror or str(error) or type(error).__name__)
    if error.errno in FULL:
        return full(place, problem)
    if error.errno in DENIED:
        return denied(place, problem)
    if error.errno in NAMES:
        sentence = _("{place} does not take the file's name: {problem}; a shorter BILI_OUTPUT helps")
        return PermanentError(sentence.format(place=place, problem=problem), "name")
    return away(place, problem)


def full(place: Place, problem: str) -> CircumstanceError:
    """Return the error of a place that has no room left."""
    sentence = _("{place} is full ({problem}): make room there; finished files wait on this machine")
    return DiskFull(sentence.format(place=place, problem=place.without_secrets(problem)), "target-full")


def denied(place: Place, problem: str) -> CircumstanceError:
    """Return the error of a place where nothing may be written."""
    sentence = _("{place} cannot be written ({problem}): finished files wait on this machine")
    return CircumstanceError(sentence.format(place=place, problem=place.without_secrets(problem)), "target-denied")


def away(place: Place, problem: str) -> CircumstanceError:
    """Return the error of a place that cannot be reached."""
    sentence = _("{place} cannot be reached ({problem}): finished files wait on this machine")
    return CircumstanceError(sentence.format(place=place, problem=place.without_secrets(problem)), "target-away")
