"""The engine of the queue, Redis or Valkey: how it is reached, and what goes wrong with it as one sentence.

It may be one server, one that sentinels watch, or a cluster; docs/engines.md is for who runs it. What is given out is
always a client of the same few abilities: commands, scripts, and pipelines whose keys have one tag.
"""

from __future__ import annotations

import functools
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import hiredis
import redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.client import Pipeline
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import HiredisRespSerializer
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    RedisClusterException,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from embedded_valkey import EmbeddedValkey
from engine_url import EngineUrl, read_url
from errors import EngineError, EngineFull
from i18n import _
from store.engine_checks import Facts

_P = ParamSpec("_P")
_R = TypeVar("_R")

Client = redis.Redis | RedisCluster

HOME = "{bili:0}"
"""The tag of the keys whose node of a cluster is asked what has no key: the time, above all."""
OF_ALL_NODES = frozenset({"SCAN"})
"""What is asked of each node of a cluster, as the driver does it."""
PAUSE_SECONDS = 0.15
HASTY_SECONDS, PATIENT_SECONDS = 2.5, 20.0
"""For so long, roughly, a failover is waited for within one verb: by a server, whose clients ask again; by a script."""
WAIT_MS = 2000


class _Client(redis.Redis):
    """Runs scripts and pipelines with less ado than the driver, which locks, polls and measures around each command.

    The connection stays out of the driver's pool for the next one. Whether it is still good shows when it is used: the
    connection's own retry dials again, and each script may be repeated.
    """

    def __init__(self, connection_pool: redis.ConnectionPool) -> None:
        super().__init__(connection_pool=connection_pool)
        self.auto_close_connection_pool = True  # nobody else has it
        self._idle: deque[Any] = deque()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] != "EVALSHA":
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

        def run(connection: Any) -> Any:
            connection.send_command(*args)
            return connection.read_response()

        return self.exchange(run)

    def pipeline(self, transaction: Any = True, shard_hint: Any = None) -> Any:
        return super().pipeline(transaction, shard_hint) if transaction else _Pipeline(self)

    def exchange(self, talk: Callable[[Any], _R]) -> _R:
        """Return what a talk over a connection brings; it must read all answers before it raises a ResponseError."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self.connection_pool.get_connection()
        try:
            found: _R = connection.retry.call_with_retry(lambda: talk(connection), lambda _: connection.disconnect())
            return found
        except redis.ResponseError:  # it has answered
            raise
        except BaseException:  # else the next one would read what this one has asked for
            connection.disconnect()
            raise
        finally:
            self._idle.append(connection)


class _Pipeline(Pipeline):
    """Commands that are no transaction, in one round trip."""

    def __init__(self, client: _Client) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, False, None)
        self._client = client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self.command_stack = self.command_stack, []

        def run(connection: Any) -> list[Any]:
            connection.send_packed_command(connection.pack_commands([args for args, _options in commands]))
            answers = []
            for args, options in commands:
                try:
                    answers.append(self.parse_response(connection, args[0], **options))  # type: ignore[no-untyped-call]
                except redis.ResponseError as error:
                    answers.append(error)
            return answers

        answers = self._client.exchange(run) if commands else []
        if raise_on_error:
            self.raise_first_error(commands, answers)  # type: ignore[no-untyped-call]
        return answers


class _Placed(Protocol):
    """Whoever speaks to an engine, and can say where that is."""

    place: str


_Place = TypeVar("_Place", bound=_Placed)


def nothing() -> None:
    """Do nothing: what is to be done at the end with an engine that is not ours."""


# ------------------------------------------------------------------------------------------ reaching it


def connect_url(text: str, is_patient: bool = False) -> tuple[Client, EngineUrl]:
    """Return a client of the engine at an address. To a cluster it has spoken already, else nothing is sent yet.

    ``is_patient`` is for scripts: a failover is waited for, where a server would say that the engine is away.
    """
    try:
        url = read_url(text)
    except ValueError as error:
        raise EngineError(_("REDIS_URL cannot be used: {problem}").format(problem=error)) from None
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in url.options and not Path(url.options[name]).is_file():
            raise EngineError(
                _("REDIS_URL cannot be used: {option} names no file: {path}").format(
                    option=name, path=url.options[name]
                )
            )
    patience_seconds = PATIENT_SECONDS if is_patient else HASTY_SECONDS
    if url.kind == "sentinel":
        return _connect_sentinel(url, patience_seconds), url
    if url.kind == "cluster":
        return _connect_cluster(url, patience_seconds), url
    return _connect_one(url), url


def _connect_one(url: EngineUrl) -> redis.Redis:
    options = {**_options(retries=1), **_login(url), **url.options, "db": url.database}
    if url.kind == "socket":
        return _Client(
            connection_pool=redis.ConnectionPool(
                connection_class=redis.UnixDomainSocketConnection, path=url.path, **options
            )
        )
    (server,) = url.servers
    pool = redis.ConnectionPool(
        connection_class=_TlsConnection if url.is_tls else _PlainConnection,
        host=server.host,
        port=server.port,
        **options,
    )
    return _Client(connection_pool=pool)


def connect_embedded(data_dir: Path) -> tuple[redis.Redis, Callable[[], None]]:
    """Return a connection to the Valkey of a data folder, which is started, and how to leave it."""
    engine = EmbeddedValkey(data_dir)

    class Connection(redis.UnixDomainSocketConnection):
        """Starts the server again where it is gone, before it connects."""

        def _connect(self) -> Any:
            address = engine.ensure()
            self.path, self.password = address.path, address.password
            return super()._connect()  # type: ignore[no-untyped-call]

    try:
        address = engine.ensure()
    except BaseException:
        engine.close()
        raise
    pool = redis.ConnectionPool(
        connection_class=Connection, path=address.path, password=address.password, **_options(retries=20)
    )
    return _Client(connection_pool=pool), engine.close


def place_of(client: Client) -> str:
    """Return where a client's engine is, without a password."""
    if isinstance(client, RedisCluster):
        return ",".join(f"{node.host}:{node.port}" for node in client.startup_nodes)
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host')}:{options.get('port')}")


