"""A worker: downloads what the queue server hands out. Start one on every machine.

    python run.py

working.json beside it steers it while it runs: "stop" is 1 to run and 0 to stop, "count" is how many videos are
downloaded at the same time. Ctrl-C gives all jobs back at once and keeps what is on disk; a second one ends at once.

    python run.py --join ABCD-EFGH@192.0.2.1:8080

--join gives a code that the dashboard shows for a token of this machine, and keeps it with the server's address.

    python run.py --login
    python run.py --logout

--extras downloads no video: it lays what BILI_EXTRAS names beside those that are here already.

    python run.py --extras
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

import account
import config
from bili_client import BiliClient, make_session
from config import MEDIA_SUFFIXES, PARTS_FOLDER, Settings
from delivery import Deliveries, Reins, folder_of, opener
from download_scheduler import Scheduler
from download_stream_file import Wire
from errors import CircumstanceError, DownloaderError, UsageError
from extras import BESIDE, Extras
from i18n import _
from joining import join, membership_path, read_invitation, shadowed, with_membership
from late_extras import Bring, Laid, MediaDoor, lay_late
from live_lines import LiveLines, reflows
from log_setup import start_logging
from merge_stream_file import find_ffmpeg, probe_ffmpeg, remove_leftovers
from model import Beside, Result
from passport import Keeper, Passport, draw_code, log_in
from places import FOLDER
from queue_client import QueueClient, lease_clock, make_server_session
from server_trust import clear_text_note
from steering import QrLogin
from terminal import Terminal
from transfer import Connections, Health, MediaClient, SpeedLimit, discard_old_parts, free_disk_bytes, media_allowed
from worker_metrics import serving_metrics

log = logging.getLogger("run")

MAX_WORKERS_HERE = 1000
OLD_PARTS_SECONDS = 30 * 86400.0
"""Parts that nobody touched for so long belong to pages that another machine finished, or that are dead."""
KEEP_SECONDS = 60.0
"""Between two looks at the mirrors' health that outlive a kill."""
EXIT_USAGE = 2
EXIT_NO_LOGIN = 1
EXIT_SOME_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker; return the exit status."""
    options = _parser().parse_args(arguments)
    terminal = Terminal(Console(stderr=not sys.stdout.isatty()), reflows(os.environ))
    try:
        settings = config.load(os.environ)
        start_logging(settings, terminal.handler)
        if options.join is not None:
            return _join(settings, options.join)
        settings = with_membership(settings, config.values_of(os.environ))
        if options.login or options.logout:
            return asyncio.run(_log_in(settings)) if options.login else _log_out(settings)
        account.load(settings)  # one that cannot be used is said before anything begins
        if options.extras:
            return asyncio.run(_lay_extras(settings))
        ffmpeg = find_ffmpeg(config.ROOT, os.environ)
        log.info("ffmpeg: %s", probe_ffmpeg(ffmpeg))
        settings, name_lock = _claim_name(settings)
        with name_lock:
            _prepare_folders(settings)
            _check_delivery(settings)
            gc.freeze()  # what was imported stays: the collector need not look through it again and again
            return asyncio.run(_work(settings, ffmpeg, terminal, options.wait if options.until_empty else None))
    except DownloaderError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description=_("Download what the queue server hands out, until Ctrl-C. working.json steers it while it runs."),
    )
    parser.add_argument(
        "--until-empty",
        action="store_true",
        help=_("end when nothing is left: status 0 all done, 1 this worker made a job dead, 3 delayed jobs remain"),
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=300.0,
        metavar=_("SECONDS"),
        help=_("with --until-empty: wait for delayed jobs that fall due within this time (300)"),
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--join",
        metavar=_("CODE@HOST"),
        help=_("join the server that has shown this code, keep a token of its own on this machine, and end"),
    )
    either.add_argument(
        "--login", action="store_true", help=_("log in with a QR code, keep the account on this machine, and end")
    )
    either.add_argument("--logout", action="store_true", help=_("delete the account that --login has kept, and end"))
    either.add_argument(
        "--extras",
        action="store_true",
        help=_("lay what BILI_EXTRAS names beside the videos that are here already, and end"),
    )
    return parser


def _join(settings: Settings, text: str) -> int:
    """Give a join code for a token, keep it, and say how to go on."""
    invitation = read_invitation(text)
    if note := clear_text_note(replace(settings, server_urls=(invitation.server_url,), token="-")):
        log.warning("%s", note)
    worker = settings.worker or socket.gethostname()[:64]
    join(settings, invitation, worker)
    path = membership_path(settings)
    _say(
        _("Joined {url}. Address and token are kept in {path}, for your eyes only").format(
            url=invitation.server_url, path=path
        )
    )
    if note := shadowed(config.values_of(os.environ)):
        _say(note)
    _say(_("Now start the worker with: python run.py"))
    return 0


async def _log_in(settings: Settings) -> int:
    """Show a QR code, wait until it is confirmed, keep the account."""
    async with make_session(settings) as session:
        kept = await log_in(Passport(settings, session), _say, _show_code)
    if kept is None:
        _say(_("Nobody has logged in; once more with: python run.py --login"))
        return EXIT_NO_LOGIN
    try:
        account.save(settings, kept)
    except OSError as error:
        raise UsageError(_cannot_write("BILI_DATA_DIR", settings.data_dir, error)) from None
    path = account.account_path(settings)
    _say(_("Logged in, account {mid}. Kept in {path}, for your eyes only").format(mid=kept.mid or "?", path=path))
    if note := account.shadowed(settings):
        _say(note)
    return 0


def _log_out(settings: Settings) -> int:
    gone = account.forget(settings)
    _say(_("The login is deleted from this machine") if gone else _("There was no login on this machine"))
    return 0


async def _lay_extras(settings: Settings) -> int:
    """Lay what is missing beside the finished pages of this machine; return the exit status."""
    beside = tuple(extra for extra in settings.extras if extra in BESIDE)
    if not beside:
        sentence = _("BILI_EXTRAS names nothing that lies beside a video; such are: {names}")
        raise UsageError(sentence.format(names=", ".join(BESIDE)))
    _prepare_folders(settings)
    _check_delivery(settings)
    settings = replace(settings, extras=beside)
    laid = Laid()
    async with (
        make_session(settings) as site_session,
        MediaClient(settings, media_allowed(MEDIA_SUFFIXES, settings.stand_in_hosts)) as media_client,
    ):
        site = BiliClient(settings, site_session)
        try:
            await lay_late(Extras(settings, site, MediaDoor(media_client)), site, laid, _bring_late(settings))
        except CircumstanceError as error:
            log.warning(_("%s; the same command goes on where it stopped, later"), error)
            laid.failed += 1
        finally:
            _say(str(laid))
    return EXIT_SOME_FAILED if laid.failed else 0


def _bring_late(settings: Settings) -> Bring | None:
    """Return what brings late extras to where their pages were delivered."""
    running = asyncio.Event()
    running.set()
    limit = SpeedLimit(settings.max_bytes_per_second)
    deliveries = _deliveries(settings, running, limit)

    async def bring(result: Result, beside: Sequence[Beside]) -> None:
        assert deliveries is not None
        await deliveries.bring_beside(result, beside)

    return None if deliveries is None else bring


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _show_code(link: str) -> None:
    """Draw a QR code where somebody can see it; the link is said beside it in any case."""
    picture = draw_code(link)
    with contextlib.suppress(UnicodeEncodeError):
        picture.encode(sys.stdout.encoding or "ascii")
        if sys.stdout.isatty():
            _say(picture)


def _claim_name(settings: Settings) -> tuple[Settings, FileLock]:
    """Return settings with a worker's name that no other process of this data folder has, and the lock that says so.

    The number in the name is the lowest free one: a worker that is started anew gets its old name, and with it the
    jobs whose chunks it left.
    """
    if settings.worker:
        # Two processes of one name would take each other's leases for those of a predecessor.
        lock = _lock_name(settings, f"named-{sha256(settings.worker.encode()).hexdigest()[:16]}")
        if lock is None:
            sentence = _("A worker called {name} runs here already: give each its own BILI_WORKER, or none")
            raise UsageError(sentence.format(name=settings.worker))
        return settings, lock
    for number in range(1, MAX_WORKERS_HERE + 1):
        if lock := _lock_name(settings, str(number)):
            return replace(settings, worker=f"{socket.gethostname()[:48]}-{number}"), lock
    raise UsageError(_("There are {count} workers on this machine already").format(count=MAX_WORKERS_HERE))


def _lock_name(settings: Settings, name: str) -> FileLock | None:
    lock = FileLock(settings.data_dir / f"worker-{name}.lock", timeout=0)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise UsageError(_cannot_write("BILI_DATA_DIR", settings.data_dir, error)) from None
    return lock


def _prepare_folders(settings: Settings) -> None:
    setting = "BILI_DOWNLOAD_DIR" if settings.scratch is None else "BILI_SCRATCH_DIR"
    for name, folder in (("BILI_DOWNLOAD_DIR", settings.download_dir), (setting, settings.scratch_dir)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # a worker that dies here must not leave it
                pass
        except OSError as error:
            raise UsageError(_cannot_write(name, folder, error)) from None


def _check_delivery(settings: Settings) -> None:
    """Raise UsageError where a package for the deliveries is missing, or they would end where they begin."""
    place = settings.deliver_to
    if place is None:
        return
    opener(place)
    library = settings.download_dir.resolve()
    if place.scheme in FOLDER and folder_of(place).resolve().is_relative_to(library):
        sentence = _("BILI_DELIVER_TO is in the download folder {folder}: name another place")
        raise UsageError(sentence.format(folder=library))


def _deliveries(settings: Settings, running: asyncio.Event, limit: SpeedLimit) -> Deliveries | None:
    """Return what brings finished files to where the settings say; None where they stay."""
    place = settings.deliver_to
    if place is None:
        return None
    reins = Reins(running.is_set, lambda: limit.bytes_per_second)
    keeps = settings.deliver_keep == "yes"
    return Deliveries(place, opener(place), settings.download_dir, settings.data_dir, keeps, reins, lease_clock)


def _cannot_write(setting: str, folder: Path, error: OSError) -> str:
    sentence = _("{folder} cannot be written ({problem}): make it writable, or set {setting} to another folder")
    return sentence.format(folder=folder, problem=error.strerror, setting=setting)


async def _work(settings: Settings, ffmpeg: str, terminal: Terminal, until_empty_seconds: float | None) -> int:
    running = asyncio.Event()
    instance = new_instance(time.time())
    free_bytes = partial(free_disk_bytes, settings.download_dir)
    for folder in {settings.scratch_dir, settings.download_dir / PARTS_FOLDER}:  # the setting may be a new one
        remove_leftovers(folder)
        discard_old_parts(folder, OLD_PARTS_SECONDS)
    async with (
        make_server_session(settings) as server_session,
        make_session(settings) as site_session,
        MediaClient(settings, media_allowed(MEDIA_SUFFIXES, settings.stand_in_hosts)) as media_client,
        _known_mirrors(settings) as health,
    ):
        site = BiliClient(settings, site_session)
        passport = Passport(settings, site_session)
        limit = SpeedLimit()
        scheduler = Scheduler(
            settings,
            QueueClient(settings, server_session, settings.worker, instance),
            site,
            Wire(media_client, Connections(settings.connections), running, limit, health),
            running,
            ffmpeg,
            settings.worker,
            instance,
            qr_login=QrLogin(settings, passport, site.login),
            deliveries=_deliveries(settings, running, limit),
        )
        _stop_on_signals(scheduler)
        _draw_anew_on_signals(terminal.lines)
        servers = ", ".join(settings.server_urls)
        log.info(_("Worker %s asks %s; videos go to %s"), settings.worker, servers, settings.download_dir)
        if note := clear_text_note(settings):
            log.warning("%s", note)
        async with _kept_login(Keeper(settings, passport, site.login, site.check_login)):
            with (
                serving_metrics(settings.metrics_address, scheduler.board, health, free_bytes, lease_clock),
                terminal.bars(scheduler.board, free_bytes),
            ):
                return await scheduler.run(until_empty_seconds)


@asynccontextmanager
async def _kept_login(keeper: Keeper) -> AsyncIterator[None]:
    """Look after the account while the worker works."""
    keeping = asyncio.create_task(keeper.keep())
    try:
        yield
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


@asynccontextmanager
async def _known_mirrors(settings: Settings) -> AsyncIterator[Health]:
    """Give what this worker knew of the mirrors when it last ran; write it down every minute, and in the end."""
    path = settings.data_dir / f"mirrors-{sha256(settings.worker.encode()).hexdigest()[:16]}.json"
    health = Health()
    health.load(path)
    keeping = asyncio.create_task(_keep(health, path))
    try:
        yield health
    finally:
        keeping.cancel()
        _save(health, path)


async def _keep(health: Health, path: Path) -> None:
    while True:
        await asyncio.sleep(KEEP_SECONDS)
        _save(health, path)


def _save(health: Health, path: Path) -> None:
    if health.hosts:
        try:
            health.save(path)
        except OSError as error:
            log.debug("%s: %s", path, error)  # it is a help, not a promise


def new_instance(unix_seconds: float) -> str:
    """Return an id of this process that sorts after those of earlier ones, so that nobody takes it for a predecessor.

    A request of a dead process may arrive after those of its successor. Where the clock was set back meanwhile, jobs
    of the predecessor come back when their leases have run out, not at once.
    """
    return f"{round(unix_seconds * 1000):012x}{secrets.token_hex(4)}"


def _stop_on_signals(scheduler: Scheduler) -> None:
    """Let the first signal stop the worker in order, and the second one at once."""
    loop = asyncio.get_running_loop()
    received = 0

    def on_signal(number: int, _frame: object) -> None:
        nonlocal received
        received += 1
        if received > 1:
            os._exit(128 + number)
        loop.call_soon_threadsafe(scheduler.stop)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last one is a terminal that was closed; Windows has none
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), on_signal)


def _draw_anew_on_signals(lines: LiveLines) -> None:
    """Draw below what the shell has written while the worker was stopped (Ctrl-Z, then fg)."""
    if hasattr(signal, "SIGCONT"):
        signal.signal(signal.SIGCONT, lambda _number, _frame: lines.begin_anew())


if __name__ == "__main__":
    sys.exit(main())
