"""Two real servers behind a real nginx and a real Caddy, with the configurations of ``deploy/``.

Only what a machine must say for itself is put into them: ports, certificate, addresses of the servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
import requests
import trustme

from demo.catalogue import video
from demo.media import ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from tests.conftest import engine_binary
from tests.farm import ROOT, Farm, Script, finished_files, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TOKEN = "a-token-of-more-than-sixteen-characters"
NAME = "farm.example"
HELD = 500
MAIN = """
user {user};
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
events {{ worker_connections 1024; }}
http {{
    {temporary}
    include {folder}/bili.conf;
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass
class Front:
    """A proxy in front of the two servers of a farm: where it is asked, and by which certificates it is known."""

    farm: Farm
    servers: list[Script]
    ports: list[int]
    port: int
    ca_file: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask through the proxy by the farm's own name, with the token."""
        options.setdefault("headers", {"Authorization": f"Bearer {TOKEN}"})
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, verify=str(self.ca_file), timeout=20, **options)

    def counts(self) -> dict[str, int]:
        answer = self.ask("GET", "/status")
        assert answer.status_code == 200, answer.text
        counts: dict[str, int] = answer.json()["jobs"]
        return counts


@pytest.fixture(scope="module")
def site() -> Iterator[SiteProcess]:
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    """A Valkey of its own on loopback, as docs/deploy.md has it; returns its REDIS_URL."""
    port = free_port()
    (tmp_path / "valkey").mkdir()
    command = [engine_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path / "valkey")]
    command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--requirepass", "secret"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def serves() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    wait_until("Valkey serves", serves, 20)
    yield f"redis://:secret@127.0.0.1:{port}/0"
    process.terminate()
    process.wait(20)


@pytest.fixture
def farm(tmp_path: Path, site: SiteProcess, engine: str) -> Iterator[Farm]:
    site.post("reset")
    farm = Farm(tmp_path, site, REDIS_URL=engine, BILI_TOKEN=TOKEN, BILI_HOSTS=NAME, BILI_LEASE_SECONDS="6")
    yield farm
    farm.close()


@pytest.fixture
def servers(farm: Farm) -> tuple[list[Script], list[int]]:
    """The farm's server, and a second one on the same Valkey."""
    first_port, farm.port = farm.port, free_port()
    return [farm.server, farm.start_server()], [first_port, farm.port]


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with ca.pem, and farm.example.pem and .key as nginx.conf names them."""
    folder = tmp_path / "tls"
    folder.mkdir()
    authority = trustme.CA(organization_name="farm of a test")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate = authority.issue_cert(NAME, "localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / f"{NAME}.key"))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(folder / f"{NAME}.pem"), append=number > 0)
    return folder


def changed(text: str, *changes: tuple[str, str]) -> str:
    """Return a configuration with what is different here; each change must find its place."""
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    return text


def serves_tls(port: int, ca_file: Path) -> bool:
    """Tell whether a proxy has its certificate already: Caddy listens before that, and refuses each handshake."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
        with socket.create_connection(("127.0.0.1", port), 1) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except OSError:
        return False
    return True


@pytest.fixture
def nginx(
    request: pytest.FixtureRequest,
    farm: Farm,
    servers: tuple[list[Script], list[int]],
    certificates: Path,
    tmp_path: Path,
) -> Iterator[Front]:
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    port, plain_port, folder = free_port(), free_port(), tmp_path / "nginx"
    folder.mkdir()
    config = changed(
        (ROOT / "deploy" / "nginx.conf").read_text("utf-8"),
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("    listen [::]:80;\n", ""),
        ("    listen [::]:443 ssl;\n", ""),
        ("/etc/ssl/bili/", f"{certificates}/"),
        ("server 127.0.0.1:8080 ", f"server 127.0.0.1:{servers[1][0]} "),
        ("server 127.0.0.1:8081 ", f"server 127.0.0.1:{servers[1][1]} "),
        *getattr(request, "param", ()),
    )
    (folder / "bili.conf").write_text(config, "utf-8")
    temporary = "".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
    main = folder / "nginx.conf"
    main.write_text(MAIN.format(user=getpass.getuser(), folder=folder, temporary=temporary), "utf-8")
    command = [program, "-p", str(folder), "-c", str(main), "-e", str(folder / "error.log")]
    subprocess.run([*command, "-t", "-q"], check=True)
    process = subprocess.Popen(command)
    wait_until("nginx serves", lambda: serves_tls(port, certificates / "ca.pem"), 20)
    front = Front(farm, *servers, port, certificates / "ca.pem")
    yield front
    process.terminate()
    process.wait(20)


