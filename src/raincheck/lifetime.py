"""An app's lifespan, from the side of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.types import ASGIApp, Message


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """Run an app's lifespan around a block, as a server does.

    Yields:
        The lifespan state.

    Raises:
        RuntimeError: the app reports that its start-up or shutdown failed.
    """
    state: dict[str, Any] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    to_app_send, to_app = anyio.create_memory_object_stream[Message](2)
    from_app_send, from_app = anyio.create_memory_object_stream[Message](2)

    async def run() -> None:
        with from_app_send:
            await app(scope, to_app.receive, from_app_send.send)

    async def say(event: str) -> None:
        await to_app_send.send({"type": f"lifespan.{event}"})
        answer = await from_app.receive()
        if answer["type"] != f"lifespan.{event}.complete":
            raise RuntimeError(f"{answer['type']}: {answer.get('message', '')}")

    with to_app_send, to_app, from_app:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await say("startup")
            yield state
            await say("shutdown")
