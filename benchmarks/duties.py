"""Which duty of a store on a server costs what: the floor, with one duty after the other on top.

    python benchmarks/duties.py [--store postgres,redis] [--rounds 5] [--seconds 0.5]

Needs `pip install raincheck[dev]`. Every step is an app of `peers/floor_stores.py` under a real
uvicorn; all of a store share one server of it, and take turns in short slices, forwards and
backwards (see `harness/rounds.py`). Shown are the rate against the first step in the same round, as
the median of the rounds, and microseconds of processor time for an accepted job that runs to its
end: of the app's process, and of all processes of the store's server. The last row is raincheck.

Rates say how the two share two cores; processor time is the steadier figure, and what a duty adds
is the difference of two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.absolutes import raincheck
from harness.loading import Load
from harness.processes import BENCHMARKS, Child, Cores
from harness.report import circumstances
from harness.rounds import WARM_UP, Bench, Comparison, Running, Side
from peers.floor_stores import DUTIES

SAID = "one table with a primary key, or one hash; written twice, the second time compared"


@dataclass
class Step:
    """A side, and what was measured of it round by round.

    Attributes:
        name: in the table.
        said: what it does that the one before does not.
        running: its server.
        requests: what that is asked.
        rates: jobs a second.
        jobs: how many in all.
        own: seconds of the app's process for them.
        served: the same of the store's server.
    """

    name: str
    said: str
    running: Running
    requests: list[str]
    rates: list[float] = field(default_factory=list)
    jobs: int = 0
    own: float = 0.0
    served: float = 0.0


def sides(store: str) -> Iterator[tuple[str, str, Side]]:
    """What is measured of a store."""
    for number, (name, said) in enumerate({"floor": SAID, **DUTIES[store]}.items()):
        settings = {"store": store, "duties": number}
        side = Side(name, "peers.floor_stores:build", settings, "", service=store)
        yield f"{number} {name}", said, side
    ours = raincheck(store)
    yield (
        "raincheck",
        "how it is built",
        Side(ours.name, ours.app, ours.settings, "", service=store),
    )


@dataclass(frozen=True)
class Service:
    """A server of a store.

    Attributes:
        url: where it is.
        folder: where it keeps its files, and its processes stay.
    """

    url: str
    folder: Path

    def spent(self) -> float:
        """Seconds of processor time of all its processes, those that have ended as well."""
        ticks = 0
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):  # it has just ended, or is somebody else's
                if (entry / "cwd").readlink().is_relative_to(self.folder):
                    words = (entry / "stat").read_text().rpartition(")")[2].split()
                    ticks += sum(map(int, words[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(bench: Bench, store: str) -> Iterator[Service]:
    """A server of a store."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        command = [sys.executable, BENCHMARKS / "harness/services.py", store]
        place = Path(folder) / store
        with Child([*command, place], log=bench.log(), gently=True) as child:
            yield Service(child.hear().strip(), place)


def slice_of(step: Step, service: Service, comparison: Comparison, seconds: float) -> None:
    """Measure a step once."""
    running, requests, server = step.running, step.requests, step.running.server
    running.press(comparison, requests, WARM_UP)
    server.answered, server.elapsed = 0, 0.0
    own, its = server.processor_seconds(), service.spent()
    running.press(comparison, requests, seconds)
    step.rates.append(server.answered / server.elapsed)
    step.jobs += server.answered
    step.own += server.processor_seconds() - own
    step.served += service.spent() - its


def measure(bench: Bench, store: str) -> list[Step]:
    """All steps of a store."""
    with ExitStack() as stack:
        service = stack.enter_context(served(bench, store))
        steps = []
        for name, said, side in sides(store):
            comparison = Comparison("", name, side, side, None, "POST", "/orders", 202)
            variables = {f"{store.upper()}_URL": service.url}
            running = stack.enter_context(bench.serving(side, **variables))
            steps.append(Step(name, said, running, running.prepare(comparison)))
        for number in range(bench.rounds):
            for step in steps if number % 2 == 0 else reversed(steps):
                slice_of(step, service, comparison, bench.seconds)
            print(f"{store}: round {number + 1}", file=sys.stderr, flush=True)
        return steps


def show(store: str, steps: list[Step]) -> None:
    """Print a table."""
    print(f"\n| {store} | rate | app, µs | server, µs | more | what is added |")
    print("|---|---|---|---|---|---|", flush=True)
    before = 0.0
    for step in steps:
        ratios = [one / first for one, first in zip(step.rates, steps[0].rates, strict=True)]
        own, its = (seconds / step.jobs * 1e6 for seconds in (step.own, step.served))
        more = f"{own + its - before:+.0f}" if before else ""
        before = own + its
        rate = statistics.median(ratios)
        print(f"| {step.name} | {rate:.2f} | {own:.0f} | {its:.0f} | {more} | {step.said} |")
    print(f"\nthe first step: {statistics.median(steps[0].rates):.0f}/s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", default="postgres,redis")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of load, each step and round")
    arguments = parser.parse_args()
    for name, fact in circumstances().items():
        print(f"- {name}: {fact}")
    cores = Cores.here()
    with tempfile.TemporaryDirectory() as files, Load(cores.load) as load:
        bench = Bench(load, cores, Path(files), rounds=arguments.rounds, seconds=arguments.seconds)
        for store in arguments.store.split(","):
            show(store, measure(bench, store))
    return 0


if __name__ == "__main__":
    sys.exit(main())
