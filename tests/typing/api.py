"""The public surface as type checkers see it. Never run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, assert_type

import httpx2
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from raincheck import (
    ConfigurationError,
    Failure,
    Job,
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Pages,
    Policy,
    Progress,
    RaincheckError,
    Retry,
    State,
    current_job,
    long_running,
    report,
)
from raincheck.client import (
    Following,
    RemoteJob,
    SyncRemoteJob,
    follow,
    submit,
    submit_sync,
)
from raincheck.dialects import (
    Dialect,
    GoogleDialect,
    OGCDialect,
    OpenAIDialect,
    PlainDialect,
    ReplicateDialect,
)
from raincheck.dialects.base import Urls
from raincheck.openapi import document, install

# --- long_running: the arguments stay, the result is awaited -----------------------------------


@long_running
async def bare(request: Request) -> JSONResponse:
    report(0.4, "412 of 1000 sent")
    report(1)
    report(None, "counting")
    return JSONResponse({})


@long_running
def bare_sync(request: Request, name: str) -> int:
    return len(name)


async def call(request: Request) -> None:
    assert_type(await bare(request), JSONResponse)
    await bare()  # type: ignore[call-arg] # the arguments are checked
    await bare("request")  # type: ignore[arg-type] # and their types
    await bare_sync(request, "name")


@long_running(
    respond="preferred",
    wait=1,
    max_wait=timedelta(minutes=1),
    timeout=None,
    ttl=3600.0,
    max_running=4,
    max_queued=None,
    max_request_size=1024,
    max_response_size=1024,
    retry_after=2,
    hold=True,
    live=True,
    callback="https://example.com/hook",
)
async def with_settings(request: Request) -> Response:
    return Response()


@long_running()
def with_parentheses(request: Request) -> Response:
    return Response()


async def call_with_settings(request: Request) -> None:
    await with_settings(request)
    await with_settings()  # type: ignore[call-arg] # the arguments are checked


long_running(name="reports.build", timeout=5)
long_running(name=5)  # type: ignore[call-overload] # a string
long_running(time_out=5)  # type: ignore[call-overload] # no such setting
long_running(timeout="5")  # type: ignore[call-overload] # a number or a timedelta
long_running(respond="sometimes")  # type: ignore[call-overload] # one of two words


class Reports(HTTPEndpoint):
    @long_running
    async def get(self, request: Request) -> Response:
        return Response()

    @long_running(timeout=600)
    def post(self, request: Request) -> Response:
        return Response()


async def call_method(reports: Reports, request: Request) -> None:
    assert_type(await reports.get(request), Response)


async def wait_here(job: Job, urls: Urls) -> Response:
    return Response(f"see {urls.monitor}")


def is_staff(connection: HTTPConnection) -> bool:
    return "staff" in connection.cookies


async def is_staff_here(connection: HTTPConnection) -> bool:
    return False


# --- the middleware ----------------------------------------------------------------------------

jobs = Jobs(store=MemoryStore(max_bytes=1024), limits=Limits(max_running=4, drain_timeout=30))
assert_type(jobs.status_app, ASGIApp)

starlette_app = Starlette(
    routes=[Route("/a", bare), Route("/b", Reports), Mount("/jobs", jobs.status_app)],
    middleware=[Middleware(LongRunningMiddleware, jobs=jobs)],
)
starlette_app.add_middleware(LongRunningMiddleware, path="/_jobs", policy=Policy(ttl=5))

fastapi_app = FastAPI()
fastapi_app.add_middleware(LongRunningMiddleware, limits=Limits(max_queued=10))


@fastapi_app.post("/videos/{id}")
@long_running(timeout=600)
def make(id: int) -> dict[str, str]:
    return {}


asgi_app: ASGIApp = LongRunningMiddleware(
    starlette_app,
    path="/jobs",
    routes={"POST /videos": Policy(timeout=3600), "/reports/{id:int}": Policy()},
    policy=Policy(respond="always", wait=timedelta(seconds=1)),
    limits=Limits(),
    store=MemoryStore(),
    base_url="https://api.example.org",
    pages=Pages(waiting=wait_here, operator=is_staff, own_list=True, words={"cancel": "Abbrechen"}),
)
LongRunningMiddleware(starlette_app, pages=Pages(waiting=None, operator=is_staff_here))

spoken: list[Dialect] = [
    PlainDialect(),
    OGCDialect(processes={"buffer": "buffer"}),
    GoogleDialect(max_content=1024),
    OpenAIDialect(max_content=1024),
    ReplicateDialect(model="acme/rain", version="7", max_content=1024),
]
LongRunningMiddleware(starlette_app, path="/v1/responses", dialect=spoken[0])
GoogleDialect(1024)  # type: ignore[call-arg] # keywords only
LongRunningMiddleware(starlette_app, "/jobs")  # type: ignore[call-arg] # keywords only
Policy("always")  # type: ignore[call-arg] # keywords only
Pages(own_list="yes")  # type: ignore[arg-type] # True or False
Pages(waiting=is_staff)  # type: ignore[arg-type] # of a job and its urls
Policy().ttl = 5  # type: ignore[misc] # frozen
Limits().max_running = 5  # type: ignore[misc] # frozen

# --- jobs --------------------------------------------------------------------------------------


async def ask(id: str) -> None:
    assert_type(await jobs.get(id), Job | None)
    assert_type(await jobs.cancel(id), Job | None)
    assert_type(await jobs.delete(id), Job | None)
    statistics = jobs.statistics()
    assert_type(statistics.running, int)
    assert_type(statistics.queued, int)


def look(job: Job) -> None:
    assert_type(current_job(), Job | None)
    assert_type(job.state, State)
    assert_type(job.progress, Progress | None)
    assert_type(job.finished, bool)
    assert_type(job.finished_at, float | None)
    assert_type(Policy().respond, Literal["always", "preferred"])
    if job.response is not None:
        assert_type(job.response.status, int)
    if job.error is not None:
        assert_type(job.error.status, int)
    job.state = State.FAILED  # type: ignore[misc] # frozen


def pause(failure: Failure) -> timedelta:
    assert_type(failure.status, int | None)
    assert_type(failure.exception, BaseException | None)
    assert_type(failure.runs, int)
    return timedelta(seconds=failure.runs)


Policy(
    retry=Retry(on=(503, OSError), max_runs=5, backoff=pause), max_wait_queued=timedelta(hours=1)
)
Policy(retry=Retry(on=lambda failure: failure.runs < 3, backoff=2))
Retry(on="503")  # type: ignore[arg-type] # a status is a number
Retry(503)  # type: ignore[call-arg] # keywords only


@long_running(retry=Retry(on=OSError))
async def repeated(request: Request) -> Response:
    return Response()


def catch(error: RaincheckError) -> None:
    if isinstance(error, ConfigurationError):
        as_value_error: ValueError = error
        print(as_value_error)


# --- clients -----------------------------------------------------------------------------------


async def ask_elsewhere(client: httpx2.AsyncClient) -> None:
    job = await submit(client, client.build_request("POST", "/videos"))
    assert_type(job, RemoteJob)
    assert_type(job.status_url, str)
    assert_type(await job.status(), Mapping[str, Any])
    async for update in job.updates():
        assert_type(update, Mapping[str, Any])
    await job.cancel()
    await job.response(deadline=5)
    await job.response(5)  # type: ignore[call-arg] # keywords only
    assert_type(RemoteJob.from_url(client, job.status_url), RemoteJob)


def ask_elsewhere_in_a_thread(client: httpx2.Client) -> None:
    assert_type(submit_sync(client, client.build_request("POST", "/videos")), SyncRemoteJob)


transports = follow(httpx2)
httpx2.Client(transport=transports.FollowTransport(deadline=5, on_update=print))
Following(deadline=5, on_update=lambda document: print(document["status"]))
Following(5)  # type: ignore[call-arg] # keywords only


def documents(app: FastAPI) -> None:
    install(app)
    assert_type(document(app.openapi(), app), dict[str, Any])
