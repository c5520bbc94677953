"""Stores that are not quite themselves: shared by simulation, told what to do, cut off, damaged."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import anyio

from raincheck import Job, MemoryStore, State
from raincheck.errors import StoreError, UnreadableRecord
from raincheck.job import Bounds, Key
from raincheck.messages import CapturedRequest, Head
from raincheck.stores.base import (
    Abandoned,
    Claim,
    Fetched,
    Found,
    Page,
    Partial,
    Store,
    Total,
)

T = TypeVar("T")

DELAYED, REFUSED, LOST = FATES = ("delayed", "refused", "lost")
"""What becomes of a call over a line that is cut."""


class SharedMemory(MemoryStore):
    """A store of several apps, all of this process: a simulation of one of several processes."""

    shared = True


class Trick(Protocol):
    """What happens at a call of a store: given its name and what it was called with."""

    async def __call__(self, call: str, /, *arguments: Any, **more: Any) -> None: ...


async def no_trick(call: str, /, *arguments: Any, **more: Any) -> None:
    """Nothing happens."""


def failing(*calls: str, error: Exception | None = None) -> Trick:
    """These calls fail, by default as if a disk were away."""

    async def fail(call: str, /, *arguments: Any, **more: Any) -> None:
        if call in calls:
            raise OSError("the disk is away") if error is None else error

    return fail


def taking(**seconds: float) -> Trick:
    """These calls take so many seconds."""

    async def take(call: str, /, *arguments: Any, **more: Any) -> None:
        if call in seconds:
            await anyio.sleep(seconds[call])

    return take


class TrickyStore(MemoryStore):
    """Jobs in memory, with something that happens before and after each call but for its opening.

    Args:
        before: what happens before a call, and after each piece of those that give several.
        after: what happens after one.
        shared: as if other processes saw it too.
        immediate: whether its calls take no time, as those of a `MemoryStore`.

    Attributes:
        before, after: may be changed at any time.
    """

    def __init__(
        self,
        before: Trick = no_trick,
        after: Trick = no_trick,
        *,
        shared: bool = False,
        immediate: bool = True,
    ) -> None:
        super().__init__()
        self.before = before
        self.after = after
        self.shared = shared  # type: ignore[misc] # of the class elsewhere
        self.immediate = immediate  # type: ignore[misc]


def _with_tricks(name: str) -> Any:
    call = getattr(MemoryStore, name)

    async def one(self: TrickyStore, *arguments: Any, **more: Any) -> Any:
        await self.before(name, *arguments, **more)
        result = await call(self, *arguments, **more)
        await self.after(name, *arguments, **more)
        return result

    async def several(self: TrickyStore, *arguments: Any, **more: Any) -> AsyncIterator[Any]:
        await self.before(name, *arguments, **more)
        for piece in [piece async for piece in call(self, *arguments, **more)]:
            yield piece
            await self.before(name, *arguments, **more)

    return several if inspect.isasyncgenfunction(call) else one


for _name in vars(Store).keys() - {"open", "aclose"}:
    _call = getattr(MemoryStore, _name)
    if inspect.iscoroutinefunction(_call) or inspect.isasyncgenfunction(_call):
        setattr(TrickyStore, _name, _with_tricks(_name))


class Line(Store):
    """One process's line to a store that several share; it can be cut, and mended.

    Attributes:
        cuts: how many calls have met a line that was cut.
    """

    shared = True

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mended = anyio.Event()
        self._mended.set()
        self._how = DELAYED
        self._loses: str | None = None
        self.cuts = 0

    def cut(self, how: str = DELAYED) -> None:
        self._mended = anyio.Event()
        self._how = how

    def lose_next_create(self, then: str = REFUSED) -> None:
        """Let the store take the next job, lose its answer, and be cut from then on."""
        self._loses = then

    def mend(self) -> None:
        self._mended.set()

    async def _ready(self) -> None:
        if not self._mended.is_set():
            self.cuts += 1
            if self._how == REFUSED:
                raise StoreError("connection refused")
            if self._how == LOST:
                await anyio.sleep_forever()
            await self._mended.wait()

    async def _over(self, call: Callable[[], Awaitable[T]]) -> T:
        await self._ready()
        return await call()

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        there = await self._over(
            lambda: self._store.create(job, request, keys=keys, lease=lease, bounds=bounds)
        )
        if self._loses is not None:
            self.cut(self._loses)
            self._loses = None
            self.cuts += 1
            raise StoreError("connection reset")
        return there

    async def get(self, id: str) -> Job | None:
        return await self._over(lambda: self._store.get(id))

    async def fetch(self, id: str) -> Fetched | None:
        return await self._over(lambda: self._store.fetch(id))

    async def claim(
        self,
        id: str,
        *,
        routes: Collection[str],
        holder: str,
        now: float,
        lease: float | None,
    ) -> Claim | None:
        return await self._over(
            lambda: self._store.claim(id, routes=routes, holder=holder, now=now, lease=lease)
        )

    async def partial(self, id: str) -> Partial | None:
        return await self._over(lambda: self._store.partial(id))

    async def grown(self, known: Partial) -> Partial | None:
        return await self._over(lambda: self._store.grown(known))

    async def list(self, **which: Any) -> Page:
        return await self._over(lambda: self._store.list(**which))

    async def totals(self) -> dict[tuple[str, State], Total]:
        return await self._over(self._store.totals)

    async def find(self, name: str) -> Found | None:
        return await self._over(lambda: self._store.find(name))

    async def learn(self, route: str, names: Collection[str]) -> None:
        await self._over(lambda: self._store.learn(route, names))

    async def learned(self, route: str) -> frozenset[str]:
        return await self._over(lambda: self._store.learned(route))

    async def request(self, id: str) -> CapturedRequest | None:
        return await self._over(lambda: self._store.request(id))

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        return await self._over(
            lambda: self._store.replace(job, keys=keys, tail=tail, lease=lease, bounds=bounds)
        )

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        return await self._over(
            lambda: self._store.append_body(id, fence, offset, chunk, head=head)
        )

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        await self._ready()
        async for chunk in self._store.read_body(id, offset):
            yield chunk

    async def changed(self, id: str, after_version: int) -> Job | None:
        return await self._over(lambda: self._store.changed(id, after_version))

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        return await self._over(lambda: self._store.renew(fences, lease))

    async def abandoned(self) -> AsyncIterator[Abandoned]:
        await self._ready()
        async for found in self._store.abandoned():
            yield found

    async def discard(self, id: str) -> bool:
        return await self._over(lambda: self._store.discard(id))

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        return await self._over(lambda: self._store.claim_deliveries(now, lease, limit))

    async def sweep(self, now: float) -> bool:
        return await self._over(lambda: self._store.sweep(now))

    async def aclose(self) -> None:
        await self._over(self._store.aclose)


class DamagedStore(MemoryStore):
    """Jobs in memory, as if others shared them; some may be in a format that nobody here reads.

    Attributes:
        unreadable: ids of those whose records nobody can read.
        unreadable_requests: ids of those whose captured requests nobody can.
    """

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[str] = set()
        self.unreadable_requests: set[str] = set()
        self._discarded: set[str] = set()

    async def get(self, id: str) -> Job | None:
        if id in self.unreadable:
            raise UnreadableRecord("a record has format 99")
        return None if id in self._discarded else await super().get(id)

    # By way of those that know what cannot be read.
    fetch, claim, partial, grown = Store.fetch, Store.claim, Store.partial, Store.grown

    async def find(self, name: str) -> Found | None:
        found = await super().find(name)
        if found is not None:
            await self.get(found.job.id)
        return found

    async def changed(self, id: str, after_version: int) -> Job | None:
        await super().changed(id, after_version)
        return await self.get(id)

    async def request(self, id: str) -> CapturedRequest | None:
        if id in self.unreadable_requests:
            raise UnreadableRecord("a record has format 99")
        return await super().request(id)

    async def abandoned(self) -> AsyncIterator[Abandoned]:
        async for found in super().abandoned():
            yield found._replace(job=None) if found.id in self.unreadable else found

    async def discard(self, id: str) -> bool:
        if id not in self.unreadable:
            return False
        job = await super().get(id)
        assert job is not None
        self.unreadable.remove(id)
        self._discarded.add(id)
        return await super().replace(job.tombstone(0.0, 0.0))
