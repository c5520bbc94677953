"""Event streams: 2,000 of them on one process, each woken once for each change.

    python benchmarks/streams.py [--store all] [--streams 2000] [--steps 10] [--seconds 1]

Needs `pip install raincheck[dev]`. The server is a real uvicorn with one worker over each shared
store: an SQLite file, Valkey and PostgreSQL as in `crash.py`. All streams are of one job, and then
each of a job of its own; every handler reports each `--seconds`, and says when that was. The run
fails (exit status 1) unless every stream of a job has the same events, none comes to less than its
end, and nothing is sent but events and the comments of silent streams.

Shown are the seconds until all streams were open, what one takes of the server's memory, how many
events came to each, and how often something did; the time from a report to a client's knowing, and
the server's processor time for each event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from crash import STORES, Kept, show_circumstances  # which also lets the tests be found
from shared import spread
from tests.e2e.durable import Deployment, Line
from tests.e2e.listeners import Listener, many

TICKS = os.sysconf("SC_CLK_TCK")


def used(pid: int) -> tuple[float, float]:
    """The processor time that a process has had, in seconds, and its resident memory in KiB."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    (memory,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return (int(fields[11]) + int(fields[12])) / TICKS, float(memory)


class Run:
    """One load on one store.

    Attributes:
        figures: what is shown.
        violations: what was not as it was promised.
    """

    def __init__(self, deployment: Deployment, jobs: int, arguments: argparse.Namespace) -> None:
        self._deployment = deployment
        self._jobs = jobs
        self._arguments = arguments
        self.figures = ""
        self.violations: list[str] = []

    async def conduct(self) -> None:
        """Open the streams, let the handlers go, and see each stream to its end."""
        arguments, port = self._arguments, self._deployment.port
        order = {"steps": arguments.steps, "seconds": arguments.seconds}
        async with Line(port) as line:
            urls = []
            for _ in range(self._jobs):
                accepted = await line.ask("POST", "/steps", json.dumps(order).encode())
                urls.append(accepted.document()["links"]["events"])
            (pid,) = self._deployment.pids()
            before = used(pid)
            start = time.monotonic()
            paths = urls * (arguments.streams // self._jobs)
            listeners = await many(port, *paths)
            opened, open_ = time.monotonic() - start, used(pid)
            await line.ask("POST", "/go")
            for listener in listeners:
                await listener.end(within=60)
            after = used(pid)
        self._check(paths, listeners)
        events = sum(len(listener.events) - 1 for listener in listeners)
        chunks = sum(listener.chunks - 1 for listener in listeners)
        delays = [
            at - float(event.document["message"])
            for listener in listeners
            for at, event in listener.events[1:-1]
        ]
        self.figures = (
            f"{self._jobs:>6}{opened:>8.1f}{(open_[1] - before[1]) / len(listeners):>8.1f}"
            f"{events / len(listeners):>8.1f}{chunks / len(listeners):>8.1f}"
            f"  {spread(delays)}{1e6 * (after[0] - open_[0]) / events:>8.0f}"
        )

    def _check(self, paths: list[str], listeners: list[Listener]) -> None:
        told: dict[str, set[tuple[str, ...]]] = {}
        for path, listener in zip(paths, listeners, strict=True):
            told.setdefault(path, set()).add(tuple(event.id for _, event in listener.events))
            if not listener.whole or listener.statuses[-1] != "succeeded":
                self.violations.append(f"a stream has ended with {listener.events[-1:]}")
            if listener.chunks != len(listener.events) + listener.reader.comments:
                self.violations.append(f"something came {listener.chunks} times, for nothing")
        self.violations += [f"{path}: {ids}" for path, ids in told.items() if len(ids) > 1]


async def run(store: Kept, folder: Path, jobs: int, arguments: argparse.Namespace) -> Run:
    settings = {"RAINCHECK_TEST_LEASE": "30", "RAINCHECK_TEST_RUNNING": "10000"}
    deployment = Deployment(folder, store.url, **settings)
    made = Run(deployment, jobs, arguments)
    try:
        deployment.start()
        await deployment.answering()
        await made.conduct()
    except Exception as error:
        made.violations.append(f"the run broke off: {error!r}")
    finally:
        deployment.kill()
    log = deployment.log()
    if "Traceback" in log or "ERROR" in log:
        made.violations.append(f"the server's log has errors: {log[-2000:]}")
    return made


def main() -> None:
    arguments = parse()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = list(STORES) if arguments.store == "all" else [arguments.store]
    show_circumstances()
    print(
        f"run       {arguments.streams} streams, {arguments.steps} reports of each job, "
        f"{arguments.seconds:g} s apart\n\n"
        f"{'':<10}{'jobs':>6}{'open, s':>8}{'KiB':>8}{'events':>8}{'wakes':>8}"
        "  report to client: p50, p99, max  CPU, µs",
        flush=True,
    )
    wrong = 0
    for name in names:
        for jobs in (1, arguments.streams):
            with tempfile.TemporaryDirectory(prefix="raincheck-streams-") as folder:
                store: Kept = STORES[name](Path(folder))
                try:
                    store.start()
                    made = asyncio.run(run(store, Path(folder), jobs, arguments))
                finally:
                    store.remove()
            print(f"{name:<10}{made.figures}", flush=True)
            for violation in made.violations[:10]:
                print(f"  WRONG: {violation[:1000]}", flush=True)
            wrong += len(made.violations)
    print(f"\nviolations: {wrong}")
    sys.exit(1 if wrong else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", choices=[*STORES, "all"], default="all")
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=10, help="reports of each job")
    parser.add_argument("--seconds", type=float, default=1.0, help="from one report to the next")
    return parser.parse_args()


if __name__ == "__main__":
    main()
