"""The contract of stores: whose a key is, and how many there is room for."""

from __future__ import annotations

import anyio

from raincheck.errors import NoRoom
from raincheck.job import LEAST_STORED, Bounds, Job, Key, Progress, State
from raincheck.stores.base import (
    Found,
    Store,
)
from raincheck.testing.samples import (
    claim,
    finished,
    fits,
    job,
    request,
    waiting,
)


class KeyContract:
    """Whose a key is, and how many there is room for."""

    async def test_of_many_creators_under_one_key_one_wins(self, store: Store) -> None:
        there = set()

        async def create(number: int) -> None:
            keys = Key("k"), Key(f"own-{number}")
            there.add((await store.create(job(str(number)), keys=keys)).id)

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(create, number)
        assert len(there) == 1
        (winner,) = there
        assert await store.find("k") == (await store.get(winner), None)
        losers = {str(number) for number in range(100)} - there
        assert [await store.get(id) for id in losers] == [None] * 99
        assert [await store.find(f"own-{id}") for id in losers] == [None] * 99

    async def test_an_unknown_key_is_nobodys(self, store: Store) -> None:
        await store.create(job())
        assert await store.find("k") is None

    async def test_each_key_has_a_fingerprint_of_its_own(self, store: Store) -> None:
        keys = Key("k", "f1"), Key("l", "ü" * 100, lasting=False), Key("m")
        await store.create(job(), keys=keys)
        joined = job().shared(1)
        assert await store.replace(joined, keys=(Key("n", "f2"),))
        for name, fingerprint in (*(key[:2] for key in keys), ("n", "f2")):
            assert await store.find(name) == Found(joined, fingerprint)

    async def test_a_key_that_does_not_last_is_free_once_nobody_can_join(
        self, store: Store
    ) -> None:
        lasting, passing = Key("k", "f"), Key("l", lasting=False)
        waits = job(state=State.QUEUED, max_runs=2, replayable=True)
        for last in ("cancelling", "finished", "gone"):
            queued = waits._replace(id=last)
            keys = [key._replace(name=f"{key.name} of {last}") for key in (lasting, passing)]
            await store.create(queued, request(), keys=keys)
            again = queued.start(1001.0).requeue()
            for version in (queued.start(1001.0), again, again.start(1002.0)):
                assert await store.replace(version)
                assert [await store.find(key.name) for key in keys] == [
                    *((version, "f"), (version, None))
                ]
            runs = again.start(1002.0)
            ends = {
                "cancelling": runs.cancelling(),
                "finished": finished(runs),
                "gone": runs.tombstone(1003.0, 60.0),
            }[last]
            assert await store.replace(ends)
            assert await store.find(keys[1].name) is None
            assert await store.find(keys[0].name) == (None if last == "gone" else (ends, "f"))
            another = job(f"after {last}")
            assert await store.create(another, keys=keys[1:]) == another

    async def test_a_key_that_lasts_is_free_once_its_job_is_gone(self, store: Store) -> None:
        await store.create(job(), keys=(Key("k"),))
        joined, stopping = job().shared(1), job().shared(1).cancelling()
        assert await store.replace(joined, keys=(Key("l"),))
        assert await store.replace(stopping)
        assert await store.replace(finished(stopping))
        for name in "kl":
            there = await store.create(job("b"), keys=(Key(name),))
            assert there == finished(stopping)
        await store.sweep(1060.0)
        assert [await store.find(name) for name in "kl"] == [None, None]
        assert await store.create(job("b"), keys=(Key("k"), Key("l"))) == job("b")

    async def test_a_key_that_a_job_gets_later_is_its_own(self, store: Store) -> None:
        await store.create(job(), keys=(Key("k", lasting=False),))
        joined = job().shared(1)
        assert await store.replace(joined, keys=(Key("l", "f"), Key("m", lasting=False)))
        assert await store.find("l") == (joined, "f")
        assert await store.find("m") == (joined, None)
        assert (await store.create(job("b"), keys=(Key("l"),))).id == "a"
        assert await store.replace(finished(joined))
        assert [await store.find(name) for name in "km"] == [None, None]
        assert await store.find("l") == (finished(joined), "f")

    async def test_a_key_that_is_taken_keeps_a_version_out(self, store: Store) -> None:
        """Be it another job's or this one's: who brought it has yet to look whose it is."""
        await store.create(job(), keys=(Key("k", "f"),))
        await store.create(job("b"), keys=(Key("l", "g"),))
        for name in "kl":
            assert not await store.replace(job().shared(1), keys=(Key("free"), Key(name)))
        assert await store.get("a") == job()
        assert await store.find("free") is None
        assert [await store.find(name) for name in "kl"] == [(job(), "f"), (job("b"), "g")]
        assert await store.replace(job().shared(1), keys=(Key("free"),))

    async def test_of_many_who_bring_one_key_one_wins(self, store: Store) -> None:
        """Be it to a job that is there or with one of their own."""
        await store.create(job())
        won = []

        async def join() -> None:
            there: Job | None = job()
            while there is not None and await store.find("k") is None:
                if await store.replace(there.shared(1), keys=(Key("k"),)):
                    won.append("a")
                there = await store.get("a")

        async def create(number: int) -> None:
            there = await store.create(job(str(number)), keys=(Key("k"),))
            if there.id == str(number):
                won.append(there.id)

        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(join)
                group.start_soon(create, number)
        found = await store.find("k")
        assert found is not None
        assert won == [found.job.id]

    async def test_a_job_may_have_very_many_keys(self, store: Store) -> None:
        version = job()
        await store.create(version, keys=[Key(f"k{number}") for number in range(100)])
        for first in range(100, 10_000, 900):
            version = version.shared(1)
            keys = [Key(f"k{n}", f"f{n}", lasting=n % 2 == 0) for n in range(first, first + 900)]
            assert await store.replace(version, keys=keys)
        assert await store.find("k9999") == (version, "f9999")
        version = finished(version)
        assert await store.replace(version)
        assert await store.find("k9999") is None
        assert await store.find("k9998") == (version, "f9998")
        assert await store.replace(version.tombstone(1000.0, 60.0))
        assert await store.find("k9998") is None
        assert await store.create(job("b"), keys=(Key("k9998"),)) == job("b")

    async def test_what_a_route_varies_by_is_remembered(self, store: Store) -> None:
        route = "POST /vidéos/{id:int} " * 100
        assert await store.learned(route) == frozenset()
        await store.learn(route, {"x-tenant", "*"})
        await store.learn(route, ["x-tenant", "x-plan"])
        await store.learn(route, [])
        assert await store.learned(route) == {"x-tenant", "x-plan", "*"}
        assert await store.learned("another") == frozenset()
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(store.learn, route, [f"x-{number}", f"x-{(number + 1) % 20}"])
        assert len(await store.learned(route)) == 23
        await store.create(job(route=route))
        await store.replace(finished(job(route=route)))
        await store.sweep(1060.0)
        await store.sweep(1120.0)
        assert len(await store.learned(route)) == 23

    async def test_a_route_has_room_for_so_many(self, store: Store) -> None:
        two = Bounds(route=2)
        assert [await fits(store, job(id), two) for id in "abc"] == [True, True, False]
        assert await fits(store, job("elsewhere", route="other"), two)
        assert [await fits(store, job(id, state=State.QUEUED), two) for id in "def"] == [
            *(True, True, False)
        ]
        assert await fits(store, job("g"), Bounds(route=3))
        assert await fits(store, job("h"), None)
        assert not await fits(store, job("i"), Bounds(route=4))

    async def test_a_synchronous_job_takes_no_room(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        in_place = job("in place", owner="ann", synchronous=True)
        await store.create(in_place, keys=(Key("k"),))
        assert await fits(store, job("a", owner="ann"), one)
        assert not await fits(store, job("b", owner="ann"), one)
        assert await store.replace(finished(in_place))
        assert not await fits(store, job("b", owner="ann"), one)
        assert await store.find("k") == (finished(in_place), None)

    async def test_an_owner_has_room_for_so_many_on_each_route(self, store: Store) -> None:
        one = Bounds(owner=1)
        assert await fits(store, job("a", owner="ann"), one)
        assert not await fits(store, job("b", owner="ann"), one)
        assert await fits(store, job("b", owner="ann", route="other"), one)
        assert await fits(store, job("c", owner="ann", state=State.QUEUED), one)
        assert await fits(store, job("d", owner="bob"), one)
        assert [await fits(store, job(id), one) for id in "ef"] == [True, True]

    async def test_it_tells_which_bound_there_is_no_room_within(self, store: Store) -> None:
        await store.create(job("a", owner="ann"))
        told = []
        for bounds in (Bounds(route=1, owner=1), Bounds(route=1, owner=2), Bounds(2, 1)):
            try:
                await store.create(job("b", owner="ann"), bounds=bounds)
            except NoRoom as error:
                told.append(error.owner)
        assert told == [True, False, True]

    async def test_a_job_gives_room_when_it_leaves_its_state(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        waits = job("a", state=State.QUEUED, owner="ann", max_runs=2, replayable=True)
        await store.create(waits, request())
        runs = waits.start(1001.0)
        assert await store.replace(runs, bounds=one)
        assert await fits(store, job("b", state=State.QUEUED, owner="ann"), one)
        assert not await fits(store, job("c", owner="ann"), one)
        assert await store.replace(runs.requeue())
        assert await fits(store, job("c", owner="ann"), one)
        assert not await fits(store, job("d", owner="ann", state=State.QUEUED), Bounds(route=2))
        await store.replace(job("b", state=State.QUEUED, owner="ann").tombstone(1000.0, 60.0))
        assert await fits(store, job("d", owner="ann", state=State.QUEUED), Bounds(route=2))
        assert await store.replace(finished(job("c", owner="ann")))
        assert await fits(store, job("e", owner="ann"), one)
        stopping = job("e", owner="ann").cancelling()
        assert await store.replace(stopping)
        assert not await fits(store, job("f", owner="ann"), one)
        assert await store.replace(finished(stopping))
        assert await fits(store, job("f", owner="ann"), one)
        await store.sweep(2000.0)
        assert not await fits(store, job("g", owner="ann"), one)

    async def test_an_owner_may_store_so_much_on_each_route(self, store: Store) -> None:
        most = Bounds(stored=100_000)
        for id in "ab":
            assert await fits(store, job(id, owner="ann"), most)
        assert await store.replace(finished(job("a", owner="ann"), size=90_000), tail=b"x" * 90_000)
        assert await fits(store, job("c", owner="ann"), most)  # what runs does not count
        assert await store.replace(finished(job("b", owner="ann"), size=20_000), tail=b"x" * 20_000)
        assert not await fits(store, job("d", owner="ann"), most)
        assert not await fits(store, waiting("d", owner="ann"), Bounds(9, 9, 100_000))
        assert await fits(store, job("d", owner="ann"), Bounds(9, 9, 200_000))
        assert await fits(store, job("e", owner="ann", route="other"), most)
        assert await fits(store, job("f", owner="bob"), most)
        assert await fits(store, job("g"), Bounds(stored=1))
        assert await fits(store, job("h", owner="ann"), Bounds(9, 9))
        done = finished(job("c", owner="ann"), size=9)
        assert await store.replace(done, bounds=Bounds(stored=1))  # only when one is created

    async def test_it_tells_that_what_is_stored_leaves_no_room(self, store: Store) -> None:
        one = Bounds(route=1, owner=1, stored=1)
        assert await fits(store, job("a", owner="ann"), one)
        told = []
        for _ in range(2):
            try:
                await store.create(job("b", owner="ann"), bounds=one)
            except NoRoom as error:
                told.append((error.owner, error.stored))
            await store.replace(finished(job("a", owner="ann")))
        assert told == [(True, False), (True, True)]

    async def test_what_is_gone_is_not_stored_any_more(self, store: Store) -> None:
        most = Bounds(stored=LEAST_STORED + 1)  # each counts for something
        for id in "abc":
            assert await fits(store, job(id, owner="ann"), most)
        assert await store.replace(finished(job("a", owner="ann")))
        assert await fits(store, job("d", owner="ann"), most)
        done = finished(job("b", owner="ann"), 1500.0)
        assert await store.replace(done)
        assert not await fits(store, job("e", owner="ann"), most)
        await store.sweep(1100.0)  # which takes the first
        assert await fits(store, job("e", owner="ann"), most)
        assert await store.replace(finished(job("c", owner="ann"), 1500.0))
        assert not await fits(store, job("f", owner="ann"), most)
        assert await store.replace(done.tombstone(1501.0, 60.0))
        assert await fits(store, job("f", owner="ann"), most)
        await store.sweep(1600.0)
        await store.sweep(1700.0)
        assert await fits(store, job("g", owner="ann"), Bounds(stored=1))

    async def test_what_was_accepted_without_the_bound_is_not_counted(self, store: Store) -> None:
        await store.create(job("a", owner="ann"))
        assert await store.replace(finished(job("a", owner="ann"), size=9), tail=b"x" * 9)
        assert await fits(store, job("b", owner="ann"), Bounds(stored=1))

    async def test_a_job_that_runs_again_stores_what_its_last_run_has(self, store: Store) -> None:
        most = Bounds(stored=10_000)
        waits = waiting("a", owner="ann", max_runs=2)
        await store.create(waits, request(), bounds=most)
        claimed = await claim(store)
        assert claimed is not None
        again = claimed.job.requeue()
        assert await store.replace(again)
        assert await store.append_body("a", again.fence, 0, b"x" * 20_000)
        assert await fits(store, job("b", owner="ann"), most)
        runs = again.start(1002.0)
        assert await store.replace(runs)
        assert await store.replace(finished(runs, size=9_000), tail=b"x" * 9_000)
        assert await fits(store, job("c", owner="ann"), most)
        assert await store.replace(finished(job("c", owner="ann"), size=2_000), tail=b"x" * 2_000)
        assert not await fits(store, job("d", owner="ann"), most)

    async def test_a_twin_is_found_though_too_much_is_stored(self, store: Store) -> None:
        one = Bounds(stored=1)
        first = job(owner="ann")
        await store.create(first, keys=(Key("k"),), bounds=one)
        assert await store.replace(finished(first))
        assert (await store.create(first, bounds=one)).id == "a"
        assert (await store.create(job("b", owner="ann"), keys=(Key("k"),), bounds=one)).id == "a"
        assert not await fits(store, job("b", owner="ann"), one)

    async def test_a_job_begins_only_if_there_is_room(self, store: Store) -> None:
        one = Bounds(route=1, owner=1)
        await store.create(job("a", owner="ann"))
        waits = job("b", state=State.QUEUED, owner="ann", max_runs=2, replayable=True)
        await store.create(waits, request())
        try:
            await store.replace(waits.start(1001.0), bounds=one)
        except NoRoom:
            assert await store.get("b") == waits
            assert await store.request("b") == request()
        else:
            raise AssertionError("there was room")
        assert await store.replace(finished(job("a", owner="ann")))
        assert await store.replace(waits.start(1001.0), bounds=one)
        assert not await store.replace(waits.start(1001.0), bounds=one)

    async def test_a_job_that_stays_in_its_state_or_ends_needs_no_room(self, store: Store) -> None:
        none = Bounds(route=0, owner=0)
        await store.create(job(owner="ann"))
        reported = job(owner="ann").with_progress(Progress(0.5))
        assert await store.replace(reported, bounds=none)
        stopping = reported.cancelling()
        assert await store.replace(stopping, bounds=none)
        assert await store.replace(finished(stopping), bounds=none)
        assert await store.replace(finished(stopping).tombstone(1000.0, 60.0), bounds=none)

    async def test_a_twin_is_found_though_there_is_no_room(self, store: Store) -> None:
        one = Bounds(route=1)
        await store.create(job(), keys=(Key("k"),), bounds=one)
        assert (await store.create(job(), bounds=one)).id == "a"
        assert (await store.create(job("b"), keys=(Key("k"),), bounds=one)).id == "a"

    async def test_of_many_creators_as_many_win_as_there_is_room_for(self, store: Store) -> None:
        fit = []

        async def create(number: int) -> None:
            owner = "ann" if number % 2 else "bob"
            waits = job(str(number), state=State.QUEUED, owner=owner)
            fit.append(await fits(store, waits, Bounds(route=20, owner=12)))

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(create, number)
        assert sum(fit) == 20
