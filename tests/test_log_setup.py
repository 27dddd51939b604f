"""Log lines: one event is one line, at the level that was set, and in a file that stays bounded."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import log_setup
from config import Settings
from errors import UsageError
from log_setup import LineFormatter, note, start_logging

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) .*")
log = logging.getLogger("test")
Start = Callable[[Settings], None]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Settings], None]]:
    """Start logging as a script does: nobody has set up anything before. pytest has, so it steps aside."""
    root = logging.getLogger()
    before, level, own = root.handlers, root.level, list[logging.Handler]()

    def begin(settings: Settings) -> None:
        monkeypatch.setattr(root, "handlers", own)
        start_logging(settings)

    yield begin
    for handler in own:
        handler.close()
    monkeypatch.setattr(root, "handlers", before)
    root.setLevel(level)
    for name in log_setup._TALKATIVE:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(log_file=tmp_path / "logs" / "bili.log")


def written(settings: Settings, name: str = "bili.log") -> list[str]:
    assert settings.log_file is not None
    return (settings.log_file.parent / name).read_text("utf-8").splitlines()


def test_one_event_is_one_line_whatever_is_in_it(
    settings: Settings, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(settings)
    log.warning("%s: failed", "标题\nWARNING forged\x1b[2J\u2028\x85")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("unexpected")
    lines = written(settings)
    assert len(lines) == 2 and all(LINE.fullmatch(line) for line in lines)
    assert lines[0].endswith(r"WARNING 标题\nWARNING forged\x1b[2J\u2028\x85: failed")
    assert r"Traceback (most recent call last):\n" in lines[1] and lines[1].endswith(r"ValueError: first\nsecond")
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_less_than_the_level_is_not_said(settings: Settings, start: Start, level: str, count: int) -> None:
    start(replace(settings, log_level=level))
    for say in (log.debug, log.info, log.warning, log.error):
        say("x")
    logging.getLogger("filelock").debug("of interest to its authors")
    assert len(written(settings)) == count


def test_what_a_script_has_said_itself_goes_into_the_file_only(
    settings: Settings, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(settings)
    note("rejected rubbish")
    assert written(settings)[0].endswith("INFO rejected rubbish") and capsys.readouterr().err == ""


def test_the_file_is_bounded_and_the_newest_lines_are_in_it(
    settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_setup, "FILE_BYTES", 2000)
    start(settings)
    for number in range(500):
        log.info("line %d", number)
    assert settings.log_file is not None
    files = sorted(settings.log_file.parent.glob("bili.log*"))
    assert len(files) == 5 and all(file.stat().st_size <= 2000 for file in files)
    assert written(settings)[-1].endswith("line 499")


def test_two_processes_do_not_write_into_one_file(settings: Settings, start: Start, tmp_path: Path) -> None:
    start(settings)
    log.info("the first")
    script = "import os, config, log_setup, logging; log_setup.start_logging(config.parse_settings(os.environ)); "
    environ = {**os.environ, "BILI_LOG_FILE": str(settings.log_file)}
    command = [sys.executable, "-c", script + "logging.getLogger('x').info('the second')"]
    subprocess.run(command, env=environ, cwd=log_setup.Path(log_setup.__file__).parent, check=True, timeout=30)
    assert [line[-9:] for line in written(settings)] == ["the first"]
    assert [line[-10:] for line in written(settings, "bili-2.log")] == ["the second"]
    for handler in logging.getLogger().handlers:
        handler.close()
    subprocess.run(command, env=environ, cwd=log_setup.Path(log_setup.__file__).parent, check=True, timeout=30)
    assert len(written(settings)) == 2, "the name is free again"


def test_a_file_that_cannot_be_written_is_named_with_its_setting(tmp_path: Path, start: Start) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="BILI_LOG_FILE"):
        start(Settings(log_file=tmp_path / "file" / "bili.log"))
    with pytest.raises(UsageError, match="BILI_LOG_FILE"):
        start(Settings(log_file=tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full comes with Linux")
def test_a_full_disk_is_said_once_and_ends_nothing(
    settings: Settings, start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(settings)
    file = logging.getLogger().handlers[-1]
    assert isinstance(file, log_setup.BoundedFile)
    file.stream.close()
    file.stream = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
    monkeypatch.setattr(file, "shouldRollover", lambda _record: False)
    log.info("one")
    log.info("two")
    said = capsys.readouterr().err.splitlines()
    assert sum("BILI_LOG_FILE cannot be written" in line for line in said) == 1 and said[-1].endswith("two")


def test_whoever_has_set_up_logging_keeps_it(settings: Settings) -> None:
    mine = logging.NullHandler()
    logging.getLogger().addHandler(mine)
    before = logging.getLogger().handlers[:]
    start_logging(settings)
    assert logging.getLogger().handlers == before and mine in before
    logging.getLogger().removeHandler(mine)


def test_a_person_who_looks_on_gets_the_time_of_day_and_colours() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "text\n", None, None)
    line = LineFormatter(lambda name, text: f"<{name}>{text}", with_date=False).format(record)
    assert re.fullmatch(r"<time>\d\d:\d\d:\d\d <WARNING>WARNING <WARNING>text\\n", line)
