"""Which duty costs what: the floor, with one duty after the other on top of it.

    python benchmarks/floor.py [--of jobs] [--only 0,5,22] [--json FILE]

Needs `pip install raincheck` and valgrind. Every step is an app of `peers/floor_app.py`, in a
process without an HTTP server, and is counted in machine instructions as by `profile.py
--instructions`: they are the same from run to run, to about a thousandth, whatever else the
machine does. The first table is of an accepted job, the second of polls: of a pending job and of
one that has finished with 1 KB (`--of jobs`, `--of polls`: one of them). In each the last two steps
are no duties, but how raincheck is built: an object for each that owns something, and as many calls
from one to the next (`ROOMS` there and the like say how many raincheck makes more; `walks.py
--calls` shows them). Below them stand an app that sends a constant, the two by hand and raincheck
itself. `--only` takes some steps of an accepted job. A few minutes on two cores.

The tables stand in docs/floors.md: what is printed goes there as it is, and the sentences below it
say what it says.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from profile import count

from compare import CONSTANT, HANDFULL, HANDWRITTEN
from harness.absolutes import raincheck
from harness.report import circumstances
from harness.rounds import Side
from peers import LEAN
from peers.floor_app import DUTIES, POLL_DUTIES, POLLED

JOBS, POLLS = ("accepted job",), ("poll, pending", "poll, finished")

OURS = "raincheck"
BESIDE = {
    "a constant": CONSTANT,
    "(a) by hand": HANDWRITTEN,
    "(a+) by hand, with our duties": HANDFULL,
    OURS: raincheck(),
}


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: of the step.
        side: what is counted.
        said: what is added.
    """

    name: str
    side: Side
    said: str = ""


def step(duties: int, polls: int = 0) -> Side:
    """The floor with the first so many duties."""
    name = f"floor {duties} {polls}"
    return Side(name, "peers.floor_app:build", {"duties": duties, "polls": polls})


def of_jobs(only: list[int]) -> list[Row]:
    """The steps of an accepted job."""
    said = {"floor": "its own task, detached, recorded, our exact 202", **DUTIES}
    rows = [Row(f"{n} {name}", step(n), added) for n, (name, added) in enumerate(said.items())]
    return [rows[number] for number in only] if only else rows


def of_polls() -> list[Row]:
    """The steps of a poll."""
    names = ["floor", *DUTIES]
    rows = [
        Row("0 floor", step(0), "the document, or the response that was recorded"),
        Row(f"{LEAN} {names[LEAN]}", step(LEAN), "all to here, of which polls have seven"),
        Row(f"{POLLED} {names[POLLED]}", step(POLLED), "and `routes`, `rest` and `newest`"),
    ]
    for n, (name, said) in enumerate(POLL_DUTIES.items(), 1):
        rows.append(Row(f"{POLLED} + {n} {name}", step(POLLED, n), said))
    return rows


def table(rows: list[Row], measures: tuple[str, ...], at_once: int) -> dict[str, dict[str, int]]:
    """Print a table; the instructions by measure and row."""
    rows = [*rows, *(Row(name, side) for name, side in BESIDE.items())]
    rows[-1] = replace(rows[-1], said="what is left")
    columns = " | ".join(f"{measure} | more | against (a)" for measure in measures)
    print(f"\n| step | {columns} | what is added |")
    print("|---" * (3 * len(measures) + 2) + "|", flush=True)
    found: dict[str, dict[str, int]] = {measure: {} for measure in measures}
    with ThreadPoolExecutor(at_once) as pool:
        hands = {each: pool.submit(count, HANDWRITTEN, each) for each in measures}
        counts = {row.name: [pool.submit(count, row.side, e) for e in measures] for row in rows}
        last = ""
        for row in rows:
            cells = []
            for measure, counting in zip(measures, counts[row.name], strict=True):
                taken = found[measure][row.name] = counting.result()
                adds = last and (row.name == OURS or row.name not in BESIDE)
                more = f"{taken - found[measure][last]:+,}" if adds else ""
                cells.append(f"{taken:,} | {more} | {taken / hands[measure].result():.2f}")
            print(f"| {row.name} | {' | '.join(cells)} | {row.said} |", flush=True)
            if row.name not in BESIDE:
                last = row.name
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--of", choices=("jobs", "polls"), help="which table; default both")
    parser.add_argument("--only", default="", help="steps of jobs, with commas between them")
    parser.add_argument("--json", type=Path, help="where the counts are written")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("error: there is no valgrind on the PATH")
    facts, found = circumstances(), dict[str, dict[str, int]]()
    print(f"- {facts['date']}, Python {facts['python']}; instructions for one request")
    if arguments.of != "polls":
        only = [int(number) for number in arguments.only.split(",") if number]
        found |= table(of_jobs(only), JOBS, arguments.at_once)
    if arguments.of != "jobs":
        found |= table(of_polls(), POLLS, arguments.at_once)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**facts, "instructions": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
