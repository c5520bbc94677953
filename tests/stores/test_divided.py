"""A store of which the large bodies are kept elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from raincheck import Job, MemoryStore
from raincheck.bodies.base import LARGE
from raincheck.bodies.files import FileBodies
from raincheck.errors import BodyLost, NoRoom, StoreError, StoreFull, UnreadableRecord
from raincheck.job import Bounds, Key
from raincheck.messages import Apart, CapturedRequest, Head
from raincheck.policy import Limits
from raincheck.runners.local import LocalRunner
from raincheck.runtime.environment import Environment
from raincheck.stores.base import Partial, Store
from raincheck.stores.divided import UNKNOWN, DividedStore
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing import StoreContract
from raincheck.testing.samples import body_of, claim, finished, job, request, waiting, with_body
from tests.doubles.bodies import Durable, MemoryBodies, Watched
from tests.doubles.stores import SharedMemory

pytestmark = pytest.mark.anyio

TIMEOUT = 10.0
BODY = bytes(range(256)) * 3000  # 750 KiB
PIECES = [BODY[start : start + LARGE] for start in range(0, len(BODY), LARGE)]


@pytest.mark.one_loop
class TestOfMemory(StoreContract):
    @pytest.fixture
    def store(self) -> DividedStore:
        return DividedStore(MemoryStore(), MemoryBodies(), TIMEOUT)


@pytest.mark.one_loop
class TestOfSharedMemory(StoreContract):
    @pytest.fixture
    def store(self) -> DividedStore:
        return DividedStore(SharedMemory(), MemoryBodies(), TIMEOUT)


@pytest.mark.real
@pytest.mark.slow
class TestOfSQLite(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[DividedStore]:
        store = DividedStore(
            SQLiteStore(tmp_path / "jobs.db"), FileBodies(tmp_path / "bodies"), TIMEOUT
        )
        yield store
        await store.aclose()


@pytest.fixture
def bodies() -> MemoryBodies:
    return MemoryBodies()


@pytest.fixture
def inner() -> MemoryStore:
    return Durable()


@pytest.fixture
def store(inner: MemoryStore, bodies: MemoryBodies) -> DividedStore:
    return DividedStore(inner, bodies, TIMEOUT)


def apart(body: bytes = BODY) -> CapturedRequest:
    """A captured request whose body is apart."""

    async def read(offset: int) -> AsyncIterator[bytes]:
        for start in range(offset, len(body), 100_000):
            yield body[start : start + 100_000]

    return request(b"", apart=Apart(len(body), read))


async def whole(found: CapturedRequest | None) -> bytes:
    assert found is not None
    assert found.apart is not None
    assert found.apart.read is not None
    return b"".join([chunk async for chunk in found.apart.read(0)])


# --- where bodies are ----------------------------------------------------------------------------


async def test_a_large_response_is_apart_and_a_small_one_is_not(
    store: DividedStore, inner: MemoryStore, bodies: MemoryBodies
) -> None:
    await with_body(store, "large", PIECES[:-1], tail=PIECES[-1])
    await with_body(store, "at-once", (), tail=BODY)
    await with_body(store, "small", [BODY[:1000]], tail=BODY[1000 : LARGE - 1])
    assert bodies.kept == {"large.1": BODY, "at-once.1": BODY}
    assert await body_of(inner, "large") == await body_of(inner, "at-once") == b""
    assert await body_of(inner, "small") == BODY[: LARGE - 1]


async def test_a_response_that_becomes_large_moves(
    store: DividedStore, inner: MemoryStore, bodies: MemoryBodies
) -> None:
    await store.create(job())
    for start in range(0, len(BODY), 50_000):
        assert await store.append_body("a", 1, start, BODY[start : start + 50_000])
        assert await body_of(store, "a") == BODY[: start + 50_000]
        assert (start + 50_000 >= LARGE) == ("a.1" in bodies.kept)
    assert bodies.kept["a.1"] == BODY
    assert len(await body_of(inner, "a")) == LARGE  # by that others see that it has moved


async def test_a_tail_may_make_it_large(store: DividedStore, bodies: MemoryBodies) -> None:
    done = await with_body(store, "a", [BODY[:200_000]], tail=BODY[200_000:300_000])
    assert bodies.kept == {"a.1": BODY[:300_000]}
    assert await body_of(store, "a", 199_999) == BODY[199_999:300_000]
    assert (await store.fetch("a")) is not None
    assert (await store.get("a")) == done


async def test_what_an_earlier_version_kept_in_the_store_is_read_there(
    store: DividedStore, inner: MemoryStore
) -> None:
    await with_body(inner, "a", PIECES)
    assert await body_of(store, "a") == BODY


@pytest.mark.parametrize("stale", [10, 2 * len(BODY)])
@pytest.mark.parametrize("piece", [1000, 200_000, LARGE, 2 * LARGE, len(BODY)])
async def test_a_response_begins_anew_whatever_is_there_in_its_name(
    store: DividedStore, bodies: MemoryBodies, stale: int, piece: int
) -> None:
    """The store was brought back from a backup, and the files with it, which were copied later."""
    await bodies.append("a.1", 0, b"x" * stale)
    pieces = [BODY[start : start + piece] for start in range(0, len(BODY), piece)]
    await with_body(store, "a", pieces[:-1], tail=pieces[-1])
    assert bodies.kept["a.1"] == BODY
    assert await body_of(store, "a") == BODY


async def test_a_response_of_which_the_beginning_was_kept_in_part_is_kept_whole(
    store: DividedStore, bodies: MemoryBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = bodies.append

    async def part(name: str, offset: int, chunk: bytes) -> None:
        monkeypatch.undo()
        await append(name, offset, chunk[:10])
        raise StoreError("the disk is away")

    await store.create(job())
    assert await store.append_body("a", 1, 0, BODY[:1000])
    monkeypatch.setattr(bodies, "append", part)
    with pytest.raises(StoreError):
        await store.append_body("a", 1, 1000, BODY[1000:])
    assert await store.append_body("a", 1, 1000, BODY[1000:])
    assert bodies.kept["a.1"] == BODY


async def test_of_a_job_that_ended_only_the_whole_is_read(
    store: DividedStore, bodies: MemoryBodies
) -> None:
    await with_body(store, "a", PIECES)
    for there in (BODY[:-1], BODY + b"x", b""):
        bodies.kept["a.1"] = there
        with pytest.raises(BodyLost, match=f"of {len(BODY)} bytes .* {len(there)} are there"):
            await body_of(store, "a")
    del bodies.kept["a.1"]
    assert await body_of(store, "a") == b""  # which whoever knows its length takes for lost


# --- as safe as the store ------------------------------------------------------------------------


async def test_a_body_is_on_the_disk_before_its_job_says_so(bodies: MemoryBodies) -> None:
    inner = Watched(bodies)
    store = DividedStore(inner, bodies, TIMEOUT)
    for number, (pieces, tail) in enumerate(
        [(PIECES, b""), (PIECES[:-1], PIECES[-1]), ((), BODY), ((BODY[:9],), BODY[9:])]
    ):
        inner.seen.clear()
        await with_body(store, f"{number}", pieces, tail=tail)
        assert f"{number}.1" not in inner.seen[0]
        assert inner.seen[-1][f"{number}.1"] == len(BODY)
    await store.create(waiting("b"), apart())
    assert inner.seen[-1]["b.request"] == len(BODY)


async def test_nothing_is_synced_for_a_store_that_does_not(bodies: MemoryBodies) -> None:
    store = DividedStore(SharedMemory(), bodies, TIMEOUT)
    await with_body(store, "a", PIECES)
    await store.create(waiting("b"), apart())
    assert bodies.synced == {}


def test_a_file_is_as_strict_as_its_store(tmp_path: Path) -> None:
    assert not MemoryStore().durable
    assert not SQLiteStore(tmp_path / "a.db").durable
    assert SQLiteStore(tmp_path / "a.db", synchronous="FULL").durable


def test_sqlite_keeps_them_beside_its_file_wherever_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "jobs.db")
    for name in ("jobs.db", "link.db"):
        environment = Environment(
            SQLiteStore(tmp_path / name), LocalRunner(), Limits(), lambda: 0.0
        )
        assert isinstance(environment.bodies, FileBodies)
        assert environment.bodies.directory == str(tmp_path / "jobs.db-bodies")
    assert Environment(MemoryStore(), LocalRunner(), Limits(), lambda: 0.0).bodies is None


class Aged(FileBodies):
    """Nothing was appended for a long time to what is there."""

    async def names(self) -> Mapping[str, float]:
        return dict.fromkeys(await super().names(), 2 * UNKNOWN)


class Scrambled(SQLiteStore):
    """One that keeps nothing of a response in the clear."""

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        return await super().append_body(id, fence, offset, chunk.swapcase(), head=head)

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        async for chunk in super().read_body(id, offset):
            yield chunk.swapcase()


@pytest.mark.real
@pytest.mark.one_loop
async def test_what_inherits_from_sqlite_keeps_them_as_it_keeps_others(tmp_path: Path) -> None:
    kept = Scrambled(tmp_path / "jobs.db")
    store = Environment(kept, LocalRunner(), Limits(), lambda: 0.0).store
    secret = [b"secret" * 100_000]
    await with_body(store, "a", secret)
    assert await body_of(store, "a") == secret[0]
    files = [await path.read_bytes() async for path in anyio.Path(tmp_path).iterdir()]
    assert [b"secret" in file for file in files] == [False] * 3
    kept.bodies = FileBodies(tmp_path / "said")  # and it may say so
    assert Environment(kept, LocalRunner(), Limits(), lambda: 0.0).bodies is kept.bodies
    await store.aclose()


# --- runs and their fences -----------------------------------------------------------------------


async def test_each_run_has_a_body_of_its_own(store: DividedStore, bodies: MemoryBodies) -> None:
    first = job(max_runs=2, replayable=True)
    await store.create(first, request())
    assert await store.append_body("a", 1, 0, PIECES[0], head=Head(200, ()))
    assert await store.append_body("a", 1, LARGE, PIECES[1])
    assert await store.replace(first.requeue())
    assert bodies.kept == {}
    assert await store.partial("a") == Partial(first.requeue(), None, 0)
    second = first.requeue().start(1001.0)
    assert await store.replace(second)
    assert not await store.append_body("a", 1, 2 * LARGE, PIECES[2])
    assert await store.append_body("a", 3, 0, b"!" * LARGE)
    assert bodies.kept == {"a.3": b"!" * LARGE}
    assert await body_of(store, "a") == b"!" * LARGE


async def test_a_run_that_was_lost_to_another_process_stops(bodies: MemoryBodies) -> None:
    inner = SharedMemory()
    lost, store = DividedStore(inner, bodies, TIMEOUT), DividedStore(inner, bodies, TIMEOUT)
    first = job(max_runs=2, replayable=True)
    await store.create(first, request())
    assert await lost.append_body("a", 1, 0, PIECES[0])
    assert await store.replace(first.requeue())
    await anyio.sleep(1)  # it looks from time to time, and not for each piece
    assert not await lost.append_body("a", 1, LARGE, PIECES[1])
    assert bodies.kept == {}


async def test_a_body_that_was_deleted_is_not_begun_anew(
    store: DividedStore, bodies: MemoryBodies
) -> None:
    """By another process, between two looks."""
    await store.create(job())
    assert await store.append_body("a", 1, 0, PIECES[0])
    bodies.kept.clear()
    with pytest.raises(StoreError):
        await store.append_body("a", 1, LARGE, PIECES[1])
    assert await store.replace(job().tombstone(1000.0, 60.0))
    assert not await store.append_body("a", 1, LARGE, PIECES[1])
    assert bodies.kept == {}


# --- captured requests ---------------------------------------------------------------------------


async def test_a_captured_request_is_apart_until_its_job_has_ended(
    store: DividedStore, bodies: MemoryBodies
) -> None:
    await store.create(waiting(), apart())
    assert bodies.kept == {"a.request": BODY}
    found = await store.request("a")
    assert found == replace(apart(), apart=Apart(len(BODY)))
    assert await whole(found) == BODY
    begun = await claim(store)
    assert begun is not None
    assert await whole(begun.request) == BODY
    assert await store.replace(finished(begun.job))
    assert bodies.kept == {}


async def test_one_that_is_not_whole_cannot_be_read(
    store: DividedStore, bodies: MemoryBodies
) -> None:
    for id, there in (("a", BODY[:-1]), ("b", b"")):
        await store.create(waiting(id), apart())
        bodies.kept[f"{id}.request"] = there
        for ask in (store.request(id), claim(store, id)):
            with pytest.raises(UnreadableRecord, match=f"of {len(BODY)} bytes"):
                await ask


async def test_what_is_refused_leaves_no_body(store: DividedStore, bodies: MemoryBodies) -> None:
    await store.create(waiting("a"), keys=[Key("k")])
    assert (await store.create(waiting("b"), apart(), keys=[Key("k")])).id == "a"
    with pytest.raises(NoRoom):
        await store.create(waiting("c"), apart(), bounds=Bounds(route=1))
    assert bodies.kept == {}


async def test_one_that_cannot_be_kept_makes_no_job(
    store: DividedStore, inner: MemoryStore, bodies: MemoryBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = bodies.append

    async def full(name: str, offset: int, chunk: bytes) -> None:
        if offset:
            raise StoreFull("the disk is full")
        await append(name, offset, chunk)

    monkeypatch.setattr(bodies, "append", full)
    with pytest.raises(StoreFull):
        await store.create(waiting(), apart())
    assert len(inner) == 0
    assert bodies.kept == {}


# --- orphans -------------------------------------------------------------------------------------


async def test_what_goes_takes_its_bodies_along(store: DividedStore, bodies: MemoryBodies) -> None:
    done = await with_body(store, "deleted", PIECES)
    await with_body(store, "expires", PIECES)
    await store.create(waiting("queued"), apart())
    assert await store.replace(done.tombstone(1000.0, 60.0))
    assert bodies.kept.keys() == {"expires.1", "queued.request"}
    assert await store.replace(waiting("queued").tombstone(1000.0, 60.0))
    await store.sweep(1059.0)
    assert bodies.kept.keys() == {"expires.1"}
    await store.sweep(1060.0)
    assert bodies.kept == {}


async def test_a_sweep_finds_what_others_have_left(bodies: MemoryBodies) -> None:
    inner = SharedMemory()
    dies, store = DividedStore(inner, bodies, TIMEOUT), DividedStore(inner, bodies, TIMEOUT)
    kept = await with_body(dies, "kept", PIECES)
    gone = await with_body(dies, "gone", PIECES)
    for id in ("failed", "again", "live"):
        await dies.create(job(id, max_runs=2, replayable=True), apart())
        await dies.append_body(id, 1, 0, PIECES[0])
    await dies.create(waiting(), apart())
    # By others, or a process of an earlier version.
    assert await inner.replace(gone.tombstone(1000.0, 60.0))
    assert await inner.replace(finished(job("failed", max_runs=2, replayable=True)))
    assert await inner.replace(job("again", max_runs=2, replayable=True).requeue())
    assert len(bodies.kept) == 9
    assert await store.sweep(1001.0)
    left = {"kept.1", "again.request", "live.1", "live.request", "a.request"}
    assert bodies.kept.keys() == left
    assert await body_of(store, kept.id) == BODY


async def test_what_is_not_known_yet_is_not_nobodys(
    store: DividedStore, bodies: MemoryBodies
) -> None:
    """A captured request is there before its job is."""
    for name in ("new.request", "new.1", "README", "a.b.c", ".1", "shop/a.1"):
        await bodies.append(name, 0, b"one")
    await store.sweep(1000.0)
    assert len(bodies.kept) == 6
    await anyio.sleep(UNKNOWN - 1)
    await bodies.append("new.1", 3, b"two")
    await anyio.sleep(1)
    await store.sweep(1000.0)
    assert bodies.kept.keys() == {"new.1", "README", "a.b.c", ".1", "shop/a.1"}


async def test_deployments_do_not_sweep_each_others(bodies: MemoryBodies) -> None:
    shop, bank = SharedMemory(), SharedMemory()
    shop.deployment, bank.deployment = "shop", "bank"
    stores = [DividedStore(inner, bodies, TIMEOUT) for inner in (shop, bank)]
    for store in stores:
        await with_body(store, "a", PIECES)
    assert bodies.kept.keys() == {"shop/a.1", "bank/a.1"}
    for _ in range(2):
        await anyio.sleep(UNKNOWN)
        for store in stores:
            await store.sweep(1001.0)
    assert len(bodies.kept) == 2
    await stores[0].sweep(1060.0)
    assert bodies.kept.keys() == {"bank/a.1"}


async def test_stores_of_one_process_alone_have_names_of_their_own(bodies: MemoryBodies) -> None:
    stores = [DividedStore(MemoryStore(), bodies, TIMEOUT) for _ in range(2)]
    for store in stores:
        await with_body(store, "a", PIECES)
    await anyio.sleep(2 * UNKNOWN)
    for store in stores:
        await store.sweep(1001.0)
        assert await body_of(store, "a") == BODY


@pytest.mark.real
@pytest.mark.one_loop
async def test_files_of_jobs_do_not_sweep_each_others(tmp_path: Path) -> None:
    """Of two in one directory; and each is the same to all processes, and after a restart."""
    bodies = Aged(tmp_path / "bodies")
    jobs, others = ([tmp_path / f"{name}.db"] * 2 for name in ("jobs", "others"))
    stores = [DividedStore(SQLiteStore(path), bodies, TIMEOUT) for path in jobs + others]
    for store in (stores[0], stores[2]):
        await with_body(store, "a", PIECES)
    for _ in range(2):
        for store in stores:
            await store.sweep(1001.0)
            assert await body_of(store, "a") == BODY
            await store.aclose()
    assert len(await bodies.names()) == 2
    await anyio.Path(jobs[0]).rename(tmp_path / "moved.db")  # its name goes with it
    moved = DividedStore(SQLiteStore(tmp_path / "moved.db"), bodies, TIMEOUT)
    assert await body_of(moved, "a") == BODY
    await bodies.append("a.1", 0, b"left by an earlier version, or by nobody")
    await moved.sweep(1001.0)
    assert len(await bodies.names()) == 3
    await moved.aclose()


@pytest.mark.real
@pytest.mark.one_loop
async def test_a_body_waits_for_the_name_that_it_is_to_have(
    tmp_path: Path, bodies: MemoryBodies
) -> None:
    """The file cannot be opened at first, as while another process has it to itself."""
    inner = SQLiteStore(tmp_path / "later" / "jobs.db")
    store = DividedStore(inner, bodies, TIMEOUT)
    with pytest.raises(StoreError):
        await store.create(waiting(), apart())
    assert bodies.kept == {}
    await anyio.Path(tmp_path / "later").mkdir()
    await store.create(waiting(), apart())
    assert [*bodies.kept] == [f"{await inner.name()}/a.request"]
    await store.aclose()


async def test_a_finished_job_is_not_asked_for_at_every_sweep(
    bodies: MemoryBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = SharedMemory()
    store = DividedStore(inner, bodies, TIMEOUT)
    await with_body(DividedStore(inner, bodies, TIMEOUT), "a", PIECES)
    asked: list[str] = []
    get = inner.get

    async def count(id: str) -> Job | None:
        asked.append(id)
        return await get(id)

    monkeypatch.setattr(inner, "get", count)
    for now in range(1000, 1060):
        await store.sweep(now)
    assert asked == ["a"]


@pytest.mark.parametrize("seen", ["by who wrote it", "by a sweep"])
async def test_a_body_goes_with_a_job_that_leaves_no_tombstone(
    bodies: MemoryBodies, seen: str
) -> None:
    """Its tombstone had its time as well before the next sweep, or another one has swept it."""
    inner = SharedMemory()
    writer, store = DividedStore(inner, bodies, TIMEOUT), DividedStore(inner, bodies, TIMEOUT)
    done = await with_body(writer, "a", PIECES)
    if seen == "by a sweep":
        await store.sweep(1001.0)
    assert await inner.replace(done.tombstone(1001.0, 0.0))
    await inner.sweep(1002.0)
    assert await inner.get("a") is None
    await (store if seen == "by a sweep" else writer).sweep(1060.0)
    assert bodies.kept == {}


async def test_bodies_that_cannot_be_deleted_go_with_a_sweep(
    store: DividedStore, bodies: MemoryBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = await with_body(store, "a", PIECES)
    await store.sweep(1001.0)

    async def fail(names: object) -> None:
        raise StoreError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(bodies, "delete", fail)
        assert await store.replace(done.tombstone(1000.0, 60.0))
    assert bodies.kept != {}
    await store.sweep(1001.0)
    assert bodies.kept == {}


# --- followers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [50_000, LARGE])
async def test_a_response_is_followed_from_another_process(bodies: MemoryBodies, size: int) -> None:
    inner = SharedMemory()
    writer, reader = DividedStore(inner, bodies, TIMEOUT), DividedStore(inner, bodies, TIMEOUT)
    await writer.create(job())
    sizes = []

    async def follow(store: Store) -> None:
        known: Partial | None = Partial(job(), None, 0)
        while known is not None and not known.job.finished:
            known = await store.grown(known)
            assert known is not None
            sizes.append(known.size)

    async with anyio.create_task_group() as group:
        group.start_soon(follow, reader)
        group.start_soon(follow, writer)
        for start in range(0, len(BODY), size):
            head = None if start else Head(200, ())
            await writer.append_body("a", 1, start, BODY[start : start + size], head=head)
            await anyio.sleep(0.2)
        assert await writer.replace(finished(job(), size=len(BODY)))
    expected = [min(start + size, len(BODY)) for start in range(0, len(BODY), size)]
    assert sorted(set(sizes)) == expected
    assert all(sizes.count(each) >= 2 for each in expected)


async def test_a_store_that_fails_is_heard_of_by_who_follows(
    bodies: MemoryBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = SharedMemory()
    store = DividedStore(inner, bodies, TIMEOUT)
    await store.create(job())
    await store.append_body("a", 1, 0, PIECES[0], head=Head(200, ()))

    async def fail(name: str) -> None:
        raise StoreError("the disk is away")

    reader = DividedStore(inner, bodies, TIMEOUT)
    known = await reader.partial("a")
    assert known is not None

    async def break_it() -> None:
        await anyio.sleep(1)
        monkeypatch.setattr(bodies, "size", fail)

    async with anyio.create_task_group() as group:
        group.start_soon(break_it)
        with pytest.raises(StoreError, match="the disk is away"):
            await reader.grown(known)
