"""The API under requests that nobody thought of: schemathesis against a real server and a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.api import ask
from tests.fuzz.test_description import problems
from web.openapi import ROUTES

SEED = 7
EXAMPLES = "6"
NEVER_TAKEN = {"POST /ui/sign-in", "GET /openapi.json"}
"""Nobody guesses the password, and schemathesis does not ask for what it has read already."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_meets_a_fault_or_an_answer_that_is_not_described(tmp_path: Path) -> None:
    asked = ask(
        tmp_path, SEED, "--max-examples", EXAMPLES, "--phases", "coverage,fuzzing", "--generation-deterministic"
    )
    assert asked.is_well, asked.report
    assert "Traceback" not in asked.log, asked.log
    wrong = {path: problems("GET", path, 200, answer) for path, answer in asked.seen.items() if answer is not None}
    assert not any(wrong.values()), wrong
    assert asked.seen["/status"]["workers"] and asked.seen["/failed"]["items"] and asked.seen["/sources"]["items"]
    taken = {route for route, statuses in asked.statuses.items() if statuses[200]}
    assert {f"{route.method} {route.path}" for route in ROUTES} - taken == NEVER_TAKEN, asked.statuses
    assert sum(statuses[400] for statuses in asked.statuses.values()) > 500, asked.statuses


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_asked_after_an_answer_with_what_it_said_meets_no_fault(tmp_path: Path) -> None:
    asked = ask(tmp_path, SEED, "--phases", "stateful", "--generation-deterministic")
    assert asked.is_well, asked.report
    assert "Traceback" not in asked.log, asked.log
    taken = {route for route, statuses in asked.statuses.items() if statuses[200]}
    assert {"POST /ack", "POST /nack", "POST /release", "GET /job"} <= taken, asked.statuses
