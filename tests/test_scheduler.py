"""Capacity: first come, first served, within the bounds of each route and of all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raincheck import Limits, Policy
from raincheck.dialects.base import Outlook
from raincheck.errors import QueueFull
from raincheck.job import Job, Progress, State
from raincheck.routing.policies import ByRoute
from raincheck.runtime import scheduler
from raincheck.runtime.estimates import FEW, WINDOW
from raincheck.runtime.scheduler import Occupancy, Scheduler, Ticket

NOW = 1000.0
FREE = Policy()
ONE = Policy(max_running=1)
TWO = Policy(max_running=2)


class Places(Scheduler):
    """Told of a route's policy where a place on it is taken."""

    def __init__(self, limits: Limits) -> None:
        self.known = ByRoute()
        super().__init__(limits, self.known)

    def take(
        self, name: str, policy: Policy, owner: str | None = None, *, accepted: bool = False
    ) -> Ticket:
        self.known[name] = policy
        return self.admit(name, owner, accepted=accepted)


def places_for(max_running: int = 1, max_queued: int = 1000) -> Places:
    return Places(Limits(max_running=max_running, max_queued=max_queued))


def job(route: str = "a", state: State = State.RUNNING, *, age: float = 0.0) -> Job:
    then = NOW - age
    return Job(
        id="id",
        route=route,
        state=state,
        created_at=then,
        started_at=None if state is State.QUEUED else then,
    )


def queue(places: Places, called: list[str], *names: str, policy: Policy = FREE) -> list[Ticket]:
    """Take one place per name; a name's first letter is its route."""
    tickets = []
    for name in names:
        ticket = places.take(name[0], policy)
        ticket.turn = lambda name=name: called.append(name)
        tickets.append(ticket)
    return tickets


def position(places: Places, ticket: Ticket, route: str = "a") -> int | None:
    return places.outlook(job(route, State.QUEUED), ticket, NOW).queue_position


# --- who runs, who waits, who is refused -------------------------------------------------------


@pytest.mark.parametrize(
    ("max_running", "policy", "running"),
    [
        pytest.param(2, FREE, 2, id="the bound of all"),
        pytest.param(9, TWO, 2, id="the bound of the route"),
        pytest.param(1, TWO, 1, id="the narrower of both"),
        pytest.param(9, FREE, 4, id="neither reached"),
    ],
)
def test_as_many_run_as_may_and_the_rest_waits(
    max_running: int, policy: Policy, running: int
) -> None:
    places = places_for(max_running)
    tickets = [places.take("a", policy) for _ in range(4)]
    assert [ticket.running for ticket in tickets] == [True] * running + [False] * (4 - running)
    assert places.occupancy == Occupancy(running, 4 - running)


def test_a_full_route_leaves_the_others_their_capacity() -> None:
    places = places_for(2)
    assert places.take("a", ONE).running
    assert not places.take("a", ONE).running
    assert places.take("b", ONE).running


@pytest.mark.parametrize(
    ("max_queued", "policy", "waiting", "detail"),
    [
        pytest.param(2, FREE, 2, "2 requests wait already", id="the bound of all"),
        pytest.param(
            9, Policy(max_queued=2), 2, "wait for this route", id="the bound of the route"
        ),
        pytest.param(1, Policy(max_queued=2), 1, "1 requests wait already", id="the narrower"),
        pytest.param(0, FREE, 0, "0 requests wait already", id="no room at all"),
        pytest.param(9, Policy(max_queued=0), 0, "wait for this route", id="none on this route"),
    ],
)
def test_a_full_queue_refuses(max_queued: int, policy: Policy, waiting: int, detail: str) -> None:
    places = places_for(1, max_queued)
    for _ in range(1 + waiting):
        places.take("a", policy)
    with pytest.raises(QueueFull, match=detail) as refused:
        places.take("a", policy)
    assert (refused.value.retry_after or 0) >= 1
    assert places.occupancy == Occupancy(1, waiting)


