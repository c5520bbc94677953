"""Recording: the messages of one response, in order, and the pieces of its body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raincheck import Limits, MemoryStore, Policy
from raincheck.errors import (
    NOT_KEPT,
    RESPONSE_LOST,
    BodyLost,
    Problem,
    Release,
    StoreFull,
    UnreadableRecord,
    crashed,
)
from raincheck.job import Job, State
from raincheck.messages import CapturedResponse, RawHeaders
from raincheck.runners.local import LocalRunner
from raincheck.runtime.environment import Environment
from raincheck.runtime.recorder import MOST, PIECE, ProtocolError, Recorder, TooLarge
from raincheck.runtime.run import Run
from raincheck.runtime.runs import Runs
from raincheck.runtime.stopping import Reason, Stopping
from raincheck.tasks import open_tasks


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(chunk: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


class Recording:
    """A recorder, and whoever has the pieces kept that come together."""

    def __init__(self, method: str = "GET", max_size: int = 1000) -> None:
        self.recorder = Recorder(method, max_size)
        self.pieces: list[bytes] = []

    def take(self, message: Mapping[str, Any]) -> CapturedResponse | None:
        taken = self.recorder.take(message)
        if self.recorder.piece is not None:
            offset, piece = self.recorder.piece
            assert type(piece) is bytes
            assert offset == sum(map(len, self.pieces))
            self.pieces.append(piece)
            self.recorder.kept()
        return taken

    @property
    def stored(self) -> bytes:
        return b"".join(self.pieces) + self.recorder.tail


def record(
    *messages: Mapping[str, Any], method: str = "GET", max_size: int = 1000
) -> tuple[list[CapturedResponse | None], bytes]:
    """What each message came to, and the body afterwards: the pieces and the tail."""
    recording = Recording(method, max_size)
    return [recording.take(message) for message in messages], recording.stored


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
def test_the_last_body_message_completes_the_response(
    messages: list[dict[str, Any]], stored: bytes
) -> None:
    *earlier, last = record(start(201), *messages)[0]
    assert earlier == [None] * len(messages)
    assert last == CapturedResponse(201, (), len(stored))
    assert record(start(201), *messages)[1] == stored


@pytest.mark.parametrize("status", [200, 201, 202, 204, 302, 304, 404, 422, 500, 599])
def test_any_status_is_recorded(status: int) -> None:
    taken, _ = record(start(status), body())
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
def test_headers_are_recorded_without_the_hop_by_hop_ones(
    headers: RawHeaders, kept: RawHeaders
) -> None:
    taken, _ = record(start(200, *headers), body())
    assert taken[-1] == CapturedResponse(200, kept, 0)


def test_a_start_without_headers_has_none() -> None:
    taken, _ = record({"type": "http.response.start", "status": 200}, body())
    assert taken[-1] == CapturedResponse(200, (), 0)


def test_a_recorder_knows_whether_the_response_has_started() -> None:
    recording = Recording()
    assert not recording.recorder.started
    recording.take(start())
    assert recording.recorder.started


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
def test_messages_that_make_no_response_are_refused(
    messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(ProtocolError, match=reason):
        record(*messages)


def test_messages_of_extensions_are_passed_over() -> None:
    taken, stored = record(start(), {"type": "http.response.debug", "info": {}}, body(b"x"))
    assert taken == [None, None, CapturedResponse(200, (), 1)]
    assert stored == b"x"


def test_a_response_to_head_may_announce_more_than_it_sends() -> None:
    taken, _ = record(start(200, (b"content-length", b"5")), body(), method="HEAD")
    assert taken[-1] is not None


@pytest.mark.parametrize("max_size", [0, 1, 4])
def test_a_body_of_just_the_bound_is_recorded(max_size: int) -> None:
    taken, stored = record(start(), body(b"x" * max_size), max_size=max_size)
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
def test_more_body_than_the_bound_is_not_taken(
    messages: list[dict[str, Any]], stored: bytes
) -> None:
    recording = Recording(max_size=4)
    recording.take(start())
    for message in messages[:-1]:
        recording.take(message)
    with pytest.raises(TooLarge):
        recording.take(messages[-1])
    assert recording.stored == stored


def test_a_piece_beyond_the_bound_is_not_kept() -> None:
    recording = Recording(max_size=2 * PIECE)
    recording.take(start())
    recording.take(body(b"x" * (PIECE + 1), more=True))
    with pytest.raises(TooLarge):
        recording.take(body(b"y" * PIECE, more=True))
    assert recording.pieces == [b"x" * (PIECE + 1)]


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
def test_small_messages_come_together_in_pieces(
    sizes: list[int], pieces: list[int], tail: int
) -> None:
    chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    whole = b"".join(chunks)
    recording = Recording(max_size=len(whole))
    recording.take(start())
    for chunk in chunks:
        assert recording.take(body(chunk, more=True)) is None
    assert [len(piece) for piece in recording.pieces] == pieces
    assert len(recording.recorder.tail) == tail
    # The last message brings no piece, however large it is: that goes with the outcome.
    assert recording.take(body()) == CapturedResponse(200, (), len(whole))
    assert [len(piece) for piece in recording.pieces] == pieces
    assert recording.stored == whole


def test_a_large_body_comes_in_larger_pieces() -> None:
    """Never more than a quarter of what was there before, so that a small one takes little."""
    recording = Recording(max_size=1 << 30)
    recording.take(start())
    for _ in range(1000):
        recording.take(body(bytes(10_000), more=True))
    sizes = [len(piece) for piece in recording.pieces]
    for number, size in enumerate(sizes):
        least = max(PIECE, min(MOST, sum(sizes[:number]) // 4))
        assert least <= size < least + 10_000
    assert sizes[-1] >= MOST > sizes[0]


def test_the_end_of_a_body_goes_with_the_outcome_however_large_it_is() -> None:
    recording = Recording(max_size=10 * PIECE)
    recording.take(start())
    recording.take(body(b"a" * 10, more=True))
    assert recording.take(body(b"b" * 3 * PIECE)) is not None
    assert recording.pieces == []
    assert recording.recorder.tail == b"a" * 10 + b"b" * 3 * PIECE


def test_a_chunk_is_the_recorders_own() -> None:
    recording = Recording(max_size=10 * PIECE)
    buffer = bytearray(b"ab")
    recording.take(start())
    for _ in range(2):
        recording.take({"type": "http.response.body", "body": buffer, "more_body": True})
        buffer[:] = b"xy"
    assert recording.recorder.tail == b"abxy"
    large = bytearray(PIECE)
    recording.take({"type": "http.response.body", "body": large, "more_body": True})
    large[:] = b"z" * PIECE
    assert recording.stored == b"abxy" + bytes(PIECE)


@given(sizes=st.lists(st.sampled_from([0, 1, 7, 1000, PIECE // 2, PIECE - 1, PIECE, PIECE + 1])))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_pieces_and_tail_are_the_body_whatever_its_messages(sizes: list[int]) -> None:
    chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    messages = [body(chunk, more=True) for chunk in chunks]
    taken, stored = record(start(), *messages, body(), max_size=sum(sizes))
    assert stored == b"".join(chunks)
    assert taken[-1] == CapturedResponse(200, (), len(stored))


# --- how a run has them kept -------------------------------------------------------------------


class Home(Runs):
    """The jobs of a process that keeps what is recorded in its own way."""

    def __init__(self, keep: Callable[[int, bytes], Awaitable[bool]]) -> None:
        store = Keeping(keep)
        environment = Environment(store, LocalRunner(), Limits(), lambda: 0.0)
        super().__init__(environment, open_tasks(), {})


class Keeping(MemoryStore):
    """A store that keeps pieces of bodies as it is told."""

    def __init__(self, keep: Callable[[int, bytes], Awaitable[bool]]) -> None:
        super().__init__()
        self._keep_piece = keep

    async def append_body(self, id: str, fence: int, offset: int, chunk: bytes, **_: Any) -> bool:
        return await self._keep_piece(offset, chunk)


async def begun(slow: Slow, chunk: bytes) -> Run:
    """A run of which this is on its way to a store that is slow."""
    run = await running(slow, max_response_size=10 * PIECE)
    with anyio.fail_after(5):  # not for it to be there
        await run.take(start())
        await run.take(body(chunk, more=True))
    return run


async def running(keep: Callable[[int, bytes], Awaitable[bool]], **settings: Any) -> Run:
    """A run that is recorded."""
    home = Home(keep)
    job = Job.accepted("a" * 30, "route", 0.0, runs=True)
    await home.environment.store.create(job)
    run = Run(home, job, Policy(**settings), None, stopping=Stopping(home.tasks, 1.0))
    home.add(run)
    run.record("GET")
    return run


@pytest.mark.anyio
async def test_a_piece_is_kept_before_the_handler_goes_on() -> None:
    kept, gate = list[bytes](), anyio.Event()

    async def keep(offset: int, piece: bytes) -> bool:
        await gate.wait()
        kept.append(piece)
        return True

    run = await running(keep, max_response_size=PIECE)
    await run.take(start())
    async with anyio.create_task_group() as group:
        group.start_soon(run.take, body(b"x" * PIECE, more=True))
        await anyio.wait_all_tasks_blocked()
        assert kept == []
        gate.set()
    assert kept == [b"x" * PIECE]


@pytest.mark.anyio
@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("last", [False, True])
async def test_a_piece_whose_keeping_was_cancelled_is_asked_for_again(
    arrived: bool, last: bool
) -> None:
    """A handler that cleans up may send more, and nothing is missing in between."""
    asked: list[tuple[int, bytes]] = []
    hangs = True

    async def keep(offset: int, piece: bytes) -> bool:
        asked.append((offset, piece))
        if hangs:
            await anyio.sleep_forever()
        return True

    run = await running(keep, max_response_size=10 * PIECE)
    await run.take(start())
    await run.take(body(b"a" * 5, more=True))
    with anyio.move_on_after(1) as scope:
        await run.take(body(b"b" * PIECE, more=True))
    assert scope.cancelled_caught
    hangs = False
    first = b"a" * 5 + b"b" * PIECE
    await run.take(body(b"c" * PIECE, more=not last))
    second = [] if last else [(len(first), b"c" * PIECE)]
    assert asked == [(0, first), (0, first), *second]
    if last:
        assert run.job.response == CapturedResponse(200, (), len(first) + PIECE)


@pytest.mark.anyio
async def test_what_follows_a_piece_that_somebody_else_has_is_not_kept() -> None:
    asked = []

    async def refuse(offset: int, piece: bytes) -> bool:
        asked.append(offset)
        return False

    run = await running(refuse, max_response_size=10 * PIECE)
    await run.take(start())
    with pytest.raises(Release):
        await run.take(body(b"x" * PIECE, more=True))
    for message in (body(b"y" * PIECE, more=True), body()):
        await run.take(message)
    assert asked == [0]
    assert run.job.state is State.RUNNING


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that keeps pieces is one that does not answer at once."""
    monkeypatch.setattr(Keeping, "immediate", False)


