"""A long load on one server process: nothing lost, nothing stuck, memory given back.

    python benchmarks/soak.py [--jobs 100000] [--in-flight 1000] [--seed 1] [--minutes 15]
    python benchmarks/soak.py --long-polls [--in-flight 1000]

Needs `pip install raincheck uvicorn[standard]`, and a system with `/proc` (memory is read there).
The server is a real uvicorn (uvloop, httptools, memory store) in a process of its own; clients are
keep-alive connections from this one. Jobs are short, on four routes: a plain one, one whose bound
makes most of them wait for their turn, a streamed one and a synchronous one.

Without `--long-polls` each client starts a job, follows it and starts the next. Most follow by long
polls. Others cancel or delete it, at once or a little later; leave as soon as they have the 202, or
in the middle of a long poll, by resetting their connection, and come back on another. The run
fails unless

- every job that was accepted reached a terminal state that its client has read, and one that fits
  what the client did; its body is what the handler made for this very request;
- at the end no job runs or waits, every handler that began has ended, and the store is empty;
- after expiry the server's resident memory is within 10 % of what it was before the load, after
  a warm-up whose jobs have expired, too, and there are not more Python objects. Both times garbage
  is collected, and what the C library's allocator keeps for later is given back (`malloc_trim`): an
  idle process does neither by itself;
- the server's log has no warning and no error, and the server stops by itself when it is told.

With `--long-polls` two long polls on each of `--in-flight` jobs are held open while these finish,
first one after the other within ten seconds, then all at once. Each poll must be answered once, by
the result. Shown is the time from the handler's last line to the last byte at the client, by the
clock that both processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import platform
import random
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raincheck import Jobs, Limits, LongRunningMiddleware, MemoryStore, long_running, report

VERSIONS = ("starlette", "uvicorn", "anyio", "cachetools", "uvloop", "httptools", "raincheck")

# Seconds that a finished job, and after it its tombstone, is kept.
TTL = 20.0

# Seconds from the last job's end until the store has been swept twice, with some to spare.
EXPIRY = 2 * TTL + 2 * 10.0 + 5.0

# Jobs before the memory is looked at: about as many as are kept at once later on, so that every
# code path has run and the allocator's arenas have the size and the gaps that the load gives them.
WARM_UP = 40_000

# Seconds that one answer may take: a client that waits longer is stuck. Long polls ask for 30.
PATIENCE = 60.0

# Seconds that a connection may be idle. It is less than `EXPIRY`, because uvicorn keeps what it
# has of a connection that was reset until these are over.
KEEP_ALIVE = 40

# How much more memory than before the load may be resident after it.
TOLERANCE = 0.10

# Seconds between the first requests of two clients: not all of them knock at the same moment.
KNOCK = 0.001

PADDING = "x" * 1000


# --- the server --------------------------------------------------------------------------------


@dataclass
class Held:
    """Jobs that end when they are told, and how often handlers began and ended."""

    entered: int = 0
    left: int = 0
    turns: dict[str, asyncio.Event] = field(default_factory=dict)


def application() -> Starlette:
    held = Held()
    jobs = Jobs(
        store=MemoryStore(max_bytes=2 * 1024**3),
        limits=Limits(max_running=1000, max_queued=5000, tombstone_ttl=TTL),
    )

    @contextlib.contextmanager
    def counted() -> Iterator[None]:
        held.entered += 1
        try:
            yield
        finally:
            held.left += 1

    async def work(request: Request) -> Response:
        order = await request.json()
        with counted():
            await asyncio.sleep(order["seconds"] / 2)
            report(0.5, "half of it")
            await asyncio.sleep(order["seconds"] / 2)
        return JSONResponse({**order, "padding": PADDING}, 500 if order["fails"] else 200)

    async def stream(request: Request) -> Response:
        order = await request.json()

        async def chunks() -> AsyncIterator[bytes]:
            with counted():
                yield json.dumps(order).encode()[:-1] + b', "padding": "'
                for _ in range(10):
                    await asyncio.sleep(order["seconds"] / 10)
                    yield PADDING.encode()
                yield b'"}'

        return StreamingResponse(chunks(), media_type="application/json")

    def in_a_thread(request: Request) -> Response:
        with counted():
            time.sleep(0.01)
        return JSONResponse({"number": int(request.query_params["number"])})

    async def hold(request: Request) -> Response:
        turn = held.turns[request.query_params["number"]] = asyncio.Event()
        await turn.wait()
        return JSONResponse({"finished": time.monotonic()})

    async def finish(request: Request) -> Response:
        numbers = await request.json()
        for number in numbers:
            held.turns.pop(str(number)).set()
        return JSONResponse(len(numbers))

    async def figures(request: Request) -> Response:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        now = jobs.statistics()
        return JSONResponse(
            {
                "running": now.running,
                "queued": now.queued,
                "entered": held.entered,
                "left": held.left,
                "kept": len(jobs.store) if isinstance(jobs.store, MemoryStore) else None,
                "objects": len(gc.get_objects()),
            }
        )

    narrow = long_running(name="narrow", ttl=TTL, max_running=50)
    marked = long_running(ttl=TTL)
    return Starlette(
        routes=[
            Route("/work", marked(work), methods=["POST"]),
            Route("/narrow", narrow(work), methods=["POST"]),
            Route("/stream", marked(stream), methods=["POST"]),
            Route("/thread", marked(in_a_thread), methods=["POST"]),
            Route("/hold", marked(hold), methods=["POST"]),
            Route("/finish", finish, methods=["POST"]),
            Route("/figures", figures),
        ],
        middleware=[Middleware(LongRunningMiddleware, jobs=jobs)],
    )


def serve() -> None:
    """Serve on a free port, and print the port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(4096)
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(
            application(),
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE,
        )
        uvicorn.Server(config).run(sockets=[listening])


