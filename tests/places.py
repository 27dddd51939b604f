"""Real servers that files are delivered to, on loopback: SFTP (asyncssh) and S3 (moto), each a process of its own.

python -m tests.places sftp FOLDER KEYS      serves FOLDER, with the keys in KEYS; prints its port
python -m tests.places openssh FOLDER KEYS   the same, but behind the connection is OpenSSH's own sftp-server
python -m tests.places s3 FOLDER             an S3 in memory; prints its port
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh

ROOT = Path(__file__).resolve().parent.parent
SFTP_SERVER = os.environ.get("SFTP_SERVER", "/usr/lib/openssh/sftp-server")
"""Of Debian's package openssh-sftp-server: only the program, no daemon."""
USER, PASSWORD = "collector", "geheim word"


class _Pipe(asyncssh.SSHServerSession[bytes]):
    """A session that is OpenSSH's program, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._early: list[bytes] = []
        self._child: asyncio.subprocess.Process | None = None

    def connection_made(self, chan: Any) -> None:
        self._channel = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def session_started(self) -> None:
        self._task = asyncio.create_task(self._run())

    def data_received(self, data: bytes, datatype: Any) -> None:
        if self._child is None or self._child.stdin is None:
            self._early.append(data)
        else:
            self._child.stdin.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()

    async def _run(self) -> None:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(SFTP_SERVER, "-d", str(self._folder), stdin=pipe, stdout=pipe)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"".join(self._early))
        self._child = child
        while data := await child.stdout.read(65536):
            self._channel.write(data)
        self._channel.exit(await child.wait())


class _Server(asyncssh.SSHServer):
    def __init__(self, openssh: Path | None = None) -> None:
        self._openssh = openssh

    def session_requested(self) -> Any:
        return False if self._openssh is None else _Pipe(self._openssh)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


async def _serve_sftp(folder: Path, keys: Path, is_openssh: bool) -> None:
    def start(channel: Any) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=str(folder).encode())

    how: dict[str, Any] = {} if is_openssh else {"sftp_factory": start}
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: _Server(folder if is_openssh else None),
        server_host_keys=[str(keys / "host")],
        authorized_client_keys=str(keys / "user.pub"),
        encoding=None,
        **how,
    )
    print(server.get_port(), flush=True)
    await server.wait_closed()


def _serve_s3() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    assert server._thread is not None
    server._thread.join()


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server in a process; yields its port and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.places", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.communicate()


def make_keys(folder: Path) -> None:
    """Make the keys of a server and of a user."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(folder / name))
        key.write_public_key(str(folder / f"{name}.pub"))


def make_home(home: Path, keys: Path, port: int, with_key: bool = True) -> None:
    """Make a home folder whose ssh knows the server, and has the user's key."""
    ssh = home / ".ssh"
    ssh.mkdir(parents=True, exist_ok=True)
    host = " ".join((keys / "host.pub").read_text().split()[:2])
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}\n")
    if with_key:
        (ssh / "id_ed25519").write_bytes((keys / "user").read_bytes())
        (ssh / "id_ed25519").chmod(0o600)


if __name__ == "__main__":
    if sys.argv[1] == "s3":
        _serve_s3()
    else:
        asyncio.run(_serve_sftp(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[1] == "openssh"))
