"""The Google dialect: AIP-151 and google.longrunning.Operations, section by section."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any
from unittest.mock import ANY

import anyio
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from raincheck import ConfigurationError
from raincheck.dialects import GoogleDialect
from tests.exchanges import TIME, Exchange, staged

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

DIALECT = GoogleDialect()
PATH = "/v1/projects/p/operations"
NAME = "projects/p/operations/ID"
GET = f"GET {PATH}/ID"
STRUCT = "type.googleapis.com/google.protobuf.Struct"


def metadata(**known: Any) -> dict[str, Any]:
    value = {
        "createTime": TIME,
        "endTime": None,
        "progressPercent": 40,
        "message": "two of five",
        "queuePosition": None,
    }
    return {"@type": STRUCT, "value": value | known}


def operation(done: bool = False, outcome: Any = None, **known: Any) -> dict[str, Any]:
    if done:
        known = {"endTime": TIME, **known}
    return {"name": NAME, "metadata": metadata(**known), "done": done, **(outcome or {})}


def error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def refused(code: int, status: str, message: str, reason: str) -> dict[str, Any]:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "raincheck",
    }
    return {"error": {"code": code, "message": message, "status": status, "details": [info]}}


UNKNOWN = refused(404, "NOT_FOUND", "No job has this id.", "NOT_FOUND")
GONE = refused(410, "NOT_FOUND", "The job has expired, or was deleted.", "EXPIRED")
NOTHING: dict[str, Any] = {}
CANCELLED = error(1, "The operation was cancelled.")
SENT = {"response": {"@type": STRUCT, "value": {"sent": 3}}}

EXCHANGES = {
    "AIP-151 Guidance: the method returns an Operation": Exchange(
        "running",
        "",
        200,
        # It is answered before the handler has begun, and has reported nothing yet.
        operation(progressPercent=None, message=None),
        {"retry-after": "1", "content-type": "application/json", "vary": "Prefer"},
    ),
    "AIP-151 Guidance: done is false, and neither error nor response is set": Exchange(
        "running", GET, 200, operation(), {"job-status": None}
    ),
    "AIP-151 Queued operations": Exchange(
        "queued", GET, 200, operation(progressPercent=None, message=None, queuePosition=1)
    ),
    "AIP-151 Guidance: done, with a response": Exchange(
        "succeeded",
        GET,
        200,
        operation(True, SENT),
        {"retry-after": None, "job-status": "succeeded"},
    ),
    "AIP-151 Errors: while running, an error in the operation": Exchange(
        "failed", GET, 200, operation(True, error(3, "There is no such file."))
    ),
    "AIP-151 Errors: a crash": Exchange(
        "crashed", GET, 200, operation(True, error(13, "Internal Server Error"))
    ),
    "AIP-151 Errors: a deadline": Exchange(
        "timed out", GET, 200, operation(True, error(4, "The handler may run for 600 seconds."))
    ),
    "AIP-151 Expiration": Exchange("expired", GET, 410, GONE),
    "GetOperation: unknown": Exchange("running", f"GET {PATH}/NOBODY", 404, UNKNOWN),
    "GetOperation: cancelled": Exchange("cancelled", GET, 200, operation(True, CANCELLED)),
    "GetOperation: cancelled, and the handler has not stopped": Exchange(
        "cancelling", GET, 200, operation()
    ),
    "CancelOperation": Exchange("running", f"POST {PATH}/ID:cancel", 200, NOTHING),
    "CancelOperation: twice": Exchange("cancelled", f"POST {PATH}/ID:cancel", 200, NOTHING),
    "CancelOperation: best effort": Exchange("succeeded", f"POST {PATH}/ID:cancel", 200, NOTHING),
    "CancelOperation: unknown": Exchange("running", f"POST {PATH}/NOBODY:cancel", 404, UNKNOWN),
    "DeleteOperation: finished": Exchange("succeeded", f"DELETE {PATH}/ID", 200, NOTHING),
    "DeleteOperation: it does not cancel": Exchange(
        "running",
        f"DELETE {PATH}/ID",
        400,
        refused(
            400,
            "FAILED_PRECONDITION",
            "A job is forgotten only once it has finished; cancel it first.",
            "UNFINISHED",
        ),
    ),
    "DeleteOperation: deleted": Exchange("deleted", f"DELETE {PATH}/ID", 410, GONE),
    "GetOperation: deleted": Exchange("deleted", GET, 410, GONE),
    "WaitOperation: finished": Exchange(
        "succeeded", f"POST {PATH}/ID:wait", 200, operation(True, SENT)
    ),
    "WaitOperation: it has not finished in time": Exchange(
        "running", f"POST {PATH}/ID:wait?timeout=3.5s", 200, operation()
    ),
    "ListOperations": Exchange("running", f"GET {PATH}", 200, {"operations": [operation()]}),
    "ListOperations: filter": Exchange(
        "running", f"GET {PATH}?filter=done%3Dtrue&pageSize=0", 200, {"operations": []}
    ),
    "ListOperations: another filter": Exchange(
        "running",
        f"GET {PATH}?filter=name%3Dx",
        400,
        refused(
            400,
            "INVALID_ARGUMENT",
            "The parameter filter is done=true or done=false.",
            "MALFORMED_QUERY",
        ),
    ),
    "AIP-127: a method that there is not": Exchange(
        "running",
        f"PATCH {PATH}/ID",
        405,
        refused(405, "UNIMPLEMENTED", "Allow names the methods of this URL.", "METHOD_NOT_ALLOWED"),
        {"allow": "DELETE, GET, HEAD"},
    ),
    "what is the plain dialect's alone: events": Exchange(
        "running", f"GET {PATH}/ID/events", 404, UNKNOWN
    ),
    "what is the plain dialect's alone: the monitor": Exchange(
        "running", f"GET {PATH}/ID/status", 404, UNKNOWN
    ),
    "what is the plain dialect's alone: totals": Exchange(
        "running", f"GET {PATH}/totals", 404, UNKNOWN
    ),
    "another verb": Exchange("running", f"POST {PATH}/ID:pause", 404, UNKNOWN),
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES.keys())
async def test_an_exchange_is_that_of_the_specification(exchange: Exchange) -> None:
    await exchange.check(DIALECT, PATH)


PICTURE = b"\x89PNG\xff" * 9


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        pytest.param(
            JSONResponse([1, 2]),
            {"response": {"@type": "type.googleapis.com/google.protobuf.Value", "value": [1, 2]}},
            id="JSON that is no object",
        ),
        pytest.param(
            Response(status_code=204),
            {"response": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}},
            id="nothing",
        ),
        pytest.param(
            Response(PICTURE, media_type="image/png"),
            {
                "response": {
                    "@type": "type.googleapis.com/google.api.HttpBody",
                    "contentType": "image/png",
                    "data": b64encode(PICTURE).decode(),
                }
            },
            id="no JSON",
        ),
        pytest.param(
            Response(b'{"a": NaN}', media_type="application/json"),
            {
                "response": {
                    "@type": "type.googleapis.com/google.api.HttpBody",
                    "contentType": "application/json",
                    "data": b64encode(b'{"a": NaN}').decode(),
                }
            },
            id="called JSON",
        ),
        pytest.param(
            PlainTextResponse("x" * 101),
            error(11, "The response has 101 bytes or more; a document here has 100 at most."),
            id="too large",
        ),
    ],
)
async def test_a_response_is_what_an_operation_can_have(answer: Response, outcome: Any) -> None:
    async with staged(GoogleDialect(max_content=100), PATH, "succeeded", answer=answer) as stage:
        assert stage.read(await stage.ask(GET)) == operation(True, outcome)


UNCARRIED = [
    pytest.param(b'{"a": "\\ud800"}', id="half a surrogate pair"),
    pytest.param(b'["\xed\xa0\x80"]', id="the same, as bytes"),
    pytest.param(b'{"a": %b}' % (b"9" * 309), id="more than a double has"),
    pytest.param(b"[" * 50 + b"]" * 50, id="lists in lists"),
    pytest.param(b'{"a": ' * 50 + b"1" + b"}" * 50, id="objects in objects"),
]
CARRIED = [
    pytest.param(b'{"a": "\\ud83c\\udf27"}', id="a whole surrogate pair"),
    pytest.param(b'{"a": "%b"}' % (b"9" * 309), id="digits that are text"),
    pytest.param(b"[1%b]" % (b"0" * 308), id="as much as a double has"),
    pytest.param(b"[" * 49 + b"]" * 49, id="lists in lists, as deep as may be"),
]


@pytest.mark.parametrize("body", UNCARRIED)
async def test_json_that_protobuf_cannot_carry_is_a_body(body: bytes) -> None:
    """google-api-core's parser raises at such a `Struct`: the operation could not be read."""
    answer = Response(body, media_type="application/json")
    async with staged(DIALECT, PATH, "succeeded", answer=answer) as stage:
        response = (await stage.ask(GET)).json()["response"]
    assert response.pop("data") == b64encode(body).decode()
    kind = "type.googleapis.com/google.api.HttpBody"
    assert response == {"@type": kind, "contentType": "application/json"}


