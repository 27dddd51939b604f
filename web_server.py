"""The queue server: ``web/`` behind a RequestServer, and what goes on beside it.

``python web_server.py --host 127.0.0.1 --port 8080``.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlsplit

from certificates import Certificate, notes, self_made, self_made_pin
from config import MAX_SHARDS, Settings, is_loopback, load, values_of
from errors import EngineError, EngineFull, ServerError, UsageError
from i18n import _
from joining import with_membership
from log_setup import start_logging
from notices import notices
from notify import Notifier
from plain_text import harmless
from redisConnect import Queue, open_queue, spread_anew
from request_server import RequestServer
from server_trust import clear_text_note
from shapes import line
from status_table import show_status
from store import ROLES, TOKEN_BYTES, Tokens
from web import MAX_BODY_BYTES, create_app, join_line

log = logging.getLogger(__name__)

MIN_TOKEN_CHARACTERS = 16
"""Beyond loopback. The right token always opens, so that its length is what keeps it from being guessed."""
MAX_CONNECTIONS = 10_000
THREADS = 4
"""They wait for the engine side by side; more of them wait for Python's lock, and leases go slower (docs/scale.md)."""
BACKLOG = 2048
"""So many may knock at once; Linux cuts it to its own limit, 4096 as a rule."""
BY_HAND = "web_server.py"
"""Who it was in the record of actions, where no request came from an address."""
SPARE_FILES = 100
"""What the process needs beside its clients: the engine, the log."""
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What it raises to read data of another shape."""
SWEEP_LIMIT = 100
"""A sweep that moves this many has left some behind."""
SAY_AGAIN_SECONDS = 30.0
"""An engine that is still away is named again after so long, if it is for another reason than was said."""


class _Upkeep:
    """What is done with a queue each second."""

    def __init__(self, queue: Queue, ended: threading.Event) -> None:
        self._queue = queue
        self._ended = ended
        self._looked_ms: tuple[float, ...] | None = None
        self.steps: Sequence[Callable[[], object]] = (
            *(self._sweep, queue.revisit, queue.sample, self._look_at_data),
            *(queue.finish_revoked, queue.archive, self._name_poisoned),
        )

    def _sweep(self) -> None:
        while self._queue.sweep() >= SWEEP_LIMIT and not self._ended.is_set():
            pass

    def _look_at_data(self) -> None:
        if change := self._queue.look_at_data():
            log.warning("%s", change)

    def _name_poisoned(self) -> None:
        poisoned, self._looked_ms = self._queue.poisoned(self._looked_ms)
        for url in poisoned:
            log.warning(_("%s has failed for good: its workers died with it again and again"), url)


def tick(queue: Queue, ended: threading.Event, period_seconds: float = 1.0) -> None:
    """Sweep expired leases and due delays each second until ``ended``, and note what the farm does.

    An engine that is away or full is said once for each reason: a failover may end in a primary that takes no writes. A
    step that stumbles over damaged data is said once, too, and the others go on.
    """
    named, named_at = "", 0.0
    steps, stumbling = _Upkeep(queue, ended).steps, set[str]()
    while not ended.wait(period_seconds):
        try:
            for step in steps:
                _take_step(step, stumbling)
            queue.ping()  # sweeping goes on where memory is full
        except EngineError as error:
            now = time.monotonic()
            if not named or (str(error) != named and now - named_at >= SAY_AGAIN_SECONDS):
                log.warning("%s", error)
                named, named_at = str(error), now
        else:
            if named:
                log.warning(_("Redis or Valkey is back"))
            named = ""


def _take_step(step: Callable[[], object], stumbling: set[str]) -> None:
    """Do one thing of those that are done again and again; whatever data are like, its thread must not end of them.

    ``stumbling`` has the names of those that failed the last time: it is said once.
    """
    try:
        step()
    except DAMAGE:
        if step.__name__ not in stumbling:
            log.exception(_("looking after the queue failed: some of its data may be damaged"))
        stumbling.add(step.__name__)
    else:
        stumbling.discard(step.__name__)


class Watch:
    """Looks at the farm every few seconds and says what is worth a message, in a thread of its own.

    Several servers may do so: the queue remembers what was said, and by whom it is said is who is quicker.
    """

    PERIOD_SECONDS = 10.0
    JUMP_SECONDS = 30.0
    """Where Redis' clock and ours go apart by more, one of them has jumped."""

    def __init__(self, queue: Queue, send: Callable[[str, bool], list[str]]) -> None:
        self._queue = queue
        self._send = send
        self._since: float | None = None
        self._apart = 0.0
        self._problems: list[str] = []

    def run(self, ended: threading.Event, period_seconds: float = PERIOD_SECONDS) -> None:
        """Look again and again until ``ended``; while the engine is away nothing is seen, nor said."""
        stumbling: set[str] = set()
        while not ended.wait(period_seconds):
            try:
                _take_step(self.look, stumbling)
            except EngineError:  # the tick says so
                self._since = None

    def look(self) -> None:
        """Look once; what a server cannot have heard while it, or Redis, was away is no silence of a worker."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        seen, said = self._queue.seen(now - self._since)
        apart = seen.at_seconds - now
        if abs(apart - self._apart) > self.JUMP_SECONDS:
            self._since, self._apart = now, apart
            return
        self._apart = apart
        if withheld := self._queue.withheld():
            self._say("\n".join([_("More than may be said in an hour:"), *withheld]), False)
        for notice in notices(seen, said):
            made = self._queue.change_noticed(notice.changes)
            if made and notice.say is not None:
                self._say(notice.say([subject.partition(" ")[2] for subject in made]), notice.is_good)

    def _say(self, text: str, is_good: bool) -> None:
        with suppress(EngineFull):  # there is no room to count it; what is remembered is said once all the same
            if not self._queue.may_notify(text):
                return
        problems = self._send(text, is_good)
        for problem in problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        if self._problems and not problems:
            log.warning(_("Notices arrive again"))
        self._problems = problems


def listen(app: Any, host: str, port: int, certificate: Certificate | None = None) -> RequestServer:
    """Return a server that listens already; raise UsageError where the address cannot be had."""
    try:
        sockets = _listening_sockets(host, port)
    except (OSError, UnicodeError) as error:
        raise UsageError(_address_problem(host, port, error)) from None
    return RequestServer(
        app,
        sockets,
        threads=THREADS,
        connection_limit=_connection_limit(),
        body_limit=MAX_BODY_BYTES,
        ssl_context=certificate.context if certificate is not None else None,
    )


def _listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of the host, all on one port; an address that this machine lacks is left out."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    missing = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    try:
        for family, *_kind, address in dict.fromkeys(found):
            taken = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(_listening_socket(family, (address[0], taken, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
    except OSError:
        for one in sockets:
            one.close()
        raise
    if not sockets:
        raise missing
    return sockets


def _listening_socket(family: int, address: tuple[Any, ...]) -> socket.socket:
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            door.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # there, reusing shares a port in use
        else:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        door.bind(address)
        door.listen(BACKLOG)
    except OSError:
        door.close()
        raise
    return door


def _connection_limit() -> int:
    """Return how many connections may be open, fewer than the files that this process may have open."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft - SPARE_FILES))


