"""``python -m benchmarks.queue``: measure the queue server, and write figures, table and plot. See docs/scale.md."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.__main__ import RESULT as DOWNLOADS
from benchmarks.__main__ import about
from benchmarks.queue import told
from benchmarks.queue.cases import CASES, running
from benchmarks.report import between_markers

ROOT = Path(__file__).resolve().parent.parent.parent
RESULT = DOWNLOADS.with_name("queue.json")
DOCUMENT = ROOT / "docs" / "scale.md"
PLOT = ROOT / "docs" / "scale.png"
PACKAGES = (
    "Flask",
    "redis",
    "hiredis",
    "aiohttp",
    "waitress",
    "granian",
    "uvicorn",
    "hypercorn",
    "gunicorn",
    "cheroot",
)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    options.add_argument("--only", action="append", default=[], choices=list(CASES), help="run this case only")
    options.add_argument("--quick", action="store_true", help="1 round, 2 seconds each, a tenth of the workers")
    options.add_argument("--rounds", type=int, default=0, metavar="N", help="rounds (3; quick: 1)")
    options.add_argument("--more", action="store_true", help="add rounds to those of the earlier run")
    options.add_argument("--result", type=Path, default=RESULT, metavar="FILE", help="raw figures")
    options.add_argument("--no-document", action="store_true", help="leave docs/ alone")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write; cases that were not run keep their earlier figures."""
    options = parser().parse_args(arguments)
    if not shutil.which("wrk"):
        print("wrk sends the requests: apt-get install wrk", file=sys.stderr)
        return 2
    rounds = options.rounds or (1 if options.quick else 3)
    earlier = (
        json.loads(options.result.read_text("utf-8"))
        if (options.only or options.more) and options.result.exists()
        else {}
    )
    figures = earlier.get("figures", {})
    with tempfile.TemporaryDirectory(prefix="bench-queue-") as name:
        for case in options.only or CASES:
            folder = Path(name) / case
            folder.mkdir()
            print(case, flush=True)
            before = figures.get(case) if options.more and case != "workers" else None
            with running(folder, rounds, told.rounds_of(before), options.quick, partial(print, flush=True)) as run:
                figures[case] = told.together(before, CASES[case](run))
    machine = about(_versions(), rounds, options.quick)
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps({"about": machine, "figures": figures}, indent=1) + "\n", "utf-8")
    figures = told.summed_up(figures)
    table = told.markdown(figures, machine)
    print(table)
    if not options.no_document:
        DOCUMENT.write_text(between_markers(DOCUMENT.read_text("utf-8"), table), "utf-8")
        told.plot(figures, PLOT)
    return 0


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "is missing"
    return found


if __name__ == "__main__":
    sys.exit(main())
