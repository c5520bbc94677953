"""What the runners of all engines share: which app a worker has, and a run that ends with it."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Collection, Coroutine
from contextvars import Context
from typing import Any, ClassVar, TypeVar

from starlette.types import ASGIApp

from raincheck.errors import ConfigurationError
from raincheck.runners.base import Run, Runner, Stop

T = TypeVar("T")


class EngineRunner(Runner):
    """Hands jobs to an engine, whose workers run them in other processes.

    A subclass has a `submit` that tells its engine a job's id, and calls `run_brought` where the
    engine brings that id: within the lifespan of `outermost()`, which a worker enters once. An
    engine may lose ids and may bring them twice; it only has to bring most of them soon.

    Args:
        queues: the names of the queues that policies may name.
        app: where a worker finds the outermost app, e.g. `"myapp:app"`. None: the middleware is it.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    in_place: ClassVar[bool] = False

    naming: ClassVar[str] = "queues=[{!r}]"
    """How a queue is named to it, for who has to."""

    _run: Run | None = None
    _stop: Stop
    _app: ASGIApp | None = None

    def __init__(self, *, queues: Collection[str] = (), app: str | None = None) -> None:
        if isinstance(queues, str) or not isinstance(queues, Collection):
            like = [queues] if isinstance(queues, str) else ["videos"]
            raise ConfigurationError(f"queues={queues!r}: give several names, like {like}")
        if app is not None and not (isinstance(app, str) and all(app.partition(":"))):
            raise ConfigurationError(
                f'app={app!r}: say where the app is, as "module:name", like "myapp:app"'
            )
        self._queues = queues
        self._where = app

    def bind(self, run: Run, stop: Stop, spawn: Callable[[Run, str], None]) -> None:
        self._run, self._stop = run, stop

    def attach(self, app: ASGIApp) -> None:
        self._app = app

    def check(self, queue: str) -> None:
        if queue not in self._queues:
            name = type(self).__name__
            raise ConfigurationError(
                f"queue={queue!r}: {name} has no such queue; name it in "
                f"{name}({self.naming.format(queue)})"
            )

    async def cancel(self, id: str) -> None:
        self._stop(id)

    # --- in a worker ---------------------------------------------------------------------------

    def outermost(self) -> ASGIApp:
        """The app whose lifespan a worker enters.

        Raises:
            ConfigurationError: nobody has said which one it is.
        """
        if self._where is not None:
            return imported(self._where)
        if self._app is None:
            name = type(self).__name__
            raise ConfigurationError(
                f"{name}: no LongRunningMiddleware has it in this process; import the app beside "
                f"the worker, or say where it is: {name}(..., app='myapp:app')"
            )
        return self._app

    def bound(self) -> Run:
        """What runs a job, once the app is there.

        Raises:
            ConfigurationError: that app does not have this runner.
        """
        if self._run is None:
            raise ConfigurationError(
                f"{type(self).__name__}(app={self._where!r}): that app has no "
                "LongRunningMiddleware with this runner"
            )
        return self._run

    async def run_brought(self, id: str, over: asyncio.Future[Any] | None) -> None:
        """Run a job to its end, or until the drain is over: engines wait for ever.

        Args:
            id: the job's.
            over: done when the drain of this worker is; None if it never has one.
        """
        run = self.bound()
        ends = asyncio.get_running_loop().create_future()

        def end(_: object = None) -> None:
            if not ends.done():
                ends.set_result(None)

        async def run_to_its_end() -> None:
            try:
                await run(id)
            finally:
                end()

        running = apart(run_to_its_end())
        if over is not None:
            over.add_done_callback(end)
        try:  # not by `asyncio.wait`, which takes three times as long
            await ends
        finally:
            running.cancel()  # of a handler that does not stop, or whose engine gives it up
            if over is not None:
                over.remove_done_callback(end)


def apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task in a context of its own, not in that of whoever needs it first."""
    return asyncio.get_running_loop().create_task(work, context=Context())


def imported(where: str) -> ASGIApp:
    """An app by its name, such as `"myapp:app"`, found from the working directory as well."""
    module, _, name = where.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as the engines' own commands find what they are given
    app: ASGIApp = getattr(importlib.import_module(module), name)
    return app