def _address_problem(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return _(
            "Port {port} of {host} is in use: end the program that has it (another web_server.py?), "
            "or choose another one with --port"
        ).format(port=port, host=host)
    return _("Cannot listen on {host}, port {port}: {problem}").format(host=host, port=port, problem=error)


def listening_urls(server: RequestServer) -> list[str]:
    """Return the addresses at which a server listens; localhost may have two."""
    scheme = "https" if server.has_tls else "http"
    return [
        f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/" for host, port in server.places
    ]


def _demand_token(host: str, settings: Settings) -> None:
    """Raise UsageError beyond loopback without a token, or with a short one; on loopback only warn of that."""
    short = len(settings.token) < MIN_TOKEN_CHARACTERS
    if is_loopback(host):
        if settings.token and short:
            log.warning(_("BILI_TOKEN has fewer than %d characters: it may be guessed"), MIN_TOKEN_CHARACTERS)
        return
    if not settings.token:
        sentence = _("Beyond this machine ({host}) the server needs a token: set BILI_TOKEN here and on every worker.")
    elif short:
        sentence = _(
            "Beyond this machine ({host}) BILI_TOKEN needs at least {count} characters, or it may be guessed: set "
            "another one here and on every worker."
        )
    else:
        return
    problem = sentence.format(host=host, count=MIN_TOKEN_CHARACTERS)
    raise UsageError(f"{problem} {_offered_token(sys.stderr.isatty(), sys.platform == 'win32')}")


def _offered_token(is_seen: bool, is_windows: bool) -> str:
    """Return a fresh token as it is set, for a terminal; elsewhere, where it would stay in a log, how to make one."""
    if not is_seen:
        command = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
        return _("One is made by: {command}").format(command=command)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    lines = [f"export BILI_TOKEN={token}"]
    if is_windows:  # the command line's, then PowerShell's
        lines = [f"set BILI_TOKEN={token}", f'$env:BILI_TOKEN = "{token}"']
    sentence = _("This one is new and kept nowhere; set it, or write it into the file .env, and start again:")
    return "\n".join([sentence, *lines])


def _end_on_signals(server: RequestServer) -> None:
    """Let the first SIGTERM or SIGINT end the server with its requests finished, and a second one at once."""

    def end(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, _end_now)
        server.end()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end)


