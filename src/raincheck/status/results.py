"""What is sent: replies that a dialect has written, and stored responses."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from functools import lru_cache

from starlette.types import Receive, Scope, Send

from raincheck.dialects.base import Content, Reply
from raincheck.errors import BodyLost
from raincheck.job import Job
from raincheck.jobs import Jobs
from raincheck.messages import CapturedResponse, Field, Fields, RawHeaders, servable
from raincheck.ranges import WHOLE, Framed, Span, Wanted, framed, offered, wanted

_MOST_ASKED = 4096


def send_reply(reply: Reply, scope: Scope, send: Send) -> Awaitable[None]:
    """Send what a dialect has written; no body to a HEAD."""
    status, headers, body = reply
    return send_whole(status, headers, body, scope, send)


async def send_whole(
    status: int, headers: list[Field], body: bytes, scope: Scope, send: Send
) -> None:
    """Send a response that is here whole, whose header list is nobody else's; no body to a HEAD."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if scope["method"] == "HEAD":
        body = b""
    await send({"type": "http.response.body", "body": body})


async def beginning(receive: Receive) -> bytes:
    """What a request to a job's routes has in it, as far as a dialect is given it."""
    body, more = b"", True
    while more and len(body) < _MOST_ASKED:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body[:_MOST_ASKED]


async def embedded(jobs: Jobs, job: Job, most: int) -> Content | None:
    """The body of a job's response, for a dialect that `embeds` so much of one.

    Returns:
        None if there is no response.

    Raises:
        BodyLost: it is not whole any more.
        StoreError: whatever the store raises.
    """
    if job.response is None or not most:
        return None
    if job.response.size > most:
        return Content(None)
    found = await jobs.response(job.id)
    if found is None:
        raise _lost(job.response.size)
    return Content(await found.read())


def negotiated(
    job: Job, headers: RawHeaders, heard: Fields, method: str
) -> tuple[list[Field], Wanted]:
    """The fields of a finished 200 response, and what of it a request wants.

    Its ETag is of one run and one version: a job that ran again never lends it to another body.

    Args:
        job: the job.
        headers: the fields under which its response is served.
        heard: those of the request.
        method: the request's.
    """
    response = job.response
    assert response is not None
    told, etag, ranges = _negotiable(response, headers, method)
    fields = [*told]
    if etag is None:
        version = job.version if job.delivery is None else job.news
        etag = f'"{job.id}.{job.fence}.{version}"'.encode()
        fields.append((b"etag", etag))
    return fields, wanted(heard, response.size, etag, ranges, method) if heard else WHOLE


@lru_cache(maxsize=256)
def _negotiable(
    response: CapturedResponse, headers: RawHeaders, method: str
) -> tuple[RawHeaders, bytes | None, bool]:
    """The same, but for the ETag of those that bring none: responses of one route share them."""
    return offered(servable(response, headers, method), response.size)


def cut(spans: tuple[Span, ...], headers: RawHeaders, size: int) -> Framed:
    """How spans of a body of this size are sent; whoever wrote it cannot know the boundary."""
    return framed(spans, headers, size, secrets.token_hex(16).encode())


async def spans_of(
    read: Callable[[int], AsyncIterator[bytes]], spans: tuple[Span, ...], frame: Framed
) -> AsyncGenerator[bytes, None]:
    """The content of a 206, chunk by chunk; the first has bytes of the body.

    Args:
        read: gives the body from a byte on.
        spans: the spans.
        frame: what stands between them.

    Raises:
        BodyLost: as of the whole.
    """
    for head, (start, stop) in zip(frame.heads, spans, strict=True):
        left, before = stop - start, head
        body = read(start)
        try:
            async for chunk in body:
                yield before + chunk[:left]
                left, before = left - len(chunk), b""
                if left <= 0:
                    break
        finally:
            await close(body)
        if left > 0:
            raise _lost(left)
    if frame.end:
        yield frame.end


async def close(body: AsyncIterator[bytes]) -> None:
    """Let a store release at once what it reads a body with."""
    aclose: Callable[[], Awaitable[None]] | None = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()


async def rest(body: bytes, offset: int) -> AsyncIterator[bytes]:
    """A body that is here as a store reads it."""
    yield body[offset:]


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
