"""CeleryRunner in one process: with Celery's own worker in a thread, over its broker in memory."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from celery import Celery  # type: ignore[import-untyped]  # it brings no types
from celery._state import set_default_app  # type: ignore[import-untyped]  # likewise
from celery.result import allow_join_result  # type: ignore[import-untyped]  # likewise
from celery.signals import worker_shutting_down  # type: ignore[import-untyped]  # likewise
from celery.worker import WorkController, state  # type: ignore[import-untyped]  # likewise
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from raincheck import Jobs, Limits, LongRunningMiddleware, Policy, long_running
from raincheck.errors import ConfigurationError
from raincheck.runners.base import Brought, Run, Runner, Stop
from raincheck.runners.celery import TASK, CeleryRunner
from raincheck.testing import RunnerContract, follow, lifespan
from tests.doubles.stores import SharedMemory
from tests.stores.valkey import Valkey, valkey_server
from tests.support import client_of

pytestmark = [pytest.mark.anyio, pytest.mark.real]


__all__ = ["valkey_server"]


@pytest.fixture
def anyio_backend() -> str:
    """Asyncio alone, on the real clock: Celery has threads."""
    return "asyncio"


@contextmanager
def celery_at(broker: str) -> Iterator[Celery]:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(
        task_default_queue=f"queue{random.getrandbits(64)}",
        broker_transport_options={"polling_interval": 0.02},
        worker_hijack_root_logger=False,
    )
    app.set_default()  # as Celery's command does: its threads ask for it
    yield app
    set_default_app(None)


@pytest.fixture
def celery() -> Iterator[Celery]:
    with celery_at("memory://") as app:
        yield app


def bare(log: list[str] | None = None) -> Any:
    """An app that has nothing but a lifespan."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for event in ("startup", "shutdown"):
            await receive()
            if log is not None:
                log.append(event)
            await send({"type": f"lifespan.{event}.complete"})

    return app


class Employed:
    """Celery's worker in a thread: in the process that `celery worker` would have as its first."""

    def __init__(self, celery: Celery, pool: str, concurrency: int) -> None:
        self.worker = WorkController(
            app=celery,
            pool=pool,
            concurrency=concurrency,
            without_heartbeat=True,
            without_mingle=True,
            without_gossip=True,
        )
        self._celery = celery
        self._thread = threading.Thread(target=self.worker.start, daemon=True)
        self._thread.start()

    def tell(self) -> None:
        """Let it hear of SIGTERM, which it has not seen to yet."""
        worker_shutting_down.send(self.worker.hostname, sig="SIGTERM", how="Warm", exitcode=0)

    def end(self) -> None:
        """Let it stop, as Celery's handler of signals does, and wait for that."""
        state.should_stop = 0
        try:
            self._celery.control.broadcast("ping")  # or it would look for that seconds later
            self._thread.join(30)
            assert not self._thread.is_alive()
        finally:
            state.should_stop = None


@contextmanager
def employed(celery: Celery, pool: str = "threads", concurrency: int = 30) -> Iterator[Employed]:
    with allow_join_result():  # what a worker says of that goes for its process, and stays
        one = Employed(celery, pool, concurrency)
        try:
            yield one
        finally:
            one.end()


async def until(seen: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    async with asyncio.timeout(30):
        while not seen():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


def bound(runner: Runner, one: Callable[[str], Any]) -> None:
    async def run(id: str) -> None:
        await one(id)

    runner.bind(run, lambda _: None, lambda *_: None)


async def nothing(id: str) -> None:
    """A run of nothing."""


# --- the contract ------------------------------------------------------------------------------


class _Here(CeleryRunner):
    """Runs jobs on the event loop of the test, which they tell of themselves."""

    def bind(self, run: Run, stop: Stop, spawn: Callable[[Run, str], None]) -> None:
        loop = asyncio.get_running_loop()

        async def there(id: str) -> Brought | None:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(id), loop))

        super().bind(there, stop, spawn)


class TestCeleryRunner(RunnerContract):
    """With Celery's own worker, and a pool of threads."""

    @pytest.fixture
    def runner(self, celery: Celery) -> Runner:
        self._celery = celery
        runner = _Here(celery)
        runner.attach(bare())
        return runner

    @asynccontextmanager
    async def workers(self, runner: Runner) -> AsyncIterator[None]:
        worker = Employed(self._celery, "threads", 30)
        try:
            yield
        finally:
            await asyncio.to_thread(worker.end)


# --- what cannot work --------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["redis://localhost", None, Celery])
def test_a_celery_app_is_one(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="it is no Celery app, like Celery"):
        CeleryRunner(wrong)


@pytest.mark.parametrize("app", ["myapp", ":app", "myapp:", "", b"myapp:app", 5])
def test_an_app_is_a_module_and_a_name(app: Any, celery: Celery) -> None:
    with pytest.raises(ConfigurationError, match="myapp:app"):
        CeleryRunner(celery, app=app)


def test_queues_are_several_names(celery: Celery) -> None:
    with pytest.raises(ConfigurationError, match=r"like \['videos'\]"):
        CeleryRunner(celery, queues="videos")


