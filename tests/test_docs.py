"""The paper says what is true: settings, options, routes, files, commands and links are compared with the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from flask.testing import FlaskClient

import add_url
import config
import run
import web_server
from config import Settings
from redisConnect import Queue
from tests.mutations import MUTATIONS
from tests.test_layers import LEVELS
from web import create_app

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")
IN_DOCS = (
    "docs/api.md",
    "docs/architecture.md",
    "docs/backup.md",
    "docs/engines.md",
    "docs/deploy.md",
    "docs/deliver.md",
    "docs/backup.md",
    "docs/extras.md",
    "docs/features.md",
    "docs/performance.md",
    "docs/quality.md",
    "docs/reliability.md",
    "docs/scale.md",
    "docs/security.md",
    "docs/sources.md",
    "docs/supply_chain.md",
)
DOCS = (*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", *IN_DOCS, "demo/README.md")
EMPTY = {"README.md": "empty", "README.zh-CN.md": "空"}
FROM_ELSEWHERE = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```[a-z]*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """Return the cells of all table rows."""
    lines = (line for line in prose(text).splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# ------------------------------------------------------------------------------------------ settings


def default_text(name: str, readme: str) -> str:
    """Return how the table writes the default of a setting."""
    field = next(field for field, variable in config._VARIABLES.items() if variable == name)
    value = getattr(Settings(), field)
    if value in ("", (), None):
        return EMPTY[readme]
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, Path):
        value = value.relative_to(config.ROOT)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


@pytest.mark.parametrize("readme", READMES)
def test_every_setting_is_in_the_table_with_its_true_default(readme: str) -> None:
    named = [row for row in rows(text_of(readme)) if re.fullmatch("`[A-Z_]+`", row[0])]
    table = {row[0].strip("`"): row for row in named}
    assert set(table) == set(config.VARIABLES) and len(table) == len(named)
    assert {name: row[1] for name, row in table.items()} == {name: default_text(name, readme) for name in table}
    assert all(len(row) == 3 and row[2] for row in table.values())
    assert all(f"`{name}`" in text_of(readme) for name in FROM_ELSEWHERE)


@pytest.mark.parametrize("name", DOCS)
def test_nothing_that_looks_like_a_setting_is_none(name: str) -> None:
    mentioned = set(re.findall(r"\b(?:BILI|REDIS)_[A-Z_]+\b", text_of(name)))
    assert mentioned <= set(config.VARIABLES)


# ------------------------------------------------------------------------------------------ scripts and their options

SCRIPTS: dict[str, Callable[[list[str]], int]] = {
    "run.py": run.main,
    "add_url.py": add_url.main,
    "web_server.py": web_server.main,
}


def options_of(script: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        SCRIPTS[script](["--help"])
    return set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}


@pytest.mark.parametrize("readme", READMES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_documented_and_no_other(script: str, readme: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(script, capsys)
    assert options
    text = text_of(readme)
    assert {option for option in options if not re.search(rf"{option}\b", text)} == set()
    used = {option for line in commands(text) if script in line for option in re.findall(r" (--[a-z-]+)", line)}
    assert used <= options


def commands(text: str) -> list[str]:
    return [re.sub(r"\s+# .*", "", line) for block in code_blocks(text) for line in block.splitlines()]


@pytest.mark.parametrize("name", DOCS)
def test_every_command_names_something_that_is_there(name: str) -> None:
    text = text_of(name)
    for script in re.findall(r"\bpython3? ([\w./-]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"\bpython3? -m (demo[\w.]*)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for file in re.findall(r"pip install -r (\S+\.txt)", text):
        assert (ROOT / file).is_file() or f" > {file}\n" in text, file
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    said = re.findall(r"`make ([a-z-]+)", text) + [
        m[1] for line in commands(text) if (m := re.match(r"make (\S+)", line))
    ]
    assert set(said) <= targets


@pytest.mark.parametrize("readme", READMES)
def test_the_token_is_made_as_the_server_says(readme: str) -> None:
    command = re.search(r"command = '(python -c .*?)'", text_of("web_server.py"))
    assert command is not None
    assert command[1] in commands(text_of(readme))


@pytest.mark.parametrize("readme", READMES)
def test_the_readme_has_the_promise_and_the_two_commands(readme: str) -> None:
    text = text_of(readme)
    assert "execution at least once, recorded result exactly once" in " ".join(text.split())
    assert code_blocks(text)[0] == "make demo\nmake test\n"


# ------------------------------------------------------------------------------------------ two languages, one content


def test_both_readmes_have_the_same_headings_tables_and_commands() -> None:
    english, chinese = map(text_of, READMES)
    marks = [re.findall(r"^(#+) ", prose(text), re.MULTILINE) for text in (english, chinese)]
    assert marks[0] == marks[1]
    assert commands(english) == commands(chinese)
    firsts = [[row[0] for row in rows(text) if re.fullmatch("`[^`]+`", row[0])] for text in (english, chinese)]
    assert firsts[0] == firsts[1]
    assert len(rows(english)) == len(rows(chinese))
    bullets = [len(re.findall(r"^- ", prose(text), re.MULTILINE)) for text in (english, chinese)]
    assert bullets[0] == bullets[1]


def test_the_chinese_readme_is_chinese_and_promises_in_chinese() -> None:
    text = text_of("README.zh-CN.md")
    assert "不漏爬，不重爬" in text
    assert "至少执行一次，结果恰好记录一次" in text
    assert len(re.findall("[一-鿿]", text)) > 2500


# ------------------------------------------------------------------------------------------ the file map

FOLDERS = (
    "Download",
    "benchmarks",
    "delivery",
    "demo",
    "deploy",
    "docs",
    "ffmpeg",
    "locales",
    "sources",
    "static",
    "templates",
    "tests",
)
MADE_LATER = ("Download/",)
"""By the first worker."""


def mapped(readme: str) -> list[str]:
    return [row[0].strip("`") for row in rows(text_of(readme)) if re.fullmatch(r"`[\w./-]+(\.\w+|/|file)`", row[0])]


@pytest.mark.parametrize("readme", READMES)
def test_every_file_is_in_the_map(readme: str) -> None:
    patterns = ("*.py", "*.toml", "requirements*.txt", "Makefile", "working.json", "lua/*.lua")
    patterns += tuple(f"{folder}/*.py" for folder in ("merging", "store", "transfer"))
    files = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    files = {name for name in files if not name.endswith("__init__.py")}
    found = mapped(readme)
    assert len(found) == len(set(found))
    assert files | {f"{folder}/" for folder in FOLDERS} <= set(found)
    assert [name for name in found if not (ROOT / name).exists() and name not in MADE_LATER] == []


def test_the_levels_in_the_architecture_are_those_of_the_code() -> None:
    table = [row for row in rows(text_of("docs/architecture.md")) if re.match(r"\d ", row[0])]
    said = {int(row[0][0]): frozenset(re.findall(r"`(\w+)(?:\.py|/)`", row[1])) for row in table}
    assert said == dict(enumerate(LEVELS))


def test_the_keys_in_the_architecture_are_those_of_the_scripts() -> None:
    from store.data import COMMON_KEYS

    section = text_of("docs/architecture.md").partition("\n## Keys\n")[2].partition("\n## ")[0]
    said = [row[0].strip("`") for row in rows(section) if row[0].startswith("`")]
    assert set(said) == {
        *COMMON_KEYS,
        "answer:<token or request id>",
        "seen:<namespace>:<bucket>",
        "closed:<namespace>:<bucket>",
        "paged:<namespace>:<bucket>",
        "listed:<source>",
        "done:<bucket>",
        "record:<bucket>",
        "risk:<mark>",
        "budget:<group>",
        "members:<group>",
        "breaker:<group>",
        "breakers",
        "sampled",
        "history:<range>",
        "ended",
        "noticed",
        "notified:<hour>",
        "withheld",
        "orders",
        "actions",
        "tokens",
        "bound",
        "revoked",
        "join:<digest>",
        "wrong:<whose>",
        "shards",
        "settled:<request id>",
        "expansion:<name>",
        "next:<name>",
        "resharded",
        "waited",
        "archives",
    }


def test_the_walk_through_the_code_names_what_is_there() -> None:
    walk = text_of("CONTRIBUTING.md").partition("\n## A walk")[2].partition("\n## ")[0]
    names = {name.rpartition(".")[2] for name in re.findall(r"`([A-Za-z_]\w*(?:\.[a-z_]\w*)?)`", walk)} - {"py", "lua"}
    code = "\n".join(
        path.read_text("utf-8")
        for pattern in ("*.py", "extras/*.py", "merging/*.py", "store/*.py", "transfer/*.py", "web/*.py", "lua/*.lua")
        for path in ROOT.glob(pattern)
    )
    assert len(names) > 30
    assert {name for name in names if not re.search(rf"\b{name}\b", code)} == set()


# ------------------------------------------------------------------------------------------ the API


def make_app(queue: Queue | None = None) -> Flask:
    return create_app(Settings(), cast(Any, queue))


def routes_of(app: Flask) -> set[tuple[str, str]]:
    return {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_every_route_has_a_section_and_every_section_a_route() -> None:
    sections = re.findall(r"^### `(GET|POST) (/\S*)`$", text_of("docs/api.md"), re.MULTILINE)
    assert len(sections) == len(set(sections))
    assert set(sections) == routes_of(make_app())


def test_every_answer_in_the_api_is_json_and_every_route_has_an_example() -> None:
    text = text_of("docs/api.md")
    for block in re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        json.loads(block)
    for section in text.split("\n### ")[1:]:
        assert "\ncurl " in section, section.splitlines()[0]


CURL = re.compile(r"""^curl (?:-H "\$AUTH" )?(?:-H "\$JSON" -d '([^']*)' )?"?\$SERVER(/[^"\s]*)"?$""")


