"""The door of ``sources/``: what lists videos, by which address, and how such a listing is asked for and read.

Nothing here asks anyone anything. Whoever walks a listing asks what ``plan_request`` says and gives the answer to
``read_page``, from ``first_cursor`` on until ``next`` is None::

    cursor = first_cursor("fav:1234567")
    while cursor is not None:
        page = read_page(cursor, ask(plan_request(cursor)))
        cursor = page.next
"""

from sources.addresses import parse_source
from sources.lessons import LessonSearch
from sources.listings import first_cursor, narrow, plan_request, read_page
from sources.records import Cursor, ListItem, ListPage, ListRequest, ListWishes

__all__ = [
    "Cursor",
    "LessonSearch",
    "ListItem",
    "ListPage",
    "ListRequest",
    "ListWishes",
    "first_cursor",
    "narrow",
    "parse_source",
    "plan_request",
    "read_page",
]
