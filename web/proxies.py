"""Who asks, where a proxy stands between: its word counts only where the settings trust it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

KNOWN_ADDRESSES = 1024
"""What is known of them is kept: the same few ask all the time."""


class TrustedProxies:
    """Puts the client's own address and scheme in the place of the proxy's, before anything else looks at a request.

    X-Forwarded-For is read from its end, because each proxy adds whom it was asked by: the first address there that is
    no trusted proxy is the client's, and what stands before it anybody may have written.
    """

    def __init__(self, application: Application, trusted: Sequence[str]) -> None:
        self._application = application
        self._networks = [ipaddress.ip_network(network) for network in trusted]
        self._trusts = lru_cache(KNOWN_ADDRESSES)(self._is_within)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request with the application."""
        peer = _address(environ.get("REMOTE_ADDR", ""))
        if peer is not None and self._trusts(peer):
            environ["REMOTE_ADDR"] = str(self._client(peer, environ.get("HTTP_X_FORWARDED_FOR", "")))
            scheme = environ.get("HTTP_X_FORWARDED_PROTO", "").rpartition(",")[2].strip().lower()
            if scheme in ("http", "https"):
                environ["wsgi.url_scheme"] = scheme
        return self._application(environ, start_response)

    def _client(self, peer: Address, forwarded_for: str) -> Address:
        for text in reversed(forwarded_for.split(",")):
            named = _address(text.strip())
            if named is None:
                break
            peer = named
            if not self._trusts(named):
                break
        return peer

    def _is_within(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


@lru_cache(KNOWN_ADDRESSES)
def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
