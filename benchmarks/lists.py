"""What it takes to list jobs of which a store has many, and what each write pays for that.

    python benchmarks/lists.py [--store all] [--jobs 100000] [--asked 100] [--seed 1]
    python benchmarks/lists.py --writes TREE [--store all] [--rounds 10] [--each 1000]

Needs `pip install raincheck[dev]`. The stores are memory, an SQLite file, Valkey and PostgreSQL as
they come. Of 100,000 jobs, accepted within a day by ten routes and for 300 owners of which some
have many and some have few, 90 % have succeeded, 6 % failed, 2 % were cancelled, 1.6 % wait and
0.4 % run. Every filter is asked for in turn, its first page and one of its last, of 50 jobs each,
as an operator does: by `GET /jobs` at the middleware itself, so that to write the answer counts as
well. The run fails (exit status 1) if the 95th percentile of any of them is 50 ms or more.

With `--writes` it measures the life of a job (created, started, finished with a body of 100 bytes)
by calls of the store, one after the other, with this version and with the one in another tree, such
as a checkout of the last commit before lists. Both take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parent
BOUND = 50.0
"""Milliseconds that the 95th percentile has to stay below."""

NOW = 1.8e9
DAY = 86400.0
OUTCOMES = (0.016, 0.02, 0.90 + 0.02, 0.98)  # up to which part they wait, run, succeed, fail
ROUTES = [f"app.endpoints.route_{number}" for number in range(10)]
STORES = ("memory", "sqlite", "redis", "postgres")


@contextmanager
def service(name: str, folder: str) -> Iterator[str]:
    """Where a store is, as long as it lasts."""
    if name in ("memory", "sqlite"):
        yield str(Path(folder) / "jobs.db")
        return
    command = [sys.executable, str(HERE / "harness" / "services.py"), name, folder]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        server.wait()


def store_of(name: str, url: str, deployment: str) -> Any:
    """A store of this kind."""
    if name == "memory":
        from raincheck import MemoryStore

        return MemoryStore(max_bytes=1 << 34)
    if name == "sqlite":
        from raincheck.stores.sqlite import SQLiteStore

        return SQLiteStore(f"{url}-{deployment}")
    if name == "redis":
        from raincheck.stores.redis import RedisStore

        return RedisStore(url, deployment=deployment)
    from raincheck.stores.postgres import PostgresStore

    return PostgresStore(url, deployment=deployment, schema=f"raincheck_{deployment}")


# --- lists ------------------------------------------------------------------------------------


async def fill(store: Any, jobs: int, seed: int) -> None:
    """Put jobs of all kinds into a store, several at once."""
    from raincheck import Job
    from raincheck.ids import Ids

    choose, mint = random.Random(seed), Ids("/jobs").mint
    owners = [f"user-{number}" for number in range(300)]
    weights = [1 / (rank + 1) for rank in range(len(owners))]
    numbers = iter(range(jobs))

    async def some() -> None:
        for number in numbers:
            owner = choose.choices([None, *owners], [1.0, *weights])[0]
            route = choose.choices(ROUTES, [2.0**-rank for rank in range(len(ROUTES))])[0]
            job = Job.accepted(
                mint(), route, NOW - DAY * (1 - number / jobs), runs=False, owner=owner
            )
            if store.shared:  # as it ends, for the same lists and half the time
                await store.create(versions(job, choose)[-1])
                continue
            await store.create(job)
            for version in versions(job, choose):
                await store.replace(version)

    await asyncio.gather(*(some() for _ in range(32)))


def versions(job: Any, choose: random.Random) -> list[Any]:
    """What becomes of a job, in as many versions as it takes."""
    from raincheck import Progress, State
    from raincheck.errors import crashed
    from raincheck.messages import CapturedResponse

    luck, ended = choose.random(), {"ttl": 7 * DAY, "tombstone_ttl": DAY}
    if luck < OUTCOMES[0]:
        return [job.confirm()]
    started = job.start(job.created_at + 1, "somebody")
    reported = started.with_progress(Progress.of(0.4, "2 of 5"))
    if luck < OUTCOMES[1]:
        return [started, reported]
    now = reported.started_at + choose.lognormvariate(1, 1)
    if luck < OUTCOMES[2]:
        headers = ((b"content-type", b"application/json"), (b"content-length", b"0"))
        ended["response"] = CapturedResponse(200, headers, 0)
        return [started, reported, reported.finish(State.SUCCEEDED, now, **ended)]
    if luck < OUTCOMES[3]:
        return [started, reported, reported.finish(State.FAILED, now, error=crashed(), **ended)]
    return [started, reported, reported.finish(State.CANCELLED, now, **ended)]


def filters() -> Iterator[tuple[str, dict[str, Any]]]:
    """What is asked for, and what it is called."""
    yield "everything", {}
    for word in ("queued", "running", "canceling", "succeeded", "failed", "canceled"):
        yield word, {"status": word}
    yield "queued or running", {"status": "queued,running"}
    yield "failed or canceled or queued", {"status": "failed,canceled,queued"}
    yield "a common route", {"route": ROUTES[0]}
    yield "a rare route", {"route": ROUTES[-1]}
    yield "failed, a rare route", {"route": ROUTES[-1], "status": "failed"}
    yield "an owner of many", {"owner": "user-0"}
    yield "an owner of few", {"owner": "user-299"}
    yield "failed, an owner of many", {"owner": "user-0", "status": "failed"}
    yield "failed, an owner of few", {"owner": "user-299", "status": "failed"}
    yield "an owner, a route, failed", {"owner": "user-9", "route": ROUTES[2], "status": "failed"}
    yield "nobody's", {"owner": "nobody"}
    hour = {"created_since": stamp(NOW - 13 * 3600), "created_before": stamp(NOW - 12 * 3600)}
    yield "an hour of yesterday", hour
    yield "failed, an hour of yesterday", {**hour, "status": "failed"}


def stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


async def asked(app: Any, path: str, query: str) -> dict[str, Any]:
    """What `GET` of a path says, without a server between."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "headers": [], "client": ("127.0.0.1", 1), "server": ("localhost", 80),
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return dict(json.loads(sent[1]["body"]))


