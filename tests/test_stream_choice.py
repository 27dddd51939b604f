"""Which streams are taken: each row of the tables in docs/quality.md, and what must hold for any offer and any wish."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from config import parse_settings
from errors import JobError, NotYet, PermanentError, SiteError
from model import CODECS, QUALITIES, SOUNDS, Choice, Playinfo, Segment, Stream, Wishes
from stream_choice import (
    BELOW_FLOOR,
    HIGH_DYNAMIC_RANGE,
    LADDER,
    ORDINARY_SOUND,
    SOUND_LADDER,
    choose_streams,
    extension,
    ladder,
    quality_name,
    sound_ladder,
    spoken,
    streams_bytes,
)

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "quality.md").read_text("utf-8")


def table(*heading: str) -> list[tuple[str, ...]]:
    """Return the rows of the table in docs/quality.md that has this heading."""
    lines = DOCUMENT.splitlines()
    start = lines.index(f"| {' | '.join(heading)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    assert all(len(row) == len(heading) for row in rows)
    return rows


def wishes(**settings: str) -> Wishes:
    return parse_settings({f"BILI_{name.upper()}": value for name, value in settings.items()}).wishes


def number(name: str, names: dict[str, int]) -> int:
    return names.get(name) or int(name)


def picture(text: str) -> Stream:
    quality, _space, codec = text.strip().partition(" ")
    return Stream("video", number(quality, QUALITIES), CODECS[codec or "avc"], codec, 1000, ("https://a/",))


def sound(text: str) -> Stream:
    codecs = {"hires": "fLaC", "dolby": "ec-3", "30255": "ec-3"}
    return Stream("audio", number(text.strip(), SOUNDS), 0, codecs.get(text.strip(), "mp4a.40.2"), 100, ("https://a/",))


def offer(pictures: str = "", sounds: str = "", announced: str = "") -> Playinfo:
    def read(text: str, parse: Callable[[str], Stream]) -> tuple[Stream, ...]:
        return tuple(parse(each) for each in text.split(",") if text not in ("", "-"))

    has = tuple(number(name.strip(), QUALITIES) for name in announced.split(",") if announced)
    return Playinfo(60.0, read(pictures, picture), read(sounds, sound), announced=has)


# ------------------------------------------------------------------------------------------ the tables


def test_the_names_in_the_document_are_those_of_the_settings() -> None:
    assert {row[0]: int(row[1]) for row in table("name", "qn", "what") if row[0]} == QUALITIES
    assert [int(row[1]) for row in table("name", "qn", "what")] == list(LADDER)
    assert {row[0]: int(row[1]) for row in table("name", "id", "what")} == SOUNDS


@pytest.mark.parametrize(
    ("quality", "codecs", "on_offer", "taken"), table("`BILI_QUALITY`", "`BILI_CODECS`", "on offer", "taken")
)
def test_the_picture_is_chosen_as_documented(quality: str, codecs: str, on_offer: str, taken: str) -> None:
    assert on_offer.split(", ") == sorted(on_offer.split(", "), key=lambda each: -LADDER[::-1].index(picture(each).id))
    chosen = choose_streams(offer(on_offer), wishes(quality=quality, codecs=codecs))
    backwards = offer(", ".join(reversed(on_offer.split(", "))))
    assert chosen.video == picture(taken) == choose_streams(backwards, wishes(quality=quality, codecs=codecs)).video
    assert chosen.qn == picture(taken).id


def test_every_quality_and_every_codec_is_wished_and_taken_in_the_table() -> None:
    rows = table("`BILI_QUALITY`", "`BILI_CODECS`", "on offer", "taken")
    assert {row[0] for row in rows} >= {*QUALITIES, "best"} - {"720p60", "240p"}
    assert {row[3].split()[1] for row in rows} == set(CODECS)


@pytest.mark.parametrize(("audio", "on_offer", "taken"), table("`BILI_AUDIO`", "on offer", "taken"))
def test_the_sound_is_chosen_as_documented(audio: str, on_offer: str, taken: str) -> None:
    chosen = choose_streams(offer("1080p avc", on_offer), wishes(audio=audio))
    assert chosen.audio == (None if taken == "-" else sound(taken))
    assert chosen.video == picture("1080p avc")


@pytest.mark.parametrize(
    ("container", "streams", "pictures", "sounds", "file"),
    table("`BILI_CONTAINER`", "`BILI_STREAMS`", "picture", "sound", "file"),
)
def test_the_file_is_chosen_as_documented(container: str, streams: str, pictures: str, sounds: str, file: str) -> None:
    wished = wishes(container=container, streams=streams, audio="best")
    assert extension(choose_streams(offer(pictures, sounds), wished), wished) == file


@pytest.mark.parametrize(
    ("quality", "floor", "given_", "has", "happens"),
    table("`BILI_QUALITY`", "`BILI_MIN_QUALITY`", "given", "the video has", "what happens"),
)
def test_the_floor_holds_as_documented(quality: str, floor: str, given_: str, has: str, happens: str) -> None:
    wished = wishes(quality=quality, min_quality=floor)
    if happens == "taken":
        assert choose_streams(offer(given_, announced=has), wished).video in offer(given_).videos
        return
    with pytest.raises(NotYet) as caught:
        choose_streams(offer(given_, announced=has), wished)
    assert (caught.value.kind, caught.value.code) == ("waiting", "below-floor")
    assert str(caught.value).startswith(f"{BELOW_FLOOR} ")
    assert f"the floor is {floor}" in str(caught.value)
    sound_only = wishes(quality=quality, min_quality=floor, streams="audio")
    assert choose_streams(offer(given_, "64k", announced=has), sound_only).audio is not None


# ------------------------------------------------------------------------------------------ odd offers


def test_of_equal_streams_the_one_with_the_higher_bitrate_is_taken() -> None:
    low, high = (Stream("video", 80, 7, "avc1", bandwidth, (f"https://{bandwidth}/",)) for bandwidth in (1, 2))
    quiet, loud = (Stream("audio", 30280, 0, "mp4a", bandwidth, (f"https://{bandwidth}/",)) for bandwidth in (1, 2))
    choice = choose_streams(Playinfo(1.0, (low, high), (quiet, loud)), Wishes())
    assert (choice.video, choice.audio) == (high, loud)


def test_numbers_that_nobody_knows_are_taken_only_where_nothing_else_is() -> None:
    strange = Stream("video", 129, 12, "hev1", 9, ("https://a/",))
    assert choose_streams(Playinfo(1.0, (strange, picture("360p avc"))), Wishes()).qn == 16
    assert choose_streams(Playinfo(1.0, (strange,)), Wishes()).qn == 129
    assert quality_name(129) == "qn 129" and quality_name(116) == "1080p60"


def test_one_kind_alone_is_taken_where_there_is_no_other() -> None:
    assert choose_streams(offer("480p avc"), Wishes()) == Choice(video=picture("480p avc"), qn=32)
    assert choose_streams(offer("", "192k"), Wishes()) == Choice(audio=sound("192k"))
    assert extension(choose_streams(offer("", "192k"), Wishes()), Wishes()) == "m4a"


def test_a_page_without_the_only_kind_that_is_wanted_has_failed_for_good() -> None:
    with pytest.raises(PermanentError) as caught:
        choose_streams(offer("480p avc"), Wishes(streams="audio"))
    assert caught.value.code == "no-audio"
    with pytest.raises(PermanentError) as caught:
        choose_streams(offer("", "192k"), Wishes(streams="video"))
    assert caught.value.code == "no-video"
    with pytest.raises(SiteError):
        choose_streams(Playinfo(1.0), Wishes())


def joined(qn: int, announced: tuple[int, ...] = ()) -> Playinfo:
    return Playinfo(1.0, segments=(Segment(1, 1000, 1.0, ("https://a/",)),), segments_qn=qn, announced=announced)


def test_a_joined_stream_is_taken_as_it_is_and_has_a_floor_too() -> None:
    assert choose_streams(joined(32), Wishes()) == Choice(segments=joined(32).segments, qn=32)
    with pytest.raises(NotYet):
        choose_streams(joined(32, (64, 32)), Wishes(min_qn=64))
    assert choose_streams(joined(64, (64, 32)), Wishes(min_qn=80)).qn == 64
    assert choose_streams(joined(32, (64, 32)), Wishes(min_qn=64, streams="audio")).qn == 32
    assert [extension(choose_streams(joined(32), Wishes(streams=s)), Wishes(streams=s)) for s in ("both", "audio")] == [
        *("mp4", "m4a")
    ]


def test_sizes_are_those_of_what_is_taken() -> None:
    assert streams_bytes(choose_streams(offer("480p avc, 360p avc", "192k"), Wishes()), 8.0) == 1100
    assert streams_bytes(choose_streams(joined(32), Wishes()), 8.0) == 1000


# ------------------------------------------------------------------------------------------ any offer, any wish

qns = st.sampled_from([*LADDER, 129])
pictures = st.builds(
    Stream,
    kind=st.just("video"),
    id=qns,
    codecid=st.sampled_from([7, 12, 13, 99]),
    codecs=st.just(""),
    bandwidth=st.integers(0, 10**7),
    urls=st.just(("https://a/",)),
)
sounds = st.builds(
    Stream,
    kind=st.just("audio"),
    id=st.sampled_from([*SOUND_LADDER, 100010]),
    codecid=st.just(0),
    codecs=st.just(""),
    bandwidth=st.integers(0, 10**6),
    urls=st.just(("https://a/",)),
)
orders = st.permutations([7, 12, 13]).flatmap(lambda order: st.integers(0, 3).map(lambda n: tuple(order[:n])))
any_wishes = st.builds(
    Wishes,
    qn=st.sampled_from([*LADDER, 1000]),
    codecids=orders,
    sound=st.sampled_from([*SOUNDS.values(), 1000]),
)


@given(st.lists(pictures, min_size=1), st.lists(sounds), any_wishes, st.randoms())
def test_the_choice_is_the_first_on_its_ladder_whatever_the_order_of_the_offer(
    videos: list[Stream], audios: list[Stream], wished: Wishes, random: object
) -> None:
    choice = choose_streams(Playinfo(1.0, tuple(videos), tuple(audios)), wished)
    turned = choose_streams(Playinfo(1.0, tuple(videos[::-1]), tuple(audios[::-1])), wished)
    assert choice == turned
    assert choice.video in videos and (choice.audio in audios if audios else choice.audio is None)
    assert choice.video is not None and choice.qn == choice.video.id
    on_ladder = [qn for qn in ladder(wished.qn) if any(stream.id == qn for stream in videos)]
    if on_ladder:
        assert choice.qn == on_ladder[0]
    rivals = [stream for stream in videos if stream.id == choice.qn]
    order = [codec for codec in wished.codecids if any(stream.codecid == codec for stream in rivals)]
    if order:
        assert choice.video.codecid == order[0]
    assert all(s.bandwidth <= choice.video.bandwidth for s in rivals if s.codecid == choice.video.codecid)
    heard = [id_ for id_ in sound_ladder(wished.sound) if any(stream.id == id_ for stream in audios)]
    if heard and choice.audio:
        assert choice.audio.id == heard[0]


@given(st.sampled_from([*LADDER, 1000]))
def test_a_ladder_goes_down_and_has_high_dynamic_range_only_where_it_was_meant(qn: int) -> None:
    rungs = ladder(qn)
    assert list(rungs) == sorted(rungs, reverse=True) and max(rungs) <= qn
    assert (HIGH_DYNAMIC_RANGE & set(rungs) == set()) == (qn not in (1000, 126, 125))


@given(st.sampled_from([*SOUND_LADDER, 1000]))
def test_a_ladder_of_sounds_has_the_ordinary_ones_from_the_wish_down(sound_id: int) -> None:
    rungs = sound_ladder(sound_id)
    assert sound_id in (*rungs, 1000)
    ordinary = [id_ for id_ in (30280, 30232, 30216) if id_ <= sound_id or sound_id not in ORDINARY_SOUND]
    assert [id_ for id_ in rungs if id_ in ORDINARY_SOUND] == ordinary


@given(st.lists(pictures, min_size=1), st.lists(qns), any_wishes, st.sampled_from([qn for qn in LADDER if qn != 100]))
def test_what_waits_is_below_the_floor_and_could_be_better(
    videos: list[Stream], announced: list[int], wished: Wishes, floor: int
) -> None:
    playinfo = Playinfo(1.0, tuple(videos), announced=tuple(announced))
    free = choose_streams(playinfo, wished)
    held = Wishes(wished.qn, wished.codecids, wished.sound, min_qn=floor)
    try:
        choice = choose_streams(playinfo, held)
    except NotYet:
        assert free.qn < floor or free.qn not in LADDER
        assert any(qn in ladder(wished.qn) and (qn > free.qn or free.qn not in LADDER) for qn in announced)
    except JobError as error:
        raise AssertionError from error
    else:
        assert choice == free


def test_no_test_here_reads_a_table_that_is_not_there() -> None:
    assert len(re.findall(r"^\| ", DOCUMENT, re.MULTILINE)) > 80


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (Choice(picture("1080p avc"), sound("192k"), qn=80), "1080P AVC · 192K"),
        (Choice(picture("1080p60 hevc"), sound("hires"), qn=116), "1080P60 HEVC · Hi-Res"),
        (Choice(picture("dolby av1"), sound("dolby"), qn=126), "Dolby Vision AV1 · Dolby Atmos"),
        (Choice(audio=sound("30255")), "ec-3"),
        (Choice(picture("480p avc"), qn=32), "480P AVC"),
        (Choice(qn=100), "QN 100"),
        (Choice(), ""),
    ],
)
def test_what_was_taken_is_told_in_the_words_of_the_settings(choice: Choice, text: str) -> None:
    assert spoken(choice) == text
