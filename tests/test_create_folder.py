import errno
import os
import sys
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import CATEGORIES
from create_folder import (
    DEFAULT_OUTPUT,
    OUTPUT_FIELDS,
    companion_path,
    create_folder,
    page_path,
    parse_output,
    safe_name,
    show_of,
)
from errors import CircumstanceError, DiskFull, PermanentError
from model import About, Page, Video

BVID = "BV1xx411c7mD"
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{name}{digit}" for name in ("COM", "LPT") for digit in "0123456789¹²³"
}
texts = st.text(st.characters(), max_size=120) | st.text(
    st.sampled_from('ab.. -/\\:*?"<>|\0\n\t\u202e\u200b\u200d\u0301🏳️‍🌈👩🏽‍💻🇨🇳中é\ud800'), max_size=300
)
bvids = st.from_regex(r"BV1[0-9A-Za-z]{9}", fullmatch=True)
cids = st.integers(1, 2**40)


def video(title: str = "标题", pages: int = 1, bvid: str = BVID, episode_id: int | None = None) -> Video:
    return Video(bvid, 1, title, tuple(Page(n, 100 + n, f"第{n}页") for n in range(1, pages + 1)), "", episode_id)


def assert_legal(name: str, max_bytes: int = 255) -> None:
    assert 0 < len(name.encode()) <= max_bytes
    assert not set(name) & set('/\\:*?"<>|')
    assert name == name.strip(" .") and not name.startswith("-")
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name)
    assert not set(name) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff")
    assert name.partition(".")[0].rstrip().upper() not in RESERVED
    assert "  " not in name
    assert unicodedata.is_normalized("NFC", name)
    assert not unicodedata.category(name[0]).startswith("M") and name[-1] != "\u200d"


@settings(max_examples=400, deadline=None)
@given(texts, st.integers(16, 255))
@example("", 16)
@example("...", 16)
@example("CON" + "\u0301" * 200, 16)
@example("a" * 15 + "é", 16)
@example("con. " * 40, 16)
@example("\u0301" * 300, 255)
def test_a_name_is_legal_everywhere_and_stays_as_it_is(text: str, max_bytes: int) -> None:
    name = safe_name(text, max_bytes)
    assert_legal(name, max_bytes)
    assert safe_name(name, max_bytes) == name


@settings(max_examples=400, deadline=None)
@given(texts, texts, texts, bvids, cids, st.integers(1, 1200), st.booleans())
def test_a_path_has_legal_parts_and_all_its_ids(
    category: str, title: str, part: str, bvid: str, cid: int, pages: int, with_cid: bool
) -> None:
    page = Page(pages, cid, part)
    described = Video(bvid, 1, title, (*(Page(n, n, "") for n in range(1, pages)), page))
    path = page_path(category, described, page, with_cid)
    assert not path.is_absolute() and len(path.parts) == (2 if pages == 1 else 3)
    for name in path.parts:
        assert_legal(name)
    assert path.name.endswith(".mp4") and f" [{bvid}]" in path.parts[1]
    assert (f" [{cid}].mp4" in path.name) == with_cid
    if pages > 1:
        assert path.name.startswith(f"P{pages:02d} ")


@settings(max_examples=200, deadline=None)
@given(texts, bvids, bvids, cids, cids)
def test_equal_titles_never_meet(title: str, one: str, other: str, cid: int, cid2: int) -> None:
    first, second = (page_path("c", video(title, bvid=bvid), Page(1, cid, "")) for bvid in (one, other))
    assert (first == second) == (one == other)
    page, page2 = (page_path("c", video(title, 2), Page(1, number, "x"), with_cid=True) for number in (cid, cid2))
    assert (page == page2) == (cid == cid2)


