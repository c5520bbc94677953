"""Responders in Falcon that compute in threads: Falcon's own way, and asyncio's in a group."""

from __future__ import annotations

import asyncio

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from raincheck import LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work


class Marked:
    @long_running(max_running=1)
    def on_post(self, req: Request, resp: Response) -> None:
        resp.text = work.compute("marked")


class Awaiting:
    @long_running(max_running=1)
    async def on_post(self, req: Request, resp: Response) -> None:
        async with asyncio.TaskGroup() as group:
            computes = group.create_task(asyncio.to_thread(work.compute, "awaiting"))
        resp.text = computes.result()


class Rule:
    async def on_post(self, req: Request, resp: Response) -> None:
        resp.text = await falcon.sync_to_async(work.compute, "rule")


falcon_app = falcon.asgi.App()
falcon_app.add_route("/marked", Marked())
falcon_app.add_route("/awaiting", Awaiting())
falcon_app.add_route("/rule", Rule())

app = LongRunningMiddleware(falcon_app, routes={"POST /rule": Policy(max_running=1)})
