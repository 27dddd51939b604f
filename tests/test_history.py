"""The checker itself: each broken promise is found in a history made by hand, and a good one passes."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from model import MIB
from tests.history import WIRE_BYTES, Evidence, Report, check, check_files, check_ranges, stream_hashes
from tests.relay import Call

VIDEO, PAGE, CID = "BV1xx411c7mD", "BV1xx411c7mD?p=1&cid=11", 11
LEASE_SECONDS = 6.0


class History:
    """Builds a history, a call a second unless it is told otherwise."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.at = 0.0

    def call(
        self, path: str, request: dict[str, Any], answer: Any, status: int = 200, heard: bool = True, at: float = -1.0
    ) -> Call:
        self.at = at if at >= 0 else self.at + 1
        outcome = "ok" if status == 200 else "failed" if 400 <= status < 500 else "unknown"
        verb = "GET" if path == "/get_url" else "POST"
        call = Call(len(self.calls) + 1, "c", verb, path, request, self.at, self.at + 0.1, "unknown", status, answer)
        call.outcome = outcome if heard else "unknown"  # type: ignore[assignment]
        self.calls.append(call)
        return call

    def add(self, *urls: str, **more: Any) -> Call:
        answer = {"added": len(urls), "known": 0, "rejected": []}
        return self.call("/add_url", {"urls": list(urls)}, answer, **more)

    def lease(
        self, job: str, fence: int, worker: str = "w1", instance: str = "i1", have: str = "", **more: Any
    ) -> Call:
        request = {"worker": worker, "instance": instance, "request": f"r{fence}", "have": have}
        return self.call("/get_url", request, [lease_of(job, fence)], **more)

    def expand(self, fence: int, page_fence: int, **more: Any) -> Call:
        answer = {"added": 1, "known": 0, "lease": lease_of(PAGE, page_fence)}
        return self.call("/expand", {"url": VIDEO, "token": token(fence), "pages": []}, answer, **more)

    def end(self, verb: str, fence: int, job: str = PAGE, **more: Any) -> Call:
        states = {"ack": "done", "nack": "delayed", "release": "ready"}
        request = {"url": job, "token": token(fence), "path": "other/a.mp4"}
        return self.call(f"/{verb}", request, {"state": states[verb]}, **more)

    def beat(self, fence: int, lost: bool = False, **more: Any) -> Call:
        request = {"worker": "w", "jobs": [{"url": PAGE, "token": token(fence)}]}
        return self.call("/heartbeat", request, {"lost": [PAGE] if lost else []}, **more)

    def evidence(self, **more: Any) -> Evidence:
        success = [{"url": PAGE, "path": "other/a.mp4", "bytes": 5, "worker": "w1"}]
        counts = {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 0}
        known = {"calls": self.calls, "pages": {VIDEO: frozenset({CID})}, "success": success, "failed": []}
        return Evidence(**{**known, "counts": counts, **more})


def token(fence: int) -> str:
    return f"e.{fence}.n{fence}"


def lease_of(job: str, fence: int) -> dict[str, Any]:
    return {"url": job, "token": token(fence), "category": "other", "attempt": 1, "lease_seconds": LEASE_SECONDS}


def dead(url: str, state: str = "dead") -> dict[str, Any]:
    return {"url": url, "state": state, "code": "poison", "reason": "x"}


@pytest.fixture
def history() -> History:
    """One video of one page that goes well."""
    history = History()
    history.add(VIDEO)
    history.lease(VIDEO, 1)
    history.expand(1, 2)
    history.beat(2)
    history.end("ack", 2)
    return history


def only(report: Report, name: str) -> str:
    """Return the one violation, which is of that kind."""
    assert report.violations == getattr(report, name)
    (sentence,) = report.violations
    return str(sentence)


# ------------------------------------------------------------------------------------------ what is well


def test_a_good_history_has_no_violation(history: History) -> None:
    report = check(history.evidence())
    assert report.violations == []
    assert report.line().startswith("accepted=1 success=1 dead=0 lost=0 twice=0 unexpected=0 stale=0 doubled-leases=0")


def test_repeated_calls_with_the_same_answers_are_well(history: History) -> None:
    history.add(VIDEO, at=0.5)
    history.lease(VIDEO, 1, at=2.2)
    history.expand(1, 2, at=3.2)
    history.end("ack", 2, at=9)
    assert check(history.evidence()).violations == []


