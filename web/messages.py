"""What requests look like: a table of checks for each body, and how one is read."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Request, request
from werkzeug.exceptions import (
    BadRequest,
)

from i18n import _
from model import JOB_ID_CHARACTERS, MIB
from orders import working_keys
from parse_ import MAX_CID, parse_job_id
from shapes import Check, at, flag, lenient, line, list_of, number, one_of, record
from sources import WISHES, ledger_shape, watch_seconds
from store import ROLES
from web.qr_code import LINK_CHARACTERS

log = logging.getLogger(__name__)

MAX_BODY_BYTES = MIB
MAX_URLS = 1000
MAX_RESULTS = 200
MAX_RISK_SECONDS = 6 * 3600
MAX_PAGES = 500
MAX_LEASES = 64
MAX_WORKERS = 1000
MAX_STORED_CHARACTERS = 8192


def job_id(value: Any) -> str:
    """Check a job id, exactly as it stands in the queue."""
    text: str = line(JOB_ID_CHARACTERS)(value)
    parse_job_id(text)
    return text


def _code(value: Any) -> str:
    return str(value) if type(value) is int and abs(value) < 10**9 else str(line(100)(value))


def decimal_bytes(text: str) -> int:
    """Check how many bytes of a job are on a disk; a double can hold them exactly."""
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ValueError(_("a number of bytes is expected"))
    return int(text)


_SIZE = number(0, 2**63 - 1, whole=True)
_TOKEN = line(200, 1)
WORKER = line(64, 1)
_TITLE = line(1000)
REQUEST = line(64, 1)
LEASE_FIELDS = {"url": job_id, "token": _TOKEN}
_PAGE = record(
    {"number": number(1, 99999, whole=True), "cid": number(1, MAX_CID, whole=True), "title": _TITLE},
    duration_seconds=number(0, 1e9),
)
EXPAND = record(
    LEASE_FIELDS,
    title=_TITLE,
    pages=list_of(_PAGE, MAX_PAGES),
    urls=list_of(job_id, MAX_PAGES),
    more=flag,
    ledger=ledger_shape(job_id),
)
_STREAM = lenient(
    name=line(40, cut=True),
    done_bytes=_SIZE,
    total_bytes=_SIZE,
    mirror=line(80, cut=True),
    speed_bytes_per_second=number(0, 1e15),
)
_PROGRESS = lenient(title=line(120, cut=True), stage=line(40, cut=True), streams=list_of(_STREAM, 64), chunks=flag)
_WORKER_STATE = lenient(
    state=line(40, cut=True),
    speed_bytes_per_second=number(0, 1e15),
    done=_SIZE,
    failed=_SIZE,
    working=lenient(
        stop=number(0, 1, whole=True),
        count=number(1, MAX_LEASES, whole=True),
        max_speed=lambda value: value if value is None else number(0, 1e15)(value),
        drain=number(0, 1, whole=True),
    ),
    disk_free_bytes=_SIZE,
    note=line(400, cut=True),
    order=line(64),
    order_problem=line(400, cut=True),
    login=lenient(
        id=line(64),
        state=one_of("scan", "scanned", "done", "expired", "failed"),
        link=line(LINK_CHARACTERS),
        note=line(400, cut=True),
    ),
)
_SITE = record(
    {},
    requests_per_second=number(0, 1e6),
    wanted_per_second=number(0, 1e6),
    allowed_per_second=number(0, 1e6),
    answers=number(0, 2**53, whole=True),
    refused=record({"kind": line(40, 1)}, seconds=number(0, MAX_RISK_SECONDS)),
)
_STANDS = {"account": line(64, 1), "egress": line(64, 1)}
HEARTBEAT = record(
    {"worker": WORKER, "jobs": list_of(record(LEASE_FIELDS, progress=_PROGRESS), 256)},
    state=_WORKER_STATE,
    finished=list_of(job_id, 64),
    risk=record({"kind": line(40, 1), "seconds": number(0, MAX_RISK_SECONDS)}),
    site=_SITE,
    **_STANDS,
)
BUDGET = record({"worker": WORKER, "site": _SITE}, **_STANDS)
ACK = record(
    {**LEASE_FIELDS, "path": line(4096, 1), "bytes": _SIZE, "seconds": number(0, 1e9)},
    title=line(1000, cut=True),
    streams=line(100, cut=True),
    stored=line(MAX_STORED_CHARACTERS),
)
_RESULT = record(
    {"url": job_id, "path": line(4096, 1), "bytes": _SIZE, "seconds": number(0, 1e9)},
    title=line(1000, cut=True),
    streams=line(100, cut=True),
    stored=line(MAX_STORED_CHARACTERS),
)
REPLAY = record({"worker": WORKER, "results": list_of(_RESULT, MAX_RESULTS)})
NACK = record(
    {
        **LEASE_FIELDS,
        "class": one_of("transient", "waiting", "permanent", "environment"),
        "code": _code,
        "reason": line(1000, cut=True),
    },
    title=line(1000, cut=True),
    retry_after_seconds=number(0, 7 * 86400),
)
ADD = record(
    {"urls": list_of(line(MAX_BODY_BYTES), MAX_URLS)},
    category=line(120),
    source=line(200),
    refresh=flag,
    request=REQUEST,
    wishes=WISHES,
    again=flag,
    watch=watch_seconds,
)
WATCH = record({"source": line(JOB_ID_CHARACTERS), "seconds": watch_seconds})
SIGN_IN = record({"password": line(1000)})
STEER = record({"working": working_keys}, workers=list_of(WORKER, MAX_WORKERS), all=flag)
LOGIN = record({"worker": WORKER})
REDRIVE = record({}, urls=list_of(job_id, MAX_URLS), all=flag, code=line(100))
NEW_TOKEN = record({"role": one_of(*ROLES)}, name=line(64))
REVOKE = record({"id": line(64, 1)})
JOIN = record({"code": line(40, 1), "worker": WORKER})
NOTHING = record({})
JOBS = record({"urls": list_of(job_id, MAX_URLS)})


def this_request() -> Request:
    """Return the request that is being answered: behind ``flask.request`` it is looked for at each use."""
    found: Request = request._get_current_object()  # type: ignore[attr-defined]
    return found


def read_body(check: Check) -> Any:
    """Return the checked body of this request, or answer 400 with what is wrong with it."""
    try:
        value = json.loads(request.get_data().decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRequest(_("the body is no JSON that can be read")) from None
    return _checked(check, value, "body")


def read_query(name: str, check: Check, default: Any) -> Any:
    """Return one checked parameter of the address, or answer 400 with what is wrong with it."""
    return query_reader()(name, check, default)


def query_reader() -> Callable[[str, Check, Any], Any]:
    """Return ``read_query`` for several parameters of this request."""
    parameters = request.args

    def read(name: str, check: Check, default: Any) -> Any:
        values = parameters.getlist(name)  # get() would make an error page for each that is missing
        return _checked(check, values[0], name) if values and values[0] else default

    return read


def _checked(check: Check, value: Any, name: str) -> Any:
    try:
        return at(name, check, value)
    except ValueError as error:
        raise BadRequest(str(error)) from None


@contextmanager
def bad_request() -> Iterator[None]:
    """Answer 400 where a value is refused inside."""
    try:
        yield
    except ValueError as error:
        raise BadRequest(str(error)) from None


def decimal(low: int, high: int) -> Check:
    """Return the check of a number in an address."""

    inside = number(low, high, whole=True)

    def check(text: str) -> int:
        return int(inside(int(text) if re.fullmatch("[0-9]{1,9}", text) else None))

    return check


def separated(check: Check) -> Check:
    """Return the check of up to 500 values in an address, with commas between them."""
    values = list_of(check, 500)
    return lambda text: values(text.split(","))
