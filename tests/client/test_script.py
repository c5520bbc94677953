"""The module for pages follows a 202 under Node, from servers of ours and of others."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware, long_running, report
from tests.client.node import MODULE, run
from tests.client.servers import ByHand, pending, serving, shown

pytestmark = pytest.mark.real


class Ours:
    """An app of ours.

    Attributes:
        runs: the times that a handler was started.
        cancels: the media type of each request that cancels.
        stopped: that a handler was.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.stopped = threading.Event()
        routes = [
            Route("/slow", self.slow, methods=["POST"]),
            Route("/endless", self.endless, methods=["POST"]),
            Route("/refused", self.refused, methods=["POST"]),
            Route("/moved", self.moved, methods=["POST"]),
            Route("/quick", self.quick),
        ]
        self.inner = LongRunningMiddleware(Starlette(routes=routes), limits=Limits(drain_timeout=0))
        self.cancels: list[str | None] = []
        self.asked: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            self.asked.append(path.rpartition("/")[2])
            if path.endswith("/cancel"):
                self.cancels.append(Request(scope).headers.get("content-type"))
        await self.inner(scope, receive, send)

    @long_running
    async def slow(self, request: Request) -> Response:
        self.runs += 1
        await anyio.sleep(0.3)
        report(0.5, "half")
        await anyio.sleep(0.5)
        fields = {"x-method": request.method}
        return Response(await request.body() or b"nothing", 201, fields, "text/plain")

    @long_running
    async def endless(self, request: Request) -> Response:
        self.runs += 1
        try:
            await anyio.sleep(60)
        finally:
            self.stopped.set()
        return Response()

    @long_running
    async def refused(self, request: Request) -> Response:
        await anyio.sleep(0.2)
        return Response("try another day", 503, {"retry-after": "1"})

    @long_running
    async def moved(self, request: Request) -> Response:
        return RedirectResponse("/quick", 303)

    async def quick(self, request: Request) -> Response:
        return JSONResponse({"quick": True})


@pytest.fixture
def ours() -> Ours:
    return Ours()


@pytest.fixture
def url(ours: Ours) -> Iterator[str]:
    with serving(ours) as url:
        yield url


def by_hand(source: str, server: ByHand, *, speed: float = 1) -> list[Any]:
    """What a program says whose server is this one."""
    with serving(server.app) as url:
        return run(source, url, speed=speed)


FOLLOWED = """
const response = await follow(fetch(url + "/work", { method: "POST" }), { fetch: noted });
say([response.status, await response.json()]);
say(pauses);
"""

DONE = [200, {"done": True}]


# --- ours ----------------------------------------------------------------------------------------


def test_ours_is_followed(ours: Ours, url: str) -> None:
    source = """
    const response = await follow(fetch(url + "/slow", { method: "POST", body: "x" }));
    say([response.status, await response.text(), response.headers.get("job-status")]);
    const seen = [];
    const onUpdate = ({ status, progress, message }) => seen.push([status, progress, message]);
    const again = await follow(fetch(url + "/slow", { method: "POST" }), { onUpdate });
    say([again.status, await again.text()]);
    say(seen);
    """
    plain, shown, seen = run(source, url)
    assert plain == [201, "x", "succeeded"]
    assert shown == [201, "nothing"]
    assert seen == [
        ["running", None, None],
        ["running", 0.5, "half"],
        ["succeeded", 0.5, "half"],
    ]
    assert ours.runs == 2
    assert ours.asked.count("events") == 1
    assert ours.asked.count("status") == 0


def test_without_events_the_monitor_is_asked_when_there_is_something_to_say(
    ours: Ours, url: str
) -> None:
    source = """
    const seen = [];
    for await (const { status, message } of updates(
      fetch(url + "/slow", { method: "POST" }), { events: false, fetch: noted },
    )) seen.push([status, message]);
    say(seen);
    say(calls.map(({ prefer }) => prefer ?? null));
    """
    seen, prefers = run(source, url)
    assert seen[0] == ["running", None]
    assert seen[-1] == ["succeeded", "half"]
    assert set(prefers) == {"wait=5"}
    assert "events" not in ours.asked
    assert ours.asked.count("status") == len(prefers) <= 3


