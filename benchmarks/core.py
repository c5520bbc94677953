"""What raincheck costs on the hot paths, against the same thing without it or written by hand.

    python benchmarks/core.py [--rounds 5] [--seconds 2] [--clients 32]

Needs `pip install raincheck uvicorn[standard]`. Four measures, each a ratio of requests a second:

- unmarked route: a JSON route of an app with the middleware and one marked route, over the same
  route of the same app without either;
- accepted jobs: a POST answered 202 while its handler goes on, over a hand-written 202 with
  `asyncio.create_task`, a dict and a status route;
- pending and finished polls: the status URL of a job that is held and of one whose result has
  1 KB, over the hand-written status route.

Every server is a real uvicorn (uvloop, httptools, one worker, no access log) in a process of its
own, new in every round; the load comes from another process over keep-alive connections. Where
the system allows it, servers have one core and the load has another. Within a round the two sides
take turns in short slices (A B B A), so that whatever else the machine does meets both. Shown are
the median over the rounds, and the lowest and highest round in brackets. The processor time that
a server spent on a request says the same, less disturbed by what else runs.

An answer of the wrong kind is an error: the run stops with exit status 1. A goal missed is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, MemoryStore, long_running

VERSIONS = ("starlette", "uvicorn", "anyio", "cachetools", "uvloop", "httptools", "raincheck")

# Slices that each side gets in a round; an even number, so that A B B A comes out even.
SLICES = 4

# Seconds of load on a new server before it is measured.
WARM_UP = 0.3

# Requests in one slice at most, so that the memory of a server that keeps jobs stays bounded.
MOST = 50_000

# Seconds that a server has to start, and a slice to end after its time.
PATIENCE = 30.0

ORDER = json.dumps({"customer": 4711, "lines": [{"sku": f"sku-{n}", "n": n} for n in range(7)]})
"""What is posted: about 200 bytes."""

REPORT = {"rows": [{"sku": f"sku-{n:04}", "sold": n, "left": 1000 - n} for n in range(24)]}
"""The result of a finished job: about 1 KB as JSON."""


# --- the apps ----------------------------------------------------------------------------------


async def hello(request: Request) -> Response:
    return JSONResponse({"hello": "world"})


async def make_order(request: Request) -> Response:
    order = await request.json()
    await asyncio.sleep(0)
    return JSONResponse({"lines": len(order["lines"])})


async def make_report(request: Request) -> Response:
    await request.json()
    return JSONResponse(REPORT)


async def never_end(request: Request) -> Response:
    await asyncio.Event().wait()
    return JSONResponse(None)


def raincheck() -> Middleware:
    return Middleware(LongRunningMiddleware, store=MemoryStore(max_bytes=8 * 1024**3))


def unmarked_without() -> Starlette:
    return Starlette(
        routes=[Route("/hello", hello), Route("/orders", make_order, methods=["POST"])]
    )


def unmarked_with() -> Starlette:
    return Starlette(
        routes=[
            Route("/hello", hello),
            Route("/orders", long_running(make_order), methods=["POST"]),
        ],
        middleware=[raincheck()],
    )


def jobs_by_raincheck() -> Starlette:
    mark = long_running(ttl=600)
    return Starlette(
        routes=[
            Route("/orders", mark(make_order), methods=["POST"]),
            Route("/reports", mark(make_report), methods=["POST"]),
            Route("/never", mark(never_end), methods=["POST"]),
        ],
        middleware=[raincheck()],
    )


def jobs_by_hand() -> Starlette:
    """The same as many write it: nothing superfluous, and nothing left out that it needs."""
    jobs: dict[str, dict[str, Any]] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def run(job: dict[str, Any], work: Any, order: Any) -> None:
        try:
            job["result"] = await work(order)
            job["status"] = "succeeded"
        except Exception as error:
            job["error"] = str(error)
            job["status"] = "failed"
        job["finished_at"] = datetime.now(UTC).isoformat()

    def accepting(work: Any) -> Any:
        async def accept(request: Request) -> Response:
            order = await request.json()
            id = str(uuid4())
            created_at = datetime.now(UTC).isoformat()
            job = {"job_id": id, "status": "running", "created_at": created_at}
            jobs[id] = job
            task = asyncio.create_task(run(job, work, order))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return JSONResponse(job, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})

        return accept

    async def status(request: Request) -> Response:
        job = jobs.get(request.path_params["id"])
        if job is None:
            return JSONResponse({"detail": "There is no such job."}, 404)
        if job["status"] == "running":
            return JSONResponse(job, 202, {"Retry-After": "1", "Cache-Control": "no-store"})
        return JSONResponse(job, headers={"Cache-Control": "no-store"})

    async def order_work(order: Any) -> Any:
        await asyncio.sleep(0)
        return {"lines": len(order["lines"])}

    async def report_work(order: Any) -> Any:
        return REPORT

    async def endless_work(order: Any) -> Any:
        await asyncio.Event().wait()

    return Starlette(
        routes=[
            Route("/orders", accepting(order_work), methods=["POST"]),
            Route("/reports", accepting(report_work), methods=["POST"]),
            Route("/never", accepting(endless_work), methods=["POST"]),
            Route("/jobs/{id}", status),
        ]
    )


APPS = {app.__name__: app for app in (unmarked_without, unmarked_with, jobs_by_raincheck)}
APPS[jobs_by_hand.__name__] = jobs_by_hand


@dataclass(frozen=True)
class Measure:
    """One comparison.

    Attributes:
        title: what it is called in the table.
        ours, theirs: the two apps.
        goal: the least ratio of ours to theirs.
        method, path, status: what is asked, and what must be answered every time.
        job: post here first, and ask for the job's status URL instead of `path`.
    """

    title: str
    ours: str
    theirs: str
    goal: float
    method: str = "GET"
    path: str = ""
    status: int = 200
    job: str | None = None


MEASURES = (
    Measure("unmarked route", "unmarked_with", "unmarked_without", 0.97, path="/hello"),
    Measure("accepted jobs", "jobs_by_raincheck", "jobs_by_hand", 0.7, "POST", "/orders", 202),
    Measure("pending polls", "jobs_by_raincheck", "jobs_by_hand", 1.0, status=202, job="/never"),
    Measure("finished polls", "jobs_by_raincheck", "jobs_by_hand", 1.0, job="/reports"),
)


# --- the load, in a process of its own ---------------------------------------------------------

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass
class Slice:
    """What a slice of load is asked for, and how far it is."""

    request: bytes
    status: int
    seconds: float
    most: int
    deadline: float = 0.0
    sent: int = 0
    answered: int = 0
    wrong: bytes | None = None


class Connection(asyncio.Protocol):
    """One client: asks again as soon as it is answered, as long as there is time."""

    def __init__(self, slice: Slice) -> None:
        self._slice = slice
        self._buffer = b""
        self._transport: Any = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self) -> None:
        slice = self._slice
        if slice.wrong or slice.sent >= slice.most or time.perf_counter() >= slice.deadline:
            self._finish()
            return
        slice.sent += 1
        self._transport.write(slice.request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n") + 4
        if head < 4:
            return
        length = _LENGTH.search(buffer, 0, head)
        status = _STATUS_LINE.match(buffer)
        if length is None or status is None or int(status[1]) != self._slice.status:
            self._slice.wrong = buffer
            self._finish()
            return
        if len(buffer) < head + int(length[1]):
            return
        self._buffer = b""
        self._slice.answered += 1
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._slice.wrong = b"connection lost"
            self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self._transport.close()


async def run_slice(port: int, clients: int, slice: Slice) -> float:
    """Put the load on a server; returns the seconds from the first request to the last answer."""
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(clients):
        connect = loop.create_connection(lambda: Connection(slice), "127.0.0.1", port)
        connections.append((await connect)[1])
    started = time.perf_counter()
    slice.deadline = started + slice.seconds
    for connection in connections:
        connection.ask()
    async with asyncio.timeout(slice.seconds + PATIENCE):
        await asyncio.gather(*(connection.done for connection in connections))
    return time.perf_counter() - started


def load() -> None:
    """Read one slice a line, answer each with a line."""
    for line in sys.stdin:
        asked = json.loads(line)
        slice = Slice(asked["request"].encode(), asked["status"], asked["seconds"], MOST)
        elapsed = uvloop.run(run_slice(asked["port"], asked["clients"], slice))
        wrong = None if slice.wrong is None else slice.wrong.decode("latin-1")
        print(json.dumps([slice.answered, elapsed, wrong]), flush=True)


# --- servers, each a process of its own --------------------------------------------------------


def serve(app: str) -> None:
    """Serve an app on a free port, and print the port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(
            APPS[app](), loop="uvloop", http="httptools", access_log=False, log_level="warning"
        )
        uvicorn.Server(config).run(sockets=[listening])