def test_the_names_of_the_design() -> None:
    assert page_path("科学科普", video("光 / 影?"), Page(1, 7, "x")) == PurePosixPath(
        f"科学科普/光 ／ 影？ [{BVID}].mp4"
    )
    assert str(page_path("c", video("t", 3), Page(2, 7, "开场"))) == f"c/t [{BVID}]/P02 开场.mp4"
    assert str(page_path("c", video("t", 300), Page(2, 7, "开场"))) == f"c/t [{BVID}]/P002 开场.mp4"
    assert str(page_path("c", video("t", 3), Page(2, 7, "开场"), with_cid=True)) == f"c/t [{BVID}]/P02 开场 [7].mp4"
    assert str(page_path("c", video("t"), Page(1, 7, ""), True, "m4a")) == f"c/t [{BVID}] [7].m4a"
    assert str(page_path("c", video("t", bvid="", episode_id=42), Page(1, 7, ""))) == "c/t [ep42].mp4"
    assert str(page_path("c", video("t", episode_id=42), Page(1, 7, ""))) == f"c/t [{BVID}].mp4"
    assert str(page_path("c", video("t", bvid=""), Page(1, 7, ""))) == "c/t [av1].mp4"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "untitled"),
        ("..", "untitled"),
        (" \u3000\n", "untitled"),
        ('a/b\\c:d*e?f"g<h>i|j', "a／b＼c：d＊e？f＂g＜h＞i｜j"),
        ("  two \t\n words  ", "two words"),
        (".hidden.", "hidden"),
        ("-rf", "－rf"),
        ("--help", "－-help"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("COM¹ .x", "_COM¹ .x"),
        ("console", "console"),
        ("e\u0301te\u0301", "été"),
        ("gpj.\u202eexe", "gpj.exe"),
        ("a\0b\x7fc\x9bd", "abcd"),
        ("\ud800x\udfff", "x"),
        ("👩‍💻 ok", "👩‍💻 ok"),
        ("\u200d\u0301x", "x"),
    ],
)
def test_what_becomes_of_odd_titles(text: str, name: str) -> None:
    assert safe_name(text, 100) == name


@pytest.mark.parametrize(
    ("text", "max_bytes", "name"),
    [
        ("中" * 100, 20, "中" * 6),
        ("a" * 14 + "e\u0332\u0332", 16, "a" * 14),
        ("a" * 10 + "👩‍💻", 18, "a" * 10),
        ("a" * 10 + "👍🏽", 16, "a" * 10),
        ("a" * 11 + "❤️", 16, "a" * 11),
        ("ab" + "🇨🇳🇩🇪", 16, "ab🇨🇳"),
        ("a" * 15 + " b", 16, "a" * 15),
        ("a" * 14 + "...b", 16, "a" * 14),
        ("x" + "\u0332" * 50, 16, "x" + "\u0332" * 7),
    ],
)
def test_a_cut_is_between_characters_as_a_reader_sees_them(text: str, max_bytes: int, name: str) -> None:
    assert safe_name(text, max_bytes) == name


def test_a_title_of_300_characters_is_cut_alike_with_and_without_the_cid() -> None:
    long = video("很长的标题" * 60, 12)
    plain, with_cid = (page_path("c", long, Page(3, 123456789, "长" * 300), with_cid=flag) for flag in (False, True))
    assert len(with_cid.name.encode()) in (253, 254, 255)
    assert plain.name.removesuffix(".mp4") == with_cid.name.removesuffix(" [123456789].mp4")
    assert plain.parent == with_cid.parent and len(plain.parent.name.encode()) >= 253


def test_ids_that_are_none_are_refused() -> None:
    for bvid in ("../x", "BV1/..", "x" * 33, "b v", "ＢＶ"):
        with pytest.raises(ValueError, match="is not the id"):
            page_path("c", video(bvid=bvid), Page(1, 1, ""))
    for cid in (-1, 2**63, 10**300):
        with pytest.raises(ValueError, match="is not the id"):
            page_path("c", video(), Page(1, cid, ""), with_cid=True)
    with pytest.raises(ValueError, match="16"):
        safe_name("x", 15)


def test_the_configured_categories_keep_their_names() -> None:
    for category in (*(category.name for category in CATEGORIES), "other"):
        assert page_path(category, video(), Page(1, 1, "")).parts[0] == category
    assert page_path("../../etc", video(), Page(1, 1, "")).parts[0] == "／..／etc"


# ------------------------------------------------------------------------------------------ templates

ABOUT = About(owner_id=42, published_at=1_700_000_000, region="科学科普", season="合集/一")
DESCRIBED = Video(BVID, 170001, "标题?", (Page(1, 101, "开场"), Page(2, 102, "..")), "UP主", about=ABOUT)
SINGLE = Video(BVID, 170001, "标题?", (Page(1, 101, "开场"),), "UP主", about=ABOUT)