def test_a_final_503_is_told_from_a_passing_one(url: str) -> None:
    source = """
    const response = await follow(fetch(url + "/refused", { method: "POST" }));
    say([response.status, await response.text(), response.headers.get("job-status")]);
    """
    assert run(source, url) == [[503, "try another day", "failed"]]


def test_a_response_that_leads_elsewhere_is_followed_as_fetch_does(url: str) -> None:
    source = """
    const response = await follow(fetch(url + "/moved", { method: "POST" }));
    say([response.status, await response.json(), new URL(response.url).pathname]);
    """
    assert run(source, url) == [[200, {"quick": True}, "/quick"]]


@pytest.mark.slow
def test_after_the_deadline_another_process_waits_on(ours: Ours, url: str) -> None:
    late = """
    say(await caught(follow(fetch(url + "/slow", { method: "POST" }), { deadline: 0.2 })));
    say(await caught(follow(new Promise(() => {}), { deadline: 0.2 })));
    """
    error, unanswered = run(late, url)
    assert (error["name"], error["message"].partition(";")[0]) == (
        "DeadlineExceeded",
        "the job has not ended within 0.2 seconds",
    )
    assert error["message"].endswith(error["statusUrl"])
    assert unanswered["message"] == "there was no answer in time"
    resumed = """
    const response = await follow(url);
    say([response.status, await response.text()]);
    const seen = [];
    for await (const { status } of updates(new URL(url))) seen.push(status);
    say(seen);
    """
    assert run(resumed, error["statusUrl"]) == [[201, "nothing"], ["succeeded"]]
    assert run(resumed, error["statusUrl"] + "/status") == [[201, "nothing"], ["succeeded"]]
    assert ours.runs == 1


def test_the_deadline_holds_while_events_are_heard(ours: Ours, url: str) -> None:
    source = """
    const begun = performance.now();
    const settings = { deadline: 0.7, onUpdate: () => {} };
    say((await caught(follow(fetch(url + "/endless", { method: "POST" }), settings))).name);
    say(performance.now() - begun);
    """
    name, milliseconds = run(source, url)
    assert name == "DeadlineExceeded"
    assert 600 < milliseconds < 20_000  # long before the events end, however busy a machine is
    assert not ours.stopped.is_set()


def test_a_job_can_be_cancelled_by_its_url(ours: Ours, url: str) -> None:
    source = """
    const accepted = await fetch(url + "/endless", { method: "POST" });
    const where = new URL(accepted.headers.get("location"), url).href;
    say((await cancel(where)).status);
    for await (const { status } of updates(where)) say(status);
    say((await cancel(where)).status);
    const response = await follow(where);
    say([response.status, response.headers.get("job-status")]);
    say(await caught(cancel(where + "x")));
    """
    first, *seen, again, response, unknown = run(source, url)
    assert {first, *seen} <= {"canceling", "canceled"}
    assert seen[-1] == again == "canceled"
    assert response == [410, "canceled"]
    assert (unknown["name"], unknown["status"]) == ("NoResponse", 404)
    assert ours.cancels == ["application/json"]
    assert ours.stopped.wait(10)


def test_a_job_that_is_known_by_its_document_is_not_asked_for_first(ours: Ours, url: str) -> None:
    source = """
    const accepted = await fetch(url + "/endless", { method: "POST" });
    const document = await accepted.json();
    for (const name in document.links) document.links[name] = url + document.links[name];
    say((await cancel(document)).status);
    for await (const { status } of updates({ links: document.links })) say(status);
    say(await caught(follow({ links: {} })));
    say(await caught(follow(undefined)));
    """
    *seen, without, nothing = run(source, url)
    assert seen[-1] == "canceled"
    assert ours.asked[:2] == ["endless", "cancel"]
    assert without["name"] == nothing["name"] == "TypeError"


def test_links_of_a_document_are_relative_to_the_page() -> None:
    source = """
    globalThis.location = new URL(url + "/page");
    const links = { result: "status/1", self: "status/1/monitor", cancel: null };
    await follow({ links }, { fetch: noted, onUpdate: ({ status }) => say(status) });
    say(calls.map((call) => new URL(call.url).pathname));
    """
    paths = ["/status/1/monitor", "/status/1"]
    assert by_hand(source, ByHand(shown("succeeded"))) == ["succeeded", paths]


