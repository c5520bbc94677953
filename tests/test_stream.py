"""The live tail: a response, followed while it is produced."""

from __future__ import annotations

import hashlib
import itertools
import random
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Message

from raincheck import Jobs, LongRunningMiddleware, MemoryStore
from raincheck.errors import BrokenOff, LeaseLost, StoreError, StoreFull
from raincheck.runtime.recorder import PIECE
from raincheck.testing import lifespan
from tests.conftest import virtual_jobs
from tests.doubles.stores import SharedMemory, TrickyStore, failing, taking
from tests.support import Gate, RawRequest, app_of, client_of, gated, said, settled, slow_route

pytestmark = pytest.mark.anyio

EVENTS = "text/event-stream"


class Source:
    """What a handler sends, as the test says.

    Attributes:
        runs: how often it has begun.
        sending: whether it runs.
    """

    def __init__(self, media: str = EVENTS, status: int = 200, **headers: str) -> None:
        self._media = media
        self._status = status
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.runs = 0
        self.sending = False
        self._words: deque[bytes | Exception] = deque()
        self._came = anyio.Event()

    async def answer(self, request: Request) -> Response:
        self.runs += 1
        return StreamingResponse(
            self._said(), media_type=self._media, status_code=self._status, headers=self._headers
        )

    async def _said(self) -> AsyncIterator[bytes]:
        self.sending = True
        try:
            while (word := await self._next()) != b"":
                if isinstance(word, Exception):
                    raise word
                yield word
        finally:
            self.sending = False

    async def _next(self) -> bytes | Exception:
        while not self._words:
            self._came = anyio.Event()
            await self._came.wait()
        return self._words.popleft()

    def put(self, word: bytes | Exception) -> None:
        """Have the handler send this, or raise it."""
        self._words.append(word)
        self._came.set()

    async def say(self, word: bytes | Exception) -> None:
        """The same, and let everything run that can, which may take a tenth of a second."""
        self.put(word)
        await settled()

    @property
    def unsent(self) -> int:
        """How much of it the handler has not taken yet."""
        return len(self._words)

    async def end(self) -> None:
        await self.say(b"")


class Reader(RawRequest):
    """A client that follows a response, as fast as it may.

    Attributes:
        error: what the server was told, if the response was broken off.
    """

    def __init__(self, url: str, method: str = "GET", **headers: str) -> None:
        super().__init__(url, method, **headers)
        self.feed()
        self.error: Exception | None = None
        self.ended = anyio.Event()
        self.may_read = anyio.Event()
        self.may_read.set()
        self._came = anyio.Event()

    async def follow(self, app: LongRunningMiddleware) -> None:
        try:
            await self.run(app)
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    async def _send(self, message: Message) -> None:
        await self.may_read.wait()
        await super()._send(message)
        self._came.set()

    async def has(self, size: int) -> None:
        """Wait until so much of the body is here."""
        while len(self.body) < size:
            self._came = anyio.Event()
            await self._came.wait()

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def whole(self) -> bool:
        """Whether its end has come, and nothing behind it."""
        last = [not message.get("more_body", False) for message in self.sent[1:]]
        return bool(last) and last[-1] and not any(last[:-1])


@asynccontextmanager
async def following(
    answer: Callable[[Request], Any], jobs: Jobs | None = None, **settings: Any
) -> AsyncIterator[tuple[LongRunningMiddleware, str, Callable[..., Reader]]]:
    """A job, the URL at which it is followed, and what makes a reader follow it."""
    app = app_of(slow_route(answer, **settings), jobs=jobs)
    async with anyio.create_task_group() as group:
        async with lifespan(app):
            accepted = await client_of(app).post("/slow")
            url = accepted.json()["links"]["stream"]

            def read(method: str = "GET", **headers: str) -> Reader:
                reader = Reader(url, method, **headers)
                group.start_soon(reader.follow, app)
                return reader

            await settled()
            yield app, url, read
        group.cancel_scope.cancel()


# --- as it comes ---------------------------------------------------------------------------------


