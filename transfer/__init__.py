"""What comes over the wire and onto the disk: mirrors, connections, replies, the speed limit, and a stream's parts."""

from transfer.connections import Connections
from transfer.media_client import FAILURES, MediaClient, Refused, Reply, judge_failure
from transfer.mirrors import Health, Mirror, Mirrors, Patience, media_allowed
from transfer.part_file import (
    RESERVE_BYTES,
    Chunk,
    Identity,
    PartFile,
    discard_old_parts,
    discard_parts,
    free_disk_bytes,
    unfinished_jobs,
)
from transfer.range_reply import ACCEPTED, Asked, Meaning, Verdict, judge
from transfer.speed_limit import SpeedLimit

__all__ = [
    "ACCEPTED",
    "FAILURES",
    "RESERVE_BYTES",
    "Asked",
    "Chunk",
    "Connections",
    "Health",
    "Identity",
    "Meaning",
    "MediaClient",
    "Mirror",
    "Mirrors",
    "PartFile",
    "Patience",
    "Refused",
    "Reply",
    "SpeedLimit",
    "Verdict",
    "discard_old_parts",
    "discard_parts",
    "free_disk_bytes",
    "judge",
    "judge_failure",
    "media_allowed",
    "unfinished_jobs",
]
