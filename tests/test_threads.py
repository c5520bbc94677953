"""Threads: a job whose handler waits for one has not stopped before it has returned."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from concurrent.futures import Future as ConcurrentFuture
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import httpx
import pytest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import (
    Jobs,
    Limits,
    LongRunningMiddleware,
    Policy,
    State,
    current_job,
    long_running,
    threads,
)
from raincheck.errors import Release
from raincheck.runtime.stopping import _Threads
from raincheck.stores.sqlite import SQLiteStore
from raincheck.tasks import Stopper, open_tasks
from raincheck.testing import follow
from tests.support import running

pytestmark = [pytest.mark.anyio, pytest.mark.real]

asyncio_only = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


class Work:
    """What computes in threads, each time until it is released."""

    def __init__(self) -> None:
        self.began = 0
        self.busy = 0
        self.most = 0
        self._lock = threading.Lock()
        self._release = threading.Event()

    def __call__(self, seconds: float = 30) -> str:
        with self._lock:
            self.began += 1
            self.busy += 1
            self.most = max(self.most, self.busy)
        self._release.wait(seconds)
        with self._lock:
            self.busy -= 1
        return "done"

    def release(self) -> None:
        self._release.set()


async def until(condition: Callable[[], object], within: float = 10) -> None:
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - real threads, real time
            await anyio.sleep(0.01)


# --- how a handler may wait for a thread -------------------------------------------------------


async def executor(work: Work) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work)


async def executor_of_its_own(work: Work) -> None:
    pool = ThreadPoolExecutor(1)
    try:
        await asyncio.wrap_future(pool.submit(work))
    finally:
        pool.shutdown(wait=False)


async def shielded(work: Work) -> None:
    await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(work)))


async def gathered(work: Work) -> None:
    await asyncio.gather(asyncio.to_thread(work), asyncio.sleep(0))


async def gathered_deeper(work: Work) -> None:
    await asyncio.gather(asyncio.gather(gathered(work)), asyncio.sleep(0))


async def in_a_group(work: Work) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(work))


async def in_an_open_group(work: Work) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(work))
        await asyncio.sleep(60)


async def in_a_group_of_anyio(work: Work) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(asyncio.to_thread, work)


async def in_an_open_group_of_anyio(work: Work) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyios, work)
        await anyio.sleep(60)


async def in_a_task(work: Work) -> None:
    await asyncio.create_task(asyncio.to_thread(work))


async def waiting(work: Work) -> None:
    tasks = [asyncio.create_task(asyncio.to_thread(work)), asyncio.create_task(asyncio.sleep(60))]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


async def waiting_with_a_timeout(work: Work) -> None:
    await asyncio.wait_for(asyncio.to_thread(work), 60)


async def as_they_complete(work: Work) -> None:
    for each in asyncio.as_completed([asyncio.to_thread(work), asyncio.sleep(0)]):
        await each


async def generated(work: Work) -> None:
    async def results() -> AsyncIterator[str]:
        yield await asyncio.to_thread(work)

    async for _ in results():
        pass


class Waiter:
    def __init__(self, work: Work) -> None:
        self.work = work

    def __await__(self) -> Any:
        return (yield from asyncio.to_thread(self.work).__await__())


async def by_an_object(work: Work) -> None:
    await Waiter(work)


async def abandoning(work: Work) -> None:
    await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


async def abandoning_in_a_group(work: Work) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(abandoning, work)


async def anyios(work: Work) -> None:
    await anyio.to_thread.run_sync(work)


async def anyios_in_a_group(work: Work) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyios, work)


ON_BOTH = [anyios, anyios_in_a_group, abandoning, abandoning_in_a_group, run_in_threadpool]
ON_ASYNCIO = [
    asyncio.to_thread,
    executor,
    executor_of_its_own,
    shielded,
    gathered,
    gathered_deeper,
    in_a_group,
    in_an_open_group,
    in_a_group_of_anyio,
    in_an_open_group_of_anyio,
    in_a_task,
    waiting,
    waiting_with_a_timeout,
    as_they_complete,
    generated,
    by_an_object,
]

Way = Callable[[Work], Awaitable[object]]


def every_way(*, but: Collection[Way] = ()) -> pytest.MarkDecorator:
    """Each way to wait for a thread, on each event loop that it works on."""
    cases = [
        pytest.param(
            way, (backend, options), id=f"{way.__name__}-{'uvloop' if options else backend}"
        )
        for ways, backend, options in (
            (ON_BOTH, "trio", {}),
            (ON_BOTH + ON_ASYNCIO, "asyncio", {}),
            (ON_ASYNCIO, "asyncio", {"use_uvloop": True}),
        )
        for way in ways
        if way not in but
    ]
    return pytest.mark.parametrize(("way", "anyio_backend"), cases)


@asynccontextmanager
async def app_with(
    handler: Callable[[], Awaitable[object]],
    *,
    rule: bool = False,
    wrapped: bool = False,
    limits: Limits | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, Jobs]]:
    """A client of an app with one route, marked by a path rule or by its decorator."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(await handler()))

    marked = endpoint if rule else long_running(**settings)(endpoint)
    inner = Starlette(
        routes=[Route("/slow", marked, methods=["POST"])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)] * wrapped,
    )
    jobs = Jobs(limits=Limits(cancel_grace=0.5) if limits is None else limits)
    rules = {"POST /slow": Policy(**settings)} if rule else None
    async with running(LongRunningMiddleware(inner, jobs=jobs, routes=rules)) as client:
        yield client, jobs


