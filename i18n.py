"""English and Chinese: ``_("…")`` returns a sentence in the user's language.

The catalogue is ``locales/<language>/LC_MESSAGES/bili.po``, compiled to ``.mo`` beside it (`make messages`).
The language comes from LANGUAGE, LC_ALL, LC_MESSAGES or LANG as gettext reads them, on Windows from the
user interface; English is the default.
"""

from __future__ import annotations

import gettext
import io
import os
import re
import sys
from pathlib import Path

LOCALES = Path(__file__).resolve().parent / "locales"
DOMAIN = "bili"


def languages(environ: dict[str, str] | os._Environ[str] = os.environ) -> list[str]:
    """Return the user's languages, the preferred one first, as gettext names them."""
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environ.get(name):
            return value.split(":")
    if sys.platform == "win32":
        import ctypes
        import locale

        return [locale.windows_locale.get(ctypes.windll.kernel32.GetUserDefaultUILanguage(), "en")]
    return ["en"]


def catalogue(wanted: list[str]) -> gettext.NullTranslations:
    """Return the translations for the first of ``wanted`` that is known; any Chinese is served by zh_CN."""
    for name in wanted:
        match re.split("[-_.@]", name.lower())[0]:
            case "zh":
                return gettext.translation(DOMAIN, LOCALES, ["zh_CN"], fallback=True)
            case "en" | "c" | "posix":
                break
    return gettext.NullTranslations()


_user = catalogue(languages())
if isinstance(_user, gettext.GNUTranslations):
    # argparse looks up its own words, such as "options", in the default domain.
    gettext.bindtextdomain(DOMAIN, LOCALES)
    gettext.textdomain(DOMAIN)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show Chinese must end no script


def _(sentence: str) -> str:
    """Return ``sentence`` in the user's language; placeholders stay as they are."""
    return _user.gettext(sentence) if sentence else ""


translated = _
"""The same for a sentence that comes from elsewhere, a server or a worker, and is written out there."""
