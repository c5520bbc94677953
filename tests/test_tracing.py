"""OpenTelemetry: a span where a job is accepted, and for each run one in a trace of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import Jobs, Limits, LongRunningMiddleware, Policy, State, long_running
from raincheck.job import Job, Trace
from raincheck.runtime.observers import Observers
from raincheck.serialization import dump, load
from raincheck.telemetry.opentelemetry import OpenTelemetryTelemetry
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE, fleet, two
from tests.doubles.stores import Line, SharedMemory, TrickyStore, failing
from tests.support import Gate, app_of, client_of, gated, hidden, running, settled, slow_route

pytestmark = pytest.mark.anyio

CLIENT = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{CLIENT}-b7ad6b7169203331-01"


class Tracing:
    """An SDK of its own, and what it has seen."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.telemetry = OpenTelemetryTelemetry(
            tracer_provider=self.provider,
            meter_provider=MeterProvider(metric_readers=[self._reader]),
        )
        self._tracer = self.provider.get_tracer("app")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is kind]

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """One of the app's own."""
        with self._tracer.start_as_current_span(name):
            yield

    def points(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """Each metric's points: their attributes, and sum, count and bounds, or the value."""
        data: Any = self._reader.get_metrics_data()
        found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = getattr(point, "value", None)
                        if value is None:
                            value = point.count, point.sum, tuple(point.explicit_bounds)
                        found.setdefault(metric.name, []).append((dict(point.attributes), value))
        return found


@pytest.fixture
def tracing() -> Tracing:
    return Tracing()


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else int(span.parent.span_id)


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def linked(span: ReadableSpan) -> tuple[str, int]:
    (link,) = span.links
    return f"{link.context.trace_id:032x}", link.context.span_id


def place(span: ReadableSpan) -> tuple[str, int]:
    return trace_of(span), id_of(span)


def check(tracing: Tracing, *, jobs: int, runs: int) -> None:
    """So many jobs were accepted, and run so often: each run has its trace, and leads back."""
    created, processed = tracing.of(SpanKind.PRODUCER), tracing.of(SpanKind.CONSUMER)
    assert (len(created), len(processed)) == (jobs, runs)
    by_id = {span.attributes["messaging.message.id"]: span for span in created if span.attributes}
    traces = [trace_of(span) for span in processed]
    assert len({*traces, *map(trace_of, created)}) == runs + len({*map(trace_of, created)})
    for span in processed:
        assert span.parent is None
        assert span.attributes is not None
        assert linked(span) == place(by_id[span.attributes["messaging.message.id"]])
    # What handlers do is found in the trace of their run.
    handled = [span for span in tracing.spans if span.name == "handler"]
    assert sorted(trace_of(span) for span in handled) == sorted(traces)
    served = {id_of(span): parent_of(span) for span in tracing.of(SpanKind.SERVER)}
    above = [parent_of(span) for span in handled]  # itself, or what serves the replayed request
    assert {served.get(id or 0, id) for id in above} == {id_of(span) for span in processed}


def instrumented(app: ASGIApp, tracing: Tracing) -> ASGIApp:
    """The app inside what traces requests by their header fields, as FastAPI does."""

    async def traced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        fields = {name.decode(): value.decode() for name, value in scope["headers"]}
        parent = trace.propagation.tracecontext.TraceContextTextMapPropagator().extract(fields)
        tracer = tracing.provider.get_tracer("server")
        with tracer.start_as_current_span("server", parent, SpanKind.SERVER):
            await app(scope, receive, send)

    return traced


def seen(tracing: Tracing) -> Any:
    async def answer(request: Request) -> Any:
        with tracing.span("handler"):
            await anyio.sleep(1)
        return {name: request.headers.get(name) for name in ("traceparent", "tracestate")}

    return answer


# --- in place ------------------------------------------------------------------------------------


async def test_a_job_in_place_has_a_trace_of_its_own_that_leads_to_its_acceptance(
    tracing: Tracing,
) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry)
    async with running(app_of(slow_route(seen(tracing), name="report"), jobs=jobs)) as client:
        for _ in range(2):
            accepted = await client.post("/slow", headers={"traceparent": TRACEPARENT})
            assert (await follow(client, accepted)).json()["traceparent"] == TRACEPARENT
    check(tracing, jobs=2, runs=2)
    # Where nothing else traces, it is the client's trace that has the acceptance.
    (created, _), (processed, _) = tracing.of(SpanKind.PRODUCER), tracing.of(SpanKind.CONSUMER)
    assert (created.name, processed.name) == ("create report", "process report")
    assert trace_of(created) == CLIENT
    assert (created.attributes or {})["messaging.operation.type"] == "create"
    given = dict(processed.attributes or {})
    assert given.pop("messaging.message.id")
    assert given == {
        "messaging.system": "raincheck",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "report",
        "raincheck.route": "report",
        "raincheck.run": 1,
        "raincheck.state": "succeeded",
        "http.response.status_code": 200,
    }


