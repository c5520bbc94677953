"""Which duty of an engine costs what: its floor, with one duty after the other on top of it.

    python benchmarks/engine_floor.py [--only 0,7,14] [--jobs 100] [--json FILE]

Needs `pip install raincheck[dev]` and valgrind. Every step is an app of `peers/floor_engine.py`;
beside them stand FastAPI and taskiq by hand, and raincheck. Counted are machine instructions, as by
`floor.py`, which other work on the machine does not disturb: of the web process that accepts a job
and hands it to the broker, of the worker that takes it from there and runs it, of a poll that comes
too early and of one that reads the result. All happens in one process over a real Valkey, one job
after the other; Valkey's own part is the processor time that it says it has spent, against by hand.
What raincheck takes beyond the last step is not what it does, but how it is built.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import redis
import uvloop
from harness.engines import BY_HAND, FLOOR, OURS
from harness.processes import Child, Cores
from harness.report import circumstances
from harness.rounds import BODY, Bench, Side
from peers.floor_engine import DUTIES

PARTS = ("accept", "pending", "run", "result")

BEFORE = 30
"""Jobs before those that are counted, which load modules and fill caches."""

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "headers": [
        (b"host", b"127.0.0.1"),
        (b"accept", b"*/*"),
        (b"content-type", b"application/json"),
    ],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
}


def step(duties: int) -> Side:
    """The floor with the first so many duties."""
    return replace(FLOOR, name=f"step {duties}", variables={"DUTIES": str(duties)})


# --- what is counted ---------------------------------------------------------------------------


class Counted:
    """An app and its worker in this process, which does as it is told, line by line."""

    def __init__(self, module: Any) -> None:
        from taskiq.receiver import Receiver

        self._app, self._broker = module.app, module.broker
        self._receiver = Receiver(self._broker, run_startup=False)
        self._urls: list[str] = []

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        messages = self._broker.listen()
        await self._broker.startup()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            part, jobs = line.split()
            for turn in range(int(jobs)):
                if part == "accept":
                    self._urls[turn:] = [await self._accept()]
                elif part == "run":
                    message = await anext(messages)
                    await loop.create_task(self._receiver.callback(message))  # as taskiq does
                else:
                    await self._poll(self._urls[turn], 202 if part == "pending" else 200)
            print(part, flush=True)

    async def _accept(self) -> str:
        status, headers, _ = await self._ask("POST", "/orders", BODY.encode())
        assert status == 202
        url: str = headers[b"location"].decode()
        return url

    async def _poll(self, path: str, wanted: int) -> None:
        status, _, body = await self._ask("GET", path)
        assert status == wanted, (status, body)

    async def _ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any, bytes]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {**SCOPE, "method": method, "path": path, "raw_path": path.encode(), "state": {}}
        await self._app(scope, receive, send)
        start, end = sent
        return start["status"], dict(start["headers"]), end["body"]


# --- who counts ----------------------------------------------------------------------------------


def count(bench: Bench, side: Side, jobs: int) -> dict[str, int]:
    """Instructions of each part of a job, and microseconds of Valkey for all of them."""
    with bench.service("redis") as url, tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        dumps = Path(folder) / "out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={dumps}"]
        command += ["--instr-atstart=no", sys.executable, __file__, "--serve", side.app]
        variables = {"PYTHONHASHSEED": "0", "REDIS_URL": url, **side.variables}
        with Child(command, variables=variables, log=bench.log()) as child:
            for part in PARTS:
                do(child, part, BEFORE)
            control(child, "-i", "on")
            server = redis.Redis.from_url(url)
            found, before = {}, spent(server)
            for part in PARTS:
                control(child, "-z")
                do(child, part, jobs)
                control(child, "-d")
                (dump,) = dumps.parent.glob("out.*")
                total = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.M)
                assert total is not None
                found[part] = int(total[1]) // jobs
                dump.unlink()
            found["valkey"] = round((spent(server) - before) / jobs * 1e6)
    return found


def do(child: Child, part: str, jobs: int) -> None:
    child.tell(f"{part} {jobs}")
    if child.hear().strip() != part:
        raise RuntimeError(child.said())


def control(child: Child, *what: str) -> None:
    """Have callgrind do something, at once."""
    command = ["callgrind_control", *what, str(child.pid)]
    subprocess.run(command, check=True, capture_output=True)


def spent(server: redis.Redis) -> float:
    """Processor seconds of Valkey."""
    cpu: Any = server.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


def row(name: str, found: Mapping[str, Mapping[str, int]], said: str) -> str:
    """The newest of the rows."""
    every = [sum(each[part] for part in PARTS) for each in found.values()]
    taken, hand = found[name], found["by hand"]
    cells = [f"{taken[part] / 1000:,.0f}" for part in PARTS]
    cells.append(f"{every[-1] / 1000:,.0f}")
    cells.append(f"{(every[-1] - every[-2]) / 1000:+,.0f}" if len(every) > 2 else "")
    cells.append(f"{every[-1] / every[0]:.2f}")
    cells.append(f"{taken['valkey'] / hand['valkey']:.2f}")
    return f"| {name} | {' | '.join(cells)} | {said} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="steps, with commas between them; default all")
    parser.add_argument("--jobs", type=int, default=100, help="that are counted")
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="where the counts are written")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        logging.disable(logging.CRITICAL)
        gc.disable()  # when it runs depends on all that was there before
        uvloop.run(Counted(import_module(arguments.serve.partition(":")[0])).serve())
        return 0
    if shutil.which("valgrind") is None:
        raise SystemExit("error: there is no valgrind on the PATH")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all processes are ended
    chosen, names = [int(each) for each in arguments.only.split(",") if each], [*DUTIES]
    steps = chosen or range(len(DUTIES) + 1)
    sides: dict[str, tuple[Side, str]] = {"by hand": (BY_HAND, "a function and its arguments")}
    for number in steps:
        name = names[number - 1] if number else "floor"
        said = DUTIES[name] if number else "the request, captured, claimed and replayed"
        sides[f"{number} {name}"] = step(number), said
    sides["raincheck"] = OURS, "how it is built"
    facts = circumstances()
    print(f"- {facts['date']}, Python {facts['python']}; thousands of instructions for one job\n")
    print(f"| step | {' | '.join(PARTS)} | all | more | against by hand | Valkey | what is added |")
    print("|---" * (len(PARTS) + 6) + "|", flush=True)
    found: dict[str, Mapping[str, int]] = {}
    with tempfile.TemporaryDirectory() as files, ThreadPoolExecutor(arguments.at_once) as pool:
        bench = Bench(None, Cores(), Path(files))  # type: ignore[arg-type] # no load
        counted = partial(count, bench, jobs=arguments.jobs)
        counts = pool.map(counted, (side for side, _ in sides.values()))
        for name, taken in zip(sides, counts, strict=True):
            found[name] = taken
            print(row(name, found, sides[name][1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**facts, "instructions": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
