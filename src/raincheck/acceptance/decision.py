"""Acceptance: a request becomes a job, or one with an earlier job, or is refused."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import anyio
from starlette.requests import Request
from starlette.types import Scope

from raincheck.acceptance.confirmation import Confirmation
from raincheck.acceptance.deduplication import Deduplication
from raincheck.acceptance.handoff import Handoff
from raincheck.bodies.base import Bodies
from raincheck.callbacks import Callbacks, Refused
from raincheck.decorator import Mark
from raincheck.errors import (
    CallbackUnknown,
    NoRoom,
    OwnerRequired,
    OwnerUnknown,
    QueueFull,
    Refusal,
    RunnerUnavailable,
    ShuttingDown,
    StoredTooMuch,
    StoreFull,
    StoreUnavailable,
)
from raincheck.ids import Ids
from raincheck.job import Bounds, Delivery, Job, Key, State, Trace
from raincheck.owners import OwnerError, Owners
from raincheck.policy import Policy, seconds
from raincheck.runtime.environment import Environment
from raincheck.runtime.expiry import Sweeper
from raincheck.runtime.run import Origin, Run
from raincheck.runtime.runs import Runs
from raincheck.runtime.scheduler import Ticket
from raincheck.tasks import Tasks

logger: logging.Logger = logging.getLogger("raincheck")

# Named here, for every job: as an attribute of its class it is a call on Python 3.11.
_QUEUED = State.QUEUED

# What belongs to HTTP in a scope, and is captured as bytes; the rest is what outer middleware and
# the lifespan have put there, and a replay in this process is given it again.
_CAPTURED = frozenset(
    {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"}
    | {"root_path", "headers", "client", "server"}
    | {"fastapi.telemetry"}  # FastAPI's span of the request, which has ended by then
)


class Acceptance:
    """Makes jobs of requests, on one event loop.

    Args:
        environment: what is fixed.
        runs: the jobs that are here, and their places.
        sweeper: removes those that are due.
        owners: says whose requests are.
        ids: mints the ids of jobs.
        mounted: says whether the status routes are mounted by hand, inside the app.
        base_of: says where the URLs of a request's job begin.

    Attributes:
        tasks, bodies, limiter, cancel_grace, route_of: see `handoff.Acceptor`.
    """

    def __init__(
        self,
        environment: Environment,
        runs: Runs,
        sweeper: Sweeper,
        *,
        owners: Owners,
        ids: Ids,
        mounted: Callable[[], bool],
        base_of: Callable[[Scope], str],
    ) -> None:
        self.tasks: Tasks = runs.tasks
        self.bodies: Bodies | None = environment.bodies
        self.limiter: anyio.CapacityLimiter = runs.limiter
        self.cancel_grace: float = environment.cancel_grace
        self.route_of: Callable[[Mark], tuple[str, Policy]] = environment.policies.of_mark
        self._environment = environment
        self._runs = runs
        self._sweeper = sweeper
        self._owners = owners
        self._asks = environment.limits.require_owner or not owners.nobody({})
        self._ids = ids
        self._mounted = mounted
        self._base_of = base_of
        self._new = Confirmation(environment, runs, sweeper)
        self._twins = Deduplication(environment, self._new.sure_of)
        self._closing = False

    def close(self) -> None:
        """Accept nothing new."""
        self._closing = True

    @property
    def closed(self) -> bool:
        """Whether nothing new is accepted."""
        return self._closing

    def raised(self, job: Job, error: BaseException) -> None:
        """See `handoff.Acceptor.raised`."""
        self._environment.observers.raised(job, error, self._environment.clock())

    async def accept(self, handoff: Handoff, tries: int = 3) -> None:
        """Make a job of the request: take a place, and be visible before the 202 leaves (law 3).

        Raises:
            Refusal: nothing was stored (law 8).
        """
        environment, policy = self._environment, handoff.policy
        assert handoff.route is not None
        assert handoff.decision is not None
        if self._closing:
            raise ShuttingDown("The server accepts nothing new.", retry_after=self._until_restart())
        owner = None
        if self._asks or "user" in handoff.scope:
            owner = await self._owner(handoff)
        keys: tuple[Key, ...] = ()
        if policy.coalesce or handoff.named:
            keys = await self._keys(handoff, owner)
            if keys and await self._joined(handoff, keys):
                return
        synchronous = not handoff.decision.asynchronous  # no bounds hold for it, nor an engine
        scheduler, placed = self._runs.scheduler, environment.in_place and not synchronous
        upload = handoff.upload
        if placed and not upload.whole:
            scheduler.check(handoff.route, owner)  # before more is read of what is refused
        if not upload.whole or upload.size > policy.max_request_size:
            await handoff.drain()
        ticket = scheduler.admit(handoff.route, owner) if placed else None
        try:
            follow = environment.observers.follow and not synchronous
            if follow:
                job = await self._create_followed(handoff, ticket, owner, keys)
            else:
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
        if placed or synchronous:
            self._take_in(handoff, job, ticket, bool(keys))
        else:
            await self._submit(job)
            if job.begin_by is not None:
                self._runs.expect(job)
            handoff.become_elsewhere(job, keyed=bool(keys))
        if keys and environment.lease is not None:
            self._new.confirm(job)
        if not self._sweeper.sweeping:
            self._sweeper.keep_sweeping()

    def _take_in(self, handoff: Handoff, job: Job, ticket: Ticket | None, keyed: bool) -> None:
        """A job runs here, or waits."""
        runs, policy, waits = self._runs, handoff.policy, job.state is _QUEUED
        if waits and not handoff.holds:
            run = Run(runs, job, policy, ticket, origin=_origin(handoff))
        else:
            recorded = not (waits or job.synchronous)
            method = handoff.scope["method"] if recorded else None
            again = policy.retry is not None and job.replayable
            origin = _origin(handoff) if again else None
            run = Run(runs, job, policy, ticket, handoff.stopping, method, waits, origin)
        if waits:
            runs.wait(run)
        else:
            runs.add(run)
        handoff.become(run, keyed)

    async def _owner(self, handoff: Handoff) -> str | None:
        assert handoff.outer_scope is not None
        try:
            owner = await self._owners.at_acceptance(
                handoff.scope, handoff.outer_scope, mounted=self._mounted()
            )
        except OwnerError as error:
            raise OwnerUnknown("Whose the request is cannot be determined.") from error
        if owner is None and self._environment.limits.require_owner:
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

    async def _create_followed(
        self,
        handoff: Handoff,
        ticket: Ticket | None,
        owner: str | None,
        keys: tuple[Key, ...],
    ) -> Job | None:
        """As `_create`, and raises as it does."""
        assert handoff.route is not None
        span = self._environment.observers.accepting(handoff.route, handoff.scope)
        if span is None:
            return await self._create(handoff, ticket, owner, keys)
        try:
            job = await self._create(handoff, ticket, owner, keys, span.trace)
        except BaseException as error:
            span.end(None, error)
            raise
        span.end(job)
        return job

    async def _create(
        self,
        handoff: Handoff,
        ticket: Ticket | None,
        owner: str | None,
        keys: tuple[Key, ...],
        trace: Trace | None = None,
    ) -> Job | None:
        """A new job in the store; None if there is an earlier one under one of the keys.

        Raises:
            Refusal: it is not there, or is taken away again as soon as that can be done.
        """
        environment = self._environment
        assert handoff.route is not None
        assert handoff.decision is not None
        policy, synchronous = handoff.policy, not handoff.decision.asynchronous
        runs = synchronous or (ticket is not None and ticket.running)
        # Where nobody else could take it over, only what fails is repeated.
        again = environment.lease is not None or policy.retry is not None
        max_runs = policy.runs if again and not synchronous else 1
        replayable = max_runs > 1 if runs else not handoff.holds
        holder = environment.name if ticket is not None or synchronous else None
        id, now = self._ids.mint(), environment.clock()
        route, queue = handoff.route, policy.queue
        job = Job.accepted(id, route, now, runs, max_runs, replayable, holder, queue, owner, trace)
        if policy.max_wait_queued is not None and not runs:
            job = job._replace(begin_by=now + seconds(policy.max_wait_queued))
        if synchronous:
            job = job._replace(synchronous=True)
        elif environment.callbacks is not None:
            job = job._replace(delivery=await self._promise(environment.callbacks, handoff, job))
        if not runs and handoff.upload.lost and ticket is not None:
            raise QueueFull(
                "No handler is free, and the request cannot wait for one: more of its body was "
                "read before the handler than is kept.",
                retry_after=1,
            )
        request = await handoff.kept_request() if replayable else None
        alone = synchronous or environment.lease is None  # nobody else has to be counted
        within = None if alone else environment.bounds(policy, job.state)
        if owner is not None and policy.max_stored_bytes_per_owner is not None and not synchronous:
            within = (within or Bounds())._replace(stored=policy.max_stored_bytes_per_owner)
        try:
            there = await environment.ledger.create(job, request, keys, within)
        except NoRoom as error:
            if error.stored:
                raise _stored_too_much(policy) from error
            if ticket is None or not runs:
                raise self._runs.scheduler.full(job.route, owner=error.owner) from error
            self._runs.block(ticket, error)
            return await self._create(handoff, ticket, owner, keys, trace)  # it waits, then
        except BaseException as error:
            if not isinstance(error, StoreFull):  # it may be there all the same
                self._new.undo(job)
            if isinstance(error, Exception):
                raise self._without_store(error) from error
            raise
        return job if there is job or there.id == job.id else None

    async def _promise(self, callbacks: Callbacks, handoff: Handoff, job: Job) -> Delivery | None:
        """Who is to be told of a new job's end: whom its author names, else whom its client does.

        Raises:
            CallbackUnknown: the author's cannot be determined, or may not be told.
        """
        policy, decision = handoff.policy, handoff.decision
        assert decision is not None
        assert handoff.outer_scope is not None
        url, asked = decision.callback, True
        if policy.callback is not None:
            try:
                if (found := await _callback_of(policy, handoff.scope)) is not None:
                    callbacks.check(found, asked=False)
                    url, asked = found, False
            except Exception as error:
                logger.exception("the callback of a request to %s cannot be used", job.route)
                raise CallbackUnknown("Whom to tell cannot be determined.") from error
        if url is None or (asked and not _may_be_told(callbacks, url)):
            return None
        # A response in time is the answer itself, and no job's.
        not_before = job.created_at + decision.wait
        return Delivery(url, self._base_of(handoff.outer_scope), asked, not_before=not_before)

    async def _submit(self, job: Job) -> None:
        """Hand a new job to an engine that runs it elsewhere.

        Raises:
            RunnerUnavailable: it was not taken, and is withdrawn.
        """
        self._runs.hold_on(job)  # or others would find it abandoned before that is decided
        try:
            brought = await self._brought(job)
        except BaseException:  # the request was cancelled
            self._new.undo(job)
            raise
        self._runs.left(job)
        if not brought:
            detail = "The engine that runs jobs does not answer."
            raise RunnerUnavailable(detail, retry_after=5)

    async def _brought(self, job: Job) -> bool:
        """Tell the engine of a new job; False if it was not taken, and is withdrawn.

        If it cannot be withdrawn it is accepted: a worker has begun it, or the store, which has it
        for certain, does not answer. Then it is found abandoned, and the engine told once more.
        """
        environment = self._environment
        try:
            await environment.bring(job)
        except Exception as error:
            environment.engine.failed(error)
        else:
            return True
        try:
            withdrawn = await environment.ledger.take_back(job)
        except Exception as error:
            environment.availability.failed(error)
            return True
        self._sweeper.keep_sweeping()
        return not withdrawn

    def _without_store(self, error: Exception) -> StoreUnavailable:
        """The refusal of what the store could not take; clients do not learn the reason."""
        if isinstance(error, StoreFull):
            return StoreUnavailable("The job store is full.", retry_after=5)
        self._environment.availability.failed(error)
        return StoreUnavailable("The job store does not answer.", retry_after=5)

    def _until_restart(self) -> int:
        return max(1, round(seconds(self._environment.limits.drain_timeout)))


def _stored_too_much(policy: Policy) -> StoredTooMuch:
    detail = (
        f"Your results of this route may take {policy.max_stored_bytes_per_owner} bytes; delete "
        "some, or wait until they expire."
    )
    return StoredTooMuch(detail, retry_after=max(1, min(60, round(seconds(policy.ttl)))))


async def _callback_of(policy: Policy, scope: Scope) -> str | None:
    """What a policy says of whom to tell. Raises whatever its function raises."""
    if not callable(policy.callback):
        return policy.callback
    said: Any = policy.callback(Request(scope))
    if inspect.isawaitable(said):
        said = await said
    if not isinstance(said, str | None):
        raise TypeError(f"Policy(callback=...) gave {type(said).__name__}; it is a URL or None")
    return said


def _may_be_told(callbacks: Callbacks, url: str) -> bool:
    """Whether a client's URL is visibly none that is refused."""
    try:
        callbacks.check(url, asked=True)
    except Refused:
        return False
    return True


def _origin(handoff: Handoff) -> Origin:
    """What waits of a request: nothing that the first pass of its app has written."""
    assert handoff.outer_scope is not None
    assert handoff.context is not None
    outer = {k: v for k, v in handoff.outer_scope.items() if k not in _CAPTURED}
    if "state" in outer:
        outer["state"] = handoff.state
    return Origin(outer, handoff.context)
