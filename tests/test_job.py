"""The job: one table of moves, terminal states that never change, a tombstone that says little."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from raincheck.errors import INTERRUPTED, IllegalTransition
from raincheck.job import TRANSITIONS, Delivery, Job, Progress, State, Trace
from raincheck.messages import CapturedResponse

RESPONSE = CapturedResponse(200, ((b"content-type", b"text/plain"),), 4)

MOVES = {
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "cancelling"),
    ("running", "cancelled"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("cancelling", "cancelled"),
    ("cancelling", "succeeded"),
    ("cancelling", "failed"),
}
TERMINAL = {State.SUCCEEDED, State.FAILED, State.CANCELLED}


def job(state: State = State.RUNNING, **fields: Any) -> Job:
    return Job(id="id", route="route", state=state, created_at=100.0, **fields)


def move(before: Job, state: State) -> Job:
    if state is State.QUEUED:
        return before.requeue()
    if state is State.RUNNING:
        return before.start(110.0)
    if state is State.CANCELLING:
        return before.cancelling()
    return before.finish(state, 110.0, ttl=60.0, tombstone_ttl=30.0)


def test_the_table_holds_the_moves_of_the_docs_and_no_other() -> None:
    moves = {(str(old), str(new)) for old, every in TRANSITIONS.items() for new in every}
    assert moves == MOVES
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_a_job_makes_the_moves_of_the_table_and_no_other(old: State, new: State) -> None:
    before = job(old, replayable=True)
    if (str(old), str(new)) not in MOVES:
        with pytest.raises(IllegalTransition, match=f"a {old} job cannot become {new}"):
            move(before, new)
        return
    after = move(before, new)
    assert (before.state, before.version) == (old, 1)
    assert (after.state, after.version) == (new, 2)
    assert after.finished is (new in TERMINAL)


@pytest.mark.parametrize("state", sorted(TERMINAL))
@pytest.mark.parametrize(
    "change",
    [
        lambda job: job.start(1.0),
        lambda job: job.requeue(),
        lambda job: job.held_by("elsewhere"),
        lambda job: job.cancelling(),
        lambda job: job.shared(1),
        lambda job: job.with_progress(Progress(0.5)),
        *(
            lambda job, new=new: job.finish(new, 1.0, ttl=1.0, tombstone_ttl=1.0)
            for new in sorted(TERMINAL)
        ),
    ],
)
def test_a_terminal_state_never_changes(state: State, change: Callable[[Job], Job]) -> None:
    finished = job(state, replayable=True)
    assert finished.finished
    with pytest.raises(IllegalTransition):
        change(finished)


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.CANCELLING])
def test_a_job_that_is_not_terminal_is_not_finished(state: State) -> None:
    assert not job(state).finished


def test_the_captured_request_goes_with_the_last_run() -> None:
    queued = job(State.QUEUED, replayable=True, max_runs=2)
    first = queued.start(105.0, "here")
    assert (first.runs, first.replayable) == (1, True)
    assert (first.started_at, first.holder) == (105.0, "here")
    last = first.requeue().start(107.0, "there")
    assert (last.runs, last.replayable) == (2, False)
    assert (last.started_at, last.holder) == (107.0, "there")


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_the_captured_request_goes_with_the_outcome(state: State) -> None:
    queued = job(State.QUEUED, replayable=True, max_runs=2)
    for before in queued, queued.start(105.0):
        if state in TRANSITIONS[before.state]:
            assert not move(before, state).replayable


def test_an_interrupted_job_waits_as_if_it_had_not_run() -> None:
    running = job(State.QUEUED, replayable=True, max_runs=3, queue="videos").start(105.0, "here")
    waiting = running.with_progress(Progress(0.5)).requeue()
    assert (waiting.started_at, waiting.progress, waiting.holder) == (None, None, None)
    assert (waiting.runs, waiting.max_runs, waiting.queue) == (1, 3, "videos")
    assert waiting.version == running.version + 2


def test_a_job_whose_request_is_not_kept_does_not_wait_again() -> None:
    last = job(State.QUEUED, replayable=True).start(105.0)
    with pytest.raises(IllegalTransition, match="not kept"):
        last.requeue()


def test_a_job_that_waits_changes_hands() -> None:
    queued = job(State.QUEUED, holder="here")
    assert queued.held_by("there") == queued._replace(version=2, fence=1, holder="there")
    assert queued.held_by(None).holder is None


def test_a_job_that_is_given_back_knows_since_when_nobody_has_its_route() -> None:
    queued = job(State.QUEUED, holder="here", replayable=True, max_runs=2)
    once = queued.given_back(105.0)
    assert once == queued._replace(version=2, fence=1, holder=None, orphaned_at=105.0)
    assert once.given_back(106.0).orphaned_at == 105.0
    assert once.held_by("there").orphaned_at == 105.0
    running = once.start(107.0, "there")
    assert running.orphaned_at is None
    assert running.requeue().given_back(108.0).orphaned_at == 108.0
    assert move(once, State.CANCELLED).orphaned_at is None


@pytest.mark.parametrize(
    ("fields", "ready"),
    [
        ({}, True),
        ({"not_before": 105.0}, True),
        ({"not_before": 105.1}, False),
        ({"state": State.RUNNING}, False),
        ({"state": State.CANCELLED}, False),
        ({"gone": True}, False),
        ({"route": "other"}, False),
    ],
)
def test_a_job_begins_where_its_route_is_and_not_before_its_time(
    fields: dict[str, Any], ready: bool
) -> None:
    assert job(State.QUEUED)._replace(**fields).ready({"route", "another"}, 105.0) is ready


def test_what_a_job_waited_for_is_over_when_it_begins_or_ends() -> None:
    waits = job(State.QUEUED, not_before=200.0, replayable=True, max_runs=2)
    for kept in (waits.held_by("here"), waits.given_back(105.0), waits.shared(1)):
        assert kept.not_before == 200.0
    assert waits.start(205.0).not_before is None
    assert waits.start(205.0).requeue().not_before is None
    assert move(waits, State.CANCELLED).not_before is None
    assert waits.tombstone(105.0, 30.0).not_before is None


def test_who_has_begun_a_job_is_known_by_name_and_time() -> None:
    runs = job(State.QUEUED).start(105.0, "here")
    assert runs.begun_by("here", 105.0)
    assert runs.with_progress(Progress(0.5)).begun_by("here", 105.0)
    for other in (runs.cancelling(), move(runs, State.FAILED), runs.tombstone(106.0, 30.0)):
        assert not other.begun_by("here", 105.0)
    assert not runs.begun_by("there", 105.0)
    assert not runs.begun_by("here", 105.5)
    assert not job(State.QUEUED, holder="here", started_at=105.0).begun_by("here", 105.0)


def test_a_job_counts_with_those_that_wait_or_with_those_that_run() -> None:
    together = {state: job(state).counts_with for state in State}
    assert together == {
        State.QUEUED: (State.QUEUED,),
        State.RUNNING: (State.RUNNING, State.CANCELLING),
        State.CANCELLING: (State.RUNNING, State.CANCELLING),
        **dict.fromkeys(TERMINAL, ()),
    }
    assert {state: job(state).stage for state in State} == {
        state: None if state in TERMINAL else state for state in State
    }
    for state in State:
        assert job(state, gone=True).stage is None
        assert job(state, gone=True).counts_with == ()


def test_a_sweep_turns_to_a_job_when_it_expires_and_to_its_tombstone_when_that_goes() -> None:
    running = job()
    finished = move(running, State.FAILED)
    assert running.due_at is None
    assert (finished.due_at, finished.tombstone(170.0).due_at) == (170.0, 200.0)
    assert running.tombstone(120.0, 30.0).due_at == 150.0


@pytest.mark.parametrize("state", [state for state in State if state is not State.QUEUED])
def test_a_job_that_does_not_wait_changes_no_hands(state: State) -> None:
    with pytest.raises(IllegalTransition, match=f"a {state} job does not wait"):
        job(state).held_by("there")
    with pytest.raises(IllegalTransition, match=f"a {state} job does not wait"):
        job(state).given_back(105.0)


def test_whoever_had_a_job_before_it_changed_hands_is_known_by_the_older_number() -> None:
    first = job(State.QUEUED, replayable=True, max_runs=2)
    hands = [first, first.held_by("here")]
    hands.append(hands[-1].start(105.0, "here"))
    hands.append(hands[-1].requeue())
    hands.append(hands[-1].held_by("there"))
    hands.append(hands[-1].start(106.0, "there"))
    assert [one.fence for one in hands] == [0, 1, 2, 3, 4, 5]
    assert [one.runs for one in hands] == [0, 0, 1, 1, 1, 2]
    for same in (
        hands[-1].with_progress(Progress(0.5)),
        hands[-1].shared(1),
        hands[-1].cancelling(),
        *(move(hands[-1], state) for state in TERMINAL),
    ):
        assert same.fence == 5


def test_an_outcome_belongs_to_nobody() -> None:
    running = job(fence=2, runs=2, max_runs=3, holder="here", queue="videos")
    finished = move(running, State.SUCCEEDED)
    assert (finished.fence, finished.runs, finished.max_runs) == (2, 2, 3)
    assert (finished.holder, finished.queue) == (None, None)


def test_a_finished_job_says_when_it_goes() -> None:
    finished = job().finish(State.SUCCEEDED, 110.0, ttl=60.0, tombstone_ttl=30.0, response=RESPONSE)
    assert finished.finished_at == 110.0
    assert finished.expires_at == 170.0
    assert finished.purge_at == 200.0
    assert finished.response == RESPONSE


def test_a_failure_without_a_response_carries_its_problem() -> None:
    failed = job().finish(State.FAILED, 1.0, ttl=1.0, tombstone_ttl=1.0, error=INTERRUPTED)
    assert failed.error == INTERRUPTED
    assert failed.response is None


@pytest.mark.parametrize(
    ("kept", "last", "shown"),
    [
        (None, None, None),
        (Progress(0.5), None, Progress(0.5)),
        (Progress(0.5), Progress(0.9), Progress(0.9)),
        (None, Progress(0.9), Progress(0.9)),
    ],
)
def test_the_last_report_outlives_the_run(
    kept: Progress | None, last: Progress | None, shown: Progress | None
) -> None:
    finished = job(progress=kept).finish(
        State.SUCCEEDED, 1.0, ttl=1.0, tombstone_ttl=1.0, progress=last
    )
    assert finished.progress == shown


def test_a_report_is_a_version_of_its_own() -> None:
    reported = job().with_progress(Progress(0.4, "412 of 1000 sent"))
    assert (reported.version, reported.state) == (2, State.RUNNING)
    assert reported.progress == Progress(0.4, "412 of 1000 sent")


@pytest.mark.parametrize(
    ("fraction", "kept"),
    [
        (0, 0.0),
        (0.4, 0.4),
        (1, 1.0),
        (-0.1, 0.0),
        (1.1, 1.0),
        (math.inf, 1.0),
        (-math.inf, 0.0),
        (math.nan, 0.0),
    ],
)
def test_a_fraction_is_clamped(fraction: float, kept: float) -> None:
    progress = Progress.of(fraction)
    assert (progress.fraction, type(progress.fraction)) == (kept, float)


@pytest.mark.parametrize(("message", "kept"), [(None, None), ("half", "half"), ("", "")])
def test_a_message_is_text_or_nothing(message: str | None, kept: str | None) -> None:
    assert Progress.of(0.5, message).message == kept


@pytest.mark.parametrize(
    ("expires_at", "gone", "now", "expired"),
    [
        (None, False, 1e12, False),
        (10.0, False, 9.9, False),
        (10.0, False, 10.0, True),
        (10.0, False, 10.1, True),
        (None, True, 0.0, True),
        (10.0, True, 0.0, True),
    ],
)
def test_a_job_expires_at_its_time(
    expires_at: float | None, gone: bool, now: float, expired: bool
) -> None:
    assert job(expires_at=expires_at, gone=gone).expired(now) is expired


def finished_job() -> Job:
    return (
        job(State.QUEUED, replayable=True, max_runs=3, owner="ann")
        .start(105.0, "here")
        .finish(
            State.SUCCEEDED,
            110.0,
            ttl=60.0,
            tombstone_ttl=30.0,
            response=RESPONSE,
            progress=Progress(1.0, "done"),
        )
    )


# Spelt by the order of the fields, for speed: these tests read them by name.


def full_job(state: State) -> Job:
    """A job in which no two fields of a kind are alike, and none has its default."""
    before = Job(
        id="id",
        route="route",
        state=state,
        created_at=100.0,
        version=7,
        fence=6,
        runs=2,
        max_runs=5,
        replayable=True,
        holder="here",
        queue="videos",
        started_at=101.0,
        finished_at=102.0,
        expires_at=103.0,
        purge_at=104.0,
        progress=Progress(0.5, "half"),
        response=RESPONSE,
        error=INTERRUPTED,
        gone=True,
        owner="ann",
        clients=3,
        orphaned_at=105.0,
        synchronous=True,
        not_before=106.0,
        begin_by=107.0,
        trace=Trace("00-1-2-01", "a=1"),
        delivery=Delivery("https://example.com/", "/jobs"),
        extra={"weight": 1},
    )
    defaults = Job._field_defaults
    assert [name for name in Job._fields if getattr(before, name) == defaults.get(name, ...)] == []
    return before


@pytest.mark.parametrize("runs", [True, False])
def test_a_new_job_has_its_fields_where_they_belong(runs: bool) -> None:
    new = Job.accepted(
        "id",
        "route",
        100.0,
        runs=runs,
        max_runs=5,
        replayable=True,
        holder="here",
        queue="videos",
        owner="ann",
        trace=Trace("00-1-2-01"),
    )
    plain = Job("id", "route", State.QUEUED, 100.0)._replace(fence=1, max_runs=5, replayable=True)
    plain = plain._replace(holder="here", queue="videos", owner="ann", trace=Trace("00-1-2-01"))
    if runs:
        plain = plain._replace(state=State.RUNNING, runs=1, started_at=100.0)
    assert new == plain


def test_a_job_that_ends_has_its_fields_where_they_belong() -> None:
    before = full_job(State.RUNNING)
    after = before.finish(State.FAILED, 110.0, ttl=60.0, tombstone_ttl=30.0, error=INTERRUPTED)
    assert after == before._replace(
        state=State.FAILED,
        version=8,
        replayable=False,
        holder=None,
        queue=None,
        finished_at=110.0,
        expires_at=170.0,
        purge_at=200.0,
        response=None,
        gone=False,
        orphaned_at=None,
        not_before=None,
        begin_by=None,
    )


def test_a_job_that_failed_waits_until_its_time_where_it_was() -> None:
    running = job(State.QUEUED, replayable=True, max_runs=2, begin_by=300.0).start(105.0, "here")
    assert running.begin_by is None
    waits = running.requeue(120.0, "here")
    assert (waits.state, waits.next_run_at, waits.holder) == (State.QUEUED, 120.0, "here")
    assert not waits.ready({"route"}, 119.9)
    assert waits.ready({waits.route}, 120.0)
    assert waits.start(120.0).next_run_at is None
    assert running.next_run_at is None


@pytest.mark.parametrize(
    ("changes", "now", "overdue"),
    [
        ({}, 160.0, True),
        ({}, 159.9, False),
        ({"begin_by": None}, 1000.0, False),
        pytest.param({"runs": 1}, 160.0, False, id="it has begun before"),
        pytest.param({"state": State.RUNNING}, 160.0, False, id="it runs"),
        pytest.param({"state": State.CANCELLED}, 160.0, False, id="it has ended"),
        pytest.param({"gone": True}, 160.0, False, id="it is gone"),
    ],
)
def test_a_job_waits_for_its_first_run_as_long_as_it_may(
    changes: dict[str, Any], now: float, overdue: bool
) -> None:
    waits = job(State.QUEUED, begin_by=160.0)._replace(**changes)
    assert waits.overdue(now) is overdue


def test_a_tombstone_keeps_only_that_the_job_was_there() -> None:
    finished = finished_job()
    tombstone = finished.tombstone(170.0)
    kept = {"id", "route", "state", "created_at", "version", "fence", "owner"}
    times = {"expires_at", "purge_at", "gone"}
    for field in Job._fields:
        if field not in kept | times:
            assert getattr(tombstone, field) == Job._field_defaults[field], field
    for field in kept - {"version"}:
        assert getattr(tombstone, field) == getattr(finished, field), field
    assert tombstone.gone
    assert tombstone.state is State.SUCCEEDED
    assert tombstone.version == finished.version + 1


@pytest.mark.parametrize(
    ("now", "tombstone_ttl", "expires_at", "purge_at"),
    [
        pytest.param(170.0, None, 170.0, 200.0, id="expired just now"),
        pytest.param(185.0, None, 170.0, 200.0, id="expired earlier; swept late"),
        pytest.param(120.0, 30.0, 120.0, 150.0, id="deleted before it expired"),
        pytest.param(120.0, 0.0, 120.0, 120.0, id="forgotten without a trace"),
    ],
)
def test_a_tombstone_stays_for_its_time(
    now: float, tombstone_ttl: float | None, expires_at: float, purge_at: float
) -> None:
    tombstone = finished_job().tombstone(now, tombstone_ttl)
    assert (tombstone.expires_at, tombstone.purge_at) == (expires_at, purge_at)
    assert tombstone.expired(now)


def test_a_job_deleted_while_it_runs_leaves_a_tombstone_that_goes() -> None:
    tombstone = job(State.CANCELLING).tombstone(120.0, 30.0)
    assert (tombstone.gone, tombstone.expires_at, tombstone.purge_at) == (True, 120.0, 150.0)


def test_a_job_is_a_value() -> None:
    anything: Any = job()
    with pytest.raises(AttributeError):
        anything.state = State.FAILED
    assert job() == job()
