"""Cancel, timeout and shutdown: a handler stops at its next await, and may clean up."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import anyio
import anyio.from_thread
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from raincheck import Jobs, Limits, LongRunningMiddleware, Policy, State, long_running
from raincheck.errors import Release
from raincheck.runtime import stopping
from raincheck.tasks import Stopper, open_tasks
from raincheck.testing import follow, lifespan
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore
from tests.support import (
    Gate,
    RawRequest,
    app_of,
    client_of,
    gated,
    running,
    settled,
    slow_route,
    unfinished,
)

pytestmark = pytest.mark.anyio


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


class Session:
    """What a dependency opens, and closes with an `await`."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        await anyio.sleep(0.5)
        await anyio.sleep(0.5)
        self.closed += 1


def app_with_session(session: Session, jobs: Jobs, layers: int, **settings: Any) -> Any:
    app = FastAPI(middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)] * layers)

    async def opened() -> Any:
        try:
            yield session
        finally:
            await session.close()

    @app.post("/slow", dependencies=[Depends(opened)])
    @long_running(**settings)
    async def slow() -> str:
        await anyio.sleep_forever()
        return "never"

    return LongRunningMiddleware(app, jobs=jobs)


def app_with_session_around(session: Session, jobs: Jobs, **settings: Any) -> Any:
    """The same by a middleware of the app's own, which no framework shields."""

    async def answer(request: Request) -> None:
        await anyio.sleep_forever()

    inner = Starlette(routes=[slow_route(answer, **settings)])

    async def opening(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await inner(scope, receive, send)
        finally:
            if scope["type"] == "http":
                await session.close()

    return LongRunningMiddleware(opening, jobs=jobs)


@pytest.mark.parametrize("layers", [0, 1, 2, None])
@pytest.mark.parametrize("by", ["cancel", "delete", "timeout", "release", "shutdown"])
async def test_a_dependency_cleans_up_with_awaits_whatever_stops_the_handler(
    by: str, layers: int | None
) -> None:
    """Trap 14: anyio's cancellation alone would cancel each of these awaits again."""
    session = Session()
    jobs = virtual_jobs(limits=Limits(drain_timeout=1))
    settings: dict[str, Any] = {"timeout": 10} if by == "timeout" else {}
    if by == "release":
        settings = {"max_running": 1}
    if layers is None:
        app = app_with_session_around(session, jobs, **settings)
    else:
        app = app_with_session(session, jobs, layers, **settings)
    async with running(app) as client:
        accepted = await client.post("/slow")
        links = accepted.json()["links"]
        await settled()
        if by == "cancel":
            await client.post(links["cancel"])
        elif by == "delete":
            await client.delete(links["result"])
        elif by == "timeout":
            await anyio.sleep(10)
        elif by == "release":
            await client.post("/slow")
        if by != "shutdown":
            await anyio.sleep(2)
            assert session.closed == 1
        if by == "cancel":
            assert (await client.get(links["self"])).json()["status"] == "canceled"
    if by == "shutdown":
        assert session.closed == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_on_asyncio_a_handlers_own_finally_may_await(anyio_backend: str) -> None:
    session = Session()

    async def answer(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await session.close()

    async with running(app_of(slow_route(answer), jobs=Jobs())) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        await client.post(links["cancel"])
        response = await client.get(links["self"], headers={"prefer": "wait=5"})
        assert (response.json()["status"], session.closed) == ("canceled", 1)


@pytest.mark.parametrize("rule", [False, True])
async def test_a_handler_that_polls_for_a_disconnect_is_told(rule: bool) -> None:
    told = []

    async def endpoint(request: Request) -> Response:
        with anyio.CancelScope(shield=True):
            for _ in range(100):
                with suppress(BaseException):  # so that only the disconnect can stop it
                    await anyio.sleep(1)
                if await request.is_disconnected():
                    told.append(True)
                    break
        raise RuntimeError("stopped")

    if rule:
        app = app_of(
            Route("/slow", endpoint, methods=["POST"]),
            jobs=virtual_jobs(limits=Limits(cancel_grace=1000)),
            routes={"/slow": Policy()},
        )
    else:
        jobs = virtual_jobs(limits=Limits(cancel_grace=1000))
        app = app_of(slow_route(endpoint), jobs=jobs)
    async with running(app) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        assert (await client.post(links["cancel"])).status_code == 202
        await anyio.sleep(5)
        assert told == [True]
        assert (await client.get(links["self"])).json()["status"] == "canceled"


async def test_a_streaming_response_stops_when_it_is_told() -> None:
    async def answer(request: Request) -> Response:
        async def chunks() -> Any:
            while True:
                await anyio.sleep(1)
                yield b"x"

        return StreamingResponse(chunks())

    async with running(app_of(slow_route(answer))) as client:
        links = (await client.post("/slow")).json()["links"]
        await anyio.sleep(4.5)
        await client.post(links["cancel"])
        await settled()
        assert (await client.get(links["result"])).status_code == 410


async def test_a_handler_that_does_not_stop_is_asked_again() -> None:
    asked = 0

    async def answer(request: Request) -> None:
        nonlocal asked
        while True:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                asked += 1
                if asked == 3:
                    raise

    async with running(app_of(slow_route(answer))) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        await client.post(links["cancel"])
        await anyio.sleep(16)
        assert asked == 3
        assert (await client.get(links["self"])).json()["status"] == "canceled"


async def test_a_cancelled_job_in_a_group_of_tasks_takes_its_children_along() -> None:
    stopped = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append(True)

    async def answer(request: Request) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(child)

    async with running(app_of(slow_route(answer))) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        await client.post(links["cancel"])
        await settled()
        assert stopped == [True, True]
        assert (await client.get(links["self"])).json()["status"] == "canceled"


@pytest.mark.real
@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
async def test_law_6_the_truth_about_a_thread_which_cannot_be_killed(
    rule: bool, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, release = threading.Event(), threading.Event()
    # Looked at thrice while it computes, and not just between its end and that of its response,
    # where a busy machine lets pass more time than others: the handler would be stopped there.
    pauses = iter([0.05, 0.1, 30.0])
    monkeypatch.setattr(stopping._Threads, "pause", lambda _: next(pauses))

    def endpoint(request: Request) -> Response:
        started.set()
        release.wait(30)
        return PlainTextResponse("finished")

    marked: Any = endpoint if rule else long_running(endpoint)
    inner = Starlette(
        routes=[Route("/slow", marked, methods=["POST"])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)] * wrapped,
    )
    rules = {"/slow": Policy()} if rule else None
    jobs = Jobs(limits=Limits(cancel_grace=0.01))
    async with running(LongRunningMiddleware(inner, jobs=jobs, routes=rules)) as client:
        accepted = await client.post("/slow")
        links = accepted.json()["links"]
        await anyio.to_thread.run_sync(started.wait, 30)
        assert (await client.post(links["cancel"])).status_code == 202
        for _ in range(3):
            await anyio.sleep(0.06)
            assert (await client.get(links["self"])).json()["status"] == "canceling"
            assert jobs.statistics().running == 1
        release.set()
        response = await follow(client, accepted)
        if wrapped and rule:
            # The task that waits for the thread stands below BaseHTTPMiddleware, whose own task
            # is the one to be cancelled: the handler is heard to its end, its response is not.
            assert response.status_code in (200, 410)
        else:
            assert (response.status_code, response.text) == (200, "finished")


@pytest.mark.real
async def test_a_thread_can_ask_whether_it_is_to_stop() -> None:
    started = threading.Event()

    @long_running
    def endpoint(request: Request) -> Response:
        started.set()
        while not anyio.from_thread.run(request.is_disconnected):
            pass
        return PlainTextResponse("stopped early")

    async with running(app_of(Route("/slow", endpoint, methods=["POST"]), jobs=Jobs())) as client:
        accepted = await client.post("/slow")
        await anyio.to_thread.run_sync(started.wait, 30)
        await client.post(accepted.json()["links"]["cancel"])
        with anyio.fail_after(10):
            assert (await follow(client, accepted)).text == "stopped early"


async def test_a_timeout_fails_the_job_with_504_and_cancels_the_handler() -> None:
    gate = Gate()
    jobs = virtual_jobs()
    async with running(app_of(gated(gate, timeout=60), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(59)
        assert (await client.get(accepted.headers["location"])).status_code == 202
        await anyio.sleep(2)
        response = await client.get(accepted.headers["location"])
        assert (response.status_code, response.json()["type"][-7:]) == (504, "timeout")
        assert "60 seconds" in response.json()["detail"]
        monitor = (await client.get(accepted.json()["links"]["self"])).json()
        assert (monitor["status"], monitor["error"]["status"]) == ("failed", 504)
        assert gate.cleaned_up == 1
        assert jobs.statistics().running == 0


async def test_a_handler_in_time_is_left_alone_by_its_timeout() -> None:
    async def answer(request: Request) -> dict[str, str]:
        await anyio.sleep(59)
        return {}

    async with running(app_of(slow_route(answer, timeout=60))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 200
        await anyio.sleep(60)
        assert response.status_code == 200


@pytest.mark.real
async def test_a_thread_that_takes_too_long_fails_in_time_and_keeps_its_place() -> None:
    release = threading.Event()

    @long_running(timeout=0.05)
    def endpoint(request: Request) -> Response:
        release.wait(30)
        return PlainTextResponse("late")

    jobs = Jobs()
    async with running(app_of(Route("/slow", endpoint, methods=["POST"]), jobs=jobs)) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 504
        assert jobs.statistics().running == 1
        release.set()
        with anyio.fail_after(10):
            while jobs.statistics().running:  # noqa: ASYNC110 - real threads, real time
                await anyio.sleep(0.01)
        assert (await client.get(response.url.path)).status_code == 504


async def test_a_queued_job_does_not_use_up_its_time() -> None:
    async def answer(request: Request) -> dict[str, str]:
        await anyio.sleep(50)
        return {}

    async with running(app_of(slow_route(answer, timeout=60, max_running=1))) as client:
        for response in [await client.post("/slow") for _ in range(3)]:
            assert (await follow(client, response)).status_code == 200


async def test_delete_cancels_and_then_forgets() -> None:
    jobs = virtual_jobs()
    app = app_of(gated(gate := Gate()), jobs=jobs)
    async with running(app) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        response = await client.delete(links["result"])
        assert (response.status_code, response.json()["status"]) == (202, "canceling")
        await settled()
        assert gate.cleaned_up == 1
        assert jobs.statistics().running == 0
        for _ in range(2):
            assert (await client.get(links["result"])).status_code == 410
            assert (await client.get(links["self"])).status_code == 410
            assert (await client.delete(links["result"])).status_code == 410
            assert (await client.post(links["cancel"])).status_code == 410


async def test_delete_of_a_finished_job_forgets_it_at_once() -> None:
    gate = Gate()
    gate.open()
    async with running(app_of(gated(gate))) as client:
        accepted = await client.post("/slow")
        await follow(client, accepted)
        response = await client.delete(accepted.headers["location"])
        assert (response.status_code, response.content) == (204, b"")
        assert (await client.get(accepted.headers["location"])).status_code == 410


async def test_delete_of_a_queued_job_drops_it() -> None:
    app = app_of(gated(gate := Gate(), max_running=1))
    async with running(app) as client:
        await client.post("/slow")
        url = (await client.post("/slow")).headers["location"]
        assert (await client.delete(url)).status_code == 202
        assert (await client.get(url)).status_code == 410
        gate.open()
        await settled()
        assert gate.entered == 1


@pytest.mark.parametrize(
    ("case", "method", "most"),
    [
        ("runs here", "POST", 0),
        ("runs here", "DELETE", 0),
        ("may be shared", "POST", 1),
        ("waits here", "POST", 1),
        ("waits here", "DELETE", 1),
        ("has finished", "POST", 1),
        ("has finished", "DELETE", 1),
        ("runs elsewhere", "POST", 2),
        ("waits elsewhere", "POST", 2),
    ],
)
async def test_a_job_that_is_to_stop_is_looked_up_no_more_than_it_takes(
    case: str, method: str, most: int
) -> None:
    """Once for whoever asks, and once more if it changed where nobody here has heard of it."""
    looks = 0

    async def count(call: str, /, *arguments: Any, **more: Any) -> None:
        nonlocal looks
        looks += call in ("get", "fetch", "changed")

    store = TrickyStore(count, shared=True)
    settings: dict[str, Any] = {"max_running": 1} if case.startswith("waits") else {}
    gates, (here, there) = [Gate(), Gate()], [virtual_jobs(store=store) for _ in range(2)]
    apps = [
        app_of(gated(gate, coalesce=case == "may be shared", **settings), jobs=jobs)
        for gate, jobs in zip(gates, (here, there), strict=True)
    ]
    async with running(apps[0]) as client, running(apps[1]) as asking:
        asking = asking if case.endswith("elsewhere") else client
        for _ in range(2 if settings else 1):
            accepted = await client.post("/slow")
        if case == "has finished":
            gates[0].open()
        await settled()
        links, looks = accepted.json()["links"], 0
        url = links["cancel"] if method == "POST" else links["result"]
        response = await asking.request(method, url)
        assert response.status_code in (200, 202, 204, 409)
        assert looks <= most
        gates[0].open()


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_job_that_is_deleted_while_it_is_withdrawn_is_gone(method: str) -> None:
    """As by a client that repeats what takes its time: the job does not seem to wait."""
    gate, held = Gate(), anyio.Event()
    held.set()

    async def ask(call: str, /, *arguments: Any, **more: Any) -> None:
        nonlocal held
        if call == "replace" and not held.is_set():
            waits, held = held, anyio.Event()
            held.set()
            await waits.wait()

    app = app_of(gated(gate, max_running=1), jobs=virtual_jobs(store=TrickyStore(ask, shared=True)))
    async with running(app) as client, anyio.create_task_group() as group:
        await client.post("/slow")
        links = (await client.post("/slow")).json()["links"]
        held = first = anyio.Event()
        answers: list[int] = []

        async def stop() -> None:
            url = links["cancel"] if method == "POST" else links["result"]
            answers.append((await client.request(method, url)).status_code)

        group.start_soon(stop)
        await settled()
        await client.delete(links["result"])
        first.set()
        await settled()
        assert answers == [410]
        gate.open()


async def test_a_background_task_runs_on_after_the_response_and_keeps_the_place() -> None:
    gate = Gate()

    async def answer(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(gate.wait))

    jobs = virtual_jobs()
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        assert (await follow(client, accepted)).text == "done"
        await settled()
        assert (gate.entered, jobs.statistics().running) == (1, 1)
        assert (await client.post(accepted.json()["links"]["cancel"])).status_code == 409
        gate.open()
        await settled()
        assert jobs.statistics().running == 0


async def test_a_background_task_that_fails_does_not_change_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ValueError("afterwards")

    async def answer(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(fail))

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        assert (await follow(client, accepted)).text == "done"
        await settled()
        assert (await client.get(accepted.headers["location"])).text == "done"
    assert "afterwards" in caplog.text


async def test_a_cancelled_request_that_was_not_accepted_stops_as_it_always_did() -> None:
    stopped = []
    store_size = []

    def stuck(endpoint: Any) -> Any:
        endpoint_ = endpoint

        async def before(request: Request) -> Response:
            try:
                await anyio.sleep_forever()
            finally:
                stopped.append(True)
            return await endpoint_(request)  # type: ignore[no-any-return]

        before.__dict__.update(endpoint.__dict__)
        return before

    jobs = virtual_jobs()
    app = app_of(
        Route("/slow", stuck(gated(Gate()).endpoint), methods=["POST"]),
        jobs=jobs,
    )
    async with lifespan(app):
        request = RawRequest()
        request.feed()
        with anyio.move_on_after(1) as scope:
            await request.run(app)
        assert scope.cancelled_caught
        assert stopped == [True]
        store_size.append(len(await unfinished(jobs.store)))
    assert store_size == [0]


async def test_a_cancelled_request_that_was_accepted_runs_on() -> None:
    """Law 10: a server may cancel the call when its client leaves."""
    app = app_of(gated(gate := Gate(), wait=100, max_wait=100), jobs=(jobs := virtual_jobs()))
    async with lifespan(app):
        request = RawRequest()
        request.feed()
        with anyio.move_on_after(1) as scope:
            await request.run(app)
        assert scope.cancelled_caught
        (job,) = await unfinished(jobs.store)
        gate.open()
        await settled()
        newest = await jobs.get(job.id)
        assert newest is not None
        assert newest.state is State.SUCCEEDED


async def test_cancel_from_code() -> None:
    jobs = virtual_jobs()
    async with running(app_of(gated(Gate()), jobs=jobs)) as client:
        id = (await client.post("/slow")).json()["job_id"]
        await settled()
        job = await jobs.cancel(id)
        assert job is not None
        assert job.state is State.CANCELLING
        await settled()
        job = await jobs.cancel(id)
        assert job is not None
        assert job.state is State.CANCELLED
        assert await jobs.cancel("unknown") is None
        assert await jobs.delete("unknown") is None


async def test_a_handler_that_cancels_itself() -> None:
    jobs = virtual_jobs()

    async def answer(request: Request) -> None:
        (job,) = await unfinished(jobs.store)
        await jobs.cancel(job.id)
        await anyio.sleep_forever()

    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 410


async def test_an_opaque_app_is_stopped_too() -> None:
    stopped = []

    async def opaque(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await anyio.sleep_forever()
            finally:
                stopped.append(True)

    app = LongRunningMiddleware(opaque, routes={"/slow": Policy()}, jobs=virtual_jobs())
    async with lifespan(app), client_of(app) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        await client.post(links["cancel"])
        await settled()
        assert stopped == [True]
        assert (await client.get(links["result"])).status_code == 410


async def test_a_block_is_stopped_though_one_around_it_was_left_before() -> None:
    """Its task may outlive the one that started it."""
    tasks, stack = open_tasks(), list[Stopper]()
    entered, ended = anyio.Event(), []

    async def inner() -> None:
        try:
            with tasks.stopper(stack):
                entered.set()
                await anyio.sleep_forever()
        except Release:
            ended.append("stopped")

    with anyio.fail_after(1):
        async with anyio.create_task_group() as group:
            with tasks.stopper(stack):
                group.start_soon(inner)
                await entered.wait()
            stack[-1].stop()
    assert ended == ["stopped"]
    assert stack == []
