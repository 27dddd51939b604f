"""What is worth a message to a person: what was seen of the farm, and what was said of it, become notices. No clock.

What is on is remembered by the queue, for all servers together and over restarts: a change of that memory is proposed
with what it was, and whoever makes the change says it. So each notice goes out once, and what comes and goes again and
again is said once an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from i18n import _
from model import MIB

GIB = 1024 * MIB
LOW_DISK_BYTES, ENOUGH_DISK_BYTES = 5 * GIB, 6 * GIB
"""A disk is nearly full below the first, and no more from the second one on."""
MANY_FAILURES, FEW_FAILURES = 20, 5
"""In ten minutes, and more than what was finished in them."""
AGAIN_SECONDS = 3600
"""The same is not said again before."""
SETTLED_SECONDS = 60
"""Results that the queue had lost come from many workers: what they told is summed up when no more comes."""
NAMED = 5
MAX_TITLE_CHARACTERS = 80

ON, OFF = "on", "off"


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """One worker: for how long it was silent while somebody listened, and what it told of itself."""

    name: str
    silent_seconds: float
    has_ended: bool = False
    """It has said goodbye, and holds nothing."""
    disk_free_bytes: int | None = None
    risk: str = ""
    """What the site said when it wanted less of it, while the worker is parked for that."""
    way: str = ""
    """The address, line or account that it said this of: all workers that share it are parked."""


@dataclass(frozen=True, slots=True)
class EndedSource:
    """A source whose listing was read to its end, or as far as was wished."""

    name: str
    title: str
    complete: bool
    listed: int
    queued: int
    unavailable: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The farm at one moment."""

    at_seconds: int
    workers: Sequence[SeenWorker] = ()
    lost_after_seconds: float = 180.0
    failures: int = 0
    """Attempts that failed within the last ten minutes, and pages that were finished."""
    finished: int = 0
    open_jobs: int = 0
    """Those that are ready or leased, or will be soon."""
    waiting_jobs: int = 0
    """Those that wait for another try."""
    done: int = 0
    dead: int = 0
    replayed: int = 0
    replayed_seconds: float = 0.0
    """How many results the queue had lost, ever, and how long ago the last one was recorded again."""
    ended: Sequence[EndedSource] = ()
    ended_until: str = ""
    """Where to go on among the sources that ended."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be remembered in place of what was; a text that is empty stands for nothing."""

    subject: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Notice:
    """What is said to whoever gets all of ``changes`` through, with the subjects that were got in ``{names}``."""

    changes: Sequence[Change]
    say: Callable[[Sequence[str]], str] | None = None
    """Makes the sentence of the names whose change was made; None changes in silence."""
    is_good: bool = False


def notices(seen: Seen, said: Mapping[str, str]) -> list[Notice]:
    """Return what is to be said, and remembered, now that this was seen; ``said`` is what is remembered."""
    if "begun" not in said:
        return _begin(seen)
    found = [
        *_lost_and_back(seen, said),
        *_full_disks(seen, said),
        *_risk(seen, said),
        *_failures(seen, said),
        *_lost_data(seen, said),
        *_ended_sources(seen, said),
        *_all_done(seen, said),
        *_forgotten(seen, said),
    ]
    return [notice for notice in found if notice.changes]


def _begin(seen: Seen) -> list[Notice]:
    """Remember what was there before anybody was to be told of it; what goes on is news at the next look."""
    old = [f"lost {worker.name}" for worker in seen.workers if _is_lost(worker, seen)]
    changes = [Change("begun", "", str(seen.at_seconds)), Change("replayed", "", str(seen.replayed))]
    changes += [Change("ended", "", seen.ended_until), *(Change(one, "", _mark(ON, seen)) for one in old)]
    return [Notice([change for change in changes if change.after])]


def _mark(state: str, seen: Seen, since: str = "") -> str:
    return f"{state} {since or seen.at_seconds}"


