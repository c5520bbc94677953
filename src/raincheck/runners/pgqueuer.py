"""Jobs run by pgqueuer's workers, in other processes and on other machines, over PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from starlette.types import ASGIApp

try:
    import asyncpg  # type: ignore[import-untyped]  # it brings no types
    from pgqueuer import Job, Queries, QueueManager
except ImportError as _error:
    raise ImportError(
        "PgQueuerRunner needs pgqueuer and asyncpg. Install them with: "
        "pip install raincheck[pgqueuer]"
    ) from _error

from raincheck.errors import ConfigurationError
from raincheck.lifespan import lifespan
from raincheck.runners.engines import EngineRunner, apart

logger: logging.Logger = logging.getLogger("raincheck")

T = TypeVar("T")

DEFAULT = "default"
"""The queue of jobs whose policy names none."""

# Seconds until a connection stands, also at an app's start-up, and those that a call may take.
_PATIENCE = 3.0
_TIMEOUT = 10.0

# Seconds until a worker tries to reach the server again.
_RETRY = 0.5

# An idle worker looks so often: it is not told of a job that comes while it is not connected.
_LOOK = timedelta(seconds=2)

# Jobs that a worker takes at once unless told otherwise, as `Limits.max_running`.
_MOST = 100

# What a call raises while the connection, or the server, is gone: it may come back.
_LOST = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
)


class PgQueuerRunner(EngineRunner):
    """Hands jobs to pgqueuer's workers: `pgq run myapp:worker`, where `worker = runner.worker`.

    Only a job's id travels, through pgqueuer's tables, which `pgq install` makes. That every job
    runs, and that one run of it counts, is guaranteed by the store. asyncio only, as asyncpg is.

    A worker process enters the app's lifespan once. On SIGTERM it takes no more jobs, and the
    drain of `Limits` begins: what has not ended after `drain_timeout` is interrupted.

    Args:
        dsn: the database, e.g. `"postgresql://user:password@host:5432/database"`, and not a proxy
            before it that gives every transaction another connection: workers LISTEN there.
        queues: the names of the queues that policies name.
        app: where a worker finds the outermost app, e.g. `"myapp:app"`. Default None: the
            middleware is the outermost app. Needed if it was added inside another one, such as by
            Starlette's `middleware=[...]`: that is built when the app is first called.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    _deployment: str | None = None
    _connection: _Connection
    _queries: Queries

    def __init__(self, dsn: str, *, queues: Iterable[str] = (), app: str | None = None) -> None:
        if not isinstance(dsn, str) or not dsn.startswith(("postgresql://", "postgres://")):
            raise ConfigurationError("dsn begins with postgresql://")
        if isinstance(queues, str):
            raise ConfigurationError(f"queues={queues!r}: give several names, like [{queues!r}]")
        super().__init__(queues=(DEFAULT, *queues), app=app)
        self._dsn = dsn

    def belong(self, deployment: str) -> None:
        self._deployment = deployment

    async def open(self) -> None:
        self._connection = _Connection(self._dsn)
        self._queries = Queries.from_asyncpg_connection(self._connection)
        try:
            async with asyncio.timeout(_PATIENCE):
                there = await self._queries.has_table(self._queries.qbe.settings.queue_table)
        except Exception as error:
            logger.error("PostgreSQL could not be reached; it is tried again", exc_info=error)
        else:
            if not there:
                logger.error("the database has no tables of pgqueuer; make them with: pgq install")

    async def submit(self, id: str, queue: str | None = None) -> None:
        queue = DEFAULT if queue is None else queue
        self.check(queue)
        # Without a key against duplicates: the id may still be with a worker that died or stops.
        await self._queries.enqueue(self.entrypoint(queue), id.encode())

    async def aclose(self) -> None:
        self._connection.close()

    # --- in a worker ---------------------------------------------------------------------------

    @asynccontextmanager
    async def worker(self, queues: Sequence[str] = ()) -> AsyncIterator[QueueManager]:
        """A worker, for pgqueuer's `pgq run myapp:worker`, or `pgq run myapp:worker -- videos`.

        Args:
            queues: those that it takes jobs from; `default` is the one of jobs whose policy names
                none. Default: all.

        Raises:
            ConfigurationError: the app or a queue is not known.
        """
        for queue in queues:
            self.check(queue)
        app = self.outermost()
        connection = _Connection(self._dsn)
        worker = _Worker(self, app, connection, queues or self._queues)
        try:
            yield worker
        finally:
            connection.close()

    def entrypoint(self, queue: str) -> str:
        """A queue, as pgqueuer's tables name it, which may have others, and other deployments'."""
        return ":".join(("raincheck", *filter(None, (self._deployment,)), queue))


