"""Runs many seeds, in several processes, and says which of them failed."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import running_valkey
from tests.simulation.breaks import BREAKS
from tests.simulation.engine import Engine
from tests.simulation.scenario import Outcome, Seed

MEMORY = Path("/dev/shm")


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def simulate(
    seeds: Sequence[int],
    engine: Engine,
    break_name: str = "",
    kinds: str = "",
    until_found: bool = False,
    shards: int = 1,
) -> Iterator[Outcome]:
    """Run seeds one after the other; yield what came of each."""
    base = MEMORY if MEMORY.is_dir() else None
    gc.disable()  # what a seed leaves is collected between seeds, a few at a time
    try:
        with tempfile.TemporaryDirectory(prefix="simulation", dir=base) as folder:
            for count, number in enumerate(seeds):
                outcome = Seed(number, engine, Path(folder) / str(number), break_name, kinds, shards).run()
                yield outcome
                if until_found and outcome.violations:
                    return
                if count % 20 == 19:
                    gc.collect()
    finally:
        gc.enable()


def _work(job: tuple[list[int], str, str, bool, int]) -> list[Outcome]:
    seeds, break_name, kinds, keep, shards = job
    outcomes = []
    with running_valkey() as path:
        engine = Engine(path)
        for outcome in simulate(seeds, engine, break_name, kinds, shards=shards):
            if not keep and not outcome.violations:
                outcome.trace = []
            outcomes.append(outcome)
        engine.close()
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 where a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many (500)")
    parser.add_argument("--first", type=int, default=1, help="the first one (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--break", dest="break_name", choices=sorted(BREAKS), default="", help="break the product")
    parser.add_argument("--kinds", default="", help="these faults only, with commas between")
    parser.add_argument("--shards", type=int, default=1, help="of the queue (1)")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what happened in each seed")
    options = parser.parse_args(arguments)
    seeds = list(range(options.first, options.first + options.seeds))
    started = time.monotonic()
    jobs = [
        (seeds[part :: options.jobs], options.break_name, options.kinds, options.verbose, options.shards)
        for part in range(options.jobs)
    ]
    if options.jobs == 1:
        outcomes = _work(jobs[0])
    else:
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            outcomes = [outcome for part in pool.map(_work, jobs) for outcome in part]
    failed = [outcome for outcome in outcomes if outcome.violations]
    if options.verbose:
        for outcome in sorted(outcomes, key=lambda one: one.seed):
            say(f"--- seed {outcome.seed}: {', '.join(outcome.kinds)}")
            say("\n".join(outcome.lines()))
    for outcome in sorted(failed, key=lambda one: one.seed):
        say(f"seed {outcome.seed}: {outcome.violations[0]}")
    seconds = time.monotonic() - started
    counts = sum((outcome.counts for outcome in outcomes), Counter[str]())
    say(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    slowest = max(outcomes, key=lambda one: one.drain_seconds)
    say(f"slowest to drain: seed {slowest.seed}, {slowest.drain_seconds:.0f} s after it was healed")
    say(f"{len(outcomes)} seeds, {len(failed)} failed, {seconds:.1f} s, {1000 * seconds / len(outcomes):.0f} ms each")
    return 1 if failed else 0
