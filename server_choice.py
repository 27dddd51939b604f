"""Which of several queue servers to ask: one that is away is left for the next one, and tried again after a while.

All servers of a farm have one queue, and every verb may be repeated, so it does not matter which one answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from zlib import crc32

from errors import ServerUnreachable
from i18n import _

FIRST_BAD_SECONDS = 5.0
LONGEST_BAD_SECONDS = 60.0
TOO_MANY_REQUESTS = 429


class ServerChoice:
    """The order in which to ask servers; times are those of the clock that is given.

    Each worker prefers the one that its name points to, so that workers spread over the servers; without a name the
    first one comes first. A server that failed comes behind those that did not, for 5 s, and each time twice as long,
    up to a minute.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float], name: str = "") -> None:
        first = crc32(name.encode()) % len(urls) if name else 0
        self._urls = (*urls[first:], *urls[:first])
        self._clock = clock
        self._bad_until: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def in_order(self) -> Iterator[str]:
        """Yield every server once: the good ones first, then those whose time is over soonest."""
        now = self._clock()
        return iter(sorted(self._urls, key=lambda url: max(0.0, self._bad_until.get(url, now) - now)))

    def failed(self, url: str) -> bool:
        """Remember that a server is away; return whether that is news."""
        now = self._clock()
        failures = self._failures.get(url, 0)
        if now >= self._bad_until.get(url, now):  # asked in vain all the same, because no other answers, counts once
            self._failures[url] = failures + 1
            self._bad_until[url] = now + min(LONGEST_BAD_SECONDS, FIRST_BAD_SECONDS * 2.0 ** min(failures, 10))
        return failures == 0

    def answered(self, url: str) -> bool:
        """Remember that a server is there; return whether that is news."""
        self._bad_until.pop(url, None)
        return bool(self._failures.pop(url, 0))

    def is_single(self) -> bool:
        """Tell whether there is no choice."""
        return len(self._urls) == 1


def is_there(error: ServerUnreachable) -> bool:
    """Tell a server that wants to be asked more slowly from one that is away: another one is not asked instead."""
    return error.status == TOO_MANY_REQUESTS


def with_place(url: str, error: ServerUnreachable) -> str:
    """Return what is wrong with a server, and which one it is."""
    return str(error) if url in str(error) else f"{url}: {error}"


def together(problems: Mapping[str, ServerUnreachable]) -> ServerUnreachable:
    """Return one error that names each server with its own problem; the shortest wait that one asks for counts."""
    if len(problems) == 1:
        return next(iter(problems.values()))
    named = [with_place(url, error) for url, error in problems.items()]
    waits = [error.retry_after_seconds for error in problems.values() if error.retry_after_seconds is not None]
    sentence = _("No server answers: {problems}").format(problems="; ".join(named))
    return ServerUnreachable(sentence, 0, min(waits, default=None))
