"""The JSON and HTML that the stand-in site answers, with the fields and codes of the real one.

Fields as bilibili-API-collect documents them: docs/video/info.md, docs/video/videostream_url.md,
docs/bangumi/info.md, docs/bangumi/videostream_url.md, docs/video_ranking/ranking.md.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from demo import extras
from demo.catalogue import (
    EPISODES,
    EXTRA_EPISODES,
    MEDIA_ID,
    RANKING_RIDS,
    RISKY,
    SEASON_ID,
    SEASON_TITLE,
    EpisodeRecord,
    PageRecord,
    VideoRecord,
)
from demo.media import AVC, FRAME_RATE, TINY_SIZE, StreamFile
from demo.shelves import PUBLISHED, published_at
from demo.signing import wbi_image_urls
from demo.state import SiteState

Json = dict[str, Any]

LOGGED_OUT_QN, TRY_LOOK_QN, LOGGED_IN_QN = 32, 80, 127
QUALITIES = {
    127: ("hdflv2", "超高清 8K", "8K 超高清"),
    126: ("hdflv2", "杜比视界", "杜比视界"),
    125: ("hdflv2", "真彩 HDR", "HDR 真彩"),
    120: ("hdflv2", "超清 4K", "4K 超清"),
    116: ("flv_p60", "高清 1080P60", "1080P 60帧"),
    112: ("hdflv2", "高清 1080P+", "1080P 高码率"),
    74: ("flv720_p60", "高清 720P60", "720P 60帧"),
    80: ("flv", "高清 1080P", "1080P 高清"),
    64: ("flv720", "高清 720P", "720P 高清"),
    32: ("flv480", "清晰 480P", "480P 清晰"),
    16: ("mp4", "流畅 360P", "360P 流畅"),
}
DASH, DOLBY, AV1_WANTED = 16, 256, 2048
FOUR_K = 128
BITS = {127: 1024, 126: 512, 125: 64, 120: FOUR_K}
"""Bits of fnval without which a quality is not given; 4K wants ``fourk=1`` besides."""
MEMBERS_ABOVE_QN = 80
_EXTRA_AUDIO = (30250, 30251)


def ok(data: object, key: str = "data", message: str = "0") -> Json:
    """Return an answer with code 0."""
    return {"code": 0, "message": message, "ttl": 1, key: data}


def refused(code: int, message: str) -> Json:
    """Return an answer with another code."""
    return {"code": code, "message": message, "ttl": 1}


BAD_REQUEST = refused(-400, "请求错误")
NOT_FOUND = refused(-404, "啥都木有")
BANNED = refused(-412, "request was banned")


def voucher(code: int = 0) -> Json:
    """Return what risk control answers: nothing but a voucher."""
    message = "0" if code == 0 else str(code)
    return {
        "code": code,
        "message": message,
        "ttl": 1,
        "data": {"v_voucher": "voucher_00000000-demo-demo-demo-000000000000"},
    }


# ------------------------------------------------------------------------------------------ account


def nav(state: SiteState, logged_in: bool) -> Json:
    """Return x/web-interface/nav: the WBI keys are there with code -101 too."""
    data: Json = {"isLogin": logged_in, "wbi_img": wbi_image_urls(state.keys)}
    if not logged_in:
        return {**refused(-101, "账号未登录"), "data": data}
    return ok({**data, "mid": 10086, "uname": "demo", "vipStatus": 1, "vipType": 2, "face": "", "money": 0})


def spi() -> Json:
    """Return x/frontend/finger/spi."""
    b_4 = "11111111-2222-3333-4444-55555555555512345-026010100-ZGVtbyBkZW1vIGRlbW8g=="
    return {"code": 0, "data": {"b_3": "11111111-2222-3333-4444-55555555555512345infoc", "b_4": b_4}, "message": "ok"}


# ------------------------------------------------------------------------------------------ a video


def _dimension(page: PageRecord) -> Json:
    sizes = {"page": (852, 480), "mp4": (852, 480), "tiny": TINY_SIZE}
    width, height = sizes.get(page.profile, (1920, 1080))
    return {"width": width, "height": height, "rotate": 0}


def _page(page: PageRecord, number: int) -> Json:
    return {
        "cid": page.cid,
        "page": number,
        "from": "vupload",
        "part": page.title,
        "duration": _page_seconds(page),
        "vid": "",
        "weblink": "",
        "dimension": _dimension(page),
        "first_frame": "",
        "ctime": PUBLISHED,
    }


def _page_seconds(page: PageRecord) -> int:
    return page.duration_seconds * (3 if page.profile == "flv" else 1)


def pages(state: SiteState, record: VideoRecord) -> list[Json]:
    """Return the pages of a video, as view and pagelist list them."""
    return [_page(page, number) for number, page in enumerate(state.pages[record.bvid], 1)]


def summary(state: SiteState, record: VideoRecord) -> Json:
    """Return what view, rankings and lists say alike of a video."""
    now = state.pages[record.bvid]
    return {
        "bvid": record.bvid,
        "aid": record.aid,
        "videos": len(now),
        "tid": record.region.tid,
        "tname": record.region.name,
        "copyright": 1,
        "pic": extras.cover_url(state, record),
        "title": record.title,
        "pubdate": published_at(record),
        "ctime": published_at(record),
        "desc": extras.description(record),
        "state": 0,
        "duration": sum(_page_seconds(page) for page in now),
        "rights": {"bp": 0, "elec": 0, "download": 1, "movie": 0, "pay": 0, "hd5": 1, "no_reprint": 1, "autoplay": 1}
        | {"ugc_pay": 0, "is_cooperation": 0, "is_stein_gate": 0, "is_360": 0, "arc_pay": 0, "free_watch": 0},
        "owner": {"mid": record.mid, "name": record.owner, "face": "https://i0.hdslb.com/bfs/face/demo.jpg"},
        "stat": {"aid": record.aid, "view": 12345, "danmaku": 67, "reply": 8, "favorite": 90, "coin": 12, "share": 3}
        | {"now_rank": 0, "his_rank": 0, "like": 456, "dislike": 0, "evaluation": "", "vt": 0},
        "dynamic": "",
        "cid": now[0].cid,
        "dimension": _dimension(now[0]),
        "short_link_v2": f"https://b23.tv/{record.bvid}",
        "pub_location": "上海",
    }


def view_data(state: SiteState, record: VideoRecord) -> Json:
    """Return the ``data`` of x/web-interface/view."""
    data = {
        **summary(state, record),
        "tid_v2": record.region.tid_v2,
        "tname_v2": record.region.name_v2,
        "desc_v2": [{"raw_text": record.name, "type": 1, "biz_id": 0}],
        "argue_info": {"argue_link": "", "argue_msg": "", "argue_type": 0},
        "premiere": None,
        "teenage_mode": 0,
        "is_chargeable_season": False,
        "is_story": False,
        "is_upower_exclusive": False,
        "is_upower_play": False,
        "is_upower_preview": False,
        "no_cache": False,
        "pages": pages(state, record),
        "subtitle": {"allow_submit": False, "list": []},
        "is_season_display": False,
        "user_garb": {"url_image_ani_cut": ""},
        "honor_reply": {},
        "like_icon": "",
        "need_jump_bv": False,
        "disable_show_up_info": False,
        "is_story_play": 0,
        "is_view_self": False,
    }
    if record.redirect_episode_id:
        data["redirect_url"] = f"{state.web_url}/bangumi/play/ep{record.redirect_episode_id}"
    return data


def refusal(state: SiteState, record: VideoRecord | None) -> Json | None:
    """Return why a video is not described: missing, refused by the catalogue, or risk control."""
    if record is None:
        return NOT_FOUND
    if record.refusal is not None:
        return refused(*record.refusal)
    return voucher(-352) if record.bvid in state.risky else None


def view(state: SiteState, record: VideoRecord | None) -> Json:
    """Return x/web-interface/view."""
    no = refusal(state, record)
    if no is not None or record is None:
        return no or NOT_FOUND
    return ok(view_data(state, record))


def ranking(state: SiteState, rid: int) -> Json:
    """Return x/web-interface/ranking/v2; an unknown ``rid`` silently gets the list of the whole site."""
    wanted = rid if rid in RANKING_RIDS else 0
    listed = (
        {
            **summary(state, record),
            "tidv2": record.region.tid_v2,
            "tnamev2": record.region.name_v2,
            "pid_v2": record.region.pid_v2,
            "pid_name_v2": record.region.pid_name_v2,
            "score": 0,
            "enable_vt": 0,
        }
        for record in state.videos
        if record.refusal is None
        and record.stream_refusal is None
        and not record.redirect_episode_id
        and record.name != RISKY
        and wanted in (0, record.region.pid_v2)
    )
    return ok({"note": "根据稿件内容质量、近期的数据综合展示，动态更新", "list": list(islice(listed, 100))})


# ------------------------------------------------------------------------------------------ streams


def _dash_stream(state: SiteState, stream: StreamFile) -> Json:
    first, *others = state.sign_stream(stream)
    is_video = stream.kind == "video"
    mime_type = f"{stream.kind}/mp4"
    rate = str(FRAME_RATE) if is_video else ""
    return {
        "id": stream.id,
        "baseUrl": first,
        "base_url": first,
        "backupUrl": others,
        "backup_url": others,
        "bandwidth": stream.bandwidth,
        "mimeType": mime_type,
        "mime_type": mime_type,
        "codecs": stream.codecs,
        "width": stream.width,
        "height": stream.height,
        "frameRate": rate,
        "frame_rate": rate,
        "sar": "1:1" if is_video else "",
        "startWithSap": 1 if is_video else 0,
        "start_with_sap": 1 if is_video else 0,
        "SegmentBase": {"Initialization": stream.initialization, "indexRange": stream.index_range},
        "segment_base": {"initialization": stream.initialization, "index_range": stream.index_range},
        "codecid": stream.codecid,
    }


def _dash(state: SiteState, page: PageRecord, streams: Sequence[StreamFile], limit: int, fnval: int) -> Json:
    def listed(kind: str) -> list[Json]:
        return [
            _dash_stream(state, stream)
            for stream in streams
            if stream.kind == kind
            and (kind == "audio" or stream.id <= limit)
            and stream.id not in _EXTRA_AUDIO
            and (stream.codecid != 13 or fnval & AV1_WANTED)
            and (stream.id not in BITS or fnval & BITS[stream.id])
        ]

    extra = {stream.id: stream for stream in streams if stream.id in _EXTRA_AUDIO and limit > LOGGED_OUT_QN}
    hires = extra.get(30251)
    atmos = extra.get(30250) if fnval & DOLBY else None
    return {
        "duration": _page_seconds(page),
        "minBufferTime": 1.5,
        "min_buffer_time": 1.5,
        "video": listed("video"),
        "audio": listed("audio") or None,
        "dolby": {"type": 2 if atmos else 0, "audio": [_dash_stream(state, atmos)] if atmos else None},
        "flac": {"display": True, "audio": _dash_stream(state, hires)} if hires else None,
    }


def _durl(state: SiteState, segments: Iterable[StreamFile]) -> list[Json]:
    listed = []
    for segment in segments:
        first, *others = state.sign_stream(segment)
        listed.append(
            {
                "order": segment.order,
                "length": round(segment.duration_seconds * 1000),
                "size": segment.size_bytes,
                "ahead": "",
                "vhead": "",
                "url": first,
                "backup_url": others,
            }
        )
    return listed


def _format(qn: int, streams: Sequence[StreamFile]) -> Json:
    name, _, new = QUALITIES[qn]
    codecs = [stream.codecs for stream in streams if stream.kind == "video" and stream.id == qn]
    return {
        "quality": qn,
        "format": name,
        "new_description": new,
        "display_desc": new.split()[0],
        "superscript": "",
        "codecs": codecs or None,
        "need_login": qn > LOGGED_OUT_QN,
        "need_vip": qn > MEMBERS_ABOVE_QN,
    }


def playinfo_data(state: SiteState, page: PageRecord, *, limit: int, qn: int, fnval: int) -> Json:
    """Return the ``data`` of x/player/wbi/playurl: DASH up to the quality ``limit``, or durl.

    Logged-out clients see the same list of qualities, and get only the streams up to their limit.
    """
    streams = state.streams_of(page.cid)
    kinds = {stream.kind for stream in streams}
    is_dash = "video" in kinds and (bool(fnval & DASH) or "durl" not in kinds)
    offered = sorted({stream.id for stream in streams if stream.kind == ("video" if is_dash else "durl")}, reverse=True)
    reachable = [each for each in offered if each <= limit] or offered[-1:]
    quality = next((each for each in reachable if each <= (qn or limit)), reachable[-1])
    data: Json = {
        "from": "local",
        "result": "suee",
        "message": "",
        "quality": quality,
        "format": QUALITIES[quality][0],
        "timelength": _page_seconds(page) * 1000,
        "accept_format": ",".join(QUALITIES[each][0] for each in offered),
        "accept_description": [QUALITIES[each][1] for each in offered],
        "accept_quality": offered,
        "video_codecid": AVC,
        "seek_param": "start",
        "seek_type": "offset",
    }
    if is_dash:
        data["dash"] = _dash(state, page, streams, max(limit, reachable[-1]), fnval)
    else:
        data["durl"] = _durl(state, (s for s in streams if s.kind == "durl" and s.id == quality))
    return {
        **data,
        "support_formats": [_format(each, streams) for each in offered],
        "high_format": None,
        "last_play_time": 0,
        "last_play_cid": 0,
    }


def quality_limit(record: VideoRecord, logged_in: bool, try_look: bool) -> int:
    """Return the highest qn that this client gets of this video."""
    if logged_in or record.open_quality:
        return LOGGED_IN_QN
    return TRY_LOOK_QN if try_look else LOGGED_OUT_QN


# ------------------------------------------------------------------------------------------ episodes


def _episode(state: SiteState, record: EpisodeRecord) -> Json:
    twin = state.find_video(bvid=record.bvid)
    assert twin is not None
    page = state.pages[twin.bvid][0]
    return {
        "aid": twin.aid,
        "badge": record.badge,
        "badge_info": {"bg_color": "#FB7299", "bg_color_night": "#BB5B76", "text": record.badge},
        "badge_type": 0,
        "bvid": record.bvid,
        "cid": page.cid,
        "cover": "http://i0.hdslb.com/bfs/archive/demo.jpg",
        "dimension": {**_dimension(page)},
        "duration": _page_seconds(page) * 1000,
        "ep_id": record.ep_id,
        "from": "bangumi",
        "id": record.ep_id,
        "is_view_hide": False,
        "link": f"{state.web_url}/bangumi/play/ep{record.ep_id}",
        "long_title": record.long_title,
        "pub_time": PUBLISHED,
        "pv": 0,
        "release_date": "",
        "rights": {"allow_dm": 1, "allow_download": 0, "area_limit": 1 if record.stream_refusal else 0},
        "share_copy": f"《{SEASON_TITLE}》第{record.title}话 {record.long_title}",
        "share_url": f"{state.web_url}/bangumi/play/ep{record.ep_id}",
        "short_link": f"https://b23.tv/ep{record.ep_id}",
        "status": 13 if record.members_only else 2,
        "subtitle": "已观看0次",
        "title": record.title,
        "vid": f"vupload_{page.cid}",
    }


def _sections(state: SiteState) -> list[Json]:
    """Return what a season has beside its main episodes, and last what the site recommends of other works."""
    extras = [_episode(state, record) for record in EXTRA_EPISODES]
    other = {**_episode(state, EPISODES[0]), "id": 999001, "ep_id": 999001, "share_copy": "另一部作品"}
    return [
        {"attr": 0, "episodes": extras, "id": 50001, "title": "PV", "type": 1},
        {"attr": 0, "episodes": [other], "id": 50002, "title": "编辑推荐", "type": 5},
    ]


def season(state: SiteState) -> Json:
    """Return pgc/view/web/season; ``styles`` as yutto reads it."""
    episodes = [_episode(state, record) for record in EPISODES]
    link = f"{state.web_url}/bangumi/play/ss{SEASON_ID}"
    result = {
        "activity": {"head_bg_url": "", "id": 0, "title": ""},
        "alias": "",
        "areas": [{"id": 1, "name": "中国大陆"}],
        "bkg_cover": "",
        "cover": "http://i0.hdslb.com/bfs/bangumi/demo.jpg",
        "episodes": episodes,
        "evaluate": "",
        "jp_title": "",
        "link": link,
        "media_id": MEDIA_ID,
        "mode": 2,
        "new_ep": {"desc": "已完结", "id": EPISODES[-1].ep_id, "is_new": 0, "title": EPISODES[-1].title},
        "positive": {"id": 50000, "title": "正片"},
        "publish": {"is_finish": 1, "is_started": 1, "pub_time": "2023-11-14 22:13:20", "weekday": 0},
        "record": "",
        "rights": {"allow_download": 0, "area_limit": 0, "copyright": "bilibili", "is_preview": 0},
        "season_id": SEASON_ID,
        "season_title": SEASON_TITLE,
        "seasons": [{"season_id": SEASON_ID, "season_title": SEASON_TITLE, "media_id": MEDIA_ID}],
        "section": _sections(state),
        "series": {"display_type": 0, "series_id": 4141, "series_title": SEASON_TITLE},
        "share_url": link,
        "square_cover": "http://i0.hdslb.com/bfs/bangumi/demo.jpg",
        "stat": {"coins": 1, "danmakus": 2, "favorites": 3, "likes": 4, "reply": 5, "share": 6, "views": 7},
        "status": 2,
        "styles": ["日常", "校园"],
        "subtitle": "",
        "title": SEASON_TITLE,
        "total": len(EPISODES),
        "type": 1,
        "up_info": {"avatar": "https://i0.hdslb.com/bfs/face/demo.jpg", "mid": 928123, "uname": "哔哩哔哩番剧"},
    }
    return {"code": 0, "message": "success", "result": result}


def episode_refusal(record: EpisodeRecord, logged_in: bool) -> Json | None:
    """Return why an episode's streams are not given, None where they are."""
    if record.stream_refusal is None or (record.members_only and logged_in):
        return None
    return refused(*record.stream_refusal)