async def status_of(client: httpx.AsyncClient, accepted: httpx.Response) -> str:
    document = (await client.get(accepted.json()["links"]["self"])).json()
    return str(document["status"])


# --- law 6 -------------------------------------------------------------------------------------


@pytest.mark.one_loop
@every_way()
async def test_law_6_no_job_has_stopped_while_its_thread_computes(way: Way) -> None:
    await never_stopped_while_it_computes(way)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("way", "anyio_backend"),
    [
        pytest.param(run_in_threadpool, ("trio", {}), id="threadpool-trio"),
        pytest.param(run_in_threadpool, ("asyncio", {}), id="threadpool-asyncio"),
        pytest.param(asyncio.to_thread, ("asyncio", {}), id="to_thread-asyncio"),
        pytest.param(in_an_open_group, ("asyncio", {}), id="group-asyncio"),
    ],
)
async def test_law_6_holds_under_a_path_rule_and_below_middleware(way: Way, wrapped: bool) -> None:
    await never_stopped_while_it_computes(way, rule=True, wrapped=wrapped)


async def never_stopped_while_it_computes(
    way: Way, rule: bool = False, wrapped: bool = False
) -> None:
    work = Work()
    app = app_with(partial(way, work), rule=rule, wrapped=wrapped, max_running=1)
    async with app as (client, jobs):
        first, second = await client.post("/slow"), await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(first.json()["links"]["cancel"])
        for _ in range(4):
            await anyio.sleep(0.06)
            assert await status_of(client, first) == "canceling"
            assert (work.busy, jobs.statistics().running, jobs.statistics().queued) == (1, 1, 1)
        work.release()
        await until(lambda: work.began == 2)
        await client.post(second.json()["links"]["cancel"])
        for each in first, second:
            assert (await follow(client, each)).status_code in (200, 410)
        assert work.most == 1


@pytest.mark.one_loop
@every_way()
async def test_a_thread_that_takes_too_long_keeps_its_place(way: Way) -> None:
    work = Work()
    async with app_with(partial(way, work), max_running=1, timeout=0.4) as (client, jobs):
        first, second = await client.post("/slow"), await client.post("/slow")
        assert (await follow(client, first)).status_code == 504
        await anyio.sleep(0.2)
        assert (work.busy, jobs.statistics().running, jobs.statistics().queued) == (1, 1, 1)
        work.release()
        await follow(client, second)
        assert (work.began, work.most) == (2, 1)


@asyncio_only
async def test_a_process_counts_like_a_thread(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        async def handler() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, wait_for_file, str(done))

        async with app_with(handler) as (client, _):
            accepted = await client.post("/slow")
            try:
                await until(done.with_suffix(".began").exists, 60)  # it has all this to import
                await client.post(accepted.json()["links"]["cancel"])
                await anyio.sleep(0.2)
                assert await status_of(client, accepted) == "canceling"
            finally:  # the pool waits for it
                done.touch()
            assert (await follow(client, accepted)).status_code in (200, 410)


