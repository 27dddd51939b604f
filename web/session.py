"""A browser's session: a signed cookie, so that several servers with one token agree without telling each other."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property

SESSION_SECONDS = 30 * 86400
CHANGE_SECONDS = 20
"""As long as a server may show a page that was made before a change."""


class Sessions:
    """Makes and knows the cookies of those who have told the token.

    The key is derived from the token, slowly, so that a stolen cookie is no short way to it; with another token all
    sessions end. Nothing is kept: what was signed holds until its time is over. Who has signed in with a token that was
    made has its id in the cookie, and the guard looks whether that is still there: to revoke it ends its sessions.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._token = token.encode()
        self._clock = clock

    @cached_property
    def _key(self) -> bytes:
        return hashlib.scrypt(self._token, salt=b"session of the dashboard", n=2**14, r=8, p=1, dklen=32)

    @cached_property
    def cookie(self) -> str:
        """Name the cookie by the key: servers on other ports of this host, with other tokens, share one cookie jar."""
        return f"bili_{self._sign('name')[:8]}"

    def issue(self, token_id: str = "") -> str:
        """Return the value of a new session's cookie."""
        content = f"{round(self._clock()) + SESSION_SECONDS}.{secrets.token_hex(8)}"
        if token_id:
            content += f".{token_id}"
        return f"{content}.{self._sign(content)}"

    def holds(self, value: str) -> bool:
        """Tell whether a cookie is one of ours and its time is not over."""
        return self.holder(value) is not None

    def holder(self, value: str) -> str | None:
        """Return with which token a cookie was had, by its id, empty for ``BILI_TOKEN``; None if it is none of ours."""
        found = re.fullmatch(r"([0-9]{1,12})\.[0-9a-f]{16}(?:\.([0-9a-f]{16}))?\.[0-9a-f]{64}", value)
        if not self._token or found is None:
            return None
        content, _dot, signature = value.rpartition(".")
        is_ours = hmac.compare_digest(signature, self._sign(content)) and int(found[1]) > self._clock()
        return found[2] or "" if is_ours else None

    def mark(self, said: bytes) -> str:
        """Return what stands for something wrong that was said: all servers with this token have the same."""
        return hmac.digest(self._key, b"wrong:" + said, "sha256").hex()[:32]

    def _sign(self, content: str) -> str:
        return hmac.digest(self._key, content.encode(), "sha256").hex()


class Changes:
    """What a browser has changed just now, told to all servers by its own cookie: what they keep is old for it.

    The server that took the change knows so itself. Another one, behind the same proxy, hears of it with the browser's
    next request, and makes its pages anew once.
    """

    COOKIE = "bili_changed"
    MAX_KNOWN = 256

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()

    def note(self) -> str:
        """Return the cookie's value for a change that was made here."""
        identity = secrets.token_hex(8)
        self.is_news(identity)
        return identity

    def is_news(self, identity: str) -> bool:
        """Tell whether a change was made elsewhere and is heard of for the first time."""
        if not re.fullmatch("[0-9a-f]{16}", identity):
            return False
        with self._lock:
            is_known = identity in self._known
            self._known[identity] = None
            while len(self._known) > self.MAX_KNOWN:
                self._known.popitem(last=False)
        return not is_known
