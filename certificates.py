"""The certificate that the queue server shows: files of the user, or one that it has made for itself.

What is replaced on disk is taken up without a restart. A certificate that no authority has signed is known by its pin,
the SHA-256 of all of it in DER, which workers compare (``server_trust.py``).
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from filelock import FileLock

from errors import UsageError
from i18n import _
from private_file import write_private

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks at the files."""
VALID_DAYS = 3650
"""Of one that is self-made: nobody renews it, and whoever pins it trusts the key and not the date."""
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"

_Looks = tuple[tuple[int, int, int] | None, ...]


class Certificate:
    """A certificate with its key, from files; ``look_again`` takes up what has taken their place.

    ``context`` stays the same. Each handshake is handed over to the newest pair that was sound as a whole, so that a
    certificate is never shown with another one's key.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (certificate, key)
        self._taken = self._looks()
        self._newest = self.context = _context(certificate, key)
        self.pin = pin_of(certificate)
        """The SHA-256 of the certificate, as 64 hexadecimal digits."""
        self.context.sni_callback = self._hand_over
        self._refused: _Looks = ()
        self._refusals = 0

    def look_again(self) -> None:
        """Take up files that have changed; those that do not fit together are left, and said at the second look.

        Whatever renews a certificate writes two files, one after the other.
        """
        looks = self._looks()
        if looks == self._taken:
            return
        try:
            self._newest = _context(*self._paths)
        except UsageError as error:
            self._refusals = self._refusals + 1 if looks == self._refused else 1
            self._refused = looks
            if self._refusals == 2:
                log.warning(_("The certificate from before stays in use: %s"), error)
        else:
            self._taken, self.pin = looks, pin_of(self._paths[0])
            log.info(_("The certificate in %s is taken up, pin %s"), self._paths[0], self.pin)

    def keep_looking(self, ended: threading.Event, period_seconds: float = LOOK_SECONDS) -> None:
        """Look again and again until ``ended``."""
        while not ended.wait(period_seconds):
            self.look_again()

    def _looks(self) -> _Looks:
        """Return what tells whether the files are still the same; taken before they are read."""
        found: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)

    def _hand_over(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._newest


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for a server, TLS 1.2 or later; raise UsageError that names the file and what to do."""
    _demand(certificate, "--tls-cert", _BEGIN, _("certificate"))
    _demand(key, "--tls-key", "PRIVATE KEY-----", _("private key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def no_password() -> NoReturn:
        sentence = _("--tls-key {path}: the key has a passphrase; write it without one: {command}")
        raise UsageError(sentence.format(path=key, command=f"openssl pkey -in {key} -out {key}.plain"))

    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            sentence = _(
                "--tls-key {key} does not belong to the first certificate in {certificate}: name the key that it was "
                "made with, and let the server's own certificate stand before those of its authorities"
            )
        else:
            sentence = _("--tls-cert {certificate} with --tls-key {key} cannot be used: {problem}")
        problem = error.reason or str(error)
        raise UsageError(sentence.format(certificate=certificate, key=key, problem=problem)) from None
    except OSError as error:  # gone since it was read
        raise UsageError(f"--tls-cert {certificate}: {error.strerror}") from None
    return context


def _demand(path: Path, option: str, mark: str, what: str) -> None:
    try:
        text = path.read_text("latin-1")
    except OSError as error:
        sentence = _("{option} {path} cannot be read ({problem}): name a file that the user of the server may read")
        raise UsageError(sentence.format(option=option, path=path, problem=error.strerror)) from None
    if mark not in text:
        sentence = _(
            "{option} {path} has no {what} in PEM, which begins with -----BEGIN: name another file, or convert it"
        )
        raise UsageError(sentence.format(option=option, path=path, what=what))


def pin_of(path: Path) -> str:
    """Return the SHA-256 of the first certificate in a file, in DER, as 64 hexadecimal digits."""
    text = path.read_text("latin-1")
    start = text.index(_BEGIN)
    return sha256(ssl.PEM_cert_to_DER_cert(text[start : text.index(_END, start) + len(_END)])).hexdigest()


def notes(certificate: Path, key: Path, unix_seconds: float) -> list[str]:
    """Return what is not good about files that can be used: their dates, and who may read the key."""
    from cryptography import x509

    found = []
    with suppress(ValueError):  # an odd one, which OpenSSL has taken all the same
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        day = f"{read.not_valid_after_utc:%Y-%m-%d}"
        if read.not_valid_after_utc.timestamp() < unix_seconds:
            found.append(
                _("The certificate in {path} has expired on {day}: renew it").format(path=certificate, day=day)
            )
        if read.not_valid_before_utc.timestamp() > unix_seconds:
            found.append(_("The certificate in {path} is not valid yet: is the clock right?").format(path=certificate))
    if os.name == "posix" and key.stat().st_mode & 0o004:
        sentence = _("Every user of this machine may read the key {path}: {command}")
        found.append(sentence.format(path=key, command=f"chmod 600 {key}"))
    return found


# ------------------------------------------------------------------------------------------ one that is self-made


def self_made_path(data_dir: Path) -> Path:
    """Return the file in which a server keeps the certificate that it has made for itself, with its key."""
    return data_dir / "server-certificate.pem"


def self_made_pin(data_dir: Path) -> str:
    """Return the pin of the certificate that servers of this data folder have made; empty where there is none."""
    with suppress(OSError, ValueError):
        return pin_of(self_made_path(data_dir))
    return ""


def self_made(data_dir: Path, host: str) -> Path:
    """Return a file with a certificate and its key, made now where there is none: it stays, or the pins would not."""
    path = self_made_path(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write_private(path, _make(("localhost", "127.0.0.1", "::1", socket.gethostname(), host), time.time()))
    except OSError as error:
        sentence = _("{folder} cannot be written ({problem}): make it writable, or set {setting} to another folder")
        raise UsageError(sentence.format(folder=data_dir, problem=error.strerror, setting="BILI_DATA_DIR")) from None
    return path


def _make(hosts: Sequence[str], unix_seconds: float) -> bytes:
    """Return a certificate that signs itself, for these names and addresses, and its key, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "queue server")])
    now = datetime.fromtimestamp(unix_seconds, UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(_alternative_names(hosts)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret + made.public_bytes(Encoding.PEM)


def _alternative_names(hosts: Sequence[str]) -> list[GeneralName]:
    from cryptography import x509

    found: dict[GeneralName, None] = {}
    for host in filter(None, hosts):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            with suppress(ValueError):  # a name with umlauts or an underscore is left out: the pin counts
                found[x509.DNSName(host)] = None
        else:
            if not address.is_unspecified:
                found[x509.IPAddress(address)] = None
    return list(found)
