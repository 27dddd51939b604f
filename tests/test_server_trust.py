"""The queue server over TLS as workers, add_url.py and --status see it: who is trusted, and what others get to see."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import trustme

import add_url
import site_walk
from certificates import self_made, self_made_pin
from config import Settings
from demo.catalogue import video
from errors import ServerUnreachable
from queue_client import QueueClient, make_server_session
from server_trust import Unproven, clear_text_note, pinned_certificate, trusting_only
from status_table import show_status
from tests.farm import Farm, finished_files, free_port
from tests.sealed import Sealed, serving

TOKEN = "canary-token-of-the-farm"
OTHER_PIN = "ab" * 32


@pytest.fixture(autouse=True)
def _no_certificates_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(add_url, "persist", lambda call, transient: call())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sealed]:
    with serving(self_made(tmp_path / "server", "127.0.0.1")) as started:
        yield started


@pytest.fixture
def attacker(tmp_path: Path) -> Iterator[Sealed]:
    """It is where the server should be, with a certificate for the same address."""
    with serving(self_made(tmp_path / "attacker", "127.0.0.1")) as started:
        yield started


def worker(settings: Settings) -> None:
    async def ask() -> None:
        async with make_server_session(settings) as session:
            counts, _due = await QueueClient(settings, session, "w", "i")._ask_each("GET", "/status", None, None, 10.0)
            assert counts["jobs"]["ready"] == 3

    asyncio.run(ask())


def adding(settings: Settings) -> None:
    with closing(add_url.ServerSink(settings)) as sink:
        assert sink.redrive_all() == 2


def status(settings: Settings) -> None:
    show_status(settings, as_json=True)


Client = Callable[[Settings], None]
every_client = pytest.mark.parametrize("ask", [worker, adding, status])


def settings_for(server: Sealed, *pins: str) -> Settings:
    return Settings(server_urls=(server.url,), token=TOKEN, server_pins=pins)


@every_client
def test_a_server_with_the_pinned_certificate_is_asked(server: Sealed, ask: Client) -> None:
    ask(settings_for(server, OTHER_PIN, server.pin))
    assert server.application.tokens == {f"Bearer {TOKEN}"}


@every_client
def test_who_is_in_the_middle_with_another_certificate_sees_nothing(
    server: Sealed, attacker: Sealed, ask: Client
) -> None:
    with pytest.raises(ServerUnreachable, match="shows another certificate than the pinned one"):
        ask(settings_for(attacker, server.pin))
    assert attacker.application.seen == []


@every_client
def test_a_pin_counts_also_where_an_authority_has_signed(
    server: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Client
) -> None:
    with signed(tmp_path, monkeypatch, "127.0.0.1") as attacker:
        with pytest.raises(ServerUnreachable, match="shows another certificate"):
            ask(settings_for(attacker, server.pin))
        assert attacker.application.seen == []
        ask(settings_for(attacker, attacker.pin))


@every_client
def test_a_pinned_certificate_may_have_been_signed_by_an_authority_and_for_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Client
) -> None:
    with signed(tmp_path, monkeypatch, "farm.example") as there:
        monkeypatch.delenv("SSL_CERT_FILE")
        ask(settings_for(there, there.pin))


@every_client
def test_a_self_made_certificate_without_a_pin_is_refused(server: Sealed, ask: Client) -> None:
    with pytest.raises(ServerUnreachable, match="not trusted"):
        ask(settings_for(server))
    assert server.application.seen == []


@contextlib.contextmanager
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Sealed]:
    """Run a server whose certificate, for a name, is signed by an authority that the environment names."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(tmp_path / "signed.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with serving(tmp_path / "signed.pem") as started:
        yield started


@every_client
@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_an_authority_that_the_environment_names_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ask: Client
) -> None:
    with signed(tmp_path, monkeypatch, "127.0.0.1") as server:
        monkeypatch.delenv("SSL_CERT_FILE")
        monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
        ask(settings_for(server))
        assert server.application.tokens == {f"Bearer {TOKEN}"}


@every_client
def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Client
) -> None:
    with signed(tmp_path, monkeypatch, "other.example") as server:
        with pytest.raises(ServerUnreachable, match="not trusted"):
            ask(settings_for(server))
        assert server.application.seen == []


def test_a_pin_is_compared_again_when_the_server_has_another_certificate(tmp_path: Path) -> None:
    """Also by a session that has asked it before."""
    file = self_made(tmp_path / "server", "127.0.0.1")
    with serving(file) as server:
        assert server.certificate is not None
        renewed = self_made(tmp_path / "renewed", "127.0.0.1")
        settings = settings_for(server, server.pin)
        with closing(add_url.ServerSink(settings)) as sink:
            assert sink.redrive_all() == 2
            file.write_bytes(renewed.read_bytes())
            server.certificate.look_again()
            sink._session.adapters["https://"]._adapters[server.url].close()  # type: ignore[attr-defined]
            asked = len(server.application.seen)
            for _unused in range(2):
                with pytest.raises(ServerUnreachable, match="certificate"):
                    sink.redrive_all()
            assert len(server.application.seen) == asked


