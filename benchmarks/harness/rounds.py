"""Rounds: two sides take turns under the same load, A B B A, on servers that are new each time."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.work import ORDER

from harness.environments import Environments
from harness.loading import Load
from harness.processes import BENCHMARKS, Child, Cores, Failed, Server, spell
from harness.report import Goal, Row

# Slices that each side gets in a round; an even number, so that A B B A comes out even.
SLICES = 4

# Seconds of load on a new server before it is measured.
WARM_UP = 0.3

BODY = json.dumps(ORDER)


@dataclass(frozen=True)
class Side:
    """An app, and what it needs.

    Attributes:
        name: what it is called in the table.
        app: `module:app`, or with settings `module:factory`.
        settings: what the factory is called with.
        environment: the virtual environment that it runs in; empty: this interpreter's.
        worker: the arguments of its interpreter that start its worker, if it has one.
        service: `"redis"` or `"postgres"`, if it needs one; it finds it in the environment
            variable `REDIS_URL` or `POSTGRES_URL`.
        variables: further ones of its environment.
    """

    name: str
    app: str
    settings: Mapping[str, Any] | None = None
    environment: str = "raincheck"
    worker: str = ""
    service: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two sides and what is asked of them.

    Attributes:
        measure: the measure that it is part of.
        title: what it is called in the table.
        ours, theirs: the two sides.
        goal: for the ratio of ours to theirs.
        method, path, status: what is asked, and what must be answered every time.
        job: post here first, and ask for the job's status URL instead of `path`.
        follow: submit, poll and read the result, instead of asking for one route.
        clients: connections at once.
        floor: the least rate that ours must have besides.
    """

    measure: str
    title: str
    ours: Side
    theirs: Side
    goal: Goal | None = None
    method: str = "GET"
    path: str = ""
    status: int = 200
    job: str | None = None
    follow: bool = False
    clients: int = 32
    floor: Goal | None = None


@dataclass(frozen=True)
class Sample:
    """One side of one round.

    Attributes:
        rate: answers a second; of `follow`, jobs a second.
        cost: microseconds of the server's own processor time for each.
    """

    rate: float
    cost: float


@dataclass
class Bench:
    """What all measures use.

    Attributes:
        load: the process that makes the load.
        cores: who runs where.
        environments: of the peers; None: everything in this interpreter.
        folder: for files that go when the benchmark ends.
        rounds: how many; five at least for a result.
        seconds: of load for each side of a round.
        every: seconds between two polls of a job.
    """

    load: Load
    cores: Cores
    folder: Path
    environments: Environments | None = None
    rounds: int = 5
    seconds: float = 2.0
    every: float = 0.01
    _logs: int = field(default=0, init=False)

    def python(self, environment: str) -> Path | str:
        """The interpreter of an environment."""
        if self.environments is None or not environment:
            return sys.executable
        return self.environments.python(environment)

    def log(self) -> Path:
        """A new file for what a process says."""
        self._logs += 1
        return self.folder / f"{self._logs}.log"

    @contextmanager
    def service(self, role: str) -> Iterator[str]:
        """A server for stores and queues; where it is."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            command = [self.python("services"), BENCHMARKS / "harness/services.py", role]
            with Child([*command, Path(folder) / role], log=self.log(), gently=True) as child:
                yield child.hear().strip()

    @contextmanager
    def serving(self, side: Side, **variables: str) -> Iterator[Running]:
        """A side's server, and its service unless `variables` say where that is."""
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder))
            variables = {"FOLDER": folder, **side.variables, **variables}
            name = f"{side.service.upper()}_URL"
            if side.service and name not in variables:
                variables[name] = stack.enter_context(self.service(side.service))
            server = Server(
                side.app,
                side.settings,
                python=self.python(side.environment),
                core=self.cores.server,
                variables=variables,
                log=self.log(),
            )
            yield Running(self, side, stack.enter_context(server), variables)

    def compare(self, comparison: Comparison) -> Iterator[Row]:
        """All rounds of a comparison."""
        rounds = [self.round(comparison, number) for number in range(self.rounds)]
        return self.rows(comparison, rounds)

    def rows(
        self, comparison: Comparison, rounds: Sequence[tuple[Sample, Sample]]
    ) -> Iterator[Row]:
        """What the rounds of a comparison come to."""
        ours, theirs = ([pair[side] for pair in rounds] for side in (0, 1))
        ratios = [one.rate / other.rate for one, other in rounds]
        yield Row(
            comparison.measure,
            comparison.title,
            ratios,
            comparison.goal,
            ours=_rate(ours),
            theirs=f"{_rate(theirs)}, {comparison.theirs.name}",
            rounds=[
                {"ours": vars(one), "theirs": vars(other), "ratio": one.rate / other.rate}
                for one, other in rounds
            ],
            costs=[other.cost / one.cost for one, other in rounds],
        )
        if comparison.floor is not None:
            title = f"{comparison.title}: by itself"
            rates = [sample.rate for sample in ours]
            yield Row(comparison.measure, title, rates, comparison.floor, form=".0f")

    def round(self, comparison: Comparison, number: int) -> tuple[Sample, Sample]:
        """One round on two new servers: ours and theirs."""
        with ExitStack() as stack:
            sides = []
            for side in (comparison.ours, comparison.theirs):
                running = stack.enter_context(self.serving(side))
                if comparison.follow and side.worker:
                    running.child = stack.enter_context(running.worker())
                sides.append((running, running.prepare(comparison)))
                if running.child is not None:
                    running.child.pause()
            return self.turns(comparison, sides, number)

    def turns(
        self, comparison: Comparison, sides: Sequence[tuple[Running, list[str]]], number: int
    ) -> tuple[Sample, Sample]:
        """Slices of load in turns, on the two servers of a round."""
        for running, requests in sides:
            running.press(comparison, requests, WARM_UP)
            running.server.answered, running.server.elapsed = 0, 0.0
        spent = [running.server.processor_seconds() for running, _ in sides]
        for turn in range(SLICES):
            forwards = (turn + number) % 2 == 0
            for running, requests in sides if forwards else reversed(sides):
                running.press(comparison, requests, self.seconds / SLICES)
        samples = []
        for (running, _), before in zip(sides, spent, strict=True):
            server = running.server
            cost = (server.processor_seconds() - before) / server.answered * 1e6
            samples.append(Sample(server.answered / server.elapsed, cost))
        for running, _ in sides:
            running.check(comparison)
        ours, theirs = samples
        return ours, theirs


