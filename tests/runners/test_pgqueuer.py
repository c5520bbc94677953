"""PgQueuerRunner over a real PostgreSQL: with pgqueuer's worker in this process, and in its own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it brings no types
import httpx
import pgqueuer
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from raincheck import (
    Jobs,
    Limits,
    LongRunningMiddleware,
    Policy,
    Retry,
    long_running,
    report,
)
from raincheck.errors import ConfigurationError
from raincheck.progress import current_job
from raincheck.runners.base import Runner
from raincheck.runners.pgqueuer import PgQueuerRunner
from raincheck.stores.postgres import PostgresStore
from raincheck.testing import RunnerContract, follow, lifespan
from tests.doubles.stores import SharedMemory
from tests.servers import free_port
from tests.stores.postgres import Postgres
from tests.support import client_of

pytestmark = [pytest.mark.anyio, pytest.mark.real]

AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What calls raise while the server is away."""

PATIENCE = 60.0
"""Seconds that anything may take on a loaded machine."""


@pytest.fixture
def anyio_backend() -> str:
    """Asyncio alone, as asyncpg is."""
    return "asyncio"


@pytest.fixture
def empty(postgres: Postgres) -> str:
    """A DSN that leads to a schema of its own, with nothing in it."""
    schema = f"queue{random.getrandbits(64)}"
    postgres.ask(f"CREATE SCHEMA {schema}")
    return f"{postgres.url}?search_path={schema}"


@pytest.fixture
async def dsn(empty: str) -> str:
    """The same, with the tables that `pgq install` makes."""
    connection = await asyncpg.connect(empty)
    try:
        await pgqueuer.Queries.from_asyncpg_connection(connection).install()
    finally:
        await connection.close()
    return empty


@pytest.fixture
def nowhere() -> str:
    """A DSN of a server that is not there."""
    return f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that has nothing but a lifespan."""
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


class Runs:
    """What a runner runs, held until it is let go on."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, id: str) -> None:
        self.begun.append(id)
        await self.go_on.wait()
        self.ended.append(id)


def bound(runner: PgQueuerRunner, one: Callable[[str], Awaitable[None]]) -> PgQueuerRunner:
    async def run(id: str) -> None:
        await one(id)

    runner.bind(run, lambda _: None, lambda *_: None)
    runner.attach(bare)
    return runner


@asynccontextmanager
async def opened(
    dsn: str, one: Callable[[str], Awaitable[None]], **settings: Any
) -> AsyncIterator[PgQueuerRunner]:
    runner = bound(PgQueuerRunner(dsn, **settings), one)
    await runner.open()
    try:
        yield runner
    finally:
        await runner.aclose()


async def until(seen: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not seen():  # noqa: ASYNC110 - what it waits for has no events
            await asyncio.sleep(0.01)


@asynccontextmanager
async def working(runner: PgQueuerRunner, *queues: str, **options: Any) -> AsyncIterator[None]:
    """A worker, as `pgq run` runs one."""
    told = asyncio.Event()
    worker = partial(runner.worker, queues)
    working = asyncio.create_task(pgqueuer.run(worker, shutdown=told, **options))
    try:
        yield
    finally:
        told.set()
        async with asyncio.timeout(PATIENCE):
            await working


# --- the contract ------------------------------------------------------------------------------


class TestPgQueuerRunner(RunnerContract):
    """Over a real server, with pgqueuer's own worker."""

    @pytest.fixture
    def runner(self, dsn: str) -> Runner:
        runner = PgQueuerRunner(dsn)
        runner.attach(bare)
        return runner

    @asynccontextmanager
    async def workers(self, runner: Runner) -> AsyncIterator[None]:
        assert isinstance(runner, PgQueuerRunner)
        async with working(runner):
            yield


# --- what cannot work --------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["myapp", ":app", "myapp:", "", b"myapp:app", 5])
def test_an_app_is_a_module_and_a_name(app: Any) -> None:
    with pytest.raises(ConfigurationError, match="myapp:app"):
        PgQueuerRunner("postgresql://", app=app)


def test_a_dsn_is_one_of_postgresql() -> None:
    with pytest.raises(ConfigurationError, match="postgresql://") as caught:
        PgQueuerRunner("redis://:secret@localhost")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="postgresql://"):
        PgQueuerRunner(None)  # type: ignore[arg-type] # that is what is tested


