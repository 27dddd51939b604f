"""What the stand-in site has: frozen records of videos, pages, episodes and short links.

Every odd case that the real site serves is one record with a ``name``, so that a test says what it wants:
``catalogue.video("three-segments")``. Cids are made from the aid: unique, and the same at every start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Profile = Literal["plain", "page", "large", "silent", "mp4", "flv", "rich", "tiny", "heavy"]
"""Which streams a page has; ``media.py`` says what each profile is made of. Those of a crowd are tiny or heavy."""


@dataclass(frozen=True, slots=True)
class PageRecord:
    """One page: its media are made from ``cid`` as the seed, so that different pages have different bytes."""

    cid: int
    title: str
    profile: Profile
    duration_seconds: int


@dataclass(frozen=True, slots=True)
class Region:
    """A region of the site, by its ids in use before 2025 (``tid``) and since (``tid_v2`` within ``pid_v2``)."""

    tid: int
    name: str
    tid_v2: int
    name_v2: str
    pid_v2: int
    pid_name_v2: str


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video (稿件). ``refusal`` is answered in place of its description, ``stream_refusal`` of its streams."""

    name: str
    aid: int
    bvid: str
    title: str
    pages: tuple[PageRecord, ...]
    region: Region
    owner: str = "示例UP主"
    mid: int = 10001
    open_quality: bool = False
    """Streams above 480P are given without a login too."""
    refusal: tuple[int, str] | None = None
    stream_refusal: tuple[int, str] | None = None
    redirect_episode_id: int = 0
    later_pages: tuple[PageRecord, ...] = ()
    """Pages that the uploader adds when the control API says so."""


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode of a season; its page is the first one of the video ``bvid``, with the same cid."""

    name: str
    ep_id: int
    bvid: str
    title: str
    long_title: str
    badge: str = ""
    stream_refusal: tuple[int, str] | None = None
    members_only: bool = False


SCIENCE = Region(201, "科学科普", 2094, "科学科普", 1010, "知识")
HUMANITIES = Region(124, "社科·法律·心理", 2088, "人文历史", 1010, "知识")
FINANCE = Region(207, "财经商业", 2087, "财经商业", 1010, "知识")
CAMPUS = Region(208, "校园学习", 2084, "校园学习", 1010, "知识")
CAREER = Region(209, "职业职场", 2093, "职业职场", 1010, "知识")
CRAFTS = Region(122, "野生技能协会", 2091, "实用技能", 1010, "知识")
MUSIC = Region(130, "音乐综合", 2027, "音乐综合", 1003, "音乐")
GAMES = Region(17, "单机游戏", 2064, "单人RPG游戏", 1008, "游戏")

RANKING_RIDS = frozenset({0, *range(1001, 1032)})
"""Ids that the ranking knows; any other silently gets the list of the whole site, as on the real one."""

LONG_TITLE = "这是一个有三百个汉字的标题用来检查文件名的长度" * 13 + "恰"
ILLEGAL_TITLE = 'a\\b/c:d*e?f"g<h>i|j'

DELETED = (-404, "啥都木有")
NO_PERMISSION = (-403, "访问权限不足")
INVISIBLE = (62002, "稿件不可见")
IN_REVIEW = (62004, "稿件审核中")
OWNER_ONLY = (62012, "仅UP主自己可见")
REGION_LOCKED = (-10403, "抱歉您所在地区不可观看！")
MEMBERS_ONLY = (-10403, "大会员专享限制")


def _page(aid: int, number: int, title: str, profile: Profile) -> PageRecord:
    cid = aid * 100 % 10_000_000_019 + number
    return PageRecord(cid, title, profile, duration_seconds=4 if profile == "large" else 1 + cid % 3)


def _one(aid: int, title: str, profile: Profile = "plain") -> tuple[PageRecord, ...]:
    return (_page(aid, 1, title, profile),)


def _many(aid: int, titles: tuple[str, ...], first: int = 1) -> tuple[PageRecord, ...]:
    return tuple(_page(aid, number, title, "page") for number, title in enumerate(titles, first))


def _titled(name: str, aid: int, bvid: str, title: str, region: Region = CRAFTS) -> VideoRecord:
    """Return a video of one small page that is there for its title."""
    return VideoRecord(name, aid, bvid, title, _one(aid, title, "page"), region)


def _refused(name: str, aid: int, bvid: str, refusal: tuple[int, str]) -> VideoRecord:
    return VideoRecord(name, aid, bvid, f"refused: {name}", _one(aid, name, "page"), GAMES, refusal=refusal)


VIDEOS: tuple[VideoRecord, ...] = (
    VideoRecord("plain", 278987594, "BV1Vc411Q7GB", "潮汐为什么一天来两次", _one(278987594, "潮汐"), SCIENCE),
    VideoRecord(
        "large-a",
        112665310260756,
        "BV1GhgrenEtc",
        "火山口里的一夜",
        _one(112665310260756, "火山口里的一夜", "large"),
        SCIENCE,
        open_quality=True,
    ),
    VideoRecord(
        "large-b",
        723712501,
        "BV12S4y1y7Ub",
        "敦煌壁画的颜色从哪里来",
        _one(723712501, "敦煌壁画", "large"),
        HUMANITIES,
        open_quality=True,
    ),
    VideoRecord(
        "five-pages",
        112446268343670,
        "BV1PHuFeVE1V",
        "线性代数五讲",
        _many(112446268343670, ("向量", "矩阵/行列式", "重复", "重复", "../../etc/passwd")),
        CAMPUS,
    ),
    VideoRecord(
        "many-pages",
        351571714,
        "BV1qR4y1q7su",
        "从零开始的概率论",
        _many(351571714, tuple(f"第{number}课" for number in range(1, 13))),
        CAMPUS,
    ),
    VideoRecord("no-audio", 615190352, "BV1xh4y1g72N", "无声的延时摄影", _one(615190352, "延时", "silent"), CRAFTS),
    VideoRecord(
        "one-segment", 112746918134542, "BV1H7hXecEZx", "老视频：一段MP4", _one(112746918134542, "", "mp4"), CAREER
    ),
    VideoRecord("three-segments", 28969600, "BV1As411u7Pa", "老视频：三段FLV", _one(28969600, "", "flv"), FINANCE),
    _titled("same-title-a", 441869525, "BV16L411S7VS", "同名的视频", FINANCE),
    _titled("same-title-b", 112451293723676, "BV15QMrepEZL", "同名的视频", FINANCE),
    _titled("illegal-title", 134300596, "BV1vq411X7Qt", ILLEGAL_TITLE),
    _titled("dotted-title", 342673051, "BV1b94y1y7Ss", ".开头有点，末尾有点和空格. "),
    _titled("reserved-title", 113978178895616, "BV1gxNdexEwT", "CON", CAREER),
    _titled("control-title", 442362118, "BV1UL41127ty", "第一行\n第二行\t制表\x07响铃\x7f"),
    _titled("emoji-title", 224038996, "BV148411u7eR", "👨‍👩‍👧‍👦一家人🌋🎉", SCIENCE),
    _titled("long-title", 113392427607760, "BV1ihShYiERN", LONG_TITLE, HUMANITIES),
    _titled("parent-title", 671489747, "BV1PU4y1x7tv", "..", CAREER),
    _titled("script-title", 731558186, "BV1ED4y1C7LA", "</script><script>alert(1)</script>{{7*7}}%s%(a)s", CAREER),
    VideoRecord(
        "login-quality",
        113444550268542,
        "BV1fxDRYVEne",
        "登录后才有高清",
        _one(113444550268542, "登录后才有高清"),
        MUSIC,
    ),
    VideoRecord(
        "rich",
        458886974,
        "BV1p5411J7MB",
        "Hi-Res、杜比与AV1",
        _one(458886974, "Hi-Res", "rich"),
        MUSIC,
        open_quality=True,
    ),
    VideoRecord(
        "gains-a-page",
        99561939,
        "BV177411y7MG",
        "还在更新的系列",
        _many(99561939, ("第一回", "第二回")),
        HUMANITIES,
        later_pages=_many(99561939, ("第三回", "第四回"), 3),
    ),
    _refused("deleted", 114279028548438, "BV1RsZdY4Exa", DELETED),
    _refused("invisible", 864990380, "BV1X54y1c7xf", INVISIBLE),
    _refused("no-permission", 528402938, "BV1sM41137B6", NO_PERMISSION),
    _refused("in-review", 112358221459548, "BV1tW7heDERe", IN_REVIEW),
    _refused("owner-only", 221559429, "BV198411n7Rb", OWNER_ONLY),
    VideoRecord(
        "region-locked",
        615479495,
        "BV1Ph4y1u765",
        "仅限部分地区",
        _one(615479495, "仅限部分地区", "page"),
        MUSIC,
        stream_refusal=REGION_LOCKED,
    ),
    _titled("risk-control", 112151365996469, "BV1hJLCeREcP", "一开始总是被风控的视频", GAMES),
    _titled("episode-twin", 216698438, "BV1ja411K7sV", "示例番剧 第1话", GAMES),
    VideoRecord(
        "redirected",
        101495416,
        "BV1zH411f7fk",
        "示例番剧 第2话",
        _one(101495416, "第2话", "page"),
        GAMES,
        redirect_episode_id=733317,
    ),
    VideoRecord(
        "episode-region",
        112833583365218,
        "BV1A78eeZEaW",
        "示例番剧 第3话",
        _one(112833583365218, "第3话", "page"),
        GAMES,
        redirect_episode_id=733318,
    ),
    VideoRecord(
        "episode-members",
        272110758,
        "BV1vc411u7qH",
        "示例番剧 第4话",
        _one(272110758, "第4话", "page"),
        GAMES,
        redirect_episode_id=733319,
    ),
)

SEASON_ID, MEDIA_ID = 41410, 28000000
SEASON_TITLE = "示例番剧"

EPISODES: tuple[EpisodeRecord, ...] = (
    EpisodeRecord("episode", 733316, "BV1ja411K7sV", "1", "潮起"),
    EpisodeRecord("episode-redirected", 733317, "BV1zH411f7fk", "2", "潮落"),
    EpisodeRecord("episode-region", 733318, "BV1A78eeZEaW", "3", "远方", stream_refusal=REGION_LOCKED),
    EpisodeRecord(
        "episode-members",
        733319,
        "BV1vc411u7qH",
        "4",
        "会员",
        badge="会员",
        stream_refusal=MEMBERS_ONLY,
        members_only=True,
    ),
)

EXTRA_EPISODES = (EpisodeRecord("episode-trailer", 733400, "BV148411u7eR", "PV1", "预告"),)
"""Those of the season's sections, beside the main ones."""

