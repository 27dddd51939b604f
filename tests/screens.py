"""A terminal to look at in tests: what pyte makes of the bytes that were written to one."""

from __future__ import annotations

import re

import pyte

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Glass(pyte.HistoryScreen):
    """A screen of so many cells, with what scrolled off it."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows, history=1000, ratio=0.5)
        self._stream = pyte.Stream(self)

    def feed(self, text: str) -> Glass:
        """Let the terminal read a text."""
        self._stream.feed(text)
        return self

    def shown(self) -> list[str]:
        """Return the lines that are on the screen, without blanks at their ends."""
        lines = [line.rstrip() for line in self.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def scrolled(self) -> list[str]:
        """Return the lines that have scrolled off."""
        return ["".join(line[x].data for x in range(self.columns)).rstrip() for line in self.history.top]

    def everything(self) -> list[str]:
        """Return what a person reads who scrolls up."""
        return [*self.scrolled(), *self.shown()]
