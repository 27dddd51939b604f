"""``make demo``: the three scripts, as a user would start them, against the stand-in site. Offline.

Leaves playable files in Download/demo and prints what is there and what failed. Its queue, its folder and its ports
are its own: a farm that runs on this machine is not touched. A second run finds everything known.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from i18n import _
from model import MIB

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data" / "demo"
DOWNLOAD = ROOT / "Download" / "demo"
SERVER_LOG = DATA / "web_server.log"
START_SECONDS = 30.0
RATE_BYTES_PER_SECOND = 2 * MIB
"""Of each response of the stand-in site: slow enough to see the bars move."""

console = Console()


def main() -> int:
    """Run the demonstration; return 0 when every page of the stand-in site arrived or failed as it must."""
    console.print(_("The stand-in site makes its videos with ffmpeg at its first start; nothing leaves this machine."))
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / "working.json").write_text('{"stop": 1, "count": 4}\n', "utf-8")
    with SiteProcess(DEFAULT_CACHE, "--rate", str(RATE_BYTES_PER_SECOND)) as site:
        port = _free_port()
        environ = _environ(site, port)
        with SERVER_LOG.open("wb") as log:  # its lines would tear the bars of run.py apart
            server = _start("web_server.py", "--port", str(port), environ=environ, output=log)
        try:
            _wait_until_it_serves(server, port)
            console.print(
                _("The dashboard is at {url}, the server's log in {file}").format(
                    url=f"http://127.0.0.1:{port}/", file=SERVER_LOG
                )
            )
            return _download(site, environ, port)
        finally:
            _end(server)


def _download(site: SiteProcess, environ: dict[str, str], port: int) -> int:
    site.post("risk", name="risk-control", on=False)  # a worker that parks would make people wait
    _start("add_url.py", *_targets(site), "not-a-video", "--category", "demo", environ=environ).wait()
    status = _start("run.py", "--until-empty", "--wait", "0", environ=environ).wait()
    _show_files(_everything(port, "success"))
    _show_failures(_everything(port, "failed"))
    served = sum(mirror["sent_bytes"] for mirror in site.get("stats")["mirrors"])
    console.print(_("The site sent {size:.1f} MiB of media in this run.").format(size=served / MIB))
    console.print(_("Files: {folder}").format(folder=DOWNLOAD))
    return 0 if status in (0, 1) else status  # 1: what the site refuses for good is dead, as it must be


def _targets(site: SiteProcess) -> list[str]:
    """Return every video of the stand-in site, and some of them once more in other words."""
    catalogue = site.get("catalogue")
    videos = [video["bvid"] for video in catalogue["videos"]]
    episodes = [f"ep{episode['ep_id']}" for episode in catalogue["episodes"]]
    first = catalogue["videos"][0]
    short = f"{site.addresses['short']}/Demo001"
    return [*videos, *episodes, f"av{first['aid']}", f"{site.addresses['web']}/video/{first['bvid']}?t=12", short]


def _environ(site: SiteProcess, port: int) -> dict[str, str]:
    # Windows has no embedded engine: there the demo needs a Redis, elsewhere it must not touch the user's.
    others = ("BILI_",) if sys.platform == "win32" else ("BILI_", "REDIS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {
        **kept,
        **site.environ(),
        "BILI_SERVER_URL": f"http://127.0.0.1:{port}",
        "BILI_DATA_DIR": str(DATA),
        "BILI_DOWNLOAD_DIR": str(DOWNLOAD),
        "BILI_WORKING_FILE": str(DATA / "working.json"),
        "BILI_API_INTERVAL": "0",
        "BILI_RATE_PER_ADDRESS": "0",
        "NO_PROXY": "127.0.0.1",
    }


def _start(
    script: str, *arguments: str, environ: dict[str, str], output: BinaryIO | None = None
) -> subprocess.Popen[bytes]:
    shown = " ".join(arguments[:3]) + (" …" if len(arguments) > 3 else "")
    console.rule(f"[bold]python {script} {shown}", align="left")
    return subprocess.Popen([sys.executable, str(ROOT / script), *arguments], env=environ, stdout=output, stderr=output)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_serves(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            _get(port, "healthz")
            return
        except OSError:
            time.sleep(0.1)  # it is starting; the deadline bounds this
    raise SystemExit(_("web_server.py did not start"))


def _get(port: int, path: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return json.load(answer)


def _everything(port: int, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        answer = _get(port, f"{path}?limit=100&after={quote(after)}")
        items += answer["items"]
        after = answer["next"]
    return items


def _show_files(items: list[dict[str, Any]]) -> None:
    table = Table(_("path"), title=_("Downloaded"), title_justify="left")
    table.add_column("MiB", justify="right")
    table.add_column(_("seconds"), justify="right")
    for item in items:
        there = (DOWNLOAD / item["path"]).is_file()
        size = f"{item['bytes'] / MIB:.1f}" if there else _("missing")
        table.add_row(str(item["path"]), size, f"{item['seconds']:.1f}")
    console.print(table)


def _show_failures(items: list[dict[str, Any]]) -> None:
    words = {"delayed": _("delayed"), "dead": _("dead")}
    headings = ("id", _("state"), _("code"), _("reason"))
    table = Table(*headings, title=_("Failed, as the site meant it to"), title_justify="left")
    for item in items:
        table.add_row(item["url"], words.get(item["state"], item["state"]), item["code"], item["reason"])
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
