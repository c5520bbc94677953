"""What becomes of jobs when processes die: everything that a client was promised has to come true.

    python benchmarks/crash.py [--store all] [--jobs 1000] [--kills 20] [--signal KILL] [--seed 1]
    python benchmarks/crash.py --restart-store [--store redis]

Needs `pip install raincheck[dev]`. The server is a real uvicorn, with one worker and then with
`--workers`; the stores are an SQLite file, Valkey with `appendonly yes` and `appendfsync always`,
and PostgreSQL as it comes (`fsync` on). Clients submit as fast as they are answered, but not all
before the last kills; half of them with an Idempotency-Key, which they send again if the connection
breaks. Meanwhile the server is killed at random moments, and started again: of several workers
every other time just one, which uvicorn replaces. With `--restart-store` it is the store's server
that is killed or stopped, and started again up to three seconds later. Routes are re-run, run once,
re-run with few at a time, or streamed (see `tests/e2e/durable_app.py`). A lease lasts two seconds.

Half of the jobs are followed while this goes on, the others afterwards. Then the server is killed
once more, and every job is asked for again. The run fails (exit status 1) unless

- every 202 that a client saw has led to a terminal state that it can read, and the second answer
  is the first one, to the byte;
- routes that may run again have all succeeded, with the response of one run that the handler has
  noted to its end; others have done so or failed as interrupted (503, or 502 where the process
  was killed), and never began twice;
- no handler began when its client knew the outcome already;
- a key still leads to its job;
- nothing unfinished is left in the store, also of jobs whose 202 nobody saw; its database passes
  its own check (`PRAGMA integrity_check`, `pg_amcheck --heapallindexed`, the journal read again
  after a SIGKILL gives the same keys and values), and holds no request, key or lease of a job that
  has ended or is not there.

Delays are from a kill to the next run of a job that it interrupted in its first run; this includes
the start of the server. Later runs wait for their back-off, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.crashes import INTERRUPTIONS, Crashes, Strike, striking
from tests.e2e.durable import Deployment, until
from tests.stores.postgres import Postgres
from tests.stores.valkey import Valkey

VERSIONS = ("raincheck", "starlette", "uvicorn", "anyio", "uvloop", "httptools", "redis", "asyncpg")

# Seconds until nothing unfinished may be left of jobs that no client knows.
PATIENCE = 90.0

LEASE = 2.0

LEGEND = """\
silent: submissions without an answer; refused: with 503; interrupted: on the route that runs once;
lost: neither; re-run: jobs that began more than once; most: how often one did; median, slowest:
seconds from a kill to the second run; later: of any run, with its back-off and other kills;
settled: seconds from the last kill until all had ended."""


class Kept(Protocol):
    """A store that outlives the server, and how to look into it."""

    url: str

    @property
    def named(self) -> str:
        """What it is, and its version."""

    def start(self) -> None:
        """Start its server."""

    def stop(self, *, at_once: bool) -> None:
        """End its server: kill it, or tell it to stop."""

    def remove(self) -> None:
        """End its server, and leave nothing behind."""

    def unfinished(self) -> int:
        """How many jobs have not ended."""

    def faults(self) -> Iterable[str]:
        """What is wrong with it."""


class InSQLite:
    """An SQLite file, which has no server."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "jobs.db")
        self.named = f"SQLite {sqlite3.sqlite_version}"

    def start(self) -> None:
        pass

    def stop(self, *, at_once: bool) -> None:
        pass

    def remove(self) -> None:
        pass

    def _ask(self, statement: str) -> Any:
        with sqlite3.connect(self.url) as db:
            rows = db.execute(statement).fetchall()
        db.close()
        return rows[0][0]

    def unfinished(self) -> int:
        return int(self._ask("SELECT count(*) FROM jobs WHERE unfinished IS NOT NULL"))

    def faults(self) -> Iterable[str]:
        if (verdict := self._ask("PRAGMA integrity_check")) != "ok":
            yield f"PRAGMA integrity_check: {verdict}"
        for what, statement in {
            "leases": "SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL",
            "requests": "SELECT count(*) FROM requests",
            "keys": "SELECT count(*) FROM keys WHERE job NOT IN (SELECT number FROM jobs)",
            # A head has the complement of its body's fence.
            "bodies": "SELECT count(*) FROM bodies WHERE (job, max(fence, ~fence)) NOT IN "
            "(SELECT number, fence FROM jobs)",
        }.items():
            if left := self._ask(statement):
                yield f"{left} {what} are left of jobs that have ended"


