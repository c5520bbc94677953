"""Several processes over one store, all of this one: a simulation, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from raincheck import Jobs, Limits, LongRunningMiddleware, MemoryStore, report
from raincheck.runners.base import Run, Runner, Stop
from raincheck.runtime.leases import BEAT
from raincheck.telemetry.base import Telemetry
from tests.conftest import Clock
from tests.doubles.stores import DamagedStore, Line
from tests.support import Gate, app_of, running, settled, slow_route

LEASE = 12.8
STORE_TIMEOUT = 2.0
SURVIVED = LEASE - BEAT - STORE_TIMEOUT
"""Seconds that the store may be away without any job's noticing."""


More = Callable[[str], Iterable[BaseRoute]]
"""Further routes of the process of this name."""


class Streamed(Response):
    """A response that waits at a gate between its two pieces."""

    def __init__(self, piece: bytes, gate: Gate) -> None:
        super().__init__()
        self._piece = piece
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self._piece, "more_body": True})
        await self._gate.wait()
        await send({"type": "http.response.body", "body": self._piece})


class Two:
    """Two apps with the same routes over one store.

    Attributes:
        a, b: their clients.
        line: the first one's line to the store.
        runs: which of them ran the handler, in order.
        gates: where their handlers wait.
        clock: theirs.
    """

    def __init__(
        self,
        stack: AsyncExitStack,
        limits: Mapping[str, Any],
        telemetry: Telemetry | None = None,
        more: More = lambda name: (),
    ) -> None:
        self._telemetry = telemetry
        self._more = more
        self.clock = Clock()  # one for all: those of machines hardly differ
        self.store = DamagedStore()
        self.lines = {"a": Line(self.store), "b": Line(self.store)}
        self.line = self.lines["a"]
        self.runs: list[str] = []
        self.gates = {"a": Gate(), "b": Gate()}
        self.apps = {name: self._app(name, limits) for name in "ab"}
        self._stack = stack
        self._open: dict[str, AsyncExitStack] = {}
        self.clients: dict[str, httpx.AsyncClient] = {}

    def _app(self, name: str, limits: Mapping[str, Any]) -> LongRunningMiddleware:
        async def answer(request: Request) -> Any:
            self.runs.append(name)
            if "report" in request.query_params:
                report(0.5, f"by {name}")
            await self.gates[name].wait()
            return {"by": name, "body": (await request.body()).decode()}

        async def streamed(request: Request) -> Response:
            self.runs.append(name)
            return Streamed(name.encode() * 300_000, self.gates[name])

        jobs = Jobs(
            clock=self.clock,
            store=self.lines[name],
            telemetry=self._telemetry,
            limits=Limits(**{"lease": LEASE, "store_timeout": STORE_TIMEOUT, **limits}),
        )
        return app_of(
            slow_route(answer, "/fail", max_running=2),
            slow_route(answer, "/rerun", on_interrupt="rerun", max_runs=2),
            slow_route(streamed, "/streamed", on_interrupt="rerun"),
            slow_route(answer, "/one", max_running=1),
            slow_route(answer, "/held", max_running=1, hold=True),
            slow_route(answer, "/shared", coalesce=True),
            slow_route(answer, "/in-place", respond="preferred"),
            *self._more(name),
            jobs=jobs,
        )

    async def start(self, name: str) -> None:
        inner = self._open[name] = await self._stack.enter_async_context(AsyncExitStack())
        self.clients[name] = await inner.enter_async_context(running(self.apps[name]))

    async def stop(self, name: str) -> None:
        await self._open[name].aclose()

    @property
    def a(self) -> httpx.AsyncClient:
        return self.clients["a"]

    @property
    def b(self) -> httpx.AsyncClient:
        return self.clients["b"]

    async def status(self, response: httpx.Response) -> str:
        document = await self.b.get(response.headers["location"] + "/status")
        state: str = document.json()["status"]
        return state


@asynccontextmanager
async def two(
    telemetry: Telemetry | None = None, more: More = lambda name: (), **limits: Any
) -> AsyncIterator[Two]:
    async with AsyncExitStack() as stack:
        both = Two(stack, limits, telemetry, more)
        await both.start("b")
        await both.start("a")
        try:
            yield both
        finally:  # a test that has failed is to end, too
            for line in both.lines.values():
                line.mend()
            for gate in both.gates.values():
                gate.open()
        await settled()


