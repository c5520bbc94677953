"""The wire under arbitrary input: whatever comes in, what goes out is an answer that WIRE names.

The default run is derandomized and sends about 1,000 requests: two tests, each with its examples
on two event loops, each example a sequence of four requests to one new app. The long run sends
more than 20,000, others every time:

    RAINCHECK_FUZZ=long pytest tests/test_fuzz.py

Requests are made of ASGI messages, so that no client or server refuses or repairs them first.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import Jobs, LongRunningMiddleware, Policy, current_job
from raincheck.preferences import is_navigation
from raincheck.testing import lifespan
from tests.conftest import PHASES, long, virtual_jobs
from tests.support import Gate, Numbers, RawRequest, gated, settled, slow_route

LONG = long("FUZZ")

REQUESTS = 4
"""Requests in one example."""

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(3600 if LONG else 120)]


def fuzzed(*, default: int, most: int) -> settings:
    """How many examples a test has on each event loop; each stands for `REQUESTS` inputs."""
    return settings(
        max_examples=most if LONG else default,
        derandomize=not LONG,
        deadline=None,
        database=None,
        print_blob=True,
        phases=PHASES,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# --- requests ----------------------------------------------------------------------------------

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"]

T = TypeVar("T")


def mostly(usual: st.SearchStrategy[T], odd: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """What is usual in four cases of five: oddities that come all at once hide one another."""
    return st.sampled_from([usual] * 4 + [odd]).flatmap(lambda strategy: strategy)


anything = st.binary(max_size=40)
methods = mostly(
    st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "DELETE"]),
    st.sampled_from(METHODS) | st.text(max_size=20),
)


def pieces(*parts: bytes) -> st.SearchStrategy[bytes]:
    """Values that are put together of these parts, so that they come close to the grammar."""
    return st.lists(st.sampled_from(parts), max_size=8).map(b"".join)


FIELDS: dict[bytes, st.SearchStrategy[bytes]] = {
    b"prefer": st.sampled_from([b"respond-async", b"wait=5", b"respond-async, wait=3", b"wait"])
    | pieces(
        *(b"respond-async", b"Respond-Async", b"wait", b"WAIT", b"handling=lenient", b"return"),
        *(b"=", b",", b";", b" ", b"\t", b'"', b"\\", b"\x00", b"\xff", b"\xb2", b"\r\n"),
        *(b"0", b"5", b"007", b"-1", b"1.5", b"nan", b"inf", b"1e9", b"9" * 30, b"9" * 5000),
    ),
    b"idempotency-key": st.sampled_from([b'"a"', b"a", b'"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
    | pieces(b'"', b"a", b"\\", b" ", b";", b",", b"=", b":YQ==:", b"\x00", b"\xff", b"k" * 3000),
    b"range": st.sampled_from([b"bytes=0-", b"bytes=-1", b"bytes=0-0,2-3", b"bytes=5-2"])
    | pieces(b"bytes", b"=", b"-", b",", b" ", b"0", b"7", b"9" * 5000, b"\xb2", b"items", b"\xff"),
    b"if-none-match": pieces(b"*", b'"', b"W/", b",", b" ", b"a", b"\xff", b"\\"),
    b"if-match": pieces(b"*", b'"', b"W/", b",", b" ", b"a"),
    b"if-range": pieces(b'"', b"W/", b"a", b"Tue, 15 Nov 1994 12:45:26 GMT", b"\xff"),
    b"if-modified-since": st.sampled_from([b"Tue, 15 Nov 1994 12:45:26 GMT", b"yesterday"]),
    b"content-length": pieces(b"0", b"5", b"9", b"-", b"+", b" ", b"\xb2", b"x", b",", b"9" * 18),
    b"accept": st.sampled_from([b"text/html", b"*/*", b"application/json", b"text/event-stream"])
    | pieces(
        *(b"text/html", b"*/*", b"application/json", b"text/*", b",", b";", b"q=", b" ", b"\xff"),
        *(b"0.5", b"1", b"nan", b"-inf", b"1e400", b"q", b"="),
    ),
    b"sec-fetch-mode": st.sampled_from([b"navigate", b"cors", b"NAVIGATE ", b"", b"\xff"]),
    b"last-event-id": pieces(b"1", b"-", b"9" * 30, b"x", b"\xff"),
    b"connection": st.sampled_from([b"close", b"prefer", b"upgrade, location"]),
    b"transfer-encoding": st.sampled_from([b"chunked", b"gzip, chunked"]),
    b"host": pieces(b"test", b"[", b"]", b":", b"80", b"/", b"@", b"\xff"),
    b"cookie": pieces(b"a", b"=", b";", b'"', b"\xff"),
    b"traceparent": anything,
}


@st.composite
def header_fields(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    """Some of the fields that mean something here, in lower case as servers give them; others."""
    fields = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from(sorted(FIELDS)) | st.just(b"prefer") | anything)
        fields.append((name, draw(FIELDS.get(name, anything) | anything)))
    return fields


@dataclass(frozen=True)
class Wild:
    """One request, but for its path.

    Attributes:
        method: any.
        headers: any.
        query: the query string.
        body: its parts; the last one ends it.
        leaves: after how many of the parts the client does, if it does before the end.
        lacks: keys of the scope that a server may leave out.
    """

    method: str
    headers: list[tuple[bytes, bytes]]
    query: bytes
    body: list[bytes] = field(default_factory=lambda: [b""])
    leaves: int | None = None
    lacks: frozenset[str] = frozenset()

    def at(self, path: str, root_path: str = "") -> RawRequest:
        """The request, to be run once."""
        request = RawRequest("/", self.method)
        request.scope.update(
            path=path,
            raw_path=path.encode("utf-8", "surrogatepass"),
            root_path=root_path,
            query_string=self.query,
            headers=self.headers,
        )
        for key in self.lacks:
            del request.scope[key]
        for number, part in enumerate(self.body, start=1):
            if self.leaves is not None and number > self.leaves:
                break
            request.feed(part, more=number < len(self.body))
        if self.leaves is not None:
            request.leave()
        return request


def requests(methods: st.SearchStrategy[str]) -> st.SearchStrategy[Wild]:
    """Requests with one of these methods."""
    bodies = st.lists(st.binary(max_size=12), min_size=1, max_size=4)
    return st.builds(
        Wild,
        method=methods,
        headers=header_fields(),
        query=anything,
        body=bodies,
        leaves=st.none() | st.none() | st.integers(0, 4),
        lacks=st.frozensets(st.sampled_from(["client", "server", "raw_path", "root_path"])),
    )


@dataclass(frozen=True)
class Id:
    """An id on the wire: that of a known job, one made of it, or any text."""

    known: str
    change: Callable[[str], str]

    def of(self, ids: dict[str, str]) -> str:
        """The id, given those of the known jobs."""
        return self.change(ids[self.known])


EXOTIC = [
    *(
        "",
        ".",
        "..",
        "../jobs",
        "..\\",
        "%2e%2e",
        "%2F",
        "%00",
        "\x00",
        "a\x00b",
        "\r\nx: y",
        ";",
        "?",
    ),
    *(
        "x" * 30,
        "x" * 31,
        "-" * 30,
        "A" * 10_000,
        "é" * 30,
        "\ud800",
        "\U0001f4a9",
        "\uff11" * 30,
        "*",
    ),
    *("{id}", "__proto__", "null", "status", "cancel", "' OR 1=1 --", "<script>", "//", " "),
]

any_text = (
    st.sampled_from(EXOTIC)
    | st.text(max_size=40)
    | anything.map(lambda raw: raw.decode("latin-1"))
    | anything.map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)


@st.composite
def changes(draw: st.DrawFn) -> Callable[[str], str]:
    """What is done to the id of a known job; mostly nothing."""
    kind = draw(st.sampled_from(["as it is"] * 10 + ["cut", "longer", "swap", "case", "other"]))
    place = draw(st.integers(0, 29))
    text = draw(any_text)
    by_kind: dict[str, Callable[[str], str]] = {
        "as it is": lambda known: known,
        "cut": lambda known: known[:place],
        "longer": lambda known: known[:place] + text + known[place:],
        "swap": lambda known: known[:place] + text[:1] + known[place + 1 :],
        "case": str.swapcase,
        "other": lambda known: text,
    }
    return by_kind[kind]


TAILS = ["", "/status", "/cancel", "/events", "/stream", "/", "/status/", "//status", "/../x", "/x"]

tails = mostly(
    st.sampled_from(["", "", "/status", "/cancel", "/events"]),
    st.sampled_from(TAILS) | any_text.map("/".__add__),
)


# --- answers -----------------------------------------------------------------------------------

FIELD_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
FIELD_VALUE = re.compile(
    rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?"
)
URI_REFERENCE = re.compile(rb"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")

OF_A_JOB = {
    500: ("crashed", "invalid-response", "response-too-large", "unreadable"),
    502: ("lost-worker",),
    503: ("interrupted",),
    504: ("timeout",),
}
"""The 5xx problems that a job without a response has for its result (WIRE, "Status URL")."""

EVENT_STREAM = (b"content-type", b"text/event-stream")

REFUSED = ("queue-full", "store-unavailable", "shutting-down", "another-process")
"""The 503s of refusals."""


@dataclass(frozen=True)
class Answer:
    """What came out, held to what every answer must be."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def to(cls, request: RawRequest) -> Answer:
        """The answer to a request that has run: one start, then bodies, the last of them final."""
        assert len(request.sent) >= 2
        start, *bodies = request.sent
        assert start["type"] == "http.response.start"
        assert [message["type"] for message in bodies] == ["http.response.body"] * len(bodies)
        more = [message.get("more_body", False) for message in bodies]
        assert more == [True] * (len(bodies) - 1) + [False]
        answer = cls(start["status"], list(start["headers"]), request.body)
        answer._check_fields()
        if not answer.foreign:
            answer._check_length(request.scope["method"])
        return answer

    def get(self, name: bytes) -> bytes | None:
        """A field that occurs at most once."""
        values = [value for field, value in self.headers if field == name]
        assert len(values) <= 1
        return values[0] if values else None

    def document(self) -> dict[str, Any]:
        """The body, which is a JSON object."""
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document

    @property
    def final(self) -> bool:
        """Whether it tells how a job has ended."""
        return self.get(b"job-status") is not None

    @property
    def stored(self) -> bool:
        """Whether it is a handler's response."""
        problem = self.get(b"content-type") == b"application/problem+json"
        return self.final and not problem and b'"job_id"' not in self.body

    @property
    def foreign(self) -> bool:
        """Whether it is the app's own, which had the request to itself."""
        return self.get(b"x-signed") is not None and not self.stored

    def _check_fields(self) -> None:
        for name, value in self.headers:
            assert isinstance(name, bytes)
            assert isinstance(value, bytes)
            assert FIELD_NAME.fullmatch(name), name
            assert FIELD_VALUE.fullmatch(value), value
        if (location := self.get(b"location")) is not None:
            assert URI_REFERENCE.fullmatch(location), location
        if (seconds := self.get(b"retry-after")) is not None:
            assert int(seconds) >= 1

    def _check_length(self, method: str) -> None:
        length = self.get(b"content-length")
        if method == "HEAD" or self.status in (204, 304):
            assert self.body == b""
        elif length is not None:
            assert int(length) == len(self.body)

    def check_page(self) -> None:
        """It is a problem's page, as a browser that navigates is shown one."""
        assert self.get(b"cache-control") == b"no-store"
        assert self.get(b"vary") == b"Accept, Sec-Fetch-Mode"
        assert (self.get(b"content-security-policy") or b"").startswith(b"default-src 'none'")

    def check_problem(self, method: str) -> str:
        """It is a problem document (RFC 9457); returns the last part of its type."""
        assert self.get(b"content-type") == b"application/problem+json"
        assert self.get(b"cache-control") == b"no-store"
        if method == "HEAD":
            return ""
        problem = self.document()
        assert problem["status"] == self.status
        assert all(isinstance(problem[key], str) for key in ("type", "title", "detail"))
        return str(problem["type"]).rpartition(":")[2]