def test_one_routes_full_queue_does_not_refuse_another() -> None:
    places = places_for(1)
    narrow = Policy(max_queued=1)
    places.take("a", narrow)
    places.take("a", narrow)
    with pytest.raises(QueueFull):
        places.take("a", narrow)
    assert not places.take("b", narrow).running


def test_a_place_given_back_is_given_out_again() -> None:
    places = places_for(1, max_queued=0)
    first = places.take("a", FREE)
    with pytest.raises(QueueFull):
        places.take("a", FREE)
    places.leave(first)
    assert places.occupancy == Occupancy(0, 0)
    assert places.take("a", FREE).running


# --- turns -------------------------------------------------------------------------------------


def test_turns_come_in_the_order_of_arrival() -> None:
    places, called = places_for(1), list[str]()
    first, *rest = queue(places, called, "a0", "a1", "b2", "a3", "c4")
    places.leave(first)
    for ticket in rest:
        assert ticket.running
        places.leave(ticket)
    assert called == ["a1", "b2", "a3", "c4"]
    assert places.occupancy == Occupancy(0, 0)


def test_who_has_run_is_not_called() -> None:
    places, called = places_for(2), list[str]()
    for ticket in queue(places, called, "a0", "a1"):
        places.leave(ticket)
    assert called == []


def test_a_turn_passes_over_a_route_that_is_full_itself() -> None:
    places, called = places_for(2), list[str]()
    other = places.take("b", FREE)
    queue(places, called, "a0", "a1", "a2", policy=ONE)
    queue(places, called, "b3")
    places.leave(other)
    assert called == ["b3"]


def test_a_free_place_goes_to_the_first_who_may_take_it() -> None:
    places, called = places_for(3), list[str]()
    wide = places.take("b", FREE)
    (only,) = queue(places, called, "a0", policy=ONE)
    places.take("c", FREE)
    queue(places, called, "a1", policy=ONE)
    queue(places, called, "b2", "b3")
    places.leave(wide)
    assert called == ["b2"]
    places.leave(only)
    assert called == ["b2", "a1"]


def test_a_newcomer_does_not_overtake_who_waits_on_its_route() -> None:
    places, called = places_for(2), list[str]()
    blocked = places.take("a", ONE)
    queue(places, called, "a1", policy=ONE)
    newcomer = places.take("a", ONE)
    assert not newcomer.running
    places.leave(blocked)
    assert called == ["a1"]
    assert not newcomer.running


def test_a_turn_may_end_at_once() -> None:
    places, ran = places_for(1), list[int]()
    tickets: list[Ticket] = []

    def run(number: int) -> None:
        ran.append(number)
        places.leave(tickets[number])

    for number in range(5):
        ticket = places.take("a", FREE)
        ticket.turn = lambda number=number: run(number)
        tickets.append(ticket)
    places.leave(tickets[0])
    assert ran == [1, 2, 3, 4]
    assert places.occupancy == Occupancy(0, 0)


def test_who_leaves_the_queue_is_not_called() -> None:
    places, called = places_for(1), list[str]()
    first, second, _ = queue(places, called, "a0", "a1", "a2")
    places.leave(second)
    assert places.occupancy == Occupancy(1, 1)
    places.leave(first)
    assert called == ["a2"]


@pytest.mark.parametrize("place", [0, 1], ids=["running", "waiting"])
def test_leaving_twice_is_leaving_once(place: int) -> None:
    places, called = places_for(1), list[str]()
    tickets = queue(places, called, "a0", "a1", "a2")
    places.leave(tickets[place])
    left = places.occupancy
    places.leave(tickets[place])
    assert places.occupancy == left == Occupancy(1, 1)


# --- positions ---------------------------------------------------------------------------------


def test_a_position_counts_from_one_and_moves_up() -> None:
    places = places_for(1)
    first, *rest = queue(places, [], "a0", "a1", "a2", "a3")
    assert [position(places, ticket) for ticket in rest] == [1, 2, 3]
    places.leave(first)
    assert [position(places, ticket) for ticket in rest] == [None, 1, 2]
    places.leave(rest[1])
    assert position(places, rest[2]) == 1


