"""What the board tells of a job and of all of them: speeds, sizes, and when a download will end."""

from __future__ import annotations

from board import SMALL_BYTES, Board, JobView
from model import MIB, StreamProgress

NEVER = float("inf")


def test_the_speed_counts_what_came_and_not_what_a_resume_found() -> None:
    board, view = Board(), JobView("BV1")
    board.jobs["BV1"] = view
    assert board.speed_bytes_per_second == 0.0
    board.report(view, StreamProgress("v80-7", 30 * MIB, 40 * MIB))
    board.sample(1.0)
    board.report(view, StreamProgress("v80-7", 32 * MIB, 40 * MIB, "cdn.example"))
    board.sample(2.0)
    assert board.received_bytes == 2 * MIB
    assert board.speed_bytes_per_second == 2 * MIB
    shown = view.show()
    assert (shown["chunks"], shown["streams"][0]["mirror"]) == (True, "cdn.example")
    for second in range(3, 20):
        board.sample(second)
    assert board.speed_bytes_per_second == 0.0


def test_a_job_on_its_way_to_its_place_tells_how_far_it_is_and_that_its_file_is_here() -> None:
    view = JobView("BV1", stage="delivering")
    view.upload.total_bytes = 3 * MIB
    assert view.show()["chunks"] is True
    view.upload.reach(2 * MIB)
    assert view.show()["streams"] == [{"name": "delivery", "done_bytes": 2 * MIB, "total_bytes": 3 * MIB}]
    view.stage = "recording"
    assert view.show()["streams"] == []


def test_the_size_of_a_job_is_what_the_site_says_until_all_of_its_streams_have_told() -> None:
    view = JobView("BV1", planned_bytes=50)
    assert view.streams_bytes == 50
    view.streams["v"] = StreamProgress("v", 1, 30)
    view.streams["a"] = StreamProgress("a", 1, None)
    assert view.streams_bytes == 50
    view.streams["v"] = StreamProgress("v", 1, 70)
    assert view.streams_bytes == 70
    view.streams["a"] = StreamProgress("a", 1, 3)
    assert view.streams_bytes == 73
    view.streams["v"] = StreamProgress("v", 1, 30)
    assert view.streams_bytes == 33


def test_when_a_download_ends_is_told_by_its_speed_and_before_that_only_of_a_small_one() -> None:
    board, view = Board(), JobView("BV1", planned_bytes=SMALL_BYTES)
    board.jobs["BV1"] = view
    assert view.seconds_left == 0
    view.planned_bytes += 1
    assert view.seconds_left == JobView("BV2").seconds_left == NEVER
    view.streams["v"] = StreamProgress("v", 0, 40 * MIB)
    view.streams["a"] = StreamProgress("a", 0, 20 * MIB)
    for second in (1.0, 2.0):
        board.sample(second)
    assert view.seconds_left == NEVER  # it hangs
    view.speeds.clear()
    view.streams["v"] = StreamProgress("v", 8 * MIB, 40 * MIB)
    view.streams["a"] = StreamProgress("a", 2 * MIB, 20 * MIB)
    board.sample(3.0)
    assert view.seconds_left == 5.0  # 50 MiB at 10 MiB/s


def test_small_merges_share_an_ffmpeg_and_what_is_unknown_has_its_own() -> None:
    board = Board()
    sizes = {"small": SMALL_BYTES, "small too": 1, "large": SMALL_BYTES + 1, "unknown": 0}
    for url, planned_bytes in sizes.items():
        board.jobs[url] = JobView(url, stage="merging", planned_bytes=planned_bytes)
    board.jobs["other"] = JobView("other", stage="downloading", planned_bytes=1)
    assert board.merges == 0.25 + 0.25 + 1 + 1


def test_the_sound_stands_below_the_picture_whichever_came_first() -> None:
    view = JobView("BV1")
    for name in ("a30280-0", "v80-7"):
        view.streams[name] = StreamProgress(name, 1, 2)
    assert [stream["name"] for stream in view.show()["streams"]] == ["v80-7", "a30280-0"]
    view.streams = {name: StreamProgress(name, 1, 2) for name in ("d64-1", "d64-2", "d64-10")}
    assert [stream.name for stream in view.ordered()] == ["d64-1", "d64-2", "d64-10"]
