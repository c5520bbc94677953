"""Where the time goes: samples of a server that accepts jobs, or answers polls, under full load.

    pip install py-spy && python benchmarks/profile.py [--seconds 8] [--instructions]

Each side is a real uvicorn (uvloop, httptools, one worker) with 32 clients; py-spy looks 250 times
a second where it is. A sample counts for the room whose function runs; what C code does (uvloop,
httptools, the kernel) counts for the function that called it. Shown are microseconds of the
server's processor time for one request: the share of the samples, times all of it.

`--instructions` counts machine instructions instead, with valgrind's callgrind, in one process
without an HTTP server: they are the same from run to run, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from compare import HANDFULL, HANDWRITTEN, LADEN
from harness.absolutes import raincheck
from harness.loading import Load
from harness.processes import BENCHMARKS, Cores, Failed
from harness.report import circumstances
from harness.rounds import WARM_UP, Bench, Comparison, Running, Side
from peers.work import ORDER

MEASURES: dict[str, dict[str, Any]] = {
    "accepted job": {"method": "POST", "path": "/orders", "status": 202},
    "poll, pending": {"job": "/never", "status": 202},
    "poll, finished": {"job": "/reports", "status": 200},
}

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"x"), (b"content-type", b"application/json")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
}

# Rooms that take less than this share are summed up.
LEAST = 0.01

# Requests that callgrind watches, and those before them, which load modules and fill caches.
COUNTED, BEFORE = 200, 80


def sample(bench: Bench, side: Side, measure: str, seconds: float) -> dict[str, float]:
    """Microseconds for each request, by room."""
    comparison = Comparison("", measure, side, side, **MEASURES[measure])
    with bench.serving(side) as running:
        requests = running.prepare(comparison)
        running.press(comparison, requests, WARM_UP)
        return _sampled(bench, running, comparison, requests, seconds)


def _sampled(
    bench: Bench, running: Running, comparison: Comparison, requests: list[str], seconds: float
) -> dict[str, float]:
    server, stacks = running.server, bench.log()
    server.answered = 0
    spent = server.processor_seconds()
    command = ["py-spy", "record", "--pid", str(server.pid), "--duration", str(round(seconds))]
    command += ["--rate", "250", "--nonblocking", "--format", "raw", "--output", str(stacks)]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while spy.poll() is None:
        running.press(comparison, requests, 1.0)
    if spy.returncode:
        raise Failed(f"py-spy failed: {(spy.stderr.read() if spy.stderr else '')[-500:]}")
    cost = (server.processor_seconds() - spent) / server.answered * 1e6
    rooms = Counter[str]()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if "end_with_the_parent" not in stack:  # a thread of `serve.py` that only waits
            rooms[_room(stack.rpartition(";")[2])] += int(count)
    total = rooms.total()
    return {room: cost * count / total for room, count in rooms.items()}


def _room(frame: str) -> str:
    """Whose code a frame is."""
    file = frame.partition("(")[2]
    if "peers/" in file:
        return "the app"
    if found := re.search(r"raincheck/(\w+(?:/\w+)?)\.py", file):
        return f"raincheck: {found[1].replace('/', '.')}"
    if file.startswith("<string>"):
        return "named tuples"  # whose __new__ is compiled from a string
    return re.split(r"[/.]", file, maxsplit=1)[0] or "other"  # py-spy leaves out what is before


def table(measure: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Print a measure, the largest rooms first."""
    print(f"\n| {measure}: µs in | raincheck | by hand |\n|---|---|---|")
    rest = [0.0, 0.0]
    for room in sorted({*ours, *theirs}, key=lambda room: -ours.get(room, 0.0)):
        both = ours.get(room, 0.0), theirs.get(room, 0.0)
        if both[0] < LEAST * sum(ours.values()) and both[1] < LEAST * sum(theirs.values()):
            rest = [rest[0] + both[0], rest[1] + both[1]]
        else:
            print(f"| {room} | {both[0]:.1f} | {both[1]:.1f} |")
    print(f"| the rest | {rest[0]:.1f} | {rest[1]:.1f} |")
    print(
        f"| **all** | **{sum(ours.values()):.0f}** | **{sum(theirs.values()):.0f}** |", flush=True
    )


