"""The laws of the design, each under its number. More on each stands beside its room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware, MemoryStore, Policy, State, long_running
from raincheck.errors import StoreError
from raincheck.job import TRANSITIONS
from raincheck.stores.base import Fetched
from raincheck.testing import follow, lifespan
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE, STORE_TIMEOUT, SURVIVED, two
from tests.doubles.stores import Line, TrickyStore
from tests.support import (
    Gate,
    RawRequest,
    app_of,
    client_of,
    gated,
    running,
    settled,
    slow_route,
    unfinished,
)

pytestmark = pytest.mark.anyio


async def raises(request: Request) -> Any:
    raise ValueError("a secret")


@pytest.mark.parametrize("debug", [False, True])
async def test_law_1_a_job_whose_handler_raises_is_failed(debug: bool) -> None:
    app = Starlette(debug=debug, routes=[slow_route(raises)])
    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 500
        assert response.headers["job-status"] == "failed"


async def test_law_1_an_outcome_that_the_store_refuses_is_told_again() -> None:
    refused: set[tuple[str, int]] = set()

    async def refuse_once(call: str, /, *arguments: Any, **more: Any) -> None:
        if call != "replace":
            return
        write = (arguments[0].id, arguments[0].version)
        if write not in refused:
            refused.add(write)
            raise OSError("the disk is away")

    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=TrickyStore(refuse_once)))
    async with running(app) as client:
        accepted = await client.post("/slow")
        await settled()
        gate.open()
        response = await follow(client, accepted)
        assert (response.status_code, response.json()) == (200, {"path": "/slow"})
        assert refused


async def test_law_1_a_job_that_shutdown_interrupts_is_failed() -> None:
    jobs = virtual_jobs(limits=Limits(drain_timeout=5))
    app = app_of(gated(gate := Gate()), jobs=jobs)
    async with running(app) as client:
        id = (await client.post("/slow")).json()["job_id"]
        await settled()
    job = await jobs.get(id)
    assert job is not None
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.name == "interrupted"
    assert gate.cleaned_up == 1


async def test_law_2_the_stored_response_is_the_handlers() -> None:
    fields = [(b"set-cookie", b"a=1"), (b"x-odd", b"\xe9"), (b"set-cookie", b"b=2"), (b"X-UP", b"")]

    async def answer(request: Request) -> Response:
        async def chunks() -> Any:
            for number in range(100):
                yield bytes([number]) * 1000

        response = StreamingResponse(chunks(), status_code=203)
        response.raw_headers = [*fields, (b"connection", b"x-gone"), (b"x-gone", b"1")]
        return response

    async with running(app_of(slow_route(answer))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 203
        assert response.headers.raw[:4] == fields
        assert response.headers.raw[4:] == [
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
            (b"job-status", b"succeeded"),
            (b"content-length", b"100000"),
        ]
        assert response.content == b"".join(bytes([n]) * 1000 for n in range(100))


async def test_law_2_a_stored_202_does_not_look_pending() -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse({}, status_code=202)

    async with running(app_of(slow_route(answer))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 200
        assert response.headers["job-response-status"] == "202"


async def test_law_3_the_job_is_visible_before_its_202_leaves() -> None:
    jobs = virtual_jobs()
    app = app_of(gated(gate := Gate()), jobs=jobs)
    seen = []
    async with lifespan(app):

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                location = dict(message["headers"])[b"location"].decode()
                poll = RawRequest(location, "GET")
                await poll.run(app)
                seen.append(poll.status)

        request = RawRequest()
        request.feed()
        request._send = send  # type: ignore[method-assign] # polls while the 202 is on its way
        await request.run(app)
        gate.open()
    assert seen == [202]


async def test_law_4_in_place_everything_runs_once() -> None:
    runs = {"middleware": 0, "handler": 0}

    async def answer(request: Request) -> dict[str, int]:
        runs["handler"] += 1
        return runs

    inner = Starlette(routes=[slow_route(answer)])

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        runs["middleware"] += scope["type"] == "http"
        await inner(scope, receive, send)

    async with running(LongRunningMiddleware(counting, jobs=virtual_jobs())) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == {"middleware": 1, "handler": 1}


def test_law_5_nothing_leads_out_of_a_terminal_state() -> None:
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        assert TRANSITIONS[state] == frozenset()


async def test_law_5_cancelling_a_finished_job_changes_nothing() -> None:
    jobs = virtual_jobs()
    gate = Gate()
    gate.open()
    async with running(app_of(gated(gate), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await follow(client, accepted)
        before = await jobs.get(accepted.json()["job_id"])
        response = await client.post(accepted.json()["links"]["cancel"])
        assert response.status_code == 409
        assert await jobs.get(accepted.json()["job_id"]) == before


async def test_law_6_a_cancelled_job_is_cancelling_until_its_handler_has_stopped() -> None:
    cleanup = anyio.Event()

    async def answer(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await cleanup.wait()

    async with running(app_of(slow_route(answer))) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        response = await client.post(links["cancel"])
        assert (response.status_code, response.json()["status"]) == (202, "canceling")
        await settled()
        assert (await client.get(links["self"])).json()["status"] == "canceling"
        assert (await client.get(links["result"])).status_code == 202
        cleanup.set()
        await settled()
        assert (await client.get(links["self"])).json()["status"] == "canceled"
        response = await client.get(links["result"])
        assert response.status_code == 410
        assert response.json()["type"].endswith("cancelled")


async def test_law_6_a_handler_that_finishes_first_has_succeeded() -> None:
    async def answer(request: Request) -> dict[str, bool]:
        with anyio.CancelScope(shield=True):
            with suppress(BaseException):  # it will not be stopped, whatever comes
                await anyio.sleep(10)
        return {"done": True}

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        await settled()
        await client.post(accepted.json()["links"]["cancel"])
        response = await follow(client, accepted)
        assert response.headers["job-status"] == "succeeded"


async def test_law_7_an_unknown_job_is_404_and_an_expired_one_410() -> None:
    gate = Gate()
    gate.open()
    async with running(app_of(gated(gate, ttl=60))) as client:
        accepted = await client.post("/slow")
        url = accepted.headers["location"]
        await follow(client, accepted)
        assert (await client.get(url)).status_code == 200
        await anyio.sleep(60)
        for gone in (url, url + "/status"):
            assert (await client.get(gone)).status_code == 410
        assert (await client.get("/jobs/" + "x" * 30)).status_code == 404


async def test_law_8_nothing_is_stored_of_what_is_refused() -> None:
    store = MemoryStore()
    jobs = virtual_jobs(store=store, limits=Limits(max_running=1, max_queued=1))
    app = app_of(gated(gate := Gate(), max_request_size=10), jobs=jobs)
    async with running(app) as client:
        assert (await client.post("/slow", content=b"x" * 11)).status_code == 413
        assert len(store) == 0
        for _ in range(2):
            assert (await client.post("/slow")).status_code == 202
        response = await client.post("/slow")
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert len(store) == 2
        gate.open()


async def test_law_9_a_full_store_refuses_and_keeps_its_results() -> None:
    gate = Gate()
    gate.open()
    app = app_of(gated(gate), jobs=virtual_jobs(store=MemoryStore(max_bytes=1500)))
    async with running(app) as client:
        accepted = await client.post("/slow")
        await follow(client, accepted)
        refused = await client.post("/slow")
        assert refused.status_code == 503
        assert refused.json()["type"].endswith("store-unavailable")
        assert "retry-after" in refused.headers
        assert (await client.get(accepted.headers["location"])).status_code == 200


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_law_10_the_clients_disconnect_does_not_touch_an_accepted_job(
    spec_version: str,
) -> None:
    """Under 2.3 a streaming response watches `receive` for a disconnect beside its sending."""

    async def answer(request: Request) -> Response:
        async def chunks() -> Any:
            for _ in range(10):
                await anyio.sleep(1)
                yield b"x"

        return StreamingResponse(chunks())

    jobs = virtual_jobs()
    app = app_of(slow_route(answer), jobs=jobs)
    async with lifespan(app):
        request = RawRequest()
        request.scope["asgi"]["spec_version"] = spec_version
        request.feed(b"body")
        request.leave()
        await request.run(app)
        assert request.status == 202
        await anyio.sleep(11)
        poll = RawRequest(dict(request.sent[0]["headers"])[b"location"].decode(), "GET")
        await poll.run(app)
        assert (poll.status, poll.body) == (200, b"x" * 10)


async def test_law_12_a_server_that_stops_accepts_nothing_new() -> None:
    jobs = virtual_jobs(limits=Limits(drain_timeout=10))
    app = app_of(gated(gate := Gate()), jobs=jobs)
    async with running(app) as client:
        await client.post("/slow")
        async with anyio.create_task_group() as group:
            group.start_soon(jobs.close)
            await settled()
            response = await client.post("/slow")
            assert response.status_code == 503
            assert response.json()["type"].endswith("shutting-down")
            assert "retry-after" in response.headers
            gate.open()


async def test_law_12_accepted_jobs_have_time_to_finish() -> None:
    done = []

    async def answer(request: Request) -> dict[str, str]:
        await anyio.sleep(8)
        done.append(True)
        return {}

    jobs = virtual_jobs(limits=Limits(max_running=1, drain_timeout=20))
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        ids = [(await client.post("/slow")).json()["job_id"] for _ in range(2)]
    assert done == [True, True]
    for id in ids:
        job = await jobs.get(id)
        assert job is not None
        assert job.state is State.SUCCEEDED


async def test_law_13_a_job_runs_as_its_own_request() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")

    async def answer(request: Request) -> list[str]:
        await anyio.sleep(1)
        return [tenant.get(), request.state.tenant, request.headers["x-tenant"]]

    app = app_of(slow_route(answer, max_running=1))

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope.get("headers", ())).get(b"x-tenant", b"nobody").decode()
        tenant.set(name)
        await app({**scope, "state": {"tenant": name}}, receive, send)

    async with running(outside) as client:
        names = ["ann", "bob", "cleo"]
        accepted = [await client.post("/slow", headers={"x-tenant": name}) for name in names]
        for name, there in zip(names, accepted, strict=True):
            assert (await follow(client, there)).json() == [name] * 3


@pytest.mark.parametrize("how", ["key", "shared run"])
@pytest.mark.parametrize(
    ("hosts", "jobs"),
    [(("a.example", "b.example"), 2), (("a.example", "A.EXAMPLE:80", "a.example:"), 1)],
)
async def test_law_13_requests_to_different_hosts_are_never_one(
    how: str, hosts: tuple[str, ...], jobs: int
) -> None:
    async def answer(request: Request) -> dict[str, Any]:
        await anyio.sleep(5)
        return {"host": request.url.hostname}

    fields = {"idempotency-key": "order-7"} if how == "key" else {}
    route = slow_route(answer, coalesce=how == "shared run")
    async with running(app_of(route)) as client:
        accepted = [await client.post("/slow", headers={**fields, "host": h}) for h in hosts]
        assert len({response.headers["location"] for response in accepted}) == jobs
        for host, response in zip(hosts, accepted, strict=True):
            served = (await follow(client, response)).json()
            assert served == {"host": host.lower().partition(":")[0]}


async def test_law_13_a_whole_response_is_never_that_to_a_part_of_it() -> None:
    async def answer(request: Request) -> Response:
        await anyio.sleep(5)
        if "range" in request.headers:
            return Response("0", 206, {"content-range": "bytes 0-0/10"})
        conditional = "if-none-match" in request.headers
        return Response(status_code=304) if conditional else Response("0" * 10)

    async with running(app_of(slow_route(answer, coalesce=True))) as client:
        asked = [{"range": "bytes=0-0"}, {"if-none-match": '"v1"'}, {}, {}]
        accepted = [await client.get("/slow", headers=fields) for fields in asked]
        served = [(await follow(client, response)).status_code for response in accepted]
        assert served == [206, 304, 200, 200]
        assert accepted[2].headers["location"] == accepted[3].headers["location"]


# --- law 15 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [0.0, 0.3, SURVIVED, 5 * LEASE])
@pytest.mark.parametrize("path", ["/fail", "/rerun", "/one", "/held"])
async def test_law_15_what_is_refused_does_not_run_later(path: str, away: float) -> None:
    """The store takes the job, loses its answer and is away, also for longer than a lease."""
    async with two() as both:
        before = 1 if path in ("/one", "/held") else 0  # as many as may run: the next would wait
        for _ in range(before):
            await both.a.post(path)
        await settled()
        both.line.lose_next_create()
        refused = await both.a.post(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert both.line.cuts > 0
        assert len(await unfinished(both.store)) == before + 1  # it is there
        if away > LEASE:  # else others could not know that this process lives
            both.lines["b"].cut()
        await anyio.sleep(away)
        for name in "ab":
            both.lines[name].mend()
            both.gates[name].open()
        await anyio.sleep(3 * LEASE)
        assert both.runs == ["a"] * before
        assert await unfinished(both.store) == []


async def test_law_15_its_lease_is_renewed_until_it_is_taken_back() -> None:
    """A store may answer, and take no changes: its disk is full, or it is a replica by now."""
    async with two() as both:
        refused_changes = 0

        async def refuse(*job: Any, **settings: Any) -> bool:
            nonlocal refused_changes
            refused_changes += 1
            raise StoreError("read only")

        replace = both.line.replace
        both.line.replace = refuse  # type: ignore[method-assign] # for a while
        both.line.lose_next_create()
        assert (await both.a.post("/rerun")).status_code == 503
        both.line.mend()
        both.gates["b"].open()
        await anyio.sleep(3 * LEASE)
        assert refused_changes > 5
        assert len(await unfinished(both.store)) == 1
        both.line.replace = replace  # type: ignore[method-assign]
        await anyio.sleep(3 * LEASE)
        assert (both.runs, await unfinished(both.store)) == ([], [])


async def test_law_15_nor_does_what_comes_to_the_store_when_its_request_was_refused() -> None:
    """As from a server that stood still: it does what it was asked before its caller gave up."""
    async with anyio.create_task_group() as group, two() as both:
        keyed = {"idempotency-key": "k"}
        create = both.line.create
        landed = []

        async def late(*job: Any, **settings: Any) -> None:
            await anyio.sleep(2 * STORE_TIMEOUT)
            landed.append(await create(*job, **settings))

        async def give_up(*job: Any, **settings: Any) -> Any:
            group.start_soon(partial(late, *job, **settings))
            await anyio.sleep_forever()

        both.line.create = give_up  # type: ignore[method-assign] # once
        responses: list[httpx.Response] = []

        async def refuse() -> None:
            responses.append(await both.a.post("/rerun", headers=keyed))

        group.start_soon(refuse)
        await anyio.sleep(STORE_TIMEOUT / 2)
        both.line.create = create  # type: ignore[method-assign]
        await anyio.sleep(2 * STORE_TIMEOUT)
        assert [response.status_code for response in responses] == [503]
        assert [job.gone for job in landed] == [True]  # its tombstone was there before
        both.gates["a"].open()
        accepted = await both.b.post("/rerun", headers=keyed)
        assert (accepted.status_code, "idempotency-replayed" in accepted.headers) == (202, False)
        both.gates["b"].open()
        assert (await follow(both.b, accepted)).status_code == 200
        await anyio.sleep(3 * LEASE)
        assert both.runs == ["b"]


async def key_until_accepted(client: httpx.AsyncClient, path: str) -> httpx.Response:
    """Send a request again and again under its key, as clients do."""
    while True:
        response = await client.post(path, headers={"idempotency-key": "k"})
        if response.status_code != 503:
            return response
        await anyio.sleep(int(response.headers["retry-after"]))


@pytest.mark.parametrize("again", ["a", "b"])
@pytest.mark.parametrize("away", [0.0, 0.3, SURVIVED])
@pytest.mark.parametrize("path", ["/fail", "/rerun", "/one", "/held", "/shared"])
async def test_law_15_a_key_that_was_refused_is_free(path: str, away: float, again: str) -> None:
    """It never names a job that is on its way out, in this process or another."""
    async with two() as both, anyio.create_task_group() as group:
        both.line.lose_next_create()
        refused = await both.a.post(path, headers={"idempotency-key": "k"})
        assert refused.status_code == 503
        (left,) = await unfinished(both.store)
        assert both.line.cuts > 0
        group.start_soon(mend_after, both.line, away)
        with anyio.fail_after(away + 10):
            accepted = await key_until_accepted(both.clients[again], path)
        assert accepted.status_code == 202
        assert accepted.json()["job_id"] != left.id
        assert "idempotency-replayed" not in accepted.headers
        for gate in both.gates.values():
            gate.open()
        assert (await follow(both.b, accepted)).status_code == 200
        await anyio.sleep(3 * LEASE)
        assert both.runs == [again]
        assert await unfinished(both.store) == []


async def mend_after(line: Line, seconds: float) -> None:
    await anyio.sleep(seconds)
    line.mend()


async def test_law_15_a_server_that_stops_takes_back_what_it_has_refused_first() -> None:
    async with anyio.create_task_group() as group, two() as both:
        both.line.lose_next_create()
        assert (await both.a.post("/rerun")).status_code == 503
        group.start_soon(mend_after, both.line, SURVIVED)
        both.gates["b"].open()
        await both.stop("a")
        assert await unfinished(both.store) == []
        await anyio.sleep(3 * LEASE)
        assert both.runs == []


async def test_law_15_but_if_its_process_dies_law_1_wins() -> None:
    async with two() as both:
        both.line.lose_next_create()
        assert (await both.a.post("/rerun", headers={"idempotency-key": "k"})).status_code == 503
        (left,) = await unfinished(both.store)
        both.gates["b"].open()
        with anyio.fail_after(2 * LEASE):
            accepted = await key_until_accepted(both.b, "/rerun")
        assert accepted.json()["job_id"] == left.id
        assert (await follow(both.b, accepted)).status_code == 200
        assert both.runs == ["b"]


@pytest.mark.parametrize("path", ["/fail", "/one", "/shared"])
async def test_a_key_names_an_accepted_job_in_every_process_at_once(path: str) -> None:
    async with two() as both:
        first = await both.a.post(path, headers={"idempotency-key": "k"})
        with anyio.fail_after(0.2):
            again = await both.b.post(path, headers={"idempotency-key": "k"})
        assert again.headers["location"] == first.headers["location"]
        for gate in both.gates.values():
            gate.open()
        await settled()
        assert both.runs == ["a"]


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (200, [(b"x-note", b"hello ")], "'x-note' has a blank at an end of its value"),
        (200, [(b"x-note", b"a\x0bb")], "'x-note' has a control character in its value"),
        (200, [(b"", b"a")], "'' has no name"),
        (103, [], "none of 200 to 599"),
        (999, [], "none of 200 to 599"),
        (204, [], "a 204 response has no body"),
        (200, [(b"content-length", b"3")], "Content-Length says 3, the body has 2"),
    ],
)
async def test_law_14_what_no_server_could_send_is_not_an_outcome(
    status: int, headers: list[tuple[bytes, bytes]], said: str
) -> None:
    """The job has failed, says why, and each poll can be answered."""

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    app = LongRunningMiddleware(bare, routes={"/slow": Policy()}, jobs=virtual_jobs())
    async with client_of(app) as client:
        accepted = await client.post("/slow")
        response = await follow(client, accepted)
        assert (response.status_code, response.headers["job-status"]) == (500, "failed")
        assert response.json()["type"] == "urn:raincheck:problem:invalid-response"
        assert said in response.json()["detail"]
        error = (await client.get(accepted.json()["links"]["self"])).json()["error"]
        assert (error["code"], error["message"]) == ("invalid-response", response.json()["detail"])


async def test_law_14_a_handlers_own_job_status_gives_way_to_the_truth() -> None:
    async def answer(request: Request) -> Response:
        response = JSONResponse({}, 500, headers={"Job-Status": "succeeded"})
        response.raw_headers.append((b"JOB-STATUS", b"running"))
        return response

    async with running(app_of(slow_route(answer))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.headers.get_list("job-status") == ["failed"]


def test_a_policy_is_found_by_every_way_of_asking() -> None:
    """The three ways of the README: wrapping, decorating, configuring by route."""

    @long_running(timeout=60)
    async def endpoint(request: Request) -> Response:
        return Response()

    LongRunningMiddleware(Starlette(routes=[Route("/a", endpoint)]))
    LongRunningMiddleware(Starlette(), routes={"POST /b": Policy(timeout=60)})
    assert isinstance(httpx.Response(200), httpx.Response)


class Fading(MemoryStore):
    """Bodies do not last: of each a reader gets these pieces, whatever was kept.

    Args:
        pieces: what a reader gets; an exception is raised.
        meanwhile: called before the first of them, with the job's id.
    """

    def __init__(
        self, pieces: list[bytes | Exception], meanwhile: Callable[[str], Awaitable[object]]
    ) -> None:
        super().__init__()
        self._pieces = pieces
        self._meanwhile = meanwhile

    async def fetch(self, id: str) -> Fetched | None:
        job = await self.get(id)
        return None if job is None else Fetched(job, None)

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        await self._meanwhile(id)
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


BODY = b"0123456789" * 30

NO_LONGER_WHOLE: list[list[bytes | Exception]] = [
    [BODY[:100]],
    [BODY[:100], BODY[100:200]],
    [BODY[:-1]],
    [BODY[:100], StoreError("it was dropped")],
    [BODY, StoreError("it was dropped")],
    [BODY, b"more"],
]


async def nothing(id: str) -> None:
    """Nothing happens."""


async def whole_body(request: Request) -> Response:
    async def chunks() -> Any:
        yield BODY[:150]
        yield BODY[150:]

    return StreamingResponse(chunks(), headers={"accept-ranges": "bytes"})


@pytest.mark.parametrize("pieces", NO_LONGER_WHOLE)
@pytest.mark.parametrize("in_time", [False, True])
async def test_law_14_a_body_that_is_no_longer_whole_is_broken_off(
    pieces: list[bytes | Exception], in_time: bool
) -> None:
    app = app_of(slow_route(whole_body), jobs=virtual_jobs(store=Fading(pieces, nothing)))
    async with running(app) as client:
        if in_time:
            request = RawRequest(prefer="wait=5")
        else:
            request = RawRequest((await client.post("/slow")).headers["location"], "GET")
        await settled()
        request.feed()
        with pytest.raises(StoreError):  # whereupon servers close the connection
            await request.run(app)
        assert request.status == 200
        assert not any(message.get("more_body") is False for message in request.sent)
        assert all(message.get("more_body") for message in request.sent[1:])


@pytest.mark.parametrize("asks", ["bytes=0-249", "bytes=0-99,150-299"])
@pytest.mark.parametrize("end", [[], [StoreError("it was dropped")]])
async def test_law_14_a_part_that_is_no_longer_whole_is_broken_off(
    asks: str, end: list[bytes | Exception]
) -> None:
    pieces = [BODY[:60], BODY[60:120], *end]
    app = app_of(slow_route(whole_body), jobs=virtual_jobs(store=Fading(pieces, nothing)))
    async with running(app) as client:
        request = RawRequest((await client.post("/slow")).headers["location"], "GET", range=asks)
        await settled()
        request.feed()
        with pytest.raises(StoreError):
            await request.run(app)
        assert request.status == 206
        assert len(request.sent) > 1
        assert all(message.get("more_body") for message in request.sent[1:])


@pytest.mark.parametrize("asks", ["", "bytes=5-9", "bytes=5-9,20-29"])
@pytest.mark.parametrize(
    ("gone", "status"), [("deleted", 410), ("forgotten", 404), ("kept", 500), ("in time", 202)]
)
async def test_law_14_a_body_that_is_gone_before_its_first_byte_is_no_empty_one(
    gone: str, status: int, asks: str
) -> None:
    async def meanwhile(id: str) -> None:
        job = await store.get(id)
        assert job is not None
        if gone != "kept":
            await store.replace(job.tombstone(1000.0, 0.0 if gone == "forgotten" else 1e10))
        if gone == "forgotten":
            await store.sweep(1e10)

    store = Fading([], meanwhile)
    async with running(app_of(slow_route(whole_body), jobs=virtual_jobs(store=store))) as client:
        prefer = {"prefer": "wait=5"} if gone == "in time" else {}
        response = await client.post("/slow", headers=prefer)
        if gone != "in time":
            await settled()
            fields = {"range": asks} if asks else {}
            response = await client.get(response.headers["location"], headers=fields)
        assert response.status_code == status
        assert response.headers["content-type"] in ("application/json", "application/problem+json")


async def test_law_14_a_response_without_a_body_is_whole_though_its_job_goes() -> None:
    async def answer(request: Request) -> Response:
        return Response(status_code=204)

    app = app_of(slow_route(answer), jobs=virtual_jobs(store=Fading([], nothing)))
    async with running(app) as client:
        accepted = await client.post("/slow")
        await settled()
        assert (await client.get(accepted.headers["location"])).status_code == 204
        assert (await client.head(accepted.headers["location"])).status_code == 204
