"""Events: how a job stands, told as it changes."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import Job, Jobs, Limits, LongRunningMiddleware, report
from raincheck.errors import UnreadableRecord
from raincheck.runtime.feeds import _shown
from raincheck.session import Session
from raincheck.status.events import COMMENT, framed
from raincheck.testing import follow, lifespan
from tests.conftest import Clock, virtual_jobs
from tests.doubles.servers import Uvicorn
from tests.doubles.stores import Line, SharedMemory, TrickyStore, failing, no_trick
from tests.event_stream import Event, Reader
from tests.support import (
    Gate,
    RawRequest,
    app_of,
    client_of,
    gated,
    running,
    said,
    settled,
    slow_route,
)

pytestmark = pytest.mark.anyio


# --- frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "wire", "read"),
    [
        pytest.param(b"a", b"data: a\n\n", "a", id="a line"),
        pytest.param(b"", b"data: \n\n", "", id="an empty one"),
        pytest.param(b"a\nb", b"data: a\ndata: b\n\n", "a\nb", id="LF"),
        pytest.param(b"a\rb", b"data: a\ndata: b\n\n", "a\nb", id="CR"),
        pytest.param(b"a\r\nb", b"data: a\ndata: b\n\n", "a\nb", id="CRLF"),
        pytest.param(b"a\n\rb", b"data: a\ndata: \ndata: b\n\n", "a\n\nb", id="LF and CR: two"),
        pytest.param(b"a\n\nb", b"data: a\ndata: \ndata: b\n\n", "a\n\nb", id="an empty line"),
        pytest.param(b"a\n", b"data: a\ndata: \n\n", "a\n", id="an end of line at the end"),
        pytest.param(b"\r\na", b"data: \ndata: a\n\n", "\na", id="one at the beginning"),
        pytest.param(b"a\n\nevent: b", b"data: a\ndata: \ndata: event: b\n\n", None, id="a frame"),
        pytest.param(b" a", b"data:  a\n\n", " a", id="a space that is its own"),
        pytest.param(b":a", b"data: :a\n\n", ":a", id="a colon"),
        pytest.param(b"a\0b", b"data: a\0b\n\n", "a\0b", id="NUL"),
        pytest.param(
            "ü\u2028\x85\x0bb".encode(),
            "data: ü\u2028\x85\x0bb\n\n".encode(),
            "ü\u2028\x85\x0bb",
            id="what ends lines elsewhere",
        ),
    ],
)
def test_data_comes_as_it_was_sent(data: bytes, wire: bytes, read: str | None) -> None:
    """§9.2.5 and §9.2.6."""
    assert framed(data) == wire
    (event,) = Reader().events([wire])
    expected = data.decode() if read is None else read
    assert event == Event("message", expected, "")


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        pytest.param({"data": b"a", "id": "5"}, b"id: 5\ndata: a\n\n", id="an id"),
        pytest.param({"data": b"a", "event": "x"}, b"event: x\ndata: a\n\n", id="a type"),
        pytest.param({"retry": 1500}, b"retry: 1500\n\n", id="no event"),
        pytest.param({"id": ""}, b"id: \n\n", id="an id that is forgotten"),
        pytest.param(
            {"data": b"a\nb", "event": "x", "id": "7", "retry": 1},
            b"retry: 1\nid: 7\nevent: x\ndata: a\ndata: b\n\n",
            id="all",
        ),
    ],
)
def test_the_fields_of_a_frame(fields: dict[str, Any], wire: bytes) -> None:
    assert framed(**fields) == wire
    reader = Reader()
    events = reader.events([wire])
    assert len(events) == ("data" in fields)
    assert (reader.id, reader.retry) == (fields.get("id", ""), fields.get("retry"))
    assert [event.type for event in events] in ([], [fields.get("event", "message")])


@pytest.mark.parametrize("field", ["id", "event"])
@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\r\nb", "a\0b", "\n", "\0"])
def test_what_would_be_read_as_something_else_is_not_framed(field: str, value: str) -> None:
    fields: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"{field}="):
        framed(b"a", **fields)


def test_a_comment_is_nothing() -> None:
    reader = Reader()
    assert reader.events([COMMENT, framed(b"a", id="1"), COMMENT]) == [Event("message", "a", "1")]
    assert reader.comments == 2


# --- streams -----------------------------------------------------------------------------------


class Listener(RawRequest):
    """A client of a stream, that notes when what came.

    Attributes:
        times: when each message came.
        reader: what it has read.
        ended: when the app was done with it.
    """

    def __init__(self, url: str, method: str = "GET", **headers: str) -> None:
        super().__init__(url, method, **headers)
        self.feed()
        self.times: list[float] = []
        self.reader = Reader()
        self.ended: float | None = None
        self._events: list[tuple[float, Event]] = []

    async def run(self, app: ASGIApp) -> None:
        try:
            await super().run(app)
        finally:
            self.ended = anyio.current_time()

    async def _send(self, message: Message) -> None:
        now = anyio.current_time()
        self.times.append(now)
        self._events += [(now, event) for event in self.reader.feed(message.get("body", b""))]
        await super()._send(message)

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self._events]

    @property
    def statuses(self) -> list[str]:
        return [event.document["status"] for event in self.events]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(event.id for event in self.events)

    @property
    def whole(self) -> bool:
        """Whether its end is one that a server makes look like one."""
        last = self.sent[-1]
        return last["type"] == "http.response.body" and not last.get("more_body", False)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = self.sent[0]["headers"]
        return found


@asynccontextmanager
async def listening(app: ASGIApp, *listeners: Listener) -> AsyncIterator[None]:
    """Clients that listen, as long as the block lasts, and then leave."""
    async with anyio.create_task_group() as group:
        for listener in listeners:
            group.start_soon(listener.run, app)
        await settled()
        yield
        for listener in listeners:
            if listener.ended is None:
                listener.leave()


def session_of(jobs: Jobs) -> Session:
    assert jobs.session is not None
    return jobs.session


async def freed(jobs: Jobs) -> bool:
    """Whether nothing is left of any stream."""
    await settled()
    session = session_of(jobs)
    watchers: Any = jobs.store
    return (
        not len(session.feeds)
        and not session.waits._open
        and not watchers._waiting
        and not any("Feed" in repr(task) for task in getattr(session.tasks, "_tasks", ()))
    )


def steady(document: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when it was asked for."""
    return {**document, "retry_after": None, "estimated_completion": None}


