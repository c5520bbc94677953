"""What stores promise that several processes open: `StoreContract`, and with real processes.

A subclass gives

- a fixture `opening`: Python statements that bind `store` to a new store object, on a server or a
  file that is empty when the test begins and the same for all who run these statements in the
  test. Child processes run them, and so do the fixtures `store` and `another`.
- a method `overwrite`: puts other bytes where the store keeps the record of a job.
- a fixture `anyio_backend`, if the store runs on one kind of event loop only.

    @pytest.mark.anyio
    @pytest.mark.real
    class TestMyStore(SharedStoreContract):
        @pytest.fixture
        def opening(self, tmp_path: Path) -> str:
            return f"from my.store import MyStore\nstore = MyStore({str(tmp_path / 'jobs')!r})"

        async def overwrite(self, store: Store, id: str, record: bytes) -> None: ...

A child is forked from a process that has imported this module and our stores, and has done nothing
else, so that it starts within milliseconds. Its event loop is of the same kind as the test's.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from sniffio import current_async_library
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running
from raincheck.errors import NoRoom, StoreError, UnreadableRecord
from raincheck.job import LEAST_STORED, Bounds, Job, Key, Progress, State
from raincheck.messages import Head
from raincheck.serialization import FORMAT, dump
from raincheck.stores.base import Claim, Fetched, Partial, Store, Total
from raincheck.testing import StoreContract, lifespan
from raincheck.testing.samples import body_of, claim, finished, fits, job, pages, request, waiting
from tests.stores.relay import Relay
from tests.support import client_of

PATIENCE = 60.0
"""Seconds until a test gives up: processes have to start, on a machine that may be busy."""

MEBIBYTE = 1024 * 1024

UNREADABLE = [
    json.dumps(json.loads(dump(job())) | change).encode()
    for change in ({"format": FORMAT + 1}, {"version": "two"}, {"state": "asleep"})
] + [b'{"format":1}', b"{", b"[]", b"\x7f"]
"""What another version or a fault may leave where the record of a job was."""


def as_newer(job: Job, **fields: Any) -> bytes:
    """The record of a job, as a process of the next version would write it."""
    return json.dumps(json.loads(dump(job)) | fields, separators=(",", ":")).encode()


FORKS = multiprocessing.get_context("forkserver")
STORES = [f"raincheck.stores.{name}" for name in ("postgres", "redis", "sqlite")]
FORKS.set_forkserver_preload(["tests.stores.shared", *STORES])


def opened(opening: str) -> Store:
    """The store that these statements bind."""
    names: dict[str, Any] = {}
    exec(opening, names)
    store = names["store"]
    assert isinstance(store, Store)
    return store


# --- parents and children --------------------------------------------------------------------


class Child:
    """A child process, as its parent sees it."""

    def __init__(self, opening: str, work: Work, backend: str, shift: float) -> None:
        self.killed = False
        self._connection, its = FORKS.Pipe()
        self._process = FORKS.Process(target=main, args=(its, opening, work, backend, shift))
        self._process.start()
        its.close()

    async def say(self, word: Any = None) -> None:
        self._connection.send(word)

    async def hear(self) -> Any:
        # Should the test fail meanwhile, the child is killed, and the thread ends with it.
        return await anyio.to_thread.run_sync(self._connection.recv, abandon_on_cancel=True)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self.killed = True
        self._process.kill()
        await self.ended()

    async def ended(self) -> int | None:
        """Its exit code."""
        await anyio.to_thread.run_sync(self._process.join, abandon_on_cancel=True)
        return self._process.exitcode

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()


class Parent:
    """The parent, as a child process sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, word: Any = None) -> None:
        self._connection.send(word)

    async def hear(self) -> Any:
        return await anyio.to_thread.run_sync(self._connection.recv)


Work = Callable[[Store, Parent], Awaitable[None]]


@asynccontextmanager
async def children(
    opening: str, work: Work, count: int = 1, *, shift: float = 0.0
) -> AsyncIterator[list[Child]]:
    """Child processes that work on the store; they have opened it and wait to be told to begin.

    Args:
        opening: binds the store.
        work: a function at the top level of a module.
        count: how many children.
        shift: seconds by which their `time.time()` is wrong.
    """
    with anyio.fail_after(PATIENCE), ExitStack() as stack:
        family = []
        for _ in range(count):
            child = Child(opening, work, current_async_library(), shift)
            family.append(stack.enter_context(closing(child)))
        for child in family:
            assert await child.hear() == "ready"
        yield family
        for child in family:
            assert await child.ended() == 0 or child.killed


@asynccontextmanager
async def child(opening: str, work: Work, *, shift: float = 0.0) -> AsyncIterator[Child]:
    """One of them."""
    async with children(opening, work, shift=shift) as (only,):
        yield only


def main(connection: Connection, opening: str, work: Work, backend: str, shift: float) -> None:
    if shift:
        real = time.time
        time.time = lambda: real() + shift
    store, parent = opened(opening), Parent(connection)

    async def run() -> None:
        await store.get("nobody")  # opens it
        parent.say("ready")
        try:
            await work(store, parent)
        finally:
            await store.aclose()

    anyio.run(run, backend=backend)


# --- what children do ------------------------------------------------------------------------

CROWD = 34
"""Creators in each of three processes: a hundred and two."""


async def creates_one_id(store: Store, parent: Parent) -> None:
    me = await parent.hear()
    there = []

    async def create(number: int) -> None:
        there.append((await store.create(job(route=f"{me}-{number}"))).route)

    async with anyio.create_task_group() as group:
        for number in range(CROWD):
            group.start_soon(create, number)
    parent.say(there)


