"""What breaks a farm: deeds drawn from a seed, each undone after a while, all written down."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import IO, Any

from tests.chaos.world import LEASE_SECONDS, Machine, Program, World, merging_children, now

MAX_GONE_SHARE = 0.1
FFMPEG_PATIENCE_SECONDS = 0.6

Deed = Callable[[], bool]


class Nemesis:
    """Does one deed after another until its time is over, then heals everything."""

    def __init__(self, world: World, seed: int, log: IO[str]) -> None:
        self.done: Counter[str] = Counter()
        self._world = world
        self._random = random.Random(seed)
        self._log = log
        self._undoings: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._deeds: dict[str, tuple[int, Deed]] = {
            "kill-worker": (14, self._kill_worker),
            "stop-worker": (5, self._stop_worker_briefly),
            "stop-worker-past-its-lease": (6, self._stop_worker_for_long),
            "stop-and-kill-worker": (2, self._stop_and_kill_worker),
            "end-worker": (6, self._end_worker),
            "kill-ffmpeg": (9, self._kill_ffmpeg),
            "steer": (8, self._steer),
            "scribble": (2, self._scribble),
            "cut-worker": (6, self._cut_worker),
            "slow-worker": (6, self._slow_worker),
            "drop-replies": (11, self._drop_replies),
            "repeat": (9, self._repeat),
            "delay": (6, self._delay),
            "kill-server": (5, self._kill_server),
            "stop-server": (3, self._stop_server),
            "kill-valkey": (3, self._kill_valkey),
            "stop-valkey": (1, self._stop_valkey),
            "site-fault": (6, self._site_fault),
        }

    def rage(self, seconds: float) -> None:
        """Do deeds for so long: each of them once, in any order, then as they come."""
        until = now() + seconds
        next_deed = now()
        names = list(self._deeds)
        weights = [self._deeds[name][0] for name in names]
        first = self._random.sample(names, len(names))
        while now() < until:
            self._undo_what_is_due()
            self._world.supervise()
            if now() >= next_deed:
                next_deed = now() + self._random.expovariate(1 / self._world.options.pace_seconds)
                name = first.pop() if first else self._random.choices(names, weights)[0]
                if self._deeds[name][1]():
                    self.done[name] += 1
            time.sleep(0.02)

    def heal(self) -> None:
        """Undo everything that is still to be undone, at once; those that are gone stay gone."""
        while self._undoings:
            heapq.heappop(self._undoings)[2]()
        self._world.relay.clear()
        self._world.site.post("clear_faults")
        for machine in self._world.machines:
            if not machine.is_gone:
                machine.steer(1, 4)
        self._world.steer_doors()
        self.note("healed")

    def note(self, what: str, **more: Any) -> None:
        """Write a line for whoever looks into it afterwards, with the time as the history has it."""
        self._log.write(json.dumps({"at": round(now(), 3), "what": what, **more}, ensure_ascii=False) + "\n")
        self._log.flush()

    # -------------------------------------------------------------------------------- inside

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        heapq.heappush(self._undoings, (now() + seconds, next(self._serial), undo))

    def _undo_what_is_due(self) -> None:
        while self._undoings and self._undoings[0][0] <= now():
            heapq.heappop(self._undoings)[2]()

    def _between(self, low: float, high: float) -> float:
        return round(self._random.uniform(low, high), 2)

    def _victim(self) -> Machine | None:
        """Return a machine to which nothing is being done."""
        free = [one for one in self._world.machines if not one.is_gone and not one.is_busy and one.program.runs]
        return self._random.choice(free) if free else None

    def _client(self) -> str | None:
        """Return one client, or None for all of them."""
        if self._random.random() < 0.3:
            return None
        return self._random.choice([*(one.name for one in self._world.machines), "user"])

    # -------------------------------------------------------------------------------- workers

    def _start_again(self, machine: Machine) -> None:
        machine.program.start()
        machine.is_busy = False
        self.note("started", who=machine.name)

    def _kill_worker(self) -> bool:
        if (machine := self._victim()) is None:
            return False
        machine.program.kill()
        gone = sum(one.is_gone for one in self._world.machines)
        if self._random.random() < 0.08 and gone + 1 <= MAX_GONE_SHARE * len(self._world.machines):
            machine.is_gone = True
            self.done["gone"] += 1
            self.note("killed for ever", who=machine.name)
            return True
        machine.is_busy = True
        away = self._between(0.1, 2) if self._random.random() < 0.6 else self._between(2, 2.5 * LEASE_SECONDS)
        self.note("killed", who=machine.name, seconds=away)
        self._later(away, lambda: self._start_again(machine))
        return True

    def _stop_worker_briefly(self) -> bool:
        return self._stop_worker(self._between(0.3, 0.7 * LEASE_SECONDS))

    def _stop_worker_for_long(self) -> bool:
        return self._stop_worker(self._between(1.1 * LEASE_SECONDS, 2.5 * LEASE_SECONDS))

    def _stop_worker(self, seconds: float) -> bool:
        if (machine := self._victim()) is None:
            return False
        machine.is_busy = True
        machine.program.signal(signal.SIGSTOP)
        self.note("stopped", who=machine.name, seconds=seconds)

        def go_on() -> None:
            machine.program.signal(signal.SIGCONT)
            machine.is_busy = False
            self.note("continued", who=machine.name)

        self._later(seconds, go_on)
        return True

    def _stop_and_kill_worker(self) -> bool:
        if (machine := self._victim()) is None:
            return False
        machine.is_busy = True
        machine.program.signal(signal.SIGSTOP)
        self.note("stopped, to be killed", who=machine.name)

        def kill() -> None:
            machine.program.kill()
            self._start_again(machine)

        self._later(self._between(0.5, 1.5 * LEASE_SECONDS), kill)
        return True

    def _end_worker(self) -> bool:
        """Ask it to end, now and then twice, as an impatient user does."""
        if (machine := self._victim()) is None:
            return False
        machine.is_busy = True
        machine.program.signal(signal.SIGTERM)
        if twice := self._random.random() < 0.3:
            time.sleep(0.05)
            machine.program.signal(signal.SIGTERM)
        self.note("asked to end", who=machine.name, twice=twice)

        def start_when_ended() -> None:
            if machine.program.runs:
                time.sleep(0.01)  # while everything is healed there is nothing else to do
                self._later(0.1, start_when_ended)
            else:
                self._start_again(machine)

        self._later(self._between(0.1, 4), start_when_ended)
        return True

    def _kill_ffmpeg(self) -> bool:
        """Kill the ffmpeg of a worker that merges now; a merge of a small page is over in no time."""
        until = now() + FFMPEG_PATIENCE_SECONDS
        while now() < until:
            machines = [one for one in self._world.machines if one.program.runs and not one.is_busy]
            self._random.shuffle(machines)
            for machine in machines:
                for child in merging_children(machine.program.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                        self.note("killed ffmpeg", who=machine.name, pid=child)
                        return True
        return False

    def _steer(self) -> bool:
        if (machine := self._victim()) is None:
            return False
        if self._random.random() < 0.4:
            machine.steer(0, machine.steering["count"])
            self._later(self._between(1, 1.5 * LEASE_SECONDS), lambda: machine.steer(1, machine.steering["count"]))
        else:
            machine.steer(1, self._random.randint(1, 4))
        self.note("steered", who=machine.name, **machine.steering)
        return True

    def _scribble(self) -> bool:
        """Leave working.json half-written, empty, or nonsense for a while."""
        if (machine := self._victim()) is None:
            return False
        text = self._random.choice(['{"stop": 1, "cou', "", "[]", '{"stop": 1, "count": 3,}', '{"stop": "no"}', "\x00"])
        (machine.folder / "working.json").write_text(text, "utf-8")
        self.note("scribbled", who=machine.name, text=text)
        self._later(self._between(1, 4), lambda: machine.steer(1, machine.steering["count"]))
        return True

    # -------------------------------------------------------------------------------- the network

    def _cut_worker(self) -> bool:
        if (machine := self._victim()) is None:
            return False
        machine.is_busy = True
        silent = self._random.random() < 0.5
        long = self._random.random() < 0.6
        seconds = self._between(1.1 * LEASE_SECONDS, 2.5 * LEASE_SECONDS) if long else self._between(0.5, 4)
        self._world.relay.cut(machine.name, silent=silent)
        self.note("cut off", who=machine.name, silent=silent, seconds=seconds)

        def heal() -> None:
            self._world.relay.heal(machine.name)
            machine.is_busy = False
            self.note("healed", who=machine.name)

        self._later(seconds, heal)
        return True

    def _slow_worker(self) -> bool:
        """Hold back all that a worker says for longer than its lease: it is delivered after others have its jobs."""
        if (machine := self._victim()) is None:
            return False
        machine.is_busy = True
        late = self._between(0.9 * LEASE_SECONDS, 1.5 * LEASE_SECONDS)
        fault = self._world.relay.delay(late, client=machine.name)
        seconds = self._between(1, LEASE_SECONDS)
        self.note("slowed down", who=machine.name, late=late, seconds=seconds)

        def end() -> None:
            fault.end()
            machine.is_busy = False

        self._later(seconds, end)
        return True

    def _path(self) -> str:
        return self._random.choice(
            [
                "/get_url",
                "/get_url",
                "/expand",
                "/expand",
                "/ack",
                "/ack",
                "/heartbeat",
                "/release",
                "/nack",
                "/add_url",
            ]
        )

    def _drop_replies(self) -> bool:
        path, count, client = self._path(), self._random.randint(1, 5), self._client()
        self._world.relay.drop_replies(path, count, client)
        self.note("drops replies", path=path, count=count, client=client)
        return True

    def _repeat(self) -> bool:
        path, count, client = self._path(), self._random.randint(1, 5), self._client()
        self._world.relay.repeat(path, count, client)
        self.note("repeats", path=path, count=count, client=client)
        return True

    def _delay(self) -> bool:
        path, client = self._random.choice(["", self._path()]), self._client()
        late = self._between(0.1, 3) if self._random.random() < 0.7 else self._between(3, 1.5 * LEASE_SECONDS)
        of_answers = self._random.random() < 0.5
        fault = self._world.relay.delay(late, path, client, of_answers=of_answers)
        seconds = self._between(1, 6)
        self.note("delays", path=path, client=client, late=late, of_answers=of_answers, seconds=seconds)
        self._later(seconds, fault.end)
        return True

    # -------------------------------------------------------------------------------- servers and engine

    def _server(self) -> Program | None:
        running = [one for one in self._world.servers if one.runs and not one.is_stopped]
        return self._random.choice(running) if running else None

    def _kill_server(self) -> bool:
        if (server := self._server()) is None:
            return False
        server.kill()
        server.is_down = True
        seconds = self._between(0.2, 5)
        self._world.steer_doors()
        self.note("killed", who=server.name, seconds=seconds)

        def start() -> None:
            server.start()
            self.note("started", who=server.name)
            self._later(2.0, self._world.steer_doors)

        self._later(seconds, start)
        return True

    def _stop_server(self) -> bool:
        if (server := self._server()) is None:
            return False
        server.signal(signal.SIGSTOP)
        seconds = self._between(0.5, 1.5 * LEASE_SECONDS)
        if self._random.random() < 0.5:
            self._world.steer_doors()
        self.note("stopped", who=server.name, seconds=seconds)

        def go_on() -> None:
            server.signal(signal.SIGCONT)
            self._world.steer_doors()
            self.note("continued", who=server.name)

        self._later(seconds, go_on)
        return True

    def _kill_valkey(self) -> bool:
        engine = self._world.engine
        pid = self._world.valkey_pid()
        if not pid:
            return False
        if engine is None:
            os.kill(pid, signal.SIGKILL)
            self.note("killed", who="embedded valkey", pid=pid)
            return True
        engine.kill()
        long = self._random.random() < 0.3
        seconds = self._between(5.5, 9) if long else self._between(0, 3)
        self.note("killed", who="valkey", seconds=seconds)

        def start() -> None:
            engine.start()
            self.note("started", who="valkey")

        self._later(seconds, start)
        return True

    def _stop_valkey(self) -> bool:
        pid = self._world.valkey_pid()
        if not pid:
            return False
        os.kill(pid, signal.SIGSTOP)
        seconds = self._between(0.5, 1.3 * LEASE_SECONDS)
        self.note("stopped", who="valkey", seconds=seconds)

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self.note("continued", who="valkey")

        self._later(seconds, go_on)
        return True

    # -------------------------------------------------------------------------------- the site

    def _site_fault(self) -> bool:
        """Let the CDN misbehave for a moment, in ways that heal."""
        draw = self._random
        faults: list[dict[str, Any]] = [
            {
                "kind": "cut",
                "bytes": draw.randint(0, 40_000),
                "count": draw.randint(1, 6),
                "abort": draw.random() < 0.5,
            },
            {"kind": "cut", "bytes": draw.randint(0, 9_000_000), "count": 4, "path": "*-30080.m4s"},
            {"kind": "expire"},
            {"kind": "slow", "bytes_per_second": draw.choice([20_000.0, 200_000.0]), "count": draw.randint(1, 8)},
            {"kind": "status", "status": draw.choice([403, 404, 500, 503]), "count": draw.randint(1, 8)},
            {"kind": "drop", "count": draw.randint(1, 8)},
            {"kind": "refuse", "mirror": draw.randint(0, 2)},
            {"kind": "stall", "bytes": draw.randint(0, 20_000), "count": draw.randint(1, 4)},
            {"kind": "wrong_range", "count": draw.randint(1, 4)},
            {"kind": "html", "count": draw.randint(1, 4)},
        ]
        fault = draw.choice(faults)
        if draw.random() < 0.5:
            fault = {"mirror": draw.randint(0, 2), **fault}
        self._world.site.post("faults", **fault)
        seconds = self._between(0.3, 2)
        self.note("site", seconds=seconds, **fault)
        self._later(seconds, lambda: self._world.site.post("clear_faults"))
        return True
