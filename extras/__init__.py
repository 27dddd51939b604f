"""What comes with a video: danmaku, subtitles, cover, chapters, tags, NFO, the site's JSON. The door is this module.

The converters (`danmaku`, `subtitles`, `nfo`) take what the site answers and return texts; `gather` fetches and writes.
"""

from __future__ import annotations

from extras.gather import BESIDE, Companions, Embedding, Extras

__all__ = ["BESIDE", "Companions", "Embedding", "Extras"]
