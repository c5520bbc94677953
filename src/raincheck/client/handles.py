"""Handles of jobs elsewhere: asked, watched, cancelled and waited for by their status URL."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, Self

import anyio

from raincheck.client.credentials import Credentials
from raincheck.client.flow import Flow, Following, Step, Told
from raincheck.client.knowledge import Knowledge, Place
from raincheck.client.transport import UNFOLLOWED, AsyncDriver, Driver
from raincheck.client.wire import Document, Request, Response


class _Handle:
    """What both kinds of handles know.

    Args:
        client: who asks for the job.
        request: what the polls have of it.
        known: the job.
        response: its response, if there is one already.
    """

    _clock: Callable[[], float]

    def __init__(
        self,
        client: Any,
        request: Request,
        known: Knowledge,
        response: Response | None = None,
    ) -> None:
        self._client = client
        self._http = module_of(client)
        self._request = request
        self._known = known
        self._response = response
        self._credentials = Credentials(self._http, request)

    @property
    def status_url(self) -> str:
        """Where the job is asked for, absolute; keep it, and another process can go on."""
        return str(self._known.place.url)

    @classmethod
    def from_url(cls, client: Any, url: str) -> Self:
        """The job whose status URL this is, or whose monitor or operation. Asks for nothing yet.

        Args:
            client: as for `submit`. Its own fields, cookies and `auth` go to this URL's origin.
            url: absolute, or relative to the client's `base_url`.
        """
        module_of(client)
        extensions = {UNFOLLOWED: True, "timeout": client.timeout.as_dict()}
        request = client.build_request("GET", url, extensions=extensions)
        return cls(client, request, Knowledge(request, Place(request.url, "either")))

    @classmethod
    def _answered(cls, client: Any, request: Request, flow: Flow, response: Response) -> Self:
        """The job that a response stands for, or one that has this response already."""
        if flow.known is not None:
            return cls(client, request, flow.known)
        return cls(client, request, Knowledge(request, Place(request.url, "response")), response)

    def _flow(self, deadline: float | None = None) -> Flow:
        return Flow(
            self._http,
            self._request,
            Following(deadline=deadline),
            known=self._known,
            credentials=self._credentials,
            clock=self._clock,
        )

    def _sending(self, request: Request) -> dict[str, Any]:
        """How the client sends a request about the job: no credentials of its own go elsewhere."""
        settings: dict[str, Any] = {"stream": True, "follow_redirects": False}
        return settings if self._credentials.ours(request.url) else {**settings, "auth": None}


class RemoteJob(_Handle):
    """A job elsewhere, asked for by an `AsyncClient`, on asyncio or trio."""

    _clock = staticmethod(anyio.current_time)

    async def status(self) -> Document:
        """How it stands: its status document, or `{"status", "response"}` of its response.

        Raises:
            NoResponse: there is no such job for this client, or it is gone.
            Unreachable: its server has not answered for two minutes.
        """
        return await self._driver().run(self._flow().status())

    async def updates(self) -> AsyncIterator[Document]:
        """Its documents: the present one first, then each that differs, the last with its outcome.

        By events where the server has them, else by polls, which wait where it says that they can.

        Raises:
            NoResponse, Unreachable: see `status`.
        """
        steps, driver = self._flow().updates(), self._driver()
        go_on: Callable[[], Step] = partial(next, steps)
        try:
            while True:
                try:
                    step = go_on()
                except StopIteration:
                    return
                if isinstance(step, Told):
                    yield step.document
                    go_on = partial(steps.send, None)
                else:
                    go_on = await driver.done(steps, step)
        finally:
            await driver.aclose()

    async def cancel(self) -> Document:
        """Ask it to stop.

        Returns:
            How it stands then: it may still be at its cleanup, or have ended before.

        Raises:
            FollowError: its server does not do that; `NoResponse`, `Unreachable`: see `status`.
        """
        return await self._driver().run(self._flow().cancelled())

    async def response(self, *, deadline: float | None = None) -> Response:
        """Its response with its body, when it has ended.

        Args:
            deadline: seconds to wait at most. Default None: as long as it takes.

        Raises:
            DeadlineExceeded: it has not ended by then. It goes on.
            NoResponse: it failed or was cancelled, and its server shows that in a document only.
            Unreachable: see `status`.
        """
        if self._response is None:
            response = await self._driver().run(self._flow(deadline).ended())
            await response.aread()
            self._response = response
        return self._response

    def _driver(self) -> AsyncDriver:
        return AsyncDriver(self._http, self._send)

    async def _send(self, request: Request) -> Response:
        return await self._client.send(request, **self._sending(request))


class SyncRemoteJob(_Handle):
    """A job elsewhere, asked for by a `Client`. The methods are those of `RemoteJob`."""

    _clock = staticmethod(time.monotonic)

    def status(self) -> Document:
        return self._driver().run(self._flow().status())

    def updates(self) -> Iterator[Document]:
        steps, driver = self._flow().updates(), self._driver()
        go_on: Callable[[], Step] = partial(next, steps)
        try:
            while True:
                try:
                    step = go_on()
                except StopIteration:
                    return
                if isinstance(step, Told):
                    yield step.document
                    go_on = partial(steps.send, None)
                else:
                    go_on = driver.done(steps, step)
        finally:
            driver.close()

    def cancel(self) -> Document:
        return self._driver().run(self._flow().cancelled())

    def response(self, *, deadline: float | None = None) -> Response:
        if self._response is None:
            response = self._driver().run(self._flow(deadline).ended())
            response.read()
            self._response = response
        return self._response

    def _driver(self) -> Driver:
        return Driver(self._http, self._send)

    def _send(self, request: Request) -> Response:
        return self._client.send(request, **self._sending(request))


async def submit(client: Any, request: Request) -> RemoteJob:
    """Send a request, and get its job rather than its response.

    Args:
        client: an `AsyncClient` of httpx2 or httpx.
        request: made by its `build_request`. It is sent with `Prefer: respond-async` and, if it is
            unsafe and has none, an `Idempotency-Key`, under which it is sent again if its answer is
            lost.

    Returns:
        The job; if the server has answered at once, one that has that response already.
    """
    prepared = _prepared(client, request)
    flow = Flow(module_of(client), prepared, Following(), clock=anyio.current_time)
    driver = AsyncDriver(flow.http, partial(client.send, stream=True))
    response = await driver.run(flow.submitted())
    await response.aread()
    return RemoteJob._answered(client, prepared, flow, response)


def submit_sync(client: Any, request: Request) -> SyncRemoteJob:
    """The same with a `Client`."""
    prepared = _prepared(client, request)
    flow = Flow(module_of(client), prepared, Following())
    driver = Driver(flow.http, partial(client.send, stream=True))
    response = driver.run(flow.submitted())
    response.read()
    return SyncRemoteJob._answered(client, prepared, flow, response)


def _prepared(client: Any, request: Request) -> Request:
    """The request as it is to be sent, while the one that was given stays what it is."""
    headers = request.headers.copy()
    preferences = headers.get("prefer", "")
    if not re.search(r"(?:^|,)\s*respond-async\b", preferences, re.IGNORECASE):
        headers["prefer"] = ", ".join(filter(None, [preferences, "respond-async"]))
    extensions = {**request.extensions, UNFOLLOWED: True}
    extensions.setdefault("timeout", client.timeout.as_dict())
    return module_of(client).Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=extensions
    )


def module_of(client: Any) -> ModuleType:
    """The module that a client is of, however it was subclassed.

    Raises:
        TypeError: it is of neither.
    """
    for kind in type(client).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in ("httpx2", "httpx"):
            return sys.modules[name]
    raise TypeError(f"{type(client).__name__} is no client of httpx2 or httpx")