@pytest.mark.slow
@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("also", [True, False])
def test_a_signal_ends_the_wait_and_cancels_the_job_if_that_is_wanted(
    ours: Ours, url: str, also: bool, progress: bool
) -> None:
    source = f"""
    const leaving = new AbortController();
    const settings = {{ signal: leaving.signal, cancel: {str(also).lower()} }};
    if ({str(progress).lower()}) settings.onUpdate = () => {{}};
    const waiting = caught(follow(fetch(url + "/endless", {{ method: "POST" }}), settings));
    await passed(0.5);
    leaving.abort();
    say(await waiting);
    """
    [error] = run(source, url)
    assert error["name"] == "AbortError"
    assert ours.stopped.wait(10 if also else 0.5) is also


def test_a_signal_cancels_a_job_that_comes_later(ours: Ours, url: str) -> None:
    source = """
    const leaving = new AbortController();
    const request = passed(0.3).then(() => fetch(url + "/endless", { method: "POST" }));
    const waiting = caught(follow(request, { signal: leaving.signal, cancel: true }));
    leaving.abort(new Error("gone home"));
    say((await waiting).message);
    say((await caught(follow(url + "/jobs/x", { signal: leaving.signal }))).message);
    await request;
    """
    assert run(source, url) == ["gone home", "gone home"]
    assert ours.stopped.wait(10)


def test_what_is_thrown_at_an_update_ends_the_wait(ours: Ours, url: str) -> None:
    source = """
    const settings = { onUpdate: async () => { throw new RangeError("no room"); } };
    say(await caught(follow(fetch(url + "/slow", { method: "POST" }), settings)));
    say(await caught(follow(fetch("http://127.0.0.1:9/"))));
    say(await caught(follow(url, { deadline: -1 })));
    say(await caught(follow(url, { wait: NaN })));
    """
    thrown, unreached, *bad = run(source, url)
    assert (thrown["name"], thrown["message"]) == ("RangeError", "no room")
    assert unreached["name"] == "TypeError"  # by `fetch` itself
    assert [(error["name"], error["message"]) for error in bad] == [
        ("RangeError", "deadline is at least 0"),
        ("RangeError", "wait is at least 0"),
    ]


# --- others --------------------------------------------------------------------------------------


def test_no_202_is_the_response_itself() -> None:
    source = """
    for (const path of ["/result", "/nothing"]) {
      const response = await follow(fetch(url + path));
      say([response.status, response.bodyUsed]);
    }
    """
    assert by_hand(source, ByHand()) == [[200, False], [404, False]]
    server = ByHand()
    server.first = {}
    source = """
    const response = await follow(fetch(url + "/work"));
    say([response.status, await response.json()]);
    """
    assert by_hand(source, server) == [[202, {"status": "accepted"}]]


@pytest.mark.slow
def test_without_a_word_of_the_server_polls_back_off() -> None:
    server = ByHand(*[pending() for _ in range(7)])
    source = FOLLOWED + "say(calls.map(({ prefer }) => prefer));"
    done, pauses, prefers = by_hand(source, server, speed=100)
    assert done == DONE
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert prefers == ["wait=20"] * 8


def test_pauses_are_spread() -> None:
    for chance, pause in ((0, 0.75), (0.99, 1.245)):
        source = f"Math.random = () => {chance};" + FOLLOWED
        assert by_hand(source, ByHand(), speed=10) == [DONE, [pause]]


def test_retry_after_is_honoured() -> None:
    server = ByHand(*[pending(retry_after=value) for value in ("3", "0", "1.5", "January 2001")])
    server.first["retry-after"] = "7"
    done, pauses = by_hand(FOLLOWED, server, speed=100)
    assert done == DONE
    assert pauses == [7, 3, 1, 1, 2]  # what is no number and no date is as if absent


