"""Synchronous answers under an Idempotency-Key: kept, and given again to whoever sends the key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raincheck import Job, Limits, LongRunningMiddleware, MemoryStore, Policy, current_job, report
from raincheck.errors import StoreError
from raincheck.runtime.recorder import PIECE
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.bodies import MemoryBodies
from tests.doubles.stores import SharedMemory, TrickyStore, failing, no_trick, taking
from tests.support import (
    Gate,
    RawRequest,
    app_of,
    client_of,
    gated,
    running,
    settled,
    slow_route,
)

pytestmark = pytest.mark.anyio

KEY = {"idempotency-key": "order-7"}
ASYNC = {**KEY, "prefer": "respond-async"}


class Payments:
    """An endpoint that counts its runs, and answers with what a test says."""

    def __init__(self, answer: Any = None) -> None:
        self.runs = 0
        self._answer = answer

    async def __call__(self, request: Request) -> Response:
        self.runs += 1
        if self._answer is not None:
            response: Response = await self._answer(request)
            return response
        body = await request.body()
        return JSONResponse({"run": self.runs, "size": len(body)}, 201)

    def app(self, how: str = "decorated", **settings: Any) -> LongRunningMiddleware:
        jobs = settings.pop("jobs", None) or virtual_jobs()
        if how == "decorated":
            return app_of(slow_route(self, respond="preferred", **settings), jobs=jobs)
        app = Starlette(routes=[Route("/slow", self.__call__, methods=["GET", "POST"])])
        rules = {"/slow": Policy(respond="preferred", **settings)}
        return LongRunningMiddleware(app, routes=rules, jobs=jobs)


both_ways = pytest.mark.parametrize("how", ["decorated", "path rule"])


@both_ways
@pytest.mark.parametrize("status", [200, 202, 201, 302, 402, 500])
async def test_a_key_gets_the_answer_itself_again(how: str, status: int) -> None:
    async def answer(request: Request) -> Response:
        response = Response(b"\xff" * 10, status, {"x-run": str(pay.runs)})
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    pay = Payments(answer)
    async with running(pay.app(how)) as client:
        first, *others = [
            await client.post("/slow", content=b"x", headers=headers)
            for headers in (KEY, KEY, ASYNC, {**KEY, "prefer": "wait=0"})
        ]
        assert pay.runs == 1
        assert (first.status_code, first.content) == (status, b"\xff" * 10)
        assert "idempotency-replayed" not in first.headers
        for again in others:
            assert (again.status_code, again.content) == (status, first.content)
            replayed = ("idempotency-replayed", "true")
            assert sorted(again.headers.multi_items()) == sorted(
                [*first.headers.multi_items(), replayed]
            )


@both_ways
async def test_without_a_key_nothing_is_kept(how: str) -> None:
    store, pay = MemoryStore(), Payments()
    async with running(pay.app(how, jobs=virtual_jobs(store=store))) as client:
        answers = [(await client.post("/slow")).json()["run"] for _ in range(2)]
        assert (answers, len(store)) == ([1, 2], 0)


@both_ways
async def test_a_key_that_means_nothing_is_ignored(how: str) -> None:
    store, pay = MemoryStore(), Payments()
    app = pay.app(how, jobs=virtual_jobs(store=store), idempotency="off")
    async with running(app) as client:
        answers = [(await client.post("/slow", headers=KEY)).json()["run"] for _ in range(2)]
        assert (answers, len(store)) == ([1, 2], 0)


@both_ways
async def test_a_key_is_refused_as_that_of_any_job(how: str) -> None:
    pay = Payments()
    async with running(pay.app(how, idempotency="required")) as client:
        assert (await client.post("/slow")).status_code == 400
        assert (await client.post("/slow", headers={"idempotency-key": '"'})).status_code == 400
        assert (await client.post("/slow", content=b"x", headers=KEY)).status_code == 201
        reused = await client.post("/slow", content=b"y", headers=KEY)
        assert (reused.status_code, pay.runs) == (422, 1)
        assert reused.headers["vary"] == "Prefer"


async def test_a_key_has_its_owner_and_its_host() -> None:
    pay = Payments()
    app = LongRunningMiddleware(
        Starlette(routes=[slow_route(pay, respond="preferred")]),
        owner=lambda connection: connection.headers.get("x-user"),
        jobs=virtual_jobs(),
    )
    async with running(app) as client:
        for fields in ({}, {"x-user": "ann"}, {"x-user": "bob"}, {"host": "other.example"}):
            for _ in range(2):
                await client.post("/slow", headers={**KEY, **fields})
        assert pay.runs == 4


@both_ways
async def test_a_body_over_the_limit_is_refused_under_a_key(how: str) -> None:
    pay = Payments()
    async with running(pay.app(how, max_request_size=10)) as client:
        assert (await client.post("/slow", content=b"x" * 11, headers=KEY)).status_code == 413
        assert (await client.post("/slow", content=b"x" * 11)).status_code == 201
        assert pay.runs == 1


async def test_what_was_answered_before_the_handler_leaves_its_key_free() -> None:
    pay = Payments()
    endpoint = slow_route(pay, respond="preferred").endpoint

    async def validating(request: Request) -> Response:
        if "amount" not in request.query_params:
            return JSONResponse({}, 422)
        return await endpoint(request)  # type: ignore[no-any-return]

    validating.__raincheck_mark__ = endpoint.__raincheck_mark__  # type: ignore[attr-defined]
    async with running(app_of(Route("/slow", validating, methods=["POST"]))) as client:
        assert (await client.post("/slow", headers=KEY)).status_code == 422
        assert (await client.post("/slow?amount=7", headers=KEY)).status_code == 201
        assert pay.runs == 1


# --- at the same time ----------------------------------------------------------------------------


def slowly(seconds: float) -> Any:
    async def answer(request: Request) -> Response:
        await anyio.sleep(seconds)
        return JSONResponse({}, 201)

    return answer


@both_ways
async def test_a_request_that_comes_meanwhile_waits_for_the_answer(how: str) -> None:
    pay = Payments(slowly(20))
    async with running(pay.app(how)) as client:
        answers: list[httpx.Response] = []

        async def send() -> None:
            answers.append(await client.post("/slow", headers=KEY))

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(send)
        assert [answer.status_code for answer in answers] == [201] * 10
        assert sum("idempotency-replayed" in answer.headers for answer in answers) == 9
        assert pay.runs == 1


async def test_a_wait_that_is_too_long_ends_with_a_409() -> None:
    pay = Payments(slowly(60))
    async with running(pay.app(max_wait=20)) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(client.post, "/slow", headers=KEY))
            await settled()
            since = anyio.current_time()
            busy = await client.post("/slow", headers=KEY)
            assert anyio.current_time() - since == pytest.approx(20, abs=0.1)
            hasty = await client.post("/slow", headers=ASYNC)
            assert anyio.current_time() - since == pytest.approx(20, abs=0.1)
            for answer in (busy, hasty):
                assert answer.status_code == 409
                assert answer.json()["type"].endswith("idempotency-key-in-use")
                assert int(answer.headers["retry-after"]) >= 1
                assert "job-status" not in answer.headers
        later = await client.post("/slow", headers=KEY)
        assert (later.status_code, later.headers["idempotency-replayed"]) == (201, "true")
        assert pay.runs == 1


async def test_a_job_that_was_accepted_under_the_key_answers_who_waits() -> None:
    pay = Payments(slowly(20))
    async with running(pay.app()) as client:
        accepted = await client.post("/slow", headers=ASYNC)
        assert accepted.status_code == 202
        answer = await client.post("/slow", headers=KEY)
        assert (answer.status_code, answer.headers["idempotency-replayed"]) == (201, "true")
        again = await client.post("/slow", headers=ASYNC)
        assert (again.status_code, again.headers["location"]) == (
            202,
            accepted.headers["location"],
        )
        assert pay.runs == 1


async def test_a_job_that_was_cancelled_answers_so() -> None:
    pay = Payments(slowly(20))
    async with running(pay.app()) as client:
        accepted = await client.post("/slow", headers=ASYNC)
        await client.post(accepted.json()["links"]["cancel"])
        answer = await client.post("/slow", headers=KEY)
        assert answer.status_code == 410
        assert answer.json()["type"].endswith("cancelled")
        assert pay.runs <= 1


async def test_synchronous_requests_take_no_places_and_need_none() -> None:
    gate, store = Gate(), SharedMemory()
    jobs = virtual_jobs(store=store, limits=Limits(max_running=2, max_queued=0))
    app = app_of(gated(gate, respond="preferred", max_running=1, max_queued=0), jobs=jobs)
    async with running(app) as client, anyio.create_task_group() as group:
        for number in range(5):
            headers = {"idempotency-key": f"k{number}"}
            group.start_soon(partial(client.post, "/slow", headers=headers))
        await settled()
        assert gate.entered == 5
        accepted = await client.post("/slow", headers={"prefer": "respond-async"})
        assert (accepted.status_code, accepted.json()["status"]) == (202, "running")
        refused = await client.post("/slow", headers={"prefer": "respond-async"})
        assert refused.status_code == 503
        assert jobs.statistics().running == 1
        gate.open()


async def test_synchronous_requests_share_no_run() -> None:
    gate = Gate()
    app = app_of(gated(gate, respond="preferred", coalesce=True))
    async with running(app) as client, anyio.create_task_group() as group:
        for key in ("k1", "k2"):
            headers = {"idempotency-key": key}
            group.start_soon(partial(client.post, "/slow", headers=headers))
        await settled()
        await client.post("/slow", headers={"prefer": "respond-async"})
        await settled()
        assert gate.entered == 3
        gate.open()


async def test_a_handler_sees_no_job_where_its_client_waits() -> None:
    seen: list[Job | None] = []

    async def answer(request: Request) -> Response:
        report(0.5)
        seen.append(current_job())
        return Response()

    async with running(Payments(answer).app()) as client:
        await client.post("/slow", headers=KEY)
        await follow(client, await client.post("/slow", headers={"prefer": "respond-async"}))
    assert [job is None for job in seen] == [True, False]


# --- what goes wrong -----------------------------------------------------------------------------


@both_ways
async def test_a_larger_answer_reaches_its_client_and_is_not_kept(how: str) -> None:
    async def answer(request: Request) -> Response:
        return Response(b"x" * 2000)

    pay = Payments(answer)
    async with running(pay.app(how, max_response_size=1000)) as client:
        assert len((await client.post("/slow", headers=KEY)).content) == 2000
        again = await client.post("/slow", headers=KEY)
        assert again.status_code == 500
        assert again.json()["type"].endswith("response-too-large")
        assert again.headers["job-status"] == "failed"
        assert pay.runs == 1


async def test_a_crash_is_the_answer_of_its_key() -> None:
    async def answer(request: Request) -> Response:
        raise ValueError("no")

    inside, outside = Payments(answer), Payments(answer)
    async with client_of(inside.app(), raise_app_exceptions=False) as client:
        first, again = [await client.post("/slow", headers=KEY) for _ in "ab"]
        assert (first.status_code, first.text) == (again.status_code, again.text)
        assert (again.status_code, inside.runs) == (500, 1)
    app = Starlette(
        routes=[slow_route(outside, respond="preferred")],
        middleware=[Middleware(LongRunningMiddleware, jobs=virtual_jobs())],
    )
    async with client_of(app, raise_app_exceptions=False) as client:
        first, again = [await client.post("/slow", headers=KEY) for _ in "ab"]
        assert (first.status_code, first.text) == (500, "Internal Server Error")
        assert (again.status_code, outside.runs) == (500, 1)
        assert again.json()["type"].endswith("crashed")


async def test_an_apps_own_answer_to_a_crash_is_that_of_its_key() -> None:
    async def answer(request: Request) -> Response:
        raise ValueError("no")

    async def sorry(request: Request, error: Exception) -> Response:
        return JSONResponse({"sorry": True}, 500)

    pay = Payments(answer)
    app = Starlette(
        routes=[slow_route(pay, respond="preferred")],
        middleware=[Middleware(LongRunningMiddleware, jobs=virtual_jobs())],
        exception_handlers={Exception: sorry},
    )
    async with client_of(app, raise_app_exceptions=False) as client:
        answers = [await client.post("/slow", headers=KEY) for _ in range(2)]
        assert [answer.json() for answer in answers] == [{"sorry": True}] * 2
        assert pay.runs == 1


@both_ways
async def test_who_leaves_does_not_have_it_done_twice(how: str) -> None:
    """A server that cancels what its client has left may do so in the middle of the work."""
    gate = Gate()

    async def answer(request: Request) -> Response:
        await gate.wait()
        return Response()

    pay = Payments(answer)
    app = pay.app(how)
    async with running(app) as client:
        request = RawRequest(host="test", idempotency_key="order-7")
        request.feed()
        async with anyio.create_task_group() as group:
            group.start_soon(request.run, app)
            await settled()
            group.cancel_scope.cancel()
        assert (gate.entered, gate.cleaned_up) == (1, 1)
        for headers in (KEY, ASYNC):
            again = await client.post("/slow", headers=headers)
            assert again.status_code == 410
            assert again.json()["type"].endswith("cancelled")
            assert again.headers["job-status"] == "canceled"
        assert pay.runs == 1
        gate.open()


class Left(RawRequest):
    """Whose client has left, as ASGI says since HTTP 2.4."""

    async def _send(self, message: Any) -> None:
        await super()._send(message)
        raise OSError("the client has left")


@both_ways
async def test_whose_client_has_left_before_the_answer_finds_it_under_its_key(how: str) -> None:
    for pay in (Payments(), Payments(large)):
        app = pay.app(how)
        async with running(app) as client:
            request = Left(host="test", idempotency_key="order-7")
            request.feed()
            await request.run(app)
            assert [message["type"] for message in request.sent] == ["http.response.start"]
            answer = await client.post("/slow", headers=KEY)
            assert answer.headers["idempotency-replayed"] == "true"
            assert answer.status_code == (200 if answer.content == LARGE else 201)
            assert pay.runs == 1


async def test_what_is_too_large_to_keep_is_not_made_for_nobody() -> None:
    made = []

    async def answer(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(100):
                made.append(number)
                yield b"x" * 100

        return StreamingResponse(parts())

    app = Payments(answer).app(max_response_size=1000)
    async with running(app):
        request = Left(host="test", idempotency_key="order-7")
        request.feed()
        with pytest.raises(OSError, match="has left"):
            await request.run(app)
    assert len(made) == 11


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    async def answer(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"the first part"
            raise ValueError("no more")

        return StreamingResponse(parts())

    pay = Payments(answer)
    async with client_of(pay.app(), raise_app_exceptions=False) as client:
        await client.post("/slow", headers=KEY)
        again = await client.post("/slow", headers=KEY)
        assert again.status_code == 500
        assert again.json()["type"].endswith("crashed")
        assert pay.runs == 1


async def test_a_shutdown_that_interrupts_it_is_the_answer_of_its_key() -> None:
    store = SharedMemory()
    pay = Payments(slowly(1000))
    jobs = virtual_jobs(store=store, limits=Limits(drain_timeout=5, cancel_grace=1))
    async with anyio.create_task_group() as group:
        async with running(pay.app(name="pay", jobs=jobs)) as client:
            group.start_soon(partial(client.post, "/slow", headers=KEY))
            await settled()
        await settled()
    async with running(pay.app(name="pay", jobs=virtual_jobs(store=store))) as client:
        answer = await client.post("/slow", headers=KEY)
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("interrupted")
        assert answer.headers["job-status"] == "failed"
        assert "retry-after" not in answer.headers
        assert pay.runs == 1


# --- the store -----------------------------------------------------------------------------------


AWAY = StoreError("it does not answer")


async def large(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(10):
            yield bytes([number]) * PIECE

    return StreamingResponse(parts())


LARGE = b"".join(bytes([number]) * PIECE for number in range(10))


async def test_a_large_answer_is_kept_while_it_is_sent() -> None:
    pay = Payments(large)
    async with running(pay.app()) as client:
        for _ in range(2):
            assert (await client.post("/slow", headers=KEY)).content == LARGE
        assert pay.runs == 1


async def test_a_store_that_fails_meanwhile_costs_the_copy_and_not_the_answer() -> None:
    store, pay = TrickyStore(shared=True), Payments(large)
    async with running(pay.app(jobs=virtual_jobs(store=store))) as client:
        store.before = failing("append_body", error=AWAY)
        assert (await client.post("/slow", headers=KEY)).content == LARGE
        store.before = no_trick
        again = await client.post("/slow", headers=KEY)
        assert again.status_code == 500
        assert again.json()["type"].endswith("answer-not-kept")
        assert pay.runs == 1


@pytest.mark.parametrize("left", ["torn", "gone"])
async def test_an_answer_that_is_not_whole_any_more_is_a_problem(
    left: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And not a 409, by which its client would come again for ever."""
    bodies, pay = MemoryBodies(), Payments(large)
    async with running(pay.app(jobs=virtual_jobs(bodies=bodies))) as client:
        assert (await client.post("/slow", headers=KEY)).content == LARGE
        ((name, body),) = bodies.kept.items()
        bodies.kept = {name: body[:-1]} if left == "torn" else {}
        for _ in range(2):
            again = await client.post("/slow", headers=KEY)
            assert again.status_code == 500
            assert again.json()["type"].endswith("unreadable")
            assert again.headers["job-status"] == "succeeded"
            assert again.headers["idempotency-replayed"] == "true"
            assert "retry-after" not in again.headers
        assert pay.runs == 1
        assert len(caplog.records) == 1