async def test_status_and_headers_come_before_any_of_the_body() -> None:
    source = Source(x_own="yes")
    async with following(source.answer) as (_, _, read):
        reader = read()
        await anyio.sleep(0.05)
        assert reader.status == 200
        assert reader.headers["content-type"].startswith(EVENTS)
        assert reader.headers["x-own"] == "yes"
        assert reader.headers["x-accel-buffering"] == "no"
        assert reader.headers["content-encoding"] == "identity"
        assert reader.headers["accept-ranges"] == "bytes"
        assert reader.headers["cache-control"] == "no-store"
        assert "job-status" not in reader.headers
        assert "content-length" not in reader.headers
        assert len(reader.sent) == 1
        await source.end()


@pytest.mark.parametrize("settings", [{}, {"live": True}])
async def test_a_line_comes_in_time(settings: Any) -> None:
    source = Source("text/plain" if settings else EVENTS)
    async with following(source.answer, **settings) as (_, _, read):
        readers = [read() for _ in range(3)]
        for number in range(20):
            await anyio.sleep(0.037 * number)
            body = readers[0].body
            source.put(b"%d\n" % number)
            await anyio.sleep(0.11)
            assert all(reader.body == body + b"%d\n" % number for reader in readers)
        await source.end()
        for reader in readers:
            assert reader.whole
            assert reader.error is None


async def test_other_responses_are_followed_in_the_steps_in_which_they_are_kept() -> None:
    source = Source("text/plain")
    async with following(source.answer) as (_, _, read):
        reader = read()
        await source.say(b"a")
        await anyio.sleep(5)
        assert reader.sent == []
        await source.say(bytes(PIECE))
        assert (reader.status, len(reader.body)) == (200, PIECE + 1)
        await source.say(b"b")
        await anyio.sleep(5)
        assert len(reader.body) == PIECE + 1
        await source.end()
        assert reader.body == b"a" + bytes(PIECE) + b"b"
        assert reader.whole


async def test_the_store_is_not_asked_for_every_token() -> None:
    asked: list[float] = []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "append_body":
            asked.append(anyio.current_time())

    async def tokens() -> AsyncIterator[bytes]:
        for number in range(1000):
            await anyio.sleep(0.01)
            yield b"%d " % number

    async def answer(request: Request) -> Response:
        return StreamingResponse(tokens(), media_type=EVENTS)

    jobs = virtual_jobs(store=TrickyStore(note))
    async with following(answer, jobs) as (_, _, read):
        reader = read()
        await reader.ended.wait()
        assert reader.body == b"".join(b"%d " % number for number in range(1000))
    assert 90 < len(asked) <= (asked[-1] - asked[0]) / 0.099 + 1  # of a thousand
    assert all(later - earlier > 0.099 for earlier, later in itertools.pairwise(asked))


async def test_a_common_response_takes_no_further_call() -> None:
    asked = []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        asked.append(call)

    async def answer(request: Request) -> Response:
        return Response(b"x", media_type="text/plain")

    async with following(answer, virtual_jobs(store=TrickyStore(note))):
        assert asked.count("append_body") == 0
        assert asked.count("replace") == 1


# --- how it is kept ------------------------------------------------------------------------------


async def test_a_store_that_takes_its_time_does_not_hold_the_handler_up() -> None:
    source = Source()
    jobs = virtual_jobs(store=TrickyStore(taking(append_body=5.0), immediate=False))
    async with following(source.answer, jobs) as (_, _, read):
        start = anyio.current_time()
        for _ in range(100):
            source.put(b"token ")
        await settled()
        assert anyio.current_time() < start + 1
        assert source.unsent == 0
        await source.say(bytes(PIECE))  # so much is not kept in memory
        await source.say(b"x")
        await source.say(b"y")
        assert source.unsent > 0
        await anyio.sleep(20)
        assert source.unsent == 0
        await source.end()
        reader = read()
        await reader.ended.wait()
        assert reader.body == b"token " * 100 + bytes(PIECE) + b"xy"