def _state(mark: str) -> str:
    return mark.partition(" ")[0] or OFF


def _is_old(mark: str, seen: Seen) -> bool:
    """Tell whether what was said is over, and may be said again."""
    state, _space, since = mark.partition(" ")
    return state == OFF and seen.at_seconds - int(since or 0) >= AGAIN_SECONDS


def _turn(subject: str, is_on: bool, is_off: bool, seen: Seen, said: Mapping[str, str]) -> Change | None:
    """Return the change of a condition that begins or ends, or None; one that was said lately must wait to begin.

    Between ``is_on`` and ``is_off`` it stays as it is.
    """
    before = said.get(subject, "")
    state, _space, since = before.partition(" ")
    if state == ON:
        return Change(subject, before, _mark(OFF, seen, since)) if is_off else None
    if not is_on or (since and 0 <= seen.at_seconds - int(since) < AGAIN_SECONDS):
        return None
    return Change(subject, before, _mark(ON, seen))


def _turns(
    kind: str, states: Iterable[tuple[str, bool, bool]], seen: Seen, said: Mapping[str, str]
) -> tuple[list[Change], list[Change]]:
    """Return the changes of those that begin, and of those that end."""
    changes = [_turn(f"{kind} {name}", is_on, is_off, seen, said) for name, is_on, is_off in states]
    made = [change for change in changes if change is not None]
    return (
        [change for change in made if _state(change.after) == ON],
        [change for change in made if _state(change.after) == OFF],
    )


def _is_lost(worker: SeenWorker, seen: Seen) -> bool:
    return worker.silent_seconds > seen.lost_after_seconds and not worker.has_ended