def test_a_job_that_comes_back_after_its_lease_ran_out_is_well(history: History) -> None:
    history.calls.pop()
    history.lease(PAGE, 3, "w2", at=11)
    history.beat(2, lost=True)
    history.end("ack", 2, status=409)
    history.end("ack", 3)
    report = check(history.evidence())
    assert report.violations == []
    assert report.moved == {CID}


@pytest.mark.parametrize("verb", ["release", "nack"])
def test_a_job_that_was_given_back_may_be_leased_at_once(history: History, verb: str) -> None:
    history.calls.pop()
    history.end(verb, 2, at=5)
    history.lease(PAGE, 3, "w2", at=5.2)
    history.end("ack", 3)
    assert check(history.evidence()).violations == []


def test_a_job_that_was_cancelled_and_redriven_may_be_leased_at_once(history: History) -> None:
    history.calls.pop()
    history.lease(PAGE, 3, "w2", at=5.2)
    history.end("ack", 3)
    assert "before the lease" in only(check(history.evidence()), "doubled")
    history.call("/cancel", {"urls": [PAGE]}, {"cancelled": 1}, at=4.9)
    assert check(history.evidence()).violations == []


def test_what_is_dead_because_a_user_said_so_is_well(history: History) -> None:
    history.calls.pop()
    cancelled = {**dead(PAGE), "code": "cancelled"}
    counts = {"ready": 0, "leased": 0, "delayed": 0, "done": 0, "dead": 1}
    report = check(history.evidence(success=[], failed=[cancelled], counts=counts))
    assert "nobody has asked" in only(report, "died")
    history.call("/cancel", {"urls": [PAGE]}, {}, status=0, heard=False)
    assert check(history.evidence(success=[], failed=[cancelled], counts=counts)).violations == []


def test_what_a_user_had_forgotten_may_be_nowhere(history: History) -> None:
    counts = {"ready": 0, "leased": 0, "delayed": 0, "done": 0, "dead": 0}
    assert len(check(history.evidence(success=[], counts=counts)).lost) == 2
    history.call("/forget", {"urls": [PAGE]}, {"forgotten": 1})
    assert check(history.evidence(success=[], counts=counts)).violations == []


def test_a_release_that_nobody_knows_the_answer_of_may_have_ended_the_lease(history: History) -> None:
    history.calls.pop()
    history.call("/release", {"url": PAGE, "token": token(2)}, None, status=0, at=5)
    history.lease(PAGE, 3, "w2", at=5.2)
    history.end("ack", 3)
    assert check(history.evidence()).violations == []


def test_a_worker_started_anew_may_take_over_what_its_predecessor_held(history: History) -> None:
    history.calls.pop()
    history.lease(PAGE, 3, "w1", "i2", have=PAGE, at=5)
    history.end("ack", 3)
    assert check(history.evidence()).violations == []


def test_an_ack_whose_first_answer_was_lost_gets_it_again_though_the_job_was_not_leased_since(history: History) -> None:
    history.calls[-1].outcome = "unknown"
    history.end("ack", 2)
    assert check(history.evidence()).violations == []


def test_an_addition_nobody_knows_of_may_count_either_way(history: History) -> None:
    other = "BV1yy411c7mE"
    pages = {VIDEO: frozenset({CID}), other: frozenset({12})}
    history.call("/add_url", {"urls": [other]}, None, status=0)
    assert check(history.evidence(pages=pages)).violations == []
    success = [*history.evidence().success, {"url": f"{other}?p=1&cid=12", "path": "b", "bytes": 1, "worker": "w1"}]
    history.end("ack", 4, f"{other}?p=1&cid=12").request["path"] = "b"
    report = check(history.evidence(pages=pages, success=success, counts={}))
    assert (report.lost, report.unexpected) == ([], [])


def test_what_the_site_refuses_may_be_dead(history: History) -> None:
    pages = {VIDEO: frozenset({CID}), "BV1zz": frozenset({13})}
    history.add("BV1zz")
    counts = {"ready": 0, "leased": 0, "delayed": 0, "done": 1, "dead": 1}
    evidence = history.evidence(pages=pages, failed=[dead("BV1zz")], counts=counts)
    assert "is dead though the site has it" in only(check(evidence), "died")
    assert check(dataclasses.replace(evidence, refused=frozenset({13}))).violations == []


# ------------------------------------------------------------------------------------------ lost, twice, unexpected


def test_a_page_that_is_nowhere_is_lost(history: History) -> None:
    history.calls = [call for call in history.calls if call.path == "/add_url"]
    assert only(check(history.evidence(success=[], counts={})), "lost") == "cid 11 was accepted and is nowhere"