async def accepted(client: httpx.AsyncClient, path: str = "/slow") -> dict[str, str]:
    response = await client.post(path)
    assert response.status_code == 202
    links: dict[str, str] = response.json()["links"]
    return links


async def test_the_first_event_comes_at_once_and_shows_the_job_as_it_is() -> None:
    app = app_of(gated(gate := Gate()))
    async with running(app) as client:
        links = await accepted(client)
        assert links["events"] == links["result"] + "/events"
        listener = Listener(links["events"])
        start = anyio.current_time()
        async with listening(app, listener):
            monitor = await client.get(links["self"])
            (event,) = listener.events
            assert listener.times[-1] - start < 1
            assert event.type == "status"
            assert steady(event.document) == steady(monitor.json())
            assert "\n" not in event.data
            assert re.fullmatch("[1-9][0-9]*", event.id)
            assert 1000 <= (listener.reader.retry or 0) <= 3000
            assert listener.status == 200
            assert sorted(listener.headers) == [
                (b"cache-control", b"no-store"),
                (b"content-type", b"text/event-stream"),
                (b"referrer-policy", b"no-referrer"),
                (b"x-accel-buffering", b"no"),
            ]
        gate.open()


async def test_each_change_is_told_and_the_stream_ends_with_the_job() -> None:
    gates = [Gate() for _ in range(3)]

    async def answer(request: Request) -> Any:
        for step, gate in enumerate(gates):
            await gate.wait()
            report(step / 3, f"step\n{step}")
        return {}

    app = app_of(slow_route(answer))
    async with running(app) as client:
        links = await accepted(client)
        listener = Listener(links["events"])
        async with listening(app, listener):
            for gate in gates:
                await anyio.sleep(3)
                gate.open()
            await anyio.sleep(3)
            assert listener.ended is not None
        shown = [
            (event.document["progress"], event.document["message"]) for event in listener.events
        ]
        assert shown == [
            (None, None),
            (0.0, "step\n0"),
            (1 / 3, "step\n1"),
            (2 / 3, "step\n2"),
        ]
        assert listener.statuses == ["running"] * 3 + ["succeeded"]
        assert listener.events[-1].data == (await client.get(links["self"])).text
        ids = [int(event.id) for event in listener.events]
        assert ids == sorted(set(ids))
        assert listener.whole
        assert await freed(app.jobs)


