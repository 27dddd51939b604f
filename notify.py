"""The door to the package apprise, which knows how to reach people: e-mail, Telegram, ntfy, WeCom, and a hundred more.

The addresses are secrets: they have keys and passwords in them, and are never shown or logged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from errors import UsageError
from i18n import _

SERVICE_SECONDS = 20
RETRIES, RETRY_SECONDS = 2, 3.0


class Notifier:
    """Sends a text to each of some addresses; slow, for a thread of its own."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Raise UsageError naming an address that is of no service that is known."""
        # Loaded here: it is large, and without a setting nobody needs it.
        import apprise

        quiet = logging.getLogger("apprise")
        quiet.propagate = False
        quiet.addHandler(logging.NullHandler())
        self._apprise: Any = apprise
        asset = apprise.AppriseAsset(
            storage_mode=apprise.PersistentStoreMode.MEMORY,
            service_timeout=SERVICE_SECONDS,
            allow_templates=False,
            default_service_retry=RETRIES,
            default_service_wait=RETRY_SECONDS,
            async_mode=False,
            app_id="bili",
            app_desc=_("Bilibili downloads"),
            app_url="",
            image_url_mask="",
            image_url_logo="",
        )
        self._services = [(url, self._service(number, url, asset)) for number, url in enumerate(urls, 1)]

    def _service(self, number: int, url: str, asset: Any) -> Any:
        service = self._apprise.Apprise.instantiate(url, asset=asset)
        if service is None:
            raise UsageError(
                _(
                    "BILI_NOTIFY: address {number} ({scheme}://…) cannot be used. Of what form it must be is in the"
                    " documentation of apprise, for each service"
                ).format(number=number, scheme=url.partition("://")[0])
            )
        sender = self._apprise.Apprise(asset=asset)
        sender.add(service)
        return sender

    def send(self, text: str, is_good: bool = False) -> list[str]:
        """Send a text to all; return a sentence for each address that it did not reach."""
        kinds = self._apprise.NotifyType
        problems = []
        for number, (url, sender) in enumerate(self._services, 1):
            with self._apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as captured:
                arrived = sender.notify(
                    body=text,
                    title=_("Bilibili downloads"),
                    notify_type=kinds.INFO if is_good else kinds.WARNING,
                    body_format=self._apprise.NotifyFormat.TEXT,
                )
                said = captured.getvalue().strip().splitlines()
            if not arrived:
                reason = without_secrets(said[-1], url) if said else _("it does not say why")
                sentence = _("Notices do not arrive at address {number} of BILI_NOTIFY ({scheme}): {reason}")
                problems.append(sentence.format(number=number, scheme=url.partition("://")[0], reason=reason))
        return problems


def without_secrets(text: str, url: str) -> str:
    """Return a text in which nothing is left of an address but its scheme."""
    _scheme, _mark, rest = url.partition("://")
    pieces = {*re.split(r"\W+", rest), *re.split(r"\W+", unquote(rest)), *re.split(r"[/?&=:@]+", rest)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) > 2:
            text = text.replace(piece, "…")
    return text[:300]
