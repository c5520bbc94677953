"""The job: the durable record of one accepted request and its outcome."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from raincheck.errors import IllegalTransition, Problem
from raincheck.messages import CapturedResponse


class State(StrEnum):
    """Where a job stands. On the wire the field is called `status`."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
    # A cancel that overtakes the record of the start finds nothing to call cancelling.
    # Back to the queue goes what was interrupted, or has failed, and may run again.
    State.RUNNING: frozenset(
        {State.QUEUED, State.CANCELLING, State.CANCELLED, State.SUCCEEDED, State.FAILED}
    ),
    State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED, State.FAILED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""Every move a job may make. A state without moves is terminal and never changes (law 5)."""

LEAST_STORED = 4096
"""Bytes that each job that has ended counts for with `Bounds.stored`: its record and its places in
indexes take that, and those that are counted are not too many."""

_new = tuple.__new__

# Named here, for every job: as attributes of their class each of them is a call on Python 3.11.
_QUEUED, _STARTED = State.QUEUED, State.RUNNING

_WAITING = (State.QUEUED,)
_RUNNING = State.RUNNING, State.CANCELLING


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a handler says it is.

    Attributes:
        fraction: 0 to 1; None if it has only said something.
        message: free text, or None.
    """

    fraction: float | None
    message: str | None = None

    @classmethod
    def of(cls, fraction: float | None, message: str | None = None) -> Progress:
        """Clamp `fraction` to 0..1, and cut `message`; what is not a number counts as 0."""
        if fraction is not None:
            fraction = float(fraction)
            fraction = 0.0 if math.isnan(fraction) else min(1.0, max(0.0, fraction))
        return cls(fraction, None if message is None else _cut(str(message)))

    def after(self, earlier: Progress | None) -> Progress:
        """This report, with the fraction of an earlier one if it has none."""
        if self.fraction is not None or earlier is None:
            return self
        return Progress(earlier.fraction, self.message)


MESSAGE_SIZE = 4096
"""Bytes that the message of a report has at most, in UTF-8."""


def _cut(message: str) -> str:
    if 4 * len(message) <= MESSAGE_SIZE:
        return message
    written = message[:MESSAGE_SIZE].encode("utf-8", "surrogatepass")
    end = min(len(written), MESSAGE_SIZE)
    while end < len(written) and written[end] & 0xC0 == 0x80:  # inside of a character
        end -= 1
    return written[:end].decode("utf-8", "surrogatepass")


class Trace(NamedTuple):
    """A place in a distributed trace, as header fields name it (W3C Trace Context, §3.2 and §3.3).

    Attributes:
        parent: the value of `traceparent`.
        state: the value of `tracestate`; empty if there is none.
    """

    parent: str
    state: str = ""


LOOK_AGAIN = 60.0
"""Seconds after which a job that is to be told of, and has not ended, is looked at again: also who
does not know what is owed may have ended it."""

LONGEST_DELIVERY = 7 * 24 * 60 * 60.0
"""Seconds for which an expired job's tombstone is kept at most until its message is delivered."""


class Delivery(NamedTuple):
    """The message that somebody is owed when a job ends, and what has become of it.

    Attributes:
        url: where it goes.
        base: where the job's URLs begin, as its 202 had them.
        asked: whether the request asked for it; else the author of its route did.
        status: `"pending"`, `"delivered"`, or `"failed"` once nobody tries any more.
        not_before: while it is pending: it is not tried before this time.
        deliveries: how often it was tried.
        earlier: how often of that before somebody last asked for it again.
        notes: versions of the job since its outcome, which tell of the message alone.
        last_error: why the last try has failed; None if it has not.
        response: status, media type and size of the job's response, which it says also when that
            has expired; None if there is none.
    """

    url: str
    base: str
    asked: bool = False
    status: str = "pending"
    not_before: float = 0.0
    deliveries: int = 0
    earlier: int = 0
    notes: int = 0
    last_error: str | None = None
    response: tuple[int, str | None, int] | None = None

    @property
    def pending(self) -> bool:
        """Whether it is still to be delivered."""
        return self.status == "pending"

    @property
    def tries(self) -> int:
        """How often it was tried since it was last asked for."""
        return self.deliveries - self.earlier

    def about(self, response: CapturedResponse | None) -> Delivery:
        """The same, of a job that has ended with this response."""
        if response is None:
            return self
        kind = response.header(b"content-type")
        told = None if kind is None else kind.decode("latin-1")
        return self._replace(response=(response.status, told, response.size))

    @property
    def outline(self) -> CapturedResponse | None:
        """What is known of the response."""
        if self.response is None:
            return None
        status, kind, size = self.response
        headers = () if kind is None else ((b"content-type", kind.encode("latin-1")),)
        return CapturedResponse(status, headers, size)

    def tried(self, *, error: str | None = None, again_at: float | None = None) -> Delivery:
        """What has become of it after another try.

        Args:
            error: why it has failed; None: it has not.
            again_at: when it is tried again; None: it is not.
        """
        status = "delivered" if error is None else "failed" if again_at is None else "pending"
        return self._replace(
            status=status,
            not_before=self.not_before if again_at is None else again_at,
            deliveries=self.deliveries + 1,
            last_error=error,
        )

    def asked_again(self, now: float) -> Delivery:
        """The same, as if it had not been tried yet."""
        return self._replace(status="pending", not_before=now, earlier=self.deliveries)