def _end_now(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=_("The queue server and its dashboard."))
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help=_("address to listen on; 0.0.0.0 is every one and needs BILI_TOKEN (default: %(default)s)"),
    )
    parser.add_argument(
        "--port", type=_port, default=8080, help=_("port; 0 is any that is free (default: %(default)s)")
    )
    parser.add_argument(
        "--tls-cert",
        type=Path,
        metavar=_("FILE"),
        help=_("speak TLS with the certificate in this file, PEM, those of its authorities behind it"),
    )
    parser.add_argument(
        "--tls-key",
        type=Path,
        metavar=_("FILE"),
        help=_("its private key, PEM, without a passphrase (default: in the same file)"),
    )
    parser.add_argument(
        "--tls-self-made",
        action="store_true",
        help=_("speak TLS with a certificate that is made once, kept in BILI_DATA_DIR, and known by its pin"),
    )
    parser.add_argument(
        "--test-notification",
        action="store_true",
        help=_("send a notice to each address of BILI_NOTIFY, say whether it arrived, and end"),
    )
    parser.add_argument(
        "--status", action="store_true", help=_("show what the running server at BILI_SERVER_URL tells, and end")
    )
    parser.add_argument("--json", action="store_true", help=_("with --status: as JSON, for scripts"))
    parser.add_argument(
        "--reshard",
        type=_shards,
        metavar="N",
        help=_("spread the queue over N shards (BILI_SHARDS) while no server and no worker runs, and end"),
    )
    parser.add_argument(
        "--new-token", choices=ROLES, metavar="ROLE", help=_("make a token of a role, print it, and end: %(choices)s")
    )
    parser.add_argument(
        "--token-name", type=_token_name, default="", metavar="NAME", help=_("with --new-token: for whom it is")
    )
    parser.add_argument("--tokens", action="store_true", help=_("list the tokens that were made, and end"))
    parser.add_argument(
        "--revoke", metavar="ID", help=_("take back the token of that id and what its workers have in work, and end")
    )
    parser.add_argument(
        "--join-code", action="store_true", help=_("print a code with which one machine may join, and end")
    )
    arguments = parser.parse_args(argv)
    if arguments.token_name and not arguments.new_token:
        parser.error(_("--token-name belongs to --new-token"))
    if arguments.json and not arguments.status:
        parser.error(_("--json belongs to --status"))
    if arguments.tls_key and not arguments.tls_cert:
        parser.error(_("--tls-key belongs to --tls-cert"))
    if arguments.tls_self_made and arguments.tls_cert:
        parser.error(_("--tls-self-made makes a certificate, and --tls-cert names one: choose"))
    return arguments


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(_("a port is a number from 0 to 65535"))
    return int(text)


def _shards(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]?", text) or int(text) > MAX_SHARDS:
        raise argparse.ArgumentTypeError(_("a number of shards is from 1 to 64"))
    return int(text)


