from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import DiskFull
from model import CHUNK_BYTES, KIB, MIB
from transfer import part_file
from transfer.part_file import Chunk, Identity, PartFile, discard_old_parts, discard_parts, unfinished_jobs

ROOT = Path(__file__).parent.parent
CONTENT = random.Random(20).randbytes(2 * CHUNK_BYTES + 1)
SMALL = CONTENT[:300_001]


def a_part(folder: Path, size: int | None) -> PartFile:
    part = PartFile.open(folder, Identity("BV1?cid=5", 5, "v80-7"), size)
    part.prepare()
    return part


def a_half_written_part(folder: Path, size: int, step: int) -> bytes:
    """Write two thirds of a part in small steps and return its journal."""
    part = a_part(folder, size)
    chunk = part.take(CHUNK_BYTES)
    while chunk.at < size * 2 // 3:
        part.write(chunk, CONTENT[chunk.at : chunk.at + step])
    part.give_back(chunk)
    part.close()
    return (folder / f"5-v80-7-{size}.journal").read_bytes()


def test_a_journal_cut_at_any_byte_is_believed_only_as_far_as_the_file_proves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_file, "MARK_BYTES", 10_000)
    size = 90_000
    journal = a_half_written_part(tmp_path, size, 1000)
    path = tmp_path / f"5-v80-7-{size}.journal"
    seen = []
    for cut in range(len(journal) + 1):
        path.write_bytes(journal[:cut])
        part = a_part(tmp_path, size)
        seen.append(part.held_bytes)
        chunk = part.take(CHUNK_BYTES)
        assert chunk.at == part.held_bytes
        part.write(chunk, CONTENT[chunk.at : size])
        part.close()
        part = a_part(tmp_path, size)
        assert part.is_complete
        assert part.path.read_bytes() == CONTENT[:size]
        part.close()
    assert seen == sorted(seen)
    assert sorted(set(seen)) == [0, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000]


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("other", [Identity("BV1?cid=5", 5, "v80-12"), Identity("BV1?cid=5", 50, "v80-7")], ids=repr)
def test_the_part_of_another_stream_is_never_gone_on_with(tmp_path: Path, other: Identity, renamed: bool) -> None:
    size = 90_000
    a_half_written_part(tmp_path, size, 1000)
    if renamed:  # whatever a file is called, its journal says what it is
        for path in list(tmp_path.iterdir()):
            path.rename(tmp_path / f"{other.cid}-{other.name}-{size}{path.suffix}")
    assert PartFile.find(tmp_path, other) is None
    part = PartFile.open(tmp_path, other, size)
    part.prepare()
    assert part.held_bytes == 0
    part.close()


def test_a_stream_of_unknown_size_leaves_the_reserve_of_the_disk(tmp_path: Path) -> None:
    """Only its end tells how much comes, and a mirror need not come to one."""
    room = [part_file.RESERVE_BYTES + CHUNK_BYTES]
    part = PartFile.open(tmp_path, Identity("BV1?cid=5", 5, "v80-7"), None)
    part.prepare(lambda _folder: room[0])
    part.write(part.take(CHUNK_BYTES), CONTENT[:CHUNK_BYTES])
    room[0] -= 1
    with pytest.raises(DiskFull):
        part.write(part.take(CHUNK_BYTES), CONTENT[:CHUNK_BYTES])
    part.close()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize("ending", ["m4s", "journal", "lock"])
def test_a_link_in_the_place_of_a_part_is_not_written_through(tmp_path: Path, ending: str) -> None:
    """Whoever may write in the folder could have a worker write over any file of its user."""
    folder, foreign = tmp_path / "parts", tmp_path / "foreign"
    folder.mkdir()
    foreign.write_bytes(b"precious")
    (folder / f"5-v80-7-{len(SMALL)}.{ending}").symlink_to(foreign)
    part = a_part(folder, len(SMALL))
    part.write(part.take(CHUNK_BYTES), SMALL)
    assert part.is_complete and part.path.read_bytes() == SMALL
    part.close()
    assert foreign.read_bytes() == b"precious" and not any(path.is_symlink() for path in folder.iterdir())


def test_a_part_that_lacks_one_byte_is_not_complete(tmp_path: Path) -> None:
    part = a_part(tmp_path, 1000)
    chunk = part.take(CHUNK_BYTES)
    part.write(chunk, CONTENT[:999])
    assert not part.is_complete
    part.close()  # without giving the chunk back
    part = a_part(tmp_path, 1000)
    assert (part.held_bytes, part.is_complete, part.take(CHUNK_BYTES).at) == (999, False, 999)
    part.close()


