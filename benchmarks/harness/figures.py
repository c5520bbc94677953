"""Figures: each is measured once in every round, so that the rounds of all of them take turns."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.absolutes import raincheck
from harness.processes import BENCHMARKS, Failed, spell
from harness.report import Goal, Row
from harness.rounds import BODY, Bench, Comparison, Running, Sample


class Figure(Protocol):
    """What stands in one row of the table, or in a few that are measured together."""

    def round(self, number: int) -> None:
        """Measure it once more."""

    def rows(self) -> Iterator[Row]:
        """What the rounds came to."""


@dataclass
class Ratio:
    """Two sides under the same load."""

    bench: Bench
    comparison: Comparison
    rounds: list[tuple[Sample, Sample]] = field(default_factory=list)

    def round(self, number: int) -> None:
        self.rounds.append(self.bench.round(self.comparison, number))

    def rows(self) -> Iterator[Row]:
        return self.bench.rows(self.comparison, self.rounds)


@dataclass
class Once:
    """What is measured in the first round only: a count, or something with rounds of its own."""

    measure: Callable[[], Iterator[Row]]
    found: list[Row] = field(default_factory=list)

    def round(self, number: int) -> None:
        if not self.found:
            self.found.extend(self.measure())

    def rows(self) -> Iterator[Row]:
        return iter(self.found)


@dataclass
class Owners:
    """Polls and acceptances while jobs of many owners wait, against as many jobs of one.

    Attributes:
        waiting: how many jobs wait on each side.
    """

    bench: Bench
    waiting: int = 8000
    goal: Goal = field(default_factory=lambda: Goal(0.9))
    polls: list[tuple[Sample, Sample]] = field(default_factory=list)
    accepted: list[tuple[Sample, Sample]] = field(default_factory=list)

    def round(self, number: int) -> None:
        with ExitStack() as stack:
            sides = [
                (stack.enter_context(self.bench.serving(raincheck(owners=True))), owners)
                for owners in (self.waiting, 1)
            ]
            polls = [(running, [self._fill(running, owners)]) for running, owners in sides]
            self.polls.append(self.bench.turns(self._polling, polls, number))
            posts = [(running, [_queued(owners - 1)]) for running, owners in sides]
            self.accepted.append(self.bench.turns(self._accepting, posts, number))

    def _fill(self, running: Running, owners: int) -> str:
        """Let jobs wait; returns a poll of the last one."""
        server, jobs = running.server, [_queued(number) for number in range(owners)]
        every = {"clients": 32, "seconds": 120.0, "most": self.waiting}
        running.bench.load.press(server, jobs, status=202, **every)
        last = f"x-owner: {owners - 1}"
        status, headers, _ = server.ask("POST", "/queued", BODY, fields=[last])
        if status != 202 or server.answered < self.waiting:
            raise Failed(f"{server.answered} of {self.waiting} jobs wait; then came a {status}")
        return spell("GET", headers["location"], "", last)

    def _comparison(self, what: str) -> Comparison:
        """The load is given; at the end another job shows whether the app still does its work."""
        title = f"{self.waiting} owners with a job that waits: {what}"
        many, one = (replace(raincheck(owners=True), name=name) for name in ("many", "one owner"))
        return Comparison(
            "owners", title, many, one, self.goal, method="POST", path="/reports", status=202
        )

    @property
    def _polling(self) -> Comparison:
        return self._comparison("polls of one that waits")

    @property
    def _accepting(self) -> Comparison:
        return self._comparison("further jobs accepted")

    def rows(self) -> Iterator[Row]:
        yield from self.bench.rows(self._polling, self.polls)
        yield from self.bench.rows(self._accepting, self.accepted)


def _queued(owner: int) -> str:
    return spell("POST", "/queued", BODY, f"x-owner: {owner}")


def walked(
    bench: Bench, measure: str, walk: str, what: str, title: str, most: int
) -> Iterator[Row]:
    """A count of `walks.py`.

    Args:
        bench: where it is counted.
        measure: as `--only` names it.
        walk: which walk.
        what: which of its counts.
        title: what it is called in the table.
        most: its goal.
    """
    command = [str(bench.python("raincheck")), str(BENCHMARKS / "walks.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"walks.py: {done.stderr[-1000:]}")
    count = float(json.loads(done.stdout)[walk][what])
    yield Row(measure, title, [count], Goal(most, least=False), form=".0f")
