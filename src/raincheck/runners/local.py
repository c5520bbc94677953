"""Jobs run in the process that accepted them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from raincheck.runners.base import Run, Runner, Stop


class LocalRunner(Runner):
    """Runs jobs in the process that accepted them, on its event loop and its threads."""

    in_place: ClassVar[bool] = True

    _run: Run
    _stop: Stop
    _spawn: Callable[[Run, str], None]

    def bind(self, run: Run, stop: Stop, spawn: Callable[[Run, str], None]) -> None:
        self._run, self._stop, self._spawn = run, stop, spawn

    async def submit(self, id: str, queue: str | None = None) -> None:
        self._spawn(self._run, id)

    async def cancel(self, id: str) -> None:
        self._stop(id)
