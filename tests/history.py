"""Says whether a farm kept its promises: a checker over what a relay wrote down, what the queue lists, and the files.

The first half is pure functions over records. Whatever is not known (a call without an answer may have happened or
not) counts in the product's favour, so that each violation named here is one. The second half looks at files.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from merging.proof import read_tag
from model import MIB
from tests.relay import Call

ENDING_VERBS = ("/ack", "/nack", "/release", "/expand")
SLACK_SECONDS = 0.005
"""The queue's clock has milliseconds."""
WIRE_BYTES = 6 * MIB
"""What the site's system and the worker's hold of one connection: sent by the one, not yet read by the other. So much
the buffer of an ordinary Linux takes (the last of tcp_rmem) while the worker is stopped, until it is killed."""
BATCH = 100

Ranges = Mapping[str, Sequence[tuple[int, int | None, int]]]
"""Start, stop and bytes sent of each request for media in its order, by the path of the stream."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a run when it is over and drained.

    ``pages`` tells the cids behind each text that was submitted and behind each container's id; ``refused`` are
    those that the site refuses to give, the only ones that may be dead. ``counts`` are the counters of /status.
    """

    calls: Sequence[Call]
    pages: Mapping[str, frozenset[int]]
    success: Sequence[Mapping[str, Any]]
    failed: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int] = field(default_factory=dict)
    refused: frozenset[int] = frozenset()
    may_forget: bool = False
    """Whether the queue's data were set back on purpose."""


@dataclass(slots=True)
class Report:
    """What was found; each violation is a sentence."""

    accepted: int = 0
    success: int = 0
    dead: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    """Dead, though the site has them."""
    stale: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    moved: frozenset[int] = frozenset()
    """Pages that were leased to more than one worker."""
    copies: int = 0
    """Finished files of moved pages on a machine that is not the one whose success is recorded."""
    parts_elsewhere: int = 0
    surprises: list[str] = field(default_factory=list)
    """Whatever else should not be: a program that failed, a process that was left behind."""
    refetched_bytes: int = 0
    refetched_moved_bytes: int = 0

    @property
    def violations(self) -> list[str]:
        """All that was wrong."""
        return [
            *(*self.lost, *self.twice, *self.unexpected, *self.died, *self.stale, *self.doubled),
            *(*self.answers, *self.counters, *self.files, *self.surprises),
        ]

    def line(self) -> str:
        """Return the one line that sums it up."""
        numbers = {
            "accepted": self.accepted,
            "success": self.success,
            "dead": self.dead,
            "lost": len(self.lost),
            "twice": len(self.twice),
            "unexpected": len(self.unexpected),
            "stale": len(self.stale),
            "doubled-leases": len(self.doubled),
            "changed-answers": len(self.answers),
            "wrong-counters": len(self.counters),
            "wrong-files": len(self.files),
            "surprises": len(self.surprises),
            "refetched": self.refetched_bytes,
            "refetched-moved": self.refetched_moved_bytes,
            "moved": len(self.moved),
            "copies": self.copies,
        }
        return " ".join(f"{name}={number}" for name, number in numbers.items())


def check(evidence: Evidence) -> Report:
    """Compare everything that was accepted with everything that was recorded, and look at each lease."""
    report = Report()
    leases = _Leases(evidence.calls)
    report.moved = leases.moved()
    _check_pages(evidence, report)
    _check_acks(evidence, report)
    report.stale = [*leases.stale_verbs(), *leases.stale_beats(), *leases.two_endings()]
    report.doubled = leases.doubled()
    report.answers = _changed_answers(evidence.calls)
    _check_counts(evidence, report)
    return report


def cid_of(url: str) -> int | None:
    """Return the cid in the id of a page's job, None for a container."""
    found = re.search(r"[?&]cid=(\d+)", url)
    return int(found[1]) if found else None


def named_in(calls: Iterable[Call], path: str) -> set[str]:
    """Return the jobs that a user's calls may have cancelled, or had forgotten."""
    return {url for call in calls if call.path == path and may_have_happened(call) for url in call.request["urls"]}


def may_have_happened(call: Call) -> bool:
    """Tell whether the server may have done what it was asked: it said so, or nobody knows."""
    return call.status == 200 or (call.outcome == "unknown" and (call.status == 0 or call.status >= 500))


# ------------------------------------------------------------------------------------------ accepted and recorded


