"""How a worker reads a source: page by page, each told to the queue before the next one is asked for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from bili_client import BiliClient
from i18n import _
from model import Expanded, Lease, Walk
from sources import SourceWalk, Told

log = logging.getLogger(__name__)

Tell = Callable[[Told], Awaitable[Expanded]]


async def read_source(site: BiliClient, lease: Lease, tell: Tell, name: Callable[[str], None]) -> None:
    """Read a listing to its end, or until the queue says that nothing more in it is new.

    ``tell`` brings a page to the queue, ``name`` hears the listing's title. Whatever is raised in between, the queue
    knows what was told, and the next lease of the source goes on there.
    """
    walk = SourceWalk(lease.url, lease.walk or Walk())
    added = known = 0
    while True:
        page = await site.listing(walk.request, walk.read)
        name(walk.title)
        for told in walk.take(page):
            answer = await tell(told)
            added += answer.added
            known += answer.known
            if answer.ended or not told.more:
                log.info(_("%s: %s: %d new entries, %d known"), lease.url, walk.title, added, known)
                return
