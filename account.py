"""A logged-in account of the site: where its cookies come from, where they may go, and how they are kept.

Nothing here asks the site; passport.py does. No value of a cookie is logged, shown, raised, or part of a repr.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from errors import UsageError
from i18n import _
from private_file import write_private

log = logging.getLogger(__name__)

SITE = "bilibili.com"
COOKIES = ("SESSDATA", "bili_jct", "DedeUserID", "DedeUserID__ckMd5", "sid")
"""What a login sets (docs/login/login_action/QR.md of bilibili-API-collect)."""
FILE_LIMIT_BYTES = 4 * 1024 * 1024
DIGEST_CHARACTERS = 16

BY_SETTING, BY_COOKIES, BY_LOGIN = "BILI_SESSDATA", "BILI_COOKIES", "--login"

Origin = tuple[str, str, int]


def origin(url: str) -> Origin:
    """Return scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


class Places(Protocol):
    """What of the settings says where an account is, and who stands in for the site."""

    @property
    def sessdata(self) -> str:
        """The cookie SESSDATA itself."""

    @property
    def cookies(self) -> Path | None:
        """A cookies.txt."""

    @property
    def data_dir(self) -> Path:
        """Where a login is kept."""

    @property
    def token(self) -> str:
        """What all workers of one server share."""

    @property
    def web_url(self) -> str:
        """The site's pages."""

    @property
    def api_url(self) -> str:
        """Its API."""

    @property
    def passport_url(self) -> str:
        """Its login host."""


# ------------------------------------------------------------------------------------------ where cookies may go


class Scope:
    """Where cookies of the site may go: its own hosts over https, and hosts that a setting puts in their place."""

    def __init__(self, settings: Places) -> None:
        self._stand_ins = {origin(url) for url in (settings.web_url, settings.api_url, settings.passport_url)}

    def __contains__(self, url: str) -> bool:
        scheme, host, port = origin(url)
        if host == SITE or host.endswith(f".{SITE}"):
            return (scheme, port) == ("https", 443)
        return (scheme, host, port) in self._stand_ins


# ------------------------------------------------------------------------------------------ the record


@dataclass(frozen=True, slots=True)
class Account:
    """The cookies of a login, as they travel, and what renews them."""

    values: Mapping[str, str] = field(repr=False)
    origin: str
    scope: Scope = field(repr=False, compare=False)
    refresh_token: str = field(default="", repr=False)
    unconfirmed: str = field(default="", repr=False)
    """The refresh token of the cookies before these, as long as the site was not told to forget them."""
    checked: float = 0.0
    """When the site was last asked whether they want to be renewed, in Unix seconds."""

    @property
    def mid(self) -> str:
        """The number of the account, where the cookies have it."""
        return self.values.get("DedeUserID", "")

    def cookie_header(self, url: str) -> str:
        """Return what goes into the header Cookie of a request, empty where no cookie may go."""
        if url not in self.scope:
            return ""
        return "; ".join(f"{name}={quote(self.values[name], safe='%*')}" for name in COOKIES if self.values.get(name))

    def renewed(self, values: Mapping[str, str], refresh_token: str) -> Account:
        """Return the account with other cookies; the site still takes these, until it is told."""
        merged = {**self.values, **values}
        return replace(self, values=merged, refresh_token=refresh_token, unconfirmed=self.refresh_token)


def load(settings: Places) -> Account | None:
    """Return the account that the settings name, or the one that ``--login`` has kept; None for a guest.

    Raise UsageError where a file that should have one cannot be used.
    """
    if settings.sessdata:
        return Account({"SESSDATA": settings.sessdata}, BY_SETTING, Scope(settings))
    if settings.cookies is not None:
        return Account(_read_cookies_txt(settings.cookies), BY_COOKIES, Scope(settings))
    return _read_kept(settings)


def new_account(settings: Places, values: Mapping[str, str], refresh_token: str, unix_seconds: float) -> Account:
    """Return the account of a login that was just made."""
    return Account(values, BY_LOGIN, Scope(settings), refresh_token, checked=unix_seconds)


# ------------------------------------------------------------------------------------------ cookies.txt


def _read_cookies_txt(path: Path) -> Mapping[str, str]:
    values = parse_cookies_txt(_text_of(path, "BILI_COOKIES"), time.time())
    if "SESSDATA" not in values:
        sentence = _("{path} has no valid cookie SESSDATA of {site}: log in with that browser and export it again")
        raise UsageError(sentence.format(path=path, site=SITE))
    return values


def parse_cookies_txt(text: str, unix_seconds: float) -> Mapping[str, str]:
    """Return the cookies of a login that a file in Netscape's format has for the site, without expired ones.

    A line has domain, whether its subdomains are meant, path, whether https only, expiry, name and value, with tabs
    between; browsers write ``#HttpOnly_`` before the domain of some (https://curl.se/docs/http-cookies.html).
    """
    values = {}
    for line in text.removeprefix("\ufeff").splitlines():
        fields = line.removeprefix("#HttpOnly_").split("\t")
        if len(fields) != 7 or fields[0].startswith("#"):
            continue
        domain, _subdomains, _path, _secure, expiry, name, value = fields
        if domain.lower().lstrip(".") != SITE and not domain.lower().endswith(f".{SITE}"):
            continue
        is_over = re.fullmatch(r"\d{1,15}(\.\d+)?", expiry) is not None and 0 < float(expiry) <= unix_seconds
        if name in COOKIES and is_cookie_value(value) and not is_over:
            values[name] = value
    return values


