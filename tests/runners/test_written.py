"""The runner that docs/runners.md writes: it keeps what a runner promises, and is short."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raincheck.runners.base import Runner
from raincheck.testing import RunnerContract

PAGE = Path(__file__).parents[2] / "docs" / "runners.md"


def written() -> dict[str, Any]:
    source = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[0]
    assert len(source.splitlines()) < 60
    names: dict[str, Any] = {"__name__": "myengine"}
    exec(source, names)
    return names


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # as most engines are
class TestQueueRunner(RunnerContract):
    @pytest.fixture
    def runner(self) -> Runner:
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        runner: Runner = written()["QueueRunner"](self.queue)
        return runner

    @asynccontextmanager
    async def workers(self, runner: Any) -> AsyncIterator[None]:
        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(runner.run_brought(await self.queue.get(), None))

        working = asyncio.create_task(work())
        yield
        working.cancel()
        await asyncio.wait([working])