def bvid(name: str) -> str:
    return video(name).bvid


def worker_environ(front: Front, name: str) -> dict[str, str]:
    """Return what a worker on another machine has: the proxy's address, the token, the CA; no Redis."""
    return {
        "BILI_SERVER_URL": front.url,
        "BILI_WORKER": name,
        "SSL_CERT_FILE": str(front.ca_file),
        "REQUESTS_CA_BUNDLE": str(front.ca_file),
        "REDIS_URL": "",
    }


def test_the_whole_work_goes_through_nginx_while_a_server_is_killed(nginx: Front) -> None:
    """Lease, expand, heartbeat, ack, from https to two servers, one of which is killed in the middle and comes back."""
    farm = nginx.farm
    names = ["large-a", "five-pages", "plain"]
    answer = nginx.ask("POST", "/add_url", json={"urls": [bvid(name) for name in names], "request": "r1"})
    assert answer.json() == {"added": 3, "known": 0, "rejected": []}
    workers = [farm.worker("--until-empty", "--wait", "60", **worker_environ(nginx, f"w{n}")) for n in (1, 2)]
    wait_until("work has begun", lambda: nginx.counts()["done"] >= 1)
    nginx.servers[0].kill()
    for _number in range(20):  # nobody notices: the first request that meets the dead server is sent to the other one
        assert nginx.ask("GET", "/status").status_code == 200
    assert {worker.wait() for worker in workers} == {0}, [worker.output()[-2000:] for worker in workers]
    counts = nginx.counts()
    pages = sum(len(video(name).pages) for name in names)
    assert counts == {"ready": 0, "leased": 0, "delayed": 0, "done": pages, "dead": 0}
    assert len(finished_files(farm.downloads)) == pages
    farm.port = nginx.ports[0]
    farm.start_server()
    assert farm.get("/livez") == {"status": "ok"}


def test_the_dashboard_is_signed_in_to_at_both_servers_through_nginx(nginx: Front) -> None:
    with requests.Session() as browser:
        browser.trust_env = False
        browser.verify = str(nginx.ca_file)
        assert browser.get(nginx.url + "/", timeout=20).status_code == 401
        headers = {"Origin": nginx.url, "Sec-Fetch-Site": "same-origin"}
        answer = browser.post(nginx.url + "/ui/sign-in", json={"password": TOKEN}, headers=headers, timeout=20)
        assert answer.status_code == 200
        cookie = answer.headers["Set-Cookie"]
        assert "Secure" in cookie and "HttpOnly" in cookie  # nginx says that the browser came by https
        assert answer.headers["Strict-Transport-Security"]
        for server, port in (
            (None, 0),
            *zip(nginx.servers, nginx.ports, strict=True),
        ):  # with both, then with each alone
            if server is not None:
                server.kill()
                nginx.farm.port = port
            for path in ("/", "/ui/machines", "/ui/jobs", "/static/dashboard.css"):
                for _again in range(3):
                    shown = browser.get(nginx.url + path, timeout=20)
                    assert shown.status_code == 200, (path, shown.status_code, shown.text[:300])
            if server is not None:
                nginx.farm.start_server()
                wait_until("nginx asks it again", lambda port=port: has_shown_a_page(browser, nginx, port), 20)
        assert browser.get(nginx.url + "/metrics", timeout=20).status_code == 404


