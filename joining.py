"""``python run.py --join CODE@host``: how a machine gets a token of its own, and where it keeps it.

A code is eight characters of Crockford's base32 (https://www.crockford.com/base32.html), good once and for ten minutes.
The server answers it with a token of the role ``worker``; address, token and pin are kept in the data folder, and used
by later starts as far as the settings say nothing else.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from config import Settings, is_loopback, parse_settings, pins_problem, read_pin
from errors import ServerError, ServerUnreachable, Unauthorized, UsageError
from i18n import _
from plain_text import harmless
from private_file import write_private
from shapes import line, one_of, record
from site_walk import answer_of, new_session, problem

DEFAULT_PORT = 8080
TIMEOUT = (10, 30)
FILE_LIMIT_BYTES = 64 * 1024

Answer = Mapping[str, Any]


def _printable(value: Any) -> str:
    text: str = line(200, 1)(value)
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(_("it must be printable ASCII, because it travels in an HTTP header"))
    return text


_ANSWER = record({"token": _printable, "role": one_of("worker"), "id": line(64)})
_KEPT = record({"server_url": line(2000, 1), "token": _printable, "pin": line(64)})


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a person was shown: a code, where it is good, and the pin of the certificate there, if it needs one."""

    code: str = field(repr=False)
    server_url: str
    pin: str = ""


@dataclass(frozen=True, slots=True)
class Membership:
    """What this machine keeps of the server that it has joined."""

    server_url: str
    token: str = field(repr=False)
    pin: str = ""


def read_invitation(text: str) -> Invitation:
    """Return what ``CODE@host``, ``CODE@host:port`` or ``CODE@https://host:port#pin`` says; raise UsageError."""
    code, _at, place = text.strip().partition("@")
    address, _hash, pin = place.partition("#")
    code = code.upper().replace("-", "").translate(str.maketrans("OIL", "011"))
    if not re.fullmatch("[0-9A-HJKMNP-TV-Z]{8}", code):
        raise UsageError(_("A join code is eight letters and digits, such as {sample}").format(sample=_SAMPLE))
    try:
        return Invitation(f"{code[:4]}-{code[4:]}", _server_url(address), read_pin(pin) if pin else "")
    except ValueError as error:
        sentence = _("What is behind the join code is no address of a server ({problem}); it looks like {sample}")
        raise UsageError(sentence.format(problem=error, sample=_SAMPLE)) from None


_SAMPLE = "ABCD-EFGH@192.0.2.1:8080"


def _server_url(address: str) -> str:
    """Return the address of a server with its scheme; raise ValueError."""
    if not address or "@" in address or "," in address or not address.isprintable():
        raise ValueError(_("it must be an http:// or https:// address, such as http://192.0.2.1:8080"))
    if "://" not in address:
        bare = urlsplit(f"//{address}")
        address = f"http://{address}" if bare.port else f"http://{bare.netloc.rstrip(':')}:{DEFAULT_PORT}{bare.path}"
    try:
        return parse_settings({"BILI_SERVER_URL": address}).server_url
    except UsageError:
        raise ValueError(_("it must be an http:// or https:// address, such as http://192.0.2.1:8080")) from None


