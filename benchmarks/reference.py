"""The reference's way to download, as a yardstick: ranges of 10 MiB at once over aiohttp, whole in memory, then joined.

It asks for the size, downloads all ranges side by side (as many connections as are allowed), keeps each as one bytes
object, and writes them one after the other when the last one has come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

import aiohttp

CHUNK_BYTES = 10 << 20


async def download(url: str, path: Path, connections: int, ca_file: str) -> None:
    """Download a file."""
    context = ssl.create_default_context(cafile=ca_file or None)
    connector = aiohttp.TCPConnector(limit=connections, ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        async with session.head(url) as reply:
            size_bytes = int(reply.headers["Content-Length"])

        async def one(start: int) -> bytes:
            stop = min(start + CHUNK_BYTES, size_bytes)
            async with session.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}) as reply:
                reply.raise_for_status()
                return await reply.read()

        chunks = await asyncio.gather(*(one(start) for start in range(0, size_bytes, CHUNK_BYTES)))
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


def main() -> int:
    """Download, and print what it cost as JSON."""
    parser = argparse.ArgumentParser()
    for name in ("url", "path", "connections", "ca_file"):
        parser.add_argument(name)
    options = parser.parse_args()
    started, cpu = time.perf_counter(), time.process_time()
    asyncio.run(download(options.url, Path(options.path), int(options.connections), options.ca_file))
    json.dump(
        {"download_wall_seconds": time.perf_counter() - started, "download_cpu_seconds": time.process_time() - cpu},
        sys.stdout,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
