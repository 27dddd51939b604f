"""A pass through the listing of a source, without asking anyone: what to ask next, and what to tell the queue.

Whoever walks (a worker, or add_url.py at once) gives each answer of the site to ``SourceWalk.take`` and tells the queue
what that returns. What was told is what a next reader goes on from, so nothing else has to be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from model import ListedPage, Walk
from sources.listings import first_cursor, narrow, plan_request, read_page
from sources.records import ListItem, ListPage, ListRequest, ListWishes

IDS_PER_CALL = 400
"""The server takes 500."""
REASON_CHARACTERS, TITLE_CHARACTERS, MAX_REASONS = 200, 200, 20

END, WISHED = "end", "wished"
"""Why a page is the last one: the listing has no more, or no more is wished."""


@dataclass(frozen=True, slots=True)
class Told:
    """One call to the queue: ids to queue, what the ledger is told, and whether more follows."""

    urls: tuple[str, ...]
    ledger: ListedPage
    more: bool


class SourceWalk:
    """One reader's way through a listing, from where the last one stopped."""

    def __init__(self, source: str, walk: Walk) -> None:
        self._source = source
        self._wishes = ListWishes(walk.since, walk.match, walk.limit, walk.oldest_first and not walk.quick)
        self._held: list[ListItem] = []
        goes_on = bool(walk.cursor) and not self._wishes.oldest_first
        self._cursor: str | None = walk.cursor if goes_on else first_cursor(source)
        self._page = walk.page if goes_on else 0
        self._taken = walk.taken if goes_on else 0
        self.title = ""

    @property
    def request(self) -> ListRequest:
        """What to ask of the site now."""
        return plan_request(self._cursor or first_cursor(self._source))

    @property
    def read(self) -> Callable[[str], ListPage]:
        """The function that reads the answer to ``request``."""
        cursor = self._cursor or first_cursor(self._source)
        return lambda text: read_page(cursor, text)

    def take(self, page: ListPage) -> Iterator[Told]:
        """Yield what the queue is to be told of a page, in one call or several; the last one ends the pass.

        Listed oldest first nothing is told until all of the listing was read: the site lists the newest first.
        """
        self.title = page.title or self.title
        here = self._cursor or ""
        self._cursor = page.next
        if self._wishes.oldest_first:
            self._held += page.items
            if page.next is None:
                yield from self._tell(page, self._held, self._wishes, "", END)
            return
        wishes = replace(self._wishes, limit=self._wishes.limit and self._wishes.limit - self._taken)
        ended = END if page.next is None else WISHED if self._is_enough(page.items) else ""
        yield from self._tell(page, page.items, wishes, here, ended)

    def _is_enough(self, items: Sequence[ListItem]) -> bool:
        """Tell whether nothing behind a page is wished: the limit is reached, or an uploader's date is passed."""
        wished = self._wishes
        if wished.limit:
            left = wished.limit - self._taken
            if len(available(narrow(tuple(items), replace(wished, limit=0)))) >= left:
                return True
        dates = [item.published_at for item in items]
        return self._source.startswith("mid:") and bool(dates) and all(0 < date < wished.since for date in dates)

    def _tell(
        self, page: ListPage, items: Sequence[ListItem], wishes: ListWishes, here: str, ended: str
    ) -> Iterator[Told]:
        wanted = available(narrow(tuple(items), wishes))
        chosen = set(wanted)
        entries = [(id_, True) for id_ in wanted]
        entries += [(id_, False) for id_ in available(items) if id_ not in chosen]
        pieces = [entries[start : start + IDS_PER_CALL] for start in range(0, len(entries), IDS_PER_CALL)] or [[]]
        for number, piece in enumerate(pieces, 1):
            is_last = number == len(pieces)
            urls = tuple(id_ for id_, is_wanted in piece if is_wanted)
            self._page += 1
            self._taken += len(urls)
            ledger = ListedPage(
                page=self._page,
                title=self.title[:TITLE_CHARACTERS],
                announced=page.announced,
                pages=page.pages,
                unavailable=_reasons(items) if is_last else {},
                skipped=tuple(id_ for id_, is_wanted in piece if not is_wanted),
                taken=self._taken,
                # Whoever goes on after a part of an answer asks for all of it again.
                cursor=(page.next or "") if is_last else here,
                ended=ended if is_last else "",
            )
            yield Told(urls, ledger, more=not (is_last and ended))


def available(items: Iterable[ListItem]) -> list[str]:
    """Return the ids of the items that can be had, each once."""
    return list(dict.fromkeys(item.id for item in items if item.id and not item.unavailable))


def _reasons(items: Iterable[ListItem]) -> dict[str, int]:
    counts = Counter(item.unavailable[:REASON_CHARACTERS] for item in items if item.unavailable)
    return dict(counts.most_common(MAX_REASONS))