def has_shown_a_page(browser: requests.Session, front: Front, port: int) -> bool:
    """Ask for a page through the proxy; tell whether one of the servers has ever answered such a request."""
    browser.get(front.url + "/", timeout=20)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    figures = requests.get(f"http://127.0.0.1:{port}/metrics", headers=headers, timeout=20).text
    return 'bili_requests_total{route="/",status="200"}' in figures


def test_the_record_of_actions_has_the_clients_address(nginx: Front) -> None:
    context = ssl.create_default_context(cafile=str(nginx.ca_file))
    connection = HTTPSConnection("localhost", nginx.port, timeout=20, context=context, source_address=("127.0.0.2", 0))
    made_up = {
        "Authorization": f"Bearer {TOKEN}",
        "X-Forwarded-For": "198.51.100.9",
        "Content-Type": "application/json",
    }
    connection.request("POST", "/add_url", json.dumps({"urls": [bvid("plain")]}), made_up)
    assert connection.getresponse().status == 200
    connection.close()
    (action, *_older) = nginx.ask("GET", "/actions").json()["items"]
    assert action["who"] == "127.0.0.2"  # whom nginx saw; not what the client says of itself
    plain = re.search(r"listen 127\.0\.0\.1:(\d+);", (nginx.farm.folder / "nginx" / "bili.conf").read_text("utf-8"))
    assert plain
    answer = requests.get(f"http://127.0.0.1:{plain[1]}/ui/jobs?x=1", allow_redirects=False, timeout=20)
    assert (answer.status_code, answer.headers["Location"]) == (301, f"https://{NAME}/ui/jobs?x=1")


class Attackers:
    """500 connections from one address, each with a request whose body never ends; who is dropped comes again."""

    PAUSE_SECONDS = 5.0

    def __init__(self, front: Front) -> None:
        self._port = front.port
        self._context = ssl.create_default_context(cafile=str(front.ca_file))
        head = f"POST /heartbeat HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer {TOKEN}\r\n"
        self._beginning = f'{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"wor'.encode()
        self.begun = 0
        self.answers: Counter[bytes] = Counter()
        """The first line of each answer; empty where the connection was closed without one."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _number in range(HELD):
                group.create_task(self._attack())

    async def _attack(self) -> None:
        while True:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=("127.0.0.2", 0), ssl=self._context, server_hostname=NAME
            )
            try:
                with contextlib.suppress(ConnectionError):
                    writer.write(self._beginning)
                    await writer.drain()
                    self.begun += 1
                    self.answers[await reader.readline()] += 1
                await asyncio.sleep(self.PAUSE_SECONDS)
            finally:
                writer.transport.abort()


async def test_bodies_that_never_end_do_no_harm(nginx: Front) -> None:
    """500 of them from one address, while a worker at another one works as if they were not there."""
    attackers = Attackers(nginx)
    attack = asyncio.create_task(attackers.run())
    async with asyncio.timeout(60):
        while attackers.begun < HELD:
            await asyncio.sleep(0.05)
    assert await asyncio.to_thread(connections_to, nginx.ports) <= 4  # the servers hear nothing of them
    wanted = {"urls": [bvid("plain"), bvid("five-pages")]}
    answer = await asyncio.to_thread(nginx.ask, "POST", "/add_url", json=wanted)
    assert answer.status_code == 200
    worker = nginx.farm.worker("--until-empty", "--wait", "30", **worker_environ(nginx, "w1"))
    assert await asyncio.to_thread(worker.wait) == 0, worker.output()[-2000:]
    assert "until it answers" not in worker.output()
    assert (await asyncio.to_thread(nginx.counts))["done"] == 6
    assert not attack.done()
    attack.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attack
    # No address may have more than 200 under way: the others were refused, and no server has answered any.
    assert attackers.answers[b"HTTP/1.1 429 Too Many Requests\r\n"] >= HELD - 200
    assert set(attackers.answers) <= {b"HTTP/1.1 429 Too Many Requests\r\n", b"HTTP/1.1 408 Request Time-out\r\n", b""}


def connections_to(ports: list[int]) -> int:
    """Return how many TCP connections these ports have now, by the kernel's own table."""
    lines = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
    wanted = {f"{port:04X}" for port in ports}
    fields = [line.split() for line in lines]
    return sum(1 for one in fields if one[1].rpartition(":")[2] in wanted and one[3] == "01")


