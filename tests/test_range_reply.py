from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from transfer.range_reply import Asked, ContentRange, Meaning, judge, parse_content_range, parse_retry_after


@pytest.mark.parametrize(
    ("status", "headers", "asked", "meaning"),
    [
        (206, {"Content-Range": "bytes 10-19/100"}, Asked(10, 20), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "10"}, Asked(10, 20, 100), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "9"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 90-99/100"}, Asked(90, 120), Meaning.RANGE),
        (206, {"Content-Range": "bytes 90-98/100"}, Asked(90, 120), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-18/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-20/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 11-20/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 9-19/100"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-19/101"}, Asked(10, 20, 100), Meaning.CHANGED),
        (206, {"Content-Range": "bytes 10-19/*"}, Asked(10, 20, 100), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-15/*"}, Asked(10, 20), Meaning.RANGE),
        (206, {"Content-Range": "bytes 10-25/*"}, Asked(10, 20), Meaning.WRONG),
        (206, {"Content-Range": "bytes 10-15/*"}, Asked(10, 20, 100), Meaning.WRONG),
        (206, {"Content-Range": "bytes */100"}, Asked(10, 20), Meaning.WRONG),
        (206, {"Content-Range": f"bytes 0-9/{10**15}"}, Asked(0, 10), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/101"}, Asked(0, 10, most_bytes=100), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/100"}, Asked(0, 10, most_bytes=100), Meaning.RANGE),
        (206, {"Content-Range": "bytes 0-9/101"}, Asked(0, 10, 100, most_bytes=100), Meaning.WRONG),
        (200, {"Content-Length": f"{10**15}"}, Asked(0, 10, whole_is_fine=True), Meaning.WRONG),
        (416, {"Content-Range": f"bytes */{10**15}"}, Asked(0, 10), Meaning.WRONG),
        (206, {}, Asked(10, 20), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/10", "Content-Type": "text/html"}, Asked(0, 10), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/10", "Content-Encoding": "gzip"}, Asked(0, 10), Meaning.WRONG),
        (206, {"Content-Range": "bytes 0-9/10", "Content-Encoding": "identity"}, Asked(0, 10), Meaning.RANGE),
        (206, {"Content-Type": "multipart/byteranges; boundary=x"}, Asked(0, 10), Meaning.WRONG),
        (200, {"Content-Length": "100"}, Asked(0, 10, whole_is_fine=True), Meaning.WHOLE),
        (200, {"Content-Length": "100"}, Asked(0, 10, 99, whole_is_fine=True), Meaning.CHANGED),
        (200, {"Transfer-Encoding": "chunked"}, Asked(0, 10, 99, whole_is_fine=True), Meaning.WHOLE),
        (200, {"Content-Length": "100"}, Asked(0, 10), Meaning.RANGELESS),
        (200, {"Content-Type": "application/json"}, Asked(0, 10, whole_is_fine=True), Meaning.WRONG),
        (416, {"Content-Range": "bytes */0"}, Asked(0, 10), Meaning.END),
        (416, {"Content-Range": "bytes */10"}, Asked(10, 20), Meaning.END),
        (416, {}, Asked(10, 20), Meaning.END),
        (416, {}, Asked(0, 20), Meaning.WRONG),
        (416, {}, Asked(10, 20, 30), Meaning.WRONG),
        (416, {"Content-Range": "bytes */30"}, Asked(10, 20, 30), Meaning.WRONG),
        (416, {"Content-Range": "bytes */9"}, Asked(10, 20, 30), Meaning.CHANGED),
        (416, {"Content-Range": "bytes */9"}, Asked(10, 20), Meaning.CHANGED),
        (403, {}, Asked(0, 10), Meaning.DEAD),
        (404, {}, Asked(0, 10), Meaning.DEAD),
        (410, {}, Asked(0, 10), Meaning.DEAD),
        (429, {"Retry-After": "7"}, Asked(0, 10), Meaning.BROKEN),
        (502, {}, Asked(0, 10), Meaning.BROKEN),
        (204, {}, Asked(0, 10), Meaning.WRONG),
    ],
)
def test_a_reply_counts_only_if_it_is_what_was_asked_for(
    status: int, headers: dict[str, str], asked: Asked, meaning: Meaning
) -> None:
    assert judge(status, CIMultiDict(headers), asked).meaning is meaning


@given(
    st.sampled_from([200, 206, 403, 416, 503]),
    st.text("bytes 0123456789-*/", max_size=30),
    st.one_of(st.none(), st.integers(0, 10**12)),
)
def test_no_header_breaks_the_judge(status: int, content_range: str, total: int | None) -> None:
    verdict = judge(status, CIMultiDict({"Content-Range": content_range}), Asked(5, 10, total))
    if verdict.meaning is Meaning.RANGE:
        assert verdict.stop is not None
        assert 5 < verdict.stop <= 10


def test_retry_after_is_seconds_or_a_date() -> None:
    assert parse_retry_after("120", 0) == 120
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT", 946684798) == 1
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT", 1946684798) == 0
    assert parse_retry_after("soon", 0) == parse_retry_after("", 0) == 0
    assert parse_retry_after("9" * 400, 0) == 86400
    assert judge(503, CIMultiDict({"Retry-After": "7"}), Asked(0, 1)).retry_after_seconds == 7


# ------------------------------------------------------------------------------------------ Content-Range


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 0-9/100", ContentRange(0, 10, 100)),
        ("Bytes 90-99/100", ContentRange(90, 100, 100)),
        ("bytes 0-9/*", ContentRange(0, 10, None)),
        ("bytes */100", ContentRange(None, None, 100)),
        *((bad, None) for bad in ("", "bytes", "bytes 9-0/100", "bytes 0-100/100", "bytes -1-9/100", "items 0-9/100")),
        *(
            (bad, None)
            for bad in ("bytes 0-9", "bytes */*", "bytes 0-9/100, 5", "bytes 0-9/" + "9" * 19, "bytes ٠-٩/100")
        ),
    ],
)
def test_content_range(value: str, expected: ContentRange | None) -> None:
    assert parse_content_range(value) == expected


@given(st.integers(0, 10**15), st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_content_range_is_half_open(start: int, size: int, behind: int) -> None:
    stop, total = start + size, start + size + behind
    assert parse_content_range(f"bytes {start}-{stop - 1}/{total}") == ContentRange(start, stop, total)


@given(st.text())
def test_any_text_is_a_content_range_or_none(text: str) -> None:
    parse_content_range(text)
