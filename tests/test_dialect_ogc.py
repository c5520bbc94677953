"""The OGC dialect: the job part of OGC API - Processes 1.0, requirement by requirement.

The ids are those that the standard's repository has on its branch for 1.0; docs/dialects.md lists
the requirements that no test here is called by.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from starlette.responses import PlainTextResponse, Response

from raincheck import ConfigurationError
from raincheck.dialects import OGCDialect
from tests.exchanges import TIME, Exchange, staged

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

DIALECT = OGCDialect(processes={"echo": "echo-process"})
JOB = "GET /jobs/ID"
RESULTS = "GET /jobs/ID/results"
EXCEPTION = "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0/"
SELF = [
    {"href": "/jobs/ID", "rel": "self", "type": "application/json"},
    {"href": "/jobs/ID", "rel": "monitor", "type": "application/json"},
]
WITH_RESULTS = [
    *SELF,
    {"href": "/jobs/ID/results", "rel": "http://www.opengis.net/def/rel/ogc/1.0/results"},
]
RUNNING: dict[str, Any] = {
    "status": "running",
    "started": TIME,
    "progress": 40,
    "message": "two of five",
}
ENDED: dict[str, Any] = {"started": TIME, "finished": TIME, "links": WITH_RESULTS}
SUCCESSFUL: dict[str, Any] = {
    **ENDED,
    "status": "successful",
    "progress": 100,
    "message": "two of five",
}
DISMISSED: dict[str, Any] = {
    "started": TIME,
    "finished": TIME,
    "status": "dismissed",
    "progress": 40,
}


def info(status: str, **known: Any) -> dict[str, Any]:
    always = {"jobID": "ID", "id": "ID", "type": "process", "processID": "echo-process"}
    return {**always, "status": status, "created": TIME, "updated": TIME, "links": SELF, **known}


def exception(name: str, status: int, title: str, detail: str) -> dict[str, Any]:
    return {"type": EXCEPTION + name, "title": title, "status": status, "detail": detail}


NO_SUCH_JOB = exception("no-such-job", 404, "There is no such job", "No job has this id.")
GONE = exception("no-such-job", 410, "The job is gone", "The job has expired, or was deleted.")
NOT_READY = exception(
    "result-not-ready", 404, "There are no results yet", "The job has not finished."
)
NOT_AVAILABLE = exception(
    "result-not-available", 404, "The job was cancelled", "The job will have no response."
)
TIMED_OUT = {
    "type": "urn:raincheck:problem:timeout",
    "title": "The handler took too long",
    "status": 504,
    "detail": "The handler may run for 600 seconds.",
}
PROBLEM = {"content-type": "application/problem+json"}


def listed(*jobs: dict[str, Any], here: str = "/jobs") -> dict[str, Any]:
    links = [{"href": here, "rel": "self", "type": "application/json"}]
    return {"jobs": list(jobs), "links": links}


def malformed(detail: str) -> dict[str, Any]:
    title = "The query cannot be read"
    return {
        "type": "urn:raincheck:problem:malformed-query",
        "title": title,
        "status": 400,
        "detail": detail,
    }


EXCHANGES = {
    "/req/core/process-execute-async A, B, C": Exchange(
        "running",
        "",
        201,
        info("running", started=TIME),
        {"location": "/jobs/ID", "link": '</jobs/ID>; rel="monitor"', "vary": "Prefer"},
    ),
    "/req/core/process-execute-default-execution-mode A: asynchronous only": Exchange(
        "running", "", 201, None, {"preference-applied": None}
    ),
    "/req/core/job, /req/core/job-success: accepted": Exchange(
        "queued", JOB, 200, info("accepted")
    ),
    "/req/core/job-success: running": Exchange(
        "running", JOB, 200, info(**RUNNING), {"content-type": "application/json"}
    ),
    "/req/core/job-success: asked to stop": Exchange(
        "cancelling", JOB, 200, info(**RUNNING | {"message": "The job was asked to stop."})
    ),
    "/req/core/job-success: successful": Exchange("succeeded", JOB, 200, info(**SUCCESSFUL)),
    "/req/core/job-success: failed": Exchange(
        "failed",
        JOB,
        200,
        info("failed", **ENDED, progress=40, message="The response has status 422."),
    ),
    "/req/core/job-success: failed in time": Exchange(
        "timed out",
        JOB,
        200,
        info("failed", started=TIME, finished=TIME, progress=40, message=TIMED_OUT["detail"]),
    ),
    "/req/core/job-success: dismissed": Exchange(
        "cancelled", JOB, 200, info(**DISMISSED, message="two of five")
    ),
    "/req/core/job-exception-no-such-job": Exchange(
        "running", "GET /jobs/NOBODY", 404, NO_SUCH_JOB, PROBLEM
    ),
    "/req/core/job-exception-no-such-job: no id": Exchange(
        "running", "GET /jobs/no-id", 404, NO_SUCH_JOB, PROBLEM
    ),
    "/req/core/job-exception-no-such-job: there was one": Exchange("expired", JOB, 410, GONE),
    "/req/core/job-results, /req/core/job-results-param-outputs-omit": Exchange(
        "succeeded",
        RESULTS,
        200,
        {"sent": 3},
        {"content-type": "application/json", "job-status": "succeeded"},
    ),
    "/req/core/job-results-exception/no-such-job": Exchange(
        "running", "GET /jobs/NOBODY/results", 404, NO_SUCH_JOB, PROBLEM
    ),
    "/req/core/job-results-exception/results-not-ready: running": Exchange(
        "running", RESULTS, 404, NOT_READY, PROBLEM
    ),
    "/req/core/job-results-exception/results-not-ready: accepted": Exchange(
        "queued", RESULTS, 404, NOT_READY, PROBLEM
    ),
    "/req/core/job-results-failed: as the handler has it": Exchange(
        "failed", RESULTS, 422, {"detail": "There is no such file."}, {"job-status": "failed"}
    ),
    "/req/core/job-results-failed: by a deadline": Exchange(
        "timed out", RESULTS, 504, TIMED_OUT, {**PROBLEM, "job-status": "failed"}
    ),
    "results of a job that was dismissed": Exchange("cancelled", RESULTS, 404, NOT_AVAILABLE),
    "results of a job that is gone": Exchange("deleted", RESULTS, 410, GONE),
    "/req/dismiss/job-dismiss-op, job-dismiss-success: running": Exchange(
        "running", "DELETE /jobs/ID", 200, info(**DISMISSED, message="two of five")
    ),
    "/req/dismiss/job-dismiss-success: accepted": Exchange(
        "queued", "DELETE /jobs/ID", 200, info("dismissed", finished=TIME)
    ),
    "/req/dismiss/job-dismiss-success: finished": Exchange(
        "succeeded",
        "DELETE /jobs/ID",
        200,
        info(**SUCCESSFUL | {"status": "dismissed", "links": []}),
    ),
    "/req/dismiss/job-dismiss-success: dismissed": Exchange(
        "cancelled",
        "DELETE /jobs/ID",
        200,
        info(**DISMISSED, message="two of five") | {"links": []},
    ),
    "dismissed, and the handler does not stop": Exchange(
        "cancelling",
        "DELETE /jobs/ID",
        200,
        info(**RUNNING | {"message": "The job was asked to stop."}),
    ),
    "dismiss: no such job": Exchange("running", "DELETE /jobs/NOBODY", 404, NO_SUCH_JOB),
    "dismiss: there was one": Exchange("deleted", "DELETE /jobs/ID", 410, GONE),
    "/req/job-list/job-list-op, job-list-success, links, processID-mandatory": Exchange(
        "running", "GET /jobs", 200, listed(info(**RUNNING))
    ),
    "/req/job-list/type-definition, type-response": Exchange(
        "running",
        "GET /jobs?type=process",
        200,
        listed(info(**RUNNING), here="/jobs?type=process"),
    ),
    "/req/job-list/type-response: another": Exchange(
        "running", "GET /jobs?type=x", 400, malformed("Jobs here are of the type process.")
    ),
    "/req/job-list/processID-definition, processid-response": Exchange(
        "running",
        "GET /jobs?processID=echo-process",
        200,
        listed(info(**RUNNING), here="/jobs?processID=echo-process"),
    ),
    "/req/job-list/processid-response: another": Exchange(
        "running", "GET /jobs?processID=x", 200, listed(here="/jobs?processID=x")
    ),
    "/req/job-list/processID-definition: several": Exchange(
        "running",
        "GET /jobs?processID=x,y",
        400,
        malformed("Jobs are selected by one processID at a time here."),
    ),
    "/req/job-list/status-definition, status-response": Exchange(
        "running",
        "GET /jobs?status=running,accepted",
        200,
        listed(info(**RUNNING), here="/jobs?status=running,accepted"),
    ),
    "/req/job-list/status-response: another": Exchange(
        "running", "GET /jobs?status=failed", 200, listed(here="/jobs?status=failed")
    ),
    "/req/job-list/status-definition: no status": Exchange(
        "running",
        "GET /jobs?status=queued",
        400,
        malformed(
            "No job has this status; they have: accepted, running, successful, failed, dismissed."
        ),
    ),
    "/req/job-list/duration-definition: not covered": Exchange(
        "running",
        "GET /jobs?minDuration=3",
        400,
        malformed("Jobs are not selected by their duration here."),
    ),
    "/req/job-list/limit-definition: no limit": Exchange(
        "running",
        "GET /jobs?limit=0",
        400,
        malformed("The parameter limit is a whole number, 1 to 200."),
    ),
    "/req/job-list/datetime-definition: no time": Exchange(
        "running",
        "GET /jobs?datetime=../..",
        400,
        malformed("The parameter datetime has no time in it."),
    ),
    "a method that there is not": Exchange("running", "POST /jobs/ID", 405, None, PROBLEM),
    "what is the plain dialect's alone: events": Exchange(
        "running", "GET /jobs/ID/events", 404, NO_SUCH_JOB
    ),
    "what is the plain dialect's alone: cancel": Exchange(
        "running", "POST /jobs/ID/cancel", 404, NO_SUCH_JOB
    ),
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES.keys())
async def test_an_exchange_is_that_of_the_specification(exchange: Exchange) -> None:
    await exchange.check(DIALECT, "/jobs", name="echo", submit="/processes/echo-process/execution")


@pytest.mark.parametrize(
    ("prefer", "status", "applied"),
    [
        pytest.param({}, 200, None, id="/req/core/process-execute-default-execution-mode C"),
        pytest.param(
            {"prefer": "respond-async"},
            201,
            "respond-async",
            id="/req/core/process-execute-auto-execution-mode C, /rec/core/preference-applied",
        ),
        pytest.param(
            {"prefer": "respond-async, wait=5"},
            200,
            None,
            id="/rec/core/process-execute-honor-prefer B",
        ),
        pytest.param({"prefer": "respond-sync"}, 200, None, id="what OWSLib says instead"),
    ],
)
async def test_which_mode_is_negotiated(
    prefer: dict[str, str], status: int, applied: str | None
) -> None:
    """/req/core/process-execute-sync-one: what is answered in time is the output itself."""
    output = PlainTextResponse("three were sent")
    settings: dict[str, Any] = {"answer": output, "respond": "preferred", "headers": prefer}
    if status == 201:
        async with staged(DIALECT, "/jobs", **settings) as stage:
            assert stage.submitted.status_code == 201
            assert stage.submitted.headers["preference-applied"] == applied
        return
    async with staged(DIALECT, "/jobs", "succeeded", counts=False, **settings) as stage:
        assert (stage.submitted.status_code, stage.submitted.text) == (
            200,
            bytes(output.body).decode(),
        )
        assert stage.submitted.headers["vary"] == "Prefer"
        assert "link" not in stage.submitted.headers  # no job was made, as far as anybody knows


async def test_outputs_are_as_negotiated() -> None:
    """/req/core/job-results-async-one: the handler's own media type and bytes."""
    output = Response(b"\x00tiff", media_type="image/tiff; application=geotiff")
    async with staged(DIALECT, "/jobs", "succeeded", answer=output) as stage:
        response = await stage.ask(RESULTS)
        assert (response.status_code, response.content) == (200, b"\x00tiff")
        assert response.headers["content-type"] == "image/tiff; application=geotiff"


