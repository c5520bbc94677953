"""The request body on its way from the client to the app, kept for a capture."""

from __future__ import annotations

import logging
import tempfile
from typing import IO

import anyio
import anyio.to_thread
from starlette.types import Message

logger: logging.Logger = logging.getLogger("raincheck")

IN_MEMORY = 1024 * 1024
"""Bytes of what the app reads before an entry that are kept in memory; what is more is kept in a
temporary file. Most requests to an app whose routes cannot be read never come to an entry."""


class RequestBody:
    """One request body: what has arrived, and how much of it the app has read.

    Args:
        limit: bytes of what the app reads that are kept. A larger body still passes through, but
            cannot be captured.

    Attributes:
        size: bytes that have arrived.
        whole: whether all of it has.
        lost: whether more has passed than could be kept, so that there is nothing to capture.
    """

    __slots__ = (
        "_chunks",
        "_file",
        "_in_file",
        "_keeps",
        "_limit",
        "_read",
        "_told_end",
        "_writing",
        "lost",
        "size",
        "whole",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.size: int = 0
        self.whole: bool = False
        self.lost: bool = False
        self._chunks: list[bytes] = []  # those that are not in the file
        self._read = 0  # as many of these the app has
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self._told_end = False
        self._keeps = True
        self._writing: anyio.Event | None = None  # while the file is

    @classmethod
    def of(cls, body: bytes) -> RequestBody:
        """A body that has arrived."""
        upload = cls(len(body))
        upload.arrive({"type": "http.request", "body": body})
        upload.let_go()
        return upload

    def arrive(self, message: Message) -> None:
        """Keep the next part, for the app to read."""
        chunk = message.get("body", b"")
        self.whole = not message.get("more_body", False)
        self.size += len(chunk)
        if chunk:
            self._chunks.append(bytes(chunk))

    async def passed(self, message: Message) -> None:
        """Keep the next part, which the app is given as it comes."""
        if self.lost or not self._keeps:
            self.size += len(message.get("body", b""))
            self.whole = self._told_end = not message.get("more_body", False)
            return
        self.arrive(message)
        self._read = len(self._chunks)
        self._told_end = self.whole
        if self.size > self._limit:
            self._lose()
        elif self.size - self._in_file > IN_MEMORY:
            await self._spill()

    def next(self) -> Message | None:
        """The next part for the app; None if nothing more is here."""
        chunk = b""
        if self._read < len(self._chunks):
            chunk = self._chunks[self._read]
            if not self._keeps:
                self._chunks[self._read] = b""
            self._read += 1
        elif not self.whole or self._told_end:
            return None
        self._told_end = self.whole and self._read == len(self._chunks)
        return {"type": "http.request", "body": chunk, "more_body": not self._told_end}

    def let_go(self) -> None:
        """Keep no longer what the app has read."""
        del self._chunks[: self._read]
        self._read = 0
        self._keeps = False
        if self._file is not None:
            self.close()

    async def body(self) -> bytes:
        """All of it.

        Raises:
            OSError: the temporary file cannot be read.
        """
        while self._writing is not None:  # by another task: Quart reads beside its handlers
            await self._writing.wait()
        begun = b"" if self._file is None else await anyio.to_thread.run_sync(_content, self._file)
        return b"".join((begun, *self._chunks))

    async def _spill(self) -> None:
        """Put into a file what the app has read."""
        read = b"".join(self._chunks)
        self._chunks.clear()
        self._read = 0
        self._in_file += len(read)
        self._writing = written = anyio.Event()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="raincheck-")  # noqa: SIM115 - see close()
            await anyio.to_thread.run_sync(self._file.write, read)
        except OSError:  # the disk is full, or there is none: the app has the body all the same
            logger.warning("a request body could not be kept in a temporary file", exc_info=True)
            self._lose()
        except ValueError:  # closed meanwhile: nothing is kept any more
            if self._file is not None:
                raise
        finally:
            self._writing = None
            written.set()

    def _lose(self) -> None:
        self.lost = True
        del self._chunks[: self._read]
        self._read = 0
        self.close()

    def close(self) -> None:
        """Give the temporary file back, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
