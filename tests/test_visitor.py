"""The ticket and the marks of a browser."""

from __future__ import annotations

import base64
import random
import re

import pytest

from errors import SiteError
from visitor import browser_marks, page_origin, page_referer, parse_ticket, ticket_request


def test_where_a_page_is_is_told_without_what_is_nobody_s_business() -> None:
    assert page_referer("https://www.bilibili.com") == "https://www.bilibili.com/"
    assert page_referer("http://me:secret@[::1]:8080/site/?token=secret#x") == "http://[::1]:8080/site/"
    assert page_origin("http://me:secret@127.0.0.1:8080/site") == "http://127.0.0.1:8080"


def test_the_ticket_is_asked_for_with_the_signature_of_the_site_s_script() -> None:
    assert ticket_request(1702204169) == {
        "key_id": "ec02",
        "hexsign": "4899d09c73cc357c191a77c41562ea9a7b07e858e534040cf2a24bbadbecbbbf",
        "context[ts]": "1702204169",
        "csrf": "",
    }


def test_a_ticket_is_good_until_ten_minutes_before_its_end() -> None:
    assert parse_ticket('{"code":0,"data":{"ticket":"a.b-c_d.e","created_at":1,"ttl":259260}}') == ("a.b-c_d.e", 258660)
    assert parse_ticket('{"code":0,"data":{"ticket":"a","ttl":1e300}}') == ("a", 7 * 86400)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", '{"data":null}', '{"data":{"ticket":"a"}}', '{"data":{"ticket":7,"ttl":9999}}'),
        *(
            '{"data":{"ticket":"a;b","ttl":9999}}',
            '{"data":{"ticket":"","ttl":9999}}',
            '{"data":{"ticket":"a","ttl":9}}',
        ),
        *('{"data":{"ticket":"a","ttl":NaN}}', '{"data":{"ticket":"a","ttl":[]}}', "[" * 100_000),
    ],
)
def test_what_is_no_ticket_is_none(text: str) -> None:
    with pytest.raises(SiteError):
        parse_ticket(text)


def test_the_marks_look_like_a_browser_s_and_differ_between_two() -> None:
    draw = random.Random(7).random
    first, second = browser_marks(draw), browser_marks(draw)
    assert first != second
    for marks in (first, second):
        assert marks["dm_img_list"] == "[]"
        for name, low, high in (("dm_img_str", 16, 64), ("dm_cover_img_str", 32, 128)):
            assert re.fullmatch("[A-Za-z0-9+/]+", marks[name])
            whole = base64.b64decode(marks[name] + "=" * (-len(marks[name]) % 4))
            assert low - 2 <= len(whole) <= high
