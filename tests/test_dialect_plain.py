"""The plain dialect: the tables of the wire contract, as far as a dialect decides them."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from raincheck.dialects.base import Action, Mount, Outlook, Place, Reply
from raincheck.dialects.documents import timestamp
from raincheck.dialects.plain import WORDS, PlainDialect
from raincheck.errors import (
    INTERRUPTED,
    LOST_WORKER,
    Problem,
    crashed,
    response_too_large,
    timed_out,
)
from raincheck.job import Delivery, Job, Progress, State
from raincheck.messages import CapturedResponse, RawHeaders

DIALECT = PlainDialect()

NOON = 1795262400.0  # 2026-11-21T12:00:00Z
RELATIVE = Mount("/jobs", absolute=False)
ABSOLUTE = Mount("https://api.example.org/jobs", absolute=True)
OUTLOOK = Outlook(retry_after=2, queue_position=3, completion=NOON + 9)
UNKNOWN = Outlook(retry_after=1)

UNFINISHED = [State.QUEUED, State.RUNNING, State.CANCELLING]


def job(state: State = State.QUEUED, **fields: Any) -> Job:
    return Job(id="4Xn", route="secret.module.endpoint", state=state, created_at=NOON, **fields)


def finished(
    state: State = State.SUCCEEDED,
    response: CapturedResponse | None = None,
    error: Problem | None = None,
) -> Job:
    return job(
        state,
        runs=1,
        started_at=NOON + 1,
        finished_at=NOON + 10,
        expires_at=NOON + 3610,
        purge_at=NOON + 7210,
        response=response,
        error=error,
    )


def fields(reply: Reply) -> dict[str, str]:
    """The header fields; each occurs once."""
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    assert len(headers) == len(reply.headers)
    assert all(name == name.lower() for name in headers)
    return headers


def document(reply: Reply) -> dict[str, Any]:
    headers = fields(reply)
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(reply.body))
    assert headers["cache-control"] == "no-store"
    read = json.loads(reply.body)
    assert isinstance(read, dict)
    return read


# --- acceptance --------------------------------------------------------------------------------


def test_an_acceptance_is_the_one_of_the_contract() -> None:
    reply = DIALECT.accepted(job(), RELATIVE, OUTLOOK, b"respond-async")
    assert reply.status == 202
    assert document(reply) == {
        "job_id": "4Xn",
        "status": "queued",
        "created_at": "2026-11-21T12:00:00Z",
        "progress": None,
        "message": None,
        "queue_position": 3,
        "estimated_completion": "2026-11-21T12:00:09Z",
        "retry_after": 2,
        "runs": 0,
        "links": {
            "self": "/jobs/4Xn/status",
            "result": "/jobs/4Xn",
            "events": "/jobs/4Xn/events",
            "stream": "/jobs/4Xn/stream",
            "cancel": "/jobs/4Xn/cancel",
        },
    }
    assert fields(reply) == {
        "location": "/jobs/4Xn",
        "content-location": "/jobs/4Xn",
        "link": '</jobs/4Xn/status>; rel="monitor"',
        "retry-after": "2",
        "preference-applied": "respond-async",
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "content-type": "application/json",
        "content-length": str(len(reply.body)),
    }


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
def test_a_job_that_a_key_has_named_may_have_finished(state: State) -> None:
    response = CapturedResponse(500 if state is State.FAILED else 200, (), 0)
    reply = DIALECT.accepted(finished(state, response), RELATIVE, UNKNOWN, None)
    read = document(reply)
    assert (reply.status, read["status"], read["response"]["size"]) == (202, state, 0)
    assert ("error" in read) is (state is State.FAILED)
    assert fields(reply)["location"] == "/jobs/4Xn"
    assert fields(reply)["retry-after"] == "1"
    assert not {"content-location", "job-status"} & fields(reply).keys()


def test_operation_location_is_sent_with_absolute_urls_only() -> None:
    relative = fields(DIALECT.accepted(job(), RELATIVE, OUTLOOK, None))
    absolute = fields(DIALECT.accepted(job(), ABSOLUTE, OUTLOOK, None))
    assert "operation-location" not in relative
    assert absolute["operation-location"] == "https://api.example.org/jobs/4Xn/status"
    assert absolute["location"] == "https://api.example.org/jobs/4Xn"


def test_a_preference_is_applied_only_if_it_was_asked() -> None:
    assert "preference-applied" not in fields(DIALECT.accepted(job(), RELATIVE, OUTLOOK, None))


def test_a_browser_that_navigates_is_sent_to_the_status_url() -> None:
    reply = DIALECT.navigated(job(), RELATIVE)
    assert (reply.status, reply.body) == (303, b"")
    assert fields(reply) == {
        "location": "/jobs/4Xn",
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "content-length": "0",
    }


# --- status URL and monitor --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newer", "outlook", "changes"),
    [
        ({"state": State.CANCELLING}, UNKNOWN, {"status": "canceling"}),
        ({"created_at": NOON + 1}, UNKNOWN, {"created_at": "2026-11-21T12:00:01Z"}),
        ({"progress": Progress(0.5)}, UNKNOWN, {"progress": 0.5}),
        ({"progress": Progress(0.5, "so far")}, UNKNOWN, {"message": "so far"}),
        ({"runs": 2}, UNKNOWN, {"runs": 2}),
        (
            {"state": State.QUEUED, "not_before": NOON + 60},
            UNKNOWN,
            {"next_run_at": "2026-11-21T12:01:00Z"},
        ),
        (
            {"delivery": Delivery("https://x.example", "/jobs")},
            UNKNOWN,
            {"callback": {"status": "pending", "deliveries": 0, "last_error": None}},
        ),
        ({}, Outlook(9), {"retry_after": 9}),
        ({}, Outlook(1, 4), {"queue_position": 4}),
        (
            {},
            Outlook(1, None, NOON + 2.9),
            {"estimated_completion": "2026-11-21T12:00:02Z"},
        ),
    ],
)
def test_a_document_is_of_what_it_is_given_whatever_was_said_before(
    newer: dict[str, Any], outlook: Outlook, changes: dict[str, Any]
) -> None:
    """Even of the same id and version, as where a store was put back to an earlier state."""
    before = job(State.RUNNING, runs=1, version=2)
    said = document(DIALECT.pending(before, RELATIVE, UNKNOWN))
    reply = DIALECT.pending(before._replace(**newer), RELATIVE, outlook)
    assert said | changes == said | {name: document(reply)[name] for name in changes}
    assert fields(reply)["retry-after"] == str(outlook.retry_after)
    assert document(DIALECT.pending(before, RELATIVE, UNKNOWN)) == said
    elsewhere = DIALECT.pending(before, ABSOLUTE, UNKNOWN)
    assert fields(elsewhere)["location"] == "https://api.example.org/jobs/4Xn"
    assert document(elsewhere)["links"]["result"] == "https://api.example.org/jobs/4Xn"


def test_no_document_is_kept_whose_urls_are_long() -> None:
    """Where the middleware is mounted below `/{tenant}`, clients say what they begin with."""
    tracemalloc.start()
    try:
        for number in range(100):
            url = f"/{number:050000}/jobs"
            reply = DIALECT.pending(job(), Mount(url, absolute=False), OUTLOOK)
            assert fields(reply)["location"] == f"{url}/4Xn"
            assert document(reply)["links"]["result"] == f"{url}/4Xn"
        assert tracemalloc.get_traced_memory()[0] < 2_000_000  # all of them are 5 MB, seven times
    finally:
        tracemalloc.stop()


def test_a_middleware_outside_may_edit_the_fields_of_an_answer() -> None:
    first = DIALECT.pending(job(), RELATIVE, OUTLOOK)
    told = [*first.headers]
    first.headers.clear()
    assert DIALECT.pending(job(), RELATIVE, OUTLOOK).headers == told


@pytest.mark.parametrize("state", UNFINISHED)
def test_a_status_url_is_202_until_the_job_is_finished(state: State) -> None:
    reply = DIALECT.pending(job(state), RELATIVE, OUTLOOK)
    headers = fields(reply)
    assert reply.status == 202
    assert headers["location"] == headers["content-location"] == "/jobs/4Xn"
    assert headers["retry-after"] == "2"
    assert document(reply)["status"] == WORDS[state]


@pytest.mark.parametrize("state", UNFINISHED)
def test_a_monitor_is_200_while_the_job_is_not_finished(state: State) -> None:
    reply = DIALECT.monitor(job(state), RELATIVE, OUTLOOK)
    assert reply.status == 200
    assert "location" not in fields(reply)
    assert fields(reply)["retry-after"] == "2"
    read = document(reply)
    assert read["status"] == WORDS[state]
    assert not {"finished_at", "expires_at", "response", "error", "resourceLocation"} & read.keys()


def test_what_is_not_known_is_null() -> None:
    read = document(DIALECT.monitor(job(), RELATIVE, UNKNOWN))
    assert read["queue_position"] is None
    assert read["estimated_completion"] is None
    assert read["retry_after"] == 1


def test_progress_is_in_every_document() -> None:
    reported = job(State.RUNNING, progress=Progress(0.4, "412 of 1000 sent — ✓"))
    for reply in (
        DIALECT.accepted(reported, RELATIVE, OUTLOOK, None),
        DIALECT.pending(reported, RELATIVE, OUTLOOK),
        DIALECT.monitor(reported, RELATIVE, OUTLOOK),
        DIALECT.cancelled(reported, RELATIVE, OUTLOOK),
    ):
        read = document(reply)
        assert (read["progress"], read["message"]) == (0.4, "412 of 1000 sent — ✓")


def test_where_no_response_will_be_there_is_none_to_follow() -> None:
    cancelled = finished(State.CANCELLED)
    assert "stream" not in document(DIALECT.monitor(cancelled, RELATIVE, None))["links"]


@pytest.mark.parametrize("mount", [RELATIVE, ABSOLUTE])
@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED])
def test_links_are_those_of_the_job(mount: Mount, state: State) -> None:
    response = CapturedResponse(200, ())
    shown = finished(state, response) if state is State.SUCCEEDED else job(state)
    read = document(DIALECT.monitor(shown, mount, OUTLOOK if state is State.RUNNING else None))
    url = f"{mount.url}/{shown.id}"
    assert read["links"] == {
        "self": f"{url}/status",
        "result": url,
        "events": f"{url}/events",
        "stream": f"{url}/stream",
        "cancel": f"{url}/cancel",
    }


@pytest.mark.parametrize(
    ("path", "actions"),
    [
        ("/4Xn", {"GET": Action.RESULT, "HEAD": Action.RESULT, "DELETE": Action.DELETE}),
        ("/4Xn/status", {"GET": Action.MONITOR, "HEAD": Action.MONITOR}),
        ("/4Xn/events", {"GET": Action.EVENTS, "HEAD": Action.EVENTS}),
        ("/4Xn/cancel", {"POST": Action.CANCEL}),
        ("/4Xn/stream", {"GET": Action.STREAM, "HEAD": Action.STREAM}),
        ("/4Xn/delete", {"POST": Action.DELETE}),
    ],
)
def test_what_stands_where(path: str, actions: dict[str, Action]) -> None:
    place = DIALECT.place(path)
    assert place is not None
    assert (place.id, place.actions) == ("4Xn", actions)


@pytest.mark.parametrize(
    ("path", "action"), [("", Action.LIST), ("/", Action.LIST), ("/totals", Action.TOTALS)]
)
def test_what_stands_at_no_job(path: str, action: Action) -> None:
    assert DIALECT.place(path) == Place("", {"GET": action, "HEAD": action})


@pytest.mark.parametrize("path", ["//status", "/4Xn/", "/4Xn/other", "/4Xn/status/"])
def test_nothing_stands_anywhere_else(path: str) -> None:
    assert DIALECT.place(path) is None


def test_no_document_names_the_route() -> None:
    for reply in (
        DIALECT.accepted(job(), RELATIVE, OUTLOOK, None),
        DIALECT.monitor(finished(State.FAILED, error=crashed()), RELATIVE, None),
    ):
        assert b"secret" not in reply.body


@pytest.mark.parametrize(
    ("state", "response", "shown"),
    [
        (
            State.SUCCEEDED,
            CapturedResponse(201, ((b"Content-Type", b"text/csv; charset=utf-8"),), 42),
            {"status": 201, "content_type": "text/csv; charset=utf-8", "size": 42},
        ),
        (
            State.FAILED,
            CapturedResponse(422, ((b"content-type", b"application/json"),), 7),
            {"status": 422, "content_type": "application/json", "size": 7},
        ),
        (
            State.SUCCEEDED,
            CapturedResponse(204, (), 0),
            {"status": 204, "content_type": None, "size": 0},
        ),
        (
            State.SUCCEEDED,
            CapturedResponse(200, ((b"content-type", b"caf\xe9"),), 1),
            {"status": 200, "content_type": "café", "size": 1},
        ),
    ],
)
def test_a_monitor_says_what_the_response_was(
    state: State, response: CapturedResponse, shown: dict[str, Any]
) -> None:
    reply = DIALECT.monitor(finished(state, response), RELATIVE, None)
    assert reply.status == 200
    assert "retry-after" not in fields(reply)
    read = document(reply)
    assert read["status"] == state
    assert read["response"] == shown
    assert read["resourceLocation"] == "/jobs/4Xn"
    assert read["finished_at"] == "2026-11-21T12:00:10Z"
    assert read["expires_at"] == "2026-11-21T13:00:10Z"
    assert read["runs"] == 1
    assert ("error" in read) is (state is State.FAILED)
    assert not {"queue_position", "estimated_completion", "retry_after"} & read.keys()


PROBLEMS = [crashed(), timed_out(5.0), response_too_large(5), INTERRUPTED, LOST_WORKER]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_monitor_holds_a_problem_as_a_member(problem: Problem) -> None:
    reply = DIALECT.monitor(finished(State.FAILED, error=problem), RELATIVE, None)
    assert reply.status == 200
    read = document(reply)
    assert read["status"] == "failed"
    assert read["error"] == {
        "code": problem.name,
        "message": problem.detail,
        **problem.document(),
    }
    assert not {"response", "resourceLocation", "type", "title", "detail"} & read.keys()


def test_a_monitor_says_why_a_response_is_a_failure() -> None:
    reply = DIALECT.monitor(finished(State.FAILED, CapturedResponse(422, (), 0)), RELATIVE, None)
    assert document(reply)["error"] == {
        "code": "handler-response",
        "message": "The response has status 422.",
    }


def test_a_monitor_says_that_a_job_was_cancelled() -> None:
    reply = DIALECT.monitor(finished(State.CANCELLED), RELATIVE, None)
    assert reply.status == 200
    read = document(reply)
    assert read["status"] == fields(reply)["job-status"] == "canceled"
    assert read["error"] == {"code": "cancelled", "message": "The job was cancelled."}
    assert not {"response", "resourceLocation"} & read.keys()


# --- results -----------------------------------------------------------------------------------

NO_STORE = (b"cache-control", b"no-store")
NO_REFERRER = (b"referrer-policy", b"no-referrer")
SUCCEEDED = (b"job-status", b"succeeded")
FAILED = (b"job-status", b"failed")


@pytest.mark.parametrize(
    ("status", "headers", "served", "fields"),
    [
        pytest.param(200, (), 200, (NO_STORE, NO_REFERRER, SUCCEEDED), id="succeeded"),
        pytest.param(302, (), 302, (NO_STORE, NO_REFERRER, SUCCEEDED), id="a redirect"),
        pytest.param(404, (), 404, (NO_STORE, NO_REFERRER, FAILED), id="failed"),
        pytest.param(500, (), 500, (NO_STORE, NO_REFERRER, FAILED), id="failed badly"),
        pytest.param(
            202,
            (),
            200,
            (NO_STORE, NO_REFERRER, SUCCEEDED, (b"job-response-status", b"202")),
            id="a stored 202",
        ),
        pytest.param(
            200,
            ((b"set-cookie", b"a=1"), (b"x-a", b"1"), (b"set-cookie", b"b=2")),
            200,
            (
                (b"set-cookie", b"a=1"),
                (b"x-a", b"1"),
                (b"set-cookie", b"b=2"),
                NO_STORE,
                NO_REFERRER,
                SUCCEEDED,
            ),
            id="its own headers in order",
        ),
        pytest.param(
            200,
            ((b"Cache-Control", b"max-age=60"),),
            200,
            ((b"Cache-Control", b"max-age=60"), NO_REFERRER, SUCCEEDED),
            id="the handler's Cache-Control",
        ),
        pytest.param(
            500,
            ((b"Job-Status", b"succeeded"), (b"x-a", b"1"), (b"job-status", b"running")),
            500,
            ((b"x-a", b"1"), NO_STORE, NO_REFERRER, FAILED),
            id="the handler's own Job-Status",
        ),
    ],
)
def test_a_finished_job_serves_the_handlers_response(
    status: int, headers: RawHeaders, served: int, fields: RawHeaders
) -> None:
    state = State.SUCCEEDED if status < 400 else State.FAILED
    result = DIALECT.result(finished(state, CapturedResponse(status, headers, 0)))
    assert result == (served, fields)


OWN = [
    ("public", "private"),
    ("max-age=60", "max-age=60, private"),
    ("PUBLIC, max-age=60, S-MaxAge=600", "max-age=60, private"),
    ("max-age=60, public, must-revalidate", "max-age=60, must-revalidate, private"),
    ("s-maxage=60", "private"),
    ('s-maxage = "60"', "private"),
    ("no-cache", "no-cache, private"),
    ("private, public", "private"),
    ("private, max-age=60", "private, max-age=60"),
    ("Private", "Private"),
    ("no-store", "no-store"),
    ("no-store, public", "no-store"),
    ('private="x-a"', 'private="x-a", private'),
    ('ext="public, s-maxage=1", public', 'ext="public, s-maxage=1", private'),
    ('ext="a\\", public"', 'ext="a\\", public", private'),
    ("", "private"),
    (" , ,", "private"),
    ('ext="open, public', "ext=, open, private"),
]


@pytest.mark.parametrize(("said", "served"), OWN)
def test_of_an_owners_job_no_shared_cache_keeps_the_response(said: str, served: str) -> None:
    headers = ((b"x-a", b"1"), (b"Cache-Control", said.encode()), (b"x-b", b"2"))
    response = CapturedResponse(200, headers, 0)
    for owner, expected in (("ann", served), (None, said)):
        _, fields = DIALECT.result(finished(response=response)._replace(owner=owner))
        found = [value for name, value in fields if name.lower() == b"cache-control"]
        assert found == [expected.encode()]
        assert {(b"x-a", b"1"), (b"x-b", b"2")} <= {*fields}


def test_several_lines_of_cache_control_are_one_list() -> None:
    headers = ((b"cache-control", b"public"), (b"Cache-Control", b"max-age=60, s-maxage=600"))
    job = finished(response=CapturedResponse(200, headers, 0))._replace(owner="ann")
    _, fields = DIALECT.result(job)
    assert [v for n, v in fields if n.lower() == b"cache-control"] == [b"max-age=60, private"]


# --- cancel and delete -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "outlook", "status"),
    [(State.CANCELLING, UNKNOWN, 202), (State.CANCELLED, None, 200)],
)
def test_a_cancel_is_202_until_the_handler_has_stopped(
    state: State, outlook: Outlook | None, status: int
) -> None:
    cancelled = job(state) if outlook else finished(state)
    reply = DIALECT.cancelled(cancelled, RELATIVE, outlook)
    assert reply.status == status
    assert document(reply)["status"] == WORDS[state]
    assert ("retry-after" in fields(reply)) is (outlook is not None)
    assert fields(reply).get("job-status") == (None if outlook else "canceled")


def test_a_finished_job_is_deleted_without_a_word() -> None:
    reply = DIALECT.deleted(finished(), RELATIVE, None, finished=True)
    assert (reply.status, reply.body) == (204, b"")
    assert fields(reply) == {"cache-control": "no-store"}


@pytest.mark.parametrize(
    ("state", "outlook"), [(State.CANCELLING, UNKNOWN), (State.CANCELLED, None)]
)
def test_a_job_that_had_not_finished_is_cancelled_and_forgotten(
    state: State, outlook: Outlook | None
) -> None:
    stopped = job(state) if outlook else finished(state)
    reply = DIALECT.deleted(stopped, RELATIVE, outlook, finished=False)
    assert reply.status == 202
    assert document(reply)["status"] == WORDS[state]
    assert "job-status" not in fields(reply)


# --- problems ----------------------------------------------------------------------------------


@pytest.mark.parametrize("retry_after", [None, 1, 30])
@pytest.mark.parametrize("status", [404, 409, 410, 413, 500, 503, 504])
def test_a_problem_is_problem_json(status: int, retry_after: int | None) -> None:
    problem = Problem("some-name", status, "A title", "A détail")
    reply = DIALECT.problem(problem, retry_after=retry_after)
    assert reply.status == status
    assert json.loads(reply.body) == {
        "type": "urn:raincheck:problem:some-name",
        "title": "A title",
        "status": status,
        "detail": "A détail",
    }
    expected = {
        "content-type": "application/problem+json",
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "content-length": str(len(reply.body)),
    }
    if retry_after is not None:
        expected["retry-after"] = str(retry_after)
    assert fields(reply) == expected


@pytest.mark.parametrize("state", State)
def test_a_problem_about_a_job_that_has_ended_says_how_it_has(state: State) -> None:
    shown = job(state) if state in UNFINISHED else finished(state)
    said = fields(DIALECT.problem(INTERRUPTED, job=shown)).get("job-status")
    assert said == (None if state in UNFINISHED else WORDS[state])


def test_replies_are_each_their_own() -> None:
    first = DIALECT.problem(INTERRUPTED)
    first.headers.append((b"allow", b"GET"))
    assert (b"allow", b"GET") not in DIALECT.problem(INTERRUPTED).headers


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (None, None),
        (0.0, "1970-01-01T00:00:00Z"),
        (NOON, "2026-11-21T12:00:00Z"),
        (NOON + 0.999, "2026-11-21T12:00:00Z"),
    ],
)
def test_times_are_rfc_3339_in_utc(time: float | None, text: str | None) -> None:
    assert timestamp(time) == text
