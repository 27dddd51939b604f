"""The worker's own download without the queue: the product's objects as run.py makes them, fed with URLs.

    python ours.py <folder of the product> <folder for parts> <connections>   < streams.json

``streams.json`` is a list of streams, each a list of the URLs of its mirrors. Settings come from the environment, as
they do for a worker. What it cost is printed as JSON, with the files' paths in the order of the streams.

Everything that knows the product's classes is in ``download_all``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit


async def download_all(folder: Path, connections: int, streams: list[list[str]]) -> list[str]:
    """Download all streams side by side, as jobs of one worker; return where they are."""
    import config
    from download_stream_file import Wire, download_stream
    from model import StreamSource
    from transfer.connections import Connections
    from transfer.media_client import MediaClient
    from transfer.mirrors import media_allowed
    from transfer.speed_limit import SpeedLimit

    settings = config.parse_settings({**os.environ, "BILI_CONNECTIONS": str(connections)}, folder)
    running = asyncio.Event()
    running.set()
    hosts = tuple({urlsplit(url).netloc for mirrors in streams for url in mirrors})
    async with MediaClient(settings, media_allowed((), hosts)) as client:
        limit = SpeedLimit(settings.max_bytes_per_second or None)
        wire = Wire(client, Connections(settings.connections), running, limit)

        async def one(number: int, urls: list[str]) -> str:
            source = StreamSource(job=f"c{number}", cid=number, name="v80-7", urls=tuple(urls))

            async def refresh() -> StreamSource:
                return source

            return str((await download_stream(wire, source, folder, refresh, lambda progress: None)).path)

        return list(await asyncio.gather(*(one(number, urls) for number, urls in enumerate(streams, 1))))


def main() -> int:
    """Download what standard input names; return the exit status."""
    product, folder, connections = sys.argv[1:]
    sys.path.insert(0, product)
    streams = json.load(sys.stdin)
    import download_stream_file  # noqa: F401  # importing is no part of the download

    started, cpu = time.perf_counter(), time.process_time()
    paths = asyncio.run(download_all(Path(folder), int(connections), streams))
    figures = {
        "download_wall_seconds": time.perf_counter() - started,
        "download_cpu_seconds": time.process_time() - cpu,
    }
    json.dump({**figures, "paths": paths}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
