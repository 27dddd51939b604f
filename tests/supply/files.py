"""The files of the requirements: ``.in`` is what people write, ``.txt`` what ``make lock`` makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("requirements", "requirements-deliver", "requirements-dev", "requirements-bench", "requirements-supply")
"""A file stands behind those that it begins with (``-r``)."""
WHEELS = ROOT / "tests" / "data" / "wheels.sha256"
"""Which file each hash belongs to, in the form of ``sha256sum``: a hash alone does not tell a wheel from a source."""

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14), (3, 15))


class Target(NamedTuple):
    """A kind of machine that the packages are installed on: its wheels' platforms, and what markers ask about it."""

    platforms: tuple[str, ...]
    environment: Mapping[str, str]


def _linux(libc: str, minors: range, machine: str) -> Target:
    old = tuple(f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux"))
    platforms = tuple(f"{libc}_{minor}_{machine}" for minor in minors)
    return Target(
        platforms + (old if libc == "manylinux_2" else ()),
        {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine},
    )


def _mac(machine: str) -> Target:
    return Target(
        tuple(mac_platforms((26, 0), machine)),
        {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": machine},
    )


TARGETS: Mapping[str, Target] = {
    "linux-x86_64": _linux("manylinux_2", range(5, 43), "x86_64"),
    "linux-aarch64": _linux("manylinux_2", range(17, 43), "aarch64"),
    "musl-x86_64": _linux("musllinux_1", range(6), "x86_64"),
    "musl-aarch64": _linux("musllinux_1", range(6), "aarch64"),
    "mac-arm64": _mac("arm64"),
    "mac-x86_64": _mac("x86_64"),
    "windows-x86_64": Target(
        ("win_amd64",),
        {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
    ),
}


class Locked(NamedTuple):
    """A package in a lock file."""

    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]


def tags_of(target: Target, python: tuple[int, int]) -> frozenset[Tag]:
    """Return the tags of the wheels that pip would take there."""
    interpreter = "cp{}{}".format(*python)
    return frozenset(
        chain(
            cpython_tags(python, platforms=target.platforms),
            compatible_tags(python, interpreter, target.platforms),
        )
    )


def applies(marker: Marker | None, target: Target, python: tuple[int, int]) -> bool:
    """Tell whether a package with this marker is installed there."""
    version = "{}.{}".format(*python)
    of_python = {
        "python_version": version,
        "python_full_version": f"{version}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return marker is None or marker.evaluate({**target.environment, **of_python, "extra": ""})


def _lines(path: Path) -> Iterator[str]:
    """Yield what pip reads: lines without comments, those with a backslash joined."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text("utf-8"))
    yield from (line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip())


def options(path: Path) -> list[str]:
    """Return the lines that begin with a dash: what a file begins with, and what it demands of pip."""
    return [line for line in _lines(path) if line.startswith("-")]


def direct(name: str) -> list[Requirement]:
    """Return what people wrote into NAME.in."""
    return [Requirement(line) for line in _lines(ROOT / f"{name}.in") if not line.startswith("-")]


def behind(name: str) -> str | None:
    """Return the file that NAME.in begins with."""
    found = [option.split()[1].removesuffix(".in") for option in options(ROOT / f"{name}.in")]
    return found[0] if found else None


def locked(name: str, folder: Path = ROOT) -> list[Locked]:
    """Return the packages of NAME.txt, without those of the files before it."""
    found = []
    for line in _lines(folder / f"{name}.txt"):
        if line.startswith("-"):
            continue
        requirement = Requirement(re.sub(r"\s+--hash=\S+", "", line))
        version = str(requirement.specifier).removeprefix("==")
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)", line))
        found.append(Locked(canonicalize_name(requirement.name), version, requirement.marker, hashes))
    return found


def all_locked(name: str) -> list[Locked]:
    """Return the packages that ``pip install -r NAME.txt`` installs."""
    before = behind(name)
    return [*(all_locked(before) if before else ()), *locked(name)]


def wheels() -> dict[str, str]:
    """Return the file name for each hash."""
    rows = (line.split("  ", 1) for line in WHEELS.read_text("utf-8").splitlines())
    return {digest: name for digest, name in rows}


def tags_in(wheel: str) -> frozenset[Tag]:
    """Return the tags in a wheel's name; raise InvalidWheelFilename for any other file."""
    return parse_wheel_filename(wheel)[3]