@every_client
def test_a_pin_that_is_nearly_right_is_another_one(server: Sealed, ask: Client) -> None:
    first, last = ("0" if digit != "0" else "1" for digit in (server.pin[0], server.pin[-1]))
    for wrong in (first + server.pin[1:], server.pin[:-1] + last):
        with pytest.raises(ServerUnreachable, match="shows another certificate than the pinned one"):
            ask(settings_for(server, wrong))
    assert server.application.seen == []


def test_a_context_for_one_certificate_trusts_no_other_and_no_authority(
    server: Sealed, attacker: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with signed(tmp_path, monkeypatch, "127.0.0.1") as named:
        pem = ssl.get_server_certificate(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)
        context = trusting_only(ssl.PEM_cert_to_DER_cert(pem))
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        for there, refused in ((server, False), (attacker, True), (named, True)):
            peer = socket.create_connection(("127.0.0.1", int(there.url.rpartition(":")[2])), 20)
            with peer, pytest.raises(ssl.SSLCertVerificationError) if refused else contextlib.nullcontext():
                context.wrap_socket(peer, server_hostname="127.0.0.1").close()


def test_a_server_that_is_not_there_has_no_certificate() -> None:
    with pytest.raises(Unproven, match="cannot be reached"):
        pinned_certificate("https://127.0.0.1:1", [OTHER_PIN], trust_env=False)


def test_with_a_pin_nothing_is_asked_without_tls(tmp_path: Path) -> None:
    with serving(None) as server, closing(site_walk.new_session(TOKEN, pins=[OTHER_PIN])) as session:
        with pytest.raises(OSError, match="is not https"):
            session.get(server.url)
        assert server.application.seen == []


class Tunnels:
    """A proxy that leads all who ask for a tunnel to one place, wherever they want to go."""

    def __init__(self, leads_to: Sealed) -> None:
        self._address = ("127.0.0.1", int(leads_to.url.rpartition(":")[2]))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.heads: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Take nobody in any more."""
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with contextlib.suppress(OSError), ThreadPoolExecutor(8) as pumps:
            while True:
                client, _address = self._door.accept()
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += client.recv(1)
                self.heads.append(head)
                inner = socket.create_connection(self._address, 20)
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                pumps.submit(self._pump, client, inner)
                pumps.submit(self._pump, inner, client)

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while piece := one.recv(65536):
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)


@every_client
def test_a_pin_is_compared_through_a_proxy_too(
    server: Sealed, attacker: Sealed, monkeypatch: pytest.MonkeyPatch, ask: Client
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(server_urls=("https://queue.example",), token=TOKEN, server_pins=(server.pin,))
    for there in (server, attacker):
        with closing(Tunnels(there)) as proxy:
            for name in ("HTTPS_PROXY", "https_proxy"):
                monkeypatch.setenv(name, proxy.url)
            refused = pytest.raises(ServerUnreachable, match="shows another certificate")
            with refused if there is attacker else contextlib.nullcontext():
                ask(settings)
            assert proxy.heads and all(head.startswith(b"CONNECT queue.example:443 ") for head in proxy.heads)
            assert not any(TOKEN.encode() in head for head in proxy.heads)
    assert server.application.tokens == {f"Bearer {TOKEN}"} and attacker.application.seen == []


@every_client
def test_https_where_there_is_no_tls_is_said(ask: Client) -> None:
    with serving(None) as server:
        settings = Settings(server_urls=(server.url.replace("http:", "https:"),), token=TOKEN)
        with pytest.raises(ServerUnreachable):
            ask(settings)
        assert server.application.seen == []


@pytest.mark.parametrize(
    ("urls", "token", "named"),
    [
        (("http://192.0.2.7:8080",), TOKEN, "192.0.2.7:8080"),
        (("https://a.example", "http://user:secret@b.example"), TOKEN, "b.example"),
        (("http://127.0.0.1:8080", "http://localhost:1", "https://a.example"), TOKEN, ""),
        (("http://192.0.2.7:8080",), "", ""),
    ],
)
def test_a_token_in_clear_text_is_warned_of(urls: tuple[str, ...], token: str, named: str) -> None:
    note = clear_text_note(Settings(server_urls=urls, token=token))
    assert bool(note) == bool(named) and named in note and "secret" not in note


@pytest.mark.slow
def test_a_farm_downloads_over_tls(farm: Farm) -> None:
    port = free_port()
    sealed = farm.start("web_server.py", "--port", str(port), "--tls-self-made")
    sealed.says("BILI_SERVER_PIN=")
    pin = self_made_pin(farm.folder / "data")
    assert f"BILI_SERVER_PIN={pin}" in sealed.output()
    farm.add(video("plain").bvid)
    url = f"https://127.0.0.1:{port}"
    assert farm.drain(BILI_SERVER_URL=url, BILI_SERVER_PIN=pin) == 0
    assert farm.counts()["done"] == 1 and len(finished_files(farm.downloads)) == 1
    stranger = farm.worker("--until-empty", BILI_SERVER_URL=url, BILI_SERVER_PIN=OTHER_PIN)
    stranger.says("shows another certificate than the pinned one")
