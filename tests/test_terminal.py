"""What a worker shows of its board: in a window of any size every figure stands in its column."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

import terminal
from board import Board, JobView
from live_lines import Line, Picture, change
from model import MIB, StreamProgress
from terminal import Ink, Screen, Terminal, columns_for, fit, job_of, kind_word, mirror_word, pieces, rank
from tests.screens import COLOUR, Glass

HOSTILE = "二次元 \x1b[31m[bold]\n</script> \u202eabc 👨‍👩‍👧 ❤️"


def plain_ink() -> Ink:
    return Ink(Console(file=io.StringIO(), color_system=None))


def job(number: int, stage: str = "downloading", speed: float = MIB, title: str = HOSTILE) -> JobView:
    view = JobView(f"BV{number}", title=f"{number} {title}", stage=stage)
    view.streams["v80-7"] = StreamProgress("v80-7", 5 * MIB, 10 * MIB, "upos-sz-mirrorcos.bilivideo.com")
    view.streams["a30280-0"] = StreamProgress("a30280-0", MIB, 2 * MIB, "cdn.example")
    view.speeds = {"v80-7": speed, "a30280-0": 0.0}
    return view


def board_of(*views: JobView) -> Board:
    board = Board()
    board.jobs = {view.url: view for view in views}
    board.state = "running"
    return board


def picture(board: Board, columns: int, rows: int) -> list[Line]:
    return Screen(board, plain_ink(), lambda: 123 * 1024 * MIB).picture(columns, rows) or []


def shown(board: Board, columns: int, rows: int) -> list[str]:
    after = Picture(tuple(picture(board, columns, rows)), columns)
    return Glass(columns, rows).feed(change(Picture(), after, (), rows, True)).shown()


def cell_of(line: str, mark: str) -> int:
    return cell_len(line.split(mark)[0])


@pytest.mark.parametrize("columns", [40, 60, 77, 80, 104, 130, 400])
def test_each_stream_has_a_bar_and_everything_stands_in_its_column(columns: int) -> None:
    views = [job(number) for number in range(3)]
    lines = shown(board_of(*views), columns, 30)
    bars = [line for line in lines if "━" in line]
    assert len(bars) == 6 and all(cell_len(line) < columns for line in lines)
    assert {cell_of(line, "━") for line in bars} == {cell_of(bars[0], "━")}
    assert {cell_of(line, "50%") + 3 for line in bars} == {cell_of(bars[0], "%") + 1}
    assert sum("1.0 MiB/s" in line and "00:05" in line for line in bars) == 3
    assert sum("video" in line for line in bars) == sum("audio" in line for line in bars) == 3
    assert ("mirrorcos" in bars[0]) is (columns >= 60)
    assert ("5.0/10.0 MiB" in bars[0]) is (columns >= 105)
    assert not re.search("[\x00-\x1f\u202e\u200d]", "".join(lines))


@pytest.mark.parametrize("columns", [1, 2, 5, 9, 17, 33])
def test_a_window_that_is_hardly_one_breaks_nothing(columns: int) -> None:
    for rows in (1, 2, 3, 5):
        assert len(picture(board_of(*(job(number) for number in range(9))), columns, rows)) <= rows


@pytest.mark.parametrize("rows", [8, 12, 24, 50])
def test_of_more_jobs_than_rows_those_that_move_are_shown_and_the_others_counted(rows: int) -> None:
    still = [job(number, speed=0.0, title="still") for number in range(20)]
    moving = [job(number, title="moving") for number in range(20, 40)]
    waiting = [job(number, stage="waiting", title="waits") for number in range(40, 64)]
    lines = shown(board_of(*still, *moving, *waiting), 100, rows)
    said = next(match for line in lines if (match := re.fullmatch(r"… and (\d+) more", line)))
    assert len(lines) < rows and sum("━" in line for line in lines) == 2 * (64 - int(said[1]))
    assert sum("moving" in line for line in lines) == min(20, 64 - int(said[1]))
    assert not any("waits" in line for line in lines)
    assert lines[-1].startswith("running · jobs: 64")


def test_what_is_shown_stays_where_it_is_as_long_as_it_moves() -> None:
    views = [job(number, title="here") for number in range(30)]
    board = board_of(*views)
    screen = Screen(board, plain_ink(), lambda: MIB)
    screen.picture(100, 12)
    before = set(screen._shown)
    for view in views[:3]:
        view.speeds["v80-7"] = 0.0
    screen.picture(100, 12)
    assert len(before & screen._shown) == max(0, len(before) - 3) and before - screen._shown <= {"BV0", "BV1", "BV2"}
    fresh = job(99, title="fresh")
    board.jobs = {fresh.url: fresh, **board.jobs}
    after = set(screen._shown)
    screen.picture(100, 12)
    assert screen._shown == after


def test_a_small_job_is_shown_where_a_large_one_has_no_room() -> None:
    small = job(1, stage="merging", title="small")
    assert any("small" in line for line in shown(board_of(job(0), small, job(2)), 40, 8))


def test_a_job_that_downloads_nothing_has_a_word() -> None:
    line = shown(board_of(job(1, stage="merging", title="标题")), 80, 24)[0]
    assert line.startswith("1 标题") and line.endswith("merging") and "━" not in line
    assert "标题" in shown(board_of(job(1, stage="listing", title="标题")), 40, 24)[0]


def test_a_title_goes_on_beside_the_next_stream_and_is_never_cut_in_a_character() -> None:
    lines = shown(board_of(job(1, title="汉字" * 40)), 80, 24)
    assert "汉" in lines[0] and "汉" in lines[1] and "…" in lines[1]
    assert pieces("汉字汉字汉", 5, 2) == ("汉字", "汉字…")
    assert fit("汉字", 3) == "汉…" and fit("汉字", 4) == "汉字" and fit("汉字", 1) == "…" and fit("汉", 0) == ""
    assert all(cell_len(fit("汉a字" * 9, cells)) <= cells for cells in range(30))


def test_of_a_joined_stream_the_pieces_that_are_whole_have_no_bar() -> None:
    view = job(1)
    view.streams = {f"d64-{n}": StreamProgress(f"d64-{n}", n * MIB, 4 * MIB) for n in range(1, 5)}
    assert [stream.name for stream in job_of(view).streams] == ["d64-1", "d64-2", "d64-3"]
    assert kind_word("d64-12") == "part 12"
    assert any("part 3" in line for line in shown(board_of(view), 80, 24))
    view.streams = {name: StreamProgress(name, 1, 1) for name in view.streams}
    assert len(job_of(view).streams) == 1


def test_mirrors_are_told_apart_where_there_is_little_room() -> None:
    assert mirror_word("upos-sz-mirrorcos.bilivideo.com", 40) == "upos-sz-mirrorcos.bilivideo.com"
    assert mirror_word("upos-sz-mirrorcos.bilivideo.com", 17) == "upos-sz-mirrorcos"
    assert mirror_word("upos-sz-mirrorcos.bilivideo.com", 10) == "…mirrorcos"


def test_the_totals_say_what_is_left_and_are_never_cut_in_a_fact() -> None:
    board = board_of(job(1), job(2, stage="waiting"))
    board.received_bytes, board.done, board.failed = 0, 7, 2
    board.sample(0.0)
    board.received_bytes = 4 * MIB
    board.sample(1.0)
    total = "running · jobs: 2 · 4.0 MiB/s · left: 00:03 · done: 7 · failed: 2 · free: 123 GiB"
    assert shown(board, 120, 24)[-1] == total
    narrow = shown(board, 40, 24)
    assert " · ".join(line for line in narrow if "·" in line or "free" in line) == total
    board.jobs = {}
    assert "left" not in "".join(shown(board, 120, 24))


def test_the_screen_says_what_a_person_should_know_of_the_worker() -> None:
    board = board_of(job(1))
    board.note = "the login \x1b[31mhas expired: log in again with python run.py --login"
    assert shown(board, 150, 24)[-1] == "the login [31mhas expired: log in again with python run.py --login"
    assert shown(board, 40, 24)[-2:] == ["the login [31mhas expired: log in again", "with python run.py --login"]
    board.note = "word " * 100
    assert shown(board, 40, 24)[-1].endswith("…")


def test_nothing_is_composed_as_long_as_nothing_has_changed() -> None:
    view = job(1)
    board, free = board_of(view), [MIB]
    screen = Screen(board, plain_ink(), lambda: free[0])

    def draws(columns: int = 80) -> bool:
        return screen.picture(columns, 24) is not None

    assert draws() and not draws()
    for change_ in (
        lambda: setattr(board, "state", "paused"),
        lambda: setattr(board, "done", 1),
        lambda: setattr(board, "note", "log in again"),
        lambda: setattr(view, "stage", "merging"),
        lambda: view.streams.update(v=StreamProgress("v", 1, 2)),
        lambda: view.speeds.update(v=3.0),
        board.jobs.clear,
    ):
        change_()
        assert draws() and not draws()
    assert draws(90) and not draws(90)
    view.speeds["v"] = 3.2
    board.sample(1.0)
    assert not draws(90)


def test_a_disk_that_cannot_be_asked_is_left_out() -> None:
    def gone() -> int:
        raise OSError("stale")

    lines = Screen(board_of(), plain_ink(), gone).picture(80, 24) or []
    assert lines[-1].text.endswith("failed: 0")


def test_without_colours_what_is_done_can_still_be_told_from_what_is_not() -> None:
    ink = Ink(Console(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=True))
    bar = terminal.progress_bar(ink, 0.5, 4)
    assert COLOUR.sub("", bar) == "━━──" and not re.search(r"\x1b\[(?:\d+;)*[349]\d", bar)
    ascii_ink = Ink(Console(file=io.StringIO(), color_system=None), lambda text: text.isascii())
    assert terminal.progress_bar(ascii_ink, 0.5, 4) == "##--" and ascii_ink.more == "..."
    assert "\x1b[36m" in terminal.progress_bar(Ink(Console(force_terminal=True, color_system="standard")), 0.5, 4)


def test_jobs_that_move_come_first() -> None:
    order = [job(1), job(2, stage="merging"), job(3, speed=0.0), job(4, stage="waiting")]
    assert [rank(view) for view in order] == [0, 1, 2, 3]


def test_the_columns_fill_the_line_and_no_more() -> None:
    for width in range(8, 300):
        columns = columns_for(width, 5)
        cells = [cells for cells in (*columns, terminal.PERCENT) if cells]
        assert sum(cells) + len(cells) - 1 + (0 if columns.title else 2) <= width, width
        assert columns.bar >= 1 and (not columns.title or columns.title >= 15), width


def test_a_file_gets_no_bars_and_whole_times() -> None:
    file = io.StringIO()
    place = Terminal(Console(file=file, force_terminal=True), True)
    with place.bars(board_of(job(1)), lambda: MIB):
        place.lines.say("a line")
    assert file.getvalue() == "a line\n"
