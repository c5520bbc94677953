"""Shutdown, as it shows before the lifespan tells of it.

uvicorn tells an app's lifespan of SIGTERM when all responses have ended, and an open long poll is
one that has not. So while any is open the server is looked at.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context

import anyio

from raincheck.tasks import Tasks

# Seconds between looks.
_INTERVAL = 1.0


class Waits:
    """What waits here for the sake of a client, and waits no more once the server is to stop.

    Args:
        tasks: the tasks of the event loop.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._open: set[anyio.CancelScope] = set()
        self._looking = False
        self._over = False

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """A block that is left after this time, or as soon as the server is known to stop."""
        with anyio.move_on_after(0.0 if self._over else seconds) as scope:
            self._open.add(scope)
            if not self._looking:
                self._looking = True
                self._tasks.spawn(self._look, Context())
            try:
                yield
            finally:
                self._open.discard(scope)

    def end(self) -> None:
        """The server stops: leave every block now, and later ones at once."""
        self._over = True
        for scope in self._open:
            scope.cancel()

    async def _look(self) -> None:
        while self._open and not self._over:
            if announced():
                self.end()
            else:
                await anyio.sleep(_INTERVAL)
        self._looking = False


def announced() -> bool:
    """Whether the server that handles SIGTERM means to exit; False where that cannot be seen.

    uvicorn's handler is a method of the server that runs here, alone, as its supervisor's child or
    in gunicorn's worker: `uvicorn.Server.handle_exit`, which sets `should_exit`. It is looked at,
    and nothing is touched.
    """
    try:
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        return getattr(server, "should_exit", False) is True
    except Exception:  # whatever object that is, and whatever its attributes do
        return False
