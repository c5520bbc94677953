"""What docs/security.md says, statement by statement, where no other file tests it."""

from __future__ import annotations

import ast
import importlib
import logging
import re
import socket
import threading
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import Job, Jobs, Limits, LongRunningMiddleware, MemoryStore, Policy, long_running
from raincheck.ids import Ids
from raincheck.job import Key
from raincheck.messages import CapturedRequest
from raincheck.owners import cookie
from raincheck.serialization import load
from raincheck.stores.memory import RECORD_COST
from raincheck.testing import follow, lifespan
from tests.conftest import virtual_jobs
from tests.doubles.stores import Trick, TrickyStore, failing, no_trick
from tests.support import Gate, RawRequest, app_of, gated, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

DOCS = Path(__file__).parents[1] / "docs"
SITE = {"origin": "https://app.example.org"}
EVIL = {"origin": "https://evil.example"}
TOKEN = {"authorization": "t"}


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


def user(name: str) -> dict[str, str]:
    return {"x-user": name}


async def quick(request: Request) -> Any:
    return {"body": (await request.body()).decode()}


async def job_of(jobs: Jobs, response: httpx.Response) -> Job:
    job = await jobs.get(response.json()["job_id"])
    assert job is not None
    return job


async def kept_of(jobs: Jobs, response: httpx.Response) -> CapturedRequest | None:
    """The captured request that is kept beside a job."""
    return await jobs.store.request(response.json()["job_id"])


async def every_route(client: httpx.AsyncClient, url: str, **headers: str) -> list[httpx.Response]:
    """Every route of a job, those that end it last."""
    return [
        await client.get(url, headers=headers),
        await client.head(url, headers=headers),
        await client.get(url + "/status", headers=headers),
        await client.head(url + "/events", headers=headers),
        await client.post(url + "/cancel", headers=headers),
        await client.delete(url, headers=headers),
    ]


# --- ids -----------------------------------------------------------------------------------------


def test_ids_differ_and_each_of_128_bits_is_random() -> None:
    ids = Ids("/jobs")
    minted = [ids.mint() for _ in range(2000)]
    assert len({id[:21] for id in minted}) == 2000  # 126 bits: the letters that hold no other
    for place in range(21):  # every letter of 64 turns up everywhere
        assert len({id[place] for id in minted}) == 64


async def test_whoever_has_the_url_of_a_job_without_an_owner_can_read_and_end_it() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        url = (await client.post("/slow", headers=TOKEN)).headers["location"]
        await settled()
        for response in await every_route(client, url):
            assert response.status_code < 300
        await settled()
        assert (await client.get(url)).status_code == 410
        assert gate.cleaned_up == 1


async def test_nothing_that_shows_a_url_passes_it_on_or_may_be_kept() -> None:
    async with running(app_of(gated(gate := Gate()), slow_route(quick, "/quick"))) as client:
        accepted = await client.post("/slow")
        url = accepted.headers["location"]
        answers = [accepted, *await every_route(client, url), *await every_route(client, url)]
        answers.append(await client.put(url))  # 405
        answers.append(await client.get("/jobs/unknown"))
        answers.append(await client.get("/slow", headers={"sec-fetch-mode": "navigate"}))
        answers.append(await follow(client, await client.post("/quick")))
        shown = {response.status_code for response in answers}
        assert shown == {200, 202, 303, 404, 405, 410}
        for response in answers:
            assert response.headers["referrer-policy"] == "no-referrer"
            assert response.headers["cache-control"] == "no-store"
        gate.open()


async def test_a_handlers_own_referrer_policy_is_left_alone() -> None:
    async def answer(request: Request) -> Response:
        return Response(headers={"referrer-policy": "origin"})

    async with running(app_of(slow_route(answer))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.headers.get_list("referrer-policy") == ["origin"]


@pytest.mark.parametrize("base_url", [None, "https://api.example.org"])
async def test_no_url_comes_from_the_host_header(base_url: str | None) -> None:
    async with running(app_of(gated(gate := Gate()), base_url=base_url)) as client:
        host = {"host": "evil.example", "x-forwarded-host": "evil.example"}
        response = await client.post("/slow", headers=host)
        url = urlsplit(response.headers["location"])
        assert url.netloc == ("" if base_url is None else "api.example.org")
        for answer in (response, await client.get(url.path, headers=host)):
            assert "evil" not in answer.text + str(answer.headers.raw)
        gate.open()


async def test_the_log_tells_nothing_of_a_job_that_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "raincheck")
    app = app_of(slow_route(quick), owner=by_header)
    async with running(app) as client:
        headers = {**user("ann"), "idempotency-key": "a-key"}
        accepted = await client.post("/slow", content=b"a body", headers=headers)
        await settled()
        await every_route(client, accepted.headers["location"], **headers)
        await every_route(client, accepted.headers["location"], **user("bob"))
    assert [record for record in caplog.records if record.name.startswith("raincheck")] == []


