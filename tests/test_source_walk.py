"""The way through a listing, without anyone who asks: what is asked next, and what the queue is told."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from model import Walk
from parse_ import aid_to_bvid
from sources import IDS_PER_CALL, ListItem, ListPage, SourceWalk, Told, first_cursor, plan_request

SOURCE = "fav:7"


def item(number: int, unavailable: str = "") -> ListItem:
    return ListItem(aid_to_bvid(number + 1), f"t{number}", 1000 - number, unavailable)


def pages_of(items: list[ListItem], size: int) -> list[ListPage]:
    """Cut items into pages whose cursors lead from one to the next."""
    pieces = [items[start : start + size] for start in range(0, len(items), size)] or [[]]
    cursors = [*(f'["fav:7","fav:",{number},0,0]' for number in range(2, len(pieces) + 1)), None]
    return [
        ListPage("A folder", tuple(piece), len(items), len(pieces), cursor)
        for piece, cursor in zip(pieces, cursors, strict=True)
    ]


def walked(pages: list[ListPage], wishes: Walk, stop_after: int = 10**6) -> list[Told]:
    """Walk to the end, or until so many calls were made, by what was told alone."""
    walk, told, number = SourceWalk(SOURCE, wishes), list[Told](), 0 if not wishes.cursor else cursor_page(wishes)
    while True:
        for call in walk.take(pages[number]):
            told.append(call)
            if not call.more or len(told) == stop_after:
                return told
        number += 1


def cursor_page(wishes: Walk) -> int:
    return 0 if wishes.oldest_first else int(wishes.cursor.split(",")[2]) - 1


def test_the_first_request_is_that_of_the_source_and_a_later_one_that_of_the_cursor() -> None:
    assert SourceWalk(SOURCE, Walk()).request == plan_request(first_cursor(SOURCE))
    cursor = '["fav:7","fav:",4,0,0]'
    assert SourceWalk(SOURCE, Walk(cursor, 3)).request == plan_request(cursor)
    assert SourceWalk(SOURCE, Walk(cursor, 3, oldest_first=True)).request == plan_request(first_cursor(SOURCE))


def test_a_large_answer_is_told_in_parts_and_its_place_is_left_with_the_last_one() -> None:
    pages = pages_of([item(number, "gone" if number == 0 else "") for number in range(2 * IDS_PER_CALL + 2)], 5000)
    (whole,) = pages
    told = walked([replace(whole, next='["fav:7","fav:",2,0,0]'), ListPage("", (), None, None, None)], Walk())
    first = first_cursor(SOURCE)
    assert [call.ledger.cursor for call in told] == [first, first, '["fav:7","fav:",2,0,0]', ""]
    assert [call.ledger.page for call in told] == [1, 2, 3, 4]
    assert [dict(call.ledger.unavailable) for call in told] == [{}, {}, {"gone": 1}, {}]
    assert [len(call.urls) for call in told] == [IDS_PER_CALL, IDS_PER_CALL, 1, 0]
    assert {call.ledger.title for call in told} == {"A folder"}


def test_the_oldest_first_is_told_at_the_end_but_not_when_only_news_are_wanted() -> None:
    pages = pages_of([item(number) for number in range(9)], 3)
    (told,) = walked(pages, Walk(oldest_first=True))
    assert list(told.urls) == [item(number).id for number in range(8, -1, -1)]
    assert len(walked(pages, Walk(oldest_first=True, quick=True))) == 3


@given(
    count=st.integers(0, 40),
    size=st.integers(1, 9),
    limit=st.integers(0, 45),
    dead=st.sets(st.integers(0, 40)),
    breaks=st.integers(1, 5),
)
def test_however_often_a_walk_breaks_off_it_tells_the_first_ones_once(
    count: int, size: int, limit: int, dead: set[int], breaks: int
) -> None:
    items = [item(number, "gone" if number in dead else "") for number in range(count)]
    pages, wishes, calls = pages_of(items, size), Walk(limit=limit), list[Told]()
    while not calls or calls[-1].more:
        calls += walked(pages, wishes, stop_after=breaks)
        last = calls[-1].ledger
        wishes = replace(wishes, cursor=last.cursor, page=last.page, taken=last.taken)
    alive = [one.id for one in items if not one.unavailable]
    assert [url for call in calls for url in call.urls] == alive[: limit or None]
    assert [call.ledger.page for call in calls] == list(range(1, len(calls) + 1))
    if calls[-1].ledger.ended == "end":
        skipped = [url for call in calls for url in call.ledger.skipped]
        gone = sum(sum(call.ledger.unavailable.values()) for call in calls)
        assert len(alive) == len(skipped) + len(alive[: limit or None])
        assert gone == count - len(alive)
