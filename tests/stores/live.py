"""What every shared store promises those who follow a response that another process produces."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from raincheck import Limits, LongRunningMiddleware, long_running
from raincheck.errors import BrokenOff
from raincheck.stores.base import Store
from raincheck.testing import lifespan
from tests.stores.shared import PATIENCE, Parent, SharedStoreContract, child
from tests.support import RawRequest, client_of

EVENTS = "text/event-stream"
PIECE = random.Random(1).randbytes(256 * 1024)
PIECES = 40
"""10 MiB."""


def tokens() -> list[bytes]:
    """2,000 of them, of any length."""
    dice = random.Random(16)
    return [b"data: %d %b\n\n" % (n, b"x" * dice.randrange(40)) for n in range(2000)]


@long_running(name="lines")
async def lines(request: Request) -> Response:
    """Says what time it is, at irregular intervals."""

    async def said() -> AsyncIterator[bytes]:
        dice = random.Random(2)
        for _ in range(40):
            await anyio.sleep(dice.uniform(0.01, 0.25))
            yield b"%.6f\n" % time.monotonic()

    return StreamingResponse(said(), media_type=EVENTS)


@long_running(name="talk")
async def talk(request: Request) -> Response:
    async def said() -> AsyncIterator[bytes]:
        for token in tokens():
            await anyio.sleep(0.001)
            yield token

    return StreamingResponse(said(), media_type=EVENTS)


@long_running(name="film", live=True)
async def film(request: Request) -> Response:
    async def shown() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            await anyio.sleep(0.02)
            yield PIECE

    return StreamingResponse(shown(), media_type="video/mp4")


@long_running(name="twice", on_interrupt="rerun", max_runs=2)
async def twice(request: Request) -> Response:
    async def said() -> AsyncIterator[bytes]:
        run = b"%.6f" % time.monotonic()
        for _ in range(20):
            yield run + b" "
            await anyio.sleep(0.05)
        if not request.scope.get("raincheck.replay"):
            await anyio.sleep_forever()

    return StreamingResponse(said(), media_type=EVENTS)


def served(store: Store) -> LongRunningMiddleware:
    routes = [Route(f"/{each.__name__}", each) for each in (lines, talk, film, twice)]
    return LongRunningMiddleware(Starlette(routes=routes), store=store, limits=Limits(lease=2.0))


async def produces(store: Store, parent: Parent) -> None:
    """Accept a request, say where its response is followed, and wait to be let go."""
    app = served(store)
    async with lifespan(app), client_of(app) as client:
        accepted = await client.get(f"/{await parent.hear()}")
        parent.say(accepted.json()["links"]["stream"])
        await parent.hear()


class Reader(RawRequest):
    """A client that follows a response.

    Attributes:
        size: bytes of body that it has got.
        came: these, each piece with when it came; unless it `expects` them.
        right: whether they are as it `expects`.
        whole: whether their end has come.
        error: what the server was told, if the response was broken off.
    """

    def __init__(self, url: str, **headers: str) -> None:
        super().__init__(url, "GET", **headers)
        self.feed()
        self.size = 0
        self.expects = b""
        self.came: list[tuple[float, bytes]] = []
        self.whole = False
        self.error: Exception | None = None
        self.ended = anyio.Event()
        self.right = True
        self._news = anyio.Event()

    async def follow(self, app: LongRunningMiddleware) -> None:
        try:
            await self.run(app)
        except BrokenOff as error:
            self.error = error
        finally:
            self.ended.set()
            self._news.set()

    async def _send(self, message: Message) -> None:
        if "body" not in message:
            self.sent.append(message)
            return
        body = message["body"]
        self.whole = not message.get("more_body", False)
        if self.expects:
            self.right = self.right and self.expects.startswith(body, self.size)
        else:
            self.came.append((time.monotonic(), body))
        self.size += len(body)
        self._news.set()
        await anyio.lowlevel.checkpoint()

    async def has(self, size: int) -> None:
        while self.size < size and not self.ended.is_set():
            self._news = anyio.Event()
            await self._news.wait()

    @property
    def got(self) -> bytes:
        return b"".join(chunk for _, chunk in self.came)

    def header(self, name: str) -> str:
        found: bytes = dict(self.sent[0]["headers"])[name.encode()]
        return found.decode()


@asynccontextmanager
async def followed(store: Store, opening: str, what: str) -> AsyncIterator[tuple[Any, Any, str]]:
    """Another process that produces a response, this one's app, and where it is followed."""
    app = served(store)
    async with child(opening, produces) as producer, lifespan(app):
        await producer.say(what)
        yield producer, app, await producer.hear()
        if not producer.killed:
            await producer.say()


