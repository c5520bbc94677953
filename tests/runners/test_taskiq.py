"""TaskiqRunner in one process: over a real Valkey, and over brokers that fail as they are told."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from taskiq import AsyncBroker, BrokerMessage, InMemoryBroker
from taskiq.receiver import Receiver
from taskiq_redis import ListQueueBroker

from raincheck import Jobs, Limits, LongRunningMiddleware, Policy, long_running
from raincheck.errors import ConfigurationError
from raincheck.runners.base import Runner
from raincheck.runners.taskiq import TaskiqRunner
from raincheck.testing import RunnerContract, follow, lifespan
from tests.conftest import AutojumpLoop
from tests.doubles.stores import SharedMemory
from tests.stores.valkey import Valkey, valkey_server
from tests.support import client_of

pytestmark = pytest.mark.anyio

__all__ = ["valkey_server"]


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Asyncio alone, as taskiq is."""
    real = request.node.get_closest_marker("real") is not None
    return "asyncio", {} if real else {"loop_factory": AutojumpLoop}


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that has nothing but a lifespan."""
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


class Broker(AsyncBroker):
    """A broker in memory, which fails as often as it is told.

    Attributes:
        log: what was done.
        messages: what waits.
        failures: how often `startup` and `listen` raise.
        delay: seconds that a start takes.
    """

    def __init__(self, *, failures: int = 0, delay: float = 0.0) -> None:
        super().__init__()
        self.log: list[str] = []
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.failures = failures
        self.delay = delay

    async def startup(self) -> None:
        self.log.append("startup")
        await super().startup()
        await asyncio.sleep(self.delay)
        if not self.is_worker_process:
            self.fail()

    async def shutdown(self) -> None:
        self.log.append("shutdown")
        await super().shutdown()

    async def kick(self, message: BrokerMessage) -> None:
        self.messages.put_nowait(message.message)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        self.log.append("listen")
        self.fail()
        for _ in range(2):  # and then it says no more
            yield await self.messages.get()

    def fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("it is not there")


@asynccontextmanager
async def working(broker: AsyncBroker) -> AsyncIterator[None]:
    """A worker, as `taskiq worker` runs one."""
    broker.is_worker_process = True
    finish = asyncio.Event()
    receiver = Receiver(broker, max_async_tasks=30)
    listening = asyncio.create_task(receiver.listen(finish))
    try:
        yield
    finally:
        finish.set()
        try:
            await listening
        finally:
            await broker.shutdown()


def bound(runner: Runner, one: Callable[[str], Awaitable[None]]) -> None:
    async def run(id: str) -> None:
        await one(id)

    runner.bind(run, lambda _: None, lambda *_: None)


async def nothing(id: str) -> None:
    """A run of nothing."""


# --- the contract ------------------------------------------------------------------------------


@pytest.mark.real
class TestTaskiqRunner(RunnerContract):
    """Over a real broker, with taskiq's own receiver."""

    @pytest.fixture
    def broker(self, valkey: Valkey) -> ListQueueBroker:
        name = f"queue{random.getrandbits(64)}"
        return ListQueueBroker(valkey.url, queue_name=name, socket_timeout=None)

    @pytest.fixture
    def runner(self, broker: ListQueueBroker) -> Runner:
        self._broker = broker
        runner = TaskiqRunner(broker)
        runner.attach(bare)
        return runner

    @asynccontextmanager
    async def workers(self, runner: Runner) -> AsyncIterator[None]:
        async with working(self._broker):
            yield


# --- what cannot work --------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["myapp", ":app", "myapp:", "", b"myapp:app", 5])
def test_an_app_is_a_module_and_a_name(app: Any) -> None:
    with pytest.raises(ConfigurationError, match="myapp:app"):
        TaskiqRunner(Broker(), app=app)


def test_a_broker_is_a_broker() -> None:
    with pytest.raises(ConfigurationError, match=r"broker='redis:'.*no taskiq broker"):
        TaskiqRunner("redis:")  # type: ignore[arg-type] # that is what is tested
    with pytest.raises(ConfigurationError, match=r"queues\['videos'\]=None"):
        TaskiqRunner(Broker(), queues={"videos": None})  # type: ignore[dict-item] # likewise
    with pytest.raises(ConfigurationError, match=r"queues=\['videos'\]: it is no Mapping"):
        TaskiqRunner(Broker(), queues=["videos"])  # type: ignore[arg-type] # likewise


def test_jobs_in_memory_cannot_be_seen_by_workers() -> None:
    with pytest.raises(ConfigurationError, match="MemoryStore"):
        Jobs(runner=TaskiqRunner(Broker()))


async def answer(request: Request) -> Response:
    return JSONResponse({"body": (await request.body()).decode()})


def app_with(runner: Runner, **settings: Any) -> LongRunningMiddleware:
    routes = [Route("/slow", long_running(**settings)(answer), methods=["POST"])]
    jobs = Jobs(store=SharedMemory(), runner=runner, limits=Limits(lease=3, store_timeout=2))
    return LongRunningMiddleware(Starlette(routes=routes), jobs=jobs)


