"""OpenAI's background responses: `POST /responses` with `background`, polled until they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from raincheck.dialects.base import Action, Asked, Content, Dialect, Mount, Outlook, Place, Reply
from raincheck.dialects.contents import LARGEST, Json, Unfit, checked_size, failure, reading, text
from raincheck.dialects.documents import encode, reply
from raincheck.errors import Problem
from raincheck.job import Job, State

WORDS: Mapping[State, str] = {
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.CANCELLING: "in_progress",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
"""How the states are spelt."""

_ENDED = ("completed", "incomplete", "failed", "cancelled")
"""How a handler's own document may say that it has ended, whatever else it has there."""

_ACTIONS: Mapping[str, Mapping[str, Action]] = {
    "": {"GET": Action.MONITOR, "HEAD": Action.MONITOR, "DELETE": Action.DELETE},
    "/cancel": {"POST": Action.CANCEL},
}

_NO_STREAM = Problem(
    "stream-unsupported",
    400,
    "There is no stream",
    "This response was not created with stream=true; ask for it without.",
)

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAIDialect(Dialect):
    """Responses as OpenAI's own clients follow them.

    Mount it at the path of the route itself, `path="/v1/responses"`. A handler's JSON document that
    has a list as `output` is the response, but for its `id`; any other JSON, and text, is the one
    message of a response.

    Args:
        max_content: bytes of a handler's response that a document has in it at most; one with more,
            and one that is neither JSON nor text, makes a response that has failed. Default 1 MiB.

    Raises:
        ConfigurationError: `max_content` is no size.
    """

    settles: float = 2.0

    def __init__(self, *, max_content: int = LARGEST) -> None:
        self.embeds: int = checked_size(max_content)

    def place(self, path: str) -> Place | None:
        id, slash, route = path[1:].partition("/")
        actions = _ACTIONS.get(slash + route)
        return None if actions is None or not id else Place(id, actions)

    def unable(self, asked: Asked) -> Problem | None:
        stream = parse_qs(asked.query).get("stream", ["false"])[-1]
        return None if stream.lower() in ("false", "0") else _NO_STREAM

    def accepted(
        self,
        job: Job,
        mount: Mount,
        outlook: Outlook,
        applied: bytes | None,
        content: Content | None = None,
    ) -> Reply:
        fields = [(b"preference-applied", applied)] if applied else []
        return reply(200, self._document(job, content), *fields, job=job, outlook=outlook)

    def monitor(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None = None
    ) -> Reply:
        return reply(200, self._document(job, content), job=job, outlook=outlook)

    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        return self.monitor(job, mount, outlook)

    def deleted(self, job: Job, mount: Mount, outlook: Outlook | None, *, finished: bool) -> Reply:
        return reply(200, {"id": job.id, "object": "response", "deleted": True})

    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        # Not 409, which these clients take for passing: they would try it again.
        status = 400 if problem.name == "finished" else problem.status
        kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        code = problem.name.replace("-", "_")
        error = {"message": problem.detail, "type": kind, "param": None, "code": code}
        return reply(status, {"error": error}, job=job, retry_after=retry_after)

    def _document(self, job: Job, content: Content | None) -> dict[str, Any]:
        return {**_empty(job), **self._outcome(job, content), "id": job.id}

    def _outcome(self, job: Job, content: Content | None) -> dict[str, Any]:
        """What a job has come to."""
        if job.state is State.FAILED:
            status, sentence = failure(job, content, self.embeds)
            code = "rate_limit_exceeded" if status == 429 else "server_error"
            return {"error": {"code": code, "message": sentence}}
        response = job.response
        if response is None or content is None:
            return {}
        try:
            said = reading(response, content, self.embeds)
        except Unfit as error:
            return _failed(str(error))
        if said is None:
            return {}
        if isinstance(said, bytes):
            words = text(response, said)
            return (
                _failed("The response is no JSON and no text.") if words is None else _said(words)
            )
        return _own(said)


def _empty(job: Job) -> dict[str, Any]:
    """A response with nothing in it yet."""
    return {
        "id": job.id,
        "object": "response",
        "created_at": int(job.created_at),
        "status": WORDS[job.state],
        "background": True,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": None,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }


def _own(said: Json) -> dict[str, Any]:
    """A handler's document, as that of a job that has ended."""
    document = said.value
    if not isinstance(document, dict) or not isinstance(document.get("output"), list):
        return _said(document if isinstance(document, str) else encode(document))
    status = document.get("status")
    ended = status if status in _ENDED else "completed"
    return {**document, "object": "response", "status": ended, "background": True}


def _said(words: str) -> dict[str, Any]:
    content = {"type": "output_text", "text": words, "annotations": []}
    message = {"id": "msg_0", "type": "message", "role": "assistant", "status": "completed"}
    return {"output": [{**message, "content": [content]}]}


def _failed(message: str) -> dict[str, Any]:
    return {"status": "failed", "error": {"code": "server_error", "message": message}}