class Slow:
    """Keeps pieces, each when it may, as it is told then.

    Attributes:
        asked: where those began that it was asked for.
        kept: those that it has kept.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.kept: list[bytes] = []
        self._gates = [anyio.Event() for _ in range(9)]
        self._error: Exception | None = None
        self._wanted = True

    async def __call__(self, offset: int, piece: bytes) -> bool:
        self.asked.append(offset)
        await self._gates[len(self.asked) - 1].wait()
        if self._error is not None:
            raise self._error
        if self._wanted:
            self.kept.append(piece)
        return self._wanted

    def let(self, number: int) -> None:
        """Keep the n-th piece."""
        self._gates[number - 1].set()

    def fail(self, error: Exception) -> None:
        """Fail with all."""
        self._error = error
        self.let(1)

    def refuse(self) -> None:
        """Say of all that nobody wants them."""
        self._wanted = False
        self.let(1)


@pytest.mark.anyio
@pytest.mark.usefixtures("patient")
async def test_a_handler_makes_the_next_piece_while_one_is_kept() -> None:
    slow, taken = Slow(), list[str]()
    run = await running(slow, max_response_size=10 * PIECE)

    async def answer() -> None:
        await run.take(start())
        for name in "abc":
            await run.take(body(name.encode() * PIECE, more=True))
            taken.append(name)
        await run.take(body(b"d"))
        taken.append("d")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            for n, goes_on in enumerate(["a", "ab", "abc"], start=1):
                await anyio.wait_all_tasks_blocked()
                assert "".join(taken) == goes_on  # and not further, so that memory is bounded
                assert slow.asked == [PIECE * number for number in range(n)]
                assert run.job.state is State.RUNNING  # law 1: the end is not recorded before
                slow.let(n)
    assert slow.kept == [name * PIECE for name in (b"a", b"b", b"c")]
    assert run.job.response == CapturedResponse(200, (), 3 * PIECE + 1)


@pytest.mark.anyio
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("error", [StoreFull("full"), BodyLost("lost"), UnreadableRecord("torn")])
async def test_a_handler_hears_of_a_piece_with_what_it_sends_next(
    error: Exception, last: bool
) -> None:
    slow = Slow()
    run = await begun(slow, b"a" * PIECE)
    slow.fail(error)
    await anyio.wait_all_tasks_blocked()
    assert run.job.state is State.RUNNING
    problems: dict[type, Problem] = {StoreFull: NOT_KEPT, BodyLost: RESPONSE_LOST}
    problem = problems.get(type(error))
    with pytest.raises(type(error) if problem is None else Release):
        await run.take(body(b"b", more=not last))
    assert (run.job.error, run.job.response) == (problem, None)
    assert slow.asked == [0]


@pytest.mark.anyio
@pytest.mark.usefixtures("patient")
async def test_a_handler_is_stopped_whose_piece_nobody_wants() -> None:
    """At once, and not with what it sends next."""
    slow = Slow()
    run = await begun(slow, b"a" * PIECE)
    slow.refuse()
    await anyio.wait_all_tasks_blocked()
    assert run.stopping is not None
    assert run.stopping.reason is Reason.LOST


@pytest.mark.anyio
@pytest.mark.usefixtures("patient")
async def test_a_cancelled_handler_leaves_a_piece_on_its_way() -> None:
    """It may send more as it cleans up, and nothing is missing in between."""
    slow = Slow()
    run = await begun(slow, b"a" * PIECE)
    with anyio.move_on_after(1) as scope:
        await run.take(body(b"b" * PIECE, more=True))
    assert scope.cancelled_caught
    slow.let(1)
    await run.take(body(b"c"))
    assert slow.kept == [b"a" * PIECE]  # and the rest came with the outcome
    assert run.job.response == CapturedResponse(200, (), 2 * PIECE + 1)


@pytest.mark.anyio
@pytest.mark.usefixtures("patient")
async def test_what_is_on_its_way_is_given_up_with_a_handler_that_fails() -> None:
    """The store may be away for long: it is not asked on for what is nobody's."""
    slow = Slow()
    run = await begun(slow, b"a" * PIECE)
    with anyio.fail_after(5):
        await run.end(ZeroDivisionError())
    assert (run.job.state, run.job.error) == (State.FAILED, crashed())
    slow.let(1)
    await anyio.wait_all_tasks_blocked()
    assert (slow.asked, slow.kept) == ([0], [])
