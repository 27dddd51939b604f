"""An SFTP server as the place, through paramiko.

Who the server is must be known already (``~/.ssh/known_hosts``); who we are is found as ssh finds it: the agent, the
keys in ``~/.ssh``, ``~/.ssh/config``; or the password in the address.

OpenSSH's extensions are used where the server has them (openssh-portable, PROTOCOL, section 4): fsync, so that what is
deleted here is on disk there, and statvfs, because SFTP has no error of its own for a full disk.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import paramiko
from paramiko.sftp import CMD_EXTENDED, CMD_EXTENDED_REPLY

from delivery.parts import DiskTarget, Grown
from delivery.troubles import away, denied
from errors import CircumstanceError
from i18n import _
from model import KIB
from places import Place

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what it has to say comes as an exception, too

CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 60.0
KEEPALIVE_SECONDS = 30
REQUESTS_AHEAD = 64
"""Of 32 KiB each: so much is on its way when a file is read back."""
PIECE_BYTES = 32 * KIB
SHORT_NAME_BYTES = 100
"""A name that is refused although it is so short is not refused for its length."""


def opener(place: Place) -> Callable[[], DiskTarget]:
    """Return what connects to a server."""
    return lambda: DiskTarget(place, Server(place))


class Server:
    """The files below a folder of a server."""

    can_append = True

    def __init__(self, place: Place) -> None:
        # ``sftp://host/~/videos`` is below the home folder, where a connection begins.
        self._base = place.path.removeprefix("/~/") if place.path.startswith("/~/") else place.path or "/"
        self._place = place
        self._client = _connect(place)
        try:
            self._sftp = paramiko.SFTPClient.from_transport(self._client.get_transport())
            assert self._sftp is not None  # only a closed transport has none
            self._sftp.get_channel().settimeout(SILENCE_SECONDS)
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._client.close()
            raise away(place, str(error) or type(error).__name__) from None

    def size(self, relative: PurePosixPath) -> int | None:
        """Return the size of a file."""
        with self._told():
            try:
                return self._sftp.stat(self._at(relative)).st_size or 0
            except FileNotFoundError:
                return None

    def make_folders(self, relative: PurePosixPath) -> None:
        """Make the folders above a file; the place itself must be there."""
        with self._told():
            self._sftp.stat(self._base)
            folder = PurePosixPath()
            for name in relative.parts[:-1]:
                folder /= name
                self._make_folder(self._at(folder))

    def _make_folder(self, path: str) -> None:
        try:
            self._sftp.mkdir(path)
        except OSError as error:  # it may be there; SFTP has no error of its own for that
            try:
                if stat.S_ISDIR(self._sftp.stat(path).st_mode or 0):
                    return
            except FileNotFoundError:
                raise self._refused(error, path) from None
            raise

    @contextmanager
    def append(self, relative: PurePosixPath, start: int) -> Iterator[Grown]:
        """Open a file to write from a place on; answers are not waited for one by one.

        So the last ones are not seen by anybody: the size says whether all was written.
        """
        with self._told():
            with self._sftp.open(self._at(relative), "r+" if start else "w") as file:
                file.set_pipelined(True)
                file.seek(start)
                yield file
                self._sync(file)
                end = file.tell()
            if (self._sftp.stat(self._at(relative)).st_size or 0) < end and self._is_full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, relative: PurePosixPath, piece_bytes: int) -> Iterator[bytes]:
        """Yield a file's bytes, asked for ahead."""
        with self._told(), self._sftp.open(self._at(relative), "r") as file:
            file.prefetch(max_concurrent_requests=REQUESTS_AHEAD)
            while piece := file.read(min(piece_bytes, 8 * PIECE_BYTES)):
                yield piece

    def rename(self, source: PurePosixPath, target: PurePosixPath) -> None:
        """Give a file its name. A server must refuse a name that is taken; one that would not is looked at before."""
        with self._told():
            path = self._at(target)
            if self._stands(path):
                raise FileExistsError(path)
            try:
                self._sftp.rename(self._at(source), path)
            except OSError as error:
                if self._stands(path):
                    raise FileExistsError(path) from None
                raise self._refused(error, path) from None

    def remove(self, relative: PurePosixPath) -> None:
        """Delete a file."""
        with self._told(), suppress(FileNotFoundError):
            self._sftp.remove(self._at(relative))

    def interrupt(self) -> None:
        """Cut the connection."""
        self._client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    # -------------------------------------------------------------------------------- inside

    def _at(self, relative: PurePosixPath) -> str:
        return f"{self._base.rstrip('/')}/{relative}"

    def _stands(self, path: str) -> bool:
        try:
            self._sftp.lstat(path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise what an error of the server or the connection means."""
        try:
            yield
        except (paramiko.SSHException, EOFError) as error:
            raise away(self._place, str(error) or type(error).__name__) from error
        except OSError as error:
            if error.errno is None and not isinstance(error, FileExistsError | TimeoutError) and self._is_full():
                raise OSError(errno.ENOSPC, str(error) or "Failure") from error
            raise

    def _refused(self, error: OSError, path: str) -> OSError:
        """Return why a name may have been refused: SFTP says "failure" of one that is too long for its disk."""
        if error.errno is None and len(path.rpartition("/")[2].encode()) > SHORT_NAME_BYTES and not self._is_full():
            return OSError(errno.ENAMETOOLONG, str(error) or "Failure")
        return error

    def _is_full(self) -> bool:
        """Tell whether the server's disk has no room left, as far as it says."""
        try:
            kind, answer = self._sftp._request(CMD_EXTENDED, "statvfs@openssh.com", self._base)
            if kind != CMD_EXTENDED_REPLY:
                return False
            numbers = [answer.get_int64() for _field in range(5)]  # bsize, frsize, blocks, bfree, bavail
        except (paramiko.SSHException, EOFError, OSError):
            return False
        return bool(numbers[4] * numbers[1] < 8 * PIECE_BYTES)

    def _sync(self, file: Any) -> None:
        with suppress(OSError):  # not every server can
            self._sftp._request(CMD_EXTENDED, "fsync@openssh.com", file.handle)


def _connect(place: Place) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    known = _ssh_config(place.host)
    try:
        client.load_system_host_keys()
        client.connect(
            known.get("hostname", place.host),
            port=place.port or int(known.get("port", 22)),
            username=place.user or known.get("user"),
            password=place.password or None,
            key_filename=known.get("identityfile"),
            timeout=CONNECT_SECONDS,
            banner_timeout=CONNECT_SECONDS,
            auth_timeout=CONNECT_SECONDS,
        )
    except paramiko.BadHostKeyException as error:
        sentence = _("its key is not the one in known_hosts: {problem}")
        raise _closed(client, denied(place, sentence.format(problem=error))) from None
    except paramiko.AuthenticationException as error:
        raise _closed(client, denied(place, str(error))) from None
    except (paramiko.SSHException, OSError, EOFError, ValueError) as error:
        problem = str(error) or type(error).__name__
        if "not found in known_hosts" in problem:
            sentence = _("its key is not known here: connect once by hand, with ssh or sftp")
            raise _closed(client, denied(place, sentence)) from None
        raise _closed(client, away(place, problem)) from None
    transport = client.get_transport()
    assert transport is not None  # it is connected
    transport.set_keepalive(KEEPALIVE_SECONDS)
    return client


def _closed(client: paramiko.SSHClient, error: CircumstanceError) -> CircumstanceError:
    client.close()
    return error


def _ssh_config(host: str) -> dict[str, Any]:
    """Return what ``~/.ssh/config`` says of a host."""
    try:
        with (Path.home() / ".ssh" / "config").open(encoding="utf-8", errors="replace") as file:
            config = paramiko.SSHConfig.from_file(file)
        return dict(config.lookup(host))
    except (OSError, paramiko.SSHException, RuntimeError):
        return {}
