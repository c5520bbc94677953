"""The large bodies of one store, in a place where others may have some of theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import IO

from raincheck.bodies.base import Bodies, closing


class OwnBodies(Bodies):
    """Those of one owner in another place for bodies; nobody else's are seen, or touched.

    Args:
        bodies: the place.
        owner: gives the owner's name, always the same; `""`: nobody else is to have some there. It
            is asked when it is first needed, and raises `StoreError` if it cannot be known yet.
    """

    def __init__(self, bodies: Bodies, owner: Callable[[], Awaitable[str]]) -> None:
        self._bodies = bodies
        self._owner = owner
        self._known: str | None = None

    async def open(self) -> None:
        await self._bodies.open()

    async def append(self, name: str, offset: int, chunk: bytes) -> None:
        await self._bodies.append(await self._prefix() + name, offset, chunk)

    async def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        async with closing(self._bodies.read(await self._prefix() + name, offset)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def size(self, name: str) -> int | None:
        return await self._bodies.size(await self._prefix() + name)

    async def sync(self, name: str) -> None:
        await self._bodies.sync(await self._prefix() + name)

    async def delete(self, names: Collection[str]) -> None:
        prefix = await self._prefix()
        await self._bodies.delete([prefix + name for name in names])

    async def names(self) -> Mapping[str, float]:
        prefix = await self._prefix()
        return {
            name.removeprefix(prefix): idle
            for name, idle in (await self._bodies.names()).items()
            if name.startswith(prefix)
        }

    def temporary(self) -> IO[bytes]:
        return self._bodies.temporary()

    async def _prefix(self) -> str:
        if self._known is None:
            owner = await self._owner()
            self._known = f"{owner}/" if owner else ""
        return self._known