def test_no_live_request_can_wait_in_another_process() -> None:
    jobs = Jobs(store=SharedMemory(), runner=TaskiqRunner(Broker()))
    rules = {"POST /videos": Policy(hold=True)}
    with pytest.raises(ConfigurationError, match="POST /videos: hold=True"):
        LongRunningMiddleware(bare, routes=rules, jobs=jobs)


async def test_a_broker_has_one_runner(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    runner = TaskiqRunner(broker, queues={"videos": broker})
    assert caplog.text == ""
    bound(runner, nothing)
    await runner.open()
    for queue in (None, "videos"):
        await runner.submit("a", queue)
    assert (broker.log, broker.messages.qsize()) == (["startup"], 2)
    TaskiqRunner(broker)
    assert "another TaskiqRunner" in caplog.text


async def test_an_unknown_queue_fails_the_start_up() -> None:
    app = app_with(TaskiqRunner(Broker(), queues={"mail": Broker()}), queue="videos")
    problem = r"answer: queue='videos': TaskiqRunner has no such queue"
    with pytest.raises(ConfigurationError, match=problem):
        async with lifespan(app):
            raise AssertionError("it has started")


def test_an_unknown_queue_of_a_rule_is_told_at_once() -> None:
    jobs = Jobs(store=SharedMemory(), runner=TaskiqRunner(Broker()))
    rules = {"POST /videos": Policy(queue="videos")}
    with pytest.raises(ConfigurationError, match="POST /videos: queue='videos'"):
        LongRunningMiddleware(bare, routes=rules, jobs=jobs)


async def test_a_broker_is_given_an_id_and_nothing_of_the_request() -> None:
    broker = Broker()
    app = app_with(TaskiqRunner(broker))
    async with lifespan(app), client_of(app) as client:
        secret = {"authorization": "s3cret", "cookie": "s3cret"}
        accepted = await client.post("/slow?s3cret", content=b"s3cret", headers=secret)
    assert accepted.status_code == 202
    message = broker.messages.get_nowait().decode()
    assert accepted.json()["job_id"] in message
    assert "s3cret" not in message


async def test_an_unknown_queue_of_an_older_job_is_no_queue() -> None:
    runner = TaskiqRunner(Broker())
    bound(runner, nothing)
    with pytest.raises(ConfigurationError, match="videos"):
        await runner.submit("a", "videos")


# --- the web's side ----------------------------------------------------------------------------


async def test_a_job_goes_to_the_queue_of_its_policy() -> None:
    brokers = {"mail": Broker(), "videos": Broker()}
    own = Broker()
    runner = TaskiqRunner(own, queues=brokers)
    app = app_with(runner, queue="videos")
    async with lifespan(app), client_of(app) as client:
        assert (await client.post("/slow")).status_code == 202
    assert [each.messages.qsize() for each in (own, *brokers.values())] == [0, 0, 1]


async def test_brokers_are_started_once_and_shut_down_if_they_were() -> None:
    good, bad = Broker(delay=1.0), Broker(failures=9)
    runner = TaskiqRunner(good, queues={"bad": bad})
    await runner.open()
    await asyncio.gather(*(runner.submit(str(number)) for number in range(5)))
    await runner.aclose()
    assert good.log == ["startup", "shutdown"]
    assert bad.log == ["startup", "shutdown"]  # half of it may have been there
    await runner.aclose()
    await runner.open()
    assert good.log == ["startup", "shutdown", "startup"]


async def test_many_who_need_a_broker_wait_for_one_start() -> None:
    broker = Broker(delay=1.0)
    runner = TaskiqRunner(broker)
    await asyncio.gather(*(runner.submit(str(number)) for number in range(5)))
    assert broker.log == ["startup"]
    assert broker.messages.qsize() == 5


async def test_a_broker_that_is_not_there_is_tried_again_with_the_next_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(failures=2)
    runner = TaskiqRunner(broker)
    await runner.open()
    assert "could not be reached" in caplog.text
    with pytest.raises(ConnectionError):
        await runner.submit("a")
    await runner.submit("a")
    assert broker.messages.qsize() == 1


async def test_a_broker_that_takes_long_holds_up_no_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(delay=100.0)
    runner = TaskiqRunner(broker)
    start = asyncio.get_running_loop().time()
    await runner.open()
    assert asyncio.get_running_loop().time() - start < 5
    assert "not answered" in caplog.text
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runner.submit("a"), 10)
    await runner.submit("a")  # the start goes on all the same
    assert broker.log == ["startup"]


async def test_a_start_that_is_under_way_is_called_off() -> None:
    broker = Broker(delay=100.0)
    runner = TaskiqRunner(broker)
    await runner.open()
    await runner.aclose()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert broker.log == ["startup", "shutdown"]


def test_brokers_are_started_anew_on_another_event_loop() -> None:
    broker = Broker()
    runner = TaskiqRunner(broker)
    for _ in range(2):
        asyncio.run(runner.open())
    assert broker.log == ["startup", "startup"]


