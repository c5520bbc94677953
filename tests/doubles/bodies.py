"""Bodies that are not in files: in memory, for virtual time; and those of a process that dies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import IO, Any, TypeVar

import anyio

from raincheck import Job
from raincheck.bodies.base import Bodies, closing
from raincheck.errors import BodyLost
from raincheck.stores.base import Store
from tests.doubles.stores import Line, SharedMemory

T = TypeVar("T")


class MemoryBodies(Bodies):
    """Large bodies in the memory of one process, which goes by the event loop's clock.

    Attributes:
        kept: what there is, by name.
        synced: what was seen to outlive a crash of the machine: its size.
    """

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.synced: dict[str, int] = {}
        self._touched: dict[str, float] = {}

    async def append(self, name: str, offset: int, chunk: bytes) -> None:
        there = self.kept.get(name, b"")
        if len(there) < offset:
            raise BodyLost(f"{name} has {len(there)} bytes, and not {offset}")
        self.kept[name] = there + chunk[len(there) - offset :]
        self._touched[name] = anyio.current_time()

    async def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        rest = self.kept.get(name, b"")[offset:]
        for start in range(0, len(rest), 100_000):
            yield rest[start : start + 100_000]

    async def size(self, name: str) -> int | None:
        return len(self.kept[name]) if name in self.kept else None

    async def sync(self, name: str) -> None:
        self.synced[name] = len(self.kept[name])

    async def delete(self, names: Collection[str]) -> None:
        for name in names:
            self.kept.pop(name, None)

    async def names(self) -> Mapping[str, float]:
        return {name: anyio.current_time() - self._touched[name] for name in self.kept}


class Durable(SharedMemory):
    """A store that says of itself that it outlives the machine's crash."""

    durable = True


class Watched(Durable):
    """Notes what was synced when an outcome was recorded."""

    def __init__(self, bodies: MemoryBodies) -> None:
        super().__init__()
        self._files = bodies
        self.seen: list[dict[str, int]] = []

    async def create(self, *arguments: Any, **more: Any) -> Job:
        self.seen.append({**self._files.synced})
        return await super().create(*arguments, **more)

    async def replace(self, *arguments: Any, **more: Any) -> bool:
        self.seen.append({**self._files.synced})
        return await super().replace(*arguments, **more)


class Death:
    """What comes to a process at its n-th call of its store and its bodies, together.

    Args:
        n: which call, from 1; infinity for none.
        done: whether that call is still done, and only its answer is lost.

    Attributes:
        calls: those that were made.
        came: whether it has come.
    """

    def __init__(self, n: float, *, done: bool) -> None:
        self._n = n
        self._done = done
        self._mended = anyio.Event()
        self.calls: list[str] = []
        self.came = False

    def resurrect(self) -> None:
        """Let it go on where it was, as a process does that was only stopped."""
        self.came = False
        self._n = float("inf")
        self._mended.set()

    async def over(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, or none any more."""
        await self.before(name)
        result = await call()
        if self.came:
            await self._mended.wait()
        return result

    async def before(self, name: str) -> None:
        if not self.came:
            self.calls.append(name)
            self.came = len(self.calls) == self._n
            if self.came and self._done:
                return
        if self.came:
            await self._mended.wait()

    def __str__(self) -> str:
        return f"call {self._n} of {self.calls}"


class MortalStore(Line):
    """One process's line to a store that several share, until its death."""

    def __init__(self, store: Store, death: Death) -> None:
        super().__init__(store)
        self._death = death

    async def _ready(self) -> None:
        await self._death.before("store, several")

    async def _over(self, call: Callable[[], Awaitable[T]]) -> T:
        return await self._death.over(_name(call), call)


class MortalBodies(Bodies):
    """One process's way to bodies that several share, until its death."""

    def __init__(self, bodies: Bodies, death: Death) -> None:
        self._bodies = bodies
        self._death = death

    async def append(self, name: str, offset: int, chunk: bytes) -> None:
        await self._death.over("append", lambda: self._bodies.append(name, offset, chunk))

    async def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        await self._death.before("read")
        async with closing(self._bodies.read(name, offset)) as chunks:
            async for chunk in chunks:
                yield chunk
                await self._death.before("read on")

    async def size(self, name: str) -> int | None:
        return await self._death.over("size", lambda: self._bodies.size(name))

    async def sync(self, name: str) -> None:
        await self._death.over("sync", lambda: self._bodies.sync(name))

    async def delete(self, names: Collection[str]) -> None:
        if names:
            await self._death.over("delete", lambda: self._bodies.delete(names))

    async def names(self) -> Mapping[str, float]:
        return await self._death.over("names", self._bodies.names)

    def temporary(self) -> IO[bytes]:
        return self._bodies.temporary()


def _name(call: Callable[[], object]) -> str:
    """The method that asks, which a line's calls are named by."""
    return getattr(call, "__qualname__", "store").split(".")[1]