class Odd:
    """What becomes of jobs whose requests and responses are full of secrets."""

    def __init__(self) -> None:
        self.gate = Gate()

    async def handler(self, request: Request) -> Response:
        body = (await request.body()).decode()
        response = PlainTextResponse(body, 500 if body == "s3cret 500" else 200)
        response.set_cookie("session", "s3cret")
        if body == "s3cret raises":
            raise LookupError("it is not there")
        if body == "s3cret odd":
            response.headers["x-odd"] = "s3cret\x00"
        if body == "s3cret large":
            response = PlainTextResponse("s3cret" * 1000)
        if body == "s3cret slow":
            await anyio.sleep(1000)
        if body == "s3cret waits":
            await self.gate.wait()
        return response


async def test_the_log_has_nothing_of_what_requests_and_responses_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "raincheck")
    odd = Odd()
    route = Route(
        "/slow",
        long_running(max_running=1, timeout=9, max_response_size=5000, max_request_size=100)(
            odd.handler
        ),
        methods=["POST"],
    )
    secret = {**user("s3cret-ann"), "authorization": "s3cret", "cookie": "s3cret=s3cret"}
    urls = []
    async with running(app_of(route, owner=by_header)) as client:
        for number, body in enumerate(("waits", "500", "raises", "odd", "large", "slow", "fine")):
            headers = {**secret, "idempotency-key": f"s3cret-{number}"}
            text = f"s3cret {body}"
            accepted = await client.post("/slow?q=s3cret", content=text, headers=headers)
            assert accepted.status_code == 202
            urls.append(accepted.headers["location"])
        for content, status in (("s3cret other", 422), ("s3cret" * 100, 413)):
            refused = await client.post("/slow", content=content, headers=headers)
            assert refused.status_code == status
        odd.gate.open()
        done = [await client.get(u, headers={**secret, "prefer": "wait=100"}) for u in urls]
        for url in urls:
            await every_route(client, url, **user("s3cret-bob"))
            await every_route(client, url, **secret)
    assert len({response.status_code for response in done}) > 2
    records = [record for record in caplog.records if record.name == "raincheck"]
    assert len(records) >= 4  # of those that raised, were odd or large, or ran too long
    lines = [logging.Formatter().format(record) + str(vars(record)) for record in records]
    assert [line for line in lines if "s3cret" in line] == []


# --- owners --------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
async def test_a_foreign_job_costs_what_an_unknown_one_costs(finished: bool) -> None:
    """The same calls to the store and to the owner's function, and no wait."""
    extracted = 0

    def owner(connection: HTTPConnection) -> str | None:
        nonlocal extracted
        extracted += 1
        return connection.headers.get("x-user")

    asked: list[str] = []

    async def ask(call: str, /, *arguments: Any, **more: Any) -> None:
        asked.append(call)

    store = TrickyStore(ask)
    jobs = virtual_jobs(store=store, limits=Limits(tombstone_ttl=0))
    app = app_of(gated(gate := Gate()), slow_route(quick, "/quick"), owner=owner, jobs=jobs)
    async with running(app) as client:
        forgotten = (await client.post("/quick", headers=user("ann"))).headers["location"]
        await settled()
        await client.delete(forgotten, headers=user("ann"))
        await anyio.sleep(30)  # swept: an id of this very process that no record has
        assert len(store) == 0
        path = "/quick" if finished else "/slow"
        foreign = (await client.post(path, headers=user("ann"))).headers["location"]
        await settled()
        seen = []
        for url in (foreign, forgotten):
            asked.clear()
            extracted = 0
            start = anyio.current_time()
            answers = await every_route(client, url, prefer="wait=30", **user("bob"))
            waited = anyio.current_time() - start
            assert [response.status_code for response in answers] == [404] * 6
            content = [(response.content, response.headers.raw) for response in answers]
            seen.append((list(asked), extracted, waited < 1, content))
        assert seen[0] == seen[1]
        calls = ["fetch", "fetch", "get", "get", "get", "get"]  # the polls, and the others
        assert seen[0][:3] == (calls, 6, True)
        gate.open()


