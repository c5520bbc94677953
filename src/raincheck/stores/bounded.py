"""A store whose calls end in time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import anyio

from raincheck.errors import NoRoom, StoreError
from raincheck.job import Bounds, Job, Key, State
from raincheck.messages import CapturedRequest, Head
from raincheck.stores.availability import Availability
from raincheck.stores.base import Abandoned, Claim, Fetched, Found, Page, Partial, Store, Total
from raincheck.tasks import TimeLimits


class BoundedStore(Store):
    """Another store, of which every call either ends in time or raises `StoreError`.

    Only `changed` and `grown` may take as long as they like: they wait for others.

    Args:
        store: the other one.
        timeout: seconds for each call, and for each chunk or job of those that give several.
        availability: told of each answer while the store is away.
    """

    shared = True

    def __init__(
        self, store: Store, timeout: float, availability: Availability | None = None
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._limits = TimeLimits(timeout)
        self._availability = Availability("the store") if availability is None else availability

    async def open(self) -> None:
        with self._in_time():
            await self._store.open()

    async def name(self) -> str:
        with self._in_time():
            return await self._store.name()

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        with self._in_time():
            return await self._store.create(job, request, keys=keys, lease=lease, bounds=bounds)

    async def get(self, id: str) -> Job | None:
        with self._in_time():
            return await self._store.get(id)

    async def fetch(self, id: str) -> Fetched | None:
        with self._in_time():
            return await self._store.fetch(id)

    async def find(self, name: str) -> Found | None:
        with self._in_time():
            return await self._store.find(name)

    async def learn(self, route: str, names: Collection[str]) -> None:
        with self._in_time():
            await self._store.learn(route, names)

    async def learned(self, route: str) -> frozenset[str]:
        with self._in_time():
            return await self._store.learned(route)

    async def request(self, id: str) -> CapturedRequest | None:
        with self._in_time():
            return await self._store.request(id)

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        with self._in_time():
            return await self._store.claim(id, routes=routes, holder=holder, now=now, lease=lease)

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        with self._in_time():
            return await self._store.replace(job, keys=keys, tail=tail, lease=lease, bounds=bounds)

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        with self._in_time():
            return await self._store.append_body(id, fence, offset, chunk, head=head)

    def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        return self._each_in_time(self._store.read_body(id, offset))

    async def partial(self, id: str) -> Partial | None:
        with self._in_time():
            return await self._store.partial(id)

    async def grown(self, known: Partial) -> Partial | None:
        found = await self._store.grown(known)
        self._answered()
        return found

    async def changed(self, id: str, after_version: int) -> Job | None:
        job = await self._store.changed(id, after_version)
        self._answered()
        return job

    async def list(
        self,
        *,
        states: Collection[State] = (),
        route: str | None = None,
        owner: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        with self._in_time():
            return await self._store.list(
                states=states,
                route=route,
                owner=owner,
                since=since,
                until=until,
                after=after,
                limit=limit,
            )

    async def totals(self) -> dict[tuple[str, State], Total]:
        with self._in_time():
            return await self._store.totals()

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        with self._in_time():
            return await self._store.renew(fences, lease)

    def abandoned(self) -> AsyncIterator[Abandoned]:
        return self._each_in_time(self._store.abandoned())

    async def discard(self, id: str) -> bool:
        with self._in_time():
            return await self._store.discard(id)

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        with self._in_time():
            return await self._store.claim_deliveries(now, lease, limit)

    async def sweep(self, now: float) -> bool:
        with self._in_time():
            return await self._store.sweep(now)

    async def aclose(self) -> None:
        try:
            with anyio.fail_after(self._timeout):  # which a store holds off while it has to finish
                await self._store.aclose()
        except TimeoutError as error:
            raise _late(self._timeout) from error

    def _answered(self) -> None:
        if self._availability.away:
            self._availability.answered()

    def _in_time(self) -> _InTime:
        return _InTime(self._limits(), self._timeout, self._availability)

    async def _each_in_time(self, iterator: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            while True:
                with self._in_time():
                    try:
                        one = await anext(iterator)
                    except StopAsyncIteration:
                        return
                yield one
        finally:
            close: Callable[[], Any] | None = getattr(iterator, "aclose", None)
            if close is not None:
                await close()


class _InTime:
    """A block that ends in time, or with an error that says what it is about."""

    __slots__ = ("_availability", "_limit", "_timeout")

    def __init__(
        self,
        limit: AbstractContextManager[object],
        timeout: float,
        availability: Availability,
    ) -> None:
        self._limit = limit
        self._timeout = timeout
        self._availability = availability

    def __enter__(self) -> None:
        self._limit.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._limit.__exit__(exc_type, exc, traceback)
            if isinstance(exc, TimeoutError):  # the store's own
                raise exc
        except TimeoutError as error:
            raise _late(self._timeout) from error
        if self._availability.away and (exc is None or isinstance(exc, NoRoom)):
            self._availability.answered()


def _late(timeout: float) -> StoreError:
    return StoreError(f"it has not answered for {timeout:g} seconds")
