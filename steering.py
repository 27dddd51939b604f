"""How a worker obeys the server: orders become an edit of working.json, or a login with a QR code.

A server is not trusted blindly: an order was checked by queue_client, sets keys of one file that the worker's own
settings name, and may begin a login, whose cookies stay on this machine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import account
from account import Login
from config import Settings
from errors import JobError
from i18n import _
from model import Order
from passport import CODE_SECONDS, Passport, until_decided
from working_file import WorkingFile

log = logging.getLogger(__name__)

SHOWN_SECONDS = 300.0
"""How a login ended is told for so long."""


class QrLogin:
    """One login at a time, beside the downloads: a QR code for whoever ordered it, and the account into its file.

    ``shown`` is what heartbeats tell of it; it may be read from any thread.
    """

    def __init__(
        self,
        settings: Settings,
        passport: Passport,
        login: Login,
        code_seconds: float = CODE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._passport, self._login = settings, passport, login
        self._code_seconds, self._monotonic = code_seconds, monotonic
        self._task: asyncio.Task[None] | None = None
        self._ended_at = float("inf")
        self._shown: Mapping[str, str] = {}

    @property
    def shown(self) -> Mapping[str, str]:
        """What there is to tell: id, state, link and note; nothing when it has ended some minutes ago."""
        return self._shown if self._monotonic() - self._ended_at < SHOWN_SECONDS else {}

    def begin(self, identity: str) -> None:
        """Begin a login in the place of the one that runs, unless it is this one."""
        if identity == self._shown.get("id"):
            return
        self.cancel()
        self._show(identity, "scan")
        self._task = asyncio.create_task(self._log_in(identity))

    def cancel(self) -> None:
        """End the login that runs, if there is one."""
        if self._task is not None:
            self._task.cancel()

    def _show(self, identity: str, state: str, link: str = "", note: str = "") -> None:
        self._ended_at = float("inf") if state in ("scan", "scanned") else self._monotonic()
        self._shown = {"id": identity, "state": state, "link": link, "note": note}

    async def _log_in(self, identity: str) -> None:
        try:
            code = await self._passport.new_code()
            self._show(identity, "scan", code.link)
            log.info(_("A login was ordered: its QR code is on the dashboard"))
            kept = await until_decided(
                self._passport, code, lambda: self._show(identity, "scanned", code.link), self._code_seconds
            )
            if kept is None:
                self._show(identity, "expired")
                log.info(_("Nobody has logged in: the QR code has expired"))
                return
            account.save(self._settings, kept)
        except JobError as error:
            self._fail(identity, str(error))
        except OSError as error:
            path = account.account_path(self._settings)
            sentence = _("{path} cannot be written: {problem}")
            self._fail(identity, sentence.format(path=path, problem=error.strerror or error))
        else:
            self._login.account()  # used from now on
            log.info(_("Logged in, account {mid}").format(mid=kept.mid or "?"))
            self._show(identity, "done", note=account.shadowed(self._settings))

    def _fail(self, identity: str, problem: str) -> None:
        log.warning(_("The login that was ordered has failed: %s"), problem)
        self._show(identity, "failed", note=problem)


class Steering:
    """Obeys orders, each once, and tells which one was the last and what was wrong with it."""

    def __init__(self, working: WorkingFile, login: QrLogin | None) -> None:
        self._working, self._login = working, login
        self._obeyed = self._problem = ""

    def obey(self, order: Order) -> None:
        """Do what an order says; where that cannot be done it is answered all the same, with the reason."""
        if order.id == self._obeyed:
            return  # the answer to a heartbeat that was sent before
        self._problem = order.problem
        if not order.problem and order.working:
            self._write(order.working)
        if not order.problem and order.login:
            self._begin_login(order.login)
        if self._problem:
            log.warning(_("An order of the server was not obeyed: %s"), self._problem)
        self._obeyed = order.id

    def state(self) -> Mapping[str, Any]:
        """Return what a heartbeat tells of it; called in the heartbeat's thread."""
        login = self._login.shown if self._login is not None else {}
        told = {"order": self._obeyed, "order_problem": self._problem, "login": dict(login)}
        return {name: value for name, value in told.items() if value}

    def end(self) -> None:
        """End what runs beside the jobs."""
        if self._login is not None:
            self._login.cancel()

    def _write(self, keys: Mapping[str, Any]) -> None:
        try:
            self._working.write(keys)
        except OSError as error:
            sentence = _("{path} cannot be written ({problem}): make it writable, or edit it by hand")
            self._problem = sentence.format(path=self._working.name, problem=error.strerror or error)
        else:
            said = json.dumps(keys, ensure_ascii=False)[1:-1]
            log.info(_("Ordered by the server, and written into %s: %s"), self._working.name, said)

    def _begin_login(self, identity: str) -> None:
        if self._login is None:
            self._problem = _("this worker cannot log in")
        else:
            self._login.begin(identity)
