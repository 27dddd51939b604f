"""``make lock``: requirements*.in to requirements*.txt, with the hashes of all wheels. This asks the registry.

python -m tests.supply.lock             keeps the versions of what is locked already
python -m tests.supply.lock --upgrade   takes the newest that the direct requirements allow
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.utils import canonicalize_name

from tests.supply.files import NAMES, PYTHONS, ROOT, TARGETS, WHEELS, behind, locked, tags_in, tags_of

UV = ["uv", "pip", "compile", "--quiet", "--no-header", "--universal", "--python-version", "3.11"]
UV += ["--fork-strategy", "fewest", "--only-binary", ":all:", "--annotation-style", "line"]
PURPOSES = {
    "requirements": "what the scripts need",
    "requirements-deliver": "what SFTP and S3 need besides",
    "requirements-dev": "what the tests need besides",
    "requirements-bench": "what the benchmarks need besides",
    "requirements-supply": "what `make lock` and `make audit` need, in an environment of their own",
}
HEAD = """\
# {purpose}.
# Made by `make lock` from {name}.in: change that file. See docs/supply_chain.md
--require-hashes
--only-binary :all:
"""
LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.*?))?(?: +# via (?P<via>.*))?")


class Pin(NamedTuple):
    """A package as uv prints it."""

    name: str
    version: str
    marker: str
    via: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")


def parse_pins(text: str) -> list[Pin]:
    """Return the packages of what uv printed; raise ValueError for a line that is none."""
    pins = []
    for line in text.splitlines():
        found = LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"uv printed a line that is not understood: {line}")
        via = tuple(name.strip() for name in (found["via"] or "").split(","))
        pins.append(Pin(canonicalize_name(found["name"]), found["version"], found["marker"] or "", via))
    return pins


def _run_uv(folder: Path, sources: Iterable[Path], *arguments: str) -> None:
    """Run uv of the environment that this runs in."""
    program = Path(sys.executable).with_name(UV[0])
    subprocess.run([program, *UV[1:], *arguments, *sources], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def wheels_of(pylock: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, str]]:
    """Return hash and file name of the wheels that fit one of the targets, by package and version."""
    wanted = {tag for target in TARGETS.values() for python in PYTHONS for tag in tags_of(target, python)}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for package in pylock["packages"]:
        rows = found.setdefault((canonicalize_name(package["name"]), package["version"]), {})
        for wheel in package.get("wheels", ()):
            path = urllib.parse.urlsplit(wheel["url"]).path
            name = wheel.get("name") or urllib.parse.unquote(path.rpartition("/")[2])
            if tags_in(name) & wanted:
                rows[wheel["hashes"]["sha256"]] = name
    return found


def render(name: str, pins: Sequence[Pin], hashes: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    """Return the lock file: options first, then the packages by name, each after those that want it."""
    purpose = PURPOSES[name]
    lines = [HEAD.format(purpose=purpose[0].upper() + purpose[1:], name=name).rstrip()]
    if before := behind(name):
        lines.append(f"-r {before}.txt")
    for pin in pins:
        is_direct = any(one.startswith("-r ") for one in pin.via)
        wanted_by = ", ".join(one for one in pin.via if not one.startswith("-"))
        lines.append("" if is_direct else f"\n# for {wanted_by}")
        found = sorted(hashes[pin.name, pin.version], key=hashes[pin.name, pin.version].__getitem__)
        lines.append(" \\\n".join([str(pin), *(f"    --hash=sha256:{digest}" for digest in found)]))
    return "\n".join(lines) + "\n"


def make(is_upgrade: bool) -> None:
    """Write all lock files and the list of wheels."""
    sources = [ROOT / f"{name}.in" for name in NAMES]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        whole = folder / "whole.txt"
        if not is_upgrade:  # uv keeps what its output has already
            known = [one for name in NAMES if (ROOT / f"{name}.txt").exists() for one in locked(name)]
            pins = [Pin(one.name, one.version, str(one.marker or ""), ()) for one in known]
            whole.write_text("".join(f"{pin}\n" for pin in pins), "utf-8")
        _run_uv(folder, sources, "--output-file", "whole.txt")
        markers = {(pin.name, pin.version): pin.marker for pin in parse_pins(whole.read_text("utf-8"))}
        limits = ("--constraints", "whole.txt")
        _run_uv(folder, sources, *limits, "--format", "pylock.toml", "--output-file", "pylock.toml")
        hashes = wheels_of(tomllib.loads((folder / "pylock.toml").read_text("utf-8")))
        closures: dict[str, dict[tuple[str, str], Pin]] = {}
        for name, source in zip(NAMES, sources, strict=True):
            _run_uv(folder, [source], *limits, "--output-file", f"{name}.txt")
            pins = parse_pins((folder / f"{name}.txt").read_text("utf-8"))
            # One marker for each package in all files: the widest, which is that of all files together.
            closures[name] = {(pin.name, pin.version): pin._replace(marker=markers[pin[:2]]) for pin in pins}
    for name in NAMES:
        before = closures[found] if (found := behind(name)) else {}
        pins = [pin for key, pin in sorted(closures[name].items()) if key not in before]
        (ROOT / f"{name}.txt").write_text(render(name, pins, hashes), "utf-8")
    rows = sorted((wheel, digest) for found in hashes.values() for digest, wheel in found.items())
    WHEELS.write_text("".join(f"{digest}  {wheel}\n" for wheel, digest in rows), "utf-8")


if __name__ == "__main__":
    make(is_upgrade="--upgrade" in sys.argv[1:])
