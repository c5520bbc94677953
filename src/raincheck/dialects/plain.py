"""The default dialect: a status URL that becomes the response, and a monitor beside it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
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
from raincheck.messages import Field, Fields, RawHeaders

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

_OF_A_JOB = _ACTIONS[""]

_LISTS: Mapping[str, Mapping[str, Action]] = {
    "": (_LIST := {"GET": Action.LIST, "HEAD": Action.LIST}),
    "/": _LIST,
    "/totals": {"GET": Action.TOTALS, "HEAD": Action.TOTALS},
}
"""The same at what is no job's, by its path: one mounted by hand begins with a slash."""


class PlainDialect(Dialect):
    """HTTP with JSON, understood by whatever follows a 202's `Location`."""

    def place(self, path: str) -> Place | None:
        id = path[1:]
        if "/" not in id and path not in _LISTS:
            # By the order of the fields, as in `pending` and `Job.accepted`: for every poll.
            return tuple.__new__(Place, (id, _OF_A_JOB))
        if (listing := _LISTS.get(path)) is not None:
            return Place("", listing)
        id, slash, route = id.partition("/")
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
        if job.state in FINAL:  # an earlier request's job, which a key has named
            location, about, body = f"{mount.url}/{job.id}".encode(), None, b""
        else:
            ((_, location), _), about, body = _unfinished(job, mount, outlook, keeps=False)
        headers = [(b"location", location)]
        if mount.absolute:  # Azure's clients hand it to the transport as it is
            headers.append((b"operation-location", location + b"/status"))
        if about is not None:
            headers.append((b"content-location", location))
        headers.append((b"link", b'<%b/status>; rel="monitor"' % location))
        if applied:
            headers.append((b"preference-applied", applied))
        if about is None:
            headers.append((b"retry-after", b"%d" % outlook.retry_after))
            return _document(202, job, mount, None, headers)
        headers.extend(about)
        return tuple.__new__(Reply, (202, headers, body))

    def navigated(self, job: Job, mount: Mount) -> Reply:
        location = (b"location", f"{mount.url}/{job.id}".encode())
        return Reply(303, [location, NO_STORE, NO_REFERRER, (b"content-length", b"0")])

    def pending(self, job: Job, mount: Mount, outlook: Outlook) -> Reply:
        # Both again: clients that poll take one or the other from every 202 anew.
        here, about, body = _unfinished(job, mount, outlook)
        return tuple.__new__(Reply, (202, [*here, *about], body))

    def monitor(
        self, job: Job, mount: Mount, outlook: Outlook | None, content: Content | None = None
    ) -> Reply:
        return _document(200, job, mount, outlook, _final(job))

    def result(self, job: Job) -> tuple[int, RawHeaders]:
        response = job.response
        assert response is not None
        return served(response.status, response.headers, job.state, job.owner is not None)

    def cancelled(self, job: Job, mount: Mount, outlook: Outlook | None) -> Reply:
        status = 200 if job.state is State.CANCELLED else 202
        return _document(status, job, mount, outlook, _final(job))

    def deleted(self, job: Job, mount: Mount, outlook: Outlook | None, *, finished: bool) -> Reply:
        if finished:
            return Reply(204, [NO_STORE])
        return _document(202, job, mount, outlook, [])

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


def _final(job: Job) -> list[Field]:
    return [FINAL[job.state]] if job.state in FINAL else []


def _document(
    status: int, job: Job, mount: Mount, outlook: Outlook | None, headers: list[Field]
) -> Reply:
    if outlook is None:
        return _json(_encoded(_finished(job, f"{mount.url}/{job.id}")), status, headers)
    _, about, body = _unfinished(job, mount, outlook)
    return Reply(status, [*headers, *about], body)


def _json(body: bytes, status: int = 200, headers: Iterable[Field] = ()) -> Reply:
    length = (b"content-length", b"%d" % len(body))
    return Reply(status, [*headers, NO_STORE, NO_REFERRER, JSON, length], body)


def _encoded(document: object) -> bytes:
    return encode(document).encode()


