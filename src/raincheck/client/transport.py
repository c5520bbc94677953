"""Transports for httpx2 and httpx that follow a 202 to its response, and what drives a flow."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import anyio

from raincheck.client.flow import Close, Flow, Following, Next, Read, Step
from raincheck.client.wire import Request, Response

UNFOLLOWED = "raincheck.unfollowed"
"""A request with this extension gets its 202 as it is."""

_CANCELLING = 10.0
"""Seconds that telling a server to cancel may take, when whoever waited is gone."""

T = TypeVar("T")
Steps = Generator[Step, Any, T]


class Driver:
    """Does what a flow asks for, in this thread.

    Args:
        http: httpx2 or httpx.
        send: sends a request, and leaves the body of its response unread.
        sleep: lets seconds pass.
    """

    def __init__(
        self,
        http: ModuleType,
        send: Callable[[Request], Response],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._http = http
        self._send = send
        self._sleep = sleep
        self._streaming: Response | None = None
        self._pieces: Any = None

    def run(self, steps: Steps[T]) -> T:
        """Do all of it, and return what comes out."""
        go_on: Callable[[], Step] = partial(next, steps)
        while True:
            try:
                step = go_on()
            except StopIteration as end:
                result: T = end.value
                return result
            go_on = self.done(steps, step)

    def done(self, steps: Steps[T], step: Step) -> Callable[[], Step]:
        """Do one step; what is returned goes on to the next."""
        try:
            return partial(steps.send, self._do(step))
        except self._http.RequestError as error:
            if isinstance(step, Read):  # its coding may be broken, and more is to come
                step.response.close()
            return partial(steps.throw, error)

    def close(self) -> None:
        """Leave the response that was being read, if there is one."""
        if self._streaming is not None:
            self._streaming.close()

    def _do(self, step: Step) -> Any:
        if isinstance(step, float):
            return self._sleep(step)
        if isinstance(step, Read):
            _bound(self._http, step)
            return step.response.read()
        if isinstance(step, Close):
            return step.response.close()
        if isinstance(step, Next):
            if self._streaming is not step.response:
                self._streaming, self._pieces = step.response, step.response.iter_bytes()
            return next(self._pieces, b"")
        return self._send(step)


class AsyncDriver:
    """Does what a flow asks for, on asyncio or trio. The methods are those of `Driver`."""

    def __init__(self, http: ModuleType, send: Callable[[Request], Awaitable[Response]]) -> None:
        self._http = http
        self._send = send
        self._streaming: Response | None = None
        self._pieces: Any = None

    async def run(self, steps: Steps[T]) -> T:
        go_on: Callable[[], Step] = partial(next, steps)
        while True:
            try:
                step = go_on()
            except StopIteration as end:
                result: T = end.value
                return result
            go_on = await self.done(steps, step)

    async def done(self, steps: Steps[T], step: Step) -> Callable[[], Step]:
        try:
            return partial(steps.send, await self._do(step))
        except self._http.RequestError as error:
            if isinstance(step, Read):
                await step.response.aclose()
            return partial(steps.throw, error)

    async def aclose(self) -> None:
        if self._streaming is not None:
            await self._streaming.aclose()
            await self._pieces.aclose()

    async def _do(self, step: Step) -> Any:
        if isinstance(step, float):
            return await anyio.sleep(step)
        if isinstance(step, Read):
            _bound(self._http, step)
            return await step.response.aread()
        if isinstance(step, Close):
            return await step.response.aclose()
        if isinstance(step, Next):
            if self._streaming is not step.response:
                self._streaming, self._pieces = step.response, step.response.aiter_bytes()
            return await anext(self._pieces, b"")
        return await self._send(step)


def _bound(http: ModuleType, step: Read) -> None:
    """Let the body of a response end in an error where it is too long, or comes too slowly.

    Between two pieces, that is: each of them has the timeout of its request.
    """
    response, within, most = step
    if (within is None and most is None) or response.is_stream_consumed:
        return
    ends = None if within is None else time.monotonic() + within

    def check(taken: int) -> None:
        if ends is not None and time.monotonic() > ends:
            raise http.ReadTimeout("the answer takes too long", request=response.request)
        if most is not None and taken > most:
            message = f"the answer has more than {most:,} bytes"
            raise http.ReadError(message, request=response.request)

    response.stream = _bounded(http, response.stream, check)


def _bounded(http: ModuleType, stream: Any, check: Callable[[int], None]) -> Any:
    """A body, of which each piece is checked by how much has come so far."""

    class Bounded(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[name-defined,misc] # the module given
        def __iter__(self) -> Iterator[bytes]:
            taken = 0
            for piece in stream:
                check(taken := taken + len(piece))
                yield piece

        async def __aiter__(self) -> AsyncIterator[bytes]:
            taken = 0
            async with aclosing(aiter(stream)) as pieces:
                async for piece in pieces:
                    check(taken := taken + len(piece))
                    yield piece

        def close(self) -> None:
            stream.close()

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


class Transports(NamedTuple):
    """The two transports for one module.

    Attributes:
        FollowTransport: for its `Client`.
        AsyncFollowTransport: for its `AsyncClient`, on asyncio and trio.
    """

    FollowTransport: type[Any]
    AsyncFollowTransport: type[Any]


def follow(http: ModuleType) -> Transports:
    """Make the transports for httpx2 or httpx.

    After `FollowTransport, AsyncFollowTransport = follow(httpx2)`,
    `httpx2.Client(transport=FollowTransport())` is a client for which a 202 with a status URL is
    no answer: it gets the final response, whenever that comes. Both classes take the transport
    that does the work (default: the module's own `HTTPTransport()`; settings of a client that are
    about connections, as `verify` and `proxy`, belong there), and the fields of `Following` by
    name. The synchronous one also takes its clock and its `sleep`.

    An unsafe request is given an `Idempotency-Key` if it has none, so that it can be sent again
    when its answer is lost and its body is in memory; without a key nothing is ever sent twice.
    While it is polled for, a job outlives connection errors, 429, 502, 503 and 504, for two minutes
    at a time; a final 503 of its own is told from a passing one by `Job-Status`. `Authorization`,
    cookies and all other fields that could be credentials go to the origin of the request alone.

    Cookies that a 202 or a poll sets go back with the polls, and are not kept by the client.

    Args:
        http: the module.

    Returns:
        The two classes. What they raise is a `FollowError` and the module's own.

    Raises:
        TypeError: something else than such a module.
    """
    if not (hasattr(http, "BaseTransport") and hasattr(http, "AsyncBaseTransport")):
        raise TypeError(f"follow() takes the module httpx2 or httpx, like follow(httpx2): {http!r}")
    return Transports(_synchronous(http), _asynchronous(http))


def _synchronous(http: ModuleType) -> type[Any]:
    class FollowTransport(http.BaseTransport):  # type: ignore[name-defined,misc] # the module given
        """Follows a 202 to its response."""

        def __init__(
            self,
            transport: Any = None,
            *,
            clock: Callable[[], float] = time.monotonic,
            sleep: Callable[[float], object] = time.sleep,
            **settings: Any,
        ) -> None:
            self._transport = http.HTTPTransport() if transport is None else transport
            self._clock, self._sleep = clock, sleep
            self._following = Following(**settings)

        def handle_request(self, request: Request) -> Response:
            if UNFOLLOWED in request.extensions:
                return self._transport.handle_request(request)
            flow = Flow(http, request, self._following, clock=self._clock)
            try:
                return Driver(http, self._sent, self._sleep).run(flow.followed())
            except BaseException as error:
                if self._following.cancel and _left(error) and flow.known is not None:
                    try:
                        self._sent(flow.cancellation()).close()
                    except http.TransportError as trouble:
                        error.add_note(f"The job could not be cancelled: {trouble!r}")
                raise

        def _sent(self, request: Request) -> Response:
            return _about(request, self._transport.handle_request(request))

        def close(self) -> None:
            self._transport.close()

    return FollowTransport


def _asynchronous(http: ModuleType) -> type[Any]:
    class AsyncFollowTransport(http.AsyncBaseTransport):  # type: ignore[name-defined,misc] # likewise
        """Follows a 202 to its response."""

        def __init__(self, transport: Any = None, **settings: Any) -> None:
            self._transport = http.AsyncHTTPTransport() if transport is None else transport
            self._following = Following(**settings)

        async def handle_async_request(self, request: Request) -> Response:
            if UNFOLLOWED in request.extensions:
                return await self._transport.handle_async_request(request)
            flow = Flow(http, request, self._following, clock=anyio.current_time)
            try:
                return await AsyncDriver(http, self._sent).run(flow.followed())
            except BaseException as error:
                if self._following.cancel and _left(error) and flow.known is not None:
                    try:
                        with anyio.fail_after(_CANCELLING, shield=True):
                            await (await self._sent(flow.cancellation())).aclose()
                    except (http.TransportError, TimeoutError) as trouble:
                        error.add_note(f"The job could not be cancelled: {trouble!r}")
                raise

        async def _sent(self, request: Request) -> Response:
            return _about(request, await self._transport.handle_async_request(request))

        async def aclose(self) -> None:
            await self._transport.aclose()

    return AsyncFollowTransport


def _left(error: BaseException) -> bool:
    """Whether whoever waited was cancelled, or interrupted."""
    return not isinstance(error, Exception)


def _about(request: Request, response: Response) -> Response:
    """The response, which knows its request as a client would have told it."""
    response.request = request
    return response
