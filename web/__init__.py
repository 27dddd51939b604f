"""The door of ``web/``: the queue over HTTP, as a Flask application, for workers, scripts and people.

Requests and answers are JSON, an error is ``{"error": "…"}`` with a fitting status; people get pages. Before any route
runs, the guard has looked at the name by which the server was called, at where a browser's request comes from, at the
token, and at the kind of the body. Nothing that a client submits is ever fetched.
"""

from web.access import join_line
from web.application import create_app
from web.messages import MAX_BODY_BYTES

__all__ = ["MAX_BODY_BYTES", "create_app", "join_line"]