def _entry(job: Job, outlook: Outlook | None, mount: Mount, operator: bool) -> bytes:
    """The document of a job in a list: its own, and what all of them would have in common alone."""
    more: dict[str, Any] = {"route": job.route}
    if operator:
        more["owner"] = job.owner
    if outlook is None:
        return _encoded({**_finished(job, f"{mount.url}/{job.id}"), **more})
    return _unfinished(job, mount, outlook)[2][:-1] + b", " + _encoded(more)[1:]


# Of every job at least one is sent, with its 202, and mostly several: as a template it costs a
# third of what the encoder takes for it.
_BEFORE = (
    '{"job_id": "%s", "status": "%s", "created_at": "%s", "progress": %s, "message": %s, '
    '"queue_position": '
)
_EXPECTED = b'%b, "estimated_completion": %b, "retry_after": %d'
_AFTER = (
    ', "runs": %d, "links": {"self": "%s/status", "result": "%s", "events": "%s/events", '
    '"stream": "%s/stream", "cancel": "%s/cancel"}}'
)


# Characters of a URL with which a document is kept: its prefix may be the client's own, and long.
_LONGEST = 1024

# How many documents are kept, and the fields that all of them have.
_MOST_KEPT = 1024
_ABOUT = (NO_STORE, NO_REFERRER, JSON)

_Standing = tuple[RawHeaders, bytes, bytes]
"""Where a job is, and its document: before and after what is expected of it."""

_KEPT: dict[str, tuple[tuple[Job, Mount], _Standing]] = {}
"""What was written last of each job, by its id, with what it was written from."""


def _unfinished(
    job: Job, mount: Mount, outlook: Outlook, *, keeps: bool = True
) -> tuple[RawHeaders, Fields, bytes]:
    """The fields that tell where it is; its document, and the fields about that before it.

    What it says of the job is kept for the next who asks: not of one that is new, since most have
    ended before anybody does, and what is kept of them is in the garbage collector's way.
    """
    retry_after, position, completion = outlook
    kept, written_from = _KEPT.get(job.id), (job, mount)
    here, before, after = (
        kept[1] if kept is not None and kept[0] == written_from else _standing(written_from, keeps)
    )
    about, expected = _expected(
        retry_after, position, None if completion is None else int(completion)
    )
    body = before + expected + after
    return here, [*about, (b"content-length", b"%d" % len(body))], body


def _standing(written_from: tuple[Job, Mount], keeps: bool) -> _Standing:
    """Write it, and keep it if that is worth it."""
    job, mount = written_from
    progress = job.progress
    before = _BEFORE % (
        job.id,
        WORDS[job.state],
        _spell_second(int(job.created_at)),
        "null" if progress is None or progress.fraction is None else progress.fraction,
        "null" if progress is None or progress.message is None else _quote(progress.message),
    )
    location = f"{mount.url}/{job.id}"
    url = _quote(location)[1:-1]
    after = (_AFTER % (job.runs, url, url, url, url, url)).encode()
    next_run_at = None if job.not_before is None else job.next_run_at
    if next_run_at is not None or job.delivery is not None:
        more = {**_next_run(next_run_at), **_callback(job.delivery)}
        after = after[:-1] + b", " + _encoded(more)[1:]
    here = location.encode()
    standing = ((b"location", here), (b"content-location", here)), before.encode(), after
    if keeps and len(mount.url) <= _LONGEST:
        if len(_KEPT) >= _MOST_KEPT:
            _KEPT.clear()
        _KEPT[job.id] = written_from, standing
    return standing


@lru_cache(maxsize=1024)
def _expected(
    retry_after: int, position: int | None, second: int | None
) -> tuple[RawHeaders, bytes]:
    """What is expected of one: the fields about a document, and its part of that."""
    document = _EXPECTED % (
        b"null" if position is None else b"%d" % position,
        b"null" if second is None else b'"%b"' % _spell_second(second).encode(),
        retry_after,
    )
    return ((b"retry-after", b"%d" % retry_after), *_ABOUT), document


def _next_run(moment: float | None) -> dict[str, Any]:
    """When it runs again, if it waits for that."""
    return {} if moment is None else {"next_run_at": timestamp(math.ceil(moment))}


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
