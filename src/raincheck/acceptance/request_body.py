"""The request body on its way from the client to the app, kept for a capture."""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from threading import Thread
from typing import IO

import anyio
import anyio.to_thread
from starlette.types import Message

from raincheck.bodies.base import Bodies, closing
from raincheck.errors import BodyLost, StoreUnavailable
from raincheck.messages import Apart

logger: logging.Logger = logging.getLogger("raincheck")

IN_MEMORY = 1024 * 1024
"""Bytes of a body that are kept in memory; what is more is kept in a temporary file as it arrives.
Most requests to an app whose routes cannot be read never come to an entry."""

PIECE = 256 * 1024
"""Bytes that are read from the file at a time."""


class RequestBody:
    """One request body: what has arrived, and how much of it the app has read.

    Args:
        limit: bytes of what the app reads that are kept. A larger body still passes through, but
            cannot be captured.
        bodies: where large ones are kept that have to be, and meanwhile; None: in the store, and in
            the system's own place for temporary files.

    Attributes:
        size: bytes that have arrived.
        whole: whether all of it has.
        lost: whether more has passed than could be kept, so that there is nothing to capture.
        file: the temporary file, if there is one.
    """

    __slots__ = (
        "_bodies",
        "_chunks",
        "_closing",
        "_end",
        "_given",
        "_keeps",
        "_limit",
        "_read",
        "_start",
        "_told_end",
        "_writing",
        "file",
        "lost",
        "size",
        "whole",
    )

    def __init__(self, limit: int, bodies: Bodies | None = None) -> None:
        self._limit = limit
        self._bodies = bodies
        self.size: int = 0
        self.whole: bool = False
        self.lost: bool = False
        self._chunks: list[bytes] = []  # those that are not in the file
        self._read = 0  # as many of these the app has
        self._given = 0  # bytes that the app has
        self.file: IO[bytes] | None = None
        self._start = self._end = 0  # the bytes that are in the file
        self._told_end = False
        self._keeps = True
        self._writing: anyio.Event | None = None  # while the file is
        self._closing = False

    @classmethod
    def of(cls, body: bytes) -> RequestBody:
        """A body that has arrived."""
        upload = cls(len(body))
        upload.arrive({"type": "http.request", "body": body})
        upload.let_go()
        return upload

    def arrive(self, message: Message) -> bool:
        """Keep the next part, for the app to read; whether it is time to `spill`."""
        chunk = message.get("body", b"")
        self.whole = not message.get("more_body", False)
        self.size += len(chunk)
        if chunk:
            self._chunks.append(bytes(chunk))
        return self.size - self._end > IN_MEMORY and self._writing is None

    async def passed(self, message: Message) -> None:
        """Keep the next part, which the app is given as it comes."""
        if self.lost or not self._keeps:
            self.size += len(message.get("body", b""))
            self.whole = self._told_end = not message.get("more_body", False)
            self._start = self._end = self._given = self.size
            return
        much = self.arrive(message)
        self._read = len(self._chunks)
        self._given = self.size
        self._told_end = self.whole
        if self.size > self._limit or (much and not await self.spill()):
            self._lose()

    async def next(self) -> Message | None:
        """The next part for the app; None if nothing more is here."""
        chunk = b""
        if self._given < self._end:
            chunk = await self._from_file()
        elif self._read < len(self._chunks):
            chunk = self._chunks[self._read]
            if not self._keeps:
                self._chunks[self._read] = b""
            self._read += 1
            self._given += len(chunk)
        elif not self.whole or self._told_end:
            return None
        self._told_end = self.whole and self._given == self.size
        return {"type": "http.request", "body": chunk, "more_body": not self._told_end}

    async def _from_file(self) -> bytes:
        at = self._given
        self._given = min(at + PIECE, self._end)  # before it is read: two tasks may ask
        chunk = await anyio.to_thread.run_sync(self._pread, at, self._given - at)
        if not self._keeps and self._given == self._end:
            self.close()
        return chunk

    def let_go(self) -> None:
        """Keep no longer what the app has read."""
        del self._chunks[: self._read]
        self._read = 0
        self._keeps = False
        if self.file is not None and self._given >= self._end:
            self.close()

    @property
    def apart(self) -> Apart | None:
        """All of it, if large ones are kept apart; it can be read as long as it is here."""
        return None if self._bodies is None else Apart(self.size, self.read)

    async def body(self) -> bytes:
        """All of it.

        Raises:
            OSError: the temporary file cannot be read.
        """
        if self.file is None and self._writing is None:
            return b"".join(self._chunks)
        return b"".join([chunk async for chunk in self.read()])

    async def read(self, offset: int = 0) -> AsyncIterator[bytes]:
        """What has arrived, from a byte on, whatever of it the app has read. Raises as `body`."""
        while self._writing is not None:  # by another task: Quart reads beside its handlers
            await self._writing.wait()
        chunks, end = [*self._chunks], self._end
        for at in range(offset, end, PIECE):
            yield await anyio.to_thread.run_sync(self._pread, at, min(PIECE, end - at))
        for chunk in chunks:
            if some := chunk[max(0, offset - end) :]:
                yield some
            end += len(chunk)

    async def content(self) -> bytes | mmap.mmap:
        """All of it, once it is whole: in memory, or as if it were.

        Raises:
            StoreUnavailable: there is no room for the end of it.
        """
        if self.file is None:
            return await self.body()
        if self._chunks and not await self.spill():
            raise no_room()
        return mmap.mmap(self.file.fileno(), self._end, access=mmap.ACCESS_READ)

    def _pread(self, at: int, size: int) -> bytes:
        assert self.file is not None
        chunk = os.pread(self.file.fileno(), size, at - self._start)
        if len(chunk) != size:
            raise BodyLost("a temporary file is shorter than it was")
        return chunk

    async def spill(self) -> bool:
        """Put into a file what is not there yet; whether there was room for it."""
        chunks, self._chunks = self._chunks, []
        self._read = 0
        self._writing = written = anyio.Event()
        try:
            if self.file is None:
                self.file = await anyio.to_thread.run_sync(self._temporary)
            await anyio.to_thread.run_sync(partial(_write, self.file, b"".join(chunks)))
            self._end += sum(map(len, chunks))
        except Exception as error:
            # The disk is full, or there is none: the app may have the body all the same.
            logger.warning("a request body could not be kept in a temporary file", exc_info=error)
            return False
        finally:
            self._writing = None
            written.set()
            if self._closing:
                self.close()
        return True

    def _temporary(self) -> IO[bytes]:
        if self._bodies is not None:
            return self._bodies.temporary()
        return tempfile.TemporaryFile(prefix="raincheck-", buffering=0)

    def _lose(self) -> None:
        self.lost = True
        del self._chunks[: self._read]
        self._read = 0
        self.close()
        self._closing = False
        self._start = self._end = self._given

    def close(self) -> None:
        """Give the temporary file back, if there is one."""
        self._closing = True
        if self.file is not None and self._writing is None:
            # To free gigabytes takes seconds, for which nobody has to wait.
            Thread(target=self.file.close, name="raincheck-closing").start()
            self.file = None


class StoredBody(RequestBody):
    """The body of a captured request, which is kept apart.

    Args:
        apart: where it is.
    """

    __slots__ = ("_one", "_parts_from")

    def __init__(self, apart: Apart) -> None:
        assert apart.read is not None
        super().__init__(apart.size)
        self.size: int = apart.size
        self.whole: bool = True
        self._parts_from = apart.read
        self._one = anyio.Lock()  # two tasks may ask

    async def next(self) -> Message | None:
        if self._told_end:
            return None
        async with self._one, closing(self._parts_from(self._given)) as parts:
            chunk = await anext(parts, b"")  # nothing is left open in between
            self._given += len(chunk)
        if not chunk and self._given < self.size:
            raise BodyLost(f"of {self.size} bytes of a captured request {self._given} are there")
        self._told_end = self._given >= self.size
        return {"type": "http.request", "body": chunk, "more_body": not self._told_end}


def no_room() -> StoreUnavailable:
    """What a request is told whose body cannot be kept; a `spill` that fails leaves it torn."""
    return StoreUnavailable("There is no room for the request body.", retry_after=5)


def _write(file: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