def is_cookie_value(text: object) -> bool:
    """Tell whether a text can be the value of a cookie: it must not end it, or its header."""
    return isinstance(text, str) and re.fullmatch(r"[!#-+\--:<-\[\]-~]{1,2048}", text) is not None


# ------------------------------------------------------------------------------------------ what a login has kept


def account_path(settings: Places) -> Path:
    """Return the file in which ``--login`` keeps an account."""
    return settings.data_dir / "account.json"


def _read_kept(settings: Places) -> Account | None:
    path = account_path(settings)
    try:
        text = _text_of(path, "")
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        values = {name: content["cookies"][name] for name in COOKIES if name in content["cookies"]}
        tokens = content["refresh_token"], content["unconfirmed"]
        checked = float(content["checked"])
        sound = all(map(is_cookie_value, [values["SESSDATA"], *values.values(), *filter(None, tokens)]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        sentence = _("{path} is damaged: log in again with run.py --login, or delete it")
        raise UsageError(sentence.format(path=path))
    return Account(values, BY_LOGIN, Scope(settings), *tokens, checked)


def _text_of(path: Path, setting: str) -> str:
    """Return the text of a small file; FileNotFoundError only where no setting names it."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_LIMIT_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        if not setting:
            raise
        problem = _("it is not there")
    except OSError as error:
        problem = error.strerror or type(error).__name__
    raise UsageError(f"{setting or path.name}: {path}: {problem}")


def shadowed(settings: Places) -> str:
    """Return a sentence where the settings name another account, which comes before a login; else an empty text."""
    if settings.sessdata or settings.cookies:
        return _("BILI_SESSDATA and BILI_COOKIES come first: take them out of the settings, or this login is not used")
    return ""


def save(settings: Places, account: Account) -> None:
    """Keep an account: whole or not at all, on the disk, and for nobody else to read. Raise OSError."""
    content = {
        "cookies": dict(account.values),
        "refresh_token": account.refresh_token,
        "unconfirmed": account.unconfirmed,
        "checked": account.checked,
    }
    # the site may forget the cookies before these as soon as it is told
    write_private(account_path(settings), json.dumps(content).encode())


def forget(settings: Places) -> bool:
    """Delete what ``--login`` has kept, also half-written; tell whether there was something."""
    path = account_path(settings)
    found = [path] if path.exists() else []
    found += path.parent.glob(f"{path.name}.*.new")
    for one in found:
        one.unlink(missing_ok=True)
    return bool(found)


# ------------------------------------------------------------------------------------------ the account in use


class Login:
    """The account of this process: read again when its file changes, with what the site last said of it.

    ``problem`` is a sentence while something is wrong with it, ``digest`` its name for other workers; both may be
    read from any thread.
    """

    def __init__(self, settings: Places) -> None:
        self._settings = settings
        self._path = settings.cookies or account_path(settings)
        self._seen: object = ()
        self._account: Account | None = None
        self._is_known: bool | None = None
        self.problem = ""
        self.digest = ""

    def account(self) -> Account | None:
        """Return the account as it is now; another one from the moment at which its file changes."""
        if (seen := self._look()) != self._seen:
            self._seen = seen
            self._read()
        return self._account

    def heard(self, is_logged_in: bool, mid: str = "") -> None:
        """Take note of what the site says of the account; said once when it changes."""
        if self._account is None:
            return
        if mid and is_logged_in:
            self.digest = digest_of(mid)
        if is_logged_in == self._is_known:
            return
        self._is_known = is_logged_in
        self.problem = "" if is_logged_in else _expired(self._account.origin)
        if is_logged_in:
            log.info(_("The site knows the account of %s"), self._account.origin)
        else:
            log.warning("%s", self.problem)

    def _look(self) -> object:
        if self._settings.sessdata:
            return "constant"
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> None:
        before = self._account
        try:
            self._account, problem = load(self._settings), ""
        except UsageError as error:  # at the start it is said at once; later the others must not end for it
            self._account, problem = None, str(error)
            log.warning("%s", problem)
        if self._account is not None and before is not None and self._account.values == before.values:
            return  # only what renews it has changed
        self._is_known, self.problem = None, problem
        self.digest = digest_of(self._account.mid) if self._account and self._account.mid else ""


@lru_cache(8)
def digest_of(mid: str) -> str:
    """Return a short name of an account, the same on all machines, from which nobody learns its number.

    Machines may have nothing in common, not even a token, so there is no key; to try all numbers, at a tenth of a
    second each, takes years for each thousand million.
    """
    return hashlib.pbkdf2_hmac("sha256", mid.encode(), b"bili account", 200_000, DIGEST_CHARACTERS // 2).hex()


def _expired(origin: str) -> str:
    remedies = {
        BY_SETTING: _("set BILI_SESSDATA anew, or take it out and run: python run.py --login"),
        BY_COOKIES: _("export the cookies.txt of BILI_COOKIES again"),
    }
    remedy = remedies.get(origin, _("run: python run.py --login"))
    return _("the site does not know this account any more, its login has expired: {remedy}").format(remedy=remedy)


def login_cookies(found: Iterable[tuple[str, Any]]) -> Mapping[str, str]:
    """Return the cookies of a login among those that an answer sets."""
    return {name: value for name, value in found if name in COOKIES and is_cookie_value(value)}
