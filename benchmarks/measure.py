"""Run processes and say what they cost; order the runs so that no contender has the better seat."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
READ_BYTES = 4 << 20
ENOUGH_FAILURES = 2
"""So often in a row a contender may fail before the rest of its runs are spared; all of them count as failed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run cost; ``problem`` is empty where it did what it should, and only then the figures count.

    Wall and CPU seconds are those of the whole process with its children, from its start to its end.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else there is to say of it, such as the wall time of the download alone."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended: its exit status (negative: the signal), what it cost, and what it printed."""

    status: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    output: str
    errors: str
    limit_seconds: float = 0.0
    """After so long it was ended; 0 where it ended by itself."""

    @property
    def problem(self) -> str:
        """Say what went wrong, in one line; an empty text where nothing did."""
        if self.limit_seconds:
            return f"not at its end after {self.limit_seconds:.0f} s"
        if self.status == 0:
            return ""
        lines = [line for line in (self.errors + "\n" + self.output).splitlines() if line.strip()]
        ending = f"exit status {self.status}" if self.status > 0 else f"ended by signal {-self.status}"
        return f"{ending}: {lines[-1].strip()[:200]}" if lines else ending


def run_process(
    command: Sequence[str], environ: Mapping[str, str], folder: Path, limit_seconds: float, name: str = "run"
) -> Finished:
    """Run a command to its end, ``limit_seconds`` at most; its output is kept in files in ``folder``."""
    with (folder / f"{name}.out").open("wb") as output, (folder / f"{name}.err").open("wb") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=dict(environ),
            cwd=folder,
            start_new_session=True,  # so that a run that does not end can be ended with all its children
        )
        in_time = False
        try:
            peak_rss_bytes, in_time = _watch(process.pid, started + limit_seconds)
        finally:
            if not in_time:  # or we are interrupted ourselves
                os.killpg(process.pid, signal.SIGKILL)
        _pid, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    return Finished(
        process.returncode,
        wall_seconds,
        usage.ru_utime + usage.ru_stime,
        peak_rss_bytes,
        (folder / f"{name}.out").read_text("utf-8", errors="replace"),
        (folder / f"{name}.err").read_text("utf-8", errors="replace"),
        0.0 if in_time else limit_seconds,
    )


def _watch(pid: int, deadline: float) -> tuple[int, bool]:
    """Wait for the end of a process; return its peak memory as last seen, and whether it ended before the deadline.

    The peak in ``wait4`` is no use: it is at least that of the process that started it.
    """
    peak_rss_bytes = 0
    handle = os.pidfd_open(pid)
    try:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        while not ended.poll(100):
            peak_rss_bytes = max(peak_rss_bytes, peak_rss(pid))
            if time.perf_counter() > deadline:
                return peak_rss_bytes, False
    finally:
        os.close(handle)
    return peak_rss_bytes, True


# ------------------------------------------------------------------------------------------ /proc


def peak_rss(pid: int) -> int:
    """Return the most memory a process has had resident, in bytes; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of those of its children that it has waited for."""
    text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    fields = text.rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS_PER_SECOND


# ------------------------------------------------------------------------------------------ files


def digest_of(path: Path) -> str:
    """Return the xxh3_128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def difference(path: Path, size_bytes: int, digest: str) -> str:
    """Say in what a file is not as it should be; an empty text where it is."""
    if not path.is_file():
        return "no file"
    if path.stat().st_size != size_bytes:
        return f"{path.stat().st_size} bytes in place of {size_bytes}"
    return "" if digest_of(path) == digest else "other bytes than were served"


def empty_folder(folder: Path) -> Path:
    """Return a folder with nothing in it, after everything that was written before has reached the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    return folder


# ------------------------------------------------------------------------------------------ rounds


def rotated(names: Sequence[str], round_number: int) -> list[str]:
    """Return the names in the order of a round: each is first once in ``len(names)`` rounds."""
    at = round_number % len(names) if names else 0
    return [*names[at:], *names[:at]]


def measure_rounds(
    runs: Mapping[str, Callable[[Path], Sample]],
    repeats: int,
    folder: Path,
    say: Callable[[str], None],
    warm_up: bool = True,
) -> dict[str, list[Sample]]:
    """Return the samples of each contender: interleaved, in rotated order, each in an empty folder on a synced disk.

    The first round warms up (page cache, first touch of memory) and is thrown away, save for its failures.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    failures = dict.fromkeys(runs, 0)
    for number in range(-1 if warm_up else 0, repeats):
        for name in rotated(list(runs), number):
            if failures[name] >= ENOUGH_FAILURES:
                samples[name].append(Sample(problem=f"spared after {ENOUGH_FAILURES} failures"))
                continue
            sample = _one(runs[name], empty_folder(folder / "out"))
            failures[name] = failures[name] + 1 if sample.problem else 0
            if number >= 0:
                samples[name].append(sample)
            said = sample.problem or f"{sample.wall_seconds:.3f} s, CPU {sample.cpu_seconds:.3f} s"
            say(f"  {'warm-up' if number < 0 else number + 1}: {name}: {said}")
    empty_folder(folder / "out")
    return samples


def _one(run: Callable[[Path], Sample], folder: Path) -> Sample:
    try:
        return run(folder)
    except OSError as error:
        return Sample(problem=f"{type(error).__name__}: {error}"[:200])
