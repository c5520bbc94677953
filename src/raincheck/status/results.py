"""What is sent: replies that a dialect has written, and stored responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from starlette.types import Scope, Send

from raincheck.dialects.base import Reply
from raincheck.errors import BodyLost


async def send_reply(reply: Reply, scope: Scope, send: Send) -> None:
    """Send what a dialect has written; no body to a HEAD."""
    start = {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
    await send(start)
    body = b"" if scope["method"] == "HEAD" else reply.body
    await send({"type": "http.response.body", "body": body})


async def send_stored(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: AsyncIterator[bytes],
    size: int,
    scope: Scope,
    send: Send,
) -> None:
    """Send a stored response chunk by chunk; no body to a HEAD.

    Args:
        status: its status.
        headers: its header fields.
        body: its body.
        size: bytes that the body has to have.
        scope: the request.
        send: where it goes.

    Raises:
        BodyLost: the body is not whole any more. If the response has begun, the server has to break
            it off: to end it would make what is there look whole.
    """
    left = 0 if scope["method"] == "HEAD" else size
    last = b""
    if left and not (last := await anext(body, b"")):  # before the start: it can still be told
        raise _lost(left)
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    if last:
        async for chunk in body:
            left -= len(last)
            await send({"type": "http.response.body", "body": last, "more_body": True})
            last = chunk
    if len(last) != left:
        raise _lost(left - len(last))
    await send({"type": "http.response.body", "body": last})


def _lost(missing: int) -> BodyLost:
    return BodyLost(f"a stored response is {missing} bytes shorter than it was: its job went")
