"""Which streams to take of those on offer: the wishes, the fallbacks and the floor, as pure functions.

``docs/quality.md`` has the same rules as a table, and a test compares them. A wish is never a reason to fail: where it
is not on offer, the next best is taken, unless that is below the floor.
"""

from __future__ import annotations

from errors import NotYet, PermanentError, SiteError
from i18n import _
from model import BEST, CODECS, QUALITIES, SOUNDS, Choice, Playinfo, Stream, Wishes

LADDER = (127, 126, 125, 120, 116, 112, 100, 80, 74, 64, 32, 16, 6)
"""The qn that the site's web player has, the best first, in the order in which the site itself lists them."""

HIGH_DYNAMIC_RANGE = frozenset({126, 125})
"""Dolby Vision and HDR look pale on an ordinary display: who wishes a resolution gets another resolution instead."""

SOUND_LADDER = (30251, 30250, 30255, 30280, 30232, 30216)
ORDINARY_SOUND = frozenset({30280, 30232, 30216})
DOLBY_SOUND = frozenset({30250, 30255})
_FLAC = 30251

_SPOKEN = {126: "Dolby Vision", 30251: "Hi-Res", 30250: "Dolby Atmos"}

BELOW_FLOOR = "login?"
"""How the reason of a job begins that waits for a better cookie, in every language: people look for it."""

AUDIO_EXTENSIONS = ("m4a", "mka")
VIDEO_EXTENSIONS = ("mp4", "mkv")


def choose_streams(playinfo: Playinfo, wishes: Wishes) -> Choice:
    """Return the streams to take; raise NotYet below the floor, PermanentError where what is wished does not exist."""
    if playinfo.segments:
        choice = Choice(segments=playinfo.segments, qn=playinfo.segments_qn)
    else:
        choice = _choose_dash(playinfo, wishes)
    if wishes.streams != "audio":
        _check_floor(playinfo, choice.qn, wishes)
    return choice


def _choose_dash(playinfo: Playinfo, wishes: Wishes) -> Choice:
    if not playinfo.videos and not playinfo.audios:
        raise SiteError(_("the site offers no streams of this page"))
    video = _best_video(playinfo.videos, wishes) if wishes.streams != "audio" else None
    audio = _best_audio(playinfo.audios, wishes.sound) if wishes.streams != "video" else None
    if video is None and audio is None:
        if wishes.streams == "audio":
            raise PermanentError(_("only the sound is wanted, and this page has none"), "no-audio")
        raise PermanentError(_("only the picture is wanted, and this page has none"), "no-video")
    return Choice(video=video, audio=audio, qn=video.id if video else 0)


def ladder(qn: int) -> tuple[int, ...]:
    """Return the qn that may be taken for a wish, the first that is on offer before all others.

    From the wish downwards. HDR and Dolby Vision are on the ladder of the best and of themselves only.
    """
    below = LADDER[LADDER.index(qn) :] if qn in LADDER else LADDER
    if qn == BEST or qn in HIGH_DYNAMIC_RANGE:
        return below
    return tuple(each for each in below if each not in HIGH_DYNAMIC_RANGE)


def sound_ladder(sound: int) -> tuple[int, ...]:
    """Return the audio ids for a wish, the first on offer before all others.

    From the wish downwards. Dolby and Hi-Res are on the ladder of the best and of themselves only.
    """
    if sound == BEST or sound not in SOUND_LADDER:
        return SOUND_LADDER
    kin = DOLBY_SOUND if sound in DOLBY_SOUND else {sound}
    return tuple(each for each in SOUND_LADDER[SOUND_LADDER.index(sound) :] if each in ORDINARY_SOUND or each in kin)


def _best_video(videos: tuple[Stream, ...], wishes: Wishes) -> Stream | None:
    """Return the video by the ladder, then by the order of codecs, then by the bandwidth.

    Where all that is on offer is above the wish, or of a kind that nobody wished, the lowest known one is nearest.
    """
    rungs = ladder(wishes.qn)
    offered = {stream.id for stream in videos}
    qn = next((rung for rung in rungs if rung in offered), None)
    if qn is None:
        qn = min(offered, key=lambda each: (each not in LADDER, each in HIGH_DYNAMIC_RANGE, each), default=None)
    best = [stream for stream in videos if stream.id == qn]
    order = wishes.codecids
    return min(best, key=lambda each: (_place(each.codecid, order), each.codecid, -each.bandwidth), default=None)


