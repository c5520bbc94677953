"""Views in Flask, for apps that bring it to ASGI."""

# mypy: disallow-untyped-decorators=False
# (checked without Flask installed, too)

from __future__ import annotations

import asyncio

from flask import Flask

from raincheck import Policy, long_running
from tests.matrix.apps import work

flask_app = Flask(__name__)

ROUTES = {"POST /rule": Policy(max_running=1)}


@flask_app.post("/marked")
@long_running(max_running=1)
def marked() -> str:
    return work.compute("marked")


@flask_app.post("/awaiting")
@long_running(max_running=1)
async def awaiting() -> str:
    return await asyncio.to_thread(work.compute, "awaiting")


@flask_app.post("/rule")
def rule() -> str:
    return work.compute("rule")


@flask_app.post("/coroutine")
@long_running(max_running=1)
async def coroutine() -> str:
    return await work.slow("coroutine", 60)


@flask_app.post("/timeout")
@long_running(timeout=0.5)
async def timeout() -> str:
    return await work.slow("timeout", 60)
