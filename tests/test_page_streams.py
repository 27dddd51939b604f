"""The streams of a page: asked for once for all of them, and again when their addresses die."""

from __future__ import annotations

import asyncio

import pytest

from errors import TransferError
from model import MIB, STREAM_BYTES, Page, Playinfo, Stream, Video, Wishes
from page_streams import PageStreams, most_bytes

PAGE = "BV1xx411c7mD?p=1&cid=5"


async def test_the_streams_of_a_page_that_lose_their_addresses_together_ask_once_and_get_the_new_ones() -> None:
    asked: list[int] = []

    class Site:
        async def playinfo(self, _video: Video, page: Page) -> Playinfo:
            asked.append(page.cid)
            await asyncio.sleep(0)
            urls = (f"https://mirror.example/{len(asked)}",)
            audios = () if len(asked) == 4 else (Stream("audio", 30280, 0, "mp4a", 1, urls),)
            return Playinfo(10.0, (Stream("video", 80, 7, "avc1", 1, urls),), audios)

    record = Video("BV1xx411c7mD", 2, "", (Page(1, 5, ""),))
    streams = PageStreams(Site(), record, record.pages[0], PAGE, Wishes())  # type: ignore[arg-type]
    await streams.ask()
    assert {(source.job, source.cid) for source in streams.sources().values()} == {(PAGE, 5)}
    video, audio = streams.refresher("video"), streams.refresher("audio")
    found = await asyncio.gather(video(), audio())
    assert [source.name for source in found] == ["v80-7", "a30280-0"]
    assert [source.urls[0][-1] for source in found] == ["2", "2"] and len(asked) == 2
    assert (await video()).urls[0][-1] == "3"
    assert (await audio()).urls[0][-1] == "3" and len(asked) == 3
    assert (await video()).urls[0][-1] == "4"
    with pytest.raises(TransferError, match="audio no longer") as caught:
        await audio()
    assert caught.value.kind == "transient"


@pytest.mark.parametrize(
    ("announced", "most"), [(0, STREAM_BYTES), (1, 1024 * MIB + 8), (1e9, 8 * 10**9 + 1024 * MIB), (1e30, STREAM_BYTES)]
)
def test_how_large_a_stream_may_be_is_known_by_what_the_site_says(announced: float, most: int) -> None:
    assert most_bytes(announced) == most


@pytest.mark.parametrize(("bandwidth", "planned"), [(1000, 375 * 10**9), (2**53 - 1, 0)])
async def test_a_figure_that_no_video_has_is_no_reason_to_wait_for_room(bandwidth: int, planned: int) -> None:
    class Site:
        async def playinfo(self, _video: Video, _page: Page) -> Playinfo:
            return Playinfo(3e9, (Stream("video", 80, 7, "avc1", bandwidth, ("https://mirror.example/1",)),))

    record = Video("BV1xx411c7mD", 2, "", (Page(1, 5, ""),))
    streams = PageStreams(Site(), record, record.pages[0], PAGE, Wishes())  # type: ignore[arg-type]
    await streams.ask()
    assert streams.planned_bytes == planned