async def test_the_acceptance_is_a_child_of_the_current_span(tracing: Tracing) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry)
    routes = Starlette(routes=[slow_route(seen(tracing))])
    app = LongRunningMiddleware(instrumented(routes, tracing), jobs=jobs)
    async with running(app) as client:
        accepted = await client.post("/slow", headers={"traceparent": TRACEPARENT})
        await follow(client, accepted)
    check(tracing, jobs=1, runs=1)
    (server,) = tracing.of(SpanKind.SERVER)
    (created,) = tracing.of(SpanKind.PRODUCER)
    assert parent_of(created) == id_of(server)
    assert trace_of(created) == trace_of(server) == CLIENT


async def test_under_a_path_rule_what_traces_the_app_goes_on_from_the_run(
    tracing: Tracing,
) -> None:
    async def report(request: Request) -> Response:
        return JSONResponse(await seen(tracing)(request))

    app = LongRunningMiddleware(
        instrumented(Starlette(routes=[Route("/slow", report, methods=["POST"])]), tracing),
        routes={"POST /slow": Policy()},
        jobs=virtual_jobs(telemetry=tracing.telemetry),
    )
    fields = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    async with running(app) as client:
        for _ in range(2):
            response = await follow(client, await client.post("/slow", headers=fields))
            assert response.json()["traceparent"].split("-")[1] != CLIENT
            assert response.json()["tracestate"] is None
    served, processed = tracing.of(SpanKind.SERVER), tracing.of(SpanKind.CONSUMER)
    assert {parent_of(span) for span in served} == {id_of(span) for span in processed}
    assert len({trace_of(span) for span in processed}) == 2


# --- queued, recovered, by an engine -------------------------------------------------------------


async def test_a_handler_that_is_replayed_is_in_the_span_of_its_run(tracing: Tracing) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry, limits=Limits(max_running=1))
    async with running(app_of(slow_route(seen(tracing)), jobs=jobs)) as client:
        with tracing.span("outside"):
            accepted = [await client.post("/slow") for _ in range(3)]
        for each in accepted:
            await follow(client, each)
    check(tracing, jobs=3, runs=3)


async def test_a_job_that_waited_is_replayed_in_a_trace_of_its_own(tracing: Tracing) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry, limits=Limits(max_running=1))
    routes = Starlette(routes=[slow_route(seen(tracing))])
    app = LongRunningMiddleware(instrumented(routes, tracing), jobs=jobs)
    fields = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    async with running(app) as client:
        with tracing.span("outside"):  # the context that the requests come in, and are replayed in
            accepted = [await client.post("/slow", headers=fields) for _ in range(3)]
            told = [(await follow(client, each)).json() for each in accepted]
    assert told[0] == fields
    check(tracing, jobs=3, runs=3)
    by_trace = {trace_of(span): span for span in tracing.of(SpanKind.CONSUMER)}
    for found in told[1:]:
        _, trace_id, span_id, _ = found["traceparent"].split("-")
        assert int(span_id, 16) == id_of(by_trace[trace_id])
        assert found["tracestate"] is None
    # Each of these two was served twice: to be accepted, in the client's trace, and in its run.
    served = [trace_of(span) for span in tracing.of(SpanKind.SERVER)]
    assert served.count(CLIENT) == 3
    assert len([each for each in served if each in by_trace]) == 2