class InRedis:
    """Valkey, which writes every change to its journal before it answers."""

    def __init__(self, folder: Path) -> None:
        self._server = Valkey(folder, "--appendonly", "yes", "--appendfsync", "always")
        self.url = self._server.url

    @property
    def named(self) -> str:
        with redis.Redis.from_url(self.url) as client:
            return f"Valkey {client.info('server')['valkey_version']}"

    def start(self) -> None:
        self._server.start()

    def stop(self, *, at_once: bool) -> None:
        if not at_once:
            with contextlib.suppress(redis.ConnectionError):  # that is how it answers
                self._server.ask("SHUTDOWN")
        self._server.kill()

    def remove(self) -> None:
        self._server.kill()

    def unfinished(self) -> int:
        with redis.Redis.from_url(self.url) as client:
            return int(client.zcard("{raincheck:orders}:leases"))

    def faults(self) -> Iterable[str]:
        before = self._everything()
        self.stop(at_once=True)
        self.start()
        after = self._everything()
        if before != after:
            differ = [
                key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
            ]
            yield f"read from its journal {len(differ)} keys differ, such as {differ[0]!r}"
        names = {key.removeprefix(b"{raincheck:orders}:") for key in after}
        jobs = {name.removeprefix(b"job:") for name in names if name.startswith(b"job:")}
        if requests := sum(name.startswith(b"request:") for name in names):
            yield f"{requests} requests are left of jobs that have ended"
        bodies = {name.split(b":")[1] for name in names if name.startswith(b"body:")}
        keyed = {
            value[b"id"]
            for key, value in after.items()
            if key.startswith(b"{raincheck:orders}:key:")
        }
        for what, ids in (("bodies", bodies), ("keys", keyed)):
            if ids - jobs:
                yield f"{len(ids - jobs)} {what} are left of jobs that are not there"

    def _everything(self) -> dict[bytes, Any]:
        with redis.Redis.from_url(self.url) as client:
            reading = {
                b"string": client.get,
                b"hash": client.hgetall,
                b"set": client.smembers,
                b"zset": lambda key: sorted(client.zrange(key, 0, -1, withscores=True)),
            }
            return {key: reading[client.type(key)](key) for key in client.scan_iter(count=1000)}


class PostgresOnDisk(Postgres):
    """PostgreSQL that waits for the disk, as it does by itself."""

    def start(self) -> None:
        while self._server is None or self._server.poll() is not None:
            command = [str(self._programs / "postgres"), "-D", "data", "-p", str(self.port)]
            for setting in ("listen_addresses=127.0.0.1", "unix_socket_directories="):
                command += ["-c", setting]
            with (self._folder / "log").open("ab") as log:
                self._server = subprocess.Popen(command, stdout=log, stderr=log, **self._as)
            # A killed server's own processes may still end, and no other starts before.
            until = time.monotonic() + PATIENCE
            while (
                self._server.poll() is None
                and self._run("pg_isready", "-q", *self._where()).returncode
            ):
                if time.monotonic() > until:
                    raise RuntimeError((self._folder / "log").read_text())
                time.sleep(0.02)

    def _answers(self) -> bool:
        return not self._run("pg_isready", "-q", *self._where()).returncode

    def stop(self) -> None:
        """End it in order; its clients are sent away ("fast")."""
        assert self._server is not None
        self._server.send_signal(signal.SIGINT)
        self._server.wait(PATIENCE)
        self._server = None

    def check(self) -> str:
        """What `pg_amcheck` has to say of tables and indexes."""
        options = ["-U", "postgres", "-d", "postgres", "--install-missing", "--heapallindexed"]
        checked = self._run("pg_amcheck", *self._where(), *options)
        return checked.stdout + checked.stderr if checked.returncode else ""


class InPostgres:
    """PostgreSQL."""

    def __init__(self, folder: Path) -> None:
        self._server = PostgresOnDisk()
        self._server.create()
        self.url = self._server.url

    @property
    def named(self) -> str:
        return f"PostgreSQL {self._server.ask('SHOW server_version')}"

    def start(self) -> None:
        self._server.start()

    def stop(self, *, at_once: bool) -> None:
        if at_once:
            self._server.kill()
        else:
            self._server.stop()

    def remove(self) -> None:
        self._server.remove()

    def unfinished(self) -> int:
        return int(self._server.ask("SELECT count(*) FROM raincheck.jobs WHERE state IS NOT NULL"))

    def faults(self) -> Iterable[str]:
        if said := self._server.check():
            yield f"pg_amcheck: {said}"
        for what, statement in {
            "leases": "SELECT count(*) FROM raincheck.jobs WHERE lease_until IS NOT NULL",
            "requests": "SELECT count(*) FROM raincheck.requests",
            "keys": "SELECT count(*) FROM raincheck.keys "
            "WHERE id NOT IN (SELECT id FROM raincheck.jobs)",
            "chunks": "SELECT count(*) FROM raincheck.chunks "
            "WHERE (id, fence) NOT IN (SELECT id, fence FROM raincheck.jobs)",
        }.items():
            if left := int(self._server.ask(statement)):
                yield f"{left} {what} are left of jobs that have ended"


