"""Deadlines: when jobs that wait have to have begun, with one timer for all of them."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from raincheck.tasks import Tasks


class Deadlines:
    """The times by which some jobs have to have begun, on one event loop.

    Args:
        tasks: those of the event loop.
        passed: told of each job whose time has come, by its id, with the time as it was given.

    Attributes:
        known: the times, by the ids of the jobs.
    """

    def __init__(self, tasks: Tasks, passed: Callable[[str, float], None]) -> None:
        self._tasks = tasks
        self._passed = passed
        self.known: dict[str, float] = {}
        # By the event loop's clock, when it has come, of whom. It also has jobs that are not known
        # any more, but no more of them than of the others.
        self._ahead: list[tuple[float, str]] = []
        self._rings = 0.0
        self._call_off: Callable[[], None] | None = None

    def add(self, id: str, by: float, left: float) -> None:
        """Tell of a job unless it is discarded by then.

        Args:
            id: the job's.
            by: the time, as whoever is told of it wants it.
            left: seconds until then.
        """
        self.known[id] = by
        at = self._tasks.time() + left
        heappush(self._ahead, (at, id))
        if self._call_off is None or at < self._rings:
            self._set(at)

    def discard(self, id: str) -> None:
        """This job has begun, or will not."""
        if self.known.pop(id, None) is None:
            return
        if not self.known:
            self._ahead.clear()
            self._unset()
        elif len(self._ahead) > 2 * len(self.known):
            self._ahead = [each for each in self._ahead if each[1] in self.known]
            heapify(self._ahead)

    def _set(self, at: float) -> None:
        self._unset()
        self._rings = at
        left = max(0.0, at - self._tasks.time())
        self._call_off = self._tasks.call_later(left, self._ring)

    def _unset(self) -> None:
        if self._call_off is not None:
            self._call_off()
            self._call_off = None

    def _ring(self) -> None:
        self._call_off = None
        now = max(self._rings, self._tasks.time())  # a clock may be read a hair before it
        while self._ahead and (self._ahead[0][0] <= now or self._ahead[0][1] not in self.known):
            _, id = heappop(self._ahead)
            by = self.known.pop(id, None)
            if by is not None:
                self._passed(id, by)
        if self._ahead:
            self._set(self._ahead[0][0])
