"""The roster: the jobs that one process has, those that run and those that wait for their turn."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Protocol

import anyio
from starlette.types import Scope

from raincheck.job import Job
from raincheck.policy import Limits, Policy
from raincheck.runtime.execution import Execution
from raincheck.runtime.scheduler import Scheduler, Ticket
from raincheck.runtime.stopping import Reason


class Held(Protocol):
    """The live request that waits with its job."""

    def turn(self) -> None:
        """Its turn has come."""

    def stop(self, reason: Reason) -> None:
        """Ask it to stop."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A job that waits for its turn.

    Attributes:
        job: the job.
        ticket: its place.
        outer: what a replay puts into the scope besides what is in the store.
        context: the context variables that it is replayed in.
        held: the live request that waits with it, if one does.
    """

    job: Job
    ticket: Ticket
    outer: Scope
    context: Context
    held: Held | None

    def became(self, job: Job) -> None:
        """Hear of a newer version of the job."""
        self.job = job


class Roster:
    """The jobs that this process has.

    Args:
        limits: of all routes together.
        policies: of each, by its name.

    Attributes:
        scheduler: gives them their places.
        running: those that run, by id.
        waiting: those that wait, by id.
        leaving: those of which the store has not heard the last word from here yet, by id, each
            with its fence. That they end, wait elsewhere or were refused is decided.
    """

    def __init__(self, limits: Limits, policies: Mapping[str, Policy]) -> None:
        self.scheduler = Scheduler(limits, policies)
        self.running: dict[str, Execution] = {}
        self.waiting: dict[str, Waiting] = {}
        self.leaving: dict[str, int] = {}
        self._idle: anyio.Event | None = None

    def __contains__(self, id: str) -> bool:
        return id in self.running or id in self.waiting or id in self.leaving

    def waits(self, waiting: Waiting) -> bool:
        """Whether a job still waits here: it has neither begun nor been cancelled or taken over."""
        return self.waiting.get(waiting.job.id) is waiting

    def drop(self, waiting: Waiting) -> None:
        """A job does not wait here any more. From now on nobody begins it here."""
        del self.waiting[waiting.job.id]
        if waiting.held is None:
            self.scheduler.leave(waiting.ticket)
        else:  # it gives its place back when it has unwound
            waiting.held.stop(Reason.CANCELLED)
        self._tell_idle()

    def ended(self, detached: Execution) -> None:
        """A handler has ended, or will not begin: its place is free."""
        assert detached.job is not None
        self.running.pop(detached.job.id, None)
        self.waiting.pop(detached.job.id, None)
        if detached.ticket is not None:  # a synchronous request has none
            self.scheduler.leave(detached.ticket)
        self._tell_idle()

    def has(self, id: str) -> bool:
        """Whether it was accepted here, or begun here, and has not ended."""
        return id in self.running or id in self.waiting

    def leave(self, job: Job) -> None:
        """The last word on a job is on its way into the store. Until then nobody else has it."""
        self.leaving[job.id] = job.fence

    def left(self, job: Job) -> None:
        """It is there."""
        self.leaving.pop(job.id, None)
        self._tell_idle()

    def fences(self, *, waiting: bool) -> dict[str, int]:
        """The jobs whose leases are to be renewed, by id, each with its fence.

        Args:
            waiting: whether those that wait are among them.
        """
        found = {id: each.job.fence for id, each in self.waiting.items()} if waiting else {}
        for id, detached in self.running.items():
            if detached.job is not None and not detached.decided:
                found[id] = detached.job.fence
        return found | self.leaving

    async def until_idle(self) -> None:
        """Return when nothing runs or waits here, and the store knows of all that."""
        while self.running or self.waiting or self.leaving:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _tell_idle(self) -> None:
        if self._idle is not None and not (self.running or self.waiting or self.leaving):
            self._idle.set()
