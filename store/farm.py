"""What concerns the farm as a whole: workers and what they are to do, notices, the history, the counts.

All of it is in shard 0, or is summed over the shards when it is looked at. Jobs are the business of redisConnect.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import Any

import series
from budgets import ACCOUNT, Breaker, Told, blamed
from errors import EngineError, EngineFull
from i18n import _
from model import Budget, Counts
from notices import Change, EndedSource, Seen, SeenWorker
from store.budgets import FarmBudgets
from store.data import COMMON_KEYS, as_dict, as_json, key, risk_key
from store.engine import engine_errors
from store.tokens import Tokens

NOTICES_AN_HOUR = 20
WITHHELD_LIMIT = 50
RECENT_STEPS = 60
"""Ten minutes."""
SOON_MS = 600_000
"""A delayed job that is due within this will be work."""
HEARD_SECONDS = 30.0
"""A worker that is silent for longer counts for no speed; with the default lease, beats are 20 s apart at most."""
ORDER_SECONDS, LOGIN_SECONDS = 86400, 600
"""As ``lua/common.lua`` has it: what is older is not meant any more."""
NAMES_AT_ONCE = 500
STEERED_AT_ONCE = 100
"""So that each script's work is bounded."""
ACTIONS = 1000
ACTION_CHARACTERS = 300
LOOK_SECONDS = 2.5
"""A server that lives has swept within that time."""
LISTED_AT_MOST = 100_000


