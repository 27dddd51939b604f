"""Where a page's file goes: names that every file system takes, and folders that never leave the download folder.

A name is at most 255 bytes of UTF-8 (Linux; the 255 UTF-16 units of Windows and macOS are never less), has no
character that Windows refuses, and keeps the ids whatever the title is. A whole path over 260 characters still
needs long paths to be enabled in Windows; nothing here prevents one.
"""

from __future__ import annotations

import errno
import re
import unicodedata
from pathlib import Path, PurePosixPath

from errors import CircumstanceError, DiskFull, PermanentError
from i18n import _
from model import Page, Video

MAX_NAME_BYTES = 255
MAX_CATEGORY_BYTES = 120
MIN_NAME_BYTES = 16

_READABLE = str.maketrans('/\\:*?"<>|', "／＼：＊？＂＜＞｜")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
_ID = re.compile(r"[0-9A-Za-z]{1,32}", re.ASCII)
_JOINER = "\u200d"
_JOINERS = "\u200c" + _JOINER


def page_path(category: str, video: Video, page: Page, with_cid: bool = False, extension: str = "mp4") -> PurePosixPath:
    """Return where a page's file goes, relative to the download folder; ``with_cid`` tells files of one name apart.

    The title is cut at the same place with and without ``with_cid``. Raise ValueError for ids that are none.
    """
    identity = _identity(video)
    cid = f" [{_number(page.cid)}]"
    ending = f"{cid if with_cid else ''}.{extension}"
    room = MAX_NAME_BYTES - len(f"{cid}.{extension}".encode())
    folder = PurePosixPath(safe_name(category, MAX_CATEGORY_BYTES))
    suffix = f" [{identity}]"
    if len(video.pages) <= 1:
        return folder / f"{safe_name(video.title, room - len(suffix))}{suffix}{ending}"
    width = max(2, len(str(max(other.number for other in video.pages))))
    number = f"P{_number(page.number):0{width}d}"
    title = safe_name(video.title, MAX_NAME_BYTES - len(suffix))
    return folder / f"{title}{suffix}" / f"{number} {safe_name(page.title, room - len(number) - 1)}{ending}"


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
