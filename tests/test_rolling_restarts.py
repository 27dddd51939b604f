"""Two servers are restarted in turn, gently and by kill -9, while real workers go on; then everything is counted."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.course import Outcome, run
from tests.chaos.world import Options, World
from tests.farm import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS = 2
DONE_AT_LEAST = 5
"""Videos between two restarts: the farm works meanwhile."""


def restart_in_turn(world: World) -> dict[str, int]:
    """End each server ROUNDS times gently and ROUNDS times by force, never both at once."""
    done: Counter[str] = Counter()

    def finished() -> int:
        counts = world.counts()
        return counts["done"] if counts else 0

    for number in range(2 * ROUNDS):
        for server, port in zip(world.servers, world.ports, strict=True):
            before = finished()
            if number % 2:
                server.kill()
                done["kill"] += 1
            else:
                server.signal(signal.SIGTERM)
                status = server.wait(15)
                assert status == 0, f"asked to end, the exit status of {server.name} was {status}"
                done["terminate"] += 1
            target = min(before + 1, world.options.videos)
            wait_until("the other server has work done", lambda: finished() >= target, 60)  # noqa: B023
            server.start()
            wait_until(f"{server.name} serves", lambda: world.serves(port), 30)  # noqa: B023
            target = min(before + DONE_AT_LEAST, world.options.videos)
            wait_until("work goes on", lambda: finished() >= target, 60)  # noqa: B023
    return dict(done)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("rolling") / "run"
    # A lease that no busy machine lets run out: whatever changes hands here was given away by a restart. All is added
    # at once: who adds later waits for a server that is down, and the others would have nothing to do.
    options = Options(
        11, folder, 4, 2, videos=400, large=2, seconds=1, drain_seconds=180, lease_seconds=30, fails_over=True
    )
    yield run(options, restart_in_turn)


def test_rolling_restarts_lose_nothing_and_double_nothing(outcome: Outcome) -> None:
    assert outcome.report.violations == [], "\n".join(outcome.lines())
    assert outcome.report.accepted == outcome.report.success >= 400
    assert outcome.done == {"terminate": 2 * ROUNDS, "kill": 2 * ROUNDS}


def test_the_workers_went_from_server_to_server_and_were_never_without_one(outcome: Outcome) -> None:
    logs = [path.read_text("utf-8") for path in Path(outcome.options.folder).glob("machines/*/log")]
    assert len(logs) == 4
    assert sum(log.count("another server is asked") for log in logs) >= 2 * ROUNDS
    assert sum(log.count("asking again until it answers") for log in logs) == 0
    assert outcome.report.moved == frozenset()
