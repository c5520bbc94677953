"""The default dialect: a status URL that becomes the response, and a monitor beside it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from raincheck.dialects._plain_lists import selection, totals
from raincheck.dialects.base import (
    Action,
    Census,
    Content,
    Dialect,
    Listed,
    Mount,
    Outlook,
    Place,
    Reply,
    Selection,
    Urls,
)
from raincheck.dialects.documents import (
    FINAL,
    JSON,
    NO_REFERRER,
    NO_STORE,
    PROBLEM_JSON,
    RFC_3339,
    encode,
    following,
    reply,
    served,
    timestamp,
)
from raincheck.errors import Problem
from raincheck.job import Delivery, Job, State
from raincheck.messages import RawHeaders

_quote = json.encoder.encode_basestring_ascii

WORDS: Mapping[State, str] = {
    **{state: state.value for state in State},
    # With one l: azure-core and @azure/core-lro end on no other spelling.
    State.CANCELLING: "canceling",
    State.CANCELLED: "canceled",
}
"""How the states are spelt."""

_ACTIONS: Mapping[str, Mapping[str, Action]] = {
    "": {"GET": Action.RESULT, "HEAD": Action.RESULT, "DELETE": Action.DELETE},
    "/status": {"GET": Action.MONITOR, "HEAD": Action.MONITOR},
    "/events": {"GET": Action.EVENTS, "HEAD": Action.EVENTS},
    "/stream": {"GET": Action.STREAM, "HEAD": Action.STREAM},
    "/cancel": {"POST": Action.CANCEL},
    "/delete": {"POST": Action.DELETE},  # which a form cannot
    "/redeliver": {"POST": Action.REDELIVER},
}
"""What each method does at what stands behind a job's id."""

_LISTS: Mapping[str, Mapping[str, Action]] = {
    "": (_LIST := {"GET": Action.LIST, "HEAD": Action.LIST}),
    "/": _LIST,
    "/totals": {"GET": Action.TOTALS, "HEAD": Action.TOTALS},
}
"""The same at what is no job's, by its path: one mounted by hand begins with a slash."""


class PlainDialect(Dialect):
    """HTTP with JSON, understood by whatever follows a 202's `Location`."""

    def place(self, path: str) -> Place | None:
        if (listing := _LISTS.get(path)) is not None:
            return Place("", listing)
        id, slash, route = path[1:].partition("/")
        actions = _ACTIONS.get(slash + route)
        return None if actions is None or not id else Place(id, actions)

    def urls(self, job: Job, mount: Mount) -> Urls:
        url = f"{mount.url}/{job.id}"
        posts = (url + "/cancel", url + "/delete", url + "/redeliver")
        return Urls(url, url + "/status", url + "/events", *posts)

    def accepted(
        self,
        job: Job,
        mount: Mount,
        outlook: Outlook,
        applied: bytes | None,
        content: Content | None = None,
    ) -> Reply:
        url = f"{mount.url}/{job.id}"
        location = url.encode()
        headers = [(b"location", location)]
        if mount.absolute:  # Azure's clients hand it to the transport as it is
            headers.append((b"operation-location", location + b"/status"))
        finished = job.finished  # an earlier request's job, which a key has named
        if not finished:
            headers.append((b"content-location", location))
        headers.append((b"link", b'<%b/status>; rel="monitor"' % location))
        if applied:
            headers.append((b"preference-applied", applied))
        if finished:
            headers.append((b"retry-after", b"%d" % outlook.retry_after))
        return _document(202, job, url, None if finished else outlook, headers)

    def navigated(self, job: Job, mount: Mount) -> Reply:
        location = (b"location", f"{mount.url}/{job.id}".encode())
        return Reply(303, [location, NO_STORE, NO_REFERRER, (b"content-length", b"0")])

    def pending(self, job: Job, mount: Mount, outlook: Outlook) -> Reply:
        # Both again: clients that poll take one or the other from every 202 anew.
        url = f"{mount.url}/{job.id}"
        location = url.encode()
        headers = [(b"location", location), (b"content-location", location)]
        return _document(202, job, url, outlook, headers)

    def monitor(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None = None
    ) -> Reply:
        return _document(200, job, f"{mount.url}/{job.id}", outlook, _final(job))

    def result(self, job: Job) -> tuple[int, RawHeaders]:
        response = job.response
        assert response is not None
        return served(response.status, response.headers, job.state, job.owner is not None)

    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        status = 200 if job.state is State.CANCELLED else 202
        return _document(status, job, f"{mount.url}/{job.id}", outlook, _final(job))

    def deleted(self, job: Job, mount: Mount, outlook: Outlook | None, *, finished: bool) -> Reply:
        if finished:
            return Reply(204, [NO_STORE])
        return _document(202, job, f"{mount.url}/{job.id}", outlook, [])

    def problem(
        self, problem: Problem, *, job: Job | None = None, retry_after: int | None = None
    ) -> Reply:
        document = problem.document()
        return reply(problem.status, document, job=job, retry_after=retry_after, kind=PROBLEM_JSON)

    def selection(self, query: str) -> Selection | Problem:
        return selection(query, WORDS)

    def next(self, query: str, after: str) -> str:
        return following(query, "cursor", after)

    def listed(self, listed: Listed, mount: Mount) -> Reply:
        documents = b", ".join([_entry(*each, mount, listed.operator) for each in listed.jobs])
        return _json(b'{"jobs": [%b], "next": %b}' % (documents, _encoded(listed.next)))

    def totals(self, census: Census) -> Reply:
        return _json(_encoded(totals(census, WORDS)))


