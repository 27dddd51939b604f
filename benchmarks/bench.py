"""What every case is given: contenders, a scratch folder, how often, how large; and files of random bytes to serve."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.contenders import INSTALL, RUNS, Peers, Source, Task
from benchmarks.measure import Sample, digest_of, measure_rounds

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file that is served: where it is and what is in it."""

    path: Path
    size_bytes: int
    digest: str

    def at(self, *bases: str) -> Source:
        """Return it as it is served below some addresses."""
        return Source(tuple(f"{base}/{self.path.name}" for base in bases), self.size_bytes, self.digest)


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmark."""

    peers: Peers
    folder: Path
    repeats: int
    quick: bool
    say: Callable[[str], None]

    @property
    def served(self) -> Path:
        """The folder of the files that are served."""
        return self.folder / "served"

    def sized(self, full_bytes: int) -> int:
        """Return the size of a file: a quarter of the full one in a quick run."""
        return full_bytes // 4 if self.quick else full_bytes

    def file(self, size_bytes: int, number: int = 0) -> ServedFile:
        """Return a file of random bytes, made where it is missing and read once, so that it is in the page cache."""
        self.served.mkdir(parents=True, exist_ok=True)
        path = self.served / f"{size_bytes}-{number}.mp4"
        if not path.exists() or path.stat().st_size != size_bytes:
            self.need_room(size_bytes)
            write_random(path, size_bytes)
        return ServedFile(path, size_bytes, digest_of(path))

    def need_room(self, size_bytes: int) -> None:
        """Say so where the disk of the scratch folder has not that much room, and a GiB more."""
        free_bytes = self.free_bytes()
        if free_bytes < size_bytes + GIB:
            raise OSError(f"{size_bytes / GIB:.1f} GiB and one more are needed, {free_bytes / GIB:.1f} GiB are free")

    def free_bytes(self) -> int:
        """Return the room on the disk of the scratch folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free

    def compare(
        self, tasks: Mapping[str, tuple[str, Task]], repeats: int | None = None, warm_up: bool = True
    ) -> dict[str, list[Sample]]:
        """Measure tasks side by side; ``tasks`` is by the name in the table: which contender, and what it does."""
        runs = {
            label: partial(RUNS[name], self.peers, task)
            for label, (name, task) in tasks.items()
            if name not in ("aria2c", "curl", "yt-dlp") or name in self.peers.found
        }
        return measure_rounds(runs, repeats or self.repeats, self.folder, self.say, warm_up)


def write_random(path: Path, size_bytes: int) -> None:
    """Write a file of random bytes."""
    unfinished = path.with_suffix(".new")
    with unfinished.open("wb") as file:
        for at in range(0, size_bytes, 8 * MIB):
            file.write(os.urandom(min(8 * MIB, size_bytes - at)))
    unfinished.replace(path)


def missing(peers: Peers, names: Sequence[str]) -> list[str]:
    """Return a note for each peer that a case would have liked to measure."""
    return [f"{name} is missing here: {INSTALL[name]}" for name in names if name not in peers.found]
