"""What is sent of one page, under which names, and when it counts as delivered. Blocking: it runs in a thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from create_folder import MAX_NAME_BYTES, companion_path, safe_name
from delivery.reins import Rein
from delivery.sources import measure
from delivery.targets import Target
from errors import PermanentError
from i18n import _
from model import Beside
from places import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cargo:
    """A finished page on this machine: its file below the folder, what lies beside it, and its cid."""

    folder: Path
    path: PurePosixPath
    cid: int
    beside: Sequence[Beside] = ()


def upload(target: Target, place: Place, cargo: Cargo, rein: Rein) -> PurePosixPath:
    """Bring a page and what lies beside it to a place; return where the page's file is below it.

    What lies beside comes first: where the video stands, all of it does. Raise PermanentError where other files have
    both names that the page could get.
    """
    source = measure(cargo.folder / cargo.path, rein)
    names = dict.fromkeys([cargo.path, with_cid(cargo.path, cargo.cid)])
    for name in names:
        if target.find(name) is not None:
            if target.holds(name, source, rein):
                upload_beside(target, place, cargo, name, rein)
                return name
            log.info(_("%s is another file: it stays as it is"), place.url(name))
            continue
        upload_beside(target, place, cargo, name, rein)
        try:
            target.put(name, source, rein)
        except FileExistsError:
            if target.holds(name, source, rein):  # another worker was quicker
                return name
            continue
        return name
    sentence = _("{url} is there, but it is another file: move it away, then try again")
    raise PermanentError(sentence.format(url=place.url(list(names)[-1])), "name-taken")


def upload_beside(target: Target, place: Place, cargo: Cargo, name: PurePosixPath, rein: Rein) -> int:
    """Bring what lies beside a page to where its file is, or is to be; return how many files were sent.

    One that stands there already is left, as it is on this machine.
    """
    sent = 0
    for one in cargo.beside:
        wanted = companion_path(name, one.suffix) if one.suffix else PurePosixPath(one.path)
        source = measure(cargo.folder / one.path, rein)
        try:
            if (there := target.find(wanted)) is None:
                target.put(wanted, source, rein)
                sent += 1
            elif there != source.size_bytes:
                raise FileExistsError
        except FileExistsError:
            log.info(_("%s is another file: it stays as it is"), place.url(wanted))
    return sent


def with_cid(relative: PurePosixPath, cid: int) -> PurePosixPath:
    """Return another name for a page's file, as a local one would get it where two have the same title."""
    mark = f" [{cid}]"
    room = MAX_NAME_BYTES - len(f"{mark}{relative.suffix}".encode())
    stem = relative.stem.removesuffix(mark)
    return relative.with_name(f"{safe_name(stem, room)}{mark}{relative.suffix}")
