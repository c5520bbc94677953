"""The telemetry port: what is told of jobs to whoever counts, traces and logs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from starlette.types import Scope

from raincheck.job import Job, State, Trace
from raincheck.stores.base import Total

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds, in seconds, of the buckets that waits and durations are counted in."""


class Transition(NamedTuple):
    """A job has come to another state, in the store as well.

    Attributes:
        job: the version that it has come to; `gone` if it was deleted.
        before: the state before that; None for a job that is new.
        why: what the log has of a failure, if that is more than its `error`.
    """

    job: Job
    before: State | None
    why: str | None = None

    @property
    def begins(self) -> bool:
        """Whether a run of it begins by this."""
        return self.job.state is State.RUNNING and self.before is not State.RUNNING

    @property
    def ends(self) -> bool:
        """Whether it has finished by this."""
        return self.job.finished and not self.job.gone

    @property
    def waited(self) -> float | None:
        """Seconds from its acceptance to its first run, if that begins; else None."""
        job = self.job
        if not self.begins or job.runs != 1 or job.started_at is None:
            return None
        return max(0.0, job.started_at - job.created_at)  # the clock may have been put back

    @property
    def ran(self) -> float | None:
        """Seconds that its last run took, if it has finished and had one; else None."""
        job = self.job
        if not self.ends or job.started_at is None or job.finished_at is None:
            return None
        return max(0.0, job.finished_at - job.started_at)

    @property
    def reason(self) -> str:
        """Why it has failed, of a bounded number of words; empty if it has not."""
        return reason_of(self.job)


def reason_of(job: Job) -> str:
    """Why a job has failed: a problem's name, or `handler-response`; empty if it has not."""
    if job.error is not None:
        return job.error.name
    return "handler-response" if job.state is State.FAILED else ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the jobs of one middleware are at, in this process.

    Attributes:
        running: handlers that run.
        queued: requests that wait for their turn.
    """

    running: int
    queued: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The newest totals of a store, over all processes that share it.

    Attributes:
        totals: as `Store.totals` gives them.
        at: when they were read, in seconds since the epoch.
    """

    totals: Mapping[tuple[str, State], Total]
    at: float


class Source(Protocol):
    """What a telemetry may ask at any time and from any thread; nothing here waits.

    Attributes:
        clock: gives seconds since the epoch.
        figures: the newest; None before the first.
    """

    clock: Callable[[], float]

    @property
    def figures(self) -> Figures | None: ...

    def statistics(self) -> Statistics:
        """How much runs and waits in this process."""


class Span(ABC):
    """A piece of a job's life that is followed: its acceptance, or one run.

    Attributes:
        trace: its place in a trace, for whatever comes after it; None: there is none.
    """

    trace: Trace | None = None

    def enter(self) -> None:  # noqa: B027 - not every span is to be found by what runs inside
        """The running task is in it from now on, to its end."""

    @abstractmethod
    def end(self, job: Job | None, error: BaseException | None = None) -> None:
        """It is over.

        Args:
            job: the newest version known here; None if there is none.
            error: what has come out of the app, or has kept the request from being accepted.
        """


class Telemetry:
    """Is told of what becomes of jobs. Derive from it, and override what you want to hear of.

    All of it is called on the event loop, between two steps of a job: it must not block. What it
    raises is logged, and changes nothing. Answers that are kept for an `Idempotency-Key`
    (`job.synchronous`) come as well.
    """

    states: ClassVar[Collection[State]] = frozenset(State)
    """Transitions to these are told. Those that nobody wants to hear of cost nothing."""

    figures: ClassVar[bool] = False
    """Whether it reads `Source.figures`: then the store is asked for them each second."""

    def bind(self, source: Source) -> None:
        """Belong to these jobs; called once for each `Jobs` that it is given to.

        Raises:
            ConfigurationError: it has others, and can have only one.
        """

    def transition(self, change: Transition) -> None:
        """A job has come to another state, be it by this process or by its word."""

    def raised(self, job: Job, error: BaseException, now: float) -> None:
        """A job's app has raised.

        Args:
            job: the newest version known here.
            error: what.
            now: seconds since the epoch.
        """

    def repeats(self, job: Job, reason: str) -> None:
        """A run of a job has failed here, and it waits for another one (`Policy(retry=...)`).

        Args:
            job: the version that waits. Its `runs` count the one that has failed; it may run again
                from its `not_before` on, in seconds since the epoch.
            reason: how it has failed: `handler-response`, `crashed` or `timeout`.
        """

    def lost(self, job: Job, now: float, *, ended: bool, deleted: bool) -> None:
        """A job of this process is another's, or nobody's, and what it does here is dropped.

        Args:
            job: the newest version known here.
            now: seconds since the epoch.
            ended: whether its handler has come to its end here.
            deleted: whether its client has deleted it, for certain.
        """

    def held(self, seconds: float, routes: Collection[str]) -> None:
        """Nothing else ran on the event loop for so long, while jobs of these routes did."""

    def accepting(self, route: str, scope: Scope) -> Span | None:
        """A request is about to become a job of this route; its span ends when it is one."""
        return None

    def running(self, job: Job) -> Span | None:
        """A run of a job begins; its span ends when nothing of the run is left."""
        return None
