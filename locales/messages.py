"""Bring the Chinese catalogue up to date with the sentences in the code: ``make messages``.

Sentences that are new come into bili.po untranslated, those that are gone leave it, all others keep their
translation; bili.mo is compiled beside it. Neither has line numbers or dates, so that a difference between two
versions is a difference of words.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
PO = ROOT / "locales" / "zh_CN" / "LC_MESSAGES" / "bili.po"
MO = PO.with_suffix(".mo")
SOURCES = (
    ("*.py", "python"),
    ("demo/*.py", "python"),
    ("delivery/*.py", "python"),
    ("extras/*.py", "python"),
    ("merging/*.py", "python"),
    ("sources/*.py", "python"),
    ("store/*.py", "python"),
    ("transfer/*.py", "python"),
    ("web/*.py", "python"),
    ("templates/*.html", "jinja2.ext:babel_extract"),
)
KEYWORDS = {"_": None}
ARGPARSE = (
    "positional arguments",
    "options",
    "show this help message and exit",
    "%(prog)s: error: %(message)s\n",
    "argument %(argument_name)s: %(message)s",
    "unrecognized arguments: %s",
    "the following arguments are required: %s",
    "expected one argument",
    "expected at least one argument",
    "ignored explicit argument %r",
    "ambiguous option: %(option)s could match %(matches)s",
    "invalid %(type)s value: %(value)r",
)
"""What argparse itself may say to a user; not "usage: ", whose letters parse_intermixed_args() counts."""


class Sentences(Catalog):
    """A catalogue whose head says only what gettext needs."""

    @property
    def mime_headers(self) -> list[tuple[str, str]]:
        """Return the fields of the head; Babel's own has dates."""
        return [
            ("Language", "zh_CN"),
            ("MIME-Version", "1.0"),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Transfer-Encoding", "8bit"),
            ("Plural-Forms", self.plural_forms),
        ]


def extracted() -> Iterator[tuple[str, str, int]]:
    """Yield each sentence of the code with the file, relative to the project, and the line where it stands."""
    for pattern, method in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            for line, sentence, _comments, _context in extract_from_file(method, str(path), KEYWORDS):
                assert isinstance(sentence, str), f"{path.name}:{line}: a sentence has no plural form here"
                yield sentence, path.relative_to(ROOT).as_posix(), line
    yield from ((sentence, "argparse", line) for line, sentence in enumerate(ARGPARSE, 1))


def read() -> Catalog:
    """Return the catalogue as it is on disk."""
    if not PO.exists():
        return Catalog(locale="zh_CN")
    with PO.open("rb") as file:
        return read_po(file, locale="zh_CN")


def updated(before: Catalog) -> Sentences:
    """Return the catalogue of what the code says now, with the translations of the one before."""
    after = Sentences(locale="zh_CN", header_comment=before.header_comment, fuzzy=False)
    known = {message.id: message.string for message in before}
    for sentence, name, line in extracted():
        after.add(sentence, known.get(sentence, ""), locations=[(name, line)])
    return after


def compiled(catalogue: Catalog) -> bytes:
    """Return the content of bili.mo."""
    content = BytesIO()
    write_mo(content, catalogue)
    return content.getvalue()


def main() -> None:
    """Update and compile the catalogue; say which sentences lack their translation."""
    catalogue = updated(read())
    with PO.open("wb") as file:
        write_po(file, catalogue, width=0, sort_by_file=True, include_lineno=False)
    MO.write_bytes(compiled(catalogue))
    missing = [message.id for message in catalogue if message.id and not message.string]
    print(f"{len(catalogue)} sentences, {len(missing)} without a translation")
    for sentence in missing:
        print(f"  {sentence}")
    if missing:
        print(f"Translate them in {PO.relative_to(ROOT)}, then run this once more.")


if __name__ == "__main__":
    main()
