"""The contract of stores: what becomes of a job's record: created, replaced, claimed."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from raincheck.job import Bounds, Job, Key, Progress, State, Trace
from raincheck.messages import CapturedResponse, Head
from raincheck.stores.base import (
    Claim,
    Partial,
    Store,
)
from raincheck.testing.samples import (
    body_of,
    claim,
    finished,
    fits,
    job,
    keeps,
    request,
    waiting,
)


class RecordContract:
    """What becomes of a job's record: created, replaced, claimed."""

    async def test_a_created_job_is_there(self, store: Store) -> None:
        assert await store.create(job()) == job()
        assert await store.get("a") == job()

    async def test_its_name_stays(self, store: Store) -> None:
        name = await store.name()
        await store.create(job())
        assert await store.name() == name
        assert "/" not in name

    async def test_an_unknown_job_is_none(self, store: Store) -> None:
        assert await store.get("a") is None

    async def test_every_field_comes_back(self, store: Store) -> None:
        full = job(
            fence=2,
            runs=1,
            max_runs=3,
            replayable=True,
            queue="videos",
            started_at=1.5,
            progress=Progress(0.5, "halb fertig: ½"),
            owner="user ü",
            clients=2,
            synchronous=True,
            not_before=1003.5,
            begin_by=1060.5,
            trace=Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1"),
        )
        await store.create(full, request())
        assert await store.get("a") == full
        response = CapturedResponse(200, ((b"set-cookie", b"a"), (b"set-cookie", b"\xff")), 3)
        done = full.finish(State.SUCCEEDED, 1002.0, ttl=60.0, tombstone_ttl=60.0, response=response)
        assert await store.replace(done, tail=b"abc")
        assert await store.get("a") == done
        await store.create(job("b"))
        failed = finished(job("b"))
        assert await store.replace(failed)
        assert await store.get("b") == failed

    async def test_what_only_a_newer_version_knows_stays_with_its_job(self, store: Store) -> None:
        unknown = {"minor": 1, "weight": [1.5, {"of": None}]}
        await store.create(job(extra=unknown))
        there = await store.get("a")
        assert there == job(extra=unknown)
        for later in (there.cancelling(), finished(there.cancelling())):
            assert await store.replace(later)
            assert await store.get("a") == later
            assert later.extra == unknown

    async def test_a_captured_request_is_kept_as_long_as_it_may_be_replayed(
        self, store: Store
    ) -> None:
        queued = job(state=State.QUEUED, fence=0, max_runs=2, replayable=True)
        await store.create(queued, request())
        assert await store.request("a") == request()
        first = queued.start(1001.0)
        assert await store.replace(first)
        assert await store.request("a") == request()
        again = first.requeue()
        assert await store.replace(again)
        assert await store.request("a") == request()
        assert await store.replace(again.start(1002.0))
        assert await store.request("a") is None

    async def test_no_request_is_none(self, store: Store) -> None:
        await store.create(job())
        assert await store.request("a") is None
        assert await store.request("unknown") is None

    async def test_a_captured_request_may_be_empty_or_large(self, store: Store) -> None:
        for id, body in (("a", b""), ("b", bytes(range(256)) * 20_000)):
            await store.create(job(id, replayable=True), request(body))
            assert await store.request(id) == request(body)

    async def test_a_captured_request_goes_with_the_outcome(self, store: Store) -> None:
        for id in "ab":
            await store.create(job(id, replayable=True), request())
        await store.replace(finished(job("a", replayable=True)))
        await store.replace(job("b", replayable=True).tombstone(1000.0, 60.0))
        assert await store.request("a") is None
        assert await store.request("b") is None

    async def test_of_many_creators_of_one_id_one_wins(self, store: Store) -> None:
        winners = []

        async def create(number: int) -> None:
            there = await store.create(job(route=str(number)))
            winners.append(there.route)

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(create, number)
        assert len(winners) == 100
        assert len(set(winners)) == 1

    async def test_replace_takes_the_next_version_only(self, store: Store) -> None:
        await store.create(job())
        second = job().cancelling()
        assert await store.replace(second)
        assert not await store.replace(job().with_progress(Progress(0.5)))
        assert await store.get("a") == second

    async def test_of_many_replacers_one_wins(self, store: Store) -> None:
        await store.create(job())
        outcomes = []

        async def replace(number: int) -> None:
            outcomes.append(await store.replace(job().with_progress(Progress(0.0, str(number)))))

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(replace, number)
        assert sorted(outcomes) == [False] * 49 + [True]

    async def test_replace_of_an_unknown_job_changes_nothing(self, store: Store) -> None:
        assert not await store.replace(job().cancelling())
        assert await store.get("a") is None

    async def test_who_claims_a_job_that_waits_runs_it(self, store: Store) -> None:
        new = waiting(holder="there", queue="q", owner="ü", extra={"minor": [1]}, orphaned_at=9.5)
        await store.create(new, request(), keys=(Key("k", lasting=False),))
        runs = new.start(1001.5, 'hére "1"')
        begun = await claim(store, routes=("s", "r"), holder=runs.holder)
        assert begun == Claim(runs, request(), True)
        assert await store.get("a") == runs
        assert await store.find("k") == (runs, None)
        assert await store.renew({"a": new.fence}, 60.0) == {}
        assert await store.renew({"a": runs.fence}, 60.0) == {"a": State.RUNNING}
        assert not await store.append_body("a", new.fence, 0, b"x")
        assert await store.append_body("a", runs.fence, 0, b"x")
        assert not await store.replace(new.start(1002.0))
        stopping = runs.cancelling()
        assert await store.replace(stopping)
        assert await store.get("a") == stopping
        assert await store.replace(finished(stopping))

    async def test_who_has_lost_a_claim_asks_again(self, store: Store) -> None:
        if keeps(store, "claim"):
            return
        for max_runs in (1, 2):
            new = waiting(f"{max_runs}", max_runs=max_runs)
            await store.create(new, request())
            begun = Claim(new.start(1001.5, "here"), request(), True)
            for _ in range(3):
                assert await claim(store, new.id) == begun
            others = Claim(begun.job, None, False)
            assert await claim(store, new.id, holder="there") == others
            assert await claim(store, new.id, now=1001.75) == others
            assert await store.get(new.id) == begun.job
            assert await claim(store, new.id) == begun

    async def test_a_claimed_request_is_dropped_with_the_version_after(self, store: Store) -> None:
        later: list[Callable[[Job], Job]] = [
            lambda runs: runs.with_progress(Progress(0.5)),
            lambda runs: runs.cancelling(),
            lambda runs: runs.shared(1),
            lambda runs: finished(runs, size=0),
        ]
        for number, change in enumerate(later):
            id = str(number)
            await store.create(waiting(id), request())
            assert await claim(store, id)
            assert await store.request(id) is None
            version = change(waiting(id).start(1001.5, "here"))
            assert await store.replace(version)
            assert await store.request(id) is None
            assert await claim(store, id) == Claim(version, None, False)

    async def test_a_claimed_request_stays_for_a_run_that_is_still_to_come(
        self, store: Store
    ) -> None:
        if keeps(store, "claim"):
            return
        new = waiting(max_runs=2)
        await store.create(new, request())
        first = new.start(1001.5, "here")
        assert await claim(store) == Claim(first, request(), True)
        assert await store.request("a") == request()
        assert await store.replace(first.requeue())
        second = first.requeue().start(1002.5, "there")
        begun = Claim(second, request(), True)
        assert await claim(store, now=1002.5, holder="there") == begun
        assert await store.request("a") is None
        assert await claim(store, now=1002.5, holder="there") == begun

    async def test_what_cannot_begin_is_left_as_it_is(self, store: Store) -> None:
        running = job("runs", replayable=True, max_runs=2)
        kept = {
            "of another route": waiting("of another route", route="s"),
            "not yet": waiting("not yet", not_before=1001.75),
            "without a request": waiting("without a request", replayable=False),
            "runs": running,
            "stops": running._replace(id="stops", state=State.CANCELLING),
        }
        for new in kept.values():
            await store.create(new, request(), lease=0.0)
        await store.create(running._replace(id="ended"), request())
        kept["ended"] = finished(running._replace(id="ended"))
        assert await store.replace(kept["ended"])
        for id, there in kept.items():
            assert await claim(store, id, lease=60.0) == Claim(there, None, False)
            assert await store.get(id) == there
            assert await store.request(id) == (request() if there.replayable else None)
        assert {each.id async for each in store.abandoned()} == kept.keys() - {"ended"}
        assert await claim(store, "runs", routes=()) == Claim(running, None, False)

    async def test_a_job_does_not_begin_before_its_time(self, store: Store) -> None:
        for id, not_before in (("a", 1001.5), ("b", 1001.25)):
            new = waiting(id, not_before=not_before)
            await store.create(new, request())
            assert await claim(store, id, now=1001.0) == Claim(new, None, False)
            assert await claim(store, id) == Claim(new.start(1001.5, "here"), request(), True)
        again = waiting("c", max_runs=2).start(1001.0).requeue()._replace(not_before=1003.5)
        await store.create(again._replace(version=1, not_before=None), request())
        later = again._replace(version=2)
        assert await store.replace(later)
        assert await claim(store, "c", now=1003.0) == Claim(later, None, False)
        begun = await claim(store, "c", now=1003.5)
        assert begun == Claim(later.start(1003.5, "here"), request(), True)
        assert begun.job.not_before is None

    async def test_a_failed_run_leaves_nothing_but_its_request(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        running = waiting(max_runs=2, owner="ann", begin_by=1060.0).start(1001.0, "here")
        await store.create(running._replace(version=1), request(), lease=60.0)
        assert await store.append_body("a", running.fence, 0, b"half", head=Head(503, ()))
        waits = running._replace(version=1).requeue(1003.5, "here")
        assert await store.replace(waits, lease=0.0)
        assert await store.get("a") == waits
        assert await store.request("a") == request()
        assert await body_of(store, "a") == b""
        assert await store.partial("a") == Partial(waits, None, 0)
        assert not await store.append_body("a", running.fence, 4, b"of the run that failed")
        assert [each.job async for each in store.abandoned()] == [waits]
        assert not await fits(store, waiting("b", owner="ann"), one)
        assert await fits(store, job("c", owner="ann"), one)
        assert await claim(store, now=1003.0) == Claim(waits, None, False)
        last = waits.start(1003.5, "here")
        assert await claim(store, now=1003.5) == Claim(last, request(), True)
        assert await fits(store, waiting("b", owner="ann"), one)

    async def test_what_is_not_there_cannot_be_claimed(self, store: Store) -> None:
        assert await claim(store, "unknown") is None
        await store.create(waiting(), request())
        await store.replace(waiting().tombstone(1000.0, 60.0))
        assert await claim(store) is None

    async def test_a_claim_is_held_for_its_lease(self, store: Store) -> None:
        for id in "abcd":
            await store.create(waiting(id), request(), lease=60.0 if id in "cd" else 0.0)
        leases = {"a": 60.0, "b": None, "c": None, "d": 0.0}
        for id, lease in leases.items():
            begun = await claim(store, id, lease=lease)
            assert begun is not None
            assert begun.begun
        assert {each.id async for each in store.abandoned()} == {"b", "d"}

    async def test_of_many_who_claim_a_job_one_runs_it(self, store: Store) -> None:
        await store.create(waiting(max_runs=2), request())
        told = []

        async def ask(number: int) -> None:
            told.append(await claim(store, holder=str(number)))

        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(ask, number)
        (begun,) = [each for each in told if each is not None and each.begun]
        assert begun.request == request()
        assert begun.job == await store.get("a")
        assert [each for each in told if each != begun] == [Claim(begun.job, None, False)] * 29

    async def test_a_claim_wakes_who_waits(self, store: Store) -> None:
        await store.create(waiting(), request())
        seen = []

        async def watch() -> None:
            seen.append(await store.changed("a", 1))

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            group.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            assert await claim(store)
        assert seen == [waiting().start(1001.5, "here")] * 2

    async def test_a_claimed_job_counts_with_those_that_run(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        await store.create(waiting(owner="ann"), request())
        assert not await fits(store, waiting("b", owner="ann"), one)
        assert await fits(store, job("c", owner="ann"), one)
        assert await store.replace(finished(job("c", owner="ann")))
        assert await claim(store)
        assert await fits(store, waiting("b", owner="ann"), one)
        assert not await fits(store, job("d", owner="ann"), one)
        assert await store.replace(finished(waiting(owner="ann").start(1001.5, "here")))
        assert await fits(store, job("d", owner="ann"), one)

    async def test_a_claimed_job_has_a_body_of_its_own(self, store: Store) -> None:
        await store.create(waiting(), request())
        head = Head(200, ())
        assert await store.append_body("a", 1, 0, b"of nobody", head=head)
        assert await claim(store)
        runs = waiting().start(1001.5, "here")
        assert await body_of(store, "a") == b""
        assert await store.partial("a") == Partial(runs, None, 0)
        assert await store.append_body("a", 2, 0, b"one")
        assert await body_of(store, "a") == b"one"
