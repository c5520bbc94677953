"""Capacity: who runs, who waits, who is refused, and how long it is likely to take."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raincheck.dialects.base import Outlook
from raincheck.errors import OverQuota, QueueFull, Refusal
from raincheck.job import Job, State
from raincheck.policy import Limits, Policy, seconds
from raincheck.runtime.estimates import UNKNOWN, Durations, by_progress

# Bounds of an estimated Retry-After, in seconds: never 0, which some clients read as 30, and never
# so long that a job which ends early goes unnoticed.
_SHORTEST, _LONGEST = 1, 30

# An end that is further away is not told, in seconds: who has just said that a thousandth of a
# millionth is done knows as little of it, and no date has room for what that comes to.
_FORESEEABLE = 365 * 86_400.0

# Named here, for every poll: as attributes of their class each of them is a call on Python 3.11.
_QUEUED, _RUNNING, _CANCELLING = State.QUEUED, State.RUNNING, State.CANCELLING

_new = tuple.__new__

# Rounds of the owners' turns that are kept as requests come and go. What is ahead in later ones is
# counted when it is asked for, over the owners with as many that wait: an eighth of these at most.
_ROUNDS = 8


class Ticket:
    """One accepted request's place: it runs, or waits for its turn.

    Attributes:
        number: the order in which the requests came.
        route: its route.
        owner: whose it is, or None.
        running: whether it holds capacity.
        rests: whether it has no turn for now.
        turn: called when a waiting ticket's turn has come.
    """

    __slots__ = ("number", "owner", "rests", "route", "running", "turn")

    def __init__(self, number: int, route: _Route, owner: str | None) -> None:
        self.number: int = number
        self.route: _Route = route
        self.owner: str | None = owner
        self.running: bool = False
        self.rests: bool = False
        self.turn: Callable[[], None] | None = None

    def wait(self, turn: Callable[[], None]) -> None:
        """Have something called when its turn has come. One that runs already is not told."""
        self.turn = turn


class _Backlog(NamedTuple):
    """What waits of one owner.

    Attributes:
        owner: whose it is, or None.
        turn: the owner's place among the others: the lowest has the next turn.
        numbers: those of the tickets, in order.
    """

    owner: str | None
    turn: int
    numbers: list[int]


class _Queue:
    """Who waits on one route, owner by owner.

    Owners take turns, so that the backlog of one does not starve another's first request. Nothing
    here looks through all owners, however many wait: what is asked for stands in sorted lists.

    Attributes:
        numbers: those of all tickets that wait, in order.
        aside: the owners who were passed over in `first()`, until they are brought back.
    """

    __slots__ = (
        "_backlogs",
        "_ready",
        "_rounds",
        "_taken",
        "_tickets",
        "_turns",
        "aside",
        "numbers",
    )

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.aside: set[str | None] = set()
        self._tickets: dict[int, Ticket] = {}
        self._backlogs: dict[str | None, _Backlog] = {}
        self._turns: dict[int, _Backlog] = {}
        self._ready: list[int] = []  # turns, in order, of all but those who are set aside
        # By k, the turns of those with more than k tickets, in order: who is called in round k.
        self._rounds: list[list[int]] = [[] for _ in range(_ROUNDS)]
        self._taken = 0

    def add(self, ticket: Ticket) -> None:
        """Let one wait, in the order of the tickets' numbers."""
        backlog = self._backlogs.get(ticket.owner) or self._line_up(ticket.owner, [])
        numbers = backlog.numbers
        if len(numbers) < _ROUNDS:
            insort(self._rounds[len(numbers)], backlog.turn)
        insort(numbers, ticket.number)
        insort(self.numbers, ticket.number)
        self._tickets[ticket.number] = ticket

    def remove(self, ticket: Ticket, *, next_turn: bool) -> bool:
        """Let one go, if it waits.

        Args:
            ticket: which.
            next_turn: whether its owner has had a turn by it: the next one comes after all others'.

        Returns:
            Whether it has waited.
        """
        if self._tickets.pop(ticket.number, None) is None:
            return False
        backlog = self._backlogs[ticket.owner]
        numbers = backlog.numbers
        _take(self.numbers, ticket.number)
        _take(numbers, ticket.number)
        if len(numbers) < _ROUNDS:
            _take(self._rounds[len(numbers)], backlog.turn)
        others = len(self._backlogs) > 1
        if not numbers or (next_turn and others):
            self._forget(backlog)
            if numbers:
                self._line_up(ticket.owner, numbers)
        return True

    def _line_up(self, owner: str | None, numbers: list[int]) -> _Backlog:
        """Give an owner the last turn."""
        turn = self._taken = self._taken + 1
        backlog = self._backlogs[owner] = self._turns[turn] = _Backlog(owner, turn, numbers)
        for turns in (self._ready, *self._rounds[: len(numbers)]):
            turns.append(turn)
        return backlog

    def _forget(self, backlog: _Backlog) -> None:
        del self._backlogs[backlog.owner], self._turns[backlog.turn]
        for turns in self._rounds[: len(backlog.numbers)]:
            _take(turns, backlog.turn)
        if backlog.owner in self.aside:
            self.aside.remove(backlog.owner)
        else:
            _take(self._ready, backlog.turn)

    def first(self, may: Callable[[str | None], bool]) -> Ticket | None:
        """The next whose owner may have a turn; those before who may not are set aside."""
        for place, turn in enumerate(self._ready):
            backlog = self._turns[turn]
            if may(backlog.owner):
                del self._ready[:place]
                return self._tickets[backlog.numbers[0]]
            self.aside.add(backlog.owner)
        self._ready.clear()
        return None

    def bring_back(self, owners: Iterable[str | None]) -> None:
        """Have `first()` ask again whether these owners may have a turn."""
        for owner in [*owners]:
            if owner in self.aside:
                self.aside.remove(owner)
                insort(self._ready, self._backlogs[owner].turn)

    def of(self, owner: str | None) -> int:
        """How many wait of an owner."""
        backlog = self._backlogs.get(owner)
        return 0 if backlog is None else len(backlog.numbers)

    def ahead(self, ticket: Ticket) -> int:
        """How many have their turn before one that waits."""
        backlog = self._backlogs[ticket.owner]
        nth = bisect_left(backlog.numbers, ticket.number)  # it is called in this round
        if nth < _ROUNDS:
            earlier = bisect_left(self._rounds[nth], backlog.turn)
            return sum(map(len, self._rounds[:nth])) + earlier
        ahead = len(self.numbers)
        for turn in self._rounds[-1]:  # all that waits of others has its turn before
            after = len(self._turns[turn].numbers) - nth - (turn < backlog.turn)
            ahead -= max(0, after)
        return ahead

    def came_before(self, number: int) -> int:
        """How many wait that came before this number."""
        return bisect_left(self.numbers, number)