def test_a_celery_app_has_one_runner(celery: Celery) -> None:
    CeleryRunner(celery)
    with pytest.raises(ConfigurationError, match="this Celery app has another CeleryRunner; make"):
        CeleryRunner(celery)


def test_two_celery_apps_in_a_process_do_not_meet(celery: Celery) -> None:
    other = Celery("other", broker="memory://", set_as_current=False)
    runners = CeleryRunner(celery), CeleryRunner(other)
    third = Celery("third", broker="memory://", set_as_current=False)
    assert celery.tasks[TASK] is not other.tasks[TASK]
    assert TASK not in third.tasks
    assert len({each.tasks[TASK].run for each in (celery, other)}) == len(runners)


def test_it_leaves_settings_open_that_come_later(celery: Celery) -> None:
    """To look at Celery's tasks would read its settings, and bind all tasks by them."""
    CeleryRunner(celery)
    assert not celery.finalized
    celery.conf.task_default_rate_limit = "5/s"
    assert celery.tasks[TASK].rate_limit == "5/s"


def test_jobs_in_memory_cannot_be_seen_by_workers(celery: Celery) -> None:
    with pytest.raises(ConfigurationError, match="MemoryStore"):
        Jobs(runner=CeleryRunner(celery))


def test_no_live_request_can_wait_in_another_process(celery: Celery) -> None:
    jobs = Jobs(store=SharedMemory(), runner=CeleryRunner(celery))
    rules = {"POST /videos": Policy(hold=True)}
    with pytest.raises(ConfigurationError, match="POST /videos: hold=True"):
        LongRunningMiddleware(bare(), routes=rules, jobs=jobs)


def test_an_unknown_queue_of_a_rule_is_told_at_once(celery: Celery) -> None:
    jobs = Jobs(store=SharedMemory(), runner=CeleryRunner(celery))
    rules = {"POST /videos": Policy(queue="videos")}
    cure = r"POST /videos: queue='videos'.*CeleryRunner\(queues=\['videos'\]\)"
    with pytest.raises(ConfigurationError, match=cure):
        LongRunningMiddleware(bare(), routes=rules, jobs=jobs)


def test_a_worker_without_its_app_does_not_start(celery: Celery) -> None:
    CeleryRunner(celery)
    with pytest.raises(ConfigurationError, match=r"CeleryRunner\(\.\.\., app='myapp:app'\)"):
        Employed(celery, "threads", 1)


# --- the web's side ----------------------------------------------------------------------------


async def answer(request: Request) -> Response:
    return JSONResponse({"body": (await request.body()).decode()})


def app_with(runner: Runner, **settings: Any) -> LongRunningMiddleware:
    routes = [Route("/slow", long_running(**settings)(answer), methods=["POST"])]
    limits = Limits(lease=3, store_timeout=0.5)
    jobs = Jobs(store=SharedMemory(), runner=runner, limits=limits)
    return LongRunningMiddleware(Starlette(routes=routes), jobs=jobs)


def waiting(celery: Celery, queue: str | None = None) -> list[Any]:
    """The messages in a queue."""
    found = []
    with celery.connection_for_read() as connection:
        simple = connection.SimpleQueue(queue or celery.conf.task_default_queue)
        with suppress(simple.Empty):
            while True:
                message = simple.get_nowait()
                found.append(message)
                message.ack()
        simple.close()
    return found


async def test_a_broker_is_given_an_id_and_nothing_of_the_request(celery: Celery) -> None:
    app = app_with(CeleryRunner(celery))
    async with lifespan(app), client_of(app) as client:
        secret = {"authorization": "s3cret", "cookie": "s3cret"}
        accepted = await client.post("/slow?s3cret", content=b"s3cret", headers=secret)
    assert accepted.status_code == 202
    (message,) = waiting(celery)
    assert message.payload[0] == [accepted.json()["job_id"]]
    assert "s3cret" not in str((message.payload, message.headers, message.properties))


async def test_a_job_goes_to_the_queue_of_its_policy(celery: Celery) -> None:
    name = f"videos{random.getrandbits(64)}"
    app = app_with(CeleryRunner(celery, queues=["mail", name]), queue=name)
    async with lifespan(app), client_of(app) as client:
        assert (await client.post("/slow")).status_code == 202
    assert [len(waiting(celery, queue)) for queue in (None, "mail", name)] == [0, 0, 1]


async def test_celery_routes_what_names_no_queue(celery: Celery) -> None:
    name = f"routed{random.getrandbits(64)}"
    celery.conf.task_routes = {TASK: {"queue": name}}
    app = app_with(CeleryRunner(celery))
    async with lifespan(app), client_of(app) as client:
        assert (await client.post("/slow")).status_code == 202
    assert len(waiting(celery, name)) == 1


async def test_an_unknown_queue_of_an_older_job_is_no_queue(celery: Celery) -> None:
    runner = CeleryRunner(celery)
    bound(runner, nothing)
    with pytest.raises(ConfigurationError, match="videos"):
        await runner.submit("a", "videos")


