"""A listing from its first request to its last answer, whatever it is of."""

from __future__ import annotations

from i18n import _
from source_ids import LESSON, find_source
from sources import bangumi, charts, favourites, search, uploader
from sources.reading import Place, Step
from sources.records import Cursor, ListItem, ListPage, ListRequest, ListWishes

_STEPS: dict[str, Step] = {
    **uploader.STEPS,
    **favourites.STEPS,
    **bangumi.STEPS,
    **charts.STEPS,
    **search.STEPS,
}


def first_cursor(source: str) -> Cursor:
    """Return where the listing of a source begins; ValueError for a text that is no canonical id of one."""
    found = find_source(source)
    if found is None:
        raise ValueError(_("{text} is no source").format(text=repr(source[:80])))
    return Place(found, found.kind).cursor()


def plan_request(cursor: Cursor) -> ListRequest:
    """Return what has to be asked at a place in a listing."""
    place = _place(cursor)
    return _STEPS[place.step].plan(place)


def read_page(cursor: Cursor, text: str) -> ListPage:
    """Return what the site's answer to ``plan_request(cursor)`` says.

    Raise PermanentError where the source cannot be had (there is none, or it is not shown to this account), SiteError
    for an answer that is none, and whatever else the site's code means.
    """
    place = _place(cursor)
    return _STEPS[place.step].read(place, text)


def _place(cursor: Cursor) -> Place:
    place = Place.parse(cursor)
    if place.step not in _STEPS:
        raise ValueError(_("{cursor} is no place in a listing").format(cursor=repr(cursor[:80])))
    return place


def narrow(items: tuple[ListItem, ...], wishes: ListWishes) -> tuple[ListItem, ...]:
    """Return the items that are wanted, in the order that is wanted.

    What may be wanted is kept: items without a date, and sources among the items, because the wishes are for the
    videos in them. Only what can be had counts for the limit.
    """
    kept = [item for item in items if _is_wanted(item, wishes)]
    if wishes.oldest_first:
        kept.sort(key=lambda item: (item.published_at == 0, item.published_at))
    if not wishes.limit:
        return tuple(kept)
    places = [place for place, item in enumerate(kept, 1) if not item.unavailable][: wishes.limit]
    return tuple(kept[: places[-1]]) if len(places) == wishes.limit else tuple(kept)


def _is_wanted(item: ListItem, wishes: ListWishes) -> bool:
    source = find_source(item.id)
    if source is not None and source.kind != LESSON:
        return True
    is_new = not item.published_at or item.published_at >= wishes.since
    return is_new and wishes.match.casefold() in item.title.casefold()
