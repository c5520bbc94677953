"""Flask's views under a2wsgi: each request in a thread of its pool."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware

from raincheck import LongRunningMiddleware
from tests.matrix.apps.flask_views import ROUTES, flask_app

app = LongRunningMiddleware(WSGIMiddleware(flask_app), routes=ROUTES)
