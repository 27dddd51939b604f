"""A farm of real processes works with secrets that occur nowhere else; then they are looked for everywhere."""

from __future__ import annotations

import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.catalogue import video
from demo.process import SiteProcess
from tests.farm import Farm, free_port
from tests.test_notices import Receiver

pytestmark = pytest.mark.slow


class CommandLines:
    """Reads the arguments of all processes of this machine again and again, which anybody may do."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:  # it has ended
                    continue

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)


@pytest.fixture
def command_lines() -> Iterator[CommandLines]:
    lines = CommandLines()
    yield lines
    lines.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def asked(farm: Farm, path: str, token: str = "") -> str:
    """Return what the server answers, with its fields."""
    request = urllib.request.Request(f"http://127.0.0.1:{farm.port}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return f"{answer.headers}{answer.read().decode()}"
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.headers}{error.read().decode()}"


def files_below(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_no_secret_is_anywhere_but_where_it_belongs(
    tmp_path: Path, site: SiteProcess, command_lines: CommandLines, receiver: Receiver
) -> None:
    token, cookie, key, guess = (f"canary{name}{secrets.token_hex(16)}" for name in ("token", "cookie", "key", "guess"))
    farm = Farm(
        tmp_path,
        site,
        BILI_TOKEN=token,
        BILI_SESSDATA=cookie,
        BILI_NOTIFY=receiver.url.replace("s3cret-path", key) + f" json://127.0.0.1:{free_port()}/{key}",
        BILI_LOG_LEVEL="debug",
        BILI_LOG_FILE=str(tmp_path / "log" / "bili.log"),
    )
    try:
        wanted = [video(name).bvid for name in ("plain", "deleted", "login-quality")]
        assert farm.add(*wanted) == "added 3, known 0, rejected 0"
        assert farm.drain() == 1, "one of them is deleted"
        assert asked(farm, "/status", guess) and asked(farm, f"/nothing?token={token}", token)
        farm.start("web_server.py", "--status", "--json").wait()
        pages = [
            asked(farm, path, token)
            for path in (
                "/",
                "/status",
                "/success",
                "/failed",
                "/actions",
                "/metrics",
                "/ui/machines",
                "/ui/jobs",
                "/ui/failures",
            )
        ]
        farm.start("add_url.py", "--export", str(tmp_path / "queue.jsonl")).wait()
        outputs = [path.read_bytes() for path in tmp_path.glob("*.log")]
    finally:
        farm.close()
    assert '"done":2' in pages[1], pages[1]
    found = files_below(tmp_path / "data", tmp_path / "log", farm.downloads)
    found |= {"export": (tmp_path / "queue.jsonl").read_bytes(), "arguments": b"\n".join(command_lines.seen)}
    found |= {
        "pages": "".join(pages).encode(),
        "outputs": b"".join(outputs),
        "notices": "".join(receiver.texts).encode(),
    }
    assert any(name.endswith(".aof") for name in found), "what the engine was told is on the disk"
    assert b"run.py" in found["arguments"] and len(found["outputs"]) > 1000
    for what, secret in (("token", token), ("cookie", cookie), ("key", key), ("guess", guess), ("signature", "upsig=")):
        assert [name for name, content in found.items() if secret.encode() in content] == [], what
    (password,) = [content for name, content in found.items() if name.endswith("/password")]
    assert [name for name, content in found.items() if password in content and not name.endswith("/password")] == []
    assert {Path(name).stat().st_mode & 0o077 for name in found if name.endswith(("/password", "/account.json"))} == {0}
    assert site.get("passport")["cookies_at"].get("media", 0) == 0
