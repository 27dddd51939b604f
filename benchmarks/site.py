"""The stand-in site for videos of the benchmark, under the real site's names, with media at addresses of nginx.

    python -m benchmarks.site <list of streams> <media host:port,...>

prints ``ready <port>``. nginx stands in front of it with TLS; a proxy leads the real names there (``relay``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from aiohttp import web

from benchmarks.videos import read_shelf
from demo.api import Site
from demo.counters import Counters
from demo.media import Library
from demo.site import REAL_WEB_URL
from demo.state import SiteState

PLACES = {"api.bilibili.com": "api", "www.bilibili.com": "web", "passport.bilibili.com": "passport", "b23.tv": "short"}
"""The real names, and the folder of the stand-in that answers for each."""


def front(site_port: int) -> tuple[str, str]:
    """Return what nginx needs to stand in front of the site: directives for http, and for each server."""
    names = " ".join(f"{host} {place};" for host, place in PLACES.items())
    http = f"map $host $place {{ default nowhere; {names} }}\n"
    http += f"upstream site {{ server 127.0.0.1:{site_port}; keepalive 32; }}"
    server = "location / {\n  proxy_pass http://site/$place$request_uri; proxy_http_version 1.1;\n"
    return http, server + '  proxy_set_header Connection ""; proxy_set_header Host $host;\n}'


# ------------------------------------------------------------------------------------------ the proxy


async def relay(port: int, to_port: int) -> asyncio.Server:
    """Serve CONNECT: every tunnel leads to nginx, whatever name it is for; TLS goes through as it is."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", to_port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        writer.close()

    return await asyncio.start_server(accept, "127.0.0.1", port)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


# ------------------------------------------------------------------------------------------ the command


async def serve(shelf: Path, media: tuple[str, ...], port: int, relay_port: int, front_port: int) -> None:
    """Serve until a signal."""
    crowd = read_shelf(shelf)
    state = SiteState(Library(shelf.parent, ()), crowd, counters=Counters(len(media)))
    state.web_url, state.media_hosts = REAL_WEB_URL, media
    app = Site(state, "").application()
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    server = await relay(relay_port, front_port)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    server.close()
    await runner.cleanup()


def main() -> int:
    """Serve; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shelf", type=Path)
    parser.add_argument("media")
    for name in ("port", "relay_port", "front_port"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    media = tuple(options.media.split(","))
    asyncio.run(serve(options.shelf, media, options.port, options.relay_port, options.front_port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