@pytest.mark.parametrize("how", ["succeeded", "failed", "canceled"])
async def test_the_end_is_told_once(how: str) -> None:
    async def answer(request: Request) -> Any:
        if how == "canceled":
            await anyio.sleep(3600)
        return PlainTextResponse("", 200 if how == "succeeded" else 500)

    app = app_of(slow_route(answer))
    async with running(app) as client:
        links = await accepted(client)
        if how == "canceled":
            await client.post(links["cancel"])
        await settled()
        late = Listener(links["events"])
        await late.run(app)
        assert late.statuses == [how]
        assert late.whole
        job_status = (b"job-status", how.encode())
        assert job_status in late.headers
        # It has seen the end, and hears that there is nothing to come back for.
        last = Listener(links["events"], last_event_id=late.reader.id)
        await last.run(app)
        assert (last.status, last.body) == (204, b"")
        assert job_status in last.headers
        assert (b"cache-control", b"no-store") in last.headers
        names = [name for name, _ in last.headers]
        assert not {b"content-type", b"content-length", b"transfer-encoding"} & {*names}
        # One that has not, has it again.
        for seen in ("1", "999", ""):
            again = Listener(links["events"], last_event_id=seen)
            await again.run(app)
            assert again.events == late.events


@pytest.mark.parametrize(
    "seen", ["1", "4", "999", "", "-1", "x", "3 ", "3.0", "²", "٣", "9" * 5000, "\0"]
)
async def test_an_id_that_is_not_the_newest_counts_as_none(seen: str) -> None:
    listener = await _at_version_3(seen)
    assert [event.id for event in listener.events] == ["3"]
    assert listener.events[0].document["message"] == "now"


async def test_a_client_that_has_seen_the_newest_waits_for_the_next() -> None:
    listener = await _at_version_3("3")
    assert listener.events == []
    assert listener.sent[1]["body"].startswith(b"retry: ")  # and the fields have gone out


async def _at_version_3(seen: str) -> Listener:
    """A client that comes back to a job whose version is 3."""

    async def answer(request: Request) -> Any:
        for word in ("first", "now"):
            report(0.5, word)
            await anyio.sleep(1)
        await gate.wait()
        report(0.6, "next")
        await anyio.sleep(1)
        return {}

    gate = Gate()
    app = app_of(slow_route(answer))
    async with running(app) as client:
        links = await accepted(client)
        await anyio.sleep(3)
        listener = Listener(links["events"])
        listener.scope["headers"].append((b"last-event-id", seen.encode()))
        async with listening(app, listener):
            await anyio.sleep(1)
            found = [*listener.events]
            gate.open()
            await anyio.sleep(5)
            assert [event.id for event in listener.events[len(found) :]] == ["4", "5"]
        listener._events = [(0.0, event) for event in found]
    return listener


async def test_a_silent_stream_has_comments_and_ends_in_time() -> None:
    app = app_of(gated(gate := Gate()))
    async with running(app) as client:
        listener = Listener((await accepted(client))["events"])
        start = anyio.current_time()
        await listener.run(app)
        times = [time - start for time in listener.times]
        assert times == [pytest.approx(time, abs=1) for time in (0, 0, 10, 20, 25)]
        assert [message.get("body") for message in listener.sent[2:]] == [COMMENT, COMMENT, b""]
        assert listener.whole
        assert len(listener.events) == 1
        assert await freed(app.jobs)
        gate.open()


