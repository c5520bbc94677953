"""Acceptance: a request becomes a job, or one with an earlier job, or is refused."""

from __future__ import annotations

from contextvars import Context

from raincheck.acceptance.deduplication import Deduplication
from raincheck.acceptance.handoff import Handoff
from raincheck.decorator import Mark
from raincheck.errors import (
    NoRoom,
    OwnerRequired,
    OwnerUnknown,
    QueueFull,
    Refusal,
    RunnerUnavailable,
    ShuttingDown,
    StoreFull,
    StoreUnavailable,
)
from raincheck.ids import Ids
from raincheck.job import Job, Key, State
from raincheck.owners import OwnerError, Owners
from raincheck.policy import Policy, seconds
from raincheck.runtime.conductor import Conductor
from raincheck.runtime.roster import Waiting
from raincheck.runtime.scheduler import Ticket

# What belongs to HTTP in a scope, and is captured as bytes; the rest is what outer middleware and
# the lifespan have put there, and a replay in this process is given it again.
_CAPTURED = frozenset(
    {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"}
    | {"root_path", "headers", "client", "server"}
)


class Acceptance:
    """Makes jobs of requests.

    Args:
        conductor: gives them their places.

    Attributes:
        ids: mints their ids.
        owners: says whose they are.
        mounted: whether the status routes are mounted by hand, inside the app.
    """

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor
        self._twins = Deduplication(
            conductor.store, conductor.ledger, conductor.clock, conductor.sure_of
        )
        self.ids = Ids("")
        self.owners = Owners(None)
        self.mounted = False

    def bind(self, owners: Owners, ids: Ids) -> None:
        """Take what says whose requests are, and what mints the ids of jobs."""
        self.owners, self.ids = owners, ids

    def mount(self) -> None:
        """The status routes are mounted by hand."""
        self.mounted = True

    def route_of(self, mark: Mark) -> tuple[str, Policy]:
        """See `RoutePolicies.of_mark`."""
        return self.conductor.policies.of_mark(mark)

    async def accept(self, handoff: Handoff, tries: int = 3) -> None:
        """Make a job of the request: take a place, and be visible before the 202 leaves (law 3).

        Raises:
            Refusal: nothing was stored (law 8).
        """
        conductor = self.conductor
        assert handoff.route is not None
        if conductor.closing:
            raise ShuttingDown("The server accepts nothing new.", retry_after=self._until_restart())
        policy = handoff.policy
        owner = None
        if conductor.limits.require_owner or not self.owners.nobody(handoff.scope):
            owner = await self._owner(handoff)
        keys: tuple[Key, ...] = ()
        named = policy.idempotency == "required" or b"idempotency-key" in dict(handoff.fields)
        if named or policy.coalesce:
            keys = await self._keys(handoff, owner)
            if keys and await self._joined(handoff, keys):
                return
        assert handoff.decision is not None
        synchronous = not handoff.decision.asynchronous  # no bounds hold for it, nor an engine
        scheduler, placed = conductor.roster.scheduler, conductor.in_place and not synchronous
        if placed and not handoff.upload.whole:
            scheduler.check(handoff.route, owner)  # before more is read of what is refused
        await handoff.drain()
        ticket = scheduler.admit(handoff.route, owner) if placed else None
        try:
            job = await self._create(handoff, ticket, owner, keys)
        except BaseException:
            if ticket is not None:
                scheduler.leave(ticket)
            raise
        if job is None:  # its twin was faster
            if ticket is not None:
                scheduler.leave(ticket)
            if not tries:
                raise StoreUnavailable("The job store gives answers that differ.", retry_after=1)
            await self.accept(handoff, tries - 1)
            return
        if not (placed or synchronous):
            await self._submit(job)
        handoff.become(job, ticket, keyed=bool(keys))
        if ticket is not None and job.state is State.QUEUED:
            conductor.wait(_waiting(handoff, job, ticket))
        elif placed or synchronous:
            conductor.roster.running[job.id] = handoff
        if conductor.leases is not None:
            conductor.leases.keep(conductor.tasks)
            if keys:
                conductor.confirm(job)
        conductor.keep_sweeping()

    async def _owner(self, handoff: Handoff) -> str | None:
        assert handoff.outer_scope is not None
        try:
            owner = await self.owners.at_acceptance(
                handoff.scope, handoff.outer_scope, mounted=self.mounted
            )
        except OwnerError as error:
            raise OwnerUnknown("Whose the request is cannot be determined.") from error
        if owner is None and self.conductor.limits.require_owner:
            raise OwnerRequired("The request does not say whose it is.")
        return owner

    async def _keys(self, handoff: Handoff, owner: str | None) -> tuple[Key, ...]:
        twins, varying = self._twins, frozenset[str]()
        if handoff.policy.coalesce is True:
            try:
                varying = await twins.varying(handoff)
            except Exception as error:
                raise self._without_store(error) from error
        return await twins.keys(handoff, owner, varying)

    async def _joined(self, handoff: Handoff, keys: tuple[Key, ...]) -> bool:
        try:
            return await self._twins.join(handoff, keys)
        except Refusal:
            raise
        except Exception as error:
            raise self._without_store(error) from error

    async def _create(
        self,
        handoff: Handoff,
        ticket: Ticket | None,
        owner: str | None,
        keys: tuple[Key, ...],
    ) -> Job | None:
        """A new job in the store; None if there is an earlier one under one of the keys.

        Raises:
            Refusal: it is not there, or is taken away again as soon as that can be done.
        """
        conductor = self.conductor
        assert handoff.route is not None
        assert handoff.decision is not None
        policy, synchronous = handoff.policy, not handoff.decision.asynchronous
        runs = synchronous or (ticket is not None and ticket.running)
        max_runs = 1 if conductor.lease is None or synchronous else policy.runs
        replayable = max_runs > 1 if runs else not handoff.holds
        job = Job.accepted(
            self.ids.mint(),
            handoff.route,
            conductor.clock(),
            runs=runs,
            max_runs=max_runs,
            replayable=replayable,
            holder=conductor.name if ticket is not None or synchronous else None,
            queue=policy.queue,
            owner=owner,
        )
        if synchronous:
            job = job._replace(synchronous=True)
        if handoff.upload.lost and ticket is not None and not runs:
            raise QueueFull(
                "No handler is free, and the request cannot wait for one: more of its body was "
                "read before the handler than is kept.",
                retry_after=1,
            )
        request = await handoff.kept_request() if replayable else None
        within = None if synchronous else conductor.bounds(policy, job.state)
        try:
            there = await conductor.store.create(
                job, request, keys=keys, lease=conductor.lease, bounds=within
            )
        except NoRoom as error:
            if ticket is None or not runs:
                full = conductor.roster.scheduler.full(job.route, owner=error.owner)
                raise full from error
            conductor.block(ticket, error)
            return await self._create(handoff, ticket, owner, keys)  # it waits, then
        except BaseException as error:
            if not isinstance(error, StoreFull):  # it may be there all the same
                conductor.undo(job)
            if isinstance(error, Exception):
                raise self._without_store(error) from error
            raise
        return job if there is job or there.id == job.id else None

    async def _submit(self, job: Job) -> None:
        """Hand a new job to an engine that runs it elsewhere.

        Raises:
            RunnerUnavailable: it was not taken, and is withdrawn.
        """
        conductor = self.conductor
        conductor.hold_on(job)  # or others would find it abandoned before that is decided
        try:
            brought = await self._brought(job)
        except BaseException:  # the request was cancelled
            conductor.undo(job)
            raise
        conductor.roster.left(job)
        if not brought:
            detail = "The engine that runs jobs does not answer."
            raise RunnerUnavailable(detail, retry_after=5)

    async def _brought(self, job: Job) -> bool:
        """Tell the engine of a new job; False if it was not taken, and is withdrawn.

        If it cannot be withdrawn it is accepted: a worker has begun it, or the store, which has it
        for certain, does not answer. Then it is found abandoned, and the engine told once more.
        """
        conductor = self.conductor
        try:
            await conductor.bring(job)
        except Exception as error:
            conductor.engine.failed(error)
        else:
            return True
        try:
            withdrawn = await conductor.ledger.take_back(job)
        except Exception as error:
            conductor.availability.failed(error)
            return True
        conductor.keep_sweeping()
        return not withdrawn

    def _without_store(self, error: Exception) -> StoreUnavailable:
        """The refusal of what the store could not take; clients do not learn the reason."""
        if isinstance(error, StoreFull):
            return StoreUnavailable("The job store is full.", retry_after=5)
        self.conductor.availability.failed(error)
        return StoreUnavailable("The job store does not answer.", retry_after=5)

    def _until_restart(self) -> int:
        return max(1, round(seconds(self.conductor.limits.drain_timeout)))


def _waiting(handoff: Handoff, job: Job, ticket: Ticket) -> Waiting:
    """What waits of a request: nothing that the first pass of its app has written."""
    if handoff.holds:
        return Waiting(job, ticket, {}, Context(), handoff)
    assert handoff.outer_scope is not None
    assert handoff.context is not None
    outer = {k: v for k, v in handoff.outer_scope.items() if k not in _CAPTURED}
    if "state" in outer:
        outer["state"] = handoff.state
    return Waiting(job, ticket, outer, handoff.context, None)
