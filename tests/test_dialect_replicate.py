"""The Replicate dialect: predictions, by the sections of the HTTP API's reference."""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

import anyio
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from raincheck import ConfigurationError
from raincheck.dialects import ReplicateDialect
from tests.exchanges import TIME, Exchange, staged

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

DIALECT = ReplicateDialect(model="acme/rain", version="7")
PATH = "/v1/predictions"
GET = f"GET {PATH}/ID"
CANCEL = f"POST {PATH}/ID/cancel"


def prediction(status: str, **known: Any) -> dict[str, Any]:
    new = {
        "id": "ID",
        "model": "acme/rain",
        "version": "7",
        "status": status,
        "input": {},
        "output": None,
        "error": None,
        "logs": "two of five",
        "metrics": {},
        "created_at": TIME,
        "started_at": TIME,
        "completed_at": None,
        "urls": {"get": f"{PATH}/ID", "cancel": f"{PATH}/ID/cancel"},
    }
    return new | known


def ended(status: str, **known: Any) -> dict[str, Any]:
    return prediction(status, completed_at=TIME, metrics={"predict_time": ANY}, **known)


def problem(status: int, name: str, title: str, detail: str) -> dict[str, Any]:
    kind = f"urn:raincheck:problem:{name}"
    return {"type": kind, "title": title, "status": status, "detail": detail}


UNKNOWN = problem(404, "not-found", "There is no such job", "No job has this id.")
GONE = problem(410, "expired", "The job is gone", "The job has expired, or was deleted.")
NOT_READY = problem(404, "not-ready", "There is no output yet", "The prediction has not ended.")

EXCHANGES = {
    "predictions.create": Exchange(
        "running",
        "",
        201,
        prediction("starting", logs=""),
        {"retry-after": "1", "location": f"{PATH}/ID", "vary": "Prefer"},
    ),
    "predictions.get: starting": Exchange(
        "queued", GET, 200, prediction("starting", logs="", started_at=None)
    ),
    "predictions.get: processing": Exchange(
        "running", GET, 200, prediction("processing"), {"job-status": None}
    ),
    "predictions.get: asked to stop": Exchange("cancelling", GET, 200, prediction("processing")),
    "predictions.get: succeeded": Exchange(
        "succeeded",
        GET,
        200,
        ended("succeeded", output={"sent": 3}),
        {"retry-after": None, "job-status": "succeeded"},
    ),
    "predictions.get: failed": Exchange(
        "failed", GET, 200, ended("failed", error="There is no such file.")
    ),
    "predictions.get: failed by a crash": Exchange(
        "crashed", GET, 200, ended("failed", error="Internal Server Error")
    ),
    "predictions.get: failed by a deadline": Exchange(
        "timed out", GET, 200, ended("failed", error="The handler may run for 600 seconds.")
    ),
    "predictions.get: canceled": Exchange("cancelled", GET, 200, ended("canceled")),
    "predictions.get: unknown": Exchange(
        "running", f"GET {PATH}/NOBODY", 404, UNKNOWN, {"content-type": "application/problem+json"}
    ),
    "predictions.get: expired": Exchange("expired", GET, 410, GONE),
    "predictions.cancel": Exchange("running", CANCEL, 200, ended("canceled")),
    "predictions.cancel: starting": Exchange(
        "queued",
        CANCEL,
        200,
        prediction("canceled", logs="", started_at=None, completed_at=TIME),
    ),
    "predictions.cancel: twice": Exchange("cancelled", CANCEL, 200, ended("canceled")),
    "predictions.cancel: its handler does not stop": Exchange(
        "cancelling", CANCEL, 200, prediction("processing")
    ),
    "predictions.cancel: succeeded": Exchange(
        "succeeded", CANCEL, 200, ended("succeeded", output={"sent": 3})
    ),
    "predictions.cancel: unknown": Exchange("running", f"POST {PATH}/NOBODY/cancel", 404, UNKNOWN),
    "predictions.list": Exchange(
        "running",
        f"GET {PATH}",
        200,
        {"next": None, "previous": None, "results": [prediction("processing")]},
    ),
    "predictions.list: created_after": Exchange(
        "running",
        f"GET {PATH}?created_after=2100-01-01T00:00:00Z",
        200,
        {"next": None, "previous": None, "results": []},
    ),
    "predictions.list: no time": Exchange("running", f"GET {PATH}?created_before=noon", 400),
    "files: not yet": Exchange("running", f"{GET}/output", 404, NOT_READY, {"job-status": None}),
    "files: as the handler has it": Exchange("succeeded", f"{GET}/output", 200, {"sent": 3}),
    "files: of a prediction that was canceled": Exchange("cancelled", f"{GET}/output", 410),
    "deleting is not in the API": Exchange(
        "running", f"DELETE {PATH}/ID", 405, None, {"allow": "GET, HEAD"}
    ),
    "what is the plain dialect's alone: events": Exchange(
        "running", f"GET {PATH}/ID/events", 404, UNKNOWN
    ),
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES.keys())
async def test_an_exchange_is_that_of_the_specification(exchange: Exchange) -> None:
    await exchange.check(DIALECT, PATH, submit=PATH)


