"""Jobs run by taskiq's workers, in other processes and on other machines."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from types import FrameType
from typing import Any, ClassVar

from starlette.types import ASGIApp
from taskiq import AckableMessage, AsyncBroker, TaskiqEvents, TaskiqState

from raincheck.errors import ConfigurationError
from raincheck.lifespan import lifespan
from raincheck.policy import require_kind
from raincheck.runners.engines import EngineRunner, apart

logger: logging.Logger = logging.getLogger("raincheck")

TASK = "raincheck:run"
"""The name of the one task that the workers know; its argument is a job's id."""

# Seconds that an app's start-up waits for the brokers.
_PATIENCE = 3.0

# Seconds until a worker listens again to a broker that broke off.
_RETRY = 0.5


class TaskiqRunner(EngineRunner):
    """Hands jobs to taskiq's workers: `taskiq worker myapp:broker`.

    Only a job's id travels. The broker is the transport and taskiq the worker process; that every
    job runs, and that one run of it counts, is guaranteed by the store, whatever the broker does
    when a worker dies. asyncio only, as taskiq is.

    A worker process enters the app's lifespan once. On SIGTERM it takes no more jobs, and the
    drain of `Limits` begins: what has not ended after `drain_timeout` is interrupted.

    Args:
        broker: where jobs go whose policy names no queue. A broker has one runner.
        queues: the brokers of the queues that policies name; each has its own workers.
        app: where a worker finds the outermost app, e.g. `"myapp:app"`. Default None: the
            middleware is the outermost app. Needed if it was added inside another one, such as by
            Starlette's `middleware=[...]`: that is built when the app is first called.

    Raises:
        ConfigurationError: a broker that is none.
    """

    naming: ClassVar[str] = "queues={{{!r}: ...}}"

    def __init__(
        self,
        broker: AsyncBroker,
        *,
        queues: Mapping[str, AsyncBroker] | None = None,
        app: str | None = None,
    ) -> None:
        require_kind("queues", queues, Mapping, '{"videos": ListQueueBroker(...)}')
        super().__init__(queues=tuple(queues or ()), app=app)
        self._brokers: dict[str | None, AsyncBroker] = {None: broker}
        self._brokers.update(queues or {})
        self._tasks: dict[AsyncBroker, Any] = {}
        self._starts: dict[AsyncBroker, asyncio.Future[None]] = {}
        self._life: _Life | None = None
        for name, each in self._brokers.items():
            if not isinstance(each, AsyncBroker):
                named = "broker" if name is None else f"queues[{name!r}]"
                raise ConfigurationError(f"TaskiqRunner({named}={each!r}): it is no taskiq broker")
        for each in set(self._brokers.values()):
            if TASK in each.local_task_registry:
                logger.warning("a broker has another TaskiqRunner, whose jobs do not run any more")
            self._tasks[each] = each.register_task(self._task(), TASK)
            each.add_event_handler(TaskiqEvents.WORKER_STARTUP, partial(self._enter, each))
            each.add_event_handler(TaskiqEvents.WORKER_SHUTDOWN, self._leave)

    async def open(self) -> None:
        self._starts = {each: start for each, start in self._starts.items() if _of_now(start)}
        starts = [self._started(broker) for broker in self._tasks if not _ours(broker)]
        done, late = await asyncio.wait(starts, timeout=_PATIENCE) if starts else ((), ())
        for start in done:
            if error := start.exception():
                logger.error("a broker could not be reached; it is tried again", exc_info=error)
        if late:
            logger.warning("a broker has not answered for %g seconds; still trying", _PATIENCE)

    async def submit(self, id: str, queue: str | None = None) -> None:
        if queue is not None:
            self.check(queue)
        broker = self._brokers[queue]
        if not (start := self._started(broker)).done():
            await asyncio.shield(start)
        try:
            await self._tasks[broker].kiq(id)
        except Exception:  # the broker's own; it may have used a connection that had died
            await self._tasks[broker].kiq(id)  # an id that it brings twice does nothing

    async def aclose(self) -> None:
        starts, self._starts = self._starts, {}
        for broker, start in starts.items():
            if _ours(broker):
                continue
            if not start.done():
                start.cancel()
            elif not start.cancelled() and start.exception() is None:
                await broker.shutdown()

    def _started(self, broker: AsyncBroker) -> asyncio.Future[None]:
        """The start of a broker, which all who need it wait for together."""
        start = self._starts.get(broker)
        if start is None or (start.done() and (start.cancelled() or start.exception())):
            # A worker's own is started by taskiq, which then listens to it.
            start = asyncio.Future() if _ours(broker) else apart(_start(broker))
            start.add_done_callback(_seen)
            self._starts[broker] = start
        return start

    # --- in a worker ---------------------------------------------------------------------------

    def _task(self) -> Callable[[str], Awaitable[None]]:
        async def run(id: str) -> None:
            """Run one job to its end, or until the worker's drain is over."""
            await self.run_brought(id, None if self._life is None else self._life.over)

        return run

    async def _enter(self, broker: AsyncBroker, state: TaskiqState) -> None:
        if not _ours(broker):
            return  # InMemoryBroker is its own worker, inside the process that serves
        app = self.outermost()
        self._listen_on(broker)
        life = _Life(app)
        await life.begin()
        self._life = life
        self.bound()

    async def _leave(self, state: TaskiqState) -> None:
        life, self._life = self._life, None
        if life is not None:
            await life.end()

    def _listen_on(self, broker: AsyncBroker) -> None:
        """Let a worker outlive its broker's end.

        taskiq's worker does not: it ends itself, and with it what runs, once listening fails.
        """
        listen = type(broker).listen  # not one that an earlier life of the broker has put here

        async def listening() -> AsyncGenerator[bytes | AckableMessage, None]:
            if not (start := self._started(broker)).done():
                start.set_result(None)
            while True:
                try:
                    async with aclosing(listen(broker)) as messages:
                        async for message in messages:
                            yield message
                    logger.warning("the broker says no more; listening again")
                except Exception as error:
                    logger.warning("the broker cannot be heard (%r); listening again", error)
                await asyncio.sleep(_RETRY)

        broker.listen = listening  # type: ignore[method-assign] # it is the user's, and made by now


