"""The streams of a page: which of those on offer are taken, and where they can be had now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from bili_client import BiliClient
from errors import TransferError
from i18n import _
from model import MIB, STREAM_BYTES, Choice, Page, Playinfo, Stream, StreamSource, Video, Wishes
from stream_choice import choose_streams, extension, streams_bytes

_WORDS = {"video": _("video"), "audio": _("audio")}
"""The parts of a page, for people."""

MOST_TIMES, MOST_BESIDES_BYTES = 8, 1024 * MIB
"""A stream may have so many times what the site says of it, and so much more: that is an average, or a guess."""


def most_bytes(announced_bytes: float) -> int:
    """Return what a stream cannot be larger than, by its size as the site says it; 0 where it says nothing."""
    if not announced_bytes:
        return STREAM_BYTES
    return min(STREAM_BYTES, round(MOST_TIMES * announced_bytes) + MOST_BESIDES_BYTES)


class PageStreams:
    """The streams of one page as they can be had now; shared by the downloads of its audio and its video.

    When one of them has no living URL left, playinfo is asked for once more, for both.
    """

    def __init__(self, site: BiliClient, video: Video, page: Page, job: str, wishes: Wishes) -> None:
        self._site, self._video, self._page, self._job, self._wishes = site, video, page, job, wishes
        self._lock = asyncio.Lock()
        self.playinfo = Playinfo(0.0)
        self.choice = Choice()

    async def ask(self) -> None:
        """Ask for playinfo and choose the streams."""
        self.playinfo = await self._site.playinfo(self._video, self._page)
        self.choice = choose_streams(self.playinfo, self._wishes)

    @property
    def planned_bytes(self) -> int:
        """How large the chosen streams are together, by what the site says; 0 where it says nothing that can be."""
        planned = streams_bytes(self.choice, self._seconds)
        return planned if planned <= STREAM_BYTES else 0  # or each worker that read it would park itself

    @property
    def _seconds(self) -> float:
        return self.playinfo.duration_seconds or self._page.duration_seconds

    @property
    def extension(self) -> str:
        """The extension of the file that the chosen streams make."""
        return extension(self.choice, self._wishes)

    def sources(self) -> dict[str, StreamSource]:
        """Return what to download, by part: video and audio, or the segments by their order."""
        choice = self.choice
        if choice.segments:
            return {
                f"segment{segment.order}": StreamSource(
                    job=self._job,
                    cid=self._page.cid,
                    name=f"d{choice.qn}-{segment.order}",
                    urls=segment.urls,
                    size_bytes=segment.size_bytes,
                    deadline=self.playinfo.deadline,
                    most_bytes=most_bytes(segment.size_bytes),
                )
                for segment in choice.segments
            }
        streams = {"video": choice.video, "audio": choice.audio}
        return {part: self._source(stream) for part, stream in streams.items() if stream is not None}

    def _source(self, stream: Stream) -> StreamSource:
        return StreamSource(
            job=self._job,
            cid=self._page.cid,
            name=f"{stream.kind[0]}{stream.id}-{stream.codecid}",
            urls=stream.urls,
            deadline=self.playinfo.deadline,
            most_bytes=most_bytes(stream.bandwidth * self._seconds / 8),
        )

    def refresher(self, part: str) -> Callable[[], Coroutine[Any, Any, StreamSource]]:
        """Return the function by which the download of ``part`` asks for living URLs."""
        seen = self.playinfo

        async def refresh() -> StreamSource:
            nonlocal seen
            async with self._lock:
                if self.playinfo is seen:  # else another stream of this page has just asked
                    await self.ask()
                seen = self.playinfo
            try:
                return self.sources()[part]
            except KeyError:
                raise TransferError(
                    _("The site offers this page's {part} no longer").format(part=_WORDS.get(part, part))
                ) from None

        return refresh
