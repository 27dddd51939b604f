"""Everything that can go wrong, as one tree; a class says what its catcher does next.

    DownloaderError
    ├── UsageError                 a setting, option or file is wrong: say it, exit status 2
    ├── EngineError                Redis or Valkey cannot be used: say it, 503 or exit status 2
    │   └── EngineFull             its memory or its disk has no room left: say which
    ├── ServerError                the queue server refused
    │   ├── ServerUnreachable      ask again later, with jitter
    │   ├── Unauthorized           the token is missing or wrong: say it, ask again later
    │   └── StaleToken             the lease is no longer ours: drop the job, keep its chunks
    └── JobError                   this attempt of a job failed; ``kind`` is the class of its nack
        ├── TransientError         later it may work: delayed, at most 8 attempts
        │   ├── SiteError          the site answered nonsense, or not at all
        │   ├── TransferError      a stream could not be had from any mirror
        │   └── MergeError         ffmpeg or a check of its output failed
        │       ├── NameTaken      a file stands under the name by now: look again whose it is
        │       └── DamagedStream  what came is not the stream: fetch it anew
        ├── NotYet                 there is too little now: delayed, no attempt counted, nobody parks
        ├── PermanentError         it will never work for this account: dead at once
        └── CircumstanceError      not the job's fault: no attempt counted, the worker parks
            ├── RiskControl        the site wants us to slow down
            ├── Parked             the site is not asked now, because it wants us to slow down
            ├── DiskFull           no room for the streams and the merged file
            └── NoWayOut           no network, or a proxy that refuses

The sentence of an error is for the user: it names what is wrong and says what to do.
"""

from __future__ import annotations

from typing import ClassVar


class DownloaderError(Exception):
    """The root: anything this project raises on purpose."""


class UsageError(DownloaderError):
    """A setting, an option or a file of the user is wrong; exit status 2."""


class EngineError(DownloaderError):
    """Redis or Valkey cannot be used now."""


class EngineFull(EngineError):
    """Redis or Valkey takes nothing more: its memory or its disk is full. Nothing was changed."""


class ServerError(DownloaderError):
    """The queue server refused a call; ``status`` is the HTTP status, 0 where there was none."""

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class ServerUnreachable(ServerError):
    """No answer, or one that says "later"."""

    def __init__(self, sentence: str, status: int = 0, retry_after_seconds: float | None = None) -> None:
        super().__init__(sentence, status)
        self.retry_after_seconds = retry_after_seconds


class Unauthorized(ServerError):
    """The server wants another ``BILI_TOKEN``."""


class StaleToken(ServerError):
    """The lease has moved on; nothing was changed."""


class JobError(DownloaderError):
    """An attempt failed. ``code`` is the site's number as text, or a word; the sentence is the reason."""

    kind: ClassVar[str] = "transient"
    default_code: ClassVar[str] = "error"

    def __init__(self, sentence: str, code: str | int | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.code = self.default_code if code is None else str(code)
        self.retry_after_seconds = retry_after_seconds


class TransientError(JobError):
    """Trying again later may help."""


class SiteError(TransientError):
    """The site answered something that cannot be used."""

    default_code = "site"


class TransferError(TransientError):
    """No mirror gave the bytes."""

    default_code = "transfer"


class MergeError(TransientError):
    """ffmpeg failed, or its output did not pass the checks."""

    default_code = "merge"


class NameTaken(MergeError):
    """The file cannot get its name: another one has it, and is never overwritten."""

    default_code = "name-taken"


class DamagedStream(MergeError):
    """What was downloaded is no whole stream of its kind: a mirror has sent something else."""


class NotYet(JobError):
    """What there is now is less than what is wanted, and more may come without anything being wrong."""

    kind = "waiting"
    default_code = "not-yet"


class PermanentError(JobError):
    """Trying again does not help: deleted, invisible, no permission."""

    kind = "permanent"
    default_code = "permanent"


class CircumstanceError(JobError):
    """Not the job's fault: the machine, the network or the address is."""

    kind = "environment"
    default_code = "environment"


class RiskControl(CircumstanceError):
    """The site's risk control (-352, -412, 412, v_voucher …) asks us to slow down."""

    default_code = "risk-control"


class Parked(CircumstanceError):
    """Nothing is asked now, because the site wants less of all who share this address or account: give the job back."""

    default_code = "parked"


class DiskFull(CircumstanceError):
    """The disk has no room, or cannot be written."""

    default_code = "disk-full"


class NoWayOut(CircumstanceError):
    """Nothing outside can be reached."""

    default_code = "no-network"