def _check_pages(evidence: Evidence, report: Report) -> None:
    required, possible = _asked_for(evidence)
    times: dict[int, int] = defaultdict(int)
    for item in evidence.success:
        if (cid := cid_of(item["url"])) is None:
            report.unexpected.append(f"{item['url']} is in success and is no page")
        else:
            times[cid] += 1
    dead = _dead_pages(evidence, report)
    report.accepted, report.success, report.dead = len(required), len(evidence.success), len(dead)
    report.lost += [f"cid {cid} was accepted and is nowhere" for cid in sorted(required - set(times) - dead)]
    report.twice += [f"cid {cid} is {count} times in success" for cid, count in sorted(times.items()) if count > 1]
    report.twice += [f"cid {cid} is in success and dead" for cid in sorted(set(times) & dead)]
    report.unexpected += [f"cid {cid} was never asked for" for cid in sorted((set(times) | dead) - possible)]


def _asked_for(evidence: Evidence) -> tuple[set[int], set[int]]:
    """Return the pages that were accepted, and those that may have been."""
    required: set[int] = set()
    possible: set[int] = set()
    for call in evidence.calls:
        if call.path != "/add_url" or not may_have_happened(call):
            continue
        rejected = {one["url"] for one in call.answer["rejected"]} if call.status == 200 else set()
        for text in call.request["urls"]:
            if text not in rejected:
                possible |= evidence.pages[text]
                if call.status == 200:
                    required |= evidence.pages[text]
    for url in named_in(evidence.calls, "/forget"):  # it may have been added again, too
        cid = cid_of(url)
        required -= evidence.pages.get(url, frozenset()) if cid is None else {cid}
    return required, possible


def _dead_pages(evidence: Evidence, report: Report) -> set[int]:
    dead: set[int] = set()
    cancelled = named_in(evidence.calls, "/cancel")
    for item in evidence.failed:
        cid = cid_of(item["url"])
        pages = evidence.pages.get(item["url"], frozenset()) if cid is None else frozenset({cid})
        why = f"{item.get('code')}: {item.get('reason')}"
        if item["state"] != "dead":
            report.lost.append(f"{item['url']} is still {item['state']} ({why})")
            continue
        dead |= pages
        if item.get("code") == "cancelled":
            if item["url"] not in cancelled:
                report.died.append(f"{item['url']} is cancelled, and nobody has asked for that")
        elif not pages or not pages <= evidence.refused:
            report.died.append(f"{item['url']} is dead though the site has it ({why})")
    return dead


def _check_acks(evidence: Evidence, report: Report) -> None:
    """What was acknowledged is recorded, and what is recorded was acknowledged, with the same path."""
    recorded = {item["url"]: item["path"] for item in evidence.success}
    forgotten = named_in(evidence.calls, "/forget")
    paths: dict[str, set[str]] = defaultdict(set)
    for call in evidence.calls:
        if call.path == "/replay" and may_have_happened(call):
            for result in call.request["results"]:
                paths[result["url"]].add(result["path"])
            if call.status == 200 and call.answer["recorded"] and not evidence.may_forget:
                report.lost.append(f"the queue had forgotten {call.answer['recorded']} results (call {call.serial})")
        if call.path == "/ack" and may_have_happened(call):
            paths[call.request["url"]].add(call.request["path"])
            if call.status == 200 and call.request["url"] not in {*recorded, *forgotten}:
                report.lost.append(f"{call.request['url']} was acknowledged (call {call.serial}) and is not in success")
    for url, path in recorded.items():
        if path not in paths[url]:
            report.unexpected.append(f"{url} is recorded with {path}, which nobody has reported")


def _check_counts(evidence: Evidence, report: Report) -> None:
    if not evidence.counts:
        return
    dead = sum(1 for item in evidence.failed if item["state"] == "dead")
    listed = {"ready": 0, "leased": 0, "delayed": 0, "done": len(evidence.success), "dead": dead}
    for name, count in listed.items():
        if evidence.counts[name] != count:
            report.counters.append(f"/status says {name}: {evidence.counts[name]}, the lists say {count}")


def _changed_answers(calls: Sequence[Call]) -> list[str]:
    """A repeated call gets the answer that it got before; a repeated lease request nothing that was not in it."""
    found: list[str] = []
    first: dict[tuple[str, ...], Call] = {}
    for call in sorted(calls, key=lambda call: call.invoked_at):
        if call.status not in (200, 409) or not isinstance(call.request, dict) or call.request.get("more"):
            continue
        key = _identity(call)
        if not key or (call.path == "/get_url" and not call.answer):
            continue  # an empty answer is not kept, and changes nothing
        before = first.setdefault(key, call)
        same = before.status == call.status and (call.status == 409 or before.answer == call.answer)
        if call.path == "/get_url":
            same = all(lease in before.answer for lease in call.answer)
        if not same:
            found.append(
                f"call {call.serial} repeats call {before.serial} ({' '.join(key)}) and was answered otherwise: "
                f"{before.status} {before.answer} and {call.status} {call.answer}"
            )
    return found


