"""Who is measured, and how each is told to do the same work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Finished, Sample, difference, run_process

HERE = Path(__file__).resolve().parent
MIB = 1 << 20

INSTALL = {
    "aria2c": "apt-get install aria2",
    "curl": "apt-get install curl",
    "nginx": "apt-get install nginx-light",
    "yt-dlp": "pip install yt-dlp",
    "yutto": "pip install yutto==2.3.1",
}
"""What installs each peer."""

_VERSION = {"aria2c": "--version", "curl": "--version", "nginx": "-v", "yt-dlp": "--version", "yutto": "--version"}


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it is served: at which addresses, and what must arrive."""

    urls: tuple[str, ...]
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Task:
    """Files to download at the same time over ``connections``, within a time; ``ca_file`` is trusted for TLS."""

    sources: tuple[Source, ...]
    connections: int = 16
    limit_seconds: float = 120.0
    ca_file: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of our worker."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Where the installed peers are, and the tree of the product that is measured."""

    found: Mapping[str, str]
    product: Path

    @classmethod
    def find(cls, folders: Sequence[str], product: Path) -> Peers:
        """Look for the peers in some folders, then in PATH."""
        path = os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin"])
        found = {name: where for name in INSTALL if (where := shutil.which(name, path=path))}
        return cls(found, product)

    def versions(self) -> dict[str, str]:
        """Return what each peer says of its version; for a missing one, the command that installs it."""
        said = {}
        for name, install in INSTALL.items():
            if where := self.found.get(name):
                done = subprocess.run([where, _VERSION[name]], capture_output=True, text=True, timeout=60, check=False)
                lines = (done.stdout + done.stderr).strip().splitlines()
                said[name] = lines[0].strip()[:60] if lines else "installed"
            else:
                said[name] = f"missing: {install}"
        return said


def clean_environ(**more: str) -> dict[str, str]:
    """Return the environment without settings of a user or of Python, proxies or CA files.

    PYTHONDONTWRITEBYTECODE would have our own modules compiled at each start, while those of installed peers are not.
    """
    unwanted = ("BILI_", "REDIS_", "SSL_CERT", "REQUESTS_CA", "CURL_CA", "YTDLP", "YUTTO", "PYTHON")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and not name.lower().endswith("_proxy")
    }
    return {**kept, "LANGUAGE": "en", "PYTHONPATH": str(HERE.parent), **more}


def run_ours(peers: Peers, task: Task, folder: Path) -> Sample:
    """Let our worker's download do a task."""
    streams = folder / "streams.json"
    streams.write_text(json.dumps([source.urls for source in task.sources]), "utf-8")
    command = [sys.executable, str(HERE / "ours.py"), str(peers.product), str(folder / "parts"), str(task.connections)]
    environ = clean_environ(**task.settings, PYTHONPATH="")
    if task.ca_file:
        environ["SSL_CERT_FILE"] = task.ca_file
    done = run_process(["sh", "-c", 'exec "$0" "$@" < streams.json', *command], environ, folder, task.limit_seconds)
    paths = [] if done.problem else [Path(path) for path in json.loads(done.output)["paths"]]
    return _judged(done, task, paths, _figures(done))


def run_floor(peers: Peers, task: Task, folder: Path) -> Sample:
    """Let the floor do a task of one file."""
    [source] = task.sources
    arguments = [source.urls[0], str(source.size_bytes), str(folder / "file"), str(task.connections), task.ca_file]
    return _run_script("floor.py", arguments, task, folder)


def run_reference(peers: Peers, task: Task, folder: Path) -> Sample:
    """Download in the reference's way."""
    [source] = task.sources
    return _run_script(
        "reference.py", [source.urls[0], str(folder / "file"), str(task.connections), task.ca_file], task, folder
    )


def _run_script(script: str, arguments: list[str], task: Task, folder: Path) -> Sample:
    done = run_process([sys.executable, str(HERE / script), *arguments], clean_environ(), folder, task.limit_seconds)
    return _judged(done, task, [folder / "file"], _figures(done))


def run_aria2c(peers: Peers, task: Task, folder: Path) -> Sample:
    """Let aria2c do a task: its own 16 connections for one file, or as many files at once for several."""
    lines = []
    for number, source in enumerate(task.sources):
        lines += ["\t".join(source.urls), f"  out=file{number}"]
    (folder / "uris").write_text("\n".join(lines) + "\n", "utf-8")
    at_once = min(task.connections, len(task.sources))
    each = max(1, task.connections // at_once)
    command = [peers.found["aria2c"], "--no-conf", "-q", "-i", "uris", "-d", str(folder), f"-j{at_once}"]
    command += [f"-x{min(16, each)}", f"-s{each}", "-k10M", "--file-allocation=none", "--max-tries=0"]
    if task.ca_file:
        command.append(f"--ca-certificate={task.ca_file}")
    done = run_process(command, clean_environ(), folder, task.limit_seconds)
    return _judged(done, task, [folder / f"file{number}" for number in range(len(task.sources))])


def run_curl(peers: Peers, task: Task, folder: Path) -> Sample:
    """Download over one connection, without ranges."""
    [source] = task.sources
    command = [peers.found["curl"], "-q", "-s", "-S", "-f", "-o", str(folder / "file")]
    if task.ca_file:
        command += ["--cacert", task.ca_file]
    done = run_process([*command, source.urls[0]], clean_environ(), folder, task.limit_seconds)
    return _judged(done, task, [folder / "file"])


def run_yt_dlp(peers: Peers, task: Task, folder: Path) -> Sample:
    """Let the generic extractor of yt-dlp download a plain address: one connection, as it does with the real site."""
    [source] = task.sources
    command = [peers.found["yt-dlp"], "--ignore-config", "-q", "--no-progress", "--force-overwrites", "-o", "file"]
    environ = clean_environ(PYTHONPATH="", **({"SSL_CERT_FILE": task.ca_file} if task.ca_file else {}))
    done = run_process([*command, source.urls[0]], environ, folder, task.limit_seconds)
    return _judged(done, task, [folder / "file"])


RUNS = {
    "ours": run_ours,
    "floor": run_floor,
    "aria2c": run_aria2c,
    "curl": run_curl,
    "reference": run_reference,
    "yt-dlp": run_yt_dlp,
}
"""How each contender downloads from plain addresses. yutto takes addresses of the site only."""


def _figures(done: Finished) -> dict[str, float]:
    if done.problem:
        return {}
    return {name: value for name, value in json.loads(done.output).items() if isinstance(value, float)}


def _judged(done: Finished, task: Task, paths: Sequence[Path], figures: Mapping[str, float] | None = None) -> Sample:
    """Return the sample of a run whose files are looked at, byte for byte."""
    problem = done.problem
    if not problem:
        differences = (
            difference(path, source.size_bytes, source.digest) for path, source in zip(paths, task.sources, strict=True)
        )
        problem = next((one for one in differences if one), "")
    return Sample(done.wall_seconds, done.cpu_seconds, done.peak_rss_bytes, figures or {}, problem)