def test_a_page_that_was_acknowledged_and_is_not_recorded_is_lost(history: History) -> None:
    report = check(history.evidence(success=[], counts={}))
    assert any("was acknowledged (call 5) and is not in success" in one for one in report.lost)


def test_a_job_that_is_not_finished_is_lost(history: History) -> None:
    report = check(history.evidence(failed=[dead("BV1xx411c7mD", "delayed")]))
    assert "is still delayed" in only(report, "lost")


def test_a_queue_that_had_forgotten_results_has_lost_them(history: History) -> None:
    history.call("/replay", {"worker": "w1", "results": []}, {"recorded": 2, "known": 0})
    assert "had forgotten 2 results" in only(check(history.evidence()), "lost")
    assert check(history.evidence(may_forget=True)).violations == []


def test_a_page_recorded_twice_is_found(history: History) -> None:
    evidence = history.evidence(counts={})
    report = check(dataclasses.replace(evidence, success=[*evidence.success] * 2))
    assert only(report, "twice") == "cid 11 is 2 times in success"


def test_a_page_that_is_recorded_and_dead_is_found(history: History) -> None:
    report = check(history.evidence(failed=[dead(PAGE)], refused=frozenset({CID}), counts={}))
    assert only(report, "twice") == "cid 11 is in success and dead"


def test_a_page_that_nobody_asked_for_is_found(history: History) -> None:
    history.calls = [call for call in history.calls if call.path != "/add_url"]
    assert only(check(history.evidence()), "unexpected") == "cid 11 was never asked for"


def test_a_record_with_a_path_that_nobody_reported_is_found(history: History) -> None:
    success = [{"url": PAGE, "path": "other/b.mp4", "bytes": 5, "worker": "w1"}]
    assert "which nobody has reported" in only(check(history.evidence(success=success)), "unexpected")


@pytest.mark.parametrize("name", ["ready", "leased", "delayed", "done", "dead"])
def test_a_counter_that_does_not_fit_the_lists_is_found(history: History, name: str) -> None:
    counts = dict(history.evidence().counts)
    counts[name] += 1
    assert f"/status says {name}" in only(check(history.evidence(counts=counts)), "counters")


# ------------------------------------------------------------------------------------------ leases and tokens


def without_ack(history: History) -> History:
    history.calls.pop()
    return history


def late_ack(history: History) -> None:
    without_ack(history).lease(PAGE, 3, "w2", at=11)
    history.end("ack", 2)


def late_nack(history: History) -> None:
    without_ack(history).lease(PAGE, 3, "w2", at=11)
    history.end("nack", 2)
    history.end("ack", 3)


def late_expand(history: History) -> None:
    history.lease(VIDEO, 5, "w2", at=9)
    history.calls[2].status, history.calls[2].answer = 0, None
    history.calls[2].invoked_at = 9.5
    history.expand(5, 2, at=9.3)
    history.calls[2].status, history.calls[2].answer = 200, history.calls[-1].answer
    history.calls[3].invoked_at, history.calls[4].invoked_at = 10, 11


def late_beat(history: History) -> None:
    without_ack(history).lease(PAGE, 3, "w2", at=11)
    history.beat(2)
    history.end("ack", 3)


def foreign_token(history: History) -> None:
    history.calls[-1].request["token"] = token(77)


def foreign_beat(history: History) -> None:
    history.calls[-2].request["jobs"][0]["token"] = token(77)


def two_endings(history: History) -> None:
    history.end("release", 2)


@pytest.mark.parametrize(
    "wrong", [late_ack, late_nack, late_expand, late_beat, foreign_token, foreign_beat, two_endings]
)
def test_a_token_that_is_accepted_after_its_lease_has_moved_on_is_found(
    history: History, wrong: Callable[[History], None]
) -> None:
    wrong(history)
    assert only(check(history.evidence()), "stale")


def test_an_ack_that_was_sent_before_the_next_lease_was_known_may_have_come_first(history: History) -> None:
    late_ack(history)
    history.calls[-1].invoked_at = 11.05
    assert check(history.evidence()).stale == []


@pytest.mark.parametrize("renewal", ["beat", "again"])
def test_a_second_lease_before_the_first_one_could_run_out_is_found(history: History, renewal: str) -> None:
    without_ack(history)
    if renewal == "beat":
        history.beat(2, at=8)
    else:
        history.lease(PAGE, 2, at=8)
    history.lease(PAGE, 3, "w2", at=8 + LEASE_SECONDS - 0.5)
    history.end("ack", 3)
    report = check(history.evidence())
    assert "0.39 s before the lease of w1" in only(report, "doubled")