async def test_an_answer_that_goes_with_its_job_leaves_its_key_free() -> None:
    async def forget(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "read_body":
            store.before = no_trick
            job = await store.get(arguments[0])
            assert job is not None
            assert await store.replace(job.tombstone(0.0, 60.0))

    store, pay = TrickyStore(), Payments(large)
    async with running(pay.app(jobs=virtual_jobs(store=store))) as client:
        await client.post("/slow", headers=KEY)
        store.before = forget
        again = await client.post("/slow", headers=KEY)
        assert (again.status_code, again.headers["retry-after"]) == (409, "1")
        assert (await client.post("/slow", headers=KEY)).content == LARGE
        assert pay.runs == 2


async def test_nobody_waits_for_the_store_to_keep_the_answer() -> None:
    store, pay = TrickyStore(shared=True), Payments()
    async with running(pay.app(jobs=virtual_jobs(store=store))) as client:
        store.before = taking(replace=5)
        since = anyio.current_time()
        first = await client.post("/slow", headers=KEY)
        assert first.status_code == 201
        assert anyio.current_time() - since == pytest.approx(0, abs=0.1)
        again = await client.post("/slow", headers=KEY)  # waits until it is kept
        assert (again.status_code, again.json()) == (201, first.json())
        assert pay.runs == 1


async def test_an_answer_that_was_given_before_a_shutdown_is_kept() -> None:
    store, pay = TrickyStore(shared=True), Payments()
    async with running(pay.app(name="pay", jobs=virtual_jobs(store=store))) as client:
        store.before = taking(replace=5)
        assert (await client.post("/slow", headers=KEY)).status_code == 201
    async with running(pay.app(name="pay", jobs=virtual_jobs(store=store))) as client:
        again = await client.post("/slow", headers=KEY)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
        assert pay.runs == 1


async def test_what_cannot_be_kept_at_all_is_not_begun() -> None:
    store, pay = TrickyStore(shared=True), Payments()
    async with running(pay.app(jobs=virtual_jobs(store=store))) as client:
        store.before = failing("create", error=AWAY)
        refused = await client.post("/slow", headers=KEY)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert (await client.post("/slow")).status_code == 201  # it needs no store
        store.before = no_trick
        await anyio.sleep(60)
        assert (await client.post("/slow", headers=KEY)).status_code == 201
        assert pay.runs == 2


async def test_a_kept_answer_goes_with_its_time() -> None:
    store, pay = MemoryStore(), Payments()
    jobs = virtual_jobs(store=store, limits=Limits(tombstone_ttl=60))
    async with running(pay.app(jobs=jobs, ttl=60)) as client:
        await client.post("/slow", headers=KEY)
        await anyio.sleep(61)
        assert (await client.post("/slow", headers=KEY)).json()["run"] == 2
        await anyio.sleep(200)
        assert (len(store), store.size) == (0, 0)