@pytest.mark.parametrize("shared", [False, True])
async def test_where_a_record_would_be_read_one_is_read_for_an_unknown_job(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes | str] = []
    monkeypatch.setattr("raincheck.status.access.load", read.append)
    app = app_of(slow_route(quick, "/quick"), jobs=virtual_jobs(store=TrickyStore(shared=shared)))
    async with running(app) as client:
        own = (await client.post("/quick")).headers["location"]
        assert (await client.get(own, headers={"prefer": "wait=9"})).status_code == 200
        assert read == []
        unknown = "/jobs/" + own.rpartition("/")[2][::-1]
        assert (await client.get(unknown)).status_code == 404
    assert [load(record).finished for record in read] == [True] * shared


async def test_the_owner_is_asked_for_once_a_request_and_not_for_a_replay() -> None:
    asked: list[str] = []

    async def owner(connection: HTTPConnection) -> str | None:
        asked.append(connection.scope["path"])
        return connection.headers.get("x-user")

    app = app_of(gated(gate := Gate(), max_running=1), owner=owner)
    async with running(app) as client:
        for _ in range(2):
            url = (await client.post("/slow", headers=user("ann"))).headers["location"]
        gate.open()
        await settled()
        response = await client.get(url, headers=user("ann"))
        assert response.json() == {"path": "/slow"}
        assert asked == ["/slow", "/slow", url]


async def test_an_owner_that_only_inner_authentication_knows_is_locked_out() -> None:
    """It fails closed: the status routes see the request as it came to raincheck."""

    class Inner(Named):
        key = "name"

    inner = Starlette(routes=[gated(gate := Gate())], middleware=[Middleware(Inner)])
    app = LongRunningMiddleware(
        inner, jobs=virtual_jobs(), owner=lambda connection: str(connection.scope["name"])
    )
    async with running(app) as client:
        url = (await client.post("/slow", headers=user("ann"))).headers["location"]
        assert (await client.get(url, headers=user("ann"))).status_code == 404
        gate.open()


class Named:
    """Puts who asks into the scope, as authentication does."""

    key = "user"

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[self.key] = HTTPConnection(scope).headers.get("x-user")
        await self.app(scope, receive, send)


async def test_code_of_yours_is_asked_for_no_owner() -> None:
    jobs = virtual_jobs()
    async with running(app_of(gated(Gate()), owner=by_header, jobs=jobs)) as client:
        accepted = await client.post("/slow", headers=user("ann"))
        await settled()
        job = await job_of(jobs, accepted)
        assert job.owner == "ann"
        assert await jobs.cancel(job.id) is not None
        await settled()
        monitor = await client.get(accepted.json()["links"]["self"], headers=user("ann"))
        assert monitor.json()["status"] == "canceled"


async def test_no_document_names_the_owner() -> None:
    async with running(app_of(gated(gate := Gate()), owner=by_header)) as client:
        accepted = await client.post("/slow", headers=user("somebody"))
        url = accepted.headers["location"]
        answers = [accepted, *await every_route(client, url, **user("somebody"))]
        for response in answers:
            assert "somebody" not in response.text + str(response.headers.raw)
        gate.open()


# --- requests from other sites -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/status", "/cancel"])
async def test_get_and_head_change_nothing(suffix: str) -> None:
    jobs = virtual_jobs()
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await settled()
        before = await job_of(jobs, accepted)
        for override in ({}, {"x-http-method-override": "DELETE"}):
            for method in ("GET", "HEAD"):
                url = accepted.headers["location"] + suffix
                response = await client.request(method, url, headers=override)
                assert (response.status_code == 405) == (suffix == "/cancel")
        assert await job_of(jobs, accepted) == before
        gate.open()


