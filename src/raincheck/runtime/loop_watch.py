"""The event loop, watched while jobs run: what holds it holds up everybody."""

from __future__ import annotations

from collections.abc import Callable, Collection

from raincheck.runtime.observers import Observers
from raincheck.tasks import Tasks

# Seconds between looks, and how late one is that is told of: then the loop was held for so long at
# least. What holds it for the sum of both is always found.
_INTERVAL, _LATE = 0.25, 1.0


class LoopWatch:
    """Tells when nothing else ran for a second, and of which routes jobs ran meanwhile.

    It looks at the clock four times a second as long as there are jobs, and does nothing else: a
    look that comes late was held up.

    Args:
        tasks: the tasks of the event loop.
        observers: are told.
        ran: gives the routes of the jobs that have run here since it was asked last.

    Attributes:
        watching: whether it does now.
    """

    def __init__(
        self, tasks: Tasks, observers: Observers, ran: Callable[[], Collection[str]]
    ) -> None:
        self.watching: bool = False
        self._tasks = tasks
        self._observers = observers
        self._ran = ran
        self._due = 0.0

    def watch(self) -> None:
        """Look from now on, until there is nothing to be seen."""
        self.watching = True
        self._due = self._tasks.time() + _INTERVAL
        self._tasks.call_later(_INTERVAL, self._look)

    def _look(self) -> None:
        late, routes = self._tasks.time() - self._due, self._ran()
        if late >= _LATE and routes:
            self._observers.held(late, routes)
        if routes:
            self.watch()
        else:
            self.watching = False
