"""The one thing of the stand-in site that changes: what is switched on, counted, added and signed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from demo import catalogue
from demo.bans import Bans
from demo.catalogue import RISKY, VIDEOS, PageRecord, VideoRecord
from demo.counters import Counters
from demo.crowd import Crowd
from demo.faults import FaultTable
from demo.media import Library, StreamFile
from demo.passport import Passport
from demo.signing import sign_url, wbi_keys

LIFETIME_SECONDS = 7200
"""Of a signed URL on the real site."""


@dataclass
class SiteState:
    """A running site: its videos and media, where it is reached, its faults, counters and switches."""

    library: Library
    crowd: Crowd = field(default_factory=Crowd)
    web_url: str = ""
    media_hosts: tuple[str, ...] = ()
    media_scheme: str = "http"
    rate_bytes_per_second: float = 0.0
    """Of each CDN response; 0 is as fast as it goes."""
    counters: Counters = field(default_factory=lambda: Counters(0))
    faults: FaultTable = field(default_factory=FaultTable)
    lifetime_seconds: float = LIFETIME_SECONDS
    serial: int = 0
    wbi_generation: int = 0
    risky: set[str] = field(default_factory=set)
    passport: Passport = field(default_factory=Passport)
    bans: Bans = field(default_factory=Bans)
    pages: dict[str, tuple[PageRecord, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = self.library.by_url_path()
        self._rate_at_start = self.rate_bytes_per_second
        self.reset()

    def reset(self) -> None:
        """Go back to the state at start: no faults, counters at zero, the first pages, keys and settings."""
        self.faults.clear()
        self.counters.reset()
        self.lifetime_seconds = LIFETIME_SECONDS
        self.rate_bytes_per_second = self._rate_at_start
        self.wbi_generation = 0
        self.passport.__init__()  # type: ignore[misc]
        self.bans.reset()
        self.risky = {self.video(RISKY).bvid}
        self.pages = {record.bvid: record.pages for record in self.videos}

    @property
    def videos(self) -> tuple[VideoRecord, ...]:
        """Every video: those of the catalogue, then those of the crowd."""
        return (*VIDEOS, *self.crowd.videos)

    def video(self, name: str) -> VideoRecord:
        """Return the video of that name, of the catalogue or of the crowd."""
        return self.crowd.video(name) if name.startswith("crowd-") else catalogue.video(name)

    def find_video(self, bvid: str = "", aid: int = 0) -> VideoRecord | None:
        """Return the video with that id, None where there is none."""
        return catalogue.find_video(bvid, aid) or self.crowd.find_video(bvid, aid)

    def streams_of(self, cid: int) -> tuple[StreamFile, ...]:
        """Return the streams of one page."""
        return self.crowd.of_page(cid) or self.library.of_page(cid)

    def sha256(self, stream: StreamFile) -> str:
        """Return the digest of a stream."""
        return stream.sha256 or self.crowd.sha256(stream)

    @property
    def keys(self) -> tuple[str, str]:
        """The WBI keys of now."""
        return wbi_keys(self.wbi_generation)

    def gain_page(self, record: VideoRecord, at: int | None = None) -> PageRecord | None:
        """Add the next later page of a video, at the end or before page ``at``; None when there is none left."""
        pages = self.pages[record.bvid]
        new = next((page for page in record.later_pages if page not in pages), None)
        if new is not None:
            index = len(pages) if at is None else at - 1
            self.pages[record.bvid] = (*pages[:index], new, *pages[index:])
        return new

    def lose_page(self, record: VideoRecord, number: int) -> None:
        """Take a page away, as an uploader may."""
        pages = self.pages[record.bvid]
        self.pages[record.bvid] = (*pages[: number - 1], *pages[number:])

    def sign(self, path: str, bandwidth: int = 0) -> list[str]:
        """Return the signed URLs of a path at all mirrors, the primary first."""
        self.serial += 1
        deadline, scheme = int(time.time() + self.lifetime_seconds), self.media_scheme
        return [
            sign_url(
                host, path, mirror=mirror, deadline=deadline, serial=self.serial, bandwidth=bandwidth, scheme=scheme
            )
            for mirror, host in enumerate(self.media_hosts)
        ]

    def sign_stream(self, stream: StreamFile) -> list[str]:
        """Return the signed URLs of a stream."""
        return self.sign(stream.url_path, stream.bandwidth)
