"""Where a page's file goes: names that every file system takes, and folders that never leave the download folder.

A name is at most 255 bytes of UTF-8 (Linux; the 255 UTF-16 units of Windows and macOS are never less), has no
character that Windows refuses, and keeps the ids whatever the title is. A template says which names there are; what is
put into it cannot add one. A whole path over 260 characters still needs long paths to be enabled in Windows; nothing
here prevents one.
"""

from __future__ import annotations

import errno
import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

from errors import CircumstanceError, DiskFull, PermanentError
from i18n import _
from model import Page, Video

MAX_NAME_BYTES = 255
MAX_CATEGORY_BYTES = 120
MIN_NAME_BYTES = 16
MAX_ID_CHARACTERS = 32

_READABLE = str.maketrans('/\\:*?"<>|', "／＼：＊？＂＜＞｜")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
_ID = re.compile(r"[0-9A-Za-z]{1,32}", re.ASCII)
_JOINER = "\u200d"
_JOINERS = "\u200c" + _JOINER


# ------------------------------------------------------------------------------------------ templates

DEFAULT_OUTPUT = "{category}/{title} [{bvid}]"
PAGE_OUTPUT = "P{page} {page_title}"
"""The file of a page of several, in a folder of the video's name, where the template itself names no page."""
ENDINGS = ("mp4", "mkv", "m4a", "mka")
MAX_FOLDERS = 8

_TEXTS = ("category", "title", "page_title", "owner", "season", "region")
_WIDEST = {"bvid": 18, "aid": 16, "cid": 19, "page": 5, "pages": 5, "owner_id": 16, "date": 10, "year": 4}
"""How many bytes the fields have at most that are never cut."""
OUTPUT_FIELDS = (*_TEXTS, *_WIDEST)
_IDS = frozenset({"bvid", "aid", "cid"})
_OF_A_PAGE = frozenset({"page", "page_title", "cid"})
_FIRST_DAY = date(1970, 1, 1).toordinal()
_BEIJING_SECONDS = 8 * 3600

_Parts = tuple[tuple[str, str], ...]
"""One name of a template: each literal text, and the field behind it, or an empty text."""


@dataclass(frozen=True, slots=True)
class Output:
    """A template taken apart: the names of the folders and of the file, and those of pages of several."""

    text: str
    names: tuple[_Parts, ...]
    page_names: tuple[_Parts, ...]

    def __str__(self) -> str:
        return self.text


def parse_output(text: str) -> Output:
    """Return a template taken apart; ValueError with a sentence for the user for one that cannot name files.

    Where it names no id of the video, that is added to its last name: else names of different videos would meet, and
    what a file is called would depend on what else is there. Where it names nothing of a page, the pages of a video
    of several lie in a folder of the video's name.
    """
    names = [_parsed_name(name) for name in _split_names(text)]
    if not _IDS & _fields_of(*names):
        names[-1] = (*names[-1], (" [", "bvid"), ("]", ""))
    pages = [] if _OF_A_PAGE & _fields_of(*names) else [_parsed_name(PAGE_OUTPUT)]
    for all_names in (names, [*names, *pages]):
        for name in all_names:
            _check_name(name, MAX_NAME_BYTES if name is not all_names[-1] else MAX_NAME_BYTES - _ENDING_BYTES)
    return Output(text, tuple(names), (*names, *pages))


_ENDING_BYTES = len(f" [{2**63}].{ENDINGS[0]}")


def _split_names(text: str) -> list[str]:
    if text.startswith("/") or text.endswith("/") or "//" in text:
        raise ValueError(_("it is a path below the download folder: no / at its begin or end, nor two together"))
    if text.lower().endswith(tuple(f".{ending}" for ending in ENDINGS)):
        raise ValueError(_("the ending ({ending}) is added by itself: leave it out").format(ending=text[-4:]))
    names = text.split("/")
    if len(names) > MAX_FOLDERS:
        raise ValueError(_("it has more than {count} folders").format(count=MAX_FOLDERS - 1))
    return names


def _parsed_name(name: str) -> _Parts:
    parts = []
    try:
        parsed = [*string.Formatter().parse(name)]
    except ValueError:
        raise ValueError(
            _("a brace is open or closed alone in {name}; {{{{ and }}}} are braces").format(name=repr(name))
        ) from None
    for literal, field, form, conversion in parsed:
        if field is not None and field not in OUTPUT_FIELDS:
            raise ValueError(
                _("{field} is no field; there are {fields}").format(field=repr(field), fields=", ".join(OUTPUT_FIELDS))
            )
        if form or conversion:
            raise ValueError(_("{field} takes no format: write {{{field}}}").format(field=field))
        if not literal.isprintable() or set(literal) & set('\\:*?"<>|'):
            raise ValueError(_('it has one of \\ : * ? " < > | or a control character; folders are divided by /'))
        parts.append((literal, field or ""))
    return tuple(parts)


def _fields_of(*names: _Parts) -> set[str]:
    return {field for name in names for _literal, field in name}