def test_another_worker_of_the_same_instance_takes_nothing_over(history: History) -> None:
    without_ack(history).lease(PAGE, 3, "w1", "i1", have=PAGE, at=5)
    history.end("ack", 3)
    assert only(check(history.evidence()), "doubled")


def test_the_same_worker_started_anew_takes_over_only_what_it_names(history: History) -> None:
    without_ack(history).lease(PAGE, 3, "w1", "i2", at=5)
    history.end("ack", 3)
    assert only(check(history.evidence()), "doubled")


def test_two_leases_of_one_job_in_different_databases_are_told_apart_by_the_clock(history: History) -> None:
    without_ack(history)
    call = history.lease(PAGE, 3, "w2", at=5)
    call.answer[0]["token"] = "f.1.n"
    history.end("ack", 3).request["token"] = "f.1.n"
    assert only(check(history.evidence()), "doubled").startswith(f"{PAGE} was given to w2")


@pytest.mark.parametrize("number", [1, 2, 4], ids=["get_url", "expand", "ack"])
def test_a_repeated_call_that_is_answered_otherwise_is_found(history: History, number: int) -> None:
    call = history.calls[number]
    history.call(call.path, call.request, call.answer, at=call.invoked_at + 0.2)
    history.calls[-1].answer = [lease_of(VIDEO, 1), lease_of("BV2", 9)] if number == 1 else {"added": 7}
    history.calls[-1].answer = {"state": "dead"} if number == 4 else history.calls[-1].answer
    report = check(history.evidence())
    assert [one for one in report.answers if "was answered otherwise" in one]


@pytest.mark.parametrize("number", [2, 4], ids=["expand", "ack"])
def test_a_repeated_call_that_is_refused_though_it_was_accepted_before_is_found(history: History, number: int) -> None:
    call = history.calls[number]
    history.call(call.path, call.request, {"error": "stale"}, status=409, at=10)
    assert "was answered otherwise: 200" in only(check(history.evidence()), "answers")


def test_a_repeated_lease_request_may_get_less_and_after_nothing_something(history: History) -> None:
    request = {"worker": "w9", "instance": "i", "request": "r9"}
    for answer in ([], [lease_of("BVa", 20), lease_of("BVb", 21)], [lease_of("BVb", 21)]):
        history.call("/get_url", request, answer)
    assert check(history.evidence()).answers == []


# ------------------------------------------------------------------------------------------ bytes


def test_bytes_that_came_again_are_counted_and_more_than_a_mark_of_each_connection_is_too_much() -> None:
    report = Report()
    chunk = 10 * MIB
    ranges = {"/a": [(0, chunk, chunk), (chunk, 2 * chunk, 3 * MIB), (chunk + 2 * MIB, 2 * chunk, chunk - 2 * MIB)]}
    check_ranges(ranges, {"/a": 1}, report)
    assert (report.refetched_bytes, report.files) == (MIB, [])
    check_ranges({"/a": [*ranges["/a"], (0, chunk, MIB + WIRE_BYTES)]}, {"/a": 1}, report)
    assert report.files == []
    check_ranges({"/a": [(0, chunk, chunk), (0, chunk, chunk)]}, {"/a": 1}, report)
    assert len(report.files) == 1


def test_bytes_of_a_page_that_changed_its_machine_are_counted_apart() -> None:
    report = Report(moved=frozenset({1}))
    check_ranges({"/a": [(0, None, 90 * MIB), (0, None, 90 * MIB)]}, {"/a": 1}, report)
    assert (report.refetched_bytes, report.refetched_moved_bytes, report.files) == (0, 90 * MIB, [])


