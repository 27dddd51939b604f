"""The server of requests: slow and hostile clients, what it keeps of them, and how it ends. With real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

import request_server
import web_server
from errors import UsageError
from request_server import RequestServer

POST = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
GET = b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n"


SIZES = {"/large": 100_000, "/huge": 2_000_000}


@dataclass
class Application:
    """Answers with the body, or the path; ``/wait`` when it is let."""

    seen: list[str] = field(default_factory=list)
    environs: list[dict[str, Any]] = field(default_factory=list)
    let: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.seen.append(path)
        self.environs.append(environ)
        if path == "/wait":
            self.begun.set()
            assert self.let.wait(20)
        if path == "/fault":
            raise RuntimeError("secret inside")
        body = environ["wsgi.input"].read() or path.encode() * SIZES.get(path, 1)
        is_large = int(environ.get("CONTENT_LENGTH") or 0) > 1000
        status = "413 Content Too Large" if is_large else "204 No Content" if path == "/none" else "200 OK"
        start(status, [("X-Peer", environ["REMOTE_ADDR"])])
        return [body[:5], body[5:]] if path != "/none" else []


@dataclass
class Running:
    """A server in a thread, and its application."""

    server: RequestServer
    application: Application

    def connect(self) -> socket.socket:
        return socket.create_connection(self.server.places[0], timeout=20)

    def ask(self, text: bytes) -> bytes:
        """Send bytes; return all that comes until the server has closed."""
        with self.connect() as peer:
            peer.sendall(text)
            peer.shutdown(socket.SHUT_WR)
            return everything(peer)


def everything(peer: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: peer.recv(65536), b""))
    return b""


def until(peer: socket.socket, end: bytes, least: int = 0) -> bytes:
    text = bytearray()
    while len(text) < least or not text.endswith(end):
        more = peer.recv(65536)
        assert more, text[:1000]
        text += more
    return bytes(text)


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Running]:
    application = Application()
    door = socket.create_server(("127.0.0.1", 0))
    server = RequestServer(application, [door], body_limit=1000, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Running(server, application)
    finally:
        application.let.set()
        server.end()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def place() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture
def impatient(monkeypatch: Any) -> Iterator[Running]:
    """One that waits for nobody for longer than a moment."""
    for name in ("HEAD_SECONDS", "STALL_SECONDS", "BODY_SECONDS", "IDLE_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(request_server, name, 0.2)
    monkeypatch.setattr(request_server, "TURN_SECONDS", 0.02)
    with running() as started:
        yield started


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_requests_follow_each_other_on_one_connection(place: Running) -> None:
    with place.connect() as peer:
        for _unused in range(3):
            peer.sendall(POST % 5 + b"hello")
            answer = until(peer, b"hello")
            assert answer.startswith(b"HTTP/1.1 200 OK\r\nX-Peer: 127.0.0.1\r\n")
            assert b"\r\nContent-Length: 5\r\n" in answer
            assert b"\r\nDate: " in answer
            assert place.server.held_bytes == 0


def test_requests_that_come_at_once_are_answered_in_their_order(place: Running) -> None:
    count = 3000  # more than is kept while one of them is answered
    texts = [GET % b"%d" % number for number in range(count)]
    end = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    with place.connect() as peer:
        sending = threading.Thread(target=peer.sendall, args=(b"\r\n".join([*texts, end]),))
        sending.start()
        answers = everything(peer)
        sending.join()
    assert answers.count(b"HTTP/1.1 200 OK") == count + 1
    assert answers.endswith(b"/last")
    assert place.application.seen == [*(f"/{number}" for number in range(count)), "/last"]


def test_who_does_not_fetch_the_answers_gets_no_more_of_them(place: Running) -> None:
    with place.connect() as peer:
        peer.sendall(GET % b"large" * 100)
        seen = place.application.seen
        wait_until(lambda: len(seen) > 1, "some are answered")
        place.ask(GET % b"others")
        before = len(seen)
        for _unused in range(20):
            place.ask(GET % b"others")
        assert len(seen) - before < 40, "60 MB wait for nobody"
        peer.shutdown(socket.SHUT_WR)
        assert everything(peer).count(b"HTTP/1.1 200 OK") == 100


def test_a_request_may_come_byte_by_byte(place: Running) -> None:
    with place.connect() as peer:
        for byte in POST % 2 + b"ab":
            peer.sendall(bytes([byte]))
        until(peer, b"\r\n\r\nab")


def test_an_answer_without_a_body_has_none(place: Running) -> None:
    assert place.ask(GET % b"none").endswith(b"\r\n\r\n")
    answer = place.ask(b"HEAD /head HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")


def test_a_client_that_has_said_all_is_answered_all_the_same(place: Running) -> None:
    assert place.ask(POST % 3 + b"abc").endswith(b"abc")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01" * 40_000, b"400"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", b"411"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_told_so_as_json_and_reaches_nobody(place: Running, text: bytes, status: bytes) -> None:
    head, _end, body = place.ask(text + GET % b"smuggled").partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status))
    assert b"Connection: close" in head or head.startswith(b"HTTP/1.0")
    assert b"aiohttp" not in head
    assert body.startswith(b'{"error": ')
    assert place.application.seen == []


def environ_of(place: Running, text: bytes) -> dict[str, Any]:
    place.ask(text)
    return place.application.environs.pop()


def test_a_head_becomes_what_wsgi_calls_it(place: Running) -> None:
    environ = environ_of(
        place,
        b"POST /ui/a%20b/%E4%B8%AD?x=%20&y HTTP/1.1\r\nHost: queue.example:8080\r\ncontent-type:application/json\r\n"
        b"CONTENT-LENGTH: 2 \r\nX-Forwarded-For: \t192.0.2.1\r\n"
        b"X-Forwarded-For: 192.0.2.2\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Encoding: gzip\r\n\r\n{}",
    )
    assert {name: value for name, value in environ.items() if not name.startswith("wsgi.")} == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/ui/a b/中".encode().decode("latin-1"),
        "QUERY_STRING": "x=%20&y",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": str(place.server.places[0][1]),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "queue.example:8080",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "2",
        "HTTP_X_FORWARDED_FOR": "192.0.2.1,192.0.2.2",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_CONTENT_ENCODING": "gzip",
    }
    assert environ["wsgi.url_scheme"] == "http"


def test_what_is_no_ascii_comes_as_wsgi_wants_it(place: Running) -> None:
    environ = environ_of(place, "GET / HTTP/1.1\r\nHost: h\r\nX-A: 中\r\n\r\n".encode())
    assert environ["HTTP_X_A"] == "中".encode().decode("latin-1")


def test_the_name_in_an_absolute_address_counts(place: Running) -> None:
    environ = environ_of(place, b"GET http://other.example:81/a?b HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert environ["HTTP_HOST"] == "other.example:81"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/a", "b")


def test_a_field_that_would_come_out_as_another_one_is_left_out(place: Running) -> None:
    environ = environ_of(place, GET[:-2] % b"" + b"X_Forwarded_For: 192.0.2.1\r\nContent_Length: 5\r\n\r\n")
    assert not [name for name in environ if "FORWARDED" in name or "LENGTH" in name]


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_a_connection_goes_on_unless_its_client_says_otherwise(place: Running, text: bytes, stays: bool) -> None:
    with place.connect() as peer:
        peer.sendall(text)
        until(peer, b"\r\n\r\n/")
        if stays:
            peer.sendall(GET % b"more")
            until(peer, b"\r\n\r\n/more")
        else:
            assert peer.recv(1) == b""


LINE = b"GET / HTTP/1.1\r\nHost: h"


@pytest.mark.parametrize(
    "text",
    [
        *(b"GET", b"GET /", b"GET / HTTP/2.0", b"GET / http/1.1", b"G(T / HTTP/1.1", b"GET /a b HTTP/1.1"),
        *(b"GET /\x00 HTTP/1.1", b"GET h HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT h:80 HTTP/1.1"),
        *(
            b"GET http:// HTTP/1.1",
            b"GET http://a@b/ HTTP/1.1",
            b"GET https://b/ HTTP/1.1",
            b"GET /\xe4 HTTP/1.1",
            b"GET /\tx HTTP/1.1",
        ),
        *(b"GET / HTTP/1.1\nHost: h", b"\x16\x03\x01", LINE + b"\r\n folded", LINE + b"\r\n\tfolded"),
        *(LINE + b"\r\nA : b", LINE + b"\r\n: b", LINE + b"\r\nA b: c", LINE + b"\r\nnothing"),
        *(LINE + b"\r\nA: b\nC: d", LINE + b"\r\nA: b\rC: d", LINE + b"\r\nA: \x00", LINE + b"\r\nHost: i"),
        *(LINE + b"\r\nA\xe9: b",),
        *(LINE + b"\r\nContent-Length: 5\r\nContent-Length: 5", LINE + b"\r\nContent-Length: 5\r\ncontent-length: 6"),
        *(LINE + b"\r\nContent-Length: " + value for value in (b"", b"+5", b"-5", b"5,5", b"0x5", b"5 5", b"1e3")),
        LINE + b"\r\nContent-Length: " + b"9" * 21,
        LINE + b"\r\nContent-Length: \xb2",
        LINE + b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        LINE + b"\r\nTransfer-Encoding: xchunked",
    ],
)
def test_what_could_be_read_in_two_ways_reaches_nobody(place: Running, text: bytes) -> None:
    answer = place.ask(text + b"\r\n\r\nhello" + GET % b"smuggled")
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400", b"HTTP/1.1 411")), answer
    assert answer.count(b"Date: ") == 1
    assert place.application.seen == []


@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"gzip, chunked", b""])
def test_a_body_has_a_length_or_is_refused(place: Running, coding: bytes) -> None:
    answer = place.ask(LINE + b"\r\nTransfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n" + GET % b"smuggled")
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400", b"HTTP/1.1 411")), answer
    assert place.application.seen == []


def test_who_sends_too_much_gets_to_see_the_answer(place: Running) -> None:
    with place.connect() as peer:
        peer.sendall(POST % 20_000_000)
        for _unused in range(200):  # a client that reads when it has sent all
            peer.sendall(b"x" * 100_000)
        answer = everything(peer)
    assert answer.startswith(b"HTTP/1.1 413")
    assert place.application.seen == ["/echo"]
    assert place.server.held_bytes == 0


def test_a_client_that_waits_to_be_asked_is_asked(place: Running) -> None:
    with place.connect() as peer:
        peer.sendall(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert until(peer, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(b"body")
        until(peer, b"\r\n\r\nbody")


def test_a_fault_is_logged_and_not_told_and_ends_nothing(place: Running, caplog: Any) -> None:
    for _unused in range(20):  # more than there are threads
        answer = place.ask(GET % b"fault")
        assert answer.startswith(b"HTTP/1.1 500")
        assert b"secret" not in answer
    assert "secret inside" in caplog.text
    assert place.ask(GET % b"after").endswith(b"/after")


def test_those_who_do_not_finish_hold_no_thread(place: Running, caplog: Any) -> None:
    with contextlib.ExitStack() as stack:
        for text in (b"POST /echo HTTP/1.1\r\nHo", POST % 500 + b"half", b""):
            for _unused in range(100):
                stack.enter_context(place.connect()).sendall(text)
        assert place.ask(GET % b"others").endswith(b"/others")
    wait_until(lambda: place.server.held_bytes == 0, "what they sent is forgotten with them")
    assert [record.message for record in caplog.records if record.name != "asyncio"] == []


@pytest.mark.parametrize("text", [b"", b"GET /", POST % 500 + b"half", GET % b"done"])
def test_who_is_silent_for_too_long_is_let_go(impatient: Running, text: bytes) -> None:
    with impatient.connect() as peer:
        peer.sendall(text)
        began = time.monotonic()
        everything(peer)
        assert time.monotonic() - began < 5
    wait_until(lambda: impatient.server.held_bytes == 0, "nothing is kept")


def test_who_sends_a_head_drop_by_drop_is_let_go(impatient: Running) -> None:
    with impatient.connect() as peer, contextlib.suppress(ConnectionError):
        deadline = time.monotonic() + 10
        for byte in b"GET /" + b"x" * 5000:
            assert time.monotonic() < deadline
            peer.sendall(bytes([byte]))
            time.sleep(0.02)
        pytest.fail("it was waited for")


def test_a_thread_that_works_is_waited_for(impatient: Running) -> None:
    with impatient.connect() as peer:
        peer.sendall(GET % b"wait")
        assert impatient.application.begun.wait(10)
        turns = impatient.server.now
        wait_until(lambda: impatient.server.now > turns + 0.5, "far more than it waits for others")
        impatient.application.let.set()
        until(peer, b"/wait")


def test_where_there_are_too_many_the_one_waited_for_longest_goes() -> None:
    with running(connection_limit=10) as place, contextlib.ExitStack() as stack:
        busy = stack.enter_context(place.connect())
        busy.sendall(GET % b"wait")
        assert place.application.begun.wait(10)
        worker = stack.enter_context(place.connect())
        silent = []
        for _unused in range(30):
            silent.append(stack.enter_context(place.connect()))
            assert place.ask(GET % b"others").endswith(b"/others"), "who comes is always let in"
            worker.sendall(GET % b"again")
            until(worker, b"/again")
        assert everything(silent[0]) == b""
        place.application.let.set()
        until(busy, b"/wait")


def test_unfinished_bodies_are_bounded_together(monkeypatch: Any) -> None:
    monkeypatch.setattr(request_server, "BUFFERED_BYTES", 5000)
    with running() as place, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(place.connect()) for _unused in range(10)]
        for number, peer in enumerate(peers):
            peer.sendall(POST % 1000 + b"x" * 900)
            wait_until(lambda seen=number: place.server.held_bytes >= min(4500, 900 * (seen + 1)), "it is there")
            assert place.server.held_bytes <= 5000
        assert everything(peers[0]) == b""
        peers[-1].sendall(b"x" * 100)
        until(peers[-1], b"x" * 1000)


def test_requests_that_wait_for_a_thread_are_bounded_together(monkeypatch: Any) -> None:
    monkeypatch.setattr(request_server, "BUFFERED_BYTES", 5000)
    with running(threads=1) as place, contextlib.ExitStack() as stack:
        busy = stack.enter_context(place.connect())
        busy.sendall(GET % b"wait")
        assert place.application.begun.wait(10)
        peers = [stack.enter_context(place.connect()) for _unused in range(10)]
        for number, peer in enumerate(peers, 1):
            peer.sendall(POST % 900 + b"x" * 900)
            wait_until(lambda seen=number: place.server.waiting >= seen, "it waits for a thread")
            wait_until(lambda: place.server.held_bytes <= 5000, "and not too many of them")
        assert everything(peers[0]) == b""
        place.application.let.set()
        until(busy, b"/wait")
        until(peers[-1], b"x" * 900)
        assert place.application.seen.count("/echo") <= 5, "nothing is done for those who had to go"
        wait_until(lambda: place.server.held_bytes == 0, "nothing is kept")


def test_answers_that_nobody_reads_are_bounded_together(monkeypatch: Any) -> None:
    size = SIZES["/huge"] * len("/huge")
    monkeypatch.setattr(request_server, "UNREAD_BYTES", 3 * size)
    with running() as place, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(place.connect()) for _unused in range(6)]
        for number, peer in enumerate(peers, 1):
            peer.sendall(GET % b"huge")
            wait_until(lambda seen=number: place.server.unread_bytes == size * min(seen, 3), "its answer waits")
        assert len(until(peers[-1], b"/huge" * 1000, size)) >= size, "whoever reads gets all of it"
        assert len(everything(peers[0])) < size
        wait_until(lambda: place.server.unread_bytes <= 2 * size, "what was read is counted no more")
    wait_until(lambda: place.server.unread_bytes == 0, "nor what nobody waits for")


def test_what_is_sent_ahead_of_an_answer_is_bounded(place: Running) -> None:
    count = 5000
    with place.connect() as peer:
        peer.sendall(GET % b"wait")
        assert place.application.begun.wait(10)
        texts = [POST % 900 + b"x" * 900] * count + [b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"]
        sending = threading.Thread(target=peer.sendall, args=(b"".join(texts),))
        sending.start()
        # aiohttp may pause before we do, when one segment has brought more requests than it queues
        wait_until(lambda: place.server.held_bytes > request_server.PIPELINED_BYTES // 2, "some of it is read")
        for _unused in range(20):
            place.ask(GET % b"others")
            assert place.server.held_bytes < 1_000_000, "and no more"
        place.application.let.set()
        assert everything(peer).endswith(b"/last")
        sending.join()
    assert place.application.seen.count("/echo") == count
    wait_until(lambda: place.server.held_bytes == 0, "nothing is kept")


def test_with_a_certificate_it_speaks_tls() -> None:
    authority = trustme.CA()
    own, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(own)
    authority.configure_trust(theirs)
    with running(ssl_context=own) as place:
        for end in (b"", b"Connection: close\r\n"):
            with theirs.wrap_socket(place.connect(), server_hostname="localhost") as peer:
                peer.sendall(GET[:-2] % b"sealed" + end + b"\r\n")
                until(peer, b"\r\n\r\n/sealed")
        assert place.application.environs[0]["wsgi.url_scheme"] == "https"


def test_nothing_is_done_for_who_has_gone_before_it_was_begun() -> None:
    with running(threads=1) as place:
        with place.connect() as busy:
            busy.sendall(GET % b"wait")
            assert place.application.begun.wait(10)
            with place.connect() as gone:
                gone.sendall(GET % b"gone")
                wait_until(lambda: place.server.waiting == 1, "it waits for the thread")
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            wait_until(lambda: len(place.server._connections) == 1, "the server has heard of it")
            place.application.let.set()
            until(busy, b"/wait")
        assert place.ask(GET % b"next").endswith(b"/next")
        assert place.application.seen == ["/wait", "/next"]


def test_who_goes_while_the_last_answer_is_written_is_no_fault(place: Running, caplog: Any) -> None:
    for number in range(200):
        with place.connect() as peer:
            peer.sendall(b"GET /a%d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % number)
            if number % 2:
                peer.recv(1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # to close is to reset
    assert b"200 OK" in place.ask(GET % b"last")
    assert "Traceback" not in caplog.text


def test_the_end_waits_for_what_is_being_answered_and_for_nobody_else() -> None:
    with running() as place, place.connect() as busy, place.connect() as idle, place.connect() as half:
        idle.sendall(GET % b"once")
        until(idle, b"/once")
        half.sendall(POST % 10 + b"half")
        busy.sendall(GET % b"wait")
        assert place.application.begun.wait(10)
        place.server.end()
        assert everything(idle) == everything(half) == b""
        with pytest.raises(OSError), place.connect() as late:
            late.sendall(GET % b"late")
            assert late.recv(1)
            pytest.fail("no one is let in any more")
        place.application.let.set()
        answer = everything(busy)
        assert answer.endswith(b"/wait")
        assert b"Connection: close" in answer


def test_the_end_does_not_wait_for_ever(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(request_server, "GRACE_SECONDS", 0.1)
    with running() as place, place.connect() as busy:
        busy.sendall(GET % b"wait")
        assert place.application.begun.wait(10)
        place.server.end()
        assert everything(busy) == b""
    assert "not answered" in caplog.text


# ------------------------------------------------------------------------------------------ where it listens


def listening(host: str, port: int) -> RequestServer:
    server = web_server.listen(Application(), host, port)
    for one in server._sockets:
        one.close()
    return server


def test_a_port_in_use_is_an_error_though_nobody_was_let_in_there() -> None:
    first = web_server.listen(Application(), "127.0.0.1", 0)
    port = first.places[0][1]
    with pytest.raises(UsageError, match=str(port)):
        listening("127.0.0.1", port)
    for one in first._sockets:
        one.close()
    listening("127.0.0.1", port)


def test_localhost_is_every_address_of_it_on_one_port() -> None:
    server = web_server.listen(Application(), "localhost", 0)
    urls = web_server.listening_urls(server)
    places = server.places
    for one in server._sockets:
        one.close()
    assert {port for _host, port in places} == {places[0][1]} != {0}
    assert f"http://127.0.0.1:{places[0][1]}/" in urls
    assert all(url == f"http://[::1]:{places[0][1]}/" for url in urls if "[" in url)


def test_a_name_that_is_none_is_an_error() -> None:
    for host in ("no.such.name.invalid", "x" * 70 + ".invalid", "192.0.2.1"):
        with pytest.raises(UsageError, match=r"invalid|192"):
            listening(host, 0)


@pytest.fixture
def seals() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of its clients."""
    authority = trustme.CA()
    own, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(own)
    authority.configure_trust(theirs)
    return own, theirs


