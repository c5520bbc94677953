"""Attendance: what is sent for long ends when its client leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from starlette.types import Receive


async def attended(receive: Receive, serve: Callable[[], Awaitable[None]]) -> bool:
    """Serve a client as long as it is there; whether it was, to the end.

    Middleware outside that has read the body may give it back again and again, without ever
    waiting: nothing is heard of the client then, and nobody else would have a turn any more.

    Raises:
        Exception: whatever `serve` raises, as it is.
    """
    raised: Exception | None = None
    left = False

    async def until_it_leaves() -> None:
        nonlocal left
        whole = False
        while (message := await receive())["type"] != "http.disconnect":
            if whole:
                return
            whole = not message.get("more_body", False)
        left = True
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(until_it_leaves)
        try:
            await serve()
        except Exception as error:  # not by way of the group, which would make several of it
            raised = error
        group.cancel_scope.cancel()
    if raised is not None:
        raise raised
    return not left
