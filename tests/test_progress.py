from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import (
    Jobs,
    LongRunningMiddleware,
    Policy,
    current_job,
    long_running,
    report,
)
from raincheck.runtime.replay import REPLAY
from raincheck.runtime.run import Run
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore, failing, no_trick
from tests.support import app_of, running, settled, slow_route

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("fraction", "message", "shown"),
    [
        (0.4, "412 of 1000 sent", (0.4, "412 of 1000 sent")),
        (-1, None, (0.0, None)),
        (7, None, (1.0, None)),
        (float("nan"), None, (0.0, None)),
        (float("inf"), None, (1.0, None)),
        (1, 7, (1.0, "7")),
        (None, "counting", (None, "counting")),
        (None, None, (None, None)),
    ],
)
async def test_a_report_is_shown_in_the_document(
    fraction: float | None, message: Any, shown: Any
) -> None:
    gate = anyio.Event()

    async def answer(request: Request) -> dict[str, str]:
        report(fraction, message)
        await gate.wait()
        return {}

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        await settled()
        document = (await client.get(accepted.headers["location"])).json()
        assert (document["progress"], document["message"]) == shown
        gate.set()
        await follow(client, accepted)
        document = (await client.get(accepted.json()["links"]["self"])).json()
        assert (document["progress"], document["message"]) == shown


async def test_a_report_without_a_fraction_leaves_it_as_it_was() -> None:
    gate = anyio.Event()

    async def answer(request: Request) -> dict[str, str]:
        report(0.4, "counting")
        report(None, "sending")
        await gate.wait()
        report(None)
        return {}

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        await settled()
        document = (await client.get(accepted.headers["location"])).json()
        assert (document["progress"], document["message"]) == (0.4, "sending")
        gate.set()
        await follow(client, accepted)
        document = (await client.get(accepted.json()["links"]["self"])).json()
        assert (document["progress"], document["message"]) == (0.4, None)


@pytest.mark.parametrize(
    ("fraction", "said"),
    [
        (50, 1),
        (-0.5, 1),
        (float("nan"), 1),
        (0, 0),
        (1, 0),
        (sum([0.1] * 10) + 1e-12, 0),
        (None, 0),
    ],
)
async def test_a_fraction_that_is_none_is_said_once_for_each_route(
    fraction: float | None, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: Request) -> dict[str, str]:
        for _ in range(3):
            report(fraction)
            await anyio.sleep(1)
        return {}

    routes = [f"/{uuid4().hex}/{name}" for name in "ab"]  # each is told of once for all
    app = LongRunningMiddleware(
        Starlette(routes=[Route(path, plainly(answer), methods=["POST"]) for path in routes]),
        routes={f"POST {path}": Policy() for path in routes},
        jobs=virtual_jobs(),
    )
    async with running(app) as client:
        for path in 2 * routes:
            await follow(client, await client.post(path))
    told = [each for each in caplog.messages if "report(0.5)" in each]
    assert len(told) == 2 * said
    if told:
        assert [path in line for path, line in zip(routes, told, strict=True)] == [True, True]


async def test_a_text_in_the_place_of_the_fraction_is_told_with_the_cure() -> None:
    half: Any = "half of it"

    async def answer(request: Request) -> dict[str, str]:
        with pytest.raises(TypeError, match=r"given str for a fraction.* is report\(None, text\)"):
            report(half)
        return {"said": "yes"}

    async with running(app_of(slow_route(answer))) as client:
        assert (await follow(client, await client.post("/slow"))).json() == {"said": "yes"}


CUT = [
    ("a" * 5000, "a" * 4096),
    ("é" * 3000, "é" * 2048),
    ("€" * 2000, "€" * 1365),
    ("😀" * 1100, "😀" * 1024),
    ("a" + "😀" * 1100, "a" + "😀" * 1023),
    ("\ud800" * 2000, "\ud800" * 1365),
    ("a" * 4096, "a" * 4096),
    ("a" * 4095 + "é", "a" * 4095),
    ("a" * 10_000_000, "a" * 4096),
]


@pytest.mark.parametrize(("message", "kept"), CUT)
async def test_a_message_is_cut_at_4_kib(message: str, kept: str) -> None:
    async def answer(request: Request) -> dict[str, str]:
        report(0.5, message)
        return {}

    jobs = virtual_jobs()
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await follow(client, accepted)
        job = await jobs.get(accepted.json()["job_id"])
        assert job is not None
        assert job.progress is not None
        assert job.progress.message == kept
        document = (await client.get(accepted.headers["location"] + "/status")).json()
        assert len(document["message"]) == len(kept)


async def test_outside_a_job_a_report_does_nothing() -> None:
    report(0.5, "nobody sees this")
    assert current_job() is None


OUTSIDE = """
import logging
from raincheck import report

logging.basicConfig(format="%(levelname)s %(message)s")
for number in range(10):
    report(number / 10)
"""