def _final(job: Job) -> list[tuple[bytes, bytes]]:
    return [FINAL[job.state]] if job.state in FINAL else []


def _document(
    status: int, job: Job, url: str, outlook: Outlook | None, headers: list[tuple[bytes, bytes]]
) -> Reply:
    if outlook is None:
        body = encode(_finished(job, url)).encode()
    else:
        headers.append((b"retry-after", b"%d" % outlook.retry_after))
        body = _unfinished(job, url, outlook)
    headers += (NO_STORE, NO_REFERRER, JSON, (b"content-length", b"%d" % len(body)))
    return Reply(status, headers, body)


def _json(body: bytes) -> Reply:
    length = (b"content-length", b"%d" % len(body))
    return Reply(200, [NO_STORE, NO_REFERRER, JSON, length], body)


def _encoded(document: object) -> bytes:
    return encode(document).encode()


def _entry(job: Job, outlook: Outlook | None, mount: Mount, operator: bool) -> bytes:
    """The document of a job in a list: its own, and what all of them would have in common alone."""
    more: dict[str, Any] = {"route": job.route}
    if operator:
        more["owner"] = job.owner
    url = f"{mount.url}/{job.id}"
    if outlook is None:
        return _encoded({**_finished(job, url), **more})
    return _unfinished(job, url, outlook)[:-1] + b", " + _encoded(more)[1:]


# Of every job at least one is sent, with its 202, and mostly several: as a template it costs a
# third of what the encoder takes for it.
_UNFINISHED = (
    '{"job_id": "%s", "status": "%s", "created_at": "%s", "progress": %s, "message": %s, '
    '"queue_position": %s, "estimated_completion": %s, "retry_after": %d, "runs": %d, '
    '"links": {"self": "%s/status", "result": "%s", "events": "%s/events", "stream": "%s/stream", '
    '"cancel": "%s/cancel"}}'
)


def _unfinished(job: Job, url: str, outlook: Outlook) -> bytes:
    progress, (retry_after, position, completion) = job.progress, outlook
    url = _quote(url)[1:-1]
    document = _UNFINISHED % (
        job.id,
        WORDS[job.state],
        _spell_second(int(job.created_at)),
        "null" if progress is None or progress.fraction is None else progress.fraction,
        "null" if progress is None or progress.message is None else _quote(progress.message),
        "null" if position is None else position,
        "null" if completion is None else f'"{_spell_second(int(completion))}"',
        retry_after,
        job.runs,
        url,
        url,
        url,
        url,
        url,
    )
    if job.delivery is not None or job.not_before is not None:
        more = {**_next_run(job), **_callback(job.delivery)}
        return document[:-1].encode() + b", " + _encoded(more)[1:]
    return document.encode()


def _next_run(job: Job) -> dict[str, Any]:
    """When it runs again, if it waits for that."""
    return {} if job.next_run_at is None else {"next_run_at": timestamp(math.ceil(job.next_run_at))}


def _callback(delivery: Delivery | None) -> dict[str, Any]:
    """What has become of the message about a job's end, and not where it goes."""
    if delivery is None:
        return {}
    status, deliveries, error = delivery.status, delivery.deliveries, delivery.last_error
    return {"callback": {"status": status, "deliveries": deliveries, "last_error": error}}


def _finished(job: Job, url: str) -> dict[str, Any]:
    progress = job.progress
    return {
        "job_id": job.id,
        "status": WORDS[job.state],
        "created_at": timestamp(job.created_at),
        "progress": None if progress is None else progress.fraction,
        "message": None if progress is None else progress.message,
        "finished_at": timestamp(job.finished_at),
        "expires_at": timestamp(job.expires_at),
        "runs": job.runs,
        **_outcome(job, url),
        **_callback(job.delivery),
        "links": {
            "self": url + "/status",
            "result": url,
            "events": url + "/events",
            **({} if job.response is None else {"stream": url + "/stream"}),
            "cancel": url + "/cancel",
        },
    }


def _outcome(job: Job, url: str) -> dict[str, Any]:
    problem, response = job.error, job.response
    if problem is not None:
        return {"error": {"code": problem.name, "message": problem.detail, **problem.document()}}
    if job.state is State.CANCELLED:  # Azure's clients raise it, or else what was reported last
        return {"error": {"code": "cancelled", "message": "The job was cancelled."}}
    if response is None:
        return {}
    content_type = response.header(b"content-type")
    shown: dict[str, Any] = {
        "response": {
            "status": response.status,
            "content_type": None if content_type is None else content_type.decode("latin-1"),
            "size": response.size,
        },
        "resourceLocation": url,
    }
    if job.state is State.FAILED:
        message = f"The response has status {response.status}."
        shown["error"] = {"code": "handler-response", "message": message}
    return shown


@lru_cache(maxsize=256)
def _spell_second(second: int) -> str:
    return time.strftime(RFC_3339, time.gmtime(second))