async def test_a_busy_stream_ends_in_time() -> None:
    async def answer(request: Request) -> Any:
        for step in range(400):
            report(step / 400)
            await anyio.sleep(0.1)

    app = app_of(slow_route(answer))
    async with running(app) as client:
        listener = Listener((await accepted(client))["events"])
        start = anyio.current_time()
        await listener.run(app)
        assert anyio.current_time() - start == pytest.approx(25, abs=1)
        assert listener.whole
        assert await freed(app.jobs)


async def test_what_shows_nothing_new_wakes_nobody() -> None:
    """A position in the queue that moves up, and another client that shares a run."""
    gates = [Gate() for _ in range(3)]
    waiting = iter(gates)

    async def answer(request: Request) -> Any:
        await next(waiting).wait()

    app = app_of(
        slow_route(answer, max_running=1),
        gated(shared := Gate(), "/shared", coalesce=True),
    )
    async with running(app) as client:
        for _ in range(2):
            await accepted(client)
        last = Listener((await accepted(client))["events"])
        joined = Listener((await accepted(client, "/shared"))["events"])
        async with listening(app, last, joined):
            assert last.events[0].document["queue_position"] == 2
            gates[0].open()
            for _ in range(20):
                await accepted(client, "/shared")
                await anyio.sleep(0.2)
            assert (len(last.events), len(joined.events)) == (1, 1)
            shared.open()
            for gate in gates:
                gate.open()
            await anyio.sleep(1)
            assert last.statuses[-1] == "succeeded"
            assert joined.statuses == ["running", "succeeded"]


async def test_a_busy_handler_is_told_of_ten_times_a_second_and_its_last_word_is_not_lost() -> None:
    """However many listen, each is woken once for each event, and the store is asked once."""
    asked, took = 0, 0.0

    async def count(call: str, /, *arguments: Any, **more: Any) -> None:
        nonlocal asked
        asked += call == "changed"

    async def answer(request: Request) -> Any:
        nonlocal took
        await gate.wait()
        began = anyio.current_time()
        for step in range(1, 1001):
            report(step / 1000, f"{step}")
            await anyio.sleep(0.002)
        report(1.0, "the last")
        took = anyio.current_time() - began
        told.set()
        await stay.wait()

    gate, stay, told = Gate(), Gate(), anyio.Event()
    store = TrickyStore(before=count)
    app = app_of(slow_route(answer), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        links = await accepted(client)
        listeners = [Listener(links["events"]) for _ in range(50)]
        async with listening(app, *listeners):
            await anyio.sleep(1)
            gate.open()
            await told.wait()
            await anyio.sleep(2)
            events = listeners[0].events
            assert events[-1].document["message"] == "the last"
            assert 8 * took <= len(events) <= 10 * took + 3
            assert asked <= len(events) + 1
            # What has come to one has come to all, and nobody was woken for nothing.
            assert {listener.ids for listener in listeners} == {listeners[0].ids}
            assert all(
                len(listener.sent) == 1 + len(events) + listener.reader.comments
                for listener in listeners
            )
            stay.open()
            await anyio.sleep(1)
        assert {listener.statuses[-1] for listener in listeners} == {"succeeded"}
        assert await freed(app.jobs)


async def test_changes_of_every_kind_come_ten_times_a_second() -> None:
    """Also those that another process writes faster than a handler's progress is written."""
    store = SharedMemory()
    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        links = await accepted(client)
        listener = Listener(links["events"])
        async with listening(app, listener):
            start = anyio.current_time()
            job = await store.get(links["result"].rpartition("/")[2])
            for runs in range(2, 300):
                assert job is not None
                job = job._replace(version=job.version + 1, runs=runs)
                assert await store.replace(job)
                await anyio.sleep(0.01)
            await anyio.sleep(0.2)
            took = anyio.current_time() - start
            assert listener.events[-1].document["runs"] == 299
            assert 8 * took <= len(listener.events) <= 10 * took + 2
            gate.open()


# --- who goes, and who is slow -----------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.0", "2.3", "2.4"])
async def test_a_client_that_leaves_frees_everything_at_once(version: str) -> None:
    app = app_of(gated(gate := Gate()))
    async with running(app) as client:
        links = await accepted(client)
        goes, stays = Listener(links["events"]), Listener(links["events"])
        goes.scope["asgi"] = {"version": "3.0", "spec_version": version}
        async with listening(app, goes, stays):
            await anyio.sleep(1)
            goes.leave()
            await settled()
            assert goes.ended == pytest.approx(anyio.current_time(), abs=1)
            assert not goes.whole  # nobody is there to be told
            assert len(session_of(app.jobs).waits._open) == 1
            stays.leave()
            await settled()
            assert await freed(app.jobs)
        gate.open()
        assert len(stays.events) == 1


async def test_a_client_that_leaves_is_seen_through_what_stands_outside() -> None:
    """Starlette's `BaseHTTPMiddleware` has a `receive` and a `send` of its own."""
    inner = app_of(gated(gate := Gate()))

    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    app = BaseHTTPMiddleware(BaseHTTPMiddleware(inner, pass_on), pass_on)
    async with running(inner) as client:
        links = await accepted(client)
        goes, stays = Listener(links["events"]), Listener(links["events"])
        async with listening(app, goes, stays):
            await anyio.sleep(11)
            assert goes.statuses == stays.statuses == ["running"]
            assert goes.reader.comments == 1
            goes.leave()
            await settled()
            assert goes.ended == pytest.approx(anyio.current_time(), abs=1)
            assert len(session_of(inner.jobs).waits._open) == 1
            gate.open()
            await anyio.sleep(1)
            assert stays.statuses[-1] == "succeeded"
        assert stays.whole
        assert await freed(inner.jobs)


async def test_what_stands_outside_may_give_the_request_again_and_again() -> None:
    """As middleware does that has read the body and gives it back: its `receive` never waits."""
    inner = app_of(gated(gate := Gate()))
    times = 0

    async def again() -> Message:
        nonlocal times
        times += 1
        if times > 100:
            raise SystemExit("nobody else has a turn any more")
        return {"type": "http.request", "body": b"", "more_body": False}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, again, send)

    async with running(inner) as client:
        listener = Listener((await accepted(client))["events"])
        async with listening(app, listener):
            await anyio.sleep(11)
            assert (listener.statuses, listener.reader.comments) == (["running"], 1)
            gate.open()
            await anyio.sleep(1)
        assert listener.statuses == ["running", "succeeded"]
        assert listener.whole
        assert await freed(inner.jobs)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