def test_a_position_counts_the_earlier_ones_of_other_routes() -> None:
    places = places_for(1)
    _, b1, a2, b3 = queue(places, [], "a0", "b1", "a2", "b3")
    assert position(places, b1, "b") == 1
    assert position(places, a2) == 2
    assert position(places, b3, "b") == 3


def test_a_position_does_not_count_those_who_cannot_go_first() -> None:
    places = places_for(2)
    queue(places, [], "a0", "a1", "a2", policy=ONE)
    _, waits = queue(places, [], "b3", "b4")
    assert position(places, waits, "b") == 1


@pytest.mark.parametrize("state", [State.RUNNING, State.CANCELLING])
def test_only_a_queued_job_has_a_position(state: State) -> None:
    places = places_for(1)
    _, waits = queue(places, [], "a0", "a1")
    assert places.outlook(job(state=state), waits, NOW).queue_position is None
    assert places.outlook(job(state=State.QUEUED), None, NOW).queue_position is None


# --- estimates ---------------------------------------------------------------------------------


def taught(seconds: float, *, max_running: int = 1, waiting: int = 0) -> tuple[Places, Ticket]:
    """A place on route a, the last of those that wait, where all jobs took so many seconds."""
    places = places_for(max_running)
    tickets = queue(places, [], *["a"] * (max_running + waiting))
    for _ in range(FEW):
        places.learn(tickets[0], seconds)
    return places, tickets[-1]


@pytest.mark.parametrize(
    ("age", "retry_after"),
    [(0.0, 1), (1.0, 1), (4.0, 2), (5.0, 3), (60.0, 30), (1e6, 30), (-60.0, 1)],
)
def test_nothing_known_doubles_the_time_until_the_next_poll(age: float, retry_after: int) -> None:
    outlook = places_for().outlook(job(age=age), None, NOW)
    assert (outlook.retry_after, outlook.completion) == (retry_after, None)


@pytest.mark.parametrize(
    ("duration", "age", "retry_after", "completion"),
    [
        pytest.param(8.0, 0.0, 8, NOW + 8, id="just begun"),
        pytest.param(8.0, 5.5, 3, NOW + 2.5, id="under way, rounded up"),
        pytest.param(8.0, 7.9, 1, NOW + 0.1, id="almost there"),
        pytest.param(0.01, 0.0, 1, NOW + 0.01, id="a quick route: at least 1"),
        pytest.param(900.0, 0.0, 30, NOW + 900, id="a slow route: at most 30"),
        pytest.param(8.0, 8.0, 4, None, id="overdue: nothing is known any more"),
        pytest.param(8.0, 20.0, 10, None, id="long overdue"),
    ],
)
def test_a_running_job_is_expected_when_its_route_usually_ends(
    duration: float, age: float, retry_after: int, completion: float | None
) -> None:
    places, ticket = taught(duration)
    outlook = places.outlook(job(age=age), ticket, NOW)
    assert outlook.retry_after == retry_after
    assert outlook.completion == (None if completion is None else pytest.approx(completion))


@pytest.mark.parametrize(
    ("max_running", "waiting", "turns"), [(1, 1, 2), (1, 3, 4), (2, 2, 2), (2, 4, 3)]
)
def test_a_queued_job_is_expected_after_those_ahead(
    max_running: int, waiting: int, turns: int
) -> None:
    places, last = taught(5.0, max_running=max_running, waiting=waiting)
    outlook = places.outlook(job(state=State.QUEUED), last, NOW)
    assert outlook.queue_position == waiting
    assert outlook.completion == pytest.approx(NOW + 5.0 * turns)
    assert outlook.retry_after == min(30, 5 * turns)


def test_the_next_looks_come_when_one_in_so_many_has_ended() -> None:
    places, ticket = taught(10.0)
    for seconds in range(1, WINDOW + 1):
        places.learn(ticket, seconds)
    asked = [places.outlook(job(age=age), ticket, NOW).retry_after for age in (0.0, 4.0, 32.0)]
    assert asked == [4, 2, 6]  # one in 20 has ended; at most 35 % more; one in 6 of the other 32


