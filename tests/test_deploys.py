"""Rolling deploys: two releases of an app over one store, of which one lacks a route.

The releases are apps in one process, and a line that is cut stands for a process that has ended: a
simulation, on virtual time. What a process does that dies is in `test_recovery.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import (
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
    State,
    current_job,
    long_running,
)
from raincheck.runners.base import Runner
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing import follow
from tests.conftest import Clock
from tests.doubles.processes import LEASE, Broker, Engine
from tests.doubles.stores import Line, SharedMemory, TrickyStore, no_trick
from tests.support import Gate, hidden, running, settled, slow_route

pytestmark = pytest.mark.anyio

HOUR = 3600.0

READ = pytest.mark.parametrize("read", [True, False], ids=["readable", "not readable"])


class Asked:
    """Notes what requests have come to an app."""

    def __init__(self, app: ASGIApp, paths: list[str]) -> None:
        self.app = app
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._paths.append(scope["path"])
        await self.app(scope, receive, send)


class Deployment:
    """Releases of one app over one store.

    Attributes:
        store: the store.
        lines: each one's line to it.
        clients: theirs.
        asked: the paths that the app of each was asked for.
        runs: which of them ran a handler, in order.
        gate: where handlers wait.
    """

    def __init__(self, stack: AsyncExitStack, *, read: bool) -> None:
        self.store: MemoryStore = SharedMemory()
        self.lines: dict[str, Line] = {}
        self.clients: dict[str, httpx.AsyncClient] = {}
        self.asked: dict[str, list[str]] = {}
        self.runs: list[str] = []
        self.gate = Gate()
        self._clock = Clock()  # of all of them: they start at different times
        self._stack = stack
        self._lives: dict[str, AsyncExitStack] = {}
        self._read = read

    def route(self, release: str, path: str, **settings: Any) -> Route:
        """A route of a release, whose handler waits at the gate."""

        async def answer(request: Request) -> Any:
            self.runs.append(release)
            await self.gate.wait()
            return {"by": release}

        return slow_route(answer, path, **settings)

    async def start(
        self,
        release: str,
        *routes: BaseRoute,
        rules: dict[str, Policy] | None = None,
        around: Callable[[ASGIApp], ASGIApp] | None = None,
        runner: Runner | None = None,
        **limits: Any,
    ) -> httpx.AsyncClient:
        """Start a release with these routes."""
        line = self.lines[release] = Line(self.store)
        paths = self.asked[release] = []
        inner: ASGIApp = Starlette(
            routes=routes,
            middleware=[Middleware(Asked, paths=paths)],
        )
        inner = inner if around is None else around(inner)
        app = LongRunningMiddleware(
            inner if self._read else hidden(inner),
            routes=rules,
            jobs=Jobs(
                clock=self._clock,
                store=line,
                runner=runner,
                limits=Limits(**{"lease": LEASE, "store_timeout": 2, **limits}),
            ),
        )
        life = self._lives[release] = await self._stack.enter_async_context(AsyncExitStack())
        self.clients[release] = await life.enter_async_context(running(app))
        return self.clients[release]

    async def stop(self, release: str) -> None:
        await self._lives[release].aclose()

    async def state(self, accepted: httpx.Response) -> State:
        job = await self.store.get(accepted.json()["job_id"])
        assert job is not None
        return job.state


@asynccontextmanager
async def deployment(*, read: bool) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        made = Deployment(stack, read=read)
        try:
            yield made
        finally:
            for line in made.lines.values():
                line.mend()
            made.gate.open()
            await anyio.sleep(2 * LEASE)


async def left(made: Deployment, path: str, *routes: BaseRoute, **settings: Any) -> httpx.Response:
    """A job that waits, of a process of the old release that has ended."""
    old = await made.start("old", made.route("old", path, max_running=1, **settings), *routes)
    await old.post(path)
    await settled()
    accepted = await old.post(path)
    assert accepted.json()["status"] == "queued"
    made.lines["old"].cut()
    return accepted


# --- a route that the new release does not have ------------------------------------------------


@READ
async def test_a_job_whose_route_is_not_here_is_left_to_a_process_that_has_it(read: bool) -> None:
    async with deployment(read=read) as made:
        accepted = await left(made, "/b")
        await made.start("new", made.route("new", "/a"))
        await anyio.sleep(10 * LEASE)
        assert await made.state(accepted) is State.QUEUED
        assert ("/b" in made.asked["new"]) is not read  # what cannot be read was asked
        if not read:
            made.lines["new"].cut()  # it may be faster, each time
        late = await made.start("still old", made.route("still old", "/b"))
        made.gate.open()
        assert (await follow(late, accepted)).json() == {"by": "still old"}
        assert made.runs == ["old", "still old"]


@READ
@pytest.mark.parametrize("limit", [HOUR, 40 * LEASE])
async def test_a_job_whose_route_nobody_has_fails_in_the_end(
    read: bool, limit: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with deployment(read=read) as made:
        accepted = await left(made, "/b")
        new = await made.start("new", made.route("new", "/a"), abandon_after=limit)
        await anyio.sleep(limit - 2 * LEASE)
        assert await made.state(accepted) is State.QUEUED
        await anyio.sleep(6 * LEASE)
        response = await new.get(accepted.headers["location"])
        assert response.status_code == 502
        assert response.json()["type"] == "urn:raincheck:problem:unknown-route"
        assert response.headers["job-status"] == "failed"
        document = (await new.get(accepted.headers["location"] + "/status")).json()
        assert (document["status"], document["error"]["code"]) == ("failed", "unknown-route")
        assert made.runs == ["old"]
        (line,) = [each for each in caplog.messages if accepted.json()["job_id"] in each]
        assert line.endswith("(b) has failed: no process has that route")


@READ
async def test_a_run_that_was_interrupted_waits_for_a_process_that_has_its_route(
    read: bool,
) -> None:
    async with deployment(read=read) as made:
        settings: Any = {"on_interrupt": "rerun", "max_runs": 2}
        old = await made.start("old", made.route("old", "/b", **settings))
        accepted = await old.post("/b")
        await settled()
        made.lines["old"].cut()
        await made.start("new")
        await anyio.sleep(10 * LEASE)
        if not read:
            made.lines["new"].cut()  # it may be faster, each time
        late = await made.start("still old", made.route("still old", "/b", **settings))
        made.gate.open()
        assert (await follow(late, accepted)).json() == {"by": "still old"}
        assert made.runs == ["old", "still old"]


@READ
async def test_what_needs_no_handler_is_ended_by_any_process(read: bool) -> None:
    async with deployment(read=read) as made:
        old = await made.start("old", made.route("old", "/b"))
        lost, cancelled = [await old.post("/b") for _ in range(2)]
        await settled()
        made.lines["old"].cut()
        new = await made.start("new")
        await new.post(cancelled.headers["location"] + "/cancel")
        await anyio.sleep(2 * LEASE)
        assert await made.state(lost) is State.FAILED
        assert await made.state(cancelled) is State.CANCELLED
        assert "lost-worker" in (await new.get(lost.headers["location"])).text


@READ
async def test_a_job_keeps_its_route_through_a_rename(read: bool) -> None:
    async with deployment(read=read) as made:

        @long_running(name="b")
        async def renamed(request: Request) -> Response:
            return PlainTextResponse("renamed")

        accepted = await left(made, "/b")
        new = await made.start("new", Route("/b", renamed, methods=["POST"]))
        assert (await follow(new, accepted)).text == "renamed"


@READ
async def test_another_endpoint_at_its_path_does_not_run_it(read: bool) -> None:
    async with deployment(read=read) as made:
        accepted = await left(made, "/b")
        new = await made.start("new", made.route("new", "/b", name="another"))
        await anyio.sleep(10 * LEASE)
        assert (await made.state(accepted), made.runs) == (State.QUEUED, ["old"])
        assert ("/b" in made.asked["new"]) is not read
        made.gate.open()
        assert (await follow(new, await new.post("/b"))).json() == {"by": "new"}
        assert await made.state(accepted) is State.QUEUED


@READ
async def test_a_job_of_a_path_rule_is_left_to_a_process_with_that_rule(read: bool) -> None:
    """All rules are known: the app need not be asked."""

    async def plain(request: Request) -> Response:
        await made.gate.wait()
        return PlainTextResponse("plain")

    async with deployment(read=read) as made:
        route, rule = Route("/b", plain, methods=["POST"]), "POST /b"
        old = await made.start("old", route, rules={rule: Policy(max_running=1)})
        await old.post("/b")
        accepted = await old.post("/b")
        made.lines["old"].cut()
        new = await made.start("new", route, rules={"/c": Policy()} if not read else None)
        await anyio.sleep(10 * LEASE)
        assert (await made.state(accepted), made.asked["new"]) == (State.QUEUED, [])
        await made.start("still old", route, rules={rule: Policy()})
        made.gate.open()
        assert (await follow(new, accepted)).text == "plain"


@pytest.mark.one_loop
async def test_a_job_that_is_given_back_is_asked_for_ever_more_rarely() -> None:
    async with deployment(read=False) as made:
        await left(made, "/b")
        await made.start("new")
        await anyio.sleep(HOUR)
        # After 1, 1, 2, 4, 8, 16 leases and then each 16.
        assert 8 <= made.asked["new"].count("/b") <= HOUR / (16 * LEASE) + 8


@pytest.mark.slow
async def test_one_that_was_given_back_does_not_fail_where_it_is_run_at_last() -> None:
    async with deployment(read=False) as made:
        accepted = await left(made, "/b", on_interrupt="rerun")
        await made.start("new")
        await anyio.sleep(HOUR / 2)
        made.lines["new"].cut()  # else it may be faster, each time
        await made.start("still old", made.route("still old", "/b", on_interrupt="rerun"))
        await anyio.sleep(20 * LEASE)
        assert set(made.runs) == {"old", "still old"}
        made.lines["still old"].cut()  # and it waits once more
        newer = await made.start("newer")
        await anyio.sleep(HOUR / 2 + 20 * LEASE)
        assert await made.state(accepted) is State.QUEUED
        made.lines["newer"].cut()
        await made.start("older", made.route("older", "/b", on_interrupt="rerun"))
        await anyio.sleep(20 * LEASE)
        made.lines["newer"].mend()
        made.gate.open()
        assert (await follow(newer, accepted)).json() == {"by": "older"}


# --- an app that cannot be read, which has the route -------------------------------------------


async def test_what_an_app_answers_before_an_endpoint_that_nobody_has_met_is_not_kept() -> None:
    """It is the same as of an app that has no such endpoint; once it was entered it is known."""

    def closed(app: ASGIApp) -> ASGIApp:
        async def check(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and refuses:
                refusals.append(scope["path"])
                await Response("not yet", 401)(scope, receive, send)
            else:
                await app(scope, receive, send)

        return check

    refuses, refusals = [True], list[str]()
    async with deployment(read=False) as made:
        accepted = await left(made, "/b")
        new = await made.start("new", made.route("new", "/b"), around=closed)
        await anyio.sleep(5 * LEASE)
        assert refusals
        assert await made.state(accepted) is State.QUEUED
        refuses.clear()
        made.gate.open()
        assert (await follow(new, accepted)).json() == {"by": "new"}


async def test_the_bounds_of_a_route_hold_for_jobs_that_were_there_before_it_was_met() -> None:
    async with deployment(read=False) as made:
        second = await left(made, "/b")
        await made.start("new", made.route("new", "/b", max_running=1, timeout=30))
        await anyio.sleep(2 * LEASE)
        assert (made.runs, await made.state(second)) == (["old", "new"], State.RUNNING)
        await anyio.sleep(31)
        response = await made.clients["new"].get(second.headers["location"])
        assert (response.status_code, response.json()["detail"]) == (
            504,
            "The handler may run for 30 seconds.",
        )


async def test_two_that_wait_for_one_place_run_one_after_the_other() -> None:
    async with deployment(read=False) as made:
        old = await made.start("old", made.route("old", "/b", max_running=1))
        accepted = [await old.post("/b") for _ in range(3)]
        await settled()
        made.lines["old"].cut()
        new = await made.start("new", made.route("new", "/b", max_running=1))
        await anyio.sleep(4 * LEASE)
        assert made.runs == ["old", "new"]
        made.gate.open()
        answers = [await follow(new, each) for each in accepted]
        assert [answer.status_code for answer in answers] == [502, 200, 200]
        assert made.runs == ["old", "new", "new"]


async def test_the_handler_sees_its_job_running() -> None:
    async def answer(request: Request) -> Response:
        job = current_job()
        assert job is not None
        body = (await request.body()).decode()
        return JSONResponse([job.state, job.runs, job.orphaned_at, body])

    async with deployment(read=False) as made:
        old = await made.start("old", made.route("old", "/b", max_running=1))
        await old.post("/b")
        accepted = await old.post("/b", content=b"x")
        made.lines["old"].cut()
        new = await made.start("new", slow_route(answer, "/b"))
        assert (await follow(new, accepted)).json() == ["running", 1, None, "x"]


async def slow_to_start(call: str, /, *arguments: Any, **more: Any) -> None:
    """A store takes ten seconds for it."""
    starts = call == "replace" and arguments[0].state is State.RUNNING
    if starts or call == "claim":
        await anyio.sleep(10)


@pytest.mark.parametrize("when", ["before the entry", "at the entry"])
async def test_a_cancel_comes_in_time_while_the_endpoint_is_looked_for(when: str) -> None:
    def waiting(app: ASGIApp) -> ASGIApp:
        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and when == "before the entry":
                await entrance.wait()
            await app(scope, receive, send)

        return wait

    entrance = Gate()
    async with deployment(read=False) as made:
        made.store = store = TrickyStore(shared=True)
        accepted = await left(made, "/b")
        store.before = slow_to_start
        new = await made.start("new", made.route("new", "/b"), around=waiting, store_timeout=20)
        await anyio.sleep(LEASE + 5)  # the lease has ended, and it was found since
        assert ("/b" in made.asked["new"]) == (when == "at the entry")
        assert entrance.entered == (when == "before the entry")
        answer = await new.post(accepted.headers["location"] + "/cancel")
        assert answer.status_code in (200, 202)
        entrance.open()
        await anyio.sleep(2 * LEASE)
        assert await made.state(accepted) is State.CANCELLED
        assert made.runs == ["old"]
        store.before = no_trick
        made.gate.open()
        assert (await follow(new, await new.post("/b"))).status_code == 200  # no place is lost


@pytest.mark.parametrize(
    ("settings", "state"), [({}, State.FAILED), ({"on_interrupt": "rerun"}, State.QUEUED)]
)
async def test_a_server_that_stops_when_the_endpoint_is_entered_leaves_no_run_behind(
    settings: Any, state: State
) -> None:
    """Which somebody would have to find abandoned first."""
    async with deployment(read=False) as made:
        made.store = store = TrickyStore(shared=True)
        accepted = await left(made, "/b", **settings)
        store.after = slow_to_start
        await made.start(
            "new",
            made.route("new", "/b", **settings),
            store_timeout=20,
            drain_timeout=1,
            cancel_grace=15,
        )
        await anyio.sleep(LEASE + 5)
        assert await made.state(accepted) is State.RUNNING  # and nobody has been told
        await made.stop("new")
        assert (await made.state(accepted), set(made.runs)) == (state, {"old"})


@pytest.mark.one_loop
async def test_an_app_that_never_comes_to_an_endpoint_is_stopped() -> None:
    entrance = Gate()

    def stuck(app: ASGIApp) -> ASGIApp:
        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await entrance.wait()
            await app(scope, receive, send)

        return wait

    async with deployment(read=False) as made:
        accepted = await left(made, "/b")
        await made.start("new", made.route("new", "/b"), around=stuck, abandon_after=600)
        await anyio.sleep(600 + 3 * LEASE)
        assert entrance.cleaned_up == 1
        assert await made.state(accepted) is State.QUEUED
        await anyio.sleep(600 + 3 * LEASE)
        assert await made.state(accepted) is State.FAILED


# --- with an engine ----------------------------------------------------------------------------


@READ
async def test_a_worker_without_the_route_gives_the_job_back_to_the_engine(read: bool) -> None:
    broker = Broker()
    async with deployment(read=read) as made:
        web = await made.start("web", made.route("web", "/b"), runner=Engine(broker))
        await made.start(
            "new", made.route("new", "/a"), runner=(engine := Engine(broker, slots=2, pause=3))
        )
        accepted = await web.post("/b")
        await anyio.sleep(20 * LEASE)
        assert (await made.state(accepted), made.runs) == (State.QUEUED, [])
        assert 2 <= len(broker.brought) <= 8  # ever more rarely
        engine.stopping = True  # which may be faster, each time
        await made.start("old", made.route("old", "/b"), runner=Engine(broker, slots=2, pause=3))
        made.gate.open()
        assert (await follow(web, accepted)).json() == {"by": "old"}


@READ
async def test_a_job_fails_if_no_worker_has_its_route(read: bool) -> None:
    """Though the web server has, which runs none."""
    broker = Broker()
    async with deployment(read=read) as made:
        web = await made.start("web", made.route("web", "/b"), runner=Engine(broker))
        await made.start("new", runner=Engine(broker, slots=2, pause=3))
        accepted = await web.post("/b")
        await anyio.sleep(HOUR - 2 * LEASE)
        assert await made.state(accepted) is State.QUEUED
        await anyio.sleep(40 * LEASE)
        response = await follow(web, accepted)
        assert response.status_code == 502
        assert response.json()["type"].endswith(":unknown-route")


@pytest.mark.slow
async def test_a_job_that_only_waits_long_for_its_workers_does_not_fail() -> None:
    """However long ago one that lacks its route has seen it."""
    broker = Broker()
    async with deployment(read=True) as made:
        web = await made.start("web", made.route("web", "/b"), runner=Engine(broker))
        await made.start("new", runner=(engine := Engine(broker, slots=1, pause=3)))
        accepted = await web.post("/b")
        await anyio.sleep(LEASE)
        engine.stopping = True
        await anyio.sleep(3 * HOUR)
        assert await made.state(accepted) is State.QUEUED
        await made.start("old", made.route("old", "/b"), runner=Engine(broker, slots=1, pause=3))
        made.gate.open()
        assert (await follow(web, accepted)).json() == {"by": "old"}


# --- on a file, on the real clock --------------------------------------------------------------


@pytest.mark.real
@READ
async def test_two_releases_over_one_file(read: bool, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:

        async def start(release: str, path: str, seconds: float) -> httpx.AsyncClient:
            async def answer(request: Request) -> Any:
                await anyio.sleep(seconds)
                return {"by": release}

            inner: ASGIApp = Starlette(routes=[slow_route(answer, path, max_running=1)])
            app = LongRunningMiddleware(
                inner if read else hidden(inner),
                store=SQLiteStore(tmp_path / "jobs.db"),
                limits=Limits(lease=0.6, drain_timeout=0, cancel_grace=0.1),
            )
            return await stack.enter_async_context(running(app))

        old = await start("old", "/b", 60)
        accepted = [await old.post("/b") for _ in range(2)]
        await stack.aclose()
        new = await start("new", "/a", 0)
        await anyio.sleep(2)
        monitor = await new.get(accepted[1].headers["location"] + "/status")
        assert monitor.json()["status"] == "queued"
        await stack.aclose()  # which may be faster, each time, where the app cannot be read
        late = await start("late", "/b", 0)
        with anyio.fail_after(60):
            assert (await follow(late, accepted[1])).json() == {"by": "late"}
        assert (await late.get(accepted[0].headers["location"])).status_code == 503
