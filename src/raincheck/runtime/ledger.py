"""The ledger: how a job's changes get into the store, whatever else happens to it meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio

from raincheck.errors import (
    NOT_KEPT,
    RESPONSE_LOST,
    BodyLost,
    IllegalTransition,
    LeaseLost,
    Problem,
    StoreFull,
    UnreadableRecord,
)
from raincheck.idempotency import unheard
from raincheck.job import Bounds, Delivery, Job, Key, Progress, State
from raincheck.messages import (
    CapturedRequest,
    CapturedResponse,
    Head,
    RawHeaders,
    named_in_vary,
)
from raincheck.runtime.observers import Observers
from raincheck.stores.availability import Availability
from raincheck.stores.base import Claim, Store

T = TypeVar("T")

_Change = Callable[[Job], Job]


# Seconds that an outcome waits for room: a response that is larger may be failing meanwhile.
_FULL = 5.0

# Seconds after which no call is on its way any more that its caller has given up.
_LATEST = 60.0


class Ledger:
    """Writes jobs into a store, and tells of what becomes of them: nobody else does.

    What only the newest run of a job may change is fenced: once the job has another fence than
    the one known here, `LeaseLost` is raised and nothing changes.

    Args:
        store: where they are.
        clock: seconds since the epoch.
        tombstone_ttl: seconds that an expired or deleted job is remembered.
        availability: of the store.
        holder: the name of this process.
        lease: seconds that a job which starts is this process's own; None for always.
        observers: told of each transition that is made here, in order.

    Attributes:
        observers: as given.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        tombstone_ttl: float,
        *,
        availability: Availability,
        holder: str | None = None,
        lease: float | None = None,
        observers: Observers | None = None,
    ) -> None:
        self._store = store
        self.observers: Observers = Observers(()) if observers is None else observers
        self._clock = clock
        self._tombstone_ttl = tombstone_ttl
        # What this process has told the store of what each route's responses vary by.
        self._told: dict[str, frozenset[str]] = {}
        self._availability = availability
        self._holder = holder
        self._lease = lease

    def create(
        self,
        job: Job,
        request: CapturedRequest | None,
        keys: Collection[Key] = (),
        bounds: Bounds | None = None,
    ) -> Awaitable[Job]:
        """Insert a new job, which is this process's own. As `Store.create`, and raises as it does.

        Whoever is told of an error does not know whether it is there.
        """
        lease = self._lease
        if job.begin_by is not None and lease is not None:  # who watches may find it by then
            lease = min(lease, job.begin_by - job.created_at)
        created = self._store.create(job, request, keys=keys, lease=lease, bounds=bounds)
        return self._tell_of(created, job) if self.observers.of[job.state] else created

    async def _tell_of(self, created: Awaitable[Job], job: Job) -> Job:
        there = await created
        if there.id == job.id:  # else it is an earlier one
            self.observers.tell(there, None)
        return there

    async def start(self, job: Job, bounds: Bounds | None = None) -> Job:
        """Record that it runs, here.

        Raises:
            NoRoom: as many run as `bounds` allows.
            IllegalTransition: it was cancelled in the meantime, or runs elsewhere.
        """
        now = self._clock()

        def start(job: Job) -> Job:
            if job.state is State.RUNNING and (job.started_at, job.holder) == (now, self._holder):
                self.observers.tell(job, State.QUEUED)
                return job  # our own write, whose acknowledgement was lost
            return job.start(now, self._holder)

        return await self.patiently(
            partial(self._advance, job, start, lease=self._lease, bounds=bounds)
        )

    async def claim(self, id: str, routes: Collection[str]) -> Claim | None:
        """Begin a job that waits, here, if it is of one of these routes: see `Store.claim`.

        One that has begun, and whose captured request cannot be read, comes without that.

        Raises:
            UnreadableRecord: it cannot be read.
        """
        holder, now = self._holder, self._clock()
        assert holder is not None
        claim = partial(
            self._store.claim, id, routes=routes, holder=holder, now=now, lease=self._lease
        )
        try:
            claimed = await self.patiently(claim)
        except UnreadableRecord:
            job = await self.patiently(partial(self._store.get, id))
            if job is None or not job.begun_by(holder, now):
                raise
            claimed = Claim(job, None, begun=True)
        if claimed is not None and claimed.begun and self.observers.of[State.RUNNING]:
            self.observers.tell(claimed.job, State.QUEUED)
        return claimed

    async def hold(self, job: Job) -> Job:
        """Let it wait here.

        Raises:
            IllegalTransition: it does not wait any more, or somebody else was faster.
            StoreError: whatever the store raises.
        """
        held = job.held_by(self._holder)
        if not await self._store.replace(held, lease=self._lease):
            raise LeaseLost("somebody else was faster")
        return held

    async def let_go(self, job: Job) -> None:
        """Let a job that waits here be found by others at once.

        Raises:
            IllegalTransition: it does not wait any more.
        """
        free = partial(self._advance, job, lambda job: job.held_by(None), fenced=True, lease=0.0)
        await self.patiently(free)

    async def give_back(self, job: Job, lease: float) -> None:
        """Let a job wait for a process that has its route.

        Args:
            job: the version known here.
            lease: seconds until it is looked for.

        Raises:
            IllegalTransition: it does not wait any more.
        """
        now = self._clock()
        again = partial(
            self._advance, job, lambda job: job.given_back(now), fenced=True, lease=lease
        )
        await self.patiently(again)

    async def requeue(
        self,
        job: Job,
        lease: float | None,
        *,
        not_before: float | None = None,
        here: bool = False,
    ) -> Job:
        """Let it wait again after its run was interrupted or has failed.

        Args:
            job: the version known here.
            lease: seconds until others take it over; None where nobody could.
            not_before: when its next run may begin; None: at once.
            here: whether it waits here.

        Raises:
            LeaseLost: somebody else has it now.
            IllegalTransition: it may not run again, or was cancelled.
        """
        waits = job.requeue(not_before, self._holder if here else None)

        def requeue(newest: Job) -> Job:
            if newest.fence == waits.fence and _waits_alike(newest, waits):
                self.observers.tell(newest, State.RUNNING)
                return newest  # our own write, whose acknowledgement was lost
            _check_hands(newest, job.fence)
            return newest.requeue(not_before, waits.holder)

        return await self.patiently(partial(self._advance, job, requeue, lease=lease))

    async def learn(self, route: str, headers: RawHeaders) -> None:
        """Have the store remember what a route's responses vary by: later requests go by that.

        Before the outcome that frees the run's key: who comes after that has to know.
        """
        told, named = self._told.get(route, frozenset[str]()), named_in_vary(headers)
        if not unheard(told, named):
            return
        told |= await self.patiently(partial(self._store.learned, route))
        if names := unheard(told, named):
            await self.patiently(partial(self._store.learn, route, names))
        self._told[route] = told | names

    async def append(self, job: Job, offset: int, chunk: bytes, head: Head | None) -> None:
        """Keep a chunk of its response body, and with the first what is known of the response.

        Raises:
            LeaseLost: nobody wants it any more: the job is deleted, or somebody else's.
            StoreFull: there is no room for it.
            BodyLost: what stands before it is not there any more.
        """
        kept = partial(self._store.append_body, job.id, job.fence, offset, chunk, head=head)
        if not await self.patiently(kept, StoreFull, BodyLost):
            raise LeaseLost("the job has changed hands")

    async def append_once(self, job: Job, offset: int, chunk: bytes, head: Head | None) -> None:
        """The same, for those who wait for no second try.

        Raises:
            LeaseLost: nobody wants it any more.
            StoreError: whatever the store raises.
        """
        try:
            kept = await self._store.append_body(job.id, job.fence, offset, chunk, head=head)
        except Exception as error:
            self._availability.failed(error)
            raise
        if not kept:
            raise LeaseLost("the job has changed hands")

    async def progress(self, job: Job, progress: Progress) -> Job:
        """Record a report. Raises what the store raises: by then another may be the newest."""
        return await self._advance(
            job, lambda job: job if job.finished else job.with_progress(progress), fenced=True
        )

    async def join(self, job: Job, keys: Collection[Key]) -> Job:
        """Record one client more, and the keys that it brings.

        Raises:
            IllegalTransition: it is too late to join the job, or another request has been given
                one of the keys meanwhile.
            StoreError: whatever the store raises.
        """
        while True:
            joined = job.shared(1)
            if await self._store.replace(joined, keys=keys):
                return joined
            newest = await self._store.get(job.id)
            if newest is None:
                raise IllegalTransition("it is gone")
            if newest.version == job.version:
                raise IllegalTransition("another request came with the same key")
            job = newest

    async def leave(self, job: Job) -> Job:
        """Record one client less; if that leaves nobody, that it was asked to stop.

        Raises:
            IllegalTransition: it has ended, or was asked before; or it waits, and nobody is left.
            StoreError: whatever the store raises.
        """
        return await self._advance(
            job, lambda job: job.shared(-1) if job.clients > 1 else job.cancelling()
        )

    async def cancelling(self, job: Job) -> Job:
        """Record that it was asked to stop.

        Raises:
            IllegalTransition: it has ended, does not run, or was asked before.
            StoreError: whatever the store raises; nothing has changed then.
        """
        return await self._advance(job, lambda job: job.cancelling())

    async def withdraw(self, job: Job, ttl: float) -> bool:
        """Record that a job which waits in another process is cancelled.

        Returns:
            Whether it is; if not, it has changed in the meantime.
        """
        withdrawn = self._finished(job, State.CANCELLED, self._clock(), ttl)
        if not await self._store.replace(withdrawn):
            return False
        self.observers.tell(withdrawn, job.state)
        return True

    async def finish(
        self,
        job: Job,
        state: State,
        ttl: float,
        tail: bytes = b"",
        response: CapturedResponse | None = None,
        error: Problem | None = None,
        progress: Progress | None = None,
        why: str | None = None,
    ) -> Job:
        """Record its outcome. A job that is terminal already stays what it is (law 5).

        If the store has no room for the end of its response, and after a while still none, it has
        failed.

        Raises:
            LeaseLost: somebody else runs it now.
        """
        now = self._clock()
        try:
            done = job.finish(state, now, ttl, self._tombstone_ttl, response, error, progress)
        except IllegalTransition:
            return job
        if response is None:
            done = _without_body(done)
        try:  # the common case, spared the patience
            if await self._store.replace(done, tail=tail):
                if self.observers.of[state]:
                    self.observers.tell(done, job.state, why)
                return done
        except Exception as failure:
            self._availability.failed(failure)
        return await self._finish_late(job, done, ttl, tail, why)

    async def _finish_late(
        self, job: Job, done: Job, ttl: float, tail: bytes, why: str | None
    ) -> Job:
        """Go on with what `finish` has tried once.

        Args:
            job: the version known here.
            done: the last one, as it was tried.
            ttl: seconds until it expires.
            tail: as in `Store.replace`.
            why: what the log has of a failure, if that is more.
        """
        tried = {done.finished_at}
        outcome: dict[str, Any] = {
            "response": done.response,
            "error": done.error,
            "progress": done.progress,
        }

        def end(job: Job, state: State = done.state, **outcome: Any) -> Job:
            tried.add(now := self._clock())  # what comes late is kept as long as anything else
            return self._finished(job, state, now, ttl, **outcome)

        unkept = None
        if done.response is not None:
            given = {**outcome, "response": None}
            unkept = partial(end, state=State.FAILED, **given)
        ended = await self._end_patiently(job, partial(end, **outcome), unkept, tail)
        if ended.finished_at in tried:  # else somebody else ended it
            self.observers.tell(ended, job.state, why)
        return ended

    async def _end_patiently(
        self, job: Job, end: _Change, unkept: Callable[..., Job] | None, tail: bytes
    ) -> Job:
        """Put the last version in place, or another one if its body cannot be kept.

        Args:
            job: the version known here.
            end: makes the last one.
            unkept: makes the one without a response for an error, if `end` has one.
            tail: as in `Store.replace`.
        """
        late = anyio.current_time() + _FULL

        async def try_to_end() -> Job:
            try:
                return await self._end(job, end, tail)
            except StoreFull:
                if unkept is None or anyio.current_time() < late:
                    raise
                return await self._end(job, partial(unkept, error=NOT_KEPT))
            except BodyLost:
                if unkept is None:
                    raise
                return await self._end(job, partial(unkept, error=RESPONSE_LOST))

        return await self.patiently(try_to_end)

    async def _end(self, job: Job, end: _Change, tail: bytes = b"") -> Job:
        """Put the last version in place, whoever else changes the job meanwhile.

        Args:
            job: the version known here.
            end: makes the last one.
            tail: as in `Store.replace`.
        """
        fence = job.fence
        while not await self._store.replace(ended := end(job), tail=tail):
            newest = await self._newest(job)
            if newest is None:
                return job
            # The next fence is that of an end without a response, perhaps this one.
            if newest.finished and newest.fence <= fence + 1:
                return newest
            _check_hands(newest, fence)
            job = newest
        return ended

    async def take_deliveries(self, lease: float, limit: int) -> Sequence[Job]:
        """Jobs whose message is to be delivered here now: see `Store.claim_deliveries`."""
        return await self._store.claim_deliveries(self._clock(), lease, limit)

    async def note(self, job: Job, delivery: Delivery) -> Job | None:
        """Record what has become of a job's message; the job stays what it is (law 5).

        Args:
            job: the version whose message was delivered, or tried to be.
            delivery: what is to be known of it from now on.

        Returns:
            The version that says so; None if its message is somebody else's now, or nobody's.

        Raises:
            StoreError: whatever the store raises.
        """
        known = job.delivery
        while not await self._store.replace(noted := job.noted(delivery)):
            try:
                newest = await self._store.get(job.id)
            except UnreadableRecord:  # a process of a newer version has changed it
                return None
            if newest is None or newest.owed is None or newest.delivery != known:
                return None
            job = newest  # it has expired meanwhile
        return noted

    async def redeliver(self, job: Job) -> Job:
        """Record that the message of a job which has ended is to be delivered now, or once more.

        Raises:
            IllegalTransition: it has none, has not ended, or is gone.
            StoreError: whatever the store raises.
        """
        now = self._clock()

        def again(job: Job) -> Job:
            if job.delivery is None or not job.finished:
                raise IllegalTransition("there is no message to deliver")
            return job.noted(job.delivery.asked_again(now))

        return await self._advance(job, again)

    async def settle(self, job: Job) -> None:
        """Record that a job has no message any more.

        Raises:
            StoreError: whatever the store raises.
        """
        await self._advance(job, lambda job: job if job.delivery is None else job.settled())

    async def bury(self, job: Job, *, remember: bool) -> None:
        """Leave a tombstone in its place, or, if nobody ever knew of it, one that goes at once."""
        now = self._clock()
        ttl = self._tombstone_ttl if remember else 0.0
        await self._advance(job, lambda job: job if job.gone else job.tombstone(now, ttl))

    async def expire(self, job: Job) -> None:
        """Leave in the place of a job that has expired what a sweep would leave."""
        now = self._clock()
        await self._advance(job, lambda job: job if job.gone else job.tombstone(now))

    async def confirm(self, job: Job) -> Job:
        """Record that a new job is accepted, if nothing else says so already."""
        sure = partial(self._advance, job, lambda job: job if job.confirmed else job.confirm())
        return await self.patiently(sure)

    async def take_back(self, job: Job) -> bool:
        """Bury a new job of which nobody was told, unless it has got on.

        Also where it is not there: the call that brings it may still be on its way, in a server
        that stood still or in a thread, and then finds its tombstone.

        Returns:
            Whether it is buried. If not, somebody has begun it, or taken it over.

        Raises:
            StoreError: whatever the store raises.
        """
        tombstone = job.tombstone(self._clock(), _LATEST)
        while not await self._store.replace(tombstone):
            newest = await self._store.get(job.id)
            if newest is None:
                try:
                    await self._store.create(job._replace(replayable=False), lease=self._lease)
                except StoreFull:
                    return True  # there is no room for the other one, either
            elif newest.gone or newest.confirmed:
                return newest.gone
        self.observers.tell(tombstone, job.state)
        return True

    async def patiently(self, ask: Callable[[], Awaitable[T]], *further: type[Exception]) -> T:
        """Ask the store until it answers: an accepted job must come to its end (law 1).

        Args:
            ask: asks it.
            further: what else is not asked for again, but raised.

        Raises:
            IllegalTransition: whatever kind of it the store or the job raises.
            UnreadableRecord: it will not be readable the next time, either.
        """
        answer = await self._availability.patiently(
            ask, permanent=(IllegalTransition, UnreadableRecord, *further)
        )
        if self._availability.away:
            self._availability.answered()
        return answer

    def _finished(self, job: Job, state: State, now: float, ttl: float, **outcome: Any) -> Job:
        done = job.finish(state, now, ttl=ttl, tombstone_ttl=self._tombstone_ttl, **outcome)
        return _without_body(done) if done.response is None else done

    async def _advance(
        self,
        job: Job,
        change: _Change,
        *,
        fenced: bool = False,
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        """Put the next version in place, whoever else changes the job meanwhile.

        Args:
            job: the version known here.
            change: makes the next version of the one that is there; the same one to leave it.
            fenced: whether only the fence known here may make the change.
            lease: as in `Store.replace`.
            bounds: as in `Store.replace`.
        """
        fence = job.fence
        while True:
            changed = change(job)
            if changed is job:
                return job
            if await self._store.replace(changed, lease=lease, bounds=bounds):
                moved = changed.state is not job.state or changed.gone
                if moved and self.observers.of[changed.state]:
                    self.observers.tell(changed, job.state)
                return changed
            newest = await self._newest(job)
            if newest is None:
                return job
            if fenced:
                _check_hands(newest, fence)
            job = newest

    async def _newest(self, job: Job) -> Job | None:
        """The newest version; None if it is deleted, so that nobody can ask for it any more."""
        try:
            newest = await self._store.get(job.id)
        except UnreadableRecord as error:  # a process of a newer version has it now, or nobody
            raise LeaseLost(f"job {job.id} cannot be read any more") from error
        return None if newest is None or newest.gone else newest


def _without_body(job: Job) -> Job:
    """The same version; what there is of a body goes with its fence."""
    return job._replace(fence=job.fence + 1)


def _waits_alike(job: Job, other: Job) -> bool:
    return job.stage is State.QUEUED and (job.not_before, job.holder, job.runs) == (
        other.not_before,
        other.holder,
        other.runs,
    )


def _check_hands(job: Job, fence: int) -> None:
    if job.fence != fence:
        raise LeaseLost(f"job {job.id} has the fence {job.fence}, and not {fence}")
