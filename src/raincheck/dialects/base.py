"""The dialect port: one spelling of jobs on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from raincheck.errors import Problem
from raincheck.job import Job, State
from raincheck.messages import RawHeaders


class Reply(NamedTuple):
    """A response that a dialect has written."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


class Mount(NamedTuple):
    """Where the status routes stand.

    Attributes:
        url: their URL, without a slash at its end: `/jobs`, or `https://api.example.org/jobs`.
        absolute: whether it has scheme and host.
    """

    url: str
    absolute: bool


class Urls(NamedTuple):
    """Where a page finds the routes of its job.

    They are relative to the page's own URL, and so right wherever a proxy shows it.

    Attributes:
        result: the status URL, where the page itself stands.
        monitor: says how the job stands, to a GET, in a document that has at least the plain
            dialect's `status`, `progress`, `message`, `queue_position` and `retry_after`.
        events: the same document as an event stream; None where there is none.
        cancel: a POST asks the job to stop; None where a POST cannot.
        delete: a POST has it forgotten; None where a POST cannot.
    """

    result: str
    monitor: str
    events: str | None
    cancel: str | None
    delete: str | None = None


class Action(Enum):
    """What a request to a job's routes asks for."""

    RESULT = "the poll: how the job stands, until that becomes its response"
    MONITOR = "how the job stands, finished or not"
    EVENTS = "the same, and again whenever it changes"
    STREAM = "its response while it is produced"
    CANCEL = "that it stops"
    DELETE = "that it is forgotten"
    LIST = "the jobs that there are, of whomever asks, or for an operator all"
    TOTALS = "how many there are, for an operator"


class Place(NamedTuple):
    """What stands at a path below the mount.

    Attributes:
        id: the job's that is meant, if there is such a job.
        actions: what each method does there.
    """

    id: str
    actions: Mapping[str, Action]


class Outlook(NamedTuple):
    """What is expected of an unfinished job.

    Attributes:
        retry_after: seconds until the next poll makes sense, at least 1.
        queue_position: 1 for the job whose turn is next; None unless it is queued.
        completion: seconds since the epoch at which it is expected to finish; None if unknown.
    """

    retry_after: int
    queue_position: int | None = None
    completion: float | None = None


class Selection(NamedTuple):
    """Which jobs of a list are asked for.

    Attributes:
        states: in any of these; none: in any.
        route, owner: of this one; None: of any.
        since, until: accepted then or later, and before; seconds since the epoch, None: ever.
        after: where the page before ended; None: the first page.
        limit: how many at most.
    """

    states: Collection[State] = ()
    route: str | None = None
    owner: str | None = None
    since: float | None = None
    until: float | None = None
    after: str | None = None
    limit: int = 50


class Listed(NamedTuple):
    """A part of a list of jobs, for those who asked for it.

    Attributes:
        jobs: the jobs, newest first, each with what is expected of it; None once it is finished.
        next: where the next part is, as a URL; None if there is none.
        operator: whether it is for an operator, who sees whose they are.
    """

    jobs: Sequence[tuple[Job, Outlook | None]]
    next: str | None
    operator: bool


class Census(NamedTuple):
    """How many jobs there are in a whole deployment.

    Attributes:
        routes: by route and state, how many; when the first of them was accepted; and how many
            seconds those that have ended have run.
        workers: by name, each process that holds jobs which run, and how many those are.
    """

    routes: Mapping[tuple[str, State], tuple[int, float | None, float]]
    workers: Mapping[str, int]

    def by_route(self) -> dict[str, dict[State, tuple[int, float | None, float]]]:
        """The same, by route and then by state; the routes in order."""
        found: dict[str, dict[State, tuple[int, float | None, float]]] = {}
        for (route, state), total in sorted(self.routes.items()):
            found.setdefault(route, {})[state] = total
        return found


class Dialect(ABC):
    """Has the routes of jobs, their words and their URLs.

    Pure: values in, a `Reply` out; no I/O, no clock.
    """

    unasked: bool = True
    """Whether it may answer 202 to a request without `Prefer: respond-async`."""

    @abstractmethod
    def place(self, path: str) -> Place | None:
        """What stands at a path below the mount, which begins with a slash; None for nothing."""

    def urls(self, job: Job, mount: Mount) -> Urls | None:
        """Where a page finds the routes of a job; None, the default, if no page could use them."""
        return None

    @abstractmethod
    def accepted(self, job: Job, mount: Mount, outlook: Outlook, applied: bytes | None) -> Reply:
        """The answer to the request that was accepted.

        Args:
            job: the job.
            mount: where the status routes stand.
            outlook: what is expected of it.
            applied: the value of `Preference-Applied` (RFC 7240 §3), or None.
        """

    @abstractmethod
    def navigated(self, job: Job, mount: Mount) -> Reply:
        """The same for a browser that navigates."""

    @abstractmethod
    def pending(self, job: Job, mount: Mount, outlook: Outlook) -> Reply:
        """The status URL of a job that is not finished."""

    @abstractmethod
    def monitor(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        """The monitor; no outlook once the job is finished."""

    @abstractmethod
    def result(self, job: Job) -> tuple[int, RawHeaders]:
        """Status and header fields under which a job's response is served.

        Args:
            job: the job, with its response; that may be still to end, where the job is.
        """

    @abstractmethod
    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        """The answer to a cancel; no outlook once the job has stopped."""

    @abstractmethod
    def deleted(self, job: Job, mount: Mount, outlook: Outlook | None, *, finished: bool) -> Reply:
        """The answer to a delete.

        Args:
            job: the job just before it was forgotten.
            mount: where the status routes stand.
            outlook: what is expected of it, unless it has stopped.
            finished: whether it had finished by itself before the delete.
        """

    @abstractmethod
    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        """A problem.

        Args:
            problem: the problem.
            job: the job that the answer is about, if there is one to tell of.
            retry_after: seconds until another try makes sense, if there is a time to name.
        """

    # --- lists: for a dialect whose places have `Action.LIST` and `Action.TOTALS` ----------------

    def selection(self, query: str) -> Selection | Problem:
        """Which jobs the query of a URL asks for, or what is wrong with it."""
        raise NotImplementedError

    def next(self, query: str, after: str) -> str:
        """The same query, for the page that begins where another has ended."""
        raise NotImplementedError

    def listed(self, listed: Listed, mount: Mount) -> Reply:
        """A part of a list."""
        raise NotImplementedError

    def totals(self, census: Census) -> Reply:
        """How many there are."""
        raise NotImplementedError