@pytest.mark.parametrize(
    ("timeout", "age", "retry_after"),
    [(25.0, 0.0, 20), (25.0, 21.0, 4), (25.0, 24.5, 1), (20.5, 20.0, 1), (25.0, 26.0, 13)],
)
def test_a_job_is_looked_at_when_its_time_is_over(
    timeout: float, age: float, retry_after: int
) -> None:
    places, ticket = taught(20.0)
    places.known["a"] = Policy(timeout=timeout)
    assert places.outlook(job(age=age), ticket, NOW).retry_after == retry_after


def test_a_job_that_is_cancelled_is_looked_at_soon() -> None:
    places, ticket = taught(600.0)
    outlook = places.outlook(job(state=State.CANCELLING, age=60.0), ticket, NOW)
    assert (outlook.retry_after, outlook.completion) == (5, None)


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_what_has_ended_is_there_to_be_asked_for(state: State) -> None:
    places, _ = taught(600.0)
    assert places.outlook(job(state=state, age=60.0), None, NOW) == Outlook(1)


@pytest.mark.parametrize("fraction", [5e-324, 1e-300, 1e-12, 1e-7])
def test_what_is_further_away_than_anybody_plans_is_not_told(fraction: float) -> None:
    """Nor does a number that no date has room for keep anybody from the document."""
    places, ticket = taught(20.0)
    hardly = job(age=100.0)._replace(progress=Progress(fraction))
    outlook = places.outlook(hardly, ticket, NOW)
    assert (outlook.retry_after, outlook.completion) == (30, None)
    slowly = job(age=100.0)._replace(progress=Progress(0.001))
    assert places.outlook(slowly, ticket, NOW).completion == pytest.approx(NOW + 99_900.0)


@pytest.mark.parametrize("state", [State.RUNNING, State.QUEUED])
@pytest.mark.parametrize("progress", [None, Progress(0.1)])
def test_a_clock_that_was_put_back_makes_no_end_that_has_passed(
    state: State, progress: Progress | None
) -> None:
    places, ticket = taught(20.0, waiting=state is State.QUEUED)
    ahead = job(state=state, age=-3600.0)._replace(progress=progress)
    outlook = places.outlook(ahead, ticket, NOW)
    assert outlook.completion == NOW + (40.0 if state is State.QUEUED else 20.0)
    assert outlook.retry_after >= 20
    for seconds in [20.0] * 40 + [-3600.0] * 24:  # these began an hour later than they ended
        places.learn(ticket, seconds)
    assert (places.outlook(job(state=state), ticket, NOW).completion or 0.0) > NOW


# --- on a fleet --------------------------------------------------------------------------------


def test_what_others_ran_counts_as_long_as_few_ran_here() -> None:
    places, ticket = places_for(), None
    places.hear("a", 0, [10.0] * FEW)
    assert not places.knows("a")
    assert places.outlook(job(), ticket, NOW) == Outlook(10, None, NOW + 10.0)
    ticket = places.take("a", FREE)
    for _ in range(FEW):
        places.learn(ticket, 20.0)
    assert places.knows("a")
    places.hear("a", 0, [10.0] * WINDOW)
    for _ in range(WINDOW):
        places.learn(ticket, 20.0)
    assert places.outlook(job(), ticket, NOW).completion == NOW + 20.0


def test_a_position_counts_those_who_wait_elsewhere() -> None:
    """Of 12 that wait for two places 4 do here: three of each four turns are others'."""
    places = places_for(9)
    tickets = queue(places, [], *["a"] * 6, policy=TWO)
    for _ in range(FEW):
        places.learn(tickets[0], 5.0)
    here = [position(places, ticket) for ticket in tickets[2:]]
    places.hear("a", 12, ())
    assert here == [1, 2, 3, 4]
    assert [position(places, ticket) for ticket in tickets[2:]] == [2, 5, 8, 11]
    last = places.outlook(job(state=State.QUEUED), tickets[-1], NOW)
    assert last.completion == pytest.approx(NOW + 11 / 2 * 5.0 + 5.0)
    places.hear("a", 0, ())
    assert [position(places, ticket) for ticket in tickets[2:]] == here