class _Patience(Retry):
    """Tries again what may pass; a password that was refused will be refused again."""

    def call_with_retry(
        self,
        do: Callable[[], _R],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> _R:
        def may_pass(error: Exception) -> bool:
            if isinstance(error, (redis.AuthenticationError, _WrongName)) or _is_refused_by_tls(error):
                return False
            return is_retryable is None or is_retryable(error)

        return super().call_with_retry(do, fail, may_pass, with_failure_count)


class _Endurance(_Patience):
    """Tries again for a bounded time, however connecting and sending are nested; each connection has its own copy."""

    def __init__(self, seconds: float) -> None:
        super().__init__(ConstantBackoff(PAUSE_SECONDS), -1)
        self._seconds = seconds
        self._until = 0.0

    def call_with_retry(
        self,
        do: Callable[[], _R],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> _R:
        def is_in_time(error: Exception) -> bool:
            return time.monotonic() < self._until and (is_retryable is None or is_retryable(error))

        is_outermost = not self._until
        if is_outermost:
            self._until = time.monotonic() + self._seconds
        try:
            return super().call_with_retry(do, fail, is_in_time, with_failure_count)
        finally:
            if is_outermost:
                self._until = 0.0


class _Packer(HiredisRespSerializer):
    """Packs commands in C; half a surrogate pair in a title, which that refuses, must not stop a job."""

    def pack(self, *args: Any) -> list[bytes]:
        """Return a command as the engine reads it."""
        try:
            if args[0] == "EVALSHA":  # nearly all of them, and long: the driver would look at each argument first
                return [hiredis.pack_command(args)]
            return list(super().pack(*args))
        except UnicodeEncodeError:
            plain: Any = [one.encode("utf-8", "replace") if isinstance(one, str) else one for one in args]
            return list(super().pack(*plain))


def _options(retries: int) -> dict[str, Any]:
    """Return the driver's options. It retries a connection within each retry of a command: the number counts twice."""
    return {
        "decode_responses": True,
        "encoding_errors": "replace",
        "command_packer": _Packer(),
        "socket_timeout": 15,
        "socket_connect_timeout": 3,
        "health_check_interval": 30,
        # Every verb may be repeated: its token or request id makes the answer the same.
        "retry": _Patience(ConstantBackoff(0.05), retries),
    }


def _login(url: EngineUrl) -> dict[str, Any]:
    return {"username": url.username or None, "password": url.password or None}


class _Demoted(redis.ConnectionError):
    """This server was the primary, and is a replica now: the connection leads to the wrong one."""


class _PlainConnection(redis.Connection):
    """Dials again where its server takes no writes: behind the same name there may be another one by now."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except redis.ReadOnlyError as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise _Demoted(str(error)) from None


class _TlsConnection(_PlainConnection, redis.SSLConnection):
    """The same with TLS."""


# ------------------------------------------------------------------------------------------ Sentinel


class _WrongName(MasterNotFoundError):
    """The sentinels have told, or refused to: asking again changes nothing."""


class _Sentinels(Sentinel):
    """Asks the sentinels who is the primary, and says in words why none can be had."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        problems, known, is_down, refusals = [], set[str](), False, 0
        for number, sentinel in enumerate(self.sentinels):
            try:
                masters: dict[str, dict[str, Any]] = sentinel.sentinel_masters()  # type: ignore[assignment]
            except redis.RedisError as error:
                problems.append(f"{place_of(sentinel)}: {_refusal(error)}")
                refusals += isinstance(error, (redis.AuthenticationError, NoPermissionError))
                continue
            known |= set(masters)
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):  # type: ignore[no-untyped-call]
                # The one that answers is asked first the next time.
                self.sentinels[0], self.sentinels[number] = sentinel, self.sentinels[0]
                return state["ip"], state["port"]
            is_down = is_down or state is not None
        is_settled = not is_down and (known or refusals == len(self.sentinels))
        kind = _WrongName if is_settled else MasterNotFoundError
        raise kind(_no_primary(service_name, sorted(known), is_down, problems))


def _refusal(error: redis.RedisError) -> str:
    if isinstance(error, redis.AuthenticationError):
        return _("it refuses the password: set sentinel_password (and sentinel_username) behind the ? of REDIS_URL")
    if isinstance(error, NoPermissionError):
        return _("the ACL user needs +sentinel|masters there ({problem})").format(problem=error)
    return str(error)


def _no_primary(service: str, known: Sequence[str], is_down: bool, problems: Sequence[str]) -> str:
    if is_down:
        sentence = _("the primary of {service} is down, and the sentinels have not agreed on another one yet")
    elif known:
        sentence = _("the sentinels do not know {service}, only {known}: correct the name in REDIS_URL")
    else:
        sentence = _("no sentinel can be asked for {service}")
    return "; ".join([sentence.format(service=service, known=", ".join(known)), *problems])


def _connect_sentinel(url: EngineUrl, patience_seconds: float) -> redis.Redis:
    tls = {"ssl": True, **{name: value for name, value in url.options.items() if name.startswith("ssl_")}}
    of_sentinels = {
        **{"username": url.sentinel_username or None, "password": url.sentinel_password or None},
        **{"decode_responses": True, "socket_timeout": 1, "socket_connect_timeout": 1, "retry": Retry(NoBackoff(), 0)},
        **(tls if url.is_tls else {}),
    }
    options = _options(retries=0) | {"socket_timeout": 5, "retry": _Endurance(patience_seconds)}
    sentinels = _Sentinels(  # type: ignore[no-untyped-call]
        list(url.servers),
        sentinel_kwargs=of_sentinels,
        **{**options, **_login(url), **url.options, "ssl": url.is_tls, "db": url.database},
    )
    client: redis.Redis = sentinels.master_for(url.service)  # type: ignore[no-untyped-call]
    return client


# ------------------------------------------------------------------------------------------ Cluster


class _Cluster(RedisCluster):
    """Sends each command and each pipeline to the node of its tag, and what has no key to the node of HOME.

    The driver's own way would ask any node for the time, and pipelines would be split up. Where the slots have moved,
    or a node is gone, the map of the cluster is read again, for a bounded time.
    """

    def __init__(self, url: EngineUrl, patience_seconds: float) -> None:
        own = _options(retries=0) | {"socket_timeout": 5}
        own.pop("retry")
        self._patience_seconds = patience_seconds
        self._patience = _Patience(
            ConstantBackoff(PAUSE_SECONDS),
            -1,
            (
                redis.ConnectionError,
                redis.TimeoutError,
                AskError,
                TryAgainError,
                ClusterDownError,
                RedisClusterException,
            ),
        )
        super().__init__(
            startup_nodes=[ClusterNode(*server) for server in url.servers],  # type: ignore[no-untyped-call]
            retry=Retry(NoBackoff(), 0),
            require_full_coverage=False,
            dynamic_startup_nodes=False,  # the names that the user gave are good when all addresses have changed
            **{**own, **_login(url), **url.options, "ssl": url.is_tls},
        )

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if "target_nodes" in options or args[0] in OF_ALL_NODES:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        tag = _tag_of(args)
        try:
            return self.at_node(tag, lambda node: _ask(node, *args, **options))
        except UnicodeEncodeError:  # the driver's packer in C knows no encoding_errors
            return self.at_node(tag, lambda node: _ask(node, *_encoded(args), **options))

    def pipeline(self, transaction: Any = True, shard_hint: Any = None) -> Any:
        return _NodePipeline(self, bool(transaction))

    def script_load(self, script: Any) -> Any:
        """Load a script where most need it; another node gets it when it misses it."""
        return self.execute_command("SCRIPT LOAD", script)

    def at_node(self, tag: str, do: Callable[[redis.Redis], _R]) -> _R:
        """Return what ``do`` returns for the node that has the keys of a tag, tried again while the cluster changes."""
        until = time.monotonic() + self._patience_seconds
        return self._patience.call_with_retry(
            lambda: self._attempt(tag, do), lambda error: None, lambda error: time.monotonic() < until
        )

    def _attempt(self, tag: str, do: Callable[[redis.Redis], _R]) -> _R:
        node: ClusterNode | None = None
        try:
            node = self.get_node_from_key(tag)  # type: ignore[no-untyped-call]
            return do(self.get_redis_connection(node))
        except redis.AuthenticationError:
            raise
        except MovedError as error:
            self.nodes_manager.move_slot(error)
            raise
        except (redis.ConnectionError, redis.TimeoutError, ClusterDownError, SlotNotCoveredError):
            self._read_map(node)
            raise

    def _read_map(self, failed: ClusterNode | None) -> None:
        """Ask the nodes that the user has named who has which slots, then all others, at last the one that failed.

        Those that were named may be the very ones that are gone.
        """
        known = [(node.host, node.port) for node in self.get_nodes()]  # type: ignore[no-untyped-call]
        self.nodes_manager.initialize(
            additional_startup_nodes_info=known, last_failed_node_name=failed.name if failed else None
        )

    def tag_of_each_node(self, tags: Sequence[str]) -> list[str]:
        """Return one of some tags for each node that has any of them."""
        return list({self.get_node_from_key(tag).name: tag for tag in tags}.values())  # type: ignore[no-untyped-call]


class _NodePipeline(redis.client.Pipeline):
    """Commands whose keys have one tag, sent together to the node that has it."""

    def __init__(self, cluster: _Cluster, transaction: bool) -> None:
        self._cluster = cluster
        super().__init__(None, {}, transaction, None)  # type: ignore[arg-type]

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack, self.command_stack = self.command_stack, []
        try:
            return self._send(stack, raise_on_error)
        except UnicodeEncodeError:
            return self._send([(_encoded(args), options) for args, options in stack], raise_on_error)

    def _send(self, stack: list[tuple[Any, Any]], raise_on_error: bool) -> list[Any]:
        tags = [tag for args, _options in stack if (tag := _tag_of(args, ""))]

        def send(node: redis.Redis) -> list[Any]:
            with node.pipeline(transaction=self.transaction) as pipe:
                pipe.command_stack = list(stack)
                return list(pipe.execute(raise_on_error))

        return self._cluster.at_node(tags[0] if tags else HOME, send) if stack else []


def _encoded(args: Sequence[Any]) -> tuple[Any, ...]:
    """Return a command with its texts as bytes; half a surrogate pair in a title must not stop a job."""
    return args[0], *(one.encode("utf-8", "replace") if isinstance(one, str) else one for one in args[1:])


def _ask(client: Any, *args: Any, **options: Any) -> Any:
    return client.execute_command(*args, **options)


def _tag_of(args: Sequence[Any], otherwise: str = HOME) -> str:
    """Return the tag of the first key of a command: all of ours begin with one, and no name or text before it does."""
    texts = (one.decode() if isinstance(one, bytes) and one.startswith(b"{") else one for one in args[1:])
    first = next((one for one in texts if isinstance(one, str) and one.startswith("{")), otherwise)
    return first.partition("}")[0] + "}" if first else ""


def _connect_cluster(url: EngineUrl, patience_seconds: float) -> RedisCluster:
    try:
        return _Cluster(url, patience_seconds)
    except (redis.RedisError, RedisClusterException) as error:
        raise _as_engine_error(_cause(error), url.place) from None


# ------------------------------------------------------------------------------------------ scripts


def run_script(client: Any, script: Any, keys: Sequence[str], args: Sequence[Any], url: EngineUrl | None = None) -> Any:
    """Run a registered script, loaded again where the engine has lost it; wait for replicas where ``url`` wants that.

    Its answer counts only when they have what it changed: else EngineError, and the verb is to be repeated.
    """

    def ask(by_text: bool) -> Any:
        call = _call(script, by_text)
        if url is not None and (url.wait_replicas or url.wait_fsync):
            return _run_and_wait(client, call, keys, args, url)
        return client.execute_command(*call, len(keys), *keys, *args)

    return _loaded(client, [script], ask)


def _call(script: Any, by_text: bool) -> tuple[str, str]:
    return ("EVAL", script.script) if by_text else ("EVALSHA", script.sha)


def _loaded(client: Any, scripts: Sequence[Any], ask: Callable[[bool], _R]) -> _R:
    """Return the answer of scripts, which ``ask`` runs by their text or not; they are loaded where nobody has yet."""
    try:
        return ask(False)
    except NoScriptError:  # those that were known, of several, are only repeated
        for script in scripts:
            client.script_load(script.script)
    try:
        return ask(False)
    except NoScriptError:  # flushed again between loading and calling, or this node has never seen them
        return ask(True)


def _run_and_wait(client: Any, call: tuple[str, str], keys: Sequence[str], args: Sequence[Any], url: EngineUrl) -> Any:
    with client.pipeline(transaction=False) as pipe:
        pipe.execute_command(*call, len(keys), *keys, *args)
        # A repeated verb may change nothing; what another connection has changed is waited for only behind a change.
        pipe.set(f"{_tag_of(('', *keys))}:waited", 1)
        pipe.execute_command("WAIT", url.wait_replicas, WAIT_MS)
        if url.wait_fsync:  # of this server: replicas tell of their disks once a second only
            pipe.execute_command("WAITAOF", 1, 0, WAIT_MS)
        answer, _set, replicas, *synced = pipe.execute()
    if synced and not synced[0][0]:
        raise EngineError(
            _(
                "The change was not on the disk of Redis within {seconds:g} s: it counts as not made, and may be asked"
                " for again"
            ).format(seconds=WAIT_MS / 1000)
        )
    if replicas < url.wait_replicas:
        raise EngineError(
            _(
                "Of the {wanted} replicas that REDIS_URL waits for, {count} had the change within {seconds:g} s: it"
                " counts as not made, and may be asked for again"
            ).format(wanted=url.wait_replicas, count=replicas, seconds=WAIT_MS / 1000)
        )
    return answer


def run_together(
    client: Any, runs: Sequence[tuple[Any, Sequence[str], Sequence[Any]]], look: Callable[[Any], object]
) -> list[Any]:
    """Run registered scripts, and what ``look`` puts into a pipeline, in one round trip; return all answers.

    All keys have the tag HOME. Whoever else asks may get in between; where one fails the others are done all the same.
    """

    def ask(by_text: bool) -> list[Any]:
        with client.pipeline(transaction=False) as pipe:
            for script, keys, args in runs:
                pipe.execute_command(*_call(script, by_text), len(keys), *keys, *args)
            look(pipe)
            return list(pipe.execute())

    return _loaded(client, [script for script, _keys, _args in runs], ask)


# ------------------------------------------------------------------------------------------ what it says of itself


def each_node(client: Client, tags: Sequence[str], ask: Callable[[redis.Redis], _R]) -> list[_R]:
    """Return what each server answers that has keys of some tags; but in a cluster there is one."""
    if isinstance(client, _Cluster):
        return [client.at_node(tag, ask) for tag in client.tag_of_each_node(tags)]
    assert isinstance(client, redis.Redis)
    return [ask(client)]


def ping(client: Client, tags: Sequence[str], place: str, writes: bool) -> None:
    """Raise EngineFull where a server that has any of some tags takes nothing more; what the driver raises else.

    With ``writes`` also where it takes none: a replica, or one with too few of them. Nothing is changed.
    """
    each_node(client, tags, lambda node: _ping(node, place))
    if writes:
        for tag in client.tag_of_each_node(tags) if isinstance(client, _Cluster) else tags[:1]:
            client.delete(f"{tag}:nothing")  # there is none


def _ping(node: redis.Redis, place: str) -> None:
    node.ping()  # is refused already by one that cannot write to its disk
    memory: Any = node.info("memory")
    used_bytes = memory.get("used_memory", 0) - memory.get("mem_not_counted_for_evict", 0)
    if memory.get("maxmemory_policy", "noeviction") == "noeviction" and 0 < memory.get("maxmemory", 0) < used_bytes:
        raise _memory_is_full(place)


def look_at(client: redis.Redis, url: EngineUrl | None = None) -> Facts:
    """Return what a server tells of itself; what it hides is left out."""
    configured: dict[str, str] = {}
    for pattern in ("append*", "maxmemory-policy", "min-replicas-to-write"):
        configured |= _told(functools.partial(client.config_get, pattern))
    info: dict[str, Any] = {}
    for section in ("server", "memory", "persistence", "replication"):
        info |= _told(functools.partial(client.info, section))
    kind = "single" if url is None else url.kind
    return Facts(
        configured=configured,
        info=info,
        cluster=_told(lambda: _ask(client, "CLUSTER INFO")) if kind == "cluster" else {},
        fails_over=kind in ("sentinel", "cluster"),
        is_open=url is not None and url.is_open,
        waits=url is not None and url.wait_replicas > 0,
        waits_fsync=url is not None and url.wait_fsync,
        checks_host=url is None or url.options.get("ssl_check_hostname", True),
    )


def _told(ask: Callable[[], Any]) -> dict[str, Any]:
    try:
        return dict(ask())
    except redis.ResponseError:
        return {}  # a managed service, or an ACL user that may not ask


def history_id(client: Client, tags: Sequence[str] = (HOME,)) -> str:
    """Return how the servers of some tags name the history of their data: another one after a failover or a start."""
    told = each_node(client, tags, lambda node: node.info("replication"))
    return " ".join(sorted({str(one.get("master_replid", "")) for one in told}))


# ------------------------------------------------------------------------------------------ what goes wrong


def engine_errors(verb: Callable[Concatenate[_Place, _P], _R]) -> Callable[Concatenate[_Place, _P], _R]:
    """Turn whatever the driver raises into one EngineError with a sentence."""

    @functools.wraps(verb)
    def guarded(self: _Place, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return verb(self, *args, **kwargs)
        except (redis.RedisError, RedisClusterException) as error:
            raise _as_engine_error(_cause(error), self.place) from None

    return guarded


def _memory_is_full(place: str) -> EngineFull:
    return EngineFull(
        _(
            "The memory of Redis or Valkey ({place}) is full: it takes no new jobs. Raise its maxmemory. What was"
            " accepted is safe."
        ).format(place=place)
    )


def _as_engine_error(error: Exception, place: str) -> EngineError:
    if isinstance(error, redis.OutOfMemoryError):
        return _memory_is_full(place)
    if re.search(r"\bMISCONF\b", str(error)):  # in a pipeline there are words before it
        return EngineFull(
            _(
                "Redis or Valkey ({place}) cannot write to its disk, and refuses every change until it can:"
                " make room there. It says: {problem}"
            ).format(place=place, problem=error)
        )
    return EngineError(_sentence(error).format(place=place, problem=error))


def _sentence(error: Exception) -> str:
    """Return what is to be done about an error."""
    text = str(error)
    if isinstance(error, redis.AuthenticationError):
        return _("Redis refused the password: correct REDIS_URL.")
    if isinstance(error, NoPermissionError) or "ACL failure" in text:
        return _(
            "The ACL user of REDIS_URL lacks a permission at {place}: docs/engines.md has the line that it needs."
            " It says: {problem}"
        )
    if _is_refused_by_tls(error):
        return _(
            "No TLS connection to Redis or Valkey ({place}) can be had: give ssl_ca_certs, and where the server wants"
            " them ssl_certfile and ssl_keyfile, behind the ? of REDIS_URL. It says: {problem}"
        )
    if isinstance(error, (_Demoted, redis.ReadOnlyError)):
        return _(
            "Redis or Valkey ({place}) is a replica and takes no writes: name the primary in REDIS_URL, or the"
            " sentinels with redis+sentinel://"
        )
    if isinstance(error, AskError):
        return _("The slots of the cluster at {place} are being moved: it is asked again. It says: {problem}")
    if isinstance(error, (ClusterDownError, SlotNotCoveredError)):
        return _("The cluster at {place} does not serve all slots now: too many of its nodes are away, or not joined.")
    if isinstance(error, redis.BusyLoadingError):
        return _("Redis or Valkey ({place}) is reading its data from the disk: it answers when it has them all.")
    if "NOREPLICAS" in text:
        return _(
            "Redis or Valkey ({place}) takes no writes, because too few replicas follow it (min-replicas-to-write)."
            " It says: {problem}"
        )
    return _("Redis or Valkey cannot be used now ({place}): {problem}")


def _cause(error: Exception) -> Exception:
    """Return what a cluster's client has wrapped while it looked for a node."""
    found: BaseException | None = error
    while isinstance(found, RedisClusterException) and not isinstance(found, SlotNotCoveredError):
        found = found.__cause__ or found.__context__
    return found if isinstance(found, redis.RedisError) else error


def _is_refused_by_tls(error: BaseException) -> bool:
    """Tell whether the two could not agree on TLS, which will not pass by itself."""
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return True
    return "CERTIFICATE_VERIFY_FAILED" in str(error)
