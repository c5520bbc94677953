"""How raincheck's rates and memory grow: with the jobs in the store, and with the app's routes.

    python benchmarks/growth.py [--rounds 5] [--seconds 1] [--largest 1000000] [--docs docs]

Needs Python and pip; makes its virtual environments as `compare.py` does. Two plots, written as
SVG, and one JSON file of everything:

- `growth-jobs.svg`: accepted jobs a second, polls a second and memory against the finished jobs in
  the store (10² to 10⁶, 1 KB of body each), for the memory store and for SQLite;
- `growth-routes.svg`: requests a second of a route that is not marked, with raincheck and without,
  accepted jobs and polls a second, and memory, against the routes of a Starlette app (1 to 1000).

All sizes are served at once and take turns under the load, there and back, so that whatever else
the machine does meets all. Lines are medians over the rounds, bands reach from the lowest to the
highest. What is accepted stays in the store: a point stands over the number of jobs that were
there in the middle of its load.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.absolutes import polls_of, raincheck
from harness.environments import ROOT, Environments, folder
from harness.loading import MOST, Load
from harness.processes import BENCHMARKS, Cores, Failed, Server, spell
from harness.report import circumstances
from harness.rounds import BODY, Bench, Side

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
STORES = {"memory": "memory store", "sqlite": "SQLite store"}
ROUTES = (1, 3, 10, 30, 100, 300, 1000)
MIB = 1024**2

# Requests that warm a server up; as many jobs are accepted at least in a slice of load.
WARM_UP = 500


@dataclass
class Curve:
    """One line of a plot.

    Attributes:
        panel: what it shows.
        name: its legend.
        points: by the number it is plotted over at first, all that was measured: x and y.
    """

    panel: str
    name: str
    points: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, key: int, x: float, y: float) -> None:
        self.points.setdefault(key, []).append((x, y))

    def json(self) -> dict[str, Any]:
        """Medians, and lowest and highest, in the order of x."""
        rows = [
            {
                "x": statistics.median(x for x, _ in found),
                "y": statistics.median(y for _, y in found),
                "lowest": min(y for _, y in found),
                "highest": max(y for _, y in found),
            }
            for found in self.points.values()
        ]
        rows.sort(key=lambda row: row["x"])
        return {"panel": self.panel, "name": self.name, "points": rows}


def pressed(bench: Bench, server: Server, requests: list[str], status: int, most: int) -> float:
    """The rate of one slice of load."""
    server.answered, server.elapsed = 0, 0.0
    bench.load.press(server, requests, status=status, clients=32, seconds=bench.seconds, most=most)
    return server.answered / server.elapsed


def there_and_back(bench: Bench, sizes: Iterable[int]) -> Iterator[int]:
    """Every size once in a round, every second time backwards."""
    sizes = list(sizes)
    for number in range(bench.rounds):
        yield from sizes if number % 2 else reversed(sizes)


def resident(server: Server) -> float:
    """MiB that the server really uses."""
    server.ask("GET", "/settle")
    return server.memory() / MIB


def against_jobs(bench: Bench, store: str, sizes: Sequence[int]) -> list[Curve]:
    """Rates and memory with more and more jobs in one store."""
    name = STORES[store]
    accepts = Curve("accepted jobs a second", name)
    polls = Curve("polls a second", name)
    memory = Curve("memory of the server, MiB", name)
    post = [spell("POST", "/reports", BODY)]
    with ExitStack() as stack:
        servers: dict[int, Server] = {}
        for size in sizes:
            print(f"filling the {store} store with {size} jobs", file=sys.stderr, flush=True)
            running = stack.enter_context(bench.serving(raincheck(store, jobs=size)))
            running.server.ask("GET", "/hello", patience=3600.0)
            servers[size] = running.server
        for size, server in servers.items():
            pressed(bench, server, polls_of(size), 200, WARM_UP)
            memory.add(size, size, resident(server))
        for size in there_and_back(bench, servers):
            polls.add(size, size, pressed(bench, servers[size], polls_of(size), 200, MOST))
        there = {}
        for size, server in servers.items():
            pressed(bench, server, post, 202, WARM_UP)
            there[size] = size + server.answered
        for size in there_and_back(bench, servers):
            rate = pressed(bench, servers[size], post, 202, max(WARM_UP, size // 10))
            answered = servers[size].answered
            accepts.add(size, there[size] + answered / 2, rate)
            there[size] += answered
    return [accepts, polls, memory]


def against_routes(bench: Bench, counts: Sequence[int]) -> list[Curve]:
    """Rates and memory with more and more routes in a Starlette app."""
    unmarked, memory = "unmarked route, requests a second", "memory of the server, MiB"
    names = {True: "with raincheck", False: "without"}
    hello = {there: Curve(unmarked, name) for there, name in names.items()}
    taken = {there: Curve(memory, name) for there, name in names.items()}
    accepts = Curve("jobs, requests a second", "accepted")
    polls = Curve("jobs, requests a second", "polls")
    with ExitStack() as stack:
        servers: dict[tuple[int, bool], Server] = {}
        for count in counts:
            for there in names:
                settings = {"routes": count, "raincheck": there}
                side = Side("", "peers.routed_app:starlette", settings)
                server = stack.enter_context(bench.serving(side)).server
                pressed(bench, server, [spell("GET", "/hello")], 200, WARM_UP)
                taken[there].add(count, count, server.memory() / MIB)
                servers[count, there] = server
        jobs = {c: servers[c, True].start_job("/work0", BODY, finished=True) for c in counts}
        for count in there_and_back(bench, counts):
            for there, curve in hello.items():
                server = servers[count, there]
                curve.add(count, count, pressed(bench, server, [spell("GET", "/hello")], 200, MOST))
            server = servers[count, True]
            post = [spell("POST", "/work0", BODY)]
            accepts.add(count, count, pressed(bench, server, post, 202, MOST))
            polls.add(count, count, pressed(bench, server, [spell("GET", jobs[count])], 200, MOST))
    return [*hello.values(), accepts, polls, *taken.values()]


def draw(bench: Bench, figures: list[dict[str, Any]], docs: Path) -> None:
    """Have matplotlib draw, in an environment of its own."""
    command = [str(bench.python("plots")), str(BENCHMARKS / "harness/plots.py"), str(docs)]
    subprocess.run(command, input=json.dumps(figures), text=True, check=True)


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all processes are ended
    sizes = [size for size in SIZES if size <= arguments.largest]
    environments, cores = Environments(arguments.environments), Cores.here()
    with tempfile.TemporaryDirectory() as files, Load(cores.load) as load:
        bench = Bench(load, cores, Path(files), environments, arguments.rounds, arguments.seconds)
        stores = [against_jobs(bench, store, sizes) for store in STORES]
        drawn: dict[str, tuple[str, list[Curve]]] = {
            "growth-jobs.svg": ("finished jobs in the store", [*stores[0], *stores[1]]),
            "growth-routes.svg": ("routes in the app", against_routes(bench, ROUTES)),
        }
        figures = [
            {"file": file, "x": x, "curves": [curve.json() for curve in curves]}
            for file, (x, curves) in drawn.items()
        ]
        draw(bench, figures, arguments.docs)
        facts = {**circumstances(), "rounds": bench.rounds, "seconds a slice": bench.seconds}
        results = {**facts, "versions": environments.versions(), "figures": figures}
        file = arguments.json or environments.folder / "growth.json"
        file.write_text(json.dumps(results, indent=1) + "\n")
    for name, fact in facts.items():
        print(f"- {name}: {fact}")
    for figure in figures:
        print(f"\n{table(figure)}")
    print(f"\nAll of it: {file}")


def table(figure: dict[str, Any]) -> str:
    """What a plot shows, as Markdown."""
    lines = [f"| {figure['x']} | | median | lowest | highest |", "|---|---|---|---|---|"]
    for curve in figure["curves"]:
        for at in curve["points"]:
            numbers = " | ".join(f"{at[name]:.0f}" for name in ("y", "lowest", "highest"))
            lines.append(f"| {at['x']:.0f} | {curve['panel']}, {curve['name']} | {numbers} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for a result")
    parser.add_argument("--seconds", type=float, default=1.0, help="of load, each size and round")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="jobs in a store at most")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the plots go")
    parser.add_argument("--json", type=Path, help="where everything is written")
    parser.add_argument("--environments", type=Path, default=folder(), help="kept between runs")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"error: {error}")
