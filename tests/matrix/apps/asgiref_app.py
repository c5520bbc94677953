"""Flask's views under asgiref: one request after the other in one thread."""

from __future__ import annotations

from asgiref.wsgi import WsgiToAsgi

from raincheck import LongRunningMiddleware
from tests.matrix.apps.flask_views import ROUTES, flask_app

app = LongRunningMiddleware(WsgiToAsgi(flask_app), routes=ROUTES)
