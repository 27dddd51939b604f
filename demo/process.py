"""The stand-in site as a process of its own, for tests and scripts that are not asynchronous."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from demo.site import DEFAULT_CACHE
from i18n import _

ROOT = Path(__file__).resolve().parent.parent


class SiteProcess:
    """``with SiteProcess(cache) as site``: starts the site and ends it, also when the parent is killed.

    ``addresses`` are those of the ready line: web, api, passport, short, control, media.
    """

    def __init__(self, cache: Path = DEFAULT_CACHE, *options: str) -> None:
        command = [sys.executable, "-m", "demo.site", "--cache", str(cache), "--end-with-stdin", *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if words[:1] != ["ready"]:
            self.close()
            raise OSError(_("the stand-in site did not start"))
        self.addresses = dict(word.split("=", 1) for word in words[1:])

    def __enter__(self) -> SiteProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the site and wait until it is gone."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def environ(self) -> dict[str, str]:
        """Return the settings that send the downloader here."""
        names = ("web", "api", "passport", "short")
        urls = {f"BILI_{name.upper()}_URL": self.addresses[name] for name in names}
        return {**urls, "BILI_MEDIA_HOSTS": self.addresses["media"]}

    def get(self, name: str) -> Any:
        """Return what the control API says: stats, catalogue or faults."""
        return self._call(name, None)

    def post(self, name: str, /, **content: Any) -> Any:
        """Tell the control API something: faults, reset, gain_page, settings …; return its answer."""
        return self._call(name, json.dumps(content).encode())

    def _call(self, name: str, body: bytes | None) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.addresses['control']}/{name}", body, timeout=30) as response:
            return json.load(response)
