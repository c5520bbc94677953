"""A store whose calls end in time, whatever the one inside it does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from raincheck import Job, MemoryStore, State
from raincheck.errors import StoreError
from raincheck.job import Bounds, Key
from raincheck.messages import CapturedRequest, Head
from raincheck.stores.base import Abandoned, Claim, Fetched, Found, Page, Partial, Store, Total
from raincheck.stores.bounded import BoundedStore
from raincheck.testing import StoreContract
from raincheck.testing.samples import job, request

pytestmark = pytest.mark.anyio

TIMEOUT = 10.0
JUST_IN_TIME = TIMEOUT - 1.0


@pytest.mark.one_loop
class TestBoundedStore(StoreContract):
    @pytest.fixture
    def store(self) -> BoundedStore:
        return BoundedStore(MemoryStore(), TIMEOUT)


class Delayed(Store):
    """Takes its time for every call, and for every chunk or job of those that give several.

    Args:
        before: awaited in each call.

    Attributes:
        calls: what was called, with what.
        reading: how many iterators have begun and not ended.
    """

    shared = True

    def __init__(self, before: Callable[[], Awaitable[object]]) -> None:
        self._before = before
        self.calls: list[tuple[Any, ...]] = []
        self.reading = 0

    async def _called(self, *call: Any) -> None:
        self.calls.append(call)
        await self._before()

    async def _several(self, of: list[Any]) -> AsyncIterator[Any]:
        self.reading += 1
        try:
            for one in of:
                await self._before()
                yield one
            await self._before()
        finally:
            self.reading -= 1

    async def open(self) -> None:
        await self._called("open")

    async def name(self) -> str:
        await self._called("name")
        return "shop"

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        await self._called("create", job, request, keys, lease, bounds)
        return job

    async def get(self, id: str) -> Job | None:
        await self._called("get", id)
        return job(id)

    async def fetch(self, id: str) -> Fetched | None:
        await self._called("fetch", id)
        return Fetched(job(id), b"body")

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        await self._called("claim", id, routes, holder, now, lease)
        return Claim(job(id), request(), True)

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        await self._called("claim_deliveries", now, lease, limit)
        return [job("owed")]

    async def partial(self, id: str) -> Partial | None:
        await self._called("partial", id)
        return Partial(job(id), None, 7)

    async def grown(self, known: Partial) -> Partial | None:
        await self._called("grown", known)
        return known

    async def list(
        self,
        *,
        states: Collection[State] = (),
        route: str | None = None,
        owner: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        await self._called("list", states, route, owner, since, until, after, limit)
        return Page([job("a")], "a")

    async def totals(self) -> dict[tuple[str, State], Total]:
        await self._called("totals")
        return {("r", State.QUEUED): Total(1, 1.5, 2.5)}

    async def find(self, name: str) -> Found | None:
        await self._called("find", name)
        return Found(job("of " + name), "f")

    async def learn(self, route: str, names: Collection[str]) -> None:
        await self._called("learn", route, names)

    async def learned(self, route: str) -> frozenset[str]:
        await self._called("learned", route)
        return frozenset(route)

    async def request(self, id: str) -> CapturedRequest | None:
        await self._called("request", id)
        return request(id.encode())

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        await self._called("replace", job, keys, tail, lease, bounds)
        return True

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        await self._called("append_body", id, fence, offset, chunk, head)
        return True

    def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        self.calls.append(("read_body", id, offset))
        return self._several([b"one", b"two", b"three"])

    async def changed(self, id: str, after_version: int) -> Job | None:
        await self._called("changed", id, after_version)
        return job(id)

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        await self._called("renew", fences, lease)
        return {"a": State.RUNNING}

    def abandoned(self) -> AsyncIterator[Abandoned]:
        self.calls.append(("abandoned",))
        return self._several([Abandoned(id, job(id), 1.0) for id in "abc"])

    async def discard(self, id: str) -> bool:
        await self._called("discard", id)
        return True

    async def sweep(self, now: float) -> bool:
        await self._called("sweep", now)
        return True

    async def aclose(self) -> None:
        await self._called("aclose")


async def hang() -> None:
    await anyio.sleep_forever()


async def all_of(iterator: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in iterator]


Call = Callable[[Store], Coroutine[Any, Any, Any]]

# The call, how the store inside must see it, and what must come back.
KEYS = (Key("k"), Key("l", lasting=False))

BOUNDED: dict[str, tuple[Call, tuple[Any, ...], Any]] = {
    "open": (lambda store: store.open(), (), None),
    "create": (
        lambda store: store.create(job(), request(), keys=KEYS, lease=5.0, bounds=Bounds(3, 2)),
        (job(), request(), KEYS, 5.0, Bounds(3, 2)),
        job(),
    ),
    "get": (lambda store: store.get("a"), ("a",), job("a")),
    "find": (lambda store: store.find("k"), ("k",), (job("of k"), "f")),
    "learn": (lambda store: store.learn("r", ["x"]), ("r", ["x"]), None),
    "learned": (lambda store: store.learned("r"), ("r",), {"r"}),
    "request": (lambda store: store.request("a"), ("a",), request(b"a")),
    "replace": (
        lambda store: store.replace(job(), keys=KEYS, tail=b"end", lease=5.0, bounds=Bounds(3, 2)),
        (job(), KEYS, b"end", 5.0, Bounds(3, 2)),
        True,
    ),
    "append_body": (
        lambda store: store.append_body("a", 2, 7, b"x", head=Head(200, ())),
        ("a", 2, 7, b"x", Head(200, ())),
        True,
    ),
    "fetch": (lambda store: store.fetch("a"), ("a",), Fetched(job("a"), b"body")),
    "claim": (
        lambda store: store.claim("a", routes=["r"], holder="h", now=1.5, lease=5.0),
        ("a", ["r"], "h", 1.5, 5.0),
        Claim(job("a"), request(), True),
    ),
    "claim_deliveries": (
        lambda store: store.claim_deliveries(1.5, 5.0, 7),
        (1.5, 5.0, 7),
        [job("owed")],
    ),
    "partial": (lambda store: store.partial("a"), ("a",), Partial(job("a"), None, 7)),
    "list": (
        lambda store: store.list(
            states=[State.QUEUED],
            route="r",
            owner="ann",
            since=1.5,
            until=2.5,
            after="b",
            limit=3,
        ),
        ([State.QUEUED], "r", "ann", 1.5, 2.5, "b", 3),
        Page([job("a")], "a"),
    ),
    "totals": (lambda store: store.totals(), (), {("r", State.QUEUED): Total(1, 1.5, 2.5)}),
    "read_body": (
        lambda store: all_of(store.read_body("a", 3)),
        ("a", 3),
        [b"one", b"two", b"three"],
    ),
    "renew": (
        lambda store: store.renew({"a": 1, "b": 2}, 5.0),
        ({"a": 1, "b": 2}, 5.0),
        {"a": State.RUNNING},
    ),
    "abandoned": (
        lambda store: all_of(store.abandoned()),
        (),
        [Abandoned(id, job(id), 1.0) for id in "abc"],
    ),
    "discard": (lambda store: store.discard("a"), ("a",), True),
    "sweep": (lambda store: store.sweep(1000.0), (1000.0,), True),
    "name": (lambda store: store.name(), (), "shop"),
    "aclose": (lambda store: store.aclose(), (), None),
}
SEVERAL = ["read_body", "abandoned"]

every_call = pytest.mark.parametrize("name", BOUNDED)


def test_every_method_of_the_port_is_bounded_here_but_those_that_wait() -> None:
    port = {name for name, member in vars(Store).items() if inspect.isfunction(member)}
    assert {*BOUNDED, "changed", "grown"} == port
    for name in port:
        asked = inspect.signature(getattr(Store, name)).parameters
        assert list(inspect.signature(getattr(BoundedStore, name)).parameters) == list(asked)


@every_call
async def test_a_call_that_hangs_fails_in_time_and_says_for_how_long(name: str) -> None:
    inside = Delayed(hang)
    call, arguments, _ = BOUNDED[name]
    start = anyio.current_time()
    with pytest.raises(StoreError, match="not answered for 10 seconds"), anyio.fail_after(1000):
        await call(BoundedStore(inside, TIMEOUT))
    assert anyio.current_time() - start == pytest.approx(TIMEOUT, abs=0.1)
    assert inside.calls == [(name, *arguments)]
    assert inside.reading == 0


async def test_a_call_that_hangs_in_its_cleanup_as_well_fails_all_the_same() -> None:
    """As a transaction that is rolled back on a server that answers nothing."""

    async def hang_twice() -> None:
        try:
            await hang()
        finally:
            await hang()

    with pytest.raises(StoreError, match="not answered for 10 seconds"), anyio.fail_after(1000):
        await BoundedStore(Delayed(hang_twice), TIMEOUT).get("a")
    await anyio.sleep(100)  # nothing of it is left


@every_call
async def test_a_call_just_in_time_comes_through_as_it_is(name: str) -> None:
    inside = Delayed(lambda: anyio.sleep(JUST_IN_TIME))
    call, arguments, result = BOUNDED[name]
    assert await call(BoundedStore(inside, TIMEOUT)) == result
    assert inside.calls == [(name, *arguments)]
    assert inside.reading == 0


async def test_waiting_for_a_change_may_take_as_long_as_it_likes() -> None:
    inside = Delayed(lambda: anyio.sleep(1000 * TIMEOUT))
    assert await BoundedStore(inside, TIMEOUT).changed("a", 3) == job("a")
    assert inside.calls == [("changed", "a", 3)]


@every_call
async def test_what_a_store_raises_comes_through_as_it_is(name: str) -> None:
    error = OSError("the disk is away")

    async def fail() -> None:
        raise error

    inside = Delayed(fail)
    with pytest.raises(OSError, match="the disk is away") as raised:
        await BOUNDED[name][0](BoundedStore(inside, TIMEOUT))
    assert raised.value is error
    assert inside.reading == 0


@every_call
async def test_a_stores_own_timeout_is_a_store_that_has_not_answered(name: str) -> None:
    """As asyncpg and sockets raise it; above the port a timeout is nobody's but the caller's."""
    error = TimeoutError("connection timed out")

    async def time_out() -> None:
        raise error

    inside = Delayed(time_out)
    with pytest.raises(StoreError) as raised:
        await BOUNDED[name][0](BoundedStore(inside, TIMEOUT))
    assert raised.value.__cause__ is error
    assert inside.reading == 0


@every_call
async def test_the_callers_own_deadline_stays_the_callers(name: str) -> None:
    inside = Delayed(hang)
    start = anyio.current_time()
    with pytest.raises(TimeoutError), anyio.fail_after(TIMEOUT / 2):
        await BOUNDED[name][0](BoundedStore(inside, TIMEOUT))
    assert anyio.current_time() - start == pytest.approx(TIMEOUT / 2, abs=0.1)
    assert inside.reading == 0


def test_a_caller_that_is_cancelled_as_its_time_is_up_is_cancelled() -> None:
    async def run() -> None:
        asking = asyncio.create_task(BoundedStore(Delayed(hang), 0.02).get("a"))
        asyncio.get_running_loop().call_later(0.02, asking.cancel)  # both in one turn of the loop
        await asyncio.wait([asking])
        assert asking.cancelled()

    asyncio.run(run())


@every_call
async def test_a_caller_that_is_cancelled_leaves_nothing_open(name: str) -> None:
    inside = Delayed(hang)
    async with anyio.create_task_group() as group:
        group.start_soon(BOUNDED[name][0], BoundedStore(inside, TIMEOUT))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert inside.reading == 0


# --- iterators ---------------------------------------------------------------------------------


def iterate(store: Store, name: str) -> AsyncIterator[Any]:
    return store.read_body("a") if name == "read_body" else store.abandoned()


@pytest.mark.parametrize("name", SEVERAL)
async def test_each_of_several_has_its_own_time_and_the_reader_any(name: str) -> None:
    inside = Delayed(lambda: anyio.sleep(JUST_IN_TIME))
    seen = []
    async for one in iterate(BoundedStore(inside, TIMEOUT), name):
        seen.append(one)
        await anyio.sleep(100 * TIMEOUT)  # a client that reads slowly
    assert len(seen) == 3


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_the_one_of_several_that_hangs_fails_in_time(name: str, after: int) -> None:
    calls = 0

    async def hang_then() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            await anyio.sleep_forever()

    inside = Delayed(hang_then)
    seen = []

    async def read() -> None:
        async for one in iterate(BoundedStore(inside, TIMEOUT), name):
            seen.append(one)

    start = anyio.current_time()
    with pytest.raises(StoreError, match="not answered"), anyio.fail_after(1000):
        await read()
    assert anyio.current_time() - start == pytest.approx(TIMEOUT, abs=0.1)
    assert len(seen) == after
    assert inside.reading == 0


@pytest.mark.parametrize("name", SEVERAL)
async def test_a_reader_that_stops_closes_the_iterator_inside(name: str) -> None:
    inside = Delayed(anyio.lowlevel.checkpoint)
    iterator: Any = iterate(BoundedStore(inside, TIMEOUT), name)
    async with aclosing(iterator):
        await anext(iterator)
        assert inside.reading == 1
    assert inside.reading == 0
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)


@pytest.mark.parametrize("name", SEVERAL)
async def test_nothing_is_asked_before_the_first_is_wanted(name: str) -> None:
    inside = Delayed(hang)
    iterator: Any = iterate(BoundedStore(inside, TIMEOUT), name)
    await iterator.aclose()
    assert inside.reading == 0


async def test_an_iterator_of_any_kind_will_do() -> None:
    """The port asks for an `AsyncIterator`, which may have nothing to close."""

    class Chunks:
        def __init__(self) -> None:
            self.left = [b"one", b"two"]

        def __aiter__(self) -> Chunks:
            return self

        async def __anext__(self) -> bytes:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    class Plain(MemoryStore):
        def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
            return Chunks()

    assert await all_of(BoundedStore(Plain(), TIMEOUT).read_body("a")) == [b"one", b"two"]