async def test_the_end_comes_after_what_is_being_kept() -> None:
    source = Source()
    jobs = virtual_jobs(store=TrickyStore(taking(append_body=1.0), immediate=False))
    async with following(source.answer, jobs) as (_, _, read):
        await anyio.sleep(3)
        await source.say(b"one ")
        await anyio.sleep(0.5)
        await source.say(b"two ")  # while the first is on its way
        await source.end()
        await anyio.sleep(3)
        reader = read()
        await reader.ended.wait()
        assert reader.body == b"one two "
        assert reader.headers["job-status"] == "succeeded"


async def test_what_goes_with_the_outcome_goes_once() -> None:
    """Also where the store takes longer for the outcome than until more would be kept."""
    source = Source()
    jobs = virtual_jobs(store=TrickyStore(taking(replace=1.0), immediate=False))
    async with following(source.answer, jobs) as (_, _, read):
        source.put(b"one ")
        await anyio.sleep(0.15)
        source.put(b"two ")
        await anyio.sleep(0.02)
        source.put(b"three ")
        source.put(b"")
        await anyio.sleep(5)
        reader = read()
        await reader.ended.wait()
        assert (reader.body, reader.whole) == (b"one two three ", True)


@pytest.mark.parametrize("error", [StoreFull("no room"), LeaseLost("theirs")])
async def test_what_cannot_be_kept_any_more_ends_the_run(error: Exception) -> None:
    """Full: the handler hears of it at the end. Somebody else's: at once."""
    source = Source()
    store = TrickyStore(shared=True)
    jobs = virtual_jobs(store=store)
    async with following(source.answer, jobs) as (app, url, _):
        await source.say(b"one ")
        await anyio.sleep(0.2)
        store.before = failing("append_body", error=error)
        await source.say(b"two ")
        await anyio.sleep(0.2)
        if isinstance(error, StoreFull):
            store.before = failing("append_body", error=error)
            await source.end()
            await anyio.sleep(10)
            document = (await client_of(app).get(url.removesuffix("stream") + "status")).json()
            assert document["error"]["code"] == "response-too-large"
        else:
            assert not source.sending


@pytest.mark.parametrize("how", ["crash", "cancel"])
async def test_the_store_is_not_asked_for_a_run_that_has_ended(how: str) -> None:
    calls = []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        if call in ("append_body", "replace"):
            calls.append(call)

    source = Source()
    async with following(source.answer, virtual_jobs(store=TrickyStore(note))) as (app, url, _):
        source.put(b"one ")
        await anyio.sleep(0.02)
        source.put(b"two ")
        await anyio.sleep(0.02)  # what comes is kept a tenth of a second after what came before
        calls.clear()
        if how == "crash":
            source.put(RuntimeError("it broke"))
        else:
            await client_of(app).post(url.removesuffix("stream") + "cancel")
        await anyio.sleep(1)
        assert not source.sending
        assert calls == ["replace"] * (1 if how == "crash" else 2)


@pytest.mark.parametrize("how", ["crash", "cancel"])
async def test_a_run_ends_though_what_it_sent_cannot_be_kept(how: str) -> None:
    """Its body's place may be away while its record's is there: nobody waits for that."""
    source, store = Source(), TrickyStore(immediate=False)
    async with following(source.answer, virtual_jobs(store=store)) as (app, url, _):
        store.before = failing("append_body")
        await source.say(b"one ")
        await anyio.sleep(1)
        if how == "crash":
            source.put(RuntimeError("it broke"))
        else:
            await client_of(app).post(url.removesuffix("stream") + "cancel")
        await anyio.sleep(10)
        document = (await client_of(app).get(url.removesuffix("stream") + "status")).json()
        assert document["status"] == {"crash": "failed", "cancel": "canceled"}[how]
        assert app.jobs.statistics().running == 0


@pytest.mark.parametrize("immediate", [True, False])
async def test_room_that_comes_back_in_time_loses_nothing(immediate: bool) -> None:
    source = Source()
    store = TrickyStore(immediate=immediate)
    async with following(source.answer, virtual_jobs(store=store)) as (_, _, read):
        await source.say(b"one ")
        await anyio.sleep(0.2)
        store.before = failing("append_body", error=StoreFull("no room"))
        for word in (b"two ", b"three ", b"four "):
            await source.say(word)
            await anyio.sleep(0.2)
        store.before = failing()
        await source.say(b"five ")
        await anyio.sleep(0.2)
        reader = read()
        await settled()
        assert reader.body == b"one two three four five "
        await source.end()


