"""Lists of jobs and totals over HTTP: who may ask, what they are shown, and what they may do."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from raincheck import (
    ConfigurationError,
    Job,
    Jobs,
    Limits,
    LongRunningMiddleware,
    Pages,
    long_running,
)
from raincheck.pages import OperatorOf
from tests.conftest import virtual_jobs
from tests.doubles.stores import SharedMemory, TrickyStore, failing
from tests.support import Gate, app_of, gated, hidden, running, said, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

ADMIN = {"x-admin": "yes"}
STATUSES = ("queued", "running", "canceling", "succeeded", "failed", "canceled")


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


def user(name: str) -> dict[str, str]:
    return {"x-user": name}


def an_operator(connection: HTTPConnection) -> bool:
    return connection.headers.get("x-admin") == "yes"


async def quick(request: Request) -> Response:
    return PlainTextResponse("secret of the job", headers={"x-secret": "a header"})


async def refuse(request: Request) -> Response:
    return PlainTextResponse("no", 422)


async def crash(request: Request) -> Response:
    raise RuntimeError("an exception's own words")


def app_with(
    gate: Gate, *, operator: OperatorOf | None = an_operator, own: bool = False, **settings: Any
) -> LongRunningMiddleware:
    settings = {"owner": by_header, "pages": Pages(operator=operator, own_list=own), **settings}
    return app_of(
        gated(gate),
        *(slow_route(each, f"/{each.__name__}") for each in (quick, refuse, crash)),
        **settings,
    )


async def submit(client: httpx.AsyncClient, path: str = "/quick", **headers: str) -> str:
    accepted = await client.post(path, headers=headers)
    assert accepted.status_code == 202
    await settled()
    await anyio.sleep(1)
    return str(accepted.json()["job_id"])


async def listed(client: httpx.AsyncClient, url: str = "/jobs", **headers: str) -> Any:
    response = await client.get(url, headers=headers or ADMIN)
    assert response.status_code == 200, response.text
    return response.json()


async def ids(client: httpx.AsyncClient, url: str = "/jobs", **headers: str) -> list[str]:
    return [job["job_id"] for job in (await listed(client, url, **headers))["jobs"]]


# --- where and whether there is a list --------------------------------------------------------


@pytest.mark.parametrize("path", ["/jobs", "/jobs/", "/jobs/totals"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nobody"),
        pytest.param(user("ann"), id="an owner"),
        pytest.param({"x-admin": "no"}, id="no operator"),
    ],
)
async def test_who_is_no_operator_is_told_that_there_is_nothing(
    path: str, headers: dict[str, str]
) -> None:
    async with running(app_with(Gate())) as client:
        await submit(client, **user("ann"))
        response = await client.get(path, headers=headers)
        assert (response.status_code, response.json()["type"]) == (
            404,
            "urn:raincheck:problem:not-found",
        )
        unknown = await client.get("/jobs/" + "x" * 30)
        assert response.content == unknown.content


async def raising(connection: HTTPConnection) -> bool:
    raise LookupError("no session")


@pytest.mark.parametrize(
    ("operator", "problem"),
    [
        (raising, "no session"),
        (lambda connection: "yes", "gave str; it is a bool"),
        (lambda connection: None, "gave NoneType; it is a bool"),
    ],
)
async def test_an_operator_that_cannot_be_told_is_none_and_the_log_says_why(
    operator: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(app_with(Gate(), operator=operator)) as client:
        id = await submit(client, **user("ann"))
        caplog.clear()
        for answer in (
            await client.get("/jobs"),
            await client.get("/jobs/totals"),
            await client.get(f"/jobs/{id}/status"),
            await client.get(f"/jobs/{id}/events"),
            await client.post(f"/jobs/{id}/cancel"),
            await client.delete(f"/jobs/{id}"),
        ):
            assert answer.status_code == 404
        assert len(said(caplog)) == 6
        for record in said(caplog):
            assert record.levelno == logging.ERROR
            assert "an operator's" in record.getMessage()
            assert record.exc_info is not None
            assert problem in str(record.exc_info[1])


async def test_the_operator_is_asked_for_each_request_and_may_be_a_coroutine() -> None:
    asked: list[str] = []

    async def operator(connection: HTTPConnection) -> bool:
        await anyio.lowlevel.checkpoint()
        asked.append(connection.url.path)
        return an_operator(connection)

    async with running(app_with(Gate(), operator=operator)) as client:
        id = await submit(client, **user("ann"))
        assert await ids(client) == [id]
        assert await ids(client) == [id]
        assert (await client.get(f"/jobs/{id}/status", headers=ADMIN)).status_code == 200
        assert (await client.get(f"/jobs/{id}", headers=ADMIN)).status_code == 404
    assert asked == ["/jobs", "/jobs", f"/jobs/{id}/status"]


async def own_page(request: Request) -> Response:
    return PlainTextResponse("the app's own page")


@pytest.mark.parametrize("hides", [False, True])
async def test_where_lists_are_not_turned_on_the_mount_path_is_the_apps_own(hides: bool) -> None:
    @long_running
    async def own_job(request: Request) -> Response:
        return PlainTextResponse("the app's own job")

    routes = [Route("/jobs", own_page), Route("/jobs", own_job, methods=["POST"])]
    app: Any = Starlette(routes=routes)
    app = LongRunningMiddleware(hidden(app) if hides else app, jobs=virtual_jobs())
    async with running(app) as client:
        assert (await client.get("/jobs", headers=ADMIN)).text == "the app's own page"
        assert (await client.post("/jobs")).status_code == 202
        for path in ("/jobs/", "/jobs/totals"):
            assert (await client.get(path, headers=ADMIN)).status_code in (307, 404)


async def test_lists_are_there_also_where_the_apps_routes_cannot_be_read() -> None:
    inner: Any = Starlette(routes=[slow_route(quick, "/quick"), Route("/jobs", own_page)])
    pages = Pages(operator=an_operator)
    app = LongRunningMiddleware(hidden(inner), jobs=virtual_jobs(), pages=pages)
    async with running(app) as client:
        id = await submit(client)
        assert await ids(client) == await ids(client, "/jobs/") == [id]
        assert (await listed(client, "/jobs/totals"))["succeeded"] == 1
        assert (await client.post("/jobs", headers=ADMIN)).status_code == 405  # the app's own


async def test_what_else_is_at_the_mount_path_stays_the_apps_own() -> None:
    @long_running
    async def own_job(request: Request) -> Response:
        return PlainTextResponse("the app's own job")

    routes = [Route("/jobs", own_job, methods=["POST"]), Route("/jobs-of-mine", own_page)]
    async with running(app_of(*routes, pages=Pages(operator=an_operator))) as client:
        id = await submit(client, "/jobs")
        assert await ids(client) == [id]
        assert (await client.get("/jobs-of-mine")).text == "the app's own page"
        assert (await client.head("/jobs", headers=ADMIN)).content == b""


def test_a_page_of_the_apps_own_that_could_not_be_reached_is_refused() -> None:
    app = app_of(Route("/jobs", own_page), pages=Pages(own_list=True))

    async def start() -> None:
        async with running(app):
            pass

    with pytest.raises(ConfigurationError, match="could not be reached, since pages="):
        anyio.run(start)


async def test_lists_of_routes_mounted_by_hand() -> None:
    jobs = virtual_jobs()
    routes = [slow_route(quick, "/quick"), Mount("/jobs", jobs.status_app)]
    async with running(app_of(*routes, jobs=jobs, pages=Pages(operator=an_operator))) as client:
        found = [await submit(client) for _ in range(3)]
        redirected = await client.get("/jobs?limit=2", headers=ADMIN, follow_redirects=True)
        assert redirected.url.path == "/jobs/"  # as Starlette has mounts
        first = redirected.json()
        assert [job["job_id"] for job in first["jobs"]] == found[:0:-1]
        assert urlsplit(first["next"]).path == "/jobs/"
        assert await ids(client, first["next"]) == found[:1]
        assert (await listed(client, "/jobs/totals"))["succeeded"] == 3
        assert (await client.get("/jobs/")).status_code == 404
        refused = await client.post("/jobs/", headers=ADMIN)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_the_middleware_lists_nothing_itself_once_the_routes_are_mounted() -> None:
    jobs = virtual_jobs()
    routes = [Mount("/jobs", jobs.status_app), Mount("/inner", routes=[Route("/x", own_page)])]
    inner = Starlette(routes=routes)
    inner.router.redirect_slashes = False
    app = LongRunningMiddleware(inner, jobs=jobs, pages=Pages(operator=an_operator))
    async with running(app) as client:
        assert (await client.get("/jobs", headers=ADMIN)).text == "Not Found"  # the router's


async def test_lists_below_a_root_path_and_with_a_base_url() -> None:
    for base_url in (None, "https://x.example"):
        start = (base_url or "") + "/api/_jobs"
        pages = Pages(operator=an_operator)
        app = app_of(slow_route(quick), path="/_jobs", base_url=base_url, pages=pages)

        async def below(scope: Any, receive: Any, send: Any, app: Any = app) -> None:
            if scope["type"] == "http":
                scope = {**scope, "root_path": "/api", "path": "/api" + scope["path"]}
            await app(scope, receive, send)

        async with running(below) as client:
            for _ in range(2):
                await submit(client, "/slow")
            page = await listed(client, "/_jobs?limit=1")
            assert page["next"].startswith(start + "?")
            assert page["jobs"][0]["links"]["self"].startswith(start + "/")


# --- what a list says -------------------------------------------------------------------------


async def test_a_list_has_documents_newest_first_with_their_routes_and_owners() -> None:
    async with running(app_with(gate := Gate(), jobs=virtual_jobs())) as client:
        done = await submit(client, **user("ann"))
        lost = await submit(client, "/crash", **user("ann"))
        refused = await submit(client, "/refuse", **user("bob"))
        runs = await submit(client, "/slow")
        page = await listed(client)
        assert page["next"] is None
        assert [job["job_id"] for job in page["jobs"]] == [runs, refused, lost, done]
        assert [job["status"] for job in page["jobs"]] == [
            *("running", "failed", "failed", "succeeded")
        ]
        assert [job["owner"] for job in page["jobs"]] == [None, "bob", "ann", "ann"]
        assert [job["route"] for job in page["jobs"]] == ["slow", "refuse", "crash", "quick"]
        assert [job["runs"] for job in page["jobs"]] == [1, 1, 1, 1]
        assert page["jobs"][1]["error"]["message"] == "The response has status 422."
        assert page["jobs"][2]["error"]["message"] == "The response has status 500."
        for job in page["jobs"]:
            monitor = await client.get(f"/jobs/{job['job_id']}/status", headers=ADMIN)
            own = {name: job[name] for name in job if name not in ("route", "owner")}
            assert own == monitor.json()
        gate.open()


async def test_a_list_shows_no_body_and_no_header_of_anybody() -> None:
    async with running(app_with(Gate())) as client:
        await client.post("/quick", headers=user("ann"), content=b"what ann sent")
        await client.post("/crash", headers={**user("ann"), "authorization": "a token"})
        await settled()
        for path in ("/jobs", "/jobs/totals"):
            text = (await client.get(path, headers=ADMIN)).text
            for secret in ("secret of", "a header", "what ann", "a token", "own words"):
                assert secret not in text


async def test_nothing_keeps_a_list() -> None:
    async with running(app_with(Gate())) as client:
        await submit(client)
        for path in ("/jobs", "/jobs/totals"):
            response = await client.get(path, headers=ADMIN)
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["referrer-policy"] == "no-referrer"
            assert response.headers["content-type"] == "application/json"
            head = await client.head(path, headers=ADMIN)
            assert (head.content, head.headers) == (b"", response.headers)


async def test_a_synchronous_answer_is_no_job_that_an_operator_sees() -> None:
    app = app_of(
        slow_route(quick, respond="preferred"), pages=Pages(operator=an_operator), owner=by_header
    )
    async with running(app) as client:
        jobs: Jobs = app.jobs
        headers = {**user("ann"), "idempotency-key": '"k"'}
        assert (await client.post("/slow", headers=headers)).status_code == 200
        assert await ids(client) == []
        store: Any = jobs.store
        id = [*store._live, *store._at_rest][0]
        assert (await client.get(f"/jobs/{id}/status", headers=ADMIN)).status_code == 404
        assert (await client.delete(f"/jobs/{id}", headers=ADMIN)).status_code == 404


async def test_a_store_that_fails_is_a_503() -> None:
    store = TrickyStore(failing("list", "totals"))
    async with running(app_with(Gate(), jobs=virtual_jobs(store=store))) as client:
        for path in ("/jobs", "/jobs/totals"):
            response = await client.get(path, headers=ADMIN)
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")


# --- filters and pages ------------------------------------------------------------------------


@asynccontextmanager
async def several() -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """Jobs in several states, of two owners and none, and what each is called."""
    pages = Pages(operator=an_operator, own_list=True)
    routes = [gated(gate := Gate(), max_running=1), slow_route(quick, "/quick")]
    rules = [slow_route(refuse, "/refuse")]
    async with running(app_of(*routes, *rules, pages=pages, owner=by_header)) as client:
        found = {}
        for name, path, owner in (
            ("running", "/slow", "ann"),
            ("queued", "/slow", "ann"),
            ("stopped", "/slow", "bob"),
            ("done", "/quick", "ann"),
            ("refused", "/refuse", "bob"),
            ("nobody's", "/quick", ""),
        ):
            found[name] = await submit(client, path, **(user(owner) if owner else {}))
        await client.post(f"/jobs/{found['stopped']}/cancel", headers=user("bob"))
        yield client, found
        gate.open()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "nobody's, refused, done, stopped, queued, running"),
        ("status=running", "running"),
        ("status=queued&status=running", "queued, running"),
        ("status=queued,running", "queued, running"),
        ("status=queued%2C+running", "queued, running"),
        ("status=canceled", "stopped"),
        ("status=canceling", ""),
        ("status=succeeded,failed", "nobody's, refused, done"),
        ("owner=ann", "done, queued, running"),
        ("owner=ann&status=succeeded", "done"),
        ("owner=nobody", ""),
        ("owner=%FF", ""),
        ("owner=%00", ""),
        ("route=", "nobody's, refused, done, stopped, queued, running"),
        ("status=&owner=&created_since=&created_before=&limit=&cursor=", "nobody's, refused, "
            "done, stopped, queued, running"),
        ("route=nowhere", ""),
        ("route=slow", "stopped, queued, running"),
        ("route=slow&status=queued&owner=ann", "queued"),
        ("limit=2", "nobody's, refused"),
        ("limit=999999999999999999999999", "nobody's, refused, done, stopped, queued, running"),
        ("other=1&limit=1", "nobody's"),
        ("created_since=2000-01-01T00:00:00Z&limit=1", "nobody's"),
        ("created_before=2000-01-01T00:00:00%2B02:00", ""),
        ("created_since=2999-01-01", ""),
        ("created_before=2999-01-01T00:00&limit=1", "nobody's"),
    ],
)  # fmt: skip
async def test_a_list_has_what_is_asked_for(query: str, expected: str) -> None:
    async with several() as (client, found):
        names = {id: name for name, id in found.items()}
        jobs = await ids(client, f"/jobs?{query}")
        assert ", ".join(names[id] for id in jobs) == expected


async def test_a_list_of_an_age() -> None:
    async with several() as (client, found):
        when = {job["job_id"]: job["created_at"] for job in (await listed(client))["jobs"]}
        since, until = when[found["queued"]], when[found["refused"]]
        of = await ids(client, f"/jobs?created_since={since}&created_before={until}")
        assert of == [found[name] for name in ("done", "stopped", "queued")]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("status=done", "queued, running, canceling, succeeded, failed, canceled."),
        ("status=cancelled", "queued, running, canceling, succeeded, failed, canceled."),
        ("status=queued,", "queued, running, canceling, succeeded, failed, canceled."),
        ("limit=0", "The parameter limit is a whole number, 1 to 200."),
        ("limit=-1", "The parameter limit is a whole number"),
        ("limit=ten", "The parameter limit is a whole number"),
        ("limit=1.5", "The parameter limit is a whole number"),
        ("limit=%D9%A1", "The parameter limit is a whole number"),
        ("cursor=yesterday", "No page of a list ends at this cursor."),
        ("cursor=nan~x", "No page of a list ends at this cursor."),
        ("cursor=1~%00", "No page of a list ends at this cursor."),
        ("created_since=yesterday", "like 2026-11-21T12:00:00Z"),
        ("created_since=2026-11-21T12:00:00 02:00", "in a URL a plus is %2B."),
        ("created_before=1", "The parameter created_before is a time"),
        ("owner=a&owner=b", "The parameter owner is given twice."),
        ("&".join(f"a{number}=1" for number in range(200)), ""),
    ],
)
async def test_a_query_that_cannot_be_read_is_a_400_that_says_why(query: str, detail: str) -> None:
    async with running(app_with(Gate())) as client:
        response = await client.get(f"/jobs?{query}", headers=ADMIN)
        problem = response.json()
        assert (response.status_code, problem["type"]) == (
            400,
            "urn:raincheck:problem:malformed-query",
        )
        assert detail in problem["detail"]


async def test_pages_have_each_job_once_and_keep_the_filters() -> None:
    async with running(app_with(Gate())) as client:
        found = [await submit(client, **user(f"user {number % 2}")) for number in range(9)]
        url, pages = "/jobs?owner=user+1&status=succeeded,failed&limit=2&cursor=", []
        while url:
            page = await listed(client, url)
            pages.append([job["job_id"] for job in page["jobs"]])
            url = page["next"]
            if url:
                query = parse_qs(urlsplit(url).query)
                assert query.pop("cursor")
                assert query == {
                    "owner": ["user 1"],
                    "status": ["succeeded,failed"],
                    "limit": ["2"],
                }
            await submit(client, **user("user 1"))  # what comes meanwhile changes no page
        assert pages == [found[7::-4][:1] + found[5::-4][:1], found[3::-4][:1] + found[1::-4][:1]]


@pytest.mark.one_loop
async def test_a_page_has_fifty_jobs_and_two_hundred_at_most() -> None:
    async with running(app_with(Gate())) as client:
        for _ in range(201):
            await client.post("/quick")
        await settled()
        assert len(await ids(client)) == 50
        page = await listed(client, "/jobs?limit=1000")
        assert len(page["jobs"]) == 200
        assert len(await ids(client, page["next"])) == 1


# --- what an operator may do ------------------------------------------------------------------


async def test_an_operator_reads_the_monitor_but_never_the_response() -> None:
    async with running(app_with(Gate())) as client:
        id = await submit(client, **user("ann"))
        assert (await client.get(f"/jobs/{id}/status", headers=ADMIN)).json()["status"] == (
            "succeeded"
        )
        for method in ("GET", "HEAD"):
            refused = await client.request(method, f"/jobs/{id}", headers=ADMIN)
            assert refused.status_code == 404
        refused = await client.get(f"/jobs/{id}", headers={**ADMIN, "range": "bytes=0-1"})
        assert refused.status_code == 404
        assert (await client.get(f"/jobs/{id}", headers=user("ann"))).status_code == 200


async def test_an_operator_follows_the_events_of_a_job() -> None:
    async with running(app_with(Gate())) as client:
        id = await submit(client, **user("ann"))
        told = await client.get(f"/jobs/{id}/events", headers=ADMIN)
        assert (told.status_code, '"status": "succeeded"' in told.text) == (200, True)
        for headers in ({}, user("bob")):
            assert (await client.get(f"/jobs/{id}/events", headers=headers)).status_code == 404


async def test_an_operator_cancels_and_deletes_what_is_anybodys() -> None:
    async with running(app_with(gate := Gate())) as client:
        running_, done = [await submit(client, path, **user("ann")) for path in ("/slow", "/quick")]
        cancelled = await client.post(f"/jobs/{running_}/cancel", headers=ADMIN)
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "canceling")
        await settled()
        assert gate.cleaned_up == 1
        again = await client.post(f"/jobs/{running_}/cancel", headers=ADMIN)
        assert (again.status_code, again.json()["status"]) == (200, "canceled")
        assert (await client.post(f"/jobs/{done}/cancel", headers=ADMIN)).status_code == 409
        assert (await client.delete(f"/jobs/{done}", headers=ADMIN)).status_code == 204
        assert (await client.delete(f"/jobs/{done}", headers=ADMIN)).status_code == 410
        assert (await client.get(f"/jobs/{done}", headers=user("ann"))).status_code == 410
        assert await ids(client) == [running_]


async def test_an_operator_ends_what_several_share() -> None:
    app = app_of(
        gated(gate := Gate(), coalesce=True), owner=by_header, pages=Pages(operator=an_operator)
    )
    async with running(app) as client:
        first = await submit(client, "/slow", **user("ann"))
        assert await submit(client, "/slow", **user("ann")) == first
        left = await client.post(f"/jobs/{first}/cancel", headers=user("ann"))
        assert left.json()["status"] == "running"  # the other one still waits for it
        await submit(client, "/slow", **user("ann"))
        ended = await client.post(f"/jobs/{first}/cancel", headers=ADMIN)
        assert ended.json()["status"] == "canceling"
        await settled()
        assert gate.cleaned_up == 1


async def test_an_operator_deletes_what_several_share() -> None:
    app = app_of(
        slow_route(quick, coalesce=True, wait=0),
        gated(gate := Gate(), "/gated", coalesce=True),
        owner=by_header,
        pages=Pages(operator=an_operator),
    )
    async with running(app) as client:
        first = await submit(client, "/gated", **user("ann"))
        assert await submit(client, "/gated", **user("ann")) == first
        gate.open()
        await settled()
        kept = await client.delete(f"/jobs/{first}", headers=user("ann"))
        assert (kept.status_code, len(await ids(client))) == (204, 1)
        gone = await client.delete(f"/jobs/{first}", headers=ADMIN)
        assert (gone.status_code, await ids(client)) == (204, [])


async def test_an_operator_whose_owner_nobody_knows_is_an_operator_still() -> None:
    def owner(connection: HTTPConnection) -> str | None:
        if "x-admin" in connection.headers:
            raise LookupError("an operator is no user")
        return by_header(connection)

    async with running(app_with(Gate(), owner=owner)) as client:
        id = await submit(client, **user("ann"))
        assert await ids(client) == [id]
        assert (await client.get(f"/jobs/{id}/status", headers=ADMIN)).status_code == 200
        assert (await client.get(f"/jobs/{id}", headers=ADMIN)).status_code == 404


async def test_a_foreign_job_stays_a_404_to_everybody_else() -> None:
    async with running(app_with(Gate(), own=True)) as client:
        id = await submit(client, **user("ann"))
        for headers in ({}, user("bob"), {"x-admin": "no"}):
            for answer in (
                await client.get(f"/jobs/{id}", headers=headers),
                await client.get(f"/jobs/{id}/status", headers=headers),
                await client.post(f"/jobs/{id}/cancel", headers=headers),
                await client.delete(f"/jobs/{id}", headers=headers),
            ):
                assert answer.status_code == 404
        assert await ids(client) == [id]


# --- an owner's own list ----------------------------------------------------------------------


async def test_owners_list_their_own_jobs_and_no_others() -> None:
    async with running(app_with(Gate(), operator=None, own=True)) as client:
        ann = [await submit(client, **user("ann")) for _ in range(2)]
        bob = await submit(client, **user("bob"))
        await submit(client)
        page = await listed(client, **user("ann"))
        assert [job["job_id"] for job in page["jobs"]] == ann[::-1]
        for job in page["jobs"]:
            assert "route" in job
            assert "owner" not in job
        assert await ids(client, **user("bob")) == [bob]
        assert await ids(client, **user("eve")) == []
        assert await ids(client, "/jobs?owner=ann", **user("ann")) == ann[::-1]
        assert await ids(client, "/jobs?owner=bob", **user("ann")) == []
        first = await listed(client, "/jobs?limit=1", **user("ann"))
        assert await ids(client, first["next"], **user("ann")) == ann[:1]
        assert await ids(client, first["next"], **user("bob")) == []
        assert (await client.get("/jobs")).status_code == 404
        assert (await client.get("/jobs", headers=ADMIN)).status_code == 404
        assert (await client.get("/jobs/totals", headers=user("ann"))).status_code == 404


async def test_an_owner_whom_nobody_can_tell_has_no_list() -> None:
    def owner(connection: HTTPConnection) -> str | None:
        raise LookupError

    async with running(app_with(Gate(), operator=None, own=True, owner=owner)) as client:
        assert (await client.get("/jobs")).status_code == 404


async def test_an_operator_who_has_jobs_lists_all_and_may_ask_for_their_own() -> None:
    async with running(app_with(Gate(), own=True)) as client:
        mine = await submit(client, **user("root"))
        other = await submit(client, **user("ann"))
        assert await ids(client, **ADMIN, **user("root")) == [other, mine]
        assert await ids(client, "/jobs?owner=root", **ADMIN, **user("root")) == [mine]


# --- totals -----------------------------------------------------------------------------------


async def test_totals_of_a_deployment() -> None:
    async with running(app_with(gate := Gate(), jobs=virtual_jobs())) as client:
        empty = await listed(client, "/jobs/totals")
        assert empty == {
            **dict.fromkeys(STATUSES, 0),
            "oldest_queued_at": None,
            "workers": [],
            "routes": [],
        }
        for path in ("/slow", "/quick", "/quick", "/crash"):
            await submit(client, path)
        totals = await listed(client, "/jobs/totals")
        assert [totals[word] for word in STATUSES] == [0, 1, 0, 2, 1, 0]
        routes = {route["route"]: route for route in totals["routes"]}
        assert [*routes] == ["crash", "quick", "slow"]
        assert [routes["quick"][word] for word in STATUSES] == [0, 0, 0, 2, 0, 0]
        assert [route["mean_seconds"] is None for route in routes.values()] == [True, False, True]
        gate.open()


async def test_totals_name_the_oldest_that_waits_and_the_processes_that_run_jobs() -> None:
    store = SharedMemory()
    pages = Pages(operator=an_operator)
    limits = Limits(max_running=1)
    gate = Gate()
    apps = [
        app_of(gated(gate), jobs=virtual_jobs(store=store, limits=limits), pages=pages)
        for _ in range(2)
    ]
    async with running(apps[0]) as one, running(apps[1]) as other:
        waits = []
        for client in (one, other):
            await submit(client, "/slow")
            waits.append((await client.post("/slow")).json())
            await anyio.sleep(5)
        totals = await listed(one, "/jobs/totals")
        assert (totals["queued"], totals["running"]) == (2, 2)
        assert totals["oldest_queued_at"] == waits[0]["created_at"]
        assert totals["routes"][0]["oldest_queued_at"] == waits[0]["created_at"]
        assert [worker["running"] for worker in totals["workers"]] == [1, 1]
        assert len({worker["name"] for worker in totals["workers"]}) == 2
        assert totals == await listed(other, "/jobs/totals")
        gate.open()


async def test_workers_are_those_of_many_jobs_and_of_no_more_than_can_be_read() -> None:
    store = SharedMemory()
    jobs = virtual_jobs(store=store)
    app = app_of(gated(Gate()), jobs=jobs, pages=Pages(operator=an_operator))
    for number in range(1300):
        new = Job.accepted(
            f"{number:030}", "slow", float(number), runs=True, holder=f"{number % 2}"
        )
        await store.create(new)
    async with running(app) as client:
        workers = (await listed(client, "/jobs/totals"))["workers"]
        assert sorted(worker["running"] for worker in workers) == [500, 500]


async def test_totals_say_how_long_a_route_takes() -> None:
    async def nap(request: Request) -> Response:
        await anyio.sleep(float(request.query_params["seconds"]))
        return Response()

    async with running(app_of(slow_route(nap), pages=Pages(operator=an_operator))) as client:
        for seconds in (10, 20):
            await client.post(f"/slow?seconds={seconds}")
        await anyio.sleep(30)
        mean = (await listed(client, "/jobs/totals"))["routes"][0]["mean_seconds"]
        assert mean == pytest.approx(15, abs=1)
