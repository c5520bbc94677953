"""Replicate's predictions, as its HTTP API has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from raincheck.dialects.contents import LARGEST, Json, Unfit, checked_size, failure, reading, text
from raincheck.dialects.documents import (
    PROBLEM_JSON,
    following,
    malformed,
    moment_of,
    once,
    parameters,
    reply,
    served,
    timestamp,
)
from raincheck.errors import Problem
from raincheck.job import Job, State
from raincheck.messages import RawHeaders

WORDS: Mapping[State, str] = {
    State.QUEUED: "starting",
    State.RUNNING: "processing",
    State.CANCELLING: "processing",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "canceled",
}
"""How the states are spelt."""

_ACTIONS: Mapping[str, Mapping[str, Action]] = {
    "": {"GET": Action.MONITOR, "HEAD": Action.MONITOR},
    "/cancel": {"POST": Action.CANCEL},
    "/output": {"GET": Action.RESULT, "HEAD": Action.RESULT},
}
_LIST = {"GET": Action.LIST, "HEAD": Action.LIST}

_NOT_READY = Problem("not-ready", 404, "There is no output yet", "The prediction has not ended.")


class ReplicateDialect(Dialect):
    """Predictions as Replicate's own clients follow them, `Prefer: wait` included.

    Mount it where they look: `path="/v1/predictions"`. What is no JSON and no text, or too large,
    is a file: `output` is its URL, as with models of Replicate's own.

    Args:
        model: what predictions say they are of, which the Python client needs.
        version: the same of its version.
        max_content: bytes of a response's body that a prediction has in it at most. Default 1 MiB.

    Raises:
        ConfigurationError: `max_content` is no size.
    """

    settles: float = 2.0

    def __init__(
        self, *, model: str = "raincheck/app", version: str = "1", max_content: int = LARGEST
    ) -> None:
        self.embeds: int = checked_size(max_content)
        self._of = {"model": model, "version": version}

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
        fields = [(b"location", f"{mount.url}/{job.id}".encode())]
        if applied:
            fields.append((b"preference-applied", applied))
        document = self._document(job, mount, content)
        if not job.finished:  # `run`, which has waited, takes each other status for the end
            document["status"] = WORDS[State.QUEUED]
        return reply(201, document, *fields, job=job, outlook=outlook)

    def monitor(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None = None
    ) -> Reply:
        return reply(200, self._document(job, mount, content), job=job, outlook=outlook)

    def pending(self, job: Job, mount: Mount, outlook: Outlook) -> Reply:
        return self.problem(_NOT_READY, retry_after=outlook.retry_after)

    def result(self, job: Job) -> tuple[int, RawHeaders]:
        response = job.response
        assert response is not None
        return served(response.status, response.headers, job.state, job.owner is not None)

    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        return self.monitor(job, mount, outlook)

    def late(self, job: Job, mount: Mount, content: Content | None) -> Reply:
        return self.monitor(job, mount, None, content)

    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        document = problem.document()
        return reply(problem.status, document, job=job, retry_after=retry_after, kind=PROBLEM_JSON)

    def selection(self, query: str) -> Selection | Problem:
        try:
            given = once(parameters(query), ("created_after", "created_before", "cursor"))
            since = moment_of("created_after", given.get("created_after"))
            until = moment_of("created_before", given.get("created_before"))
        except ValueError as error:
            return malformed(str(error))
        return Selection(since=since, until=until, after=given.get("cursor"), limit=100)

    def next(self, query: str, after: str) -> str:
        return following(query, "cursor", after)

    def listed(self, listed: Listed, mount: Mount) -> Reply:
        results = [self._document(job, mount, None) for job, _ in listed.jobs]
        return reply(200, {"next": listed.next, "previous": None, "results": results})

    def _document(self, job: Job, mount: Mount, content: Content | None) -> dict[str, Any]:
        url, error, output = f"{mount.url}/{job.id}", None, None
        if job.state is State.FAILED:
            error = failure(job, content, self.embeds)[1]
        elif job.state is State.SUCCEEDED and content is not None:
            output = self._output(job, content, url)
        metrics = {}
        if job.started_at is not None and job.finished_at is not None:
            metrics["predict_time"] = round(job.finished_at - job.started_at, 3)
        return {
            "id": job.id,
            **self._of,
            "status": WORDS[job.state],
            "input": {},
            "output": output,
            "error": error,
            "logs": "" if job.progress is None else job.progress.message or "",
            "metrics": metrics,
            "created_at": timestamp(job.created_at),
            "started_at": timestamp(job.started_at),
            "completed_at": timestamp(job.finished_at),
            "urls": {"get": url, "cancel": url + "/cancel"},
        }

    def _output(self, job: Job, content: Content, url: str) -> Any:
        """What the handler has answered, or where that is."""
        response = job.response
        assert response is not None
        try:
            said = reading(response, content, self.embeds)
        except Unfit:
            return url + "/output"
        if said is None or isinstance(said, Json):
            return None if said is None else said.value
        words = text(response, said)
        return url + "/output" if words is None else words
