"""working.json as a worker reads it: each edit is seen, and what is damaged changes nothing."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from pathlib import Path

import pytest

import working_file
from model import Working
from working_file import WorkingFile


def test_the_last_good_values_stay_and_each_problem_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "working.json"
    path.write_text('{"stop": 1, "count": 5}', "utf-8")
    working = WorkingFile(path)
    assert working.read() == Working(1, 5)
    for damaged in ("", "{", '{"count": 99}', "\x00", "{", "{"):
        path.write_text(damaged, "utf-8")
        assert working.read() == Working(1, 5)
    path.unlink()
    assert working.read() == working.read() == Working(1, 5)
    assert len(caplog.records) == 6
    path.write_bytes(b'\xff\xfe{"stop": 0')
    assert working.read() == Working(1, 5)
    path.write_text('{"stop": 0}', "utf-8")
    assert working.read() == Working(0, 1)


def test_a_file_that_stays_as_it_is_is_read_once_and_each_edit_of_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, parsed = working_file.parse_working, list[str]()

    def noted(text: str) -> Working:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(working_file, "parse_working", noted)
    path = tmp_path / "working.json"
    working = WorkingFile(path)

    def written(count: int, changed_at: float) -> Working:
        path.write_text(f'{{"stop": 1, "count": {count}}}', "utf-8")
        os.utime(path, (changed_at, changed_at))
        return working.read()

    now = time.time()
    assert written(1, now - 60) == Working(1, 1)
    assert working.read() == working.read() == Working(1, 1) and len(parsed) == 1
    assert written(2, now - 50) == Working(1, 2)
    for count in (3, 4, 5):  # of one size and, on a coarse clock, of one time
        assert written(count, now) == Working(1, count)


def test_a_missing_file_is_written_with_one_and_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "working.json"
    WorkingFile(path).create_if_missing()
    assert path.read_text("utf-8") == '{"stop": 1, "count": 1}\n'
    assert "was missing" in caplog.text
    WorkingFile(tmp_path / "nowhere" / "working.json").create_if_missing()
    assert "cannot be written" in caplog.text


# ------------------------------------------------------------------------------------------ written by an order


def test_an_order_is_written_and_read_like_an_edit_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "working.json"
    path.write_bytes(b'{\r\n  "stop": 1,\r\n  "note": "\xe6\x9c\xba\xff"\r\n}\r\n')
    path.chmod(0o640)
    working = WorkingFile(path)
    assert working.read() == Working()
    working.write({"stop": 0, "count": 7})
    assert path.read_bytes() == b'{\r\n  "stop": 0,\r\n  "note": "\xe6\x9c\xba\xff",\r\n  "count": 7\r\n}\r\n'
    assert working.read() == Working(0, 7)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"stop": 1}', "utf-8")
    assert working.read() == Working()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "shared.json"
    target.parent.mkdir()
    target.write_text('{"stop": 1}', "utf-8")
    path = tmp_path / "working.json"
    path.symlink_to(target)
    WorkingFile(path).write({"stop": 0})
    assert path.is_symlink() and target.read_text("utf-8") == '{"stop": 0}'


@pytest.mark.parametrize(
    ("damaged", "after"),
    [
        ("", '{"stop": 1, "count": 5, "max_speed": 20000.0, "drain": 1}\n'),
        ("{", '{"stop": 1, "count": 5, "max_speed": 20000.0, "drain": 1}\n'),
        ('{"count": 99, "mine": [1]}', '{"count": 5, "mine": [1], "stop": 1, "max_speed": 20000.0, "drain": 1}'),
        ('{"drain": 9, "mine": [1]}', '{"drain": 1, "mine": [1]}'),
        (None, '{"stop": 1, "count": 5, "max_speed": 20000.0, "drain": 1}\n'),
    ],
)
def test_over_a_damaged_file_the_last_good_values_are_written_with_a_warning(
    tmp_path: Path, damaged: str | None, after: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "working.json"
    path.write_text('{"count": 5, "max_speed": 20000}', "utf-8")
    working = WorkingFile(path)
    working.read()
    if damaged is None:
        path.unlink()
    else:
        path.write_text(damaged, "utf-8")
    caplog.clear()
    working.write({"drain": 1})
    assert path.read_text("utf-8") == after
    warned = [record for record in caplog.records if "was damaged" in record.getMessage()]
    assert len(warned) == (damaged != '{"drain": 9, "mine": [1]}')


def test_where_it_cannot_be_written_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "working.json"
    path.mkdir()
    with pytest.raises(OSError):
        WorkingFile(path).write({"stop": 0})
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError):
        WorkingFile(tmp_path / "nowhere" / "working.json").write({"stop": 0})


def test_whoever_reads_while_orders_are_written_sees_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "working.json"
    path.write_text('{"stop": 1, "count": 1}', "utf-8")
    ended = threading.Event()
    seen: list[str] = []

    def look() -> None:
        while not ended.is_set():
            seen.append(path.read_text("utf-8"))

    reader = threading.Thread(target=look)
    reader.start()
    working = WorkingFile(path)
    for turn in range(300):
        working.write({"count": 1 + turn % 64})
    ended.set()
    reader.join()
    assert len(set(seen)) > 1 and [text for text in seen if not text.endswith("}")] == []