async def test_eager_celery_runs_jobs_where_they_are(celery: Celery) -> None:
    celery.conf.task_always_eager = True
    app = app_with(CeleryRunner(celery))
    async with lifespan(app), client_of(app) as client:
        response = await follow(client, await client.post("/slow", content=b"x"))
        assert response.json() == {"body": "x"}


async def test_a_broker_that_is_away_refuses_jobs_in_time() -> None:
    celery = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app = app_with(CeleryRunner(celery))
    async with lifespan(app), client_of(app) as client:
        start = time.monotonic()
        refused = await client.post("/slow")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert time.monotonic() - start < 3


async def test_a_broker_that_hangs_takes_neither_the_event_loop_nor_all_threads(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = CeleryRunner(celery)
    hangs, there = threading.Event(), 0

    def hang(*_: Any, **__: Any) -> None:
        nonlocal there
        there += 1
        hangs.wait(30)

    monkeypatch.setattr(celery.tasks[TASK], "apply_async", hang)
    app = app_with(runner)
    try:
        async with lifespan(app), client_of(app) as client:
            for _ in range(3):
                start = time.monotonic()
                posts = (client.post("/slow") for _ in range(15))
                refused = await asyncio.gather(*posts)
                assert {each.status_code for each in refused} == {503}
                assert time.monotonic() - start < 3
            assert there == 20
            hangs.set()
            monkeypatch.undo()
            # The threads end when they do, and Celery's first call is slow.
            async with asyncio.timeout(30):
                while (await client.post("/slow")).status_code != 202:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
    finally:
        hangs.set()


# --- the worker's side -------------------------------------------------------------------------


async def test_a_worker_enters_the_app_with_its_first_job_and_once(celery: Celery) -> None:
    log, runs = list[str](), list[int]()
    runner = CeleryRunner(celery)
    runner.attach(bare(log))

    async def run(id: str) -> None:
        runs.append(threading.get_ident())

    bound(runner, run)
    await runner.open()
    with employed(celery):
        await asyncio.sleep(0.1)
        assert log == []
        for number in range(10):
            await runner.submit(str(number))
        await until(lambda: len(runs) == 10)
        assert log == ["startup"]
        assert len(set(runs)) == 1  # one event loop, whatever thread Celery gives a task
    assert log == ["startup", "shutdown"]


@pytest.mark.parametrize(("pool", "reduces"), [("threads", False), ("solo", True)])
def test_no_thread_of_a_task_reads_what_the_worker_reads(
    celery: Celery, pool: str, reduces: bool
) -> None:
    runner = CeleryRunner(celery)
    runner.attach(bare())
    with employed(celery, pool):
        assert celery.conf.worker_enable_prefetch_count_reduction is reduces


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "solo"])
async def test_a_worker_gives_up_on_a_run_that_does_not_end_with_the_drain(
    celery: Celery, pool: str
) -> None:
    runner = CeleryRunner(celery)
    runner.attach(bare())
    begun, stopped = threading.Event(), threading.Event()

    async def stubborn(id: str) -> None:
        begun.set()
        try:
            await asyncio.sleep(1000)
        finally:
            stopped.set()

    bound(runner, stubborn)
    await runner.open()
    with employed(celery, pool) as worker:
        await runner.submit("a")
        await until(begun.is_set)
        start = time.monotonic()
        worker.tell()
    assert stopped.is_set()
    assert time.monotonic() - start < 10


async def test_what_comes_while_a_worker_stops_is_left_to_others(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begun = threading.Event()

    async def run(id: str) -> None:
        assert id == "a"
        begun.set()
        await asyncio.sleep(1000)

    with celery_at(valkey.url) as celery:
        videos = f"videos{random.getrandbits(64)}"
        runner = CeleryRunner(celery, queues=[videos])
        runner.attach(bare())
        bound(runner, run)
        await runner.open()
        celery.amqp.queues.select_add(videos)
        with employed(celery, concurrency=2) as worker:
            await runner.submit("a", videos)
            await until(begun.is_set)
            worker.tell()
            await runner.submit("b", videos)  # the consumer has not noticed yet
            await until(lambda: "Retry in 0s" in caplog.text)
        assert valkey.ask("LLEN", videos) == 1


@pytest.mark.slow
async def test_a_worker_whose_app_does_not_start_tries_again_with_the_next_job(
    celery: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tries, ran = 0, threading.Event()

    async def second_time(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal tries
        tries += 1
        await receive()
        if tries == 1:
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def run(id: str) -> None:
        ran.set()

    runner = CeleryRunner(celery)
    runner.attach(second_time)
    bound(runner, run)
    await runner.open()
    with employed(celery):
        await runner.submit("a")
        await until(lambda: "no database" in caplog.text)
        await runner.submit("b")
        await until(ran.is_set)


@pytest.mark.slow
async def test_an_app_without_this_runner_is_named(
    celery: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    runner = CeleryRunner(celery, app="tests.runners.test_celery:alone")
    await runner.open()
    with employed(celery):
        await runner.submit("a")
        await until(lambda: "no LongRunningMiddleware with this runner" in caplog.text)


alone = bare()