class Job(NamedTuple):
    """One accepted request and its outcome. A value: every change makes a new one.

    A tuple, since two are made for every job, each in a third of a frozen dataclass's time.
    Times are seconds since the epoch.

    Attributes:
        id: 128 random bits or more, in URL-safe letters.
        route: the name of the marked endpoint, or the path rule's key.
        state: see `TRANSITIONS`.
        created_at: when it was accepted.
        version: 1 at first, one more with every change.
        fence: how often it has changed hands: the fencing token. Only who has the newest may
            renew its lease and write its outcome.
        runs: how often it has begun to run.
        max_runs: how often it may, should a run be interrupted, or fail.
        replayable: whether its captured request is kept, for a run that is still to come.
        holder: the process that it waits or runs in, by the name that it has given itself.
        queue: the runner's queue that it waits in, if that has several.
        started_at, finished_at: when its handler began, and when it became terminal.
        expires_at: from then on it is gone; None until it is terminal.
        purge_at: from then on not even the tombstone is left.
        progress: what the handler last reported.
        response: the handler's response, once it is complete.
        error: why there is no response, for a job that failed without one.
        gone: this is a tombstone: the id was a job's, and little else is kept.
        owner: who may see it; None if its id is enough.
        clients: how many requests share it, less those that were cancelled.
        orphaned_at: since when those who were to run it did not have its route.
        synchronous: whether its request was answered in place, and it only keeps that answer for
            whoever sends the same key again.
        not_before: while it is queued: it does not begin before this time.
        begin_by: until it has begun for the first time: from then on it does not begin any more.
        trace: where in a trace it was accepted, if that is traced.
        delivery: the message that its end is told by; None if nobody is told.
        extra: fields of its record that only a newer version knows; kept as they came, but for
            what a tombstone keeps.
    """

    id: str
    route: str
    state: State
    created_at: float
    version: int = 1
    fence: int = 0
    runs: int = 0
    max_runs: int = 1
    replayable: bool = False
    holder: str | None = None
    queue: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    purge_at: float | None = None
    progress: Progress | None = None
    response: CapturedResponse | None = None
    error: Problem | None = None
    gone: bool = False
    owner: str | None = None
    clients: int = 1
    orphaned_at: float | None = None
    synchronous: bool = False
    not_before: float | None = None
    begin_by: float | None = None
    trace: Trace | None = None
    delivery: Delivery | None = None
    extra: Mapping[str, Any] | None = None

    @classmethod
    def accepted(
        cls,
        id: str,
        route: str,
        now: float,
        runs: bool,
        max_runs: int = 1,
        replayable: bool = False,
        holder: str | None = None,
        queue: str | None = None,
        owner: str | None = None,
        trace: Trace | None = None,
    ) -> Job:
        """The first version of a job, which is accepted `now`, and `runs` at once or is queued.

        The other arguments are the fields that they are called after.
        """
        # By the order of its fields, as in `finish`: this is done for every job as well.
        state, started = (_STARTED, 1) if runs else (_QUEUED, 0)
        return _new(
            cls,
            (
                id,
                route,
                state,
                now,
                1,  # version
                1,  # fence
                started,
                max_runs,
                replayable,
                holder,
                queue,
                now if runs else None,
                None,  # finished_at
                None,  # expires_at
                None,  # purge_at
                None,  # progress
                None,  # response
                None,  # error
                False,  # gone
                owner,
                1,  # clients
                None,  # orphaned_at
                False,  # synchronous
                None,  # not_before
                None,  # begin_by
                trace,
                None,  # delivery
                None,  # extra
            ),
        )

    @property
    def finished(self) -> bool:
        """Whether the state is terminal."""
        return not TRANSITIONS[self.state]

    @property
    def joinable(self) -> bool:
        """Whether another request may still share its run."""
        return not (self.finished or self.gone or self.state is State.CANCELLING)

    @property
    def bodied(self) -> bool:
        """Whether a response body is kept with it: that of its response, or what it has of one."""
        return not self.gone and (self.response is not None or not self.finished)

    @property
    def counts_for(self) -> str:
        """The route whose places it takes (see `Bounds`); empty if it takes none."""
        return "" if self.synchronous else self.route

    @property
    def stage(self) -> State | None:
        """Its state as long as it takes a place; None once it is finished or gone."""
        return None if self.gone or self.finished else self.state

    @property
    def counts_with(self) -> tuple[State, ...]:
        """The states whose jobs count together with it (see `Bounds`); none if it takes none."""
        stage = self.stage
        return () if stage is None else _WAITING if stage is State.QUEUED else _RUNNING

    @property
    def stored(self) -> int:
        """Bytes that it counts for with `Bounds.stored`: what it keeps once it has ended."""
        if self.gone or not self.finished:
            return 0
        size = 0 if self.response is None else self.response.size
        return max(size, LEAST_STORED)

    @property
    def due_at(self) -> float | None:
        """When a sweep turns to it; None: never, as it is."""
        return self.purge_at if self.gone else self.expires_at

    @property
    def deliver_at(self) -> float | None:
        """When somebody turns to its message; None: never, as it is."""
        if self.delivery is None or not self.delivery.pending:
            return None
        return self.delivery.not_before if self.stage is None else self.created_at + LOOK_AGAIN

    @property
    def owed(self) -> Delivery | None:
        """Its message, once it has ended and as long as that is to be delivered."""
        return self.delivery if self.stage is None and self.deliver_at is not None else None

    @property
    def news(self) -> int:
        """The version that its client is told of: what becomes of its message is no news of it."""
        return self.version if self.delivery is None else self.version - self.delivery.notes

    def ready(self, routes: Collection[str], now: float) -> bool:
        """Whether who has these routes may begin it now."""
        waits = self.state is State.QUEUED and not self.gone
        return (
            waits and self.route in routes and (self.not_before is None or self.not_before <= now)
        )

    def overdue(self, now: float) -> bool:
        """Whether it has waited so long for its first run that it does not begin any more."""
        if self.begin_by is None or self.runs or self.stage is not State.QUEUED:
            return False
        return self.begin_by <= now

    @property
    def next_run_at(self) -> float | None:
        """While it waits for another run: the time before which that does not begin."""
        return self.not_before if self.stage is State.QUEUED else None

    def begun_by(self, holder: str, now: float) -> bool:
        """Whether this process began it at this time, and it runs."""
        runs = self.state is State.RUNNING and not self.gone
        return runs and self.holder == holder and self.started_at == now

    @property
    def confirmed(self) -> bool:
        """Whether it is known to be accepted.

        A new job that is refused after all has no second version but its tombstone. Until there is
        one, only the process that made it knows what became of it.
        """
        return self.version > 1

    def expired(self, now: float) -> bool:
        """Whether only a tombstone is left, or should be."""
        return self.gone or (self.expires_at is not None and self.expires_at <= now)

    def with_progress(self, progress: Progress) -> Job:
        """The next version, with this progress.

        Raises:
            IllegalTransition: the job is terminal.
        """
        if self.finished:
            raise IllegalTransition(f"a {self.state} job makes no progress")
        return self._replace(version=self.version + 1, progress=progress)

    def shared(self, clients: int) -> Job:
        """The next version, with one client more or less.

        Raises:
            IllegalTransition: it is too late to join the job, or to leave it to others.
        """
        if not self.joinable:
            raise IllegalTransition(f"a {self.state} job is not shared any more")
        if self.clients + clients < 1:
            raise IllegalTransition("there is nobody to leave the job to")
        return self._replace(version=self.version + 1, clients=self.clients + clients)

    def confirm(self) -> Job:
        """The next version, which is no different: whoever made it has accepted it."""
        return self._replace(version=self.version + 1)

    def start(self, now: float, holder: str | None = None) -> Job:
        """The next version, running. The captured request goes with the last run."""
        runs = self.runs + 1
        return self._move(
            State.RUNNING,
            fence=self.fence + 1,
            runs=runs,
            replayable=self.replayable and runs < self.max_runs,
            holder=holder,
            started_at=now,
            orphaned_at=None,
            not_before=None,
            begin_by=None,
        )

    def held_by(self, holder: str | None) -> Job:
        """The next version, waiting elsewhere.

        Raises:
            IllegalTransition: it does not wait.
        """
        if self.state is not State.QUEUED:
            raise IllegalTransition(f"a {self.state} job does not wait")
        return self._replace(version=self.version + 1, fence=self.fence + 1, holder=holder)

    def given_back(self, now: float) -> Job:
        """The next version, waiting for a process that has its route.

        Raises:
            IllegalTransition: it does not wait.
        """
        since = now if self.orphaned_at is None else self.orphaned_at
        return self.held_by(None)._replace(orphaned_at=since)

    def requeue(self, not_before: float | None = None, holder: str | None = None) -> Job:
        """The next version, waiting again after its run was interrupted, or has failed.

        Args:
            not_before: when the next run may begin; None: at once.
            holder: the process that it waits in, if that is known.

        Raises:
            IllegalTransition: it does not run, or its captured request is not kept.
        """
        if not self.replayable:
            raise IllegalTransition("its captured request is not kept")
        return self._move(
            State.QUEUED,
            fence=self.fence + 1,
            holder=holder,
            started_at=None,
            progress=None,
            not_before=not_before,
        )

    def cancelling(self) -> Job:
        """The next version, asked to stop: nobody can join it any more."""
        return self._move(State.CANCELLING)

    def finish(
        self,
        state: State,
        now: float,
        ttl: float,
        tombstone_ttl: float,
        response: CapturedResponse | None = None,
        error: Problem | None = None,
        progress: Progress | None = None,
    ) -> Job:
        """The last version.

        Args:
            state: a terminal state.
            now: seconds since the epoch.
            ttl: seconds until it expires.
            tombstone_ttl: seconds that its tombstone stays after that.
            response: the handler's response, if there is one.
            error: the problem, if there is none.
            progress: the last report, if it is newer than the one kept.

        Raises:
            IllegalTransition: the job is terminal already, or `state` is not.
        """
        # Every job finishes once: spelt by its fields' order, which takes a third of the time.
        id, route, before, created_at, version, fence, runs, max_runs = self[:8]
        if TRANSITIONS[state]:
            raise IllegalTransition(f"{state} is not how a job finishes")
        if state not in TRANSITIONS[before]:
            self._check(state)
        expires_at = now + ttl
        return _new(
            Job,
            (
                id,
                route,
                state,
                created_at,
                version + 1,
                fence,
                runs,
                max_runs,
                False,  # replayable
                None,  # holder
                None,  # queue
                self.started_at,
                now,
                expires_at,
                expires_at + tombstone_ttl,
                progress or self.progress,
                response,
                error,
                False,  # gone
                self.owner,
                self.clients,
                None,  # orphaned_at
                self.synchronous,
                None,  # not_before
                None,  # begin_by
                self.trace,
                self.delivery and self.delivery.about(response),
                self.extra,
            ),
        )

    def noted(self, delivery: Delivery) -> Job:
        """The next version, with what has become of its message."""
        noted = self._replace(
            version=self.version + 1, delivery=delivery._replace(notes=delivery.notes + 1)
        )
        if self.gone and not delivery.pending:  # what its tombstone had for the message can go
            return noted.tombstone(noted.expires_at or 0.0)._replace(version=noted.version)
        return noted

    def settled(self) -> Job:
        """The next version, without a message."""
        return self._replace(version=self.version + 1, delivery=None)

    def tombstone(self, now: float, tombstone_ttl: float | None = None) -> Job:
        """What is left when the job expires or is deleted: its id, and that it was there.

        Of one that has expired, and of which somebody is still to be told, what to tell as well.
        """
        purge_at = self.purge_at if tombstone_ttl is None else now + tombstone_ttl
        tombstone = self._tombstone(now, purge_at)
        if tombstone_ttl is not None or self.owed is None:
            return tombstone
        return tombstone._replace(
            purge_at=max(purge_at or now, now + LONGEST_DELIVERY),
            runs=self.runs,
            started_at=self.started_at,
            finished_at=self.finished_at,
            error=self.error,
            progress=self.progress,
            delivery=self.delivery,
        )

    def _tombstone(self, now: float, purge_at: float | None) -> Job:
        return Job(
            id=self.id,
            route=self.route,
            state=self.state,
            created_at=self.created_at,
            version=self.version + 1,
            fence=self.fence,
            expires_at=now if self.expires_at is None else min(now, self.expires_at),
            purge_at=purge_at,
            gone=True,
            owner=self.owner,
        )

    def _move(self, state: State, **changes: Any) -> Job:
        self._check(state)
        return self._replace(state=state, version=self.version + 1, **changes)

    def _check(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"a {self.state} job cannot become {state}")


class Key(NamedTuple):
    """A name under which another request may be the same job. At any time it is one job's.

    Attributes:
        name: as `idempotency.scoped` makes it.
        fingerprint: of the request that came with it; None if there is nothing to compare.
        lasting: whether the job keeps it until it is gone; else only while it is `joinable`.
    """

    name: str
    fingerprint: str | None = None
    lasting: bool = True


class Bounds(NamedTuple):
    """How many jobs may be in the same state as one that comes to it, in all processes together.

    A job that is `cancelling` counts as running: its handler has not stopped yet.

    Attributes:
        route: of its route; None: any number.
        owner: of its owner on its route; None: any number. A job without an owner has no such
            bound.
        stored: bytes that jobs of its owner on its route may keep that have ended, when one is
            created; from there on another has no room. Those count that were created under such a
            bound, each for what it has `stored`. None: any number. A job without an owner has no
            such bound.
    """

    route: int | None = None
    owner: int | None = None
    stored: int | None = None
