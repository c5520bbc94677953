"""The body port: keeps large bodies apart from the records that they belong to."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import IO

LARGE = 256 * 1024
"""Bytes of a body from which on it is kept apart. A smaller one is with its record: in a file of
its own it would take longer to find than to read."""


class Bodies(ABC):
    """Keeps large bodies by their names, beside a store that keeps the records.

    To write one, copy `bodies/files.py`, and run `raincheck.testing.BodiesContract` over it.
    Whose a name is, and when it goes, is for whoever gives the names: see `stores.divided`. At any
    time one task at most appends to a name, and any number read it, in any process.

    A method that cannot do what it promises raises `StoreError`. Whoever is told of an error does
    not know whether it was done, and may ask again.
    """

    async def open(self) -> None:  # noqa: B027  # there may be nothing to see
        """See whether it can work as it is set up; called when the jobs open.

        Raises:
            ConfigurationError: it never can; the message names the cure.
            StoreError: it cannot now, and may later.
        """

    @abstractmethod
    async def append(self, name: str, offset: int, chunk: bytes) -> None:
        """Put a chunk of a body in its place.

        Chunks come in order, without gaps. What of one is there already is left as it is, and the
        rest of it appended: a call may have failed half-way.

        Args:
            name: the body's; it begins with the chunk at 0.
            offset: bytes of the body before this chunk.
            chunk: not empty.

        Raises:
            StoreFull: there is no room for it.
            BodyLost: what stands before it is not there, or not any more: to ask again is no use.
        """

    @abstractmethod
    def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """A body as it is now, in non-empty chunks, from this byte on; nothing if there is none.

        Raises:
            StoreError: it went after the first chunk, and the rest of it is not there any more.
        """

    @abstractmethod
    async def size(self, name: str) -> int | None:
        """Bytes that there are of a body; None if there is none."""

    async def sync(self, name: str) -> None:  # noqa: B027  # it may be so already
        """See that what there is of a body outlives the machine's crash. Default: it does.

        Raises:
            BodyLost: there is nothing of it any more.
        """

    @abstractmethod
    async def delete(self, names: Collection[str]) -> None:
        """Forget bodies; those that are not there are none to forget."""

    @abstractmethod
    async def names(self) -> Mapping[str, float]:
        """All bodies that there are, each with the seconds since something was appended to it.

        Whoever knows whose they are finds out by it which of them are nobody's any more.
        """

    def temporary(self) -> IO[bytes]:
        """A file for what is on its way here, which goes with its process; called in a thread.

        Default: where the system has those.

        Raises:
            OSError: there cannot be one.
        """
        return tempfile.TemporaryFile(prefix="raincheck-", buffering=0)


@asynccontextmanager
async def closing(body: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The block after which nothing is read from a body any more."""
    try:
        yield body
    finally:
        close: Callable[[], Awaitable[object]] | None = getattr(body, "aclose", None)
        if close is not None:
            await close()