async def creates_under_one_key(store: Store, parent: Parent) -> None:
    me = await parent.hear()
    there = []

    async def create(number: int) -> None:
        id = f"{me}-{number}"
        there.append((await store.create(job(id), keys=(Key(f"own-{id}"), Key("k")))).id)

    async with anyio.create_task_group() as group:
        for number in range(CROWD):
            group.start_soon(create, number)
    parent.say(there)


async def creates_within_bounds(store: Store, parent: Parent) -> None:
    me = await parent.hear()
    fit = []

    async def create(number: int) -> None:
        waits = job(f"{me}-{number}", state=State.QUEUED, owner=f"owner-{number % 2}")
        fit.append(await fits(store, waits, Bounds(route=20, owner=12)))

    async with anyio.create_task_group() as group:
        for number in range(CROWD):
            group.start_soon(create, number)
    parent.say(sum(fit))


async def counts(store: Store, parent: Parent) -> None:
    for _ in range(await parent.hear()):
        while True:
            there = await store.get("a")
            assert there is not None
            if await store.replace(there.shared(1)):
                break


async def changes_jobs(store: Store, parent: Parent) -> None:
    while (ids := await parent.hear()) is not None:
        for id in ids:
            there = await store.get(id)
            assert there is not None
            assert await store.replace(there.with_progress(Progress(0.5)))
            parent.say(time.monotonic())


async def changes_one_job(store: Store, parent: Parent) -> None:
    """Change one job many times, as fast as it goes."""
    there = await store.get("a")
    for _ in range(await parent.hear()):
        assert there is not None
        there = there.with_progress(Progress(0.5))
        assert await store.replace(there)


async def grows_a_body(store: Store, parent: Parent) -> None:
    size = await parent.hear()
    for offset in range(size):
        assert await store.append_body("a", 1, offset, b"x", head=Head(200, ()))
    assert await store.replace(finished(job(), size=size))


async def claims(store: Store, parent: Parent) -> None:
    holder, ids = await parent.hear()
    begun = []
    for id in ids:
        found = await claim(store, id, holder=holder)
        if found is not None and found.begun:
            assert found.request == request()
            begun.append(id)
    parent.say(begun)


async def takes_leases(store: Store, parent: Parent) -> None:
    for id, seconds in await parent.hear():
        await store.create(job(id), lease=seconds)
    parent.say()
    await parent.hear()


async def sees_leases(store: Store, parent: Parent) -> None:
    await parent.hear()
    parent.say([job.id async for job in store.abandoned()])


async def sweeps(store: Store, parent: Parent) -> None:
    for now in await parent.hear():
        await store.sweep(now)


async def keeps_a_large_body(store: Store, parent: Parent) -> None:
    """Write and read a body in chunks of 1 MiB, and tell what it took."""
    mebibytes = await parent.hear()
    chunk = bytes(range(256)) * 4096

    async def write_and_read(id: str, count: int) -> None:
        await store.create(job(id))
        for number in range(count):
            assert await store.append_body(id, 1, number * len(chunk), chunk)
        size = 0
        async for part in store.read_body(id):
            at = size % len(chunk)
            assert part == (chunk + chunk)[at : at + len(part)]
            size += len(part)
        assert size == count * len(chunk)
        assert await anext(store.read_body(id, size - 1)) == chunk[-1:]

    await write_and_read("small", 4)
    before = peak_memory()
    await write_and_read("large", mebibytes)
    parent.say(peak_memory() - before)


