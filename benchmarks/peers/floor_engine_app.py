"""The floor of an engine, with the first `DUTIES` of its duties, or "all": none if that is not set.

DUTIES=2 python -m taskiq worker peers.floor_engine_app:broker
"""

from __future__ import annotations

import os

from starlette.types import ASGIApp
from taskiq_redis import ListQueueBroker

from peers import floor_engine, lines

_wanted = os.environ.get("DUTIES", "0")
_duties = [*floor_engine.DUTIES][: None if _wanted == "all" else int(_wanted)]
_names = lines.module(floor_engine.__file__, __name__, _duties)

app: ASGIApp = _names["app"]
broker: ListQueueBroker = _names["broker"]
