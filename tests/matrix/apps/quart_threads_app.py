"""Views in Quart that compute in threads: Quart's own, and asyncio's."""

# mypy: disallow-untyped-decorators=False
# (checked without Quart installed, too)

from __future__ import annotations

import asyncio

from quart import Quart

from raincheck import LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work

quart_app = Quart(__name__)


@quart_app.post("/marked")
@long_running(max_running=1)
def marked() -> str:
    return work.compute("marked")


@quart_app.post("/awaiting")
@long_running(max_running=1)
async def awaiting() -> str:
    return await asyncio.to_thread(work.compute, "awaiting")


@quart_app.post("/rule")
def rule() -> str:
    return work.compute("rule")


app = LongRunningMiddleware(quart_app, routes={"POST /rule": Policy(max_running=1)})
