"""How far a reader has to walk: the calls and files that a request goes through.

    python benchmarks/walks.py [--json] [--calls NAME]

Needs `pip install raincheck`. Each walk is a real request to an app in this process, with the
memory store; every call of a function of raincheck's is noted, with the file that it stands in (to
go on with a coroutine counts as a call, as Python's profiler sees it). Shown are the calls, the
files they stand in, how often the next call stands in another file, how many of these lead back to
a file that was left before, and how often the store was asked for the job. `tests/test_walks.py`
holds them to a bound. `--calls "a cancel"` shows the calls of one walk instead, file by file; a
return has an arrow.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import raincheck
from raincheck import LongRunningMiddleware, MemoryStore, long_running
from raincheck.testing import lifespan

HOUSE = str(Path(raincheck.__file__).parent)


class Trace:
    """The calls of a walk, in order, each by its file."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.names: list[str] = []
        self.gets = 0
        self._on = False

    def start(self) -> None:
        self._on = True

    def stop(self) -> None:
        self._on = False

    def note(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not self._on:
            return
        code = frame.f_code
        if code.co_filename.startswith(HOUSE):
            self.files.append(code.co_filename[len(HOUSE) + 1 :])
            self.names.append(code.co_qualname)
            self.gets += code.co_name in ("get", "fetch") and code.co_filename.endswith("memory.py")


@dataclass(frozen=True, slots=True)
class Walk:
    """What a trace comes to.

    Attributes:
        calls: of functions of raincheck's.
        files: that they stand in.
        switches: how often the next one stands in another file than the one before.
        returns: how many of these lead back to a file that was left before.
        gets: how often the store was asked for the job.
    """

    calls: int
    files: int
    switches: int
    returns: int
    gets: int

    @classmethod
    def of(cls, trace: Trace) -> Walk:
        switches = sum(one != other for one, other in itertools.pairwise(trace.files))
        files = len(set(trace.files))
        return cls(len(trace.files), files, switches, switches + 1 - files, trace.gets)


class Exchange:
    """One request, at the level of ASGI."""

    def __init__(self, path: str, method: str = "GET") -> None:
        self.status = 0
        self.location = ""
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"x"), (b"accept", b"*/*")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        self._trace: Trace | None = None

    async def run(self, app: LongRunningMiddleware, trace: Trace | None = None) -> Exchange:
        """Send it; the trace ends when the answer begins."""
        self._trace = trace
        if trace is not None:
            trace.start()
        await app(self.scope, self._receive, self._send)
        return self

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 100, "more_body": False}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            if self._trace is not None:
                self._trace.stop()
            self.status = message["status"]
            self.location = dict(message["headers"]).get(b"location", b"").decode()


class Gates:
    """Handlers that wait until they are let go on, and those that were asked to stop."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.stopped: Callable[[], None] = lambda: None


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[LongRunningMiddleware, Gates]]:
    """An app that has been up for a while."""
    gates = Gates()

    @long_running
    async def report(request: Request) -> Response:
        return JSONResponse({"rows": len(await request.body())})

    @long_running(max_running=2)
    async def held(request: Request) -> Response:
        try:
            await gates.open.wait()
        except asyncio.CancelledError:
            gates.stopped()
            raise
        return JSONResponse({})

    async def plain(request: Request) -> Response:
        return Response("plain")

    routes = [
        Route("/report", report, methods=["POST"]),
        Route("/held", held, methods=["POST"]),
        Route("/plain", plain),
    ]
    app = LongRunningMiddleware(Starlette(routes=routes), store=MemoryStore())
    async with lifespan(app):
        for _ in range(3):
            done = await Exchange("/report", "POST").run(app)
            await settled()
            await Exchange(done.location).run(app)
            await Exchange("/plain").run(app)
            asked = await Exchange("/held", "POST").run(app)
            await settled()
            await Exchange(asked.location + "/cancel", "POST").run(app)
            await settled()
        yield app, gates
        gates.open.set()
        await settled()


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Note the calls while the trace is on."""
    before = sys.getprofile()
    sys.setprofile(trace.note)
    try:
        yield
    finally:
        sys.setprofile(before)