class FarmQueue:
    """The half of the queue that knows no jobs. Who has the connection gives it a way to run scripts and to look."""

    place: str
    _redis: Any
    _shards: int
    _lease_seconds: float
    _budgets: FarmBudgets

    def _run(self, script: str, keys: Sequence[str], args: Iterable[str | int], shard: int = 0) -> Any:
        """Run a script in a shard."""
        raise NotImplementedError

    def _look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what ``ask`` puts into a pipeline, whose keys are all of one shard."""
        raise NotImplementedError

    def _looks(self, ask: Callable[[Any, int], object], shards: Iterable[int] | None = None) -> list[list[Any]]:
        """Ask each shard; one pipeline for each, because the keys of one must lie together."""
        found = []
        for shard in range(self._shards) if shards is None else shards:
            found.append(self._look(lambda pipe, shard=shard: ask(pipe, shard)))  # type: ignore[misc]
        return found

    # -------------------------------------------------------------------------------- for the rest of store/

    @engine_errors
    def look(self, ask: Callable[[Any], object]) -> list[Any]:
        """Return the answers to what ``ask`` puts into a pipeline."""
        return self._look(ask)

    @engine_errors
    def names(self, pattern: str) -> set[str]:
        """Return the names of the queue's keys that are like this, on all shards."""
        return set(self._redis.scan_iter(match=f"{{bili:*}}:{pattern}", count=NAMES_AT_ONCE))

    @engine_errors
    def run(self, script: str, keys: Sequence[str], args: Iterable[str | int], shard: int = 0) -> Any:
        """Run a script of ``lua/`` with the common keys of a shard."""
        return self._run(script, keys, args, shard)

    @property
    def shards(self) -> int:
        """Over how many shards the queue is spread."""
        return self._shards

    def finish_revoked(self) -> int:
        """Take back what tokens that were revoked just now still hold; return how many jobs."""
        return Tokens(self).finish_revoked()

    # -------------------------------------------------------------------------------- what workers tell

    @engine_errors
    def tell_risk(self, marks: Sequence[str], kind: str, seconds: float) -> None:
        """Remember for a while that the site asked a worker for less; ``marks`` are its address and its account."""
        told_ms = round(seconds * 1000)
        with self._redis.pipeline(transaction=False) as pipe:
            for mark in marks:
                pipe.pttl(risk_key(mark))
            left = pipe.execute()
            for mark, left_ms in zip(marks, left, strict=True):
                if told_ms > max(0, left_ms):  # a shorter time must not shorten what another worker told
                    pipe.set(risk_key(mark), kind, px=told_ms)
            pipe.execute()

    @engine_errors
    def budget(self, worker: str, groups: Sequence[str], told: Told) -> Budget:
        """Take note of how a worker asks the site; return how it may, until it is heard again (see budgets.py)."""
        return self._budgets.ask(worker, groups, told)

    @engine_errors
    def leave_budget(self, worker: str, groups: Sequence[str]) -> None:
        """Let a worker go that asks the site nothing more."""
        self._budgets.leave(worker, groups)

    @engine_errors
    def breakers(self) -> list[Breaker]:
        """Return the addresses and accounts of which all workers are parked, because the site has refused one."""
        return self._budgets.breakers()

    @engine_errors
    def sample(self) -> bool:
        """Note how fast the farm is and what it finished since the last step; return whether that was due.

        To be called each second: of several servers the first one in each step does it, the others only look.
        """
        (seconds, micros), step = self._look(lambda pipe: pipe.time().hget(key("sampled"), "step"))
        if step == str(seconds // series.RINGS[series.HOUR].step_seconds - 1):  # the one that has ended
            return False
        numbers = [number for ring in series.RINGS.values() for number in ring]
        keys = [key("sampled"), *map(_ring, series.RINGS)]
        speed = self._speed(seconds * 1000 + micros // 1000)
        return bool(self._run("sample", keys, [speed, *self._done_elsewhere(), *numbers]))

    def _done_elsewhere(self) -> tuple[int, int, int]:
        """Return what was done in all shards but the first: pages, failures, and how many leases there are."""
        pages = failures = leased = 0
        for totals, count in self._looks(
            lambda pipe, shard: pipe.hmget(key("totals", shard), "done", "replayed", "failures", "forgotten").zcard(
                key("leased", shard)
            ),
            range(1, self._shards),
        ):
            done, replayed, failed, forgotten = (int(total or 0) for total in totals)
            pages, failures, leased = pages + done - replayed + forgotten, failures + failed, leased + count
        return pages, failures, leased

    def _speed(self, at_ms: int) -> int:
        """Return the speed of all workers together in bytes a second, of those that were heard of just now."""
        # Beyond now are those that were last heard of before the clock was set back.
        heard = self._redis.zrangebyscore(key("workers"), at_ms - round(HEARD_SECONDS * 1000), at_ms + 1000)
        speed = 0.0
        for i in range(0, len(heard), 100):  # a large answer would hold up the engine
            texts = self._redis.hmget(key("status"), heard[i : i + 100])
            speed += sum(as_dict(text).get("speed_bytes_per_second", 0) for text in texts)
        return round(speed)

    # -------------------------------------------------------------------------------- what people are told

    @engine_errors
    def seen(self, watched_seconds: float) -> tuple[Seen, dict[str, str]]:
        """Return what notices are made of, and what is remembered of those before.

        ``watched_seconds`` is for how long workers could be heard without a break: no silence is longer.
        """
        said, beats, texts, time = self._look(
            lambda pipe: (
                pipe.hgetall(key("noticed")).zrange(key("workers"), 0, -1, withscores=True),
                pipe.hvals(_ring(series.HOUR)).time(),
            )
        )
        held, totals, soon = zip(
            *self._looks(
                lambda pipe, shard: (
                    pipe.hgetall(key("holds", shard)).hmget(key("totals", shard), "done", "replayed", "replayed_at"),
                    pipe.zrange(key("delayed", shard), 0, 0, withscores=True),
                )
            ),
            strict=True,
        )
        at_ms, counts = time[0] * 1000 + time[1] // 1000, self.counts()
        recent = [
            step
            for step in series.read_steps(series.RINGS[series.HOUR], texts, time[0])
            if step.number >= time[0] // series.RINGS[series.HOUR].step_seconds - RECENT_STEPS
        ]
        ended, until = self._ended(said.get("ended", ""))
        is_soon = any(first and first[0][1] < at_ms + SOON_MS for first in soon)
        done, replayed = (sum(int(total[i] or 0) for total in totals) for i in range(2))
        replayed_at = max(int(total[2] or 0) for total in totals)
        return Seen(
            at_seconds=time[0],
            workers=self._seen_workers(beats, set().union(*held), at_ms, watched_seconds),
            lost_after_seconds=max(15.0, 3 * self._lease_seconds),
            failures=sum(step.failures for step in recent),
            finished=sum(step.finished for step in recent),
            open_jobs=counts.ready + counts.leased + (counts.delayed if is_soon else 0),
            waiting_jobs=counts.delayed,
            done=done,
            dead=counts.dead,
            replayed=replayed,
            replayed_seconds=max(0.0, (at_ms - replayed_at) / 1000),
            ended=ended,
            ended_until=until,
        ), said

    def _seen_workers(
        self, beats: list[tuple[str, float]], holds: set[str], at_ms: int, watched_seconds: float
    ) -> list[SeenWorker]:
        workers = []
        for i in range(0, len(beats), 100):  # a large answer would hold up the engine
            part = beats[i : i + 100]
            texts = self._redis.hmget(key("status"), [name for name, _score in part])
            for (name, score), text in zip(part, texts, strict=True):
                status = as_dict(text)
                silent_seconds = min(watched_seconds, max(0.0, (at_ms - score) / 1000))
                if "state" in status:  # who only ever asked for jobs is no machine that could be lost
                    has_ended = status["state"] == "ended" and name not in holds
                    free, risk = status.get("disk_free_bytes"), status.get("risk", "")
                    groups = [status.get("egress", ""), *(f"{ACCOUNT}:{one}" for one in [status.get("account")] if one)]
                    way = blamed(risk, groups) if risk else ""
                    workers.append(SeenWorker(name, silent_seconds, has_ended, free, risk, way))
        return workers

    def _ended(self, after: str) -> tuple[list[EndedSource], str]:
        """Return the sources that ended after a place in the stream of each shard, and the places after them."""
        places = after.split()
        if len(places) != self._shards:
            newest = [self._redis.xrevrange(key("ended", shard), count=1) for shard in range(self._shards)]
            return [], " ".join(entries[0][0] if entries else "0-0" for entries in newest)
        sources = []
        for shard, place in enumerate(places):
            entries = self._redis.xrange(key("ended", shard), f"({place}", "+")
            sources += [
                EndedSource(
                    entry["source"],
                    entry["title"],
                    entry["complete"] == "1",
                    *(int(entry[name]) for name in ("listed", "queued", "unavailable")),
                )
                for _id, entry in entries
            ]
            places[shard] = entries[-1][0] if entries else place
        return sources, " ".join(places)

    @engine_errors
    def change_noticed(self, changes: Sequence[Change]) -> list[str]:
        """Remember changes; return the subjects of those that no other server was quicker with."""
        args = [text for change in changes for text in (change.subject, change.before, change.after)]
        return list(self._run("notice", [key("noticed")], args))

    @engine_errors
    def may_notify(self, text: str) -> bool:
        """Tell whether a notice may go out in this hour; else it is withheld, until ``withheld`` gives it out."""
        seconds, _micros = self._redis.time()
        sent = key(f"notified:{seconds // 3600}")
        with self._redis.pipeline(transaction=False) as pipe:
            count, _set = pipe.incr(sent).expire(sent, 7200).execute()
        if count <= NOTICES_AN_HOUR:
            return True
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key("withheld"), text).ltrim(key("withheld"), -WITHHELD_LIMIT, -1).execute()
        return False

    @engine_errors
    def withheld(self) -> list[str]:
        """Return what was withheld, once, when a new hour has begun; the last notices where there were too many."""
        (seconds, _micros), length = self._look(lambda pipe: pipe.time().llen(key("withheld")))
        if not length or int(self._redis.get(key(f"notified:{seconds // 3600}")) or 0) >= NOTICES_AN_HOUR:
            return []
        with self._redis.pipeline(transaction=True) as pipe:
            return list(pipe.lrange(key("withheld"), 0, -1).delete(key("withheld")).execute()[0])

    # -------------------------------------------------------------------------------- what people order

    @engine_errors
    def steer(
        self, workers: Iterable[str], working: Mapping[str, Any], who: str, login: str = ""
    ) -> tuple[list[str], list[str]]:
        """Have workers set keys of their working.json, or begin the login of that id.

        Return those that will hear of it with their next heartbeat, and those that nobody heard of within a day.
        """
        named = list(dict.fromkeys(workers))
        order = [secrets.token_hex(8), as_json(working), login, who]
        unknown: dict[str, None] = {}
        for start in range(0, len(named), STEERED_AT_ONCE):
            unknown |= dict.fromkeys(
                self._run("steer", [key("orders"), key("logins")], [*order, *named[start : start + STEERED_AT_ONCE]])
            )
        return [worker for worker in named if worker not in unknown], list(unknown)

    @engine_errors
    def working_of(self, workers: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """Return what workers said last of their working.json, by their names; None are all that are known."""
        named = self._redis.zrange(key("workers"), 0, -1) if workers is None else list(dict.fromkeys(workers))
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(named), STEERED_AT_ONCE):
            part = named[start : start + STEERED_AT_ONCE]
            for name, text in zip(part, self._redis.hmget(key("status"), part), strict=True):
                found[name] = as_dict(text).get("working") or {}
        return found

    @engine_errors
    def obey(self, worker: str, obeyed: str) -> dict[str, Any] | None:
        """Take note of the order that a worker has obeyed last; return the one that waits for it, None for none."""
        return _order(self._run("obey", [key("orders")], [worker, obeyed]))

    @engine_errors
    def note_action(self, who: str, what: str, about: str) -> None:
        """Write down what somebody did. The last thousand actions are kept; a repeated call may be there twice."""
        fields = {"who": who[:ACTION_CHARACTERS], "what": what, "about": about[:ACTION_CHARACTERS]}
        self._redis.xadd(key("actions"), fields, maxlen=ACTIONS, approximate=True)

    @engine_errors
    def actions(self, limit: int) -> list[dict[str, Any]]:
        """Return what people did, the newest first."""
        entries = self._redis.xrevrange(key("actions"), count=limit)
        return [{"time": int(entry.split("-")[0]) / 1000, **fields} for entry, fields in entries]

    # -------------------------------------------------------------------------------- what people look at

    @engine_errors
    def history(self, name: str) -> tuple[int, list[series.Point]]:
        """Return the seconds of a step and the points of a range, one of ``series.RINGS``."""
        ring = series.RINGS[name]
        texts, (seconds, _micros) = self._look(lambda pipe: pipe.hvals(_ring(name)).time())
        return ring.step_seconds, series.points(ring, series.read_steps(ring, texts, seconds))

    @engine_errors
    def time_left_seconds(self) -> int | None:
        """Return when all ready and leased jobs will be done at the pace of the last hour; None where nobody knows."""
        counts = self.counts()
        texts, (seconds, _micros) = self._look(lambda pipe: pipe.hvals(_ring(series.HOUR)).time())
        steps = series.read_steps(series.RINGS[series.HOUR], texts, seconds)
        return series.seconds_left(counts.ready + counts.leased, steps, seconds)

    @engine_errors
    def counts(self) -> Counts:
        """Return how many jobs are in each state, in one consistent look at each shard."""
        counts = [
            Counts(ready - int(stale or 0) + kept + suspect, leased, delayed, int(done or 0), dead)
            for ready, kept, suspect, leased, delayed, dead, (done, stale) in self._looks(
                lambda pipe, shard: (
                    pipe.llen(key("ready", shard)).zcard(key("kept", shard)).llen(key("suspect", shard)),
                    pipe.zcard(key("leased", shard)).zcard(key("delayed", shard)).zcard(key("dead", shard)),
                    pipe.hmget(key("totals", shard), "done", "stale"),
                )
            )
        ]
        return Counts(*(sum(numbers) for numbers in zip(*map(astuple, counts), strict=True)))

    @engine_errors
    def replayed(self) -> tuple[int, float] | None:
        """Return how many results were recorded by ``replay``, and how many seconds ago the last; None if none was."""
        found = self._looks(lambda pipe, shard: pipe.hmget(key("totals", shard), "replayed", "replayed_at").time())
        ages = [max(0.0, seconds - int(at) / 1000) for (_count, at), (seconds, _micros) in found if at]
        return (sum(int(count or 0) for (count, _at), _time in found), min(ages)) if ages else None

    @engine_errors
    def next_due_seconds(self) -> float | None:
        """Return how long until the first delayed job is due, None where none is delayed."""
        found = self._looks(lambda pipe, shard: pipe.zrange(key("delayed", shard), 0, 0, withscores=True).time())
        return min(
            (max(0.0, first[0][1] / 1000 - seconds - micros / 1e6) for first, (seconds, micros) in found if first),
            default=None,
        )

    @engine_errors
    def worker_count(self) -> int:
        """Return how many workers were heard of within three lease times, at least two minutes."""
        seconds, _micros = self._redis.time()
        horizon = max(120.0, 3 * self._lease_seconds)
        return int(self._redis.zcount(key("workers"), (seconds - horizon) * 1000, "+inf"))

    @engine_errors
    def workers(self, limit: int = 200) -> list[dict[str, Any]]:
        """Return the workers seen last: name, seconds since then, and the status they sent themselves."""
        seen, (seconds, micros) = self._look(
            lambda pipe: pipe.zrange(key("workers"), 0, limit - 1, desc=True, withscores=True).time()
        )
        names = [name for name, _score in seen]
        if not names:
            return []
        texts, orders, logins = self._look(
            lambda pipe: pipe.hmget(key("status"), names).hmget(key("orders"), names).hmget(key("logins"), names)
        )
        at = seconds + micros / 1e6
        return [
            {
                **_ordered(as_dict(text), login),
                **_pending(order, at),
                "worker": name,
                "seen_seconds": round(max(0.0, at - score / 1000), 1),
            }
            for (name, score), text, order, login in zip(seen, texts, orders, logins, strict=True)
        ]

    # -------------------------------------------------------------------------------- shards

    @engine_errors
    def hold_shards(self) -> None:
        """Write down how many shards there are, once for all; raise EngineError where it is not what is set.

        What an earlier version has written is one shard, and does not say so.
        """
        stands = self._shards_there() or ("1" if self._has_data() else str(self._shards))
        before, _mark, wanted = stands.partition(">")
        if wanted:
            raise EngineError(
                _("The queue in {place} is being spread over {wanted} shards. Finish that: {command}").format(
                    place=self.place, wanted=wanted, command=f"python web_server.py --reshard {wanted}"
                )
            )
        if before != str(self._shards):
            raise EngineError(
                _(
                    "The queue in {place} lies in {count} shards, BILI_SHARDS says {wanted}. Set it to {count}, or,"
                    " while no server and no worker runs: {command}"
                ).format(
                    place=self.place,
                    count=before,
                    wanted=self._shards,
                    command=f"python web_server.py --reshard {self._shards}",
                )
            )
        with suppress(EngineFull):  # there are data then, of one shard
            self._note_shards(before)
        if self._shards_there() not in ("", before):
            self.hold_shards()  # somebody else was first

    @engine_errors
    def _note_shards(self, count: str) -> None:
        self._redis.set(key("shards"), count, nx=True)

    def _shards_there(self) -> str:
        return str(self._redis.get(key("shards")) or "")

    def _has_data(self) -> bool:
        return bool(self._redis.exists(*(key(name) for name in COMMON_KEYS)))

    @engine_errors
    def begin_to_spread(self, shards: int) -> tuple[int, int]:
        """Let nobody else work with the data from now on; return how many shards there are, and are to be.

        Raises EngineError where a server or a worker lives. What was begun is finished first, whatever is wished.
        """
        stands = self._shards_there() or "1"
        before, _mark, wanted = stands.partition(">")
        if int(before) == shards and not wanted:
            return shards, shards
        if wanted and wanted != str(shards):
            raise EngineError(
                _("The queue in {place} is being spread over {wanted} shards. Finish that: {command}").format(
                    place=self.place, wanted=wanted, command=f"python web_server.py --reshard {wanted}"
                )
            )
        if living := self._living():
            raise EngineError(
                _("End every server and every worker first. Alive: {names}").format(names=", ".join(living))
            )
        self._redis.set(key("shards"), f"{before}>{shards}")
        return int(before), shards

    def _living(self) -> list[str]:
        """Return who works with the data: servers sweep each second, workers are heard of within a lease."""
        before = self._redis.get(key("swept"))
        time.sleep(LOOK_SECONDS)
        names = [] if self._redis.get(key("swept")) == before else ["web_server.py"]
        silent = self._lease_seconds
        beats = [one for one in self.workers(LISTED_AT_MOST) if one["seen_seconds"] < silent]
        return names + [one["worker"] for one in beats if one.get("state", "ended") != "ended"]


def _ring(name: str) -> str:
    return key(f"history:{name}")


def _order(text: str | None) -> dict[str, Any] | None:
    order = as_dict(text)
    order.pop("login_at", None)
    return {**order, "at": order["at"] / 1000} if order else None


def _ordered(told: dict[str, Any], login: str | None) -> dict[str, Any]:
    """Return what a worker told, without a login that was not ordered of it: its code may be one of anybody's."""
    is_ordered = bool(login) and as_dict(as_json(told.get("login"))).get("id") == login
    return told if is_ordered else {name: value for name, value in told.items() if name != "login"}


def _pending(text: str | None, at: float) -> dict[str, Any]:
    """Return what to show of an order that its worker has not obeyed yet."""
    found = as_dict(text)
    if "login" in found and abs(at - found["login_at"] / 1000) > LOGIN_SECONDS:
        del found["login"]
    order = _order(as_json(found)) if found.get("working") or found.get("login") else None
    return {"order": order} if order and abs(at - order["at"]) < ORDER_SECONDS else {}
