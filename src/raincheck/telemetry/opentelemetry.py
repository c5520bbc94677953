"""Telemetry by OpenTelemetry: a span where a job is accepted, one for each run, and histograms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from starlette.types import Scope

from raincheck.errors import Refusal
from raincheck.job import Job, State, Trace
from raincheck.telemetry.base import BUCKETS, Span, Telemetry, Transition, reason_of

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    raise ImportError(
        "OpenTelemetryTelemetry needs opentelemetry-api. Install it with: "
        "pip install raincheck[opentelemetry]"
    ) from _error

# The conventions for messaging are still in development: their names stand here and nowhere else.
SYSTEM = "messaging.system"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
JOB = "messaging.message.id"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
ERROR = "error.type"
ROUTE = "raincheck.route"
STATE = "raincheck.state"
RUN = "raincheck.run"

# Characters of a `tracestate` that is kept: as many as everybody has to pass on (W3C Trace Context,
# §3.3.1.5). A longer one is a client's way to fill the store, and left out.
_LONGEST_STATE = 512

_PROPAGATOR = TraceContextTextMapPropagator()


class OpenTelemetryTelemetry(Telemetry):
    """Traces jobs, and measures them, by whatever SDK the app has set up; without one it is idle.

    - A span `create {route}` of kind PRODUCER where a job is accepted: a child of the current span,
      or, where there is none, of the one that the request's `traceparent` names.
    - For each run a span `process {route}` of kind CONSUMER, with a trace of its own and a link to
      where the job was accepted, in this process or another, minutes ago or days. It is the current
      span of the handler; and a request that is replayed has its `traceparent` and `tracestate`,
      so that what instruments the app goes on from there.
    - `raincheck.job.wait` and `raincheck.job.duration`, histograms in seconds, and
      `raincheck.jobs.active`, how many run: by `raincheck.route`, the name of the route. The
      duration also by `raincheck.state` and, of what has failed, `error.type`.

    Args:
        tracer_provider: Default: the global one.
        meter_provider: Default: the global one.
    """

    states: ClassVar[Collection[State]] = frozenset(
        {State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED}
    )

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("raincheck", tracer_provider=tracer_provider)
        meter = metrics.get_meter("raincheck", meter_provider=meter_provider)
        self._wait = meter.create_histogram(
            "raincheck.job.wait",
            "s",
            "From the acceptance of a job to its first run.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._duration = meter.create_histogram(
            "raincheck.job.duration",
            "s",
            "How long the last run of a job took.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._repeated = meter.create_counter(
            "raincheck.job.repeats", "{run}", "Runs that failed, and whose jobs wait for another."
        )
        self._active = meter.create_up_down_counter(
            "raincheck.jobs.active", "{job}", "Jobs whose handlers run in this process."
        )

    def transition(self, change: Transition) -> None:
        job = change.job
        if job.synchronous:
            return
        if change.waited is not None:
            self._wait.record(change.waited, {ROUTE: job.route})
        if change.ran is not None:
            attributes = {ROUTE: job.route, STATE: job.state.value}
            if change.reason:
                attributes[ERROR] = change.reason
            self._duration.record(change.ran, attributes)

    def repeats(self, job: Job, reason: str) -> None:
        self._repeated.add(1, {ROUTE: job.route, ERROR: reason})

    def accepting(self, route: str, scope: Scope) -> Span | None:
        parent = None
        if not trace.get_current_span().get_span_context().is_valid:
            parent = _PROPAGATOR.extract(_fields(scope))
        attributes = _attributes("create", route)
        path = getattr(scope.get("route"), "path", None)
        if isinstance(path, str):
            attributes[HTTP_ROUTE] = path
        return _Span(
            self._tracer.start_span(
                f"create {route}", parent, trace.SpanKind.PRODUCER, attributes=attributes
            )
        )

    def running(self, job: Job) -> Span | None:
        attributes = _attributes("process", job.route) | {JOB: job.id, RUN: job.runs}
        span = self._tracer.start_span(
            f"process {job.route}",
            contexts.Context(),  # a trace of its own
            trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=_links(job.trace),
        )
        return _Run(span, self._active, job.route)


class _Span(Span):
    """The acceptance of a job."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.trace = _trace_of(span)

    def end(self, job: Job | None, error: BaseException | None = None) -> None:
        span = self._span
        if job is not None:
            span.set_attribute(JOB, job.id)
        if error is not None:
            kind = type(error).__qualname__
            span.set_attribute(ERROR, error.problem.name if isinstance(error, Refusal) else kind)
            span.set_status(trace.StatusCode.ERROR)
        span.end()


class _Run(Span):
    """A run of a job."""

    def __init__(self, span: trace.Span, active: metrics.UpDownCounter, route: str) -> None:
        self._span = span
        self._active = active
        self._route = route
        self.trace = _trace_of(span)
        active.add(1, {ROUTE: route})

    def enter(self) -> None:
        if self.trace is not None:
            contexts.attach(trace.set_span_in_context(self._span))

    def end(self, job: Job | None, error: BaseException | None = None) -> None:
        self._active.add(-1, {ROUTE: self._route})
        span = self._span
        if error is not None:
            span.record_exception(error)
        if job is not None:
            span.set_attribute(STATE, job.state.value)
            if job.response is not None:
                span.set_attribute(HTTP_STATUS, job.response.status)
            if failed := _failure(job):
                span.set_attribute(ERROR, failed)
                span.set_status(trace.StatusCode.ERROR)
        span.end()


def _failure(job: Job) -> str:
    """Why a run is no success; empty if it is one, or its client did not want it any more."""
    if job.state is State.QUEUED:
        return "interrupted" if job.not_before is None else "repeated"
    if not job.finished:
        return "taken-over"
    return reason_of(job)


def _attributes(operation: str, route: str) -> dict[str, str | int]:
    return {
        SYSTEM: "raincheck",
        OPERATION: operation,
        OPERATION_TYPE: operation,
        DESTINATION: route,
        ROUTE: route,
    }


def _fields(scope: Scope) -> dict[str, str]:
    """What a request says of its trace; two `tracestate` are one (W3C Trace Context, §3.3.1)."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        if raw in (b"traceparent", b"tracestate"):
            name, text = raw.decode(), value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if name in found else text
    return found


def _trace_of(span: trace.Span) -> Trace | None:
    """Where a span stands; None where nothing traces."""
    if not span.get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    state = carrier.get("tracestate", "")
    return Trace(carrier["traceparent"], state if len(state) <= _LONGEST_STATE else "")


def _links(kept: Trace | None) -> list[trace.Link]:
    if kept is None:
        return []
    carrier: Mapping[str, str] = {"traceparent": kept.parent, "tracestate": kept.state}
    found = trace.get_current_span(_PROPAGATOR.extract(carrier, contexts.Context()))
    context = found.get_span_context()
    return [trace.Link(context)] if context.is_valid else []
