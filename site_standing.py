"""How a worker stands with the site: what it tells the server of that, and what it hears. Told from another thread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from errors import RiskControl
from model import Budget
from pace import Pace


class SiteStanding:
    """What is told and heard with each heartbeat of how the site is asked.

    ``told`` is called in the heartbeat's thread and changes nothing; all else belongs to the worker's loop.
    """

    def __init__(self, pace: Pace, line: str = "") -> None:
        self._pace = pace
        self._line = line
        self._refused: dict[str, Any] | None = None
        self._answers_told = 0
        self.probes = False
        """All of this address or account are parked, and this one tries whether the site answers again."""

    @property
    def has_news(self) -> bool:
        """Tell whether the server should hear at once: of a refusal, or of the first answer to who tries."""
        return self._refused is not None or (self.probes and self._pace.answers > self._answers_told)

    @property
    def was_refused(self) -> bool:
        """Tell whether there was a refusal that the server has not heard of yet."""
        return self._refused is not None

    def refused(self, error: RiskControl) -> None:
        """Have the server told that the site wants less; while this is parked it knows."""
        if self._pace.parked_seconds <= 0:
            self._refused = {"kind": error.code[:40], "seconds": error.retry_after_seconds or 0.0}

    def told(self) -> dict[str, Any]:
        """Return what a heartbeat says of it."""
        pace = self._pace
        site: dict[str, Any] = {
            "requests_per_second": round(pace.asked_per_second, 3),
            "wanted_per_second": round(pace.wanted_per_second, 3),
            "answers": pace.answers - self._answers_told,
        }
        if not math.isinf(allowed := pace.allowed):
            site["allowed_per_second"] = allowed
        if (refused := self._refused) is not None:
            site["refused"] = refused
        return {"site": site, **({"egress": self._line} if self._line else {})}

    def heard(self, told: Mapping[str, Any], budget: Budget | None, age_seconds: float) -> None:
        """Obey the answer to what was told so long ago; None is that of a server that knows no budgets."""
        site = told["site"]
        if site.get("refused") is self._refused:
            self._refused = None
        # What two heartbeats have told before the first one was heard of counts once.
        self._answers_told = min(self._pace.answers, self._answers_told + site["answers"])
        obeyed = budget or Budget()
        self._pace.obey(obeyed.requests_per_second, max(0.001, obeyed.holds_seconds - age_seconds))
        if not self.was_refused:
            self._pace.park_for(obeyed.parked_seconds)
        self.probes = obeyed.probes