def test_queues_are_several_names() -> None:
    with pytest.raises(ConfigurationError, match=r"queues='videos': .* like \['videos'\]"):
        PgQueuerRunner("postgresql://", queues="videos")


def test_jobs_in_memory_cannot_be_seen_by_workers() -> None:
    with pytest.raises(ConfigurationError, match="MemoryStore"):
        Jobs(runner=PgQueuerRunner("postgresql://"))


async def answer(request: Request) -> Response:
    return JSONResponse({"body": (await request.body()).decode()})


def app_with(runner: Runner, **settings: Any) -> LongRunningMiddleware:
    routes = [Route("/slow", long_running(**settings)(answer), methods=["POST"])]
    jobs = Jobs(store=SharedMemory(), runner=runner, limits=Limits(lease=3, store_timeout=2))
    return LongRunningMiddleware(Starlette(routes=routes), jobs=jobs)


async def test_an_unknown_queue_fails_the_start_up(nowhere: str) -> None:
    app = app_with(PgQueuerRunner(nowhere, queues=["mail"]), queue="videos")
    problem = r"answer: queue='videos': PgQueuerRunner has no such queue.*queues=\['videos'\]"
    with pytest.raises(ConfigurationError, match=problem):
        async with lifespan(app):
            raise AssertionError("it has started")


def test_an_unknown_queue_of_a_rule_is_told_at_once() -> None:
    jobs = Jobs(store=SharedMemory(), runner=PgQueuerRunner("postgresql://"))
    rules = {"POST /videos": Policy(queue="videos")}
    with pytest.raises(ConfigurationError, match="POST /videos: queue='videos'"):
        LongRunningMiddleware(bare, routes=rules, jobs=jobs)


async def test_an_unknown_queue_of_an_older_job_is_no_queue(nowhere: str) -> None:
    runner = PgQueuerRunner(nowhere)
    await runner.open()
    with pytest.raises(ConfigurationError, match="videos"):
        await runner.submit("a", "videos")


