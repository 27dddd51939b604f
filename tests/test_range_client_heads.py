"""What the fast path writes and reads, as bytes: requests that cannot be bent, and heads with one meaning."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.range_client import BadReply, BadRequest, Origin, make_request, parse_head

# -------------------------------------------------------------------------------------------- what is written


def request_line(url: str) -> str:
    return make_request(url)[1].decode().split("\r\n")[0]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://a.example/x?b=%2f%2F&c=a+b;d='e'|f", "/x?b=%2f%2F&c=a+b;d='e'|f"),
        ("http://a.example", "/"),
        ("http://a.example?x=1", "/?x=1"),
        ("http://a.example/?x=a://b", "/?x=a://b"),
        ("http://a.example/a/../b//c#part", "/a/../b//c"),
        ("http://me:secret@a.example/x@y", "/x@y"),
        ("HTTP://A.example:8080/X", "/X"),
    ],
)
def test_the_url_is_sent_as_it_is_written(url: str, target: str) -> None:
    assert request_line(url) == f"GET {target} HTTP/1.1"


@pytest.mark.parametrize(
    ("url", "origin", "host"),
    [
        ("http://a.example/", Origin(False, "a.example", 80), "a.example"),
        ("https://a.example/", Origin(True, "a.example", 443), "a.example"),
        ("http://a.example:80/", Origin(False, "a.example", 80), "a.example"),
        ("http://a.example:443/", Origin(False, "a.example", 443), "a.example:443"),
        ("https://[2001:db8::1]:8443/", Origin(True, "2001:db8::1", 8443), "[2001:db8::1]:8443"),
        ("http://me:secret@a.example/", Origin(False, "a.example", 80), "a.example"),
        ("http://A.Example/", Origin(False, "a.example", 80), "a.example"),
    ],
)
def test_the_host_is_made_of_the_url_without_who_asks(url: str, origin: Origin, host: str) -> None:
    assert make_request(url, {"host": "b.example"}) == (
        origin,
        f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
    )


def test_headers_of_a_request_replace_those_of_the_client() -> None:
    _, request = make_request("http://a/", {"User-Agent": "one", "Referer": "r"}, {"user-agent": "two", "Range": "x"})
    assert sorted(request.decode().split("\r\n")[1:-2]) == ["Host: a", "Range: x", "Referer: r", "user-agent: two"]


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://a.example/?s3cret={c}" for c in ("\r\n", "\n", "\t", "\0", " ", "\x7f", "é", "\\", "\u2028")),
        "http://a.example\r\nX: y/?s3cret",
        "ftp://a.example/s3cret",
        "//a.example/s3cret",
        "http:///s3cret",
        "http:a.example/s3cret",
        "http://a.example:port/s3cret",
        "http://a.example:99999/s3cret",
        "http://[::1/s3cret",
        "http://a..example/s3cret",
        "http://.a/s3cret",
        f"http://{'a' * 64}.example/s3cret",
        "http://a%2eexample/s3cret",
        "http://a'b/s3cret",
        "",
    ],
)
def test_a_url_that_would_not_arrive_as_written_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadRequest) as refused:
        make_request(url)
    assert "s3cret" not in str(refused.value) and refused.value.__suppress_context__ >= bool(refused.value.__context__)


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-1\r\nX: y"},
        {"Range": "bytes=0-1\n"},
        {"Range": "\0"},
        {"Ra nge": "x"},
        {"X: y\r\nRange": "x"},
        {"": "x"},
        {"Range:": "x"},
        {"Rängé": "x"},
    ],
)
def test_a_header_cannot_bring_another_one(headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        make_request("http://127.0.0.1:1/", headers)


# -------------------------------------------------------------------------------------------- what is read


def test_a_head_is_read() -> None:
    got = parse_head(
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range:bytes 0-4/9 \t\r\nX:\r\nx: \xe4\xbd\xa0"
    )
    assert (got.status, got.body_bytes, got.stays_open) == (206, 5, True)
    assert got.headers["content-range"] == "bytes 0-4/9"
    assert got.headers.getall("X") == ["", "\u4f60"]


@pytest.mark.parametrize(
    ("text", "body_bytes", "stays_open"),
    [
        ("HTTP/1.1 200\r\nContent-Length: 0", 0, True),
        ("HTTP/1.1 200 \r\nContent-Length: 7, 7", 7, True),
        ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\ncontent-length: 7", 7, True),
        ("HTTP/1.0 200 OK\r\nContent-Length: 7", 7, False),
        ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: foo, Close", 7, False),
        ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: keep-alive", 7, True),
        ("HTTP/1.1 200 OK", None, True),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", None, True),
        ("HTTP/1.1 204 No Content", 0, True),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 7", 0, True),
        ("HTTP/1.1 100 Continue", 0, True),
    ],
)
def test_a_body_is_framed_by_its_length_alone(text: str, body_bytes: int | None, stays_open: bool) -> None:
    got = parse_head(text.encode())
    assert (got.body_bytes, got.stays_open) == (body_bytes, stays_open)


BAD_HEADS = [
    b"",
    b"HTTP/2 200 OK",
    b"HTTP/1.2 200 OK",
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 099 OK",
    b"HTTP/1.1 200 O\0K",
    b" HTTP/1.1 200 OK",
    b"http/1.1 200 OK",
    b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0 OK",
    b"HTTP/1.1 200 OK\nContent-Length: 5",
    *(
        b"HTTP/1.1 200 OK\r\n" + lines
        for lines in (
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 5, 6",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: identity\r\nContent-Length: 5",
            b"Content-Length: +5",
            b"Content-Length: -5",
            b"Content-Length: 0x5",
            b"Content-Length: 5 5",
            b"Content-Length: 1_0",
            b"Content-Length:",
            b"Content-Length: 5,",
            b"Content-Length: 99999999999999999999",
            b"Content-Length: \xd9\xa2",
            b"Content-Length : 5",
            b" Content-Length: 5",
            b"Content-Length: 5\r\n folded: x",
            b"Content-Length: 5\r\n\tfolded",
            b"Content-Length",
            b": 5",
            b"X: a\0b",
            b"X: a\rb",
            b"X: a\nTransfer-Encoding: chunked",
            b"X: a\x0bb",
            b"X\xc3\xa9: b",
            b"",
        )
    ),
]


@pytest.mark.parametrize("text", BAD_HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused(text: bytes) -> None:
    with pytest.raises(BadReply):
        parse_head(text)


TOKENS = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=9).filter(
    lambda name: name.lower() not in ("content-length", "transfer-encoding", "connection")
)
VALUES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20).map(lambda value: value.strip(" "))


@given(
    st.integers(200, 999).filter(lambda status: status not in (204, 304)),
    st.lists(st.tuples(TOKENS, VALUES, st.sampled_from(["", " ", "\t", "  "]))),
    st.integers(0, 10**18 - 1),
)
def test_what_is_written_well_is_read_as_it_was_written(
    status: int, fields: list[tuple[str, str, str]], length: int
) -> None:
    lines = [f"{name}:{gap}{value}{gap}" for name, value, gap in fields]
    got = parse_head("\r\n".join([f"HTTP/1.1 {status} x", *lines, f"Content-Length: {length}"]).encode())
    assert (got.status, got.body_bytes) == (status, length)
    assert list(got.headers.items())[:-1] == [(name, value) for name, value, _ in fields]


@given(st.binary() | st.binary().map(lambda rest: b"HTTP/1.1 200 OK\r\n" + rest))
def test_any_bytes_are_a_head_or_a_bad_reply(text: bytes) -> None:
    try:
        got = parse_head(text)
    except BadReply:
        return
    assert 100 <= got.status <= 999 and (got.body_bytes is None or got.body_bytes >= 0)
    for name, value in got.headers.items():
        assert re.fullmatch(r"[!-9;-~]+", name) and not re.search(r"[\r\n\0]", value)
