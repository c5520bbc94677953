"""The default dialect: a status URL that becomes the response, and a monitor beside it."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from typing import Any

from raincheck.dialects.base import Dialect, Outlook, Reply, Urls
from raincheck.errors import Problem
from raincheck.job import Job, State
from raincheck.messages import RawHeaders, first_header

# Documents are trees that we build ourselves, so nothing in them can be circular.
_encode = json.JSONEncoder(check_circular=False).encode
_quote = json.encoder.encode_basestring_ascii

_NO_STORE = (b"cache-control", b"no-store")
# The URL of a job without an owner opens it: a page that shows one must not pass it on.
_NO_REFERRER = (b"referrer-policy", b"no-referrer")
_JSON = (b"content-type", b"application/json")
_PROBLEM_JSON = (b"content-type", b"application/problem+json")


class PlainDialect(Dialect):
    """HTTP with JSON, understood by whatever follows a 202's `Location`."""

    def accepted(self, job: Job, urls: Urls, outlook: Outlook, applied: bytes | None) -> Reply:
        headers = [(b"location", urls.result.encode())]
        if urls.absolute:  # Azure's clients hand it to the transport as it is
            headers.append((b"operation-location", urls.monitor.encode()))
        headers.append((b"link", f'<{urls.monitor}>; rel="monitor"'.encode()))
        if applied:
            headers.append((b"preference-applied", applied))
        return _document(202, job, urls, outlook, headers)

    def navigated(self, urls: Urls) -> Reply:
        location = (b"location", urls.result.encode())
        return Reply(303, [location, _NO_STORE, _NO_REFERRER, (b"content-length", b"0")])

    def pending(self, job: Job, urls: Urls, outlook: Outlook) -> Reply:
        # Location again: clients that poll take it from every 202 anew.
        return _document(202, job, urls, outlook, [(b"location", urls.result.encode())])

    def monitor(self, job: Job, urls: Urls, outlook: Outlook | None) -> Reply:
        return _document(200, job, urls, outlook, [])

    def result(self, job: Job) -> tuple[int, RawHeaders]:
        response = job.response
        assert response is not None
        status, headers = response.status, response.headers
        if first_header(headers, b"cache-control") is None:
            headers = (*headers, _NO_STORE)
        if first_header(headers, b"referrer-policy") is None:
            headers = (*headers, _NO_REFERRER)
        headers = (*headers, (b"job-status", job.state.encode()))
        if status == 202:  # every client would go on polling for ever
            status, headers = 200, (*headers, (b"job-response-status", b"202"))
        return status, headers

    def cancelled(self, job: Job, urls: Urls, outlook: Outlook | None) -> Reply:
        status = 200 if job.state is State.CANCELLED else 202
        return _document(status, job, urls, outlook, [])

    def deleted(self, job: Job, urls: Urls, outlook: Outlook | None, *, finished: bool) -> Reply:
        return Reply(204, [_NO_STORE]) if finished else _document(202, job, urls, outlook, [])

    def problem(self, problem: Problem, *, retry_after: int | None = None) -> Reply:
        body = _encode(problem.document()).encode()
        headers = [_PROBLEM_JSON, _NO_STORE, _NO_REFERRER, (b"content-length", b"%d" % len(body))]
        if retry_after is not None:
            headers.append((b"retry-after", b"%d" % retry_after))
        return Reply(problem.status, headers, body)


def _document(
    status: int, job: Job, urls: Urls, outlook: Outlook | None, headers: list[tuple[bytes, bytes]]
) -> Reply:
    if outlook is None:
        body = _encode(_finished(job, urls)).encode()
    else:
        headers.append((b"retry-after", b"%d" % outlook.retry_after))
        body = _unfinished(job, urls, outlook)
    headers += (_NO_STORE, _NO_REFERRER, _JSON, (b"content-length", b"%d" % len(body)))
    return Reply(status, headers, body)


# Of every job at least one is sent, with its 202, and mostly several: as a template it costs a
# third of what the encoder takes for it.
_UNFINISHED = (
    '{"job_id": "%s", "status": "%s", "created_at": "%s", "progress": %s, "message": %s, '
    '"queue_position": %s, "estimated_completion": %s, "retry_after": %d, '
    '"links": {"self": %s, "result": %s, "cancel": %s}}'
)


def _unfinished(job: Job, urls: Urls, outlook: Outlook) -> bytes:
    progress, position, completion = job.progress, outlook.queue_position, outlook.completion
    document = _UNFINISHED % (
        job.id,
        job.state,
        timestamp(job.created_at),
        "null" if progress is None else progress.fraction,
        "null" if progress is None or progress.message is None else _quote(progress.message),
        "null" if position is None else position,
        "null" if completion is None else f'"{timestamp(completion)}"',
        outlook.retry_after,
        _quote(urls.monitor),
        _quote(urls.result),
        _quote(urls.cancel),
    )
    return document.encode()


def _finished(job: Job, urls: Urls) -> dict[str, Any]:
    progress = job.progress
    return {
        "job_id": job.id,
        "status": job.state,
        "created_at": timestamp(job.created_at),
        "progress": None if progress is None else progress.fraction,
        "message": None if progress is None else progress.message,
        "finished_at": timestamp(job.finished_at),
        "expires_at": timestamp(job.expires_at),
        **_outcome(job, urls),
        "links": {"self": urls.monitor, "result": urls.result, "cancel": urls.cancel},
    }


def _outcome(job: Job, urls: Urls) -> dict[str, Any]:
    if job.error is not None:
        return {"error": job.error.document()}
    if job.response is None:
        return {}
    content_type = job.response.header(b"content-type")
    return {
        "response": {
            "status": job.response.status,
            "content_type": None if content_type is None else content_type.decode("latin-1"),
            "size": job.response.size,
        },
        "resourceLocation": urls.result,
    }


def timestamp(moment: float | None) -> str | None:
    """RFC 3339 in UTC, to the second: `2026-11-21T12:00:00Z`; None stays None."""
    return None if moment is None else _spell_second(int(moment))


@lru_cache(maxsize=256)
def _spell_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
