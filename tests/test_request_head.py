"""The head of a request: what is read, and that nothing is read which a proxy might read otherwise."""

from __future__ import annotations

import contextlib

import pytest

from request_head import MAX_FIELDS, HeadRefused, read_head

GET = b"GET / HTTP/1.1\r\nHost: h"


def test_a_head_becomes_what_wsgi_calls_it() -> None:
    head = read_head(
        b"POST /ui/a%20b/%E4%B8%AD?x=%20&y HTTP/1.1\r\nHost: queue.example:8080\r\ncontent-type:application/json\r\n"
        b"CONTENT-LENGTH: 12 \r\nX-Forwarded-For: \t192.0.2.1\r\n"
        b"X-Forwarded-For: 192.0.2.2\r\nCookie: a=1\r\nCookie: b=2"
    )
    assert (head.body_bytes, head.is_last, head.awaits_continue) == (12, False, False)
    assert head.environ == {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/ui/a b/中".encode().decode("latin-1"),
        "QUERY_STRING": "x=%20&y",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "queue.example:8080",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "12",
        "HTTP_X_FORWARDED_FOR": "192.0.2.1,192.0.2.2",
        "HTTP_COOKIE": "a=1; b=2",
    }


@pytest.mark.parametrize(
    ("text", "is_last"),
    [
        (b"GET / HTTP/1.1\r\nHost: h", False),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Close", True),
        (b"GET / HTTP/1.0", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive", True),
    ],
)
def test_a_connection_goes_on_unless_its_client_says_otherwise(text: bytes, is_last: bool) -> None:
    assert read_head(text).is_last is is_last


def test_the_name_in_an_absolute_address_counts() -> None:
    head = read_head(b"GET http://other.example:81/a?b HTTP/1.1\r\nHost: localhost")
    assert head.environ["HTTP_HOST"] == "other.example:81"
    assert (head.environ["PATH_INFO"], head.environ["QUERY_STRING"]) == ("/a", "b")


def test_a_client_may_wait_to_be_asked_for_its_body() -> None:
    expects = b"POST / HTTP/1.%d\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-Continue"
    assert read_head(expects % 1).awaits_continue
    assert not read_head(expects % 0).awaits_continue


def test_a_field_that_would_come_out_as_another_one_is_left_out() -> None:
    head = read_head(GET + b"\r\nX_Forwarded_For: 192.0.2.1\r\nContent_Length: 5")
    assert head.body_bytes == 0
    assert not [name for name in head.environ if "FORWARDED" in name or "LENGTH" in name]


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"GET", b"GET /", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET / HTTP/2.0"),
        *(b"GET / HTTP/0.9", b"GET / http/1.1", b"G(T / HTTP/1.1", b"GET /a b HTTP/1.1", b"GET /\x00 HTTP/1.1"),
        *(b"GET h HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT h:80 HTTP/1.1", b"GET http:// HTTP/1.1"),
        *(b"GET http://a@b/ HTTP/1.1", b"GET /\tx HTTP/1.1", b"GET / HTTP/1.1\nHost: h", b"\x16\x03\x01"),
        *(GET + b"\r\n folded", GET + b"\r\n\tfolded", GET + b"\r\nA : b", GET + b"\r\n: b", GET + b"\r\nA b: c"),
        *(GET + b"\r\nnothing", GET + b"\r\nA: b\nC: d", GET + b"\r\nA: b\rC: d", GET + b"\r\nA: \x00", GET + b"\r\n"),
        *(GET + b"\r\nHost: i", GET + b"\r\nA\xe9: b", GET + b"\r\nA: b\x7f"),
        *(GET + b"\r\nContent-Length: 5\r\nContent-Length: 5", GET + b"\r\nContent-Length: 5\r\ncontent-length: 6"),
        *(GET + b"\r\nContent-Length: " + value for value in (b"", b"+5", b"-5", b"5,5", b"0x5", b"5 5", b"1e3")),
        GET + b"\r\nContent-Length: " + b"9" * 19,
        GET + b"\r\nContent-Length: \xb2",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: bytes) -> None:
    with pytest.raises(HeadRefused) as refused:
        read_head(text)
    assert refused.value.status == 400


@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"gzip, chunked", b"", b"xchunked"])
def test_a_body_has_a_length_or_is_refused(coding: bytes) -> None:
    for length in (b"", b"\r\nContent-Length: 5"):
        with pytest.raises(HeadRefused) as refused:
            read_head(GET + length + b"\r\nTransfer-Encoding: " + coding)
        assert refused.value.status == 411


def test_fields_are_bounded() -> None:
    with pytest.raises(HeadRefused) as refused:
        read_head(GET + b"\r\nA: b" * MAX_FIELDS)
    assert refused.value.status == 431


@pytest.mark.parametrize("text", [b"A: " + b" " * 60_000 + b"\x01", b"A" * 60_000, b"A:" + b"\t" * 60_000 + b"b"])
def test_no_line_takes_long(text: bytes) -> None:
    for _unused in range(20):  # what grows with the square would take minutes
        with contextlib.suppress(HeadRefused):
            read_head(GET + b"\r\n" + text)
