"""An account: where it comes from, where its cookies go, how it is kept, what is never shown of it."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import account
import private_file
from account import Account, Login, Scope, parse_cookies_txt
from config import Settings
from errors import UsageError

CANARY = "canary7f3a%2C1795000000%2Cab12c%2Ab1"
VALUES = {
    "SESSDATA": CANARY,
    "bili_jct": "canaryjct",
    "DedeUserID": "4711",
    "DedeUserID__ckMd5": "canarymd5",
    "sid": "s",
}
REAL = "https://api.bilibili.com/x/web-interface/nav"


def kept(settings: Settings, **more: object) -> Account:
    return replace(account.new_account(settings, VALUES, "canaryrefresh", 1000.0), **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ where cookies go


@pytest.mark.parametrize(
    ("url", "goes"),
    [
        ("https://api.bilibili.com/x", True),
        ("https://bilibili.com/", True),
        ("https://space.bilibili.com/1", True),
        ("https://API.BILIBILI.COM/x", True),
        ("https://api.bilibili.com:443/x", True),
        ("http://api.bilibili.com/x", False),
        ("https://api.bilibili.com:8443/x", False),
        ("https://api.bilibili.com.evil.example/x", False),
        ("https://evilbilibili.com/x", False),
        ("https://api.bilibili.com@evil.example/x", False),
        ("https://evil.example/?https://api.bilibili.com", False),
        ("https://api.bilibili.com./x", False),
        ("https://upos-sz-mirrorcos.bilivideo.com/x", False),
        ("https://i0.hdslb.com/x", False),
        ("https://b23.tv/x", False),
        ("ftp://api.bilibili.com/x", False),
        ("http://127.0.0.1:8090/api/x", True),
        ("http://127.0.0.1:8091/api/x", False),
        ("https://127.0.0.1:8090/api/x", False),
        ("http://127.0.0.1:9000/x", False),
        ("//api.bilibili.com/x", False),
        ("", False),
    ],
)
def test_cookies_go_to_the_site_over_https_and_to_stand_ins_that_are_named(url: str, goes: bool) -> None:
    settings = Settings(api_url="http://127.0.0.1:8090/api", short_url="http://127.0.0.1:9000", sessdata=CANARY)
    found = account.load(settings)
    assert found is not None
    assert (url in Scope(settings)) is goes
    assert (found.cookie_header(url) == f"SESSDATA={CANARY}") is goes
    assert goes or found.cookie_header(url) == ""


def test_a_setting_that_names_the_site_without_tls_gets_no_cookie() -> None:
    settings = Settings(api_url="http://api.bilibili.com", sessdata=CANARY)
    assert Account({"SESSDATA": CANARY}, "", Scope(settings)).cookie_header("http://api.bilibili.com/x") == ""


def test_all_cookies_of_a_login_go_together_and_what_renews_them_does_not(settings: Settings) -> None:
    header = kept(settings, unconfirmed="canaryold").cookie_header(REAL)
    assert header == "; ".join(f"{name}={value}" for name, value in VALUES.items())


# ------------------------------------------------------------------------------------------ where it comes from


def test_a_guest_has_none(settings: Settings) -> None:
    assert account.load(settings) is None


def cookies_txt(folder: Path, sessdata: str = CANARY) -> Path:
    path = folder / "cookies.txt"
    path.write_text(f".bilibili.com\tTRUE\t/\tTRUE\t0\tSESSDATA\t{sessdata}\n", "utf-8")
    return path


def test_the_setting_comes_before_the_file_and_the_file_before_the_login(settings: Settings, tmp_path: Path) -> None:
    account.save(settings, kept(settings))
    found = account.load(settings)
    assert found is not None and (found.origin, found.mid) == (account.BY_LOGIN, "4711")
    with_file = replace(settings, cookies=cookies_txt(tmp_path, "fromfile"))
    found = account.load(with_file)
    assert found is not None and (found.origin, found.values) == (account.BY_COOKIES, {"SESSDATA": "fromfile"})
    found = account.load(replace(with_file, sessdata="fromsetting"))
    assert found is not None and (found.origin, found.values) == (account.BY_SETTING, {"SESSDATA": "fromsetting"})


def test_a_cookies_txt_as_browsers_export_it() -> None:
    lines = [
        "\ufeff# Netscape HTTP Cookie File",
        "# This is a generated file! Do not edit.",
        "",
        f"#HttpOnly_.bilibili.com\tTRUE\t/\tTRUE\t1800000000\tSESSDATA\t{CANARY}",
        ".bilibili.com\tTRUE\t/\tFALSE\t1800000000.5\tbili_jct\tcanaryjct",
        "www.bilibili.com\tFALSE\t/\tFALSE\t0\tDedeUserID\t4711",
        ".bilibili.com\tTRUE\t/\tFALSE\t1700000000\tsid\tover",
        ".bilibili.com\tTRUE\t/\tFALSE\t0\tbuvid3\tsomething",
        ".biligame.com\tTRUE\t/\tFALSE\t0\tSESSDATA\tanother",
        ".evilbilibili.com\tTRUE\t/\tFALSE\t0\tSESSDATA\tanother",
        ".bilibili.com\tTRUE\t/\tFALSE\t0\tDedeUserID__ckMd5\ta;b",
        "not a line",
    ]
    found = {"SESSDATA": CANARY, "bili_jct": "canaryjct", "DedeUserID": "4711"}
    assert parse_cookies_txt("\r\n".join(lines), 1_750_000_000) == found
    assert parse_cookies_txt("\n".join(lines), 1_850_000_000) == {"DedeUserID": "4711"}


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"# Netscape HTTP Cookie File\n", "folder"])
def test_a_cookies_txt_without_a_login_is_said_before_anything_begins(tmp_path: Path, content: object) -> None:
    path = tmp_path / "cookies.txt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(UsageError, match=r"cookies\.txt"):
        account.load(Settings(cookies=path))


# ------------------------------------------------------------------------------------------ how it is kept


def test_a_login_is_kept_whole_and_for_nobody_else_to_read(settings: Settings) -> None:
    before = os.umask(0)
    try:
        account.save(settings, kept(settings))
        account.save(settings, kept(settings, unconfirmed="canaryold", checked=7.5))
    finally:
        os.umask(before)
    path = account.account_path(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert account.load(settings) == kept(settings, unconfirmed="canaryold", checked=7.5)
    assert [one.name for one in settings.data_dir.iterdir()] == ["account.json"]
    assert account.forget(settings) and not account.forget(settings)
    assert account.load(settings) is None and list(settings.data_dir.iterdir()) == []


def test_a_full_disk_leaves_the_login_before(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    account.save(settings, kept(settings))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(private_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        account.save(settings, kept(settings, checked=7.5))
    assert account.load(settings) == kept(settings)
    assert [one.name for one in settings.data_dir.iterdir()] == ["account.json"]


SOUND = {"cookies": VALUES, "refresh_token": "r", "unconfirmed": "", "checked": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "7", "null", "{}", "[" * 100_000, json.dumps(SOUND)[:-9]),
        *(json.dumps({**SOUND, "cookies": cookies}) for cookies in ([], {}, {"SESSDATA": 7}, {"SESSDATA": "a; b=c"})),
        *(json.dumps({**SOUND, "refresh_token": 7}), json.dumps({**SOUND, "checked": "soon"})),
    ],
)
def test_a_damaged_login_is_said_with_what_to_do(settings: Settings, content: str) -> None:
    settings.data_dir.mkdir()
    account.account_path(settings).write_text(content, "utf-8")
    with pytest.raises(UsageError, match=r"account\.json is damaged: log in again"):
        account.load(settings)


def test_nothing_of_it_has_a_repr(settings: Settings) -> None:
    shown = f"{kept(settings, unconfirmed='canaryold')!r} {kept(settings)} {Login(settings)!r}"
    assert "canary" not in shown and "4711" not in shown


# ------------------------------------------------------------------------------------------ the account in use


def test_another_login_is_used_as_soon_as_it_is_there(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    login = Login(settings)
    assert login.account() is None
    login.heard(False)
    assert login.problem == ""  # a guest has no login that could be over
    account.save(settings, kept(settings))
    assert login.account() == kept(settings)
    login.heard(False)
    assert "run.py --login" in login.problem
    account.save(settings, kept(settings, checked=2.0))
    assert login.account() == kept(settings, checked=2.0) and login.problem  # the same cookies are as dead as before
    account.save(settings, kept(settings, values={"SESSDATA": "another"}))
    assert login.account() is not None and login.problem == ""
    account.account_path(settings).write_text("damaged", "utf-8")
    assert login.account() is None and "damaged" in login.problem
    account.forget(settings)
    assert login.account() is None and login.problem == ""
    assert "canary" not in caplog.text


def test_an_account_has_the_same_short_name_on_all_machines_whatever_their_tokens(settings: Settings) -> None:
    name = account.digest_of("4711")
    assert re.fullmatch("[0-9a-f]{16}", name) and name != account.digest_of("4712")
    account.save(settings, kept(settings))
    for token in ("token", "another"):
        login = Login(replace(settings, token=token))
        login.account()
        assert login.digest == name
