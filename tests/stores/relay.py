"""A way to a server on which an answer can get lost."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Relay:
    """Passes on what a client and a server say, and may break off before an answer comes back.

    Args:
        server: the server's port.

    Attributes:
        port: the client's.
        lost: how many answers have got lost.
    """

    port: int

    def __init__(self, server: int) -> None:
        self.lost = 0
        self._server = server
        self._losing = False

    def lose(self) -> None:
        """Lose the next answer, when it has come, and the connection with it."""
        self._losing = True

    @asynccontextmanager
    async def opened(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        listening = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=tls)
        self.port = listening.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            listening.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, server = await asyncio.open_connection("127.0.0.1", self._server)
        asking = asyncio.ensure_future(self._copy(reader, server))
        with suppress(OSError):
            while answer := await behind.read(1 << 16):
                if self._losing:
                    self._losing = False
                    self.lost += 1
                    break
                writer.write(answer)
                await writer.drain()
        writer.transport.abort()
        server.close()
        await asking

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        writer.close()
