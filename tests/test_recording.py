"""Recording: the messages of one response, in order, and its body in the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raincheck import Job, MemoryStore, State
from raincheck.messages import CapturedResponse, RawHeaders
from raincheck.recording import ProtocolError, Recorder, TooLarge

pytestmark = pytest.mark.anyio


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(chunk: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


async def store_with_job() -> MemoryStore:
    store = MemoryStore()
    await store.create(Job(id="id", route="a", state=State.RUNNING, created_at=0.0))
    return store


async def body_in(store: MemoryStore) -> bytes:
    return b"".join([chunk async for chunk in store.read_body("id")])


async def record(
    *messages: Mapping[str, Any], method: str = "GET", max_size: int = 1000
) -> tuple[list[CapturedResponse | None], bytes]:
    """What each message came to, and the body in the store afterwards."""
    store = await store_with_job()
    recorder = Recorder(store, "id", method, max_size)
    taken = [await recorder.take(message) for message in messages]
    return taken, await body_in(store)


@pytest.mark.parametrize(
    ("messages", "stored"),
    [
        pytest.param([body(b"whole")], b"whole", id="at once"),
        pytest.param([body(b"ab", more=True), body(b"cd")], b"abcd", id="streamed"),
        pytest.param([body(b"ab", more=True), body()], b"ab", id="an empty end"),
        pytest.param([body(more=True), body(more=True), body(b"x")], b"x", id="empty beginnings"),
        pytest.param([body()], b"", id="no body"),
        pytest.param([{"type": "http.response.body"}], b"", id="nothing said is nothing more"),
        pytest.param([body(bytes(range(256)))], bytes(range(256)), id="bytes of any kind"),
        pytest.param([{"type": "http.response.body", "body": bytearray(b"ab")}], b"ab", id="array"),
        pytest.param([{"type": "http.response.body", "body": memoryview(b"ab")}], b"ab", id="view"),
    ],
)
async def test_the_last_body_message_completes_the_response(
    messages: list[dict[str, Any]], stored: bytes
) -> None:
    *earlier, last = (await record(start(201), *messages))[0]
    assert earlier == [None] * len(messages)
    assert last == CapturedResponse(201, (), len(stored))
    assert (await record(start(201), *messages))[1] == stored


@pytest.mark.parametrize("status", [200, 201, 202, 204, 302, 304, 404, 422, 500, 599])
async def test_any_status_is_recorded(status: int) -> None:
    taken, _ = await record(start(status), body())
    assert taken[-1] == CapturedResponse(status, (), 0)


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ((), ()),
        (
            ((b"set-cookie", b"a=1"), (b"x-a", b"1"), (b"set-cookie", b"b=2")),
            ((b"set-cookie", b"a=1"), (b"x-a", b"1"), (b"set-cookie", b"b=2")),
        ),
        (((b"X-Case", b"Kept"),), ((b"X-Case", b"Kept"),)),
        (((b"transfer-encoding", b"chunked"), (b"x-a", b"1")), ((b"x-a", b"1"),)),
        (((b"connection", b"x-hop"), (b"x-hop", b"1"), (b"x-a", b"1")), ((b"x-a", b"1"),)),
    ],
)
async def test_headers_are_recorded_without_the_hop_by_hop_ones(
    headers: RawHeaders, kept: RawHeaders
) -> None:
    taken, _ = await record(start(200, *headers), body())
    assert taken[-1] == CapturedResponse(200, kept, 0)


async def test_a_start_without_headers_has_none() -> None:
    taken, _ = await record({"type": "http.response.start", "status": 200}, body())
    assert taken[-1] == CapturedResponse(200, (), 0)


async def test_a_recorder_knows_whether_the_response_has_started() -> None:
    recorder = Recorder(await store_with_job(), "id", "GET", 1)
    assert not recorder.started
    await recorder.take(start())
    assert recorder.started


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        pytest.param([body(b"x")], "a body before the start", id="a body first"),
        pytest.param([start(), start()], "started its response twice", id="two starts"),
        pytest.param(
            [start(), body(b"x", more=True), start()], "started its response twice", id="late start"
        ),
        pytest.param([{"type": "websocket.accept"}], "'websocket.accept'", id="a websocket's"),
        pytest.param([{"type": "http.request"}], "'http.request'", id="a request's"),
        pytest.param(
            [start(200, (b"content-length", b"3")), body(b"ab")], "Content-Length", id="too short"
        ),
        pytest.param(
            [start(200, (b"content-length", b"1")), body(b"ab")], "Content-Length", id="too long"
        ),
        pytest.param([start(200, (b"x a", b"1")), body()], "malformed", id="a malformed header"),
        pytest.param([start(200, (b"x-a", b"1\n")), body()], "malformed", id="a malformed value"),
    ],
)
async def test_messages_that_make_no_response_are_refused(
    messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(ProtocolError, match=reason):
        await record(*messages)


async def test_messages_of_extensions_are_passed_over() -> None:
    taken, stored = await record(start(), {"type": "http.response.debug", "info": {}}, body(b"x"))
    assert taken == [None, None, CapturedResponse(200, (), 1)]
    assert stored == b"x"


async def test_a_response_to_head_may_announce_more_than_it_sends() -> None:
    taken, _ = await record(start(200, (b"content-length", b"5")), body(), method="HEAD")
    assert taken[-1] is not None


@pytest.mark.parametrize("max_size", [0, 1, 4])
async def test_a_body_of_just_the_bound_is_recorded(max_size: int) -> None:
    taken, stored = await record(start(), body(b"x" * max_size), max_size=max_size)
    assert taken[-1] == CapturedResponse(200, (), max_size)
    assert stored == b"x" * max_size


@pytest.mark.parametrize(
    ("messages", "stored"),
    [
        pytest.param([body(b"12345")], b"", id="at once"),
        pytest.param([body(b"123", more=True), body(b"45", more=True)], b"123", id="streamed"),
        pytest.param([body(b"1234", more=True), body(b"5")], b"1234", id="by one byte"),
    ],
)
async def test_more_body_than_the_bound_is_not_stored(
    messages: list[dict[str, Any]], stored: bytes
) -> None:
    store = await store_with_job()
    recorder = Recorder(store, "id", "GET", 4)
    await recorder.take(start())
    for message in messages[:-1]:
        await recorder.take(message)
    with pytest.raises(TooLarge):
        await recorder.take(messages[-1])
    assert await body_in(store) == stored


async def test_chunks_are_in_the_store_as_soon_as_they_are_sent() -> None:
    store = await store_with_job()
    recorder = Recorder(store, "id", "GET", 1000)
    await recorder.take(start())
    for chunk, so_far in (b"ab", b"ab"), (b"", b"ab"), (b"cd", b"abcd"):
        await recorder.take(body(chunk, more=True))
        assert await body_in(store) == so_far


async def test_a_chunk_is_the_stores_own() -> None:
    store = await store_with_job()
    recorder = Recorder(store, "id", "GET", 1000)
    buffer = bytearray(b"ab")
    await recorder.take(start())
    await recorder.take({"type": "http.response.body", "body": buffer, "more_body": True})
    buffer[:] = b"xy"
    assert await body_in(store) == b"ab"