def test_those_who_only_knock_push_out_each_other_and_nobody_else(seals: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    own, theirs = seals
    with (
        running(ssl_context=own, connection_limit=5) as place,
        contextlib.ExitStack() as open_ones,
        theirs.wrap_socket(place.connect(), server_hostname="localhost") as known,
    ):
        known.sendall(GET % b"known")
        until(known, b"\r\n\r\n/known")
        knocks = [open_ones.enter_context(place.connect()) for _unused in range(20)]
        for early in knocks[:16]:
            early.settimeout(request_server.HEAD_SECONDS / 2)  # not only when their time is over
            assert everything(early) == b"", "turned away"
        with theirs.wrap_socket(place.connect(), server_hostname="localhost") as late:
            late.sendall(GET % b"late")
            until(late, b"\r\n\r\n/late")
        known.sendall(GET % b"again")
        until(known, b"\r\n\r\n/again")


def test_a_knock_that_leads_to_nothing_ends(
    seals: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_server, "HEAD_SECONDS", 0.3)
    with running(ssl_context=seals[0]) as place:
        with place.connect() as silent:
            assert everything(silent) == b""
        assert not place.ask(GET % b"plain").startswith(b"HTTP")
        wait_until(lambda: not place.server._knocks, "all are forgotten")
        assert place.application.seen == []


def test_what_is_said_with_the_last_word_of_the_handshake_is_heard(
    seals: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """With TLS 1.3 a client says its first request before the server has seen the end of the handshake."""
    own, theirs = seals
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with running(ssl_context=own) as place, place.connect() as peer:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.sendall(outgoing.read())
                incoming.write(peer.recv(65536))
        assert client.version() == "TLSv1.3"
        client.write(GET % b"early" + GET % b"second")
        peer.sendall(outgoing.read())  # together with the client's last word
        heard = b""
        while not heard.endswith(b"\r\n\r\n/second"):
            incoming.write(peer.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:  # several records may have come together
                    heard += client.read(65536)
        assert place.application.seen == ["/early", "/second"]


def test_a_server_ends_whole_beside_a_client_that_went_in_the_middle_without_a_farewell(
    seals: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """asyncio closes such a connection by itself, and lets go of all of it when it is closed once more."""
    own, theirs = seals
    with running(ssl_context=own) as place, theirs.wrap_socket(place.connect(), server_hostname="localhost") as peer:
        peer.sendall(GET % b"whole")
        until(peer, b"\r\n\r\n/whole")
        peer.sendall(b"GET /half")
        socket.socket.shutdown(peer, socket.SHUT_WR)
        place.server.end()
