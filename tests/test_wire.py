"""The wire contract, table by table: what each answer about a job is, from outside."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import httpx
import pytest
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from raincheck import Job, MemoryStore, State
from raincheck.errors import (
    INTERRUPTED,
    LOST_WORKER,
    UNREADABLE,
    Problem,
    StoreError,
    crashed,
    invalid_response,
    response_too_large,
    timed_out,
)
from raincheck.messages import CapturedResponse
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore, failing
from tests.support import Gate, app_of, gated, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

JSON = ((b"content-type", b"application/json"),)


@dataclass(frozen=True)
class Row:
    """A job, and what its two URLs say of it.

    Attributes:
        state: where it stands.
        word: how that is spelt.
        status: of its status URL.
        problem: the last part of the problem's type, if the status URL has one.
        response: the handler's, if there is one.
        error: why there is none.
    """

    state: State
    word: str
    status: int
    problem: str | None = None
    response: CapturedResponse | None = None
    error: Problem | None = None

    @property
    def code(self) -> str | None:
        """`error.code` of its document."""
        ended_well = self.word not in ("failed", "canceled")
        return None if ended_well else self.problem or "handler-response"


def answered(status: int) -> CapturedResponse:
    return CapturedResponse(status, JSON, 2)


def failed(error: Problem, status: int) -> Row:
    return Row(State.FAILED, "failed", status, error.name, error=error)


UNFINISHED = {
    "queued": Row(State.QUEUED, "queued", 202),
    "running": Row(State.RUNNING, "running", 202),
    "canceling": Row(State.CANCELLING, "canceling", 202),
}
FINISHED = {
    "succeeded": Row(State.SUCCEEDED, "succeeded", 201, response=answered(201)),
    "redirects": Row(State.SUCCEEDED, "succeeded", 303, response=answered(303)),
    "looks pending": Row(State.SUCCEEDED, "succeeded", 200, response=answered(202)),
    "failed": Row(State.FAILED, "failed", 422, response=answered(422)),
    "failed badly": Row(State.FAILED, "failed", 503, response=answered(503)),
    "crashed": failed(crashed(), 500),
    "no response": failed(invalid_response("The handler sent no response."), 500),
    "unreadable": failed(UNREADABLE, 500),
    "too large": failed(response_too_large(5), 500),
    "too late": failed(timed_out(5.0), 504),
    "interrupted": failed(INTERRUPTED, 503),
    "lost": failed(LOST_WORKER, 502),
    "canceled": Row(State.CANCELLED, "canceled", 410, "cancelled"),
}


def rows(table: dict[str, Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(r, id=k) for k, r in table.items()])


async def store_of(row: Row) -> MemoryStore:
    """A store with one job, `a`."""
    store = MemoryStore()
    state = State.RUNNING if row.state not in (State.QUEUED, State.CANCELLING) else row.state
    now = virtual_jobs().clock()
    job = Job("a", "secret.route", state, now, runs=0 if row.state is State.QUEUED else 1)
    await store.create(job)
    if row.state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        ended = job.finish(
            row.state, now, ttl=60, tombstone_ttl=60, response=row.response, error=row.error
        )
        await store.replace(ended, tail=b"{}" if row.response else b"")
    return store


@rows(UNFINISHED)
async def test_a_job_that_is_not_finished(row: Row) -> None:
    jobs = virtual_jobs(store=await store_of(row))
    async with running(app_of(jobs=jobs)) as client:
        poll, monitor = await client.get("/jobs/a"), await client.get("/jobs/a/status")
        assert (poll.status_code, monitor.status_code) == (202, 200)
        assert poll.json() == monitor.json()
        assert poll.json()["status"] == row.word
        assert poll.json()["runs"] == (0 if row.word == "queued" else 1)
        assert poll.headers["location"] == poll.headers["content-location"] == "/jobs/a"
        assert "location" not in monitor.headers
        for answer in (poll, monitor):
            assert answer.headers["content-type"] == "application/json"
            assert int(answer.headers["retry-after"]) >= 1
            assert "job-status" not in answer.headers
            assert "error" not in answer.json()
        await heads(client)


@rows(FINISHED)
async def test_a_job_that_has_ended(row: Row) -> None:
    jobs = virtual_jobs(store=await store_of(row))
    async with running(app_of(jobs=jobs)) as client:
        result, monitor = await client.get("/jobs/a"), await client.get("/jobs/a/status")
        assert (result.status_code, monitor.status_code) == (row.status, 200)
        for answer in (result, monitor):
            assert answer.headers.get_list("job-status") == [row.word]
            assert "retry-after" not in answer.headers
        pending = row.response is not None and row.response.status == 202
        assert result.headers.get("job-response-status") == ("202" if pending else None)
        if row.response is not None:
            assert result.content == b"{}"
        else:
            assert result.headers["content-type"] == "application/problem+json"
            assert result.json()["type"] == f"urn:raincheck:problem:{row.problem}"
            assert result.json()["status"] == row.status
        check_document(row, monitor)
        await heads(client)


def check_document(row: Row, monitor: httpx.Response) -> None:
    """Of a job that has ended."""
    document = monitor.json()
    assert document["status"] == row.word
    assert document["runs"] == 1
    assert document["created_at"] <= document["finished_at"] < document["expires_at"]
    assert not {"queue_position", "retry_after"} & document.keys()
    if row.response is None:
        assert not {"response", "resourceLocation"} & document.keys()
    else:
        shown = {"status": row.response.status, "content_type": "application/json", "size": 2}
        assert document["response"] == shown
        assert document["resourceLocation"] == "/jobs/a"
    error = document.get("error", {})
    assert error.get("code") == row.code
    if row.error is not None:
        assert error == row.error.document() | {"code": row.code, "message": row.error.detail}
    elif row.response is not None and row.word == "failed":
        assert error["message"] == f"The response has status {row.response.status}."
    elif row.word == "canceled":
        assert error["message"] == "The job was cancelled."


async def heads(client: httpx.AsyncClient) -> None:
    for url in ("/jobs/a", "/jobs/a/status"):
        get, head = await client.get(url), await client.head(url)
        assert (head.status_code, head.headers, head.content) == (get.status_code, get.headers, b"")


async def test_the_202_is_what_its_url_says_now() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        accepted = await client.post("/slow", headers={"prefer": "respond-async"})
        assert accepted.headers["preference-applied"] == "respond-async"
        assert accepted.headers["vary"] == "Prefer"
        assert accepted.headers["location"] == accepted.headers["content-location"]
        poll = await client.get(accepted.headers["content-location"])
        assert poll.content == accepted.content
        gate.open()


async def test_cancel_tells_how_far_it_is() -> None:
    async with running(app_of(gated(Gate(), hold=True, max_running=1))) as client:
        first, second = [(await client.post("/slow")).json()["links"] for _ in range(2)]
        queued = await client.post(second["cancel"])
        assert (queued.status_code, queued.json()["status"]) == (200, "canceled")
        asked = await client.post(first["cancel"])
        assert (asked.status_code, asked.json()["status"]) == (202, "canceling")
        assert int(asked.headers["retry-after"]) >= 1
        await settled()
        again = await client.post(first["cancel"])
        assert (again.status_code, again.headers["job-status"]) == (200, "canceled")


async def test_a_finished_job_cannot_be_cancelled_but_deleted() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        gate.open()
        links = (await client.post("/slow")).json()["links"]
        await settled()
        for _ in range(2):
            conflict = await client.post(links["cancel"])
            assert (conflict.status_code, conflict.headers["job-status"]) == (409, "succeeded")
            assert conflict.json()["type"].endswith(":finished")
        assert (await client.delete(links["result"])).status_code == 204
        await gone(client, links)


async def test_a_job_that_is_not_finished_is_cancelled_and_forgotten() -> None:
    async with running(app_of(gated(Gate()))) as client:
        links = (await client.post("/slow")).json()["links"]
        deleted = await client.delete(links["result"])
        assert (deleted.status_code, deleted.json()["status"]) == (202, "canceling")
        await gone(client, links)


async def gone(client: httpx.AsyncClient, links: dict[str, str]) -> None:
    """Every route says 410, and tells nothing of the job."""
    for method, url in [
        *(("GET", links["result"]), ("GET", links["self"]), ("GET", links["events"])),
        *(("POST", links["cancel"]), ("DELETE", links["result"])),
    ]:
        answer = await client.request(method, url)
        assert (answer.status_code, answer.json()["type"]) == (410, "urn:raincheck:problem:expired")
        assert "job-status" not in answer.headers


async def test_unknown_foreign_and_malformed_ids_are_one_and_the_same_404() -> None:
    def owner(connection: HTTPConnection) -> str | None:
        return connection.headers.get("x-user")

    app = app_of(gated(gate := Gate(), "/slow"), slow_route(report, "/done"), owner=owner)
    async with running(app) as client:
        urls = [
            (await client.post(path, headers={"x-user": "ann"})).headers["location"]
            for path in ("/slow", "/done")
        ]
        await client.post("/done", headers={"x-user": "ann"})
        deleted = (await client.post("/done", headers={"x-user": "ann"})).headers["location"]
        await settled()
        assert (await client.delete(deleted, headers={"x-user": "ann"})).status_code == 204
        answers = set()
        for url in (*urls, deleted, "/jobs/" + "x" * 30, "/jobs/x", "/jobs/%00"):
            routes = (("GET", ""), ("GET", "/status"), ("GET", "/events"), ("POST", "/cancel"))
            for method, route in routes:
                answer = await client.request(method, url + route, headers={"x-user": "bob"})
                answers.add((answer.status_code, answer.content, str(answer.headers)))
            answer = await client.delete(url, headers={"x-user": "bob"})
            answers.add((answer.status_code, answer.content, str(answer.headers)))
        ((status, body, headers),) = answers
        assert status == 404
        assert b"urn:raincheck:problem:not-found" in body
        assert "job-status" not in headers
        gate.open()


async def report(request: Request) -> Response:
    return JSONResponse({"done": "yes"})


async def test_a_passing_503_is_told_from_a_final_one() -> None:
    async with running(
        app_of(jobs=virtual_jobs(store=TrickyStore(failing("fetch", error=StoreError("away")))))
    ) as client:
        passing = await client.get("/jobs/a")
    store = await store_of(FINISHED["interrupted"])
    async with running(app_of(jobs=virtual_jobs(store=store))) as client:
        final = await client.get("/jobs/a")
    for answer, told in ((passing, ["retry-after"]), (final, ["job-status"])):
        assert answer.status_code == 503
        assert [name for name in ("retry-after", "job-status") if name in answer.headers] == told


async def test_a_job_that_did_not_end_in_time_for_its_client_says_what_it_becomes() -> None:
    """A hybrid answer is the handler's own, as if nothing had happened."""

    async def answer(request: Request) -> Response:
        await anyio.sleep(2)
        return JSONResponse({}, 422)

    async with running(app_of(slow_route(answer))) as client:
        in_time = await client.post("/slow", headers={"prefer": "wait=3"})
        assert (in_time.status_code, in_time.headers["vary"]) == (422, "Prefer")
        assert "job-status" not in in_time.headers
        too_late = await client.post("/slow", headers={"prefer": "wait=1"})
        assert (too_late.status_code, too_late.json()["status"]) == (202, "running")