def _token_name(text: str) -> str:
    try:
        return str(line(64)(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _wants_tokens(arguments: argparse.Namespace) -> bool:
    return bool(arguments.new_token or arguments.tokens or arguments.revoke or arguments.join_code)


def _manage_tokens(settings: Settings, arguments: argparse.Namespace) -> int:
    """Do with tokens what was asked for; the first line on the standard output is for scripts."""
    with closing(open_queue(settings)) as queue:
        tokens = Tokens(queue)
        if arguments.new_token:
            token, record = tokens.make(arguments.new_token, arguments.token_name, time.time())
            queue.note_action(BY_HAND, "token", f"{record.role} {record.name} ({record.id})")
            print(token)
            print(_("It is shown once; its id is {id}.").format(id=record.id), file=sys.stderr)
        if arguments.join_code:
            server = urlsplit(settings.server_url)
            queue.note_action(BY_HAND, "code", "")
            pin = next(iter(settings.server_pins), "") or self_made_pin(settings.data_dir)
            # Of a server that made its certificate here, and whose address nobody has set, only the port is known.
            scheme = "https" if pin and is_loopback(server.hostname or "") else server.scheme
            print(join_line(tokens.offer_join(), scheme, server.netloc, pin))
            print(_("It is good for one machine and ten minutes."), file=sys.stderr)
            if is_loopback(server.hostname or ""):
                sentence = _(
                    "For another machine write the address by which it reaches this server in the place of {host}."
                )
                print(sentence.format(host=server.netloc), file=sys.stderr)
        if arguments.tokens:
            for record, workers in tokens.all():
                day = time.strftime("%Y-%m-%d", time.gmtime(record.made_at))
                print("\t".join([record.id, record.role, day, harmless(record.name), harmless(", ".join(workers))]))
        return _revoke(queue, tokens, arguments.revoke) if arguments.revoke else 0


def _revoke(queue: Queue, tokens: Tokens, identity: str) -> int:
    record, returned = tokens.revoke(identity)
    if record is None:
        print(_("There is no token of the id {id}: --tokens lists them").format(id=identity), file=sys.stderr)
        return 1
    queue.note_action(BY_HAND, "revoke", f"{record.role} {record.name} ({record.id})")
    print(_("Revoked; jobs that came back: {returned}").format(returned=returned))
    return 0


def _reshard(settings: Settings, shards: int) -> int:
    before = spread_anew(settings, shards)
    print(_("The queue lies in {count} shards now, before in {before}.").format(count=shards, before=before))
    print(_("Set for every server and add_url.py: {setting}").format(setting=f"BILI_SHARDS={shards}"))
    return 0


def _test_notification(settings: Settings) -> int:
    if not settings.notify:
        raise UsageError(_("BILI_NOTIFY is not set: there is nobody to be told"))
    problems = Notifier(settings.notify).send(_("This is a test: notices arrive."), is_good=True)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(_("The notice was taken by each address of BILI_NOTIFY."))
    return 1 if problems else 0


def _certificate(arguments: argparse.Namespace, settings: Settings) -> Certificate | None:
    """Return the certificate that the options name, None without TLS; raise UsageError where it cannot be used."""
    if not arguments.tls_cert and not arguments.tls_self_made:
        return None
    path = self_made(settings.data_dir, arguments.host) if arguments.tls_self_made else arguments.tls_cert
    key = arguments.tls_key or path
    certificate = Certificate(path, key)
    for note in notes(path, key, time.time()):
        log.warning("%s", note)
    return certificate


def _say_how_sealed(settings: Settings, host: str, certificate: Certificate | None, is_self_made: bool) -> None:
    """Say what clients need to know the server by, or that nothing is encrypted."""
    if certificate is not None and is_self_made:
        print(_("The certificate is self-made; workers and add_url.py know it by its pin:"))
        print(f"BILI_SERVER_PIN={certificate.pin}")
    elif certificate is None and settings.token and not is_loopback(host):
        print(_("Without TLS the token goes over the network in clear text: see --tls-self-made and --tls-cert."))


def _serve(settings: Settings, queue: Queue, arguments: argparse.Namespace, certificate: Certificate | None) -> None:
    notifier = Notifier(settings.notify) if settings.notify else None
    app = create_app(settings, queue)
    app.config["CERTIFICATE_PIN"] = certificate.pin if certificate is not None and arguments.tls_self_made else ""
    server = listen(app, arguments.host, arguments.port, certificate)
    _end_on_signals(server)
    ended = threading.Event()
    if certificate is not None:
        threading.Thread(target=certificate.keep_looking, args=(ended,), name="certificate", daemon=True).start()
    ticking = threading.Thread(target=tick, args=(queue, ended), name="tick", daemon=True)
    ticking.start()
    if notifier is not None:
        threading.Thread(target=Watch(queue, notifier.send).run, args=(ended,), name="watch", daemon=True).start()
    print(_("Queue server and dashboard: {urls}").format(urls=" ".join(listening_urls(server))))
    _say_how_sealed(settings, arguments.host, certificate, arguments.tls_self_made)
    print(_("The queue is kept in {place}").format(place=queue.place if settings.redis_url else settings.data_dir))
    if settings.token:
        print(_("Every request needs the token of BILI_TOKEN; a browser asks for it as a password, with any name."))
    else:
        print(_("No token is demanded, because BILI_TOKEN is not set: every user of this machine may use the queue."))
    sys.stdout.flush()
    server.run()
    ended.set()
    ticking.join(5)
    print(_("Queue server ended."), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal ends it; return the exit status, 2 where it could not start."""
    arguments = _parse_arguments(argv)
    try:
        settings = load(os.environ)
        if arguments.status:
            settings = with_membership(settings, values_of(os.environ))
            if note := clear_text_note(settings):
                print(note, file=sys.stderr)
            show_status(settings, arguments.json)
            return 0
        start_logging(settings)
        if arguments.reshard:
            return _reshard(settings, arguments.reshard)
        if arguments.test_notification:
            return _test_notification(settings)
        if _wants_tokens(arguments):
            return _manage_tokens(settings, arguments)
        _demand_token(arguments.host, settings)
        certificate = _certificate(arguments, settings)
        with closing(open_queue(settings)) as queue:
            _serve(settings, queue, arguments, certificate)
    except (UsageError, EngineError, ServerError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