class LiveContract(SharedStoreContract):
    """Whoever follows a response that another process produces gets it in time, and whole.

    Attributes:
        in_time: seconds in which a line has come, as a rule.
    """

    in_time = 0.2

    @pytest.mark.slow
    async def test_a_line_comes_in_time_from_another_process(
        self, store: Store, opening: str
    ) -> None:
        async with followed(store, opening, "lines") as (_, app, url):
            reader = Reader(url)
            await reader.follow(app)
        assert reader.whole
        delays = sorted(came - float(line) for came, chunk in reader.came for line in chunk.split())
        print([f"{delays[n]:.3f}" for n in (0, 20, 36, 39)])  # pytest -s
        assert len(delays) == 40
        assert delays[20] < self.in_time  # the last of them is the business of a busy machine

    @pytest.mark.slow
    async def test_an_event_stream_of_another_process_is_cut_fifty_times(
        self, store: Store, opening: str
    ) -> None:
        whole = b"".join(tokens())
        cuts = [*sorted(random.Random(50).sample(range(1, len(whole)), 50)), len(whole)]
        got, tag = b"", ""
        async with (
            followed(store, opening, "talk") as (_, app, url),
            anyio.create_task_group() as group,
        ):
            for cut in cuts:
                resuming = {"range": f"bytes={len(got)}-", "if_range": tag} if got else {}
                reader = Reader(url, **resuming)
                group.start_soon(reader.follow, app)
                await reader.has(cut - len(got))
                assert reader.status == (206 if got else 200)
                tag = reader.header("etag")
                reader.leave()
                await reader.ended.wait()
                got += reader.got[: cut - len(got)]
        assert hashlib.sha256(got).digest() == hashlib.sha256(whole).digest()

    @pytest.mark.slow
    async def test_two_hundred_follow_a_response_of_another_process(
        self, store: Store, opening: str
    ) -> None:
        whole = PIECE * PIECES
        async with (
            followed(store, opening, "film") as (_, app, url),
            anyio.create_task_group() as group,
        ):
            readers = [Reader(url) for _ in range(200)]
            for reader in readers:
                reader.expects = whole
                group.start_soon(reader.follow, app)
            for reader in readers:
                await reader.ended.wait()
        assert all(reader.whole and reader.right for reader in readers)
        assert all(reader.size == len(whole) for reader in readers)

    @pytest.mark.slow
    async def test_no_two_runs_are_spliced_when_a_process_dies(
        self, store: Store, opening: str
    ) -> None:
        async with (
            followed(store, opening, "twice") as (producer, app, url),
            anyio.create_task_group() as group,
        ):
            first = Reader(url)
            group.start_soon(first.follow, app)
            await first.has(1)
            tag = first.header("etag")
            await producer.kill()
            with anyio.fail_after(PATIENCE):
                await first.ended.wait()  # this process has taken the job over
            assert first.error is not None
            assert not first.whole
            assert len(set(first.got.split())) == 1
            for resuming in ({"if_range": tag}, {}):
                second = Reader(url, range=f"bytes={first.size}-", **resuming)
                with anyio.fail_after(PATIENCE):
                    await second.follow(app)
                assert second.status == 200
                assert second.header("etag") != tag
                assert len(set(second.got.split())) == 1
                assert second.got.split()[0] not in first.got.split()
                assert second.whole