async def test_a_server_that_says_so_where_it_is_sent_something_is_understood(
    at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """ASGI 2.4: `send` raises an `OSError`, and `receive` may never say it."""

    async def answer(request: Request) -> Any:
        for step in range(20):
            report(step / 20)
            await anyio.sleep(1)

    class Gone(Listener):
        async def _send(self, message: Message) -> None:
            await super()._send(message)
            if len(self.sent) > at:
                raise OSError("the client has gone")

    app = app_of(slow_route(answer))
    async with running(app) as client:
        listener = Gone((await accepted(client))["events"])
        if at == 0:
            with pytest.raises(OSError, match="gone"):  # as of any answer
                await listener.run(app)
        else:
            await listener.run(app)
        assert len(listener.sent) == at + 1
        assert await freed(app.jobs)
        assert said(caplog) == []


async def test_one_that_reads_slowly_has_the_newest_and_holds_up_nobody() -> None:
    async def answer(request: Request) -> Any:
        for step in range(100):
            report(step / 100, str(step))
            await anyio.sleep(0.1)
        await anyio.sleep(1)

    class Slow(Listener):
        async def _send(self, message: Message) -> None:
            await super()._send(message)
            await anyio.sleep(3)

    app = app_of(slow_route(answer))
    async with running(app) as client:
        links = await accepted(client)
        slow, quick = Slow(links["events"]), Listener(links["events"])
        async with listening(app, slow, quick):
            await anyio.sleep(16)
        assert len(quick.events) > 90
        assert 3 <= len(slow.events) <= 6
        ids = [event.id for event in slow.events]
        assert ids == sorted({*ids}, key=int)
        assert slow.statuses[-1] == quick.statuses[-1] == "succeeded"


async def test_one_that_does_not_read_at_all_is_let_go_of_in_time() -> None:
    class Stuck(Listener):
        async def _send(self, message: Message) -> None:
            await super()._send(message)
            if len(self.events) > 1 and message["body"]:
                await anyio.sleep_forever()

    async def answer(request: Request) -> Any:
        report(0.1)
        await anyio.sleep(3600)

    app = app_of(slow_route(answer))
    async with running(app) as client:
        stuck = Stuck((await accepted(client))["events"])
        start = anyio.current_time()
        await stuck.run(app)
        assert anyio.current_time() - start == pytest.approx(25, abs=1)
        assert await freed(app.jobs)


# --- the server stops --------------------------------------------------------------------------


async def test_streams_end_cleanly_when_the_server_means_to_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Uvicorn()
    monkeypatch.setattr(signal, "getsignal", lambda number: server.handle_exit)
    app = app_of(gated(gate := Gate()))
    async with running(app) as client:
        links = await accepted(client)
        listeners = [Listener(links["events"]) for _ in range(20)]
        async with listening(app, *listeners):
            await anyio.sleep(5)
            server.should_exit = True
            await anyio.sleep(1.1)
            assert all(listener.ended is not None for listener in listeners)
        assert all(listener.whole for listener in listeners)
        assert await freed(app.jobs)
        # Who comes meanwhile is told how it stands, and comes back, perhaps to another process.
        late = Listener(links["events"])
        start = anyio.current_time()
        await late.run(app)
        assert anyio.current_time() - start < 1
        assert (late.statuses, late.whole) == (["running"], True)
        gate.open()


async def test_the_drain_finds_no_stream() -> None:
    """A server that tells the lifespan while responses are open."""
    jobs = virtual_jobs(limits=Limits(drain_timeout=10))
    app = app_of(gated(gate := Gate()), jobs=jobs)
    async with anyio.create_task_group() as group:
        async with lifespan(app):
            client = client_of(app)
            listener = Listener((await accepted(client))["events"])
            group.start_soon(listener.run, app)
            await anyio.sleep(0.5)
            start = anyio.current_time()
        assert anyio.current_time() - start >= 10  # the drain
        assert listener.ended is not None
        assert listener.ended - start < 1
        assert listener.whole
        await client.aclose()
        gate.open()


# --- refusals ----------------------------------------------------------------------------------


async def test_whoever_may_not_see_a_job_hears_nothing_of_it() -> None:
    owners = {"ann": "ann", "bob": "bob"}

    def owner(connection: HTTPConnection) -> str | None:
        return owners.get(connection.headers.get("x-user", ""))

    app = app_of(gated(gate := Gate()), owner=owner)
    async with running(app) as client:
        ann = {"x-user": "ann"}
        links = (await client.post("/slow", headers=ann)).json()["links"]
        url = links["events"]
        unknown = await client.get("/jobs/" + "x" * 30 + "/events")
        assert unknown.status_code == 404
        assert unknown.headers["content-type"] == "application/problem+json"
        for user in ("bob", "eve", ""):
            for method in ("GET", "HEAD"):
                refused = await client.request(method, url, headers={"x-user": user})
                assert refused.status_code == 404
                if method == "GET":
                    assert refused.content == unknown.content
        hers = Listener(url, x_user="ann")
        async with listening(app, hers):
            del owners["ann"]  # her rights are gone
            await anyio.sleep(26)
            assert (hers.whole, len(hers.events)) == (True, 1)
        again = Listener(url, x_user="ann", last_event_id=hers.reader.id)
        await again.run(app)
        assert again.status == 404
        gate.open()


async def test_head_has_the_fields_alone() -> None:
    app = app_of(gated(gate := Gate()))
    async with running(app) as client:
        links = await accepted(client)
        head = Listener(links["events"], "HEAD")
        await head.run(app)
        assert (head.status, head.body, head.whole) == (200, b"", True)
        assert (b"content-type", b"text/event-stream") in head.headers
        for method in ("POST", "PUT", "DELETE"):
            refused = await client.request(method, links["events"])
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        gate.open()
        await settled()
        monitor = await client.get(links["self"])
        assert monitor.json()["status"] == "succeeded"
        first = Listener(links["events"])
        await first.run(app)
        seen = Listener(links["events"], "HEAD", last_event_id=first.reader.id)
        await seen.run(app)
        assert (seen.status, seen.body) == (204, b"")


async def test_a_job_that_is_deleted_meanwhile_ends_the_stream() -> None:
    app = app_of(gated(Gate()))
    async with running(app) as client:
        links = await accepted(client)
        listener = Listener(links["events"])
        async with listening(app, listener):
            assert (await client.delete(links["result"])).status_code == 202
            await anyio.sleep(1)
            assert listener.ended is not None
        assert listener.whole
        assert await freed(app.jobs)
        again = await client.get(links["events"], headers={"last-event-id": listener.reader.id})
        assert again.status_code == 410
        assert again.headers["content-type"] == "application/problem+json"


async def test_one_that_has_expired_is_gone_also_for_who_has_seen_its_end() -> None:
    async def answer(request: Request) -> Any:
        return {}

    app = app_of(slow_route(answer, ttl=60))
    async with running(app) as client:
        links = await accepted(client)
        await settled()
        listener = Listener(links["events"])
        await listener.run(app)
        assert listener.statuses == ["succeeded"]
        for seen in (listener.reader.id, "1"):
            headers = {"last-event-id": seen}
            assert (await client.get(links["events"], headers=headers)).status_code in (200, 204)
        await anyio.sleep(61)
        for seen in (listener.reader.id, "1"):
            headers = {"last-event-id": seen}
            assert (await client.get(links["events"], headers=headers)).status_code == 410


# --- the store ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
async def test_a_store_that_is_away_for_a_while_is_waited_for(
    shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream stays: `EventSource` does not come back from an answer that is not 200."""

    async def answer(request: Request) -> Any:
        await anyio.sleep(2)
        report(0.5)
        await gate.wait()

    gate = Gate()
    store = TrickyStore(shared=shared, immediate=False)
    app = app_of(slow_route(answer), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        listener = Listener((await accepted(client))["events"])
        async with listening(app, listener):
            _cut(store)
            await anyio.sleep(12)
            assert (listener.ended, len(listener.events)) == (None, 1)
            assert listener.reader.comments == 1
            _mend(store)
            await anyio.sleep(6)
            assert listener.events[-1].document["progress"] == 0.5
            assert not app.jobs.availability.away
            gate.open()
            await anyio.sleep(1)
        assert listener.statuses[-1] == "succeeded"
        assert listener.whole
        assert [record.levelno for record in said(caplog)] == [logging.ERROR, logging.WARNING]


async def test_a_store_that_stays_away_does_not_keep_a_stream_from_its_end() -> None:
    async def answer(request: Request) -> Any:
        await anyio.sleep(2)
        report(0.5)
        await gate.wait()

    gate = Gate()
    store = TrickyStore(shared=True, immediate=False)
    app = app_of(slow_route(answer), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        links = await accepted(client)
        listener = Listener(links["events"])
        async with listening(app, listener):
            _cut(store)
            await anyio.sleep(26)
            assert listener.ended is not None
            assert (listener.whole, len(listener.events)) == (True, 1)
            assert not len(session_of(app.jobs).feeds)
            refused = await client.get(links["events"])
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.headers["content-type"] == "application/problem+json"
            _mend(store)
        gate.open()


async def test_a_job_that_nobody_can_read_any_more_ends_the_stream() -> None:
    async def answer(request: Request) -> Any:
        await anyio.sleep(2)
        report(0.5)
        await gate.wait()

    gate = Gate()
    store = TrickyStore(shared=True, immediate=False)
    app = app_of(slow_route(answer), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        listener = Listener((await accepted(client))["events"])
        async with listening(app, listener):
            store.after = failing("changed", error=UnreadableRecord("damaged"))
            await anyio.sleep(3)
            assert listener.ended is not None
            store.after = no_trick
        assert (listener.whole, len(listener.events)) == (True, 1)
        gate.open()


def _cut(store: TrickyStore) -> None:
    """Let it answer nobody who reads; who waits is told so at the next change."""
    store.before = store.after = failing("changed", "get", "fetch")


def _mend(store: TrickyStore) -> None:
    store.before = store.after = no_trick


async def test_what_another_process_does_is_told() -> None:
    """A simulation: two apps over one store, and the stream is of the one that runs nothing."""
    store, clock = SharedMemory(), Clock()

    async def answer(request: Request) -> Any:
        for step in (1, 2):
            await anyio.sleep(1)
            report(step / 2)
        await anyio.sleep(1)
        return {}

    apps = [app_of(slow_route(answer), jobs=Jobs(store=Line(store), clock=clock)) for _ in range(2)]
    async with running(apps[0]) as here, running(apps[1]) as there:
        links = await accepted(here)
        listener = Listener(links["events"])
        async with listening(apps[1], listener):
            await anyio.sleep(5)
        shown = [event.document["progress"] for event in listener.events]
        assert (shown, listener.statuses[-1]) == ([None, 0.5, 1.0, 1.0], "succeeded")
        assert (await there.get(links["events"])).status_code == 200


# --- what stands outside -----------------------------------------------------------------------


async def test_compression_outside_leaves_events_alone() -> None:
    inner = app_of(gated(gate := Gate()))
    app = GZipMiddleware(inner, minimum_size=0)
    async with running(inner) as client:
        links = await accepted(client)
        listener = Listener(links["events"], accept_encoding="gzip")
        async with listening(app, listener):
            await anyio.sleep(11)
            assert listener.statuses == ["running"]  # as they come
            assert listener.reader.comments == 1
            assert b"content-encoding" not in dict(listener.headers)
        gate.open()


async def test_where_the_status_routes_are_mounted_by_hand() -> None:
    jobs = virtual_jobs()
    routes = [gated(gate := Gate()), Mount("/jobs", jobs.status_app)]
    app = LongRunningMiddleware(Starlette(routes=routes), jobs=jobs)
    async with running(app) as client:
        links = await accepted(client)
        listener = Listener(links["events"])
        async with listening(app, listener):
            await anyio.sleep(1)
            gate.open()
            await anyio.sleep(1)
        assert listener.statuses == ["running", "succeeded"]
        assert await freed(jobs)


@pytest.mark.parametrize("outside", [lambda app: app, GZipMiddleware])
async def test_a_client_follows_a_job_by_its_events(
    outside: Callable[[ASGIApp], ASGIApp],
) -> None:
    """As `EventSource` does, which comes back until it has a 204."""

    async def answer(request: Request) -> Any:
        for step in range(7):
            await anyio.sleep(10)
            report(step / 7)
        return {}

    inner = app_of(slow_route(answer))
    app = outside(inner)
    async with running(inner) as client:
        url, seen = (await accepted(client))["events"], ""
        events: list[Event] = []
        while True:
            listener = Listener(url, **({"last_event_id": seen} if seen else {}))
            await listener.run(app)
            if listener.status == 204:
                break
            assert listener.status == 200
            events += listener.events
            seen = listener.reader.id
            await anyio.sleep((listener.reader.retry or 0) / 1000)
        assert len({event.id for event in events}) == len(events) == 8
        assert [event.document["progress"] for event in events[1:]] == [n / 7 for n in range(7)]


async def test_the_result_is_there_when_the_last_event_comes() -> None:
    app = app_of(gated(gate := Gate()))
    async with running(app) as client:
        response = await client.post("/slow")
        listener = Listener(response.json()["links"]["events"])
        async with listening(app, listener):
            gate.open()
            await anyio.sleep(1)
        result = await follow(client, response)
        assert result.headers["job-status"] == listener.statuses[-1] == "succeeded"


def test_what_a_job_shows_is_all_that_can_be_seen_of_it() -> None:
    """A field that is added is news, unless somebody says that nobody is shown it."""
    job = Job.accepted("a", "r", 1000.0, runs=True)
    changes = {field: object() for field in Job._fields}
    hidden = {
        field
        for field, other in changes.items()
        if _shown(job._replace(**{field: other})) == _shown(job)  # type: ignore[arg-type]
    }
    assert hidden == {"version", "fence", "holder", "replayable", "orphaned_at", "clients"}
