"""An event loop in virtual time, whose handles belong to threads of processes that can be stopped and killed.

Nothing waits here: when nobody can go on, the clock jumps to the next timer. A handle carries its thread in a context
variable. A thread that is stopped has its handles put aside until it goes on; of one that is dead no handle ever runs
again, not even a ``finally``: that is what SIGSTOP and SIGKILL do.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any

STEP_LIMIT = 300_000
"""A seed that takes more steps than this runs in a circle."""


class Thread:
    """What can be stopped and killed: a thread of a process of the simulation."""

    __slots__ = ("context", "deferred", "is_dead", "name", "posts_to", "stops")

    def __init__(self, name: str) -> None:
        self.name = name
        self.posts_to = self
        """The thread in which runs what this one hands over with call_soon_threadsafe."""
        self.stops = 0
        self.is_dead = False
        self.deferred: list[asyncio.Handle] = []
        self.context = contextvars.Context()
        self.context.run(THREAD.set, self)


THREAD: ContextVar[Thread | None] = ContextVar("THREAD", default=None)
"""The thread that runs now; None is the world around the machines."""


class Stuck(Exception):
    """Nobody can ever go on, or everybody goes on for ever."""


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address in memory, so that two runs of a seed are equal."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs handles in the order of their time, one after the other."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = 0
        self._graveyard: list[asyncio.Handle] = []
        self._tasks: list[NumberedTask] = []
        self._is_running = False
        self.is_halted = False
        """Set to end the run at once."""
        self.steps = 0
        self.complaints: list[dict[str, Any]] = []
        """What asyncio says of errors that nobody looked at."""

    # -------------------------------------------------------------------------------- what asyncio asks for

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        thread = THREAD.get()
        return self.call_soon(callback, *args, context=thread.posts_to.context if thread else context)

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # it is skipped when its time comes

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coroutine: Coroutine[Any, Any, Any], **options: Any) -> NumberedTask:  # type: ignore[override]
        task = NumberedTask(coroutine, loop=self, **options)
        task.number = len(self._tasks) + 1
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run it at once: there is one thread."""
        future = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(context)

    # -------------------------------------------------------------------------------- running

    def run(self, main: Coroutine[Any, Any, Any], until: float) -> Any:
        """Run a coroutine of the world to its end, all others beside it; raise Stuck where it does not end."""
        task = self.create_task(main, context=contextvars.Context())
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        asyncio._set_running_loop(self)
        self._is_running = True
        try:
            while not task.done() and not self.is_halted:
                self._step(until)
        finally:
            self._is_running = False
            asyncio._set_running_loop(before)
        return task.result() if task.done() else None

    def _step(self, until: float) -> None:
        if not self._ready:
            if not self._timers:
                raise Stuck("nothing is left that could happen")
            self._now = max(self._now, self._timers[0][0])
            if self._now > until:
                raise Stuck(f"no end after {self._now:.0f} s of virtual time")
        while self._timers and self._timers[0][0] <= self._now:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)
        for _unused in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled() and not self.is_halted:
                self._run_handle(handle)

    def _run_handle(self, handle: asyncio.Handle) -> None:
        thread = handle._context.get(THREAD)  # type: ignore[attr-defined]
        if thread is not None:
            if thread.is_dead:
                self._graveyard.append(handle)
                return
            if thread.stops:
                thread.deferred.append(handle)
                return
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise Stuck(f"more than {STEP_LIMIT} steps until {self._now:.1f} s")
        handle._run()

    def stop_thread(self, thread: Thread) -> None:
        """Let a thread do nothing until go_on() was called as often."""
        thread.stops += 1

    def go_on(self, thread: Thread) -> None:
        """Let a stopped thread go on with what has come meanwhile, in its order."""
        thread.stops -= 1
        if not thread.stops:
            self._ready.extend(thread.deferred)
            thread.deferred.clear()

    def kill(self, thread: Thread) -> None:
        """Let a thread never run again."""
        thread.is_dead = True
        self._graveyard += thread.deferred
        thread.deferred.clear()

    def bury(self) -> None:
        """End what was killed, in silence: Python would run its ``finally`` later, and complain."""
        asyncio._set_running_loop(self)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for task in self._tasks:
                    if not task.done():
                        task._log_destroy_pending = False  # type: ignore[attr-defined]
                        _close(task.get_coro())
                self._graveyard.clear()
                self._ready.clear()
                self._timers.clear()
                self._tasks.clear()
        finally:
            asyncio._set_running_loop(None)


def _close(coroutine: Any) -> None:
    for _unused in range(5):  # one that awaits something on its way out has to be told again
        try:
            coroutine.close()
        except BaseException:
            continue
        return
