"""Which duty of an accepted job costs what: the floor, with one duty after the other on top of it.

    python benchmarks/floor.py [--only 0,5,22] [--json FILE]

Needs `pip install raincheck` and valgrind. Every step is an app of `peers/floor_app.py`, in a
process without an HTTP server, and is counted in machine instructions as by `profile.py
--instructions`: they are the same from run to run, to about a thousandth, whatever else the
machine does. The last two steps are no duties, but how raincheck is built: an object for each that
owns something, and as many calls from one to the next. Below them stand the two by hand and
raincheck itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from profile import count

from compare import HANDFULL, HANDWRITTEN
from harness.absolutes import raincheck
from harness.report import circumstances
from harness.rounds import Side
from peers.floor_app import DUTIES

MEASURE = "accepted job"

BESIDE = {
    "(a) by hand": HANDWRITTEN,
    "(a+) by hand, with our duties": HANDFULL,
    "raincheck": raincheck(),
}


def step(duties: int) -> Side:
    """The floor with the first so many duties."""
    return Side(f"floor {duties}", "peers.floor_app:build", {"duties": duties})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--only", default="", help="steps, with commas between them; default all")
    parser.add_argument("--json", type=Path, help="where the counts are written")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("error: there is no valgrind on the PATH")
    chosen = [int(number) for number in arguments.only.split(",") if number]
    steps = chosen or list(range(len(DUTIES) + 1))
    facts = circumstances()
    print(f"- {facts['date']}, Python {facts['python']}; instructions for one {MEASURE}\n")
    print("| step | instructions | more | against (a) | what is added |\n|---|---|---|---|---|")
    with ThreadPoolExecutor(arguments.at_once) as pool:
        counted = partial(count, measure=MEASURE)
        beside = dict(zip(BESIDE, pool.map(counted, BESIDE.values()), strict=True))
        names, hand, before = [*DUTIES], beside["(a) by hand"], 0
        found: dict[str, int] = {}
        for number, taken in zip(steps, pool.map(counted, map(step, steps)), strict=True):
            name = names[number - 1] if number else "floor"
            said = DUTIES[name] if number else "its own task, detached, recorded, our exact 202"
            more = f"{taken - before:+,}" if found else ""
            print(
                f"| {number} {name} | {taken:,} | {more} | {taken / hand:.2f} | {said} |",
                flush=True,
            )
            found[name] = before = taken
    for name, taken in beside.items():
        more, said = "", ""
        if name == "raincheck":
            more, said = f"{taken - before:+,}", "what is left"
        print(f"| {name} | {taken:,} | {more} | {taken / hand:.2f} | {said} |")
    if arguments.json is not None:
        counts = {**found, **beside}
        arguments.json.write_text(json.dumps({**facts, "instructions": counts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
