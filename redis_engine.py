"""The engine of the queue, Redis or Valkey: how it is reached, and what goes wrong with it as one sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import redis
from redis.backoff import ConstantBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry

from embedded_valkey import EmbeddedValkey
from errors import EngineError, EngineFull
from i18n import _

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Placed(Protocol):
    """Whoever speaks to an engine, and can say where that is."""

    place: str


_Place = TypeVar("_Place", bound=_Placed)


def nothing() -> None:
    """Do nothing: what is to be done at the end with an engine that is not ours."""


def connect_url(url: str) -> redis.Redis:
    """Return a connection to the engine at an address; nothing is sent yet."""
    try:
        pool = redis.ConnectionPool.from_url(url, **_options(retries=1))
    except ValueError as error:
        raise EngineError(_("REDIS_URL cannot be used: {problem}").format(problem=error)) from None
    return redis.Redis(connection_pool=pool)


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
    return redis.Redis(connection_pool=pool), engine.close


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
            if isinstance(error, redis.AuthenticationError):
                return False
            return is_retryable is None or is_retryable(error)

        return super().call_with_retry(do, fail, may_pass, with_failure_count)


class _Packer(HiredisRespSerializer):
    """Packs commands in C; half a surrogate pair in a title, which that refuses, must not stop a job."""

    def pack(self, *args: Any) -> list[bytes]:
        """Return a command as the engine reads it."""
        try:
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


def engine_errors(verb: Callable[Concatenate[_Place, _P], _R]) -> Callable[Concatenate[_Place, _P], _R]:
    """Turn whatever the driver raises into one EngineError with a sentence."""

    @functools.wraps(verb)
    def guarded(self: _Place, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return verb(self, *args, **kwargs)
        except redis.AuthenticationError:
            raise EngineError(_("Redis refused the password: correct REDIS_URL.")) from None
        except redis.OutOfMemoryError:
            raise memory_is_full(self.place) from None
        except redis.RedisError as error:
            if str(error).startswith("MISCONF"):
                raise EngineFull(
                    _(
                        "Redis or Valkey ({place}) cannot write to its disk, and refuses every change until it can:"
                        " make room there. It says: {problem}"
                    ).format(place=self.place, problem=error)
                ) from None
            raise EngineError(
                _("Redis or Valkey cannot be used now ({place}): {problem}").format(place=self.place, problem=error)
            ) from None

    return guarded


def memory_is_full(place: str) -> EngineFull:
    """Return the error of an engine that takes nothing more."""
    return EngineFull(
        _(
            "The memory of Redis or Valkey ({place}) is full: it takes no new jobs. Raise its maxmemory. What was"
            " accepted is safe."
        ).format(place=place)
    )
