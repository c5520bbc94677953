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
        known: what each job is told of by, by its id.
    """

    def __init__(self, tasks: Tasks, passed: Callable[[str, float], None]) -> None:
        self._tasks = tasks
        self._passed = passed
        # By the event loop's clock, when it has come, of whom, and the time as it was given.
        self.known: dict[str, tuple[float, str, float]] = {}
        # It also has those of jobs that are not known any more, or were told of anew, but no more
        # of them than of the others.
        self._ahead: list[tuple[float, str, float]] = []
        self._rings = 0.0
        self._call_off: Callable[[], None] | None = None

    def add(self, id: str, by: float, left: float) -> None:
        """Tell of a job unless it is discarded by then.

        Args:
            id: the job's.
            by: the time, as whoever is told of it wants it.
            left: seconds until then.
        """
        at = self._tasks.time() + left
        told = self.known[id] = (at, id, by)
        heappush(self._ahead, told)
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
            self._ahead = [each for each in self._ahead if self._holds(each)]
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
        while self._ahead and (self._ahead[0][0] <= now or not self._holds(self._ahead[0])):
            told = heappop(self._ahead)
            if self._holds(told):
                _, id, by = told
                del self.known[id]
                self._passed(id, by)
        if self._ahead:
            self._set(self._ahead[0][0])

    def _holds(self, told: tuple[float, str, float]) -> bool:
        return self.known.get(told[1]) is told  # a job may have been told of once more