def join(settings: Settings, invitation: Invitation, worker: str) -> Membership:
    """Give a code for a token of this machine, and keep it; raise ServerError or UsageError, one sentence each."""
    if invitation.pin and not invitation.server_url.startswith("https:"):
        sentence = _("{url} has no certificate to compare with the pin: the address must begin with https://")
        raise UsageError(sentence.format(url=invitation.server_url))
    path = membership_path(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # the code is good once: a token that has no place would be lost
            pass
        membership = Membership(invitation.server_url, _ask(invitation, worker)["token"], invitation.pin)
        write_private(path, json.dumps(asdict(membership)).encode())
    except OSError as error:
        sentence = _("{folder} cannot be written ({problem}): make it writable, or set {setting} to another folder")
        raise UsageError(sentence.format(folder=path.parent, problem=error.strerror, setting="BILI_DATA_DIR")) from None
    return membership


def _ask(invitation: Invitation, worker: str) -> Answer:
    url = invitation.server_url
    is_here = is_loopback(urlsplit(url).hostname or "")
    with closing(new_session("", not is_here, [invitation.pin] if invitation.pin else [])) as session:
        try:
            told = {"code": invitation.code, "worker": worker}
            reply = answer_of(session, "POST", f"{url}/join", json=told, timeout=TIMEOUT)
        except (OSError, ValueError) as error:
            sentence = _("{problem}: is web_server.py running there, and is the address the one that was shown?")
            raise ServerUnreachable(sentence.format(problem=problem(error, url))) from None
    try:
        answer = json.loads(reply.text)
        return dict(_ANSWER(answer)) if reply.status == 200 else _refuse(reply.status, answer, url)
    except (ValueError, RecursionError):
        sentence = _("{url} is no queue server that can be joined: the address is wrong, or a proxy is between")
        raise ServerError(sentence.format(url=url), reply.status) from None


def _refuse(status: int, answer: Any, url: str) -> NoReturn:
    """Raise what a server means that gives no token; ValueError where it is none of ours."""
    reason = answer.get("error") if isinstance(answer, dict) else None
    if status == 403:
        why = harmless(reason) if isinstance(reason, str) else _("the code is mistyped, was used, or is too old")
        sentence = _("The server {url} does not let this machine join: {reason}")
        raise Unauthorized(sentence.format(url=url, reason=why), status)
    if status == 429:
        sentence = _("The server {url} heard too many wrong codes from this address: wait a minute, then try again")
        raise ServerUnreachable(sentence.format(url=url), status)
    if status == 404 or not isinstance(reason, str):
        raise ValueError(status)
    sentence = _("the server {url} answers HTTP {status} {reason}")
    raise ServerError(sentence.format(url=url, status=status, reason=harmless(reason)), status)


# ------------------------------------------------------------------------------------------ what is kept


def membership_path(settings: Settings) -> Path:
    """Return the file in which this machine keeps what it has joined."""
    return settings.data_dir / "server.json"


def read_membership(settings: Settings) -> Membership | None:
    """Return what this machine has joined, None where it has not; raise UsageError where the file cannot be used."""
    path = membership_path(settings)
    try:
        with path.open("rb") as file:
            kept = _KEPT(json.loads(file.read(FILE_LIMIT_BYTES)))
        is_pinned = bool(kept["pin"])
        url = _server_url(kept["server_url"])
        if is_pinned and not url.startswith("https:"):
            raise ValueError(url)
        return Membership(url, kept["token"], read_pin(kept["pin"]) if is_pinned else "")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        sentence = _("{path} is damaged: join again with run.py --join, or delete it")
        raise UsageError(sentence.format(path=path)) from None


def with_membership(settings: Settings, values: Mapping[str, str]) -> Settings:
    """Return the settings with what is kept of the joined server, where ``values``, as they were set, have nothing.

    A token goes only to the server that gave it: where the settings name another one, nothing of it is used. Raise
    UsageError where the server that is left has no certificate to compare a pin with.
    """
    kept = read_membership(settings)
    if kept is not None and (
        not values.get("BILI_SERVER_URL", "").strip() or settings.server_urls == (kept.server_url,)
    ):
        pins = settings.server_pins or ((kept.pin,) if kept.pin else ())
        token = settings.token or kept.token
        settings = replace(settings, server_urls=(kept.server_url,), token=token, server_pins=pins)
    if settings.server_pins and (problem := pins_problem(settings.server_urls)):
        raise UsageError(problem)
    return settings


def shadowed(values: Mapping[str, str]) -> str:
    """Return a sentence where the settings come before what is kept; else an empty text."""
    named = [name for name in ("BILI_SERVER_URL", "BILI_TOKEN", "BILI_SERVER_PIN") if values.get(name, "").strip()]
    if not named:
        return ""
    sentence = _("{names} of the settings come first: take them out, or what was joined is not used")
    return sentence.format(names=", ".join(named))
