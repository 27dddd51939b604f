"""``make audit``: is anything known against what is locked? The list of this project first, then pip-audit's source.

Ends with 1 where something is known. Where pip-audit cannot ask, that is said, and only the list counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.supply.advisories import ADVISORIES, against
from tests.supply.files import NAMES, ROOT, locked

SILENCE_SECONDS = 120


class Online(NamedTuple):
    """What pip-audit found: lines about packages, and the packages that it could not ask about."""

    known: tuple[str, ...]
    unasked: tuple[str, ...]
    asked: int


def parse_report(text: str) -> Online:
    """Return what a report of pip-audit says; raise ValueError where it is none."""
    report: Any = json.loads(text)
    if not isinstance(report, dict) or not isinstance(report.get("dependencies"), list):
        raise ValueError("not a report of pip-audit")
    rows = report["dependencies"]
    known = (
        f"{row['name']} {row['version']}: {one['id']}, better from {', '.join(one['fix_versions']) or 'nowhere yet'}"
        for row in rows
        for one in row.get("vulns", ())
    )
    # A package that was skipped counts as sound for pip-audit, which ends with 0; not so here.
    unasked = tuple(row["name"] for row in rows if "skip_reason" in row)
    return Online(tuple(known), unasked, len(rows) - len(unasked))


def _ask(names: Sequence[str]) -> Online | str:
    """Return what pip-audit found in these files, or the beginning of the last line that it said instead.

    It does not follow ``-r`` inside of a file.
    """
    files = [argument for name in names for argument in ("-r", str(ROOT / f"{name}.txt"))]
    command = [sys.executable, "-m", "pip_audit", *files, "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SILENCE_SECONDS)
        return parse_report(done.stdout)
    except subprocess.TimeoutExpired:
        return f"no answer in {SILENCE_SECONDS} s"
    except ValueError:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1].partition("(")[0]


def told(online: Online | str) -> list[str]:
    """Return the lines about what was asked online."""
    if isinstance(online, str):
        return [f"NOT ASKED: pip-audit reached no database of advisories ({online}). Only the list above counts."]
    lines = [*online.known, f"{online.asked} packages asked about online, {len(online.known)} advisories"]
    if online.unasked:
        lines.append(f"NOT ASKED: pip-audit got no answer about {len(online.unasked)} packages. See the list above.")
    return lines


def main() -> int:
    """Print what is known; return 1 if anything is."""
    packages = [package for name in NAMES for package in locked(name)]
    found = against(packages)
    for package, advisory in found:
        print(f"{package.name} {package.version}: {advisory.says} ({advisory.source}: {advisory.unsafe})")
    print(f"{len(packages)} packages against the list of {len(ADVISORIES)} advisories: {len(found)} match")
    online = _ask(NAMES)
    print("\n".join(told(online)))
    return 1 if found or (isinstance(online, Online) and online.known) else 0


if __name__ == "__main__":
    sys.exit(main())