@pytest.mark.real
def test_where_no_middleware_is_a_report_says_so_once() -> None:
    """In a process of its own, since it is told once in each."""
    command = [sys.executable, "-c", OUTSIDE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("WARNING report() was called where no LongRunningMiddleware has seen")


async def test_a_report_just_before_the_end_is_not_lost() -> None:
    async def answer(request: Request) -> dict[str, str]:
        for number in range(101):
            report(number / 100, f"{number} of 100")
        return {}

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        await follow(client, accepted)
        document = (await client.get(accepted.json()["links"]["self"])).json()
        assert (document["progress"], document["message"]) == (1.0, "100 of 100")


def plainly(answer: Callable[[Request], Awaitable[dict[str, str]]]) -> Any:
    """An endpoint that a path rule marks."""

    async def endpoint(request: Request) -> Response:
        return JSONResponse(await answer(request))

    return endpoint


async def test_a_million_reports_are_few_writes() -> None:
    writes = 0

    async def count(call: str, /, *arguments: Any, **more: Any) -> None:
        nonlocal writes
        writes += call == "replace"

    async def answer(request: Request) -> dict[str, str]:
        for number in range(10_000):
            report(number / 10_000)
            if number % 1000 == 0:
                await anyio.sleep(0.1)
        return {}

    async with running(
        app_of(slow_route(answer), jobs=virtual_jobs(store=TrickyStore(count)))
    ) as client:
        await follow(client, await client.post("/slow"))
    assert 0 < writes < 30


@pytest.mark.real
async def test_reports_from_threads() -> None:
    reported, release = threading.Event(), threading.Event()

    @long_running
    def in_thread(request: Request) -> Response:
        report(0.5, "from a thread")
        reported.set()
        release.wait(30)
        report(0.75)
        return PlainTextResponse("done")

    app = app_of(Route("/slow", in_thread, methods=["POST"]), jobs=Jobs())
    async with running(app) as client:
        accepted = await client.post("/slow")
        await anyio.to_thread.run_sync(reported.wait, 30)
        document: dict[str, Any] = {"message": None}
        with anyio.fail_after(10):
            while document["message"] is None:
                await anyio.sleep(0.01)
                document = (await client.get(accepted.headers["location"])).json()
        assert (document["progress"], document["message"]) == (0.5, "from a thread")
        release.set()
        await follow(client, accepted)
        document = (await client.get(accepted.json()["links"]["self"])).json()
        assert document["progress"] == 0.75


async def test_a_report_that_the_store_refuses_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "replace" and not arguments[0].finished:
            raise OSError("the disk is away")

    async def answer(request: Request) -> dict[str, str]:
        report(0.5)
        await anyio.sleep(1)
        return {}

    jobs = virtual_jobs(store=TrickyStore(refuse))
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.headers["job-status"] == "succeeded"
    assert "the disk is away" in caplog.text


async def test_the_last_report_before_a_long_silence_is_told_once_the_store_is_back() -> None:
    async def answer(request: Request) -> dict[str, str]:
        report(0.1, "the first")
        await anyio.sleep(1)
        report(0.5, "on the way")
        await anyio.sleep(1)
        report(0.9, "the last")
        await gate.wait()
        return {}

    gate, store = anyio.Event(), TrickyStore()
    async with running(app_of(slow_route(answer), jobs=virtual_jobs(store=store))) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(0.5)
        store.before = failing("replace")
        await anyio.sleep(4)
        store.before = no_trick
        await anyio.sleep(5)
        document = (await client.get(accepted.headers["location"])).json()
        assert (document["progress"], document["message"]) == (0.9, "the last")
        gate.set()
        await follow(client, accepted)


async def test_a_report_as_another_is_written_for_the_last_time_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As threads may make it: between the look for something new and the end of the writing."""
    slot: Any = vars(Run)["_flushing"]
    late = True

    def ends(run: Run, flushing: bool) -> None:
        nonlocal late
        if late and not flushing and run.progress is not None:
            late = False
            context[0].run(report, 0.9, "the last")
        slot.__set__(run, flushing)

    monkeypatch.setattr(Run, "_flushing", property(slot.__get__, ends))
    context: list[contextvars.Context] = []

    async def answer(request: Request) -> dict[str, str]:
        context.append(contextvars.copy_context())
        report(0.1, "the first")
        await gate.wait()
        return {}

    gate = anyio.Event()
    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(2)
        assert not late
        document = (await client.get(accepted.headers["location"])).json()
        assert (document["progress"], document["message"]) == (0.9, "the last")
        gate.set()
        await follow(client, accepted)


async def test_a_report_after_the_end_is_forgotten() -> None:
    late: list[Any] = []

    async def answer(request: Request) -> dict[str, str]:
        late.append(contextvars.copy_context())
        return {}

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        await follow(client, accepted)
        late[0].run(report, 0.5)
        await settled()
        document = (await client.get(accepted.json()["links"]["self"])).json()
        assert document["progress"] is None


async def test_what_cleans_up_after_a_first_pass_says_nothing_of_the_replay() -> None:
    async def answer(request: Request) -> str:
        await anyio.sleep(1)
        report(0.5, "by the handler")
        await anyio.sleep(9)
        return "done"

    def cleaning(app: ASGIApp) -> ASGIApp:
        async def cleaned(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            finally:
                if scope.get("query_string") == b"second" and REPLAY not in scope:
                    await anyio.sleep(15)
                    report(0.1, "by the first pass")

        return cleaned

    app = Starlette(routes=[slow_route(answer, max_running=1)], middleware=[Middleware(cleaning)])
    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        await client.post("/slow")
        second = await client.post("/slow?second")
        await anyio.sleep(16)
        document = (await client.get(second.headers["location"])).json()
        assert (document["status"], document["message"]) == ("running", "by the handler")
        assert (await follow(client, second)).status_code == 200
