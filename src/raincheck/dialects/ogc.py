"""OGC API - Processes, Part 1: Core 1.0 (OGC 18-062r2): jobs, their list, their dismissal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raincheck.dialects._ogc_queries import selection
from raincheck.dialects.base import (
    Action,
    Content,
    Dialect,
    Listed,
    Mount,
    Outlook,
    Place,
    Reply,
    Selection,
)
from raincheck.dialects.documents import (
    PROBLEM_JSON,
    following,
    reply,
    served,
    timestamp,
)
from raincheck.errors import ConfigurationError, Problem
from raincheck.job import Job, State
from raincheck.messages import RawHeaders

WORDS: Mapping[State, str] = {
    State.QUEUED: "accepted",
    State.RUNNING: "running",
    State.CANCELLING: "running",
    State.SUCCEEDED: "successful",
    State.FAILED: "failed",
    State.CANCELLED: "dismissed",
}
"""How the states are spelt."""

_ACTIONS: Mapping[str, Mapping[str, Action]] = {
    "": {"GET": Action.MONITOR, "HEAD": Action.MONITOR, "DELETE": Action.DISMISS},
    "/results": {"GET": Action.RESULT, "HEAD": Action.RESULT},
}
_LIST = {"GET": Action.LIST, "HEAD": Action.LIST}

_EXCEPTIONS = "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0/"
_RESULTS = "http://www.opengis.net/def/rel/ogc/1.0/results"

# The problems that the standard has types of its own for, and the status that goes with them.
_TYPES = {
    "not-found": ("no-such-job", 404),
    "expired": ("no-such-job", 410),
    "not-ready": ("result-not-ready", 404),
    "cancelled": ("result-not-available", 404),
}
_NOT_READY = Problem("not-ready", 404, "There are no results yet", "The job has not finished.")


class OGCDialect(Dialect):
    """Jobs as OGC API - Processes has them, from the 201 of an execution to its results.

    Mount it at `path="/jobs"`, where the standard has them. The processes, their list and their
    descriptions are the app's own.

    Args:
        processes: the ids of processes by the names of their routes, which decorators give them
            (`@long_running(name="echo")`) or path rules have; for `processID`. Default: none are
            known.

    Raises:
        ConfigurationError: `processes` is no such mapping.
    """

    settles: float = 2.0

    def __init__(self, *, processes: Mapping[str, str] | None = None) -> None:
        self._processes = {} if processes is None else _checked(processes)
        self._routes = {id: route for route, id in self._processes.items()}

    def place(self, path: str) -> Place | None:
        if path in ("", "/"):
            return Place("", _LIST)
        id, slash, route = path[1:].partition("/")
        actions = _ACTIONS.get(slash + route)
        return None if actions is None or not id else Place(id, actions)

    def accepted(
        self,
        job: Job,
        mount: Mount,
        outlook: Outlook,
        applied: bytes | None,
        content: Content | None = None,
    ) -> Reply:
        url = f"{mount.url}/{job.id}".encode()
        fields = [(b"location", url), (b"link", b'<%b>; rel="monitor"' % url)]
        if applied:
            fields.append((b"preference-applied", applied))
        return reply(201, self._info(job, mount), *fields, job=job, outlook=outlook)

    def monitor(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None = None
    ) -> Reply:
        return reply(200, self._info(job, mount), job=job, outlook=outlook)

    def pending(self, job: Job, mount: Mount, outlook: Outlook) -> Reply:
        return self.problem(_NOT_READY, retry_after=outlook.retry_after)

    def result(self, job: Job) -> tuple[int, RawHeaders]:
        response = job.response
        assert response is not None
        return served(response.status, response.headers, job.state, job.owner is not None)

    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        return self.monitor(job, mount, outlook)

    def late(self, job: Job, mount: Mount, content: Content | None) -> Reply:
        return self.monitor(job, mount, None)

    def deleted(self, job: Job, mount: Mount, outlook: Outlook | None, *, finished: bool) -> Reply:
        return reply(200, {**self._info(job, mount), "status": "dismissed", "links": []})

    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        document, status = problem.document(), problem.status
        if problem.name in _TYPES:
            name, status = _TYPES[problem.name]
            document |= {"type": _EXCEPTIONS + name, "status": status}
        return reply(status, document, job=job, retry_after=retry_after, kind=PROBLEM_JSON)

    def selection(self, query: str) -> Selection | Problem:
        return selection(query, WORDS, self._routes)

    def next(self, query: str, after: str) -> str:
        return following(query, "cursor", after)

    def listed(self, listed: Listed, mount: Mount) -> Reply:
        # There a process is named (/req/job-list/processID-mandatory), if only by its route.
        jobs = [{"processID": job.route, **self._info(job, mount)} for job, _ in listed.jobs]
        links = [_link("self", listed.here)]
        if listed.next is not None:
            links.append(_link("next", listed.next))
        return reply(200, {"jobs": jobs, "links": links})

    def _info(self, job: Job, mount: Mount) -> dict[str, Any]:
        """The `statusInfo` of a job; what is not known is not there, as its schema has no null."""
        url, progress, process = f"{mount.url}/{job.id}", job.progress, self._processes
        fraction = None if progress is None else progress.fraction
        links = [_link("self", url), _link("monitor", url)]
        if job.response is not None:
            links.append({"href": f"{url}/results", "rel": _RESULTS})
        known = {
            "processID": process.get(job.route),
            "message": _message(job),
            "created": timestamp(job.created_at),
            "started": timestamp(job.started_at),
            "finished": timestamp(job.finished_at),
            "updated": timestamp(job.finished_at or job.started_at or job.created_at),
            "progress": 100 if job.state is State.SUCCEEDED else _percent(fraction),
        }
        shown = {name: value for name, value in known.items() if value is not None}
        named = {"jobID": job.id, "id": job.id}  # as 1.0 has it, and as its successor does
        return {**named, "type": "process", "status": WORDS[job.state], **shown, "links": links}


def _checked(processes: Mapping[str, str]) -> dict[str, str]:
    whole = isinstance(processes, Mapping) and all(
        isinstance(each, str) for pair in processes.items() for each in pair
    )
    if not whole or len({*processes.values()}) != len(processes):
        raise ConfigurationError(
            f"processes={processes!r}: it has the id of a process by the name of its route, each "
            'once, like {"app.echo": "echo"}'
        )
    return dict(processes)


def _message(job: Job) -> str | None:
    if job.error is not None:
        return job.error.detail
    if job.state is State.FAILED and job.response is not None:
        return f"The response has status {job.response.status}."
    if job.state is State.CANCELLING:
        return "The job was asked to stop."
    return None if job.progress is None else job.progress.message


def _percent(fraction: float | None) -> int | None:
    return None if fraction is None else int(100 * fraction)


def _link(rel: str, href: str) -> dict[str, str]:
    return {"href": href, "rel": rel, "type": "application/json"}
