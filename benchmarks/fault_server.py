"""A server with faults whose bodies are sent by sendfile, so that it costs no more than nginx does.

    python -m benchmarks.fault_server <descriptor of a listening socket> <folder> [--late SECONDS] [--cut once|always]

``--cut always`` ends every body at a random place. ``--cut once`` does so with every range once: the request that goes
on with a range that was cut, or begins it anew, is answered in full.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import signal
import socket
import sys
from pathlib import Path

SEED = 20260101


class Cuts:
    """Decides where bodies end: pure, save for its seeded chance."""

    def __init__(self, kind: str, seed: int = SEED) -> None:
        self._kind = kind
        self._chance = random.Random(seed)
        self._open: dict[str, list[tuple[int, int]]] = {}
        """By path, the ranges that were cut and not asked for again: the first byte, and where the cut was."""

    def stop_of(self, path: str, start: int, stop: int) -> int:
        """Return where the body of ``[start, stop)`` ends."""
        if not self._kind or stop - start < 2:
            return stop
        cuts = self._open.setdefault(path, [])
        if self._kind == "once":
            for one in cuts:
                if one[0] <= start <= one[1]:
                    cuts.remove(one)
                    return stop
        cut = self._chance.randrange(start + 1, stop)
        if self._kind == "once":
            cuts.append((start, cut))
        return cut


def parse_range(text: str, size_bytes: int) -> tuple[int, int]:
    """Return the half-open range of a Range header, or the whole file."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", text)
    if not found:
        return 0, size_bytes
    return int(found[1]), min(size_bytes, int(found[2] or size_bytes - 1) + 1)


class FaultyServer:
    """Answers GET and HEAD with the files of a folder."""

    def __init__(self, root: Path, late_seconds: float, cut: str) -> None:
        self._root, self._late_seconds, self._cuts = root, late_seconds, Cuts(cut)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer request after request of one connection."""
        with contextlib.suppress(OSError, EOFError):
            while await self._answer(await reader.readuntil(b"\r\n\r\n"), writer):
                pass
        writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ")
        headers = {name.lower(): value.strip() for name, _colon, value in (line.partition(":") for line in lines)}
        path = target.partition("?")[0]
        file_path = self._root / path.rpartition("/")[2]
        size_bytes = file_path.stat().st_size
        start, stop = parse_range(headers.get("range", ""), size_bytes)
        if self._late_seconds:
            await asyncio.sleep(self._late_seconds)
        status = "206 Partial Content" if "range" in headers else "200 OK"
        said = [f"HTTP/1.1 {status}", f"Content-Length: {stop - start}", "Accept-Ranges: bytes"]
        said += ["Content-Type: video/mp4", f'ETag: "{size_bytes:x}"']
        if "range" in headers:
            said.append(f"Content-Range: bytes {start}-{stop - 1}/{size_bytes}")
        writer.write("\r\n".join([*said, "", ""]).encode())
        if method == "HEAD":
            return True
        end = self._cuts.stop_of(path, start, stop)
        with file_path.open("rb") as file:
            await asyncio.get_running_loop().sendfile(writer.transport, file, start, end - start)
        return end == stop


async def serve(descriptor: int, server: FaultyServer) -> None:
    """Serve until a signal."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    listening = await asyncio.start_server(server.accept, sock=socket.socket(fileno=descriptor))
    await ended.wait()
    listening.close()


def main() -> int:
    """Serve; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("descriptor", type=int)
    parser.add_argument("root", type=Path)
    parser.add_argument("--late", type=float, default=0.0)
    parser.add_argument("--cut", choices=("once", "always"), default="")
    options = parser.parse_args()
    asyncio.run(serve(options.descriptor, FaultyServer(options.root, options.late, options.cut)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
