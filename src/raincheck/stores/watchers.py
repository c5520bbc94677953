"""Who waits for changes: what stores that wake their waiters themselves have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import anyio


class Watchers:
    """The tasks of one event loop that wait for newer versions of jobs. True if there are any.

    Attributes:
        watched: who waits for each job, by its id.
    """

    def __init__(self) -> None:
        self.watched: dict[str, _Watch] = {}

    def __len__(self) -> int:
        return len(self.watched)

    @contextmanager
    def newer(self, id: str, version: int, size: int | None = None) -> Iterator[anyio.Event]:
        """An event that is set with the next `wake()` for this job.

        Args:
            id: the job.
            version: the version that is known.
            size: how much is known of its response, for whoever waits for more of that, too.
        """
        watch = self.watched.get(id)
        if watch is None:
            watch = self.watched[id] = _Watch(version)
        watch.enter(version, size)
        try:
            yield watch.event
        finally:
            if not watch.leave() and self.watched.get(id) is watch:
                del self.watched[id]

    def wake(self, ids: Iterable[str]) -> None:
        """Let those who wait for these jobs look again."""
        for id in ids:
            if watch := self.watched.pop(id, None):
                watch.event.set()

    def wake_all(self) -> None:
        """Let all look again."""
        self.wake([*self.watched])

    def known(self) -> dict[str, tuple[int, int | None]]:
        """The jobs that are waited for, and the least that is known of each: a version, and a size.

        Any thread may ask: the copy is one step, which no other thread comes into.
        """
        return {id: (watch.version, watch.size) for id, watch in dict(self.watched).items()}


class _Watch:
    """Those who wait for one job to be newer than this version, or its response to have grown."""

    __slots__ = ("event", "size", "tasks", "version")

    def __init__(self, version: int) -> None:
        self.event = anyio.Event()
        self.tasks = 0
        self.version = version
        self.size: int | None = None

    def enter(self, version: int, size: int | None) -> None:
        """One more waits, for a job to be newer than this version, or to have more than this."""
        self.version = min(self.version, version)
        if size is not None:
            self.size = size if self.size is None else min(self.size, size)
        self.tasks += 1

    def leave(self) -> int:
        """One waits no more; how many there are."""
        self.tasks -= 1
        return self.tasks
