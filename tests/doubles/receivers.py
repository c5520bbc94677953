"""Receivers of callbacks: one that stands in for the whole network, and real ones."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import anyio

from raincheck.callbacks import Answer, Callbacks, Target

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""What messages of tests are signed with."""


class Message(NamedTuple):
    """One request that has come."""

    at: float
    target: Target
    headers: Mapping[str, str]
    body: bytes


class Network:
    """In the place of `runtime.posting.Poster`: what it answers is told by the test.

    Attributes:
        got: the messages, in order.
        answer: what each is answered; a coroutine function of the message.
    """

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.answer: Callable[[Message], Awaitable[Answer]] = self.takes

    def __call__(self, callbacks: Callbacks) -> Network:
        return self

    async def takes(self, message: Message) -> Answer:
        return Answer(204, None)

    def says(self, status: int, retry_after: float | None = None) -> None:
        async def answer(message: Message) -> Answer:
            return Answer(status, retry_after)

        self.answer = answer

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        message = Message(anyio.current_time(), target, headers, body)
        self.got.append(message)
        return await self.answer(message)

    async def aclose(self) -> None:
        pass


class Sites:
    """Servers on one port of every address of this machine: 127.0.0.1, 127.0.0.2 and so on.

    Args:
        behaves: says what each of them does, by its address: answers with a status, or hangs at 0.
        tls: what they speak TLS with.

    Attributes:
        got: the bodies that have come, by address.
        headers: what has come with them.
        port: theirs.
    """

    def __init__(self, behaves: Callable[[str], int], *, tls: ssl.SSLContext | None = None) -> None:
        self.got: dict[str, list[bytes]] = {}
        self.headers: dict[str, list[dict[str, str]]] = {}
        self.port = 0
        self._behaves = behaves
        self._tls = tls
        self._server: Any = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Sites:
        self._server = await asyncio.start_server(
            self._serve, "0.0.0.0", backlog=1000, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in [*self._open]:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        address = writer.get_extra_info("sockname")[0]
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.partition(": ") for line in head.split("\r\n")[1:] if line]
            headers = {name.lower(): value for name, _, value in lines}
            body = await reader.readexactly(int(headers["content-length"]))
            self.got.setdefault(address, []).append(body)
            self.headers.setdefault(address, []).append(headers)
            status = self._behaves(address)
            if not status:
                await asyncio.sleep(3600)
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
