"""Whether the clock tells a foreign job from one that is not there (law 7).

    python benchmarks/timing.py [--polls 20000] [--stores memory,sqlite]

Polls of two ids by somebody who owns neither, one of a job and one of nothing, in random order on
one connection to a real uvicorn, with a third kind as a control: another id of nothing. Shown is
how often a poll of the one takes longer than one of the other (0.500: the clock tells nothing; the
control says how far from it chance alone comes), and the difference of the medians.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import tempfile
import time
from bisect import bisect_left, bisect_right
from typing import Any

from harness.processes import Cores, Failed, Server
from harness.report import circumstances
from peers.raincheck_app import open_store
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running

WARM_UP = 2000


def build(store: str) -> Any:
    """An app whose jobs are those of `x-user`, or ann's."""

    @long_running
    async def report(request: Request) -> Response:
        return JSONResponse({"rows": list(range(50))})

    return LongRunningMiddleware(
        Starlette(routes=[Route("/reports", report, methods=["POST"])]),
        store=open_store(store),
        owner=lambda connection: connection.headers.get("x-user", "ann"),
    )


def measure(port: int, ids: dict[str, str], polls: int) -> dict[str, list[float]]:
    """Seconds of each poll, by kind."""
    kinds = [kind for kind in ids for _ in range(polls)]
    random.Random(7).shuffle(kinds)
    taken: dict[str, list[float]] = {kind: [] for kind in ids}
    head = "GET /jobs/{} HTTP/1.1\r\nhost: x\r\nx-user: mallory\r\n\r\n"
    requests = {kind: head.format(id).encode() for kind, id in ids.items()}
    length = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for number, kind in enumerate([*kinds[:WARM_UP], *kinds]):
            start = time.perf_counter()
            connection.sendall(requests[kind])
            answer = connection.recv(65536)
            while len(answer) < length:
                answer += connection.recv(65536)
            elapsed = time.perf_counter() - start
            length = length or len(answer)
            if not answer.startswith(b"HTTP/1.1 404") or len(answer) != length:
                raise Failed(f"a {kind} id was answered {answer[:100]!r}")
            if number >= WARM_UP:
                taken[kind].append(elapsed)
    return taken


def longer(ours: list[float], theirs: list[float]) -> float:
    """How often one of ours is longer than one of theirs; ties count as half."""
    ordered = sorted(theirs)
    wins = sum(bisect_left(ordered, each) + bisect_right(ordered, each) for each in ours)
    return wins / 2 / len(ours) / len(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--polls", type=int, default=20_000, help="of each kind")
    parser.add_argument("--stores", default="memory,sqlite", help="with commas between them")
    arguments = parser.parse_args()
    for name, fact in circumstances().items():
        print(f"- {name}: {fact}")
    cores = Cores.here()
    if cores.load is not None:
        os.sched_setaffinity(0, {cores.load})
    print("\n| store | foreign longer than unknown | control | medians apart | control |")
    print("|---|---|---|---|---|", flush=True)
    for store in arguments.stores.split(","):
        with tempfile.TemporaryDirectory() as files:
            settings = {"store": store}
            variables = {"FOLDER": files}
            with Server("timing:build", settings, core=cores.server, variables=variables) as server:
                location = server.start_job("/reports", "{}", finished=True)
                foreign = location.rpartition("/")[2]
                unknown, control = foreign.swapcase(), foreign.swapcase()[::-1]
                ids = {"foreign": foreign, "unknown": unknown, "control": control}
                taken = measure(server.port, ids, arguments.polls)
        against = taken["unknown"]
        row = [f"| {store} "]
        for kind in ("foreign", "control"):
            row.append(f"| {longer(taken[kind], against):.3f} ")
        for kind in ("foreign", "control"):
            apart = statistics.median(taken[kind]) - statistics.median(against)
            row.append(f"| {apart * 1e6:+.1f} µs ")
        print("".join(row) + "|", flush=True)


if __name__ == "__main__":
    main()
