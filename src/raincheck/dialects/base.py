"""The dialect port: one spelling of jobs on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from raincheck.errors import Problem
from raincheck.job import Job, State
from raincheck.messages import RawHeaders
from raincheck.preferences import parse


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
        redeliver: a POST has its end told once more; None where a POST cannot.
    """

    result: str
    monitor: str
    events: str | None
    cancel: str | None
    delete: str | None = None
    redeliver: str | None = None


class Action(Enum):
    """What a request to a job's routes asks for."""

    RESULT = "the poll: how the job stands, until that becomes its response"
    MONITOR = "how the job stands, finished or not"
    WAIT = "the same, once the job has finished or the asker's time is over"
    EVENTS = "the same, and again whenever it changes"
    STREAM = "its response while it is produced"
    CANCEL = "that it stops"
    DELETE = "that it is forgotten, and stops before that"
    DISMISS = "that it stops, or is forgotten if it has"
    FORGET = "that it is forgotten, which only a job that has finished can be"
    REDELIVER = "that its end is told once more to whoever is owed that, for an operator"
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


class Asked(NamedTuple):
    """What a request to a job's routes says beside its path.

    Attributes:
        query: of its URL.
        fields: its header fields, as ASGI has them.
        body: what it has in it, up to 4 KiB; only if it asks for `Action.WAIT`, else empty.
    """

    query: str
    fields: Sequence[tuple[bytes, bytes]]
    body: bytes = b""


class Content(NamedTuple):
    """The body of a job's response, for who may see it and a dialect that puts it into documents.

    Attributes:
        body: all of it; None if it is larger than the dialect `embeds`.
    """

    body: bytes | None


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
        here: where this part is, as a URL.
        after: the cursor of the next part; None if there is none.
    """

    jobs: Sequence[tuple[Job, Outlook | None]]
    next: str | None
    operator: bool
    here: str = ""
    after: str | None = None


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

    Pure: values in, a `Reply` out; no I/O, no clock. The methods below a line are for a dialect
    whose places have the actions that the line names; one that has none of these leaves them out.
    """

    embeds: int = 0
    """Bytes of a response's body that a document has in it at most. 0, the default: none has any,
    and a response is served as it is, also to a client that waits for it."""

    settles: float = 0.0
    """Seconds that the answer to a cancel waits for the handler to stop, for a dialect that has no
    word for a job that was asked to."""

    @abstractmethod
    def place(self, path: str) -> Place | None:
        """What stands at a path below the mount, which begins with a slash; None for nothing."""

    def unable(self, asked: Asked) -> Problem | None:
        """What a request with a query asks that this dialect cannot do; None, the default: nothing.

        It is not asked of requests for lists.
        """
        return None

    def urls(self, job: Job, mount: Mount) -> Urls | None:
        """Where a page finds the routes of a job; None, the default, if no page could use them."""
        return None

    @abstractmethod
    def accepted(
        self,
        job: Job,
        mount: Mount,
        outlook: Outlook,
        applied: bytes | None,
        content: Content | None = None,
    ) -> Reply:
        """The answer to the request that was accepted.

        Args:
            job: the job; it may have finished, if a key has named it, or the client has waited.
            mount: where the status routes stand.
            outlook: what is expected of it.
            applied: the value of `Preference-Applied` (RFC 7240 §3), or None.
            content: of its response, if there is one and the dialect `embeds` it.
        """

    def navigated(self, job: Job, mount: Mount) -> Reply | None:
        """The same for a browser that navigates; None, the default: no other."""
        return None

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

    # --- MONITOR, WAIT, EVENTS --------------------------------------------------------------------

    def monitor(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None = None
    ) -> Reply:
        """The monitor.

        Args:
            job: the job.
            mount: where the status routes stand.
            outlook: what is expected of it; None once it is finished.
            content: of its response, if there is one, the dialect `embeds` it, and whoever asks is
                its owner and no operator.
        """
        raise NotImplementedError

    def patience(self, asked: Asked) -> float | None:
        """Seconds that who asks for `Action.WAIT` would wait; None if nothing is said of that.

        The default reads `Prefer: wait` (RFC 7240 §4.3), which is heard everywhere else.
        """
        return parse(asked.fields).wait

    # --- RESULT, STREAM ---------------------------------------------------------------------------

    def pending(self, job: Job, mount: Mount, outlook: Outlook) -> Reply:
        """The status URL of a job that is not finished."""
        raise NotImplementedError

    def result(self, job: Job) -> tuple[int, RawHeaders]:
        """Status and header fields under which a job's response is served.

        Args:
            job: the job, with its response; that may be still to end, where the job is.
        """
        raise NotImplementedError

    # --- CANCEL, DISMISS --------------------------------------------------------------------------

    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        """The answer to a cancel; no outlook once the job has stopped."""
        raise NotImplementedError

    def late(self, job: Job, mount: Mount, content: Content | None) -> Reply | None:
        """The answer to a cancel of a job that has finished by itself.

        None, the default: a problem with status 409.

        Args:
            job: the job.
            mount: where the status routes stand.
            content: as for `monitor`.
        """
        return None

    # --- DELETE, DISMISS, FORGET ------------------------------------------------------------------

    def deleted(self, job: Job, mount: Mount, outlook: Outlook | None, *, finished: bool) -> Reply:
        """The answer to a delete.

        Args:
            job: the job just before it was forgotten.
            mount: where the status routes stand.
            outlook: what is expected of it, unless it has stopped.
            finished: whether it had finished by itself before the delete.
        """
        raise NotImplementedError

    # --- LIST, TOTALS -----------------------------------------------------------------------------

    def selection(self, query: str) -> Selection | Problem:
        """Which jobs the query of a URL asks for, or what is wrong with it."""
        raise NotImplementedError

    def next(self, query: str, after: str) -> str:
        """The same query, for the page that begins where another has ended."""
        raise NotImplementedError

    def listed(self, listed: Listed, mount: Mount) -> Reply:
        """A part of a list; no document in it has a response in it."""
        raise NotImplementedError

    def totals(self, census: Census) -> Reply:
        """How many there are."""
        raise NotImplementedError
