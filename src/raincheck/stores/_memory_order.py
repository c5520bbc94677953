"""Jobs by when they were accepted, in the memory of one process."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator

from raincheck.job import Job

SLACK = 1000
"""Places that may stand empty, besides as many as there are jobs."""

Place = tuple[float, str]
"""When a job was accepted, and its id."""

_Bucket = tuple[str | None, str | None]  # a route, an owner; None: any


class Order:
    """The ids of jobs in the order of their creation: of all, and of each route and owner.

    Told of a new job it only notes its id: the order is made for those who ask for it. Nobody tells
    it when one goes: its place stays for a while, for whoever reads the order to pass by.

    Args:
        of: when a job was accepted, its route and its owner, by its id; None if it has no place.

    Attributes:
        add: tells it the id of a new job.
    """

    __slots__ = ("_new", "_of", "_places", "add")

    def __init__(self, of: Callable[[str], tuple[float, str, str | None] | None]) -> None:
        self._of = of
        self._new: list[str] = []
        self.add = self._new.append  # once for every job: a call less
        self._places: dict[_Bucket, list[Place]] = {}

    def newest_first(
        self,
        *,
        route: str | None,
        owner: str | None,
        since: float | None,
        until: float | None,
        before: Place | None,
    ) -> Iterator[Place]:
        """The places of jobs; each once, and perhaps of some that are gone.

        Args:
            route: of this route; None: of any.
            owner: of this owner; None: of any, or none.
            since: accepted then or later.
            until: accepted before.
            before: only those that were before this one.
        """
        self._take_up()
        places = self._places.get((route, owner), [])
        start = 0 if since is None else bisect_left(places, (since,))
        end = len(places) if until is None else bisect_left(places, (until,))
        if before is not None:
            end = min(end, bisect_left(places, before))
        return reversed(places[start:end])

    def oldest_first(self, route: str) -> Iterator[Place]:
        """The places of a route's jobs; perhaps of some that are gone."""
        self._take_up()
        return iter(self._places.get((route, None), ()))

    def prune(self, jobs: int, there: Callable[[str], bool]) -> None:
        """Forget those that are not there any more, should they be many.

        Args:
            jobs: how many are.
            there: whether one is.
        """
        if len(self._new) + len(self._places.get((None, None), ())) <= 2 * jobs + SLACK:
            return
        self._new[:] = filter(there, self._new)
        kept = {
            bucket: [place for place in places if there(place[1])]
            for bucket, places in self._places.items()
        }
        # A new dict, for what is deleted from one leaves its room behind.
        self._places = {bucket: places for bucket, places in kept.items() if places}

    def _take_up(self) -> None:
        """Put those that are new in their places: near the end, unless a clock was set back."""
        found: defaultdict[_Bucket, list[Place]] = defaultdict(list)
        for id in dict.fromkeys(self._new):
            if (of := self._of(id)) is not None:
                created_at, route, owner = of
                place = created_at, id
                found[None, None].append(place)
                found[route, None].append(place)
                if owner is not None:
                    found[None, owner].append(place)
                    found[route, owner].append(place)
        self._new.clear()
        for bucket, new in found.items():
            new.sort()
            places = self._places.setdefault(bucket, [])
            if (start := bisect_left(places, new[0])) < len(places):
                new = sorted({*places[start:], *new})
            places[start:] = new


def within(
    job: Job,
    *,
    route: str | None,
    owner: str | None,
    since: float | None,
    until: float | None,
    before: Place | None,
) -> bool:
    """Whether a job is one of those that `Order.newest_first` is asked for."""
    return (
        (route is None or job.route == route)
        and (owner is None or job.owner == owner)
        and (since is None or job.created_at >= since)
        and (until is None or job.created_at < until)
        and (before is None or (job.created_at, job.id) < before)
    )
