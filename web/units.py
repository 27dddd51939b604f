"""What the pages need of sizes and times beside plain_text: as settings and machines write them."""

from __future__ import annotations

import time

from model import KIB, MIB


def speed_setting(speed_bytes: float) -> str:
    """Return a limit of the speed as BILI_MAX_SPEED takes it: the largest unit that says it exactly."""
    for unit, size in (("G", KIB * MIB), ("M", MIB), ("K", KIB)):
        if speed_bytes and speed_bytes * 100 % size == 0:
            return f"{speed_bytes / size:g}{unit}"
    return f"{speed_bytes:g}"


def moment_text(at: float) -> str:
    """Return a moment as ``<time datetime>`` wants it, to the second; where the viewer is, the browser knows."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(round(at)))