def test_after_a_wound_a_chunk_that_is_finished_anew_is_believed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_file, "MARK_BYTES", 10_000)
    size = 90_000
    a_half_written_part(tmp_path, size, 1000)
    with (tmp_path / f"5-v80-7-{size}.m4s").open("r+b") as data:
        data.seek(35_000)
        data.write(bytes([CONTENT[35_000] ^ 1]))
    part = a_part(tmp_path, size)
    chunk = part.take(CHUNK_BYTES)
    assert chunk.at == 30_000
    part.write(chunk, CONTENT[chunk.at : size])
    part.close()
    part = a_part(tmp_path, size)
    assert part.is_complete and part.path.read_bytes() == CONTENT[:size]
    part.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from transfer.part_file import Identity, PartFile

size, chunk_bytes, piece_bytes, rounds = map(int, sys.argv[2:])
part = PartFile.open(Path(sys.argv[1]), Identity("BV1?cid=5", 5, "v80-7"), size)
part.prepare()
chunks = [part.take(chunk_bytes) for _ in range(size // chunk_bytes)]
for _ in range(rounds):
    for chunk in chunks:
        if chunk.missing_bytes:
            part.write(chunk, b"x" * min(piece_bytes, chunk.missing_bytes))
for chunk in chunks:
    if chunk.missing_bytes:
        part.store(chunk.at, b"x" * min(piece_bytes, chunk.missing_bytes))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("piece_bytes", "rounds"), [(400_000, 4), (400_000, 5), (512 * KIB, 5), (512 * KIB, 6), (65_000, 31)]
)
def test_at_kill_9_no_open_chunk_has_more_than_a_mebibyte_that_is_not_claimed(
    tmp_path: Path, piece_bytes: int, rounds: int
) -> None:
    """Whatever the size of its pieces, and with one more that is in the file and not counted yet."""
    chunk_bytes, count = 3 * MIB, 4
    arguments = [str(n) for n in (count * chunk_bytes, chunk_bytes, piece_bytes, rounds)]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *arguments], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    written = min(chunk_bytes, piece_bytes * (rounds + 1))
    is_finished = piece_bytes * rounds >= chunk_bytes
    part = a_part(tmp_path, count * chunk_bytes)
    lost = [stop - start for start, stop in part._gaps]
    part.close()
    unwritten = count * (chunk_bytes - written)
    assert sum(lost) - unwritten <= (0 if is_finished else count * MIB), "claimed too late"
    assert sum(lost) >= unwritten


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="Windows writes otherwise")
def test_a_write_of_which_the_system_takes_a_part_only_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:300], at))
    part = a_part(tmp_path, 1000)
    part.write(part.take(CHUNK_BYTES), CONTENT[:1000])
    assert part.is_complete and part.path.read_bytes() == CONTENT[:1000]
    part.close()


def test_the_size_that_is_learned_cuts_what_an_earlier_process_wrote_beyond(tmp_path: Path) -> None:
    part = a_part(tmp_path, None)
    chunk = part.take(CHUNK_BYTES)
    part.write(chunk, CONTENT[:300])
    with part.path.open("ab") as data:
        data.write(b"more")
    part.set_size(300)
    assert part.is_complete and part.path.read_bytes() == CONTENT[:300]
    part.close()


def at_the_lock(monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], object]) -> None:
    """Call ``do`` with a lock's path just before it is taken: its last owner has ended in this moment."""
    lock = part_file._lock
    monkeypatch.setattr(part_file, "_lock", lambda path: (do(path), lock(path))[1])


def test_what_the_last_owner_wrote_before_the_lock_was_free_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = a_part(tmp_path, None)
    part.write(part.take(CHUNK_BYTES), CONTENT[:300])
    part.close()
    journal = tmp_path / "5-v80-7.journal"
    long_ago = time.time() - 100
    with monkeypatch.context() as patched:
        os.utime(journal, (long_ago, long_ago))
        at_the_lock(patched, lambda path: os.utime(journal))
        assert discard_old_parts(tmp_path, 50) == 0 and journal.exists()
    line = b"\n" + part_file.seal({"size": 300})
    at_the_lock(monkeypatch, lambda path: journal.write_bytes(journal.read_bytes() + line))
    found = PartFile.find(tmp_path, Identity("BV1?cid=5", 5, "v80-7"))
    assert found is not None and found.size_bytes == 300
    found.prepare()
    assert found.is_complete
    found.close()


def test_the_parts_of_other_pages_are_left(tmp_path: Path) -> None:
    for cid in (5, 55, 6):
        a_finished_part(tmp_path, cid).close()
    discard_parts(tmp_path, 5)
    assert {path.stem for path in tmp_path.iterdir()} == {"55-v-10", "6-v-10"}