# ------------------------------------------------------------------------------------------ files

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Two pages as a site serves them, each a picture and a sound."""
    folder = tmp_path_factory.mktemp("served")
    found = {}
    for cid in (11, 12):
        picture, sound = folder / f"{cid}-v.m4s", folder / f"{cid}-a.m4s"
        command = [FFMPEG, "-v", "error", "-nostdin", "-f", "lavfi", "-i", f"testsrc2=s=64x48:r=5:d=1,hue=h={cid * 9}"]
        command += ["-f", "lavfi", "-i", f"sine=f={cid * 40}:d=1"]
        command += ["-map", "0", "-f", "mp4", f"file:{picture}", "-map", "1", "-f", "mp4", f"file:{sound}"]
        subprocess.run(command, check=True)
        found[cid] = [picture, sound]
    return found


def merge(streams: list[Path], output: Path, cid: int) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [FFMPEG, "-v", "error", "-nostdin", *(word for path in streams for word in ("-i", f"file:{path}"))]
    command += ["-map", "0", "-map", "1", "-c", "copy", "-metadata", f"comment=https://x cid={cid}", "-y"]
    subprocess.run([*command, f"file:{output}"], check=True)


def digests_of(paths: list[Path]) -> list[str]:
    return [digest for digests in stream_hashes(paths, FFMPEG).values() for digest in digests]


class Disks:
    """Two machines; the page 11 was finished by the first."""

    def __init__(self, folder: Path, streams: dict[int, list[Path]]) -> None:
        self.machines = {"w1": folder / "w1", "w2": folder / "w2"}
        self.streams = streams
        self.output = self.machines["w1"] / "other" / "a.mp4"
        merge(streams[11], self.output, 11)
        self.machines["w2"].mkdir()
        for machine in self.machines.values():
            (machine / ".parts").mkdir()

    def report(self, moved: bool = False, size: int = 0) -> Report:
        report = Report(moved=frozenset({11} if moved else ()))
        size = size or (self.output.stat().st_size if self.output.exists() else 1)
        success = [{"url": PAGE, "path": "other/a.mp4", "bytes": size, "worker": "w1"}]
        served = {cid: digests_of(paths) for cid, paths in self.streams.items()}
        check_files(self.machines, success, served, FFMPEG, report)
        return report


@pytest.fixture
def disks(tmp_path: Path, streams: dict[int, list[Path]]) -> Disks:
    return Disks(tmp_path, streams)


def test_the_file_of_a_success_with_the_packets_of_the_site_is_well(disks: Disks) -> None:
    assert disks.report().violations == []


def test_a_success_without_its_file_is_found(disks: Disks) -> None:
    disks.output.unlink()
    assert "has no finished file other/a.mp4" in only(disks.report(), "files")


def test_a_file_of_another_size_than_recorded_is_found(disks: Disks) -> None:
    assert "recorded are 7" in only(disks.report(size=7), "files")


def test_a_file_with_the_packets_of_another_page_is_found(disks: Disks, streams: dict[int, list[Path]]) -> None:
    merge(streams[12], disks.output, 11)
    assert "does not hold what the site serves" in only(disks.report(), "files")


def test_a_broken_file_is_found(disks: Disks) -> None:
    content = disks.output.read_bytes()
    at = content.index(b"mdat") + 600
    disks.output.write_bytes(content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 64]) + content[at + 64 :])
    assert "does not hold what the site serves" in only(disks.report(), "files")


def test_a_second_file_is_found_and_only_that_of_a_moved_page_on_another_machine_is_none(
    disks: Disks, streams: dict[int, list[Path]]
) -> None:
    merge(streams[11], disks.machines["w2"] / "other" / "a.mp4", 11)
    assert "is named by no success" in only(disks.report(), "files")
    report = disks.report(moved=True)
    assert (report.violations, report.copies) == ([], 1)
    merge(streams[11], disks.machines["w1"] / "other" / "a [11].mp4", 11)
    assert "a [11].mp4 (cid 11) is named by no success" in only(disks.report(moved=True), "files")


def test_a_file_of_a_page_that_is_not_recorded_at_all_is_found(disks: Disks, streams: dict[int, list[Path]]) -> None:
    merge(streams[12], disks.machines["w2"] / "other" / "b.mp4", 12)
    assert "is named by no success" in only(disks.report(), "files")


def test_parts_that_are_left_of_a_finished_page_are_found_on_its_own_machine(disks: Disks) -> None:
    (disks.machines["w2"] / ".parts" / "11-v80-7-100.m4s").touch()
    report = disks.report()
    assert (report.violations, report.parts_elsewhere) == ([], 1)
    (disks.machines["w1"] / ".parts" / "11-v80-7-100.journal").touch()
    assert "was left of a finished page" in only(disks.report(), "files")


def test_hashes_of_many_files_are_told_apart_also_when_one_of_them_is_broken(
    tmp_path: Path, streams: dict[int, list[Path]]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no media")
    files = [Path(shutil.copy(path, tmp_path)) for paths in streams.values() for path in paths]
    hashes = stream_hashes([*files, broken], FFMPEG)
    assert hashes[broken] == []
    assert [hashes[path] for path in files] == [[digest] for paths in streams.values() for digest in digests_of(paths)]
    assert len({digest for path in files for digest in hashes[path]}) == 4
