"""Real servers, really killed: whatever dies, the next call works, and what was acknowledged is there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

import embedded_valkey
from embedded_valkey import EmbeddedValkey
from errors import EngineError

if sys.platform == "win32":
    pytest.skip("the embedded server is for Linux and macOS", allow_module_level=True)

USER = f"""
import sys
sys.path.insert(0, {str(Path(embedded_valkey.__file__).parent)!r})
from pathlib import Path
import redis
from embedded_valkey import EmbeddedValkey
valkey = EmbeddedValkey(Path(sys.argv[1]))
def call(*command):
    while True:
        address = valkey.ensure()
        try:
            with redis.Redis(unix_socket_path=address.path, password=address.password) as door:
                return door.execute_command(*command)
        except redis.ConnectionError:
            pass
print(call("INFO", "server")["run_id"], flush=True)
for line in sys.stdin:
    call("SADD", "kept", line.strip())
    print("added", flush=True)
"""


def client(valkey: EmbeddedValkey) -> redis.Redis:
    """Return a client that asks for the server before each connection."""

    class Door(redis.UnixDomainSocketConnection):
        def _connect(self):
            self.path = valkey.ensure().path
            return super()._connect()

    password = valkey.ensure().password
    pool = redis.ConnectionPool(connection_class=Door, password=password, retry=Retry(ConstantBackoff(0.05), 20))
    return redis.Redis.from_pool(pool)


def run_id(valkey: EmbeddedValkey) -> str:
    with client(valkey) as door:
        return door.info("server")["run_id"]


class User:
    """Another process that uses the server, as add_url.py would."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.run_id = ""

    def read(self) -> str:
        return self.process.stdout.readline().strip()

    def add(self, member: object) -> bool:
        """Add a member; tell whether that was acknowledged."""
        self.run_id = self.run_id or self.read()
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{member}\n")
            return self.read() == "added"
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def processes(data_dir: Path) -> dict[str, list[int]]:
    """Return the living servers and keepers in the folder by what they are, as /proc tells."""
    found: dict[str, list[int]] = {"valkey-server": [], "keeper": []}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (entry / "cwd").readlink() == data_dir / "valkey":
                line = (entry / "cmdline").read_bytes().split(b"\0")
                kind = "keeper" if b"keeper" in line else "valkey-server"
                found[kind].append(int(entry.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> float:
    """Wait until the condition holds, and return how long that took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - begin


def kill(kind: str, data_dir: Path, signal_number: int = signal.SIGKILL) -> None:
    (pid,) = processes(data_dir)[kind]
    os.kill(pid, signal_number)
    wait_for(lambda: pid not in processes(data_dir)[kind])


def is_gone(data_dir: Path) -> bool:
    return not any(processes(data_dir).values())


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.is_dir() or entry.exists()}


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
pytestmark = linux


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    wait_for(lambda: is_gone(tmp_path / "data"))


@pytest.fixture
def make_valkey(data_dir: Path) -> Iterator[Callable[..., EmbeddedValkey]]:
    made: list[EmbeddedValkey] = []

    def make(folder: Path = data_dir) -> EmbeddedValkey:
        made.append(EmbeddedValkey(folder))
        return made[-1]

    yield make
    for valkey in made:
        valkey.close()


@pytest.fixture
def valkey(make_valkey) -> EmbeddedValkey:
    return make_valkey()


@pytest.fixture
def make_user(data_dir: Path) -> Iterator[Callable[[], User]]:
    made: list[User] = []

    def make() -> User:
        made.append(User(data_dir))
        return made[-1]

    yield make
    for user in made:
        user.kill()


def test_it_starts_is_shared_and_ends_with_its_last_user(valkey, make_valkey, data_dir):
    first = valkey.ensure()
    assert valkey.ensure() is first
    other = make_valkey()
    assert run_id(other) == run_id(valkey)
    valkey.close()
    valkey.close()
    with client(other) as door:
        assert door.set("a", "b")
        assert door.config_get("append*")["appendfsync"] == "always"
        assert door.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert door.config_get("port") == {"port": "0"}
    other.close()
    assert wait_for(lambda: is_gone(data_dir)) < 4
    with client(valkey) as door:
        assert door.get("a") == b"b"


def test_another_process_shares_it_and_its_death_is_its_leave(valkey, make_user, data_dir):
    user = make_user()
    identity = user.read()
    assert run_id(valkey) == identity
    user.kill()
    assert run_id(valkey) == identity
    valkey.close()
    assert wait_for(lambda: is_gone(data_dir)) < 4


def test_a_killed_starter_leaves_nothing_behind(make_user, data_dir):
    user = make_user()
    user.read()
    assert not is_gone(data_dir)
    user.kill()
    assert wait_for(lambda: is_gone(data_dir)) < 4


def test_an_interrupt_of_the_starters_terminal_does_not_reach_it(make_user, data_dir):
    make_user().read()
    session = os.getsid(0)
    assert all(os.getsid(pid) != session for pids in processes(data_dir).values() for pid in pids)


@pytest.mark.parametrize("victim", ["valkey-server", "keeper"])
def test_a_kill_loses_nothing_and_the_next_call_works(valkey, data_dir, victim):
    with client(valkey) as door:
        for number in range(40):
            door.sadd("kept", number)
            if number % 10 == 0 and (victims := processes(data_dir)[victim]):
                os.kill(max(victims), signal.SIGKILL)
        assert door.scard("kept") == 40
        # A server whose keeper was killed answers for some milliseconds more, and so does the keeper of a killed one.
        wait_for(lambda: door.ping() and [len(pids) for pids in processes(data_dir).values()] == [1, 1])


def test_eight_starters_at_once_start_one_server(make_user):
    users = [make_user() for _ in range(8)]
    assert len({user.read() for user in users}) == 1


def test_threads_share_one_start(valkey, data_dir):
    gate = threading.Barrier(8)
    found = []

    def ask() -> None:
        gate.wait()
        found.append(valkey.ensure())

    for _ in range(3):
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kill("valkey-server", data_dir)
    assert len(found) == 24
    assert len(set(found)) == 1


def test_torture_loses_nothing(valkey, make_user, data_dir):
    dice = random.Random(7)
    acknowledged = set()
    for turn in range(6):
        users = [make_user() for _ in range(dice.randint(1, 2))]
        for number in range(8):
            user = dice.choice(users)
            if number == 0 or dice.random() < 0.3:
                with contextlib.suppress(ProcessLookupError):
                    victims = [pid for pids in processes(data_dir).values() for pid in pids]
                    os.kill(dice.choice([*victims, user.process.pid]), signal.SIGKILL)
            member = f"{turn}-{number}"
            if user.process.poll() is None and user.add(member):
                acknowledged.add(member)
        for user in users:
            user.kill()
    with client(valkey) as door:
        kept = {member.decode() for member in door.smembers("kept")}
    assert acknowledged
    assert acknowledged <= kept


def test_the_password_is_secret_and_stays(valkey, data_dir):
    address = valkey.ensure()
    file = data_dir / "valkey" / "password"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == address.password
    assert address.password not in repr(address)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    for pids in processes(data_dir).values():
        for pid in pids:
            assert address.password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert address.password.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    with redis.Redis(unix_socket_path=address.path, retry=None) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.get("a")
    kill("valkey-server", data_dir)
    assert valkey.ensure() == address


@pytest.mark.parametrize("chosen", ["", "glibc.malloc.check=1"])
def test_its_allocator_is_made_for_scripts_unless_the_user_has_set_another_way(valkey, data_dir, monkeypatch, chosen):
    # Set last, because Valkey's title overwrites the first ones.
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if chosen:
        monkeypatch.setenv("GLIBC_TUNABLES", chosen)
    valkey.ensure()
    (pid,) = processes(data_dir)["valkey-server"]
    environ = Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b":")  # which glibc makes of its own colons
    assert f"GLIBC_TUNABLES={chosen or embedded_valkey.ALLOCATOR}:".encode() in environ


@pytest.mark.parametrize("name", ["password", "valkey.sock", "server.lock", "users.lock"])
def test_a_file_deleted_while_it_runs_comes_back(valkey, make_valkey, data_dir, name):
    with client(valkey) as door:
        door.set("a", "b")
        identity = run_id(valkey)
        (data_dir / "valkey" / name).unlink()
        wait_for(lambda: is_gone(data_dir), 15)
    with client(make_valkey()) as door:
        assert door.get("a") == b"b"
        assert run_id(valkey) != identity
    assert (data_dir / "valkey" / name).exists()
    assert len(processes(data_dir)["valkey-server"]) == 1


def test_a_joiner_never_gets_by_without_the_password(valkey, make_valkey, data_dir):
    first = valkey.ensure()
    (data_dir / "valkey" / "password").unlink()
    second = make_valkey().ensure()
    assert second.password not in ("", first.password)
    with client(valkey) as door:
        assert door.ping()


def test_the_whole_folder_deleted_is_an_empty_queue(valkey, data_dir):
    with client(valkey) as door:
        door.set("a", "b")
    subprocess.run(["rm", "-rf", str(data_dir)], check=True)
    with client(valkey) as door:
        assert door.get("a") is None


def test_left_overs_do_not_matter(valkey, data_dir):
    folder = data_dir / "valkey"
    folder.mkdir(parents=True)
    (folder / "valkey.sock").write_text("no socket")
    (folder / "temp-rewriteaof-bg-1.aof").write_text("half")
    (folder / "temp-password").write_text("half")
    (folder / "password").write_text("")
    (folder / "valkey.log").write_bytes(b"x" * (embedded_valkey.LOG_LIMIT_BYTES + 1))
    assert run_id(valkey)
    assert not list(folder.glob("temp-*"))
    assert (folder / "valkey.log").stat().st_size < 10_000
    assert (folder / "valkey.log.1").stat().st_size > embedded_valkey.LOG_LIMIT_BYTES


@pytest.mark.parametrize(
    "tail", [b"", b"*3\r\n$3\r\nSET\r\n$1\r\nx", bytes(70_000), b"*1\r\n$5\r\nMULTI\r\n" + bytes(4096)]
)
def test_a_torn_end_of_the_append_only_file_costs_nothing(valkey, data_dir, tail):
    newest = _stopped_with_data(valkey, data_dir)
    with newest.open("ab") as file:
        file.write(tail)
    with client(valkey) as door:
        assert door.scard("kept") == 50
        door.sadd("kept", "more")
    kill("valkey-server", data_dir)
    with client(valkey) as door:
        assert door.scard("kept") == 51


def test_a_damaged_append_only_file_is_named_and_can_be_repaired(valkey, data_dir):
    newest = _stopped_with_data(valkey, data_dir)
    with newest.open("ab") as file:
        file.write(b"garbage" * 600)
    damaged = newest.read_bytes()
    before = descriptors()
    with pytest.raises(EngineError, match=r"appendonly\.aof\.1\.incr\.aof is damaged.* repair ") as caught:
        valkey.ensure()
    assert descriptors() == before
    assert newest.read_bytes() == damaged
    command = str(caught.value).partition("asked you: ")[2]
    subprocess.run(command, shell=True, input=b"y\n", check=True, capture_output=True)
    assert [copy.read_bytes() for copy in newest.parent.glob("*.damaged-*")] == [damaged]
    with client(valkey) as door:
        assert door.scard("kept") == 50
    refused = subprocess.run(command, shell=True, input=b"y\n", capture_output=True)
    assert refused.returncode == 1
    assert b"in use" in refused.stderr


def test_a_missing_manifest_is_not_an_empty_queue(valkey, data_dir):
    newest = _stopped_with_data(valkey, data_dir)
    (newest.parent / "appendonly.aof.manifest").unlink()
    with pytest.raises(EngineError, match=r"appendonly\.aof\.manifest is missing"):
        valkey.ensure()


def _stopped_with_data(valkey: EmbeddedValkey, data_dir: Path) -> Path:
    with client(valkey) as door:
        for number in range(50):
            door.sadd("kept", number)
    valkey.close()
    wait_for(lambda: is_gone(data_dir))
    return data_dir / "valkey" / "appendonlydir" / "appendonly.aof.1.incr.aof"


@pytest.mark.parametrize("name", ["with a space and a 'quote\"", "数据文件夹", "x" * 255])
def test_any_folder_name_will_do_and_it_can_be_moved(make_valkey, tmp_path, name):
    folder = tmp_path / name
    valkey = make_valkey(folder)
    with client(valkey) as door:
        door.set("a", "b")
        folder.rename(tmp_path / "moved")
        assert door.get("a") == b"b"
        kill("valkey-server", tmp_path / "moved")
        assert door.get("a") == b"b"
        assert run_id(make_valkey(tmp_path / "moved")) == run_id(valkey)
    assert not folder.exists()
    valkey.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize("part", ["", "valkey"])
def test_the_folder_of_another_user_is_refused(valkey, data_dir, part):
    folder = data_dir / part
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    with pytest.raises(EngineError, match=f"{folder} belongs to another user"):
        valkey.ensure()
    assert list(folder.iterdir()) == []


def test_a_system_without_a_binary_is_told_the_two_ways(valkey, data_dir, monkeypatch):
    monkeypatch.setattr(embedded_valkey.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="set REDIS_URL, or set BILI_SERVER_URL") as caught:
        valkey.ensure()
    assert "\n" not in str(caught.value)
    assert not data_dir.exists()


def test_a_full_disk_is_said_before_it_hurts(valkey, monkeypatch):
    monkeypatch.setattr(embedded_valkey, "DISK_RESERVE_BYTES", 2**62)
    with pytest.raises(EngineError, match="is full"):
        valkey.ensure()


def test_a_failed_start_says_the_last_words_and_holds_nothing(valkey, monkeypatch):
    before = descriptors()
    monkeypatch.setattr(embedded_valkey, "CONFIG", embedded_valkey.CONFIG + "nonsense 1\n")
    with pytest.raises(EngineError, match=r"last words(.|\n)*nonsense"):
        valkey.ensure()
    assert descriptors() == before
    monkeypatch.undo()
    assert run_id(valkey)


def test_a_program_that_cannot_run_is_said(valkey, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("no program")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded_valkey, "find_binary", lambda: str(broken))
    with pytest.raises(EngineError, match="Exec format error"):
        valkey.ensure()


def test_a_file_in_the_way_is_said(make_valkey, tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(EngineError, match=r"cannot be used for the queue: .*plain: File exists"):
        make_valkey(tmp_path / "plain").ensure()


def test_a_living_server_is_found_quickly(valkey):
    valkey.ensure()
    durations = []
    for _ in range(21):
        begin = time.perf_counter()
        valkey.ensure()
        durations.append(time.perf_counter() - begin)
    assert sorted(durations)[10] < 0.02
