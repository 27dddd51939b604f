"""What the families of listings share: where one goes on, and how its entries are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from errors import PermanentError
from i18n import _
from parse_ import as_object, envelope, nonsense, plain_title, video_ids, whole_number
from source_ids import MAX_ID, Source, find_source
from sources.records import Cursor, ListItem, ListPage, ListRequest

Object = dict[str, Any]

MAX_PAGES = 20_000
"""No listing is longer; a count beyond it is no reason to ask for ever."""

MAX_BLANK_PAGES = 3
"""The site loses a page now and then; so many in a row are the end of what it has."""

DELETED = _("it is deleted or was never there")
UNREADABLE = _("the site's entry does not say which video it is")

_REFUSALS = {
    -404: _("there is no such list: it is deleted or was never there"),
    -403: _("the site does not show this list to this account; another BILI_SESSDATA may see it"),
}


# ------------------------------------------------------------------------------------------ where it goes on


@dataclass(frozen=True, slots=True)
class Place:
    """A cursor taken apart: the step of a source's listing, and what that step has to know.

    ``number`` is what an earlier step found out (an uploader, a season, a week); ``blanks`` counts the pages just
    before this one that had nothing in them.
    """

    source: Source
    step: str
    page: int = 1
    number: int = 0
    blanks: int = 0

    @classmethod
    def parse(cls, cursor: Cursor) -> Place:
        """Return the place that a cursor names; ValueError for a text that is none."""
        try:
            source, step, *numbers = json.loads(cursor)
            found = find_source(source)
            if (
                found is None
                or len(numbers) != 3
                or not all(type(each) is int and 0 <= each <= MAX_ID for each in numbers)
            ):
                raise ValueError
            return cls(found, str(step), *numbers)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ValueError(_("{cursor} is no place in a listing").format(cursor=repr(cursor[:80]))) from None

    def cursor(self) -> Cursor:
        """Return the text that ``parse`` reads."""
        return json.dumps([str(self.source), self.step, self.page, self.number, self.blanks], separators=(",", ":"))

    def after(self, is_blank: bool) -> Cursor:
        """Return where the next page is; a blank one is passed over, because the one behind it may be there."""
        return replace(self, page=self.page + 1, blanks=self.blanks + 1 if is_blank else 0).cursor()


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of question of a listing: how it is asked, and what its answer says."""

    plan: Callable[[Place], ListRequest]
    read: Callable[[Place, str], ListPage]


def next_page(place: Place, is_blank: bool, has_more: bool) -> Cursor | None:
    """Return where the next page is, None where this one was the last, or where nothing comes any more."""
    ends = is_blank and place.blanks + 1 >= MAX_BLANK_PAGES
    return place.after(is_blank) if has_more and not ends and place.page < MAX_PAGES else None


def counted_page(place: Place, title: str, items: tuple[ListItem, ...], announced: int, size: int) -> ListPage:
    """Return a page of a listing that says how many items it has, ``size`` on each page."""
    pages = min(-(-announced // size), MAX_PAGES)
    return ListPage(title, items, announced, pages, next_page(place, not items, place.page < pages))


def totalled_page(
    place: Place, data: Object, name: str, read: Callable[[Object], ListItem], size: int, title: str = ""
) -> ListPage:
    """Return a page whose answer has its entries in a list of that name, and in ``page.total`` how many there are."""
    items = items_of(listed(data.get(name)), read)
    return counted_page(place, title, items, count(as_object(data["page"])["total"]), size)


def whole_list(title: str, items: tuple[ListItem, ...]) -> ListPage:
    """Return a listing of one answer, in which the site counts nothing: there is nothing to miss on the way."""
    return ListPage(title, items, None if items else 0, 1, None)


# ------------------------------------------------------------------------------------------ what is asked


def params(**values: str | int) -> tuple[tuple[str, str], ...]:
    """Return the parameters of a request."""
    return tuple((name, str(value)) for name, value in values.items())


def answer(text: str, part: str = "data", refusals: Mapping[int, str] | None = None) -> Object:
    """Return a part of an answer; ``refusals`` says which codes mean for this listing that it cannot be had."""
    meanings = {**_REFUSALS, **(refusals or {})}
    whole = envelope(text, frozenset(meanings))
    if whole["code"] in meanings:
        raise PermanentError(meanings[whole["code"]], whole["code"])
    found = whole.get(part)
    if not isinstance(found, dict):
        raise nonsense()
    return found


def count(node: object) -> int:
    """Return how many there are; a missing number is no 0 here, or a broken answer would be an empty listing."""
    if isinstance(node, bool) or not isinstance(node, int) or not 0 <= node <= MAX_ID:
        raise nonsense()
    return node


def listed(node: object) -> list[Object]:
    """Return the entries of a list, which the site leaves out or writes as null where there are none.

    What is no object stays as an empty one: it is an entry that cannot be read, not one that is not there.
    """
    if node is not None and not isinstance(node, list):
        raise nonsense()
    return [as_object(entry) for entry in node or ()]


# ------------------------------------------------------------------------------------------ entries


def items_of(nodes: Iterable[Object], read: Callable[[Object], ListItem]) -> tuple[ListItem, ...]:
    """Return the entries; one that cannot be read is there as such, but where none can, the answer is no list."""
    items = tuple(_item(node, read) for node in nodes)
    if items and all(item.unavailable == UNREADABLE for item in items):
        raise nonsense()
    return items


def _item(node: Object, read: Callable[[Object], ListItem]) -> ListItem:
    try:
        return read(node)
    except (ValueError, TypeError, LookupError, AttributeError):
        return ListItem("", plain_title(node.get("title")), 0, UNREADABLE)


def video_item(node: Object, published: str = "pubdate") -> ListItem:
    """Return an entry that is a video, as most listings write it; a negative state means that it is gone."""
    state = node.get("state")
    gone = DELETED if type(state) is int and state < 0 else ""
    return ListItem(video_ids(node)[0], plain_title(node.get("title")), whole_number(node.get(published)), gone)


def linked_number(link: object, before: str) -> int:
    """Return the number behind a word such as ``/ep`` in an address of the site or its app, 0 where there is none."""
    match = re.search(rf"{re.escape(before)}/?([0-9]{{1,16}})", link) if isinstance(link, str) else None
    return whole_number(match[1]) if match else 0