@pytest.mark.parametrize(
    ("template", "single", "second"),
    [
        (DEFAULT_OUTPUT, f"c/标题？ [{BVID}].mp4", f"c/标题？ [{BVID}]/P02 untitled.mp4"),
        ("{owner}/{title} [{bvid}]", f"UP主/标题？ [{BVID}].mp4", f"UP主/标题？ [{BVID}]/P02 untitled.mp4"),
        ("{title}", f"标题？ [{BVID}].mp4", f"标题？ [{BVID}]/P02 untitled.mp4"),
        ("{owner_id}/{year}/{date} {title} [av{aid}]", "42/2023/2023-11-15 标题？ [av170001].mp4", None),
        ("{title} P{page} of {pages} [{bvid}]", f"标题？ P01 of 1 [{BVID}].mp4", f"标题？ P02 of 2 [{BVID}].mp4"),
        ("{season}/{region}/{cid}", "合集／一/科学科普/101.mp4", "合集／一/科学科普/102.mp4"),
        ("{bvid}/{page_title}", f"{BVID}/开场.mp4", f"{BVID}/untitled.mp4"),
        ("{{{bvid}}}", f"{{{BVID}}}.mp4", f"{{{BVID}}}/P02 untitled.mp4"),
        ("videos", f"videos [{BVID}].mp4", f"videos [{BVID}]/P02 untitled.mp4"),
    ],
)
def test_a_template_says_folders_and_names(template: str, single: str, second: str | None) -> None:
    output = parse_output(template)
    assert str(output) == template
    assert str(page_path("c", SINGLE, SINGLE.pages[0], output=output)) == single
    if second is not None:
        assert str(page_path("c", DESCRIBED, DESCRIBED.pages[1], output=output)) == second


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{titel}", "no field"),
        ("{quality}/{title} [{bvid}]", "no field"),
        ("{}", "no field"),
        ("{title.__class__}", "no field"),
        ("{title!r}", "no format"),
        ("{page:03}", "no format"),
        ("{title", "brace"),
        ("title}", "brace"),
        ("/{title}", "below"),
        ("{title}/", "below"),
        ("a//b", "below"),
        ("../{title}", "cannot be the name"),
        ("./{title}", "cannot be the name"),
        (".parts/{bvid}", "cannot be the name"),
        ("{bvid}.", "cannot be the name"),
        (" {title}", "cannot be the name"),
        ("-{bvid}", "cannot be the name"),
        ("con/{bvid}", "cannot be the name"),
        ("a  b/{bvid}", "cannot be the name"),
        ("c:\\{title}", "folders are divided"),
        ("{title}?", "folders are divided"),
        ("{title}\n", "control"),
        ("{title}.mp4", "added by itself"),
        ("/".join("abcdefghi"), "folders"),
        ("x" * 230 + "{title} [{bvid}]", "no room"),
        ("{title}" * 20, "no room"),
    ],
)
def test_a_template_that_names_no_files_is_refused_with_the_reason(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_output(template)


literals = st.text(st.sampled_from("abc XY_()[]-.,中é'&%$#@!~+="), max_size=12)
names = st.lists(st.tuples(literals, st.sampled_from(OUTPUT_FIELDS)), min_size=1, max_size=4)
templates = st.lists(names, min_size=1, max_size=4).map(
    lambda template: "/".join("".join(f"{text}{{{field}}}" for text, field in name) for name in template)
)


@settings(max_examples=200, deadline=None)
@given(templates, texts, texts, texts, bvids, cids, st.integers(1, 300), st.booleans())
@example("{title}{title}{title} {bvid}", "c", "t" * 300, "p", BVID, 2**40, 1, True)
@example("{title}1/{page_title}{bvid}", "c", "com", "\u1161", BVID, 1, 1, False)
@example("co{title}/{bvid}", "c", "n", "\u0301", BVID, 1, 1, False)
def test_no_text_leaves_its_place_in_a_template_and_no_id_is_cut(
    template: str, category: str, title: str, part: str, bvid: str, cid: int, pages: int, with_cid: bool
) -> None:
    try:
        output = parse_output(template)
    except ValueError:
        return
    page = Page(pages, cid, part)
    about = About(7, "", 1_700_000_000, title, part)
    described = Video(bvid, 1, title, (*(Page(n, n, "") for n in range(1, pages)), page), category, about=about)
    path = page_path(category, described, page, with_cid, output=output)
    named = output.page_names if pages > 1 else output.names
    assert not path.is_absolute() and len(path.parts) == len(named)
    for name in path.parts:
        assert_legal(name)
    for parts, name in zip(named, path.parts, strict=True):
        for _literal, field in parts:
            value = {"bvid": bvid, "cid": str(cid), "aid": "1", "owner_id": "7", "date": "2023-11-15"}.get(field, "")
            assert value in name
    assert (f" [{cid}].mp4" in path.name) >= with_cid


def test_short_texts_stay_whole_where_long_ones_are_cut() -> None:
    output = parse_output("{owner} - {title} - {page_title} [{bvid}]")
    long = Video(BVID, 1, "很长的标题" * 60, (Page(1, 101, "长" * 300),), "UP主")
    name = page_path("c", long, long.pages[0], output=output).name
    assert name.startswith("UP主 - 很长的标题") and name.endswith(f"长 [{BVID}].mp4")
    assert 235 < len(name.encode()) <= 255
    halves = name.removeprefix("UP主 - ").removesuffix(f" [{BVID}].mp4").split(" - ")
    assert abs(len(halves[0]) - len(halves[1])) <= 1


@pytest.mark.parametrize(
    ("template", "single", "many"),
    [
        (DEFAULT_OUTPUT, "", "video"),
        ("{owner}/{title} [{bvid}]/{page} {page_title}", "", "video"),
        ("{title} {page} {bvid}", "", ""),
        ("{season}/{title} [{bvid}]", "season", "video"),
        ("{season}/{title} {page} [{bvid}]", "season", "season"),
    ],
)
def test_what_a_folder_is_the_folder_of(template: str, single: str, many: str) -> None:
    output = parse_output(template)
    assert (show_of(output, SINGLE), show_of(output, DESCRIBED)) == (single, many)
    assert show_of(output, video()) == ""


@settings(max_examples=200, deadline=None)
@given(
    texts, texts, cids, st.integers(1, 12), st.booleans(), st.sampled_from([".nfo", ".zh-Hans.ai.srt", "-poster.jpg"])
)
def test_a_companion_has_the_name_of_its_file_and_room_for_its_ending(
    title: str, part: str, cid: int, pages: int, with_cid: bool, suffix: str
) -> None:
    described = video(title * 8, pages)
    path = page_path("c", described, Page(pages, cid, part * 8), with_cid)
    companion = companion_path(path, suffix)
    assert companion.parent == path.parent and companion.name.endswith(suffix)
    assert len(companion.name.encode()) <= 255
    stem = companion.name.removesuffix(suffix)
    assert path.stem.startswith(stem) or (pages == 1 or with_cid)
    if pages == 1:
        assert stem.endswith(f"[{cid}]" if with_cid else f"[{BVID}]")


def test_a_companion_of_a_short_name_has_all_of_it() -> None:
    path = page_path("c", video("t. x"), Page(1, 7, ""))
    assert str(companion_path(path, ".en.srt")) == f"c/t. x [{BVID}].en.srt"


# ------------------------------------------------------------------------------------------ folders


def test_folders_are_made_and_found_again(tmp_path: Path) -> None:
    base = tmp_path / "new" / "Download"
    relative = page_path("科学", video("t", 3), Page(1, 7, "x"))
    path = create_folder(base, relative)
    assert path == base.resolve() / relative and path.parent.is_dir() and not path.exists()
    assert create_folder(base, relative) == path


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_every_made_path_is_inside_and_the_file_system_takes_it(
    tmp_path_factory: pytest.TempPathFactory, category: str, title: str
) -> None:
    base = tmp_path_factory.getbasetemp() / "names"
    path = create_folder(base, page_path(category, video(title, 2), Page(1, 7, title), with_cid=True))
    path.touch()
    assert path.resolve().is_relative_to(base.resolve())
    assert path.name in {entry.name for entry in path.parent.iterdir()}


@pytest.mark.parametrize("text", ["/etc/x", "../x", "a/../../x", "a\\b/x", "c:/x", "a\0/x", "x" * 256 + "/y", ""])
def test_paths_that_are_not_plain_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PermanentError):
        create_folder(tmp_path / "base", PurePosixPath(text))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_out_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    base, outside = tmp_path / "base", tmp_path / "base and more"  # its path begins like that of the base
    base.mkdir()
    outside.mkdir()
    (base / "link").symlink_to(outside)
    (base / "loop").symlink_to(base / "loop")
    with pytest.raises(CircumstanceError, match="leads out"):
        create_folder(base, PurePosixPath("link/deep/x.mp4"))
    assert list(outside.iterdir()) == []
    with pytest.raises(CircumstanceError, match="must be a folder"):
        create_folder(base, PurePosixPath("loop/x.mp4"))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_the_download_folder_itself_and_its_insides_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "disk" / "b").mkdir(parents=True)
    (tmp_path / "base").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "a").symlink_to(tmp_path / "disk" / "b")
    path = create_folder(tmp_path / "base", PurePosixPath("a/c/x.mp4"))
    assert (tmp_path / "disk" / "b" / "c").is_dir()
    assert path.parent.resolve() == (tmp_path / "disk" / "b" / "c").resolve()


def test_a_file_where_a_folder_must_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    with pytest.raises(CircumstanceError, match="must be a folder"):
        create_folder(tmp_path, PurePosixPath("c/x.mp4"))
    with pytest.raises(CircumstanceError, match="must be a folder"):
        create_folder(tmp_path / "c", PurePosixPath("d/x.mp4"))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, DiskFull), (errno.EROFS, DiskFull), (errno.EACCES, DiskFull), (errno.ENAMETOOLONG, PermanentError)],
)
def test_what_the_system_says_becomes_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(expected, match=os.strerror(number)):
        create_folder(tmp_path, PurePosixPath("c/x.mp4"))