def test_those_who_wait_elsewhere_do_not_count_where_each_process_has_its_own_capacity() -> None:
    places = places_for(1)
    _, waits = queue(places, [], "a0", "a1")
    places.hear("a", 100, ())
    assert position(places, waits) == 1


@pytest.mark.parametrize(
    ("queued", "policy", "age", "completion"),
    [
        pytest.param(0, FREE, 3.0, 5.0, id="nobody else waits"),
        pytest.param(1, FREE, 3.0, 5.0, id="it is the one who waits"),
        pytest.param(9, FREE, 3.0, None, id="nobody says how many run"),
        pytest.param(9, TWO, 0.0, 25.0, id="it came last"),
        pytest.param(9, TWO, 10.0, 15.0, id="and has waited half of its time"),
        pytest.param(9, TWO, 99.0, 5.0, id="it is overdue"),
    ],
)
def test_a_job_that_waits_elsewhere_has_waited_since_as_many_did_as_do_now(
    queued: int, policy: Policy, age: float, completion: float | None
) -> None:
    places = places_for(9)
    places.known["a"] = policy
    places.hear("a", queued, [5.0] * FEW)
    outlook = places.outlook(job(state=State.QUEUED, age=age), None, NOW)
    assert outlook.queue_position is None
    assert outlook.completion == (None if completion is None else pytest.approx(NOW + completion))


def test_each_route_learns_for_itself() -> None:
    places, _ = taught(10.0)
    assert places.outlook(job("b"), None, NOW).completion is None
    assert places.outlook(job("a"), None, NOW).completion == pytest.approx(NOW + 10.0)


@pytest.mark.parametrize("duration", [None, 8.0])
def test_a_policys_retry_after_is_taken_as_it_is(duration: float | None) -> None:
    places, ticket = places_for(), None
    if duration is not None:
        places, ticket = taught(duration)
    places.known["a"] = Policy(retry_after=77)
    assert places.outlook(job(age=4.0), ticket, NOW).retry_after == 77


@pytest.mark.parametrize(
    ("duration", "policy", "retry_after"),
    [
        pytest.param(None, ONE, 1, id="nothing known"),
        pytest.param(12.0, ONE, 12, id="one at a time"),
        pytest.param(12.0, TWO, 6, id="two at a time: one ends twice as soon"),
        pytest.param(0.001, ONE, 1, id="at least 1"),
        pytest.param(-5.0, ONE, 1, id="at least 1, even if a clock was set back"),
        pytest.param(9000.0, ONE, 30, id="at most 30"),
    ],
)
def test_a_refusal_says_when_a_place_is_likely_to_be_free(
    duration: float | None, policy: Policy, retry_after: int
) -> None:
    places = places_for(9, max_queued=0)
    tickets = [places.take("a", policy) for _ in range(policy.max_running or 0)]
    if duration is not None:
        places.learn(tickets[0], duration)
    with pytest.raises(QueueFull) as refused:
        places.take("a", policy)
    assert refused.value.retry_after == retry_after


@pytest.mark.parametrize("duration", [-100.0, 0.0, 1e-9, 0.4, 1.0, 29.9, 1e9])
@pytest.mark.parametrize("age", [-100.0, 0.0, 0.3, 1.0, 1e9])
@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.CANCELLING])
def test_retry_after_is_a_whole_number_of_at_least_one(
    duration: float, age: float, state: State
) -> None:
    places, last = taught(duration, waiting=2)
    retry_after = places.outlook(job(state=state, age=age), last, NOW).retry_after
    assert isinstance(retry_after, int)
    assert 1 <= retry_after <= 30


# --- when as many run elsewhere as may ---------------------------------------------------------


def test_a_blocked_route_waits_in_its_order_until_it_is_unblocked() -> None:
    places, called = places_for(max_running=9), list[str]()
    first, second = queue(places, called, "a1", "a2")
    places.block(second, owner=False)
    places.block(first, owner=False)
    queue(places, called, "a3")
    assert (places.blocked, places.occupancy, called) == (True, Occupancy(0, 3), [])
    places.unblock()
    assert (places.blocked, places.occupancy, called) == (
        False,
        Occupancy(3, 0),
        ["a1", "a2", "a3"],
    )


