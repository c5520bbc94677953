"""What raincheck costs on the hot paths, against the same thing without it or written by hand.

    python benchmarks/core.py [--rounds 5] [--seconds 2] [--clients 32]

Needs `pip install raincheck uvicorn[standard]`; `compare.py` compares more, and needs more. Four
measures, each a ratio of requests a second:

- unmarked route: a JSON route of an app with the middleware and one marked route, over the same
  route of the same app without either;
- accepted jobs: a POST answered 202 while its handler goes on, over a hand-written 202 with
  `asyncio.create_task`, a dict and a status route;
- pending and finished polls: the status URL of a job that is held and of one whose result has
  1 KB, over the hand-written status route.

Every server is a real uvicorn (uvloop, httptools, one worker, no access log) in a process of its
own, new in every round; the load comes from another process over keep-alive connections. Where
the system allows it, servers have one core and the load has another. Within a round the two sides
take turns in short slices (A B B A), so that whatever else the machine does meets both. Shown are
the median over the rounds, and the lowest and highest round in brackets. The processor time that
a server spent on a request says the same, less disturbed by what else runs.

An answer of the wrong kind is an error: the run stops with exit status 1. A goal missed is not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from harness.loading import Load
from harness.processes import Cores, Failed
from harness.report import Goal, circumstances, spread
from harness.rounds import SLICES, Bench, Comparison, Sample, Side

VERSIONS = ("starlette", "uvicorn", "anyio", "cachetools", "uvloop", "httptools", "raincheck")

RAINCHECK = Side("raincheck", "peers.raincheck_app:build", {}, environment="")
BY_HAND = Side("by hand", "peers.handwritten_app:app", environment="")
WITH, WITHOUT = (
    Side(name, "peers.routed_app:starlette", {"routes": 1, "raincheck": with_it}, environment="")
    for name, with_it in (("raincheck", True), ("without", False))
)


def comparisons(clients: int) -> list[Comparison]:
    """The measures."""
    return [
        Comparison("", "unmarked route", WITH, WITHOUT, Goal(0.97), path="/hello", clients=clients),
        Comparison(
            "",
            "accepted jobs",
            RAINCHECK,
            BY_HAND,
            Goal(0.7),
            method="POST",
            path="/orders",
            status=202,
            clients=clients,
        ),
        *(
            Comparison(
                "",
                f"{name} polls",
                RAINCHECK,
                BY_HAND,
                Goal(1.0),
                status=status,
                job=job,
                clients=clients,
            )
            for name, status, job in (("pending", 202, "/never"), ("finished", 200, "/reports"))
        ),
    ]


def show(comparison: Comparison, rounds: list[tuple[Sample, Sample]]) -> bool:
    """Print a measure's row; returns whether its goal was met."""
    rates = [ours.rate / theirs.rate for ours, theirs in rounds]
    costs = [theirs.cost / ours.cost for ours, theirs in rounds]
    assert comparison.goal is not None
    met = comparison.goal.met(statistics.median(rates))
    ours, theirs = (
        f"{statistics.median(side.rate for side in sides):7.0f}/s "
        f"{statistics.median(side.cost for side in sides):5.0f} µs"
        for sides in zip(*rounds, strict=True)
    )
    print(
        f"{comparison.title:<15} {ours:>18} {theirs:>18}   {spread(rates):<18} "
        f"{spread(costs):<18} {comparison.goal.bound:>5.2f}  {'yes' if met else 'no'}",
        flush=True,
    )
    return met


def main() -> None:
    arguments = parse()
    facts = circumstances()
    print(f"date      {facts['date']}")
    print(f"machine   {facts['processor']}, {facts['cores']} cores, {facts['kernel']}")
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    print(f"versions  python {facts['python']}, {versions}")
    print(
        f"run       {arguments.rounds} rounds, {arguments.seconds:g} s a side in {SLICES} slices, "
        f"{arguments.clients} connections"
    )
    print()
    print(
        f"{'':<15} {'raincheck':>18} {'without, by hand':>18}   "
        f"{'ratio of rates':<18} {'of processor time':<18} {'goal':>5}  met",
        flush=True,
    )
    chosen = [c for c in comparisons(arguments.clients) if arguments.only in (None, c.title)]
    rounds: dict[str, list[tuple[Sample, Sample]]] = {c.title: [] for c in chosen}
    cores = Cores.here()
    with tempfile.TemporaryDirectory() as folder, Load(cores.load) as load:
        bench = Bench(load, cores, Path(folder), seconds=arguments.seconds)
        for number in range(arguments.rounds):
            for comparison in chosen:
                rounds[comparison.title].append(bench.round(comparison, number))
    met = {c.title: show(c, rounds[c.title]) for c in chosen}
    print()
    print("goals met: " + ", ".join(f"{title}: {'yes' if m else 'no'}" for title, m in met.items()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for a result")
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, each side and round")
    parser.add_argument("--clients", type=int, default=32, help="connections at once")
    parser.add_argument("--only", choices=[c.title for c in comparisons(1)], help="one measure")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"error: {error}")
