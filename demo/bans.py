"""How often each client asks the stand-in site, and who asks so often that it is banned, as the real one does it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT_SECONDS = 60.0
"""So long a request is remembered at least."""


@dataclass(slots=True)
class Client:
    """One address: when it asked, how many requests were answered and refused, and how often it was banned."""

    times: deque[float] = field(default_factory=deque)
    answered: int = 0
    refused: int = 0
    bans: int = 0
    banned_until: float = 0.0
    most: int = 0
    """Requests within one window, at the most."""


class Bans:
    """Counts the requests of each address; refuses one that asked more often than it may, for a while.

    Without a rate everybody is answered. A request that comes while its address is banned counts too, as it is said
    of the real site that asking on prolongs a ban.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.requests_per_second = 0.0
        self.window_seconds = 5.0
        self.ban_seconds = 30.0
        self.clients: dict[str, Client] = {}

    def reset(self) -> None:
        """Go back to the state at start."""
        self.__init__(self._monotonic)  # type: ignore[misc]

    def control(self, body: dict[str, Any]) -> dict[str, float]:
        """Set the rate, its window and for how long a ban lasts, and begin to count anew; return them."""
        names = ("requests_per_second", "window_seconds", "ban_seconds")
        if unknown := sorted(set(body) - set(names)):
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        for name, value in body.items():
            setattr(self, name, float(value))
        self.clients = {}
        return {name: getattr(self, name) for name in names}

    def admits(self, address: str) -> bool:
        """Count a request; tell whether it is answered."""
        now = self._monotonic()
        client = self.clients.setdefault(address, Client())
        client.times.append(now)
        while client.times[0] <= now - max(self.window_seconds, KEPT_SECONDS):
            client.times.popleft()
        recent = sum(1 for at in client.times if at > now - self.window_seconds)
        client.most = max(client.most, recent)
        if self.requests_per_second and recent > self.requests_per_second * self.window_seconds:
            client.bans += client.banned_until <= now
            client.banned_until = now + self.ban_seconds
        is_banned = now < client.banned_until
        client.refused += is_banned
        client.answered += not is_banned
        return not is_banned

    def listing(self) -> dict[str, dict[str, Any]]:
        """Return what was asked by each address; ``most_per_second`` is the mean within its busiest window."""
        now = self._monotonic()
        return {
            address: {
                "answered": client.answered,
                "refused": client.refused,
                "bans": client.bans,
                "is_banned": now < client.banned_until,
                "most_per_second": client.most / self.window_seconds,
            }
            for address, client in self.clients.items()
        }
