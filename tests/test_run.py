"""What run.py adds to the scheduler: a name that is its own, folders that can be written, a login."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import run
from config import Settings
from errors import UsageError

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


def test_a_login_that_cannot_be_used_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