def test_who_is_blocked_gives_capacity_to_other_routes() -> None:
    places, called = places_for(max_running=1), list[str]()
    first, _ = queue(places, called, "a1", "b1")
    places.block(first, owner=False)
    assert called == ["b1"]


def test_one_that_ends_here_unblocks_its_route_at_once() -> None:
    places, called = places_for(max_running=9), list[str]()
    first, second = queue(places, called, "a1", "a2")
    places.block(second, owner=False)
    places.leave(first)
    assert called == ["a2"]


def test_only_a_blocked_owner_is_passed_over() -> None:
    places, called = places_for(max_running=9), list[str]()
    tickets = [places.take("a", FREE, owner) for owner in ("ann", "bob")]
    places.block(tickets[0], owner=True)
    assert not places.take("a", FREE, "ann").running
    assert places.take("a", FREE, "bob").running
    assert places.take("a", FREE, None).running
    assert called == []


def test_what_was_accepted_before_is_not_refused_by_its_route() -> None:
    policy = Policy(max_running=1, max_queued=0)
    places = places_for(max_running=9, max_queued=2)
    places.take("a", policy)
    with pytest.raises(QueueFull):
        places.take("a", policy)
    assert [places.take("a", policy, accepted=True).running for _ in range(2)] == [False, False]
    with pytest.raises(QueueFull, match="2 requests wait already"):
        places.take("a", policy, accepted=True)


def test_a_route_is_as_its_policy_says_whenever_that_is_known() -> None:
    """As after a restart, with jobs of a route whose endpoint nobody has entered yet."""
    places = places_for(max_running=9)
    assert [places.admit("a", accepted=True).running for _ in range(2)] == [True, True]
    places.known["a"] = Policy(max_running=1, max_queued=1, max_running_per_owner=1)
    assert not places.admit("a").running
    with pytest.raises(QueueFull, match=r"^1 requests wait for this route already"):
        places.admit("a")
    assert "1 requests wait" in str(places.full("a", owner=False))


# --- owners ------------------------------------------------------------------------------------

Each = tuple[int, str, str | None]
"""A ticket: its number, its route, its owner."""


class Book:
    """Who runs and who waits by the book: everything is looked through each time."""

    def __init__(self, max_running: int, policies: dict[str, Policy]) -> None:
        self.max_running = max_running
        self.policies = policies
        self.running: list[Each] = []
        self.waiting: dict[str, dict[str | None, list[Each]]] = {name: {} for name in policies}
        self.blocked: set[str | tuple[str, str | None]] = set()

    def head(self, name: str) -> Each | None:
        policy = self.policies[name]
        here = [owner for _, route, owner in self.running if route == name]
        full = policy.max_running is not None and len(here) >= policy.max_running
        most = policy.max_running_per_owner
        for owner, queue in self.waiting[name].items():
            held = owner is not None and most is not None and here.count(owner) >= most
            if not (full or held or name in self.blocked or (name, owner) in self.blocked):
                return queue[0]
        return None

    def wait(self, ticket: Each) -> None:
        queue = self.waiting[ticket[1]].setdefault(ticket[2], [])
        queue.append(ticket)
        queue.sort()

    def call_next(self) -> None:
        while len(self.running) < self.max_running:
            heads = [head for name in self.policies if (head := self.head(name))]
            if not heads:
                return
            self.begin(min(heads))

    def begin(self, ticket: Each) -> None:
        owners = self.waiting[ticket[1]]
        if rest := owners.pop(ticket[2])[1:]:
            owners[ticket[2]] = rest
        self.running.append(ticket)

    def admit(self, ticket: Each) -> None:
        self.wait(ticket)
        if len(self.running) < self.max_running and self.head(ticket[1]) == ticket:
            self.begin(ticket)

    def leave(self, ticket: Each) -> None:
        _, name, owner = ticket
        if ticket in self.running:
            self.running.remove(ticket)
            self.blocked = {each for each in self.blocked if each != name and each[0] != name}
            self.call_next()
        elif ticket in self.waiting[name].get(owner, ()):
            self.waiting[name][owner].remove(ticket)
            if not self.waiting[name][owner]:
                del self.waiting[name][owner]

    def block(self, ticket: Each, *, owner: bool) -> None:
        self.blocked.add(ticket[1:] if owner else ticket[1])
        self.running.remove(ticket)
        self.wait(ticket)
        self.call_next()

    def unblock(self) -> None:
        self.blocked.clear()
        self.call_next()

    def position(self, ticket: Each) -> int:
        number, name, _ = ticket
        queues = self.waiting[name].values()
        rounds = range(max(map(len, queues)))
        turns = [each for nth in rounds for queue in queues for each in queue[nth : nth + 1]]
        others = [
            each
            for other in self.policies
            if other != name and self.head(other)
            for queue in self.waiting[other].values()
            for each in queue
        ]
        return turns.index(ticket) + sum(each[0] < number for each in others) + 1


