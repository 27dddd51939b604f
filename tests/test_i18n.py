"""The Chinese catalogue fits the code, and everyone is answered in their own language."""

from __future__ import annotations

import ast
import gettext
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
from babel.messages.pofile import read_po

from config import Settings
from i18n import LOCALES, catalogue, languages
from locales import messages
from redisConnect import Queue
from web import create_app

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".", "delivery", "demo", "extras", "merging", "sources", "store", "transfer", "web")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def catalogue_on_disk() -> dict[str, str]:
    return {str(message.id): str(message.string) for message in messages.read() if message.id}


# ------------------------------------------------------------------------------------------ the catalogue


def test_every_sentence_of_the_code_is_translated_and_no_other() -> None:
    sentences = {sentence for sentence, _name, _line in messages.extracted()}
    assert len(sentences) > 300
    assert sentences ^ catalogue_on_disk().keys() == set(), "run: make messages"
    assert [sentence for sentence, chinese in catalogue_on_disk().items() if not CHINESE.search(chinese)] == []


def test_nothing_is_fuzzy_or_obsolete_and_the_words_are_explained() -> None:
    catalogue = messages.read()
    assert [message.id for message in catalogue if message.id and message.fuzzy] == []
    assert not catalogue.obsolete
    assert "worker 工作进程" in catalogue.header_comment


def test_the_compiled_catalogue_is_that_of_the_text() -> None:
    assert messages.compiled(messages.updated(messages.read())) == messages.MO.read_bytes(), "run: make messages"
    with messages.MO.open("rb") as file:
        known = gettext.GNUTranslations(file)
    assert {sentence: known.gettext(sentence) for sentence in catalogue_on_disk()} == catalogue_on_disk()


def test_the_text_has_no_dates_and_no_line_numbers() -> None:
    text = messages.PO.read_text("utf-8")
    assert not re.search(r"-Date:|Generated-By|^#: .*:\d", text, re.MULTILINE)


def placeholders(sentence: str) -> tuple[list[str], list[str], list[str]]:
    """Return the fields for format(), in any order, those for %, and those for % with a name, in any order."""
    parsed = list(string.Formatter().parse(sentence))
    braces = [f"{{{name}!{conversion}:{spec}}}" for _text, name, spec, conversion in parsed if name is not None]
    percents = re.findall(r"%(?:\(\w+\))?[-+#0]*\d*(?:\.\d+)?[a-zA-Z%]", sentence)
    named = [field for field in percents if "(" in field]
    return sorted(braces), [field for field in percents if field not in named], sorted(named)


def test_the_placeholders_agree() -> None:
    pairs = catalogue_on_disk().items()
    assert [pair for pair in pairs if placeholders(pair[0]) != placeholders(pair[1])] == []
    # A full-width mark joins two pieces without a blank; a line's end belongs to the sentence.
    assert [chinese for _sentence, chinese in pairs if chinese.strip(" ") != chinese] == []


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("{a} and {b}", "{a}"),
        ("{a:.1f}", "{a}"),
        ("{a}", "{b}"),
        ("%s: %d", "%d: %s"),
        ("%.1f s", "%f s"),
        ("%(a)s", "%(b)s"),
    ],
)
def test_a_wrong_placeholder_is_noticed(sentence: str, wrong: str) -> None:
    assert placeholders(sentence) != placeholders(wrong)


def test_a_new_sentence_is_added_and_the_others_keep_their_translation(tmp_path: Path) -> None:
    """`make messages` in a small project of its own, called from elsewhere."""
    project = tmp_path / "project"
    shutil.copytree(LOCALES, project / "locales")
    (project / "demo").mkdir()
    (project / "templates").mkdir()
    (project / "demo" / "new.py").write_text('print(_("Of today").format(), _("ready"))\n')
    (project / "templates" / "page.html").write_text('<p title="{{ _("Machines") }}">{{ speak("x") }}</p>\n')
    po = project / "locales" / "zh_CN" / "LC_MESSAGES" / "bili.po"

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(project / "locales" / "messages.py")]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 without a translation\n  Of today" in done.stdout
    with po.open("rb") as file:
        now = {message.id: message.string for message in read_po(file) if message.id}
    assert now == {"Of today": "", "ready": "等待中", "Machines": "机器"} | {
        sentence: catalogue_on_disk()[sentence] for sentence in messages.ARGPARSE
    }

    first = po.read_bytes(), po.with_suffix(".mo").read_bytes()
    (project / "demo" / "new.py").write_text('\n\nprint(_("Of today").format(), _("ready"))\n')
    run()
    assert (po.read_bytes(), po.with_suffix(".mo").read_bytes()) == first
    po.write_text(
        po.read_text("utf-8").replace('msgid "Of today"\nmsgstr ""', 'msgid "Of today"\nmsgstr "今天的"'), "utf-8"
    )
    assert "0 without a translation" in run().stdout


