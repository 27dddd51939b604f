"""A user who submits videos while everything breaks: some twice, some by several spellings, each until it is heard."""

from __future__ import annotations

import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence

from demo.catalogue import VideoRecord
from tests.chaos.world import USER, World

AT_ONCE = 0.5
"""The share of the videos that is submitted before anything breaks."""
BATCH = 40


class User(threading.Thread):
    """Submits all videos within ``seconds``; ``pages`` tells which pages are behind each text."""

    def __init__(self, world: World, videos: Sequence[VideoRecord], seed: int, seconds: float) -> None:
        super().__init__(name="user", daemon=True)
        self.pages: dict[str, frozenset[int]] = {}
        self._world, self._seconds = world, seconds
        self._random = random.Random(seed)
        self._videos = list(videos)
        self._random.shuffle(self._videos)
        self._web = world.site.addresses["web"]
        self._stopped = threading.Event()
        self.unheard = 0
        self._grown: list[VideoRecord] = []
        for record in videos:
            self._know(record)

    def _know(self, record: VideoRecord) -> None:
        self.pages[record.bvid] = frozenset(page.cid for page in record.pages)
        for number, page in enumerate(record.pages, 1):
            self.pages[f"{record.bvid}?p={number}"] = frozenset({page.cid})

    def _texts(self, record: VideoRecord) -> list[str]:
        """Return how a video is submitted: as it is, now and then in several ways."""
        whole = [
            record.bvid,
            f"av{record.aid}",
            f"https://www.bilibili.com/video/{record.bvid}?t=3&spm_id_from=333",
            f"{self._web}/video/av{record.aid}/",
        ]
        for text in whole:
            self.pages[text] = self.pages[record.bvid]
        number = self._random.randint(1, len(record.pages))
        single = f"{record.bvid}?p={number}"
        draw = self._random.random()
        if draw < 0.7:
            return [record.bvid]
        if draw < 0.85:
            return self._random.sample(whole, 2)
        return [single, self._random.choice(whole)] if draw < 0.95 else [*whole, single]

    def run(self) -> None:
        first = round(len(self._videos) * AT_ONCE)
        self._submit(self._videos[:first])
        rest = self._videos[first:]
        turns = max(1, len(rest) // BATCH)
        for turn in range(turns):
            if self._stopped.wait(self._seconds / turns):
                self._submit(rest[turn * BATCH :])  # the end has come early: all that is left at once
                return
            stop = None if turn == turns - 1 else (turn + 1) * BATCH
            before = self._videos[: first + turn * BATCH]
            self._submit([*rest[turn * BATCH : stop], *self._random.sample(before, 3)])
            self._refresh(before)

    def _refresh(self, before: Sequence[VideoRecord]) -> None:
        """Ask known videos for new pages, one of which has just got one."""
        grown = [record for record in before if record.later_pages and record not in self._grown]
        texts = [record.bvid for record in self._random.sample(before, 2)]
        if grown:
            record = self._random.choice(grown)
            self._grown.append(record)
            self._world.site.post("gain_page", name=record.name)
            text = f"https://www.bilibili.com/video/{record.bvid}?new=1"
            self.pages[text] = frozenset(page.cid for page in (*record.pages, record.later_pages[0]))
            texts.append(text)
        self._tell(texts, refresh=True)

    def finish(self, seconds: float) -> None:
        """Submit what is left at once; fail where that is not heard in time."""
        self._stopped.set()
        self.join(seconds)
        assert not self.is_alive(), "the user is not heard"

    def _submit(self, records: Sequence[VideoRecord]) -> None:
        texts = [text for record in records for text in self._texts(record)]
        self._random.shuffle(texts)
        for start in range(0, len(texts), BATCH):
            self._tell(texts[start : start + BATCH])

    def _tell(self, texts: Sequence[str], refresh: bool = False) -> None:
        body = {"urls": list(texts), "request": f"{self._random.getrandbits(64):016x}", "refresh": refresh}
        url = self._world.relay.url(USER) + "/add_url"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            request = urllib.request.Request(
                url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
            )
            try:
                with opener.open(request, timeout=10) as answer:
                    json.load(answer)
                return
            except urllib.error.HTTPError as error:
                assert error.code in (429, 500, 502, 503), f"the user is refused: {error.code} {error.read()!r}"
            except (OSError, http.client.HTTPException, ValueError):
                pass  # cut off, dropped, late: the same again
            self.unheard += 1
            self._stopped.wait(0.3 * self._random.random() + 0.1)