@pytest.mark.parametrize("nginx", [(("rate=200r/s", "rate=1r/m"), ("burst=400", "burst=20"))], indirect=True)
def test_an_address_that_floods_is_told_to_wait_and_others_are_not(nginx: Front) -> None:
    """The limit is made small here, so that it is met on a slow machine too. 429 is what workers know."""
    context = ssl.create_default_context(cafile=str(nginx.ca_file))

    def statuses(source: str, count: int) -> list[int]:
        connection = HTTPSConnection("localhost", nginx.port, timeout=20, context=context, source_address=(source, 0))
        found: list[int] = []
        for _number in range(count):
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
            found.append(answer.status)
        connection.close()
        return found

    assert statuses("127.0.0.3", 40) == [200] * 21 + [429] * 19
    assert statuses("127.0.0.4", 20) == [200] * 20


# ------------------------------------------------------------------------------------------ Caddy


@pytest.fixture
def caddy(farm: Farm, servers: tuple[list[Script], list[int]], tmp_path: Path) -> Iterator[Front]:
    program = shutil.which("caddy")
    assert program, "make test-all installs it"
    port, folder = free_port(), tmp_path / "caddy"
    folder.mkdir()
    # "localhost" gets a certificate from an authority of Caddy's own; as a person would, this asks for nobody's trust.
    site = changed(
        (ROOT / "deploy" / "Caddyfile").read_text("utf-8"),
        ("{\n\tservers {", f"{{\n\tadmin off\n\thttp_port {free_port()}\n\tskip_install_trust\n\tservers {{"),
    )
    (folder / "Caddyfile").write_text(site, "utf-8")
    environ = {
        **os.environ,
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "FARM_NAME": f"localhost:{port}",
        "FARM_SERVERS": " ".join(f"127.0.0.1:{one}" for one in servers[1]),
    }
    command = [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=folder)
    ca_file = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    wait_until("Caddy serves", lambda: serves_tls(port, ca_file), 60)
    yield Front(farm, *servers, port, ca_file)
    process.terminate()
    process.wait(20)


def test_the_whole_work_goes_through_caddy_while_a_server_is_killed(caddy: Front) -> None:
    farm = caddy.farm
    answer = caddy.ask("POST", "/add_url", json={"urls": [bvid("large-a"), bvid("five-pages")], "request": "r1"})
    assert answer.json() == {"added": 2, "known": 0, "rejected": []}
    worker = farm.worker("--until-empty", "--wait", "60", **worker_environ(caddy, "w1"))
    wait_until("work has begun", lambda: caddy.counts()["done"] >= 1)
    caddy.servers[0].kill()
    assert worker.wait() == 0, worker.output()[-2000:]
    assert caddy.counts() == {"ready": 0, "leased": 0, "delayed": 0, "done": 6, "dead": 0}
    assert caddy.ask("GET", "/metrics").status_code == 404
    caddy.ask("POST", "/redrive", json={"all": True}, headers={"Authorization": f"Bearer {TOKEN}"})
    cookie = caddy.ask("POST", "/ui/sign-in", json={"password": TOKEN}, headers={}).headers["Set-Cookie"]
    assert "Secure" in cookie
    caddy.ask("POST", "/add_url", json={"urls": [bvid("plain")]})
    (action, *_older) = caddy.ask("GET", "/actions").json()["items"]
    assert action["who"] in ("127.0.0.1", "::1")