def wait_for_file(name: str) -> None:
    Path(name).with_suffix(".began").touch()
    while not Path(name).exists():
        time.sleep(0.01)


@pytest.mark.one_loop
@every_way(but=(in_an_open_group, in_an_open_group_of_anyio))  # which go on to something else
async def test_a_handler_that_finishes_after_its_thread_has_succeeded(way: Way) -> None:
    """It was asked while the thread computed, and made its response of what that returned."""
    work = Work()
    async with app_with(partial(way, work)) as (client, _):
        accepted = await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(accepted.json()["links"]["cancel"])
        await anyio.sleep(0.1)
        work.release()
        assert (await follow(client, accepted)).status_code == 200


# --- handlers that go on to other threads -----------------------------------------------------


@every_way()
async def test_a_handler_that_goes_from_thread_to_thread_is_stopped_between_them(way: Way) -> None:
    work = Work()

    async def handler() -> None:
        while True:
            await way(partial(work, 0.02))  # type: ignore[arg-type] # a shorter one

    async with app_with(handler, limits=Limits(cancel_grace=2)) as (client, _):
        accepted = await client.post("/slow")
        await until(lambda: work.began)
        await client.post(accepted.json()["links"]["cancel"])
        with anyio.fail_after(10):
            assert (await follow(client, accepted)).status_code == 410
        assert work.busy == 0


