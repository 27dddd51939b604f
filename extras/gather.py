"""Fetches what comes with a video beside the download of its streams, and lays it beside the file.

A failing extra never fails the video: it is said once, in the log, and nothing half-written stays. What stands already
under its name is left, and not asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin

from bili_client import BiliClient
from config import Settings
from create_folder import companion_path, show_of
from errors import CircumstanceError, JobError, SiteError
from extras import danmaku, files, nfo, subtitles
from i18n import _
from model import MIB, Beside, Chapter, Page, Subtitle, Video
from parse_ import BROKEN
from transfer import FAILURES, MediaClient, judge_failure

log = logging.getLogger(__name__)

COVER_BYTES = 20 * MIB
FETCH_SECONDS = 120.0
"""A cover or a subtitle that takes longer is left out."""
IMAGE_KINDS = ("jpg", "png", "webp", "gif", "avif")
EMBEDDED_KINDS = frozenset({"jpg", "png"})
"""What players show when it is in an mp4."""

BESIDE = ("danmaku", "danmaku-xml", "cover-file", "subtitles", "nfo", "json")
"""What lies beside the file. Everything else goes into it, and comes with its merge or not at all."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Embedding:
    """What goes into the file itself; each part is empty where it is not wanted, or was not to be had."""

    cover: str = ""
    """The path of an image; it is deleted when the block of `Extras.of` is left."""
    chapters: tuple[Chapter, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    subtitles: tuple[Subtitle, ...] = ()
    """SRT files; deleted as the cover is."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One file beside the video: its name, and how its content is made."""

    extra: str
    path: PurePosixPath
    make: Callable[[], Awaitable[bytes]] = field(repr=False)


class Wire(Protocol):
    """What of the downloads' wire is needed here: the door to media hosts."""

    @property
    def client(self) -> MediaClient:
        """The one that the streams come through."""


class Extras:
    """What a worker fetches beside streams; one for all its jobs."""

    def __init__(self, settings: Settings, site: BiliClient, wire: Wire) -> None:
        self.settings, self.site, self._wire = settings, site, wire
        self._swept: set[Path] = set()

    @contextlib.asynccontextmanager
    async def of(self, job: str, video: Video, page: Page, relative: PurePosixPath) -> AsyncIterator[Companions]:
        """Begin to fetch what is wanted with a page; what is still under way at the end of the block is given up.

        ``relative`` is where the file is to be, as far as is known: what lies beside it already is not fetched.
        """
        companions = Companions(self, job, video, page)
        companions.begin(relative)
        try:
            yield companions
        finally:
            await companions.end()

    def may_miss(self, relative: PurePosixPath) -> bool:
        """Tell whether something that is wanted may be missing beside a file, by the names of what is there.

        A page without any subtitle is taken for one that misses them: only the site knows how many there are.
        """
        folder = (self.settings.download_dir / relative).parent
        images = [f"{place}.{kind}" for place in ("-poster", "-thumb") for kind in IMAGE_KINDS]
        own = {"cover-file": images, "json": [".info.json"]} | {
            **{"danmaku": [".danmaku.ass"], "danmaku-xml": [".danmaku.xml"], "nfo": [".nfo"]},
        }
        shared = {"cover-file": [f"poster.{kind}" for kind in IMAGE_KINDS], "json": ["video.info.json"]}
        for extra in set(self.settings.extras) & set(own):
            names = [companion_path(relative, ending).name for ending in own[extra]] + shared.get(extra, [])
            if not any((folder / name).exists() for name in names):
                return True
        return "subtitles" in self.settings.extras and not self._has_subtitles(relative)

    def _has_subtitles(self, relative: PurePosixPath) -> bool:
        beside = (self.settings.download_dir / relative).parent.iterdir()
        return any(path.name.startswith(f"{relative.stem}.") and path.suffix == ".srt" for path in beside)

    async def fetch(self, url: str, most_bytes: int) -> bytes:
        """Return a small file of a media host: no cookie goes there, and no more than ``most_bytes`` comes from it."""
        media = self._wire.client
        address = media.secured(urljoin(self.settings.web_url + "/", url))
        body = bytearray()

        def take(data: memoryview) -> None:
            body.extend(data)
            if len(body) > most_bytes:
                raise SiteError(_("it is larger than {limit} MiB").format(limit=most_bytes // MIB))

        try:
            async with asyncio.timeout(FETCH_SECONDS), media.get(address, 0, most_bytes + 1) as reply:
                if reply.status not in (200, 206):
                    raise SiteError(_("its host answered HTTP {status}").format(status=reply.status))
                await reply.receive(take)
        except FAILURES as error:
            raise SiteError(str(judge_failure(error).cause)) from None
        return bytes(body)

    def sweep(self, folder: Path) -> None:
        """Delete what killed workers left in a folder, once in the life of this one."""
        if folder not in self._swept:
            self._swept.add(folder)
            files.remove_old_leftovers(folder)


class Companions:
    """The extras of one page, from the first request to the files beside the video."""

    def __init__(self, extras: Extras, job: str, video: Video, page: Page) -> None:
        self._extras, self._job, self._video, self._page = extras, job, video, page
        self._settings = extras.settings
        self._wants = frozenset(extras.settings.extras)
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._hidden: list[Path] = []
        self._sources: dict[str, str] = {}
        self._has_told = False
        self.trouble: CircumstanceError | None = None
        """Why the site should be left alone for a while, if it said so."""

    # -------------------------------------------------------------------------------- fetching

    def begin(self, relative: PurePosixPath) -> None:
        """Begin to fetch, beside whatever else is done; nothing is asked for where nothing is wanted."""
        missing = {wanted.extra for wanted in self._files(relative) if not self._stands(wanted)}
        if "cover" in self._wants or "cover-file" in missing:
            self._start("cover", self._cover)
        if self._wants & {"chapters", "subtitles", "embed-subtitles"}:
            self._start("player", self._player)
        if missing & {"danmaku", "danmaku-xml"}:
            self._start("danmaku", self._danmaku)

    def _start(self, name: str, fetch: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._tasks[name] = asyncio.create_task(fetch(), name=f"{self._job} {name}")

    async def end(self) -> None:
        """Give up what is under way, and delete what was only to be read by ffmpeg."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for path in self._hidden:
            with contextlib.suppress(OSError):
                path.unlink()

    async def _cover(self) -> bytes:
        if not self._video.about.cover_url:
            raise SiteError(_("the site names none"))
        data = await self._extras.fetch(self._video.about.cover_url, COVER_BYTES)
        if not files.image_kind(data):
            raise SiteError(_("it is no image"))
        return data

    async def _player(self) -> subtitles.Player:
        answer = await self._extras.site.player(self._video, self._page)
        return subtitles.parse_player(answer, self._video.aid, self._page.cid)

    async def _danmaku(self) -> tuple[danmaku.Danmaku, ...]:
        """Return all danmaku of the page; one segment that cannot be had makes the list incomplete, and so none."""
        segments, size_bytes = [], 0
        for number in range(1, danmaku.segments_of(self._page.duration_seconds) + 1):
            data = await self._extras.site.danmaku(self._video, self._page, number)
            size_bytes += len(data)
            if size_bytes > danmaku.MAX_BYTES:
                raise SiteError(_("it is larger than {limit} MiB").format(limit=danmaku.MAX_BYTES // MIB))
            segments.append(
                await asyncio.to_thread(danmaku.parse_segment, data)
            )  # a full one takes a tenth of a second
        return danmaku.complete(segments)

    # -------------------------------------------------------------------------------- into the file

    async def embedding(self) -> Embedding:
        """Return what is to go into the file, as soon as it is there."""
        tags = nfo.file_tags(self._video, self._page) if "tags" in self._wants else ()
        cover = ""
        chapters: tuple[Chapter, ...] = ()
        if "cover" in self._wants:
            cover = await self._tried("cover", self._hidden_cover) or ""
        if "chapters" in self._wants:
            chapters = await self._tried("chapters", self._found_chapters) or ()
        srts = await self._hidden_subtitles() if "embed-subtitles" in self._wants else ()
        return Embedding(cover, chapters, tags, srts)

    async def _hidden_cover(self) -> str:
        data = await self._tasks["cover"]
        kind = files.image_kind(data)
        if kind not in EMBEDDED_KINDS:
            raise SiteError(_("players do not show such an image in a video"))
        return await self._hide(data, f".{kind}")

    async def _hide(self, data: bytes, ending: str) -> str:
        self._extras.sweep(self._settings.scratch_dir)
        path = files.hidden_path(self._settings.scratch_dir, ending)
        self._hidden.append(path)
        await asyncio.to_thread(path.write_bytes, data)
        return str(path)

    async def _hidden_subtitles(self) -> tuple[Subtitle, ...]:
        listed = await self._tried("embed-subtitles", self._found_subtitles) or ()
        hidden = [await self._tried(f"subtitles{one.suffix}", partial(self._hidden_srt, one)) for one in listed]
        return tuple(one for one in hidden if one is not None)

    async def _hidden_srt(self, one: subtitles.Subtitle) -> Subtitle:
        srt = subtitles.to_srt(await self._srt_source(one), self._page.duration_seconds or math.inf)
        if not srt:
            raise SiteError(_("it has no line within the page"))
        return Subtitle(await self._hide(srt.encode(), ".srt"), one.language, one.name)

    async def _found_chapters(self) -> tuple[Chapter, ...]:
        player: subtitles.Player = await self._tasks["player"]
        return player.chapters

    # -------------------------------------------------------------------------------- beside the file

    async def lay_beside(self, relative: PurePosixPath) -> int:
        """Write what is wanted beside the file at ``relative``; what cannot be had is said, and left out.

        Return how many files were written.
        """
        wanted = self._files(relative)
        if "subtitles" in self._wants:
            wanted += await self._tried("subtitles", lambda: self._subtitle_files(relative)) or []
        if wanted:
            self._extras.sweep((self._settings.download_dir / relative).parent)
        said: set[str] = set()
        written = 0
        for one in wanted:
            if self._stands(one) or one.extra in said:
                continue
            if await self._tried(one.extra, partial(self._write, one)) is None:
                said.add(one.extra)
            else:
                written += 1
        return written

    def standing(self, relative: PurePosixPath) -> tuple[Beside, ...]:
        """Return what lies beside the file at ``relative``, whether it is wanted now or was before."""
        folder = (self._settings.download_dir / relative).parent
        try:
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
        except OSError:
            return ()
        found = [Beside(str(relative.with_name(name)), end) for name in names if (end := files.ending(relative, name))]
        if show_of(self._settings.output, self._video):
            found += [Beside(str(relative.with_name(name)), "") for name in names if name in files.SHARED]
        return tuple(found)

    async def _write(self, wanted: _Wanted) -> bool:
        data = await wanted.make()
        await asyncio.to_thread(files.write_whole, self._settings.download_dir / self._named(wanted, data), data)
        return True

    def _named(self, wanted: _Wanted, data: bytes) -> PurePosixPath:
        """Return the name of a file; that of an image ends with what its content is."""
        is_image = wanted.extra == "cover-file"
        return wanted.path.with_suffix("." + files.image_kind(data)) if is_image else wanted.path

    def _stands(self, wanted: _Wanted) -> bool:
        endings = [f".{kind}" for kind in IMAGE_KINDS] if wanted.extra == "cover-file" else [wanted.path.suffix]
        return any((self._settings.download_dir / wanted.path.with_suffix(ending)).exists() for ending in endings)

    def _files(self, relative: PurePosixPath) -> list[_Wanted]:
        """Return the files that are wanted beside a video, but subtitles, whose languages are not known yet."""
        show = show_of(self._settings.output, self._video)
        shared = show == "video"
        folder = relative.parent
        base = folder / "poster.jpg" if shared else companion_path(relative, "-thumb.jpg" if show else "-poster.jpg")
        info = folder / "video.info.json" if shared else companion_path(relative, ".info.json")
        found = [
            _Wanted("danmaku", companion_path(relative, ".danmaku.ass"), self._ass),
            _Wanted("danmaku-xml", companion_path(relative, ".danmaku.xml"), self._xml),
            _Wanted("cover-file", base, self._cover_file),
            _Wanted("nfo", companion_path(relative, ".nfo"), self._nfo),
            _Wanted("json", info, self._info),
        ]
        if show:
            found.append(_Wanted("nfo", folder / "tvshow.nfo", self._show))
        return [wanted for wanted in found if wanted.extra in self._wants]

    async def _ass(self) -> bytes:
        listed = await self._tasks["danmaku"]
        return (await asyncio.to_thread(danmaku.to_ass, listed)).encode()

    async def _xml(self) -> bytes:
        listed = await self._tasks["danmaku"]
        return (await asyncio.to_thread(danmaku.to_xml, listed, self._page.cid)).encode()

    async def _cover_file(self) -> bytes:
        data: bytes = await self._tasks["cover"]
        return data

    async def _nfo(self) -> bytes:
        video, page = self._video, self._page
        show = show_of(self._settings.output, video)
        if not show:
            return nfo.movie_nfo(video, page).encode()
        title, number = (video.title, page.number) if show == "video" else self._place_in_season()
        return nfo.episode_nfo(video, page, title, number).encode()

    def _place_in_season(self) -> tuple[str, int]:
        return self._video.about.season, self._video.about.episode_number or self._page.number

    async def _show(self) -> bytes:
        is_video = show_of(self._settings.output, self._video) == "video"
        return nfo.show_nfo(self._video, self._video.title if is_video else self._video.about.season).encode()

    async def _info(self) -> bytes:
        if self.trouble is not None:
            raise self.trouble
        return nfo.info_json(await self._extras.site.view(self._video)).encode()

    async def _found_subtitles(self) -> tuple[subtitles.Subtitle, ...]:
        """Return the subtitles on offer; what is wrong with the offer is said once."""
        player: subtitles.Player = await self._tasks["player"]
        if self._has_told:
            return player.subtitles
        self._has_told = True
        if player.needs_login:
            log.info(_("%s: its subtitles are shown to a logged-in account only"), self._job)
        if player.strange:
            log.warning(
                _("%s: %d subtitles are left out: the site gave those of another video"), self._job, player.strange
            )
        return player.subtitles

    async def _srt_source(self, one: subtitles.Subtitle) -> str:
        """Return a subtitle in the site's form; it is fetched once for both of its places."""
        if one.url not in self._sources:
            data = await self._extras.fetch(one.url, subtitles.MAX_BYTES)
            self._sources[one.url] = data.decode("utf-8-sig", "replace")
        return self._sources[one.url]

    async def _srt(self, one: subtitles.Subtitle) -> bytes:
        return subtitles.to_srt(await self._srt_source(one)).encode()

    async def _subtitle_files(self, relative: PurePosixPath) -> list[_Wanted]:
        return [
            _Wanted(f"subtitles{one.suffix}", companion_path(relative, one.suffix), partial(self._srt, one))
            for one in await self._found_subtitles()
        ]

    # -------------------------------------------------------------------------------- failures

    async def _tried(self, extra: str, do: Callable[[], Awaitable[_Value]]) -> _Value | None:
        """Return what ``do`` returns, or None where it fails, which is said."""
        try:
            return await do()
        except CircumstanceError as error:
            self.trouble = error
            reason = str(error)
        except JobError as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or str(error)
        except BROKEN as error:  # a text that nobody thought of
            reason = type(error).__name__
            log.debug("%s: %s", self._job, extra, exc_info=error)
        log.warning(_("%s: without %s: %s"), self._job, extra, reason)
        return None