# --- before its beginning, and after its end -----------------------------------------------------


@pytest.mark.parametrize(("headers", "seconds"), [({}, 25), ({"prefer": "wait=2"}, 2)])
async def test_what_has_not_begun_is_waited_for_a_while(headers: Any, seconds: float) -> None:
    gate = Gate()

    async def answer(request: Request) -> Response:
        await gate.wait()
        return Response()

    async with following(answer) as (_, url, read):
        start = anyio.current_time()
        reader = read(**headers)
        await reader.ended.wait()
        assert anyio.current_time() - start == pytest.approx(seconds, abs=0.2)
        assert reader.status == 202
        assert reader.headers["location"] == url.removesuffix("/stream")
        gate.open()


async def test_one_that_waits_its_turn_is_followed_from_its_start() -> None:
    first, second = Source(), Source()
    sources = [first, second]

    async def answer(request: Request) -> Any:
        return await sources[int(request.headers["x-number"])].answer(request)

    app = app_of(slow_route(answer, max_running=1))
    async with anyio.create_task_group() as group, lifespan(app):
        client = client_of(app)
        await client.post("/slow", headers={"x-number": "0"})
        waits = (await client.post("/slow", headers={"x-number": "1"})).json()
        assert waits["status"] == "queued"
        reader = Reader(waits["links"]["stream"])
        group.start_soon(reader.follow, app)
        await anyio.sleep(10)
        await first.end()
        await second.say(b"begun")
        await anyio.sleep(0.2)
        assert reader.body == b"begun"
        await second.end()
        assert reader.whole


async def test_one_that_has_ended_is_there_whole_or_in_part() -> None:
    source = Source(etag='"mine"', accept_ranges="none")
    async with following(source.answer) as (_, _, read):
        early = read()
        await source.say(b"0123456789")
        await source.end()
        tag = early.headers["etag"]
        late = read()
        await late.ended.wait()
        assert late.body == early.body == b"0123456789"
        assert late.headers["etag"] == tag != '"mine"'
        assert late.headers["accept-ranges"] == "bytes"
        assert late.headers["content-length"] == "10"
        assert late.headers["job-status"] == "succeeded"
        part = read(range="bytes=4-", if_range=tag)
        several = read(range="bytes=0-0,-1")
        beyond = read(range="bytes=10-")
        known = read(if_none_match=tag)
        await settled()
        assert (part.status, part.body) == (206, b"456789")
        assert part.headers["content-range"] == "bytes 4-9/10"
        assert (several.status, beyond.status, known.status) == (206, 416, 304)
        assert beyond.headers["content-range"] == "bytes */10"


async def test_one_that_has_failed_is_as_at_its_status_url() -> None:
    async def answer(request: Request) -> Response:
        return Response(b"too large")

    app = app_of(slow_route(answer, max_response_size=1))
    async with lifespan(app):
        links = (await client_of(app).post("/slow")).json()["links"]
        await settled()
        answers = [await client_of(app).get(links[name]) for name in ("result", "stream")]
        assert answers[0].status_code == answers[1].status_code == 500
        assert answers[0].content == answers[1].content
        assert "stream" not in (await client_of(app).get(links["self"])).json()["links"]
        unknown = await client_of(app).get("/jobs/" + "x" * 30 + "/stream")
        assert unknown.status_code == 404
        await client_of(app).delete(links["result"])
        assert (await client_of(app).get(links["stream"])).status_code == 410


@pytest.mark.parametrize(("status", "served"), [(404, 404), (201, 201), (202, 200), (206, 206)])
async def test_other_statuses_are_followed_without_ranges(status: int, served: int) -> None:
    source = Source(status=status)
    async with following(source.answer) as (_, _, read):
        reader = read(range="bytes=2-")
        await source.say(b"0123")
        await source.end()
        assert (reader.status, reader.body, reader.whole) == (served, b"0123", True)
        assert "etag" not in reader.headers
        assert reader.headers.get("job-response-status") == ("202" if status == 202 else None)


