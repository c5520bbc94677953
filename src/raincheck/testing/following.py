"""For tests of apps: follow a 202 to its response."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar


class Response(Protocol):
    """What `follow()` needs of a response; httpx's has it."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Any: ...


R = TypeVar("R", bound=Response)
R_co = TypeVar("R_co", bound=Response, covariant=True)


class Client(Protocol[R_co]):
    """What `follow()` needs of a client; `httpx.AsyncClient` has it."""

    async def get(self, url: str, *, headers: dict[str, str]) -> R_co: ...


async def follow(client: Client[R], response: R, *, wait: int = 30) -> R:
    """Follow a 202 to the response that its status URL becomes.

    Args:
        client: e.g. an `httpx.AsyncClient` with an `ASGITransport`.
        response: the answer to the request; anything but a 202 is returned as it is.
        wait: seconds that each poll may wait for a change.
    """
    while response.status_code == 202:
        url = response.headers["location"]
        response = await client.get(url, headers={"prefer": f"wait={wait}"})
    return response