def episode_playurl(state: SiteState, page: PageRecord, *, limit: int, qn: int, fnval: int, version: int) -> Json:
    """Return pgc/player/web/playurl (version 1), or v2 with everything below ``video_info``."""
    data = playinfo_data(state, page, limit=limit, qn=qn, fnval=fnval)
    kind = "DASH" if "dash" in data else "MP4"
    info = {
        **data,
        "code": 0,
        "is_preview": 0,
        "fnver": 0,
        "fnval": fnval,
        "video_project": True,
        "type": kind,
        "bp": 0,
        "is_drm": False,
        "no_rexcode": 0,
        "has_paid": False,
        "status": 2,
        "clip_info_list": [],
        "record_info": {"record_icon": "", "record": ""},
    }
    if version == 1:
        return {"code": 0, "message": "success", "result": info}
    check = {"play_detail": "PLAY_WHOLE", "can_play": True}
    return {
        "code": 0,
        "message": "success",
        "result": {"video_info": info, "play_check": check, "play_video_type": "whole"},
    }


# ------------------------------------------------------------------------------------------ pages of HTML


def _script(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def video_html(state: SiteState, record: VideoRecord | None, number: int, playurl: Json | None) -> str:
    """Return the page of a video; a refused one says so in ``error`` of its initial state."""
    no = refusal(state, record)
    if no is not None or record is None:
        error = {"code": 404, "trueCode": (no or NOT_FOUND)["code"], "message": (no or NOT_FOUND)["message"]}
        return _html("出错啦!", f"<script>window.__INITIAL_STATE__={_script({'error': error})};</script>")
    initial = {
        "aid": record.aid,
        "bvid": record.bvid,
        "p": number,
        "episode": "",
        "videoData": view_data(state, record),
        "upData": {"mid": str(record.mid), "name": record.owner},
        "tags": [{"tag_name": record.region.name}],
        "error": {},
        "cidMap": {},
    }
    scripts = f"<script>window.__playinfo__={_script(playurl)}</script>"
    scripts += f"<script>window.__INITIAL_STATE__={_script(initial)};(function(){{var s;}}());</script>"
    return _html(record.title, scripts)


def risk_html() -> str:
    """Return the page that risk control puts in a video's place."""
    return _html("验证码_哔哩哔哩", f"<script>window._riskdata_={_script(voucher()['data'])};</script>")


def episode_html(record: EpisodeRecord, playurl: Json) -> str:
    """Return the page of an episode."""
    head = "<script>\nconst playurlSSRData = " + _script(playurl) + "\n</script>"
    return _html(f"{SEASON_TITLE} {record.title}", head)


def _html(title: str, scripts: str) -> str:
    shown = html.escape(title)
    return (
        f'<!DOCTYPE html><html lang="zh-Hans"><head><meta charset="utf-8"><title>{shown}_哔哩哔哩_bilibili</title>'
        f'{scripts}</head><body><h1 title="{shown}">{shown}</h1></body></html>\n'
    )