def test_a_date_is_compared_with_the_servers_own() -> None:
    """No server that is at hand has a clock that goes wrong."""
    source = """
    const now = Date.now();
    const spelt = (milliseconds) => new Date(milliseconds).toUTCString();
    const fields = [
      { "retry-after": spelt(now + 60_000) },
      { date: spelt(now - 7_200_000), "retry-after": spelt(now - 7_195_000) },
      { date: spelt(3000), "retry-after": "Thu Jan  1 00:00:09 1970" },
      { date: spelt(3000), "retry-after": "Thursday, 01-Jan-70 00:00:10 GMT" },
      { date: spelt(3000), "retry-after": spelt(1000) },
      { "retry-after": "9999" },
    ];
    const answered = async () => {
      const headers = fields.shift();
      return new Response("{}", headers ? { status: 202, headers } : {});
    };
    await follow(url + "/status/1", { fetch: answered });
    say(pauses.slice(1));
    """
    [[first, *pauses]] = run(source, "http://server", speed=10_000)
    assert 57 < first <= 60
    assert pauses == [5, 6, 7, 1, 3600]


@pytest.mark.slow
def test_a_server_that_can_wait_is_asked_again_at_once() -> None:
    async def waited(request: Request) -> Response:
        await anyio.sleep(1.1)
        return pending(retry_after="30", preference_applied="wait=20")

    server = ByHand(waited, waited)
    server.first["retry-after"] = "1"
    assert by_hand(FOLLOWED, server) == [DONE, [1, 0, 0]]


def test_whatever_passes_is_waited_for() -> None:
    server = ByHand(
        Response("Bad gateway", 502),
        JSONResponse({"detail": "Soon."}, 503, {"retry-after": "2"}),
        Response(status_code=504),
        Response(status_code=429),
    )
    source = """
    const told = [];
    const settings = { onTrouble: (reason) => told.push(reason?.message.split(";")[0] ?? null) };
    const response = await follow(fetch(url + "/work", { method: "POST" }), settings);
    say([response.status, await response.json()]);
    say(told);
    """
    done, told = by_hand(source, server, speed=50)
    assert done == DONE
    assert told == ["HTTP 502", "Soon.", "HTTP 504", "HTTP 429", None]


@pytest.mark.slow
def test_after_two_minutes_it_gives_up_and_says_where_to_go_on() -> None:
    server = ByHand(*[Response(status_code=503) for _ in range(40)])
    source = """
    const begun = clock();
    say(await caught(follow(fetch(url + "/work", { method: "POST" }))));
    say((speed * (clock() - begun)) / 1000);
    say(pauses.reduce((sum, pause) => sum + pause));
    """
    error, seconds, paused = by_hand(source, server, speed=100)
    assert error["name"] == "Unreachable"
    assert error["message"].startswith("its server has not answered for two minutes (HTTP 503)")
    assert error["statusUrl"].endswith("/status/1")
    assert seconds >= 120
    assert paused <= 1 + 2 + 4 + 8 + 16 + 4 * 30


@pytest.mark.slow
def test_a_server_that_is_restarted_is_found_again() -> None:
    first, second = ByHand(*[pending(retry_after="1")] * 100), ByHand()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    said: list[Any] = []
    source = """
    const told = [];
    const settings = { onTrouble: (reason) => told.push(reason === null) };
    const response = await follow(fetch(url + "/work", { method: "POST" }), settings);
    say([response.status, await response.json()]);
    say(told);
    """
    with serving(first.app, listener) as url:
        program = threading.Thread(target=lambda: said.extend(run(source, url, speed=4)))
        program.start()
        while len(first.polls) < 2:
            time.sleep(0.01)
    time.sleep(1)
    with serving(second.app, socket.create_server(("127.0.0.1", port))):
        program.join(30)
    done, told = said
    assert done == DONE
    assert told[0] is False
    assert told[-1] is True


@pytest.mark.slow
def test_an_answer_that_never_comes_is_asked_for_again() -> None:
    async def stuck(request: Request) -> Response:
        await anyio.sleep(5)
        return pending()

    source = """
    const told = [];
    const onTrouble = (reason) => told.push(reason?.message.split(";")[0] ?? null);
    const response = await follow(fetch(url + "/work"), { onTrouble });
    say([response.status, await response.json()]);
    say(told);
    """
    done, told = by_hand(source, ByHand(stuck), speed=50)
    assert done == DONE
    assert told == ["no answer came in time", None]


