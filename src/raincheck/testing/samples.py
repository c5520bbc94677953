"""For contracts: jobs and requests of all kinds, and what is often asked of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from raincheck.errors import NoRoom, StoreError, crashed
from raincheck.job import Bounds, Delivery, Job, State
from raincheck.messages import CapturedRequest, CapturedResponse
from raincheck.runtime.recorder import PIECE
from raincheck.stores.base import (
    Claim,
    Store,
)


def job(id: str = "a", **fields: Any) -> Job:
    """A running job, for tests of stores."""
    known = {"id": id, "route": "r", "state": State.RUNNING, "created_at": 1000.0, "fence": 1}
    return Job(**{**known, **fields})


def waiting(id: str = "a", **fields: Any) -> Job:
    """A job that waits and whose captured request is kept, for tests of stores."""
    return job(id, **{"state": State.QUEUED, "replayable": True, **fields})


def told(id: str = "a", not_before: float = 0.0, **fields: Any) -> Job:
    """A running job that somebody is told of once it has ended, for tests of stores."""
    delivery = Delivery("https://example.com/hook?ü", "/jobs", not_before=not_before)
    return job(id, delivery=delivery, **fields)


def request(body: bytes = b"\x00\xff", **fields: Any) -> CapturedRequest:
    """A captured request, for tests of stores."""
    known: dict[str, Any] = {
        "method": "POST",
        "path": "/ü",
        "raw_path": b"/%C3%BC",
        "query_string": b"q=1",
        "headers": ((b"x-a", b"\xff"), (b"x-a", b"2")),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", None),
        "path_params": (("tenant", "ü"), ("n", 7)),
        "app_root_path": "",
    }
    return CapturedRequest(**{**known, **fields}, body=body)


def finished(
    job: Job,
    now: float = 1000.0,
    ttl: float = 60.0,
    tombstone_ttl: float = 60.0,
    size: int | None = None,
) -> Job:
    """The job's next version: failed without a response, or with one that has a body of a size."""
    if size is not None:
        response = CapturedResponse(200, (), size)
        return job.finish(
            State.SUCCEEDED, now, ttl=ttl, tombstone_ttl=tombstone_ttl, response=response
        )
    return job.finish(
        State.FAILED, now, ttl=ttl, tombstone_ttl=tombstone_ttl, error=crashed("The handler broke.")
    )


async def fits(store: Store, job: Job, bounds: Bounds | None) -> bool:
    """Whether a store has room for a new job within these bounds; if so, it is there."""
    try:
        await store.create(job, bounds=bounds)
    except NoRoom:
        assert await store.get(job.id) is None
        return False
    return True


def keeps(store: Store, method: str) -> bool:
    """Whether a store leaves it at the default of a method."""
    return getattr(type(store), method) is getattr(Store, method)


async def claim(store: Store, id: str = "a", **changes: Any) -> Claim | None:
    """Who asks for a job."""
    asked: dict[str, Any] = {"routes": {"r"}, "holder": "here", "now": 1001.5, "lease": None}
    return await store.claim(id, **asked | changes)


async def pages(store: Store, limit: int = 100, **of: Any) -> list[Job]:
    """All jobs of a list, however many pages it has."""
    page = await store.list(limit=limit, **of)
    jobs = [*page.jobs]
    while page.after is not None:
        page = await store.list(limit=limit, after=page.after, **of)
        assert len(page.jobs) <= limit
        jobs += page.jobs
    return jobs


async def many_kinds(store: Store) -> list[Job]:
    """Jobs of all kinds, in a store, and several that are not to be listed; newest first."""
    found = []
    for number in range(48):
        new = waiting(
            f"{number * 7 % 48:02}",
            created_at=1000.0 + number // 3 * 0.5,
            route=f"r{number % 2}",
            owner=(None, "ann", "bob ü")[number % 3],
        )
        await store.create(new, request())
        stopping = new.start(1010.0, "h").cancelling()
        done = finished(stopping, 1010.25 + number, size=0 if number % 8 == 3 else None)
        versions = (new, new.start(1010.0, "h"), stopping, done)[: number % 4 + 1]
        for version in versions[1:]:
            assert await store.replace(version)
        found.append(versions[-1])
    for n, forgotten in enumerate((waiting("50"), job("51"), job("52"))):
        await store.create(forgotten)
        assert await store.replace(forgotten.tombstone(1000.0 + n, 60.0))
    await store.create(job("53", synchronous=True))
    await store.create(job("54", synchronous=True))
    assert await store.replace(finished(job("54", synchronous=True)))
    return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)


async def body_of(store: Store, id: str, offset: int = 0) -> bytes:
    """A response body as a store has it."""
    return b"".join([chunk async for chunk in store.read_body(id, offset)])


async def with_body(store: Store, id: str, pieces: Sequence[bytes], *, tail: bytes = b"") -> Job:
    """A job that has succeeded with this body, for tests of stores."""
    new = job(id, max_runs=2, replayable=True)
    await store.create(new, request())
    size = 0
    for piece in pieces:
        assert await store.append_body(id, 1, size, piece)
        size += len(piece)
    done = finished(new, size=size + len(tail))
    assert await store.replace(done, tail=tail)
    return done


async def read_on(
    store: Store, id: str, chunks: int, meanwhile: Callable[[], Awaitable[object]]
) -> tuple[bytes, bool]:
    """What a reader has had of a body of which something becomes after so many chunks.

    Returns:
        It, and whether it came to an end, as if that were all.
    """
    had, count = b"", 0
    reader = store.read_body(id)
    try:
        async for chunk in reader:
            assert chunk
            had += chunk
            count += 1
            if count == chunks:
                await meanwhile()
    except StoreError:
        return had, False
    return had, True


BODIES: tuple[tuple[Sequence[bytes], bytes], ...] = (
    ((b"x" * PIECE, b"y" * PIECE, b"z" * PIECE), b""),
    ((b"x" * PIECE,), b"y"),
    ((b"x" * (PIECE - 1), b"y" * (PIECE + 1)), b"z" * 10),
    ((b"x" * 100_000, b"y" * 70_000, b"z" * 100_000, b"a" * 70_000), b""),
    (tuple(bytes([number % 251]) * 1000 for number in range(300)), b"z"),
)
"""Pieces and the tail of bodies that come in several chunks."""
