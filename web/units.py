"""Sizes and durations for people."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from i18n import _
from model import KIB, MIB

log = logging.getLogger(__name__)


def size_text(size_bytes: float) -> str:
    """Return a size for people: three digits and a unit."""
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 99.95 or units[0] == "B" else f"{value:.1f} {units[0]}"


def speed_setting(speed_bytes: float) -> str:
    """Return a limit of the speed as BILI_MAX_SPEED takes it: the largest unit that says it exactly."""
    for unit, size in (("G", KIB * MIB), ("M", MIB), ("K", KIB)):
        if speed_bytes and speed_bytes * 100 % size == 0:
            return f"{speed_bytes / size:g}{unit}"
    return f"{speed_bytes:g}"


def span_text(seconds: float, _: Callable[[str], str] = _) -> str:
    """Return a duration for people, in one unit."""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return _("{count} s").format(count=round(seconds))
    if seconds < 59.5 * 60:
        return _("{count} min").format(count=round(seconds / 60))
    if seconds < 23.5 * 3600:
        return _("{count} h").format(count=round(seconds / 3600))
    return _("{count} d").format(count=round(seconds / 86400))


def moment_text(at: float) -> str:
    """Return a moment as ``<time datetime>`` wants it, to the second; where the viewer is, the browser knows."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(round(at)))
