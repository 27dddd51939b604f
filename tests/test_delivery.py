"""Finished files come to their place: whole, proved, once, and never over another file, whatever is cut off."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from board import Upload
from delivery import Deliveries, Reins, opener
from delivery.folder import Folder
from delivery.notes import Note, Notes
from delivery.parts import DiskTarget, part_name
from delivery.reins import Rein, Stopped
from delivery.sources import Source, measure
from delivery.targets import Target
from delivery.upload import Cargo, upload, with_cid
from errors import CircumstanceError, DiskFull, PermanentError, UsageError
from extras import files
from model import KIB, MIB, Beside, Result
from places import Place, parse_place
from tests.farm import ROOT, wait_until
from tests.places import PASSWORD, SFTP_SERVER, USER, make_home, make_keys, serving

NAME = PurePosixPath("类别/标题 #1 100% [BV1xx411c7mD].mp4")
FREE = Rein(Reins())


def make(path: Path, size_bytes: int, seed: int = 1) -> Source:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        block = bytes((seed * 31 + i * 7) % 251 for i in range(1009))
        left = size_bytes
        while left > 0:
            file.write((block * 1040)[:left])
            left -= len(block) * 1040
    return measure(path, FREE)


# ------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("file:///mnt/nas/videos/", "file:///mnt/nas/videos"),
        ("file:///mnt/a%20b", "file:///mnt/a%20b"),
        ("sftp://me:pass%20word@Host:2222/~/v", "sftp://host:2222/~/v"),
        ("sftp://me@[::1]/v", "sftp://[::1]/v"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/我的", "s3://bucket/我的"),
        ("ftp://me:word@host/x", "ftp://host/x"),
    ],
)
def test_an_address_is_shown_without_user_and_password(text: str, shown: str) -> None:
    place = parse_place(text)
    assert str(place) == shown
    assert "word" not in repr(place) and "me" not in repr(place).partition("scheme")[2]
    url = place.url(NAME)
    assert "标题%20%231%20100%25" in url and place.below(url) == NAME
    assert place.below(shown) is None and place.below("file:///elsewhere/x") is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "/mnt/nas", "nas", "file://host/x", "file:///", "file:///a/../b", "file:///a?b"),
        *("sftp:///x", "sftp://h/a#b", "sftp://h:port/", "s3://", "s3://key:secret@b"),
    ],
)
def test_what_names_no_place_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_place(text)
    assert "secret" not in str(caught.value)


def test_a_second_name_has_the_cid_and_fits(tmp_path: Path) -> None:
    assert with_cid(PurePosixPath("c/a.mp4"), 7) == PurePosixPath("c/a [7].mp4")
    assert with_cid(PurePosixPath("c/a [7].mp4"), 7) == PurePosixPath("c/a [7].mp4")
    long = with_cid(PurePosixPath("c/" + "长" * 83 + ".mp4"), 12345)
    assert len(long.name.encode()) <= 255 and long.name.endswith(" [12345].mp4")


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.danmaku.ass", ".danmaku.ass"),
        ("a-poster.png", "-poster.png"),
        ("a.zh-CN.srt", ".zh-CN.srt"),
        ("a.zh.ai.srt", ".zh.ai.srt"),
        ("a.nfo", ".nfo"),
        ("a.info.json", ".info.json"),
        ("a.b.nfo", ""),
        ("b.nfo", ""),
        ("a.mp4", ""),
        ("a.txt", ""),
    ],
)
def test_what_lies_beside_is_known_by_its_name(name: str, ending: str) -> None:
    assert files.ending(PurePosixPath("c/a.mp4"), name) == ending


# ------------------------------------------------------------------------------------------ each kind of place


@pytest.fixture
def folder_place(tmp_path: Path) -> Place:
    (tmp_path / "nas").mkdir()
    return parse_place(f"file://{tmp_path}/nas")


@pytest.fixture(scope="module")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, int]]:
    folder, keys = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("keys")
    make_keys(keys)
    with serving(["sftp", str(folder), str(keys)]) as (port, _process):
        yield folder, keys, port


@pytest.fixture
def sftp_place(
    sftp_server: tuple[Path, Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Place, Path]]:
    served, keys, port = sftp_server
    make_home(tmp_path / "home", keys, port)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    below = served / tmp_path.name
    below.mkdir()
    yield parse_place(f"sftp://{USER}@127.0.0.1:{port}/{below.name}"), below


@pytest.fixture(scope="module")
def openssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, int]]:
    if not Path(SFTP_SERVER).exists():
        pytest.skip("needs Debian's openssh-sftp-server")
    folder, keys = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("keys")
    make_keys(keys)
    with serving(["openssh", str(folder), str(keys)]) as (port, _process):
        yield folder, keys, port


@pytest.fixture
def openssh_place(
    openssh_server: tuple[Path, Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Place, Path]:
    served, keys, port = openssh_server
    make_home(tmp_path / "home", keys, port)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    below = served / tmp_path.name
    below.mkdir()
    return parse_place(f"sftp://{USER}@127.0.0.1:{port}/~/{below.name}"), below


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    with serving(["s3"]) as (port, _process):
        yield port


@pytest.fixture
def bucket(s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of the test's own, as boto3 sees it."""
    boto3 = pytest.importorskip("boto3")
    for name, value in s3_environ(s3_port, tmp_path).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket_name(tmp_path))
    yield client
    client.close()