@dataclass
class Running:
    """A side whose server runs.

    Attributes:
        child: its worker, if that runs too; it is paused while the other side is measured.
    """

    bench: Bench
    side: Side
    server: Server
    variables: Mapping[str, str]
    child: Child | None = None

    def worker(self) -> Child:
        """The side's worker, on any core."""
        command = [self.bench.python(self.side.environment), *self.side.worker.split()]
        return Child(command, variables=self.variables, log=self.bench.log())

    def prepare(self, comparison: Comparison) -> list[str]:
        """What to ask, once it is certain that it works."""
        if comparison.job is not None:
            finished = comparison.status == 200
            path = self.server.start_job(comparison.job, BODY, finished=finished)
            return [spell(comparison.method, path)]
        if comparison.method == "POST":
            with ExitStack() as stack:
                if self.side.worker and not comparison.follow:
                    stack.enter_context(self.worker())  # only submissions are measured then
                self.server.start_job(comparison.path, BODY, finished=True)
            return [spell("POST", comparison.path, BODY)]
        self.check(comparison)
        return [spell(comparison.method, comparison.path)]

    def press(self, comparison: Comparison, requests: list[str], seconds: float) -> None:
        """A slice of load."""
        load, server = self.bench.load, self.server
        if self.child is not None:
            self.child.resume()
        if comparison.follow:
            answer = load.ask(
                "follow",
                server,
                requests=requests,
                every=self.bench.every,
                clients=comparison.clients,
                seconds=seconds,
                most=50_000,
            )
            server.answered += answer["answered"]
            server.elapsed += answer["elapsed"]
        else:
            load.press(
                server,
                requests,
                status=comparison.status,
                clients=comparison.clients,
                seconds=seconds,
            )
        if self.child is not None:
            self.child.pause()

    def check(self, comparison: Comparison) -> None:
        """After the load it still does what it should: jobs run to their end."""
        if comparison.method == "GET" and comparison.job is None:
            status, _, body = self.server.ask("GET", comparison.path)
            if status != comparison.status:
                raise Failed(f"{self.side.app} answered {status}: {body!r}{self.server.said()}")
        elif comparison.method == "POST" and not self.side.worker:
            self.server.start_job(comparison.path, BODY, finished=True)


def _rate(samples: Sequence[Sample]) -> str:
    rate = statistics.median(sample.rate for sample in samples)
    cost = statistics.median(sample.cost for sample in samples)
    return f"{rate:.0f}/s, {cost:.0f} µs"