def peak_memory() -> int:
    """The most bytes that this process had in memory at once.

    Not `getrusage`: on Linux its maximum includes what the parent had when it forked.
    """
    status = Path("/proc/self/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak) * 1024


async def serves_through_a_restart(store: Store, restart: Callable[[], None]) -> None:
    """Let an app's server be started again, and see that no client learns of it."""

    @long_running
    async def work(request: Request) -> Response:
        return PlainTextResponse("done")

    app = LongRunningMiddleware(Starlette(routes=[Route("/work", work)]), store=store)
    async with lifespan(app), client_of(app) as client:
        location = (await client.get("/work")).headers["location"]
        done = await client.get(location, headers={"prefer": "wait=10"})
        for url, status in ((location, 200), ("/work", 202), (f"{location}/status", 200)):
            restart()
            assert (await client.get(url)).status_code == status
        assert done.text == "done"


# --- the contract ----------------------------------------------------------------------------


class SharedStoreContract(StoreContract, ABC):
    """What every shared store promises. See the module for what a subclass gives."""

    @pytest.fixture
    async def store(self, opening: str) -> AsyncIterator[Store]:
        store = opened(opening)
        yield store
        await store.aclose()

    @pytest.fixture
    async def another(self, opening: str) -> AsyncIterator[Store]:
        """Another store object on the same server or file, in this process."""
        store = opened(opening)
        yield store
        await store.aclose()

    @abstractmethod
    async def overwrite(self, store: Store, id: str, record: bytes) -> None:
        """Put other bytes where the store keeps the record of this job."""

    def test_it_is_shared(self, opening: str) -> None:
        assert opened(opening).shared

    # --- one winner -----------------------------------------------------------------------

    @pytest.mark.one_loop
    async def test_of_creators_of_one_id_in_several_processes_one_wins(
        self, store: Store, opening: str
    ) -> None:
        async with children(opening, creates_one_id, 3) as family:
            for number, child in enumerate(family):
                await child.say(number)
            winners = [await child.hear() for child in family]
        assert [len(told) for told in winners] == [CROWD] * 3
        there = await store.get("a")
        assert there is not None
        assert {route for told in winners for route in told} == {there.route}

    @pytest.mark.one_loop
    async def test_of_creators_under_one_key_in_several_processes_one_wins(
        self, store: Store, opening: str
    ) -> None:
        async with children(opening, creates_under_one_key, 3) as family:
            for number, child in enumerate(family):
                await child.say(number)
            winners = [await child.hear() for child in family]
        assert [len(told) for told in winners] == [CROWD] * 3
        found = await store.find("k")
        assert found is not None
        winner = found.job.id
        assert {id for told in winners for id in told} == {winner}
        ids = {f"{child}-{number}" for child in range(3) for number in range(CROWD)}
        assert [id for id in ids if await store.get(id)] == [winner]
        assert [id for id in ids if await store.find(f"own-{id}")] == [winner]

    @pytest.mark.one_loop
    async def test_of_creators_in_several_processes_as_many_win_as_there_is_room_for(
        self, store: Store, opening: str
    ) -> None:
        async with children(opening, creates_within_bounds, 3) as family:
            for number, child in enumerate(family):
                await child.say(number)
            assert sum([await child.hear() for child in family]) == 20

    @pytest.mark.slow
    async def test_no_change_of_several_processes_is_lost(self, store: Store, opening: str) -> None:
        await store.create(job())
        async with children(opening, counts, 3) as family:
            for child in family:
                await child.say(40)
        there = await store.get("a")
        assert there is not None
        assert (there.version, there.clients) == (121, 121)

    @pytest.mark.slow
    async def test_several_processes_sweep_at_once(self, store: Store, opening: str) -> None:
        ids = [str(number) for number in range(1200)]
        keys = [f"key-{id}" for id in ids]

        async def keep(id: str, key: str) -> None:
            await store.create(job(id), keys=(Key(key),))
            assert await store.replace(finished(job(id)), tail=b"x")

        async with anyio.create_task_group() as group:
            for id, key in zip(ids, keys, strict=True):
                group.start_soon(keep, id, key)
        async with children(opening, sweeps, 3) as family:
            for child in family:
                await child.say([1059.0, 1060.0, 1061.0])
        tombstones = [await store.get(id) for id in ids]
        assert {job and (job.gone, job.version) for job in tombstones} == {(True, 3)}
        assert [key for key in keys if await store.find(key)] == []
        assert [id for id in ids[::100] if await body_of(store, id)] == []
        async with children(opening, sweeps, 3) as family:
            for child in family:
                await child.say([1120.0])
        assert [id for id in ids if await store.get(id)] == []
        assert not await store.sweep(1120.0)

    async def test_what_one_process_has_learned_others_know(
        self, store: Store, another: Store
    ) -> None:
        assert await another.learned("r") == frozenset()
        await store.learn("r", ["x-tenant"])
        assert await another.learned("r") == {"x-tenant"}

    # --- changes --------------------------------------------------------------------------

    async def test_a_change_in_another_process_wakes_who_waits(
        self, store: Store, opening: str
    ) -> None:
        await store.create(job())
        late = []
        async with child(opening, changes_jobs) as other:
            for version in range(1, 11):
                async with anyio.create_task_group() as group:

                    async def watch(version: int = version) -> None:
                        newest = await store.changed("a", version)
                        woken = time.monotonic()  # the same clock in every process
                        assert newest is not None
                        assert newest.version == version + 1
                        late.append(woken - await other.hear())

                    group.start_soon(watch)
                    await anyio.sleep(0.01)  # most begin to wait before it changes
                    await other.say(["a"])
            await other.say(None)
        assert sorted(late)[5] < 1.0

    async def test_another_store_object_wakes_who_waits(self, store: Store, another: Store) -> None:
        await store.create(job())
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(store.changed, "a", 1)
                await anyio.sleep(0.05)
                assert await another.replace(job().cancelling())

    async def test_another_store_object_wakes_who_follows_a_response(
        self, store: Store, another: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raincheck.stores.base.PAUSE", 2 * PATIENCE)  # nobody just looks again
        await store.create(job())
        head = Head(200, ())
        steps: list[tuple[Callable[[], Awaitable[bool]], Partial]] = [
            (lambda: another.append_body("a", 1, 0, b"", head=head), Partial(job(), head, 0)),
            (lambda: another.append_body("a", 1, 0, b"one"), Partial(job(), head, 3)),
            (lambda: another.append_body("a", 1, 3, b"two"), Partial(job(), head, 6)),
            (lambda: another.replace(finished(job())), Partial(finished(job()), None, 0)),
        ]
        known = Partial(job(), None, 0)
        for step, found in steps:
            seen: list[Partial | None] = []

            async def watch(known: Partial = known, seen: Any = seen) -> None:
                seen.append(await store.grown(known))

            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(watch)
                    group.start_soon(watch)
                    await anyio.sleep(0.05)
                    assert await step()
            assert seen == [found] * 2
            known = found

    async def test_a_body_that_another_process_writes_is_followed_to_its_end(
        self, store: Store, opening: str
    ) -> None:
        await store.create(job())
        had: dict[int, list[int]] = {1: [], 2: [], 3: []}

        async def follow(number: int) -> None:
            known: Partial | None = Partial(job(), None, 0)
            while known is not None and not known.job.finished:
                known = await store.grown(known)
                assert known is not None
                assert known.head == Head(200, ())
                had[number].append(known.size)

        async with child(opening, grows_a_body) as other, anyio.create_task_group() as group:
            for number in had:
                group.start_soon(follow, number)
            await other.say(100)
        for sizes in had.values():
            assert sizes == sorted(sizes)
            assert sizes[-1] == 100

    async def test_of_claimers_in_several_processes_one_runs_it(
        self, store: Store, opening: str
    ) -> None:
        ids = [f"{number}" for number in range(20)]
        for id in ids:
            await store.create(waiting(id, max_runs=2), request())
        async with children(opening, claims, 3) as family:
            for number, each in enumerate(family):
                await each.say((f"h{number}", ids))
            begun = [await each.hear() for each in family]
        assert sorted(id for each in begun for id in each) == sorted(ids)
        for number, each in enumerate(begun):
            for id in each:
                runs = waiting(id, max_runs=2).start(1001.5, f"h{number}")
                assert await store.get(id) == runs

    @pytest.mark.one_loop
    async def test_everybody_wakes(self, store: Store, opening: str) -> None:
        ids = [f"j{number}" for number in range(500)]
        woken: list[Job | None] = []

        async def watch(id: str) -> None:
            woken.append(await store.changed(id, 1))

        async with anyio.create_task_group() as group:
            for id in [*ids, "one"]:
                group.start_soon(store.create, job(id))
        async with child(opening, changes_jobs) as other, anyio.create_task_group() as group:
            for id in [*ids, *["one"] * 50]:
                group.start_soon(watch, id)
            await anyio.sleep(0.1)
            assert woken == []
            await other.say([*ids, "one"])
            for _ in [*ids, "one"]:
                await other.hear()
            await other.say(None)
        assert sorted(job.id for job in woken if job) == sorted([*ids, *["one"] * 50])
        assert {job and job.version for job in woken} == {2}

    async def test_no_change_is_missed(self, store: Store, opening: str) -> None:
        await store.create(job())

        async def watch() -> None:
            version = 0
            while version <= 300:
                newest = await store.changed("a", version)
                assert newest is not None
                assert newest.version > version
                version = newest.version

        async with child(opening, changes_one_job) as other, anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(watch)
            await other.say(300)

    async def test_a_job_that_goes_away_wakes_who_waits(self, store: Store, another: Store) -> None:
        """A sweep elsewhere may bury and forget it between two looks."""
        await store.create(job())
        done = finished(job())
        await store.replace(done)
        newest: list[Job | None] = []

        async def watch() -> None:
            newest.append(await store.changed("a", done.version))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await anyio.sleep(0.05)
                await another.sweep(1060.0)
                await another.sweep(1120.0)
        assert newest[0] is None or newest[0].gone

    # --- leases ---------------------------------------------------------------------------

    @pytest.mark.one_loop
    async def test_what_a_dead_process_held_is_abandoned(self, store: Store, opening: str) -> None:
        async with child(opening, takes_leases) as other:
            await other.say([["held", 3600.0], ["lost", 0.5]])
            await other.hear()
            await other.kill()
            abandoned: list[str] = []
            while not abandoned:
                await anyio.sleep(0.05)
                abandoned = [job.id async for job in store.abandoned()]
            assert abandoned == ["lost"]
            assert await store.renew({"lost": 1}, 3600.0) == {"lost": State.RUNNING}
            assert [job.id async for job in store.abandoned()] == []

    @pytest.mark.slow
    @pytest.mark.parametrize("shift", [3600.0, -3600.0])
    async def test_clocks_that_differ_agree_about_leases(
        self, store: Store, opening: str, shift: float
    ) -> None:
        await store.create(job("ended"), lease=0.0)
        await store.create(job("held"), lease=60.0)
        async with child(opening, sees_leases, shift=shift) as other:
            await other.say()
            assert await other.hear() == ["ended"]
        async with child(opening, takes_leases, shift=shift) as other:
            await other.say([["its ended", 0.0], ["its held", 60.0]])
            await other.hear()
            assert {job.id async for job in store.abandoned()} == {"ended", "its ended"}
            await other.say()

    # --- bodies ---------------------------------------------------------------------------

    @pytest.mark.slow
    async def test_a_large_body_takes_little_memory(self, opening: str) -> None:
        async with child(opening, keeps_a_large_body) as other:
            await other.say(100)
            assert await other.hear() < 32 * MEBIBYTE

    async def test_one_large_chunk_is_read_in_pieces(self, store: Store) -> None:
        chunk = bytes(range(256)) * 4096 * 9
        await store.create(job())
        assert await store.append_body("a", 1, 0, chunk[: 5 * MEBIBYTE + 1])
        done = finished(job(), size=len(chunk))
        assert await store.replace(done, tail=chunk[5 * MEBIBYTE + 1 :])
        parts = [part async for part in store.read_body("a", 17)]
        assert b"".join(parts) == chunk[17:]
        assert max(map(len, parts)) <= MEBIBYTE

    async def test_a_reader_never_sees_two_runs(self, store: Store, another: Store) -> None:
        first = job(max_runs=2, replayable=True)
        await store.create(first, request())
        for number in range(8):
            await store.append_body("a", 1, number * MEBIBYTE, b"1" * MEBIBYTE)
        reader = store.read_body("a")
        seen = {*await anext(reader)}
        again = first.requeue().start(1001.0)
        assert await another.replace(first.requeue())
        assert await another.replace(again)
        for number in range(8):
            chunk = b"2" * MEBIBYTE
            assert await another.append_body("a", again.fence, number * MEBIBYTE, chunk)
        try:
            async for part in reader:
                seen |= {*part}
        except StoreError:
            pass  # as good as an end: the reader knows how long the body was to be
        assert seen == {*b"1"}
        assert {*await body_of(store, "a")} == {*b"2"}

    # --- what may go wrong ----------------------------------------------------------------

    @pytest.mark.parametrize("record", UNREADABLE)
    async def test_who_asks_for_an_unreadable_record_is_told_and_nobody_else(
        self, store: Store, record: bytes
    ) -> None:
        await store.create(job(), keys=(Key("k"),))
        await store.create(job("b"))
        await self.overwrite(store, "a", record)
        asking: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: store.get("a"),
            lambda: store.fetch("a"),
            lambda: store.partial("a"),
            lambda: store.grown(Partial(job(), None, 0)),
            lambda: claim(store),
            lambda: store.find("k"),
            lambda: store.changed("a", 0),
            lambda: store.create(job()),
            lambda: store.create(job("c"), keys=(Key("k"),)),
        ]
        for ask in asking:
            with pytest.raises(UnreadableRecord):
                await ask()
        assert await store.get("c") is None
        assert await store.get("b") == job("b")
        assert await store.changed("b", 0) == job("b")
        assert await pages(store) == [job("b")]

    @pytest.mark.parametrize("limit", [1, 2, 100])
    async def test_an_unreadable_record_is_left_out_of_a_list(
        self, store: Store, limit: int
    ) -> None:
        jobs = [job(f"{number:02}", owner="ann") for number in range(20)]
        for each in jobs:
            await store.create(each)
        for number in (0, 7, 8, 9, 19):
            await self.overwrite(store, jobs[number].id, UNREADABLE[number % len(UNREADABLE)])
        left = [each for n, each in enumerate(jobs) if n not in (0, 7, 8, 9, 19)]
        assert await pages(store, limit, owner="ann") == left[::-1]
        assert await pages(store, limit, states=[State.RUNNING]) == left[::-1]

    async def test_what_another_format_has_is_not_claimed(self, store: Store) -> None:
        """Only whoever reads a record knows what a start makes of it."""
        new = waiting(max_runs=2)
        await store.create(new, request(), lease=60.0)
        await self.overwrite(store, "a", as_newer(new, format=FORMAT + 1))
        with pytest.raises(UnreadableRecord, match=f"format {FORMAT + 1}"):
            await claim(store, lease=0.0)
        assert [each async for each in store.abandoned()] == []
        assert await store.request("a") == request()
        assert await store.renew({"a": new.fence}, 60.0) == {"a": State.QUEUED}
        await self.overwrite(store, "a", dump(new))
        assert await claim(store) == Claim(new.start(1001.5, "here"), request(), True)

    async def test_what_a_newer_version_knows_stays_with_a_job_that_is_claimed(
        self, store: Store
    ) -> None:
        await store.create(waiting(), request())
        await self.overwrite(store, "a", as_newer(waiting(), weight=[1, {"of": None}]))
        runs = waiting(extra={"weight": [1, {"of": None}]}).start(1001.5, "here")
        assert await claim(store) == Claim(runs, request(), True)
        assert await store.replace(finished(runs))
        assert await store.get("a") == finished(runs)

    async def test_an_unreadable_record_is_abandoned_without_its_job(self, store: Store) -> None:
        ids = [str(number) for number in range(120)]  # pages of each store
        for id in ids:
            await store.create(job(id), lease=0.0)
        for id in ids[::50]:
            await self.overwrite(store, id, UNREADABLE[0])
        found = {each.id: each.job async for each in store.abandoned()}
        assert found == {id: None if id in ids[::50] else job(id) for id in ids}

    async def test_it_is_said_how_long_nobody_has_held_a_job(self, store: Store) -> None:
        await store.create(job("a"), lease=-100.0)
        await store.create(job("b"), lease=-10.0)
        await self.overwrite(store, "a", UNREADABLE[0])
        found = [(each.id, each.idle) async for each in store.abandoned()]
        assert [id for id, _ in found] == ["a", "b"]
        assert 100.0 <= found[0][1] < 100.0 + PATIENCE
        assert 10.0 <= found[1][1] < 10.0 + PATIENCE

    async def test_the_fields_of_a_newer_version_stay(self, store: Store) -> None:
        await store.create(job())
        await self.overwrite(store, "a", as_newer(job(), weight=[1, {"of": None}]))
        there = await store.get("a")
        assert there is not None
        assert await store.replace(there.cancelling())
        assert await store.replace(finished(there.cancelling()))
        there = await store.get("a")
        assert there is not None
        assert json.loads(dump(there))["weight"] == [1, {"of": None}]
        assert there._replace(extra=None) == finished(job().cancelling())

    async def test_an_older_process_runs_what_a_newer_one_has_left(
        self, store: Store, another: Store
    ) -> None:
        """A rolling deploy: of what the newer wrote, the older keeps what it does not know, and
        leaves alone what it must not touch."""

        @long_running(name="work", on_interrupt="rerun", max_runs=2)
        async def work(request: Request) -> Response:
            return PlainTextResponse("done by the older")

        waiting = job(route="work", state=State.QUEUED, replayable=True, max_runs=2)
        await another.create(waiting, request(path="/work", raw_path=b"/work"), lease=0.0)
        await another.create(waiting._replace(id="b"), request(), lease=PATIENCE)
        await self.overwrite(another, "a", as_newer(waiting, minor=1, weight=[1, {"of": None}]))
        await self.overwrite(another, "b", as_newer(waiting, format=FORMAT + 1))
        app = LongRunningMiddleware(
            Starlette(routes=[Route("/work", work, methods=["POST"])]), store=store
        )
        async with lifespan(app):
            with anyio.fail_after(PATIENCE):
                there = await another.changed("a", 1)
                while there is not None and not there.finished:
                    there = await another.changed("a", there.version)
        assert there is not None
        assert (there.state, there.runs) == (State.SUCCEEDED, 1)
        assert await body_of(another, "a") == b"done by the older"
        assert there.extra == {"minor": 1, "weight": [1, {"of": None}]}
        with pytest.raises(UnreadableRecord, match=f"format {FORMAT + 1}"):
            await another.get("b")
        assert await another.request("b") == request()
        assert await another.renew({"b": 1}, PATIENCE) == {"b": State.QUEUED}

    async def test_a_cancelled_call_leaves_the_store_usable(self, store: Store) -> None:
        """Each kind of call is cancelled before it begins, at its start and a little later."""
        await store.create(job(), keys=(Key("k"),), lease=60.0)
        await store.append_body("a", 1, 0, b"x" * MEBIBYTE)

        async def read() -> None:
            async for _ in store.read_body("a"):
                pass

        async def look() -> None:
            async for _ in store.abandoned():
                pass

        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: store.create(job("new")),
            lambda: store.get("a"),
            lambda: store.find("k"),
            lambda: store.learn("r", ["x-tenant"]),
            lambda: store.learned("r"),
            lambda: store.request("a"),
            lambda: store.replace(job().with_progress(Progress(0.5))),
            lambda: store.replace(job().shared(1), keys=(Key("l"),)),
            lambda: store.append_body("a", 1, MEBIBYTE, b"y"),
            read,
            lambda: store.changed("a", 9),
            lambda: store.renew({"a": 1}, 60.0),
            look,
            lambda: store.sweep(0.0),
        ]
        for call in calls:
            for patience in range(12):
                async with anyio.create_task_group() as group:
                    group.start_soon(call)
                    for _ in range(patience):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE):
            there = await store.get("a")
            assert there is not None
            while not await store.replace(there.cancelling()):  # a cancelled call took effect late
                there = await store.get("a")
                assert there is not None
            assert await store.find("k") == (there.cancelling(), None)
            assert await store.create(job("b")) == job("b")
            assert (await body_of(store, "a")).rstrip(b"y") == b"x" * MEBIBYTE

    def test_a_store_outlives_its_event_loop(self, opening: str, anyio_backend_name: str) -> None:
        store = opened(opening)

        async def keep(id: str) -> None:
            await store.create(job(id))
            assert await store.get(id) == job(id)
            with anyio.move_on_after(0.01):
                await store.changed(id, 1)

        for id in "abc":
            anyio.run(keep, id, backend=anyio_backend_name)  # and nobody closed it

        async def close() -> None:
            assert [await store.get(id) for id in "abc"] == [job(id) for id in "abc"]
            await store.aclose()

        anyio.run(close, backend=anyio_backend_name)