@pytest.fixture
def client(queue: Queue) -> FlaskClient:
    return make_app(queue).test_client()


def test_every_example_is_accepted(client: FlaskClient) -> None:
    lines = [line for line in commands(text_of("docs/api.md")) if line.startswith("curl ")]
    asked = set()
    for line in lines:
        example = CURL.match(line)
        assert example, line
        body, path = example.groups()
        answer = client.post(path, json=json.loads(body)) if body else client.get(path)
        # The tokens of the examples are nobody's, and so is the code.
        expected = 403 if path == "/join" else 409 if body and "token" in json.loads(body) else 200
        assert answer.status_code == expected, (line, answer.text)
        asked.add(("POST" if body else "GET", path.partition("?")[0]))
    assert asked == routes_of(client.application)


def test_an_example_that_is_wrong_is_refused(client: FlaskClient) -> None:
    assert client.post("/release", json={"url": "BV1xx411c7mD"}).status_code == 400


def test_the_statuses_of_the_api_are_those_that_the_server_gives() -> None:
    said = {int(row[0]) for row in rows(text_of("docs/api.md")) if re.fullmatch(r"[45]\d\d", row[0])}
    source = text_of("web_server.py")
    raised = {
        "BadRequest": 400,
        "Unauthorized": 401,
        "Forbidden": 403,
        "MethodNotAllowed": 405,
        "LengthRequired": 411,
        "UnsupportedMediaType": 415,
        "MisdirectedRequest": 421,
        "TooManyRequests": 429,
    }
    assert set(re.findall(r"raise (\w+)\(", source)) - {"UsageError", "ValueError"} <= set(raised)
    assert said == {*raised.values(), 404, 409, 413, 431, 500, 503}


