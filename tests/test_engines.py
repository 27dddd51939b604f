"""The queue in the engines that users bring: the same tests, in Debian's Redis 7."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_queue_works_in_redis_7(tmp_path: Path) -> None:
    # Debian's redis-tools has the server's program under another name, and starts no service of its own.
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    assert program, "Redis 7 is missing: tests/install_debian_packages.sh installs redis-tools"
    server = tmp_path / "redis-server"
    server.symlink_to(program)
    assert "v=7." in subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    tests = "-m", "not slow", "tests/test_redisConnect.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "ENGINE": str(server)}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert " passed" in ended.stdout
