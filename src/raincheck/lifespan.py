"""Lifespan: the jobs open when the app has started, and drain before it shuts down."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck.errors import ConfigurationError
from raincheck.tasks import open_tasks

# Seconds that an app which has failed may take to end.
_PATIENCE = 1.0

logger: logging.Logger = logging.getLogger("raincheck")

Opening = Callable[[], Awaitable[None]]


class Lifespan:
    """One lifespan, between the server and the app (ASGI lifespan specification, version 2.0).

    An app that knows no lifespan does not keep the server from having one here.

    Args:
        opening: called when the app has started; a ConfigurationError fails the start-up.
        closing: called before the app shuts down.
        receive: the server's.
        send: the server's.
    """

    def __init__(self, opening: Opening, closing: Opening, receive: Receive, send: Send) -> None:
        self._opening = opening
        self._closing = closing
        self._receive = receive
        self._send = send
        self._received = 0
        self._started = False
        self._ended = False
        self._mistake: ConfigurationError | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the app's lifespan, and do what it leaves undone."""
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            await self._failed(error)
        await self._finish()

    async def receive(self) -> Message:
        """ASGI `receive` for the app."""
        message = await self._receive()
        self._received += 1
        if message["type"] == "lifespan.shutdown":
            await self._closing()
        return message

    async def send(self, message: Message) -> None:
        """ASGI `send` for the app."""
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            try:
                await self._opening()
            except ConfigurationError as mistake:
                self._mistake = mistake  # the app is going to report this, or just to end
                raise
            self._started = True
        elif kind == "lifespan.startup.failed":
            self._ended = True
            if self._mistake is not None:
                message = {"type": kind, "message": str(self._mistake)}
        elif kind.startswith("lifespan.shutdown."):
            self._ended = True
        else:
            raise RuntimeError(f"the app answered a lifespan scope with {kind!r}")
        await self._send(message)

    async def _failed(self, error: Exception) -> None:
        """The app has raised."""
        if isinstance(error, ConfigurationError) and not self._started:
            self._mistake = error  # of another middleware inside: no way to say "no lifespan"
        if self._mistake is not None and not self._ended:
            await self.send({"type": "lifespan.startup.failed"})
        if self._started or self._ended:
            await self._closing()
            raise error
        # Without an answer, that is how an app says that it knows no lifespan.
        logger.info("the app has no lifespan (%r); raincheck has one without it", error)

    async def _finish(self) -> None:
        """The app has returned; do what it has not done, so that the jobs are drained."""
        if self._ended:
            return
        if not self._started:
            if not self._received:
                await self.receive()
            try:
                await self.send({"type": "lifespan.startup.complete"})
            except ConfigurationError:
                await self.send({"type": "lifespan.startup.failed"})
                raise
        if self._received < 2:
            await self.receive()
        await self.send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """Run an app's lifespan around a block, as a server does.

    The block may end in another task than it began.

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
    raised: Exception | None = None

    async def run() -> None:
        nonlocal raised
        try:
            with from_app_send:
                await app(scope, to_app.receive, from_app_send.send)
        except Exception as error:
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

    # No task group: fixtures of pytest-asyncio and unittest end in another task than they began.
    tasks = open_tasks()
    with to_app_send, to_app, from_app_send, from_app:
        try:
            tasks.spawn(run, copy_context())
            failed = await say("startup")
            if failed is None:
                yield state
                failed = await say("shutdown")
            if failed is None:
                await ended.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await tasks.aclose()
    if failed is not None:
        raise failed
    if raised is not None:
        raise raised
