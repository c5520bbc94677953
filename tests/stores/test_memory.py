from __future__ import annotations

import errno
import gc
import mmap
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raincheck import ConfigurationError, Job, MemoryStore, Progress, State
from raincheck.errors import StoreFull
from raincheck.job import Key
from raincheck.messages import CapturedResponse, Head, RawHeaders
from raincheck.stores import _memory_bodies
from raincheck.stores._memory_bodies import BLOCK, Body
from raincheck.stores._memory_order import SLACK
from raincheck.stores.memory import RECORD_COST
from raincheck.testing import StoreContract
from raincheck.testing.samples import body_of, claim, finished, job, pages, request, waiting


@pytest.mark.anyio
@pytest.mark.one_loop
class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


@pytest.mark.anyio
async def test_law_9_a_full_store_refuses_new_jobs_and_evicts_none() -> None:
    store = MemoryStore(max_bytes=3 * RECORD_COST)
    for id in "abc":
        await store.create(job(id))
        await store.replace(finished(job(id)))
    with pytest.raises(StoreFull):
        await store.create(job("d"))
    assert [await store.get(id) == finished(job(id)) for id in "abc"] == [True] * 3
    assert await store.get("d") is None


@pytest.mark.anyio
async def test_law_8_an_accepted_job_has_room_even_when_the_store_has_become_full() -> None:
    store = MemoryStore(max_bytes=RECORD_COST)
    await store.create(job())
    await store.append_body("a", 1, 0, b"x" * 10_000)
    assert await store.replace(finished(job(), size=10_000))
    assert await body_of(store, "a") == b"x" * 10_000


