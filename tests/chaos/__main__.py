"""The command: runs the farm, prints the verdict; exit status 1 where a promise was broken."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from model import MIB
from tests.chaos.course import judge_again, run
from tests.chaos.world import Engine, Options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="A farm under a seeded nemesis.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--videos", type=int, default=2000, help="tiny ones; every tenth has several pages")
    parser.add_argument("--large", type=int, default=6, help="videos of 30 MiB beside them")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long the nemesis rages")
    parser.add_argument("--drain", type=float, default=300.0, help="how long the rest may take when all is healed")
    parser.add_argument("--pace", type=float, default=0.8, help="seconds between two deeds, on average")
    parser.add_argument("--rate", type=float, default=4.0, help="MiB a second of each connection to the CDN; 0 is free")
    parser.add_argument(
        "--engine",
        choices=("embedded", "own"),
        help="the servers' embedded Valkey, or one of the run's own that is kept away for a while (drawn by the seed)",
    )
    parser.add_argument("--shards", type=int, default=1, help="of the queue")
    parser.add_argument("--folder", type=Path, help="where everything is kept (a new folder for temporary files)")
    parser.add_argument("--check", type=Path, metavar="DIR", help="judge an earlier run again by its folder")
    return parser


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # by way of everything that has to be ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status."""
    wanted = _parser().parse_args(arguments)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _end)
    if wanted.check:
        outcome = judge_again(wanted.check.resolve())
    else:
        folder = wanted.folder or Path(tempfile.mkdtemp(prefix="chaos-")) / "run"
        engines: tuple[Engine, Engine] = ("own", "embedded")
        engine: Engine = wanted.engine or engines[wanted.seed % 2]
        outcome = run(
            Options(
                seed=wanted.seed,
                folder=folder.resolve(),
                workers=wanted.workers,
                servers=wanted.servers,
                videos=wanted.videos,
                large=wanted.large,
                seconds=wanted.seconds,
                drain_seconds=wanted.drain,
                engine=engine,
                pace_seconds=wanted.pace,
                rate_bytes_per_second=wanted.rate * MIB,
                shards=wanted.shards,
            )
        )
    sys.stdout.write("\n".join(outcome.lines()) + "\n")
    return 1 if outcome.report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
