"""Google's long-running operations: AIP-151, and `google.longrunning.Operations` over HTTP."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from raincheck.dialects._google_codes import error, name_of
from raincheck.dialects._google_values import carried, written
from raincheck.dialects.base import (
    Action,
    Asked,
    Content,
    Dialect,
    Listed,
    Mount,
    Outlook,
    Place,
    Reply,
    Selection,
)
from raincheck.dialects.contents import LARGEST, Json, Unfit, checked_size, failure, reading
from raincheck.dialects.documents import (
    FINISHED,
    UNFINISHED,
    following,
    limit_of,
    malformed,
    once,
    parameters,
    reply,
    timestamp,
)
from raincheck.errors import Problem
from raincheck.job import Job, State

_ANY = "type.googleapis.com/google."
_ACTIONS: Mapping[str, Mapping[str, Action]] = {
    "": {"GET": Action.MONITOR, "HEAD": Action.MONITOR, "DELETE": Action.FORGET},
    ":cancel": {"POST": Action.CANCEL},
    ":wait": {"POST": Action.WAIT},
}
_LIST = {"GET": Action.LIST, "HEAD": Action.LIST}

# The name of an operation is the path of its URL behind the version.
_VERSION = re.compile(r"^.*?/v[0-9]+[a-z0-9]*/")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")
_FILTER = re.compile(r"\s*done\s*=\s*(true|false)\s*", re.IGNORECASE)


class GoogleDialect(Dialect):
    """Operations as google-api-core and the clients that Google generates follow them.

    Mount it where the clients look, like `path="/v1/projects/p/operations"`: what stands behind the
    version is the beginning of each operation's name.

    Args:
        max_content: bytes of a response's body that an operation has in it at most; with more it
            is one that has failed. Default 1 MiB.

    Raises:
        ConfigurationError: `max_content` is no size.
    """

    def __init__(self, *, max_content: int = LARGEST) -> None:
        self.embeds: int = checked_size(max_content)

    def place(self, path: str) -> Place | None:
        if path in ("", "/"):
            return Place("", _LIST)
        id, colon, verb = path[1:].partition(":")
        actions = _ACTIONS.get(colon + verb)
        return None if actions is None or not id or "/" in id else Place(id, actions)

    def patience(self, asked: Asked) -> float | None:
        timeout = parse_qs(asked.query).get("timeout", [None])[0]
        if asked.body:
            with suppress(ValueError, LookupError, TypeError, RecursionError):  # it is optional
                timeout = json.loads(asked.body)["timeout"]
        match = _DURATION.fullmatch(timeout) if isinstance(timeout, str) else None
        return super().patience(asked) if match is None else float(match[1])

    def accepted(
        self,
        job: Job,
        mount: Mount,
        outlook: Outlook,
        applied: bytes | None,
        content: Content | None = None,
    ) -> Reply:
        fields = [(b"preference-applied", applied)] if applied else []
        return self._operation(job, mount, outlook, content, *fields)

    def monitor(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None = None
    ) -> Reply:
        return self._operation(job, mount, outlook, content)

    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        return reply(200, {})

    def late(self, job: Job, mount: Mount, content: Content | None) -> Reply:
        return reply(200, {})

    def deleted(self, job: Job, mount: Mount, outlook: Outlook | None, *, finished: bool) -> Reply:
        return reply(200, {})

    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        status, name = problem.status, name_of(problem.status)
        if problem.name == "unfinished":  # that is for the caller to change first (AIP-193)
            status, name = 400, "FAILED_PRECONDITION"
        reason = problem.name.upper().replace("-", "_")
        info = {"@type": _ANY + "rpc.ErrorInfo", "reason": reason, "domain": "raincheck"}
        told = {"code": status, "message": problem.detail, "status": name, "details": [info]}
        return reply(status, {"error": told}, job=job, retry_after=retry_after)

    def selection(self, query: str) -> Selection | Problem:
        try:
            given = once(parameters(query), ("filter", "pageSize", "pageToken"))
            wanted, size = given.get("filter"), given.get("pageSize", "0")
            match = None if wanted is None else _FILTER.fullmatch(wanted)
            if wanted is not None and match is None:
                raise ValueError("The parameter filter is done=true or done=false.")
            limit = limit_of("pageSize", None if size == "0" else size, Selection().limit)
        except ValueError as fault:
            return malformed(str(fault))
        states = () if match is None else FINISHED if match[1].lower() == "true" else UNFINISHED
        return Selection(states=states, after=given.get("pageToken"), limit=limit)

    def next(self, query: str, after: str) -> str:
        return following(query, "pageToken", after)

    def listed(self, listed: Listed, mount: Mount) -> Reply:
        operations = [self._document(job, mount, outlook, None) for job, outlook in listed.jobs]
        more = {} if listed.after is None else {"nextPageToken": listed.after}
        return reply(200, {"operations": operations, **more})

    def _operation(
        self,
        job: Job,
        mount: Mount,
        outlook: Outlook | None,
        content: Content | None,
        *fields: tuple[bytes, bytes],
    ) -> Reply:
        document = self._document(job, mount, outlook, content)
        return reply(200, document, *fields, job=job, outlook=outlook)

    def _document(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None
    ) -> dict[str, Any]:
        """The operation; with no other member, which the parsers of protobuf do not take."""
        path = urlsplit(mount.url).path if mount.absolute else mount.url
        name = _VERSION.sub("", path, count=1).strip("/")
        document = {"name": f"{name}/{job.id}", "metadata": _metadata(job, outlook)}
        return {**document, "done": job.finished, **self._outcome(job, content)}

    def _outcome(self, job: Job, content: Content | None) -> dict[str, Any]:
        if job.state is State.CANCELLED:
            return error("CANCELLED", "The operation was cancelled.")
        if job.state is State.FAILED:
            status, message = failure(job, content, self.embeds)
            return error(name_of(status), written(message))
        response = job.response
        if response is None or content is None:
            return {}
        try:
            said = reading(response, content, self.embeds)
        except Unfit as unfit:
            return error("OUT_OF_RANGE", str(unfit))
        if said is None:
            return {"response": {"@type": _ANY + "protobuf.Empty", "value": {}}}
        if isinstance(said, Json) and carried(said):
            kind = "protobuf.Struct" if isinstance(said.value, dict) else "protobuf.Value"
            return {"response": {"@type": _ANY + kind, "value": said.value}}
        media = (response.header(b"content-type") or b"").decode("latin-1")
        data = b64encode(said.body if isinstance(said, Json) else said).decode()
        return {"response": {"@type": _ANY + "api.HttpBody", "contentType": media, "data": data}}


def _metadata(job: Job, outlook: Outlook | None) -> dict[str, Any]:
    fraction = None if job.progress is None else job.progress.fraction
    message = None if job.progress is None else job.progress.message
    value = {
        "createTime": timestamp(job.created_at),
        "endTime": timestamp(job.finished_at),
        "progressPercent": None if fraction is None else round(100 * fraction, 2),
        "message": None if message is None else written(message),
        "queuePosition": None if outlook is None or job.finished else outlook.queue_position,
    }
    return {"@type": _ANY + "protobuf.Struct", "value": value}
