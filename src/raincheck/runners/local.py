"""Jobs run in the process that accepted them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from raincheck.runners.base import Attempt, Runner, Stop


class LocalRunner(Runner):
    """Runs jobs in the process that accepted them, on its event loop and its threads."""

    in_place: ClassVar[bool] = True

    _attempt: Attempt
    _stop: Stop
    _spawn: Callable[[Attempt, str], None]

    def bind(self, attempt: Attempt, stop: Stop, spawn: Callable[[Attempt, str], None]) -> None:
        self._attempt, self._stop, self._spawn = attempt, stop, spawn

    async def submit(self, id: str, queue: str | None = None) -> None:
        self._spawn(self._attempt, id)

    async def cancel(self, id: str) -> None:
        self._stop(id)