class ServedStoreContract(SharedStoreContract, ABC):
    """What every store on a server promises besides.

    A subclass also gives

    - a fixture `neighbour`: the store of another deployment on the same server, as near to the
      first as there may be one.
    - a fixture `relay`: an open `Relay` to the server.
    - a fixture `far`: the same store as `store`, through the relay.
    """

    async def test_deployments_do_not_see_each_others_jobs(
        self, store: Store, neighbour: Store
    ) -> None:
        secret = (job(replayable=True), request(b"credentials"))
        await store.create(*secret, keys=(Key("k"),))
        await store.append_body("a", 1, 0, b"secret")
        assert await neighbour.get("a") is None
        assert await neighbour.find("k") is None
        assert await neighbour.request("a") is None
        assert await body_of(neighbour, "a") == b""
        assert await neighbour.changed("a", 0) is None
        assert not await neighbour.append_body("a", 1, 6, b"x")
        assert not await neighbour.replace(job().cancelling())
        assert await store.get("a") == secret[0]
        assert await body_of(store, "a") == b"secret"

    async def test_deployments_have_ids_and_keys_of_their_own(
        self, store: Store, neighbour: Store
    ) -> None:
        mine, theirs = job(replayable=True), job(route="theirs", replayable=True)
        assert await store.create(mine, request(b"mine"), keys=(Key("k"),)) == mine
        assert await neighbour.create(theirs, request(b"theirs"), keys=(Key("k"),)) == theirs
        await store.append_body("a", 1, 0, b"mine")
        await neighbour.append_body("a", 1, 0, b"theirs")
        assert await neighbour.replace(theirs.tombstone(1000.0, 60.0))
        assert await store.get("a") == mine
        assert await store.find("k") == (mine, None)
        assert await store.request("a") == request(b"mine")
        assert await body_of(store, "a") == b"mine"
        assert await neighbour.find("k") is None
        assert await body_of(neighbour, "a") == b""
        for each, route in ((store, "mine"), (neighbour, "theirs")):
            there = job("b", route=route)
            assert await each.create(there, keys=(Key("l"),)) == there
        for each, route in ((store, "mine"), (neighbour, "theirs")):
            earlier = await each.create(job("c"), keys=(Key("l"),))
            assert (earlier.id, earlier.route) == ("b", route)
            joined = earlier.shared(1)
            assert await each.replace(joined, keys=(Key("m", route),))
            assert await each.find("m") == (joined, route)
        assert (await neighbour.create(job("c"), keys=(Key("k"),))).id == "c"

    async def test_deployments_learn_nothing_from_each_other(
        self, store: Store, neighbour: Store
    ) -> None:
        await store.learn("r", ["x-tenant"])
        await neighbour.learn("r", ["x-plan"])
        assert await store.learned("r") == {"x-tenant"}
        assert await neighbour.learned("r") == {"x-plan"}

    async def test_deployments_have_bodies_of_their_own(
        self, store: Store, neighbour: Store
    ) -> None:
        for each in (store, neighbour):
            await each.create(job())
        for offset in range(3):
            assert await store.append_body("a", 1, offset, b"x")
        for offset in range(2):
            assert await neighbour.append_body("a", 1, offset, b"y")
        assert await body_of(store, "a") == b"xxx"
        assert await body_of(neighbour, "a", 1) == b"y"
        assert await neighbour.replace(finished(job(), size=3), tail=b"z")
        assert await store.append_body("a", 1, 3, b"x")
        assert await body_of(neighbour, "a") == b"yyz"
        assert await body_of(store, "a", 1) == b"xxx"
        assert await neighbour.replace(finished(job(), size=3).tombstone(1000.0, 60.0))
        assert await body_of(neighbour, "a") == b""
        assert await store.replace(finished(job(), size=5), tail=b"z")
        assert await body_of(store, "a") == b"xxxxz"

    async def test_deployments_do_not_count_together(self, store: Store, neighbour: Store) -> None:
        one = Bounds(route=1, owner=1)
        assert await fits(store, job("a", owner="ann"), one)
        assert await fits(neighbour, job("b", owner="ann"), one)
        assert not await fits(store, job("c", owner="ann"), one)
        waits = job("q", owner="ann", state=State.QUEUED)
        await neighbour.create(waits)
        assert await neighbour.replace(finished(job("b", owner="ann")))
        assert await neighbour.replace(waits.start(1001.0), bounds=one)
        await neighbour.create(job("x", route="elsewhere"))
        for each, route in ((store, "elsewhere"), (neighbour, "here")):
            await each.create(job("y", route=route, state=State.QUEUED))
        begun = job("y", route="here", state=State.QUEUED).start(1001.0)
        assert await neighbour.replace(begun, bounds=one)

    async def test_deployments_do_not_take_over_from_each_other(
        self, store: Store, neighbour: Store
    ) -> None:
        for each, ids in ((store, "ab"), (neighbour, "bc")):
            for id in ids:
                await each.create(job(id), lease=0.0)
        assert {job.id async for job in neighbour.abandoned()} == {*"bc"}
        assert await neighbour.renew(dict.fromkeys("abc", 1), 60.0) == dict.fromkeys(
            "bc", State.RUNNING
        )
        assert {job.id async for job in store.abandoned()} == {*"ab"}

    async def test_deployments_do_not_sweep_each_others_jobs(
        self, store: Store, neighbour: Store
    ) -> None:
        for each in (store, neighbour):
            await each.create(job(), keys=(Key("k"),))
            await each.append_body("a", 1, 0, b"x")
        done = finished(job(), size=1)
        await store.replace(done)
        await neighbour.replace(done)
        waits = job("b", replayable=True)
        await store.create(waits, request())
        await neighbour.create(waits, request())
        await neighbour.replace(finished(waits))
        await neighbour.sweep(1060.0)
        assert not await neighbour.sweep(1120.0)
        assert await store.request("b") == request()
        assert await store.get("a") == done
        assert await store.find("k") == (done, None)
        assert await body_of(store, "a") == b"x"
        assert await store.sweep(1059.0)

    async def test_deployments_do_not_wake_each_other(self, store: Store, neighbour: Store) -> None:
        for each in (store, neighbour):
            await each.create(job())
        seen = []

        async def watch() -> None:
            seen.append(await store.changed("a", 1))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await anyio.sleep(0.1)
                assert await neighbour.replace(job().cancelling())
                assert await neighbour.replace(finished(job().cancelling()))
                await anyio.sleep(0.1)
                assert seen == []
                assert await store.replace(job().cancelling())
        assert seen == [job().cancelling()]

    @pytest.mark.parametrize("how", ["deleted", "swept", "forgotten", "begun again", "requeued"])
    async def test_a_body_that_goes_while_it_is_read_does_not_end(
        self, store: Store, how: str
    ) -> None:
        there = job(max_runs=2, replayable=True)
        await store.create(there, request())
        for number in range(4):
            await store.append_body("a", 1, number * MEBIBYTE, bytes(MEBIBYTE))
        reader = store.read_body("a", 5)
        await anext(reader)
        if how in ("begun again", "requeued"):
            assert await store.replace(there.requeue())
        if how == "begun again":
            again = there.requeue().start(1001.0)
            assert await store.replace(again)
            for number in range(4):
                await store.append_body("a", again.fence, number * MEBIBYTE, bytes(MEBIBYTE))
        if how in ("swept", "forgotten"):
            await store.replace(finished(there))
            await store.sweep(1060.0)
        if how == "forgotten":
            await store.sweep(1120.0)
            assert await store.get("a") is None
        if how == "deleted":
            assert await store.replace(there.tombstone(1000.0, 60.0))
        with pytest.raises(StoreError, match="dropped"):
            async for _ in reader:
                pass

    async def test_a_body_that_grows_while_it_is_read_ends_where_it_ended(
        self, store: Store
    ) -> None:
        await store.create(job())
        for number in range(4):
            await store.append_body("a", 1, number * MEBIBYTE, bytes(MEBIBYTE))
        reader = store.read_body("a")
        size = len(await anext(reader))
        whole = finished(job(), size=4 * MEBIBYTE + 100)
        assert await store.replace(whole, tail=b"x" * 100)
        async for piece in reader:
            assert piece
            size += len(piece)
        assert size == 4 * MEBIBYTE
        assert len(await body_of(store, "a")) == 4 * MEBIBYTE + 100

    async def test_what_was_asked_is_asked_again_if_the_answer_got_lost(
        self, store: Store, far: Store, relay: Relay
    ) -> None:
        there = job(owner="ann", replayable=True)
        one = Bounds(route=1, owner=1)
        await store.create(job("earlier", route="other"), lease=0.0)

        async def look() -> list[str]:
            return [job.id async for job in far.abandoned()]

        calls: list[tuple[Callable[[], Awaitable[object]], object]] = [
            (
                lambda: far.create(there, request(), keys=(Key("k"),), lease=60.0, bounds=one),
                there,
            ),
            (lambda: far.get("a"), there),
            (lambda: far.find("k"), (there, None)),
            (lambda: far.request("a"), request()),
            (lambda: far.append_body("a", 1, 0, b"body", head=Head(200, ())), True),
            (lambda: far.fetch("a"), Fetched(there, None)),
            (lambda: far.partial("a"), Partial(there, Head(200, ()), 4)),
            (lambda: pages(far, route="r"), [there]),
            (far.totals, {(of, State.RUNNING): Total(1, 1000.0, 0.0) for of in ("r", "other")}),
            (lambda: body_of(far, "a"), b"body"),
            (lambda: far.renew({"a": 1}, 60.0), {"a": State.RUNNING}),
            (look, ["earlier"]),
        ]
        for call, _ in calls:
            await call()  # so that a statement is prepared and a script is known
        await store.replace(there.tombstone(0.0, 0.0))
        await store.sweep(0.0)
        for number, (call, answer) in enumerate(calls):
            relay.lose()
            assert await call() == answer
            assert relay.lost == number + 1
        assert await body_of(store, "a") == b"body"

    async def test_a_claim_is_not_lost_with_its_answer(
        self, store: Store, far: Store, relay: Relay
    ) -> None:
        for id in "ab":
            await store.create(waiting(id), request())
        assert await claim(far, "a")  # now it is prepared
        relay.lose()
        assert await claim(far, "b") == Claim(waiting("b").start(1001.5, "here"), request(), True)
        assert relay.lost == 1

    async def test_a_version_is_not_called_late_because_the_answer_got_lost(
        self, store: Store, far: Store, relay: Relay
    ) -> None:
        await store.create(job())
        assert not await far.replace(job("unknown").cancelling())  # now it is prepared
        relay.lose()
        with pytest.raises(StoreError):
            await far.replace(job().cancelling())
        assert relay.lost == 1
        assert await store.get("a") == job().cancelling()
        assert not await far.replace(job().cancelling())