BOUNDS = st.builds(
    Policy,
    max_running=st.sampled_from([None, 1, 2, 5]),
    max_running_per_owner=st.sampled_from([None, 1, 2]),
)
STEPS = st.tuples(
    st.sampled_from(["admit", "admit", "end", "leave", "block", "block one", "unblock", "bound"]),
    st.sampled_from("ab"),
    st.sampled_from(["ann", "bob", "cid", None]),
    st.integers(0, 99),
    BOUNDS,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), BOUNDS, BOUNDS, st.lists(STEPS, min_size=30, max_size=60))
def test_everybody_has_the_place_that_the_book_gives(
    max_running: int, a: Policy, b: Policy, steps: list[tuple[str, str, str | None, int, Policy]]
) -> None:
    places, book = places_for(max_running), Book(max_running, {"a": a, "b": b})
    places.known.update(book.policies)
    tickets: dict[Each, Ticket] = {}
    for step, name, owner, which, policy in steps:
        running = [each for each, ticket in tickets.items() if ticket.running]
        if step == "admit":
            for _ in range(which % 7):  # several, so that some wait for a late round
                ticket = places.admit(name, owner)
                tickets[ticket.number, name, owner] = ticket
                book.admit((ticket.number, name, owner))
        elif step == "bound":
            places.known[name] = book.policies[name] = policy
        elif step == "unblock":
            places.unblock()
            book.unblock()
        elif step == "leave" and tickets:
            each = [*tickets][which % len(tickets)]
            places.leave(tickets[each])
            book.leave(each)
        elif running:
            each = running[which % len(running)]
            if step == "end":
                places.leave(tickets[each])
                book.leave(each)
            else:
                places.block(tickets[each], owner=step == "block one")
                book.block(each, owner=step == "block one")
        assert [each for each, t in tickets.items() if t.running] == sorted(book.running)
        waiting = [e for name in "ab" for queue in book.waiting[name].values() for e in queue]
        assert places.occupancy == Occupancy(len(book.running), len(waiting))
        for each in waiting:
            assert position(places, tickets[each], each[1]) == book.position(each)


def lines_of(work: Callable[[], object]) -> int:
    """How many lines of the scheduler are gone through."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename == scheduler.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(FREE, id="all wait for one"),
        pytest.param(Policy(max_running_per_owner=1), id="each for its own"),
    ],
)
def test_nobody_walks_past_all_owners(policy: Policy) -> None:
    """However many wait: a poll, a request that waits, one that ends and the turn that comes."""

    def walk(owners: int) -> list[int]:
        places = places_for(owners if policy.max_running_per_owner else 1, 10**6)
        tickets = [places.take("a", policy, str(n % owners)) for n in range(2 * owners)]
        places.leave(tickets.pop(0))  # whoever may not go first has been asked by now
        ends = next(ticket for ticket in tickets if ticket.running)
        return [
            lines_of(lambda: position(places, tickets[-2])),
            lines_of(lambda: position(places, places.take("a", policy, "0"))),
            lines_of(lambda: places.leave(ends)),
        ]

    few, many = walk(4), walk(400)
    assert all(more <= less + 20 for less, more in zip(few, many, strict=True)), (few, many)
