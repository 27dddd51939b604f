"""Settings and working.json: what is accepted, and what the error says where it is not."""

from __future__ import annotations

import json
import os
import ssl
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

import config
from config import (
    EXTRAS,
    VARIABLES,
    Settings,
    category_problem,
    load,
    parse_settings,
    parse_speed,
    parse_working,
    tls_context,
)
from errors import UsageError
from model import BEST, Wishes, Working

# ------------------------------------------------------------------------------------------ settings


def test_without_any_setting_there_are_the_documented_defaults() -> None:
    settings = parse_settings({}, Path("/srv/farm"))
    assert settings.server_url == "http://127.0.0.1:8080"
    assert settings.download_dir == Path("/srv/farm/Download")
    assert settings.data_dir == Path("/srv/farm/.data")
    assert settings.working_file == Path("/srv/farm/working.json")
    assert (settings.lease_seconds, settings.affinity_seconds, settings.shards) == (60.0, 120.0, 1)
    assert settings.category == "other"


def test_relative_paths_are_relative_to_the_scripts_and_absolute_ones_stay(tmp_path: Path) -> None:
    values = {"BILI_DOWNLOAD_DIR": "videos", "BILI_DATA_DIR": str(tmp_path)}
    settings = parse_settings(values, Path("/srv/farm"))
    assert settings.download_dir == Path("/srv/farm/videos")
    assert settings.data_dir == tmp_path


def test_the_environment_wins_over_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BILI_CATEGORY=fromfile\nBILI_WORKER=filed\n", "utf-8")
    settings = load({"BILI_CATEGORY": "fromenv"}, tmp_path)
    assert (settings.category, settings.worker) == ("fromenv", "filed")