class UnreadableContract(SharedStoreContract):
    """What they promise of jobs that nobody can read: those go, too."""

    async def test_an_unreadable_record_goes_when_it_is_due(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        for id in "abc":
            await store.create(job(id), keys=(Key("key of " + id),))
            await store.append_body(id, 1, 0, b"x")
            await store.replace(finished(job(id), ttl=60.0, size=1))
        await self.overwrite(store, "b", UNREADABLE[0])
        await store.sweep(1059.0)
        assert caplog.messages == []
        with anyio.fail_after(PATIENCE):
            assert await store.sweep(1060.0)
        assert [await store.get(id) is not None for id in "abc"] == [True, False, True]
        assert await store.find("key of b") is None
        assert await body_of(store, "b") == b""
        assert len(caplog.messages) == 1
        assert "job b" in caplog.messages[0]
        assert not await store.sweep(1120.0)
        assert len(caplog.messages) == 1

    async def test_what_an_unreadable_record_stored_goes_with_it(self, store: Store) -> None:
        most = Bounds(stored=LEAST_STORED + 1)
        for id in "abc":
            await store.create(job(id, owner="ann"), bounds=most)
        for id in "ab":
            await store.replace(finished(job(id, owner="ann"), ttl=60.0))
        await self.overwrite(store, "b", UNREADABLE[0])
        assert not await fits(store, job("d", owner="ann"), most)
        await store.sweep(1060.0)
        assert await store.get("b") is None
        assert await fits(store, job("d", owner="ann"), Bounds(stored=1))
        await store.replace(finished(job("c", owner="ann"), ttl=900.0))
        assert await fits(store, job("e", owner="ann"), most)
        assert not await fits(store, job("f", owner="ann"), Bounds(stored=LEAST_STORED))

    async def test_what_several_processes_store_is_counted_together(
        self, store: Store, another: Store
    ) -> None:
        most = Bounds(stored=30_000)
        async with anyio.create_task_group() as group:
            for number in range(40):
                each = (store, another)[number % 2]
                group.start_soon(self.store_one, each, f"{number}", most)
        assert not await fits(store, job("more", owner="ann"), most)
        assert not await fits(another, job("more", owner="ann"), Bounds(stored=40 * LEAST_STORED))
        assert await fits(another, job("m", owner="ann"), Bounds(stored=40 * LEAST_STORED + 1))

    async def store_one(self, store: Store, id: str, most: Bounds) -> None:
        await store.create(job(id, owner="ann"), bounds=most._replace(stored=10**9))
        assert await store.replace(finished(job(id, owner="ann")))

    @pytest.mark.slow
    async def test_more_unreadable_records_than_a_sweep_turns_to_at_once(
        self, store: Store
    ) -> None:
        ids = [str(number) for number in range(1100)]
        async with anyio.create_task_group() as group:
            for id in ids:
                group.start_soon(store.create, job(id))
        async with anyio.create_task_group() as group:
            for id in ids:
                group.start_soon(store.replace, finished(job(id)))
        for id in ids[1:]:
            await self.overwrite(store, id, UNREADABLE[0])
        with anyio.fail_after(PATIENCE):
            assert await store.sweep(1060.0)
        there = await store.get("0")
        assert there is not None
        assert there.gone

    async def test_an_abandoned_job_that_cannot_be_read_is_discarded(self, store: Store) -> None:
        kept = job(state=State.QUEUED, max_runs=2, replayable=True, owner="ann")
        one = Bounds(route=1, owner=1)
        await store.create(kept, request(), keys=(Key("k"),), lease=0.0, bounds=one)
        await store.append_body("a", 1, 0, b"x")
        await self.overwrite(store, "a", UNREADABLE[0])
        other = job("b", state=State.QUEUED, owner="ann")
        with pytest.raises(NoRoom):
            await store.create(other, bounds=one)
        assert await store.discard("a")
        assert await store.get("a") is None
        assert await store.find("k") is None
        assert await store.request("a") is None
        assert await body_of(store, "a") == b""
        assert [each async for each in store.abandoned()] == []
        assert await store.create(other, bounds=one) == other
        assert not await store.discard("a")

    async def test_only_what_nobody_holds_and_nobody_can_read_is_discarded(
        self, store: Store
    ) -> None:
        await store.create(job("readable"), lease=0.0)
        await store.create(job("held"), lease=60.0)
        await store.create(job("without a lease"))
        for id in ("held", "without a lease"):
            await self.overwrite(store, id, UNREADABLE[0])
        for id in ("readable", "held", "without a lease", "unknown"):
            assert not await store.discard(id)
        assert await store.get("readable") == job("readable")
        assert await store.renew({"held": 1}, 0.0) == {"held": State.RUNNING}
        assert await store.discard("held")

    async def test_what_is_discarded_wakes_who_waits(self, store: Store, another: Store) -> None:
        await store.create(job(), lease=0.0)
        newest: list[Job | None] = [job()]

        async def watch() -> None:
            newest.append(await store.changed("a", 1))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await anyio.sleep(0.05)
                await self.overwrite(store, "a", UNREADABLE[0])
                assert await another.discard("a")
        assert newest[-1] is None