# ------------------------------------------------------------------------------------------ the code


def unextractable(source: str) -> list[str]:
    """Return the calls of _() whose sentence the extractor cannot see, or would not find again at run time."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id == "_"
        and not (len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str))
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_sentence_is_written_out_where_it_is_translated(path: Path) -> None:
    assert unextractable(path.read_text("utf-8")) == []


@pytest.mark.parametrize("source", ['_(f"{x} is gone")', "_(word)", '_("a" + b)', '_("{x}".format(x=1))'])
def test_a_sentence_that_cannot_be_found_is_noticed(source: str) -> None:
    assert unextractable(source)


SPEAKERS = {"print", "say", "sys.exit", *(f"log.{level}" for level in ("info", "warning", "error", "exception"))}


def unwrapped(source: str) -> list[str]:
    """Return the texts of two words or more that are raised, logged, printed or given to argparse without _()."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    said = [call.args[0] for call in calls if call.args and ast.unparse(call.func) in SPEAKERS]
    said += [call.args[0] for call in raised if isinstance(call, ast.Call) and call.args]
    said += [one.value for call in calls for one in call.keywords if one.arg in ("help", "description", "epilog")]
    found = []
    for node in said:
        pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(piece.value) for piece in pieces if isinstance(piece, ast.Constant))
        if re.search("[a-z]+ [a-z]+", text):
            found.append(text)
    return found


FOR_PROGRAMMERS = {"a plan has either DASH streams or segments", "counting has no end"}
SILENT = {"transfer/range_client.py"}
"""What its errors mean to people, transfer/media_client.py says."""
SPEAKS_TO_PEOPLE = [
    *(path for path in ROOT.glob("*.py") if path.name not in SILENT),
    *(ROOT / "sources").glob("*.py"),
    *(ROOT / "demo" / name for name in ("run_demo.py", "process.py", "site.py")),
]


@pytest.mark.parametrize("path", sorted(SPEAKS_TO_PEOPLE), ids=lambda path: path.name)
def test_what_a_user_reads_can_be_translated(path: Path) -> None:
    assert set(unwrapped(path.read_text("utf-8"))) - FOR_PROGRAMMERS == set()


@pytest.mark.parametrize(
    "source",
    [
        'log.info("it is gone")',
        'raise UsageError(f"{x} is missing here")',
        'raise DiskFull("no room left") from None',
        'p.add_argument("--x", help="what it does")',
        'print("all is done")',
    ],
)
def test_a_sentence_in_english_only_is_noticed(source: str) -> None:
    assert unwrapped(source)


# ------------------------------------------------------------------------------------------ whose language


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LANGUAGE": "a", "LC_ALL": "b", "LC_MESSAGES": "c", "LANG": "d"}, ["a"]),
        ({"LC_ALL": "b", "LC_MESSAGES": "c", "LANG": "d"}, ["b"]),
        ({"LANGUAGE": "", "LC_ALL": "", "LC_MESSAGES": "c", "LANG": "d"}, ["c"]),
        ({"LANG": "zh_CN.UTF-8"}, ["zh_CN.UTF-8"]),
        ({"LANGUAGE": "en_US:zh", "LANG": "zh_CN.UTF-8"}, ["en_US", "zh"]),
        ({"LC_CTYPE": "zh_CN.UTF-8", "LANG": "en_GB"}, ["en_GB"]),
    ],
)
def test_the_variables_are_read_in_the_order_of_gettext(environ: dict[str, str], expected: list[str]) -> None:
    assert languages(environ) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows asks its user interface")
def test_nothing_set_is_english() -> None:
    assert languages({}) == ["en"]


