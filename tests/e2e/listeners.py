"""Many clients of event streams, each on a connection of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Self

from tests.event_stream import Event, Reader


class Listener:
    """One of them.

    Attributes:
        status, headers: of the answer.
        events: what came, each with when it came (`time.time()`).
        chunks: how often something came.
        reader: what it has read.
        whole: whether the stream has ended as it should; None until it has ended.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.events: list[tuple[float, Event]] = []
        self.chunks = 0
        self.reader = Reader()
        self.whole: bool | None = None
        self._more = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, port: int, path: str, *, seen: str = "") -> Self:
        """Ask for a stream, and return when its fields are here.

        Args:
            port: the server's.
            path: the target.
            seen: the id of the last event that is known.
        """
        self = cls()
        reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [f"GET {path} HTTP/1.1", "host: test", "accept: text/event-stream"]
        lines += [f"last-event-id: {seen}"] if seen else []
        self._writer.write("\r\n".join([*lines, "", ""]).encode())
        first, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (field.partition(":") for field in fields)
        }
        self._reading = asyncio.create_task(self._read(reader))
        return self

    @property
    def statuses(self) -> list[str]:
        return [event.document["status"] for _, event in self.events]

    async def has(self, events: int, *, within: float = 30.0) -> None:
        """Return when so many events are here."""
        async with asyncio.timeout(within):
            while len(self.events) < events:
                assert self.whole is None, self.events
                self._more.clear()
                await self._more.wait()

    async def end(self, *, within: float = 30.0) -> None:
        """Return when the stream has ended."""
        assert self._reading is not None
        async with asyncio.timeout(within):
            await self._reading

    def leave(self) -> None:
        """Close the connection."""
        assert self._writer is not None
        assert self._reading is not None
        self._writer.transport.abort()
        self._reading.cancel()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                chunk = (await reader.readexactly(size + 2))[:-2]
                now = time.time()
                self.chunks += 1
                self.events += [(now, event) for event in self.reader.feed(chunk)]
                self._more.set()
            await reader.readexactly(2)
        except (OSError, EOFError):
            self.whole = False
        else:
            self.whole = True
        finally:
            self._more.set()
            assert self._writer is not None
            self._writer.close()


async def many(port: int, *paths: str, at_once: int = 100) -> list[Listener]:
    """One that listens to each path."""
    listeners: list[Listener] = []
    for first in range(0, len(paths), at_once):
        batch = paths[first : first + at_once]
        listeners += await asyncio.gather(*(Listener.open(port, path) for path in batch))
    return listeners
