"""The contract of stores: which jobs somebody is still to be told of, and by whom."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from raincheck.job import LOOK_AGAIN, Delivery, Job, State
from raincheck.stores.base import Store
from raincheck.testing.samples import finished, job, keeps, told


async def ends(store: Store, each: Job) -> Job:
    """A job that was created, and has ended."""
    await store.create(each)
    done = finished(each)
    assert await store.replace(done)
    return done


def ids_of(jobs: Sequence[Job]) -> list[str]:
    """The ids of jobs, in their order."""
    return [job.id for job in jobs]


def delivery_of(job: Job) -> Delivery:
    """The message of a job that has one."""
    assert job.delivery is not None
    return job.delivery


class DeliveryContract:
    """Which jobs somebody is still to be told of, and by whom."""

    async def test_a_message_comes_back_with_its_job(self, store: Store) -> None:
        full = Delivery("https://ü.example/", "/jobs", True, "failed", 1.5, 7, 3, 9, "it said ½")
        full = full._replace(response=(200, "text/plain", 3))
        await store.create(job(delivery=full))
        assert await store.get("a") == job(delivery=full)
        done = finished(job(delivery=full))
        assert await store.replace(done)
        assert await store.get("a") == done
        assert done.delivery == full

    async def test_who_delivers_is_given_what_has_ended_and_is_due(self, store: Store) -> None:
        await ends(store, job("untold"))
        await store.create(told("runs"))
        await ends(store, told("later", not_before=1001.0))
        due = await ends(store, told("due", not_before=1000.0))
        found = await store.claim_deliveries(1000.0, 60.0, 10)
        assert ids_of(found) == ["due"]
        assert delivery_of(found[0]).url == delivery_of(due).url
        assert ids_of(await store.claim_deliveries(1001.0, 60.0, 10)) == ["later"]

    async def test_nobody_else_is_given_it_for_the_time_of_a_lease(self, store: Store) -> None:
        await ends(store, told())
        assert ids_of(await store.claim_deliveries(1000.0, 60.0, 10)) == ["a"]
        assert ids_of(await store.claim_deliveries(1000.0, 60.0, 10)) == []
        await ends(store, told("b"))
        assert ids_of(await store.claim_deliveries(1000.0, 0.0, 10)) == ["b"]
        assert ids_of(await store.claim_deliveries(1000.0, 60.0, 10)) == ["b"]

    async def test_no_more_than_wanted_and_the_longest_due_first(self, store: Store) -> None:
        for n in (3, 1, 2, 0):
            await ends(store, told(f"{n}", not_before=900.0 + n, created_at=900.0 - n))
        if keeps(store, "claim_deliveries"):
            found = [*await store.claim_deliveries(1000.0, 60.0, 2)]
            found += await store.claim_deliveries(1000.0, 60.0, 10)
            assert sorted(ids_of(found)) == ["0", "1", "2", "3"]
            return
        assert ids_of(await store.claim_deliveries(1000.0, 60.0, 2)) == ["0", "1"]
        assert ids_of(await store.claim_deliveries(1000.0, 60.0, 10)) == ["2", "3"]

    async def test_what_has_become_of_it_is_kept_and_frees_it(self, store: Store) -> None:
        await ends(store, told())
        (found,) = await store.claim_deliveries(1000.0, 60.0, 10)
        failed = found.noted(delivery_of(found).tried(error="no answer", again_at=1005.0))
        assert await store.replace(failed)
        assert not await store.replace(failed)
        assert await store.get("a") == failed
        assert ids_of(await store.claim_deliveries(1004.0, 60.0, 10)) == []
        (again,) = await store.claim_deliveries(1005.0, 60.0, 10)
        assert delivery_of(again).deliveries == 1
        done = again.noted(delivery_of(again).tried())
        assert await store.replace(done)
        assert await store.get("a") == done
        assert done.news == failed.news == 2
        assert ids_of(await store.claim_deliveries(9000.0, 60.0, 10)) == []
        assert await store.replace(asked := done.noted(delivery_of(done).asked_again(9000.0)))
        assert ids_of(await store.claim_deliveries(9000.0, 60.0, 10)) == ["a"]
        assert delivery_of(asked).tries == 0

    async def test_a_note_of_its_message_changes_no_total(self, store: Store) -> None:
        done = await ends(store, told(started_at=999.0))
        before, listed = await store.totals(), await store.list()
        assert await store.replace(noted := done.noted(delivery_of(done).tried()))
        assert await store.totals() == before
        assert ids_of((await store.list()).jobs) == ids_of(listed.jobs)
        assert (await store.list()).jobs == [noted]
        assert await store.replace(noted.tombstone(1000.0, 60.0))
        assert await store.totals() == {}

    async def test_a_response_stays_whole_while_its_message_is_noted(self, store: Store) -> None:
        await store.create(told())
        assert await store.replace(done := finished(told(), size=3), tail=b"abc")
        assert await store.replace(noted := done.noted(delivery_of(done).tried()))
        found = await store.fetch("a")
        assert found is not None
        assert found.job == noted
        assert b"".join([chunk async for chunk in store.read_body("a")]) == b"abc"

    async def test_an_expired_job_is_told_of_all_the_same(self, store: Store) -> None:
        if keeps(store, "claim_deliveries"):
            return  # by the default it finds those that it lists
        await store.create(told(started_at=999.0, runs=1))
        done = finished(told(started_at=999.0, runs=1), size=3, ttl=60.0, tombstone_ttl=60.0)
        assert await store.replace(done, tail=b"abc")
        assert await store.sweep(1060.0)
        assert await store.sweep(1200.0)  # its tombstone would have gone
        (found,) = await store.claim_deliveries(1200.0, 60.0, 10)
        assert found.gone
        kept = (found.state, found.runs, found.started_at, found.finished_at, found.expires_at)
        assert kept == (State.SUCCEEDED, 1, 999.0, 1000.0, 1060.0)
        assert found.response is None
        assert delivery_of(found).response == (200, None, 3)
        assert [chunk async for chunk in store.read_body("a")] == []
        noted = found.noted(delivery_of(found).tried())
        assert await store.replace(noted)
        assert (noted.gone, noted.delivery, noted.response) == (True, None, None)
        assert await store.get("a") == noted
        assert ids_of(await store.claim_deliveries(1e9, 60.0, 10)) == []
        assert not await store.sweep(2e9)

    async def test_a_deleted_job_is_told_of_no_more(self, store: Store) -> None:
        done = await ends(store, told())
        assert await store.replace(done.tombstone(1000.0, 60.0))
        await store.create(told("b"))
        assert await store.replace(told("b").tombstone(1000.0, 60.0))
        assert ids_of(await store.claim_deliveries(2000.0, 60.0, 10)) == []
        assert not await store.sweep(3000.0)
        assert ids_of(await store.claim_deliveries(3000.0, 60.0, 10)) == []

    async def test_a_job_without_its_message_is_told_of_no_more(self, store: Store) -> None:
        done = await ends(store, told(started_at=999.0))
        before = await store.totals()
        assert await store.replace(settled := done.settled())
        assert ids_of(await store.claim_deliveries(1000.0, 60.0, 10)) == []
        assert await store.get("a") == settled
        assert await store.totals() == before
        assert ids_of(await store.claim_deliveries(9000.0, 60.0, 10)) == []

    async def test_each_of_many_is_given_to_one_of_many(self, store: Store) -> None:
        for n in range(40):
            await ends(store, told(f"{n}"))
        taken: list[str] = []

        async def take() -> None:
            while found := await store.claim_deliveries(1000.0, 60.0, 7):
                taken.extend(ids_of(found))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(take)
        if keeps(store, "claim_deliveries"):  # which may miss what goes on while it looks
            taken += ids_of(await store.claim_deliveries(1000.0, 60.0, 40))
        assert sorted(taken) == sorted(f"{n}" for n in range(40))

    async def test_what_an_older_version_has_ended_is_found_soon(self, store: Store) -> None:
        """It keeps what it does not know of a record, if the store keeps records and no values."""
        await store.create(told())
        delivery = [*delivery_of(told())]
        unaware = finished(told())._replace(delivery=None, extra={"delivery": delivery})
        assert await store.replace(unaware)
        there = await store.get("a")
        if there is None or there.delivery is None:
            return
        found = await store.claim_deliveries(1000.0, 60.0, 10)
        found = found or await store.claim_deliveries(1000.0 + LOOK_AGAIN, 60.0, 10)
        assert ids_of(found) == ["a"]
        assert delivery_of(found[0]).url == delivery_of(told()).url
