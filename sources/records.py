"""What passes between a listing and whoever walks it: requests, pages, items, wishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cursor = str
"""Where a listing goes on: short JSON, to be handed back as it is. It travels through Redis."""


@dataclass(frozen=True, slots=True)
class ListRequest:
    """One GET to ask: ``path`` below ``host``, and its parameters in order.

    ``signed``: the parameters travel with a WBI signature. ``login``: without an account there is no answer; a cookie
    may go with every other request as well.
    """

    path: str
    params: tuple[tuple[str, str], ...] = ()
    signed: bool = False
    login: bool = False
    host: Literal["api", "web"] = "api"


@dataclass(frozen=True, slots=True)
class ListItem:
    """One entry of a listing: ``id`` is that of a container, which may be a source itself.

    ``published_at`` is in seconds since 1970, 0 where the site does not say. ``unavailable`` is the reason why the
    entry cannot be had, empty where it can; ``id`` may be empty then.
    """

    id: str
    title: str = ""
    published_at: int = 0
    unavailable: str = ""


@dataclass(frozen=True, slots=True)
class ListPage:
    """What one answer says of a listing.

    ``title`` is empty where the answer has none. ``announced`` is how many items the whole listing has by the site's
    own count, and ``pages`` how many answers that takes; None where the site does not say. ``next`` is None at the end.
    """

    title: str
    items: tuple[ListItem, ...]
    announced: int | None
    pages: int | None
    next: Cursor | None


@dataclass(frozen=True, slots=True)
class ListWishes:
    """Which items are wanted: published ``since`` then, ``match`` in the title, the first ``limit`` (0: all)."""

    since: int = 0
    match: str = ""
    limit: int = 0
    oldest_first: bool = False
