"""The records that modules pass to each other.

Every record is frozen: no field is filled in later. Sizes are in bytes, durations in seconds, chunks are
half-open ranges ``[start, stop)``. Tokens and signed URLs have no repr, so that no log line can show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB

CHUNK_BYTES = 10 * MIB
"""A chunk is what one Range request asks for; the size is the reference's own."""
STREAM_BYTES = 2**40
"""No stream of a page is larger, whatever is said of it: a day of 8K is less."""
MERGED_TOGETHER = 4
"""Small files that one ffmpeg makes at most: more gain little, and the first one waits for the last."""

JOB_ID_CHARACTERS = 1300
"""The id of a search has its words in it, percent-encoded: 100 characters, at most 12 each."""

CURSOR_CHARACTERS = JOB_ID_CHARACTERS + 200
"""Where a list goes on: an id, and before it what the list is sorted by."""

HAVE_LIMIT = 64
"""A lease request names so many unfinished jobs at most."""

# ------------------------------------------------------------------------------------------ what the site has


@dataclass(frozen=True, slots=True)
class Page:
    """One page (分P) of a video; ``cid`` is its identity on the whole site, ``number`` counts from 1."""

    number: int
    cid: int
    title: str
    duration_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class About:
    """What the site says of a video beside its title; each field is empty or 0 where it does not say it.

    ``season`` is the collection (合集) or the bangumi season that the video belongs to, ``episode_number`` its place in
    that, from 1. ``published_at`` is in Unix seconds.
    """

    owner_id: int = 0
    description: str = ""
    published_at: int = 0
    region: str = ""
    season: str = ""
    episode_number: int = 0
    cover_url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Video:
    """A described container: a video (稿件) with all its pages, in order.

    ``episode_id`` is set where the site serves the pages through its bangumi player; it is the episode that was
    asked for, or the one that the video redirects to. ``lesson_id`` is set where the video is a lesson of a course.
    ``notes`` are sentences that a user should read.
    """

    bvid: str
    aid: int
    title: str
    pages: tuple[Page, ...]
    owner: str = ""
    episode_id: int | None = None
    notes: tuple[str, ...] = ()
    lesson_id: int = 0
    about: About = About()

    def page_with_cid(self, cid: int) -> Page | None:
        """Return the page whose identity is ``cid``, or None when the uploader took it away."""
        return next((page for page in self.pages if page.cid == cid), None)


@dataclass(frozen=True, slots=True)
class Stream:
    """One DASH representation. ``id`` is the qn of a video stream or the site's audio quality id.

    ``urls`` are all mirrors as the site orders them, the primary first.
    """

    kind: str
    """``"video"`` or ``"audio"``."""
    id: int
    codecid: int
    codecs: str
    bandwidth: int
    urls: tuple[str, ...] = field(repr=False)
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a durl (legacy, joined) stream; ``order`` counts from 1."""

    order: int
    size_bytes: int
    duration_seconds: float
    urls: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Playinfo:
    """A page's streams as the site offers them now: DASH in ``videos`` and ``audios``, or durl ``segments``.

    ``deadline`` is the Unix time in seconds at which the signed URLs die, None where they do not say. ``announced`` are
    the qn that the video has, by what the site tells everybody, also those that this account gets no stream of.
    """

    duration_seconds: float
    videos: tuple[Stream, ...] = ()
    audios: tuple[Stream, ...] = ()
    segments: tuple[Segment, ...] = ()
    segments_qn: int = 0
    deadline: int | None = None
    announced: tuple[int, ...] = ()


BEST = 1000
"""The wish for the best of all, of pictures or of sound."""

NO_SOUND = 0

QUALITIES = {
    "8k": 127,
    "dolby": 126,
    "hdr": 125,
    "4k": 120,
    "1080p60": 116,
    "1080p+": 112,
    "1080p": 80,
    "720p60": 74,
    "720p": 64,
    "480p": 32,
    "360p": 16,
    "240p": 6,
}
"""The qn of each quality by the name that settings and sentences use, the best first.