@pytest.mark.parametrize("size", [None, 2 * CHUNK_BYTES])
def test_what_was_forgotten_is_not_believed_later(tmp_path: Path, size: int | None) -> None:
    part = a_part(tmp_path, size)
    part.write(part.take(CHUNK_BYTES), CONTENT[:CHUNK_BYTES])
    part.forget()
    assert part.held_bytes == 0
    part.close()
    part = a_part(tmp_path, size)
    assert (part.held_bytes, part.take(CHUNK_BYTES).at) == (0, 0)
    part.close()


@given(st.data())
def test_a_journal_with_any_garbage_never_claims_what_is_not_there(data: st.DataObject) -> None:
    header = part_file.seal({"format": 1, "size": 9, "job": "BV1", "cid": 5, "name": "v"})
    lines = [part_file.seal({"held": [0, n], "digest": f"{n:032x}"}) for n in (3, 6, 9)]
    content = bytearray(b"\n".join([header, *lines]))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    journal = part_file.read_journal(bytes(content) + data.draw(st.binary(max_size=40)))
    if journal is not None:
        assert journal.identity == Identity("BV1", 5, "v")
        for stop, digest in journal.claims.get(0, {}).items():
            assert stop in (3, 6, 9)
            assert digest == f"{stop:032x}"


def test_unfinished_jobs_are_listed_newest_first_and_broken_journals_skipped(tmp_path: Path) -> None:
    for n, job in enumerate(["BV1?cid=1", "BV2?cid=2", "BV2?cid=2"]):
        part = PartFile.open(tmp_path, Identity(job, n, "v"), 10)
        part.prepare()
        part.write(part.take(CHUNK_BYTES), b"0123456789")
        part.close()
        os.utime(tmp_path / f"{n}-v-10.journal", (n, n))
    (tmp_path / "9-v-1.journal").write_bytes(b"\xff\x00 nonsense")
    (tmp_path / "8-v-1.journal").write_bytes(b"")
    (tmp_path / "7-v-1.journal").mkdir()
    for n, sealed in enumerate([b"[" * 100_000, b"no json", b"5"], 10):  # a checksum is no proof of who wrote it
        line = part_file.xxhash.xxh3_64_hexdigest(sealed).encode() + b" " + sealed
        (tmp_path / f"{n}-v-1.journal").write_bytes(line)
        with (tmp_path / "0-v-10.journal").open("ab") as file:
            file.write(b"\n" + line)
    os.utime(tmp_path / "0-v-10.journal", (0, 0))
    assert list(unfinished_jobs(tmp_path).items()) == [("BV2?cid=2", 20), ("BV1?cid=1", 10)]
    assert unfinished_jobs(tmp_path / "nowhere") == {}


def test_what_no_part_can_have_is_not_believed_of_a_journal(tmp_path: Path) -> None:
    held = [[-5, 10], [10, 5], [2**70, 2**71], [0, 2**62]]
    records: list[dict[str, object]] = [{"held": one, "digest": "x"} for one in held] + [{"size": -7}]
    journal = tmp_path / "5-v80-7-9.journal"
    head = {"format": 1, "job": "BV1?cid=5", "cid": 5, "name": "v80-7", "size": 9}
    journal.write_bytes(b"\n".join(map(part_file.seal, [head, *records])))
    found = part_file.read_journal(journal.read_bytes())
    assert found is not None and (found.size_bytes, found.claims) == (None, {})
    part = PartFile.find(tmp_path, Identity("BV1?cid=5", 5, "v80-7"))
    assert part is not None
    part.prepare()
    assert part.held_bytes == 0
    part.close()


def a_finished_part(folder: Path, cid: int) -> PartFile:
    part = PartFile.open(folder, Identity("BV1", cid, "v"), 10)
    part.prepare()
    part.write(part.take(CHUNK_BYTES), b"0123456789")
    return part


@pytest.mark.parametrize("how", ["discard", "discard_parts"])
@pytest.mark.parametrize("kind", [".m4s", ".journal", ".lock"])
def test_what_cannot_be_deleted_is_left_and_its_lock_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: str
) -> None:
    unlink = Path.unlink

    def stubborn(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == kind:
            raise PermissionError(errno.EACCES, "a virus scanner", str(path))
        unlink(path, missing_ok)

    part = a_finished_part(tmp_path, 5)
    if how != "discard":
        part.close()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stubborn)
        part.discard() if how == "discard" else discard_parts(tmp_path, 5)
        assert any(path.suffix == kind for path in tmp_path.iterdir())
    if kind == ".m4s":
        assert len(list(tmp_path.iterdir())) == 3, "nothing would lead to the data"
    lock = part_file._lock(tmp_path / "5-v-10.lock")
    assert lock is not None
    lock.release()


