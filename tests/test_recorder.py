"""Recording: the messages of one response, in order, and the pieces of its body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raincheck.errors import LeaseLost
from raincheck.messages import CapturedResponse, RawHeaders
from raincheck.runtime.recorder import PIECE, ProtocolError, Recorder, TooLarge

pytestmark = pytest.mark.anyio


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(chunk: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


class Kept:
    """The pieces of a body that were kept, each where it belongs."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    async def __call__(self, offset: int, piece: bytes) -> None:
        assert type(piece) is bytes
        assert offset == len(self.body)
        self.pieces.append(piece)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def recorder_of(keep: Callable[[int, bytes], Awaitable[None]], max_size: int = 1000) -> Recorder:
    return Recorder(keep, "GET", max_size)


async def record(
    *messages: Mapping[str, Any], method: str = "GET", max_size: int = 1000
) -> tuple[list[CapturedResponse | None], bytes]:
    """What each message came to, and the body afterwards: the pieces and the tail."""
    kept = Kept()
    recorder = Recorder(kept, method, max_size)
    taken = [await recorder.take(message) for message in messages]
    return taken, kept.body + recorder.tail


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
    recorder = recorder_of(Kept())
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
        pytest.param([start(200, (b"x a", b"1")), body()], "no token", id="a malformed header"),
        pytest.param(
            [start(200, (b"x-a", b"1\n")), body()], "control character", id="a malformed value"
        ),
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
async def test_more_body_than_the_bound_is_not_taken(
    messages: list[dict[str, Any]], stored: bytes
) -> None:
    kept = Kept()
    recorder = recorder_of(kept, max_size=4)
    await recorder.take(start())
    for message in messages[:-1]:
        await recorder.take(message)
    with pytest.raises(TooLarge):
        await recorder.take(messages[-1])
    assert kept.body + recorder.tail == stored


async def test_a_piece_beyond_the_bound_is_not_kept() -> None:
    kept = Kept()
    recorder = recorder_of(kept, max_size=2 * PIECE)
    await recorder.take(start())
    await recorder.take(body(b"x" * (PIECE + 1), more=True))
    with pytest.raises(TooLarge):
        await recorder.take(body(b"y" * PIECE, more=True))
    assert kept.pieces == [b"x" * (PIECE + 1)]


# --- pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "pieces", "tail"),
    [
        pytest.param([PIECE - 1], [], PIECE - 1, id="a byte less"),
        pytest.param([PIECE], [PIECE], 0, id="just a piece"),
        pytest.param([PIECE + 1], [PIECE + 1], 0, id="a byte more"),
        pytest.param([1, PIECE - 1], [PIECE], 0, id="together just a piece"),
        pytest.param([PIECE - 1, 1, 1], [PIECE], 1, id="and one over"),
        pytest.param([PIECE - 1, PIECE, 7], [2 * PIECE - 1], 7, id="larger than a piece"),
        pytest.param([PIECE, PIECE, PIECE], [PIECE] * 3, 0, id="each message a piece"),
        pytest.param([5 * PIECE], [5 * PIECE], 0, id="not cut up"),
        pytest.param([PIECE, 0, 0, 1, 0], [PIECE], 1, id="empty messages"),
        pytest.param([1000] * 800, [263_000] * 3, 11_000, id="many small ones"),
    ],
)
async def test_small_messages_come_together_in_pieces(
    sizes: list[int], pieces: list[int], tail: int
) -> None:
    chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    whole = b"".join(chunks)
    kept = Kept()
    recorder = recorder_of(kept, max_size=len(whole))
    await recorder.take(start())
    for chunk in chunks:
        assert await recorder.take(body(chunk, more=True)) is None
    assert [len(piece) for piece in kept.pieces] == pieces
    assert len(recorder.tail) == tail
    # The last message brings no piece, however large it is: that goes with the outcome.
    assert await recorder.take(body()) == CapturedResponse(200, (), len(whole))
    assert [len(piece) for piece in kept.pieces] == pieces
    assert kept.body + recorder.tail == whole


