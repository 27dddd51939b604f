"""The application: all routes, what every answer carries, and how an error is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flask import Flask, Response, jsonify, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from config import ROOT, Settings
from errors import EngineError, StaleToken
from i18n import _
from redisConnect import Queue
from shapes import line
from store import Tokens
from web.access import AccessVerbs
from web.adding import Adding
from web.budgets import Budgets
from web.dashboard import Dashboard
from web.guard import ENGINE_RETRY_SECONDS, Guard, SignInNeeded, demand_roles
from web.jobs import Jobs
from web.keyring import Keyring, access
from web.messages import MAX_BODY_BYTES, this_request
from web.metrics import Metrics
from web.openapi import openapi
from web.proxies import TrustedProxies
from web.session import CHANGE_SECONDS, Changes, Sessions
from web.steering import Steering
from web.verbs import Verbs

log = logging.getLogger(__name__)


CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


OF_EVERY_ANSWER = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)

OF_WORKERS = frozenset({"/expand", "/heartbeat", "/ack", "/nack", "/release", "/replay", "/budget"})
"""They come all the time, and nobody waits to see what they change."""
SEEN_BY_NOBODY = OF_WORKERS | {"/ui/sign-in", "/ui/sign-out"}
"""What changes no page."""


def create_app(settings: Settings, queue: Queue) -> Flask:
    """Return the application; whoever made the queue closes it."""
    app = _Application("web_server", root_path=str(ROOT))
    app.debug = False  # whatever FLASK_DEBUG says: its error pages show code and environment
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json = _Compact(app)
    sessions = Sessions(settings.token)
    tokens = Tokens(queue)
    keyring = Keyring(tokens, round(settings.lease_seconds * 1000))
    guard = Guard(settings, sessions, tokens, keyring)
    app.wsgi_app = TrustedProxies(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]

    verbs, jobs = Verbs(settings, queue, keyring), Jobs(queue)
    steering, budgets = Steering(queue), Budgets(queue, keyring)
    metrics = Metrics(queue, verbs.totals)
    app.before_request(metrics.begin_request)
    app.before_request(guard.check)
    for view in (
        *(verbs.get_url, verbs.status, verbs.sources, verbs.success, verbs.failed, verbs.healthz, verbs.livez),
        *(jobs.jobs, jobs.job, jobs.failures),
        *(verbs.history, steering.actions, metrics.metrics),
    ):
        app.add_url_rule(f"/{view.__name__}", view_func=view)
    for change in (
        *(verbs.expand, verbs.heartbeat, verbs.ack, verbs.nack, verbs.release, verbs.replay),
        *(verbs.add_url, verbs.watch, verbs.redrive, steering.steer, steering.login),
        *(jobs.cancel, jobs.first, jobs.forget),
        budgets.budget,
    ):
        app.add_url_rule(f"/{change.__name__}", view_func=change, methods=["POST"])
    app.add_url_rule("/openapi.json", view_func=openapi)
    dashboard = Dashboard(settings, queue, guard, sessions, tokens)
    for address, page in dashboard.routes().items():
        app.add_url_rule(address, f"page_{page.__name__}", page)
    changes_of_pages = {
        **AccessVerbs(queue, tokens, keyring, sessions).routes(),
        "/ui/add": Adding(settings, queue).add_lines,
        "/ui/sign-in": dashboard.sign_in,
        "/ui/sign-out": dashboard.sign_out,
    }
    _add_changes(app, changes_of_pages)
    demand_roles(app)

    def answer_error(error: HTTPException) -> BaseResponse:
        if isinstance(error, SignInNeeded):
            return dashboard.frame.sign_in(error)
        is_page = request.method == "GET" and request.path.startswith("/ui/")
        return dashboard.frame.problem(error) if is_page else _answer_error(error)

    app.register_error_handler(HTTPException, answer_error)
    app.register_error_handler(StaleToken, _answer_stale_token)
    app.register_error_handler(EngineError, _answer_engine_error)

    changes = Changes()

    @app.before_request
    def hear_of_changes() -> None:
        has_cookie = "HTTP_COOKIE" in request.environ  # workers have none; and not anybody who writes one is heard
        if has_cookie and access().role and changes.is_news(request.cookies.get(Changes.COOKIE, "")):
            dashboard.clear()

    @app.after_request
    def finish(response: Response) -> Response:
        asked = this_request()
        metrics.count_request(asked, response)
        if asked.method == "POST" and asked.path not in SEEN_BY_NOBODY and response.status_code < 400:
            dashboard.clear()
            response.set_cookie(
                Changes.COOKIE, changes.note(), max_age=CHANGE_SECONDS, httponly=True, samesite="Strict"
            )
        return response

    _add_fields(app)

    return app


def _add_changes(app: Flask, changes: Mapping[str, Callable[[], BaseResponse]]) -> None:
    for address, change in changes.items():
        app.add_url_rule(address, view_func=change, methods=["POST"])


class _Application(Flask):
    """A Flask that knows that no view is a coroutine: it would look at each function, at each request."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function as it is."""
        return func


class _Compact(DefaultJSONProvider):
    """Writes answers as they are, with one encoder for all of them: Flask's makes one for each."""

    _encode = staticmethod(json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        """Return an answer of JSON."""
        return Response(f"{self._encode(args[0] if args else kwargs)}\n", mimetype="application/json")


def _add_fields(app: Flask) -> None:
    """Let every answer have OF_EVERY_ANSWER; what it shows is not kept by anybody, unless it says otherwise itself."""
    inner = app.wsgi_app

    def wsgi(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def begin(status: str, fields: list[tuple[str, str]], *problem: Any) -> Any:
            is_kept = any(name == "Cache-Control" for name, _value in fields)
            more = OF_EVERY_ANSWER if is_kept else (("Cache-Control", "no-store"), *OF_EVERY_ANSWER)
            return start(status, [*fields, *more], *problem)

        return inner(environ, begin)

    app.wsgi_app = wsgi  # type: ignore[method-assign, assignment]


def _answer_error(error: HTTPException) -> Response:
    """Answer any HTTP error as JSON, with its own headers (Allow, WWW-Authenticate, Retry-After)."""
    sentences = {
        404: _("there is nothing at this address; / is the dashboard"),
        405: _("this address takes another method"),
        413: _("the body is larger than {limit} bytes").format(limit=MAX_BODY_BYTES),
        500: _("the server failed; its log says how"),
    }
    sentence = sentences.get(error.code or 500, error.description or "")
    response = jsonify(error=sentence)
    response.status_code = error.code or 500
    for name, value in error.get_headers():
        if name != "Content-Type":
            response.headers.add(name, value)
    path = line(200, cut=True)(request.path)
    log.info(_("refused %s %s of %s: %d, %s"), request.method, path, request.remote_addr, error.code, sentence)
    return response


def _answer_stale_token(error: StaleToken) -> tuple[Response, int]:
    log.info("%s", error)
    return jsonify(error=str(error)), 409


def _answer_engine_error(error: EngineError) -> tuple[Response, int, dict[str, str]]:
    return jsonify(error=str(error)), 503, {"Retry-After": str(ENGINE_RETRY_SECONDS)}