@pytest.mark.one_loop
@pytest.mark.anyio
@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("piece", [1_000_003, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
async def test_a_large_body_is_what_its_pieces_were(
    piece: int, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not blocks:  # as on systems without huge pages
        monkeypatch.setattr(_memory_bodies, "_HUGE_PAGES", False)
    store = MemoryStore()
    await store.create(job())
    whole = b""
    for number in range(6 if piece < BLOCK - 1 else 3):
        chunk = bytes([number]) * (piece - number)
        assert await store.append_body("a", 1, len(whole), chunk)
        whole += chunk
    assert await body_of(store, "a") == whole
    for offset in (1, piece, BLOCK, 2 * BLOCK + 7, len(whole) - 1):
        assert b"".join([c async for c in store.read_body("a", offset)]) == whole[offset:]
    assert store.size == RECORD_COST + len(whole)
    assert await store.replace(job().tombstone(1000.0, 60.0))
    assert store.size == RECORD_COST


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")
@pytest.mark.parametrize("there", [True, False])
def test_huge_pages_are_asked_for_and_done_without(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Block(mmap.mmap):
        def madvise(self, option: int, *place: int) -> None:
            asked.append(option)
            if not there:  # the kernel is built without them
                raise OSError(errno.EINVAL, "Invalid argument")
            super().madvise(option, *place)

    monkeypatch.setattr(mmap, "mmap", Block)
    body = Body(b"a" * BLOCK)
    assert asked == []
    body.append(b"b" * (BLOCK + 1))
    assert asked == [mmap.MADV_HUGEPAGE] * 2
    assert b"".join(body.read()) == b"a" * BLOCK + b"b" * (BLOCK + 1)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")
def test_a_body_is_whole_though_the_system_has_no_block_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = iter([True, False, True])

    class Block(mmap.mmap):
        def __new__(cls, *arguments: int, **flags: int) -> Block:
            if not next(places):
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return super().__new__(cls, *arguments, **flags)

    monkeypatch.setattr(mmap, "mmap", Block)
    body = Body(b"a" * BLOCK)
    pieces = [b"a" * BLOCK, b"b" * (BLOCK - 1), b"c" * 100, b"d" * 100]
    for piece in pieces[1:]:
        body.append(piece)
    assert b"".join(body.read()) == b"".join(pieces)
    assert body.size == sum(map(len, pieces))
    assert next(places, None) is None


def test_a_body_can_be_read_while_it_grows_and_once_it_is_gone() -> None:
    body = Body(b"a" * BLOCK)
    body.append(b"b" * 100)
    block = weakref.ref(body._parts[1])
    reading = body.read()
    assert next(reading) == b"a" * BLOCK
    body.append(b"c" * 100)
    del body
    assert b"".join(reading) == b"b" * 100
    del reading
    assert block() is None  # and its memory is the system's again


@pytest.mark.anyio
async def test_all_that_was_kept_is_given_back() -> None:
    store = MemoryStore()
    head = Head(200, ((b"x", b"y" * 100),))
    for number in range(100):
        there = waiting(str(number), max_runs=2)
        await store.create(there, request())
        await store.append_body(there.id, 1, 0, b"", head=head)
        if number % 5 == 0:
            assert await claim(store, there.id)
            there = there.start(1001.5, "here")
            await store.replace(there.cancelling())
            there = there.cancelling()
        await store.append_body(there.id, there.fence, 0, b"x" * 1000, head=head)
        if number % 3 == 0:
            await store.replace(there.tombstone(1000.0, 60.0))
        else:
            await store.replace(finished(there, size=1000 if there.runs and number % 2 else None))
    assert store.size > 60_000
    await store.sweep(1060.0)
    assert store.size == len(store) * RECORD_COST
    await store.sweep(1120.0)
    assert (store.size, len(store)) == (0, 0)


@pytest.mark.anyio
async def test_a_head_counts_until_its_response_is_complete() -> None:
    store = MemoryStore()
    await store.create(job())
    for _ in range(2):
        await store.append_body("a", 1, 0, b"x" * 10, head=Head(200, ((b"x", b"y" * 99),)))
        assert store.size == RECORD_COST + 110
    await store.replace(finished(job(), size=10))
    assert store.size == RECORD_COST + 10


@pytest.mark.anyio
async def test_a_job_has_its_place_in_a_list_though_the_clock_was_set_back() -> None:
    store = MemoryStore()
    times = (5.0, 6.0, 1.0, 7.0, 6.0, 0.5, 8.0)
    for number, created_at in enumerate(times):
        await store.create(job(str(number), created_at=created_at, owner="ann"))
        for of in ({}, {"owner": "ann"}, {"route": "r"}, {"route": "r", "owner": "ann"}):
            listed = [each.created_at for each in await pages(store, 2, **of)]
            assert listed == sorted(times[: number + 1], reverse=True)


@pytest.mark.anyio
async def test_a_list_may_go_on_after_the_page_of_another() -> None:
    store = MemoryStore()
    for number in range(6):
        await store.create(job(str(number), created_at=1000.0 + number))
    after = (await store.list(limit=1)).after
    assert [each.id for each in (await store.list(after=after, until=1002.0)).jobs] == ["1", "0"]


@pytest.mark.anyio
@pytest.mark.parametrize("listed", [True, False])
async def test_an_id_that_is_used_again_is_listed_once(listed: bool) -> None:
    store = MemoryStore()
    for created_at in (1000.0, 1000.0, 1001.0):
        await store.create(job(created_at=created_at))
        if listed:
            assert len(await pages(store)) == 1
        await store.replace(job(created_at=created_at).tombstone(1000.0, 0.0))
        await store.sweep(1000.0)
    await store.create(job(created_at=1000.0))
    assert await pages(store) == [job(created_at=1000.0)]


@pytest.mark.anyio
async def test_messages_and_keys_count_as_long_as_they_are_kept() -> None:
    store = MemoryStore()
    await store.create(job(), keys=(Key("k" * 100, "f" * 100), Key("run", lasting=False)))
    with_keys = store.size
    assert with_keys >= RECORD_COST + 200
    there = job()
    for size in (4000, 3000, 4096):
        there = there.with_progress(Progress(0.5, "x" * size))
        assert await store.replace(there)
        assert with_keys + size <= store.size < with_keys + size + 100
    joined = there.shared(1)
    assert await store.replace(joined, keys=(Key("l" * 1000),))
    joined_size = store.size
    assert joined_size >= with_keys + 4096 + 1000
    done = finished(joined)
    assert await store.replace(done)
    assert RECORD_COST + 4096 + 1200 <= store.size < joined_size  # without the one that was shared
    assert await store.replace(done.tombstone(1000.0, 60.0))
    assert store.size == RECORD_COST
    reported = job("b", progress=Progress(0.5, "x" * 1000))
    await store.create(reported)
    assert store.size >= 2 * RECORD_COST + 1000
    assert await store.replace(reported.tombstone(1000.0, 60.0))
    await store.sweep(1060.0)
    assert store.size == 0


@pytest.mark.anyio
async def test_keys_are_refused_where_there_is_no_room_for_them() -> None:
    store = MemoryStore(max_bytes=RECORD_COST + 2000)
    await store.create(job(), keys=(Key("k"),))
    with pytest.raises(StoreFull, match="holds"):
        await store.create(job("b"), keys=(Key("x" * 1500),))
    there = job()
    with pytest.raises(StoreFull, match="holds"):
        await store.replace(there.shared(1), keys=(Key("x" * 2000),))
    assert await store.get("a") == there
    assert await store.find("x" * 2000) is None
    reported = there.with_progress(Progress(0.5, "x" * 4000))
    assert await store.replace(reported)  # there is always room for how it goes on
    assert await store.replace(finished(reported))


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, "1"])
def test_an_impossible_bound_names_itself(max_bytes: int) -> None:
    with pytest.raises(ConfigurationError, match="max_bytes"):
        MemoryStore(max_bytes=max_bytes)


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.one_loop
@pytest.mark.anyio
@pytest.mark.parametrize("listed", [False, True])
async def test_memory_is_given_back_though_a_few_jobs_stay(listed: bool) -> None:
    store = MemoryStore()
    stays = job("stays")
    with traced():
        await store.create(stays, keys=(Key("key-stays"),))
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(4_000):
            each = job(str(number), owner=f"owner-{number % 400}")
            await store.create(each, keys=(Key(f"key-{number}"),))
            await store.replace(finished(each), tail=b"x" * 100)
        most, _ = tracemalloc.get_traced_memory()
        del each
        if listed:
            assert len((await store.list(owner="owner-7")).jobs) == 10
        await store.sweep(1060.0)
        await store.sweep(1120.0)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    assert most - before > 2_000_000
    assert after - before < 20_000
    assert len(store) == 1
    assert await store.find("key-stays") == (stays, None)


@pytest.mark.anyio
async def test_who_shrinks_forgets_no_due_date() -> None:
    store = MemoryStore()
    for number in range(100):
        each = job(str(number))
        await store.create(each)
        ttl = 60.0 if number else 600.0
        await store.replace(finished(each, ttl=ttl))
    assert await store.sweep(1060.0)  # 99 tombstones
    assert await store.sweep(1120.0)
    assert len(store) == 1
    assert await store.sweep(1600.0)
    assert (await store.get("0")) is not None
    assert not await store.sweep(1660.0)
    assert len(store) == 0


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("progress", "looks"),
    [
        pytest.param(None, 1, id="plain"),
        pytest.param(Progress(0.5, "half"), 3, id="with tuples in the tuple, or an error"),
    ],
)
@pytest.mark.anyio
async def test_jobs_at_rest_are_none_of_the_garbage_collectors_business(
    progress: Progress | None, looks: int
) -> None:
    store = MemoryStore()

    def begun(id: str) -> Job:
        return job(id) if progress is None else job(id).with_progress(progress)

    def at_rest(there: Job) -> Job:
        number = int(there.id)
        if progress is not None and number % 2:
            return finished(there)
        headers = ((b"content-length", b"%d" % number), (b"content-type", b"text/plain"))
        response = CapturedResponse(200, headers, 3)
        return there.finish(
            State.SUCCEEDED, 1000.0, ttl=60.0, tombstone_ttl=60.0, response=response
        )

    async def keep(ids: range) -> None:
        for there in map(begun, map(str, ids)):
            await store.create(there)
            await store.replace(at_rest(there), tail=b"abc")

    await keep(range(10))
    gc.collect()
    before = len(gc.get_objects())
    await keep(range(10, 1010))
    for _ in range(looks):
        gc.collect()
    assert len(gc.get_objects()) - before < 10
    for id in ("500", "501"):
        assert await store.get(id) == at_rest(begun(id))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="none"),
        pytest.param(((b"x", b""),), id="an empty one"),
        pytest.param(((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")), id="two of a name"),
        pytest.param(((b"x", b"a\nb"), (b"y", b"c")), id="what no server could send"),
        pytest.param(((b"a", b"b\n"), (b"\nc", b"d")), id="the same, elsewhere"),
    ],
)
@pytest.mark.anyio
async def test_header_fields_at_rest_are_what_they_were(headers: RawHeaders) -> None:
    store = MemoryStore()
    await store.create(job("1"))
    response = CapturedResponse(200, headers, 3)
    done = job("1").finish(State.SUCCEEDED, 1000.0, ttl=60.0, tombstone_ttl=60.0, response=response)
    await store.replace(done, tail=b"abc")
    assert await store.fetch("1") == (done, b"abc")


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_long_header_fields_are_given_back_though_somebody_has_asked_for_them() -> None:
    store = MemoryStore()
    with traced():
        for number in range(200):
            each = job(str(number))
            await store.create(each)
            value = b"%d" % number * 10_000
            response = CapturedResponse(200, ((b"link", value),), 0)
            done = each.finish(
                State.SUCCEEDED, 1000.0, ttl=60.0, tombstone_ttl=60.0, response=response
            )
            await store.replace(done)
            assert await store.get(each.id) == done
        del value, response, done
        most, _ = tracemalloc.get_traced_memory()
        await store.sweep(1060.0)
        await store.sweep(1120.0)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    assert len(store) == 0
    assert most > 4_000_000
    assert after < 500_000


class Counting(dict[str, Any]):
    """Counts how often it is asked."""

    asked = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)