async def test_a_database_without_tables_names_the_cure(
    empty: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(empty, Runs()) as runner:
        assert "pgq install" in caplog.text
        with pytest.raises(asyncpg.UndefinedTableError):
            await runner.submit("a")
        with pytest.raises(RuntimeError, match="pgq install"):
            await pgqueuer.run(runner.worker, shutdown=asyncio.Event())


# --- the web's side ----------------------------------------------------------------------------


async def test_a_job_is_refused_and_withdrawn_while_the_server_is_away(
    nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_with(PgQueuerRunner(nowhere))
    async with lifespan(app), client_of(app) as client:
        assert "could not be reached" in caplog.text
        for _ in range(2):
            refused = await client.post("/slow", headers={"idempotency-key": "k"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["title"] == "Nobody can be asked to run the job"


async def test_a_broken_connection_is_made_anew_with_the_next_job(
    dsn: str, postgres: Postgres
) -> None:
    async with opened(dsn, runs := Runs()) as runner:
        runs.go_on.set()
        await runner.submit("a")
        postgres.kill()

        async def submit() -> None:
            while True:  # its processes end a moment later
                await runner.submit("b")

        with pytest.raises(AWAY):
            await submit()
        postgres.start()
        await runner.submit("c")
        async with working(runner):
            await until(lambda: "c" in runs.ended)


async def test_a_job_is_submitted_though_the_server_was_started_again(
    dsn: str, postgres: Postgres
) -> None:
    """The connection has died, and nobody has heard of that."""
    async with opened(dsn, runs := Runs()) as runner:
        runs.go_on.set()
        await runner.submit("a")
        postgres.kill()
        postgres.start()
        await asyncio.gather(*(runner.submit(id) for id in "bcd"))
        async with working(runner):
            await until(lambda: {*"bcd"} <= {*runs.ended})


async def test_a_submission_that_is_given_up_leaves_no_broken_connection(
    dsn: str, postgres: Postgres
) -> None:
    async with opened(dsn, Runs()) as runner:
        pids = postgres.hang()
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(runner.submit("a"), 0.2)
        finally:
            postgres.go_on(pids)
        await runner.submit("b")


# --- the worker's side -------------------------------------------------------------------------


async def test_a_worker_and_what_it_runs_outlive_the_server(dsn: str, postgres: Postgres) -> None:
    async with opened(dsn, runs := Runs()) as runner, working(runner):
        await runner.submit("a")
        await until(lambda: runs.begun == ["a"])
        postgres.kill()
        await asyncio.sleep(0.1)
        postgres.start()
        with suppress(*AWAY):
            await runner.submit("b")
        await runner.submit("c")
        await until(lambda: "c" in runs.begun)  # while `a` still runs
        runs.go_on.set()
        await until(lambda: {"a", "c"} <= {*runs.ended})


async def test_a_worker_that_waits_for_the_server_ends_when_it_is_told_to(nowhere: str) -> None:
    runner = bound(PgQueuerRunner(nowhere), Runs())
    told = asyncio.Event()
    worker = asyncio.create_task(pgqueuer.run(runner.worker, shutdown=told))
    await asyncio.wait([worker], timeout=0.7)
    assert not worker.done()
    told.set()
    with pytest.raises(AWAY):
        await asyncio.wait_for(worker, PATIENCE)


async def test_queues_have_workers_of_their_own(dsn: str) -> None:
    async with opened(dsn, runs := Runs(), queues=["videos", "mail"]) as runner:
        runs.go_on.set()
        for id, queue in (("a", None), ("b", "videos"), ("c", "mail")):
            await runner.submit(id, queue)
        async with working(runner, "videos"):
            await until(lambda: runs.ended)
        assert runs.ended == ["b"]
        async with working(runner, "default"):
            await until(lambda: len(runs.ended) == 2)
        assert runs.ended == ["b", "a"]
        async with working(runner):
            await until(lambda: len(runs.ended) == 3)
        with pytest.raises(ConfigurationError, match="'sound'"):
            await pgqueuer.run(partial(runner.worker, ["sound"]), shutdown=asyncio.Event())


async def test_deployments_that_share_the_tables_do_not_bring_each_other_jobs(dsn: str) -> None:
    shop, bank = Runs(), Runs()
    async with opened(dsn, shop) as of_shop, opened(dsn, bank) as of_bank:
        for each, name in ((of_shop, "shop"), (of_bank, "bank")):
            each.belong(name)
        for runs in (shop, bank):
            runs.go_on.set()
        ids = [str(number) for number in range(20)]
        async with working(of_bank):
            for id in ids:
                await of_shop.submit(id)
            await of_bank.submit("theirs")
            await until(lambda: bank.ended)
            async with working(of_shop):
                await until(lambda: len(shop.ended) == len(ids))
    assert bank.begun == ["theirs"]
    assert sorted(shop.begun) == sorted(ids)


async def test_a_worker_takes_so_many_jobs_at_once(dsn: str) -> None:
    async with opened(dsn, runs := Runs()) as runner:
        for number in range(5):
            await runner.submit(str(number))
        async with working(runner, batch_size=1, max_concurrent_tasks=2):
            await until(lambda: len(runs.begun) == 2)
            await asyncio.sleep(0.3)
            assert runs.begun == ["0", "1"]
            runs.go_on.set()
            await until(lambda: len(runs.ended) == 5)


async def test_a_job_that_runs_longer_than_a_heartbeat_is_brought_once(dsn: str) -> None:
    options = {"heartbeat_timeout": timedelta(seconds=0.6), "dequeue_timeout": timedelta(0, 0.1)}
    async with (
        opened(dsn, runs := Runs()) as runner,
        working(runner, **options),
        working(runner, **options),
    ):
        await runner.submit("a")
        await asyncio.sleep(1.5)
        runs.go_on.set()
        await until(lambda: runs.ended)
    assert runs.begun == ["a"]


async def test_what_a_dead_worker_has_taken_is_brought_to_another(
    dsn: str, postgres: Postgres
) -> None:
    async with opened(dsn, runs := Runs()) as runner:
        runs.go_on.set()
        await runner.submit("a")
        queue = dsn.rpartition("=")[2] + ".pgqueuer"
        postgres.ask(f"UPDATE {queue} SET status = 'picked', heartbeat = now() - interval '31 s'")
        async with working(runner):
            await until(lambda: runs.ended == ["a"])
        assert postgres.ask(f"SELECT count(*) FROM {queue}") == "0"


async def test_a_worker_gives_up_on_a_run_that_does_not_end_with_the_drain(dsn: str) -> None:
    runs, let_go = Runs(), asyncio.Event()

    async def stubborn(id: str) -> None:
        with suppress(asyncio.CancelledError):
            await runs(id)
        await let_go.wait()

    async with opened(dsn, stubborn) as runner:
        async with working(runner):
            await runner.submit("a")
            await until(lambda: runs.begun)
        let_go.set()


async def test_a_worker_finds_the_app_where_it_is(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text("from tests.runners.test_pgqueuer import bare as app\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    runner = PgQueuerRunner(dsn, app="elsewhere:app")
    with pytest.raises(ConfigurationError, match="no LongRunningMiddleware with this runner"):
        await pgqueuer.run(runner.worker, shutdown=asyncio.Event())
    async with opened(dsn, runs := Runs(), app="elsewhere:app") as runner:
        runs.go_on.set()
        async with working(runner):
            await runner.submit("a")
            await until(lambda: runs.ended)


async def test_a_worker_without_its_app_says_what_is_missing(nowhere: str) -> None:
    runner = PgQueuerRunner(nowhere)
    with pytest.raises(ConfigurationError, match="import the app beside the worker"):
        await pgqueuer.run(runner.worker, shutdown=asyncio.Event())


async def test_a_worker_whose_app_does_not_start_ends(nowhere: str) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    runner = PgQueuerRunner(nowhere)
    runner.attach(broken)
    with pytest.raises(RuntimeError, match="no database"):
        await pgqueuer.run(runner.worker, shutdown=asyncio.Event())


# --- in processes of their own -----------------------------------------------------------------


@long_running(on_interrupt="rerun", max_runs=5)
async def work(request: Request) -> Response:
    job = current_job()
    assert job is not None
    report(0.5, str(os.getpid()))
    seconds = float(request.query_params["seconds"])
    await asyncio.sleep(seconds if job.runs == 1 else 0)
    return JSONResponse({"by": os.getpid(), "runs": job.runs})


@long_running(retry=Retry(backoff=1))
async def flaky(request: Request) -> Response:
    job = current_job()
    assert job is not None
    return JSONResponse({"by": os.getpid(), "runs": job.runs}, 503 if job.runs == 1 else 200)


@long_running(queue="videos")
async def video(request: Request) -> Response:
    return JSONResponse({"by": os.getpid()})


def deployed(dsn: str) -> tuple[LongRunningMiddleware, PgQueuerRunner]:
    """The app, and its runner, in whatever process."""
    runner = PgQueuerRunner(dsn, queues=["videos"])
    app = LongRunningMiddleware(
        Starlette(
            routes=[
                Route("/work", work, methods=["POST"]),
                Route("/flaky", flaky, methods=["POST"]),
                Route("/video", video, methods=["POST"]),
            ]
        ),
        store=PostgresStore(
            dsn.partition("?")[0], deployment="shop", schema="store" + dsn.rpartition("=")[2]
        ),
        runner=runner,
        limits=Limits(lease=2, drain_timeout=1, cancel_grace=1, store_timeout=3),
    )
    return app, runner


async def test_queues_have_the_name_of_the_deployment(dsn: str) -> None:
    app, _ = deployed(dsn)
    ids = set()
    async with lifespan(app), client_of(app) as client:
        for path in ("/work?seconds=0", "/video"):
            accepted = await client.post(path, content=b"s3cret", headers={"cookie": "s3cret"})
            assert accepted.status_code == 202
            ids.add(accepted.json()["job_id"])
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch("SELECT entrypoint FROM pgqueuer ORDER BY entrypoint")
    brought = await connection.fetch("SELECT * FROM pgqueuer")
    await connection.close()
    assert "s3cret" not in str(brought)  # of a job it has the id alone
    assert {row["payload"].decode() for row in brought} == ids
    assert [row["entrypoint"] for row in found] == [
        "raincheck:shop:default",
        "raincheck:shop:videos",
    ]


def worker(queues: Sequence[str] = ()) -> AbstractAsyncContextManager[pgqueuer.QueueManager]:
    """What `pgq run` finds here."""
    _, runner = deployed(os.environ["RAINCHECK_TEST_DSN"])
    return runner.worker(queues)


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `pgq run`."""
    workers: list[subprocess.Popen[bytes]] = []

    def start(*queues: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pgqueuer", "run", f"{__name__}:worker", "--", *queues]
        with (tmp_path / f"worker{len(workers)}.log").open("wb") as log:
            workers.append(
                subprocess.Popen(
                    command,
                    cwd=Path(__file__).parents[2],
                    env={**os.environ, "RAINCHECK_TEST_DSN": dsn},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
        return workers[-1]

    yield start
    for each in workers:
        each.kill()
        each.wait()
    print(*(log.read_text() for log in tmp_path.glob("worker*.log")), sep="\n")


@asynccontextmanager
async def web(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a web server, which runs nothing itself."""
    app, runner = deployed(dsn)
    try:
        async with lifespan(app), client_of(app) as client:
            yield client
    finally:  # the lifespan of a test that has failed is cancelled, and the next test would warn
        await runner.aclose()


async def runs_in(client: httpx.AsyncClient, accepted: httpx.Response) -> int:
    """The process that a job runs in, as soon as it says so."""
    url = accepted.headers["location"] + "/status"
    while not (told := (await client.get(url)).json()["message"]):  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0.05)
    return int(told)


@pytest.mark.slow
async def test_another_worker_runs_the_job_of_one_that_was_killed(
    start: Callable[..., subprocess.Popen[bytes]], dsn: str
) -> None:
    workers = {each.pid: each for each in (start(), start())}
    async with web(dsn) as client, asyncio.timeout(PATIENCE):
        accepted = await client.post(f"/work?seconds={2 * PATIENCE}")
        assert accepted.status_code == 202
        killed = await runs_in(client, accepted)
        workers.pop(killed).kill()
        response = await follow(client, accepted)
    assert response.json() == {"by": next(iter(workers)), "runs": 2}


@pytest.mark.slow
async def test_a_worker_drains_in_time_and_gives_back_what_it_does_not_finish(
    start: Callable[..., subprocess.Popen[bytes]], dsn: str
) -> None:
    first = start("default")
    async with web(dsn) as client, asyncio.timeout(PATIENCE):
        short = await client.post("/work?seconds=0.8")
        long = await client.post(f"/work?seconds={2 * PATIENCE}")
        other = await client.post("/video")
        assert await runs_in(client, short) == await runs_in(client, long) == first.pid
        first.send_signal(signal.SIGTERM)
        second = start()
        # It does not wait for what is long.
        assert await asyncio.to_thread(first.wait, PATIENCE) == 0
        assert (await follow(client, short)).json() == {"by": first.pid, "runs": 1}
        assert (await follow(client, long)).json() == {"by": second.pid, "runs": 2}
        assert (await follow(client, other)).json() == {"by": second.pid}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
async def test_a_run_that_failed_is_repeated_whoever_is_left(
    killed: bool, start: Callable[..., subprocess.Popen[bytes]], dsn: str
) -> None:
    first = start()
    async with web(dsn) as client, asyncio.timeout(PATIENCE):
        accepted = await client.post("/flaky")
        url = accepted.headers["location"] + "/status"
        while "next_run_at" not in (await client.get(url)).json():  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.05)
        if killed:
            first.kill()
        by = start() if killed else first
        assert (await follow(client, accepted)).json() == {"by": by.pid, "runs": 2}
