"""A gate for tests: it holds what runs on an event loop, and opens from anywhere."""

from __future__ import annotations

from threading import Lock
from typing import Self

import anyio

from raincheck.tasks import Tasks, open_tasks


class Gate:
    """Closed until the test opens it; handlers, or what stands in for what they call, wait at it.

    Whoever waits may be on asyncio or trio, and in another thread than the test, as with
    starlette's `TestClient`. As a context manager it is open at the end of the block at the latest,
    so that a test that fails leaves nothing behind that waits for ever.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open = False
        self._waiting: list[tuple[Tasks, anyio.Event]] = []

    async def wait(self) -> None:
        """Return when it is open; in a `def` handler: `anyio.from_thread.run(gate.wait)`."""
        with self._lock:
            if self._open:
                return
            opened = anyio.Event()
            self._waiting.append((open_tasks(), opened))
        await opened.wait()

    def open(self) -> None:
        """Let everybody through who waits or comes later, for good; again is no error."""
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for tasks, opened in waiting:
            tasks.call_soon(opened.set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
