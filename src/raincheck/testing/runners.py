"""The contract of runners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from raincheck.runners.base import Run, Runner, Stop


class RunnerContract:
    """What every runner promises. Subclass it, with a fixture `runner`.

    For one whose jobs run in the workers of an engine, override `workers`, too.
    """

    @asynccontextmanager
    async def workers(self, runner: Runner) -> AsyncIterator[None]:
        """Let the engine's workers run, in this process, while a test does."""
        yield

    async def test_every_submitted_job_runs(self, runner: Runner) -> None:
        wanted = {str(number) for number in range(20)}
        begun, all_of_them = set[str](), anyio.Event()

        async def run(id: str) -> None:
            begun.add(id)
            if begun == wanted:
                all_of_them.set()

        async with self._bound(runner, run):
            for id in wanted:
                await runner.submit(id)
            with anyio.fail_after(10):
                await all_of_them.wait()

    async def test_jobs_run_side_by_side(self, runner: Runner) -> None:
        both = anyio.Event()
        running: set[str] = set()

        async def run(id: str) -> None:
            running.add(id)
            if len(running) == 2:
                both.set()
            with anyio.fail_after(10):
                await both.wait()

        async with self._bound(runner, run):
            await runner.submit("a")
            await runner.submit("b")
            with anyio.fail_after(10):
                await both.wait()

    async def test_a_cancelled_job_is_told_to_stop(self, runner: Runner) -> None:
        started, told = anyio.Event(), anyio.Event()

        async def run(id: str) -> None:
            started.set()
            with anyio.fail_after(10):
                await told.wait()

        def stop(id: str) -> None:
            assert id == "a"
            told.set()

        async with self._bound(runner, run, stop):
            await runner.submit("a")
            with anyio.fail_after(10):
                await started.wait()
            await runner.cancel("a")

    async def test_cancelling_what_does_not_run_is_no_error(self, runner: Runner) -> None:
        async def run(id: str) -> None:
            raise AssertionError("nothing was submitted")

        async with self._bound(runner, run):
            await runner.cancel("unknown")

    async def test_it_can_be_opened_again(self, runner: Runner) -> None:
        await runner.open()
        await runner.aclose()
        await self.test_every_submitted_job_runs(runner)

    @asynccontextmanager
    async def _bound(
        self, runner: Runner, run: Run, stop: Stop = lambda _: None
    ) -> AsyncIterator[None]:
        """A runner that is bound and open, until its runs have ended."""
        async with anyio.create_task_group() as group:

            def spawn(run: Run, id: str) -> None:
                group.start_soon(run, id)

            runner.bind(run, stop, spawn)
            await runner.open()
            async with self.workers(runner):
                yield
            await runner.aclose()