def test_a_lock_that_cannot_be_had_is_no_error_when_parts_are_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "another user's", str(path))

    a_finished_part(tmp_path, 5).close()
    monkeypatch.setattr(part_file, "_lock", refuse)
    discard_parts(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 3


def test_old_parts_are_discarded_unless_someone_works_on_them(tmp_path: Path) -> None:
    parts = [a_finished_part(tmp_path, cid) for cid in range(4)]
    for part in parts[1:]:
        part.close()
    long_ago = time.time() - 100
    for cid in (0, 1, 2):
        os.utime(tmp_path / f"{cid}-v-10.journal", (long_ago, long_ago))
    (tmp_path / "2-v-10.journal").write_bytes(b"nonsense")
    os.utime(tmp_path / "2-v-10.journal", (long_ago, long_ago))
    assert discard_old_parts(tmp_path, 200) == 0
    assert discard_old_parts(tmp_path, 50) == 2
    assert {path.stem for path in tmp_path.iterdir()} == {"0-v-10", "3-v-10"}
    parts[0].close()
    assert discard_old_parts(tmp_path, 50) == 1
    assert {path.stem for path in tmp_path.iterdir()} == {"3-v-10"}
    assert discard_old_parts(tmp_path / "nowhere", 50) == 0


# ------------------------------------------------------------------------------------------ gaps


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_taken_split_and_given_back_every_byte_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(part_file, "MARK_BYTES", 1000)
    chance = random.Random(seed)
    size = chance.choice((1, 999, 30_000))
    content, written = CONTENT[:size], bytearray(size)
    part, taken = a_part(tmp_path, size), list[Chunk]()
    while not part.is_complete:
        held = part.held_bytes
        assert held + part.waiting_bytes + sum(chunk.missing_bytes for chunk in taken) == size
        step = chance.choices(["take", "write", "split", "give back", "anew"], [8, 8, 3, 3, 1])[0]
        chunk = chance.choice(taken) if taken else None
        if step == "take" and part.has_waiting:
            taken.append(part.take(chance.randint(1, size)))
        elif step == "write" and chunk is not None:
            start, stop = chunk.at, chunk.at + chance.randint(1, chunk.missing_bytes)
            written[start:stop] = bytes(count + 1 for count in written[start:stop])
            part.write(chunk, content[start:stop])
        elif step == "split" and chunk is not None and chunk.missing_bytes > 1:
            part.split(chunk, chunk.at + chance.randint(1, chunk.missing_bytes - 1))
        elif step == "give back" and chunk is not None:
            part.give_back(chunk)
            taken.remove(chunk)
        elif step == "anew":
            part.close()
            taken.clear()
            part = a_part(tmp_path, size)
            assert part.held_bytes == held, "what was written is believed"
        taken = [chunk for chunk in taken if chunk.missing_bytes]
    assert bytes(written) == b"\1" * size
    assert part.path.read_bytes() == content
    part.discard()


def test_a_chunk_is_split_ahead_of_where_it_is_and_before_its_end(tmp_path: Path) -> None:
    part = a_part(tmp_path, 100)
    chunk = part.take(100)
    part.write(chunk, CONTENT[:10])
    for wrong in (0, 10, 100, 101):
        with pytest.raises(AssertionError):
            part.split(chunk, wrong)
    part.split(chunk, 60)
    assert (chunk.stop, part.waiting_bytes) == (60, 40)
    part.discard()


def test_a_range_that_was_claimed_in_two_ways_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a wound: the first claims go on being true once what they lack was fetched by another range."""
    monkeypatch.setattr(part_file, "MARK_BYTES", 100)
    part = a_part(tmp_path, 1000)
    chunk = part.take(1000)
    for at in range(0, 500, 100):
        part.write(chunk, CONTENT[at : at + 100])
    part.close()
    with part.path.open("r+b") as file:
        file.seek(250)
        file.write(bytes([CONTENT[250] ^ 1]))
    part = a_part(tmp_path, 1000)
    assert part.held_bytes == 200
    chunk = part.take(600)
    assert (chunk.start, chunk.stop) == (200, 800)
    part.write(chunk, CONTENT[200:800])
    part.close()
    part = a_part(tmp_path, 1000)
    assert (part.held_bytes, part.waiting_bytes) == (800, 200)
    assert unfinished_jobs(tmp_path)["BV1?cid=5"] == 800
    part.discard()