class Broker:
    """What the processes of a fleet share.

    Attributes:
        ids: that wait.
        brought: every id that it was given.
        up: whether it takes any.
        hangs: whether it leaves those who ask without an answer.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.brought: list[str] = []
        self.up = True
        self.hangs = False

    async def give(self, id: str) -> None:
        if self.hangs:
            self.ids.append(id)  # it has arrived all the same
            await anyio.sleep_forever()
        if not self.up:
            raise ConnectionError("it is not there")
        self.ids.append(id)
        self.brought.append(id)


class Engine(Runner):
    """One process's side of the broker.

    Args:
        broker: it.
        slots: how many jobs it takes at a time; 0: it is no worker.
        pause: seconds until a worker that has found nothing looks again.
    """

    in_place: ClassVar[bool] = False

    def __init__(self, broker: Broker, slots: int = 0, *, pause: float = 0.1) -> None:
        self._broker = broker
        self._slots = slots
        self._pause = pause
        self.stopping = False
        self._spawn: Callable[[Run, str], None]

    def bind(self, run: Run, stop: Stop, spawn: Callable[[Run, str], None]) -> None:
        self._run, self._stop, self._spawn = run, stop, spawn

    async def open(self) -> None:
        self.stopping = False
        for _ in range(self._slots):
            self._spawn(self._work, "")

    async def submit(self, id: str, queue: str | None = None) -> None:
        await self._broker.give(id)

    async def cancel(self, id: str) -> None:
        self._stop(id)

    async def bring(self, id: str) -> None:
        await self._run(id)

    async def _work(self, _: str) -> None:
        while not self.stopping:
            if self._broker.ids:
                await self.bring(self._broker.ids.pop(0))
            else:
                await anyio.sleep(self._pause)


class Fleet:
    """A web process and two workers, "a" and "b".

    Attributes:
        web: a client.
        broker: between them.
        lines: each one's line to the store.
        gates: where the handlers of each wait.
        runs: which of them ran a handler, in order.
        clock: theirs.
    """

    def __init__(
        self,
        stack: AsyncExitStack,
        slots: int,
        limits: dict[str, Any],
        telemetry: Telemetry | None,
        more: More = lambda name: (),
    ) -> None:
        self._telemetry = telemetry
        self._more = more
        self.broker = Broker()
        self.clock = Clock()
        self.store = MemoryStore()
        self.lines = {name: Line(self.store) for name in ("web", "a", "b")}
        self.gates = {name: Gate() for name in ("a", "b", "web")}
        self.runs: list[str] = []
        self.apps: dict[str, LongRunningMiddleware] = {}
        self._stack = stack
        self._slots = slots
        self._limits = limits
        self._open: dict[str, AsyncExitStack] = {}
        self._engines: dict[str, Engine] = {}
        self.web: httpx.AsyncClient

    async def start(self, name: str) -> httpx.AsyncClient:
        async def answer(request: Request) -> Any:
            self.runs.append(name)
            await self.gates[name].wait()
            return {"by": name, "body": (await request.body()).decode()}

        engine = self._engines[name] = Engine(self.broker, 0 if name == "web" else self._slots)
        jobs = Jobs(
            clock=self.clock,
            store=self.lines[name],
            runner=engine,
            telemetry=self._telemetry,
            limits=Limits(**{"lease": LEASE, "store_timeout": 2, **self._limits}),
        )
        self.apps[name] = app_of(
            slow_route(answer, "/fail"),
            slow_route(answer, "/rerun", on_interrupt="rerun", max_runs=2),
            slow_route(answer, "/one", max_running=1, max_queued=2),
            slow_route(answer, "/in-place", respond="preferred"),
            *self._more(name),
            jobs=jobs,
        )
        inner = self._open[name] = await self._stack.enter_async_context(AsyncExitStack())
        return await inner.enter_async_context(running(self.apps[name]))

    async def stop(self, name: str) -> None:
        self._engines[name].stopping = True  # as engines do before their workers drain
        await self._open[name].aclose()

    def kill(self, name: str) -> None:
        """Let a process be no more, as far as others see that."""
        self._engines[name].stopping = True
        self.lines[name].cut()

    async def bring(self, name: str, id: str) -> None:
        """Have a worker run a job in the task that asks: whoever cancels that gives it up."""
        await self._engines[name].bring(id)

    def occupied(self, name: str) -> tuple[int, int]:
        """How many run and wait in a process."""
        statistics = self.apps[name].jobs.statistics()
        return statistics.running, statistics.queued

    async def state(self, response: httpx.Response) -> str:
        document = await self.web.get(response.headers["location"] + "/status")
        state: str = document.json()["status"]
        return state


@asynccontextmanager
async def fleet(
    *workers: str,
    slots: int = 5,
    telemetry: Telemetry | None = None,
    more: More = lambda name: (),
    **limits: Any,
) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        one = Fleet(stack, slots, limits, telemetry, more)
        one.web = await one.start("web")
        for name in workers:
            await one.start(name)
        try:
            yield one
        finally:  # a test that has failed is to end, too
            for line in one.lines.values():
                line.mend()
            for gate in one.gates.values():
                gate.open()
        await anyio.sleep(1)
