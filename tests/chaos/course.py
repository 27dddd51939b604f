"""The course of a run: start, rage, heal, drain, end; then the verdict."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg

from demo.crowd import ensure_crowd
from demo.site import DEFAULT_CACHE
from tests.chaos.nemesis import Nemesis
from tests.chaos.user import User
from tests.chaos.world import Options, World, now
from tests.farm import wait_until
from tests.history import Evidence, Ranges, Report, check, check_files, check_ranges, cid_of, stream_hashes
from tests.relay import read_history

START_PAUSE_SECONDS = 0.25
"""Between the starts of two workers: each costs half a second of a core."""
GOODBYE_SECONDS = 40.0
SUBMIT_SHARE = 0.7
SURPRISES = ("Traceback (most recent call last)", "unexpected error", "Task exception was never retrieved")


class Served(NamedTuple):
    """What the site has of a page: under which paths, and a digest of the packets of each stream."""

    paths: tuple[str, ...]
    digests: tuple[str, ...]


@dataclass(slots=True)
class Outcome:
    """What a run gave: what is known of it, what was found, what was done, and how long each part took."""

    options: Options
    evidence: Evidence
    ranges: Ranges
    served: Mapping[int, Served]
    surprises: list[str]
    done: dict[str, int]
    took: dict[str, float]
    report: Report

    def lines(self) -> list[str]:
        """Return what is printed: the verdict first, each violation last."""
        done = " ".join(f"{name}={count}" for name, count in sorted(self.done.items()))
        took = " ".join(f"{name}={seconds:.1f}s" for name, seconds in self.took.items())
        return [
            self.report.line(),
            f"done: {done}",
            f"took: {took} calls={len(self.evidence.calls)} engine={self.options.engine} seed={self.options.seed}",
            *(f"VIOLATION: {one}" for one in self.report.violations),
        ]


def run(options: Options, deeds: Callable[[World], dict[str, int]] | None = None) -> Outcome:
    """Run a farm through everything, or through what ``deeds`` does and counts, and judge it."""
    took: dict[str, float] = {}
    begun = now()
    with World(options) as world, (options.folder / "nemesis.jsonl").open("w", encoding="utf-8") as log:
        crowd = ensure_crowd(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe(), options.videos, options.large)
        nemesis = Nemesis(world, options.seed, log)
        user = User(world, crowd.videos, options.seed + 1, SUBMIT_SHARE * options.seconds)
        user.start()
        _start_workers(world, options)
        took["start"] = now() - begun
        _say(f"{len(world.machines)} workers on {len(world.servers)} servers; logs in {options.folder}")
        begun = now()
        done = deeds(world) if deeds is not None else None
        if done is None:
            nemesis.rage(options.seconds)
        took["rage"] = now() - begun
        begun = now()
        nemesis.heal()
        user.finish(60)
        drained = _drain(world, options.drain_seconds)
        took["drain"] = now() - begun
        begun = now()
        evidence, ranges, surprises = _end(world, user, drained)
        took["end"] = now() - begun
        done = dict(nemesis.done) if done is None else done
    surprises += _left_behind(world)
    begun = now()
    evidence = replace(evidence, calls=read_history(options.folder / "history.jsonl"))
    served = served_streams(options, evidence)
    report = judge(options.folder, evidence, ranges, served, surprises)
    took["check"] = now() - begun
    outcome = Outcome(options, evidence, ranges, served, surprises, done, took, report)
    _save(outcome)
    return outcome


def judge(
    folder: Path, evidence: Evidence, ranges: Ranges, served: Mapping[int, Served], surprises: Iterable[str] = ()
) -> Report:
    """Return what is wrong with a run whose folders are still there."""
    report = check(evidence)
    report.surprises += surprises
    check_ranges(ranges, {path: cid for cid, one in served.items() for path in one.paths}, report)
    machines = {path.name: path / "Download" for path in sorted((folder / "machines").iterdir())}
    digests = {cid: one.digests for cid, one in served.items()}
    check_files(machines, evidence.success, digests, imageio_ffmpeg.get_ffmpeg_exe(), report)
    return report


def served_streams(options: Options, evidence: Evidence) -> dict[int, Served]:
    """Return what the site has of each page that is recorded."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    crowd = ensure_crowd(DEFAULT_CACHE, ffmpeg, options.videos, options.large)
    streams = {cid: crowd.of_page(cid) for item in evidence.success if (cid := cid_of(item["url"])) is not None}
    with tempfile.TemporaryDirectory(prefix="served-", dir=options.folder) as scratch:
        files = {stream: Path(scratch) / f"{cid}-{stream.id}" for cid in streams for stream in streams[cid]}
        for stream, path in files.items():
            path.write_bytes(crowd.stamped_bytes(stream))
        hashes = stream_hashes(list(files.values()), ffmpeg)
        return {
            cid: Served(
                tuple(stream.url_path for stream in one),
                tuple(digest for stream in one for digest in hashes[files[stream]]),
            )
            for cid, one in streams.items()
        }