def _lost_and_back(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    states = [
        (worker.name, _is_lost(worker, seen), worker.silent_seconds < seen.lost_after_seconds)
        for worker in seen.workers
    ]
    lost, back = _turns("lost", states, seen, said)
    minutes = max(1, round(seen.lost_after_seconds / 60))
    yield Notice(
        lost,
        lambda names: _(
            "Lost: {names}. Nothing was heard for {minutes} min, and there was no goodbye. Its jobs go to others."
        ).format(names=listing(names), minutes=minutes),
    )
    yield Notice(back, lambda names: _("Back again: {names}.").format(names=listing(names)), is_good=True)


def _full_disks(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    free = {worker.name: worker.disk_free_bytes for worker in seen.workers if worker.disk_free_bytes is not None}
    states = [(name, size < LOW_DISK_BYTES, size >= ENOUGH_DISK_BYTES) for name, size in free.items()]
    low, enough = _turns("disk", states, seen, said)

    def say(names: Sequence[str]) -> str:
        sizes = [f"{name} ({free[name] / GIB:.1f} GiB)" for name in names]
        return _("The disk is nearly full: {names}. Make room there; no download begins without.").format(
            names=listing(sizes)
        )

    yield Notice(low, say)
    yield Notice(enough)


def _risk(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    """Say once of each address or account that it is parked, not of each worker that shares it."""
    parked = [worker for worker in seen.workers if worker.risk and worker.silent_seconds <= seen.lost_after_seconds]
    ways = {worker.way for worker in parked}
    known = {subject.partition(" ")[2]: mark for subject, mark in said.items() if subject.startswith("risk ")}
    states = [(way, way in ways, way not in ways) for way in sorted(ways | known.keys())]
    begun, ended = _turns("risk", states, seen, said)

    def say(names: Sequence[str]) -> str:
        met = [worker for worker in parked if worker.way in names]
        return _(
            "Risk control: the site wants fewer requests, and this was parked for it: {names} (code {code}). It goes"
            " on by itself, more slowly."
        ).format(names=listing([worker.name for worker in met]), code=plain(met[0].risk))

    yield Notice(begun, say)
    yield Notice(ended)
    old = [way for way, mark in known.items() if way not in ways and _is_old(mark, seen)]
    yield Notice([Change(f"risk {way}", known[way], "") for way in old])


def _failures(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    many = seen.failures >= MANY_FAILURES and seen.failures > seen.finished
    change = _turn("failures", many, seen.failures <= FEW_FAILURES, seen, said)
    is_begin = change is not None and _state(change.after) == ON

    def say(_subjects: Sequence[str]) -> str:
        return _(
            "Failures pile up: {failures} attempts failed within ten minutes, {finished} pages were finished. The"
            " dashboard says why."
        ).format(failures=seen.failures, finished=seen.finished)

    yield Notice([change] if change else [], say if is_begin else None)


def _lost_data(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    before = said.get("replayed", "")
    news = seen.replayed - int(before or 0)
    if news > 0 and seen.replayed_seconds < SETTLED_SECONDS:
        return

    def say(_subjects: Sequence[str]) -> str:
        return _(
            "The queue had lost data: {count} results were recorded again, from what the workers remember. What was"
            " only added since is gone: add it again."
        ).format(count=news)

    if news:
        yield Notice([Change("replayed", before, str(seen.replayed))], say if news > 0 else None)


def _ended_sources(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    before = said.get("ended", "")
    if seen.ended_until and seen.ended_until != before:
        told = "\n".join(_ended_source(source) for source in seen.ended)
        is_good = all(source.complete for source in seen.ended)
        yield Notice([Change("ended", before, seen.ended_until)], (lambda _subjects: told) if told else None, is_good)


def _ended_source(source: EndedSource) -> str:
    sentence = (
        _("Read to its end: {source}. {listed} listed, {queued} of them new; {unavailable} cannot be had.")
        if source.complete
        else _(
            "Read, but incomplete: {source}. {listed} listed, {queued} of them new; {unavailable} cannot be had. The"
            " site announces another number."
        )
    )
    name = f"{plain(source.title)} ({source.name})" if source.title else source.name
    return sentence.format(source=name, listed=source.listed, queued=source.queued, unavailable=source.unavailable)


def _all_done(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    """Say that nothing is left to do, where something was done since the work began."""
    before = said.get("work", "")
    last, *begun = before.split() or ["0"]
    if seen.open_jobs and not begun:
        yield Notice([Change("work", before, f"{last} {seen.done} {seen.dead}")])
    if seen.open_jobs or not begun or 0 <= seen.at_seconds - int(last) < AGAIN_SECONDS:
        return
    done, dead = (max(0, now - int(then)) for now, then in zip((seen.done, seen.dead), begun, strict=True))
    is_news = done > 0 or dead > 0

    def say(_subjects: Sequence[str]) -> str:
        sentence = _("All done: {done} pages were downloaded, {dead} jobs failed for good.")
        if seen.waiting_jobs:
            sentence += " " + _("{waiting} wait for another try.")
        return sentence.format(done=done, dead=dead, waiting=seen.waiting_jobs)

    after = str(seen.at_seconds) if is_news else last
    yield Notice([Change("work", before, after)], say if is_news else None, is_good=not dead)


def _forgotten(seen: Seen, said: Mapping[str, str]) -> Iterator[Notice]:
    """Remember nothing more of workers that the queue has forgotten."""
    known = {worker.name for worker in seen.workers}
    gone = [
        Change(subject, mark, "")
        for subject, mark in said.items()
        if subject.startswith(("lost ", "disk ")) and subject.partition(" ")[2] not in known
    ]
    yield Notice(gone)


def listing(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(plain(name) for name in names[:NAMED])
    if len(names) <= NAMED:
        return shown
    return _("{names} and {count} more").format(names=shown, count=len(names) - NAMED)


def plain(text: str) -> str:
    """Return one line of a text that others have written: short, and calling nobody by an at sign."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    line = line.replace("@", "＠")
    return line if len(line) <= MAX_TITLE_CHARACTERS else line[: MAX_TITLE_CHARACTERS - 1] + "…"