async def measure(name: str, url: str, arguments: argparse.Namespace) -> int:
    """Print what a store takes; how many of them are too slow."""
    from starlette.applications import Starlette

    from raincheck import Jobs, LongRunningMiddleware, Pages
    from raincheck.serialization import dump_cursor

    store = store_of(name, url, "lists")
    before = time.perf_counter()
    await fill(store, arguments.jobs, arguments.seed)
    await store.sweep(NOW)
    print(f"{name}: {arguments.jobs} jobs in {time.perf_counter() - before:.0f} s", flush=True)
    jobs = Jobs(store=store, clock=lambda: NOW)
    app = LongRunningMiddleware(
        Starlette(), jobs=jobs, pages=Pages(operator=lambda connection: True)
    )
    deep = dump_cursor(NOW - 0.9 * DAY, "~")
    questions = [("totals", "/jobs/totals", "")]
    for what, query in filters():
        questions.append((what, "/jobs", urlencode({**query, "limit": 50})))
        questions.append((f"{what}, deep", "/jobs", urlencode({**query, "cursor": deep})))
    taken: dict[str, list[float]] = {what: [] for what, _, _ in questions}
    found: dict[str, int] = {}
    gc.collect()
    for _ in range(arguments.asked):
        for what, path, query in questions:
            start = time.perf_counter()
            said = await asked(app, path, query)
            taken[what].append(1000 * (time.perf_counter() - start))
            found[what] = len(said.get("jobs", said.get("routes", ())))
    slow = 0
    for what, times in taken.items():
        cuts = statistics.quantiles(times, n=20)
        slow += cuts[-1] >= BOUND
        mark = "  TOO SLOW" if cuts[-1] >= BOUND else ""
        print(f"  {what:<36}{found[what]:>4} jobs {cuts[9]:>7.2f} {cuts[-1]:>7.2f} ms{mark}")
    await jobs.close()
    await store.aclose()
    return slow


# --- writes -----------------------------------------------------------------------------------


async def live(name: str, url: str, deployment: str, lives: int, seed: str) -> None:
    """Print how many microseconds each life of a job took, in this process."""
    from raincheck import Job, State
    from raincheck.messages import CapturedResponse

    store = store_of(name, url, deployment)
    response = CapturedResponse(200, ((b"content-type", b"text/plain"),), 100)
    taken = []
    gc.collect()
    for number in range(-100, lives):
        job = Job.accepted(f"{seed}-{number}".ljust(30, "x"), ROUTES[number % 10], NOW, runs=False)
        job = job._replace(owner=f"user-{number % 50}")
        start = time.perf_counter()
        await store.create(job, lease=30.0)
        job = job.start(NOW + 1, "somebody")
        await store.replace(job, lease=30.0)
        job = job.finish(State.SUCCEEDED, NOW + 2, ttl=DAY, tombstone_ttl=DAY, response=response)
        await store.replace(job, tail=b"x" * 100)
        if number >= 0:
            taken.append(1e6 * (time.perf_counter() - start))
    await store.aclose()
    print(statistics.median(taken))


def writes(name: str, url: str, arguments: argparse.Namespace) -> None:
    """Print what the life of a job takes in both trees, in turns."""
    trees = {"without lists": arguments.writes, "with lists": HERE.parent}
    taken: dict[str, list[float]] = {which: [] for which in trees}
    for number in range(arguments.rounds):
        for which, tree in list(trees.items())[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, "--live", which.replace(" ", "_"), "--url", url]
            command += ["--store", name, "--each", str(arguments.each), "--seed", str(number)]
            variables = {**os.environ, "PYTHONPATH": str(Path(tree) / "src")}
            said = subprocess.run(
                command, env=variables, check=True, capture_output=True, text=True
            )
            taken[which].append(float(said.stdout))
    before, after = (statistics.median(times) for times in taken.values())
    for which, times in taken.items():
        spread = f"{min(times):.0f} to {max(times):.0f}"
        print(f"  {name:<10}{which:<14}{statistics.median(times):>8.0f} µs a job ({spread})")
    print(f"  {name:<10}{'':<14}{after - before:>+8.0f} µs, {after / before - 1:+.1%}", flush=True)


def main() -> None:
    arguments = parse()
    if arguments.live:
        kind, _, _ = arguments.store.partition(",")
        asyncio.run(live(kind, arguments.url, arguments.live, arguments.each, str(arguments.seed)))
        return
    slow = 0
    for name in STORES if arguments.store == "all" else arguments.store.split(","):
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="raincheck-lists-"))
            url = stack.enter_context(service(name, folder))
            if arguments.writes:
                writes(name, url, arguments)
            else:
                slow += asyncio.run(measure(name, url, arguments))
    if slow:
        sys.exit(f"{slow} took {BOUND:g} ms or more at the 95th percentile")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", default="all", help="one, or several with commas between them")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--asked", type=int, default=100, help="how often each is asked for")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--writes", metavar="TREE", help="measure writes against this source tree")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=1000, help="jobs in a round")
    parser.add_argument("--live", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
