"""The floor: what the same download costs when nothing can go wrong, with the same checksum of every chunk.

It asks a server that serves ranges for 10 MiB at a time, over connections that stay open, receives into one buffer
that all of them share, and writes each piece where it belongs. No retries, no journal, no limits.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import xxhash

CHUNK_BYTES = 10 << 20
BUFFER_BYTES = 512 << 10


def allocate(descriptor: int, size_bytes: int) -> None:
    """Take the room of a file at once, where the system can."""
    library = ctypes.CDLL(None)
    library.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    library.fallocate64(descriptor, 0, 0, size_bytes)


class Connection(asyncio.BufferedProtocol):
    """One connection that takes chunk after chunk."""

    def __init__(
        self,
        head: str,
        chunks: Iterator[tuple[int, int]],
        descriptor: int,
        buffer: memoryview,
        ended: asyncio.Future[None],
    ) -> None:
        self._head, self._chunks, self._descriptor, self._buffer, self._ended = head, chunks, descriptor, buffer, ended
        self._reply = b""
        self._at = self._stop = 0
        self._in_head = True
        self._digest = xxhash.xxh3_128()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first chunk."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        """A connection that is lost too early is an error; there are no retries here."""
        if not self._ended.done():
            self._ended.set_exception(error or ConnectionError("closed"))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all connections share: what is in it is written before the next read."""
        return self._buffer

    def buffer_updated(self, size_bytes: int) -> None:
        """Write what came to its place."""
        piece = self._buffer[:size_bytes]
        if self._in_head:
            self._reply += bytes(piece)
            end = self._reply.find(b"\r\n\r\n")
            if end < 0:
                return
            if b" 206 " not in self._reply[:16]:
                self._ended.set_exception(ConnectionError(str(self._reply[:64])))
                self._transport.abort()
                return
            piece = memoryview(self._reply)[end + 4 :]
            self._in_head = False
        if not piece:
            return
        os.pwrite(self._descriptor, piece, self._at)
        self._digest.update(piece)
        self._at += len(piece)
        if self._at == self._stop:
            self._digest.digest()
            self._next()

    def _next(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            self._ended.set_result(None)
            self._transport.close()
            return
        self._at, self._stop = chunk
        self._reply, self._in_head, self._digest = b"", True, xxhash.xxh3_128()
        self._transport.write(self._head.format(first=self._at, last=self._stop - 1).encode())


async def download(url: str, size_bytes: int, path: Path, connections: int, ca_file: str) -> None:
    """Download a file of known size."""
    parts = urlsplit(url)
    head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nRange: bytes={{first}}-{{last}}\r\n\r\n"
    chunks = iter([(at, min(at + CHUNK_BYTES, size_bytes)) for at in range(0, size_bytes, CHUNK_BYTES)])
    buffer = memoryview(bytearray(BUFFER_BYTES))
    context = ssl.create_default_context(cafile=ca_file or None) if parts.scheme == "https" else None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    loop = asyncio.get_running_loop()
    try:
        allocate(descriptor, size_bytes)
        ended = [loop.create_future() for _ in range(connections)]
        for one in ended:
            await loop.create_connection(
                lambda one=one: Connection(head, chunks, descriptor, buffer, one),
                parts.hostname or "",
                parts.port or 0,
                ssl=context,
            )
        await asyncio.gather(*ended)
    finally:
        os.close(descriptor)


def main() -> int:
    """Download, and print what it cost as JSON."""
    parser = argparse.ArgumentParser()
    for name in ("url", "size_bytes", "path", "connections", "ca_file"):
        parser.add_argument(name)
    options = parser.parse_args()
    started, cpu = time.perf_counter(), time.process_time()
    asyncio.run(
        download(options.url, int(options.size_bytes), Path(options.path), int(options.connections), options.ca_file)
    )
    json.dump(
        {"download_wall_seconds": time.perf_counter() - started, "download_cpu_seconds": time.process_time() - cpu},
        sys.stdout,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
