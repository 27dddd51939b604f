"""Files for one user: whole or not at all, on the disk before they have their name, never readable by others."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

import private_file
from private_file import write_private

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has neither these modes nor these links")


def test_it_is_on_the_disk_before_it_has_its_name_and_for_nobody_else_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen, sync = tmp_path / "new" / "key.pem", [], os.fsync

    def synced(descriptor: int) -> None:
        kind = os.fstat(descriptor)
        is_there = path.read_bytes() if path.exists() else b""
        seen.append(("folder" if stat.S_ISDIR(kind.st_mode) else oct(stat.S_IMODE(kind.st_mode)), is_there))
        sync(descriptor)

    monkeypatch.setattr(private_file.os, "fsync", synced)
    before = os.umask(0)
    try:
        write_private(path, b"one")
        write_private(path, b"two")
    finally:
        os.umask(before)
    assert seen == [("0o600", b""), ("folder", b"one"), ("0o600", b"one"), ("folder", b"two")]


def test_what_a_process_that_died_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    (tmp_path / f"key.pem.{os.getpid()}.new").write_text("half")
    write_private(path, b"whole")
    assert path.read_bytes() == b"whole" and [one.name for one in tmp_path.iterdir()] == ["key.pem"]


def test_nothing_is_written_through_a_link_that_somebody_puts_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, elsewhere, unlink = tmp_path / "key.pem", tmp_path / "elsewhere", Path.unlink
    elsewhere.write_text("theirs")

    def again(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        self.symlink_to(elsewhere)

    monkeypatch.setattr(Path, "unlink", again)
    with pytest.raises(FileExistsError):
        write_private(path, b"secret")
    assert elsewhere.read_text() == "theirs" and not path.exists()