async def all_gathered(*workers: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(*workers)


async def all_in_a_group(*workers: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker)


async def all_in_groups_within_groups(*workers: Coroutine[Any, Any, None]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(all_in_a_group, *workers)


@asyncio_only
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("together", [all_gathered, all_in_a_group, all_in_groups_within_groups])
async def test_tasks_that_take_turns_in_threads_are_cancelled_in_the_end(
    together: Callable[..., Awaitable[None]], number: int
) -> None:
    """One of them always computes. Their last threads count as running until they return."""
    work = Work()

    async def worker(number: int) -> None:
        await asyncio.sleep(number * 0.02)
        while True:
            await asyncio.to_thread(work, 0.06)

    async def handler() -> None:
        await together(*(worker(each) for each in range(number)))

    async with app_with(handler, limits=Limits(cancel_grace=0.3)) as (client, _):
        accepted = await client.post("/slow")
        await until(lambda: work.busy == number)
        await client.post(accepted.json()["links"]["cancel"])
        with anyio.fail_after(10):
            assert (await follow(client, accepted)).status_code == 410
        assert work.busy == 0


@asyncio_only
async def test_tasks_of_anyio_that_take_turns_in_threads_are_cancelled_at_once() -> None:
    """anyio waits by itself for the threads of a group that is cancelled."""
    work = Work()

    async def worker(number: int) -> None:
        await anyio.sleep(number * 0.02)
        while True:
            await anyio.to_thread.run_sync(work, 0.06)

    async def handler() -> None:
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(worker, number)

    async with app_with(handler, limits=Limits(cancel_grace=60)) as (client, _):
        accepted = await client.post("/slow")
        await until(lambda: work.busy == 3)
        await client.post(accepted.json()["links"]["cancel"])
        with anyio.fail_after(10):
            assert (await follow(client, accepted)).status_code == 410
        assert work.busy == 0


# --- what does not compute, and what is not waited for ------------------------------------------


@asyncio_only
async def test_work_that_waits_in_an_executor_is_called_off() -> None:
    mine, others = Work(), Work()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(others)

        async def handler() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, mine)

        async with app_with(handler) as (client, _):
            accepted = await client.post("/slow")
            await anyio.sleep(0.05)
            await client.post(accepted.json()["links"]["cancel"])
            assert (await follow(client, accepted)).status_code == 410
        others.release()
    assert mine.began == 0


async def test_a_handler_that_waits_for_a_free_thread_is_stopped_at_once() -> None:
    work = Work()

    async def handler() -> None:
        limiter = anyio.CapacityLimiter(1)
        await limiter.acquire_on_behalf_of("somebody else")
        await anyio.to_thread.run_sync(work, limiter=limiter)

    async with app_with(handler) as (client, _):
        accepted = await client.post("/slow")
        await anyio.sleep(0.05)
        await client.post(accepted.json()["links"]["cancel"])
        assert (await follow(client, accepted)).status_code == 410
    assert work.began == 0


@asyncio_only
@pytest.mark.parametrize("kind", ["future", "task", "list", "dict"])
async def test_a_handler_that_looks_at_its_thread_from_time_to_time_is_stopped_at_once(
    kind: str,
) -> None:
    """Its cleanup may tell the thread to return. Until then the job has not stopped."""
    work, cleaned_up = Work(), []

    async def handler() -> None:
        loop = asyncio.get_running_loop()
        if kind == "task":
            held: Any = loop.create_task(asyncio.to_thread(work))
        else:
            future = loop.run_in_executor(None, work)
            held = {"future": future, "list": [future], "dict": {1: future}}[kind]
            del future
        try:
            await asyncio.sleep(60)
        finally:
            cleaned_up.append(held)

    async with app_with(handler, max_running=1) as (client, jobs):
        accepted = await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(accepted.json()["links"]["cancel"])
        await until(lambda: cleaned_up)
        await anyio.sleep(0.1)
        assert await status_of(client, accepted) == "canceling"
        assert jobs.statistics().running == 1
        work.release()
        assert (await follow(client, accepted)).status_code == 410


@asyncio_only
async def test_a_thread_to_which_the_handler_keeps_no_reference_is_its_own_affair() -> None:
    work = Work()

    async def handler() -> None:
        asyncio.get_running_loop().run_in_executor(None, work)
        await asyncio.sleep(60)

    async with app_with(handler) as (client, jobs):
        accepted = await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(accepted.json()["links"]["cancel"])
        assert (await follow(client, accepted)).status_code == 410
        assert (work.busy, jobs.statistics().running) == (1, 0)
        work.release()


@asyncio_only
async def test_a_librarys_own_thread_cannot_be_seen() -> None:
    """It tells of its end by a future that refers to nothing, as aiosqlite does."""
    work, threads = Work(), list[threading.Thread]()

    async def handler() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def tell() -> None:
            if not future.done():
                future.set_result(None)

        def run() -> None:
            work()
            loop.call_soon_threadsafe(tell)

        thread = threading.Thread(target=run)
        threads.append(thread)
        thread.start()
        await future

    async with app_with(handler) as (client, jobs):
        accepted = await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(accepted.json()["links"]["cancel"])
        assert (await follow(client, accepted)).status_code == 410
        assert (work.busy, jobs.statistics().running) == (1, 0)
        work.release()
        await anyio.to_thread.run_sync(threads[0].join)


@asyncio_only
async def test_a_task_on_the_event_loop_of_another_thread_is_told_and_waited_for() -> None:
    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()
    events: list[str] = []
    work = Work()

    async def elsewhere() -> None:
        events.append("began")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            events.append("cleaned up")

    async def handler() -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(elsewhere(), other))

    async def handler_in_a_thread_there() -> None:
        there = asyncio.run_coroutine_threadsafe(asyncio.to_thread(work), other)
        await asyncio.wrap_future(there)

    try:
        async with app_with(handler) as (client, _):
            accepted = await client.post("/slow")
            await until(lambda: events)
            await client.post(accepted.json()["links"]["cancel"])
            assert (await follow(client, accepted)).status_code == 410
            assert events == ["began", "cleaned up"]
        async with app_with(handler_in_a_thread_there) as (client, _):
            accepted = await client.post("/slow")
            await until(lambda: work.busy)
            await client.post(accepted.json()["links"]["cancel"])
            await anyio.sleep(0.2)
            assert await status_of(client, accepted) == "canceling"
            work.release()
            assert (await follow(client, accepted)).status_code in (200, 410)
    finally:
        other.call_soon_threadsafe(other.stop)
        thread.join()
        other.close()


@asyncio_only
@pytest.mark.parametrize(
    "thing", [pytest.param("text", id="plain"), pytest.param(object(), id="not")]
)
async def test_what_coroutines_hand_down_to_each_other_is_looked_into_once(thing: object) -> None:
    async def middleware(number: int, scope: dict[int, object]) -> None:
        await (middleware(number - 1, scope) if number else asyncio.sleep(60))

    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename == threads.__file__

    task = asyncio.ensure_future(middleware(20, dict.fromkeys(range(1000), thing)))
    await asyncio.sleep(0)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        assert threads.threads_of(task) == []
    finally:
        sys.setprofile(before)
        task.cancel()
    assert calls <= 100