async def test_a_refused_job_is_withdrawn() -> None:
    broker = Broker(failures=2)
    app = app_with(TaskiqRunner(broker))
    async with lifespan(app), client_of(app) as client:
        refused = await client.post("/slow", headers={"idempotency-key": "k"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        await asyncio.sleep(0.1)
        accepted = await client.post("/slow", headers={"idempotency-key": "k"})
        assert accepted.status_code == 202
        assert "idempotency-replayed" not in accepted.headers


async def test_a_broker_of_tests_runs_jobs_where_they_are() -> None:
    app = app_with(TaskiqRunner(InMemoryBroker()))
    async with lifespan(app), client_of(app) as client:
        response = await follow(client, await client.post("/slow", content=b"x"))
        assert response.json() == {"body": "x"}


@pytest.mark.real
async def test_a_job_is_submitted_though_the_broker_was_started_again(tmp_path: Path) -> None:
    """All connections that its client keeps have died, and nobody has heard of that."""
    server = Valkey(tmp_path)
    server.start()
    try:
        runner = TaskiqRunner(ListQueueBroker(server.url, queue_name="shop"))
        bound(runner, nothing)
        await runner.open()
        await asyncio.gather(*(runner.submit(id) for id in "abcd"))
        server.kill()
        server.start()
        await asyncio.gather(*(runner.submit(id) for id in "efgh"))
        assert server.ask("LLEN", "shop") == 4
        await runner.aclose()
    finally:
        server.kill()


# --- the worker's side -------------------------------------------------------------------------


async def test_a_worker_goes_on_when_its_broker_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    broker = Broker(failures=2)
    runner = TaskiqRunner(broker)
    runner.attach(bare)
    begun: list[str] = []
    done = asyncio.Event()

    async def run(id: str) -> None:
        begun.append(id)
        if len(begun) == 5:
            done.set()

    bound(runner, run)
    async with working(broker):
        for number in range(5):
            await runner.submit(str(number))
        await asyncio.wait_for(done.wait(), 60)
    assert begun == [*"01234"]
    assert broker.log.count("listen") == 5  # two failures, and thrice two messages
    assert caplog.text.count("cannot be heard") == 2
    assert broker.log[-1] == "shutdown"


async def test_a_worker_submits_nothing_before_it_is_started() -> None:
    broker = Broker()
    runner = TaskiqRunner(broker)
    runner.attach(bare)
    bound(runner, nothing)
    broker.is_worker_process = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runner.submit("a"), 1)
    async with working(broker):
        await asyncio.wait_for(runner.submit("a"), 1)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that reach whoever had them before."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


async def test_a_worker_gives_up_on_a_run_that_does_not_end_with_the_drain(
    heard: list[int],
) -> None:
    broker = Broker()
    runner = TaskiqRunner(broker)
    runner.attach(bare)
    begun = asyncio.Event()

    async def stubborn(id: str) -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        await asyncio.sleep(1000)

    bound(runner, stubborn)
    start = asyncio.get_running_loop().time()
    async with working(broker):
        await runner.submit("a")
        await begun.wait()
        signal.raise_signal(signal.SIGTERM)
    assert asyncio.get_running_loop().time() - start < 10
    assert heard == [signal.SIGTERM]


async def test_signals_are_given_back(heard: list[int]) -> None:
    ours = signal.getsignal(signal.SIGTERM)
    broker = Broker()
    runner = TaskiqRunner(broker)
    runner.attach(bare)
    bound(runner, nothing)
    async with working(broker):
        await runner.submit("a")
        assert signal.getsignal(signal.SIGTERM) is not ours
    assert signal.getsignal(signal.SIGTERM) is ours


def test_a_worker_in_a_thread_hears_no_signals(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broker = Broker()
    runner = TaskiqRunner(broker)
    runner.attach(bare)

    async def work() -> None:
        bound(runner, nothing)
        async with working(broker):
            await runner.submit("a")

    async def main() -> None:
        await asyncio.to_thread(asyncio.run, work())

    asyncio.run(main())
    assert "not with a signal" in caplog.text


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A module in the working directory, which is not on the path."""
    (tmp_path / "elsewhere.py").write_text("from tests.runners.test_taskiq import bare as app\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    return sys.modules[__name__]


async def test_a_worker_finds_the_app_where_it_is(elsewhere: ModuleType) -> None:
    broker = Broker()
    runner = TaskiqRunner(broker, app="elsewhere:app")
    with pytest.raises(ConfigurationError, match="no LongRunningMiddleware with this runner"):
        async with working(broker):
            await asyncio.sleep(10)
    bound(runner, nothing)
    broker.log.clear()
    async with working(broker):
        await runner.submit("a")
    assert "listen" in broker.log


async def test_a_worker_without_its_app_says_what_is_missing() -> None:
    broker = Broker()
    TaskiqRunner(broker)
    with pytest.raises(ConfigurationError, match="import the app beside the worker"):
        async with working(broker):
            await asyncio.sleep(10)


async def test_a_worker_whose_app_does_not_start_ends() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    broker = Broker()
    TaskiqRunner(broker).attach(broken)
    with pytest.raises(RuntimeError, match="no database"):
        async with working(broker):
            await asyncio.sleep(10)
