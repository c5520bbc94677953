"""What is not known yet of a new job: that it was accepted, or that it is taken back."""

from __future__ import annotations

from contextvars import Context
from functools import partial

import anyio

from raincheck.errors import LeaseLost, UnreadableRecord
from raincheck.job import Job
from raincheck.runtime.environment import Environment
from raincheck.runtime.expiry import Sweeper
from raincheck.runtime.runs import Runs

# Seconds after which other processes are told that a job is accepted, if they have not heard of it.
_CONFIRMED_WITHIN = 0.05

# How many refused jobs are taken back at once: an outage may have left thousands.
_TOGETHER = 16


class Confirmation:
    """Lets other processes know what became of the new jobs of this one.

    Args:
        environment: what is fixed.
        runs: the jobs that are here.
        sweeper: removes what was taken back.
    """

    def __init__(self, environment: Environment, runs: Runs, sweeper: Sweeper) -> None:
        self._environment = environment
        self._runs = runs
        self._sweeper = sweeper
        self._confirming: set[str] = set()
        self._undoing = anyio.CapacityLimiter(_TOGETHER)

    def sure_of(self, job: Job) -> bool:
        """Whether a job that was found in the store is known to be accepted."""
        return job.confirmed or self._runs.get(job.id) is not None or job.id in self._confirming

    def confirm(self, job: Job) -> None:
        """Let other processes know soon that a job which other requests may be is accepted.

        Most have a second version by then anyway.
        """
        self._confirming.add(job.id)
        self._runs.tasks.spawn(partial(self._confirm, job), Context())

    async def _confirm(self, job: Job) -> None:
        try:
            await anyio.sleep(_CONFIRMED_WITHIN)
            if (run := self._runs.get(job.id)) is not None:
                await run.confirm()
            elif not self._environment.in_place:  # else it has ended
                await self._environment.ledger.confirm(job)
        except (LeaseLost, UnreadableRecord):
            pass  # a process of another version has it
        finally:
            self._confirming.discard(job.id)

    def undo(self, job: Job) -> None:
        """Take back a new job that is refused, and that the store may have all the same (law 15).

        In a task of its own, for as long as the store takes. Until then the job's lease is renewed,
        so that nobody begins it.
        """
        self._runs.hold_on(job)
        self._runs.tasks.spawn(partial(self._undo, job), Context())

    async def _undo(self, job: Job) -> None:
        ledger = self._environment.ledger
        try:
            async with self._undoing:
                await ledger.patiently(partial(ledger.take_back, job))
        except UnreadableRecord:
            pass  # a process of another version has taken it over
        finally:
            self._runs.left(job)
        self._sweeper.keep_sweeping()