class _Unhashable(type):
    __hash__ = None  # type: ignore[assignment] # as of a metaclass that has an `__eq__`


class _Refusing(type):
    def __getattr__(cls, name: str) -> object:
        raise RuntimeError(f"nobody knows {name} here")


class OfNoHash(metaclass=_Unhashable):
    pass


class OfRefusingClass(metaclass=_Refusing):
    pass


class Proxy:
    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("it stands for nothing here")


class LikeAFuture:
    _asyncio_future_blocking = False


@anyio.abc.TaskGroup.register
class Group:
    pass


class Waiting:
    """An iterator that is awaited, and refers to something."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.waits = future.__await__()
        self.thing: object = None

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Waiting:
        return self

    def __next__(self) -> object:
        return next(self.waits)


@asyncio_only
@pytest.mark.parametrize("kind", [OfNoHash, OfRefusingClass, Proxy, LikeAFuture, Group])
async def test_a_job_is_cancelled_whatever_its_handler_refers_to(kind: Callable[[], Any]) -> None:
    """Of what an app has nothing is asked that it might refuse."""
    ended = []

    async def handler() -> None:
        thing = kind()
        things = [thing]
        pending = Waiting(asyncio.get_running_loop().create_future())
        pending.thing = thing
        try:
            await pending
        finally:
            ended.append((thing, things))

    async with app_with(handler) as (client, _):
        accepted = await client.post("/slow")
        assert (await client.post(accepted.json()["links"]["cancel"])).status_code == 202
        assert (await follow(client, accepted)).status_code == 410
    assert ended


@asyncio_only
async def test_what_is_awaited_may_refer_to_who_awaits_it() -> None:
    future = asyncio.get_running_loop().create_future()
    pending = Waiting(future)

    async def wait() -> None:
        await pending

    pending.thing = waits = wait()
    task = asyncio.ensure_future(waits)
    await asyncio.sleep(0)
    assert threads.threads_of(task) == []
    future.set_result(None)
    await task


# --- apps that listen ---------------------------------------------------------------------------


def listening(handle: Callable[[Send], Awaitable[None]]) -> ASGIApp:
    """As Quart and Django do it: a task listens, and its end is that of the one that handles."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        while (await receive()).get("more_body"):
            pass
        handles = asyncio.ensure_future(handle(send))
        listens = asyncio.ensure_future(receive())
        _, pending = await asyncio.wait([handles, listens], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    return app


@asyncio_only
@pytest.mark.parametrize("rule", [False, True])
async def test_an_app_that_listens_is_not_told_while_its_thread_computes(rule: bool) -> None:
    """It would cancel the task that waits for the thread."""
    work = Work()

    @long_running
    async def marked() -> None:
        await asyncio.to_thread(work)

    async def handle(send: Send) -> None:
        await (asyncio.to_thread(work) if rule else marked())
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"done"})

    jobs = Jobs(limits=Limits(cancel_grace=0.1))
    rules = {"POST /slow": Policy()} if rule else None
    app = LongRunningMiddleware(listening(handle), jobs=jobs, routes=rules)
    async with running(app) as client:
        accepted = await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(accepted.json()["links"]["cancel"])
        for _ in range(4):
            await anyio.sleep(0.1)
            assert await status_of(client, accepted) == "canceling"
        work.release()
        assert (await follow(client, accepted)).text == "done"


# --- what a thread can ask ----------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_thread_hears_of_a_cancel_wherever_that_came_in(
    elsewhere: bool, tmp_path: Path
) -> None:
    heard: list[State] = []

    def endpoint(request: Request) -> Response:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            job = current_job()
            assert job is not None
            heard.append(job.state)
            if job.state is State.CANCELLING:
                break
            time.sleep(0.01)
        return PlainTextResponse("stopped early")

    def app() -> LongRunningMiddleware:
        inner = Starlette(routes=[Route("/slow", long_running(endpoint), methods=["POST"])])
        return LongRunningMiddleware(inner, store=SQLiteStore(tmp_path / "jobs.db"))

    async with running(app()) as here, running(app()) as there:
        accepted = await here.post("/slow")
        await until(lambda: heard)
        asked = await (there if elsewhere else here).post(accepted.json()["links"]["cancel"])
        assert asked.json()["status"] == "canceling"
        assert (await follow(here, accepted)).text == "stopped early"
        assert set(heard) == {State.RUNNING, State.CANCELLING}


