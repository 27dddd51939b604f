"""Starts one of the scripts with a kill -9 built in: at the n-th call of a named function the process kills itself.

    python tests/crash.py MODULE:FUNCTION:N[:after][:stop] -- run.py --until-empty

FUNCTION may be a method, ``Class.method``, and MODULE is where it is looked up when it is called: a function that
another module imported by its name is patched there. ``after`` kills once the N-th call has come back (a coroutine:
once it has ended), else nothing of that call happens. ``stop`` stops the process there in place of killing it, all its
threads, until someone sends it SIGCONT. The scripts know nothing of this.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Point(NamedTuple):
    """Where to end: at the ``number``-th call of a function, before it does anything or ``after`` it came back."""

    module: str
    function: str
    number: int = 1
    after: bool = False
    stop: bool = False

    def __str__(self) -> str:
        words = [word for word, said in (("after", self.after), ("stop", self.stop)) if said]
        return ":".join([self.module, self.function, str(self.number), *words])


def parse_point(text: str) -> Point:
    """Return the point that a text names; raise ValueError where it names none."""
    module, function, number, *rest = [*text.split(":"), "", ""] if text.count(":") < 2 else text.split(":")
    known = rest in ([], ["after"], ["stop"], ["after", "stop"])
    if not known or not number.isdecimal() or int(number) < 1 or not (module and function):
        raise ValueError(f"{text!r} is not MODULE:FUNCTION:N[:after][:stop]")
    return Point(module, function, int(number), "after" in rest, "stop" in rest)


def patch(point: Point) -> None:
    """Build the end into the function; raise AttributeError where there is no such function."""
    holder: Any = importlib.import_module(point.module)
    *path, name = point.function.split(".")
    for part in path:
        holder = getattr(holder, part)
    static = inspect.getattr_static(holder, name)
    wrapped = _dying(static.__func__ if isinstance(static, classmethod) else getattr(holder, name), point)
    setattr(holder, name, classmethod(wrapped) if isinstance(static, classmethod) else wrapped)


def _dying(function: Callable[..., Any], point: Point) -> Callable[..., Any]:
    calls = itertools.count(1)  # one step of it cannot be cut in two by another thread

    def end() -> None:
        # A kill is like a power cut: nothing is closed, flushed or said.
        os.kill(os.getpid(), signal.SIGSTOP if point.stop else signal.SIGKILL)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def dying_coroutine(*arguments: Any, **named: Any) -> Any:
            now = next(calls) == point.number
            if now and not point.after:
                end()
            answer = await function(*arguments, **named)
            if now and point.after:
                end()
            return answer

        return dying_coroutine

    @functools.wraps(function)
    def dying(*arguments: Any, **named: Any) -> Any:
        now = next(calls) == point.number
        if now and not point.after:
            end()
        answer = function(*arguments, **named)
        if now and point.after:
            end()
        return answer

    return dying


def main(arguments: Sequence[str]) -> None:
    """Patch, then run the script as if it had been started itself."""
    text, separator, *command = arguments
    if separator != "--" or not command:
        raise SystemExit(__doc__)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path or ".").resolve() != ROOT / "tests")]
    patch(parse_point(text))
    sys.argv = [str(ROOT / command[0]), *command[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
