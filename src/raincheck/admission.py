"""Capacity: who runs, who waits, who is refused, and how long it is likely to take."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from raincheck.dialects.base import Outlook
from raincheck.errors import QueueFull
from raincheck.job import Job, State
from raincheck.policy import Limits, Policy

# Weight of the newest job in the running average of a route's durations: about the last ten count.
_NEWEST = 0.2

# Bounds of an estimated Retry-After, in seconds: never 0, which some clients read as 30, and never
# so long that a job which ends early goes unnoticed.
_SHORTEST, _LONGEST = 1, 30


class Ticket:
    """One accepted request's place: it runs, or waits for its turn.

    Attributes:
        number: places are given in the order of these.
        route: the route's name.
        running: whether it holds capacity.
        turn: called when a waiting ticket's turn has come.
    """

    __slots__ = ("number", "route", "running", "turn")

    def __init__(self, number: int, route: _Route, *, running: bool) -> None:
        self.number = number
        self.route = route
        self.running = running
        self.turn: Callable[[], None] | None = None


class _Route:
    """What is known of one route."""

    __slots__ = ("duration", "policy", "running", "waiting")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.running = 0
        self.waiting: list[Ticket] = []  # in the order of their numbers
        self.duration: float | None = None

    @property
    def free(self) -> bool:
        return self.policy.max_running is None or self.running < self.policy.max_running

    def place(self, number: int) -> int:
        """How many wait here ahead of this number."""
        return bisect_left(self.waiting, number, key=lambda ticket: ticket.number)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Handlers that run and requests that wait."""

    running: int
    waiting: int


class Admission:
    """Gives places to requests: first come, first served, within the bounds of each route.

    Not safe for threads; no method awaits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._routes: dict[str, _Route] = {}
        self._running = 0
        self._waiting = 0
        self._numbers = 0

    @property
    def occupancy(self) -> Occupancy:
        """How many run and wait now, over all routes."""
        return Occupancy(self._running, self._waiting)

    def admit(self, name: str, policy: Policy) -> Ticket:
        """Take a place on this route.

        Raises:
            QueueFull: no capacity, and no room to wait.
        """
        route = self._route(name, policy)
        running = self._running < self._limits.max_running and route.free
        # Whoever waits on this route goes first, even if capacity has just become free.
        if running and not route.waiting:
            self._running += 1
            route.running += 1
        else:
            running = False
            self._check_room(route)
        self._numbers += 1
        ticket = Ticket(self._numbers, route, running=running)
        if not running:
            route.waiting.append(ticket)
            self._waiting += 1
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give a place back, running or waiting; those whose turn comes by it are called."""
        route = ticket.route
        if ticket.running:
            ticket.running = False
            route.running -= 1
            self._running -= 1
            self._call_next()
        else:
            place = route.place(ticket.number)
            if place < len(route.waiting) and route.waiting[place] is ticket:
                del route.waiting[place]
                self._waiting -= 1

    def learn(self, ticket: Ticket, seconds: float) -> None:
        """Count a handler's duration into its route's average."""
        route = ticket.route
        known = route.duration
        route.duration = seconds if known is None else known + _NEWEST * (seconds - known)

    def outlook(self, job: Job, ticket: Ticket | None, policy: Policy, now: float) -> Outlook:
        """What to expect of an unfinished job.

        Args:
            job: the job.
            ticket: its place, if it has one in this process.
            policy: its route's policy.
            now: seconds since the epoch.
        """
        route = self._routes.get(job.route)
        duration = None if route is None else route.duration
        position = None
        if job.state is State.QUEUED and ticket is not None and not ticket.running:
            position = self._position(ticket)
        remaining = None
        if duration is not None:
            remaining = duration - (now - (job.started_at or now))
            if position is not None:
                remaining += duration * (position // self._width(policy))
        if remaining is not None and remaining <= 0:
            remaining = None  # longer than ever before: nothing is known any more
        retry_after = policy.retry_after
        if retry_after is None:
            # With nothing to go by, a poll after as long again as the job has been there.
            likely = (now - job.created_at) / 2 if remaining is None else remaining
            retry_after = _bounded(likely)
        return Outlook(retry_after, position, None if remaining is None else now + remaining)

    def _route(self, name: str, policy: Policy) -> _Route:
        route = self._routes.get(name)
        if route is None:
            route = self._routes[name] = _Route(policy)
        return route

    def _check_room(self, route: _Route) -> None:
        policy, limits = route.policy, self._limits
        if policy.max_queued is not None and len(route.waiting) >= policy.max_queued:
            detail = f"{len(route.waiting)} requests wait for this route already."
        elif self._waiting >= limits.max_queued:
            detail = f"{self._waiting} requests wait already."
        else:
            return
        width = self._width(policy)
        raise QueueFull(detail, retry_after=_bounded((route.duration or 1.0) / width))

    def _width(self, policy: Policy) -> int:
        return min(self._limits.max_running, policy.max_running or self._limits.max_running)

    def _position(self, ticket: Ticket) -> int:
        """How many turns until this one, 1 for the next.

        Ahead are the earlier requests of its route, and those of every other route whose own bound
        does not hold them back.
        """
        ahead = ticket.route.place(ticket.number)
        for route in self._routes.values():
            if route is not ticket.route and route.free and route.waiting:
                ahead += route.place(ticket.number)
        return ahead + 1

    def _call_next(self) -> None:
        while self._waiting and self._running < self._limits.max_running:
            heads = [r.waiting[0] for r in self._routes.values() if r.waiting and r.free]
            if not heads:
                return
            ticket = min(heads, key=lambda head: head.number)
            del ticket.route.waiting[0]
            self._waiting -= 1
            ticket.running = True
            ticket.route.running += 1
            self._running += 1
            if ticket.turn is not None:
                ticket.turn()


def _bounded(seconds: float) -> int:
    # A hair over a whole second is that second: clocks are not that exact.
    return max(_SHORTEST, min(_LONGEST, math.ceil(round(seconds, 1))))