async def test_a_replay_has_nothing_of_the_span_that_fastapi_had_outside(
    tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own middleware is outside of those that are added, and what it finds in the scope is
    what the routes inside write to."""

    async def answer(request: Request) -> Any:
        if (span := request.scope.get("fastapi.telemetry")) is not None:
            span.set_attribute("http.route", "/slow")
        await anyio.sleep(1)
        return "ok"

    inner = app_of(slow_route(answer), jobs=virtual_jobs(limits=Limits(max_running=1)))

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        with tracing.provider.get_tracer("fastapi").start_as_current_span("server") as span:
            await inner({**scope, "fastapi.telemetry": span}, receive, send)

    async with running(inner), client_of(outside) as client:
        for each in [await client.post("/slow") for _ in range(2)]:
            assert (await follow(client, each)).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.name != "raincheck"] == []


async def test_a_held_job_runs_in_a_trace_of_its_own(tracing: Tracing) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry, limits=Limits(max_running=1))
    async with running(app_of(slow_route(seen(tracing), hold=True), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        for each in accepted:
            await follow(client, each)
    check(tracing, jobs=2, runs=2)


async def test_a_job_that_another_process_takes_over_links_each_run_to_its_acceptance(
    tracing: Tracing,
) -> None:
    async with two(telemetry=tracing.telemetry) as both:
        accepted = await both.a.post("/rerun", headers={"traceparent": TRACEPARENT})
        await settled()
        both.line.cut()  # it hangs, and its run here comes to nothing
        await anyio.sleep(2 * LEASE)
        both.line.mend()
        both.gates["b"].open()
        await anyio.sleep(5)
        assert both.runs == ["a", "b"]
        assert await both.status(accepted) == "succeeded"
        both.gates["a"].open()
    created = tracing.of(SpanKind.PRODUCER)
    assert [trace_of(span) for span in created] == [CLIENT]
    processed = tracing.of(SpanKind.CONSUMER)
    assert [linked(span) for span in processed] == [place(created[0])] * 2
    assert len({trace_of(span) for span in processed}) == 2
    ends = {(span.attributes or {})["raincheck.run"]: span for span in processed}
    assert (ends[1].attributes or {})["error.type"] == "taken-over"
    assert ends[1].status.status_code is StatusCode.ERROR
    assert (ends[2].attributes or {})["raincheck.state"] == "succeeded"


async def test_a_process_that_looks_for_the_endpoint_does_so_in_no_trace_of_the_client(
    tracing: Tracing,
) -> None:
    store = SharedMemory()
    lines = [Line(store), Line(store)]

    def process(line: Line) -> LongRunningMiddleware:
        route = slow_route(seen(tracing), name="report", on_interrupt="rerun")
        jobs = virtual_jobs(telemetry=tracing.telemetry, store=line, limits=Limits(lease=LEASE))
        return LongRunningMiddleware(
            hidden(instrumented(Starlette(routes=[route]), tracing)), jobs=jobs
        )

    async with running(process(lines[0])) as a:
        accepted = await a.post("/slow", headers={"traceparent": TRACEPARENT})
        lines[0].cut()
        async with running(process(lines[1])) as b:
            await anyio.sleep(2 * LEASE)
            response = await b.get(accepted.headers["location"])
        lines[0].mend()
    assert response.json() == {"traceparent": None, "tracestate": None}
    assert len({trace_of(span) for span in tracing.of(SpanKind.CONSUMER)} - {CLIENT}) == 2
    assert [trace_of(span) for span in tracing.of(SpanKind.SERVER)].count(CLIENT) == 1


async def test_a_job_that_an_engine_runs_links_to_where_it_was_accepted(tracing: Tracing) -> None:
    async with fleet("a", telemetry=tracing.telemetry) as one:
        one.gates["a"].open()
        for _ in range(2):
            accepted = await one.web.post("/rerun", headers={"traceparent": TRACEPARENT})
            await anyio.sleep(2)
            assert await one.state(accepted) == "succeeded"
    created, processed = tracing.of(SpanKind.PRODUCER), tracing.of(SpanKind.CONSUMER)
    assert [trace_of(span) for span in created] == [CLIENT] * 2
    assert {linked(span) for span in processed} == {place(span) for span in created}
    assert len({trace_of(span) for span in processed} - {CLIENT}) == 2


@pytest.mark.real
async def test_a_handler_on_another_event_loop_is_in_the_span_of_its_run(tracing: Tracing) -> None:
    """As an `async def` view of Flask under a2wsgi, or one of Django's below `async_to_sync`."""

    @long_running(name="elsewhere")
    async def handler() -> str:
        with tracing.span("handler"):
            return "done"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        text = await anyio.to_thread.run_sync(lambda: asyncio.run(handler()))
        await PlainTextResponse(text)(scope, receive, send)

    async with running(
        LongRunningMiddleware(app, jobs=Jobs(telemetry=tracing.telemetry))
    ) as client:
        assert (await follow(client, await client.post("/slow"))).text == "done"
    check(tracing, jobs=1, runs=1)


# --- how they end --------------------------------------------------------------------------------


async def test_a_run_says_how_it_ended(tracing: Tracing) -> None:
    async def raises(request: Request) -> Any:
        raise LookupError("no such user")

    async def refuses(request: Request) -> Any:
        return PlainTextResponse("no", 422)

    async def never(request: Request) -> Any:
        await anyio.sleep_forever()

    app = app_of(
        slow_route(raises, "/raises"),
        slow_route(refuses, "/refuses"),
        slow_route(never, "/late", timeout=1),
        slow_route(never, "/never"),
        jobs=virtual_jobs(telemetry=tracing.telemetry),
    )
    async with running(app) as client:
        for path in ("/raises", "/refuses", "/late", "/never"):
            accepted = await client.post(path)
            if path == "/never":
                await client.post(accepted.headers["location"] + "/cancel")
            await follow(client, accepted)
    ends = {span.name.split()[1]: span for span in tracing.of(SpanKind.CONSUMER)}
    told = {name: (span.attributes or {}).get("error.type") for name, span in ends.items()}
    assert told == {
        "raises": "handler-response",  # Starlette has made a 500 of it
        "refuses": "handler-response",
        "late": "timeout",
        "never": None,
    }
    (raised,) = ends["raises"].events
    assert (raised.attributes or {})["exception.message"] == "no such user"
    assert (ends["never"].attributes or {})["raincheck.state"] == "cancelled"
    assert ends["never"].status.status_code is StatusCode.UNSET


async def test_a_request_that_the_store_does_not_take_says_why(tracing: Tracing) -> None:
    store = TrickyStore(failing("create"), shared=True)
    jobs = virtual_jobs(telemetry=tracing.telemetry, store=store)
    async with running(app_of(slow_route(seen(tracing)), jobs=jobs)) as client:
        assert (await client.post("/slow")).status_code == 503
    (created,) = tracing.of(SpanKind.PRODUCER)
    assert (created.attributes or {})["error.type"] == "store-unavailable"
    assert created.status.status_code is StatusCode.ERROR


# --- histograms ----------------------------------------------------------------------------------


async def test_waits_and_durations_are_measured_by_route(tracing: Tracing) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry, limits=Limits(max_running=1))
    async with running(app_of(slow_route(seen(tracing), name="report"), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        await settled()
        assert tracing.points()["raincheck.jobs.active"] == [({"raincheck.route": "report"}, 1)]
        for each in accepted:
            await follow(client, each)
    points = tracing.points()
    ((where, waits),) = points["raincheck.job.wait"]
    ((how, durations),) = points["raincheck.job.duration"]
    assert where == {"raincheck.route": "report"}
    assert how == {"raincheck.route": "report", "raincheck.state": "succeeded"}
    assert (waits[0], durations[0]) == (2, 2)
    assert waits[1] == pytest.approx(1, abs=0.5)
    assert durations[1] == pytest.approx(2, abs=0.5)
    assert waits[2] == durations[2]
    assert (waits[2][0], waits[2][-1]) == (0.1, 3600.0)
    assert points["raincheck.jobs.active"] == [({"raincheck.route": "report"}, 0)]


async def test_an_answer_that_is_only_kept_is_no_job(tracing: Tracing) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry)
    app = app_of(slow_route(seen(tracing), respond="preferred"), jobs=jobs)
    async with running(app) as client:
        assert (await client.post("/slow", headers={"idempotency-key": "a"})).status_code == 200
    assert [span.name for span in tracing.spans] == ["handler"]
    assert tracing.points() == {}


# --- without an SDK, and what is kept ------------------------------------------------------------


async def test_without_an_sdk_nothing_is_changed(tracing: Tracing) -> None:
    telemetry = OpenTelemetryTelemetry(tracer_provider=trace.NoOpTracerProvider())
    jobs = virtual_jobs(telemetry=telemetry, limits=Limits(max_running=1))
    fields = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    async with running(app_of(slow_route(seen(tracing)), jobs=jobs)) as client:
        accepted = [await client.post("/slow", headers=fields) for _ in range(2)]
        for each in accepted:
            assert (await follow(client, each)).json() == fields


async def test_the_place_in_the_trace_is_kept_with_the_job_and_is_short(tracing: Tracing) -> None:
    jobs = virtual_jobs(telemetry=tracing.telemetry)
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        for state, kept in (
            ("a=1,b=2", "a=1,b=2"),
            (",".join(f"{n}={'x' * 200}" for n in "abc"), ""),
        ):
            fields = {"traceparent": TRACEPARENT, "tracestate": state}
            job = await jobs.get((await client.post("/slow", headers=fields)).json()["job_id"])
            assert job is not None
            assert job.trace is not None
            assert job.trace.parent.split("-")[1] == CLIENT
            assert job.trace.state == kept
        gate.open()


def test_a_record_keeps_its_trace_to_the_end_and_a_tombstone_has_none() -> None:
    trace = Trace(TRACEPARENT, "a=1")
    job = Job.accepted("a", "r", 1.0, runs=False, replayable=True, trace=trace)
    assert load(dump(job)).trace == trace
    assert b"trace" not in dump(job._replace(trace=None))
    done = job.start(2.0).finish(State.SUCCEEDED, 3.0, ttl=1.0, tombstone_ttl=1.0)
    assert load(dump(done)).trace == trace
    assert done.tombstone(4.0).trace is None


async def test_a_telemetry_that_follows_nothing_is_not_asked() -> None:
    assert not Observers([]).follow
    assert Observers([Tracing().telemetry]).follow