def _identity(call: Call) -> tuple[str, ...]:
    """Return what makes a call the same as another one, nothing for calls that are not kept."""
    if call.path in ENDING_VERBS:
        return call.path, call.request["url"], call.request["token"]
    if call.path in ("/get_url", "/add_url") and call.request.get("request"):
        return call.path, call.request.get("worker", ""), call.request["request"]
    return ()


# ------------------------------------------------------------------------------------------ leases


@dataclass(slots=True)
class Grant:
    """One lease as its answers show it. ``known_at`` is when the first of them was complete."""

    job: str
    token: str
    worker: str
    instance: str
    lease_seconds: float
    begun_at: float
    known_at: float
    renewed_at: float

    @property
    def order(self) -> tuple[str, int]:
        """The database that gave it, and its number there."""
        epoch, fence, _nonce = self.token.split(".")
        return epoch, int(fence)

    def is_later_than(self, other: Grant) -> bool:
        """Tell whether it was given after another one of the same job, by its number or beyond doubt by the clock."""
        (epoch, fence), (before, number) = self.order, other.order
        return (epoch == before and fence > number) or self.begun_at > other.known_at


class _Leases:
    """All leases that a history shows, by job and token, and what was done with their tokens."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = sorted(calls, key=lambda call: call.invoked_at)
        self._grants: dict[tuple[str, str], Grant] = {}
        self._verbs: dict[tuple[str, str], list[Call]] = defaultdict(list)
        self._beats: list[tuple[Call, str, str]] = []
        self._asked: dict[tuple[str, str], list[Call]] = defaultdict(list)
        self._cancels: dict[str, list[Call]] = defaultdict(list)
        for call in self._calls:
            if isinstance(call.request, dict):
                self._take(call)
            for job in call.request["urls"] if call.path == "/cancel" else ():
                self._cancels[job].append(call)
        self._by_job: dict[str, list[Grant]] = defaultdict(list)
        for grant in sorted(self._grants.values(), key=lambda grant: grant.known_at):
            self._by_job[grant.job].append(grant)
        self._renew()

    def _take(self, call: Call) -> None:
        if call.path in ENDING_VERBS and not call.request.get("more"):
            self._verbs[call.request["url"], call.request["token"]].append(call)
        if call.path == "/get_url":
            for job in filter(None, call.request.get("have", "").split(",")):
                self._asked[call.request.get("worker", ""), job].append(call)
        if call.status != 200:
            return
        if call.path == "/get_url":
            for lease in call.answer:
                worker, instance = call.request.get("worker", ""), call.request.get("instance", "")
                # Whoever repeats the request has the lease renewed.
                self._add(lease, worker, instance, call, call.invoked_at)
        elif call.path == "/expand" and call.answer.get("lease"):
            holder = self._grants.get((call.request["url"], call.request["token"]))
            worker, instance = (holder.worker, holder.instance) if holder else ("", "")
            begun = min(one.invoked_at for one in self._verbs[call.request["url"], call.request["token"]])
            self._add(call.answer["lease"], worker, instance, call, begun)
        elif call.path == "/heartbeat":
            jobs = call.request["jobs"]
            self._beats += [(call, job["url"], job["token"]) for job in jobs if job["url"] not in call.answer["lost"]]

    def _add(self, lease: Mapping[str, Any], worker: str, instance: str, call: Call, begun_at: float) -> None:
        key = lease["url"], lease["token"]
        if (grant := self._grants.get(key)) is not None:
            grant.renewed_at = max(grant.renewed_at, begun_at)
            grant.known_at = min(grant.known_at, call.ended_at)
            return
        self._grants[key] = Grant(
            *key, worker, instance, lease["lease_seconds"], begun_at, call.ended_at, renewed_at=begun_at
        )

    def _renew(self) -> None:
        """Take heartbeats into account, but none that came after the next lease of the job was known."""
        for call, job, token in self._beats:
            grant = self._grants.get((job, token))
            if grant is not None and all(
                call.invoked_at < later.known_at for later in self._by_job[job] if later.is_later_than(grant)
            ):
                grant.renewed_at = max(grant.renewed_at, call.invoked_at)

    def moved(self) -> frozenset[int]:
        """Return the pages that were leased to more than one worker."""
        return frozenset(
            cid
            for job, grants in self._by_job.items()
            if (cid := cid_of(job)) is not None and len({grant.worker for grant in grants}) > 1
        )

    def stale_verbs(self) -> list[str]:
        """Return the verbs that were accepted though a later lease of the job was known before they were sent."""
        found = []
        for (job, token), calls in self._verbs.items():
            grant = self._grants.get((job, token))
            for call in calls:
                if call.status != 200:
                    continue
                if grant is None:
                    found.append(f"call {call.serial}: {call.path} of {job} was accepted with a token never given")
                    continue
                later = self._later(grant, call.invoked_at)
                repeats = any(
                    one.path == call.path and one.invoked_at < call.invoked_at and may_have_happened(one)
                    for one in calls
                )
                if later and not repeats:
                    found.append(
                        f"call {call.serial}: {call.path} of {job} was accepted from {grant.worker}, whose lease "
                        f"{token} was followed by {later.token} of {later.worker}"
                    )
        return found

    def stale_beats(self) -> list[str]:
        """Return the heartbeats that kept a lease though a later one was known before they were sent."""
        found = []
        for call, job, token in self._beats:
            grant = self._grants.get((job, token))
            if grant is None:
                found.append(f"call {call.serial}: a heartbeat keeps {job} with a token never given")
            elif later := self._later(grant, call.invoked_at):
                found.append(
                    f"call {call.serial}: a heartbeat keeps {job} for {grant.worker} with {token}, which was followed "
                    f"by {later.token} of {later.worker}"
                )
        return found

    def two_endings(self) -> list[str]:
        """Return the leases that were ended in two ways, each of them accepted."""
        found = []
        for (job, token), calls in self._verbs.items():
            verbs = sorted({call.path for call in calls if call.status == 200})
            if len(verbs) > 1:
                found.append(f"the lease {token} of {job} was ended by {' and '.join(verbs)}")
        return found

    def _later(self, grant: Grant, at: float) -> Grant | None:
        for other in self._by_job[grant.job]:
            if other.token != grant.token and other.known_at < at and other.is_later_than(grant):
                return other
        return None

    def doubled(self) -> list[str]:
        """Return the pairs of leases of one job that stood at the same time."""
        found = []
        for job, grants in self._by_job.items():
            for first in grants:
                for second in grants:
                    if second is first or not second.is_later_than(first) or self._was_ended(first, second.known_at):
                        continue
                    early = first.renewed_at + first.lease_seconds - SLACK_SECONDS - second.known_at
                    if early > 0:
                        found.append(
                            f"{job} was given to {second.worker} ({second.token}) {early:.2f} s before the lease of "
                            f"{first.worker} ({first.token}) could run out"
                        )
        return found

    def _was_ended(self, grant: Grant, before: float) -> bool:
        """Tell whether the lease may have been ended by a verb, or by its own worker started anew."""
        verbs = [*self._verbs[grant.job, grant.token], *self._cancels[grant.job]]
        asked = self._asked[grant.worker, grant.job]
        return any(call.invoked_at < before and may_have_happened(call) for call in verbs) or any(
            call.request.get("instance") != grant.instance and call.invoked_at < before and may_have_happened(call)
            for call in asked
        )


# ------------------------------------------------------------------------------------------ bytes that came again


def check_ranges(ranges: Ranges, page_of: Mapping[str, int], report: Report) -> None:
    """Count what was sent more than once; on one machine at most a mark of each connection that was open at a crash."""
    for path, requests in ranges.items():
        moved = page_of.get(path) in report.moved
        for number, (start, _stop, sent) in enumerate(requests):
            later = [(begin, begin + size) for begin, _end, size in requests[number + 1 :] if size]
            again = _covered(start, start + sent, later)
            if moved:
                report.refetched_moved_bytes += again
                continue
            report.refetched_bytes += again
            if again > MIB + WIRE_BYTES:
                report.files.append(f"{path}: of what was sent from byte {start} on, {again} bytes were sent again")


def _covered(start: int, stop: int, spans: Iterable[tuple[int, int]]) -> int:
    """Return how many bytes of [start, stop) lie in at least one of the spans."""
    total, at = 0, start
    for begin, end in sorted(spans):
        begin, end = max(begin, at), min(end, stop)
        if begin < end:
            total += end - begin
            at = end
    return total


# ------------------------------------------------------------------------------------------ files


class Found(NamedTuple):
    """A finished file on a machine; ``cid`` is what its comment says, 0 for nothing."""

    machine: str
    path: Path
    cid: int


def finished_files(machine: str, folder: Path) -> list[Found]:
    """Return what stands below a download folder, apart from the unfinished."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".parts" not in path.relative_to(folder).parts:
            said = re.search(r"cid=(\d+)", read_tag(path))
            found.append(Found(machine, path, int(said[1]) if said else 0))
    return found


