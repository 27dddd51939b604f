"""The options of add_url.py: their grammar, and which of them go together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from config import CATEGORIES, Category, category_problem
from errors import UsageError
from i18n import _
from sources import parse_date, parse_pages

EXAMPLES = _("""\
examples:
  python add_url.py BV1xx411c7mD av170001 ep123456
  python add_url.py "https://www.bilibili.com/video/BV1xx411c7mD?p=3" https://b23.tv/abc123
  python add_url.py --file list.txt --category music
  grep -o "BV1[0-9A-Za-z]*" notes.md | python add_url.py --file -
  python add_url.py rank:1010 --limit 20 --watch 3600
  python add_url.py mid:137137 --since 2024-12-31 --match review
  python add_url.py "https://space.bilibili.com/137137/favlist?fid=1234567" season:4259 ss28747
  python add_url.py mid:137137 --watch 3600
  python add_url.py --unwatch mid:137137
  python add_url.py BV1xx411c7mD --pages 1-3,5,-1
  python add_url.py --sources
  python add_url.py --retry-failed --match timeout
  python add_url.py --find BV1xx411c7mD

In a list each line is one target: its first word, or, where that is none, the first address in the line, so
that a text shared by the app is fine; the rest of the line is ignored. Blank lines and lines that begin with #
are skipped. An address with ?p=3 means that page only; without it, all pages.

The last line printed is "added 3, known 2, rejected 1". Exit status: 0 all queued or known; 1 something was
rejected (named on stderr; the rest is queued); 2 wrong usage or settings, or no queue; 130 interrupted.""")


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="add_url.py",
        description=_("Put videos into the download queue."),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help=_("a BV, av or ep id, an address of a video, an episode or a list of videos, a b23.tv link, or a"
               " source: mid:, fav:, favs:, lists:, season:, series:, ss, md, cheese:, rank:, search:, popular, weekly,"
               " precious, later; with no target at all, the ranking of every configured category"),
    )  # fmt: skip
    parser.add_argument(
        "--file",
        action="append",
        metavar="F",
        help=_("a list of targets, one a line; - is standard input; may be given several times"),
    )
    parser.add_argument("--category", metavar="NAME", type=_category, help=_("the folder to download into"))
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_whole_number(1, 100_000),
        help=_("how many of each ranking (10) or source (all)"),
    )
    parser.add_argument(
        "--since", metavar="DATE", type=parse_date, default=0, help=_("of sources: what was published since 2024-12-31")
    )
    parser.add_argument("--oldest-first", action="store_true", help=_("of sources: the oldest first"))
    parser.add_argument(
        "--pages", metavar="P", type=parse_pages, default=(), help=_("of videos: these pages only, as in 1-3,5,-1")
    )
    parser.add_argument("--refresh", action="store_true", help=_("ask known videos again for new pages"))
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_whole_number(10, 31 * 86400),
        help=_("do it all again and again, and have the queue remember it; 10 or more"),
    )
    parser.add_argument("--retry-failed", action="store_true", help=_("queue again what failed for good"))
    parser.add_argument(
        "--match",
        metavar="TEXT",
        default="",
        help=_("of sources only what has TEXT in its title; of the failed, in title, reason, code or id"),
    )
    parser.add_argument("--unwatch", metavar="TARGET", action="append", help=_("watch a source or a video no more"))
    parser.add_argument(
        "--sources", action="store_true", help=_("list the sources and watched videos, and what was found")
    )
    parser.add_argument(
        "--find", metavar="TEXT", default="", help=_("say where files are, by an id, a cid or the beginning of a title")
    )
    parser.add_argument("--json", action="store_true", help=_("with --sources and --find: as JSON"))
    parser.add_argument(
        "--export",
        metavar="F",
        help=_("write the whole queue into a file of JSON lines, packed if it ends in .gz; - is stdout"),
    )
    parser.add_argument(
        "--import", dest="import_", metavar="F", help=_("bring what --export has written into the queue; - is stdin")
    )
    parser.add_argument(
        "--adopt",
        metavar="FOLDER",
        help=_("take the files in a folder for finished pages, as far as they say which ones"),
    )
    parser.add_argument("--dry-run", action="store_true", help=_("with --adopt: say it, and change nothing"))
    parser.add_argument(
        "--offline", action="store_true", help=_("with --adopt: ask the site for nothing that the files do not say")
    )
    return parser


def _category(text: str) -> str:
    if wrong := category_problem(text):
        raise argparse.ArgumentTypeError(wrong)
    return text


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            sentence = _("it must be a whole number from {low} to {high}")
            raise argparse.ArgumentTypeError(sentence.format(low=low, high=high))
        return int(text)

    return parse


def check_lists(options: argparse.Namespace, named: bool) -> None:
    """Raise UsageError for options that only list something, and stand beside others."""
    if options.find and (named or options.watch or options.retry_failed or options.sources or options.unwatch):
        raise UsageError(_("--find stands alone, but for --json"))
    if options.json and not (options.sources or options.find):
        raise UsageError(_("--json goes with --sources and --find only"))


def check_options(options: argparse.Namespace) -> None:
    """Raise UsageError for options that make no sense together, and for files that cannot be read."""
    named = bool(options.targets or options.file)
    if _of_the_whole(options, named):
        return
    if options.retry_failed and (named or options.watch):
        raise UsageError(_("--retry-failed takes no targets, no --file and no --watch"))
    if (options.sources or options.unwatch) and (named or options.watch or options.retry_failed):
        raise UsageError(_("--sources and --unwatch take no targets, no --file, no --watch and no --retry-failed"))
    check_lists(options, named)
    if (options.match or options.since or options.oldest_first) and not (named or options.retry_failed):
        raise UsageError(_("--match, --since and --oldest-first want a source to choose from"))
    for name in options.file or ():
        _check_file(name, options.watch)
    if not (named or options.retry_failed or options.sources or options.unwatch or options.find):
        ranked_categories(options.category)


def _of_the_whole(options: argparse.Namespace, named: bool) -> bool:
    """Tell whether the whole queue is exported or imported, or a folder adopted; UsageError for more than that."""
    wanted = sum(map(bool, (options.export, options.import_, options.adopt)))
    others = named or options.watch or options.retry_failed or options.sources or options.unwatch
    if wanted and (others or wanted > 1):
        raise UsageError(_("--export, --import and --adopt stand alone"))
    if (options.dry_run or options.offline) and not options.adopt:
        raise UsageError(_("--dry-run and --offline go with --adopt only"))
    return bool(wanted)


def _check_file(name: str, watched: int | None) -> None:
    try:
        if is_regular := name != "-" and not Path(name).is_fifo():  # opening a pipe would take from it
            Path(name).open("rb").close()
    except OSError as error:
        raise UsageError(_("{file} cannot be read: {problem}").format(file=name, problem=error.strerror)) from error
    if watched and not is_regular:
        raise UsageError(_("a pipe or standard input can be read only once: give --watch a file"))


def ranked_categories(name: str) -> Sequence[Category]:
    """Return the configured categories, or only that of this name; UsageError if none has it."""
    chosen = [category for category in CATEGORIES if name in ("", category.name)]
    if not chosen:
        names = ", ".join(category.name for category in CATEGORIES)
        raise UsageError(
            _("nothing was named, and {name} has no ranking; these have one: {names}").format(name=name, names=names)
        )
    return chosen