async def test_the_end_of_a_body_goes_with_the_outcome_however_large_it_is() -> None:
    kept = Kept()
    recorder = recorder_of(kept, max_size=10 * PIECE)
    await recorder.take(start())
    await recorder.take(body(b"a" * 10, more=True))
    assert await recorder.take(body(b"b" * 3 * PIECE)) is not None
    assert kept.pieces == []
    assert recorder.tail == b"a" * 10 + b"b" * 3 * PIECE


async def test_a_piece_is_kept_before_the_handler_goes_on() -> None:
    kept, gate = Kept(), anyio.Event()

    async def keep(offset: int, piece: bytes) -> None:
        await gate.wait()
        await kept(offset, piece)

    recorder = recorder_of(keep, max_size=PIECE)
    await recorder.take(start())
    async with anyio.create_task_group() as group:
        group.start_soon(recorder.take, body(b"x" * PIECE, more=True))
        await anyio.wait_all_tasks_blocked()
        assert kept.pieces == []
        gate.set()
    assert kept.pieces == [b"x" * PIECE]


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("last", [False, True])
async def test_a_piece_whose_keeping_was_cancelled_is_asked_for_again(
    arrived: bool, last: bool
) -> None:
    """A handler that cleans up may send more, and nothing is missing in between."""
    asked: list[tuple[int, bytes]] = []
    store = bytearray()
    hangs = True

    async def keep(offset: int, piece: bytes) -> None:
        asked.append((offset, piece))
        if arrived or not hangs:
            assert offset <= len(store)  # no gap; what is there already stays as it is
            store[offset:] = piece
        if hangs:
            await anyio.sleep_forever()

    recorder = recorder_of(keep, max_size=10 * PIECE)
    await recorder.take(start())
    await recorder.take(body(b"a" * 5, more=True))
    with anyio.move_on_after(1) as scope:
        await recorder.take(body(b"b" * PIECE, more=True))
    assert scope.cancelled_caught
    hangs = False
    first = b"a" * 5 + b"b" * PIECE
    response = await recorder.take(body(b"c" * PIECE, more=not last))
    second = [] if last else [(len(first), b"c" * PIECE)]
    assert asked == [(0, first), (0, first), *second]
    assert bytes(store) + recorder.tail == first + b"c" * PIECE
    if last:
        assert response == CapturedResponse(200, (), len(first) + PIECE)


async def test_a_piece_that_cannot_be_kept_is_asked_for_again_by_the_next_message() -> None:
    """Only `LeaseLost` comes out of the ledger; nothing after that piece is kept without it."""
    asked = []

    async def refuse(offset: int, piece: bytes) -> None:
        asked.append(offset)
        raise LeaseLost("somebody else's")

    recorder = recorder_of(refuse, max_size=10 * PIECE)
    await recorder.take(start())
    for message in (body(b"x" * PIECE, more=True), body(b"y", more=True), body()):
        with pytest.raises(LeaseLost):
            await recorder.take(message)
    assert asked == [0, 0, 0]


async def test_a_chunk_is_the_recorders_own() -> None:
    kept = Kept()
    recorder = recorder_of(kept, max_size=10 * PIECE)
    buffer = bytearray(b"ab")
    await recorder.take(start())
    for _ in range(2):
        await recorder.take({"type": "http.response.body", "body": buffer, "more_body": True})
        buffer[:] = b"xy"
    assert recorder.tail == b"abxy"
    large = bytearray(PIECE)
    await recorder.take({"type": "http.response.body", "body": large, "more_body": True})
    large[:] = b"z" * PIECE
    assert kept.body == b"abxy" + bytes(PIECE)


@given(sizes=st.lists(st.sampled_from([0, 1, 7, 1000, PIECE // 2, PIECE - 1, PIECE, PIECE + 1])))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
async def test_pieces_and_tail_are_the_body_whatever_its_messages(sizes: list[int]) -> None:
    chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    messages = [body(chunk, more=True) for chunk in chunks]
    taken, stored = await record(start(), *messages, body(), max_size=sum(sizes))
    assert stored == b"".join(chunks)
    assert taken[-1] == CapturedResponse(200, (), len(stored))
