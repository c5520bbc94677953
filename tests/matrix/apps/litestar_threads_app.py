"""Handlers in Litestar that compute in threads: Litestar's own, and an executor's."""

# mypy: disallow-untyped-decorators=False
# (checked without Litestar installed, too)

from __future__ import annotations

import asyncio

from litestar import Litestar, post

from raincheck import LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work


@post("/marked")
@long_running(max_running=1)
def marked() -> str:
    return work.compute("marked")


@post("/awaiting")
@long_running(max_running=1)
async def awaiting() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, work.compute, "awaiting")


@post("/rule", sync_to_thread=True)
def rule() -> str:
    return work.compute("rule")


app = LongRunningMiddleware(
    Litestar([marked, awaiting, rule]), routes={"POST /rule": Policy(max_running=1)}
)
