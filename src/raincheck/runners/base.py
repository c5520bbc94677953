"""The runner port: arranges that accepted jobs run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

Attempt = Callable[[str], Coroutine[Any, Any, None]]
"""Runs one job, given its id, to its end. Never raises an `Exception`."""

Stop = Callable[[str], None]
"""Asks the attempt at a job, if it runs here, to stop."""


class Runner(ABC):
    """Arranges that accepted jobs run: here, or wherever its engine has workers.

    To write one, copy `runners/local.py`, and run `raincheck.testing.RunnerContract` over it.
    """

    in_place: ClassVar[bool]
    """Whether an accepted handler goes on where it is, if there is capacity."""

    @abstractmethod
    def bind(self, attempt: Attempt, stop: Stop, spawn: Callable[[Attempt, str], None]) -> None:
        """Take what runs and stops a job. Called once, before anything else.

        Args:
            attempt: runs a job to its end.
            stop: asks a job that runs in this process to stop.
            spawn: starts `attempt(id)` as a task that its middleware owns.
        """

    @abstractmethod
    async def submit(self, id: str) -> None:
        """Arrange that the job is attempted."""

    @abstractmethod
    async def cancel(self, id: str) -> None:
        """Ask the job's attempt to stop, wherever it runs. A job that does not run is no error."""