class Token:
    """A check of an app's own: nothing unsafe without a token."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            token = HTTPConnection(scope).headers.get("x-csrf-token")
            app = app if token == "t" else PlainTextResponse("no", 403)
        await app(scope, receive, send)


FORM = {"cookie": "session=ann", "content-type": "application/x-www-form-urlencoded"}
CSRF = {"x-csrf-token": "t"}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(EVIL, id="Origin"),
        pytest.param(EVIL | {"sec-fetch-site": "cross-site"}, id="Sec-Fetch-Site"),
    ],
)
async def test_a_form_of_another_site_cannot_cancel_what_only_a_cookie_guards(
    sent: dict[str, str],
) -> None:
    app = app_of(gated(gate := Gate()), owner=cookie("session", secret="s"))
    async with running(app) as client:
        url = (await client.post("/slow", headers=FORM)).headers["location"]
        await settled()
        for method, route in (("POST", url + "/cancel"), ("DELETE", url)):
            response = await client.request(method, route, headers={**FORM, **sent})
            assert response.status_code == 403
            assert response.json()["type"] == "urn:raincheck:problem:cross-site"
        assert (await client.get(url, headers=FORM)).json()["status"] == "running"
        response = await client.post(url + "/cancel", headers={**FORM, "origin": "http://test"})
        assert response.json()["status"] == "canceling"
        await settled()
        assert gate.cleaned_up == 1


@pytest.mark.parametrize("outside", [True, False])
async def test_a_check_of_the_apps_own_belongs_outside(outside: bool) -> None:
    jobs = virtual_jobs()
    ours = Middleware(LongRunningMiddleware, jobs=jobs, owner=cookie("session", secret="s"))
    stack = [Middleware(Token), ours] if outside else [ours, Middleware(Token)]
    app = Starlette(routes=[gated(gate := Gate())], middleware=stack)
    async with running(app) as client:
        url = (await client.post("/slow", headers={**FORM, **CSRF})).headers["location"]
        await settled()
        cancelled = await client.post(url + "/cancel", headers=FORM)
        deleted = await client.delete(url, headers=FORM)
        refused = [response.status_code == 403 for response in (cancelled, deleted)]
        assert refused == [outside] * 2
        if outside:
            assert (await client.get(url, headers=FORM)).status_code == 202
            assert (await client.delete(url, headers={**FORM, **CSRF})).status_code == 202
        gate.open()


# --- what is stored, and for how long ------------------------------------------------------------


async def test_the_captured_request_is_gone_once_the_job_runs() -> None:
    jobs = virtual_jobs()
    async with running(app_of(gated(gate := Gate(), max_running=1), jobs=jobs)) as client:
        accepted = [await client.post("/slow", content=b"x", headers=TOKEN) for _ in range(2)]
        assert await kept_of(jobs, accepted[0]) is None
        waiting = await kept_of(jobs, accepted[1])
        assert waiting is not None
        assert waiting.body == b"x"
        assert (b"authorization", b"t") in waiting.headers  # as it came, credentials and all
        cancel = accepted[0].json()["links"]["cancel"]
        await client.post(cancel)  # the second one's turn has come
        await settled()
        assert gate.entered == 2
        assert (await job_of(jobs, accepted[1])).state == "running"
        assert await kept_of(jobs, accepted[1]) is None
        gate.open()
        await follow(client, accepted[1])
        assert await kept_of(jobs, accepted[1]) is None


@pytest.mark.parametrize("how", ["cancelled", "deleted", "interrupted"])
async def test_the_captured_request_of_a_job_that_never_ran_is_gone_too(how: str) -> None:
    jobs = virtual_jobs(limits=Limits(max_running=1, drain_timeout=1))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        for _ in range(2):
            accepted = await client.post("/slow", content=b"x")
        assert await kept_of(jobs, accepted) is not None
        if how == "cancelled":
            await client.post(accepted.json()["links"]["cancel"])
        elif how == "deleted":
            await client.delete(accepted.headers["location"])
    assert await kept_of(jobs, accepted) is None
    assert gate.entered == 1


async def test_a_field_that_is_dropped_is_not_kept_and_a_replay_goes_without() -> None:
    jobs, gate = virtual_jobs(), Gate()

    async def fields(request: Request) -> Any:
        await gate.wait()
        return {name: request.headers.get(name) for name in ("cookie", "x-api-key", "x-other")}

    names = ("Cookie", "X-Api-Key")
    async with running(
        app_of(slow_route(fields, max_running=1, drop_headers=names), jobs=jobs)
    ) as client:
        headers = {"cookie": "a=b", "X-API-Key": "k", "x-other": "o"}
        first = await client.post("/slow", headers=headers)
        second = await client.post("/slow", headers=headers)
        captured = await kept_of(jobs, second)
        assert captured is not None
        kept = {name.lower() for name, _ in captured.headers}
        assert b"x-other" in kept
        assert not kept & {b"cookie", b"x-api-key"}
        gate.open()
        assert (await follow(client, first)).json() == {
            "cookie": "a=b",
            "x-api-key": "k",
            "x-other": "o",
        }
        replayed = (await follow(client, second)).json()
        assert replayed == {"cookie": None, "x-api-key": None, "x-other": "o"}


@pytest.mark.parametrize(("rule", "kept"), [(False, False), (True, True)])
async def test_a_held_request_is_not_stored_and_one_under_a_path_rule_is(
    rule: bool, kept: bool
) -> None:
    gate = Gate()

    async def plain(request: Request) -> Response:
        await gate.wait()
        return Response()

    policy = Policy(max_running=1, hold=True)
    endpoint = Route("/slow", plain, methods=["POST"])
    marked = gated(gate, max_running=1, hold=True)
    jobs = virtual_jobs()
    rules = {"POST /slow": policy} if rule else None
    async with running(app_of(endpoint if rule else marked, jobs=jobs, routes=rules)) as client:
        for _ in range(2):
            accepted = await client.post("/slow", content=b"x")
        assert (await job_of(jobs, accepted)).state == "queued"
        assert (await kept_of(jobs, accepted) is not None) is kept
        gate.open()


@pytest.mark.parametrize("how", ["expired", "deleted"])
async def test_a_tombstone_is_all_that_is_left_of_a_response(how: str) -> None:
    store = MemoryStore()
    jobs = virtual_jobs(store=store)

    async def answer(request: Request) -> Response:
        return PlainTextResponse("x" * 5000, headers={"set-cookie": "a=b"})

    app = app_of(slow_route(answer, ttl=60), jobs=jobs, owner=by_header)
    async with running(app) as client:
        headers = {**user("ann"), "idempotency-key": "k"}
        accepted = await client.post("/slow", headers=headers)
        await settled()
        assert store.size > RECORD_COST + 5000
        if how == "expired":
            await anyio.sleep(60 + 11)  # swept every ten seconds
        else:
            await client.delete(accepted.headers["location"], headers=headers)
        assert (len(store), store.size) == (1, RECORD_COST)
        assert (
            b"".join([chunk async for chunk in store.read_body(accepted.json()["job_id"])]) == b""
        )
        job = await job_of(jobs, accepted)
        assert (job.gone, job.owner, job.response) == (True, "ann", None)
        await anyio.sleep(3600 + 11)
        assert len(store) == 0


async def test_what_a_handler_sent_before_it_failed_is_not_shown() -> None:
    async def answer(request: Request) -> Response:
        async def parts() -> Any:
            yield b"the first part"
            raise ValueError("a secret")

        return StreamingResponse(parts())

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        response = await follow(client, accepted)
        assert response.status_code == 500
        assert response.json()["type"].endswith("crashed")
        monitor = await client.get(accepted.json()["links"]["self"])
        for text in (response.text, monitor.text):
            assert "first part" not in text
            assert "secret" not in text


async def test_a_stored_cookie_goes_to_everybody_who_polls() -> None:
    async def answer(request: Request) -> Response:
        response = Response()
        response.set_cookie("session", "s")
        return response

    async with running(app_of(slow_route(answer))) as client:
        url = (await client.post("/slow")).headers["location"]
        await settled()
        for _ in range(2):
            assert "session=s" in (await client.get(url)).headers["set-cookie"]


# --- keys ----------------------------------------------------------------------------------------


async def test_a_key_is_stored_as_a_hash_bound_to_its_owner() -> None:
    async def keep(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "create":
            kept.append(more["keys"])

    kept: list[tuple[Key, ...]] = []
    jobs = virtual_jobs(store=TrickyStore(keep))
    async with running(app_of(slow_route(quick), owner=by_header, jobs=jobs)) as client:
        for headers in (user("ann"), user("bob"), {}):
            headers = {**headers, "idempotency-key": "order-7"}
            response = await client.post("/slow", content=b"a body", headers=headers)
            record = await job_of(jobs, response)
            assert "order-7" not in repr((kept[-1], record))
            assert "a body" not in repr((kept[-1], record))
        assert len({key.name for keys in kept for key in keys}) == 3


@pytest.mark.parametrize("owned", [False, True])
async def test_without_an_owner_a_key_is_everybodys(owned: bool) -> None:
    """Only raincheck's owner counts: it does not know what an Authorization field means."""
    async with running(app_of(slow_route(quick), owner=by_header if owned else None)) as client:
        urls = set()
        for name in ("ann", "bob"):
            headers = {**user(name), "authorization": name, "idempotency-key": "order-7"}
            urls.add((await client.post("/slow", headers=headers)).headers["location"])
        assert len(urls) == (2 if owned else 1)


