"""The load, in a process of its own: reads what to do as lines of JSON, answers each with a line.

Plain sockets and one selector, and nothing but the standard library. Connections are kept alive,
each has one request under way, and every load is bounded in time and in number. An answer of the
wrong kind ends it. A request takes about half the processor time that the fastest server here
spends on it, so on a core of its own it is the server that is measured.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import re
import resource
import selectors
import socket
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

# Seconds that an answer may take after the last request.
PATIENCE = 30.0

HOST = "127.0.0.1"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\nlocation: *(\S+)\r\n", re.IGNORECASE)


class WrongAnswer(Exception):
    """A server answered something else than it had to."""


class Connection:
    """One client: sends a request, and calls `answered` with status, head and body."""

    __slots__ = ("_buffer", "answered", "job", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), PATIENCE)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answered: Callable[[Connection, int, bytes, bytes], None]
        self.job = b""
        self._buffer = b""

    def send(self, request: bytes) -> None:
        if self.socket.send(request) != len(request):
            raise WrongAnswer("the server does not read")

    def receive(self) -> None:
        received = self.socket.recv(65536)
        if not received:
            raise WrongAnswer(f"the connection was closed after {self._buffer!r}")
        buffer = self._buffer = self._buffer + received if self._buffer else received
        head = buffer.find(b"\r\n\r\n") + 4
        if head < 4:
            return
        length = _LENGTH.search(buffer, 0, head)
        if length is None:
            raise WrongAnswer(f"an answer without a length: {buffer!r}")
        if len(buffer) < head + int(length[1]):
            return
        self._buffer = b""
        self.answered(self, int(buffer[9:12]), buffer[:head], buffer[head:])


class Clients:
    """Several connections, and things to do at a time."""

    def __init__(self, port: int, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.connections = [Connection(port) for _ in range(count)]
        self.open = count
        for connection in self.connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection.receive)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for connection in self.connections:
            connection.socket.close()

    def finish(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        self.open -= 1

    def later(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._numbers), do))

    def run(self, until: float) -> None:
        """Serve all connections until they are finished."""
        select, due, clock = self._selector.select, self._due, time.perf_counter
        while self.open:
            for key, _ in select(max(0.0, min(due[0][0] - clock(), 1.0)) if due else 1.0):
                key.data()
            now = clock()
            while due and due[0][0] <= now:
                heapq.heappop(due)[2]()
            if now > until:
                raise WrongAnswer(f"{self.open} clients have no answer for {PATIENCE:g} seconds")


def press(
    port: int, clients: int, requests: list[str], status: int, seconds: float, most: int
) -> dict[str, Any]:
    """The same requests again and again, as fast as they are answered."""
    wire = itertools.cycle([request.encode() for request in requests])
    clock = time.perf_counter
    sent = answered = 0
    finished = deadline = 0.0

    def on_answer(connection: Connection, got: int, head: bytes, body: bytes) -> None:
        nonlocal sent, answered, finished
        if got != status:
            raise WrongAnswer((head + body).decode("latin-1"))
        answered += 1
        finished = clock()
        if sent < most and finished < deadline:
            sent += 1
            connection.send(next(wire))
        else:
            load.finish(connection)

    with Clients(port, min(clients, most)) as load:
        started = clock()
        deadline = started + seconds
        for connection in load.connections:
            connection.answered = on_answer
            sent += 1
            connection.send(next(wire))
        load.run(deadline + PATIENCE)
    return {"answered": answered, "elapsed": finished - started}


def follow(
    port: int, clients: int, requests: list[str], every: float, seconds: float, most: int
) -> dict[str, Any]:
    """Submit a job, poll it at once and then `every` so many seconds, read its result; again."""
    (request,) = (request.encode() for request in requests)
    clock = time.perf_counter
    submitted = answered = 0
    finished = deadline = 0.0

    def submit(connection: Connection) -> None:
        nonlocal submitted
        submitted += 1
        connection.answered = on_accepted
        connection.send(request)

    def on_accepted(connection: Connection, got: int, head: bytes, body: bytes) -> None:
        location = _LOCATION.search(head)
        if got != 202 or location is None:
            raise WrongAnswer((head + body).decode("latin-1"))
        connection.job = b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (location[1], HOST.encode())
        connection.answered = on_status
        connection.send(connection.job)

    def on_status(connection: Connection, got: int, head: bytes, body: bytes) -> None:
        nonlocal answered, finished
        if got == 202:
            load.later(clock() + every, lambda: connection.send(connection.job))
            return
        if got != 200:
            raise WrongAnswer((head + body).decode("latin-1"))
        answered += 1
        finished = clock()
        if submitted < most and finished < deadline:
            submit(connection)
        else:
            load.finish(connection)

    with Clients(port, min(clients, most)) as load:
        started = clock()
        deadline = started + seconds
        for connection in load.connections:
            submit(connection)
        load.run(deadline + PATIENCE)
    return {"answered": answered, "elapsed": finished - started}


def wait(port: int, clients: int, submit: str, release: str, over: float) -> dict[str, Any]:
    """Hold a long poll on each of many jobs while they finish; the delays of the answers.

    The results say when their handlers ended, by the clock that all processes here share.
    """
    delays: list[float] = []

    def on_accepted(connection: Connection, got: int, head: bytes, body: bytes) -> None:
        location = _LOCATION.search(head)
        if got != 202 or location is None:
            raise WrongAnswer((head + body).decode("latin-1"))
        connection.job = location[1]
        connection.answered = on_result
        lines = b"GET %b HTTP/1.1\r\nhost: %b\r\nprefer: wait=30\r\n\r\n"
        connection.send(lines % (connection.job, HOST.encode()))

    def on_result(connection: Connection, got: int, head: bytes, body: bytes) -> None:
        now = time.monotonic()
        if got != 200:
            raise WrongAnswer((head + body).decode("latin-1"))
        delays.append(now - json.loads(body)["finished"])
        load.finish(connection)

    def on_released(connection: Connection, got: int, head: bytes, body: bytes) -> None:
        if got != 200:
            raise WrongAnswer((head + body).decode("latin-1"))
        load.finish(connection)

    with Clients(port, clients + 1) as load:
        *waiting, control = load.connections
        for number, connection in enumerate(waiting):
            connection.answered = on_accepted
            when = time.perf_counter() + number * 0.001  # not all of them knock at once
            load.later(when, lambda one=connection: one.send(submit.encode()))
        control.answered = on_released
        settled = time.perf_counter() + clients * 0.001 + 2.0
        load.later(settled, lambda: control.send(release.encode()))
        load.run(settled + over + PATIENCE)
    return {"delays": delays}


def fetch(port: int, requests: list[str], check: bool) -> dict[str, Any]:
    """Send requests one after the other on one connection; read the last one's large body.

    `{location}` in a request stands for the last `Location`.
    """
    location, received, checksum = "", 0, 0
    space = memoryview(bytearray(1 << 20))
    with socket.create_connection((HOST, port), PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.perf_counter()
        for request in requests:
            connection.sendall(request.replace("{location}", location).encode())
            head = b""
            while (end := head.find(b"\r\n\r\n") + 4) < 4:
                received = connection.recv_into(space)
                if not received:
                    raise WrongAnswer(f"the connection was closed after {head!r}")
                head += space[:received]
            head, body = head[:end], head[end:]
            length = _LENGTH.search(head)
            if length is None or head[9:10] != b"2":
                raise WrongAnswer((head + body[:1000]).decode("latin-1"))
            if found := _LOCATION.search(head):
                location = found[1].decode()
            received, checksum = len(body), zlib.crc32(body) if check else 0
            while received < int(length[1]):
                count = connection.recv_into(space)
                if not count:
                    raise WrongAnswer(f"the connection was closed after {received} bytes")
                received += count
                if check:
                    checksum = zlib.crc32(space[:count], checksum)
        elapsed = time.perf_counter() - started
    status = int(head[9:12])
    return {
        "elapsed": elapsed,
        "size": received,
        "status": status,
        "location": location,
        "checksum": checksum,
    }


ROLES: dict[str, Callable[..., dict[str, Any]]] = {
    role.__name__: role for role in (press, follow, wait, fetch)
}


def main() -> None:
    """Do what the lines say."""
    with contextlib.suppress(ValueError, OSError):  # a thousand connections need files
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = ROLES[asked.pop("role")](**asked)
        except (OSError, WrongAnswer) as error:
            answer = {"wrong": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
