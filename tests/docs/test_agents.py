"""What agents.md tells a program to do, against servers that make it hard."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from tests.client.servers import ByHand, serving
from tests.docs.blocks import ROOT, blocks, run

pytestmark = pytest.mark.real

(BLOCK,) = (b for b in blocks(ROOT / "docs" / "agents.md") if b.language == "python")


@pytest.fixture
def slept() -> list[float]:
    """How long it has waited, each time; it does not really."""
    return []


@pytest.fixture
def call(slept: list[float]) -> Any:
    names = run(BLOCK, {})
    names["time"] = SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
    return names["call"]


@long_running
async def make_report(request: Request) -> Response:
    await asyncio.sleep(0.5)
    return JSONResponse({"for": request.headers["authorization"]}, 201)


def test_it_gets_the_response(call: Any) -> None:
    app = Starlette(routes=[Route("/reports", make_report, methods=["POST"])])
    with serving(LongRunningMiddleware(app)) as url:
        response = call(f"{url}/reports", {}, {"authorization": "ann"})
    assert (response.status_code, response.json()) == (201, {"for": "ann"})


@pytest.mark.parametrize("last", [200, 404, 410, 500, 503])
def test_it_outlives_what_passes_and_believes_what_is_final(
    call: Any, slept: list[float], last: int
) -> None:
    final = Response("the end", last, {"job-status": "failed"} if last >= 500 else {})
    server = ByHand(
        Response("", 503, {"retry-after": "1"}), Response("", 202), Response("", 502), final
    )
    server.app.router.routes.append(Route("/reports", server.submit, methods=["POST"]))
    with serving(server.app) as url:
        response = call(f"{url}/reports", {}, {})
    assert (response.status_code, response.text) == (last, "the end")
    assert len(server.submissions) == 1
    assert server.script == []
    assert slept == [1, 1, 1, 2]  # the 202, and what the script has before its end


def test_it_sends_the_same_key_again(call: Any, slept: list[float]) -> None:
    keys = []

    async def busy(request: Request) -> Response:
        keys.append(request.headers["idempotency-key"])
        return Response("", 503 if len(keys) < 3 else 422, {"retry-after": "7"})

    app = Starlette(routes=[Route("/reports", busy, methods=["POST"])])
    with serving(app) as url:
        assert call(f"{url}/reports", {}, {}).status_code == 422
    assert len(keys) == 3
    assert len({*keys}) == 1
    assert slept == [7, 7]


def test_it_takes_a_failure_in_time_for_the_answer(call: Any) -> None:
    @long_running(wait=5)
    async def fail(request: Request) -> Response:
        return Response("of the handler", 503)

    app = Starlette(routes=[Route("/reports", fail, methods=["POST"])])
    with serving(LongRunningMiddleware(app)) as url:
        response = call(f"{url}/reports", {}, {}, seconds=5)
    assert (response.status_code, response.text) == (503, "of the handler")


def test_a_poll_is_as_patient_as_it_is_asked_to_be(call: Any, slept: list[float]) -> None:
    date = {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}
    server = ByHand(Response("", 429, {"retry-after": "30"}), Response("", 503, date))
    with serving(server.app) as url:
        assert call(f"{url}/work", {}, {}).status_code == 200
    assert slept == [1, 30, 2]


def test_it_gives_up_in_time(call: Any) -> None:
    with pytest.raises(TimeoutError, match="it goes on: http://127"):
        call("http://127.0.0.1:1/reports", {}, {}, seconds=0.5)