All numbers here: bilibili-API-collect, docs/video/videostream_url.md. 100 ("smart repair", sharpened by the site,
between 1080p+ and 1080p) has no name; 129 (HDR Vivid) is for the site's apps only.
"""

CODECS = {"avc": 7, "hevc": 12, "av1": 13}
SOUNDS = {"hires": 30251, "dolby": 30250, "192k": 30280, "132k": 30232, "64k": 30216}
"""The ids of audio streams by name. 30250 is Dolby Atmos and 30255 Dolby Audio (yutto, media/quality.py)."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants of the streams on offer; ``stream_choice.py`` says what follows from it."""

    qn: int = BEST
    codecids: tuple[int, ...] = (7, 12, 13)
    """AVC 7, HEVC 12, AV1 13: AVC first, because it plays everywhere."""
    sound: int = 30280
    """An id of SOUNDS, or BEST: 192K, because Dolby and Hi-Res do not play everywhere."""
    streams: str = "both"
    """``both``, ``video`` (without sound) or ``audio`` (sound only)."""
    container: str = "auto"
    """``mp4``, ``mkv`` or ``auto``."""
    min_qn: int = 0
    """The floor, 0 for none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The streams to download of a page: a video, an audio stream or both, or durl segments."""

    video: Stream | None = None
    audio: Stream | None = None
    segments: tuple[Segment, ...] = ()
    qn: int = 0


# ------------------------------------------------------------------------------------------ what a user asks for


@dataclass(frozen=True, slots=True)
class Target:
    """What one submitted text means: the id of the job to queue, or a short link that must be resolved first."""

    id: str = ""
    short_link: str = ""


@dataclass(frozen=True, slots=True)
class JobId:
    """A job id taken apart; ``str`` is the id exactly as it stands in ``ready``.

    Exactly one of ``bvid``, ``episode_id`` and ``source`` is set. ``cid`` makes it a page job; without it the job is
    a container, of all pages or, with ``number``, of that page only. ``source`` is the canonical id of a container
    that lists others; nothing else is set then, save the ``cid`` of the page that a lesson of a course has.
    """

    bvid: str = ""
    episode_id: int = 0
    number: int = 0
    cid: int = 0
    source: str = ""

    @property
    def is_page(self) -> bool:
        """Tell a page to download from a container to expand."""
        return self.cid > 0

    @property
    def is_source(self) -> bool:
        """Tell a container that lists other containers from one that has pages."""
        return bool(self.source)

    def __str__(self) -> str:
        if self.source:
            return f"{self.source}?cid={self.cid}" if self.cid else self.source
        base = self.bvid or f"ep{self.episode_id}"
        query = "&".join(f"{name}={value}" for name, value in (("p", self.number), ("cid", self.cid)) if value > 0)
        return f"{base}?{query}" if query else base


@dataclass(frozen=True, slots=True)
class Working:
    """The content of working.json. ``stop`` keeps the reference's own meaning: 1 runs, 0 stops.

    ``max_bytes_per_second`` is None where the file does not say: the setting holds then. 0 is no limit. With
    ``drain`` 1 nothing more is leased, and what is held is finished.
    """

    stop: int = 1
    count: int = 1
    max_bytes_per_second: float | None = None
    drain: int = 0

    @property
    def running(self) -> bool:
        """The one place where the odd number becomes a word."""
        return self.stop == 1


# ------------------------------------------------------------------------------------------ the queue


@dataclass(frozen=True, slots=True)
class Walk:
    """How a source is to be read: where an earlier reader stopped, and what the user wishes of it.

    ``page`` pages were told to the queue, ``cursor`` is what the listing goes on with (empty: from its beginning), and
    ``taken`` items count towards the limit. ``since`` is in Unix seconds. A ``quick`` pass ends where nothing is new.
    """

    cursor: str = ""
    page: int = 0
    taken: int = 0
    since: int = 0
    match: str = ""
    limit: int = 0
    oldest_first: bool = False
    quick: bool = False


