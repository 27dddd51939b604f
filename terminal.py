"""What a worker shows on a terminal: a bar for each stream of each page, totals below. live_lines.py draws it.

Rows that do not fit are counted, those of downloads that move stand first. The width of every column is computed from
the terminal's, and each column begins at a place of its own: a title of which the terminal and we do not think alike
shifts nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.text import Text

from board import WORDS, Board, JobView
from i18n import _
from live_lines import Line, LiveLines
from log_setup import LineFormatter, SayHandler
from model import KIB, StreamProgress
from plain_text import clock_text, harmless, size_text, sizes_text, speed_text

INLINE_COLUMNS = 78
"""From here on a page's title stands beside its bars, not above them."""
SIZE_COLUMNS = 104
LEAST_BAR, MOST_BAR = 6, 40
LEAST_MIRROR, MOST_MIRROR = 12, 32
PERCENT, SPEED, LEFT, SIZE = 4, 10, 8, 15
MOST_NOTES = 3
MOVING_BYTES = KIB
"""A stream that got fewer in a second stands still."""
FREE_SECONDS = 5.0
SUFFIXES = (".bilivideo.com", ".bilivideo.cn", ".akamaized.net", ".szbdyd.com", ".mountaintoys.cn")
"""What mirrors of the site have in common, and need not show where there is little room."""

STYLES = {
    "title": "",
    "kind": "dim",
    "bar": "cyan",
    "full": "green",
    "empty": "dim",
    "figure": "",
    "mirror": "dim",
    "stage": "dim",
    "more": "dim",
    "good": "bold green",
    "held": "bold yellow",
    "bad": "bold red",
    "total": "bold",
    "note": "yellow",
    "time": "dim",
    "text": "",
    "DEBUG": "dim",
    "INFO": "blue",
    "WARNING": "yellow",
    "ERROR": "bold red",
    "CRITICAL": "bold red",
}
_STATES = {"running": "good", "starting": "total", "stopping": "total"}


class Ink:
    """Colours, as far as the terminal has them and its user wants them; and the characters of bars."""

    def __init__(self, console: Console, can_show: Callable[[str], bool] = lambda _text: True) -> None:
        system = ColorSystem.STANDARD if console.color_system else None
        self._around: dict[str, tuple[str, ...]] = {}
        for name, words in STYLES.items():
            style = Style.parse(words)
            style = style.without_color if console.no_color else style
            self._around[name] = tuple(style.render("\0", color_system=system).split("\0"))
        self.full, self.half, self.empty = ("━", "╸", "─") if can_show("━╸─") else ("#", "-", "-")
        self.more = "…" if can_show("…") else "..."
        self.dot = " · " if can_show("·") else ", "

    def __call__(self, style: str, text: str) -> str:
        """Return text in a style."""
        before, after = self._around[style]
        return f"{before}{text}{after}"


class Columns(NamedTuple):
    """How many cells each column has, 0 for one that is left out; without ``title`` it stands above the bars."""

    title: int
    kind: int
    bar: int
    size: int
    speed: int
    left: int
    mirror: int


