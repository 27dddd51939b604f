"""The serving side: nginx, and for faults a small server whose bodies go from the page cache by sendfile.

A paced listener is a socket that is made here with ``SO_MAX_PACING_RATE``: the sockets that it accepts inherit the
rate, so the kernel paces each connection by itself, whatever number of requests it carries and with no burst at the
beginning of each. nginx takes it over as it takes sockets over from its predecessor when it is upgraded.
"""

from __future__ import annotations

import getpass
import grp
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import trustme

from benchmarks.measure import cpu_seconds

SO_MAX_PACING_RATE = 47
ETHERNET_SEGMENT_BYTES = 1460
"""Paced connections have segments as they are outside: on loopback ten of them, which are not paced, are 640 KiB."""
START_SECONDS = 20.0


class ServerError(Exception):
    """A server of the benchmark does not start."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One address of nginx; ``socket`` is what it takes over where the listener is paced."""

    host: str
    port: int
    root: Path
    tls: bool = False
    log: Path | None = None
    socket: socket.socket | None = None
    extra: str = ""
    """More directives for this server, such as locations."""

    @property
    def url(self) -> str:
        """What stands before each path."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


def listening_socket(host: str, bytes_per_second: int) -> socket.socket:
    """Return a listening socket on a free port whose connections are paced by the kernel."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if bytes_per_second:
        door.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_second)
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_SEGMENT_BYTES)
    door.bind((host, 0))
    door.listen(1024)
    return door


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def listener(
    root: Path,
    host: str = "127.0.0.1",
    *,
    tls: bool = False,
    bytes_per_second: int = 0,
    log: Path | None = None,
    extra: str = "",
) -> Listener:
    """Return a listener on a free port."""
    if not bytes_per_second:
        return Listener(host, free_port(host), root, tls, log, None, extra)
    door = listening_socket(host, bytes_per_second)
    return Listener(host, door.getsockname()[1], root, tls, log, door, extra)


def nginx_config(listeners: Sequence[Listener], folder: Path, user: str, group: str, http: str = "") -> str:
    """Return the configuration of an nginx that keeps everything in ``folder``; ``user`` is empty unless it is root."""
    lines = [f"user {user} {group};"] if user else []
    lines += [
        "worker_processes 2; daemon off;",
        f"pid {folder}/pid; error_log {folder}/error.log;",
        "events { worker_connections 2048; }",
        "http {",
        "  access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 512k;",
        "  keepalive_requests 1000000; keepalive_timeout 120;",
        "  types { video/mp4 mp4 m4s; } default_type application/octet-stream;",
        "  log_format ranges '$request_uri|$http_range|$status|$body_bytes_sent|$msec';",
    ]
    lines += [f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    lines += [f"  {line}" for line in http.splitlines()]
    for one in listeners:
        options = "" if one.socket else " reuseport backlog=1024"
        lines += ["  server {", f"    listen {one.host}:{one.port}{' ssl' if one.tls else ''}{options};"]
        lines += [f"    root {one.root};"]
        if one.tls:
            lines.append(f"    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;")
        if one.log:
            lines.append(f"    access_log {one.log} ranges;")
        lines += [f"    {line}" for line in one.extra.splitlines()]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


class Nginx:
    """``with Nginx(program, listeners, folder) as nginx``: an nginx of our own, as the user we are."""

    def __init__(
        self, program: str, listeners: Sequence[Listener], folder: Path, names: Sequence[str] = (), http: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca_file = str(folder / "ca.pem")
        self._listeners = listeners
        if any(one.tls for one in listeners):
            self._make_certificates(folder, names)
        user, group = (getpass.getuser(), grp.getgrgid(os.getgid()).gr_name) if os.geteuid() == 0 else ("", "")
        config = folder / "nginx.conf"
        config.write_text(nginx_config(listeners, folder, user, group, http), "utf-8")
        doors = [one.socket for one in listeners if one.socket]
        environ = {name: value for name, value in os.environ.items() if name != "NGINX"}
        if doors:
            environ["NGINX"] = "".join(f"{door.fileno()};" for door in doors)
        with (folder / "nginx.out").open("wb") as output:
            self._process = subprocess.Popen(
                [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")],
                env=environ,
                stdout=output,
                stderr=output,
                pass_fds=[door.fileno() for door in doors],
            )
        try:
            wait_until_it_serves(self._process, [(one.host, one.port) for one in listeners])
        except ServerError as error:
            self.close()
            said = (
                (folder / "error.log").read_text("utf-8", errors="replace") if (folder / "error.log").exists() else ""
            )
            raise ServerError(f"nginx: {error}: {said[-500:]}") from None

    @staticmethod
    def _make_certificates(folder: Path, names: Sequence[str]) -> None:
        authority = trustme.CA(organization_name="benchmark")
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        certificate = authority.issue_cert("localhost", "127.0.0.1", *names)
        certificate.private_key_pem.write_to_path(str(folder / "server.key"))
        for number, pem in enumerate(certificate.cert_chain_pems):
            pem.write_to_path(str(folder / "server.pem"), append=number > 0)

    def __enter__(self) -> Nginx:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and close the sockets that it had taken over."""
        end_process(self._process)
        for one in self._listeners:
            if one.socket:
                one.socket.close()


def wait_until_it_serves(process: subprocess.Popen[bytes], addresses: Sequence[tuple[str, int]]) -> None:
    """Wait until somebody accepts connections at all addresses."""
    deadline = time.monotonic() + START_SECONDS
    for address in addresses:
        while True:
            if process.poll() is not None:
                raise ServerError(f"ended with status {process.returncode}")
            try:
                socket.create_connection(address, timeout=1).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServerError(f"does not serve: {error}") from None
                time.sleep(0.02)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and kill it where it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class FaultServer:
    """``with FaultServer(root) as server``: serves the files of a folder with the faults of ``fault_server.py``."""

    def __init__(
        self,
        root: Path,
        host: str = "127.0.0.1",
        *,
        late_seconds: float = 0.0,
        cut: str = "",
        bytes_per_second: int = 0,
    ) -> None:
        self._door = listening_socket(host, bytes_per_second)
        self.url = f"http://{host}:{self._door.getsockname()[1]}"
        command = [sys.executable, "-m", "benchmarks.fault_server", str(self._door.fileno()), str(root)]
        command += ["--late", str(late_seconds), *(["--cut", cut] if cut else [])]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).resolve().parent.parent, pass_fds=[self._door.fileno()]
        )

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._door.close()
        end_process(self._process)

    def cpu_seconds(self) -> float:
        """Return the processor time it has used."""
        return cpu_seconds(self._process.pid)