def _start_workers(world: World, options: Options) -> None:
    draw = random.Random(options.seed + 2)
    for number in range(1, options.workers + 1):
        world.add_machine(f"w{number:02d}", number % options.servers, draw.random() < 0.5, draw.randint(1, 4))
        time.sleep(START_PAUSE_SECONDS)


def _drain(world: World, seconds: float) -> bool:
    """Wait until nothing is left to do; what is delayed comes by itself."""
    until, said = now() + seconds, 0.0
    while now() < until:
        world.supervise()
        counts = world.counts()
        if counts is not None and not counts["ready"] + counts["leased"] + counts["delayed"]:
            return True
        if now() - said > 10:
            said = now()
            _say(f"draining: {counts}")
        time.sleep(0.5)
    return False


def _end(world: World, user: User, drained: bool) -> tuple[Evidence, Ranges, list[str]]:
    """End the workers in order, ask for all that is recorded, end the servers."""
    surprises = [] if drained else [f"not drained: {world.counts()}"]
    for server, port in zip(world.servers, world.ports, strict=True):
        deadline = now() + 20  # it may have been started just now
        while not (serves := world.serves(port)) and now() < deadline:
            time.sleep(0.1)
        if not serves:
            surprises.append(f"{server.name} does not serve at the end, see {server.log}")
    surprises += [
        f"{machine.name} does not run at the end, see {machine.program.log}"
        for machine in world.machines
        if not machine.is_gone and not machine.program.runs
    ]
    workers = [machine.program for machine in world.machines if machine.program.runs]
    at_once = [program for program in workers if program.is_new]
    for program in workers:
        program.signal(signal.SIGTERM)
    until = now() + GOODBYE_SECONDS
    for program in workers:
        status = program.wait(max(0.1, until - now()))
        if status != 0 and not (status == -signal.SIGTERM and program in at_once):
            surprises.append(f"{program.name}: asked to end, its exit status was {status}")
    counts = wait_until("a server tells the counts", world.counts)
    evidence = Evidence((), dict(user.pages), world.everything("/success"), world.everything("/failed"), counts)
    objects = world.site.get("stats")["objects"]
    ranges = {
        path: [(one["start"], one["stop"], one["sent_bytes"]) for one in counter["ranges"]]
        for path, counter in objects.items()
    }
    for server in world.servers:
        server.signal(signal.SIGTERM)
    for server in world.servers:
        if (status := server.wait(GOODBYE_SECONDS)) not in (0, 130):
            surprises.append(f"{server.name}: asked to end, its exit status was {status}")
    return evidence, ranges, surprises + _complaints(world)


def _complaints(world: World) -> list[str]:
    found = []
    for program in (*world.servers, *(machine.program for machine in world.machines)):
        text = program.log.read_text("utf-8", errors="replace")
        for word in SURPRISES:
            if count := text.count(word):
                at = text.index(word)
                around = re.sub(r"\s+", " ", text[max(0, at - 200) : at + 1500])
                found.append(f"{program.log}: {count} times {word!r}, the first: {around}")
    return found


def _left_behind(world: World) -> list[str]:
    """Return what still runs of a world that was ended; what is about to end has some seconds for it."""
    until = now() + 10
    while (left := world.left_behind()) and now() < until:
        time.sleep(0.2)
    return [f"left behind: {one}" for one in left]


def _say(sentence: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {sentence}\n")
    sys.stderr.flush()


# ------------------------------------------------------------------------------------------ to look at it again


def _save(outcome: Outcome) -> None:
    evidence = outcome.evidence
    content: dict[str, Any] = {
        "options": {**asdict(outcome.options), "folder": str(outcome.options.folder)},
        "pages": {text: sorted(cids) for text, cids in evidence.pages.items()},
        "success": evidence.success,
        "failed": evidence.failed,
        "counts": evidence.counts,
        "ranges": outcome.ranges,
        "surprises": outcome.surprises,
        "done": outcome.done,
        "took": outcome.took,
    }
    folder = outcome.options.folder
    (folder / "evidence.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    (folder / "verdict.txt").write_text("\n".join(outcome.lines()) + "\n", "utf-8")


def judge_again(folder: Path) -> Outcome:
    """Judge a run again by what it left in its folder."""
    content: Mapping[str, Any] = json.loads((folder / "evidence.json").read_text("utf-8"))
    options = Options(**{**content["options"], "folder": folder})
    evidence = Evidence(
        read_history(folder / "history.jsonl"),
        {text: frozenset(cids) for text, cids in content["pages"].items()},
        content["success"],
        content["failed"],
        content["counts"],
    )
    ranges: Ranges = {path: [tuple(one) for one in ranges] for path, ranges in content["ranges"].items()}
    served = served_streams(options, evidence)
    report = judge(folder, evidence, ranges, served, content["surprises"])
    return Outcome(options, evidence, ranges, served, content["surprises"], content["done"], content["took"], report)