def test_headers_go_to_the_origin_of_the_request_alone() -> None:
    here, there = ByHand(pending()), ByHand(pending())
    source = """
    const headers = { authorization: "Bearer secret" };
    const settings = { fetch: noted, headers, credentials: "include" };
    await follow(fetch(url + "/work", { method: "POST", headers }), settings);
    say(calls.map(({ headers, credentials }) => [headers.authorization ?? null, credentials]));
    """
    ours, others = ["Bearer secret", "include"], [None, "omit"]
    with serving(there.app) as elsewhere:
        assert by_hand(source, here, speed=10) == [[ours, ours]]
        here = ByHand()
        here.first["location"] = elsewhere + "/status/1"
        assert by_hand(source, here, speed=10) == [[others, others]]
    assert [request.headers.get("authorization") for request in there.polls] == [None] * 2
    assert [request.url.path for request in there.polls] == ["/status/1"] * 2


def test_urls_are_relative_to_where_the_answer_came_from() -> None:
    server = ByHand(pending(location="3"))
    server.first["location"] = "status/2"

    async def led(request: Request) -> Response:
        return RedirectResponse("/deep/work", 307)

    server.app.router.routes += [
        Route("/begin", led, methods=["POST"]),
        Route("/deep/work", server.submit, methods=["POST"]),
        Route("/deep/status/{id}", server.poll),
    ]
    by_hand(FOLLOWED.replace("/work", "/begin"), server, speed=10)
    assert [request.url.path for request in server.polls] == ["/deep/status/2", "/deep/status/3"]


def test_a_job_that_was_answered_for_with_another_json_is_that() -> None:
    source = """
    const response = await follow(url + "/status/1");
    say(await response.json());
    """
    assert by_hand(source, ByHand(JSONResponse([1, 2]))) == [[1, 2]]
    assert by_hand(source, ByHand(JSONResponse({"status": "active"}))) == [{"status": "active"}]


@pytest.mark.slow
def test_operations_of_azures_and_of_fhir_are_followed() -> None:
    server = ByHand(shown("Running"), shown("Succeeded", resourceLocation="/result"))
    server.first = {"operation-location": "/status/1"}
    source = """
    const seen = [];
    const settings = { onUpdate: ({ status }) => seen.push(status) };
    const response = await follow(fetch(url + "/work", { method: "POST" }), settings);
    say([await response.json(), seen]);
    """
    seen = [{"from": "the result"}, ["accepted", "Running", "Succeeded"]]
    assert by_hand(source, server, speed=10) == [seen]

    server = ByHand(shown("Succeeded"))
    server.first = {"operation-location": "/status/1", "location": "/result"}
    [[result, _]] = by_hand(source, server, speed=10)
    assert result == {"from": "the result"}

    server = ByHand(shown("Failed", error={"code": "Full", "message": "No room."}))
    server.first = {"operation-location": "/status/1"}
    [error] = by_hand('say(await caught(follow(fetch(url + "/work"))));', server, speed=10)
    assert error["name"] == "NoResponse"
    assert error["message"].startswith("No room.; its status URL is http")

    server = ByHand(pending())
    server.first = {"content-location": "/status/1"}
    assert by_hand(FOLLOWED, server, speed=10)[0] == DONE


@pytest.mark.slow
def test_others_are_cancelled_as_they_say_or_by_delete() -> None:
    source = """
    const job = await fetch(url + "/work", { method: "POST" });
    const told = await cancel(job).catch(({ name, message }) => ({ status: [name, message] }));
    say(told.status);
    """
    server = ByHand(Response(status_code=204))
    assert by_hand(source, server) == ["canceling"]
    assert server.asked() == [("DELETE", "/status/1")]

    server = ByHand(JSONResponse({"title": "Not here"}, 405))
    server.document = {"status": "running", "links": {"cancel": "/status/1/stop"}}
    [[name, message]] = by_hand(source, server)
    assert (name, message.partition(";")[0]) == (
        "FollowError",
        "the job could not be cancelled: Not here",
    )
    assert server.asked() == [("POST", "/status/1/stop")]

    server = ByHand(Response(status_code=409))
    assert by_hand(source, server, speed=10) == ["succeeded"]


# --- events --------------------------------------------------------------------------------------


