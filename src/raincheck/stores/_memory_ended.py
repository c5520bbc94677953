"""Jobs that have ended, in the memory of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from raincheck.job import TRANSITIONS, Job, State
from raincheck.stores._memory_order import Order, Place
from raincheck.stores.base import Total


class End(NamedTuple):
    """What is looked at of a job that has ended: who, when, how, and the seconds that it ran."""

    created_at: float
    route: str
    owner: str | None
    state: State
    seconds: float


class _Count:
    """Of a group.

    Attributes:
        jobs: how many there are.
        seconds: how long they have run, together.
    """

    __slots__ = ("jobs", "seconds")

    def __init__(self) -> None:
        self.jobs = 0
        self.seconds = 0.0

    def add(self, jobs: int, seconds: float) -> None:
        self.jobs += jobs
        self.seconds += seconds


class Ended:
    """Jobs that have ended, in order and counted, by how: few of one kind are found among many.

    Told of one it only notes its id: what there is is made of that for those who ask, or in a
    sweep.

    Args:
        of: the end of a job as long as it is listed among those that have ended; else None.

    Attributes:
        come: tells it the id of a job that has ended.
    """

    __slots__ = ("_counts", "_new", "_of", "_orders", "come")

    def __init__(self, of: Callable[[str], End | None]) -> None:
        self._of = of
        self._orders = {state: Order(self._place) for state in State if not TRANSITIONS[state]}
        self._counts: dict[tuple[str, State], _Count] = {}
        self._new: list[str] = []
        self.come = self._new.append  # once for every job: a call less

    def go(self, job: Job) -> None:
        """A job that had ended is about to be forgotten."""
        self.take_up()
        if job.gone or job.synchronous:
            return
        count = self._counts[job.route, job.state]
        if count.jobs > 1:
            count.add(-1, -ran(job.started_at, job.finished_at))
        else:
            del self._counts[job.route, job.state]

    def take_up(self) -> None:
        """Put those that are new where they belong."""
        for id in self._new:
            if (end := self._of(id)) is not None:
                _, route, _, state, seconds = end
                self._orders[state].add(id)
                if (count := self._counts.get((route, state))) is None:
                    count = self._counts[route, state] = _Count()
                count.add(1, seconds)
        self._new.clear()

    def order(self, state: State) -> Order:
        """Those that have ended like this."""
        self.take_up()
        return self._orders[state]

    def prune(self, jobs: int, there: Callable[[str], bool]) -> None:
        """Forget where those stood that are gone; as `Order` does."""
        self.take_up()
        for order in self._orders.values():
            order.prune(jobs, there)

    def totals(self) -> dict[tuple[str, State], Total]:
        """Those of each route and state."""
        self.take_up()
        return {
            (route, state): Total(count.jobs, self._oldest(route, state), max(0.0, count.seconds))
            for (route, state), count in self._counts.items()
        }

    def _oldest(self, route: str, state: State) -> float | None:
        order = self._orders[state]
        return next(filter(self._is_there, order.oldest_first(route)), (None,))[0]

    def _is_there(self, place: Place) -> bool:
        end = self._of(place[1])
        return end is not None and end.created_at == place[0]

    def _place(self, id: str) -> tuple[float, str, str | None] | None:
        end = self._of(id)
        return None if end is None else end[:3]


def ran(started_at: float | None, finished_at: float | None) -> float:
    """How many seconds a job has run that began and ended then."""
    return 0.0 if started_at is None or finished_at is None else finished_at - started_at