class Child:
    """This file in another process, under another role."""

    def __init__(self, *role: str, core: int | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--core", str(core), *role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # a held handler has nothing to be waited for
        self._process.communicate()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("error: a process of the benchmark has ended; see above")
        return line

    def processor_seconds(self) -> float:
        """Processor time spent so far; not a number where the system does not say."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return float("nan")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Server(Child):
    """A server under one app."""

    def __init__(self, app: str, core: int | None) -> None:
        super().__init__("--serve", app, core=core)
        self.app = app
        self.port = int(self.hear())
        self.answered = 0
        self.elapsed = 0.0

    def ask(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(spell(method, path, close=True).encode())
            with connection.makefile("rb") as answer:
                status = int(answer.readline().split()[1])
                lines = iter(answer.readline, b"\r\n")
                fields = (line.decode("latin-1").partition(":") for line in lines)
                headers = {name.lower(): value.strip() for name, _, value in fields}
                return status, headers, answer.read()

    def start_job(self, path: str, *, finished: bool) -> str:
        """Post; returns the status URL, when it shows that the job runs or has finished."""
        status, headers, body = self.ask("POST", path)
        if status != 202:
            raise SystemExit(f"error: {self.app} answered {status} to POST {path}: {body!r}")
        wanted = 200 if finished else 202
        for _ in range(100):
            status, _, body = self.ask("GET", headers["location"])
            if status == wanted:
                return headers["location"]
            time.sleep(0.02)
        raise SystemExit(f"error: {self.app}: a job's status URL answered {status}: {body!r}")


def spell(method: str, path: str, *, close: bool = False) -> str:
    """A request on the wire."""
    body = ORDER if method == "POST" else ""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "accept: */*"]
    if close:
        lines.append("connection: close")
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", body])


# --- the run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One side of one round.

    Attributes:
        rate: requests a second.
        cost: microseconds of the server's processor time for each.
    """

    rate: float
    cost: float


class Bench:
    """Measures rounds.

    Args:
        load: the process that makes the load.
        core: the servers' core; None to leave that to the system.
        seconds: of load for each side of a round.
        clients: connections at once.
    """

    def __init__(self, load: Child, core: int | None, seconds: float, clients: int) -> None:
        self._load = load
        self._core = core
        self._seconds = seconds
        self._clients = clients

    def round(self, measure: Measure, number: int) -> tuple[Sample, Sample]:
        """One round on two new servers: ours and theirs."""
        with Server(measure.ours, self._core) as ours, Server(measure.theirs, self._core) as theirs:
            sides = [(server, self._request(measure, server)) for server in (ours, theirs)]
            for server, request in sides:
                self._press(server, request, measure, WARM_UP)
                server.answered, server.elapsed = 0, 0.0
            spent = [server.processor_seconds() for server, _ in sides]
            for turn in range(SLICES):
                forwards = (turn + number) % 2 == 0
                for server, request in sides if forwards else reversed(sides):
                    self._press(server, request, measure, self._seconds / SLICES)
            samples = [
                Sample(
                    server.answered / server.elapsed,
                    (server.processor_seconds() - before) / server.answered * 1e6,
                )
                for (server, _), before in zip(sides, spent, strict=True)
            ]
            if measure.method == "POST":  # the jobs do run to their end
                for server, _ in sides:
                    server.start_job(measure.path, finished=True)
        return samples[0], samples[1]

    def _request(self, measure: Measure, server: Server) -> str:
        path = measure.path
        if measure.job is not None:
            path = server.start_job(measure.job, finished=measure.status == 200)
        return spell(measure.method, path)

    def _press(self, server: Server, request: str, measure: Measure, seconds: float) -> None:
        asked = {
            "port": server.port,
            "clients": self._clients,
            "request": request,
            "status": measure.status,
            "seconds": seconds,
        }
        self._load.tell(json.dumps(asked))
        answered, elapsed, wrong = json.loads(self._load.hear())
        if wrong is not None:
            raise SystemExit(f"error: {server.app} did not answer {measure.status}: {wrong!r}")
        server.answered += answered
        server.elapsed += elapsed


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Bench]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ours, loads = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
    with Child("--load", core=loads) as load:
        yield Bench(load, ours, arguments.seconds, arguments.clients)


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


