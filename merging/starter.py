"""The process that starts a worker's ffmpegs, run as a program of its own: ``python -I -S starter.py DOOR``.

An ffmpeg must die with its worker, even by kill -9, and leave the processors to others. Neither can be done in the
worker: the kernel ties a child to the thread that forked it, and between fork and exec nothing is safe beside threads.
An interpreter of its own for each ffmpeg costs a third of a small merge. So one process without threads serves them
all. It is Linux only.

DOOR is the number of an open socket (SEQPACKET). Each message asks for one process: ``pack_request``, and with it the
descriptors of its stdout, its stderr, and a line: the end of a socket pair, through which the exit status comes back as
a decimal number when the process has ended. Who shuts the other end of the line has the process killed with its whole
group. When the door shuts, the worker is no more: all are killed. When this process itself is killed, the kernel
kills them, and the lines end without a number.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
from typing import NoReturn

PROGRAM = __file__
NICENESS = 10
MAX_REQUEST_BYTES = 128 * 1024
_PR_SET_PDEATHSIG = 1


def pack_request(processor: int, arguments: list[str]) -> bytes:
    """Return the message that asks for a command, to run on the processor of that number (-1: on any)."""
    return b"\0".join([b"%d" % processor, *map(os.fsencode, arguments)])


class _Starter:
    def __init__(self, door: socket.socket) -> None:
        self._door = door
        door.set_inheritable(False)
        self._prctl = ctypes.CDLL(None).prctl
        self._pid = os.getpid()
        self._ends, wake = os.pipe()
        for descriptor in (self._ends, wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._lines: dict[int, socket.socket] = {}
        """The line of each process, by its id."""
        self._owners: dict[int, int] = {}
        """The process of each line that is open, by the line's descriptor."""
        self._poll = select.poll()
        for waited in (door.fileno(), self._ends):
            self._poll.register(waited, select.POLLIN)

    def serve(self) -> None:
        """Start what is asked for, until the door shuts."""
        while True:
            for descriptor, _event in self._poll.poll():
                if descriptor == self._ends:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._ends, 4096)
                elif descriptor != self._door.fileno():
                    self._hang_up(descriptor)
                elif not self._take():
                    for pid in self._lines:
                        _kill(pid)
                    return
            self._reap()

    def _take(self) -> bool:
        """Serve one request; return False if there will be none any more."""
        try:
            request, descriptors, *_ = socket.recv_fds(self._door, MAX_REQUEST_BYTES, 3)
        except ConnectionResetError:
            return False
        if not request:
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # or the next process holds them open as well
        stdout, stderr, line_descriptor = descriptors
        line = socket.socket(fileno=line_descriptor)
        processor, *arguments = request.split(b"\0")
        try:
            pid = os.fork()
            if pid == 0:
                self._become(int(processor), arguments, stdout, stderr)
        except OSError as error:
            os.write(stderr, (error.strerror or "fork").encode())
            _tell(line, 1)
        else:
            self._lines[pid] = line
            self._owners[line_descriptor] = pid
            self._poll.register(line, select.POLLIN)
        finally:
            os.close(stdout)
            os.close(stderr)
        return True

    def _become(self, processor: int, arguments: list[bytes], stdout: int, stderr: int) -> NoReturn:
        """Turn this forked process into the command."""
        try:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self._pid:
                os._exit(1)  # it was killed before it could be tied to us
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.nice(NICENESS)
            _settle(processor)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execv(arguments[0], arguments)
        except OSError as error:
            os.write(2, os.fsencode(f"{os.fsdecode(arguments[0])}: {error.strerror}"))
        finally:
            os._exit(1)

    def _hang_up(self, descriptor: int) -> None:
        """Kill the process whose line was shut; the line is told when that has ended."""
        self._poll.unregister(descriptor)
        _kill(self._owners[descriptor])

    def _reap(self) -> None:
        while self._lines:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            line = self._lines.pop(pid)
            del self._owners[line.fileno()]
            with contextlib.suppress(KeyError):
                self._poll.unregister(line)
            _tell(line, os.waitstatus_to_exitcode(status))


def _settle(processor: int) -> None:
    """Keep this process to one processor, and let it wait its turn there.

    ffmpeg hands each packet from one thread to another. On two processors each hand-over wakes the other one up, which
    costs up to twice as much as the work itself, and more time as well. A batch process does not interrupt others when
    it wakes, so that packets are handed over by the queue.
    """
    with contextlib.suppress(OSError):
        if processor >= 0:
            os.sched_setaffinity(0, {processor})
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _kill(pid: int) -> None:
    """Kill a process that was not reaped yet, and its group; SIGTERM would leave a short file that looks whole."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):  # it has no group yet
        os.kill(pid, signal.SIGKILL)


def _tell(line: socket.socket, status: int) -> None:
    with line, contextlib.suppress(OSError):  # nobody listens any more
        line.send(b"%d" % status)


if __name__ == "__main__":
    _Starter(socket.socket(fileno=int(sys.argv[1]))).serve()
    os._exit(0)
