"""The OpenAI dialect: background responses, by the sections of the API reference."""

from __future__ import annotations

import gzip
import zlib
from typing import Any
from unittest.mock import ANY

import anyio
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from raincheck import ConfigurationError
from raincheck.dialects import OpenAIDialect
from tests.exchanges import Exchange, staged

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

DIALECT = OpenAIDialect()
PATH = "/v1/responses"
GET = f"GET {PATH}/ID"


def response(status: str, **known: Any) -> dict[str, Any]:
    empty = {
        "id": "ID",
        "object": "response",
        "created_at": ANY,
        "status": status,
        "background": True,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": None,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }
    return empty | known


def said(text: str) -> list[dict[str, Any]]:
    content = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": "msg_0", "type": "message", "role": "assistant", "status": "completed"}
    return [{**message, "content": [content]}]


def error(message: str, kind: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def failed(message: str, code: str = "server_error") -> dict[str, Any]:
    return response("failed", error={"code": code, "message": message})


UNKNOWN = error("No job has this id.", "invalid_request_error", "not_found")
GONE = error("The job has expired, or was deleted.", "invalid_request_error", "expired")
OWN = {
    "id": "resp_own",
    "object": "chat.completion",
    "model": "rain-1",
    "output": said("It rains."),
    "usage": {"total_tokens": 3},
}
COMPLETED = response("completed", output=said('{"sent": 3}'))

EXCHANGES = {
    "Create a response: background": Exchange(
        "running",
        "",
        200,
        response("in_progress"),
        {"retry-after": "1", "content-type": "application/json", "vary": "Prefer"},
    ),
    "Get a response: queued": Exchange("queued", GET, 200, response("queued")),
    "Get a response: in_progress": Exchange(
        "running", GET, 200, response("in_progress"), {"job-status": None}
    ),
    "Get a response: asked to stop": Exchange("cancelling", GET, 200, response("in_progress")),
    "Get a response: completed": Exchange(
        "succeeded", GET, 200, COMPLETED, {"retry-after": None, "job-status": "succeeded"}
    ),
    "Get a response: failed": Exchange("failed", GET, 200, failed("There is no such file.")),
    "Get a response: failed by a crash": Exchange(
        "crashed", GET, 200, failed("Internal Server Error")
    ),
    "Get a response: failed by a deadline": Exchange(
        "timed out", GET, 200, failed("The handler may run for 600 seconds.")
    ),
    "Get a response: cancelled": Exchange("cancelled", GET, 200, response("cancelled")),
    "Get a response: with what may be included": Exchange(
        "running", GET + "?include=usage&stream=false", 200, response("in_progress")
    ),
    "Get a response: as a stream": Exchange(
        "running",
        GET + "?stream=true&starting_after=3",
        400,
        error(
            "This response was not created with stream=true; ask for it without.",
            "invalid_request_error",
            "stream_unsupported",
        ),
    ),
    "Get a response: unknown": Exchange("running", f"GET {PATH}/NOBODY", 404, UNKNOWN),
    "Get a response: expired": Exchange("expired", GET, 410, GONE),
    "Cancel a response": Exchange("running", f"POST {PATH}/ID/cancel", 200, response("cancelled")),
    "Cancel a response: queued": Exchange(
        "queued", f"POST {PATH}/ID/cancel", 200, response("cancelled")
    ),
    "Cancel a response: twice": Exchange(
        "cancelled", f"POST {PATH}/ID/cancel", 200, response("cancelled")
    ),
    "Cancel a response: its handler does not stop": Exchange(
        "cancelling", f"POST {PATH}/ID/cancel", 200, response("in_progress")
    ),
    "Cancel a response: completed": Exchange(
        "succeeded",
        f"POST {PATH}/ID/cancel",
        400,
        error("A finished job cannot be cancelled.", "invalid_request_error", "finished"),
    ),
    "Delete a response": Exchange(
        "succeeded",
        f"DELETE {PATH}/ID",
        200,
        {"id": "ID", "object": "response", "deleted": True},
    ),
    "Delete a response: in_progress": Exchange(
        "running", f"DELETE {PATH}/ID", 200, {"id": "ID", "object": "response", "deleted": True}
    ),
    "Delete a response: deleted": Exchange("deleted", f"DELETE {PATH}/ID", 410, GONE),
    "Get a response: deleted": Exchange("deleted", GET, 410, GONE),
    "List input items: not here": Exchange("running", f"{GET}/input_items", 404, UNKNOWN),
    "a method that there is not": Exchange(
        "running",
        f"PATCH {PATH}/ID",
        405,
        error(
            "Allow names the methods of this URL.", "invalid_request_error", "method_not_allowed"
        ),
        {"allow": "DELETE, GET, HEAD"},
    ),
    "what is the plain dialect's alone: events": Exchange(
        "running", f"GET {PATH}/ID/events", 404, UNKNOWN
    ),
    "what is the plain dialect's alone: a list": Exchange(
        "running", f"GET {PATH}", 405, None, {"allow": "POST"}
    ),
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES.keys())
async def test_an_exchange_is_that_of_the_specification(exchange: Exchange) -> None:
    await exchange.check(DIALECT, PATH, submit=PATH)


@pytest.mark.parametrize(
    ("answer", "document"),
    [
        pytest.param(
            JSONResponse(OWN),
            response("completed") | {**OWN, "id": "ID", "object": "response"},
            id="a response: all but its id",
        ),
        pytest.param(
            JSONResponse({**OWN, "status": "incomplete"}),
            response("incomplete") | {**OWN, "id": "ID", "object": "response"},
            id="a response that says how it has ended",
        ),
        pytest.param(
            JSONResponse({**OWN, "status": "in_progress"}),
            response("completed") | {**OWN, "id": "ID", "object": "response"},
            id="a response that says it has not ended",
        ),
        pytest.param(
            JSONResponse({**OWN, "status": {"code": 0}}),
            response("completed") | {**OWN, "id": "ID", "object": "response"},
            id="a response whose status is no word",
        ),
        pytest.param(JSONResponse([1]), response("completed", output=said("[1]")), id="other JSON"),
        pytest.param(
            JSONResponse("wet"), response("completed", output=said("wet")), id="a JSON string"
        ),
        pytest.param(
            PlainTextResponse("naß"), response("completed", output=said("naß")), id="text"
        ),
        pytest.param(
            Response("naß".encode("latin-1"), media_type="text/plain; charset=latin-1"),
            response("completed", output=said("naß")),
            id="text in another coding",
        ),
        pytest.param(
            Response(b"wet", media_type="text/plain; charset=none-such"),
            response("completed", output=said("wet")),
            id="text in no coding",
        ),
        pytest.param(
            Response(
                gzip.compress(b"wet"), media_type="text/plain", headers={"content-encoding": "gzip"}
            ),
            response("completed", output=said("wet")),
            id="compressed text",
        ),
        pytest.param(
            Response(
                gzip.compress(b"wet ") + gzip.compress(b"and cold"),
                media_type="text/plain",
                headers={"content-encoding": "gzip"},
            ),
            response("completed", output=said("wet and cold")),
            id="text that was compressed in two parts",
        ),
        pytest.param(
            Response(
                zlib.compress(b"wet"),
                media_type="text/plain",
                headers={"content-encoding": "deflate"},
            ),
            response("completed", output=said("wet")),
            id="text that was deflated",
        ),
        pytest.param(
            Response(
                zlib.compress(b"wet ") + zlib.compress(b"and cold"),
                media_type="text/plain",
                headers={"content-encoding": "deflate"},
            ),
            failed("The response is not coded as it says."),
            id="deflated text with something behind it",
        ),
        pytest.param(
            Response(b"?", media_type="text/plain", headers={"content-encoding": "br"}),
            failed("The response has the content coding br."),
            id="text in a content coding that cannot be read",
        ),
        pytest.param(
            Response(b"wet", media_type="text/plain", headers={"content-encoding": "gzip"}),
            failed("The response is not coded as it says."),
            id="text that is not compressed",
        ),
        pytest.param(
            Response(
                gzip.compress(b"wet")[:-9],
                media_type="text/plain",
                headers={"content-encoding": "gzip"},
            ),
            failed("The response is not coded as it says."),
            id="compressed text without its end",
        ),
        pytest.param(
            Response(
                gzip.compress(b"x" * 999),
                media_type="text/plain",
                headers={"content-encoding": "gzip"},
            ),
            failed("The response has 501 bytes or more; a document here has 500 at most."),
            id="compressed text that is too large",
        ),
        pytest.param(Response(status_code=204), response("completed"), id="nothing"),
        pytest.param(
            Response(b"\x89PNG", media_type="image/png"),
            failed("The response is no JSON and no text."),
            id="no text",
        ),
        pytest.param(
            Response(b"\x00"), failed("The response is no JSON and no text."), id="no media type"
        ),
        pytest.param(
            PlainTextResponse("x" * 501),
            failed("The response has 501 bytes or more; a document here has 500 at most."),
            id="too large",
        ),
    ],
)
async def test_a_response_is_what_the_handler_has_answered(answer: Response, document: Any) -> None:
    dialect = OpenAIDialect(max_content=500)
    async with staged(dialect, PATH, "succeeded", submit=PATH, answer=answer) as stage:
        assert stage.read(await stage.ask(GET)) == document


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({"detail": "no file"}, "no file", id="FastAPI and RFC 9457"),
        pytest.param({"error": {"message": "no file"}}, "no file", id="OpenAI and Google"),
        pytest.param({"error": "no file"}, "no file", id="a string"),
        pytest.param({"title": "No file"}, "No file", id="RFC 9457 without a detail"),
        pytest.param(
            {"detail": [{"loc": ["body"], "msg": "no number"}, {"msg": "no file"}]},
            "no number; no file",
            id="FastAPI's faults",
        ),
        pytest.param("no file", "no file", id="text"),
        pytest.param("y" * 2000, "y" * 1000, id="too much of it"),
        pytest.param({"rows": 3}, "The response has status 418.", id="nothing that is known"),
        pytest.param([], "The response has status 418.", id="nothing"),
    ],
)
async def test_a_failure_is_told_in_the_handlers_words(body: Any, message: str) -> None:
    answer = JSONResponse(body, 418)
    async with staged(DIALECT, PATH, "succeeded", submit=PATH, answer=answer) as stage:
        document = stage.read(await stage.ask(GET))
        assert document["error"] == {"code": "server_error", "message": message}


async def test_a_failure_for_want_of_quota_is_told_as_one() -> None:
    answer = PlainTextResponse("Not so fast.", 429)
    async with staged(DIALECT, PATH, "succeeded", submit=PATH, answer=answer) as stage:
        document = stage.read(await stage.ask(GET))
        assert document["error"] == {"code": "rate_limit_exceeded", "message": "Not so fast."}


async def test_a_cancel_waits_for_the_handler_only_as_long_as_it_says() -> None:
    async with staged(DIALECT, PATH, "cancelling", submit=PATH) as stage:
        begun = anyio.current_time()
        await stage.ask(f"POST {PATH}/ID/cancel")
        assert 1.9 < anyio.current_time() - begun < 2.5


@pytest.mark.parametrize("size", [0, "1", None])
def test_a_size_is_a_number_of_bytes(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_content"):
        OpenAIDialect(max_content=size)