def check_files(
    machines: Mapping[str, Path],
    success: Sequence[Mapping[str, Any]],
    served: Mapping[int, Sequence[str]],
    ffmpeg: str,
    report: Report,
) -> None:
    """Look for the one file of each success on its machine, compare it with what was served, find what is too much.

    ``machines`` are the download folders by worker, ``served`` the digests of the packets that the site has of each
    page, a digest for each stream that was asked for.
    """
    files = [one for machine, folder in machines.items() for one in finished_files(machine, folder)]
    by_page: dict[int, list[Found]] = defaultdict(list)
    for one in files:
        by_page[one.cid].append(one)
    owners: dict[int, tuple[str, Path]] = {}
    for item in success:
        cid, machine = cid_of(item["url"]) or 0, item["worker"]
        path = machines[machine] / item["path"] if machine in machines else Path(item["path"])
        owners[cid] = machine, path
        if not any(one.path == path for one in by_page[cid]):
            report.files.append(f"{item['url']} of {machine} has no finished file {item['path']}")
        elif path.stat().st_size != item["bytes"]:
            report.files.append(f"{path} has {path.stat().st_size} bytes, recorded are {item['bytes']}")
    for cid, here in by_page.items():
        for one in here:
            if owners.get(cid) == (one.machine, one.path):
                continue
            if cid in report.moved and one.machine != owners[cid][0]:
                report.copies += 1
            else:
                report.files.append(f"{one.path} (cid {cid}) is named by no success")
    _check_parts(machines, owners, report)
    _check_packets(by_page, served, ffmpeg, report)