@pytest.mark.parametrize("body", CARRIED)
async def test_json_that_it_can_carry_is_itself(body: bytes) -> None:
    answer = Response(body, media_type="application/json")
    async with staged(DIALECT, PATH, "succeeded", answer=answer) as stage:
        assert (await stage.ask(GET)).json()["response"]["value"] == json.loads(body)


async def test_no_message_has_what_utf8_does_not_have() -> None:
    answer = Response(b'{"detail": "half a \\ud83c"}', 422, media_type="application/json")
    async with staged(DIALECT, PATH, "succeeded", answer=answer) as stage:
        assert (await stage.ask(GET)).json()["error"] == {"code": 3, "message": "half a ?"}


@pytest.mark.parametrize("timeout", [{"json": {"timeout": "7s"}}, {"params": {"timeout": "7s"}}])
async def test_a_wait_lasts_as_long_as_it_says(timeout: dict[str, Any]) -> None:
    async with staged(DIALECT, PATH) as stage:
        begun = anyio.current_time()
        assert not stage.read(await stage.ask(f"POST {PATH}/ID:wait", **timeout))["done"]
        assert 6.9 < anyio.current_time() - begun < 7.5


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"no json", b'{"timeout": "soon"}'])
async def test_a_wait_that_does_not_say_lasts_as_long_as_any(body: bytes) -> None:
    async with staged(DIALECT, PATH) as stage:
        begun = anyio.current_time()
        await stage.ask(f"POST {PATH}/ID:wait", content=body)
        assert 24.5 < anyio.current_time() - begun < 26


