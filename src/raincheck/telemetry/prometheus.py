"""Telemetry for Prometheus: what runs, waits and has ended, for whoever scrapes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import ClassVar

from raincheck.errors import ConfigurationError
from raincheck.job import Job, State
from raincheck.stores.base import Total
from raincheck.telemetry.base import BUCKETS, Figures, Source, Telemetry, Transition

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError(
        "PrometheusTelemetry needs prometheus-client. Install it with: "
        "pip install raincheck[prometheus]"
    ) from _error


class PrometheusTelemetry(Telemetry):
    """Counts jobs in a registry of prometheus-client's, which the app serves as it likes.

    Of the whole deployment, as the store had it a second or so ago, and the same from each process
    that shares it (aggregate with `max`, or scrape one):

    - `raincheck_jobs{route,state}`: how many there are; those that have ended count until they
      expire.
    - `raincheck_oldest_queued_seconds{route}`: how long the first one in the queue has waited.
    - `raincheck_figures_age_seconds`: how old these are. It grows while the store is away, and the
      others stay what they were.

    Of this process, each to be added up over all:

    - `raincheck_running`, `raincheck_waiting`: handlers that run, and requests that wait here.
    - `raincheck_accepted_total{route}`.
    - `raincheck_finished_total{route,outcome,reason}`: `outcome` is `succeeded`, `failed` or
      `cancelled`, and `reason` why it has failed: the name of a problem, or `handler-response`.
    - `raincheck_repeated_total{route,reason}`: runs that have failed and are repeated
      (`Policy(retry=...)`); `reason` is `handler-response`, `crashed` or `timeout`.
    - `raincheck_wait_seconds{route}`, `raincheck_run_seconds{route,outcome}`: histograms.
    - `raincheck_loop_held_seconds_total`: time that the event loop was held while jobs ran.

    A route is called by its name, which has no part of a URL that a client could choose. No id and
    no owner is a label. Answers that are kept for an `Idempotency-Key` are not counted.

    Args:
        registry: of prometheus-client. Default: its `REGISTRY`. Two middlewares in one process need
            one each.

    Raises:
        ConfigurationError: the registry has another one.

    Attributes:
        collector: what is registered for the figures and for what runs and waits, which do not
            go through files as the others do in the multiprocess mode of prometheus-client.
    """

    states: ClassVar[Collection[State]] = frozenset(State)
    figures = True

    def __init__(self, *, registry: CollectorRegistry = REGISTRY) -> None:
        self.collector: JobsCollector = JobsCollector()
        try:
            self._register(registry)
        except ValueError as error:
            raise ConfigurationError(
                "PrometheusTelemetry(registry=...): the registry has one already, or metrics of "
                "these names; make one in a process, or give each app that you make a registry of "
                f"its own: registry=CollectorRegistry() ({error})"
            ) from error

    def _register(self, registry: CollectorRegistry) -> None:
        self._accepted = Counter(
            "raincheck_accepted", "Jobs that were accepted here.", ["route"], registry=registry
        )
        self._finished = Counter(
            "raincheck_finished",
            "Jobs that have finished, by the word of this process.",
            ["route", "outcome", "reason"],
            registry=registry,
        )
        self._repeated = Counter(
            "raincheck_repeated",
            "Runs that have failed here, and whose jobs wait for another one.",
            ["route", "reason"],
            registry=registry,
        )
        self._wait = Histogram(
            "raincheck_wait_seconds",
            "From the acceptance of a job to its first run.",
            ["route"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._ran = Histogram(
            "raincheck_run_seconds",
            "How long the last run of a job took.",
            ["route", "outcome"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._held = Counter(
            "raincheck_loop_held_seconds",
            "Time that the event loop was held, a second or more at once, while jobs ran.",
            registry=registry,
        )
        registry.register(self.collector)

    def bind(self, source: Source) -> None:
        self.collector.bind(source)

    def transition(self, change: Transition) -> None:
        job = change.job
        if job.synchronous:
            return
        if change.before is None:
            self._accepted.labels(job.route).inc()
        if change.waited is not None:
            self._wait.labels(job.route).observe(change.waited)
        if change.ends:
            outcome = job.state.value
            self._finished.labels(job.route, outcome, change.reason).inc()
            if change.ran is not None:
                self._ran.labels(job.route, outcome).observe(change.ran)

    def repeats(self, job: Job, reason: str) -> None:
        self._repeated.labels(job.route, reason).inc()

    def held(self, seconds: float, routes: Collection[str]) -> None:
        self._held.inc(seconds)


class JobsCollector(Collector):
    """Reads what is at hand, when it is scraped: it neither waits nor asks the store."""

    def __init__(self) -> None:
        self._source: Source | None = None

    def bind(self, source: Source) -> None:
        """Belong to these jobs.

        Raises:
            ConfigurationError: it has others.
        """
        if self._source is not None:
            raise ConfigurationError(
                "telemetry=...: this PrometheusTelemetry belongs to other Jobs; make one for each, "
                "with a registry of its own: PrometheusTelemetry(registry=CollectorRegistry())"
            )
        self._source = source

    def describe(self) -> Iterator[Metric]:
        """Their names, for the registry."""
        yield from _of_the_store(None, 0.0)
        yield from _of_the_process(0, 0)

    def collect(self) -> Iterator[Metric]:
        """What it is now."""
        source = self._source
        if source is not None:
            here = source.statistics()
            yield from _of_the_store(source.figures, source.clock())
            yield from _of_the_process(here.running, here.queued)


def _of_the_store(figures: Figures | None, now: float) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(
        "raincheck_jobs", "Jobs in the store, of all processes.", labels=["route", "state"]
    )
    oldest = GaugeMetricFamily(
        "raincheck_oldest_queued_seconds",
        "How long the job that has waited longest has done so, over all processes.",
        labels=["route"],
    )
    age = GaugeMetricFamily(
        "raincheck_figures_age_seconds", "How old the figures of the store are."
    )
    if figures is None:
        age.add_metric([], float("inf"))
    else:
        for route in {route for route, _ in figures.totals}:
            for state in State:  # of those that there are none of as well: a series must not end
                found = figures.totals.get((route, state))
                jobs.add_metric([route, state.value], 0 if found is None else found.count)
            oldest.add_metric([route], _waited(figures.totals.get((route, State.QUEUED)), now))
        age.add_metric([], max(0.0, now - figures.at))
    yield from (jobs, oldest, age)


def _waited(queued: Total | None, now: float) -> float:
    return 0.0 if queued is None or queued.oldest is None else max(0.0, now - queued.oldest)


def _of_the_process(running: int, waiting: int) -> Iterator[Metric]:
    yield GaugeMetricFamily("raincheck_running", "Handlers that run in this process.", running)
    yield GaugeMetricFamily("raincheck_waiting", "Requests that wait in this process.", waiting)
