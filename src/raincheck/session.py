"""A session: what there is of a middleware while an event loop runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from starlette.types import ASGIApp, Scope

from raincheck.acceptance.decision import Acceptance
from raincheck.dialects.base import Dialect
from raincheck.ids import Ids
from raincheck.owners import Owners
from raincheck.policy import seconds
from raincheck.runners.base import Brought, Run
from raincheck.runtime.deliveries import Deliveries
from raincheck.runtime.environment import Environment
from raincheck.runtime.expiry import Sweeper
from raincheck.runtime.feeds import Feeds
from raincheck.runtime.figures import Counting
from raincheck.runtime.recovery import Recovery
from raincheck.runtime.replay import Replays
from raincheck.runtime.runs import Runs
from raincheck.runtime.stopping import Reason
from raincheck.shutdown import Waits, announced
from raincheck.tasks import Tasks, open_tasks

logger: logging.Logger = logging.getLogger("raincheck")


@dataclass(frozen=True, slots=True)
class Bound:
    """The middleware that some jobs belong to.

    Attributes:
        app: the app that requests are fed to.
        status: the status routes.
        read: reads the app's routes.
        owners: says whose requests are.
        ids: mints the ids of jobs.
        mounted: says whether the status routes are mounted by hand, inside the app.
        dialect: spells jobs.
        base_of: says where the URLs of a request's job begin.
    """

    app: ASGIApp
    status: ASGIApp
    read: Callable[[], None]
    owners: Owners
    ids: Ids
    mounted: Callable[[], bool]
    dialect: Dialect
    base_of: Callable[[Scope], str]


class Session:
    """What exists only while an event loop runs; made on it, whole, and thrown away with it.

    Args:
        environment: what is fixed.
        bound: the middleware.
        lifespan: what the lifespan's scope has that requests are to have as well; None where no
            lifespan has come.

    Attributes:
        tasks: those that apps run in.
        runs: the jobs that are here.
        acceptance: makes jobs of requests.
        waits: what waits here for the sake of clients.
        feeds: what becomes of the jobs that somebody follows here.
        counting: the figures of the store, if anybody wants them.
    """

    def __init__(self, environment: Environment, bound: Bound, lifespan: Scope | None) -> None:
        self.tasks: Tasks = open_tasks()
        self.runs: Runs = Runs(environment, self.tasks, lifespan)
        self.waits: Waits = Waits(self.tasks)
        self.feeds: Feeds = Feeds(environment, self.tasks)
        self.counting: Counting = Counting(environment, self.tasks)
        self._environment = environment
        self._sweeper = Sweeper(environment, self.tasks)
        self.acceptance: Acceptance = Acceptance(
            environment,
            self.runs,
            self._sweeper,
            owners=bound.owners,
            ids=bound.ids,
            mounted=bound.mounted,
            base_of=bound.base_of,
        )
        self._recovery = Recovery(environment, self.runs)
        self._deliveries: Deliveries | None = None
        if environment.callbacks is not None and environment.poster is not None:
            post = environment.poster()
            self._deliveries = Deliveries(
                environment, environment.callbacks, bound.dialect, post, self.tasks
            )
        self._replays = Replays(environment, self.runs, self.acceptance, self._recovery, bound.app)

    def begin(self) -> None:
        """Look for what nobody holds, and for what is due, on a store that processes share.

        For those who are to be told of a job's end; and for its figures, if a telemetry reads them.
        """
        if self._environment.observers.figures:
            self.counting.keep()
        if self._environment.lease is not None:
            self.tasks.spawn(self._recovery.watch, Context())
            self._sweeper.keep_sweeping()
        if self._deliveries is not None:
            self._deliveries.begin()

    @property
    def draining(self) -> bool:
        """Whether nothing new is accepted, or the server is known to stop."""
        return self.acceptance.closed or announced()

    def lives_elsewhere(self) -> bool:
        """Whether its event loop runs in another thread than whoever asks; figures are kept then.

        What is there belongs to that loop: nobody opens the jobs anew because of a question.
        """
        return self.tasks.remote() and self.tasks.call_soon(self.counting.keep)

    async def run(self, id: str) -> Brought:
        """Run a job to its end: see `runners.base.Run`."""
        return await self._replays.run(id)

    def spawn(self, run: Run, id: str) -> None:
        """Start `run(id)` as a task of ours, in the context that the job is replayed in."""
        work: Any = partial(run, id)  # what it says is for engines
        self.tasks.spawn(work, self._replays.context_of(id))

    async def close(self) -> None:
        """Drain: accept nothing new, wait for `drain_timeout`, and interrupt what is left."""
        environment, runs, grace = self._environment, self.runs, self._environment.cancel_grace
        self.acceptance.close()
        self._replays.close()
        self._recovery.close()
        self.waits.end()
        drain = seconds(environment.limits.drain_timeout)
        running, waiting = len(runs.running()), len(runs.waiting())
        if running or waiting:  # of those that have ended, the store may have yet to hear
            logger.warning(
                "the server stops when its jobs have ended, in %g seconds at most: %d run, %d wait",
                *(drain, running, waiting),
            )
        with anyio.move_on_after(grace):
            for run in runs.close(drain):
                if run.waits:  # it was not cancelled meanwhile
                    await runs.interrupt_waiting(run)
        with anyio.move_on_after(drain):
            await runs.until_idle()
        with anyio.move_on_after(grace):
            for run in runs.waiting():
                if run.waits:  # its turn has not come meanwhile
                    await runs.interrupt_waiting(run)
        for run in runs.running():
            run.stop(Reason.INTERRUPTED)
        with anyio.move_on_after(grace):
            await runs.until_idle()
        with anyio.move_on_after(grace):
            for run in runs.running():
                await run.interrupt()
        if self._deliveries is not None:
            with anyio.move_on_after(grace):
                await self._deliveries.close()
        with anyio.move_on_after(grace):
            await self.tasks.aclose()
