"""What the site's answers about extras have in common: objects, and texts that must be clean."""

from __future__ import annotations

import re
from typing import Any

Object = dict[str, Any]

_LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
_NOT_TEXT = re.compile("[^\t\n\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Control characters, and what XML 1.0 has no place for, not even escaped."""


def clean_text(text: str) -> str:
    """Return a text that can stand in XML, and everywhere else: no control characters but line ends and tabs."""
    return _NOT_TEXT.sub("", _LINE_ENDS.sub("\n", text))