async def test_head_is_the_head() -> None:
    source = Source()
    async with following(source.answer) as (_, _, read):
        reader = read("HEAD")
        await reader.ended.wait()
        assert (reader.status, reader.body, reader.whole) == (200, b"", True)
        assert "etag" in reader.headers
        await source.end()


async def test_a_foreign_job_is_not_followed() -> None:
    source = Source()
    app = app_of(slow_route(source.answer), owner=lambda c: c.headers.get("x-user"))
    async with lifespan(app):
        client = client_of(app)
        accepted = await client.post("/slow", headers={"x-user": "ann"})
        url = accepted.json()["links"]["stream"]
        await source.say(b"secret")
        for headers in ({"x-user": "bob"}, {}):
            foreign = await client.get(url, headers=headers)
            unknown = await client.get("/jobs/" + "x" * 30 + "/stream", headers=headers)
            assert foreign.status_code == 404
            assert foreign.content == unknown.content
        await source.end()
        own = await client.get(url, headers={"x-user": "ann"})
        assert own.content == b"secret"


async def test_other_methods_are_told_which_there_are() -> None:
    async with following(Source().answer) as (app, url, _):
        answer = await client_of(app).post(url)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


# --- resuming ------------------------------------------------------------------------------------


async def test_a_lost_connection_is_resumed() -> None:
    source = Source()
    async with following(source.answer) as (_, _, read):
        first = read()
        await source.say(b"01234")
        await anyio.sleep(0.2)
        first.leave()
        await first.ended.wait()
        tag = first.headers["etag"]
        for start, there in ((2, b"234"), (5, b"")):
            reader = read(range=f"bytes={start}-", if_range=tag)
            await settled()
            assert (reader.status, reader.body) == (206, there)
            assert reader.headers["content-range"] == f"bytes {start}-*/*"
            assert reader.headers["etag"] == tag
            assert not reader.whole
            rest = reader
        beyond = read(range="bytes=6-", if_range=tag)
        await settled()
        assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */5")
        await source.say(b"5678")
        await source.end()
        assert (rest.body, rest.whole) == (b"5678", True)


@pytest.mark.parametrize(
    "range", ["bytes=0-", "bytes=1-2", "bytes=-2", "bytes=1-,3-", "lines=1-", "bytes=x-", "bytes=-"]
)
async def test_other_ranges_are_as_if_absent_until_the_end(range: str) -> None:
    source = Source()
    async with following(source.answer) as (_, _, read):
        await source.say(b"01234")
        reader = read(range=range)
        await reader.has(5)
        await source.end()
        assert (reader.status, reader.body, reader.whole) == (200, b"01234", True)


async def test_a_length_that_is_said_is_exact() -> None:
    source = Source(content_length="10")
    async with following(source.answer) as (_, _, read):
        reader = read()
        await source.say(b"01234")
        await anyio.sleep(0.2)
        rest = read(range="bytes=3-")
        await settled()
        assert reader.headers["content-length"] == "10"
        assert rest.headers["content-range"] == "bytes 3-9/10"
        assert rest.headers["content-length"] == "7"
        await source.say(b"56789")
        await anyio.sleep(0.2)
        assert (reader.body, rest.body) == (b"01234", b"34")  # it may fail yet
        await source.end()
        assert (reader.body, rest.body) == (b"0123456789", b"3456789")
        assert reader.whole
        assert rest.whole


@pytest.mark.parametrize("more", [b"567", b"56789x"])
async def test_a_length_that_is_not_kept_to_never_looks_whole(more: bytes) -> None:
    source = Source(content_length="10")
    async with following(source.answer) as (_, _, read):
        reader = read()
        await source.say(b"01234")
        await source.say(more)
        await source.end()
        await anyio.sleep(0.2)
        assert isinstance(reader.error, BrokenOff)
        assert len(reader.body) < 10


