"""What all pages of the dashboard have in common: language, colours, the frame around, and what viewers share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from flask import Response, make_response, redirect, render_template, request
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from config import Settings
from errors import EngineError
from i18n import catalogue
from plain_text import size_text, span_text
from sources import job_address
from web.guard import ENGINE_RETRY_SECONDS, may
from web.kept import Kept
from web.keyring import access
from web.session import Sessions
from web.units import moment_text, speed_setting

LANGUAGES = {"en": "en", "zh-CN": "zh_CN"}
"""As browsers name them, and as catalogues are named."""
THEMES = ("auto", "light", "dark")
LOOK_SECONDS = 365 * 86400
MAX_KEY_CHARACTERS = 1000
"""Addresses that are longer are answered, but not kept."""

Content = dict[str, Any]


class Missing(NamedTuple):
    """A page of something that is not there."""

    content: Content


@dataclass(frozen=True, slots=True)
class _Shown:
    html: str
    etag: str
    status: int = 200


class Frame:
    """Renders pages. What changes of one is made at most once a second for all who look at it."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._kept: Kept[_Shown] = Kept()

    def clear(self) -> None:
        """Show what was changed at once."""
        self._kept.clear()

    def page(self, name: str, look: Callable[[], Content | Missing], **around: Any) -> BaseResponse:
        """Return a page, or with ``?fragment`` what changes of it: ``look`` returns what its template shows.

        ``around`` is for what does not change, ``{name}_form.html``.
        """
        if (chosen := self._chosen()) is not None:
            return chosen
        language = _language()
        key = (
            name,
            language,
            access().role,
            urlencode(sorted(item for item in request.args.items() if item[0] != "fragment")),
        )
        try:
            if len(key[3]) > MAX_KEY_CHARACTERS:
                shown = self._show(name, look, language)
            else:
                shown = self._kept.get(key, lambda: self._show(name, look, language))
        except EngineError as error:
            shown = _Shown(self._render("problem.html", language, engine=str(error)), "", 503)
        if "fragment" not in request.args:
            html = self._render("frame.html", language, page=name, live=Markup(shown.html), **around)
            return self._answer(html, shown.status)
        if shown.etag and request.if_none_match.contains(shown.etag):
            return self._answer("", 304, shown.etag)
        status = 200 if shown.status == 404 else shown.status  # the page is there, and says that the thing is not
        return self._answer(shown.html, status, shown.etag)

    def problem(self, error: HTTPException) -> BaseResponse:
        """Return a page that says what is wrong with the request for one."""
        language = _language()
        live = Markup(self._render("problem.html", language, status=error.code, sentence=error.description))
        answer = self._answer(self._render("frame.html", language, page="problem", live=live), error.code or 500)
        return _with_fields_of(error, answer)

    def sign_in(self, error: HTTPException) -> BaseResponse:
        """Return the page that asks for the token."""
        if "fragment" not in request.args and (chosen := self._chosen()) is not None:
            return chosen
        answer = self._answer(self._render("sign_in.html", _language()), error.code or 401)
        return _with_fields_of(error, answer)

    def _show(self, name: str, look: Callable[[], Content | Missing], language: str) -> _Shown:
        found = look()
        status = 404 if isinstance(found, Missing) else 200
        content = found.content if isinstance(found, Missing) else found
        html = self._render(f"{name}.html", language, **content)
        return _Shown(html, hashlib.blake2b(html.encode(), digest_size=12).hexdigest(), status)

    def _render(self, template: str, language: str, **content: Any) -> str:
        speak = catalogue([LANGUAGES[language]]).gettext
        return render_template(
            template,
            _=speak,
            language=language,
            theme=_theme(),
            themes=THEMES,
            size=size_text,
            setting=speed_setting,
            span=lambda seconds: span_text(seconds, speak),
            moment=moment_text,
            now=time.time(),
            link=lambda url: job_address(url, self._settings.web_url),
            may=lambda address: may(access().role, address),
            has_session=bool(request.cookies.get(self._sessions.cookie)) if self._settings.token else False,
            **content,
        )

    def _answer(self, html: str, status: int, etag: str = "") -> Response:
        answer = make_response(html, status)
        answer.headers["Vary"] = "Accept-Language, Cookie"
        if etag:
            answer.set_etag(etag)
        if status == 503:
            answer.headers["Retry-After"] = str(ENGINE_RETRY_SECONDS)
        return answer

    def _chosen(self) -> BaseResponse | None:
        """Remember a language or colours that were chosen by a link, and lead to the same page without them."""
        wishes = {"language": LANGUAGES, "theme": THEMES}
        chosen = {name: request.args[name] for name, known in wishes.items() if request.args.get(name) in known}
        if not chosen:
            return None
        rest = urlencode([item for item in request.args.items(multi=True) if item[0] not in chosen])
        path = quote(request.path)  # as it came: what is in it unquoted would end the field
        answer = redirect(f"{path}?{rest}" if rest else path, 303)
        for name, value in chosen.items():
            answer.set_cookie(f"bili_{name}", value, max_age=LOOK_SECONDS, httponly=True, samesite="Lax")
        return answer


def _with_fields_of(error: HTTPException, answer: Response) -> Response:
    """Give the page of an error what its status needs (Allow, WWW-Authenticate, Retry-After)."""
    for name, value in error.get_headers():
        if name != "Content-Type":
            answer.headers.add(name, value)
    return answer


def _language() -> str:
    if (chosen := request.cookies.get("bili_language")) in LANGUAGES:
        return str(chosen)
    for tag, _quality in request.accept_languages:
        for prefix, language in (("zh", "zh-CN"), ("en", "en")):
            if tag.lower().startswith(prefix):
                return language
    return "en"


def _theme() -> str:
    chosen = request.cookies.get("bili_theme", "")
    return chosen if chosen in THEMES else THEMES[0]