@lru_cache(maxsize=64)
def columns_for(width: int, kind: int) -> Columns:
    """Return the columns for lines of ``width`` cells, with a kind of stream that takes up to ``kind``."""
    inline = width >= INLINE_COLUMNS
    indent = 0 if inline else 2
    room = width - indent - PERCENT  # and for each other column a space before it
    size = SIZE if width >= SIZE_COLUMNS else 0
    speed = SPEED if room >= LEAST_BAR + SPEED + 1 else 0
    left = LEFT if room >= LEAST_BAR + SPEED + LEFT + 2 else 0
    kind = kind if room >= LEAST_BAR + SPEED + LEFT + kind + 4 else 0
    room -= sum(cells + 1 for cells in (size, speed, left, kind) if cells)
    if not inline:
        mirror = min(MOST_MIRROR, room - 14) if room - 14 > LEAST_MIRROR else 0
        room -= mirror + 1 if mirror else 0
        return Columns(0, kind, max(1, min(MOST_BAR, room - 1)), size, speed, left, mirror)
    mirror = max(LEAST_MIRROR + 4, min(MOST_MIRROR, room // 4))
    bar = max(LEAST_BAR + 2, min(MOST_BAR, room // 4))
    return Columns(room - mirror - bar - 3, kind, bar, size, speed, left, mirror)


@lru_cache(maxsize=4096)
def fit(text: str, cells: int, more: str = "…") -> str:
    """Return text cut to so many cells; a character of two that has no room any more is left out."""
    if cell_len(text) <= cells:
        return text
    room = cells - len(more)
    return set_cell_size(text, room).rstrip() + more if room >= 0 else set_cell_size(text, max(0, cells))


def kind_word(name: str) -> str:
    """Return what a stream is, by its name."""
    if name.startswith("d"):
        return _("part {number}").format(number=harmless(name.rpartition("-")[2]))
    return _("audio") if name.startswith("a") else _("video")


@lru_cache(maxsize=4096)
def pieces(text: str, cells: int, lines: int, more: str = "…") -> tuple[str, ...]:
    """Return text cut into so many lines at most, of so many cells each."""
    found = chop_cells(text, cells) or [""]
    return (*found[: lines - 1], fit("".join(found[lines - 1 :]), cells, more))


@lru_cache(maxsize=4096)
def mirror_word(host: str, cells: int, more: str = "…") -> str:
    """Return a mirror as it fits: mirrors differ in the end of their first word."""
    if len(host) > cells:
        host = next((host.removesuffix(suffix) for suffix in SUFFIXES if host.endswith(suffix)), host)
    host = harmless(host)
    return host if len(host) <= cells else more + host[len(host) + len(more) - cells :]


def progress_bar(ink: Ink, done: float, cells: int) -> str:
    """Return a bar of which a part is done, 0 to 1."""
    halves = int(max(0.0, min(1.0, done)) * cells * 2)
    filled = ink.full * (halves // 2) + (ink.half if halves % 2 else "")
    empty = ink.empty * (cells - len(filled))
    return ink("full" if done >= 1 else "bar", filled) * bool(filled) + ink("empty", empty) * bool(empty)


class _Row:
    """One line in the making: each piece begins at a place of its own."""

    def __init__(self) -> None:
        self._text, self._at, self.cells = "", 0, 0

    def put(self, at: int, text: str, painted: str | None = None) -> None:
        if not text:
            return
        gap = f"\x1b[K\x1b[{at + 1}G" if at else ""
        self._text += gap + (text if painted is None else painted)
        self.cells = at + cell_len(text)

    def line(self) -> Line:
        return Line(self._text, self.cells)


def stream_line(ink: Ink, columns: Columns, stream: StreamProgress, speed: float, title: str) -> Line:
    """Return the line of a stream, with its part of the title."""
    row, total = _Row(), stream.total_bytes or 0
    at = 0 if columns.title else 2
    if columns.title:
        row.put(0, title or " ")
        at = columns.title + 1
    done = stream.done_bytes / total if total else 0.0
    size = sizes_text(stream.done_bytes, total) if total else size_text(stream.done_bytes)
    is_whole = bool(total) and stream.done_bytes >= total
    left = (total - stream.done_bytes) / speed if total and speed >= 1 else float("inf")
    for cells, style, text in (
        (columns.kind, "kind", fit(kind_word(stream.name), columns.kind, ink.more)),
        (columns.bar, "", progress_bar(ink, done, columns.bar)),
        (PERCENT, "figure", f"{int(done * 100):>3}%" if total else "   ?"),
        (columns.size, "figure", size.rjust(SIZE)),
        (columns.speed, "figure", ("" if is_whole else speed_text(speed)).rjust(SPEED)),
        (columns.left, "figure", ("" if is_whole else clock_text(left)).rjust(LEFT)),
        (columns.mirror, "mirror", mirror_word(stream.mirror, columns.mirror, ink.more)),
    ):
        if cells:
            row.put(at, text if style else " " * cells, ink(style, text) if style else text)
            at += cells + 1
    return row.line()


class Job(NamedTuple):
    """A job as it is at one moment, and the streams of it that have bars."""

    view: JobView
    streams: tuple[StreamProgress, ...]

    def height(self, columns: Columns) -> int:
        """Return how many lines it takes."""
        return max(1, len(self.streams)) + (not columns.title and bool(self.streams))


def job_of(view: JobView) -> Job:
    """Return a job with a bar for each stream, while it downloads."""
    streams = tuple(view.ordered()) if view.stage == "downloading" else ()
    if len(streams) > 2:  # pieces of a joined stream: those that are whole have nothing to say
        streams = tuple(one for one in streams if one.done_bytes != one.total_bytes) or streams[-1:]
    return Job(view, streams)


def job_lines(ink: Ink, columns: Columns, job: Job, width: int) -> list[Line]:
    """Return the lines of a job: a bar for each stream, or a word."""
    view, streams = job
    title = harmless(view.title or view.url)
    lines = []
    if not streams:
        word = WORDS.get(view.stage, view.stage)
        row, at = _Row(), columns.title or max(1, width - cell_len(word) - 1)
        row.put(0, fit(title, at, ink.more) or " ")
        row.put(at + 1, fit(word, width - at - 1, ink.more), ink("stage", fit(word, width - at - 1, ink.more)))
        return [row.line()]
    if not columns.title:
        text = fit(title, width, ink.more)
        lines.append(Line(ink("title", text), cell_len(text)))
    titles = pieces(title, columns.title, len(streams), ink.more) if columns.title else ()
    for number, stream in enumerate(streams):
        part = titles[number] if number < len(titles) else ""
        lines.append(stream_line(ink, columns, stream, view.speeds.get(stream.name, 0.0), part))
    return lines


def rank(view: JobView) -> int:
    """Return how much a job is worth seeing: 0 for those that move."""
    if view.stage == "downloading":
        return 0 if sum(view.speeds.values()) >= MOVING_BYTES or not view.speeds else 2
    return {"merging": 1, "recording": 1, "listing": 1}.get(view.stage, 3)


def chosen(jobs: Sequence[Job], columns: Columns, rows: int, shown: set[str]) -> list[Job]:
    """Return the jobs to show in so many rows, in their order: those that move, and of these those that were shown.

    Where not all of them fit, a row is left for the number of the others.
    """
    heights = [job.height(columns) for job in jobs]
    if sum(heights) <= rows:
        return list(jobs)
    order = sorted(range(len(jobs)), key=lambda one: (rank(jobs[one].view), jobs[one].view.url not in shown, one))
    found, room = list[int](), rows - 1
    for one in order:
        if heights[one] > room and found:
            break
        if heights[one] > room:
            continue  # at least one, be it a smaller one
        room -= heights[one]
        found.append(one)
    return [jobs[one] for one in sorted(found)]


def seconds_left(views: Sequence[JobView], speed: float) -> float | None:
    """Return how long the downloads whose size is known still take, None where none is."""
    running = [view for view in views if view.stage in ("downloading", "waiting") and view.streams_bytes]
    if not running:
        return None
    done_bytes = sum(stream.done_bytes for view in running for stream in list(view.streams.values()))
    left_bytes = sum(view.streams_bytes for view in running) - done_bytes
    return left_bytes / speed if speed >= 1 else float("inf")


def total_lines(ink: Ink, board: Board, views: Sequence[JobView], free: str, width: int) -> list[Line]:
    """Return the totals, in as many lines as they need."""
    speed = board.speed_bytes_per_second
    left = seconds_left(views, speed)
    facts = [
        (_STATES.get(board.state, "held"), WORDS.get(board.state, board.state)),
        ("total", _("jobs: {count}").format(count=len(views))),
        ("total", speed_text(speed)),
        ("total", "" if left is None else _("left: {time}").format(time=clock_text(left))),
        ("total", _("done: {count}").format(count=board.done)),
        ("bad" if board.failed else "total", _("failed: {count}").format(count=board.failed)),
        ("total", free and _("free: {size}").format(size=free)),
    ]
    lines: list[Line] = []
    text, cells = "", 0
    for style, fact in facts:
        fact = fit(fact, width, ink.more)
        if not fact:
            continue
        if cells and cells + len(ink.dot) + cell_len(fact) > width:
            lines.append(Line(text, cells))
            text, cells = "", 0
        if cells:
            text, cells = text + ink("empty", ink.dot), cells + len(ink.dot)
        text, cells = text + ink(style, fact), cells + cell_len(fact)
    return [*lines, Line(text, cells)]


@lru_cache(maxsize=8)
def wrapped(text: str, width: int) -> tuple[str, ...]:
    """Return text in lines of so many cells, broken between words."""
    return tuple(line.plain.rstrip() for line in Text(text).wrap(Console(width=width), width))


def note_lines(ink: Ink, note: str, width: int) -> list[Line]:
    """Return what a person should know of the worker."""
    texts = list(wrapped(harmless(note), width))
    if len(texts) > MOST_NOTES:
        texts[MOST_NOTES - 1 :] = [fit(f"{texts[MOST_NOTES - 1]} {texts[MOST_NOTES]}{ink.more}", width, ink.more)]
    return [Line(ink("note", text), cell_len(text)) for text in texts if text]


class Screen:
    """The picture of a worker: its jobs, its totals. Nothing is composed as long as nothing has changed."""

    def __init__(self, board: Board, ink: Ink, free_bytes: Callable[[], int]) -> None:
        self._board, self._ink, self._free_bytes = board, ink, free_bytes
        self._shown: set[str] = set()
        self._seen: object = None
        self._free, self._free_at = "", float("-inf")

    def picture(self, columns: int, rows: int) -> list[Line] | None:
        """Return the lines for a terminal of this size, None where they are the last ones."""
        board = self._board
        views = list(board.jobs.values())
        jobs = [
            (view.title, view.stage, *view.streams.values(), *map(round, list(view.speeds.values()))) for view in views
        ]
        speed = round(board.speed_bytes_per_second)
        now = (columns, rows, jobs, board.state, board.note, board.done, board.failed, speed, self._free_text())
        if now == self._seen:
            return None
        self._seen = now
        return self._compose(views, columns - 1, rows)  # the last column is free: terminals do not agree on it

    def _compose(self, views: list[JobView], width: int, rows: int) -> list[Line]:
        """Return the lines; some rows of the terminal are left for what is said above them."""
        ink, width = self._ink, max(1, width)
        below = [*total_lines(ink, self._board, views, self._free, width), *note_lines(ink, self._board.note, width)]
        room = max(1, rows - 1 - max(2, rows // 5))
        below = below[:room]
        jobs = [job_of(view) for view in views]
        kinds = {_("video"), _("audio"), *(kind_word(stream.name) for job in jobs for stream in job.streams)}
        columns = columns_for(width, max(map(cell_len, kinds)))
        picked = chosen(jobs, columns, room - len(below), self._shown)
        self._shown = {job.view.url for job in picked}
        lines = [line for job in picked for line in job_lines(ink, columns, job, width)]
        if hidden := len(jobs) - len(picked):
            sentence = _("{more} and {count} more") if picked else _("{more} {count} jobs")
            text = fit(sentence.format(more=ink.more, count=hidden), width, ink.more)
            lines += [Line(ink("more", text), cell_len(text))] * (len(lines) + len(below) < room)
        return [*lines, *below]

    def _free_text(self) -> str:
        """Return how much room is left for videos, looked up now and then."""
        if time.monotonic() - self._free_at >= FREE_SECONDS:
            self._free_at = time.monotonic()
            try:
                self._free = size_text(self._free_bytes())
            except OSError:
                self._free = ""
        return self._free


class Terminal:
    """Where a worker's lines go: a terminal with bars, one without, or a file."""

    def __init__(self, console: Console, reflows: bool) -> None:
        self.lines = LiveLines(console.file, reflows)
        self._ink = Ink(console, self.lines.can_show)
        is_watched = console.file.isatty()  # FORCE_COLOR is about colours only
        self._has_bars = is_watched and console.is_interactive and not console.legacy_windows
        self.handler = SayHandler(self.lines.say)
        self.handler.setFormatter(LineFormatter(self._ink, with_date=not is_watched))

    @contextlib.contextmanager
    def bars(self, board: Board, free_bytes: Callable[[], int]) -> Iterator[None]:
        """Show what is on a board, where there is a terminal that can."""
        if not self._has_bars:
            yield
            return
        with self.lines.live(Screen(board, self._ink, free_bytes).picture):
            yield
