"""The server's certificate: what is said of files that are wrong, how a new one is taken up, one that is self-made."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

import web_server
from certificates import Certificate, notes, pin_of, self_made, self_made_path, self_made_pin
from config import parse_settings
from errors import ServerError, UsageError
from status_table import show_status
from tests.farm import wait_until
from tests.sealed import serving

ROOT = Path(web_server.__file__).parent
AUTHORITY = trustme.CA()


def issued(folder: Path, name: str = "farm.example", **options: datetime) -> tuple[Path, Path]:
    """Return the files of a new certificate and of its key."""
    folder.mkdir(parents=True, exist_ok=True)
    made = AUTHORITY.issue_cert(name, **options)
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    return folder / "cert.pem", folder / "key.pem"


def shown(url: str) -> str:
    """Return the pin of the certificate that a server shows to whoever knocks."""
    host, port = url.removeprefix("https://").split(":")
    return sha256(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), timeout=20))).hexdigest()


# ------------------------------------------------------------------------------------------ files that are wrong


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    with pytest.raises(UsageError, match=rf"--tls-cert {tmp_path}/none.pem cannot be read \(No such file"):
        Certificate(tmp_path / "none.pem", key)
    with pytest.raises(UsageError, match=rf"--tls-key {tmp_path} cannot be read \(Is a directory"):
        Certificate(cert, tmp_path)


def test_a_file_without_a_certificate_or_a_key_is_named(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    binary = tmp_path / "cert.der"
    binary.write_bytes(ssl.PEM_cert_to_DER_cert(cert.read_text()))
    with pytest.raises(UsageError, match=r"cert\.der has no certificate in PEM"):
        Certificate(binary, key)
    with pytest.raises(UsageError, match=r"cert\.pem has no private key in PEM"):
        Certificate(cert, cert)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    cert, _key = issued(tmp_path / "one")
    _cert, key = issued(tmp_path / "other")
    with pytest.raises(UsageError, match=r"other/key\.pem does not belong to the first certificate in .*one/cert\.pem"):
        Certificate(cert, key)


def test_a_damaged_certificate_is_refused(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    cert.write_text(cert.read_text().replace("M", "=", 9))
    with pytest.raises(UsageError, match=r"cert\.pem with --tls-key .*key\.pem cannot be used"):
        Certificate(cert, key)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    plain = load_pem_private_key(key.read_bytes(), None)
    sealed = plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    key.write_bytes(sealed)
    with pytest.raises(UsageError, match=r"key\.pem: the key has a passphrase.*openssl pkey"):
        Certificate(cert, key)


def test_what_is_not_good_about_usable_files_is_noted(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    now = time.time()
    assert notes(cert, key, now) == []
    key.chmod(0o644)
    (readable,) = notes(cert, key, now)
    assert f"chmod 600 {key}" in readable
    old, key = issued(tmp_path / "old", not_after=datetime.now(UTC) - timedelta(days=3))
    (expired,) = notes(old, key, now)
    assert re.search(r"old/cert\.pem has expired on \d{4}-\d\d-\d\d", expired)
    (early,) = notes(cert, key, 0.0)
    assert "not valid yet" in early
    Certificate(old, key)  # it is for the clients to refuse it


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tls-key", "key.pem"], "--tls-key belongs to --tls-cert"),
        (["--tls-self-made", "--tls-cert", "cert.pem"], "choose"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        web_server.main(arguments)
    assert caught.value.code == 2 and sentence in capsys.readouterr().err


def test_the_pin_is_that_of_the_servers_own_certificate_and_not_of_its_authorities(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    alone = pin_of(cert)
    with cert.open("ab") as file:
        file.write(AUTHORITY.cert_pem.bytes())
    assert pin_of(cert) == Certificate(cert, key).pin == alone


# ------------------------------------------------------------------------------------------ shown, and taken up anew


def test_what_is_shown_is_tls_1_2_or_later_with_this_certificate(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    with serving(cert, key) as server:
        assert shown(server.url) == pin_of(cert) == server.pin
        assert server.certificate is not None
        assert server.certificate.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_certificate_that_was_replaced_is_shown_and_open_connections_go_on(tmp_path: Path) -> None:
    cert, key = issued(tmp_path)
    with serving(cert, key) as server, knocked(server.url) as before:
        first, ended = server.pin, threading.Event()
        assert server.certificate is not None
        looking = threading.Thread(target=server.certificate.keep_looking, args=(ended, 0.02))
        looking.start()
        try:
            issued(tmp_path)
            wait_until("the new one is shown", lambda: shown(server.url) != first, 10)
            assert shown(server.url) == pin_of(cert)
            before.sendall(b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n")
            assert before.recv(15) == b"HTTP/1.1 200 OK"
        finally:
            ended.set()
            looking.join()


def knocked(url: str) -> ssl.SSLSocket:
    """Return a connection that has shaken hands, as one without a name of a server."""
    host, port = url.removeprefix("https://").split(":")
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context.wrap_socket(socket.create_connection((host, int(port)), 20), server_hostname="farm.example")


def test_a_certificate_without_its_key_is_not_taken_up_until_the_key_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cert, key = issued(tmp_path / "now")
    with serving(cert, key) as server:
        held, first = server.certificate, server.pin
        assert held is not None
        new_cert, new_key = issued(tmp_path / "new")
        cert.write_bytes(new_cert.read_bytes())
        held.look_again()
        assert shown(server.url) == first
        assert caplog.messages == []  # the key may come in a moment
        held.look_again()
        held.look_again()
        (warning,) = caplog.messages
        assert "stays in use" in warning and str(key) in warning
        key.unlink()
        held.look_again()
        assert shown(server.url) == first
        key.write_bytes(new_key.read_bytes())
        held.look_again()
        assert shown(server.url) == pin_of(new_cert) != first
        assert "is taken up" in caplog.messages[-1] and pin_of(new_cert) in caplog.messages[-1]


# ------------------------------------------------------------------------------------------ one that is self-made


def test_a_self_made_certificate_is_made_once_and_is_for_nobody_else(tmp_path: Path) -> None:
    assert self_made_pin(tmp_path / "data") == ""
    path = self_made(tmp_path / "data", "192.0.2.7")
    content = path.read_bytes()
    assert path == self_made_path(tmp_path / "data") and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert self_made(tmp_path / "data", "other.example") == path and path.read_bytes() == content
    assert self_made_pin(tmp_path / "data") == pin_of(path) == Certificate(path, path).pin
    assert notes(path, path, time.time()) == []
    made = x509.load_pem_x509_certificate(content)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"127.0.0.1", "::1", "192.0.2.7"} <= {str(one) for one in names.get_values_for_type(x509.IPAddress)}
    assert {"localhost", socket.gethostname()} <= set(names.get_values_for_type(x509.DNSName))
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False, "it signs nothing"
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert made.not_valid_after_utc - datetime.now(UTC) > timedelta(days=9 * 365), "nobody renews it"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "名字.example", "a_b"])
def test_any_host_that_a_server_listens_on_will_do(tmp_path: Path, host: str) -> None:
    path = self_made(tmp_path, host)
    assert Certificate(path, path).pin


def test_servers_that_start_together_have_one_certificate(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda _number: pin_of(self_made(tmp_path, "")), range(16)))
    assert len(set(paths)) == 1


@pytest.mark.skipif(os.name != "posix", reason="folders of Windows have no such modes")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="BILI_DATA_DIR"):
        self_made(tmp_path / "file" / "data", "")


@pytest.mark.slow
def test_a_server_says_the_pin_and_who_has_it_is_let_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BILI_", "REDIS_"))}
    environ = {**kept, "LANGUAGE": "en", "BILI_TOKEN": "canary-token-of-the-farm", "BILI_DATA_DIR": str(tmp_path)}
    server = [sys.executable, str(ROOT / "web_server.py"), "--port", "0", "--tls-self-made"]
    with subprocess.Popen(server, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _unused in range(3)]
            (url,) = re.findall(r"(https://127\.0\.0\.1:\d+)/", said[0])
            pin = said[2].strip().removeprefix("BILI_SERVER_PIN=")
            assert pin == self_made_pin(tmp_path) == shown(url)
            for told, problem in ((pin, ""), ("0" * 64, "another certificate"), ("", "not trusted")):
                asked = replace(parse_settings(environ), server_urls=(url,), server_pins=(told,) if told else ())
                with pytest.raises(ServerError, match=problem) if problem else nullcontext():
                    show_status(asked, as_json=True)
            assert '"ready": 0' in capsys.readouterr().out
        finally:
            process.terminate()