@pytest.mark.real
async def test_a_file_is_followed_with_its_length(tmp_path: Any) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(random.Random(1).randbytes(300_000))
    gate = Gate()

    class Slow(FileResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def slowly(message: Message) -> None:
                await send(message)
                if message.get("more_body"):
                    await gate.wait()

            await super().__call__(scope, receive, slowly)

    async def answer(request: Request) -> Response:
        return Slow(path)

    async with following(answer, live=True) as (_, _, read):
        reader = read()
        await reader.has(1)
        assert reader.headers["content-length"] == "300000"
        gate.open()
        await reader.ended.wait()
        assert reader.body == path.read_bytes()
        assert reader.whole


def tokens(count: int = 2000) -> list[bytes]:
    dice = random.Random(16)
    return [b"data: %d %b\n\n" % (n, b"x" * dice.randrange(40)) for n in range(count)]


async def test_an_event_stream_that_is_cut_fifty_times_comes_whole() -> None:
    async def said() -> AsyncIterator[bytes]:
        for token in tokens():
            await anyio.sleep(0.01)
            yield token

    async def answer(request: Request) -> Response:
        return StreamingResponse(said(), media_type=EVENTS)

    whole = b"".join(tokens())
    cuts = [*sorted(random.Random(50).sample(range(1, len(whole)), 50)), len(whole)]
    got, tag = b"", ""
    async with following(answer) as (_, _, read):
        for cut in cuts:
            resuming = {"range": f"bytes={len(got)}-", "if_range": tag} if got else {}
            reader = read(**resuming)
            await reader.has(cut - len(got))
            assert reader.status == (206 if got else 200)
            tag = reader.headers["etag"]
            reader.leave()
            await reader.ended.wait()
            got += reader.body[: cut - len(got)]
        assert hashlib.sha256(got).digest() == hashlib.sha256(whole).digest()


# --- a run that is repeated ----------------------------------------------------------------------


@asynccontextmanager
async def repeated() -> AsyncIterator[tuple[Source, Callable[..., Reader], Any]]:
    """A job that is followed, and what has it run again as if its process had died."""
    store = SharedMemory()
    source = Source()
    options = {"on_interrupt": "rerun", "max_runs": 2}
    async with following(source.answer, virtual_jobs(store=store), **options) as (_, url, read):
        id = url.split("/")[2]

        async def again() -> None:
            job = await store.get(id)
            assert job is not None
            assert job.replayable
            assert await store.replace(job.requeue(), lease=0.0)

        yield source, read, again


async def test_who_follows_a_run_that_is_repeated_is_broken_off() -> None:
    async with repeated() as (source, read, again):
        reader = read()
        await source.say(b"first ")
        await anyio.sleep(0.2)
        await again()
        await reader.ended.wait()
        assert isinstance(reader.error, BrokenOff)
        assert reader.body == b"first "
        assert not reader.whole
        await anyio.sleep(60)
        assert source.runs == 2
        await source.say(b"second run")
        await anyio.sleep(0.2)
        tag = reader.headers["etag"]
        # Neither with the tag of the first run nor without one is there a rest of it.
        for headers in ({"range": "bytes=6-", "if_range": tag}, {"range": "bytes=6-"}):
            anew = read(**headers)
            await settled()
            assert (anew.status, anew.body) == (200, b"second run")
            assert anew.headers["etag"] != tag
        rest = read(range="bytes=6-", if_range=anew.headers["etag"])
        await settled()
        assert (rest.status, rest.body) == (206, b" run")
        await source.end()
        await settled()
        late = read(range="bytes=6-")
        await settled()
        assert (late.status, late.body) == (200, b"second run")


async def test_no_two_bodies_are_spliced_whenever_the_second_begins() -> None:
    """Also when it has begun between a look at the job and a look at its body."""
    store = TrickyStore(shared=True)
    source = Source()
    options = {"on_interrupt": "rerun", "max_runs": 2}
    async with following(source.answer, virtual_jobs(store=store), **options) as (_, url, read):
        id = url.split("/")[2]
        reader = read()
        await source.say(b"first ")
        await anyio.sleep(0.2)
        raced = False

        async def begin_anew(call: str, /, *arguments: Any, **more: Any) -> None:
            nonlocal raced
            if call == "read_body" and not raced:
                raced = True
                job = await store.get(id)
                assert job is not None
                again = job.requeue().start(job.created_at)
                assert await store.replace(job.requeue())
                assert await store.replace(again)
                assert await store.append_body(id, again.fence, 0, b"second, and longer")

        store.before = begin_anew
        await source.say(b"goes on ")
        await anyio.sleep(0.2)
        assert raced
        assert reader.body == b"first "
        assert isinstance(reader.error, BrokenOff)


# --- what breaks it off --------------------------------------------------------------------------


async def test_a_length_of_what_has_no_body_is_none_that_is_waited_for() -> None:
    source = Source(status=304, content_length="1000")
    async with following(source.answer) as (_, _, read):
        reader = read()
        await settled()
        await source.end()
        await reader.ended.wait()
        assert (reader.status, reader.whole, reader.error) == (304, True, None)
        assert "content-length" not in reader.headers


@pytest.mark.parametrize("status", [204, 304])
async def test_a_body_that_no_server_could_send_is_followed_by_nobody(status: int) -> None:
    """It would be read as the next response of the connection (RFC 9112 §6.3)."""
    source = Source(status=status)
    async with following(source.answer) as (_, _, read):
        early = read()
        await settled()
        await source.say(b"HTTP/1.1 200 OK")
        await anyio.sleep(0.2)
        assert (early.status, early.body) == (status, b"")
        assert isinstance(early.error, BrokenOff)
        late = read()
        await late.ended.wait()
        assert late.status == 500
        assert f"a {status} response has no body" in late.body.decode()


@pytest.mark.parametrize("how", ["raises", "cancel", "delete", "too large", "timeout"])
async def test_one_that_fails_in_the_middle_is_broken_off(how: str) -> None:
    source = Source()
    settings: dict[str, Any] = {"max_response_size": 100, "timeout": 60.0}
    async with following(source.answer, **settings) as (app, url, read):
        reader = read()
        await source.say(b"0123456789")
        await anyio.sleep(0.2)
        job = url.removesuffix("/stream")
        if how == "raises":
            await source.say(ValueError("in the middle"))
        elif how == "cancel":
            await client_of(app).post(job + "/cancel")
        elif how == "delete":
            await client_of(app).delete(job)
        elif how == "too large":
            await source.say(bytes(100))
        else:
            await anyio.sleep(61)
        await reader.ended.wait()
        assert isinstance(reader.error, BrokenOff)
        assert reader.error.__traceback__ is None  # one line in the log of uvicorn
        assert reader.body == b"0123456789"
        assert not reader.whole


async def test_a_store_that_goes_away_breaks_it_off_and_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    store = TrickyStore(shared=True)
    async with following(source.answer, virtual_jobs(store=store)) as (_, _, read):
        reader = read()
        await source.say(b"0123456789")
        await anyio.sleep(0.2)
        store.before = failing("read_body")
        await source.say(b"x")
        await anyio.sleep(0.2)
        assert isinstance(reader.error, BrokenOff)
        assert reader.body == b"0123456789"
        assert [record.levelname for record in said(caplog)][:1] == ["ERROR"]
        store.before = failing()
        await source.end()


async def test_a_body_that_is_dropped_while_it_is_read_is_no_fault_of_the_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    store = TrickyStore(shared=True)
    async with following(source.answer, virtual_jobs(store=store)) as (_, url, read):
        reader = read()
        await source.say(b"0123456789")
        await anyio.sleep(0.2)

        async def drop(call: str, /, *arguments: Any, **more: Any) -> None:
            if call == "read_body":
                store.before = failing()
                job = await store.get(url.split("/")[2])
                assert job is not None
                assert await store.replace(job.tombstone(job.created_at, 60.0))
                raise StoreError("the body was dropped while it was read")

        store.before = drop
        await source.say(b"x")
        await anyio.sleep(0.2)
        assert isinstance(reader.error, BrokenOff)
        assert reader.body == b"0123456789"
        assert not [record for record in said(caplog) if record.levelname == "ERROR"]


class Uvicorn:
    """What raincheck knows of it."""

    should_exit = False

    def handle_exit(self, number: int, frame: object) -> None:
        self.should_exit = True


async def test_a_server_that_stops_breaks_it_off_and_the_job_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Uvicorn()
    monkeypatch.setattr(signal, "getsignal", lambda number: server.handle_exit)
    source = Source()
    async with following(source.answer) as (_, _, read):
        reader, slow = read(), read()
        await source.say(b"0123")
        await anyio.sleep(0.2)
        slow.may_read = anyio.Event()
        await source.say(b"4")
        server.handle_exit(signal.SIGTERM, None)
        await anyio.sleep(1.1)
        for each, had in ((reader, b"01234"), (slow, b"0123")):
            assert isinstance(each.error, BrokenOff)
            assert each.body == had
            assert not each.whole
        await source.say(b"56789")
        await source.end()
        late = read()
        await settled()
        assert (late.body, late.whole) == (b"0123456789", True)


# --- readers -------------------------------------------------------------------------------------


async def test_a_client_that_leaves_frees_its_reader_at_once() -> None:
    source = Source()
    store = MemoryStore()
    async with following(source.answer, virtual_jobs(store=store)) as (_, _, read):
        await source.say(b"0123")
        readers = [read() for _ in range(10)]
        stalled = read()
        stalled.may_read = anyio.Event()
        await anyio.sleep(0.2)
        assert len(store._waiting)
        for reader in [*readers, stalled]:
            reader.leave()
        await settled()
        assert all(reader.ended.is_set() and reader.error is None for reader in readers)
        assert stalled.ended.is_set()
        assert not len(store._waiting)
        await source.end()


async def test_one_that_has_not_begun_frees_it_too() -> None:
    store = MemoryStore()
    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=store))
    async with anyio.create_task_group() as group, lifespan(app):
        url = (await client_of(app).post("/slow")).json()["links"]["stream"]
        reader = Reader(url)
        group.start_soon(reader.follow, app)
        await settled()
        start = anyio.current_time()
        reader.leave()
        await reader.ended.wait()
        assert anyio.current_time() - start < 0.1
        assert not len(store._waiting)
        gate.open()