# --- instructions ------------------------------------------------------------------------------


def count(side: Side, measure: str) -> int:
    """Instructions for one request."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    settings = None if side.settings is None else dict(side.settings)
    command += ["--instr-atstart=no", sys.executable, __file__]
    command += ["--serve", side.app, json.dumps(settings), measure]
    variables = {**os.environ, "PYTHONHASHSEED": "0"}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command,
            cwd=BENCHMARKS,
            env=variables,
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        ) as counted,
    ):
        try:
            for turn in ("on", "off"):
                assert counted.stdin is not None
                assert counted.stdout is not None
                if counted.stdout.readline() == "":
                    break  # it has failed
                control = ["callgrind_control", "-i", turn, str(counted.pid)]
                subprocess.run(control, check=True, capture_output=True)
                counted.stdin.write("\n")
            counted.wait()
        except BaseException:
            counted.kill()
            raise
        said.seek(0)
        found = re.search(r"Collected : (\d+)", told := said.read())
    if counted.returncode or found is None:
        raise Failed(f"valgrind: {told[-1000:]}")
    return int(found[1]) // COUNTED


async def serve(name: str, made_with: str, measure: str) -> None:
    """Answer requests without a server, eight at a time; tell whoever counts, and wait for it."""
    # What goes by the clock would count by how slow the machine is: time goes by steps.
    time.time = itertools.count(time.time(), 1e-4).__next__
    module, _, attribute = name.partition(":")
    app: Any = getattr(import_module(module), attribute)
    if (arguments := json.loads(made_with)) is not None:
        app = app(**arguments)
    settings: dict[str, Any] = MEASURES[measure]
    body = json.dumps(ORDER).encode()
    headers: dict[bytes, bytes] = {}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        headers.update(message.get("headers", ()))

    async def ask(method: str, path: str) -> None:
        scope = {**SCOPE, "method": method, "path": path, "raw_path": path.encode(), "state": {}}
        await app(scope, receive, send)

    ticks = itertools.count()
    asyncio.get_running_loop().time = lambda: next(ticks) * 1e-4  # type: ignore[method-assign] # so
    method, path = settings.get("method", "GET"), settings.get("path", "")
    if job := settings.get("job"):
        await ask("POST", job)
        path = headers[b"location"].decode()
        for _ in range(50):
            await asyncio.sleep(0)
    for requests in (BEFORE, COUNTED):
        for _ in range(requests // 8):
            await asyncio.gather(*(ask(method, path) for _ in range(8)))
        print(flush=True)
        sys.stdin.readline()


# -----------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of samples, each side")
    parser.add_argument("--instructions", action="store_true", help="count them, with valgrind")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        logging.disable(logging.CRITICAL)
        gc.disable()  # when it runs depends on all that was there before
        asyncio.run(serve(*arguments.serve))
        return 0
    tool = "valgrind" if arguments.instructions else "py-spy"
    if shutil.which(tool) is None:
        raise SystemExit(f"error: there is no {tool} on the PATH")
    for name, fact in circumstances().items():
        print(f"- {name}: {fact}")
    if arguments.instructions:
        sides = (raincheck(), HANDWRITTEN, HANDFULL, LADEN)
        print("\n| instructions for | raincheck | by hand | with our duties | the floor |")
        print("|---|---|---|---|---|")
        for measure in MEASURES:
            counts = [f"{count(side, measure):,}" for side in sides]
            print(f"| {measure} | {' | '.join(counts)} |", flush=True)
        return 0
    cores = Cores.here()
    with tempfile.TemporaryDirectory() as files, Load(cores.load) as load:
        bench = Bench(load, cores, Path(files))
        for measure in MEASURES:
            samples = [
                sample(bench, side, measure, arguments.seconds)
                for side in (raincheck(), HANDWRITTEN)
            ]
            table(measure, *samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
