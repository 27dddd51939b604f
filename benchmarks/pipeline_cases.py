"""Cases of the whole program: many small videos, memory, an idle worker, and what a restart costs."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.bench import GIB, MIB, Bench, missing
from benchmarks.farm import Place, Queue, ffmpeg_folder, stand_in, wait_until
from benchmarks.measure import Finished, Sample, cpu_seconds, empty_folder, measure_rounds, peak_rss, run_process
from benchmarks.report import Figure, Goal, Outcome, compared, cpu, median, ratio, told, wall
from benchmarks.servers import FaultServer, listener
from benchmarks.videos import bvids, make_streams, padded, shelve, small_videos, stream_hashes
from benchmarks.wire_cases import CONNECTIONS, PACE, SLOW_PACE, sized

SMALL_VIDEOS = 200
MEMORY_COUNT, MEMORY_CONNECTIONS, MEMORY_STREAM_BYTES = 8, 64, 4 * GIB
BLOCK_BYTES = 4096


# ------------------------------------------------------------------------------------------ small videos

Pairs = Sequence[tuple[Path, Path]]


def run_worker(bench: Bench, place: Place, targets: Sequence[str], limit: float, folder: Path) -> Finished:
    """Run a worker until its queue, filled before, is empty."""
    with Queue(bench, folder, place.environ) as queue:
        queue.add(targets)
        command = queue.command("run.py", "--until-empty", "--wait", "0")
        return run_process(command, queue.environ, folder, limit, "worker")


def run_yutto(bench: Bench, place: Place, targets: Sequence[str], limit: float, folder: Path) -> Finished:
    """Let yutto download the same pages: eight at a time, no extras."""
    # A list's lines do not take over the options of the command, so each has its own.
    options = f" -d {folder / 'Download'} --no-danmaku --no-subtitle --no-cover --no-chapter-info"
    listed = _listed(targets, folder, options)
    command = [bench.peers.found["yutto"], "--jobs", "8", "--no-color", "--no-progress", f"file://{listed}"]
    return run_process(command, _own_home(place.environ, folder), folder, limit, "yutto")


def run_yt_dlp(bench: Bench, place: Place, targets: Sequence[str], limit: float, folder: Path) -> Finished:
    """Let yt-dlp download the same pages; it takes one after the other."""
    listed = _listed(targets, folder)
    command = [bench.peers.found["yt-dlp"], "--ignore-config", "-q", "--no-progress", "-f", "bv+ba", "-a", str(listed)]
    command += ["-P", str(folder / "Download"), "-o", "%(id)s.%(ext)s"]
    return run_process(command, _own_home(place.environ, folder), folder, limit, "yt-dlp")


def _listed(targets: Sequence[str], folder: Path, options: str = "") -> Path:
    path = folder / "targets.txt"
    path.write_text("".join(f"https://www.bilibili.com/video/{one}{options}\n" for one in targets), "utf-8")
    return path


def _own_home(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment with a home of its own, so that no settings or caches of a user count."""
    return {**environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}


PROGRAMS: dict[str, Callable[[Bench, Place, Sequence[str], float, Path], Finished]] = {
    "ours": run_worker,
    "yutto": run_yutto,
    "yt-dlp": run_yt_dlp,
}


def run_program(
    name: str, bench: Bench, place: Place, pairs: Pairs, wanted: Counter[tuple[str, ...]], limit: float, folder: Path
) -> Sample:
    """Download all videos with a program, and see that every packet of each of them arrived."""
    before = cpu_seconds(place.site_pid)
    done = PROGRAMS[name](bench, place, bvids(len(pairs)), limit, folder)
    figures = {"site_cpu_seconds": cpu_seconds(place.site_pid) - before}
    problem = done.problem
    if not problem:
        ffmpeg, _tools = ffmpeg_folder(bench.folder)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            hashes = pool.map(lambda path: tuple(stream_hashes(path, ffmpeg)), finished(folder / "Download"))
            found = Counter(hashes)
        lacking = (wanted - found).total()
        problem = f"{lacking} of {len(pairs)} videos did not arrive whole" if lacking else ""
    return Sample(done.wall_seconds, done.cpu_seconds, done.peak_rss_bytes, figures, problem)


