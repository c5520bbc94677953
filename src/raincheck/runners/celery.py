"""Jobs run by Celery's workers, in other processes and on other machines."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import anyio
from anyio import to_thread
from anyio.abc import TaskStatus
from anyio.from_thread import start_blocking_portal

try:
    # Celery brings no types.
    from celery import Celery  # type: ignore[import-untyped]
    from celery.bootsteps import StartStopStep  # type: ignore[import-untyped]
    from celery.signals import (  # type: ignore[import-untyped]
        worker_process_shutdown,
        worker_shutting_down,
    )
except ImportError as _error:
    raise ImportError(
        "CeleryRunner needs Celery. Install it with: pip install raincheck[celery]"
    ) from _error

from starlette.types import ASGIApp

from raincheck.errors import ConfigurationError
from raincheck.lifespan import lifespan
from raincheck.runners.base import Run, Stop
from raincheck.runners.engines import EngineRunner

TASK = "raincheck:run"
"""The name of the one task that the workers know; its argument is a job's id."""

# Threads that hand ids to the broker at once, as many as Celery keeps connections
# (`broker_pool_limit`), and those that may be there: a call that hangs cannot be called off.
_SENDERS = 10
_THREADS = 20

# A connection that Celery keeps may have died, and is then made anew; one that cannot be made is
# not waited for. An id that is brought twice does nothing.
_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class CeleryRunner(EngineRunner):
    """Hands jobs to Celery's workers: `celery -A myapp:celery worker --pool=threads`.

    Only a job's id travels. The broker is the transport and Celery the worker process; that every
    job runs, and that one run of it counts, is guaranteed by the store, whatever the broker does
    when a worker dies. Handlers run on asyncio, whatever the pool.

    A worker process starts an event loop in a thread, and the app's lifespan in it, when it has its
    first job; in the pool `prefork` each of its children does. On SIGTERM a worker takes no more
    jobs, and the drain of `Limits` begins: what has not ended after `drain_timeout` is interrupted.

    Args:
        celery: your Celery app, which has one runner. With `task_always_eager` jobs run in the
            process that accepts them.
        queues: the names of the queues that policies name (`celery worker -Q videos`). A job whose
            policy names none goes where Celery routes the task `raincheck:run`.
        app: where a worker finds the outermost app, e.g. `"myapp:app"`. Default None: the
            middleware is the outermost app. Needed if it was added inside another one, such as by
            Starlette's `middleware=[...]`: that is built when the app is first called.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    _spawn: Callable[[Run, str], None]
    _senders: anyio.CapacityLimiter
    _told: int | None = None  # as `employ` was told
    _life: _Life | None = None

    def __init__(
        self, celery: Celery, *, queues: Collection[str] = (), app: str | None = None
    ) -> None:
        super().__init__(queues=queues, app=app)
        if not isinstance(celery, Celery):
            raise ConfigurationError(
                f"CeleryRunner({celery!r}): it is no Celery app, like "
                'Celery("shop", broker="redis://localhost:6379/0")'
            )
        steps = celery.steps["worker"]
        if any(isinstance(step, type) and issubclass(step, _Station) for step in steps):
            raise ConfigurationError(
                f"CeleryRunner({celery!r}): this Celery app has another CeleryRunner; "
                "make a Celery app for each LongRunningMiddleware"
            )
        steps.add(type("Raincheck", (_Station,), {"runner": self}))
        self._celery = celery
        self._threads = threading.BoundedSemaphore(_THREADS)
        self._entering = threading.Lock()
        self._task = self._registered()

    def bind(self, run: Run, stop: Stop, spawn: Callable[[Run, str], None]) -> None:
        super().bind(run, stop, spawn)
        self._spawn = spawn

    async def open(self) -> None:
        self._senders = anyio.CapacityLimiter(_SENDERS)

    async def submit(self, id: str, queue: str | None = None) -> None:
        if queue is not None:
            self.check(queue)
        if self._celery.conf.task_always_eager:
            self._spawn(self.bound(), id)
            return
        await to_thread.run_sync(
            self._send, id, queue, abandon_on_cancel=True, limiter=self._senders
        )

    def _send(self, id: str, queue: str | None) -> None:
        if not self._threads.acquire(blocking=False):
            raise TimeoutError(f"the broker has not answered {_THREADS} calls")
        try:
            self._task.apply_async((id,), queue=queue, retry=True, retry_policy=_RETRY)
        finally:
            self._threads.release()

    # --- in a worker ---------------------------------------------------------------------------

    def _registered(self) -> Any:
        def run(task: Any, id: str) -> None:
            """Run one job to its end, or until the worker's drain is over."""
            life = self._entered()
            if life is None or life.stops:
                raise task.retry(countdown=0)  # others are to run it, and soon
            life.conduct(id)

        # When ids are acknowledged is as Celery's settings say: either is safe. Not shared: that
        # would put the task into every Celery app of the process.
        return self._celery.task(
            run, name=TASK, bind=True, shared=False, ignore_result=True, max_retries=None
        )

    def employ(self, told: int | None) -> None:
        """Work for a worker of Celery's, before its pool has any process; None: no longer.

        Args:
            told: can be read from as soon as that has been told to stop.
        """
        with self._entering:
            self._told = told

    def _entered(self) -> _Life | None:
        """The life of the app in this process, which its first job begins; None: it is over."""
        with self._entering:  # a pool of threads has several first jobs
            told = self._told
            if told is not None and (self._life is None or self._life.broken):
                self._life = _Life(self, self.outermost(), told)
                worker_process_shutdown.connect(self.leave)  # of a child in a pool of processes
            return self._life

    def leave(self, **_: Any) -> None:
        """Drain what runs in this process, and shut the app down."""
        with self._entering:
            life, self._life = self._life, None
        if life is not None:
            life.end()


