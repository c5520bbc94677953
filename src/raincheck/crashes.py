"""Crashes: the app's own handler for errors that nothing inside of it has handled."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ExceptionHandler, Message, Receive, Scope, Send


class Catchall:
    """What answers for errors outside of us, where we were added to an app's middleware.

    Starlette and FastAPI call the app's handler for `Exception`, or for 500, in the outermost of
    their middleware. There the error of a job does not get, since nobody waits for it there.

    Args:
        app: the app.
        handler: its handler.
    """

    __slots__ = ("_app", "_handler")

    def __init__(self, app: Starlette, handler: ExceptionHandler) -> None:
        self._app = app
        self._handler = handler

    @classmethod
    def around(cls, app: object) -> Catchall | None:
        """The one of an app that we stand in; None if it has no such handler.

        Args:
            app: what the scope names as it reaches us: of another app we would stand outside.
        """
        if isinstance(app, Starlette):
            for key, handler in reversed(app.exception_handlers.items()):  # the last one counts
                if key in (500, Exception):
                    return cls(app, handler)
        return None

    async def answer(
        self, error: Exception, scope: Scope, receive: Receive, send: Send, *, begun: bool
    ) -> None:
        """Call the handler, and send what it makes of the error unless a response has `begun`.

        Raises:
            Exception: the handler's own error.
        """

        async def crash(scope: Scope, receive: Receive, send: Send) -> None:
            if begun:
                await send({"type": "http.response.start"})
            raise error

        async def nowhere(message: Message) -> None:
            pass

        answering = ServerErrorMiddleware(crash, self._handler, self._app.debug)
        try:
            await answering(scope, receive, nowhere if begun else send)
        except Exception as raised:
            if raised is not error:
                raise
