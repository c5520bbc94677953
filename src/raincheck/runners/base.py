"""The runner port: arranges that accepted jobs run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, ClassVar

from starlette.types import ASGIApp


class Brought(Enum):
    """What has become of a job that an engine has brought."""

    ENDED = "nothing of it is left to run: it has, just now or before, or there is no such job"
    HELD = "it runs or waits already, or to run again, or is for processes of another release"
    BUSY = "there is no room for it here"


Run = Callable[[str], Coroutine[Any, Any, Brought | None]]
"""Runs one job, given its id, to its end, and says what has become of it; None: it has ended.

Never raises an `Exception`. The app runs in a context of its own, whatever task this is called in.
"""

Stop = Callable[[str], None]
"""Asks the run of a job, if it is here, to stop."""


class Runner(ABC):
    """Arranges that accepted jobs run: here, or wherever its engine has workers.

    To write one, copy `runners/local.py`, and run `raincheck.testing.RunnerContract` over it. That
    every job runs, and that only one run of it counts, is not the runner's care: it may lose jobs
    and may bring them twice.
    """

    in_place: ClassVar[bool]
    """Whether an accepted handler goes on where it is, if there is capacity."""

    patient: ClassVar[bool] = True
    """Whether a job that its engine brings may wait where it is brought, for its turn there."""

    @abstractmethod
    def bind(self, run: Run, stop: Stop, spawn: Callable[[Run, str], None]) -> None:
        """Take what runs and stops a job. Called once, before anything else.

        Args:
            run: runs a job to its end.
            stop: asks a job that runs in this process to stop.
            spawn: starts `run(id)` as a task that its middleware owns.
        """

    def belong(self, deployment: str) -> None:  # noqa: B027 - nothing to do in most
        """Take the name under which the store keeps the jobs, if it has one.

        An engine that others use, too, has to keep their jobs apart. Called once, after `bind`.
        """

    def attach(self, app: ASGIApp) -> None:  # noqa: B027 - nothing to do in most
        """Take the app that has the middleware, if a worker of the engine is to run its lifespan.

        Called once, when the middleware is made.
        """

    def check(self, queue: str) -> None:  # noqa: B027 - one that has no queues takes any name
        """Look at a queue's name in a policy, as soon as that is known.

        Raises:
            ConfigurationError: it has queues, and none of that name.
        """

    async def open(self) -> None:  # noqa: B027 - nothing to do in most
        """Make ready for the running event loop. Must not raise: a later `submit` may."""

    @abstractmethod
    async def submit(self, id: str, queue: str | None = None) -> None:
        """Arrange that the job runs.

        Args:
            id: the job's.
            queue: the queue that its policy names; None for the runner's own.

        Raises:
            Exception: the job was not taken, or perhaps not.
        """

    @abstractmethod
    async def cancel(self, id: str) -> None:
        """Ask the job's run to stop, if it runs in this process; that is all that is asked."""

    async def aclose(self) -> None:  # noqa: B027 - nothing to do in most
        """Release what `open` has taken. It may be opened again afterwards."""