def _ours(broker: AsyncBroker) -> bool:
    """Whether this is a worker process of a broker."""
    return broker.is_worker_process


def _of_now(start: asyncio.Future[None]) -> bool:
    return start.get_loop() is asyncio.get_running_loop()


def _seen(start: asyncio.Future[None]) -> None:
    if not start.cancelled():
        start.exception()  # whoever needs the broker is told; nobody may, by now


async def _start(broker: AsyncBroker) -> None:
    try:
        await broker.startup()
    except BaseException:
        with suppress(Exception):  # half of it may be there
            await broker.shutdown()
        raise


class _Life:
    """The lifespan of an app in a worker process, which ends when the process is told to.

    taskiq waits for its running tasks without a bound; the drain within the lifespan has one, so
    that it must begin with the signal, and not when the tasks are done.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._signals: dict[int, Any] = {}

    async def begin(self) -> None:
        """Start the app.

        Raises:
            Exception: whatever keeps the app from starting.
        """
        self._task = asyncio.create_task(self._live())
        await asyncio.wait((self._task, self._started), return_when=asyncio.FIRST_COMPLETED)
        if not self._started.done():
            self._task.result()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._listen(number)

    @property
    def over(self) -> asyncio.Task[None]:
        """Done when the drain is over and the app has shut down."""
        assert self._task is not None
        return self._task

    async def end(self) -> None:
        """Drain, and shut the app down."""
        self._stop.set()
        try:
            await self.over
        finally:
            for number, before in self._signals.items():
                signal.signal(number, before)

    async def _live(self) -> None:
        async with lifespan(self._app):
            self._started.set_result(None)
            await self._stop.wait()

    def _listen(self, number: int) -> None:
        before: Any = signal.getsignal(number)

        def hear(number: int, frame: FrameType | None) -> None:
            self._loop.call_soon_threadsafe(self._stop.set)
            if callable(before):
                before(number, frame)

        try:
            signal.signal(number, hear)
        except ValueError:  # not the main thread: somebody else hears the signals, and ends it
            logger.info("the drain begins when the broker is shut down, not with a signal")
        else:
            self._signals[number] = before
