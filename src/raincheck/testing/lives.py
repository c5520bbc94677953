"""The contract of stores: lists and counts, who waits, who holds a job, and how it goes."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import anyio

from raincheck.errors import MalformedCursor
from raincheck.job import TRANSITIONS, Job, Progress, State
from raincheck.runtime.recorder import PIECE
from raincheck.stores.base import (
    Store,
    Total,
)
from raincheck.testing.samples import (
    body_of,
    claim,
    finished,
    job,
    many_kinds,
    pages,
    request,
    waiting,
)


class LifeContract:
    """Lists and counts, who waits, who holds a job, and how it goes."""

    async def test_jobs_are_listed_newest_first(self, store: Store) -> None:
        assert await pages(store) == []
        assert await store.totals() == {}
        jobs = await many_kinds(store)
        assert [*(await store.list()).jobs] == jobs
        assert (await store.list()).after is None
        for limit in (1, 5, 47, 48, 49):
            assert await pages(store, limit) == jobs
        assert [*(await store.list(limit=5)).jobs] == jobs[:5]

    async def test_jobs_are_listed_by_what_they_are(self, store: Store) -> None:
        jobs = await many_kinds(store)
        ended = {State.FAILED, State.SUCCEEDED}
        for states in ((), [State.QUEUED], {State.RUNNING, State.CANCELLING}, ended):
            for route in (None, "r0", "r1", "r"):
                for owner in (None, "ann", "bob ü", ""):
                    for since, until in ((None, None), (1002.0, None), (None, 1006.0), (1e3, 1e3)):
                        expected = [
                            each
                            for each in jobs
                            if (not states or each.state in states)
                            and (route is None or each.route == route)
                            and (owner is None or each.owner == owner)
                            and (since is None or each.created_at >= since)
                            and (until is None or each.created_at < until)
                        ]
                        of: dict[str, Any] = {"states": states, "route": route, "owner": owner}
                        of |= {"since": since, "until": until}
                        assert [*(await store.list(**of)).jobs] == expected
                        if len(expected) > 5:
                            assert await pages(store, 5, **of) == expected

    async def test_a_list_goes_on_whatever_becomes_of_its_jobs(self, store: Store) -> None:
        """None that stays is missed or shown twice."""
        jobs = [waiting(f"{n:02}", created_at=1000.0 + n // 2) for n in range(30)]
        for each in jobs:
            await store.create(each, request())
        stay = [each.id for n, each in enumerate(jobs) if n % 3]
        page = await store.list(limit=4, states=(State.QUEUED,))
        shown = [each.id for each in page.jobs]
        for n in range(27, -1, -3):  # what a page ended with among them
            assert page.after is not None
            version = jobs[n].start(1100.0)
            for later in (version, finished(version), finished(version).tombstone(1100.0, 0.0)):
                assert await store.replace(later)
                if n % 2:
                    break
            await store.sweep(1100.0)
            await store.create(waiting(f"new {n}", created_at=1200.0 + n), request())
            await store.create(waiting(f"00 {n}", created_at=1014.0), request())
            page = await store.list(limit=4, states=(State.QUEUED,), after=page.after)
            shown += [each.id for each in page.jobs]
            if page.after is None:
                break
        seen = [id for id in shown if id in stay]
        assert seen == stay[::-1]
        assert len(shown) == len(set(shown))
        assert not [id for id in shown if id.startswith("new")]

    async def test_a_list_shows_what_became_of_its_jobs(self, store: Store) -> None:
        await store.create(waiting(), request())
        await store.create(waiting("b", created_at=999.0), request())
        assert await claim(store)
        runs = waiting().start(1001.5, "here")
        assert [*(await store.list(states=(State.RUNNING,))).jobs] == [runs]
        assert [each.id for each in (await store.list(states=(State.QUEUED,))).jobs] == ["b"]
        assert await store.totals() == {
            ("r", State.RUNNING): Total(1, 1000.0, 0.0),
            ("r", State.QUEUED): Total(1, 999.0, 0.0),
        }
        assert await store.replace(runs.cancelling())
        assert await store.replace(finished(runs.cancelling(), 1003.0))
        assert await pages(store, states=(State.RUNNING, State.CANCELLING)) == []
        assert [each.id for each in (await store.list()).jobs] == ["a", "b"]
        await store.sweep(1063.0)
        assert [each.id for each in (await store.list()).jobs] == ["b"]

    async def test_a_list_does_not_go_on_after_just_anything(self, store: Store) -> None:
        await store.create(job())
        for after in ("", "a", "~", "ü", "\0", "9" * 99, "1000.0", "nan~a", "\udc80"):
            try:
                await store.list(after=after)
            except MalformedCursor:
                continue
            raise AssertionError(f"it went on after {after!r}")

    async def test_jobs_are_counted_by_route_and_state(self, store: Store) -> None:
        jobs = await many_kinds(store)
        expected = _counted(jobs)
        assert await store.totals() == expected
        assert {state for _, state in expected} == set(State) - {State.CANCELLED}

    async def test_counts_stay_true_whatever_becomes_of_jobs(self, store: Store) -> None:
        choose = Random(1)  # noqa: S311  # a test's
        there: dict[str, Job] = {}
        for number in range(300):
            now = 1000.0 + number
            id = choose.choice([*there, f"{number:03}", f"{number:03}"])
            old = there.get(id)
            if old is None:
                of = {"route": choose.choice("rs"), "created_at": now - choose.randrange(50)}
                new = waiting(id, synchronous=choose.random() < 0.1, **of)
                await store.create(new, request())
            else:
                moves = TRANSITIONS[old.state]
                if not moves or choose.random() < 0.1:
                    new = old.tombstone(now, 30.0)
                elif State.RUNNING in moves:
                    new = old.start(now)
                elif State.CANCELLING in moves and choose.random() < 0.5:
                    new = old.cancelling()
                else:
                    state = choose.choice([State.SUCCEEDED, State.FAILED, State.CANCELLED])
                    new = old.finish(state, now, ttl=60.0, tombstone_ttl=30.0)
                assert await store.replace(new)
            if new.gone:
                there.pop(id)
            else:
                there[id] = new
            if number % 20 == 19:
                await store.sweep(now)
                there = {id: job for id, job in there.items() if not job.expired(now)}
                assert await store.totals() == _counted(there.values())

    async def test_what_is_forgotten_counts_no_more(self, store: Store) -> None:
        ends = (1004.5, 1003.0, 1002.25)
        for n, end in enumerate(ends):
            new = waiting(f"{n}", created_at=1000.0 - n)
            await store.create(new, request())
            assert await store.replace(new.start(1002.0))
            assert await store.replace(finished(new.start(1002.0), end))
        await store.create(waiting("never ran", created_at=990.0), request())
        assert await store.replace(finished(waiting("never ran", created_at=990.0), 1009.0))
        failed = "r", State.FAILED
        assert await store.totals() == {failed: Total(4, 990.0, 3.75)}
        await store.sweep(1062.25)
        assert await store.totals() == {failed: Total(3, 990.0, 3.5)}
        await store.replace(
            finished(waiting("never ran", created_at=990.0), 1009.0).tombstone(1063.0)
        )
        assert await store.totals() == {failed: Total(2, 999.0, 3.5)}
        for now in (1063.0, 1200.0, 1200.0):
            await store.sweep(now)
        assert await store.totals() == {}
        assert await pages(store) == []

    async def test_changed_answers_at_once_if_it_is_newer(self, store: Store) -> None:
        await store.create(job())
        assert await store.changed("a", 0) == job()

    async def test_changed_of_an_unknown_job_is_none(self, store: Store) -> None:
        assert await store.changed("a", 0) is None

    async def test_changed_wakes_everybody_who_waits(self, store: Store) -> None:
        await store.create(job())
        seen = []

        async def watch() -> None:
            seen.append(await store.changed("a", 1))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            assert await store.replace(job().cancelling())
        assert seen == [job().cancelling()] * 5

    async def test_waiting_can_be_cancelled(self, store: Store) -> None:
        await store.create(job())
        with anyio.move_on_after(0.01) as scope:
            await store.changed("a", 1)
        assert scope.cancelled_caught
        assert await store.replace(job().cancelling())

    async def test_what_nobody_holds_is_abandoned(self, store: Store) -> None:
        for id in "abcd":
            await store.create(job(id), lease=0.0)
        await store.create(job("q", state=State.QUEUED, fence=0), lease=0.0)
        await store.create(job("held"), lease=60.0)
        await store.create(job("without a lease"))
        assert {job.id async for job in store.abandoned()} == {*"abcd", "q"}
        await store.replace(finished(job("b")))
        await store.replace(job("c").tombstone(1000.0, 60.0))
        await store.replace(job("d").cancelling(), lease=60.0)
        assert await store.renew({"q": 0}, 60.0) == {"q": State.QUEUED}
        assert {job.id async for job in store.abandoned()} == {"a"}

    async def test_a_new_version_leaves_the_lease_as_it_is(self, store: Store) -> None:
        await store.create(job("a"), lease=0.0)
        await store.create(job("b"), lease=60.0)
        for id in "ab":
            await store.replace(job(id).with_progress(Progress(0.5)))
        assert {job.id async for job in store.abandoned()} == {"a"}
        await store.replace(job("b").with_progress(Progress(0.5)).cancelling(), lease=0.0)
        assert {job.id async for job in store.abandoned()} == {"a", "b"}

    async def test_a_lease_ends(self, store: Store) -> None:
        await store.create(job(), lease=0.02)
        for _ in range(100):
            await anyio.sleep(0.03)
            if found := [each async for each in store.abandoned()]:
                break
        assert [each.job for each in found] == [job()]
        assert found[0].idle >= 0.0

    async def test_only_who_holds_a_job_renews_its_lease(self, store: Store) -> None:
        await store.create(job("stale", fence=2), lease=0.0)
        await store.create(job("ended"), lease=0.0)
        await store.replace(finished(job("ended")))
        await store.create(job("gone"), lease=0.0)
        await store.replace(job("gone").tombstone(1000.0, 60.0))
        await store.create(job("stopping"), lease=0.0)
        await store.replace(job("stopping").cancelling())
        ids = ("stale", "ended", "gone", "stopping", "unknown")
        held = await store.renew(dict.fromkeys(ids, 1), 60.0)
        assert held == {"stopping": State.CANCELLING}
        assert {job.id async for job in store.abandoned()} == {"stale"}
        assert await store.get("stopping") == job("stopping").cancelling()

    async def test_nothing_to_renew(self, store: Store) -> None:
        assert await store.renew({}, 60.0) == {}

    async def test_a_job_that_ends_without_a_response_keeps_nothing_of_one(
        self, store: Store
    ) -> None:
        await store.create(job())
        await store.create(job("b"))
        for id in "ab":
            await store.append_body(id, 1, 0, b"x" * PIECE)
        assert await store.replace(finished(job()))
        cancelled = job("b").finish(State.CANCELLED, 1000.0, ttl=60.0, tombstone_ttl=60.0)
        assert await store.replace(cancelled)
        assert [await body_of(store, id) for id in "ab"] == [b"", b""]

    async def test_a_tombstone_drops_the_body(self, store: Store) -> None:
        await store.create(job())
        await store.append_body("a", 1, 0, b"x")
        tombstone = job().tombstone(1000.0, 60.0)
        assert await store.replace(tombstone)
        assert await store.get("a") == tombstone
        assert await body_of(store, "a") == b""
        assert not await store.append_body("a", 1, 0, b"x")
        assert await body_of(store, "a") == b""

    async def test_a_sweep_leaves_what_has_not_expired(self, store: Store) -> None:
        await store.create(job())
        await store.create(job("b"))
        done = finished(job("b"), ttl=60.0, size=1)
        await store.append_body("b", 1, 0, b"x")
        await store.replace(done)
        assert await store.sweep(1059.9)
        assert await store.get("a") == job()
        assert await store.get("b") == done
        assert await body_of(store, "b") == b"x"

    async def test_a_sweep_buries_what_has_expired_and_then_forgets_it(self, store: Store) -> None:
        await store.create(job())
        await store.append_body("a", 1, 0, b"x")
        await store.replace(finished(job(), ttl=60.0, tombstone_ttl=60.0))
        assert await store.sweep(1060.0)
        tombstone = await store.get("a")
        assert tombstone is not None
        assert tombstone.gone
        assert tombstone.error is None
        assert await body_of(store, "a") == b""
        assert not await store.sweep(1120.0)
        assert await store.get("a") is None

    async def test_a_buried_job_wakes_those_who_wait(self, store: Store) -> None:
        await store.create(job())
        done = finished(job())
        await store.replace(done)

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                newest = await store.changed("a", done.version)
                assert newest is not None
                assert newest.gone

            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            await store.sweep(1060.0)

    async def test_a_forgotten_job_wakes_those_who_wait(self, store: Store) -> None:
        await store.create(job())
        tombstone = job().tombstone(1000.0, 60.0)
        await store.replace(tombstone)

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                assert await store.changed("a", tombstone.version) is None

            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            await store.sweep(1060.0)

    async def test_a_closed_store_can_be_used_again(self, store: Store) -> None:
        await store.create(job())
        await store.aclose()
        await store.create(job("b"))
        assert await store.get("b") == job("b")


def _counted(jobs: Iterable[Job]) -> dict[tuple[str, State], Total]:
    """What a store is to say of these jobs, all of which it has."""
    counted: dict[tuple[str, State], Total] = {}
    for each in jobs:
        if each.synchronous:
            continue
        known = counted.get((each.route, each.state), Total(0, each.created_at, 0.0))
        seconds = known.seconds
        if each.finished_at is not None and each.started_at is not None:
            seconds += each.finished_at - each.started_at
        oldest = min(known.oldest or 0.0, each.created_at)
        counted[each.route, each.state] = Total(known.count + 1, oldest, seconds)
    return counted
