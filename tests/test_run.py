"""What run.py adds to the scheduler: a name that is its own, and the screen."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

import run
from board import Board, JobView
from config import Settings
from errors import UsageError
from model import MIB, StreamProgress

ROOT = Path(__file__).resolve().parent.parent


def test_each_worker_of_a_data_folder_has_a_name_of_its_own_and_gets_it_again(settings: Settings) -> None:
    first, first_lock = run._claim_name(settings)
    second, second_lock = run._claim_name(settings)
    assert first.worker.endswith("-1") and second.worker.endswith("-2")
    first_lock.release()
    again, again_lock = run._claim_name(settings)
    assert again.worker == first.worker
    named, named_lock = run._claim_name(replace(settings, worker="attic"))
    assert named.worker == "attic"
    with pytest.raises(UsageError, match="attic"):
        run._claim_name(replace(settings, worker="attic"))
    other, other_lock = run._claim_name(replace(settings, worker="cellar"))
    assert other.worker == "cellar"
    for lock in (second_lock, again_lock, named_lock, other_lock):
        lock.release()


def test_a_worker_has_its_name_for_itself_as_long_as_it_works(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of one name would take each other's leases for those of a predecessor."""
    named = replace(settings, worker="attic")

    async def work(own: Settings, *_rest: object) -> int:
        assert own.worker == "attic"
        with pytest.raises(UsageError, match="attic"):
            run._claim_name(named)
        return 7

    monkeypatch.setattr(run, "_work", work)
    monkeypatch.setattr(run, "_log_to", lambda _console: None)
    monkeypatch.setattr(run, "find_ffmpeg", lambda *_arguments: "ffmpeg")
    monkeypatch.setattr(run, "probe_ffmpeg", lambda *_arguments: "1")
    monkeypatch.setattr(run.config, "load", lambda _environ: named)
    assert run.main([]) == 7
    _settings, lock = run._claim_name(named)
    lock.release()


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="BILI_DOWNLOAD_DIR"):
        run._prepare_folders(Settings(download_dir=tmp_path / "file" / "x"))


def drawn(board: Board, width: int) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width, force_terminal=True, color_system=None).print(run._screen(board))
    return output.getvalue().splitlines()


def full_board(jobs: int) -> Board:
    board = Board()
    for number in range(jobs):
        view = JobView(f"BV{number}", title=f"二次元 {number} \x1b[31m[bold]\n</script>", stage="downloading")
        view.streams["v80-7"] = StreamProgress("v80-7", 5 * MIB, 10 * MIB, "cdn.example")
        view.streams["a30280-0"] = StreamProgress("a30280-0", MIB, None)
        view.speeds["v80-7"] = 1.0 * MIB
        board.jobs[view.url] = view
    board.state = "running"
    return board


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_screen_has_a_bar_for_each_stream_and_fits_any_width(width: int) -> None:
    lines = drawn(full_board(64), width)
    assert len(lines) == 64 * 2 + 1
    assert all(Console(width=1000).measure(line).maximum <= width for line in lines)
    assert "\x1b[31m" not in "".join(lines)


def test_the_screen_tells_size_speed_and_time_left() -> None:
    text = "\n".join(drawn(full_board(1), 150))
    assert "5.0/10.0 MiB" in text and "1.0 MiB/s" in text and "00:05" in text
    assert "[bold]" in text  # a title is shown as it is, not as markup
    assert "running" in text and "jobs: 1" in text


def test_the_screen_is_drawn_only_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    board, drawn = full_board(1), list[Live]()
    monkeypatch.setattr(Live, "refresh", lambda live: drawn.append(live))
    view, console = board.jobs["BV0"], Console(file=io.StringIO(), width=100, height=20)
    screen = run.Screen(board, console)

    def draws(change: Callable[[], object]) -> bool:
        drawn.clear()
        change()
        screen.refresh()
        return bool(drawn)

    assert draws(lambda: None)
    assert not draws(lambda: None)
    assert draws(lambda: setattr(board, "state", "paused"))
    assert draws(lambda: setattr(board, "done", 1))
    assert draws(lambda: setattr(view, "stage", "merging"))
    assert draws(lambda: view.streams.update(v=StreamProgress("v", 1, 2)))
    assert draws(lambda: setattr(console, "width", 90))
    assert draws(board.jobs.clear)
    assert not draws(lambda: board.sample(1.0))
    assert draws(lambda: setattr(board, "note", "log in again"))


def test_the_screen_says_what_a_person_should_know_of_the_worker() -> None:
    board = full_board(1)
    board.note = "the login \x1b[31mhas expired"
    assert drawn(board, 150)[-1].strip() == "the login [31mhas expired"


def test_a_login_that_cannot_be_used_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_log_to", lambda _console: None)
    monkeypatch.setattr(run.config, "load", lambda _environ: Settings(data_dir=tmp_path))
    (tmp_path / "account.json").write_text("{", "utf-8")
    assert run.main([]) == 2
    assert "account.json is damaged: log in again" in capsys.readouterr().err
    assert run.main(["--logout"]) == 0
    assert "deleted" in capsys.readouterr().out and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        run.main(["--login", "--logout"])


def test_a_scratch_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="BILI_SCRATCH_DIR"):
        run._prepare_folders(Settings(download_dir=tmp_path / "Download", scratch=tmp_path / "file" / "x"))


def test_the_options_are_explained() -> None:
    shown = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--help"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert "--until-empty" in shown and "--wait" in shown


def test_ids_of_processes_sort_by_their_start() -> None:
    ids = [run.new_instance(seconds) for seconds in (0.0, 1.5e9, 1.7e9, 1.7e9 + 0.002, 4e9)]
    assert ids == sorted(ids)
    assert len({run.new_instance(1.7e9) for _unused in range(100)}) == 100
    assert {len(one) for one in ids} == {20}