def finished(folder: Path) -> list[Path]:
    """Return the finished files of a folder."""
    return [path for path in folder.rglob("*.mp4") if path.is_file() and ".parts" not in path.parts]


def wanted_hashes(pairs: Pairs, ffmpeg: str) -> Counter[tuple[str, ...]]:
    """Return the digests of the packets that must arrive, by file."""
    known: dict[Path, list[str]] = {}
    for path in (path for pair in pairs for path in pair):
        if path not in known:
            known[path] = stream_hashes(path, ffmpeg)
    return Counter(tuple(sorted(known[video] + known[audio])) for video, audio in pairs)


def small(bench: Bench) -> Outcome:
    """Many small videos through the whole pipeline."""
    count = SMALL_VIDEOS // 4 if bench.quick else SMALL_VIDEOS
    ffmpeg, _tools = ffmpeg_folder(bench.folder)
    pairs = small_videos(bench.folder / "media", count, ffmpeg)
    shelf = shelve(pairs, empty_folder(bench.folder / "shelf"))
    wanted = wanted_hashes(pairs, ffmpeg)
    with ExitStack() as stack:
        place = stand_in(bench, stack, shelf, [listener(shelf.parent)])
        programs = [name for name in PROGRAMS if name == "ours" or name in bench.peers.found]
        runs = {name: partial(run_program, name, bench, place, pairs, wanted, 60 + count * 2.0) for name in programs}
        samples = measure_rounds(runs, bench.repeats, bench.folder, bench.say)
    goals = [
        _faster(samples, "yutto", 1.2),
        _faster(samples, "yt-dlp", 3.0),
        compared("CPU / yutto", samples, ("ours", cpu), ("yutto", cpu), high=1.0),
        *(Goal(f"videos per minute, {name}", ratio(60 * count, median(samples[name], wall))) for name in programs),
        *(Goal(f"CPU ms per video, {name}", _each(samples[name], count, cpu)) for name in programs),
        *(
            Goal(f"CPU ms per video of the site, {name}", _each(samples[name], count, told("site_cpu_seconds")))
            for name in programs
        ),
    ]
    total = sum(path.stat().st_size for pair in pairs for path in pair)
    title = f"{count} real videos of 0.1 to 6 MB ({total / 1e6:.0f} MB), count 8, with merge"
    return Outcome("small", title, samples, goals, missing(bench.peers, ["yutto", "yt-dlp"]))


def _faster(samples: Mapping[str, Sequence[Sample]], other: str, low: float) -> Goal:
    return compared(f"videos per minute / {other}", samples, (other, wall), ("ours", wall), low=low)


def _each(samples: Sequence[Sample], count: int, figure: Figure) -> float | None:
    seconds = median(samples, figure)
    return None if seconds is None else 1000 * seconds / count


# ------------------------------------------------------------------------------------------ mirrors, whole programs


