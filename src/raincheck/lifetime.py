"""An app's lifespan, from the side of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from starlette.types import ASGIApp, Message

# Seconds that an app which has failed may take to end.
_PATIENCE = 1.0


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """Run an app's lifespan around a block, as a server does.

    Yields:
        The lifespan state.

    Raises:
        Exception: what the app raises at its start-up or shutdown.
        RuntimeError: the app reports that one of them failed, and raises nothing.
    """
    state: dict[str, Any] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    to_app_send, to_app = anyio.create_memory_object_stream[Message](2)
    from_app_send, from_app = anyio.create_memory_object_stream[Message](2)
    ended = anyio.Event()
    asked = True  # the app is at its start-up or shutdown, and somebody waits for how that goes
    raised: Exception | None = None

    async def run() -> None:
        nonlocal raised
        try:
            with from_app_send:
                await app(scope, to_app.receive, from_app_send.send)
        except Exception as error:
            if not asked:
                raise
            raised = error
        finally:
            ended.set()

    async def say(event: str) -> Exception | None:
        await to_app_send.send({"type": f"lifespan.{event}"})
        answer: Message = {"type": "no answer"}
        with suppress(anyio.EndOfStream):
            answer = await from_app.receive()
        if answer["type"] == f"lifespan.{event}.complete":
            return None
        with anyio.move_on_after(_PATIENCE):  # it is about to raise what it reports
            await ended.wait()
        return raised or RuntimeError(f"{answer['type']}: {answer.get('message', '')}")

    with to_app_send, to_app, from_app:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            failed = await say("startup")
            if failed is None:
                asked = False
                yield state
                asked = True
                failed = await say("shutdown")
            if failed is not None:
                group.cancel_scope.cancel()
    if failed is not None:
        raise failed
    if raised is not None:
        raise raised