def show(measure: Measure, rounds: list[tuple[Sample, Sample]]) -> bool:
    """Print a measure's row; returns whether its goal was met."""
    rates = [ours.rate / theirs.rate for ours, theirs in rounds]
    costs = [theirs.cost / ours.cost for ours, theirs in rounds]
    met = statistics.median(rates) >= measure.goal
    ours, theirs = (
        f"{statistics.median(side.rate for side in sides):7.0f}/s "
        f"{statistics.median(side.cost for side in sides):5.0f} µs"
        for sides in zip(*rounds, strict=True)
    )
    print(
        f"{measure.title:<15} {ours:>18} {theirs:>18}   {spread(rates, '.2f'):<18} "
        f"{spread(costs, '.2f'):<18} {measure.goal:>5.2f}  {'yes' if met else 'no'}",
        flush=True,
    )
    return met


def main(arguments: argparse.Namespace) -> None:
    print(f"date      {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"machine   {processor()}, {os.cpu_count()} cores, {platform.system()}")
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    print(f"versions  python {platform.python_version()}, {versions}")
    print(
        f"run       {arguments.rounds} rounds, {arguments.seconds:g} s a side in {SLICES} slices, "
        f"{arguments.clients} connections"
    )
    print()
    print(
        f"{'':<15} {'raincheck':>18} {'without, by hand':>18}   "
        f"{'ratio of rates':<18} {'of processor time':<18} {'goal':>5}  met",
        flush=True,
    )
    with opened(arguments) as bench:
        measures = [m for m in MEASURES if arguments.only in (None, m.title)]
        samples: dict[str, list[tuple[Sample, Sample]]] = {m.title: [] for m in measures}
        for number in range(arguments.rounds):
            for measure in measures:
                samples[measure.title].append(bench.round(measure, number))
    met = {measure.title: show(measure, samples[measure.title]) for measure in measures}
    print()
    print("goals met: " + ", ".join(f"{title}: {'yes' if m else 'no'}" for title, m in met.items()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for a result")
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, each side and round")
    parser.add_argument("--clients", type=int, default=32, help="connections at once")
    parser.add_argument("--only", choices=[m.title for m in MEASURES], help="one measure")
    # The roles under which this file starts itself.
    parser.add_argument("--serve", choices=APPS, help=argparse.SUPPRESS)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--core", default="None", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    if arguments.core != "None":
        os.sched_setaffinity(0, {int(arguments.core)})
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.load:
        load()
    else:
        main(arguments)
