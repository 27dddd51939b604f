"""Fuzzes for as long as is asked: the API and the parsers in turn, each turn with another seed.

Its status is 1 as soon as something is found; what it says then is an example for the tests beside it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.farm import ROOT
from tests.fuzz.api import ask

API_EXAMPLES = "100"
PARSER_FACTOR = "20"
"""How many times as many examples as in `make test-all`; about ten minutes of one processor."""


def main() -> int:
    """Fuzz; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="for how long; a turn that began is ended")
    parser.add_argument("--seed", type=int, help="of the first turn, as an earlier run has said it")
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    while True:
        print(f"seed {seed}", flush=True)
        if not (_api(seed) and _parsers(seed)):
            print(f"found something: python -m tests.fuzz --minutes 0 --seed {seed} shows it again", flush=True)
            return 1
        if time.monotonic() > until:
            return 0
        seed += 1


def _api(seed: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        asked = ask(Path(folder), seed, "--max-examples", API_EXAMPLES)
    is_well = asked.is_well and "Traceback" not in asked.log
    print(f"the API: {sum(sum(one.values()) for one in asked.statuses.values())} requests", flush=True)
    if not is_well:
        print(asked.report, asked.log[-5000:], sep="\n", flush=True)
    return is_well


def _parsers(seed: int) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/fuzz/test_parsers.py"]
    environ = {**os.environ, "FUZZ_FACTOR": PARSER_FACTOR}
    return subprocess.run([*command, "--hypothesis-seed", str(seed)], cwd=ROOT, env=environ).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