@pytest.mark.parametrize(
    ("field", "owned", "jobs"),
    [
        ("authorization", False, 2),
        ("cookie", False, 2),
        ("x-user", False, 1),
        ("x-user", True, 2),
    ],
)
async def test_without_an_owner_shared_runs_tell_callers_by_credentials(
    field: str, owned: bool, jobs: int
) -> None:
    app = app_of(gated(gate := Gate(), coalesce=True), owner=by_header if owned else None)
    async with running(app) as client:
        answers = [await client.post("/slow", headers={field: name}) for name in ("a", "b")]
        assert len({answer.headers["location"] for answer in answers}) == jobs
        gate.open()


# --- quotas --------------------------------------------------------------------------------------


async def test_who_has_no_owner_has_no_quota() -> None:
    route = gated(gate := Gate(), max_running_per_owner=1, max_queued_per_owner=0)
    async with running(app_of(route, owner=by_header)) as client:
        for _ in range(3):
            response = await client.post("/slow")
            assert (response.status_code, response.json()["status"]) == (202, "running")
        statuses = [(await client.post("/slow", headers=user("a"))).status_code for _ in range(2)]
        assert statuses == [202, 429]
        gate.open()


async def test_finished_jobs_count_for_no_quota() -> None:
    store = MemoryStore()
    route = slow_route(quick, max_running_per_owner=1, max_queued_per_owner=0)
    app = app_of(route, owner=by_header, jobs=virtual_jobs(store=store))
    async with running(app) as client:
        for _ in range(5):
            assert (await client.post("/slow", headers=user("ann"))).status_code == 202
            await settled()
        assert len(store) == 5