class _Station(StartStopStep):  # type: ignore[misc] # it has no types
    """A worker of Celery's, in its main process, whose children inherit what this has opened.

    Celery waits for its running tasks without a bound, and tells nobody in other processes that it
    does. The drain within the lifespan has a bound, so that it must begin with the signal. A byte
    in a pipe that nobody reads tells all processes; a signal handler may write it.

    Attributes:
        runner: whose jobs it runs.
        told: can be read from as soon as the worker has been told to stop.
    """

    runner: ClassVar[CeleryRunner]

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.runner.outermost()  # a worker without it is to say so, and not to start
        if not worker.pool_cls.signal_safe:
            # Of threads and greenlets. There Celery, whose broker has come back, would set its
            # prefetch count from the thread of a task, and await the answer on the socket that its
            # main thread reads: over AMQP either may wait for ever (Celery 5.7.0).
            worker.app.conf.update(worker_enable_prefetch_count_reduction=False)
        self.told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        worker_shutting_down.connect(self.hear, sender=worker.hostname)
        self.runner.employ(self.told)

    def hear(self, **_: Any) -> None:
        """The worker was told to stop, perhaps a second time."""
        with suppress(BlockingIOError):
            os.write(self._tell, b"!")

    def close(self, worker: Any) -> None:
        self.hear()  # it may stop without a signal

    def stop(self, worker: Any) -> None:
        self.runner.employ(None)
        self.runner.leave()
        worker_shutting_down.disconnect(self.hear, sender=worker.hostname)
        os.close(self._tell)
        os.close(self.told)

    terminate = stop


class _Life:
    """The lifespan of an app in a worker process, on an event loop in a thread of its own.

    Args:
        runner: whose jobs it runs.
        app: the outermost app.
        told: can be read from when it is to end.

    Raises:
        Exception: whatever keeps the app from starting.
    """

    _stop: asyncio.Event
    _over: asyncio.Future[None]

    def __init__(self, runner: CeleryRunner, app: ASGIApp, told: int) -> None:
        self._runner, self._app, self._told = runner, app, told
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("asyncio"))
            self._live, _ = self._portal.start_task(self._begin)
            self._thread = stack.pop_all()

    @property
    def stops(self) -> bool:
        """Whether it takes no more jobs."""
        return self._stop.is_set()

    @property
    def broken(self) -> bool:
        """Whether the app has ended by itself."""
        return self._live.done() and not self.stops

    def conduct(self, id: str) -> None:
        """Run a job to its end, or until the drain is over."""
        run = self._portal.start_task_soon(self._runner.run_brought, id, self._over)
        try:
            run.result()
        finally:
            run.cancel()  # of a task that Celery has broken off

    def end(self) -> None:
        """Drain, and shut the app down."""
        with suppress(RuntimeError):  # it has ended
            self._portal.call(self._stop.set)
        with self._thread:
            self._live.result()

    async def _begin(self, *, task_status: TaskStatus[None]) -> None:
        loop = asyncio.get_running_loop()
        self._stop, self._over = asyncio.Event(), loop.create_future()

        def hear() -> None:
            loop.remove_reader(self._told)
            self._stop.set()

        try:
            async with lifespan(self._app):
                self._runner.bound()
                loop.add_reader(self._told, hear)
                task_status.started()
                await self._stop.wait()
                loop.remove_reader(self._told)
        finally:
            self._over.set_result(None)