def _check_name(name: _Parts, room: int) -> None:
    """Raise ValueError for a name that no file system takes as it stands, or that leaves no room for its texts."""
    sample = "".join(literal + ("x" if field else "") for literal, field in name)
    if not name or safe_name(sample, max(len(sample.encode()) + 1, MIN_NAME_BYTES)) != sample:
        shown = "".join(literal + (f"{{{field}}}" if field else "") for literal, field in name)
        sentence = _(
            "{name} cannot be the name of a file: no dot, space or minus at its begin, none of . or space at its end"
        )
        raise ValueError(sentence.format(name=repr(shown)))
    needed = sum(
        len(literal.encode()) + _WIDEST.get(field, 0 if not field else MIN_NAME_BYTES) for literal, field in name
    )
    if needed > room:
        raise ValueError(_("it leaves no room for titles: a name has {room} bytes").format(room=room))


def show_of(output: Output, video: Video) -> str:
    """Return what the folder of a page's file is the folder of: ``"video"``, ``"season"``, or nothing in particular."""
    names = output.page_names if len(video.pages) > 1 else output.names
    fields = _fields_of(*names[-2:-1])
    if len(video.pages) > 1 and fields & {"bvid", "aid"}:
        return "video"
    return "season" if video.about.season and "season" in fields else ""


# ------------------------------------------------------------------------------------------ paths


def page_path(
    category: str,
    video: Video,
    page: Page,
    with_cid: bool = False,
    extension: str = "mp4",
    output: Output | None = None,
) -> PurePosixPath:
    """Return where a page's file goes, relative to the download folder; ``with_cid`` tells files of one name apart.

    The title is cut at the same place with and without ``with_cid``. Raise ValueError for ids that are none.
    """
    cid = f" [{_number(page.cid)}]"
    ending = f"{cid if with_cid else ''}.{extension}"
    room = MAX_NAME_BYTES - len(f"{cid}.{extension}".encode())
    output = output or USUAL
    names = output.page_names if len(video.pages) > 1 else output.names
    values = _values(category, video, page)
    folders = [_name(name, values, MAX_NAME_BYTES) for name in names[:-1]]
    return PurePosixPath(*folders) / (_name(names[-1], values, room) + ending)


def companion_path(relative: PurePosixPath, suffix: str) -> PurePosixPath:
    """Return the path of a file beside a page's file: the same name with another ending.

    A name that is too long with it is cut before its last ``[…]``, so that the id stays.
    """
    stem = relative.stem
    room = MAX_NAME_BYTES - len(suffix.encode())
    if len(stem.encode()) > room:
        title, mark, identity = stem.rpartition(" [")
        ending = mark + identity if stem.endswith("]") and len(identity) <= MAX_ID_CHARACTERS else ""
        stem = _trimmed(_cut(title if ending else stem, room - len(ending.encode()))) + ending
    return relative.with_name(stem + suffix)