# ------------------------------------------------------------------------------------------ links and words


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCS)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if target.startswith(("https://", "http://")):
            continue
        path, _mark, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


STRANGE = {
    "a path of somebody's machine": r"(?<![\w.])/(?:work|root|home|Users|tmp/\w)/",
    "a registry": r"pypi\.(?:org|python)|pythonhosted|artifactory|/simple/|npmjs|--index-url",
    "a ticket": r"(?i)\bissue #|\bticket #|\bF\d{1,2}\b",
    "a paper that is not here": r"\b(?:design|contract|mechanisms|(?<!docs/)reliability|field)\.md\b|\bshared/",
}


def strange(text: str) -> list[str]:
    return [what for what, pattern in STRANGE.items() if re.search(pattern, text)]


@pytest.mark.parametrize(
    "name", [*DOCS, "Makefile", "requirements.txt", "requirements-dev.txt", "requirements.in", "pyproject.toml"]
)
def test_the_paper_speaks_of_the_project_alone(name: str) -> None:
    assert strange(text_of(name)) == []


def test_the_code_speaks_of_the_project_alone() -> None:
    files = [
        path
        for pattern in ("*.py", "demo/*.py", "extras/*.py", "sources/*.py", "web/*.py", "lua/*.lua", "templates/*")
        for path in ROOT.glob(pattern)
    ]
    assert {path.name: found for path in files if (found := strange(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize("text", ["see /work/main", "pip --index-url x", "Issue #12", "as in F12", "see design.md"])
def test_strange_words_are_found(text: str) -> None:
    assert strange(text)


# ------------------------------------------------------------------------------------------ reliability


def named_in(name: str) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", text_of(f"tests/{name}"), re.MULTILINE))


def test_every_test_that_the_faults_name_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text_of("docs/reliability.md"))
    assert len(named) > 40
    assert [f"{file}::{test}" for file, test in named if test not in named_in(file)] == []


def test_the_table_of_breaks_is_the_list_of_breaks() -> None:
    listed = {row[0]: row[1] for row in rows(text_of("docs/reliability.md").partition("## Breaks")[2]) if len(row) == 2}
    del listed["break"]
    listed = {name: test for name, test in listed.items() if set(name) != {"-"}}
    assert listed == {
        one.name: ", ".join(f"`{test.removeprefix('tests/')}`" for test in one.tests) for one in MUTATIONS
    }


# ------------------------------------------------------------------------------------------ security


def test_every_threat_has_a_rule_a_place_and_tests_that_are_there() -> None:
    found = {row[0]: row[1:] for row in rows(text_of("docs/security.md")) if re.fullmatch(r"S[0-9]+", row[0])}
    assert list(found) == [f"S{number}" for number in range(1, 22)]
    for name, (threat, required, kept_in, tests) in found.items():
        assert threat and required, name
        places = [place for place in re.findall(r"`([^`]+)`", kept_in) if "/" in place or "." in place]
        assert places or "templates" in kept_in, name
        assert [place for place in places if not (ROOT / place).exists()] == [], name
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert named and tests == ", ".join(f"`{file}::{test}`" for file, test in named), name
        assert [f"{file}::{test}" for file, test in named if test not in named_in(file)] == [], name