@pytest.mark.parametrize(
    ("interval", "there"),
    [
        ("{0}", True),
        ("{0}/..", True),
        ("{0}/", True),
        ("../{0}", True),
        ("/{0}", True),
        ("{-9}/{9}", True),
        ("{0}/{0}", True),
        ("{-9}", False),
        ("{-9}/{-5}", False),
        ("{5}/..", False),
        ("../{-1}", False),
    ],
)
async def test_jobs_are_listed_by_when_they_were_created(interval: str, there: bool) -> None:
    """/req/job-list/datetime-definition, /req/job-list/datetime-response."""
    async with staged(DIALECT, "/jobs") as stage:
        await stage.ask(JOB)
        created = stage.job.created_at
        text = interval
        for offset in (-9, -5, -1, 0, 5, 9):
            text = text.replace(f"{{{offset}}}", rfc_3339(created + offset))
        found = (await stage.ask("GET /jobs", params={"datetime": text})).json()["jobs"]
        assert bool(found) is there


def rfc_3339(moment: float) -> str:
    return datetime.fromtimestamp(int(moment), UTC).isoformat().replace("+00:00", "Z")


async def test_pages_of_a_list_are_linked() -> None:
    """/req/job-list/limit-definition, limit-response, links; /rec/job-list/next-1, -2 and -3."""
    async with staged(DIALECT, "/jobs", name="echo") as stage:
        for _ in range(11):
            await stage.client.post("/slow")
        seen: list[str] = []
        url: str | None = "/jobs?limit=5"
        while url is not None:
            page = (await stage.client.get(url)).json()
            links = {link["rel"]: link["href"] for link in page["links"]}
            assert links["self"] == url
            assert len(page["jobs"]) <= 5
            seen += [job["jobID"] for job in page["jobs"]]
            url = links.get("next")
        assert len(seen) == len(set(seen)) == 12
        assert len((await stage.ask("GET /jobs")).json()["jobs"]) == 10  # the default


async def test_a_process_is_named_in_lists_by_its_route_if_nothing_else_is_known() -> None:
    async with staged(OGCDialect(), "/jobs", name="echo") as stage:
        assert "processID" not in (await stage.ask(JOB)).json()
        assert (await stage.ask("GET /jobs")).json()["jobs"][0]["processID"] == "echo"
        found = (await stage.ask("GET /jobs?processID=echo")).json()["jobs"]
        assert [job["jobID"] for job in found] == [stage.job.id]


async def test_results_may_be_waited_for() -> None:
    async with staged(DIALECT, "/jobs") as stage:
        begun = anyio.current_time()
        response = await stage.ask(RESULTS, headers={"prefer": "respond-async, wait=5"})
        assert (response.status_code, stage.read(response)) == (404, NOT_READY)
        assert 4.9 < anyio.current_time() - begun < 5.5


@pytest.mark.parametrize(
    "processes", [["echo"], {"echo": 1}, {1: "echo"}, {"a": "echo", "b": "echo"}]
)
def test_processes_have_ids_of_their_own(processes: Any) -> None:
    with pytest.raises(ConfigurationError, match="processes="):
        OGCDialect(processes=processes)
