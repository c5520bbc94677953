"""Measures that are more than two sides under one load: delays, memory, large bodies, round trips.

Each is a function of the bench that yields rows.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit

from peers.work import id_of

from harness.processes import BENCHMARKS, Child, Failed, Server, spell
from harness.report import Goal, Row
from harness.rounds import BODY, Bench, Comparison, Running, Side

MIB = 1024**2
KIB = 1024

# Jobs whose memory is measured, and as many as a tenth of that before.
MANY = 10_000

FILLER = json.dumps({"text": "x" * 1011})
"""A request body of 1 KiB."""


def raincheck(store: str = "memory", **settings: object) -> Side:
    """An app over one of raincheck's stores."""
    return Side(
        f"raincheck, {store}",
        "peers.raincheck_app:build",
        {"store": store, **settings},
        service=store if store in ("redis", "postgres") else "",
    )


def knowledge(bench: Bench, waiting: int = 1000) -> Iterator[Row]:
    """How long after its handler's last line the client of a long poll has a result."""
    for title, over in (("one after the other", 10.0), ("all at once", 0.0)):
        rounds = []
        for _ in range(bench.rounds):
            with bench.serving(raincheck(max_running=waiting)) as running:
                answer = bench.load.ask(
                    "wait",
                    running.server,
                    clients=waiting,
                    submit=spell("POST", "/held", BODY),
                    release=spell("POST", f"/release?over={over}", "{}"),
                    over=over,
                )
            rounds.append(sorted(1000 * delay for delay in answer["delays"]))
        for name, rank, most in (("p50", 0.5, 5.0), ("p99", 0.99, 50.0)):
            values = [delays[int(rank * (len(delays) - 1))] for delays in rounds]
            yield Row(
                "knowledge",
                f"completion to knowledge, long poll, {waiting} waiting, {title}: {name}, ms",
                values,
                Goal(most, least=False, unit="ms") if over else None,
                rounds=[{name: value} for value in values],
            )