@pytest.mark.anyio
async def test_few_jobs_of_one_state_are_found_among_many_of_others() -> None:
    store = MemoryStore()
    for number in range(3000):
        new = waiting(f"{number:04}", created_at=1000.0 + number, owner="ann")
        await store.create(new)
        if number % 1000 == 999:
            await store.replace(new.finish(State.CANCELLED, 5000.0, ttl=60.0, tombstone_ttl=60.0))
        elif number % 1000:
            await store.replace(finished(new))
    assert len((await store.list(limit=1)).jobs) == 1  # what is new is put in its place
    await store.totals()
    counting = store._at_rest = Counting(store._at_rest)
    for states, ids in (
        ([State.CANCELLED], ["2999", "1999", "0999"]),
        ([State.QUEUED], ["2000", "1000", "0000"]),
        ([State.CANCELLED, State.QUEUED], ["2999", "2000", "1999", "1000", "0999", "0000"]),
        ([State.SUCCEEDED, State.RUNNING], []),
    ):
        narrowed: list[dict[str, Any]] = [{}, {"route": "r"}, {"owner": "ann"}]
        for of in narrowed:
            assert [job.id for job in (await store.list(states=states, **of)).jobs] == ids
    assert {key: total.count for key, total in (await store.totals()).items()} == {
        ("r", State.QUEUED): 3,
        ("r", State.CANCELLED): 3,
        ("r", State.FAILED): 2994,
    }
    assert counting.asked < 100


@pytest.mark.anyio
async def test_what_stands_in_order_by_its_state_goes_when_it_is_forgotten() -> None:
    store = MemoryStore()
    for number in range(4000):
        new = job(f"{number}", created_at=1000.0)
        await store.create(new)
        await store.replace(finished(new))
        if number % 100 == 99:
            await store.sweep(1060.0)
            await store.sweep(1120.0)
    order = store._ended.order(State.FAILED)
    assert len([*order.oldest_first("r")]) <= SLACK + 100
    assert (len(store), await store.totals()) == (0, {})
