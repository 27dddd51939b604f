"""Joining a machine: what a code looks like, what is kept, what later starts make of it, and what goes wrong."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import run
import web_server
from certificates import self_made
from config import Settings, parse_settings
from errors import DownloaderError, UsageError
from joining import Invitation, Membership, join, membership_path, read_invitation, read_membership, with_membership
from tests.sealed import CODE, TOKEN, Sealed, serving

PIN = "ab" * 32


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BILI_SERVER_URL", "BILI_TOKEN", "BILI_SERVER_PIN", "BILI_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BILI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(run.config, "ROOT", tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sealed]:
    with serving(self_made(tmp_path / "server", "127.0.0.1")) as started:
        yield started


@pytest.fixture
def mine(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


# ------------------------------------------------------------------------------------------ what was shown


@pytest.mark.parametrize(
    ("text", "url", "pin"),
    [
        ("ABCD-EF01@192.0.2.1", "http://192.0.2.1:8080", ""),
        ("ABCD-EF01@192.0.2.1:9000", "http://192.0.2.1:9000", ""),
        ("abcdef01@farm.example", "http://farm.example:8080", ""),
        (" ABCD-EFOL@[2001:db8::1] ", "http://[2001:db8::1]:8080", ""),
        ("ABCD-EFoi@[2001:db8::1]:81/farm/", "http://[2001:db8::1]:81/farm", ""),
        ("ABCD-EF01@http://farm.example", "http://farm.example", ""),
        ("ABCD-EF01@https://farm.example", "https://farm.example", ""),
        (f"ABCD-EF01@https://farm.example:1#{PIN.upper()}", "https://farm.example:1", PIN),
    ],
)
def test_what_a_person_was_shown_is_read(text: str, url: str, pin: str) -> None:
    assert read_invitation(text) == Invitation("ABCD-EF01", url, pin)
    assert "ABCD" not in repr(read_invitation(text))


@pytest.mark.parametrize(
    "text",
    [
        *("", "ABCD-EF01", "ABCD-EF01@", "@host", "ABCD-EF0@host", "ABCD-EFU1@host", "ABCD-EF01@ftp://host"),
        *("ABCD-EF01@a@b", "ABCD-EF01@host:port", "ABCD-EF01@host:0", "ABCD-EF01@https://host#ab", "ABCD-EF01@a,b"),
        *("ABCD-EF01@ho\x1bst", "ABCD-EF01@https://", "ABCD-EF01@host:99999"),
    ],
)
def test_what_is_no_code_with_an_address_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_invitation(text)
    assert "\n" not in str(caught.value) and "ABCD-EFGH@" in str(caught.value)


# ------------------------------------------------------------------------------------------ joining


def test_a_machine_joins_and_later_starts_know_it(
    server: Sealed, mine: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.main(["--join", f"{CODE.lower()}@{server.url}#{server.pin}"]) == 0
    said = capsys.readouterr()
    assert "python run.py" in said.out and TOKEN not in said.out + said.err
    path = membership_path(mine)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"server_url": server.url, "token": TOKEN, "pin": server.pin}
    assert len(server.application.workers) == 1 and server.application.tokens == set()
    started: list[Settings] = []

    async def lay(settings: Settings) -> int:
        started.append(settings)
        return 0

    monkeypatch.setattr(run, "_lay_extras", lay)
    assert run.main(["--extras"]) == 0
    assert (started[0].server_urls, started[0].token) == ((server.url,), TOKEN)
    assert started[0].server_pins == (server.pin,)
    monkeypatch.setattr(web_server, "show_status", lambda settings, _as_json: started.append(settings))
    assert web_server.main(["--status"]) == 0
    assert started[1] == started[0]


def test_a_worker_is_called_as_the_settings_say(
    server: Sealed, mine: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILI_WORKER", "阁楼")
    assert run.main(["--join", f"{CODE}@{server.url}#{server.pin}"]) == 0
    assert server.application.workers == ["阁楼"]


def test_settings_that_come_first_are_said(
    server: Sealed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILI_TOKEN", "other")
    assert run.main(["--join", f"{CODE}@{server.url}#{server.pin}"]) == 0
    assert "BILI_TOKEN of the settings come first" in capsys.readouterr().out


def test_in_the_middle_nobody_sees_the_code(server: Sealed, tmp_path: Path, mine: Settings) -> None:
    with serving(self_made(tmp_path / "attacker", "127.0.0.1")) as attacker:
        for pin, sentence in ((server.pin, "shows another certificate"), ("", "not trusted")):
            with pytest.raises(DownloaderError, match=sentence) as caught:
                join(mine, Invitation(CODE, attacker.url, pin), "w")
            assert "\n" not in str(caught.value)
        assert attacker.application.seen == [] and read_membership(mine) is None


def test_a_code_is_good_once(server: Sealed, capsys: pytest.CaptureFixture[str]) -> None:
    invitation = f"{CODE}@{server.url}#{server.pin}"
    assert run.main(["--join", invitation]) == 0
    capsys.readouterr()
    assert run.main(["--join", invitation]) == 2
    said = capsys.readouterr().err
    assert "does not let this machine join" in said and said.count("\n") == 1 and CODE not in said


@pytest.mark.parametrize(
    ("status", "content", "sentence"),
    [
        ("403 Forbidden", "{}", "not let this machine join: the code is mistyped, was used, or is too old"),
        ("403 Forbidden", '{"error": "the name w\\u001b is taken"}', "not let this machine join: the name w is taken"),
        ("429 Too Many Requests", '{"error": "slowly"}', "wait a minute"),
        ("503 Service Unavailable", '{"error": "Redis is \\u001b[2J away"}', "HTTP 503 Redis is"),
        ("404 Not Found", '{"error": "no such page"}', "no queue server that can be joined"),
        ("200 OK", "<html>", "no queue server that can be joined"),
        ("200 OK", "[" * 100_000, "no queue server that can be joined"),
        ("200 OK", '{"token": "t", "role": "admin", "id": "1"}', "no queue server that can be joined"),
        ("200 OK", '{"token": "t\\r\\nX: y", "role": "worker", "id": "1"}', "no queue server that can be joined"),
        ("200 OK", '{"token": "", "role": "worker", "id": "1"}', "no queue server that can be joined"),
        ("302 Found", '{"error": 7}', "no queue server that can be joined"),
    ],
)
def test_each_refusal_is_one_sentence(mine: Settings, status: str, content: str, sentence: str) -> None:
    with serving(None) as server:
        server.application.answer = (status, content.encode())
        with pytest.raises(DownloaderError, match=sentence) as caught:
            join(mine, Invitation(CODE, server.url), "w")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert read_membership(mine) is None


def test_a_server_that_is_not_there_is_one_sentence(server: Sealed, mine: Settings) -> None:
    for url, pin in (("http://127.0.0.1:1", ""), ("https://127.0.0.1:1", PIN), (server.url.replace("s:", ":"), "")):
        with pytest.raises(DownloaderError, match=r"is web_server\.py running there") as caught:
            join(mine, Invitation(CODE, url, pin), "w")
        assert "\n" not in str(caught.value)


def test_a_pin_needs_tls(server: Sealed, mine: Settings) -> None:
    with pytest.raises(UsageError, match="must begin with https://"):
        join(mine, Invitation(CODE, server.url.replace("https:", "http:"), server.pin), "w")


def test_a_code_is_not_used_up_where_its_token_could_not_be_kept(server: Sealed, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="BILI_DATA_DIR"):
        join(Settings(data_dir=tmp_path / "file" / "data"), Invitation(CODE, server.url, server.pin), "w")
    if Path("/proc/self").is_dir():  # a folder that is there, and takes no file
        with pytest.raises(UsageError, match="BILI_DATA_DIR"):
            join(Settings(data_dir=Path("/proc/self")), Invitation(CODE, server.url, server.pin), "w")
    assert server.application.seen == []


def test_a_code_that_goes_in_clear_text_is_warned_of(
    mine: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "join", lambda *_arguments: None)
    for address, is_warned in (("192.0.2.1", True), ("127.0.0.1:8080", False), ("https://192.0.2.1", False)):
        caplog.clear()
        assert run.main(["--join", f"{CODE}@{address}"]) == 0
        assert any("clear text" in message for message in caplog.messages) == is_warned


# ------------------------------------------------------------------------------------------ what is kept

KEPT = {"server_url": "https://farm.example", "token": "bili_worker_x", "pin": PIN}


def keep(mine: Settings, **other: object) -> None:
    path = membership_path(mine)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(KEPT | other))


def test_settings_of_the_environment_win(mine: Settings) -> None:
    keep(mine)
    assert read_membership(mine) == Membership("https://farm.example", "bili_worker_x", PIN)
    assert "bili_worker_x" not in repr(read_membership(mine))
    joined = with_membership(mine, {"BILI_SERVER_URL": ""})
    assert (joined.server_urls, joined.token, joined.server_pins) == (
        ("https://farm.example",),
        "bili_worker_x",
        (PIN,),
    )
    named = Settings(data_dir=mine.data_dir, token="own", server_pins=("0" * 64,))
    joined = with_membership(named, {})
    assert (joined.token, joined.server_pins) == ("own", ("0" * 64,))
    assert "bili_worker_x" not in repr(with_membership(mine, {}))


def test_a_pin_of_the_settings_needs_a_server_with_a_certificate(mine: Settings) -> None:
    pinned = parse_settings({"BILI_SERVER_PIN": "0" * 64, "BILI_DATA_DIR": str(mine.data_dir)})
    with pytest.raises(UsageError, match="BILI_SERVER_PIN"):
        with_membership(pinned, {})
    keep(mine)
    assert with_membership(pinned, {}).server_pins == ("0" * 64,)
    keep(mine, server_url="http://192.0.2.1:8080", pin="")
    with pytest.raises(UsageError, match="BILI_SERVER_PIN"):
        with_membership(pinned, {})


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "https://other.example", "https://farm.example,https://b"])
def test_a_token_goes_to_no_other_server(mine: Settings, url: str) -> None:
    keep(mine)
    named = Settings(data_dir=mine.data_dir, server_urls=tuple(url.split(",")))
    assert with_membership(named, {"BILI_SERVER_URL": url}) == named


def test_the_joined_server_may_be_named_once_more(mine: Settings) -> None:
    keep(mine)
    named = Settings(data_dir=mine.data_dir, server_urls=("https://farm.example",))
    assert with_membership(named, {"BILI_SERVER_URL": "https://farm.example/"}).token == "bili_worker_x"


@pytest.mark.parametrize(
    "other",
    [
        {"server_url": "ftp://x"},
        {"server_url": "http://farm.example"},
        {"token": ""},
        {"token": "a\nb"},
        {"token": 7},
        {"pin": "ab"},
        {"more": "x" * 100_000},
    ],
)
def test_a_damaged_file_is_named(mine: Settings, other: dict[str, object]) -> None:
    keep(mine, **other)
    with pytest.raises(UsageError, match=r"server\.json is damaged"):
        with_membership(mine, {})


def test_where_nothing_was_joined_nothing_changes(mine: Settings) -> None:
    assert with_membership(mine, {}) == mine