async def test_who_stops_reading_stops_nobody_else() -> None:
    source = Source()
    async with following(source.answer, max_response_size=100 * PIECE) as (_, _, read):
        slow, quick = read(), read()
        slow.may_read = anyio.Event()
        for number in range(40):
            await source.say(bytes([number]) * PIECE)
        await anyio.sleep(0.2)
        assert len(quick.body) == 40 * PIECE
        assert slow.sent == []
        await source.end()
        assert quick.whole
        slow.may_read.set()
        await slow.ended.wait()
        assert slow.body == quick.body
        assert slow.whole


@pytest.mark.slow
async def test_two_hundred_follow_one_response() -> None:
    piece = random.Random(1).randbytes(PIECE)
    count = 40  # 10 MiB

    async def said() -> AsyncIterator[bytes]:
        for _ in range(count):
            await anyio.sleep(0.05)
            yield piece

    async def answer(request: Request) -> Response:
        return StreamingResponse(said(), media_type="video/mp4")

    class Digest(Reader):
        """One that keeps nothing."""

        async def _send(self, message: Message) -> None:
            self.digest.update(message.get("body", b""))
            self.complete = "body" in message and not message.get("more_body", False)

        digest = hashlib.sha256()
        complete = False

    app = app_of(slow_route(answer, live=True))
    async with anyio.create_task_group() as group, lifespan(app):
        url = (await client_of(app).post("/slow")).json()["links"]["stream"]
        readers = [Digest(url) for _ in range(200)]
        start = anyio.current_time()
        for reader in readers:
            reader.digest = hashlib.sha256()
            group.start_soon(reader.follow, app)
        for reader in readers:
            await reader.ended.wait()
        assert {reader.digest.digest() for reader in readers} == {
            hashlib.sha256(piece * count).digest()
        }
        assert all(reader.complete for reader in readers)
        assert anyio.current_time() - start < 60