@pytest.mark.skipif(sys.platform == "win32", reason="rights are others there")
@pytest.mark.parametrize(("content", "mode"), [(b"BILI_CATEGORY=\xff\n", 0o644), (b"", 0)])
def test_a_dotenv_that_cannot_be_read_is_named(content: bytes, mode: int) -> None:
    """As that of another user in ``/opt/bili``: no traceback, which systemd would repeat for ever."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ".env")
        path.parent.chmod(0o755)
        path.write_bytes(content)
        path.chmod(mode)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(UsageError, match=r"\.env cannot be read: "):
                load({}, path.parent)
        finally:
            if is_root:
                os.seteuid(0)


@pytest.mark.parametrize(
    ("text", "extras"),
    [("", ("tags",)), ("none", ()), ("all", EXTRAS), ("all,nfo", EXTRAS), (",subtitles,", ("subtitles",))],
)
def test_extras_are_named_and_there_are_all_and_none(text: str, extras: tuple[str, ...]) -> None:
    assert parse_settings({"BILI_EXTRAS": text}).extras == extras


@pytest.mark.parametrize("text", ["none,nfo", "lyrics", "danmaku;nfo"])
def test_what_is_no_extra_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="BILI_EXTRAS="):
        parse_settings({"BILI_EXTRAS": text})


def test_all_wrong_settings_are_named_in_one_error() -> None:
    wrong = {
        "REDIS_URL": "http://:topsecret@host",
        "BILI_SERVER_URL": "not an address",
        "BILI_TOKEN": "line\nbreak-topsecret",
        "BILI_LEASE_SECONDS": "soon",
        "BILI_AFFINITY_SECONDS": "-1",
        "BILI_SHARDS": "65",
        "BILI_CATEGORY": "../up",
        "BILI_CONNECTIONS": "0",
        "BILI_MAX_SPEED": "1K",
        "BILI_API_URL": "http://host:99999",
        "BILI_QUALITY": "1440p",
        "BILI_CODECS": "avc,vp9",
        "BILI_AUDIO": "320k",
        "BILI_STREAMS": "all",
        "BILI_CONTAINER": "avi",
        "BILI_MIN_QUALITY": "best",
        "BILI_EXTRAS": "danmaku,lyrics",
        "BILI_OUTPUT": "{titel}",
        "BILI_NOTIFY": "topsecret",
        "BILI_LOG_LEVEL": "loud",
        "BILI_TRUSTED_PROXIES": "10.0.0.0/40",
        "BILI_METRICS_ADDRESS": "127.0.0.1",
        "BILI_RATE_PER_ADDRESS": "-1",
        "BILI_RATE_PER_ACCOUNT": "fast",
        "BILI_EGRESS": "a\nb",
        "BILI_DELIVER_TO": "ftp:topsecret",
        "BILI_DELIVER_KEEP": "maybe",
    }
    with pytest.raises(UsageError) as caught:
        parse_settings(wrong)
    for name in wrong:
        assert name in str(caught.value)
    assert "topsecret" not in str(caught.value)


def test_every_setting_can_be_set_and_no_secret_has_a_repr() -> None:
    values = dict.fromkeys(VARIABLES, "7")
    values |= {name: "http://host.example/prefix/" for name in VARIABLES if name.endswith("_URL")}
    values |= {"BILI_MAX_SPEED": "7M", "REDIS_URL": "valkey://:secretpassword@host/1", "BILI_TOKEN": "secrettoken"}
    values |= {"BILI_QUALITY": "8K", "BILI_CODECS": "AV1, hevc", "BILI_AUDIO": "Hi-Res", "BILI_STREAMS": "Both"}
    values |= {"BILI_CONTAINER": "MKV", "BILI_MIN_QUALITY": "80"}
    values |= {"BILI_EXTRAS": "nfo, Danmaku,nfo", "BILI_OUTPUT": "{owner}/{title}"}
    values |= {"BILI_SESSDATA": "secretsession", "BILI_MEDIA_HOSTS": "A.example, 127.0.0.1:99,"}
    values |= {"BILI_COOKIES": "cookies.txt", "BILI_NOTIFY": "json://secretuser:secretpassword@host/"}
    values |= {"BILI_COOKIES": "cookies.txt", "BILI_LOG_LEVEL": "Debug", "BILI_LOG_FILE": "logs/bili.log"}
    values |= {"BILI_TRUSTED_PROXIES": "10.0.0.0/8, 2001:DB8::1"}
    values |= {"BILI_RATE_PER_ADDRESS": "0.5", "BILI_EGRESS": "光纤 1"}
    values |= {"BILI_DELIVER_TO": "sftp://secretuser:secretpassword@host/videos/", "BILI_DELIVER_KEEP": "No"}
    values |= {"BILI_SERVER_URL": "https://host.example/", "BILI_SERVER_PIN": f"{'AB:' * 31}AB, {'0' * 64}"}
    settings = parse_settings(values)
    assert settings.server_pins == ("ab" * 32, "0" * 64)
    assert settings.trusted_proxies == ("10.0.0.0/8", "2001:db8::1")
    assert (settings.rate_per_address, settings.rate_per_account, settings.egress) == (0.5, 7.0, "光纤 1")
    assert str(settings.deliver_to) == "sftp://host/videos" and settings.deliver_keep == "no"
    assert settings.log_level == "debug" and settings.log_file == config.ROOT / "logs/bili.log"
    assert settings.cookies == config.ROOT / "cookies.txt"
    assert settings.redis_url == "redis://:secretpassword@host/1"
    assert settings.api_url == "http://host.example/prefix"
    assert settings.media_hosts == ("a.example", "127.0.0.1:99")
    assert settings.extras == ("danmaku", "nfo") and str(settings.output) == "{owner}/{title}"
    assert "secret" not in repr(settings)


def test_wishes_are_names_or_the_numbers_of_the_site() -> None:
    assert parse_settings({}).wishes == Settings().wishes == Wishes()
    assert Wishes() == Wishes(BEST, (7, 12, 13), 30280, "both", "auto", 0)
    names = {"BILI_QUALITY": "8K", "BILI_CODECS": "AV1, hevc", "BILI_AUDIO": "Hi-Res", "BILI_MIN_QUALITY": "1080p+"}
    numbers = {"BILI_QUALITY": "127", "BILI_CODECS": "av1,hevc,avc", "BILI_AUDIO": "30251", "BILI_MIN_QUALITY": "112"}
    assert parse_settings(names).wishes == Wishes(127, (13, 12, 7), 30251, min_qn=112)
    assert parse_settings(names) == parse_settings(numbers)
    assert parse_settings({"BILI_QUALITY": "100"}).wishes.qn == 100
    silent = parse_settings({"BILI_AUDIO": "none", "BILI_CONTAINER": "mkv"}).wishes
    assert (silent.streams, silent.container) == ("video", "mkv")
    assert parse_settings({"BILI_AUDIO": "best", "BILI_STREAMS": "audio"}).wishes == Wishes(sound=BEST, streams="audio")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"BILI_STREAMS": "audio", "BILI_AUDIO": "none"}, ("BILI_STREAMS", "BILI_AUDIO")),
        ({"BILI_QUALITY": "720p", "BILI_MIN_QUALITY": "1080p"}, ("BILI_MIN_QUALITY", "BILI_QUALITY")),
        ({"BILI_SERVER_PIN": "0" * 64, "BILI_SERVER_URL": "https://a, http://b"}, ("BILI_SERVER_PIN", "https://")),
        (
            {"BILI_SERVER_PIN": "0" * 64, "BILI_SERVER_URL": "https://a"}
            | {"BILI_MIN_QUALITY": "4k", "BILI_QUALITY": "720p"},
            ("BILI_MIN_QUALITY",),
        ),
    ],
)
def test_wishes_that_no_video_can_fulfil_are_refused(values: dict[str, str], names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(values)
    assert all(name in str(caught.value) for name in names)


def test_unfinished_work_lies_in_the_download_folder_unless_another_is_named(tmp_path: Path) -> None:
    assert parse_settings({"BILI_DOWNLOAD_DIR": "videos"}, tmp_path).scratch_dir == tmp_path / "videos" / ".parts"
    assert Settings(download_dir=tmp_path).scratch_dir == tmp_path / ".parts"
    named = {"BILI_DOWNLOAD_DIR": "/slow/videos", "BILI_SCRATCH_DIR": "quick"}
    assert parse_settings(named, tmp_path).scratch_dir == tmp_path / "quick"


SPEEDS: list[tuple[object, float]] = [
    ("", 0),
    ("0", 0),
    ("0M", 0),
    ("100000", 100_000),
    ("16K", 16 * 1024),
    ("800K", 800 * 1024),
    ("2.5M", 2.5 * 1024**2),
    (" 10MB/s ", 10 * 1024**2),
    ("10 MiB/s", 10 * 1024**2),
    ("1.g", 1024**3),
    (".5G", 0.5 * 1024**3),
    ("20000B/s", 20_000),
    ("1024G", 1024**4),
    (0, 0),
    (0.0, 0),
    (16384, 16384),
    (1.5e6, 1.5e6),
]
NO_SPEEDS: list[object] = [
    *("fast", "-1", "1", "15K", "16383", "1025G", "9" * 400, "1e6", "nan", "inf", "10 M B", "10M/h", "M", ".", "1,5M"),
    *("\u0661\u0660M", "5T", True, False, 1, -1, 16383.9, 2**41, 10**400, float("nan"), float("inf"), [], {}, None),
]


@pytest.mark.parametrize(("value", "speed"), SPEEDS)
def test_a_speed_has_a_unit_or_is_in_bytes_per_second(value: object, speed: float) -> None:
    assert parse_speed(value) == speed
    if isinstance(value, str):
        assert parse_settings({"BILI_MAX_SPEED": value}).max_bytes_per_second == speed


@pytest.mark.parametrize("value", NO_SPEEDS)
def test_what_is_no_speed_or_too_little_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match=r"from 16K .* such as 2\.5M"):
        parse_speed(value)
    if isinstance(value, str):
        with pytest.raises(UsageError, match=r"BILI_MAX_SPEED=.*: it must be a speed"):
            parse_settings({"BILI_MAX_SPEED": value})


def test_without_a_setting_there_is_no_limit_of_speed_and_up_to_16_connections() -> None:
    assert (parse_settings({}).max_bytes_per_second, parse_settings({}).connections) == (0, 16)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:8080", True),
        ("http://127.0.0.1.example.com", False),
        ("https://farm.example", False),
    ],
)
def test_a_server_on_this_machine_is_told_from_others(url: str, local: bool) -> None:
    assert Settings(server_urls=(url,)).server_is_local is local


def test_several_servers_are_told_apart_by_commas_and_each_is_looked_at() -> None:
    settings = parse_settings({"BILI_SERVER_URL": "http://a:1/, https://b/farm,http://a:1"})
    assert settings.server_urls == ("http://a:1", "https://b/farm") and settings.server_url == "http://a:1"
    assert not Settings(server_urls=("http://127.0.0.1:8080", "http://192.0.2.1:8080")).server_is_local
    assert Settings(server_urls=("http://127.0.0.1:8080", "http://[::1]:8081")).server_is_local
    for wrong in ("http://a:1,b:2", ",", "http://a:1,ftp://b"):
        with pytest.raises(UsageError, match="BILI_SERVER_URL="):
            parse_settings({"BILI_SERVER_URL": wrong})


def test_that_no_proxy_is_trusted_can_be_said() -> None:
    assert parse_settings({"BILI_TRUSTED_PROXIES": "None"}).trusted_proxies == ()
    assert parse_settings({}).trusted_proxies == ("127.0.0.1", "::1")
    for wrong in ("none,10.0.0.1", "10.0.0.1/8", "proxy.example"):
        with pytest.raises(UsageError, match="BILI_TRUSTED_PROXIES="):
            parse_settings({"BILI_TRUSTED_PROXIES": wrong})


@pytest.mark.parametrize(
    ("text", "address"),
    [("9100", "127.0.0.1:9100"), ("0.0.0.0:9100", "0.0.0.0:9100"), ("[::1]:9100", "[::1]:9100"), ("a.b:1", "a.b:1")],
)
def test_figures_are_shown_on_loopback_where_no_host_is_named(text: str, address: str) -> None:
    assert parse_settings({"BILI_METRICS_ADDRESS": text}).metrics_address == address


@pytest.mark.parametrize("text", ["host", "host:", "host:0", "host:70000", "u@host:1", "host:1/x", ":", "0"])
def test_no_other_place_for_figures_is_taken(text: str) -> None:
    with pytest.raises(UsageError, match="BILI_METRICS_ADDRESS="):
        parse_settings({"BILI_METRICS_ADDRESS": text})


@pytest.mark.parametrize("bad", ["", " ", "a/b", "..", ".hidden", "x\n", "C:", "é" * 61, " a"])
def test_a_category_is_the_name_of_one_folder(bad: str) -> None:
    assert category_problem(bad)


def test_the_default_categories_are_good_folders() -> None:
    assert [category_problem(category.name) for category in config.CATEGORIES] == [""] * 7


def test_a_ca_bundle_for_requests_counts(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("nothing", encoding="ascii")
    with pytest.raises(UsageError, match="REQUESTS_CA_BUNDLE"):
        tls_context({"REQUESTS_CA_BUNDLE": str(bundle)})
    with pytest.raises(UsageError, match="CURL_CA_BUNDLE"):
        tls_context({"CURL_CA_BUNDLE": str(tmp_path / "missing.pem")})
    with pytest.raises(UsageError, match="REQUESTS_CA_BUNDLE"):
        tls_context({"REQUESTS_CA_BUNDLE": str(bundle), "SSL_CERT_FILE": "set"})
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        tls_context({"REQUESTS_CA_BUNDLE": paths.cafile})
    tls_context({"REQUESTS_CA_BUNDLE": str(tmp_path)})


def test_hosts_that_settings_name_may_serve_media_and_the_real_ones_are_not_among_them() -> None:
    assert Settings(media_hosts=("cdn.example",)).stand_in_hosts == ("cdn.example",)
    assert Settings(web_url="http://127.0.0.1:99/x").stand_in_hosts == ("127.0.0.1:99",)


# ------------------------------------------------------------------------------------------ working.json


def test_stop_and_count_are_read() -> None:
    assert parse_working('{"stop": 0, "count": 64}') == Working(0, 64)
    assert parse_working("{}") == Working(1, 1)
    assert parse_working('{"drain": 1}') == Working(drain=1)


@pytest.mark.parametrize(
    ("max_speed", "meant"),
    [("null", None), ("0", 0.0), ('"0"', 0.0), ('""', 0.0), ("20000", 20000.0), ('"2.5M"', 2.5 * 1024**2)],
)
def test_a_speed_in_the_file_is_meant_as_in_the_setting_and_null_leaves_it_to_that(
    max_speed: str, meant: float | None
) -> None:
    assert parse_working(f'{{"count": 2, "max_speed": {max_speed}}}') == Working(1, 2, meant)
    assert parse_working("{}").max_bytes_per_second is None


def test_one_runs_and_zero_stops() -> None:
    assert parse_working('{"stop": 1}').running
    assert not parse_working('{"stop": 0}').running


@pytest.mark.parametrize(
    "text", ['{"stop": 1, "count": 3,}', '{\n "stop": 1,\n "count": 3,\n}\n', '\ufeff{"count": 3, "a": [1, 2, ], }']
)
def test_trailing_commas_are_accepted(text: str) -> None:
    assert parse_working(text) == Working(1, 3)


def test_a_comma_in_a_text_is_left_alone() -> None:
    assert parse_working('{"note": "a,}", "count": 2}') == Working(1, 2)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "line 1, column 1"),
        ('{"stop": 1', "line 1, column 11"),
        ('{\n  "stop": 1\n  "count": 2\n}', "line 3, column 3"),
        ('{\n  "stop": 2\n}', "line 2, column 3"),
        ('{"stop": 1, "count": 65}', "line 1, column 13"),
        ('{"count": 0}', "line 1, column 2"),
        ('{"count": true}', "line 1, column 2"),
        ('{"count": 1.5}', "line 1, column 2"),
        ('{"stop": "1"}', "line 1, column 2"),
        ('{"stop": false}', "line 1, column 2"),
        ('{"stop": 1,\n "max_speed": "fast"}', 'line 2, column 2: "max_speed": it must be a speed'),
        ('{"max_speed": 1}', "line 1, column 2"),
        ('{"max_speed": -20000}', "line 1, column 2"),
        ('{"max_speed": true}', "line 1, column 2"),
        ('{"max_speed": NaN}', "line 1, column 2"),
        ('{"max_speed": ["1M"]}', "line 1, column 2"),
        ('{"count": 2, "drain": 2}', 'line 1, column 14: "drain" must be 1'),
        ('{"drain": true}', "line 1, column 2"),
        ("[1]", "line 1, column 1"),
        ("[" * 100_000, "line 1, column"),
    ],
)
def test_a_problem_is_named_with_line_and_column(text: str, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        parse_working(text)


@given(st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_understood_or_refused_with_a_position(text: str) -> None:
    try:
        working = parse_working(text)
    except ValueError as error:
        assert "line" in str(error) and "column" in str(error)
    else:
        assert working.stop in (0, 1) and 1 <= working.count <= 64


@given(stop=st.sampled_from([0, 1]), count=st.integers(1, 64), cut=st.integers(0, 50))
def test_a_half_written_file_never_means_something_else(stop: int, count: int, cut: int) -> None:
    """Whatever an editor has written so far of a file reads as an error, or as the whole file."""
    whole = json.dumps({"stop": stop, "count": count, "max_speed": "2M"})
    try:
        assert parse_working(whole[:cut]) == Working(stop, count, 2 * 1024**2)
    except ValueError:
        assert cut < len(whole)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("json://host/path", ("json://host/path",)),
        ("tgram://1:AA/2  ntfys://ntfy.sh/topic,", ("tgram://1:AA/2", "ntfys://ntfy.sh/topic")),
        ("mailtos://a:b@c.example?to=d@e,f@g, json://h", ("mailtos://a:b@c.example?to=d@e,f@g", "json://h")),
    ],
)
def test_addresses_for_notices_are_taken_apart_where_one_begins(text: str, found: tuple[str, ...]) -> None:
    settings = parse_settings({"BILI_NOTIFY": text})
    assert settings.notify == found
    assert "://" not in repr(
        Settings(server_urls=("",), web_url="", api_url="", passport_url="", short_url="", notify=found)
    )


@pytest.mark.parametrize("text", ["s3cret", "json:s3cret", "json://a s3cret", "://s3cret"])
def test_what_is_no_address_for_notices_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match="BILI_NOTIFY: ") as raised:
        parse_settings({"BILI_NOTIFY": text})
    assert "s3cret" not in str(raised.value)