# --- problems ------------------------------------------------------------------------------------


def raising(connection: HTTPConnection) -> str | None:
    raise LookupError("a secret")


async def odd(request: Request) -> Response:
    return Response(headers={"x-odd": "a\nsecret"})


@pytest.mark.parametrize(
    ("trick", "owner", "status"),
    [
        pytest.param(failing("create", error=OSError("a secret")), None, 503, id="store"),
        pytest.param(no_trick, raising, 500, id="owner"),
        pytest.param(no_trick, None, 500, id="protocol"),
    ],
)
async def test_no_problem_shows_an_exception(trick: Trick, owner: Any, status: int) -> None:
    app = app_of(slow_route(odd), jobs=virtual_jobs(store=TrickyStore(trick)), owner=owner)
    async with running(app) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert set(response.json()) == {"type", "title", "status", "detail"}
        assert "secret" not in response.text
        assert "Error" not in response.text


# --- requests to elsewhere -----------------------------------------------------------------------


async def test_nothing_that_a_client_sends_makes_raincheck_ask_anybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **_: asked.append(host))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    inner = "http://169.254.169.254/latest"

    async def elsewhere(request: Request) -> Response:
        return Response(status_code=303, headers={"location": inner, "content-location": inner})

    async with running(app_of(slow_route(elsewhere))) as client:
        headers = {
            "host": "169.254.169.254",
            "x-forwarded-host": "169.254.169.254",
            "forwarded": "host=169.254.169.254",
            "referer": inner,
            "prefer": f'respond-async, callback; url="{inner}"',
        }
        accepted = await client.post(f"/slow?url={inner}", content=inner, headers=headers)
        assert accepted.status_code == 202
        response = await follow(client, accepted)
        assert (response.status_code, response.headers["location"]) == (303, inner)
        await settled()
        await every_route(client, accepted.headers["location"])
    assert asked == []


# --- where to put it -----------------------------------------------------------------------------


