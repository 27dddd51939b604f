"""``python -m benchmarks``: run the cases, and write the table, the raw figures and the plot."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import pipeline_cases, wire_cases
from benchmarks.bench import GIB, Bench
from benchmarks.contenders import INSTALL, Peers
from benchmarks.report import Goal, Outcome, as_json, between_markers, from_json, markdown, merged, plot
from benchmarks.servers import ServerError

ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).resolve().parent / "results" / "last.json"
DOCUMENT = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.png"

CASES: dict[str, Callable[[Bench], Outcome]] = {
    "plain-1g": partial(wire_cases.plain, full_bytes=GIB, tls=False),
    "plain-4g": partial(wire_cases.plain, full_bytes=4 * GIB, tls=False),
    "tls-1g": partial(wire_cases.plain, full_bytes=GIB, tls=True),
    "tls-4g": partial(wire_cases.plain, full_bytes=4 * GIB, tls=True),
    "paced": wire_cases.paced,
    "mirrors": partial(wire_cases.mirrors, pace=0),
    "mirrors-paced": partial(wire_cases.mirrors, pace=wire_cases.PACE),
    "cut": partial(wire_cases.cut_once, pace=0),
    "cut-paced": partial(wire_cases.cut_once, pace=wire_cases.PACE),
    "late": wire_cases.late,
    "limit": wire_cases.limit,
    "small": pipeline_cases.small,
    "mirrors-site": pipeline_cases.site_mirrors,
    "memory": pipeline_cases.memory,
    "idle": pipeline_cases.idle,
    "kill": partial(pipeline_cases.restart, number=signal.SIGKILL),
    "term": partial(pipeline_cases.restart, number=signal.SIGTERM),
}


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--list", action="store_true", help="name the cases and the peers, and end")
    options.add_argument("--only", action="append", default=[], metavar="CASE", help="run this case (again for more)")
    options.add_argument("--quick", action="store_true", help="a quarter of the sizes, 3 repeats, short waits")
    options.add_argument("--repeats", type=int, default=0, metavar="N", help="runs of each contender (7; quick: 3)")
    options.add_argument("--peers", action="append", default=[], metavar="DIR", help="look for the peers here first")
    options.add_argument("--product", type=Path, default=ROOT, metavar="DIR", help="measure the product of this tree")
    options.add_argument(
        "--scratch", type=Path, default=ROOT / ".data" / "benchmarks", metavar="DIR", help="folder for files"
    )
    options.add_argument("--keep", action="store_true", help="keep the files that are served, for the next run")
    options.add_argument("--result", type=Path, default=RESULT, metavar="FILE", help="raw figures")
    options.add_argument("--no-document", action="store_true", help="leave docs/ alone")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0 where every case could be measured."""
    options = parser().parse_args(arguments)
    folders = [*options.peers, *filter(None, [os.environ.get("BENCH_PEERS", "")])]
    peers = Peers.find(folders, options.product.resolve())
    versions = peers.versions()
    if options.list:
        print("\n".join([*CASES, "", *(f"{name}: {version}" for name, version in versions.items())]))
        return 0
    if unknown := [case for case in options.only if case not in CASES]:
        parser().error(f"no case {', '.join(unknown)}; --list names them")
    if "nginx" not in peers.found:
        print(f"nginx is the server of the benchmark: {INSTALL['nginx']}", file=sys.stderr)
        return 2
    repeats = options.repeats or (3 if options.quick else 7)
    # Its own folder, because it is deleted; and a signal must end servers and contenders, too.
    bench = Bench(peers, options.scratch.resolve() / "run", repeats, options.quick, partial(print, flush=True))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcomes = [run_case(case, bench) for case in CASES if not options.only or case in options.only]
    except KeyboardInterrupt:
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(bench.folder, ignore_errors=True)
    write(options, outcomes, about(versions, repeats, options.quick))
    return 1 if any(goal.problem for outcome in outcomes for goal in outcome.goals) else 0


def run_case(case: str, bench: Bench) -> Outcome:
    """Run one case; what makes it impossible is told in the table."""
    bench.say(case)
    started = time.monotonic()
    try:
        outcome = CASES[case](bench)
    except (OSError, ServerError, ValueError) as error:
        outcome = Outcome(case, case, {}, [Goal("", None, problem=f"{type(error).__name__}: {error}"[:300])])
    for goal in outcome.goals:
        bench.say(f"  {goal.text}: {goal.value} {goal.problem}")
    bench.say(f"  ({time.monotonic() - started:.0f} s)")
    return outcome


def about(versions: dict[str, str], repeats: int, quick: bool) -> dict[str, str]:
    """Return on what this was measured."""
    told = {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {memory_gib():.0f} GiB, {platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "runs": f"median of {repeats}" + (", quick" if quick else ""),
    }
    return told | versions


def memory_gib() -> float:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def write(options: argparse.Namespace, outcomes: Sequence[Outcome], told: dict[str, str]) -> None:
    """Write the raw figures, and with them the document; cases that were not run keep their earlier figures."""
    earlier: list[Outcome] = []
    if options.only and options.result.exists():
        earlier, _about = from_json(options.result.read_text("utf-8"))
    all_outcomes = merged(earlier, outcomes, list(CASES))
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(as_json(all_outcomes, told), "utf-8")
    if options.no_document:
        return
    DOCUMENT.write_text(between_markers(DOCUMENT.read_text("utf-8"), markdown(all_outcomes, told)), "utf-8")
    if problem := plot(all_outcomes, PLOT):
        print(problem, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
