"""How a client knows that the queue server is the one that is meant, before it sends a token.

By the system's authorities, by a CA file of the environment (``config.tls_context``), or by a pin: the SHA-256 of the
server's certificate in DER. A pin takes the place of authorities and names, and is compared with each connection.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from config import Settings, is_loopback
from i18n import _

LOOK_SECONDS = 15.0


class Unproven(ConnectionError):
    """A server could not be shown to be the one that is pinned; the sentence is for people."""


class OtherCertificate(aiohttp.ServerFingerprintMismatch):
    """The server shows a certificate that is not pinned; nothing was sent to it."""

    def __str__(self) -> str:
        return _(
            "{host}:{port} shows another certificate than the pinned one, so nothing was sent to it: somebody is in "
            "between, or the server has a new certificate; its pin is then to be had from whoever runs it"
        ).format(host=self.host, port=self.port)


class Pinned(aiohttp.Fingerprint):
    """Lets only servers be asked whose certificate has one of these pins; ``certificate`` is what was shown last."""

    def __init__(self, pins: Sequence[str]) -> None:
        self._pins = [bytes.fromhex(pin) for pin in pins]
        super().__init__(self._pins[0])
        self.certificate = b""

    def check(self, transport: asyncio.Transport) -> None:
        """Raise where the certificate is another one; aiohttp asks before it sends anything."""
        handshake = transport.get_extra_info("ssl_object")
        certificate = (handshake.getpeercert(binary_form=True) if handshake is not None else None) or b""
        digest = sha256(certificate).digest()
        if not any(hmac.compare_digest(digest, pin) for pin in self._pins):
            host, port = (transport.get_extra_info("peername") or ("?", 0))[:2]
            # no farewell is waited for; after aiohttp has looked at it, which needs it whole
            asyncio.get_running_loop().call_soon(transport.abort)
            raise OtherCertificate(self._pins[0], digest, host, port)
        self.certificate = certificate


def pinned_certificate(place: str, pins: Sequence[str], trust_env: bool) -> bytes:
    """Return the certificate of the server at an https address, in DER; it has one of these pins.

    Raise Unproven where it cannot be had. Whoever knows the certificate itself can have OpenSSL trust that one alone.
    """
    return asyncio.run(_look(place, pins, trust_env))


async def _look(place: str, pins: Sequence[str], trust_env: bool) -> bytes:
    if urlsplit(place).scheme != "https":
        raise Unproven(_("{place} is not https, so it has no certificate to compare").format(place=place))
    pinned = Pinned(pins)
    timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
    connector = aiohttp.TCPConnector(ssl=pinned)
    async with aiohttp.ClientSession(connector=connector, trust_env=trust_env, timeout=timeout) as session:
        try:
            async with session.head(f"{place}/livez", allow_redirects=False):
                pass
        except OtherCertificate as error:
            raise Unproven(str(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            if not pinned.certificate:  # what it answers does not matter
                raise Unproven(_("{url} cannot be reached").format(url=place)) from error
    return pinned.certificate


def trusting_only(certificate: bytes) -> ssl.SSLContext:
    """Return a context that verifies, and trusts this certificate and no authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be one that some authority has signed
    context.load_verify_locations(cadata=certificate)
    return context


def problem_with(error: Exception) -> str:
    """Return in words what goes wrong with a connection to the server, and what to do where that is known."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        return _(
            "its certificate is not trusted ({reason}): name the file of its authority in SSL_CERT_FILE, or the pin of "
            "the certificate in BILI_SERVER_PIN"
        ).format(reason=reason)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return _("it does not speak TLS as expected ({problem}); is it http:// there?").format(problem=_reason(error))
    return str(error) or "timeout"


def _reason(error: Any) -> str:
    return str(getattr(error.os_error, "reason", "") or error.os_error)


def clear_text_note(settings: Settings) -> str:
    """Return a warning where the token goes over a network without TLS; else an empty text."""
    named = [url for url in settings.server_urls if url.startswith("http:")]
    exposed = [
        urlsplit(url).netloc.rpartition("@")[2] for url in named if not is_loopback(urlsplit(url).hostname or "")
    ]
    if not settings.token or not exposed:
        return ""
    sentence = _(
        "The token goes to {places} in clear text: whoever is on the way can read it and use it. With TLS nobody can: "
        "web_server.py --tls-self-made there, and https:// with BILI_SERVER_PIN here"
    )
    return sentence.format(places=", ".join(exposed))
