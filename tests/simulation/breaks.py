"""The product broken on purpose: each break must be found, so that the simulation is known to be able to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import download_scheduler
import queue_client
import redisConnect
from model import Result
from store.engine import engine_errors

Put = Callable[[Any, str, Any], None]


def _same(text: str) -> str:
    return text


class Break(NamedTuple):
    """What is broken: the text of the scripts, or the modules."""

    edit: Callable[[str], str] = _same
    install: Callable[[Put], None] | None = None
    kinds: str = ""
    """The faults that it needs, where it is found by few others."""


def _replacing(old: str, new: str, begins: str = "") -> Callable[[str], str]:
    def edit(text: str) -> str:
        if begins and begins not in text:
            return text
        assert begins == "" or old in text, f"{old!r} is not in the scripts any more"
        return text.replace(old, new)

    return edit


def _always_ours(put: Put) -> None:
    put(queue_client.Held, "is_ours", lambda self: True)


def _ack_first(put: Put) -> None:
    file = download_scheduler.Scheduler._file

    async def tell_then_do(self: Any, held: Any, view: Any, video: Any, page: Any) -> Any:
        await self._queue.ack(held.lease, Result("x", 1, 1.0))
        return await file(self, held, view, video, page)

    put(download_scheduler.Scheduler, "_file", tell_then_do)


def _two_steps(put: Put) -> None:
    add = redisConnect.Queue.add

    def note_then_push(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        new = [one for one in ids if not self._redis.hexists("{bili:0}:pushed", one)]
        added = add(self, ids, *args, **kwargs)
        for one in new:
            self._redis.hset("{bili:0}:pushed", one, 1)
            self._redis.rpush("{bili:0}:ready", one)
        return added

    put(redisConnect.Queue, "add", engine_errors(note_then_push))


def _sees_no_file(put: Put) -> None:
    place = download_scheduler.Scheduler._place
    put(download_scheduler.Scheduler, "_place", lambda self, *about: (place(self, *about)[0], False))


BREAKS: dict[str, Break] = {
    "token": Break(
        _replacing("return redis.call('HGET', TOKEN, id) == token", "return redis.call('HEXISTS', TOKEN, id) == 1")
    ),
    "always-ours": Break(install=_always_ours),
    "ack-first": Break(install=_ack_first),
    "two-steps": Break(_replacing("  if new or (refresh", "  if false or (refresh", "-- add:"), _two_steps),
    "sees-no-file": Break(install=_sees_no_file),
    "early": Break(_replacing("'ZRANGEBYSCORE', LEASED, '-inf', at,", "'ZRANGEBYSCORE', LEASED, '-inf', at + 2000,")),
    "renews-nothing": Break(_replacing("redis.call('ZADD', LEASED, 'XX', at + lease_ms, id)", "", "-- heartbeat:")),
    "counts-wrongly": Break(
        _replacing("redis.call('HINCRBY', HOLDS, worker, -1)", "redis.call('HINCRBY', HOLDS, worker, 0)")
    ),
    "waits-for-the-clock": Break(_replacing("bring_in(KEPT, at + affinity_ms)", ""), kinds="queue_clock,kill,moments"),
    "loses-refresh": Break(_replacing("tries.again = true", ""), kinds="grow,stop,moments,delay"),
}
