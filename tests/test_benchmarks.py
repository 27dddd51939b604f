"""The pure parts of the benchmark, and one tiny run of it with real servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import CASES, parser
from benchmarks.bench import GIB, MIB, Bench
from benchmarks.contenders import Peers, Task
from benchmarks.fault_server import Cuts, parse_range
from benchmarks.measure import Sample, difference, digest_of, measure_rounds, rotated, run_process
from benchmarks.pipeline_cases import BLOCK_BYTES, again_bytes, asked_ranges, fitting, held_blocks
from benchmarks.report import Goal, Outcome
from benchmarks.servers import Listener, listening_socket, nginx_config
from benchmarks.videos import LEAST_BYTES, MOST_BYTES, read_shelf, sizes
from benchmarks.wire_cases import ideal_seconds

ROOT = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------------------------------ statistics


def runs(*walls: float, failed: int = 0) -> list[Sample]:
    return [Sample(wall, wall / 2, 1000) for wall in walls] + [Sample(problem="broke")] * failed


def test_a_median_is_that_of_the_good_runs() -> None:
    assert report.median(runs(3, 1, 2), report.wall) == 2
    assert report.median(runs(3, 1, 2, failed=2), report.wall) == 2


def test_there_is_no_median_where_half_of_the_runs_failed_or_none_was_made() -> None:
    assert report.median(runs(1, failed=1), report.wall) is None
    assert report.median([], report.wall) is None


def test_two_contenders_are_compared_by_their_medians() -> None:
    samples = {"ours": runs(1, 2, 9), "aria2c": runs(4, 4, 4)}
    goal = report.compared("wall", samples, ("ours", report.wall), ("aria2c", report.wall), high=0.5)
    assert goal.value == 0.5 and goal.is_met and goal.problem == ""


def test_a_failed_contender_is_told_and_its_goal_is_not_met() -> None:
    samples = {"ours": runs(1), "aria2c": runs(failed=3)}
    goal = report.compared("wall", samples, ("ours", report.wall), ("aria2c", report.wall), high=0.5)
    assert goal.value is None and goal.is_met is False and goal.problem == "aria2c: broke"
    nobody = report.compared("wall", samples, ("ours", report.wall), ("yutto", report.wall))
    assert nobody.problem == "yutto: not measured" and nobody.is_met is None


@pytest.mark.parametrize(
    ("value", "low", "high", "met"),
    [
        (1.0, 0.97, 1.0, True),
        (0.96, 0.97, 1.0, False),
        (1.01, 0.97, 1.0, False),
        (0.0, None, 0, True),
        (5, 4, None, True),
    ],
)
def test_a_goal_is_met_between_its_bounds(value: float, low: float | None, high: float | None, met: bool) -> None:
    assert Goal("x", value, low, high).is_met is met


# ------------------------------------------------------------------------------------------ rounds


def test_everyone_is_first_once() -> None:
    names = ["a", "b", "c"]
    assert [rotated(names, number) for number in range(3)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert sorted(rotated(names, -1)) == names


def test_rounds_are_interleaved_in_empty_folders_and_the_first_is_thrown_away(tmp_path: Path) -> None:
    seen: list[str] = []

    def run(name: str, folder: Path) -> Sample:
        assert list(folder.iterdir()) == []
        (folder / "left").touch()
        seen.append(name)
        return Sample(len(seen))

    contenders = {name: (lambda folder, name=name: run(name, folder)) for name in "ab"}
    samples = measure_rounds(contenders, 2, tmp_path, lambda text: None)
    assert seen == ["b", "a", "a", "b", "b", "a"]
    assert [sample.wall_seconds for sample in samples["a"]] == [3, 6]
    assert list((tmp_path / "out").iterdir()) == []


def test_whoever_fails_twice_is_spared_and_every_run_of_it_counts_as_failed(tmp_path: Path) -> None:
    asked = 0

    def run(folder: Path) -> Sample:
        nonlocal asked
        asked += 1
        raise OSError("no")

    samples = measure_rounds({"a": run}, 3, tmp_path, lambda text: None)
    assert asked == 2
    assert [sample.problem for sample in samples["a"]] == ["OSError: no", *["spared after 2 failures"] * 2]
    assert report.problem_of(samples["a"]) == "OSError: no"


def test_a_process_is_measured_with_its_children(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < .2: pass\nx = bytearray(50_000_000); time.sleep(.3)"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n{burn}\nprint('said')"
    done = run_process([sys.executable, "-c", child], {}, tmp_path, 30)
    assert done.problem == "" and done.output == "said\n"
    assert done.cpu_seconds >= 0.4 and done.peak_rss_bytes > 50_000_000


def test_a_process_that_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    done = run_process(["sh", "-c", "sleep 600 & echo $!; wait"], os.environ, tmp_path, 1.6)
    assert done.problem == "not at its end after 2 s" and done.status == -signal.SIGKILL
    child = Path(f"/proc/{int(done.output)}/stat")
    deadline = time.monotonic() + 20
    while child.exists() and child.read_text("ascii").split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_last_words_of_a_failed_process_are_told(tmp_path: Path) -> None:
    done = run_process([sys.executable, "-c", "raise SystemExit('full\\ndisk')"], {}, tmp_path, 30)
    assert done.problem == "exit status 1: disk"


def test_a_file_is_judged_by_size_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcd")
    digest = digest_of(path)
    assert difference(path, 4, digest) == ""
    assert difference(path, 5, digest) == "4 bytes in place of 5"
    path.write_bytes(b"abce")
    assert difference(path, 4, digest) == "other bytes than were served"
    assert difference(tmp_path / "none", 4, digest) == "no file"


# ------------------------------------------------------------------------------------------ the report


def an_outcome(case: str = "plain-1g", value: float = 0.4) -> Outcome:
    ours = [Sample(1.0, 0.5, 40_000_000, {"download_wall_seconds": 0.8, "download_cpu_seconds": 0.3})]
    samples = {"ours": ours, "aria2c": [Sample(2, 1, 1), Sample(problem="a | b")]}
    goals = [Goal("wall / aria2c", value, high=0.45, unit="×"), Goal("CPU", None, 1, problem="no aria2c")]
    return Outcome(case, "plain", samples, goals, ["yt-dlp is missing here: pip install yt-dlp"])


def test_the_table_names_goals_failures_and_what_is_missing() -> None:
    text = report.markdown([an_outcome()], {"machine": "2 cores"})
    assert "- machine: 2 cores" in text
    assert "| plain | wall / aria2c | 0.40 | ≤ 0.45 | yes |" in text
    assert "| | CPU | – (no aria2c) | ≥ 1 | **no** |" in text.replace("|  |", "| |")
    assert "| plain | ours | 1.00 | 0.50 | 40.0 | 1 |" in text
    assert "| | ours, download alone | 0.80 | 0.30 |  | |" in text
    assert "1 of 2: a / b |" in text
    assert "yt-dlp is missing here: pip install yt-dlp" in text


def test_the_table_stands_between_its_markers_and_the_rest_stays() -> None:
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.between_markers(document, "new")
    assert once == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.between_markers(once, "new") == once
    with pytest.raises(ValueError, match="figures: begin"):
        report.between_markers("nothing", "new")


def test_the_document_has_the_markers_and_names_every_case() -> None:
    document = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert report.BEGIN in document and report.END in document
    assert [case for case in CASES if f"`{case}`" not in document] == []


def test_figures_come_back_from_json_and_new_ones_replace_them() -> None:
    earlier, about = report.from_json(report.as_json([an_outcome(), an_outcome("late")], {"when": "now"}))
    assert about == {"when": "now"}
    assert earlier[0].goals == an_outcome().goals and earlier[0].samples["ours"][0].peak_rss_bytes == 40_000_000
    merged = report.merged(earlier, [an_outcome("small"), an_outcome("plain-1g", 0.3)], list(CASES))
    assert [outcome.case for outcome in merged] == ["plain-1g", "late", "small"]
    assert merged[0].goals[0].value == 0.3


def test_figures_have_three_digits_that_mean_something() -> None:
    shown = [report.shown(value) for value in (None, 0, 0.0123, 0.456, 4.567, 45.67, 456.7)]
    assert shown == ["–", "0.00", "0.012", "0.46", "4.57", "45.7", "457"]
    assert report.shown(78.8, "MB") == "78.8 MB" and report.shown(1.0, "×") == "1.00"


def test_all_cases_are_listed_and_options_have_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser().parse_args(["--only", "late", "--only", "cut", "--quick"])
    assert options.only == ["late", "cut"] and options.quick and not options.no_document
    assert set(CASES) >= {
        "plain-1g",
        "plain-4g",
        "tls-1g",
        "paced",
        "mirrors",
        "cut",
        "late",
        "small",
        "memory",
        "idle",
    }


# ------------------------------------------------------------------------------------------ the plans


def test_the_ideal_is_rounds_of_the_latency() -> None:
    assert ideal_seconds(64, 16, 0.3) == pytest.approx(1.2)
    assert ideal_seconds(65, 16, 0.3) == pytest.approx(1.5)
    assert ideal_seconds(1, 16, 0.3) == pytest.approx(0.3)


def test_small_videos_have_sizes_from_the_least_to_the_most_in_equal_steps() -> None:
    found = sizes(20)
    assert found[0] == LEAST_BYTES and found[-1] == MOST_BYTES and len(set(found)) == 20
    steps = [after / before for before, after in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_a_range_is_cut_once_and_whoever_goes_on_with_it_gets_the_rest() -> None:
    cuts = Cuts("once")
    for start in range(0, 1000, 100):
        cut = cuts.stop_of("/a", start, start + 100)
        assert start < cut < start + 100
        assert cuts.stop_of("/a", cut, start + 100) == start + 100


def test_a_cut_range_that_is_begun_anew_is_answered_in_full_but_not_a_second_time() -> None:
    cuts = Cuts("once")
    cut = cuts.stop_of("/a", 0, 1000)
    assert cuts.stop_of("/a", cut // 2, 1000) == 1000
    assert cuts.stop_of("/a", cut // 2, 1000) < 1000
    assert cuts.stop_of("/b", cut, 1000) < 1000


def test_the_bad_mirror_cuts_every_body_and_the_good_one_none() -> None:
    always, never = Cuts("always"), Cuts("")
    assert all(10 < always.stop_of("/a", 10, 1000) < 1000 for _ in range(100))
    assert never.stop_of("/a", 0, 1000) == 1000


@pytest.mark.parametrize(
    ("text", "span"), [("bytes=0-9", (0, 10)), ("bytes=5-", (5, 100)), ("bytes=90-200", (90, 100)), ("", (0, 100))]
)
def test_ranges_are_half_open(text: str, span: tuple[int, int]) -> None:
    assert parse_range(text, 100) == span


# ------------------------------------------------------------------------------------------ nginx


def test_nginx_is_told_where_to_listen_and_keeps_everything_in_its_folder(tmp_path: Path) -> None:
    log = tmp_path / "log"
    doors = [
        Listener("127.0.0.1", 8081, tmp_path),
        Listener("127.0.0.2", 8082, tmp_path, tls=True, log=log),
        Listener("127.0.0.3", 8083, tmp_path, socket=socket.socket(), extra="location / { return 204; }"),
    ]
    text = nginx_config(doors, tmp_path, "me", "mine")
    assert text.startswith("user me mine;")
    assert "listen 127.0.0.1:8081 reuseport backlog=1024;" in text
    assert "listen 127.0.0.2:8082 ssl reuseport" in text and f"ssl_certificate {tmp_path}/server.pem;" in text
    assert "listen 127.0.0.3:8083;" in text  # an inherited socket listens already
    assert f"access_log {log} ranges;" in text and text.count("access_log /") == 1
    assert "location / { return 204; }" in text
    assert text.count(f"root {tmp_path};") == 3 and text.count("{") == text.count("}")
    assert "user " not in nginx_config(doors[:1], tmp_path, "", "")
    assert doors[2].socket is not None
    doors[2].socket.close()


def test_a_connection_that_a_paced_socket_accepts_is_paced() -> None:
    with listening_socket("127.0.0.1", 123_456) as door, socket.create_connection(door.getsockname()):
        accepted, _address = door.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, 47) == 123_456


# ------------------------------------------------------------------------------------------ restarts


def test_what_was_held_and_sent_again_is_counted_in_blocks(tmp_path: Path) -> None:
    source, part = tmp_path / "source", tmp_path / "part"
    content = bytes(range(1, 256)) * 200
    source.write_bytes(content)
    held = bytearray(len(content))
    held[: 3 * BLOCK_BYTES + 100] = content[: 3 * BLOCK_BYTES + 100]
    part.write_bytes(held)
    assert held_blocks(part, source) == {0, 1, 2}
    assert again_bytes({0, 1, 2}, [(3 * BLOCK_BYTES + 100, len(content))]) == 0
    assert again_bytes({0, 1, 2}, [(2 * BLOCK_BYTES, len(content)), (BLOCK_BYTES + 1, 2 * BLOCK_BYTES)]) == BLOCK_BYTES


def test_the_memory_case_takes_the_largest_streams_that_fit_twice() -> None:
    assert fitting(4 * GIB, 1000 * GIB) == 4 * GIB
    assert fitting(4 * GIB, 53 * GIB) == 3 * GIB
    assert fitting(4 * GIB, 0) == GIB // 4


def test_ranges_are_read_from_the_log_of_nginx() -> None:
    log = "/a?x=1|bytes=100-199|206|50|1.0\n/b|bytes=0-9|206|10|1.0\n/a|-|200|1000|1.1\n/a|bytes=0-9|416|0|1.1\n"
    assert asked_ranges(log, 1000, "/a") == [(100, 150), (0, 1000)]


# ------------------------------------------------------------------------------------------ real


def test_the_list_of_videos_comes_back_as_videos_of_the_site(tmp_path: Path) -> None:
    from dataclasses import asdict

    from benchmarks.videos import FIRST_CID, bvids
    from demo.media import StreamFile

    streams = [
        StreamFile(FIRST_CID + number, kind, 80, 7, 1, f"{number}/{kind}.m4s", 10, "", 4.0)
        for number in (1, 2)
        for kind in ("video", "audio")
    ]
    (tmp_path / "shelf.json").write_text(json.dumps([asdict(stream) for stream in streams]), "utf-8")
    shelf = read_shelf(tmp_path / "shelf.json")
    assert [video.bvid for video in shelf.videos] == bvids(2)
    assert shelf.of_page(FIRST_CID + 2) == tuple(streams[2:]) and shelf.of_page(1) == ()


@pytest.mark.slow
def test_a_tiny_run_downloads_over_nginx_paced_and_faulty_and_every_byte_is_looked_at(tmp_path: Path) -> None:
    from benchmarks.servers import FaultServer, Nginx, listener

    peers = Peers.find([], ROOT)
    assert "nginx" in peers.found, "apt-get install nginx-light (tests/install_debian_packages.sh does it)"
    bench = Bench(peers, tmp_path, 1, True, lambda text: None)
    file = bench.file(12 * MIB)
    plain, tls = listener(bench.served), listener(bench.served, tls=True)
    slow = listener(bench.served, "127.0.0.2", bytes_per_second=8_000_000)
    with (
        Nginx(peers.found["nginx"], [plain, tls, slow], tmp_path / "nginx") as nginx,
        FaultServer(bench.served, "127.0.0.3", cut="once", late_seconds=0.05) as cutting,
    ):
        names = ["ours", "floor", "reference"]
        tasks = {f"{name}, plain": (name, Task((file.at(plain.url),), 4, 30)) for name in names}
        tasks |= {f"{name}, TLS": (name, Task((file.at(tls.url),), 4, 30, nginx.ca_file)) for name in names}
        tasks["paced"] = ("floor", Task((file.at(slow.url),), 1, 30))
        tasks["cut"] = ("ours", Task((file.at(cutting.url),), 4, 30))
        tasks["cut, without retries"] = ("floor", Task((file.at(cutting.url),), 4, 30))
        samples = bench.compare(tasks, warm_up=False)
    failed = {label: runs[0].problem for label, runs in samples.items() if runs[0].problem}
    assert list(failed) == ["cut, without retries"], failed
    paced = samples["paced"][0].figures["download_wall_seconds"]
    assert paced >= 12 * MIB / 8_000_000 * 0.9  # the kernel's pace is a bound from below, however slow the machine is
    shutil.rmtree(tmp_path / "out")