def _best_audio(audios: tuple[Stream, ...], sound: int) -> Stream | None:
    """Return the sound by its ladder, then by the bandwidth; where nothing on it is on offer, the nearest above it.

    Ids that are unknown come last: the site has some for encrypted sound.
    """
    rungs = sound_ladder(sound)
    above = tuple(reversed([each for each in SOUND_LADDER if each not in rungs]))
    order = (*rungs, *above)
    return min(audios, key=lambda each: (_place(each.id, order), each.id, -each.bandwidth), default=None)


def _place(item: int, order: tuple[int, ...]) -> int:
    return order.index(item) if item in order else len(order)


# ------------------------------------------------------------------------------------------ the floor


def _check_floor(playinfo: Playinfo, qn: int, wishes: Wishes) -> None:
    """Raise NotYet where the choice is below the floor although the video has a better quality that was wished.

    Whether it has one is what the site announces to everybody (``accept_quality``, ``support_formats``), whatever the
    account may see: a video that never had more than 360P is not below anything.
    """
    if not wishes.min_qn or _height(qn) >= _height(wishes.min_qn):
        return
    known = {*playinfo.announced, *(stream.id for stream in playinfo.videos)}
    better = [each for each in ladder(wishes.qn) if each in known and _height(each) > _height(qn)]
    if better:
        sentence = _(
            "the video has {better}, this account gets {given}, the floor is {floor}: is BILI_SESSDATA expired, or of "
            "no premium member? It is tried again later"
        )
        names = {"better": quality_name(better[0]), "given": quality_name(qn), "floor": quality_name(wishes.min_qn)}
        raise NotYet(f"{BELOW_FLOOR} {sentence.format(**names)}", "below-floor")


def _height(qn: int) -> int:
    """Return how far up the ladder a qn stands, 0 for one that is not on it."""
    return len(LADDER) - LADDER.index(qn) if qn in LADDER else 0


def quality_name(qn: int) -> str:
    """Return the name of a quality as the settings have it, or its number."""
    return next((name for name, number in QUALITIES.items() if number == qn), f"qn {qn}")


# ------------------------------------------------------------------------------------------ what follows from a choice


def extension(choice: Choice, wishes: Wishes) -> str:
    """Return the extension of the file, which names its container.

    FLAC goes into Matroska, because few players look for it in MP4; everything else, Dolby Vision above all, plays from
    MP4 in more places.
    """
    if is_sound_only(choice, wishes):
        return "mka" if wishes.container == "mkv" else "m4a"
    if wishes.container != "auto":
        return wishes.container
    is_flac = choice.audio is not None and (choice.audio.codecs.lower() == "flac" or choice.audio.id == _FLAC)
    return "mkv" if is_flac else "mp4"


def spoken(choice: Choice) -> str:
    """Return for people what was chosen: ``1080P AVC · 192K``."""
    codecs = {number: name.upper() for name, number in CODECS.items()}
    sounds = {number: name.upper() for name, number in SOUNDS.items()} | _SPOKEN
    picture = [_SPOKEN.get(choice.qn, quality_name(choice.qn).upper())] if choice.qn else []
    if choice.video is not None:
        picture.append(codecs.get(choice.video.codecid, choice.video.codecs))
    sound = sounds.get(choice.audio.id, choice.audio.codecs) if choice.audio is not None else ""
    return " · ".join(part for part in (" ".join(filter(None, picture)), sound) if part)


def is_sound_only(choice: Choice, wishes: Wishes) -> bool:
    """Tell whether the file has no picture."""
    return wishes.streams == "audio" or (choice.video is None and not choice.segments)


def streams_bytes(choice: Choice, duration_seconds: float) -> int:
    """Return how large the chosen streams are together by what the site says of them; 0 where it says nothing."""
    streams = [stream for stream in (choice.video, choice.audio) if stream is not None]
    by_bandwidth = sum(stream.bandwidth for stream in streams) * duration_seconds / 8
    return round(by_bandwidth) + sum(segment.size_bytes for segment in choice.segments)
