"""Capacity: first come, first served, within the bounds of each route and of all."""

from __future__ import annotations

import pytest

from raincheck import Limits, Policy
from raincheck.errors import QueueFull
from raincheck.job import Job, State
from raincheck.routing.policies import ByRoute
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
    """A place on route a, the last of those that wait, where jobs took so many seconds."""
    places = places_for(max_running)
    tickets = queue(places, [], *["a"] * (max_running + waiting))
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


def test_durations_are_averaged_and_the_newest_counts_a_fifth() -> None:
    places, ticket = taught(10.0)
    places.learn(ticket, 20.0)
    assert places.outlook(job(), ticket, NOW).completion == pytest.approx(NOW + 12.0)


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
