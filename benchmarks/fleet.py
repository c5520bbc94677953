"""A fleet under faults: real brokers, real worker processes, and nothing may be lost.

    python benchmarks/fleet.py [--broker redis|nats|rabbitmq|all] [--jobs 2000] [--workers 3]
    python benchmarks/fleet.py --broker celery|celery-rabbitmq --rate 30

Needs `pip install raincheck[dev]`; for RabbitMQ also `apt-get install rabbitmq-server`, whose node
is started here, in a folder and on ports of its own.

A web server accepts jobs while `taskiq worker` processes run them, or Celery's, with a pool of
threads. Meanwhile one worker is killed every second (SIGKILL, and replaced), one is stopped for
longer than its lease and goes on, and the broker is killed once and started again: Valkey as a
broker keeps nothing, so that all that waits in it is gone. The store is another Valkey. Nine of ten
jobs may run again (`on_interrupt="rerun"`), the tenth may not. After `--kills` workers there is
peace. The run fails unless

- each accepted job has an outcome that its client has read: its response, or of those that may not
  run twice a 502, or a 503 if their worker stopped in time;
- it is still the same, byte for byte, when every stopped worker has had its say;
- it is that of the newest run that began;
- no job began twice that may not.

How often jobs ran more than once is counted: an engine runs a job at least once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.fleet import Fleet, Worker
from tests.servers import Missing

BROKERS = ("redis", "nats", "rabbitmq")  # of taskiq

CELERYS = {"celery": "redis", "celery-rabbitmq": "rabbitmq"}
"""Celery, and its broker."""

VERSIONS = ("taskiq", "taskiq-redis", "taskiq-nats", "taskiq-aio-pika", "celery", "redis")

# Seconds after its acceptance in which a job must have its outcome.
PATIENCE = 300.0

# Seconds of work, evenly spread.
SHORTEST, LONGEST = 0.1, 1.5


@dataclass
class Accepted:
    """A job, and what its client saw."""

    url: str
    once: bool
    since: float
    status: int = 0
    body: bytes = b""
    took: float = 0.0

    @property
    def id(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass
class Run:
    """What happened."""

    jobs: list[Accepted] = field(default_factory=list)
    refused: int = 0
    kills: int = 0
    outage: float = 0.0
    paused: float = 0.0
    elapsed: float = 0.0


class Faults:
    """Kills, pauses and restarts until all jobs have an outcome."""

    def __init__(self, fleet: Fleet, run: Run, arguments: argparse.Namespace) -> None:
        self._fleet, self._run, self._arguments = fleet, run, arguments
        self._chance = random.Random(arguments.seed)
        self._workers = [fleet.worker() for _ in range(arguments.workers)]
        self._spared: Worker | None = None

    async def listening(self) -> None:
        for worker in self._workers:
            await asyncio.to_thread(worker.wait)

    async def kill(self) -> None:
        """One worker after the other, each replaced at once."""
        while self._run.kills < self._arguments.kills:
            await asyncio.sleep(self._arguments.every)
            ready = [
                worker
                for worker in self._workers
                if worker is not self._spared and worker.ready in worker.said()
            ]
            if ready:  # else this second's has not even started
                victim = self._chance.choice(ready)
                self._workers.remove(victim)
                await asyncio.to_thread(victim.kill)
                self._workers.append(self._fleet.worker())
                self._run.kills += 1

    async def pause(self) -> None:
        """One worker with jobs under way, for longer than its lease."""
        await self._reach(0.2)
        worker = None
        while worker is None:
            await asyncio.sleep(0.05)
            ready = [one for one in self._workers if one.begins in one.said()]
            worker = self._chance.choice(ready) if ready else None
        self._spared = worker
        start = time.monotonic()
        worker.tell(signal.SIGSTOP)
        await asyncio.sleep(2 * self._arguments.lease + 1)
        worker.tell(signal.SIGCONT)
        self._run.paused = time.monotonic() - start
        await asyncio.sleep(self._arguments.lease)  # it tells what it has made meanwhile
        self._spared = None

    async def restart(self) -> None:
        """The broker, with all that waits in it."""
        await self._reach(0.5)
        broker = self._fleet.broker
        assert broker is not None
        start = time.monotonic()
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)
        self._run.outage = time.monotonic() - start

    async def _reach(self, part: float) -> None:
        while len(self._run.jobs) < part * self._arguments.jobs:  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.05)


async def clients(client: httpx.AsyncClient, run: Run, arguments: argparse.Namespace) -> None:
    """Start all jobs, evenly, and follow each to its outcome."""
    chance = random.Random(arguments.seed)
    async with asyncio.TaskGroup() as group:
        for number in range(arguments.jobs):
            await asyncio.sleep(1 / arguments.rate)
            seconds = chance.uniform(SHORTEST, LONGEST)
            group.create_task(follow(client, run, number, seconds))


async def follow(client: httpx.AsyncClient, run: Run, number: int, seconds: float) -> None:
    """Start a job, again and again until it is accepted, and wait for its outcome."""
    once = number % 10 == 0
    url = f"{'/once' if once else '/work'}?seconds={seconds:.2f}"
    while (response := await client.post(url, content=f"{number}")).status_code != 202:
        if response.status_code != 503:
            raise SystemExit(f"error: {response.status_code} {response.text}")
        run.refused += 1
        await asyncio.sleep(0.5)
    job = Accepted(response.headers["location"], once, time.monotonic())
    run.jobs.append(job)
    while time.monotonic() < job.since + PATIENCE:
        try:
            response = await client.get(job.url, headers={"prefer": "wait=10"})
        except httpx.RemoteProtocolError:  # the server closes what was idle, and was slow to say so
            continue
        if response.status_code != 202:
            job.status, job.body = response.status_code, response.content
            job.took = time.monotonic() - job.since
            return


def wrong(job: Accepted, again: httpx.Response, began: list[int]) -> str:
    """What is wrong with a job; nothing, as it should be."""
    if not job.status:
        return "lost"
    if (again.status_code, again.content) != (job.status, job.body):
        return "overwritten"
    if job.once:
        if len(began) > 1:
            return "run twice, which it may not"
        return "" if job.status in (200, 502, 503) else f"answered {job.status}"
    if job.status != 201:
        return f"answered {job.status}"
    newest = max(began, default=0)
    found = json.loads(job.body)["fence"]
    return "" if found == newest else f"of run {found}, not {newest}"


async def measure(broker: str, folder: Path, arguments: argparse.Namespace) -> bool:
    engine = "celery" if broker in CELERYS else "taskiq"
    lease = str(arguments.lease)
    fleet = Fleet(folder, CELERYS.get(broker, broker), engine, RAINCHECK_TEST_LEASE=lease)
    run = Run()
    try:
        fleet.start()
        web = fleet.web()
        faults = Faults(fleet, run, arguments)
        await asyncio.to_thread(web.wait)
        await faults.listening()
        # uvicorn closes what was idle for five seconds, and so may meet a request on its way.
        limits = httpx.Limits(max_connections=400, keepalive_expiry=2)
        async with httpx.AsyncClient(
            base_url=web.client.base_url, timeout=PATIENCE, limits=limits
        ) as client:
            start = time.monotonic()
            plagues = [
                asyncio.create_task(plague())
                for plague in (faults.kill, faults.pause, faults.restart)
            ]
            await clients(client, run, arguments)
            run.elapsed = time.monotonic() - start
            plagues[0].cancel()
            await asyncio.gather(*plagues[1:])
            await asyncio.sleep(2 * arguments.lease)  # let everybody go on who can
            began: dict[str, list[int]] = {}
            for _, id, fence, _ in fleet.notes("begin"):
                began.setdefault(id, []).append(int(fence))
            problems: Counter[str] = Counter()
            for job in run.jobs:
                again = await client.get(job.url)
                if problem := wrong(job, again, began.get(job.id, [])):
                    problems[problem] += 1
        tell(broker, run, began, len(fleet.notes("end")), problems)
        return not problems
    finally:
        fleet.close()


def tell(
    broker: str, run: Run, began: dict[str, list[int]], ends: int, problems: Counter[str]
) -> None:
    took = sorted(job.took for job in run.jobs)
    outcomes = Counter(job.status for job in run.jobs)
    runs = sum(len(fences) for fences in began.values())
    rerun = sum(not job.once for job in run.jobs)
    print(f"{broker}:")
    rows: dict[str, Any] = {
        "accepted": len(run.jobs),
        "outcomes": ", ".join(f"{count} x {status}" for status, count in sorted(outcomes.items())),
        "lost": problems["lost"],
        "overwritten": problems["overwritten"],
        "other problems": dict(problems - Counter(lost=10**9, overwritten=10**9)),
        "workers killed": run.kills,
        "worker paused": f"{run.paused:.1f} s",
        "broker away": f"{run.outage:.1f} s",
        "refused (503) and sent again": run.refused,
        "runs begun": runs,
        "runs more than jobs": runs - len(began),
        "runs that came to their end twice": max(0, ends - rerun),
        "seconds": f"{run.elapsed:.1f}",
        "acceptance to outcome": f"p50 {statistics.median(took):.2f} s, "
        f"p99 {took[int(0.99 * (len(took) - 1))]:.1f} s, max {took[-1]:.1f} s",
    }
    for name, value in rows.items():
        print(f"  {name:34}{value}")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--broker", choices=(*BROKERS, *CELERYS, "all"), default="all")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two kills")
    parser.add_argument("--kills", type=int, default=60, help="workers killed at most")
    parser.add_argument("--lease", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=100.0, help="submissions a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="where to keep what the servers said")
    arguments = parser.parse_args()
    found = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {found}")
    print(f"load average {os.getloadavg()[0]:.1f}\n", flush=True)
    wanted = BROKERS if arguments.broker == "all" else (arguments.broker,)
    good = True
    for broker in wanted:
        with tempfile.TemporaryDirectory() as kept:
            folder = (arguments.logs or Path(kept)) / broker
            folder.mkdir(parents=True)
            try:
                good = asyncio.run(measure(broker, folder, arguments)) and good
            except Missing as missing:
                raise SystemExit(f"error: {missing}") from None
    sys.exit(not good)


if __name__ == "__main__":
    main()
