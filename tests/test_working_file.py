"""working.json as a worker reads it: each edit is seen, and what is damaged changes nothing."""

from __future__ import annotations

import logging
import os
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