def _values(category: str, video: Video, page: Page) -> dict[str, str]:
    """Return what stands for each field; unknown texts have a word that is the same in all languages."""
    about = video.about
    width = max(2, len(str(max((other.number for other in video.pages), default=1))))
    day = date.fromordinal(_FIRST_DAY + (about.published_at + _BEIJING_SECONDS) // 86400).isoformat()
    return {
        "category": safe_name(category, MAX_CATEGORY_BYTES),
        "title": video.title,
        "page_title": page.title,
        "owner": video.owner or "unknown",
        "season": about.season or video.title,
        "region": about.region or "unknown",
        "bvid": _identity(video),
        "aid": str(_number(video.aid)),
        "cid": str(_number(page.cid)),
        "page": f"{_number(page.number):0{width}d}",
        "pages": str(len(video.pages)),
        "owner_id": str(_number(about.owner_id)),
        "date": day if about.published_at else "undated",
        "year": day[:4] if about.published_at else "0000",
    }


def _name(parts: _Parts, values: Mapping[str, str], max_bytes: int) -> str:
    """Return one name of a path: ids and numbers as they are, texts cut so that all of it fits."""
    name = _joined(parts, values, max_bytes)
    if safe_name(name, max_bytes) != name:  # what is legal alone may not be so together, as in con{page}
        name = safe_name(_joined(parts, values, max_bytes - 1), max_bytes)
    return name


def _joined(parts: _Parts, values: Mapping[str, str], max_bytes: int) -> str:
    fixed = sum(
        len((literal + ("" if field in _TEXTS else values.get(field, ""))).encode()) for literal, field in parts
    )
    texts = [field for _literal, field in parts if field in _TEXTS]
    lengths = [len(safe_name(values[field], MAX_NAME_BYTES).encode()) for field in texts]
    limit = max(_share(lengths, max_bytes - fixed), MIN_NAME_BYTES)
    return "".join(
        literal + (safe_name(values[field], limit) if field in _TEXTS else values.get(field, ""))
        for literal, field in parts
    )


def _share(lengths: list[int], room: int) -> int:
    """Return how many bytes each text may have, so that the short ones stay whole and the long ones are cut alike."""
    for place, length in enumerate(sorted(lengths)):
        left = len(lengths) - place
        if length * left > room:
            return min(room // left, MAX_NAME_BYTES)
        room -= length
    return MAX_NAME_BYTES


def _identity(video: Video) -> str:
    identity = video.bvid or (f"ep{video.episode_id}" if video.episode_id else f"av{video.aid}")
    if not _ID.fullmatch(identity):
        raise ValueError(_("{id} is not the id of a video").format(id=repr(identity[:40])))
    return identity


def _number(number: int) -> int:
    if not 0 <= number < 2**63:
        raise ValueError(_("{id} is not the id of a page").format(id=number if number < 0 else "2⁶³…"))
    return number


# ------------------------------------------------------------------------------------------ names


def safe_name(text: str, max_bytes: int) -> str:
    """Return ``text`` as the name of a file or folder, legal everywhere and at most ``max_bytes`` of UTF-8.

    Characters that Windows refuses become their full-width twins, so that titles stay readable. Idempotent.
    Raise ValueError where ``max_bytes`` is less than 16.
    """
    if max_bytes < MIN_NAME_BYTES:
        raise ValueError(_("a name needs {count} bytes or more").format(count=MIN_NAME_BYTES))
    name = "".join(_visible(character) for character in text[: 16 * max_bytes].translate(_READABLE))
    name = _trimmed(unicodedata.normalize("NFC", " ".join(name.split())))
    if name.startswith("-"):  # else it would look like an option to whoever types *.mp4
        name = "－" + name[1:]
    name = _trimmed(_cut(name, max_bytes))
    if _RESERVED.match(name):
        name = _trimmed(_cut("_" + name, max_bytes))
    return name or "untitled"  # not translated: two workers must agree on it


def _visible(character: str) -> str:
    """Return a character as it may stand in a name: separators as a space, what cannot be seen as nothing.

    The joiners are kept, emoji and several scripts need them; direction marks could show another extension.
    """
    kind = unicodedata.category(character)
    if character.isspace() or kind.startswith("Z"):
        return " "
    if character in _JOINERS:
        return character
    return "" if kind in ("Cc", "Cf", "Cs", "Co") or ord(character) & 0xFFFE == 0xFFFE else character


def _extends(character: str) -> bool:
    """Tell whether a character only changes the one before it: accents, joiners, variation selectors, skin tones."""
    return (
        character in _JOINERS
        or unicodedata.category(character).startswith("M")
        or "\U0001f3fb" <= character <= "\U0001f3ff"
    )


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _trimmed(name: str) -> str:
    """Return the name without dots, spaces and joiners around it, and without accents that have no letter."""
    name = name.rstrip(" ." + _JOINERS)
    start = 0
    while start < len(name) and (name[start] in " ." or _extends(name[start])):
        start += 1
    return name[start:]


def _cut(name: str, max_bytes: int) -> str:
    """Return the start of the name that fits, cut between characters as a reader sees them."""
    data = name.encode()
    if len(data) <= max_bytes:
        return name
    fits = len(data[:max_bytes].decode("utf-8", "ignore"))
    stop = fits
    while stop and (_extends(name[stop]) or name[stop - 1] == _JOINER):
        stop -= 1
    flags = 0
    while flags < stop and _is_regional(name[stop - 1 - flags]):
        flags += 1
    if flags % 2 and _is_regional(name[stop]):
        stop -= 1
    return name[: stop or fits]


# ------------------------------------------------------------------------------------------ folders


def create_folder(base: Path, relative: PurePosixPath) -> Path:
    """Make the folders above ``base/relative`` and return its absolute path, which is proved to be inside ``base``.

    Raise CircumstanceError where a link leads out of ``base``, DiskFull where nothing can be written,
    PermanentError for a path that can never be made.
    """
    if not _is_plain(relative):
        raise PermanentError(_("{path} is not a path inside the download folder").format(path=repr(str(relative))))
    try:
        base.mkdir(parents=True, exist_ok=True)
        folder = root = base.resolve(strict=True)
        for name in relative.parts[:-1]:
            folder = folder / name
            if not _resolved(folder).is_relative_to(root):
                raise CircumstanceError(
                    _("{folder} is a link that leads out of {base}: remove it, or move the download folder").format(
                        folder=folder, base=root
                    ),
                    code="folder",
                )
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise _failure(error, base / relative) from error
    return folder / relative.name


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except RuntimeError as error:  # Python before 3.13 says so of a link that leads to itself
        raise OSError(errno.ELOOP, str(error), str(folder)) from error


def _is_plain(relative: PurePosixPath) -> bool:
    return bool(relative.parts) and all(
        part not in (".", "..")
        and len(part.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        and not set(part) & set("/\\:\0")
        for part in relative.parts
    )


def _failure(error: OSError, path: Path) -> CircumstanceError | PermanentError:
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
        return PermanentError(
            _("the file system does not take the name {path}: {problem}").format(path=path, problem=error.strerror),
            code="name",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
        return CircumstanceError(
            _("{path} must be a folder, but is something else").format(path=error.filename or path), code="folder"
        )
    return DiskFull(_("cannot make the folder {path}: {problem}").format(path=path.parent, problem=error.strerror))


USUAL = parse_output(DEFAULT_OUTPUT)