def check_silence(caplog: pytest.LogCaptureFixture) -> None:
    loud = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in loud] == []


async def ask(app: ASGIApp, path: str, method: str = "GET", **headers: str) -> Answer:
    """A tame request."""
    request = RawRequest(path, method, **headers)
    request.feed()
    await request.run(app)
    return Answer.to(request)


async def ended(app: ASGIApp, url: str) -> Answer:
    """What a job's status URL becomes; it must within ten minutes."""
    for _ in range(20):
        answer = await ask(app, url, prefer="wait=30")
        if answer.status != 202 or answer.stored:
            return answer
    raise AssertionError("a job has not ended")


def signed(app: ASGIApp) -> ASGIApp:
    """An app whose responses can be told from ours."""

    async def sign(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-signed", b"1")]
            await send(message)

        await app(scope, receive, send_signed)

    return sign


# --- status routes -----------------------------------------------------------------------------


def every_kind(held: Gate, stubborn: Gate) -> list[BaseRoute]:
    """A route for each way in which a job can be or end."""

    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

    async def looks_pending(request: Request) -> Response:
        return JSONResponse({}, status_code=202)

    async def absent(request: Request) -> Response:
        return JSONResponse({"detail": "no"}, status_code=404, headers={"etag": '"a"'})

    async def streamed(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"chunk"

        response = StreamingResponse(chunks())
        response.raw_headers += [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        return response

    async def never(request: Request) -> None:
        await anyio.sleep_forever()

    async def large(request: Request) -> Response:
        return Response(b"x" * 100)

    async def stays(request: Request) -> None:
        with anyio.CancelScope(shield=True):
            await stubborn.wait()

    return [
        slow_route(nothing, "/empty"),
        slow_route(looks_pending, "/looks-pending"),
        slow_route(absent, "/absent"),
        slow_route(streamed, "/streamed"),
        slow_route(streamed, "/expired", ttl=1),
        slow_route(streamed, "/deleted"),
        slow_route(never, "/late", timeout=1),
        slow_route(large, "/large", max_response_size=10),
        slow_route(never, "/cancelled"),
        slow_route(stays, "/cancelling"),
        gated(held, "/running"),
        gated(held, "/waits", max_running=1),
    ]


KINDS = [
    *("empty", "looks-pending", "absent", "streamed", "expired", "deleted", "late", "large"),
    *("cancelled", "cancelling", "running", "queued"),
]


@asynccontextmanager
async def house() -> AsyncIterator[tuple[ASGIApp, dict[str, str]]]:
    """An app, and the ids of a job of each kind."""
    held, stubborn = Gate(), Gate()
    inner = Starlette(routes=every_kind(held, stubborn))
    app = LongRunningMiddleware(signed(inner), jobs=virtual_jobs())

    async def submit(path: str) -> str:
        answer = await ask(app, path, "POST")
        return str(answer.document()["job_id"])

    async with lifespan(app):
        await submit("/waits")
        ids = {kind: await submit("/waits" if kind == "queued" else "/" + kind) for kind in KINDS}
        await settled()
        for kind in ("cancelled", "cancelling"):
            await ask(app, f"/jobs/{ids[kind]}/cancel", "POST")
        await anyio.sleep(2)
        await ask(app, f"/jobs/{ids['deleted']}", "DELETE")
        try:
            yield app, ids
        finally:
            held.open()
            stubborn.open()


@st.composite
def status_requests(draw: st.DrawFn) -> tuple[Wild, Id, str, str]:
    """A request to a status route: id, what follows it, and the root path it comes by."""
    id = Id(draw(st.sampled_from(KINDS)), draw(changes()))
    root_path = draw(st.sampled_from(["", "", "/api"]))
    return draw(requests(methods)), id, draw(tails), root_path


def check_status_answer(answer: Answer, method: str, unknown: Answer) -> None:
    """What every answer of a status route must be."""
    if answer.stored:
        assert answer.status != 202
        return
    if answer.status == 405:
        allowed = (answer.get(b"allow") or b"").decode().split(", ")
        assert allowed
        assert method not in allowed
        assert set(allowed) <= set(METHODS)
    if answer.status < 400:
        assert answer.get(b"cache-control") == b"no-store"
        if method != "HEAD" and answer.get(b"content-type") == b"application/json":
            assert answer.document()["job_id"]
        return
    if answer.get(b"content-type") == b"text/html; charset=utf-8":
        answer.check_page()
        return
    name = answer.check_problem(method)
    if method != "HEAD":
        of_a_job = name in OF_A_JOB.get(answer.status, ()) or name in ("cancelled", "finished")
        assert answer.final == of_a_job
    if answer.status == 404:
        assert (answer.headers, answer.body) == (
            unknown.headers,
            b"" if method == "HEAD" else unknown.body,
        )
    if answer.status >= 500 and name not in OF_A_JOB.get(answer.status, ()):
        assert answer.status in OF_A_JOB if method == "HEAD" else answer.status == 503
        assert method == "HEAD" or name in REFUSED
        assert method == "HEAD" or answer.get(b"retry-after") is not None


@pytest.mark.one_loop
@given(sequence=st.lists(status_requests(), min_size=REQUESTS, max_size=REQUESTS))
@fuzzed(default=25, most=1500)
async def test_status_routes_answer_whatever_they_are_asked(
    sequence: list[tuple[Wild, Id, str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    async with house() as (app, ids):
        unknown = await ask(app, "/jobs/" + "x" * 30)  # what is no id is the app's
        for wild, id, tail, root_path in sequence:
            request = wild.at(f"{root_path}/jobs/{id.of(ids)}{tail}", root_path)
            await request.run(app)
            if wild.leaves is not None and EVENT_STREAM in request.sent[0]["headers"]:
                event("left")
                continue  # the client left before the stream's end
            answer = Answer.to(request)
            event(f"{answer.status}")
            if not answer.foreign:
                check_status_answer(answer, wild.method, unknown)
                html = (answer.get(b"content-type") or b"").startswith(b"text/html")
                assert answer.stored or not html or is_navigation(request.scope["headers"])
    check_silence(caplog)


# --- submissions -------------------------------------------------------------------------------


async def echo(request: Request) -> Response:
    if current_job() is not None:
        request.app.state.numbers.check(request)
    try:
        body = await request.body()
    except ClientDisconnect:  # where the route is synchronous
        return Response(status_code=400)
    await anyio.sleep(len(body) % 7)
    return Response(body, media_type="application/octet-stream")


def guarded(app: ASGIApp) -> ASGIApp:
    """What answers by itself before a route is met."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and b"deny" in scope["query_string"]:
            await JSONResponse({"detail": "own"}, status_code=401)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guard


def submissions() -> tuple[ASGIApp, Jobs, Numbers]:
    """An app with marked routes of every kind, its jobs, and whose they ran as."""
    every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    jobs = virtual_jobs()
    inner = Starlette(
        routes=[
            slow_route(echo, "/echo", methods=every),
            slow_route(echo, "/preferred", methods=every, respond="preferred"),
            slow_route(echo, "/waits", methods=every, wait=3),
            slow_route(echo, "/narrow", methods=every, max_running=1, max_queued=1),
            slow_route(echo, "/held", methods=every, max_running=1, hold=True),
            slow_route(echo, "/small", methods=every, max_request_size=8),
            slow_route(echo, "/items/{number:int}", methods=["POST"]),
            Route("/ruled", echo, methods=["POST"]),
            Route("/ruled/{name}", echo, methods=every),
        ]
    )
    inner.router.redirect_slashes = False
    inner.state.numbers = numbers = Numbers()
    rules = {"POST /ruled": Policy(), "/ruled/{name}": Policy(respond="preferred", wait=1)}
    app = LongRunningMiddleware(signed(guarded(inner)), routes=rules, jobs=jobs)
    return numbers.around(app), jobs, numbers


PATHS = [
    *("/echo", "/preferred", "/waits", "/narrow", "/held", "/small", "/items/7", "/items/x"),
    *("/ruled", "/ruled/a", "/nowhere", "/jobs", "/jobs/"),
]

paths = mostly(st.sampled_from(PATHS), st.builds("{}{}".format, st.sampled_from(PATHS), any_text))


@pytest.mark.one_loop
@given(
    sequence=st.lists(
        st.tuples(requests(mostly(st.sampled_from(["GET", "POST", "PUT"]), methods)), paths),
        min_size=REQUESTS,
        max_size=REQUESTS,
    )
)
@fuzzed(default=40, most=1200)
async def test_submissions_are_answered_and_what_is_accepted_ends(
    sequence: list[tuple[Wild, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    app, jobs, numbers = submissions()
    async with lifespan(app):
        exchanges = [(wild, wild.at(path)) for wild, path in sequence]
        async with anyio.create_task_group() as group:
            for _, request in exchanges:
                group.start_soon(request.run, app)
        for wild, request in exchanges:
            if wild.leaves is not None and not request.sent:
                event("left")
                continue  # the client left before it was accepted
            answer = Answer.to(request)
            event(f"{answer.status}")
            await check_submission(app, answer, wild)
        await settled()
        statistics = jobs.statistics()
        assert (statistics.running, statistics.queued) == (0, 0)
    assert numbers.wrong == []
    check_silence(caplog)


async def check_submission(app: ASGIApp, answer: Answer, wild: Wild) -> None:
    """What every answer to a submission must be; the job behind it ends with the right body."""
    ours = (answer.get(b"content-type") or b"").startswith(b"application/problem+json")
    assert ours or answer.status < 500
    if ours:
        assert answer.status in (400, 404, 405, 413, 422, 429, 503)
        name = answer.check_problem(wild.method)
        if answer.status in (429, 503):
            assert answer.get(b"retry-after") is not None
        if answer.status == 503 and wild.method != "HEAD":
            assert name in REFUSED
    if answer.status not in (202, 303):
        return
    url = (answer.get(b"location") or b"").decode()
    if answer.status == 202:
        assert answer.get(b"retry-after") is not None
        assert answer.get(b"cache-control") == b"no-store"
        if wild.method != "HEAD":
            document = answer.document()
            assert document["links"]["result"] == url
            assert document["status"] in ("queued", "running")
    result = await ended(app, url)
    assert result.stored, result
    if result.status == 200:
        assert result.body == b"".join(wild.body)


async def test_messages_that_are_no_answer_are_noticed() -> None:
    """The checks themselves: two starts, or no final body, are no answer."""
    start: Message = {"type": "http.response.start", "status": 200, "headers": []}
    body: Message = {"type": "http.response.body", "body": b"x"}
    wrong = ([start], [start, start, body], [start, {**body, "more_body": True}], [body, body])
    for messages in wrong:

        async def app(
            scope: Scope, receive: Receive, send: Send, messages: list[Message] = messages
        ) -> None:
            for message in messages:
                await send(message)

        request = RawRequest()
        await request.run(app)
        with pytest.raises(AssertionError):
            Answer.to(request)