def _take(numbers: list[int], number: int) -> None:
    """Delete a number from a sorted list of which it is one."""
    del numbers[bisect_left(numbers, number)]


class _Route:
    """What is known of one route: who runs, and who waits.

    While it is `blocked`, or an owner is, so many run in other processes that no more may begin.
    """

    __slots__ = (
        "_owners_bound",
        "blocked",
        "blocked_owners",
        "durations",
        "elsewhere",
        "name",
        "policies",
        "queue",
        "resting",
        "running",
        "running_by_owner",
    )

    def __init__(self, name: str, policies: Mapping[str, Policy]) -> None:
        self.name: str = name
        # Asked each time: a route's own may be known later than its jobs.
        self.policies: Mapping[str, Policy] = policies
        self.running: int = 0
        self.running_by_owner: dict[str, int] = {}
        self.queue: _Queue = _Queue()
        # Those who have no turn for now, by owner.
        self.resting: Counter[str | None] = Counter()
        self.durations: Durations | None = None  # once any are known
        self.elsewhere: int = 0  # how many wait in other processes, as far as that is known
        self.blocked: bool = False
        self.blocked_owners: set[str | None] = set()
        self._owners_bound: int | None = None  # when some were set aside

    def unbounded(self) -> bool:
        policy = self.policies[self.name]
        bounded = policy.max_running is not None or policy.max_running_per_owner is not None
        return not (bounded or self.blocked or self.blocked_owners)

    @property
    def free(self) -> bool:
        bound = self.policies[self.name].max_running
        return not self.blocked and (bound is None or self.running < bound)

    def free_for(self, owner: str | None) -> bool:
        if owner in self.blocked_owners:
            return False
        bound = self.policies[self.name].max_running_per_owner
        return bound is None or owner is None or self.running_by_owner.get(owner, 0) < bound

    def begin(self, ticket: Ticket) -> None:
        ticket.running = True
        self.running += 1
        if ticket.owner is not None:
            held = self.running_by_owner.get(ticket.owner, 0)
            self.running_by_owner[ticket.owner] = held + 1

    def end(self, ticket: Ticket) -> None:
        ticket.running = False
        self.running -= 1
        if ticket.owner is not None:
            self.running_by_owner[ticket.owner] -= 1
            if not self.running_by_owner[ticket.owner]:
                del self.running_by_owner[ticket.owner]
            if ticket.owner in self.queue.aside:
                self.queue.bring_back((ticket.owner,))

    def hear(self, queued: int) -> None:
        """So many wait in all processes together."""
        self.elsewhere = max(0, queued - len(self.queue.numbers) - self.resting.total())

    def rest(self, ticket: Ticket) -> None:
        ticket.rests = True
        self.resting[ticket.owner] += 1

    def wake(self, ticket: Ticket) -> None:
        ticket.rests = False
        self.resting[ticket.owner] -= 1
        if not self.resting[ticket.owner]:
            del self.resting[ticket.owner]

    def unblock(self) -> None:
        self.queue.bring_back(self.blocked_owners)
        self.blocked = False
        self.blocked_owners.clear()

    def head(self) -> Ticket | None:
        """Whose turn it is, if there is capacity for anybody who waits."""
        if not self.free:
            return None
        bound = self.policies[self.name].max_running_per_owner
        if bound != self._owners_bound:
            self._owners_bound = bound
            self.queue.bring_back(self.queue.aside)
        return self.queue.first(self.free_for)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Handlers that run and requests that wait."""

    running: int
    waiting: int


class Scheduler:
    """Gives places to requests, within the bounds of each route and of each owner.

    First come, first served; on a route where requests of several owners wait, they take turns.

    Not safe for threads; no method awaits.

    Args:
        limits: of all routes together.
        policies: of each, by its name.
    """

    def __init__(self, limits: Limits, policies: Mapping[str, Policy]) -> None:
        self._limits = limits
        self._cancel_grace = seconds(limits.cancel_grace)
        self._policies = policies
        self._routes: dict[str, _Route] = {}
        self._running = 0
        self._waiting = 0
        self._numbers = 0
        self._blocked: set[_Route] = set()

    @property
    def occupancy(self) -> Occupancy:
        """How many run and wait now, over all routes."""
        return Occupancy(self._running, self._waiting)

    def admit(self, name: str, owner: str | None = None, *, accepted: bool = False) -> Ticket:
        """Take a place on this route.

        Args:
            name: the route.
            owner: whose request it is.
            accepted: whether it has been, elsewhere or before a restart: then the bounds on those
                who wait for the route do not stop it.

        Raises:
            OverQuota: no capacity, and as many requests of this owner wait as may.
            QueueFull: no capacity, and no room to wait.
        """
        route = self._routes.get(name) or self._route(name)
        # Whoever waits on this route goes first, even if capacity has just become free.
        runs = (
            self._running < self._limits.max_running
            and (route.unbounded() or (route.free and route.free_for(owner)))
            and (not route.queue.numbers or route.head() is None)
        )
        if not runs:
            if not accepted:
                self._check_room(route, owner)
            if self._waiting >= self._limits.max_queued:
                detail = f"{self._waiting} requests wait already."
                raise QueueFull(detail, retry_after=self._retry_after(route))
        self._numbers += 1
        ticket = Ticket(self._numbers, route, owner)
        if runs:
            self._running += 1
            route.begin(ticket)
        else:
            self._waiting += 1
            route.queue.add(ticket)
        return ticket

    def rest(self, name: str, owner: str | None) -> Ticket:
        """A place to wait without a turn, until `wake()`, for whom nothing may refuse any more.

        Args:
            name: the route.
            owner: whose request it is.
        """
        self._numbers += 1
        ticket = Ticket(self._numbers, self._route(name), owner)
        ticket.route.rest(ticket)
        self._waiting += 1
        return ticket

    def wake(self, ticket: Ticket) -> None:
        """Let one that rests wait for its turn, which may come at once."""
        ticket.route.wake(ticket)
        ticket.route.queue.add(ticket)
        self._call_next()

    def take_any(self) -> Ticket | None:
        """A place to run for a request of a route that is not known yet, if nobody waits for it."""
        if self._waiting or self._running >= self._limits.max_running:
            return None
        self._numbers += 1
        self._running += 1
        ticket = Ticket(self._numbers, self._route(""), None)
        ticket.route.begin(ticket)
        return ticket

    def move(self, ticket: Ticket, name: str, owner: str | None) -> Ticket:
        """Give a place that runs to a request of this route, whatever its bounds.

        Args:
            ticket: one that runs.
            name: the route.
            owner: whose request it is.

        Returns:
            Its ticket; the other one has none any more.
        """
        route = self._routes.get(name) or self._route(name)
        ticket.route.end(ticket)
        moved = Ticket(ticket.number, route, owner)
        route.begin(moved)
        return moved

    def check(self, name: str, owner: str | None) -> None:
        """Raise what `admit()` would raise now. Takes no place, and nobody gets one by it."""
        policy = self._policies[name]
        bounded = policy.max_running is not None or policy.max_running_per_owner is not None
        if bounded or self._waiting or self._running >= self._limits.max_running:
            self.leave(self.admit(name, owner))

    def block(self, ticket: Ticket, *, owner: bool) -> None:
        """Let one wait that has capacity here: so many run elsewhere that it may not begin.

        Nobody of its route begins until one of them has ended here, or `unblock()` is called.

        Args:
            ticket: one that runs.
            owner: whether only those of its owner may not begin.
        """
        route = ticket.route
        if owner:
            route.blocked_owners.add(ticket.owner)
        else:
            route.blocked = True
        self._blocked.add(route)
        route.end(ticket)
        self._running -= 1
        route.queue.add(ticket)
        self._waiting += 1
        self._call_next()

    @property
    def blocked(self) -> bool:
        """Whether any route is."""
        return bool(self._blocked)

    def unblock(self) -> None:
        """Let those whose turn it is try again."""
        for route in [*self._blocked]:
            self._unblock(route)
        self._call_next()

    def _unblock(self, route: _Route) -> None:
        self._blocked.discard(route)
        route.unblock()

    def leave(self, ticket: Ticket) -> None:
        """Give a place back, running or waiting; those whose turn comes by it are called."""
        if ticket.running:
            ticket.route.end(ticket)
            if ticket.route in self._blocked:
                self._unblock(ticket.route)
            self._running -= 1
            if self._waiting:
                self._call_next()
        elif ticket.rests:
            ticket.route.wake(ticket)
            self._waiting -= 1
        elif ticket.route.queue.remove(ticket, next_turn=False):
            self._waiting -= 1

    def learn(self, ticket: Ticket, seconds: float) -> None:
        """A handler took so long: what the next ones of its route may take goes by that."""
        route = ticket.route
        if route.durations is None:
            route.durations = Durations()
        route.durations.learn(max(0.0, seconds))  # the clock may have been put back

    def knows(self, name: str) -> bool:
        """Whether enough jobs of a route have run here to say how long they take."""
        route = self._routes.get(name)
        durations = None if route is None else route.durations
        return durations is not None and not durations.few

    def hear(self, name: str, queued: int, durations: Sequence[float]) -> None:
        """Take what the store says of a route.

        Args:
            name: the route.
            queued: how many of its jobs wait, in all processes together.
            durations: seconds that the newest ones took, the newest last; they count as long as
                few have run here.
        """
        route = self._route(name)
        route.hear(queued)
        if durations:
            if route.durations is None:
                route.durations = Durations()
            route.durations.suppose(durations)

    def outlook(self, job: Job, ticket: Ticket | None, now: float) -> Outlook:
        """What to expect of a job.

        Args:
            job: the job.
            ticket: its place, if it has one in this process.
            now: seconds since the epoch.
        """
        name, state = job.route, job.state
        position = remaining = completion = None
        policy = self._policies[name]
        route = ticket.route if ticket else self._routes.get(name) or self._route(name)
        durations = route.durations
        elapsed = now - (job.started_at or job.created_at)
        if elapsed < 0.0:  # by the clock of another process, or one that was put back
            elapsed = 0.0
        likely = UNKNOWN * elapsed
        if state is _RUNNING or state is _CANCELLING:
            if durations is not None:
                likely, remaining = durations.running(elapsed)
            if elapsed and job.progress is not None and job.progress.fraction:
                likely, remaining = by_progress(likely, elapsed, job.progress.fraction)
            if state is _CANCELLING:  # it was told to stop, and soon is once more
                likely, remaining = min(likely, self._cancel_grace), None
            if policy.timeout is not None and elapsed < (most := seconds(policy.timeout)):
                likely = min(likely, most - elapsed)
        elif job.not_before is not None and (pause := max(0.0, job.not_before - now)):
            likely = pause  # and then, if nobody waits before it
            if durations is not None:
                early, usual = durations.running(0.0)
                likely, remaining = pause + early, None if usual is None else pause + usual
        elif state is _QUEUED:
            turns = self._turns(route, ticket, elapsed)
            if durations is not None:
                width = self._width(policy, route)
                likely, remaining = durations.queued(turns, width, elapsed)
            if ticket is not None and turns:
                position = round(turns)
        else:  # it has ended
            likely = 0.0
        if remaining is not None and remaining < _FORESEEABLE:
            completion = now + remaining
        retry_after = policy.retry_after
        if retry_after is None:
            retry_after = _SHORTEST if likely <= _SHORTEST else _bounded(likely)
        return _new(Outlook, (retry_after, position, completion))  # for every poll

    def _turns(self, route: _Route, ticket: Ticket | None, age: float) -> float | None:
        """How many turns until that of a job that waits, 1 for the next; None if nobody knows.

        Where the route's own bound holds it back, the turns are those of all processes.
        """
        bound, durations = self._policies[route.name].max_running, route.durations
        if ticket is None:  # it waits elsewhere, most likely since when as many did as do now
            ahead = max(0, route.elsewhere - 1)
            if ahead and bound is not None and durations is not None and durations.mean:
                return max(0.0, ahead - age * bound / durations.mean)
            return None if ahead else 0.0
        if ticket.running or ticket.rests:  # it is about to begin, or to get in line
            return 0.0
        position = self._position(ticket)
        if bound is None or not route.elsewhere:
            return position
        # Each process has a queue of its own, and between them there is no order.
        share = 1 + route.elsewhere / len(route.queue.numbers)
        return (position - 0.5) * share + 0.5

    def _route(self, name: str) -> _Route:
        route = self._routes.get(name)
        if route is None:
            route = self._routes[name] = _Route(name, self._policies)
        return route

    def _check_room(self, route: _Route, owner: str | None) -> None:
        policy = self._policies[route.name]
        quota = policy.max_queued_per_owner if owner is not None else None
        if quota is not None and route.queue.of(owner) + route.resting[owner] >= quota:
            raise self._full(route, owner=True)
        waiting = len(route.queue.numbers) + route.resting.total()
        if policy.max_queued is not None and waiting >= policy.max_queued:
            raise self._full(route, owner=False)

    def full(self, name: str, *, owner: bool) -> Refusal:
        """The refusal of a request for which there is no room to wait on a route.

        Args:
            name: the route.
            owner: whether the owner's bound is reached, not the route's.
        """
        return self._full(self._route(name), owner=owner)

    def _full(self, route: _Route, *, owner: bool) -> Refusal:
        policy, retry_after = self._policies[route.name], self._retry_after(route)
        if owner:
            detail = f"{policy.max_queued_per_owner} of your requests wait for this route already."
            return OverQuota(detail, retry_after=retry_after)
        detail = f"{policy.max_queued} requests wait for this route already."
        return QueueFull(detail, retry_after=retry_after)

    def _retry_after(self, route: _Route) -> int:
        mean = None if route.durations is None else route.durations.mean
        return _bounded((mean or 1.0) / self._width(self._policies[route.name], route))

    def _width(self, policy: Policy, route: _Route) -> int:
        """How many jobs of a route may run at once, here or where its queue is."""
        bound, here = policy.max_running, self._limits.max_running
        return here if bound is None else bound if route.elsewhere else min(here, bound)

    def _position(self, ticket: Ticket) -> int:
        """How many turns until this one, 1 for the next.

        Ahead are the earlier requests of its route, and those of every other route whose own bound
        does not hold them back.
        """
        ahead = ticket.route.queue.ahead(ticket)
        for route in self._routes.values():
            if route is not ticket.route and route.queue.numbers and route.head() is not None:
                ahead += route.queue.came_before(ticket.number)
        return ahead + 1

    def _call_next(self) -> None:
        while self._waiting and self._running < self._limits.max_running:
            heads = [head for r in self._routes.values() if r.queue.numbers and (head := r.head())]
            if not heads:
                return
            ticket = min(heads, key=lambda head: head.number)
            ticket.route.queue.remove(ticket, next_turn=True)
            self._waiting -= 1
            ticket.route.begin(ticket)
            self._running += 1
            if ticket.turn is not None:
                ticket.turn()


def _bounded(seconds: float) -> int:
    if seconds <= _SHORTEST:
        return _SHORTEST
    if seconds >= _LONGEST:
        return _LONGEST
    # A hair over a whole second is that second: clocks are not that exact.
    return math.ceil(round(seconds, 1))