class Streaming(ByHand):
    """A server with events as they are given: each is a stream's pieces, or None for no end."""

    def __init__(self, *streams: list[str | None]) -> None:
        super().__init__()
        self.streams = list(streams)
        self.document = {
            "job_id": "1",
            "status": "queued",
            "links": {"result": "/status/1", "self": "/monitor", "events": "/events"},
        }
        self.asked_monitor = 0
        self.app.router.routes += [Route("/events", self.events), Route("/monitor", self.monitor)]

    async def monitor(self, request: Request) -> Response:
        self.asked_monitor += 1
        return JSONResponse(self.document | {"status": "succeeded"})

    async def events(self, request: Request) -> Response:
        async def pieces() -> Any:
            for piece in self.streams.pop(0):
                if piece is None:
                    await anyio.sleep(100)  # or until its client has left
                else:
                    yield piece
                    await anyio.sleep(0.01)

        return StreamingResponse(pieces(), media_type="text/event-stream; charset=utf-8")


HEARD = """
const seen = [];
const request = fetch(url + "/work", { method: "POST" });
for await (const { status, n } of updates(request)) seen.push(n ?? status);
say(seen);
say(pauses);
"""


def test_events_are_read_however_they_are_cut_and_spelt() -> None:
    server = Streaming(
        [
            'retry: 7000\n\n: comment\n\nevent: status\nid: 1\ndata: {"status": "running",',
            ' "n": 1}\r',
            '\n\r\ndata:{"status":\ndata: "running", "n": "\u00e9"}\r\r',
            'data: no JSON\n\ndata: {"status": "running", "n": 3}\n\ndata: {"status": "ru',
        ],
        ['data: {"status": "running", "n": 3}\n\ndata: {"status": "succeeded", "n": 4}\n\n', None],
    )
    seen, pauses = by_hand(HEARD, server, speed=20)
    assert seen == ["queued", 1, "\u00e9", 3, 4]
    assert pauses == [7]
    assert server.asked_monitor == 0


@pytest.mark.parametrize(
    "stream",
    [pytest.param([None], id="silent"), pytest.param([""], id="empty")],
)
def test_where_no_event_comes_through_the_monitor_is_asked(stream: list[str | None]) -> None:
    server = Streaming(stream)
    seen, pauses = by_hand(HEARD, server, speed=20)
    assert seen == ["queued", "succeeded"]
    assert pauses == [0, 0]
    assert server.asked_monitor == 1


def test_a_stream_that_falls_silent_is_opened_again() -> None:
    running, ended = (f'data: {{"status": "{word}"}}\n\n' for word in ("running", "succeeded"))
    server = Streaming([running, None], [ended])
    seen, pauses = by_hand(HEARD, server, speed=50)
    assert seen == ["queued", "running", "succeeded"]
    assert pauses == [3]


def test_an_unread_rest_of_a_stream_keeps_no_connection() -> None:
    """Whoever stops listening leaves nothing behind for which Node would have to wait."""
    running = 'data: {"status": "running"}\n\n'
    source = """
    for await (const { status } of updates(fetch(url + "/work", { method: "POST" })))
      if (status === "running") break;
    say("left");
    """
    begun = time.monotonic()
    assert by_hand(source, Streaming([running, None])) == ["left"]
    assert time.monotonic() - begun < 4


# --- the files -----------------------------------------------------------------------------------


def test_the_types_declare_what_the_module_exports() -> None:
    exported = re.compile(r"^export (?:async )?(?:function\*?|class) (\w+)", re.MULTILINE)
    module, types = MODULE.read_text(), MODULE.with_suffix(".d.ts").read_text()
    assert exported.findall(module) == exported.findall(types) != []
    used = set(re.findall(r"\boptions\.(\w+)", module))
    assert used <= set(re.findall(r"^  (\w+)\?: ", types, re.MULTILINE))


@pytest.mark.parametrize("link", ["http://h:x/", "javascript:1", "ftp://h/"])
def test_a_link_that_is_no_url_is_no_link(link: str) -> None:
    server = ByHand()
    server.first = {"location": link, "content-location": "/status/1"}
    server.document = {"links": {"result": link, "self": link, "events": link}}
    source = """
    const response = await follow(fetch(url + "/work", { method: "POST" }), { onUpdate() {} });
    say([response.status, await response.json()]);
    """
    assert by_hand(source, server, speed=20) == [DONE]
    server.first = {"location": link}
    source = 'say((await follow(fetch(url + "/work", { method: "POST" }))).status);'
    assert by_hand(source, server) == [202]