def site_mirrors(bench: Bench) -> Outcome:
    """One large video from three mirrors in its playinfo, for the programs that take addresses of the site only."""
    size_bytes = bench.sized(256 * MIB)
    ffmpeg, _tools = ffmpeg_folder(bench.folder)
    video, audio = make_streams(bench.folder / "media", 1_000_000, ffmpeg)
    pairs = [(padded(video, bench.folder / "media", size_bytes, sparse=False), audio)]
    shelf = shelve(pairs, empty_folder(bench.folder / "shelf"))
    wanted = wanted_hashes(pairs, ffmpeg)
    limit = 20 * size_bytes / (CONNECTIONS * PACE) + 30
    programs = [name for name in PROGRAMS if name == "ours" or name in bench.peers.found]
    with ExitStack() as stack:
        slow = listener(shelf.parent, "127.0.0.2", bytes_per_second=SLOW_PACE)
        fine = listener(shelf.parent, "127.0.0.3", bytes_per_second=PACE)
        fault_root = shelf.parent / "flat"
        fault_root.mkdir()
        for path in shelf.parent.rglob("*.m4s"):
            (fault_root / path.name).hardlink_to(path)
        cutting = stack.enter_context(FaultServer(fault_root, "127.0.0.4", cut="always", bytes_per_second=PACE))
        hosts = [f"{slow.host}:{slow.port}", f"{fine.host}:{fine.port}", cutting.url.removeprefix("http://")]
        with ExitStack() as inner:
            three = stand_in(bench, inner, shelf, [slow, fine], hosts)
            runs = {
                f"{name}, three mirrors": partial(run_program, name, bench, three, pairs, wanted, limit)
                for name in programs
            }
            samples = measure_rounds(runs, bench.repeats, bench.folder, bench.say, warm_up=False)
    with ExitStack() as stack:
        alone = stand_in(bench, stack, shelf, [listener(shelf.parent, "127.0.0.3", bytes_per_second=PACE)])
        runs = {
            f"{name}, good mirror alone": partial(run_program, name, bench, alone, pairs, wanted, limit)
            for name in programs
        }
        samples |= measure_rounds(runs, bench.repeats, bench.folder, bench.say, warm_up=False)
    goals = [
        compared(
            "time / time with the good mirror alone" + ("" if name == "ours" else f", {name}"),
            samples,
            (f"{name}, three mirrors", wall),
            (f"{name}, good mirror alone", wall),
            high=1.15 if name == "ours" else None,
        )
        for name in programs
    ]
    title = (
        f"the same as whole programs: {sized(size_bytes)}, mirrors in the playinfo; good ones at 4 MB/s a connection"
    )
    return Outcome("mirrors-site", title, samples, goals, missing(bench.peers, ["yutto", "yt-dlp"]))


# ------------------------------------------------------------------------------------------ memory


