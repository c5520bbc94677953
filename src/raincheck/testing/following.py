"""For tests of apps: follow a 202 to its response, and say what its job has to be like.

Each is one flow that yields a URL to be asked or a number of seconds, and is sent the response; it
is driven by a client that blocks, or by one that is awaited.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Coroutine, Generator
from typing import Any, Protocol, TypeVar, cast, overload

import anyio


class Response(Protocol):
    """What `follow()` and `assert_job()` need of a response; httpx's has it."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Any: ...
    def json(self) -> Any: ...


R = TypeVar("R", bound=Response)
R_co = TypeVar("R_co", bound=Response, covariant=True)
T = TypeVar("T")


class Client(Protocol[R_co]):
    """A client that is awaited; `httpx.AsyncClient` is one, and httpx2's."""

    async def get(self, url: str, *, headers: dict[str, str]) -> R_co: ...


class BlockingClient(Protocol[R_co]):
    """A client that blocks; starlette's `TestClient` is one, and `httpx.Client`, and httpx2's."""

    def get(self, url: str, *, headers: dict[str, str]) -> R_co: ...


# Header fields of a request that say something of itself alone: a poll has all the others.
_OWN = frozenset({"prefer", "idempotency-key", "host", "transfer-encoding", "range", "expect"})

# Seconds that a test waits for a job before it fails, and between looks at one.
_PATIENCE, _LOOK = 60.0, 0.02

_ENDS = {"succeeded", "failed", "canceled"}

_Flow = Generator[tuple[str, dict[str, str]] | float, R, T]


@overload
def follow(
    client: Client[R], response: R, *, wait: int = 30, timeout: float = _PATIENCE
) -> Coroutine[Any, Any, R]: ...


@overload
def follow(
    client: BlockingClient[R], response: R, *, wait: int = 30, timeout: float = _PATIENCE
) -> R: ...


def follow(
    client: Client[R] | BlockingClient[R],
    response: R,
    *,
    wait: int = 30,
    timeout: float = _PATIENCE,
) -> R | Coroutine[Any, Any, R]:
    """Follow a 202 to the response that its status URL becomes.

    Polls with the header fields that the request had, its credentials among them.

    Args:
        client: one that blocks, such as starlette's `TestClient`, or one to be awaited, such as an
            `httpx.AsyncClient` with an `ASGITransport`; then this is to be awaited as well.
        response: the answer to the request; anything but a 202 with a `Location` is returned as it
            is.
        wait: seconds that each poll may wait for a change.
        timeout: seconds until it gives up, by a clock that does not skip.

    Raises:
        TimeoutError: the job has not ended in that time.
    """
    return _drive(client, _follow(response, wait, timeout))


def _follow(response: R, wait: int, timeout: float) -> _Flow[R, R]:
    headers, end = _headers(response), time.monotonic() + timeout
    while response.status_code == 202 and (url := response.headers.get("location")):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"after {timeout:g} s the job is not done: {_shown(response)}")
        response = yield url, {**headers, "prefer": f"wait={min(wait, int(left) + 1)}"}
    return response


@overload
def assert_job(
    client: Client[R], accepted: R, *, timeout: float = 5.0, **expected: Any
) -> Coroutine[Any, Any, dict[str, Any]]: ...


@overload
def assert_job(
    client: BlockingClient[R], accepted: R, *, timeout: float = 5.0, **expected: Any
) -> dict[str, Any]: ...


def assert_job(
    client: Client[R] | BlockingClient[R], accepted: R, *, timeout: float = 5.0, **expected: Any
) -> dict[str, Any] | Coroutine[Any, Any, dict[str, Any]]:
    """Assert that a job has come to be like this, or does so soon: `status="running"`.

    Looks at its monitor until that is so, and fails at once if the job has ended otherwise.

    Args:
        client: as for `follow()`; with one that is awaited, this is to be awaited as well.
        accepted: the 202 that the request was answered with.
        timeout: seconds to wait.
        **expected: members of the status document: `status` (in the words of the wire: `canceled`),
            `progress`, `message`, `queue_position`, ...

    Returns:
        The status document, for what else there is to be said of it.

    Raises:
        AssertionError: it has not come to that; with the document as it is. Or there is no job.
    """
    return _drive(client, _look(accepted, timeout, expected))


def _look(accepted: R, timeout: float, expected: dict[str, Any]) -> _Flow[R, dict[str, Any]]:
    location = accepted.headers.get("location")
    if accepted.status_code != 202 or not location:
        raise AssertionError(f"this is no 202 with the URL of a job: {_shown(accepted)}")
    for left in range(round(timeout / _LOOK), -1, -1):
        response = yield f"{location}/status", _headers(accepted)
        if response.status_code != 200:
            raise AssertionError(f"the job cannot be looked at: {_shown(response)}")
        document: dict[str, Any] = response.json()
        if all(document.get(name) == value for name, value in expected.items()):
            return document
        if document["status"] in _ENDS or not left:
            break
        yield _LOOK
    raise AssertionError(f"expected of the job: {expected}; it is {json.dumps(document, indent=1)}")


def _headers(response: Response) -> dict[str, str]:
    """The header fields of the request that this is the answer to, but for those of its body."""
    request = getattr(response, "request", None)
    fields = {} if request is None else request.headers
    return {
        name: value
        for name, value in fields.items()
        if name.lower() not in _OWN and not name.lower().startswith(("content-", "if-"))
    }


def _shown(response: Response) -> str:
    try:
        content = json.dumps(response.json())
    except ValueError:
        content = dict(response.headers).get("content-type", "no content")
    return f"{response.status_code} {content}"


def _drive(client: Client[R] | BlockingClient[R], flow: _Flow[R, T]) -> T | Coroutine[Any, Any, T]:
    if inspect.iscoroutinefunction(client.get):
        return _drive_awaited(cast(Client[R], client), flow)
    return _drive_blocking(cast(BlockingClient[R], client), flow)


async def _drive_awaited(client: Client[R], flow: _Flow[R, T]) -> T:
    response: Any = None
    while True:
        try:
            step = flow.send(response)
        except StopIteration as ended:
            result: T = ended.value
            return result
        if isinstance(step, tuple):
            response = await client.get(step[0], headers=step[1])
        else:
            await anyio.sleep(step)


def _drive_blocking(client: BlockingClient[R], flow: _Flow[R, T]) -> T:
    response: Any = None
    while True:
        try:
            step = flow.send(response)
        except StopIteration as ended:
            result: T = ended.value
            return result
        if isinstance(step, tuple):
            response = client.get(step[0], headers=step[1])
        else:
            time.sleep(step)