STORES: dict[str, type[Any]] = {"sqlite": InSQLite, "redis": InRedis, "postgres": InPostgres}


def restarting(store: Kept) -> Any:
    """Kill or stop a store's server and start it again."""

    async def strike(chance: random.Random) -> Strike:
        at = time.time()
        await asyncio.to_thread(store.stop, at_once=chance.random() < 0.5)
        long = chance.random() < 0.2  # longer than a lease
        await asyncio.sleep(chance.uniform(LEASE, LEASE + 1) if long else chance.uniform(0, 0.5))
        await asyncio.to_thread(store.start)
        return Strike(at)

    return strike


async def run(store: Kept, workers: int, folder: Path, arguments: argparse.Namespace) -> Crashes:
    """One scenario."""
    deployment = Deployment(folder, store.url, workers=workers, RAINCHECK_TEST_LEASE=str(LEASE))
    number = signal.Signals[f"SIG{arguments.signal}"]
    strike = restarting(store) if arguments.restart_store else striking(deployment, number)
    chance = random.Random(arguments.seed)
    crashes = Crashes(deployment, strike, chance, jobs=arguments.jobs, kills=arguments.kills)
    try:
        deployment.start()
        await deployment.answering()
        await crashes.run()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await until(lambda: not store.unfinished())
        if left := store.unfinished():
            crashes.violations.append(f"{left} jobs are unfinished in the store")
    except Exception as error:
        crashes.violations.append(f"the run broke off: {error!r}")
    finally:
        deployment.kill()
    crashes.violations += store.faults()
    if crashes.violations:
        print(deployment.log()[-5000:], file=sys.stderr)
    return crashes


def show(name: str, crashes: Crashes) -> None:
    """Print a scenario's figures."""
    figures = crashes.figures
    interrupted = sum(figures.ends["once", title] for title in INTERRUPTIONS)
    succeeded = sum(count for (_, end), count in figures.ends.items() if end == "succeeded")
    moments = ", ".join(f"{count} {moment}" for moment, count in figures.moments.items())
    delay = f"{figures.median_delay:.1f}" if figures.delays else "-"
    slowest, later = (f"{max(d):.1f}" if d else "-" for d in (figures.delays, figures.all_delays))
    print(
        f"{name:<14}{figures.accepted:>6}{figures.silent:>7}{sum(figures.refused.values()):>8}"
        f"{succeeded:>10}{interrupted:>12}{figures.accepted - succeeded - interrupted:>6}"
        f"{figures.repeated:>8}{figures.most_runs:>6}{delay:>8}{slowest:>9}{later:>7}"
        f"{figures.settled:>9.1f}{figures.seconds:>6.0f}  {moments}",
        flush=True,
    )
    for violation in crashes.violations[:10]:
        print(f"  WRONG: {violation[:1000]}", flush=True)
    if len(crashes.violations) > 10:
        print(f"  ... {len(crashes.violations)} in all", flush=True)


def main() -> None:
    arguments = parse()
    names = list(STORES) if arguments.store == "all" else [arguments.store]
    if arguments.restart_store:
        names = [name for name in names if name != "sqlite"]  # it has no server
    show_circumstances()
    what = "restarts of the store" if arguments.restart_store else f"SIG{arguments.signal}"
    print(
        f"run       {arguments.jobs} jobs, {arguments.kills} times {what}, a lease of {LEASE:g} s, "
        f"seed {arguments.seed}\n"
    )
    print(
        f"{'':<14}{'202s':>6}{'silent':>7}{'refused':>8}{'succeeded':>10}{'interrupted':>12}"
        f"{'lost':>6}{'re-run':>8}{'most':>6}{'median':>8}{'slowest':>9}{'later':>7}{'settled':>9}"
        f"{'s':>6}  kills while",
        flush=True,
    )
    wrong, named = 0, []
    for name in names:
        for workers in sorted({1, arguments.workers}):
            with tempfile.TemporaryDirectory(prefix="raincheck-crash-") as folder:
                store: Kept = STORES[name](Path(folder))
                try:
                    store.start()
                    named.append(store.named)
                    crashes = asyncio.run(run(store, workers, Path(folder), arguments))
                    show(f"{name} x{workers}", crashes)
                finally:
                    store.remove()
            wrong += len(crashes.violations)
    print(f"\n{LEGEND}\nstores: {', '.join(dict.fromkeys(named))}")
    print(f"\nviolations: {wrong}")
    sys.exit(1 if wrong else 0)


def show_circumstances() -> None:
    """Print when, where and with what."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    print(f"date      {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    print(f"machine   {_processor()}, {os.cpu_count()} cores, {platform.system()}")
    print(f"versions  python {platform.python_version()}, {versions}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "?")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", choices=[*STORES, "all"], default="all")
    parser.add_argument("--jobs", type=int, default=1000, help="202s to see in each scenario")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="besides a single one")
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--restart-store", action="store_true", help="instead of the server")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