def fitting(wanted_bytes: int, free_bytes: int) -> int:
    """Return the size of the streams that the disk has room for: a worker wants it for the merged files, too."""
    fits = (free_bytes - 2 * GIB) // (2 * MEMORY_COUNT)
    return min(wanted_bytes, max(GIB // 4, fits // (GIB // 4) * (GIB // 4)))


def memory(bench: Bench) -> Outcome:
    """Eight videos at once with streams of 4 GiB over 64 connections: the most memory the worker ever has."""
    size_bytes = MEMORY_STREAM_BYTES // 16 if bench.quick else fitting(MEMORY_STREAM_BYTES, bench.free_bytes())
    bench.need_room(2 * MEMORY_COUNT * size_bytes)
    ffmpeg, _tools = ffmpeg_folder(bench.folder)
    video, audio = make_streams(bench.folder / "media", 1_000_000, ffmpeg)
    longer = padded(video, bench.folder / "media", size_bytes, sparse=True)
    shelf = shelve([(longer, audio)] * MEMORY_COUNT, empty_folder(bench.folder / "shelf"))
    folder = empty_folder(bench.folder / "out")
    with ExitStack() as stack:
        place = stand_in(bench, stack, shelf, [listener(shelf.parent)])
        settings = {"BILI_CONNECTIONS": str(MEMORY_CONNECTIONS)}
        queue = stack.enter_context(Queue(bench, folder, place.environ, **settings))
        queue.add(bvids(MEMORY_COUNT))
        command = queue.command("run.py", "--until-empty", "--wait", "0")
        limit = 60 + 30 * MEMORY_COUNT * size_bytes / GIB
        done = run_process(command, queue.environ, folder, limit, "worker")
        problem = done.problem
        if not problem and (arrived := len(finished(queue.downloads))) != MEMORY_COUNT:
            problem = f"{arrived} of {MEMORY_COUNT} videos arrived: {queue.said('web_server.py')}"
        sample = Sample(done.wall_seconds, done.cpu_seconds, done.peak_rss_bytes, {}, problem)
    empty_folder(bench.folder / "out")
    title = f"memory at count {MEMORY_COUNT}, {MEMORY_CONNECTIONS} connections, streams of {sized(size_bytes)}"
    goal = Goal("peak memory of the worker", done.peak_rss_bytes / 1e6, high=100, unit="MB", problem=problem)
    notes = (
        []
        if size_bytes == MEMORY_STREAM_BYTES
        else [f"smaller than {sized(MEMORY_STREAM_BYTES)}: quick, or too little room"]
    )
    return Outcome("memory", title, {"ours": [sample]}, [goal], notes)


# ------------------------------------------------------------------------------------------ idle


def idle(bench: Bench) -> Outcome:
    """A worker whose queue is empty."""
    seconds = 60 if bench.quick else 600
    folder = empty_folder(bench.folder / "out")
    with ExitStack() as stack:
        ffmpeg, _tools = ffmpeg_folder(bench.folder)
        pairs = small_videos(bench.folder / "media", 1, ffmpeg)
        shelf = shelve(pairs, empty_folder(bench.folder / "shelf"))
        place = stand_in(bench, stack, shelf, [listener(shelf.parent)])
        queue = stack.enter_context(Queue(bench, folder, place.environ))
        worker = queue.start("run.py")
        wait_until("the worker is known", lambda: " asks " in (folder / "run.py.log").read_text("utf-8"))
        time.sleep(3)  # what it does at its start is no part of idling
        before, started = cpu_seconds(worker.pid), time.monotonic()
        while time.monotonic() - started < seconds:
            time.sleep(1)
            if worker.poll() is not None:
                raise OSError(f"the worker ended: {queue.said('run.py')}")
        used, took = cpu_seconds(worker.pid) - before, time.monotonic() - started
        sample = Sample(took, used, peak_rss(worker.pid))
    goal = Goal("CPU, % of a core", 100 * used / took, high=0.2, unit="%")
    return Outcome("idle", f"idle worker, empty queue, {seconds // 60} min", {"ours": [sample]}, [goal])


# ------------------------------------------------------------------------------------------ restarts


def asked_ranges(log: str, total_bytes: int, path: str) -> list[tuple[int, int]]:
    """Return what was sent of a file by the lines of nginx's log: half-open ranges."""
    found = []
    for line in log.splitlines():
        uri, text, status, sent, _when = line.split("|")
        if uri.partition("?")[0] != path or status not in ("200", "206"):
            continue
        start = int(text.removeprefix("bytes=").partition("-")[0]) if text.startswith("bytes=") else 0
        found.append((start, min(start + int(sent), total_bytes)))
    return found


def held_blocks(part: Path, source: Path) -> set[int]:
    """Return the numbers of the blocks of a part file that hold what was served; the bytes served are random."""
    held = set()
    with part.open("rb") as ours, source.open("rb") as theirs:
        number = 0
        while right := theirs.read(256 * BLOCK_BYTES):
            left = ours.read(len(right))
            for at in range(0, len(left), BLOCK_BYTES):
                if left[at : at + BLOCK_BYTES] == right[at : at + BLOCK_BYTES]:
                    held.add(number + at // BLOCK_BYTES)
            number += 256
    return held


def again_bytes(held: set[int], ranges: Iterable[tuple[int, int]]) -> int:
    """Return how many bytes of held blocks were sent once more."""
    asked = {block for start, stop in ranges for block in range(-(-start // BLOCK_BYTES), stop // BLOCK_BYTES)}
    return BLOCK_BYTES * len(held & asked)


def restart(bench: Bench, number: int) -> Outcome:
    """End a worker in the middle of a stream, start it again, and count what is sent once more."""
    size_bytes = bench.sized(GIB)
    word = {signal.SIGKILL: "kill -9", signal.SIGTERM: "SIGTERM"}[signal.Signals(number)]
    ffmpeg, _tools = ffmpeg_folder(bench.folder)
    video, audio = make_streams(bench.folder / "media", 1_000_000, ffmpeg)
    longer = padded(video, bench.folder / "media", size_bytes, sparse=False)
    shelf = shelve([(longer, audio)], empty_folder(bench.folder / "shelf"))
    runs = {"ours": partial(_one_restart, bench, number, longer, shelf)}
    samples = measure_rounds(runs, min(bench.repeats, 3), bench.folder, bench.say, warm_up=False)
    again = median(samples["ours"], told("again_bytes"))
    problem = next((sample.problem for sample in samples["ours"] if sample.problem), "")
    most = MIB * CONNECTIONS if number == signal.SIGKILL else 0
    goals = [
        Goal(
            "held on disk and fetched again, MiB",
            None if again is None else again / MIB,
            high=most / MIB,
            problem=problem,
        ),
    ]
    over = median(samples["ours"], told("sent_too_much_bytes"))
    goals.append(Goal("sent by the server beyond the size, MiB (with what was under way)", over and over / MIB))
    title = f"{word} at 50 % of {sized(size_bytes)}, {CONNECTIONS} connections at {PACE / 1e6:g} MB/s, restart"
    return Outcome("kill" if number == signal.SIGKILL else "term", title, samples, goals)


def _one_restart(bench: Bench, number: int, source: Path, shelf: Path, folder: Path) -> Sample:
    size_bytes = source.stat().st_size
    log = folder / "media.log"
    started = time.perf_counter()
    with ExitStack() as stack:
        media = listener(shelf.parent, bytes_per_second=PACE, log=log)
        place = stand_in(bench, stack, shelf, [media])
        queue = stack.enter_context(Queue(bench, folder, place.environ, BILI_CONNECTIONS=str(CONNECTIONS)))
        queue.add(bvids(1))
        worker = queue.start("run.py", "--until-empty", "--wait", "0")
        half = size_bytes // 2
        wait_until("half of it is written", lambda: worker.poll() is not None or _written(worker.pid) >= half, 120)
        worker.send_signal(number)
        worker.wait(30)
        _wait_until_quiet(log)
        parts = [path for path in (queue.downloads / ".parts").rglob("*") if path.is_file()]
        part = max(parts, key=lambda path: path.stat().st_size)
        shutil.copyfile(part, folder / "held")
        url_path = next(path for path in shelf.parent.rglob("*.m4s") if path.samefile(source))
        uri = "/" + str(url_path.relative_to(shelf.parent))
        before = log.read_text("utf-8")
        status = queue.start("run.py", "--until-empty", "--wait", "0").wait(180)
        _wait_until_quiet(log)
        after = log.read_text("utf-8")[len(before) :]
        arrived = len(finished(queue.downloads))
    took = time.perf_counter() - started
    held = held_blocks(folder / "held", source)
    sent = [stop - start for start, stop in asked_ranges(before + after, size_bytes, uri)]
    figures = {
        "held_bytes": float(BLOCK_BYTES * len(held)),
        "again_bytes": float(again_bytes(held, asked_ranges(after, size_bytes, uri))),
        "sent_too_much_bytes": float(sum(sent) - size_bytes),
    }
    problem = "" if status == 0 and arrived == 1 else f"status {status}, {arrived} file: {queue.said('run.py')}"
    return Sample(took, 0.0, 0, figures, problem)


def _written(pid: int) -> int:
    """Return how many bytes a process has written so far."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def _wait_until_quiet(log: Path, seconds: float = 1.0) -> None:
    """Wait until nothing was added to a log for a while: the server has noticed who hung up."""
    size_bytes, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        if (now := log.stat().st_size if log.exists() else 0) != size_bytes:
            size_bytes, since = now, time.monotonic()
        time.sleep(0.05)
