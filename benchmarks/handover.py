"""What a task and a hand-over back to its parent cost, spelt in three ways.

    python benchmarks/handover.py [--rounds 7] [--times 20000]

The middleware runs each candidate in a task of its own and waits until that task hands over; this
is why `raincheck.tasks` spells both by itself. In microseconds, on asyncio's own loop and on
uvloop; the three take turns in every round. Shown are the median over the rounds, and the lowest
and highest round in brackets.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from importlib.metadata import version

import anyio
import uvloop
from anyio.abc import TaskGroup

from raincheck.tasks import open_tasks

Once = Callable[[], Awaitable[None]]


def by_anyio(group: TaskGroup) -> Once:
    """A task of a long-lived group, and an event."""

    async def task(event: anyio.Event) -> None:
        event.set()

    async def once() -> None:
        event = anyio.Event()
        group.start_soon(task, event)
        await event.wait()

    return once


def by_asyncio() -> Once:
    """A plain task held in a set, and a future."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def task(future: asyncio.Future[None]) -> None:
        future.set_result(None)

    async def once() -> None:
        future: asyncio.Future[None] = loop.create_future()
        started = loop.create_task(task(future))
        tasks.add(started)
        started.add_done_callback(tasks.discard)
        await future

    return once


def by_raincheck() -> Once:
    """What raincheck does."""
    tasks = open_tasks()

    async def once() -> None:
        gate = tasks.gate()

        async def task() -> None:
            gate.open()

        tasks.spawn(task, copy_context())
        await gate.wait()

    return once


async def measure(rounds: int, times: int) -> dict[str, list[float]]:
    """Microseconds for each spelling, round by round."""
    async with anyio.create_task_group() as group:
        spellings = {
            "anyio: start_soon, Event": by_anyio(group),
            "asyncio: create_task, Future": by_asyncio(),
            "raincheck.tasks: spawn, gate": by_raincheck(),
        }
        taken: dict[str, list[float]] = {name: [] for name in spellings}
        for number in range(-1, rounds):  # the first one warms up
            for name, once in spellings.items():
                started = time.perf_counter()
                for _ in range(times):
                    await once()
                if number >= 0:
                    taken[name].append((time.perf_counter() - started) / times * 1e6)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=20_000, help="hand-overs in a round")
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("anyio", "uvloop", "raincheck"))
    print(f"python {platform.python_version()}, {versions}")
    loops = {"asyncio": asyncio.run, "uvloop": uvloop.run}
    for loop, run in loops.items():
        print(f"\n{loop}")
        for name, taken in run(measure(arguments.rounds, arguments.times)).items():
            lowest, highest = min(taken), max(taken)
            print(f"  {name:<30} {statistics.median(taken):5.1f} µs [{lowest:.1f}..{highest:.1f}]")


if __name__ == "__main__":
    main()