def memory(bench: Bench, many: int = MANY) -> Iterator[Row]:
    """What one more job takes of the server's memory, as the system counts it."""
    cases = (
        ("queued job, 1 KB request", "/queued", FILLER, Goal(6, least=False, unit="KB")),
        ("finished job, 1 KB response", "/reports", BODY, Goal(3, least=False, unit="KB")),
    )
    for title, path, body, goal in cases:
        values = []
        for _ in range(bench.rounds):
            with bench.serving(raincheck()) as running:
                _submit(running, path, body, many // 10)  # as many as make everything there once
                before = _settled(running.server)
                _submit(running, path, body, many)
                values.append((_settled(running.server) - before) / many / KIB)
        rounds = [{"KiB": value} for value in values]
        yield Row("memory", f"memory per {title}, KB", values, goal, rounds=rounds)


def _submit(running: Running, path: str, body: str, count: int) -> None:
    running.bench.load.press(
        running.server,
        [spell("POST", path, body)],
        status=202,
        clients=32,
        seconds=60.0,
        most=count,
    )


def _settled(server: Server) -> int:
    server.ask("GET", "/settle")
    return server.memory()


def stream(bench: Bench, stores: list[str], size: int = 50 * MIB) -> Iterator[Row]:
    """A large streamed response: captured and served again, over served directly."""
    goals = {"memory": Goal(size / MIB + 8, False, "MB"), "sqlite": Goal(16, False, "MB")}
    for store in stores:
        both, again, peaks, rounds = [], [], [], []
        for number in range(bench.rounds):
            with (
                bench.serving(raincheck(store)) as ours,
                bench.serving(Side("", "peers.raincheck_app:plain")) as theirs,
            ):
                seconds = _stream_round(bench, ours.server, theirs.server, size, number)
            rounds.append(seconds)
            both.append(seconds["direct"] / seconds["captured and served"])
            again.append(seconds["direct"] / seconds["served again"])
            peaks.append(seconds["peak"] / MIB)
        title = f"50 MB streamed response, {store} store"
        speeds = {
            side: f"{size / MIB / statistics.median(r[side] for r in rounds):.0f} MB/s"
            for side in ("direct", "captured and served", "served again")
        }
        yield Row(
            "stream",
            f"{title}: captured and served",
            both,
            Goal(0.7),
            speeds["captured and served"],
            f"{speeds['direct']}, served directly",
            rounds=rounds,
        )
        against = f"{speeds['direct']}, served directly"
        yield Row("stream", f"{title}: served again", again, None, speeds["served again"], against)
        yield Row("stream", f"{title}: peak memory, MB", peaks, goals[store], form=".1f")
    touched = [_touch(size) for _ in range(bench.rounds)]
    yield Row(
        "stream", "50 MB: to fill that much new memory, in Python alone, ms", touched, form=".0f"
    )


def _touch(size: int) -> float:
    """Milliseconds to fill as much memory as nobody has touched before, in pieces of 256 KiB."""
    piece = 256 * 1024
    block = os.urandom(2 * piece)
    start = time.perf_counter()
    pieces = [block[place : place + piece] for place in range(size // piece)]
    taken = time.perf_counter() - start
    assert sum(map(len, pieces)) == size
    return taken * 1e3


def _stream_round(
    bench: Bench, ours: Server, theirs: Server, size: int, number: int
) -> dict[str, float]:
    post = spell("POST", "/videos", "{}")
    poll = spell("GET", "{location}", "", "prefer: wait=30")
    direct = spell("GET", "/videos")
    for _ in range(20):  # what is made once is there before the memory is looked at
        ours.start_job("/reports", BODY, finished=True)
    before = _settled(ours)
    ours.forget_peak()
    kept = bench.load.ask("fetch", ours, requests=[post, poll], check=True)
    peak = ours.memory("VmHWM") - before
    plain = bench.load.ask("fetch", theirs, requests=[direct], check=True)
    same = kept["checksum"] == plain["checksum"] and kept["size"] == plain["size"] == size
    if not same or kept["status"] != 200:
        raise Failed("another body came back than was sent")
    totals = {"direct": 0.0, "captured and served": 0.0, "served again": 0.0}

    def fetch(server: Server, *requests: str) -> dict[str, Any]:
        return bench.load.ask("fetch", server, requests=requests, check=False)

    def captured() -> None:
        answer = fetch(ours, post, poll)
        totals["captured and served"] += answer["elapsed"]
        again = fetch(ours, spell("GET", answer["location"]))
        totals["served again"] += again["elapsed"]
        ours.ask("DELETE", answer["location"])

    def served() -> None:
        totals["direct"] += fetch(theirs, direct)["elapsed"]

    ours.ask("DELETE", kept["location"])
    for turn in range(6):
        sides = (captured, served) if (turn + number) % 2 else (served, captured)
        for side in sides:
            side()
    return {**{name: total / 6 for name, total in totals.items()}, "peak": float(peak)}


def crowd(bench: Bench, stores: list[str], few: int = 100, many: int = 100_000) -> Iterator[Row]:
    """The poll rate with many finished jobs in the store, against few; both are filled once."""
    for store in stores:
        comparison = Comparison(
            "crowd",
            f"poll rate with {many} finished jobs, against {few}, {store} store",
            raincheck(store, jobs=many),
            raincheck(store, jobs=few),
            Goal(0.95),
            path="/hello",
        )
        sides = ((comparison.ours, many), (comparison.theirs, few))
        rounds = []
        with ExitStack() as kept:
            places = [kept.enter_context(_place_for(bench, store)) for _ in sides]
            for number in range(bench.rounds):
                with ExitStack() as stack:
                    running = []
                    for (side, jobs), place in zip(sides, places, strict=True):
                        one = stack.enter_context(bench.serving(side, **place))
                        one.server.ask("GET", "/hello", patience=1800.0)  # when it is filled
                        running.append((one, polls_of(jobs)))
                    rounds.append(bench.turns(comparison, running, number))
        yield from bench.rows(comparison, rounds)


@contextmanager
def _place_for(bench: Bench, store: str) -> Iterator[dict[str, str]]:
    """Where a store is, for several servers one after the other."""
    with ExitStack() as stack:
        place = {"FOLDER": stack.enter_context(TemporaryDirectory(dir=bench.folder))}
        if service := raincheck(store).service:
            place[f"{service.upper()}_URL"] = stack.enter_context(bench.service(service))
        yield place


def polls_of(jobs: int) -> list[str]:
    """Polls of a hundred jobs from all over a store that has so many from the start."""
    ids = (id_of(number * jobs // 100) for number in range(100))
    return [spell("GET", f"/jobs/{id}") for id in ids]


def trips(bench: Bench, store: str, jobs: int = 200) -> Iterator[Row]:
    """Round trips between the app and its store, of one job after the other."""
    with ExitStack() as stack:
        url = stack.enter_context(bench.service(store))
        proxy = stack.enter_context(Trips(bench, store, url))
        variables = {f"{store.upper()}_URL": proxy.url}
        server = stack.enter_context(bench.serving(raincheck(store), **variables)).server
        count = proxy.count

        def counted(request: str, status: int) -> float:
            before = count()
            time.sleep(1.0)
            idle = count() - before  # such as leases that are renewed
            server.elapsed, before = 0.0, count()
            one_by_one: dict[str, Any] = {"clients": 1, "seconds": 60.0, "most": jobs}
            bench.load.press(server, [request], status=status, **one_by_one)
            return (count() - before - idle * server.elapsed) / jobs

        finished = server.start_job("/reports", BODY, finished=True)
        pending = server.start_job("/never", BODY, finished=False)
        figures = {
            "job, from its acceptance to its end": counted(spell("POST", "/reports", BODY), 202),
            "poll of a pending job": counted(spell("GET", pending), 202),
            "poll of a finished job": counted(spell("GET", finished), 200),
        }
    for what, figure in figures.items():
        title = f"round trips to {store} per {what}"
        goal = Goal(1, least=False) if what == "poll of a finished job" else None
        yield Row(f"{store}.trips", title, [round(figure, 1)], goal, form=".1f")


class Trips(Child):
    """A proxy before a store or a broker, which counts round trips.

    Args:
        bench: where it stands.
        service: `"redis"` or `"postgres"`.
        url: of the server behind it.

    Attributes:
        url: its own.
    """

    def __init__(self, bench: Bench, service: str, url: str) -> None:
        command = [bench.python("services"), BENCHMARKS / "harness/services.py", "trips"]
        super().__init__([*command, _address(url)], gently=True)
        port = int(self.hear())
        self.url = {
            "redis": f"redis://127.0.0.1:{port}",
            "postgres": f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable",
        }[service]

    def count(self, since: float = 0.0, until: float = float("inf")) -> int:
        """Round trips so far, or between two times by the monotonic clock."""
        self.tell(f"{since!r} {until!r}")
        return int(self.hear())


def _address(url: str) -> str:
    """Where a service listens: `HOST:PORT`, or the path of its socket."""
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host")
    return f"{folder[0]}/.s.PGSQL.5432" if folder else parts.netloc.rpartition("@")[2]
