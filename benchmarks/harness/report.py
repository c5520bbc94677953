"""What a benchmark says: the machine, the figures with their spread, and whether goals are met."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, where the system says it."""
    mounts = []
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            if folder.resolve().is_relative_to(where):
                mounts.append((len(where), kind))
    return max(mounts)[1] if mounts else "unknown"


def circumstances() -> dict[str, Any]:
    """When and where this is measured."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": processor(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "file system of databases": file_system(Path(tempfile.gettempdir())),
    }


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median, and lowest and highest."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


@dataclass(frozen=True)
class Goal:
    """A bound for the median.

    Attributes:
        bound: the number.
        least: whether it is the least or the most.
        unit: what it is a number of.
    """

    bound: float
    least: bool = True
    unit: str = ""

    def met(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:g} {self.unit}".rstrip()


@dataclass
class Row:
    """One figure.

    Attributes:
        measure: which measure it belongs to, as `--only` names it.
        title: what it is.
        values: the figure, round by round.
        goal: what its median must reach, if anything.
        ours, theirs: what it was made of, for the table.
        form: how to write the figure.
        rounds: everything that was measured, for the file.
        note: why there is no figure.
        costs: of a ratio of rates, the ratio of the servers' processor time for one answer, theirs
            over ours: the same where nothing but the servers is slow, and steadier.
    """

    measure: str
    title: str
    values: list[float] = field(default_factory=list)
    goal: Goal | None = None
    ours: str = ""
    theirs: str = ""
    form: str = ".2f"
    rounds: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    costs: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool | None:
        """None: no goal, or no figure."""
        if self.goal is None or not self.values:
            return None
        return self.goal.met(statistics.median(self.values))

    def markdown(self) -> str:
        """A row of the table."""
        figure = spread(self.values, self.form) if self.values else self.note
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        goal = "" if self.goal is None else str(self.goal)
        cost = spread(self.costs) if self.costs else ""
        cells = (self.title, self.ours, self.theirs, figure, goal, met, cost)
        return f"| {' | '.join(cells)} |"

    def json(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "measure": self.measure,
            "title": self.title,
            "values": self.values,
            "median": statistics.median(self.values) if self.values else None,
            "costs": self.costs,
            "goal": None if self.goal is None else str(self.goal),
            "met": self.met,
            "rounds": self.rounds,
            "note": self.note,
        }


HEAD = (
    "| measure | raincheck | against | figure | goal | met | by processor time |\n"
    "|---|---|---|---|---|---|---|"
)