def _check_parts(machines: Mapping[str, Path], owners: Mapping[int, tuple[str, Path]], report: Report) -> None:
    for machine, folder in machines.items():
        for path in sorted((folder / ".parts").glob("*")):
            said = re.match(r"(\d+)-", path.name)
            owner = owners.get(int(said[1])) if said else None
            if owner is None:
                continue
            if owner[0] == machine:
                report.files.append(f"{path} was left of a finished page")
            else:
                report.parts_elsewhere += 1


def _check_packets(
    by_page: Mapping[int, Sequence[Found]], served: Mapping[int, Sequence[str]], ffmpeg: str, report: Report
) -> None:
    files = [one for here in by_page.values() for one in here]
    hashes = stream_hashes([one.path for one in files], ffmpeg)
    for one in files:
        if not served.get(one.cid) or hashes[one.path] != sorted(served[one.cid]):
            report.files.append(f"{one.path} (cid {one.cid}) does not hold what the site serves")


_known_hashes: dict[tuple[Path, int, int], list[str]] = {}


def stream_hashes(paths: Sequence[Path], ffmpeg: str) -> dict[Path, list[str]]:
    """Return the digests of the packets of each stream in each file, many files a call; none for a broken file.

    A file that has not changed since is not looked at again.
    """
    keys = {path: (path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths}
    new = [path for path in keys if keys[path] not in _known_hashes]
    with tempfile.TemporaryDirectory() as folder:
        for batch in _batches(new, BATCH):
            for path, digests in _hash_batch(batch, ffmpeg, Path(folder)).items():
                _known_hashes[keys[path]] = digests
    return {path: _known_hashes[key] for path, key in keys.items()}


def _hash_batch(batch: Sequence[Path], ffmpeg: str, folder: Path) -> dict[Path, list[str]]:
    command = [ffmpeg, "-v", "error", "-nostdin", "-y"]
    for path in batch:
        command += ["-i", f"file:{path}"]
    outputs = [folder / f"{number}.md5" for number in range(len(batch))]
    for number, output in enumerate(outputs):
        command += ["-map", str(number), "-c", "copy", "-f", "streamhash", "-hash", "md5", f"file:{output}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        if len(batch) == 1:
            return {batch[0]: []}
        return {path: digests for one in batch for path, digests in _hash_batch([one], ffmpeg, folder).items()}
    texts = [output.read_text() for output in outputs]
    return {path: sorted(re.findall("MD5=([0-9a-f]{32})", text)) for path, text in zip(batch, texts, strict=True)}


def _batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]
