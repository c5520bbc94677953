"""Posting: one request to one receiver, at the addresses that were checked, and nowhere else."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress

import anyio
import anyio.to_thread

from raincheck.callbacks import Answer, Callbacks, Target, Unreachable, address_of

try:
    import httpx2
except ImportError as _error:
    raise ImportError(
        "Jobs(callbacks=...) needs httpx2. Install it with: pip install raincheck[callbacks]"
    ) from _error

# How many names are resolved at once, each in a thread, and how many addresses of one are tried.
# No fewer than requests are open: else some whose name servers hang have all others wait for them.
_RESOLVED, _ADDRESSES = 256, 4

# Bytes of an answer's body that are read, and seconds of that, so that the receiver sees it taken.
_READ, _PATIENCE = 16 * 1024, 2.0


class Poster:
    """Posts to receivers, on one event loop.

    No redirect is followed, no proxy asked, no cookie kept, and no connection used twice: one that
    was verified for a host must not be taken for another at the same address.

    Args:
        callbacks: to whom.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._resolving = anyio.CapacityLimiter(_RESOLVED)
        self._transport = httpx2.AsyncHTTPTransport(
            verify=True if callbacks.ssl_context is None else callbacks.ssl_context,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a message, and wait for the answer; the caller bounds the time.

        The host is resolved once, and what was checked is what is connected to.

        Raises:
            Refused: an address of its host is none that may be sent to.
            Unreachable: nobody has answered.
        """
        addresses = self._callbacks.check_addresses(target, await self._resolve(target))
        for address in addresses[:_ADDRESSES]:
            try:
                return await self._send(target, address, headers, body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue  # another may be there
            except httpx2.HTTPError as error:
                raise Unreachable("The receiver broke off, or answered no HTTP.") from error
        raise Unreachable("The receiver cannot be connected to, or is not who it should be.")

    async def _resolve(self, target: Target) -> list[str]:
        if address_of(target.host) is not None:
            return [target.host]

        def resolve() -> list[str]:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            return [str(each[4][0]) for each in found]

        try:
            return await anyio.to_thread.run_sync(
                resolve, limiter=self._resolving, abandon_on_cancel=True
            )
        except (OSError, UnicodeError) as error:
            raise Unreachable("The name of the receiver cannot be resolved.") from error

    async def _send(
        self, target: Target, address: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        host = f"[{address}]" if ":" in address else address
        request = httpx2.Request(
            "POST",
            f"{target.scheme}://{host}:{target.port}{target.path}",
            headers={"host": target.authority, "connection": "close", **headers},
            content=body,
            extensions={"sni_hostname": target.host, "timeout": {"connect": 5.0}},
        )
        response = await self._transport.handle_async_request(request)
        try:
            await self._read(response)
        finally:
            await response.aclose()
        return Answer(response.status_code, _retry_after(response.headers.get("retry-after")))

    async def _read(self, response: httpx2.Response) -> None:
        """Read a little of what is ignored, in a little time.

        By a cancellation, as what reads here are generators inside of others, that all have to end.
        """
        size = 0
        with anyio.move_on_after(_PATIENCE) as rest, suppress(httpx2.HTTPError):
            async for chunk in response.stream:  # type: ignore[union-attr]
                size += len(chunk)
                if size >= _READ:
                    rest.cancel()

    async def aclose(self) -> None:
        """Close what is open."""
        await self._transport.aclose()


def _retry_after(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdecimal() else None
