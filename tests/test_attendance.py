"""What is sent for long, and a client that leaves or is not heard of."""

from __future__ import annotations

import anyio
import pytest
from starlette.types import Message

from raincheck.attendance import attended

pytestmark = pytest.mark.anyio


class Connection:
    """What a server tells of a client: its request once, and then that it has left.

    Args:
        again: middleware has read the request, and gives it back whenever it is asked.
    """

    def __init__(self, *, again: bool = False) -> None:
        self.left = anyio.Event()
        self._again = again
        self._told = 0

    async def receive(self) -> Message:
        self._told += 1
        if self._told > 100:
            raise SystemExit("nobody else has a turn any more")
        if self._told == 1 or self._again:
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("again", [False, True])
async def test_who_stays_is_served_to_the_end(again: bool) -> None:
    served = []

    async def serve() -> None:
        await anyio.sleep(10)
        served.append(True)

    assert await attended(Connection(again=again).receive, serve)
    assert served


async def test_who_leaves_is_served_no_more() -> None:
    connection = Connection()

    async def serve() -> None:
        await anyio.sleep(1)
        connection.left.set()
        await anyio.sleep_forever()

    start = anyio.current_time()
    assert not await attended(connection.receive, serve)
    assert anyio.current_time() - start == pytest.approx(1, abs=0.1)


async def test_what_goes_wrong_is_raised_as_it_is() -> None:
    async def serve() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await attended(Connection().receive, serve)
