"""The door of ``sources/``: what lists videos, by which address, and how such a listing is asked for and read.

Nothing here asks anyone anything. Whoever walks a listing asks what ``plan_request`` says and gives the answer to
``read_page``, from ``first_cursor`` on until ``next`` is None; ``SourceWalk`` does so for a worker and for add_url.py::

    cursor = first_cursor("fav:1234567")
    while cursor is not None:
        page = read_page(cursor, ask(plan_request(cursor)))
        cursor = page.next
"""

from sources.addresses import parse_source
from sources.lessons import LessonSearch
from sources.listings import first_cursor, narrow, plan_request, read_page
from sources.messages import (
    LEAST_WATCH_SECONDS,
    MOST_WATCH_SECONDS,
    WALK,
    WISHES,
    lease_fields,
    ledger_shape,
    listed_page,
    read_lease,
    watch_seconds,
)
from sources.records import Cursor, ListItem, ListPage, ListRequest, ListWishes
from sources.submitted import job_address, sort_out
from sources.table import age, chosen_pages, facts, parse_date, parse_pages
from sources.walk import IDS_PER_CALL, SourceWalk, Told

__all__ = [
    "IDS_PER_CALL",
    "LEAST_WATCH_SECONDS",
    "MOST_WATCH_SECONDS",
    "WALK",
    "WISHES",
    "Cursor",
    "LessonSearch",
    "ListItem",
    "ListPage",
    "ListRequest",
    "ListWishes",
    "SourceWalk",
    "Told",
    "age",
    "chosen_pages",
    "facts",
    "first_cursor",
    "job_address",
    "lease_fields",
    "ledger_shape",
    "listed_page",
    "narrow",
    "parse_date",
    "parse_pages",
    "parse_source",
    "plan_request",
    "read_lease",
    "read_page",
    "sort_out",
    "watch_seconds",
]