SHORT_LINKS = {
    "Demo001": "/video/BV1Vc411Q7GB?share_source=copy_web&p=1",
    "Demo005": "/video/BV1PHuFeVE1V?p=3&share_source=copy_web",
    "DemoEp1": "/bangumi/play/ep733316?share_source=copy_web",
    "DemoAv1": "/video/av278987594",
    "Elsewhere": "https://example.com/video/BV1Vc411Q7GB",
    "Inside": "http://169.254.169.254/latest/meta-data/",
    "Loop": "Loop",
}
"""Codes of short links; one that starts with ``/`` leads to the site's pages, ``Loop`` to itself."""

RISKY = "risk-control"

_BY_NAME = {record.name: record for record in VIDEOS}
_BY_BVID = {record.bvid: record for record in VIDEOS}
_BY_AID = {record.aid: record for record in VIDEOS}
_EPISODES_BY_NAME = {record.name: record for record in EPISODES}
_EPISODES_BY_ID = {record.ep_id: record for record in (*EPISODES, *EXTRA_EPISODES)}


def video(name: str) -> VideoRecord:
    """Return the video that stands for the odd case ``name``."""
    return _BY_NAME[name]


def episode(name: str) -> EpisodeRecord:
    """Return the episode that stands for the odd case ``name``."""
    return _EPISODES_BY_NAME[name]


def find_video(bvid: str = "", aid: int = 0) -> VideoRecord | None:
    """Return the video with that id, None where there is none."""
    return _BY_BVID.get(bvid) or _BY_AID.get(aid)


def find_episode(ep_id: int) -> EpisodeRecord | None:
    """Return the episode with that id, None where there is none."""
    return _EPISODES_BY_ID.get(ep_id)


def all_pages() -> tuple[PageRecord, ...]:
    """Return every page that has or may get media, each cid once."""
    return tuple(page for record in VIDEOS if record.refusal is None for page in (*record.pages, *record.later_pages))
