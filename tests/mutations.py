"""Break the product on purpose, one promise at a time, and see whether the tests notice.

    python -m tests.mutations [NAME …]

Each break is made in a copy of the tree, and the tests named with it must turn red there; in the copy as it is they
must be green. ``docs/reliability.md`` has the same table, and ``tests/test_docs.py`` compares them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEST_SECONDS = 90.0
"""Twice what the longest of them takes beside others; who takes longer runs in a circle."""
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".data", "Download", "__pycache__", ".*_cache", ".hypothesis")


@dataclass(frozen=True)
class Edit:
    """``old``, which stands once in ``file``, becomes ``new``."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """A break of the product: its name, what it does, and the tests that must notice it."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "any token counts",
        (
            Edit(
                "lua/common.lua",
                "return redis.call('HGET', TOKEN, id) == token",
                "return redis.call('HEXISTS', TOKEN, id) == 1",
            ),
        ),
        ("tests/test_redisConnect.py::test_only_the_current_token_counts",),
    ),
    Mutation(
        "dedupe and push are two calls",
        (
            Edit(
                "lua/add.lua",
                "push('RPUSH', pushed)",
                "for _, id in ipairs(pushed) do redis.call('RPUSH', READY .. ':new', id) end",
            ),
            Edit(
                "redisConnect.py",
                '            new, old = self._run("add", keys, args, shard)\n',
                '            new, old = self._run("add", keys, args, shard)\n'
                '            while self._redis.lmove(key("ready:new", shard), key("ready", shard), "LEFT", "RIGHT"):\n'
                "                pass\n",
            ),
        ),
        ("tests/test_atomic_verbs.py::test_a_client_that_dies_before_any_of_its_commands_breaks_nothing[add-1]",),
    ),
    Mutation(
        "the ack comes before the file has its name",
        (
            Edit(
                "download_scheduler.py",
                "                merged = await merge(self._ffmpeg,",
                '                await self._queue.ack(held.lease, Result(str(relative), 1, 1.0, ""))\n'
                "                merged = await merge(self._ffmpeg,",
            ),
        ),
        (
            "tests/test_faults_worker.py::"
            "test_a_worker_that_dies_with_chunks_on_its_disk_goes_on_at_once_where_it_was[before the name]",
        ),
    ),
    Mutation(
        "each second is synced instead of each write",
        (Edit("embedded_valkey.py", "appendfsync always\nno-append", "appendfsync everysec\nno-append"),),
        (
            "tests/test_faults_queue.py::"
            "test_an_engine_killed_while_it_syncs_slowly_has_everything_that_was_acknowledged",
        ),
    ),
    Mutation(
        "a body may be shorter than its range",
        (
            Edit(
                "download_stream_file.py",
                "from transfer import (\n",
                "from transfer.range_client import CutShort\nfrom transfer import (\n",
            ),
            Edit(
                "download_stream_file.py",
                "        except FAILURES as error:\n",
                "        except CutShort:\n"
                "            self._part.held_bytes += request.chunk.missing_bytes\n"
                "            request.chunk.at = request.chunk.stop\n"
                "            self._part._finish(request.chunk)\n"
                "        except FAILURES as error:\n",
            ),
        ),
        ("tests/test_download_stream_file.py::test_cut_again_and_again_it_goes_on_from_the_last_byte",),
    ),
    Mutation(
        "the heartbeat beats in the worker's own loop",
        (
            Edit(
                "queue_client.py",
                "        self._thread.start()\n",
                "        self._task = asyncio.get_running_loop().create_task(self._beats())\n",
            ),
        ),
        ("tests/test_queue_client.py::test_a_blocked_loop_does_not_stop_the_heartbeat",),
    ),
    Mutation(
        "the inputs go before the merged file was looked at",
        (
            Edit(
                "merge_stream_file.py",
                "        merged = await asyncio.to_thread(check_output, temporary, plan, inputs, is_one_disk)\n",
                "        for text in (plan.video, plan.audio, *plan.segments):\n"
                "            Path(text).unlink() if text else None\n"
                "        merged = await asyncio.to_thread(check_output, temporary, plan, inputs, is_one_disk)\n",
            ),
        ),
        (
            "tests/test_faults_farm.py::"
            "test_after_any_fault_of_ffmpeg_the_chunks_are_there_and_the_job_ends_well_later[truncated]",
        ),
    ),
    Mutation(
        "a page is known by its number",
        (
            Edit(
                "store/data.py",
                '        return Identity("c", job.cid, str(job.cid))\n',
                '        return Identity("c", job.number, f"{job.bvid}{job.episode_id}:{job.number}")\n',
            ),
        ),
        ("tests/test_redisConnect.py::test_a_page_reached_by_two_containers_is_one_job",),
    ),
    Mutation(
        "a cookie may go over plain http",
        (Edit("account.py", 'return (scheme, port) == ("https", 443)', "return port in (80, 443)"),),
        ("tests/test_account.py::test_cookies_go_to_the_site_over_https_and_to_stand_ins_that_are_named",),
    ),
    Mutation(
        "the site forgets a login before the next one is on the disk",
        (
            Edit(
                "passport.py",
                "        if self._replace(kept, fresh):\n",
                "        await self._passport.confirm(fresh)\n        if self._replace(kept, fresh):\n",
            ),
        ),
        ("tests/test_passport.py::test_a_crash_at_any_moment_of_it_leaves_a_login_that_lives",),
    ),
    Mutation(
        "a lower rate counts before its worker has heard of it",
        (
            Edit(
                "lua/budget.lua",
                "    local counted = math.max(granted, math.min(obeyed, before))\n",
                "    local counted = granted\n",
            ),
        ),
        ("tests/test_farm_budgets.py::test_whatever_happens_all_together_never_ask_more_often_than_they_may",),
    ),
    Mutation(
        "risk control that was heard of is passed on",
        (
            Edit(
                "download_scheduler.py",
                "        if self._risk and parked_seconds > 0:\n",
                "        if self._site.pace.slow_seconds or (self._risk and parked_seconds > 0):\n",
            ),
        ),
        (
            "tests/test_download_scheduler.py::"
            "test_risk_control_of_one_worker_slows_the_others_for_as_long_as_it_is_parked",
        ),
    ),
)


@contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    """Yield a folder with the product and its tests, to be broken; the media of the stand-in site are shared."""
    with tempfile.TemporaryDirectory(prefix="mutation") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        (copy / ".data").mkdir()
        media = ROOT / ".data" / "demo-media"
        media.mkdir(parents=True, exist_ok=True)
        (copy / ".data" / "demo-media").symlink_to(media)
        yield copy


def is_red(tree: Path, tests: Sequence[str]) -> bool:
    """Run tests in a tree; tell whether one of them failed. Anything but passing and failing is an error of ours.

    A broken product may run in a circle. Then it is ended from outside: where the time limit of a test cuts into the
    middle of such a circle, pytest stumbles over what it finds there.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--timeout=0"]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    limit_seconds = TEST_SECONDS * len(tests)
    try:
        ended = subprocess.run(
            [*command, *tests],
            cwd=tree,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired:
        return True
    outcome = (ended.stdout.strip().splitlines() or ["nothing"])[-1]
    if (ended.returncode, " passed" in outcome) == (0, True):
        return False
    if (ended.returncode, " failed" in outcome) == (1, True):
        return True
    raise RuntimeError(f"the tests did not run:\n{ended.stdout[-4000:]}\n{ended.stderr[-1000:]}")


@contextmanager
def broken(tree: Path, mutation: Mutation) -> Iterator[None]:
    """Make the edits of a mutation in a tree, and undo them."""
    originals = {edit.file: (tree / edit.file).read_text("utf-8") for edit in mutation.edits}
    texts = dict(originals)
    for edit in mutation.edits:
        if texts[edit.file].count(edit.old) != 1:
            raise RuntimeError(
                f"{mutation.name}: {edit.file} has this {texts[edit.file].count(edit.old)} times: {edit.old}"
            )
        texts[edit.file] = texts[edit.file].replace(edit.old, edit.new)
    try:
        for name, text in texts.items():
            (tree / name).write_text(text, "utf-8")
        yield
    finally:
        for name, text in originals.items():
            (tree / name).write_text(text, "utf-8")


def main() -> int:
    """Break everything, or what is named; return 1 if something went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", help="a part of the name of what is to be broken")
    names = parser.parse_args().name
    chosen = [one for one in MUTATIONS if not names or any(name in one.name for name in names)]
    unnoticed = 0
    with copy_of_the_tree() as tree:
        tests = sorted({test for one in chosen for test in one.tests})
        print(f"{len(chosen)} breaks; unbroken, the tests are {'RED' if is_red(tree, tests) else 'green'}", flush=True)
        for mutation in chosen:
            with broken(tree, mutation):
                red = is_red(tree, mutation.tests)
            unnoticed += not red
            print(f"{'red ' if red else 'UNNOTICED'}  {mutation.name}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