async def test_pages_of_a_list_follow_one_another() -> None:
    async with staged(DIALECT, PATH, "queued", submit="/slow") as stage:
        await stage.client.post("/slow")
        first = (await stage.ask(f"GET {PATH}?pageSize=1")).json()
        token = first["nextPageToken"]
        second = (await stage.ask(f"GET {PATH}?pageSize=1&pageToken={token}")).json()
        assert second["operations"][0]["name"].endswith(stage.job.id)
        assert first["operations"][0]["name"] != second["operations"][0]["name"]
        malformed = await stage.ask(f"GET {PATH}?pageToken=no")
        assert malformed.json() == refused(400, "INVALID_ARGUMENT", ANY, "MALFORMED_QUERY")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/operations", "operations/ID"),
        ("/api/v1beta1/operations", "operations/ID"),
        ("/jobs", "jobs/ID"),
        ("/dev1/operations", "dev1/operations/ID"),
    ],
)
async def test_a_name_is_what_stands_behind_the_version(path: str, name: str) -> None:
    async with staged(DIALECT, path) as stage:
        assert stage.read(stage.submitted)["name"] == name


@pytest.mark.parametrize("size", [0, -1, 1.5, "1", True])
def test_a_size_is_a_number_of_bytes(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_content"):
        GoogleDialect(max_content=size)


async def test_an_operation_has_no_other_member() -> None:
    """google-api-core's parser of protobuf takes none."""
    for state in ("running", "succeeded", "failed", "cancelled"):
        async with staged(DIALECT, PATH, state) as stage:
            for response in (stage.submitted, await stage.ask(GET)):
                members = json.loads(response.content).keys()
                assert members <= {"name", "metadata", "done", "error", "response"}