async def accepted(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """From the request to its 202."""
    done = await Exchange("/held", "POST").run(app, trace)
    assert done.status == 202


async def queued(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """The same, of a request that has to wait."""
    for _ in range(2):
        await Exchange("/held", "POST").run(app)
    done = await Exchange("/held", "POST").run(app, trace)
    assert done.status == 202


async def replayed(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """Two jobs end, and one that waited runs to its end."""
    for _ in range(3):
        await Exchange("/held", "POST").run(app)
    await settled()
    trace.start()
    gates.open.set()
    await settled()
    trace.stop()


async def pending(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """A poll of a job that runs."""
    job = await Exchange("/held", "POST").run(app)
    poll = await Exchange(job.location).run(app, trace)
    assert poll.status == 202


async def finished(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """A poll of one that has finished."""
    job = await Exchange("/report", "POST").run(app)
    await settled()
    poll = await Exchange(job.location).run(app, trace)
    assert poll.status == 200


async def cancelled(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """From a cancel over HTTP to the answer, with the handler asked to stop."""
    job = await Exchange("/held", "POST").run(app)
    await settled()
    cancel = await Exchange(job.location + "/cancel", "POST").run(app, trace)
    assert cancel.status == 202


async def stopped(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """From the stop of a cancelled handler to its outcome."""
    job = await Exchange("/held", "POST").run(app)
    await settled()
    gates.stopped = trace.start
    await Exchange(job.location + "/cancel", "POST").run(app)
    await settled()
    trace.stop()


async def unmarked(app: LongRunningMiddleware, gates: Gates, trace: Trace) -> None:
    """A request that is none of ours, from the server to the app."""
    done = await Exchange("/plain").run(app, trace)
    assert done.status == 200


Way = Callable[[LongRunningMiddleware, Gates, Trace], Awaitable[None]]

WALKS: dict[str, Way] = {
    "a request to its 202": accepted,
    "the same, queued": queued,
    "its turn comes: a replay, while two jobs end": replayed,
    "a poll, pending": pending,
    "a poll, finished": finished,
    "a cancel": cancelled,
    "the handler stops: its outcome": stopped,
    "an unmarked request": unmarked,
}


def walk(way: Way) -> Walk:
    """Take one walk."""
    return Walk.of(traced(way))


def traced(way: Way) -> Trace:
    """The calls of one walk."""

    async def take() -> Trace:
        # What happens from time to time would count by how slow the machine is.
        ticks = itertools.count()
        asyncio.get_running_loop().time = lambda: next(ticks) * 1e-4  # type: ignore[method-assign] # so
        trace = Trace()
        async with serving() as (app, gates):
            with tracing(trace):
                await way(app, gates, trace)
        return trace

    return asyncio.run(take())


def show(trace: Trace) -> None:
    """Print the calls of a walk, those that follow one another in a file on one line."""
    seen = set[str]()
    calls = zip(trace.files, trace.names, strict=True)
    for number, (file, group) in enumerate(itertools.groupby(calls, key=itemgetter(0)), 1):
        arrow = "<-" if file in seen else "  "
        seen.add(file)
        print(f"{number:3} {arrow} {file:26} {', '.join(name for _, name in group)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--calls", choices=WALKS, help="show those of this walk", metavar="NAME")
    arguments = parser.parse_args()
    logging.getLogger("raincheck").setLevel(logging.CRITICAL)
    if arguments.calls:
        show(traced(WALKS[arguments.calls]))
        return 0
    if arguments.json:
        print(json.dumps({name: asdict(walk(way)) for name, way in WALKS.items()}))
        return 0
    print("| walk | calls | files | switches | returns | gets |\n|---|---|---|---|---|---|")
    for name, way in WALKS.items():
        found = walk(way)
        counts = (found.calls, found.files, found.switches, found.returns, found.gets)
        print(f"| {name} | {' | '.join(map(str, counts))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