class Server:
    """The server, in a process of its own."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, stderr=errors
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the server has not started:\n{self.log()}")
        self.port = int(line)

    def memory(self) -> float:
        """Resident MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def processor_seconds(self) -> float:
        """Processor time spent so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def log(self) -> str:
        """What it has written to its log."""
        return self._log.read_text(errors="replace").strip()

    def stop(self) -> bool:
        """Tell it to stop; returns whether it did so by itself."""
        self._process.send_signal(signal.SIGTERM)
        try:
            # uvicorn gives the signal to itself again once it has shut down.
            stopped = self._process.wait(PATIENCE) in (0, -signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            stopped = False
        assert self._process.stdout is not None
        self._process.stdout.close()
        return stopped


# --- clients -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def document(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request(method: str, path: str, body: bytes = b"", prefer: str = "") -> bytes:
    """As it is sent."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    if prefer:
        lines.append(f"prefer: {prefer}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def read(reader: asyncio.StreamReader) -> Answer:
    """The next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif length := int(headers.get("content-length", "0")):
        body = await reader.readexactly(length)
    return Answer(int(first.split()[1]), headers, body)


class Client:
    """One connection in use, and one to come back on after leaving.

    uvloop takes one new connection in a turn of its loop, so that a busy server takes seconds to
    notice one, or, without a core of its own, longer than `TTL`. That is not what is measured
    here: the other connection has had an answer before it is needed.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._spare: Connection | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", prefer: str = "") -> Answer:
        """One request and its answer.

        Raises:
            TimeoutError: there is none.
        """
        async with asyncio.timeout(PATIENCE):
            await self.start(method, path, body, prefer)
            assert self._reader is not None
            return await read(self._reader)

    async def start(self, method: str, path: str, body: bytes = b"", prefer: str = "") -> None:
        """Send a request and read nothing."""
        if self._writer is None:
            self._reader, self._writer = self._spare or await self._connect()
            self._spare = None
        self._writer.write(request(method, path, body, prefer))

    async def _connect(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def prepare(self) -> None:
        """Connect a second time, to be able to leave and come back.

        Raises:
            TimeoutError: the server does not notice.
        """
        async with asyncio.timeout(PATIENCE):
            if self._writer is None:
                self._reader, self._writer = await self._connect()
            self._spare = reader, writer = await self._connect()
            writer.write(request("GET", "/"))
            await read(reader)

    def leave(self) -> None:
        """Reset the connection, as a client that is killed does."""
        if self._writer is not None:
            connection = self._writer.get_extra_info("socket")
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def close(self) -> None:
        """Close the connections."""
        writers = [] if self._writer is None else [self._writer]
        if self._spare is not None:
            writers.append(self._spare[1])
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._reader = self._writer = None


class Wrong(Exception):
    """A promise is broken."""


# What a client does with its job, and how often out of 100.
WAYS = {
    "polls": 71,
    "leaves after the 202": 5,
    "leaves a long poll": 4,
    "cancels at once": 5,
    "cancels later": 7,
    "deletes at once": 4,
    "deletes later": 4,
}
ROUTES = {"work": 65, "narrow": 20, "stream": 10, "thread": 5}


class Soak:
    """The load.

    Args:
        port: the server's.
        chance: what decides what each client does.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port = port
        self._chance = chance
        self._number = 0
        self.ends: Counter[str] = Counter()
        self.ways: Counter[str] = Counter()
        self.accepted = 0
        self.refused = 0

    async def run(self, jobs: int, in_flight: int) -> None:
        """Start this many jobs, and see each to its end."""
        last = self._number + jobs
        async with asyncio.TaskGroup() as group:
            for _ in range(min(in_flight, jobs)):
                group.create_task(self._client(last))
                await asyncio.sleep(KNOCK)

    async def _client(self, last: int) -> None:
        client = Client(self._port)
        while self._number < last:
            self._number += 1
            await self._job(client, self._number)
        await client.close()

    async def _job(self, client: Client, number: int) -> None:
        chance = self._chance
        route = chance.choices(list(ROUTES), list(ROUTES.values()))[0]
        fails = route in ("work", "narrow") and chance.random() < 0.05
        seconds = chance.uniform(0.0, 0.05 if route == "narrow" else 0.6)
        order = json.dumps({"number": number, "seconds": seconds, "fails": fails}).encode()
        way = chance.choices(list(WAYS), list(WAYS.values()))[0]
        self.ways[way] += 1
        if way.startswith("leaves"):
            await client.prepare()
        while True:
            answer = await client.ask("POST", f"/{route}?number={number}", order)
            if answer.status != 503:
                break
            self.refused += 1
            await asyncio.sleep(int(answer.headers["retry-after"]) * chance.random())
        if answer.status != 202:
            raise Wrong(f"POST was answered {answer}")
        self.accepted += 1
        url = answer.headers["location"]
        end = await self._follow(client, url, way, number, fails=fails)
        self.ends[end] += 1

    async def _follow(self, client: Client, url: str, way: str, number: int, *, fails: bool) -> str:
        if way == "leaves after the 202":
            client.leave()
        elif way == "leaves a long poll":
            await client.start("GET", url, prefer="wait=30")
            await asyncio.sleep(self._chance.uniform(0, 0.3))
            client.leave()
        if way.endswith("later"):
            await asyncio.sleep(self._chance.uniform(0, 0.5))
        if way.startswith("cancels"):
            answer = await client.ask("POST", url + "/cancel")
            if answer.status not in (200, 202, 409):
                raise Wrong(f"a cancel was answered {answer}")
        elif way.startswith("deletes"):
            answer = await client.ask("DELETE", url)
            if answer.status not in (202, 204):
                raise Wrong(f"a delete was answered {answer}")
        while (answer := await client.ask("GET", url, prefer="wait=30")).status == 202:
            pass
        return self._judge(answer, way, number, fails=fails)

    def _judge(self, answer: Answer, way: str, number: int, *, fails: bool) -> str:
        status = answer.headers.get("job-status")
        expected = ("failed", 500) if fails else ("succeeded", 200)
        if answer.status == 410:
            kind = answer.document()["type"].rpartition(":")[2]
            if (kind, way.split()[0]) in (("cancelled", "cancels"), ("expired", "deletes")):
                return "cancelled" if kind == "cancelled" else "deleted"
        elif status is not None:
            right = (status, answer.status) == expected and not way.startswith("deletes")
            if right and answer.document()["number"] == number:
                return status
        raise Wrong(f"a job whose client {way} ended with {answer}")


async def figures_of(server: Server) -> dict[str, int]:
    """What the server says of itself; it gives unused memory back first."""
    client = Client(server.port)
    figures: dict[str, int] = (await client.ask("GET", "/figures")).document()
    await client.close()
    return figures


async def soak(server: Server, jobs: int, in_flight: int, seed: int) -> list[str]:
    """The load, and what is wrong after it."""
    load = Soak(server.port, random.Random(seed))
    await load.run(min(WARM_UP, jobs), in_flight)
    await asyncio.sleep(EXPIRY)
    objects = (await figures_of(server))["objects"]
    before = server.memory()
    print(
        f"memory before the load: {before:.1f} MiB, {objects} objects "
        f"(after {load.accepted} jobs of warm-up)"
    )

    load = Soak(server.port, random.Random(seed + 1))
    peak = before

    async def watch() -> None:
        nonlocal peak
        while True:
            await asyncio.sleep(0.5)
            peak = max(peak, server.memory())

    watching = asyncio.create_task(watch())
    spent, started = server.processor_seconds(), time.perf_counter()
    await load.run(jobs, in_flight)
    elapsed = time.perf_counter() - started
    spent = server.processor_seconds() - spent
    watching.cancel()
    print(
        f"{load.accepted} jobs accepted and followed to their end in {elapsed:.1f} s "
        f"({load.accepted / elapsed:.0f} a second, "
        f"{spent / load.accepted * 1e6:.0f} us of the server's processor time each), "
        f"{load.refused} refused for want of room"
    )
    print("clients:", ", ".join(f"{way} {count}" for way, count in load.ways.most_common()))
    print("ends:", ", ".join(f"{end} {count}" for end, count in load.ends.most_common()))

    await asyncio.sleep(EXPIRY)
    untrimmed = server.memory()
    figures = await figures_of(server)
    after = server.memory()
    print(
        f"memory at its highest: {peak:.1f} MiB; after expiry: {after:.1f} MiB "
        f"({after / before - 1:+.1%}), with what the allocator kept for later {untrimmed:.1f} MiB"
    )
    print("server:", ", ".join(f"{name} {value}" for name, value in figures.items()))

    wrong = []
    if load.accepted != jobs or load.ends.total() != jobs:
        wrong.append(f"{jobs} jobs, {load.accepted} accepted, {load.ends.total()} ended")
    if figures["running"] or figures["queued"] or figures["entered"] != figures["left"]:
        wrong.append("something still runs or waits")
    if figures["kept"]:
        wrong.append("the store is not empty")
    if after > before * (1 + TOLERANCE) or figures["objects"] > objects * (1 + TOLERANCE):
        wrong.append("the memory was not given back")
    return wrong


# --- long polls --------------------------------------------------------------------------------


async def long_polls(server: Server, jobs: int) -> list[str]:
    """Two long polls on each job; what is wrong."""
    wrong: list[str] = []
    for title, spread in (("within 10 s", 10.0), ("all at once", 0.0)):
        delays = await _long_polls(server, jobs, spread, wrong)
        cuts = statistics.quantiles(delays, n=100)
        print(
            f"{len(delays)} long polls on {jobs} jobs that finish {title}: from completion to "
            f"knowledge {cuts[49] * 1e3:.1f} ms at the median, {cuts[98] * 1e3:.1f} ms at p99, "
            f"{max(delays) * 1e3:.1f} ms at most"
        )
        if spread and cuts[49] > 0.05:
            wrong.append("the median is above 50 ms")
    return wrong


async def _long_polls(server: Server, jobs: int, spread: float, wrong: list[str]) -> list[float]:
    delays: list[float] = []
    control = Client(server.port)
    urls = []
    for number in range(jobs):
        answer = await control.ask("POST", f"/hold?number={number}")
        if answer.status != 202:
            raise Wrong(f"POST was answered {answer}")
        urls.append(answer.headers["location"])

    async def poll(client: Client, url: str) -> None:
        answer = await client.ask("GET", url, prefer="wait=30")
        known = time.monotonic()
        if answer.status != 200:
            wrong.append(f"a long poll was answered {answer}")
        else:
            delays.append(known - answer.document()["finished"])

    clients = [Client(server.port) for _ in range(2 * jobs)]
    async with asyncio.TaskGroup() as group:
        for number, client in enumerate(clients):
            group.create_task(poll(client, urls[number // 2]))
            await asyncio.sleep(KNOCK)
        await asyncio.sleep(1)
        numbers = list(range(jobs))
        if not spread:
            await control.ask("POST", "/finish", json.dumps(numbers).encode())
        else:
            started = time.monotonic()
            for number in numbers:
                due = started + spread * number / jobs
                await asyncio.sleep(due - time.monotonic())
                await control.ask("POST", "/finish", b"[%d]" % number)
    for client in [control, *clients]:
        await client.close()
    return delays


# --- the run -----------------------------------------------------------------------------------


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def introduce() -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.system()} {platform.release()}")
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in VERSIONS))


async def bounded(run: Coroutine[Any, Any, list[str]], minutes: float) -> list[str]:
    """What is wrong, also if the run has to be stopped."""
    wrong: list[str] = []
    try:
        async with asyncio.timeout(minutes * 60):
            wrong += await run
    except* TimeoutError:
        wrong.append(f"it took longer than {minutes:g} min, or one answer than {PATIENCE:g} s")
    except* (Wrong, OSError, EOFError) as group:
        wrong += [repr(error) for error in group.exceptions[:5]]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="A long load on one server process.")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=1000, help="jobs at once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=15.0, help="stop and fail after this long")
    parser.add_argument("--long-polls", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.jobs >= 1 or not 1 <= arguments.in_flight <= 1000:
        parser.error("--jobs is at least 1, and --in-flight 1 to 1000")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for the server, too
    if arguments.serve:
        serve()
        return
    introduce()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder, "log"))
        try:
            run = (
                long_polls(server, arguments.in_flight)
                if arguments.long_polls
                else soak(server, arguments.jobs, arguments.in_flight, arguments.seed)
            )
            wrong = uvloop.run(bounded(run, arguments.minutes))
        finally:
            stopped = server.stop()
        if not stopped:
            wrong.append("the server had to be killed")
        if log := server.log():
            wrong.append(f"the server's log:\n{log[:5000]}")
    for reason in wrong:
        print(f"WRONG: {reason}")
    if wrong:
        raise SystemExit(1)
    print("nothing lost, nothing stuck, no error in the server's log")


if __name__ == "__main__":
    main()
