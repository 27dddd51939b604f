"""What the site's answers about extras have in common: bounds, codes, and texts that must be clean."""

from __future__ import annotations

import json
import re
from typing import Any

from errors import SiteError
from i18n import _
from parse_ import risk_control

Object = dict[str, Any]

_SLOW_DOWN = frozenset({-352, -401, -412, -509, -799})
_LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
_NOT_TEXT = re.compile("[^\t\n\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Control characters, and what XML 1.0 has no place for, not even escaped."""


def envelope(text: str) -> Object:
    """Return the ``data`` of an API answer; raise the error that its code means."""
    answer = json.loads(text)
    code, data = answer["code"], answer.get("data")
    if code in _SLOW_DOWN or (isinstance(data, dict) and data.get("v_voucher")):
        raise risk_control(code or "v_voucher")
    if code != 0:
        raise SiteError(_("the site refused: {message}").format(message=clean_text(str(answer.get("message")))[:100]))
    return data if isinstance(data, dict) else {}


def clean_text(text: str) -> str:
    """Return a text that can stand in XML, and everywhere else: no control characters but line ends and tabs."""
    return _NOT_TEXT.sub("", _LINE_ENDS.sub("\n", text))