FILE = f"{PATH}/ID/output"


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        pytest.param(JSONResponse(["a", 1.5, None]), ["a", 1.5, None], id="JSON"),
        pytest.param(PlainTextResponse("wet"), "wet", id="text"),
        pytest.param(Response(status_code=204), None, id="nothing"),
        pytest.param(Response(b"\x89PNG", media_type="image/png"), FILE, id="a file"),
        pytest.param(PlainTextResponse("x" * 101), FILE, id="too large"),
        pytest.param(Response(b"[1", media_type="application/json"), "[1", id="called JSON"),
        pytest.param(
            Response(b"[1e999]", media_type="application/json"), "[1e999]", id="no number of JSON"
        ),
        pytest.param(Response(b"[" * 90_000, media_type="application/json"), FILE, id="very deep"),
    ],
)
async def test_an_output_is_what_the_handler_has_answered_or_where_it_is(
    answer: Response, output: Any
) -> None:
    dialect = ReplicateDialect(max_content=100)
    async with staged(dialect, PATH, "succeeded", submit=PATH, answer=answer) as stage:
        document = stage.read(await stage.ask(GET))
        assert document["output"] == output
        if output == FILE:
            file = await stage.ask(f"GET {FILE}")
            assert (file.status_code, file.content) == (200, answer.body)
            assert file.headers.get("content-type") == answer.headers.get("content-type")


async def test_json_that_is_nested_too_deeply_is_text() -> None:
    answer = Response(b"[" * 90_000 + b"]" * 90_000, media_type="application/json")
    async with staged(DIALECT, PATH, "succeeded", submit=PATH, answer=answer) as stage:
        assert stage.read(await stage.ask(GET))["output"] == bytes(answer.body).decode()


@pytest.mark.parametrize("prefer", ["wait", "wait=5"])
async def test_a_prediction_may_be_waited_for(prefer: str) -> None:
    """`Prefer: wait`: it comes back whole, if it is in time, and stays."""
    headers = {"prefer": prefer}
    async with staged(DIALECT, PATH, "succeeded", submit=PATH, headers=headers) as stage:
        assert stage.submitted.status_code == 201
        assert stage.read(stage.submitted) == ended("succeeded", output={"sent": 3})
        assert stage.read(await stage.ask(GET)) == ended("succeeded", output={"sent": 3})


async def test_a_failure_may_be_waited_for() -> None:
    async with staged(DIALECT, PATH, "failed", submit=PATH, headers={"prefer": "wait"}) as stage:
        assert stage.submitted.status_code == 201
        assert stage.read(stage.submitted) == ended("failed", error="There is no such file.")


async def test_a_prediction_that_takes_longer_comes_back_unfinished() -> None:
    async with staged(DIALECT, PATH, submit=PATH) as stage:
        begun = anyio.current_time()
        late = await stage.client.post(PATH, headers={"prefer": "wait=5"})
        assert (late.status_code, late.json()["status"]) == (201, "starting")
        assert 4.9 < anyio.current_time() - begun < 5.5


async def test_pages_of_a_list_follow_one_another() -> None:
    async with staged(DIALECT, PATH, submit=PATH) as stage:
        for _ in range(100):
            await stage.client.post(PATH)
        first = (await stage.ask(f"GET {PATH}")).json()
        assert len(first["results"]) == 100
        second = (await stage.client.get(first["next"])).json()
        assert [each["id"] for each in second["results"]] == [stage.job.id]
        assert second["next"] is None


@pytest.mark.parametrize("size", [0, "1", None])
def test_a_size_is_a_number_of_bytes(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_content"):
        ReplicateDialect(max_content=size)