class Guard:
    """Lets in who has the token: authentication of any kind."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            token = HTTPConnection(scope).headers.get("authorization")
            app = app if token == TOKEN["authorization"] else PlainTextResponse("who?", 401)
        await app(scope, receive, send)


async def test_authentication_outside_guards_the_status_routes() -> None:
    async with running(Guard(app_of(gated(gate := Gate())))) as client:
        assert (await client.post("/slow")).status_code == 401
        url = (await client.post("/slow", headers=TOKEN)).headers["location"]
        for response in await every_route(client, url):
            assert response.status_code == 401
        assert (await client.get(url, headers=TOKEN)).status_code == 202
        gate.open()


@pytest.mark.parametrize("mounted", [False, True])
async def test_authentication_inside_guards_status_routes_that_are_mounted(mounted: bool) -> None:
    jobs = virtual_jobs()
    routes = [gated(gate := Gate()), *([Mount("/jobs", jobs.status_app)] if mounted else [])]
    inner = Starlette(routes=routes, middleware=[Middleware(Guard)])
    async with running(LongRunningMiddleware(inner, jobs=jobs)) as client:
        assert (await client.post("/slow")).status_code == 401
        url = (await client.post("/slow", headers=TOKEN)).headers["location"]
        assert (await client.get(url)).status_code == (401 if mounted else 202)
        assert (await client.get(url, headers=TOKEN)).status_code == 202
        gate.open()


async def test_a_path_rule_accepts_before_authentication_inside_it_runs() -> None:
    async def plain(request: Request) -> Response:
        return Response()

    route = Route("/slow", plain, methods=["POST"])
    inner = Starlette(routes=[route], middleware=[Middleware(Guard)])
    rules = {"POST /slow": Policy()}
    async with running(LongRunningMiddleware(inner, jobs=virtual_jobs(), routes=rules)) as client:
        accepted = await client.post("/slow")
        assert accepted.status_code == 202
        response = await follow(client, accepted)
        assert (response.status_code, response.headers["job-status"]) == (401, "failed")
    outside = Guard(LongRunningMiddleware(Starlette(routes=[route]), jobs=Jobs(), routes=rules))
    async with running(outside) as client:
        assert (await client.post("/slow")).status_code == 401


# What a browser adds to a fetch of another origin that CORS has agreed to.
AGREED = {
    "sec-fetch-site": "cross-site",
    "sec-fetch-mode": "cors",
    "content-type": "application/json",
}

CORS = Middleware(
    CORSMiddleware,
    allow_origins=[SITE["origin"]],
    allow_credentials=True,
    allow_methods=["GET", "POST", "DELETE"],
    allow_headers=["Prefer", "Idempotency-Key"],
    expose_headers=["Location", "Retry-After", "Job-Status"],
)


async def preflight(client: httpx.AsyncClient, url: str, method: str) -> httpx.Response:
    asks = {"access-control-request-method": method, "access-control-request-headers": "prefer"}
    return await client.options(url, headers={**SITE, **asks})


def shared(response: httpx.Response) -> bool:
    """Whether a browser lets the other origin read it."""
    return bool(response.headers.get("access-control-allow-origin") == SITE["origin"])


@pytest.mark.parametrize("outside", [True, False])
async def test_cors_covers_the_status_routes_and_their_preflights_from_outside_only(
    outside: bool,
) -> None:
    ours = Middleware(LongRunningMiddleware, jobs=virtual_jobs())
    stack = [CORS, ours] if outside else [ours, CORS]
    app = Starlette(routes=[gated(gate := Gate())], middleware=stack)
    async with running(app) as client:
        accepted = await client.post("/slow", headers=SITE)
        assert shared(accepted) is outside
        exposed = accepted.headers.get("access-control-expose-headers", "")
        assert ("Location" in exposed) is outside
        url = accepted.headers["location"]
        asked = {url: "DELETE", url + "/status": "GET", url + "/cancel": "POST"}
        for asks, method in asked.items():
            answer = await preflight(client, asks, method)
            assert (answer.status_code, shared(answer)) == (200 if outside else 405, outside)
        await settled()
        for response in await every_route(client, url, **SITE, **AGREED):
            assert response.status_code < 300
            assert shared(response) is outside
        gone = await client.get(url, headers=SITE)
        assert (gone.status_code, shared(gone)) == (410, outside)
        gate.open()


@pytest.mark.parametrize("cors_first", [True, False])
async def test_cors_belongs_outside_of_authentication(cors_first: bool) -> None:
    """A preflight carries no credentials, and a page is to read why it was sent away."""
    outer = [CORS, Middleware(Guard)] if cors_first else [Middleware(Guard), CORS]
    ours = Middleware(LongRunningMiddleware, jobs=virtual_jobs())
    app = Starlette(routes=[gated(gate := Gate())], middleware=[*outer, ours])
    async with running(app) as client:
        url = (await client.post("/slow", headers={**SITE, **TOKEN})).headers["location"]
        answer = await preflight(client, url + "/cancel", "POST")
        assert (answer.status_code, shared(answer)) == ((200 if cors_first else 401), cors_first)
        refused = await client.get(url, headers=SITE)
        assert (refused.status_code, shared(refused)) == (401, cors_first)
        gate.open()


@pytest.mark.parametrize("outside", [True, False])
async def test_compression_outside_serves_each_poll_as_it_asks(outside: bool) -> None:
    async def answer(request: Request) -> Response:
        return PlainTextResponse("x" * 5000)

    store = MemoryStore()
    ours = Middleware(LongRunningMiddleware, jobs=virtual_jobs(store=store))
    gzip = Middleware(GZipMiddleware, minimum_size=500)
    stack = [gzip, ours] if outside else [ours, gzip]
    app = Starlette(routes=[slow_route(answer)], middleware=stack)
    async with running(app) as client:
        submitted = await client.post("/slow", headers={"accept-encoding": "gzip"})
        await settled()
        encodings = []
        for wanted in ("gzip", "identity"):
            url = submitted.headers["location"]
            response = await client.get(url, headers={"accept-encoding": wanted})
            assert response.text == "x" * 5000
            encodings.append(response.headers.get("content-encoding"))
        assert encodings == (["gzip", None] if outside else ["gzip", "gzip"])
        assert (store.size > 5000) is outside  # inside, what is stored is compressed


# --- who can be held up --------------------------------------------------------------------------


async def test_a_handler_that_computes_without_awaiting_holds_up_its_own_202() -> None:
    order: list[Any] = []

    async def answer(request: Request) -> Any:
        order.append("computed")
        return {}

    class Noting(RawRequest):
        async def _send(self, message: Message) -> None:
            order.append(message.get("status", "end"))

    app = app_of(slow_route(answer))
    async with lifespan(app):
        request = Noting()
        request.feed()
        await request.run(app)
    assert order == ["computed", 202, "end"]


@pytest.mark.real
async def test_a_def_handler_that_computes_does_not_hold_up_its_202() -> None:
    done = threading.Event()

    @long_running
    def endpoint(request: Request) -> Response:
        done.wait(30)
        return PlainTextResponse("computed")

    async with running(app_of(Route("/slow", endpoint, methods=["POST"]), jobs=Jobs())) as client:
        accepted = await client.post("/slow")
        assert (accepted.status_code, done.is_set()) == (202, False)
        done.set()
        assert (await follow(client, accepted)).text == "computed"


# --- the documents -------------------------------------------------------------------------------


def named_tests(document: str) -> set[tuple[str, str]]:
    """The tests that a document names, as `file.py::test_name`, `::TestClass` or both."""
    text = (DOCS / document).read_text()
    return set(re.findall(r"`([\w/]+\.py)::([\w:]+)`", text))


@pytest.mark.parametrize("document", ["security.md", "reliability.md"])
def test_every_test_that_a_document_names_is_there(document: str) -> None:
    named = named_tests(document)
    assert len(named) > 10
    for file in {file for file, _ in named}:
        assert {test for where, test in named if where == file} <= names_in(file), file


def test_every_statement_of_the_table_names_tests() -> None:
    table = (DOCS / "security.md").read_text().partition("## Statements and their tests")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) > 80
    assert [row for row in rows[2:] if not re.search(r"`[\w/]+\.py::\w+", row)] == []


def test_every_test_of_this_file_is_named_by_a_document() -> None:
    file = Path(__file__).name
    named = named_tests("security.md") | named_tests("reliability.md")
    here = {test for test in names_in(file) if re.match("test_(?!every_)", test)}
    assert here == {test for where, test in named if where == file}


@cache
def names_in(file: str) -> frozenset[str]:
    """The tests of a file and its classes, with what these have inherited from contracts."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names: set[str] = set()
    for node in ast.walk(ast.parse((Path(__file__).parent / file).read_text())):
        if isinstance(node, functions) and node.name.startswith("test_"):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            module = importlib.import_module(f"tests.{file.removesuffix('.py').replace('/', '.')}")
            tests = (name for name in dir(getattr(module, node.name, None)) if name[:5] == "test_")
            names |= {node.name, *(f"{node.name}::{name}" for name in tests)}
    return frozenset(names)