def bucket_name(tmp_path: Path) -> str:
    return "bucket-" + tmp_path.name.replace("_", "-").strip("-").lower()[:40]


def s3_environ(port: int, home: Path) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "geheim",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_CONFIG_FILE": str(home / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def s3_place(bucket: Any, tmp_path: Path) -> Place:
    return parse_place(f"s3://{bucket_name(tmp_path)}/前缀 x")


@pytest.fixture(
    params=[
        "folder",
        "memory",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sftp", "openssh")),
        pytest.param("s3", marks=pytest.mark.slow),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        return parse_place(f"memory://{tmp_path.name}/x")
    found = request.getfixturevalue(f"{request.param}_place")
    return found[0] if isinstance(found, tuple) else found


@pytest.fixture
def target(place: Place) -> Iterator[Target]:
    target = opener(place)()
    yield target
    target.close()


def test_a_file_arrives_once_and_is_never_replaced(target: Target, tmp_path: Path) -> None:
    source, other = make(tmp_path / "a", 3 * MIB + 11), make(tmp_path / "b", 3 * MIB + 11, seed=2)
    assert target.find(NAME) is None and not target.holds(NAME, source, FREE)
    target.put(NAME, source, FREE)
    assert target.find(NAME) == source.size_bytes
    assert target.holds(NAME, source, FREE)
    assert not target.holds(NAME, other, FREE), "of the same size, with other bytes"
    with pytest.raises(FileExistsError):
        target.put(NAME, other, FREE)
    assert target.holds(NAME, source, FREE), "what stood there stands"


def test_an_empty_file_arrives_too(target: Target, tmp_path: Path) -> None:
    source = make(tmp_path / "empty", 0)
    target.put(NAME, source, FREE)
    assert target.find(NAME) == 0 and target.holds(NAME, source, FREE)


def test_a_name_of_255_bytes_arrives(target: Target, tmp_path: Path) -> None:
    name = PurePosixPath("c") / ("长" * 83 + "xx.mp4")
    assert len(name.name.encode()) == 255
    source = make(tmp_path / "a", 1000)
    target.put(name, source, FREE)
    assert target.holds(name, source, FREE)


def test_what_belongs_together_gets_names_together(target: Target, place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    make(folder / "c" / "t.mp4", 5000)
    make(folder / "c" / "t.nfo", 100)
    make(folder / "c" / "poster.jpg", 100)
    beside = (Beside("c/t.nfo", ".nfo"), Beside("c/poster.jpg", ""))
    cargo = Cargo(folder, PurePosixPath("c/t.mp4"), 7, beside)
    assert upload(target, place, cargo, FREE) == PurePosixPath("c/t.mp4")
    assert upload(target, place, cargo, FREE) == PurePosixPath("c/t.mp4"), "the same bytes are there already"
    make(folder / "c" / "t.mp4", 5000, seed=2)
    assert upload(target, place, cargo, FREE) == PurePosixPath("c/t [7].mp4")
    assert target.find(PurePosixPath("c/t [7].nfo")) == 100
    assert target.find(PurePosixPath("c/poster.jpg")) == 100
    make(folder / "c" / "t.mp4", 5000, seed=3)
    with pytest.raises(PermanentError, match=r"t%20\[7\]\.mp4"):
        upload(target, place, cargo, FREE)


# ------------------------------------------------------------------------------------------ broken off


class Cut(Rein):
    """Reins that end after so many bytes."""

    def __init__(self, after_bytes: int) -> None:
        super().__init__(Reins())
        self.left = after_bytes

    @property
    def piece_bytes(self) -> int:
        return 64 * KIB

    def spend(self, size_bytes: int) -> None:
        self.left -= size_bytes
        if self.left < 0:
            self.end()
        super().spend(size_bytes)


@pytest.mark.parametrize(
    "kind", ["folder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sftp", "openssh"))]
)
def test_a_file_that_broke_off_goes_on_where_it_did(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = request.getfixturevalue(f"{kind}_place")
    place = found[0] if isinstance(found, tuple) else found
    source = make(tmp_path / "a", 4 * MIB)
    target = opener(place)()
    with pytest.raises(Stopped):
        target.put(NAME, source, Cut(3 * MIB))
    target.close()
    again = opener(place)()
    assert again.find(NAME) is None
    rein = Rein(Reins())
    again.put(NAME, source, rein)
    assert rein.sent_bytes <= MIB + 64 * KIB
    assert again.holds(NAME, source, FREE)
    again.close()


@pytest.mark.slow
def test_parts_that_a_store_has_are_not_sent_again(s3_place: Place, bucket: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "a", 25 * MIB)
    target = opener(s3_place)()
    with pytest.raises(Stopped):
        target.put(NAME, source, Cut(20 * MIB))
    rein = Rein(Reins())
    target.put(NAME, source, rein)
    assert rein.sent_bytes == 25 * MIB - 16 * MIB, "of four parts, two were there"
    assert target.holds(NAME, source, FREE)
    assert "Uploads" not in bucket.list_multipart_uploads(Bucket=s3_place.host)
    target.close()


@pytest.mark.slow
def test_parts_are_few_enough_whatever_the_size_and_the_same_for_everybody() -> None:
    from delivery.s3 import MAX_PARTS, part_bytes

    assert [part_bytes(size) // MIB for size in (0, 8 * MIB, 80_000 * MIB, 80_001 * MIB)] == [8, 8, 8, 9]
    largest = 5 * 1024**4
    assert -(-largest // part_bytes(largest)) <= MAX_PARTS


@pytest.mark.slow
def test_parts_of_another_file_are_replaced(s3_place: Place, bucket: Any, tmp_path: Path) -> None:
    source, other = make(tmp_path / "a", 17 * MIB), make(tmp_path / "b", 17 * MIB, seed=2)
    target = opener(s3_place)()
    with pytest.raises(Stopped):
        target.put(NAME, other, Cut(10 * MIB))
    rein = Rein(Reins())
    target.put(NAME, source, rein)
    assert rein.sent_bytes == 17 * MIB
    assert target.holds(NAME, source, FREE)
    target.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "sftp", "openssh", "s3"])
def test_a_process_that_is_killed_in_the_middle_costs_little(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A real kill -9: what the place has afterwards is not sent again, but for what was on its way."""
    found = request.getfixturevalue(f"{kind}_place")
    place = found[0] if isinstance(found, tuple) else found
    source = make(tmp_path / "a", 40 * MIB)
    code = (
        "import sys; from pathlib import Path, PurePosixPath; from places import parse_place; from delivery import *\n"
        "from delivery.reins import Rein; from delivery.sources import measure\n"
        "rein = Rein(Reins(bytes_per_second=lambda: 20e6), lambda done: print(done, flush=True))\n"
        "source = measure(Path(sys.argv[2]), rein)\n"
        "opener(parse_place(sys.argv[1]))().put(PurePosixPath(sys.argv[3]), source, rein)\n"
    )
    command = [sys.executable, "-c", code, place.text, str(source.path), str(NAME)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        while int(process.stdout.readline()) < 20 * MIB:
            pass
    finally:
        process.kill()
        process.communicate()
    target, rein = opener(place)(), Rein(Reins())
    assert target.find(NAME) is None
    target.put(NAME, source, rein)
    assert rein.sent_bytes <= 20 * MIB + (4 * MIB if kind in ("sftp", "openssh") else 0)
    assert target.holds(NAME, source, FREE)
    target.close()


def test_a_part_that_was_damaged_is_found_and_sent_again(folder_place: Place, tmp_path: Path) -> None:
    source = make(tmp_path / "a", 300 * KIB)
    part = tmp_path / "nas" / part_name(NAME, source)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(200 * KIB))
    target, rein = opener(folder_place)(), Rein(Reins())
    target.put(NAME, source, rein)
    assert rein.sent_bytes == 400 * KIB, "what was missing, then all of it"
    assert target.holds(NAME, source, FREE) and not part.exists()


class Liar(Folder):
    """A disk that gives back something else than was written."""

    def read(self, relative: PurePosixPath, piece_bytes: int) -> Iterator[bytes]:
        for piece in super().read(relative, piece_bytes):
            yield bytes([piece[0] ^ 1]) + piece[1:]


def test_a_place_that_gives_back_other_bytes_gets_no_name(folder_place: Place, tmp_path: Path) -> None:
    source = make(tmp_path / "a", 1000)
    with pytest.raises(CircumstanceError, match="give back") as caught:
        DiskTarget(folder_place, Liar(tmp_path / "nas")).put(NAME, source, FREE)
    assert caught.value.code == "target-bytes"
    assert not (tmp_path / "nas" / NAME).exists()


class Full(Folder):
    """A disk without room."""

    def append(self, relative: PurePosixPath, start: int) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_place_is_named(folder_place: Place, tmp_path: Path) -> None:
    source = make(tmp_path / "a", 1000)
    with pytest.raises(DiskFull, match=f"{folder_place} is full") as caught:
        DiskTarget(folder_place, Full(tmp_path / "nas")).put(NAME, source, FREE)
    assert caught.value.code == "target-full"


def test_a_share_that_is_not_mounted_is_not_made(tmp_path: Path) -> None:
    target = opener(parse_place(f"file://{tmp_path}/nas/videos"))()
    with pytest.raises(CircumstanceError, match="mounted") as caught:
        target.put(NAME, make(tmp_path / "a", 10), FREE)
    assert caught.value.code == "target-away" and not (tmp_path / "nas").exists()


def test_more_than_4_gib_are_no_trouble(folder_place: Place, tmp_path: Path) -> None:
    """Sparse, and begun before its end: sizes and places are what is tried, not the speed of a disk."""
    size = 4 * 1024 * MIB + 12345
    with (tmp_path / "a").open("wb") as file:
        file.truncate(size)
    source = Source(tmp_path / "a", size, "0" * 32)
    part = tmp_path / "nas" / part_name(NAME, source)
    part.parent.mkdir(parents=True)
    with part.open("wb") as file:
        file.truncate(size - 99)
    store, rein = Folder(tmp_path / "nas"), Rein(Reins())
    DiskTarget(folder_place, store)._send(part_name(NAME, source), source, rein)
    assert rein.sent_bytes == 99 and part.stat().st_size == size


# ------------------------------------------------------------------------------------------ SFTP


@pytest.mark.slow
def test_a_password_is_enough_and_a_wrong_one_is_not_repeated(
    sftp_server: tuple[Path, Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, keys, port = sftp_server
    make_home(tmp_path / "home", keys, port, with_key=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (served / tmp_path.name).mkdir()
    right = parse_place(f"sftp://{USER}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/{tmp_path.name}")
    target = opener(right)()
    target.put(NAME, make(tmp_path / "a", 10), FREE)
    target.close()
    with pytest.raises(CircumstanceError) as caught:
        opener(parse_place(f"sftp://{USER}:falsch@127.0.0.1:{port}/x"))()
    assert caught.value.code == "target-denied" and "falsch" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_nobody_knows_is_not_trusted(
    sftp_server: tuple[Path, Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _served, keys, port = sftp_server
    make_home(tmp_path / "home", keys, 1)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(CircumstanceError, match="by hand") as caught:
        opener(parse_place(f"sftp://{USER}@127.0.0.1:{port}/x"))()
    assert caught.value.code == "target-denied"
    make_keys(tmp_path / "others")
    make_home(tmp_path / "home", tmp_path / "others", port)
    with pytest.raises(CircumstanceError, match="known_hosts"):
        opener(parse_place(f"sftp://{USER}@127.0.0.1:{port}/x"))()


@pytest.mark.slow
def test_where_nobody_listens_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CircumstanceError) as caught:
        opener(parse_place(f"sftp://{USER}@127.0.0.1:1/x"))()
    assert caught.value.code == "target-away"
    for name, value in s3_environ(1, tmp_path).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CircumstanceError) as caught:
        opener(parse_place("s3://bucket"))().find(NAME)
    assert caught.value.code == "target-away"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("kind", ["sftp", "openssh"])
def test_a_full_disk_behind_sftp_is_named(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """SFTP says no more than "failure" of it."""
    place, below = request.getfixturevalue(f"{kind}_place")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(below)], check=False).returncode:
        pytest.skip("no mounts here")
    try:
        with pytest.raises(DiskFull, match="is full"):
            opener(place)().put(NAME, make(tmp_path / "a", 3 * MIB), FREE)
    finally:
        subprocess.run(["umount", "-l", str(below)], check=True)


@pytest.mark.slow
def test_a_bucket_that_is_not_there_and_keys_that_are_missing_are_named(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CircumstanceError, match=r"NoSuchBucket|404"):
        opener(parse_place("s3://nowhere-at-all"))().put(NAME, make(tmp_path / "a", 10), FREE)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CircumstanceError) as caught:
        opener(parse_place("s3://nowhere-at-all"))().find(NAME)
    assert caught.value.code == "target-denied"


# ------------------------------------------------------------------------------------------ packages


@pytest.mark.parametrize(("scheme", "package"), [("sftp", "paramiko"), ("s3", "boto3")])
def test_a_missing_package_is_named_with_the_command(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"delivery.{scheme}", raising=False)
    with pytest.raises(UsageError, match=r"BILI_DELIVER_TO.*pip install -r requirements-deliver\.txt"):
        opener(parse_place(f"{scheme}://host/x"))


@pytest.mark.parametrize("scheme", ["gs", "nonsense"])
def test_a_kind_of_place_that_cannot_be_used_is_named(scheme: str) -> None:
    with pytest.raises(UsageError, match=f"BILI_DELIVER_TO: {scheme}://"):
        opener(parse_place(f"{scheme}://host/x"))


# ------------------------------------------------------------------------------------------ reins


def test_the_average_speed_is_the_limit() -> None:
    now = [0.0]
    reins = Reins(bytes_per_second=lambda: 100_000.0, clock=lambda: now[0])
    assert reins.piece_bytes == 25_000
    dues = [reins.due(25_000) for _piece in range(4)]
    assert dues == [0.25, 0.5, 0.75, 1.0]
    now[0] = 10.0
    assert reins.due(25_000) == 10.25, "time in which nothing was sent is not saved"


def test_a_pause_holds_an_upload_and_its_end_lets_it_go() -> None:
    runs = threading.Event()
    rein, done = Rein(Reins(runs.is_set)), threading.Event()

    def send() -> None:
        rein.spend(1)
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert not done.wait(0.3)
    runs.set()
    assert done.wait(5)
    thread.join()
    rein.end()
    with pytest.raises(Stopped):
        rein.spend(1)


# ------------------------------------------------------------------------------------------ notes


def test_a_note_comes_back_and_a_torn_one_does_not(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    note = Note("BV1xx411c7mD?p=1&cid=7", 7, Result("c/标.mp4", 5, 1.5, "标", "1080P", "file:///x"), ("c/标.nfo",))
    notes.write(note)
    assert notes.read(7) == note and list(notes.all()) == [note]
    path = tmp_path / "deliveries" / "7.json"
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert notes.read(7) is None and list(notes.all()) == []
    path.write_text('{"url": 1, "cid": 7, "result": {"path": 1, "bytes": 5, "seconds": 1}, "beside": []}')
    assert notes.read(7) is None
    notes.delete(7)
    assert not path.exists()


# ------------------------------------------------------------------------------------------ beside the downloads


class Stage:
    """A worker's deliveries on a folder, with pauses of a moment, and what it was told."""

    def __init__(self, tmp_path: Path, keeps: bool = True, connect: Callable[[], Target] | None = None) -> None:
        self.here, self.nas = tmp_path / "here", tmp_path / "nas"
        self.nas.mkdir(exist_ok=True)
        self.place = parse_place(f"file://{self.nas}")
        self.parked: list[str] = []
        self.deliveries = Deliveries(
            self.place,
            connect or opener(self.place),
            self.here,
            tmp_path / "data",
            keeps,
            Reins(),
            time.monotonic,
            lambda failures: 0.05,
        )

    def park(self, error: CircumstanceError) -> None:
        self.parked.append(error.code)

    async def deliver(self, result: Result, cid: int = 7, beside: tuple[Beside, ...] = ()) -> Result:
        url = f"BV1xx411c7mD?p=1&cid={cid}"
        return await self.deliveries.deliver(url, cid, result, beside, self.park, Upload())


def page(folder: Path, name: str = "c/t.mp4", size: int = 1000) -> Result:
    make(folder / name, size)
    return Result(name, size, 2.0, "t", "1080P")


async def test_a_page_is_delivered_and_the_copy_here_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    result = page(stage.here)
    stored = await stage.deliver(result)
    assert stored == replace(result, stored=f"file://{stage.nas}/c/t.mp4")
    await stage.deliveries.settle(7)
    assert (stage.nas / "c/t.mp4").read_bytes() == (stage.here / "c/t.mp4").read_bytes()
    assert await stage.deliveries.waiting() == []


async def test_a_copy_that_is_not_kept_goes_after_the_page_is_recorded(tmp_path: Path) -> None:
    stage = Stage(tmp_path, keeps=False)
    result = page(stage.here)
    make(stage.here / "c/t.nfo", 10)
    make(stage.here / "c/poster.jpg", 10)
    await stage.deliver(result, beside=(Beside("c/t.nfo", ".nfo"), Beside("c/poster.jpg", "")))
    assert (stage.here / "c/t.mp4").exists()
    await stage.deliveries.settle(7)
    assert [path.name for path in (stage.here / "c").iterdir()] == ["poster.jpg"], "what others share stays"
    assert sorted(path.name for path in (stage.nas / "c").iterdir()) == ["poster.jpg", "t.mp4", "t.nfo"]


async def test_what_was_delivered_before_a_kill_is_recorded_without_a_file(tmp_path: Path) -> None:
    before = Stage(tmp_path, keeps=False)
    stored = await before.deliver(page(before.here))
    after = Stage(tmp_path, keeps=False)
    assert await after.deliveries.waiting() == [("BV1xx411c7mD?p=1&cid=7", 1000)]
    assert await after.deliveries.delivered(7, after.park) == stored, "whether its file is here or not"
    await after.deliveries.sweep()
    assert not (after.here / "c/t.mp4").exists()
    assert await after.deliveries.delivered(7, after.park) == stored
    assert await after.deliveries.delivered(8, after.park) is None
    (after.nas / "c/t.mp4").unlink()
    assert await after.deliveries.delivered(7, after.park) is None, "somebody has taken it away"


async def test_a_place_that_leads_back_here_costs_no_file(tmp_path: Path) -> None:
    stage = Stage(tmp_path, keeps=False)
    (tmp_path / "here").symlink_to(tmp_path / "nas")
    result = page(stage.here)
    await stage.deliver(result)
    await stage.deliveries.settle(7)
    assert (stage.here / "c/t.mp4").stat().st_size == 1000
    assert [path.name for path in (stage.here / "c").iterdir()] == ["t.mp4"]


async def test_a_place_that_is_away_parks_the_worker_and_is_asked_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    result = page(stage.here)
    stage.nas.rmdir()
    waiting = asyncio.create_task(stage.deliver(result))
    while len(stage.parked) < 2:
        await asyncio.sleep(0.01)  # until it was asked twice; the test's own time limit ends this
    assert set(stage.parked) == {"target-away"}
    stage.nas.mkdir()
    assert (await waiting).stored
    assert (stage.here / "c/t.mp4").exists()


async def test_what_a_package_does_not_foresee_parks_too(tmp_path: Path) -> None:
    calls: list[int] = []

    def connect() -> Target:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bug of somebody")
        return opener(parse_place(f"file://{tmp_path}/nas"))()

    stage = Stage(tmp_path, connect=connect)
    assert (await stage.deliver(page(stage.here))).stored
    assert stage.parked == ["target-away"]


async def test_at_most_two_are_under_way_and_each_has_its_turn(tmp_path: Path) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    class Slow(Folder):
        def make_folders(self, relative: PurePosixPath) -> None:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            super().make_folders(relative)

        def rename(self, source: PurePosixPath, target: PurePosixPath) -> None:
            super().rename(source, target)
            with lock:
                now[0] -= 1

    place = parse_place(f"file://{tmp_path}/nas")
    stage = Stage(tmp_path, connect=lambda: DiskTarget(place, Slow(tmp_path / "nas")))
    results = [page(stage.here, f"c/{number}.mp4", 100_000) for number in range(6)]
    stored = await asyncio.gather(*(stage.deliver(result, cid) for cid, result in enumerate(results, 1)))
    assert len({one.stored for one in stored}) == 6 and most[0] <= 2


async def test_an_upload_whose_job_is_gone_stops(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    runs = threading.Event()
    stage.deliveries._reins = Reins(runs.is_set)
    threads = threading.active_count()
    task = asyncio.create_task(stage.deliver(page(stage.here)))
    while threading.active_count() == threads:
        await asyncio.sleep(0.01)  # until its thread is there; the test's own time limit ends this
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_until("the thread ends", lambda: not any(one.name == "delivery" for one in threading.enumerate()), 10)
    assert not (stage.nas / "c").exists()