class _Worker(QueueManager):
    """pgqueuer's worker, which runs within the lifespan of an app.

    pgqueuer waits for its running tasks without a bound; the drain within the lifespan has one, so
    that it must begin with the signal, and not when the tasks are done.
    """

    def __init__(
        self,
        runner: PgQueuerRunner,
        app: ASGIApp,
        connection: _Connection,
        queues: Collection[str],
    ) -> None:
        super().__init__(Queries.from_asyncpg_connection(connection))
        self._runner, self._app, self._connection = runner, app, connection
        self._entrypoints = [runner.entrypoint(queue) for queue in queues]
        self._over = asyncio.get_running_loop().create_future()

    async def run(self, *arguments: Any, **options: Any) -> None:
        options["dequeue_timeout"] = min(options.get("dequeue_timeout", _LOOK), _LOOK)
        options["max_concurrent_tasks"] = options.get("max_concurrent_tasks") or _MOST
        self._connection.wait_until(self.shutdown)  # pgqueuer has put its own there by now
        try:
            async with lifespan(self._app):
                self._runner.bound()  # or it would take jobs that it cannot run
                for entrypoint in self._entrypoints:
                    self.entrypoint(entrypoint, accepts_context=False)(self.work)
                working = asyncio.create_task(super().run(*arguments, **options))
                stopped = asyncio.create_task(self.shutdown.wait())
                try:
                    await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self.shutdown.set()
        finally:
            self._over.set_result(None)
        await working

    async def work(self, job: Job) -> None:
        """Run one job to its end, or until the drain is over."""
        assert job.payload is not None
        await self._runner.run_brought(job.payload.decode(), self._over)


class _Connection:
    """What pgqueuer uses of asyncpg's connection, made anew after it broke.

    With pgqueuer's own drivers a worker ends once the server does, and hears nothing more before.

    Attributes:
        patience: until this is set, calls wait for a server that is away; None: they fail.
    """

    patience: asyncio.Event | None = None

    def wait_until(self, over: asyncio.Event) -> None:
        """Let calls wait for a server that is away, until this is set."""
        self.patience = over

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._listeners: list[tuple[str, Callable[..., None]]] = []
        self._made: Any = None

    async def fetch(self, query: str, *arguments: Any) -> Any:
        return await self._call("fetch", query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> Any:
        return await self._call("execute", query, *arguments)

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        self._listeners.append((channel, callback))
        await self._call("add_listener", channel, callback)

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            made.terminate()

    async def _call(self, method: str, *arguments: Any) -> Any:
        tried = False
        while True:
            anew = tried or self._made is None or self._made.is_closed()
            tried = True
            try:
                if self._made is None or self._made.is_closed():
                    await self._make()
                return await getattr(self._made, method)(*arguments)
            except BaseException as error:
                self.close()  # it may be in the middle of a statement
                if not anew and isinstance(error, _LOST) and not isinstance(error, TimeoutError):
                    continue  # it may have died before; an id that is brought twice does no harm
                if self.patience is None or self.patience.is_set() or not isinstance(error, _LOST):
                    raise
                logger.warning("PostgreSQL cannot be reached (%r); trying again", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.patience.wait(), _RETRY)

    async def _make(self) -> None:
        # The ids that a crash of the server loses are brought again; nothing waits for its disk.
        settings = {"synchronous_commit": "off"}
        # What is read from it is read in the context in which it was made.
        self._made = await apart(
            asyncpg.connect(
                self._dsn, timeout=_PATIENCE, command_timeout=_TIMEOUT, server_settings=settings
            )
        )
        for channel, callback in self._listeners:
            await self._made.add_listener(channel, callback)