@dataclass(frozen=True, slots=True)
class ListedPage:
    """What the ledger of a source is told of one page of its listing, beside the ids that are queued.

    Of a watched video it is its title, and in ``announced`` how many pages it has.
    ``page`` counts from 1 in each pass: a page that is told twice counts once. ``skipped`` are listed but not wished;
    ``ended`` says of the last page why it is the last: ``end`` of the listing, or ``wished``.
    """

    page: int
    title: str = ""
    announced: int | None = None
    pages: int | None = None
    unavailable: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    taken: int = 0
    cursor: str = ""
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on one job until ``lease_seconds`` from the request, renewed by heartbeats.

    ``url`` is the job id exactly as in ``ready``; ``attempt`` counts from 1. ``walk`` comes with a source.
    """

    url: str
    token: str = field(repr=False)
    category: str
    attempt: int
    lease_seconds: float
    walk: Walk | None = None


@dataclass(frozen=True, slots=True)
class Leased:
    """The answer to a lease request; with no lease, ``retry_after_seconds`` says when to ask again."""

    leases: tuple[Lease, ...]
    retry_after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Expanded:
    """The answer to an expand: pages newly queued, pages already known, and a lease of the first new one.

    ``ended`` is said of a source: its pass is over, also where more was to follow.
    """

    added: int
    known: int
    lease: Lease | None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Added:
    """The answer to an add: how many ids were new, how many already known, and pairs of a text and why not."""

    added: int
    known: int
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, as it is sent with a nack. ``kind`` is transient, waiting, permanent or environment.

    ``code`` is the site's own number as text where there is one (``-404``), else a word (``disk-full``).
    """

    kind: str
    code: str
    reason: str
    title: str = ""
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What is recorded of a finished page. ``path`` is relative to the download folder, with ``/``.

    ``streams`` says for people what was taken of those on offer. ``stored`` is the URL where the file was delivered to,
    without any secret; empty where it was not.
    """

    path: str
    bytes: int
    seconds: float
    title: str = ""
    streams: str = ""
    stored: str = ""


@dataclass(frozen=True, slots=True)
class Beside:
    """A file that lies beside a page's own: its path below the download folder, and how its name ends after that of the
    page's file; ``suffix`` is empty where several pages share it.
    """

    path: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Order:
    """What the server wants of a worker: keys of working.json to set, and a login to begin, named by an id of its own.

    ``problem`` says why an order makes no sense; nothing of such a one is obeyed.
    """

    id: str
    working: Mapping[str, object] = field(default_factory=dict)
    login: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """How a worker may ask the site: what the server decides for all who share its address, or its account."""

    requests_per_second: float | None = None
    """None is no limit."""
    parked_seconds: float = 0.0
    """For how long nothing is to be asked, because the site has refused one of them."""
    holds_seconds: float = 60.0
    """So long it counts, if nothing else is heard."""
    probes: bool = False
    """All others are parked; this one tries whether the site answers again."""
    kind: str = ""
    """What the site said when it refused."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Jobs by state; every accepted job that is not a closed container is in exactly one of them."""

    ready: int
    leased: int
    delayed: int
    done: int
    dead: int


# ------------------------------------------------------------------------------------------ a download


@dataclass(frozen=True, slots=True)
class StreamSource:
    """One stream to download: what it is, and where it can be had now.

    ``name`` identifies the stream among those of the page, apart from its size: ``v80-7`` (qn 80, codecid 7),
    ``a30280-0``, ``d64-1`` (segment 1 of durl at qn 64). ``job`` is the id of the page job that wants it.
    """

    job: str
    cid: int
    name: str
    urls: tuple[str, ...] = field(repr=False)
    size_bytes: int | None = None
    """As announced by the site; a wish to be proved by Content-Range, not a fact."""
    deadline: int | None = None
    most_bytes: int = STREAM_BYTES
    """It cannot be larger, by what the site says of it: a mirror that has more has something else."""


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """How far a stream is: ``done_bytes`` are safe on disk, ``total_bytes`` is None until it is known."""

    name: str
    done_bytes: int
    total_bytes: int | None
    mirror: str = ""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A part of a page with a title of its own."""

    start_seconds: float
    stop_seconds: float
    title: str


@dataclass(frozen=True, slots=True)
class Subtitle:
    """A file of subtitles, .srt or .ass, to put into the video.

    ``language`` is as the site writes it (``zh-Hans``, ``ai-en``), or a code of ISO 639-2.
    """

    path: str
    language: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What ffmpeg is to join: DASH ``video`` and ``audio`` files (either may be missing), or durl ``segments``.

    Paths are absolute texts. ``tag`` is written into the file as its comment and read back by
    ``merging.read_tag``: it says which page the file holds. ffmpeg writes in ``scratch``, a folder of
    this or another disk, or beside the output where that is empty. The extension of the output says the container:
    mp4, m4a (the same without a picture), mkv or mka.

    ``streams`` picks out of segments: ``both``, ``video`` or ``audio``. What comes with the video never costs it: a
    ``cover`` (JPEG or PNG), ``chapters``, ``tags`` (names of ffmpeg such as artist, date, description, and their texts)
    and ``subtitles`` are left out, with a warning, where the file cannot be made with them.
    """

    output: str
    video: str = ""
    audio: str = ""
    segments: tuple[str, ...] = ()
    duration_seconds: float = 0.0
    title: str = ""
    tag: str = ""
    scratch: str = ""
    streams: str = "both"
    cover: str = ""
    chapters: tuple[Chapter, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    subtitles: tuple[Subtitle, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """A finished file that passed every check and stands under its name."""

    path: str
    bytes: int
    duration_seconds: float