@pytest.mark.parametrize("name", ["zh", "zh_CN", "zh_CN.UTF-8", "zh_TW", "zh-Hant-HK", "zh_SG@pinyin", "ZH_cn"])
def test_any_chinese_is_chinese(name: str) -> None:
    assert catalogue([name]).gettext("Machines") == "机器"


@pytest.mark.parametrize(
    "names", [["en"], ["en_US", "zh"], ["C"], ["C.UTF-8", "zh_CN"], ["POSIX"], ["fr_FR"], [""], [], ["zha"], ["../zh"]]
)
def test_all_others_are_english(names: list[str]) -> None:
    assert catalogue(names).gettext("Machines") == "Machines"


def test_the_first_known_language_counts() -> None:
    assert catalogue(["fr_FR", "zh_CN", "en"]).gettext("Machines") == "机器"
    assert catalogue(["fr_FR", "en", "zh_CN"]).gettext("Machines") == "Machines"


def output(folder: Path, *command: str, **language: str) -> str:
    """Return what a script writes on both outputs, in its own environment."""
    unwanted = ("LANG", "LC_", "BILI_", "REDIS_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    ours = {"BILI_DATA_DIR": str(folder), "BILI_TOKEN": "", "REDIS_URL": "", "BILI_SERVER_URL": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        env=kept | ours | {"PYTHONUTF8": "1"} | language,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=40,
    )
    return (done.stdout + done.stderr).decode("utf-8")


SCRIPTS = {
    ("run.py", "--help"): ("usage: run.py", "选项:", "working.json 控制", "--until-empty"),
    ("run.py", "--wait", "soon"): ("错误：参数 --wait", "soon"),
    ("add_url.py", "--help"): ("usage: add_url.py", "位置参数:", "示例：", "已入队", "grep -o"),
    ("add_url.py", "nonsense"): ("已拒绝 nonsense：应为 BV 号", "added 0, known 0, rejected 1"),
    ("web_server.py", "--host", "0.0.0.0"): ("必须有口令", "BILI_TOKEN", "0.0.0.0"),
    ("web_server.py", "--port", "x"): ("错误：参数 --port：端口是 0 到 65535",),
}


@pytest.mark.parametrize("command", SCRIPTS, ids=" ".join)
def test_a_script_speaks_chinese_to_a_chinese_user(command: tuple[str, ...], tmp_path: Path) -> None:
    said = output(tmp_path, *command, LANGUAGE="zh_CN")
    for words in SCRIPTS[command]:
        assert words in said
    machine_readable = r"added \d.*|usage:.*"
    prose = [
        one for one in said.splitlines() if re.match("[A-Z][a-z]+ [a-z]+ ", one) and not re.match(machine_readable, one)
    ]
    assert prose == []


@pytest.mark.parametrize("command", SCRIPTS, ids=" ".join)
def test_a_script_speaks_english_to_all_others(command: tuple[str, ...], tmp_path: Path) -> None:
    said = output(tmp_path, *command, LANG="C")
    assert len(said) > 50
    assert not CHINESE.search(said)


def test_a_terminal_that_cannot_show_chinese_gets_it_escaped(tmp_path: Path) -> None:
    said = output(tmp_path, "run.py", "--help", LANGUAGE="zh_CN", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert "--until-empty" in said and "\\u" in said


@pytest.mark.parametrize(
    ("accepted", "chinese"),
    [("zh-CN,zh;q=0.9", True), ("zh-TW", True), ("fr,zh;q=0.5", True), ("en-GB,zh;q=0.9", False), ("fr", False)],
)
def test_the_dashboard_speaks_the_language_of_its_reader(
    queue: Queue, settings: Settings, accepted: str, chinese: bool
) -> None:
    answer = create_app(settings, queue).test_client().get("/", headers={"Accept-Language": accepted})
    assert ("机器" in answer.text, "Machines" in answer.text) == (chinese, not chinese)
    visible = re.sub(r"<a\b[^>]* lang=.*?</a>", " ", answer.text)  # each language is named in its own words
    visible = re.sub(r"<(code|script)\b.*?</\1>|<[^>]*>", " ", visible, flags=re.DOTALL)
    words = set(re.findall("[A-Za-z]{3,}", visible)) - {"Bilibili", "JavaScript", "Redis", "AOF", "appendonly", "yes"}
    assert bool(words) is not chinese, words
    assert bool(CHINESE.search(visible)) is chinese
