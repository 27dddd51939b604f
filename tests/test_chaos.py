"""A farm of real processes in which everything is killed, stopped, cut and repeated keeps all its promises.

One run, a few minutes at most; ``python -m tests.chaos`` is the long one. That the verdict can be another is shown
with the same run: whatever is changed in its evidence is found.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.chaos.course import Outcome, judge, judge_again, run
from tests.chaos.world import Options
from tests.history import Evidence, Report, cid_of
from tests.relay import Call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEED = 2026


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("chaos") / "run"
    options = Options(SEED, folder, workers=9, servers=2, videos=300, large=3, seconds=60, drain_seconds=240)
    yield run(options)


def test_nothing_is_lost_and_nothing_comes_twice(outcome: Outcome) -> None:
    assert outcome.report.violations == [], "\n".join(outcome.lines())
    assert outcome.report.accepted == outcome.report.success >= 300
    # The nemesis did what it is for: workers, servers and the engine were killed, answers were lost, calls repeated.
    wanted = {"kill-worker", "stop-worker-past-its-lease", "kill-server", "kill-valkey", "drop-replies", "repeat"}
    assert wanted <= set(outcome.done), outcome.done
    assert any(call.outcome == "unknown" for call in outcome.evidence.calls)
    assert any(call.status == 409 or lost_leases(call) for call in outcome.evidence.calls)


def test_the_same_holds_with_several_shards(tmp_path: Path) -> None:
    options = Options(
        SEED + 1, tmp_path / "run", workers=6, videos=150, large=2, seconds=30, drain_seconds=240, shards=3
    )
    outcome = run(options)
    assert outcome.report.violations == [], "\n".join(outcome.lines())
    assert outcome.report.accepted == outcome.report.success >= 150


def lost_leases(call: Call) -> bool:
    return call.path == "/heartbeat" and call.status == 200 and bool(call.answer["lost"])


def test_a_run_can_be_judged_again_by_its_folder(outcome: Outcome) -> None:
    assert judge_again(outcome.options.folder).lines()[0] == outcome.lines()[0]


class Bench:
    """The evidence of the run, to be falsified."""

    def __init__(self, outcome: Outcome) -> None:
        self.evidence = dataclasses.replace(outcome.evidence, calls=copy.deepcopy(outcome.evidence.calls))
        self._outcome = outcome

    def report(self, **changes: object) -> Report:
        evidence: Evidence = dataclasses.replace(self.evidence, **changes)  # type: ignore[arg-type]
        return judge(self._outcome.options.folder, evidence, self._outcome.ranges, self._outcome.served)

    def calls(self, path: str, status: int = 200) -> list[Call]:
        return [call for call in self.evidence.calls if call.path == path and call.status == status]


@pytest.fixture
def bench(outcome: Outcome) -> Bench:
    assert outcome.report.violations == []
    return Bench(outcome)


def test_a_success_taken_away_is_found(bench: Bench) -> None:
    first, *others = bench.evidence.success
    report = bench.report(success=others)
    assert f"cid {cid_of(first['url'])} was accepted and is nowhere" in report.lost
    assert report.counters
    assert any("is named by no success" in one for one in report.files)


def test_a_success_written_down_twice_is_found(bench: Bench) -> None:
    first = bench.evidence.success[0]
    assert bench.report(success=[*bench.evidence.success, first]).twice == [
        f"cid {cid_of(first['url'])} is 2 times in success"
    ]


def test_an_ack_accepted_with_the_token_of_an_earlier_lease_is_found(bench: Bench) -> None:
    """The verdict on a queue that compares no tokens: beside an ack stands that of whoever had the job before."""
    leases = [lease for call in bench.calls("/get_url") for lease in call.answer]
    leases += [call.answer["lease"] for call in bench.calls("/expand") if call.answer["lease"]]
    first = {lease["url"]: lease["token"] for lease in sorted(leases, key=fence, reverse=True)}
    ack = next(call for call in bench.calls("/ack") if call.request["token"] != first[call.request["url"]])
    stale = copy.deepcopy(ack)
    stale.request["token"] = first[ack.request["url"]]
    report = bench.report(calls=[*bench.evidence.calls, stale])
    assert any(one.startswith(f"call {ack.serial}: /ack of {ack.request['url']} was accepted") for one in report.stale)


def fence(lease: Mapping[str, str]) -> int:
    return int(lease["token"].split(".")[1])


def test_a_lease_granted_too_early_is_found(bench: Bench) -> None:
    """The verdict on a queue that takes jobs from the living: in the middle of a lease another one is given."""
    grant = next(call for call in bench.calls("/get_url") if call.answer)
    lease = grant.answer[0]
    end = next(call for call in bench.evidence.calls if isinstance(call.request, dict) and ends(call, lease["token"]))
    second = copy.deepcopy(grant)
    second.request = {"worker": "other", "instance": "other", "request": "other", "count": "1"}
    second.answer = [{**lease, "token": re.sub(r"\.(\d+)\.", ".999999999.", lease["token"])}]
    second.invoked_at, second.ended_at = end.invoked_at - 0.0002, end.invoked_at - 0.0001
    report = bench.report(calls=[*bench.evidence.calls, second])
    assert any(one.startswith(f"{lease['url']} was given to other") for one in report.doubled)


def ends(call: Call, token: str) -> bool:
    return call.path in ("/ack", "/nack", "/release", "/expand") and call.request.get("token") == token


def test_a_file_that_is_gone_or_of_another_page_is_found(bench: Bench, outcome: Outcome) -> None:
    first, second = (
        outcome.options.folder / "machines" / item["worker"] / "Download" / item["path"]
        for item in bench.evidence.success[:2]
    )
    content = first.read_bytes()
    try:
        first.unlink()
        assert any("has no finished file" in one for one in bench.report().files)
        first.write_bytes(second.read_bytes())
        assert bench.report().files
    finally:
        first.write_bytes(content)


def test_a_large_file_fetched_again_from_its_beginning_is_found(bench: Bench, outcome: Outcome) -> None:
    path = next(path for path in outcome.ranges if path.endswith("-30080.m4s"))
    before = list(outcome.ranges[path])
    # Both requests are added, since those of the run may all have been cut within the first mark.
    outcome.ranges[path] = [*before, (0, None, 30 * 2**20), (0, None, 30 * 2**20)]  # type: ignore[index]
    try:
        report = bench.report()
        assert report.files or report.refetched_moved_bytes >= 30 * 2**20
    finally:
        outcome.ranges[path] = before  # type: ignore[index]
