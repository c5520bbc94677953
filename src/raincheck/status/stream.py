"""The live tail: a response, followed while it is produced."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import Send

from raincheck.errors import BrokenOff, StoreError
from raincheck.job import Job
from raincheck.jobs import Jobs
from raincheck.messages import BODILESS, Field, Fields, RawHeaders, servable
from raincheck.ranges import Wanted, offered, wanted
from raincheck.status.results import close
from raincheck.stores.base import Partial

_AT_ONCE = (b"x-accel-buffering", b"no")  # nginx waits for more of what it passes on, else
_OURS = frozenset({b"accept-ranges", b"etag"})

# Servers that say nothing of a response that was left unfinished, and a lot of an error. daphne,
# which does not break off, never again sees to its other applications after one (4.2).
_QUIET = ("daphne.", "granian.", "hypercorn.")

STOPPED = "the server stops before a response that is followed has come to its end"
FAILED = "a response that is followed does not come to its end: its job failed, or went"
ANEW = "a response that is followed does not come to its end: its job has begun anew"
AWAY = "a response that is followed is broken off: the store does not answer"
LONGER = "a response that is followed is longer than its Content-Length"


async def begun(jobs: Jobs, job: Job, wait: float) -> Partial | None:
    """What there is of a job's response: when its head is there, or it has ended, or after a time.

    None if there is no such job.
    """
    there: Partial | None
    with jobs.at_most(wait):
        there = await jobs.store.partial(job.id)
        while (
            there is not None and there.head is None and not (there.job.finished or there.job.gone)
        ):
            there = await jobs.store.grown(there)
        return there
    return await jobs.store.partial(job.id)


def stream_fields(
    job: Job, headers: RawHeaders, heard: Fields, method: str
) -> tuple[RawHeaders, Wanted]:
    """The fields of a 200 response that is followed, and what of it a request wants.

    Its ETag names the run, whatever the handler says: it is the same before and after the end, and
    of no other run's body. All of it can be resumed.

    Args:
        job: the job; its response has the size that is there now.
        headers: the fields that its response is served with.
        heard: the fields of the request.
        method: the request's.
    """
    response = job.response
    assert response is not None
    tag = b'"%b.%d"' % (job.id.encode(), job.fence)
    others = tuple(field for field in headers if field[0].lower() not in _OURS)
    fields, _, _ = offered((*undelayed(others), (b"accept-ranges", b"bytes")), 0)
    asking = heard
    if job.runs > 1 and not any(name == b"if-range" for name, _ in asking):
        # Nobody knows of which run the client has what it wants the rest of.
        asking = [field for field in asking if field[0] != b"range"]
    grows = not job.finished
    asked = wanted(asking, response.size, tag, True, method, grows=grows)
    return (*fields, (b"etag", tag)), asked


def ended_fields(
    job: Job, headers: RawHeaders, heard: Fields, method: str
) -> tuple[list[Field], Wanted]:
    """The same of one that has ended: as `results.negotiated` does for a poll."""
    assert job.response is not None
    fields, asked = stream_fields(job, servable(job.response, headers, method), heard, method)
    return [*fields], asked


def undelayed(headers: RawHeaders) -> RawHeaders:
    """The same fields, and that a proxy is to pass on what comes as it comes."""
    if any(name.lower() == _AT_ONCE[0] for name, _ in headers):
        return headers
    return (*headers, _AT_ONCE)


def announced(headers: RawHeaders, size: int, status: int) -> tuple[RawHeaders, int | None]:
    """The fields of a response that is still to end, and how long it says that it will be.

    One of which that cannot be true does not say it.
    """
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    said = lengths[0] if len(lengths) == 1 and status not in BODILESS else b""
    if said.isdigit() and len(said) <= 18 and (length := int(said)) >= size:
        return headers, length
    return tuple(field for field in headers if field[0].lower() != b"content-length"), None


async def tail(jobs: Jobs, there: Partial, start: int) -> AsyncGenerator[bytes, None]:
    """The body of a response from a byte on: what there is, and then what comes, to its end.

    It is read from the store as it is taken: who is slow has no more of it than others.

    Args:
        jobs: the jobs.
        there: what there is of it.
        start: the first byte.

    Raises:
        BrokenOff: its end will not come, or cannot be seen.
    """
    store, id, fence, offset = jobs.store, there.job.id, there.job.fence, start
    try:
        while True:
            while offset < there.size:
                before, body = offset, store.read_body(id, offset)
                # Another run may have begun before it was read, and has a body of its own.
                sure = not there.job.replayable
                try:
                    async for chunk in body:
                        sure = sure or _same_run(await store.partial(id), fence) is not None
                        yield chunk
                        offset += len(chunk)
                finally:
                    await close(body)
                if offset == before:
                    raise BrokenOff(FAILED)
            if there.job.finished:
                return
            there = there._replace(size=offset)
            there = _same_run(await store.grown(there), fence)
    except (StoreError, OSError) as error:
        raise BrokenOff(await _reason(jobs, id, fence, error)) from None


async def _reason(jobs: Jobs, id: str, fence: int, error: Exception) -> str:
    """Why a body cannot be read any further: it was dropped with its run, or the store is away."""
    try:
        _same_run(await jobs.store.partial(id), fence)
    except BrokenOff as gone:
        return str(gone)
    except (StoreError, OSError) as newer:
        error = newer
    jobs.availability.failed(error)
    return AWAY


def _same_run(there: Partial | None, fence: int) -> Partial:
    if there is None or there.job.gone or (there.job.finished and there.job.response is None):
        raise BrokenOff(FAILED)
    if there.job.fence != fence:
        raise BrokenOff(ANEW)
    return there


async def send_tail(jobs: Jobs, there: Partial, start: int, left: int | None, send: Send) -> None:
    """Send the body of a response as it comes, and its end when that is certain.

    Args:
        jobs: the jobs.
        there: what there is of it.
        start: the first byte.
        left: bytes that follow; None if nobody knows. With the last of them it would look whole,
            so they wait for its end.
        send: where it goes.

    Raises:
        BrokenOff: its end will not come, or cannot be seen, or the server stops before it.
    """
    held = b""
    with jobs.at_most(math.inf):
        async with aclosing(tail(jobs, there, start)) as chunks:
            async for chunk in chunks:
                some = held + chunk
                held = b""
                if left is not None and len(some) > left:
                    raise BrokenOff(LONGER)
                if left is not None and len(some) == left:
                    held = some
                    continue
                left = None if left is None else left - len(some)
                await send({"type": "http.response.body", "body": some, "more_body": True})
        if left is not None and len(held) != left:
            raise BrokenOff(FAILED)
        await send({"type": "http.response.body", "body": held})
        return
    raise BrokenOff(STOPPED)


def breaks_off(error: Exception, send: Send) -> bool:
    """Whether a response is broken off as it has to be without an error that a server would log.

    So it is where the server stands right outside, and is one that breaks off what an app leaves
    unfinished. Whatever stands in between might end it instead, and has to see the error.
    """
    server = getattr(getattr(send, "func", send), "__self__", None)
    return isinstance(error, BrokenOff) and type(server).__module__.startswith(_QUIET)
