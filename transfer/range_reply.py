"""What a mirror's reply to a request for a range is worth: pure judgements on status and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum

from i18n import _
from model import STREAM_BYTES


class Meaning(Enum):
    """What a reply or a failure means for the mirror it came from."""

    RANGE = "exactly the bytes that were asked for"
    WHOLE = "the stream from its first byte, in one piece"
    END = "there is nothing after the byte before"
    BROKEN = "it may work again in a moment"
    DEAD = "this signed URL will not work again"
    WRONG = "it does not have this stream"
    RANGELESS = "it cannot go on in the middle of a stream"
    CHANGED = "it has this stream in another size"


ACCEPTED = frozenset({Meaning.RANGE, Meaning.WHOLE, Meaning.END})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: ``[start, stop)`` of a stream of ``total_bytes``, None where that is not known.

    ``whole_is_fine`` where a reply with the whole stream could be used: nothing of it is on disk yet. No stream like
    this one can have more than ``most_bytes``.
    """

    start: int
    stop: int
    total_bytes: int | None = None
    whole_is_fine: bool = False
    most_bytes: int = STREAM_BYTES


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply is worth. Its body goes up to ``stop``, None where only its end will tell.

    ``cause`` is for the user and holds no address; ``host_wide`` tells that other URLs of the host fare no better,
    ``slow`` that bytes came, but not enough to count for the mirror, ``pushback`` that it may want fewer requests,
    ``is_cut`` that the body was good as far as it came.
    """

    meaning: Meaning
    stop: int | None = None
    total_bytes: int | None = None
    cause: str = ""
    retry_after_seconds: float = 0.0
    host_wide: bool = False
    slow: bool = False
    pushback: bool = False
    is_cut: bool = False


def judge(status: int, headers: Mapping[str, str], asked: Asked, now: float = 0.0) -> Verdict:
    """Return what a reply means; ``headers`` must ignore case, ``now`` is the Unix time for dates in them."""
    verdict = _judge(status, headers, asked, now)
    if verdict.total_bytes is not None and verdict.total_bytes > asked.most_bytes:
        # Else the disk would be called too small for it, and the worker would wait for room.
        return Verdict(Meaning.WRONG, cause=_("a size that this stream cannot have"))
    return verdict


def _judge(status: int, headers: Mapping[str, str], asked: Asked, now: float) -> Verdict:
    if status in (200, 206):
        return _judge_disguise(headers) or (_judge_range if status == 206 else _judge_whole)(headers, asked)
    if status == 416:
        return _judge_end(headers, asked)
    cause = _("status {status}").format(status=status)
    if status in (408, 425, 429) or status >= 500:
        wait = parse_retry_after(headers.get("Retry-After", ""), now)
        crowded = status in (429, 503)
        return Verdict(Meaning.BROKEN, cause=cause, retry_after_seconds=wait, host_wide=True, pushback=crowded)
    if 400 <= status < 500:
        return Verdict(Meaning.DEAD, cause=cause)
    return Verdict(Meaning.WRONG, cause=cause)


_DISGUISES = frozenset({"text/html", "text/xml", "application/xml", "application/json", "application/xhtml+xml"})


def _judge_disguise(headers: Mapping[str, str]) -> Verdict | None:
    """Reject what cannot be the bytes of a video, whatever the status says: error pages, compressed replies."""
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        return Verdict(Meaning.WRONG, cause=_("a reply with encoding {encoding}").format(encoding=encoding[:20]))
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in _DISGUISES or kind.startswith("multipart/"):
        return Verdict(Meaning.WRONG, cause=_("a reply of type {kind} instead of a video").format(kind=kind[:40]))
    return None


def _judge_range(headers: Mapping[str, str], asked: Asked) -> Verdict:
    got = parse_content_range(headers.get("Content-Range", ""))
    if got is None or got.start is None or got.stop is None or got.start != asked.start:
        return Verdict(Meaning.WRONG, cause=_("another range than was asked for"))
    if asked.total_bytes is not None and got.total_bytes not in (None, asked.total_bytes):
        return _changed(got.total_bytes)
    total_bytes = got.total_bytes if asked.total_bytes is None else asked.total_bytes
    # Where the end is not known, less than was asked for may be all there is.
    right_stop = min(asked.stop, got.stop if total_bytes is None else total_bytes)
    if got.stop != right_stop:
        return Verdict(Meaning.WRONG, cause=_("another range than was asked for"))
    length = _length(headers)
    if length is not None and length != got.stop - got.start:
        return Verdict(Meaning.WRONG, cause=_("a length that contradicts its range"))
    return Verdict(Meaning.RANGE, got.stop, total_bytes)


def _judge_whole(headers: Mapping[str, str], asked: Asked) -> Verdict:
    if not asked.whole_is_fine:
        return Verdict(Meaning.RANGELESS, cause=_("it ignores ranges"))
    length = _length(headers)
    if None not in (length, asked.total_bytes) and length != asked.total_bytes:
        return _changed(length)
    return Verdict(Meaning.WHOLE, length, length)


def _judge_end(headers: Mapping[str, str], asked: Asked) -> Verdict:
    got = parse_content_range(headers.get("Content-Range", ""))
    total_bytes = None if got is None else got.total_bytes
    ends_here = asked.start > 0 if total_bytes is None else asked.start == total_bytes
    if asked.total_bytes is None and ends_here:
        return Verdict(Meaning.END, asked.start, asked.start)
    if total_bytes is not None and total_bytes != asked.total_bytes:
        return _changed(total_bytes)
    return Verdict(Meaning.WRONG, cause=_("status {status}").format(status=416))


def _changed(total_bytes: int | None) -> Verdict:
    return Verdict(Meaning.CHANGED, total_bytes=total_bytes, cause=_("another size than before"))


_LENGTH = re.compile("[0-9]{1,18}")


def _length(headers: Mapping[str, str]) -> int | None:
    """Return the length of a body as its headers announce it; a chunked body's length is in its chunks."""
    text = headers.get("Content-Length", "")
    return int(text) if _LENGTH.fullmatch(text) and "Transfer-Encoding" not in headers else None


def parse_retry_after(value: str, now: float) -> float:
    """Return the seconds of a Retry-After header, which may be a date; 0 where it says nothing, a day at most."""
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), 86400.0)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """A parsed ``Content-Range``: half-open, ``total_bytes`` None for ``*``; no range at all in a 416 reply."""

    start: int | None
    stop: int | None
    total_bytes: int | None


_CONTENT_RANGE = re.compile(r"bytes[ ]+(?:(?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18})|\*)/(?P<total>[0-9]{1,18}|\*)")


def parse_content_range(value: str) -> ContentRange | None:
    """Return a Content-Range header as a half-open range; None for one that is malformed or contradicts itself."""
    match = _CONTENT_RANGE.fullmatch(value.strip().lower())
    if match is None:
        return None
    total = None if match["total"] == "*" else int(match["total"])
    if match["first"] is None:
        return None if total is None else ContentRange(None, None, total)
    first, last = int(match["first"]), int(match["last"])
    if first > last or (total is not None and last >= total):
        return None
    return ContentRange(first, last + 1, total)
