"""The worker's own record of its results: what is in it comes back, whatever happened to the file."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

import result_log
from model import Result
from result_log import ResultLog, log_path

URLS = [f"BV1xx411c7mD?p={number}&cid={number}" for number in range(1, 6)]


def result(number: int, title: str = "标题") -> Result:
    return Result(f"other/{number}.mp4", 1000 + number, 12.5, title)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return log_path(tmp_path, "http://127.0.0.1:8080", "w1")


def fill(path: Path) -> ResultLog:
    log = ResultLog(path)
    for number, url in enumerate(URLS):
        log.add(url, result(number))
    return log


def test_what_was_noted_comes_back_in_its_order(path: Path) -> None:
    assert ResultLog(path).unsure() == ()
    assert fill(path).unsure() == tuple(URLS)
    again = ResultLog(path)
    assert again.unsure() == (URLS[-1],)
    assert list(again.oldest_first()) == [(url, result(number)) for number, url in enumerate(URLS)]


def test_each_server_and_each_worker_has_its_own(tmp_path: Path) -> None:
    paths = {log_path(tmp_path, server, worker) for server in ("http://a", "http://b") for worker in ("w1", "w2")}
    assert len(paths) == 4


@given(cut=st.integers(0, 400), garbage=st.binary(max_size=30))
def test_a_torn_line_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "results"
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + garbage)
    log = ResultLog(path)
    log.add(URLS[0], result(9))
    entries = list(ResultLog(path).oldest_first())
    assert entries[-1] == (URLS[0], result(9))
    intact = max(0, whole[:cut].count(b"\n") - 1)  # each begins with its newline; the last one may be torn
    assert entries[:intact] == [(url, result(number)) for number, url in enumerate(URLS[:intact])]


def test_what_earlier_versions_have_noted_comes_back_too(path: Path) -> None:
    lines = [
        [URLS[0], "a.mp4", 1, 2.0, "t"],
        [URLS[1], "a.mp4", 1, 2.0, "t", "1080P"],
        [URLS[2], "a.mp4", 1, 2.0, "t", "1080P", "file:///nas/a.mp4"],
        [URLS[3], "a.mp4", 1, 2.0, "t", "1080P", "file:///nas/a.mp4", "of a later version"],
    ]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    said = [("", ""), ("1080P", ""), ("1080P", "file:///nas/a.mp4")]
    assert [(one.streams, one.stored) for _url, one in ResultLog(path).oldest_first()] == said
    ResultLog(path).add(URLS[4], Result("b.mp4", 1, 2.0, "t", "", "s3://b/b.mp4"))
    assert [one.stored for _url, one in ResultLog(path).oldest_first()][-1] == "s3://b/b.mp4"


def test_each_result_is_asked_about_once_and_the_last_known_one_again_and_again(path: Path) -> None:
    log = ResultLog(path)
    assert log.unsure() == ()
    for url in URLS[:3]:
        log.add(url, result(1))
    asked = log.unsure()
    log.add(URLS[3], result(1))  # while the answer is on its way
    log.confirm(asked)
    assert log.unsure() == (URLS[2], URLS[3])
    log.confirm(log.unsure())
    assert log.unsure() == (URLS[3],)
    log.confirm(("something else",))
    log.confirm(())
    assert log.unsure() == (URLS[3],)
    log.ask_no_more()
    assert log.unsure() == ()
    log.confirm(asked)
    log.add(URLS[4], result(1))
    assert log.unsure() == (URLS[4],)


def test_many_results_are_asked_about_in_parts(path: Path) -> None:
    log = ResultLog(path)
    urls = [f"BV1xx411c7mD?p={number}&cid={number}" for number in range(1, 101)]
    for url in urls:
        log.add(url, result(1))
    assert log.unsure() == tuple(urls[:64])
    log.confirm(log.unsure())
    assert log.unsure() == tuple(urls[63:])


@pytest.mark.parametrize(
    "line",
    [b"5", b"[]", b'["a", "b", 1, 2]', b'[1, "b", 1, 2, "c"]', b'["a", "b", true, 2, "c"]', b"[" * 100_000, b"\xff"],
)
def test_what_is_no_entry_is_skipped(path: Path, line: bytes) -> None:
    path.write_bytes(line)
    log = ResultLog(path)
    assert log.unsure() == ()
    assert list(log.oldest_first()) == []


def test_a_long_log_loses_its_older_half(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(result_log, "LIMIT_BYTES", 100)
    log = ResultLog(path)
    kept = [url for url, _result in log.oldest_first()]
    assert 0 < len(kept) < len(URLS)
    assert kept == URLS[-len(kept) :]
    assert log.unsure() == (URLS[-1],)


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = ResultLog(tmp_path / "missing" / "results")
    for url in URLS:
        log.add(url, result(1))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'missing' / 'results'} cannot be used: No such file or directory"
    ]
    assert log.unsure() == ()


# ------------------------------------------------------------------------------------------ whose data were told


def test_everything_is_owed_until_somebody_was_told_and_then_the_newest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_log, "NEWEST", 2)
    log = fill(path)
    assert log.owes("a") and not log.owes("") and [url for url, _result in log.owed()] == URLS
    log.note_told("a")
    for known in (log, ResultLog(path)):
        assert not known.owes("a") and known.owes("b")
        assert [url for url, _result in known.owed()] == URLS[-2:]
    log.note_told("")
    assert [url for url, _result in ResultLog(path).owed()] == URLS
    assert list(ResultLog(path).oldest_first()) == [(url, result(number)) for number, url in enumerate(URLS)]


def test_a_worker_without_results_writes_nothing_down(path: Path) -> None:
    log = ResultLog(path)
    log.note_told("a")
    assert not log.owes("a") and not path.exists()


@pytest.mark.parametrize("line", ['{"told"', '{"told": 5}', '{"told": "a"', '{"told"}'])
def test_a_torn_note_of_who_was_told_means_that_nobody_knows(path: Path, line: str) -> None:
    fill(path).note_told("a")
    with path.open("a") as file:
        file.write(f"\n{line}")
    assert [url for url, _result in ResultLog(path).owed()] == URLS
