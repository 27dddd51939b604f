"""The description of the API for programs, as OpenAPI 3.1: one table of its requests and answers.

The bounds are those of the checks in ``messages.py``, by the same names where they have one; the tests ask a running
server whether both say the same. A POST takes what it does not know; what an answer has is all here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple

from flask import Response, jsonify

from model import CURSOR_CHARACTERS, JOB_ID_CHARACTERS, Counts
from series import HOUR, RINGS
from sources import LEAST_WATCH_SECONDS, MOST_WATCH_SECONDS
from store import ROLES, STATES
from web.guard import may
from web.messages import (
    MAX_LEASES,
    MAX_PAGES,
    MAX_RESULTS,
    MAX_RISK_SECONDS,
    MAX_STORED_CHARACTERS,
    MAX_URLS,
    MAX_WORKERS,
)
from web.qr_code import LINK_CHARACTERS

Schema = Mapping[str, Any]


class Route(NamedTuple):
    """A request of the API, and what it is answered with 200."""

    method: str
    path: str
    summary: str
    answer: Schema
    body: Schema | None = None
    query: Mapping[str, Schema] = {}
    needs: tuple[str, ...] = ()
    """Parameters of the query that must be there."""
    errors: tuple[int, ...] = ()
    """Statuses that it has beside those that every request may get."""
    is_open: bool = False
    """It asks for no token."""
    media: str = "application/json"


# ------------------------------------------------------------------------------------------ words of schemas


def _text(maximum: int | None = None, minimum: int = 0, **more: Any) -> Schema:
    bounds = {"minLength": minimum or None, "maxLength": maximum}
    return {"type": "string", **{name: bound for name, bound in bounds.items() if bound is not None}, **more}


def _whole(low: int | None = None, high: int | None = None) -> Schema:
    return {**_number(low, high), "type": "integer"}


def _number(low: float | None = None, high: float | None = None) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {"type": "number", **{name: bound for name, bound in bounds.items() if bound is not None}}


def _words(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def _list(item: Schema, maximum: int | None = None) -> Schema:
    return {"type": "array", "items": item, **({} if maximum is None else {"maxItems": maximum})}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _answer(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _body(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    """Return an object that is sent: an optional field that is null counts as missing."""
    return _answer(required, **{name: _or_null(schema) for name, schema in optional.items()})


def _with_one_of(names: tuple[str, ...], required: Mapping[str, Schema], **optional: Schema) -> Schema:
    """Return an object that is sent with at least one of some of its optional fields."""
    return {**_body(required, **optional), "anyOf": [{"required": [name]} for name in names]}


def _lenient(**fields: Schema) -> Schema:
    """Return what is only shown to people: what does not fit is left out, so that anything is taken."""
    return {"anyOf": [_answer({}, **fields), {}]}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


# ------------------------------------------------------------------------------------------ what several have

_FLAG: Schema = {"type": "boolean"}
_TEXT = _text()
_COUNT = _whole(0)
_SECONDS = _number(0)
_SIZE = _whole(0, 2**63 - 1)
_LONG_SECONDS = _number(0, 1e9)
_SPEED = _number(0, 1e15)
_PACE = _number(0, 1e6)
_JOB_ID = _named("job_id")
_CONTAINER = _text(JOB_ID_CHARACTERS, 1, format="container-id")
_TITLE = _text(1000)
_WORKER = _text(64, 1)
_REQUEST = _text(64, 1)
_LEASE_FIELDS = {"url": _JOB_ID, "token": _text(200, 1)}
_ITEMS = _whole(0, 10**9)
_CURSOR_FIELD = _text(2000)
_WISHES = {"since": _whole(0, 2**40), "match": _text(200), "limit": _ITEMS, "oldest_first": _FLAG}
_WATCH = {"anyOf": [{"type": "integer", "const": 0}, _whole(LEAST_WATCH_SECONDS, MOST_WATCH_SECONDS)]}
_RISK = {"kind": _text(40, 1), "seconds": _number(0, MAX_RISK_SECONDS)}
_BOOLEAN_NUMBER = _whole(0, 1)
_WORKING = {
    "stop": _BOOLEAN_NUMBER,
    "count": _whole(1, MAX_LEASES),
    "max_speed": {"anyOf": [_text(32), _number(0), {"type": "null"}]},
    "drain": _BOOLEAN_NUMBER,
}
_LOGIN = _answer(
    {},
    id=_text(64),
    state=_words("scan", "scanned", "done", "expired", "failed"),
    link=_text(LINK_CHARACTERS),
    note=_TEXT,
)
_PROGRESS: dict[str, Schema] = {
    "title": _TEXT,
    "stage": _TEXT,
    "streams": _list(
        _lenient(name=_TEXT, done_bytes=_SIZE, total_bytes=_SIZE, mirror=_TEXT, speed_bytes_per_second=_SPEED),
        64,
    ),
    "chunks": _FLAG,
}
_STATE: dict[str, Schema] = {
    "state": _TEXT,
    "speed_bytes_per_second": _SPEED,
    "done": _SIZE,
    "failed": _SIZE,
    "working": _answer({}, **{**_WORKING, "max_speed": _or_null(_SPEED)}),
    "disk_free_bytes": _SIZE,
    "note": _TEXT,
    "order_problem": _TEXT,
    "login": _LOGIN,
}
_SITE = _body(
    {},
    requests_per_second=_PACE,
    wanted_per_second=_PACE,
    allowed_per_second=_PACE,
    answers=_whole(0, 2**53),
    refused=_body({"kind": _text(40, 1)}, seconds=_number(0, MAX_RISK_SECONDS)),
)
_STANDS = {"account": _text(64, 1), "egress": _text(64, 1)}
_FINISHED = {"url": _JOB_ID, "path": _text(4096, 1), "bytes": _SIZE, "seconds": _LONG_SECONDS}
_OF_RESULT = {"title": _TEXT, "streams": _TEXT, "stored": _text(MAX_STORED_CHARACTERS)}
_LEDGER = _body(
    {"page": _whole(1, 10**6)},
    title=_TITLE,
    announced=_ITEMS,
    pages=_whole(0, 10**6),
    unavailable={"type": "object", "additionalProperties": _ITEMS, "maxProperties": 50},
    skipped=_list(_JOB_ID, 500),
    taken=_ITEMS,
    cursor=_CURSOR_FIELD,
    ended=_words("end", "wished"),
)
_LISTED: dict[str, Schema] = {
    "after": _text(CURSOR_CHARACTERS),
    "limit": _whole(1, 1000),
}
_URLS = _body({"urls": _list(_JOB_ID, MAX_URLS)})
_RECORD: dict[str, Schema] = {
    "url": _TEXT,
    "title": _TEXT,
    "path": _TEXT,
    "bytes": _COUNT,
    "seconds": _SECONDS,
    "worker": _TEXT,
    "streams": _TEXT,
    "stored": _TEXT,
    "time": _SECONDS,
}
_FAILURE: dict[str, Schema] = {
    "url": _TEXT,
    "state": _words("dead", "delayed"),
    "title": _TEXT,
    "code": _TEXT,
    "reason": _TEXT,
    "attempts": _COUNT,
    "worker": _TEXT,
    "time": _SECONDS,
    "next_retry_seconds": _or_null(_SECONDS),
}
_ARCHIVED = {"archived": _list(_TEXT)}
_JOB: dict[str, Schema] = {
    **_FAILURE,
    "state": _words("ready", "leased", "delayed", "dead", "done"),
    "time": _or_null(_SECONDS),
    "category": _TEXT,
    "source": _TEXT,
    "cancelled": _FLAG,
}
_OF_FINISHED = {**{name: _RECORD[name] for name in ("path", "bytes", "seconds", "streams", "stored")}, **_ARCHIVED}
_ERRORS = _list(_answer({"time": _SECONDS, "worker": _TEXT, "attempt": _COUNT, "code": _TEXT, "reason": _TEXT}))


def _page_of(item: Schema, **more: Schema) -> Schema:
    return _answer({"items": _list(item), "next": _or_null(_TEXT), **more})


_BUDGET = _answer(
    {
        "requests_per_second": _or_null(_PACE),
        "parked_seconds": _SECONDS,
        "holds_seconds": _SECONDS,
        "probes": _FLAG,
        "kind": _TEXT,
    }
)
_ORDER: dict[str, Schema] = {"id": _TEXT, "working": _answer({}, **_WORKING), "login": _TEXT}
_SCHEMAS: dict[str, Schema] = {
    "error": _answer({"error": {**_TEXT, "description": "A sentence, in the language of the server's user."}}),
    "job_id": {
        **_text(JOB_ID_CHARACTERS, 1),
        "format": "job-id",
        "description": "A container, a page or a source, exactly as it stands in the queue.",
        "examples": ["BV1xx411c7mD", "BV1xx411c7mD?p=1&cid=279786", "ep123456", "mid:137137"],
    },
    "lease": _answer(
        {
            "url": _TEXT,
            "token": _TEXT,
            "category": _TEXT,
            "attempt": _whole(1),
            "lease_seconds": _SECONDS,
        },
        walk=_answer({**_WISHES, "cursor": _TEXT, "page": _COUNT, "taken": _COUNT, "quick": _FLAG}),
    ),
    "job": _answer(_JOB, **_OF_FINISHED),
    "breaker": _answer(
        {
            "group": _TEXT,
            "state": _words("open", "probed"),
            "seconds": _SECONDS,
            "failures": _COUNT,
            "kind": _TEXT,
            "prober": _TEXT,
        }
    ),
    "worker": _answer(
        {"worker": _TEXT, "seen_seconds": _SECONDS},
        jobs=_list(_answer({"url": _TEXT}, **_PROGRESS)),
        **_STATE,
        order=_answer({"id": _TEXT, "who": _TEXT, "at": _SECONDS}, working=_answer({}, **_WORKING), login=_TEXT),
        account=_TEXT,
        risk=_TEXT,
        egress=_TEXT,
        requests_per_second=_PACE,
        wanted_per_second=_PACE,
        allowed_per_second=_PACE,
    ),
    "source": _answer(
        {
            "source": _TEXT,
            "state": _words("ready", "leased", "delayed", "dead", "closed"),
            **{name: _TEXT for name in ("code", "reason", "category", "title", "ended", "cursor")},
            "wishes": _answer({}, **_WISHES),
            **{name: _or_null(_COUNT) for name in ("announced", "pages_expected")},
            **{name: _COUNT for name in ("pages_read", "listed", "queued", "known", "watched")},
            "unavailable": {"type": "object", "additionalProperties": _COUNT},
            "complete": _or_null(_FLAG),
            **{name: _or_null(_SECONDS) for name in ("started", "finished", "checked", "full_pass")},
        }
    ),
}

_ADD = _body(
    {"urls": _list(_TEXT, MAX_URLS)},
    category={**_text(120), "format": "category"},
    source=_text(200),
    refresh=_FLAG,
    request=_REQUEST,
    wishes=_body({}, **_WISHES),
    again=_FLAG,
    watch=_WATCH,
)
_LEASES = {"worker": _WORKER, "request": _REQUEST, "instance": _REQUEST}


# ------------------------------------------------------------------------------------------ the table

ROUTES = (
    Route(
        "GET",
        "/get_url",
        "Lease jobs; where nothing is ready, Retry-After says when to ask again",
        _list(_named("lease"), MAX_LEASES),
        query={
            **_LEASES,
            "count": _whole(1, MAX_LEASES),
            "have": _list(_JOB_ID, 500),
            "have_bytes": _list(_whole(0, 10**15 - 1), 500),
        },
    ),
    Route(
        "POST",
        "/expand",
        "Turn a leased container into its jobs",
        _answer({"added": _COUNT, "known": _COUNT, "lease": _or_null(_named("lease")), "ended": _FLAG}),
        _with_one_of(
            ("pages", "urls"),
            _LEASE_FIELDS,
            title=_TITLE,
            pages=_list(
                _body(
                    {"number": _whole(1, 99999), "cid": _whole(1, 2**53 - 1), "title": _TITLE},
                    duration_seconds=_LONG_SECONDS,
                ),
                MAX_PAGES,
            ),
            urls=_list(_CONTAINER, MAX_PAGES),
            more=_FLAG,
            ledger=_LEDGER,
        ),
        errors=(409,),
    ),
    Route(
        "POST",
        "/heartbeat",
        "Keep a worker's leases, and tell what it does",
        _answer(
            {
                "lost": _list(_TEXT),
                "control": _or_null(_answer({"slow_seconds": _SECONDS})),
                "heartbeat_seconds": _SECONDS,
                "order": _or_null(_answer({"id": _TEXT}, working=_answer({}, **_WORKING), login=_TEXT)),
                "budget": _or_null(_BUDGET),
            },
            data=_TEXT,
            replay=_FLAG,
        ),
        _body(
            {"worker": _WORKER, "jobs": _list(_body(_LEASE_FIELDS, progress=_lenient(**_PROGRESS)), 256)},
            state=_lenient(**_STATE, order=_text(64)),
            finished=_list(_JOB_ID, 64),
            risk=_body(_RISK),
            site=_SITE,
            **_STANDS,
        ),
    ),
    Route(
        "POST",
        "/budget",
        "Say how the site may be asked by those who have no heartbeat",
        _BUDGET,
        _body({"worker": _WORKER, "site": _SITE}, **_STANDS),
    ),
    Route(
        "POST",
        "/ack",
        "Record a finished page",
        _answer({"state": _words("done")}),
        _body({**_LEASE_FIELDS, **_FINISHED}, **_OF_RESULT),
        errors=(409,),
    ),
    Route(
        "POST",
        "/replay",
        "Record what a worker finished and the queue has lost",
        _answer({"recorded": _COUNT, "known": _COUNT}),
        _body({"worker": _WORKER, "results": _list(_body(_FINISHED, **_OF_RESULT), MAX_RESULTS)}),
    ),
    Route(
        "POST",
        "/nack",
        "Record a failed attempt",
        _answer({"state": _words("delayed", "dead", "ready")}),
        _body(
            {
                **_LEASE_FIELDS,
                "class": _words("transient", "waiting", "permanent", "environment"),
                "code": {"anyOf": [_text(100), _whole(1 - 10**9, 10**9 - 1)]},
                "reason": _TEXT,
            },
            title=_TEXT,
            retry_after_seconds=_number(0, 7 * 86400),
        ),
        errors=(409,),
    ),
    Route(
        "POST",
        "/release",
        "Give a job back untouched",
        _answer({"state": _words("ready")}),
        _body(_LEASE_FIELDS, kept=_FLAG),
        errors=(409,),
    ),
    Route(
        "POST",
        "/add_url",
        "Queue videos and sources",
        _answer(
            {"added": _COUNT, "known": _COUNT, "rejected": _list(_answer({"url": _TEXT, "reason": _TEXT}))},
        ),
        _ADD,
    ),
    Route(
        "POST",
        "/watch",
        "Have a source or a video read again and again, or no more",
        _answer({"source": _TEXT, "before": _COUNT}),
        _body({"source": {**_text(JOB_ID_CHARACTERS), "format": "job-id"}, "seconds": _WATCH}),
    ),
    Route("GET", "/sources", "List what is known of each source", _page_of(_named("source")), query=_LISTED),
    Route(
        "GET",
        "/jobs",
        "List jobs by their places, or find some; a token of the role submit has to say which, in find",
        _page_of(_named("job")),
        query={
            "state": _words(*STATES),
            "category": _text(120),
            "source": _text(JOB_ID_CHARACTERS),
            "find": _text(JOB_ID_CHARACTERS),
            **_LISTED,
        },
    ),
    Route(
        "GET",
        "/job",
        "Show one job and what happened to it",
        _answer(_JOB, **_OF_FINISHED, errors=_ERRORS),
        query={"url": _JOB_ID},
        needs=("url",),
        errors=(404,),
    ),
    Route("POST", "/cancel", "Let jobs be done no more", _answer({"cancelled": _COUNT}), _URLS),
    Route("POST", "/first", "Let jobs come next", _answer({"moved": _COUNT}), _URLS),
    Route("POST", "/forget", "Take dead and done jobs out of the memory", _answer({"forgotten": _COUNT}), _URLS),
    Route(
        "POST",
        "/redrive",
        "Give dead or delayed jobs all their attempts back",
        _answer({"redriven": _COUNT}),
        _with_one_of(("urls", "all", "code"), {}, urls=_list(_JOB_ID, MAX_URLS), all=_FLAG, code=_text(100)),
    ),
    Route(
        "POST",
        "/steer",
        "Have machines set keys of their working.json",
        _answer(
            {
                "steered": _list(_TEXT),
                "unknown": _list(_TEXT),
                "undo": _list(_answer({"workers": _list(_TEXT), "working": {"type": "object"}})),
            }
        ),
        _with_one_of(
            ("workers", "all"),
            {
                "working": {
                    **_answer({}, **_WORKING),
                    "minProperties": 1,
                    "additionalProperties": False,
                }
            },
            workers=_list(_WORKER, MAX_WORKERS),
            all=_FLAG,
        ),
    ),
    Route(
        "POST",
        "/login",
        "Have a machine begin a login",
        _answer({"id": _TEXT}),
        _body({"worker": _WORKER}),
        errors=(404,),
    ),
    Route(
        "GET",
        "/actions",
        "List what people did, the newest first",
        _answer(
            {"items": _list(_answer({"time": _SECONDS, "who": _TEXT, "what": _TEXT, "about": _TEXT}))},
        ),
        query={"limit": _whole(1, 1000)},
    ),
    Route(
        "GET",
        "/status",
        "Show the number of jobs in each state, and the workers",
        _answer(
            {
                "jobs": _answer(dict.fromkeys(Counts.__dataclass_fields__, _COUNT)),
                "workers": _list(_named("worker")),
                "next_due_seconds": _or_null(_SECONDS),
                "lease_seconds": _SECONDS,
                "seconds_left": _or_null(_SECONDS),
                "breakers": _list(_named("breaker")),
                "role": _words(*ROLES),
            }
        ),
    ),
    Route(
        "GET",
        "/history",
        "Show the farm's speed and what it finished",
        _answer({"step_seconds": _whole(1), "points": _list(_list(_or_null(_number()), 3))}),
        query={"range": {**_words(*RINGS), "default": HOUR}},
    ),
    Route(
        "GET",
        "/success",
        "List finished pages",
        _page_of(
            _answer(_RECORD, **_ARCHIVED),
            archived={"type": "object", "additionalProperties": _COUNT},
        ),
        query=_LISTED,
    ),
    Route(
        "GET",
        "/failed",
        "List dead and delayed jobs",
        _page_of(_answer(_FAILURE)),
        query={**_LISTED, "code": _text(100)},
    ),
    Route(
        "GET",
        "/failures",
        "Group dead and delayed jobs by what they failed of",
        _answer({"items": _list(_answer({"code": _TEXT, "reason": _TEXT, "dead": _COUNT, "delayed": _COUNT}))}),
    ),
    Route("GET", "/healthz", "Say whether server and engine work", _answer({"status": _words("ok")}), is_open=True),
    Route("GET", "/livez", "Say that the server answers", _answer({"status": _words("ok")}), is_open=True),
    Route("GET", "/metrics", "Show figures to Prometheus", _TEXT, media="text/plain"),
    Route("GET", "/openapi.json", "Describe this API", {"type": "object"}),
    Route(
        "POST",
        "/ui/add",
        "Queue videos and sources, with an answer for each text",
        _answer(
            {
                **dict.fromkeys(("added", "known", "rejected"), _COUNT),
                "items": _list(
                    _answer(
                        {
                            "url": _TEXT,
                            "state": _words("added", "known", "rejected"),
                            "id": _TEXT,
                            "reason": _TEXT,
                        }
                    )
                ),
            }
        ),
        _ADD,
    ),
    Route(
        "POST",
        "/join",
        "Get a worker's token for a code",
        _answer({"token": _TEXT, "role": _words("worker"), "id": _TEXT}),
        _body({"code": _text(40, 1), "worker": _WORKER}),
        is_open=True,
    ),
    Route(
        "POST",
        "/ui/tokens",
        "Make a token",
        _answer({"token": _TEXT, "id": _TEXT, "role": _words(*ROLES), "name": _TEXT}),
        _body({"role": _words(*ROLES)}, name=_text(64)),
    ),
    Route(
        "POST",
        "/ui/revoke",
        "Let a token be none any more",
        _answer({"revoked": _BOOLEAN_NUMBER, "returned": _COUNT}),
        _body({"id": _text(64, 1)}),
    ),
    Route(
        "POST",
        "/ui/join_code",
        "Make a code with which one machine may join",
        _answer({"code": _TEXT, "line": _TEXT, "seconds": _COUNT}),
        _body({}),
    ),
    Route(
        "POST",
        "/ui/sign-in",
        "Begin the session of a browser",
        _answer({"signed_in": _FLAG}),
        _body({"password": _text(1000)}),
        is_open=True,
    ),
    Route("POST", "/ui/sign-out", "End the session of a browser", _answer({"signed_in": _FLAG}), _body({})),
)
"""Every request of the API that is not answered with a page."""


class Link(NamedTuple):
    """What may be asked next, and with what of this answer or request."""

    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str] = {}


_VERBS = ("/ack", "/nack", "/release", "/expand")
_LEASED = {"url": "$response.body#/0/url", "token": "$response.body#/0/token"}
_FIRST_PAGE = {"url": "$response.body#/lease/url", "token": "$response.body#/lease/token"}
_SAME_LEASE = {"url": "$request.body#/url", "token": "$request.body#/token"}
_BEAT = {"worker": "$request.query.worker", "jobs": [_LEASED]}
_SAME_JOB = Link("/job", query={"url": "$request.body#/url"})
_FURTHER = {"after": "$response.body#/next"}

LINKS: Mapping[str, tuple[Link, ...]] = {
    "/add_url": (Link("/get_url"),),
    "/ui/add": (Link("/job", query={"url": "$response.body#/items/0/id"}),),
    "/get_url": (Link("/heartbeat", _BEAT), *(Link(verb, _LEASED) for verb in _VERBS)),
    "/expand": (*(Link(verb, _FIRST_PAGE) for verb in _VERBS[:-1]), Link("/expand", _SAME_LEASE)),
    "/ack": (Link("/ack", _SAME_LEASE), _SAME_JOB, Link("/forget", {"urls": ["$request.body#/url"]})),
    "/nack": (Link("/nack", _SAME_LEASE), _SAME_JOB, Link("/redrive", {"urls": ["$request.body#/url"]})),
    "/release": (Link("/release", _SAME_LEASE), Link("/first", {"urls": ["$request.body#/url"]})),
    "/cancel": (Link("/redrive", {"urls": "$request.body#/urls"}),),
    "/jobs": (Link("/jobs", query=_FURTHER), Link("/cancel", {"urls": ["$response.body#/items/0/url"]})),
    "/failed": (Link("/failed", query=_FURTHER), Link("/redrive", {"code": "$response.body#/items/0/code"})),
    "/success": (Link("/success", query=_FURTHER), Link("/job", query={"url": "$response.body#/items/0/url"})),
    "/sources": (Link("/sources", query=_FURTHER), Link("/jobs", query={"source": "$response.body#/items/0/source"})),
    "/heartbeat": (
        Link("/steer", {"workers": ["$request.body#/worker"]}),
        Link("/login", {"worker": "$request.body#/worker"}),
    ),
    "/ui/tokens": (Link("/ui/revoke", {"id": "$response.body#/id"}),),
    "/ui/join_code": (Link("/join", {"code": "$response.body#/code"}),),
    "/join": (Link("/ui/revoke", {"id": "$response.body#/id"}),),
}
"""How requests follow each other: a verb that is told twice, the same lease from its beginning to its end."""

OF_ALL = (400, 401, 403, 421, 429, 431, 500, 503)
"""The errors that every request may get."""
OF_POST = (411, 413, 415)


# ------------------------------------------------------------------------------------------ the description


@lru_cache(1)
def describe() -> dict[str, Any]:
    """Return the whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    statuses = sorted({*OF_ALL, *OF_POST, *(status for route in ROUTES for status in route.errors)})
    error = {"application/json": {"schema": _named("error")}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The queue server of the Bilibili downloader",
            "version": "1",
            "description": "What workers, scripts and the dashboard use. docs/api.md tells what the verbs mean.",
        },
        "security": [{"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "responses": {
                str(status): {"description": HTTPStatus(status).phrase, "content": error} for status in statuses
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The value of BILI_TOKEN."},
                "basic": {"type": "http", "scheme": "basic", "description": "Any name; the token is the password."},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    statuses = sorted({*OF_ALL, *(OF_POST if route.method == "POST" else ()), *route.errors})
    answer: dict[str, Any] = {"description": "OK", "content": {route.media: {"schema": route.answer}}}
    if route.path in LINKS:
        answer["links"] = {_operation_id(link.path): _link(link) for link in LINKS[route.path]}
    found: dict[str, Any] = {
        "operationId": _operation_id(route.path),
        "summary": route.summary,
        "description": _for_whom(route.path),
        "responses": {
            "200": answer,
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses},
        },
    }
    if route.query:
        found["parameters"] = [_parameter(name, schema, name in route.needs) for name, schema in route.query.items()]
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": route.body}}}
    if route.is_open:
        found["security"] = []
    elif route.path == "/get_url":
        found["security"] = [{"bearer": []}]
    return found


def _operation_id(path: str) -> str:
    return path.strip("/").replace("/", "_")


def _link(link: Link) -> dict[str, Any]:
    found: dict[str, Any] = {"operationId": _operation_id(link.path)}
    if link.query:
        found["parameters"] = {f"query.{name}": value for name, value in link.query.items()}
    return found if link.body is None else {**found, "requestBody": link.body}


def _for_whom(path: str) -> str:
    """Return a sentence that says which roles may use an address."""
    roles = [role for role in ("", *ROLES) if may(role, path)]
    return "For everybody, without a token." if "" in roles else f"For these roles: {', '.join(roles)}."


def _parameter(name: str, schema: Schema, is_needed: bool) -> dict[str, Any]:
    """Return a parameter of the query, an empty one counts as missing; several values have commas between."""
    if schema.get("type") == "array":
        form: dict[str, Any] = {"style": "form", "explode": False}
    else:
        form, schema = {}, schema if is_needed else {"anyOf": [schema, {"type": "string", "const": ""}]}
    return {"name": name, "in": "query", "required": is_needed, "schema": schema, **form}


def openapi() -> Response:
    """Describe the API for programs."""
    return jsonify(describe())
