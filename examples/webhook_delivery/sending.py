"""One try to deliver: to an address that was checked, signed as Standard Webhooks has it."""

import socket
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import anyio
import httpx2

from raincheck.callbacks import Callbacks, Refused, Target


class Attempt(NamedTuple):
    """What has come of a try.

    Attributes:
        said: in a sentence.
        delivered: the receiver has taken it.
        over: it is of no use to try again.
        wait: seconds that the receiver asks for.
    """

    said: str
    delivered: bool = False
    over: bool = False
    wait: float = 0.0


def asked_for(retry_after: str) -> float:
    """Seconds to wait, by a field that has them, or a date."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


class Sender:
    """Sends signed messages to where they may go.

    Args:
        guard: by whose secrets they are signed, and whom they may be sent to.
        timeout: seconds for a try in all, from the resolver to the answer.
    """

    def __init__(self, guard: Callbacks, timeout: float) -> None:
        self._guard = guard
        self._timeout = timeout
        # No proxy, which would resolve the name again; no connection that was another receiver's.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        timeouts = httpx2.Timeout(None, connect=5.0)
        self._client = httpx2.AsyncClient(
            verify=guard.ssl_context or True, trust_env=False, timeout=timeouts, limits=limits
        )

    async def send(self, id: str, url: str, body: bytes) -> Attempt:
        """Try once; `id` is the same at each try, so that a receiver takes the message once."""
        try:
            target = self._guard.check(url, asked=False)
            with anyio.fail_after(self._timeout):
                response = await self._post(id, target, body)
        except Refused as refused:
            return Attempt(str(refused), over=True)
        except TimeoutError:
            return Attempt(f"No answer within {self._timeout:g} seconds.")
        except (OSError, httpx2.HTTPError) as error:
            return Attempt(f"No answer: {type(error).__name__}.")
        status = response.status_code
        return Attempt(
            f"The receiver answered {status}.",
            delivered=200 <= status < 300,
            over=status == 410,  # it wants no more
            wait=asked_for(response.headers.get("retry-after", "")),
        )

    async def _post(self, id: str, target: Target, body: bytes) -> httpx2.Response:
        """Resolve the name once, and connect to what was checked, whatever it leads to by then."""
        found = await anyio.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        for address in self._guard.check_addresses(target, addresses):
            with suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._post_to(address, id, target, body)
        raise ConnectionError("it has other addresses, or none")

    async def _post_to(self, address: str, id: str, target: Target, body: bytes) -> httpx2.Response:
        host = f"[{address}]" if ":" in address else address
        timestamp = int(time.time())
        request = self._client.build_request(
            "POST",
            f"{target.scheme}://{host}:{target.port}{target.path}",
            headers={
                "host": target.authority,
                "content-type": "application/json",
                "webhook-id": id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": self._guard.sign(id, timestamp, body).decode(),
            },
            content=body,
            extensions={"sni_hostname": target.host},  # by which its certificate is verified
        )
        response = await self._client.send(request, stream=True)
        await response.aclose()  # its status is what counts; it may have gigabytes more
        return response