# --- handlers on the event loop of another thread -----------------------------------------------


def on_another_loop(handler: Callable[[], Awaitable[str]]) -> ASGIApp:
    """As a Flask app under a2wsgi: in a thread, where an `async def` view has a loop of its own."""

    async def answered() -> str:
        return await handler()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        text = await anyio.to_thread.run_sync(lambda: asyncio.run(answered()))
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


class Elsewhere:
    """A handler that notes where it runs and how it ends."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.ends: list[str] = []
        self.go_on = threading.Event()

    async def __call__(self) -> str:
        self.loops.append(asyncio.get_running_loop())
        try:
            while not self.go_on.is_set():  # noqa: ASYNC110 - it is set by another thread
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            self.ends.append("cancelled")
            raise
        self.ends.append("done")
        return "done"


@pytest.mark.parametrize("by", ["cancel", "timeout", "shutdown"])
async def test_a_handler_on_another_loop_is_stopped_there(by: str) -> None:
    handler = Elsewhere()
    marked = long_running(timeout=0.2 if by == "timeout" else None)(handler)
    jobs = Jobs(limits=Limits(cancel_grace=30, drain_timeout=0.1))
    app = LongRunningMiddleware(on_another_loop(marked), jobs=jobs)
    with anyio.fail_after(10):
        async with running(app) as client:
            accepted = await client.post("/slow")
            assert accepted.status_code == 202
            await until(lambda: handler.loops)
            if by == "cancel":
                await client.post(accepted.json()["links"]["cancel"])
            if by != "shutdown":
                response = await follow(client, accepted)
                assert response.status_code == {"cancel": 410, "timeout": 504}[by]
                await until(lambda: not jobs.statistics().running)
    assert handler.ends == ["cancelled"]


async def test_a_handler_on_another_loop_is_stopped_though_it_never_stands_still() -> None:
    ends: list[str] = []

    @long_running
    async def handler() -> str:
        async def take_turns() -> None:
            for _ in range(1_000_000):
                await asyncio.sleep(0)

        try:
            await asyncio.gather(take_turns(), take_turns())
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        return "done"

    jobs = Jobs(limits=Limits(cancel_grace=0.2))
    async with running(LongRunningMiddleware(on_another_loop(handler), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await client.post(accepted.json()["links"]["cancel"])
        assert (await follow(client, accepted)).status_code == 410
    assert ends == ["cancelled"]


async def test_a_handler_on_another_loop_waits_for_its_turn_and_reads_its_body() -> None:
    handler = Elsewhere()
    app = LongRunningMiddleware(on_another_loop(long_running(max_running=1, max_queued=1)(handler)))

    async def in_parts() -> AsyncIterator[bytes]:
        for part in (b"a", b"b"):
            await anyio.sleep(0.05)
            yield part

    async with running(app) as client:
        accepted = [await client.post("/slow", content=in_parts()) for _ in range(2)]
        assert [each.json()["status"] for each in accepted] == ["running", "queued"]
        assert (await client.post("/slow", content=in_parts())).status_code == 503
        handler.go_on.set()
        for each in accepted:
            assert (await follow(client, each)).text == "done"
    assert len(set(handler.loops)) == 2


async def test_a_def_handler_of_another_loop_runs_in_a_thread_of_that_one() -> None:
    work = Work()
    app = LongRunningMiddleware(on_another_loop(long_running(work)))
    async with running(app) as client:
        accepted = await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(accepted.json()["links"]["cancel"])
        await anyio.sleep(0.2)
        assert await status_of(client, accepted) == "canceling"
        work.release()
        assert (await follow(client, accepted)).text == "done"


async def test_a_handler_on_another_loop_is_left_alone_while_its_thread_computes() -> None:
    work, ends = Work(), []

    @long_running
    async def handler() -> str:
        await asyncio.to_thread(work)
        try:
            await asyncio.sleep(60)
        finally:
            ends.append(work.busy)
        return "never"

    async with running(LongRunningMiddleware(on_another_loop(handler))) as client:
        accepted = await client.post("/slow")
        await until(lambda: work.busy)
        await client.post(accepted.json()["links"]["cancel"])
        await anyio.sleep(0.2)
        assert (await status_of(client, accepted), ends) == ("canceling", [])
        work.release()
        assert (await follow(client, accepted)).status_code == 410
        assert ends == [0]  # by then


async def test_one_on_another_loop_goes_on_with_what_its_thread_has_returned() -> None:
    """Though the request to stop comes in the moment between: it stops at its next await."""
    stack: list[Stopper] = []
    tasks, seen = open_tasks(), list[str]()

    async def handler(returned: asyncio.Future[str]) -> None:
        with suppress(Release), tasks.remote_stopper(stack):
            seen.append(await returned)
            await asyncio.sleep(60)
            seen.append("never")

    async def elsewhere() -> None:
        returned: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(handler(returned))
        await asyncio.sleep(0)
        (stopper,) = stack
        stopper.stop()  # that comes to it with the loop's next turn, and so does this
        returned.set_result("it")
        await task

    await anyio.to_thread.run_sync(lambda: asyncio.run(elsewhere()))
    assert seen == ["it"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_one_goes_on_with_what_its_thread_has_returned() -> None:
    """Though a look comes in the moment between: then it is about to run."""
    end: ConcurrentFuture[str] = ConcurrentFuture()
    end.set_running_or_notify_cancel()

    async def handler() -> str:
        return await asyncio.wrap_future(end)

    task = asyncio.ensure_future(handler())
    await asyncio.sleep(0)
    looks = _Threads(lambda: None, time.monotonic, 60.0)
    assert looks.computing(threads.threads_of(task))
    end.set_result("it")
    await asyncio.sleep(0)  # the event loop has heard of it, and not the task
    assert not task.done()
    assert looks.computing(threads.threads_of(task))
    assert await task == "it"


async def itself(end: ConcurrentFuture[str]) -> str:
    return await asyncio.wrap_future(end)


async def by_a_task(end: ConcurrentFuture[str]) -> str:
    found: str = await asyncio.ensure_future(asyncio.wrap_future(end))
    return found


async def by_two_groups(end: ConcurrentFuture[str]) -> str:
    (inner,) = await asyncio.gather(asyncio.gather(by_a_task(end)))
    found: str = inner[0]
    return found


async def by_a_task_group(end: ConcurrentFuture[str]) -> str:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(by_a_task(end))
    return task.result()


async def by_a_wait(end: ConcurrentFuture[str]) -> str:
    task = asyncio.ensure_future(by_a_task(end))
    await asyncio.wait([task])
    return task.result()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("waits", [itself, by_a_task, by_two_groups, by_a_task_group, by_a_wait])
async def test_though_it_comes_to_it_by_others_or_late(waits: Any, late: bool) -> None:
    end: ConcurrentFuture[str] = ConcurrentFuture()
    end.set_running_or_notify_cancel()
    task = asyncio.ensure_future(waits(end))
    for _ in range(5):
        await asyncio.sleep(0)
    looks = _Threads(lambda: None, time.monotonic, 0.0 if late else 60.0)  # after the grace, or not
    assert looks.computing(threads.threads_of(task))
    end.set_result("it")
    await asyncio.sleep(0)
    while not task.done():
        assert looks.computing(threads.threads_of(task))
        assert looks.pause() == 0  # the next look is in the loop's next turn
        await asyncio.sleep(0)
    assert await task == "it"


async def test_an_unmarked_coroutine_on_another_loop_cannot_be_seen() -> None:
    """Under a path rule only its thread is: the job ends when it does."""
    handler = Elsewhere()
    app = LongRunningMiddleware(on_another_loop(handler), routes={"POST /slow": Policy()})
    async with running(app) as client:
        accepted = await client.post("/slow")
        await until(lambda: handler.loops)
        await client.post(accepted.json()["links"]["cancel"])
        await anyio.sleep(0.2)
        assert await status_of(client, accepted) == "canceling"
        handler.go_on.set()
        assert (await follow(client, accepted)).text == "done"
    assert handler.ends == ["done"]
